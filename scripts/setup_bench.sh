#!/usr/bin/env bash
# Installs what the benchmark compares with and drives load with: etcd (Debian) and ghz (go install).
set -euo pipefail
if ! command -v etcd >/dev/null 2>&1; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "the benchmark needs the Debian package etcd-server" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends etcd-server >/dev/null
fi
if ! command -v ghz >/dev/null 2>&1 && [ ! -x "$(go env GOPATH)/bin/ghz" ]; then
    go install github.com/bojand/ghz/cmd/ghz@v0.121.0
fi
