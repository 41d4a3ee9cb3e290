// Package cgrouptest puts processes into cgroups as container runtimes do, for
// tests: where this node's containers are.
package cgrouptest

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"picket/services/sensor/containerid"
)

// Make makes a cgroup, with those above it, and returns its directory. The ones
// that were not there before are removed when the test ends.
func Make(t *testing.T, path string) string {
	t.Helper()
	h, err := containerid.NodeHierarchy()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(h.Mount, path)
	var missing []string
	for d := dir; d != h.Mount; d = filepath.Dir(d) {
		if _, err := os.Stat(d); err == nil {
			break
		}
		missing = append(missing, d)
	}
	t.Cleanup(func() {
		for _, d := range missing {
			if err := os.Remove(d); err != nil {
				t.Error(err)
			}
		}
	})
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// CombinedOutput runs a command that is in a cgroup from its beginning.
func CombinedOutput(t *testing.T, cmd *exec.Cmd, dir string) ([]byte, error) {
	t.Helper()
	h, err := containerid.NodeHierarchy()
	if err != nil {
		t.Fatal(err)
	}
	if h.Controller == "" {
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(d.Fd())}
		return cmd.CombinedOutput()
	}
	// In version 1 a child begins where the thread is that forks it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	self := []byte(strconv.Itoa(unix.Gettid()))
	if err := os.WriteFile(filepath.Join(dir, "tasks"), self, 0o644); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(filepath.Join(h.Mount, "tasks"), self, 0o644); err != nil {
			t.Error(err)
		}
	}()
	return cmd.CombinedOutput()
}
