package chdb

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/andybalholm/brotli"
)

// One test for each line of the list in doc.go, of the same number.

func TestFeature01Health(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	for _, path := range []string{"/", "", "/ping", "/replicas_status"} {
		wantBody(t, send(t, "GET", s+path, ""), "Ok.\n")
	}
	if a := send(t, "GET", s+"/elsewhere", ""); a.status != http.StatusNotFound || !strings.Contains(a.body, "There is no handle /elsewhere") {
		t.Errorf("%+v", a)
	}
}

func TestFeature02QueryInURL(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	wantBody(t, send(t, "GET", s+"/?query=SELECT%201", ""), "1\n")
	a := send(t, "HEAD", s+"/?query=SELECT%201", "")
	wantBody(t, a, "")
	if a.get("X-ClickHouse-Format") != "TabSeparated" {
		t.Errorf("%v", a.header)
	}
}

func TestFeature03QueryInBody(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	wantBody(t, send(t, "POST", s, "SELECT 1"), "1\n")
	wantBody(t, send(t, "POST", s+"/", "SELECT 1 ; -- and nothing more\n"), "1\n")
	wantException(t, send(t, "POST", s, ""), 400, "62", "Empty query")
	// A statement longer than what is read at first.
	wantBody(t, post(t, s, "SELECT 1 /*"+strings.Repeat("x", 2<<20)+"*/", "max_query_size", "10000000"), "1\n")
}

func TestFeature04QueryInBoth(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	wantBody(t, send(t, "POST", s+"/?query=SELECT", "1"), "1\n")
	wantException(t, send(t, "POST", s+"/?query=SEL", "ECT 1"), 400, "62", "Syntax error")
}

func TestFeature05GetIsReadonly(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	name := table(t, s, "a UInt8")
	for _, sql := range []string{"INSERT INTO " + name + " VALUES (1)", "DROP TABLE " + name, "CREATE TABLE other (a UInt8) ENGINE = Memory"} {
		wantException(t, get(t, s, sql), 500, "164", "readonly")
		wantException(t, get(t, s, sql, "readonly", "0"), 500, "164", "readonly")
		wantException(t, get(t, s, sql, "readonly", "1"), 500, "164", "readonly")
		wantException(t, post(t, s, sql, "readonly", "1"), 500, "164", "readonly")
	}
	wantBody(t, get(t, s, "SELECT count() FROM "+name, "max_threads", "1"), "0\n")
}

func TestFeature06Formats(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	for _, c := range []struct{ sql, format, contentType, body string }{
		{"SELECT 1 AS a FORMAT TSVWithNames", "TSVWithNames", "text/tab-separated-values; charset=UTF-8", "a\n1\n"},
		{"SELECT 1 AS a FORMAT CSV", "CSV", "text/csv; charset=UTF-8; header=absent", "1\n"},
		{"SELECT 1 AS a FORMAT CSVWithNames", "CSVWithNames", "text/csv; charset=UTF-8; header=present", "\"a\"\n1\n"},
		{"SELECT 1 AS a FORMAT JSONEachRow", "JSONEachRow", "application/x-ndjson; charset=UTF-8", "{\"a\":1}\n"},
		{"SELECT 1 AS a FORMAT JSONEachRow SETTINGS max_threads = 1", "JSONEachRow", "application/x-ndjson; charset=UTF-8", "{\"a\":1}\n"},
		{"SELECT 1 AS a SETTINGS max_threads = 1 FORMAT JSONEachRow;", "JSONEachRow", "application/x-ndjson; charset=UTF-8", "{\"a\":1}\n"},
		{"(SELECT 1 AS a) UNION ALL (SELECT 1) FORMAT Values", "Values", "text/plain; charset=UTF-8", "(1),(1)"},
		{"WITH 1 AS a SELECT a FORMAT RowBinary", "RowBinary", "application/octet-stream", "\x01"},
		{"SHOW DATABASES LIKE 'default' FORMAT JSONEachRow", "JSONEachRow", "application/x-ndjson; charset=UTF-8", "{\"name\":\"default\"}\n"},
		{"EXISTS TABLE system.one FORMAT XML", "XML", "application/xml; charset=UTF-8", ""},
		{"SELECT number FROM numbers(3) FORMAT JSON", "JSON", "application/json; charset=UTF-8", ""},
	} {
		a := post(t, s, c.sql, "default_format", "Pretty")
		if c.body == "" {
			c.body = a.body
		}
		wantBody(t, a, c.body)
		if a.get("X-ClickHouse-Format") != c.format || a.get("Content-Type") != c.contentType {
			t.Errorf("%s: format %s, type %s", c.sql, a.get("X-ClickHouse-Format"), a.get("Content-Type"))
		}
	}
	wantBody(t, post(t, s, "SELECT 1", "default_format", "CSVWithNames"), "\"1\"\n1\n")
	wantBody(t, send(t, "POST", s, "SELECT 1", "X-ClickHouse-Format", "CSVWithNames"), "\"1\"\n1\n")
	wantBody(t, send(t, "POST", s+"?default_format=TSV", "SELECT 1", "X-ClickHouse-Format", "CSVWithNames"), "1\n")
	wantException(t, post(t, s, "SELECT 1 FORMAT Nonsense"), 404, "73", "Unknown format Nonsense")
	wantException(t, post(t, s, "SELECT 1", "default_format", "Nonsense"), 404, "73", "Unknown format Nonsense")
	wantException(t, send(t, "POST", s, "SELECT 1", "X-ClickHouse-Format", "TSV'"), 404, "73", "Unknown format")
	wantException(t, post(t, s, "SELECT 1", "default_format", "TSV SETTINGS max_threads = 1"), 404, "73", "Unknown format")

	// Formats with a frame around the rows have one frame, however many blocks.
	a := post(t, s, "SELECT number FROM numbers(200000) FORMAT JSON")
	if !strings.Contains(a.body, "\"rows\": 200000") || strings.Count(a.body, "\"meta\"") != 1 {
		t.Errorf("%.200s … %.200s", a.body, a.body[max(0, len(a.body)-200):])
	}
}

