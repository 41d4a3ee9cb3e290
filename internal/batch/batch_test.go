package batch_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v16/arrow/ipc"

	"picket/internal/batch"
	"picket/internal/fault"
	"picket/schemas"
)

// row sets every field of the class to a value derived from n.
func row(b *batch.Builder, columns []schemas.FieldID, n int) {
	for i, id := range columns {
		v := n*31 + i
		switch id.Field().Type {
		case schemas.Text, schemas.Name:
			b.Str(id, fmt.Sprintf("v%d", v%7))
		case schemas.Uint32:
			b.Uint32(id, uint32(v))
		case schemas.Uint64:
			b.Uint64(id, uint64(v))
		case schemas.Int64, schemas.Time:
			b.Int64(id, int64(-v))
		case schemas.Bool:
			b.Bool(id, v%2 == 0)
		case schemas.IP, schemas.ID:
			b.Bytes16(id, [16]byte{byte(v), byte(v >> 8)})
		case schemas.List, schemas.Names:
			b.List(id, []string{"a", fmt.Sprint(v)})
		case schemas.Map:
			b.Map(id, map[string]string{"k": fmt.Sprint(v)})
		}
	}
	b.EndRow()
}

func check(t *testing.T, b *batch.Batch, columns []schemas.FieldID, r, n int) {
	t.Helper()
	for i, id := range columns {
		v := n*31 + i
		var got, want any
		switch id.Field().Type {
		case schemas.Text, schemas.Name:
			got, want = b.Str(id, r), fmt.Sprintf("v%d", v%7)
		case schemas.Uint32, schemas.Uint64:
			got, want = b.Uint(id, r), uint64(v)
		case schemas.Int64, schemas.Time:
			got, want = b.Int(id, r), int64(-v)
		case schemas.Bool:
			got, want = b.Bool(id, r), v%2 == 0
		case schemas.IP, schemas.ID:
			x, _ := b.Bytes16(id, r)
			got, want = x, [16]byte{byte(v), byte(v >> 8)}
		case schemas.List, schemas.Names:
			got, want = strings.Join(slices.Collect(b.List(id, r)), ","), "a,"+fmt.Sprint(v)
		case schemas.Map:
			got, want = maps.Collect(b.Map(id, r))["k"], fmt.Sprint(v)
		}
		if got != want {
			t.Fatalf("%s of row %d: got %v, want %v", id, r, got, want)
		}
		if f := id.Field(); (f.Nullable || f.Type == schemas.IP) && b.IsNull(id, r) {
			t.Fatalf("%s of row %d is null", id, r)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, c := range schemas.Classes() {
		columns := schemas.Columns(c)
		b := batch.NewBuilder(c, columns)
		for round, rows := range []int{1, 1000, 3} { // the builder is reused
			b.Reset()
			for n := range rows {
				row(b, columns, n+round)
			}
			enc, err := batch.Encode(b.Batch())
			if err != nil {
				t.Fatal(err)
			}
			if len(enc) != 1 {
				t.Fatalf("%s: %d streams for %d rows", c, len(enc), rows)
			}
			got, err := batch.Decode(enc[0].Data)
			if err != nil {
				t.Fatal(err)
			}
			if got.Class() != c || got.Rows() != rows {
				t.Fatalf("got %d rows of %s, want %d of %s", got.Rows(), got.Class(), rows, c)
			}
			for r := range rows {
				check(t, got, columns, r, r+round)
			}
		}
	}
}

func TestRowsNotSetAreAbsent(t *testing.T) {
	b := batch.NewBuilder(schemas.Process, schemas.Columns(schemas.Process))
	b.EndRow()
	b.Int64(schemas.ExitCode, 0)
	b.Str(schemas.AuditVerb, "ignored: not of this class")
	b.EndRow()
	enc, err := batch.Encode(b.Batch())
	if err != nil {
		t.Fatal(err)
	}
	got, err := batch.Decode(enc[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	if !got.IsNull(schemas.ExitCode, 0) || got.IsNull(schemas.ExitCode, 1) {
		t.Error("a nullable field not set must be null, one set to zero must not")
	}
	if got.Str(schemas.ProcessName, 0) != "" || got.Uint(schemas.ProcessPID, 0) != 0 {
		t.Error("other fields not set must be empty or zero")
	}
	if got.Column(schemas.AuditVerb) != nil || got.Str(schemas.AuditVerb, 1) != "" {
		t.Error("a field of another class must be absent")
	}
}

func TestEncodeSplitsAndRefuses(t *testing.T) {
	b := batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
	rnd := rand.New(rand.NewPCG(1, 2))
	noise := func(n int) string {
		var s strings.Builder
		for s.Len() < n {
			fmt.Fprintf(&s, "%016x", rnd.Uint64())
		}
		return s.String()
	}
	for n := range 20 {
		b.Str(schemas.AuditID, fmt.Sprint(n))
		b.Str(schemas.AuditRequest, noise(200<<10))
		b.EndRow()
	}
	enc, err := batch.Encode(b.Batch())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range enc {
		if len(e.Data) > schemas.MaxBatchBytes {
			t.Errorf("stream of %d bytes", len(e.Data))
		}
		got, err := batch.Decode(e.Data)
		if err != nil {
			t.Fatal(err)
		}
		for r := range got.Rows() {
			if id := got.Str(schemas.AuditID, r); id != fmt.Sprint(n) {
				t.Fatalf("row %d is %s", n, id)
			}
			n++
		}
	}
	if n != 20 || len(enc) < 4 {
		t.Fatalf("%d rows in %d streams", n, len(enc))
	}
	b.Reset()
	b.Str(schemas.AuditRequest, noise(2<<20))
	b.EndRow()
	if _, err := batch.Encode(b.Batch()); !errors.Is(err, batch.ErrOversized) || !fault.IsPermanent(err) {
		t.Fatalf("one row of 2 MiB: %v", err)
	}
}

func TestJoin(t *testing.T) {
	raw := batch.NewBuilder(schemas.Process, schemas.RawColumns(schemas.Process))
	extra := batch.NewBuilder(schemas.Process, []schemas.FieldID{schemas.Cluster, schemas.PodName})
	for n := range 3 {
		raw.Str(schemas.Cluster, "claimed")
		raw.Str(schemas.ProcessName, fmt.Sprint("p", n))
		raw.EndRow()
		extra.Str(schemas.Cluster, "pinned")
		extra.Str(schemas.PodName, fmt.Sprint("pod", n))
		extra.EndRow()
	}
	got, err := raw.Batch().Join(extra)
	if err != nil {
		t.Fatal(err)
	}
	if got.Str(schemas.Cluster, 2) != "pinned" || got.Str(schemas.PodName, 1) != "pod1" || got.Str(schemas.ProcessName, 0) != "p0" {
		t.Error("join lost or mixed columns")
	}
	extra.EndRow()
	if _, err := raw.Batch().Join(extra); err == nil {
		t.Error("rows of different number must not join")
	}
}

// TestJoinMasks: a field of the builder without a value hides what the sender
// put into the column, and columns of other classes do not pass.
func TestJoinMasks(t *testing.T) {
	forged := batch.NewBuilder(schemas.Process, []schemas.FieldID{schemas.ProcessName, schemas.PodName, schemas.AuditVerb})
	forged.Str(schemas.ProcessName, "p")
	forged.Str(schemas.PodName, "forged")
	forged.Str(schemas.AuditVerb, "forged")
	forged.EndRow()
	extra := batch.NewBuilder(schemas.Process, []schemas.FieldID{schemas.PodName})
	extra.EndRow()
	got, err := forged.Batch().Join(extra)
	if err != nil {
		t.Fatal(err)
	}
	if n := got.Record().NumCols(); n != 1 || got.Str(schemas.ProcessName, 0) != "p" {
		t.Errorf("%d columns: %v", n, got.Record().Schema())
	}
}

func TestSelect(t *testing.T) {
	b := batch.NewBuilder(schemas.Process, []schemas.FieldID{schemas.ProcessName, schemas.PodName})
	b.Str(schemas.ProcessName, "p")
	b.Str(schemas.PodName, "pod")
	b.EndRow()
	got := b.Batch().Select([]schemas.FieldID{schemas.PodName, schemas.Cluster})
	if got.Rows() != 1 || got.Record().NumCols() != 1 || got.Str(schemas.PodName, 0) != "pod" || got.Column(schemas.ProcessName) != nil {
		t.Errorf("selected %v", got.Record())
	}
}

func TestPairs(t *testing.T) {
	b := batch.NewBuilder(schemas.Process, []schemas.FieldID{schemas.PodLabels})
	for _, kv := range [][]string{{"b", "1", "a", "2"}, nil, {"c", "3"}} {
		b.Pairs(schemas.PodLabels, kv)
		b.EndRow()
	}
	var got []string
	for r := range 3 {
		for k, v := range b.Batch().Map(schemas.PodLabels, r) {
			got = append(got, fmt.Sprint(r, k, v))
		}
	}
	if want := []string{"0b1", "0a2", "2c3"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func encoded(t testing.TB, rows int) []byte {
	columns := schemas.RawColumns(schemas.Process)
	b := batch.NewBuilder(schemas.Process, columns)
	for n := range rows {
		row(b, columns, n)
	}
	enc, err := batch.Encode(b.Batch())
	if err != nil {
		t.Fatal(err)
	}
	return enc[0].Data
}

// TestDecodeCorrupt flips, cuts and repeats bytes of a good stream: Decode
// must give an error or a batch whose every value can be read.
func TestDecodeCorrupt(t *testing.T) {
	good := encoded(t, 20)
	rnd := rand.New(rand.NewPCG(3, 4))
	failed := 0
	for range 3000 {
		data := bytes.Clone(good)
		switch rnd.IntN(3) {
		case 0:
			data = data[:rnd.IntN(len(data))]
		default:
			for range 1 + rnd.IntN(4) {
				data[rnd.IntN(len(data))] ^= 1 << rnd.IntN(8)
			}
		}
		if !readAll(t, data) {
			failed++
		}
	}
	if failed < 1000 {
		t.Errorf("only %d of 3000 corrupt streams were refused", failed)
	}
}

// readAll decodes data and reads every value; it reports whether it decoded.
func readAll(t testing.TB, data []byte) bool {
	b, err := batch.Decode(data)
	if err != nil {
		if b != nil || !fault.IsPermanent(err) {
			t.Fatalf("batch %v with error %v", b, err)
		}
		return false
	}
	for id := range schemas.FieldID(schemas.NumFields()) {
		for r := range b.Rows() {
			_ = strings.Clone(b.Str(id, r))
			b.Uint(id, r)
			b.Int(id, r)
			b.Bool(id, r)
			b.Bytes16(id, r)
			b.IsNull(id, r)
			for s := range b.List(id, r) {
				_ = strings.Clone(s)
			}
			for k, v := range b.Map(id, r) {
				_, _ = strings.Clone(k), strings.Clone(v)
			}
		}
	}
	return true
}

func FuzzDecode(f *testing.F) {
	f.Add(encoded(f, 2))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) { readAll(t, data) })
}

func TestDecodeRefusesForeign(t *testing.T) {
	if _, err := batch.Decode([]byte("not arrow")); err == nil {
		t.Error("garbage decoded")
	}
	b := batch.NewBuilder(schemas.Health, schemas.Columns(schemas.Health))
	b.EndRow()
	var buf bytes.Buffer
	w := ipc.NewWriter(&buf, ipc.WithSchema(b.Batch().Record().Schema()))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := batch.Decode(buf.Bytes()); err == nil || !strings.Contains(err.Error(), "ends before") {
		t.Errorf("schema without a batch: %v", err)
	}
}

func TestBuilderDoesNotAllocatePerEvent(t *testing.T) {
	b := batch.NewBuilder(schemas.Process, schemas.RawColumns(schemas.Process))
	fill := func() {
		b.Reset()
		for range 500 {
			event(b, 42)
		}
	}
	fill()
	if n := testing.AllocsPerRun(10, fill); n != 0 {
		t.Errorf("%v allocations for 500 events", n)
	}
}

// event sets about what an exec event sets.
func event(b *batch.Builder, n int) {
	b.Bytes16(schemas.EventID, [16]byte{byte(n)})
	for _, id := range []schemas.FieldID{schemas.Action, schemas.Syscall, schemas.Cluster, schemas.Node, schemas.ProcessName, schemas.ProcessExe, schemas.ProcessArgs, schemas.ProcessCwd, schemas.ParentName, schemas.ParentExe, schemas.ContainerID} {
		b.Str(id, "/usr/local/bin/some-program")
	}
	for _, id := range []schemas.FieldID{schemas.EventTime, schemas.TimeObserved} {
		b.Int64(id, int64(n)*1e6)
	}
	b.Uint32(schemas.ProcessPID, uint32(n))
	b.EndRow()
}

func BenchmarkBuilder(b *testing.B) {
	bl := batch.NewBuilder(schemas.Process, schemas.RawColumns(schemas.Process))
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if bl.Full() {
			bl.Reset()
		}
		event(bl, n)
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, rows := range []int{1, 10, 100, 1000} {
		bl := batch.NewBuilder(schemas.Process, schemas.RawColumns(schemas.Process))
		for n := range rows {
			event(bl, n)
		}
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			b.ReportAllocs()
			size := 0
			for b.Loop() {
				enc, err := batch.Encode(bl.Batch())
				if err != nil {
					b.Fatal(err)
				}
				size = len(enc[0].Data)
			}
			b.ReportMetric(float64(size), "bytes/batch")
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, rows := range []int{1, 100, 1000} {
		data := encoded(b, rows)
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := batch.Decode(data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestShared: rows that use entries say what rows say that set the same values;
// whatever is set in entries, in rows and left out, in one batch after the other.
func TestShared(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, c := range schemas.Classes() {
		columns := schemas.Columns(c)
		var shared []schemas.FieldID
		for i, id := range columns {
			if i%3 != 0 {
				shared = append(shared, id)
			}
		}
		b, plain := batch.NewBuilder(c, columns), batch.NewBuilder(c, columns)
		s := b.Share(append(shared, schemas.BatchID)) // which the class lacks
		for round := range 20 {
			b.Reset()
			plain.Reset()
			var entries [][]int // values by column; -1: absent
			for range 1 + rnd.IntN(30) {
				e := -1
				switch {
				case len(entries) > 0 && rnd.IntN(3) > 0:
					e = rnd.IntN(len(entries))
				case rnd.IntN(4) > 0:
					entry := make([]int, len(columns))
					for i, id := range columns {
						entry[i] = -1
						if i%3 != 0 && i%5 != round%5 && rnd.IntN(3) > 0 {
							entry[i] = rnd.IntN(4)
							setValue(&s.Builder, id, entry[i])
						}
					}
					e = s.End()
					for len(entries) < e { // those that rows without one made
						entries = append(entries, nil)
					}
					entries = append(entries, entry)
				}
				if e >= 0 {
					s.Use(e)
				}
				for i, id := range columns {
					v := -1
					switch {
					case i%3 == 0 && rnd.IntN(2) == 0:
						v = rnd.IntN(4)
						setValue(b, id, v)
					case e >= 0 && i%3 != 0 && entries[e] != nil:
						v = entries[e][i]
					}
					if v >= 0 {
						setValue(plain, id, v)
					}
				}
				b.EndRow()
				plain.EndRow()
			}
			got, want := decoded(t, b), decoded(t, plain)
			for _, id := range columns {
				for row := range want.Rows() {
					if g, w := value(got, id, row), value(want, id, row); g != w {
						t.Fatalf("%s, round %d, row %d, %s: %s, want %s", c, round, row, id.Field().Name, g, w)
					}
				}
			}
		}
	}
}

func setValue(b *batch.Builder, id schemas.FieldID, v int) {
	switch id.Field().Type {
	case schemas.Text, schemas.Name:
		b.Str(id, strings.Repeat("x", v))
	case schemas.Uint32:
		b.Uint32(id, uint32(v))
	case schemas.Uint64:
		b.Uint64(id, uint64(v))
	case schemas.Int64, schemas.Time:
		b.Int64(id, int64(v))
	case schemas.Bool:
		b.Bool(id, v > 1)
	case schemas.IP, schemas.ID:
		b.Bytes16(id, [16]byte{byte(v)})
	case schemas.List, schemas.Names:
		b.List(id, slices.Repeat([]string{"el", ""}, v))
	case schemas.Map:
		b.Pairs(id, slices.Repeat([]string{"k", "value"}, v))
	}
}

func decoded(t *testing.T, b *batch.Builder) *batch.Batch {
	t.Helper()
	enc, err := batch.Encode(b.Batch())
	if err != nil {
		t.Fatal(err)
	}
	out, err := batch.Decode(enc[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// value is all that the accessors say of a field.
func value(b *batch.Batch, id schemas.FieldID, row int) string {
	ip, there := b.Bytes16(id, row)
	var pairs []string
	for k, v := range b.Map(id, row) {
		pairs = append(pairs, k, v)
	}
	null := id.Field().Nullable && b.IsNull(id, row)
	return fmt.Sprintf("%q %d %d %v %x %v %q %q %v", b.Str(id, row), b.Uint(id, row), b.Int(id, row), b.Bool(id, row), ip, there,
		slices.Collect(b.List(id, row)), pairs, null)
}
