//! Archives, read as engines read them.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use egressgateway_images::{Image, OCI_NAME, product};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

const NAME: &str = "example.test/some/thing:1.2.3";

fn image() -> Image {
    let text = |text: &str| text.to_owned();
    Image {
        name: text(NAME),
        entrypoint: vec![text("thing"), text("--run")],
        environment: vec![text("PATH=/usr/bin")],
        user: text("65532:65532"),
        ports: vec![text("5810/tcp")],
        labels: ["b", "a", "d", "c"]
            .map(|name| (text(name), format!("value of {name}")))
            .into(),
        created: 1_700_000_000,
    }
}

fn root(directory: &Path) {
    fs::create_dir_all(directory.join("usr/bin")).unwrap();
    fs::create_dir_all(directory.join("empty")).unwrap();
    // A name that is longer than a header of tar has room for.
    let long = directory.join("usr").join("x".repeat(140));
    fs::write(long, "long").unwrap();
    fs::write(directory.join("usr/bin/thing"), "program").unwrap();
    fs::set_permissions(
        directory.join("usr/bin/thing"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    symlink("usr/bin", directory.join("bin")).unwrap();
}

fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(entry.path().unwrap().display().to_string(), content);
    }
    files
}

fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, digest: &Value) -> &'a [u8] {
    let digest = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
    let content = &files[&format!("blobs/sha256/{digest}")];
    let real = Sha256::digest(content)
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    assert_eq!(real, digest);
    content
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn the_index_leads_to_a_manifest_a_configuration_and_the_layer() {
    let directory = tempfile::tempdir().unwrap();
    root(&directory.path().join("root"));
    let file = directory.path().join("image.tar");
    let digest = image()
        .write(&directory.path().join("root"), &file)
        .unwrap();
    let files = files(&fs::read(file).unwrap());
    assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
    let index = json(&files["index.json"]);
    let entry = &index["manifests"][0];
    assert_eq!(entry["annotations"][OCI_NAME], NAME);
    assert_eq!(
        entry["annotations"]["org.opencontainers.image.ref.name"],
        "1.2.3"
    );
    assert_eq!(entry["platform"]["os"], "linux");
    assert_eq!(entry["digest"], digest.to_string());
    let manifest = json(blob(&files, &entry["digest"]));
    assert_eq!(manifest["schemaVersion"], 2);
    for described in [entry, &manifest["config"], &manifest["layers"][0]] {
        assert_eq!(
            described["size"],
            blob(&files, &described["digest"]).len(),
            "{described}"
        );
    }
    let config = json(blob(&files, &manifest["config"]["digest"]));
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    assert_eq!(
        config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"],
        "a layer that is not compressed is its own difference"
    );
    assert_eq!(config["architecture"], entry["platform"]["architecture"]);
    let inner = &config["config"];
    assert_eq!(inner["Entrypoint"], serde_json::json!(["thing", "--run"]));
    assert_eq!(inner["Env"], serde_json::json!(["PATH=/usr/bin"]));
    assert_eq!(inner["User"], "65532:65532");
    assert_eq!(inner["ExposedPorts"], serde_json::json!({"5810/tcp": {}}));
    assert_eq!(inner["Labels"]["c"], "value of c");
    // What engines read that do not know the layout.
    let docker = &json(&files["manifest.json"])[0];
    assert_eq!(docker["RepoTags"], serde_json::json!([NAME]));
    let path = |digest: &Value| digest.as_str().unwrap().replace("sha256:", "blobs/sha256/");
    assert_eq!(docker["Config"], path(&manifest["config"]["digest"]));
    assert_eq!(
        docker["Layers"],
        serde_json::json!([path(&manifest["layers"][0]["digest"])])
    );
}

#[test]
fn the_layer_has_everything_and_all_of_it_is_roots() {
    let directory = tempfile::tempdir().unwrap();
    root(&directory.path().join("root"));
    let file = directory.path().join("image.tar");
    image()
        .write(&directory.path().join("root"), &file)
        .unwrap();
    let files = files(&fs::read(file).unwrap());
    let manifest = json(blob(
        &files,
        &json(&files["index.json"])["manifests"][0]["digest"],
    ));
    let mut seen = Vec::new();
    let mut layer = tar::Archive::new(blob(&files, &manifest["layers"][0]["digest"]));
    for entry in layer.entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!(
            (
                header.uid().unwrap(),
                header.gid().unwrap(),
                header.mtime().unwrap()
            ),
            (0, 0, 1_700_000_000)
        );
        let target = entry
            .link_name()
            .unwrap()
            .map(|target| target.display().to_string());
        seen.push((
            entry.path().unwrap().display().to_string(),
            header.mode().unwrap() & 0o100,
            target,
        ));
    }
    let long = format!("usr/{}", "x".repeat(140));
    let expected = [
        ("bin", 0o100, Some("usr/bin")),
        ("empty/", 0o100, None),
        ("usr/", 0o100, None),
        ("usr/bin/", 0o100, None),
        ("usr/bin/thing", 0o100, None),
        (&long, 0, None),
    ];
    assert_eq!(
        seen,
        expected.map(|(path, mode, target)| (path.to_owned(), mode, target.map(str::to_owned)))
    );
}

#[test]
fn the_same_root_is_the_same_image() {
    let directory = tempfile::tempdir().unwrap();
    let mut digests = Vec::new();
    let mut archives = Vec::new();
    for number in 0..6 {
        let root_directory = directory.path().join(format!("root{number}"));
        root(&root_directory);
        let file = directory.path().join(format!("{number}.tar"));
        digests.push(image().write(&root_directory, &file).unwrap());
        archives.push(fs::read(file).unwrap());
    }
    // Maps in memory have another order each time: six are equal by chance in one of some thousands
    // of cases, were they not sorted.
    assert!(
        digests.windows(2).all(|two| two[0] == two[1]),
        "{digests:?}"
    );
    assert!(archives.windows(2).all(|two| two[0] == two[1]));
}

#[test]
fn what_can_not_be_packed_is_named_and_leaves_the_old_archive() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(root.join("some.socket")).unwrap();
    let file = directory.path().join("image.tar");
    fs::write(&file, "old").unwrap();
    let error = image().write(&root, &file).unwrap_err().to_string();
    assert!(
        error.contains("some.socket") && error.contains("is a socket"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "old");
    let missing = image()
        .write(&directory.path().join("nowhere"), &file)
        .unwrap_err()
        .to_string();
    assert!(missing.contains("nowhere"), "{missing}");
    let left: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "nothing else is left: {left:?}");
}

#[test]
fn every_image_of_the_project_is_known_by_the_name_that_the_chart_asks_for() {
    let contents = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/contents")).unwrap();
    let names = contents
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().next());
    for name in names.filter(|name| *name != "without") {
        let image = product(name, "abc", 0).unwrap_or_else(|| panic!("{name} is not known"));
        assert!(image.labels.contains(&(
            "org.opencontainers.image.revision".to_owned(),
            "abc".to_owned()
        )));
    }
    assert_eq!(product("other", "", 0), None);
    let values = fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../charts/egressgateway/values.yaml"
    ))
    .unwrap();
    let repository = values
        .lines()
        .find_map(|line| line.trim().strip_prefix("repository: "))
        .unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        product("full", "", 0).unwrap().name,
        format!("{repository}:{version}")
    );
    assert_eq!(
        product("nftables", "", 0).unwrap().name,
        format!("{repository}:{version}-nftables")
    );
}
