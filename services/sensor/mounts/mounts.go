// Package mounts finds where the host has a file that a container sees
// elsewhere, by the file system it is on.
package mounts

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// fresh is how long the table of mounts is used before it is read again.
const fresh = 10 * time.Second

// Table is the host's mount table. It is safe for concurrent use. Mounts that
// are made or undone show after at most 10 seconds.
type Table struct {
	file string

	mu     sync.Mutex
	read   time.Time
	mounts map[uint32][]mount // by device
}

// mount is a part of a file system, and where it is.
type mount struct{ root, point string }

// Open returns the table in a mountinfo file (proc_pid_mountinfo(5)).
func Open(file string) *Table { return &Table{file: file} }

// Path returns where the host has the file that is at path in the file system of
// a device (as stat(2) gives it, in 32 bits); ok is false where it has it
// nowhere. Of several places it is that of the largest part, and of equal ones
// the last to be mounted.
func (t *Table) Path(dev uint32, path string, now time.Time) (host string, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.read) > fresh || t.read.IsZero() {
		t.read = now
		if b, err := os.ReadFile(t.file); err == nil {
			t.mounts = parse(string(b))
		}
	}
	var best *mount
	for i, m := range t.mounts[dev] {
		if (best == nil || len(m.root) <= len(best.root)) && under(path, m.root) {
			best = &t.mounts[dev][i]
		}
	}
	if best == nil {
		return "", false
	}
	host = strings.TrimSuffix(best.point, "/") + strings.TrimPrefix(path, strings.TrimSuffix(best.root, "/"))
	if host == "" {
		host = "/"
	}
	return host, true
}

// Root returns the device of the root directory's file system, and whether the
// whole of it is mounted there.
func (t *Table) Root() (dev uint64, whole bool) {
	b, err := os.ReadFile(t.file)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if m, major, minor, _, ok := parseLine(line); ok && m.point == "/" {
			dev, whole = unix.Mkdev(major, minor), m.root == "/" // the last one is on top
		}
	}
	return dev, whole
}

func under(path, root string) bool {
	return root == "/" || path == root || strings.HasPrefix(path, root+"/")
}

func parse(mountinfo string) map[uint32][]mount {
	mounts := map[uint32][]mount{}
	for line := range strings.Lines(mountinfo) {
		if m, major, minor, _, ok := parseLine(line); ok {
			dev := encode(major, minor)
			mounts[dev] = append(mounts[dev], m)
		}
	}
	return mounts
}

// encode is the kernel's new_encode_dev (linux/kdev_t.h).
func encode(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

func parseLine(line string) (m mount, major, minor uint32, fstype string, ok bool) {
	// id parent major:minor root mountpoint options [tag]… - type …
	f := strings.Fields(line)
	if len(f) < 5 {
		return m, 0, 0, "", false
	}
	if i := slices.Index(f, "-"); i > 0 && i+1 < len(f) {
		fstype = f[i+1]
	}
	a, b, _ := strings.Cut(f[2], ":")
	x, err1 := strconv.ParseUint(a, 10, 12)
	y, err2 := strconv.ParseUint(b, 10, 20)
	if err1 != nil || err2 != nil {
		return m, 0, 0, "", false
	}
	return mount{unescape(f[3]), unescape(f[4])}, uint32(x), uint32(y), fstype, true
}

// unescape reads the octal form that blanks, tabs, newlines and backslashes have.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
