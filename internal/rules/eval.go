package rules

import (
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/apache/arrow/go/v16/arrow/array"
	"github.com/zeebo/xxh3"

	"picket/internal/batch"
	"picket/schemas"
)

// Evaluator evaluates the rules of a set over batches. It is used by one
// goroutine at a time and keeps its memory between batches; the last batch
// stays referenced until the next.
type Evaluator struct {
	states []*state // by class; nil where the set has no rule
}

// NewEvaluator returns an evaluator of the set's enabled rules.
func (s *Set) NewEvaluator() *Evaluator {
	ev := &Evaluator{states: make([]*state, len(s.programs))}
	for i, p := range s.programs {
		if p != nil {
			ev.states[i] = &state{prog: p, nodes: make([]nodeState, len(p.nodes)), found: make([]found, len(p.nodes)), slots: make([]slotState, len(p.slots))}
		}
	}
	return ev
}

// maxRows is how many rows are evaluated at once: positions fit 16 bits.
const maxRows = 1 << 15

// Eval calls raise for every row that a rule matches: by row, and for one row
// in load order of the rules. Rules that look at several events, and those with
// raise: false, are left out. Nothing is allocated per row that matches no rule.
func (ev *Evaluator) Eval(b *batch.Batch, raise func(Match)) { ev.EvalFeeds(b, raise, nil) }

// EvalFeeds is Eval, and calls feed for every row that feeds the memory of a rule
// that looks at several events.
func (ev *Evaluator) EvalFeeds(b *batch.Batch, raise func(Match), feed func(Feed)) {
	s := ev.states[b.Class()]
	if s == nil || b.Rows() == 0 {
		return
	}
	if b.Rows() <= maxRows {
		s.eval(b, b, 0, raise, feed)
		return
	}
	for from := 0; from < b.Rows(); from += maxRows {
		s.eval(b.Slice(from, min(from+maxRows, b.Rows())), b, from, raise, feed)
	}
}

// state is the scratch memory of one program. Everything in it belongs to the
// batch whose epoch it bears.
type state struct {
	prog  *program
	nodes []nodeState
	found []found // by node
	slots []slotState
	epoch uint32
	row   row
	docs  docs
	rows  int
	words int // of a bitmap of rows
	bump  bump
	arena arena
	hits  []hit
	buf   []byte // of text readers
	vals  list   // of list readers
	zeros []uint16
}

// nodeState is what is known of a node: known has the rows for which value has
// been decided. Of a predicate on text or lists, entKnown and entValue have
// the same for the distinct values.
type nodeState struct {
	epoch              uint32
	known, value       []uint64
	entKnown, entValue []uint64
}

// found has, for an indexed node, the values of its slot that it compares
// with and that this batch has; for one of the slot's automaton, of the values
// that this has read those in which a needle is.
type found struct {
	epoch  uint32
	values []uint64
}

// hit is a rule and the rows it matches.
type hit struct {
	rule *Rule
	root edge
	rows []uint64
}

// bump hands out zeroed bitmaps until the next reset.
type bump struct {
	chunks [][]uint64
	chunk  int // in use
	at     int
}

const bumpChunk = 1 << 15

func (b *bump) reset() { b.chunk, b.at = 0, 0 }

func (b *bump) take(n int) []uint64 {
	for {
		if b.chunk == len(b.chunks) {
			b.chunks = append(b.chunks, make([]uint64, max(bumpChunk, n)))
		}
		if c := b.chunks[b.chunk]; b.at+n <= len(c) {
			out := c[b.at : b.at+n : b.at+n]
			b.at += n
			clear(out)
			return out
		}
		b.chunk++
		b.at = 0
	}
}

// arena keeps the bytes of computed values until the next reset.
type arena struct {
	chunks [][]byte
	chunk  int
	at     int
}

const arenaChunk = 1 << 16

func (a *arena) reset() { a.chunk, a.at = 0, 0 }

