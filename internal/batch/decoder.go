package batch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/apache/arrow/go/v16/arrow"
	"github.com/apache/arrow/go/v16/arrow/array"
	"github.com/apache/arrow/go/v16/arrow/memory"
	"github.com/pierrec/lz4/v4"

	"picket/internal/fault"
	"picket/schemas"
)

// Decoder decodes many batches one after the other. What it costs to decode a
// small batch is its schema and its many columns rather than its rows, so it
// remembers the schemas that it has seen, unpacks all columns of a batch into
// one piece of memory, and reads the streams that Encode writes by itself:
// Arrow's reader makes some 2,000 objects of each. A stream that differs (an
// older type of column, one that is not known, another compression) goes through
// Arrow's reader. The zero value is ready; it is used by one goroutine at a time.
// Batches do not refer to it.
type Decoder struct {
	layouts map[string]*layout // by the metadata of the schema's message
	learned int                // bytes of that metadata
	bodies  map[int64]records  // dictionaries of the present batch
}

// Bounds of the schemas that are remembered. Every set of columns with a
// value in it is one, of some 10 KiB: a node has some hundred. A sender can make
// them as large as a message.
const (
	maxLayouts = 4096
	maxLearned = 16 << 20 // bytes
)

// layout is what a schema's message says.
type layout struct {
	class   schemas.Class
	schema  *arrow.Schema
	columns []layoutColumn
}

type layoutColumn struct {
	id         schemas.FieldID
	kind       schemas.Type
	typ        arrow.DataType
	dictionary int64 // its id; -1 is none
}

// records is a record batch's message: its header's metadata and its body.
type records struct {
	rows           int
	nodes, buffers []byte // structs of 16 bytes
	compressed     bool
	body           []byte
}

// Decode is Decode.
func (d *Decoder) Decode(data []byte) (b *Batch, err error) {
	defer func() {
		if p := recover(); p != nil {
			b, err = nil, fmt.Errorf("malformed arrow stream: %v", p)
		}
		if err != nil {
			b, err = nil, fault.Permanent(schemas.LossDecode, err)
		}
	}()
	b, err = d.read(data)
	if err == nil && b == nil {
		b, err = decode(data)
	}
	return b, err
}

// read reads a stream as Encode writes it; of another it returns nothing.
func (d *Decoder) read(data []byte) (*Batch, error) {
	head, rest := frame(data)
	if head == nil {
		return nil, nil // verify says what is wrong
	}
	lay := d.layouts[string(head)]
	if lay == nil {
		if lay = d.learn(data[:len(data)-len(rest)], head); lay == nil {
			return nil, nil
		}
	}
	clear(d.bodies)
	for {
		meta, left := frame(rest)
		if meta == nil {
			return nil, nil
		}
		v := verifier{buf: meta}
		body, err := v.message(int64(len(left)))
		if err != nil {
			return nil, err
		}
		m, tag, id, ok := v.records16(left[:body])
		if !ok {
			return nil, nil
		}
		rest = left[body:]
		if tag == messageRecords {
			if err := verify(rest); err != nil {
				return nil, err
			}
			return d.batch(lay, m)
		}
		if _, twice := d.bodies[id]; twice || len(d.bodies) >= maxMessages {
			return nil, nil
		}
		if d.bodies == nil {
			d.bodies = make(map[int64]records)
		}
		d.bodies[id] = m
	}
}

// frame returns the metadata of the first message and what follows it, where
// its body begins. None is nil.
func frame(data []byte) (meta, rest []byte) {
	if len(data) < 8 || binary.LittleEndian.Uint32(data) != 0xffffffff {
		return nil, nil
	}
	size := int(binary.LittleEndian.Uint32(data[4:]))
	if size == 0 || size > len(data)-8 {
		return nil, nil
	}
	return data[8 : 8+size], data[8+size:]
}

const (
	messageSchema       = 1
	messageDictionaries = 2
	messageRecords      = 3
	metadataV5          = 4
)

var shapeMessage = &shape{"Message", []slot{{size: 2}, {size: 1}, {}, {size: 8}, {kind: tables, of: shapeKeyValue}}}

