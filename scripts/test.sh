#!/usr/bin/env bash
# Everything CI runs, from nothing: tools, build, lint, Rust tests, Python tests, containers.
# Installs the Debian packages its tests need when it runs as root on a Debian machine; says what is missing otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '\n==> %s (%ss)\n' "$1" "$SECONDS"; }

step "tools"
scripts/setup_test.sh
step "build"
make --no-print-directory setup build
step "lint"
make --no-print-directory lint
step "native tests"
make --no-print-directory test-native
step "python tests"
make --no-print-directory test-python
step "compose test"
make --no-print-directory compose-test
step "done"
