package bpf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// fork starts a program with exactly these arguments, which os/exec would not allow, and waits for it.
func fork(t *testing.T, path string, argv []string, attr *syscall.ProcAttr) uint32 {
	t.Helper()
	if attr == nil {
		attr = &syscall.ProcAttr{}
	}
	attr.Files = []uintptr{0, 1, 2}
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		t.Fatalf("starting %s: %v", path, err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || status.ExitStatus() != 0 {
		t.Fatalf("%s ended with %v, %v", path, status, err)
	}
	return uint32(pid)
}

func nulEnded(argv []string) string {
	var b strings.Builder
	for _, a := range argv {
		b.WriteString(a + "\x00")
	}
	return b.String()
}

func TestExecArguments(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	program := filepath.Join(dir, "true")
	writeProgram(t, program, exitZero())

	many := []string{program}
	for i := range 10_000 {
		many = append(many, "argument "+strconv.Itoa(i))
	}
	fits := []string{strings.Repeat("x", MaxArgs-1)}
	for _, tt := range []struct {
		name string
		argv []string
		want []string // what the kernel makes of it
	}{
		{"one", []string{"true"}, []string{"true"}},
		{"none", nil, []string{""}}, // since 5.18 the kernel adds an empty one
		{"empty ones", []string{"", "", "a", ""}, []string{"", "", "a", ""}},
		{"spaces and bytes", []string{"a b", "ünïcödé", "\xff\xfe", "line\nline", "'\"$"}, []string{"a b", "ünïcödé", "\xff\xfe", "line\nline", "'\"$"}},
		{"exactly the bound", fits, fits},
		{"one byte more", []string{fits[0] + "x"}, []string{fits[0] + "x"}},
		{"ten thousand", many, many},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pid := fork(t, program, tt.argv, nil)
			ev := c.wait(t, "exec", by(pid, ActionExec))
			want := nulEnded(tt.want)
			if got := ev.Exec.ArgsTotal; got != uint64(len(want)) {
				t.Errorf("%d bytes of arguments, want %d", got, len(want))
			}
			truncated := len(want) > MaxArgs
			if got := ev.Exec.Flags&ExecArgsTruncated != 0; got != truncated {
				t.Errorf("truncated: %v, want %v", got, truncated)
			}
			if truncated {
				want = want[:MaxArgs]
			}
			if got := string(ev.Exec.Args); got != want {
				t.Errorf("arguments %.200q, want %.200q", got, want)
			}
			if got := ev.Exec.Argc; got != uint32(len(tt.want)) {
				t.Errorf("argc %d, want %d", got, len(tt.want))
			}
			if got := string(ev.Exec.Filename); got != program {
				t.Errorf("filename %q, want %q", got, program)
			}
		})
	}
	if n := checkCounters(t, c.k)[ClassProcess].Errors[ErrorArgs]; n != 0 {
		t.Errorf("arguments of %d execs could not be read", n)
	}
}

