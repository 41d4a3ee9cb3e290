package sensor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"

	"picket/bpf"
	"picket/internal/batch"
	"picket/internal/config"
	"picket/internal/freeport"
	"picket/internal/natsserver"
	"picket/internal/natsserver/natstest"
	"picket/schemas"
	"picket/services/sensor"
	"picket/services/sensor/containerid/cgrouptest"
)

// triggerVariable makes this test binary do, once, what is an event of each
// class: it has the address to connect to.
const triggerVariable = "PICKET_TEST_TRIGGER"

func TestMain(m *testing.M) {
	if address := os.Getenv(triggerVariable); address != "" {
		if err := trigger(address); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func trigger(address string) error {
	if err := os.WriteFile("trigger", nil, 0o600); err != nil {
		return err
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	c.Close()
	if err := syscall.Chroot("none"); err == nil {
		return errors.New("chroot to a missing folder did not fail")
	}
	// Nobody answers; the question is what counts.
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", "127.0.0.1:53")
	}}
	_, _ = r.LookupHost(ctx, "trigger.picket.test.")
	return nil
}

// daemonSet reads daemonset.yaml strictly.
func daemonSet(t *testing.T) *appsv1.DaemonSet {
	t.Helper()
	b, err := os.ReadFile("daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var d appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(b, &d); err != nil {
		t.Fatalf("daemonset.yaml: %v", err)
	}
	return &d
}

func TestConfig(t *testing.T) {
	creds := filepath.Join(t.TempDir(), "sensor.creds")
	if err := os.WriteFile(creds, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := config.Load("sensor", sensor.DefaultConfig(), []string{"--config", "sensor.yaml", "--nats.credentials_file", creds, "--check-config"}, nil, t.Output())
	if !errors.Is(err, config.ErrDone) {
		t.Errorf("sensor.yaml: %v", err)
	}
}

// TestPod checks what no run of one container shows.
func TestPod(t *testing.T) {
	pod := daemonSet(t).Spec.Template.Spec
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Error("the pod gets a token of the Kubernetes API")
	}
	if len(pod.Tolerations) != 1 || pod.Tolerations[0] != (corev1.Toleration{Operator: corev1.TolerationOpExists}) {
		t.Errorf("tolerations %v do not let it run on every node", pod.Tolerations)
	}
	if pod.PriorityClassName != "system-node-critical" {
		t.Errorf("priority class %q", pod.PriorityClassName)
	}
	for _, c := range append(slices.Clone(pod.InitContainers), pod.Containers...) {
		sc := c.SecurityContext
		if sc.Privileged != nil && *sc.Privileged || sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation || sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem {
			t.Errorf("container %s can do more than it needs", c.Name)
		}
		if _, err := os.Stat(filepath.Join("..", "..", "..", "cmd", c.Command[0])); err != nil {
			t.Errorf("container %s: %v", c.Name, err)
		}
		for _, m := range c.VolumeMounts {
			if !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
				t.Errorf("container %s mounts %s, which is no volume", c.Name, m.Name)
			}
		}
	}
	// Where the first container puts the profile is where the kubelet looks for the second's.
	const kubelet = "/var/lib/kubelet/seccomp/"
	i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == "seccomp" })
	init := pod.InitContainers[0]
	if got := filepath.Join(pod.Volumes[i].HostPath.Path, filepath.Base(init.Command[3])); got != kubelet+*pod.Containers[0].SecurityContext.SeccompProfile.LocalhostProfile ||
		init.VolumeMounts[0].MountPath != filepath.Dir(init.Command[3]) {
		t.Errorf("the profile is written to %s and read from %s", got, kubelet+*pod.Containers[0].SecurityContext.SeccompProfile.LocalhostProfile)
	}
}

// added returns the capabilities that the manifest gives, as CAP_….
func added(t *testing.T, c corev1.Container) []string {
	t.Helper()
	caps := c.SecurityContext.Capabilities
	if len(caps.Drop) != 1 || caps.Drop[0] != "ALL" {
		t.Fatalf("capabilities dropped are %v, want ALL", caps.Drop)
	}
	var out []string
	for _, a := range caps.Add {
		out = append(out, "CAP_"+string(a))
	}
	return out
}

// pod is the sensor's container, as an OCI runtime's bundle.
type pod struct {
	t    *testing.T
	dir  string // runtime's state and bundle
	id   string // of the container
	port string // admin
	log  bytes.Buffer
	cmd  *exec.Cmd
	done chan error
}

const podUID = "12345678-9abc-def0-1234-56789abcdef0"

// instance names the pins, which are in the host's BPF file system.
func instance() string { return fmt.Sprintf("pod-%d", os.Getpid()) }

