//! A run of plain puts, from log entries to rows.
//!
//! A plain put is a `kv.write@1` that has a key, a value and the shard's epoch, and nothing else: no condition, no time
//! to live, no request id. What it does to a row that does not expire depends on that row alone, so a run of them is
//! folded here: a row for each key, as the last write of that key leaves it.
//!
//! Invariants: what this says of a run is what applying its entries one by one would have come to; whatever is not plain,
//! or not whole, is `None`, and then somebody else looks at it. No clock, no order of a hash map.

use std::collections::HashMap;

/// Format and wire name of the entries: format, stamp, length of the name, name; then the arguments' head: flags, epoch,
/// ttl, version, length of the key, length of the request id.
const FORMAT: u8 = 1;
const NAME: &[u8] = b"kv.write@1";
const NAME_AT: usize = 10;
const ARGS_AT: usize = NAME_AT + NAME.len();
const EPOCH_AT: usize = ARGS_AT + 1;
const TTL_AT: usize = EPOCH_AT + 8;
const KEY_BYTES_AT: usize = TTL_AT + 16;
const KEY_AT: usize = KEY_BYTES_AT + 4;

/// Of a stored row: format, version, created, updated, expires; then the value.
const ROW_FORMAT: u8 = 1;
const ROW_HEAD: usize = 33;

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(eight)
}

/// One plain put as it lies in its log entry.
#[derive(Debug, PartialEq, Eq)]
pub struct Put<'a> {
    pub stamp_ms: u64,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// The entry as a plain put under `epoch`.
pub fn plain_put(entry: &[u8], epoch: u64) -> Option<Put<'_>> {
    if entry.len() < KEY_AT || entry[0] != FORMAT || entry[NAME_AT - 1] as usize != NAME.len() {
        return None;
    }
    let flags = entry[ARGS_AT];
    let conditions = &entry[TTL_AT..KEY_BYTES_AT];
    let request_bytes = &entry[KEY_BYTES_AT + 2..KEY_AT];
    let plain = flags == 0 && conditions.iter().chain(request_bytes).all(|byte| *byte == 0);
    if &entry[NAME_AT..ARGS_AT] != NAME || !plain || epoch == 0 || number(entry, EPOCH_AT) != epoch {
        return None;
    }
    let key_bytes = usize::from(u16::from_be_bytes([entry[KEY_BYTES_AT], entry[KEY_BYTES_AT + 1]]));
    let (key, value) = entry[KEY_AT..].split_at_checked(key_bytes)?;
    Some(Put { stamp_ms: number(entry, 1), key, value })
}

/// One key of a run: which entry wrote it last, and the group time of its first and its last write.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    pub last: usize,
    first_ms: u64,
    last_ms: u64,
}

/// A run: its keys in the order of their first writes, and the group time after it.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub written: Vec<Written>,
    pub now_ms: u64,
}

/// The run that these entries are, if all of them are plain puts. `now_ms`: the group time before them.
pub fn run_of<'a>(
    entries: impl ExactSizeIterator<Item = &'a [u8]>,
    epoch: u64,
    mut now_ms: u64,
) -> Option<Run> {
    let mut places: HashMap<&[u8], usize> = HashMap::with_capacity(entries.len());
    let mut written: Vec<Written> = Vec::with_capacity(entries.len());
    for (position, entry) in entries.enumerate() {
        let put = plain_put(entry, epoch)?;
        now_ms = now_ms.max(put.stamp_ms);
        let place = *places.entry(put.key).or_insert(written.len());
        match written.get_mut(place) {
            Some(key) => {
                key.last = position;
                key.last_ms = now_ms;
            }
            None => written.push(Written { last: position, first_ms: now_ms, last_ms: now_ms }),
        }
    }
    Some(Run { written, now_ms })
}

impl Written {
    /// The row that the run leaves. `before`: the row that was there; `entry`: the one that wrote last. `None` if the
    /// row before expires, or is not one that this version knows.
    pub fn row(
        &self,
        before: Option<&[u8]>,
        entry: &[u8],
        epoch: u64,
        first_revision: u64,
    ) -> Option<Vec<u8>> {
        let created_ms = match before {
            None => self.first_ms,
            Some(row) if row.len() >= ROW_HEAD && row[0] == ROW_FORMAT && number(row, 25) == 0 => {
                number(row, 9)
            }
            Some(_) => return None,
        };
        let value = plain_put(entry, epoch)?.value;
        let version = first_revision.checked_add(self.last as u64)?;
        let mut row = Vec::with_capacity(ROW_HEAD + value.len());
        row.push(ROW_FORMAT);
        for field in [version, created_ms, self.last_ms, 0] {
            row.extend_from_slice(&field.to_be_bytes());
        }
        row.extend_from_slice(value);
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stamp_ms: u64, key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![1];
        bytes.extend(stamp_ms.to_be_bytes());
        bytes.push(10);
        bytes.extend(b"kv.write@1");
        bytes.push(0);
        bytes.extend(7u64.to_be_bytes());
        bytes.extend([0; 16]);
        bytes.extend((key.len() as u16).to_be_bytes());
        bytes.extend([0; 2]);
        bytes.extend(key);
        bytes.extend(value);
        bytes
    }