func (a *arena) keep(v []byte) string {
	if len(v) == 0 {
		return ""
	}
	for {
		if a.chunk == len(a.chunks) {
			a.chunks = append(a.chunks, make([]byte, max(arenaChunk, len(v))))
		}
		if c := a.chunks[a.chunk]; a.at+len(v) <= len(c) {
			n := copy(c[a.at:], v)
			out := unsafeString(c[a.at : a.at+n])
			a.at += n
			return out
		}
		a.chunk++
		a.at = 0
	}
}

func (s *state) eval(b, whole *batch.Batch, offset int, raise func(Match), feed func(Feed)) {
	s.epoch++
	if s.epoch == 0 { // wrapped: no state may look current
		clear(s.nodes)
		clear(s.found)
		for i := range s.slots {
			s.slots[i].epoch = 0
		}
		s.epoch = 1
	}
	s.rows, s.words = b.Rows(), (b.Rows()+63)/64
	s.bump.reset()
	s.arena.reset()
	s.docs.reset(s.rows)
	s.row.b, s.row.docs = b, &s.docs
	if len(s.zeros) < s.rows {
		s.zeros = make([]uint16, s.rows)
	}
	all := s.bump.take(s.words)
	for i := range all {
		all[i] = ^uint64(0)
	}
	if r := s.rows % 64; r != 0 {
		all[s.words-1] = 1<<r - 1
	}
	s.hits = s.hits[:0]
	var matched []uint64
	for i := range s.prog.groups {
		g := &s.prog.groups[i]
		sel := all
		if g.guard != edgeTrue {
			if sel = s.edge(g.guard, all); isZero(sel) {
				continue
			}
		}
		for _, r := range g.rules {
			rows := sel
			if r.root != edgeTrue {
				if rows = s.edge(r.root, sel); isZero(rows) {
					continue
				}
			}
			if matched == nil {
				matched = s.bump.take(s.words)
			}
			for w := range matched {
				matched[w] |= rows[w]
			}
			s.hits = append(s.hits, hit{r.rule, r.root, rows})
		}
	}
	if len(s.hits) == 0 {
		return
	}
	slices.SortFunc(s.hits, func(a, b hit) int { return a.rule.index - b.rule.index })
	for w, word := range matched {
		for ; word != 0; word &= word - 1 {
			bit := bits.TrailingZeros64(word)
			for _, h := range s.hits {
				if h.rows[w]>>bit&1 != 0 {
					h.rule.found(Match{Rule: h.rule, Row: offset + w*64 + bit, batch: whole, state: s, epoch: s.epoch, at: w*64 + bit, root: h.root}, raise, feed)
				}
			}
		}
	}
}

// found hands a match on: as an alert, and to those who remember it.
func (r *Rule) found(m Match, raise func(Match), feed func(Feed)) {
	if r.Raises && r.Correlation == nil {
		raise(m)
	}
	if feed == nil {
		return
	}
	for i := range r.feeds {
		m.Rule = r.feeds[i].rule
		feed(Feed{m, &r.feeds[i]})
	}
}

func isZero(b []uint64) bool {
	for _, w := range b {
		if w != 0 {
			return false
		}
	}
	return true
}

// edge returns those rows of need for which the edge holds, in a bitmap of its
// own.
func (s *state) edge(e edge, need []uint64) []uint64 {
	v := s.node(e.id(), need)
	out := s.bump.take(s.words)
	for i := range out {
		if e.isNot() {
			out[i] = need[i] &^ v[i]
		} else {
			out[i] = need[i] & v[i]
		}
	}
	return out
}

