use std::fmt;

/// What an image says of itself, beside its files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Its reference: repository and tag.
    pub name: String,
    /// The program that is started, with its first arguments.
    pub entrypoint: Vec<String>,
    /// `NAME=VALUE`
    pub environment: Vec<String>,
    /// `UID:GID`; empty: root.
    pub user: String,
    /// Ports that the program listens at, as `PORT/PROTOCOL`.
    pub ports: Vec<String>,
    /// `org.opencontainers.image.*` and others.
    pub labels: Vec<(String, String)>,
    /// When it was made, in seconds since 1970: the time of every file in it.
    pub created: u64,
}

/// What identifies an image: the digest of its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest(pub(crate) String);

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.0)
    }
}
