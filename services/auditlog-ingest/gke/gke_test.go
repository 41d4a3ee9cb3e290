package gke_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/logging/apiv2/loggingpb"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"picket/internal/batch"
	"picket/internal/fault"
	"picket/schemas"
	auditlogingest "picket/services/auditlog-ingest"
	"picket/services/auditlog-ingest/gke"
	"picket/services/auditlog-ingest/gke/gketest"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// A worker that a library of Google's starts when it is loaded.
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
		// What watches a stream of Pub/Sub's client sees its end at its next tick, within 30 s.
		goleak.IgnoreTopFunction("cloud.google.com/go/pubsub/v2.(*messageIterator).streamKeepAliveHandler"),
		// What maxLease says.
		goleak.IgnoreAnyFunction("cloud.google.com/go/pubsub/v2.(*messageIterator).sender"),
		goleak.IgnoreAnyFunction("cloud.google.com/go/pubsub/v2.(*messageIterator).stop"))
}

// store is what survives the death of a process: events by id, and a checkpoint.
type store struct {
	mu         sync.Mutex
	events     map[[16]byte]string // cloud's id and stage
	places     map[string]int      // how many ids a cloud's id and stage have
	clusters   map[string]int
	checkpoint json.RawMessage
	refused    map[string]int // by reason
	gaps       []string
	repeats    int
}

func newStore() *store {
	return &store{events: map[[16]byte]string{}, places: map[string]int{}, clusters: map[string]int{}, refused: map[string]int{}}
}

func (s *store) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.events)
}

func (s *store) refusals() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, v := range s.refused {
		n += v
	}
	return n
}

// waiting is a call of a source that is not safe yet.
type waiting struct {
	id         [16]byte
	name       string
	cluster    string
	event      bool
	reason     string
	checkpoint any
	done       func()
}

// sink is a source.Sink that makes safe what it has every few milliseconds, and
// dies at a random call.
type sink struct {
	s     *store
	rng   *rand.Rand
	crash float64
	kill  context.CancelFunc
	hold  chan struct{} // while not nil and open, nothing becomes safe

	mu    sync.Mutex
	dead  bool
	queue []waiting
	norm  map[string]*auditlogingest.Normalizer
	b     *batch.Builder
}

var errDead = errors.New("the process died")

const sinkBound = 2000

func (k *sink) add(ctx context.Context, make func() waiting) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		k.mu.Lock()
		if k.dead {
			k.mu.Unlock()
			return errDead
		}
		if len(k.queue) < sinkBound {
			break
		}
		k.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	defer k.mu.Unlock()
	k.queue = append(k.queue, make())
	if k.crash > 0 && k.rng.Float64() < k.crash {
		// Some of it is safe, and nobody heard of it.
		k.save(k.queue[:k.rng.IntN(len(k.queue)+1)])
		k.dead, k.queue = true, nil
		k.kill()
	}
	return nil
}

func (k *sink) save(list []waiting) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	for _, w := range list {
		if w.checkpoint != nil {
			k.s.checkpoint, _ = json.Marshal(w.checkpoint)
		}
		if w.reason != "" {
			k.s.refused[w.reason]++
		}
		if !w.event {
			continue
		}
		if _, ok := k.s.events[w.id]; ok {
			k.s.repeats++
			continue
		}
		k.s.events[w.id] = w.name
		k.s.places[w.name]++
		k.s.clusters[w.cluster]++
	}
}

// run makes safe what waits, until ctx ends.
func (k *sink) run(ctx context.Context) {
	for ctx.Err() == nil {
		time.Sleep(3 * time.Millisecond)
		if k.hold != nil {
			select {
			case <-k.hold:
			case <-ctx.Done():
				return
			}
		}
		k.mu.Lock()
		list := k.queue
		k.queue = nil
		if !k.dead {
			k.save(list)
		}
		k.mu.Unlock()
		for _, w := range list {
			if w.done != nil {
				w.done()
			}
		}
	}
}

