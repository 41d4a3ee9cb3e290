package auditlogingest

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"picket/internal/health"
	"picket/schemas"
	"picket/services/auditlog-ingest/source"
)

// tally counts what happens to records: received = accepted + duplicates +
// rejected + dropped + lost, once nothing is under way.
type tally struct {
	received, accepted, duplicates, trimmed, rejected, dropped, repeated, bytes, waits, gaps, forgotten *counter
	lags                                                                                                *lags
}

// counter is a metric and its total over all labels.
type counter struct {
	vec   *prometheus.CounterVec
	total atomic.Uint64
}

func (c *counter) add(s source.Source, n int, more ...string) {
	c.vec.WithLabelValues(append([]string{s.Name()}, more...)...).Add(float64(n))
	c.total.Add(uint64(n))
}

func newTally(reg prometheus.Registerer) *tally {
	c := func(name, help string, labels ...string) *counter {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "picket_auditlog_ingest_" + name + "_total", Help: help}, append([]string{"source"}, labels...))
		reg.MustRegister(v)
		return &counter{vec: v}
	}
	t := &tally{
		received:   c("received_records", "Records that the source brought."),
		accepted:   c("accepted_events", "Records that are in the spool or beyond it."),
		duplicates: c("duplicate_records", "Records that were dropped because they had been taken before: not a loss."),
		trimmed:    c("trimmed_events", "Events whose request and response objects were dropped because the record was too large or nested too deep."),
		rejected:   c("rejected_records", "Records that were set aside on the dead-letter stream, by reason.", "reason"),
		dropped:    c("dropped_events", "Events that the drop list leaves out, by its entry.", "name"),
		repeated:   c("repeated_audit_ids", "Events with the auditID and stage of another, and other content."),
		bytes:      c("received_bytes", "Bytes that the source brought, decompressed."),
		waits:      c("spool_waits", "Times that a batch was offered to a spool, or to PICKET_RAW, that took no more."),
		gaps:       c("gaps", "Places where records were removed before they were read; how many is not known."),
		forgotten:  c("forgotten_ids", "Event ids forgotten before their time, for want of room."),
		lags:       newLags(),
	}
	reg.MustRegister(t.lags)
	return t
}

// took counts a record that is an event.
func (t *tally) took(s source.Source, e *event, r *source.Record) {
	t.received.add(s, 1)
	if r.Trimmed != nil {
		t.bytes.add(s, int(r.Trimmed.Length))
	} else {
		t.bytes.add(s, len(r.Text))
	}
	t.lags.took(s, e.time, r.Arrived)
}

// refused counts a record that is none.
func (t *tally) refused(s source.Source, length int64) {
	t.received.add(s, 1)
	t.bytes.add(s, int(length))
	t.lags.took(s, 0, time.Time{})
}

// marks counts what is special about an event that is new.
func (t *tally) marks(s source.Source, e *event) {
	if e.trimmed {
		t.trimmed.add(s, 1)
	}
	if e.repeated {
		t.repeated.add(s, 1)
	}
}

// report publishes the totals with the next health report.
func (t *tally) report(h *health.Reporter) {
	class := schemas.Audit.String()
	h.Count(class, "received", t.received.total.Load())
	h.Count(class, "accepted", t.accepted.total.Load())
	h.Count(class, "duplicates", t.duplicates.total.Load())
	h.Count(class, "trimmed", t.trimmed.total.Load())
	h.Count(class, "rejected", t.rejected.total.Load())
	h.Count(class, "repeated_ids", t.repeated.total.Load())
}
