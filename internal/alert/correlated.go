package alert

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"picket/internal/batch"
	"picket/internal/correlation"
	"picket/internal/fault"
	"picket/internal/rules"
	"picket/schemas"
)

// Part returns what the memory of a rule about several events keeps of one of them:
// the finding of that event alone, in JSON of at most correlation.MaxDoc.
func Part(f rules.Feed, b *batch.Batch, now time.Time) ([]byte, error) {
	return encode(New(f.Match, b, now), correlation.MaxDoc)
}

// Correlated returns the finding of a rule about several events, raised at now: the
// finding of the event that completed it, with all events as evidence. An error is
// permanent.
func Correlated(a *correlation.Alert, now time.Time) (*schemas.Finding, error) {
	f := &schemas.Finding{}
	if a.At.Doc == nil {
		return nil, fault.Permanent(schemas.LossOversized, fmt.Errorf("alert of rule %q: nothing is left of its events", a.Def.Rule))
	}
	if err := json.Unmarshal(a.At.Doc, f); err != nil {
		return nil, fault.Permanent(schemas.LossDecode, fmt.Errorf("alert of rule %q: %w", a.Def.Rule, err))
	}
	id := schemas.FormatID(a.ID)
	f.FindingInfo.UID, f.Metadata.UID, f.Metadata.Sequence = id, id, a.Revision
	f.FindingInfo.CreatedTime, f.Metadata.LoggedTime = now.UnixMilli(), now.UnixMilli()
	if a.Revision > 1 {
		f.ActivityID, f.TypeUID = 2, 200402
	}
	first := time.Unix(0, a.First).UTC()
	f.Time, f.FindingInfo.FirstSeenTime, f.Unmapped.Time = first.UnixMilli(), first.UnixMilli(), first
	f.Message = a.Message()
	f.Evidences = nil
	if f.Unmapped.Fields == nil {
		f.Unmapped.Fields = make(map[string]string)
	}
	for i := 1; i < len(a.Def.Output); i += 2 {
		if v, ok := a.Field(a.Def.Output[i]); ok {
			f.Unmapped.Fields[a.Def.Output[i]] = v
		}
	}
	for i := range a.Events {
		e := &a.Events[i]
		ev, err := evidence(f, e)
		if err != nil {
			return nil, fault.Permanent(schemas.LossDecode, fmt.Errorf("alert of rule %q: %w", a.Def.Rule, err))
		}
		if ev.Data == nil {
			ev.Data = make(map[string]any)
		}
		ev.Data["event_time"] = time.Unix(0, e.Time).UTC().Format(time.RFC3339Nano)
		if a.Def.Steps > 0 {
			ev.Data["step"] = e.Step + 1
		}
		f.Evidences = append(f.Evidences, ev)
	}
	c := &schemas.Correlation{Kind: string(a.Def.Kind), Key: make(map[string]string), Count: a.Total, Last: time.Unix(0, a.Last).UTC()}
	for i, v := range a.Key[:min(len(a.Key), len(a.Def.By))] {
		c.Key[a.Def.By[i]] = v
	}
	if a.Def.Kind == correlation.Distinct {
		c.Values = a.Values
	}
	f.Unmapped.Correlation = c
	return f, nil
}

// evidence is the evidence of one event. What only its finding has goes to f: who
// made the API call that a sequence began with, and on what.
func evidence(f *schemas.Finding, e *correlation.Event) (schemas.Evidence, error) {
	bare := schemas.Evidence{UID: schemas.FormatID(e.ID)}
	if e.Doc == nil {
		return bare, nil
	}
	var part schemas.Finding
	if err := json.Unmarshal(e.Doc, &part); err != nil {
		return bare, err
	}
	if len(part.Evidences) == 0 {
		return bare, errors.New("a part without evidence")
	}
	for _, r := range part.Resources {
		if !slices.Contains(f.Resources, r) {
			f.Resources = append(f.Resources, r)
		}
	}
	if f.API == nil {
		f.API = part.API
	}
	return part.Evidences[0], nil
}
