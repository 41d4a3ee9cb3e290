package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Container is a container that runc runs where a kubelet would have it: its cgroup is that of a container of a pod. The
// pod may be one that the API server has.
type Container struct {
	PodUID string
	ID     string   // 64 hex digits
	QoS    string   // burstable, besteffort; empty: guaranteed
	Args   []string // of its first process, in a root with busybox
}

// StartContainer starts a container beside an API server that may run, and returns when its first process runs. It
// takes tens of milliseconds. RemoveContainer, or the cluster's end, ends it.
func (c *Cluster) StartContainer(ctx context.Context, k Container) error {
	root := c.place.path("rootfs")
	if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
		if err := unpack(root); err != nil {
			return err
		}
	}
	bundle := c.place.path("bundles/" + k.ID)
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		return err
	}
	mount := func(kind, at string) map[string]any {
		return map[string]any{"destination": at, "type": kind, "source": kind}
	}
	var namespaces []any
	for _, n := range []string{"pid", "ipc", "uts", "mount", "network"} {
		namespaces = append(namespaces, map[string]any{"type": n})
	}
	config := map[string]any{ // OCI runtime specification 1.0.2
		"ociVersion": "1.0.2",
		"root":       map[string]any{"path": root, "readonly": true},
		"process":    map[string]any{"user": map[string]any{"uid": 0, "gid": 0}, "args": k.Args, "env": []string{"PATH=/bin"}, "cwd": "/"},
		"mounts":     []any{mount("proc", "/proc"), mount("tmpfs", "/dev"), mount("tmpfs", "/tmp")},
		"linux":      map[string]any{"cgroupsPath": filepath.Join("/", c.place.cgroup(), "kubepods", k.QoS, "pod"+k.PodUID, k.ID), "namespaces": namespaces},
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), pretty(config), 0o644); err != nil {
		return err
	}
	_, err := c.Run(ctx, "runc", "--root", "/run/runc", "run", "--detach", "--bundle", bundle, k.ID)
	return err
}

// Exec runs a program in a container and returns what it printed.
func (c *Cluster) Exec(ctx context.Context, id string, args ...string) (string, error) {
	return c.Run(ctx, append([]string{"runc", "--root", "/run/runc", "exec", id}, args...)...)
}

// RemoveContainer kills a container and removes it.
func (c *Cluster) RemoveContainer(ctx context.Context, id string) error {
	_, err := c.Run(ctx, "runc", "--root", "/run/runc", "delete", "--force", id)
	return err
}

// unpack makes a root folder with busybox.
func unpack(root string) error {
	files, err := busyboxFiles()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(root, f.name)
		switch {
		case strings.HasSuffix(f.name, "/"):
			err = os.Mkdir(path, os.FileMode(f.mode&0o777))
		case f.target != "":
			err = os.Symlink(f.target, path)
		default:
			err = os.WriteFile(path, f.content, os.FileMode(f.mode))
		}
		if err != nil {
			return fmt.Errorf("unpack busybox: %w", err)
		}
	}
	return nil
}
