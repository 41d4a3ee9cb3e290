package auditlogingest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/fault"
	"picket/schemas"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

// Bounds of a lane of a source that several ingesters may read.
const (
	// maxClusters bounds the clusters of a batch, each with a message of its own.
	maxClusters = 32
	// maxNormalizers bounds the clusters of a source.
	maxNormalizers = 1024
	// publishWait is how long PICKET_RAW's acknowledgement is waited for.
	publishWait = 10 * time.Second
)

// pullLane is the sink of one source that this ingester owns for a time.
//
// What it has is stored in steps: the messages and the ids under keys of their
// own, the position, which makes them count, and then PICKET_RAW. Who dies
// before the position is written has stored nothing; after it the next owner
// publishes the same messages under the same ids.
type pullLane struct {
	*ground
	src   source.Source
	own   *claim
	norms map[string]*Normalizer // by cluster; guarded by mu
	drop  *dropper
	pace  pace
	begun chan struct{}
	hurry chan struct{}

	mu     sync.Mutex
	open   *pullBatch
	recall *recall
	spare  []*batch.Builder

	// The committing goroutine's.
	commits    uint64
	settled    bool              // PICKET_RAW has what the position calls pending
	cumulative map[string]uint64 // rows of the epoch by subject
}

// pullBatch is what is stored in one go: a message or more for each cluster.
type pullBatch struct {
	parts      []*clusterPart
	refused    []known
	done       []func()
	checkpoint any
	begun      bool
	taken      chan struct{}
}

type clusterPart struct {
	cluster string
	b       *batch.Builder
	ids     []known
}

func (b *pullBatch) part(cluster string) *clusterPart {
	for _, p := range b.parts {
		if p.cluster == cluster {
			return p
		}
	}
	return nil
}

func (b *pullBatch) full(cluster string) bool {
	size := 0
	for _, p := range b.parts {
		size += p.b.Size()
	}
	p := b.part(cluster)
	return p != nil && p.b.Full() || p == nil && len(b.parts) == maxClusters || size >= 4*schemas.MaxBatchBytes || len(b.done) >= batch.MaxRows
}

func newPullLane(g *ground, s source.Source, own *claim, p pace) *pullLane {
	return &pullLane{ground: g, src: s, own: own, pace: p, norms: map[string]*Normalizer{},
		begun: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
		open: &pullBatch{taken: make(chan struct{})}, recall: newRecall(), cumulative: map[string]uint64{}, settled: true, drop: g.drops.dropper()}
}

// Put implements source.Sink.
func (l *pullLane) Put(ctx context.Context, r source.Record, done func()) error {
	n, err := l.normalizer(r.Cluster)
	if err != nil {
		return l.Refuse(ctx, r, int64(len(r.Text)), err, done)
	}
	e := n.event()
	defer n.release(e)
	if err := n.read(e, r.Item); err != nil {
		length := int64(len(r.Text))
		if r.Trimmed != nil {
			r.Text, length = r.Trimmed.Text, r.Trimmed.Length
		}
		return l.Refuse(ctx, r, length, err, done)
	}
	l.tally.took(l.src, e, &r)
	return l.add(ctx, n, e, known{}, &r, done)
}

