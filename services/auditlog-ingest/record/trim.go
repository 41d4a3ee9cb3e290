package record

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
)

// MaxBytes is the size up to which a record is kept whole. Of a larger
// one the request and response objects are dropped and its other parts cut.
const MaxBytes = 256 << 10

// trimBudget is about what remains, at most, of each part of a trimmed record.
const trimBudget = 8 << 10

// trimParts are the parts that a trimmed record keeps. Together they stay
// below half of MaxBytes.
var trimParts = map[string]bool{
	"kind": true, "apiVersion": true, "level": true, "auditID": true, "stage": true, "requestURI": true, "verb": true,
	"user": true, "impersonatedUser": true, "sourceIPs": true, "userAgent": true, "objectRef": true, "responseStatus": true,
	"requestReceivedTimestamp": true, "stageTimestamp": true, "annotations": true,
}

// Trimmed is what is left of a record that was too large.
type Trimmed struct {
	// Text is a record of less than half of MaxBytes.
	Text []byte
	// Length is that of the whole record, without its white space.
	Length int64
	// Digest is the SHA-256 of the record's members, but kind and apiVersion,
	// in their order and without white space, each followed by a comma.
	Digest [sha256.Size]byte
	// Twice is the name of a part that stood there more than once, if any.
	Twice string
}

// Trim reads one record of any size and nesting from in, to its closing brace
// and no further, and returns what is left of it. Its memory does not depend
// on the record's size. Errors of in are returned as they are; io.EOF in the
// middle of the record is io.ErrUnexpectedEOF.
func Trim(in io.ByteReader) (*Trimmed, error) {
	t := &trimmer{in: in, sum: sha256.New(), buf: make([]byte, 0, 4096)}
	r := &Trimmed{}
	err := t.record(r)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	r.Text, r.Length = t.out, t.length
	t.flush()
	t.sum.Sum(r.Digest[:0])
	return r, nil
}

// trimmer copies a record within a budget. It tokenises without checking:
// what it lets through is checked when the trimmed record is read.
type trimmer struct {
	in      io.ByteReader
	c       byte // the byte that comes next, if ahead
	ahead   bool
	sum     hash.Hash
	buf     []byte // waits to be hashed; larger than any key that is
	hashing bool
	out     []byte
	limit   int // of out: what is beyond it is not copied
	length  int64
}

func (t *trimmer) flush() {
	t.sum.Write(t.buf)
	t.buf = t.buf[:0]
}

func (t *trimmer) hash(s string) {
	t.flush()
	t.buf = append(t.buf, s...)
}

// raw returns the byte that comes next, white space included.
func (t *trimmer) raw() (byte, error) {
	if !t.ahead {
		c, err := t.in.ReadByte()
		if err != nil {
			return 0, err
		}
		t.c, t.ahead = c, true
	}
	return t.c, nil
}

// peek returns the next byte that is not white space.
func (t *trimmer) peek() (byte, error) {
	for {
		c, err := t.raw()
		if err != nil || c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			return c, err
		}
		t.ahead = false
	}
}

// take moves over the byte that comes next.
func (t *trimmer) take() {
	t.ahead = false
	t.length++
	if t.hashing {
		if t.buf = append(t.buf, t.c); len(t.buf) == cap(t.buf) {
			t.flush()
		}
	}
}

// expect moves over white space and the byte want.
func (t *trimmer) expect(want byte) error {
	c, err := t.peek()
	if err != nil {
		return err
	}
	if c != want {
		return fmt.Errorf("%w: %q where %q should be", ErrSyntax, c, want)
	}
	t.take()
	return nil
}

// more moves over a comma, or over end and reports that nothing follows.
func (t *trimmer) more(end byte) (bool, error) {
	c, err := t.peek()
	if err != nil {
		return false, err
	}
	if c == end {
		t.take()
		return false, nil
	}
	return true, t.expect(',')
}

func (t *trimmer) record(r *Trimmed) error {
	if err := t.expect('{'); err != nil {
		return err
	}
	t.out = append(t.out, '{')
	if c, err := t.peek(); err != nil {
		return err
	} else if c == '}' {
		t.take()
		t.out = append(t.out, '}')
		return nil
	}
	seen := map[string]bool{}
	for {
		t.hashing = false
		if err := t.member(seen, r); err != nil {
			return err
		}
		t.hashing = false
		more, err := t.more('}')
		if err != nil {
			return err
		}
		if !more {
			t.out = append(t.out, '}')
			return nil
		}
	}
}

// member copies or drops one member of the record.
func (t *trimmer) member(seen map[string]bool, r *Trimmed) error {
	mark := len(t.out)
	if mark > 1 {
		t.out = append(t.out, ',')
	}
	t.limit = mark + 128
	quoted, whole, err := t.key()
	if err != nil {
		return err
	}
	key := quoted[1 : len(quoted)-1]
	if strings.IndexByte(key, '\\') >= 0 {
		check := NewReader(quoted)
		if err = check.Text(&key); err != nil {
			return err
		}
	}
	if err := t.expect(':'); err != nil {
		return err
	}
	t.out = append(t.out, ':')
	t.hashing = key != "kind" && key != "apiVersion"
	if t.hashing {
		t.hash(quoted)
		t.hash(":")
	}
	keep := whole && trimParts[key]
	if keep && seen[key] {
		r.Twice, keep = key, false
	}
	if keep {
		seen[key] = true
		t.limit = mark + trimBudget
		keep, err = t.value(0)
	} else {
		err = t.drop()
	}
	if !keep {
		t.out = t.out[:mark]
	}
	if t.hashing {
		t.hash(",")
	}
	return err
}

