package batch

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Arrow's reader believes the counts and offsets in a stream's flatbuffers
// metadata; a wrong one makes it allocate without bound, which no recover
// catches. verify therefore walks the metadata first and checks every offset,
// vector and string against the bytes that are there.
//
// Tables and slots: Message.fbs, Schema.fbs (Arrow columnar format 1.4);
// encoding: the flatbuffers internals page.

// kind is what a table's slot holds.
type kind uint8

const (
	scalar    kind = iota // size bytes within the table
	str                   // offset to a string
	table                 // offset to a table
	tables                // offset to a vector of tables
	structs               // offset to a vector of size-byte structs
	typeUnion             // offset to a table whose shape the slot before tells
)

type slot struct {
	kind kind
	size int
	of   *shape
}

type shape struct {
	name  string
	slots []slot
}

var (
	shapeKeyValue    = &shape{"KeyValue", []slot{{kind: str}, {kind: str}}}
	shapeInt         = &shape{"Int", []slot{{size: 4}, {size: 1}}}
	shapeDictionary  = &shape{"DictionaryEncoding", []slot{{size: 8}, {kind: table, of: shapeInt}, {size: 1}, {size: 2}}}
	shapeCompression = &shape{"BodyCompression", []slot{{size: 1}, {size: 1}}}
	shapeField       = newShapeField()
	shapeSchema      = &shape{"Schema", []slot{{size: 2}, {kind: tables, of: shapeField}, {kind: tables, of: shapeKeyValue}, {kind: structs, size: 8}}}
	shapeRecords     = &shape{"RecordBatch", []slot{{size: 8}, {kind: structs, size: 16}, {kind: structs, size: 16}, {kind: table, of: shapeCompression}, {kind: structs, size: 8}}}
	shapeDictBatch   = &shape{"DictionaryBatch", []slot{{size: 8}, {kind: table, of: shapeRecords}, {size: 1}}}

	// shapeTypes are the column types a batch may have, by Arrow's union tag;
	// wider than what the registry uses today, so that a newer sender's
	// column is dropped rather than its batch refused.
	shapeTypes = map[byte]*shape{
		2:  shapeInt,
		3:  {"FloatingPoint", []slot{{size: 2}}},
		4:  {"Binary", nil},
		5:  {"Utf8", nil},
		6:  {"Bool", nil},
		8:  {"Date", []slot{{size: 2}}},
		10: {"Timestamp", []slot{{size: 2}, {kind: str}}},
		12: {"List", nil},
		13: {"Struct", nil},
		15: {"FixedSizeBinary", []slot{{size: 4}}},
		17: {"Map", []slot{{size: 1}}},
	}
)

func newShapeField() *shape {
	f := &shape{name: "Field"}
	f.slots = []slot{{kind: str}, {size: 1}, {size: 1}, {kind: typeUnion}, {kind: table, of: shapeDictionary}, {kind: tables, of: f}, {kind: tables, of: shapeKeyValue}}
	return f
}

// Bounds of the walk: far above what any batch of Picket's has.
const (
	maxTables   = 16384
	maxDepth    = 12
	maxMessages = 1024
)

var errMalformed = errors.New("malformed arrow metadata")

// verify checks the framing and the metadata of an Arrow IPC stream.
func verify(data []byte) error {
	for n := 0; ; n++ {
		if len(data) == 0 {
			return nil // the end marker is optional
		}
		if n == maxMessages {
			return fmt.Errorf("%w: more than %d messages", errMalformed, maxMessages)
		}
		if len(data) < 8 || binary.LittleEndian.Uint32(data) != 0xffffffff {
			return fmt.Errorf("%w: not an arrow stream", errMalformed)
		}
		size := int(binary.LittleEndian.Uint32(data[4:]))
		data = data[8:]
		if size == 0 {
			return nil
		}
		if size > len(data) {
			return fmt.Errorf("%w: metadata of %d bytes, %d left", errMalformed, size, len(data))
		}
		v := verifier{buf: data[:size]}
		body, err := v.message(int64(len(data) - size))
		if err != nil {
			return err
		}
		data = data[size+int(body):]
	}
}

