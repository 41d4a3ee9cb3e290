package chdb

import (
	"bytes"
	"strings"
)

// The library has no HTTP interface, so the few things that interface needs to
// know of a statement are read from its text: where it ends, whether it is a
// SELECT, which FORMAT it asks for, and where the data of an INSERT starts.
// Everything else is left to the engine's own parser.

type tokenKind uint8

const (
	tokenWord   tokenKind = iota // identifier, keyword or number
	tokenQuoted                  // string, quoted identifier or heredoc
	tokenPunct                   // one byte of anything else
)

// token is a piece of a statement, text[start:end], at a depth of brackets. A
// bracket itself stands at the depth of what surrounds it.
type token struct {
	kind       tokenKind
	start, end int
	depth      int
	word       string // tokenWord in upper case, tokenPunct as it is, else empty
}

// lexer walks over a statement. White space and comments belong to no token.
type lexer struct {
	text  []byte
	pos   int
	depth int
	// tags has where each $tag$ of the text stands last, once one was met: a
	// search for every dollar sign would take quadratic time.
	tags map[string]int
}

// next returns the next token, or false at the end of the text. A string or
// comment that does not end is taken to end with the text.
func (l *lexer) next() (token, bool) {
	l.skipSpace()
	if l.pos >= len(l.text) {
		return token{}, false
	}
	t := token{kind: tokenPunct, start: l.pos, depth: l.depth}
	switch c := l.text[l.pos]; {
	case isWordByte(c):
		t.kind = tokenWord
		for l.pos < len(l.text) && isWordByte(l.text[l.pos]) {
			l.pos++
		}
	case c == '\'' || c == '"' || c == '`':
		t.kind = tokenQuoted
		l.skipQuoted(c)
	case c == '$' && l.skipHeredoc():
		t.kind = tokenQuoted
	case c == '(' || c == '[' || c == '{':
		l.pos++
		l.depth++
	case c == ')' || c == ']' || c == '}':
		l.pos++
		l.depth = max(l.depth-1, 0)
		t.depth = l.depth
	default:
		l.pos++
	}
	t.end = l.pos
	if t.kind != tokenQuoted {
		t.word = strings.ToUpper(string(l.text[t.start:t.end]))
	}
	return t, true
}

// peek returns the next token without stepping over it.
func (l *lexer) peek() (token, bool) {
	ahead := *l
	return ahead.next()
}

func isWordByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

func (l *lexer) skipSpace() {
	for l.pos < len(l.text) {
		rest := l.text[l.pos:]
		var end []byte
		switch c := rest[0]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v':
			l.pos++
			continue
		case bytes.HasPrefix(rest, []byte("--")), bytes.HasPrefix(rest, []byte("# ")), bytes.HasPrefix(rest, []byte("#!")):
			end = []byte("\n")
		case bytes.HasPrefix(rest, []byte("/*")):
			end = []byte("*/")
		default:
			return
		}
		if i := bytes.Index(rest[2:], end); i >= 0 {
			l.pos += 2 + i + len(end)
		} else {
			l.pos = len(l.text)
		}
	}
}

func (l *lexer) skipQuoted(quote byte) {
	for l.pos++; l.pos < len(l.text); l.pos++ {
		switch l.text[l.pos] {
		case '\\':
			l.pos++
		case quote:
			if l.pos+1 < len(l.text) && l.text[l.pos+1] == quote {
				l.pos++ // a doubled quote stands for itself
				continue
			}
			l.pos++
			return
		}
	}
	l.pos = len(l.text) // a backslash at the very end steps past it
}

// skipHeredoc steps over $tag$…$tag$ and says whether one stood there.
func (l *lexer) skipHeredoc() bool {
	tag := tagAt(l.text, l.pos)
	if tag == nil {
		return false
	}
	if l.tags == nil {
		l.tags = map[string]int{}
		for pos := l.pos; ; pos++ {
			next := bytes.IndexByte(l.text[pos:], '$')
			if next < 0 {
				break
			}
			pos += next
			if tag := tagAt(l.text, pos); tag != nil {
				l.tags[string(tag)] = pos
			}
		}
	}
	body := l.pos + len(tag)
	if l.tags[string(tag)] < body {
		return false
	}
	l.pos = body + bytes.Index(l.text[body:], tag) + len(tag)
	return true
}

