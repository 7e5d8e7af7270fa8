//! The fuzz targets without a fuzzer: every kept input, and seeded mutations of them, in every test run.
//!
//! `FUZZ_ROUNDS` is how many mutations each target gets, `FUZZ_SEED` replays others. An input that fails is printed
//! as hex; put it into the target's corpus once the bug is fixed.

use flotta_native::raft::mix;
use std::fs;
use std::panic;
use std::path::PathBuf;

#[path = "../fuzz/targets.rs"]
mod targets;

const ROUNDS: u64 = 20_000;
const INPUT_BYTES_MAX: usize = 4_096;
const INTERESTING: [u8; 9] = [0, 1, 2, 4, 8, 0x7f, 0x80, 0xfe, 0xff];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "fuzz", "corpus", target].iter().collect();
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a file of the corpus").path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a file of the corpus")).collect()
}

/// Draws for one mutated input: the same seed and round give the same input.
struct Draws(u64);

impl Draws {
    fn next(&mut self, below: usize) -> usize {
        self.0 = mix(self.0);
        (self.0 % below.max(1) as u64) as usize
    }
}

fn mutated(corpus: &[Vec<u8>], seed: u64, round: u64) -> Vec<u8> {
    let mut draws = Draws(mix(seed ^ mix(round)));
    let mut input = corpus[draws.next(corpus.len())].clone();
    for _ in 0..=draws.next(4) {
        let at = draws.next(input.len());
        match draws.next(7) {
            0 if !input.is_empty() => input[at] ^= 1 << draws.next(8),
            1 if !input.is_empty() => input[at] = INTERESTING[draws.next(INTERESTING.len())],
            2 => input.insert(at.min(input.len()), draws.next(256) as u8),
            3 => input.truncate(at),
            4 if !input.is_empty() => drop(input.drain(at..(at + 1 + draws.next(8)).min(input.len()))),
            5 => {
                let other = &corpus[draws.next(corpus.len())];
                let from = draws.next(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let fill = INTERESTING[draws.next(INTERESTING.len())];
                let end = (at + 1 + draws.next(8)).min(input.len());
                input[at.min(end)..end].fill(fill);
            }
        }
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn hex(input: &[u8]) -> String {
    input.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_decoder_survives_its_corpus_and_seeded_mutations_of_it() {
    let (rounds, seed) = (number("FUZZ_ROUNDS", ROUNDS), number("FUZZ_SEED", 1));
    for (name, target) in targets::ALL {
        let kept = corpus(name);
        assert!(kept.len() > 3, "{name} has hardly a corpus");
        let run = |input: &[u8], what: String| {
            assert!(panic::catch_unwind(|| target(input)).is_ok(), "{name}, {what}: {}", hex(input));
        };
        for (at, input) in kept.iter().enumerate() {
            run(input, format!("input {at} of the corpus"));
        }
        for round in 0..rounds {
            run(&mutated(&kept, seed, round), format!("seed {seed} round {round}"));
        }
        println!("{name}: {} inputs, {rounds} mutations", kept.len());
    }
}

#[test]
fn every_target_of_the_fuzzer_is_run_here_too() {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "fuzz", "fuzz_targets"].iter().collect();
    let mut fuzzed: Vec<String> = fs::read_dir(folder)
        .expect("the fuzz targets")
        .map(|entry| entry.expect("a fuzz target").path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    fuzzed.sort();
    let mut run: Vec<String> = targets::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    run.sort();
    assert_eq!(fuzzed, run);
}
