package store

import (
	"bytes"
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/schemas"
)

func TestEveryClass(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(nil)
	eventually(t, "the writer pulls", 20*time.Second, func() bool { // what was there before it is looked up
		c, err := w.all.JS.Consumer(t.Context(), schemas.StreamEvents, schemas.DurableSink)
		return err == nil && c.CachedInfo().NumWaiting > 0
	})
	for range 20 {
		for _, c := range schemas.Classes() {
			w.publish(message{class: c, rows: 50})
		}
	}
	w.settled(20 * time.Second)
	for _, c := range schemas.Classes() {
		w.want(c.Table(), 1000)
	}
	r.stop()
	for _, c := range schemas.Classes() {
		if got := r.metric("picket_sink_inserted_rows_total", c.Table()); got != 1000 {
			t.Errorf("%s: %v rows counted", c, got)
		}
		if got := r.metric("picket_sink_pending_rows", c.Table()); got != 0 {
			t.Errorf("%s: %v rows pending", c, got)
		}
		if l := w.ledgerOf("sink", c.Table()); len(l.Plans) != 0 {
			t.Errorf("%s: plans left: %+v", c, l.Plans)
		}
	}
	if n := r.metric("picket_sink_lookups_total"); n != 0 {
		t.Errorf("%v lookups without need", n)
	}
	if r.held != 0 {
		t.Errorf("%d bytes still held", r.held)
	}
}

// deadLetters returns the reasons of the sink's dead letters.
func (w *world) deadLetters() []string {
	w.t.Helper()
	s, err := w.all.JS.Stream(context.Background(), schemas.StreamDead)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(context.Background(), seq)
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, m.Header.Get(schemas.HeaderReason))
	}
	return out
}

// What cannot be read is set aside once, and the rest goes on.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(nil)
	good := w.encode(message{class: schemas.Process, rows: 7, id: "x"})
	for _, m := range []message{
		{class: schemas.Process, rows: 7},
		{class: schemas.Process, data: good[:len(good)/2]},
		{class: schemas.Process, data: []byte("not arrow")},
		{class: schemas.File, data: good}, // a process batch
		{class: schemas.Process, rows: 7, id: strings.Repeat("x", 300)},
		{class: schemas.Process, rows: 7},
	} {
		w.publish(m)
	}
	w.settled(20 * time.Second)
	w.want("process", 14)
	w.want("file", 0)
	dead := w.deadLetters()
	if len(dead) != 4 {
		t.Errorf("dead letters: %q", dead)
	}
	for i, d := range dead {
		if !strings.HasPrefix(d, "decode: ") {
			t.Errorf("dead letter %d: %q", i, d)
		}
	}
	if got := r.metric("picket_sink_lost_events_total", "dead_letter"); got != 1+1+1+7 { // as the headers say
		t.Errorf("%v events counted as dead letters", got)
	}
}

// Rows that ClickHouse refuses for what they are: the message that has them is
// set aside, the messages it was to be inserted with are stored.
func TestRefusedRows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.db.exec(t.Context(), "ALTER TABLE picket.process ADD CONSTRAINT odd CHECK process_tty != 666"); err != nil {
		t.Fatal(err)
	}
	for i := range 21 {
		w.publish(message{class: schemas.Process, rows: 10, set: func(b *batch.Builder, row int) {
			if i == 13 && row == 3 {
				b.Uint32(schemas.ProcessTTY, 666)
			}
		}})
	}
	w.start(nil)
	w.settled(30 * time.Second)
	w.want("process", 200)
	dead := w.deadLetters()
	if len(dead) != 1 || !strings.HasPrefix(dead[0], "insert: table process: ClickHouse refuses: Constraint `odd`") {
		t.Errorf("dead letters: %q", dead)
	}
}

// A writer has only some of the messages of an insert that another was killed
// at. ClickHouse refuses it for a message that the writer does not have: those
// that it has are not set aside.
func TestRefusedRowsOfAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.impatient(schemas.DurableSink, time.Second)
	if err := w.db.exec(t.Context(), "ALTER TABLE picket.process ADD CONSTRAINT odd CHECK process_tty != 666"); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		w.publish(message{class: schemas.Process, rows: 10, set: func(b *batch.Builder, row int) {
			if i == 4 && row == 3 {
				b.Uint32(schemas.ProcessTTY, 666)
			}
		}})
	}
	_ = w.child("planned", 0).Wait() // killed
	if l := w.ledgerOf("sink", "process"); len(l.Plans) != 1 || len(l.Plans[0].Messages) != 6 {
		t.Fatalf("plans: %+v", l.Plans)
	}
	r := w.start(func(w *Writer) { w.o.Insert.MaxRows = 1 }) // one message at a time
	w.settled(20 * time.Second)
	w.want("process", 50)
	if dead := w.deadLetters(); len(dead) != 1 {
		t.Errorf("dead letters: %q", dead)
	}
	r.stop()
}

