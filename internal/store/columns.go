package store

import (
	"encoding/binary"
	"maps"
	"slices"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/apache/arrow/go/v16/arrow/array"
	"github.com/google/uuid"

	"picket/internal/batch"
)

// column collects the values of one column of a block in ClickHouse's Native
// form. Its memory is kept from block to block.
type column interface {
	// rows is the number of values so far.
	rows() int
	// pad adds default values until there are n.
	pad(n int)
	reset()
	// state writes what precedes the values of some types.
	state(b *proto.Buffer)
	encode(b *proto.Buffer)
}

// newColumn returns an empty column of a ClickHouse type: one of those that
// package schemas declares.
func newColumn(typ string) column {
	switch typ {
	case "String":
		return &text{}
	case "LowCardinality(String)":
		return newName()
	case "Bool", "UInt8":
		return &small{}
	case "Date":
		return &fixed[uint16]{}
	case "UInt32":
		return &fixed[uint32]{}
	case "UInt64":
		return &fixed[uint64]{}
	case "Int64", "DateTime64(9, 'UTC')":
		return &fixed[int64]{}
	case "Nullable(UInt32)":
		return &nullable[uint32]{}
	case "Nullable(UInt64)":
		return &nullable[uint64]{}
	case "Nullable(Int64)", "Nullable(DateTime64(9, 'UTC'))":
		return &nullable[int64]{}
	case "IPv6":
		return &address{}
	case "UUID":
		return &id{}
	case "Array(String)":
		return &list[*text]{values: &text{}}
	case "Array(LowCardinality(String))":
		return &list[*name]{values: newName()}
	case "Array(UUID)":
		return &list[*id]{values: &id{}}
	case "Map(LowCardinality(String), String)":
		return &dict{keys: newName()}
	}
	panic("store: no column for ClickHouse type " + typ) // a type new in package schemas: every test of this package meets it
}

// text is String.
type text struct{ proto.ColStr }

func (c *text) rows() int              { return len(c.Pos) }
func (c *text) reset()                 { c.Reset() }
func (c *text) state(*proto.Buffer)    {}
func (c *text) encode(b *proto.Buffer) { c.EncodeColumn(b) }
func (c *text) pad(n int) {
	for len(c.Pos) < n {
		c.Append("")
	}
}

// strings adds n values of an Arrow column, which is a dictionary or not.
func (c *text) strings(a any, n int) {
	switch a := a.(type) {
	case *array.Dictionary:
		values := a.Dictionary().(*array.String)
		for i := range n {
			if a.IsValid(i) {
				c.Append(values.Value(a.GetValueIndex(i)))
			} else {
				c.Append("")
			}
		}
	case *array.String:
		for i := range n {
			if a.IsValid(i) {
				c.Append(a.Value(i))
			} else {
				c.Append("")
			}
		}
	}
}

// name is LowCardinality(String): the distinct values, and for each row which
// of them it has.
type name struct {
	index  map[string]uint32
	values proto.ColStr
	keys   []uint32
	remap  []uint32 // scratch of strings
}

func newName() *name { return &name{index: map[string]uint32{}} }

func (c *name) rows() int { return len(c.keys) }
func (c *name) reset() {
	clear(c.index)
	c.values.Reset()
	c.keys = c.keys[:0]
}
func (c *name) Append(v string) { c.keys = append(c.keys, c.key(v)) }
func (c *name) pad(n int) {
	if len(c.keys) < n {
		for k := c.key(""); len(c.keys) < n; {
			c.keys = append(c.keys, k)
		}
	}
}

func (c *name) key(v string) uint32 {
	k, ok := c.index[v]
	if !ok {
		k = uint32(len(c.index))
		c.values.Append(v)
		c.index[string(append([]byte(nil), v...))] = k // v may alias the message
	}
	return k
}

// strings adds n values of an Arrow dictionary column; each distinct value is
// looked up once.
func (c *name) strings(a *array.Dictionary, n int) {
	values := a.Dictionary().(*array.String)
	c.remap = c.remap[:0]
	for i := range values.Len() {
		c.remap = append(c.remap, c.key(values.Value(i)))
	}
	for i := range n {
		if a.IsValid(i) {
			c.keys = append(c.keys, c.remap[a.GetValueIndex(i)])
		} else {
			c.keys = append(c.keys, c.key(""))
		}
	}
}

