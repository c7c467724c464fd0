use super::Problem;

/// Longest name of an object.
const MAX_LENGTH: usize = 253;

/// Name of an object: a DNS subdomain.
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#dns-subdomain-names>
///
/// # Errors
/// When an API server would refuse the name.
pub fn parse_name(field: &str, text: &str) -> Result<(), Problem> {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        let ends = label.bytes().next().is_some_and(alphanumeric)
            && label.bytes().last().is_some_and(alphanumeric);
        ends && label.bytes().all(|byte| alphanumeric(byte) || byte == b'-')
    };
    if text.len() <= MAX_LENGTH && text.split('.').all(label) {
        return Ok(());
    }
    Err(Problem::new(
        field,
        text,
        "must be a name of an object: lower case letters, digits, '-' and '.', at most 253",
    ))
}
