package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"picket/internal/bus"
	"picket/internal/fault"
	"picket/schemas"
)

// maxPartitions bounds the partitions of one insert; ClickHouse refuses more
// than 100 (max_partitions_per_insert_block).
const maxPartitions = 32

// maxOlder bounds how many messages are looked at for one that replays.
const maxOlder = 4096

// item is a message on its way into a table.
type item struct {
	msg      Message
	hint     int    // rows, before it is decoded
	replayed bool   // may carry what an older message carries too
	link     uint64 // connection to NATS, counted, on which it came

	// Guarded by lane.mu.
	copies    []*bus.Message // deliveries to acknowledge; none if it was fetched
	delivered uint64         // highest delivery number
	again     bool           // somebody may have had it before

	// Used by the lane's goroutine.
	since time.Time // when it began to wait
	rows  Rows      // nil until decoded
	bad   error     // why it cannot be decoded
}

// lane brings the messages of one table into it, one insert after the other.
type lane struct {
	w     *Writer
	table Table
	wake  chan struct{}

	mu          sync.Mutex
	items       map[uint64]*item // by stream sequence: waiting or being inserted
	queue       []*item          // waiting, in order
	rows, bytes int              // of the queue; rows as hinted

	// Used by the lane's goroutine.
	book  book
	block *Block
	done  map[string]bool // plans of the ledger whose rows are durable
	total uint64          // rows stored
	// When others' plans, and holes in what was delivered, were looked at last.
	tidied, counted time.Time
}

func newLane(w *Writer, t Table) *lane {
	return &lane{w: w, table: t, wake: make(chan struct{}, 1), items: map[uint64]*item{}, block: newBlock(t.Columns, t.Types), done: map[string]bool{}}
}

// push queues a delivered message. A message delivered again while it is here
// is one item with several copies.
func (l *lane) push(m *bus.Message, msg Message, delivered uint64, hint int) {
	l.mu.Lock()
	it := l.items[msg.Sequence]
	if it != nil {
		it.copies = append(it.copies, m)
		it.delivered = max(it.delivered, delivered)
		it.again = true
		l.mu.Unlock()
		l.w.release(len(msg.Data))
		return
	}
	it = &item{msg: msg, hint: hint, replayed: msg.Header.Get(schemas.HeaderReplayed) != "", link: l.w.bus.NC.Stats().Reconnects, copies: []*bus.Message{m}, delivered: delivered, again: m.Again, since: time.Now()}
	l.items[msg.Sequence] = it
	l.enqueue(it)
	l.mu.Unlock()
	l.w.m.pending.WithLabelValues(l.table.Name).Add(float64(hint))
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// enqueue is called with mu held.
func (l *lane) enqueue(it *item) {
	l.queue = append(l.queue, it)
	l.rows += it.hint
	l.bytes += len(it.msg.Data)
}

// settle ends an item: nil acknowledges it, a permanent error makes it a dead
// letter.
func (l *lane) settle(it *item, err error) {
	l.mu.Lock()
	held := l.items[it.msg.Sequence] == it
	copies := it.copies
	if held {
		delete(l.items, it.msg.Sequence)
	}
	l.mu.Unlock()
	if !held {
		return // fetched from the stream: not ours to acknowledge
	}
	l.w.m.pending.WithLabelValues(l.table.Name).Sub(float64(it.hint))
	for i, c := range copies {
		if err != nil && i == 0 {
			l.w.bury(c, it.msg, err)
		} else {
			c.Done(nil)
		}
	}
	l.w.release(len(it.msg.Data))
}

const (
	idleInterval   = 15 * time.Second // between looks at the ledger when nothing comes
	countInterval  = 10 * time.Second
	abandonedAfter = 10 * time.Minute
)

// run works until ctx ends. Once stopping is closed rows do not wait for more.
func (l *lane) run(ctx context.Context, stopping <-chan struct{}) {
	for {
		due := l.await(ctx, stopping)
		if ctx.Err() != nil {
			break
		}
		if due {
			if l.flush(ctx, l.group()) != nil {
				break // ctx ended
			}
			l.mu.Lock()
			due = len(l.queue) > 0
			l.mu.Unlock()
		}
		if !due {
			l.clean(ctx)
		}
	}
	// What is durable need not be known as under way any longer.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), kvTimeout)
	defer cancel()
	if len(l.done) > 0 {
		l.clean(last)
	}
}

// await returns true when an insert is due, and false after idleInterval
// without messages or when ctx has ended.
func (l *lane) await(ctx context.Context, stopping <-chan struct{}) bool {
	c := l.w.o.Insert
	patience := c.FlushInterval
	for {
		select {
		case <-stopping:
			stopping, patience = nil, min(patience, 50*time.Millisecond)
		default:
		}
		l.mu.Lock()
		n, wait := len(l.queue), idleInterval
		if n > 0 {
			wait = time.Until(l.queue[0].since.Add(patience))
		}
		full := l.rows >= c.MaxRows || l.bytes >= c.MaxBytes
		l.mu.Unlock()
		if n > 0 && (full || wait <= 0) {
			return true
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-stopping:
		case <-l.wake:
		case <-timer.C:
			if n == 0 {
				return false
			}
		}
		timer.Stop()
	}
}

// group takes the messages of the next insert off the queue and decodes them.
func (l *lane) group() []*item {
	c := l.w.o.Insert
	var group []*item
	rows, size := 0, 0
	partitions := map[string]bool{}
	for rows < c.MaxRows && size < c.MaxBytes {
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.mu.Unlock()
			break
		}
		it := l.queue[0]
		l.mu.Unlock()
		if it.rows == nil && it.bad == nil {
			l.w.at("decoding")
			it.rows, it.bad = l.w.o.Source.Decode(it.msg)
		}
		if it.bad == nil {
			p := it.rows.Partition()
			if !partitions[p] && len(partitions) == maxPartitions {
				break
			}
			partitions[p] = true
			rows += it.rows.Count()
			size += it.rows.Size()
		}
		l.dequeue()
		group = append(group, it)
	}
	return group
}

