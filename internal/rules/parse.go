package rules

import (
	"strconv"
	"strings"
)

// parser reads a condition. Its grammar is Falco's filter language:
//
//	or      = and { "or" and }
//	and     = not { "and" not }
//	not     = "not" not | "(" or ")" | compare | macro
//	compare = field ( "exists" | operator value | operator list )
//	field   = name "." name … [ "[" argument "]" ] | transformer "(" field ")"
//	list    = "(" [ value { "," value } ] ")" | name
//	value   = quoted | bare | "val(" field ")" | transformer "(" field ")"
type parser struct {
	src   *text
	s     string
	at    int
	depth int
}

// syntaxError stops a parse; parse recovers it.
type syntaxError struct{ fault Error }

// parse returns the tree of a condition, or the first fault in it.
func parse(src *text) (e *expr, err *Error) {
	p := &parser{src: src, s: src.value}
	defer p.recovered(&err)
	if len(p.s) > maxCondition {
		p.fail(0, "", "condition of %d bytes, more than %d", len(p.s), maxCondition)
	}
	p.blank()
	if p.end() {
		p.fail(p.at, "", "empty condition")
	}
	tree := p.or()
	if !p.end() {
		if p.s[p.at] == ')' {
			p.fail(p.at, "", "\")\" without its \"(\"")
		}
		p.fail(p.at, "", "expected \"and\", \"or\" or the end of the condition, found %s", p.found())
	}
	return tree, nil
}

func (p *parser) fail(at int, remedy, format string, args ...any) {
	panic(syntaxError{pos{p.src, at}.fault(remedy, format, args...)})
}

// recovered, deferred, turns a syntaxError into an error.
func (p *parser) recovered(err **Error) {
	if r := recover(); r != nil {
		se, ok := r.(syntaxError)
		if !ok {
			panic(r)
		}
		*err = &se.fault
	}
}

func (p *parser) pos(at int) pos { return pos{p.src, at} }
func (p *parser) end() bool      { return p.at >= len(p.s) }

// blank skips white space.
func (p *parser) blank() {
	for !p.end() && (isSpace(p.s[p.at]) || p.s[p.at] == '\b') {
		p.at++
	}
}

// found describes what stands at the current place, for messages.
func (p *parser) found() string {
	at := p.at
	for at < len(p.s) && isSpace(p.s[at]) {
		at++
	}
	if at == len(p.s) {
		return "the end of the condition"
	}
	end := at
	for end < len(p.s) && !isSpace(p.s[end]) && end-at < 30 {
		end++
	}
	if i := strings.IndexAny(p.s[at:end], "(),"); i > 0 {
		end = at + i
	}
	return strconv.Quote(p.s[at:end])
}

