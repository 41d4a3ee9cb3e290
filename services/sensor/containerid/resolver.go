package containerid

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sys/unix"
)

// cacheSize bounds the known cgroups: more than a node has.
const cacheSize = 16384

// Resolver finds the container of a cgroup id. It is safe for concurrent use.
type Resolver struct {
	mount *os.File // a directory of the cgroup2 file system
	root  string   // its path
	cache *lru.Cache[uint64, Info]
}

// NewResolver opens the cgroup2 file system, wherever it is mounted. It needs
// CAP_DAC_READ_SEARCH, as Resolve does.
func NewResolver() (*Resolver, error) {
	root, err := Mount()
	if err != nil {
		return nil, err
	}
	f, err := os.Open(root)
	if err != nil {
		return nil, fmt.Errorf("cgroup2 file system: %w", err)
	}
	c, err := lru.New[uint64, Info](cacheSize)
	if err != nil {
		f.Close()
		return nil, err
	}
	r := &Resolver{mount: f, root: root, cache: c}
	if _, err := r.path(rootID); err != nil {
		f.Close()
		return nil, fmt.Errorf("opening a cgroup of %s by its id: %w: the sensor needs CAP_DAC_READ_SEARCH to name containers", root, err)
	}
	return r, nil
}

// Close releases the file system.
func (r *Resolver) Close() error { return r.mount.Close() }

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
	if err != nil {
		if path, err = pathOf(pid); err != nil {
			return Info{}, false
		}
	}
	in = Parse(path)
	r.cache.Add(id, in)
	return in, true
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
	return strings.TrimPrefix(p, filepath.Clean(r.root)), nil
}

// pathOf reads the process's cgroup2 path.
func pathOf(pid uint32) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(p), nil
		}
	}
	return "", errors.New("no cgroup2 entry")
}
