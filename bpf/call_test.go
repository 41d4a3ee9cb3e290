package bpf

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// trigger is one call of class kernel, and what is to be told of it.
type trigger struct {
	name string // of the call; after a blank what is special
	do   func(dir string) error
	want func(t *testing.T, e *CallEvent, dir string)
}

// raw makes a call with numbers.
func raw(nr uintptr, args ...uintptr) (uintptr, error) {
	var a [6]uintptr
	copy(a[:], args)
	r, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}

// fails is for calls that are to be refused: the event is there all the same.
func fails(_ uintptr, err error) error {
	if err == nil {
		return fmt.Errorf("it succeeded")
	}
	return nil
}

func succeeds(_ uintptr, err error) error { return err }

// args checks the first arguments.
func args(want ...uint64) func(t *testing.T, e *CallEvent, dir string) {
	return func(t *testing.T, e *CallEvent, _ string) {
		for i, w := range want {
			if e.Args[i] != w {
				t.Errorf("argument %d is %#x, want %#x", i, e.Args[i], w)
			}
		}
	}
}

func (e *CallEvent) path() string { return string(e.Base) + "|" + string(e.Path) }

// place is the path whole, whether it is a text or was taken at a hook.
func (e *CallEvent) place() string {
	if len(e.Base) > 0 && len(e.Path) > 0 {
		return string(e.Base) + "/" + string(e.Path)
	}
	return string(e.Base) + string(e.Path)
}

func (e *CallEvent) second() string { return string(e.TargetBase) + "|" + string(e.Target) }
func (e *CallEvent) text() string   { return unix.ByteSliceToString(e.Text[:]) }

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

func cstr(s string) uintptr {
	p, err := unix.BytePtrFromString(s)
	if err != nil {
		panic(err)
	}
	kept = append(kept, p)
	return uintptr(unsafe.Pointer(p))
}

// kept are the texts that a helper's calls point to: it makes one call and ends.
var kept []*byte

const minusOne = ^uintptr(0)