func TestFeature07Parameters(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	for _, c := range []struct{ typ, value, want string }{
		{"UInt8", "7", "7"},
		{"String", `it's "quoted"; DROP TABLE t -- `, `it\'s "quoted"; DROP TABLE t -- `},
		{"String", `a\tb`, `a\tb`},
		{"Array(String)", "['x','y']", `['x','y']`},
		{"Nullable(String)", `\N`, `\N`},
		{"DateTime64(3)", "2026-01-02 03:04:05.678", "2026-01-02 03:04:05.678"},
	} {
		wantBody(t, post(t, s, "SELECT {p:"+c.typ+"}", "param_p", c.value), c.want+"\n")
	}
	wantBody(t, post(t, s, "SELECT count() FROM {db:Identifier}.{t:Identifier}", "param_db", "system", "param_t", "one"), "1\n")
	wantException(t, post(t, s, "SELECT {p:UInt8}", "param_p", "x"), 500, "457", "BAD_QUERY_PARAMETER")
	wantException(t, post(t, s, "SELECT {p:UInt8}"), 500, "456", "UNKNOWN_QUERY_PARAMETER")

	name := table(t, s, "a String")
	wantBody(t, post(t, s, "INSERT INTO "+name+" VALUES ({p:String})", "param_p", "from a parameter"), "")
	wantBody(t, post(t, s, "INSERT INTO {t:Identifier} VALUES ('into a parameter')", "param_t", name), "")
	wantBody(t, post(t, s, "SELECT a FROM "+name+" ORDER BY a"), "from a parameter\ninto a parameter\n")
}

func TestFeature08Settings(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	const ask = "SELECT getSetting('max_threads'), getSetting('max_block_size')"
	before := post(t, s, ask)
	wantBody(t, post(t, s, ask, "max_threads", "1", "max_block_size", "17"), "1\t17\n")
	wantBody(t, post(t, s, ask), before.body)
	// What a statement sets itself ends with it, too.
	wantBody(t, post(t, s, "SET max_threads = 1"), "")
	wantBody(t, post(t, s, "USE system"), "")
	wantBody(t, post(t, s, "CREATE TEMPORARY TABLE passing (a UInt8)"), "")
	wantBody(t, post(t, s, ask), before.body)
	wantBody(t, post(t, s, "SELECT currentDatabase()"), "default\n")
	wantException(t, post(t, s, "SELECT * FROM passing"), 404, "60", "UNKNOWN_TABLE")

	wantBody(t, post(t, s, "SELECT getSetting('log_comment')", "log_comment", `it's a \ 'comment'`), "it\\'s a \\\\ \\'comment\\'\n")
	wantException(t, post(t, s, "SELECT 1", "no_such_setting", "1"), 404, "115", "no_such_setting")
	wantException(t, post(t, s, "SELECT 1", "max_threads = 1, max_block_size", "1"), 404, "115", "UNKNOWN_SETTING")
	wantException(t, post(t, s, "SELECT 1", "max_threads", "many"), 400, "27", "many")
	wantException(t, post(t, s, "SELECT sleepEachRow(0.1) FROM numbers(100) SETTINGS max_block_size = 1", "max_execution_time", "0.3"), 408, "159", "TIMEOUT_EXCEEDED")
	wantException(t, post(t, s, "SELECT groupArray(number) FROM numbers(10000000)", "max_memory_usage", "10000000"), 500, "241", "MEMORY_LIMIT_EXCEEDED")
	wantException(t, post(t, s, "SELECT number FROM numbers(1000)", "max_result_rows", "10"), 500, "396", "TOO_MANY_ROWS_OR_BYTES")
}

func TestFeature09Database(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	wantBody(t, post(t, s, "CREATE DATABASE `odd ``name`"), "")
	defer post(t, s, "DROP DATABASE `odd ``name`")
	wantBody(t, post(t, s, "SELECT currentDatabase()", "database", "odd `name"), "odd `name\n")
	wantBody(t, send(t, "POST", s, "SELECT currentDatabase()", "X-ClickHouse-Database", "system"), "system\n")
	wantBody(t, send(t, "POST", s+"?database=default", "SELECT currentDatabase()", "X-ClickHouse-Database", "system"), "default\n")
	wantException(t, post(t, s, "SELECT 1", "database", "nowhere"), 404, "81", "nowhere")
}

