package rules

import (
	"bytes"
	"math"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"picket/internal/batch"
	"picket/schemas"
)

// Bounds of the JSON documents in audit events. A document over them reads as
// absent; the ingester trims far below.
const (
	maxJSONBytes = 8 << 20
	maxJSONNodes = 1 << 20
	maxJSONDepth = 128
)

// jsonKind is what a node of a document is.
type jsonKind uint8

const (
	jsonNull jsonKind = iota
	jsonBool
	jsonNumber
	jsonString
	jsonArray
	jsonObject
)

// jsonNode is one value or key of a document: src[start:end] is its text,
// without the quotes of a string; next is the number of the node behind it and
// all it holds. An object's children alternate key, value.
type jsonNode struct {
	start, end, next int32
	kind             jsonKind
	escaped          bool
}

// jsonDoc is a parsed document: nodes[0] is its root.
type jsonDoc struct {
	src   string
	nodes []jsonNode
}

// docs keeps the documents of a batch's rows, each parsed at most once, in
// memory that is used again for the next batch.
type docs struct {
	nodes   []jsonNode
	columns [jsonColumns]docColumn
}

const jsonColumns = 3

// docColumn says where the document of each row begins in docs.nodes.
type docColumn struct {
	from, to []int32 // per row; to 0: not parsed yet; from == to: not a document
}

func jsonColumn(id schemas.FieldID) int {
	switch id {
	case schemas.AuditRequest:
		return 0
	case schemas.AuditResponse:
		return 1
	default: // schemas.AuditUserExtra
		return 2
	}
}

// reset forgets all documents and makes room for rows.
func (d *docs) reset(rows int) {
	d.nodes = append(d.nodes[:0], jsonNode{}) // so that no document is at 0
	for i := range d.columns {
		c := &d.columns[i]
		if c.from == nil {
			continue
		}
		c.grow(rows)
	}
}

func (c *docColumn) grow(rows int) {
	if cap(c.from) < rows {
		c.from, c.to = make([]int32, rows), make([]int32, rows)
		return
	}
	c.from, c.to = c.from[:rows], c.to[:rows]
	clear(c.to)
}

// get returns the document in the column of the row, and whether there is one.
func (d *docs) get(b *batch.Batch, id schemas.FieldID, row int) (jsonDoc, bool) {
	c := &d.columns[jsonColumn(id)]
	if len(c.to) == 0 {
		c.grow(b.Rows())
	}
	src := b.Str(id, row)
	if c.to[row] == 0 {
		if len(d.nodes) > maxJSONNodes {
			d.reset(b.Rows())
		}
		from := len(d.nodes)
		if !d.parse(src) {
			d.nodes = d.nodes[:from]
		}
		c.from[row], c.to[row] = int32(from), int32(len(d.nodes))
	}
	nodes := d.nodes[c.from[row]:c.to[row]]
	return jsonDoc{src, nodes}, len(nodes) > 0
}

// parse appends the nodes of src.
func (d *docs) parse(src string) bool {
	if src == "" || len(src) > maxJSONBytes {
		return false
	}
	p := jsonParser{src: src, nodes: d.nodes, base: len(d.nodes)}
	ok := p.value(0)
	if ok {
		p.blank()
		ok = p.at == len(src)
	}
	d.nodes = p.nodes
	return ok
}

type jsonParser struct {
	src   string
	at    int
	nodes []jsonNode
	base  int
}

func (p *jsonParser) blank() {
	for p.at < len(p.src) && isSpace(p.src[p.at]) {
		p.at++
	}
}

func (p *jsonParser) peek() byte {
	if p.at < len(p.src) {
		return p.src[p.at]
	}
	return 0
}

