package batch

import (
	"fmt"
	"iter"
	"strings"

	"github.com/apache/arrow/go/v16/arrow"
	"github.com/apache/arrow/go/v16/arrow/array"

	"picket/schemas"
)

// Batch is a set of rows of one class, column by column. Its accessors take a
// row below Rows and return the zero value where the batch lacks the column or
// the value is null. A Batch does not change and may be read by several
// goroutines; one made by Builder.Batch lives as long as that builder's rows.
type Batch struct {
	class schemas.Class
	rows  int
	cols  []arrow.Array // by FieldID; nil where the batch lacks the column
	// record returns the Arrow record; Decoder's is made when it is asked for.
	record func() arrow.Record
}

func newBatch(c schemas.Class, rec arrow.Record) *Batch {
	b := &Batch{class: c, rows: int(rec.NumRows()), record: func() arrow.Record { return rec }, cols: make([]arrow.Array, schemas.NumFields())}
	for i, f := range rec.Schema().Fields() {
		if id, ok := schemas.FieldByName(f.Name); ok {
			b.cols[id] = rec.Column(i)
		}
	}
	return b
}

// Class returns the class of the rows.
func (b *Batch) Class() schemas.Class { return b.class }

// Rows returns the number of rows.
func (b *Batch) Rows() int { return b.rows }

// Record returns the Arrow record of the rows.
func (b *Batch) Record() arrow.Record { return b.record() }

// Column returns the column of a field, or nil if the batch lacks it. Its
// type is the field's ArrowType.
func (b *Batch) Column(id schemas.FieldID) arrow.Array { return b.cols[id] }

// Str returns a Text or Name field. The string aliases the batch's memory.
func (b *Batch) Str(id schemas.FieldID, row int) string {
	switch c := b.cols[id].(type) {
	case *array.Dictionary:
		if c.IsNull(row) {
			return ""
		}
		return c.Dictionary().(*array.String).Value(c.GetValueIndex(row))
	case *array.String:
		if c.IsNull(row) {
			return ""
		}
		return c.Value(row)
	}
	return ""
}

// Uint returns a Uint32 or Uint64 field.
func (b *Batch) Uint(id schemas.FieldID, row int) uint64 {
	switch c := b.cols[id].(type) {
	case *array.Uint32:
		return uint64(c.Value(row))
	case *array.Uint64:
		return c.Value(row)
	}
	return 0
}

// Int returns an Int64 field, or the nanoseconds since the epoch of a Time
// field.
func (b *Batch) Int(id schemas.FieldID, row int) int64 {
	switch c := b.cols[id].(type) {
	case *array.Int64:
		return c.Value(row)
	case *array.Timestamp:
		return int64(c.Value(row))
	}
	return 0
}

// Bool returns a Bool field.
func (b *Batch) Bool(id schemas.FieldID, row int) bool {
	c, ok := b.cols[id].(*array.Boolean)
	return ok && c.IsValid(row) && c.Value(row)
}

// Bytes16 returns an IP or ID field and whether it is there.
func (b *Batch) Bytes16(id schemas.FieldID, row int) (v [16]byte, ok bool) {
	c, is := b.cols[id].(*array.FixedSizeBinary)
	if !is || c.IsNull(row) {
		return v, false
	}
	return [16]byte(c.Value(row)), true
}

// IsNull reports whether the batch lacks the column or the row has no value
// in it.
func (b *Batch) IsNull(id schemas.FieldID, row int) bool {
	return b.cols[id] == nil || b.cols[id].IsNull(row)
}

// List yields the elements of a List or Names field.
func (b *Batch) List(id schemas.FieldID, row int) iter.Seq[string] {
	return func(yield func(string) bool) {
		if c, ok := b.cols[id].(*array.Dictionary); ok && id.Field().Type == schemas.Names {
			if c.IsValid(row) {
				Elements(c.Dictionary().(*array.String).Value(c.GetValueIndex(row)))(yield)
			}
			return
		}
		c, ok := b.cols[id].(*array.List)
		if !ok || c.IsNull(row) {
			return
		}
		from, to := c.ValueOffsets(row)
		values := c.ListValues().(*array.String)
		for i := from; i < to; i++ {
			if !yield(values.Value(int(i))) {
				return
			}
		}
	}
}

// ListLen returns how many elements List yields, without allocating.
func (b *Batch) ListLen(id schemas.FieldID, row int) int {
	switch c := b.cols[id].(type) {
	case *array.List:
		if c.IsValid(row) {
			from, to := c.ValueOffsets(row)
			return int(to - from)
		}
	case *array.Dictionary:
		if id.Field().Type != schemas.Names || c.IsNull(row) {
			return 0
		}
		n := 0
		for joined := c.Dictionary().(*array.String).Value(c.GetValueIndex(row)); joined != ""; n++ {
			_, joined, _ = strings.Cut(joined, "\x00")
		}
		return n
	}
	return 0
}

// Elements yields the elements of an entry of a Names column's dictionary.
func Elements(joined string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for len(joined) > 0 {
			e, rest, _ := strings.Cut(joined, "\x00")
			if !yield(e) {
				return
			}
			joined = rest
		}
	}
}

// Map yields the entries of a Map field.
func (b *Batch) Map(id schemas.FieldID, row int) iter.Seq2[string, string] {
	return func(yield func(k, v string) bool) {
		c, ok := b.cols[id].(*array.Map)
		if !ok || c.IsNull(row) {
			return
		}
		from, to := c.ValueOffsets(row)
		keys, items := c.Keys().(*array.String), c.Items().(*array.String)
		for i := from; i < to; i++ {
			if !yield(keys.Value(int(i)), items.Value(int(i))) {
				return
			}
		}
	}
}