// node decides a node for the rows of need, where it is not yet, and returns
// its value, which is valid for those rows.
func (s *state) node(id int, need []uint64) []uint64 {
	st := &s.nodes[id]
	if st.epoch != s.epoch {
		*st = nodeState{epoch: s.epoch, known: s.bump.take(s.words), value: s.bump.take(s.words)}
	}
	todo := s.bump.take(s.words)
	var left uint64
	for i := range todo {
		todo[i] = need[i] &^ st.known[i]
		left |= todo[i]
		st.known[i] |= todo[i]
	}
	if left == 0 {
		return st.value
	}
	n := &s.prog.nodes[id]
	if n.pred != nil {
		s.predicate(id, st, todo)
		return st.value
	}
	for _, k := range n.run {
		v := s.node(k.id(), todo)
		left = 0
		if k.isNot() {
			for i := range todo {
				todo[i] &^= v[i]
				left |= todo[i]
			}
		} else {
			for i := range todo {
				todo[i] &= v[i]
				left |= todo[i]
			}
		}
		if left == 0 {
			return st.value
		}
	}
	for i := range todo {
		st.value[i] |= todo[i]
	}
	return st.value
}

// predicate decides a comparison for the rows of todo.
func (s *state) predicate(id int, st *nodeState, todo []uint64) {
	n := &s.prog.nodes[id]
	p := n.pred
	switch sl := &s.prog.slots[n.slot]; {
	case p.rhs != nil && sl.kind == kindText:
		s.comparePairs(n, st, todo)
	case p.rhs != nil:
		s.compareNumbers(n, st, todo)
	case sl.kind == kindText:
		v := s.text(n.slot, todo)
		if n.indexed && v.known == nil {
			s.lookup(sl, v)
			if f := &s.found[id]; f.epoch == s.epoch {
				inSet(st.value, todo, v.idx, f.values)
			}
			return
		}
		s.entries(st, todo, v.idx, v.limit, func(e uint16) bool {
			t := v.ents[e]
			if n.effort > 0 && t != "" && s.scanned(n, v, e, len(t)) {
				return s.has(id, e) && (n.exact || p.match.match(t))
			}
			return (t != "" || sl.empty) && p.match.match(t)
		})
	case sl.kind == kindList:
		v := s.list(n.slot, todo)
		s.entries(st, todo, v.idx, v.limit, func(e uint16) bool {
			values := v.elems[v.spans[e][0]:v.spans[e][1]]
			if n.effort > 0 && s.scanned(n, v, e, sizeOf(values)) {
				return s.has(id, e) && (n.exact || p.matchList(values))
			}
			return p.matchList(values)
		})
	case sl.kind == kindIP || sl.kind == kindNet:
		s.addresses(n, st, todo)
	default:
		s.numbers(n, st, todo)
	}
}

// lookup finds all values of the slot in its index, once for the batch.
func (s *state) lookup(sl *slot, v *slotState) {
	if v.indexed {
		return
	}
	v.indexed = true
	for e, t := range v.ents {
		if t == "" && !sl.empty {
			continue
		}
		for _, id := range sl.index[t] {
			f := &s.found[id]
			if f.epoch != s.epoch {
				f.epoch, f.values = s.epoch, s.bump.take((v.limit+63)/64)
			}
			f.values[e>>6] |= 1 << (e & 63)
		}
	}
}

// scanned reports whether the slot's automaton has read value e, of size bytes.
// It reads a value once the comparisons made without it have taken as long as it
// will: whatever follows, that is at most twice the shorter way.
func (s *state) scanned(n *node, v *slotState, e uint16, size int) bool {
	if !v.searched {
		v.searched = true
		if cap(v.spent) < v.limit {
			v.spent = make([]uint16, v.limit)
		}
		v.spent = v.spent[:v.limit]
		clear(v.spent)
	}
	if v.spent[e] == spentAll {
		return true
	}
	if spent := int(v.spent[e]) + n.effort; spent < min(size, spentAll) {
		v.spent[e] = uint16(spent)
		return false
	}
	v.spent[e] = spentAll
	found := func(id int32) {
		f := &s.found[id]
		if f.epoch != s.epoch {
			f.epoch, f.values = s.epoch, s.bump.take((v.limit+63)/64)
		}
		f.values[e>>6] |= 1 << (e & 63)
	}
	sl := &s.prog.slots[n.slot]
	if sl.kind == kindText {
		sl.search.scan(v.ents[e], found)
		return true
	}
	for _, t := range v.elems[v.spans[e][0]:v.spans[e][1]] {
		sl.search.scan(t, found)
	}
	return true
}

