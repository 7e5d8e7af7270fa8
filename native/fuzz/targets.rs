//! What is fuzzed: every decoder of bytes that come from outside the process, one function each.
//!
//! `cargo fuzz` runs them (`make fuzz`), and so does `tests/fuzz_corpus.rs` in every test run, without a fuzzer.
//! A target must neither panic nor take more memory than its input explains. Where a checksum stands before a
//! decoder, the target makes a right one, or nothing would ever come past it.
#![allow(dead_code)]

use bytes::{Bytes, BytesMut};
use flotta_native::link::wire as link;
use flotta_native::raft::frame::{self, Parsed};
use flotta_native::raft::record;
use flotta_native::raft::recover::recover;
use flotta_native::raft::segment::{self, Header};
use flotta_native::raft::simdisk::SimDisk;
use flotta_native::raft::wire;
use flotta_native::rpc::codec::{unpack, Encoding};
use flotta_native::rpc::deframer::Deframer;
use flotta_native::rpc::frames::Frames;

pub type Target = fn(&[u8]);
pub const ALL: &[(&str, Target)] = &[
    ("link_wire", link_wire),
    ("raft_wire", raft_wire),
    ("raft_frame", raft_frame),
    ("raft_record", raft_record),
    ("raft_log", raft_log),
    ("rpc_frames", rpc_frames),
    ("rpc_messages", rpc_messages),
];

const NODE: u32 = 2;
const SALT: u64 = 99;

const LINK_FRAME_BYTES_MAX: usize = 1 << 12;

/// What a link receives: the preface, then frames, in two pieces cut where the first byte says. However it is cut,
/// the same frames come out, and the same error.
pub fn link_wire(input: &[u8]) {
    let Some((at, stream)) = input.split_first() else { return };
    let at = usize::from(*at).min(stream.len());
    let whole = link_frames(&[stream]);
    let cut = link_frames(&[&stream[..at], &stream[at..]]);
    assert_eq!(whole, cut);
    for text in whole.iter().flatten() {
        assert!(text.len() <= 64 * (LINK_FRAME_BYTES_MAX + link::GREETING_BYTES_MAX));
    }
}

/// Every frame as it reads, and the error that ended it.
fn link_frames(pieces: &[&[u8]]) -> Vec<Result<String, String>> {
    let (mut buffer, mut begun, mut found) = (BytesMut::new(), false, Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if !begun {
            match link::take_preface(&mut buffer) {
                Ok(taken) => begun = taken,
                Err(error) => return vec![Err(error.to_string())],
            }
        }
        if !begun {
            continue;
        }
        loop {
            let before = buffer.len();
            match link::take_frame(&mut buffer, LINK_FRAME_BYTES_MAX) {
                Ok(Some(frame)) => found.push(Ok(format!("{frame:?}"))),
                Ok(None) => break,
                Err(error) => {
                    found.push(Err(error.to_string()));
                    return found;
                }
            }
            assert!(buffer.len() < before);
        }
    }
    found
}

/// A frame from another host: as it is, and with its checksum made right.
pub fn raft_wire(input: &[u8]) {
    let _ = wire::decode(&Bytes::copy_from_slice(input), NODE);
    let mut frame = input.to_vec();
    if frame.len() >= wire::HEADER_BYTES {
        frame[8..12].copy_from_slice(&NODE.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..12]), &frame[wire::HEADER_BYTES..]);
        frame[12..16].copy_from_slice(&crc.to_le_bytes());
        let length = frame.len();
        if let Ok(inbound) = wire::decode(&frame.into(), NODE) {
            assert!(inbound.messages.len() <= length);
        }
    }
}

/// The content of a segment file: every way of looking for frames in it, from every offset.
pub fn raft_frame(input: &[u8]) {
    let _ = Header::decode(input);
    for offset in 0..input.len().min(64) {
        if let Parsed::Frame { body, next } = frame::parse(input, offset, 1, SALT) {
            assert!(next > offset && body.len() <= input.len());
        }
        let _ = frame::sequence_at(input, offset, SALT);
    }
    if let Some(at) = frame::find_later(input, 0, 1, SALT) {
        assert!(at < input.len());
    }
}

/// The records of a frame whose checksum was right.
pub fn raft_record(input: &[u8]) {
    if let Some(records) = record::decode(input) {
        assert!(records.len() <= input.len());
    }
}

