package chdb

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/clickhouse-go/v2"
)

func TestParseStatement(t *testing.T) {
	for _, c := range []struct {
		text string
		want statement
	}{
		{"", statement{}},
		{" -- nothing\n/* at all */ ", statement{}},
		{"SELECT 1", statement{kind: kindSelect, text: "SELECT 1", body: "SELECT 1"}},
		{" /* a */ select 1 ; -- b", statement{kind: kindSelect, text: "select 1", body: "select 1"}},
		{"SELECT 1 FORMAT TSV", statement{kind: kindSelect, text: "SELECT 1 FORMAT TSV", format: "TSV", body: "SELECT 1 "}},
		{"SELECT 1 SETTINGS a = 1 FORMAT TSV", statement{kind: kindSelect, text: "SELECT 1 SETTINGS a = 1 FORMAT TSV", format: "TSV", body: "SELECT 1 SETTINGS a = 1 "}},
		{"SELECT 1 FORMAT TSV SETTINGS a = 'FORMAT x'", statement{kind: kindSelect, text: "SELECT 1 FORMAT TSV SETTINGS a = 'FORMAT x'", format: "TSV", body: "SELECT 1 ", tail: " SETTINGS a = 'FORMAT x'"}},
		{"((SELECT 1)) FORMAT TSV", statement{kind: kindSelect, text: "((SELECT 1)) FORMAT TSV", format: "TSV", body: "((SELECT 1)) "}},
		{"SELECT format FROM t ORDER BY format", statement{kind: kindSelect, text: "SELECT format FROM t ORDER BY format", body: "SELECT format FROM t ORDER BY format"}},
		{"SELECT format('{}', 'FORMAT CSV') AS a", statement{kind: kindSelect, text: "SELECT format('{}', 'FORMAT CSV') AS a", body: "SELECT format('{}', 'FORMAT CSV') AS a"}},
		{"SELECT $tag$ ; FORMAT CSV $tag$", statement{kind: kindSelect, text: "SELECT $tag$ ; FORMAT CSV $tag$", body: "SELECT $tag$ ; FORMAT CSV $tag$"}},
		{"SELECT $a$ $b$ ; $a$, $b", statement{kind: kindSelect, text: "SELECT $a$ $b$ ; $a$, $b", body: "SELECT $a$ $b$ ; $a$, $b"}},
		{"SELECT $a$ ;", statement{kind: kindSelect, text: "SELECT $a$", body: "SELECT $a$"}},
		{`SELECT 'a\'; b', "c"";", ` + "`d``;`", statement{kind: kindSelect, text: `SELECT 'a\'; b', "c"";", ` + "`d``;`", body: `SELECT 'a\'; b', "c"";", ` + "`d``;`"}},
		{"FROM t SELECT a", statement{kind: kindSelect, text: "FROM t SELECT a", body: "FROM t SELECT a"}},
		{"WITH 1 AS a SELECT a", statement{kind: kindSelect, text: "WITH 1 AS a SELECT a", body: "WITH 1 AS a SELECT a"}},
		{"WITH 1 AS a INSERT INTO t SELECT a", statement{text: "WITH 1 AS a INSERT INTO t SELECT a", body: "WITH 1 AS a INSERT INTO t SELECT a"}},
		{"SHOW TABLES FORMAT CSV", statement{text: "SHOW TABLES FORMAT CSV", format: "CSV", body: "SHOW TABLES "}},
		{"CREATE TABLE t (a UInt8) ENGINE = Memory", statement{text: "CREATE TABLE t (a UInt8) ENGINE = Memory", body: "CREATE TABLE t (a UInt8) ENGINE = Memory"}},

		{"INSERT INTO t VALUES (1)", statement{kind: kindInsert, text: "INSERT INTO t VALUES", format: "Values", body: "INSERT INTO t ", dataStart: 20}},
		{"INSERT INTO t (a, b) FORMAT TSV\n\n1", statement{kind: kindInsert, text: "INSERT INTO t (a, b) FORMAT TSV\n", format: "TSV", body: "INSERT INTO t (a, b) ", dataStart: 32}},
		{"INSERT INTO t FORMAT TSV  \r\n1", statement{kind: kindInsert, text: "INSERT INTO t FORMAT TSV  \r\n", format: "TSV", body: "INSERT INTO t ", dataStart: 28}},
		{"INSERT INTO t FORMAT Native\x01\x02", statement{kind: kindInsert, text: "INSERT INTO t FORMAT Native", format: "Native", body: "INSERT INTO t ", dataStart: 27}},
		{"INSERT INTO format FORMAT TSV\n1", statement{kind: kindInsert, text: "INSERT INTO format FORMAT TSV\n", format: "TSV", body: "INSERT INTO format ", dataStart: 30}},
		{"INSERT INTO values.values VALUES (1)", statement{kind: kindInsert, text: "INSERT INTO values.values VALUES", format: "Values", body: "INSERT INTO values.values ", dataStart: 32}},
		{"INSERT INTO `format`.`values` VALUES (1)", statement{kind: kindInsert, text: "INSERT INTO `format`.`values` VALUES", format: "Values", body: "INSERT INTO `format`.`values` ", dataStart: 36}},
		{"INSERT INTO {t:Identifier} VALUES (1)", statement{kind: kindInsert, text: "INSERT INTO {t:Identifier} VALUES", format: "Values", body: "INSERT INTO {t:Identifier} ", dataStart: 33}},
		{"INSERT INTO FUNCTION remote('h', d.format) VALUES (1)", statement{kind: kindInsert, text: "INSERT INTO FUNCTION remote('h', d.format) VALUES", format: "Values", body: "INSERT INTO FUNCTION remote('h', d.format) ", dataStart: 49}},
		{"INSERT INTO t SETTINGS a = 1, b = 'x' VALUES (1)", statement{kind: kindInsert, text: "INSERT INTO t SETTINGS a = 1, b = 'x' VALUES", format: "Values", body: "INSERT INTO t ", tail: " SETTINGS a = 1, b = 'x'", dataStart: 44}},
		{"INSERT INTO t FORMAT TSV SETTINGS a = -1.5, b = [1, 2]\n1", statement{kind: kindInsert, text: "INSERT INTO t FORMAT TSV SETTINGS a = -1.5, b = [1, 2]\n", format: "TSV", body: "INSERT INTO t ", tail: " SETTINGS a = -1.5, b = [1, 2]", dataStart: 55}},
		{"INSERT INTO t SETTINGS a = 1 FORMAT TSV SETTINGS b = 2\n1", statement{kind: kindInsert, text: "INSERT INTO t SETTINGS a = 1 FORMAT TSV SETTINGS b = 2\n", format: "TSV", body: "INSERT INTO t ", tail: " SETTINGS a = 1, b = 2", dataStart: 55}},
		{"INSERT INTO t FORMAT TSV\nSETTINGS\tx", statement{kind: kindInsert, text: "INSERT INTO t FORMAT TSV\n", format: "TSV", body: "INSERT INTO t ", dataStart: 25}},
		{"INSERT INTO t SELECT 1 FORMAT TSV", statement{text: "INSERT INTO t SELECT 1 FORMAT TSV", body: "INSERT INTO t SELECT 1 FORMAT TSV"}},
		{"INSERT INTO t (a) WITH 1 AS x SELECT x;", statement{text: "INSERT INTO t (a) WITH 1 AS x SELECT x", body: "INSERT INTO t (a) WITH 1 AS x SELECT x"}},
		{"INSERT INTO t", statement{text: "INSERT INTO t", body: "INSERT INTO t"}},
		{"INSERT", statement{text: "INSERT", body: "INSERT"}},
		{"INSERT INTO t FORMAT", statement{text: "INSERT INTO t FORMAT", body: "INSERT INTO t FORMAT"}},
		{"INSERT INTO {t", statement{text: "INSERT INTO {t", body: "INSERT INTO {t"}},
	} {
		got, err := parseStatement([]byte(c.text))
		if err != nil || got != c.want {
			t.Errorf("%q:\n got %+v %v\nwant %+v", c.text, got, err, c.want)
		}
	}
}

