//! Cuts a request body into messages: one flag byte, four bytes of length, the message.
//!
//! Takes chunks of any size. A message that lies whole in one chunk is not copied. What is left of a chunk is copied
//! into a buffer of its own, so that a few bytes of a message that never ends do not keep a read buffer alive.

use super::codec::PREFIX_BYTES;
use super::status::{Status, INTERNAL, RESOURCE_EXHAUSTED};
use bytes::{Buf, Bytes, BytesMut};

#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub compressed: bool,
    pub payload: Bytes,
}

pub struct Deframer {
    /// Not empty only while `buffer` is empty.
    chunk: Bytes,
    buffer: BytesMut,
    bytes_max: usize,
}

impl Deframer {
    pub fn new(bytes_max: usize) -> Deframer {
        Deframer { chunk: Bytes::new(), buffer: BytesMut::new(), bytes_max }
    }

    /// Bytes held: those of messages not yet taken.
    pub fn len(&self) -> usize {
        self.chunk.len() + self.buffer.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn feed(&mut self, bytes: Bytes) {
        if self.is_empty() {
            self.chunk = bytes;
            return;
        }
        self.settle();
        self.buffer.extend_from_slice(&bytes);
    }

    /// Copy what is left of a chunk.
    fn settle(&mut self) {
        if !self.chunk.is_empty() {
            self.buffer = BytesMut::from(&*std::mem::take(&mut self.chunk));
        }
    }

    /// The next whole message. None: more is needed.
    pub fn take(&mut self) -> Result<Option<Frame>, Status> {
        let held: &[u8] = if self.chunk.is_empty() { &self.buffer } else { &self.chunk };
        if held.len() < PREFIX_BYTES {
            self.settle();
            return Ok(None);
        }
        let flag = held[0];
        let length = u32::from_be_bytes([held[1], held[2], held[3], held[4]]) as usize;
        if flag > 1 {
            return Err(Status::new(INTERNAL, format!("a message begins with {flag}, it must be 0 or 1")));
        }
        if length > self.bytes_max {
            // grpc's own words: clients look for them.
            let text = format!("Received message larger than max ({length} vs. {})", self.bytes_max);
            return Err(Status::new(RESOURCE_EXHAUSTED, text));
        }
        if held.len() < PREFIX_BYTES + length {
            self.settle();
            return Ok(None);
        }
        let payload = if self.chunk.is_empty() {
            self.buffer.advance(PREFIX_BYTES);
            self.buffer.split_to(length).freeze()
        } else {
            self.chunk.advance(PREFIX_BYTES);
            self.chunk.split_to(length)
        };
        Ok(Some(Frame { compressed: flag == 1, payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec::frame;
    use super::*;

    fn taken(deframer: &mut Deframer) -> Vec<Bytes> {
        std::iter::from_fn(|| deframer.take().unwrap()).map(|frame| frame.payload).collect()
    }

    #[test]
    fn messages_come_out_whole_however_they_are_cut() {
        let messages: Vec<Vec<u8>> =
            [0usize, 1, 4, 300, 0, 5_000].iter().map(|n| vec![*n as u8; *n]).collect();
        let wire: Vec<u8> = messages.iter().flat_map(|message| frame(message).to_vec()).collect();
        for size in [1, 2, 3, 5, 7, 305, 4_096, wire.len()] {
            let mut deframer = Deframer::new(5_000);
            let mut out = Vec::new();
            for chunk in wire.chunks(size) {
                deframer.feed(Bytes::copy_from_slice(chunk));
                out.append(&mut taken(&mut deframer));
            }
            assert_eq!(out, messages, "in chunks of {size}");
            assert!(deframer.is_empty());
        }
    }

    #[test]
    fn a_whole_message_is_not_copied_and_a_rest_does_not_pin_its_chunk() {
        let wire = Bytes::from([&frame(b"hello")[..], &frame(b"later")[..6]].concat());
        let mut deframer = Deframer::new(100);
        deframer.feed(wire.clone());
        let payload = deframer.take().unwrap().unwrap().payload;
        assert_eq!(payload.as_ptr(), wire[PREFIX_BYTES..].as_ptr());
        assert_eq!(deframer.take(), Ok(None));
        assert_eq!((deframer.len(), deframer.chunk.len()), (6, 0));
        deframer.feed(Bytes::from_static(b"ater"));
        assert_eq!(taken(&mut deframer), vec![Bytes::from_static(b"later")]);
    }

    #[test]
    fn a_bad_flag_and_a_length_over_the_bound_are_refused_at_the_prefix() {
        for (wire, code) in [(&b"\x02\0\0\0\x01"[..], INTERNAL), (&b"\0\0\0\0\x65"[..], RESOURCE_EXHAUSTED)] {
            let mut deframer = Deframer::new(100);
            deframer.feed(Bytes::from_static(wire));
            assert_eq!(deframer.take().unwrap_err().code, code);
        }
        let mut deframer = Deframer::new(100);
        deframer.feed(Bytes::from([&b"\x01\0\0\0\x64"[..], &[1; 100]].concat()));
        let frame = deframer.take().unwrap().unwrap();
        assert!(frame.compressed);
        assert_eq!(frame.payload.len(), 100);
    }
}
