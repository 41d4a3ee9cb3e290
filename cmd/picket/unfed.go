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

// unfed shows which rules the selections of sensors leave without events, as
// the detector keeps it.
func unfed(ctx context.Context, b *bus.Bus, out io.Writer) error {
	kv, err := b.JS.KeyValue(ctx, schemas.BucketState)
	if err != nil {
		return fmt.Errorf("bucket %s: %w (run `picket migrate`)", schemas.BucketState, err)
	}
	list, err := kv.ListKeysFiltered(ctx, schemas.UnfedPrefix+">")
	if err != nil {
		return fmt.Errorf("bucket %s: %w", schemas.BucketState, err)
	}
	var keys []string
	for k := range list.Keys() {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	t := newTable(out, "CLUSTER", "NODE", "RULE WITHOUT EVENTS", "ITS SENSOR LEAVES OUT")
	shown := false
	for _, k := range keys {
		e, err := kv.Get(ctx, k)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("bucket %s: key %s: %w", schemas.BucketState, k, err)
		}
		var u schemas.Unfed
		if err := json.Unmarshal(e.Value(), &u); err != nil {
			return fmt.Errorf("bucket %s: key %s: %w", schemas.BucketState, k, err)
		}
		if time.Since(u.Time) > schemas.UnfedValid {
			continue
		}
		cluster, node, _ := strings.Cut(strings.TrimPrefix(k, schemas.UnfedPrefix), ".")
		for _, r := range u.Rules {
			t.row(cluster, node, r.Rule, r.Needs)
		}
		if u.More > 0 {
			t.row(cluster, node, fmt.Sprintf("and %d more", u.More), "")
		}
		shown = true
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
