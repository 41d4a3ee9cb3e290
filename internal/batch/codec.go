package batch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync/atomic"

	"github.com/apache/arrow/go/v16/arrow"
	"github.com/apache/arrow/go/v16/arrow/array"
	"github.com/apache/arrow/go/v16/arrow/ipc"
	"github.com/apache/arrow/go/v16/arrow/memory"

	"picket/internal/fault"
	"picket/schemas"
)

// MaxDecodedBytes bounds what one encoded batch may unpack to.
const MaxDecodedBytes = 64 << 20

// ErrOversized is the cause of a permanent error: one row alone takes more
// than schemas.MaxBatchBytes.
var ErrOversized = fmt.Errorf("event larger than the batch limit of %d bytes", schemas.MaxBatchBytes)

// Encode returns the batch as Arrow IPC streams of at most
// schemas.MaxBatchBytes each: one, or several in row order if one would be
// larger. A row that is too large alone gives ErrOversized (permanent).
func Encode(b *Batch) ([]Encoded, error) { return new(Encoder).Encode(b) }

// Encoder encodes many batches one after the other and keeps its memory between
// them. The zero value is ready; it is used by one goroutine at a time.
type Encoder struct {
	buf  bytes.Buffer
	free recycler
}

// Encode is Encode.
func (e *Encoder) Encode(b *Batch) ([]Encoded, error) {
	data, err := e.encode(b)
	if err != nil {
		return nil, err
	}
	if len(data) <= schemas.MaxBatchBytes {
		return []Encoded{{Data: data, Batch: b}}, nil
	}
	if b.rows == 1 {
		return nil, fault.Permanent(schemas.LossOversized, ErrOversized)
	}
	first, err := e.Encode(b.Slice(0, b.rows/2))
	if err != nil {
		return nil, err
	}
	second, err := e.Encode(b.Slice(b.rows/2, b.rows))
	return append(first, second...), err
}

// Encoded is one encoded batch and the rows it holds.
type Encoded struct {
	Data  []byte
	Batch *Batch
}

