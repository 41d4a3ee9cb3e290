package chdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/google/uuid"
)

// dial connects clickhouse-go to a server.
func dial(t testing.TB, server string, change func(*clickhouse.Options)) clickhouse.Conn {
	t.Helper()
	o := &clickhouse.Options{
		Protocol: clickhouse.HTTP,
		Addr:     []string{strings.TrimPrefix(server, "http://")},
		Auth:     clickhouse.Auth{Database: "default", Username: "default", Password: "ignored"},
	}
	if change != nil {
		change(o)
	}
	conn, err := clickhouse.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// row is one of each kind of column Picket's tables have.
type row struct {
	ID       uint64              `ch:"id"`
	Time     time.Time           `ch:"time"`
	Name     string              `ch:"name"`
	Args     []string            `ch:"args"`
	Labels   map[string]string   `ch:"labels"`
	Address  net.IP              `ch:"address"`
	UUID     uuid.UUID           `ch:"uuid"`
	Exit     *int32              `ch:"exit"`
	Comment  *string             `ch:"comment"`
	Raw      string              `ch:"raw"`
	Severity string              `ch:"severity"`
	Pairs    [][]any             `ch:"pairs"`
	Ratio    float64             `ch:"ratio"`
	Done     bool                `ch:"done"`
	Nested   map[string][]uint32 `ch:"nested"`
}

const rowColumns = `id UInt64, time DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)), name LowCardinality(String), args Array(String),
	labels Map(LowCardinality(String), String), address IPv6, uuid UUID, exit Nullable(Int32), comment LowCardinality(Nullable(String)),
	raw String, severity Enum8('low' = 1, 'high' = 2), pairs Array(Tuple(String, UInt8)), ratio Float64, done Bool, nested Map(String, Array(UInt32))`

func makeRow(i int) row {
	r := row{
		ID:       uint64(i),
		Time:     time.Unix(1_700_000_000, 0).UTC().Add(time.Duration(i) * 1_000_001),
		Name:     fmt.Sprintf("process-%d", i%50),
		Args:     make([]string, i%4),
		Labels:   map[string]string{"app": fmt.Sprint(i % 7)},
		Address:  net.IP(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}).AsSlice()),
		UUID:     uuid.NewSHA1(uuid.Nil, fmt.Append(nil, i)),
		Raw:      "\x00\xff'\"\\\n\t" + fmt.Sprint(i),
		Severity: []string{"low", "high"}[i%2],
		Pairs:    [][]any{},
		Ratio:    float64(i) / 3,
		Done:     i%3 == 0,
		Nested:   map[string][]uint32{"n": {uint32(i), 0}},
	}
	for j := range r.Args {
		r.Args[j] = fmt.Sprintf("--argument-%d", j)
	}
	if i%5 != 0 {
		code, text := int32(-i), fmt.Sprint("comment ", i%9)
		r.Exit, r.Comment = &code, &text
	}
	if i%10 == 0 {
		r.Pairs = [][]any{{"a", uint8(1)}, {"b", uint8(i)}}
	}
	return r
}

// manyRows is a million, but where the race detector makes that take minutes.
var manyRows = map[bool]int{false: 1_000_000, true: 100_000}[raceDetector]

// A million rows through clickhouse-go, and the same rows back, for every
// compression it has over HTTP.
func TestClickHouseGoBatch(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	for name, method := range map[string]*clickhouse.Compression{
		"none":    nil,
		"lz4":     {Method: clickhouse.CompressionLZ4},
		"zstd":    {Method: clickhouse.CompressionZSTD, Level: 1},
		"gzip":    {Method: clickhouse.CompressionGZIP, Level: 1},
		"br":      {Method: clickhouse.CompressionBrotli, Level: 1},
		"deflate": {Method: clickhouse.CompressionDeflate, Level: 1},
	} {
		t.Run(name, func(t *testing.T) {
			rows := 1_000
			if name == "lz4" { // what Picket uses
				rows = manyRows
			}
			conn := dial(t, s, func(o *clickhouse.Options) { o.Compression = method })
			table := table(t, s, rowColumns)
			began := time.Now()
			batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO "+table)
			if err != nil {
				t.Fatal(err)
			}
			for i := range rows {
				r := makeRow(i)
				if err := batch.AppendStruct(&r); err != nil {
					t.Fatal(err)
				}
			}
			made := time.Now()
			if err := batch.Send(); err != nil {
				t.Fatal(err)
			}
			sent := time.Now()
			var count uint64
			if err := conn.QueryRow(t.Context(), "SELECT count() FROM "+table).Scan(&count); err != nil || count != uint64(rows) {
				t.Fatalf("%d rows stored, %v", count, err)
			}
			read := time.Now()
			result, err := conn.Query(t.Context(), "SELECT * FROM "+table+" ORDER BY id")
			if err != nil {
				t.Fatal(err)
			}
			defer result.Close()
			n := 0
			for result.Next() {
				var got row
				if err := result.ScanStruct(&got); err != nil {
					t.Fatal(err)
				}
				if got.ID != uint64(n) {
					t.Fatalf("row %d has the id %d", n, got.ID)
				}
				if n%10 != 0 && rows == manyRows {
					n++
					continue // to compare every tenth is enough of many
				}
				if want := makeRow(n); !sameRow(got, want) {
					t.Fatalf("row %d:\n got %+v\nwant %+v", n, got, want)
				}
				n++
			}
			if err := result.Err(); err != nil || n != rows {
				t.Fatalf("%d rows read, %v", n, err)
			}
			t.Logf("%d rows: appended in %v, sent and stored in %v, read back and compared in %v", rows, made.Sub(began), sent.Sub(made), time.Since(read))
		})
	}
}

