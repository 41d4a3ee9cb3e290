package detector

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/correlation"
	"picket/internal/health"
	"picket/internal/natsserver"
	"picket/internal/natsserver/natstest"
	"picket/internal/rules"
	"picket/schemas"
)

const severalRules = `- rule: Session
  desc: d
  source: k8s_audit
  condition: ka.target.subresource = exec
  output: o
  priority: INFO
  raise: false
- rule: Session, then a connection
  desc: d
  correlation:
    kind: sequence
    window: 5m
    steps:
    - {rule: Session, by: [ka.target.name]}
    - {condition: evt.type = connect, by: [k8s.pod.name]}
  output: user=%ka.user.name pod=%k8s.pod.name process=%proc.name count=%correlation.count
  priority: ERROR
- rule: Many shells
  desc: d
  condition: evt.type = execve and proc.name = bash
  correlation: {kind: count, window: 5m, by: [k8s.pod.name], at_least: 5}
  output: "%correlation.count shells in %k8s.pod.name"
  priority: WARNING
- rule: New program
  desc: d
  condition: evt.type = execve and proc.exepath exists
  baseline: {by: [k8s.pod.name], value: [proc.exepath], learn: 10m}
  output: "%proc.exepath in %k8s.pod.name"
  priority: NOTICE
- rule: Cat
  desc: d
  condition: evt.type = execve and proc.name = cat
  suppress: {by: [k8s.pod.name], window: 1m}
  output: "%correlation.count in %k8s.pod.name"
  priority: NOTICE
`

// cluster is a server with several detectors.
type cluster struct {
	t      *testing.T
	server *natsserver.Server
	admin  *bus.Bus
	sent   int
	set    *rules.Set
	cfg    CorrelationConfig
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	set, warnings, err := rules.Load([]rules.Source{{Name: "several.yaml", Data: []byte(severalRules)}}, rules.Options{Strict: true})
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	s := natstest.Start(t)
	return &cluster{t: t, server: s, admin: natstest.Connect(t, s, schemas.ServiceAdmin), set: set, cfg: DefaultConfig().Correlation}
}

// replica is one running detector.
type replica struct {
	d    *detector
	reg  *prometheus.Registry
	stop context.CancelFunc
	done chan error
	dead bool
}

func (c *cluster) start() *replica {
	c.t.Helper()
	log := slog.New(slog.NewTextHandler(c.t.Output(), nil))
	b, err := bus.Connect(natstest.Config(c.server, schemas.ServiceDetector), schemas.ServiceDetector, log)
	if err != nil {
		c.t.Fatal(err)
	}
	r := &replica{reg: prometheus.NewRegistry(), done: make(chan error, 1)}
	selector, err := newSelector(b, c.set, log)
	if err != nil {
		c.t.Fatal(err)
	}
	keeper := newKeeper(b, newFileWatch(nil), c.set, 0, log, r.reg, selector.use)
	r.d = &detector{bus: b, keeper: keeper, selector: selector, metrics: newMetrics(r.reg), room: semaphore.NewWeighted(publishPending),
		health: health.New(schemas.ServiceDetector, "prod", "", bus.NewRunID(), log, r.reg)}
	if r.d.correlator, err = newCorrelator(r.d, c.cfg, log, r.reg); err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.d.consume(gctx) })
	g.Go(func() error { return r.d.correlator.run(gctx) })
	go func() { r.done <- g.Wait() }()
	c.t.Cleanup(func() {
		cancel()
		if err := <-r.done; err != nil && !r.dead {
			c.t.Error(err)
		}
		b.Close()
	})
	return r
}

// kill cuts a replica off as its death does: nothing is stored, acknowledged or
// signed off any more.
func (r *replica) kill() {
	r.dead = true
	r.d.bus.NC.Close()
}

// end stops a replica in order.
func (r *replica) end() {
	r.stop()
	err := <-r.done
	r.done <- err
}

func (c *cluster) send(b *batch.Builder) {
	c.t.Helper()
	c.sent++
	m := nats.NewMsg(schemas.EventsSubject("prod", "n1", b.Class()))
	m.Data = encoded(c.t, b)
	if _, err := c.admin.JS.PublishMsg(context.Background(), m, jetstream.WithMsgID("e"+strconv.Itoa(c.sent))); err != nil {
		c.t.Fatal(err)
	}
}