// header returns what kind of message a verified one is, and where its header is.
func (v *verifier) header() (tag byte, pos int) {
	root, _ := v.offset(0)
	at, err := v.table(root, shapeMessage, 0)
	if err != nil || at[0] == 0 || binary.LittleEndian.Uint16(v.buf[at[0]:]) != metadataV5 {
		return 0, 0
	}
	pos, _ = v.offset(at[2])
	return v.buf[at[1]], pos
}

// records16 reads a verified message with records or a dictionary; not ok means
// that it is another, or one that Arrow's reader must read.
func (v *verifier) records16(body []byte) (r records, tag byte, id int64, ok bool) {
	tag, pos := v.header()
	if tag == messageDictionaries {
		at, err := v.table(pos, shapeDictBatch, 0)
		if err != nil || at[1] == 0 || at[2] != 0 && v.buf[at[2]] != 0 {
			return r, tag, 0, false
		}
		if at[0] != 0 {
			id = int64(binary.LittleEndian.Uint64(v.buf[at[0]:]))
		}
		pos, _ = v.offset(at[1])
	} else if tag != messageRecords {
		return r, tag, 0, false
	}
	at, err := v.table(pos, shapeRecords, 0)
	if err != nil || at[0] == 0 || at[1] == 0 || at[2] == 0 {
		return r, tag, 0, false
	}
	r.rows, r.body = int(binary.LittleEndian.Uint64(v.buf[at[0]:])), body
	r.nodes, r.buffers = v.structs16(at[1]), v.structs16(at[2])
	if at[3] != 0 {
		c, _ := v.offset(at[3])
		codec, err := v.table(c, shapeCompression, 0)
		if err != nil || codec[0] != 0 && v.buf[codec[0]] != 0 || codec[1] != 0 && v.buf[codec[1]] != 0 {
			return r, tag, 0, false // not LZ4, not by buffer
		}
		r.compressed = true
	}
	return r, tag, id, true
}

func (v *verifier) structs16(at int) []byte {
	start, n, err := v.vector(at, 16)
	if err != nil {
		return nil
	}
	return v.buf[start : start+16*n]
}

// learn takes a schema's message in. It returns nil for one with a column that
// Encode does not write.
func (d *Decoder) learn(message, head []byte) *layout {
	if verify(message) != nil {
		return nil
	}
	schema, err := readSchema(message)
	if err != nil {
		return nil
	}
	class, err := schemas.ClassOf(schema)
	if err != nil {
		return nil
	}
	v := verifier{buf: head}
	tag, pos := v.header()
	if tag != messageSchema {
		return nil
	}
	at, err := v.table(pos, shapeSchema, 0)
	if err != nil || at[1] == 0 || at[0] != 0 && v.buf[at[0]] != 0 {
		return nil // big-endian
	}
	start, n, err := v.vector(at[1], 4)
	if err != nil || n != len(schema.Fields()) {
		return nil
	}
	lay := &layout{class: class, schema: schema}
	seen, shared := make(map[string]bool, n), make(map[int64]bool, n)
	for i, f := range schema.Fields() {
		id, known := schemas.FieldByName(f.Name)
		if !known || seen[f.Name] || id.Field().Stored || !arrow.TypeEqual(f.Type, id.Field().ArrowType()) {
			return nil
		}
		seen[f.Name] = true
		c := layoutColumn{id: id, kind: id.Field().Type, typ: f.Type, dictionary: -1}
		if c.kind == schemas.Name || c.kind == schemas.Names {
			field, _ := v.offset(start + 4*i)
			fields, err := v.table(field, shapeField, 0)
			if err != nil || fields[4] == 0 {
				return nil
			}
			dict, _ := v.offset(fields[4])
			enc, err := v.table(dict, shapeDictionary, 0)
			if err != nil {
				return nil
			}
			c.dictionary = 0
			if enc[0] != 0 {
				c.dictionary = int64(binary.LittleEndian.Uint64(v.buf[enc[0]:]))
			}
			if shared[c.dictionary] {
				return nil
			}
			shared[c.dictionary] = true
		}
		lay.columns = append(lay.columns, c)
	}
	if len(head) > maxLearned/16 {
		return lay
	}
	if len(d.layouts) >= maxLayouts || d.learned+len(head) > maxLearned {
		clear(d.layouts)
		d.learned = 0
	}
	d.learned += len(head)
	if d.layouts == nil {
		d.layouts = make(map[string]*layout)
	}
	d.layouts[string(head)] = lay
	return lay
}

