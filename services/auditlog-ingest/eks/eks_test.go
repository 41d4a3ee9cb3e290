package eks_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"go.uber.org/goleak"

	"picket/services/auditlog-ingest/eks"
	"picket/services/auditlog-ingest/eks/ekstest"
	"picket/services/auditlog-ingest/source"
)

func TestMain(m *testing.M) {
	// Started by an init of Google's clients, which the ingester's normalizer comes with.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

const (
	account = "123456789012"
	region  = "eu-central-1"
	group   = "/aws/eks/prod/cluster"
	stream  = "kube-apiserver-audit-0123456789abcdef"
)

// ledger is what a crash of the ingester leaves: the events that are safe, and
// the checkpoint that was written down with them.
type ledger struct {
	mu         sync.Mutex
	number     map[string]int // of an event's id: its place among those taken
	repeats    int
	farthest   int // how many events there were between one and its repetition, at most
	texts      map[string]string
	arrived    map[string]time.Time
	checkpoint json.RawMessage
	gaps       []string
}

func newLedger() *ledger {
	return &ledger{number: map[string]int{}, texts: map[string]string{}, arrived: map[string]time.Time{}}
}

func (l *ledger) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.number)
}

var errCrash = errors.New("crash")

// sink is a source.Sink that takes batches of 100 into its ledger, and stops
// with all that is not there yet when crash reaches zero.
type sink struct {
	*ledger
	batch []source.Record
	mark  json.RawMessage
	marks int
	crash int           // records until then; negative: never
	wait  chan struct{} // if not nil, Put waits for it
}

func (s *sink) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.batch {
		if n, ok := s.number[r.CloudID]; ok {
			s.repeats++
			s.farthest = max(s.farthest, len(s.number)-n)
			continue
		}
		s.number[r.CloudID] = len(s.number)
		s.texts[r.CloudID], s.arrived[r.CloudID] = string(r.Text), r.Arrived
	}
	s.batch = s.batch[:0]
	if s.mark != nil {
		s.checkpoint = s.mark
	}
}