// Serialization of LowCardinality in the Native format: a version, then flags
// with the width of the keys, the distinct values, the keys.
const (
	sharedDictionaries = 1
	ownDictionary      = 1<<9 | 1<<10 // has additional keys, replaces the dictionary
)

func (c *name) state(b *proto.Buffer) { b.PutInt64(sharedDictionaries) }
func (c *name) encode(b *proto.Buffer) {
	if len(c.keys) == 0 {
		return
	}
	width := int64(0) // log2 of the bytes per key
	switch {
	case len(c.index) > 1<<16:
		width = 2
	case len(c.index) > 1<<8:
		width = 1
	}
	b.PutInt64(ownDictionary | width)
	b.PutInt64(int64(c.values.Rows()))
	c.values.EncodeColumn(b)
	b.PutInt64(int64(len(c.keys)))
	for _, k := range c.keys {
		switch width {
		case 0:
			b.Buf = append(b.Buf, byte(k))
		case 1:
			b.Buf = binary.LittleEndian.AppendUint16(b.Buf, uint16(k))
		default:
			b.Buf = binary.LittleEndian.AppendUint32(b.Buf, k)
		}
	}
}

// small is UInt8 and Bool.
type small struct{ v proto.ColUInt8 }

func (c *small) rows() int              { return len(c.v) }
func (c *small) reset()                 { c.v = c.v[:0] }
func (c *small) state(*proto.Buffer)    {}
func (c *small) encode(b *proto.Buffer) { c.v.EncodeColumn(b) }
func (c *small) Append(v uint8)         { c.v = append(c.v, v) }
func (c *small) pad(n int)              { c.v = grow(c.v, n) }

func (c *small) bools(a *array.Boolean, n int) {
	for i := range n {
		v := uint8(0)
		if a.IsValid(i) && a.Value(i) {
			v = 1
		}
		c.v = append(c.v, v)
	}
}

// number is a fixed-width value that ClickHouse sends as little-endian bytes.
type number interface {
	~uint16 | ~uint32 | ~uint64 | ~int64
}

// fixed is the integers, Date and DateTime64.
type fixed[T number] struct{ v []T }

func (c *fixed[T]) rows() int           { return len(c.v) }
func (c *fixed[T]) reset()              { c.v = c.v[:0] }
func (c *fixed[T]) state(*proto.Buffer) {}
func (c *fixed[T]) Append(v T)          { c.v = append(c.v, v) }
func (c *fixed[T]) pad(n int)           { c.v = grow(c.v, n) }
func (c *fixed[T]) encode(b *proto.Buffer) {
	switch v := any(c.v).(type) {
	case []uint16:
		proto.ColUInt16(v).EncodeColumn(b)
	case []uint32:
		proto.ColUInt32(v).EncodeColumn(b)
	case []uint64:
		proto.ColUInt64(v).EncodeColumn(b)
	case []int64:
		proto.ColInt64(v).EncodeColumn(b)
	}
}

// values adds an Arrow column's values; those at nulls are zero.
func (c *fixed[T]) values(v []T, a nulls) {
	from := len(c.v)
	c.v = append(c.v, v...)
	if a.NullN() == 0 {
		return
	}
	for i := range v {
		if a.IsNull(i) {
			c.v[from+i] = 0
		}
	}
}

// nulls is the part of an Arrow array that tells which values are absent.
type nulls interface {
	NullN() int
	IsNull(i int) bool
}

// nullable is Nullable of an integer.
type nullable[T number] struct {
	null proto.ColUInt8
	fixed[T]
}

func (c *nullable[T]) reset() {
	c.null = c.null[:0]
	c.fixed.reset()
}
func (c *nullable[T]) encode(b *proto.Buffer) {
	c.null.EncodeColumn(b)
	c.fixed.encode(b)
}
func (c *nullable[T]) pad(n int) {
	for len(c.null) < n {
		c.null = append(c.null, 1)
	}
	c.fixed.pad(n)
}
func (c *nullable[T]) values(v []T, a nulls) {
	c.fixed.values(v, a)
	for i := range v {
		n := uint8(0)
		if a.IsNull(i) {
			n = 1
		}
		c.null = append(c.null, n)
	}
}

// address is IPv6; absent is ::.
type address struct{ v proto.ColIPv6 }

