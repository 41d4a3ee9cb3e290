package rules

import (
	"slices"
	"strings"

	"picket/schemas"
)

// What the loaded rules need of the sensors: classes, system calls, and the
// paths whose opens for reading are to be events.

// Syscalls returns the values of evt.type that enabled rules name, or whose
// evt.action they name, sorted.
func (s *Set) Syscalls() []string { return s.syscalls }

// WatchedPaths returns the paths whose opens for reading the enabled rules
// need, each standing for itself and what is below it, sorted and without any
// that another contains. Opens for writing are events wherever they are. A
// rule that asks for reads of any path is not counted: Load warns of it.
func (s *Set) WatchedPaths() []string { return s.watched }

// selection derives what the set needs.
func (s *Set) selection(b *setBuilder) {
	for _, p := range s.programs {
		if p == nil {
			continue
		}
		for _, g := range p.groups {
			for _, r := range g.rules {
				p.syscalls(r.root, func(v string) {
					if !slices.Contains(s.syscalls, v) && slices.Contains(classSyscalls[p.class], v) {
						s.syscalls = append(s.syscalls, v)
					}
				})
			}
		}
	}
	slices.Sort(s.syscalls)
	p := s.programs[schemas.File]
	if p == nil {
		return
	}
	w := watcher{p: p, memo: make(map[edge]reads)}
	var all []string
	for _, g := range p.groups {
		for _, r := range g.rules {
			need := w.edge(r.root)
			if need.anywhere {
				if !p.asksFor(r.root, schemas.FileRead) {
					continue
				}
				def := b.rules[r.rule.Name]
				b.warn(def.at, r.rule.Name, false, "compare fd.name or fd.directory with paths, or ask for evt.is_open_write", "rule %q sees files opened for writing only: it names no path whose reads could be watched", r.rule.Name)
				continue
			}
			all = append(all, need.paths...)
		}
	}
	s.watched = minimal(all)
}

// syscalls calls f for every call that evt.type, or its action that evt.action,
// is compared with below e.
func (p *program) syscalls(e edge, f func(string)) {
	if e == edgeTrue || e == edgeFalse {
		return
	}
	n := &p.nodes[e.id()]
	for _, k := range n.kids {
		p.syscalls(k, f)
	}
	switch {
	case n.pred == nil:
	case n.pred.operand.ref == "evt.type":
		for _, v := range n.pred.values {
			f(v)
		}
	case n.pred.operand.ref == "evt.action":
		for _, call := range classSyscalls[p.class] {
			if slices.ContainsFunc(actionsOf(p.class, call), func(a string) bool { return slices.Contains(n.pred.values, a) }) {
				f(call)
			}
		}
	}
}

// asksFor reports whether a comparison below e reads the column.
func (p *program) asksFor(e edge, id schemas.FieldID) bool {
	if e == edgeTrue || e == edgeFalse {
		return false
	}
	n := &p.nodes[e.id()]
	if n.pred != nil {
		r := n.pred.operand.reader(p.class)
		return r != nil && r.isColumn && r.column == id
	}
	return slices.ContainsFunc(n.kids, func(k edge) bool { return p.asksFor(k, id) })
}

// minimal sorts paths and drops those that another contains.
func minimal(paths []string) []string {
	slices.Sort(paths)
	paths = slices.Compact(paths)
	var out []string
	for _, p := range paths {
		if !slices.ContainsFunc(out, func(q string) bool { return q == "/" || p == q || strings.HasPrefix(p, q+"/") }) {
			out = append(out, p)
		}
	}
	return out
}

// reads says which opens for reading alone a condition can hold for: below
// some paths, or anywhere.
type reads struct {
	anywhere bool
	paths    []string
}

// maxWatched bounds the paths of one condition; with more it counts as
// anywhere.
const maxWatched = 512

// watcher finds what reads a condition needs. For a condition it takes any one
// conjunct's paths, the fewest; for a disjunction all of them.
type watcher struct {
	p    *program
	memo map[edge]reads
}

func (w *watcher) edge(e edge) reads {
	switch e {
	case edgeTrue:
		return reads{anywhere: true}
	case edgeFalse:
		return reads{}
	}
	if r, ok := w.memo[e]; ok {
		return r
	}
	var r reads
	switch n := &w.p.nodes[e.id()]; {
	case n.pred != nil:
		r = readsOf(n.pred, e.isNot())
	case e.isNot():
		for _, k := range n.kids {
			kid := w.edge(k.not())
			r.anywhere = r.anywhere || kid.anywhere
			r.paths = append(r.paths, kid.paths...)
		}
		slices.Sort(r.paths)
		r.paths = slices.Compact(r.paths)
	default:
		r.anywhere = true
		for _, k := range n.kids {
			kid := w.edge(k)
			if !kid.anywhere && (r.anywhere || len(kid.paths) < len(r.paths)) {
				r = kid
			}
		}
	}
	if r.anywhere || len(r.paths) > maxWatched {
		r = reads{anywhere: true}
	}
	w.memo[e] = r
	return r
}

// readsOf gives the reads that a comparison, or its negation, can hold for.
func readsOf(p *predicate, not bool) reads {
	anywhere := reads{anywhere: true}
	r := p.operand.reader(schemas.File)
	if p.operand.kind == kindBool && r != nil && r.isColumn && (p.op == opEq || p.op == opNe) {
		holds := (p.numbers[0] == 1) == (p.op == opEq) != not // for true
		switch {
		case r.column == schemas.FileWrite && holds, r.column == schemas.FileCreated && holds, r.column == schemas.FileRead && !holds:
			return reads{}
		}
		return anywhere
	}
	if not {
		return anywhere
	}
	var out []string
	add := func(path string) bool {
		path = "/" + strings.Trim(path, "/")
		out = append(out, path)
		return true
	}
	for _, v := range p.values {
		if !strings.HasPrefix(v, "/") {
			return anywhere
		}
		ok := false
		switch p.operand.ref {
		case "fd.name", "fd.nameraw", "fd.paths", "evt.arg.name":
			switch p.op {
			case opEq, opIn, opIntersects:
				ok = add(v)
			case opStartsWith:
				ok = add(v[:strings.LastIndexByte(v, '/')])
			case opGlob, opPmatch:
				if i := strings.IndexAny(v, `*?[\`); i >= 0 {
					v = v[:strings.LastIndexByte(v[:i], '/')]
				}
				ok = add(v)
			}
		case "fd.directory":
			switch p.op {
			case opEq, opIn, opIntersects:
				ok = add(v)
			case opStartsWith:
				ok = add(v[:strings.LastIndexByte(v, '/')])
			}
		}
		if !ok {
			return anywhere
		}
	}
	if len(out) == 0 {
		return anywhere
	}
	return reads{paths: out}
}