/// A whole log directory: segments of frames with right checksums, whose bodies are the input's.
///
/// The input is a list of `flags u8 | length u16 | body`: flag 1 begins a segment, 2 puts a checkpoint before the
/// body, 4 damages the frame, 8 leaves its checksum out altogether.
pub fn raft_log(input: &[u8]) {
    let disk = SimDisk::new(1);
    let mut rest = input;
    let mut segments: Vec<Vec<u8>> = Vec::new();
    let mut sequence = 1;
    while let Some((head, tail)) = rest.split_at_checked(3) {
        let length = usize::from(u16::from_le_bytes([head[1], head[2]])).min(tail.len());
        let (body, after) = tail.split_at(length);
        if segments.is_empty() || (head[0] & 1 != 0 && segments.len() < 4) {
            let header = Header { number: segments.len() as u64 + 1, salt: SALT, capacity: 1 << 16 };
            segments.push(header.encode().to_vec());
        }
        let Some(segment) = segments.last_mut() else { return };
        put_frame(segment, head[0], body, &mut sequence);
        rest = after;
    }
    for (at, content) in segments.into_iter().enumerate() {
        disk.put_file(&format!("log/{}", segment::name(at as u64 + 1)), content);
    }
    if let Ok(found) = recover(&disk.dir("log")) {
        assert!(found.next_sequence <= sequence);
    }
}

fn put_frame(segment: &mut Vec<u8>, flags: u8, body: &[u8], sequence: &mut u64) {
    let mut frame = vec![0; frame::HEADER_BYTES];
    if flags & 2 != 0 {
        record::Writer(&mut frame).checkpoint(NODE, 1);
    }
    frame.extend_from_slice(body);
    if frame.len() == frame::HEADER_BYTES {
        return;
    }
    if flags & 8 == 0 {
        frame::seal(&mut frame, *sequence, SALT);
        *sequence += 1;
    }
    if flags & 4 != 0 {
        frame[frame::HEADER_BYTES] ^= 1;
    }
    segment.extend_from_slice(&frame);
}

/// What a client of the RPC server sends passes `Frames`, in two pieces cut where the first two bytes say. However it is
/// cut the same comes out, in the same length, and no more counts as idle than came.
pub fn rpc_frames(input: &[u8]) {
    let Some((at, stream)) = input.split_first_chunk::<2>() else { return };
    let at = usize::from(u16::from_be_bytes(*at)).min(stream.len());
    let whole = passed_frames(&[stream]);
    assert_eq!(whole, passed_frames(&[&stream[..at], &stream[at..]]));
    assert!(whole.len() <= stream.len() && whole.len() + 9 > stream.len());
}

fn passed_frames(pieces: &[&[u8]]) -> Vec<u8> {
    let (mut frames, mut held, mut passed) = (Frames::default(), Vec::new(), Vec::new());
    for piece in pieces {
        held.extend_from_slice(piece);
        let back = frames.look(&mut held);
        let rest = held.split_off(held.len() - back);
        passed.append(&mut held);
        held = rest;
    }
    let counted = frames.take_counted();
    assert!(counted.idle <= counted.frames);
    passed
}

const MESSAGE_BYTES_MAX: usize = 1 << 12;
const UNPACKED_BYTES_MAX: usize = 1 << 16;

/// A request body: the first byte says how it is packed, the second where it is cut. However it is cut, the same messages
/// come out, and none is larger than allowed.
pub fn rpc_messages(input: &[u8]) {
    let Some(([packing, at], body)) = input.split_first_chunk::<2>() else { return };
    let names: [&[u8]; 5] = [b"identity", b"gzip", b"deflate", b"zstd", b"snappy"];
    let Some(encoding) = Encoding::parse(names[usize::from(*packing) % names.len()]) else { return };
    let at = usize::from(*at).min(body.len());
    assert_eq!(messages(encoding, &[body]), messages(encoding, &[&body[..at], &body[at..]]));
}

/// Every message, `None` where it cannot be unpacked; the error that ended them.
fn messages(encoding: Encoding, pieces: &[&[u8]]) -> (Vec<Option<Vec<u8>>>, Option<u32>) {
    let (mut deframer, mut found) = (Deframer::new(MESSAGE_BYTES_MAX), Vec::new());
    for piece in pieces {
        deframer.feed(Bytes::copy_from_slice(piece));
        loop {
            match deframer.take() {
                Ok(Some(frame)) if frame.compressed => {
                    let unpacked = unpack(encoding, &frame.payload, UNPACKED_BYTES_MAX).ok();
                    assert!(unpacked.as_ref().is_none_or(|message| message.len() <= UNPACKED_BYTES_MAX));
                    found.push(unpacked);
                }
                Ok(Some(frame)) => found.push(Some(frame.payload.to_vec())),
                Ok(None) => break,
                Err(status) => return (found, Some(status.code)),
            }
        }
    }
    (found, None)
}
