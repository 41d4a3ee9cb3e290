package detector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"picket/internal/alert"
	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/correlation"
	"picket/internal/rules"
	"picket/internal/seldom"
	"picket/schemas"
)

// Rules about several events. What matches is published to the partition of
// PICKET_MATCH that the rule and the key belong to. Of the detectors that run each
// owns a part of the partitions: the server pins a partition's consumer to one
// client. An owner keeps the partition's state in memory and writes it to
// BucketState before it acknowledges what is in it, and before it publishes the
// alerts that came of it. The write names the revision it follows, so that of two
// who both hold themselves for the owner only one gets further: the pin saves work,
// the revision makes it right.

const (
	// maxSnapshot is how large a stored state may be, compressed: NATS' default
	// max_payload is 1 MiB.
	maxSnapshot = 960 << 10
	// commitAfter is how long a state with matches that are not yet acknowledged
	// waits for more; with an alert it waits alertAfter. commitMost unacknowledged
	// messages wait no longer: it is below what the consumer lets be under way.
	commitAfter, alertAfter, commitMost = time.Second, 10 * time.Millisecond, 100
	// maxOutbox is how many bytes of alerts a state takes on before it is written.
	maxOutbox = 512 << 10
	// heartbeat is how often a detector says that it is there; one that was silent
	// for memberGone gets no partitions.
	heartbeat, memberGone = 4 * time.Second, 14 * time.Second
	// refreshAfter is when a state that nothing changes is stored again: the bucket
	// forgets what nobody writes for a week.
	refreshAfter = 24 * time.Hour
	// pullExpiry is how often an idle owner asks again; the server lets go of one
	// that does not within bus.PinnedTTL.
	pullExpiry = 4 * time.Second
	// maxFuture is how far in the future an event may be: the clock of a node must
	// not make the events of others late.
	maxFuture = 5 * time.Minute
	// A value of a baseline is fed again after knownFor; at most maxKnown are
	// remembered not to be.
	knownFor, maxKnown = time.Hour, 1 << 17
	// maxBehind is how many batches may wait in PICKET_EVENTS for the time to go on
	// without events.
	maxBehind = 256
)

type correlator struct {
	d       *detector
	log     *slog.Logger
	seldom  *seldom.Logger // of what every alert can cause
	limits  correlation.Limits
	member  string // this detector among those that run
	metrics *correlatorMetrics
	known   *lru.Cache[[16]byte, time.Time]
	clock   atomic.Int64 // ns: every event before has been evaluated
	parts   [correlation.Partitions]*partition
	// totals, by what was given up.
	late, keys, events, values, future atomic.Uint64
}

type correlatorMetrics struct {
	fed      prometheus.Counter
	givenUp  *prometheus.CounterVec
	owned    prometheus.Gauge
	snapshot prometheus.Histogram
	stored   prometheus.Counter
	delay    prometheus.Histogram
}

func newCorrelator(d *detector, cfg CorrelationConfig, log *slog.Logger, reg prometheus.Registerer) (*correlator, error) {
	known, err := lru.New[[16]byte, time.Time](maxKnown)
	if err != nil {
		return nil, err
	}
	c := &correlator{d: d, log: log, seldom: seldom.New(log), member: bus.NewRunID(), known: known,
		limits: correlation.Limits{Lateness: cfg.Lateness, Keys: cfg.Keys, Bytes: cfg.Bytes},
		metrics: &correlatorMetrics{
			fed:      prometheus.NewCounter(prometheus.CounterOpts{Name: "picket_detector_correlation_matches_total", Help: "Matches of rules about several events that JetStream has."}),
			givenUp:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "picket_detector_correlation_given_up_total", Help: "What rules about several events did not use: matches that came too late or from the future, and for want of room keys, events and values of baselines."}, []string{"what"}),
			owned:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "picket_detector_correlation_partitions", Help: "Partitions of PICKET_MATCH that this detector works on."}),
			snapshot: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "picket_detector_correlation_commit_seconds", Help: "Time to store the state of a partition and what came of it.", Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5}}),
			stored:   prometheus.NewCounter(prometheus.CounterOpts{Name: "picket_detector_correlation_stored_bytes_total", Help: "Bytes of state stored, compressed."}),
			delay: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "picket_detector_correlated_alert_delay_seconds", Help: "From the event that completed it to the finding of a rule about several events, at its first revision; absences apart.",
				Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 600}}),
		}}
	for i := range c.parts {
		c.parts[i] = &partition{c: c, n: i, change: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
	}
	reg.MustRegister(c.metrics.fed, c.metrics.givenUp, c.metrics.owned, c.metrics.snapshot, c.metrics.stored, c.metrics.delay,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "picket_detector_correlation_keys", Help: "Keys that the partitions of this detector remember."}, func() float64 { return c.sum(func(s *correlation.State) int { return s.Keys() }) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "picket_detector_correlation_bytes", Help: "Memory that they take, about."}, func() float64 { return c.sum(func(s *correlation.State) int { return s.Bytes() }) }))
	return c, nil
}

