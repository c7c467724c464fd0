//! How the YAML that people write is read: configuration files and manifests.

use serde_json::Value;
use serde_saphyr::{
    Error, MergeKeyPolicy, NonFiniteFloatPolicy, Options, Spanned, UserMessageFormatter,
};

/// YAML 1.2: only `true` and `false` are truth values, and `yes` and `on` are texts. A number with
/// a leading zero is text, as are numbers with underscores; `0x` and `0o` begin numbers. A key is
/// given once, `<<` is a key like any other, and there are no types of one's own.
///
/// A document may be as large as a cluster. What stays bounded is what grows without the text:
/// how deep values stand in each other, and how often a part of the text is repeated by an alias.
pub(crate) fn options() -> Options {
    serde_saphyr::options! {
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        merge_keys: MergeKeyPolicy::AsOrdinary,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        reject_unsupported_tags: true,
        // An error is one line. Whoever reads it has the file.
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_documents: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            max_reader_input_bytes: None,
        },
    }
}

/// What is wrong, with line and column, in words for whoever wrote the text.
pub(crate) fn explain(error: &Error) -> String {
    error.render_with_formatter(&UserMessageFormatter)
}

/// Gives each document of a text that is not empty to `take`, with its number. They count from 1,
/// and empty ones count too. Nothing behind an error can be trusted to be a document: it is the
/// last.
pub(crate) fn read_documents(text: &str, mut take: impl FnMut(usize, Result<Value, String>)) {
    let first_lines = first_lines(text);
    let number = |line: u64| {
        let begun = first_lines.partition_point(|first| *first <= line);
        begun.max(1)
    };
    let mut bytes = text.as_bytes();
    for document in serde_saphyr::read_with_options::<_, Spanned<Value>>(&mut bytes, options()) {
        match document {
            Ok(document) => take(number(document.referenced.line()), Ok(document.value)),
            Err(error) => {
                let line = error
                    .location()
                    .map_or(u64::MAX, |location| location.line());
                return take(number(line), Err(explain(&error)));
            }
        }
    }
}

/// The line on which each document begins. A line that begins with `---` begins a document
/// wherever it stands, and one that begins with `...` ends it.
fn first_lines(text: &str) -> Vec<u64> {
    let is_marker = |line: &str, marker: &str| {
        line.strip_prefix(marker)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
    };
    let (mut first_lines, mut inside) = (Vec::new(), false);
    for (line, number) in text.trim_start_matches('\u{feff}').lines().zip(1..) {
        let says_nothing = line.trim().is_empty() || line.trim_start().starts_with('#');
        if is_marker(line, "---") || !(inside || says_nothing || line.starts_with(['%', '.'])) {
            first_lines.push(number);
            inside = true;
        } else if is_marker(line, "...") {
            inside = false;
        }
    }
    first_lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn documents(text: &str) -> Vec<(usize, Result<Value, String>)> {
        let mut documents = Vec::new();
        read_documents(text, |number, document| documents.push((number, document)));
        documents
    }

    fn read(text: &str) -> Result<Value, String> {
        let mut documents = documents(text);
        assert_eq!(documents.len(), 1, "{documents:?}");
        documents.remove(0).1
    }

    #[test]
    fn only_true_and_false_are_truth_values() {
        let text = "{a: yes, b: no, c: on, d: off, e: y, f: True, g: FALSE}";
        let wanted =
            json!({"a": "yes", "b": "no", "c": "on", "d": "off", "e": "y", "f": true, "g": false});
        assert_eq!(read(text), Ok(wanted));
    }

    #[test]
    fn a_leading_zero_makes_text_and_a_prefix_says_the_base() {
        let text = "{a: 0755, b: 0o17, c: 0xff, d: 0b11, e: 1_000, f: -7, g: 12e3, h: 1:30}";
        let wanted = json!({"a": "0755", "b": 15, "c": 255, "d": 3, "e": "1_000", "f": -7, "g": 12000.0, "h": "1:30"});
        assert_eq!(read(text), Ok(wanted));
        let text = "{a: .inf, b: 2026-12-01, c: ~, d: '7', e: \"on\"}";
        let wanted = json!({"a": ".inf", "b": "2026-12-01", "c": null, "d": "7", "e": "on"});
        assert_eq!(read(text), Ok(wanted));
    }

    #[test]
    fn what_is_refused_is_told_with_its_line_in_one_line() {
        for (text, wanted) in [
            (
                "a: 1\nb: 2\na: 3\n",
                "duplicate mapping key `a` is not allowed here at line 3, column 1",
            ),
            ("a:\n  b: !mine 7\n", "unsupported tag `!mine` at line 2"),
            (
                "a: 1\nb: c: d\n",
                "mapping values are not allowed in this context at line 2",
            ),
            ("a: 1\nb: [2\n", "unclosed bracket '[' at line 2"),
            ("a: *b\n", "reference to unknown value at line 1"),
            ("? [a]\n: b\n", "at line 1"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(wanted) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn an_alias_repeats_and_a_merge_is_a_field_like_any_other() {
        let wanted = json!({"a": {"b": 1}, "c": {"b": 1}, "d": {"<<": {"b": 1}}});
        assert_eq!(read("a: &x {b: 1}\nc: *x\nd: {<<: *x}\n"), Ok(wanted));
    }

    #[test]
    fn what_is_too_deep_or_repeats_itself_without_end_is_refused() {
        assert!(read(&"[".repeat(100_000)).is_err());
        assert!(read(&format!("{}{}", "{a: ".repeat(1000), "}".repeat(1000))).is_err());
        let line = |n: usize| {
            let parts = match n.checked_sub(1) {
                Some(before) => vec![format!("*a{before}"); 10],
                None => vec!["x".to_owned(); 10],
            };
            format!("a{n}: &a{n} [{}]\n", parts.join(", "))
        };
        let bomb: String = (0..12).map(line).collect();
        let error = read(&bomb).unwrap_err();
        assert!(error.contains("too large or too complex"), "{error}");
    }

    #[test]
    fn documents_are_counted_as_people_count_them() {
        let numbers = |text: &str| {
            let documents = documents(text);
            documents
                .into_iter()
                .map(|(number, read)| (number, read.is_ok()))
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers("a: 1\n---\nb: 2\n"), [(1, true), (2, true)]);
        assert_eq!(numbers("---\na: 1\n---\nb: 2\n"), [(1, true), (2, true)]);
        assert_eq!(numbers("# words\n\n---\n# none\n---\nb: 2\n"), [(2, true)]);
        assert_eq!(
            numbers("--- {a: 1}\n--- # none\n---\nb: 2\n"),
            [(1, true), (3, true)]
        );
        assert_eq!(
            numbers("%YAML 1.2\n---\na: 1\n...\n# words\nb: 2\n"),
            [(1, true), (2, true)]
        );
        assert_eq!(
            numbers("a: |\n  ---\n  text\n---\nb: 2\n"),
            [(1, true), (2, true)]
        );
        assert_eq!(
            numbers("a: 1\n---\nb: [\n---\nc: 1\n"),
            [(1, true), (2, false)]
        );
        assert_eq!(
            numbers("\u{feff}a: 1\r\n---\r\nb: 2\r\n"),
            [(1, true), (2, true)]
        );
        assert_eq!(numbers(""), []);
        assert_eq!(numbers("---\n---\n# none\n"), []);
    }
}
