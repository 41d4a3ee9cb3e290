// Package batch is the columnar form of events: building Arrow record batches
// row by row without allocating per event, encoding them as self-contained
// Arrow IPC streams, and decoding such streams from senders that are not
// trusted.
package batch

import (
	"encoding/binary"
	"math"
	"unsafe"

	"github.com/apache/arrow/go/v16/arrow"
	"github.com/apache/arrow/go/v16/arrow/array"
	"github.com/apache/arrow/go/v16/arrow/memory"
	"github.com/zeebo/xxh3"

	"picket/schemas"
)

// MaxRows bounds the rows of a batch; dictionary indices are 16 bits wide.
const MaxRows = 8192

// Builder collects rows of one class column by column. Set the fields of a
// row in any order, then call EndRow; fields not set are empty, zero or null.
// Setting a field that the builder does not have is ignored, so that code for
// several classes can share the setters of common fields. A Builder is used by
// one goroutine at a time and keeps its memory between batches.
type Builder struct {
	class  schemas.Class
	ids    []schemas.FieldID
	cols   []column
	at     []*column // by FieldID; nil where the class lacks the field
	used   []*column // those with a value that absence does not stand for
	rows   int
	size   int
	joined []byte // scratch of List
	shared *Shared
}

// column holds one column's buffers. Which of them are in use follows from
// the type. A column costs nothing until a row has a value in it: then the rows
// before are filled in.
type column struct {
	typ   schemas.Type
	nulls bool // a row not set is null rather than zero
	used  bool
	n     int // rows set so far; 0 while the column is not used
	valid []byte
	fixed []byte  // fixed-width values; bits for Bool; uint16 indices for Name
	off   []int32 // List and Map: row offsets into text (and vals)
	text  texts
	vals  texts // Map values
	dict  dictIndex
	last  string // Name, Names: the value of the last row, in text's memory
}

// texts is a run of strings in Arrow's layout.
type texts struct {
	off  []int32
	data []byte
}

func (t *texts) reset()          { t.off, t.data = append(t.off[:0], 0), t.data[:0] }
func (t *texts) len() int        { return len(t.off) - 1 }
func (t *texts) at(i int) []byte { return t.data[t.off[i]:t.off[i+1]] }
func (t *texts) end()            { t.off = append(t.off, int32(len(t.data))) }

// dictIndex finds a string among the entries of a texts: open addressing over
// 16-bit entry numbers, at most half full.
type dictIndex struct {
	slots []uint16 // entry number + 1; 0 is free
	hash  []uint32 // of each entry
}

func (d *dictIndex) reset() {
	clear(d.slots)
	d.hash = d.hash[:0]
}

