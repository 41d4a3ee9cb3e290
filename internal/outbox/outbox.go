// Package outbox hands batches to JetStream at least once, and to its readers
// once: every batch is a file in a spool folder before it is published, under
// a message id that stays the same over restarts, and the file goes when
// JetStream has acknowledged it.
//
// The files survive the death of the process. They are not synced: the death
// of the machine can take the last seconds of them.
package outbox

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"picket/internal/bus"
	"picket/schemas"
)

// ErrFull means that the spool has reached its bound (or its disk is full):
// the batch was not taken, and its events are lost unless the caller keeps
// them. Count them under schemas.LossSpoolFull.
var ErrFull = errors.New("spool is full")

// errDamaged means that a spool file cannot be read back.
var errDamaged = errors.New("spool file is damaged")

// inFlight is how many batches may wait for their acknowledgement at once.
const inFlight = 32

// entry is one spooled batch. It is the file's header, as JSON.
type entry struct {
	Run        string          `json:"run"`
	Batch      uint64          `json:"batch"`
	Subject    string          `json:"subject"`
	Rows       int             `json:"rows"`
	Cumulative uint64          `json:"cumulative"`
	Note       json.RawMessage `json:"note,omitempty"`

	path  string
	size  int64
	first bool   // never offered to JetStream before
	data  []byte // kept only while the queue is short
}

// Outbox is a spool folder and its publisher. Put is safe for concurrent use;
// Run is called once.
type Outbox struct {
	dir string
	max int64
	bus *bus.Bus
	log *slog.Logger
	run string

	mu         sync.Mutex
	next       uint64            // number of the next batch
	cumulative map[string]uint64 // rows per subject of this run
	bytes      int64
	queue      []*entry
	wake       chan struct{}
	lock       *os.File

	published *prometheus.CounterVec
	duplicate prometheus.Counter
	retries   prometheus.Counter
}

// Open takes the spool folder, creating it if needed, with what an earlier run
// left in it. maxBytes bounds the files' total size. It fails if another
// process has the folder. Metrics are registered as picket_<service>_….
func Open(dir string, maxBytes int64, service string, b *bus.Bus, log *slog.Logger, reg prometheus.Registerer) (*Outbox, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("spool folder: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return nil, fmt.Errorf("spool folder: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("spool folder %s is in use by another process", dir)
	}
	ns := "picket_" + strings.ReplaceAll(service, "-", "_") + "_"
	o := &Outbox{
		dir: dir, max: maxBytes, bus: b, log: log, run: bus.NewRunID(), next: 1, cumulative: map[string]uint64{},
		wake: make(chan struct{}, 1), lock: lock,
		published: prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + "published_events_total", Help: "Events that JetStream has acknowledged."}, []string{"class"}),
		duplicate: prometheus.NewCounter(prometheus.CounterOpts{Name: ns + "duplicate_ids_total", Help: "First publishes that JetStream took for duplicates: somebody guessed or reused a message id."}),
		retries:   prometheus.NewCounter(prometheus.CounterOpts{Name: ns + "publish_retries_total", Help: "Publishes that failed and were repeated."}),
	}
	reg.MustRegister(o.published, o.duplicate, o.retries,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: ns + "spool_bytes", Help: "Bytes waiting in the spool."}, func() float64 { _, n := o.Pending(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: ns + "spool_batches", Help: "Batches waiting in the spool."}, func() float64 { n, _ := o.Pending(); return float64(n) }))
	if err := o.load(); err != nil {
		lock.Close()
		return nil, err
	}
	return o, nil
}

// Close gives the folder up without publishing: for when Run was never called.
func (o *Outbox) Close() error { return o.lock.Close() }

// RunID returns the run id of this process: random, new at every start.
func (o *Outbox) RunID() string { return o.run }

// Pending returns the number of batches not yet acknowledged and their bytes.
func (o *Outbox) Pending() (batches int, bytes int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.queue), o.bytes
}

// Notes returns the notes of the batches that an earlier run left, oldest
// first. Call it before the first Put.
func (o *Outbox) Notes() []json.RawMessage {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []json.RawMessage
	for _, e := range o.queue {
		if e.Note != nil {
			out = append(out, e.Note)
		}
	}
	return out
}