func sameRow(a, b row) bool {
	if !a.Time.Equal(b.Time) || !a.Address.Equal(b.Address) {
		return false
	}
	a.Time, a.Address = b.Time, b.Address
	return reflect.DeepEqual(a, b)
}

func TestClickHouseGoErrors(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	for _, compression := range []*clickhouse.Compression{nil, {Method: clickhouse.CompressionLZ4}, {Method: clickhouse.CompressionGZIP, Level: 1}} {
		conn := dial(t, s, func(o *clickhouse.Options) { o.Compression = compression })
		wantCode := func(err error, code int32, text string) {
			t.Helper()
			var exception *clickhouse.Exception
			if !errors.As(err, &exception) || exception.Code != code || !strings.Contains(exception.Message, text) {
				t.Errorf("%v, want code %d and %q", err, code, text)
			}
		}
		_, err := conn.Query(t.Context(), "SELECT * FROM nowhere")
		wantCode(err, 60, "nowhere")
		var httpError *clickhouse.HTTPError
		if !errors.As(err, &httpError) || httpError.StatusCode != 404 {
			t.Errorf("%v", err)
		}
		wantCode(conn.Exec(t.Context(), "CREATE TABL x"), 62, "Syntax error")
		var n uint8
		wantCode(conn.QueryRow(t.Context(), "SELECT throwIf(1, 'on purpose')").Scan(&n), 395, "on purpose")
		wantCode(conn.Exec(clickhouse.Context(t.Context(), clickhouse.WithAsync(true)), "INSERT INTO nowhere VALUES (1)"), 60, "nowhere")
		_, err = conn.PrepareBatch(t.Context(), "INSERT INTO nowhere")
		wantCode(err, 60, "nowhere")

		// An exception in the middle of the result: the rows before it, then the error.
		rows, err := conn.Query(t.Context(), "SELECT throwIf(number = 3000000) AS a, number FROM numbers(4000000) SETTINGS max_threads = 1, max_block_size = 1000")
		if err != nil {
			t.Fatal(err)
		}
		read := 0
		for rows.Next() {
			read++
		}
		if read == 0 || read > 3000000 {
			t.Errorf("%d rows before the exception", read)
		}
		if compression == nil || compression.Method == clickhouse.CompressionGZIP {
			wantCode(rows.Err(), 395, "throwIf")
		} else if rows.Err() == nil { // the client looks for it below its decompression
			t.Error("no error after a cut result")
		}
		rows.Close()

		// A batch whose table has gone, and one whose rows break a promise.
		name := table(t, s, "a UInt64, CONSTRAINT small CHECK a < 10")
		batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO "+name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range uint64(20) {
			if err := batch.Append(i); err != nil {
				t.Fatal(err)
			}
		}
		wantCode(batch.Send(), 469, "small")
		wantBody(t, post(t, s, "SELECT count() FROM "+name), "0\n")
		if batch, err = conn.PrepareBatch(t.Context(), "INSERT INTO "+name); err != nil {
			t.Fatal(err)
		}
		if err := batch.Append(uint64(1)); err != nil {
			t.Fatal(err)
		}
		wantBody(t, post(t, s, "DROP TABLE "+name+" SYNC"), "")
		wantCode(batch.Send(), 60, name)

		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		began := time.Now()
		if err := conn.QueryRow(ctx, "SELECT max(sipHash64(number)) FROM numbers(1000000000000)").Scan(new(uint64)); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		cancel()
		waitRunning(t, s, "numbers(1000000000000)", "0")
	}
}