func TestFeature10QueryID(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	if got := post(t, s, "SELECT 1", "query_id", "mine").get("X-ClickHouse-Query-Id"); got != "mine" {
		t.Errorf("%q", got)
	}
	if got := send(t, "POST", s, "SELECT 1", "X-ClickHouse-Query-Id", "mine").get("X-ClickHouse-Query-Id"); got != "mine" {
		t.Errorf("%q", got)
	}
	first, second := post(t, s, "SELECT 1"), post(t, s, "SELEC")
	for _, a := range []answer{first, second} {
		if len(a.get("X-ClickHouse-Query-Id")) != 36 {
			t.Errorf("%v", a.header)
		}
	}
	if first.get("X-ClickHouse-Query-Id") == second.get("X-ClickHouse-Query-Id") {
		t.Error("two queries have the same id")
	}
}

func TestFeature11Exceptions(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	name := table(t, s, "a UInt64")
	for _, c := range []struct {
		sql        string
		status     int
		code, text string
	}{
		{"SELEC 1", 400, "62", "SYNTAX_ERROR"},
		{"SELECT 1 +", 400, "62", "SYNTAX_ERROR"},
		{"SELECT * FROM nowhere", 404, "60", "Unknown table expression identifier 'nowhere'"},
		{"SELECT nothing FROM " + name, 404, "47", "UNKNOWN_IDENTIFIER"},
		{"SELECT no_such_function()", 404, "46", "UNKNOWN_FUNCTION"},
		{"SELECT toUInt8('x')", 400, "6", "CANNOT_PARSE_TEXT"},
		{"SELECT throwIf(1, 'on purpose')", 500, "395", "on purpose"},
		{"INSERT INTO nowhere VALUES (1)", 404, "60", "UNKNOWN_TABLE"},
		{"INSERT INTO " + name + " FORMAT TSV\nx\n", 400, "27", "the request body"},
		{"INSERT INTO " + name + " FORMAT Nonsense\nx\n", 404, "73", "Nonsense"},
		{"INSERT INTO " + name + " (b) VALUES (1)", 500, "16", "NO_SUCH_COLUMN"},
		{"CREATE TABLE " + name + " (a UInt8) ENGINE = Memory", 500, "57", "TABLE_ALREADY_EXISTS"},
		{"CREATE TABLE other (a Nonsense) ENGINE = Memory", 404, "50", "UNKNOWN_TYPE"},
		{"DROP TABLE nowhere", 404, "60", "UNKNOWN_TABLE"},
		{"GRANT ALL ON *.* TO default", 403, "497", "ACCESS_DENIED"},
	} {
		t.Run(c.sql, func(t *testing.T) {
			a := post(t, s, c.sql)
			wantException(t, a, c.status, c.code, c.text)
			if strings.Count(a.body, "DB::Exception") != 1 || strings.Contains(a.body, "/proc/self") || strings.Contains(a.body, engine.data) {
				t.Errorf("%s", a.body)
			}
			if got := a.get("Content-Type"); got != "text/plain; charset=UTF-8" {
				t.Errorf("content type %s", got)
			}
		})
	}
	// A failed query leaves nothing behind.
	wantBody(t, post(t, s, "SELECT count() FROM "+name), "0\n")
}

func TestFeature12LateException(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	const sql = "SELECT throwIf(number = 3000000) FROM numbers(4000000) SETTINGS max_threads = 1, max_block_size = 1000"
	a := post(t, s, sql)
	tag := a.get("X-ClickHouse-Exception-Tag")
	if a.status != 200 || len(tag) != 16 {
		t.Fatalf("%d %v", a.status, a.header)
	}
	if !errors.Is(a.err, io.ErrUnexpectedEOF) {
		t.Errorf("the connection was not cut: %v", a.err)
	}
	data, block, found := strings.Cut(a.body, "\r\n__exception__\r\n"+tag+"\r\n")
	if !found || strings.Trim(data, "0\n") != "" || len(data) < responseBuffer {
		t.Fatalf("%d bytes, then %.300q", len(data), block)
	}
	text, rest, _ := strings.Cut(block, "\n")
	if !strings.HasPrefix(text, "Code: 395. DB::Exception: ") || rest != fmt.Sprintf("%d %s\r\n__exception__\r\n", len(text)+1, tag) {
		t.Errorf("%q", block)
	}
	// Through an encoding the client gets all of it as well.
	r, err := http.NewRequestWithContext(t.Context(), "POST", s, strings.NewReader(sql))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept-Encoding", "gzip")
	response, err := client(t).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	z, err := gzip.NewReader(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	z.Multistream(false)
	if all, _ := io.ReadAll(z); !strings.HasSuffix(string(all), "\r\n__exception__\r\n") {
		t.Errorf("%.300q", all[max(0, len(all)-300):])
	}
}

func TestFeature13Summary(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	name := table(t, s, "a UInt64")
	if got := post(t, s, "INSERT INTO "+name+" FORMAT TSV\n1\n2\n3\n").get("X-ClickHouse-Summary"); !strings.Contains(got, `"written_rows":"3","written_bytes":"24"`) {
		t.Errorf("%s", got)
	}
	if got := post(t, s, "SELECT a FROM "+name+" WHERE a > 1").get("X-ClickHouse-Summary"); !strings.Contains(got, `"read_rows":"3","read_bytes":"24"`) || !strings.Contains(got, `"result_rows":"2"`) {
		t.Errorf("%s", got)
	}
	const large = "SELECT number FROM numbers(1000000)"
	if got := post(t, s, large).get("X-ClickHouse-Summary"); got != "" {
		t.Errorf("sent before the query ended: %s", got)
	}
	if got := post(t, s, large, "wait_end_of_query", "1").get("X-ClickHouse-Summary"); !strings.Contains(got, `"result_rows":"1000000"`) {
		t.Errorf("%s", got)
	}
}

func TestFeature14ServerHeaders(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	for _, a := range []answer{post(t, s, "SELECT 1"), post(t, s, "SELEC")} {
		if a.get("X-ClickHouse-Server-Display-Name") != "picket" || a.get("X-ClickHouse-Timezone") == "" {
			t.Errorf("%v", a.header)
		}
	}
	wantBody(t, post(t, s, "SELECT displayName()"), "picket\n")
	// Names are spelled as ClickHouse does, for clients that compare case.
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /?query=SELECT%201 HTTP/1.0\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\r\nX-ClickHouse-Server-Display-Name: picket\r\n", "\r\nX-ClickHouse-Format: TabSeparated\r\n", "\r\nX-ClickHouse-Summary: {", "\r\nX-ClickHouse-Query-Id: "} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("no %q in %q", want, raw)
		}
	}
}