// verifyFile checks the framing and the metadata of an Arrow IPC file: its
// footer, and the message of every block that the footer names.
func verifyFile(data []byte) error {
	// … footer, its length in 4 bytes, ARROW1
	tail := len(data) - len(fileMagic) - 4
	if tail < 8 || string(data[:len(fileMagic)]) != fileMagic || string(data[tail+4:]) != fileMagic {
		return fmt.Errorf("%w: not an arrow file, or cut short", errMalformed)
	}
	size := int(binary.LittleEndian.Uint32(data[tail:]))
	if size > tail {
		return fmt.Errorf("%w: footer of %d bytes", errMalformed, size)
	}
	v := verifier{buf: data[tail-size : tail]}
	root, ok := v.offset(0)
	if !ok {
		return errMalformed
	}
	at, err := v.table(root, &shape{"Footer", []slot{{size: 2}, {kind: table, of: shapeSchema}, {kind: structs, size: 24}, {kind: structs, size: 24}, {kind: tables, of: shapeKeyValue}}}, 0)
	if err != nil {
		return err
	}
	for _, blocks := range at[2:4] {
		if blocks == 0 {
			continue
		}
		start, n, err := v.vector(blocks, 24)
		if err != nil {
			return err
		}
		for i := range n {
			block := v.buf[start+24*i:]
			offset, meta, body := int64(binary.LittleEndian.Uint64(block)), int64(int32(binary.LittleEndian.Uint32(block[8:]))), int64(binary.LittleEndian.Uint64(block[16:]))
			if offset < 0 || meta < 8 || body < 0 || offset > int64(tail) || meta > int64(tail)-offset || body > int64(tail)-offset-meta {
				return fmt.Errorf("%w: block at %d of %d and %d bytes", errMalformed, offset, meta, body)
			}
			if binary.LittleEndian.Uint32(data[offset:]) != 0xffffffff || int64(binary.LittleEndian.Uint32(data[offset+4:])) > meta-8 {
				return fmt.Errorf("%w: block at %d is no message", errMalformed, offset)
			}
			m := verifier{buf: data[offset+8 : offset+meta]}
			if _, err := m.message(body); err != nil {
				return err
			}
		}
	}
	return nil
}

const fileMagic = "ARROW1"

type verifier struct {
	buf    []byte
	tables int
}

// message checks one message and returns the length of its body, which is at
// most left.
func (v *verifier) message(left int64) (body int64, err error) {
	root, ok := v.offset(0)
	if !ok {
		return 0, errMalformed
	}
	at, err := v.table(root, &shape{"Message", []slot{{size: 2}, {size: 1}, {}, {size: 8}, {kind: tables, of: shapeKeyValue}}}, 0)
	if err != nil {
		return 0, err
	}
	if at[3] != 0 {
		body = int64(binary.LittleEndian.Uint64(v.buf[at[3]:]))
	}
	if body < 0 || body > left {
		return 0, fmt.Errorf("%w: body of %d bytes, %d left", errMalformed, body, left)
	}
	if at[1] == 0 || at[2] == 0 {
		return 0, fmt.Errorf("%w: message without a header", errMalformed)
	}
	header, ok := v.offset(at[2])
	if !ok {
		return 0, errMalformed
	}
	switch tag := v.buf[at[1]]; tag {
	case 1:
		_, err = v.table(header, shapeSchema, 0)
	case 2:
		at, err = v.table(header, shapeDictBatch, 0)
		if err == nil && at[1] != 0 {
			records, _ := v.offset(at[1])
			err = v.records(records, body)
		}
	case 3:
		err = v.records(header, body)
	default:
		err = fmt.Errorf("%w: message type %d", errMalformed, tag)
	}
	return body, err
}

// records checks a record batch's nodes and buffers against its body.
func (v *verifier) records(pos int, body int64) error {
	at, err := v.table(pos, shapeRecords, 0)
	if err != nil {
		return err
	}
	rows := int64(0)
	if at[0] != 0 {
		rows = int64(binary.LittleEndian.Uint64(v.buf[at[0]:]))
	}
	if rows < 0 || rows > MaxDecodedBytes {
		return fmt.Errorf("%w: %d rows", errMalformed, rows)
	}
	for node := range v.pairs(at[1]) {
		if node[0] < 0 || node[0] > MaxDecodedBytes || node[1] < 0 || node[1] > node[0] {
			return fmt.Errorf("%w: %d values, %d of them null", errMalformed, node[0], node[1])
		}
	}
	for b := range v.pairs(at[2]) {
		if b[0] < 0 || b[1] < 0 || b[0] > body || b[1] > body-b[0] {
			return fmt.Errorf("%w: buffer at %d of %d bytes in a body of %d", errMalformed, b[0], b[1], body)
		}
	}
	return nil
}

