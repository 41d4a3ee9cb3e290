package enricher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/natsserver"
	"picket/internal/natsserver/natstest"
	"picket/internal/service"
	"picket/schemas"
)

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// event is a row of a raw batch.
type event struct {
	cluster, node, podUID, containerID string
	peer                               [16]byte
	time                               int64
	user, extra                        string
	name                               string // of the container, from its runtime
	port                               uint32
	id                                 [16]byte // of the event; made where it is zero
}

func build(c schemas.Class, rows ...event) *batch.Batch {
	b := batch.NewBuilder(c, schemas.RawColumns(c))
	for i, r := range rows {
		if r.id == ([16]byte{}) {
			r.id = schemas.Hash128(c.String(), strconv.Itoa(i))
		}
		b.Bytes16(schemas.EventID, r.id)
		b.Str(schemas.Action, "exec")
		b.Str(schemas.Cluster, r.cluster)
		b.Str(schemas.Node, r.node)
		b.Int64(schemas.EventTime, r.time)
		b.Uint32(schemas.ProcessPID, uint32(i+1))
		b.Str(schemas.PodUID, r.podUID)
		b.Str(schemas.ContainerID, r.containerID)
		if r.peer != ([16]byte{}) {
			b.Bytes16(schemas.NetPeerAddress, r.peer)
		}
		b.Uint32(schemas.NetPeerPort, r.port)
		b.Str(schemas.ContainerName, r.name)
		b.Str(schemas.AuditUser, r.user)
		b.Str(schemas.AuditUserExtra, r.extra)
		b.EndRow()
	}
	return b.Batch()
}

func encoded(t testing.TB, c schemas.Class, rows ...event) []byte {
	t.Helper()
	enc, err := batch.Encode(build(c, rows...))
	if err != nil || len(enc) != 1 {
		t.Fatalf("%d streams: %v", len(enc), err)
	}
	return enc[0].Data
}

// sender publishes raw batches as an outbox does.
type sender struct {
	t    testing.TB
	bus  *bus.Bus
	run  string
	next uint64
}

func newSender(t testing.TB, b *bus.Bus) *sender { return &sender{t, b, bus.NewRunID(), 1} }