// cgroupParent is a folder of all hierarchies of cgroups that is the test's own.
func cgroupParent() string { return fmt.Sprintf("/picket-test-%d", os.Getpid()) }

// newPod translates the manifest to a bundle, as kubelet and containerd do. What
// is the cluster's is replaced: NATS and its credentials, the ports, the folder
// for state. The pod has the host's network, because NATS is on loopback.
func newPod(t *testing.T, binary string, nats *natsserver.Server, capabilities []string) *pod {
	t.Helper()
	d := daemonSet(t)
	spec := d.Spec.Template.Spec
	c := spec.Containers[0]
	sc := c.SecurityContext
	dir := t.TempDir()
	port, err := freeport.Address("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{t: t, dir: dir, port: port, id: fmt.Sprintf("%064x", time.Now().UnixNano())}

	// The root has the one file, and places to mount on.
	root := filepath.Join(dir, "rootfs")
	bin := filepath.Join(root, "usr/bin", c.Command[0])
	for _, d := range []string{"usr/bin", "proc", "sys", "dev", "host/sys/fs/cgroup", "etc/picket", "etc/picket-credentials", "var/lib/picket/sensor"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(binary, bin); err != nil {
		t.Fatal(err)
	}
	own := map[string]string{} // volumes that are the test's
	for name, file := range map[string]string{"picket-sensor": "sensor.yaml", "picket-sensor-nats": nats.Credentials(schemas.ServiceSensor)} {
		own[name] = filepath.Join(dir, name)
		b, err := os.ReadFile(file)
		if err == nil {
			err = errors.Join(os.Mkdir(own[name], 0o755), os.WriteFile(filepath.Join(own[name], filepath.Base(file)), b, 0o400))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o755); err != nil {
		t.Fatal(err)
	}

	type object = map[string]any
	mount := func(dst, kind, src string, options ...string) object {
		return object{"destination": dst, "type": kind, "source": src, "options": options}
	}
	mounts := []object{
		mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
		mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
		mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
		// As on a node with cgroups of version 2 only: the container's own part.
		mount("/sys/fs/cgroup", "cgroup2", "cgroup", "nosuid", "noexec", "nodev", "ro"),
	}
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		v, src := spec.Volumes[i], ""
		switch {
		case v.ConfigMap != nil:
			src = own[v.ConfigMap.Name]
		case v.Secret != nil:
			src = own[v.Secret.SecretName]
		case v.HostPath.Path == "/var/lib/picket/sensor":
			src = state
		default:
			src = v.HostPath.Path
		}
		mode := "rw"
		if m.ReadOnly {
			mode = "ro"
		}
		mounts = append(mounts, mount(m.MountPath, "bind", src, "rbind", "rprivate", mode))
	}
	env := []string{"PATH=/usr/bin", "PICKET_SENSOR__NATS__URL=" + nats.URL(), "PICKET_SENSOR__ADMIN__LISTEN=" + p.port,
		"PICKET_SENSOR__KERNEL__INSTANCE=" + instance()}
	for _, e := range c.Env {
		switch {
		case e.ValueFrom == nil:
			env = append(env, e.Name+"="+e.Value)
		case e.ValueFrom.FieldRef.FieldPath == "spec.nodeName":
			env = append(env, e.Name+"=node-1")
		default:
			t.Fatalf("environment variable %s is not translated", e.Name)
		}
	}
	// containerd takes the profile as it is for this part. A call that is not in it ends
	// the sensor here, instead of failing, so that none goes unnoticed.
	var seccomp object
	if err := json.Unmarshal(Seccomp, &seccomp); err != nil {
		t.Fatalf("seccomp.json: %v", err)
	}
	seccomp["defaultAction"] = "SCMP_ACT_KILL_PROCESS"
	limit := c.Resources.Limits
	bundle := object{
		"ociVersion": "1.0.2",
		"process": object{
			"user": object{"uid": *sc.RunAsUser, "gid": 0}, "cwd": "/", "args": c.Command, "env": env,
			"capabilities":    object{"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
			"noNewPrivileges": !*sc.AllowPrivilegeEscalation,
		},
		"root":     object{"path": root, "readonly": *sc.ReadOnlyRootFilesystem},
		"hostname": "node-1",
		"mounts":   mounts,
		"linux": object{
			"cgroupsPath": filepath.Join(cgroupParent(), "kubepods/burstable/pod"+podUID, p.id),
			"resources": object{
				"memory":  object{"limit": limit.Memory().Value()},
				"cpu":     object{"quota": limit.Cpu().MilliValue() * 100, "period": 100_000},
				"devices": []object{{"allow": false, "access": "rwm"}},
			},
			// hostPID: no namespace of pids.
			"namespaces":    []object{{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "cgroup"}},
			"seccomp":       seccomp,
			"maskedPaths":   []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
			"readonlyPaths": []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	if !spec.HostPID {
		t.Error("the pod has not the host's pids")
	}
	b, err := json.Marshal(bundle)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pod) runc(args ...string) *exec.Cmd {
	return exec.Command("runc", append([]string{"--root", filepath.Join(p.dir, "runc")}, args...)...)
}

// start starts the container; wait returns how it ended.
func (p *pod) start() {
	p.t.Helper()
	p.cmd = p.runc("run", "--bundle", p.dir, p.id)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.done = make(chan error, 1)
	go func() { p.done <- p.cmd.Wait() }()
	p.t.Cleanup(func() {
		// All of it is gone already where all went well.
		_ = p.runc("delete", "--force", p.id).Run()
		_ = os.RemoveAll("/sys/fs/bpf/picket/" + instance())
		removeCgroups()
	})
}

// removeCgroups removes what the runtime leaves of the cgroups' path.
func removeCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		tops, _ := filepath.Glob(pattern + cgroupParent())
		for _, top := range tops {
			for _, d := range []string{"kubepods/burstable/pod" + podUID, "kubepods/burstable", "kubepods", ""} {
				_ = os.Remove(filepath.Join(top, d))
			}
		}
	}
}

func (p *pod) wait() error {
	p.t.Helper()
	select {
	case err := <-p.done:
		return err
	case <-time.After(20 * time.Second):
		p.t.Fatal("the container does not end")
		return nil
	}
}

// ready waits until the probe of the manifest would succeed.
func (p *pod) ready() {
	p.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if r, err := http.Get("http://" + p.port + "/readyz"); err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case err := <-p.done:
			p.t.Fatalf("the sensor ended: %v\n%s", err, &p.log)
		default:
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("the sensor is not ready in 20 s:\n%s", &p.log)
		}
	}
}

// pid is the sensor's process.
func (p *pod) pid() int {
	p.t.Helper()
	out, err := p.runc("state", p.id).Output()
	if err != nil {
		p.t.Fatal(err)
	}
	var state struct{ PID int }
	if err := json.Unmarshal(out, &state); err != nil {
		p.t.Fatal(err)
	}
	return state.PID
}

func needRunc(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED (needs root): the sensor was not run with the rights of its manifest")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Fatal("runc is missing, which runs the sensor with the rights of its manifest: scripts/install.sh test installs it")
	}
}

