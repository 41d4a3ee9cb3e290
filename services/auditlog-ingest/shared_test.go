package auditlogingest

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/health"
	"picket/internal/rules"
	defaults "picket/rules"
	"picket/schemas"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

// auditOf is a finished request as a batch of one row.
func auditOf(t testing.TB, user, verb, uri, ref string, code int) []byte {
	t.Helper()
	return fmt.Appendf(nil, `{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"%s-%s-%s","stage":"ResponseComplete","requestURI":%q,"verb":%q,"user":{"username":%q},"objectRef":%s,"responseStatus":{"code":%d},"requestReceivedTimestamp":"2026-11-23T00:38:28.919544Z","stageTimestamp":"2026-11-23T00:38:28.922412Z"}`,
		user, verb, uri, uri, verb, user, ref, code)
}

// TestDrop: the default list leaves out what it names, done by the cluster's own
// accounts and with success, and nothing else.
func TestDrop(t *testing.T) {
	t.Parallel()
	const lease = `{"resource":"leases","apiGroup":"coordination.k8s.io","namespace":"kube-node-lease","name":"n"}`
	const node = `{"resource":"nodes","name":"n","subresource":"status"}`
	const ev = `{"resource":"events","namespace":"d","name":"e"}`
	records := []struct {
		text []byte
		by   string
	}{
		{auditOf(t, "system:node:n", "update", "/a", lease, 200), "leases"},
		{auditOf(t, "alice", "update", "/a", lease, 200), ""},
		{auditOf(t, "system:node:n", "delete", "/a", lease, 200), ""},
		{auditOf(t, "system:node:n", "update", "/a", lease, 403), ""},
		{auditOf(t, "system:node:n", "patch", "/b", node, 200), "node heartbeats"},
		{auditOf(t, "mallory", "patch", "/b", node, 200), ""},
		{auditOf(t, "system:kube-scheduler", "create", "/c", ev, 201), "events"},
		{auditOf(t, "system:kube-scheduler", "delete", "/c", ev, 200), ""},
		{auditOf(t, "system:anonymous", "get", "/readyz?verbose", `{}`, 200), "health checks"},
		{auditOf(t, "system:anonymous", "get", "/readyz/../api", `{}`, 200), ""},
		{auditOf(t, "system:anonymous", "get", "/healthz", `{}`, 401), ""},
	}
	list, err := newDrops(DefaultDrop())
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	g := &ground{tally: newTally(reg), health: health.New(schemas.ServiceAudit, "test", "", "run", quiet(), prometheus.NewRegistry())}
	src := &reader{cloud: &cloud{name: "file"}}
	b := batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
	n := NewNormalizer("test", "file", "file", DefaultRedact())
	want, kept := map[string]int{}, 0
	var ids []known
	for i, r := range records {
		if err := n.Append(b, r.text); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, known{tag: uint64(i + 1)})
		want[r.by]++
		if r.by == "" {
			kept++
		}
	}
	d := list.dropper()
	got, left, err := d.filter(g, src, b.Batch(), ids)
	if err != nil {
		t.Fatal(err)
	}
	if got.Rows() != kept || len(left) != kept {
		t.Fatalf("%d rows and %d ids are left, want %d", got.Rows(), len(left), kept)
	}
	row := 0
	for i, r := range records {
		if r.by != "" {
			continue
		}
		if a := got.Str(schemas.AuditID, row); !strings.Contains(string(r.text), a) || left[row].tag != uint64(i+1) {
			t.Errorf("row %d is %s with id %d, want record %d", row, a, left[row].tag, i)
		}
		row++
	}
	for name, k := range want {
		if name == "" {
			continue
		}
		if v := testutil.ToFloat64(g.tally.dropped.vec.WithLabelValues("file", name)); v != float64(k) {
			t.Errorf("%s: counted %v, want %d", name, v, k)
		}
	}
	for _, bad := range []struct{ name, cond, want string }{
		{"", "ka.verb = get", "drop[0].name"}, {"x", " ", "would leave out everything"}, {"x", "ka.nothing = 1", "drop[0].condition (x)"}, {"x", "proc.name = sh", "drop[0].condition (x)"},
	} {
		if _, err := newDrops([]Drop{{bad.name, bad.cond}}); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%q %q: %v, want %s", bad.name, bad.cond, err, bad.want)
		}
	}
}

