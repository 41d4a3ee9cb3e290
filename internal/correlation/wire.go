package correlation

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"picket/internal/fault"
	"picket/schemas"
)

// message is what one message of PICKET_MATCH holds.
type message struct {
	Rules   []*Definition `json:"rules"`
	Matches []wireMatch   `json:"matches"`
}

type wireMatch struct {
	Rule int             `json:"rule"` // its place in Rules
	Key  []string        `json:"key"`
	ID   string          `json:"event"` // hex
	Doc  json.RawMessage `json:"finding,omitempty"`
	Event
}

// MaxMessage is about how large a message of Encode becomes, bytes; one match
// that is larger than that is a message of its own. MaxDoc is how large the
// finding of one match may be.
const MaxMessage, MaxDoc = 256 << 10, 64 << 10

// Encode returns matches of one partition as messages.
func Encode(matches []Match) ([][]byte, error) {
	var out [][]byte
	for len(matches) > 0 {
		var m message
		size := 0
		n := 0
		for ; n < len(matches) && size < MaxMessage; n++ {
			x := &matches[n]
			r := slices.IndexFunc(m.Rules, func(d *Definition) bool { return d.Version == x.Def.Version })
			if r < 0 {
				r = len(m.Rules)
				m.Rules = append(m.Rules, x.Def)
			}
			if size += x.size(); n > 0 && size > MaxMessage {
				break
			}
			m.Matches = append(m.Matches, wireMatch{Rule: r, Key: x.Key, ID: hex.EncodeToString(x.ID[:]), Doc: x.Doc, Event: x.Event})
		}
		data, err := json.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("matches of rule %q: %w", matches[0].Def.Rule, err)
		}
		out = append(out, data)
		matches = matches[n:]
	}
	return out, nil
}

// Decode reads a message of Encode. An error is permanent (reason "decode").
func Decode(data []byte) ([]Match, error) {
	var m message
	err := json.Unmarshal(data, &m)
	for _, d := range m.Rules {
		if err == nil {
			err = d.check()
		}
	}
	out := make([]Match, 0, len(m.Matches))
	for i := range m.Matches {
		w := &m.Matches[i]
		x := Match{Key: w.Key, Event: w.Event}
		x.Doc = w.Doc
		if n, e := hex.Decode(x.ID[:], []byte(w.ID)[:min(len(w.ID), 32)]); err == nil && (e != nil || n != len(x.ID)) {
			err = errors.New("a match without the id of its event")
		}
		if err == nil && (w.Rule < 0 || w.Rule >= len(m.Rules)) {
			err = errors.New("a match of no rule")
		}
		if err == nil && (len(x.Key) > MaxBy || x.Step < 0 || x.Step >= max(1, m.Rules[w.Rule].Steps) || x.Time < 0 || x.Time > maxTime) {
			err = errors.New("a match out of bounds")
		}
		if err != nil {
			break
		}
		x.Def = m.Rules[w.Rule]
		out = append(out, x)
	}
	if err != nil {
		return nil, fault.Permanent(schemas.LossDecode, fmt.Errorf("matches: %w", err))
	}
	return out, nil
}

// maxTime leaves room for windows to be added without overflow: year 2116.
const maxTime = 1 << 62

// check holds a definition that came from elsewhere to what the state relies on.
func (d *Definition) check() error {
	switch {
	case d == nil:
		return errors.New("no definition")
	case !slices.Contains([]Kind{Count, Distinct, Sequence, Absence, Baseline, Suppress}, d.Kind),
		d.Kind == Sequence && d.Steps < 2, d.Kind == Absence && d.Steps != 2, d.Steps < 0 || d.Steps > MaxSteps,
		d.AtLeast < 0 || d.AtLeast > MaxAtLeast, d.Version == "",
		min(d.Window, d.Hold, d.Learn) < 0, max(d.Window, d.Hold, d.Learn) > MaxWindow:
		return fmt.Errorf("definition of rule %q out of bounds", d.Rule)
	}
	return nil
}
