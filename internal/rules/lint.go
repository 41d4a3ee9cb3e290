package rules

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"picket/schemas"
)

// What Load tells of beside errors when Options.Lint is set: what has no
// effect, and what can never hold.

// change is what an entry did to one key of an earlier definition.
type change struct {
	at  pos
	key string
}

// noteChange remembers that an entry changed a key, and tells of an earlier
// change to it that is replaced by this one.
func (l *loader) noteChange(it *item, key, how string) {
	if !l.opts.Lint {
		return
	}
	id := it.kind + " " + it.name
	if how != "append" {
		for _, c := range l.changes[id] {
			if c.key == key {
				l.warn(c.at, it.name, false, "", "what this entry does to %s of %s %q has no effect: %s replaces it", key, it.kind, it.name, it.at.line())
			}
		}
		l.changes[id] = slices.DeleteFunc(l.changes[id], func(c change) bool { return c.key == key })
	}
	l.changes[id] = append(l.changes[id], change{it.at, key})
}

// noteDefinition tells of an earlier definition of the name, and of changes to
// it, that this entry makes void. One that says the same is no fault: files of
// the community repeat what they share.
func (l *loader) noteDefinition(it *item, old pos, same bool) {
	if !l.opts.Lint {
		return
	}
	id := it.kind + " " + it.name
	if !same && old.text != nil {
		l.warn(old, it.name, false, "override changes a definition", "this definition of %s %q has no effect: %s defines it again", it.kind, it.name, it.at.line())
	}
	for _, c := range l.changes[id] {
		l.warn(c.at, it.name, false, "put it behind that", "what this entry does to %s of %s %q has no effect: %s defines it again", c.key, it.kind, it.name, it.at.line())
	}
	delete(l.changes, id)
}

// line says where the place is, without the column.
func (p pos) line() string {
	e := p.fault("", "")
	return fmt.Sprintf("%s:%d", e.File, e.Line)
}

func sameText(a, b *text) bool {
	return a != nil && b != nil && slices.Equal(strings.Fields(a.value), strings.Fields(b.value))
}

func sameValues(a, b []value) bool {
	return slices.EqualFunc(a, b, func(x, y value) bool { return x.text == y.text && x.quoted == y.quoted })
}

// unused tells of macros and lists that no loaded rule uses. It is called when
// all rules have been checked, and nothing else.
func (b *setBuilder) unused() {
	for _, name := range keysOf(b.checker.macros) {
		if m := b.checker.macros[name]; m.state == fresh && !b.skipped[name] {
			b.warn(m.at, "", false, "", "macro %q is used by no loaded rule", name)
		}
	}
	for _, name := range keysOf(b.checker.lists) {
		if l := b.checker.lists[name]; l.state == fresh {
			b.warn(l.at, "", false, "", "list %q is used by no loaded rule", name)
		}
	}
}

// literal is a comparison, or its negation, that must hold.
type literal struct {
	pred *predicate
	neg  bool
	at   pos
}

func (l literal) String() string {
	s := l.pred.String()
	if l.neg {
		return "not " + s
	}
	return s
}

// String renders a comparison about as it was written.
func (p *predicate) String() string {
	s := p.operand.ref
	if m, ok := p.match.(transformed); ok {
		for _, t := range m.fs {
			s = transformNames[t] + "(" + s + ")"
		}
	}
	s += " " + p.op.String()
	if p.rhs != nil {
		return s + " val(" + p.rhs.ref + ")"
	}
	values := p.values
	if len(values) > 3 {
		values = append(slices.Clone(values[:3]), "…")
	}
	switch {
	case p.op.takesList():
		return s + " (" + strings.Join(values, ", ") + ")"
	case len(values) == 1:
		return s + fmt.Sprintf(" %.60s", values[0])
	}
	return s
}

// conflict is a reason why a condition can never hold: b contradicts a. With
// both the same the comparison contradicts itself.
type conflict struct{ a, b literal }

