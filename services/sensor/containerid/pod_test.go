package containerid

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// podVariable makes this test binary a process in a pod: it has the cgroup whose
// container is asked for. What it found is printed.
const podVariable = "PICKET_TEST_POD"

func TestMain(m *testing.M) {
	if cgroup := os.Getenv(podVariable); cgroup != "" {
		if err := inPod(cgroup); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// inPod runs in namespaces of mounts and cgroups of its own, which end with it,
// with two folders to mount on. It takes the host's cgroups from where they are,
// mounts its own part on one folder, and after that the host's on the other, as
// in a pod.
func inPod(cgroup string) error {
	h, err := Cgroup2()
	if err != nil {
		return err
	}
	host := h.Mount
	var st unix.Stat_t
	if err := unix.Stat(cgroup, &st); err != nil {
		return err
	}
	own, moved := os.Args[1], os.Args[2]
	for _, step := range []func() error{
		func() error { return unix.Mount("cgroup", own, "cgroup2", 0, "") },
		func() error { return unix.Mount(host, moved, "", unix.MS_BIND, "") },
		func() error { return unix.Unmount(host, unix.MNT_DETACH) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	if h, err = Cgroup2(); err != nil {
		return err
	}
	r, err := NewResolver(h)
	if err != nil {
		return err
	}
	defer r.Close()
	in, ok := r.Resolve(st.Ino, 0)
	fmt.Println(ok, in.ContainerID, in.PodUID)
	if _, err := NewResolver(Hierarchy{Mount: own}); err == nil || !strings.Contains(err.Error(), "only a part") {
		return fmt.Errorf("with its own part alone: %w", err)
	}
	return nil
}

// TestResolverInPod: a sensor with a cgroup namespace of its own finds the host's
// cgroups, and names other pods' containers.
func TestResolverInPod(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED (needs root): cgroups were not looked for as in a pod")
	}
	h, err := Cgroup2()
	if err != nil {
		t.Fatal(err)
	}
	top := filepath.Join(h.Mount, fmt.Sprintf("picket-pod-%d", os.Getpid()))
	ours, other := filepath.Join(top, "pod"+uid, id), filepath.Join(top, "pod"+uid, id2)
	for _, d := range []string{ours, other} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for _, d := range []string{ours, other, filepath.Dir(ours), top} {
			if err := os.Remove(d); err != nil {
				t.Error(err)
			}
		}
	})
	dir, err := os.Open(ours)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--mount", "--cgroup", self, t.TempDir(), t.TempDir())
	cmd.Env = append(os.Environ(), podVariable+"="+other)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	out, err := cmd.CombinedOutput()
	if want := fmt.Sprintln(true, id2, uid); err != nil || string(out) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out, want)
	}
}
