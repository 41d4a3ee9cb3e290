package detector

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"golang.org/x/sync/semaphore"

	"picket/internal/alert"
	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/health"
	"picket/internal/natsserver/natstest"
	"picket/internal/rules"
	"picket/schemas"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testRules = `- rule: Shell in a container
  desc: A shell was started in a container.
  condition: evt.type = execve and proc.name = bash
  output: Shell started | command=%proc.cmdline
  priority: WARNING
- rule: Secret read
  desc: Somebody read a secret.
  condition: ka.target.resource = secrets
  output: Secret read | user=%ka.user.name namespace=%ka.target.namespace
  priority: ERROR
  source: k8s_audit
`

// needRules need something of the sensors.
const needRules = `- rule: Key read
  desc: A key was read.
  condition: evt.type in (open, openat) and fd.name startswith /srv/keys/
  output: Key read | file=%fd.name
  priority: ERROR
- rule: Connection ended
  desc: A connection ended.
  condition: evt.type = close and fd.sport = 4444
  output: Connection ended
  priority: INFO
`

// fixture is a detector on a server of its own.
type fixture struct {
	t     *testing.T
	d     *detector
	reg   *prometheus.Registry
	admin *bus.Bus
	sent  int
	last  uint64 // sequence of the last message sent
}

func start(t *testing.T) *fixture {
	t.Helper()
	set, _, err := rules.Load([]rules.Source{{Name: "test.yaml", Data: []byte(testRules + needRules)}}, rules.Options{Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	s := natstest.Start(t)
	reg := prometheus.NewRegistry()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	b := natstest.Connect(t, s, schemas.ServiceDetector)
	selector, err := newSelector(b, set, log)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, reg: reg, admin: natstest.Connect(t, s, schemas.ServiceAdmin), d: &detector{
		room: semaphore.NewWeighted(publishPending), selector: selector,
		bus: b, keeper: newKeeper(b, newFileWatch(nil), set, 0, log, reg, selector.use), metrics: newMetrics(reg),
		health: health.New(schemas.ServiceDetector, "prod", "", bus.NewRunID(), log, reg)}}
	if f.d.correlator, err = newCorrelator(f.d, DefaultConfig().Correlation, log, reg); err != nil {
		t.Fatal(err)
	}
	return f
}

// run consumes until stop is called, which waits for the end. It returns when
// the consumer pulls: a message that is sent then is none that came before.
func (f *fixture) run() (stop func()) {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.d.consume(ctx) }()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		c, err := f.admin.JS.Consumer(context.Background(), schemas.StreamEvents, schemas.DurableDetector)
		if err != nil {
			f.t.Fatal(err)
		}
		if i := c.CachedInfo(); i.NumWaiting > 0 || i.NumAckPending > 0 || i.Delivered.Consumer > 0 {
			break
		}
		if time.Now().After(deadline) {
			f.t.Fatal("nobody pulls")
		}
	}
	return func() {
		f.t.Helper()
		cancel()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	}
}

// send publishes data on PICKET_EVENTS as the enricher does.
func (f *fixture) send(subject string, data []byte, header ...string) {
	f.t.Helper()
	f.sent++
	m := nats.NewMsg(subject)
	m.Data = data
	for i := 0; i+1 < len(header); i += 2 {
		m.Header.Set(header[i], header[i+1])
	}
	ack, err := f.admin.JS.PublishMsg(context.Background(), m, jetstream.WithMsgID(strconv.Itoa(f.sent)))
	if err != nil {
		f.t.Fatal(err)
	}
	f.last = ack.Sequence
}

// settled waits until every message sent is acknowledged.
func (f *fixture) settled() {
	f.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := f.admin.JS.Consumer(context.Background(), schemas.StreamEvents, schemas.DurableDetector)
		if err != nil {
			f.t.Fatal(err)
		}
		i := c.CachedInfo()
		if i.Delivered.Stream >= f.last && i.NumAckPending == 0 {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("message %d of %d delivered, %d not acknowledged", i.Delivered.Stream, f.last, i.NumAckPending)
		}
	}
}