func (e *Encoder) encode(b *Batch) ([]byte, error) {
	e.buf.Reset()
	w := ipc.NewWriter(&e.buf, ipc.WithSchema(b.Record().Schema()), ipc.WithLZ4(), ipc.WithCompressConcurrency(0), ipc.WithAllocator(&e.free))
	if err := w.Write(b.Record()); err != nil {
		return nil, fmt.Errorf("encode %s batch of %d rows: %w", b.class, b.rows, err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("encode %s batch: %w", b.class, err)
	}
	return bytes.Clone(e.buf.Bytes()), nil
}

// recycler allocates Go memory and gives what was freed out again, so that
// compressing the columns of a batch makes no garbage. Every piece is a power of
// two long. It keeps at most as much as one batch needs at once.
type recycler struct {
	memory.GoAllocator
	free [recycledBits + 1][][]byte // by the logarithm of the length
}

const (
	recycledBits = 24  // a longer piece is not kept
	smallest     = 8   // so is the length of the smallest
	recycled     = 256 // pieces of a length that are kept: more than a batch has columns
)

func (r *recycler) Allocate(size int) []byte {
	n := max(smallest, bits.Len(uint(max(size, 1)-1)))
	if n > recycledBits {
		return r.GoAllocator.Allocate(size)
	}
	if last := len(r.free[n]) - 1; last >= 0 {
		b := r.free[n][last]
		r.free[n] = r.free[n][:last]
		return b[:size]
	}
	return r.GoAllocator.Allocate(1 << n)[:size]
}

func (r *recycler) Reallocate(size int, b []byte) []byte {
	if size <= cap(b) {
		return b[:size]
	}
	bigger := r.Allocate(size)
	copy(bigger, b)
	r.Free(b)
	return bigger
}

func (r *recycler) Free(b []byte) {
	n := bits.Len(uint(cap(b))) - 1
	if n >= smallest && n <= recycledBits && cap(b) == 1<<n && len(r.free[n]) < recycled {
		r.free[n] = append(r.free[n], b)
	}
}

// Decode reads one batch from an Arrow IPC stream that may come from anyone.
// Every error is permanent (reason "decode"); memory is bounded by
// MaxDecodedBytes. Columns that this version does not know are dropped, those
// it knows and the batch lacks read as absent: any older or newer version of
// the schema is accepted.
func Decode(data []byte) (b *Batch, err error) { return new(Decoder).Decode(data) }

// decode is Decode by Arrow's reader. It panics on some malformed input, as the
// limited allocator does by design: Decoder.Decode recovers.
func decode(data []byte) (*Batch, error) {
	if err := verify(data); err != nil {
		return nil, err
	}
	r, err := ipc.NewReader(bytes.NewReader(data), ipc.WithAllocator(&limited{left: MaxDecodedBytes}), ipc.WithDelayReadSchema(false))
	if err != nil {
		return nil, fmt.Errorf("arrow stream: %w", err)
	}
	class, err := schemas.ClassOf(r.Schema())
	if err != nil {
		return nil, err
	}
	rec, err := r.Read()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("arrow stream ends before its record batch")
		}
		return nil, fmt.Errorf("arrow record batch: %w", err)
	}
	if rec.NumRows() > MaxRows {
		return nil, fmt.Errorf("batch of %d rows, more than %d", rec.NumRows(), MaxRows)
	}
	seen := make(map[string]bool, rec.NumCols())
	var older []int // columns of type Names that were lists in version 1
	for i, f := range rec.Schema().Fields() {
		if seen[f.Name] {
			return nil, fmt.Errorf("column %q stands twice", f.Name)
		}
		seen[f.Name] = true
		id, ok := schemas.FieldByName(f.Name)
		if !ok {
			continue
		}
		want := id.Field()
		if want.Stored {
			return nil, fmt.Errorf("column %q belongs to storage", f.Name)
		}
		if want.Type == schemas.Names && arrow.TypeEqual(f.Type, arrow.ListOf(arrow.BinaryTypes.String)) {
			older = append(older, i)
		} else if !arrow.TypeEqual(f.Type, want.ArrowType()) {
			return nil, fmt.Errorf("column %q is %s, not %s", f.Name, f.Type, want.ArrowType())
		}
		if rec.Column(i).Len() != int(rec.NumRows()) {
			return nil, fmt.Errorf("column %q has %d rows of %d", f.Name, rec.Column(i).Len(), rec.NumRows())
		}
		if err := validate(rec.Column(i), want.Type); err != nil {
			return nil, fmt.Errorf("column %q: %w", f.Name, err)
		}
	}
	for _, i := range older {
		if rec, err = rec.SetColumn(i, joined(rec.Column(i).(*array.List))); err != nil {
			return nil, fmt.Errorf("column %q: %w", rec.ColumnName(i), err)
		}
	}
	return newBatch(class, rec), nil
}

// readSchema reads a schema's message.
func readSchema(message []byte) (*arrow.Schema, error) {
	r, err := ipc.NewReader(bytes.NewReader(message), ipc.WithAllocator(&limited{left: MaxDecodedBytes}), ipc.WithDelayReadSchema(false))
	if err != nil {
		return nil, err
	}
	return r.Schema(), nil
}

// joined returns a column of lists as one of type Names.
func joined(lists *array.List) arrow.Array {
	c := column{typ: schemas.Names}
	c.reset()
	values := lists.ListValues().(*array.String)
	var entry []byte
	for row := range lists.Len() {
		entry = entry[:0]
		if lists.IsValid(row) {
			from, to := lists.ValueOffsets(row)
			for k := int(from); k < int(to); k++ {
				entry = append(append(entry, values.Value(k)...), 0)
			}
		}
		c.str(string(entry))
		c.n++
	}
	return c.array(arrowNames, &c.text)
}

var arrowNames = schemas.AncestorNames.Field().ArrowType()

// limited allocates Go memory up to a bound, then panics; Decode recovers.
type limited struct {
	memory.GoAllocator
	left int64
	used atomic.Int64
}

func (l *limited) take(n int) {
	if l.used.Add(int64(n)) > l.left {
		panic(fmt.Sprintf("batch unpacks to more than %d bytes", int64(MaxDecodedBytes)))
	}
}

func (l *limited) Allocate(size int) []byte {
	l.take(size)
	return l.GoAllocator.Allocate(size)
}

func (l *limited) Reallocate(size int, b []byte) []byte {
	l.take(size - len(b))
	return l.GoAllocator.Reallocate(size, b)
}

func (l *limited) Free(b []byte) {
	l.used.Add(-int64(len(b)))
	l.GoAllocator.Free(b)
}
