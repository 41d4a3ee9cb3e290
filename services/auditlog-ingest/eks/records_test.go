package eks_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"picket/internal/batch"
	"picket/internal/fault"
	"picket/schemas"
	auditlogingest "picket/services/auditlog-ingest"
	"picket/services/auditlog-ingest/eks"
	"picket/services/auditlog-ingest/eks/ekstest"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

var update = flag.Bool("update", false, "write the golden files")

// judge says what becomes of a record: taken, or why not.
func judge(b *batch.Builder, text []byte) string {
	n := auditlogingest.NewNormalizer("prod", "eks-prod", "eks", auditlogingest.DefaultRedact())
	b.Reset()
	if err := n.Append(b, text); err != nil {
		return "refused: " + fault.Reason(err)
	}
	if b.Batch().Bool(schemas.AuditTrimmed, 0) {
		return "taken, trimmed"
	}
	return "taken"
}

// TestSamples says what becomes of every record of the samples, alone and in
// each of the wrappings that CloudWatch Logs has, and of the records of a real
// API server.
func TestSamples(t *testing.T) {
	b := batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
	lines := func(path string) [][]byte {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	}
	var out strings.Builder
	for i, line := range lines("testdata/eks.jsonl") {
		fate := ""
		for _, wrapped := range wrappings(string(line)) {
			n := 0
			err := eks.Records([]byte(wrapped), func(r source.Record) error {
				n++
				got := judge(b, r.Text)
				if fate == "" {
					fate = got
				} else if fate != got {
					t.Errorf("record %d is %s, and %s in %.80s", i+1, fate, got, wrapped)
				}
				return nil
			})
			if err != nil || n != 1 {
				t.Errorf("record %d: %d records, error %v, of %.80s", i+1, n, err, wrapped)
			}
		}
		fmt.Fprintf(&out, "eks.jsonl:%d %s\n", i+1, fate)
	}
	counts := map[string]int{}
	for _, line := range lines(filepath.Join("..", "..", "..", "test", "testdata", "audit", "kube-apiserver-v1.34.jsonl")) {
		if err := eks.Records(line, func(r source.Record) error { counts[judge(b, r.Text)]++; return nil }); err != nil {
			counts["refused: "+fault.Reason(err)]++
		}
	}
	fmt.Fprintf(&out, "kube-apiserver-v1.34.jsonl %v\n", counts)
	const golden = "testdata/samples.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("got (-update writes it)\n%swant\n%s", out.String(), want)
	}
}

// wrappings are the forms in which CloudWatch Logs stores and exports a record.
func wrappings(text string) []string {
	event := fmt.Sprintf(`{"logStreamName":%q,"timestamp":1764000000123,"message":%s,"ingestionTime":1764000001456,"eventId":"3900001"}`, stream, quote(text))
	return []string{
		text,
		event,
		`{"events":[` + event + `],"searchedLogStreams":[]}`,
		`{"messageType":"DATA_MESSAGE","owner":"123456789012","logGroup":"` + group + `","logStream":"` + stream + `","subscriptionFilters":["f"],"logEvents":[{"id":"3900001","timestamp":1764000000123,"message":` + quote(text) + `}]}`,
		"2025-11-24T16:00:00.123Z " + text,
	}
}

func quote(s string) string {
	var b bytes.Buffer
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ':
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func TestRecords(t *testing.T) {
	const audit = `{"kind":"Event","auditID":"a"}`
	at := time.UnixMilli(1764000001456)
	for _, tt := range []struct {
		name, line string
		want       []source.Record
		reason     string
	}{
		{"alone", audit, []source.Record{{Item: record.Item{Text: []byte(audit)}}}, ""},
		{"log event", wrappings(audit)[1], []source.Record{{Item: record.Item{Text: []byte(audit)}, CloudID: "3900001", Arrived: at, From: stream, At: 1764000000123}}, ""},
		{"answer", wrappings(audit)[2], []source.Record{{Item: record.Item{Text: []byte(audit)}, CloudID: "3900001", Arrived: at, From: stream, At: 1764000000123}}, ""},
		{"subscription", wrappings(audit)[3], []source.Record{{Item: record.Item{Text: []byte(audit)}, CloudID: "3900001", From: stream, At: 1764000000123}}, ""},
		{"export", wrappings(audit)[4], []source.Record{{Item: record.Item{Text: []byte(audit)}, At: 1764000000123}}, ""},
		{"several", `{"logEvents":[{"message":"a"},{"message":"b"}]}`, []source.Record{{Item: record.Item{Text: []byte("a")}}, {Item: record.Item{Text: []byte("b")}}}, ""},
		{"another stream", `{"logStreamName":"authenticator-1","message":"time=now"}`, nil, ""},
		{"another stream of a subscription", `{"messageType":"DATA_MESSAGE","logStream":"kube-scheduler-1","logEvents":[{"message":"a"}]}`, nil, ""},
		{"control message", `{"messageType":"CONTROL_MESSAGE","logEvents":[{"message":"CWL CONTROL MESSAGE: Checking health of destination"}]}`, nil, ""},
		{"an audit record with a message of its own", `{"auditID":"a","message":"m"}`, []source.Record{{Item: record.Item{Text: []byte(`{"auditID":"a","message":"m"}`)}}}, ""},
		{"no JSON", "E1124 something went wrong", []source.Record{{Item: record.Item{Text: []byte("E1124 something went wrong")}}}, ""},
		{"nothing", "", []source.Record{{}}, ""},
		{"message twice", `{"message":"a","message":"b"}`, nil, record.ReasonTwice},
		{"list twice", `{"logEvents":[],"logEvents":[]}`, nil, record.ReasonTwice},
		{"list of numbers", `{"logEvents":[1]}`, nil, record.ReasonType},
		{"list without an end", `{"logEvents":[{"message":"a"}`, nil, record.ReasonSyntax},
		{"message is a number", `{"eventId":"1","message":1}`, []source.Record{{Item: record.Item{Text: []byte(`{"eventId":"1","message":1}`)}}}, ""},
	} {
		var got []source.Record
		err := eks.Records([]byte(tt.line), func(r source.Record) error { r.Text = bytes.Clone(r.Text); got = append(got, r); return nil })
		if tt.reason != "" {
			if !fault.IsPermanent(err) || fault.Reason(err) != tt.reason {
				t.Errorf("%s: %v, want a refusal for %s", tt.name, err, tt.reason)
			}
			continue
		}
		if err != nil || fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%s: %+v, %v, want %+v", tt.name, got, err, tt.want)
		}
	}
	stop := errors.New("stop")
	for _, w := range wrappings(audit) {
		if err := eks.Records([]byte(w), func(source.Record) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("%v, want yield's error", err)
		}
	}
}

