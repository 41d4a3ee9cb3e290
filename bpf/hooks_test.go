package bpf

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// hookOf has the kernel's function at which the paths of an action are taken.
var hookOf = map[Action]string{
	ActionChmod: "security_path_chmod", ActionChown: "security_path_chown", ActionLink: "security_path_link",
	ActionMkdir: "security_path_mkdir", ActionMknod: "security_path_mknod", ActionRename: "security_path_rename",
	ActionRmdir: "security_path_rmdir", ActionSymlink: "security_path_symlink", ActionTruncate: "security_path_truncate",
	ActionUnlink: "security_path_unlink", ActionUtimes: "vfs_utimes",
}

// hooked is whether the paths of an action are taken at a hook on this kernel.
func hooked(k *Kernel, a Action) bool { return slices.Contains(k.Hooks(), hookOf[a]) }

// needHooks skips the test where the kernel lets nobody attach to its functions; it fails where it does, and the sensor
// did not.
func needHooks(t *testing.T, k *Kernel) {
	t.Helper()
	if len(k.Hooks()) > 0 {
		return
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFEntry, AttachTo: "security_path_unlink", License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	if err == nil {
		defer p.Close()
		var l link.Link
		if l, err = link.AttachTracing(link.TracingOptions{Program: p}); err == nil {
			l.Close()
			t.Fatal("a program can be attached to a function of this kernel, and the sensor attached none")
		}
	}
	t.Skipf("SKIPPED (needs a kernel that lets BPF programs attach to its functions; this one says: %v): paths are the caller's text here", err)
}

// TestHooksOfKernel: every hook is in use on a kernel that has any. Debian's have them all.
func TestHooksOfKernel(t *testing.T) {
	k := mustLoad(t, options(t))
	needHooks(t, k)
	want := []string{"security_move_mount", "security_sb_mount", "security_sb_pivotroot", "security_sb_umount", "commit_creds", "io_linkat", "io_mkdirat", "io_renameat", "io_symlinkat", "io_unlinkat"}
	for _, f := range hookOf {
		want = append(want, f)
	}
	slices.Sort(want)
	if got := k.Hooks(); !slices.Equal(got, want) {
		t.Errorf("hooks %q, want %q", got, want)
	}
}

// swapped is a text in memory that changes while the kernel reads it: its beginning is on one page, its end on
// another, which is not there until the kernel asks for it. By then the kernel has copied the beginning.
type swapped struct {
	uffd int
	mem  []byte // two pages
	at   int    // where the text begins
}

const swapPage = 4096

// swap makes one whose first appearance is text and whose byte i is by once the kernel is past it. i is at least 16
// bytes before the text's middle, so that the kernel does not read it again.
func swap(text string, i int, by byte) (*swapped, error) {
	s := &swapped{at: swapPage - (i + 17)}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		return nil, fmt.Errorf("userfaultfd: %w", errno)
	}
	s.uffd = int(fd)
	var err error
	if s.mem, err = unix.Mmap(-1, 0, 2*swapPage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE); err != nil {
		return nil, err
	}
	second := make([]byte, swapPage)
	n := copy(s.mem[s.at:swapPage], text)
	copy(second, text[n:])
	begin := uint64(uintptr(unsafe.Pointer(&s.mem[0]))) + swapPage
	api := [3]uint64{0xaa}                                  // struct uffdio_api
	register := [4]uint64{begin, swapPage, 1 /* MISSING */} // struct uffdio_register
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, 0xc018aa3f, uintptr(unsafe.Pointer(&api))); errno != 0 {
		return nil, fmt.Errorf("UFFDIO_API: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, 0xc020aa00, uintptr(unsafe.Pointer(&register))); errno != 0 {
		return nil, fmt.Errorf("UFFDIO_REGISTER: %w", errno)
	}
	go func() { // until the kernel asks
		var msg [32]byte
		if n, err := unix.Read(s.uffd, msg[:]); err != nil || n != len(msg) {
			panic(fmt.Sprint("userfaultfd: ", n, " ", err))
		}
		s.mem[s.at+i] = by
		page := [5]uint64{begin, uint64(uintptr(unsafe.Pointer(&second[0]))), swapPage} // struct uffdio_copy
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, 0xc028aa03, uintptr(unsafe.Pointer(&page))); errno != 0 {
			panic("UFFDIO_COPY: " + errno.Error())
		}
	}()
	return s, nil
}

