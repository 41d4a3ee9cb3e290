package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"picket/internal/clickhousebin"
	"picket/internal/clickhousebin/clickhousetest"
	"picket/schemas"
)

// A writer dies at any point of an insert: the next one leaves every row
// exactly once. The points are those of docs/storage.md.
func TestWriterKilled(t *testing.T) {
	t.Parallel()
	const messages, rows = 12, 20
	for _, c := range []struct {
		step    string
		after   int  // times the step is passed before
		planned bool // the record names the insert then
	}{
		{"planning", 0, false},
		{"planned", 0, true},
		{"inserting", 0, true},
		{"inserted", 0, true},
		{"acknowledged", 0, true},
		{"acknowledged", messages / 2, true},
		{"cleaning", 0, true},
	} {
		t.Run(fmt.Sprintf("%s-%d", c.step, c.after), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.impatient(schemas.DurableSink, time.Second)
			for range messages {
				w.publish(message{class: schemas.Process, rows: rows})
			}
			victim := w.child(c.step, c.after)
			if err := victim.Wait(); err == nil || victim.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the writer was to be killed at %s, and ended with: %v", c.step, err)
			}
			if l := w.ledgerOf("sink", "process"); (len(l.Plans) == 1) != c.planned {
				t.Fatalf("killed at %s, the record has %d plans", c.step, len(l.Plans))
			}
			w.publish(message{class: schemas.Process, rows: rows}) // after the crash
			r := w.start(nil)
			w.settled(20 * time.Second)
			w.want("process", (messages+1)*rows)
			eventually(t, "the record is empty", 20*time.Second, func() bool { return len(w.ledgerOf("sink", "process").Plans) == 0 })
			repeated := r.metric("picket_sink_repeated_inserts_total")
			recognised := r.metric("picket_sink_recognised_messages_total")
			switch {
			case c.planned && c.step != "acknowledged" && c.step != "cleaning" && repeated != 1:
				t.Errorf("%v inserts repeated, %v messages recognised", repeated, recognised)
			case !c.planned && repeated != 0:
				t.Errorf("%v inserts repeated though none was recorded", repeated)
			}
			r.stop()
		})
	}
}

// proxy stands between a writer and ClickHouse and can spoil inserts.
type proxy struct {
	*httptest.Server
	// spoil, if not nil, sees each insert. A returned error closes the
	// connection in place of an answer, before or after the insert was done.
	mu    sync.Mutex
	spoil func(token string, done bool) error
}

func newProxy(t *testing.T, target string) *proxy {
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{}
	rp := httputil.NewSingleHostReverseProxy(u)
	rp.Transport = &http.Transport{}
	rp.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	p.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		token := r.URL.Query().Get("insert_deduplication_token")
		p.mu.Lock()
		spoil := p.spoil
		p.mu.Unlock()
		if spoil == nil || !strings.HasPrefix(r.URL.Query().Get("query"), "INSERT") {
			rp.ServeHTTP(rw, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if spoil(token, false) != nil {
			panic(http.ErrAbortHandler)
		}
		rec := httptest.NewRecorder()
		rp.ServeHTTP(rec, r)
		if spoil(token, true) != nil {
			panic(http.ErrAbortHandler)
		}
		for k, v := range rec.Header() {
			rw.Header()[k] = v
		}
		rw.WriteHeader(rec.Code)
		_, _ = rw.Write(rec.Body.Bytes())
	}))
	t.Cleanup(func() {
		p.Close()
		rp.Transport.(*http.Transport).CloseIdleConnections()
	})
	return p
}

func (p *proxy) set(f func(token string, done bool) error) {
	p.mu.Lock()
	p.spoil = f
	p.mu.Unlock()
}

var errSpoiled = errors.New("spoiled")

