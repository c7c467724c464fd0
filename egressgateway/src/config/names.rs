//! The flag and the environment variable of a field follow from its path, while the compiler runs.

/// What all variables begin with.
const PREFIX: &str = "EGRESSGATEWAY_";

/// The length of the flag of a field.
pub(super) const fn flag_length(path: &str) -> usize {
    let path = path.as_bytes();
    let (mut length, mut index) = (0, 0);
    while index < path.len() {
        length += 1 + begins_a_word(path, index) as usize;
        index += 1;
    }
    length
}

/// The flag of a field, without its dashes: `tunnel-ipv4-cidr` for `tunnel.ipv4CIDR`.
pub(super) const fn flag<const LENGTH: usize>(path: &str) -> [u8; LENGTH] {
    let path = path.as_bytes();
    let (mut flag, mut written, mut index) = ([0; LENGTH], 0, 0);
    while index < path.len() {
        if begins_a_word(path, index) {
            flag[written] = b'-';
            written += 1;
        }
        flag[written] = match path[index] {
            b'.' => b'-',
            byte => byte.to_ascii_lowercase(),
        };
        written += 1;
        index += 1;
    }
    flag
}

/// The length of the variable of a field.
pub(super) const fn variable_length(path: &str) -> usize {
    PREFIX.len() + flag_length(path)
}

/// The variable of a field: `EGRESSGATEWAY_TUNNEL_IPV4_CIDR` for `tunnel.ipv4CIDR`.
pub(super) const fn variable<const LENGTH: usize, const FLAG: usize>(path: &str) -> [u8; LENGTH] {
    let (flag, prefix) = (flag::<FLAG>(path), PREFIX.as_bytes());
    let (mut variable, mut index) = ([0; LENGTH], 0);
    while index < LENGTH {
        variable[index] = if index < prefix.len() {
            prefix[index]
        } else {
            match flag[index - prefix.len()] {
                b'-' => b'_',
                byte => byte.to_ascii_uppercase(),
            }
        };
        index += 1;
    }
    variable
}

/// What the functions above made, which is ASCII where the path is.
pub(super) const fn text(bytes: &[u8]) -> &str {
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(_) => panic!("the path of a field must be ASCII"),
    }
}

/// A capital letter behind a small one or a digit: abbreviations such as CIDR are one word.
const fn begins_a_word(path: &[u8], index: usize) -> bool {
    path[index].is_ascii_uppercase()
        && index > 0
        && (path[index - 1].is_ascii_lowercase() || path[index - 1].is_ascii_digit())
}