// pairs yields the 16-byte structs of a verified vector; at is its slot.
func (v *verifier) pairs(at int) func(func([2]int64) bool) {
	return func(yield func([2]int64) bool) {
		if at == 0 {
			return
		}
		vec, _ := v.offset(at)
		n := int(binary.LittleEndian.Uint32(v.buf[vec:]))
		for i := range n {
			p := v.buf[vec+4+16*i:]
			if !yield([2]int64{int64(binary.LittleEndian.Uint64(p)), int64(binary.LittleEndian.Uint64(p[8:]))}) {
				return
			}
		}
	}
}

// offset follows the 32-bit forward offset at pos.
func (v *verifier) offset(pos int) (int, bool) {
	if pos < 0 || pos+4 > len(v.buf) {
		return 0, false
	}
	to := pos + int(binary.LittleEndian.Uint32(v.buf[pos:]))
	return to, to >= pos && to+4 <= len(v.buf)
}

// vector checks the vector that the offset at pos leads to.
func (v *verifier) vector(pos, size int) (start, n int, err error) {
	vec, ok := v.offset(pos)
	if !ok {
		return 0, 0, errMalformed
	}
	n = int(binary.LittleEndian.Uint32(v.buf[vec:]))
	if n > (len(v.buf)-vec-4)/size {
		return 0, 0, fmt.Errorf("%w: vector of %d in %d bytes", errMalformed, n, len(v.buf)-vec-4)
	}
	return vec + 4, n, nil
}

// table checks the table at pos and all below it, and returns where its slots
// stand; 0 is absent. An empty slot entry is left to the caller.
func (v *verifier) table(pos int, s *shape, depth int) (at [8]int, err error) {
	bad := func(what string) ([8]int, error) { return at, fmt.Errorf("%w: %s: %s", errMalformed, s.name, what) }
	if v.tables++; v.tables > maxTables || depth > maxDepth {
		return bad("too many or too deep")
	}
	if pos < 0 || pos+4 > len(v.buf) {
		return bad("outside the metadata")
	}
	vt := pos - int(int32(binary.LittleEndian.Uint32(v.buf[pos:])))
	if vt < 0 || vt+4 > len(v.buf) {
		return bad("vtable outside the metadata")
	}
	size := int(binary.LittleEndian.Uint16(v.buf[vt:]))
	if size < 4 || vt+size > len(v.buf) {
		return bad("vtable outside the metadata")
	}
	for i, sl := range s.slots {
		if 4+2*i+2 > size {
			break
		}
		o := int(binary.LittleEndian.Uint16(v.buf[vt+4+2*i:]))
		if o == 0 {
			continue
		}
		width := max(sl.size, 1)
		if sl.kind != scalar || sl.size == 0 {
			width = 4
		}
		p := pos + o
		if p+width > len(v.buf) {
			return bad("field outside the metadata")
		}
		at[i] = p
		switch sl.kind {
		case str:
			_, _, err = v.vector(p, 1)
		case structs:
			_, _, err = v.vector(p, sl.size)
		case table:
			err = v.follow(p, sl.of, depth)
		case tables:
			var start, n int
			start, n, err = v.vector(p, 4)
			for k := 0; k < n && err == nil; k++ {
				err = v.follow(start+4*k, sl.of, depth)
			}
		case typeUnion:
			if at[i-1] == 0 {
				return bad("type without its tag")
			}
			of, known := shapeTypes[v.buf[at[i-1]]]
			if !known {
				return bad(fmt.Sprintf("column type %d", v.buf[at[i-1]]))
			}
			err = v.follow(p, of, depth)
		}
		if err != nil {
			return at, err
		}
	}
	return at, nil
}

func (v *verifier) follow(p int, s *shape, depth int) error {
	to, ok := v.offset(p)
	if !ok {
		return fmt.Errorf("%w: %s: offset outside the metadata", errMalformed, s.name)
	}
	_, err := v.table(to, s, depth+1)
	return err
}