// TestExecPaths: which names an exec event gives to the program.
func TestExecPaths(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	program := filepath.Join(dir, "true")
	writeProgram(t, program, exitZero())
	st := inode(t, program)

	unicode := filepath.Join(dir, "prøgräm \x01\xff 程序")
	writeProgram(t, unicode, exitZero())
	link := filepath.Join(dir, "link")
	script := filepath.Join(dir, "script")
	writeProgram(t, script, []byte("#!"+link+" option\n"))
	if err := os.Symlink("true", link); err != nil {
		t.Fatal(err)
	}
	// The longest name that execve takes, by repeating "/./".
	long := dir + strings.Repeat("/.", (MaxPath-1-len(program))/2) + "/true"
	if len(long) < MaxPath-1 {
		long = strings.Replace(long, "/.", "//.", 1)
	}

	for _, tt := range []struct {
		name          string
		filename, exe string
		dir           string
		argv          []string
		args          []string
		flags         uint32
	}{
		{name: "absolute", filename: program, exe: program},
		{name: "symbolic link", filename: link, exe: program},
		{name: "relative", filename: "./true", exe: program, dir: dir},
		{name: "not normal", filename: dir + "/../" + filepath.Base(dir) + "//./true", exe: program},
		{name: "unicode and worse", filename: unicode, exe: unicode},
		{name: "longest", filename: long, exe: program},
		{name: "script", filename: script, exe: program, argv: []string{"s", "a"}, args: []string{link, "option", script, "a"}, flags: ExecScript},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.argv == nil {
				tt.argv = []string{"true"}
			}
			if tt.args == nil {
				tt.args = tt.argv
			}
			cwd := tt.dir
			if cwd == "" {
				cwd, _ = os.Getwd()
			}
			pid := fork(t, tt.filename, tt.argv, &syscall.ProcAttr{Dir: tt.dir})
			ev := c.wait(t, "exec", by(pid, ActionExec))
			if got := string(ev.Exec.Filename); got != tt.filename {
				t.Errorf("filename %q, want %q", got, tt.filename)
			}
			if got := string(ev.Exec.Exe); got != tt.exe {
				t.Errorf("exe %q, want %q", got, tt.exe)
			}
			if got := string(ev.Exec.Cwd); got != cwd {
				t.Errorf("cwd %q, want %q", got, cwd)
			}
			if got, want := string(ev.Exec.Args), nulEnded(tt.args); got != want {
				t.Errorf("args %q, want %q", got, want)
			}
			if got := ev.Exec.Flags; got != tt.flags {
				t.Errorf("flags %#x, want %#x", got, tt.flags)
			}
			if ev.Exec.ExeFlags != 0 || ev.Exec.CwdFlags != 0 {
				t.Errorf("path flags %#x, %#x, want none", ev.Exec.ExeFlags, ev.Exec.CwdFlags)
			}
			if tt.exe != program {
				return
			}
			e := &ev.Exec
			if e.ExeIno != st.Ino || uint64(e.ExeDev) != st.Dev || e.ExeMode != st.Mode || e.ExeUID != st.Uid || e.ExeGID != st.Gid {
				t.Errorf("inode %d dev %d mode %o owner %d:%d, want %d, %d, %o, %d:%d", e.ExeIno, e.ExeDev, e.ExeMode, e.ExeUID, e.ExeGID, st.Ino, st.Dev, st.Mode, st.Uid, st.Gid)
			}
			if e.ExeMtime != st.Mtim.Nano() || e.ExeCtime != st.Ctim.Nano() {
				t.Errorf("mtime %d ctime %d, want %d, %d", e.ExeMtime, e.ExeCtime, st.Mtim.Nano(), st.Ctim.Nano())
			}
		})
	}
}

func init() {
	// deep DIR PROGRAM: walks 5,000 bytes of path downwards and runs the program there.
	helpers["deep"] = func(args []string) error {
		name := strings.Repeat("d", 249)
		if err := os.Chdir(args[0]); err != nil {
			return err
		}
		for range 20 {
			if err := syscall.Mkdir(name, 0o700); err != nil {
				return err
			}
			if err := syscall.Chdir(name); err != nil {
				return err
			}
		}
		if err := os.WriteFile("true", exitZero(), 0o755); err != nil {
			return err
		}
		return syscall.Exec("./true", []string{"true"}, nil)
	}
	// deleted PROGRAM: removes it and its directory, which is the working one, then runs it.
	helpers["deleted"] = func(args []string) error {
		if err := os.Chdir(filepath.Dir(args[0])); err != nil {
			return err
		}
		fd, err := syscall.Open(args[0], unix.O_PATH|syscall.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := os.RemoveAll(filepath.Dir(args[0])); err != nil {
			return err
		}
		return execFD(fd)
	}
	helpers["memfd"] = func([]string) error {
		fd, err := unix.MemfdCreate("nothing to see", unix.MFD_CLOEXEC)
		if err != nil {
			return err
		}
		if _, err := unix.Write(fd, exitZero()); err != nil {
			return err
		}
		return execFD(fd)
	}
	// thread PROGRAM: runs it from another thread than the first.
	helpers["thread"] = func(args []string) error {
		// This goroutine stays on the first thread, so the other one gets another.
		runtime.LockOSThread()
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			if syscall.Gettid() == syscall.Getpid() {
				done <- errors.New("on the first thread")
				return
			}
			fmt.Println(syscall.Gettid())
			done <- syscall.Exec(args[0], []string{"true"}, nil)
		}()
		return <-done
	}
}