func (s *swapped) close() {
	unix.Close(s.uffd)
	_ = unix.Munmap(s.mem)
}

// swappedCall is a call on the file DIR/A… of which another thread makes DIR/B… while it runs.
type swappedCall struct {
	action Action
	before string // what A… is: "file", "folder" or nothing
	nr     uintptr
	args   []any // "PATH" is the text that changes; DIR stands for the folder
	target string
}

const fdcwd = unix.AT_FDCWD

var swappedCalls = []swappedCall{
	{ActionUnlink, "file", unix.SYS_UNLINKAT, []any{fdcwd, "PATH", 0}, ""},
	{ActionRmdir, "folder", unix.SYS_UNLINKAT, []any{fdcwd, "PATH", unix.AT_REMOVEDIR}, ""},
	{ActionMkdir, "", unix.SYS_MKDIRAT, []any{fdcwd, "PATH", 0o700}, ""},
	{ActionMknod, "", unix.SYS_MKNODAT, []any{fdcwd, "PATH", unix.S_IFIFO | 0o600, 0}, ""},
	{ActionSymlink, "", unix.SYS_SYMLINKAT, []any{"text", fdcwd, "PATH"}, "text"},
	{ActionLink, "", unix.SYS_LINKAT, []any{fdcwd, "DIR/file", fdcwd, "PATH", 0}, "DIR/file"},
	{ActionRename, "file", unix.SYS_RENAMEAT2, []any{fdcwd, "PATH", fdcwd, "DIR/new", 0}, "DIR/new"},
	{ActionChmod, "file", unix.SYS_FCHMODAT, []any{fdcwd, "PATH", 0o600}, ""},
	{ActionChown, "file", unix.SYS_FCHOWNAT, []any{fdcwd, "PATH", 1, 2, 0}, ""},
	{ActionTruncate, "file", unix.SYS_TRUNCATE, []any{"PATH", 1}, ""},
	{ActionUtimes, "file", unix.SYS_UTIMENSAT, []any{fdcwd, "PATH", 0, 0}, ""},
}

func init() {
	// swapped N DIR: the Nth of them. It fails if the kernel did not act on A….
	helpers["swapped"] = func(args []string) error {
		var n int
		if _, err := fmt.Sscan(args[0], &n); err != nil {
			return err
		}
		c, dir := swappedCalls[n], args[1]
		name := dir + "/A" + strings.Repeat("x", 60)
		switch c.before {
		case "file":
			if err := os.WriteFile(name, []byte("text"), 0o644); err != nil {
				return err
			}
		case "folder":
			if err := os.Mkdir(name, 0o755); err != nil {
				return err
			}
		}
		s, err := swap(name, len(dir)+1, 'B')
		if err != nil {
			return err
		}
		defer s.close()
		raw := make([]any, len(c.args))
		for i, a := range c.args {
			raw[i] = a
			if a == "PATH" {
				raw[i] = int(uintptr(unsafe.Pointer(&s.mem[s.at])))
			} else if text, ok := a.(string); ok {
				raw[i] = strings.ReplaceAll(text, "DIR", dir)
			}
		}
		if err := rawPath(c.nr, raw...); err != nil { // DIR/B… is nowhere: it was A… that was read
			return err
		}
		if got := string(bytes.TrimRight(s.mem[s.at:], "\x00")); got != strings.Replace(name, "/A", "/B", 1) {
			return fmt.Errorf("the text was not changed while the call ran: %q", got)
		}
		return nil
	}
}

// TestHooksSwappedPath: another thread changes a path after the kernel has read it. Where there is a hook, what the
// kernel acted on is told; elsewhere the changed text, and the event says that it is the caller's.
func TestHooksSwappedPath(t *testing.T) {
	c := sensor(t)
	for n, call := range swappedCalls {
		t.Run(call.action.String(), func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			pid := run(t, helper(t, "swapped", fmt.Sprint(n), dir))
			at := func(ev *Event) bool {
				return by(pid, call.action)(ev) && strings.HasSuffix(string(ev.Path.Base)+string(ev.Path.Path), "xxx")
			}
			e := &c.wait(t, call.action.String(), at).Path
			path, flags := dir+"/A"+strings.Repeat("x", 60), uint32(0)
			if !hooked(c.k, call.action) {
				path, flags = dir+"/B"+strings.Repeat("x", 60), PathUser
			}
			equal(t, "path", string(e.Base)+string(e.Path), path)
			equal(t, "flags", e.PathFlags|e.TargetFlags, flags)
			equal(t, "target", string(e.TargetBase)+string(e.Target), strings.ReplaceAll(call.target, "DIR", dir))
		})
	}
}

