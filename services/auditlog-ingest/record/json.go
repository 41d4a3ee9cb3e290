// Package record reads the text of audit records: JSON in memory (Reader),
// records too large to be kept (Trim), and the lists in which an API server
// posts them (List). Everything it reads is hostile; its memory is bounded
// whatever that is.
package record

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxDepth is how deep arrays and objects may nest in a record that is kept
// whole. Objects of the Kubernetes API stay far below; a deeper record is
// trimmed.
const MaxDepth = 128

// ErrTooDeep means that a text nests deeper than MaxDepth.
var ErrTooDeep = fmt.Errorf("nested deeper than %d levels", MaxDepth)

// ErrSyntax is the cause of every error about text that is not JSON.
var ErrSyntax = errors.New("not valid JSON")

// ErrType is the cause of every error about a value of an unexpected type.
var ErrType = errors.New("wrong type")

// Reader reads JSON from front to back, once, checking it strictly (RFC 8259;
// any bytes at or above 0x80 in strings). What it returns are parts of the
// text, so that nothing is allocated for strings without escapes. A copy of a
// Reader reads ahead without moving the original.
type Reader struct {
	// Pos is the offset of the next byte.
	Pos int
	// Space is set once there was white space between tokens.
	Space bool
	// Watch, if set, is asked for every key that Skip moves over, and Hit set
	// once it says yes. Keys are given as they are written.
	Watch func(key string) bool
	Hit   bool

	s     string
	depth int
}

// NewReader returns a Reader of s.
func NewReader(s string) Reader { return Reader{s: s} }

// Slice returns the text from start to end.
func (r *Reader) Slice(start, end int) string { return r.s[start:end] }

// Len returns the length of the text.
func (r *Reader) Len() int { return len(r.s) }

func (r *Reader) fail(what string) error {
	return fmt.Errorf("%w: %s at byte %d", ErrSyntax, what, r.Pos)
}

func (r *Reader) mistyped(want string) error {
	if r.Peek(); r.Pos == len(r.s) {
		return r.fail("text ends early")
	}
	return fmt.Errorf("%w: expected %s at byte %d", ErrType, want, r.Pos)
}

// Peek moves over white space and returns the byte that comes next, 0 at the
// end of the text.
func (r *Reader) Peek() byte {
	for r.Pos < len(r.s) {
		c := r.s[r.Pos]
		if c > ' ' || c != ' ' && c != '\n' && c != '\r' && c != '\t' {
			return c
		}
		r.Pos++
		r.Space = true
	}
	return 0
}

// End checks that nothing follows.
func (r *Reader) End() error {
	if r.Peek(); r.Pos < len(r.s) {
		return r.fail("text after the value")
	}
	return nil
}

// Members reads an object. each is called with every key, decoded, and the
// offset at which it began; it must read the value.
func (r *Reader) Members(each func(key string, start int) error) error {
	if r.Peek() != '{' {
		return r.fail("expected an object")
	}
	if r.depth++; r.depth > MaxDepth {
		return ErrTooDeep
	}
	r.Pos++
	for first := true; ; first = false {
		c := r.Peek()
		if c == '}' && first {
			break
		}
		start := r.Pos
		key, err := r.key()
		if err != nil {
			return err
		}
		if strings.IndexByte(key, '\\') >= 0 {
			key = unescape(key)
		}
		if err := each(key, start); err != nil {
			return err
		}
		if c = r.Peek(); c == '}' {
			break
		}
		if c != ',' {
			return r.fail("expected a comma or the object's end")
		}
		r.Pos++
	}
	r.Pos++
	r.depth--
	return nil
}

// key reads a key and the colon behind it, and returns the key as it is
// written.
func (r *Reader) key() (string, error) {
	if r.Peek() != '"' {
		return "", r.fail("expected a key")
	}
	key, _, err := r.raw()
	if err != nil {
		return "", err
	}
	if r.Peek() != ':' {
		return "", r.fail("expected a colon")
	}
	r.Pos++
	return key, nil
}

