package bpf

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// change is one system call that changes a name or attributes, and what is to be told of it.
type change struct {
	name string
	do   func(dir string) error
	want PathEvent // lengths apart; in the texts DIR stands for the test's folder
}

// rawPath makes a system call whose path arguments are given as text; Go's own functions take the *at calls.
func rawPath(nr uintptr, args ...any) error {
	var raw [6]uintptr
	var kept []*byte
	for i, a := range args {
		switch a := a.(type) {
		case string:
			p, err := unix.BytePtrFromString(a)
			if err != nil {
				return err
			}
			kept, raw[i] = append(kept, p), uintptr(unsafe.Pointer(p))
		case int:
			raw[i] = uintptr(a)
		}
	}
	_, _, errno := unix.Syscall6(nr, raw[0], raw[1], raw[2], raw[3], raw[4], raw[5])
	runtime.KeepAlive(kept)
	if errno != 0 {
		return errno
	}
	return nil
}

func changes() []change {
	fields := func(p PathFields) PathFields {
		p.PathFlags |= PathUser
		if p.NewMode == 0 {
			p.NewMode = NotChanged
		}
		if p.NewUID == 0 {
			p.NewUID, p.NewGID = NotChanged, NotChanged
		}
		if p.Number == 0 {
			p.Number = NoNumber
		}
		return p
	}
	one := func(path string, p PathFields) PathEvent {
		e := PathEvent{PathFields: fields(p), Path: []byte(path)}
		if !strings.HasPrefix(path, "DIR") {
			e.Base = []byte("DIR")
		}
		return e
	}
	two := func(path, target string, p PathFields) PathEvent {
		e := one(path, p)
		e.TargetFlags |= PathUser
		e.Target = []byte(target)
		if !strings.HasPrefix(target, "DIR") {
			e.TargetBase = []byte("DIR")
		}
		return e
	}
	at := func(dir string, do func(fd int) error) error {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return do(fd)
	}
	// Of the open file f, which the earlier changes left with this owner and mode.
	open := func(p PathFields) PathEvent {
		p = fields(p)
		p.PathFlags = 0
		p.Mode, p.UID, p.GID = unix.S_IFREG|0o640, 7, 8
		return PathEvent{PathFields: p, Base: []byte("DIR/f")}
	}
	attribute := func(e PathEvent) PathEvent {
		e.TargetFlags, e.Target = PathUser, []byte("security.picket")
		return e
	}
	onFile := func(dir string, do func(fd int) error) error {
		f, err := os.OpenFile(dir+"/f", os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		return do(int(f.Fd()))
	}
	list := []change{
		{"mkdirat", func(dir string) error { return unix.Mkdirat(unix.AT_FDCWD, dir+"/d", 0o750) }, one("DIR/d", PathFields{NewMode: 0o750})},
		{"mkdirat again", func(dir string) error { return unix.Mkdirat(unix.AT_FDCWD, dir+"/d", 0o750) }, one("DIR/d", PathFields{NewMode: 0o750, Result: -int32(unix.EEXIST)})},
		{"renameat relative", func(string) error { return unix.Renameat(unix.AT_FDCWD, "f", unix.AT_FDCWD, "d/../g") }, two("f", "d/../g", PathFields{})},
		{"renameat2 in a folder", func(dir string) error {
			return at(dir, func(fd int) error { return unix.Renameat2(fd, "g", unix.AT_FDCWD, dir+"/f", unix.RENAME_NOREPLACE) })
		}, two("g", "DIR/f", PathFields{})},
		{"linkat", func(dir string) error { return unix.Linkat(unix.AT_FDCWD, dir+"/f", unix.AT_FDCWD, "hard", 0) }, two("hard", "DIR/f", PathFields{})},
		{"symlinkat", func(dir string) error { return unix.Symlinkat("../etc/shadow", unix.AT_FDCWD, dir+"/soft") },
			PathEvent{PathFields: func() PathFields { p := fields(PathFields{}); p.TargetFlags = PathUser; return p }(), Path: []byte("DIR/soft"), Target: []byte("../etc/shadow")}},
		{"fchmodat", func(dir string) error { return unix.Fchmodat(unix.AT_FDCWD, dir+"/f", 0o4755, 0) }, one("DIR/f", PathFields{NewMode: 0o4755})},
		{"fchmod", func(dir string) error {
			f, err := os.Open(dir + "/f")
			if err != nil {
				return err
			}
			defer f.Close()
			return unix.Fchmod(int(f.Fd()), 0o640)
		}, PathEvent{PathFields: PathFields{Mode: unix.S_IFREG | 0o640, NewMode: 0o640, NewUID: NotChanged, NewGID: NotChanged, Number: NoNumber}, Base: []byte("DIR/f")}},
		{"fchownat", func(dir string) error { return unix.Fchownat(unix.AT_FDCWD, "f", 1001, 1002, 0) }, one("f", PathFields{NewUID: 1001, NewGID: 1002})},
		{"fchown", func(dir string) error {
			f, err := os.Open(dir + "/f")
			if err != nil {
				return err
			}
			defer f.Close()
			return unix.Fchown(int(f.Fd()), 7, 8)
		}, PathEvent{PathFields: PathFields{Mode: unix.S_IFREG | 0o640, UID: 7, GID: 8, NewMode: NotChanged, NewUID: 7, NewGID: 8, Number: NoNumber}, Base: []byte("DIR/f")}},
		{"mknodat", func(dir string) error { return unix.Mknodat(unix.AT_FDCWD, "null", unix.S_IFCHR|0o600, 1<<8|3) }, one("null", PathFields{NewMode: unix.S_IFCHR | 0o600, Number: 1<<8 | 3})},
		{"truncate", func(dir string) error { return unix.Truncate(dir+"/f", 5) }, one("DIR/f", PathFields{Number: 5})},
		{"ftruncate", func(dir string) error { return onFile(dir, func(fd int) error { return unix.Ftruncate(fd, 7) }) }, open(PathFields{Number: 7})},
		{"ftruncate of memory", func(dir string) error {
			fd, err := unix.MemfdCreate("m", 0)
			if err != nil {
				return err
			}
			if err := unix.Ftruncate(fd, 8192); err != nil {
				return err
			}
			return onFile(dir, func(fd int) error { return unix.Ftruncate(fd, 9) }) // the one that is told
		}, open(PathFields{Number: 9})},
		{"utimensat", func(dir string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/f", []unix.Timespec{{Sec: 5}, {Sec: 1_000_000_000, Nsec: 7}}, 0)
		}, one("DIR/f", PathFields{Number: 1_000_000_000_000_000_007})},
		{"utimensat now", func(dir string) error { return rawPath(unix.SYS_UTIMENSAT, unix.AT_FDCWD, dir+"/f", 0, 0) }, one("DIR/f", PathFields{})},
		{"utimensat of a descriptor", func(dir string) error {
			return onFile(dir, func(fd int) error { return rawPath(unix.SYS_UTIMENSAT, fd, 0, 0, 0) })
		}, open(PathFields{})},
		{"setxattr", func(dir string) error { return unix.Setxattr(dir+"/f", "security.picket", []byte("1"), 0) }, attribute(one("DIR/f", PathFields{}))},
		{"fsetxattr", func(dir string) error {
			return onFile(dir, func(fd int) error { return unix.Fsetxattr(fd, "security.picket", []byte("2"), 0) })
		}, attribute(open(PathFields{}))},
		{"lremovexattr", func(dir string) error { return unix.Lremovexattr("f", "security.picket") }, attribute(one("f", PathFields{}))},
		{"unlinkat", func(dir string) error { return unix.Unlinkat(unix.AT_FDCWD, dir+"/hard", 0) }, one("DIR/hard", PathFields{})},
		{"unlinkat that fails", func(dir string) error { return unix.Unlinkat(unix.AT_FDCWD, dir+"/none", 0) }, one("DIR/none", PathFields{Result: -int32(unix.ENOENT)})},
		{"unlinkat of a folder", func(dir string) error { return unix.Unlinkat(unix.AT_FDCWD, dir+"/d", unix.AT_REMOVEDIR) }, one("DIR/d", PathFields{})},
	}
	return append(list, oldChanges(one, two)...)
}

func init() {
	// change N DIR: the Nth change, in DIR. It fails only if the call fails unexpectedly.
	helpers["change"] = func(args []string) error {
		var n int
		if _, err := fmt.Sscan(args[0], &n); err != nil {
			return err
		}
		if err := os.Chdir(args[1]); err != nil {
			return err
		}
		c := changes()[n]
		if err := c.do(args[1]); (err != nil) != (c.want.Result < 0) {
			return fmt.Errorf("%s: %v", c.name, err)
		}
		return nil
	}
}

// action is what a change's name begins with tells of.
func (c change) action() Action {
	switch name := strings.TrimLeft(c.name, "fl"); {
	case strings.HasPrefix(c.name, "link"):
		return ActionLink
	case strings.HasPrefix(name, "unlinkat of a folder"), strings.HasPrefix(name, "rmdir"):
		return ActionRmdir
	case strings.HasPrefix(name, "unlink"):
		return ActionUnlink
	case strings.HasPrefix(name, "mkdir"):
		return ActionMkdir
	case strings.HasPrefix(name, "rename"):
		return ActionRename
	case strings.HasPrefix(name, "symlink"):
		return ActionSymlink
	case strings.HasPrefix(name, "chmod"):
		return ActionChmod
	case strings.HasPrefix(name, "mknod"):
		return ActionMknod
	case strings.HasPrefix(name, "truncate"):
		return ActionTruncate
	case strings.HasPrefix(name, "utime"):
		return ActionUtimes
	case strings.HasPrefix(name, "setxattr"):
		return ActionSetxattr
	case strings.HasPrefix(name, "removexattr"):
		return ActionRemovexattr
	default:
		return ActionChown
	}
}

// TestChanges makes one call of each kind and looks at the one event of it.
func TestChanges(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	st := inode(t, filepath.Join(dir, "f"))
	for n, change := range changes() {
		t.Run(change.name, func(t *testing.T) {
			pid := run(t, helper(t, "change", fmt.Sprint(n), dir))
			ev := c.wait(t, change.name, by(pid, change.action()))
			got, want := ev.Path, change.want
			if hooked(c.k, change.action()) && want.Result == 0 && want.PathFlags&PathUser != 0 {
				want = atHook(change)
			}
			full := func(b []byte) string { return strings.ReplaceAll(string(b), "DIR", dir) }
			for _, s := range []struct {
				what string
				got  []byte
				want string
			}{{"base", got.Base, full(want.Base)}, {"path", got.Path, full(want.Path)}, {"target base", got.TargetBase, full(want.TargetBase)}, {"target", got.Target, full(want.Target)}} {
				if string(s.got) != s.want {
					t.Errorf("%s is %q, want %q", s.what, s.got, s.want)
				}
			}
			f := got.PathFields
			if want.Mode != 0 && (f.Ino != st.Ino || f.Dev != uint32(st.Dev)) {
				t.Errorf("inode %d on %d, want %d on %d", f.Ino, f.Dev, st.Ino, st.Dev)
			}
			if name, _, _ := strings.Cut(change.name, " "); ev.Syscall() != name {
				t.Errorf("the call is %s, want %s", ev.Syscall(), name)
			}
			f.Call = 0
			f.Ino, f.Dev, f.BaseLen, f.PathLen, f.TargetBaseLen, f.TargetLen = 0, 0, 0, 0, 0, 0
			if want.Mode != 0 && want.UID == 0 {
				f.UID, f.GID = 0, 0
			}
			if f != want.PathFields {
				t.Errorf("fields %+v, want %+v", f, want.PathFields)
			}
			if all := c.all(func(ev *Event) bool { return ev.Header.TGID == pid && ev.Header.Action == change.action() }); len(all) != 1 {
				t.Errorf("%d events", len(all))
			}
		})
	}
}

// atHook is what is told of a change where the kernel's own paths are.
func atHook(c change) PathEvent {
	resolve := func(base, path []byte) []byte {
		if !strings.HasPrefix(string(path), "DIR") {
			path = append(append(base, '/'), path...)
		}
		return []byte(filepath.Clean(string(path)))
	}
	want := c.want
	want.PathFlags, want.TargetFlags = 0, 0
	want.Base, want.Path = resolve(want.Base, want.Path), nil
	if a := c.action(); a == ActionRename || a == ActionLink {
		want.TargetBase, want.Target = resolve(want.TargetBase, want.Target), nil
	}
	return want
}

// TestChangeOfUnreadableMemory: a path that is not there is an event without it, and counted.
func TestChangeOfUnreadableMemory(t *testing.T) {
	c := sensor(t)
	pid := run(t, helper(t, "nopath"))
	ev := c.wait(t, "unlink", by(pid, ActionUnlink))
	if ev.Path.PathFlags != PathUser|PathFault || len(ev.Path.Path) != 0 || ev.Path.Result != -int32(unix.EFAULT) {
		t.Errorf("%+v, path %q", ev.Path.PathFields, ev.Path.Path)
	}
	counters, err := c.k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	n := uint64(0)
	for _, k := range counters {
		n += k.Errors[ErrorPath]
	}
	if n == 0 {
		t.Error("not counted")
	}
}

func init() {
	helpers["nopath"] = func([]string) error {
		fdcwd := unix.AT_FDCWD
		if _, _, errno := unix.Syscall(unix.SYS_UNLINKAT, uintptr(fdcwd), 1, 0); errno != unix.EFAULT {
			return errno
		}
		return nil
	}
}