// key copies a key, with its quotes, and returns it.
func (t *trimmer) key() (quoted string, whole bool, err error) {
	if err := t.expect('"'); err != nil {
		return "", false, err
	}
	mark := len(t.out)
	t.out = append(t.out, '"')
	whole, err = t.inside()
	t.out = append(t.out, '"')
	return string(t.out[mark:]), whole, err
}

// longestUnit is the length of the longest escape.
const longestUnit = len(`\u0000`)

// inside reads a string behind its opening quote and copies what the limit
// allows, never a part of an escape. It reports whether that was all.
func (t *trimmer) inside() (whole bool, err error) {
	for whole = true; ; {
		c, err := t.raw()
		if err != nil {
			return false, err
		}
		if c == '"' {
			t.take()
			return whole, nil
		}
		whole = whole && len(t.out)+longestUnit <= t.limit
		n := 1
		if c == '\\' {
			if err := t.copy(whole); err != nil {
				return false, err
			}
			if c, err = t.raw(); err != nil {
				return false, err
			}
			if c == 'u' {
				n = 5
			}
		}
		for range n {
			if err := t.copy(whole); err != nil {
				return false, err
			}
		}
	}
}

// copy moves over the byte that comes next and copies it if keep.
func (t *trimmer) copy(keep bool) error {
	c, err := t.raw()
	if err != nil {
		return err
	}
	t.take()
	if keep {
		t.out = append(t.out, c)
	}
	return nil
}

// value reads one value and copies what the limit allows of it: a string is
// cut, elements and members beyond it are left out. It reports whether it
// copied anything.
func (t *trimmer) value(depth int) (copied bool, err error) {
	if len(t.out)+longestUnit > t.limit || depth > MaxDepth/2 {
		return false, t.drop()
	}
	c, err := t.peek()
	if err != nil {
		return false, err
	}
	switch c {
	case '"':
		t.take()
		t.out = append(t.out, c)
		_, err := t.inside()
		t.out = append(t.out, c)
		return true, err
	case '{', '[':
		return true, t.container(c, depth)
	}
	mark := len(t.out)
	if err := t.scalar(); err != nil {
		return false, err
	}
	return len(t.out) > mark, nil
}

// longestScalar bounds numbers that are kept.
const longestScalar = 32

// scalar reads a number or a word and copies it unless it is too long.
func (t *trimmer) scalar() error {
	mark := len(t.out)
	for n := 0; ; n++ {
		c, err := t.raw()
		if err != nil {
			return err
		}
		if strings.IndexByte(",}] \t\r\n{[\":", c) >= 0 {
			if n == 0 || strings.IndexByte("{[\":", c) >= 0 {
				return fmt.Errorf("%w: %q where a value should be", ErrSyntax, c)
			}
			if n > longestScalar {
				t.out = t.out[:mark]
			}
			return nil
		}
		if err := t.copy(n < longestScalar); err != nil {
			return err
		}
	}
}

// container copies an object or an array.
func (t *trimmer) container(open byte, depth int) error {
	end := open + 2 // braces and brackets are two apart
	t.take()
	t.out = append(t.out, open)
	start := len(t.out)
	if c, err := t.peek(); err != nil {
		return err
	} else if c == end {
		t.take()
		t.out = append(t.out, end)
		return nil
	}
	for {
		mark := len(t.out)
		if mark > start {
			t.out = append(t.out, ',')
		}
		whole := true
		if open == '{' {
			limit := t.limit
			t.limit = min(limit, len(t.out)+1024)
			var err error
			if _, whole, err = t.key(); err != nil {
				return err
			}
			t.limit = limit
			if err := t.expect(':'); err != nil {
				return err
			}
			t.out = append(t.out, ':')
		}
		copied, err := false, error(nil)
		if whole {
			copied, err = t.value(depth + 1)
		} else {
			err = t.drop()
		}
		if err != nil {
			return err
		}
		if !copied {
			t.out = t.out[:mark]
		}
		more, err := t.more(end)
		if err != nil {
			return err
		}
		if !more {
			t.out = append(t.out, end)
			return nil
		}
	}
}

// drop reads one value of any depth and copies nothing.
func (t *trimmer) drop() error {
	limit, mark := t.limit, len(t.out)
	t.limit = 0
	defer func() { t.limit, t.out = limit, t.out[:mark] }()
	for depth := 0; ; {
		c, err := t.peek()
		if err != nil {
			return err
		}
		switch c {
		case '"':
			t.take()
			_, err = t.inside()
		case '{', '[':
			t.take()
			depth++
			continue
		case '}', ']', ',', ':':
			if depth == 0 {
				return fmt.Errorf("%w: %q where a value should be", ErrSyntax, c)
			}
			t.take()
			if c == ',' || c == ':' {
				continue
			}
			depth--
		default:
			err = t.scalar()
			t.out = t.out[:mark]
		}
		if err != nil || depth == 0 {
			return err
		}
	}
}