// tagAt returns the $tag$ that starts at a dollar sign, nil if none does.
func tagAt(text []byte, pos int) []byte {
	for end := pos + 1; end < len(text) && end-pos <= maxTag; end++ {
		if text[end] == '$' {
			return text[pos : end+1]
		}
		if !isWordByte(text[end]) {
			break
		}
	}
	return nil
}

// maxTag bounds the tag of a heredoc, in bytes.
const maxTag = 256

// statementKind says how a statement is run.
type statementKind uint8

const (
	kindOther  statementKind = iota // run as it is, its result held in memory
	kindSelect                      // a SELECT: its result is streamed
	kindInsert                      // an INSERT whose data follows its text
)

// statement is what parseStatement finds in a text.
type statement struct {
	kind statementKind
	// text is the whole statement without a closing semicolon or comment.
	text string
	// format is what the FORMAT clause names, empty if there is none. The
	// format of VALUES is Values.
	format string
	// body and tail enclose what has to be put into the statement to stream
	// it: text up to the FORMAT clause of a SELECT (up to SETTINGS, VALUES or
	// FORMAT of an INSERT), and the SETTINGS clause that goes behind.
	body, tail string
	// dataStart is where the data of an INSERT starts in the text given.
	dataStart int
}

// parseStatement reads one statement. The text of an INSERT may be cut
// anywhere behind the start of its data, any other has to be whole.
func parseStatement(text []byte) (statement, error) {
	l := &lexer{text: text}
	if t, ok := l.peek(); ok && t.word == "INSERT" {
		return parseInsert(l)
	}
	return parseOther(l)
}

// forbidden refuses what the HTTP interface of ClickHouse refuses: files
// belong to clients, and here there is none.
func forbidden(previous, t token) error {
	switch {
	case previous.word == "INTO" && t.word == "OUTFILE":
		return errOutfileNotAllowed.new("INTO OUTFILE is not allowed")
	case previous.word == "FROM" && t.word == "INFILE":
		return errUnknownQueryType.new("FROM INFILE is not allowed over HTTP: send the data in the body of the request")
	}
	return nil
}

// rest reads up to the end of the statement and returns where its last token
// ends. It shows every token to visit, if there is one.
func (l *lexer) rest(visit func(token)) (end int, err error) {
	var previous token
	for {
		t, ok := l.next()
		if !ok {
			return end, nil
		}
		if err := forbidden(previous, t); err != nil {
			return 0, err
		}
		if t.word == ";" {
			if _, more := l.next(); more {
				return 0, errSyntax.new("Syntax error (Multi-statements are not allowed): failed at position %d (end of query)", t.start+1)
			}
			return end, nil
		}
		if visit != nil {
			visit(t)
		}
		end = t.end
		previous = t
	}
}

func parseOther(l *lexer) (statement, error) {
	var s statement
	begin := -1
	opening := true            // only brackets so far
	var before, previous token // the two tokens before the one visited
	var keyword, name token    // FORMAT and what it names
	end, err := l.rest(func(t token) {
		if begin < 0 {
			begin = t.start
		}
		if opening && t.word != "(" {
			opening = false
			if t.word == "SELECT" || t.word == "WITH" || t.word == "FROM" {
				s.kind = kindSelect
			}
		}
		if t.word == "INSERT" && t.depth == 0 {
			s.kind = kindOther // WITH … INSERT INTO … SELECT
		}
		if t.word == "SETTINGS" && t.depth == 0 && before.word == "FORMAT" && previous.kind == tokenWord {
			keyword, name = before, previous
		}
		before, previous = previous, t
	})
	if err != nil || begin < 0 {
		return statement{}, err
	}
	if before.word == "FORMAT" && before.depth == 0 && previous.kind == tokenWord {
		keyword, name = before, previous
	}
	s.text = string(l.text[begin:end])
	s.body = s.text
	if name.end > 0 {
		s.body = string(l.text[begin:keyword.start])
		s.format = string(l.text[name.start:name.end])
		s.tail = string(l.text[name.end:end])
	}
	return s, nil
}