func execFD(fd int) error {
	empty := new(byte)
	argv := &[2]*byte{empty}
	_, _, errno := syscall.Syscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(empty)), uintptr(unsafe.Pointer(argv)), 0, unix.AT_EMPTY_PATH, 0)
	return errno
}

// execs are the exec events of a helper that became another program: the second one.
func (c *collector) second(t *testing.T, pid uint32) *Event {
	t.Helper()
	c.wait(t, "exit", by(pid, ActionExit))
	evs := c.all(by(pid, ActionExec))
	if len(evs) != 2 {
		t.Fatalf("%d execs, want 2", len(evs))
	}
	return evs[1]
}

func TestExecDeepPath(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	pid := run(t, helper(t, "deep", dir))
	ev := c.second(t, pid)
	component := "/" + strings.Repeat("d", 249)
	if got, want := string(ev.Exec.Exe), strings.Repeat(component, 16)+"/true"; got != want {
		t.Errorf("exe of %d bytes, want the last %d: …%q", len(got), len(want), got[max(0, len(got)-300):])
	}
	if got, want := string(ev.Exec.Cwd), strings.Repeat(component, 16); got != want {
		t.Errorf("cwd of %d bytes, want the last %d", len(got), len(want))
	}
	if ev.Exec.ExeFlags != PathTruncated || ev.Exec.CwdFlags != PathTruncated {
		t.Errorf("path flags %#x, %#x, want both truncated", ev.Exec.ExeFlags, ev.Exec.CwdFlags)
	}
	if got := string(ev.Exec.Filename); got != "./true" {
		t.Errorf("filename %q", got)
	}
}

func TestExecDeleted(t *testing.T) {
	c := sensor(t)
	dir := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "true")
	writeProgram(t, program, exitZero())
	ev := c.second(t, run(t, helper(t, "deleted", program)))
	if got := string(ev.Exec.Exe); got != program || ev.Exec.ExeFlags != PathDeleted {
		t.Errorf("exe %q with flags %#x, want %q, deleted", got, ev.Exec.ExeFlags, program)
	}
	if got := string(ev.Exec.Cwd); got != dir || ev.Exec.CwdFlags != PathDeleted {
		t.Errorf("cwd %q with flags %#x, want %q, deleted", got, ev.Exec.CwdFlags, dir)
	}
	if got := string(ev.Exec.Filename); !strings.HasPrefix(got, "/dev/fd/") {
		t.Errorf("filename %q, want /dev/fd/N", got)
	}
}

func TestExecMemfd(t *testing.T) {
	c := sensor(t)
	ev := c.second(t, run(t, helper(t, "memfd")))
	if got, want := string(ev.Exec.Exe), "/memfd:nothing to see"; got != want {
		t.Errorf("exe %q, want %q", got, want)
	}
	if ev.Exec.Flags != ExecMemfd|ExecFD || ev.Syscall() != "execveat" || ev.Exec.ExeFlags != PathDeleted|PathOutside {
		t.Errorf("flags %#x, %#x, want memfd, descriptor; deleted, outside", ev.Exec.Flags, ev.Exec.ExeFlags)
	}
}

