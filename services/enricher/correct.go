package enricher

import (
	"context"
	"strconv"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"picket/internal/batch"
	"picket/schemas"
)

const (
	// correctEvery is how long the corrector waits after a change of the
	// metadata, so that what comes together becomes one batch.
	correctEvery = 200 * time.Millisecond
	// correctFor is how long after its first event an actor is corrected.
	correctFor = time.Hour
	// containerWait is how long the container of a pod that is known is waited
	// for before the pod is told without it.
	containerWait = 5 * time.Second
	// maxUncorrected bounds the actors that are remembered; the oldest go first
	// and are counted.
	maxUncorrected = 16384
)

// corrector remembers the actors of events that went on without all that there
// is to say of them, and says it when it is known: as rows of class correction
// on PICKET_EVENTS, one for each pod UID and container id as the events have
// them. note is safe for concurrent use.
type corrector struct {
	s    *server
	open *lru.Cache[actor, gap]
	wake chan struct{}
	next int // number of the next batch
}

// actor is whom events name.
type actor struct {
	cluster     string
	node        string // token; "" of an audit event
	podUID      string
	containerID string
}

// gap is what is not told yet of an actor.
type gap struct {
	since time.Time
	// pod: what is known of the pod is told, and of the container not.
	pod bool
}

func newCorrector(s *server) (*corrector, error) {
	c := &corrector{s: s, wake: make(chan struct{}, 1)}
	var err error
	c.open, err = lru.New[actor, gap](maxUncorrected)
	return c, err
}

// note remembers the actors of the batch that e has joined last of which more
// may be known later.
func (c *corrector) note(e *Enricher) {
	if c == nil {
		return
	}
	noted := false
	for i := range e.targets {
		t := &e.targets[i]
		if t.podUID == "" || !t.later() {
			continue
		}
		a := actor{t.cluster, t.nodeName, t.podUID, t.containerID}
		if c.open.Contains(a) {
			continue
		}
		known, evicted := c.open.ContainsOrAdd(a.clone(), gap{since: time.Now(), pod: t.outcome == outcomeResolved})
		if evicted {
			c.s.metrics.uncorrected.Inc()
		}
		noted = noted || !known
	}
	if noted {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// run publishes corrections until ctx ends.
func (c *corrector) run(ctx context.Context) error {
	tick := time.NewTicker(containerWait) // for what was waited for long enough
	defer tick.Stop()
	for {
		changed := c.s.meta.changed.wait()
		c.correct(ctx)
		select {
		case <-changed:
		case <-c.wake:
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-time.After(correctEvery):
		case <-ctx.Done():
			return nil
		}
	}
}

// told is an actor of which something can be told now.
type told struct {
	actor
	whole bool // its container too
	t     target
}

// correct tells what is known now. What cannot be published stays open.
func (c *corrector) correct(ctx context.Context) {
	found := c.known(time.Now())
	for len(found) > 0 {
		n := min(len(found), batch.MaxRows)
		if !c.publish(ctx, found[:n]) {
			return
		}
		for _, f := range found[:n] {
			if f.whole {
				c.open.Remove(f.actor)
			} else if g, ok := c.open.Peek(f.actor); ok {
				g.pod = true
				c.open.Add(f.actor, g)
			}
		}
		found = found[n:]
	}
}

// known returns the open actors of which something is known that is not told.
func (c *corrector) known(now time.Time) []told {
	var out []told
	m := c.s.meta
	m.RLock()
	defer m.RUnlock()
	for _, a := range c.open.Keys() {
		g, ok := c.open.Peek(a)
		if !ok {
			continue
		}
		if now.Sub(g.since) > correctFor {
			c.open.Remove(a)
			if !g.pod {
				c.s.metrics.uncorrected.Inc()
			}
			continue
		}
		p := m.running(a.podUID, a.containerID)
		if p == nil {
			continue
		}
		f := told{actor: a, whole: a.containerID == "" || p.instance(a.containerID) != nil}
		if !f.whole && (g.pod || now.Sub(g.since) < containerWait) {
			continue
		}
		f.t = target{podUID: a.podUID, containerID: a.containerID}
		if !m.describe(&f.t, p, a.node, "", a.node == "") {
			c.open.Remove(a) // of another node: nothing to tell
			continue
		}
		out = append(out, f)
	}
	return out
}

// publish publishes corrections as one batch, and reports whether PICKET_EVENTS
// has it. Once more after a crash is harmless: the newest counts.
func (c *corrector) publish(ctx context.Context, found []told) bool {
	b := batch.NewBuilder(schemas.Correction, schemas.Columns(schemas.Correction))
	at := time.Now()
	for _, f := range found {
		b.Bytes16(schemas.EventID, schemas.Hash128("correction", f.cluster, f.podUID, f.containerID, strconv.FormatInt(at.UnixNano(), 10)))
		b.Str(schemas.Action, "correction")
		b.Uint32(schemas.SchemaVer, schemas.SchemaVersion)
		b.Str(schemas.Cluster, f.cluster)
		b.Str(schemas.Node, f.node)
		b.Int64(schemas.EventTime, at.UnixNano())
		b.Int64(schemas.TimeObserved, at.UnixNano())
		b.Str(schemas.PodUID, f.podUID)
		b.Str(schemas.ContainerID, f.containerID)
		f.t.write(b)
		b.EndRow()
	}
	parts, err := batch.Encode(b.Batch())
	if err != nil {
		c.s.rt.Log.Error("corrections not encoded; these events stay as they are", "actors", len(found), "error", err)
		return true
	}
	subject := c.s.subject(schemas.EventsSubject(c.s.meta.cluster, "_"+schemas.ServiceEnricher, schemas.Correction))
	for _, p := range parts {
		c.next++
		id := schemas.BatchIDOf(c.s.runID, uint64(c.next))
		if _, err := c.s.publish(ctx, subject, id, source{id: id, spare: id + "-again"}, p); err != nil {
			return false // ctx has ended
		}
		rows := uint64(p.Batch.Rows())
		c.s.metrics.enriched.WithLabelValues(schemas.Correction.String()).Add(float64(rows))
		c.s.metrics.received.WithLabelValues(schemas.Correction.String()).Add(float64(rows))
		c.s.count(schemas.Correction, "enriched", c.s.totals[schemas.Correction].enriched.Add(rows))
	}
	return true
}

func (a actor) clone() actor {
	return actor{strings.Clone(a.cluster), strings.Clone(a.node), strings.Clone(a.podUID), strings.Clone(a.containerID)}
}
