#!/bin/sh
# Puts libchdb.so (the ClickHouse engine as a library) where picket-clickhouse
# looks for it: ${PICKET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/picket}/chdb/<version>/.
# It comes from its npm package, pinned by version and checksum. Running it again
# when the library is there does nothing. Prints the library's path on stdout.
set -eu

# The same version stands in internal/chdb (Version); a test holds the two together.
version=26.5.3
sha512='fPrLmRt5Moor9yGz4mazbrNje4t7X9KB2mTGkXFWRxRBs2iKy8yh6jx11xsa0Qr3iDFMU/yHqd+bVdYJXu3QaQ=='
package='@chdb/lib-linux-x64-gnu'

cache="${PICKET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/picket}/chdb"
lib="$cache/$version/libchdb.so"

# The folder is renamed into place only when it is whole, so its presence is enough.
if [ -f "$lib" ]; then
    echo "$lib"
    exit 0
fi

say() { echo "fetch-chdb: $*" >&2; }
die() { say "$*"; exit 1; }

machine="$(uname -s)/$(uname -m)"
[ "$machine" = Linux/x86_64 ] || die "libchdb $version is pinned for Linux/x86_64 only and this is $machine: put a clickhouse binary on the PATH, or give a server with --clickhouse URL"
command -v npm >/dev/null 2>&1 || die "npm is missing and libchdb comes from an npm package: install it (Debian, Ubuntu: apt-get install npm), or put a clickhouse binary on the PATH"
command -v openssl >/dev/null 2>&1 || die "openssl is missing, it verifies the download: install it (Debian, Ubuntu: apt-get install openssl)"

mkdir -p "$cache"
tmp="$(mktemp -d "$cache/.fetch.XXXXXX")"
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "fetching $package $version with npm (159 MiB to download, 533 MiB on disk)"
(cd "$tmp" && npm pack --silent "$package@$version" >/dev/null) ||
    die "npm could not fetch $package@$version: check that 'npm view $package version' answers (network, proxy, npm registry setting) and run this again"

set -- "$tmp"/*.tgz
[ -f "$1" ] || die "npm pack left no archive for $package@$version: check that 'npm pack $package@$version' works by hand"
got="$(openssl dgst -sha512 -binary "$1" | openssl base64 -A)"
[ "$got" = "$sha512" ] || die "checksum of $package@$version is sha512-$got, wanted sha512-$sha512: the download is damaged or not what was pinned; nothing was installed"

mkdir "$tmp/lib"
tar -xzf "$1" -C "$tmp/lib" --strip-components=1 package/libchdb.so ||
    die "could not unpack libchdb.so (is there 600 MB of free space in $cache?)"
chmod 755 "$tmp/lib" "$tmp/lib/libchdb.so"

# Whoever renames first wins; a second fetch at the same time finds the same bytes.
if ! mv -T "$tmp/lib" "$cache/$version" 2>/dev/null && [ ! -f "$lib" ]; then
    die "could not move the library to $cache/$version: remove what stands there and run this again"
fi
say "installed $lib"
echo "$lib"