func TestExecFromThread(t *testing.T) {
	c := sensor(t)
	program := filepath.Join(t.TempDir(), "true")
	writeProgram(t, program, exitZero())
	var tid uint32
	pid := output(t, helper(t, "thread", program), &tid)
	ev := c.second(t, pid)
	if ev.Header.TID != pid || ev.Exec.OldTID != tid || tid == pid {
		t.Errorf("tid %d, old tid %d, want %d, %d", ev.Header.TID, ev.Exec.OldTID, pid, tid)
	}
	if n := len(c.all(by(pid, ActionExit))); n != 1 {
		t.Errorf("%d exits, want one: the threads that exec ended are not processes", n)
	}
}

func TestExecSetUID(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	// The directories above belong to root alone.
	for d := dir; d != "/"; d = filepath.Dir(d) {
		st := inode(t, d)
		if st.Mode&0o001 == 0 {
			if err := os.Chmod(d, 0o711); err != nil {
				t.Fatal(err)
			}
		}
	}
	program := filepath.Join(dir, "setuid")
	writeProgram(t, program, exitZero())
	if err := os.Chmod(program, 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	pid := fork(t, program, []string{"x"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 54321, NoSetGroups: true}}})
	ev := c.wait(t, "exec", by(pid, ActionExec))
	h, e := &ev.Header, &ev.Exec
	if h.UID != 12345 || h.EUID != 0 || e.SUID != 0 || e.FSUID != 0 || h.GID != 54321 || h.EGID != 54321 || e.SGID != 54321 || e.FSGID != 54321 {
		t.Errorf("uids %d %d %d %d, gids %d %d %d %d", h.UID, h.EUID, e.SUID, e.FSUID, h.GID, h.EGID, e.SGID, e.FSGID)
	}
	if e.Flags != ExecSecure || e.CapEffective == 0 || e.ExeMode&syscall.S_ISUID == 0 {
		t.Errorf("flags %#x, capabilities %#x, mode %o", e.Flags, e.CapEffective, e.ExeMode)
	}
}

