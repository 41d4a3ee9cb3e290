package bpf

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// openCall is one open, done by a helper: Go's own functions would add flags.
type openCall struct {
	Call  string // open, openat, openat2, creat, relative (openat in the directory of Path)
	Path  string
	Flags int
	Chdir string
	Root  string // chroot before
}

func (o openCall) do() (int, error) {
	if o.Root != "" {
		if err := syscall.Chroot(o.Root); err != nil {
			return 0, err
		}
	}
	if o.Chdir != "" {
		if err := syscall.Chdir(o.Chdir); err != nil {
			return 0, err
		}
	}
	path, err := unix.BytePtrFromString(o.Path)
	if err != nil {
		return 0, err
	}
	switch o.Call {
	case "open":
		return rawOpen(path, o.Flags)
	case "creat":
		return rawCreat(path)
	case "openat":
		return unix.Openat(unix.AT_FDCWD, o.Path, o.Flags, 0o640)
	case "openat2":
		how := unix.OpenHow{Flags: uint64(o.Flags)}
		if o.Flags&(unix.O_CREAT|unix.O_TMPFILE) != 0 {
			how.Mode = 0o640
		}
		return unix.Openat2(unix.AT_FDCWD, o.Path, &how)
	case "relative":
		dir, err := unix.Open(filepath.Dir(o.Path), unix.O_PATH, 0)
		if err != nil {
			return 0, err
		}
		return unix.Openat(dir, filepath.Base(o.Path), o.Flags, 0o640)
	}
	return 0, fmt.Errorf("unknown call %s", o.Call)
}

// opened is what a helper found of its open file.
type opened struct {
	FD   int
	Stat syscall.Stat_t
	Err  string
}

func init() {
	helpers["open"] = func(args []string) error {
		var o openCall
		if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
			return err
		}
		var res opened
		fd, err := o.do()
		if err != nil {
			res.Err = err.Error()
		} else {
			res.FD = fd
			if err := syscall.Fstat(fd, &res.Stat); err != nil {
				return err
			}
		}
		return json.NewEncoder(os.Stdout).Encode(res)
	}
}

func doOpen(t *testing.T, o openCall) (uint32, opened) {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var res opened
	pid := output(t, helper(t, "open", string(b)), &res)
	return pid, res
}