// Elements reads an array. each must read one element.
func (r *Reader) Elements(each func() error) error {
	if r.Peek() != '[' {
		return r.fail("expected an array")
	}
	if r.depth++; r.depth > MaxDepth {
		return ErrTooDeep
	}
	r.Pos++
	for first := true; ; first = false {
		c := r.Peek()
		if c == ']' && first {
			break
		}
		if err := each(); err != nil {
			return err
		}
		if c = r.Peek(); c == ']' {
			break
		}
		if c != ',' {
			return r.fail("expected a comma or the array's end")
		}
		r.Pos++
	}
	r.Pos++
	r.depth--
	return nil
}

// Skip reads a value of any kind and returns its text.
func (r *Reader) Skip() (string, error) {
	r.Peek()
	start := r.Pos
	var object [MaxDepth + 1]bool // which of the open containers are objects
	for open := 0; ; {
		var err error
		switch r.Peek() {
		case '{', '[':
			if r.depth+open == MaxDepth {
				return "", ErrTooDeep
			}
			open++
			object[open] = r.s[r.Pos] == '{'
			r.Pos++
			if c := r.Peek(); c == '}' && object[open] || c == ']' && !object[open] {
				r.Pos++
				open--
				break
			}
			if object[open] {
				if err := r.watchedKey(); err != nil {
					return "", err
				}
			}
			continue
		case '"':
			_, _, err = r.raw()
		case 't':
			err = r.word("true")
		case 'f':
			err = r.word("false")
		case 'n':
			err = r.word("null")
		default:
			err = r.number()
		}
		if err != nil {
			return "", err
		}
		// A value has been read: the containers that end with it.
		for open > 0 {
			c := r.Peek()
			if c == ',' {
				r.Pos++
				if object[open] {
					if err := r.watchedKey(); err != nil {
						return "", err
					}
				}
				break
			}
			if c != '}' && c != ']' || (c == '}') != object[open] {
				return "", r.fail("expected a comma or an end")
			}
			r.Pos++
			open--
		}
		if open == 0 {
			return r.s[start:r.Pos], nil
		}
	}
}

func (r *Reader) watchedKey() error {
	key, err := r.key()
	if err == nil && r.Watch != nil && !r.Hit {
		r.Hit = r.Watch(key)
	}
	return err
}

func (r *Reader) word(w string) error {
	if !strings.HasPrefix(r.s[r.Pos:], w) {
		return r.fail("expected a value")
	}
	r.Pos += len(w)
	return nil
}

func (r *Reader) digits() bool {
	start := r.Pos
	for r.Pos < len(r.s) && r.s[r.Pos]-'0' <= 9 {
		r.Pos++
	}
	return r.Pos > start
}

func (r *Reader) at(c byte) bool {
	if r.Pos < len(r.s) && r.s[r.Pos] == c {
		r.Pos++
		return true
	}
	return false
}

func (r *Reader) number() error {
	r.at('-')
	if !r.at('0') && !r.digits() {
		return r.fail("expected a value")
	}
	if r.at('.') && !r.digits() {
		return r.fail("expected a digit")
	}
	if r.at('e') || r.at('E') {
		if !r.at('+') {
			r.at('-')
		}
		if !r.digits() {
			return r.fail("expected a digit")
		}
	}
	return nil
}

// raw reads a string, which must come next, and returns what stands between
// its quotes, and whether escapes are in it.
func (r *Reader) raw() (inside string, escaped bool, err error) {
	start := r.Pos + 1
	s := r.s
	for i := start; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		switch c {
		case '"':
			r.Pos = i + 1
			return s[start:i], escaped, nil
		case '\\':
			escaped = true
			n := escapeLen(s[i:])
			if n == 0 {
				r.Pos = i
				return "", true, r.fail("unknown escape")
			}
			i += n - 1
		default:
			r.Pos = i
			return "", false, r.fail("control character in a string")
		}
	}
	r.Pos = len(s)
	return "", false, r.fail("string without an end")
}

