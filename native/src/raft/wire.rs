//! Frames between hosts: `magic | from node | to node | crc32c`, then messages `group u64 | length u32 | protobuf`.
//!
//! Messages to all replicas of a node share a frame. A frame is damaged as a whole or not at all. A snapshot
//! message travels in a frame of its own, apart from the others.

use super::node_of;
use bytes::Bytes;
use protobuf::{CodedInputStream, Message as _};
use raft::eraftpb::Message;
use std::collections::BTreeMap;

const MAGIC: u32 = 0x3152_4c46;
pub const HEADER_BYTES: usize = 16;
const MESSAGE_HEADER_BYTES: usize = 12;

/// Frames being filled, by node. Checksums are added when they are taken.
#[derive(Default)]
pub struct Outbound {
    nodes: BTreeMap<u32, Vec<Vec<u8>>>,
    bytes: u64,
}

impl Outbound {
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn push(&mut self, from_node: u32, group: u64, message: &Message, frame_bytes_max: usize) {
        let to_node = node_of(message.to);
        let frames = self.nodes.entry(to_node).or_default();
        let mut frame = match frames.pop() {
            Some(last) if last.len() < frame_bytes_max => last,
            Some(full) => {
                frames.push(full);
                open(from_node, to_node)
            }
            None => open(from_node, to_node),
        };
        let before = frame.len();
        put(&mut frame, group, message);
        self.bytes += (frame.len() - before) as u64;
        frames.push(frame);
    }

    pub fn single(from_node: u32, group: u64, message: &Message) -> Vec<u8> {
        let mut frame = open(from_node, node_of(message.to));
        put(&mut frame, group, message);
        seal(&mut frame);
        frame
    }

    pub fn absorb(&mut self, later: Outbound, frame_bytes_max: usize) {
        self.bytes += later.bytes;
        for (node, frames) in later.nodes {
            let mine = self.nodes.entry(node).or_default();
            for frame in frames {
                match mine.last_mut() {
                    Some(last) if last.len() + frame.len() - HEADER_BYTES <= frame_bytes_max => {
                        last.extend_from_slice(&frame[HEADER_BYTES..]);
                    }
                    _ => mine.push(frame),
                }
            }
        }
    }

    pub fn take(&mut self) -> Vec<(u32, Vec<u8>)> {
        self.take_for(|_| true)
    }

    /// The finished frames to the nodes that are `wanted`; the others stay.
    pub fn take_for(&mut self, wanted: impl Fn(u32) -> bool) -> Vec<(u32, Vec<u8>)> {
        let nodes: Vec<u32> = self.nodes.keys().copied().filter(|node| wanted(*node)).collect();
        let mut taken = Vec::new();
        for node in nodes {
            for mut frame in self.nodes.remove(&node).unwrap_or_default() {
                seal(&mut frame);
                self.bytes -= (frame.len() - HEADER_BYTES) as u64;
                taken.push((node, frame));
            }
        }
        taken
    }
}

/// The node a frame says it comes from, before anything of it was checked.
pub fn sender(frame: &[u8]) -> Option<u32> {
    let part = frame.get(4..8)?.try_into().ok()?;
    Some(u32::from_le_bytes(part))
}

fn open(from_node: u32, to_node: u32) -> Vec<u8> {
    let mut frame = Vec::with_capacity(256);
    for part in [MAGIC, from_node, to_node, 0] {
        frame.extend_from_slice(&part.to_le_bytes());
    }
    frame
}

fn put(frame: &mut Vec<u8>, group: u64, message: &Message) {
    frame.extend_from_slice(&group.to_le_bytes());
    let at = frame.len();
    frame.extend_from_slice(&[0; 4]);
    // Writing into a Vec cannot fail; a message has no required fields to miss.
    let _ = message.write_to_vec(frame);
    let length = (frame.len() - at - 4) as u32;
    frame[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

fn seal(frame: &mut [u8]) {
    let crc = checksum(frame);
    frame[12..16].copy_from_slice(&crc.to_le_bytes());
}

fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..12]), &frame[HEADER_BYTES..])
}

pub struct Inbound {
    pub from_node: u32,
    pub messages: Vec<(u64, Message)>,
}

