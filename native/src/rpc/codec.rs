//! Message encodings: what a message is compressed with on the wire, and doing it within bounds.
//!
//! A decompressor never makes more than it is allowed to, whatever the input claims: a bomb costs its bound.

use super::status::{Status, INTERNAL, RESOURCE_EXHAUSTED};
use bytes::{BufMut, Bytes, BytesMut};
use std::io::{self, Read, Write};

/// Flag and length in front of every message.
pub const PREFIX_BYTES: usize = 5;
pub const ACCEPT_ENCODING: &str = "identity,gzip,deflate,zstd,snappy";
/// More than this is not (de)compressed on the I/O thread.
pub const INLINE_BYTES_MAX: usize = 64 << 10;
/// What a small compressed message may grow to on the I/O thread before it is taken to be a big one.
pub const INLINE_UNPACKED_BYTES_MAX: usize = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Identity,
    Gzip,
    Deflate,
    Zstd,
    Snappy,
}

impl Encoding {
    pub const ALL: [Encoding; 5] =
        [Encoding::Identity, Encoding::Gzip, Encoding::Deflate, Encoding::Zstd, Encoding::Snappy];

    pub fn parse(name: &[u8]) -> Option<Encoding> {
        Encoding::ALL.into_iter().find(|encoding| encoding.name().as_bytes() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Encoding::Identity => "identity",
            Encoding::Gzip => "gzip",
            Encoding::Deflate => "deflate",
            Encoding::Zstd => "zstd",
            Encoding::Snappy => "snappy",
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Unpack {
    /// More than the bound allows.
    TooBig,
    Corrupt(String),
}

impl Unpack {
    pub fn status(self, bytes_max: usize) -> Status {
        match self {
            Unpack::TooBig => Status::new(
                RESOURCE_EXHAUSTED,
                format!("Received message larger than max (when unpacked, vs. {bytes_max})"),
            ),
            Unpack::Corrupt(text) => Status::new(INTERNAL, format!("a message cannot be unpacked: {text}")),
        }
    }
}

fn read_bounded(reader: impl Read, bytes_max: usize) -> Result<Vec<u8>, Unpack> {
    let mut out = Vec::new();
    let read = reader.take(bytes_max as u64 + 1).read_to_end(&mut out);
    read.map_err(|error| Unpack::Corrupt(error.to_string()))?;
    if out.len() > bytes_max {
        return Err(Unpack::TooBig);
    }
    Ok(out)
}

pub fn unpack(encoding: Encoding, packed: &[u8], bytes_max: usize) -> Result<Vec<u8>, Unpack> {
    match encoding {
        Encoding::Identity => {
            Err(Unpack::Corrupt("it is flagged as compressed, without an encoding".to_owned()))
        }
        Encoding::Gzip => read_bounded(flate2::bufread::MultiGzDecoder::new(packed), bytes_max),
        Encoding::Deflate => read_bounded(flate2::bufread::ZlibDecoder::new(packed), bytes_max),
        Encoding::Snappy => read_bounded(snap::read::FrameDecoder::new(packed), bytes_max),
        Encoding::Zstd => unpack_zstd(packed, bytes_max),
    }
}

/// A frame that says how much it holds is believed when that is too much: no memory is asked for it. The window a frame
/// asks for costs nothing but addresses, and zstd's own bound on it holds.
fn unpack_zstd(packed: &[u8], bytes_max: usize) -> Result<Vec<u8>, Unpack> {
    match zstd::zstd_safe::get_frame_content_size(packed) {
        Ok(Some(size)) if size > bytes_max as u64 => return Err(Unpack::TooBig),
        _ => (),
    }
    let decoder = zstd::stream::read::Decoder::with_buffer(packed);
    read_bounded(decoder.map_err(|error| Unpack::Corrupt(error.to_string()))?, bytes_max)
}

fn pack(encoding: Encoding, payload: &[u8], out: Vec<u8>) -> io::Result<Vec<u8>> {
    match encoding {
        Encoding::Identity => Err(io::Error::other("there is nothing to compress with")),
        Encoding::Gzip => {
            let mut writer = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
            writer.write_all(payload)?;
            writer.finish()
        }
        Encoding::Deflate => {
            let mut writer = flate2::write::ZlibEncoder::new(out, flate2::Compression::fast());
            writer.write_all(payload)?;
            writer.finish()
        }
        Encoding::Snappy => {
            let mut writer = snap::write::FrameEncoder::new(out);
            writer.write_all(payload)?;
            writer.into_inner().map_err(|error| io::Error::other(error.to_string()))
        }
        Encoding::Zstd => {
            let mut writer = zstd::stream::write::Encoder::new(out, 1)?;
            writer.write_all(payload)?;
            writer.finish()
        }
    }
}

/// A message with its prefix, not compressed.
pub fn frame(payload: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + payload.len());
    framed.put_u8(0);
    framed.put_u32(payload.len() as u32);
    framed.put_slice(payload);
    framed.freeze()
}

/// A framed message compressed, or as it was where that does not make it smaller.
pub fn packed_frame(encoding: Encoding, framed: Bytes) -> Bytes {
    let mut out = Vec::with_capacity(framed.len() / 2 + 64);
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    match pack(encoding, &framed[PREFIX_BYTES..], out) {
        Ok(mut packed) if packed.len() < framed.len() => {
            let length = (packed.len() - PREFIX_BYTES) as u32;
            packed[0] = 1;
            packed[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
            packed.into()
        }
        _ => framed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKING: [Encoding; 4] = [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd, Encoding::Snappy];

    #[test]
    fn what_is_packed_unpacks_to_itself_in_every_encoding() {
        for encoding in PACKING {
            assert_eq!(Encoding::parse(encoding.name().as_bytes()), Some(encoding));
            for size in [64, 4_096, 200_000, 3 << 20] {
                let payload: Vec<u8> = (0..size).map(|i| (i / 40 % 251) as u8).collect();
                let packed = packed_frame(encoding, frame(&payload));
                assert_eq!(packed[0], 1, "{encoding:?} {size}");
                let length = u32::from_be_bytes(packed[1..5].try_into().unwrap()) as usize;
                assert_eq!(length, packed.len() - PREFIX_BYTES);
                assert_eq!(unpack(encoding, &packed[PREFIX_BYTES..], size).unwrap(), payload);
                assert_eq!(unpack(encoding, &packed[PREFIX_BYTES..], size - 1), Err(Unpack::TooBig));
            }
        }
    }

    #[test]
    fn what_does_not_get_smaller_stays_as_it_is() {
        let framed = frame(b"a\x07\xf3k");
        for encoding in PACKING {
            assert_eq!(packed_frame(encoding, framed.clone()), framed);
        }
        assert_eq!(packed_frame(Encoding::Identity, framed.clone()), framed);
    }

    #[test]
    fn a_bomb_costs_its_bound() {
        for encoding in PACKING {
            let bomb = packed_frame(encoding, frame(&vec![0; 64 << 20]));
            assert!(bomb.len() < 4 << 20, "{encoding:?}: {}", bomb.len());
            assert_eq!(unpack(encoding, &bomb[PREFIX_BYTES..], 1 << 20), Err(Unpack::TooBig));
        }
    }

    #[test]
    fn garbage_and_cut_off_input_is_corrupt() {
        for encoding in PACKING {
            assert!(
                matches!(unpack(encoding, b"\xff\x06garbage..", 1_000), Err(Unpack::Corrupt(_))),
                "{encoding:?}"
            );
            let packed = packed_frame(encoding, frame(&[7; 9_000]));
            let cut = &packed[PREFIX_BYTES..packed.len() - 3];
            assert!(matches!(unpack(encoding, cut, 10_000), Err(Unpack::Corrupt(_))), "{encoding:?} cut");
        }
        assert!(matches!(unpack(Encoding::Identity, b"x", 9), Err(Unpack::Corrupt(_))));
    }

    #[test]
    fn zstd_may_not_ask_for_more_than_the_bound() {
        // Headers of frames: a window of 2 GiB and an empty last block; 1 GiB of content.
        let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
        assert!(matches!(unpack(Encoding::Zstd, &window, 1 << 20), Err(Unpack::Corrupt(_))));
        let content = [0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0x00, 0x00, 0x00, 0x40, 0x01, 0x00, 0x00];
        assert_eq!(unpack(Encoding::Zstd, &content, 1 << 20), Err(Unpack::TooBig));
    }
}
