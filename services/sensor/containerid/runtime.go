package containerid

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sys/unix"

	"picket/internal/image"
)

// Names is what a container's runtime has written of it. All of it may be
// empty; nothing depends on it.
type Names struct {
	Runtime      string // that the state belongs to
	Container    string // in a pod its name there, else that of the runtime; empty for a pod's sandbox
	Image        string // repository, registry included
	Tag          string
	Digest       string // sha256:…
	ImageID      string // 64 hex digits
	Pod          string
	PodNamespace string
}

// Bounds on what a runtime's file may make the sensor do: a container's owner
// has words in it.
const (
	maxStateFile = 1 << 20 // bytes
	maxName      = 512     // bytes; what is longer is left out
	namesKept    = 4096    // containers
)

// Runtimes reads the state that container runtimes keep of their containers, in
// their own files. It is safe for concurrent use.
type Runtimes struct {
	roots []string // the host's root folder: the first that can be opened
	cache *lru.Cache[string, Names]
}

// NewRuntimes returns a reader of the host's runtimes. The host's root is that of
// pid 1, or this process's own where that may not be seen.
func NewRuntimes() *Runtimes { return newRuntimes("/proc/1/root", "/") }

func newRuntimes(roots ...string) *Runtimes {
	c, err := lru.New[string, Names](namesKept)
	if err != nil {
		panic(err) // only a size below 1 is refused
	}
	return &Runtimes{roots: roots, cache: c}
}

// Known returns what an earlier Read found of a container, which may be
// nothing; ok is false when there was none.
func (r *Runtimes) Known(id string) (n Names, ok bool) { return r.cache.Get(id) }

// Read reads a container's names and keeps them, also that there are none: it
// costs a few files once in a container's life. outside is the pid of a process
// that is in another container than this one, such as the runtime's of a node
// that is a container itself (kind), whose files are looked for too; 0: none.
// ok is false when nothing was found.
func (r *Runtimes) Read(id string, outside uint32) (n Names, ok bool) {
	for _, path := range r.roots {
		if root, err := os.Open(path); err == nil {
			n, ok = lookFor(root, id)
			root.Close()
			break
		}
	}
	if !ok && outside != 0 {
		if root, err := os.Open(fmt.Sprintf("/proc/%d/root/", outside)); err == nil {
			n, ok = lookFor(root, id)
			root.Close()
		}
	}
	r.cache.Add(id, n)
	return n, ok
}

// states are where runtimes keep a container's state, and how it reads. A "*"
// stands for the id.
var states = []struct {
	runtime, path string
	parse         func(state []byte, id string) (Names, error)
}{
	{"containerd", "run/containerd/io.containerd.runtime.v2.task/k8s.io/*/config.json", parseContainerd},
	{"containerd", "run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/*/config.json", parseContainerd}, // and RKE2
	{"containerd", "run/k0s/containerd/io.containerd.runtime.v2.task/k8s.io/*/config.json", parseContainerd},
	{"containerd", "var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task/k8s.io/*/config.json", parseContainerd},
	{"docker", "var/lib/docker/containers/*/config.v2.json", parseDocker},
	{"docker", "var/snap/docker/common/var-lib-docker/containers/*/config.v2.json", parseDocker},
	{"cri-o", "run/containers/storage/overlay-containers/*/userdata/config.json", parseCRIO},
	{"cri-o", "var/lib/containers/storage/overlay-containers/*/userdata/config.json", parseCRIO},
	{"podman", "var/lib/containers/storage/overlay-containers/containers.json", parsePodman},
}

// errNotIts: the file is there and tells of other containers.
var errNotIts = errors.New("not this container's")

func lookFor(root *os.File, id string) (Names, bool) {
	if !isID(id) {
		return Names{}, false // it becomes part of a path
	}
	for _, s := range states {
		b, err := readState(root, strings.Replace(s.path, "*", id, 1))
		if err != nil {
			continue
		}
		if n, err := s.parse(b, id); err == nil {
			n.Runtime = s.runtime
			n.bound()
			return n, true
		}
	}
	return Names{}, false
}