func TestFeature15WaitAndBuffer(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	const late = "SELECT throwIf(number = 3000000) FROM numbers(4000000) SETTINGS max_threads = 1, max_block_size = 1000"
	wantException(t, post(t, s, late, "wait_end_of_query", "1"), 500, "395", "throwIf")
	wantException(t, post(t, s, late, "buffer_size", "8000000"), 500, "395", "throwIf")
	wantException(t, post(t, s, "SELECT 1", "buffer_size", "x"), 400, "36", "buffer_size")
	a := post(t, s, "SELECT number FROM numbers(1000000)", "wait_end_of_query", "1")
	if want := post(t, s, "SELECT number FROM numbers(1000000)"); a.body != want.body || a.status != 200 {
		t.Errorf("%d bytes, want %d", len(a.body), len(want.body))
	}
}

func TestFeature16RequestEncodings(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	name := table(t, s, "a UInt64")
	for i, encoding := range []string{"gzip", "br", "deflate"} {
		var packed bytes.Buffer
		z := map[string]io.WriteCloser{"gzip": gzip.NewWriter(&packed), "br": brotli.NewWriter(&packed), "deflate": zlib.NewWriter(&packed)}[encoding]
		if _, err := fmt.Fprintf(z, "INSERT INTO %s FORMAT TSV\n%d\n", name, i); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		wantBody(t, send(t, "POST", s, packed.String(), "Content-Encoding", encoding), "")
		wantException(t, send(t, "POST", s, "SELECT 1", "Content-Encoding", encoding), 500, "271", encoding)
		if packed.Len() > 8 {
			wantException(t, send(t, "POST", s, packed.String()[:packed.Len()-6], "Content-Encoding", encoding), 500, "271", encoding)
		}
	}
	wantException(t, send(t, "POST", s, "SELECT 1", "Content-Encoding", "snappy"), 501, "48", "snappy")
	wantBody(t, post(t, s, "SELECT a FROM "+name+" ORDER BY a"), "0\n1\n2\n")
}

// frames packs data into frames of at most size bytes.
func frames(t testing.TB, method compress.Method, size int, data string) string {
	t.Helper()
	var out bytes.Buffer
	w := compress.NewWriter(0, method)
	for len(data) > 0 {
		n := min(size, len(data))
		if err := w.Compress([]byte(data[:n])); err != nil {
			t.Fatal(err)
		}
		out.Write(w.Data)
		data = data[n:]
	}
	return out.String()
}

func TestFeature17RequestFrames(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	name := table(t, s, "a String")
	rows := strings.Repeat("some text that compresses well\n", 100000)
	for _, c := range []struct {
		method compress.Method
		size   int
	}{{compress.LZ4, 65536}, {compress.LZ4, 1 << 30}, {compress.LZ4HC, 1 << 20}, {compress.ZSTD, 1 << 20}, {compress.ZSTD, 1 << 30}, {compress.None, 1 << 16}, {compress.None, 1 << 30}} {
		wantBody(t, post(t, s, frames(t, c.method, c.size, rows), "decompress", "1", "query", "INSERT INTO "+name+" FORMAT TSV"), "")
		wantBody(t, post(t, s, "SELECT count(), uniqExact(a) FROM "+name), "100000\t1\n")
		wantBody(t, post(t, s, "TRUNCATE TABLE "+name), "")
	}
	// The statement may be in the frames, too.
	wantBody(t, post(t, s, frames(t, compress.LZ4, 3, "SELECT 1"), "decompress", "1"), "1\n")

	good := frames(t, compress.LZ4, 1<<20, "a\nb\n")
	for _, c := range []struct{ name, body, code string }{
		{"plain text", "a plain body that is not in frames at all", "271"},
		{"flipped bit", good[:len(good)-1] + string(good[len(good)-1]^1), "271"},
		{"cut", good[:len(good)-1], "33"},
		{"cut in the second frame", good + good[:10], "33"},
	} {
		status := map[string]int{"271": 500, "33": 500}[c.code]
		a := post(t, s, c.body, "decompress", "1", "query", "INSERT INTO "+name+" FORMAT TSV")
		if c.name == "plain text" && a.status == 413 {
			continue // its bytes may claim any size
		}
		wantException(t, a, status, c.code, "")
	}
	wantBody(t, post(t, s, "SELECT count() FROM "+name), "0\n")
}

