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
	// Length and Digest are those of the whole record, without its white
	// space; see Digest.
	Length int64
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
	t.sum.Write(t.buf)
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
	buf     []byte // waits to be hashed
	hashing bool
	out     []byte
	budget  int // bytes that may still be copied
	length  int64
}

func (t *trimmer) hash(s string) {
	if len(t.buf)+len(s) > cap(t.buf) {
		t.sum.Write(t.buf)
		t.buf = t.buf[:0]
	}
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
		if len(t.buf) == cap(t.buf) {
			t.hash("")
		}
		t.buf = append(t.buf, t.c)
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

// member copies or drops one member of the record. It hashes it, followed by
// a comma, as event.sum does.
func (t *trimmer) member(seen map[string]bool, r *Trimmed) error {
	mark := len(t.out)
	if mark > 1 {
		t.out = append(t.out, ',')
	}
	quoted, whole, err := t.key(128)
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
	seen[key] = seen[key] || keep
	if keep {
		t.budget = trimBudget
		_, err = t.value(0)
	} else {
		t.out = t.out[:mark]
		err = t.drop()
	}
	if t.hashing {
		t.hash(",")
	}
	return err
}

// key copies a key of at most limit bytes, with its quotes, and returns it.
func (t *trimmer) key(limit int) (quoted string, whole bool, err error) {
	if err := t.expect('"'); err != nil {
		return "", false, err
	}
	mark, budget := len(t.out), t.budget
	t.budget = limit
	t.out = append(t.out, '"')
	whole, err = t.inside()
	t.out = append(t.out, '"')
	t.budget = budget - (len(t.out) - mark)
	return string(t.out[mark:]), whole, err
}

// longestUnit is the length of the longest escape.
const longestUnit = len(`\u0000`)

// inside reads a string behind its opening quote and copies what the budget
// allows. It reports whether that was all.
func (t *trimmer) inside() (whole bool, err error) {
	whole = true
	unit := func() error {
		c, err := t.raw()
		if err == nil {
			t.take()
			if whole {
				t.out = append(t.out, c)
				t.budget--
			}
		}
		return err
	}
	for {
		c, err := t.raw()
		if err != nil {
			return false, err
		}
		if c == '"' {
			t.take()
			return whole, nil
		}
		whole = whole && t.budget >= longestUnit
		n := 1
		if c == '\\' {
			if err := unit(); err != nil {
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
			if err := unit(); err != nil {
				return false, err
			}
		}
	}
}

// value reads one value and copies what the budget allows of it: a string is
// cut, elements and members beyond it are left out. It reports whether it
// copied anything.
func (t *trimmer) value(depth int) (copied bool, err error) {
	if t.budget < longestUnit || depth > MaxDepth/2 {
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
			if n > longestScalar || t.budget < 0 {
				t.out = t.out[:mark]
			}
			t.budget -= len(t.out) - mark
			return nil
		}
		t.take()
		if n < longestScalar {
			t.out = append(t.out, c)
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
			var err error
			if _, whole, err = t.key(min(t.budget, 1024)); err != nil {
				return err
			}
			if err := t.expect(':'); err != nil {
				return err
			}
			t.out = append(t.out, ':')
		}
		t.budget -= 2
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
	budget, mark := t.budget, len(t.out)
	t.budget = -1
	defer func() { t.budget, t.out = budget, t.out[:mark] }()
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