func triggers() []trigger {
	own := func(name string, flags uintptr, want func(t *testing.T, e *CallEvent, dir string)) trigger {
		return trigger{name, func(string) error { return succeeds(raw(unix.SYS_UNSHARE, flags)) }, want}
	}
	inNewMounts := func(do func(dir string) error) func(dir string) error {
		return func(dir string) error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
				return err
			}
			if err := os.Chdir(dir); err != nil {
				return err
			}
			return do(dir)
		}
	}
	return []trigger{
		{"setuid", func(string) error { return succeeds(raw(unix.SYS_SETUID, 1234)) }, func(t *testing.T, e *CallEvent, _ string) {
			args(1234)(t, e, "")
			equal(t, "saved user", e.SUID, 1234)
			equal(t, "effective capabilities", e.CapEffective, 0)
		}},
		{"setreuid", func(string) error { return succeeds(raw(unix.SYS_SETREUID, minusOne, 99)) }, func(t *testing.T, e *CallEvent, _ string) {
			equal(t, "real user asked for", uint32(e.Args[0]), 0xffffffff)
			equal(t, "effective user asked for", e.Args[1], 99)
		}},
		{"setresuid", func(string) error { return succeeds(raw(unix.SYS_SETRESUID, 1, 2, 3)) }, func(t *testing.T, e *CallEvent, _ string) {
			args(1, 2, 3)(t, e, "")
			equal(t, "saved user", e.SUID, 3)
			equal(t, "file system user", e.FSUID, 2)
		}},
		{"setfsuid", func(string) error { return succeeds(raw(unix.SYS_SETFSUID, 5)) }, func(t *testing.T, e *CallEvent, _ string) { equal(t, "file system user", e.FSUID, 5) }},
		{"setgid", func(string) error { return succeeds(raw(unix.SYS_SETGID, 77)) }, args(77)},
		{"setregid", func(string) error { return succeeds(raw(unix.SYS_SETREGID, 1, 2)) }, args(1, 2)},
		{"setresgid", func(string) error { return succeeds(raw(unix.SYS_SETRESGID, 1, 2, 3)) }, args(1, 2, 3)},
		{"setfsgid", func(string) error { return succeeds(raw(unix.SYS_SETFSGID, 6)) }, func(t *testing.T, e *CallEvent, _ string) { equal(t, "file system group", e.FSGID, 6) }},
		{"setgroups", func(string) error { return succeeds(raw(unix.SYS_SETGROUPS, 0, 0)) }, args(0)},
		{"capset", func(string) error {
			hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_NET_RAW, Permitted: 1<<unix.CAP_NET_RAW | 1<<unix.CAP_CHOWN}}
			return unix.Capset(&hdr, &data[0])
		}, func(t *testing.T, e *CallEvent, _ string) {
			equal(t, "effective capabilities", e.CapEffective, 1<<unix.CAP_NET_RAW)
			equal(t, "permitted capabilities", e.CapPermitted, 1<<unix.CAP_NET_RAW|1<<unix.CAP_CHOWN)
		}},
		own("unshare", unix.CLONE_NEWNS|unix.CLONE_NEWUTS, func(t *testing.T, e *CallEvent, _ string) {
			args(unix.CLONE_NEWNS|unix.CLONE_NEWUTS)(t, e, "")
			if me := inum("uts"); e.UTSNS == me || e.UTSNS == 0 {
				t.Errorf("the new uts namespace is %d, the test's %d", e.UTSNS, me)
			}
		}),
		{"setns", func(string) error {
			fd, err := unix.Open("/proc/self/ns/uts", unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			return unix.Setns(fd, unix.CLONE_NEWUTS)
		}, func(t *testing.T, e *CallEvent, _ string) {
			equal(t, "namespace of the descriptor", e.Ino, uint64(e.UTSNS))
			equal(t, "kind", e.Args[1], unix.CLONE_NEWUTS)
		}},
		{"mount", inNewMounts(func(dir string) error { return unix.Mount("none", "m", "tmpfs", unix.MS_NOEXEC, "size=1m") }), func(t *testing.T, e *CallEvent, dir string) {
			equal(t, "place", e.place(), dir+"/m")
			equal(t, "source", e.second(), "|none")
			equal(t, "type", e.text(), "tmpfs")
			equal(t, "flags", e.Args[3], unix.MS_NOEXEC)
		}},
		{"umount2 that fails", func(dir string) error {
			return fails(0, unix.Unmount(dir+"/m", unix.MNT_DETACH))
		}, func(t *testing.T, e *CallEvent, dir string) {
			equal(t, "place", e.path(), "|"+dir+"/m")
			equal(t, "result", e.Result, -int64(unix.EINVAL))
		}},
		{"pivot_root", inNewMounts(func(dir string) error {
			if err := unix.Mount(dir+"/m", dir+"/m", "", unix.MS_BIND, ""); err != nil {
				return err
			}
			return unix.PivotRoot(dir+"/m", dir+"/m/old")
		}), func(t *testing.T, e *CallEvent, dir string) {
			equal(t, "new root", e.place(), dir+"/m")
			equal(t, "old root", strings.ReplaceAll(e.second(), "|", ""), dir+"/m/old")
		}},
		{"chroot", func(dir string) error {
			if err := os.Chdir(dir); err != nil {
				return err
			}
			return unix.Chroot("m")
		}, func(t *testing.T, e *CallEvent, dir string) { equal(t, "new root", e.path(), dir+"/m|") }},
		{"chroot that fails", func(dir string) error { return fails(0, unix.Chroot(dir+"/none")) }, func(t *testing.T, e *CallEvent, dir string) {
			equal(t, "new root", e.path(), "|"+dir+"/none")
			equal(t, "result", e.Result, -int64(unix.ENOENT))
		}},
		{"open_tree", func(dir string) error { _, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE); return err }, func(t *testing.T, e *CallEvent, dir string) {
			equal(t, "path", e.path(), "|"+dir)
		}},
		{"move_mount", inNewMounts(func(dir string) error {
			fd, err := unix.OpenTree(unix.AT_FDCWD, dir+"/m", unix.OPEN_TREE_CLONE)
			if err != nil {
				return err
			}
			return unix.MoveMount(fd, "", unix.AT_FDCWD, "m", unix.MOVE_MOUNT_F_EMPTY_PATH)
		}), func(t *testing.T, e *CallEvent, dir string) { equal(t, "place", e.place(), dir+"/m") }},
		{"fsopen", func(string) error { _, err := unix.Fsopen("tmpfs", 0); return err }, func(t *testing.T, e *CallEvent, _ string) { equal(t, "type", e.text(), "tmpfs") }},
		{"fsconfig", func(string) error {
			fd, err := unix.Fsopen("tmpfs", 0)
			if err != nil {
				return err
			}
			return unix.FsconfigSetString(fd, "source", "nowhere")
		}, func(t *testing.T, e *CallEvent, _ string) {
			equal(t, "key", e.text(), "source")
			equal(t, "value", e.second(), "|nowhere")
		}},
		{"ptrace", func(string) error { return fails(raw(unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1<<30)) }, func(t *testing.T, e *CallEvent, _ string) {
			args(unix.PTRACE_ATTACH, 1<<30)(t, e, "")
			equal(t, "result", e.Result, -int64(unix.ESRCH))
		}},
		{"process_vm_readv", func(string) error { return fails(raw(unix.SYS_PROCESS_VM_READV, 1<<30, 0, 0, 0, 0, 1)) }, args(1 << 30)},
		{"process_vm_writev", func(string) error { return fails(raw(unix.SYS_PROCESS_VM_WRITEV, 1<<30, 0, 0, 0, 0, 1)) }, args(1 << 30)},
		{"pidfd_getfd", func(string) error { return fails(raw(unix.SYS_PIDFD_GETFD, minusOne, 3)) }, func(t *testing.T, e *CallEvent, _ string) { equal(t, "descriptor", e.Args[1], 3) }},
		{"init_module", func(string) error { return fails(raw(unix.SYS_INIT_MODULE, 0, 8, cstr(""))) }, func(t *testing.T, e *CallEvent, _ string) { equal(t, "length", e.Args[1], 8) }},
		{"finit_module", func(dir string) error {
			fd, err := unix.Open(dir+"/f", unix.O_RDONLY, 0)
			if err != nil {
				return err
			}
			return fails(0, unix.FinitModule(fd, "", 0))
		}, func(t *testing.T, e *CallEvent, dir string) { equal(t, "file", e.path(), dir+"/f|") }},
		{"delete_module", func(string) error { return fails(0, unix.DeleteModule("no_such_module", 0)) }, func(t *testing.T, e *CallEvent, _ string) { equal(t, "module", e.text(), "no_such_module") }},
		{"bpf map", func(string) error {
			attr := make([]byte, 128)
			attr[0], attr[4], attr[8], attr[12] = 2, 4, 4, 1 // BPF_MAP_TYPE_ARRAY, key, value, entries
			copy(attr[28:], "picket_test")
			return succeeds(raw(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr[0])), 128))
		}, func(t *testing.T, e *CallEvent, _ string) {
			args(unix.BPF_MAP_CREATE)(t, e, "")
			equal(t, "type", e.Type, 2)
			equal(t, "name", e.text(), "picket_test")
			equal(t, "flags", e.PathFlags, 0)
		}},
		{"bpf program", func(string) error {
			insns := []uint64{0xb7, 0x95} // r0 = 0; exit
			license := []byte("GPL\x00")
			attr := make([]byte, 128)
			attr[0], attr[4] = 1, 2 // BPF_PROG_TYPE_SOCKET_FILTER, instructions
			*(*uint64)(unsafe.Pointer(&attr[8])) = uint64(uintptr(unsafe.Pointer(&insns[0])))
			*(*uint64)(unsafe.Pointer(&attr[16])) = uint64(uintptr(unsafe.Pointer(&license[0])))
			copy(attr[48:], "picket_prog")
			return succeeds(raw(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr[0])), 128))
		}, func(t *testing.T, e *CallEvent, _ string) {
			equal(t, "type", e.Type, 1)
			equal(t, "name", e.text(), "picket_prog")
		}},
		{"bpf program that fails", func(string) error {
			attr := make([]byte, 128)
			attr[0] = 1
			copy(attr[48:], "picket_bad")
			return fails(raw(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr[0])), 128))
		}, func(t *testing.T, e *CallEvent, _ string) {
			equal(t, "type", e.Type, 1)
			equal(t, "name", e.text(), "picket_bad")
			equal(t, "flags", e.PathFlags, PathUser)
		}},
		{"bpf pin", func(string) error {
			path := cstr("/nowhere/pin")
			attr := make([]byte, 128)
			*(*uint64)(unsafe.Pointer(&attr[0])) = uint64(path)
			return fails(raw(unix.SYS_BPF, unix.BPF_OBJ_GET, uintptr(unsafe.Pointer(&attr[0])), 128))
		}, func(t *testing.T, e *CallEvent, _ string) { equal(t, "path", e.path(), "|/nowhere/pin") }},
		{"perf_event_open", func(string) error {
			_, err := unix.PerfEventOpen(&unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Size: 112, Config: unix.PERF_COUNT_SW_CPU_CLOCK}, 0, -1, -1, 0)
			return err
		}, func(t *testing.T, e *CallEvent, _ string) { equal(t, "type", e.Type, unix.PERF_TYPE_SOFTWARE) }},
		{"memfd_create", func(string) error { _, err := unix.MemfdCreate("hidden name", unix.MFD_CLOEXEC); return err }, func(t *testing.T, e *CallEvent, _ string) {
			equal(t, "name", e.path(), "|hidden name")
			equal(t, "flags", e.Args[1], unix.MFD_CLOEXEC)
		}},
		{"userfaultfd", func(string) error { _, err := raw(unix.SYS_USERFAULTFD, 1); _ = err; return nil }, args(1)},
		{"io_uring_setup", func(string) error {
			params := make([]uint32, 30)
			params[2] = 1 << 3 // IORING_SETUP_CQSIZE
			params[1] = 8
			_, err := raw(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&params[0])))
			_ = err // a kernel without it, or with it forbidden: the attempt is told
			return nil
		}, func(t *testing.T, e *CallEvent, _ string) {
			args(4)(t, e, "")
			equal(t, "flags", e.Number, 1<<3)
		}},
		{"add_key", func(string) error {
			_, err := unix.AddKey("user", "picket key", []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING)
			return err
		}, func(t *testing.T, e *CallEvent, _ string) {
			equal(t, "type", e.text(), "user")
			equal(t, "description", e.path(), "|picket key")
		}},
		{"keyctl", func(string) error { _, err := unix.KeyctlJoinSessionKeyring("picket"); return err }, args(unix.KEYCTL_JOIN_SESSION_KEYRING)},
		{"prctl", func(string) error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }, args(unix.PR_SET_DUMPABLE, 0)},
		{"seccomp", func(string) error { return fails(raw(unix.SYS_SECCOMP, 1, 0, 0)) }, args(1)},
		{"personality", func(string) error { return succeeds(raw(unix.SYS_PERSONALITY, 0x40000)) }, args(0x40000)},
		{"kexec_load", func(string) error { return fails(raw(unix.SYS_KEXEC_LOAD, 0, 99, 0, 0)) }, args(0, 99)},
		{"swapon", func(dir string) error { return fails(raw(unix.SYS_SWAPON, cstr(dir+"/f"), 0)) }, func(t *testing.T, e *CallEvent, dir string) { equal(t, "path", e.path(), "|"+dir+"/f") }},
		{"settimeofday", func(string) error { return fails(0, unix.Settimeofday(&unix.Timeval{Sec: 5, Usec: -1})) }, func(t *testing.T, e *CallEvent, _ string) { equal(t, "seconds", e.Number, 5) }},
		{"clock_settime", func(string) error {
			return fails(0, unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Sec: 6, Nsec: -1}))
		}, func(t *testing.T, e *CallEvent, _ string) { equal(t, "seconds", e.Number, 6) }},
		{"sethostname", func(string) error {
			if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
				return err
			}
			return unix.Sethostname([]byte("picket-test"))
		}, func(t *testing.T, e *CallEvent, _ string) { equal(t, "name", e.text()[:e.Args[1]], "picket-test") }},
		{"quotactl", func(dir string) error { return fails(raw(unix.SYS_QUOTACTL, 0x80000700, cstr(dir+"/f"), 1, 0)) }, func(t *testing.T, e *CallEvent, dir string) { equal(t, "device", e.path(), "|"+dir+"/f") }},
		{"mmap", func(dir string) error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
			return err
		}, func(t *testing.T, e *CallEvent, _ string) { equal(t, "protection", e.Args[2], 7) }},
		{"mmap of a file", func(dir string) error {
			fd, err := unix.Open(dir+"/f", unix.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = unix.Mmap(fd, 0, 4096, unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE)
			return err
		}, func(t *testing.T, e *CallEvent, dir string) { equal(t, "file", e.path(), dir+"/f|") }},
		{"mprotect", func(string) error {
			b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
			if err != nil {
				return err
			}
			if err := unix.Mprotect(b, unix.PROT_READ|unix.PROT_WRITE); err != nil { // no event
				return err
			}
			return unix.Mprotect(b, unix.PROT_WRITE|unix.PROT_EXEC)
		}, func(t *testing.T, e *CallEvent, _ string) { equal(t, "protection", e.Args[2], 6) }},
		{"acct", func(dir string) error { return fails(0, unix.Acct(dir+"/none")) }, func(t *testing.T, e *CallEvent, dir string) { equal(t, "path", e.path(), "|"+dir+"/none") }},
		{"kill", func(string) error {
			cmd := exec.Command("sleep", "60")
			if err := cmd.Start(); err != nil {
				return err
			}
			time.Sleep(100 * time.Millisecond)                    // it has its name
			if err := unix.Kill(cmd.Process.Pid, 0); err != nil { // the probe is no event
				return err
			}
			if err := unix.Kill(cmd.Process.Pid, unix.SIGKILL); err != nil {
				return err
			}
			_ = cmd.Wait() // it was killed
			fmt.Println(cmd.Process.Pid)
			return nil
		}, func(t *testing.T, e *CallEvent, dir string) {
			args(uint64(unix.SIGKILL))(t, e, "")
			pid, err := os.ReadFile(filepath.Join(dir, "out"))
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "receiver", fmt.Sprintln(e.SubjectTGID), string(pid))
			equal(t, "receiver's name", e.text(), "sleep")
			if e.SubjectStartTime == 0 {
				t.Error("no start time of the receiver")
			}
		}},
	}
}

