//! KvDB's key hash, Java's `Arrays.hashCode(byte[])`: h = 1, then h = 31 * h + b for each signed byte, in a wrapping
//! int32. An empty key hashes to 0, as in KvDB, though no face accepts one.

pub fn key_hash(key: &[u8]) -> i32 {
    if key.is_empty() {
        return 0;
    }
    key.iter().fold(1, |hash: i32, byte| hash.wrapping_mul(31).wrapping_add(i32::from(*byte as i8)))
}

#[cfg(test)]
mod tests {
    use super::key_hash;

    #[test]
    fn hashes_are_those_of_java() {
        let known: [(&[u8], i32); 7] = [
            (b"", 0),
            (b"a", 128),
            (b"k-0", 134_061),
            (b"hello", 127_791_473),
            (b"bench-key", 469_728_865),
            (b"smoke-key10", -735_052_737),
            (b"\xff", 30),
        ];
        for (key, hash) in known {
            assert_eq!(key_hash(key), hash, "{key:?}");
        }
    }
}
