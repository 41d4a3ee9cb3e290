#!/usr/bin/env bash
# Ordinary work of a node, for a recording: packages, compilers, CI jobs, a
# database, a web server, health checks, containers, a Kubernetes node. Nothing in it is an attack.
#   run.sh NODE AUDITLOG [TIMES]   as root, once or several times over; scripts/install.sh bench and kube have installed
#                                  what it needs. NODE is test/node, built; AUDITLOG gets the audit log of its cluster
# It ends what it started, by process id, and removes its folder and its cgroups.
# But for apt, which fetches the packages that it installs again, it talks to
# loopback only.
set -eu # no pipefail: head ends what writes to it
repo=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d /var/tmp/ordinary.XXXXXX)
chmod 755 "$work"
cgroup=ordinary-$$
pids=()

finish() {
	local pid d
	set +e # one thing that cannot be cleaned must not keep the others: each is told
	for pid in "${pids[@]}"; do
		if kill -0 "$pid" 2>/dev/null; then # most have ended by themselves
			kill "$pid"
			wait "$pid"
		fi
	done
	if [ -f "$work/db/postmaster.pid" ]; then
		runuser -u postgres -- "$pg/pg_ctl" -D "$work/db" -m fast -w stop >/dev/null || say "PostgreSQL in $work/db was not stopped"
	fi
	for d in "$work"/runc/*/; do
		if [ -d "$d" ]; then
			runc --root "$work/runc" delete --force "$(basename "$d")" || say "container $(basename "$d") was not deleted"
		fi
	done
	for d in /sys/fs/cgroup/"$cgroup" /sys/fs/cgroup/*/"$cgroup"; do
		if [ -d "$d" ]; then
			find "$d" -depth -type d -exec rmdir {} + || say "cgroup $d was not removed"
		fi
	done
	rm -rf "$work" || say "$work was not removed"
}
trap finish EXIT
say() { echo "ordinary work: $* ($SECONDS s)" >&2; }

packages() {
	say packages
	export DEBIAN_FRONTEND=noninteractive
	# Small ones, with and without scripts of their own, users, triggers and shared libraries.
	local p=(tzdata netbase adduser sed gzip hostname debianutils sensible-utils)
	apt-get update -qq >/dev/null
	apt-get install -y -qq --reinstall --no-install-recommends "${p[@]}" >/dev/null 2>"$work/apt" || { cat "$work/apt" >&2; exit 1; }
	dpkg -l >/dev/null
	dpkg --verify "${p[@]}" >/dev/null || say "some files of the packages were changed on this machine (dpkg --verify)"
	apt-cache search compiler >/dev/null
	mkdir "$work/deb"
	(cd "$work/deb" && dpkg-query -L netbase >/dev/null && mkdir -p local/DEBIAN local/usr/share/ordinary && echo hello >local/usr/share/ordinary/file &&
		printf 'Package: ordinary-work\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.com>\nDescription: a test\n' >local/DEBIAN/control &&
		printf '#!/bin/sh\nset -e\nmkdir -p /var/lib/ordinary-work\nchown root:root /var/lib/ordinary-work\nchmod 750 /var/lib/ordinary-work\n' >local/DEBIAN/postinst &&
		printf '#!/bin/sh\nset -e\nrm -rf /var/lib/ordinary-work\n' >local/DEBIAN/postrm && chmod 755 local/DEBIAN/post* &&
		dpkg-deb --build local ordinary-work.deb && dpkg -i ordinary-work.deb && dpkg --purge ordinary-work) >/dev/null
}

compilers() {
	say compilers
	local dir=$work/c i
	mkdir "$dir"
	for i in $(seq 60); do
		printf '#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <sys/socket.h>\nint f%d(int n) { return n < 2 ? n : f%d(n - 1) + f%d(n - 2) + %d; }\n' "$i" "$i" "$i" "$i" >"$dir/f$i.c"
	done
	printf 'int f1(int);\nint main(void) { return f1(9) == 0; }\n' >"$dir/main.c"
	{
		printf 'OBJ := $(patsubst %%.c,%%.o,$(wildcard *.c))\nprog: $(OBJ)\n\tgcc -o $@ $^\nlib.a: $(OBJ)\n\tar rcs $@ $^\n%%.o: %%.c\n\tgcc -O1 -c -o $@ $<\nclean:\n\trm -f *.o prog lib.a\n'
	} >"$dir/Makefile"
	make -s -C "$dir" -j2 prog lib.a
	"$dir/prog"
	strip "$dir/prog"
	make -s -C "$dir" clean
	make -s -C "$dir" prog
	export GOCACHE=$work/gocache GOPROXY=off GOFLAGS=-buildvcs=false
	(cd "$repo" && CGO_ENABLED=0 go build encoding/json text/template go/format regexp)
}

