//! Makes an `:authority` that is no host one that h2 takes, while the header block passes.
//!
//! A channel of grpc's to several addresses, or to a path, names its target there (`10.0.0.1:1,10.0.0.2:1`); h2 resets
//! every call of it, and grpc's own servers do not. Nobody here reads the value, so what no host may hold becomes dots.
//!
//! A header block is a stream of fields with indexes into a table that both sides keep (HPACK). So bytes are changed in
//! place, never their number: the tables stay the same in size. A value in the code of Huffman is left as it is, as no
//! other value could be sure to have its length; of such clients none is known that names several addresses.

const NAME: &[u8] = b":authority";
/// Its index among the names that everybody knows.
const INDEX: usize = 1;
const HUFFMAN: u8 = 0x80;
/// More bytes of a number than that are an error of h2's.
const SHIFT_MAX: u32 = 28;

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// What comes next is a field: an index, and strings where it is a literal.
    #[default]
    Field,
    NameLength,
    Name,
    ValueLength,
    Value,
}

/// One pass over the header blocks of a connection; they may come in pieces of any size.
#[derive(Debug, Default)]
pub struct Mender {
    part: Part,
    /// The field has strings.
    literal: bool,
    /// Bytes that are no part of the block, to begin with.
    skip: usize,
    /// A number that goes on: the shift of its next byte.
    shift: Option<u32>,
    number: usize,
    /// The string is in Huffman's code.
    huffman: bool,
    /// Of the name, as long as it is ours.
    matched: Option<usize>,
    /// The value has had something that no host has.
    broken: bool,
}

impl Mender {
    /// A new block begins, after `skip` bytes.
    pub fn begin(&mut self, skip: usize) {
        *self = Mender { skip, ..Mender::default() };
    }

    /// The next piece of the block.
    pub fn pass(&mut self, bytes: &mut [u8]) {
        let mut at = self.skip.min(bytes.len());
        self.skip -= at;
        while at < bytes.len() {
            match self.part {
                Part::Name | Part::Value => {
                    let end = bytes.len().min(at + self.number);
                    self.string(&mut bytes[at..end]);
                    at = end;
                }
                _ => {
                    self.number(bytes[at]);
                    at += 1;
                }
            }
        }
    }

    /// A byte of an index or a length.
    fn number(&mut self, byte: u8) {
        if let Some(shift) = self.shift {
            self.number = self.number.saturating_add(usize::from(byte & 0x7f) << shift);
            self.shift = (byte & 0x80 != 0).then_some((shift + 7).min(SHIFT_MAX));
        } else {
            let bits = if self.part == Part::Field {
                let (bits, literal) = match byte {
                    0x80.. => (7, false),
                    0x40.. => (6, true),
                    0x20.. => (5, false), // the size of the table
                    _ => (4, true),
                };
                self.literal = literal;
                bits
            } else {
                self.huffman = byte & HUFFMAN != 0;
                7
            };
            let most = (1 << bits) - 1;
            self.number = usize::from(byte & most);
            self.shift = (byte & most == most).then_some(0);
        }
        if self.shift.is_none() {
            self.after_number();
        }
    }

    fn after_number(&mut self) {
        self.part = match self.part {
            Part::Field if !self.literal => Part::Field,
            Part::Field if self.number == 0 => Part::NameLength,
            Part::Field => {
                self.matched = (self.number == INDEX).then_some(NAME.len());
                Part::ValueLength
            }
            Part::NameLength => {
                self.matched = (!self.huffman).then_some(0);
                if self.number == 0 {
                    Part::ValueLength
                } else {
                    Part::Name
                }
            }
            _ => {
                self.broken = false;
                if self.number == 0 {
                    Part::Field
                } else {
                    Part::Value
                }
            }
        };
    }

    /// Bytes of a name or a value, up to its end at most.
    fn string(&mut self, bytes: &mut [u8]) {
        self.number -= bytes.len();
        if self.part == Part::Name {
            let from = self.matched.take();
            self.matched = from
                .map(|from| from + bytes.len())
                .filter(|to| NAME.get(from.unwrap_or(0)..*to) == Some(bytes));
            if self.number == 0 {
                self.part = Part::ValueLength;
            }
            return;
        }
        if self.matched == Some(NAME.len()) && !self.huffman {
            for byte in bytes {
                self.broken |= !(byte.is_ascii_alphanumeric() || b".-_~:[]".contains(byte));
                if self.broken && !byte.is_ascii_alphanumeric() {
                    *byte = b'.';
                }
            }
        }
        if self.number == 0 {
            self.part = Part::Field;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Vec<u8> {
        assert!(value.len() < 127);
        [&[value.len() as u8], value.as_bytes()].concat()
    }

    fn literal(first: u8, name: &str, value: &str) -> Vec<u8> {
        [vec![first], text(name), text(value)].concat()
    }

    /// Fields around that look like others on purpose.
    fn block(authority: &[u8]) -> Vec<u8> {
        let long = "\x41\x03a,b".repeat(300);
        let length = [0x7f, (long.len() - 127) as u8 & 0x7f | 0x80, ((long.len() - 127) >> 7) as u8];
        [
            vec![0x3f, 0xe1, 0x1f, 0x83, 0xff, 0x80, 0x01],
            literal(0x40, ":path", "/a,b/c"),
            authority.to_vec(),
            literal(0x10, ":authoritY", "a,b"),
            literal(0x00, "", ""),
            [&[0x5f][..], &length, long.as_bytes()].concat(),
            [&[0x01, 0x83][..], b",,,"].concat(), // in Huffman's code
            vec![0xbe],
        ]
        .concat()
    }

    #[test]
    fn what_no_host_may_hold_becomes_dots_however_the_bytes_fall() {
        for (given, mended) in [
            ("10.0.0.1:1,10.0.0.2:1", "10.0.0.1:1.10.0.0.2.1"),
            ("[::1]:1,[::1]:2", "[::1]:1....1..2"),
            ("/run/flotta.sock", ".run.flotta.sock"),
            ("%2Frun%2Fflotta.sock", ".2Frun.2Fflotta.sock"),
            ("[fe80::1]:7000", "[fe80::1]:7000"),
            ("kv-1.example.com:7000", "kv-1.example.com:7000"),
            ("", ""),
        ] {
            let forms: [fn(&str) -> Vec<u8>; 3] = [
                |value| [vec![0x41], text(value)].concat(),
                |value| [vec![0x11], text(value)].concat(),
                |value| literal(0x40, ":authority", value),
            ];
            for form in forms {
                let (sent, expected) = (block(&form(given)), block(&form(mended)));
                for size in 1..=sent.len() {
                    let mut passed = [&b"skipped"[..], &sent].concat();
                    let mut mender = Mender::default();
                    mender.begin(7);
                    passed.chunks_mut(size).for_each(|piece| mender.pass(piece));
                    assert!(passed[7..] == expected, "{given} in pieces of {size}");
                }
                assert!(mended.is_empty() || http::uri::Authority::try_from(mended).is_ok(), "{mended}");
            }
        }
    }

    #[test]
    fn nothing_that_a_client_sends_is_too_much() {
        let mut random = 1_u64;
        let mut mender = Mender::default();
        for round in 0..20_000 {
            let mut bytes = [0; 24];
            for byte in &mut bytes {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (random >> 56) as u8;
            }
            if round % 3 == 0 {
                mender.begin(round % 7);
            }
            mender.pass(&mut bytes);
        }
        mender.begin(0);
        mender.pass(&mut [0xff; 1_000]);
    }
}