// TestHostile reads, through the server and from files, records that are large,
// deep, cut, or not what they should be: each has its fate, and the next one is
// taken.
func TestHostile(t *testing.T) {
	good := func(id, more string) string {
		return `{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"RequestResponse","auditID":"` + id + `","stage":"ResponseComplete","requestURI":"/api","verb":"create","user":{"username":"u"},"requestReceivedTimestamp":"2025-11-24T16:00:00.123456Z","stageTimestamp":"2025-11-24T16:00:00.123456Z"` + more + `}`
	}
	object := func(n int) string { return `,"requestObject":{"data":"` + strings.Repeat("x", n) + `"}` }
	for _, tt := range []struct{ name, text, want string }{
		{"75 KB", good("1", object(75<<10)), "taken"},
		{"300 KB", good("2", object(300<<10)), "taken, trimmed"},
		{"20 MB", good("3", object(20<<20)), "taken, trimmed"},
		{"deep", good("4", `,"requestObject":`+strings.Repeat(`{"a":`, 100_000)+"1"+strings.Repeat("}", 100_000)), "taken, trimmed"},
		{"cut by CloudWatch Logs", good("5", object(300<<10))[:256<<10], "refused: syntax"},
		{"the rest of it", good("5", object(300<<10))[256<<10:], "refused: syntax"},
		{"a key twice", good("6", `,"auditID":"7"`), "refused: twice"},
		{"wrong type", good("8", `,"responseStatus":5`), "refused: type"},
		{"bytes that are no UTF-8", good("9", `,"requestObject":{"data":"`+"\xff\xfe"+`"}`), "taken"},
		{"no JSON", "null and void", "refused: syntax"},
		{"null", "null", "refused: syntax"},
		{"empty", "", "refused: syntax"},
		{"another kind", `{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[]}`, "refused: kind"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rows := batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
			forms := []string{tt.text}
			if utf8.ValidString(tt.text) { // else there is no log event of it
				forms = wrappings(tt.text)
			}
			switch {
			case tt.text == "":
				forms = forms[1:4] // a line cannot be empty and there
			case len(tt.text) > 1<<20:
				forms = forms[:2] // for the time that it takes
			}
			for i, w := range forms {
				err := eks.Records([]byte(w), func(r source.Record) error {
					if got := judge(rows, r.Text); got != tt.want {
						t.Errorf("form %d: %s, want %s", i, got, tt.want)
					}
					return nil
				})
				if err != nil {
					t.Errorf("form %d: %v", i, err)
				}
			}
			b := newBench(t, 8)
			now := time.Now()
			b.Group(account, region, group, now.Add(-time.Hour), 0).Put(
				ekstest.Event{ID: "hostile", Stream: stream, Message: tt.text, Time: now.Add(-time.Minute), Shown: now.Add(-time.Minute)},
				ekstest.Event{ID: "next", Stream: stream, Message: good("10", ""), Time: now.Add(-time.Second), Shown: now.Add(-time.Second)})
			l := newLedger()
			stop := start(t, b.sources(t)[0], &sink{ledger: l, crash: -1})
			eventually(t, "both records", func() bool { return l.size() == 2 })
			stop()
			want := tt.want
			if got := judge(rows, []byte(l.texts["hostile"])); got != want {
				t.Errorf("from the server: %s, want %s", got, want)
			}
			if got := judge(rows, []byte(l.texts["next"])); got != "taken" {
				t.Errorf("the next one: %s", got)
			}
		})
	}
}

// FuzzRecords holds Records to its promise: errors are permanent with a known
// reason, or yield's.
func FuzzRecords(f *testing.F) {
	for _, w := range wrappings(`{"kind":"Event","auditID":"a\n"}`) {
		f.Add([]byte(w))
	}
	f.Add([]byte(`{"messageType":"CONTROL_MESSAGE","logEvents":[{"id":"","message":"\ud800"}]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		n := 0
		err := eks.Records(line, func(r source.Record) error {
			n += len(r.Text)
			if r.Trimmed != nil || r.Checkpoint != nil {
				t.Error("what is not Records' to set")
			}
			return nil
		})
		if err != nil {
			switch fault.Reason(err) {
			case record.ReasonSyntax, record.ReasonType, record.ReasonTwice:
			default:
				t.Errorf("%v: reason %s", err, fault.Reason(err))
			}
		}
		if n > 3*len(line) { // U+FFFD for a byte
			t.Errorf("%d bytes of records in %d", n, len(line))
		}
	})
}