// readState reads a regular file of bounded size below root, links taken as
// somebody there would.
func readState(root *os.File, path string) ([]byte, error) {
	fd, err := unix.Openat2(int(root.Fd()), path, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxStateFile {
		return nil, fmt.Errorf("%s: not a file of at most %d bytes", path, maxStateFile)
	}
	return io.ReadAll(io.LimitReader(f, maxStateFile))
}

// bound leaves out what is too long to be a name.
func (n *Names) bound() {
	for _, s := range []*string{&n.Container, &n.Image, &n.Tag, &n.Digest, &n.ImageID, &n.Pod, &n.PodNamespace} {
		if len(*s) > maxName || strings.ContainsFunc(*s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			*s = ""
		}
	}
}

// setImage takes an image reference apart.
func (n *Names) setImage(ref string) {
	if ref != "" && len(ref) <= 2*maxName && !isID(ref) {
		n.Image, n.Tag, n.Digest = image.Parse(ref)
	}
}

// bundle is the part of an OCI bundle's config.json that names.
type bundle struct {
	Annotations map[string]string `json:"annotations"`
}

func parseContainerd(state []byte, _ string) (n Names, err error) {
	var b bundle
	if err := json.Unmarshal(state, &b); err != nil {
		return n, err
	}
	const cri = "io.kubernetes.cri."
	n.Container = b.Annotations[cri+"container-name"]
	n.Pod, n.PodNamespace = b.Annotations[cri+"sandbox-name"], b.Annotations[cri+"sandbox-namespace"]
	n.setImage(b.Annotations[cri+"image-name"])
	return n, nil
}

func parseCRIO(state []byte, _ string) (n Names, err error) {
	var b bundle
	if err := json.Unmarshal(state, &b); err != nil {
		return n, err
	}
	const k8s, crio = "io.kubernetes.", "io.kubernetes.cri-o."
	kind, ok := b.Annotations[crio+"ContainerType"]
	if !ok {
		return n, errNotIts // podman keeps its bundles in the same place
	}
	n.Pod, n.PodNamespace = b.Annotations[k8s+"pod.name"], b.Annotations[k8s+"pod.namespace"]
	if kind == "sandbox" {
		return n, nil
	}
	n.Container = b.Annotations[k8s+"container.name"]
	n.setImage(b.Annotations[crio+"ImageName"])
	for _, key := range []string{"Image", "ImageRef"} { // versions differ in which is which
		v := b.Annotations[crio+key]
		if _, digest, ok := strings.Cut(v, "@"); ok && n.Digest == "" {
			n.Digest = digest
		}
		if isID(v) {
			n.ImageID = v
		}
	}
	return n, nil
}

func parseDocker(state []byte, _ string) (n Names, err error) {
	var c struct {
		Name   string
		Image  string
		Config struct {
			Image  string
			Labels map[string]string
		}
	}
	if err := json.Unmarshal(state, &c); err != nil {
		return n, err
	}
	n.Container = strings.TrimPrefix(c.Name, "/")
	const k8s = "io.kubernetes."
	if name := c.Config.Labels[k8s+"container.name"]; name != "" { // cri-dockerd
		n.Container = name
		n.Pod, n.PodNamespace = c.Config.Labels[k8s+"pod.name"], c.Config.Labels[k8s+"pod.namespace"]
	}
	n.setImage(c.Config.Image)
	if id := strings.TrimPrefix(c.Image, "sha256:"); isID(id) {
		n.ImageID = id
	}
	return n, nil
}

// parsePodman reads the list of all containers that podman's storage has.
func parsePodman(state []byte, id string) (n Names, err error) {
	var all []struct {
		ID       string   `json:"id"`
		Names    []string `json:"names"`
		Image    string   `json:"image"`
		Metadata string   `json:"metadata"` // JSON again
	}
	if err := json.Unmarshal(state, &all); err != nil {
		return n, err
	}
	for _, c := range all {
		if c.ID != id {
			continue
		}
		if len(c.Names) > 0 {
			n.Container = c.Names[0]
		}
		if isID(c.Image) {
			n.ImageID = c.Image
		}
		var meta struct {
			Image string `json:"image-name"`
			Name  string `json:"name"`
		}
		if json.Unmarshal([]byte(c.Metadata), &meta) == nil {
			n.setImage(meta.Image)
			if meta.Name != "" {
				n.Container = meta.Name
			}
		}
		return n, nil
	}
	return n, errNotIts
}
