// Package health reports what a service lost and what it counted, as events of
// class health: stored, shown and alerted on like any other.
package health

import (
	"context"
	"encoding/binary"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/schemas"
)

// Interval is how often figures that changed are published.
const Interval = 2 * time.Second

// Reporter collects a service's losses and counters. Its methods are safe for
// concurrent use.
type Reporter struct {
	service, cluster, node, run string
	log                         *slog.Logger
	metric                      *prometheus.CounterVec

	mu  sync.Mutex
	now map[key]uint64

	flushing sync.Mutex // guards what follows
	reported map[key]uint64
	pending  []batch.Encoded // the last report, until put has taken it
	put      Put             // with which that was made
	seq      uint64
}

type key struct{ action, class, reason, subject string }

// New returns a reporter for a service. node is the node for a sensor and the
// source for an ingester; other services pass "" and report as "_<service>".
// run is the service's run id. Losses are also the metric
// picket_<service>_lost_events_total by class and reason.
func New(service, cluster, node, run string, log *slog.Logger, reg prometheus.Registerer) *Reporter {
	if node == "" {
		node = "_" + service
	}
	r := &Reporter{service: service, cluster: cluster, node: node, run: run, log: log, now: map[key]uint64{}, reported: map[key]uint64{},
		metric: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "picket_" + strings.ReplaceAll(service, "-", "_") + "_lost_events_total",
			Help: "Events lost or set aside, by class and reason.",
		}, []string{"class", "reason"})}
	reg.MustRegister(r.metric)
	return r
}

// Lost counts n events of a class ("" for unknown) lost for a reason of
// schemas.LossReasons.
func (r *Reporter) Lost(class, reason string, n uint64) { r.LostOf(class, reason, "", n) }

// LostOf is Lost for events of one subject within the class, such as a
// container. The caller bounds how many subjects there are.
func (r *Reporter) LostOf(class, reason, subject string, n uint64) {
	if n == 0 {
		return
	}
	r.metric.WithLabelValues(class, reason).Add(float64(n))
	r.mu.Lock()
	r.now[key{"loss", class, reason, subject}] += n
	r.mu.Unlock()
}

// Count sets the running total of a counter of the service, such as the events
// it has seen. A total below the one before is passed over: of goroutines that
// count at once the older can come last.
func (r *Reporter) Count(class, name string, total uint64) {
	k := key{"counters", class, name, ""}
	r.mu.Lock()
	r.now[k] = max(r.now[k], total)
	r.mu.Unlock()
}

// Put hands an encoded batch on, for later publishing or at once.
type Put func(subject string, data []byte, rows int) error

// Run publishes what changed every Interval, and once more when ctx ends.
// A report that put refuses is offered again.
func (r *Reporter) Run(ctx context.Context, put Put) error {
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			r.Flush(put)
		case <-ctx.Done():
			r.Flush(put)
			return nil
		}
	}
}

// Flush publishes what changed since the last report. A report that put has
// refused is offered again as it was, to the same put, so that one whose
// acknowledgement was lost counts once.
func (r *Reporter) Flush(put Put) {
	r.flushing.Lock()
	defer r.flushing.Unlock()
	if r.offer() {
		r.report()
		r.put = put
		r.offer()
	}
}

// offer hands the pending report on and says whether nothing is left of it.
func (r *Reporter) offer() bool {
	for len(r.pending) > 0 {
		e := r.pending[0]
		if err := r.put(schemas.RawSubject(r.cluster, r.node, schemas.Health), e.Data, e.Batch.Rows()); err != nil {
			r.log.Warn("health report not published, repeating it", "error", err)
			return false
		}
		r.pending = r.pending[1:]
	}
	return true
}

// report makes a report of what changed.
func (r *Reporter) report() {
	r.mu.Lock()
	changed := map[key]uint64{}
	for k, n := range r.now {
		if n != r.reported[k] {
			changed[k] = n
		}
	}
	r.mu.Unlock()
	if len(changed) == 0 {
		return
	}
	b := batch.NewBuilder(schemas.Health, schemas.RawColumns(schemas.Health))
	at := time.Now().UnixNano()
	for _, k := range slices.SortedFunc(maps.Keys(changed), func(a, b key) int {
		return strings.Compare(a.action+a.class+a.reason+a.subject, b.action+b.class+b.reason+b.subject)
	}) {
		r.seq++
		b.Bytes16(schemas.EventID, schemas.Hash128(r.cluster, r.node, r.service, r.run, string(binary.LittleEndian.AppendUint64(nil, r.seq))))
		b.Str(schemas.Action, k.action)
		b.Str(schemas.Cluster, r.cluster)
		b.Str(schemas.Node, r.node)
		b.Uint32(schemas.SchemaVer, schemas.SchemaVersion)
		b.Int64(schemas.EventTime, at)
		b.Int64(schemas.TimeObserved, at)
		b.Str(schemas.HealthService, r.service)
		b.Str(schemas.HealthRun, r.run)
		b.Str(schemas.HealthClass, k.class)
		b.Str(schemas.HealthReason, k.reason)
		b.Str(schemas.HealthSubject, k.subject)
		b.Uint64(schemas.HealthCount, changed[k]-r.reported[k])
		b.Uint64(schemas.HealthTotal, changed[k])
		b.EndRow()
	}
	encoded, err := batch.Encode(b.Batch())
	if err != nil {
		r.log.Error("health report not encoded", "error", err)
		return
	}
	r.pending = encoded
	maps.Copy(r.reported, changed)
}

// Direct publishes reports straight to PICKET_RAW, for services that have no
// outbox. It waits at most two seconds for the acknowledgement.
func Direct(b *bus.Bus) Put {
	return func(subject string, data []byte, rows int) error {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		id := schemas.FormatID(schemas.Hash128(subject, string(data)))
		m := nats.NewMsg(subject)
		m.Data = data
		m.Header.Set(schemas.HeaderBatchID, id)
		_, err := b.JS.PublishMsg(ctx, m, jetstream.WithMsgID(id), jetstream.WithExpectStream(schemas.StreamRaw))
		return err
	}
}
