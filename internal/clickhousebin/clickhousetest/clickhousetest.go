// Package clickhousetest gives tests the real ClickHouse: what
// picket/internal/clickhousebin finds on this machine, with picket-clickhouse
// built from this source tree where there is no clickhouse binary.
package clickhousetest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"picket/internal/chdb"
	"picket/internal/clickhousebin"
)

// Start runs a ClickHouse on a data folder (a temporary one if it is empty)
// until the test ends. Where it cannot, the test fails.
func Start(t testing.TB, data string) *clickhousebin.Server {
	t.Helper()
	if data == "" {
		data = t.TempDir()
	}
	o := clickhousebin.Options{Data: data}
	if _, err := exec.LookPath("clickhouse"); err != nil {
		o.Binary = Binary(t)
	}
	s, err := clickhousebin.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Errorf("stop ClickHouse: %v", err)
		}
	})
	return s
}

// Binary builds picket-clickhouse from this source tree, once in a test
// process, and returns its path. Where the library it needs is missing the
// test fails with the remedy.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var binary = sync.OnceValues(func() (string, error) {
	library, err := chdb.DefaultLibrary()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(library); err != nil {
		return "", fmt.Errorf("these tests need the ClickHouse library: %w: run `make deps`", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find a folder for the test binary: %w", err)
	}
	dir := filepath.Join(cache, "picket", "test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a folder for the test binary: %w", err)
	}
	// Packages are tested side by side, and may build at the same time.
	lock, err := os.OpenFile(filepath.Join(dir, "picket-clickhouse.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", fmt.Errorf("lock the test binary: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock the test binary: %w", err)
	}
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the source tree: %w", err)
	}
	path := filepath.Join(dir, "picket-clickhouse")
	fresh := path + ".new"
	build := exec.Command("go", "build", "-buildvcs=false", "-o", fresh, "./cmd/picket-clickhouse")
	build.Dir = strings.TrimSpace(string(root))
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build picket-clickhouse: %w\n%s", err, out)
	}
	// A rename, because the former one may be running. The copy that stays
	// lets the next build find that nothing changed.
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return "", fmt.Errorf("replace the test binary: %w", err)
	}
	if err := os.Link(fresh, path); err != nil {
		return "", fmt.Errorf("replace the test binary: %w", err)
	}
	return path, nil
})
