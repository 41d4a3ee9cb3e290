package auditlogingest

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/service"
	"picket/schemas"
)

// childConfig is the environment variable that makes the test binary an
// ingester: the tests that kill one run themselves as it.
const childConfig = "PICKET_TEST_INGESTER_CONFIG"

func TestMain(m *testing.M) {
	if path := os.Getenv(childConfig); path != "" {
		os.Args = []string{"picket-auditlog-ingest", "--config", path}
		os.Exit(service.Main(schemas.ServiceAudit, DefaultConfig(), Run))
	}
	goleak.VerifyTestMain(m,
		// What Google's libraries leave: see gke/gke_test.go.
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
		goleak.IgnoreTopFunction("cloud.google.com/go/pubsub/v2.(*messageIterator).streamKeepAliveHandler"),
		goleak.IgnoreAnyFunction("cloud.google.com/go/pubsub/v2.(*messageIterator).sender"),
		goleak.IgnoreAnyFunction("cloud.google.com/go/pubsub/v2.(*messageIterator).stop"))
}

// samples are the records that a real API server wrote.
func samples(t testing.TB) [][]byte {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "test", "testdata", "audit", "kube-apiserver-v1.34.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out [][]byte
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		out = append(out, append([]byte(nil), s.Bytes()...))
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// startNATS starts a NATS server with JetStream and Picket's streams, and
// returns its URL. dir keeps its data; port -1 is any. It has a password of
// its own, so that a client of some other test that has lost its server does
// not take this one for it.
func startNATS(t testing.TB, dir string, port int, limits bus.Limits) (*server.Server, string) {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, Username: "test", Password: dirPassword(dir), JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("NATS server not ready")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	url := fmt.Sprintf("nats://test:%s@%s", dirPassword(dir), s.Addr())
	b := connect(t, url)
	if err := b.Migrate(t.Context(), limits); err != nil {
		t.Fatal(err)
	}
	return s, url
}

func dirPassword(dir string) string {
	sum := sha256.Sum256(fmt.Append(nil, os.Getpid(), dir))
	return hex.EncodeToString(sum[:8])
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func connect(t testing.TB, url string) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(bus.Config{URL: url}, "test", quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// published is one row that arrived on PICKET_RAW.
type published struct {
	subject, auditID, stage string
	id                      id
	trimmed                 bool
}

// readRaw returns the audit rows in PICKET_RAW, in order, without taking them.
func readRaw(t testing.TB, b *bus.Bus) []published {
	t.Helper()
	return readRawFrom(t, b, new(uint64))
}

// readRawFrom is readRaw for what came after *last, which it moves.
func readRawFrom(t testing.TB, b *bus.Bus, last *uint64) []published {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	s, err := b.JS.Stream(ctx, schemas.StreamRaw)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var out []published
	for seq := max(1, info.State.FirstSeq, *last+1); seq <= info.State.LastSeq; seq++ {
		*last = seq
		m, err := s.GetMsg(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		_, _, c, err := schemas.ParseRawSubject(m.Subject)
		if err != nil {
			t.Fatal(err)
		}
		if c != schemas.Audit {
			continue
		}
		got, err := batch.Decode(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		for r := range got.Rows() {
			x, _ := got.Bytes16(schemas.EventID, r)
			out = append(out, published{m.Subject, got.Str(schemas.AuditID, r), got.Str(schemas.AuditStage, r), x, got.Bool(schemas.AuditTrimmed, r)})
		}
	}
	return out
}

// letters returns the dead letters.
func letters(t testing.TB, b *bus.Bus) []*jetstream.RawStreamMsg {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := b.JS.Stream(ctx, schemas.StreamDead)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var out []*jetstream.RawStreamMsg
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && info.State.Msgs > 0; seq++ {
		m, err := s.GetMsg(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// eventually waits until check returns "".
func eventually(t testing.TB, what string, check func() string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	last := ""
	for time.Now().Before(deadline) {
		if last = check(); last == "" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s: %s", what, last)
}

// healthTotal sums health_count over the reports of an action and reason.
func healthTotal(t testing.TB, b *bus.Bus, action, reason string) (n uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := b.JS.Stream(ctx, schemas.StreamRaw)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for seq := max(1, info.State.FirstSeq); seq <= info.State.LastSeq; seq++ {
		m, err := s.GetMsg(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, c, err := schemas.ParseRawSubject(m.Subject); err != nil || c != schemas.Health {
			continue
		}
		got, err := batch.Decode(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		for r := range got.Rows() {
			if got.Str(schemas.Action, r) == action && got.Str(schemas.HealthReason, r) == reason {
				n += got.Uint(schemas.HealthCount, r)
			}
		}
	}
	return n
}

// noise returns text that no compressor makes smaller.
func noise(t testing.TB, seed uint64, n int) string {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+/"[rnd.IntN(64)]
	}
	return string(b)
}