// Put spools a batch of rows events for subject. note, if not nil, is kept
// with it for Notes; stored, if not nil, is called when the batch is safe from
// the death of the process and before it can be published. An error means that
// the batch was not taken; ErrFull is the one to expect.
func (o *Outbox) Put(subject string, data []byte, rows int, note any, stored func()) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	e := &entry{Run: o.run, Batch: o.next, Subject: subject, Rows: rows, Cumulative: o.cumulative[subject] + uint64(rows), first: true}
	if note != nil {
		n, err := json.Marshal(note)
		if err != nil {
			return fmt.Errorf("spool note: %w", err)
		}
		e.Note = n
	}
	if o.bytes+int64(len(data)) > o.max {
		return ErrFull
	}
	if err := o.write(e, data); err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
		return err
	}
	o.next++
	o.cumulative[subject] = e.Cumulative
	o.bytes += e.size
	if len(o.queue) < 2*inFlight {
		e.data = data
	}
	if stored != nil {
		stored()
	}
	o.queue = append(o.queue, e)
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return nil
}

// A spool file is: length of the header and CRC-32C of all that follows, as
// little-endian 32-bit numbers; the header; the batch.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (o *Outbox) write(e *entry, data []byte) error {
	h, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("spool header: %w", err)
	}
	buf := make([]byte, 8, 8+len(h)+len(data))
	buf = append(append(buf, h...), data...)
	binary.LittleEndian.PutUint32(buf, uint32(len(h)))
	binary.LittleEndian.PutUint32(buf[4:], crc32.Checksum(buf[8:], castagnoli))
	if e.path == "" {
		// Time first, so that the names sort in the order of several runs.
		e.path = filepath.Join(o.dir, fmt.Sprintf("%016x-%08x.batch", time.Now().UnixNano(), uint32(e.Batch)))
	}
	e.size = int64(len(buf))
	tmp := e.path + ".tmp"
	if err := os.WriteFile(tmp, buf, 0o640); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("spool: %w", err)
	}
	if err := os.Rename(tmp, e.path); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

func read(path string) (*entry, []byte, error) {
	buf, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if len(buf) < 8 || int(binary.LittleEndian.Uint32(buf)) > len(buf)-8 || crc32.Checksum(buf[8:], castagnoli) != binary.LittleEndian.Uint32(buf[4:]) {
		return nil, nil, fmt.Errorf("%w: %s has a wrong length or checksum", errDamaged, path)
	}
	n := 8 + int(binary.LittleEndian.Uint32(buf))
	e := &entry{path: path, size: int64(len(buf))}
	if err := json.Unmarshal(buf[8:n], e); err != nil {
		return nil, nil, fmt.Errorf("%w: %s: %w", errDamaged, path, err)
	}
	return e, buf[n:], nil
}

// load queues what an earlier run left. A damaged file, which only the death
// of the machine can leave, is renamed aside and reported.
func (o *Outbox) load() error {
	left, err := filepath.Glob(filepath.Join(o.dir, "*.tmp"))
	if err != nil {
		return fmt.Errorf("spool folder: %w", err)
	}
	for _, p := range left {
		os.Remove(p)
	}
	paths, err := filepath.Glob(filepath.Join(o.dir, "*.batch"))
	if err != nil {
		return fmt.Errorf("spool folder: %w", err)
	}
	slices.Sort(paths)
	for _, p := range paths {
		e, _, err := read(p)
		if err != nil {
			o.log.Error("spool file set aside", "error", err, "remedy", "events in it are lost; look at the disk")
			if err := os.Rename(p, p+".damaged"); err != nil {
				return fmt.Errorf("spool folder: %w", err)
			}
			continue
		}
		o.queue = append(o.queue, e)
		o.bytes += e.size
	}
	if len(o.queue) > 0 {
		o.log.Info("publishing batches that an earlier run left", "batches", len(o.queue), "bytes", o.bytes)
	}
	return nil
}

// flight is a batch offered to JetStream.
type flight struct {
	e *entry
	f jetstream.PubAckFuture
}

// Run publishes until ctx ends; then it goes on for at most grace to empty
// the spool. What is left then stays on disk for the next run. It closes the
// outbox: no Put may follow its return.
func (o *Outbox) Run(ctx context.Context, grace time.Duration) error {
	defer o.lock.Close()
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	defer stop()

	var flights []flight // oldest first
	backoff := time.Duration(0)
	for {
		for len(flights) < inFlight {
			e := o.peek(len(flights))
			if e == nil {
				break
			}
			f, err := o.offer(e)
			if errors.Is(err, errDamaged) && len(flights) == 0 {
				o.log.Error("spooled batch lost", "error", err, "rows", e.Rows)
				o.done(e)
				continue
			}
			if err != nil {
				if len(flights) == 0 {
					backoff = o.pause(work, backoff, err)
				}
				break
			}
			flights = append(flights, flight{e, f})
		}
		if len(flights) == 0 {
			if o.peek(0) != nil {
				if work.Err() != nil {
					return nil
				}
				continue
			}
			if ctx.Err() != nil {
				return nil // stopped and empty
			}
			select {
			case <-o.wake:
			case <-ctx.Done():
			}
			continue
		}
		head := flights[0]
		select {
		case ack := <-head.f.Ok():
			backoff = 0
			flights = flights[1:]
			if ack.Duplicate && head.e.first {
				// Nobody but us knows the run id: an id already taken is
				// an attack or a fault, and the batch is not in the stream.
				o.duplicate.Inc()
				o.log.Error("JetStream already had this message id; publishing again under a new one", "id", schemas.BatchIDOf(head.e.Run, head.e.Batch), "subject", head.e.Subject)
				if err := o.rename(head.e); err != nil {
					o.log.Error("spool", "error", err)
				}
				o.settle(work, flights)
				flights = nil
				continue
			}
			o.done(head.e)
		case err := <-head.f.Err():
			o.retries.Inc()
			head.e.first = false
			o.settle(work, flights[1:])
			flights = nil
			backoff = o.pause(work, backoff, err)
		case <-work.Done():
			return nil
		}
	}
}

