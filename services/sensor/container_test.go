package sensor_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"picket/internal/natsserver/natstest"
	"picket/schemas"
)

// runtime starts real containers, with runc, in cgroups as the kubelet's
// cgroupfs driver names them.
type runtime struct {
	t            *testing.T
	dir, pod     string
	ids          string // what the ids of its containers begin with
	runc         []string
	made         int
	cgroupParent string
}

func newRuntime(t *testing.T) *runtime {
	t.Helper()
	needRoot(t)
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal("runc is not installed: scripts/install.sh test installs it")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox-static is not installed: scripts/install.sh test installs it")
	}
	r := &runtime{t: t, dir: t.TempDir(), runc: []string{runc}, pod: fmt.Sprintf("%08x-9abc-def0-1234-56789abcdef0", os.Getpid()), ids: fmt.Sprintf("%060x", os.Getpid()),
		cgroupParent: fmt.Sprintf("/picket-test-%d", os.Getpid())}
	for _, d := range []string{"rootfs/bin", "rootfs/proc", "rootfs/dev", "state"} {
		if err := os.MkdirAll(filepath.Join(r.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "rootfs/bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.removeCgroups)
	return r
}

// removeCgroups removes what the test made in every hierarchy.
func (r *runtime) removeCgroups() {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + r.cgroupParent)
	for _, root := range append(roots, "/sys/fs/cgroup"+r.cgroupParent) {
		for _, pattern := range []string{"/*/*/*/*", "/*/*/*", "/*/*", "/*", ""} {
			dirs, _ := filepath.Glob(root + pattern)
			for _, d := range dirs {
				os.Remove(d)
			}
		}
	}
}

// bundle makes a container that runs args, and returns its id.
func (r *runtime) bundle(args ...string) string {
	r.t.Helper()
	r.made++
	id := fmt.Sprintf("%s%04x", r.ids, r.made)
	namespaces := []map[string]string{}
	for _, ns := range []string{"pid", "ipc", "uts", "mount"} {
		namespaces = append(namespaces, map[string]string{"type": ns})
	}
	spec := map[string]any{
		"ociVersion": "1.0.2",
		"root":       map[string]any{"path": filepath.Join(r.dir, "rootfs"), "readonly": true},
		"process":    map[string]any{"user": map[string]any{"uid": 0, "gid": 0}, "args": args, "env": []string{"PATH=/bin"}, "cwd": "/"},
		"mounts": []map[string]any{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
		},
		"linux": map[string]any{
			"cgroupsPath": r.cgroupParent + "/kubepods/besteffort/pod" + r.pod + "/" + id,
			"namespaces":  namespaces,
		},
	}
	b, err := json.Marshal(spec)
	if err != nil {
		r.t.Fatal(err)
	}
	dir := filepath.Join(r.dir, id)
	if err := os.Mkdir(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o644); err != nil {
		r.t.Fatal(err)
	}
	return id
}

// keepState writes of a container what containerd would, where it would.
func (r *runtime) keepState(id string) {
	r.t.Helper()
	dir := "/run/containerd/io.containerd.runtime.v2.task/k8s.io/" + id
	r.t.Cleanup(func() {
		os.Remove(filepath.Join(dir, "config.json"))
		for d := dir; d != "/run"; d = filepath.Dir(d) {
			os.Remove(d) // unless a runtime of this machine has something in it
		}
	})
	if err := os.MkdirAll(dir, 0o711); err != nil {
		r.t.Fatal(err)
	}
	state := `{"annotations":{"io.kubernetes.cri.container-name":"app","io.kubernetes.cri.image-name":"registry.example.com/web:1.2","io.kubernetes.cri.sandbox-name":"web-1","io.kubernetes.cri.sandbox-namespace":"shop"}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(state), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *runtime) command(args ...string) *exec.Cmd {
	args = slices.Concat(r.runc, []string{"--root", filepath.Join(r.dir, "state")}, args)
	return exec.Command(args[0], args[1:]...)
}

// do runs runc to its end. Its output goes to a file: a detached container
// would hold a pipe open.
func (r *runtime) do(args ...string) {
	r.t.Helper()
	out, err := os.CreateTemp(r.dir, "out")
	if err != nil {
		r.t.Fatal(err)
	}
	defer out.Close()
	cmd := r.command(args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(out.Name())
		r.t.Fatalf("runc %s: %v\n%s", strings.Join(args, " "), err, said)
	}
}

func (r *runtime) run(id string) { r.t.Helper(); r.do("run", "--bundle", filepath.Join(r.dir, id), id) }

// runDetached starts a container that goes on until the test ends.
func (r *runtime) runDetached(id string) {
	r.t.Helper()
	r.do("run", "--detach", "--bundle", filepath.Join(r.dir, id), id)
	r.t.Cleanup(func() { r.do("delete", "--force", id) })
}

// many containers are started at once.
const many = 200

// TestContainers: the first program of a container is told with its container
// and pod, also of one that lives 10 ms and of 200 that start at once; and what
// was put into a running container is told apart from what it runs itself.
func TestContainers(t *testing.T) {
	r := newRuntime(t)
	s := natstest.Start(t)
	cfg := config(t, s)
	stop := start(t, cfg)

	short := r.bundle("/bin/busybox", "usleep", "10000")
	r.run(short)

	var crowd []string
	for range many {
		crowd = append(crowd, r.bundle("/bin/busybox", "true"))
	}
	began := time.Now()
	var wg sync.WaitGroup
	failed := make(chan string, many)
	for _, id := range crowd {
		wg.Go(func() {
			if out, err := r.command("run", "--bundle", filepath.Join(r.dir, id), id).CombinedOutput(); err != nil {
				failed <- fmt.Sprintf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	close(failed)
	for f := range failed {
		t.Errorf("runc: %s", f)
	}

	long := r.bundle("/bin/busybox", "sh", "-c", "while :; do busybox true own; busybox usleep 50000; done")
	r.keepState(long)
	r.runDetached(long)
	// Its children, one of which outlives its parent, and one that goes on.
	r.do("exec", long, "/bin/busybox", "sh", "-c", "busybox true root; (busybox sh -c 'busybox usleep 100000; busybox true orphan' &) ; (busybox true forked)")
	r.do("exec", "--detach", long, "/bin/busybox", "sh", "-c", "while :; do busybox true later; busybox usleep 50000; done")
	// The same where the runtime itself does not see the host's mounts, as in a
	// node that is a container.
	nested := r.bundle("/bin/busybox", "sh", "-c", "while :; do busybox true nested-own; busybox usleep 50000; done")
	r.runc = append([]string{"unshare", "--mount"}, r.runc...)
	r.runDetached(nested)
	r.do("exec", nested, "/bin/busybox", "sh", "-c", "busybox true nested-root; busybox true nested-child; :")
	time.Sleep(500 * time.Millisecond)
	stop()

	// A sensor that starts now knows it from /proc.
	s2 := natstest.Start(t)
	stop = start(t, config(t, s2))
	time.Sleep(500 * time.Millisecond)
	stop()

	first := map[string]bool{} // container: its first program was told
	unnamed := 0
	marked := map[string]int{} // by the last argument
	roots := map[string]uint64{}
	itself := map[uint64]bool{} // exec roots that were seen to execute
	for _, b := range batches(t, s) {
		if b.Class() != schemas.Process {
			continue
		}
		for i := range b.Rows() {
			if b.Str(schemas.Action, i) != "exec" || b.Str(schemas.ProcessExe, i) != "/bin/busybox" {
				continue
			}
			id, pod := b.Str(schemas.ContainerID, i), b.Str(schemas.PodUID, i)
			if id == "" {
				unnamed++
				continue
			}
			if !strings.HasPrefix(id, r.ids) {
				continue // of another test on this machine
			}
			if pod != r.pod {
				t.Errorf("container %s is told in pod %q", id, pod)
			}
			first[id] = true
			args := b.Str(schemas.ProcessArgs, i)
			kind := args[strings.LastIndexByte(args, ' ')+1:]
			root := b.Uint(schemas.ContainerExec, i)
			switch kind {
			case "nested-own":
				if root != 0 {
					t.Errorf("a child of the nested container's own is told as one of %d from outside", root)
				}
			case "own":
				names := b.Str(schemas.ContainerRuntime, i) + " " + b.Str(schemas.ContainerName, i) + " " + b.Str(schemas.ContainerImage, i) + " " + b.Str(schemas.ContainerImageTag, i) + " " +
					b.Str(schemas.PodName, i) + " " + b.Str(schemas.Namespace, i)
				if names != "containerd app registry.example.com/web 1.2 web-1 shop" {
					t.Errorf("names from containerd's state: %q", names)
				}
				if started := b.Int(schemas.ContainerStart, i); started < began.UnixNano() || started >= b.Int(schemas.EventTime, i) {
					t.Errorf("the container is told to have started %v after the test", time.Duration(started-began.UnixNano()))
				}
				if root != 0 {
					t.Errorf("a child of the container's own is told as one of %d from outside", root)
				}
			case "root", "orphan", "forked", "later", "nested-root", "nested-child":
				if root == 0 || roots[kind] != 0 && roots[kind] != root {
					t.Errorf("%q is told as of %d, before as of %d", args, root, roots[kind])
				}
				roots[kind] = root
			}
			if b.Uint(schemas.ProcessPID, i) == root {
				itself[root] = true
			}
			marked[kind]++
		}
	}
	named := 0
	for _, id := range crowd {
		if first[id] {
			named++
		}
	}
	t.Logf("10 ms: %v; %d of %d at once named, in %v; execs in containers without a name: %d; execs told: %v", first[short], named, many, took.Round(time.Millisecond), unnamed, marked)
	if named < many || !first[short] || unnamed > 0 {
		t.Error("containers that were not named with their first program")
	}
	if roots["root"] == 0 || roots["root"] != roots["orphan"] || roots["root"] != roots["forked"] || roots["later"] == roots["root"] || marked["own"] == 0 ||
		marked["nested-own"] == 0 || roots["nested-root"] == 0 || roots["nested-root"] == roots["root"] || roots["nested-child"] != roots["nested-root"] || len(itself) < 3 {
		t.Errorf("exec roots %v, execs %v", roots, marked)
	}

	seeded := map[string]int{}
	for _, b := range batches(t, s2) {
		for i := range b.Rows() {
			if b.Class() != schemas.Process || b.Str(schemas.Action, i) != "exec" || b.Str(schemas.ContainerID, i) != long {
				continue
			}
			args := b.Str(schemas.ProcessArgs, i)
			kind := args[strings.LastIndexByte(args, ' ')+1:]
			want := uint64(0)
			if kind == "later" {
				want = roots["later"]
			}
			if kind == "own" || kind == "later" {
				seeded[kind]++
				if got := b.Uint(schemas.ContainerExec, i); got != want {
					t.Errorf("after a restart of the sensor %q is told as of %d, want %d", args, got, want)
				}
			}
		}
	}
	if seeded["own"] == 0 || seeded["later"] == 0 {
		t.Errorf("after a restart of the sensor only %v were seen", seeded)
	}
	t.Logf("after a restart of the sensor: %v", seeded)
}