// escapeLen returns the length of the escape that s begins with, or 0.
func escapeLen(s string) int {
	if len(s) < 2 {
		return 0
	}
	switch s[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(s) >= 6 && hex4(s[2:6]) >= 0 {
			return 6
		}
	}
	return 0
}

// hex4 returns the value of four hexadecimal digits, or -1.
func hex4(s string) rune {
	var v rune
	for i := range 4 {
		switch c := s[i]; {
		case c-'0' <= 9:
			v = v<<4 | rune(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			v = v<<4 | rune(c|0x20-'a'+10)
		default:
			return -1
		}
	}
	return v
}

// unescape decodes the inside of a checked JSON string. Half a surrogate pair
// becomes U+FFFD.
func unescape(raw string) string {
	var b strings.Builder
	b.Grow(len(raw))
	for {
		n := strings.IndexByte(raw, '\\')
		if n < 0 {
			b.WriteString(raw)
			return b.String()
		}
		b.WriteString(raw[:n])
		raw = raw[n:]
		switch c := raw[1]; c {
		case 'u':
			v := hex4(raw[2:6])
			raw = raw[6:]
			if v >= 0xd800 && v < 0xdc00 && len(raw) >= 6 && raw[0] == '\\' && raw[1] == 'u' {
				if low := hex4(raw[2:6]); low >= 0xdc00 && low < 0xe000 {
					v = (v-0xd800)<<10 | (low - 0xdc00) + 0x10000
					raw = raw[6:]
				}
			}
			if !utf8.ValidRune(v) {
				v = utf8.RuneError
			}
			b.WriteRune(v)
			continue
		case 'b':
			b.WriteByte('\b')
		case 'f':
			b.WriteByte('\f')
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		case 't':
			b.WriteByte('\t')
		default:
			b.WriteByte(c)
		}
		raw = raw[2:]
	}
}

// AppendString appends s as a JSON string. What is not UTF-8 stays as it is.
func AppendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ':
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// Null reads null, if that comes next.
func (r *Reader) Null() bool {
	if r.Peek() == 'n' && strings.HasPrefix(r.s[r.Pos:], "null") {
		r.Pos += len("null")
		return true
	}
	return false
}

// Text reads a string, or null, which leaves into as it is.
func (r *Reader) Text(into *string) error {
	if r.Null() {
		return nil
	}
	if r.Peek() != '"' {
		return r.mistyped("a string")
	}
	inside, escaped, err := r.raw()
	if err != nil {
		return err
	}
	if escaped {
		inside = unescape(inside)
	}
	*into = inside
	return nil
}

// Texts reads an array of strings, or null, appending to into.
func (r *Reader) Texts(into *[]string) error {
	if r.Null() {
		return nil
	}
	if r.Peek() != '[' {
		return r.mistyped("an array")
	}
	return r.Elements(func() error {
		var s string
		err := r.Text(&s)
		*into = append(*into, s)
		return err
	})
}

// Object reads an object as Members does, or null.
func (r *Reader) Object(each func(key string, start int) error) error {
	if r.Null() {
		return nil
	}
	if r.Peek() != '{' {
		return r.mistyped("an object")
	}
	return r.Members(each)
}

// Integer reads an integer and sets set, or null, which changes nothing.
func (r *Reader) Integer(into *int64, set *bool) error {
	if r.Null() {
		return nil
	}
	if c := r.Peek(); c != '-' && c-'0' > 9 {
		return r.mistyped("a number")
	}
	text, err := r.Skip()
	if err != nil {
		return err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return fmt.Errorf("%w: expected an integer before byte %d", ErrType, r.Pos)
	}
	*into, *set = n, true
	return nil
}
