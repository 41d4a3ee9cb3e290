package batch_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"picket/internal/batch"
	"picket/internal/fault"
	"picket/schemas"
)

func capture(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.arrow")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := batch.NewCaptureWriter(f)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []schemas.Class{schemas.Process, schemas.File, schemas.Network, schemas.Process} {
		b := batch.NewBuilder(c, schemas.RawColumns(c))
		for n := range 10 {
			row(b, schemas.RawColumns(c), 100*i+n)
		}
		if err := w.Write(b.Batch()); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestCapture(t *testing.T) {
	i := 0
	err := batch.ReadCapture(capture(t), func(b *batch.Batch) error {
		want := []schemas.Class{schemas.Process, schemas.File, schemas.Network, schemas.Process}[i]
		if b.Class() != want || b.Rows() != 10 {
			t.Fatalf("batch %d: %d rows of %s", i, b.Rows(), b.Class())
		}
		for r := range b.Rows() {
			check(t, b, schemas.RawColumns(want), r, 100*i+r)
		}
		i++
		return nil
	})
	if err != nil || i != 4 {
		t.Fatalf("%d batches, %v", i, err)
	}
	stop := errors.New("enough")
	if err := batch.ReadCapture(capture(t), func(*batch.Batch) error { return stop }); err != stop {
		t.Errorf("the callback's error became %v", err)
	}
}

func TestCaptureCorrupt(t *testing.T) {
	good := capture(t)
	rnd := rand.New(rand.NewPCG(5, 6))
	failed := 0
	for range 1000 {
		data := append([]byte(nil), good...)
		if rnd.IntN(3) == 0 {
			data = data[:rnd.IntN(len(data))]
		} else {
			for range 3 {
				data[rnd.IntN(len(data))] ^= 1 << rnd.IntN(8)
			}
		}
		if err := batch.ReadCapture(data, func(*batch.Batch) error { return nil }); err != nil {
			failed++
			if !fault.IsPermanent(err) {
				t.Fatalf("%v is not permanent", err)
			}
		}
	}
	if failed < 300 {
		t.Errorf("only %d of 1000 corrupt captures were refused", failed)
	}
}