func init() {
	// links DIR: removes DIR/real/f by a text that says DIR/f, and renames and links through the same link.
	helpers["links"] = func(args []string) error {
		if err := os.Chdir(args[0]); err != nil {
			return err
		}
		if err := unix.Unlinkat(fdcwd, "link/../f", 0); err != nil {
			return err
		}
		if err := unix.Renameat(fdcwd, "link/old", fdcwd, "./link/./new"); err != nil {
			return err
		}
		if err := unix.Linkat(fdcwd, "link/new", fdcwd, "link/../hard", 0); err != nil {
			return err
		}
		return unix.Fchmodat(fdcwd, "to-new", 0o711, 0)
	}
}

// TestHooksLinks: what a hook tells is the path that is left when links and ".." were followed.
func TestHooksLinks(t *testing.T) {
	c := sensor(t)
	needHooks(t, c.k)
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/real/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"link": "real/sub", "to-new": "link/new"} {
		if err := os.Symlink(text, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"f", "real/f", "real/sub/old"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pid := run(t, helper(t, "links", dir))
	for _, want := range []struct {
		action       Action
		path, target string
	}{
		{ActionUnlink, "/real/f", ""},
		{ActionRename, "/real/sub/old", "/real/sub/new"},
		{ActionLink, "/real/hard", "/real/sub/new"},
		{ActionChmod, "/real/sub/new", ""},
	} {
		e := &c.wait(t, want.action.String(), by(pid, want.action)).Path
		equal(t, want.action.String(), string(e.Base)+string(e.Path), dir+want.path)
		if want.target != "" {
			want.target = dir + want.target
		}
		equal(t, want.action.String()+" target", string(e.TargetBase)+string(e.Target), want.target)
		equal(t, want.action.String()+" flags", e.PathFlags|e.TargetFlags, 0)
	}
}

const hookThreads = maxNoted + 50

func init() {
	// threads DIR: in more threads than there is room for at a time, one after the other, what passes the hooks.
	helpers["threads"] = func(args []string) error {
		for i := range hookThreads {
			done := make(chan error)
			go func() {
				runtime.LockOSThread() // and never unlocked: the thread ends here
				name := fmt.Sprint(args[0], "/", i)
				err := os.WriteFile(name, nil, 0o600) // security_path_mknod, by a call that is no change
				if err == nil {
					err = unix.Rmdir(name) // refused after the hook
				}
				if err == unix.ENOTDIR {
					err = unix.Unlink(name)
				}
				done <- err
			}()
			if err := <-done; err != nil {
				return err
			}
		}
		return nil
	}
}

// TestHooksForget: what was noted of a call goes when the call ends, however it ends.
func TestHooksForget(t *testing.T) {
	c := sensor(t)
	needHooks(t, c.k)
	dir := t.TempDir()
	pid := run(t, helper(t, "threads", dir))
	last := fmt.Sprint(dir, "/", hookThreads-1)
	c.wait(t, "the last removal", func(ev *Event) bool {
		return by(pid, ActionUnlink)(ev) && string(ev.Path.Base) == last
	})
	time.Sleep(10 * time.Millisecond)
	for _, a := range []Action{ActionUnlink, ActionRmdir} {
		evs := c.all(by(pid, a))
		equal(t, a.String()+"s", len(evs), hookThreads)
		for _, ev := range evs {
			if ev.Path.PathFlags != 0 {
				t.Errorf("%s of %s: flags %#x", a, ev.Path.Base, ev.Path.PathFlags)
			}
		}
	}
	equal(t, "times that there was no room", checkCounters(t, c.k)[ClassFile].Errors[ErrorStorage], 0)
}

func init() {
	// credentials: each call that changes credentials of its own.
	helpers["credentials"] = func([]string) error {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_WAKE_ALARM, 0, 0, 0); err != nil {
			return err
		}
		return syscall.Setuid(0)
	}
}

