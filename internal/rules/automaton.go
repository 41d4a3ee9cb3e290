package rules

import (
	"math/bits"
	"regexp/syntax"
	"slices"
	"strings"
)

// The comparisons of one slot that look for texts in a value (contains, icontains,
// startswith, endswith, what globs and pmatch have of them, the literals that a
// regular expression cannot do without) are one automaton, after Aho and Corasick:
// one pass over a distinct value finds the needles of them all, however many there
// are. It reads letters without their case and is asked twice where case matters.

// needle is a text that an automaton looks for.
type needle struct {
	text       string // not empty; in lower case with fold
	fold       bool   // ASCII letters match in either case
	start, end bool   // only there
}

// The bytes that an automaton reads in the time of a comparison without it:
// rough, measured with BenchmarkScan. A regular expression takes longer, however
// long the value.
const (
	effortPlace    = 2
	effortContains = 6
	effortFold     = 32
	effortRegex    = spentAll
)

func (n needle) effort() int {
	switch {
	case n.start || n.end:
		return effortPlace
	case n.fold:
		return effortFold
	}
	return effortContains
}

// needlesOf returns needles of which a value must have one for m to match. With
// exact a value that has one matches. There are none when m can match without.
func needlesOf(m matcher) (ns []needle, exact bool) {
	switch m := m.(type) {
	case contains:
		ns = []needle{{text: string(m)}}
	case iContains:
		ns = []needle{{text: string(m), fold: true}}
	case hasPrefix:
		ns = []needle{{text: string(m), start: true}}
	case hasSuffix:
		ns = []needle{{text: string(m), end: true}}
	case equals:
		ns = []needle{{text: string(m), start: true, end: true}}
	case fewOf:
		for _, v := range m {
			ns = append(ns, needle{text: v, start: true, end: true})
		}
	case oneOf:
		for v := range m {
			ns = append(ns, needle{text: v, start: true, end: true})
		}
		slices.SortFunc(ns, func(a, b needle) int { return strings.Compare(a.text, b.text) })
	case anyOf:
		exact = true
		for _, k := range m {
			of, ex := needlesOf(k)
			if len(of) == 0 {
				return nil, false
			}
			ns, exact = append(ns, of...), exact && ex
		}
		return ns, exact
	case underPath:
		// Slashes at the beginning may be more than one: what follows them is
		// in the value as it is.
		for _, p := range m {
			p = strings.Trim(p, "/")
			if p == "" || strings.ContainsAny(p, `*?[\`) {
				return nil, false
			}
			ns = append(ns, needle{text: p})
		}
		return ns, false
	case regexMatch:
		re, err := syntax.Parse(m.re.String(), syntax.Perl)
		if err != nil {
			return nil, false
		}
		if ns = required(re); shortest(ns) < minRequired {
			return nil, false
		}
		return ns, false
	}
	if slices.ContainsFunc(ns, func(n needle) bool { return n.text == "" }) {
		return nil, false
	}
	return ns, len(ns) > 0
}

// Bounds of the needles of one regular expression: more of them, or shorter ones,
// which are in many values (of an option: -), spare too little.
const (
	maxRequired = 32
	minRequired = 3 // bytes
)

// required returns literals of which every text that re matches has one; none
// when it is not known.
func required(re *syntax.Regexp) []needle {
	switch re.Op {
	case syntax.OpLiteral:
		// Case folding beyond ASCII (k and the Kelvin sign) is not ours to do.
		text := string(re.Rune)
		fold := re.Flags&syntax.FoldCase != 0
		for _, r := range re.Rune {
			if r >= 0x80 || fold && (lower(byte(r)) == 'k' || lower(byte(r)) == 's') {
				return nil
			}
		}
		if fold {
			text = lowerASCII(text)
		}
		return []needle{{text: text, fold: fold}}
	case syntax.OpCapture, syntax.OpPlus:
		return required(re.Sub[0])
	case syntax.OpRepeat:
		if re.Min > 0 {
			return required(re.Sub[0])
		}
	case syntax.OpConcat:
		var best []needle
		for _, s := range re.Sub {
			if ns := required(s); shortest(ns) > shortest(best) {
				best = ns
			}
		}
		return best
	case syntax.OpAlternate:
		var all []needle
		for _, s := range re.Sub {
			ns := required(s)
			if len(ns) == 0 || len(all)+len(ns) > maxRequired {
				return nil
			}
			all = append(all, ns...)
		}
		return all
	}
	return nil
}

// shortest is the length of the shortest needle: the longer, the rarer.
func shortest(ns []needle) int {
	if len(ns) == 0 {
		return 0
	}
	n := len(ns[0].text)
	for _, x := range ns {
		n = min(n, len(x.text))
	}
	return n
}

// anyOf matches what one of its matchers does.
type anyOf []matcher

func (m anyOf) match(s string) bool {
	for _, k := range m {
		if k.match(s) {
			return true
		}
	}
	return false
}

// automaton finds needles. It never changes once it is built.
type automaton struct {
	class [256]uint8 // of a byte; 0 of those that are in no needle
	shift uint8
	start uint16   // state before the first byte
	loud  uint16   // states from here on end a needle
	next  []uint16 // by state<<shift | class
	at    []int32  // by state: where its ends begin in ends
	ends  []end
	link  []uint16 // by state: the longest other state that ends this one and a needle; 0: none
}

// end is a needle at its end.
type end struct {
	node   int32
	needle string // to compare where case matters, else empty
}

// The classes of the two places that are no bytes.
const (
	classStart = 1 + iota
	classEnd
	firstClass
)

// maxTransitions bounds the automata of one event class, in transitions of two
// bytes: 8 MiB. Comparisons that have no room are made one by one.
const maxTransitions = 1 << 22

// maxStates is what numbers of states of 16 bits allow.
const maxStates = 1 << 16

// automatonBuilder makes an automaton of the needles of nodes.
type automatonBuilder struct {
	class   [256]uint8
	classes int
	kids    []map[uint8]int32
	ends    [][]end
}

func newAutomatonBuilder() *automatonBuilder {
	return &automatonBuilder{classes: firstClass, kids: []map[uint8]int32{{}}, ends: [][]end{nil}}
}

func (b *automatonBuilder) shift() uint8 { return uint8(bits.Len(uint(b.classes - 1))) }

func (b *automatonBuilder) transitions() int { return len(b.kids) << b.shift() }

// fits reports whether the automaton has at most room transitions with further
// needles.
func (b *automatonBuilder) fits(ns []needle, room int) bool {
	states, classes := len(b.kids), b.classes
	var fresh [256]bool
	for _, n := range ns {
		states += len(n.text) + 2
		for i := range len(n.text) {
			if c := lower(n.text[i]); b.class[c] == 0 && !fresh[c] {
				fresh[c] = true
				classes++
			}
		}
	}
	return states <= maxStates && states<<bits.Len(uint(classes-1)) <= room
}

func (b *automatonBuilder) add(node int, n needle) {
	st := int32(0)
	step := func(c uint8) {
		to, ok := b.kids[st][c]
		if !ok {
			to = int32(len(b.kids))
			b.kids = append(b.kids, map[uint8]int32{})
			b.ends = append(b.ends, nil)
			b.kids[st][c] = to
		}
		st = to
	}
	if n.start {
		step(classStart)
	}
	for i := range len(n.text) {
		c := lower(n.text[i])
		if b.class[c] == 0 {
			b.class[c] = uint8(b.classes)
			b.classes++
		}
		step(b.class[c])
	}
	if n.end {
		step(classEnd)
	}
	e := end{node: int32(node)}
	if !n.fold && strings.ContainsFunc(n.text, isLetter) {
		e.needle = n.text
	}
	b.ends[st] = append(b.ends[st], e)
}

func isLetter(r rune) bool { return r|0x20 >= 'a' && r|0x20 <= 'z' }

func (b *automatonBuilder) build() *automaton {
	n, shift := len(b.kids), b.shift()
	// By breadth, so that a state's fallback, which is shorter, is complete
	// before it.
	next := make([]int32, n<<shift)
	fall, link := make([]int32, n), make([]int32, n)
	order := []int32{0}
	for i := 0; i < len(order); i++ {
		st := order[i]
		row := next[int(st)<<shift : int(st+1)<<shift]
		if st != 0 {
			f := fall[st]
			copy(row, next[int(f)<<shift:int(f+1)<<shift])
			link[st] = link[f]
			if len(b.ends[f]) > 0 {
				link[st] = f
			}
		}
		for c, to := range b.kids[st] {
			if st != 0 {
				fall[to] = row[c]
			}
			row[c] = to
			order = append(order, to)
		}
	}
	// States that end nothing get the low numbers: the walk asks no more.
	number := make([]uint16, n)
	a := &automaton{class: b.class, shift: shift, next: make([]uint16, n<<shift), link: make([]uint16, n), at: make([]int32, n+1)}
	var sorted []int32
	for _, loud := range []bool{false, true} {
		for _, st := range order {
			if (len(b.ends[st]) > 0 || link[st] != 0) == loud {
				number[st] = uint16(len(sorted))
				sorted = append(sorted, st)
			}
		}
		if !loud {
			a.loud = uint16(len(sorted))
		}
	}
	for i, st := range sorted {
		for c := range 1 << shift {
			a.next[i<<shift|c] = number[next[int(st)<<shift|c]]
		}
		a.link[i] = number[link[st]]
		a.ends = append(a.ends, b.ends[st]...)
		a.at[i+1] = int32(len(a.ends))
	}
	for c := 'A'; c <= 'Z'; c++ { // of which the needles have none: see lower
		a.class[c] = a.class[lower(byte(c))]
	}
	a.start = a.next[classStart]
	return a
}

// scan calls found for the node of every needle in t, once or more often.
func (a *automaton) scan(t string, found func(node int32)) {
	st, next, shift := a.start, a.next, a.shift&15
	for i := range len(t) {
		st = next[uint(st)<<shift|uint(a.class[t[i]])]
		if st >= a.loud {
			a.report(st, t[:i+1], found)
		}
	}
	if st = next[uint(st)<<shift|classEnd]; st >= a.loud {
		a.report(st, t, found)
	}
}

// report reports the needles that end in a state, read being what led to it.
func (a *automaton) report(st uint16, read string, found func(node int32)) {
	for {
		for _, e := range a.ends[a.at[st]:a.at[st+1]] {
			if strings.HasSuffix(read, e.needle) {
				found(e.node)
			}
		}
		if st = a.link[st]; st == 0 {
			return
		}
	}
}
