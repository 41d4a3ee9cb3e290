package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"picket/internal/bus"
	"picket/schemas"
)

// auditSources shows what each ingester reads and how far behind that is, and
// which sources nobody reads.
func auditSources(ctx context.Context, b *bus.Bus, out io.Writer) error {
	kv, err := b.JS.KeyValue(ctx, schemas.BucketCheckpoints)
	if err != nil {
		return fmt.Errorf("bucket %s: %w (run `picket migrate`)", schemas.BucketCheckpoints, err)
	}
	list, err := kv.ListKeysFiltered(ctx, "live.>")
	if err != nil {
		return fmt.Errorf("bucket %s: %w", schemas.BucketCheckpoints, err)
	}
	var keys []string
	for k := range list.Keys() {
		keys = append(keys, k)
	}
	slices.Sort(keys) // ingesters first
	now := time.Now()
	t := newTable(out, "AUDIT SOURCE", "KIND", "READ BY", "RECORDS", "A SECOND", "NEWEST EVENT (UTC)", "BEHIND", "CLOUD'S DELAY", "STATE")
	shown := false
	owners := map[string]string{}
	for _, k := range keys {
		e, err := kv.Get(ctx, k)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("bucket %s: key %s: %w", schemas.BucketCheckpoints, k, err)
		}
		if member, ok := strings.CutPrefix(k, schemas.IngesterPrefix); ok {
			var in schemas.Ingester
			if err := json.Unmarshal(e.Value(), &in); err != nil {
				return fmt.Errorf("bucket %s: key %s: %w", schemas.BucketCheckpoints, k, err)
			}
			owners[member] = in.Host
			for _, s := range in.Sources {
				t.row(sourceRow(s, in.Host, now)...)
				shown = true
			}
			continue
		}
		var p struct{ Source, Owner string }
		if err := json.Unmarshal(e.Value(), &p); err != nil {
			return fmt.Errorf("bucket %s: key %s: %w", schemas.BucketCheckpoints, k, err)
		}
		if _, there := owners[p.Owner]; !there {
			t.row(p.Source, "", "nobody", "", "", "", "", "", "not read since "+e.Created().UTC().Format(time.DateTime))
			shown = true
		}
	}
	if !shown {
		return nil
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	return nil
}

func sourceRow(s schemas.SourceReport, host string, now time.Time) []string {
	newest, behind, delay, state := "none yet", "", "", "reading"
	if !s.Newest.IsZero() {
		newest, behind = s.Newest.UTC().Format(time.DateTime), max(0, now.Sub(s.Newest)).Round(time.Second).String()
	}
	if s.CloudDelay > 0 {
		delay = s.CloudDelay.Round(100 * time.Millisecond).String()
	}
	switch {
	case s.Alert == schemas.LossSourceSilent:
		state = "silent"
		if !s.Last.IsZero() {
			state += " since " + s.Last.UTC().Format(time.DateTime)
		}
	case s.Backfill > 0:
		state = fmt.Sprintf("catching up, %.1f%% done", 100*s.Backfill)
		if !s.Expected.IsZero() {
			state += ", expected end " + s.Expected.UTC().Format(time.DateTime)
		}
	case s.Alert == schemas.LossSourceLate:
		state = "late"
	}
	return []string{s.Name, s.Kind, host, fmt.Sprint(s.Records), fmt.Sprintf("%.1f", s.Rate), newest, behind, delay, state}
}
