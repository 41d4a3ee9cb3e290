package rules

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
	"unsafe"
)

// unsafeString sees bytes as a string without a copy; it lives as long as the
// bytes stay as they are.
func unsafeString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// matcher decides about one text value.
type matcher interface{ match(s string) bool }

type (
	equals      string
	notEquals   string
	contains    string
	iContains   string // lower case
	hasPrefix   string
	hasSuffix   string
	oneOf       map[string]struct{}
	fewOf       []string
	glob        string
	iGlob       string // lower case
	underPath   []string
	textPresent struct{}
)

func (m equals) match(s string) bool    { return s == string(m) }
func (m notEquals) match(s string) bool { return s != string(m) }
func (m contains) match(s string) bool  { return strings.Contains(s, string(m)) }
func (m hasPrefix) match(s string) bool { return strings.HasPrefix(s, string(m)) }
func (m hasSuffix) match(s string) bool { return strings.HasSuffix(s, string(m)) }
func (m oneOf) match(s string) bool     { _, ok := m[s]; return ok }
func (m textPresent) match(string) bool { return true }
func (m glob) match(s string) bool      { return globMatch(string(m), s, false) }
func (m iGlob) match(s string) bool     { return globMatch(string(m), s, true) }

func (m fewOf) match(s string) bool {
	for _, v := range m {
		if s == v {
			return true
		}
	}
	return false
}

// lower is the ASCII lower case of c.
func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func lowerASCII(s string) string {
	b := []byte(s)
	for i := range b {
		b[i] = lower(b[i])
	}
	return string(b)
}

// upperASCII is the ASCII upper case of s: what is not ASCII stays, as in Falco
// and in ClickHouse.
func upperASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'a' && c <= 'z' {
			b[i] = c - ('a' - 'A')
		}
	}
	return string(b)
}

func (m iContains) match(s string) bool {
	n := len(m)
	for i := 0; i+n <= len(s); i++ {
		j := 0
		for j < n && lower(s[i+j]) == m[j] {
			j++
		}
		if j == n {
			return true
		}
	}
	return false
}

// match of underPath: the value is one of the paths or below one. A path may
// hold *, ? and […], which stand for parts of one element.
func (m underPath) match(s string) bool {
	for _, p := range m {
		if pathPrefix(p, s) {
			return true
		}
	}
	return false
}

func pathPrefix(prefix, s string) bool {
	prefix = strings.TrimRight(prefix, "/")
	if strings.HasPrefix(s, "/") != strings.HasPrefix(prefix, "/") && prefix != "" {
		return false
	}
	prefix, s = strings.TrimLeft(prefix, "/"), strings.TrimLeft(s, "/")
	for prefix != "" {
		var p, e string
		p, prefix, _ = strings.Cut(prefix, "/")
		if s == "" {
			return false
		}
		e, s, _ = strings.Cut(s, "/")
		if !globMatch(p, e, false) {
			return false
		}
	}
	return true
}

// globMatch matches the whole of s with a shell pattern: * any text, / too;
// ? one character; […] one of a set, [!…] one not in it; \ makes the next
// character ordinary. Its time is bounded by the product of the lengths.
func globMatch(p, s string, fold bool) bool {
	pi, si := 0, 0
	star, back := -1, 0
	for si < len(s) {
		if pi < len(p) && p[pi] == '*' {
			star, back = pi, si
			pi++
			continue
		}
		if pi < len(p) {
			if n, ok := globOne(p[pi:], s[si], fold); ok {
				pi += n
				si++
				continue
			}
		}
		if star < 0 {
			return false
		}
		back++
		pi, si = star+1, back
	}
	for pi < len(p) && p[pi] == '*' {
		pi++
	}
	return pi == len(p)
}

// globOne matches one character with the beginning of a pattern and returns
// how much of the pattern that took.
func globOne(p string, c byte, fold bool) (int, bool) {
	if fold {
		c = lower(c)
	}
	switch p[0] {
	case '?':
		return 1, true
	case '\\':
		if len(p) > 1 {
			return 2, p[1] == c
		}
	case '[':
		i, not, in := 1, false, false
		if i < len(p) && (p[i] == '!' || p[i] == '^') {
			not = true
			i++
		}
		for first := true; i < len(p) && (first || p[i] != ']'); first = false {
			lo := p[i]
			hi := lo
			i++
			if i+1 < len(p) && p[i] == '-' && p[i+1] != ']' {
				hi = p[i+1]
				i += 2
			}
			in = in || lo <= c && c <= hi
		}
		if i < len(p) {
			return i + 1, in != not
		}
		// No closing bracket: an ordinary character.
	}
	return 1, p[0] == c
}

