package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"picket/internal/batch"
	"picket/internal/natsserver/natstest"
	"picket/schemas"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newReporter(t testing.TB, node string) *Reporter {
	t.Helper()
	return New("enricher", "prod.eu", node, "run1", slog.New(slog.NewTextHandler(t.Output(), nil)), prometheus.NewRegistry())
}

// figure is a row of a report.
type figure struct {
	action, class, reason string
	count, total          uint64
}

// outlet is where reports go: what it took, and what it refuses.
type outlet struct {
	t        testing.TB
	offered  [][]byte
	subjects []string
	figures  []figure
	ids      map[[16]byte]bool
	refuse   func(n int) error // of the offer's number, from 1; nil takes all
}

func (o *outlet) put(subject string, data []byte, rows int) error {
	o.offered = append(o.offered, bytes.Clone(data))
	if o.refuse != nil {
		if err := o.refuse(len(o.offered)); err != nil {
			return err
		}
	}
	o.subjects = append(o.subjects, subject)
	b := decode(o.t, data)
	if b.Rows() != rows {
		o.t.Errorf("%d rows announced, %d there", rows, b.Rows())
	}
	for i := range b.Rows() {
		id, _ := b.Bytes16(schemas.EventID, i)
		if o.ids[id] {
			o.t.Errorf("event id %x stands twice", id)
		}
		if o.ids == nil {
			o.ids = map[[16]byte]bool{}
		}
		o.ids[id] = true
	}
	o.figures = append(o.figures, figuresOf(b)...)
	return nil
}

// decode reads a report as a consumer does.
func decode(t testing.TB, data []byte) *batch.Batch {
	t.Helper()
	b, err := batch.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if b.Class() != schemas.Health {
		t.Errorf("class %s", b.Class())
	}
	return b
}

func figuresOf(b *batch.Batch) []figure {
	var out []figure
	for i := range b.Rows() {
		out = append(out, figure{b.Str(schemas.Action, i), b.Str(schemas.HealthClass, i), b.Str(schemas.HealthReason, i),
			b.Uint(schemas.HealthCount, i), b.Uint(schemas.HealthTotal, i)})
	}
	return out
}

func expect(t *testing.T, o *outlet, want ...figure) {
	t.Helper()
	if !slices.Equal(o.figures, want) {
		t.Errorf("reported %v, want %v", o.figures, want)
	}
	o.figures = nil
}

// Each flush reports what changed, as the difference and as the total.
func TestReports(t *testing.T) {
	r, o := newReporter(t, ""), &outlet{t: t}
	r.Flush(o.put)
	r.Lost("process", schemas.LossRingFull, 0)
	r.Flush(o.put)
	if len(o.offered) != 0 {
		t.Fatalf("%d reports of nothing", len(o.offered))
	}
	r.Lost("process", schemas.LossRingFull, 3)
	r.Lost("process", schemas.LossRingFull, 2)
	r.Lost("", schemas.LossDeadLetter, 1)
	r.Count("file", "seen", 100)
	r.Flush(o.put)
	expect(t, o, figure{"counters", "file", "seen", 100, 100}, figure{"loss", "", "dead_letter", 1, 1}, figure{"loss", "process", "ring_full", 5, 5})
	r.Count("file", "seen", 130)
	r.Lost("process", schemas.LossRingFull, 1)
	r.Flush(o.put)
	expect(t, o, figure{"counters", "file", "seen", 30, 130}, figure{"loss", "process", "ring_full", 1, 6})
	r.Count("file", "seen", 130)
	r.Flush(o.put)
	expect(t, o)
	if len(o.offered) != 2 {
		t.Errorf("%d reports, want 2", len(o.offered))
	}
	for name, want := range map[[2]string]float64{{"process", "ring_full"}: 6, {"", "dead_letter"}: 1} {
		if got := testutil.ToFloat64(r.metric.WithLabelValues(name[0], name[1])); got != want {
			t.Errorf("metric of %v is %v, want %v", name, got, want)
		}
	}
}

