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