func (c conflict) String() string {
	if c.a.pred == c.b.pred && c.a.neg == c.b.neg {
		return fmt.Sprintf("%s can never hold", c.b)
	}
	return fmt.Sprintf("%s contradicts %s (%s)", c.b, c.a, c.a.at.line())
}

// maxSteps bounds the search for contradictions in one condition; a condition
// that is larger counts as free of them.
const maxSteps = 200_000

// maxLiterals bounds what is compared pair by pair.
const maxLiterals = 1000

// analysis looks for contradictions in a condition whose names are resolved.
type analysis struct{ steps int }

// never returns a reason why a condition, or its negation, can never hold
// together with the literals of ctx; nil if none is found. What it finds is
// true; it does not find all.
func (a *analysis) never(cd *cond, neg bool, ctx []literal) *conflict {
	before := len(ctx)
	var choices []*cond
	var negs []bool
	var flatten func(cd *cond, neg bool)
	flatten = func(cd *cond, neg bool) {
		switch {
		case cd.kind == exprCompare:
			if cd.pred.missing == "" {
				ctx = append(ctx, literal{cd.pred, neg, cd.at})
			}
		case cd.kind == exprNot:
			flatten(cd.kids[0], !neg)
		case (cd.kind == exprAnd) != neg:
			for _, k := range cd.kids {
				flatten(k, neg)
			}
		default:
			choices, negs = append(choices, cd), append(negs, neg)
		}
	}
	flatten(cd, neg)
	if a.steps += 1 + len(ctx); a.steps > maxSteps {
		return nil
	}
	if c := contradiction(ctx, before); c != nil {
		return c
	}
	ctx = slices.Clip(ctx)
	for i, or := range choices {
		var first *conflict
		for _, k := range or.kids {
			c := a.never(k, negs[i], ctx)
			if c == nil {
				first = nil
				break
			}
			if first == nil {
				first = c
			}
		}
		if first != nil {
			return first
		}
	}
	return nil
}

// contradiction looks for a conflict among literals that all must hold, of
// which those from number fresh on are new.
func contradiction(ls []literal, fresh int) *conflict {
	if len(ls) > maxLiterals {
		return nil
	}
	for i := fresh; i < len(ls); i++ {
		if slices.ContainsFunc(ls[fresh:i], func(l literal) bool { return l.pred.operand.ref == ls[i].pred.operand.ref }) {
			continue
		}
		var same []literal
		for _, l := range ls {
			if l.pred.operand.ref == ls[i].pred.operand.ref {
				same = append(same, l)
			}
		}
		if c := onOneField(same); c != nil {
			return c
		}
	}
	return nil
}

// onOneField is contradiction for literals on one field.
func onOneField(ls []literal) *conflict {
	for i, x := range ls {
		if !x.neg && x.pred.op.takesList() && len(x.pred.values) == 0 && x.pred.rhs == nil {
			return &conflict{x, x}
		}
		for _, y := range ls[:i] {
			if x.neg != y.neg && (x.pred == y.pred || x.neg && x.pred.op == opExists || y.neg && y.pred.op == opExists) {
				return &conflict{y, x}
			}
		}
	}
	p := ls[0].pred
	switch {
	case p.operand.kind == kindText:
		return textConflict(ls)
	case p.operand.kind == kindIP || p.operand.kind == kindNet:
		return netConflict(ls)
	case p.operand.kind != kindList:
		return numberConflict(ls)
	}
	return nil
}

// choice returns the literal that leaves the field the fewest values, of those
// for which is holds; nil if there is none.
func choice(ls []literal, is func(l literal) bool) (best *literal) {
	for i := range ls {
		if !ls[i].neg && ls[i].pred.rhs == nil && is(ls[i]) && (best == nil || len(ls[i].pred.values) < len(best.pred.values)) {
			best = &ls[i]
		}
	}
	return best
}

func isChoice(op operator) bool { return op == opEq || op == opIn || op == opIntersects }

