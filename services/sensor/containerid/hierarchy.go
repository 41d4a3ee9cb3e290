package containerid

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Hierarchy is the tree of cgroups that containers are named by: on a node
// whose controllers are of version 1 cgroup2 may be there and hold no
// container. A cgroup's id is its inode, which is unique within a hierarchy
// and means another cgroup in the next one.
type Hierarchy struct {
	// Controller is the version 1 controller that the hierarchy is mounted
	// for; empty for cgroup2.
	Controller string
	// ID is the kernel's number for it (/proc/cgroups); 0 is cgroup2.
	ID int
	// Mount is where it is mounted, from the host's point of view where that
	// can be read.
	Mount string
}

func (h Hierarchy) String() string {
	if h.Controller == "" {
		return "cgroup2"
	}
	return "cgroup v1 " + h.Controller
}

// controllers are those that every runtime makes a cgroup in, the one to use
// first.
var controllers = []string{"memory", "pids", "cpu"}

// NodeHierarchy returns the hierarchy that carries this node's containers: that
// of a version 1 controller (memory; where the kernel has none pids or cpu) if
// it is in use, else cgroup2. Call it once: it does not change while a node is
// up.
func NodeHierarchy() (Hierarchy, error) { return nodeHierarchy("/proc") }

func nodeHierarchy(proc string) (Hierarchy, error) {
	b, err := os.ReadFile(filepath.Join(proc, "cgroups"))
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without version 1 has none
		return Hierarchy{}, fmt.Errorf("cgroup controllers: %w", err)
	}
	h := carrier(string(b))
	if h.Mount, err = mountOf(proc, h); err == nil || h.Controller == "" {
		return h, err
	}
	return Hierarchy{}, fmt.Errorf("%w: this node's containers are known by it; mount it, or give the sensor the host's /sys/fs/cgroup", err)
}

// Cgroup2 returns the cgroup2 hierarchy, wherever it is mounted; an error where
// only a part of it is.
func Cgroup2() (Hierarchy, error) {
	mount, err := mountOf("/proc", Hierarchy{})
	if err != nil {
		return Hierarchy{}, err
	}
	if st, err := os.Stat(mount); err != nil || inode(st) != rootInode {
		return Hierarchy{}, errPart(mount)
	}
	return Hierarchy{Mount: mount}, nil
}

func errPart(mount string) error {
	return fmt.Errorf("only a part of the host's cgroups is here, at %s; mount the host's /sys/fs/cgroup into this container too, at any place", mount)
}

// carrier reads /proc/cgroups: which hierarchy has the containers.
func carrier(cgroups string) Hierarchy {
	for _, want := range controllers {
		for line := range strings.Lines(cgroups) {
			// subsys_name hierarchy num_cgroups enabled
			f := strings.Fields(line)
			if len(f) != 4 || f[0] != want || f[3] != "1" {
				continue
			}
			if id, err := strconv.Atoi(f[1]); err == nil && id != 0 {
				return Hierarchy{Controller: want, ID: id}
			}
		}
	}
	return Hierarchy{}
}

// mountOf finds where h is mounted. The host's mounts come first: a container
// of the sensor's own may show only its own part of the tree.
func mountOf(proc string, h Hierarchy) (string, error) {
	if root := filepath.Join(proc, "1/root"); readable(root) {
		if b, err := os.ReadFile(filepath.Join(proc, "1/mountinfo")); err == nil {
			if m := findMount(string(b), h, root); m != "" && readable(root+m) {
				return root + m, nil
			}
		}
	}
	b, err := os.ReadFile(filepath.Join(proc, "self/mountinfo"))
	if err != nil {
		return "", fmt.Errorf("mounts: %w", err)
	}
	if m := findMount(string(b), h, ""); m != "" {
		return m, nil
	}
	if h.Controller != "" {
		return "", fmt.Errorf("the %s hierarchy is not mounted", h)
	}
	return "", errors.New("no cgroup2 file system is mounted: Picket needs it to name containers (mount -t cgroup2 none /sys/fs/cgroup/unified)")
}

func readable(dir string) bool {
	f, err := os.Open(dir)
	if err == nil {
		f.Close()
	}
	return err == nil
}

// findMount reads a mountinfo (proc_pid_mountinfo(5)) of paths below root. Of
// several mounts it takes one of the whole hierarchy: a container may have its
// own part at /sys/fs/cgroup and the host's tree elsewhere. The mount table does
// not tell the two apart, because it shows paths as from the container's cgroup.
func findMount(mountinfo string, h Hierarchy, root string) (found string) {
	for line := range strings.Lines(mountinfo) {
		// … mountpoint options… - fstype source options
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		if h.Controller == "" && g[0] == "cgroup2" ||
			h.Controller != "" && g[0] == "cgroup" && slices.Contains(strings.Split(g[2], ","), h.Controller) {
			if st, err := os.Stat(root + f[4]); err == nil && inode(st) == rootInode {
				return f[4]
			}
			if found == "" {
				found = f[4]
			}
		}
	}
	return found
}

// pathIn reads a /proc/<pid>/cgroup: the process's path in h.
func pathIn(cgroup string, h Hierarchy) (string, bool) {
	for line := range strings.Lines(cgroup) {
		// hierarchy-ID:controllers:path
		id, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		names, path, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		if h.Controller == "" && id == "0" && names == "" ||
			h.Controller != "" && slices.Contains(strings.Split(names, ","), h.Controller) {
			return path, true
		}
	}
	return "", false
}
