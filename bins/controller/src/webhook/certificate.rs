//! A certificate for the webhooks' Service, and the authorities that an API server trusts for it.

use std::sync::Arc;

use egressgateway::{Error, ErrorKind};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use time::{Duration, OffsetDateTime};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, pem::Pem};

/// How long a certificate and its authority live. Two thirds of it are used.
pub(crate) const LIFE: Duration = Duration::days(90);
/// Clocks of a cluster may differ by so much.
const SKEW: Duration = Duration::minutes(5);
/// How many authorities are trusted at once: the present one, the one before, and some that a fault
/// left behind.
const MAX_AUTHORITIES: usize = 4;

/// A certificate with its key, and whom to trust, as PEM: what the Secret holds.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// The certificate.
    pub(crate) certificate: String,
    /// Its private key.
    pub(crate) key: String,
    /// The authorities to trust: the one that signed it, and those before whose certificates may
    /// still be presented somewhere.
    pub(crate) authorities: String,
}

impl Pair {
    /// A new certificate of a new authority, whose key is forgotten at once. `before` are
    /// authorities that are trusted besides it as long as they live.
    ///
    /// # Errors
    /// When a key can't be made.
    pub(crate) fn make(names: &[String], before: &str, now: OffsetDateTime) -> Result<Self, Error> {
        let failed = |error| {
            Error::new(ErrorKind::Invalid, "make a certificate for the webhooks").with_source(error)
        };
        let (authority_key, key) = (
            KeyPair::generate().map_err(failed)?,
            KeyPair::generate().map_err(failed)?,
        );
        let mut authority = params(&[], now).map_err(failed)?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        authority.distinguished_name = name(&format!(
            "egressgateway-webhook authority {}",
            now.unix_timestamp()
        ));
        let mut own = params(names, now).map_err(failed)?;
        own.distinguished_name = name("egressgateway-webhook");
        own.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        own.use_authority_key_identifier_extension = true;
        let root = authority.self_signed(&authority_key).map_err(failed)?;
        let certificate = own
            .signed_by(&key, &Issuer::new(authority, authority_key))
            .map_err(failed)?;
        let alive = living(before, now).into_iter().take(MAX_AUTHORITIES - 1);
        let authorities = [root.pem()].into_iter().chain(alive).collect();
        Ok(Self {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            authorities,
        })
    }

    /// When it is to be replaced: after two thirds of its life. None where it is of no use:
    /// unreadable, or not for all of `names`.
    pub(crate) fn renewal(&self, names: &[String]) -> Option<OffsetDateTime> {
        let pem = pems(&self.certificate).into_iter().next()?;
        let certificate = pem.parse_x509().ok()?;
        present(&self.certificate, &self.key).ok()?;
        if living(&self.authorities, OffsetDateTime::UNIX_EPOCH).is_empty()
            || !names.iter().all(|name| is_for(&certificate, name))
        {
            return None;
        }
        let (begins, ends) = (
            certificate.validity().not_before.timestamp(),
            certificate.validity().not_after.timestamp(),
        );
        OffsetDateTime::from_unix_timestamp(ends - (ends - begins) / 3).ok()
    }
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// What a server presents of a certificate chain and its key.
///
/// # Errors
/// When they can't be read, or don't belong together.
pub(crate) fn present(chain: &str, key: &str) -> Result<Arc<CertifiedKey>, Error> {
    let unusable = |source: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(
            ErrorKind::Invalid,
            "read the certificate and the key of the webhooks",
        )
        .with_source(source)
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(error.into()))?;
    if chain.is_empty() {
        return Err(unusable("no certificate".into()));
    }
    let key =
        PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| unusable(error.into()))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map(Arc::new)
        .map_err(|error| unusable(error.into()))
}

fn params(names: &[String], now: OffsetDateTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    (params.not_before, params.not_after) = (now - SKEW, now + LIFE);
    Ok(params)
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn pems(text: &str) -> Vec<Pem> {
    Pem::iter_from_buffer(text.as_bytes())
        .map_while(Result::ok)
        .collect()
}

/// The certificates that have not ended, each as PEM.
fn living(text: &str, now: OffsetDateTime) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let lives = |pem: &&str| {
        let ends = pems(pem)
            .first()
            .and_then(|pem| Some(pem.parse_x509().ok()?.validity().not_after.timestamp()));
        ends.is_some_and(|ends| ends > now.unix_timestamp())
    };
    text.split_inclusive(END)
        .filter(lives)
        .map(|pem| format!("{}\n", pem.trim()))
        .collect()
}

fn is_for(certificate: &X509Certificate, name: &str) -> bool {
    let names = certificate.subject_alternative_name().ok().flatten();
    names.is_some_and(|names| {
        names
            .value
            .general_names
            .iter()
            .any(|general| matches!(general, GeneralName::DNSName(dns) if *dns == name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        vec!["webhook.egress.svc".to_owned()]
    }

    fn day(day: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::days(20_000 + day)
    }

    #[test]
    fn a_certificate_is_replaced_after_two_thirds_of_its_life() {
        let pair = Pair::make(&names(), "", day(0)).unwrap();
        let renewal = pair.renewal(&names()).unwrap();
        assert!(renewal > day(59) && renewal < day(61), "{renewal}");
        assert_eq!(pems(&pair.authorities).len(), 1);
        let (root, own) = (pems(&pair.authorities), pems(&pair.certificate));
        let (root, own) = (root[0].parse_x509().unwrap(), own[0].parse_x509().unwrap());
        assert!(root.is_ca() && !own.is_ca());
        assert_eq!(own.issuer().to_string(), root.subject().to_string());
    }

    #[test]
    fn what_can_not_be_presented_is_of_no_use() {
        let (good, other) = (
            Pair::make(&names(), "", day(0)).unwrap(),
            Pair::make(&names(), "", day(0)).unwrap(),
        );
        assert!(
            good.renewal(&["webhook.elsewhere.svc".to_owned()])
                .is_none()
        );
        assert!(
            Pair {
                key: other.key.clone(),
                ..good.clone()
            }
            .renewal(&names())
            .is_none()
        );
        assert!(
            Pair {
                certificate: "nonsense".to_owned(),
                ..good.clone()
            }
            .renewal(&names())
            .is_none()
        );
        assert!(
            Pair {
                authorities: String::new(),
                ..good.clone()
            }
            .renewal(&names())
            .is_none()
        );
        assert!(present("", &good.key).is_err());
        assert!(!format!("{good:?}").contains("PRIVATE"));
    }

    #[test]
    fn an_authority_is_trusted_beside_its_successors_as_long_as_it_lives() {
        let first = Pair::make(&names(), "", day(0)).unwrap();
        let second = Pair::make(&names(), &first.authorities, day(60)).unwrap();
        assert!(second.authorities.contains(first.authorities.trim()));
        let third = Pair::make(&names(), &second.authorities, day(120)).unwrap();
        assert!(
            !third.authorities.contains(first.authorities.trim()),
            "it has ended"
        );
        assert_eq!(pems(&third.authorities).len(), 2);
        let many = (0..9).fold(String::new(), |before, _| {
            Pair::make(&names(), &before, day(0)).unwrap().authorities
        });
        assert_eq!(pems(&many).len(), MAX_AUTHORITIES);
    }
}
