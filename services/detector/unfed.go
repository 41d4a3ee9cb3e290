package detector

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"picket/schemas"
)

// reportUnfed keeps, for `picket status`, which rules a sensor with the selection
// cannot feed: what an operator left out wins over what the rules ask for.
func (s *selector) reportUnfed(ctx context.Context, key string, sel schemas.Selection, n *need) error {
	kv, err := s.bus.JS.KeyValue(ctx, schemas.BucketState)
	if err != nil {
		return err
	}
	key = schemas.UnfedPrefix + key
	var before schemas.Unfed
	e, err := kv.Get(ctx, key)
	known := err == nil
	if known {
		_ = json.Unmarshal(e.Value(), &before) // what is not readable is written anew
	} else if !errors.Is(err, jetstream.ErrKeyNotFound) {
		return err
	}
	now := n.unfed(sel)
	if len(now.Rules) == 0 {
		if known {
			return kv.Delete(ctx, key)
		}
		return nil
	}
	if !slices.Equal(before.Rules, now.Rules) || before.More != now.More {
		s.log.Warn("a sensor's selection leaves rules without events: see picket status", "bucket", schemas.BucketControl, "key", key, "rules", len(now.Rules)+now.More, "first", now.Rules[0].Rule, "needs", now.Rules[0].Needs)
	}
	value, err := json.Marshal(now)
	if err != nil {
		return err
	}
	_, err = kv.Put(ctx, key, value)
	return err
}

// unfed returns the rules that a sensor with the selection cannot feed.
func (n *need) unfed(sel schemas.Selection) schemas.Unfed {
	reported := schemas.SetOf(schemas.NodeClasses()...)
	if len(sel.Classes) > 0 {
		reported = schemas.SetOf(schemas.Process)
		for _, name := range sel.Classes {
			if c, err := schemas.ParseClass(name); err == nil {
				reported |= schemas.SetOf(c)
			}
		}
	}
	var unwanted []string // null leaves the sensor's own, less what the rules ask for
	if sel.UnwantedCalls != nil {
		unwanted = slices.DeleteFunc(slices.Clone(*sel.UnwantedCalls), func(c string) bool { return slices.Contains(n.calls, c) })
	}
	u := schemas.Unfed{Time: time.Now().UTC()}
	for _, r := range n.needs {
		switch {
		case r.Fed(reported, unwanted):
		case len(u.Rules) == schemas.MaxUnfed:
			u.More++
		default:
			u.Rules = append(u.Rules, schemas.UnfedRule{Rule: r.Rule.Name, Needs: r.String()})
		}
	}
	return u
}
