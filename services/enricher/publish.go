package enricher

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/schemas"
)

// publishTimeout is how long an acknowledgement is waited for before the
// message is published again under the same id.
const publishTimeout = 10 * time.Second

// subject is a subject of PICKET_EVENTS. One message at a time is on its way
// to it: then the numbers and cumulative rows in the headers are exactly those
// of the messages that the stream has, in its order, whatever fails between.
// Subjects do not wait for each other.
type subject struct {
	name string

	mu   sync.Mutex
	run  string // of this process; renewed where the count became uncertain
	next uint64 // number of the next batch
	rows uint64 // acknowledged in this run
}

func (s *server) subject(name string) *subject {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.subjects[name]
	if t == nil {
		t = &subject{name: name, run: s.runID, next: 1}
		s.subjects[name] = t
	}
	return t
}

// source is what the raw message says of its batch.
type source struct {
	id string // of the batch; the same at every delivery
	// spare is another id, for a batch whose id is taken; the same at every
	// delivery, and nobody can choose it.
	spare    string
	replayed bool // may have been published before
}

func origin(m taken) source {
	o := source{id: m.Headers().Get(schemas.HeaderBatchID), spare: "raw-" + strconv.FormatUint(m.Sequence, 10)}
	if md, err := m.Metadata(); err == nil {
		// A stream made anew numbers from 1 again.
		o.spare += "-" + strconv.FormatInt(md.Timestamp.UnixNano(), 10)
	}
	if !validID(o.id) {
		o.id = o.spare
	}
	o.replayed = m.Again || m.Headers().Get(schemas.HeaderReplayed) == "1"
	return o
}

// maxIDLength bounds a batch id: 32 hex digits, a hyphen and a number in 20
// digits, or a UUID, with room.
const maxIDLength = 64

func validID(id string) bool {
	if id == "" || len(id) > maxIDLength || strings.HasPrefix(id, "raw-") {
		return false
	}
	for i := range len(id) {
		if c := id[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-') {
			return false
		}
	}
	return true
}

// publish publishes a part of a batch until PICKET_EVENTS has it or work ends.
// stored is false if the stream had it before.
func (s *server) publish(work context.Context, t *subject, id string, o source, p batch.Encoded) (stored bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rows := uint64(p.Batch.Rows())
	unsure := false // an attempt was made whose outcome is not known
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		m := nats.NewMsg(t.name)
		m.Data = p.Data
		m.Header.Set(schemas.HeaderRun, t.run)
		m.Header.Set(schemas.HeaderBatch, strconv.FormatUint(t.next, 10))
		m.Header.Set(schemas.HeaderRows, strconv.FormatUint(rows, 10))
		m.Header.Set(schemas.HeaderCumulative, strconv.FormatUint(t.rows+rows, 10))
		m.Header.Set(schemas.HeaderVersion, strconv.Itoa(schemas.SchemaVersion))
		m.Header.Set(schemas.HeaderBatchID, id)
		if o.replayed || unsure {
			m.Header.Set(schemas.HeaderReplayed, "1")
		}
		ctx, cancel := context.WithTimeout(work, publishTimeout)
		ack, err := s.rt.Bus.JS.PublishMsg(ctx, m, jetstream.WithMsgID(id), jetstream.WithExpectStream(schemas.StreamEvents))
		cancel()
		switch {
		case err == nil && !ack.Duplicate:
			t.next++
			t.rows += rows
			return true, nil
		case err == nil && unsure:
			// It may be an attempt of ours that is there, counted in its
			// headers, or one of an earlier process: start counting anew.
			t.run, t.next, t.rows = bus.NewRunID(), 1, 0
			return true, nil
		case err == nil && !o.replayed && !strings.HasPrefix(id, "raw-"):
			s.metrics.duplicateIDs.Inc()
			s.seldom.Warn("a batch id was used twice; publishing the second batch under another id. A sender is faulty or lies", "subject", t.name, "id", id)
			id = o.spare + strings.TrimPrefix(id, o.id)
			continue
		case err == nil:
			return false, nil
		}
		if work.Err() != nil {
			return false, work.Err()
		}
		unsure = true
		s.metrics.publishErrors.Inc()
		msg := "publish failed, trying again; the raw batches stay in " + schemas.StreamRaw
		if bus.IsStreamFull(err) {
			msg = "JetStream refuses batches (stream " + schemas.StreamEvents + ", or its disk), trying again; the raw batches stay in " + schemas.StreamRaw
		}
		s.seldom.Warn(msg, "subject", t.name, "error", err)
		select {
		case <-time.After(pause):
		case <-work.Done():
			return false, work.Err()
		}
	}
}