func (l *lane) dequeue() {
	l.mu.Lock()
	it := l.queue[0]
	l.queue = l.queue[1:]
	l.rows -= it.hint
	l.bytes -= len(it.msg.Data)
	l.mu.Unlock()
}

// later puts items back to wait.
func (l *lane) later(items []*item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, it := range items {
		it.since = time.Now()
		l.enqueue(it)
	}
}

// flush brings a group of messages into the table. It returns an error only
// when ctx has ended; the messages are then not acknowledged.
func (l *lane) flush(ctx context.Context, group []*item) error {
	for len(group) > 0 {
		p, planned, rest, err := l.plan(ctx, group)
		if err != nil {
			return err
		}
		group = rest
		if len(planned) == 0 {
			continue
		}
		l.w.at("planned")
		again, err := l.insert(ctx, p, planned, false)
		if err != nil {
			return err
		}
		group = append(again, group...)
	}
	return nil
}

// plan decides which of the messages make up the next insert, and records it.
// On the way it settles those that need none: stored already, or unreadable.
// rest is what is left for a further insert.
func (l *lane) plan(ctx context.Context, group []*item) (p plan, planned, rest []*item, err error) {
	// What this call has tried to record; an attempt that failed may have been
	// recorded after all. The value is the loss that it took out of the ledger.
	tried := map[string]map[string]uint64{}
	var retry backoff
	again := func(what string, err error) error { return retry.wait(ctx, l, what, err) }
	for fresh := false; ; {
		led, err := l.book.read(ctx, fresh)
		if err != nil {
			if err := again("read the record of inserts", err); err != nil {
				return plan{}, nil, nil, err
			}
			continue
		}
		for _, p := range led.Plans {
			if lost, ok := tried[p.Token]; ok {
				l.report(lost)
				planned, rest := divide(group, p.Messages)
				return p, planned, rest, nil
			}
		}
		led = led.without(func(p plan) bool { return l.done[p.Token] })
		l.adopt(&led)

		sure, doubtful, dead := l.judge(led, group)
		if len(doubtful) > 0 && !fresh {
			fresh = true // judge the present ledger
			continue
		}
		if p, ok := covering(led, doubtful); ok {
			if group, err = l.repeat(ctx, p, group); err != nil {
				return plan{}, nil, nil, err
			}
			continue
		}
		unknown, stored, waiting, err := l.search(ctx, doubtful)
		if err != nil {
			if err := again("look for stored messages", err); err != nil {
				return plan{}, nil, nil, err
			}
			continue
		}
		planned := append(sure, unknown...)
		if len(planned)+len(stored)+len(dead) == 0 {
			l.later(waiting)
			return plan{}, nil, nil, nil
		}
		p := l.record(&led, planned, stored, dead)
		lost := l.count(ctx, &led)
		tried[p.Token] = lost
		l.w.at("planning")
		if err := l.book.write(ctx, led); err != nil {
			if !errors.Is(err, errConflict) {
				err = again("record an insert", err)
			} else {
				err = ctx.Err()
			}
			if err != nil {
				return plan{}, nil, nil, err
			}
			fresh = true
			continue
		}
		clear(l.done)
		l.report(lost)
		l.later(waiting)
		l.w.m.recognised.WithLabelValues(l.table.Name).Add(float64(len(stored)))
		for _, it := range stored {
			l.settle(it, nil)
		}
		for _, it := range dead {
			l.settle(it, it.bad)
		}
		return p, planned, nil, nil
	}
}

