//! `Chunk`: bytes of replies on their way out, counted until the connection has taken them.
//!
//! Whatever becomes of a chunk, written or dropped with its stream, its bytes are given back exactly once.

use super::connection::Conn;
use bytes::{Buf, Bytes};
use std::sync::Arc;

pub struct Chunk {
    bytes: Bytes,
    /// What is still counted: the bytes as they were when the chunk was made or split.
    counted: usize,
    conn: Arc<Conn>,
}

impl Chunk {
    pub fn new(bytes: Bytes, conn: &Arc<Conn>) -> Chunk {
        conn.add_unwritten(bytes.len());
        Chunk { counted: bytes.len(), bytes, conn: conn.clone() }
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Take the first `length` bytes as a chunk of their own.
    pub fn split_to(&mut self, length: usize) -> Chunk {
        self.counted -= length;
        Chunk { bytes: self.bytes.split_to(length), counted: length, conn: self.conn.clone() }
    }

    /// The bytes, no longer counted.
    pub fn take_bytes(mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.conn.give_back_unwritten(self.counted);
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        self.bytes.copy_to_bytes(length)
    }
}
