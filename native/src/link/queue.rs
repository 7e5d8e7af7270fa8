//! What waits to be written on one link.
//!
//! Three classes, each in order: control frames go first, then Raft, then data. Data that does not fit is refused,
//! since somebody waits for it and can be told; Raft frames push out the oldest instead, since Raft sends again what
//! still matters. A frame that was begun is always ended before anything else: `resume` holds its rest.

use super::wire::{self, Kind};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// Bigger bodies are not copied together with others.
const OWN_CHUNK_BYTES: usize = 16 << 10;
/// Small frames are put together into pieces of about this size.
const CHUNK_BYTES: usize = 64 << 10;

#[derive(Default)]
pub struct Queue {
    /// The rest of a frame that was begun.
    resume: VecDeque<Bytes>,
    control: BytesMut,
    raft: VecDeque<Bytes>,
    raft_bytes: usize,
    data: VecDeque<Bytes>,
    /// Small data frames, behind everything in `data`.
    tail: BytesMut,
    data_bytes: usize,
    /// Taken by the connection and not yet written.
    in_flight_bytes: usize,
}

impl Queue {
    /// Nothing waits and nothing is being written: whoever holds the lock may write to the socket itself.
    pub fn is_idle(&self) -> bool {
        self.unsent_bytes() == 0
    }

    /// A frame was begun and its rest waits here.
    pub fn is_mid_frame(&self) -> bool {
        !self.resume.is_empty()
    }

    pub fn has_waiting(&self) -> bool {
        self.unsent_bytes() > self.in_flight_bytes
    }

    pub fn unsent_bytes(&self) -> usize {
        let resume: usize = self.resume.iter().map(Bytes::len).sum();
        self.in_flight_bytes + resume + self.control.len() + self.raft_bytes + self.data_bytes
    }

    pub fn control_bytes(&self) -> usize {
        self.control.len()
    }

    pub fn put_control(&mut self, kind: Kind, body: &[u8]) {
        wire::put(&mut self.control, kind, body);
    }

    pub fn put_hello(&mut self, purpose: &str, hello: &[u8]) {
        self.control.extend_from_slice(wire::PREFACE);
        wire::put_hello(&mut self.control, purpose, hello);
    }

    /// False, and nothing changed, if it would be too much. One frame is always taken, or it could never be sent.
    pub fn put_data(&mut self, body: &[u8], unsent_bytes_max: usize) -> bool {
        let unsent = self.unsent_bytes();
        let bytes = wire::HEADER_BYTES + body.len();
        if unsent > 0 && unsent + bytes > unsent_bytes_max {
            return false;
        }
        self.data_bytes += bytes;
        if body.len() > OWN_CHUNK_BYTES {
            self.end_tail();
            let mut chunk = BytesMut::with_capacity(bytes);
            wire::put(&mut chunk, Kind::Data, body);
            self.data.push_back(chunk.freeze());
        } else {
            wire::put(&mut self.tail, Kind::Data, body);
            if self.tail.len() >= CHUNK_BYTES {
                self.end_tail();
            }
        }
        true
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.data.push_back(self.tail.split().freeze());
        }
    }

    /// Returns how many older frames had to go.
    pub fn put_raft(&mut self, frame: Bytes, unsent_bytes_max: usize) -> u64 {
        self.raft_bytes += raft_bytes(&frame);
        self.raft.push_back(frame);
        let mut pushed_out = 0;
        while self.raft_bytes > unsent_bytes_max && self.raft.len() > 1 {
            if let Some(oldest) = self.raft.pop_front() {
                self.raft_bytes -= raft_bytes(&oldest);
                pushed_out += 1;
            }
        }
        pushed_out
    }

    /// Whole bytes of a frame whose beginning is in the socket already.
    pub fn put_rest(&mut self, rest: Bytes) {
        self.resume.push_back(rest);
    }

    /// Move what is to be written next into `out`, which is empty: about `bytes_max`, and whole frames only.
    /// `wall_ms` is told with every Raft frame.
    pub fn take(&mut self, out: &mut VecDeque<Bytes>, bytes_max: usize, wall_ms: u64) {
        out.extend(self.resume.drain(..));
        if !self.control.is_empty() {
            out.push_back(self.control.split().freeze());
        }
        self.take_raft(out, bytes_max, wall_ms);
        self.end_tail();
        let mut taken: usize = out.iter().map(Bytes::len).sum();
        while taken < bytes_max {
            let Some(chunk) = self.data.pop_front() else { break };
            self.data_bytes -= chunk.len();
            taken += chunk.len();
            out.push_back(chunk);
        }
        self.in_flight_bytes += taken;
    }

    fn take_raft(&mut self, out: &mut VecDeque<Bytes>, bytes_max: usize, wall_ms: u64) {
        let mut together = BytesMut::new();
        let mut taken = 0;
        while taken < bytes_max {
            let Some(frame) = self.raft.pop_front() else { break };
            taken += raft_bytes(&frame);
            together.extend_from_slice(&wire::raft_header(wall_ms, frame.len()));
            if frame.len() > OWN_CHUNK_BYTES {
                out.push_back(together.split().freeze());
                out.push_back(frame);
            } else {
                together.extend_from_slice(&frame);
            }
        }
        self.raft_bytes -= taken;
        if !together.is_empty() {
            out.push_back(together.freeze());
        }
    }

    pub fn written(&mut self, bytes: usize) {
        self.in_flight_bytes -= bytes;
    }
}