// record enters a plan for the messages into the ledger, and that the other
// two kinds were had.
func (l *lane) record(led *ledger, planned, stored, dead []*item) plan {
	now := time.Now()
	slices.SortFunc(planned, func(a, b *item) int { return cmp.Compare(a.msg.Sequence, b.msg.Sequence) })
	p := plan{Token: newToken(), Made: now.UTC()}
	l.mu.Lock()
	for _, it := range planned {
		p.Messages = append(p.Messages, it.msg.Sequence)
		if it.again {
			led.Fence = max(led.Fence, it.delivered)
		}
	}
	l.mu.Unlock()
	if len(planned) > 0 {
		led.Plans = append(led.Plans, p)
	}
	for _, it := range slices.Concat(planned, stored, dead) {
		led.Gaps.Note(it.msg.Subject, it.msg.Header, it.msg.Sequence, now)
	}
	return p
}

// count counts what the stream has dropped, if that can be told by now.
func (l *lane) count(ctx context.Context, led *ledger) map[string]uint64 {
	if !led.Gaps.Open() || time.Since(l.counted) < countInterval {
		return nil
	}
	l.counted = time.Now()
	floor, err := l.w.floor(ctx)
	if err != nil {
		return nil // NATS is away: next time
	}
	return led.Gaps.Settle(floor, time.Now())
}

// clean removes from the ledger the plans whose rows are durable. If it fails
// the next one does it, or whoever meets one of their messages.
func (l *lane) clean(ctx context.Context) {
	l.w.at("cleaning")
	led, err := l.book.read(ctx, false)
	if err != nil {
		return
	}
	lost := l.count(ctx, &led)
	abandoned := func(p plan) bool { return !l.done[p.Token] && time.Since(p.Made) > abandonedAfter }
	floor := uint64(0)
	if slices.ContainsFunc(led.Plans, abandoned) && time.Since(l.tidied) > time.Minute {
		l.tidied = time.Now()
		if floor, err = l.w.floor(ctx); err != nil {
			return
		}
	}
	next := led.without(func(p plan) bool {
		return l.done[p.Token] || abandoned(p) && slices.Max(p.Messages) <= floor
	})
	if len(next.Plans) == len(led.Plans) && len(lost) == 0 {
		clear(l.done)
		return
	}
	if l.book.write(ctx, next) != nil {
		return
	}
	clear(l.done)
	l.report(lost)
}

// report tells health what the stream has dropped.
func (l *lane) report(lost map[string]uint64) {
	for class, n := range lost {
		l.w.o.Health.Lost(class, schemas.LossStreamLimit, n)
	}
}