/// Read a frame meant for `node_num`. The text says what is wrong with it.
pub fn decode(frame: &Bytes, node_num: u32) -> Result<Inbound, String> {
    if frame.len() < HEADER_BYTES {
        return Err(format!("a frame of {} bytes", frame.len()));
    }
    let part = |at: usize| u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    if part(0) != MAGIC {
        return Err("not a frame of ours".to_owned());
    }
    if checksum(frame) != part(12) {
        return Err("the checksum does not match".to_owned());
    }
    if part(8) != node_num {
        return Err(format!("it is meant for node {}", part(8)));
    }
    let mut inbound = Inbound { from_node: part(4), messages: Vec::new() };
    let mut offset = HEADER_BYTES;
    while offset < frame.len() {
        let body = offset + MESSAGE_HEADER_BYTES;
        let head = frame.get(offset..body).ok_or("a message is cut off")?;
        let group =
            u64::from_le_bytes([head[0], head[1], head[2], head[3], head[4], head[5], head[6], head[7]]);
        let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        if frame.len() - body < length {
            return Err("a message is cut off".to_owned());
        }
        inbound.messages.push((group, decode_message(frame.slice(body..body + length))?));
        offset = body + length;
    }
    Ok(inbound)
}

fn decode_message(body: Bytes) -> Result<Message, String> {
    let mut message = Message::default();
    message
        .merge_from(&mut CodedInputStream::from_carllerche_bytes(&body))
        .map_err(|error| format!("a message cannot be read: {error}"))?;
    for entry in message.mut_entries().iter_mut() {
        // Entries live long: a small one must not keep the whole frame in memory.
        if entry.data.len() < body.len() / 2 {
            entry.data = Bytes::copy_from_slice(&entry.data);
        }
        entry.context = Bytes::new();
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::MessageType;

    fn message(to: u64, term: u64) -> Message {
        let mut message = Message { to, term, from: 1 << 32, ..Default::default() };
        message.set_msg_type(MessageType::MsgHeartbeat);
        message
    }

    #[test]
    fn messages_of_a_node_share_a_frame_and_keep_their_order() {
        let mut out = Outbound::default();
        out.push(1, 10, &message(2 << 32 | 1, 5), 1 << 20);
        out.push(1, 11, &message(3 << 32 | 1, 6), 1 << 20);
        let mut later = Outbound::default();
        later.push(1, 12, &message(2 << 32 | 9, 7), 1 << 20);
        out.absorb(later, 1 << 20);
        let frames = out.take();
        assert_eq!(frames.iter().map(|(node, _)| *node).collect::<Vec<_>>(), vec![2, 3]);
        let inbound = decode(&frames[0].1.clone().into(), 2).unwrap();
        let found: Vec<_> = inbound.messages.iter().map(|(group, message)| (*group, message.term)).collect();
        assert_eq!((inbound.from_node, found), (1, vec![(10, 5), (12, 7)]));
        assert!(out.is_empty() && out.bytes() == 0);
    }

    #[test]
    fn frames_to_some_nodes_can_be_taken_and_the_others_stay() {
        let mut out = Outbound::default();
        for node in [2, 3, 4] {
            out.push(1, 10, &message(node << 32 | 1, node), 1 << 20);
        }
        let all = out.bytes();
        let taken = out.take_for(|node| node == 3);
        assert_eq!(taken.iter().map(|(node, _)| *node).collect::<Vec<_>>(), vec![3]);
        assert_eq!(decode(&taken[0].1.clone().into(), 3).unwrap().messages[0].1.term, 3);
        assert_eq!(sender(&taken[0].1), Some(1));
        assert_eq!((out.bytes() * 3, out.is_empty()), (all * 2, false));
        assert_eq!(out.take().len(), 2);
        assert!(out.is_empty() && out.bytes() == 0);
        assert_eq!(sender(&[0; 7]), None);
    }

    #[test]
    fn every_damaged_byte_and_a_wrong_address_are_noticed() {
        let frame = Outbound::single(1, 10, &message(2 << 32 | 1, 5));
        assert!(decode(&frame.clone().into(), 3).is_err());
        for at in 0..frame.len() {
            let mut bad = frame.clone();
            bad[at] ^= 4;
            assert!(decode(&bad.into(), 2).is_err(), "byte {at}");
            assert!(decode(&frame[..at].to_vec().into(), 2).is_err(), "cut at {at}");
        }
    }
}
