package auditlogingest

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/fault"
	"picket/internal/health"
	"picket/internal/outbox"
	"picket/schemas"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

// Bounds of a lane.
const (
	// batchWait is how long a batch stays open at most.
	batchWait = 100 * time.Millisecond
	// spoolRetry is the pause before a batch that the spool refused is
	// offered again; letterRetry the same for a dead letter.
	spoolRetry  = 200 * time.Millisecond
	letterRetry = time.Second
)

// ground is what the lanes of all sources share.
type ground struct {
	cluster string
	dir     string
	out     *outbox.Outbox
	bus     *bus.Bus
	health  *health.Reporter
	log     *slog.Logger
	tally   *tally
	seen    *memory
	policy  *policy
	drops   *drops
	left    []note // notes of batches that an earlier run left
	gaps    atomic.Uint64
	dropped dropCounts
	step    func(string) // tests of crashes: see claim.at

	mu      sync.Mutex
	pending map[id]*openBatch // ids of batches that are not safe yet
}

// note is kept with a spooled batch: what a crash between spooling it and
// writing ids and checkpoint down would lose.
type note struct {
	Source string    `json:"source"`
	IDs    []byte    `json:"known"` // knownBytes each
	Mark   *bookmark `json:"mark,omitempty"`
}

// bookmark is a checkpoint on disk. The number tells which of two is newer.
type bookmark struct {
	Number     uint64          `json:"number"`
	Checkpoint json.RawMessage `json:"checkpoint"`
}

// lane is the sink of one source.
type lane struct {
	*ground
	src     source.Source
	norm    *Normalizer
	subject string
	drop    *dropper
	number  uint64 // of the last bookmark
	begun   chan struct{}
	hurry   chan struct{}

	// Guarded by ground.mu.
	open  *openBatch
	spare *batch.Builder
}

// openBatch is a batch and what waits for it to be safe.
type openBatch struct {
	b          *batch.Builder
	ids        []known
	done       []func()
	checkpoint any
	begun      bool
	lane       *lane
	taken      chan struct{} // closed when no more rows come
	safe       chan struct{} // closed when it is safe
}

func newLane(g *ground, s source.Source) *lane {
	l := &lane{
		ground: g, src: s, norm: newNormalizer(g.cluster, s.Name(), s.Kind(), g.policy),
		subject: schemas.RawSubject(g.cluster, s.Name(), schemas.Audit), drop: g.drops.dropper(),
		begun: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
	}
	l.open = l.newBatch()
	return l
}

