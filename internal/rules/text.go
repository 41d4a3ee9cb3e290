package rules

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// file is one rule file as it was read.
type file struct {
	name  string
	data  string
	lines []int // offset of each line
}

func newFile(name string, data []byte) *file {
	f := &file{name: name, data: string(data), lines: []int{0}}
	for i := range len(f.data) {
		if f.data[i] == '\n' {
			f.lines = append(f.lines, i+1)
		}
	}
	return f
}

// offset returns the byte offset of a YAML mark, which counts characters.
func (f *file) offset(line, column int) int {
	if line < 1 || line > len(f.lines) {
		return len(f.data)
	}
	at := f.lines[line-1]
	for ; column > 1 && at < len(f.data); column-- {
		_, n := utf8.DecodeRuneInString(f.data[at:])
		at += n
	}
	return at
}

// mark is the inverse of offset.
func (f *file) mark(offset int) (line, column int) {
	offset = min(offset, len(f.data))
	lo, hi := 0, len(f.lines)
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; f.lines[mid] <= offset {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo + 1, utf8.RuneCountInString(f.data[f.lines[lo]:offset]) + 1
}

// text is the value of one or several YAML scalars (append joins them), which
// knows where in the files each byte of it stands.
type text struct {
	value string
	parts []part
}

type part struct {
	start int // offset in value
	file  *file
	node  *yaml.Node
}

func newText(f *file, n *yaml.Node) *text {
	return &text{value: n.Value, parts: []part{{0, f, n}}}
}

// join returns t with more behind it, a space between.
func (t *text) join(more *text) *text {
	j := &text{value: t.value + " " + more.value, parts: append([]part(nil), t.parts...)}
	for _, p := range more.parts {
		p.start += len(t.value) + 1
		j.parts = append(j.parts, p)
	}
	return j
}

// pos is a place in a text; with a nil text, or one of no file, it is nowhere.
type pos struct {
	text *text
	off  int
}

// fault makes an Error at the place.
func (p pos) fault(remedy, format string, args ...any) Error {
	e := Error{Message: fmt.Sprintf(format, args...), Remedy: remedy}
	if p.text == nil || len(p.text.parts) == 0 {
		return e
	}
	at := p.text.parts[0]
	for _, q := range p.text.parts[1:] {
		if q.start <= p.off {
			at = q
		}
	}
	e.File = at.file.name
	e.Line, e.Column = at.file.mark(at.file.scalarOffset(at.node, p.off-at.start))
	return e
}

const space = " \t\r\n"

// scalarOffset returns where in the file byte off of the scalar's value stands.
// Value and source have the same characters but for white space, which YAML
// folds, and escapes, so the two are walked side by side. The end of the value
// is one past its last visible character.
func (f *file) scalarOffset(n *yaml.Node, off int) int {
	src, at := f.data, f.offset(n.Line, n.Column)
	for at < len(src) && (src[at] == '&' || src[at] == '!') { // anchor and tag
		for at < len(src) && !strings.ContainsRune(space, rune(src[at])) {
			at++
		}
		for at < len(src) && strings.ContainsRune(space, rune(src[at])) {
			at++
		}
	}
	switch {
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		nl := strings.IndexByte(src[min(at, len(src)):], '\n')
		if nl < 0 {
			return at
		}
		at += nl + 1
	case n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0:
		at++
	}
	last := at
	value := n.Value
	for i := 0; i < len(value); {
		if isSpace(value[i]) {
			if i >= off {
				return last
			}
			i++
			continue
		}
		at = f.skipSpace(n, at)
		if at >= len(src) {
			return last
		}
		taken, size := 1, 1
		switch {
		case n.Style&yaml.DoubleQuotedStyle != 0 && src[at] == '\\':
			taken, size = escape(src[at:])
		case n.Style&yaml.SingleQuotedStyle != 0 && src[at] == '\'':
			taken = 2
		}
		if i+size > off {
			return at
		}
		at += taken
		i += size
		last = at
	}
	return last
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// skipSpace skips white space of the source, and escapes that stand for it.
func (f *file) skipSpace(n *yaml.Node, at int) int {
	src := f.data
	for at < len(src) {
		switch {
		case isSpace(src[at]):
			at++
		case n.Style&yaml.DoubleQuotedStyle != 0 && src[at] == '\\' && at+1 < len(src) && strings.IndexByte("ntr \n\r\t", src[at+1]) >= 0:
			at += 2
		default:
			return at
		}
	}
	return at
}

// escape returns how many bytes the escape at the start of s takes, and how
// many bytes of UTF-8 it stands for.
func escape(s string) (taken, size int) {
	if len(s) < 2 {
		return 1, 1
	}
	digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[s[1]]
	if digits == 0 {
		switch s[1] {
		case 'N', '_':
			return 2, 2
		case 'L', 'P':
			return 2, 3
		}
		return 2, 1
	}
	var r rune
	_, _ = fmt.Sscanf(s[2:min(2+digits, len(s))], "%x", &r)
	return min(2+digits, len(s)), max(1, utf8.RuneLen(r))
}
