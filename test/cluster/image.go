package cluster

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// The images that a node has. Nothing is pulled: use imagePullPolicy Never.
const (
	Busybox      = "test.local/busybox:1" // busybox, its applets in /bin, a user app (1000)
	BusyboxOther = "test.local/other:2"   // the same with a file /other
	pauseImage   = "test.local/pause:1"
)

// file is one of an image's layer. A link has a target, a folder neither target nor content.
type file struct {
	name, target string
	content      []byte
	mode         int64
}

// archive writes an image of one layer as docker save does, which containerd imports.
func archive(path string, reference string, command []string, files []file) error {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		switch {
		case f.target != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.target
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag = tar.TypeDir
		default:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(f.content))
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(f.content); err != nil && h.Typeflag == tar.TypeReg {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z",
		"config":  map[string]any{"Env": []string{"PATH=/bin"}, "Cmd": command, "WorkingDir": "/"},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}},
		"history": []any{map[string]any{"created": "1970-01-01T00:00:00Z", "created_by": "picket test/cluster"}}})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{reference}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	w = tar.NewWriter(out)
	for _, f := range []file{{name: "manifest.json", content: manifest}, {name: "config.json", content: config}, {name: "layer.tar", content: layer.Bytes()}} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.content))}); err != nil {
			return err
		}
		if _, err := w.Write(f.content); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return out.Close()
}

// busyboxFiles are those of an image, or of a container's root, with busybox alone.
func busyboxFiles() ([]file, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if list, err := exec.Command("ldd", path).CombinedOutput(); err == nil {
		return nil, fmt.Errorf("%w: busybox without libraries (%s has %s): scripts/install.sh kube installs it", ErrMissing, path, bytes.TrimSpace(list))
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", path, err)
	}
	files := []file{{name: "bin/", mode: 0o755}, {name: "bin/busybox", content: program, mode: 0o755}}
	for a := range strings.FieldsSeq(string(applets)) {
		if a != "busybox" {
			files = append(files, file{name: "bin/" + a, target: "busybox", mode: 0o777})
		}
	}
	for _, dir := range []string{"etc/", "root/", "proc/", "sys/", "dev/", "home/", "var/"} {
		files = append(files, file{name: dir, mode: 0o755})
	}
	return append(files, file{name: "tmp/", mode: 0o1777},
		file{name: "etc/passwd", mode: 0o644, content: []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home:/bin/sh\n")}), nil
}
