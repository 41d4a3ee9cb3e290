package mounts

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const table = `21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 8:2 / /var/lib rw - ext4 /dev/sda2 rw
23 21 8:1 /srv /mnt/a\040b rw - ext4 /dev/sda1 rw
24 21 0:44 /@home /home rw - btrfs /dev/sdb rw
25 21 259:300 / /data rw - xfs /dev/nvme0n1p9 rw
26 22 8:2 / /second rw - ext4 /dev/sda2 rw
bad line
`

func TestPath(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(file, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	tb := Open(file)
	now := time.Now()
	for _, tt := range []struct {
		major, minor uint32
		path, want   string
	}{
		{8, 1, "/etc/shadow", "/etc/shadow"}, {8, 1, "/srv/x", "/srv/x"}, {8, 1, "/", "/"},
		{8, 2, "/kubelet/pods", "/second/kubelet/pods"},
		{0, 44, "/@home/me/.ssh/id", "/home/me/.ssh/id"}, {0, 44, "/@home", "/home"}, {0, 44, "/@homeless", ""}, {0, 44, "/@root/x", ""},
		{259, 300, "/x", "/data/x"}, {7, 7, "/x", ""},
	} {
		got, ok := tb.Path(encode(tt.major, tt.minor), tt.path, now)
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("%d:%d %s: %q %v, want %q", tt.major, tt.minor, tt.path, got, ok, tt.want)
		}
	}
	if dev, whole := tb.Root(); dev != unix.Mkdev(8, 1) || !whole {
		t.Errorf("root: %x %v", dev, whole)
	}
	// What changes is seen after a while, and a table that cannot be read is not one without mounts.
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(table, "/second", "/third")), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _ := tb.Path(encode(8, 2), "/x", now); got != "/second/x" {
		t.Error(got)
	}
	if got, _ := tb.Path(encode(8, 2), "/x", now.Add(2*fresh)); got != "/third/x" {
		t.Error(got)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got, _ := tb.Path(encode(8, 2), "/x", now.Add(4*fresh)); got != "/third/x" {
		t.Error(got)
	}
}

// TestSelf: the numbers are those that the kernel gives.
func TestSelf(t *testing.T) {
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		t.Fatal(err)
	}
	tb := Open("/proc/self/mountinfo")
	if dev, _ := tb.Root(); dev != st.Dev {
		t.Errorf("root directory on %x, want %x", dev, st.Dev)
	}
	if unescape(`a\040b\134c\`) != `a b\c\` {
		t.Error(unescape(`a\040b\134c\`))
	}
}

func FuzzParse(f *testing.F) {
	f.Add(table)
	f.Fuzz(func(t *testing.T, s string) { parse(s) })
}

// TestHostPath: a path of another mount namespace leads to the host's by the file
// system that is mounted there.
func TestHostPath(t *testing.T) {
	proc := t.TempDir()
	host := filepath.Join(proc, "host")
	if err := os.WriteFile(host, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	process := func(pid, namespace, mountinfo string) {
		t.Helper()
		ns := filepath.Join(proc, pid, "ns")
		if err := os.MkdirAll(ns, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("mnt:["+namespace+"]", filepath.Join(ns, "mnt")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, pid, "mountinfo"), []byte(mountinfo), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	process("10", "77", `1 0 0:50 / / rw - overlay overlay rw
2 1 8:1 /etc /host/etc rw master:1 - ext4 /dev/sda1 rw
3 1 8:1 / /whole rw - ext4 /dev/sda1 rw
4 1 8:2 /kubelet/pods/x/volumes/v /data rw - ext4 /dev/sda2 rw
5 4 0:60 / /data/tmp rw - tmpfs tmpfs rw
6 1 0:61 / /proc rw - proc proc rw
7 1 8:1 /srv/new /covered rw - ext4 /dev/sda1 rw
8 1 8:1 /srv/newer /covered rw - ext4 /dev/sda1 rw
`)
	process("11", "88", "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n")
	n := OpenNamespaces(proc, Open(host))
	now := time.Now()
	for _, tt := range []struct {
		namespace  uint32
		pids       []uint32
		path, want string
	}{
		{77, []uint32{9, 10}, "/host/etc/cron.d/x", "/etc/cron.d/x"}, // 9 is gone
		{77, nil, "/host/etc", "/etc"},                               // remembered
		{77, nil, "/host/etcetera", ""},
		{77, nil, "/whole", "/"}, {77, nil, "/whole/srv/x", "/srv/x"},
		{77, nil, "/data/f", "/second/kubelet/pods/x/volumes/v/f"},
		{77, nil, "/data/tmp/f", ""}, // the host has it nowhere
		{77, nil, "/etc/passwd", ""}, {77, nil, "/proc/1/mem", ""},
		{77, nil, "/covered/f", "/srv/newer/f"},
		{99, []uint32{10}, "/whole/x", ""}, // 10 is of another namespace
		{88, []uint32{11}, "/etc/passwd", "/etc/passwd"},
	} {
		got, ok := n.HostPath(tt.namespace, tt.path, now, tt.pids...)
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("%d %s: %q %v, want %q", tt.namespace, tt.path, got, ok, tt.want)
		}
	}
	// What could not be read is tried again; what was read is read anew.
	if host, ok := n.HostPath(99, "/whole/x", now.Add(again/2), 11); ok {
		t.Errorf("%q", host)
	}
	process("12", "99", "1 0 8:1 / /new rw - ext4 /dev/sda1 rw\n")
	if host, _ := n.HostPath(99, "/new/x", now.Add(again), 12); host != "/x" {
		t.Errorf("%q", host)
	}
	if err := os.WriteFile(filepath.Join(proc, "11", "mountinfo"), []byte("1 0 8:2 / / rw - ext4 /dev/sda2 rw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if host, _ := n.HostPath(88, "/x", now.Add(fresh), 11); host != "/second/x" {
		t.Errorf("%q", host)
	}
}
