package auditlogingest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"picket/internal/bus"
	"picket/internal/natsserver"
	"picket/internal/natsserver/natstest"
	"picket/internal/outbox"
	"picket/internal/service"
	"picket/schemas"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

// cloud is a place in a cloud as a deterministic log: records have times, many
// the same; some arrive late, and a reader that asks again from a time gets what
// it had once more.
type cloud struct {
	name  string
	at    []int // time of each record, in the order of arrival
	batch int   // how many arrive between two readings, at most

	mu      sync.Mutex
	arrived int
	rnd     *rand.Rand
}

const (
	cloudLate    = 20 // how late a record arrives at most
	cloudOverlap = 50 // how far a reader goes back
)

func newCloud(name string, n int, seed uint64) *cloud {
	c := &cloud{name: name, rnd: rand.New(rand.NewPCG(seed, 3)), batch: 12}
	for i := range n {
		c.at = append(c.at, max(0, i/3-c.rnd.IntN(cloudLate)))
	}
	return c
}

func (c *cloud) id(i int) string { return fmt.Sprintf("%s-%05d", c.name, i) }

// since returns what has arrived with times from t on, by time.
func (c *cloud) since(t int) []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.arrived = min(len(c.at), c.arrived+1+c.rnd.IntN(c.batch))
	var out []int
	for i := range c.arrived {
		if c.at[i] >= t {
			out = append(out, i)
		}
	}
	slices.SortStableFunc(out, func(a, b int) int { return cmp.Compare(c.at[a], c.at[b]) })
	return out
}

// reader is the Source of a cloud.
type reader struct {
	*cloud
	ended chan error
}

func (r *reader) Name() string { return r.name }
func (r *reader) Kind() string { return "eks" }
func (r *reader) Ready() error { return nil }

func (r *reader) Run(ctx context.Context, sink source.Sink) (err error) {
	defer func() {
		if r.ended != nil {
			r.ended <- err
		}
	}()
	var cursor int
	if _, err := sink.Checkpoint(&cursor); err != nil {
		return err
	}
	for ctx.Err() == nil {
		some := r.since(cursor - cloudOverlap)
		for _, i := range some {
			rec := source.Record{Item: record.Item{Text: auditLine(r.id(i), 10)}, CloudID: fmt.Sprint(i), Cluster: []string{"a", "b", ""}[i%3], Checkpoint: r.at[i]}
			if err := sink.Put(ctx, rec, nil); err != nil {
				return nil
			}
			cursor = max(cursor, r.at[i])
		}
		if len(some) == 0 {
			if err := sink.Mark(ctx, cursor); err != nil {
				return nil
			}
		}
		if sleep(ctx, 5*time.Millisecond) != nil {
			return nil
		}
	}
	return nil
}

// sky is a Provider of clouds.
type sky struct {
	clouds []*cloud
	ended  chan error
	fail   func() error
}

func (s *sky) Name() string { return "sky" }

func (s *sky) Sources(context.Context) ([]source.Source, error) {
	if s.fail != nil {
		if err := s.fail(); err != nil {
			return nil, err
		}
	}
	var out []source.Source
	for _, c := range s.clouds {
		out = append(out, &reader{c, s.ended})
	}
	return out, nil
}

var quickPace = pace{batch: 10 * time.Millisecond, renew: 100 * time.Millisecond, look: 50 * time.Millisecond, dead: 1200 * time.Millisecond, list: 10 * time.Second, again: 300 * time.Millisecond, grace: 500 * time.Millisecond}

// replica is an ingester in this process. Its connection is its life: when that
// is closed nothing that it does has any effect, as after a kill.
type replica struct {
	g      *ground
	bus    *bus.Bus
	cancel context.CancelFunc
	done   chan error
}

func startReplica(t testing.TB, url string, pr source.Provider, step func(r *replica, step string)) *replica {
	t.Helper()
	return startReplicaAs(t, bus.Config{URL: url}, testConfig(t, url), pr, step)
}

func startReplicaAs(t testing.TB, at bus.Config, cfg Config, pr source.Provider, step func(r *replica, step string)) *replica {
	t.Helper()
	return startReplicaWith(t, at, cfg, []source.Provider{pr}, step)
}