// TestExecIdentity compares an exec event with what the new program itself finds in /proc.
func TestExecIdentity(t *testing.T) {
	c := sensor(t)
	uts := uintptr(syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | unix.CLONE_NEWCGROUP)
	for _, tt := range []struct {
		name string
		attr *syscall.SysProcAttr
	}{
		{"plain", nil},
		{"session", &syscall.SysProcAttr{Setsid: true}},
		{"process group", &syscall.SysProcAttr{Setpgid: true}},
		{"user", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 0, Gid: 7}, AmbientCaps: []uintptr{unix.CAP_NET_RAW}}},
		{"namespaces", &syscall.SysProcAttr{Cloneflags: uts}},
		{"pid namespace", &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}},
		{"user namespace", &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := helper(t, "whoami")
			cmd.SysProcAttr = tt.attr
			cmd.Dir = "/usr"
			var s self
			before := bootTime()
			pid := output(t, cmd, &s)
			after := bootTime()
			fork := c.wait(t, "fork", func(ev *Event) bool { return ev.Header.Action == ActionFork && ev.Fork.ChildTGID == pid })
			exec := c.wait(t, "exec", by(pid, ActionExec))
			exit := c.wait(t, "exit", by(pid, ActionExit))
			h, e := &exec.Header, &exec.Exec

			eq := func(what string, got, want any) {
				t.Helper()
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%s: %v, want %v", what, got, want)
				}
			}
			// Go makes processes by clone, or by clone3 with newer kernels' flags.
			if call := fork.Syscall(); call != "clone" && call != "clone3" {
				t.Errorf("forked by %q", call)
			}
			if tt.attr != nil && fork.Fork.CloneFlags&uint64(tt.attr.Cloneflags) != uint64(tt.attr.Cloneflags) {
				t.Errorf("clone flags %#x, want %#x in them", fork.Fork.CloneFlags, tt.attr.Cloneflags)
			}
			eq("call", exec.Syscall(), "execve")
			eq("pid", h.TGID, s.PID)
			eq("tid", h.TID, s.PID)
			eq("pid in its namespace", h.NSPID, s.NSPID)
			eq("parent", h.ParentTGID, os.Getpid())
			eq("start time in ticks", h.StartTime/1e7, s.Start)
			for ns, got := range map[string]uint32{"pid": h.PIDNS, "mnt": h.MntNS, "net": h.NetNS, "user": h.UserNS, "uts": e.UTSNS, "ipc": e.IPCNS, "cgroup": e.CgroupNS} {
				eq(ns+" namespace", got, s.NS[ns])
			}
			eq("user ids", []uint32{h.UID, h.EUID, e.SUID, e.FSUID}, s.UID)
			eq("group ids", []uint32{h.GID, h.EGID, e.SGID, e.FSGID}, s.GID)
			eq("effective capabilities", e.CapEffective, s.CapEff)
			eq("permitted capabilities", e.CapPermitted, s.CapPrm)
			eq("inheritable capabilities", e.CapInheritable, s.CapInh)
			eq("login user", h.LoginUID, s.LoginUID)
			eq("audit session", h.SessionID, s.SessionID)
			eq("comm", String(h.Comm[:]), s.Comm)
			eq("exe", string(e.Exe), s.Exe)
			eq("cwd", string(e.Cwd), s.Cwd)
			eq("tty", e.TTYDev, s.TTY)
			eq("cgroup", h.CgroupID, inode(t, filepath.Join(cgroupRoot(t), s.Cgroup)).Ino)
			if tt.name != "pid namespace" { // there, /proc of the outer namespace shows other numbers or none
				eq("process group", e.PGID, s.PGID)
				eq("session", e.SID, s.SID)
				eq("parent as it sees it", h.ParentTGID, s.PPID)
			} else {
				eq("pid in the namespace", h.NSPID, 1)
			}

			// the three events name the same process
			eq("start time in fork", fork.Fork.ChildStartTime, h.StartTime)
			eq("start time in exit", exit.Header.StartTime, h.StartTime)
			eq("parent's start time", h.ParentStartTime, fork.Header.StartTime)
			eq("forking process", fork.Header.TGID, os.Getpid())
			eq("child's parent", []any{fork.Fork.ChildParentTGID, fork.Fork.ChildParentStartTime}, []any{fork.Header.TGID, fork.Header.StartTime})
			eq("child's pid in its namespace", fork.Fork.ChildNSPID, s.NSPID)
			eq("child's namespaces", []uint32{fork.Fork.ChildPIDNS, fork.Fork.ChildMntNS, fork.Fork.ChildNetNS, fork.Fork.ChildUserNS}, []uint32{s.NS["pid"], s.NS["mnt"], s.NS["net"], s.NS["user"]})
			eq("child's cgroup", fork.Fork.ChildCgroupID, h.CgroupID)
			if !(before <= fork.Header.Time && fork.Header.Time <= h.Time && h.Time <= exit.Header.Time && exit.Header.Time <= after) {
				t.Errorf("times %d, %d, %d are not in order between %d and %d", fork.Header.Time, h.Time, exit.Header.Time, before, after)
			}
		})
	}
}

func TestExecTerminal(t *testing.T) {
	c := sensor(t)
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ptmx.Close()
	if err := unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	pts, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer pts.Close()
	cmd := helper(t, "whoami")
	cmd.Stdin = pts
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	var s self
	ev := c.wait(t, "exec", by(output(t, cmd, &s), ActionExec))
	if got, want := String(ev.Exec.TTY[:]), fmt.Sprintf("pts%d", n); got != want {
		t.Errorf("terminal %q, want %q", got, want)
	}
	if got, want := uint64(ev.Exec.TTYDev), inode(t, pts.Name()).Rdev; got != want || s.TTY != int(want) {
		t.Errorf("terminal %#x, want %#x", got, want)
	}
}

