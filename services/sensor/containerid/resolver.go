package containerid

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sys/unix"
)

// cacheSize bounds the known cgroups: more than a node has.
const cacheSize = 16384

// Resolver finds the container of a cgroup id. It is safe for concurrent use.
type Resolver struct {
	h     Hierarchy
	mount *os.File // its root
	at    string   // where the kernel says that mount is
	cache *lru.Cache[uint64, Info]

	evicted atomic.Uint64
}

// Evicted returns how many cgroups were forgotten because there were too many;
// one of them is looked up again when it acts.
func (r *Resolver) Evicted() uint64 { return r.evicted.Load() }

func (r *Resolver) keep(id uint64, in Info) {
	if r.cache.Add(id, in) {
		r.evicted.Add(1)
	}
}

// NewResolver returns a resolver of the ids of one hierarchy, which knows the
// cgroups that are there. Ids of another hierarchy must not be asked of it. It
// needs CAP_DAC_READ_SEARCH, as Resolve does, and all of the hierarchy: by a
// part alone its cgroups can be opened, but not named.
func NewResolver(h Hierarchy) (*Resolver, error) {
	f, err := os.Open(h.Mount)
	if err != nil {
		return nil, fmt.Errorf("%s file system: %w", h, err)
	}
	c, err := lru.New[uint64, Info](cacheSize)
	if err != nil {
		f.Close()
		return nil, err
	}
	r := &Resolver{h: h, mount: f, cache: c}
	// Through /proc/1/root a path is told from the host's root.
	if r.at, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s file system: %w", h, err)
	}
	if st, err := f.Stat(); err != nil || inode(st) != rootInode {
		f.Close()
		return nil, fmt.Errorf("containers cannot be named: %w", errPart(h.Mount))
	}
	if _, err := r.path(rootInode); err != nil {
		f.Close()
		return nil, fmt.Errorf("opening a cgroup of %s by its id: %w: the sensor needs CAP_DAC_READ_SEARCH to name containers", h.Mount, err)
	}
	r.walk()
	return r, nil
}

// Hierarchy returns the hierarchy whose ids are resolved.
func (r *Resolver) Hierarchy() Hierarchy { return r.h }

// Close releases the file system.
func (r *Resolver) Close() error { return r.mount.Close() }

// Add tells of a cgroup: its id, and its path from the root of the hierarchy.
// An empty path is not taken in. It returns what the path says.
func (r *Resolver) Add(id uint64, path string) Info {
	if path == "" {
		return Info{}
	}
	in := Parse(path)
	r.keep(id, in)
	return in
}

// Each calls f for every cgroup that is known.
func (r *Resolver) Each(f func(id uint64, in Info)) {
	for _, id := range r.cache.Keys() {
		if in, ok := r.cache.Peek(id); ok {
			f(id, in)
		}
	}
}

// rootInode is the inode of a hierarchy's root: the first of its file system.
const rootInode = 1

// walk takes in the cgroups that exist, as many as are kept. What cannot be
// read, and what goes away meanwhile, is left to Resolve.
func (r *Resolver) walk() {
	left := cacheSize
	filepath.WalkDir(r.h.Mount, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		if left--; left < 0 {
			return fs.SkipAll
		}
		if info, err := d.Info(); err == nil {
			r.Add(inode(info), "/"+strings.TrimPrefix(strings.TrimPrefix(path, r.h.Mount), "/"))
		}
		return nil
	})
}

func inode(f fs.FileInfo) uint64 { return f.Sys().(*syscall.Stat_t).Ino }

// fileIDKernfs is FILEID_KERNFS (linux/exportfs.h): the handle of a kernfs
// node is its 64-bit id, which is the cgroup id.
const fileIDKernfs = 0xfe

// Resolve returns the container of a cgroup id. pid is a process seen in that
// cgroup, asked when the cgroup itself cannot be opened by its id. ok is false
// when the cgroup is gone and nothing is known of it: such a process may have
// been in a container.
func (r *Resolver) Resolve(id uint64, pid uint32) (in Info, ok bool) {
	if in, ok = r.cache.Get(id); ok {
		return in, true
	}
	path, err := r.path(id)
	if err == nil {
		in = Parse(path)
		r.keep(id, in)
		return in, true
	}
	path, err = r.pathOf(pid)
	if err != nil {
		return Info{}, false
	}
	// The process may have been moved since, or have left for the root when it
	// exited.
	path, gone := strings.CutSuffix(path, " (deleted)")
	in = Parse(path)
	if gone || strings.HasPrefix(path, "/..") { // outside of the sensor's cgroup namespace
		return in, true
	}
	if st, err := os.Stat(filepath.Join(r.h.Mount, path)); err == nil {
		if inode(st) != id {
			return Info{}, false
		}
		r.keep(id, in)
	}
	return in, true
}

// ResolvePID returns the container that a process is in now.
func (r *Resolver) ResolvePID(pid uint32) (in Info, ok bool) {
	path, err := r.pathOf(pid)
	return Parse(path), err == nil
}

// path opens the cgroup by its id and reads where it is.
func (r *Resolver) path(id uint64) (string, error) {
	h := unix.NewFileHandle(fileIDKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(r.mount.Fd()), h, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	p, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	return strings.TrimPrefix(p, r.at), nil
}

// pathOf reads the process's path in the hierarchy.
func (r *Resolver) pathOf(pid uint32) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	if p, ok := pathIn(string(b), r.h); ok {
		return p, nil
	}
	return "", fmt.Errorf("no %s entry", r.h)
}