func (c *correlator) sum(of func(*correlation.State) int) (total float64) {
	for _, p := range c.parts {
		p.mu.Lock()
		if p.state != nil {
			total += float64(of(p.state))
		}
		p.mu.Unlock()
	}
	return total
}

// giveUp counts what was not used.
func (c *correlator) giveUp(what string, total *atomic.Uint64, n uint64) {
	if n > 0 {
		c.metrics.givenUp.WithLabelValues(what).Add(float64(n))
		c.d.health.Count("", "correlation_given_up_"+what, total.Add(n))
	}
}

// evaluate returns the findings of a batch and what feeds rules about several
// events.
func (d *detector) evaluate(eval *rules.Evaluator, b *batch.Batch) (found []*schemas.Finding, fed []correlation.Match) {
	now := time.Now()
	eval.EvalFeeds(b, func(m rules.Match) { found = append(found, alert.New(m, b, now)) }, func(f rules.Feed) {
		m, ok := f.Record()
		if !ok || m.Def.Kind == correlation.Baseline && d.correlator.knows(&m, now) {
			return
		}
		if m.Time > now.Add(maxFuture).UnixNano() || m.Time < 0 {
			d.correlator.giveUp("future", &d.correlator.future, 1)
			return
		}
		// Without it the alert says less: the event is stored whole.
		m.Doc, _ = alert.Part(f, b, now)
		fed = append(fed, m)
	})
	return found, fed
}

// valueID names a value of a baseline.
func valueID(m *correlation.Match) [16]byte {
	return schemas.Hash128(slices.Concat([]string{m.Def.Version, m.Value}, m.Key)...)
}

func (c *correlator) knows(m *correlation.Match, now time.Time) bool {
	at, ok := c.known.Get(valueID(m))
	return ok && now.Sub(at) < knownFor
}

// feed publishes matches, those of a partition together, and returns when JetStream
// has them.
func (c *correlator) feed(fed []correlation.Match) error {
	if len(fed) == 0 {
		return nil
	}
	slices.SortStableFunc(fed, func(a, b correlation.Match) int { return a.Partition() - b.Partition() })
	var out []*nats.Msg
	for from := 0; from < len(fed); {
		to, p := from+1, fed[from].Partition()
		for to < len(fed) && fed[to].Partition() == p {
			to++
		}
		messages, err := correlation.Encode(fed[from:to])
		if err != nil {
			return err
		}
		for i, data := range messages {
			// The same batch evaluated again gives the same messages.
			id := []string{strconv.Itoa(i)}
			for _, m := range fed[from:to] {
				id = append(id, m.Def.Version, strconv.Itoa(m.Step), schemas.FormatID(m.ID))
			}
			msg := nats.NewMsg(schemas.MatchSubject(p))
			msg.Data = data
			msg.Header.Set(nats.MsgIdHdr, schemas.FormatID(schemas.Hash128(id...)))
			out = append(out, msg)
		}
		from = to
	}
	for some := range slices.Chunk(out, publishWindow) {
		if err := c.d.send(schemas.StreamMatch, some, func(int, *jetstream.PubAck) {}); err != nil {
			return fmt.Errorf("publish matches: %w", err)
		}
	}
	now := time.Now()
	for i := range fed {
		if fed[i].Def.Kind == correlation.Baseline {
			c.known.Add(valueID(&fed[i]), now)
		}
	}
	c.metrics.fed.Add(float64(len(fed)))
	return nil
}

// run owns this detector's part of the partitions until ctx ends.
func (c *correlator) run(ctx context.Context) error {
	kv, err := c.bucket(ctx)
	if err != nil || ctx.Err() != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, p := range c.parts {
		p.kv = kv
		g.Go(func() error { return p.run(gctx) })
	}
	g.Go(func() error { return c.share(gctx, kv) })
	g.Go(func() error { c.tell(gctx); return nil })
	return g.Wait()
}

