//! What gRPC says in headers and trailers: timeouts, encodings, metadata, statuses. Pure functions over header maps.

use super::codec::{Encoding, ACCEPT_ENCODING};
use super::status::{Status, INTERNAL, RESOURCE_EXHAUSTED, UNIMPLEMENTED};
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::Engine;
use http::header::{HeaderMap, HeaderName, HeaderValue, CONTENT_TYPE};
use percent_encoding::{AsciiSet, CONTROLS};
use std::time::Duration;

pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
pub const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const STATUS_DETAILS: &str = "grpc-status-details-bin";

/// Senders differ in whether they pad; canonical trailing bits are not asked for either.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);
/// `grpc-message` is percent-encoded outside of printable ASCII, and `%` itself.
const MESSAGE: AsciiSet = CONTROLS.add(b'%');

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(HeaderValue),
    Binary(Vec<u8>),
}

pub type Metadata = Vec<(HeaderName, Value)>;

/// What the headers of a request say, beside its path.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub timeout: Option<Duration>,
    pub encoding: Encoding,
    /// None if there is none.
    pub metadata: Option<Metadata>,
    /// Of the metadata, as HTTP/2 counts a header list.
    pub metadata_bytes: usize,
}

/// At most eight digits and a unit.
pub fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3_600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

pub fn decode_binary(value: &[u8]) -> Option<Vec<u8>> {
    BASE64.decode(value).ok()
}

/// Is it gRPC's own or HTTP's, and not the user's?
fn is_reserved(name: &str) -> bool {
    match name {
        "te" | "content-type" | "content-length" | "user-agent" | "accept-encoding" => true,
        _ => name.starts_with("grpc-"),
    }
}

pub fn parse_head(headers: &HeaderMap, metadata_bytes_max: usize) -> Result<Head, Status> {
    let mut head = Head { timeout: None, encoding: Encoding::Identity, metadata: None, metadata_bytes: 0 };
    for (name, value) in headers {
        head.metadata_bytes += name.as_str().len() + value.len() + 32;
        match name.as_str() {
            "grpc-timeout" => {
                let timeout = parse_timeout(value.as_bytes());
                head.timeout =
                    Some(timeout.ok_or_else(|| Status::new(INTERNAL, "grpc-timeout cannot be read"))?);
            }
            "grpc-encoding" => {
                head.encoding = Encoding::parse(value.as_bytes()).ok_or_else(|| {
                    let text = format!("messages encoded with {value:?} are not understood");
                    Status::new(UNIMPLEMENTED, text)
                })?;
            }
            text if is_reserved(text) => (),
            text if text.ends_with("-bin") => add_binary(&mut head, name, value)?,
            _ => head.metadata.get_or_insert_default().push((name.clone(), Value::Text(value.clone()))),
        }
    }
    if head.metadata_bytes > metadata_bytes_max {
        let text =
            format!("{} bytes of metadata, at most {metadata_bytes_max} are taken", head.metadata_bytes);
        return Err(Status::new(RESOURCE_EXHAUSTED, text));
    }
    Ok(head)
}

/// Several values may come in one header, joined by commas.
fn add_binary(head: &mut Head, name: &HeaderName, value: &HeaderValue) -> Result<(), Status> {
    for part in value.as_bytes().split(|byte| *byte == b',') {
        let Some(bytes) = decode_binary(part.trim_ascii()) else {
            return Err(Status::new(INTERNAL, format!("the value of {name} is not base64")));
        };
        head.metadata.get_or_insert_default().push((name.clone(), Value::Binary(bytes)));
    }
    Ok(())
}

/// A user's metadata for headers or trailers. Err: what is wrong with it.
pub fn user_headers(pairs: impl IntoIterator<Item = (String, Vec<u8>)>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let binary = name.ends_with("-bin");
        let header = HeaderName::from_bytes(name.as_bytes())
            .ok()
            .filter(|header| header.as_str() == name && (!is_reserved(&name) || name == STATUS_DETAILS))
            .ok_or_else(|| format!("{name:?} cannot be the name of metadata"))?;
        let value = if binary { BASE64.encode(value).into_bytes() } else { value };
        if !value.iter().all(|byte| (0x20..0x7f).contains(byte)) {
            return Err(format!("the value of {name} is not printable ASCII"));
        }
        let value = HeaderValue::from_bytes(&value).map_err(|error| error.to_string())?;
        headers.append(header, value);
    }
    Ok(headers)
}

/// Add a call's outcome to its trailers.
pub fn add_status(trailers: &mut HeaderMap, code: u32, message: &str) {
    let code = if code == 0 { HeaderValue::from_static("0") } else { HeaderValue::from(code) };
    trailers.insert(GRPC_STATUS, code);
    if !message.is_empty() {
        let encoded = percent_encoding::utf8_percent_encode(message, &MESSAGE).to_string();
        let value = HeaderValue::from_str(&encoded).expect("percent-encoded text is printable ASCII");
        trailers.insert(GRPC_MESSAGE, value);
    }
}

