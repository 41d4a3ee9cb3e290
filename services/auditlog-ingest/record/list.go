package record

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"picket/internal/fault"
)

// List takes the records out of an EventList while it arrives. Its
// memory is one buffer and one record of at most MaxBytes, whatever the
// list's size.
type List struct {
	in     io.Reader
	buf    []byte
	i, n   int
	offset int64  // of buf[i] in the body
	record []byte // memory of the record last returned
	state  listState
	first  bool // the next element or member is the first
	kind   string
	api    string
}

// Item is one record of a list.
type Item struct {
	// Text is the record, as it arrived; nil if it was too large.
	Text []byte
	// Trimmed stands for a record that was too large.
	Trimmed *Trimmed
	// Listed says that the list has the kind and version of its records.
	Listed bool
}

type listState uint8

const (
	listStart  listState = iota // before the list's brace
	listMember                  // among the list's members
	listItem                    // among the items
	listDone
)

// NewList returns a List that reads in.
func NewList(in io.Reader) *List {
	return &List{in: in, buf: make([]byte, 64<<10)}
}

// ReadByte returns the next byte of the body, io.EOF at its end.
func (l *List) ReadByte() (byte, error) {
	if l.i == l.n {
		if err := l.fill(); err != nil {
			return 0, err
		}
	}
	c := l.buf[l.i]
	l.i++
	l.offset++
	return c, nil
}

