package containerid

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The files are in the runtimes' own form, shortened to what is read and some
// of what is not.
const (
	containerdState = `{"ociVersion":"1.2.1","process":{"args":["/app"],"env":["PATH=/bin"]},"hostname":"web-1","annotations":{
		"io.kubernetes.cri.container-name":"app","io.kubernetes.cri.container-type":"container","io.kubernetes.cri.image-name":"registry.example.com/shop/web:1.2",
		"io.kubernetes.cri.sandbox-id":"x","io.kubernetes.cri.sandbox-name":"web-1","io.kubernetes.cri.sandbox-namespace":"shop","io.kubernetes.cri.sandbox-uid":"` + uid + `"}}`
	containerdSandbox = `{"ociVersion":"1.2.1","annotations":{"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"x",
		"io.kubernetes.cri.sandbox-name":"web-1","io.kubernetes.cri.sandbox-namespace":"shop"}}`
	sum = "sha256:9f1003c480699be56815db0f8146ad2e22efea85129b5b5983d0e0fb52d9ab70"
)

var (
	crioState = `{"ociVersion":"1.1.0","annotations":{"io.container.manager":"cri-o","io.kubernetes.container.name":"app","io.kubernetes.cri-o.ContainerType":"container",
		"io.kubernetes.cri-o.Image":"` + id2 + `","io.kubernetes.cri-o.ImageName":"quay.io/shop/web:1.2","io.kubernetes.cri-o.ImageRef":"quay.io/shop/web@` + sum + `",
		"io.kubernetes.pod.name":"web-1","io.kubernetes.pod.namespace":"shop","io.kubernetes.pod.uid":"` + uid + `"}}`
	crioSandbox = `{"ociVersion":"1.1.0","annotations":{"io.kubernetes.container.name":"POD","io.kubernetes.cri-o.ContainerType":"sandbox","io.kubernetes.cri-o.Image":"registry.k8s.io/pause:3.9",
		"io.kubernetes.pod.name":"web-1","io.kubernetes.pod.namespace":"shop"}}`
	dockerState  = `{"ID":"` + id + `","Name":"/web","Image":"sha256:` + id2 + `","Config":{"Image":"nginx:1.25","Labels":{"maintainer":"x"}},"State":{"Running":true}}`
	dockerKube   = `{"ID":"` + id + `","Name":"/k8s_app_web-1_shop_u_0","Image":"sha256:` + id2 + `","Config":{"Image":"` + sum + `","Labels":{"io.kubernetes.container.name":"app","io.kubernetes.pod.name":"web-1","io.kubernetes.pod.namespace":"shop"}}}`
	podmanBundle = `{"ociVersion":"1.2.0","annotations":{"io.container.manager":"libpod"}}`
	podmanList   = `[{"id":"` + id2 + `","names":["other"]},{"id":"` + id + `","names":["web"],"image":"` + id2 + `","layer":"x",
		"metadata":"{\"image-name\":\"docker.io/library/nginx:1.25\",\"image-id\":\"` + id2 + `\",\"name\":\"web\",\"created-at\":1}"}]`
)

