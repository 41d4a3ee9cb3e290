package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"picket/internal/bus"
	"picket/internal/fault"
	"picket/internal/health"
	"picket/internal/service"
	"picket/schemas"
)

// InsertConfig is the `insert` part of a configuration: when an insert is
// closed, whichever comes first, and what is held for it.
type InsertConfig struct {
	FlushInterval time.Duration `yaml:"flush_interval" doc:"How long rows wait for more of their table before they are inserted; 10ms to 1m."`
	MaxRows       int           `yaml:"max_rows" doc:"Rows after which an insert is closed; 1 to 1000000."`
	MaxBytes      int           `yaml:"max_bytes" doc:"Bytes of unpacked rows after which an insert is closed; 1 MiB to 120 MiB."`
	MaxHeldBytes  int           `yaml:"max_held_bytes" doc:"Bytes of messages that may wait for ClickHouse in memory; the others wait in the stream. 1 MiB to 4 GiB."`
	Concurrency   int           `yaml:"concurrency" doc:"Inserts that may be under way at a time, each of another table; 1 to 16."`
}

// DefaultInsert returns the default `insert` part.
func DefaultInsert() InsertConfig {
	return InsertConfig{FlushInterval: time.Second, MaxRows: 100_000, MaxBytes: 64 << 20, MaxHeldBytes: 256 << 20, Concurrency: 2}
}

// Validate checks the part; messages name the YAML key.
func (c InsertConfig) Validate() error {
	check := func(key string, v, low, high int) error {
		if v < low || v > high {
			return fmt.Errorf("insert.%s is %d: use %d to %d", key, v, low, high)
		}
		return nil
	}
	if c.FlushInterval < 10*time.Millisecond || c.FlushInterval > time.Minute {
		return fmt.Errorf("insert.flush_interval is %s: use 10ms to 1m", c.FlushInterval)
	}
	return errors.Join(
		check("max_rows", c.MaxRows, 1, 1_000_000),
		check("max_bytes", c.MaxBytes, 1<<20, 120<<20),
		check("max_held_bytes", c.MaxHeldBytes, 1<<20, 4<<30),
		check("concurrency", c.Concurrency, 1, 16),
	)
}

// WriterOptions say what a Writer works on.
type WriterOptions struct {
	// Stream and Durable name the consumer, which may be shared with other
	// processes.
	Stream, Durable string
	Source          Source
	Insert          InsertConfig
	// Grace is how long Run goes on to insert what it holds when it is asked
	// to stop.
	Grace time.Duration
	// Service is the first part of the metrics' names after picket_.
	Service string
	// Health is told what is stored (counter "stored" by table) and lost.
	Health *health.Reporter
}

// Writer inserts the messages of a durable consumer into tables, every message
// exactly once, and acknowledges each after its rows are durable. Run is
// called once.
type Writer struct {
	db    *DB
	bus   *bus.Bus
	o     WriterOptions
	log   *slog.Logger
	m     *writerMetrics
	lanes []*lane
	slots chan struct{} // one for each insert under way

	stream   jetstream.Stream
	consumer jetstream.Consumer
	created  time.Time // the durable
	last     uint64    // stream sequence when Run began

	mu   sync.Mutex
	held int        // bytes of messages waiting or being inserted
	room *sync.Cond // signalled when held shrinks or Run ends

	// step, if not nil, is called as a lane passes named points: tests kill
	// the process there, or fail the connection.
	step func(at string)
}

type writerMetrics struct {
	rows, inserts, retries, lookups, repeated, recognised *prometheus.CounterVec
	seconds                                               *prometheus.HistogramVec
	pending                                               *prometheus.GaugeVec
}

// NewWriter prepares a Writer. Its metrics are registered with reg.
func NewWriter(db *DB, b *bus.Bus, o WriterOptions, log *slog.Logger, reg prometheus.Registerer) *Writer {
	ns := "picket_" + strings.ReplaceAll(o.Service, "-", "_") + "_"
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: ns + name, Help: help}, labels)
	}
	w := &Writer{db: db, bus: b, o: o, log: log, slots: make(chan struct{}, o.Insert.Concurrency), m: &writerMetrics{
		rows:       counter("inserted_rows_total", "Rows that ClickHouse has, by table.", "table"),
		inserts:    counter("inserts_total", "Inserts that succeeded, by table.", "table"),
		retries:    counter("insert_retries_total", "Steps of an insert that failed and were repeated, by table and ClickHouse's exception code, or network, timeout, http, nats.", "table", "code"),
		lookups:    counter("lookups_total", "Messages whose rows were looked for because they had been delivered before, by table.", "table"),
		recognised: counter("recognised_messages_total", "Messages whose rows were found stored already, by table.", "table"),
		repeated:   counter("repeated_inserts_total", "Inserts of another writer, or of a former run, that were repeated under their token, by table.", "table"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: ns + "insert_duration_seconds", Help: "Time of one successful insert, by table.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}}, []string{"table"}),
		pending: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: ns + "pending_rows", Help: "Rows waiting or being inserted, by table."}, []string{"table"}),
	}}
	w.room = sync.NewCond(&w.mu)
	reg.MustRegister(w.m.rows, w.m.inserts, w.m.retries, w.m.lookups, w.m.recognised, w.m.repeated, w.m.seconds, w.m.pending)
	for _, t := range o.Source.Tables() {
		w.lanes = append(w.lanes, newLane(w, t))
	}
	return w
}

