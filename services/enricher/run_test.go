package enricher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"picket/internal/batch"
	"picket/internal/bus"
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
}

func build(c schemas.Class, rows ...event) *batch.Batch {
	b := batch.NewBuilder(c, schemas.RawColumns(c))
	for i, r := range rows {
		b.Bytes16(schemas.EventID, schemas.Hash128(c.String(), strconv.Itoa(i)))
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

func newSender(t testing.TB, b *bus.Bus) *sender { return &sender{t, b, newRunID(), 1} }

func (s *sender) send(subject string, data []byte, rows int, header ...string) (id string) {
	s.t.Helper()
	id = schemas.BatchIDOf(s.run, s.next)
	s.next++
	m := nats.NewMsg(subject)
	m.Data = data
	m.Header.Set(schemas.HeaderBatchID, id)
	m.Header.Set(schemas.HeaderRows, strconv.Itoa(rows))
	for i := 0; i+1 < len(header); i += 2 {
		m.Header.Set(header[i], header[i+1])
	}
	if _, err := s.bus.JS.PublishMsg(context.Background(), m, jetstream.WithMsgID(id)); err != nil {
		s.t.Fatal(err)
	}
	return id
}

// drain collects what PICKET_EVENTS has for the sink, until n batches came or
// time is out.
func drain(t testing.TB, b *bus.Bus, n int, patience time.Duration) []jetstream.Msg {
	t.Helper()
	cons, err := b.JS.Consumer(context.Background(), schemas.StreamEvents, schemas.DurableSink)
	if err != nil {
		t.Fatal(err)
	}
	var out []jetstream.Msg
	for deadline := time.Now().Add(patience); len(out) < n && time.Now().Before(deadline); {
		ms, err := cons.Fetch(n-len(out), jetstream.FetchMaxWait(200*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		for m := range ms.Messages() {
			if err := m.Ack(); err != nil {
				t.Fatal(err)
			}
			if _, c, err := schemas.ParseEventsSubject(m.Subject()); err == nil && c != schemas.Health {
				out = append(out, m)
			}
		}
	}
	return out
}

func testConfig(url string) Config {
	cfg := DefaultConfig()
	cfg.NATS.URL = url
	cfg.Cluster = "test"
	cfg.Log.Level, cfg.Log.Format = "warn", "text"
	return cfg
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
	url, b := startNATS(t)
	stop := background(t, func(ctx context.Context) error { return Run(ctx, testConfig(url)) })
	s := newSender(t, b)
	id := s.send("picket.raw.test.n1.process", encoded(t, schemas.Process,
		event{cluster: "test", node: "n1"}, event{cluster: "test", node: "n1", podUID: "p", containerID: "c"}), 2)
	got := drain(t, b, 1, 10*time.Second)
	if len(got) != 1 {
		t.Fatalf("%d batches", len(got))
	}
	h := got[0].Headers()
	for k, want := range map[string]string{schemas.HeaderBatchID: id, "Nats-Msg-Id": id, schemas.HeaderRows: "2",
		schemas.HeaderCumulative: "2", schemas.HeaderBatch: "1", schemas.HeaderVersion: "1", schemas.HeaderReplayed: ""} {
		if h.Get(k) != want {
			t.Errorf("header %s is %q, want %q", k, h.Get(k), want)
		}
	}
	if want := schemas.EventsSubject("test", "n1", schemas.Process); got[0].Subject() != want {
		t.Errorf("subject %s, want %s", got[0].Subject(), want)
	}
	e, err := batch.Decode(got[0].Data())
	if err != nil {
		t.Fatal(err)
	}
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

const childURL = "PICKET_TEST_ENRICHER_NATS"

// child is the enricher in a process of its own: the test binary, started
// again with childURL set.
func child(url string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := Run(ctx, testConfig(url)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func startChild(t *testing.T, url string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childURL+"="+url)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return cmd
}
