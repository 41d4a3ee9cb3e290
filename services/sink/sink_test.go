package sink_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/clickhousebin"
	"picket/internal/clickhousebin/clickhousetest"
	"picket/internal/config"
	"picket/internal/natsserver"
	"picket/internal/natsserver/natstest"
	"picket/internal/service"
	"picket/internal/store"
	"picket/schemas"
	"picket/services/sink"
)

// TestMain is also the main function of the sinks that tests kill.
func TestMain(m *testing.M) {
	if cfg := os.Getenv("SINK_TEST_CONFIG"); cfg != "" {
		os.Args = []string{"picket-sink", "--config", cfg}
		os.Exit(service.Main("sink", sink.DefaultConfig(), sink.Run))
	}
	goleak.VerifyTestMain(m)
}

// configFile writes a sink's configuration as a user would.
func configFile(t *testing.T, ns *natsserver.Server, clickhouse string) string {
	t.Helper()
	path := t.TempDir() + "/sink.yaml"
	n := natstest.Config(ns, schemas.ServiceSink)
	text := fmt.Sprintf("nats:\n  url: %s\n  credentials_file: %s\nlog:\n  format: text\n  level: warn\nclickhouse:\n  url: %s\ninsert:\n  flush_interval: 300ms\n  max_rows: 50000\ncluster: c1\n", n.URL, n.CredentialsFile, clickhouse)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// spawn starts a sink in a process of its own.
func spawn(t *testing.T, config string) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "SINK_TEST_CONFIG="+config)
	c.Stdout, c.Stderr = t.Output(), t.Output()
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}

func migrated(t *testing.T, url string) *store.DB {
	t.Helper()
	cfg := store.DefaultConfig()
	cfg.URL = url
	log, _, err := service.OpenLog(service.LogConfig{Level: "error", Format: "text"})
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	if err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

func query(t *testing.T, db *store.DB, sql string) string {
	t.Helper()
	r, err := db.Query(context.Background(), sql, "TabSeparated")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// publisher publishes batches as the enricher does.
type publisher struct {
	t    *testing.T
	bus  *bus.Bus
	run  string
	n    uint64
	cum  map[string]uint64
	sent map[schemas.Class]int
}

func (p *publisher) publish(c schemas.Class, rows int) {
	p.t.Helper()
	p.n++
	id := schemas.BatchIDOf(p.run, p.n)
	b := batch.NewBuilder(c, schemas.Columns(c))
	now := time.Now().UnixNano()
	for i := range rows {
		b.Bytes16(schemas.EventID, schemas.Hash128(id, strconv.Itoa(i)))
		b.Str(schemas.Action, "test")
		b.Str(schemas.Cluster, "c1")
		b.Str(schemas.Node, "n"+strconv.FormatUint(p.n%7, 10))
		b.Int64(schemas.EventTime, now+int64(i))
		b.Uint32(schemas.ProcessPID, uint32(i))
		b.Str(schemas.ProcessName, "sh")
		b.Str(schemas.ProcessArgs, "-c run "+strconv.Itoa(i%100))
		b.EndRow()
	}
	enc, err := batch.Encode(b.Batch())
	if err != nil {
		p.t.Error(err)
		return
	}
	for k, e := range enc {
		m := nats.NewMsg(schemas.EventsSubject("c1", "n"+strconv.FormatUint(p.n%7, 10), c))
		m.Data = e.Data
		p.cum[m.Subject] += uint64(e.Batch.Rows())
		m.Header.Set(schemas.HeaderRun, p.run)
		m.Header.Set(schemas.HeaderBatchID, id+"-"+strconv.Itoa(k))
		m.Header.Set(schemas.HeaderRows, strconv.Itoa(e.Batch.Rows()))
		m.Header.Set(schemas.HeaderCumulative, strconv.FormatUint(p.cum[m.Subject], 10))
		if _, err := p.bus.JS.PublishMsg(context.Background(), m); err != nil {
			p.t.Error(err)
			return
		}
	}
	p.sent[c] += rows
}

func newPublisher(t *testing.T, ns *natsserver.Server) *publisher {
	return &publisher{t: t, bus: natstest.Connect(t, ns, schemas.ServiceEnricher), run: strconv.FormatInt(time.Now().UnixNano(), 16), cum: map[string]uint64{}, sent: map[schemas.Class]int{}}
}

func settled(t *testing.T, b *bus.Bus, d time.Duration) {
	t.Helper()
	for deadline := time.Now().Add(d); ; time.Sleep(50 * time.Millisecond) {
		c, err := b.JS.Consumer(context.Background(), schemas.StreamEvents, schemas.DurableSink)
		if err != nil {
			t.Fatal(err)
		}
		s, err := b.JS.Stream(context.Background(), schemas.StreamEvents)
		if err != nil {
			t.Fatal(err)
		}
		// NumPending alone does not tell: the server counts a message there some
		// time after it took it.
		i := c.CachedInfo()
		if i.Delivered.Stream >= s.CachedInfo().State.LastSeq && i.NumPending == 0 && i.NumAckPending == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s %d messages wait and %d are under way", d, i.NumPending, i.NumAckPending)
		}
	}
}

// A million rows, two sinks, and SIGKILL for one of them or for ClickHouse
// every now and then: every row is stored once.
func TestMillionRows(t *testing.T) {
	const total, rows = 1_000_000, 1000
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))

	data := t.TempDir()
	server := clickhousetest.Start(t, data)
	address := strings.TrimPrefix(server.URL, "http://")
	db := migrated(t, server.URL)
	ns := natstest.Start(t)
	admin := natstest.Connect(t, ns, schemas.ServiceAdmin)
	impatient(t, admin)
	file := configFile(t, ns, server.URL)

	pub := newPublisher(t, ns)
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for i := range total / rows {
			pub.publish(schemas.Classes()[i%len(schemas.Classes())], rows)
		}
	})
	start := time.Now()
	sinks := []*exec.Cmd{spawn(t, file), spawn(t, file)}
	t.Cleanup(func() {
		for _, s := range sinks {
			_ = s.Process.Kill()
			_ = s.Wait()
		}
	})
	const kills = 12
	for range kills {
		time.Sleep(time.Duration(300+r.IntN(1500)) * time.Millisecond)
		if r.IntN(4) == 0 {
			if err := syscall.Kill(server.Pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-server.Done()
			var err error
			if server, err = clickhousebin.Start(t.Context(), clickhousebin.Options{Data: data, Listen: address, Binary: clickhousetest.Binary(t)}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = server.Stop(context.Background()) })
			continue
		}
		i := r.IntN(len(sinks))
		if err := sinks[i].Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = sinks[i].Wait() // killed
		sinks[i] = spawn(t, file)
	}
	publishing.Wait()
	settled(t, admin, 3*time.Minute)
	t.Logf("%d rows in %s, %d kills", total, time.Since(start).Round(time.Millisecond), kills)
	for _, c := range schemas.Classes() {
		want := fmt.Sprintf("%d\t%d", pub.sent[c], pub.sent[c])
		if got := query(t, db, "SELECT count(), uniqExact(event_id) FROM "+c.Table()+" WHERE action = 'test'"); got != want {
			t.Errorf("%s has rows and distinct ids %q, want %q", c, got, want)
		}
	}
}

