#!/usr/bin/env bash
# Counts the alerts of the default pack on ordinary work: records this host while
# packages are installed into a Debian of its own (debootstrap), and a web server,
# databases, compilers and CI jobs run in it; then replays the recording. Fails when
# there is more than 1 alert of medium or higher in 100,000 events.
# Needs root, debootstrap and a Debian mirror; takes about 5 minutes and 2 GB below TMPDIR.
# Usage: test/noise/noise.sh [MIRROR]; KEEP=1 keeps the recording.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "noise: needs root, to record the kernel's events" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "noise: needs debootstrap: apt-get install debootstrap" >&2; exit 1; }
mirror=${1:-http://deb.debian.org/debian}
tmp=$(mktemp -d)
root=$tmp/root
recorder=
cleanup() {
	[ -z "$recorder" ] || kill -INT "$recorder" 2>/dev/null || true
	umount "$root/proc" "$root/dev" 2>/dev/null || true
	[ -n "${KEEP:-}" ] && echo "noise: the recording is $tmp/noise.arrow" || rm -rf --one-file-system "$tmp"
}
trap cleanup EXIT

go build -o "$tmp/picket" ./cmd/picket
"$tmp/picket" record -o "$tmp/noise.arrow" &
recorder=$!
sleep 2

work() {
	debootstrap --variant=minbase --include=ca-certificates,gcc,make,libc6-dev,curl,cron,procps,git,python3 bookworm "$root" "$mirror"
	mount -t proc proc "$root/proc"
	mount --bind /dev "$root/dev"
	printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # installed services are not started
	chmod +x "$root/usr/sbin/policy-rc.d"
	cp /etc/resolv.conf "$root/etc/resolv.conf"
	export DEBIAN_FRONTEND=noninteractive LC_ALL=C
	unset TMPDIR # is not in there
	chroot "$root" apt-get update
	chroot "$root" apt-get install -y --no-install-recommends nginx-light redis-server postgresql openssh-server sudo autoconf automake libtool pkg-config perl python3-venv wget less vim-tiny
	# A web server with health checks, two databases.
	chroot "$root" sh -c 'nginx; for i in $(seq 50); do curl -fsS http://127.0.0.1:80/ >/dev/null; done; nginx -s stop'
	chroot "$root" sh -c 'redis-server --port 16379 --daemonize yes; for i in $(seq 50); do redis-cli -p 16379 ping; done; redis-cli -p 16379 shutdown'
	chroot "$root" su postgres -c '
		bin=$(ls -d /usr/lib/postgresql/*/bin); $bin/initdb -D /tmp/pg; mkdir -p /tmp/archive
		printf "archive_mode=on\narchive_command = '\''test ! -f /tmp/archive/%%f && cp %%p /tmp/archive/%%f'\''\n" >>/tmp/pg/postgresql.conf
		$bin/pg_ctl -D /tmp/pg -o "-p 15432 -k /tmp" -w start
		for i in $(seq 20); do psql -h /tmp -p 15432 -c "select count(*) from pg_class; select pg_switch_wal()"; done
		$bin/pg_ctl -D /tmp/pg -m fast stop'
	# Compilers and what CI does.
	chroot "$root" sh -c '
		mkdir -p /src && cd /src && echo "int main(void){return 0;}" >a.c && printf "a: a.c\n\tgcc -O2 -o a a.c\n" >Makefile
		for i in $(seq 30); do touch a.c; make; ./a; done
		git init -q . && git add -A && git -c user.name=a -c user.email=a@b commit -qm x
		printf "AC_INIT(x,1)\nAC_PROG_CC\nAC_OUTPUT\n" >configure.ac; autoconf; ./configure
		python3 -m venv /venv; /venv/bin/python -c "import json"
		useradd -m -s /bin/bash alice; tar czf /src.tgz /src; find / -xdev -name "*.conf" | wc -l'
	chroot "$root" apt-get install -y --reinstall coreutils sudo
	chroot "$root" apt-get purge -y redis-server
}
if ! work >"$tmp/work.log" 2>&1; then
	echo "noise: the work failed; its last lines:" >&2
	tail -5 "$tmp/work.log" >&2
	exit 1
fi
kill -INT "$recorder"
wait "$recorder" || true
recorder=

"$tmp/picket" replay --format capture "$tmp/noise.arrow" >"$tmp/alerts.jsonl" 2>"$tmp/replay.log"
events=$(sed -n 's/^\([0-9]*\) events.*/\1/p' "$tmp/replay.log")
loud=$(grep -cE '"severity":"(medium|high|critical)"' "$tmp/alerts.jsonl" || true)
sed -E 's/.*"severity":"([^"]*)","rule":"([^"]*)".*/\1  \2/' "$tmp/alerts.jsonl" | sort | uniq -c
awk -v n="$loud" -v e="$events" 'BEGIN {
	printf "%d events, %d alerts of medium or higher: %.2f in 100,000 events (at most 1)\n", e, n, n * 100000 / e
	exit n * 100000 > e
}'