func (s *sender) send(subject string, data []byte, rows int, header ...string) (id string) {
	s.t.Helper()
	id, err := s.try(subject, data, rows, header...)
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// try is send for goroutines that may not end the test.
func (s *sender) try(subject string, data []byte, rows int, header ...string) (id string, err error) {
	id = schemas.BatchIDOf(s.run, s.next)
	s.next++
	m := nats.NewMsg(subject)
	m.Data = data
	m.Header.Set(schemas.HeaderBatchID, id)
	m.Header.Set(schemas.HeaderRows, strconv.Itoa(rows))
	for i := 0; i+1 < len(header); i += 2 {
		m.Header.Set(header[i], header[i+1])
	}
	_, err = s.bus.JS.PublishMsg(context.Background(), m, jetstream.WithMsgID(id))
	return id, err
}

// received is an enriched batch as a consumer gets it.
type received struct {
	jetstream.Msg
	*batch.Batch
	class schemas.Class
	at    time.Time
}

func (r received) id() string { return r.Headers().Get(schemas.HeaderBatchID) }

// drain collects what PICKET_EVENTS has for the sink until n batches came
// (those of classes health and correction apart, which come when they do) or time is out.
func drain(t testing.TB, b *bus.Bus, n int, patience time.Duration) []received {
	t.Helper()
	var out []received
	collect(t, b, patience, func(r received) bool {
		if r.class != schemas.Health && r.class != schemas.Correction {
			out = append(out, r)
		}
		return len(out) < n
	})
	return out
}

// collect hands what PICKET_EVENTS has for the sink to more, until that
// returns false or time is out.
func collect(t testing.TB, b *bus.Bus, patience time.Duration, more func(received) bool) {
	t.Helper()
	cons, err := b.JS.Consumer(context.Background(), schemas.StreamEvents, schemas.DurableSink)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		ms, err := cons.Fetch(1, jetstream.FetchMaxWait(100*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		for m := range ms.Messages() {
			_, c, err := schemas.ParseEventsSubject(m.Subject())
			if err != nil {
				t.Fatal(err)
			}
			e, err := batch.Decode(m.Data())
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Ack(); err != nil {
				t.Fatal(err)
			}
			if !more(received{m, e, c, time.Now()}) {
				return
			}
		}
	}
}

// background runs f until the returned function is called, which gives its error.
func background(t testing.TB, f func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := stop(); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return stop
}

func TestRunWithoutCluster(t *testing.T) {
	cfg, b := startNATS(t)
	stop := background(t, func(ctx context.Context) error { return Run(ctx, cfg) })
	s := newSender(t, b)
	id := s.send("picket.raw.test.n1.process", encoded(t, schemas.Process,
		event{cluster: "test", node: "n1"}, event{cluster: "test", node: "n1", podUID: "p", containerID: "c"}), 2)
	got := drain(t, b, 1, 10*time.Second)
	if len(got) != 1 {
		t.Fatalf("%d batches", len(got))
	}
	h := got[0].Headers()
	for k, want := range map[string]string{schemas.HeaderBatchID: id, "Nats-Msg-Id": id, schemas.HeaderRows: "2",
		schemas.HeaderCumulative: "2", schemas.HeaderBatch: "1", schemas.HeaderVersion: fmt.Sprint(schemas.SchemaVersion)} {
		if h.Get(k) != want {
			t.Errorf("header %s is %q, want %q", k, h.Get(k), want)
		}
	}
	if want := schemas.EventsSubject("test", "n1", schemas.Process); got[0].Subject() != want {
		t.Errorf("subject %s, want %s", got[0].Subject(), want)
	}
	e := got[0]
	if e.Str(schemas.Join, 0) != joinHost || e.Str(schemas.Join, 1) != joinUnresolved || e.Uint(schemas.ProcessPID, 1) != 2 {
		t.Errorf("joined %q and %q", e.Str(schemas.Join, 0), e.Str(schemas.Join, 1))
	}
	start := time.Now()
	if err := stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("stopping took %v", d)
	}
	if left := pending(t, b); left != 0 {
		t.Errorf("%d raw batches left", left)
	}
}

// pending returns how many raw batches, reports on Picket's own health apart,
// are not settled.
func pending(t testing.TB, b *bus.Bus) uint64 {
	t.Helper()
	st, err := b.JS.Stream(context.Background(), schemas.StreamRaw)
	if err != nil {
		t.Fatal(err)
	}
	info, err := st.Info(context.Background(), jetstream.WithSubjectFilter("picket.raw.>"))
	if err != nil {
		t.Fatal(err)
	}
	n := uint64(0)
	for s, c := range info.State.Subjects {
		if !strings.HasSuffix(s, ".health") {
			n += c
		}
	}
	return n
}

// serve runs an enricher in this process and gives a look inside.
func serve(t *testing.T, cfg Config) (s *server, stop func() error) {
	t.Helper()
	rt, err := service.Start(schemas.ServiceEnricher, cfg.NATS, cfg.Log, cfg.Admin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rt.Close)
	if s, err = newServer(cfg, rt); err != nil {
		t.Fatal(err)
	}
	return s, background(t, s.run)
}

// TestWaitsForPod: a batch waits for its pod, and nobody else with it.
func TestWaitsForPod(t *testing.T) {
	cfg, b := startNATS(t)
	api := startAPI(t, cluster()...)
	cfg.Kubernetes = api.config()
	cfg.Kubernetes.WaitForPod = 10 * time.Second
	srv, _ := serve(t, cfg)
	eventually(t, "the metadata is complete", srv.watcher.synced)
	s := newSender(t, b)
	early := s.send("picket.raw.test.n1.process", encoded(t, schemas.Process, event{cluster: "test", node: "n1", podUID: "late", containerID: "c-late"}), 1)
	behind := s.send("picket.raw.test.n1.process", encoded(t, schemas.Process, event{cluster: "test", node: "n1"}), 1)
	eventually(t, "the batch waits", func() bool { return testutil.ToFloat64(srv.metrics.waiting) == 1 })
	start := time.Now()
	others := []string{
		s.send("picket.raw.test.n1.file", encoded(t, schemas.File, event{cluster: "test", node: "n1", podUID: "web"}), 1),
		s.send("picket.raw.test.n2.process", encoded(t, schemas.Process, event{cluster: "test", node: "n2"}), 1),
		s.send("picket.raw.other.n1.process", encoded(t, schemas.Process, event{cluster: "other", node: "n1", podUID: "late"}), 1),
	}
	got := drain(t, b, 3, 5*time.Second)
	for _, r := range got {
		if !slices.Contains(others, r.id()) {
			t.Errorf("%s overtook", r.id())
		}
	}
	if d := time.Since(start); len(got) != 3 || d > 2*time.Second {
		t.Errorf("%d other batches came in %v", len(got), d)
	}
	api.Put(simplePod("late", "late"))
	got = drain(t, b, 2, 5*time.Second)
	if len(got) != 2 || got[0].id() != early || got[1].id() != behind {
		t.Fatalf("%d batches, or in disorder", len(got))
	}
	if name := got[0].Str(schemas.PodName, 0) + " " + got[0].Str(schemas.ContainerImage, 0); name != "late docker.io/library/app" {
		t.Errorf("joined with %q", name)
	}
	if n := testutil.ToFloat64(srv.metrics.joined.WithLabelValues("process", "resolved")); n != 1 {
		t.Errorf("%v events counted as resolved", n)
	}
}

// TestGivesUp: the wait is bounded, and one pod is waited for once.
func TestGivesUp(t *testing.T) {
	cfg, b := startNATS(t)
	cfg.Kubernetes = startAPI(t, cluster()...).config()
	cfg.Kubernetes.WaitForPod = 400 * time.Millisecond
	srv, _ := serve(t, cfg)
	eventually(t, "the metadata is complete", srv.watcher.synced)
	s := newSender(t, b)
	data := encoded(t, schemas.Process, event{cluster: "test", node: "n1", podUID: "never"})
	for i, want := range []struct{ least, most time.Duration }{{400 * time.Millisecond, 2 * time.Second}, {0, 300 * time.Millisecond}} {
		start := time.Now()
		s.send("picket.raw.test.n1.process", data, 1)
		got := drain(t, b, 1, 5*time.Second)
		if len(got) != 1 || got[0].Str(schemas.Join, 0) != joinUnresolved {
			t.Fatalf("batch %d: %d came", i, len(got))
		}
		if d := got[0].at.Sub(start); d < want.least || d > want.most {
			t.Errorf("batch %d took %v, want %v to %v", i, d, want.least, want.most)
		}
	}
	if n := testutil.ToFloat64(srv.metrics.joined.WithLabelValues("process", "unknown_pod")); n != 2 {
		t.Errorf("%v events counted as unknown", n)
	}
}

// TestCrowded: when much is in hand, nothing waits.
func TestCrowded(t *testing.T) {
	cfg, b := startNATS(t)
	cfg.Kubernetes = startAPI(t, cluster()...).config()
	cfg.Kubernetes.WaitForPod = 5 * time.Second
	cfg.Kubernetes.HeldMax = 8
	srv, _ := serve(t, cfg)
	eventually(t, "the metadata is complete", srv.watcher.synced)
	s := newSender(t, b)
	start := time.Now()
	for i := range 20 {
		node := fmt.Sprint("n", i)
		s.send("picket.raw.test."+node+".process", encoded(t, schemas.Process, event{cluster: "test", node: node, podUID: "never" + node}), 1)
	}
	// 8 may wait; the others cannot all be in hand while these do.
	if got := drain(t, b, 12, 5*time.Second); len(got) < 12 || time.Since(start) > 4*time.Second {
		t.Errorf("%d batches in %v", len(got), time.Since(start))
	}
}

// TestAPIServerUnreachable: a start without an answer goes on after its bound.
func TestAPIServerUnreachable(t *testing.T) {
	cfg, b := startNATS(t)
	api := startAPI(t, cluster()...)
	cfg.Kubernetes = api.config()
	cfg.Kubernetes.SyncTimeout = 500 * time.Millisecond
	api.Down()
	srv, _ := serve(t, cfg)
	if srv.ready() == nil {
		t.Error("ready before the metadata")
	}
	s := newSender(t, b)
	data := encoded(t, schemas.Process, event{cluster: "test", node: "n1", podUID: "web", containerID: "c-web"})
	start := time.Now()
	s.send("picket.raw.test.n1.process", data, 1)
	got := drain(t, b, 1, 10*time.Second)
	if len(got) != 1 || got[0].Str(schemas.Join, 0) != joinUnresolved || time.Since(start) > 5*time.Second {
		t.Fatalf("%d batches in %v", len(got), time.Since(start))
	}
	if srv.watcher.ready() == nil {
		t.Error("complete without an API server")
	}
	if err := srv.ready(); err != nil {
		t.Errorf("it works, and is not ready: %v", err)
	}
	if n := testutil.ToFloat64(srv.metrics.joined.WithLabelValues("process", "not_synced")); n != 1 {
		t.Errorf("%v events counted as not synced", n)
	}
	if n := testutil.ToFloat64(srv.metrics.apiErrors.WithLabelValues("none")); n == 0 {
		t.Error("no failed request counted")
	}
	api.up()
	eventually(t, "the metadata is complete", srv.watcher.synced)
	s.send("picket.raw.test.n1.process", data, 1)
	if got := drain(t, b, 1, 5*time.Second); len(got) != 1 || got[0].Str(schemas.WorkloadName, 0) != "web" {
		t.Error("not joined after the API server came")
	}
}

// TestUnprocessable: what cannot be joined is set aside once, counted, and the
// rest goes on.
func TestUnprocessable(t *testing.T) {
	cfg, b := startNATS(t)
	srv, _ := serve(t, cfg)
	s := newSender(t, b)
	good := encoded(t, schemas.Process, event{cluster: "test", node: "n"})
	const subject = "picket.raw.test.n.process"
	first := s.send(subject, good, 1)
	s.send(subject, []byte("garbage"), 7)
	s.send(subject, good[:len(good)/2], 3)
	s.send(subject, nil, 100000)
	s.send("picket.raw.test.n.file", good, 2)
	s.send("picket.raw.test.n.elsewhere", good, 1)
	s.send("picket.raw.short", good, 1)
	last := s.send(subject, good, 1)
	got := drain(t, b, 2, 10*time.Second)
	if len(got) != 2 || got[0].id() != first || got[1].id() != last {
		t.Fatalf("%d batches", len(got))
	}
	eventually(t, "all are settled", func() bool { return pending(t, b) == 0 })
	dead, err := b.JS.Stream(context.Background(), schemas.StreamDead)
	if err != nil {
		t.Fatal(err)
	}
	info, err := dead.Info(context.Background())
	if err != nil || info.State.Msgs != 6 {
		t.Errorf("%d dead letters: %v", info.State.Msgs, err)
	}
	reasons := map[string]int{}
	for i := range info.State.Msgs {
		m, err := dead.GetMsg(context.Background(), i+1)
		if err != nil {
			t.Fatal(err)
		}
		reason, _, _ := strings.Cut(m.Header.Get(schemas.HeaderReason), ":")
		reasons[reason]++
	}
	if d := cmp.Diff(map[string]int{"decode": 3, "class": 1, "subject": 2}, reasons); d != "" {
		t.Error(d)
	}
	// What was lost is told as health, which goes the same way.
	lost := map[string]uint64{}
	collect(t, b, 10*time.Second, func(r received) bool {
		for i := range r.Rows() {
			if r.Str(schemas.HealthReason, i) == schemas.LossDeadLetter {
				lost[r.Str(schemas.HealthClass, i)] += r.Uint(schemas.HealthCount, i)
			}
		}
		return len(lost) < 3
	})
	if d := cmp.Diff(map[string]uint64{"process": 11, "file": 2, "": 2}, lost); d != "" {
		t.Error(d)
	}
	balance(t, srv, schemas.Process)
	balance(t, srv, schemas.File)
}

// balance checks that every event received is enriched, known already or lost.
func balance(t *testing.T, s *server, c schemas.Class) {
	t.Helper()
	// A consumer can have a batch before the enricher has its acknowledgement.
	eventually(t, "the counts of class "+c.String()+" balance", func() bool { return balanced(t, s, c) })
}

func balanced(t *testing.T, s *server, c schemas.Class) bool {
	t.Helper()
	got := func(v *prometheus.CounterVec) float64 { return testutil.ToFloat64(v.WithLabelValues(c.String())) }
	lost := 0.0
	fam, err := s.rt.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fam {
		if f.GetName() != "picket_enricher_lost_events_total" {
			continue
		}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if l.GetName() == "class" && l.GetValue() == c.String() {
					lost += m.Counter.GetValue()
				}
			}
		}
	}
	return got(s.metrics.received) == got(s.metrics.enriched)+got(s.metrics.duplicate)+lost
}