// A running total that comes late is older than the one before, and must not
// turn into an enormous difference.
func TestCountOutOfOrder(t *testing.T) {
	r, o := newReporter(t, ""), &outlet{t: t}
	r.Count("file", "seen", 10)
	r.Flush(o.put)
	r.Count("file", "seen", 9)
	r.Flush(o.put)
	r.Count("file", "seen", 12)
	r.Flush(o.put)
	expect(t, o, figure{"counters", "file", "seen", 10, 10}, figure{"counters", "file", "seen", 2, 12})
}

// A report says who it is from, on the subject that its credentials allow.
func TestOrigin(t *testing.T) {
	for _, tt := range []struct{ node, wantNode, subject string }{
		{"", "_enricher", "picket.raw.prod_eu._enricher.health"},
		{"node.1", "node.1", "picket.raw.prod_eu.node_1.health"},
	} {
		r, o := newReporter(t, tt.node), &outlet{t: t}
		r.Lost("audit", schemas.LossSourceGap, 1)
		before := time.Now().UnixNano()
		r.Flush(o.put)
		if len(o.offered) != 1 || o.subjects[0] != tt.subject {
			t.Fatalf("reports on %v, want one on %s", o.subjects, tt.subject)
		}
		b := decode(t, o.offered[0])
		for id, want := range map[schemas.FieldID]string{schemas.Cluster: "prod.eu", schemas.Node: tt.wantNode,
			schemas.HealthService: "enricher", schemas.HealthRun: "run1"} {
			if got := b.Str(id, 0); got != want {
				t.Errorf("%s is %q, want %q", id, got, want)
			}
		}
		if at := b.Int(schemas.EventTime, 0); at < before || at > time.Now().UnixNano() {
			t.Errorf("time %d", at)
		}
		if v := b.Uint(schemas.SchemaVer, 0); v != schemas.SchemaVersion {
			t.Errorf("schema version %d", v)
		}
	}
}

// The metric's name is one that Prometheus takes whatever the service's name.
func TestMetricName(t *testing.T) {
	reg := prometheus.NewRegistry()
	New("auditlog-ingest", "c", "webhook", "r", slog.New(slog.DiscardHandler), reg).Lost("audit", schemas.LossSourceGap, 2)
	want := "# HELP picket_auditlog_ingest_lost_events_total Events lost or set aside, by class and reason.\n" +
		"# TYPE picket_auditlog_ingest_lost_events_total counter\n" +
		`picket_auditlog_ingest_lost_events_total{class="audit",reason="source_gap"} 2` + "\n"
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

// A refused report is offered again with the same bytes, before anything newer,
// and counts once in the end.
func TestRefusedIsRepeated(t *testing.T) {
	r := newReporter(t, "")
	o := &outlet{t: t, refuse: func(n int) error {
		if n <= 3 {
			return errors.New("not today")
		}
		return nil
	}}
	r.Lost("file", schemas.LossSpoolFull, 4)
	r.Flush(o.put)
	r.Lost("file", schemas.LossSpoolFull, 6) // while the first waits
	r.Flush(o.put)
	time.Sleep(2 * time.Millisecond) // so that a report made anew would differ
	r.Flush(o.put)
	if len(o.offered) != 3 {
		t.Fatalf("offered %d times, want 3", len(o.offered))
	}
	expect(t, o)
	r.Flush(o.put)
	if len(o.offered) != 5 {
		t.Fatalf("offered %d times, want 5: the old report and the new one", len(o.offered))
	}
	for i, data := range o.offered[1:4] {
		if !bytes.Equal(data, o.offered[0]) {
			t.Errorf("offer %d has other bytes than the first", i+2)
		}
	}
	expect(t, o, figure{"loss", "file", "spool_full", 4, 4}, figure{"loss", "file", "spool_full", 6, 10})
}

// A refused report goes to the put that it was made with, which may keep
// something with it, and before the next.
func TestRefusedGoesToItsOwnPut(t *testing.T) {
	r := newReporter(t, "")
	first := &outlet{t: t, refuse: func(n int) error {
		if n == 1 {
			return errors.New("not today")
		}
		return nil
	}}
	second := &outlet{t: t}
	r.Lost("file", schemas.LossSpoolFull, 4)
	r.Flush(first.put)
	r.Lost("file", schemas.LossSpoolFull, 6)
	r.Flush(second.put)
	expect(t, first, figure{"loss", "file", "spool_full", 4, 4})
	expect(t, second, figure{"loss", "file", "spool_full", 6, 10})
}

// Nothing is counted twice or lost while everybody reports at once.
func TestConcurrent(t *testing.T) {
	r, o := newReporter(t, ""), &outlet{t: t, refuse: func(n int) error {
		if n%3 == 0 {
			return errors.New("busy")
		}
		return nil
	}}
	const workers, each = 8, 500
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				r.Lost("process", schemas.LossRingFull, 1)
				r.Count("worker", fmt.Sprint(w), uint64(i+1))
				r.Count("file", "seen", uint64(i+1)) // everybody, in any order
				if i%50 == 0 {
					r.Flush(o.put) // flushes exclude each other: o needs no lock
				}
			}
		})
	}
	wg.Wait()
	r.Flush(o.put)
	r.Flush(o.put) // the offer before may have been refused
	sum := map[string]uint64{}
	for _, f := range o.figures {
		sum[f.action+" "+f.class+" "+f.reason] += f.count
	}
	want := map[string]uint64{"loss process ring_full": workers * each, "counters file seen": each}
	for w := range workers {
		want["counters worker "+fmt.Sprint(w)] = each
	}
	for k, n := range want {
		if sum[k] != n {
			t.Errorf("%s: %d, want %d", k, sum[k], n)
		}
	}
}

