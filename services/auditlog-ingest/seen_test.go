package auditlogingest

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

func numbered(n int) (x id) {
	binary.BigEndian.PutUint64(x[:], uint64(n))
	return x
}

func openTestMemory(t *testing.T, dir string, max int, log *slog.Logger) *memory {
	t.Helper()
	m, err := openMemory(dir, max, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	return m
}

// TestMemory: the newest max ids are known, over restarts too, and never more
// than twice as many are kept, in two files.
func TestMemory(t *testing.T) {
	t.Parallel()
	const max = 10
	dir := t.TempDir()
	m := openTestMemory(t, dir, max, quiet())
	for n := range 95 {
		if m.has(numbered(n)) {
			t.Fatalf("%d is known before it was added", n)
		}
		m.add(known{id: numbered(n)})
		if n%7 == 0 { // as after a crash: nothing is done at the end
			m = openTestMemory(t, dir, max, quiet())
		}
		known := 0
		for i := range n + 1 {
			if m.has(numbered(i)) {
				known++
			} else if i > n-max {
				t.Fatalf("after %d, %d is forgotten", n, i)
			}
		}
		if known > 2*max {
			t.Fatalf("after %d, %d are known", n, known)
		}
	}
	if files, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(files) > 2 {
		t.Errorf("files %v (%v)", files, err)
	}
}

// TestMemoryCutOff: an id that a crash wrote half of does not spoil those
// behind it.
func TestMemoryCutOff(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := openTestMemory(t, dir, 100, quiet())
	m.add(known{id: numbered(1)}, known{id: numbered(2), tag: 7})
	f, err := os.OpenFile(m.path(0), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	f.Close()
	m = openTestMemory(t, dir, 100, quiet())
	if !m.meet(7) || m.meet(8) {
		t.Error("the tag of what was written is not known, or another is")
	}
	m.add(known{id: numbered(3)})
	m = openTestMemory(t, dir, 100, quiet())
	for n := 1; n <= 3; n++ {
		if !m.has(numbered(n)) {
			t.Errorf("%d is forgotten", n)
		}
	}
}

// TestMemoryNotWritten: while the disk refuses, ids are still known, it is
// logged once, and writing goes on when the disk is back.
func TestMemoryNotWritten(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	m := openTestMemory(t, dir, 100, slog.New(slog.NewTextHandler(&said, nil)))
	m.add(known{id: numbered(1)})
	m.file.Close()
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	for n := 2; n < 10; n++ {
		m.add(known{id: numbered(n)})
	}
	if n := bytes.Count(said.Bytes(), []byte("event ids not written")); n != 1 {
		t.Errorf("logged %d times: %s", n, said.String())
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	m.add(known{id: numbered(10)})
	for n := 1; n <= 10; n++ {
		if !m.has(numbered(n)) {
			t.Errorf("%d is not known", n)
		}
	}
	m = openTestMemory(t, dir, 100, quiet())
	if !m.has(numbered(1)) || !m.has(numbered(10)) {
		t.Error("ids written before and after are not known after a restart")
	}
}