func startReplicaWith(t testing.TB, at bus.Config, cfg Config, prs []source.Provider, step func(r *replica, step string)) *replica {
	t.Helper()
	log := quiet()
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	b, err := bus.Connect(at, schemas.ServiceAudit, quiet())
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	box, err := outbox.Open(filepath.Join(cfg.StateDir, "spool"), cfg.SpoolBytes, schemas.ServiceAudit, b, quiet(), reg)
	if err != nil {
		t.Fatal(err)
	}
	g, err := newGround(cfg, box, &service.Runtime{Bus: b, Log: log, Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &replica{g: g, bus: b, cancel: cancel, done: make(chan error, 1)}
	if step != nil {
		g.step = func(s string) { step(r, s) }
	}
	go func() {
		r.done <- g.run(ctx, cfg, nil, prs, quickPace)
		g.seen.close()
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-r.done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("ingester: %v", err)
		}
		b.Close()
	})
	return r
}

// kill ends a replica as a signal 9 does: nothing of it reaches NATS any more.
func (r *replica) kill() {
	r.bus.NC.Close()
	r.cancel()
}

// everyOnce waits until every record of the clouds is in PICKET_RAW, and looks
// that none is there twice.
func everyOnce(t testing.TB, b *bus.Bus, clouds ...*cloud) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	got, last := map[string]int{}, uint64(0)
	for {
		for _, p := range readRawFrom(t, b, &last) {
			got[p.auditID]++
		}
		missing, all := "", 0
		for _, c := range clouds {
			for i := range c.at {
				all++
				if got[c.id(i)] == 0 && missing == "" {
					missing = c.id(i)
				}
			}
		}
		for id, n := range got {
			if n > 1 {
				t.Fatalf("%s was published %d times", id, n)
			}
		}
		if missing == "" {
			if len(got) != all {
				t.Fatalf("%d records, of %d", len(got), all)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d records, %s is missing", len(got), all, missing)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestPullSurvivesDeathAtEachStep kills an ingester at each step of storing a
// batch, and its successor at each step of taking over.
func TestPullSurvivesDeathAtEachStep(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"position and renew", "begin", "wal", "ids", "position", "send", "published", "renew"} {
		for _, second := range []string{"", "send", "again", "republished", "recalled", "rewritten"} {
			if second != "" && first != "position" {
				continue // the same as with ""
			}
			t.Run(first+"/"+second, func(t *testing.T) {
				t.Parallel()
				_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
				c := newCloud("log", 400, 1)
				died, renewed := make(chan string, 8), make(chan struct{})
				dieAt := func(step string, n int) func(*replica, string) {
					var mu sync.Mutex
					return func(r *replica, s string) {
						mu.Lock()
						defer mu.Unlock()
						if step == "position and renew" {
							// The second renewal that begins after the position
							// is written has one behind it that ended.
							if s == "position" && n > 0 {
								if n--; n == 0 {
									mu.Unlock()
									for range 2 {
										<-renewed
									}
									mu.Lock()
									r.kill()
									died <- s
								}
							}
							if s == "renew" {
								mu.Unlock()
								select {
								case renewed <- struct{}{}:
								case <-time.After(50 * time.Millisecond):
								}
								mu.Lock()
							}
							return
						}
						if s != step {
							return
						}
						if n--; n == 0 {
							r.kill()
							died <- s
						}
					}
				}
				startReplica(t, url, &sky{clouds: []*cloud{c}}, dieAt(first, 4))
				wait(t, died)
				if second != "" {
					startReplica(t, url, &sky{clouds: []*cloud{c}}, dieAt(second, 1))
					wait(t, died)
				}
				startReplica(t, url, &sky{clouds: []*cloud{c}}, nil)
				everyOnce(t, connect(t, url), c)
			})
		}
	}
}

func wait[T any](t testing.TB, c chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(30 * time.Second):
		t.Fatal("did not happen in 30 s")
	}
	return v
}

// TestPullOldOwnerWakes stops an owner's world at each step until another has
// taken its source over, and lets it go on then.
func TestPullOldOwnerWakes(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"begin", "wal", "ids", "position", "send", "published"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
			c := newCloud("log", 300, 2)
			asleep, wake := make(chan struct{}), make(chan struct{})
			var mu sync.Mutex
			n, sleeping := 3, false
			ended := make(chan error, 8)
			old := startReplica(t, url, &sky{clouds: []*cloud{c}, ended: ended}, func(_ *replica, s string) {
				mu.Lock()
				if s == at && !sleeping {
					if n--; n == 0 {
						sleeping = true
						close(asleep)
					}
				}
				stop := sleeping
				mu.Unlock()
				if stop { // renewing too
					<-wake
				}
			})
			<-asleep
			next := startReplica(t, url, &sky{clouds: []*cloud{c}}, nil)
			eventually(t, "taken over", func() string {
				if len(next.g.tally.lags.reports(time.Now())) == 0 {
					return "not yet"
				}
				return ""
			})
			everyOnce(t, connect(t, url), c)
			close(wake)
			wait(t, ended) // the source of the old owner is told at once
			eventually(t, "old owner has let go", func() string {
				if r := old.g.tally.lags.reports(time.Now()); len(r) != 0 {
					return fmt.Sprint(r)
				}
				return ""
			})
			time.Sleep(200 * time.Millisecond)
			everyOnce(t, connect(t, url), c)
		})
	}
}