// TestHooksCommitCreds: a change of credentials is told when no call explains it. None can be had without an exploit of
// the kernel, so one is set up in which no call does.
func TestHooksCommitCreds(t *testing.T) {
	do := func(t *testing.T, every bool) []*Event {
		k, err := load(options(t), func(types *btf.Spec) (offers, error) {
			o, err := probe(types)
			o.everyCommit = every
			return o, err
		})
		if err != nil {
			t.Fatal(err)
		}
		c := collect(t, k)
		if !slices.Contains(k.Hooks(), "commit_creds") {
			needHooks(t, k)
			t.Fatal("commit_creds is not among the hooks")
		}
		setuid := slices.IndexFunc(triggers(), func(c trigger) bool { return c.name == "setresuid" })
		pid := run(t, helper(t, "trigger", fmt.Sprint(setuid), t.TempDir()))
		cmd := helper(t, "credentials")
		ids := []syscall.SysProcIDMap{{HostID: 0, ContainerID: 0, Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
		run(t, cmd)
		c.wait(t, "setresuid", func(ev *Event) bool { return by(pid, ActionCall)(ev) && ev.Syscall() == "setresuid" })
		c.settle(t)
		told := c.all(func(ev *Event) bool { return ev.Header.Action == ActionCall && ev.Syscall() == "commit_creds" })
		if !every {
			return told
		}
		return slices.DeleteFunc(told, func(ev *Event) bool { return ev.Header.TGID != pid })
	}
	t.Run("explained", func(t *testing.T) {
		for _, ev := range do(t, false) {
			t.Errorf("told of %s (%d): %+v", String(ev.Header.Comm[:]), ev.Header.TGID, ev.Call.CallFields)
		}
	})
	t.Run("not explained", func(t *testing.T) {
		var users []string
		for _, ev := range do(t, true) {
			users = append(users, fmt.Sprint(ev.Header.UID, " ", ev.Header.EUID, " ", ev.Call.SUID))
		}
		if !slices.Contains(users, "1 2 3") {
			t.Errorf("users after the changes %q, want %q among them", users, "1 2 3")
		}
	})
}

func init() {
	// mounts DIR: mounts, moves and unmounts through a link, and changes the root, in mounts of its own.
	helpers["mounts"] = func(args []string) error {
		if err := os.Chdir(args[0]); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
			return err
		}
		if err := unix.Mount("source", "link", "tmpfs", 0, ""); err != nil {
			return err
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, "real/sub", unix.OPEN_TREE_CLONE)
		if err != nil {
			return err
		}
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, "link/../other", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return err
		}
		unix.Close(fd) // or the mount is busy
		if err := unix.Unmount("link/../other", 0); err != nil {
			return err
		}
		if err := os.Mkdir("real/sub/old", 0o755); err != nil {
			return err
		}
		return unix.PivotRoot("link", "link/old")
	}
}

// TestHooksMounts: the calls of class kernel whose paths are taken at hooks.
func TestHooksMounts(t *testing.T) {
	c := sensor(t)
	needHooks(t, c.k)
	dir := t.TempDir()
	for _, d := range []string{"/real/sub", "/real/other"} {
		if err := os.MkdirAll(dir+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("real/sub", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	pid := run(t, helper(t, "mounts", dir))
	for _, want := range []struct{ call, path, target, text string }{
		{"mount", "/real/sub", "source", "tmpfs"},
		{"move_mount", "/real/other", "/", ""},
		{"umount2", "/real/other", "", ""},
		{"pivot_root", "/real/sub", dir + "/real/sub/old", ""},
	} {
		e := &c.wait(t, want.call, func(ev *Event) bool { return by(pid, ActionCall)(ev) && ev.Syscall() == want.call }).Call
		equal(t, want.call, e.path(), dir+want.path+"|")
		equal(t, want.call+" target", strings.ReplaceAll(e.second(), "|", ""), want.target)
		equal(t, want.call+" text", e.text(), want.text)
		equal(t, want.call+" flags", (e.PathFlags|e.TargetFlags)&PathUser, 0)
	}
}
