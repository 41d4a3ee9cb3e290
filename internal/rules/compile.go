package rules

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"picket/schemas"
)

// A program is what evaluates the rules of one event class. Its nodes are
// either predicates or conjunctions of edges; an edge may negate, which makes
// disjunctions conjunctions too. Equal nodes are one node, whatever rules they
// come from, so that each is evaluated once for a batch.
type program struct {
	class schemas.Class
	nodes []node
	slots []slot
	// groups share a guard: a predicate on evt.type that every rule of the
	// group needs. Rules without one are in a group with guard edgeTrue.
	groups []group
}

// edge names a node, or its negation when negative: node n is n+1 or -(n+1).
// edgeTrue is 1<<30, edgeFalse its negation.
type edge int32

const edgeTrue, edgeFalse edge = 1 << 30, -1 << 30

func (e edge) not() edge   { return -e }
func (e edge) id() int     { return int(max(e, -e)) - 1 }
func (e edge) isNot() bool { return e < 0 }

// node is a predicate, or a conjunction when pred is nil.
type node struct {
	pred    *predicate
	slot    int // what the predicate reads
	rhs     int // what val() reads
	indexed bool
	kids    []edge
	run     []edge // kids as they are evaluated: see merge
	cost    int
	// effort is above 0 when the slot's automaton finds the predicate's needles:
	// the bytes that it reads in the time of one comparison without it. Where not
	// exact, a value that has a needle is compared yet.
	effort int
	exact  bool
}

// group is rules with a common guard.
type group struct {
	guard edge
	rules []ruleRoot
}

type ruleRoot struct {
	rule *Rule
	root edge
}

// slot is something that predicates of a program read: one operand, or a
// column that computed operands have as their key.
type slot struct {
	kind   kind
	reader *reader
	arg    *argument
	empty  bool  // empty text is a value
	keys   []int // slots of reader.keys
	// index finds the nodes that compare the slot with a value by =, in or
	// intersects, so that a distinct value is looked up once for all of them.
	index  map[string][]int32
	search *automaton // nil: of too few
}

// compiler builds the program of one class.
type compiler struct {
	program
	byKey  map[string]edge // nodes
	bySlot map[string]int
	conds  map[*cond]edge
}

func newCompiler(c schemas.Class) *compiler {
	return &compiler{
		program: program{class: c},
		byKey:   make(map[string]edge),
		bySlot:  make(map[string]int),
		conds:   make(map[*cond]edge),
	}
}

// add takes a rule with a compiled condition into the program.
func (c *compiler) add(r *Rule, root edge) {
	guard := c.guard(root)
	i := slices.IndexFunc(c.groups, func(g group) bool { return g.guard == guard })
	if i < 0 {
		i = len(c.groups)
		c.groups = append(c.groups, group{guard: guard})
	}
	c.groups[i].rules = append(c.groups[i].rules, ruleRoot{r, root})
}

// absent returns a predicate on a missing field that the edge depends on, or nil.
func (c *compiler) absent(e edge) *predicate {
	seen := make(map[int]bool)
	var walk func(e edge) *predicate
	walk = func(e edge) *predicate {
		if e == edgeTrue || e == edgeFalse || seen[e.id()] {
			return nil
		}
		seen[e.id()] = true
		n := &c.nodes[e.id()]
		if n.pred != nil {
			if n.pred.missing != "" {
				return n.pred
			}
			return nil
		}
		for _, k := range n.kids {
			if p := walk(k); p != nil {
				return p
			}
		}
		return nil
	}
	return walk(e)
}

// guard returns the comparison of evt.type that a root needs, or edgeTrue.
func (c *compiler) guard(root edge) edge {
	if root == edgeTrue || root.isNot() {
		return edgeTrue
	}
	n := &c.nodes[root.id()]
	if n.pred != nil {
		n = &node{kids: []edge{root}}
	}
	for _, k := range n.kids {
		if !k.isNot() && c.nodes[k.id()].pred != nil && c.nodes[k.id()].pred.operand.ref == "evt.type" {
			return k
		}
	}
	return edgeTrue
}