// The time a text takes is in proportion to its length, whatever is in it.
func TestParseStatementIsLinear(t *testing.T) {
	const size = 4 << 20
	var tags strings.Builder
	for i := 0; tags.Len() < size; i++ {
		fmt.Fprintf(&tags, "$t%d", i)
	}
	for name, text := range map[string]string{
		"tags":     "SELECT " + tags.String(),
		"dollars":  "SELECT " + strings.Repeat("$a", size/2),
		"long tag": "SELECT $" + strings.Repeat("a", size) + "$",
		"brackets": "SELECT " + strings.Repeat("(", size),
		"comments": "SELECT " + strings.Repeat("/*", size/2),
		"formats":  "SELECT " + strings.Repeat("FORMAT ", size/7),
		"settings": "INSERT INTO t FORMAT TSV SETTINGS " + strings.Repeat("a=1,", size/4),
		"names":    "INSERT INTO " + strings.Repeat("a.", size/2),
		"quotes":   "SELECT " + strings.Repeat("'", size),
	} {
		began := time.Now()
		_, _ = parseStatement([]byte(text)) // most are no statements
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%s took %v", name, took)
		}
	}
}

// Whatever the text, the parser ends, and what it returns lies in the text.
func FuzzParseStatement(f *testing.F) {
	for _, seed := range []string{"SELECT 1 FORMAT TSV", "INSERT INTO t SETTINGS a = 1 FORMAT TSV SETTINGS b = 2\n1", "INSERT INTO {t:Identifier} (a) VALUES (1)", "SELECT $a$ x $a$ -- c", "/*", "'", "`\\", "$$", "INSERT INTO a.b.c FORMAT X SETTINGS y = [", "SELECT 1; SELECT 2", "INSERT INTO ;", "INSERT INTO . . ;"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseStatement([]byte(text))
		if err != nil {
			if s != (statement{}) {
				t.Errorf("a statement beside the error: %+v", s)
			}
			return
		}
		if !strings.Contains(text, s.text) || !strings.HasPrefix(s.text, s.body) || s.dataStart < 0 || s.dataStart > len(text) {
			t.Errorf("%+v", s)
		}
		if (s.kind == kindInsert) != (s.dataStart > 0) {
			t.Errorf("%+v", s)
		}
	})
}