func parseInsert(l *lexer) (statement, error) {
	begin, _ := l.next() // INSERT
	whole := func() (statement, error) {
		l.pos, l.depth = begin.start, 0
		end, err := l.rest(nil)
		if err != nil {
			return statement{}, err
		}
		text := string(l.text[begin.start:end])
		return statement{text: text, body: text}, nil
	}

	// The name of the table comes first, so that one called «format» or
	// «values» is not taken for the clause.
	for {
		t, ok := l.peek()
		if !ok {
			return whole()
		}
		if t.word != "INTO" && t.word != "TABLE" && t.word != "FUNCTION" {
			break
		}
		l.next()
	}
	for {
		if t, _ := l.next(); t.word == "{" { // {table:Identifier}
			for l.depth > 0 {
				if _, ok := l.next(); !ok {
					return whole()
				}
			}
		}
		t, ok := l.peek()
		if !ok {
			return whole()
		}
		if t.word != "." {
			break
		}
		l.next()
	}

	var settings string
	bodyEnd, settingsStart := -1, -1
	var previous token
	for {
		t, ok := l.next()
		if !ok {
			return whole()
		}
		if err := forbidden(previous, t); err != nil {
			return statement{}, err
		}
		previous = t
		if t.depth != 0 {
			continue
		}
		switch t.word {
		case "SELECT", "WITH", "FROM", ";":
			return whole()
		case "SETTINGS":
			bodyEnd, settingsStart = t.start, t.end
			continue
		case "VALUES", "FORMAT":
		default:
			continue
		}
		if settingsStart >= 0 {
			settings = strings.TrimSpace(string(l.text[settingsStart:t.start]))
		} else {
			bodyEnd = t.start
		}
		s := statement{kind: kindInsert, format: "Values", body: string(l.text[begin.start:bodyEnd]), dataStart: t.end}
		if t.word == "FORMAT" {
			name, ok := l.next()
			if !ok || name.kind != tokenWord {
				return whole()
			}
			s.format = string(l.text[name.start:name.end])
			dataStart := name.end
			if after, found := l.settings(); found {
				if settings != "" {
					settings += ", "
				}
				settings += after
				dataStart = l.pos
			}
			s.dataStart = skipToData(l.text, dataStart)
		}
		if settings != "" {
			s.tail = " SETTINGS " + settings
		}
		s.text = string(l.text[begin.start:s.dataStart])
		return s, nil
	}
}

// settings reads a SETTINGS clause where one stands, and returns its list.
func (l *lexer) settings() (string, bool) {
	if t, ok := l.peek(); !ok || t.word != "SETTINGS" {
		return "", false
	}
	ahead := *l
	keyword, _ := ahead.next()
	for {
		name, _ := ahead.next()
		equals, _ := ahead.next()
		if name.kind != tokenWord || equals.word != "=" {
			return "", false
		}
		value, ok := ahead.next()
		if value.word == "-" || value.word == "+" {
			value, ok = ahead.next()
		}
		if !ok {
			return "", false
		}
		for ahead.depth > 0 {
			if _, ok := ahead.next(); !ok {
				return "", false
			}
		}
		for { // the fraction of a number
			dot, ok := ahead.peek()
			if !ok || dot.word != "." {
				break
			}
			ahead.next()
			ahead.next()
		}
		*l = ahead
		if comma, ok := ahead.next(); !ok || comma.word != "," {
			return strings.TrimSpace(string(l.text[keyword.end:l.pos])), true
		}
	}
}

// skipToData steps over the blanks and the one line end between the text of an
// INSERT and its data.
func skipToData(text []byte, pos int) int {
	for pos < len(text) && (text[pos] == ' ' || text[pos] == '\t' || text[pos] == '\f') {
		pos++
	}
	if pos < len(text) && text[pos] == '\r' {
		pos++
	}
	if pos < len(text) && text[pos] == '\n' {
		pos++
	}
	return pos
}

// quote writes a string literal.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// quoteName writes a quoted identifier.
func quoteName(s string) string {
	return "`" + strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(s) + "`"
}