// spentAll stands in slotState.spent for a value that has been read.
const spentAll = 1<<16 - 1

// has reports whether value e has been found to have a needle of the node.
func (s *state) has(id int, e uint16) bool {
	f := &s.found[id]
	return f.epoch == s.epoch && f.values[e>>6]>>(e&63)&1 != 0
}

func sizeOf(values []string) int {
	n := 0
	for _, v := range values {
		n += len(v)
	}
	return n
}

// inSet adds to value the rows of todo whose value is in the set.
func inSet(value, todo []uint64, idx []uint16, set []uint64) {
	for w, word := range todo {
		for ; word != 0; word &= word - 1 {
			bit := bits.TrailingZeros64(word)
			e := idx[w*64+bit]
			value[w] |= (set[e>>6] >> (e & 63) & 1) << bit
		}
	}
}

// entries decides rows by their distinct value: idx has the number of each
// row's value, below limit; each value is matched once.
func (s *state) entries(st *nodeState, todo []uint64, idx []uint16, limit int, match func(e uint16) bool) {
	if st.entKnown == nil {
		st.entKnown, st.entValue = s.bump.take((limit+63)/64), s.bump.take((limit+63)/64)
	}
	for w, word := range todo {
		for ; word != 0; word &= word - 1 {
			bit := bits.TrailingZeros64(word)
			e := idx[w*64+bit]
			m := uint64(1) << (e & 63)
			if st.entKnown[e>>6]&m == 0 {
				st.entKnown[e>>6] |= m
				if match(e) {
					st.entValue[e>>6] |= m
				}
			}
			st.value[w] |= st.entValue[e>>6] >> (e & 63) & 1 << bit
		}
	}
}

func (p *predicate) matchList(values []string) bool {
	if p.op == opExists {
		return len(values) > 0
	}
	for _, v := range values {
		if p.match.match(v) != p.all {
			return !p.all
		}
	}
	return p.all && len(values) > 0
}

// comparePairs decides a comparison of two text fields.
func (s *state) comparePairs(n *node, st *nodeState, todo []uint64) {
	a, b := s.text(n.slot, todo), s.text(n.rhs, todo)
	ea, eb := s.prog.slots[n.slot].empty, s.prog.slots[n.rhs].empty
	for w, word := range todo {
		for ; word != 0; word &= word - 1 {
			bit := bits.TrailingZeros64(word)
			x, y := a.ents[a.idx[w*64+bit]], b.ents[b.idx[w*64+bit]]
			if x == "" && !ea || y == "" && !eb {
				continue
			}
			if pairHolds(n.pred.op, x, y) {
				st.value[w] |= 1 << bit
			}
		}
	}
}

// pairOperators are those that may stand between two fields of text.
var pairOperators = []operator{opEq, opNe, opContains, opIContains, opStartsWith, opEndsWith, opGlob, opIGlob, opIn, opIntersects, opPmatch}

// pairHolds decides a comparison of two values of text.
func pairHolds(op operator, x, y string) bool {
	switch op {
	case opEq, opIn, opIntersects:
		return x == y
	case opNe:
		return x != y
	case opContains:
		return strings.Contains(x, y)
	case opIContains:
		return iContains(lowerASCII(y)).match(x)
	case opStartsWith:
		return strings.HasPrefix(x, y)
	case opEndsWith:
		return strings.HasSuffix(x, y)
	case opGlob:
		return globMatch(y, x, false)
	case opIGlob:
		return globMatch(lowerASCII(y), x, true)
	default: // opPmatch
		return pathPrefix(y, x)
	}
}