// The answer to an insert is lost, before or after ClickHouse carried it out.
func TestAnswerLost(t *testing.T) {
	t.Parallel()
	for _, done := range []bool{false, true} {
		t.Run(fmt.Sprintf("done=%v", done), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			p := newProxy(t, w.ch.URL)
			var n atomic.Int32
			tokens := map[string]bool{}
			p.set(func(token string, d bool) error {
				tokens[token] = true
				if d == done && n.Add(1) <= 3 {
					return errSpoiled
				}
				return nil
			})
			for range 10 {
				w.publish(message{class: schemas.File, rows: 30})
			}
			r := w.startOn(p.URL, NewEvents(), nil)
			w.settled(20 * time.Second)
			r.stop()
			w.want("file", 300)
			if len(tokens) != 1 {
				t.Errorf("one insert used %d tokens", len(tokens))
			}
			if got := r.metric("picket_sink_insert_retries_total", "file", "network"); got != 3 {
				t.Errorf("%v repetitions counted, want 3", got)
			}
		})
	}
}

// ClickHouse writes that it knows a token before it publishes the rows. If it
// is killed in between, it drops the repeated insert in silence. (Another
// insert under the token stands for the kill, which cannot be aimed that well.)
func TestTokenKnownRowsMissing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := newProxy(t, w.ch.URL)
	var tokens []string
	p.set(func(token string, done bool) error {
		if done {
			return nil
		}
		tokens = append(tokens, token)
		if len(tokens) == 1 {
			if err := w.db.insert(context.Background(), "process", []string{"batch_id", "batch_date"}, foreignRow(), token); err != nil {
				t.Error(err)
			}
			return errSpoiled
		}
		return nil
	})
	for range 5 {
		w.publish(message{class: schemas.Process, rows: 10})
	}
	r := w.startOn(p.URL, NewEvents(), nil)
	w.settled(20 * time.Second)
	r.stop()
	if got := query(t, w.db, "SELECT count(), uniqExact(event_id) FROM process WHERE batch_id != 'foreign'"); got != "50\t50" {
		t.Fatalf("rows and ids: %s", got)
	}
	if len(tokens) != 3 || tokens[0] != tokens[1] || tokens[1] == tokens[2] {
		t.Errorf("tokens: %v", tokens)
	}
}

// foreignRow is a block of one row in today's partition.
func foreignRow() io.Reader {
	b := newBlock([]string{"batch_id", "batch_date"}, []string{"String", "Date"})
	b.col(0).(*text).Append("foreign")
	b.col(1).(*fixed[uint16]).Append(batchDay(time.Now().UnixNano(), time.Now()))
	b.add(1)
	_, body := b.encode()
	return body
}

// ClickHouse is killed over and over while rows come in, and starts again on
// the same data.
func TestClickHouseKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(func(w *Writer) { w.o.Insert.FlushInterval = 20 * time.Millisecond })
	address := strings.TrimPrefix(w.ch.URL, "http://")
	const messages, rows, kills = 600, 50, 6
	publishing := make(chan struct{})
	go func() {
		defer close(publishing)
		for i := range messages {
			w.publish(message{class: schemas.Classes()[i%2], rows: rows})
			time.Sleep(10 * time.Millisecond)
		}
	}()
	server := w.ch
	for range kills {
		time.Sleep(600 * time.Millisecond)
		if err := syscall.Kill(server.Pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-server.Done()
		var err error
		if server, err = clickhousebin.Start(t.Context(), clickhousebin.Options{Data: w.data, Listen: address, Binary: clickhousetest.Binary(t)}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = server.Stop(context.Background()) })
	}
	<-publishing
	w.settled(60 * time.Second)
	for _, c := range schemas.Classes()[:2] {
		w.want(c.Table(), messages/2*rows)
	}
	if r.metric("picket_sink_insert_retries_total") == 0 {
		t.Error("no insert met the kills")
	}
	r.stop()
}