// Whatever the bytes, the reader ends with an error or all the data, and takes
// no more memory than its limit.
func FuzzFrames(f *testing.F) {
	for _, method := range []compress.Method{compress.LZ4, compress.ZSTD, compress.None} {
		w := compress.NewWriter(0, method)
		if err := w.Compress([]byte("some data, some data, some data")); err != nil {
			f.Fatal(err)
		}
		f.Add(w.Data)
		f.Add(w.Data[:len(w.Data)-1])
		f.Add(append(bytes.Clone(w.Data), w.Data...))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &frameReader{src: bytes.NewReader(data), dir: dir, limit: 4 << 20}
		defer r.Close()
		out, err := io.ReadAll(r)
		var exception *Exception
		if err != nil && !errors.As(err, &exception) {
			t.Errorf("%v", err)
		}
		if len(out) > 0 && len(data) < frameChecksum+frameHeader {
			t.Errorf("%d bytes from %d", len(out), len(data))
		}
	})
}

func TestParseException(t *testing.T) {
	for _, c := range []struct {
		text string
		code int
		want string
	}{
		{"Code: 60. DB::Exception: Table x. (UNKNOWN_TABLE)", 60, "Code: 60. DB::Exception: Table x. (UNKNOWN_TABLE)"},
		{"Code: 73. DB::Exception: Code: 73. DB::Exception: Unknown format X. (UNKNOWN_FORMAT) (version 26.5.1.1). (UNKNOWN_FORMAT)", 73, "Code: 73. DB::Exception: Unknown format X. (UNKNOWN_FORMAT)"},
		{"Code: 73. DB::Exception: Code: 73. DB::Exception: Code: 73. DB::Exception: Unknown format X. Maybe you meant: []. (UNKNOWN_FORMAT) (version 26.5.1.1). (UNKNOWN_FORMAT) (version 26.5.1.1). (UNKNOWN_FORMAT)", 73, "Code: 73. DB::Exception: Unknown format X. Maybe you meant: []. (UNKNOWN_FORMAT)"},
		{"Code: 76. DB::ErrnoException: Cannot open file. (CANNOT_OPEN_FILE) (version 26.5.1.1 (official build))", 76, "Code: 76. DB::ErrnoException: Cannot open file. (CANNOT_OPEN_FILE)"},
		{"Code: 1. DB::Exception: it said Code: 2. (A)", 1, "Code: 1. DB::Exception: it said Code: 2. (A)"},
		{"Code: 99999999999999999999. DB::Exception: x", 1002, "Code: 1002. DB::Exception: Code: 99999999999999999999. DB::Exception: x. (UNKNOWN_EXCEPTION)"},
		{"Code: 33. DB::Exception: Cannot read. (A_B) (version 26.5.1.1). (A_B) (version 26.5.1.1)", 33, "Code: 33. DB::Exception: Cannot read. (A_B)"},
		{"something else", 1002, "Code: 1002. DB::Exception: something else. (UNKNOWN_EXCEPTION)"},
		{"", 1002, "Code: 1002. DB::Exception: . (UNKNOWN_EXCEPTION)"},
	} {
		got := parseException(c.text)
		if got.Code != c.code || strings.TrimSuffix(got.body("V"), " (version V)\n") != c.want {
			t.Errorf("%q:\n got %d %q\nwant %q", c.text, got.Code, got.body("V"), c.want)
		}
	}
}

