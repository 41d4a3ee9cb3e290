package batch

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/apache/arrow/go/v16/arrow"
	"github.com/apache/arrow/go/v16/arrow/array"
	"github.com/apache/arrow/go/v16/arrow/ipc"
	"github.com/apache/arrow/go/v16/arrow/memory"

	"picket/schemas"
)

// recorded returns encoded batches of real events, and cuts of them.
func recorded(t testing.TB) []Encoded {
	data, err := os.ReadFile("../../test/testdata/capture/simulate.arrow")
	if err != nil {
		t.Fatal(err)
	}
	var all []Encoded
	err = ReadCapture(data, func(b *Batch) error {
		for _, part := range []*Batch{b, b.Slice(0, 1), b.Slice(b.Rows()/2, b.Rows())} {
			e, err := Encode(part)
			if err != nil {
				return err
			}
			all = append(all, e...)
		}
		return nil
	})
	if err != nil || len(all) < 10 {
		t.Fatalf("%d batches: %v", len(all), err)
	}
	return all
}

// TestDecoder: what Encode writes is read without Arrow's reader, and as that
// reads it.
func TestDecoder(t *testing.T) {
	var d Decoder
	for i, e := range recorded(t) {
		got, err := d.read(e.Data)
		if err != nil || got == nil {
			t.Fatalf("batch %d: %v; nil is by Arrow's reader: %v", i, err, got)
		}
		want, err := arrows(e.Data)
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, want)
	}
}

func same(t testing.TB, got, want *Batch) {
	t.Helper()
	if got.Class() != want.Class() || got.Rows() != want.Rows() || got.Record().NumCols() != want.Record().NumCols() {
		t.Fatalf("read\n%v\nwanted\n%v", got.Record(), want.Record())
	}
	for id := range got.cols { // others are not looked at
		a, b := got.cols[id], want.cols[id]
		if (a == nil) != (b == nil) || a != nil && (!arrow.TypeEqual(a.DataType(), b.DataType()) || !array.Equal(a, b)) {
			t.Fatalf("column %s: %v, wanted %v", schemas.FieldID(id), a, b)
		}
	}
}

// TestDecoderDamaged: of a damaged stream the decoder never makes more than
// Arrow's reader, and what both make is the same.
func TestDecoderDamaged(t *testing.T) {
	var d Decoder
	rnd := rand.New(rand.NewPCG(1, 2))
	both, refused := 0, 0
	for _, e := range recorded(t) {
		for range 60 {
			data := bytes.Clone(e.Data)
			if rnd.IntN(4) == 0 {
				data = data[:rnd.IntN(len(data))]
			}
			for range 1 + rnd.IntN(3) {
				if len(data) > 0 {
					data[rnd.IntN(len(data))] ^= 1 << rnd.IntN(8)
				}
			}
			got, err := d.Decode(data)
			if err != nil {
				refused++
				continue
			}
			if want, err := arrows(data); err == nil {
				same(t, got, want)
				both++
			}
		}
	}
	if both == 0 || refused == 0 {
		t.Errorf("%d read, %d refused: no test", both, refused)
	}
}

// TestDecoderOthers: streams that Encode does not write are read too.
func TestDecoderOthers(t *testing.T) {
	b := recorded(t)[0].Batch
	for name, options := range map[string][]ipc.Option{"plain": nil, "zstd": {ipc.WithZstd()}} {
		var out bytes.Buffer
		w := ipc.NewWriter(&out, append(options, ipc.WithSchema(b.Record().Schema()), ipc.WithAllocator(memory.DefaultAllocator))...)
		if err := w.Write(b.Record()); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		var d Decoder
		got, err := d.Decode(out.Bytes())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		same(t, got, b)
	}
}

// TestDecoderForgets: a sender of ever new and large schemas does not make it grow.
func TestDecoderForgets(t *testing.T) {
	b, err := Decode(recorded(t)[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	rec := b.Record()
	var d Decoder
	most := 0
	for _, kind := range []struct{ size, n int }{{100 << 10, 170}, {maxLearned, 1}, {1, 10}} {
		for i := range kind.n {
			md := rec.Schema().Metadata()
			keys, values := append(md.Keys(), "padding"), append(md.Values(), fmt.Sprintf("%d%s", i, bytes.Repeat([]byte{'x'}, kind.size)))
			wide := arrow.NewMetadata(keys, values)
			schema := arrow.NewSchema(rec.Schema().Fields(), &wide)
			var out bytes.Buffer
			w := ipc.NewWriter(&out, ipc.WithSchema(schema), ipc.WithLZ4(), ipc.WithDictionaryDeltas(false))
			if err := w.Write(array.NewRecord(schema, rec.Columns(), rec.NumRows())); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			got, err := d.Decode(out.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			same(t, got, b)
			held := 0
			for head := range d.layouts {
				held += len(head)
			}
			most = max(most, held)
			if held != d.learned || held > maxLearned {
				t.Fatalf("%d bytes of schemas are remembered, counted are %d", held, d.learned)
			}
		}
	}
	if most < maxLearned/2 || len(d.layouts) < 10 {
		t.Errorf("%d bytes at most, %d schemas at last: the bound was not reached", most, len(d.layouts))
	}
}

func BenchmarkDecoder(b *testing.B) {
	all := recorded(b)
	for _, arrows := range []bool{true, false} {
		name := "by=decoder"
		if arrows {
			name = "by=arrow"
		}
		b.Run(name, func(b *testing.B) {
			var d Decoder
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				var err error
				if data := all[i%len(all)].Data; arrows {
					err = verify(data)
					if err == nil {
						_, err = decode(data)
					}
				} else {
					_, err = d.Decode(data)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// arrows reads a stream by Arrow's reader.
func arrows(data []byte) (b *Batch, err error) {
	defer func() {
		if p := recover(); p != nil {
			b, err = nil, fmt.Errorf("%v", p)
		}
	}()
	if err := verify(data); err != nil {
		return nil, err
	}
	return decode(data)
}
