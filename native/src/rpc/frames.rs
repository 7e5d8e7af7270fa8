//! Watches the frames that a client sends: counts them, mends authorities (`authority`), and keeps from h2 what it
//! must not see.
//!
//! A connection that is drained tells its client to open no more streams. Those that cross with this are ignored by h2,
//! all but their window updates: it takes these for ones of streams that were never opened, and ends the connection
//! with everything that is in flight on it. (Seen with h2 0.4.20 and grpc's clients, one drain in thirty.) So from the
//! moment h2 ignores new streams, their window updates become frames of an unknown kind, which it skips.
//!
//! That moment is the answer to the ping that h2 sends when it begins to drain; streams opened before are served.

use super::authority::Mender;

const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const UNKNOWN: u8 = 0xfa;
const ACK: u8 = 1;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;
/// What h2 pings with when it begins to drain.
const DRAIN_PING: [u8; 8] = [0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];

/// What came since somebody asked.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    pub frames: u32,
    /// Of them, those without data; a few belong to every call.
    pub idle: u32,
}

#[derive(Debug)]
pub struct Frames {
    /// Of the frame that is coming in.
    head: [u8; HEAD_BYTES],
    /// Of `head`.
    have: usize,
    /// Of the payload, still to come.
    left: usize,
    /// The payload so far of an answered ping.
    pong: Option<Vec<u8>>,
    newest_stream: u32,
    /// Streams above it are ignored.
    ignored_above: Option<u32>,
    authority: Mender,
    /// The payload is of a header block.
    in_block: bool,
    counted: Counted,
}

impl Default for Frames {
    fn default() -> Frames {
        Frames {
            head: [0; HEAD_BYTES],
            have: 0,
            left: PREFACE_BYTES,
            pong: None,
            newest_stream: 0,
            ignored_above: None,
            authority: Mender::default(),
            in_block: false,
            counted: Counted::default(),
        }
    }
}

impl Frames {
    pub fn take_counted(&mut self) -> Counted {
        std::mem::take(&mut self.counted)
    }

    /// Whether frames are changed from here on.
    pub fn filters(&self) -> bool {
        self.ignored_above.is_some()
    }

