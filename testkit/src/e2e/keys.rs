//! Keys and certificates of a cluster, and the files by which its programs show them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use serde_json::json;

use super::settings::{API_PORT, KUBERNETES, NODES, addresses};

/// The administrator.
pub(super) const ADMIN: &str = "admin";
/// Certificates of the cluster's own programs, and of whom.
const ACCOUNTS: [(&str, &str, &str); 4] = [
    (ADMIN, ADMIN, "system:masters"),
    ("controllers", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("proxy", "system:kube-proxy", ""),
];

/// Writes all keys and certificates into a folder: `NAME.crt`, `NAME.key`.
pub(super) fn make(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut authority = CertificateParams::default();
    authority.distinguished_name = subject("cluster", "");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let authority = CertifiedIssuer::self_signed(authority, key()?).map_err(io::Error::other)?;
    fs::write(folder.join("ca.crt"), authority.pem())?;
    fs::write(folder.join("ca.key"), authority.key().serialize_pem())?;
    let accounts = key()?;
    fs::write(folder.join("accounts.key"), accounts.serialize_pem())?;
    fs::write(folder.join("accounts.pub"), accounts.public_key_pem())?;

    let sign = |file: &str, name: &str, organization: &str, names: Vec<String>| {
        let mut certificate = CertificateParams::new(names).map_err(io::Error::other)?;
        certificate.distinguished_name = subject(name, organization);
        certificate.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = key()?;
        let signed = certificate
            .signed_by(&key, &authority)
            .map_err(io::Error::other)?;
        fs::write(folder.join(format!("{file}.crt")), signed.pem())?;
        fs::write(folder.join(format!("{file}.key")), key.serialize_pem())
    };
    for (file, name, organization) in ACCOUNTS {
        sign(file, name, organization, Vec::new())?;
    }
    for node in NODES {
        sign(
            &format!("kubelet-{node}"),
            &format!("system:node:{node}"),
            "system:nodes",
            Vec::new(),
        )?;
    }
    let mut names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "127.0.0.1",
    ]
    .map(str::to_owned)
    .to_vec();
    names.extend(KUBERNETES.map(str::to_owned));
    names.extend(addresses(NODES[0]).map(|address| address.to_string()));
    sign("apiserver", "kube-apiserver", "", names)
}

fn key() -> io::Result<KeyPair> {
    KeyPair::generate().map_err(io::Error::other)
}

fn subject(name: &str, organization: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    if !organization.is_empty() {
        subject.push(DnType::OrganizationName, organization);
    }
    subject
}

/// A kubeconfig for the certificate of this name, where authority, certificate and key are in
/// `folder`.
pub(super) fn kubeconfig(name: &str, folder: &Path) -> String {
    let file = |name: String| folder.join(name);
    let server = format!("https://{}:{API_PORT}", addresses(NODES[0])[0]);
    let files: [PathBuf; 3] = [
        file("ca.crt".to_owned()),
        file(format!("{name}.crt")),
        file(format!("{name}.key")),
    ];
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "default",
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
        "clusters": [{"name": "default", "cluster": {"server": server, "certificate-authority": files[0]}}],
        "users": [{"name": "default", "user": {"client-certificate": files[1], "client-key": files[2]}}],
    })
    .to_string()
}
