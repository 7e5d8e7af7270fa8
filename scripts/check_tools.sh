#!/usr/bin/env bash
# Says which tools a build needs and is missing, and how to get them. Changes nothing.
set -euo pipefail
missing=0
need() { # command, why, how
    if ! command -v "$1" >/dev/null 2>&1; then
        echo "missing: $1 ($2). Install it with: $3" >&2
        missing=1
    fi
}
need python3 "Python 3.11 or newer" "your package manager, e.g. apt-get install python3 python3-venv"
need cargo "Rust 1.85 or newer, for the native half" "rustup (https://rustup.rs) or your package manager"
need cc "a C linker" "your package manager, e.g. apt-get install gcc"
if command -v python3 >/dev/null 2>&1; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "missing: Python 3.11 or newer; this one is $(python3 --version)" >&2
        missing=1
    }
    python3 -c 'import venv, ensurepip' 2>/dev/null || {
        echo "missing: Python's venv module. Install it with: your package manager, e.g. apt-get install python3-venv" >&2
        missing=1
    }
fi
exit "$missing"
