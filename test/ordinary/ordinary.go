// Package ordinary has recordings of a node's ordinary work: run.sh, recorded by
// picket record with what the default rules need of a sensor. A recording is
// made once and kept outside the repository.
package ordinary

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"picket/bpf"
	"picket/internal/rules"
	"picket/test/cluster"
)

const (
	script   = "test/ordinary/run.sh"
	recorder = "bin/picket"
)

// Recording returns the path of the recording, and makes it if there is none:
// that takes root, minutes, and make build before. It is run in the repository's
// root. everyFile says that opens for reading are in it for all files, and the
// work twice, so that both recordings have a million events; without, it has what a sensor reports by its defaults and by the needs of set, which is
// the default pack. The file's name has a hash of the script and of what it starts, of those needs and
// of the version of the kernel's records, so that a change of one makes another.
func Recording(ctx context.Context, set *rules.Set, everyFile bool) (string, error) {
	work, err := source()
	if err != nil {
		return "", fmt.Errorf("%w: run this in the repository's root", err)
	}
	name, watch, times := "ordinary", []string(nil), "1"
	if everyFile {
		name, watch, times = "ordinary-every-file", []string{"--watch", "/"}, "2"
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d %q %q %s", bpf.LayoutVersion, set.WatchedPaths(), set.Syscalls(), work)
	folder, err := folder()
	if err != nil {
		return "", err
	}
	file := filepath.Join(folder, fmt.Sprintf("%s-%x.arrow", name, h.Sum(nil)[:6]))
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		return file, err
	}
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("there is no recording of ordinary work yet, and making it takes root")
	}
	if _, err := os.Stat(recorder); err != nil {
		return "", fmt.Errorf("%w: make build makes it", err)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	if err := cluster.Check(); err != nil {
		return "", fmt.Errorf("a Kubernetes node is part of ordinary work: %w", err)
	}
	node := filepath.Join(folder, fmt.Sprintf("node.%d", os.Getpid()))
	defer os.Remove(node)
	if out, err := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", node, "./test/node").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build test/node: %w\n%s", err, out)
	}
	fmt.Fprintf(os.Stderr, "recording ordinary work into %s, once; this takes minutes\n", file)
	part := fmt.Sprintf("%s.%d", file, os.Getpid())
	defer os.Remove(part)
	defer os.Remove(AuditLog(part))
	c := exec.CommandContext(ctx, recorder, slices.Concat([]string{"record", "-o", part}, watch, []string{"--", script, node, AuditLog(part), times})...)
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("record %s: %w", script, err)
	}
	return file, errors.Join(os.Rename(AuditLog(part), AuditLog(file)), os.Rename(part, file))
}

// source is the text of all that the work is made of.
func source() (text []byte, err error) {
	files := []string{script, "test/node/work.yaml", "test/node/main.go"}
	node, err := filepath.Glob("test/cluster/*.go")
	if err != nil {
		return nil, err
	}
	for _, f := range node {
		if !strings.HasSuffix(f, "_test.go") {
			files = append(files, f)
		}
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		text = append(text, b...)
	}
	return text, nil
}

// AuditLog is the file beside a recording that has the audit log of the cluster in it, as the API server wrote it.
func AuditLog(recording string) string { return recording + ".audit.jsonl" }

func folder() (string, error) {
	cache := os.Getenv("PICKET_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find the cache folder for recordings: %w (set PICKET_CACHE)", err)
		}
		cache = filepath.Join(dir, "picket")
	}
	return filepath.Join(cache, "recordings"), nil
}