func (c *address) rows() int              { return len(c.v) }
func (c *address) reset()                 { c.v = c.v[:0] }
func (c *address) state(*proto.Buffer)    {}
func (c *address) encode(b *proto.Buffer) { c.v.EncodeColumn(b) }
func (c *address) pad(n int)              { c.v = grow(c.v, n) }
func (c *address) bytes(a *array.FixedSizeBinary, n int) {
	for i := range n {
		var v proto.IPv6
		if a.IsValid(i) {
			copy(v[:], a.Value(i))
		}
		c.v = append(c.v, v)
	}
}

// id is UUID.
type id struct{ v proto.ColUUID }

func (c *id) rows() int              { return len(c.v) }
func (c *id) reset()                 { c.v = c.v[:0] }
func (c *id) state(*proto.Buffer)    {}
func (c *id) encode(b *proto.Buffer) { c.v.EncodeColumn(b) }
func (c *id) Append(v [16]byte)      { c.v = append(c.v, uuid.UUID(v)) }
func (c *id) pad(n int)              { c.v = grow(c.v, n) }
func (c *id) bytes(a *array.FixedSizeBinary, n int) {
	for i := range n {
		var v uuid.UUID
		if a.IsValid(i) {
			copy(v[:], a.Value(i))
		}
		c.v = append(c.v, v)
	}
}

// list is Array: the values of all rows one after the other, and where each
// row's end.
type list[C column] struct {
	ends   proto.ColUInt64
	values C
}

func (c *list[C]) rows() int { return len(c.ends) }
func (c *list[C]) reset() {
	c.ends = c.ends[:0]
	c.values.reset()
}
func (c *list[C]) state(b *proto.Buffer) { c.values.state(b) }
func (c *list[C]) encode(b *proto.Buffer) {
	c.ends.EncodeColumn(b)
	c.values.encode(b)
}

// end finishes a row whose values were added to c.values.
func (c *list[C]) end() { c.ends = append(c.ends, uint64(c.values.rows())) }
func (c *list[C]) pad(n int) {
	for len(c.ends) < n {
		c.end()
	}
}

// dict is Map(LowCardinality(String), String).
type dict struct {
	ends   proto.ColUInt64
	keys   *name
	values text
}

func (c *dict) rows() int { return len(c.ends) }
func (c *dict) reset() {
	c.ends = c.ends[:0]
	c.keys.reset()
	c.values.reset()
}
func (c *dict) state(b *proto.Buffer) { c.keys.state(b) }
func (c *dict) encode(b *proto.Buffer) {
	c.ends.EncodeColumn(b)
	c.keys.encode(b)
	c.values.encode(b)
}
func (c *dict) pad(n int) {
	for len(c.ends) < n {
		c.ends = append(c.ends, uint64(c.values.rows()))
	}
}

// Append adds a row; its entries come sorted by key.
func (c *dict) Append(m map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		c.keys.Append(k)
		c.values.Append(m[k])
	}
	c.pad(len(c.ends) + 1)
}

func (c *dict) maps(a *array.Map, n int) {
	keys, items := a.Keys().(*array.String), a.Items().(*array.String)
	for i := range n {
		if a.IsValid(i) {
			from, to := a.ValueOffsets(i)
			for k := int(from); k < int(to); k++ {
				c.keys.Append(keys.Value(k))
				c.values.Append(items.Value(k))
			}
		}
		c.ends = append(c.ends, uint64(c.values.rows()))
	}
}

// appendNames adds n lists of a Names column.
func appendNames(c *list[*text], a *array.Dictionary, n int) {
	dict := a.Dictionary().(*array.String)
	for i := range n {
		if a.IsValid(i) {
			for e := range batch.Elements(dict.Value(a.GetValueIndex(i))) {
				c.values.Append(e)
			}
		}
		c.end()
	}
}

func lists(c *list[*text], a *array.List, n int) {
	values := a.ListValues().(*array.String)
	for i := range n {
		if a.IsValid(i) {
			from, to := a.ValueOffsets(i)
			for k := int(from); k < int(to); k++ {
				c.values.Append(values.Value(k))
			}
		}
		c.end()
	}
}

// grow extends v with zero values to length n.
func grow[S ~[]T, T any](v S, n int) S {
	if len(v) >= n {
		return v
	}
	return append(v, make(S, n-len(v))...)
}