// compareNumbers decides a comparison of two fields of numbers or booleans.
func (s *state) compareNumbers(n *node, st *nodeState, todo []uint64) {
	a, b := s.num(n.slot, todo), s.num(n.rhs, todo)
	for w, word := range todo {
		for ; word != 0; word &= word - 1 {
			bit := bits.TrailingZeros64(word)
			if a.present != nil && a.present[w]>>bit&1 == 0 || b.present != nil && b.present[w]>>bit&1 == 0 {
				continue
			}
			if numbersHold(n.pred.op, a.nums[w*64+bit], b.nums[w*64+bit]) {
				st.value[w] |= 1 << bit
			}
		}
	}
}

// addresses decides a comparison of addresses.
func (s *state) addresses(n *node, st *nodeState, todo []uint64) {
	p, r := n.pred, s.prog.slots[n.slot].reader
	for w, word := range todo {
		for ; word != 0; word &= word - 1 {
			bit := bits.TrailingZeros64(word)
			s.row.i = w*64 + bit
			var a [16]byte
			var ok bool
			if r.isColumn {
				a, ok = s.row.b.Bytes16(r.column, s.row.i)
			} else {
				a, ok = r.ip(&s.row)
			}
			if ok && p.matchAddress(netip.AddrFrom16(a).Unmap()) {
				st.value[w] |= 1 << bit
			}
		}
	}
}

func (p *predicate) matchAddress(a netip.Addr) bool {
	if p.op == opExists {
		return true
	}
	in := false
	for _, n := range p.nets {
		in = in || n.Contains(a)
	}
	return in != (p.op == opNe)
}

// numbers decides a comparison of numbers or booleans.
func (s *state) numbers(n *node, st *nodeState, todo []uint64) {
	p, v := n.pred, s.num(n.slot, todo)
	for w, word := range todo {
		for ; word != 0; word &= word - 1 {
			bit := bits.TrailingZeros64(word)
			if v.present != nil && v.present[w]>>bit&1 == 0 {
				continue
			}
			if p.matchNumber(v.nums[w*64+bit]) {
				st.value[w] |= 1 << bit
			}
		}
	}
}

func (p *predicate) matchNumber(v int64) bool {
	switch p.op {
	case opExists:
		return true
	case opIn, opIntersects:
		return slices.Contains(p.numbers, v)
	}
	return numbersHold(p.op, v, p.numbers[0])
}

func numbersHold(op operator, a, b int64) bool {
	switch op {
	case opNe:
		return a != b
	case opLt:
		return a < b
	case opLe:
		return a <= b
	case opGt:
		return a > b
	case opGe:
		return a >= b
	}
	return a == b // =, in, intersects
}

// slotState holds the values of a slot that have been read. Of text and lists
// these are the distinct values, or what is computed once for rows that agree
// in the reader's keys, and for each row the number of its value.
type slotState struct {
	epoch    uint32
	known    []uint64 // rows that have been read; nil: all
	limit    int      // numbers of values are below it
	indexed  bool     // the values have been looked up in the slot's index
	searched bool     // spent is of this batch
	spent    []uint16 // by value: effort of comparisons without the slot's automaton, or spentAll
	idx      []uint16
	own      []uint16 // memory for idx where it is not the batch's

	ents  []string   // text
	spans [][2]int32 // lists: from, to in elems
	elems []string

	nums    []int64
	present []uint64 // nil: all

	table table
}

// table finds the number of a value by its key: open addressing.
type table struct {
	slots []uint16 // number + 1
	keys  []uint64 // by number
}

func (t *table) reset(rows int) {
	size := 1 << bits.Len(uint(2*rows))
	if cap(t.slots) < size {
		t.slots = make([]uint16, size)
	}
	t.slots = t.slots[:size]
	clear(t.slots)
	t.keys = t.keys[:0]
}