func TestBatchIDs(t *testing.T) {
	cfg, b := startNATS(t)
	srv, _ := serve(t, cfg)
	s := newSender(t, b)
	const subject = "picket.raw.test.n.process"
	data := encoded(t, schemas.Process, event{cluster: "test", node: "n"})
	one := func() received {
		t.Helper()
		got := drain(t, b, 1, 5*time.Second)
		if len(got) != 1 {
			t.Fatal("no batch came")
		}
		return got[0]
	}
	// Not usable: an id of our own is made.
	for _, id := range []string{"", strings.Repeat("a", 65), "a.b", "a\u00e9", "a b", "raw-1-1"} {
		s.send(subject, data, 1, schemas.HeaderBatchID, id)
		if r := one(); !strings.HasPrefix(r.id(), "raw-") || r.id() == id || r.Headers().Get("Nats-Msg-Id") != r.id() {
			t.Errorf("id %q became %q", id, r.id())
		}
	}
	// Used twice by a sender: an incident, but nothing is lost.
	s.send(subject, data, 1, schemas.HeaderBatchID, "mine")
	if r := one(); r.id() != "mine" || r.Headers().Get(schemas.HeaderReplayed) != "" {
		t.Errorf("id %q", r.id())
	}
	s.send(subject, data, 1, schemas.HeaderBatchID, "mine")
	if r := one(); !strings.HasPrefix(r.id(), "raw-") {
		t.Errorf("id %q", r.id())
	}
	if n := testutil.ToFloat64(srv.metrics.duplicateIDs); n != 1 {
		t.Errorf("%v ids counted as used twice", n)
	}
	// Offered again by a sender that says so: known already.
	s.send(subject, data, 1, schemas.HeaderBatchID, "mine", schemas.HeaderReplayed, "1")
	s.send(subject, data, 1, schemas.HeaderBatchID, "next", schemas.HeaderReplayed, "1")
	r := one()
	if r.id() != "next" || r.Headers().Get(schemas.HeaderReplayed) != "1" {
		t.Errorf("id %q", r.id())
	}
	if n := testutil.ToFloat64(srv.metrics.duplicate.WithLabelValues("process")); n != 1 {
		t.Errorf("%v events counted as known", n)
	}
	// Numbers and rows count what the stream has: 6 + 2 + 1 batches.
	if h := r.Headers(); h.Get(schemas.HeaderBatch) != "9" || h.Get(schemas.HeaderCumulative) != "9" {
		t.Errorf("batch %s, %s rows so far", h.Get(schemas.HeaderBatch), h.Get(schemas.HeaderCumulative))
	}
	// A batch without rows says nothing.
	s.send(subject, encoded(t, schemas.Process), 0)
	s.send(subject, data, 1)
	if r := one(); r.Headers().Get(schemas.HeaderBatch) != "10" {
		t.Error("an empty batch was published")
	}
	balance(t, srv, schemas.Process)
}