    /// Look at what came next, and change what must not pass. Returns how many bytes at its end are to be held back
    /// and shown again with those that follow: the beginning of a frame's head, once frames are changed.
    pub fn look(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = bytes.len() - at;
            if self.left > 0 {
                let taken = rest.min(self.left);
                if let Some(pong) = &mut self.pong {
                    pong.extend_from_slice(&bytes[at..at + taken]);
                }
                if self.in_block {
                    self.authority.pass(&mut bytes[at..at + taken]);
                }
                at += taken;
                self.left -= taken;
                if self.left == 0 {
                    self.end_frame();
                }
                continue;
            }
            let wanted = HEAD_BYTES - self.have;
            if rest < wanted {
                if self.filters() {
                    return rest;
                }
                self.head[self.have..self.have + rest].copy_from_slice(&bytes[at..]);
                self.have += rest;
                return 0;
            }
            self.head[self.have..].copy_from_slice(&bytes[at..at + wanted]);
            if self.begin_frame() {
                bytes[at + 3] = UNKNOWN;
            }
            at += wanted;
            self.have = 0;
        }
        0
    }

    /// The head is complete. True: the frame must not pass.
    fn begin_frame(&mut self) -> bool {
        let [l2, l1, l0, kind, flags, s3, s2, s1, s0] = self.head;
        self.left = u32::from_be_bytes([0, l2, l1, l0]) as usize;
        let stream = u32::from_be_bytes([s3 & 0x7f, s2, s1, s0]);
        self.counted.frames += 1;
        self.counted.idle += u32::from(kind != DATA || self.left == 0);
        match kind {
            HEADERS => {
                self.authority.begin(if flags & PRIORITY != 0 { PRIORITY_BYTES } else { 0 });
                // Nobody pads; and padding must not be taken for fields.
                self.in_block = flags & PADDED == 0;
            }
            CONTINUATION => (),
            _ => self.in_block = false,
        }
        match (kind, self.ignored_above) {
            (HEADERS, None) => self.newest_stream = self.newest_stream.max(stream),
            (PING, None) if flags & ACK != 0 && self.left == DRAIN_PING.len() => {
                self.pong = Some(Vec::with_capacity(DRAIN_PING.len()));
            }
            (WINDOW_UPDATE, Some(newest)) => return stream > newest,
            _ => (),
        }
        false
    }

    fn end_frame(&mut self) {
        if self.pong.take().is_some_and(|payload| payload == DRAIN_PING) {
            self.ignored_above = Some(self.newest_stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut made = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        made.extend([kind, flags]);
        made.extend(stream.to_be_bytes());
        made.extend(payload);
        made
    }

    fn conversation() -> (Vec<u8>, Vec<u8>) {
        let update = |stream| frame(WINDOW_UPDATE, 0, stream, &[0, 0, 1, 0]);
        let before = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0, &[]),
            frame(HEADERS, 4, 1, b"headers"),
            frame(0, 1, 1, &[WINDOW_UPDATE; 40]),
            frame(PING, ACK, 0, &[0x0b; 8]),
            update(5),
            frame(PING, 0, 0, &DRAIN_PING),
            frame(HEADERS, 4, 3, b"more headers"),
            frame(PING, ACK, 0, &DRAIN_PING),
        ]
        .concat();
        let after = [frame(HEADERS, 4, 5, b"late"), update(0), update(1), update(3)].concat();
        let mut late = update(5);
        let sent = [before.clone(), after.clone(), late.clone(), update(3), late.clone()].concat();
        late[3] = UNKNOWN;
        (sent, [before, after, late.clone(), update(3), late].concat())
    }

    /// As a connection does: what is held back is shown again.
    fn pass(sent: &[u8], piece_bytes: usize) -> Vec<u8> {
        let (mut frames, mut held, mut passed) = (Frames::default(), Vec::new(), Vec::new());
        for piece in sent.chunks(piece_bytes) {
            held.extend_from_slice(piece);
            let back = frames.look(&mut held);
            let rest = held.split_off(held.len() - back);
            passed.append(&mut held);
            held = rest;
        }
        assert!(held.is_empty());
        passed
    }

    #[test]
    fn only_updates_of_streams_that_came_too_late_are_changed_however_the_bytes_fall() {
        let (sent, expected) = conversation();
        for piece_bytes in 1..=sent.len() {
            assert_eq!(pass(&sent, piece_bytes), expected, "in pieces of {piece_bytes}");
        }
    }

    #[test]
    fn frames_are_counted_and_authorities_mended_in_header_blocks_alone() {
        let said = b"\x41\x03a,b";
        let padded = [&[0][..], said].concat();
        let prioritised = [&[0, 0, 0, 3, 0x20][..], said].concat();
        let sent = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0, &[]),
            frame(HEADERS, 4, 1, said),
            frame(DATA, 0, 1, said),
            frame(DATA, 1, 1, &[]),
            frame(HEADERS, 4 | PRIORITY, 3, &prioritised),
            frame(HEADERS, 4 | PADDED, 5, &padded),
            frame(HEADERS, 0, 7, &said[..3]),
            frame(CONTINUATION, 0, 7, &[]),
            frame(CONTINUATION, 4, 7, &said[3..]),
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        ]
        .concat();
        let mut frames = Frames::default();
        let mut passed = sent.clone();
        passed.chunks_mut(3).for_each(|piece| assert_eq!(frames.look(piece), 0));
        let changed = sent.iter().zip(&passed).filter(|(before, after)| before != after);
        assert_eq!(changed.map(|change| *change.1).collect::<Vec<_>>(), [b'.'; 3]);
        assert_eq!(frames.take_counted(), Counted { frames: 10, idle: 9 });
        assert_eq!(frames.take_counted(), Counted::default());
    }

    #[test]
    fn nothing_is_held_back_before_the_drain() {
        let mut frames = Frames::default();
        let (sent, _) = conversation();
        for byte in &mut sent[..100].to_vec() {
            assert_eq!(frames.look(std::slice::from_mut(byte)), 0);
        }
        assert!(!frames.filters());
    }
}