// row begins an event of a pod.
func row(class schemas.Class, id, pod string, at time.Time) *batch.Builder {
	b := batch.NewBuilder(class, schemas.Columns(class))
	b.Bytes16(schemas.EventID, schemas.Hash128(id))
	b.Int64(schemas.EventTime, at.UnixNano())
	b.Str(schemas.Cluster, "prod")
	b.Str(schemas.Node, "n1")
	if class == schemas.Audit {
		b.Str(schemas.AuditName, pod)
	} else {
		b.Str(schemas.PodName, pod)
	}
	return b
}

func (c *cluster) exec(id, pod, exe, name string, at time.Time) {
	b := row(schemas.Process, id, pod, at)
	b.Str(schemas.Action, "exec")
	b.Str(schemas.Syscall, "execve")
	b.Str(schemas.ProcessName, name)
	b.Str(schemas.ProcessExe, exe)
	b.EndRow()
	c.send(b)
}

func (c *cluster) session(id, pod, user string, at time.Time) {
	b := row(schemas.Audit, id, pod, at)
	b.Str(schemas.AuditUser, user)
	b.Str(schemas.AuditResource, "pods")
	b.Str(schemas.AuditSubresource, "exec")
	b.EndRow()
	c.send(b)
}

func (c *cluster) connect(id, pod string, at time.Time) {
	b := row(schemas.Network, id, pod, at)
	b.Str(schemas.Action, "connect")
	b.Str(schemas.Syscall, "connect")
	b.Str(schemas.ProcessName, "curl")
	b.EndRow()
	c.send(b)
}

// alerts returns the findings so far, and fails if one was published twice.
func (c *cluster) alerts() (out []*schemas.Finding) {
	c.t.Helper()
	f := &fixture{t: c.t, admin: c.admin}
	seen := make(map[string]bool)
	for _, m := range f.stored(schemas.StreamAlerts) {
		a := finding(c.t, m)
		id := a.FindingInfo.UID + "-" + strconv.Itoa(int(a.Metadata.Sequence))
		if seen[id] {
			c.t.Errorf("finding %s of rule %q is there twice", id, a.Unmapped.Rule)
		}
		seen[id] = true
		out = append(out, a)
	}
	return out
}

// messages waits until there are n first revisions of findings and returns their
// messages, sorted.
func (c *cluster) messages(n int, patience time.Duration) []string {
	c.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		var out []string
		for _, a := range c.alerts() {
			if a.Metadata.Sequence == 1 {
				out = append(out, a.Unmapped.Rule+": "+a.Message)
			}
		}
		if len(out) >= n || time.Now().After(deadline) {
			slices.Sort(out)
			return out
		}
	}
}

// waitFor waits until the replicas own all partitions between them, each some.
func (c *cluster) waitFor(rs ...*replica) {
	c.t.Helper()
	var owned []float64
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		total := 0.0
		owned = owned[:0]
		for _, r := range rs {
			owned = append(owned, testutil.ToFloat64(r.d.correlator.metrics.owned))
			total += owned[len(owned)-1]
		}
		if total == schemas.MatchPartitions && slices.Min(owned) > 0 {
			return
		}
	}
	c.t.Fatalf("partitions owned: %v", owned)
}

