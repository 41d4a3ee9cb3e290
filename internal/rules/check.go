package rules

import (
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/zeebo/xxh3"

	"picket/schemas"
)

// cond is a condition whose names are resolved and whose types are checked.
// Conditions of macros are shared and never changed.
type cond struct {
	kind exprKind // exprAnd, exprOr, exprNot, exprCompare
	kids []*cond
	pred *predicate
	at   pos
	// nodes counts the tree with what is shared counted at each place; depth
	// is its height.
	nodes, depth int
}

// comparisons are those of the tree, in order; what is shared is there once.
func (cd *cond) comparisons() iter.Seq[*cond] {
	return func(yield func(*cond) bool) {
		seen := make(map[*cond]bool)
		var walk func(*cond) bool
		walk = func(cd *cond) bool {
			if seen[cd] {
				return true
			}
			seen[cd] = true
			for _, k := range cd.kids {
				if !walk(k) {
					return false
				}
			}
			return cd.pred == nil || yield(cd)
		}
		walk(cd)
	}
}

// predicate is a comparison ready to be evaluated. Equal comparisons are one
// predicate.
type predicate struct {
	key     string
	operand operand
	op      operator
	// values are the literals as text: for WatchedPaths and the evt.type index.
	values []string

	match   matcher        // text and lists
	all     bool           // lists: every element must match, not one
	numbers []int64        // numbers, in the order of numKey; booleans as 0 and 1
	nets    []netip.Prefix // addresses and networks
	rhs     *operand       // val(field)

	// missing is the reason why the field is not there; then nothing else is set.
	missing string
}

// operand is a field with its argument.
type operand struct {
	field *field
	ref   string // as it is written
	arg   argument
	kind  kind
	bound *reader // of a field with bind
	// of is the operand that by was applied to, of one that derive made.
	of *operand
	by transform
}

// reader returns how the operand is read in class c; nil if it is absent there.
func (o *operand) reader(c schemas.Class) *reader {
	switch {
	case o.bound != nil:
		if o.bound.classes.Has(c) {
			return o.bound
		}
		return nil
	case o.arg.text != "":
		return on(o.field.argReaders, c)
	}
	return on(o.field.readers, c)
}

// empty reports whether empty text is a value.
func (o *operand) empty() bool { return o.field.empty }

// checker resolves and checks conditions.
type checker struct {
	*report
	macros map[string]*macroDef
	lists  map[string]*listDef
	preds  map[string]*predicate
	items  int // of all comparisons
	regex  int // parts of all regular expressions
}

// macroDef is a macro and what became of it.
type macroDef struct {
	name  string
	at    pos
	tree  *expr // nil: its condition has a syntax error
	cond  *cond // nil until checked, or when faulty
	state resolving
}

// listDef is a list and what it resolves to.
type listDef struct {
	name  string
	at    pos
	items []value
	flat  []string
	state resolving
}

// resolving says how far a definition has been followed.
type resolving uint8

const (
	fresh resolving = iota
	active
	done
)

// flatten returns the items of a list with lists in it expanded; false if it
// is faulty.
func (c *checker) flatten(l *listDef, at pos, depth int) ([]string, bool) {
	switch {
	case l.state == done:
		return l.flat, l.flat != nil
	case l.state == active:
		c.error(at, "", "list %q contains itself", l.name)
		return nil, false
	case depth > maxDepth:
		c.error(at, "", "lists nested deeper than %d", maxDepth)
		return nil, false
	}
	l.state = active
	flat, ok := c.expand(l.items, depth)
	l.state = done
	if ok && len(flat) > maxListItems {
		c.error(l.at, "", "list %q has more than %d items", l.name, maxListItems)
		ok = false
	}
	if !ok {
		return nil, false
	}
	l.flat = flat
	return flat, true
}