// bucket waits for BucketState.
func (c *correlator) bucket(ctx context.Context) (jetstream.KeyValue, error) {
	for {
		kv, err := c.d.bus.JS.KeyValue(ctx, schemas.BucketState)
		switch {
		case err == nil:
			return kv, nil
		case ctx.Err() != nil:
			return nil, nil
		case errors.Is(err, jetstream.ErrBucketNotFound):
			return nil, fmt.Errorf("bucket %s: %w (run `picket migrate`)", schemas.BucketState, err)
		}
		c.log.Warn("state of correlations not reached, trying again", "bucket", schemas.BucketState, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// tell keeps the clock by which absences are told: the time, while this detector
// and those beside it keep up with the events.
func (c *correlator) tell(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		actx, cancel := context.WithTimeout(ctx, 5*time.Second)
		cons, err := c.d.bus.JS.Consumer(actx, schemas.StreamEvents, schemas.DurableDetector)
		cancel()
		if err == nil && cons.CachedInfo().NumPending < maxBehind {
			c.clock.Store(now.UnixNano())
		}
	}
}

const memberPrefix = "detectors."

// share says that this detector is there, looks which others are, and takes its
// part of the partitions: each goes to the member whose name with it has the
// highest hash, so that a change of members moves few.
func (c *correlator) share(ctx context.Context, kv jetstream.KeyValue) error {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	seen := make(map[string]time.Time) // when a member last spoke
	said := make(map[string]uint64)    // and the revision of that
	self := memberPrefix + c.member
	defer func() {
		// Others need not wait until it is silent.
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := kv.Delete(dctx, self); err != nil {
			c.log.Debug("detector not signed off", "error", err)
		}
		for _, p := range c.parts {
			p.set(false)
		}
	}()
	for {
		if err := c.members(ctx, kv, self, seen, said); err != nil && ctx.Err() == nil {
			c.log.Warn("the other detectors are not known; going on with the partitions as they are", "error", err)
		} else {
			for _, p := range c.parts {
				p.set(c.owner(seen, p.n) == c.member)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// members brings seen up to date.
func (c *correlator) members(ctx context.Context, kv jetstream.KeyValue, self string, seen map[string]time.Time, said map[string]uint64) error {
	ctx, cancel := context.WithTimeout(ctx, heartbeat)
	defer cancel()
	if _, err := kv.Put(ctx, self, nil); err != nil {
		return err
	}
	w, err := kv.Watch(ctx, memberPrefix+"*", jetstream.IgnoreDeletes())
	if err != nil {
		return err
	}
	defer func() { _ = w.Stop() }() // its context ends too
	now := time.Now()
	there := make(map[string]bool)
	for done := false; !done; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-w.Updates():
			if e == nil {
				done = true
				break
			}
			m := strings.TrimPrefix(e.Key(), memberPrefix)
			there[m] = true
			if said[m] == e.Revision() {
				break
			}
			// One that was silent before this detector began has to speak first.
			if said[m] != 0 || now.Sub(e.Created()) < memberGone {
				seen[m] = now
			}
			said[m] = e.Revision()
		}
	}
	maps.DeleteFunc(said, func(m string, _ uint64) bool { return !there[m] })
	maps.DeleteFunc(seen, func(m string, at time.Time) bool { return !there[m] || now.Sub(at) > memberGone })
	seen[c.member] = now
	return nil
}

// owner returns the member that a partition belongs to.
func (c *correlator) owner(members map[string]time.Time, partition int) (owner string) {
	var best [16]byte
	for m := range members {
		if h := schemas.Hash128("owner", m, strconv.Itoa(partition)); owner == "" || slices.Compare(h[:], best[:]) > 0 {
			owner, best = m, h
		}
	}
	return owner
}

// partition is one partition and, while this detector owns it, its state.
type partition struct {
	c      *correlator
	n      int
	kv     jetstream.KeyValue
	change chan struct{} // wanted has changed
	wake   chan struct{} // there is something to commit

	own    sync.Mutex // guards wanted and cancel
	wanted bool
	cancel context.CancelFunc

	mu       sync.Mutex // guards what follows
	state    *correlation.State
	revision uint64         // of the state in the bucket
	written  time.Time      // when that was stored
	told     bool           // alerts in that are published
	open     []*bus.Message // in the state, and not yet acknowledged
	taken    bool           // a match has come since this detector owns it
	behind   uint64         // messages that wait behind the last
	unsure   bool           // whether messages wait
	counted  correlation.Stats
}

func (p *partition) key() string { return "correlate." + strconv.Itoa(p.n) }

// set says whether this detector is to own the partition.
func (p *partition) set(wanted bool) {
	p.own.Lock()
	defer p.own.Unlock()
	if p.wanted == wanted {
		return
	}
	p.wanted = wanted
	if !wanted && p.cancel != nil {
		p.cancel()
	}
	select {
	case p.change <- struct{}{}:
	default:
	}
}

// begin returns a context for as long as the partition is wanted; nil, it is not.
func (p *partition) begin(ctx context.Context) context.Context {
	p.own.Lock()
	defer p.own.Unlock()
	if !p.wanted {
		return nil
	}
	ctx, p.cancel = context.WithCancel(ctx)
	return ctx
}

// run owns the partition whenever it is wanted, until ctx ends.
func (p *partition) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.change:
		}
		octx := p.begin(ctx)
		if octx == nil {
			continue
		}
		p.c.metrics.owned.Inc()
		err := p.consume(octx)
		p.c.metrics.owned.Dec()
		p.cancel()
		if err != nil {
			return err
		}
		if ctx.Err() == nil {
			p.set(false) // what share decided meanwhile comes again with its next look
		}
	}
}

// consume takes the partition's matches until ctx ends, then lets the next owner
// have it.
func (p *partition) consume(ctx context.Context) error {
	var wg sync.WaitGroup
	committing, stop := context.WithCancel(context.WithoutCancel(ctx))
	wg.Go(func() { p.commits(ctx, committing) })
	err := p.c.d.bus.Consume(ctx, schemas.StreamMatch, schemas.DurableMatch(p.n), stopGrace, p.take, jetstream.PullPriorityGroup(schemas.MatchGroup), jetstream.PullExpiry(pullExpiry))
	stop()
	wg.Wait()
	p.mu.Lock()
	if p.state != nil && p.told && len(p.open) == 0 {
		p.commit()
	}
	p.forget()
	p.mu.Unlock()
	if err != nil {
		return err
	}
	uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	stream, err := p.c.d.bus.JS.Stream(uctx, schemas.StreamMatch)
	if err == nil {
		err = stream.UnpinConsumer(uctx, schemas.DurableMatch(p.n), schemas.MatchGroup)
	}
	if err != nil {
		p.c.log.Debug("partition not let go of; its next owner waits for the pin", "partition", p.n, "error", err)
	}
	return nil
}

// take adds a message to the state.
func (p *partition) take(m *bus.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if md, err := m.Metadata(); err == nil {
		p.behind = md.NumPending
	}
	if !p.taken { // what was loaded before may be older than what the last owner left
		p.taken, p.state = true, nil
	}
	matches, err := correlation.Decode(m.Data())
	if err == nil {
		err = p.load()
	}
	if err != nil {
		if m.Done(err) {
			p.c.d.health.Lost("", schemas.LossDeadLetter, 1)
		}
		return
	}
	for i := range matches {
		p.state.Add(&matches[i])
		if p.state.OutboxBytes <= maxOutbox {
			continue
		}
		// What of the message is in it already is known when that comes again.
		if p.commit(); p.state == nil {
			m.Done(errNotStored)
			return
		}
	}
	p.open = append(p.open, m)
	if len(p.open) >= commitMost {
		p.commit()
		return
	}
	p.nudge()
}

func (p *partition) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// load fetches the state, unless it is there. mu is held.
func (p *partition) load() error {
	if p.state != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	e, err := p.kv.Get(ctx, p.key())
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		p.state, p.revision, p.written = correlation.New(p.c.limits), 0, time.Now()
	case err != nil:
		return fmt.Errorf("correlation state of partition %d: %w", p.n, err)
	default:
		if p.state, err = correlation.Restore(e.Value(), p.c.limits); err != nil {
			// A state that cannot be read would stop the partition for good.
			p.c.log.Error("what rules about several events remembered is lost", "bucket", schemas.BucketState, "key", p.key(), "error", err)
			p.c.giveUp("state", &p.c.keys, 1)
			p.state = correlation.New(p.c.limits)
		}
		p.revision, p.written = e.Revision(), e.Created()
	}
	p.told = false
	p.counted = correlation.Stats{}
	if len(p.state.Alerts()) > 0 {
		p.nudge() // its last owner did not get to publish them, or to say so
	}
	return nil
}

