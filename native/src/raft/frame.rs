//! The codec of log frames: `length u32 | crc32c u32 | sequence u64 | body`, padded with zeros to eight bytes.
//!
//! The checksum covers the segment's salt, the sequence number, the length and the body, so a frame of another
//! segment, an older use of the file, or a frame that somebody stored as a value never passes for one.
//! Sequence numbers are consecutive over the whole log. A length of zero is an end of log, never a frame.

pub const HEADER_BYTES: usize = 16;
const ALIGN: usize = 8;

/// The size on disk of a frame with that many bytes of body.
pub fn frame_bytes(body_bytes: usize) -> usize {
    (HEADER_BYTES + body_bytes).next_multiple_of(ALIGN)
}

/// Turn `HEADER_BYTES` of room followed by a body into a frame.
pub fn seal(buffer: &mut Vec<u8>, sequence: u64, salt: u64) {
    let length = (buffer.len() - HEADER_BYTES) as u32;
    let crc = checksum(salt, sequence, &buffer[HEADER_BYTES..]);
    buffer[..4].copy_from_slice(&length.to_le_bytes());
    buffer[4..8].copy_from_slice(&crc.to_le_bytes());
    buffer[8..16].copy_from_slice(&sequence.to_le_bytes());
    buffer.resize(frame_bytes(length as usize), 0);
}

fn checksum(salt: u64, sequence: u64, body: &[u8]) -> u32 {
    let mut head = [0u8; 20];
    head[..8].copy_from_slice(&salt.to_le_bytes());
    head[8..16].copy_from_slice(&sequence.to_le_bytes());
    head[16..].copy_from_slice(&(body.len() as u32).to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&head), body)
}

#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    Frame {
        body: &'a [u8],
        next: usize,
    },
    /// Nothing but zeros from here on.
    End,
    /// Not a frame: a torn tail, or damage.
    Bad,
}

/// Read the frame at `offset`, which must carry `sequence`.
pub fn parse(content: &[u8], offset: usize, sequence: u64, salt: u64) -> Parsed<'_> {
    match header(content, offset) {
        Some((length, crc, found)) if found == sequence => {
            let body = &content[offset + HEADER_BYTES..offset + HEADER_BYTES + length];
            if checksum(salt, sequence, body) == crc {
                // The padding of the very last frame may lie beyond the end of the file.
                return Parsed::Frame { body, next: offset + frame_bytes(length) };
            }
            Parsed::Bad
        }
        _ if content.get(offset..).is_none_or(|rest| rest.iter().all(|byte| *byte == 0)) => Parsed::End,
        _ => Parsed::Bad,
    }
}

/// The sequence number of a valid frame at `offset`, whatever it is.
pub fn sequence_at(content: &[u8], offset: usize, salt: u64) -> Option<u64> {
    let (length, crc, sequence) = header(content, offset)?;
    let body = &content[offset + HEADER_BYTES..offset + HEADER_BYTES + length];
    (checksum(salt, sequence, body) == crc).then_some(sequence)
}

/// Look for any valid frame after a bad one. Since the log never writes a frame before the previous one is
/// synced, such a frame proves that the bad one was whole once.
pub fn find_later(content: &[u8], from: usize, after: u64, salt: u64) -> Option<usize> {
    let room = (content.len().saturating_sub(from) / HEADER_BYTES) as u64;
    let mut offset = from.next_multiple_of(ALIGN);
    while offset + HEADER_BYTES <= content.len() {
        if let Some((_, _, sequence)) = header(content, offset) {
            let plausible = sequence > after && sequence <= after.saturating_add(room);
            if plausible && sequence_at(content, offset, salt).is_some() {
                return Some(offset);
            }
        }
        offset += ALIGN;
    }
    None
}

/// (length, checksum, sequence) of a header whose frame could fit.
fn header(content: &[u8], offset: usize) -> Option<(usize, u32, u64)> {
    let head = content.get(offset..offset.checked_add(HEADER_BYTES)?)?;
    let length = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    let crc = u32::from_le_bytes(head[4..8].try_into().ok()?);
    let sequence = u64::from_le_bytes(head[8..16].try_into().ok()?);
    (length > 0 && offset + HEADER_BYTES + length <= content.len()).then_some((length, crc, sequence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(body: &[u8], sequence: u64, salt: u64) -> Vec<u8> {
        let mut buffer = vec![0; HEADER_BYTES];
        buffer.extend_from_slice(body);
        seal(&mut buffer, sequence, salt);
        buffer
    }

    #[test]
    fn a_frame_reads_back_and_any_damaged_byte_is_noticed() {
        let good = frame(b"hello, log", 7, 99);
        assert_eq!(good.len() % 8, 0);
        assert_eq!(parse(&good, 0, 7, 99), Parsed::Frame { body: b"hello, log", next: good.len() });
        assert_eq!(parse(&good, 0, 8, 99), Parsed::Bad);
        assert_eq!(parse(&good, 0, 7, 98), Parsed::Bad);
        for at in 0..HEADER_BYTES + 10 {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert_eq!(parse(&bad, 0, 7, 99), Parsed::Bad, "byte {at}");
        }
    }

    #[test]
    fn zeros_are_an_end_of_log_of_any_length() {
        for length in 0..64 {
            assert_eq!(parse(&vec![0; length], 0, 1, 5), Parsed::End, "{length} zeros");
        }
        assert_eq!(parse(&[0; 8], 100, 1, 5), Parsed::End);
    }

    #[test]
    fn a_later_frame_is_found_and_a_foreign_one_is_not() {
        let mut content = vec![0xff; 40];
        content.extend(frame(b"later", 12, 99));
        assert_eq!(find_later(&content, 8, 10, 99), Some(40));
        assert_eq!(find_later(&content, 8, 12, 99), None);
        assert_eq!(find_later(&content, 8, 10, 98), None);
    }
}