// newBatch is called with ground.mu held, or before the lane runs.
func (l *lane) newBatch() *openBatch {
	b := l.spare
	l.spare = nil
	if b == nil {
		b = batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
	}
	b.Reset()
	return &openBatch{b: b, lane: l, taken: make(chan struct{}), safe: make(chan struct{})}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Put implements source.Sink.
func (l *lane) Put(ctx context.Context, r source.Record, done func()) error {
	e := l.norm.event()
	defer l.norm.release(e)
	if err := l.norm.read(e, r.Item); err != nil {
		length := int64(len(r.Text))
		if r.Trimmed != nil {
			r.Text, length = r.Trimmed.Text, r.Trimmed.Length
		}
		return l.Refuse(ctx, r, length, err, done)
	}
	l.tally.took(l.src, e, &r)
	return l.add(ctx, e, &r, done)
}

// Refuse implements source.Sink. What was refused before is a duplicate.
func (l *lane) Refuse(ctx context.Context, r source.Record, length int64, cause error, done func()) error {
	l.tally.refused(l.src, length)
	k, sum := refusedID(r.Text, length)
	if l.seen.has(k.id) {
		l.tally.duplicates.add(l.src, 1)
		return l.add(ctx, nil, &r, done)
	}
	if err := l.setAside(ctx, l.src, &r, length, cause, sum); err != nil {
		return err
	}
	l.seen.add(k)
	return l.add(ctx, nil, &r, done)
}

// refusedID names what was refused, so that it is set aside once.
func refusedID(text []byte, length int64) (known, [sha256.Size]byte) {
	sum := sha256.Sum256(text)
	return known{id: schemas.Hash128("refused", string(sum[:]), strconv.FormatInt(length, 10))}, sum
}

// setAside puts what is no record on the dead-letter stream, and counts it.
func (g *ground) setAside(ctx context.Context, s source.Source, r *source.Record, length int64, cause error, sum [sha256.Size]byte) error {
	letter := bus.DeadLetter{Subject: fmt.Sprintf("%s %s at %d", s.Name(), r.From, r.At), Cause: cause, Length: length, Sum: sum}
	data := g.policy.letter(r.Text[:min(len(r.Text), schemas.MaxDeadBytes)])
	for {
		err := g.bus.DeadLetter(ctx, data, letter)
		if err == nil {
			break
		}
		g.log.Warn("dead letter not stored, trying again", "source", s.Name(), "error", err)
		if err := sleep(ctx, letterRetry); err != nil {
			return err
		}
	}
	g.tally.rejected.add(s, 1, fault.Reason(cause))
	reason := schemas.LossDeadLetter
	if fault.Reason(cause) == record.ReasonTooLarge {
		reason = schemas.LossOversized
	}
	g.health.Lost(schemas.Audit.String(), reason, 1)
	return nil
}

// Mark implements source.Sink.
func (l *lane) Mark(ctx context.Context, checkpoint any) error {
	return l.add(ctx, nil, &source.Record{Checkpoint: checkpoint}, nil)
}

// Gap implements source.Sink.
func (l *lane) Gap(message string, attrs ...any) { l.gap(l.src, message, attrs...) }

// gap counts a gap under its source and, if attrs have times "from" and "to",
// their range.
func (g *ground) gap(s source.Source, message string, attrs ...any) {
	g.tally.gaps.add(s, 1)
	subject := s.Name()
	var from, to time.Time
	for i := 0; i+1 < len(attrs); i += 2 {
		at, ok := attrs[i+1].(time.Time)
		switch {
		case ok && attrs[i] == "from":
			from = at
		case ok && attrs[i] == "to":
			to = at
		}
	}
	// The reporter remembers each subject: after so many a range stands only in the log.
	if n := g.gaps.Add(1); !from.IsZero() && !to.IsZero() && n <= maxGapRanges {
		subject += " " + from.UTC().Format(time.RFC3339) + " to " + to.UTC().Format(time.RFC3339)
	}
	g.health.LostOf(schemas.Audit.String(), schemas.LossSourceGap, subject, 1)
	g.log.Error(message, append([]any{"source", s.Name()}, attrs...)...)
}

// maxGapRanges bounds the gaps that are reported each with its range of time.
const maxGapRanges = 1000

// add puts an event, or nothing but a checkpoint and a callback, into the
// open batch.
func (l *lane) add(ctx context.Context, e *event, r *source.Record, done func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	wait := func(c chan struct{}) error {
		l.mu.Unlock()
		defer l.mu.Lock()
		select {
		case <-c:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for {
		if e != nil {
			// The same record is under way from another source: this one is
			// safe only when that is.
			if p := l.pending[e.id]; p != nil && p.lane != l {
				signal(p.lane.hurry)
				if err := wait(p.safe); err != nil {
					return err
				}
				continue
			}
		}
		if !l.open.b.Full() && len(l.open.done) < batch.MaxRows {
			break
		}
		signal(l.hurry)
		if err := wait(l.open.taken); err != nil {
			return err
		}
	}
	o := l.open
	if e != nil {
		if l.pending[e.id] != nil || l.seen.has(e.id) {
			l.tally.duplicates.add(l.src, 1)
		} else {
			k := known{e.id, e.tag(l.norm)}
			e.repeated = l.seen.meet(k.tag)
			e.row(o.b, l.norm, time.Now(), r.CloudID)
			o.ids = append(o.ids, k)
			l.pending[e.id] = o
			l.tally.marks(l.src, e)
		}
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

// run closes and spools the lane's batches until ctx ends, which is after its
// source has stopped; then it spools what is open, if the spool takes it.
func (l *lane) run(ctx context.Context) error {
	for ctx.Err() == nil {
		select {
		case <-l.begun:
			timer := time.NewTimer(batchWait)
			select {
			case <-timer.C:
			case <-l.hurry:
			case <-ctx.Done():
			}
			timer.Stop()
		case <-ctx.Done():
		}
		if err := l.flush(ctx); err != nil {
			return err
		}
	}
	return l.flush(ctx) // what came during the last one
}

// flush closes the open batch and makes it safe.
func (l *lane) flush(ctx context.Context) error {
	l.mu.Lock()
	o := l.open
	if !o.begun {
		l.mu.Unlock()
		return nil
	}
	select { // what was asked of this batch is not asked of the next
	case <-l.hurry:
	default:
	}
	l.open = l.newBatch()
	l.mu.Unlock()
	close(o.taken)

	lost, err := l.store(ctx, o)
	if errors.Is(err, errStopped) {
		l.log.Warn("stopped with a batch that the spool did not take; its records come again", "source", l.src.Name(), "events", len(o.ids), "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	for _, k := range o.ids {
		delete(l.pending, k.id)
	}
	l.spare = o.b
	l.mu.Unlock()
	close(o.safe)
	for _, done := range o.done {
		done()
	}
	l.tally.accepted.add(l.src, len(o.ids)-lost)
	l.tally.report(l.health)
	return nil
}

// errStopped means that the lane was stopped while the spool refused a batch.
var errStopped = errors.New("stopped")

// store spools a batch with its ids and checkpoint. It returns how many of its
// events are not in it: those that are left out, and those that no message can
// hold. Both are counted.
func (l *lane) store(ctx context.Context, o *openBatch) (lost int, err error) {
	var mark *bookmark
	if o.checkpoint != nil {
		raw, err := json.Marshal(o.checkpoint)
		if err != nil {
			return 0, fmt.Errorf("checkpoint of %s: %w", l.src.Name(), err)
		}
		l.number++
		mark = &bookmark{l.number, raw}
	}
	var parts []part
	if len(o.ids) > 0 {
		b, ids, err := l.drop.filter(l.ground, l.src, o.b.Batch(), o.ids)
		lost = len(o.ids) - len(ids)
		if err == nil && b != nil {
			parts, err = encode(b, ids)
		}
		if err != nil {
			return 0, fmt.Errorf("batch of %s: %w", l.src.Name(), err)
		}
	}
	for i, p := range parts {
		n := note{Source: l.src.Name()}
		n.IDs = appendKnown(nil, p.ids...)
		last := i == len(parts)-1
		if last {
			n.Mark = mark
		}
		stored := func() {
			l.seen.add(p.ids...)
			if last {
				l.writeMark(mark)
			}
		}
		if p.data == nil {
			// Cannot be while record.MaxBytes is half of a message; if it is,
			// one event must not hold up those behind it.
			l.log.Error("event lost: it is larger than a message may be", "source", l.src.Name())
			l.health.Lost(schemas.Audit.String(), schemas.LossOversized, 1)
			lost++
			stored()
			continue
		}
		if err := l.spool(ctx, p, n, stored); err != nil {
			return lost, err
		}
	}
	if len(parts) == 0 {
		l.writeMark(mark)
	}
	return lost, nil
}

// part is a part of a batch that makes one message; data is nil if it is one
// event that is too large for that.
type part struct {
	data []byte
	ids  []known
}

func encode(b *batch.Batch, ids []known) ([]part, error) {
	enc, err := batch.Encode(b)
	switch {
	case err == nil:
		parts := make([]part, len(enc))
		for i, e := range enc {
			parts[i] = part{e.Data, ids[:e.Batch.Rows()]}
			ids = ids[e.Batch.Rows():]
		}
		return parts, nil
	case !errors.Is(err, batch.ErrOversized):
		return nil, err
	case len(ids) == 1:
		return []part{{nil, ids}}, nil
	}
	half := len(ids) / 2
	first, err := encode(b.Slice(0, half), ids[:half])
	if err != nil {
		return nil, err
	}
	second, err := encode(b.Slice(half, len(ids)), ids[half:])
	return append(first, second...), err
}

// spool hands one encoded batch to the outbox, waiting while that is full.
func (l *lane) spool(ctx context.Context, p part, n note, stored func()) error {
	warned := time.Time{}
	for {
		err := l.out.Put(l.subject, p.data, len(p.ids), n, stored)
		if err == nil {
			return nil
		}
		if time.Since(warned) > 30*time.Second {
			warned = time.Now()
			l.log.Warn("spool takes no more; the source waits", "source", l.src.Name(), "error", err, "remedy", "see whether NATS is reachable and PICKET_RAW has room, or raise spool_bytes")
		}
		l.tally.waits.add(l.src, 1)
		select {
		case <-time.After(spoolRetry):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", errStopped, err)
		}
	}
}

func (l *lane) markPath() string {
	return filepath.Join(l.dir, "checkpoint-"+schemas.Token(l.src.Name())+".json")
}

// writeMark writes a bookmark down. If it cannot, the records behind the last
// one that it could are read again after a restart and known by their ids.
func (l *lane) writeMark(mark *bookmark) {
	if mark == nil {
		return
	}
	data, err := json.Marshal(mark)
	if err == nil {
		tmp := l.markPath() + ".new"
		if err = os.WriteFile(tmp, data, 0o640); err == nil {
			err = os.Rename(tmp, l.markPath())
		}
	}
	if err != nil {
		l.log.Error("checkpoint not written; it is tried again with the next batch", "source", l.src.Name(), "error", err)
	}
}

// Checkpoint implements source.Sink.
func (l *lane) Checkpoint(v any) (bool, error) {
	var newest bookmark
	data, err := os.ReadFile(l.markPath())
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return false, fmt.Errorf("checkpoint: %w", err)
	default:
		if err := json.Unmarshal(data, &newest); err != nil {
			return false, fmt.Errorf("checkpoint %s is damaged (remove it to start anew): %w", l.markPath(), err)
		}
	}
	for _, n := range l.left {
		if n.Source == l.src.Name() && n.Mark != nil && n.Mark.Number > newest.Number {
			newest = *n.Mark
		}
	}
	if newest.Number == 0 {
		return false, nil
	}
	l.number = newest.Number
	if err := json.Unmarshal(newest.Checkpoint, v); err != nil {
		return false, fmt.Errorf("checkpoint %s is damaged (remove it to start anew): %w", l.markPath(), err)
	}
	return true, nil
}