/// The headers of an answer whose messages may be packed with `encoding`.
pub fn response_head(encoding: Encoding) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if encoding != Encoding::Identity {
        headers.insert(GRPC_ENCODING, HeaderValue::from_static(encoding.name()));
        headers.insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static(ACCEPT_ENCODING));
    }
    headers
}

/// All headers of an answer that has no message: its outcome comes with them.
pub fn status_head(code: u32, message: &str) -> HeaderMap {
    let mut headers = response_head(Encoding::Identity);
    if code == UNIMPLEMENTED {
        headers.insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static(ACCEPT_ENCODING));
    }
    add_status(&mut headers, code, message);
    headers
}

/// Is it the content type of gRPC, with or without a message format?
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    match value.strip_prefix(b"application/grpc") {
        Some(rest) => rest.is_empty() || rest[0] == b'+' || rest[0] == b';',
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        map
    }

    #[test]
    fn timeouts_have_up_to_eight_digits_and_a_unit() {
        assert_eq!(parse_timeout(b"99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        assert_eq!(parse_timeout(b"2M"), Some(Duration::from_secs(120)));
        assert_eq!(parse_timeout(b"0S"), Some(Duration::ZERO));
        assert_eq!(parse_timeout(b"15m"), Some(Duration::from_millis(15)));
        assert_eq!(parse_timeout(b"7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse_timeout(b"7n"), Some(Duration::from_nanos(7)));
        for bad in [&b""[..], b"5", b"S", b"123456789S", b"-1S", b"+1S", b"1s", b" 1S", b"1.5S", b"\xff"] {
            assert_eq!(parse_timeout(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_head_without_metadata_has_none() {
        let map = headers(&[
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "x"),
            ("grpc-timeout", "1S"),
            ("grpc-encoding", "zstd"),
            ("grpc-accept-encoding", "gzip"),
            ("grpc-tags-bin", "AAAA"),
        ]);
        let head = parse_head(&map, 10_000).unwrap();
        assert_eq!((head.timeout, head.encoding), (Some(Duration::from_secs(1)), Encoding::Zstd));
        assert_eq!(head.metadata, None);
    }

    #[test]
    fn binary_metadata_comes_padded_or_not_and_joined_or_not() {
        let map = headers(&[("k", "a,b"), ("x-bin", "AQI="), ("x-bin", "AQI,AQID ,,/w==")]);
        let metadata = parse_head(&map, 10_000).unwrap().metadata.unwrap();
        let values: Vec<_> = metadata.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        let binary = |bytes: &[u8]| ("x-bin".to_owned(), Value::Binary(bytes.to_vec()));
        assert_eq!(values[0], ("k".to_owned(), Value::Text(HeaderValue::from_static("a,b"))));
        assert_eq!(values[1..], [&[1, 2][..], &[1, 2], &[1, 2, 3], &[], &[255]].map(binary));
        assert_eq!(parse_head(&headers(&[("x-bin", "a*")]), 10_000).unwrap_err().code, INTERNAL);
    }

    #[test]
    fn bad_heads_are_refused_with_their_status() {
        let code = |name, value: &str| parse_head(&headers(&[(name, value)]), 1_000).unwrap_err().code;
        assert_eq!(code("grpc-timeout", "soon"), INTERNAL);
        assert_eq!(code("grpc-encoding", "lz77"), UNIMPLEMENTED);
        assert_eq!(code("k", &"v".repeat(1_000)), RESOURCE_EXHAUSTED);
    }

    #[test]
    fn messages_are_percent_encoded() {
        let mut trailers = HeaderMap::new();
        add_status(&mut trailers, 5, "50% of \u{fc}\n is ~gone");
        assert_eq!(trailers["grpc-status"], "5");
        assert_eq!(trailers["grpc-message"], "50%25 of %C3%BC%0A is ~gone");
        add_status(&mut trailers, 0, "");
        assert_eq!(trailers["grpc-status"], "0");
    }

    #[test]
    fn user_metadata_is_checked_and_encoded() {
        let one = |name: &str, value: &[u8]| user_headers([(name.to_owned(), value.to_vec())]);
        assert_eq!(one("a-bin", b"\x01\x02").unwrap()["a-bin"], "AQI");
        assert_eq!(one("grpc-status-details-bin", b"\x01").unwrap()["grpc-status-details-bin"], "AQ");
        assert_eq!(one("retry-after", b"5 s").unwrap()["retry-after"], "5 s");
        for (name, value) in
            [("Upper", &b"x"[..]), ("grpc-status", b"0"), ("", b"x"), ("k", b"\n"), ("k", b"\xfc")]
        {
            assert!(one(name, value).is_err(), "{name}");
        }
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x=y", true),
            ("application/grpc-web", false),
            ("text/html", false),
        ] {
            assert_eq!(is_grpc(&headers(&[("content-type", value)])), expected, "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
