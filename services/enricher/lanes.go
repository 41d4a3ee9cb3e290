package enricher

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/fault"
	"picket/schemas"
)

// take puts a message at the end of its lane. It does not block: how much can
// be in hand is bounded by the durable's max_ack_pending.
func (s *server) take(work context.Context, m *bus.Message) {
	s.metrics.inHand.Set(float64(s.inHand.Add(1)))
	s.inHandBytes.Add(int64(len(m.Data())))
	if s.crowded() {
		s.relax.signal()
	}
	lane := m.Subject()
	s.mu.Lock()
	defer s.mu.Unlock()
	queue, running := s.lanes[lane]
	s.lanes[lane] = append(queue, taken{m, time.Now()})
	if !running {
		s.wg.Go(func() { s.lane(work, lane) })
	}
}

// crowded reports whether too much is in hand to wait for anything.
func (s *server) crowded() bool {
	return s.inHand.Load() > int64(s.cfg.Kubernetes.HeldMax) || s.inHandBytes.Load() > s.cfg.Kubernetes.HeldBytes
}

// lane does a lane's messages in order and ends when there is none. When work
// ends it leaves what is not done: it will be delivered again.
func (s *server) lane(work context.Context, lane string) {
	for {
		s.mu.Lock()
		queue := s.lanes[lane]
		if len(queue) == 0 || work.Err() != nil {
			delete(s.lanes, lane)
			s.mu.Unlock()
			return
		}
		m := queue[0]
		queue[0] = taken{}
		s.lanes[lane] = queue[1:]
		s.mu.Unlock()

		err := s.do(work, m)
		if err != nil && !fault.IsPermanent(err) {
			continue // work has ended
		}
		if err != nil {
			err = s.setAside(m, err)
		}
		m.Done(err)
		s.metrics.inHand.Set(float64(s.inHand.Add(-1)))
		s.inHandBytes.Add(-int64(len(m.Data())))
	}
}

// do joins and publishes a message. It returns nil when PICKET_EVENTS has its
// events, a permanent error when they cannot be joined, or work's end.
func (s *server) do(work context.Context, m taken) error {
	cluster, node, class, err := schemas.ParseRawSubject(m.Subject())
	if err == nil && class == schemas.Correction {
		err = errors.New("no sender corrects what was joined")
	}
	if err != nil {
		return fault.Permanent("subject", err)
	}
	parts, err := s.enrich(work, m, cluster, node, class)
	if err != nil {
		return err
	}
	o := origin(m)
	subject := s.subject(schemas.EventsSubject(cluster, node, class))
	for i, p := range parts {
		id := o.id
		if len(parts) > 1 {
			id += "-" + strconv.Itoa(i)
		}
		rows := uint64(p.Batch.Rows())
		stored, err := s.publish(work, subject, id, o, p)
		if err != nil {
			return err
		}
		if !stored {
			s.metrics.duplicate.WithLabelValues(class.String()).Add(float64(rows))
			continue
		}
		s.metrics.enriched.WithLabelValues(class.String()).Add(float64(rows))
		s.count(class, "enriched", s.totals[class].enriched.Add(rows))
	}
	return nil
}

// count reports a running total. Class health is left out: the report would
// make the next one necessary.
func (s *server) count(class schemas.Class, name string, total uint64) {
	if class != schemas.Health {
		s.health.Count(class.String(), name, total)
	}
}

func (s *server) addReceived(class schemas.Class, rows uint64) {
	s.metrics.received.WithLabelValues(class.String()).Add(float64(rows))
	s.count(class, "received", s.totals[class].received.Add(rows))
}

// setAside dead-letters a message that cannot be joined and counts its events
// as lost, once the dead letter is stored. It returns what to settle the
// message with.
func (s *server) setAside(m taken, cause error) error {
	s.seldom.Error("message set aside on the dead-letter stream", "subject", m.Subject(), "sequence", m.Sequence, "reason", fault.Reason(cause), "error", cause)
	letter := bus.DeadLetter{Subject: m.Subject(), Stream: m.Stream, Sequence: m.Sequence, Cause: cause}
	if err := s.rt.Bus.DeadLetter(context.Background(), m.Data(), letter); err != nil {
		return err
	}
	reason := schemas.LossDeadLetter
	if fault.Reason(cause) == schemas.LossOversized {
		reason = schemas.LossOversized
	}
	// How many they were only the header says; one at least.
	rows, err := strconv.ParseUint(m.Headers().Get(schemas.HeaderRows), 10, 64)
	if err != nil || rows == 0 || rows > batch.MaxRows {
		rows = 1
	}
	name := ""
	if _, _, class, err := schemas.ParseRawSubject(m.Subject()); err == nil {
		name = class.String()
		s.addReceived(class, rows)
	}
	s.health.Lost(name, reason, rows)
	return nil
}

