package correlation

import (
	"bytes"
	"container/list"
	"encoding/gob"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"picket/schemas"
)

// Limits bound a State.
type Limits struct {
	// Lateness is how much older than the newest match of its key one may be.
	Lateness time.Duration
	// Keys is how many keys of one rule are remembered, Bytes about what all take
	// in memory. Beyond that the keys that were touched least recently go.
	Keys, Bytes int
}

// Stats count, since the State was made, what it did not use.
type Stats struct {
	Late    uint64 // matches older than Lateness allows
	Repeats uint64 // matches that were there
	Keys    uint64 // keys given up for want of room
	Events  uint64 // events of keys that have more than MaxEvents
	Values  uint64 // values of baselines that have too many
}

// State is the memory of a set of keys. It is used by one goroutine at a time.
type State struct {
	limits Limits
	rules  map[string]*ruleState // by version
	clock  int64                 // Advance
	due    int64                 // before this time of the clock it has nothing to do
	bytes  int
	touch  uint64
	outbox []Alert
	// OutboxBytes is about what the alerts take that Alerts returns.
	OutboxBytes int
	Stats       Stats
}

type ruleState struct {
	def    Definition
	keys   map[string]*list.Element
	recent list.List // of *keyState, the one touched last in front
}

// keyState is what is remembered of one key. Exported fields are in snapshots.
type keyState struct {
	Key    []string
	Events []Event // in order
	Newest int64   // time of the newest event
	// Raised is the time of the last alert that is closed: math.MinInt64, none.
	Raised int64
	Open   []open // alerts that events may still be added to, in order
	// Of a baseline: when the first event was, and the values by their hash.
	Since  int64
	Values map[uint64]int64 // time last seen

	name  string
	bytes int
	touch uint64
}

// open is an alert that was raised.
type open struct {
	ID       [16]byte
	At       int64 // time of the event that completed it
	AtID     [16]byte
	Revision uint32
	Sent     uint64 // hash of what the last revision told
	Gone     int    // events that belong to it and are no longer remembered
	First    int64  // time of its first event when it was raised
}

// New returns an empty State.
func New(l Limits) *State {
	return &State{limits: l, rules: make(map[string]*ruleState), clock: math.MinInt64, due: math.MaxInt64}
}

// Bytes returns about what the state takes in memory, Keys how many keys it has.
func (s *State) Bytes() int { return s.bytes }

// Keys returns how many keys are remembered.
func (s *State) Keys() (n int) {
	for _, r := range s.rules {
		n += len(r.keys)
	}
	return n
}

// Alerts returns the alerts raised and not yet taken by Published. The result is
// valid until the next call of a method.
func (s *State) Alerts() []Alert { return s.outbox }

// Published says that everybody who is to know has the first n of Alerts.
func (s *State) Published(n int) {
	for i := range s.outbox[:n] {
		s.OutboxBytes -= s.outbox[i].size()
	}
	s.outbox = slices.Delete(s.outbox, 0, n)
}

func (a *Alert) size() int {
	n := 200
	for i := range a.Events {
		n += a.Events[i].size()
	}
	return n
}

// Add takes a match. A match that is there already changes nothing.
func (s *State) Add(m *Match) {
	r := s.rules[m.Def.Version]
	if r == nil {
		r = &ruleState{keys: make(map[string]*list.Element)}
		s.rules[m.Def.Version] = r
	}
	r.def = *m.Def
	name := strings.Join(m.Key, "\x00")
	el := r.keys[name]
	if el == nil {
		k := &keyState{Key: slices.Clone(m.Key), name: name, Newest: m.Time, Raised: math.MinInt64, Since: m.Time}
		for _, v := range k.Key {
			k.bytes += 250 + 2*len(v)
		}
		s.bytes += k.bytes
		el = r.recent.PushFront(k)
		r.keys[name] = el
		if len(r.keys) > s.limits.Keys {
			s.evict(r, r.recent.Back())
		}
	}
	k := el.Value.(*keyState)
	s.touch++
	k.touch = s.touch
	r.recent.MoveToFront(el)
	if r.def.Kind == Baseline {
		s.learn(r, k, m)
	} else {
		s.insert(r, el, k, m)
	}
	for s.bytes > s.limits.Bytes && s.oldest(1) {
	}
}

// oldest gives up the key that was touched least recently; false, there are not
// more than keep.
func (s *State) oldest(keep int) bool {
	var rule *ruleState
	n := 0
	for _, r := range s.rules {
		n += len(r.keys)
		if b := r.recent.Back(); b != nil && (rule == nil || b.Value.(*keyState).touch < rule.recent.Back().Value.(*keyState).touch) {
			rule = r
		}
	}
	if n <= keep {
		return false
	}
	s.evict(rule, rule.recent.Back())
	return true
}

