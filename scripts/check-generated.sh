#!/usr/bin/env bash
# Fails if a committed generated file is not what its source gives.
set -euo pipefail
cd "$(dirname "$0")/.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

files=$(git ls-files 'bpf/*_bpfel.go' 'bpf/*_bpfel.o' 'docs/reference/*' docs/coverage.md)
for f in $files; do
	mkdir -p "$tmp/$(dirname "$f")"
	cp "$f" "$tmp/$f"
done
if command -v "${CLANG:-clang-19}" >/dev/null; then
	go generate ./bpf
else
	echo "=== NO CLANG: the compiled eBPF programs were not compared with their source ==="
fi
go run ./internal/docsgen
bad=0
for f in $files; do
	if ! cmp -s "$f" "$tmp/$f"; then
		echo "generated file differs from its source: $f (run make generate and commit)" >&2
		bad=1
	fi
done
exit $bad
