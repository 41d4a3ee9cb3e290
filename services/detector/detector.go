// Package detector evaluates the rules over enriched events. What matches is
// published on PICKET_ALERTS as an OCSF Detection Finding; a writer with a
// consumer of its own takes it from there into ClickHouse, so that a storage
// outage never stops detection.
package detector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"picket/internal/alert"
	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/health"
	"picket/internal/rules"
	"picket/internal/service"
	"picket/internal/store"
	defaults "picket/rules"
	"picket/schemas"
)

// stopGrace is how long a stopping detector waits for what it has begun.
const stopGrace = 5 * time.Second

// publishWindow bounds the messages of one batch that wait for JetStream at
// once, publishPending those of all batches: nats.go fails beyond 4,000.
const publishWindow, publishPending = 256, 2048

// Run runs the detector and the alerts' writer until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	files := newFileWatch(cfg.Rules)
	set, warnings, err := LoadRules(cfg.Rules)
	if err != nil {
		return err
	}
	rt, err := service.Start("detector", cfg.NATS, cfg.Log, cfg.Admin)
	if err != nil {
		return err
	}
	defer rt.Close()
	for _, w := range warnings {
		rt.Log.Warn("rule file", "warning", w.String())
	}
	if err := rt.Verify(ctx, schemas.StreamEvents, schemas.StreamMatch, schemas.StreamAlerts, "KV_"+schemas.BucketRules); err != nil {
		return err
	}
	selector, err := newSelector(rt.Bus, set, rt.Log)
	if err != nil {
		return err
	}
	keeper := newKeeper(rt.Bus, files, set, len(warnings), rt.Log, rt.Metrics, selector.use)
	d := &detector{bus: rt.Bus, keeper: keeper, selector: selector, metrics: newMetrics(rt.Metrics), room: semaphore.NewWeighted(publishPending),
		health: health.New(schemas.ServiceDetector, cfg.Cluster, "", bus.NewRunID(), rt.Log, rt.Metrics)}

	if d.correlator, err = newCorrelator(d, cfg.Correlation, rt.Log, rt.Metrics); err != nil {
		return err
	}

	// The reporter outlives the work: it reports how that ended.
	reports, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var reporter errgroup.Group
	reporter.Go(func() error { return d.health.Run(reports, health.Direct(rt.Bus)) })
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { keeper.run(gctx); return nil })
	g.Go(func() error {
		select {
		case <-keeper.ready:
			rt.Started()
			return d.consume(gctx)
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error { return d.correlator.run(gctx) })
	g.Go(func() error { return store.WriteAlerts(gctx, cfg.ClickHouse, rt, d.health) })
	err = g.Wait()
	stop()
	return errors.Join(err, reporter.Wait())
}

// LoadRules loads rule files and folders in order, or the default pack when
// there are none. A rule that uses what Picket does not provide is left out
// with a warning; everything else wrong is an error that lists all faults.
func LoadRules(paths []string) (*rules.Set, []rules.Warning, error) {
	files, err := defaults.Files(paths)
	if err != nil {
		return nil, nil, err
	}
	set, warnings, err := rules.Load(files, rules.Options{})
	if err != nil {
		return nil, warnings, fmt.Errorf("rules do not load:\n%w", err)
	}
	return set, warnings, nil
}

type detector struct {
	bus      *bus.Bus
	keeper   *keeper          // of the rules in force
	set      *rules.Set       // that eval evaluates: consume's
	eval     *rules.Evaluator // consume's
	metrics  *metrics
	health   *health.Reporter
	selector *selector
	room     *semaphore.Weighted // messages that may wait for JetStream

	correlator *correlator
}

type metrics struct {
	events  *prometheus.CounterVec
	alerts  *prometheus.CounterVec
	latency prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "picket_detector_evaluated_events_total", Help: "Events evaluated."}, []string{"class"}),
		alerts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "picket_detector_alerts_total", Help: "Findings that JetStream has, by rule and severity."}, []string{"rule", "severity"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "picket_detector_alert_delay_seconds", Help: "From the event to its finding on PICKET_ALERTS.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 600}}),
	}
	reg.MustRegister(m.events, m.alerts, m.latency)
	return m
}