// A table that lacks a column, is of another making or has too many parts:
// nothing is set aside, the log names the remedy, and after it the rows are
// stored.
func TestTablesNotReady(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ spoil, says, mend string }{
		"column missing": {"ALTER TABLE picket.process DROP COLUMN process_tty", "picket migrate", ""},
		"table missing":  {"DROP TABLE picket.process", "picket migrate", ""},
		"too many parts": {"ALTER TABLE picket.process MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 0", "merging more slowly than it is written to", "ALTER TABLE picket.process RESET SETTING parts_to_throw_insert, parts_to_delay_insert"},
		"other type":     {"ALTER TABLE picket.process DROP COLUMN process_tty, ADD COLUMN process_tty Array(String)", "process.process_tty is Array(String), not UInt32", "ALTER TABLE picket.process DROP COLUMN process_tty"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if err := w.db.insert(t.Context(), "process", []string{"batch_id", "batch_date"}, foreignRow(), newToken()); err != nil {
				t.Fatal(err) // a part
			}
			if err := w.db.exec(t.Context(), c.spoil); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			var mu sync.Mutex
			r := w.start(func(w *Writer) {
				w.log = slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
					mu.Lock()
					defer mu.Unlock()
					return log.Write(p)
				}), nil))
			})
			for range 5 {
				w.publish(message{class: schemas.Process, rows: 10, set: func(b *batch.Builder, row int) { b.Uint32(schemas.ProcessTTY, 7) }})
			}
			w.publish(message{class: schemas.File, rows: 10})
			eventually(t, "attempts fail", 10*time.Second, func() bool { return r.metric("picket_sink_insert_retries_total", "process") >= 3 })
			eventually(t, "the other table goes on", 10*time.Second, func() bool { return query(t, w.db, "SELECT count() FROM file") == "10" })
			mu.Lock()
			if !strings.Contains(log.String(), c.says) {
				t.Errorf("the log does not say %q: %s", c.says, log.String())
			}
			mu.Unlock()
			if c.mend != "" {
				if err := w.db.exec(t.Context(), c.mend); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.db.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.settled(20 * time.Second)
			if got := query(t, w.db, "SELECT count(), uniqExact(event_id) FROM process WHERE batch_id != 'foreign'"); got != "50\t50" {
				t.Errorf("rows and ids: %s", got)
			}
			if dead := w.deadLetters(); len(dead) != 0 {
				t.Errorf("dead letters: %q", dead)
			}
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// The same batch published twice, beyond what JetStream remembers: the second
// message says that it may be a repetition.
func TestReplayed(t *testing.T) {
	t.Parallel()
	again := map[string]string{schemas.HeaderReplayed: "1"}
	w := newWorld(t)
	// Both wait when the writer starts.
	w.publish(message{class: schemas.Process, rows: 10, id: "a"})
	w.publish(message{class: schemas.Process, rows: 10, id: "a", headers: again})
	w.publish(message{class: schemas.Process, rows: 10, id: "a", headers: again})
	// Flagged, but the only one.
	w.publish(message{class: schemas.Process, rows: 10, id: "b", headers: again})
	r := w.start(nil)
	w.settled(20 * time.Second)
	w.want("process", 20)
	// Long after, and on another day as far as the partition goes.
	old := time.Now().AddDate(0, 0, -10)
	w.publish(message{class: schemas.Process, rows: 10, id: "c", time: old})
	w.settled(20 * time.Second)
	w.publish(message{class: schemas.Process, rows: 10, id: "c", time: old, headers: again})
	w.publish(message{class: schemas.Process, rows: 10, id: "b", headers: again})
	w.settled(20 * time.Second)
	w.want("process", 30)
	if got := r.metric("picket_sink_recognised_messages_total"); got != 4 {
		t.Errorf("%v messages recognised, want 4", got)
	}
}

// A replayed message waits while another writer has the first one.
func TestReplayedElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.publish(message{class: schemas.Process, rows: 10, id: "a"})
	holds, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	slow := w.start(func(w *Writer) {
		w.step = func(at string) {
			if at == "decoding" {
				once.Do(func() { close(holds); <-release })
			}
		}
	})
	<-holds
	quick := w.start(nil)
	for range 20 { // some of them come to the quick one
		w.publish(message{class: schemas.Process, rows: 10, id: "a", headers: map[string]string{schemas.HeaderReplayed: "1"}})
	}
	time.Sleep(500 * time.Millisecond)
	if got := query(t, w.db, "SELECT count() FROM process"); got != "0" {
		t.Errorf("%s rows while the first message is under way", got)
	}
	close(release)
	w.settled(20 * time.Second)
	w.want("process", 10)
	slow.stop()
	quick.stop()
}

