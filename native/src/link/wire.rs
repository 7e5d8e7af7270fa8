//! What travels on a link: the client's preface, then frames `u32 length of the body | u8 kind | body` both ways.
//!
//! Decoding does no I/O and trusts nothing: a header that promises too much is refused before its body arrives, and
//! nothing is allocated for a promise. Integers are little-endian. There is no checksum: TCP and TLS have theirs,
//! and so have the Raft frames inside.

use bytes::{Buf, Bytes, BytesMut};
use std::fmt;

pub const PREFACE: &[u8; 9] = b"FLOTTA/1\n";
pub const HEADER_BYTES: usize = 5;
/// The clock that goes before the host's frame in a RAFT frame.
pub const CLOCK_BYTES: usize = 8;
pub const PURPOSE_BYTES_MAX: usize = 255;
/// Of the opaque bytes of a HELLO, and of the greeting that answers it.
pub const GREETING_BYTES_MAX: usize = 64 << 10;
pub const REASON_BYTES_MAX: usize = 4 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Hello = 1,
    Accept = 2,
    Refuse = 3,
    Data = 4,
    Raft = 5,
    Ping = 6,
    Pong = 7,
    Bye = 8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The client's first: what the link is for, and bytes that mean something to the application only.
    Hello {
        purpose: String,
        hello: Bytes,
    },
    /// The server's first, or `Refuse`.
    Accept(Bytes),
    Refuse(String),
    Data(Bytes),
    /// A frame of the Raft host, and the wall clock of its sender when it left.
    Raft {
        sender_wall_ms: u64,
        frame: Bytes,
    },
    Ping,
    Pong,
    Bye(String),
}

