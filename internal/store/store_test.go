package store

import (
	"context"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"picket/internal/batch"
	"picket/internal/clickhousebin/clickhousetest"
	"picket/schemas"
)

func TestQuery(t *testing.T) {
	t.Parallel()
	db := open(t, clickhousetest.Start(t, "").URL)
	if _, err := db.Query(t.Context(), "SELECT 1", "TSV"); err == nil || !strings.Contains(err.Error(), "picket migrate") {
		t.Errorf("before the migration: %v", err)
	}
	if err := db.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for format, want := range map[string]string{
		"JSONEachRow":   "{\"a\":1,\"b\":\"x\"}\n",
		"CSVWithNames":  "\"a\",\"b\"\n1,\"x\"\n",
		"PrettyCompact": "┌─a─┬─b─┐",
	} {
		r, err := db.Query(t.Context(), "SELECT 1 AS a, 'x' AS b", format)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if !strings.Contains(string(got), want) {
			t.Errorf("%s: %q", format, got)
		}
	}
	// Tables need no database name.
	if got := query(t, db, "SELECT count() FROM process"); got != "0" {
		t.Errorf("count %s", got)
	}
	for sql, want := range map[string]string{
		"SELECT nothing FROM process": "ClickHouse refuses: Unknown expression",
		"SELECT 1 FROM nowhere":       "ClickHouse refuses: Unknown table",
		"SELEKT":                      "ClickHouse refuses: Syntax error",
	} {
		_, err := db.Query(t.Context(), sql, "TSV")
		if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "version") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s says: %v", sql, err)
		}
	}
	// A failure after the first rows.
	r, err := db.Query(t.Context(), "SELECT throwIf(number = 3000000) FROM numbers(4000000) SETTINGS max_block_size = 1000", "TSV")
	if err == nil {
		_, err = io.Copy(io.Discard, r)
		r.Close()
	}
	if err == nil || !strings.HasPrefix(err.Error(), "ClickHouse refuses: ") {
		t.Errorf("in the middle of a result: %v", err)
	}
}

// The statements of docs/storage.md, with events and an alert in the tables.
func TestDocumentedSQL(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/storage.md")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	events, alerts := w.start(nil), w.startOn(w.ch.URL, NewAlerts(), nil)
	w.publish(message{class: schemas.Process, rows: 10, set: func(b *batch.Builder, row int) { b.Int64(schemas.TimeObserved, time.Now().UnixNano()) }})
	w.alert(exampleFinding(1, 1), nil)
	w.settled(20 * time.Second)
	eventually(t, "the alert is stored", 20*time.Second, func() bool { return query(t, w.db, "SELECT count() FROM alerts") == "1" })
	events.stop()
	alerts.stop()
	blocks := strings.Split(string(doc), "```sql\n")[1:]
	if len(blocks) < 5 {
		t.Fatalf("%d statements", len(blocks))
	}
	for _, b := range blocks {
		sql, _, _ := strings.Cut(b, "```")
		got := query(t, w.db, sql)
		if (strings.Contains(sql, "system.parts") || strings.Contains(sql, "merge(")) && got == "" {
			t.Errorf("no result of %s", sql)
		}
		t.Logf("%s\n%s", sql, got)
	}
}

