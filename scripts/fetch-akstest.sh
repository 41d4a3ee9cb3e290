#!/bin/sh
# Puts the npm packages that the tests of services/auditlog-ingest/aks run (an
# AMQP 1.0 library, a storage account) into
# ${PICKET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/picket}/akstest/<hash of package-lock.json>/.
# Versions and checksums of all of them stand in package-lock.json. Running it
# again when they are there does nothing.
set -eu

from="$(cd "$(dirname "$0")/.." && pwd)/services/auditlog-ingest/aks/akstest/npm"
cache="${PICKET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/picket}/akstest"
to="$cache/$(sha256sum "$from/package-lock.json" | cut -c1-12)"
[ -d "$to/node_modules" ] && exit 0

command -v npm >/dev/null 2>&1 || { echo "fetch-akstest: npm is missing: install it (Debian, Ubuntu: apt-get install npm)" >&2; exit 1; }
mkdir -p "$cache"
tmp="$(mktemp -d "$cache/.fetch.XXXXXX")"
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
cp "$from/package.json" "$from/package-lock.json" "$tmp/"
echo "fetch-akstest: fetching rhea and azurite with npm (186 MiB on disk)" >&2
# Their install scripts are not needed and not run.
(cd "$tmp" && npm ci --omit=dev --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null) ||
    { echo "fetch-akstest: npm could not fetch what $from/package-lock.json names: check that 'npm view rhea version' answers (network, proxy, registry setting) and run this again" >&2; exit 1; }
# Whoever renames first wins; a second fetch at the same time finds the same.
mv -T "$tmp" "$to" 2>/dev/null || [ -d "$to/node_modules" ]
