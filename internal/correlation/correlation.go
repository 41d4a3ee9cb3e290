// Package correlation is the memory of rules that look at more than one event:
// count, distinct, sequence, absence, baseline, suppress. It is a state machine
// without clock, goroutine or network: Matches and the passing of time go in,
// Alerts come out.
//
// Time is that of the events. A match that is at most Limits.Lateness older than
// the newest of its key is taken in its place, whatever the order in which they
// come, so that the same events give the same alerts:
//
//   - A match is a hit where it completes what the rule asks for, looking back
//     over the window that ends with it.
//   - The first hit of a key is an alert. What follows within Definition.Hold
//     belongs to it; the first hit after that is the next alert.
//   - An alert is raised as soon as it is a hit: nobody waits for what may still
//     come late. A late match can only make hits earlier or more numerous, never
//     take one back, so the n-th alert of a key stays the n-th: it keeps its id.
//   - When no match can come any more that belongs to an alert, and what belongs
//     to it is not what was raised, it is told once more, as a later revision
//     with everything folded in.
//
// Absence can be told only when nothing can come late any more; it is the one
// kind that waits for Lateness.
package correlation

import (
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zeebo/xxh3"

	"picket/schemas"
)

// Kind says what a rule looks for.
type Kind string

// Kinds.
const (
	Count    Kind = "count"    // at least AtLeast matches within Window
	Distinct Kind = "distinct" // at least AtLeast different values within Window
	Sequence Kind = "sequence" // steps 0, 1, … in order within Window
	Absence  Kind = "absence"  // step 0, and no step 1 within Window after it
	Baseline Kind = "baseline" // a value that the key did not have in its first Learn
	Suppress Kind = "suppress" // every match; Hold folds those that follow
)

// Definition is what the memory has to know of a rule. It travels with the
// matches, so that whoever owns their key needs no rules of its own, and another
// version of them does no harm.
type Definition struct {
	Rule string `json:"rule"`
	// Version changes when the meaning of what is remembered does: a rule that is
	// loaded again unchanged goes on with its state.
	Version string        `json:"version"`
	Kind    Kind          `json:"kind"`
	Window  time.Duration `json:"window,omitempty"`
	Hold    time.Duration `json:"hold,omitempty"`
	Learn   time.Duration `json:"learn,omitempty"`
	AtLeast int           `json:"at_least,omitempty"`
	Steps   int           `json:"steps,omitempty"`
	// By are the fields that the key has the values of.
	By []string `json:"by,omitempty"`
	// Output is the rule's output: text and field in turn, text first.
	Output []string `json:"output,omitempty"`
}

// Match is one event that feeds a rule.
type Match struct {
	Def *Definition
	Key []string // values of the fields under by
	Event
}

// Event is a match as it is remembered.
type Event struct {
	Time  int64    `json:"time"` // ns since the epoch
	ID    [16]byte `json:"-"`
	Step  int      `json:"step,omitempty"`
	Value string   `json:"value,omitempty"` // of distinct and baseline
	// Fields are the values of the fields in the rule's output; those that the
	// event does not have are left out.
	Fields map[string]string `json:"fields,omitempty"`
	// Doc is the event's finding in JSON. The memory does not look into it.
	Doc []byte `json:"-"`
	// Raised is how many alerts have their id from it.
	Raised int `json:"-"`
}

// Alert is what is raised.
type Alert struct {
	Def      Definition
	Key      []string
	ID       [16]byte
	Revision uint32 // from 1
	// At is the event that completed it; of an absence, the event after which
	// another did not come.
	At Event
	// First and Last are the times of the first and last of all events; First is
	// that of the first revision in every other, so that it is one place in time.
	First, Last int64
	// Total counts the events, Values their different values.
	Total, Values int
	// Events are at most MaxEvidence of them, in order of time.
	Events []Event
}

// Bounds.
const (
	// MaxEvents is how many events of one key are remembered; what is more is
	// counted and given up.
	MaxEvents = 1000
	// MaxAtLeast is the most that a count or distinct may ask for.
	MaxAtLeast = 900
	// MaxSteps is how many steps a sequence may have, MaxBy how many fields a key.
	MaxSteps, MaxBy = 8, 8
	// MaxWindow is the longest window, hold or learning time.
	MaxWindow = 30 * 24 * time.Hour
	// MaxEvidence is how many events an alert names.
	MaxEvidence = 32
	// maxDocs is how many events of a key keep their findings and fields.
	maxDocs = 32
	// maxAlertBytes is how much the findings in one alert may take.
	maxAlertBytes = 256 << 10
	// maxTold is after how many bytes of alerts an Advance takes a rest.
	maxTold = 512 << 10
	// maxValues is how many values of one key a baseline remembers.
	maxValues = 2000
)