// enrich decodes, joins and encodes a message; a batch whose pods are not known
// yet waits for them before that, within bounds.
func (s *server) enrich(work context.Context, m taken, cluster, node string, class schemas.Class) ([]batch.Encoded, error) {
	e, err := s.borrow(work)
	if err != nil {
		return nil, err
	}
	defer func() {
		if e != nil {
			s.enrichers <- e
		}
	}()
	b, err := e.decode(m.Data(), class)
	if err != nil {
		return nil, err
	}
	if missing := e.missing(b, cluster); len(missing) > 0 {
		// What waits holds neither a place nor the decoded batch.
		s.enrichers <- e
		e, b = nil, nil
		s.wait(work, missing, m.at)
		if e, err = s.borrow(work); err != nil {
			return nil, err
		}
		if b, err = e.decode(m.Data(), class); err != nil {
			return nil, err
		}
	}
	joined, err := e.Enrich(b, cluster, node)
	if err != nil {
		return nil, err
	}
	parts, leftOut, err := e.encode(joined)
	if err != nil {
		return nil, err
	}
	if leftOut != "" {
		s.metrics.reduced.WithLabelValues(leftOut).Inc()
	}
	if b.Rows() == 0 {
		return nil, nil
	}
	s.addReceived(class, uint64(b.Rows()))
	for o, n := range e.last.outcomes {
		if n > 0 {
			s.metrics.joined.WithLabelValues(class.String(), outcomeNames[o]).Add(float64(n))
		}
	}
	s.corrector.note(e)
	if n := e.last.unknownContainer; n > 0 {
		s.metrics.unknownContainer.WithLabelValues(class.String()).Add(float64(n))
	}
	if n := e.last.overwritten; n > 0 {
		s.metrics.overwritten.WithLabelValues(class.String()).Add(float64(n))
		s.seldom.Warn("events name another cluster or node than their publisher's credentials; the names were replaced. Check cluster and node in the configuration of that sensor", "subject", m.Subject(), "names", n)
	}
	if n := e.last.outcomes[outcomeForeignNode]; n > 0 {
		s.seldom.Warn("events of pods that run on another node than the sensor's; they stay unresolved. Check node in the configuration of that sensor: it must be the node's name in Kubernetes", "subject", m.Subject(), "events", n)
	}
	return parts, nil
}

// borrow takes an Enricher when one is free.
func (s *server) borrow(work context.Context) (*Enricher, error) {
	select {
	case e := <-s.enrichers:
		return e, nil
	case <-work.Done():
		return nil, work.Err()
	}
}

// decode reads a raw batch of the class that its subject says.
func (e *Enricher) decode(data []byte, class schemas.Class) (*batch.Batch, error) {
	b, err := e.decoder.Decode(data)
	if err != nil {
		return nil, err
	}
	if b.Class() != class {
		return nil, fault.Permanent("class", fmt.Errorf("batch of class %s on a subject of class %s", b.Class(), class))
	}
	return b, nil
}

// encode encodes a joined batch as one message. Where joining made it larger
// than a batch may be, labels are left out, or all that was joined; what then
// is still too large, because the sender packed it tighter, is split. So the
// number of messages follows from the raw batch alone, whatever is known of
// its pods: doing it again gives the same ids for the same rows.
func (e *Enricher) encode(joined *batch.Batch) (parts []batch.Encoded, leftOut string, err error) {
	if parts, err = e.encoder.Encode(joined); err == nil && len(parts) == 1 {
		return parts, "", nil
	}
	if parts, err = e.encoder.Encode(joined.Select(withoutLabels[joined.Class()])); err == nil && len(parts) == 1 {
		return parts, "labels", nil
	}
	parts, err = e.encoder.Encode(joined.Select(notJoined[joined.Class()]))
	return parts, "everything", err
}

var notJoined = columnsByClass(func(f *schemas.Field) bool { return !f.Enriched })

var withoutLabels = columnsByClass(func(f *schemas.Field) bool {
	return f != schemas.PodLabels.Field() && f != schemas.PodAnnotations.Field() && f != schemas.NamespaceLabels.Field()
})

// columnsByClass returns the columns of each class that pass keep.
func columnsByClass(keep func(*schemas.Field) bool) map[schemas.Class][]schemas.FieldID {
	out := map[schemas.Class][]schemas.FieldID{}
	for _, c := range schemas.Classes() {
		for _, id := range schemas.Columns(c) {
			if keep(id.Field()) {
				out[c] = append(out[c], id)
			}
		}
	}
	return out
}

// wait waits until all pods are known, but not longer than wait_for_pod after
// the batch was taken or the pod was first asked for, and not while too much
// is in hand.
func (s *server) wait(work context.Context, missing []wanted, at time.Time) {
	start, patience := time.Now(), s.cfg.Kubernetes.WaitForPod
	until := time.Time{}
	for _, w := range missing {
		first, known, _ := s.waited.PeekOrAdd(w.podUID, start)
		if !known {
			first = start
		}
		if t := first.Add(patience); t.After(until) {
			until = t
		}
	}
	if t := at.Add(patience); t.Before(until) {
		until = t
	}
	if !until.After(start) {
		return
	}
	s.metrics.waiting.Inc()
	defer s.metrics.waiting.Dec()
	defer func() { s.metrics.waitSeconds.Observe(time.Since(start).Seconds()) }()
	timer := time.NewTimer(until.Sub(start))
	defer timer.Stop()
	for {
		changed, relax := s.meta.changed.wait(), s.relax.wait()
		if s.meta.knowsAll(missing) || s.crowded() {
			return
		}
		select {
		case <-changed:
		case <-relax:
		case <-timer.C:
			return
		case <-work.Done():
			return
		}
	}
}