func TestClickHouseGoSettings(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	conn := dial(t, s, func(o *clickhouse.Options) {
		o.Settings = clickhouse.Settings{"max_execution_time": 60, "max_block_size": 77}
		o.Compression = &clickhouse.Compression{Method: clickhouse.CompressionLZ4}
	})
	if err := conn.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	version, err := conn.ServerVersion()
	if err != nil || version.DisplayName != "picket" || fmt.Sprintf("%d.%d", version.Version.Major, version.Version.Minor) != "26.5" {
		t.Errorf("%v %v", version, err)
	}
	ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"max_threads": 1}), clickhouse.WithQueryID("mine"),
		clickhouse.WithParameters(clickhouse.Parameters{"p": "from a parameter"}))
	var threads, block, database, parameter string
	if err := conn.QueryRow(ctx, "SELECT toString(getSetting('max_threads')), toString(getSetting('max_block_size')), currentDatabase(), {p:String}").Scan(&threads, &block, &database, &parameter); err != nil {
		t.Fatal(err)
	}
	if threads != "1" || block != "77" || database != "default" || parameter != "from a parameter" {
		t.Errorf("%s %s %s %s", threads, block, database, parameter)
	}
	if err := conn.QueryRow(t.Context(), "SELECT $1", "it's").Scan(&parameter); err != nil || parameter != "it's" {
		t.Errorf("%q %v", parameter, err)
	}
	if rows, err := conn.Query(t.Context(), "SELECT 1 WHERE 0"); err != nil || rows.Next() || rows.Err() != nil {
		t.Errorf("%v %v", err, rows.Err())
	}

	// The token of Picket's exact inserts.
	name := table(t, s, "a UInt64", "non_replicated_deduplication_window = 1000")
	for range 3 {
		batch, err := conn.PrepareBatch(clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"insert_deduplication_token": "token"})), "INSERT INTO "+name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range uint64(10) {
			if err := batch.Append(i); err != nil {
				t.Fatal(err)
			}
		}
		if err := batch.Send(); err != nil {
			t.Fatal(err)
		}
	}
	var count uint64
	if err := conn.QueryRow(t.Context(), "SELECT count() FROM "+name).Scan(&count); err != nil || count != 10 {
		t.Errorf("%d rows, %v", count, err)
	}
}