// adopt brings a ledger up to date with the durable: one made under a former
// durable of the same name says nothing about this one's delivery numbers.
func (l *lane) adopt(led *ledger) {
	if led.Consumer.Equal(l.w.created) {
		return
	}
	if !led.Consumer.IsZero() {
		led.Fence, led.Doubt = 0, l.w.last
	}
	led.Consumer = l.w.created
}

// judge tells the messages that nobody else can have inserted (sure) from those
// that somebody may have (doubtful); dead are those that cannot be read.
func (l *lane) judge(led ledger, group []*item) (sure, doubtful, dead []*item) {
	link := l.w.bus.NC.Stats().Reconnects
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, it := range group {
		// A server that crashed has forgotten deliveries and gives their
		// numbers again: those of a former connection say nothing.
		it.again = it.again || it.link != link
		if it.bad != nil {
			dead = append(dead, it)
		} else if it.again || it.replayed || it.delivered <= led.Fence || it.msg.Sequence <= led.Doubt {
			doubtful = append(doubtful, it)
		} else {
			sure = append(sure, it)
		}
	}
	return sure, doubtful, dead
}

// covering returns a plan that has one of the messages.
func covering(led ledger, items []*item) (plan, bool) {
	for _, p := range led.Plans {
		if planned, _ := divide(items, p.Messages); len(planned) > 0 {
			return p, true
		}
	}
	return plan{}, false
}

// divide returns the items that a plan names, in its order, and the others.
func divide(items []*item, messages []uint64) (planned, rest []*item) {
	place := make(map[uint64]int, len(messages))
	for i, seq := range messages {
		place[seq] = i
	}
	for _, it := range items {
		if _, ok := place[it.msg.Sequence]; ok {
			planned = append(planned, it)
		} else {
			rest = append(rest, it)
		}
	}
	slices.SortFunc(planned, func(a, b *item) int { return place[a.msg.Sequence] - place[b.msg.Sequence] })
	return planned, rest
}

// search looks for doubtful messages in the table: stored are there already,
// unknown are not. waiting replay a message that is itself not settled yet.
func (l *lane) search(ctx context.Context, doubtful []*item) (unknown, stored, waiting []*item, err error) {
	if len(doubtful) == 0 {
		return nil, nil, nil, nil
	}
	if doubtful, waiting, err = l.unsettled(ctx, doubtful); err != nil || len(doubtful) == 0 {
		return nil, nil, waiting, err
	}
	found, err := l.lookup(ctx, doubtful)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, it := range doubtful {
		if found[it.rows.BatchID()] {
			stored = append(stored, it)
		} else {
			unknown = append(unknown, it)
		}
	}
	return unknown, stored, waiting, nil
}

// lookup returns the batch ids of the messages that the table has rows of.
func (l *lane) lookup(ctx context.Context, items []*item) (map[string]bool, error) {
	l.w.m.lookups.WithLabelValues(l.table.Name).Add(float64(len(items)))
	var ids []string
	partitions := map[string]bool{}
	everywhere := !l.table.ByDate
	for _, it := range items {
		ids = append(ids, it.rows.BatchID())
		partitions[it.rows.Partition()] = true
		// The message that this one replays may have come on another day and
		// so have another partition.
		everywhere = everywhere || it.replayed
	}
	if everywhere {
		clear(partitions)
	}
	return l.w.db.lookup(ctx, l.table.Name, slices.Collect(maps.Keys(partitions)), ids)
}

