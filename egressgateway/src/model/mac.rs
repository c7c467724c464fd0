use std::{fmt, str::FromStr};

/// Hardware address of an Ethernet-like device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// A locally administered unicast address that depends on `seed` only.
    #[must_use]
    pub fn from_seed(seed: &str) -> Self {
        let hash = super::class::fnv1a64(seed.as_bytes()).to_be_bytes();
        let mut octets = [0; 6];
        octets.copy_from_slice(&hash[..6]);
        octets[0] = (octets[0] & 0xfc) | 0x02;
        Self(octets)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let octets = self.0.map(|octet| format!("{octet:02x}"));
        out.write_str(&octets.join(":"))
    }
}

/// A text that is not six hexadecimal octets joined by colons.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a hardware address: want six hexadecimal octets such as 66:a1:5e:00:00:10")]
pub struct ParseMacAddressError(String);

impl FromStr for MacAddress {
    type Err = ParseMacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseMacAddressError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .ok_or_else(error)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() {
            Err(error())
        } else {
            Ok(Self(octets))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeded_addresses_are_local_unicast_and_read_back() {
        for seed in ["", "node-1", "3f0c"] {
            let mac = MacAddress::from_seed(seed);
            assert_eq!(mac.0[0] & 3, 2);
            assert_eq!(mac.to_string().parse(), Ok(mac));
        }
        assert!("66:a1".parse::<MacAddress>().is_err());
        assert!("66:a1:5e:00:00:10:11".parse::<MacAddress>().is_err());
        assert!("66:a1:5e:00:00:g1".parse::<MacAddress>().is_err());
        assert!("66:a1:5e:00:00:+1".parse::<MacAddress>().is_err());
    }
}