// TestPullRandom lets several ingesters share several sources and kills them
// again and again, at random steps.
func TestPullRandom(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 9))
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	var clouds []*cloud
	records, kills := 400, 10
	for i := range 4 {
		clouds = append(clouds, newCloud(fmt.Sprintf("log.%d", i), records, seed+uint64(i)))
	}
	died := make(chan struct{}, 64)
	begin := func(life int) {
		var mu sync.Mutex
		startReplica(t, url, &sky{clouds: clouds}, func(r *replica, _ string) {
			mu.Lock()
			defer mu.Unlock()
			if life--; life == 0 {
				r.kill()
				died <- struct{}{}
			}
		})
	}
	for range 3 {
		begin(1 + rnd.IntN(150))
	}
	for i := range kills {
		wait(t, died)
		life := 1 + rnd.IntN(150)
		if i >= kills-3 {
			life = 0 // lives on
		}
		begin(life)
	}
	everyOnce(t, connect(t, url), clouds...)
}

func TestAssign(t *testing.T) {
	var names []string
	var all []uint64
	for i := range 20 {
		names = append(names, fmt.Sprint("source-", i))
		all = append(all, nameHash(names[i]))
	}
	even := func(members map[string][]uint64, low, high int) map[string]string {
		t.Helper()
		got := assign(names, members, nil)
		n := map[string]int{}
		for _, name := range names {
			n[got[name]]++
		}
		for m := range members {
			if n[m] < low || n[m] > high {
				t.Errorf("%d members: %s has %d of %d", len(members), m, n[m], len(names))
			}
		}
		return got
	}
	two := even(map[string][]uint64{"a": all, "b": all}, 10, 10)
	three := even(map[string][]uint64{"a": all, "b": all, "c": all}, 6, 7)
	moved := 0
	for _, name := range names {
		if three[name] != "c" && three[name] != two[name] {
			moved++
		}
	}
	if moved > 7 {
		t.Errorf("%d sources moved between the members that stayed", moved)
	}
	if got := assign(names, map[string][]uint64{"a": all, "b": all[:1]}, nil); got[names[5]] != "a" {
		t.Errorf("%s, whom only a can read, is for %q", names[5], got[names[5]])
	}
	if got := assign(names[:1], map[string][]uint64{"a": all, "b": all}, map[string]string{names[0]: "a"}); got[names[0]] != "b" {
		t.Errorf("a is silent about %s, and it is for %q", names[0], got[names[0]])
	}
}