func (s *State) evict(r *ruleState, el *list.Element) {
	s.Stats.Keys++
	s.remove(r, el)
}

func (s *State) remove(r *ruleState, el *list.Element) {
	k := r.recent.Remove(el).(*keyState)
	s.bytes -= k.bytes
	delete(r.keys, k.name)
	if len(r.keys) == 0 {
		delete(s.rules, r.def.Version)
	}
}

func (s *State) insert(r *ruleState, el *list.Element, k *keyState, m *Match) {
	if m.Time < k.Newest-int64(s.limits.Lateness) {
		s.Stats.Late++
		return
	}
	at, found := slices.BinarySearchFunc(k.Events, m.Event, func(a, b Event) int { return compare(&a, &b) })
	if found {
		s.Stats.Repeats++
		return
	}
	k.Newest = max(k.Newest, m.Time)
	k.Events = slices.Insert(k.Events, at, m.Event)
	n := m.Event.size()
	k.bytes += n
	s.bytes += n
	if len(k.Events) > MaxEvents {
		if gone := s.forget(r, k); gone < at {
			at--
		} else if gone == at {
			at = -1
		}
	}
	if at >= 0 { // else it is the one that was given up
		if r.def.Kind != Absence { // which settle looks at
			s.raise(r, k, at)
		}
		if at >= maxDocs && !slices.ContainsFunc(k.Open, func(o open) bool { return o.AtID == m.ID }) {
			e := &k.Events[at]
			before := e.size()
			e.Doc, e.Fields = nil, nil
			k.bytes -= before - e.size()
			s.bytes -= before - e.size()
		}
	}
	s.settle(r, el)
}

// forget gives up an event of a key that has too many, and returns which: neither
// one of the first, which have the findings, nor one of the last, which may yet
// complete something, nor one that completed an alert.
func (s *State) forget(r *ruleState, k *keyState) int {
	s.Stats.Events++
	i := maxDocs
	for slices.ContainsFunc(k.Open, func(o open) bool { return o.AtID == k.Events[i].ID }) && i < len(k.Events)-1 {
		i++
	}
	t := k.Events[i].Time
	for n := range k.Open {
		if o := &k.Open[n]; t >= o.At-int64(r.def.Window) && t <= o.At+int64(r.def.Hold) {
			o.Gone++
		}
	}
	s.drop(k, i, i+1)
	return i
}

// drop removes events i to j-1.
func (s *State) drop(k *keyState, i, j int) {
	for _, e := range k.Events[i:j] {
		b := e.size()
		k.bytes -= b
		s.bytes -= b
	}
	k.Events = slices.Delete(k.Events, i, j)
}

// horizon is the time before which nothing of the key can come any more.
func (s *State) horizon(k *keyState) int64 {
	return max(k.Newest, s.clock) - int64(s.limits.Lateness)
}

// raise looks for alerts after event changed has come, -1 when only time has.
func (s *State) raise(r *ruleState, k *keyState, changed int) {
	d := &r.def
	last := k.Raised
	if d.Kind != Absence && changed == len(k.Events)-1 {
		// The usual case: nothing before it has changed.
		if n := len(k.Open); n > 0 {
			last = k.Open[n-1].At
		}
		if k.after(last, d, changed) && d.hit(k.Events, changed, 0) {
			s.newAlert(d, k, changed)
		}
		return
	}
	nth := 0
	for j := range k.Events {
		if !k.after(last, d, j) || !d.hit(k.Events, j, s.horizon(k)) {
			continue
		}
		e := &k.Events[j]
		last = e.Time
		if nth < len(k.Open) {
			k.Open[nth].At, k.Open[nth].AtID = e.Time, e.ID
		} else {
			s.newAlert(d, k, j)
		}
		nth++
	}
}

// after reports whether event j does not belong to the alert raised at last.
func (k *keyState) after(last int64, d *Definition, j int) bool {
	return last == math.MinInt64 || k.Events[j].Time > last+int64(d.Hold)
}

func (s *State) newAlert(d *Definition, k *keyState, j int) {
	e := &k.Events[j]
	parts := []string{"alert", d.Rule, schemas.FormatID(e.ID)}
	if e.Raised > 0 { // late events have made the alert that it raised an earlier one
		parts = append(parts, strconv.Itoa(e.Raised))
	}
	e.Raised++
	k.Open = append(k.Open, open{At: e.Time, AtID: e.ID, ID: schemas.Hash128(parts...)})
	s.tell(d, k, &k.Open[len(k.Open)-1])
}