func (s *sink) Put(ctx context.Context, r source.Record, done func()) error {
	if s.wait != nil {
		select {
		case <-s.wait:
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if s.crash == 0 {
		return errCrash
	}
	if r.Cluster == "" {
		panic("a record without its cluster")
	}
	s.crash--
	if s.batch = append(s.batch, r); len(s.batch) == 100 {
		s.flush()
	}
	return nil
}

func (s *sink) Refuse(context.Context, source.Record, int64, error, func()) error {
	panic("the source leaves judging to the sink")
}

func (s *sink) Mark(ctx context.Context, checkpoint any) error {
	raw, err := json.Marshal(checkpoint)
	if err != nil {
		return err
	}
	s.mark = raw
	if s.marks++; s.crash < 0 || s.marks%2 == 0 { // a crash finds marks that are not safe yet
		s.flush()
	}
	return ctx.Err()
}

func (s *sink) Checkpoint(v any) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.checkpoint == nil {
		return false, nil
	}
	return true, json.Unmarshal(s.checkpoint, v)
}

func (s *sink) Gap(message string, attrs ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gaps = append(s.gaps, fmt.Sprintln(append([]any{message}, attrs...)...))
}

// bench is a server and what a provider needs to read from it.
type bench struct {
	*ekstest.Server
	cfg  eks.Config
	most int
	reg  *prometheus.Registry
	log  *slog.Logger
	key  string
}

func newBench(t *testing.T, seed uint64) *bench {
	s := ekstest.New(t, seed)
	b := &bench{Server: s, cfg: eks.DefaultConfig(), most: 50_000, log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	b.cfg.Region, b.cfg.Endpoint = region, s.URL
	b.cfg.Start = source.StartBeginning
	b.cfg.Poll, b.cfg.Overlap, b.cfg.RequestsPerSecond = 100*time.Millisecond, 3*time.Second, 10_000
	b.cfg.Clusters = []eks.Cluster{{Name: "prod"}}
	// Nothing of this machine's AWS configuration, if it has one.
	for _, name := range []string{"AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ENDPOINT_URL", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_ENDPOINT_URL_STS", s.URL)
	id, secret := s.Key(account)
	b.key = id
	t.Setenv("AWS_ACCESS_KEY_ID", id)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	return b
}

// sources returns the sources of a new provider.
func (b *bench) sources(t *testing.T) []source.Source {
	t.Helper()
	b.reg = prometheus.NewRegistry()
	p, err := eks.Hasten(b.cfg, b.log, b.reg, b.most)
	if err != nil {
		t.Fatal(err)
	}
	all, err := p.Sources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// start runs a source into a ledger until stop is called.
func start(t *testing.T, src source.Source, k *sink) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx, k) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !check(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// events makes n events, one every step from at on, that are shown at once.
func events(name string, n int, at time.Time, step time.Duration) []ekstest.Event {
	out := make([]ekstest.Event, n)
	for i := range out {
		when := at.Add(time.Duration(i) * step)
		out[i] = ekstest.Event{ID: fmt.Sprintf("%s-%06d", name, i), Stream: stream, Message: fmt.Sprintf(`{"auditID":"%s-%d"}`, name, i), Time: when, Shown: when}
	}
	return out
}

// TestEveryEventOnce reads 100,000 events, half of them history and half while
// they happen, late and many in one millisecond, with every fault on, and with
// crashes.
func TestEveryEventOnce(t *testing.T) {
	const total, live = 100_000, 8 * time.Second
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 2))
	b := newBench(t, seed)
	b.most = 5_000
	b.Role("arn:aws:iam::"+account+":role/picket-audit", "shared-secret-of-two")
	b.cfg.Clusters[0].RoleARN, b.cfg.Clusters[0].ExternalID = "arn:aws:iam::"+account+":role/picket-audit", "shared-secret-of-two"
	b.SessionLife(90 * time.Second)
	now := time.Now()
	g := b.Group(account, region, group, now.Add(-time.Hour), 0)
	b.Group(account, region, group+"-other", now, 0)
	all := make([]ekstest.Event, total)
	filler := strings.Repeat("x", 400)
	for i := range all {
		e := &all[i]
		e.ID, e.Stream = fmt.Sprintf("%056d", i), fmt.Sprint(stream, i%3)
		e.Message = fmt.Sprintf(`{"auditID":"%d","requestURI":"%s"}`, i, filler[:rnd.IntN(len(filler))])
		if i < total/2 {
			e.Time = now.Add(-time.Duration(rnd.Int64N(int64(time.Hour))))
			e.Shown = e.Time
			continue
		}
		// Bursts within a millisecond; a third comes late, up to 2.5 of 3 s.
		e.Time = now.Add(time.Duration(rnd.Int64N(int64(live)))).Truncate(20 * time.Millisecond)
		late := time.Duration(rnd.Int64N(int64(300 * time.Millisecond)))
		if rnd.IntN(3) == 0 {
			late = time.Duration(rnd.Int64N(int64(2500 * time.Millisecond)))
		}
		e.Shown = e.Time.Add(late)
	}
	g.Put(all...)
	g.Put(ekstest.Event{ID: "authenticator", Stream: "authenticator-0123", Message: "not an audit record", Time: now, Shown: now})
	b.SetFaults(ekstest.Faults{Throttle: 0.1, Fail: 0.03, Cut: 0.04, Empty: 0.1, Repeat: 0.05, Shuffle: 0.2, Token: 0.08, Credentials: 0.03, Delay: 5 * time.Millisecond, Page: 3000})
	l := newLedger()
	crashes := 0
	for deadline := now.Add(time.Minute); l.size() < total; {
		k := &sink{ledger: l, crash: 1 + rnd.IntN(40_000)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		src := b.sources(t)[0]
		go func() { done <- src.Run(ctx, k) }()
	running:
		for {
			select {
			case err := <-done:
				if !errors.Is(err, errCrash) {
					t.Fatalf("seed %d: Run: %v", seed, err)
				}
				crashes++
				break running
			case <-time.After(20 * time.Millisecond):
				late := time.Now().After(deadline)
				if late || l.size() == total {
					cancel()
					<-done
				}
				if late {
					t.Fatalf("seed %d: %d events of %d after a minute; checkpoint %s; answers %v", seed, l.size(), total, l.checkpoint, b.Answers())
				}
				if l.size() == total {
					break running
				}
			}
		}
		cancel()
	}
	for _, e := range all {
		if l.texts[e.ID] != e.Message || l.arrived[e.ID].UnixMilli() != e.Shown.UnixMilli() {
			t.Fatalf("seed %d: event %s is %.80q, arrived %v; want %.80q, %v", seed, e.ID, l.texts[e.ID], l.arrived[e.ID], e.Message, e.Shown)
		}
	}
	if len(l.number) != total {
		t.Fatalf("seed %d: %d events, want %d: some are no audit records", seed, len(l.number), total)
	}
	answers := b.Answers()
	for _, fault := range []string{"ThrottlingException", "InternalFailure", "cut", "empty", "repeat", "shuffle", "InvalidParameterException", "ExpiredTokenException", "AssumeRole"} {
		if answers[fault] == 0 {
			t.Errorf("seed %d: the server never answered %s: nothing is proven of it", seed, fault)
		}
	}
	if crashes == 0 {
		t.Errorf("seed %d: no crash", seed)
	}
	t.Logf("%d events once each in %v; %d crashes, %d repetitions dropped, the farthest after %d other events; answers %v", total, time.Since(now).Round(time.Millisecond), crashes, l.repeats, l.farthest, answers)
}

// TestSlowShard has a log group that is throttled for good, one whose endpoint
// never answers and one whose sink takes nothing, beside one that is well.
func TestSlowShard(t *testing.T) {
	b := newBench(t, 1)
	deaf, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	now := time.Now()
	b.cfg.Clusters = []eks.Cluster{{Name: "well"}, {Name: "throttled"}, {Name: "full"}, {Name: "deaf", Endpoint: "http://" + deaf.Addr().String()}}
	for _, name := range []string{"well", "throttled", "full"} {
		g := b.Group(account, region, "/aws/eks/"+name+"/cluster", now.Add(-time.Minute), 0)
		g.Put(events(name, 1000, now.Add(-time.Minute), 60*time.Millisecond)...)
		if name == "throttled" {
			g.Fail("ThrottlingException")
		}
	}
	ledgers := map[string]*ledger{}
	sources := map[string]source.Source{}
	for _, src := range b.sources(t) {
		name := strings.TrimPrefix(src.Name(), "eks-")
		ledgers[name], sources[name] = newLedger(), src
		k := &sink{ledger: ledgers[name], crash: -1}
		if name == "full" {
			k.wait = make(chan struct{})
		}
		start(t, src, k)
	}
	eventually(t, "all events of the cluster that is well", func() bool { return ledgers["well"].size() == 1000 })
	if err := sources["well"].Ready(); err != nil {
		t.Errorf("the source that is well: %v", err)
	}
	eventually(t, "the throttled source says so", func() bool {
		err := sources["throttled"].Ready()
		return err != nil && strings.Contains(err.Error(), "ThrottlingException")
	})
	if err := sources["deaf"].Ready(); err == nil {
		t.Error("a source without answers is ready")
	}
	for _, name := range []string{"throttled", "full", "deaf"} {
		if n := ledgers[name].size(); n != 0 {
			t.Errorf("%s: %d events", name, n)
		}
	}
}

// TestCredentials changes keys, sessions and roles under a running source, and
// looks for secrets in all that it tells.
func TestCredentials(t *testing.T) {
	b := newBench(t, 3)
	var told safeBuffer
	b.log = slog.New(slog.NewTextHandler(&told, &slog.HandlerOptions{Level: slog.LevelDebug}))
	b.Revoke(b.key)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	file := filepath.Join(t.TempDir(), "credentials")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	const role = "arn:aws:iam::210987654321:role/picket-audit"
	now := time.Now()
	g := b.Group("210987654321", region, group, now.Add(-time.Minute), 0)
	b.cfg.Clusters[0].RoleARN, b.cfg.Clusters[0].ExternalID = role, "x-ternal-0815"
	src := b.sources(t)[0]
	l := newLedger()
	start(t, src, &sink{ledger: l, crash: -1})
	var secrets []string
	use := func(id, secret string) {
		secrets = append(secrets, secret)
		// In one step, as who rotates keys does.
		if err := os.WriteFile(file+".new", fmt.Appendf(nil, "[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", id, secret), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	says := func(parts ...string) {
		t.Helper()
		defer func() {
			if t.Failed() {
				t.Logf("it says %v", src.Ready())
			}
		}()
		eventually(t, "the source says "+strings.Join(parts, ", "), func() bool {
			err := src.Ready()
			for _, p := range parts {
				if err == nil || !strings.Contains(err.Error(), p) {
					return false
				}
			}
			return true
		})
	}
	n := 0
	reads := func(what string) {
		t.Helper()
		n++
		at := time.Now()
		g.Put(ekstest.Event{ID: fmt.Sprint("e", n), Stream: stream, Message: "{}", Time: at, Shown: at})
		eventually(t, "an event, after "+what, func() bool { return l.size() == n })
	}

	says("AssumeRole") // there are no credentials at all
	id, secret := b.Key(account)
	wrong, secretOfIt := b.Key(account)
	use(wrong, "not the secret of that key, "+secretOfIt[:4])
	says("AssumeRole", "InvalidSignatureException")
	use(id, secret)
	says("AssumeRole", "AccessDenied", "trust.json", "external_id of cluster prod")
	b.Role(role, "x-ternal-0815")
	reads("the role was made")
	b.SetFaults(ekstest.Faults{Credentials: 0.3})
	reads("sessions ended early")
	b.SetFaults(ekstest.Faults{})
	b.SessionLife(time.Second) // shorter than the minute that is kept clear: each request has its own
	next, nextSecret := b.Key(account)
	use(next, nextSecret)
	b.Revoke(id)
	reads("the key was changed")
	g.Fail("AccessDeniedException")
	says("AccessDeniedException", "logs:FilterLogEvents", "policy.json")
	g.Fail("")
	reads("access was given back")

	families, err := b.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&told, f); err != nil {
			t.Fatal(err)
		}
	}
	text := told.String()
	if !strings.Contains(text, `outcome="credentials"`) || !strings.Contains(text, "AccessDenied") {
		t.Errorf("neither metric nor log tells of the failures:\n%s", text)
	}
	for _, s := range append(secrets, "x-ternal-0815", "ASIA0", "Canonical") {
		if strings.Contains(text, s) {
			t.Errorf("%q is in what the source tells:\n%s", s, text)
		}
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestStart says where a source without a checkpoint begins.
func TestStart(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		start source.Start
		want  int
	}{
		{source.StartNow, 10},
		{source.StartBeginning, 110},
		{source.Start(now.Add(-30 * time.Minute).UTC().Format(time.RFC3339Nano)), 60},
		{"2001-01-01T00:00:00Z", 110},
	} {
		t.Run(string(tt.start[:3]), func(t *testing.T) {
			b := newBench(t, 4)
			b.cfg.Start = tt.start
			g := b.Group(account, region, group, now.Add(-30*24*time.Hour), 7)
			g.Put(events("old", 100, now.Add(-time.Hour).Add(time.Second), 36*time.Second)...)
			g.Put(events("new", 10, time.Now().Add(300*time.Millisecond), 20*time.Millisecond)...)
			l := newLedger()
			stop := start(t, b.sources(t)[0], &sink{ledger: l, crash: -1})
			eventually(t, "the events", func() bool { return l.size() >= tt.want })
			stop()
			if l.size() != tt.want || len(l.gaps) > 0 {
				t.Errorf("%d events, want %d; gaps %q", l.size(), tt.want, l.gaps)
			}
		})
	}
}

// TestGap says what is told of events that were deleted before they were read.
func TestGap(t *testing.T) {
	now := time.Now()
	day := 24 * time.Hour
	for _, tt := range []struct {
		name      string
		created   time.Time
		retention int
		read      time.Time
		from, to  time.Time
		message   string
	}{
		{"retention", now.Add(-30 * day), 1, now.Add(-3 * day), now.Add(-3 * day), now.Add(-day), "retention ended"},
		{"created anew", now.Add(-time.Hour), 7, now.Add(-2 * day), now.Add(-2 * day), now.Add(-time.Hour), "created anew"},
		{"in time", now.Add(-30 * day), 7, now.Add(-2 * day), time.Time{}, time.Time{}, ""},
		{"kept for ever", now.Add(-1000 * day), 0, now.Add(-300 * day), time.Time{}, time.Time{}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, 5)
			g := b.Group(account, region, group, tt.created, tt.retention)
			g.Put(events("left", 10, now.Add(-time.Minute), time.Second)...)
			g.Put(events("gone", 10, now.Add(-60*time.Hour), time.Second)...)
			l := newLedger()
			ms := tt.read.UnixMilli()
			l.checkpoint = fmt.Appendf(nil, `{"read":[%d,%d,%d]}`, ms, ms, ms)
			for range 2 { // the second start does not tell it again
				stop := start(t, b.sources(t)[0], &sink{ledger: l, crash: -1})
				eventually(t, "what is left", func() bool { return l.size() >= 10 })
				stop()
			}
			if tt.message == "" {
				if len(l.gaps) > 0 {
					t.Errorf("gaps %q", l.gaps)
				}
				return
			}
			if len(l.gaps) != 1 || !strings.Contains(l.gaps[0], tt.message) || !strings.Contains(l.gaps[0], "from "+tt.from.UTC().Format("2006-01-02 15:04")) || !strings.Contains(l.gaps[0], "to "+tt.to.UTC().Format("2006-01-02 15:04")) {
				t.Errorf("gaps %q, want one from %v to %v", l.gaps, tt.from.UTC(), tt.to.UTC())
			}
		})
	}
}

// TestClocks has a clock here that is ten minutes before the cloud's, and one
// that is ten behind: a late event is not passed by, and none has to wait.
func TestClocks(t *testing.T) {
	for _, off := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		t.Run(off.String(), func(t *testing.T) {
			b := newBench(t, 6)
			b.Clock = func() time.Time { return time.Now().Add(off) }
			now := b.Clock()
			g := b.Group(account, region, group, now.Add(-time.Hour), 0)
			g.Put(events("seen", 10, now.Add(-time.Minute), time.Second)...)
			late := events("late", 10, now.Add(-time.Second), 100*time.Millisecond)
			for i := range late {
				late[i].Shown = late[i].Time.Add(2 * time.Second)
			}
			g.Put(late...)
			l := newLedger()
			start(t, b.sources(t)[0], &sink{ledger: l, crash: -1})
			eventually(t, "all events", func() bool { return l.size() == 20 })
		})
	}
}

// TestMissing begins before the log group is there.
func TestMissing(t *testing.T) {
	b := newBench(t, 7)
	src := b.sources(t)[0]
	l := newLedger()
	if err := src.Ready(); err == nil {
		t.Error("ready before anything was read")
	}
	start(t, src, &sink{ledger: l, crash: -1})
	eventually(t, "the source says what is missing", func() bool {
		err := src.Ready()
		return err != nil && strings.Contains(err.Error(), "switch the cluster's audit log on")
	})
	now := time.Now()
	// More names that begin alike than stand on a page.
	for _, name := range []string{group + "-1", group + "-2", group + "-3", "/aws/eks/prod/clustera", group} {
		b.Group(account, region, name, now.Add(-time.Hour), 0).Put(events(name, 10, now.Add(-time.Minute), time.Second)...)
	}
	eventually(t, "its events", func() bool { return l.size() == 10 && src.Ready() == nil })
	for id := range l.number {
		if !strings.HasPrefix(id, group+"-0000") {
			t.Errorf("event %s of another log group", id)
		}
	}
}