func TestFeature18ResponseEncodings(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	for _, sql := range []string{"SELECT number FROM numbers(10)", "SELECT number FROM numbers(1000000)"} {
		want := send(t, "POST", s, sql).body
		for encoding, reader := range map[string]func(io.Reader) (io.Reader, error){
			"gzip":    func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
			"br":      func(r io.Reader) (io.Reader, error) { return brotli.NewReader(r), nil },
			"deflate": func(r io.Reader) (io.Reader, error) { return zlib.NewReader(r) },
		} {
			a := send(t, "POST", s, sql, "Accept-Encoding", encoding)
			if a.get("Content-Encoding") != encoding || len(a.body) >= len(want) && len(want) > 1000 {
				t.Errorf("%s: %v, %d bytes", encoding, a.header, len(a.body))
			}
			z, err := reader(strings.NewReader(a.body))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(z); err != nil || string(got) != want {
				t.Errorf("%s: %v, %d bytes", encoding, err, len(got))
			}
		}
		a := send(t, "POST", s+"?enable_http_compression=0", sql, "Accept-Encoding", "gzip")
		wantBody(t, a, want)
		if a.get("Content-Encoding") != "" {
			t.Errorf("%v", a.header)
		}
		wantBody(t, send(t, "POST", s, sql, "Accept-Encoding", "gzip;q=0, identity"), want)
	}
}

func TestFeature19ResponseFrames(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	const sql = "SELECT number FROM numbers(1000000)"
	want := post(t, s, sql).body
	for method, mark := range map[string]byte{"": methodLZ4, "LZ4": methodLZ4, "ZSTD": methodZSTD, "NONE": methodNone} {
		params := []string{"compress", "1"}
		if method != "" {
			params = append(params, "network_compression_method", method)
		}
		a := post(t, s, sql, params...)
		if len(a.body) < 17 || a.body[16] != mark {
			t.Fatalf("%s: %.60q", method, a.body)
		}
		got, err := io.ReadAll(&frameReader{src: strings.NewReader(a.body), dir: t.TempDir(), limit: 1 << 30})
		if err != nil || string(got) != want {
			t.Errorf("%s: %v, %d bytes", method, err, len(got))
		}
	}
	// A first piece that is larger than what is held back.
	wide := "SELECT arrayStringConcat(arrayMap(x -> toString(x), range(1000000))) FORMAT RowBinary"
	got, err := io.ReadAll(&frameReader{src: strings.NewReader(post(t, s, wide, "compress", "1").body), dir: t.TempDir(), limit: 1 << 30})
	if want := post(t, s, wide).body; err != nil || string(got) != want || len(want) < 5000000 {
		t.Errorf("%v, %d bytes, want %d", err, len(got), len(want))
	}
	// An exception is framed as the result would have been.
	a := post(t, s, "SELEC", "compress", "1")
	got, err = io.ReadAll(&frameReader{src: strings.NewReader(a.body), dir: t.TempDir(), limit: 1 << 30})
	if err != nil || a.status != 400 || !strings.HasPrefix(string(got), "Code: 62.") {
		t.Errorf("%v, %d %q", err, a.status, got)
	}
	if a := post(t, s, "SET max_threads = 1", "compress", "1"); a.body != "" || a.get("Content-Length") != "0" {
		t.Errorf("%q %v", a.body, a.header)
	}
}

func TestFeature20NativeRevision(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	const sql = "SELECT 1 AS a, 'x' AS b"
	plain := "\x02\x01\x01a\x05UInt8\x01\x01b\x06String\x01x"
	wantBody(t, post(t, s, sql, "default_format", "Native"), plain)
	wantBody(t, post(t, s, sql, "default_format", "Native", "client_protocol_version", "0"), plain)
	info := "\x01\x00\x02\xff\xff\xff\xff\x00"
	wantBody(t, post(t, s, sql+" FORMAT Native", "client_protocol_version", "54453"), info+plain)
	wantBody(t, post(t, s, sql, "default_format", "Native", "client_protocol_version", "54460"), info+"\x02\x01\x01a\x05UInt8\x00\x01\x01b\x06String\x00\x01x")
	wantBody(t, post(t, s, "EXISTS TABLE system.one", "default_format", "Native", "client_protocol_version", "54460"), info+"\x01\x01\x06result\x05UInt8\x00\x01")
	wantException(t, post(t, s, sql, "client_protocol_version", "x"), 400, "36", "client_protocol_version")
	// A type that Native clients do not know is an exception, not garbage.
	wantException(t, post(t, s, "SELECT sumState(toUInt8(1)) AS s", "default_format", "Native", "client_protocol_version", "54460"), 404, "50", "AggregateFunction(sum, UInt8)")
}