func isWordStart(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func isWord(c byte) bool      { return isWordStart(c) || c >= '0' && c <= '9' || c == '_' }

// word returns the identifier at the current place without taking it.
func (p *parser) word() string {
	end := p.at
	if end < len(p.s) && isWordStart(p.s[end]) {
		for end < len(p.s) && isWord(p.s[end]) {
			end++
		}
	}
	return p.s[p.at:end]
}

// keyword takes the word w if it stands here, followed by white space or a
// parenthesis.
func (p *parser) keyword(w string) bool {
	if p.word() != w {
		return false
	}
	if end := p.at + len(w); end < len(p.s) && !isSpace(p.s[end]) && p.s[end] != '(' {
		return false
	}
	p.at += len(w)
	p.blank()
	return true
}

func (p *parser) or() *expr  { return p.chain("or", exprOr, p.and) }
func (p *parser) and() *expr { return p.chain("and", exprAnd, p.not) }

func (p *parser) chain(word string, kind exprKind, next func() *expr) *expr {
	at := p.at
	first := next()
	var kids []*expr
	for p.keyword(word) {
		if p.end() {
			p.fail(p.at, "", "expected a condition after %q", word)
		}
		kids = append(kids, next())
	}
	if kids == nil {
		return first
	}
	return &expr{kind: kind, at: p.pos(at), kids: append([]*expr{first}, kids...)}
}

func (p *parser) not() *expr {
	p.depth++
	defer func() { p.depth-- }()
	if p.depth > maxDepth {
		p.fail(p.at, "", "condition nested deeper than %d", maxDepth)
	}
	at := p.at
	if p.keyword("not") {
		return &expr{kind: exprNot, at: p.pos(at), kids: []*expr{p.not()}}
	}
	if !p.end() && p.s[p.at] == '(' {
		p.at++
		p.blank()
		e := p.or()
		if p.end() || p.s[p.at] != ')' {
			p.fail(p.at, "", "expected \")\" for the \"(\" here, found %s", p.found())
		}
		p.at++
		p.blank()
		return e
	}
	return p.check()
}

// check is a comparison or a macro.
func (p *parser) check() *expr {
	at := p.at
	w := p.word()
	if w == "" {
		p.fail(p.at, "", "expected a field, a macro, \"not\" or \"(\", found %s", p.found())
	}
	next := byte(0)
	if p.at+len(w) < len(p.s) {
		next = p.s[p.at+len(w)]
	}
	if next != '.' && next != '(' {
		switch w {
		case "and", "or", "not":
			p.fail(p.at, "", "expected a condition, found %q", w)
		}
		p.at += len(w)
		p.blank()
		if op, _ := p.peekOperator(); op != opNone {
			p.fail(at, "fields have a dot in their name", "expected a field before %q, found %q", op, w)
		}
		return &expr{kind: exprName, at: p.pos(at), name: w}
	}
	c := &comparison{field: p.field()}
	c.opAt = p.pos(p.at)
	op, size := p.peekOperator()
	if op == opNone {
		if op := nearest(p.word(), operatorNames[1:]); op != "" {
			p.fail(p.at, "did you mean "+op+"?", "expected an operator after %s, found %s", c.field, p.found())
		}
		p.fail(p.at, "", "expected an operator after %s, found %s", c.field, p.found())
	}
	c.op = op
	p.at += size
	p.blank()
	switch {
	case op == opExists:
	case p.otherField(c):
	case op.takesList():
		p.list(c)
	default:
		p.operand(c)
	}
	return &expr{kind: exprCompare, at: p.pos(at), cmp: c}
}

// field reads a field reference with its transformers, and the white space
// behind it.
func (p *parser) field() fieldRef {
	at := p.at
	w := p.word()
	if p.at+len(w) < len(p.s) && p.s[p.at+len(w)] == '(' {
		for t, name := range transformNames {
			if name != w {
				continue
			}
			p.depth++
			if p.depth > maxDepth {
				p.fail(p.at, "", "condition nested deeper than %d", maxDepth)
			}
			p.at += len(w) + 1
			p.blank()
			f := p.field()
			if p.end() || p.s[p.at] != ')' {
				p.fail(p.at, "", "expected \")\" after %s, found %s", f, p.found())
			}
			p.at++
			p.blank()
			p.depth--
			f.transforms = append(f.transforms, transform(t))
			f.at = p.pos(at)
			return f
		}
		switch w {
		case "join", "concat", "getopt":
			p.fail(p.at, "compare the fields one by one", "the transformer %s of Falco's development version is not there", w)
		}
		p.fail(p.at, didYouMean(w, transformNames[:]), "unknown transformer %q", w)
	}
	end := p.at + len(w)
	for end < len(p.s) && p.s[end] == '.' && end+1 < len(p.s) && isWordStart(p.s[end+1]) {
		end++
		for end < len(p.s) && isWord(p.s[end]) {
			end++
		}
	}
	f := fieldRef{name: p.s[p.at:end], at: p.pos(at)}
	if !strings.Contains(f.name, ".") {
		p.fail(p.at, "", "expected a field, found %s", p.found())
	}
	p.at = end
	if !p.end() && p.s[p.at] == '[' {
		p.argument(&f)
	}
	p.blank()
	return f
}

func (p *parser) argument(f *fieldRef) {
	open := p.at
	p.at++
	f.hasArg, f.argAt = true, p.pos(p.at)
	if !p.end() && (p.s[p.at] == '"' || p.s[p.at] == '\'') {
		f.arg = p.quoted()
	} else {
		end := strings.IndexAny(p.s[p.at:], "[] \t\r\n\"'")
		if end < 0 {
			end = len(p.s) - p.at
		}
		f.arg = p.s[p.at : p.at+end]
		p.at += end
	}
	if p.end() || p.s[p.at] != ']' {
		p.fail(p.at, "", "expected \"]\" for the argument of %s, found %s", p.s[f.at.off:open], p.found())
	}
	p.at++
}

// peekOperator returns the operator at the current place and its length.
func (p *parser) peekOperator() (operator, int) {
	rest := p.s[p.at:]
	for _, o := range [...]struct {
		s  string
		op operator
	}{{"==", opEq}, {"=", opEq}, {"!=", opNe}, {"<=", opLe}, {"<", opLt}, {">=", opGe}, {">", opGt}} {
		if strings.HasPrefix(rest, o.s) {
			return o.op, len(o.s)
		}
	}
	w := p.word()
	op := wordOperators[w]
	if op == opNone {
		return opNone, 0
	}
	if len(rest) == len(w) || isSpace(rest[len(w)]) || rest[len(w)] == ')' && op == opExists || rest[len(w)] == '(' && op.takesList() || strings.IndexByte(`"'`, rest[len(w)]) >= 0 {
		return op, len(w)
	}
	return opNone, 0
}

// otherField takes a field that stands in place of values, as val(field) or
// with transformers.
func (p *parser) otherField(c *comparison) bool {
	w := p.word()
	if w == "" || p.at+len(w) >= len(p.s) || p.s[p.at+len(w)] != '(' {
		return false
	}
	if w != "val" {
		f := p.field()
		c.rhs = &f
		return true
	}
	p.at += len("val(")
	p.blank()
	f := p.field()
	if p.end() || p.s[p.at] != ')' {
		p.fail(p.at, "", "expected \")\" after %s, found %s", f, p.found())
	}
	p.at++
	p.blank()
	c.rhs = &f
	return true
}

func (p *parser) operand(c *comparison) { c.values = []value{p.value(c, false)} }

func (p *parser) list(c *comparison) {
	if p.end() || p.s[p.at] != '(' {
		v := p.value(c, true)
		c.values = []value{v}
		return
	}
	c.list = true
	p.at++
	p.blank()
	if !p.end() && p.s[p.at] == ')' {
		p.at++
		p.blank()
		return
	}
	for {
		c.values = append(c.values, p.value(c, true))
		if p.end() || p.s[p.at] != ',' && p.s[p.at] != ')' {
			p.fail(p.at, "values with spaces need quotes", "expected \",\" or \")\" in the list of %q, found %s", c.op, p.found())
		}
		p.at++
		closed := p.s[p.at-1] == ')'
		p.blank()
		if closed {
			return
		}
	}
}

// value reads a literal and the white space behind it.
func (p *parser) value(c *comparison, inList bool) value {
	at := p.at
	if !p.end() && (p.s[p.at] == '"' || p.s[p.at] == '\'') {
		v := p.quoted()
		p.blank()
		return value{text: v, quoted: true, at: p.pos(at)}
	}
	end := strings.IndexAny(p.s[p.at:], " \b\t\r\n(),=\"'")
	if end < 0 {
		end = len(p.s) - p.at
	}
	v := p.s[p.at : p.at+end]
	if v == "" {
		if !inList && !p.end() && p.s[p.at] == '(' {
			p.fail(p.at, "use in (…) to compare with several values", "expected one value after %q, found a list", c.op)
		}
		p.fail(p.at, "", "expected a value after %q, found %s", c.op, p.found())
	}
	p.at += end
	p.blank()
	return value{text: v, at: p.pos(at)}
}

// escapes are the characters that mean something else behind a backslash in a
// quoted string, \xHH apart; before any other character the backslash stays, so
// that regular expressions need no second one. A blank is Falco's, for a rule of its own.
var escapes = map[byte]byte{'n': '\n', 'r': '\r', 't': '\t', 'f': '\f', '\\': '\\', '"': '"', '\'': '\'', '/': '/', ' ': '\\'}

// quoted reads a string in single or double quotes.
func (p *parser) quoted() string {
	open, q := p.at, p.s[p.at]
	var b strings.Builder
	for p.at++; ; p.at++ {
		if p.end() {
			p.fail(open, "", "string without its closing %c", q)
		}
		switch c := p.s[p.at]; {
		case c == q:
			p.at++
			return b.String()
		case c == '\\' && p.at+1 < len(p.s) && escapes[p.s[p.at+1]] != 0:
			p.at++
			b.WriteByte(escapes[p.s[p.at]])
		case c == '\\' && p.at+3 < len(p.s) && p.s[p.at+1] == 'x':
			n, err := strconv.ParseUint(p.s[p.at+2:p.at+4], 16, 8)
			if err != nil {
				p.fail(p.at, "as in \\xFF", "expected two hexadecimal digits after \\x, found %.10q", p.s[p.at+2:])
			}
			if n == 0 {
				p.fail(p.at, "", "\\x00 is in no text")
			}
			b.WriteByte(byte(n))
			p.at += 3
		default:
			b.WriteByte(c)
		}
	}
}