// expand replaces the names of lists among values by their items.
func (c *checker) expand(values []value, depth int) ([]string, bool) {
	out := make([]string, 0, len(values))
	ok := true
	for _, v := range values {
		l := c.lists[v.text]
		if v.quoted || l == nil {
			out = append(out, v.text)
			continue
		}
		items, fine := c.flatten(l, v.at, depth+1)
		ok = ok && fine
		out = append(out, items...)
		if len(out) > maxListItems {
			return out, ok
		}
	}
	return out, ok
}

// check resolves a tree; nil means that a fault has been reported.
func (c *checker) check(e *expr, depth int) *cond {
	if depth > maxDepth {
		c.error(e.at, "", "condition nested deeper than %d, macros included", maxDepth)
		return nil
	}
	switch e.kind {
	case exprName:
		return c.macro(e, depth)
	case exprCompare:
		p := c.compare(e.cmp)
		if p == nil {
			return nil
		}
		if p.missing == "" && p.operand.field.either[0] != "" {
			return c.either(e, p.op)
		}
		return &cond{kind: exprCompare, pred: p, at: e.at, nodes: 1, depth: 1}
	}
	n := &cond{kind: e.kind, at: e.at, nodes: 1}
	ok := true
	for _, k := range e.kids {
		kid := c.check(k, depth+1)
		if kid == nil {
			ok = false
			continue
		}
		n.add(kid)
	}
	if !ok {
		return nil
	}
	if n.nodes > maxNodes {
		c.error(e.at, "", "condition with its macros has more than %d comparisons", maxNodes)
		return nil
	}
	if n.depth > maxDepth {
		c.error(e.at, "", "condition nested deeper than %d, macros included", maxDepth)
		return nil
	}
	return n
}

func (n *cond) add(kid *cond) {
	n.kids = append(n.kids, kid)
	n.nodes = min(n.nodes+kid.nodes, maxNodes+1)
	n.depth = max(n.depth, kid.depth+1)
}

func (c *checker) macro(e *expr, depth int) *cond {
	m := c.macros[e.name]
	if m == nil {
		if c.lists[e.name] != nil {
			c.error(e.at, "field in ("+e.name+")", "%q is a list: it stands behind in, intersects or pmatch", e.name)
			return nil
		}
		names := make([]string, 0, len(c.macros))
		for n := range c.macros {
			names = append(names, n)
		}
		slices.Sort(names)
		c.error(e.at, didYouMean(e.name, names), "unknown macro %q", e.name)
		return nil
	}
	switch m.state {
	case active:
		c.error(e.at, "", "macro %q contains itself", m.name)
		return nil
	case fresh:
		m.state = active
		if m.tree != nil {
			m.cond = c.check(m.tree, depth+1)
		}
		m.state = done
	}
	return m.cond
}

// either rewrites a comparison of a field that stands for two.
func (c *checker) either(e *expr, op operator) *cond {
	n := &cond{kind: exprOr, at: e.at, nodes: 1}
	if op == opNe {
		n.kind = exprAnd
	}
	for _, name := range e.cmp.field.either() {
		cmp := *e.cmp
		cmp.field.name = name
		p := c.compare(&cmp)
		if p == nil {
			return nil
		}
		n.add(&cond{kind: exprCompare, pred: p, at: e.at, nodes: 1, depth: 1})
	}
	return n
}

func (f fieldRef) either() []string { return fieldTable[f.name].either[:] }

// errMissing marks a field that Picket lacks.
type errMissing struct{ reason string }

func (e errMissing) Error() string { return e.reason }

