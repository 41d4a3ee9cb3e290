package rules

import (
	"fmt"
	"regexp"
)

// outputName finds the names of fields in an output.
var outputName = regexp.MustCompile(`%\d*([a-zA-Z]\w*(?:\.[a-zA-Z]\w*)+)`)

// unknown looks for a field, or a value of evt.type, that no table has, in a
// rule that may be skipped for one (skip-if-unknown-filter): what is "" when
// there is none. Macros that have one are noted.
func (b *setBuilder) unknown(def *ruleDef) (at pos, what string) {
	seen := make(map[string]bool)
	var walk func(e *expr) (pos, string)
	walk = func(e *expr) (pos, string) {
		switch e.kind {
		case exprName:
			m := b.checker.macros[e.name]
			if m == nil || m.tree == nil || seen[e.name] {
				return pos{}, ""
			}
			seen[e.name] = true
			at, what := walk(m.tree)
			if what != "" {
				b.skipped[e.name] = true
			}
			return at, what
		case exprCompare:
			return b.unknownIn(e.cmp)
		}
		for _, k := range e.kids {
			if at, what := walk(k); what != "" {
				return at, what
			}
		}
		return pos{}, ""
	}
	if tree, fault := parse(def.condition); fault == nil {
		if at, what := walk(tree); what != "" {
			return at, what
		}
	}
	for _, x := range def.exceptions {
		for _, f := range x.fields {
			if ref, fault := parseField(f.at.text); fault == nil && !knownField(ref.name) {
				return f.at, fmt.Sprintf("unknown field %q", ref.name)
			}
		}
	}
	for _, m := range outputName.FindAllStringSubmatchIndex(def.output.value, -1) {
		if name := def.output.value[m[2]:m[3]]; !knownField(name) {
			return pos{def.output, m[2]}, fmt.Sprintf("unknown field %q in the output", name)
		}
	}
	return pos{}, ""
}

func knownField(name string) bool {
	_, missing := missingReason(name)
	return missing || fieldTable[name] != nil
}

func (b *setBuilder) unknownIn(cmp *comparison) (pos, string) {
	if !knownField(cmp.field.name) {
		return cmp.field.at, fmt.Sprintf("unknown field %q", cmp.field.name)
	}
	if cmp.rhs != nil && !knownField(cmp.rhs.name) {
		return cmp.rhs.at, fmt.Sprintf("unknown field %q", cmp.rhs.name)
	}
	if cmp.field.name != "evt.type" || len(cmp.field.transforms) > 0 || cmp.op != opEq && cmp.op != opNe && cmp.op != opIn && cmp.op != opIntersects {
		return pos{}, ""
	}
	values, ok := b.checker.expand(cmp.values, 0)
	for _, v := range values {
		if ok && !knownSyscalls[v] {
			return cmp.opAt, fmt.Sprintf("%q is not the name of a system call", v)
		}
	}
	return pos{}, ""
}