// The ways around Native blocks clickhouse-go has: results and inserts in
// another format, and database/sql.
func TestClickHouseGoFormats(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	for _, compression := range []*clickhouse.Compression{nil, {Method: clickhouse.CompressionLZ4}, {Method: clickhouse.CompressionGZIP, Level: 1}} {
		options := &clickhouse.Options{Protocol: clickhouse.HTTP, Addr: []string{strings.TrimPrefix(s, "http://")}, Compression: compression}
		conn := dial(t, s, func(o *clickhouse.Options) { *o = *options })
		name := table(t, s, "a UInt64, b String")
		if err := conn.InsertFormat(t.Context(), "JSONEachRow", "INSERT INTO "+name, strings.NewReader(`{"a":1,"b":"x"}{"a":2,"b":"y"}`)); err != nil {
			t.Fatal(err)
		}
		for format, want := range map[string]string{"CSVWithNames": "\"a\",\"b\"\n1,\"x\"\n2,\"y\"\n", "JSONEachRow": "{\"a\":1,\"b\":\"x\"}\n{\"a\":2,\"b\":\"y\"}\n"} {
			stream, err := conn.QueryFormat(t.Context(), format, "SELECT * FROM "+name+" ORDER BY a")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(stream); err != nil || string(got) != want {
				t.Errorf("%s: %q %v", format, got, err)
			}
			if err := stream.Close(); err != nil {
				t.Error(err)
			}
		}
		// Arrow out and in again.
		stream, err := conn.QueryFormat(t.Context(), "ArrowStream", "SELECT a + 10 AS a, b FROM "+name)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.InsertFormat(t.Context(), "ArrowStream", "INSERT INTO "+name, stream); err != nil {
			t.Fatal(err)
		}
		if err := stream.Close(); err != nil {
			t.Error(err)
		}
		if err := conn.Exec(clickhouse.Context(t.Context(), clickhouse.WithAsync(true)), "INSERT INTO "+name+" VALUES (100, 'async')"); err != nil {
			t.Fatal(err)
		}
		db := clickhouse.OpenDB(options)
		var count, sum uint64
		if err := db.QueryRowContext(t.Context(), "SELECT count(), sum(a) FROM "+name+" WHERE a < ?", 1000).Scan(&count, &sum); err != nil || count != 5 || sum != 126 {
			t.Errorf("%d rows, sum %d, %v", count, sum, err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		wantBody(t, post(t, s, "DROP TABLE "+name+" SYNC"), "")
	}
}

// What grafana-clickhouse-datasource asks: it is clickhouse-go over HTTP, with
// time limits as settings and the catalogue for its query builder.
func TestGrafana(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	name := table(t, s, "time DateTime64(9), cluster LowCardinality(String), value Float64")
	wantBody(t, post(t, s, "INSERT INTO "+name+" SELECT toDateTime64('2026-01-01 00:00:00', 9) + number, if(number % 2, 'a', 'b'), number FROM numbers(1000)"), "")
	for _, compression := range []*clickhouse.Compression{nil, {Method: clickhouse.CompressionLZ4}, {Method: clickhouse.CompressionGZIP, Level: 5}} {
		options := &clickhouse.Options{
			Protocol:    clickhouse.HTTP,
			Addr:        []string{strings.TrimPrefix(s, "http://")},
			Auth:        clickhouse.Auth{Database: "default", Username: "default"},
			Settings:    clickhouse.Settings{"max_execution_time": 60},
			Compression: compression,
			DialTimeout: 10 * time.Second,
			ReadTimeout: 60 * time.Second,
			HttpHeaders: map[string]string{"X-Grafana-User": "someone"},
			ClientInfo:  clickhouse.ClientInfo{Products: []struct{ Name, Version string }{{"clickhouse-datasource", "4.10.1"}, {"grafana", "12.0.0"}}},
		}
		db := clickhouse.OpenDB(options)
		if err := db.PingContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			sql  string
			want []string
			rows int // 0 means at least one
		}{
			{"SELECT version()", []string{"String"}, 1},
			{"SELECT name FROM system.databases", []string{"String"}, 0},
			{"SHOW DATABASES", []string{"String"}, 0},
			{"SELECT name FROM system.tables WHERE database = 'default' AND name = '" + name + "'", []string{"String"}, 1},
			{"SHOW TABLES FROM \"default\"", []string{"String"}, 0},
			{"DESC TABLE \"default\".\"" + name + "\"", []string{"String", "String", "String", "String", "String", "String", "String"}, 3},
			{"SELECT name, type, table FROM system.columns WHERE database IN ('default') AND table = '" + name + "'", []string{"String", "String", "String"}, 3},
			{"SELECT name FROM system.functions", []string{"String"}, 0},
			{"SELECT DISTINCT arrayJoin(mapKeys(map('k', 'v')))", []string{"String"}, 1},
			{"SELECT toStartOfInterval(time, INTERVAL 60 second) AS time, cluster, count() AS n, avg(value) AS v FROM " + name +
				" WHERE time >= toDateTime64(1767225600000/1000, 3) AND time <= toDateTime64(1767229200000/1000, 3) GROUP BY time, cluster ORDER BY time LIMIT 1000",
				[]string{"DateTime", "LowCardinality(String)", "UInt64", "Float64"}, 34},
			{"SELECT * FROM " + name + " ORDER BY time DESC LIMIT 5", []string{"DateTime64(9)", "LowCardinality(String)", "Float64"}, 5},
			{"EXPLAIN SELECT 1", []string{"String"}, 0},
		} {
			rows, err := db.QueryContext(t.Context(), c.sql)
			if err != nil {
				t.Errorf("%s: %v", c.sql, err)
				continue
			}
			types, err := rows.ColumnTypes()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			values := make([]any, len(types))
			for i, typ := range types {
				got = append(got, typ.DatabaseTypeName())
				values[i] = reflect.New(typ.ScanType()).Interface()
			}
			n := 0
			for rows.Next() {
				if err := rows.Scan(values...); err != nil {
					t.Fatalf("%s: %v", c.sql, err)
				}
				n++
			}
			if err := rows.Err(); err != nil || !reflect.DeepEqual(got, c.want) || n != c.rows && (c.rows != 0 || n == 0) {
				t.Errorf("%s: %d rows of %v, %v", c.sql, n, got, err)
			}
			if err := rows.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}
