//! The names in a certificate: common name and subject alternative names, as gRPC tells them.
//!
//! Only for certificates that were verified by rustls; this reads names, it checks nothing. Whatever the bytes are, it
//! ends, without a panic.

use std::net::{Ipv4Addr, Ipv6Addr};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub common_name: Option<String>,
    /// DNS names, addresses, URIs and e-mail addresses, in the certificate's order.
    pub sans: Vec<String>,
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTET_STRING: u8 = 0x04;
const BMP_STRING: u8 = 0x1e;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// The values in a piece of DER, one after the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value: its tag and content.
    fn value(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], mut rest) = self.0.split_first_chunk::<2>()?;
        let length = if first < 0x80 {
            usize::from(first)
        } else {
            let count = usize::from(first & 0x7f);
            if count == 0 || count > 4 || rest.len() < count {
                return None;
            }
            let (bytes, after) = rest.split_at(count);
            rest = after;
            bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
        };
        let content = rest.get(..length)?;
        self.0 = &rest[length..];
        Some((tag, content))
    }

    /// The next value, which must have this tag.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.value().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }
}

/// The names in a certificate; None where it cannot be read.
pub fn names(certificate: &[u8]) -> Option<Names> {
    let outer = Der(certificate).expect(SEQUENCE)?;
    let mut body = Der(Der(outer).expect(SEQUENCE)?);
    if body.0.first() == Some(&VERSION) {
        body.value()?;
    }
    // Serial number, algorithm, issuer, validity.
    for _ in 0..4 {
        body.value()?;
    }
    let mut names = Names { common_name: common_name(body.expect(SEQUENCE)?), sans: Vec::new() };
    while let Some((tag, content)) = body.value() {
        if tag == EXTENSIONS {
            names.sans = alternative_names(Der(content).expect(SEQUENCE)?).unwrap_or_default();
        }
    }
    Some(names)
}

fn common_name(subject: &[u8]) -> Option<String> {
    let mut parts = Der(subject);
    while let Some(part) = parts.expect(SET) {
        let mut pairs = Der(part);
        while let Some(pair) = pairs.expect(SEQUENCE) {
            let mut pair = Der(pair);
            if pair.expect(OID)? == COMMON_NAME {
                let (tag, text) = pair.value()?;
                return Some(if tag == BMP_STRING {
                    utf16(text)
                } else {
                    String::from_utf8_lossy(text).into()
                });
            }
        }
    }
    None
}

fn utf16(text: &[u8]) -> String {
    let units = text.chunks_exact(2).map(|unit| u16::from_be_bytes([unit[0], unit[1]]));
    char::decode_utf16(units).map(|read| read.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

fn alternative_names(extensions: &[u8]) -> Option<Vec<String>> {
    let mut extensions = Der(extensions);
    while let Some(extension) = extensions.expect(SEQUENCE) {
        let mut extension = Der(extension);
        if extension.expect(OID)? != SUBJECT_ALT_NAME {
            continue;
        }
        // It may say whether it is critical.
        let content = std::iter::from_fn(|| extension.value()).find(|(tag, _)| *tag == OCTET_STRING)?.1;
        let mut names = Der(Der(content).expect(SEQUENCE)?);
        return Some(std::iter::from_fn(|| names.value()).filter_map(general_name).collect());
    }
    None
}

fn general_name((tag, content): (u8, &[u8])) -> Option<String> {
    match tag {
        0x81 | 0x82 | 0x86 => Some(String::from_utf8_lossy(content).into()),
        0x87 => match content.len() {
            4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(content).ok()?).to_string()),
            16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(content).ok()?).to_string()),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::CertificateDer;

    /// EC P-256, /O=Flotta/CN=node-1, SAN: DNS:node-1.local, IP:10.0.0.1, IP:::1, URI:spiffe://flotta/node, email:a@b.
    const PEM: &[u8] = include_bytes!("testdata/names.pem");

    #[test]
    fn names_are_read_from_a_real_certificate() {
        let der = CertificateDer::from_pem_slice(PEM).unwrap();
        let names = names(&der).unwrap();
        assert_eq!(names.common_name.as_deref(), Some("node-1"));
        assert_eq!(names.sans, ["node-1.local", "10.0.0.1", "::1", "spiffe://flotta/node", "a@b"]);
    }

    #[test]
    fn damaged_certificates_end_in_nothing_or_other_names_and_never_in_a_panic() {
        let der = CertificateDer::from_pem_slice(PEM).unwrap();
        for cut in 0..der.len() {
            assert_eq!(names(&der[..cut]), None);
        }
        for position in 0..der.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = der.to_vec();
                damaged[position] ^= flip;
                let _any = names(&damaged);
            }
        }
        assert_eq!(names(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