func (k *sink) Put(ctx context.Context, r source.Record, done func()) error {
	return k.add(ctx, func() waiting {
		n := k.norm[r.Cluster]
		if n == nil {
			n = auditlogingest.NewNormalizer(r.Cluster, "sub", "gke", auditlogingest.DefaultRedact())
			k.norm[r.Cluster] = n
		}
		k.b.Reset()
		if err := n.Append(k.b, r.Text); err != nil {
			return waiting{reason: fault.Reason(err), checkpoint: r.Checkpoint, done: done}
		}
		b := k.b.Batch()
		id, _ := b.Bytes16(schemas.EventID, 0)
		return waiting{id: id, name: r.CloudID + " " + b.Str(schemas.AuditStage, 0), cluster: r.Cluster, event: true, checkpoint: r.Checkpoint, done: done}
	})
}

func (k *sink) Refuse(ctx context.Context, r source.Record, _ int64, cause error, done func()) error {
	return k.add(ctx, func() waiting { return waiting{reason: fault.Reason(cause), checkpoint: r.Checkpoint, done: done} })
}

func (k *sink) Mark(ctx context.Context, checkpoint any) error {
	return k.add(ctx, func() waiting { return waiting{checkpoint: checkpoint} })
}

func (k *sink) Checkpoint(v any) (bool, error) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	if k.s.checkpoint == nil {
		return false, nil
	}
	return true, json.Unmarshal(k.s.checkpoint, v)
}