// resolve finds the field of a reference. An errMissing is the caller's to
// judge; every other error has a remedy in it already.
func resolve(ref fieldRef) (o operand, remedy string, err error) {
	f := fieldTable[ref.name]
	if f == nil {
		if why, ok := missingReason(ref.name); ok {
			return o, "", errMissing{why}
		}
		return o, didYouMean(ref.name, fieldNames), fmt.Errorf("unknown field %q", ref.name)
	}
	o = operand{field: f, ref: ref.name, kind: f.kind}
	if !ref.hasArg {
		switch f.arg {
		case argIndex:
			return o, "as in " + f.name + "[1]", fmt.Errorf("field %s needs a number in brackets", f.name)
		case argKey:
			return o, "", fmt.Errorf("field %s needs an argument in brackets", f.name)
		}
		return o, "", nil
	}
	o.ref += "[" + ref.arg + "]"
	o.arg.text = ref.arg
	o.kind = f.withArg
	switch f.arg {
	case argNone:
		return o, "", fmt.Errorf("field %s takes no argument", f.name)
	case argIndex, argMayIdx:
		n, e := strconv.ParseUint(ref.arg, 10, 16)
		if e != nil {
			return o, "as in " + f.name + "[1]", fmt.Errorf("argument of %s is a number, found %q", f.name, ref.arg)
		}
		o.arg.index = int(n)
	default:
		if ref.arg == "" {
			return o, "", fmt.Errorf("argument of %s is empty", f.name)
		}
	}
	if f.bind != nil {
		r, reason := f.bind(ref.arg)
		if r == nil {
			return o, "", errMissing{reason}
		}
		o.bound = r
	}
	return o, "", nil
}

// resolveAt is resolve with the faults reported; missing fields come back as
// reason.
func (c *checker) resolveAt(ref fieldRef) (o operand, reason string, ok bool) {
	o, remedy, err := resolve(ref)
	var m errMissing
	switch {
	case errors.As(err, &m):
		return o, m.reason, true
	case err != nil:
		at := ref.at
		if ref.hasArg && fieldTable[ref.name] != nil {
			at = ref.argAt
		}
		c.error(at, remedy, "%s", err)
		return o, "", false
	}
	return o, "", true
}

// compare checks a comparison; nil means that a fault has been reported.
func (c *checker) compare(cmp *comparison) *predicate {
	o, reason, ok := c.resolveAt(cmp.field)
	if !ok {
		return nil
	}
	if reason != "" {
		return c.intern(&predicate{key: "missing " + cmp.field.String(), operand: operand{ref: cmp.field.name}, missing: reason})
	}
	p := &predicate{operand: o, op: cmp.op}
	if cmp.rhs != nil {
		return c.compareFields(p, cmp)
	}
	if slices.Contains(cmp.field.transforms, length) {
		if p.operand, ok = c.derived(o, cmp.field); !ok {
			return nil
		}
		plain := *cmp
		plain.field.transforms = nil
		cmp = &plain
	}
	if len(cmp.field.transforms) > 0 && o.kind != kindText && o.kind != kindList {
		c.cannotTransform(o, cmp.field)
		return nil
	}
	values, ok := []string(nil), true
	if cmp.op.takesList() {
		values, ok = c.expand(cmp.values, 0)
		if ok && !cmp.list && c.lists[cmp.values[0].text] == nil && !cmp.values[0].quoted {
			c.error(cmp.values[0].at, "write ("+cmp.values[0].text+")", "unknown list %q", cmp.values[0].text)
			return nil
		}
	} else if len(cmp.values) == 1 {
		values, ok = c.single(cmp)
	}
	if !ok {
		return nil
	}
	c.items += len(values)
	if c.items > maxTotalItems {
		c.error(cmp.opAt, "", "the lists of all comparisons have more than %d items", maxTotalItems)
		return nil
	}
	p.values = values
	p.key = p.canonical(cmp.field.transforms)
	if known := c.preds[p.key]; known != nil {
		return known
	}
	if err := p.literals(cmp); err != nil {
		at := cmp.opAt
		if i := err.value; i >= 0 && len(cmp.values) == len(values) {
			at = cmp.values[i].at
		}
		c.error(at, err.remedy, "%s", err.message)
		return nil
	}
	if m, ok := p.match.(regexMatch); ok {
		if c.regex += m.size; c.regex > maxTotalRegex {
			c.error(cmp.opAt, "", "the regular expressions of all rules have more than %d parts", maxTotalRegex)
			return nil
		}
	}
	return c.intern(p)
}