// cond compiles a condition to an edge.
func (c *compiler) cond(cd *cond) edge {
	if e, ok := c.conds[cd]; ok {
		return e
	}
	var e edge
	switch cd.kind {
	case exprCompare:
		e = c.predicate(cd.pred)
	case exprNot:
		e = c.cond(cd.kids[0]).not()
	case exprAnd:
		kids := make([]edge, len(cd.kids))
		for i, k := range cd.kids {
			kids[i] = c.cond(k)
		}
		e = c.and(kids)
	default: // exprOr
		kids := make([]edge, len(cd.kids))
		for i, k := range cd.kids {
			kids[i] = c.cond(k).not()
		}
		e = c.and(kids).not()
	}
	c.conds[cd] = e
	return e
}

// and returns the conjunction of edges: constants folded, nested conjunctions
// taken in, equal ones dropped, the cheap before the expensive.
func (c *compiler) and(kids []edge) edge {
	var flat []edge
	for _, k := range kids {
		switch {
		case k == edgeFalse:
			return edgeFalse
		case k == edgeTrue:
		case !k.isNot() && c.nodes[k.id()].pred == nil:
			flat = append(flat, c.nodes[k.id()].kids...)
		default:
			flat = append(flat, k)
		}
	}
	flat = c.mergeEquals(flat)
	slices.SortFunc(flat, func(a, b edge) int {
		return cmp.Or(cmp.Compare(c.nodes[a.id()].cost, c.nodes[b.id()].cost), cmp.Compare(a.id(), b.id()), cmp.Compare(a, b))
	})
	flat = slices.Compact(flat)
	for i := 1; i < len(flat); i++ {
		if flat[i] == flat[i-1].not() {
			return edgeFalse
		}
	}
	switch len(flat) {
	case 0:
		return edgeTrue
	case 1:
		return flat[0]
	}
	var key strings.Builder
	key.WriteByte('&')
	cost := 0
	for _, k := range flat {
		key.WriteString(strconv.Itoa(int(k)))
		key.WriteByte(' ')
		cost = min(cost+c.nodes[k.id()].cost, maxCost)
	}
	return c.node(key.String(), node{kids: flat, cost: cost})
}

// mergeEquals replaces comparisons of one field with several values, none of
// which may hold (not a = x and not a = y …, which is how a disjunction is
// kept), by one comparison with the set.
func (c *compiler) mergeEquals(flat []edge) []edge {
	var first map[int]int // slot → place in out
	var values map[int][]string
	for i, k := range flat {
		if s, ok := c.equality(k); ok {
			if first == nil {
				first, values = make(map[int]int), make(map[int][]string)
			}
			if _, seen := first[s]; !seen {
				first[s] = i
			}
			values[s] = append(values[s], c.nodes[k.id()].pred.values...)
		}
	}
	counts := make(map[int]int)
	for _, k := range flat {
		if s, ok := c.equality(k); ok {
			counts[s]++
		}
	}
	var out []edge
	for i, k := range flat {
		s, ok := c.equality(k)
		switch {
		case !ok || counts[s] < 2 || len(values[s]) > maxMerged:
			out = append(out, k)
		case first[s] == i:
			p := &predicate{operand: c.nodes[k.id()].pred.operand, op: opIn, values: values[s], match: setOf(values[s])}
			p.key = p.canonical(nil)
			out = append(out, c.predicate(p).not())
		}
	}
	return out
}

// maxMerged bounds the set that mergeEquals makes, which is not shared with
// other rules: large lists are better left as they are.
const maxMerged = 64

// equality reports whether an edge says that a text field has none of some
// values, and the slot it reads.
func (c *compiler) equality(k edge) (slot int, ok bool) {
	if !k.isNot() || !c.nodes[k.id()].pred.isEquality() {
		return 0, false
	}
	return c.nodes[k.id()].slot, true
}

// isEquality reports whether the predicate says that a text field has one of
// its values.
func (p *predicate) isEquality() bool {
	if p == nil || p.missing != "" || p.operand.kind != kindText || p.rhs != nil || p.op != opEq && p.op != opIn && p.op != opIntersects {
		return false
	}
	_, changed := p.match.(transformed)
	return !changed
}

// finish makes the program ready to be evaluated, when all rules are in it.
func (c *compiler) finish() {
	c.merge()
	live := c.live()
	c.index(live)
	c.search(live)
}