func TestOpen(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	file := func(name string) string {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	there := file("there")
	link := filepath.Join(dir, "link")
	if err := os.Symlink("there", link); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	secret, sibling, deep := file("watched/secret"), file("watchedsibling"), file("watched/a/b/c/deep")
	single := file("single")
	if err := c.k.SetWatchedPaths([]string{filepath.Join(dir, "watched"), single + "/"}); err != nil {
		t.Fatal(err)
	}

	const wr, rd, cr = OpenWrite, OpenRead, OpenCreated
	for _, tt := range []struct {
		name   string
		open   openCall
		path   string // of the event; "": there is none
		access uint32
		flags  uint64 // besides open.Flags, where the call adds some
		skip   bool
	}{
		{name: "write", open: openCall{Call: "openat", Path: there, Flags: unix.O_WRONLY}, path: there, access: wr},
		{name: "read and write", open: openCall{Call: "openat", Path: there, Flags: unix.O_RDWR | unix.O_APPEND | unix.O_CLOEXEC}, path: there, access: rd | wr},
		{name: "truncate", open: openCall{Call: "openat", Path: there, Flags: unix.O_WRONLY | unix.O_TRUNC}, path: there, access: wr},
		{name: "symbolic link", open: openCall{Call: "openat", Path: link, Flags: unix.O_WRONLY}, path: there, access: wr},
		{name: "relative", open: openCall{Call: "openat", Path: "there", Chdir: dir, Flags: unix.O_WRONLY}, path: there, access: wr},
		{name: "in a directory", open: openCall{Call: "relative", Path: there, Flags: unix.O_WRONLY}, path: there, access: wr},
		{name: "openat2", open: openCall{Call: "openat2", Path: there, Flags: unix.O_WRONLY | unix.O_TRUNC}, path: there, access: wr},
		{name: "create", open: openCall{Call: "openat", Path: dir + "/new1", Flags: unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL}, path: dir + "/new1", access: wr | cr},
		{name: "create what is there", open: openCall{Call: "openat", Path: there, Flags: unix.O_WRONLY | unix.O_CREAT}, path: there, access: wr},
		{name: "create for reading", open: openCall{Call: "openat2", Path: dir + "/new2", Flags: unix.O_RDONLY | unix.O_CREAT}, path: dir + "/new2", access: rd | cr},
		{name: "open", open: openCall{Call: "open", Path: there, Flags: unix.O_RDWR}, path: there, access: rd | wr, skip: runtime.GOARCH == "arm64"},
		{name: "creat", open: openCall{Call: "creat", Path: dir + "/new3"}, path: dir + "/new3", access: wr | cr, flags: unix.O_WRONLY | unix.O_CREAT | unix.O_TRUNC, skip: runtime.GOARCH == "arm64"},
		{name: "/proc", open: openCall{Call: "openat", Path: "/proc/sys/kernel/hostname", Flags: unix.O_WRONLY}, path: "/proc/sys/kernel/hostname", access: wr},
		{name: "chroot", open: openCall{Call: "openat", Path: "/there", Root: dir, Flags: unix.O_WRONLY}, path: "/there", access: wr},

		{name: "read", open: openCall{Call: "openat", Path: there, Flags: unix.O_RDONLY}},
		{name: "no access", open: openCall{Call: "openat", Path: secret, Flags: unix.O_PATH}},
		{name: "failure", open: openCall{Call: "openat", Path: dir, Flags: unix.O_WRONLY}},
		{name: "read watched", open: openCall{Call: "openat", Path: secret, Flags: unix.O_RDONLY}, path: secret, access: rd | OpenWatched},
		{name: "read watched, deep", open: openCall{Call: "openat2", Path: deep, Flags: unix.O_RDONLY}, path: deep, access: rd | OpenWatched},
		{name: "write watched", open: openCall{Call: "openat", Path: secret, Flags: unix.O_RDWR}, path: secret, access: rd | wr | OpenWatched},
		{name: "list watched", open: openCall{Call: "openat", Path: dir + "/watched", Flags: unix.O_RDONLY | unix.O_DIRECTORY}, path: dir + "/watched", access: rd | OpenWatched},
		{name: "read watched file", open: openCall{Call: "openat", Path: single, Flags: unix.O_RDONLY}, path: single, access: rd | OpenWatched},
		{name: "read what only begins like it", open: openCall{Call: "openat", Path: sibling, Flags: unix.O_RDONLY}},
		{name: "read the directory above", open: openCall{Call: "openat", Path: dir, Flags: unix.O_RDONLY}},

		{name: "/dev/null", open: openCall{Call: "openat", Path: "/dev/null", Flags: unix.O_RDWR}},
		{name: "/dev/zero", open: openCall{Call: "openat", Path: "/dev/zero", Flags: unix.O_WRONLY}},
		{name: "terminal", open: openCall{Call: "openat", Path: "/dev/ptmx", Flags: unix.O_RDWR}},
		{name: "pipe", open: openCall{Call: "openat", Path: dir + "/fifo", Flags: unix.O_RDWR}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.skip {
				return // no such call on this architecture
			}
			pid, res := doOpen(t, tt.open)
			if (res.Err != "") != (tt.name == "failure") {
				t.Fatalf("open: %s", res.Err)
			}
			c.wait(t, "exit", by(pid, ActionExit))
			if tt.path == "" {
				c.settle(t)
				if evs := c.all(by(pid, ActionOpen)); len(evs) > 0 {
					t.Errorf("an event: %+v, %s", evs[0].Open.OpenFields, evs[0].Open.Path)
				}
				return
			}
			ev := c.wait(t, "open", by(pid, ActionOpen))
			o, st := &ev.Open, &res.Stat
			if call := map[string]string{"relative": "openat"}[tt.open.Call]; ev.Syscall() != cmp.Or(call, tt.open.Call) {
				t.Errorf("the call is %s, want %s", ev.Syscall(), tt.open.Call)
			}
			if string(o.Path) != tt.path || o.PathFlags != 0 {
				t.Errorf("path %q, flags %#x, want %q", o.Path, o.PathFlags, tt.path)
			}
			if o.Access != tt.access {
				t.Errorf("access %#x, want %#x", o.Access, tt.access)
			}
			if want := uint64(tt.open.Flags) | tt.flags; o.Flags&^unix.O_LARGEFILE != want {
				t.Errorf("flags %#x, want %#x", o.Flags, want)
			}
			if o.FileFlags&unix.O_ACCMODE != uint32(o.Flags&unix.O_ACCMODE) {
				t.Errorf("file flags %#x, flags %#x", o.FileFlags, o.Flags)
			}
			if o.Ino != st.Ino || uint64(o.Dev) != st.Dev || o.Mode != st.Mode || o.UID != st.Uid || o.GID != st.Gid || o.Nlink != uint32(st.Nlink) || int(o.FD) != res.FD {
				t.Errorf("%+v does not fit %+v", o.OpenFields, *st)
			}
		})
	}
	c.settle(t)
	if n := checkCounters(t, c.k)[ClassFile].Filtered; n < 4 {
		t.Errorf("%d opens filtered, want the 4 of this test at least", n)
	}

	t.Run("no longer watched", func(t *testing.T) {
		if err := c.k.SetWatchedPaths([]string{single}); err != nil {
			t.Fatal(err)
		}
		pid, _ := doOpen(t, openCall{Call: "openat", Path: secret, Flags: unix.O_RDONLY})
		pid2, _ := doOpen(t, openCall{Call: "openat", Path: single, Flags: unix.O_RDONLY})
		c.wait(t, "open", by(pid2, ActionOpen))
		c.settle(t)
		if evs := c.all(by(pid, ActionOpen)); len(evs) > 0 {
			t.Errorf("an event: %+v, %s", evs[0].Open.OpenFields, evs[0].Open.Path)
		}
	})

	t.Run("all watched", func(t *testing.T) {
		if err := c.k.SetWatchedPaths([]string{"/"}); err != nil {
			t.Fatal(err)
		}
		pid, _ := doOpen(t, openCall{Call: "openat", Path: sibling, Flags: unix.O_RDONLY})
		c.wait(t, "open", func(ev *Event) bool { return by(pid, ActionOpen)(ev) && string(ev.Open.Path) == sibling })
		if err := c.k.SetWatchedPaths(nil); err != nil {
			t.Fatal(err)
		}
		pid, _ = doOpen(t, openCall{Call: "openat", Path: sibling, Flags: unix.O_RDONLY})
		c.settle(t)
		if evs := c.all(by(pid, ActionOpen)); len(evs) > 0 {
			t.Errorf("an event: %+v, %s", evs[0].Open.OpenFields, evs[0].Open.Path)
		}
	})
}

