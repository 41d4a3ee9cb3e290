package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrMissing says that programs which a cluster is made of are not on this machine. Its message names what is
// missing and what gets it.
var ErrMissing = errors.New("missing for a Kubernetes cluster")

// module is the Go module that builds the Kubernetes programs, in the repository.
const module = "test/kube"

// built are the programs that it builds.
var built = []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet", "pause"}

// installed are those that scripts/install.sh kube installs.
var installed = []string{"etcd", "containerd", "containerd-shim-runc-v2", "ctr", "runc", "ip", "iptables", "busybox"}

var versionLine = regexp.MustCompile(`(?m)^require k8s\.io/kubernetes (v\S+)$`)

// Root returns the repository's root, which the working folder is in.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, module, "go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is not in Picket's repository: no %s/go.mod above it", dir, module)
		}
	}
}

// cacheFolder is where what outlives a checkout is kept.
func cacheFolder() (string, error) {
	if dir := os.Getenv("PICKET_CACHE"); dir != "" {
		return filepath.Join(dir, "kube"), nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder for Kubernetes: %w (set PICKET_CACHE)", err)
	}
	return filepath.Join(dir, "picket", "kube"), nil
}

// binaries returns the folder of the built programs, which need not be there, and the version of Kubernetes. The
// name has the versions of Kubernetes and Go and a hash of what is built, so that a change makes another.
func binaries() (folder, version string, err error) {
	root, err := Root()
	if err != nil {
		return "", "", err
	}
	h := sha256.New()
	var mod []byte
	for _, file := range []string{"go.mod", "go.sum", "pause/main.go"} {
		b, err := os.ReadFile(filepath.Join(root, module, file))
		if err != nil {
			return "", "", err
		}
		h.Write(b)
		if file == "go.mod" {
			mod = b
		}
	}
	m := versionLine.FindSubmatch(mod)
	if m == nil {
		return "", "", fmt.Errorf("%s/go.mod requires no k8s.io/kubernetes", module)
	}
	cache, err := cacheFolder()
	if err != nil {
		return "", "", err
	}
	version = string(m[1])
	return filepath.Join(cache, fmt.Sprintf("%s-%s-%x", version, runtime.Version(), h.Sum(nil)[:4])), version, nil
}

// Check returns nil if a cluster can be started here, or an ErrMissing that says what is missing and how to get it.
func Check() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: root", ErrMissing)
	}
	folder, _, err := binaries()
	if err != nil {
		return err
	}
	if _, err := os.Stat(folder); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: its programs, in %s: make kube builds them, in minutes", ErrMissing, folder)
	} else if err != nil {
		return err
	}
	for _, name := range installed {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%w: %s: scripts/install.sh kube installs it", ErrMissing, name)
		}
	}
	if _, err := os.Stat(filepath.Join(pluginFolder, "bridge")); err != nil {
		return fmt.Errorf("%w: %s/bridge: scripts/install.sh kube installs it", ErrMissing, pluginFolder)
	}
	return nil
}

// Build compiles the Kubernetes programs into the cache, unless they are there: that takes minutes, and 4 GB of disk
// for Go's caches. Of several builds at a time one works and the others wait. What it does is told on w.
func Build(ctx context.Context, w io.Writer) error {
	folder, version, err := binaries()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(folder), 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(filepath.Dir(folder), "build.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		fmt.Fprintln(w, "another build of Kubernetes is under way; waiting for it")
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
			return fmt.Errorf("lock %s: %w", lock.Name(), err)
		}
	}
	if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fmt.Fprintf(w, "building Kubernetes %s into %s, once; this takes minutes\n", version, folder)
	root, err := Root()
	if err != nil {
		return err
	}
	part := folder + ".part" // ours by the lock; what a killed build left is replaced
	if err := os.RemoveAll(part); err != nil {
		return err
	}
	defer os.RemoveAll(part)
	c := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags", linkerFlags(version), "-o", part+"/", "tool")
	c.Dir = filepath.Join(root, module)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOTOOLCHAIN=local")
	var said bytes.Buffer
	c.Stdout, c.Stderr = &said, &said
	if err := c.Run(); err != nil {
		text := said.Bytes()
		return errors.Join(ctx.Err(), fmt.Errorf("build Kubernetes: %w: %s", err, text[max(0, len(text)-4000):]))
	}
	for _, name := range built {
		if _, err := os.Stat(filepath.Join(part, name)); err != nil {
			return fmt.Errorf("%s/go.mod does not build what a cluster needs: %w", module, err)
		}
	}
	return os.Rename(part, folder)
}

// linkerFlags say the version to the programs, as Kubernetes' own build does (hack/lib/version.sh).
func linkerFlags(version string) string {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	flags := "-s -w"
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, v := range []string{"gitVersion=" + version, "gitMajor=" + major, "gitMinor=" + minor, "gitTreeState=clean",
			"gitCommit=" + strings.Repeat("0", 40), "buildDate=2026-01-01T00:00:00Z"} {
			flags += " -X " + pkg + "." + v
		}
	}
	return flags
}
