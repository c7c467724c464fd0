//! Tables in a page of the documentation, each between its own markers.

use std::{fs, io, path::Path};

/// Replaces what stands between the markers of `part`: `<!-- PART -->` and `<!-- end of PART -->`.
///
/// # Errors
/// When the page can't be read or written, or does not have them.
pub fn write(path: &Path, part: &str, table: &str) -> io::Result<()> {
    let text = fs::read_to_string(path)?;
    let replaced = replace(&text, part, table)
        .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
    fs::write(path, replaced)
}

fn replace(text: &str, part: &str, table: &str) -> Result<String, String> {
    let [begin, end] = [
        format!("<!-- {part} -->\n"),
        format!("<!-- end of {part} -->"),
    ];
    let missing = || format!("has no {} and {end} after it", begin.trim_end());
    let (before, rest) = text.split_once(&begin).ok_or_else(missing)?;
    let (_, after) = rest.split_once(&end).ok_or_else(missing)?;
    Ok(format!("{before}{begin}\n{table}\n\n{end}{after}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_parts_table_is_replaced_and_the_others_stay() {
        let page = "a\n<!-- one -->\nold\n<!-- end of one -->\nb\n<!-- two -->\nkept\n<!-- end of two -->\nc\n";
        let now = replace(page, "one", "| new |").unwrap();
        assert_eq!(
            now,
            "a\n<!-- one -->\n\n| new |\n\n<!-- end of one -->\nb\n<!-- two -->\nkept\n<!-- end of two -->\nc\n"
        );
        assert_eq!(
            replace(&now, "one", "| new |").unwrap(),
            now,
            "again, it changes nothing"
        );
        assert!(
            replace(page, "three", "")
                .unwrap_err()
                .contains("<!-- three -->")
        );
    }
}
