#!/usr/bin/env bash
# Runs every fuzz target for so many seconds: scripts/fuzz.sh [seconds] [target...]
# All that is found goes to native/fuzz/work (not kept); what reaches new code goes to native/fuzz/corpus as well, which
# is kept. An input that fails stays in native/fuzz/artifacts and ends the run.
# The toolchain is the ordinary stable one: without a sanitizer cargo-fuzz needs no nightly.
set -euo pipefail
cd "$(dirname "$0")/../native/fuzz"
seconds=${1:-60}
shift || true
command -v cargo-fuzz >/dev/null 2>&1 || cargo install --quiet --locked cargo-fuzz@0.13.2
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(ls corpus)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() {
    local target=$1
    shift
    mkdir -p "work/$target" "corpus/$target"
    cargo fuzz run --sanitizer none --fuzz-dir . "$target" "$@" >"$log" 2>&1 || { cat "$log"; exit 1; }
}
for target in "${targets[@]}"; do
    before=$(find "corpus/$target" -type f | wc -l)
    run "$target" "work/$target" "corpus/$target" -- \
        -max_total_time="$seconds" -max_len=4096 -rss_limit_mb=2048 -timeout=10 -print_final_stats=1
    runs=$(awk '/number_of_executed_units/ { print $2 }' "$log")
    # One input for each piece of code that no kept input reaches yet, the shortest first.
    run "$target" "corpus/$target" "work/$target" -- -merge=1 -use_counters=0
    echo "$target: $runs runs, nothing failed; $(find "corpus/$target" -type f | wc -l) inputs kept, $before before"
done
