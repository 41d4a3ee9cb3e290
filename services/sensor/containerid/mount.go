package containerid

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// rootID is the id, and the inode number, of the root of all cgroups.
const rootID = 1

// Mount returns where the root of the host's cgroup2 file system is mounted:
// /sys/fs/cgroup, or beside version 1 hierarchies /sys/fs/cgroup/unified; in a
// container, whose own part of it is at /sys/fs/cgroup, where the host's is put.
// The mount table does not tell the two apart, because it shows paths as from
// the container's cgroup; and by a part alone all cgroups can be opened, but
// not named.
func Mount() (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", fmt.Errorf("mounts: %w", err)
	}
	part := ""
	for line := range strings.Lines(string(b)) {
		// … mountpoint options… - fstype source options (proc_pid_mountinfo(5))
		before, after, ok := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if !ok || !strings.HasPrefix(after, "cgroup2 ") || len(f) < 5 {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(f[4], &st) == nil && st.Ino == rootID {
			return f[4], nil
		}
		part = f[4]
	}
	if part != "" {
		return "", fmt.Errorf("only a part of the host's cgroups is here, at %s: Picket needs all to name containers; mount the host's /sys/fs/cgroup into this container too, at any place", part)
	}
	return "", errors.New("no cgroup2 file system is mounted: Picket needs it to name containers (mount -t cgroup2 none /sys/fs/cgroup/unified)")
}