// batch makes the batch of the records and the dictionaries before them.
func (d *Decoder) batch(lay *layout, m records) (*Batch, error) {
	if m.rows > MaxRows {
		return nil, fmt.Errorf("batch of %d rows, more than %d", m.rows, MaxRows)
	}
	size, buffers := m.unpacked(), len(m.buffers)/16
	for _, dict := range d.bodies {
		size += dict.unpacked()
		buffers += len(dict.buffers) / 16
		if size > MaxDecodedBytes {
			break
		}
	}
	if size > MaxDecodedBytes {
		return nil, fmt.Errorf("batch unpacks to more than %d bytes", int64(MaxDecodedBytes))
	}
	u := unpacker{memory: make([]byte, size), buffers: make([]memory.Buffer, 0, buffers), lists: make([]*memory.Buffer, 0, buffers), m: m}
	out := &Batch{class: lay.class, rows: m.rows, cols: make([]arrow.Array, schemas.NumFields())}
	columns := make([]arrow.Array, len(lay.columns))
	for i, c := range lay.columns {
		rows, nulls := u.node()
		if rows != m.rows {
			return nil, fmt.Errorf("column %q has %d rows of %d", lay.schema.Field(i).Name, rows, m.rows)
		}
		valid := u.validity(nulls)
		var a arrow.Array
		switch c.kind {
		case schemas.Text:
			a = array.NewStringData(array.NewData(c.typ, rows, u.list(valid, u.buffer(), u.buffer()), nil, nulls, 0))
		case schemas.Name, schemas.Names:
			indices := u.buffer()
			dict, ok := d.bodies[c.dictionary]
			if !ok {
				return nil, fmt.Errorf("column %q has no dictionary", lay.schema.Field(i).Name)
			}
			du := u
			du.m = dict
			n, dictNulls := du.node()
			entries := array.NewData(arrow.BinaryTypes.String, n, du.list(du.validity(dictNulls), du.buffer(), du.buffer()), nil, dictNulls, 0)
			u.memory, u.buffers, u.lists = du.memory, du.buffers, du.lists
			a = array.NewDictionaryData(array.NewDataWithDictionary(c.typ, rows, u.list(valid, indices), nulls, 0, entries))
		case schemas.List:
			offsets := u.buffer()
			a = array.NewListData(array.NewData(c.typ, rows, u.list(valid, offsets), []arrow.ArrayData{u.text()}, nulls, 0))
		case schemas.Map:
			offsets := u.buffer()
			n, entryNulls := u.node()
			entryValid := u.validity(entryNulls)
			entries := array.NewData(c.typ.(*arrow.MapType).Elem(), n, u.list(entryValid), []arrow.ArrayData{u.text(), u.text()}, entryNulls, 0)
			a = array.NewMapData(array.NewData(c.typ, rows, u.list(valid, offsets), []arrow.ArrayData{entries}, nulls, 0))
		default:
			a = array.MakeFromData(array.NewData(c.typ, rows, u.list(valid, u.buffer()), nil, nulls, 0))
		}
		if err := validate(a, c.kind); err != nil {
			return nil, fmt.Errorf("column %q: %w", lay.schema.Field(i).Name, err)
		}
		columns[i], out.cols[c.id] = a, a
	}
	out.record = sync.OnceValue(func() arrow.Record { return array.NewRecord(lay.schema, columns, int64(m.rows)) })
	return out, nil
}

// unpacked is how many bytes the buffers take when they are unpacked.
func (r *records) unpacked() int64 {
	size := int64(0)
	for b := r.buffers; len(b) > 0; b = b[16:] {
		data := r.at(b)
		switch {
		case len(data) == 0:
		case !r.compressed:
			size += aligned(int64(len(data)))
		case len(data) < 8:
			panic("buffer without its length")
		default:
			n := int64(binary.LittleEndian.Uint64(data))
			if n < 0 {
				n = int64(len(data) - 8)
			}
			if n > MaxDecodedBytes {
				return n
			}
			size += aligned(n)
		}
		if size > MaxDecodedBytes {
			break
		}
	}
	return size
}