    fn run(entries: &[Vec<u8>], now_ms: u64) -> Option<Run> {
        run_of(entries.iter().map(Vec::as_slice), 7, now_ms)
    }

    #[test]
    fn a_plain_put_is_found_as_it_was_written() {
        let found = entry(5, b"key", b"value");
        assert_eq!(plain_put(&found, 7), Some(Put { stamp_ms: 5, key: b"key", value: b"value" }));
        assert_eq!(plain_put(&entry(5, b"", b""), 7), Some(Put { stamp_ms: 5, key: b"", value: b"" }));
    }

    #[test]
    fn nothing_else_is_a_plain_put() {
        let whole = entry(5, b"key", b"");
        for end in 0..whole.len() {
            assert_eq!(plain_put(&whole[..end], 7), None, "cut at {end}");
        }
        // The format, the name and its length, flags, epoch, time to live, version and the request id's length.
        let heads = (0..1).chain(9..KEY_BYTES_AT).chain(KEY_BYTES_AT + 2..KEY_AT);
        for at in heads {
            for bit in 0..8 {
                let mut other = whole.clone();
                other[at] ^= 1 << bit;
                assert_eq!(plain_put(&other, 7), None, "byte {at}, bit {bit}");
            }
        }
        assert_eq!(plain_put(&whole, 8), None, "another epoch");
        let mut unknown = whole.clone();
        unknown[EPOCH_AT + 7] = 0;
        assert_eq!(plain_put(&unknown, 0), None, "no epoch: ownership has to be looked at");
    }

    #[test]
    fn arbitrary_bytes_never_panic() {
        let mut state = 1u64;
        for _ in 0..20_000 {
            let mut bytes = entry(5, b"key", b"value");
            for _ in 0..3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = (state >> 33) as usize % bytes.len();
                bytes[at] = (state >> 25) as u8;
            }
            bytes.truncate((state >> 40) as usize % (bytes.len() + 1));
            let _ = plain_put(&bytes, 7);
        }
    }

    #[test]
    fn the_last_write_of_a_key_decides_and_time_never_goes_back() {
        let entries = [entry(20, b"a", b"1"), entry(10, b"b", b"2"), entry(30, b"a", b"3")];
        let found = run(&entries, 15).unwrap();
        assert_eq!(found.now_ms, 30);
        assert_eq!(
            found.written,
            [Written { last: 2, first_ms: 20, last_ms: 30 }, Written { last: 1, first_ms: 20, last_ms: 20 }]
        );
        let row = found.written[0].row(None, &entries[2], 7, 100).unwrap();
        let fields = [102u64, 20, 30, 0].map(u64::to_be_bytes).concat();
        assert_eq!(row, [&[1][..], &fields, b"3"].concat());
        // A row that was there keeps the time of its making.
        let again = found.written[1].row(Some(&row), &entries[1], 7, 100).unwrap();
        let fields = [101u64, 20, 20, 0].map(u64::to_be_bytes).concat();
        assert_eq!(again, [&[1][..], &fields, b"2"].concat());
    }

    #[test]
    fn rows_that_expire_or_are_unknown_are_left_to_others() {
        let entries = [entry(20, b"a", b"1")];
        let found = run(&entries, 0).unwrap();
        let row = found.written[0].row(None, &entries[0], 7, 1).unwrap();
        let mut expiring = row.clone();
        expiring[32] = 1;
        let mut unknown = row.clone();
        unknown[0] = 2;
        for before in [&expiring[..], &unknown, &row[..ROW_HEAD - 1], b""] {
            assert_eq!(found.written[0].row(Some(before), &entries[0], 7, 1), None);
        }
        assert_eq!(found.written[0].row(None, &entries[0], 7, u64::MAX).map(|row| row[1]), Some(255));
    }

    #[test]
    fn one_entry_that_is_not_plain_makes_the_whole_run_somebody_elses() {
        let mut entries = vec![entry(20, b"a", b"1"), entry(20, b"b", b"1")];
        assert!(run(&entries, 0).is_some());
        entries[1][ARGS_AT] = 1;
        assert!(run(&entries, 0).is_none());
    }
}
