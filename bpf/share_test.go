package bpf

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func init() {
	// opens N FILE: opens a file for writing so many times.
	helpers["opens"] = func(args []string) error {
		var n int
		if _, err := fmt.Sscan(args[0], &n); err != nil {
			return err
		}
		for range n {
			fd, err := unix.Open(args[1], unix.O_CREAT|unix.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			unix.Close(fd)
		}
		return nil
	}
}

// inCgroup lets a command run in a new cgroup, and returns its id.
func inCgroup(t *testing.T, cmd *exec.Cmd, name string) uint64 {
	t.Helper()
	dir := filepath.Join(cgroupRoot(t), fmt.Sprintf("picket-test-%d-%s", os.Getpid(), name))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	return inode(t, dir).Ino
}

// TestShare: a container that fills the ring leaves room for another, and what is left out of it is counted.
func TestShare(t *testing.T) {
	o := options(t)
	o.FileRing = 64 << 10
	k := mustLoad(t, o)
	const share = 10
	if err := k.SetShare(share); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	noisy, quiet := helper(t, "opens", "3000", dir+"/noisy"), helper(t, "opens", "5", dir+"/quiet")
	loud, soft := inCgroup(t, noisy, "noisy"), inCgroup(t, quiet, "quiet")
	run(t, noisy) // nobody reads
	limited := checkCounters(t, k)[ClassFile]
	if limited.Limited < 2000 || limited.RingFull > 0 {
		t.Fatalf("%+v", limited)
	}
	pid := run(t, quiet)
	by, err := k.Limited()
	if err != nil {
		t.Fatal(err)
	}
	told := uint64(0)
	for _, l := range by {
		switch l.CgroupID {
		case loud:
			told += l.Events
		case soft:
			t.Errorf("the quiet one was limited: %+v", l)
		}
	}
	if told == 0 || told > limited.Limited {
		t.Errorf("%d events of the noisy one, %d of all", told, limited.Limited)
	}
	c := collect(t, k)
	c.wait(t, "an event", func(ev *Event) bool { return ev.Header.TGID == pid && ev.Header.Action == ActionExit })
	if err := k.Detach(); err != nil {
		t.Fatal(err)
	}
	c.finish(t)
	if n := len(c.all(func(ev *Event) bool { return ev.Header.TGID == pid && string(ev.Open.Path) == dir+"/quiet" })); n != 5 {
		t.Errorf("%d opens of the quiet one", n)
	}
}