// TestOrder: batches of one raw subject stay in order, and the headers of an
// events subject count without gaps, whatever waits in between.
func TestOrder(t *testing.T) {
	cfg, b := startNATS(t)
	cfg.Kubernetes = startAPI(t, cluster()...).config()
	cfg.Kubernetes.WaitForPod = 200 * time.Millisecond
	srv, _ := serve(t, cfg)
	eventually(t, "the metadata is complete", srv.watcher.synced)
	s := newSender(t, b)
	lane := map[string]string{} // by id
	order := map[string][]string{}
	const batches = 300
	for i := range batches {
		// Nodes of the same and of other partitions.
		node := fmt.Sprint("n", i%40)
		rows := make([]event, 1+i%5)
		for k := range rows {
			rows[k] = event{cluster: "test", node: node}
			if i%50 < 3 {
				rows[k].podUID = fmt.Sprint("never", i)
			}
		}
		subject := "picket.raw.test." + node + ".process"
		id := s.send(subject, encoded(t, schemas.Process, rows...), len(rows))
		lane[id] = subject
		order[subject] = append(order[subject], id)
	}
	seen := map[string][]string{}
	sum, number := map[string]uint64{}, map[string]uint64{}
	for _, r := range drain(t, b, batches, 20*time.Second) {
		seen[lane[r.id()]] = append(seen[lane[r.id()]], r.id())
		sum[r.Subject()] += uint64(r.Rows())
		number[r.Subject()]++
		if h := r.Headers(); h.Get(schemas.HeaderRun) != srv.runID || h.Get(schemas.HeaderCumulative) != fmt.Sprint(sum[r.Subject()]) || h.Get(schemas.HeaderBatch) != fmt.Sprint(number[r.Subject()]) {
			t.Fatalf("headers %v, want cumulative %d and batch %d", h, sum[r.Subject()], number[r.Subject()])
		}
	}
	if d := cmp.Diff(order, seen); d != "" {
		t.Error(d)
	}
	balance(t, srv, schemas.Process)
}