func TestFeature21Inserts(t *testing.T) {
	const limit = 8 << 20
	s := newServer(t, HandlerOptions{MaxBody: limit})
	name := table(t, s, "a UInt64, b String DEFAULT 'default'")
	for _, c := range []struct{ url, body string }{
		{"", "INSERT INTO T VALUES (1, 'one')"},
		{"", "INSERT INTO T (b, a) VALUES ('o' || 'ne', 0 + 1);"},
		{"", "INSERT INTO T SETTINGS max_threads = 1 VALUES (1, 'one')"},
		{"", "insert into T format TSV\n1\tone\n"},
		{"", "INSERT INTO TABLE T FORMAT CSV 1,one"},
		{"", "INSERT INTO T(a,b) FORMAT JSONEachRow {\"a\":1,\"b\":\"one\"}"},
		{"", "INSERT INTO T SETTINGS input_format_skip_unknown_fields = 1 FORMAT JSONEachRow\r\n{\"a\":1,\"b\":\"one\",\"c\":0}"},
		{"", "INSERT INTO T FORMAT JSONEachRow SETTINGS input_format_skip_unknown_fields = 1\n{\"a\":1,\"b\":\"one\",\"c\":0}"},
		{"", "INSERT INTO T /* FORMAT */ -- VALUES\n FORMAT RowBinary\n\x01\x00\x00\x00\x00\x00\x00\x00\x03one"},
		{"INSERT INTO T VALUES", "(1, 'one')"},
		{"INSERT INTO T FORMAT TSV", "1\tone\n"},
		{"INSERT INTO T FORMAT Native", "\x02\x01\x01a\x06UInt64\x01\x00\x00\x00\x00\x00\x00\x00\x01b\x06String\x03one"},
		{"INSERT INTO T FORMAT Native", "\x01\x01\x01b\x06String\x03one\x01\x01\x01a\x06UInt64\x01\x00\x00\x00\x00\x00\x00\x00"},
		{"", "INSERT INTO T SELECT 1, 'one'"},
		{"", "INSERT INTO T (a, b) WITH 1 AS x SELECT x, 'one'"},
		{"", "INSERT INTO T (a, b) (SELECT 1, 'one')"},
	} {
		t.Run(c.url+c.body, func(t *testing.T) {
			replace := strings.NewReplacer("INTO TABLE T", "INTO TABLE "+name, "INTO T", "INTO "+name, "into T", "into "+name).Replace
			var params []string
			if c.url != "" {
				params = []string{"query", replace(c.url)}
			}
			wantBody(t, post(t, s, replace(c.body), params...), "")
			a := post(t, s, "SELECT DISTINCT a, b FROM "+name+" FORMAT CSV")
			if strings.HasPrefix(c.body, "\x01\x01") { // a block for each column
				wantBody(t, a, "0,\"one\"\n1,\"default\"\n")
			} else {
				wantBody(t, a, "1,\"one\"\n")
			}
			wantBody(t, post(t, s, "TRUNCATE TABLE "+name), "")
		})
	}

	fits := strings.Repeat("1\tone\n", limit/6)
	wantBody(t, post(t, s, fits, "query", "INSERT INTO "+name+" FORMAT TSV"), "")
	wantBody(t, post(t, s, "SELECT count() FROM "+name), strconv.Itoa(limit/6)+"\n")
	wantException(t, post(t, s, fits+"1\tone\n", "query", "INSERT INTO "+name+" FORMAT TSV"), 413, "229", "--max-body")
	wantException(t, post(t, s, frames(t, compress.LZ4, 1<<20, fits+fits), "decompress", "1", "query", "INSERT INTO "+name+" FORMAT TSV"), 413, "229", "--max-body")
	wantException(t, post(t, s, frames(t, compress.LZ4, 1<<30, fits+fits), "decompress", "1", "query", "INSERT INTO "+name+" FORMAT TSV"), 413, "229", "send smaller batches")
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := io.WriteString(z, fits+fits); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	wantException(t, send(t, "POST", s+"/?query=INSERT+INTO+"+name+"+FORMAT+TSV", bomb.String(), "Content-Encoding", "gzip"), 413, "229", "--max-body")
	wantBody(t, post(t, s, "SELECT count() FROM "+name), strconv.Itoa(limit/6)+"\n")
}