// find returns the number of a key for which same holds, adding the key if
// there is none.
func (t *table) find(key uint64, same func(n int) bool) (number uint16, added bool) {
	mask := uint64(len(t.slots) - 1)
	for i := (key * 0x9E3779B97F4A7C15) >> 20 & mask; ; i = (i + 1) & mask {
		n := t.slots[i]
		if n == 0 {
			t.keys = append(t.keys, key)
			t.slots[i] = uint16(len(t.keys))
			return uint16(len(t.keys) - 1), true
		}
		if t.keys[n-1] == key && (same == nil || same(int(n-1))) {
			return n - 1, false
		}
	}
}

// begin makes the slot ready for this batch; computed says that its rows are
// read one by one.
func (s *state) begin(v *slotState, computed bool) {
	v.epoch = s.epoch
	v.known, v.present, v.indexed, v.searched = nil, nil, false, false
	v.ents, v.spans, v.elems = v.ents[:0], v.spans[:0], v.elems[:0]
	if !computed {
		return
	}
	v.known = s.bump.take(s.words)
	v.limit = s.rows
	if cap(v.own) < s.rows {
		v.own = make([]uint16, s.rows)
	}
	v.own = v.own[:s.rows]
	v.idx = v.own
}

// pending returns the rows of todo that are not read yet and marks them read.
func (s *state) pending(v *slotState, todo []uint64) ([]uint64, bool) {
	if v.known == nil {
		return nil, false
	}
	rows := s.bump.take(s.words)
	var left uint64
	for i := range rows {
		rows[i] = todo[i] &^ v.known[i]
		v.known[i] |= rows[i]
		left |= rows[i]
	}
	return rows, left != 0
}

// text reads a text slot for the rows of todo.
func (s *state) text(slot int, todo []uint64) *slotState {
	sl, v := &s.prog.slots[slot], &s.slots[slot]
	if v.epoch != s.epoch {
		if sl.reader.isColumn && s.dictionary(v, sl.reader.column) {
			return v
		}
		s.begin(v, true)
		v.table.reset(s.rows)
	}
	rows, some := s.pending(v, todo)
	if !some {
		return v
	}
	key := s.keyed(sl, rows)
	for w, word := range rows {
		for ; word != 0; word &= word - 1 {
			i := w*64 + bits.TrailingZeros64(word)
			s.row.i = i
			if !s.fresh(sl, v, &key, uint16(len(v.ents))) {
				continue
			}
			v.ents = append(v.ents, s.readText(sl))
		}
	}
	return v
}

// keyed returns the numbers of the key columns' values, for rows.
func (s *state) keyed(sl *slot, rows []uint64) (key [4][]uint16) {
	for i, k := range sl.keys {
		if s.prog.slots[k].kind == kindList {
			key[i] = s.list(k, rows).idx
		} else {
			key[i] = s.text(k, rows).idx
		}
	}
	return key
}

// fresh gives the current row its number of a value, and reports whether that is
// next: then the value is to be computed.
func (s *state) fresh(sl *slot, v *slotState, key *[4][]uint16, next uint16) bool {
	i := s.row.i
	if len(sl.keys) == 0 && sl.reader.key == nil {
		v.idx[i] = next
		return true
	}
	k := uint64(0)
	if sl.reader.key != nil {
		k = sl.reader.key(&s.row)
	}
	for j := range sl.keys {
		k |= uint64(key[j][i]) << (16 * j)
	}
	n, added := v.table.find(k, nil)
	v.idx[i] = n
	return added
}

// dictionary takes over a Name column as it is. It returns false for columns
// that must be read row by row.
func (s *state) dictionary(v *slotState, id schemas.FieldID) bool {
	switch c := s.row.b.Column(id).(type) {
	case nil:
		if id.Field().Type != schemas.Text && id.Field().Type != schemas.Name {
			return false
		}
		s.begin(v, false)
		v.idx, v.limit = s.zeros[:s.rows], 1
		v.ents = append(v.ents, "")
		return true
	case *array.Dictionary:
		if c.NullN() > 0 {
			return false
		}
		s.begin(v, false)
		dict := c.Dictionary().(*array.String)
		v.idx = c.Indices().(*array.Uint16).Uint16Values()
		v.limit = min(dict.Len(), 1<<16)
		for i := range v.limit {
			v.ents = append(v.ents, dict.Value(i))
		}
		return true
	}
	return false
}

