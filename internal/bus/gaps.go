package bus

import (
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"picket/schemas"
)

// Gaps finds the rows that a durable consumer will never get because its
// stream dropped them (schemas.LossStreamLimit), from the cumulative row
// counts in the messages' headers: what lies between two messages of one run
// and subject and was not seen is a hole, and a hole that nothing can fill any
// more is a loss.
//
// It knows only the messages it is shown. If several processes share a durable,
// each of them alone would take the others' messages for holes, so they must
// share the state too: Gaps is a plain value that can be kept as JSON, with
// Note for every message and Settle now and then (package store keeps it in
// the record of inserts, where every message passes once). A process that is
// the durable's only consumer can keep it in memory and use Observe; when it
// starts it begins anew, and what was dropped while it did not run it cannot
// know.
//
// A Gaps is used by one goroutine at a time.
type Gaps struct {
	// Since is when the counting began or last forgot something. For
	// gapsLearn after it, a run and subject seen for the first time is taken
	// to be under way; later, to be new, so that what came before its first
	// message is a hole.
	Since  time.Time         `json:"since"`
	Tracks map[string]*track `json:"tracks,omitempty"` // by run and subject
}

// track is how far one run's rows on one subject have been seen.
type track struct {
	Class string `json:"class"`
	Rows  uint64 `json:"rows"` // all rows up to here were seen or are in a hole
	Seq   uint64 `json:"seq"`  // stream sequence of the last message
	Holes []hole `json:"holes,omitempty"`
}

// hole is a range of rows, From exclusive, To inclusive.
type hole struct {
	From uint64    `json:"from"`
	To   uint64    `json:"to"`
	Seq  uint64    `json:"seq"` // message that showed it
	At   time.Time `json:"at"`
}

const (
	gapsLearn = 10 * time.Minute
	// gapsPatience is how long a hole may still be filled by a publisher that
	// repeats a failed publish after later ones went through.
	gapsPatience = 30 * time.Second
	maxTracks    = 1024
	maxHoles     = 64
)

// NewGaps returns an empty Gaps.
func NewGaps() *Gaps { return &Gaps{Since: time.Now()} }

// Observe returns how many rows before the message were dropped. It suits a
// durable's only consumer that calls it for every message as it comes.
func (g *Gaps) Observe(m *Message) (missed uint64) {
	g.Note(m.Subject(), m.Headers(), m.Sequence, time.Now())
	if t := g.Tracks[m.Headers().Get(schemas.HeaderRun)+" "+m.Subject()]; t != nil {
		for _, h := range t.Holes {
			missed += h.To - h.From
		}
		t.Holes = nil
	}
	return missed
}

// Note notes that a message was had. Showing one again does nothing. Messages
// without the headers are passed over.
func (g *Gaps) Note(subject string, h nats.Header, seq uint64, now time.Time) {
	run := h.Get(schemas.HeaderRun)
	rows, err1 := strconv.ParseUint(h.Get(schemas.HeaderRows), 10, 32)
	to, err2 := strconv.ParseUint(h.Get(schemas.HeaderCumulative), 10, 64)
	if run == "" || len(run) > 64 || err1 != nil || err2 != nil || rows == 0 || rows > to || to == math.MaxUint64 {
		return
	}
	if g.Since.IsZero() {
		g.Since = now
	}
	key, from := run+" "+subject, to-rows
	t := g.Tracks[key]
	if t == nil {
		t = &track{}
		if _, c, err := schemas.ParseEventsSubject(subject); err == nil {
			t.Class = c.String()
		}
		if now.Sub(g.Since) < gapsLearn {
			t.Rows = from
		}
		g.put(key, t, now)
	}
	t.Seq = max(t.Seq, seq)
	if from < t.Rows {
		t.fill(from, to)
	}
	if from > t.Rows {
		if len(t.Holes) == maxHoles { // make one of the two oldest, and count what lies between them too
			t.Holes[1].From = t.Holes[0].From
			t.Holes = t.Holes[1:]
		}
		t.Holes = append(t.Holes, hole{t.Rows, from, seq, now})
	}
	t.Rows = max(t.Rows, to)
}

// fill takes rows (from, to] out of the holes.
func (t *track) fill(from, to uint64) {
	var left []hole
	for _, h := range t.Holes {
		if before := h; before.From < from {
			before.To = min(before.To, from)
			left = append(left, before)
		}
		if after := h; after.To > to {
			after.From = max(after.From, to)
			left = append(left, after)
		}
	}
	t.Holes = left
}

// put adds a track, in place of the one that was quiet the longest if there
// are too many.
func (g *Gaps) put(key string, t *track, now time.Time) {
	if len(g.Tracks) >= maxTracks {
		oldest, seq := "", uint64(math.MaxUint64)
		for k, t := range g.Tracks {
			if len(t.Holes) == 0 && t.Seq < seq {
				oldest, seq = k, t.Seq
			}
		}
		if oldest == "" {
			return // every one has holes: wait until Settle has counted some
		}
		delete(g.Tracks, oldest)
		g.Since = now // its run may come again and must not look new
	}
	if g.Tracks == nil {
		g.Tracks = map[string]*track{}
	}
	g.Tracks[key] = t
}

// Open reports whether there are holes that Settle may count.
func (g *Gaps) Open() bool {
	for _, t := range g.Tracks {
		if len(t.Holes) > 0 {
			return true
		}
	}
	return false
}

// Settle counts the holes that nothing will fill, and forgets them: every
// message up to stream sequence floor is settled (the consumer's
// AckFloor.Stream), and the message that showed the hole is among them or the
// next. The result is lost rows by class.
func (g *Gaps) Settle(floor uint64, now time.Time) map[string]uint64 {
	lost := map[string]uint64{}
	for _, t := range g.Tracks {
		t.Holes = slices.DeleteFunc(t.Holes, func(h hole) bool {
			if h.Seq > floor+1 || now.Sub(h.At) < gapsPatience {
				return false
			}
			lost[t.Class] += h.To - h.From
			return true
		})
	}
	return lost
}