func init() {
	// unnamed DIR: a file that never had a name, and one that has lost it.
	helpers["unnamed"] = func(args []string) error {
		if _, err := unix.Open(args[0], unix.O_TMPFILE|unix.O_RDWR, 0o600); err != nil {
			return err
		}
		fd, err := unix.Open(args[0]+"/lost", unix.O_CREAT|unix.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		if err := unix.Unlink(args[0] + "/lost"); err != nil {
			return err
		}
		_, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_WRONLY, 0)
		return err
	}
}

func TestOpenUnnamed(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	pid := run(t, helper(t, "unnamed", dir))
	c.wait(t, "exit", by(pid, ActionExit))
	c.settle(t)
	evs := c.all(by(pid, ActionOpen))
	if len(evs) != 3 {
		t.Fatalf("%d opens, want 3", len(evs))
	}
	if o := &evs[0].Open; !strings.HasPrefix(string(o.Path), dir+"/#") || o.PathFlags != PathDeleted || o.Nlink != 0 {
		t.Errorf("file without a name: %q, flags %#x, %d links", o.Path, o.PathFlags, o.Nlink)
	}
	if o := &evs[1].Open; string(o.Path) != dir+"/lost" || o.PathFlags != 0 || o.Access != OpenRead|OpenWrite|OpenCreated {
		t.Errorf("new file: %q, flags %#x, access %#x", o.Path, o.PathFlags, o.Access)
	}
	if o := &evs[2].Open; string(o.Path) != dir+"/lost" || o.PathFlags != PathDeleted || o.Access != OpenWrite || o.Ino != evs[1].Open.Ino {
		t.Errorf("unlinked file: %q, flags %#x, access %#x", o.Path, o.PathFlags, o.Access)
	}
}

