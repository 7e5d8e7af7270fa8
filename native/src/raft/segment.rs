//! Segment files: their names, their header and their making.
//!
//! A segment under its final name always has a durable header and durable zeros up to its capacity, so that a
//! later fdatasync never has to write file metadata. Its salt is drawn anew and makes its frames its own.

use super::files::{Files, LogFile};
use std::io;

pub const HEADER_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"FLOTLOG1";
const ZEROS_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub number: u64,
    pub salt: u64,
    pub capacity: u64,
}

pub fn name(number: u64) -> String {
    format!("{number:016x}.log")
}

pub fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

pub fn is_leftover(name: &str) -> bool {
    name.ends_with(".log.new")
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0u8; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.salt.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.capacity.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(content: &[u8]) -> Option<Header> {
        let bytes = content.get(..HEADER_BYTES)?;
        let number = |at: usize| bytes[at..at + 8].try_into().ok().map(u64::from_le_bytes);
        let crc = u32::from_le_bytes(bytes[32..36].try_into().ok()?);
        if &bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..32]) != crc {
            return None;
        }
        Some(Header { number: number(8)?, salt: number(16)?, capacity: number(24)? })
    }
}

/// Make a segment: zeros and header, sync, rename into place, sync the directory.
pub fn create(files: &dyn Files, header: Header) -> io::Result<Box<dyn LogFile>> {
    let (temporary, name) = (format!("{}.new", name(header.number)), name(header.number));
    let file = files.create(&temporary)?;
    let zeros = vec![0u8; ZEROS_BYTES.min(header.capacity as usize)];
    let mut offset = 0;
    while offset < header.capacity {
        let length = zeros.len().min((header.capacity - offset) as usize);
        file.write_at(offset, &zeros[..length])?;
        offset += length as u64;
    }
    file.write_at(0, &header.encode())?;
    file.sync()?;
    files.rename(&temporary, &name)?;
    files.sync_dir()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_name_read_back() {
        let header = Header { number: 0x2a, salt: 7, capacity: 1 << 20 };
        assert_eq!(Header::decode(&header.encode()), Some(header));
        assert_eq!(number_of(&name(0x2a)), Some(0x2a));
        assert_eq!(number_of("LOCK"), None);
        for at in 0..36 {
            let mut bytes = header.encode();
            bytes[at] ^= 1;
            assert_eq!(Header::decode(&bytes), None, "byte {at}");
        }
    }
}