fn raft_bytes(frame: &Bytes) -> usize {
    wire::HEADER_BYTES + wire::CLOCK_BYTES + frame.len()
}

#[cfg(test)]
mod tests {
    use super::wire::{take_frame, Frame};
    use super::*;

    const MAX: usize = 1 << 20;

    fn written(queue: &mut Queue, bytes_max: usize) -> Vec<Frame> {
        let mut out = VecDeque::new();
        queue.take(&mut out, bytes_max, 5);
        let mut bytes: BytesMut = out.iter().flatten().copied().collect();
        queue.written(bytes.len());
        let mut frames = Vec::new();
        while let Some(frame) = take_frame(&mut bytes, MAX).unwrap() {
            frames.push(frame);
        }
        assert!(bytes.is_empty(), "only whole frames are taken");
        frames
    }

    fn data(body: &[u8]) -> Frame {
        Frame::Data(Bytes::copy_from_slice(body))
    }

    fn raft(body: &[u8]) -> Frame {
        Frame::Raft { sender_wall_ms: 5, frame: Bytes::copy_from_slice(body) }
    }

    #[test]
    fn control_goes_first_then_raft_then_data_each_in_order() {
        let mut queue = Queue::default();
        let big = vec![7u8; OWN_CHUNK_BYTES + 1];
        assert!(queue.put_data(b"one", MAX) && queue.put_data(&big, MAX) && queue.put_data(b"two", MAX));
        assert_eq!(queue.put_raft(Bytes::from_static(b"first"), MAX), 0);
        assert_eq!(queue.put_raft(big.clone().into(), MAX), 0);
        assert_eq!(queue.put_raft(Bytes::from_static(b"second"), MAX), 0);
        queue.put_control(Kind::Pong, b"");
        let unsent = queue.unsent_bytes();
        let found = written(&mut queue, MAX);
        assert_eq!(found[..4], [Frame::Pong, raft(b"first"), raft(&big), raft(b"second")]);
        assert_eq!(found[4..], [data(b"one"), data(&big), data(b"two")]);
        assert!(queue.is_idle() && unsent > 2 * big.len());
    }

    #[test]
    fn data_that_does_not_fit_is_refused_whole_but_one_frame_always_fits() {
        let mut queue = Queue::default();
        assert!(queue.put_data(&[1; 500], 100), "an empty queue takes anything");
        assert!(!queue.put_data(b"", 100));
        assert_eq!(written(&mut queue, MAX), vec![data(&[1; 500])]);
        assert!(queue.put_data(&[1; 45], 100) && queue.put_data(&[2; 45], 100));
        assert!(!queue.put_data(b"", 100));
        assert_eq!(queue.unsent_bytes(), 100);
        assert_eq!(written(&mut queue, MAX).len(), 2);
    }

    #[test]
    fn raft_frames_push_out_the_oldest_and_never_more_than_the_bound_waits() {
        let mut queue = Queue::default();
        let mut pushed_out = 0;
        for number in 0..100u8 {
            pushed_out += queue.put_raft(vec![number; 87].into(), 1000);
            assert!(queue.unsent_bytes() <= 1000);
        }
        assert_eq!(pushed_out, 90);
        let left: Vec<Frame> = (90..100).map(|number| raft(&[number; 87])).collect();
        assert_eq!(written(&mut queue, MAX), left);
        assert_eq!(queue.put_raft(vec![1; 5000].into(), 1000), 0, "one frame is always taken");
        assert_eq!(queue.put_raft(vec![2; 10].into(), 1000), 1);
        assert_eq!(written(&mut queue, MAX), vec![raft(&[2; 10])]);
    }

    #[test]
    fn what_is_being_written_counts_until_it_is_and_the_rest_of_a_frame_goes_first() {
        let mut queue = Queue::default();
        for _ in 0..100 {
            assert!(queue.put_data(&[1; OWN_CHUNK_BYTES + 1], 8 * MAX));
        }
        let all = queue.unsent_bytes();
        let mut out = VecDeque::new();
        queue.take(&mut out, 100 << 10, 0);
        let taken: usize = out.iter().map(Bytes::len).sum();
        assert!((100 << 10..200 << 10).contains(&taken), "{taken}");
        assert_eq!(queue.unsent_bytes(), all);
        assert!(queue.has_waiting());
        queue.written(taken);
        assert_eq!(queue.unsent_bytes(), all - taken);
        queue.put_control(Kind::Ping, b"");
        queue.put_rest(Bytes::from_static(b"rest"));
        let mut out = VecDeque::new();
        queue.take(&mut out, 1, 0);
        assert_eq!(out[0], Bytes::from_static(b"rest"));
    }
}