// TestPullRights runs a source of several clusters with an ingester's own
// credentials, which name them.
func TestPullRights(t *testing.T) {
	t.Parallel()
	s, err := natsserver.Start(natsserver.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", MaxStore: 8 << 30, Cluster: "test", AuditClusters: []string{"a", "b"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	admin := natstest.Connect(t, s, schemas.ServiceAdmin)
	if err := admin.Migrate(t.Context(), bus.DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	c := newCloud("log", 100, 4)
	var mu sync.Mutex
	steps := map[string]int{}
	count := func(_ *replica, s string) {
		mu.Lock()
		steps[s]++
		mu.Unlock()
	}
	first := startReplicaAs(t, natstest.Config(s, schemas.ServiceAudit), testConfig(t, s.URL()), &sky{clouds: []*cloud{c}}, count)
	everyOnce(t, admin, c)
	first.cancel() // in order: what it has is free at once
	second := startReplicaAs(t, natstest.Config(s, schemas.ServiceAudit), testConfig(t, s.URL()), &sky{clouds: []*cloud{c}}, count)
	eventually(t, "the second reads", func() string {
		if len(second.g.tally.lags.reports(time.Now())) == 0 {
			return "not yet"
		}
		return ""
	})
	eventually(t, "the second has read", func() string {
		mu.Lock()
		defer mu.Unlock()
		if steps["rewritten"] < 2 || second.g.tally.duplicates.total.Load() == 0 {
			return fmt.Sprint(steps)
		}
		return ""
	})
	everyOnce(t, admin, c)
	clusters := map[string]bool{}
	for _, p := range readRaw(t, admin) {
		cluster, _, _, err := schemas.ParseRawSubject(p.subject)
		if err != nil {
			t.Fatal(err)
		}
		clusters[cluster] = true
	}
	if len(clusters) != 3 || !clusters["a"] || !clusters["b"] || !clusters["test"] {
		t.Errorf("clusters %v", clusters)
	}
}

// TestPullShared: ingesters share sources evenly, and one that joins or leaves
// gets or gives its part without any record lost or repeated.
func TestPullShared(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	var clouds []*cloud
	for i := range 6 {
		clouds = append(clouds, newCloud(fmt.Sprint("log-", i), 300, uint64(i)))
	}
	have := func(rs ...*replica) string {
		for _, r := range rs {
			if n := len(r.g.tally.lags.reports(time.Now())); n != len(clouds)/len(rs) {
				return fmt.Sprintf("one of %d has %d", len(rs), n)
			}
		}
		return ""
	}
	a := startReplica(t, url, &sky{clouds: clouds}, nil)
	eventually(t, "alone", func() string { return have(a) })
	b := startReplica(t, url, &sky{clouds: clouds}, nil)
	eventually(t, "two", func() string { return have(a, b) })
	c := startReplica(t, url, &sky{clouds: clouds}, nil)
	eventually(t, "three", func() string { return have(a, b, c) })
	b.kill()
	eventually(t, "two are left", func() string { return have(a, c) })
	everyOnce(t, connect(t, url), clouds...)
}

// TestPullBackPressure fills PICKET_RAW: the sources wait, keep their owner, and
// lose nothing when there is room again.
func TestPullBackPressure(t *testing.T) {
	t.Parallel()
	limits := bus.DefaultLimits()
	limits.RawBytes = 1 << 10
	_, url := startNATS(t, t.TempDir(), -1, limits)
	c := newCloud("log", 200, 5)
	r := startReplica(t, url, &sky{clouds: []*cloud{c}}, nil)
	eventually(t, "waits", func() string {
		if n := r.g.tally.waits.total.Load(); n < 5 {
			return fmt.Sprint(n, " waits")
		}
		return ""
	})
	b := connect(t, url)
	if err := b.Migrate(t.Context(), bus.DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	everyOnce(t, b, c)
	kv, err := b.JS.KeyValue(t.Context(), schemas.BucketCheckpoints)
	if err != nil {
		t.Fatal(err)
	}
	e, err := kv.Get(t.Context(), sourcePrefix+sourceToken("log"))
	if err != nil {
		t.Fatal(err)
	}
	var pos position
	if err := json.Unmarshal(e.Value(), &pos); err != nil || pos.Epoch != 1 {
		t.Errorf("the source changed its owner: %s (%v)", e.Value(), err)
	}
}
