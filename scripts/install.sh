#!/usr/bin/env bash
# Installs what Picket needs from package managers, and says what.
#   install.sh run    to build and run: Go modules; npm (fetches the ClickHouse library)
#   install.sh test   to test and generate: gcc (race detector), clang and libbpf headers (eBPF),
#                      runc and busybox (containers), npm (rhea and azurite, the Azure of the tests)
#   install.sh bench  for the recording of ordinary work (make bench-noise, make bench-detector): PostgreSQL,
#                      nginx, ab, and what test has; none of them is started
#   install.sh kube   for Kubernetes clusters (make e2e, make bench-noise): etcd, containerd, runc, CNI plugins; none
#                      of them is started. make kube builds Kubernetes itself
#   install.sh vm     to test on other kernels (make vmtest): QEMU, and what makes the guest
set -euo pipefail
cd "$(dirname "$0")/.."

apt_install() { # apt_install WHY PACKAGE...
	local why=$1
	shift
	if ! command -v apt-get >/dev/null; then
		echo "missing: $* ($why). Install it with your package manager and run this again." >&2
		exit 1
	fi
	if [ "$(id -u)" != 0 ]; then
		echo "missing: $* ($why). Install it: sudo apt-get install $*" >&2
		exit 1
	fi
	echo "installing from Debian packages: $* ($why)"
	apt-get install -y -qq "$@" >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq "$@" >/dev/null; }
}

if ! command -v go >/dev/null; then
	echo "missing: Go 1.26 or later. Install it and put it on the PATH." >&2
	exit 1
fi

case "${1:-}" in
run)
	command -v npm >/dev/null || apt_install "fetches the ClickHouse library" npm
	if ! GOFLAGS=-mod=mod GOPROXY=off go list -deps ./cmd/... >/dev/null 2>&1; then
		echo "fetching Go modules named in go.mod"
		go mod download
	fi
	;;
test)
	command -v gcc >/dev/null || apt_install "race detector" gcc libc6-dev
	# Only root can install it; without, the committed objects are used as
	# they are and check-generated says that it did not compare them.
	if ! command -v clang-19 >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		apt_install "compiles the eBPF programs" clang-19 llvm-19 libbpf-dev
	fi
	# Their tests need root too; without, they say what they left out.
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! { command -v runc && command -v busybox; } >/dev/null; then
		apt_install "starts containers for tests" --no-install-recommends runc busybox-static
	fi
	# An AMQP server and a storage account for the tests of the audit logs of AKS.
	command -v npm >/dev/null || apt_install "fetches what the tests of AKS run" npm
	scripts/fetch-akstest.sh
	;;
bench)
	scripts/install.sh test
	for c in nginx ab /usr/lib/postgresql/*/bin/pgbench curl make git python3 perl; do
		command -v "$c" >/dev/null && continue
		apt_install "ordinary work to record" --no-install-recommends nginx-light apache2-utils postgresql-15 curl make git python3 perl
		break
	done
	;;
kube)
	for c in etcd containerd runc ip iptables /usr/lib/cni/bridge; do
		command -v "$c" >/dev/null && continue
		# etcd's package starts a server, which nobody here needs.
		if [ ! -e /usr/sbin/policy-rc.d ] && [ "$(id -u)" = 0 ] && [ -d /usr/sbin ]; then
			printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
			chmod 755 /usr/sbin/policy-rc.d
			trap 'rm -f /usr/sbin/policy-rc.d' EXIT
		fi
		apt_install "Kubernetes clusters for tests" --no-install-recommends etcd-server containerd runc containernetworking-plugins iproute2 iptables
		break
	done
	# In an image there are no libraries, so a busybox that needs some will not do.
	if ! command -v busybox >/dev/null || ldd "$(command -v busybox)" >/dev/null 2>&1; then
		apt_install "images for tests" busybox-static
	fi
	;;
vm)
	# The desktop parts that QEMU's package recommends are not needed.
	command -v qemu-system-x86_64 >/dev/null || apt_install "runs other kernels" --no-install-recommends qemu-system-x86
	# The guest has no libraries, so a busybox that needs some will not do.
	if ! command -v busybox >/dev/null || ldd "$(command -v busybox)" >/dev/null 2>&1 || ! command -v cpio >/dev/null || ! command -v xz >/dev/null; then
		apt_install "makes the guest's file system" busybox-static cpio xz-utils
	fi
	# The kernel packages are found in apt's lists, and a new machine may have none.
	if command -v apt-cache >/dev/null && [ -z "$(apt-cache pkgnames linux-image-)" ] && [ "$(id -u)" = 0 ]; then
		apt-get update -qq
	fi
	;;
*)
	echo "usage: $0 run|test|bench|kube|vm" >&2
	exit 2
	;;
esac
