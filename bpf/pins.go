package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The directory of an instance, <bpffs>/picket/<instance>, is locked by its owner (flock, so that the lock
// ends with the process, however that ends) and holds one directory of pins:
//
//	run-<identity>   complete: everything of a run, see pinned in kernel.go
//	new-<identity>   being filled; left behind by a crash, it is worthless
//	old-<identity>   being removed
//
// BPF file systems refuse names with dots.
const (
	runPrefix = "run-"
	newPrefix = "new-"
	oldPrefix = "old-"
)

// ErrInUse is returned by Load when another process owns the instance.
var ErrInUse = errors.New("another sensor runs")

// mountBPFFS makes sure that a BPF file system is at path.
func mountBPFFS(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("looking for the BPF file system at %s: %w; mount one there (mount -t bpf bpf %s) or name another place", path, err, path)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if entries, err := os.ReadDir(path); err != nil {
		return fmt.Errorf("looking for the BPF file system at %s: %w", path, err)
	} else if len(entries) > 0 {
		return fmt.Errorf("%s is neither a BPF file system nor an empty directory to mount one on: name another place", path)
	}
	if err := unix.Mount("bpf", path, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("no BPF file system is mounted at %s, and mounting one failed: %w; mount it before (mount -t bpf bpf %s)", path, err, path)
	}
	return nil
}

// lockInstance creates dir if need be and locks it. The lock is held until the file is closed.
func lockInstance(dir, instance string) (*os.File, error) {
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("creating the pin directory: %w", err)
		}
		f, err := os.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its last owner has just removed it
		}
		if err != nil {
			return nil, fmt.Errorf("opening the pin directory: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("%w with instance %q (it holds %s): stop it, or choose another instance name", ErrInUse, instance, dir)
			}
			return nil, fmt.Errorf("locking %s: %w", dir, err)
		}
		// The owner before us may have removed the directory between our opening and our locking it.
		held, err1 := f.Stat()
		there, err2 := os.Stat(dir)
		if err1 == nil && err2 == nil && os.SameFile(held, there) {
			return f, nil
		}
		f.Close()
	}
}

// findRun removes half-done directories of pins and returns the complete one, or "".
func findRun(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("reading the pin directory: %w", err)
	}
	run := ""
	for _, e := range entries {
		switch name := e.Name(); {
		case strings.HasPrefix(name, runPrefix) && run == "":
			run = name
		default:
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return "", fmt.Errorf("removing what a crash left behind: %w", err)
			}
		}
	}
	return run, nil
}

// removeRun unpins all of a run; from the rename on, a crash in between leaves nothing that looks complete.
func removeRun(dir, run string) error {
	old := filepath.Join(dir, oldPrefix+strings.TrimPrefix(run, runPrefix))
	if err := os.Rename(filepath.Join(dir, run), old); err != nil {
		return fmt.Errorf("unpinning: %w", err)
	}
	if err := os.RemoveAll(old); err != nil {
		return fmt.Errorf("unpinning: %w", err)
	}
	return nil
}