// Messages of many days: each has one partition, and no insert has more than
// ClickHouse takes.
func TestPartitions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	day := time.Now().Truncate(24 * time.Hour).Add(12 * time.Hour)
	for d := range schemas.RetentionDays + 5 {
		for range 3 {
			w.publish(message{class: schemas.Network, rows: 20, time: day.AddDate(0, 0, -d)})
		}
	}
	// One batch whose events are from two days.
	w.publish(message{class: schemas.Network, rows: 2, time: day.Add(-12*time.Hour - 1)})
	r := w.start(nil)
	w.settled(30 * time.Second)
	w.want("network", (schemas.RetentionDays+5)*60+2)
	if got := query(t, w.db, "SELECT max(n) FROM (SELECT uniqExact(_partition_id) AS n FROM network GROUP BY batch_id)"); got != "1" {
		t.Errorf("rows of one message are in %s partitions", got)
	}
	r.stop()
}

// What the stream drops before it was delivered is counted, exactly and once.
func TestStreamLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(nil)
	for range 5 {
		w.publish(message{class: schemas.Process, rows: 10})
	}
	w.settled(20 * time.Second)
	r.stop()
	// Nobody consumes, and the stream keeps only 10 messages.
	s, err := w.all.JS.Stream(t.Context(), schemas.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.CachedInfo().Config
	cfg.MaxMsgs = 10
	if _, err := w.all.JS.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		w.publish(message{class: schemas.Process, rows: 10})
	}
	r = w.start(nil) // after a restart: what was had is in the record
	w.settled(20 * time.Second)
	w.want("process", 50+100)
	eventually(t, "the loss is counted", 90*time.Second, func() bool {
		w.publish(message{class: schemas.Process, rows: 1})
		time.Sleep(time.Second)
		return r.metric("picket_sink_lost_events_total") > 0
	})
	if got := r.metric("picket_sink_lost_events_total", "process", schemas.LossStreamLimit); got != 200 {
		t.Errorf("%v rows counted as dropped, want 200", got)
	}
	w.settled(20 * time.Second)
	r.stop()
}

// While ClickHouse is away no more than the bound is held in memory.
func TestHeldBytes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := newProxy(t, w.ch.URL)
	p.set(func(string, bool) error { return errSpoiled })
	r := w.startOn(p.URL, NewEvents(), func(w *Writer) { w.o.Insert.MaxHeldBytes = 200 << 10 })
	sent := 0
	for i := range 60 {
		m := message{class: schemas.Process, rows: 100, id: strconv.Itoa(i)}
		m.data = w.encode(m)
		sent += len(m.data)
		w.publish(m)
	}
	eventually(t, "the bound is reached", 20*time.Second, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.held > 150<<10
	})
	time.Sleep(200 * time.Millisecond)
	r.mu.Lock()
	if r.held > 200<<10 || sent < 300<<10 {
		t.Errorf("%d bytes held, %d sent", r.held, sent)
	}
	r.mu.Unlock()
	p.set(nil)
	w.settled(30 * time.Second)
	w.want("process", 6000)
	r.stop()
}

// A writer told to stop stores what it holds, without waiting for more.
func TestStop(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(func(w *Writer) { w.o.Insert.FlushInterval = time.Minute })
	for range 10 {
		w.publish(message{class: schemas.Audit, rows: 10})
	}
	eventually(t, "the rows are held", 10*time.Second, func() bool { return r.metric("picket_sink_pending_rows") == 100 })
	start := time.Now()
	r.stop()
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("stopping took %s", d)
	}
	w.want("audit", 100)
	w.settled(time.Second)
}

// The durable was deleted and made anew: delivery numbers begin at 1 and the
// stream delivers again what it still has.
func TestDurableRemade(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(nil)
	for range 10 {
		w.publish(message{class: schemas.Process, rows: 10})
	}
	w.settled(20 * time.Second)
	r.stop()
	// The detector still wants the messages, so the stream keeps them.
	if err := w.all.JS.DeleteConsumer(t.Context(), schemas.StreamEvents, schemas.DurableSink); err != nil {
		t.Fatal(err)
	}
	if err := w.all.Migrate(t.Context(), bus.DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	w.publish(message{class: schemas.Process, rows: 10})
	r = w.start(nil)
	w.settled(20 * time.Second)
	w.want("process", 110)
	if got := r.metric("picket_sink_recognised_messages_total"); got != 10 {
		t.Errorf("%v messages recognised, want 10", got)
	}
	r.stop()
}

// The record of inserts was lost, with messages acknowledged and not.
func TestRecordDamaged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	kv, err := w.all.JS.KeyValue(t.Context(), schemas.BucketState)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "insert.sink.process", []byte("{damaged")); err != nil {
		t.Fatal(err)
	}
	r := w.start(nil)
	w.publish(message{class: schemas.Process, rows: 10})
	eventually(t, "it is noticed", 10*time.Second, func() bool { return r.metric("picket_sink_insert_retries_total", "nats") >= 2 })
	if err := kv.Delete(t.Context(), "insert.sink.process"); err != nil {
		t.Fatal(err)
	}
	w.settled(20 * time.Second)
	w.want("process", 10)
	r.stop()
}