// The kinds of rules raise through the bus, each alert once, with its evidence, and
// the state outlives all detectors.
func TestCorrelations(t *testing.T) {
	t.Parallel() // waits most of its time
	c := newCluster(t)
	r := c.start()
	now := time.Now()
	c.session("s", "web-1", "alice", now.Add(-time.Minute))
	c.connect("other", "db-1", now)
	for i := range 4 {
		c.exec(fmt.Sprint("shell", i), "web-1", "/bin/bash", "bash", now.Add(time.Duration(i)*time.Second-time.Minute))
	}
	c.exec("learned", "db-1", "/bin/cat", "cat", now.Add(-20*time.Minute))
	if got, want := c.messages(1, 10*time.Second), []string{"Cat: 1 in db-1"}; !slices.Equal(got, want) {
		t.Fatalf("alerts %q, want %q", got, want)
	}
	time.Sleep(2 * commitAfter) // what raises nothing is stored too
	r.end()

	r = c.start()
	c.connect("c", "web-1", now)
	c.exec("shell5", "web-1", "/bin/bash", "bash", now)
	c.exec("shell0", "web-1", "/bin/bash", "bash", now.Add(-time.Minute)) // again
	c.exec("new", "db-1", "/tmp/x", "x", now)
	want := []string{
		"Cat: 1 in db-1",
		"Many shells: 5 shells in web-1",
		"New program: /tmp/x in db-1",
		"Session, then a connection: user=alice pod=web-1 process=curl count=2",
	}
	if got := c.messages(4, 15*time.Second); !slices.Equal(got, want) {
		t.Errorf("alerts\n%q\nwant\n%q", got, want)
	}
	time.Sleep(500 * time.Millisecond)
	for _, a := range c.alerts() {
		n := map[string]int{"Cat": 1, "Many shells": 5, "New program": 1, "Session, then a connection": 2}[a.Unmapped.Rule]
		if len(a.Evidences) != n || a.Unmapped.Correlation == nil || a.Unmapped.Correlation.Count != n {
			t.Errorf("%s: %d evidences, %+v", a.Unmapped.Rule, len(a.Evidences), a.Unmapped.Correlation)
		}
		if a.Unmapped.Rule == "Session, then a connection" {
			if a.Evidences[0].UID != schemas.FormatID(schemas.Hash128("s")) || a.Evidences[1].UID != schemas.FormatID(schemas.Hash128("c")) || a.Severity != "High" {
				t.Errorf("%+v", a)
			}
		}
	}
	if n := len(c.alerts()); n != 4 {
		t.Errorf("%d findings with revisions, want 4", n)
	}
	families, err := r.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		switch f.GetName() {
		case "picket_detector_correlation_commit_seconds", "picket_detector_correlated_alert_delay_seconds":
			h := f.GetMetric()[0].GetHistogram()
			t.Logf("%s: %d, mean %.1f ms", f.GetName(), h.GetSampleCount(), 1000*h.GetSampleSum()/float64(h.GetSampleCount()))
		case "picket_detector_correlation_given_up_total":
			t.Errorf("given up: %v", f)
		}
	}

	// What is not used is counted: an event of a clock that is wrong, one that comes too late.
	c.exec("future", "fut-1", "", "cat", time.Now().Add(2*maxFuture))
	c.exec("late", "web-1", "/bin/bash", "bash", now.Add(-time.Hour))
	given := r.d.correlator.metrics.givenUp
	for deadline := time.Now().Add(10 * time.Second); testutil.ToFloat64(given.WithLabelValues("future")) != 1 || testutil.ToFloat64(given.WithLabelValues("late")) != 1; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v from the future and %v late were counted, want 1 of each", testutil.ToFloat64(given.WithLabelValues("future")), testutil.ToFloat64(given.WithLabelValues("late")))
		}
	}
	if n := len(c.alerts()); n != 4 {
		t.Errorf("%d findings with what is not used, want 4", n)
	}
}

// Two detectors share the partitions; one dies in the middle, and every alert is
// there once.
func TestOwnerDies(t *testing.T) {
	t.Parallel() // waits most of its time
	const pods, shells = 120, 5
	c := newCluster(t)
	a, b := c.start(), c.start()
	c.waitFor(a, b)
	base := time.Now().Add(-time.Minute)
	var wg sync.WaitGroup
	half := make(chan struct{})
	wg.Go(func() {
		for i := range shells {
			for p := range pods {
				c.exec(fmt.Sprint(p, "-", i), "pod-"+strconv.Itoa(p), "", "bash", base.Add(time.Duration(i)*time.Second))
				if i == 2 && p == pods/2 {
					close(half)
				}
			}
		}
	})
	<-half
	before := testutil.ToFloat64(a.d.correlator.metrics.owned)
	a.kill()
	died := time.Now()
	wg.Wait()
	var want []string
	for p := range pods {
		want = append(want, fmt.Sprintf("Many shells: 5 shells in pod-%d", p))
	}
	slices.Sort(want)
	got := c.messages(pods, 60*time.Second)
	if !slices.Equal(got, want) {
		t.Fatalf("%d alerts, want %d: %q", len(got), len(want), got)
	}
	took := time.Since(died)
	t.Logf("a detector with %v of 64 partitions died; all %d alerts were there %s later", before, pods, took.Round(100*time.Millisecond))
	if took > 40*time.Second {
		t.Errorf("taken over after %s, want about 30 s at most", took)
	}
	for _, f := range c.alerts() {
		if len(f.Evidences) != shells {
			t.Errorf("%s: %d events", f.Message, len(f.Evidences))
		}
	}
}

