#!/usr/bin/env bash
# The Rust half: format, lints, tests. The Python binding is left out of the tests, which need no interpreter.
set -euo pipefail
cd "$(dirname "$0")/../native"
cargo fmt --check
cargo clippy --locked --quiet --all-targets -- -D warnings
cargo test --locked --quiet --no-default-features