func TestFeature22DeduplicationToken(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	name := table(t, s, "a UInt64", "non_replicated_deduplication_window = 1000")
	insert := func(data, token string, more ...string) {
		t.Helper()
		wantBody(t, post(t, s, data, append(more, "query", "INSERT INTO "+name+" FORMAT TSV", "insert_deduplication_token", token)...), "")
	}
	count := func(want string) {
		t.Helper()
		wantBody(t, post(t, s, "SELECT count() FROM "+name), want+"\n")
	}
	insert("1\n2\n", "first")
	insert("1\n2\n", "first")
	count("2")
	insert("1\n2\n", "second") // the same rows under another token are stored
	count("4")
	insert("7\n8\n9\n", "first") // other rows under the same token are not
	count("4")
	wantBody(t, post(t, s, "INSERT INTO "+name+" SETTINGS insert_deduplication_token = 'third' VALUES (1)"), "")
	wantBody(t, post(t, s, "INSERT INTO "+name+" SETTINGS insert_deduplication_token = 'third' VALUES (1)"), "")
	count("5")
	// Many blocks in one insert, and the same insert again.
	var rows strings.Builder
	for i := range 10000 {
		fmt.Fprintln(&rows, i)
	}
	for range 2 {
		insert(rows.String(), "blocks", "max_insert_block_size", "1000", "min_insert_block_size_rows", "1000", "min_insert_block_size_bytes", "0")
		count("10005")
	}
}

func TestFeature23AtTheSameTime(t *testing.T) {
	s := newServer(t, HandlerOptions{MaxQueries: 8})
	name := table(t, s, "a UInt64, b UInt64")
	// A slow query does not hold up others.
	slow := make(chan answer)
	go func() { slow <- post(t, s, "SELECT sleep(2)") }()
	time.Sleep(100 * time.Millisecond)
	began := time.Now()
	wantBody(t, post(t, s, "SELECT 1"), "1\n")
	if took := time.Since(began); took > time.Second {
		t.Errorf("a query waited %v for a slow one", took)
	}
	wantBody(t, <-slow, "0\n")

	// Everyone gets the right answer, with 32 at it and 8 places.
	var all sync.WaitGroup
	for worker := range 32 {
		all.Go(func() {
			for i := range 20 {
				n := strconv.Itoa(worker*1000 + i)
				switch i % 4 {
				case 0:
					wantBody(t, post(t, s, "INSERT INTO "+name+" VALUES ("+n+", 1)"), "")
				case 1:
					wantBody(t, post(t, s, "SELECT getSetting('max_block_size'), "+n, "max_block_size", n+"1"), n+"1\t"+n+"\n")
				case 2:
					wantBody(t, post(t, s, "SELECT sum(number), {p:UInt32} FROM numbers(100000)", "param_p", n), "4999950000\t"+n+"\n")
				case 3:
					wantException(t, post(t, s, "SELECT * FROM nowhere_"+n), 404, "60", "nowhere_"+n)
				}
			}
		})
	}
	all.Wait()
	wantBody(t, post(t, s, "SELECT count(), sum(b), uniqExact(a) FROM "+name), "160\t160\t160\n")

	// More than there is place for wait, and are refused in the end.
	small := newServer(t, HandlerOptions{MaxQueries: 1, QueueTimeout: 300 * time.Millisecond})
	go func() { slow <- post(t, small, "SELECT sleep(1)") }()
	time.Sleep(100 * time.Millisecond)
	wantException(t, post(t, small, "SELECT 1"), 500, "202", "Too many simultaneous queries")
	wantBody(t, <-slow, "0\n")
	wantBody(t, post(t, small, "SELECT 1"), "1\n")
}

// running counts the queries of the engine whose text has a mark.
func running(t testing.TB, s, mark string) string {
	t.Helper()
	return strings.TrimSpace(post(t, s, "SELECT count() FROM system.processes WHERE query LIKE {m:String} AND query NOT LIKE '%system.processes%'", "param_m", "%"+mark+"%").body)
}

func waitRunning(t testing.TB, s, mark, want string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); running(t, s, mark) != want; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s queries with %s run, want %s", running(t, s, mark), mark, want)
		}
	}
}

func TestFeature24ClientGoesAway(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	name := table(t, s, "a UInt64")
	leave := func(ctx context.Context, query string, body io.Reader) error {
		r, err := http.NewRequestWithContext(ctx, "POST", s+"/?"+query, body)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client(t).Do(r)
		if err == nil {
			response.Body.Close()
		}
		return err
	}
	for _, sql := range []string{
		"SELECT max(sipHash64(number)) FROM numbers(1000000000000) -- gone1",            // sends nothing for a long time
		"SELECT number FROM numbers(1000000000000) -- gone1",                            // sends all the time
		"SELECT sleepEachRow(1) FROM numbers(100) SETTINGS max_block_size = 1 -- gone1", // sends now and then
	} {
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error)
		go func() { left <- leave(ctx, "", strings.NewReader(sql)) }()
		time.Sleep(200 * time.Millisecond)
		cancel()
		<-left
		waitRunning(t, s, "numbers(1000000000000)", "0")
		waitRunning(t, s, "sleepEachRow", "0")
	}

	// An INSERT that arrived goes on.
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		left <- leave(ctx, "", strings.NewReader("INSERT INTO "+name+" FORMAT TSV SETTINGS max_insert_block_size = 1\n1\n"))
	}()
	if err := <-left; err != nil {
		t.Fatal(err)
	}
	cancel()
	wantBody(t, post(t, s, "SELECT count() FROM "+name), "1\n")

	// One that is cut does not, whether its length was told or not.
	for _, head := range []string{"Content-Length: 1000\r\n\r\n2\n3\n", "Transfer-Encoding: chunked\r\n\r\n4\r\n2\n3\n\r\n"} {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "POST /?query=INSERT+INTO+%s+FORMAT+TSV HTTP/1.1\r\nHost: x\r\n%s", name, head); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		conn.Close()
	}
	time.Sleep(200 * time.Millisecond)
	wantBody(t, post(t, s, "SELECT count() FROM "+name), "1\n")
}