// An owner that does not know that it is none any more can store nothing, and so
// raises nothing: what the other has stored counts.
func TestStaleOwner(t *testing.T) {
	t.Parallel() // waits most of its time
	c := newCluster(t)
	r := c.start()
	c.waitFor(r)
	shell := func(i int) { c.exec(fmt.Sprint("x", i), "web-1", "", "bash", time.Now()) }
	for i := range 3 {
		shell(i)
	}
	time.Sleep(2 * commitAfter)
	kv, err := c.admin.JS.KeyValue(t.Context(), schemas.BucketState)
	if err != nil {
		t.Fatal(err)
	}
	list, err := kv.ListKeysFiltered(t.Context(), "correlate.*")
	if err != nil {
		t.Fatal(err)
	}
	three := make(map[string][]byte)
	for k := range list.Keys() {
		e, err := kv.Get(t.Context(), k)
		if err != nil {
			t.Fatal(err)
		}
		three[k] = e.Value()
	}
	if len(three) == 0 {
		t.Fatal("no state is stored")
	}
	shell(3)
	time.Sleep(2 * commitAfter)
	// Another owner, which knows of three, writes the state while this one has four.
	for k, state := range three {
		if _, err := kv.Put(t.Context(), k, state); err != nil {
			t.Fatal(err)
		}
	}
	shell(4)
	time.Sleep(3 * commitAfter)
	if got := c.alerts(); len(got) != 0 {
		t.Fatalf("an owner that is none any more raised %q", got[0].Message)
	}
	shell(5)
	want := []string{"Many shells: 5 shells in web-1"}
	if got := c.messages(1, 15*time.Second); !slices.Equal(got, want) {
		t.Errorf("alerts %q, want %q", got, want)
	}
	time.Sleep(2 * commitAfter)
	if n := len(c.alerts()); n != 1 {
		t.Errorf("%d findings, want 1", n)
	}
}

// What is given up for want of room is counted.
func TestNoRoom(t *testing.T) {
	t.Parallel() // waits most of its time
	c := newCluster(t)
	c.cfg.Keys = 1
	r := c.start()
	pod := func(i int) string { return "pod-" + strconv.Itoa(i) }
	partition := func(i int) int {
		m := correlation.Match{Def: &correlation.Definition{Rule: "Many shells"}, Key: []string{pod(i)}}
		return m.Partition()
	}
	beside := 1
	for partition(beside) != partition(0) {
		beside++
	}
	c.exec("a", pod(0), "", "bash", time.Now())
	c.exec("b", pod(beside), "", "bash", time.Now())
	given := r.d.correlator.metrics.givenUp.WithLabelValues("keys")
	for deadline := time.Now().Add(10 * time.Second); testutil.ToFloat64(given) != 1; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v keys given up were counted, want 1", testutil.ToFloat64(given))
		}
	}
}

// What was published is not published again to those who subscribe when a partition
// gets another owner; and a state that nothing changes is stored again, before the
// bucket forgets it.
func TestStateAtRest(t *testing.T) {
	t.Parallel() // waits most of its time
	c := newCluster(t)
	sub, err := natstest.Connect(t, c.server, schemas.ServiceReader).NC.SubscribeSync("picket.alerts.>")
	if err != nil {
		t.Fatal(err)
	}
	r := c.start()
	c.exec("cat", "web-1", "", "cat", time.Now())
	c.messages(1, 10*time.Second)
	time.Sleep(2 * time.Second)
	r.end()

	r = c.start()
	c.waitFor(r)
	c.exec("cat2", "web-1", "", "cat", time.Now())
	var p *partition
	for deadline := time.Now().Add(20 * time.Second); p == nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no state is loaded")
		}
		for _, q := range r.d.correlator.parts {
			q.mu.Lock()
			if q.state != nil && q.state.Keys() > 0 {
				p = q
			}
			q.mu.Unlock()
		}
	}
	time.Sleep(2 * commitAfter)
	if n, _, err := sub.Pending(); err != nil || n != 1 {
		t.Errorf("%d alerts for those who subscribe, want 1; %v", n, err)
	}

	p.mu.Lock()
	revision := p.revision
	p.written = time.Now().Add(-refreshAfter - time.Minute)
	p.mu.Unlock()
	time.Sleep(3 * time.Second)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.revision != revision+1 || time.Since(p.written) > time.Minute {
		t.Errorf("revision %d after %d, of %s", p.revision, revision, p.written)
	}
}