// Blocks of every type clickhouse-go knows pass: at revision 0 byte for byte,
// and at the client's own revision the client reads the same values.
func TestReviseNativeKeepsEveryType(t *testing.T) {
	s := newServer(t, HandlerOptions{})
	conn := dial(t, s, nil)
	ask := []string{"max_block_size", "300", "output_format_native_use_flattened_dynamic_and_json_serialization", "1", "allow_suspicious_low_cardinality_types", "1", "allow_suspicious_variant_types", "1"}
	settings := clickhouse.Settings{}
	for i := 0; i < len(ask); i += 2 {
		settings[ask[i]] = ask[i+1]
	}
	cast := func(typ, expression string) string {
		return "SELECT toUInt16(number) AS id, CAST(" + expression + " AS " + typ + ") AS v FROM numbers(1000)"
	}
	for typ, source := range map[string]string{
		// generateRandom makes the values of those without a query.
		"UInt8": "", "UInt16": "", "UInt32": "", "UInt64": "", "UInt128": "", "UInt256": "",
		"Int8": "", "Int16": "", "Int32": "", "Int64": "", "Int128": "", "Int256": "",
		"Float32": "", "Float64": "", "Bool": "", "String": "", "FixedString(7)": "", "UUID": "", "IPv4": "", "IPv6": "",
		"Date": "", "Date32": "", "DateTime": "", "DateTime('Asia/Kolkata')": "", "DateTime64(0)": "", "DateTime64(9, 'UTC')": "",
		"Decimal(9, 2)": "", "Decimal(18, 4)": "", "Decimal(38, 10)": "", "Decimal(76, 20)": "",
		"Enum8('a' = -1, 'b' = 1)": "", "Enum16('x\\'y' = 300, 'z' = -300)": "",
		"Nullable(String)": "", "Nullable(DateTime64(9))": "", "Array(String)": "", "Array(Array(Nullable(UInt8)))": "",
		"LowCardinality(String)": "", "LowCardinality(Nullable(String))": "", "LowCardinality(FixedString(3))": "", "LowCardinality(UInt32)": "",
		"Array(LowCardinality(String))": "", "Map(String, UInt8)": "", "Map(LowCardinality(String), Array(String))": "",
		"Tuple(UInt8, String)": "", "Tuple(a UInt8, b Nullable(String))": "", "Array(Tuple(String, UInt8))": "", "Nested(a UInt8, b String)": "",
		"Point": "", "Ring": "", "Polygon": "", "MultiPolygon": "",
		"Time":                                 cast("Time", "number"),
		"Time64(3)":                            cast("Time64(3)", "number / 7"),
		"IntervalSecond":                       "SELECT toUInt16(number) AS id, toIntervalSecond(number) AS v FROM numbers(1000)",
		"Nullable(Nothing)":                    "SELECT toUInt16(number) AS id, NULL AS v FROM numbers(1000)",
		"SimpleAggregateFunction(sum, UInt64)": cast("SimpleAggregateFunction(sum, UInt64)", "number"),
		"Variant(String, UInt64)":              cast("Variant(String, UInt64)", "number % 3 ? if(number % 2, number::Variant(String, UInt64), toString(number)::Variant(String, UInt64)) : NULL"),
		"Dynamic":                              cast("Dynamic", "number % 2 ? number::Dynamic : toString(number)::Dynamic"),
		"JSON":                                 cast("JSON", `'{"a":' || toString(number % 200) || ',"b":{"c":"x' || toString(number) || '"}}'`),
		"JSON(a UInt8)":                        cast("JSON(a UInt8)", `'{"a":' || toString(number % 200) || ',"b":{"c":"x' || toString(number) || '"}}'`),
	} {
		t.Run(typ, func(t *testing.T) {
			if source == "" {
				source = "SELECT * FROM generateRandom('id UInt16, v " + strings.ReplaceAll(strings.ReplaceAll(typ, "\\", "\\\\"), "'", "\\'") + "', 1, 10, 3) LIMIT 1000"
			}
			native := post(t, s, source+" FORMAT Native", ask...)
			if native.status != 200 || len(native.body) < 2000 {
				t.Fatalf("%d %.300q", native.status, native.body)
			}
			var revised bytes.Buffer
			if err := reviseNative(&revised, strings.NewReader(native.body), 0); err != nil {
				t.Fatal(err)
			}
			if revised.String() != native.body {
				t.Errorf("%d bytes of %d changed on the way", revised.Len(), len(native.body))
			}
			rows, err := conn.Query(clickhouse.Context(t.Context(), clickhouse.WithSettings(settings)), source)
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			n := 0
			for rows.Next() {
				var values []any
				for _, c := range rows.ColumnTypes() {
					values = append(values, reflect.New(c.ScanType()).Interface())
				}
				if err := rows.Scan(values...); err != nil {
					t.Fatal(err)
				}
				n++
			}
			if err := rows.Err(); err != nil || n != 1000 {
				t.Errorf("the client read %d rows, %v", n, err)
			}
		})
	}
}