// TestExecChroot: paths are those the process sees.
func TestExecChroot(t *testing.T) {
	c := sensor(t)
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeProgram(t, filepath.Join(root, "bin/true"), exitZero())
	outside := filepath.Join(t.TempDir(), "true")
	writeProgram(t, outside, exitZero())

	pid := fork(t, "/bin/true", []string{"true"}, &syscall.ProcAttr{Dir: "/bin", Sys: &syscall.SysProcAttr{Chroot: root}})
	ev := c.wait(t, "exec", by(pid, ActionExec))
	if exe, cwd := string(ev.Exec.Exe), string(ev.Exec.Cwd); exe != "/bin/true" || cwd != "/bin" || ev.Exec.ExeFlags != 0 {
		t.Errorf("exe %q, cwd %q, flags %#x", exe, cwd, ev.Exec.ExeFlags)
	}

	pid = fork(t, "/bin/true", []string{"true"}, &syscall.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{Chroot: root}})
	ev = c.wait(t, "exec", by(pid, ActionExec))
	if cwd := string(ev.Exec.Cwd); cwd != "/" || ev.Exec.CwdFlags != 0 {
		t.Errorf("cwd %q, flags %#x, want the root", cwd, ev.Exec.CwdFlags)
	}

	// A process that keeps a directory outside its root: the path is as the file system has it, and flagged.
	pid = run(t, helper(t, "escape", root, outside))
	ev = c.second(t, pid)
	if exe := string(ev.Exec.Exe); exe != outside || ev.Exec.ExeFlags != PathOutside {
		t.Errorf("exe %q with flags %#x, want %q, outside", exe, ev.Exec.ExeFlags, outside)
	}
}