// single returns the value of a comparison with one: a list's, if it is the
// name of a list with one item.
func (c *checker) single(cmp *comparison) ([]string, bool) {
	v := cmp.values[0]
	l := c.lists[v.text]
	if v.quoted || l == nil {
		return []string{v.text}, true
	}
	flat, ok := c.flatten(l, v.at, 0)
	if ok && len(flat) != 1 {
		c.error(v.at, "use in ("+v.text+"), or quotes where the text itself is meant", "%q is a list of %d items, and %q compares with one value", v.text, len(flat), cmp.op)
		return nil, false
	}
	return flat, ok
}

// derived is derive with the fault reported.
func (c *checker) derived(o operand, ref fieldRef) (operand, bool) {
	d, ok := derive(o, ref.transforms)
	if !ok {
		c.cannotTransform(d, ref)
	}
	return d, ok
}

func (c *checker) cannotTransform(o operand, ref fieldRef) {
	c.error(ref.at, "", "%s: transformers apply to text, len to lists too, and %s is a %s", ref, o.ref, o.kind)
}

func (c *checker) intern(p *predicate) *predicate {
	if known := c.preds[p.key]; known != nil {
		return known
	}
	c.preds[p.key] = p
	return p
}

// canonical names what the predicate says: predicates that say the same have
// the same name.
func (p *predicate) canonical(ts []transform) string {
	var b strings.Builder
	b.WriteString(p.operand.ref)
	for _, t := range ts {
		b.WriteByte(' ')
		b.WriteString(transformNames[t])
	}
	b.WriteByte(' ')
	b.WriteString(p.op.String())
	if p.op.takesList() {
		sorted := slices.Clone(p.values)
		slices.Sort(sorted)
		var h xxh3.Hasher
		for _, v := range slices.Compact(sorted) {
			h.WriteString(strconv.Itoa(len(v)))
			h.WriteString(":")
			h.WriteString(v)
		}
		sum := h.Sum128().Bytes()
		b.WriteByte(' ')
		b.WriteString(hex.EncodeToString(sum[:]))
		return b.String()
	}
	for _, v := range p.values {
		b.WriteByte(' ')
		b.WriteString(v)
	}
	return b.String()
}

// literalError is a fault of value number value, or of the operator if that is
// negative.
type literalError struct {
	value           int
	message, remedy string
}

var (
	textOperators = []operator{opExists, opEq, opNe, opContains, opIContains, opBContains, opStartsWith, opBStartsWith, opEndsWith,
		opGlob, opIGlob, opRegex, opIn, opIntersects, opPmatch}
	numberOperators = []operator{opExists, opEq, opNe, opLt, opLe, opGt, opGe, opIn, opIntersects}
	otherOperators  = []operator{opExists, opEq, opNe, opIn, opIntersects}
)

// literals converts the values to the type of the field and checks that the
// operator applies to it.
func (p *predicate) literals(cmp *comparison) *literalError {
	k := p.operand.kind
	allowed := otherOperators
	switch {
	case k == kindText || k == kindList:
		allowed = textOperators
	case k == kindInt || k == kindUint:
		allowed = numberOperators
	}
	asText := p.operand.field.textual && !slices.Contains(allowed, p.op) && slices.Contains(textOperators, p.op)
	if !slices.Contains(allowed, p.op) && !asText {
		return &literalError{-1, fmt.Sprintf("operator %q does not apply to %s, which is a %s", p.op, p.operand.ref, k), "use one of " + names(allowed)}
	}
	switch {
	case k == kindText, k == kindList, asText:
		return p.textLiterals(cmp, asText)
	case k == kindIP, k == kindNet:
		for i, v := range p.values {
			net, err := parseNet(v, k)
			if err != nil {
				return &literalError{i, fmt.Sprintf("%s is compared with a %s, found %q", p.operand.ref, k, v), map[kind]string{kindIP: "as in 10.0.0.1", kindNet: "as in 10.0.0.0/8"}[k]}
			}
			p.nets = append(p.nets, net)
		}
	default:
		for i, v := range p.values {
			n, err := parseNumber(v, k)
			if err != nil {
				return &literalError{i, fmt.Sprintf("%s is compared with a %s, found %q", p.operand.ref, k, v), map[kind]string{kindBool: "true or false"}[k]}
			}
			p.numbers = append(p.numbers, n)
		}
	}
	return nil
}