var errNotStored = errors.New("the state of the partition was not stored")

// forget drops the state: the one in the bucket counts. mu is held.
func (p *partition) forget() {
	p.state, p.unsure = nil, true
	for _, m := range p.open {
		m.Done(errNotStored)
	}
	p.open = nil
}

// commits writes the state in time, until ctx ends; working is its owner's context.
func (p *partition) commits(working, ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	p.mu.Lock()
	p.taken, p.unsure = false, true
	p.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			// Before it is known that nothing waits, since that may be old.
			clock := p.c.clock.Load()
			waiting := p.waiting(ctx)
			p.mu.Lock()
			if clock > 0 && !waiting && p.behind == 0 {
				if err := p.load(); err != nil {
					p.c.log.Warn("trying again", "error", err)
				} else {
					p.state.Advance(clock)
				}
			}
			// Whoever loads a state publishes the alerts in it again.
			if p.state != nil && (len(p.state.Alerts()) > 0 || p.told || p.revision > 0 && time.Since(p.written) > refreshAfter) {
				p.commit()
			}
			p.mu.Unlock()
			continue
		case <-p.wake:
		}
		p.mu.Lock()
		wait := commitAfter
		if p.state != nil && len(p.state.Alerts()) > 0 {
			wait = alertAfter
		}
		p.mu.Unlock()
		p.pause(ctx, working, wait)
		p.mu.Lock()
		began := time.Now()
		if p.state != nil && (len(p.open) > 0 || len(p.state.Alerts()) > 0) {
			p.commit()
		}
		took := time.Since(began)
		p.mu.Unlock()
		p.pause(ctx, working, 4*took) // a large state is not written all the time
		p.mu.Lock()
		if len(p.open) > 0 { // came meanwhile, and pause has taken their word
			p.nudge()
		}
		p.mu.Unlock()
	}
}

