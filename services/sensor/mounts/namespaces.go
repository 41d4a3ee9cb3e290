package mounts

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	// maxNamespaces bounds the mount namespaces whose mounts are remembered.
	maxNamespaces = 1024
	// again is how long after a table could not be read it is tried once more.
	again = time.Second
)

// Namespaces finds where the host has what a process of another mount namespace
// sees at a path: a file of a volume. It is safe for concurrent use. Mounts that
// are made or undone show after at most 10 seconds.
type Namespaces struct {
	proc string // where procfs is mounted
	host *Table

	mu    sync.Mutex
	views *lru.Cache[uint32, *view]
}

// view is what one namespace has mounted.
type view struct {
	next   time.Time // when it is read again
	mounts []seen    // in the order of mounting
}

type seen struct {
	mount
	dev uint32
	// own is a file system that no path of the host leads to: a container's
	// layers, and those that the kernel makes up.
	own bool
}

// OpenNamespaces returns the namespaces of the processes under proc.
func OpenNamespaces(proc string, host *Table) *Namespaces {
	views, err := lru.New[uint32, *view](maxNamespaces)
	if err != nil {
		panic(err) // the size is no error
	}
	return &Namespaces{proc: proc, host: host, views: views}
}

// HostPath returns where the host has the file that processes of the mount
// namespace see at path, an absolute one without links. pids are processes that
// may be in the namespace and alive: its mounts are read from the first that is.
// ok is false where the host has the file nowhere, or where the namespace's
// mounts cannot be known any more.
func (n *Namespaces) HostPath(namespace uint32, path string, now time.Time, pids ...uint32) (host string, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	v, known := n.views.Get(namespace)
	if !known {
		v = &view{}
		n.views.Add(namespace, v)
	}
	if !now.Before(v.next) {
		v.next = now.Add(again)
		for _, pid := range pids {
			if mounts, ok := n.read(pid, namespace); ok {
				v.mounts, v.next = mounts, now.Add(fresh)
				break
			}
		}
	}
	// The last of the longest covers the others.
	var at *seen
	for i := range v.mounts {
		m := &v.mounts[i]
		if under(path, m.point) && (at == nil || len(m.point) >= len(at.point)) {
			at = m
		}
	}
	if at == nil || at.own {
		return "", false
	}
	inside := strings.TrimSuffix(at.root, "/") + strings.TrimPrefix(path, strings.TrimSuffix(at.point, "/"))
	if inside == "" {
		inside = "/"
	}
	return n.host.Path(at.dev, inside, now)
}

// read reads the mounts of a process, if it is in the namespace.
func (n *Namespaces) read(pid, namespace uint32) ([]seen, bool) {
	dir := filepath.Join(n.proc, strconv.FormatUint(uint64(pid), 10))
	b, err := os.ReadFile(filepath.Join(dir, "mountinfo"))
	if err != nil {
		return nil, false
	}
	// Asked after the reading: a process that has another's id by now is not taken.
	link, err := os.Readlink(filepath.Join(dir, "ns", "mnt"))
	if err != nil || link != "mnt:["+strconv.FormatUint(uint64(namespace), 10)+"]" {
		return nil, false
	}
	var out []seen
	for line := range strings.Lines(string(b)) {
		if m, major, minor, fstype, ok := parseLine(line); ok {
			out = append(out, seen{m, encode(major, minor), fstype == "overlay" || fstype == "proc" || fstype == "sysfs"})
		}
	}
	return out, true
}