// TestDropHidesNoAlert: no record of a real API server that the default list
// leaves out makes a rule of the default pack fire.
func TestDropHidesNoAlert(t *testing.T) {
	t.Parallel()
	list, err := newDrops(DefaultDrop())
	if err != nil {
		t.Fatal(err)
	}
	set, _, err := rules.Load(defaults.Default(), rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	eval, drop := set.NewEvaluator(), list.set.NewEvaluator()
	n := NewNormalizer("test", "file", "file", DefaultRedact())
	b := batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
	dropped, fired := 0, 0
	for _, text := range samples(t) {
		b.Reset()
		if err := n.Append(b, text); err != nil {
			t.Fatal(err)
		}
		by, rule := "", ""
		drop.Eval(b.Batch(), func(m rules.Match) { by = m.Rule.Name })
		eval.Eval(b.Batch(), func(m rules.Match) { rule = m.Rule.Name })
		if by != "" {
			dropped++
		}
		if rule != "" {
			fired++
		}
		if by != "" && rule != "" {
			t.Errorf("%q leaves out what %q raises: %.300s", by, rule, text)
		}
	}
	if dropped == 0 || fired == 0 {
		t.Errorf("%d records left out, %d raise: the sample proves nothing", dropped, fired)
	}
}

// TestDropPublished: what the list leaves out reaches neither PICKET_RAW nor the
// outbox, is counted in health, and the file's position moves on.
func TestDropPublished(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := fileConfig(t, url)
	cfg.Drop = []Drop{{"every other", `ka.target.name = "c" and ka.auditid in (event-000000, event-000002, event-000004)`}}
	start(t, cfg)
	w := newLogWriter(t, cfg.File.Path, 12)
	w.write(6, nil)
	b := connect(t, url)
	eventually(t, "published", func() string {
		got := readRaw(t, b)
		if len(got) != 3 {
			return fmt.Sprint(len(got), " events")
		}
		for i, p := range got {
			if p.auditID != w.id(2*i+1) {
				return p.auditID
			}
		}
		return ""
	})
	eventually(t, "counted", func() string {
		if n := healthTotal(t, b, "counters", "dropped: every other"); n != 3 {
			return fmt.Sprint(n)
		}
		return ""
	})
}

// TestRepeatedAuditID: another record under an auditID is an event of its own,
// and marked; the same record again is a duplicate.
func TestRepeatedAuditID(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	first := auditLine("chosen", 10)
	second := bytes.Replace(auditLine("chosen", 10), []byte(`"verb":"create"`), []byte(`"verb":"delete"`), 1)
	other := bytes.Replace(auditLine("chosen", 10), []byte(`ResponseComplete`), []byte(`ResponseStarted`), 1)
	r := startReplica(t, url, &sky{clouds: nil}, nil)
	src := &reader{cloud: &cloud{name: "pulled"}}
	l := newPullLane(r.g, src, &claim{}, quickPace)
	ctx := t.Context()
	for _, text := range [][]byte{first, first, other, second, second} {
		if err := l.Put(ctx, source.Record{Item: record.Item{Text: text}, CloudID: "cloud-1"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	got := l.open.parts[0].b.Batch()
	var marks []string
	for row := range got.Rows() {
		marks = append(marks, fmt.Sprint(got.Str(schemas.AuditVerb, row), got.Str(schemas.AuditStage, row), got.Bool(schemas.AuditRepeated, row)))
		if got.Str(schemas.AuditCloudID, row) != "cloud-1" {
			t.Errorf("cloud id %q", got.Str(schemas.AuditCloudID, row))
		}
	}
	if want := "[createResponseCompletefalse createResponseStartedfalse deleteResponseCompletetrue]"; fmt.Sprint(marks) != want {
		t.Errorf("%v, want %s", marks, want)
	}
	if n := r.g.tally.duplicates.total.Load(); n != 2 {
		t.Errorf("%d duplicates, want 2", n)
	}
	// A cluster whose name cannot be a part of a subject is refused.
	if err := l.Put(ctx, source.Record{Item: record.Item{Text: first}, Cluster: "a b"}, nil); err != nil {
		t.Fatal(err)
	}
	b := connect(t, url)
	if got := letters(t, b); len(got) != 1 || !strings.HasPrefix(got[0].Header.Get(schemas.HeaderReason), "cluster:") {
		t.Errorf("dead letters %v", got)
	}
}

// TestLag: a source that is far behind, and one from which nothing comes, are
// reported once each time that begins; a backfill tells how far it is.
func TestLag(t *testing.T) {
	t.Parallel()
	l := newLags()
	src := &reader{cloud: &cloud{name: "log"}}
	h := health.New(schemas.ServiceAudit, "test", "", "run", quiet(), prometheus.NewRegistry())
	lost := map[string]int{}
	count := func() map[string]int {
		h.Flush(func(_ string, data []byte, _ int) error {
			b, err := batch.Decode(data)
			if err != nil {
				t.Fatal(err)
			}
			for r := range b.Rows() {
				lost[b.Str(schemas.HealthReason, r)+" "+b.Str(schemas.HealthSubject, r)] += int(b.Uint(schemas.HealthCount, r))
			}
			return nil
		})
		return lost
	}
	now := time.Now().Add(-3 * time.Hour)
	l.begin(src, now)
	// A day behind, read 25 hours' events in an hour: at half the way 12 hours.
	behind := 24 * time.Hour
	for i := range 60 {
		event := now.Add(-behind)
		l.took(src, event.UnixNano(), event.Add(7*time.Second))
		l.look(now, 10*time.Minute, 20*time.Minute, h, quiet())
		if i == 30 {
			r := l.reports(now)[0]
			if r.Backfill < 0.4 || r.Backfill > 0.6 || r.Alert != schemas.LossSourceLate || r.CloudDelay != 7*time.Second {
				t.Errorf("half way: %+v", r)
			}
			if left := r.Expected.Sub(now); left < 15*time.Minute || left > time.Hour {
				t.Errorf("half an hour before the end it is expected in %s", left)
			}
		}
		now = now.Add(time.Minute)
		behind -= 24 * time.Minute
	}
	l.took(src, now.UnixNano(), time.Time{})
	l.look(now, 10*time.Minute, 20*time.Minute, h, quiet())
	if r := l.reports(now)[0]; r.Alert != "" || r.Backfill != 0 {
		t.Errorf("caught up: %+v", r)
	}
	if got := count(); len(got) != 1 || got["source_late log"] != 1 {
		t.Errorf("reported %v", got)
	}
	for range 3 {
		now = now.Add(21 * time.Minute)
		l.look(now, 10*time.Minute, 20*time.Minute, h, quiet())
	}
	if got := count(); got["source_silent log"] != 1 {
		t.Errorf("reported %v", got)
	}
	l.took(src, now.UnixNano(), time.Time{})
	l.look(now.Add(time.Second), 10*time.Minute, 20*time.Minute, h, quiet())
	if r := l.reports(now)[0]; r.Alert != "" {
		t.Errorf("after a record: %+v", r)
	}
	// A clock that is wrong does not make a source punctual for ever.
	l.took(src, now.Add(1000*time.Hour).UnixNano(), time.Time{})
	if r := l.reports(now)[0]; r.Newest.After(now) {
		t.Errorf("newest event %s", r.Newest)
	}
	if n := testutil.CollectAndCount(l); n < 4 {
		t.Errorf("%d metrics", n)
	}
	l.end(src)
	if r := l.reports(now); len(r) != 0 {
		t.Errorf("after its end: %+v", r)
	}
}

// TestGapRange: a gap is counted under its source and range of time.
func TestGapRange(t *testing.T) {
	t.Parallel()
	g := &ground{tally: newTally(prometheus.NewRegistry()), log: quiet(), health: health.New(schemas.ServiceAudit, "test", "", "run", quiet(), prometheus.NewRegistry())}
	src := &reader{cloud: &cloud{name: "log"}}
	at := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	g.gap(src, "gone", "from", at, "to", at.Add(time.Hour))
	g.gap(src, "gone")
	var got []string
	g.health.Flush(func(_ string, data []byte, _ int) error {
		b, err := batch.Decode(data)
		for r := range b.Rows() {
			got = append(got, b.Str(schemas.HealthReason, r)+" of "+b.Str(schemas.HealthSubject, r))
		}
		return err
	})
	if want := "[source_gap of log source_gap of log 2026-05-01T00:00:00Z to 2026-05-01T01:00:00Z]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
}

// stuck is a provider that never answers, or whose source never brings anything.
type stuck struct {
	name   string
	lists  bool
	mu     sync.Mutex
	called int
}

func (s *stuck) Name() string { return s.name }
func (s *stuck) Kind() string { return "eks" }
func (s *stuck) Ready() error { return nil }
func (s *stuck) Run(ctx context.Context, _ source.Sink) error {
	s.mu.Lock()
	s.called++
	s.mu.Unlock()
	<-ctx.Done()
	return nil
}
func (s *stuck) Sources(ctx context.Context) ([]source.Source, error) {
	if s.lists {
		return []source.Source{s}, nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestSlowSourceDelaysNobody: a cloud that does not answer, and one that brings
// nothing, beside one that works.
func TestSlowSourceDelaysNobody(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	c := newCloud("fast", 300, 8)
	hangs, idle := &stuck{name: "hangs"}, &stuck{name: "idle", lists: true}
	startReplicaWith(t, bus.Config{URL: url}, testConfig(t, url), []source.Provider{hangs, idle, &sky{clouds: []*cloud{c}}}, nil)
	everyOnce(t, connect(t, url), c)
	idle.mu.Lock()
	defer idle.mu.Unlock()
	if idle.called != 1 {
		t.Errorf("the idle source ran %d times", idle.called)
	}
}