// waiting reports whether matches may wait that are not in the state.
func (p *partition) waiting(ctx context.Context) bool {
	p.mu.Lock()
	unsure := p.unsure
	p.mu.Unlock()
	if !unsure {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cons, err := p.c.d.bus.JS.Consumer(ctx, schemas.StreamMatch, schemas.DurableMatch(p.n))
	if err != nil || cons.CachedInfo().NumPending > 0 || cons.CachedInfo().NumAckPending > 0 {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unsure = false
	return false
}

// pause waits, less when an alert is there, and not at all when the work ends.
func (p *partition) pause(ctx, working context.Context, d time.Duration) {
	until := time.NewTimer(d)
	defer until.Stop()
	for {
		select {
		case <-until.C:
			return
		case <-working.Done():
			return
		case <-ctx.Done():
			return
		case <-p.wake:
		}
		p.mu.Lock()
		alerts := p.state != nil && len(p.state.Alerts()) > 0
		p.mu.Unlock()
		if alerts && d > alertAfter {
			d = alertAfter
			until.Reset(d)
		}
	}
}

// commit stores the state, publishes the alerts in it, and acknowledges what is in
// it. If anything fails, or another owner was faster, everything since the state in
// the bucket is taken anew. The state is there. mu is held.
func (p *partition) commit() {
	began := time.Now()
	if err := p.store(); err != nil {
		p.c.log.Warn("state of correlations not stored; its matches come again", "partition", p.n, "error", err)
		p.forget()
		return
	}
	p.c.metrics.snapshot.Observe(time.Since(began).Seconds())
	for _, m := range p.open {
		m.Done(nil)
	}
	p.open = nil
	s := p.state.Stats
	p.c.giveUp("late", &p.c.late, s.Late-p.counted.Late)
	p.c.giveUp("keys", &p.c.keys, s.Keys-p.counted.Keys)
	p.c.giveUp("events", &p.c.events, s.Events-p.counted.Events)
	p.c.giveUp("values", &p.c.values, s.Values-p.counted.Values)
	p.counted = s
}

// store writes the state and publishes its alerts. mu is held.
func (p *partition) store() error {
	data, err := p.state.Snapshot(maxSnapshot)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if p.revision, err = p.kv.Update(ctx, p.key(), data, p.revision); err != nil {
		return fmt.Errorf("bucket %s, key %s: %w", schemas.BucketState, p.key(), err)
	}
	p.c.metrics.stored.Add(float64(len(data)))
	p.written, p.told = time.Now(), false
	alerts := p.state.Alerts()
	if len(alerts) == 0 {
		return nil
	}
	now := time.Now()
	again := slices.ContainsFunc(p.open, func(m *bus.Message) bool { return m.Again }) || len(p.open) == 0
	var findings []*schemas.Finding
	for i := range alerts {
		f, err := alert.Correlated(&alerts[i], now)
		if err != nil {
			p.c.seldom.Error("alert without its finding", "rule", alerts[i].Def.Rule, "error", err)
			p.c.d.health.Lost("", schemas.LossOversized, 1)
			continue
		}
		findings = append(findings, f)
	}
	if err := p.c.d.publish(findings, again); err != nil {
		return err
	}
	for i := range alerts {
		if alerts[i].Revision == 1 && alerts[i].Def.Kind != correlation.Absence {
			p.c.metrics.delay.Observe(now.Sub(time.Unix(0, alerts[i].At.Time)).Seconds())
		}
	}
	p.state.Published(len(alerts))
	p.told = true
	return nil
}
