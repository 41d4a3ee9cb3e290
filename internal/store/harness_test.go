package store

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/clickhousebin"
	"picket/internal/clickhousebin/clickhousetest"
	"picket/internal/health"
	"picket/internal/natsserver"
	"picket/internal/natsserver/natstest"
	"picket/schemas"
)

// TestMain is also the main function of the writers that tests kill.
func TestMain(m *testing.M) {
	if os.Getenv("STORE_TEST_NATS") != "" {
		os.Exit(childWriter())
	}
	// Tests wait more than they compute. -parallel still has the last word.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// world is a NATS server, a ClickHouse and a publisher.
type world struct {
	t    testing.TB
	nats *natsserver.Server
	ch   *clickhousebin.Server
	data string // of ClickHouse
	db   *DB
	pub  *bus.Bus // with the enricher's credentials
	all  *bus.Bus // with the administrator's

	run  string
	next uint64
	rows map[string]uint64 // published by subject
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, data: t.TempDir(), run: newToken(), rows: map[string]uint64{}}
	w.ch = clickhousetest.Start(t, w.data)
	w.db = open(t, w.ch.URL)
	if err := w.db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.nats = natstest.Start(t)
	w.pub = natstest.Connect(t, w.nats, schemas.ServiceEnricher)
	w.all = natstest.Connect(t, w.nats, schemas.ServiceAdmin)
	return w
}

// message is a batch to publish.
type message struct {
	class   schemas.Class
	rows    int
	id      string                    // batch id; empty: the next of the run
	time    time.Time                 // of the first event; zero: now
	set     func(*batch.Builder, int) // further fields
	headers map[string]string
	data    []byte // in place of the rows
}

func (w *world) encode(m message) []byte {
	w.t.Helper()
	if m.data != nil {
		return m.data
	}
	b := batch.NewBuilder(m.class, schemas.Columns(m.class))
	if m.time.IsZero() {
		m.time = time.Now()
	}
	for i := range m.rows {
		b.Bytes16(schemas.EventID, schemas.Hash128(m.id, strconv.Itoa(i)))
		b.Str(schemas.Action, "test")
		b.Str(schemas.Cluster, "c1")
		b.Str(schemas.Node, "n1")
		b.Uint32(schemas.SchemaVer, schemas.SchemaVersion)
		b.Int64(schemas.EventTime, m.time.UnixNano()+int64(i))
		b.Uint32(schemas.ProcessPID, uint32(i))
		b.Str(schemas.ProcessName, "sh"+strconv.Itoa(i%10))
		b.List(schemas.AncestorNames, []string{"bash", "sshd"})
		b.Map(schemas.PodLabels, map[string]string{"app": "web"})
		if m.set != nil {
			m.set(b, i)
		}
		b.EndRow()
	}
	enc, err := batch.Encode(b.Batch())
	if err != nil || len(enc) != 1 {
		w.t.Fatalf("%d messages, %v", len(enc), err)
	}
	return enc[0].Data
}

// publish publishes a batch as the enricher does, and returns its sequence.
func (w *world) publish(m message) uint64 {
	w.t.Helper()
	w.next++
	if m.id == "" {
		m.id = schemas.BatchIDOf(w.run, w.next)
	}
	subject := schemas.EventsSubject("c1", "n1", m.class)
	w.rows[subject] += uint64(max(1, m.rows))
	msg := nats.NewMsg(subject)
	msg.Data = w.encode(m)
	for k, v := range map[string]string{
		schemas.HeaderRun: w.run, schemas.HeaderBatch: strconv.FormatUint(w.next, 10), schemas.HeaderBatchID: m.id,
		schemas.HeaderRows: strconv.Itoa(max(1, m.rows)), schemas.HeaderCumulative: strconv.FormatUint(w.rows[subject], 10),
	} {
		msg.Header.Set(k, v)
	}
	for k, v := range m.headers {
		msg.Header.Set(k, v)
	}
	ack, err := w.pub.JS.PublishMsg(w.t.Context(), msg)
	if err != nil {
		w.t.Fatal(err)
	}
	return ack.Sequence
}

// running is a writer of this process.
type running struct {
	*Writer
	reg    *prometheus.Registry
	health *health.Reporter
	stop   func() // as a service stops; waits
}

func testInsert() InsertConfig {
	c := DefaultInsert()
	c.FlushInterval = 50 * time.Millisecond
	return c
}

// start runs a writer with the sink's credentials. prepare, if not nil, may
// change it before.
func (w *world) start(prepare func(*Writer)) *running {
	w.t.Helper()
	return w.startOn(w.ch.URL, NewEvents(), prepare)
}

func (w *world) startOn(url string, src Source, prepare func(*Writer)) *running {
	w.t.Helper()
	stream, durable, service := schemas.StreamEvents, schemas.DurableSink, schemas.ServiceSink
	if _, ok := src.(*Alerts); ok {
		stream, durable, service = schemas.StreamAlerts, schemas.DurableAlertsWriter, schemas.ServiceDetector
	}
	log := slog.New(slog.NewTextHandler(w.t.Output(), nil))
	db := open(w.t, url)
	b := natstest.Connect(w.t, w.nats, service)
	r := &running{reg: prometheus.NewRegistry()}
	r.health = health.New(service, "c1", "", newToken(), log, r.reg)
	r.Writer = NewWriter(db, b, WriterOptions{Stream: stream, Durable: durable, Source: src, Insert: testInsert(), Grace: 5 * time.Second, Service: service, Health: r.health}, log, r.reg)
	if prepare != nil {
		prepare(r.Writer)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("the writer ended with: %v", err)
		}
	}
	w.t.Cleanup(r.stop)
	return r
}

