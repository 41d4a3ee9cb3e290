package detector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"picket/internal/alert"
	"picket/internal/batch"
	"picket/internal/fault"
	"picket/schemas"
)

// An alert of an event that was joined before its pod was known is amended when
// the enricher tells of the pod (class correction). Two detectors may have the
// two, in either order: who raises the alert writes down where it is on
// PICKET_ALERTS and then looks for the correction; who has the correction
// writes that down and then looks for alerts. One of them sees both; if both
// do, they publish the same revision under the same id. BucketState forgets
// what never finds its other half.
const (
	uncorrectedPrefix = "uncorrected." // + actor + "." + alert id: sequence on PICKET_ALERTS
	correctedPrefix   = "corrected."   // + actor: a batch of one row
)

// correctionTimeout bounds what is asked of NATS for one alert or correction.
const correctionTimeout = 10 * time.Second

// actorKey names an actor as a key may be named.
func actorKey(a alert.Actor) string {
	return schemas.FormatID(schemas.Hash128("actor", schemas.Token(a.Cluster), a.PodUID, a.ContainerID))
}

// corrigible notes a finding that JetStream has at a sequence of PICKET_ALERTS, if
// more may be known of its pod, and amends it if that is so already.
func (d *detector) corrigible(f *schemas.Finding, sequence uint64) error {
	a, ok := alert.Uncorrected(f)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), correctionTimeout)
	defer cancel()
	kv, err := d.bus.JS.KeyValue(ctx, schemas.BucketState)
	if err != nil {
		return err
	}
	value, err := json.Marshal(sequence)
	if err != nil {
		return err
	}
	key := uncorrectedPrefix + actorKey(a) + "." + f.FindingInfo.UID
	if _, err := kv.Put(ctx, key, value); err != nil {
		return fmt.Errorf("note an alert to be corrected: %w", err)
	}
	e, err := kv.Get(ctx, correctedPrefix+actorKey(a))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for a correction: %w", err)
	}
	b, err := batch.Decode(e.Value())
	if err != nil {
		return err
	}
	return d.amend(ctx, kv, key, b, 0)
}

// correct amends the alerts of the actors that a batch of class correction
// tells of.
func (d *detector) correct(data []byte) error {
	b, err := batch.Decode(data) // the detector's own batch does not outlive its turn
	if err != nil {
		return err
	}
	for row := range b.Rows() {
		if err := d.correctOne(b, row); err != nil {
			return fmt.Errorf("correct alerts: %w", err)
		}
	}
	return nil
}

func (d *detector) correctOne(b *batch.Batch, row int) error {
	ctx, cancel := context.WithTimeout(context.Background(), correctionTimeout)
	defer cancel()
	kv, err := d.bus.JS.KeyValue(ctx, schemas.BucketState)
	if err != nil {
		return err
	}
	actor := actorKey(alert.Actor{Cluster: b.Str(schemas.Cluster, row), PodUID: b.Str(schemas.PodUID, row), ContainerID: b.Str(schemas.ContainerID, row)})
	enc, err := batch.Encode(b.Slice(row, row+1))
	if err != nil {
		return err
	}
	if _, err := kv.Put(ctx, correctedPrefix+actor, enc[0].Data); err != nil {
		return err
	}
	keys, err := kv.ListKeysFiltered(ctx, uncorrectedPrefix+actor+".*")
	if err != nil {
		return err
	}
	defer func() { _ = keys.Stop() }() // it ends by itself after the last key
	for key := range keys.Keys() {
		if err := d.amend(ctx, kv, key, b, row); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// amend publishes the next revision of the alert that a key names.
func (d *detector) amend(ctx context.Context, kv jetstream.KeyValue, key string, b *batch.Batch, row int) error {
	e, err := kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil // another did it
	}
	if err != nil {
		return err
	}
	var sequence uint64
	if err := json.Unmarshal(e.Value(), &sequence); err != nil {
		return fault.Permanent(schemas.LossDecode, fmt.Errorf("key %s of bucket %s: %w", key, schemas.BucketState, err))
	}
	alerts, err := d.bus.JS.Stream(ctx, schemas.StreamAlerts)
	if err != nil {
		return err
	}
	m, err := alerts.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) { // older than the stream keeps
		return kv.Delete(ctx, key)
	}
	if err != nil {
		return err
	}
	f := &schemas.Finding{}
	if err := json.Unmarshal(m.Data, f); err != nil || !strings.HasSuffix(key, "."+f.FindingInfo.UID) {
		return kv.Delete(ctx, key) // a stream that was made anew
	}
	alert.Corrected(f, b, row, time.Now())
	if err := d.publish([]*schemas.Finding{f}, false); err != nil {
		return err
	}
	return kv.Delete(ctx, key)
}