// put writes a file below root, and the folders to it.
func put(t *testing.T, root, path, text string) {
	t.Helper()
	path = filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRuntimes(t *testing.T) {
	const containerd, docker = "io.containerd.runtime.v2.task/k8s.io/", "var/lib/docker/containers/"
	const storage = "containers/storage/overlay-containers/"
	web := Names{Runtime: "containerd", Container: "app", Image: "registry.example.com/shop/web", Tag: "1.2", Pod: "web-1", PodNamespace: "shop"}
	crio := Names{Runtime: "cri-o", Container: "app", Image: "quay.io/shop/web", Tag: "1.2", Digest: sum, ImageID: id2, Pod: "web-1", PodNamespace: "shop"}
	nginx := Names{Runtime: "docker", Container: "web", Image: "docker.io/library/nginx", Tag: "1.25", ImageID: id2}
	podman := nginx
	podman.Runtime = "podman"
	for _, tt := range []struct {
		name  string
		files []string // path and text in turn
		want  Names
	}{
		{"containerd", []string{"run/containerd/" + containerd + id + "/config.json", containerdState}, web},
		{"containerd, sandbox", []string{"run/containerd/" + containerd + id + "/config.json", containerdSandbox}, Names{Runtime: "containerd", Pod: "web-1", PodNamespace: "shop"}},
		{"k3s", []string{"run/k3s/containerd/" + containerd + id + "/config.json", containerdState}, web},
		{"k0s", []string{"run/k0s/containerd/" + containerd + id + "/config.json", containerdState}, web},
		{"microk8s", []string{"var/snap/microk8s/common/run/containerd/" + containerd + id + "/config.json", containerdState}, web},
		{"cri-o", []string{"run/" + storage + id + "/userdata/config.json", crioState}, crio},
		{"cri-o, what it keeps on disk", []string{"var/lib/" + storage + id + "/userdata/config.json", crioState}, crio},
		{"cri-o, sandbox", []string{"run/" + storage + id + "/userdata/config.json", crioSandbox}, Names{Runtime: "cri-o", Pod: "web-1", PodNamespace: "shop"}},
		{"docker", []string{docker + id + "/config.v2.json", dockerState}, nginx},
		{"docker in Kubernetes", []string{docker + id + "/config.v2.json", dockerKube}, Names{Runtime: "docker", Container: "app", Digest: sum, ImageID: id2, Pod: "web-1", PodNamespace: "shop"}},
		{"podman", []string{"var/lib/" + storage + id + "/userdata/config.json", podmanBundle, "var/lib/" + storage + "containers.json", podmanList}, podman},
		{"another container's", []string{docker + id2 + "/config.v2.json", dockerState}, Names{}},
		{"not JSON", []string{docker + id + "/config.v2.json", "{"}, Names{}},
		{"another type", []string{"run/containerd/" + containerd + id + "/config.json", `{"annotations":{"a":1}}`}, Names{}},
		{"the next runtime is asked", []string{docker + id + "/config.v2.json", "{", "run/" + storage + id + "/userdata/config.json", crioState}, crio},
		{"too large", []string{docker + id + "/config.v2.json", strings.Repeat(" ", maxStateFile) + dockerState}, Names{}},
		{"a name too long", []string{docker + id + "/config.v2.json", `{"Name":"/` + strings.Repeat("x", maxName+1) + `"}`}, Names{Runtime: "docker"}},
		{"a name that would forge lines", []string{docker + id + "/config.v2.json", `{"Name":"/a\nb"}`}, Names{Runtime: "docker"}},
		{"nothing", nil, Names{}},
	} {
		root := t.TempDir()
		for i := 0; i+1 < len(tt.files); i += 2 {
			put(t, root, tt.files[i], tt.files[i+1])
		}
		r := newRuntimes(root)
		if _, ok := r.Known(id); ok {
			t.Errorf("%s: known before it was read", tt.name)
		}
		got, ok := r.Read(id, 0)
		if got != tt.want || ok != (tt.want != Names{}) {
			t.Errorf("%s:\n got %+v %v\nwant %+v", tt.name, got, ok, tt.want)
		}
		if again, ok := r.Known(id); again != tt.want || !ok {
			t.Errorf("%s: remembered as %+v %v", tt.name, again, ok)
		}
	}
}

// TestRuntimesHostile: what stands in a state's place can neither stop the
// sensor nor make it read what is outside of the root.
func TestRuntimesHostile(t *testing.T) {
	place := "var/lib/docker/containers/" + id + "/config.v2.json"
	outside := t.TempDir()
	put(t, outside, "state", dockerState)
	for name, lay := range map[string]func(path string) error{
		"a pipe":         func(p string) error { return syscall.Mkfifo(p, 0o644) },
		"a folder":       func(p string) error { return os.Mkdir(p, 0o755) },
		"a link outside": func(p string) error { return os.Symlink(filepath.Join(outside, "state"), p) },
		"a way up": func(p string) error {
			return os.Symlink("../../../../../../../../../.."+filepath.Join(outside, "state"), p)
		},
		"a link to itself":  func(p string) error { return os.Symlink(p, p) },
		"a process's files": func(p string) error { return os.Symlink("/proc/self/root"+filepath.Join(outside, "state"), p) },
	} {
		root := t.TempDir()
		path := filepath.Join(root, place)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := lay(path); err != nil {
			t.Fatal(err)
		}
		done := make(chan bool, 1)
		go func() {
			_, ok := newRuntimes(root).Read(id, 0)
			done <- ok
		}()
		select {
		case ok := <-done:
			if ok {
				t.Errorf("%s was read", name)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: the read hangs", name)
		}
	}
	root := t.TempDir()
	put(t, root, "elsewhere/config.v2.json", dockerState)
	if err := os.MkdirAll(filepath.Join(root, "var/lib/docker/containers"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/elsewhere", filepath.Join(root, filepath.Dir(place))); err != nil {
		t.Fatal(err)
	}
	if n, ok := newRuntimes(root).Read(id, 0); !ok || n.Container != "web" {
		t.Errorf("a host's own link is followed from its root: %+v %v", n, ok)
	}
	for _, bad := range []string{"", "..", "../" + id, strings.ToUpper(id)} {
		if _, ok := newRuntimes(root).Read(bad, 0); ok {
			t.Errorf("%q is no id", bad)
		}
	}
}

// TestRuntimesOfNode: the state is in the root of a node that is a container
// itself.
func TestRuntimesOfNode(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED (needs root): no process in another root was asked")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox-static is not installed: scripts/install.sh test installs it")
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	node := t.TempDir()
	put(t, node, "run/containerd/io.containerd.runtime.v2.task/k8s.io/"+id+"/config.json", containerdState)
	put(t, node, "busybox", string(b))
	if err := os.Chmod(filepath.Join(node, "busybox"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/busybox", "cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: node}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); cmd.Wait() }()
	if n, ok := newRuntimes(t.TempDir()).Read(id, uint32(cmd.Process.Pid)); !ok || n.Container != "app" {
		t.Errorf("%+v %v", n, ok)
	}
}

func FuzzStates(f *testing.F) {
	for _, s := range []string{containerdState, containerdSandbox, crioState, crioSandbox, dockerState, dockerKube, podmanBundle, podmanList, "[]", "null"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, state []byte) {
		for _, s := range states {
			n, err := s.parse(state, id)
			if err != nil && n != (Names{}) {
				t.Fatalf("%s: %v, and yet %+v", s.path, err, n)
			}
			n.bound()
			for _, v := range []string{n.Container, n.Image, n.Tag, n.Digest, n.ImageID, n.Pod, n.PodNamespace} {
				if len(v) > maxName || strings.ContainsAny(v, "\n\x00") {
					t.Fatalf("%s: %q", s.path, v)
				}
			}
		}
	})
}
