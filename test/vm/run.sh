#!/usr/bin/env bash
# Runs the tests of ./bpf as root on Debian's kernels in virtual machines, all at once, and prints one line for
# each kernel. Exits with 1 if a test failed or did not run, or if a kernel that must be tested is not offered.
#   run.sh [TESTS]    TESTS: a pattern as for go test -run. All if missing, but the slow ones (below) without KVM.
# Nothing is installed on this machine: the kernels are unpacked into
# ${PICKET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/picket}/kernels/, and the guests have no disk and no network.
set -euo pipefail
cd "$(dirname "$0")/../.."

# The first must be there. Of the others those that the configured Debian archive offers.
series=(6.1 6.12 5.10)
# Modules the tests need, as paths below lib/modules/RELEASE/kernel without .ko; none needs another one.
modules=(fs/overlayfs/overlay)
# What takes minutes without KVM and does not differ between kernels: millions of events, hundreds of restarts.
slow='TestStorm TestTakeoverAgain'
# Seconds for the tests of one kernel, which load the programs some hundred times. All run at once, so this and 30 bounds the whole.
limit=900

cache="${PICKET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/picket}/kernels"
pattern=${1:-.}

say() { echo "vmtest: $*" >&2; }
die() {
	say "$*"
	exit 1
}

[ "$(uname -s)/$(uname -m)" = Linux/x86_64 ] || die "the kernels are x86-64 ones, and so must this machine be"
for tool in qemu-system-x86_64 busybox cpio xz apt-cache dpkg-deb; do
	command -v "$tool" >/dev/null || die "$tool is missing: run scripts/install.sh vm (needs Debian or Ubuntu)"
done

work=$(mktemp -d)
vms=()
cleanup() {
	for vm in "${vms[@]}"; do
		if kill -0 "$vm" 2>/dev/null; then kill "$vm"; fi # most have ended by themselves
	done
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# newest SERIES: the archive's newest kernel package of a series, as "name version"; nothing if it has none.
newest() {
	local name version
	for name in $(apt-cache pkgnames "linux-image-$1." | grep -E "^linux-image-${1//./\\.}\.[0-9]+(-[0-9]+|\+deb[0-9]+)-amd64$" | sort -rV); do
		version=$(apt-cache policy "$name" | awk '$1 == "Candidate:" && $2 != "(none)" {print $2}')
		if [ -n "$version" ]; then
			echo "$name $version"
			return
		fi
	done
}

# fetch NAME VERSION: the package's kernel and modules in the cache; prints their folder.
fetch() {
	local dir="$cache/$1_$2" module file
	if [ ! -d "$dir" ]; then
		mkdir -p "$cache"
		tmp=$(mktemp -d "$cache/.fetch.XXXXXX")
		trap 'rm -rf "$tmp"' EXIT # of this command substitution, so tmp is not local
		say "fetching $1 $2"
		if ! (cd "$tmp" && apt-get download -qq "$1=$2") >"$work/download" 2>&1; then
			cat "$work/download" >&2
			die "could not download $1 $2: run apt-get update and this again"
		fi
		mkdir -p "$tmp/unpacked" "$tmp/kernel/modules"
		dpkg-deb -x "$tmp/$1"_*.deb "$tmp/unpacked"
		cp "$tmp"/unpacked/boot/vmlinuz-* "$tmp/kernel/vmlinuz"
		for module in "${modules[@]}"; do
			for file in "$tmp"/unpacked/lib/modules/*/kernel/"$module".ko*; do
				case $file in
				*.ko) cp "$file" "$tmp/kernel/modules/" ;;
				*.ko.xz) xz -dc "$file" >"$tmp/kernel/modules/${module##*/}.ko" ;;
				*) die "$1 has no module $module" ;;
				esac
			done
		done
		# Renamed into place only when it is whole, so its presence is enough.
		mv -T "$tmp/kernel" "$dir" 2>/dev/null || [ -d "$dir" ] || die "could not move the kernel to $dir"
	fi
	echo "$dir"
}

# Nested virtualisation may leave a /dev/kvm that opens and then runs nothing: the CPU must say that it can.
if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then
	accel=(-accel kvm -cpu host)
	skip=''
else
	# One thread for both CPUs: with one each, this emulation lets a CPU meet a breakpoint that the kernel
	# has taken back while it patched its own code, and the kernel dies of it.
	accel=(-accel 'tcg,thread=single' -cpu max)
	skip=$slow
	say "no KVM here, so the machines are emulated and slow"
fi
[ "$pattern" = . ] || skip='' # what is asked for by name is run
[ -z "$skip" ] || say "LEFT OUT: ${skip// /, } (make test runs them on this machine's own kernel)"
say "LEFT OUT: benchmarks"