func textConflict(ls []literal) *conflict {
	set := choice(ls, func(l literal) bool { return l.pred.isEquality() && isChoice(l.pred.op) })
	if set != nil {
		last := *set
		for _, v := range set.pred.values {
			killer := *set
			if v != "" || set.pred.operand.empty() {
				i := slices.IndexFunc(ls, func(l literal) bool {
					return l.pred.match != nil && l.pred.rhs == nil && l.pred.match.match(v) == l.neg
				})
				if i < 0 {
					return nil
				}
				killer = ls[i]
			}
			last = killer
		}
		return &conflict{*set, last}
	}
	for _, x := range ls {
		if x.neg {
			continue
		}
		for _, y := range ls {
			if affixConflict(x.pred, y.pred, y.neg) {
				return &conflict{x, y}
			}
		}
	}
	return nil
}

// affixConflict reports whether a value cannot have both what x and what y say
// of its beginning, end or content.
func affixConflict(x, y *predicate, neg bool) bool {
	a, aKind := affix(x)
	b, bKind := affix(y)
	switch {
	case aKind == opNone || bKind == opNone:
		return false
	case !neg && aKind == bKind && aKind == opStartsWith:
		return !strings.HasPrefix(a, b) && !strings.HasPrefix(b, a)
	case !neg && aKind == bKind && aKind == opEndsWith:
		return !strings.HasSuffix(a, b) && !strings.HasSuffix(b, a)
	case !neg:
		return false
	case bKind == opContains:
		return strings.Contains(a, b)
	case aKind != bKind:
		return false
	case bKind == opStartsWith:
		return strings.HasPrefix(a, b)
	default:
		return strings.HasSuffix(a, b)
	}
}

func affix(p *predicate) (string, operator) {
	switch m := p.match.(type) {
	case hasPrefix:
		return string(m), opStartsWith
	case hasSuffix:
		return string(m), opEndsWith
	case contains:
		return string(m), opContains
	}
	return "", opNone
}

func numberConflict(ls []literal) *conflict {
	if !slices.ContainsFunc(ls, func(l literal) bool { return !l.neg }) {
		return nil // the field may be absent
	}
	if ls[0].pred.operand.field.textual && slices.ContainsFunc(ls, func(l literal) bool { return l.pred.match != nil }) {
		return nil
	}
	holds := func(l literal, v int64) bool { return l.pred.rhs != nil || l.pred.matchNumber(v) != l.neg }
	if set := choice(ls, func(l literal) bool { return isChoice(l.pred.op) }); set != nil {
		last := *set
		for _, v := range set.pred.numbers {
			i := slices.IndexFunc(ls, func(l literal) bool { return !holds(l, v) })
			if i < 0 {
				return nil
			}
			last = ls[i]
		}
		return &conflict{*set, last}
	}
	if ls[0].pred.operand.kind == kindBool {
		for _, v := range []int64{0, 1} {
			if !slices.ContainsFunc(ls, func(l literal) bool { return !holds(l, v) }) {
				return nil
			}
		}
		return &conflict{ls[0], ls[len(ls)-1]}
	}
	// No value is named: what is left is one range. The bounds that the
	// literals set are where it can begin and end.
	const lowest, highest = -1 << 63, 1<<63 - 1
	lo, hi := int64(lowest), int64(highest)
	var by, under *literal
	for i := range ls {
		l := &ls[i]
		if l.pred.rhs != nil || len(l.pred.numbers) != 1 {
			continue
		}
		v := l.pred.numbers[0]
		op := l.pred.op
		if l.neg {
			op = map[operator]operator{opLt: opGe, opLe: opGt, opGt: opLe, opGe: opLt}[op]
		}
		switch {
		case op == opGt && v == highest, op == opLt && v == lowest:
			return &conflict{*l, *l}
		case op == opGt && v+1 > lo:
			lo, by = v+1, l
		case op == opGe && v > lo:
			lo, by = v, l
		case op == opLt && v-1 < hi:
			hi, under = v-1, l
		case op == opLe && v < hi:
			hi, under = v, l
		}
	}
	if lo > hi && by != nil && under != nil {
		return &conflict{*by, *under}
	}
	if lo == hi {
		for i := range ls {
			if !holds(ls[i], lo) {
				return &conflict{*cmp.Or(by, under), ls[i]}
			}
		}
	}
	return nil
}

