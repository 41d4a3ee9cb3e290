package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"picket/internal/batch"
	"picket/schemas"
)

// TestRecordKeepsDescendants: the events of a command and its descendants are
// kept, also when they come before the forks that tell so, and those of others
// are not, also where their processes get a number that was one of ours.
func TestRecordKeepsDescendants(t *testing.T) {
	file := filepath.Join(t.TempDir(), "capture")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w, err := batch.NewCaptureWriter(f)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{w: w, keep: &descendants{ours: map[uint64]bool{}, to: map[schemas.Class]*batch.Builder{}}}
	begin := time.Now()
	at := func(ms int, class schemas.Class, action string, pid, parent uint32, path string) {
		b := batch.NewBuilder(class, schemas.RawColumns(class))
		b.Str(schemas.Action, action)
		b.Uint32(schemas.ProcessPID, pid)
		b.Uint32(schemas.ProcessParentPID, parent)
		if class == schemas.File {
			b.Str(schemas.FilePath, path)
		}
		b.EndRow()
		e, err := batch.Encode(b.Batch())
		if err != nil {
			t.Fatal(err)
		}
		x, err := batch.Decode(e[0].Data)
		if err != nil {
			t.Fatal(err)
		}
		now := begin.Add(time.Duration(ms) * time.Millisecond)
		r.keep.held = append(r.keep.held, heldBatch{at: now, batch: x})
		if err := r.release(now.Add(-settle)); err != nil {
			t.Fatal(err)
		}
	}
	at(0, schemas.Process, "fork", 10, 1, "")
	r.begin(10)
	at(1, schemas.File, "open", 12, 11, "/grandchild")
	at(2, schemas.File, "open", 99, 1, "/other")
	at(40, schemas.Process, "fork", 11, 10, "")
	at(41, schemas.Process, "fork", 12, 11, "")
	at(1000, schemas.File, "open", 11, 10, "/child")
	at(2000, schemas.Process, "fork", 12, 1, "")
	at(2100, schemas.File, "open", 12, 1, "/number given to another")
	at(3000, schemas.File, "open", 10, 1, "/root")
	if held := len(r.keep.held); held > 2 {
		t.Errorf("%d batches are held, of longer than %v ago", held, settle)
	}
	if err := r.release(begin.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	if err := batch.ReadCapture(data, func(b *batch.Batch) error {
		for row := range b.Rows() {
			if b.Class() == schemas.File {
				paths = append(paths, strings.Clone(b.Str(schemas.FilePath, row)))
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"/grandchild", "/child", "/root"}; !slices.Equal(paths, want) || r.events != 6 {
		t.Errorf("%d events, files %q; want 6, %q", r.events, paths, want)
	}
}
