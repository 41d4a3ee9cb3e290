package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"picket/services/sensor/containerid"
)

// Set in the environment of this test binary it makes it a program that starts a cluster and is killed.
const victim = "PICKET_CLUSTER_VICTIM"

func TestMain(m *testing.M) {
	Serve()
	if os.Getenv(victim) != "" {
		c, err := New(context.Background())
		if err == nil {
			err = c.StartAPI(context.Background(), "")
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("place", c.place.n, c.keeper.Process.Pid, c.PID)
		select {}
	}
	goleak.VerifyTestMain(m)
}

func start(t *testing.T) *Cluster {
	t.Helper()
	if err := Check(); errors.Is(err, ErrMissing) {
		t.Skipf("SKIPPED (%v): a Kubernetes cluster was not started", err)
	}
	c, err := New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
		if left := c.place.left(); left != "" {
			t.Errorf("left after Stop: %s", left)
		}
	})
	return c
}

// left says what is there of a cluster that has ended.
func (p place) left() string {
	var out []string
	if _, err := os.Stat(p.folder); !errors.Is(err, fs.ErrNotExist) {
		out = append(out, p.folder)
	}
	all, err := p.cgroups()
	if err != nil {
		out = append(out, err.Error())
	}
	for _, dir := range all {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			out = append(out, dir)
		}
	}
	if _, err := net.InterfaceByName(p.link()); err == nil {
		out = append(out, "network interface "+p.link())
	}
	return strings.Join(out, ", ")
}