// aligned is how much of the memory n bytes take.
func aligned(n int64) int64 { return (n + 7) &^ 7 }

// at returns the bytes of a buffer, which verify has found to be in the body.
func (r *records) at(b []byte) []byte {
	from := binary.LittleEndian.Uint64(b)
	return r.body[from : from+binary.LittleEndian.Uint64(b[8:])]
}

// unpacker reads the columns of records in order. It panics where there are
// fewer than the schema says, or where a buffer is damaged.
type unpacker struct {
	memory  []byte // that is left
	buffers []memory.Buffer
	lists   []*memory.Buffer
	m       records
}

// wrap and list make what arrays are made of, all of a batch in one piece: each is
// at most as long as the messages have buffers.

func (u *unpacker) wrap(data []byte) *memory.Buffer {
	u.buffers = u.buffers[:len(u.buffers)+1]
	b := &u.buffers[len(u.buffers)-1]
	b.Reset(data)
	return b
}

func (u *unpacker) list(buffers ...*memory.Buffer) []*memory.Buffer {
	from := len(u.lists)
	u.lists = append(u.lists, buffers...)
	return u.lists[from:len(u.lists):len(u.lists)]
}

func (u *unpacker) node() (rows, nulls int) {
	n := u.m.nodes[:16]
	u.m.nodes = u.m.nodes[16:]
	return int(binary.LittleEndian.Uint64(n)), int(binary.LittleEndian.Uint64(n[8:]))
}

func (u *unpacker) validity(nulls int) *memory.Buffer {
	if nulls == 0 {
		u.m.buffers = u.m.buffers[16:]
		return nil
	}
	return u.buffer()
}

func (u *unpacker) text() *array.Data {
	n, nulls := u.node()
	return array.NewData(arrow.BinaryTypes.String, n, u.list(u.validity(nulls), u.buffer(), u.buffer()), nil, nulls, 0)
}

func (u *unpacker) buffer() *memory.Buffer {
	data := u.m.at(u.m.buffers[:16])
	u.m.buffers = u.m.buffers[16:]
	if len(data) == 0 {
		return u.wrap(nil)
	}
	if !u.m.compressed {
		return u.wrap(u.take(len(data), func(to []byte) { copy(to, data) }))
	}
	n := int64(binary.LittleEndian.Uint64(data))
	data = data[8:]
	if n < 0 {
		return u.wrap(u.take(len(data), func(to []byte) { copy(to, data) }))
	}
	return u.wrap(u.take(int(n), func(to []byte) { unpack(to, data) }))
}

// take cuts n bytes, at a multiple of 8, off the memory.
func (u *unpacker) take(n int, fill func(to []byte)) []byte {
	to := u.memory[:n:n]
	u.memory = u.memory[aligned(int64(n)):]
	fill(to)
	return to
}

// unpack unpacks an LZ4 frame of blocks that do not depend on each other; a
// reader does the others.
func unpack(to, data []byte) {
	const magic, version1, independent, blockSum, contentSize, contentSum, dictionary = 0x184D2204, 1 << 6, 1 << 5, 1 << 4, 1 << 3, 1 << 2, 1
	if len(data) < 7 || binary.LittleEndian.Uint32(data) != magic {
		panic("compressed buffer is no LZ4 frame")
	}
	flags := data[4]
	if flags&0xc0 != version1 || flags&independent == 0 || flags&(blockSum|contentSum|dictionary) != 0 {
		unpackSlowly(to, data)
		return
	}
	at := 7
	if flags&contentSize != 0 {
		at += 8
	}
	blocks := data[at:]
	for len(to) > 0 {
		size := binary.LittleEndian.Uint32(blocks)
		block := blocks[4 : 4+size&^(1<<31)]
		blocks = blocks[4+len(block):]
		n := len(block)
		if size == 0 {
			panic("compressed buffer ends early")
		}
		if size&(1<<31) != 0 {
			copy(to[:n], block)
		} else {
			var err error
			if n, err = lz4.UncompressBlock(block, to); err != nil {
				panic(err)
			}
		}
		to = to[n:]
	}
}

func unpackSlowly(to, data []byte) {
	if _, err := io.ReadFull(lz4.NewReader(bytes.NewReader(data)), to); err != nil {
		panic(err)
	}
}