// stored returns a stream's messages.
func (f *fixture) stored(stream string) []*jetstream.RawStreamMsg {
	f.t.Helper()
	s, err := f.admin.JS.Stream(context.Background(), stream)
	if err != nil {
		f.t.Fatal(err)
	}
	var out []*jetstream.RawStreamMsg
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(context.Background(), seq)
		if err != nil {
			f.t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// lost checks the figure of a loss.
func (f *fixture) lost(class, reason string, want uint64) {
	f.t.Helper()
	families, err := f.reg.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	got := uint64(0)
	for _, family := range families {
		if family.GetName() != "picket_detector_lost_events_total" {
			continue
		}
		for _, m := range family.GetMetric() { // labels are sorted by name
			if m.GetLabel()[0].GetValue() == class && m.GetLabel()[1].GetValue() == reason {
				got = uint64(m.GetCounter().GetValue())
			}
		}
	}
	if got != want {
		f.t.Errorf("%d events of class %q lost as %s, want %d", got, class, reason, want)
	}
}

func encoded(t *testing.T, b *batch.Builder) []byte {
	t.Helper()
	enc, err := batch.Encode(b.Batch())
	if err != nil || len(enc) != 1 {
		t.Fatalf("%d streams: %v", len(enc), err)
	}
	return enc[0].Data
}

// execs is a batch of process events of these commands, numbered from.
func execs(t *testing.T, from int, args string, names ...string) []byte {
	t.Helper()
	b := batch.NewBuilder(schemas.Process, schemas.Columns(schemas.Process))
	for i, name := range names {
		b.Bytes16(schemas.EventID, schemas.Hash128(strconv.Itoa(from+i)))
		b.Str(schemas.Action, "exec")
		b.Str(schemas.Syscall, "execve")
		b.Str(schemas.Cluster, "prod")
		b.Str(schemas.Node, "n1")
		b.Str(schemas.Namespace, "shop")
		b.Int64(schemas.EventTime, time.Now().UnixNano())
		b.Uint32(schemas.ProcessPID, uint32(from+i))
		b.Str(schemas.ProcessName, name)
		b.Str(schemas.ProcessCommand, name)
		b.Str(schemas.ProcessArgs, args)
		b.EndRow()
	}
	return encoded(t, b)
}

var processSubject = schemas.EventsSubject("prod", "n1", schemas.Process)

// finding reads a message of PICKET_ALERTS.
func finding(t *testing.T, m *jetstream.RawStreamMsg) *schemas.Finding {
	t.Helper()
	f := &schemas.Finding{}
	if err := json.Unmarshal(m.Data, f); err != nil {
		t.Fatal(err)
	}
	return f
}

// A batch that matches gives one finding, also when it is delivered again.
func TestMatchRaisesOnce(t *testing.T) {
	f := start(t)
	stop := f.run()
	data := execs(t, 1, "-i", "cat", "bash", "cat")
	f.send(processSubject, data)
	f.settled()
	f.send(processSubject, data)
	f.send(processSubject, data, schemas.HeaderReplayed, "1")
	f.settled()
	stop()
	alerts := f.stored(schemas.StreamAlerts)
	if len(alerts) != 1 {
		t.Fatalf("%d findings, want 1", len(alerts))
	}
	m := alerts[0]
	if want := "picket.alerts.prod.medium.shop.Shell_in_a_container"; m.Subject != want {
		t.Errorf("on %s, want %s", m.Subject, want)
	}
	got := finding(t, m)
	if got.Message != "Shell started | command=bash -i" || got.Evidences[0].UID != schemas.FormatID(schemas.Hash128("2")) {
		t.Errorf("%q about event %s", got.Message, got.Evidences[0].UID)
	}
	for h, want := range map[string]string{nats.MsgIdHdr: alert.MessageID(got), schemas.HeaderBatchID: alert.MessageID(got), schemas.HeaderReplayed: ""} {
		if v := m.Header.Get(h); v != want {
			t.Errorf("%s is %q, want %q", h, v, want)
		}
	}
	if n := testutil.ToFloat64(f.d.metrics.events.WithLabelValues("process")); n != 9 {
		t.Errorf("%v events evaluated, want 9", n)
	}
	if n := testutil.ToFloat64(f.d.metrics.alerts.WithLabelValues("Shell in a container", "medium")); n != 1 {
		t.Errorf("%v findings counted, want 1", n)
	}
	if n := len(f.stored(schemas.StreamDead)); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// A detector that dies between publishing and acknowledging leaves a message
// that its successor evaluates again: to the same finding.
func TestDiesBeforeAcknowledging(t *testing.T) {
	f := start(t)
	f.send(processSubject, execs(t, 1, "", "bash"))
	c, err := f.d.bus.JS.Consumer(t.Context(), schemas.StreamEvents, schemas.DurableDetector)
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Next(jetstream.FetchMaxWait(5 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	b, err := batch.Decode(m.Data())
	if err != nil {
		t.Fatal(err)
	}
	found, _ := f.d.evaluate(f.d.keeper.set().NewEvaluator(), b)
	if err := f.d.publish(found, false); err != nil {
		t.Fatal(err)
	}
	if err := m.Nak(); err != nil { // as the server does when AckWait is over
		t.Fatal(err)
	}
	stop := f.run()
	f.settled()
	stop()
	if n := testutil.ToFloat64(f.d.metrics.events.WithLabelValues("process")); n != 1 {
		t.Fatalf("%v events evaluated by the successor, want 1", n)
	}
	if n := len(f.stored(schemas.StreamAlerts)); n != 1 {
		t.Errorf("%d findings, want 1", n)
	}
}

// A finding of a message that came before says so: the writer must look whether
// it has it, because JetStream may have forgotten.
func TestReplayedIsMarked(t *testing.T) {
	f := start(t)
	f.send(processSubject, execs(t, 1, "", "bash")) // older than the connection's first look
	stop := f.run()
	f.settled()
	f.send(processSubject, execs(t, 2, "", "bash"))
	f.send(processSubject, execs(t, 3, "", "bash"), schemas.HeaderReplayed, "1")
	f.settled()
	stop()
	got := map[string]string{}
	for _, m := range f.stored(schemas.StreamAlerts) {
		got[strconv.Itoa(int(finding(t, m).Actor.Process.PID))] = m.Header.Get(schemas.HeaderReplayed)
	}
	if len(got) != 3 || got["1"] != "1" || got["2"] != "" || got["3"] != "1" {
		t.Errorf("marks by event: %v", got)
	}
}

// A batch with more findings than are published at once raises every one.
func TestManyFindings(t *testing.T) {
	f := start(t)
	names := make([]string, 2*publishWindow+10)
	for i := range names {
		names[i] = "bash"
	}
	f.send(processSubject, execs(t, 1, "", names...))
	stop := f.run()
	f.settled()
	stop()
	events := map[string]bool{}
	for _, m := range f.stored(schemas.StreamAlerts) {
		events[finding(t, m).Evidences[0].UID] = true
	}
	if len(events) != len(names) {
		t.Errorf("findings about %d events, want %d", len(events), len(names))
	}
}

// What cannot be decoded is set aside with its reason, counted once, and the
// next goes on.
func TestUndecodable(t *testing.T) {
	f := start(t)
	stop := f.run()
	good := execs(t, 1, "", "bash")
	f.send(processSubject, []byte("garbage"), schemas.HeaderRows, "7")
	f.send(processSubject, good[:len(good)/2])
	f.send("picket.events.prod.file.3", nil, schemas.HeaderRows, "99999999")
	f.send("picket.events.other", []byte("x"), schemas.HeaderRows, "2")
	f.send(processSubject, good)
	f.settled()
	stop()
	if n := len(f.stored(schemas.StreamAlerts)); n != 1 {
		t.Errorf("%d findings after the bad batches, want 1", n)
	}
	dead := f.stored(schemas.StreamDead)
	if len(dead) != 4 {
		t.Fatalf("%d dead letters, want 4", len(dead))
	}
	for i, m := range dead {
		reason, text, _ := strings.Cut(m.Header.Get(schemas.HeaderReason), ": ")
		if m.Subject != "picket.dead.detector" || reason != schemas.LossDecode || text == "" || m.Header.Get(schemas.HeaderStream) != schemas.StreamEvents ||
			m.Header.Get(schemas.HeaderSequence) != strconv.Itoa(i+1) {
			t.Errorf("dead letter %d on %s: %v", i, m.Subject, m.Header)
		}
	}
	if string(dead[0].Data) != "garbage" {
		t.Errorf("dead letter holds %q", dead[0].Data)
	}
	f.lost("process", schemas.LossDeadLetter, 8) // 7 as announced, and one of an unknown number
	f.lost("file", schemas.LossDeadLetter, 1)
	f.lost("", schemas.LossDeadLetter, 2)
}

// Rows that the stream dropped before the detector had them are counted.
func TestGapsAreCounted(t *testing.T) {
	f := start(t)
	headers := func(rows, cumulative string) []string {
		return []string{schemas.HeaderRun, "r1", schemas.HeaderRows, rows, schemas.HeaderCumulative, cumulative}
	}
	f.send(processSubject, execs(t, 1, "", "cat"), headers("1", "1")...)
	f.send(processSubject, execs(t, 2, "", "cat", "cat", "cat"), headers("3", "4")...)
	f.send(processSubject, execs(t, 5, "", "cat"), headers("1", "5")...)
	f.send(schemas.EventsSubject("prod", "n1", schemas.File), execs(t, 6, "", "cat"), headers("1", "1")...)
	events, err := f.admin.JS.Stream(t.Context(), schemas.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	if err := events.DeleteMsg(t.Context(), 2); err != nil { // what a limit of the stream does
		t.Fatal(err)
	}
	stop := f.run()
	f.settled()
	f.send(processSubject, execs(t, 5, "", "cat"), headers("1", "5")...) // again
	f.settled()
	stop()
	f.lost("process", schemas.LossStreamLimit, 3)
	f.lost("file", schemas.LossStreamLimit, 0)
}

// While JetStream refuses findings their message comes again, and in the end
// the alert is there once.
func TestPublishFails(t *testing.T) {
	f := start(t)
	s, err := f.admin.JS.Stream(t.Context(), schemas.StreamAlerts)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	refusing := cfg
	refusing.MaxMsgSize = 10
	if _, err := f.admin.JS.UpdateStream(t.Context(), refusing); err != nil {
		t.Fatal(err)
	}
	stop := f.run()
	f.send(processSubject, execs(t, 1, "", "bash"))
	for deadline := time.Now().Add(10 * time.Second); testutil.ToFloat64(f.d.metrics.events.WithLabelValues("process")) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not evaluated")
		}
	}
	time.Sleep(100 * time.Millisecond) // for the refusal
	c, err := f.admin.JS.Consumer(t.Context(), schemas.StreamEvents, schemas.DurableDetector)
	if err != nil {
		t.Fatal(err)
	}
	if c.CachedInfo().NumAckPending != 1 {
		t.Error("acknowledged without its finding")
	}
	if _, err := f.admin.JS.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	f.settled()
	stop()
	if n := testutil.ToFloat64(f.d.metrics.events.WithLabelValues("process")); n < 2 {
		t.Errorf("%v events evaluated: the message did not come again", n)
	}
	if n := len(f.stored(schemas.StreamAlerts)); n != 1 {
		t.Errorf("%d findings, want 1", n)
	}
	if n := len(f.stored(schemas.StreamDead)); n != 0 {
		t.Errorf("%d dead letters", n)
	}
	if n := testutil.ToFloat64(f.d.metrics.alerts.WithLabelValues("Shell in a container", "medium")); n != 1 {
		t.Errorf("%v findings counted, want 1", n)
	}
}

// No event can be so large, or its names so odd, that it stops the detector or
// raises nothing.
func TestHostileEvents(t *testing.T) {
	f := start(t)
	stop := f.run()
	f.send(processSubject, execs(t, 1, strings.Repeat("<", 400<<10), "bash"))
	b := batch.NewBuilder(schemas.Audit, schemas.Columns(schemas.Audit))
	b.Bytes16(schemas.EventID, schemas.Hash128("audit"))
	b.Str(schemas.Cluster, "prod")
	b.Str(schemas.Node, "webhook")
	b.Int64(schemas.EventTime, time.Now().UnixNano())
	b.Str(schemas.AuditUser, strings.Repeat("\x01", 100<<10))
	b.Str(schemas.AuditResource, "secrets")
	b.Str(schemas.AuditNamespace, strings.Repeat("n.>", 30<<10))
	b.EndRow()
	f.send(schemas.EventsSubject("prod", "webhook", schemas.Audit), encoded(t, b))
	f.send(processSubject, execs(t, 2, "", "bash"))
	f.settled()
	stop()
	titles := map[string]int{}
	for _, m := range f.stored(schemas.StreamAlerts) {
		titles[finding(t, m).FindingInfo.Title]++
	}
	if titles["Shell in a container"] != 2 || titles["Secret read"] != 1 {
		t.Errorf("findings: %v", titles)
	}
	if n := f.d.bus.NC.Stats().Reconnects; n != 0 {
		t.Errorf("the server closed the connection %d times", n)
	}
}

func TestLoadRules(t *testing.T) {
	set, warnings, err := LoadRules(nil)
	if err != nil || len(set.Rules()) == 0 || len(warnings) != 0 {
		t.Errorf("default pack: %v %v", warnings, err)
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good.yaml", testRules)
	if set, _, err := LoadRules([]string{good}); err != nil || len(set.Rules()) != 2 {
		t.Errorf("a file of two rules: %v", err)
	}
	bad := write("bad.yaml", "- rule: r\n  desc: d\n  output: o\n  priority: INFO\n  condition: evt.type = execve and proc.nmae = x\n")
	worse := write("worse.yaml", "- rule: s\n  desc: d\n  output: o\n  priority: LOUD\n  condition: nonsense.field = 1\n")
	_, _, err = LoadRules([]string{good, bad, worse})
	if err == nil {
		t.Fatal("bad rules load")
	}
	for _, want := range []string{"rules do not load", bad + ":5:", `proc.nmae`, "did you mean proc.name?", worse + ":4:", `"LOUD"`, worse + ":5:", "nonsense.field"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not name %s", err, want)
		}
	}
	// What Picket does not have yet is a warning, and the others stay.
	lacking := write("lacking.yaml", "- rule: other source\n  desc: d\n  output: o\n  priority: INFO\n  source: okta\n  condition: okta.app = x\n")
	set, warnings, err = LoadRules([]string{good, lacking})
	if err != nil || len(set.Rules()) != 2 || len(warnings) == 0 || !strings.Contains(warnings[0].String(), lacking+":") {
		t.Errorf("a rule of an unknown source: %v %v", warnings, err)
	}
	for _, path := range []string{filepath.Join(dir, "none.yaml"), t.TempDir()} {
		if _, _, err := LoadRules([]string{path}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestConfig(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Config){
		"nats.url is empty":                    func(c *Config) { c.NATS.URL = "" },
		"log.level is":                         func(c *Config) { c.Log.Level = "loud" },
		"admin.listen is":                      func(c *Config) { c.Admin.Listen = "9090" },
		"clickhouse.url":                       func(c *Config) { c.ClickHouse.URL = "" },
		"cluster is empty: name the cluster":   func(c *Config) { c.Cluster = "" },
		"rules: stat /does/not/exist: no such": func(c *Config) { c.Rules = []string{"/does/not/exist"} },
	} {
		cfg := DefaultConfig()
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Run: got %v, want %q", err, want)
		}
	}
}
