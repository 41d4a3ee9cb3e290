package batch

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/apache/arrow/go/v16/arrow"
	"github.com/apache/arrow/go/v16/arrow/array"
	"github.com/apache/arrow/go/v16/arrow/ipc"
	"github.com/apache/arrow/go/v16/arrow/memory"

	"picket/internal/fault"
	"picket/schemas"
)

// A capture is an Arrow IPC file of kernel events: the columns of all kernel
// classes and, first, the class. Every record batch holds one class. Strings
// are plain, because the file format does not let a dictionary change between
// batches.

const captureClass = "class"

// captureColumns are the raw columns of the classes that a sensor sends.
func captureColumns() []schemas.FieldID {
	var ids []schemas.FieldID
	for _, c := range schemas.NodeClasses() {
		for _, id := range schemas.RawColumns(c) {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return ids
}

func captureSchema(ids []schemas.FieldID) *arrow.Schema {
	fields := []arrow.Field{{Name: captureClass, Type: arrow.BinaryTypes.String}}
	for _, id := range ids {
		f := id.Field()
		fields = append(fields, arrow.Field{Name: f.Name, Type: captureType(f), Nullable: true})
	}
	return arrow.NewSchema(fields, nil)
}

func captureType(f *schemas.Field) arrow.DataType {
	if f.Type == schemas.Name {
		return arrow.BinaryTypes.String
	}
	if f.Type == schemas.Names {
		return arrow.ListOf(arrow.BinaryTypes.String)
	}
	return f.ArrowType()
}

// CaptureWriter writes a capture. It is used by one goroutine at a time.
type CaptureWriter struct {
	w      *ipc.FileWriter
	ids    []schemas.FieldID
	schema *arrow.Schema
}

// NewCaptureWriter starts a capture on w.
func NewCaptureWriter(w io.WriteSeeker) (*CaptureWriter, error) {
	ids := captureColumns()
	schema := captureSchema(ids)
	fw, err := ipc.NewFileWriter(w, ipc.WithSchema(schema), ipc.WithLZ4())
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	return &CaptureWriter{w: fw, ids: ids, schema: schema}, nil
}

// Write adds a batch of a kernel class.
func (c *CaptureWriter) Write(b *Batch) error {
	mem := memory.DefaultAllocator
	class := array.NewStringBuilder(mem)
	for range b.rows {
		class.Append(b.class.String())
	}
	columns := []arrow.Array{class.NewArray()}
	for _, id := range c.ids {
		col := b.cols[id]
		switch {
		case col == nil:
			col = array.MakeArrayOfNull(mem, captureType(id.Field()), b.rows)
		case id.Field().Type == schemas.Name:
			plain := array.NewStringBuilder(mem)
			for row := range b.rows {
				plain.Append(b.Str(id, row))
			}
			col = plain.NewArray()
		case id.Field().Type == schemas.Names:
			plain := array.NewListBuilder(mem, arrow.BinaryTypes.String)
			for row := range b.rows {
				plain.Append(true)
				for e := range b.List(id, row) {
					plain.ValueBuilder().(*array.StringBuilder).Append(e)
				}
			}
			col = plain.NewArray()
		}
		columns = append(columns, col)
	}
	if err := c.w.Write(array.NewRecord(c.schema, columns, int64(b.rows))); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	return nil
}

// Close writes the end of the file, without which other tools do not read it.
func (c *CaptureWriter) Close() error { return c.w.Close() }

// ReadCapture calls each for every batch of a capture, in order, until it
// returns an error. The file may come from anyone; a bad one is a permanent
// error.
func ReadCapture(data []byte, each func(*Batch) error) (err error) {
	var fromEach error
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("malformed capture: %v", p)
		}
		if err != nil && fromEach == nil {
			err = fault.Permanent(schemas.LossDecode, err)
		}
	}()
	if err := verifyFile(data); err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	alloc := &limited{left: MaxDecodedBytes}
	r, err := ipc.NewFileReader(bytes.NewReader(data), ipc.WithAllocator(alloc))
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	builders := map[schemas.Class]*Builder{}
	for i := range r.NumRecords() {
		alloc.used.Store(0) // the bound is per batch
		rec, err := r.RecordAt(i)
		if err != nil {
			return fmt.Errorf("capture: %w", err)
		}
		plain, err := captureBatch(rec)
		if err != nil {
			return fmt.Errorf("capture: %w", err)
		}
		b := builders[plain.class]
		if b == nil {
			b = NewBuilder(plain.class, schemas.RawColumns(plain.class))
			builders[plain.class] = b
		}
		b.Reset()
		for row := range plain.rows {
			b.Copy(plain, row)
		}
		rec.Release()
		if fromEach = each(b.Batch()); fromEach != nil {
			return fromEach
		}
	}
	return nil
}

// captureBatch checks a record of a capture.
func captureBatch(rec arrow.Record) (*Batch, error) {
	if rec.NumRows() > MaxRows || rec.NumRows() == 0 {
		return nil, fmt.Errorf("batch of %d rows, not 1 to %d", rec.NumRows(), MaxRows)
	}
	at := rec.Schema().FieldIndices(captureClass)
	if len(at) != 1 {
		return nil, fmt.Errorf("no column %q: not a capture of Picket's", captureClass)
	}
	names, ok := rec.Column(at[0]).(*array.String)
	if !ok || names.Len() != int(rec.NumRows()) {
		return nil, fmt.Errorf("column %q is not text", captureClass)
	}
	if err := validate(names, schemas.Text); err != nil {
		return nil, fmt.Errorf("column %q: %w", captureClass, err)
	}
	class, err := schemas.ParseClass(names.Value(0))
	if err != nil {
		return nil, err
	}
	for i, f := range rec.Schema().Fields() {
		id, known := schemas.FieldByName(f.Name)
		if !known {
			continue
		}
		field := id.Field()
		if field.Stored || !arrow.TypeEqual(f.Type, captureType(field)) {
			return nil, fmt.Errorf("column %q is %s, not %s", f.Name, f.Type, captureType(field))
		}
		if rec.Column(i).Len() != int(rec.NumRows()) {
			return nil, fmt.Errorf("column %q has %d rows of %d", f.Name, rec.Column(i).Len(), rec.NumRows())
		}
		if err := validate(rec.Column(i), field.Type); err != nil {
			return nil, fmt.Errorf("column %q: %w", f.Name, err)
		}
	}
	return newBatch(class, rec), nil
}

// Copy adds a row of another batch. Columns that the builder lacks are left
// out.
func (b *Builder) Copy(src *Batch, row int) {
	for _, id := range b.ids {
		if src.IsNull(id, row) {
			continue
		}
		switch id.Field().Type {
		case schemas.Text, schemas.Name:
			b.Str(id, src.Str(id, row))
		case schemas.Bool:
			b.Bool(id, src.Bool(id, row))
		case schemas.Uint32:
			b.Uint32(id, uint32(src.Uint(id, row)))
		case schemas.Uint64:
			b.Uint64(id, src.Uint(id, row))
		case schemas.Int64, schemas.Time:
			b.Int64(id, src.Int(id, row))
		case schemas.IP, schemas.ID:
			v, _ := src.Bytes16(id, row)
			b.Bytes16(id, v)
		case schemas.List, schemas.Names:
			b.List(id, slices.Collect(src.List(id, row)))
		case schemas.Map:
			b.Map(id, maps.Collect(src.Map(id, row)))
		}
	}
	b.EndRow()
}