// live reports the nodes that the rules' roots lead to: comparisons of rules that
// the class decides, and those that have been merged, are left behind.
func (c *compiler) live() []bool {
	live := make([]bool, len(c.nodes))
	var walk func(e edge)
	walk = func(e edge) {
		if e == edgeTrue || e == edgeFalse || live[e.id()] {
			return
		}
		live[e.id()] = true
		for _, k := range c.nodes[e.id()].run {
			walk(k)
		}
	}
	for _, g := range c.groups {
		walk(g.guard)
		for _, r := range g.rules {
			walk(r.root)
		}
	}
	return live
}

// merge makes one comparison of those of a conjunction that look for texts in one
// slot and none of which may hold, which is how a disjunction is kept: its rows
// are then visited once. The kids stay, for those who ask what a rule says.
func (c *compiler) merge() {
	for i := range len(c.nodes) {
		places := make(map[int]int) // slot → place in run
		var run []edge
		merged := make(map[int][]*predicate)
		for _, k := range c.nodes[i].kids {
			slot, ok := c.merges(k)
			if !ok {
				run = append(run, k)
				continue
			}
			if merged[slot] == nil {
				places[slot] = len(run)
				run = append(run, k)
			}
			merged[slot] = append(merged[slot], c.nodes[k.id()].pred)
		}
		for slot, ps := range merged {
			if len(ps) == 1 {
				continue
			}
			all := make(anyOf, len(ps))
			key := make([]string, len(ps))
			for j, p := range ps {
				all[j], key[j] = p.match, strconv.Itoa(len(p.key))+":"+p.key
			}
			p := &predicate{key: "any " + strings.Join(key, " "), operand: ps[0].operand, op: opContains, match: all}
			first := &c.nodes[run[places[slot]].id()]
			run[places[slot]] = c.node(p.key, node{pred: p, slot: slot, rhs: -1, cost: first.cost}).not()
		}
		c.nodes[i].run = run
	}
}

// merges reports whether merge takes the edge, and the slot that it reads.
// Equality of texts is left to mergeEquals and the index.
func (c *compiler) merges(k edge) (slot int, ok bool) {
	n := &c.nodes[k.id()]
	if !k.isNot() || !n.pred.searches() || n.pred.isEquality() {
		return 0, false
	}
	_, exact := needlesOf(n.pred.match)
	return n.slot, exact
}

// searches reports whether the predicate looks for texts in a text or in any one
// of a list.
func (p *predicate) searches() bool {
	return p != nil && p.missing == "" && p.rhs == nil && p.match != nil && !p.all && p.op != opExists &&
		(p.operand.kind == kindText || p.operand.kind == kindList)
}

// minNeedles is from how many needles on a slot has an automaton.
const minNeedles = 4

// search builds the automata.
func (c *compiler) search(live []bool) {
	type wanted struct {
		node    int
		needles []needle
		exact   bool
	}
	want := make([][]wanted, len(c.slots))
	count := make([]int, len(c.slots))
	for i, n := range c.nodes {
		if !live[i] || n.indexed || !n.pred.searches() {
			continue
		}
		if ns, exact := needlesOf(n.pred.match); len(ns) > 0 {
			want[n.slot] = append(want[n.slot], wanted{i, ns, exact})
			count[n.slot] += len(ns)
		}
	}
	room := maxTransitions
	for slot := range want {
		if count[slot] < minNeedles {
			continue
		}
		b := newAutomatonBuilder()
		for _, w := range want[slot] {
			if !b.fits(w.needles, room) {
				continue
			}
			n := &c.nodes[w.node]
			n.exact = w.exact
			for _, x := range w.needles {
				b.add(w.node, x)
				n.effort += x.effort()
			}
			if _, ok := n.pred.match.(regexMatch); ok {
				n.effort = effortRegex
			}
		}
		room -= b.transitions()
		c.slots[slot].search = b.build()
	}
}

// index builds the indices of the slots that read a dictionary as it is.
func (c *compiler) index(live []bool) {
	for i := range c.nodes {
		n := &c.nodes[i]
		if !live[i] || !n.pred.isEquality() {
			continue
		}
		sl := &c.slots[n.slot]
		if !sl.reader.isColumn || sl.reader.column.Field().Type != schemas.Name {
			continue
		}
		n.indexed = true
		if sl.index == nil {
			sl.index = make(map[string][]int32)
		}
		for _, v := range n.pred.values {
			if ids := sl.index[v]; len(ids) == 0 || ids[len(ids)-1] != int32(i) {
				sl.index[v] = append(ids, int32(i))
			}
		}
	}
}