func (p *predicate) textLiterals(cmp *comparison, asText bool) *literalError {
	if p.operand.ref == "evt.type" && (p.op == opEq || p.op == opIn || p.op == opNe || p.op == opIntersects) {
		for i, v := range p.values {
			if !knownSyscalls[v] {
				return &literalError{i, fmt.Sprintf("%q is not the name of a system call", v), didYouMean(v, syscallNames)}
			}
		}
	}
	m, err := textMatcher(p.op, p.values)
	if err != nil {
		return &literalError{0, err.Error(), ""}
	}
	if len(cmp.field.transforms) > 0 {
		m = transformed{cmp.field.transforms, m}
	}
	p.match = m
	p.all = p.operand.kind == kindList && p.op == opIn && !p.operand.field.anyIn
	if asText {
		p.operand.kind = kindText
	}
	return nil
}

func parseNet(v string, k kind) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(v); err == nil {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	if k == kindIP {
		return netip.Prefix{}, errors.New("not an address")
	}
	n, err := netip.ParsePrefix(v)
	if err != nil {
		return n, err
	}
	return n.Masked(), nil
}

func parseNumber(v string, k kind) (int64, error) {
	switch {
	case k == kindBool && isTrue(v):
		return 1, nil
	case k == kindBool && isFalse(v):
		return 0, nil
	case k == kindBool:
		return 0, errors.New("not a boolean")
	case k == kindUint:
		n, err := strconv.ParseUint(trimZeros(v), 0, 64)
		return numKey(int64(n), kindUint), err
	}
	return strconv.ParseInt(trimZeros(v), 0, 64)
}

// trimZeros makes 007 decimal, which ParseInt would read as octal.
func trimZeros(v string) string {
	if len(v) > 1 && v[0] == '0' && v[1] >= '0' && v[1] <= '9' {
		return strings.TrimLeft(v[:len(v)-1], "0") + v[len(v)-1:]
	}
	return v
}

// numKey maps a number so that the order of all is that of int64.
func numKey(v int64, k kind) int64 {
	if k == kindUint {
		return v ^ (-1 << 63)
	}
	return v
}

// compareFields checks a comparison with another field.
func (c *checker) compareFields(p *predicate, cmp *comparison) *predicate {
	rhs, reason, ok := c.resolveAt(*cmp.rhs)
	if !ok {
		return nil
	}
	if reason != "" {
		return c.intern(&predicate{key: "missing " + cmp.rhs.String(), operand: operand{ref: cmp.rhs.name}, missing: reason})
	}
	if p.operand, ok = c.derived(p.operand, cmp.field); !ok {
		return nil
	}
	if rhs, ok = c.derived(rhs, *cmp.rhs); !ok {
		return nil
	}
	allowed := pairOperators
	switch p.operand.kind {
	case kindText:
	case kindInt, kindUint:
		allowed = numberOperators[1:]
	case kindBool:
		allowed = otherOperators[1:]
	default:
		c.error(cmp.field.at, "", "text, numbers and booleans are compared with another field, and %s is a %s", p.operand.ref, p.operand.kind)
		return nil
	}
	switch {
	case p.operand.kind != rhs.kind:
		c.error(cmp.rhs.at, "", "fields of one type are compared; %s is a %s, %s a %s", p.operand.ref, p.operand.kind.exact(), rhs.ref, rhs.kind.exact())
	case !slices.Contains(allowed, p.op):
		c.error(cmp.opAt, "use one of "+names(allowed), "operator %q cannot stand between %s and another field", p.op, p.operand.ref)
	default:
		p.rhs = &rhs
		p.key = p.operand.ref + " " + p.op.String() + " val " + rhs.ref
		return c.intern(p)
	}
	return nil
}

// names lists operators for a message.
func names(ops []operator) string {
	out := make([]string, len(ops))
	for i, o := range ops {
		out[i] = o.String()
	}
	return strings.Join(out, ", ")
}