// readText reads the current row's value. The result lives as long as the
// batch and the arena's current content.
func (s *state) readText(sl *slot) string {
	if sl.reader.isConst {
		return sl.reader.constant
	}
	if !sl.reader.isColumn {
		s.buf = sl.reader.text(s.buf[:0], &s.row, sl.arg)
		return s.arena.keep(s.buf)
	}
	id := sl.reader.column
	f := id.Field()
	switch f.Type {
	case schemas.Text, schemas.Name:
		return s.row.str(id)
	case schemas.Uint32, schemas.Uint64:
		s.buf = strconv.AppendUint(s.buf[:0], s.row.uint(id), 10)
	default:
		s.buf = strconv.AppendInt(s.buf[:0], s.row.int(id), 10)
	}
	if f.Nullable && s.row.b.IsNull(id, s.row.i) {
		return ""
	}
	return s.arena.keep(s.buf)
}

// list reads a list slot for the rows of todo.
func (s *state) list(slot int, todo []uint64) *slotState {
	sl, v := &s.prog.slots[slot], &s.slots[slot]
	var column *array.List
	var names *array.Dictionary
	if sl.reader.isColumn {
		column, _ = s.row.b.Column(sl.reader.column).(*array.List)
		names, _ = s.row.b.Column(sl.reader.column).(*array.Dictionary)
	}
	if v.epoch != s.epoch {
		if names != nil {
			return s.namesColumn(v, names)
		}
		if sl.reader.isColumn && column == nil {
			s.begin(v, false)
			v.idx, v.limit = s.zeros[:s.rows], 1
			v.spans = append(v.spans, [2]int32{})
			return v
		}
		s.begin(v, true)
		v.table.reset(s.rows)
	}
	rows, some := s.pending(v, todo)
	if !some {
		return v
	}
	if sl.reader.isColumn {
		s.listColumn(v, column, rows)
		return v
	}
	key := s.keyed(sl, rows)
	for w, word := range rows {
		for ; word != 0; word &= word - 1 {
			s.row.i = w*64 + bits.TrailingZeros64(word)
			if !s.fresh(sl, v, &key, uint16(len(v.spans))) {
				continue
			}
			sl.reader.list(&s.vals, &s.row, sl.arg)
			from := int32(len(v.elems))
			for i := range s.vals.len() {
				v.elems = append(v.elems, s.arena.keep(s.vals.at(i)))
			}
			v.spans = append(v.spans, [2]int32{from, int32(len(v.elems))})
		}
	}
	return v
}

// namesColumn takes over a Names column: its distinct lists are known already.
func (s *state) namesColumn(v *slotState, c *array.Dictionary) *slotState {
	s.begin(v, false)
	dict := c.Dictionary().(*array.String)
	v.idx = c.Indices().(*array.Uint16).Uint16Values()
	v.limit = min(dict.Len(), 1<<16)
	for i := range v.limit {
		start := int32(len(v.elems))
		for e := range batch.Elements(dict.Value(i)) {
			v.elems = append(v.elems, e)
		}
		v.spans = append(v.spans, [2]int32{start, int32(len(v.elems))})
	}
	if c.NullN() > 0 { // no sender of ours writes them
		v.idx = slices.Clone(v.idx)
		for i := range v.idx {
			if c.IsNull(i) {
				v.idx[i] = uint16(v.limit)
			}
		}
		v.limit++
		v.spans = append(v.spans, [2]int32{})
	}
	return v
}