// Partitions is the number of partitions that keys are divided into.
const Partitions = schemas.MatchPartitions

// Partition returns the partition, below Partitions, that the match belongs to.
func (m *Match) Partition() int {
	id := schemas.Hash128(append([]string{m.Def.Rule}, m.Key...)...)
	return int(binary.LittleEndian.Uint64(id[:8]) % Partitions)
}

// Message returns the rule's output: each field as the event that completed the
// alert has it, else as the latest of the others does.
// correlation.count and correlation.distinct are Total and Values.
func (a *Alert) Message() string {
	var b strings.Builder
	for i, part := range a.Def.Output {
		if i%2 == 0 {
			b.WriteString(part)
			continue
		}
		if v, ok := a.Field(part); ok {
			b.WriteString(v)
		} else {
			b.WriteString("<NA>")
		}
	}
	return b.String()
}

// Field returns the value of a field of the output.
func (a *Alert) Field(name string) (string, bool) {
	switch name {
	case "correlation.count":
		return strconv.Itoa(a.Total), true
	case "correlation.distinct":
		return strconv.Itoa(a.Values), true
	}
	if v, ok := a.At.Fields[name]; ok {
		return v, true
	}
	for _, e := range slices.Backward(a.Events) {
		if v, ok := e.Fields[name]; ok {
			return v, true
		}
	}
	return "", false
}

// compare orders events: by time, then by step, so that what happened at once
// counts as a sequence, then by id.
func compare(a, b *Event) int {
	switch {
	case a.Time != b.Time:
		if a.Time < b.Time {
			return -1
		}
		return 1
	case a.Step != b.Step:
		return a.Step - b.Step
	}
	return slices.Compare(a.ID[:], b.ID[:])
}

// size is about what an event takes in memory.
func (e *Event) size() int {
	n := 120 + len(e.Value) + len(e.Doc)
	for k, v := range e.Fields {
		n += 48 + len(k) + len(v)
	}
	return n
}

// window returns the index of the first event that is not older than span before
// event j.
func window(events []Event, j int, span time.Duration) int {
	from := events[j].Time - int64(span)
	i, _ := slices.BinarySearchFunc(events, from, func(e Event, t int64) int {
		if e.Time < t {
			return -1
		}
		return 1
	})
	return i
}

// hit reports whether event j completes what d asks for. Nothing older than
// horizon can come any more.
func (d *Definition) hit(events []Event, j int, horizon int64) bool {
	e := &events[j]
	switch d.Kind {
	case Count:
		return j-window(events, j, d.Window)+1 >= d.AtLeast
	case Distinct:
		i := window(events, j, d.Window)
		return j-i+1 >= d.AtLeast && different(events[i:j+1]) >= d.AtLeast
	case Sequence:
		return e.Step == d.Steps-1 && inOrder(events[window(events, j, d.Window):j+1], d.Steps)
	case Absence:
		end := e.Time + int64(d.Window)
		if e.Step != 0 || end > horizon {
			return false
		}
		for k := window(events, j, 0); k < len(events) && events[k].Time <= end; k++ {
			if events[k].Step == 1 && events[k].ID != e.ID {
				return false
			}
		}
		return true
	}
	return d.Kind == Suppress
}

// different counts the different values of events.
func different(events []Event) int {
	seen := make(map[string]struct{}, 16)
	for i := range events {
		seen[events[i].Value] = struct{}{}
	}
	return len(seen)
}

// inOrder reports whether events, in order, have the steps 0 to n-1, each of an
// event of its own, the last event being the last step.
func inOrder(events []Event, n int) bool {
	// reached[s] has an event that ends steps 0 to s; two, so that an event that
	// is several steps does not follow itself.
	reached := make([][]int, n)
	for i := range events {
		e := &events[i]
		if e.Step >= n || len(reached[e.Step]) == 2 {
			if i < len(events)-1 {
				continue
			}
		}
		if e.Step > 0 && !slices.ContainsFunc(reached[e.Step-1], func(p int) bool { return events[p].ID != e.ID }) {
			continue
		}
		if i == len(events)-1 {
			return true
		}
		reached[e.Step] = append(reached[e.Step], i)
	}
	return false
}

// hash of a value or of a list of ids.
func hashOf(s string) uint64 { return xxh3.HashString(s) }