// tell raises an alert, or the next revision of it if that says more.
func (s *State) tell(d *Definition, k *keyState, o *open) {
	from, to := o.At-int64(d.Window), o.At+int64(d.Hold)
	if d.Kind == Absence {
		from = o.At
	}
	a := Alert{Def: *d, Key: k.Key, ID: o.ID, Total: o.Gone, First: math.MaxInt64}
	values := make(map[string]struct{})
	var all []int
	steps := make([]bool, max(d.Steps, 1))
	must := make(map[int]bool) // the event that completed it, and the first of each step
	for i := range k.Events {
		e := &k.Events[i]
		if e.Time < from || e.Time > to || d.Kind == Absence && e.Step != 0 {
			continue
		}
		all = append(all, i)
		a.First, a.Last = min(a.First, e.Time), e.Time
		values[e.Value] = struct{}{}
		if e.ID == o.AtID && e.Time == o.At {
			a.At = *e
			must[i] = true
		}
		if e.Step < len(steps) && !steps[e.Step] {
			steps[e.Step], must[i] = true, true
		}
	}
	a.Total += len(all)
	a.Values = len(values)
	var sum strings.Builder
	fmt.Fprint(&sum, a.Total, a.Values, o.At)
	room := MaxEvidence - len(must)
	docs := len(a.At.Doc)
	for _, i := range all {
		if !must[i] {
			if room--; room < 0 {
				continue
			}
		}
		e := k.Events[i]
		if docs += len(e.Doc); docs > maxAlertBytes {
			e.Doc = nil
		}
		a.Events = append(a.Events, e)
		sum.Write(e.ID[:])
	}
	if a.At.Doc == nil { // came late, after many others
		for i := range a.Events {
			if a.Events[i].Doc != nil {
				a.At.Doc = a.Events[i].Doc
			}
		}
	}
	if o.Revision == 0 {
		o.First = a.First
	}
	a.First = o.First
	if sent := hashOf(sum.String()); sent != o.Sent {
		o.Sent = sent
		o.Revision++
		a.Revision = o.Revision
		s.emit(a)
	}
}

func (s *State) emit(a Alert) {
	s.outbox = append(s.outbox, a)
	s.OutboxBytes += a.size()
}

// settle closes alerts to which nothing can be added, and forgets what nothing
// can need any more.
func (s *State) settle(r *ruleState, el *list.Element) {
	k, d, h := el.Value.(*keyState), &r.def, s.horizon(el.Value.(*keyState))
	if d.Kind == Absence {
		s.raise(r, k, -1)
	}
	n := 0
	for n < len(k.Open) && k.Open[n].At+int64(d.Hold) < h {
		s.tell(d, k, &k.Open[n])
		k.Raised = k.Open[n].At
		n++
	}
	k.Open = slices.Delete(k.Open, 0, n)
	keep := h
	if len(k.Open) > 0 {
		keep = min(keep, k.Open[0].At)
	}
	keep -= int64(d.Window)
	i := 0
	for i < len(k.Events) && k.Events[i].Time < keep {
		i++
	}
	s.drop(k, 0, i)
	if len(k.Events) == 0 && len(k.Open) == 0 && (k.Raised == math.MinInt64 || k.Raised+int64(d.Hold) < h) {
		s.remove(r, el)
		return
	}
	due := int64(math.MaxInt64)
	switch {
	case d.Kind == Absence && len(k.Events) > 0:
		due = s.clock
	case len(k.Open) > 0:
		due = k.Open[0].At + int64(d.Hold)
	case len(k.Events) > 0:
		due = k.Events[0].Time + int64(d.Window)
	default:
		due = k.Raised + int64(d.Hold)
	}
	if due != math.MaxInt64 && due > math.MinInt64 {
		due += int64(s.limits.Lateness)
	}
	s.due = min(s.due, due)
}