// Broken blocks are errors.
func TestReviseNativeBroken(t *testing.T) {
	good := "\x02\x01\x01a\x05UInt8\x01\x01b\x06String\x01x"
	for i := 1; i < len(good); i++ {
		if err := reviseNative(io.Discard, strings.NewReader(good[:i]), 54460); err == nil {
			t.Errorf("%q is taken for whole", good[:i])
		}
	}
	for _, bad := range []string{"\xff\xff\xff\xff\x0f\x01", "\x01\xff\xff\xff\xff\x7f\x01a\x05UInt8", "\x01\x01\x01a\x07Unknown\x01", "\x01\x01\x01a\x16LowCardinality(String)\xff\xff\xff\xff\xff\xff\xff\xff"} {
		if err := reviseNative(io.Discard, strings.NewReader(bad), 54460); err == nil {
			t.Errorf("%q is taken for a block", bad)
		}
	}
}

// The engine must leave the handlers of the Go runtime in place.
func TestSignalHandlersAreGos(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a nil dereference did not panic")
		}
	}()
	handlers, err := readSignalHandlers()
	if err != nil {
		t.Fatal(err)
	}
	// Of these Go has one handler for all; the engine would have its own.
	for _, signal := range []int{6, 7, 8, 4, 5} {
		if handlers[signal].handler != handlers[11].handler {
			t.Errorf("signal %d has another handler than SIGSEGV", signal)
		}
	}
	conn, err := engine.lib.open(engine.args)
	if err != nil {
		t.Fatal(err)
	}
	engine.lib.close(conn)
	after, err := readSignalHandlers()
	if err != nil || after != handlers {
		t.Errorf("a connection changed signal handlers (%v)", err)
	}
	var nothing *Engine
	_ = nothing.version
}

// The script that fetches the library and the code that loads it must mean the
// same file.
func TestFetchScriptHasThisVersion(t *testing.T) {
	script, err := os.ReadFile("../../scripts/fetch-chdb.sh")
	if err != nil {
		t.Fatal(err)
	}
	if m := regexp.MustCompile(`(?m)^version=(\S+)$`).FindSubmatch(script); m == nil || string(m[1]) != Version {
		t.Errorf("the script fetches %s, the code loads %s", m, Version)
	}
	t.Setenv("PICKET_CHDB_LIB", "")
	for _, c := range []struct{ cache, xdg, home, want string }{
		{"/c", "/x", "/h", "/c/chdb/" + Version + "/libchdb.so"},
		{"", "/x", "/h", "/x/picket/chdb/" + Version + "/libchdb.so"},
		{"", "", "/h", "/h/.cache/picket/chdb/" + Version + "/libchdb.so"},
	} {
		t.Setenv("PICKET_CACHE", c.cache)
		t.Setenv("XDG_CACHE_HOME", c.xdg)
		t.Setenv("HOME", c.home)
		if got, err := DefaultLibrary(); err != nil || got != c.want {
			t.Errorf("%+v: %s %v", c, got, err)
		}
	}
	t.Setenv("PICKET_CHDB_LIB", "/l.so")
	if got, err := DefaultLibrary(); err != nil || got != "/l.so" {
		t.Errorf("%s %v", got, err)
	}
}

// Every line of the list in the package comment has its test, and no other.
func TestFeatureListIsTested(t *testing.T) {
	list, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	var tests []byte
	for _, file := range []string{"feature_test.go", "process_test.go"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		tests = append(tests, text...)
	}
	lines := regexp.MustCompile(`(?m)^//  (\d+)\. `).FindAllSubmatch(list, -1)
	if len(lines) < 28 {
		t.Errorf("%d lines", len(lines))
	}
	for i, m := range lines {
		if string(m[1]) != fmt.Sprint(i+1) {
			t.Errorf("line %d has the number %s", i+1, m[1])
		}
		if n := bytes.Count(tests, fmt.Appendf(nil, "\nfunc TestFeature%02d", i+1)); n != 1 {
			t.Errorf("%d tests for line %d", n, i+1)
		}
	}
	if n := bytes.Count(tests, []byte("\nfunc TestFeature")); n != len(lines) {
		t.Errorf("%d tests for %d lines", n, len(lines))
	}
}