// compileRegex compiles a pattern that is to match a whole value, as Falco's
// does, within bounds.
func compileRegex(pattern string) (regexMatch, error) {
	if len(pattern) > maxPattern {
		return regexMatch{}, fmt.Errorf("pattern of %d bytes, more than %d", len(pattern), maxPattern)
	}
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return regexMatch{}, err
	}
	size := regexSize(parsed)
	if size > maxRegexNodes {
		return regexMatch{}, fmt.Errorf("pattern with its repetitions written out has more than %d parts", maxRegexNodes)
	}
	re, err := regexp.Compile(`\A(?:` + pattern + `)\z`)
	return regexMatch{re, size}, err
}

// regexSize estimates the nodes of a pattern with repetitions written out.
func regexSize(re *syntax.Regexp) int {
	n := 1 + len(re.Rune)/8
	for _, s := range re.Sub {
		n = min(n+regexSize(s), maxRegexNodes+1)
	}
	if re.Op == syntax.OpRepeat {
		n *= max(re.Max, re.Min, 1)
	}
	return min(n, maxRegexNodes+1)
}

type regexMatch struct {
	re   *regexp.Regexp
	size int // parts, repetitions written out
}

func (m regexMatch) match(s string) bool { return m.re.MatchString(s) }

// transformed applies functions to a value before it is matched. What they
// leave empty counts as not there.
type transformed struct {
	fs []transform
	matcher
}

func (m transformed) match(s string) bool {
	for _, f := range m.fs {
		var ok bool
		if s, ok = f.apply(s); !ok || s == "" {
			return false
		}
	}
	return m.matcher.match(s)
}

// apply returns the changed value; false means that there is none.
func (t transform) apply(s string) (string, bool) {
	switch t {
	case toLower:
		return lowerASCII(s), true
	case toUpper:
		return upperASCII(s), true
	case b64:
		raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(s, "="))
		return string(raw), err == nil
	default: // baseName; length is a field of its own: see derive
		return s[strings.LastIndexByte(s, '/')+1:], true
	}
}

// textMatcher builds the matcher of an operator and its literals.
func textMatcher(op operator, values []string) (matcher, error) {
	switch op {
	case opExists:
		return textPresent{}, nil
	case opEq:
		return equals(values[0]), nil
	case opNe:
		return notEquals(values[0]), nil
	case opContains:
		return contains(values[0]), nil
	case opIContains:
		return iContains(lowerASCII(values[0])), nil
	case opStartsWith:
		return hasPrefix(values[0]), nil
	case opEndsWith:
		return hasSuffix(values[0]), nil
	case opBContains, opBStartsWith:
		raw, err := hex.DecodeString(values[0])
		if err != nil {
			return nil, fmt.Errorf("%q is not an even number of hexadecimal digits", values[0])
		}
		if op == opBContains {
			return contains(raw), nil
		}
		return hasPrefix(raw), nil
	case opGlob, opIGlob:
		if len(values[0]) > maxPattern {
			return nil, fmt.Errorf("pattern of %d bytes, more than %d", len(values[0]), maxPattern)
		}
		if op == opIGlob {
			return iGlob(lowerASCII(values[0])), nil
		}
		return globMatcher(values[0]), nil
	case opRegex:
		m, err := compileRegex(values[0])
		if err != nil {
			return nil, fmt.Errorf("regex: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		}
		return m, nil
	case opIn, opIntersects:
		return setOf(values), nil
	case opPmatch:
		return underPath(values), nil
	}
	return nil, fmt.Errorf("operator %q does not apply to text", op)
}

// globMatcher picks the cheapest matcher that means the same as a pattern.
func globMatcher(p string) matcher {
	const special = `*?[\`
	inner := strings.Trim(p, "*")
	if strings.ContainsAny(inner, special) || p == "" {
		return glob(p)
	}
	head, tail := strings.HasPrefix(p, "*"), strings.HasSuffix(p, "*")
	switch {
	case inner == "":
		return textPresent{}
	case head && tail:
		return contains(inner)
	case head:
		return hasSuffix(inner)
	case tail:
		return hasPrefix(inner)
	}
	return equals(p)
}

func setOf(values []string) matcher {
	if len(values) <= 4 {
		return fewOf(values)
	}
	set := make(oneOf, len(values))
	for _, v := range values {
		set[v] = struct{}{}
	}
	return set
}