func (c *compiler) node(key string, n node) edge {
	if e, ok := c.byKey[key]; ok {
		return e
	}
	c.nodes = append(c.nodes, n)
	e := edge(len(c.nodes))
	c.byKey[key] = e
	return e
}

// Costs order the conjuncts of a node; the figures are rough ratios.
const (
	costType    = 1 // evt.type: guards
	costNumber  = 2
	costName    = 4
	costText    = 8
	costAddress = 8
	costCompute = 16
	costList    = 24
	costSearch  = 12 // more, for operators that look at the whole value
	costJSON    = 400
	maxCost     = 1 << 20
)

// predicate compiles a comparison: a constant where the class decides it.
func (c *compiler) predicate(p *predicate) edge {
	if e, ok := c.byKey[p.key]; ok {
		return e
	}
	if p.missing != "" {
		return c.node(p.key, node{pred: p, slot: -1, rhs: -1, cost: maxCost})
	}
	r := p.operand.reader(c.class)
	if r == nil || p.op.takesList() && len(p.values) == 0 && p.rhs == nil {
		return edgeFalse
	}
	if r.isConst && p.rhs == nil {
		return truth(p.match.match(r.constant))
	}
	if p.operand.ref == "evt.type" && (p.op == opEq || p.op == opIn || p.op == opIntersects) && !reportsAny(c.class, p.values) {
		return edgeFalse
	}
	if p.operand.kind == kindText && p.operand.empty() && p.match == (textPresent{}) {
		return edgeTrue
	}
	n := node{pred: p, slot: c.slot(&p.operand, r), rhs: -1, cost: c.costOf(p, r)}
	if p.rhs != nil {
		rr := p.rhs.reader(c.class)
		if rr == nil {
			return edgeFalse
		}
		n.rhs = c.slot(p.rhs, rr)
	}
	return c.node(p.key, n)
}

func truth(b bool) edge {
	if b {
		return edgeTrue
	}
	return edgeFalse
}

func (c *compiler) costOf(p *predicate, r *reader) int {
	cost := costText
	switch k := p.operand.kind; {
	case p.operand.ref == "evt.type":
		return costType
	case k == kindInt || k == kindUint || k == kindBool:
		cost = costNumber
	case k == kindIP || k == kindNet:
		cost = costAddress
	case k == kindList:
		cost = costList
	case r.isColumn && r.column.Field().Type == schemas.Name:
		cost = costName
	case !r.isColumn:
		cost = costCompute
	}
	if c.class == schemas.Audit && !r.isColumn && len(r.keys) == 0 {
		cost = costJSON
	}
	switch p.op {
	case opContains, opIContains, opGlob, opIGlob, opPmatch:
		cost += costSearch
	case opRegex:
		cost += 8 * costSearch
	}
	return cost
}

// slot returns the number of the slot for an operand.
func (c *compiler) slot(o *operand, r *reader) int {
	key := o.ref + " " + o.kind.String()
	if r.isColumn {
		key = "column " + r.column.String() + " " + o.kind.String()
	}
	if o.empty() {
		key += " empty"
	}
	if i, ok := c.bySlot[key]; ok {
		return i
	}
	s := slot{kind: o.kind, reader: r, arg: &o.arg, empty: o.empty()}
	for _, id := range r.keys {
		s.keys = append(s.keys, c.column(id))
	}
	c.slots = append(c.slots, s)
	c.bySlot[key] = len(c.slots) - 1
	return len(c.slots) - 1
}

// column returns the slot of a column that is a key.
func (c *compiler) column(id schemas.FieldID) int {
	k := kindText
	if t := id.Field().Type; t == schemas.List || t == schemas.Names {
		k = kindList
	}
	key := "column " + id.String() + " " + k.String()
	if i, ok := c.bySlot[key]; ok {
		return i
	}
	c.slots = append(c.slots, slot{kind: k, reader: &reader{classes: schemas.SetOf(c.class), column: id, isColumn: true}})
	c.bySlot[key] = len(c.slots) - 1
	return len(c.slots) - 1
}
