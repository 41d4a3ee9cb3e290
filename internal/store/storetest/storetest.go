// Package storetest gives tests stored events: the real ClickHouse, and the sink's
// writer that puts into it what is published on the real NATS.
package storetest

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/clickhousebin/clickhousetest"
	"picket/internal/health"
	"picket/internal/natsserver/natstest"
	"picket/internal/store"
	"picket/schemas"
)

// Tables are those of a ClickHouse into which the writer puts batches until the
// test ends. Use them from one goroutine at a time.
type Tables struct {
	DB  *store.DB
	URL string // of its HTTP interface

	t       testing.TB
	enrich  *bus.Bus
	batches uint64
	sent    map[string]int // rows by subject
	rows    map[schemas.Class]int
}

// Start starts NATS, ClickHouse and the writer between them.
func Start(t testing.TB) *Tables {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	cfg := store.DefaultConfig()
	cfg.URL = clickhousetest.Start(t, "").URL
	db, err := store.Open(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	server := natstest.Start(t)
	reg := prometheus.NewRegistry()
	insert := store.DefaultInsert()
	insert.FlushInterval = 50 * time.Millisecond
	w := store.NewWriter(db, natstest.Connect(t, server, schemas.ServiceSink), store.WriterOptions{
		Stream: schemas.StreamEvents, Durable: schemas.DurableSink, Source: store.NewEvents(), Insert: insert, Grace: 5 * time.Second,
		Service: schemas.ServiceSink, Health: health.New(schemas.ServiceSink, "c1", "", "run", log, reg),
	}, log, reg)
	s := &Tables{DB: db, URL: cfg.URL, t: t, enrich: natstest.Connect(t, server, schemas.ServiceEnricher), sent: make(map[string]int), rows: make(map[schemas.Class]int)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the writer ended with: %v", err)
		}
	})
	return s
}

// Publish publishes rows as a node's, and returns them as the detector decodes them.
func (s *Tables) Publish(cluster, node string, b *batch.Batch) (published []*batch.Batch) {
	s.t.Helper()
	encoded, err := batch.Encode(b)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range encoded {
		d, err := batch.Decode(e.Data)
		if err != nil {
			s.t.Fatal(err)
		}
		published = append(published, d)
		s.batches++
		m := nats.NewMsg(schemas.EventsSubject(cluster, node, b.Class()))
		m.Data = e.Data
		s.sent[m.Subject] += d.Rows()
		s.rows[b.Class()] += d.Rows()
		for k, v := range map[string]string{
			schemas.HeaderRun: "run", schemas.HeaderBatch: strconv.FormatUint(s.batches, 10), schemas.HeaderBatchID: schemas.BatchIDOf("run", s.batches),
			schemas.HeaderRows: strconv.Itoa(d.Rows()), schemas.HeaderCumulative: strconv.Itoa(s.sent[m.Subject]),
		} {
			m.Header.Set(k, v)
		}
		if _, err := s.enrich.JS.PublishMsg(s.t.Context(), m); err != nil {
			s.t.Fatal(err)
		}
	}
	return published
}

// Wait waits until the tables have all rows that were published.
func (s *Tables) Wait() {
	s.t.Helper()
	for class, rows := range s.rows {
		want := strconv.Itoa(rows)
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			got := s.Query("SELECT count() FROM "+class.Table(), "TabSeparated")
			if len(got) == 1 && got[0] == want {
				break
			}
			if time.Now().After(deadline) {
				s.t.Fatalf("table %s has %s rows, and %s were published", class.Table(), got, want)
			}
		}
	}
}

// Query returns the lines of a statement's result in a format of ClickHouse.
func (s *Tables) Query(sql, format string) (lines []string) {
	s.t.Helper()
	r, err := s.DB.Query(s.t.Context(), sql, format)
	if err != nil {
		s.t.Fatalf("%v\n%.3000s", err, sql)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		s.t.Fatalf("%v\n%.3000s", err, sql)
	}
	for line := range strings.Lines(string(data)) {
		lines = append(lines, strings.TrimSuffix(line, "\n"))
	}
	return lines
}