// Join returns a batch with the columns of b and those of the builder, which
// must have as many rows. A field that the builder was made with comes from it
// alone, also where it has no value in any row: what a sender put into such a
// column does not pass. The columns of b are shared, not copied; columns that
// do not belong to the class are left out.
func (b *Batch) Join(extra *Builder) (*Batch, error) {
	if extra.Len() != b.rows {
		return nil, fmt.Errorf("join of %d rows with %d", b.rows, extra.Len())
	}
	add := extra.Batch()
	var ids []schemas.FieldID
	var arrays []arrow.Array
	for _, id := range schemas.Columns(b.class) {
		c := b.cols[id]
		if extra.at[id] != nil || extra.shared != nil && extra.shared.at[id] != nil {
			c = add.cols[id]
		}
		if c != nil {
			ids, arrays = append(ids, id), append(arrays, c)
		}
	}
	return newBatch(b.class, array.NewRecord(schemas.ArrowSchema(b.class, ids), arrays, int64(b.rows))), nil
}

// Select returns a batch with those of the given columns that b has, in the
// given order. It shares memory with b.
func (b *Batch) Select(columns []schemas.FieldID) *Batch {
	var ids []schemas.FieldID
	var arrays []arrow.Array
	for _, id := range columns {
		if c := b.cols[id]; c != nil {
			ids, arrays = append(ids, id), append(arrays, c)
		}
	}
	return newBatch(b.class, array.NewRecord(schemas.ArrowSchema(b.class, ids), arrays, int64(b.rows)))
}

// Slice returns rows [from, to) as a batch that shares memory with b.
func (b *Batch) Slice(from, to int) *Batch {
	return newBatch(b.class, b.record().NewSlice(int64(from), int64(to)))
}

// validate checks what the accessors rely on and Arrow's reader does not
// check: types as registered, buffers long enough, offsets in order and inside
// their data, dictionary indices inside the dictionary.
func validate(a arrow.Array, t schemas.Type) error {
	d := a.Data()
	if v := d.Buffers()[0]; v != nil && v.Len() != 0 && v.Len()*8 < d.Offset()+d.Len() {
		return fmt.Errorf("validity bitmap too short")
	}
	if d.NullN() != 0 && bufferLen(d, 0) == 0 {
		return fmt.Errorf("nulls without a validity bitmap")
	}
	switch c := a.(type) {
	case *array.Dictionary:
		dict, ok := c.Dictionary().(*array.String)
		if !ok {
			return fmt.Errorf("dictionary of %s", c.Dictionary().DataType())
		}
		if err := validate(dict, schemas.Text); err != nil {
			return fmt.Errorf("dictionary: %w", err)
		}
		idx, ok := c.Indices().(*array.Uint16)
		if !ok {
			return fmt.Errorf("dictionary index of %s", c.Indices().DataType())
		}
		if bufferLen(d, 1) < (d.Offset()+d.Len())*2 {
			return fmt.Errorf("dictionary indices too short")
		}
		for i, v := range idx.Uint16Values() {
			if int(v) >= dict.Len() && c.IsValid(i) {
				return fmt.Errorf("dictionary index %d of %d entries at row %d", v, dict.Len(), i)
			}
		}
	case *array.String:
		return validOffsets(d, bufferLen(d, 2))
	case *array.List:
		values, ok := c.ListValues().(*array.String)
		if !ok {
			return fmt.Errorf("list of %s", c.ListValues().DataType())
		}
		if err := validate(values, schemas.Text); err != nil {
			return err
		}
		return validOffsets(d, values.Len())
	case *array.Map:
		keys, ok1 := c.Keys().(*array.String)
		items, ok2 := c.Items().(*array.String)
		if !ok1 || !ok2 {
			return fmt.Errorf("map of %s", c.DataType())
		}
		if err := validate(keys, schemas.Text); err != nil {
			return err
		}
		if err := validate(items, schemas.Text); err != nil {
			return err
		}
		return validOffsets(d, min(keys.Len(), items.Len()))
	default:
		width := 0 // bits
		switch t {
		case schemas.Bool:
			width = 1
		case schemas.Uint32:
			width = 32
		case schemas.Uint64, schemas.Int64, schemas.Time:
			width = 64
		case schemas.IP, schemas.ID:
			width = 128
		}
		if width == 0 {
			return fmt.Errorf("unexpected type %s", a.DataType())
		}
		if bufferLen(d, 1)*8 < (d.Offset()+d.Len())*width {
			return fmt.Errorf("values too short")
		}
	}
	return nil
}

func bufferLen(d arrow.ArrayData, i int) int {
	if b := d.Buffers()[i]; b != nil {
		return b.Len()
	}
	return 0
}

// validOffsets checks the offsets of a string, list or map array, whose values
// are limit long.
func validOffsets(d arrow.ArrayData, limit int) error {
	if d.Len() == 0 {
		return nil
	}
	n := d.Offset() + d.Len() + 1
	if bufferLen(d, 1) < n*4 {
		return fmt.Errorf("offsets too short")
	}
	last := int32(0)
	for _, o := range arrow.Int32Traits.CastFromBytes(d.Buffers()[1].Bytes())[:n] {
		if o < last {
			return fmt.Errorf("offsets not in order")
		}
		last = o
	}
	if int(last) > limit {
		return fmt.Errorf("offset %d beyond %d", last, limit)
	}
	return nil
}