// learn takes a match of a baseline. Values of the learning time and values that
// were raised are known.
func (s *State) learn(r *ruleState, k *keyState, m *Match) {
	v := hashOf(m.Value)
	k.Since, k.Newest = min(k.Since, m.Time), max(k.Newest, m.Time)
	if last, ok := k.Values[v]; ok {
		k.Values[v] = max(last, m.Time)
		return
	}
	if k.Values == nil {
		k.Values = make(map[uint64]int64)
	}
	if len(k.Values) >= maxValues {
		oldest, at := uint64(0), int64(math.MaxInt64)
		for h, last := range k.Values {
			if last < at || last == at && h < oldest {
				oldest, at = h, last
			}
		}
		delete(k.Values, oldest)
		s.Stats.Values++
	} else {
		const size = 40
		k.bytes += size
		s.bytes += size
	}
	k.Values[v] = m.Time
	if m.Time-k.Since <= int64(r.def.Learn) {
		return
	}
	id := schemas.Hash128(slices.Concat([]string{"alert", r.def.Rule}, k.Key, []string{m.Value})...)
	s.emit(Alert{Def: r.def, Key: k.Key, ID: id, Revision: 1, At: m.Event, First: m.Time, Last: m.Time, Total: 1, Values: 1, Events: []Event{m.Event}})
}

// Advance says that it is now so late, in ns since the epoch, and that every match
// that is older and will come at all has come, but for what Lateness allows. When
// that gives more alerts than maxTold takes, the next call goes on.
func (s *State) Advance(now int64) {
	if now < s.clock {
		return
	}
	s.clock = now
	if now < s.due {
		return
	}
	s.due = math.MaxInt64
	for _, v := range slices.Sorted(maps.Keys(s.rules)) {
		r := s.rules[v]
		if r.def.Kind == Baseline {
			continue
		}
		for el := r.recent.Back(); el != nil; {
			if s.OutboxBytes > maxTold {
				s.due = now
				return
			}
			before := el.Prev()
			s.settle(r, el)
			el = before
		}
	}
}

// snapshot is a State on disk.
type snapshot struct {
	Clock  int64
	Rules  []ruleSnapshot
	Outbox []Alert
}

type ruleSnapshot struct {
	Def   Definition
	Keys  []*keyState // the one touched last at the end
	Touch []uint64
}

var (
	encoder, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	decoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<30))
)

// Snapshot returns the state, compressed, alerts not yet published included. If
// that would take more than most bytes, keys are given up, and counted, until it
// does not.
func (s *State) Snapshot(most int) ([]byte, error) {
	for {
		snap := snapshot{Clock: s.clock, Outbox: s.outbox}
		for _, v := range slices.Sorted(maps.Keys(s.rules)) {
			r := s.rules[v]
			rs := ruleSnapshot{Def: r.def}
			for el := r.recent.Back(); el != nil; el = el.Prev() {
				k := el.Value.(*keyState)
				rs.Keys, rs.Touch = append(rs.Keys, k), append(rs.Touch, k.touch)
			}
			snap.Rules = append(snap.Rules, rs)
		}
		var b bytes.Buffer
		if err := gob.NewEncoder(&b).Encode(snap); err != nil {
			return nil, fmt.Errorf("correlation state: %w", err)
		}
		out := encoder.EncodeAll(b.Bytes(), nil)
		if len(out) <= most {
			return out, nil
		}
		for target := s.bytes * 3 / 4; s.bytes > target; {
			if !s.oldest(0) {
				break
			}
		}
		if s.bytes == 0 && len(snap.Rules) == 0 {
			return nil, fmt.Errorf("correlation state: alerts of %d bytes; at most %d can be stored", len(out), most)
		}
	}
}

// Restore returns the State of a snapshot, under the limits given.
func Restore(data []byte, l Limits) (*State, error) {
	plain, err := decoder.DecodeAll(data, nil)
	if err != nil {
		return nil, fmt.Errorf("correlation state: %w", err)
	}
	var snap snapshot
	if err := gob.NewDecoder(bytes.NewReader(plain)).Decode(&snap); err != nil {
		return nil, fmt.Errorf("correlation state: %w", err)
	}
	s := New(l)
	s.clock, s.due = snap.Clock, math.MinInt64 // the next Advance looks at everything
	for _, rs := range snap.Rules {
		r := &ruleState{def: rs.Def, keys: make(map[string]*list.Element, len(rs.Keys))}
		for i, k := range rs.Keys {
			k.name, k.touch = strings.Join(k.Key, "\x00"), rs.Touch[i]
			s.touch = max(s.touch, k.touch)
			for _, v := range k.Key {
				k.bytes += 250 + 2*len(v)
			}
			for j := range k.Events {
				k.bytes += k.Events[j].size()
			}
			k.bytes += 40 * len(k.Values)
			s.bytes += k.bytes
			r.keys[k.name] = r.recent.PushFront(k)
		}
		s.rules[rs.Def.Version] = r
	}
	for _, a := range snap.Outbox {
		s.emit(a)
	}
	return s, nil
}