func (l *List) fill() error {
	for range 100 {
		n, err := l.in.Read(l.buf)
		l.i, l.n = 0, n
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// peek moves over white space and returns what follows, without moving over
// it.
func (l *List) peek() (byte, error) {
	for {
		c, err := l.ReadByte()
		if err != nil {
			return 0, err
		}
		if c != ' ' && c != '\n' && c != '\r' && c != '\t' {
			l.i--
			l.offset--
			return c, nil
		}
	}
}

func (l *List) skip() { l.i++; l.offset++ }

func (l *List) bad(what string) error {
	return fault.Permanent(ReasonSyntax, fmt.Errorf("%w: %s at byte %d of the body", ErrSyntax, what, l.offset))
}

// Next returns the next record; io.EOF after the last one and the list's end.
// Its text is valid until the next call. Other errors are permanent where the
// body is not an EventList, and otherwise those of the reader.
func (l *List) Next() (Item, error) {
	r, err := l.advance()
	switch {
	case err == nil, fault.IsPermanent(err):
	case errors.Is(err, io.EOF) && l.state != listDone, errors.Is(err, io.ErrUnexpectedEOF):
		err = l.bad("the text ends early")
	case errors.Is(err, ErrSyntax):
		err = fault.Permanent(ReasonSyntax, err)
	}
	return r, err
}

func (l *List) advance() (Item, error) {
	for {
		switch l.state {
		case listStart:
			c, err := l.peek()
			if err != nil {
				return Item{}, err
			}
			if c != '{' {
				return Item{}, l.bad("expected an object")
			}
			l.skip()
			l.state, l.first = listMember, true
		case listMember:
			if err := l.member(); err != nil {
				return Item{}, err
			}
		case listItem:
			more, err := l.separator(']')
			if err != nil {
				return Item{}, err
			}
			if more {
				return l.item()
			}
			l.state, l.first = listMember, false
		case listDone:
			if _, err := l.peek(); err != nil {
				return Item{}, err
			}
			return Item{}, l.bad("text after the list")
		}
	}
}

// separator moves over what stands before a member or an element, or over the
// end of them.
func (l *List) separator(end byte) (more bool, err error) {
	c, err := l.peek()
	if err != nil {
		return false, err
	}
	if c == end {
		l.skip()
		return false, nil
	}
	if l.first {
		l.first = false
		return true, nil
	}
	if c != ',' {
		return false, l.bad("expected a comma")
	}
	l.skip()
	return true, nil
}

// maxListPart bounds the members of the list itself, items apart.
const maxListPart = 64 << 10

// member reads one member of the list: all but its items.
func (l *List) member() error {
	more, err := l.separator('}')
	if err != nil {
		return err
	}
	if !more {
		l.state = listDone
		if l.kind == "" {
			return fault.Permanent(ReasonKind, errors.New("the list has no kind; EventList is expected"))
		}
		return nil
	}
	quoted, err := l.part()
	if err != nil {
		return err
	}
	var key string
	t := NewReader(quoted)
	if err := t.Text(&key); err != nil {
		return l.bad("expected a key")
	}
	c, err := l.peek()
	if err != nil {
		return err
	}
	if c != ':' {
		return l.bad("expected a colon")
	}
	l.skip()
	if key == "items" {
		return l.items()
	}
	value, err := l.part()
	if err != nil {
		return err
	}
	t = NewReader(value)
	switch key {
	case "kind":
		err = t.Text(&l.kind)
	case "apiVersion":
		err = t.Text(&l.api)
	default:
		_, err = t.Skip()
	}
	if err != nil {
		return fault.Permanent(ReasonSyntax, fmt.Errorf("%.64q of the list: %w", key, err))
	}
	return l.check()
}

// check judges what is known of the list so far.
func (l *List) check() error {
	if l.kind != "" && l.kind != "EventList" {
		return fault.Permanent(ReasonKind, fmt.Errorf("kind is %.64q, not EventList", l.kind))
	}
	if l.api != "" && l.api != APIVersion {
		return fault.Permanent(ReasonAPIVersion, fmt.Errorf("apiVersion is %.64q, not %s", l.api, APIVersion))
	}
	return nil
}

func (l *List) items() error {
	c, err := l.peek()
	if err != nil {
		return err
	}
	switch c {
	case '[':
		l.skip()
		l.state, l.first = listItem, true
		return nil
	case 'n':
		if value, err := l.part(); err != nil || value == "null" {
			return err
		}
	}
	return fault.Permanent(ReasonType, fmt.Errorf("%w: items of the list is not an array", ErrType))
}

// part reads a value of at most maxListPart bytes.
func (l *List) part() (string, error) {
	text, whole, err := l.frame(nil, maxListPart)
	if err != nil {
		return "", err
	}
	if !whole {
		return "", l.bad("a member of the list is too large")
	}
	return string(text), nil
}

// item reads one element of items. A large one is trimmed as it arrives.
func (l *List) item() (Item, error) {
	r := Item{Listed: l.api != ""}
	c, err := l.peek()
	if err != nil {
		return r, err
	}
	if c == ',' || c == ']' || c == '}' {
		return r, l.bad("expected an item")
	}
	text, whole, err := l.frame(l.record[:0], MaxBytes)
	if err != nil {
		return r, err
	}
	l.record = text
	if whole {
		r.Text = text
		return r, nil
	}
	if c != '{' {
		return r, l.bad("an item is too large and no object")
	}
	r.Trimmed, err = Trim(Prefixed(text, l))
	return r, err
}

// Prefixed returns a reader of prefix and then of rest.
func Prefixed(prefix []byte, rest io.ByteReader) io.ByteReader {
	return &prefixed{bytes.NewReader(prefix), rest}
}

type prefixed struct {
	prefix *bytes.Reader
	rest   io.ByteReader
}

// ReadByte implements io.ByteReader.
func (p *prefixed) ReadByte() (byte, error) {
	if p.prefix.Len() > 0 {
		return p.prefix.ReadByte()
	}
	return p.rest.ReadByte()
}

// frame appends the next value to dst, up to its end, or to more than max
// bytes and whole false. It looks only at quotes and brackets: whether the
// value is JSON is seen when it is read.
func (l *List) frame(dst []byte, max int) (text []byte, whole bool, err error) {
	if _, err := l.peek(); err != nil {
		return dst, false, err
	}
	depth, quoted, escaped := 0, false, false
	for {
		if l.i == l.n {
			if err := l.fill(); err != nil {
				return dst, false, err
			}
		}
		window := l.buf[l.i:l.n]
		end := -1
	scan:
		for j, c := range window {
			switch {
			case escaped:
				escaped = false
			case quoted:
				switch c {
				case '\\':
					escaped = true
				case '"':
					if quoted = false; depth == 0 {
						end = j + 1
						break scan
					}
				}
			default:
				switch c {
				case '"':
					quoted = true
				case '{', '[':
					depth++
				case '}', ']':
					if depth--; depth <= 0 {
						end = j + 1
						if depth < 0 { // the end of what the value stands in
							end = j
						}
						break scan
					}
				case ',', ':', ' ', '\n', '\r', '\t':
					if depth == 0 {
						end = j
						break scan
					}
				}
			}
		}
		if end >= 0 {
			window = window[:end]
		}
		dst = append(dst, window...)
		l.i += len(window)
		l.offset += int64(len(window))
		if end >= 0 {
			return dst, len(dst) <= max, nil
		}
		if len(dst) > max {
			return dst, false, nil
		}
	}
}