// Run consumes until ctx ends or the consumer is gone, then inserts what it
// holds for at most Grace. What it could not insert is delivered to another
// writer, or to the next run.
func (w *Writer) Run(ctx context.Context) error {
	if err := w.open(ctx); err != nil {
		return err
	}
	// The lanes outlive ctx: they still insert what is held.
	work, stopLanes := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLanes()
	stop := context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.room.Broadcast()
	})
	defer stop()
	var lanes errgroup.Group
	for _, l := range w.lanes {
		lanes.Go(func() error { l.run(work, ctx.Done()); return nil })
	}
	err := w.bus.Consume(ctx, w.o.Stream, w.o.Durable, w.o.Grace, func(m *bus.Message) { w.take(ctx, m) })
	stopLanes()
	return errors.Join(err, lanes.Wait())
}

func (w *Writer) open(ctx context.Context) error {
	kv, err := w.bus.JS.KeyValue(ctx, schemas.BucketState)
	if err != nil {
		return fmt.Errorf("bucket %s: %w (run `picket migrate`)", schemas.BucketState, err)
	}
	if w.stream, err = w.bus.JS.Stream(ctx, w.o.Stream); err != nil {
		return fmt.Errorf("stream %s: %w (run `picket migrate`)", w.o.Stream, err)
	}
	if w.consumer, err = w.stream.Consumer(ctx, w.o.Durable); err != nil {
		return fmt.Errorf("consumer %s of stream %s: %w (run `picket migrate`)", w.o.Durable, w.o.Stream, err)
	}
	w.created, w.last = w.consumer.CachedInfo().Created.UTC(), w.stream.CachedInfo().State.LastSeq
	for _, l := range w.lanes {
		l.book = book{kv: kv, key: "insert." + w.o.Durable + "." + l.table.Name}
	}
	return nil
}

// RunWriter connects to ClickHouse as cfg says and runs a Writer until ctx ends,
// with the readiness condition "clickhouse". It waits for the server without
// bound, and half a minute for its tables.
func RunWriter(ctx context.Context, cfg Config, rt *service.Runtime, o WriterOptions) error {
	db, err := Open(cfg, rt.Log)
	if err != nil {
		return err
	}
	defer db.Close()
	rt.SetReady("clickhouse", db.Ready)
	if err := db.Wait(ctx, 30*time.Second); err != nil {
		return err
	}
	return NewWriter(db, rt.Bus, o, rt.Log, rt.Metrics).Run(ctx)
}

// take hands a delivered message to its table's lane. It blocks while too many
// bytes are held.
func (w *Writer) take(ctx context.Context, m *bus.Message) {
	msg := Message{Stream: m.Stream, Sequence: m.Sequence, Subject: m.Subject(), Header: m.Headers(), Data: m.Data()}
	var delivered uint64
	if md, err := m.Metadata(); err == nil {
		msg.Time, delivered = md.Timestamp, md.Sequence.Consumer
	}
	table, rows, err := w.o.Source.Route(msg)
	if err != nil {
		w.bury(m, msg, err)
		return
	}
	w.mu.Lock()
	for w.held > 0 && w.held+len(msg.Data) > w.o.Insert.MaxHeldBytes && ctx.Err() == nil {
		w.room.Wait()
	}
	w.held += len(msg.Data)
	w.mu.Unlock()
	w.lanes[table].push(m, msg, delivered, rows)
}

func (w *Writer) release(n int) {
	w.mu.Lock()
	w.held -= n
	w.mu.Unlock()
	w.room.Signal()
}

// bury sets a message aside as a dead letter, and counts it.
func (w *Writer) bury(m *bus.Message, msg Message, err error) {
	class, rows := "", 1
	if table, n, err := w.o.Source.Route(msg); err == nil {
		class, rows = w.lanes[table].table.Name, n
	}
	if m.Done(fault.Permanent(fault.Reason(err), err)) {
		w.o.Health.Lost(class, schemas.LossDeadLetter, uint64(rows))
	}
}

// floor returns the stream sequence up to which every message is settled.
func (w *Writer) floor(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, kvTimeout)
	defer cancel()
	info, err := w.consumer.Info(ctx)
	if err != nil {
		return 0, fmt.Errorf("consumer %s: %w", w.o.Durable, err)
	}
	return info.AckFloor.Stream, nil
}

// fetch reads a message from the stream. It returns false if the stream does
// not have it any more.
func (w *Writer) fetch(ctx context.Context, seq uint64) (Message, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, kvTimeout)
	defer cancel()
	raw, err := w.stream.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Message{}, false, nil
	}
	if err != nil {
		return Message{}, false, fmt.Errorf("read message %d of %s: %w", seq, w.o.Stream, err)
	}
	return rawMessage(w.o.Stream, raw), true, nil
}

func (w *Writer) at(point string) {
	if w.step != nil {
		w.step(point)
	}
}