// find returns the entry of v, adding it to t if it is new.
func (d *dictIndex) find(t *texts, v string) (entry uint16, added bool) {
	if 2*(t.len()+1) > len(d.slots) {
		d.grow()
	}
	h := uint32(xxh3.HashString(v))
	mask := uint32(len(d.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		s := d.slots[i]
		if s == 0 {
			d.slots[i] = uint16(t.len() + 1)
			d.hash = append(d.hash, h)
			t.data = append(t.data, v...)
			t.end()
			return uint16(t.len() - 1), true
		}
		if d.hash[s-1] == h && string(t.at(int(s-1))) == v {
			return s - 1, false
		}
	}
}

func (d *dictIndex) grow() {
	d.slots = make([]uint16, max(64, 2*len(d.slots)))
	mask := uint32(len(d.slots) - 1)
	for e, h := range d.hash {
		i := h & mask
		for d.slots[i] != 0 {
			i = (i + 1) & mask
		}
		d.slots[i] = uint16(e + 1)
	}
}

// NewBuilder returns a builder for the given columns of class c.
func NewBuilder(c schemas.Class, columns []schemas.FieldID) *Builder {
	b := &Builder{
		class: c,
		ids:   columns,
		cols:  make([]column, len(columns)),
		at:    make([]*column, schemas.NumFields()),
	}
	for i, id := range columns {
		f := id.Field()
		b.cols[i].typ = f.Type
		b.cols[i].nulls = f.Nullable || f.Type == schemas.IP
		b.cols[i].reset()
		b.at[id] = &b.cols[i]
	}
	return b
}

// Reset drops all rows and keeps the memory.
func (b *Builder) Reset() {
	for _, c := range b.used {
		c.reset()
	}
	b.rows, b.size, b.used = 0, 0, b.used[:0]
	if b.shared != nil {
		b.shared.reset()
	}
}

func (c *column) reset() {
	c.n, c.used, c.last = 0, false, ""
	c.valid, c.fixed, c.off = c.valid[:0], c.fixed[:0], append(c.off[:0], 0)
	c.text.reset()
	c.vals.reset()
	c.dict.reset()
}

// Class returns the class of the rows.
func (b *Builder) Class() schemas.Class { return b.class }

// Len returns the number of finished rows.
func (b *Builder) Len() int { return b.rows }

// Size returns the bytes that the rows take before compression, without
// schema and padding.
func (b *Builder) Size() int { return b.size }

// col returns the column to set in the current row, or nil: the builder lacks
// the field, or the row has it already (the first value stays), or it is given
// what absence stands for and no row has more.
func (b *Builder) col(id schemas.FieldID, absent bool) *column {
	c := b.at[id]
	if c == nil || c.n > b.rows {
		return nil
	}
	if !c.used {
		if absent && !c.nulls {
			return nil
		}
		c.used = true
		b.used = append(b.used, c)
		for c.n < b.rows {
			b.size += c.absent()
		}
	}
	return c
}

// absent adds a row without a value.
func (c *column) absent() (size int) {
	switch c.typ {
	case schemas.Text, schemas.Name, schemas.Names:
		size = c.str("")
	case schemas.List, schemas.Map:
		c.off = append(c.off, int32(c.text.len()))
		size = 4
	case schemas.Bool:
		c.mark(false)
		c.bit(false)
		size = 1
	case schemas.Uint32:
		c.mark(false)
		c.fixed = append(c.fixed, 0, 0, 0, 0)
		size = 4
	case schemas.Uint64, schemas.Int64, schemas.Time:
		c.mark(false)
		c.fixed = append(c.fixed, 0, 0, 0, 0, 0, 0, 0, 0)
		size = 8
	case schemas.IP, schemas.ID:
		c.mark(false)
		c.fixed = append(c.fixed, zero16[:]...)
		size = 16
	}
	c.n++
	return size
}

// has reports whether a row has a value.
func (c *column) has(row int) bool { return !c.nulls || c.valid[row/8]&(1<<(row%8)) != 0 }

// entry is an entry of the dictionary, in the memory of text, which is not
// written again before the next reset.
func (c *column) entry(e uint16) string {
	b := c.text.at(int(e))
	return unsafe.String(unsafe.SliceData(b), len(b))
}

func (c *column) mark(valid bool) {
	if !c.nulls {
		return
	}
	if c.n%8 == 0 {
		c.valid = append(c.valid, 0)
	}
	if valid {
		c.valid[c.n/8] |= 1 << (c.n % 8)
	}
}

// Str sets a Text or Name field.
func (b *Builder) Str(id schemas.FieldID, v string) {
	if c := b.col(id, v == ""); c != nil {
		b.size += c.str(v)
		c.n++
	}
}

// Bytes sets a Text or Name field from bytes, which it copies.
func (b *Builder) Bytes(id schemas.FieldID, v []byte) {
	// The string lives only for this call, which keeps no reference to it.
	b.Str(id, unsafe.String(unsafe.SliceData(v), len(v)))
}

func (c *column) str(v string) (size int) {
	if c.typ == schemas.Text {
		c.text.data = append(c.text.data, v...)
		c.text.end()
		return len(v) + 4
	}
	// Rows of one process come in a row.
	if c.n > 0 && v == c.last {
		last := c.fixed[len(c.fixed)-2:]
		c.fixed = append(c.fixed, last[0], last[1])
		return 2
	}
	e, added := c.dict.find(&c.text, v)
	c.fixed = binary.LittleEndian.AppendUint16(c.fixed, e)
	c.last = c.entry(e)
	if added {
		return len(v) + 4 + 2
	}
	return 2
}

// Uint32 sets a Uint32 field.
func (b *Builder) Uint32(id schemas.FieldID, v uint32) {
	if c := b.col(id, v == 0); c != nil {
		c.mark(true)
		c.fixed = binary.LittleEndian.AppendUint32(c.fixed, v)
		c.n++
		b.size += 4
	}
}

// Uint64 sets a Uint64 field.
func (b *Builder) Uint64(id schemas.FieldID, v uint64) {
	if c := b.col(id, v == 0); c != nil {
		c.mark(true)
		c.fixed = binary.LittleEndian.AppendUint64(c.fixed, v)
		c.n++
		b.size += 8
	}
}

// Int64 sets an Int64 or Time field; a time is nanoseconds since the epoch.
func (b *Builder) Int64(id schemas.FieldID, v int64) { b.Uint64(id, uint64(v)) }

// Bool sets a Bool field.
func (b *Builder) Bool(id schemas.FieldID, v bool) {
	c := b.col(id, !v)
	if c == nil {
		return
	}
	c.mark(true)
	c.bit(v)
	c.n++
	b.size++
}

func (c *column) bit(v bool) {
	if c.n%8 == 0 {
		c.fixed = append(c.fixed, 0)
	}
	if v {
		c.fixed[c.n/8] |= 1 << (c.n % 8)
	}
}

// Bytes16 sets an IP or ID field.
func (b *Builder) Bytes16(id schemas.FieldID, v [16]byte) {
	if c := b.col(id, false); c != nil {
		c.mark(true)
		c.fixed = append(c.fixed, v[:]...)
		c.n++
		b.size += 16
	}
}

// List sets a List or Names field.
func (b *Builder) List(id schemas.FieldID, v []string) {
	c := b.col(id, len(v) == 0)
	if c == nil {
		return
	}
	if c.typ == schemas.Names {
		b.joined = b.joined[:0]
		for _, s := range v {
			b.joined = append(append(b.joined, s...), 0)
		}
		b.size += c.str(unsafe.String(unsafe.SliceData(b.joined), len(b.joined)))
		c.n++
		return
	}
	for _, s := range v {
		c.text.data = append(c.text.data, s...)
		c.text.end()
		b.size += len(s) + 4
	}
	c.off = append(c.off, int32(c.text.len()))
	c.n++
	b.size += 4
}

// Map sets a Map field.
func (b *Builder) Map(id schemas.FieldID, v map[string]string) {
	c := b.col(id, len(v) == 0)
	if c == nil {
		return
	}
	for k, s := range v {
		c.text.data = append(c.text.data, k...)
		c.text.end()
		c.vals.data = append(c.vals.data, s...)
		c.vals.end()
		b.size += len(k) + len(s) + 8
	}
	c.off = append(c.off, int32(c.text.len()))
	c.n++
	b.size += 4
}

// Pairs sets a Map field from keys and values in turn, in the given order.
func (b *Builder) Pairs(id schemas.FieldID, kv []string) {
	c := b.col(id, len(kv) < 2)
	if c == nil {
		return
	}
	for i := 0; i+1 < len(kv); i += 2 {
		c.text.data = append(c.text.data, kv[i]...)
		c.text.end()
		c.vals.data = append(c.vals.data, kv[i+1]...)
		c.vals.end()
		b.size += len(kv[i]) + len(kv[i+1]) + 8
	}
	c.off = append(c.off, int32(c.text.len()))
	c.n++
	b.size += 4
}

// EndRow finishes the row.
func (b *Builder) EndRow() {
	if b.shared != nil {
		b.shared.endRow()
	}
	for _, c := range b.used {
		if c.n == b.rows {
			b.size += c.absent()
		}
	}
	b.rows++
}

var zero16 [16]byte

// Full reports whether the batch should be closed: it has MaxRows rows, or so many
// bytes that they might take more than schemas.MaxBatchBytes encoded. Events of
// the kernel shrink to less than a fifth; what does not shrink so far is split by
// Encode.
func (b *Builder) Full() bool { return b.rows >= MaxRows || b.size >= 2*schemas.MaxBatchBytes }

// Batch returns the rows as a batch that shares the builder's memory: it is
// valid until the next Reset or row. Columns in which no row has a value are
// left out, because absence reads the same: a batch of forks does not pay for
// the columns of an exec.
func (b *Builder) Batch() *Batch {
	ids := make([]schemas.FieldID, 0, len(b.cols))
	arrays := make([]arrow.Array, 0, len(b.cols))
	for i, id := range b.ids {
		c, dict := &b.cols[i], &b.cols[i].text
		if b.shared != nil && b.shared.at[id] != nil {
			from := b.shared.at[id]
			if !from.used {
				continue
			}
			b.shared.expand(c, from)
			dict = &from.text
		}
		if c.used {
			ids = append(ids, id)
			arrays = append(arrays, c.array(id.Field().ArrowType(), dict))
		}
	}
	return newBatch(b.class, array.NewRecord(schemas.ArrowSchema(b.class, ids), arrays, int64(b.rows)))
}

// array is the column as Arrow has it; dict are the entries of a Name or Names.
func (c *column) array(t arrow.DataType, dict *texts) arrow.Array {
	var valid *memory.Buffer
	nulls := 0
	if c.nulls {
		valid = memory.NewBufferBytes(c.valid)
		for i := range c.n {
			if c.valid[i/8]&(1<<(i%8)) == 0 {
				nulls++
			}
		}
	}
	switch c.typ {
	case schemas.Text:
		return array.MakeFromData(c.text.arrow(t))
	case schemas.Name, schemas.Names:
		dt := t.(*arrow.DictionaryType)
		d := array.NewDataWithDictionary(t, c.n, []*memory.Buffer{nil, memory.NewBufferBytes(c.fixed)}, 0, 0, dict.arrow(dt.ValueType))
		return array.MakeFromData(d)
	case schemas.List:
		lt := t.(*arrow.ListType)
		return array.MakeFromData(array.NewData(t, c.n, []*memory.Buffer{nil, offsets(c.off)}, []arrow.ArrayData{c.text.arrow(lt.Elem())}, 0, 0))
	case schemas.Map:
		mt := t.(*arrow.MapType)
		st := arrow.StructOf(mt.KeyField(), mt.ItemField())
		kv := array.NewData(st, c.text.len(), []*memory.Buffer{nil}, []arrow.ArrayData{c.text.arrow(mt.KeyType()), c.vals.arrow(mt.ItemType())}, 0, 0)
		return array.MakeFromData(array.NewData(t, c.n, []*memory.Buffer{nil, offsets(c.off)}, []arrow.ArrayData{kv}, 0, 0))
	default:
		return array.MakeFromData(array.NewData(t, c.n, []*memory.Buffer{valid, memory.NewBufferBytes(c.fixed)}, nil, nulls, 0))
	}
}

func (t *texts) arrow(dt arrow.DataType) *array.Data {
	return array.NewData(dt, t.len(), []*memory.Buffer{nil, offsets(t.off), memory.NewBufferBytes(t.data)}, nil, 0, 0)
}

func offsets(off []int32) *memory.Buffer {
	return memory.NewBufferBytes(arrow.Int32Traits.CastToBytes(off))
}

// Null16 is the value of an absent address.
var Null16 = zero16

// IPv4 maps an IPv4 address, given in network order, into 16 bytes.
func IPv4(a [4]byte) [16]byte {
	return [16]byte{10: 0xff, 11: 0xff, 12: a[0], 13: a[1], 14: a[2], 15: a[3]}
}

const _ = uint(math.MaxUint16 - 2*MaxRows) // entry number + 1 fits 16 bits