// A wrong address is a sentence that names the setting.
func TestWrongAddress(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	defer hangs.Close()
	for name, url := range map[string]string{"nobody": "http://127.0.0.1:1", "no such host": "http://nowhere.invalid:8123", "other server": other.URL, "hangs": hangs.URL} {
		t.Run(name, func(t *testing.T) {
			db := open(t, url)
			err := db.Ready()
			if err == nil || !strings.Contains(err.Error(), "clickhouse.url") || strings.ContainsAny(err.Error(), "\n?") || len(err.Error()) > 300 {
				t.Errorf("Ready says: %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := db.Wait(ctx, 0); err != context.DeadlineExceeded {
				t.Errorf("Wait gave up before it was told to: %v", err)
			}
		})
	}
}

// Wait does not wait for ever for tables that nobody makes.
func TestWaitForTables(t *testing.T) {
	t.Parallel()
	db := open(t, clickhousetest.Start(t, "").URL)
	start := time.Now()
	err := db.Wait(t.Context(), 500*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "run `picket migrate`") {
		t.Errorf("Wait says: %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %s", d)
	}
}

func TestConfig(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	if err := DefaultInsert().Validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Config){
		"clickhouse.url is empty":                     func(c *Config) { c.URL = "" },
		"HTTP interface (port 8123, with TLS 8443)":   func(c *Config) { c.URL = "clickhouse://127.0.0.1:9000" },
		"use http://host:8123":                        func(c *Config) { c.URL = "127.0.0.1:8123" },
		"clickhouse.username":                         func(c *Config) { c.URL = "http://me:secret@127.0.0.1:8123" },
		"leave out what follows host and port":        func(c *Config) { c.URL = "http://127.0.0.1:8123/?database=x" },
		"clickhouse.insert_timeout is 0s":             func(c *Config) { c.InsertTimeout = 0 },
		"clickhouse.password_file: stat /nonexistent": func(c *Config) { c.PasswordFile = "/nonexistent" },
		"clickhouse.ca_file: stat /nonexistent":       func(c *Config) { c.CAFile = "/nonexistent" },
	} {
		c := DefaultConfig()
		change(&c)
		err := c.Validate()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the message shows the password: %v", err)
		}
	}
	for want, change := range map[string]func(*InsertConfig){
		"insert.flush_interval is 1ms": func(c *InsertConfig) { c.FlushInterval = time.Millisecond },
		"insert.max_rows is 0":         func(c *InsertConfig) { c.MaxRows = 0 },
		"insert.max_bytes is 1":        func(c *InsertConfig) { c.MaxBytes = 1 },
		"insert.max_held_bytes is 1":   func(c *InsertConfig) { c.MaxHeldBytes = 1 },
		"insert.concurrency is 0":      func(c *InsertConfig) { c.Concurrency = 0 },
	} {
		c := DefaultInsert()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestOptions(t *testing.T) {
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte(" s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := Config{URL: "https://ch.example", Username: "writer", PasswordFile: password, InsertTimeout: time.Minute}
	o, err := c.options()
	if err != nil {
		t.Fatal(err)
	}
	if o.Addr[0] != "ch.example:8443" || o.Auth.Password != "s3cret" || o.Auth.Username != "writer" || o.TLS == nil || o.TLS.ServerName != "ch.example" {
		t.Errorf("%+v", o)
	}
	c.URL, c.CAFile = "http://[::1]", password
	if _, err := c.options(); err == nil || !strings.Contains(err.Error(), "use https://") {
		t.Errorf("ca_file without TLS: %v", err)
	}
	c.URL = "https://[::1]"
	if _, err := c.options(); err == nil || !strings.Contains(err.Error(), "holds no PEM certificate") {
		t.Errorf("ca_file of something else: %v", err)
	}
}

// TLS with an authority of one's own, user and password.
func TestTLS(t *testing.T) {
	t.Parallel()
	s := clickhousetest.Start(t, "")
	p := newProxy(t, s.URL)
	handler := p.Config.Handler
	var user, key string
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, key = r.Header.Get("X-ClickHouse-User"), r.Header.Get("X-ClickHouse-Key")
		r.Header.Del("X-ClickHouse-User") // the engine behind has no users
		r.Header.Del("X-ClickHouse-Key")
		handler.ServeHTTP(w, r)
	}))
	defer secure.Close()
	dir := t.TempDir()
	ca, password := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "password")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(password, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	cfg := DefaultConfig()
	cfg.URL, cfg.Username, cfg.PasswordFile = secure.URL, "writer", password
	stranger, err := Open(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if err := stranger.Ready(); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown authority is trusted: %v", err)
	}
	cfg.CAFile = ca
	db, err := Open(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Ready(); err != nil {
		t.Fatal(err)
	}
	if user != "writer" || key != "s3cret" {
		t.Errorf("user %q, password %q", user, key)
	}
}