// value parses one value and white space before it.
func (p *jsonParser) value(depth int) bool {
	p.blank()
	if depth > maxJSONDepth || len(p.nodes)-p.base > maxJSONNodes {
		return false
	}
	n := len(p.nodes)
	start := p.at
	switch c := p.peek(); {
	case c == '"':
		return p.string()
	case c == '{' || c == '[':
		p.nodes = append(p.nodes, jsonNode{start: int32(start), kind: jsonArray})
		closing := byte(']')
		if c == '{' {
			p.nodes[n].kind, closing = jsonObject, '}'
		}
		p.at++
		p.blank()
		for first := true; p.peek() != closing; first = false {
			if !first {
				if p.peek() != ',' {
					return false
				}
				p.at++
			}
			if c == '{' {
				p.blank()
				if p.peek() != '"' || !p.string() {
					return false
				}
				p.blank()
				if p.peek() != ':' {
					return false
				}
				p.at++
			}
			if !p.value(depth + 1) {
				return false
			}
			p.blank()
		}
		p.at++
		p.nodes[n].end, p.nodes[n].next = int32(p.at), int32(len(p.nodes)-p.base)
		return true
	case c == '-' || c >= '0' && c <= '9':
		for p.at < len(p.src) && numberByte(p.src[p.at]) {
			p.at++
		}
		if _, err := strconv.ParseFloat(p.src[start:p.at], 64); err != nil {
			if ne, ok := err.(*strconv.NumError); !ok || ne.Err != strconv.ErrRange {
				return false
			}
		}
		return p.leaf(jsonNumber, start)
	}
	for _, w := range [...]struct {
		s string
		k jsonKind
	}{{"true", jsonBool}, {"false", jsonBool}, {"null", jsonNull}} {
		if len(p.src)-p.at >= len(w.s) && p.src[p.at:p.at+len(w.s)] == w.s {
			p.at += len(w.s)
			return p.leaf(w.k, start)
		}
	}
	return false
}

func numberByte(c byte) bool {
	return c >= '0' && c <= '9' || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E'
}

func (p *jsonParser) leaf(k jsonKind, start int) bool {
	p.nodes = append(p.nodes, jsonNode{start: int32(start), end: int32(p.at), next: int32(len(p.nodes) + 1 - p.base), kind: k})
	return true
}

func (p *jsonParser) string() bool {
	p.at++
	start, escaped := p.at, false
	for p.at < len(p.src) {
		switch c := p.src[p.at]; {
		case c == '"':
			p.leaf(jsonString, start)
			p.nodes[len(p.nodes)-1].escaped = escaped
			p.at++
			return true
		case c == '\\':
			escaped = true
			p.at++
			if p.at >= len(p.src) {
				return false
			}
			switch p.src[p.at] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if _, ok := hex4(p.src[p.at+1:]); !ok {
					return false
				}
				p.at += 4
			default:
				return false
			}
		case c < ' ':
			return false
		}
		p.at++
	}
	return false
}

func hex4(s string) (rune, bool) {
	if len(s) < 4 {
		return 0, false
	}
	var r rune
	for i := range 4 {
		c := s[i]
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// append appends the node as text: a string without quotes and escapes, other
// values as JSON, as ClickHouse writes it (appendJSON).
func (d jsonDoc) append(dst []byte, n int) []byte {
	node := d.nodes[n]
	s := d.src[node.start:node.end]
	switch {
	case node.kind == jsonArray || node.kind == jsonObject:
		return d.appendJSON(dst, n)
	case node.kind == jsonNumber:
		return appendJSONNumber(dst, s)
	case !node.escaped:
		return append(dst, s...)
	}
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			dst = append(dst, s[i])
			continue
		}
		i++
		switch s[i] {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r, _ := hex4(s[i+1:])
			i += 4
			if utf16.IsSurrogate(r) {
				low, ok := rune(0), false
				if i+2 < len(s) && s[i+1] == '\\' && s[i+2] == 'u' {
					low, ok = hex4(s[i+3:])
				}
				if pair := utf16.DecodeRune(r, low); ok && pair != utf8.RuneError {
					r = pair
					i += 6
				} else {
					r = utf8.RuneError
				}
			}
			dst = utf8.AppendRune(dst, r)
		default:
			dst = append(dst, s[i])
		}
	}
	return dst
}