func init() {
	// mountns DIR: writes a file through a bind mount that only this process has.
	helpers["mountns"] = func(args []string) error {
		dir := args[0]
		for _, d := range []string{"/source", "/target"} {
			if err := os.Mkdir(dir+d, 0o700); err != nil {
				return err
			}
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount(dir+"/source", dir+"/target", "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return os.WriteFile(dir+"/target/file", nil, 0o600)
	}
}

func TestOpenMountNamespace(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	cmd := helper(t, "mountns", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	ev := c.wait(t, "open", by(run(t, cmd), ActionOpen))
	if got := string(ev.Open.Path); got != dir+"/target/file" || ev.Open.PathFlags != 0 {
		t.Errorf("path %q, flags %#x", got, ev.Open.PathFlags)
	}
	if got, want := ev.Open.Ino, inode(t, dir+"/source/file").Ino; got != want {
		t.Errorf("inode %d, want %d", got, want)
	}
}

// TestSelf: what the sensor opens itself is no event, what its children open is.
func TestSelf(t *testing.T) {
	c := sensor(t)
	path := filepath.Join(t.TempDir(), "own")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.settle(t)
	if evs := c.all(by(uint32(os.Getpid()), ActionOpen)); len(evs) > 0 {
		t.Errorf("an event for %s", evs[0].Open.Path)
	}
}

func TestWatchedPathErrors(t *testing.T) {
	k := mustLoad(t, options(t))
	for _, tt := range []struct{ path, err string }{
		{"etc", `watched path "etc" is not absolute`},
		{"", `watched path "" is not absolute`},
		{"/a\x00b", `watched path "/a\x00b" has a NUL byte`},
		{"/" + strings.Repeat("x", 255), `at most 255 can be watched`},
	} {
		if err := k.SetWatchedPaths([]string{tt.path}); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: %v, want …%s", tt.path, err, tt.err)
		}
	}
	paths := make([]string, MaxWatches+1)
	for i := range paths {
		paths[i] = fmt.Sprintf("/watched/%d", i)
	}
	if err := k.SetWatchedPaths(paths); err == nil {
		t.Error("more than MaxWatches paths are accepted")
	}
	if err := k.SetWatchedPaths(paths[1:]); err != nil {
		t.Errorf("MaxWatches paths: %v", err)
	}
	// All others instead: there is no room for both at once.
	for i := range paths {
		paths[i] = fmt.Sprintf("/others/%d", i)
	}
	if err := k.SetWatchedPaths(append(paths[2:], "/"+strings.Repeat("x", 254))); err != nil {
		t.Errorf("MaxWatches other paths: %v", err)
	}
}

func init() {
	// elsewhere DIR: reads and writes a file through a bind mount that only this process has.
	helpers["elsewhere"] = func(args []string) error {
		dir := args[0]
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount(dir+"/source", dir+"/target", "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if _, err := os.ReadFile(dir + "/target/secret"); err != nil {
			return err
		}
		return os.WriteFile(dir+"/target/written", nil, 0o600)
	}
}

// TestOpenElsewhere: what a process sees by another path than the host does has the path in its own file system, by
// which it is watched too.
func TestOpenElsewhere(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	for _, d := range []string{"/source", "/target"} {
		if err := os.Mkdir(dir+d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/source/secret", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	own := inode(t, "/proc/self/ns/mnt").Ino
	elsewhere := func() uint32 {
		cmd := helper(t, "elsewhere", dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		return run(t, cmd)
	}
	opens := func(pid uint32) map[string]string {
		c.settle(t)
		got := map[string]string{}
		for _, ev := range c.all(by(pid, ActionOpen)) {
			if strings.HasPrefix(string(ev.Open.Path), dir) {
				got[filepath.Base(string(ev.Open.Path))] = string(ev.Open.Source)
			}
		}
		return got
	}
	if got := opens(elsewhere()); len(got) != 1 || got["written"] != "" {
		t.Errorf("before the host is known: %q", got)
	}
	dev := inode(t, dir).Dev
	if err := c.k.SetHost(uint32(own), dev); err != nil {
		t.Fatal(err)
	}
	source := opens(elsewhere())["written"]
	if !strings.HasSuffix(source, "/source/written") || !strings.HasSuffix(dir+"/source/written", source) {
		t.Fatalf("the path in its own file system is %q", source)
	}
	if err := c.k.SetWatchedPaths([]string{filepath.Dir(source) + "/secret"}); err != nil {
		t.Fatal(err)
	}
	if got := opens(elsewhere()); got["secret"] != filepath.Dir(source)+"/secret" {
		t.Errorf("watched by the host's path: %q", got)
	}
	if err := c.k.SetHost(uint32(own), 0); err != nil {
		t.Fatal(err)
	}
	if dir == filepath.Dir(filepath.Dir(source)) {
		return // the path is the same in the file system and in the tree: it is watched as it stands
	}
	if got := opens(elsewhere()); got["secret"] != "" {
		t.Errorf("watched on another file system: %q", got)
	}
}

// TestOpenHardLink: a watched file that is opened by another of its names.
func TestOpenHardLink(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	for _, d := range []string{"/secret", "/other"} {
		if err := os.Mkdir(dir+d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"/secret/key", "/other/file"} {
		if err := errors.Join(os.WriteFile(dir+f, nil, 0o600), os.Link(dir+f, dir+f+".link"), os.Rename(dir+f+".link", dir+"/"+filepath.Base(f))); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.k.SetWatchedPaths([]string{dir + "/secret"}); err != nil {
		t.Fatal(err)
	}
	pid := run(t, exec.Command("cat", dir+"/key", dir+"/file", dir+"/secret/key"))
	c.settle(t)
	got := map[string]string{}
	for _, ev := range c.all(by(pid, ActionOpen)) {
		got[strings.TrimPrefix(string(ev.Open.Path), dir)] = strings.TrimPrefix(string(ev.Open.Link), dir)
	}
	if link, ok := got["/secret/key"]; !ok || link != "" {
		t.Errorf("by its own name: %q", got)
	}
	if got["/key"] != "/secret/key" {
		t.Errorf("by another name: %q", got)
	}
	if _, ok := got["/file"]; ok {
		t.Error("a file that is not watched is told for its links")
	}
}

// TestBeginnings: the filter on a path's first bytes passes every path that a watched one stands for.
func TestBeginnings(t *testing.T) {
	begin := func(watched ...string) (b beginnings) {
		for _, w := range watched {
			keys, err := watchKeys(w)
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range keys {
				b.add(k)
			}
		}
		return b
	}
	// As may_be_watched does it; a walked path is followed by NULs.
	passes := func(b beginnings, path string) bool {
		p := append([]byte(path), make([]byte, 8)...)
		four := binary.LittleEndian.Uint32(p) * watchHash >> 27
		eight := binary.LittleEndian.Uint64(p) * watchHash >> 53
		return b.watching>>four&1 != 0 && (b.short>>four&1 != 0 || b.eight[eight>>6]>>(eight&63)&1 != 0)
	}
	for _, watched := range []string{"/", "/a", "/ab", "/abc", "/abcd", "/abcde", "/abcdef", "/abcdefg", "/etc/ssh", "/etc/shadow"} {
		for _, path := range []string{watched, strings.TrimSuffix(watched, "/") + "/x", strings.TrimSuffix(watched, "/") + "/long/name"} {
			if !passes(begin(watched), path) {
				t.Errorf("watching %s: opens of %s are not looked at", watched, path)
			}
		}
	}
	b := begin("/etc/shadow", "/etc/sudoers", "/etc/kubernetes", "/var/lib/kubelet/pki")
	for _, path := range []string{"/usr/lib/x", "/tmp/x", "/proc/1/stat", "/opt/x", "/etc/hostname", "/etc/ld.so.cache", "/var/log/x", "/etc/x"} {
		if passes(b, path) {
			t.Errorf("opens of %s are looked at", path)
		}
	}
	if b := begin(); b != (beginnings{}) {
		t.Errorf("nothing watched: %+v", b)
	}
}
