package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"picket/internal/bus"
	"picket/schemas"
)

// unfed shows which rules the selections of sensors leave without events, as
// the detector keeps it.
func unfed(ctx context.Context, b *bus.Bus, out io.Writer) error {
	t := newTable(out, "CLUSTER", "NODE", "RULE WITHOUT EVENTS", "ITS SENSOR LEAVES OUT")
	shown := false
	err := eachState(ctx, b, schemas.UnfedPrefix+">", func(e jetstream.KeyValueEntry) error {
		var u schemas.Unfed
		if err := json.Unmarshal(e.Value(), &u); err != nil {
			return err
		}
		if time.Since(u.Time) > schemas.UnfedValid {
			return nil
		}
		cluster, node, _ := strings.Cut(strings.TrimPrefix(e.Key(), schemas.UnfedPrefix), ".")
		for _, r := range u.Rules {
			t.row(cluster, node, r.Rule, r.Needs)
		}
		if u.More > 0 {
			t.row(cluster, node, fmt.Sprintf("and %d more", u.More), "")
		}
		shown = true
		return nil
	})
	if err != nil || !shown {
		return err
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	return nil
}
