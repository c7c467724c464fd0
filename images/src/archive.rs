//! The archive around a layer.

use std::{
    collections::HashMap,
    fs::Permissions,
    io::{self, Read, Seek as _, SeekFrom},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    str::FromStr as _,
};

use oci_spec::image::{
    Arch, Config, ConfigBuilder, Descriptor, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, Platform, PlatformBuilder,
    RootFsBuilder, Sha256Digest,
};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::{
    Digest, Image,
    layer::{Layer, hex},
};

/// The annotation by which an importing engine learns the image's name.
pub const OCI_NAME: &str = "io.containerd.image.name";
/// The tag alone, as the layout's specification has it.
const OCI_TAG: &str = "org.opencontainers.image.ref.name";

pub(crate) fn write(
    image: &Image,
    mut layer: Layer,
    folder: &Path,
    file: &Path,
) -> io::Result<Digest> {
    let platform = platform()?;
    let mut archive = Archive {
        builder: Builder::new(tempfile::NamedTempFile::new_in(folder)?),
        time: image.created,
    };
    archive.folder("blobs/")?;
    archive.folder("blobs/sha256/")?;
    layer.file.seek(SeekFrom::Start(0))?;
    archive.add(&blob(&layer.digest), layer.size, &layer.file)?;
    let config = archive.document(
        MediaType::ImageConfig,
        &configuration(image, &platform, &layer.digest)?,
    )?;
    let layers = vec![Descriptor::new(
        MediaType::ImageLayer,
        layer.size,
        digest(&layer.digest)?,
    )];
    let manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest);
    let manifest = manifest
        .config(config.clone())
        .layers(layers)
        .build()
        .map_err(io::Error::other)?;
    let mut manifest = archive.document(MediaType::ImageManifest, &manifest)?;
    let identity = Digest(manifest.digest().digest().to_owned());
    manifest.set_platform(Some(platform));
    let tag = image.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    manifest.set_annotations(Some(
        [(OCI_NAME, image.name.as_str()), (OCI_TAG, tag)]
            .map(pair)
            .into(),
    ));
    let index = ImageIndexBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageIndex)
        .manifests(vec![manifest]);
    archive.json("index.json", &index.build().map_err(io::Error::other)?)?;
    archive.json(
        "oci-layout",
        &OciLayoutBuilder::default()
            .image_layout_version("1.0.0")
            .build()
            .map_err(io::Error::other)?,
    )?;
    let docker = json!([{"Config": blob(config.digest().digest()), "RepoTags": [image.name], "Layers": [blob(&layer.digest)]}]);
    archive.json("manifest.json", &docker)?;
    let done = archive.builder.into_inner()?;
    done.as_file()
        .set_permissions(Permissions::from_mode(0o644))?;
    done.persist(file)?;
    Ok(identity)
}

fn configuration(image: &Image, platform: &Platform, layer: &str) -> io::Result<Value> {
    let rootfs = RootFsBuilder::default()
        .typ("layers")
        .diff_ids(vec![format!("sha256:{layer}")])
        .build();
    let configuration = ImageConfigurationBuilder::default()
        .created(rfc3339(image.created))
        .architecture(platform.architecture().clone())
        .os(platform.os().clone())
        .config(config(image)?)
        .rootfs(rootfs.map_err(io::Error::other)?)
        .build();
    Ok(serde_json::to_value(
        configuration.map_err(io::Error::other)?,
    )?)
}

fn config(image: &Image) -> io::Result<Config> {
    let labels: HashMap<String, String> = image.labels.iter().cloned().collect();
    let config = ConfigBuilder::default()
        .user(image.user.clone())
        .env(image.environment.clone())
        .entrypoint(image.entrypoint.clone());
    let config = config.exposed_ports(image.ports.clone()).labels(labels);
    config.build().map_err(io::Error::other)
}

/// This machine's: the programs inside are built for it.
fn platform() -> io::Result<Platform> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => Arch::Amd64,
        "aarch64" => Arch::ARM64,
        other => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("no image is made on {other}: only on x86_64 and aarch64"),
            ));
        }
    };
    PlatformBuilder::default()
        .architecture(architecture)
        .os(Os::Linux)
        .build()
        .map_err(io::Error::other)
}

fn pair((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn digest(hex: &str) -> io::Result<Sha256Digest> {
    Sha256Digest::from_str(hex).map_err(io::Error::other)
}

struct Archive {
    builder: Builder<tempfile::NamedTempFile>,
    time: u64,
}

impl Archive {
    fn header(&self, kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(self.time);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        header
    }

    fn folder(&mut self, path: &str) -> io::Result<()> {
        let mut header = self.header(EntryType::Directory, 0o755, 0);
        self.builder.append_data(&mut header, path, io::empty())
    }

    fn add(&mut self, path: &str, size: u64, content: impl Read) -> io::Result<()> {
        let mut header = self.header(EntryType::Regular, 0o644, size);
        self.builder.append_data(&mut header, path, content)
    }

    fn json(&mut self, path: &str, content: &impl Serialize) -> io::Result<()> {
        let bytes = ordered(content)?;
        self.add(path, bytes.len() as u64, bytes.as_slice())
    }

    /// Adds a document under its digest, and describes it.
    fn document(&mut self, kind: MediaType, content: &impl Serialize) -> io::Result<Descriptor> {
        let bytes = ordered(content)?;
        let name = hex(&Sha256::digest(&bytes));
        self.add(&blob(&name), bytes.len() as u64, bytes.as_slice())?;
        Ok(Descriptor::new(kind, bytes.len() as u64, digest(&name)?))
    }
}

/// The same content is the same text: the order of a map in memory is another one in each process.
fn ordered(content: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut value = serde_json::to_value(content)?;
    value.sort_all_objects();
    Ok(serde_json::to_vec(&value)?)
}

/// A time as RFC 3339 writes it, in UTC.
fn rfc3339(seconds: u64) -> String {
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted in years that begin in March, so that a leap day is a year's last one; an
    // era is the 400 years after which the calendar repeats.
    let shifted = day + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn times_are_written_as_rfc_3339_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_796_026_845, "2026-11-30T08:20:45Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }
}