// normalizer returns that of a cluster; "" is the source's own.
func (l *pullLane) normalizer(cluster string) (*Normalizer, error) {
	if cluster == "" {
		cluster = l.cluster
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := l.norms[cluster]; n != nil {
		return n, nil
	}
	if err := source.ValidName("cluster", cluster); err != nil {
		return nil, fault.Permanent(record.ReasonCluster, err)
	}
	if len(l.norms) == maxNormalizers {
		return nil, fault.Permanent(record.ReasonCluster, fmt.Errorf("records of more than %d clusters come from one source", maxNormalizers))
	}
	n := newNormalizer(cluster, l.src.Name(), l.src.Kind(), l.policy)
	l.norms[cluster] = n
	return n, nil
}

// Refuse implements source.Sink.
func (l *pullLane) Refuse(ctx context.Context, r source.Record, length int64, cause error, done func()) error {
	l.tally.refused(l.src, length)
	k, sum := refusedID(r.Text, length)
	l.mu.Lock()
	again := l.recall.has(k.id)
	l.mu.Unlock()
	if again {
		l.tally.duplicates.add(l.src, 1)
		return l.add(ctx, nil, nil, known{}, &r, done)
	}
	if err := l.setAside(ctx, l.src, &r, length, cause, sum); err != nil {
		return err
	}
	return l.add(ctx, nil, nil, k, &r, done)
}

// Mark implements source.Sink.
func (l *pullLane) Mark(ctx context.Context, checkpoint any) error {
	return l.add(ctx, nil, nil, known{}, &source.Record{Checkpoint: checkpoint}, nil)
}

// Gap implements source.Sink.
func (l *pullLane) Gap(message string, attrs ...any) { l.gap(l.src, message, attrs...) }

// Checkpoint implements source.Sink.
func (l *pullLane) Checkpoint(v any) (bool, error) {
	cursor := l.own.now().Cursor
	if len(cursor) == 0 {
		return false, nil
	}
	if err := json.Unmarshal(cursor, v); err != nil {
		return false, fmt.Errorf("checkpoint of %s is damaged (remove key %s of bucket %s to start anew): %w", l.src.Name(), l.own.key, schemas.BucketCheckpoints, err)
	}
	return true, nil
}

// add puts an event, or nothing but an id, a checkpoint and a callback, into the
// open batch.
func (l *pullLane) add(ctx context.Context, n *Normalizer, e *event, refused known, r *source.Record, done func()) error {
	cluster := ""
	if n != nil {
		cluster = n.cluster
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.open.full(cluster) {
		signal(l.hurry)
		taken := l.open.taken
		l.mu.Unlock()
		select {
		case <-taken:
			l.mu.Lock()
		case <-ctx.Done():
			l.mu.Lock()
			return ctx.Err()
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	o := l.open
	switch {
	case e != nil && l.recall.has(e.id):
		l.tally.duplicates.add(l.src, 1)
	case e != nil:
		p := o.part(cluster)
		if p == nil {
			p = &clusterPart{cluster: cluster, b: l.builder()}
			o.parts = append(o.parts, p)
		}
		k := known{e.id, e.tag(n)}
		e.repeated = l.recall.add(k)
		e.row(p.b, n, time.Now(), r.CloudID)
		p.ids = append(p.ids, k)
		l.tally.marks(l.src, e)
	case refused != known{}:
		l.recall.add(refused)
		o.refused = append(o.refused, refused)
	}
	if r.Checkpoint != nil {
		o.checkpoint = r.Checkpoint
	}
	if done != nil {
		o.done = append(o.done, done)
	}
	if !o.begun {
		o.begun = true
		signal(l.begun)
	}
	return nil
}

// builder is called with mu held.
func (l *pullLane) builder() *batch.Builder {
	if n := len(l.spare); n > 0 {
		b := l.spare[n-1]
		l.spare = l.spare[:n-1]
		return b
	}
	return batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
}

// run works on the source until ctx ends, the source is done, or somebody else
// has it, and then lets go of it. An error is the source's, or errFenced.
func (l *pullLane) run(ctx context.Context) error {
	// What is under way may end after ctx, but not after the ownership.
	work, lose := context.WithCancelCause(context.WithoutCancel(ctx))
	l.own.lost = lose
	defer lose(nil)
	defer context.AfterFunc(ctx, func() { time.AfterFunc(l.pace.grace, func() { lose(context.Canceled) }) })()
	var renewing sync.WaitGroup
	renewing.Go(func() { l.renew(work, l.pace.renew) })

	err := l.takeUp(work)
	if err == nil {
		reading, stop := context.WithCancel(work)
		defer context.AfterFunc(ctx, stop)()
		feeding, fed := context.WithCancel(work)
		var g errgroup.Group
		g.Go(func() error {
			defer fed()
			defer stop()
			return l.src.Run(reading, l)
		})
		g.Go(func() error {
			defer stop()
			return l.commitAll(feeding, work)
		})
		err = g.Wait()
		stop()
	}
	if work.Err() == nil {
		// Others need not wait until this one is silent.
		release, cancel := context.WithTimeout(work, l.pace.grace)
		if rerr := l.own.write(release, func(p *position) { p.Owner = ""; l.clear(p) }); rerr != nil {
			l.log.Debug("source not released", "source", l.src.Name(), "error", rerr)
		}
		cancel()
	}
	cause := context.Cause(work)
	lose(nil)
	renewing.Wait()
	switch {
	case errors.Is(cause, errFenced), errors.Is(err, errFenced):
		return errFenced
	case ctx.Err() != nil:
		return nil
	}
	return err
}

// renew keeps the ownership.
func (l *pullLane) renew(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		l.own.at("renew")
		if err := l.own.write(ctx, l.clear); err != nil {
			return // write has said that it is lost, or ctx has ended
		}
	}
}

// takeUp does what the former owner left undone.
func (l *pullLane) takeUp(ctx context.Context) error {
	if p := l.own.now().Pending; p != nil {
		if err := l.republish(ctx, p); err != nil {
			return fmt.Errorf("batch that the former owner of %s left: %w", l.src.Name(), err)
		}
		l.own.at("republished")
		if err := l.own.write(ctx, func(p *position) { p.Pending = nil }); err != nil {
			return err
		}
	}
	if err := l.recall.load(ctx, l.own, l.own.now().IDs); err != nil {
		return err
	}
	l.own.at("recalled")
	if err := l.recall.rewrite(ctx, l.own, l.bus.JS); err != nil {
		return err
	}
	l.own.at("rewritten")
	l.own.sweep(ctx)
	return nil
}

// commitAll stores batches until feeding ends, which is after the source has
// stopped, and then what is open.
func (l *pullLane) commitAll(feeding, work context.Context) error {
	for feeding.Err() == nil {
		select {
		case <-l.begun:
			timer := time.NewTimer(l.pace.batch)
			select {
			case <-timer.C:
			case <-l.hurry:
			case <-feeding.Done():
			}
			timer.Stop()
		case <-feeding.Done():
		}
		if err := l.flush(work); err != nil {
			return err
		}
	}
	return l.flush(work)
}

func (l *pullLane) flush(ctx context.Context) error {
	l.mu.Lock()
	o := l.open
	if !o.begun {
		l.mu.Unlock()
		return nil
	}
	select {
	case <-l.hurry:
	default:
	}
	l.open = &pullBatch{taken: make(chan struct{})}
	l.mu.Unlock()
	close(o.taken)
	accepted, err := l.commit(ctx, o)
	if err != nil {
		return err
	}
	l.mu.Lock()
	for _, p := range o.parts {
		if len(l.spare) < 4 {
			p.b.Reset()
			l.spare = append(l.spare, p.b)
		}
	}
	l.mu.Unlock()
	for _, done := range o.done {
		done()
	}
	l.tally.accepted.add(l.src, accepted)
	l.tally.report(l.health)
	return nil
}

// walMessage is a message of PICKET_RAW as it is kept until that has it.
type walMessage struct {
	Subject    string `json:"subject"`
	Run        string `json:"run"`
	Batch      uint64 `json:"batch"`
	Rows       int    `json:"rows"`
	Cumulative uint64 `json:"cumulative"`

	data []byte
}

func (m *walMessage) encode() ([]byte, error) {
	h, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return append(append(h, '\n'), m.data...), nil
}

func (m *walMessage) decode(value []byte) error {
	h, data, ok := bytes.Cut(value, []byte{'\n'})
	if !ok {
		return errors.New("message kept for PICKET_RAW has no header")
	}
	m.data = data
	return json.Unmarshal(h, m)
}

// commit stores a batch and returns how many events are in PICKET_RAW by it.
func (l *pullLane) commit(ctx context.Context, o *pullBatch) (accepted int, err error) {
	var cursor json.RawMessage
	if o.checkpoint != nil {
		if cursor, err = json.Marshal(o.checkpoint); err != nil {
			return 0, fmt.Errorf("checkpoint of %s: %w", l.src.Name(), err)
		}
	}
	pos := l.own.now()
	remember := o.refused
	var messages []*walMessage
	for _, p := range o.parts {
		remember = append(remember, p.ids...)
		some, err := l.messages(pos, len(messages), p)
		if err != nil {
			return 0, fmt.Errorf("batch of %s: %w", l.src.Name(), err)
		}
		messages = append(messages, some...)
	}
	if len(messages) == 0 && len(remember) == 0 && (cursor == nil || bytes.Equal(cursor, pos.Cursor)) {
		return 0, nil // nothing but what is safe already
	}
	l.commits++
	left := &pending{Run: pos.Run, Epoch: pos.Epoch, Slot: l.commits % 2, First: pos.Batch + 1, Count: len(messages)}
	l.own.at("begin")
	for i, m := range messages {
		value, err := m.encode()
		if err != nil {
			return 0, err
		}
		if err := l.own.put(ctx, l.bus.JS, left.key(l.own.token, i), value, 0); err != nil {
			return 0, err
		}
		l.own.at("wal")
	}
	if err := l.recall.keep(ctx, l.own, l.bus.JS, pos.Epoch, remember, time.Now()); err != nil {
		return 0, err
	}
	l.own.at("ids")
	old, from, early := l.recall.expired()
	err = l.own.write(ctx, func(p *position) {
		l.clear(p)
		if cursor != nil {
			p.Cursor = cursor
		}
		p.IDs = l.recall.at(p.Epoch)
		if len(messages) > 0 {
			p.Batch += uint64(len(messages))
			p.Pending = left
			// Before the next write, a renewal perhaps, can take it for done.
			l.setSettled(false)
		}
	})
	if err != nil {
		return 0, err
	}
	l.own.at("position")
	for _, m := range messages {
		if err := l.publish(ctx, m, false); err != nil {
			return 0, err
		}
		accepted += m.Rows
		l.own.at("published")
	}
	l.setSettled(true)
	l.forget(ctx, pos.Epoch, old, from, early)
	return accepted, nil
}

// clear takes out of a position what PICKET_RAW has. The claim's lock is held:
// it comes before the lane's.
func (l *pullLane) clear(p *position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.settled {
		p.Pending = nil
	}
}

func (l *pullLane) setSettled(v bool) {
	l.mu.Lock()
	l.settled = v
	l.mu.Unlock()
}

// forget lets go of segments of ids that the position no longer names.
func (l *pullLane) forget(ctx context.Context, epoch uint64, old []*segment, from uint64, early int) {
	if len(old) == 0 {
		return
	}
	l.mu.Lock()
	for _, s := range old {
		l.recall.forget(s)
	}
	l.mu.Unlock()
	for i := range old {
		l.own.drop(ctx, idsKey(l.own.token, epoch, from+uint64(i)))
	}
	if early > 0 {
		l.tally.forgotten.add(l.src, early)
		l.log.Warn("event ids forgotten early; records that come again may be taken twice", "source", l.src.Name(), "ids", early, "remembered", recallMax)
	}
}

// messages encodes the rows of a cluster that are not left out.
func (l *pullLane) messages(pos position, before int, p *clusterPart) ([]*walMessage, error) {
	b, _, err := l.drop.filter(l.ground, l.src, p.b.Batch(), nil)
	if err != nil || b == nil {
		return nil, err
	}
	subject := schemas.RawSubject(p.cluster, l.src.Name(), schemas.Audit)
	parts, err := encode(b, make([]known, b.Rows()))
	if err != nil {
		return nil, err
	}
	var out []*walMessage
	for _, q := range parts {
		if q.data == nil {
			l.log.Error("event lost: it is larger than a message may be", "source", l.src.Name())
			l.health.Lost(schemas.Audit.String(), schemas.LossOversized, 1)
			continue
		}
		l.cumulative[subject] += uint64(len(q.ids))
		out = append(out, &walMessage{Subject: subject, Run: pos.Run, Batch: pos.Batch + uint64(before+len(out)) + 1, Rows: len(q.ids), Cumulative: l.cumulative[subject], data: q.data})
	}
	return out, nil
}

// republish publishes what a former owner may not have published.
func (l *pullLane) republish(ctx context.Context, p *pending) error {
	for i := range p.Count {
		var m walMessage
		found, err := l.own.get(ctx, p.key(l.own.token, i), 30*time.Second, func(value []byte) error {
			if err := m.decode(value); err != nil {
				return err
			}
			if m.Run != p.Run || m.Batch != p.First+uint64(i) {
				return fmt.Errorf("it is message %s and not %s", schemas.BatchIDOf(m.Run, m.Batch), schemas.BatchIDOf(p.Run, p.First+uint64(i)))
			}
			return nil
		})
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("key %s of bucket %s is gone: its events may be lost. Take \"pending\" out of key %s to go on without them", p.key(l.own.token, i), schemas.BucketCheckpoints, l.own.key)
		}
		if err := l.publish(ctx, &m, true); err != nil {
			return err
		}
		l.own.at("again")
	}
	return nil
}

// publish publishes a message until PICKET_RAW has it or ctx ends. again says
// that it may have been published before.
func (l *pullLane) publish(ctx context.Context, m *walMessage, again bool) error {
	id := schemas.BatchIDOf(m.Run, m.Batch)
	warned := time.Time{}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		if !l.own.fresh() {
			// This process may have slept: ask whether the source is still ours.
			if err := l.own.write(ctx, func(*position) {}); err != nil {
				return err
			}
		}
		msg := nats.NewMsg(m.Subject)
		msg.Data = m.data
		msg.Header.Set(schemas.HeaderRun, m.Run)
		msg.Header.Set(schemas.HeaderBatch, strconv.FormatUint(m.Batch, 10))
		msg.Header.Set(schemas.HeaderRows, strconv.Itoa(m.Rows))
		msg.Header.Set(schemas.HeaderCumulative, strconv.FormatUint(m.Cumulative, 10))
		msg.Header.Set(schemas.HeaderVersion, strconv.Itoa(schemas.SchemaVersion))
		msg.Header.Set(schemas.HeaderBatchID, id)
		if again {
			msg.Header.Set(schemas.HeaderReplayed, "1")
		}
		l.own.at("send")
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, publishWait)
			defer cancel()
			_, err := l.bus.JS.PublishMsg(ctx, msg, jetstream.WithMsgID(id), jetstream.WithExpectStream(schemas.StreamRaw))
			return err
		}()
		if err == nil || errors.Is(err, nats.ErrConnectionClosed) {
			return err
		}
		if !bus.IsStreamFull(err) {
			again = true
		}
		if time.Since(warned) > 30*time.Second {
			warned = time.Now()
			text := "publish failed, trying again; the source waits"
			if bus.IsStreamFull(err) {
				text = "JetStream refuses batches (stream " + schemas.StreamRaw + " full, or its disk); the source waits"
			}
			l.log.Warn(text, "source", l.src.Name(), "subject", m.Subject, "error", err)
		}
		l.tally.waits.add(l.src, 1)
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// at is where the tests of crashes let a process die.
func (c *claim) at(step string) {
	if c.step != nil {
		c.step(step)
	}
}