impl Frame {
    pub fn kind(&self) -> Kind {
        match self {
            Frame::Hello { .. } => Kind::Hello,
            Frame::Accept(_) => Kind::Accept,
            Frame::Refuse(_) => Kind::Refuse,
            Frame::Data(_) => Kind::Data,
            Frame::Raft { .. } => Kind::Raft,
            Frame::Ping => Kind::Ping,
            Frame::Pong => Kind::Pong,
            Frame::Bye(_) => Kind::Bye,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireError {
    NotAPreface,
    UnknownKind(u8),
    TooBig { kind: Kind, bytes: usize, bytes_max: usize },
    Malformed(Kind),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::NotAPreface => f.write_str("it does not begin as a link does"),
            WireError::UnknownKind(kind) => write!(f, "{kind} is no kind of frame"),
            WireError::TooBig { kind, bytes, bytes_max } => {
                write!(f, "a {kind:?} frame of {bytes} bytes, allowed are {bytes_max}")
            }
            WireError::Malformed(kind) => write!(f, "a malformed {kind:?} frame"),
        }
    }
}

fn kind_of(number: u8) -> Option<Kind> {
    use Kind::*;
    [Hello, Accept, Refuse, Data, Raft, Ping, Pong, Bye].into_iter().find(|kind| *kind as u8 == number)
}

fn bytes_max_of(kind: Kind, frame_bytes_max: usize) -> usize {
    match kind {
        Kind::Hello => 1 + PURPOSE_BYTES_MAX + GREETING_BYTES_MAX,
        Kind::Accept => GREETING_BYTES_MAX,
        Kind::Refuse | Kind::Bye => REASON_BYTES_MAX,
        Kind::Data => frame_bytes_max,
        Kind::Raft => CLOCK_BYTES + frame_bytes_max,
        Kind::Ping | Kind::Pong => 0,
    }
}

/// Take the preface off the front. False: more bytes are needed.
pub fn take_preface(buffer: &mut BytesMut) -> Result<bool, WireError> {
    let here = buffer.len().min(PREFACE.len());
    if buffer[..here] != PREFACE[..here] {
        return Err(WireError::NotAPreface);
    }
    if here < PREFACE.len() {
        return Ok(false);
    }
    buffer.advance(PREFACE.len());
    Ok(true)
}

/// Take the next whole frame off the front. None: more bytes are needed.
pub fn take_frame(buffer: &mut BytesMut, frame_bytes_max: usize) -> Result<Option<Frame>, WireError> {
    if buffer.len() < HEADER_BYTES {
        return Ok(None);
    }
    let length = u32::from_le_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as usize;
    let kind = kind_of(buffer[4]).ok_or(WireError::UnknownKind(buffer[4]))?;
    let bytes_max = bytes_max_of(kind, frame_bytes_max);
    if length > bytes_max {
        return Err(WireError::TooBig { kind, bytes: length, bytes_max });
    }
    if buffer.len() - HEADER_BYTES < length {
        return Ok(None);
    }
    buffer.advance(HEADER_BYTES);
    let body = buffer.split_to(length).freeze();
    frame_of(kind, body).ok_or(WireError::Malformed(kind)).map(Some)
}

fn frame_of(kind: Kind, mut body: Bytes) -> Option<Frame> {
    Some(match kind {
        Kind::Hello => {
            let purpose_bytes = usize::from(*body.first()?);
            let purpose = text(body.get(1..1 + purpose_bytes)?)?;
            let hello = body.slice(1 + purpose_bytes..);
            if hello.len() > GREETING_BYTES_MAX {
                return None;
            }
            Frame::Hello { purpose, hello }
        }
        Kind::Accept => Frame::Accept(body),
        Kind::Refuse => Frame::Refuse(text(&body)?),
        Kind::Data => Frame::Data(body),
        Kind::Raft => {
            if body.len() < CLOCK_BYTES {
                return None;
            }
            Frame::Raft { sender_wall_ms: body.get_u64_le(), frame: body }
        }
        Kind::Ping => Frame::Ping,
        Kind::Pong => Frame::Pong,
        Kind::Bye => Frame::Bye(text(&body)?),
    })
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

/// The header of a frame. The length fits: whoever hands out frames checks them against `frame_bytes_max`.
pub fn header(kind: Kind, body_bytes: usize) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = (body_bytes as u32).to_le_bytes();
    [a, b, c, d, kind as u8]
}

/// What goes before the host's frame in a RAFT frame.
pub fn raft_header(sender_wall_ms: u64, frame_bytes: usize) -> [u8; HEADER_BYTES + CLOCK_BYTES] {
    let mut head = [0; HEADER_BYTES + CLOCK_BYTES];
    head[..HEADER_BYTES].copy_from_slice(&header(Kind::Raft, CLOCK_BYTES + frame_bytes));
    head[HEADER_BYTES..].copy_from_slice(&sender_wall_ms.to_le_bytes());
    head
}

pub fn put(out: &mut BytesMut, kind: Kind, body: &[u8]) {
    out.extend_from_slice(&header(kind, body.len()));
    out.extend_from_slice(body);
}

pub fn put_hello(out: &mut BytesMut, purpose: &str, hello: &[u8]) {
    out.extend_from_slice(&header(Kind::Hello, 1 + purpose.len() + hello.len()));
    out.extend_from_slice(&[purpose.len() as u8]);
    out.extend_from_slice(purpose.as_bytes());
    out.extend_from_slice(hello);
}

/// A reason as it fits into a frame.
pub fn short(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1 << 10;

    fn samples() -> Vec<(Frame, BytesMut)> {
        let mut out = Vec::new();
        let mut sample = |frame: Frame, put: &dyn Fn(&mut BytesMut)| {
            let mut bytes = BytesMut::new();
            put(&mut bytes);
            out.push((frame, bytes));
        };
        sample(Frame::Hello { purpose: "raft".into(), hello: Bytes::from_static(b"who") }, &|b| {
            put_hello(b, "raft", b"who");
        });
        sample(Frame::Hello { purpose: String::new(), hello: Bytes::new() }, &|b| put_hello(b, "", b""));
        sample(Frame::Accept(Bytes::from_static(b"hi")), &|b| put(b, Kind::Accept, b"hi"));
        sample(Frame::Refuse("nö".into()), &|b| put(b, Kind::Refuse, "nö".as_bytes()));
        sample(Frame::Data(Bytes::from_static(b"data")), &|b| put(b, Kind::Data, b"data"));
        sample(Frame::Data(Bytes::new()), &|b| put(b, Kind::Data, b""));
        sample(Frame::Raft { sender_wall_ms: 77, frame: Bytes::from_static(b"host") }, &|b| {
            b.extend_from_slice(&raft_header(77, 4));
            b.extend_from_slice(b"host");
        });
        sample(Frame::Ping, &|b| put(b, Kind::Ping, b""));
        sample(Frame::Pong, &|b| put(b, Kind::Pong, b""));
        sample(Frame::Bye("later".into()), &|b| put(b, Kind::Bye, b"later"));
        out
    }

    #[test]
    fn every_frame_comes_out_as_it_went_in_however_it_is_cut() {
        let mut all = BytesMut::new();
        for (frame, bytes) in samples() {
            for cut in 0..bytes.len() {
                let mut part = BytesMut::from(&bytes[..cut]);
                assert_eq!(take_frame(&mut part, MAX), Ok(None), "{frame:?} cut at {cut}");
                assert_eq!(part.len(), cut, "nothing is taken of half a frame");
                part.extend_from_slice(&bytes[cut..]);
                assert_eq!(take_frame(&mut part, MAX), Ok(Some(frame.clone())));
                assert!(part.is_empty());
            }
            all.extend_from_slice(&bytes);
        }
        for (frame, _) in samples() {
            assert_eq!(take_frame(&mut all, MAX), Ok(Some(frame)));
        }
        assert!(all.is_empty());
    }

    #[test]
    fn a_damaged_byte_gives_an_error_another_frame_or_a_wait_and_never_more_than_came() {
        for (_, bytes) in samples() {
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut bad = bytes.clone();
                    bad[at] ^= 1 << bit;
                    let before = bad.len();
                    if let Ok(Some(_)) = take_frame(&mut bad, MAX) {
                        assert!(bad.len() < before);
                    }
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_right_is_refused_by_its_header_alone() {
        let refused = |kind: u8, length: u32| {
            let mut head = BytesMut::from(&length.to_le_bytes()[..]);
            head.extend_from_slice(&[kind]);
            take_frame(&mut head, MAX).unwrap_err()
        };
        assert_eq!(refused(0, 0), WireError::UnknownKind(0));
        assert_eq!(refused(9, 0), WireError::UnknownKind(9));
        assert_eq!(refused(4, 1025), WireError::TooBig { kind: Kind::Data, bytes: 1025, bytes_max: MAX });
        assert_eq!(refused(6, 1), WireError::TooBig { kind: Kind::Ping, bytes: 1, bytes_max: 0 });
        assert!(matches!(refused(4, u32::MAX), WireError::TooBig { .. }));
        assert!(matches!(refused(2, 65537), WireError::TooBig { .. }));
        assert!(matches!(refused(8, 4097), WireError::TooBig { .. }));
    }

    #[test]
    fn bodies_that_contradict_themselves_are_malformed() {
        let malformed = |kind: Kind, body: &[u8]| {
            let mut bytes = BytesMut::new();
            put(&mut bytes, kind, body);
            assert_eq!(take_frame(&mut bytes, MAX), Err(WireError::Malformed(kind)), "{body:?}");
        };
        malformed(Kind::Hello, b"");
        malformed(Kind::Hello, b"\x05raft");
        malformed(Kind::Hello, b"\x01\xff");
        malformed(Kind::Raft, b"1234567");
        malformed(Kind::Refuse, b"\xff");
        malformed(Kind::Bye, b"\xc3");
        let mut long = vec![0u8];
        long.resize(2 + GREETING_BYTES_MAX, 7);
        malformed(Kind::Hello, &long);
    }

    #[test]
    fn the_preface_comes_first_and_in_pieces_if_it_must() {
        for cut in 0..PREFACE.len() {
            let mut buffer = BytesMut::from(&PREFACE[..cut]);
            assert_eq!(take_preface(&mut buffer), Ok(false));
            buffer.extend_from_slice(&PREFACE[cut..]);
            buffer.extend_from_slice(b"rest");
            assert_eq!(take_preface(&mut buffer), Ok(true));
            assert_eq!(&buffer[..], b"rest");
        }
        for at in 0..PREFACE.len() {
            let mut bad = BytesMut::from(&PREFACE[..=at]);
            bad[at] ^= 1;
            assert_eq!(take_preface(&mut bad), Err(WireError::NotAPreface));
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_two_characters() {
        assert_eq!(short("short"), "short");
        let long = "ü".repeat(REASON_BYTES_MAX);
        assert_eq!(short(&long).len(), REASON_BYTES_MAX);
        let odd = format!("x{long}");
        assert_eq!(short(&odd).len(), REASON_BYTES_MAX - 1);
    }
}
