// Package outbox hands batches to JetStream at least once, and to its readers
// once: every batch is a file in a spool folder before it is published, under
// a message id that stays the same over restarts, and the file goes when
// JetStream has acknowledged it.
//
// The files survive the death of the process. They are not synced: the death
// of the machine can take the last seconds of them.
package outbox

import (
	"cmp"
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
	"picket/internal/seldom"
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

// file is a spool file as the queue knows it. There may be as many as batches
// have room in the spool, so it is small: 32 bytes with its place there.
type file struct {
	// stamp is when it was written, ns of the wall clock, or a little more: no
	// two are the same, and their order is that of the batches. With what
	// follows but for size it is the file's name, so that what is lost with a
	// damaged one is known.
	stamp  int64
	number uint32 // the batch's
	size   uint32
	rows   uint16 // 0: the name, of an older version, does not say
	class  schemas.Class
}

func (f file) path(dir string) string {
	name := fmt.Sprintf("%016x-%08x", f.stamp, f.number)
	if f.rows > 0 {
		name += fmt.Sprintf("-%s-%d", f.class, f.rows)
	}
	return filepath.Join(dir, name+suffix)
}

const suffix = ".batch"

// parseName reads a file's name, which path gave.
func parseName(name string) (f file, ok bool) {
	parts := strings.Split(strings.TrimSuffix(name, suffix), "-")
	if !strings.HasSuffix(name, suffix) || len(parts) != 2 && len(parts) != 4 || len(parts[0]) != 16 || len(parts[1]) != 8 {
		return file{}, false
	}
	at, err1 := strconv.ParseInt(parts[0], 16, 64)
	n, err2 := strconv.ParseUint(parts[1], 16, 32)
	f = file{stamp: at, number: uint32(n)}
	if len(parts) == 2 {
		return f, err1 == nil && err2 == nil
	}
	class, err3 := schemas.ParseClass(parts[2])
	rows, err4 := strconv.ParseUint(parts[3], 10, 16)
	f.class, f.rows = class, uint16(rows)
	return f, errors.Join(err1, err2, err3, err4) == nil && rows > 0
}

// place is one in the queue.
type place struct {
	file
	e *entry // nil: read it when its turn comes
}

// entry is one spooled batch. It is the file's header, as JSON.
type entry struct {
	Run        string          `json:"run"`
	Batch      uint64          `json:"batch"`
	Subject    string          `json:"subject"`
	Rows       int             `json:"rows"`
	Cumulative uint64          `json:"cumulative"`
	Note       json.RawMessage `json:"note,omitempty"`

	first bool // never offered to JetStream before
	data  []byte
}

// Outbox is a spool folder and its publisher. Put is safe for concurrent use;
// Run is called once.
type Outbox struct {
	dir string
	max int64
	bus *bus.Bus
	log *slog.Logger
	// seldom logs what every file of the spool can cause.
	seldom *seldom.Logger
	run    string

	mu         sync.Mutex
	next       uint64            // number of the next batch
	cumulative map[string]uint64 // rows per subject of this run
	bytes      int64
	queue      []place
	last       int64             // stamp of the newest file
	notes      []json.RawMessage // see Notes
	damaged    []file            // set aside and not reported yet
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
		dir: dir, max: maxBytes, bus: b, log: log, seldom: seldom.New(log), run: bus.NewRunID(), next: 1, cumulative: map[string]uint64{},
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
// first, and forgets them: a second call returns none.
func (o *Outbox) Notes() []json.RawMessage {
	o.mu.Lock()
	defer o.mu.Unlock()
	notes := o.notes
	o.notes = nil
	return notes
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
	buf, err := e.encode(data)
	if err != nil {
		return err
	}
	if o.bytes+int64(len(buf)) > o.max {
		return ErrFull
	}
	_, _, class, err := schemas.ParseRawSubject(subject)
	if err != nil {
		return err
	}
	// Later than the newest file, whatever somebody has set the clock to.
	f := file{stamp: max(time.Now().UnixNano(), o.last+1), number: uint32(e.Batch), size: uint32(len(buf)), rows: uint16(rows), class: class}
	if err := o.write(f, buf); err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			return fmt.Errorf("%w: %w", ErrFull, err)
		}
		return err
	}
	o.last = f.stamp
	o.next++
	o.cumulative[subject] = e.Cumulative
	o.bytes += int64(f.size)
	if stored != nil {
		stored()
	}
	p := place{file: f}
	if len(o.queue) < 2*inFlight {
		e.data, p.e = data, e
	}
	o.queue = append(o.queue, p)
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return nil
}