// listColumn reads rows of a List column; equal lists become one value.
func (s *state) listColumn(v *slotState, c *array.List, rows []uint64) {
	values := c.ListValues().(*array.String)
	data := values.ValueBytes()
	base := 0
	if values.Len() > 0 {
		base = values.ValueOffset(0)
	}
	for w, word := range rows {
		for ; word != 0; word &= word - 1 {
			i := w*64 + bits.TrailingZeros64(word)
			var from, to int
			if c.IsValid(i) {
				f, t := c.ValueOffsets(i)
				from, to = int(f), int(t)
			}
			var content []byte
			if to > from {
				content = data[values.ValueOffset(from)-base : values.ValueOffset(to-1)+len(values.Value(to-1))-base]
			}
			n, added := v.table.find(xxh3.Hash(content)+uint64(to-from), func(n int) bool {
				return v.sameList(n, values, from, to)
			})
			v.idx[i] = n
			if !added {
				continue
			}
			start := int32(len(v.elems))
			for j := from; j < to; j++ {
				v.elems = append(v.elems, values.Value(j))
			}
			v.spans = append(v.spans, [2]int32{start, int32(len(v.elems))})
		}
	}
}

// sameList reports whether value number n is the list values[from:to].
func (v *slotState) sameList(n int, values *array.String, from, to int) bool {
	elems := v.elems[v.spans[n][0]:v.spans[n][1]]
	if len(elems) != to-from {
		return false
	}
	for i, e := range elems {
		if e != values.Value(from+i) {
			return false
		}
	}
	return true
}

// num reads a slot of numbers for the rows of todo.
func (s *state) num(slot int, todo []uint64) *slotState {
	sl, v := &s.prog.slots[slot], &s.slots[slot]
	if v.epoch != s.epoch {
		if cap(v.nums) < s.rows {
			v.nums = make([]int64, s.rows)
		}
		v.nums = v.nums[:s.rows]
		if sl.reader.isColumn {
			s.numColumn(v, sl)
			return v
		}
		s.begin(v, true)
		v.present = s.bump.take(s.words)
	}
	rows, some := s.pending(v, todo)
	if !some {
		return v
	}
	for w, word := range rows {
		for ; word != 0; word &= word - 1 {
			bit := bits.TrailingZeros64(word)
			s.row.i = w*64 + bit
			if n, ok := sl.reader.num(&s.row, sl.arg); ok {
				v.nums[s.row.i] = numKey(n, sl.kind)
				v.present[w] |= 1 << bit
			}
		}
	}
	return v
}

// numColumn reads a whole column of numbers or booleans.
func (s *state) numColumn(v *slotState, sl *slot) {
	s.begin(v, false)
	id := sl.reader.column
	var zero int64
	if sl.kind == kindUint {
		zero = numKey(0, kindUint)
	}
	c := s.row.b.Column(id)
	switch c := c.(type) {
	case *array.Uint32:
		for i, n := range c.Uint32Values() {
			v.nums[i] = numKey(int64(n), sl.kind)
		}
	case *array.Uint64:
		for i, n := range c.Uint64Values() {
			v.nums[i] = numKey(int64(n), sl.kind)
		}
	case *array.Int64:
		copy(v.nums, c.Int64Values())
	case *array.Timestamp:
		for i, n := range c.TimestampValues() {
			v.nums[i] = int64(n)
		}
	case *array.Boolean:
		for i := range v.nums {
			v.nums[i] = 0
			if c.Value(i) {
				v.nums[i] = 1
			}
		}
	default:
		for i := range v.nums {
			v.nums[i] = zero
		}
	}
	nullable := id.Field().Nullable
	if c == nil {
		if nullable {
			v.present = s.bump.take(s.words)
		}
		return
	}
	if c.NullN() == 0 {
		return
	}
	if nullable {
		v.present = s.bump.take(s.words)
	}
	for i := range v.nums {
		switch {
		case c.IsNull(i):
			v.nums[i] = zero
		case nullable:
			v.present[i/64] |= 1 << (i % 64)
		}
	}
}