func (k *sink) Gap(message string, attrs ...any) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	k.s.gaps = append(k.s.gaps, strings.TrimSpace(fmt.Sprintln(append([]any{message}, attrs...)...)))
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// run runs the only source of cfg against the store until it dies, or enough says
// so, and tells whether it died.
func (s *store) run(t *testing.T, cfg gke.Config, seed uint64, crash float64, enough func() bool) bool {
	t.Helper()
	p, err := gke.Build(cfg, quiet, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	sources, err := p.Sources(t.Context())
	if err != nil || len(sources) != 1 {
		t.Fatalf("%d sources: %v", len(sources), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	k := &sink{s: s, rng: rand.New(rand.NewPCG(seed, 1)), crash: crash, kill: cancel, norm: map[string]*auditlogingest.Normalizer{}, b: builder()}
	var all sync.WaitGroup
	all.Go(func() { k.run(ctx) })
	all.Go(func() {
		for ctx.Err() == nil {
			if enough() {
				cancel()
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	if err := sources[0].Run(ctx, k); err != nil && !errors.Is(err, errDead) {
		t.Errorf("the source ended with %v", err)
	}
	cancel()
	all.Wait()
	return k.dead
}

// exactlyOnce fails unless each of the names is there under one id.
func (s *store) exactlyOnce(t *testing.T, names []string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	missing, twice := 0, 0
	for _, n := range names {
		switch s.places[n] {
		case 0:
			if missing++; missing < 4 {
				t.Errorf("%s is missing", n)
			}
		case 1:
		default:
			twice++
		}
	}
	if missing > 0 || twice > 0 || len(s.events) != len(names) {
		t.Errorf("of %d events %d are missing, %d have several ids; %d are there", len(names), missing, twice, len(s.events))
	}
}

// event returns the i-th event: some are two stages of a session.
func event(i int, at time.Time) (text []byte, name string) {
	id := fmt.Sprintf("0a1b2c3d-0000-4000-8000-%012d", i)
	stage, resource, verb, code := "ResponseComplete", `"resource":"configmaps"`, "update", 200
	if i%10 < 2 {
		id = fmt.Sprintf("0a1b2c3d-0000-4000-8000-%012d", i-i%10)
		resource, verb, code = `"resource":"pods","subresource":"exec"`, "create", 101
		if i%10 == 0 {
			stage = "ResponseStarted"
		}
	}
	text = fmt.Appendf(nil, `{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Request","auditID":"%s","stage":"%s","requestURI":"/x","verb":"%s","user":{"username":"system:serviceaccount:shop:web"},`+
		`"sourceIPs":["10.0.0.1"],"userAgent":"web/1","objectRef":{%s,"namespace":"shop","name":"n%d","apiVersion":"v1"},"responseStatus":{"code":%d},"requestObject":{"apiVersion":"v1","kind":"ConfigMap","data":{"n":"%d"}},`+
		`"stageTimestamp":"%s","annotations":{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":""}}`, id, stage, verb, resource, i, code, i, at.UTC().Format(time.RFC3339Nano))
	return text, id + " " + stage
}

// entries returns n entries of two clusters, spread over a span of time so that
// many have the same millisecond.
func entries(t testing.TB, n int, from time.Time, span time.Duration, rng *rand.Rand) ([]*loggingpb.LogEntry, []string) {
	t.Helper()
	out, names := make([]*loggingpb.LogEntry, n), make([]string, n)
	for i := range n {
		at := from.Add(time.Duration(i) * span / time.Duration(n)).Truncate(time.Millisecond)
		text, name := event(i, at)
		e, err := gketest.Entry(text, "shop-1234", "europe-west1", []string{"prod", "test"}[i/10%2], time.Duration(rng.IntN(3000))*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		out[i], names[i] = e, name
	}
	return out, names
}

func config(s *gketest.Server) gke.Config {
	c := gke.DefaultConfig()
	c.PubSubEndpoint, c.LoggingEndpoint = "http://"+s.Addr, "http://"+s.Addr
	c.Clusters = []gke.Cluster{{Project: "shop-1234", Location: "europe-west1", Cluster: "prod", Name: "shop"}}
	c.ReadsPerMinute = 600_000
	return c
}

func start(t *testing.T, seed uint64) *gketest.Server {
	t.Helper()
	s, err := gketest.Start(seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

const subscriptionPath = "projects/shop-1234/subscriptions/picket"

func seedOf(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return seed
}

var events = flag.Int("events", 10_000, "how many events the randomised tests send")

// TestSubscriptionExactlyOnce sends events through Pub/Sub with every fault on,
// kills the source again and again, and finds each event once.
func TestSubscriptionExactlyOnce(t *testing.T) {
	seed := seedOf(t)
	rng := rand.New(rand.NewPCG(seed, 2))
	srv := start(t, seed)
	srv.Subscription(subscriptionPath, 7*24*time.Hour)
	n := *events
	list, names := entries(t, n, time.Now().Add(-time.Hour), time.Hour, rng)
	messages := make([][]byte, 0, n+n/100)
	bad := 0
	for i, e := range list {
		data, err := gketest.JSON(e)
		if err != nil {
			t.Fatal(err)
		}
		messages = append(messages, data)
		if i%100 == 0 {
			messages = append(messages, fmt.Appendf(nil, `{"insertId":"bad-%d","protoPayload":`, i))
			bad++
		}
	}
	rng.Shuffle(len(messages), func(i, j int) { messages[i], messages[j] = messages[j], messages[i] })
	srv.Publish(subscriptionPath, messages...)
	srv.Fault(gketest.Faults{Throttle: 0.01, Unavailable: 0.01, LoseAck: 0.002, Redeliver: 0.01, CutStream: 0.002, Reorder: true, Lease: 2 * time.Second})
	cfg := config(srv)
	cfg.Subscriptions = []gke.Subscription{{Subscription: subscriptionPath}}
	w := newStore()
	began := time.Now()
	deaths := 0
	for round := uint64(0); ; round++ {
		full := func() bool { return w.len() >= n && w.refusals() >= bad || time.Since(began) > 2*time.Minute }
		crash := 20 / float64(n)
		if deaths >= 12 {
			crash = 0
		}
		if !w.run(t, cfg, seed+round, crash, full) {
			break
		}
		deaths++
		if round%3 == 0 {
			srv.CutConnections()
		}
	}
	w.exactlyOnce(t, names)
	c := srv.Counts()
	t.Logf("%d events, %d undecodable, %d deaths, %d repeats known, %d delivered, %d throttled, at most %d under way, in %.1f s", n, bad, deaths, w.repeats, c.Delivered, c.Throttled, c.MaxOutstanding, time.Since(began).Seconds())
	if w.refused[record.ReasonSyntax] < bad {
		t.Errorf("%v refused, want at least %d with reason syntax", w.refused, bad)
	}
	if deaths == 0 || c.Throttled == 0 || w.repeats == 0 {
		t.Error("the faults did not happen")
	}
	if w.clusters["shop"] != n/2 || w.clusters["shop-1234_europe-west1_test"] != n/2 {
		t.Errorf("events by cluster: %v", w.clusters)
	}
}

// TestLogsExactlyOnce reads a long past by entries.list with every fault on.
func TestLogsExactlyOnce(t *testing.T) {
	seed := seedOf(t)
	rng := rand.New(rand.NewPCG(seed, 2))
	srv := start(t, seed)
	n := *events
	from := time.Now().Add(-6 * time.Hour)
	list, names := entries(t, n, from, 4*time.Hour, rng)
	rng.Shuffle(n, func(i, j int) { list[i], list[j] = list[j], list[i] })
	srv.Add(list...)
	srv.Fault(gketest.Faults{Throttle: 0.03, Unavailable: 0.02, ExpireToken: 0.03, EmptyPage: 0.2, ShortPage: 0.5, Repeat: 0.01})
	cfg := config(srv)
	cfg.Logs = []gke.Logs{{Resource: "projects/shop-1234", Start: source.Start(from.Format(time.RFC3339Nano)), Until: time.Now().Add(-time.Hour).Format(time.RFC3339Nano)}}
	w := newStore()
	began := time.Now()
	deaths := 0
	for round := uint64(0); ; round++ {
		full := func() bool { return w.len() >= n || time.Since(began) > 2*time.Minute }
		crash := 10 / float64(n)
		if deaths >= 8 {
			crash = 0
		}
		if !w.run(t, cfg, seed+round, crash, full) {
			break
		}
		deaths++
		srv.CutConnections()
	}
	w.exactlyOnce(t, names)
	c := srv.Counts()
	t.Logf("%d events, %d deaths, %d repeats known, %d reads, %d throttled, %d expired tokens, in %.1f s", n, deaths, w.repeats, c.Lists, c.Throttled, c.Expired, time.Since(began).Seconds())
	if deaths == 0 || w.repeats == 0 || n >= 100_000 && (c.Throttled == 0 || c.Expired == 0) {
		t.Error("the faults did not happen")
	}
}

// TestLogsLate adds entries while they are read, which can be listed only some
// time after they were received.
func TestLogsLate(t *testing.T) {
	seed := seedOf(t)
	rng := rand.New(rand.NewPCG(seed, 2))
	srv := start(t, seed)
	cfg := config(srv)
	cfg.Logs = []gke.Logs{{Resource: "projects/shop-1234", Start: source.StartNow}}
	cfg.Overlap, cfg.PollInterval = 600*time.Millisecond, 20*time.Millisecond
	srv.Fault(gketest.Faults{IndexDelay: 500 * time.Millisecond, EmptyPage: 0.1, ShortPage: 0.2, Throttle: 0.002})
	const n = 2000
	var names []string
	w := newStore()
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(100 * time.Millisecond)
		for i := range n {
			// The event is up to a day older than its receipt.
			text, name := event(i, time.Now().Add(-time.Duration(rng.IntN(86400))*time.Second))
			e, err := gketest.Entry(text, "shop-1234", "europe-west1", "prod", 0)
			if err != nil {
				t.Error(err)
				return
			}
			e.ReceiveTimestamp.Seconds, e.ReceiveTimestamp.Nanos = time.Now().Unix(), int32(time.Now().Nanosecond())
			srv.Add(e)
			names = append(names, name)
			time.Sleep(time.Duration(rng.IntN(2)) * time.Millisecond)
		}
	}()
	began := time.Now()
	for round := uint64(0); w.run(t, cfg, seed+round, 0.0005, func() bool { return w.len() >= n || time.Since(began) > time.Minute }); round++ {
	}
	<-done
	w.exactlyOnce(t, names)
	t.Logf("%d events, %d repeats known, in %.1f s", n, w.repeats, time.Since(began).Seconds())
}

// TestSubscriptionBackPressure: a sink that takes nothing leaves the messages with
// Pub/Sub, above a bound, and loses none.
func TestSubscriptionBackPressure(t *testing.T) {
	srv := start(t, 1)
	srv.Subscription(subscriptionPath, 7*24*time.Hour)
	const n = 6_000
	list, names := entries(t, n, time.Now(), time.Second, rand.New(rand.NewPCG(1, 1)))
	for _, e := range list {
		data, err := gketest.JSON(e)
		if err != nil {
			t.Fatal(err)
		}
		srv.Publish(subscriptionPath, data)
	}
	cfg := config(srv)
	cfg.Subscriptions = []gke.Subscription{{Subscription: subscriptionPath}}
	p, err := gke.New(fewReads(cfg), quiet, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	sources, err := p.Sources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w := newStore()
	k := &sink{s: w, rng: rand.New(rand.NewPCG(1, 1)), kill: cancel, hold: make(chan struct{}), norm: map[string]*auditlogingest.Normalizer{}, b: builder()}
	var all sync.WaitGroup
	all.Go(func() { k.run(ctx) })
	all.Go(func() {
		if err := sources[0].Run(ctx, k); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(700 * time.Millisecond)
	if c := srv.Counts(); c.Acked != 0 || c.MaxOutstanding == 0 || c.MaxOutstanding > 4*1000 {
		t.Errorf("while nothing is safe, %d messages were acknowledged, and %d were under way", c.Acked, c.MaxOutstanding)
	}
	if err := sources[0].Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}
	close(k.hold)
	for began := time.Now(); srv.Left(subscriptionPath) > 0 && time.Since(began) < time.Minute; {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	all.Wait()
	w.exactlyOnce(t, names)
	if left := srv.Left(subscriptionPath); left != 0 {
		t.Errorf("%d messages are not acknowledged", left)
	}
}

// TestHandOver: what a source had under way when it is stopped goes to the next at
// once, not when its lease is over, which takes 20 s.
func TestHandOver(t *testing.T) {
	srv := start(t, 1)
	srv.Subscription(subscriptionPath, 7*24*time.Hour)
	list, names := entries(t, 1000, time.Now(), time.Second, rand.New(rand.NewPCG(1, 1)))
	for _, e := range list {
		data, err := gketest.JSON(e)
		if err != nil {
			t.Fatal(err)
		}
		srv.Publish(subscriptionPath, data)
	}
	cfg := config(srv)
	cfg.Subscriptions = []gke.Subscription{{Subscription: subscriptionPath}}
	w := newStore()
	ctx, cancel := context.WithCancel(t.Context())
	p, err := gke.Build(cfg, quiet, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	sources, err := p.Sources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	never := &sink{s: w, rng: rand.New(rand.NewPCG(1, 1)), kill: cancel, norm: map[string]*auditlogingest.Normalizer{}, b: builder()} // nothing runs it
	done := make(chan error)
	go func() { done <- sources[0].Run(ctx, never) }()
	has := func() int {
		never.mu.Lock()
		defer never.mu.Unlock()
		return len(never.queue)
	}
	for began := time.Now(); has() <= len(names) && time.Since(began) < 20*time.Second; { // and a checkpoint
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	began := time.Now()
	w.run(t, cfg, 1, 0, func() bool { return w.len() == len(names) || time.Since(began) > time.Minute })
	w.exactlyOnce(t, names)
	if d := time.Since(began); d > 12*time.Second {
		t.Errorf("the next had them all after %s", d)
	}
}

// TestGooglesFake runs the source against Google's own fake of Pub/Sub.
func TestGooglesFake(t *testing.T) {
	srv := pstest.NewServer()
	defer srv.Close()
	const topic = "projects/shop-1234/topics/picket"
	if _, err := srv.GServer.CreateTopic(t.Context(), &pubsubpb.Topic{Name: topic}); err != nil {
		t.Fatal(err)
	}
	if _, err := srv.GServer.CreateSubscription(t.Context(), &pubsubpb.Subscription{Name: subscriptionPath, Topic: topic, AckDeadlineSeconds: 30}); err != nil {
		t.Fatal(err)
	}
	const n = 300
	list, names := entries(t, n, time.Now(), time.Second, rand.New(rand.NewPCG(1, 1)))
	for _, e := range list {
		data, err := gketest.JSON(e)
		if err != nil {
			t.Fatal(err)
		}
		srv.Publish(topic, data, map[string]string{"logging.googleapis.com/timestamp": e.GetTimestamp().AsTime().Format(time.RFC3339Nano)})
	}
	cfg := gke.DefaultConfig()
	cfg.Subscriptions = []gke.Subscription{{Subscription: subscriptionPath}}
	_, port, err := net.SplitHostPort(srv.Addr)
	if err != nil {
		t.Fatal(err)
	}
	cfg.PubSubEndpoint = "http://127.0.0.1:" + port
	w := newStore()
	began := time.Now()
	acked := func() (n int) {
		for _, m := range srv.Messages() {
			n += min(m.Acks, 1)
		}
		return n
	}
	w.run(t, cfg, 1, 0, func() bool { return acked() == n || time.Since(began) > 20*time.Second })
	w.exactlyOnce(t, names)
	if a := acked(); a != n {
		t.Errorf("%d of %d messages are acknowledged", a, n)
	}
}

func fewReads(c gke.Config) gke.Config { c.ReadsPerMinute = 6000; return c }

// TestSlowSourceDelaysNoOther: the messages of one subscription come through while
// the sink of another takes nothing, and the logs of a project are throttled.
func TestSlowSourceDelaysNoOther(t *testing.T) {
	srv := start(t, 1)
	const other = "projects/shop-1234/subscriptions/slow"
	list, names := entries(t, 1000, time.Now(), time.Second, rand.New(rand.NewPCG(1, 1)))
	for _, path := range []string{subscriptionPath, other} {
		srv.Subscription(path, 7*24*time.Hour)
		for _, e := range list {
			data, err := gketest.JSON(e)
			if err != nil {
				t.Fatal(err)
			}
			srv.Publish(path, data)
		}
	}
	cfg := config(srv)
	cfg.Subscriptions = []gke.Subscription{{Subscription: subscriptionPath}, {Subscription: other}}
	cfg.Logs = []gke.Logs{{Resource: "projects/shop-1234", Name: "logs"}}
	p, err := gke.New(fewReads(cfg), quiet, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	sources, err := p.Sources(t.Context())
	if err != nil || len(sources) != 3 {
		t.Fatalf("%d sources: %v", len(sources), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	stores := []*store{newStore(), newStore(), newStore()}
	for i, src := range sources {
		k := &sink{s: stores[i], rng: rand.New(rand.NewPCG(1, 1)), kill: cancel, norm: map[string]*auditlogingest.Normalizer{}, b: builder()}
		if i > 0 {
			k.hold = make(chan struct{})
		}
		all.Go(func() { k.run(ctx) })
		all.Go(func() {
			if err := src.Run(ctx, k); err != nil {
				t.Error(err)
			}
		})
	}
	for began := time.Now(); stores[0].len() < len(names) && time.Since(began) < 10*time.Second; {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	all.Wait()
	stores[0].exactlyOnce(t, names)
	if stores[1].len() != 0 {
		t.Errorf("the other took %d", stores[1].len())
	}
}

// TestSince: a subscription and the logs of a project share the entries at one instant.
func TestSince(t *testing.T) {
	srv := start(t, 3)
	srv.Subscription(subscriptionPath, 7*24*time.Hour)
	const n = 1000
	list, names := entries(t, n, time.Now().Add(-3*time.Hour), time.Hour, rand.New(rand.NewPCG(3, 3)))
	border := list[n/2].GetReceiveTimestamp().AsTime()
	srv.Add(list...)
	for _, e := range list {
		data, err := gketest.JSON(e)
		if err != nil {
			t.Fatal(err)
		}
		srv.Publish(subscriptionPath, data)
	}
	base := config(srv)
	sub, past := base, base
	sub.Subscriptions = []gke.Subscription{{Subscription: subscriptionPath, Since: border.Format(time.RFC3339Nano)}}
	past.Logs = []gke.Logs{{Resource: "projects/shop-1234", Start: source.StartBeginning, Until: border.Format(time.RFC3339Nano)}}
	w := newStore()
	began := time.Now()
	w.run(t, sub, 1, 0, func() bool { return srv.Left(subscriptionPath) == 0 || time.Since(began) > 20*time.Second })
	first := w.len()
	w.checkpoint = nil // that of another source
	w.run(t, past, 1, 0, func() bool { return w.len() == n || time.Since(began) > 20*time.Second })
	w.exactlyOnce(t, names)
	if w.repeats != 0 || first == 0 || first == n {
		t.Errorf("%d of %d by the subscription, %d came by both", first, n, w.repeats)
	}
}

func TestGap(t *testing.T) {
	srv := start(t, 1)
	srv.Subscription(subscriptionPath, 48*time.Hour)
	for _, c := range []struct {
		name       string
		cfg        func(*gke.Config)
		checkpoint string
		want       string // of the gap; empty: none
	}{
		{"subscription, read lately", func(c *gke.Config) {
			c.Subscriptions = []gke.Subscription{{Subscription: subscriptionPath}}
		}, `{"read":"` + time.Now().Add(-47*time.Hour).Format(time.RFC3339) + `"}`, ""},
		{"subscription, read long ago", func(c *gke.Config) {
			c.Subscriptions = []gke.Subscription{{Subscription: subscriptionPath}}
		}, `{"read":"2026-01-02T03:04:05Z"}`, "from 2026-01-02T03:04:05Z to "},
		{"logs, read lately", func(c *gke.Config) {
			c.Logs = []gke.Logs{{Resource: "projects/shop-1234"}}
		}, `{"settled":"` + time.Now().Add(-29*24*time.Hour).Format(time.RFC3339) + `"}`, ""},
		{"logs, read long ago", func(c *gke.Config) {
			c.Logs = []gke.Logs{{Resource: "projects/shop-1234"}}
		}, `{"settled":"2026-01-02T03:04:05Z"}`, "from 2026-01-02T03:04:05Z to "},
		{"first start", func(c *gke.Config) {
			c.Logs = []gke.Logs{{Resource: "projects/shop-1234", Start: source.StartBeginning}}
		}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(srv)
			c.cfg(&cfg)
			w := newStore()
			if c.checkpoint != "" {
				w.checkpoint = json.RawMessage(c.checkpoint)
			}
			began := time.Now()
			w.run(t, cfg, 1, 0, func() bool { return time.Since(began) > 200*time.Millisecond })
			got := strings.Join(w.gaps, "; ")
			if c.want == "" && got != "" || c.want != "" && (len(w.gaps) != 1 || !strings.Contains(got, c.want)) {
				t.Errorf("gaps: %q, want %q", got, c.want)
			}
		})
	}
}

// TestRefused: what Google refuses is told with its remedy and without secrets, and
// reading goes on when it is allowed again.
func TestRefused(t *testing.T) {
	srv := start(t, 1)
	srv.Subscription(subscriptionPath, 7*24*time.Hour)
	list, names := entries(t, 20, time.Now().Add(-2*time.Hour), time.Minute, rand.New(rand.NewPCG(1, 1)))
	srv.Add(list...)
	for _, c := range []struct {
		code codes.Code
		want string
	}{
		{codes.PermissionDenied, "deploy/audit/gke"}, {codes.NotFound, "configuration"}, {codes.Unauthenticated, "credentials"}, {codes.Internal, "entries.list of projects/shop-1234"},
	} {
		t.Run(c.code.String(), func(t *testing.T) {
			cfg := config(srv)
			cfg.Logs = []gke.Logs{{Resource: "projects/shop-1234", Start: source.Start(time.Now().Add(-3 * time.Hour).Format(time.RFC3339))}}
			p, err := gke.Build(cfg, quiet, prometheus.NewRegistry())
			if err != nil {
				t.Fatal(err)
			}
			sources, err := p.Sources(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			srv.Deny(status.Error(c.code, "no"))
			defer srv.Deny(nil)
			ctx, cancel := context.WithCancel(t.Context())
			w := newStore()
			k := &sink{s: w, rng: rand.New(rand.NewPCG(1, 1)), kill: cancel, norm: map[string]*auditlogingest.Normalizer{}, b: builder()}
			var all sync.WaitGroup
			all.Go(func() { k.run(ctx) })
			all.Go(func() {
				if err := sources[0].Run(ctx, k); err != nil {
					t.Error(err)
				}
			})
			if c.code != codes.Internal { // that the SDK repeats by itself for a while
				for began := time.Now(); time.Since(began) < 5*time.Second; time.Sleep(5 * time.Millisecond) {
					if err := sources[0].Ready(); err != nil && strings.Contains(err.Error(), c.want) {
						break
					}
				}
				if err := sources[0].Ready(); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("told as %v, want %q in it", err, c.want)
				}
			}
			srv.Deny(nil)
			for began := time.Now(); w.len() < len(names) && time.Since(began) < 10*time.Second; {
				time.Sleep(5 * time.Millisecond)
			}
			if err := sources[0].Ready(); err != nil {
				t.Errorf("not ready: %v", err)
			}
			cancel()
			all.Wait()
			w.exactlyOnce(t, names)
		})
	}
}

// TestLargePages: a page that is larger than is taken is asked for in parts.
func TestLargePages(t *testing.T) {
	srv := start(t, 1)
	const n = 200
	list, names := entries(t, n, time.Now().Add(-2*time.Hour), time.Minute, rand.New(rand.NewPCG(1, 1)))
	for _, e := range list {
		e.Trace = strings.Repeat("x", 500<<10) // the whole is 100 MB
	}
	srv.Add(list...)
	cfg := config(srv)
	cfg.Logs = []gke.Logs{{Resource: "projects/shop-1234", Start: source.Start(time.Now().Add(-3 * time.Hour).Format(time.RFC3339))}}
	w := newStore()
	began := time.Now()
	w.run(t, cfg, 1, 0, func() bool { return w.len() == n || time.Since(began) > 30*time.Second })
	w.exactlyOnce(t, names)
	if c := srv.Counts(); c.Lists < 4 {
		t.Errorf("%d reads", c.Lists)
	}
}

func TestUnknownClusters(t *testing.T) {
	srv := start(t, 1)
	srv.Subscription(subscriptionPath, 7*24*time.Hour)
	for _, cluster := range []string{"prod", "test", "ev.il", "bad *", ""} {
		text, _ := event(2, time.Now())
		e, err := gketest.Entry(text, "shop-1234", "europe-west1", cluster, 0)
		if err != nil {
			t.Fatal(err)
		}
		data, err := gketest.JSON(e)
		if err != nil {
			t.Fatal(err)
		}
		srv.Publish(subscriptionPath, data, data)
	}
	for _, c := range []struct {
		others  string
		taken   []string
		refused int
	}{
		{gke.OthersTake, []string{"shop", "shop-1234_europe-west1_ev.il", "shop-1234_europe-west1_test"}, 4},
		{gke.OthersRefuse, []string{"shop"}, 8},
	} {
		cfg := config(srv)
		cfg.Subscriptions = []gke.Subscription{{Subscription: subscriptionPath}}
		cfg.OtherClusters = c.others
		w := newStore()
		began := time.Now()
		w.run(t, cfg, 1, 0, func() bool { return srv.Left(subscriptionPath) == 0 || time.Since(began) > 10*time.Second })
		var got []string
		for name := range w.clusters {
			got = append(got, name)
		}
		slices.Sort(got)
		if !slices.Equal(got, c.taken) || w.refused[record.ReasonCluster] != c.refused {
			t.Errorf("%s: took %q and refused %v, want %q and %d", c.others, got, w.refused, c.taken, c.refused)
		}
		srv.Publish(subscriptionPath)
		for _, cluster := range []string{"prod", "test", "ev.il", "bad *", ""} { // again, for the next
			text, _ := event(2, time.Now())
			e, _ := gketest.Entry(text, "shop-1234", "europe-west1", cluster, 0)
			data, _ := gketest.JSON(e)
			srv.Publish(subscriptionPath, data, data)
		}
	}
}