// A spool file is: length of the header and CRC-32C of all that follows, as
// little-endian 32-bit numbers; the header; the batch.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (e *entry) encode(data []byte) ([]byte, error) {
	h, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("spool header: %w", err)
	}
	buf := make([]byte, 8, 8+len(h)+len(data))
	buf = append(append(buf, h...), data...)
	binary.LittleEndian.PutUint32(buf, uint32(len(h)))
	binary.LittleEndian.PutUint32(buf[4:], crc32.Checksum(buf[8:], castagnoli))
	return buf, nil
}

func (o *Outbox) write(f file, buf []byte) error {
	path := f.path(o.dir)
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, buf, 0o640); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("spool: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

// read returns the entry in a file, with its data, and the file's size.
func (o *Outbox) read(f file) (*entry, int, error) {
	path := f.path(o.dir)
	buf, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if len(buf) < 8 || int(binary.LittleEndian.Uint32(buf)) > len(buf)-8 || crc32.Checksum(buf[8:], castagnoli) != binary.LittleEndian.Uint32(buf[4:]) {
		return nil, 0, fmt.Errorf("%w: %s has a wrong length or checksum", errDamaged, path)
	}
	n := 8 + int(binary.LittleEndian.Uint32(buf))
	e := &entry{data: buf[n:]}
	if err := json.Unmarshal(buf[8:n], e); err != nil {
		return nil, 0, fmt.Errorf("%w: %s: %w", errDamaged, path, err)
	}
	e.first = e.Run == o.run // whether an earlier run has offered it is not known
	return e, len(buf), nil
}

// setAside renames a damaged file, so that somebody can look at it.
func (o *Outbox) setAside(f file, why error) {
	o.seldom.Error("spool file set aside", "error", why, "class", f.class.String(), "events", f.rows, "remedy", "events in it are lost; look at the disk")
	o.damaged = append(o.damaged, f)
	path := f.path(o.dir)
	if err := os.Rename(path, path+".damaged"); err != nil && !errors.Is(err, os.ErrNotExist) {
		o.seldom.Error("damaged spool file not renamed; it will be met again at the next start", "error", err)
	}
}

// load queues what an earlier run left. A damaged file, which only the death
// of the machine can leave, is renamed aside and reported.
func (o *Outbox) load() error {
	folder, err := os.Open(o.dir)
	if err != nil {
		return fmt.Errorf("spool folder: %w", err)
	}
	defer folder.Close()
	names, err := folder.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("spool folder: %w", err)
	}
	var files []file
	for _, name := range names {
		if strings.HasSuffix(name, ".tmp") {
			os.Remove(filepath.Join(o.dir, name)) // half written; it was never taken
		} else if f, ok := parseName(name); ok {
			files = append(files, f)
		}
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.stamp, b.stamp) })
	for _, f := range files {
		e, size, err := o.read(f)
		o.last = f.stamp
		if err != nil {
			o.setAside(f, err)
			continue
		}
		f.size = uint32(size)
		o.queue = append(o.queue, place{file: f})
		o.bytes += int64(size)
		if e.Note != nil {
			o.notes = append(o.notes, e.Note)
		}
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
// outbox: no Put may follow its return. lost is called with the events of each
// damaged spool file, for LossSpoolDamaged; of one whose name does not say how
// many there were, with 1 of class "".
func (o *Outbox) Run(ctx context.Context, grace time.Duration, lost func(class string, events uint64)) error {
	defer o.lock.Close()
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(grace, cancel) })
	defer stop()

	var flights []flight // oldest first
	backoff := time.Duration(0)
	for {
		for _, f := range o.damaged {
			if f.rows == 0 {
				lost("", 1)
			} else {
				lost(f.class.String(), uint64(f.rows))
			}
		}
		o.damaged = nil
		for len(flights) < inFlight {
			e, err := o.peek(len(flights))
			if errors.Is(err, errDamaged) {
				if len(flights) > 0 {
					break // when it is the head
				}
				o.setAside(o.pop(), err)
				break // it is reported first
			}
			if e == nil {
				break
			}
			f, err := o.offer(e)
			if err != nil {
				if len(flights) == 0 {
					backoff = o.pause(work, backoff, err)
				}
				break
			}
			flights = append(flights, flight{e, f})
		}
		if len(flights) == 0 {
			if n, _ := o.Pending(); n > 0 {
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
				o.seldom.Error("JetStream already had this message id; publishing again under a new one", "id", schemas.BatchIDOf(head.e.Run, head.e.Batch), "subject", head.e.Subject)
				if err := o.rename(head.e); err != nil {
					o.seldom.Error("spool", "error", err)
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

// pause waits before the next attempt, or until NATS is back, and returns how
// long; 0 begins anew.
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
	away := !o.bus.NC.IsConnected()
	for end := time.Now().Add(wait); time.Now().Before(end); {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return wait
		}
		if away && o.bus.NC.IsConnected() {
			return 0
		}
	}
	return wait
}

// peek returns the i-th batch of the queue, or nil. It is Run's, who alone
// takes from the queue.
func (o *Outbox) peek(i int) (*entry, error) {
	o.mu.Lock()
	if i >= len(o.queue) {
		o.mu.Unlock()
		return nil, nil
	}
	p := o.queue[i]
	o.mu.Unlock()
	if p.e != nil {
		return p.e, nil
	}
	e, _, err := o.read(p.file)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	o.queue[i].e = e // kept: an attempt that fails is noted in it
	o.mu.Unlock()
	return e, nil
}

func (o *Outbox) offer(e *entry) (jetstream.PubAckFuture, error) {
	return o.bus.JS.PublishMsgAsync(message(e, e.data), jetstream.WithMsgID(schemas.BatchIDOf(e.Run, e.Batch)), jetstream.WithExpectStream(schemas.StreamRaw))
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

// rename gives the batch at the head of the queue a run of its own, on disk too.
func (o *Outbox) rename(e *entry) error {
	e.Run, e.Batch, e.first = bus.NewRunID(), 1, true
	buf, err := e.encode(e.data)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	head := &o.queue[0]
	o.bytes += int64(len(buf)) - int64(head.size)
	head.size = uint32(len(buf))
	return o.write(head.file, buf)
}

// pop takes the head of the queue out.
func (o *Outbox) pop() file {
	o.mu.Lock()
	defer o.mu.Unlock()
	head := o.queue[0]
	o.queue[0].e = nil // what is behind it in memory stays as long as the queue
	o.queue = o.queue[1:]
	o.bytes -= int64(head.size)
	return head.file
}

// done removes an acknowledged batch, which is the head of the queue.
func (o *Outbox) done(e *entry) {
	if err := os.Remove(o.pop().path(o.dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		o.seldom.Error("spool file of a published batch not removed; it will be published again and recognised", "error", err)
	}
	if _, _, c, err := schemas.ParseRawSubject(e.Subject); err == nil {
		o.published.WithLabelValues(c.String()).Add(float64(e.Rows))
	}
}