// settle waits for the outcome of batches offered after one that failed, so
// that they are offered again in order. Those acknowledged meanwhile are
// recognised by their id when they are offered again.
func (o *Outbox) settle(ctx context.Context, flights []flight) {
	for _, fl := range flights {
		fl.e.first = false
		select {
		case <-fl.f.Ok():
		case <-fl.f.Err():
		case <-ctx.Done():
		}
	}
}

// pause waits before the next attempt and returns the next wait.
func (o *Outbox) pause(ctx context.Context, last time.Duration, err error) time.Duration {
	wait := min(max(2*last, 100*time.Millisecond), 5*time.Second)
	n, bytes := o.Pending()
	if last == 0 || wait == 5*time.Second {
		msg := "publish failed; batches wait in the spool"
		if bus.IsStreamFull(err) {
			msg = "JetStream refuses batches (stream " + schemas.StreamRaw + " full, or its disk); they wait in the spool"
		}
		o.log.Warn(msg, "batches", n, "bytes", bytes, "error", err)
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
	return wait
}

// peek returns the i-th batch of the queue, or nil.
func (o *Outbox) peek(i int) *entry {
	o.mu.Lock()
	defer o.mu.Unlock()
	if i < len(o.queue) {
		return o.queue[i]
	}
	return nil
}

func (o *Outbox) offer(e *entry) (jetstream.PubAckFuture, error) {
	data := e.data
	if data == nil {
		var err error
		if _, data, err = read(e.path); err != nil {
			return nil, err
		}
	}
	return o.bus.JS.PublishMsgAsync(message(e, data), jetstream.WithMsgID(schemas.BatchIDOf(e.Run, e.Batch)), jetstream.WithExpectStream(schemas.StreamRaw))
}

func message(e *entry, data []byte) *nats.Msg {
	m := nats.NewMsg(e.Subject)
	m.Data = data
	m.Header.Set(schemas.HeaderRun, e.Run)
	m.Header.Set(schemas.HeaderBatch, strconv.FormatUint(e.Batch, 10))
	m.Header.Set(schemas.HeaderRows, strconv.Itoa(e.Rows))
	m.Header.Set(schemas.HeaderCumulative, strconv.FormatUint(e.Cumulative, 10))
	m.Header.Set(schemas.HeaderVersion, strconv.Itoa(schemas.SchemaVersion))
	m.Header.Set(schemas.HeaderBatchID, schemas.BatchIDOf(e.Run, e.Batch))
	if !e.first {
		// Offered before, with an outcome that is not known: whoever finds
		// the id taken must know that it may be this batch.
		m.Header.Set(schemas.HeaderReplayed, "1")
	}
	return m
}

// rename gives a batch a run of its own, on disk too.
func (o *Outbox) rename(e *entry) error {
	_, data, err := read(e.path)
	if err != nil {
		return err
	}
	e.Run, e.Batch, e.first = bus.NewRunID(), 1, true
	old := e.size
	err = o.write(e, data)
	o.mu.Lock()
	o.bytes += e.size - old
	o.mu.Unlock()
	return err
}

// done removes an acknowledged batch, which is the head of the queue.
func (o *Outbox) done(e *entry) {
	o.mu.Lock()
	o.queue = o.queue[1:]
	o.bytes -= e.size
	o.mu.Unlock()
	if err := os.Remove(e.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		o.log.Error("spool file of a published batch not removed; it will be published again and recognised", "error", err)
	}
	if _, _, c, err := schemas.ParseRawSubject(e.Subject); err == nil {
		o.published.WithLabelValues(c.String()).Add(float64(e.Rows))
	}
}
