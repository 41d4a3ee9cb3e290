package file

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"picket/services/auditlog-ingest/source"
)

// TestGenerations: rotated files are known by their names, and come in the
// order in which they were written.
func TestGenerations(t *testing.T) {
	dir := t.TempDir()
	at := time.Now().Add(-time.Hour)
	for i, name := range []string{
		"audit-2026-11-23T00-00-00.000.log", "audit.log.3", "audit.log-20261123", // each a second after the one before
		"audit.log.2", "audit.log.1", // the clock is too coarse
		"audit.log",
		"audit.log.4.gz", "audit-2026-11-22T00-00-00.000.log.gz", "audit.log.5.zst", "other.log", "audit.txt",
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		written := at.Add(time.Duration(min(i, 3)) * time.Second)
		if err := os.Chtimes(path, written, written); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "audit.log.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	all, err := generations(filepath.Join(dir, "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, g := range all {
		names = append(names, filepath.Base(g.path))
		if g.current != (filepath.Base(g.path) == "audit.log") {
			t.Errorf("%s: current %v", g.path, g.current)
		}
	}
	if want := "[audit-2026-11-23T00-00-00.000.log audit.log.3 audit.log-20261123 audit.log.2 audit.log.1 audit.log]"; fmt.Sprint(names) != want {
		t.Errorf("%v, want %s", names, want)
	}
}

// gaps is a sink for what takes no records.
type gaps struct {
	source.Sink
	n int
}

func (g *gaps) Gap(string, ...any) { g.n++ }

// TestMissed: a file that is renamed between being listed and being opened is
// read under its new name; after one that is removed the next is read, and
// that is a gap.
func TestMissed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	old := filepath.Join(dir, "audit-1.log")
	for _, p := range []string{old, path} {
		if err := os.WriteFile(p, []byte("{}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	sink := &gaps{}
	f := New(Config{Path: path, Name: "file"}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	f.sink = sink
	all, err := generations(path)
	if err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	renamed := filepath.Join(dir, "audit-2.log")
	if err := os.Rename(old, renamed); err != nil {
		t.Fatal(err)
	}
	g, at, err := f.follow(ctx, all[0], 3)
	if err != nil || g.path != renamed || at != 3 || sink.n != 0 {
		t.Errorf("renamed: %+v at %d, %d gaps, %v", g, at, sink.n, err)
	}
	if err := os.Remove(renamed); err != nil {
		t.Fatal(err)
	}
	g, at, err = f.follow(ctx, all[0], 3)
	if err != nil || g.path != path || at != 0 || sink.n != 1 {
		t.Errorf("removed: %+v at %d, %d gaps, %v", g, at, sink.n, err)
	}
}