// BenchmarkMatches measures matches from evaluation to acknowledgement by their
// owner, 1,000 in a batch over 500 keys, and, apart, how long after its event an
// alert of such a rule is there, when nothing else waits.
func BenchmarkMatches(b *testing.B) {
	set, _, err := rules.Load([]rules.Source{{Name: "several.yaml", Data: []byte(severalRules)}}, rules.Options{Strict: true})
	if err != nil {
		b.Fatal(err)
	}
	s := natstest.Start(b)
	admin := natstest.Connect(b, s, schemas.ServiceAdmin)
	log := slog.New(slog.NewTextHandler(b.Output(), nil))
	d := &detector{bus: natstest.Connect(b, s, schemas.ServiceDetector), set: set, metrics: newMetrics(prometheus.NewRegistry()), room: semaphore.NewWeighted(publishPending),
		health: health.New(schemas.ServiceDetector, "prod", "", bus.NewRunID(), log, prometheus.NewRegistry())}
	reg := prometheus.NewRegistry()
	if d.correlator, err = newCorrelator(d, DefaultConfig().Correlation, log, reg); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- d.correlator.run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}()
	eval := set.NewEvaluator()
	n, now := 0, time.Now()
	feed := func(rows, keys int, name string) {
		e := batch.NewBuilder(schemas.Process, schemas.Columns(schemas.Process))
		for range rows {
			n++
			e.Bytes16(schemas.EventID, schemas.Hash128(strconv.Itoa(n)))
			e.Int64(schemas.EventTime, now.Add(time.Duration(n)*time.Millisecond/10).UnixNano())
			e.Str(schemas.Cluster, "prod")
			e.Str(schemas.PodName, "pod-"+strconv.Itoa(n%keys))
			e.Str(schemas.Action, "exec")
			e.Str(schemas.Syscall, "execve")
			e.Str(schemas.ProcessName, name)
			e.EndRow()
		}
		_, fed := d.evaluate(eval, e.Batch())
		if err := d.correlator.feed(fed); err != nil {
			b.Fatal(err)
		}
	}
	settled := func() {
		for {
			st, err := admin.JS.Stream(b.Context(), schemas.StreamMatch)
			if err != nil {
				b.Fatal(err)
			}
			if st.CachedInfo().State.Msgs == 0 {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	feed(1000, 500, "bash") // the owner is there, and begun
	settled()
	b.ResetTimer()
	for range b.N {
		feed(1000, 500, "bash")
	}
	settled()
	b.StopTimer()
	b.ReportMetric(float64(1000*b.N)/b.Elapsed().Seconds(), "matches/s")

	var delays []time.Duration
	alerts, err := admin.JS.Stream(b.Context(), schemas.StreamAlerts)
	if err != nil {
		b.Fatal(err)
	}
	for i := range 20 {
		began := time.Now()
		feed(1, 1<<30, "cat") // a pod of its own, so an alert
		for {
			info, err := alerts.Info(b.Context(), jetstream.WithSubjectFilter("picket.alerts.*.*.*.Cat"))
			if err != nil {
				b.Fatal(err)
			}
			if info.State.Subjects["picket.alerts.prod.low._.Cat"] > uint64(i) {
				break
			}
			time.Sleep(time.Millisecond)
		}
		delays = append(delays, time.Since(began))
	}
	slices.Sort(delays)
	b.ReportMetric(float64(delays[10].Microseconds())/1000, "ms-to-alert-p50")
	b.ReportMetric(float64(delays[19].Microseconds())/1000, "ms-to-alert-max")
}