# The tests run as go test runs them: in the package's folder, with the files that they read.
mkdir "$work/bpf"
CGO_ENABLED=0 ${GO:-go} test -buildvcs=false -trimpath -c -o "$work/bpf/bpf.test" ./bpf
cp -r bpf/testdata bpf/*.o "$work/bpf/"
"$work/bpf/bpf.test" -test.list "${pattern%%/*}" | grep -E '^(Test|Fuzz)' | grep -vxE "${skip// /|}" >"$work/wanted" || die "no test matches $pattern"

# start NAME VERSION: a machine with that kernel; its test output goes to $work/NAME/tests.
start() {
	local dir vm="$work/$1"
	dir=$(fetch "$1" "$2")
	mkdir -p "$vm/root/bin" "$vm/root/picket"
	install -m 755 test/vm/init "$vm/root/init"
	cp "$(command -v busybox)" "$vm/root/bin/busybox"
	cp -r "$dir/modules" "$vm/root/modules"
	cp -r "$work/bpf" "$vm/root/picket/bpf"
	echo "-test.v -test.timeout=${limit}s -test.run=$pattern ${skip:+-test.skip=^(${skip// /|})\$}" >"$vm/root/picket/arguments"
	(cd "$vm/root" && find . | cpio --quiet -o -H newc) >"$vm/initramfs"
	timeout $((limit + 30)) qemu-system-x86_64 "${accel[@]}" -smp 2 -m 2048 -nodefaults -display none -no-reboot \
		-kernel "$dir/vmlinuz" -initrd "$vm/initramfs" -append 'console=ttyS0 panic=-1 loglevel=4' \
		-serial "file:$vm/console" -serial "file:$vm/tests" >"$vm/qemu" 2>&1 &
	vms+=($!)
}

failed=0 kernels=() absent=()
for s in "${series[@]}"; do
	found=$(newest "$s")
	if [ -n "$found" ]; then
		# shellcheck disable=SC2086 # name and version
		start $found
		kernels+=("${found% *}")
	elif [ "$s" = "${series[0]}" ]; then
		die "the configured Debian archive offers no linux-image-$s.*-amd64: run apt-get update, or configure Debian 12's archive"
	else
		absent+=("$s")
	fi
done

names() { # a space-separated list of the words of standard input
	paste -sd ' ' -
}
passes=0 failures=0 skips=0
for i in "${!kernels[@]}"; do
	vm="$work/${kernels[$i]}"
	ended=''
	wait "${vms[$i]}" || ended="QEMU ended with $?"
	touch "$vm/tests" "$vm/console"
	for result in PASS FAIL SKIP; do
		sed -nE "s/^--- $result: ([^ ]+) .*/\1/p" "$vm/tests" | sort >"$vm/$result"
	done
	sort "$work/wanted" | comm -23 - <(sort "$vm/PASS" "$vm/FAIL" "$vm/SKIP") >"$vm/missing"
	# A part of a test can be skipped by itself; it counts as one more.
	sed -nE 's/^ *--- SKIP: ([^ ]+) .*/\1/p' "$vm/tests" >"$vm/skipped"
	p=$(wc -l <"$vm/PASS") f=$(wc -l <"$vm/FAIL") k=$(wc -l <"$vm/skipped") m=$(wc -l <"$vm/missing")
	kernel=$(sed -n 's/^vmtest: kernel \([^ ]*\).*/\1/p' "$vm/tests")
	if ! grep -qx 'vmtest: exit 0' "$vm/tests" || [ "$f" != 0 ] || [ "$m" != 0 ] || [ -n "$ended" ]; then
		failed=1
		echo "==== ${kernels[$i]}: what the tests said${ended:+; $ended}"
		awk '/^goroutine / {exit} !/^(=== | *--- PASS:)/' "$vm/tests" # no stacks of a run that was ended
		echo "==== ${kernels[$i]}: the last messages of QEMU and the kernel"
		cat "$vm/qemu"
		tail -n 60 "$vm/console"
		echo "===="
	else # each skipped test with its reason, the last that it said
		awk '/^=== / {test = $3; next}
			/^ *--- SKIP:/ {print "skipped " $3 ": " said[$3]}
			!/^ *---/ {sub(/^ +/, ""); said[test] = $0}' "$vm/tests"
	fi
	lacks=$(sed -n 's/^vmtest: lacks //p' "$vm/tests" | paste -sd ',' -)
	line="${kernel:-${kernels[$i]} (did not start)}: $p passed, $f failed, $k skipped, $m without a result"
	[ "$f" = 0 ] || line+="; failed: $(names <"$vm/FAIL")"
	[ "$k" = 0 ] || line+="; skipped: $(names <"$vm/skipped")"
	[ "$m" = 0 ] || line+="; without a result: $(names <"$vm/missing")"
	[ -z "$lacks" ] || line+="; the kernel lacks: $lacks"
	echo "$line"
	passes=$((passes + p)) failures=$((failures + f + m)) skips=$((skips + k))
done
for s in ${absent[@]+"${absent[@]}"}; do
	echo "$s: NOT TESTED: the configured Debian archive offers no linux-image-$s.*-amd64"
done
echo "vmtest: $passes passed, $failures failed, $skips skipped"
exit $failed
