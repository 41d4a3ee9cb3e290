package chdb_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"picket/internal/clickhousebin"
	"picket/internal/clickhousebin/clickhousetest"
)

// Tests of picket-clickhouse as a process.

// startEmbedded runs picket-clickhouse, also where there is a clickhouse.
func startEmbedded(t *testing.T, data string) *clickhousebin.Server {
	t.Helper()
	binary := clickhousetest.Binary(t)
	t.Setenv("PATH", t.TempDir())
	s, err := clickhousebin.Start(t.Context(), clickhousebin.Options{Data: data, Binary: binary})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *clickhousebin.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// ask sends a statement, with data behind it if there is some.
func ask(t *testing.T, s *clickhousebin.Server, sql string, data io.Reader) (int, string) {
	t.Helper()
	if data == nil {
		data = strings.NewReader("")
	}
	r, err := http.NewRequest(http.MethodPost, s.URL+"/", data)
	if err != nil {
		t.Fatal(err)
	}
	q := r.URL.Query()
	q.Set("query", sql)
	q.Set("insert_deduplication_token", "the token of this test")
	r.URL.RawQuery = q.Encode()
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	a, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(text)
}

func want(t *testing.T, s *clickhousebin.Server, sql, answer string) {
	t.Helper()
	if status, got := ask(t, s, sql, nil); status != http.StatusOK || got != answer {
		t.Errorf("%s: %d %.500q, want %q", sql, status, got, answer)
	}
}

func TestFeature28StopAndRestart(t *testing.T) {
	data := t.TempDir()
	s := startEmbedded(t, data)
	want(t, s, "CREATE DATABASE d", "")
	want(t, s, "CREATE TABLE d.kept (a UInt64) ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 1000", "")
	want(t, s, "CREATE TABLE d.sums (a UInt64, n AggregateFunction(count)) ENGINE = AggregatingMergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 1000", "")
	want(t, s, "CREATE MATERIALIZED VIEW d.view TO d.sums AS SELECT a % 10 AS a, countState() AS n FROM d.kept GROUP BY a", "")
	insert := func() {
		t.Helper()
		var rows strings.Builder
		for i := range 1000 {
			fmt.Fprintln(&rows, i)
		}
		if status, text := ask(t, s, "INSERT INTO d.kept FORMAT TSV", strings.NewReader(rows.String())); status != 200 || text != "" {
			t.Errorf("%d %s", status, text)
		}
		want(t, s, "SELECT count(), sum(a) FROM d.kept", "1000\t499500\n")
		want(t, s, "SELECT count(), sum(n) FROM (SELECT a, countMerge(n) AS n FROM d.sums GROUP BY a)", "10\t1000\n")
	}
	insert()
	insert()

	// A stop waits for the query that runs.
	slow := make(chan string)
	go func() {
		status, text := ask(t, s, "SELECT sleep(2), 'ended'", nil)
		slow <- fmt.Sprint(status, text)
	}()
	time.Sleep(300 * time.Millisecond)
	began := time.Now()
	stop(t, s)
	if got := <-slow; got != "200"+"0\tended\n" {
		t.Errorf("%q", got)
	}
	if took := time.Since(began); took < time.Second || took > 10*time.Second {
		t.Errorf("stopped after %v", took)
	}
	if log, err := os.ReadFile(s.LogFile); err != nil || !bytes.Contains(log, []byte("msg=stopped")) {
		t.Errorf("%v %s", err, log)
	}

	// The same insert is known after a stop, and after a crash.
	s = startEmbedded(t, data)
	insert()
	if err := syscall.Kill(s.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	s = startEmbedded(t, data)
	insert()
	// SIGINT stops it as well.
	if err := syscall.Kill(s.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
	case <-time.After(10 * time.Second):
		t.Error("SIGINT does not stop it")
	}
}

func resident(t *testing.T, pid int, field string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(status), field+":")
	kb, err := strconv.Atoi(strings.Fields(text)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kb / 1024
}

// An insert of 256 MB and results of several times that pass through a process that
// stays small.
func TestMemoryStaysBounded(t *testing.T) {
	s := startEmbedded(t, t.TempDir())
	idle := resident(t, s.Pid, "RssAnon")
	want(t, s, "CREATE TABLE big (a String) ENGINE = MergeTree ORDER BY tuple()", "")
	line := strings.Repeat("0123456789abcdef", 16)[:255] + "\n"
	const lines = 1 << 20 // of 256 bytes: 256 MiB to the byte
	if status, text := ask(t, s, "INSERT INTO big FORMAT TSV", io.LimitReader(repeat(line), lines*256)); status != 200 {
		t.Fatalf("%d %s", status, text)
	}
	want(t, s, "SELECT count(), sum(length(a)) FROM big", fmt.Sprintf("%d\t%d\n", lines, lines*255))
	afterInsert := resident(t, s.Pid, "VmHWM")
	if status, text := ask(t, s, "INSERT INTO big FORMAT TSV", io.LimitReader(repeat(line), lines*256+1)); status != 413 {
		t.Errorf("one byte more: %d %s", status, text)
	}

	for _, format := range []string{"RowBinary", "JSON", "Native"} {
		a, err := http.Post(s.URL+"/?client_protocol_version=54460", "", strings.NewReader("SELECT a FROM big ARRAY JOIN range(3) AS n FORMAT "+format))
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, a.Body)
		a.Body.Close()
		if err != nil || n < 3*lines*255 {
			t.Errorf("%s: %d bytes, %v", format, n, err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	peak := resident(t, s.Pid, "VmHWM")
	t.Logf("MiB: anonymous when idle %d, peak resident after an insert of 256 MiB %d, after results of 768 MiB %d", idle, afterInsert, peak)
	if peak > 1500 {
		t.Errorf("peak of %d MiB", peak)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(s.LogFile), "http", "*")); err != nil || len(left) > 0 {
		t.Errorf("temporary files are left: %v %v", left, err)
	}
}

type repeater struct {
	text string
	pos  int
}

func repeat(text string) io.Reader { return &repeater{text: text} }

func (r *repeater) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		c := copy(p[n:], r.text[r.pos:])
		n += c
		r.pos = (r.pos + c) % len(r.text)
	}
	return n, nil
}

// A query can name any file; the process cannot open it.
func TestConfined(t *testing.T) {
	data := t.TempDir()
	s := startEmbedded(t, data)
	secret := filepath.Join(t.TempDir(), "secret.tsv")
	if err := os.WriteFile(secret, []byte("secret\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{secret, "/etc/passwd", "/proc/1/environ", fmt.Sprintf("/proc/%d/environ", os.Getpid()), "/proc/self/root" + secret, fmt.Sprintf("/proc/%d/root%s", os.Getpid(), secret)} {
		if status, text := ask(t, s, "SELECT * FROM file('"+path+"', 'LineAsString', 'a String')", nil); status == 200 || !strings.Contains(text, "ermission denied") {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
	if status, text := ask(t, s, "INSERT INTO FUNCTION file('"+secret+".new', 'TSV', 'a String') VALUES ('x')", nil); status == 200 {
		t.Errorf("wrote a file: %s", text)
	}
	if status, text := ask(t, s, "SELECT * FROM executable('id', 'TSV', 'a String')", nil); status == 200 {
		t.Errorf("ran a program: %s", text)
	}
	// What is its own works, links included.
	want(t, s, "INSERT INTO FUNCTION file('"+filepath.Join(data, "own.tsv")+"', 'TSV', 'a String') VALUES ('x')", "")
	want(t, s, "SELECT * FROM file('"+filepath.Join(data, "own.tsv")+"', 'TSV', 'a String')", "x\n")
}

func TestUsage(t *testing.T) {
	binary := clickhousetest.Binary(t)
	out, err := exec.Command(binary).CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("usage: picket-clickhouse --data FOLDER")) || !bytes.Contains(out, []byte("max-memory")) {
		t.Errorf("%v %s", err, out)
	}
}