func TestFeature25StreamedResults(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	// The first rows arrive while the query runs.
	r, err := http.NewRequestWithContext(t.Context(), "POST", s, strings.NewReader("SELECT number FROM numbers(1000000000000) FORMAT RowBinary"))
	if err != nil {
		t.Fatal(err)
	}
	response, err := client(t).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.CopyN(io.Discard, response.Body, 300<<20)
	if err != nil || n != 300<<20 {
		t.Errorf("%d %v", n, err)
	}
	response.Body.Close()
	waitRunning(t, s, "numbers(1000000000000)", "0")

	if a := post(t, s, "SELECT number FROM numbers(20000000) FORMAT RowBinary"); len(a.body) != 160000000 || a.err != nil {
		t.Errorf("%d bytes, %v", len(a.body), a.err)
	}
	// What is not streamed has a bound.
	conn, err := engine.lib.open(engine.args)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.lib.close(conn)
	if out := engine.lib.run(conn, []byte("SELECT number FROM numbers(100)"), "TSV", nil, 100); parseException(out.err).Code != 396 || out.data != nil {
		t.Errorf("%+v", out)
	}
}

func TestFeature26AnyUser(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	wantBody(t, post(t, s, "SELECT currentUser()", "user", "somebody", "password", "secret", "quota_key", "q", "role", "r"), "default\n")
	wantBody(t, send(t, "POST", s, "SELECT 1", "X-ClickHouse-User", "somebody", "X-ClickHouse-Key", "secret", "X-ClickHouse-Quota", "q"), "1\n")
	wantBody(t, send(t, "POST", s, "SELECT 1", "Authorization", "Basic c29tZWJvZHk6c2VjcmV0"), "1\n")
}

func TestFeature27Refused(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	name := table(t, s, "a UInt64")
	wantException(t, post(t, s, "SELECT 1", "session_id", "mine"), 501, "48", "session_id")
	wantException(t, send(t, "POST", s, "--x--", "Content-Type", "multipart/form-data; boundary=x"), 501, "48", "External tables")
	for _, sql := range []string{"SELECT 1; SELECT 2", "SELECT 1; DROP TABLE " + name, "SET max_threads = 1; SELECT 1", "INSERT INTO " + name + " SELECT 1; SELECT 2"} {
		wantException(t, post(t, s, sql), 400, "62", "Multi-statements are not allowed")
	}
	wantException(t, post(t, s, "SELECT 1 INTO OUTFILE '/tmp/picket-out'"), 500, "358", "INTO OUTFILE is not allowed")
	wantException(t, post(t, s, "SHOW TABLES into /* */ outfile '/tmp/picket-out'"), 500, "358", "INTO OUTFILE is not allowed")
	wantException(t, post(t, s, "INSERT INTO "+name+" FROM INFILE '/etc/hostname' FORMAT TSV"), 404, "78", "FROM INFILE is not allowed")
	wantException(t, post(t, s, "INSERT INTO "+name+" from infile '/etc/hostname' SELECT 1"), 404, "78", "FROM INFILE is not allowed")
	wantBody(t, post(t, s, "SELECT 'INTO OUTFILE', 'FROM INFILE; SELECT 2' -- INTO OUTFILE; x"), "INTO OUTFILE\tFROM INFILE; SELECT 2\n")
	for _, method := range []string{"PUT", "DELETE", "PATCH", "OPTIONS"} {
		if a := send(t, method, s+"/?query=SELECT+1", ""); a.status != http.StatusMethodNotAllowed {
			t.Errorf("%s: %+v", method, a)
		}
	}
}

// A query may take longer than a client may stand still.
func TestStalledClients(t *testing.T) {
	handler := NewHandler(engine, slog.New(slog.DiscardHandler), HandlerOptions{})
	handler.stall = 300 * time.Millisecond
	server := httptest.NewServer(handler)
	defer server.Close()
	wantBody(t, post(t, server.URL, "SELECT sleep(1)"), "0\n")
	wantBody(t, post(t, server.URL, "SELECT sleepEachRow(0.5) FROM numbers(2) SETTINGS max_block_size = 1"), "0\n0\n")

	dial := func() net.Conn {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	// One that promises a body and does not send it is told so.
	conn := dial()
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nSEL"); err != nil {
		t.Fatal(err)
	}
	if text, _ := io.ReadAll(conn); !strings.Contains(string(text), "Code: 33.") {
		t.Errorf("%q", text)
	}
	// One that does not read has its query ended.
	conn = dial()
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /?query=SELECT+number+FROM+numbers(1000000000000) HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	waitRunning(t, server.URL, "numbers(1000000000000)", "1")
	waitRunning(t, server.URL, "numbers(1000000000000)", "0")
}