// consume evaluates PICKET_EVENTS until ctx ends.
func (d *detector) consume(ctx context.Context) error {
	gaps := bus.NewGaps()
	var decoder batch.Decoder
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { d.selector.run(ctx) })
	return d.bus.Consume(ctx, schemas.StreamEvents, schemas.DurableDetector, stopGrace, func(m *bus.Message) {
		if missed := gaps.Observe(m); missed > 0 {
			class, _ := announced(m)
			d.health.Lost(class, schemas.LossStreamLimit, missed)
		}
		b, err := decoder.Decode(m.Data())
		if err != nil {
			d.settle(m, err)
			return
		}
		if b.Class() == schemas.Correction {
			wg.Go(func() { d.settle(m, d.correct(m.Data())) })
			return
		}
		d.useRules(d.keeper.set())
		d.metrics.events.WithLabelValues(b.Class().String()).Add(float64(b.Rows()))
		d.selector.observe(b)
		found, fed := d.evaluate(d.eval, b)
		if len(found) == 0 && len(fed) == 0 {
			m.Done(nil)
			return
		}
		again := m.Again || m.Headers().Get(schemas.HeaderReplayed) != ""
		wg.Go(func() { d.settle(m, errors.Join(d.publish(found, again), d.correlator.feed(fed))) })
	})
}

// useRules takes up the rules in force, between two batches: a batch is
// evaluated by one set, whole.
func (d *detector) useRules(set *rules.Set) {
	if set != d.set {
		d.set, d.eval = set, set.NewEvaluator()
	}
}

// settle ends the work on a message; what nobody can evaluate counts as lost.
func (d *detector) settle(m *bus.Message, err error) {
	if m.Done(err) {
		class, rows := announced(m)
		d.health.Lost(class, schemas.LossDeadLetter, rows)
	}
}

// announced returns what subject and header say of a message: its class, "" if
// unknown, and its rows, 1 at least.
func announced(m *bus.Message) (class string, rows uint64) {
	if _, c, err := schemas.ParseEventsSubject(m.Subject()); err == nil {
		class = c.String()
	}
	rows, err := strconv.ParseUint(m.Headers().Get(schemas.HeaderRows), 10, 64)
	if err != nil || rows == 0 || rows > batch.MaxRows {
		rows = 1
	}
	return class, rows
}

// publish returns when JetStream has every finding. Those it has already are
// recognised by their id; again says that they may be older than JetStream
// remembers ids, so that the writer looks for them.
func (d *detector) publish(found []*schemas.Finding, again bool) error {
	for some := range slices.Chunk(found, publishWindow) {
		out := make([]*nats.Msg, len(some))
		for i, f := range some {
			data, err := alert.Encode(f)
			if err != nil {
				return fmt.Errorf("finding of rule %q: %w", f.Unmapped.Rule, err)
			}
			msg := nats.NewMsg(alert.Subject(f))
			msg.Data = data
			msg.Header.Set(nats.MsgIdHdr, alert.MessageID(f))
			msg.Header.Set(schemas.HeaderBatchID, alert.MessageID(f))
			if again {
				msg.Header.Set(schemas.HeaderReplayed, "1")
			}
			out[i] = msg
		}
		sequences := make([]uint64, len(some))
		if err := d.send(schemas.StreamAlerts, out, func(i int, ack *jetstream.PubAck) {
			f := some[i]
			sequences[i] = ack.Sequence
			if ack.Duplicate {
				return
			}
			d.metrics.alerts.WithLabelValues(f.Unmapped.Rule, f.SeverityID.String()).Inc()
			if f.Unmapped.Correlation == nil && f.Metadata.Sequence == 1 { // of those correlator tells
				d.metrics.latency.Observe(time.Since(f.Unmapped.Time).Seconds())
			}
		}); err != nil {
			return fmt.Errorf("publish findings: %w", err)
		}
		for i, f := range some {
			if err := d.corrigible(f, sequences[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// send publishes at most publishWindow messages together and returns when the stream
// has all of them; stored is told of each.
func (d *detector) send(stream string, out []*nats.Msg, stored func(i int, ack *jetstream.PubAck)) error {
	if err := d.room.Acquire(context.Background(), int64(len(out))); err != nil {
		return err // the context does not end
	}
	defer d.room.Release(int64(len(out)))
	futures := make([]jetstream.PubAckFuture, len(out))
	for i, m := range out {
		var err error
		if futures[i], err = d.bus.JS.PublishMsgAsync(m, jetstream.WithExpectStream(stream)); err != nil {
			return err
		}
	}
	var errs []error
	for i, f := range futures {
		select {
		case ack := <-f.Ok():
			stored(i, ack)
		case err := <-f.Err():
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