func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "picket-sensor")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "picket/cmd/picket-sensor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the sensor: %v\n%s", err, out)
	}
	return binary
}

// TestLeastRights: with just the rights of the manifest the sensor sees events of
// every class, gives up what it needs no more, and ends cleanly.
func TestLeastRights(t *testing.T) {
	needRunc(t)
	nats := natstest.Start(t)
	p := newPod(t, build(t), nats, added(t, daemonSet(t).Spec.Template.Spec.Containers[0]))
	p.start()
	p.ready()
	pid := p.pid()

	// Every thread has what is kept, and cannot get more.
	const kept = "0000000000080004" // CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, task.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for key, want := range map[string]string{"CapInh": "0000000000000000", "CapPrm": kept, "CapEff": kept, "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"} {
			_, after, _ := strings.Cut(string(status), "\n"+key+":")
			if got := strings.TrimSpace(after[:strings.IndexByte(after, '\n')]); got != want {
				t.Errorf("thread %s: %s is %q, want %s", task.Name(), key, got, want)
			}
		}
	}
	// Root may write to that folder, if it is mounted so.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/root/usr/bin/more", pid), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to the sensor's root: %v, want %v", err, unix.EROFS)
	}

	// A process in a container of another pod, by its cgroup.
	const victimUID, victim = "abcdef01-2345-6789-abcd-ef0123456789", "feedc0defeedc0defeedc0defeedc0defeedc0defeedc0defeedc0defeedc0de"
	cgroup := cgrouptest.Make(t, filepath.Join(cgroupParent()+"-victim", "pod"+victimUID, victim))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Dir, cmd.Env = t.TempDir(), append(os.Environ(), triggerVariable+"="+ln.Addr().String())
	if out, err := cgrouptest.CombinedOutput(t, cmd, cgroup); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	// A process of the host of another user.
	user := exec.Command("sleep", "0.1")
	user.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := user.Run(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	if out, err := p.runc("kill", p.id, "TERM").CombinedOutput(); err != nil {
		t.Fatalf("runc kill: %v %s", err, out)
	}
	if err := p.wait(); err != nil {
		t.Errorf("the sensor did not end cleanly: %v", err)
	}
	if out := p.log.String(); strings.Contains(out, `"level":"WARN"`) || strings.Contains(out, `"level":"ERROR"`) || strings.Contains(out, "not permitted") {
		t.Errorf("the sensor complains:\n%s", out)
	}

	seen := map[string]int{} // events of the trigger by class
	named := false
	for _, b := range batches(t, nats) {
		for r := range b.Rows() {
			if b.Str(schemas.Node, r) != "node-1" {
				t.Fatalf("node %q", b.Str(schemas.Node, r))
			}
			switch int(b.Uint(schemas.ProcessPID, r)) {
			case cmd.Process.Pid:
				seen[b.Class().String()]++
				if id, uid := b.Str(schemas.ContainerID, r), b.Str(schemas.PodUID, r); id != victim || uid != victimUID {
					t.Errorf("%s by container %q of pod %q", b.Str(schemas.Action, r), id, uid)
				}
			case user.Process.Pid:
				named = named || b.Str(schemas.ProcessUserName, r) == "nobody"
			}
		}
	}
	for _, class := range classes() {
		if seen[class] == 0 {
			t.Errorf("no event of class %s", class)
		}
	}
	t.Run("names of the host's users", func(t *testing.T) {
		if _, err := os.Stat(filepath.Join("/proc/1/root", "etc/passwd")); err != nil {
			t.Skipf("SKIPPED (this machine forbids what the sensor reads them by: %v): the names were not checked", err)
		}
		if !named {
			t.Error("a user of the host has no name")
		}
	})
	t.Logf("events of the trigger: %v", seen)
	if t.Failed() {
		t.Logf("log:\n%s", &p.log)
	}
}

