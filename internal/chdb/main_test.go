package chdb

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// engine is the one engine the tests of this process have.
var engine *Engine

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (int, error) {
	signal.Ignore(syscall.SIGPIPE)
	dir, err := os.MkdirTemp("", "chdb-test-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if engine, err = Open(Options{Data: dir}); err != nil {
		return 1, err
	}
	code := m.Run()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := engine.Close(ctx); err != nil {
		return 1, err
	}
	// What a Go process keeps for signals is not a leak.
	return code, goleak.Find(goleak.IgnoreTopFunction("os/signal.signal_recv"), goleak.IgnoreTopFunction("os/signal.loop"))
}

// newServer serves the engine to one test.
func newServer(t testing.TB, o HandlerOptions) string {
	t.Helper()
	server := httptest.NewServer(NewHandler(engine, slog.New(slog.DiscardHandler), o))
	t.Cleanup(server.Close)
	return server.URL
}

// answer is a response with its body.
type answer struct {
	status int
	header http.Header
	body   string
	err    error // of reading the body
}

// get returns a header whose name is spelled as ClickHouse does.
func (a answer) get(name string) string { return a.header.Get(name) }

// client sends requests as they are: no compression of its own.
func client(t testing.TB) *http.Client {
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// send makes a request; headers are pairs of name and value.
func send(t testing.TB, method, address, body string, headers ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := client(t).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, string(text), err}
}

// get and post send a query; parameters are pairs of name and value.
func get(t testing.TB, server, sql string, params ...string) answer {
	t.Helper()
	return send(t, http.MethodGet, server+"/?"+values(append(params, "query", sql)), "")
}

func post(t testing.TB, server, body string, params ...string) answer {
	t.Helper()
	return send(t, http.MethodPost, server+"/?"+values(params), body)
}

func values(pairs []string) string {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return v.Encode()
}

// wantBody fails the test unless the answer is a good one with this body.
func wantBody(t testing.TB, a answer, body string) {
	t.Helper()
	if a.status != http.StatusOK || a.err != nil || a.body != body {
		t.Errorf("status %d, error %v, body %.400q, want %.400q", a.status, a.err, a.body, body)
	}
}

// wantException fails the test unless the answer is this exception.
func wantException(t testing.TB, a answer, status int, code, text string) {
	t.Helper()
	if a.status != status || a.get("X-ClickHouse-Exception-Code") != code || !strings.HasPrefix(a.body, "Code: "+code+". DB::") || !strings.Contains(a.body, text) {
		t.Errorf("status %d, code %s, body %.600q, want status %d, code %s, %q", a.status, a.get("X-ClickHouse-Exception-Code"), a.body, status, code, text)
	}
	if !strings.HasSuffix(a.body, " (version "+engine.Version()+")\n") {
		t.Errorf("the body does not end with the version: %q", a.body)
	}
	if strings.Contains(a.body, "picket") && strings.Contains(a.body, "/*") {
		t.Errorf("the body shows what was added to the statement: %q", a.body)
	}
}

// table makes a MergeTree table of this test and returns its name.
func table(t testing.TB, server, columns string, settings ...string) string {
	t.Helper()
	name := "t_" + strings.ToLower(strings.NewReplacer("/", "_", "#", "_", " ", "_", "-", "_").Replace(t.Name()))
	ddl := fmt.Sprintf("CREATE TABLE %s (%s) ENGINE = MergeTree ORDER BY tuple()", name, columns)
	if len(settings) > 0 {
		ddl += " SETTINGS " + strings.Join(settings, ", ")
	}
	wantBody(t, post(t, server, ddl), "")
	t.Cleanup(func() { _, _, _ = engine.Query(context.Background(), Query{SQL: "DROP TABLE " + name + " SYNC"}) })
	return name
}