ci() {
	say ci
	export GOCACHE=$work/gocache GOPROXY=off GOFLAGS=-buildvcs=false
	local r
	for r in 1 2 3; do
		git clone -q --no-hardlinks "$repo" "$work/ci$r"
		(
			cd "$work/ci$r"
			git log --oneline | head -5 >/dev/null
			git checkout -q -b topic
			echo "// ci $r" >>internal/fault/fault.go
			gofmt -l internal cmd services >/dev/null
			go vet ./internal/fault ./internal/terminal
			go test -count=1 ./internal/fault ./internal/freeport ./internal/terminal >/dev/null
			git -c user.name=ci -c user.email=ci@example.com commit -q -am "a change"
			git diff --stat HEAD~1 >/dev/null
			make help >/dev/null
			find . -name '*.go' -exec grep -l "func Test" {} + | sort | uniq | wc -l >/dev/null
			find . -type f -name '*.md' | while read -r f; do
				wc -w "$f" | awk '{print $1}' >/dev/null
				sha256sum "$f" | cut -d' ' -f1 | tr a-f A-F >/dev/null
				sed -n 1,3p "$f" | head -1 >/dev/null
			done
			tar czf "$work/artifact$r.tgz" --exclude=.git .
			mkdir "$work/unpacked$r"
			tar xzf "$work/artifact$r.tgz" -C "$work/unpacked$r"
			cp -a "$work/unpacked$r" "$work/copy$r"
			mv "$work/copy$r/docs" "$work/copy$r/documents"
			chmod -R u=rwX,go=rX "$work/copy$r"
			touch "$work/copy$r/done"
			rm -rf "$work/copy$r" "$work/unpacked$r"
		)
		rm -rf "$work/ci$r"
	done
	# Scripts of many small programs.
	for r in $(seq 400); do
		d=$(dirname "/srv/app/$r/config.yaml")
		b=$(basename "$d" | tr 0-9 a-j)
		expr length "$b" >/dev/null
		date +%s >/dev/null
		uname -r | sed 's/-.*//' >/dev/null
		test -d "$d" || mkdir -p "$work/scripts/$b"
		printf 'key=%s\n' "$b" >"$work/scripts/$b/conf"
		grep -q key "$work/scripts/$b/conf" && id -un >/dev/null
		env | sort | head -2 >/dev/null
	done
	python3 - "$work" <<'PY'
import json, os, sqlite3, subprocess, sys, tempfile
work = sys.argv[1]
db = sqlite3.connect(os.path.join(work, "ci.db"))
db.execute("create table runs (id integer primary key, name text)")
for i in range(200):
    db.execute("insert into runs (name) values (?)", (f"run {i}",))
    if i % 20 == 0:
        db.commit()
        subprocess.run(["uname", "-a"], capture_output=True, check=True)
        with tempfile.NamedTemporaryFile("w", dir=work) as f:
            json.dump({"run": i}, f)
db.commit()
PY
	perl -e 'for (1..50) { open my $f, ">", "$ARGV[0]/perl.$_"; print $f $_; close $f; `true` }' "$work"
}

database() {
	say database
	mkdir "$work/db"
	chown postgres "$work/db"
	runuser -u postgres -- "$pg/initdb" -D "$work/db" -A trust >/dev/null
	runuser -u postgres -- "$pg/pg_ctl" -D "$work/db" -w -l "$work/db/log" -o "-p $((port + 1)) -k $work/db -c listen_addresses=127.0.0.1 -c fsync=off" start >/dev/null
	local sql=(-h 127.0.0.1 -p $((port + 1)) -U postgres)
	"$pg/createdb" "${sql[@]}" bench
	"$pg/pgbench" "${sql[@]}" -q -i -s 2 bench >/dev/null 2>&1
	"$pg/pgbench" "${sql[@]}" -c 4 -t 500 bench >/dev/null 2>&1
	"$pg/pgbench" "${sql[@]}" -C -S -c 4 -t 250 bench >/dev/null 2>&1 # a connection for each
	local i
	for i in $(seq 40); do psql "${sql[@]}" -Atc 'select count(*) from pgbench_accounts' bench >/dev/null; done
	"$pg/pg_dump" "${sql[@]}" bench | gzip >"$work/dump.gz"
	"$pg/createdb" "${sql[@]}" copy
	gunzip -c "$work/dump.gz" | psql "${sql[@]}" -q copy >/dev/null
	"$pg/vacuumdb" "${sql[@]}" -q copy
	runuser -u postgres -- "$pg/pg_ctl" -D "$work/db" -m fast -w stop >/dev/null
}