// impatient makes the sink's durable deliver again soon what a killed sink
// had.
func impatient(t *testing.T, b *bus.Bus) {
	t.Helper()
	c, err := b.JS.Consumer(context.Background(), schemas.StreamEvents, schemas.DurableSink)
	if err != nil {
		t.Fatal(err)
	}
	cfg := c.CachedInfo().Config
	cfg.AckWait = 3 * time.Second
	if _, err := b.JS.UpdateConsumer(context.Background(), schemas.StreamEvents, cfg); err != nil {
		t.Fatal(err)
	}
}

// The whole service: it becomes ready, stores, reports what it stored, and
// stops cleanly.
func TestService(t *testing.T) {
	server := clickhousetest.Start(t, "")
	db := migrated(t, server.URL)
	ns := natstest.Start(t)
	admin := natstest.Connect(t, ns, schemas.ServiceAdmin)
	cfg := sink.DefaultConfig()
	cfg.NATS = natstest.Config(ns, schemas.ServiceSink)
	cfg.ClickHouse.URL = server.URL
	cfg.Admin.Listen = "127.0.0.1:0"
	cfg.Log.File = t.TempDir() + "/log"
	cfg.Insert.FlushInterval = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- sink.Run(ctx, cfg) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the sink ended with: %v", err)
		}
		if counted := reported(t, admin); counted["audit"] != 500 {
			t.Errorf("reported as stored: %v", counted)
		}
	}()
	pub := newPublisher(t, ns)
	for range 5 {
		pub.publish(schemas.Audit, 100)
	}
	settled(t, admin, 20*time.Second)
	if got := query(t, db, "SELECT count() FROM audit"); got != "500" {
		t.Errorf("%s rows", got)
	}
	address := adminAddress(t, cfg.Log.File)
	if status, body := get(t, "http://"+address+"/readyz"); status != 200 {
		t.Errorf("/readyz: %d %s", status, body)
	}
	if _, body := get(t, "http://"+address+"/metrics"); !strings.Contains(body, `picket_sink_inserted_rows_total{table="audit"} 500`) {
		t.Errorf("/metrics does not count the rows")
	}
	stopContext, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if err := server.Stop(stopContext); err != nil {
		t.Fatal(err)
	}
	if status, body := get(t, "http://"+address+"/readyz"); status != 503 || !strings.Contains(body, "clickhouse: ClickHouse at http://") {
		t.Errorf("/readyz without ClickHouse: %d %s", status, body)
	}
}

// adminAddress reads from the log where the admin port is.
func adminAddress(t *testing.T, log string) string {
	t.Helper()
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var e struct{ Msg, Address string }
		if json.Unmarshal([]byte(line), &e) == nil && e.Msg == "admin port open" {
			return e.Address
		}
	}
	t.Fatalf("no admin port in the log: %s", b)
	return ""
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// reported returns what the sink has reported as stored, by class.
func reported(t *testing.T, b *bus.Bus) map[string]uint64 {
	t.Helper()
	s, err := b.JS.Stream(context.Background(), schemas.StreamRaw)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]uint64{}
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(context.Background(), seq)
		if err == jetstream.ErrMsgNotFound {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		h, err := batch.Decode(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		for i := range h.Rows() {
			if h.Str(schemas.HealthReason, i) == "stored" {
				out[h.Str(schemas.HealthClass, i)] += h.Uint(schemas.HealthCount, i)
			}
		}
	}
	return out
}

// Wrong configuration is a sentence that names the key.
func TestBadConfig(t *testing.T) {
	for text, want := range map[string]string{
		"clickhouse:\n  url: clickhouse://x:9000\n": "clickhouse.url",
		"insert:\n  max_rows: 0\n":                  "insert.max_rows is 0",
		"cluster: \"\"\n":                           "cluster is empty",
		"clickhouse:\n  port: 1\n":                  "there is no setting port",
	} {
		file := t.TempDir() + "/bad.yaml"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := config.Load("sink", sink.DefaultConfig(), []string{"--config", file}, nil, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: want %q, got %v", text, want, err)
		}
	}
}