// ClickHouse does not answer for a while: messages wait, readiness says so,
// and afterwards everything is stored.
func TestClickHouseAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.impatient(schemas.DurableSink, time.Second) // the wait spans redeliveries
	address := strings.TrimPrefix(w.ch.URL, "http://")
	if err := w.ch.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := w.start(nil)
	for range 30 {
		w.publish(message{class: schemas.Audit, rows: 10})
	}
	eventually(t, "attempts fail", 20*time.Second, func() bool { return r.metric("picket_sink_insert_retries_total", "network") >= 3 })
	if err := r.db.Ready(); err == nil || !strings.Contains(err.Error(), "clickhouse.url") {
		t.Errorf("readiness says: %v", err)
	}
	if got := r.metric("picket_sink_pending_rows"); got != 300 {
		t.Errorf("%v rows pending", got)
	}
	time.Sleep(3 * time.Second)
	server, err := clickhousebin.Start(t.Context(), clickhousebin.Options{Data: w.data, Listen: address, Binary: clickhousetest.Binary(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop(context.Background())
	w.settled(30 * time.Second)
	if err := r.db.Ready(); err != nil {
		t.Error(err)
	}
	r.stop()
	w.want("audit", 300)
}

// Two writers share the durable. One stands still at some point for longer
// than its messages are its own; the other takes them over; then the first
// goes on from where it stood.
func TestWriterStalled(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"decoding", "planning", "planned", "inserting", "inserted"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.impatient(schemas.DurableSink, 500*time.Millisecond)
			stalled, release := make(chan struct{}), make(chan struct{})
			var armed atomic.Bool
			var once sync.Once
			slow := w.start(func(w *Writer) {
				w.step = func(at string) {
					if at == step && armed.Load() {
						once.Do(func() { close(stalled); <-release })
					}
				}
			})
			w.publish(message{class: schemas.Network, rows: 10})
			w.settled(20 * time.Second)
			armed.Store(true)
			for range 19 {
				w.publish(message{class: schemas.Network, rows: 10})
			}
			<-stalled
			quick := w.start(nil)
			w.settled(20 * time.Second)
			w.want("network", 200)
			for range 5 {
				w.publish(message{class: schemas.Network, rows: 10})
			}
			close(release)
			w.settled(20 * time.Second)
			time.Sleep(300 * time.Millisecond)
			w.want("network", 250)
			slow.stop()
			quick.stop()
			w.want("network", 250)
			if l := w.ledgerOf("sink", "network"); len(l.Plans) != 0 {
				t.Errorf("plans left: %+v", l.Plans)
			}
		})
	}
}

// Several writers at once, and one of them is killed now and then.
func TestSeveralWriters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.impatient(schemas.DurableSink, time.Second)
	stay := []*running{w.start(nil), w.start(nil)}
	killed, published := make(chan struct{}), make(chan struct{})
	messages := 0
	go func() { // as long as writers are killed, so that each has work
		defer close(published)
		for {
			select {
			case <-killed:
				return
			case <-time.After(10 * time.Millisecond):
				w.publish(message{class: schemas.Classes()[messages%3], rows: 6})
				messages++
			}
		}
	}()
	for i, step := range []string{"planned", "inserted", "acknowledged", "planning", "inserting", "cleaning"} {
		_ = w.child(step, i).Wait() // killed; checked by TestWriterKilled
	}
	close(killed)
	<-published
	w.settled(40 * time.Second)
	for i := range 3 {
		w.want(schemas.Classes()[i].Table(), (messages+2-i)/3*6)
	}
	for _, r := range stay {
		r.stop()
	}
}

// NATS goes away in the middle of inserts and comes back: acknowledgements
// are lost, the record cannot be written for a while.
func TestRecordUnreachable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.impatient(schemas.DurableSink, time.Second)
	var cut atomic.Int32
	r := w.start(func(wr *Writer) {
		wr.step = func(at string) {
			// The connection breaks three times, each time elsewhere.
			if n := cut.Load(); n < 3 && at == []string{"planning", "planned", "inserted"}[n] {
				cut.Add(1)
				if err := wr.bus.NC.ForceReconnect(); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for range 100 {
		w.publish(message{class: schemas.Process, rows: 5})
		time.Sleep(10 * time.Millisecond)
	}
	w.settled(30 * time.Second)
	w.want("process", 500)
	if r.metric("picket_sink_lookups_total") == 0 {
		t.Error("what came before an interruption was taken for sure after it")
	}
	if cut.Load() != 3 {
		t.Errorf("%d of 3 interruptions happened", cut.Load())
	}
	r.stop()
}