webserver() {
	say "web server and health checks"
	mkdir -p "$work/web/html" "$work/web/tmp"
	local i
	for i in $(seq 50); do head -c $((i * 300)) /dev/zero | tr '\0' x >"$work/web/html/$i.html"; done
	echo ok >"$work/web/html/healthz"
	chown -R www-data "$work/web"
	cat >"$work/web/nginx.conf" <<CONF
user www-data; worker_processes 2; pid $work/web/pid; error_log $work/web/error.log;
events { worker_connections 512; }
http {
  access_log $work/web/access.log; default_type text/html;
  client_body_temp_path $work/web/tmp/b; proxy_temp_path $work/web/tmp/p; fastcgi_temp_path $work/web/tmp/f; uwsgi_temp_path $work/web/tmp/u; scgi_temp_path $work/web/tmp/s;
  server { listen 127.0.0.1:$port; root $work/web/html; location /proxy/ { proxy_pass http://127.0.0.1:$port/; } }
}
CONF
	nginx -q -t -c "$work/web/nginx.conf"
	nginx -c "$work/web/nginx.conf" -g 'daemon off;' &
	local server=$!
	pids+=("$server")
	for i in $(seq 100); do curl -sf -o /dev/null "http://127.0.0.1:$port/healthz" && break || sleep 0.1; done
	ab -q -n 8000 -c 8 "http://127.0.0.1:$port/7.html" >/dev/null
	ab -q -k -n 8000 -c 8 "http://localhost:$port/20.html" >/dev/null
	ab -q -n 2000 -c 4 "http://127.0.0.1:$port/proxy/3.html" >/dev/null
	for i in $(seq 150); do curl -sf -m 2 "http://127.0.0.1:$port/healthz" >/dev/null; done
	mv "$work/web/access.log" "$work/web/access.log.1" # logrotate
	kill -USR1 "$server"
	gzip "$work/web/access.log.1"
	kill -HUP "$server"
	sleep 0.3
	kill -QUIT "$server"
	wait "$server" || { say "nginx ended with $?"; exit 1; }
}

# bundle ID COMMAND: a container with busybox as the kubelet would have it made.
bundle() {
	local id=$1 args=$2
	mkdir -p "$work/bundles/$id"
	cat >"$work/bundles/$id/config.json" <<JSON
{"ociVersion":"1.0.2","root":{"path":"$work/rootfs","readonly":true},
 "process":{"user":{"uid":1000,"gid":1000},"args":$args,"env":["PATH=/bin"],"cwd":"/"},
 "mounts":[{"destination":"/proc","type":"proc","source":"proc"},{"destination":"/dev","type":"tmpfs","source":"tmpfs"},{"destination":"/tmp","type":"tmpfs","source":"tmpfs"}],
 "linux":{"cgroupsPath":"/$cgroup/kubepods/besteffort/pod1234abcd-9abc-def0-1234-56789abcdef0/$id",
  "namespaces":[{"type":"pid"},{"type":"ipc"},{"type":"uts"},{"type":"mount"},{"type":"network"}]}}
JSON
}

containers() {
	say containers
	mkdir -p "$work/rootfs/bin" "$work/rootfs/proc" "$work/rootfs/dev" "$work/rootfs/tmp" "$work/runc"
	chmod 1777 "$work/rootfs/tmp" # runc gives the mount this mode
	cp "$(command -v busybox)" "$work/rootfs/bin/busybox"
	local a i id
	for a in sh cat ls echo grep sed wc date sleep true test mkdir rm cp mv seq wget; do ln -s busybox "$work/rootfs/bin/$a"; done
	for i in $(seq 50); do
		id=$(printf '%060x%04x' $$ "$i")
		bundle "$id" '["sh","-c","mkdir /tmp/d; for i in $(seq 10); do echo $i >/tmp/d/$i; cat /tmp/d/$i | wc -l >/dev/null; done; ls /tmp/d | grep -c 1 >/dev/null; rm -rf /tmp/d"]'
		runc --root "$work/runc" run --bundle "$work/bundles/$id" "$id"
	done
	id=$(printf '%060xffff' $$)
	bundle "$id" '["sh","-c","echo ok >/tmp/healthy; while :; do date >/tmp/now; sleep 0.2; done"]'
	runc --root "$work/runc" run --detach --bundle "$work/bundles/$id" "$id" </dev/null >/dev/null 2>&1
	for i in $(seq 60); do
		runc --root "$work/runc" exec "$id" sh -c 'test -f /tmp/healthy && cat /tmp/healthy >/dev/null'
	done
	runc --root "$work/runc" exec "$id" /bin/busybox ls /tmp >/dev/null
	runc --root "$work/runc" kill "$id" KILL
	for i in $(seq 50); do runc --root "$work/runc" delete "$id" 2>/dev/null && break || sleep 0.1; done
}

# A cluster of one node that starts, has workloads and ends.
kubernetes() {
	say kubernetes
	"$node" work "$audit"
}

node=$1 audit=$2 times=${3:-1}
pg=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
port=$((20000 + $$ % 10000))
for need in runc busybox nginx ab gcc make go git python3 perl "$pg/initdb"; do
	command -v "$need" >/dev/null || { echo "$need is missing: scripts/install.sh bench installs it" >&2; exit 1; }
done
packages
compilers
ci
database
webserver
containers
kubernetes
say done
if [ "$times" -gt 1 ]; then
	finish
	trap - EXIT
	exec "$0" "$node" "$audit" $((times - 1))
fi