// classes are those that the sensor sees.
func classes() []string {
	var out []string
	for c := range bpf.Class(bpf.NumClasses) {
		out = append(out, c.String())
	}
	return out
}

// batches decodes everything on PICKET_RAW.
func batches(t *testing.T, s *natsserver.Server) []*batch.Batch {
	t.Helper()
	st, err := natstest.Connect(t, s, schemas.ServiceAdmin).JS.Stream(t.Context(), schemas.StreamRaw)
	if err != nil {
		t.Fatal(err)
	}
	info, err := st.Info(t.Context(), jetstream.WithSubjectFilter(">"))
	if err != nil {
		t.Fatal(err)
	}
	var out []*batch.Batch
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		m, err := st.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		b, err := batch.Decode(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// TestEachRight: without any one of the capabilities the sensor does not run,
// and says which it was.
func TestEachRight(t *testing.T) {
	needRunc(t)
	nats := natstest.Start(t)
	binary := build(t)
	all := added(t, daemonSet(t).Spec.Template.Spec.Containers[0])
	for i, missing := range all {
		t.Run(missing, func(t *testing.T) {
			p := newPod(t, binary, nats, slices.Delete(slices.Clone(all), i, i+1))
			p.start()
			err := p.wait()
			lines := strings.Split(strings.TrimSpace(p.log.String()), "\n")
			last := lines[len(lines)-1]
			if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.HasPrefix(last, "picket-sensor: ") || !strings.Contains(last, missing) {
				t.Errorf("%v; it says:\n%s", err, &p.log)
			}
			t.Log(last)
		})
	}
}

// TestProfile checks what the profile leaves out, by name.
func TestProfile(t *testing.T) {
	var profile struct {
		DefaultAction string
		Architectures []string
		Syscalls      []struct {
			Names  []string
			Action string
		}
	}
	if err := json.Unmarshal(Seccomp, &profile); err != nil {
		t.Fatal(err)
	}
	if profile.DefaultAction != "SCMP_ACT_ERRNO" || !slices.Equal(profile.Architectures, []string{"SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"}) {
		t.Errorf("%s for %v", profile.DefaultAction, profile.Architectures)
	}
	calls := 0
	for _, s := range profile.Syscalls {
		if s.Action != "SCMP_ACT_ALLOW" {
			continue
		}
		for _, name := range s.Names {
			calls++
			if slices.Contains([]string{"mount", "umount2", "setns", "unshare", "ptrace", "process_vm_readv", "process_vm_writev", "init_module", "finit_module", "kexec_load",
				"keyctl", "chroot", "pivot_root", "setuid", "setresuid", "chmod", "fchmodat", "mknodat", "io_uring_setup", "perf_event_open", "userfaultfd", "memfd_create", "clone3", "kill"}, name) {
				t.Errorf("the profile allows %s", name)
			}
		}
	}
	t.Log(strconv.Itoa(calls), "system calls")
}