func client(t *testing.T, c *Cluster) *kubernetes.Clientset {
	t.Helper()
	cfg, err := c.Client(Admin)
	if err != nil {
		t.Fatal(err)
	}
	k, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestContainers: an API server alone, and containers that the sensor takes for those of a pod that it has.
func TestContainers(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := start(t)
	begin := time.Now()
	if err := c.StartAPI(ctx, ""); err != nil {
		t.Fatal(err)
	}
	t.Logf("API server ready after %v", time.Since(begin).Round(time.Millisecond))
	k := client(t, c)
	if _, err := k.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod, err := k.CoreV1().Pods("default").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec: corev1.PodSpec{NodeName: NodeName, Containers: []corev1.Container{{Name: "c", Image: Busybox}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	id := strings.Repeat("5c", 32)
	begin = time.Now()
	if err := c.StartContainer(ctx, Container{PodUID: string(pod.UID), ID: id, QoS: "besteffort", Args: []string{"sleep", "1000"}}); err != nil {
		t.Fatal(err)
	}
	t.Logf("container started in %v", time.Since(begin).Round(time.Millisecond))
	cgroup, err := c.Exec(ctx, id, "cat", "/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(cgroup) {
		path := strings.TrimSpace(line[strings.LastIndexByte(line, ':')+1:])
		if in := containerid.Parse(path); path != "/" && (in.PodUID != string(pod.UID) || in.ContainerID != id) {
			t.Errorf("cgroup %q is of pod %q, container %q", line, in.PodUID, in.ContainerID)
		}
	}
	if !strings.Contains(cgroup, string(pod.UID)) {
		t.Errorf("the container is in no cgroup of the pod: %s", cgroup)
	}
	if err := c.RemoveContainer(ctx, id); err != nil {
		t.Error(err)
	}
	if log, err := os.ReadFile(c.AuditLog()); err != nil || !strings.Contains(string(log), `"resource":"pods"`) {
		t.Errorf("the creation of the pod is not in the audit log: %v", err)
	}
}

// TestNode: the whole node, at the same time as another cluster, with two programs of it stopped and started.
func TestNode(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := start(t)
	begin := time.Now()
	if err := c.StartAPI(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if err := c.StartNode(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("node Ready after %v", time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	if _, err := c.Kubectl(ctx, Admin, "", "run", "p", "--image", Busybox, "--image-pull-policy=Never", "--", "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Kubectl(ctx, Admin, "", "wait", "--for=condition=Ready", "--timeout=60s", "pod/p"); err != nil {
		t.Fatal(err)
	}
	t.Logf("a pod Ready after %v", time.Since(begin).Round(time.Millisecond))
	// From inside a pod: the API server at its service's address; and the node's own file system is not the machine's.
	out, err := c.Kubectl(ctx, Admin, "", "exec", "p", "--", "wget", "-q", "-O-", "--no-check-certificate", "https://"+servicesIP+"/version")
	if err != nil || !strings.Contains(out, "gitVersion") {
		t.Errorf("the API server from a pod: %s, %v", out, err)
	}
	if _, err := c.Run(ctx, "sh", "-c", "echo x >/etc/picket-test-of-cluster; echo 1 >/proc/sys/vm/panic_on_oom"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/etc/picket-test-of-cluster"); err == nil {
		t.Error("what the node wrote into /etc is in the machine's")
	}
	if b, err := os.ReadFile("/proc/sys/vm/panic_on_oom"); err != nil || strings.TrimSpace(string(b)) != "0" {
		t.Errorf("the node changed a sysctl of the machine: panic_on_oom is %s, %v", b, err)
	}
	if out, err := c.Kubectl(ctx, Alice, "", "get", "nodes"); err == nil {
		t.Errorf("alice has rights: %s", out)
	}
	for _, program := range []string{APIServer, Kubelet} {
		if err := c.Kill(ctx, program, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := c.Restart(ctx, program); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(c.AwaitAPI(ctx), c.AwaitNode(ctx)); err != nil {
		t.Fatal(err)
	}
	if out, err := c.Kubectl(ctx, Admin, "", "exec", "p", "--", "true"); err != nil {
		t.Errorf("the pod after a restart of API server and kubelet: %s, %v", out, err)
	}
}

// TestKilled kills a program that has a cluster, and the keeper of another.
func TestKilled(t *testing.T) {
	if err := Check(); errors.Is(err, ErrMissing) {
		t.Skipf("SKIPPED (%v): what a killed program leaves of its cluster was not looked at", err)
	}
	for _, of := range []string{"program", "keeper"} {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		v := exec.Command(self)
		v.Env = append(os.Environ(), victim+"=1")
		out, err := v.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := v.Start(); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(out).ReadString('\n')
		var n, keeper, pid int
		if _, err := fmt.Sscanf(line, "place %d %d %d", &n, &keeper, &pid); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		p, err := placeOf(n)
		if err != nil {
			t.Fatal(err)
		}
		namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		if err != nil {
			t.Fatal(err)
		}
		if p.left() == "" || len(processes(namespace)) < 2 {
			t.Fatal("there is nothing of a cluster that runs")
		}
		folder, err := os.Stat(p.folder)
		if err != nil {
			t.Fatal(err)
		}
		if of == "program" {
			if err := v.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = v.Wait() // killed
		} else {
			k, err := os.FindProcess(keeper)
			if err != nil {
				t.Fatal(err)
			}
			if err := k.Kill(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = v.Process.Kill()
				_ = v.Wait() // killed
			}()
			// All processes die with it; the next cluster at its place removes the rest.
			for end := time.Now().Add(20 * time.Second); len(processes(namespace)) > 0; time.Sleep(50 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("processes left: %v", processes(namespace))
				}
			}
		}
		// Another program's cluster may have the place by now, which has removed what was there then.
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			now, err := os.Stat(p.folder)
			if err == nil && !os.SameFile(folder, now) {
				break
			}
			lock, err := os.OpenFile(p.folder+".lock", os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			free := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
			if free && of == "keeper" {
				if err := p.clean(); err != nil {
					t.Error(err)
				}
			}
			left := p.left()
			lock.Close()
			if free && left == "" {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s killed; left: %s", of, left)
			}
		}
	}
}

// processes are those in a pid namespace.
func processes(namespace string) (out []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	for _, link := range all {
		if ns, err := os.Readlink(link); err == nil && ns == namespace {
			out = append(out, link)
		}
	}
	return out
}

func TestPolicy(t *testing.T) {
	b, err := auditPolicy()
	if err != nil || !strings.Contains(string(b), "level: Metadata") {
		t.Errorf("%s, %v", b, err)
	}
}
