#!/usr/bin/env bash
# Installs what the benchmark compares with and drives load with: etcd, Redis, h2load (Debian) and ghz (go install);
# and what bench/profiles.py looks with: perf (Debian), py-spy (a wheel, into the virtual environment).
set -euo pipefail
cd "$(dirname "$0")/.."
packages=()
want() { command -v "$1" >/dev/null 2>&1 || packages+=("$2"); }
want etcd etcd-server
want redis-server redis-server
want h2load nghttp2-client
want perf linux-perf
if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "the benchmark needs these Debian packages: ${packages[*]}" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
scripts/go_tools.sh ghz
if [ -x .venv/bin/python ] && [ ! -x .venv/bin/py-spy ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check py-spy==0.4.3
fi