// appendJSON appends the node as JSON in the one way in which both engines write
// it, whatever way the sender chose: no white space, numbers as short as they
// can be, in strings no escapes but the needed ones.
func (d jsonDoc) appendJSON(dst []byte, n int) []byte {
	node := d.nodes[n]
	end := int(node.next)
	switch node.kind {
	case jsonObject:
		dst = append(dst, '{')
		for i := n + 1; i < end; i = int(d.nodes[i+1].next) {
			if i > n+1 {
				dst = append(dst, ',')
			}
			dst = append(d.appendJSON(dst, i), ':')
			dst = d.appendJSON(dst, i+1)
		}
		return append(dst, '}')
	case jsonArray:
		dst = append(dst, '[')
		for i := n + 1; i < end; i = int(d.nodes[i].next) {
			if i > n+1 {
				dst = append(dst, ',')
			}
			dst = d.appendJSON(dst, i)
		}
		return append(dst, ']')
	case jsonString:
		start := len(dst) + 1
		dst = d.append(append(dst, '"'), n)
		if node.escaped || strings.Contains(unsafeString(dst[start:]), lineSeparator) {
			dst = appendEscaped(dst[:start], string(dst[start:]))
		}
		return append(dst, '"')
	}
	return d.append(dst, n)
}

// lineSeparator is what U+2028 and U+2029, which JavaScript takes for line
// ends, begin with.
const lineSeparator = "\xe2\x80"

func appendEscaped(dst []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\b':
			dst = append(dst, '\\', 'b')
		case c == '\f':
			dst = append(dst, '\\', 'f')
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case strings.HasPrefix(s[i:], "\u2028"), strings.HasPrefix(s[i:], "\u2029"):
			dst = append(append(dst, `\u202`...), s[i+2]-0xa8+'8')
			i += 2
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

// appendJSONNumber appends an integer as it stands, another number with as few
// digits as tell it.
func appendJSONNumber(dst []byte, s string) []byte {
	if s == "-0" {
		return append(dst, '0')
	}
	if !strings.ContainsAny(s, ".eE") {
		return append(dst, s...)
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil { // beyond 64 bits
		return append(dst, s...)
	}
	if a := math.Abs(v); a != 0 && (a < 1e-6 || a >= 1e21) {
		start := len(dst)
		dst = strconv.AppendFloat(dst, v, 'e', -1, 64)
		e := start + bytes.IndexByte(dst[start:], 'e') + 1
		if dst[e] == '-' {
			e++
		}
		from := e
		for dst[from] == '+' || dst[from] == '0' {
			from++
		}
		return append(dst[:e], dst[from:]...)
	}
	return strconv.AppendFloat(dst, v, 'f', -1, 64)
}

// child returns the value of key in the object n, or -1.
func (d jsonDoc) child(n int, key string) int {
	if d.nodes[n].kind != jsonObject {
		return -1
	}
	end := int(d.nodes[n].next)
	for i := n + 1; i < end; i = int(d.nodes[i+1].next) {
		k := d.nodes[i]
		if !k.escaped {
			if d.src[k.start:k.end] == key {
				return i + 1
			}
			continue
		}
		var buf [128]byte
		if string(d.append(buf[:0], i)) == key {
			return i + 1
		}
	}
	return -1
}

// element returns element i of the array n, or -1.
func (d jsonDoc) element(n, i int) int {
	if d.nodes[n].kind != jsonArray {
		return -1
	}
	end := int(d.nodes[n].next)
	for at := n + 1; at < end; at = int(d.nodes[at].next) {
		if i == 0 {
			return at
		}
		i--
	}
	return -1
}

// find follows a path of keys and indices from the root; -1 when it ends
// before.
func (d jsonDoc) find(path []string) int {
	n := 0
	for _, p := range path {
		switch d.nodes[n].kind {
		case jsonObject:
			n = d.child(n, p)
		case jsonArray:
			i, err := strconv.Atoi(p)
			if err != nil || i < 0 {
				return -1
			}
			n = d.element(n, i)
		default:
			return -1
		}
		if n < 0 {
			return -1
		}
	}
	if d.nodes[n].kind == jsonNull {
		return -1
	}
	return n
}

// collect appends the values at the end of a path from node n, in which "*"
// stands for every element of an array, to the list.
func (d jsonDoc) collect(l *list, n int, path []string) {
	for i, p := range path {
		if p == "*" {
			if d.nodes[n].kind != jsonArray {
				return
			}
			end := int(d.nodes[n].next)
			for at := n + 1; at < end; at = int(d.nodes[at].next) {
				d.collect(l, at, path[i+1:])
			}
			return
		}
		if n = d.child(n, p); n < 0 {
			return
		}
	}
	if d.nodes[n].kind != jsonNull {
		l.buf = d.append(l.buf, n)
		l.end()
	}
}