func init() {
	helpers["escape"] = func(args []string) error {
		fd, err := syscall.Open(args[1], unix.O_PATH|syscall.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := syscall.Chroot(args[0]); err != nil {
			return err
		}
		return execFD(fd)
	}
	// overlay DIR: in a mount namespace of its own, runs a program of the lower and one of the upper layer,
	// through a bind mount.
	helpers["overlay"] = func(args []string) error {
		dir := args[0]
		steps := []func() error{
			func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
			func() error { return unix.Mount("tmpfs", dir, "tmpfs", 0, "") },
		}
		for _, d := range []string{"lower", "upper", "work", "merged", "bound"} {
			steps = append(steps, func() error { return os.Mkdir(filepath.Join(dir, d), 0o755) })
		}
		steps = append(steps,
			func() error { return os.WriteFile(dir+"/lower/low", exitZero(), 0o755) },
			func() error {
				return unix.Mount("overlay", dir+"/merged", "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir))
			},
			func() error { return os.WriteFile(dir+"/merged/up", exitZero(), 0o755) },
			func() error { return unix.Mount(dir+"/merged", dir+"/bound", "", unix.MS_BIND, "") },
			func() error { return exec.Command(dir + "/merged/low").Run() },
			func() error { return exec.Command(dir + "/bound/up").Run() },
		)
		for i, step := range steps {
			if err := step(); err != nil {
				return fmt.Errorf("step %d: %w", i, err)
			}
		}
		return nil
	}
}

func TestExecOverlay(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	cmd := helper(t, "overlay", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	pid := run(t, cmd)
	for exe, flags := range map[string]uint32{dir + "/merged/low": ExecLower, dir + "/bound/up": ExecUpper} {
		ev := c.wait(t, exe, func(ev *Event) bool {
			return ev.Header.Action == ActionExec && ev.Header.ParentTGID == pid && string(ev.Exec.Exe) == exe
		})
		if ev.Exec.Flags != flags || ev.Exec.ExeFlags != 0 {
			t.Errorf("%s: flags %#x, %#x, want %#x, none", exe, ev.Exec.Flags, ev.Exec.ExeFlags, flags)
		}
	}
}

func init() {
	// exit CODE, after many threads have begun.
	helpers["exit"] = func(args []string) error {
		code, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		beginThreads(20)
		os.Exit(code)
		return nil
	}
	helpers["raise"] = func(args []string) error {
		signal, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		// Go's runtime catches some of them for itself.
		if signal != int(syscall.SIGKILL) {
			if err := rawSigaction(signal); err != nil {
				return err
			}
		}
		beginThreads(5)
		if err := syscall.Kill(os.Getpid(), syscall.Signal(signal)); err != nil {
			return err
		}
		time.Sleep(10 * time.Second)
		return errors.New("survived")
	}
	// headless: the first thread ends before the others.
	helpers["headless"] = func([]string) error {
		go func() {
			time.Sleep(50 * time.Millisecond)
			os.Exit(3)
		}()
		runtime.LockOSThread()
		if syscall.Gettid() != syscall.Getpid() {
			return errors.New("not on the first thread")
		}
		_, _, errno := syscall.RawSyscall(syscall.SYS_EXIT, 0, 0, 0)
		return errno
	}
}

func beginThreads(n int) {
	started := make(chan bool)
	for range n {
		go func() {
			runtime.LockOSThread()
			started <- true
			select {}
		}()
	}
	for range n {
		<-started
	}
}

func TestExit(t *testing.T) {
	// Both ways of finding a process's last thread: by the running kernel's tracepoint, and without it.
	for _, tt := range []struct {
		name  string
		probe func(*btf.Spec) (offers, error)
	}{
		{"as the kernel offers", probe},
		{"as before 6.16, and without io_uring", func(*btf.Spec) (offers, error) { return offers{}, nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k, err := load(options(t), tt.probe)
			if err != nil {
				t.Fatal(err)
			}
			testExit(t, collect(t, k))
		})
	}
}

func testExit(t *testing.T, c *collector) {
	before := checkCounters(t, c.k)[ClassProcess].Threads
	var pids []uint32
	check := func(what string, pid, status, signal, core uint32) {
		t.Helper()
		ev := c.wait(t, what, by(pid, ActionExit))
		if ev.Exit.ExitStatus != status || ev.Exit.Signal != signal || ev.Exit.CoreDumped != core {
			t.Errorf("%s: status %d, signal %d, core %d; want %d, %d, %d", what, ev.Exit.ExitStatus, ev.Exit.Signal, ev.Exit.CoreDumped, status, signal, core)
		}
		pids = append(pids, pid)
	}
	for _, code := range []int{0, 1, 7, 255} {
		cmd := helper(t, "exit", strconv.Itoa(code))
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		check(cmd.String(), uint32(cmd.Process.Pid), uint32(code), 0, 0)
	}
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGSEGV, syscall.SIGABRT} {
		cmd := helper(t, "raise", strconv.Itoa(int(signal)))
		var exit *exec.ExitError
		if err := cmd.Run(); !errors.As(err, &exit) {
			t.Fatalf("%s: %v", cmd, err)
		}
		status := exit.Sys().(syscall.WaitStatus)
		core := uint32(0)
		if status.CoreDump() {
			core = 1
		}
		if status.Signal() != signal {
			t.Fatalf("%s ended by %v", cmd, status.Signal())
		}
		check(cmd.String(), uint32(cmd.Process.Pid), 0, uint32(signal), core)
	}
	cmd := helper(t, "headless")
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Fatalf("%s: %v", cmd, err)
	}
	// As a parent's wait sees it: exit_group was called with 3 after the first thread had ended with 0.
	check(cmd.String(), uint32(cmd.Process.Pid), 3, 0, 0)

	// Once for each process, however its threads race.
	for range 50 {
		cmd := helper(t, "exit", "0")
		pids = append(pids, run(t, cmd))
	}
	c.settle(t)
	for _, pid := range pids {
		if n := len(c.all(by(pid, ActionExit))); n != 1 {
			t.Errorf("process %d: %d exits, want 1", pid, n)
		}
		if n := len(c.all(func(ev *Event) bool { return ev.Header.Action == ActionFork && ev.Fork.ChildTGID == pid })); n != 1 {
			t.Errorf("process %d: %d forks, want 1", pid, n)
		}
	}
	if n := checkCounters(t, c.k)[ClassProcess].Threads - before; n < 50*20 {
		t.Errorf("%d threads counted, want more than %d", n, 50*20)
	}
}

// TestForkParent: a child whose parent is not the process that made it.
func TestForkParent(t *testing.T) {
	c := sensor(t)
	var child struct{ PID uint32 }
	cmd := helper(t, "cloneparent")
	pid := output(t, cmd, &child)
	ev := c.wait(t, "fork", func(ev *Event) bool { return ev.Header.Action == ActionFork && ev.Fork.ChildTGID == child.PID })
	if ev.Header.TGID != pid || ev.Fork.ChildParentTGID != uint32(os.Getpid()) || ev.Header.ParentStartTime != ev.Fork.ChildParentStartTime {
		t.Errorf("forked by %d, parent %d; want %d, %d", ev.Header.TGID, ev.Fork.ChildParentTGID, pid, os.Getpid())
	}
	if ev.Syscall() != "clone" || ev.Fork.CloneFlags != syscall.CLONE_PARENT {
		t.Errorf("%s with flags %#x", ev.Syscall(), ev.Fork.CloneFlags)
	}
	// It became our child by that.
	if _, err := syscall.Wait4(int(child.PID), nil, 0, nil); err != nil {
		t.Errorf("waiting for the child: %v", err)
	}
}

func init() {
	helpers["cloneparent"] = func([]string) error {
		// The child does nothing but exit, which needs no runtime.
		pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, syscall.CLONE_PARENT, 0, 0, 0, 0, 0)
		if errno != 0 {
			return errno
		}
		if pid == 0 {
			syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
		}
		return json.NewEncoder(os.Stdout).Encode(map[string]uintptr{"PID": pid})
	}
}

