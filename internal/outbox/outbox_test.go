package outbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"picket/internal/bus"
	"picket/internal/natsserver"
	"picket/internal/natsserver/natstest"
	"picket/internal/outbox"
	"picket/schemas"
)

func TestMain(m *testing.M) {
	// nats.go's in-process timers and the server's file store end on their own
	goleak.VerifyTestMain(m)
}

var subject = schemas.RawSubject("c", "n", schemas.Process)

func open(t *testing.T, dir string, max int64, b *bus.Bus) *outbox.Outbox {
	t.Helper()
	o, err := outbox.Open(dir, max, "sensor", b, slog.New(slog.NewTextHandler(t.Output(), nil)), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// run publishes until stop is called, which waits for Run to return.
func run(t *testing.T, o *outbox.Outbox) (stop func()) {
	return runAndCount(t, o, func(class string, events uint64) { t.Errorf("%d events of class %q lost", events, class) })
}

func runAndCount(t *testing.T, o *outbox.Outbox, lost func(class string, events uint64)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx, 5*time.Second, lost) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// stored returns the stream's messages in order.
func stored(t *testing.T, s *natsserver.Server, stream string) []*jetstream.RawStreamMsg {
	t.Helper()
	b := natstest.Connect(t, s, schemas.ServiceAdmin)
	st, err := b.JS.Stream(context.Background(), stream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := st.Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var out []*jetstream.RawStreamMsg
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		m, err := st.GetMsg(context.Background(), seq)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

func put(t *testing.T, o *outbox.Outbox, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if err := o.Put(subject, []byte(fmt.Sprint("batch ", i)), 10, map[string]int{"i": i}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPublishesInOrderAndKeepsWhatIsLeft(t *testing.T) {
	s := natstest.Start(t)
	b := natstest.Connect(t, s, schemas.ServiceSensor)
	dir := t.TempDir()

	// A run that dies with everything spooled and nothing published …
	o := open(t, dir, 1<<20, b)
	put(t, o, 0, 100)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	// … one that finds it, adds to it and publishes …
	o = open(t, dir, 1<<20, b)
	notes := o.Notes()
	if len(notes) != 100 {
		t.Fatalf("%d notes", len(notes))
	}
	var n map[string]int
	if err := json.Unmarshal(notes[99], &n); err != nil || n["i"] != 99 {
		t.Fatalf("note %s: %v", notes[99], err)
	}
	put(t, o, 100, 200)
	run(t, o)()
	if n, bytes := o.Pending(); n != 0 || bytes != 0 {
		t.Errorf("%d batches of %d bytes left", n, bytes)
	}
	msgs := stored(t, s, schemas.StreamRaw)
	if len(msgs) != 200 {
		t.Fatalf("%d messages", len(msgs))
	}
	ids := map[string]bool{}
	for i, m := range msgs {
		if string(m.Data) != fmt.Sprint("batch ", i) {
			t.Fatalf("message %d is %q", i, m.Data)
		}
		want := fmt.Sprint((i%100 + 1) * 10)
		if got := m.Header.Get(schemas.HeaderCumulative); got != want {
			t.Errorf("message %d: cumulative rows %s, want %s", i, got, want)
		}
		id := m.Header.Get(schemas.HeaderBatchID)
		if id != m.Header.Get(nats.MsgIdHdr) || ids[id] {
			t.Errorf("message %d: batch id %q", i, id)
		}
		ids[id] = true
	}
	left, err := filepath.Glob(filepath.Join(dir, "*.batch*"))
	if err != nil || len(left) != 0 {
		t.Errorf("files left: %v %v", left, err)
	}
}

// A crash between publishing and removing the file must not store twice.
func TestSpooledAgainIsStoredOnce(t *testing.T) {
	s := natstest.Start(t)
	b := natstest.Connect(t, s, schemas.ServiceSensor)
	dir := t.TempDir()
	o := open(t, dir, 1<<20, b)
	put(t, o, 0, 5)
	saved := t.TempDir()
	if err := os.CopyFS(saved, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	run(t, o)()
	o = open(t, saved, 1<<20, b)
	run(t, o)()
	if n, _ := o.Pending(); n != 0 {
		t.Errorf("%d batches pending", n)
	}
	if n := len(stored(t, s, schemas.StreamRaw)); n != 5 {
		t.Errorf("%d messages, want 5", n)
	}
}

// A message id that somebody else has used must not swallow a batch.
func TestForeignDuplicateIsPublishedAgain(t *testing.T) {
	s := natstest.Start(t)
	b := natstest.Connect(t, s, schemas.ServiceSensor)
	o := open(t, t.TempDir(), 1<<20, b)
	m := nats.NewMsg(subject)
	m.Data = []byte("squatter")
	if _, err := b.JS.PublishMsg(context.Background(), m, jetstream.WithMsgID(schemas.BatchIDOf(o.RunID(), 2))); err != nil {
		t.Fatal(err)
	}
	put(t, o, 0, 4)
	run(t, o)()
	got := map[string]int{}
	for _, m := range stored(t, s, schemas.StreamRaw) {
		got[string(m.Data)]++
	}
	for i := range 4 {
		if got[fmt.Sprint("batch ", i)] != 1 {
			t.Errorf("stored: %v", got)
		}
	}
}

func TestFullSpoolAndFullStream(t *testing.T) {
	s := natstest.Start(t)
	admin := natstest.Connect(t, s, schemas.ServiceAdmin)
	small := bus.DefaultLimits()
	small.RawBytes = 64 << 10
	if err := admin.Migrate(context.Background(), small); err != nil {
		t.Fatal(err)
	}
	b := natstest.Connect(t, s, schemas.ServiceSensor)
	o := open(t, t.TempDir(), 256<<10, b)
	stop := run(t, o)
	kept := 0
	var err error
	for range 2000 {
		data := bytes.Repeat([]byte{byte(kept), byte(kept >> 8), 1, 2}, 1024) // 4 KiB
		if err = o.Put(subject, data, 1, nil, nil); err != nil {
			break
		}
		kept++
	}
	if !errors.Is(err, outbox.ErrFull) {
		t.Fatalf("after %d batches: %v", kept, err)
	}
	if n, size := o.Pending(); n == 0 || size > 256<<10 {
		t.Errorf("%d batches of %d bytes pending", n, size)
	}
	// Room again: all that was taken arrives.
	if err := admin.Migrate(context.Background(), bus.DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		if n, _ := o.Pending(); n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("spool does not empty")
		}
		time.Sleep(20 * time.Millisecond)
	}
	stop()
	if n := len(stored(t, s, schemas.StreamRaw)); n != kept {
		t.Errorf("%d messages, %d taken", n, kept)
	}
}

func TestSurvivesServerRestart(t *testing.T) {
	dir := t.TempDir()
	s, err := natsserver.Start(natsserver.Options{Dir: dir, Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	addr := strings.TrimPrefix(s.URL(), "nats://")
	if err := natstest.Connect(t, s, schemas.ServiceAdmin).Migrate(context.Background(), bus.DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	b := natstest.Connect(t, s, schemas.ServiceSensor)
	o := open(t, t.TempDir(), 1<<20, b)
	stop := run(t, o)
	put(t, o, 0, 50)
	s.Stop()
	put(t, o, 50, 100)
	if s, err = natsserver.Start(natsserver.Options{Dir: dir, Listen: addr}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	put(t, o, 100, 150)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if n, _ := o.Pending(); n == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("spool does not empty after the restart")
		}
	}
	stop()
	got := map[string]int{}
	for _, m := range stored(t, s, schemas.StreamRaw) {
		got[string(m.Data)]++
	}
	for i := range 150 {
		if got[fmt.Sprint("batch ", i)] != 1 {
			t.Fatalf("batch %d stored %d times", i, got[fmt.Sprint("batch ", i)])
		}
	}
}

func TestDamagedFileIsSetAside(t *testing.T) {
	s := natstest.Start(t)
	b := natstest.Connect(t, s, schemas.ServiceSensor)
	dir := t.TempDir()
	o := open(t, dir, 1<<20, b)
	put(t, o, 0, 3)
	if err := o.Put(subject, []byte("of 7 events"), 7, nil, nil); err != nil {
		t.Fatal(err)
	}
	put(t, o, 4, 5)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.batch"))
	if err != nil || len(files) != 5 {
		t.Fatalf("%v %v", files, err)
	}
	if err := os.Truncate(files[3], 20); err != nil {
		t.Fatal(err)
	}
	// as an older version named them: one is whole, the other is not
	old := regexp.MustCompile(`-process-10\.batch$`)
	for _, f := range []*string{&files[1], &files[2]} {
		name := old.ReplaceAllString(*f, ".batch")
		if err := os.Rename(*f, name); err != nil || name == *f {
			t.Fatalf("%s: %v", name, err)
		}
		*f = name
	}
	if err := os.Truncate(files[2], 0); err != nil {
		t.Fatal(err)
	}
	o = open(t, dir, 1<<20, b)
	var lost []string
	runAndCount(t, o, func(class string, events uint64) { lost = append(lost, fmt.Sprint(class, " ", events)) })()
	if n := len(stored(t, s, schemas.StreamRaw)); n != 3 {
		t.Errorf("%d messages, want 3", n)
	}
	if d := cmp.Diff([]string{" 1", "process 7"}, lost); d != "" {
		t.Error(d)
	}
	for _, f := range files[2:4] {
		if _, err := os.Stat(f + ".damaged"); err != nil {
			t.Error(err)
		}
	}
}

func TestSecondOwnerIsRefused(t *testing.T) {
	s := natstest.Start(t)
	b := natstest.Connect(t, s, schemas.ServiceSensor)
	dir := t.TempDir()
	o := open(t, dir, 1<<20, b)
	_, err := outbox.Open(dir, 1<<20, "sensor", b, slog.Default(), prometheus.NewRegistry())
	if err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("second owner: %v", err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
}

// What a long outage piles up is on the disk, not in memory.
func TestManyFilesTakeLittleMemory(t *testing.T) {
	s := natstest.Start(t)
	b := natstest.Connect(t, s, schemas.ServiceSensor)
	dir := t.TempDir()
	heap := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	const n = 8000
	within := func(o *outbox.Outbox, before float64) {
		t.Helper()
		if each := (heap() - before) / n; each > 64 {
			t.Errorf("a batch on disk takes %.0f bytes of memory", each)
		}
		if batches, _ := o.Pending(); batches != n {
			t.Errorf("%d batches pending", batches)
		}
	}
	before := heap()
	o := open(t, dir, 1<<30, b)
	put(t, o, 0, n)
	within(o, before)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	before = heap()
	o = open(t, dir, 1<<30, b)
	if got := len(o.Notes()); got != n {
		t.Errorf("%d notes", got)
	}
	within(o, before)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
}

// Batches stay in order over a restart when the clock was set back meanwhile.
func TestClockSetBack(t *testing.T) {
	s := natstest.Start(t)
	b := natstest.Connect(t, s, schemas.ServiceSensor)
	dir := t.TempDir()
	o := open(t, dir, 1<<20, b)
	put(t, o, 0, 1)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	// As if it had been written an hour from now.
	files, err := filepath.Glob(filepath.Join(dir, "*.batch"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v %v", files, err)
	}
	later := fmt.Sprintf("%016x-00000001.batch", time.Now().Add(time.Hour).UnixNano())
	if err := os.Rename(files[0], filepath.Join(dir, later)); err != nil {
		t.Fatal(err)
	}
	o = open(t, dir, 1<<20, b)
	put(t, o, 1, 10)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	o = open(t, dir, 1<<20, b)
	run(t, o)()
	for i, m := range stored(t, s, schemas.StreamRaw) {
		if string(m.Data) != fmt.Sprint("batch ", i) {
			t.Errorf("message %d is %q", i, m.Data)
		}
	}
}