// inum is the calling process's namespace.
func inum(kind string) uint32 {
	var n uint32
	if link, err := os.Readlink("/proc/self/ns/" + kind); err == nil {
		_, _ = fmt.Sscanf(link, kind+":[%d]", &n)
	}
	return n
}

func init() {
	// trigger N DIR: the Nth trigger. Go's own calls of the kind are made before, when it starts.
	helpers["trigger"] = func(args []string) error {
		var n int
		if _, err := fmt.Sscan(args[0], &n); err != nil {
			return err
		}
		return triggers()[n].do(args[1])
	}
}

// TestCalls makes one call of each kind of class kernel and looks at its one event.
func TestCalls(t *testing.T) {
	c := sensor(t)
	for n, trigger := range triggers() {
		t.Run(trigger.name, func(t *testing.T) {
			dir := t.TempDir()
			for _, d := range []string{"m/old"} {
				if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "f"), []byte("no module"), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := helper(t, "trigger", fmt.Sprint(n), dir)
			out, err := os.Create(filepath.Join(dir, "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			cmd.Stdout = out
			pid := run(t, cmd)
			name, _, _ := strings.Cut(trigger.name, " ")
			match := func(ev *Event) bool { return by(pid, ActionCall)(ev) && ev.Syscall() == name }
			ev := c.wait(t, trigger.name, match)
			if ev.Header.Class != ClassKernel {
				t.Errorf("class %s", ev.Header.Class)
			}
			if ev.Call.Result < 0 && !strings.HasSuffix(trigger.name, "fails") && ev.Call.Result < -4095 {
				t.Errorf("result %d", ev.Call.Result)
			}
			trigger.want(t, &ev.Call, dir)
			if all := c.all(match); len(all) != 1 {
				t.Errorf("%d events", len(all))
			}
		})
	}
}