// TestExecEnvironment: an exec has the environment only when it is wanted, and says when it is cut.
func TestExecEnvironment(t *testing.T) {
	k := mustLoad(t, options(t))
	c := collect(t, k)
	program := filepath.Join(t.TempDir(), "true")
	writeProgram(t, program, exitZero())
	env := []string{"LD_PRELOAD=/tmp/x.so", "EMPTY=", "NONSENSE", "B=\xff\xfe"}
	start := func(env []string) *Event {
		cmd := exec.Command(program)
		cmd.Env = env
		return c.wait(t, "exec", by(run(t, cmd), ActionExec))
	}
	if ev := start(env); len(ev.Exec.Env) != 0 || ev.Exec.Flags&(ExecEnvTruncated|ExecEnvFault) != 0 {
		t.Errorf("not wanted: %q, flags %#x", ev.Exec.Env, ev.Exec.Flags)
	}
	if err := k.SetEnvironment(true); err != nil {
		t.Fatal(err)
	}
	if ev := start(env); string(ev.Exec.Env) != strings.Join(env, "\x00")+"\x00" || ev.Exec.Flags&ExecEnvTruncated != 0 {
		t.Errorf("%q, flags %#x", ev.Exec.Env, ev.Exec.Flags)
	}
	long := append([]string{"PAD=" + strings.Repeat("x", MaxEnv)}, env...)
	if ev := start(long); len(ev.Exec.Env) != MaxEnv || ev.Exec.Flags&ExecEnvTruncated == 0 || !bytes.HasPrefix(ev.Exec.Env, []byte("PAD=xxx")) {
		t.Errorf("%d bytes, flags %#x", len(ev.Exec.Env), ev.Exec.Flags)
	}
	if ev := start([]string{}); len(ev.Exec.Env) != 0 || ev.Exec.Flags&ExecEnvFault != 0 {
		t.Errorf("an empty one: %q, flags %#x", ev.Exec.Env, ev.Exec.Flags)
	}
}