func netConflict(ls []literal) *conflict {
	for i, x := range ls {
		if x.neg || !isChoice(x.pred.op) {
			continue
		}
		for _, y := range ls[:i] {
			if y.neg || !isChoice(y.pred.op) {
				continue
			}
			apart := true
			for _, n := range x.pred.nets {
				for _, m := range y.pred.nets {
					apart = apart && !n.Overlaps(m)
				}
			}
			if apart {
				return &conflict{y, x}
			}
		}
	}
	return nil
}

// contradictions tells of a condition that can never hold, and of parts of it
// that cannot. Parts that come from macros are written for other rules too and
// are not told of. It returns false if the whole can never hold.
func (b *setBuilder) contradictions(def *ruleDef, cd *cond) bool {
	a := &analysis{}
	if c := a.never(cd, false, nil); c != nil {
		b.warn(b.own(def, c.b.at, cd), def.name, false, "", "rule %q can match no event: %s", def.name, c)
		return false
	}
	seen := make(map[*cond]bool)
	var walk func(cd *cond, neg bool)
	walk = func(cd *cond, neg bool) {
		if seen[cd] {
			return
		}
		seen[cd] = true
		if cd.kind == exprNot {
			walk(cd.kids[0], !neg)
			return
		}
		for _, k := range cd.kids {
			if k.at.text != def.condition {
				continue
			}
			if (cd.kind == exprOr) != neg {
				if c := a.never(k, neg, nil); c != nil {
					b.warn(b.own(def, c.b.at, k), def.name, false, "", "a part of the condition of rule %q can never hold: %s", def.name, c)
					continue
				}
			}
			walk(k, neg)
		}
	}
	walk(cd, false)
	return true
}

// own is a place in the rule's own condition: at itself, or where the part cd
// of it stands, if at is in a macro.
func (b *setBuilder) own(def *ruleDef, at pos, cd *cond) pos {
	if at.text == def.condition {
		return at
	}
	if cd.at.text == def.condition {
		return cd.at
	}
	return def.at
}

// apart says why no class of events can match: what the comparisons that all
// must hold want of the classes; "" if one class has them all.
func (b *setBuilder) apart(cd *cond, classes schemas.ClassSet) (why string, at pos) {
	var ls []literal
	var flatten func(cd *cond)
	flatten = func(cd *cond) {
		switch cd.kind {
		case exprAnd:
			for _, k := range cd.kids {
				flatten(k)
			}
		case exprCompare:
			ls = append(ls, literal{cd.pred, false, cd.at})
		}
	}
	flatten(cd)
	left := classes
	for _, l := range ls {
		var has schemas.ClassSet
		for c := range b.compilers {
			if classes.Has(schemas.Class(c)) && b.compilers[c].predicate(l.pred) != edgeFalse {
				has |= schemas.SetOf(schemas.Class(c))
			}
		}
		if left &= has; left != 0 {
			continue
		}
		if has == 0 {
			return fmt.Sprintf("no event has %s", l), l.at
		}
		for _, o := range ls {
			var other schemas.ClassSet
			for c := range b.compilers {
				if classes.Has(schemas.Class(c)) && b.compilers[c].predicate(o.pred) != edgeFalse {
					other |= schemas.SetOf(schemas.Class(c))
				}
			}
			if other&has == 0 {
				return fmt.Sprintf("%s is of %s, %s (%s) of %s", l, classNames(has), o, o.at.line(), classNames(other)), l.at
			}
		}
		return fmt.Sprintf("%s is of %s, and no such event has the rest", l, classNames(has)), l.at
	}
	return "", pos{}
}

func classNames(s schemas.ClassSet) string {
	var names []string
	for _, c := range schemas.Classes() {
		if s.Has(c) {
			names = append(names, c.String())
		}
	}
	return "class " + strings.Join(names, ", ")
}