// metric returns the sum of a metric's samples that have the label values.
func (r *running) metric(name string, labels ...string) float64 {
	families, err := r.reg.Gather()
	if err != nil {
		panic(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	samples:
		for _, m := range f.GetMetric() {
			var have []string
			for _, l := range m.GetLabel() {
				have = append(have, l.GetValue())
			}
			for _, l := range labels {
				if !strings.Contains(" "+strings.Join(have, " ")+" ", " "+l+" ") {
					continue samples
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, d time.Duration, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", d, what)
		}
	}
}

// settled waits until the durable has nothing left.
func (w *world) settled(d time.Duration) {
	w.t.Helper()
	eventually(w.t, "every message is acknowledged", d, func() bool { return w.idle(schemas.StreamEvents, schemas.DurableSink) })
}

// idle reports whether a durable has nothing left. NumPending alone does not
// tell: the server counts a message there some time after it took it.
func (w *world) idle(stream, durable string) bool {
	w.t.Helper()
	s, err := w.all.JS.Stream(context.Background(), stream)
	if err != nil {
		w.t.Fatal(err)
	}
	i := w.consumer(stream, durable)
	return i.Delivered.Stream >= s.CachedInfo().State.LastSeq && i.NumPending == 0 && i.NumAckPending == 0
}

func (w *world) consumer(stream, durable string) *jetstream.ConsumerInfo {
	w.t.Helper()
	c, err := w.all.JS.Consumer(context.Background(), stream, durable)
	if err != nil {
		w.t.Fatal(err)
	}
	return c.CachedInfo()
}

// want checks how many rows a table has, and that none stands twice.
func (w *world) want(table string, rows int) {
	w.t.Helper()
	got := query(w.t, w.db, "SELECT count(), uniqExact(event_id) FROM "+table)
	if want := fmt.Sprintf("%d\t%d", rows, rows); got != want {
		w.t.Fatalf("%s has rows and distinct ids %q, want %q", table, got, want)
	}
}

// ledgerOf returns the record of a table's inserts.
func (w *world) ledgerOf(durable, table string) ledger {
	w.t.Helper()
	kv, err := w.all.JS.KeyValue(context.Background(), schemas.BucketState)
	if err != nil {
		w.t.Fatal(err)
	}
	b := book{kv: kv, key: "insert." + durable + "." + table}
	l, err := b.read(context.Background(), true)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// impatient makes the durable deliver again after d what is not acknowledged.
func (w *world) impatient(durable string, d time.Duration) {
	w.t.Helper()
	stream := schemas.StreamEvents
	if durable == schemas.DurableAlertsWriter {
		stream = schemas.StreamAlerts
	}
	cfg := w.consumer(stream, durable).Config
	cfg.AckWait = d
	if _, err := w.all.JS.UpdateConsumer(context.Background(), stream, cfg); err != nil {
		w.t.Fatal(err)
	}
}

// childWriter runs a writer until it is killed or told to stop, and kills
// itself at the step and the time of passing it that the environment names.
func childWriter() int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	cfg := DefaultConfig()
	cfg.URL = os.Getenv("STORE_TEST_CLICKHOUSE")
	db, err := Open(cfg, log)
	if err != nil {
		log.Error("open", "error", err)
		return 1
	}
	b, err := bus.Connect(bus.Config{URL: os.Getenv("STORE_TEST_NATS"), CredentialsFile: os.Getenv("STORE_TEST_CREDENTIALS")}, schemas.ServiceSink, log)
	if err != nil {
		log.Error("connect", "error", err)
		return 1
	}
	reg := prometheus.NewRegistry()
	w := NewWriter(db, b, WriterOptions{Stream: schemas.StreamEvents, Durable: schemas.DurableSink, Source: NewEvents(), Insert: testInsert(), Grace: 5 * time.Second,
		Service: schemas.ServiceSink, Health: health.New("sink", "c1", "", "run", log, reg)}, log, reg)
	step, times := os.Getenv("STORE_TEST_KILL_AT"), 0
	left, _ := strconv.Atoi(os.Getenv("STORE_TEST_KILL_AFTER"))
	w.step = func(at string) {
		if at == step {
			if times++; times > left {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
	}
	if err := w.Run(context.Background()); err != nil {
		log.Error("run", "error", err)
		return 1
	}
	return 0
}

// child starts a writer in a process of its own, which kills itself at a step
// that it has passed n times before.
func (w *world) child(step string, n int) *exec.Cmd {
	w.t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "STORE_TEST_NATS="+w.nats.URL(), "STORE_TEST_CREDENTIALS="+w.nats.Credentials(schemas.ServiceSink),
		"STORE_TEST_CLICKHOUSE="+w.ch.URL, "STORE_TEST_KILL_AT="+step, "STORE_TEST_KILL_AFTER="+strconv.Itoa(n))
	c.Stdout, c.Stderr = w.t.Output(), w.t.Output()
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = c.Process.Kill() // fails where it has ended already
		_ = c.Wait()
	})
	return c
}
