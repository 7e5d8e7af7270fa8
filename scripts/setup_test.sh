#!/usr/bin/env bash
# Installs what the tests need beyond the build: a container engine with compose, debootstrap, network tools, grpcurl,
# and what the benchmark measures with and compares with: ghz, h2load, etcd, Redis.
set -euo pipefail
packages=()
want() { command -v "$1" >/dev/null 2>&1 || [ -x "$1" ] || packages+=("$2"); }
# Debian's own docker client: a newer one without buildx falls back to the builder that pulls every base.
want /usr/bin/docker docker.io
want /usr/sbin/dockerd docker.io
want docker-compose docker-compose
want debootstrap debootstrap
want iptables iptables
want ip iproute2
want mkfs.ext4 e2fsprogs
want xfs_io xfsprogs
want faketime faketime
want openssl openssl
want etcd etcd-server
want redis-server redis-server
want h2load nghttp2-client
if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "the tests need these Debian packages: ${packages[*]}" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
"$(dirname "$0")/go_tools.sh" grpcurl ghz