// unsettled separates the replayed messages that must wait: an older message
// with the same batch id is not settled, be it here or with another writer.
func (l *lane) unsettled(ctx context.Context, items []*item) (ready, wait []*item, err error) {
	last := uint64(0)
	for _, it := range items {
		if it.replayed {
			last = max(last, it.msg.Sequence)
		}
	}
	if last == 0 {
		return items, nil, nil
	}
	floor, err := l.w.floor(ctx)
	if err != nil {
		return nil, nil, err
	}
	older := map[string]uint64{} // batch id → lowest unsettled sequence
	note := func(m Message) {
		if m.Header.Get(schemas.HeaderBatchID) != "" {
			id := m.Header.Get(schemas.HeaderBatchID)
			if seq, ok := older[id]; !ok || m.Sequence < seq {
				older[id] = m.Sequence
			}
		}
	}
	end := min(last, floor+maxOlder)
	for seq := floor + 1; seq < end; seq++ {
		m, ok := l.w.heldMessage(seq)
		if !ok {
			if m, ok, err = l.w.fetch(ctx, seq); err != nil {
				return nil, nil, err
			}
		}
		if ok {
			note(m)
		}
	}
	for _, it := range items {
		seq, ok := older[it.msg.Header.Get(schemas.HeaderBatchID)]
		if it.replayed && (it.msg.Sequence > end || ok && seq < it.msg.Sequence) {
			wait = append(wait, it)
		} else {
			ready = append(ready, it)
		}
	}
	return ready, wait, nil
}

// heldMessage returns a message that this writer has not settled yet.
func (w *Writer) heldMessage(seq uint64) (Message, bool) {
	for _, l := range w.lanes {
		l.mu.Lock()
		it := l.items[seq]
		l.mu.Unlock()
		if it != nil {
			return it.msg, true
		}
	}
	return Message{}, false
}

// repeat carries out a plan that another writer, or a former run, has
// recorded: the same messages under the same token. It acknowledges those of
// the group that are stored then, and returns the others.
func (l *lane) repeat(ctx context.Context, p plan, group []*item) ([]*item, error) {
	l.w.m.repeated.WithLabelValues(l.table.Name).Inc()
	l.w.log.Info("repeating an insert that was left under way", "table", l.table.Name, "token", p.Token, "messages", len(p.Messages), "age", time.Since(p.Made).Round(time.Second))
	mine, rest := divide(group, p.Messages)
	have := map[uint64]*item{}
	for _, it := range mine {
		have[it.msg.Sequence] = it
	}
	var all []*item
	var retry backoff
	for i := 0; i < len(p.Messages); {
		seq := p.Messages[i]
		it := have[seq]
		if it == nil {
			m, ok, err := l.w.fetch(ctx, seq)
			if err != nil {
				if err := retry.wait(ctx, l, "fetch the messages of an insert", err); err != nil {
					return nil, err
				}
				continue
			}
			if ok {
				it = &item{msg: m}
			}
		}
		i++
		if it == nil {
			continue // acknowledged by all, or dropped by the stream
		}
		if it.rows == nil {
			r, err := l.w.o.Source.Decode(it.msg)
			if err != nil {
				continue // it was planned by a version that could read it
			}
			it.rows = r
		}
		all = append(all, it)
	}
	again, err := l.insert(ctx, p, all, true)
	if err != nil {
		return nil, err
	}
	again, _ = divide(again, seqs(mine)) // the others come to whoever they are delivered to
	return append(rest, again...), nil
}

func seqs(items []*item) []uint64 {
	out := make([]uint64, len(items))
	for i, it := range items {
		out[i] = it.msg.Sequence
	}
	return out
}

// insert sends the items' rows under the plan's token until ClickHouse has
// them, and acknowledges the items. If an attempt's outcome was unknown, or
// verify is set, it then looks whether the rows are there: a server that was
// killed can know the token and not have the rows. It returns those that are
// not; their plan is over, and they need another.
func (l *lane) insert(ctx context.Context, p plan, items []*item, verify bool) ([]*item, error) {
	l.block.reset()
	for _, it := range items {
		it.rows.Append(l.block)
	}
	columns, body := l.block.encode()
	var retry backoff
	for l.block.rows > 0 {
		err := l.attempt(ctx, p.Token, columns, body)
		if err == nil {
			break
		}
		verify = true
		var e *Error
		if errors.As(err, &e) && e.Kind == Data {
			// Is it the rows, or is it the table?
			drift := l.w.db.Verify(ctx)
			if drift == nil {
				return nil, l.split(ctx, p, items, err)
			}
			if !errors.As(drift, &e) {
				err = drift
			}
		}
		if err := retry.wait(ctx, l, "insert", err); err != nil {
			return nil, err
		}
		if _, err := body.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
	}
	l.w.at("inserted")
	// A plan this old may have been repeated by another meanwhile.
	verify = verify || time.Since(p.Made) > bus.AckWait/2
	missing, err := l.confirm(ctx, items, verify)
	if err != nil {
		return nil, err
	}
	l.done[p.Token] = true
	return missing, nil
}