// The last figures are published when the service ends.
func TestRunReportsAtTheEnd(t *testing.T) {
	r, o := newReporter(t, ""), &outlet{t: t}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, o.put) }()
	r.Lost("process", schemas.LossDecode, 7)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	expect(t, o, figure{"loss", "process", "decode", 7, 7})
}

// A report whose acknowledgement was lost is published again and stored once.
func TestDirectStoresOnce(t *testing.T) {
	s := natstest.Start(t)
	b := natstest.Connect(t, s, schemas.ServiceEnricher)
	r := newReporter(t, "")
	direct, lost := Direct(b), 0
	put := func(subject string, data []byte, rows int) error {
		err := direct(subject, data, rows)
		if err == nil && lost < 2 {
			lost++
			return errors.New("no acknowledgement")
		}
		return err
	}
	r.Lost("process", schemas.LossDeadLetter, 5)
	for range 3 {
		r.Flush(put)
	}
	r.Lost("process", schemas.LossDeadLetter, 5) // the same figure again is another report
	r.Flush(put)

	admin := natstest.Connect(t, s, schemas.ServiceAdmin)
	stream, err := admin.JS.Stream(t.Context(), schemas.StreamRaw)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.LastSeq; n != 2 {
		t.Fatalf("%d messages, want 2", n)
	}
	var got []figure
	for seq := range uint64(2) {
		m, err := stream.GetMsg(t.Context(), seq+1)
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject != "picket.raw.prod_eu._enricher.health" {
			t.Errorf("on %s", m.Subject)
		}
		if id := m.Header.Get(nats.MsgIdHdr); id == "" || m.Header.Get(schemas.HeaderBatchID) != id {
			t.Errorf("message id %q, batch id %q", id, m.Header.Get(schemas.HeaderBatchID))
		}
		got = append(got, figuresOf(decode(t, m.Data))...)
	}
	if want := []figure{{"loss", "process", "dead_letter", 5, 5}, {"loss", "process", "dead_letter", 5, 10}}; !slices.Equal(got, want) {
		t.Errorf("stored %v, want %v", got, want)
	}
}

// Without NATS a report fails within its bound.
func TestDirectWithoutNATS(t *testing.T) {
	s := natstest.Start(t)
	b := natstest.Connect(t, s, schemas.ServiceEnricher)
	s.Stop()
	start := time.Now()
	if err := Direct(b)(schemas.RawSubject("c", "_enricher", schemas.Health), []byte("x"), 1); err == nil {
		t.Error("published without a server")
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
}
