package auditlogingest

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"picket/internal/health"
	"picket/schemas"
	"picket/services/auditlog-ingest/source"
)

// tally counts what happens to records: received = accepted + duplicates +
// rejected + lost, once nothing is under way.
type tally struct {
	received, accepted, duplicates, trimmed, rejected, bytes, waits, gaps *counter
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
	return &tally{
		received:   c("received_records", "Records that the source brought."),
		accepted:   c("accepted_events", "Records that are in the spool or beyond it."),
		duplicates: c("duplicate_records", "Records that were dropped because they had been taken before: not a loss."),
		trimmed:    c("trimmed_events", "Events whose request and response objects were dropped because the record was too large or nested too deep."),
		rejected:   c("rejected_records", "Records that were set aside on the dead-letter stream, by reason.", "reason"),
		bytes:      c("received_bytes", "Bytes that the source brought, decompressed."),
		waits:      c("spool_waits", "Times that a batch was offered to a spool that took no more."),
		gaps:       c("gaps", "Places where a log file's owner removed records before they were read; how many is not known."),
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
}
