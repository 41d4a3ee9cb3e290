package rules

import (
	"strings"
	"unicode/utf8"
)

// Bounds of what Why tells of one match.
const (
	MaxWhyFields = 64
	MaxWhyValue  = 1024 // bytes of one value
)

// Why returns the values of those fields of the rule's condition that made it
// hold, by their name as it is written there; <NA> for a field that the event
// does not have. Of a disjunction they are the fields of the parts that held,
// of a negation those of the parts that did not. At most MaxWhyFields fields,
// those of the cheaper comparisons first, and of each at most MaxWhyValue
// bytes. Call it before the Evaluator's next batch: it reads what that has
// decided, so that events that match nothing pay nothing for it; later it
// returns nil.
func (m Match) Why() map[string]string {
	s := m.state
	if s == nil || m.epoch != s.epoch {
		return nil
	}
	w := whyWalk{match: m, row: &row{b: m.batch, i: m.Row, docs: &docs{}}, seen: make(map[int]bool), out: make(map[string]string)}
	w.edge(m.root)
	return w.out
}

type whyWalk struct {
	match Match
	row   *row
	seen  map[int]bool // nodes
	out   map[string]string
}

// edge adds what made an edge hold that does: a node is visited with the value
// it has for the row, so that the edge's own sign does not matter.
func (w *whyWalk) edge(e edge) {
	if e == edgeTrue || e == edgeFalse || w.seen[e.id()] || len(w.out) >= MaxWhyFields {
		return
	}
	w.seen[e.id()] = true
	n := &w.match.state.prog.nodes[e.id()]
	if n.pred != nil {
		w.add(&n.pred.operand)
		if n.pred.rhs != nil {
			w.add(n.pred.rhs)
		}
		return
	}
	_, holds := w.value(e.id())
	for _, k := range n.run {
		known, v := w.value(k.id())
		// A conjunction holds by all its parts, and fails by those that fail:
		// one that was not decided had no part in it.
		if known && (holds || v == k.isNot()) {
			w.edge(k)
		}
	}
}

// value returns what was decided of a node for the row.
func (w *whyWalk) value(id int) (known, value bool) {
	s := w.match.state
	st := &s.nodes[id]
	if st.epoch != s.epoch {
		return false, false
	}
	word, bit := w.match.at/64, uint64(1)<<(w.match.at%64)
	return st.known[word]&bit != 0, st.value[word]&bit != 0
}

func (w *whyWalk) add(o *operand) {
	if _, ok := w.out[o.ref]; ok || len(w.out) >= MaxWhyFields {
		return
	}
	v, ok := o.render(w.row)
	if !ok {
		v = notThere
	}
	if len(v) > MaxWhyValue {
		cut := v[:MaxWhyValue-len("…")]
		for len(cut) > 0 && !utf8.RuneStart(v[len(cut)]) {
			cut = cut[:len(cut)-1]
		}
		v = cut + "…"
	}
	w.out[strings.Clone(o.ref)] = strings.Clone(v)
}
