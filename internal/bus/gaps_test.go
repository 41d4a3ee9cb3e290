package bus

import (
	"encoding/json"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"picket/schemas"
)

// heard is a message as Gaps sees it: rows (from, to] of a run.
type heard struct {
	run      string
	from, to uint64
	seq      uint64
}

var began = time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC)

func (m heard) note(g *Gaps, at time.Duration) {
	h := nats.Header{}
	h.Set(schemas.HeaderRun, m.run)
	h.Set(schemas.HeaderRows, strconv.FormatUint(m.to-m.from, 10))
	h.Set(schemas.HeaderCumulative, strconv.FormatUint(m.to, 10))
	g.Note("picket.events.c.process.1", h, m.seq, began.Add(at))
}

func TestGaps(t *testing.T) {
	const late = gapsLearn + time.Second // no more learning
	for name, c := range map[string]struct {
		messages []heard
		at       time.Duration
		floor    uint64
		after    time.Duration // from the messages to Settle
		want     uint64
	}{
		"none":                 {[]heard{{"r", 0, 10, 1}, {"r", 10, 20, 2}}, late, 2, time.Hour, 0},
		"one":                  {[]heard{{"r", 0, 10, 1}, {"r", 15, 20, 3}}, late, 3, time.Hour, 5},
		"floor right before":   {[]heard{{"r", 0, 10, 1}, {"r", 15, 20, 3}}, late, 2, time.Hour, 5},
		"older ones under way": {[]heard{{"r", 0, 10, 1}, {"r", 15, 20, 3}}, late, 1, time.Hour, 0},
		"too early":            {[]heard{{"r", 0, 10, 1}, {"r", 15, 20, 3}}, late, 3, time.Second, 0},
		"filled":               {[]heard{{"r", 0, 10, 1}, {"r", 15, 20, 3}, {"r", 10, 15, 2}}, late, 3, time.Hour, 0},
		"filled in part":       {[]heard{{"r", 0, 10, 1}, {"r", 20, 30, 4}, {"r", 12, 15, 3}}, late, 4, time.Hour, 7},
		"again and again":      {[]heard{{"r", 0, 10, 1}, {"r", 0, 10, 1}, {"r", 15, 20, 3}, {"r", 15, 20, 3}, {"r", 0, 10, 1}}, late, 3, time.Hour, 5},
		"start of a run":       {[]heard{{"r", 5, 10, 1}}, late, 1, time.Hour, 5},
		"under way when begun": {[]heard{{"r", 5, 10, 1}, {"r", 12, 20, 3}}, 0, 3, time.Hour, 2},
		"two runs":             {[]heard{{"a", 0, 10, 1}, {"b", 0, 10, 2}, {"a", 11, 20, 4}, {"b", 12, 20, 5}}, late, 9, time.Hour, 3},
		"several holes":        {[]heard{{"r", 1, 2, 2}, {"r", 3, 4, 4}, {"r", 5, 6, 6}, {"r", 3, 4, 4}}, late, 9, time.Hour, 3},
	} {
		g := &Gaps{Since: began}
		for _, m := range c.messages {
			m.note(g, c.at)
		}
		// It must survive being kept.
		b, err := json.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		g = &Gaps{}
		if err := json.Unmarshal(b, g); err != nil {
			t.Fatal(err)
		}
		lost := g.Settle(c.floor, began.Add(c.at+c.after))
		if lost["process"] != c.want {
			t.Errorf("%s: %v, want %d", name, lost, c.want)
		}
		if again := g.Settle(c.floor, began.Add(c.at+c.after)); again["process"] != 0 {
			t.Errorf("%s: counted twice: %v", name, again)
		}
	}
}

// In any order, with repetitions, and settled at any time: exactly what was
// never shown is counted.
func TestGapsAnyOrder(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		g := &Gaps{Since: began.Add(-time.Hour)}
		var shown []heard
		dropped, to := uint64(0), uint64(0)
		for seq := range uint64(60) {
			m := heard{"r", to, to + 1 + r.Uint64N(20), seq + 1}
			to = m.to
			if seq < 59 && r.IntN(4) == 0 {
				dropped += m.to - m.from
				continue
			}
			shown = append(shown, m)
			if r.IntN(5) == 0 {
				shown = append(shown, m)
			}
		}
		r.Shuffle(len(shown), func(i, j int) { shown[i], shown[j] = shown[j], shown[i] })
		for _, m := range shown {
			m.note(g, 0)
		}
		if got := g.Settle(60, began.Add(time.Hour))["process"]; got != dropped {
			t.Fatalf("seed %d: %d rows, want %d", seed, got, dropped)
		}
	}
}

// Headers are not to be trusted to be there, or sensible.
func TestGapsOddHeaders(t *testing.T) {
	g := &Gaps{Since: began.Add(-time.Hour)}
	for _, h := range []nats.Header{
		{}, {schemas.HeaderRun: {"r"}}, {schemas.HeaderRun: {"r"}, schemas.HeaderRows: {"5"}, schemas.HeaderCumulative: {"4"}},
		{schemas.HeaderRun: {"r"}, schemas.HeaderRows: {"-1"}, schemas.HeaderCumulative: {"4"}},
		{schemas.HeaderRun: {"r"}, schemas.HeaderRows: {"0"}, schemas.HeaderCumulative: {"4"}},
		{schemas.HeaderRun: {"r"}, schemas.HeaderRows: {"1"}, schemas.HeaderCumulative: {"18446744073709551615"}},
	} {
		g.Note("s", h, 1, began)
	}
	if len(g.Tracks) != 0 {
		t.Errorf("%v", g.Tracks)
	}
}

// The state stays small whatever comes.
func TestGapsBounded(t *testing.T) {
	g := &Gaps{Since: began}
	for i := range uint64(3 * maxTracks) {
		heard{"r" + strconv.FormatUint(i, 10), 0, 1, i}.note(g, 0)
	}
	for i := range uint64(3 * maxHoles) {
		heard{"holes", 2 * i, 2*i + 1, i}.note(g, 0)
	}
	if len(g.Tracks) > maxTracks {
		t.Errorf("%d tracks", len(g.Tracks))
	}
	if got := g.Settle(1<<20, began.Add(time.Hour))["process"]; got != 3*maxHoles-1+maxHolesMerged {
		t.Errorf("%d rows in holes", got)
	}
}

// maxHolesMerged is how many shown rows TestGapsBounded's merged holes take in.
const maxHolesMerged = 2*maxHoles - 1

// message is what Observe reads of one.
type message struct {
	jetstream.Msg
	header nats.Header
}

func (m message) Subject() string      { return "picket.events.c.process.1" }
func (m message) Headers() nats.Header { return m.header }

func TestGapsOnlyConsumer(t *testing.T) {
	g := NewGaps()
	h := func(to string) nats.Header {
		return nats.Header{schemas.HeaderRun: {"r"}, schemas.HeaderRows: {"10"}, schemas.HeaderCumulative: {to}}
	}
	for _, c := range []struct {
		to   string
		want uint64
	}{{"50", 0}, {"60", 0}, {"90", 20}, {"60", 0}, {"100", 0}} {
		m := &Message{Msg: message{header: h(c.to)}}
		if got := g.Observe(m); got != c.want {
			t.Errorf("at %s: %d, want %d", c.to, got, c.want)
		}
	}
}
