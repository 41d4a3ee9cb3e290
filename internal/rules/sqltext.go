package rules

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp/syntax"
	"strconv"
	"strings"
)

// sqlString is a literal of any bytes.
func sqlString(s string) string {
	var b strings.Builder
	b.WriteByte('\'')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\'' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c >= 0x7f:
			fmt.Fprintf(&b, `\x%02X`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('\'')
	return b.String()
}

// sqlStrings are literals with commas between.
func sqlStrings(values []string) string {
	var b strings.Builder
	for i, v := range values {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(sqlString(v))
	}
	return b.String()
}

func sqlArray(values []string) string { return "[" + sqlStrings(values) + "]" }

func sqlAddress(a [16]byte) string {
	return "toIPv6('" + netip.AddrFrom16(a).String() + "')"
}

// matchSQL writes that the comparison holds for a text, whether or not that is
// empty.
func (p *predicate) matchSQL(x string) string {
	switch p.op {
	case opExists:
		return "1"
	case opEq:
		return "(" + x + " = " + sqlString(p.values[0]) + ")"
	case opNe:
		return "(" + x + " != " + sqlString(p.values[0]) + ")"
	case opContains:
		return containsSQL(x, p.values[0])
	case opIContains:
		return containsSQL("lower("+x+")", lowerASCII(p.values[0]))
	case opStartsWith:
		return "startsWith(" + x + ", " + sqlString(p.values[0]) + ")"
	case opEndsWith:
		return "endsWith(" + x + ", " + sqlString(p.values[0]) + ")"
	case opBContains, opBStartsWith:
		raw, err := hex.DecodeString(p.values[0])
		if err != nil { // textMatcher has refused it
			return "0"
		}
		if p.op == opBContains {
			return containsSQL(x, string(raw))
		}
		return "startsWith(" + x + ", " + sqlString(string(raw)) + ")"
	case opGlob:
		return globSQL(x, p.values[0])
	case opIGlob:
		return globSQL("lower("+x+")", lowerASCII(p.values[0]))
	case opRegex:
		return regexSQL(x, p.values[0])
	case opPmatch:
		parts := make([]string, len(p.values))
		for i, v := range p.values {
			parts[i] = pathSQL(x, v)
		}
		return "(" + strings.Join(parts, " OR ") + ")"
	default: // opIn, opIntersects
		return "(" + x + " IN (" + sqlStrings(p.values) + "))"
	}
}

func containsSQL(x, v string) string {
	if v == "" {
		return "1"
	}
	return "(position(" + x + ", " + sqlString(v) + ") > 0)"
}

// Patterns of bytes are matched with the text in hexadecimal: RE2 reads
// characters of UTF-8, globs do not.

// byteSet is the bytes that a place of a pattern stands for.
type byteSet [256]bool

func (s *byteSet) add(lo, hi byte) {
	for c := int(lo); c <= int(hi); c++ {
		s[c] = true
	}
}

// hex is a regular expression for the two digits of the bytes; empty where
// there is none.
func (s *byteSet) hex() string {
	const digits = "0123456789ABCDEF"
	var parts []string
	for hi := range 16 {
		var low []byte
		for lo := range 16 {
			if s[hi*16+lo] {
				low = append(low, digits[lo])
			}
		}
		switch {
		case len(low) == 16:
			parts = append(parts, string(digits[hi])+".")
		case len(low) == 1:
			parts = append(parts, string(digits[hi])+string(low))
		case len(low) > 0:
			parts = append(parts, string(digits[hi])+"["+string(low)+"]")
		}
	}
	if len(parts) == 16 && !strings.Contains(strings.Join(parts, ""), "[") && strings.Count(strings.Join(parts, ""), ".") == 16 {
		return ".."
	}
	if len(parts) == 1 {
		return parts[0]
	}
	if len(parts) == 0 {
		return ""
	}
	return "(?:" + strings.Join(parts, "|") + ")"
}

// globPlace is one place of a glob: a star, or one byte of a set.
type globPlace struct {
	star bool
	set  byteSet
}

// globPlaces takes a glob apart as globOne reads it.
func globPlaces(p string) []globPlace {
	var out []globPlace
	for len(p) > 0 {
		if p[0] == '*' {
			if len(out) == 0 || !out[len(out)-1].star {
				out = append(out, globPlace{star: true})
			}
			p = p[1:]
			continue
		}
		var g globPlace
		n := 1
		for c := range 256 {
			var ok bool
			n, ok = globOne(p, byte(c), false)
			g.set[c] = ok
		}
		out = append(out, g)
		p = p[n:]
	}
	return out
}

// globHex is a regular expression over hexadecimal for a glob; false if no
// text matches. Without slash no place stands for a slash.
func globHex(p string, slash bool) (re string, ok bool) {
	any := byteSet{}
	any.add(0, 255)
	any['/'] = slash
	var b strings.Builder
	for _, g := range globPlaces(p) {
		if g.star {
			b.WriteString("(?:" + any.hex() + ")*")
			continue
		}
		g.set['/'] = g.set['/'] && slash
		h := g.set.hex()
		if h == "" {
			return "", false
		}
		b.WriteString(h)
	}
	return b.String(), true
}

func globSQL(x, p string) string {
	switch m := globMatcher(p).(type) {
	case textPresent:
		return "1"
	case equals:
		return "(" + x + " = " + sqlString(string(m)) + ")"
	case contains:
		return containsSQL(x, string(m))
	case hasPrefix:
		return "startsWith(" + x + ", " + sqlString(string(m)) + ")"
	case hasSuffix:
		return "endsWith(" + x + ", " + sqlString(string(m)) + ")"
	}
	re, ok := globHex(p, true)
	if !ok {
		return "0"
	}
	return "match(hex(" + x + "), '^" + re + "$')"
}

// pathSQL writes pathPrefix.
func pathSQL(x, prefix string) string {
	prefix = strings.TrimRight(prefix, "/")
	if prefix == "" {
		return "1"
	}
	rooted := strings.HasPrefix(prefix, "/")
	rest := strings.TrimLeft(prefix, "/")
	slow := pathRegex(x, rooted, rest)
	if slow == "0" || strings.ContainsAny(rest, `*?[\`) || strings.Contains(rest, "//") {
		return slow
	}
	quick := "(" + x + " = " + sqlString(rest) + " OR startsWith(" + x + ", " + sqlString(rest+"/") + "))"
	if !rooted {
		return quick
	}
	// Slashes at the beginning count as one.
	return "(" + x + " = " + sqlString("/"+rest) + " OR startsWith(" + x + ", " + sqlString("/"+rest+"/") + ") OR startsWith(" + x + ", '//') AND " + slow + ")"
}

func pathRegex(x string, rooted bool, rest string) string {
	var notSlash byteSet
	notSlash.add(0, 255)
	notSlash['/'] = false
	one := notSlash.hex()
	var b strings.Builder
	b.WriteByte('^')
	if rooted {
		b.WriteString("(?:2F)+")
	}
	elements := strings.Split(rest, "/")
	for i, e := range elements {
		end := "2F"
		if i == len(elements)-1 {
			end = "(?:2F(?:..)*)?$"
		}
		switch {
		case e == "": // between two slashes
			b.WriteString("2F")
		case strings.Trim(e, "*") == "":
			// An element that a star stands for may be empty, but then a slash
			// is behind it; the first one cannot be.
			s := one + "(?:" + one + ")*" + end
			if i > 0 {
				s = "(?:" + s + "|2F" + map[bool]string{true: "(?:..)*$"}[i == len(elements)-1] + ")"
			}
			b.WriteString(s)
		default:
			h, ok := globHex(e, false)
			if !ok {
				return "0"
			}
			b.WriteString(h + end)
		}
	}
	return "match(hex(" + x + "), '" + b.String() + "')"
}

// utf8Hex finds the characters of UTF-8 in hexadecimal, and single bytes where
// there is none.
const utf8Hex = "(?:C[2-9A-F]|D.)[89AB].|E0[AB].[89AB].|(?:E[1-9A-C]|E[EF])[89AB].[89AB].|ED[89].[89AB].|F0[9AB].(?:[89AB].){2}|F[1-3](?:[89AB].){3}|F48.(?:[89AB].){2}|.."

// regexSQL matches a whole text as Go's package regexp does: a byte that is no
// character counts as U+FFFD, which RE2 does not do by itself.
func regexSQL(x, pattern string) string {
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil { // compileRegex has refused it
		return "0"
	}
	text := "if(isValidUTF8(" + x + "), " + x + ", unhex(arrayStringConcat(arrayMap(u -> if(length(u) = 2 AND u >= '80', 'EFBFBD', u), extractAll(hex(" + x + "), '" + utf8Hex + "')))))"
	return "match(" + text + ", " + sqlString(`(?-s)\A(?:`+parsed.String()+`)\z`) + ")"
}

// sql writes a transformer: the changed value, and the condition that there is
// one, or nothing where there always is.
func (t transform) sql(x string) (value, valid string) {
	switch t {
	case toLower:
		return "lower(" + x + ")", ""
	case toUpper:
		return "upper(" + x + ")", ""
	case b64:
		// As encoding/base64 without padding, which skips line ends.
		text := "replaceAll(replaceAll(trim(TRAILING '=' FROM " + x + `), '\n', ''), '\r', '')`
		padded := "concat(" + text + ", repeat('=', modulo(4 - modulo(length(" + text + "), 4), 4)))"
		return "tryBase64Decode(" + padded + ")", "match(" + text + ", '^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2,3})?$')"
	default: // baseName
		return "splitByChar('/', " + x + ")[-1]", ""
	}
}

// JSON documents. simdjson reads them, which finds the first of two members of
// one name as json.go does.

// jsonStep returns the arguments of ClickHouse's JSON functions for a key.
func jsonKeys(keys []string) string {
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(", " + sqlString(k))
	}
	return b.String()
}

// jsonText is the value at a path of keys and indices as text.
func jsonText(doc string, path []string) string {
	done := 0
	for i, p := range path {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 {
			continue
		}
		if i > done {
			doc = "JSONExtractRaw(" + doc + jsonKeys(path[done:i]) + ")"
		}
		at := strconv.Itoa(n + 1)
		if n >= 1<<31 { // no list is so long
			at = strconv.Itoa(1 << 31)
		}
		doc = "if(JSONType(" + doc + ") = 'Array', JSONExtractRaw(" + doc + ", " + at + "), JSONExtractRaw(" + doc + ", " + sqlString(p) + "))"
		done = i + 1
	}
	args := doc + jsonKeys(path[done:])
	return "multiIf(JSONType(" + args + ") = 'String', JSONExtractString(" + args + "), JSONType(" + args + ") = 'Null', '', JSONExtractRaw(" + args + "))"
}

// jsonList is the values at a path in which * stands for every element of a
// list, as texts.
func jsonList(doc string, path []string) string {
	list := "" // of values as JSON
	keys := []string{}
	for _, p := range path {
		if p != "*" {
			keys = append(keys, p)
			continue
		}
		if list == "" {
			list = "JSONExtractArrayRaw(" + doc + jsonKeys(keys) + ")"
		} else {
			list = "arrayFlatten(arrayMap(j -> JSONExtractArrayRaw(j" + jsonKeys(keys) + "), " + list + "))"
		}
		keys = keys[:0]
	}
	switch {
	case list == "":
		list = "[JSONExtractRaw(" + doc + jsonKeys(keys) + ")]"
	case len(keys) > 0:
		list = "arrayMap(j -> JSONExtractRaw(j" + jsonKeys(keys) + "), " + list + ")"
	}
	return `arrayMap(j -> if(startsWith(j, '"'), JSONExtractString(j), j), arrayFilter(j -> j != '' AND j != 'null', ` + list + "))"
}