// attempt makes one insert, when it is its turn.
func (l *lane) attempt(ctx context.Context, token string, columns []string, body io.Reader) error {
	select {
	case l.w.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-l.w.slots }()
	l.w.at("inserting")
	start := time.Now()
	if err := l.w.db.insert(ctx, l.table.Name, columns, body, token); err != nil {
		return err
	}
	l.w.m.inserts.WithLabelValues(l.table.Name).Inc()
	l.w.m.seconds.WithLabelValues(l.table.Name).Observe(time.Since(start).Seconds())
	return nil
}

// confirm acknowledges the items whose rows are stored: all, or if verify is
// set those that a lookup finds. It returns the others.
func (l *lane) confirm(ctx context.Context, items []*item, verify bool) (missing []*item, err error) {
	var found map[string]bool
	var retry backoff
	for verify && len(items) > 0 {
		if found, err = l.lookup(ctx, items); err == nil {
			break
		}
		if err := retry.wait(ctx, l, "look for inserted messages", err); err != nil {
			return nil, err
		}
	}
	rows := 0
	for _, it := range items {
		if verify && !found[it.rows.BatchID()] {
			l.mu.Lock()
			it.again = true
			l.mu.Unlock()
			missing = append(missing, it)
			continue
		}
		rows += it.rows.Count()
		l.settle(it, nil)
		l.w.at("acknowledged")
	}
	l.total += uint64(rows)
	l.w.m.rows.WithLabelValues(l.table.Name).Add(float64(rows))
	l.w.o.Health.Count(l.table.Name, "stored", l.total)
	return missing, nil
}

// split deals with rows that ClickHouse refuses for what they are: it inserts
// the messages in ever smaller groups, until the one that holds them is alone
// and is set aside.
func (l *lane) split(ctx context.Context, p plan, items []*item, cause error) error {
	left, err := l.confirm(ctx, items, true) // partitions before the refused one may be stored
	if err != nil {
		return err
	}
	l.done[p.Token] = true
	l.mu.Lock()
	left = slices.DeleteFunc(left, func(it *item) bool { return l.items[it.msg.Sequence] != it }) // whoever has them deals with them
	l.mu.Unlock()
	// Only a message that was refused alone is known to be the cause: one that
	// is left of several may have been refused for another writer's.
	if len(items) == 1 {
		for _, it := range left {
			l.settle(it, fault.Permanent("insert", fmt.Errorf("table %s: %w", l.table.Name, cause)))
		}
		return nil
	}
	if err := l.flush(ctx, left[:len(left)/2]); err != nil {
		return err
	}
	return l.flush(ctx, left[len(left)/2:])
}

// backoff paces the repetitions of one step.
type backoff struct {
	next   time.Duration
	logged time.Time
}

// wait counts and logs a failure, and waits before the next attempt, longer
// from time to time. It returns an error if ctx ended.
func (b *backoff) wait(ctx context.Context, l *lane, what string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	label, most := "nats", 5*time.Second
	var e *Error
	if errors.As(err, &e) {
		label = e.Label()
	}
	l.w.m.retries.WithLabelValues(l.table.Name, label).Inc()
	if time.Since(b.logged) > 30*time.Second {
		b.logged = time.Now()
		l.w.log.Warn("cannot "+what+", trying again; messages wait", "table", l.table.Name, "error", err)
	}
	b.next = min(max(2*b.next, 100*time.Millisecond), most)
	timer := time.NewTimer(b.next/2 + rand.N(b.next/2))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
