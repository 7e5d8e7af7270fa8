#!/usr/bin/env bash
# Installs Go programs that tests and benchmarks run, those that are named and not there yet, in the pinned versions:
#     scripts/go_tools.sh ghz k6
set -euo pipefail
declare -A packages=(
    [ghz]="github.com/bojand/ghz v0.121.0 cmd/ghz"
    [grpcurl]="github.com/fullstorydev/grpcurl v1.9.3 cmd/grpcurl"
    [k6]="go.k6.io/k6 v1.8.1"
    [vegeta]="github.com/tsenart/vegeta/v12 v12.12.0"
)
# `go install package@version` also asks what later versions say of this one, and fails where only this one can be had.
# A module of our own that requires it does not ask.
install_from_a_module() ( # module, version, package
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    cd "$folder"
    go mod init tools 2>/dev/null
    go mod edit -require="$1@$2"
    go install -mod=mod "$3"
)
for tool in "$@"; do
    [ -n "${packages[$tool]:-}" ] || { echo "no such tool: $tool; there are ${!packages[*]}" >&2; exit 1; }
    if command -v "$tool" >/dev/null 2>&1 || [ -x "$(go env GOPATH 2>/dev/null)/bin/$tool" ]; then
        continue
    fi
    command -v go >/dev/null 2>&1 || { echo "Go is missing; it is needed to install $tool" >&2; exit 1; }
    read -r module version folder <<<"${packages[$tool]}"
    package=$module${folder:+/$folder}
    echo "installing $tool $version with go install" >&2
    if ! said=$(go install "$package@$version" 2>&1); then
        install_from_a_module "$module" "$version" "$package" || { echo "$said" >&2; exit 1; }
    fi
done