// TestRestart: restarts under load lose nothing, and order is kept over them.
func TestRestart(t *testing.T) {
	cfg, b := startNATS(t)
	s := newSender(t, b)
	order := map[string][]string{}
	lane := map[string]string{}
	const batches = 2000
	for i := range batches {
		node := fmt.Sprint("n", i%7)
		subject := schemas.RawSubject("test", node, schemas.Process)
		id := s.send(subject, encoded(t, schemas.Process, event{cluster: "test", node: node}), 1)
		lane[id] = subject
		order[subject] = append(order[subject], id)
	}
	restarts := 0
	for ; pending(t, b) > 0; restarts++ {
		before := eventsEver(t, b)
		_, stop := serve(t, cfg)
		eventually(t, "the new one works", func() bool { return eventsEver(t, b) > before+200 || pending(t, b) == 0 })
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	if restarts < 3 {
		t.Errorf("%d restarts: the test did not test", restarts)
	}
	seen := map[string][]string{}
	for _, r := range drain(t, b, batches, 20*time.Second) {
		seen[lane[r.id()]] = append(seen[lane[r.id()]], r.id())
	}
	if d := cmp.Diff(order, seen); d != "" {
		t.Error(d)
	}
}

// TestNATSRestart: the server goes away in the middle of work and comes back
// with what it had; every batch is in PICKET_EVENTS once.
func TestNATSRestart(t *testing.T) {
	t.Parallel() // it waits for bus.AckWait
	o := natsserver.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", MaxStore: 8 << 30}
	nats, err := natsserver.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { nats.Stop() }()
	b := natstest.Connect(t, nats, schemas.ServiceAdmin)
	if err := b.Migrate(context.Background(), bus.DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	s := newSender(t, b)
	var want []string
	for i := range 2000 {
		node := fmt.Sprint("n", i%7)
		want = append(want, s.send(schemas.RawSubject("test", node, schemas.Process), encoded(t, schemas.Process, event{cluster: "test", node: node}), 1))
	}
	srv, _ := serve(t, testConfig(nats))
	eventually(t, "it works", func() bool { return eventsEver(t, b) > 200 })
	o.Listen = strings.TrimPrefix(nats.URL(), "nats://")
	nats.Stop()
	time.Sleep(300 * time.Millisecond)
	if nats, err = natsserver.Start(o); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connections are back", func() bool { return b.Ready() == nil && srv.rt.Bus.Ready() == nil })
	var got []string
	for _, r := range drain(t, b, len(want), bus.AckWait+20*time.Second) {
		got = append(got, r.id())
	}
	if more := drain(t, b, 1, time.Second); len(more) > 0 {
		t.Error("a batch came twice")
	}
	slices.Sort(want)
	slices.Sort(got)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	t.Logf("%v publishes repeated, %v events known already", testutil.ToFloat64(srv.metrics.publishErrors), testutil.ToFloat64(srv.metrics.duplicate.WithLabelValues("process")))
}

// TestEventsAway: while PICKET_EVENTS does not take batches they stay in
// PICKET_RAW, and nothing is published twice when it does.
func TestEventsAway(t *testing.T) {
	cfg, b := startNATS(t)
	srv, stop := serve(t, cfg)
	s := newSender(t, b)
	data := encoded(t, schemas.Process, event{cluster: "test", node: "n"})
	s.send("picket.raw.test.n.process", data, 1)
	if len(drain(t, b, 1, 5*time.Second)) != 1 {
		t.Fatal("no batch came")
	}
	if err := b.JS.DeleteStream(context.Background(), schemas.StreamEvents); err != nil {
		t.Fatal(err)
	}
	var want []string
	for range 5 {
		want = append(want, s.send("picket.raw.test.n.process", data, 1))
	}
	eventually(t, "publishing fails", func() bool { return testutil.ToFloat64(srv.metrics.publishErrors) >= 2 })
	if n := pending(t, b); n != 5 {
		t.Errorf("%d raw batches wait, want 5", n)
	}
	if err := b.Migrate(context.Background(), bus.DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range append(drain(t, b, 5, 8*time.Second), drain(t, b, 1, time.Second)...) {
		got = append(got, r.id())
		if h := r.Headers(); h.Get(schemas.HeaderCumulative) != fmt.Sprint(1+len(got)) {
			t.Errorf("%s rows so far at batch %d", h.Get(schemas.HeaderCumulative), len(got))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// childMark in the environment makes the test binary the enricher's main
// function.
const childMark = "PICKET_TEST_ENRICHER"

// startChild runs the enricher in a process of its own.
func startChild(t *testing.T, cfg Config) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "--nats.url", cfg.NATS.URL, "--nats.credentials_file", cfg.NATS.CredentialsFile, "--cluster", cfg.Cluster, "--log.level", "error")
	cmd.Env = append(os.Environ(), childMark+"=1")
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// kill ends a process as a power cut ends it, and waits until it is gone.
func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"
}

// TestKill: whenever the process dies, every raw row is in PICKET_EVENTS once.
func TestKill(t *testing.T) {
	t.Parallel() // it waits for bus.AckWait
	cfg, b := startNATS(t)
	s := newSender(t, b)
	want := map[string]int{} // rows by batch id
	sending := make(chan struct{})
	const batches = 1500
	go func() {
		defer close(sending)
		for i := range batches {
			c := []schemas.Class{schemas.Process, schemas.File, schemas.Network}[i%3]
			node := fmt.Sprint("n", i%7)
			rows := make([]event, 1+i%20)
			for k := range rows {
				rows[k] = event{cluster: "test", node: node, containerID: fmt.Sprint(i)}
			}
			enc, err := batch.Encode(build(c, rows...))
			if err != nil || len(enc) != 1 {
				t.Errorf("encode: %v", err)
				return
			}
			id, err := s.try(schemas.RawSubject("test", node, c), enc[0].Data, len(rows))
			if err != nil {
				t.Error(err)
				return
			}
			want[id] = len(rows) // read after sending is closed
			time.Sleep(time.Millisecond)
		}
	}()
	kills := 0
	for !isClosed(sending) {
		cmd, before := startChild(t, cfg), eventsEver(t, b)
		eventually(t, "the new process works", func() bool { return eventsEver(t, b) > before+50 || isClosed(sending) })
		kill(t, cmd)
		kills++
	}
	last := startChild(t, cfg)
	defer kill(t, last)
	<-sending
	got := map[string]int{}
	run := map[string]uint64{} // cumulative rows by run and subject
	replayed := 0
	for _, r := range drain(t, b, batches, bus.AckWait+30*time.Second) {
		got[r.id()] += r.Rows()
		h := r.Headers()
		key := h.Get(schemas.HeaderRun) + r.Subject()
		if run[key] += uint64(r.Rows()); h.Get(schemas.HeaderCumulative) != fmt.Sprint(run[key]) {
			t.Errorf("%s: %s rows so far, want %d", r.id(), h.Get(schemas.HeaderCumulative), run[key])
		}
		if h.Get(schemas.HeaderReplayed) == "1" {
			replayed++
		}
		for i := range r.Rows() {
			if r.Str(schemas.Join, i) != joinHost {
				t.Fatalf("row %d of %s is not joined", i, r.id())
			}
		}
	}
	if more := drain(t, b, 1, time.Second); len(more) > 0 {
		t.Error("a batch came twice")
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	eventually(t, "all raw batches are settled", func() bool { return pending(t, b) == 0 })
	t.Logf("%d batches, %d kills, %d batches published again after one", batches, kills, replayed)
	if kills < 3 || replayed == 0 {
		t.Errorf("%d kills and %d batches delivered again: the test did not test", kills, replayed)
	}
}

func isClosed(ch chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// eventsEver returns how many batches PICKET_EVENTS has taken.
func eventsEver(t *testing.T, b *bus.Bus) uint64 {
	t.Helper()
	st, err := b.JS.Stream(context.Background(), schemas.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	return st.CachedInfo().State.LastSeq
}
