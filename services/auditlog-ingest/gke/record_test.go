package gke_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"picket/internal/batch"
	"picket/internal/fault"
	"picket/schemas"
	auditlogingest "picket/services/auditlog-ingest"
	"picket/services/auditlog-ingest/gke"
	"picket/services/auditlog-ingest/gke/gketest"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

var update = flag.Bool("update", false, "write the golden files anew")

// audit is where records of real clusters are. gke.jsonl is from panther-labs/panther-analysis
// (Apache-2.0), sanitised and shortened there.
var audit = filepath.Join("..", "..", "..", "test", "testdata", "audit")

func lines(t testing.TB, path string) [][]byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Split(bytes.TrimSpace(data), []byte("\n"))
}

func builder() *batch.Builder {
	return batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
}

func normalizer() *auditlogingest.Normalizer {
	return auditlogingest.NewNormalizer("prod", "sub", "gke", auditlogingest.DefaultRedact())
}

// row returns the columns of the last row that have a value, as text, apart from
// those that are the same in each.
func row(b *batch.Batch) map[string]string {
	out := map[string]string{}
	r := b.Rows() - 1
	for _, id := range schemas.RawColumns(schemas.Audit) {
		switch id {
		case schemas.TimeObserved, schemas.EventID, schemas.Action, schemas.SchemaVer, schemas.Cluster, schemas.Node, schemas.AuditSource:
			continue
		}
		if b.IsNull(id, r) {
			continue
		}
		var v any
		switch id.Field().Type {
		case schemas.Text, schemas.Name:
			v = b.Str(id, r)
		case schemas.Bool:
			v = b.Bool(id, r)
		case schemas.List, schemas.Names:
			v = slices.Collect(b.List(id, r))
		case schemas.Map:
			v = maps.Collect(b.Map(id, r))
		case schemas.Time:
			v = time.Unix(0, b.Int(id, r)).UTC().Format(time.RFC3339Nano)
		case schemas.Int64:
			v = b.Int(id, r)
		default:
			v = b.Uint(id, r)
		}
		if reflect.ValueOf(v).IsZero() {
			continue
		}
		if s, ok := v.(string); ok {
			out[id.String()] = s
			continue
		}
		text, _ := json.Marshal(v)
		if s := string(text); s != "[]" && s != "{}" && s != "null" {
			out[id.String()] = s
		}
	}
	return out
}

// TestGolden says what becomes of each entry of testdata/entries.jsonl and of the samples.
func TestGolden(t *testing.T) {
	var got bytes.Buffer
	enc := json.NewEncoder(&got)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	taken, skipped, refused := 0, 0, 0
	for _, file := range []string{filepath.Join("testdata", "entries.jsonl"), filepath.Join(audit, "gke.jsonl")} {
		for i, line := range lines(t, file) {
			var name struct{ Case string }
			if err := json.Unmarshal(line, &name); err != nil {
				t.Fatal(err)
			}
			b := builder()
			rows := 0
			out := map[string]any{"of": filepath.Base(file), "line": i + 1}
			if name.Case != "" {
				out["case"] = name.Case
			}
			err := gke.Records(line, func(r source.Record) error {
				rows++
				out["cluster"], out["cloud_id"] = r.Cluster, r.CloudID
				if !r.Arrived.IsZero() {
					out["arrived"] = r.Arrived
				}
				return normalizer().Append(b, r.Text)
			})
			switch {
			case err != nil:
				refused++
				out["refused"] = fault.Reason(err) + ": " + err.Error()
			case rows == 0:
				skipped++
				out["skipped"] = true
			default:
				taken++
				out["event"] = row(b.Batch())
			}
			if err := enc.Encode(out); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d taken, %d skipped, %d refused", taken, skipped, refused)
	path := filepath.Join("testdata", "entries.golden.json")
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); d != "" {
		t.Errorf("records differ from %s (-want +got):\n%s", path, d)
	}
}

// TestRebuilt holds events of a real API server, sent through the shape that GKE
// gives them, to themselves: all that Google keeps is found again.
func TestRebuilt(t *testing.T) {
	n := normalizer()
	for i, line := range lines(t, filepath.Join(audit, "kube-apiserver-v1.34.jsonl")) {
		e, err := gketest.Entry(line, "shop-1234", "europe-west1", "prod", time.Second)
		if err != nil {
			t.Fatalf("line %d: %v", i+1, err)
		}
		text, err := gketest.JSON(e)
		if err != nil {
			t.Fatal(err)
		}
		want := builder()
		if err := n.Append(want, line); err != nil {
			t.Fatal(err)
		}
		got := builder()
		if err := gke.Records(text, func(r source.Record) error { return n.Append(got, r.Text) }); err != nil || got.Len() != 1 {
			t.Fatalf("line %d: %v, %d records", i+1, err, got.Len())
		}
		w, g := row(want.Batch()), row(got.Batch())
		expect(t, i+1, w, g)
	}
}

// expect compares an event with what is left of it in a log entry.
func expect(t *testing.T, line int, want, got map[string]string) {
	t.Helper()
	for _, id := range []schemas.FieldID{schemas.AuditID, schemas.AuditStage, schemas.AuditVerb, schemas.AuditUser, schemas.AuditImpersonated, schemas.AuditUserAgent,
		schemas.AuditResource, schemas.AuditSubresource, schemas.AuditAPIGroup, schemas.AuditAPIVersion, schemas.AuditNamespace, schemas.AuditName,
		schemas.AuditDecision, schemas.EventTime} {
		if want[id.String()] != got[id.String()] {
			t.Errorf("line %d: %s is %q, was %q", line, id, got[id.String()], want[id.String()])
		}
	}
	path, _, _ := strings.Cut(want[schemas.AuditURI.String()], "?")
	if path != got[schemas.AuditURI.String()] {
		t.Errorf("line %d: path %q, was %q", line, got[schemas.AuditURI.String()], path)
	}
	if w, g := want[schemas.AuditResponseCode.String()], got[schemas.AuditResponseCode.String()]; w != g && (w < "400" && g != "200" || w >= "400" && w[0] != g[0]) {
		t.Errorf("line %d: code %s, was %s", line, g, w)
	}
	for _, id := range []schemas.FieldID{schemas.AuditRequest, schemas.AuditResponse} {
		var w, g any
		_ = json.Unmarshal([]byte(want[id.String()]), &w)
		if _, list := w.([]any); list {
			continue // Google leaves out patches that are lists
		}
		_ = json.Unmarshal([]byte(got[id.String()]), &g)
		if d := cmp.Diff(w, g); d != "" {
			t.Errorf("line %d: %s (-was +is):\n%s", line, id, d)
		}
	}
}

const whole = `{"insertId":"i","timestamp":"2026-03-04T10:00:01Z","receiveTimestamp":"2026-03-04T10:00:02Z","resource":{"type":"k8s_cluster","labels":{"project_id":"p","location":"l","cluster_name":"c"}},` +
	`"labels":{"a":"b"},"operation":{"id":"o","producer":"k8s.io","first":true,"last":true},"protoPayload":{"serviceName":"k8s.io","methodName":"io.k8s.core.v1.pods.get","resourceName":"core/v1/namespaces/n/pods/p",` +
	`"authenticationInfo":{"principalEmail":"u"},"requestMetadata":{"callerIp":"192.0.2.1"},"status":{"code":0},"request":{"@type":"x","a":1},"response":{"b":2}}}`

func TestHostile(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200)
	for _, c := range []struct {
		name, old, new, reason string // empty reason: taken
	}{
		{"whole", "", "", ""},
		{"not UTF-8", `"u"`, "\"\xff\xfe\"", ""},
		{"escapes", `"u"`, `"\u0000\"\\\ud800"`, ""},
		{"extra member", `"insertId"`, `"x":[{}],"insertId"`, ""},
		{"75 KB object", `"a":1`, `"a":"` + strings.Repeat("x", 75<<10) + `"`, ""},
		{"more than is kept whole", `"a":1`, `"a":"` + strings.Repeat("x", 1<<20) + `"`, ""},
		{"20 MB object", `"a":1`, `"a":"` + strings.Repeat("x", 20<<20) + `"`, record.ReasonTooLarge},
		{"deep", `"a":1`, `"a":` + deep, record.ReasonSyntax},
		{"key twice", `"insertId":"i"`, `"insertId":"i","insertId":"j"`, record.ReasonTwice},
		{"method twice", `"serviceName"`, `"methodName":"io.k8s.core.v1.pods.list","serviceName"`, record.ReasonTwice},
		{"payload twice", `"labels":{"a":"b"}`, `"protoPayload":{}`, record.ReasonTwice},
		{"request twice", `"request"`, `"request":{},"request"`, record.ReasonTwice},
		{"label twice", `"a":"b"`, `"a":"b","a":"c"`, record.ReasonTwice},
		{"number as text", `"insertId":"i"`, `"insertId":1`, record.ReasonType},
		{"text as object", `"status":{"code":0}`, `"status":"OK"`, record.ReasonType},
		{"list as object", `{"@type":"x","a":1}`, `[1]`, record.ReasonType},
		{"code as text", `"code":0`, `"code":"0"`, record.ReasonType},
		{"flag as text", `"first":true`, `"first":"true"`, record.ReasonType},
		{"an array", whole, "[" + whole + "]", record.ReasonType},
		{"two", whole, whole + whole, record.ReasonSyntax},
		{"cut", whole, whole[:len(whole)-1], record.ReasonSyntax},
		{"nothing", whole, "", record.ReasonSyntax},
		{"no id", `"insertId":"i"`, `"x":"i"`, ""}, // the operation has one
		{"no time", `imestamp":"2026`, `imestamp":"x2026`, record.ReasonTime},
		{"no verb", "io.k8s.core.v1.pods.get", "io.k8s", record.ReasonKind},
	} {
		line := whole
		if c.old != "" {
			if line = strings.ReplaceAll(whole, c.old, c.new); line == whole {
				t.Fatalf("%s changes nothing", c.name)
			}
		}
		b := builder()
		err := gke.Records([]byte(line), func(r source.Record) error { return normalizer().Append(b, r.Text) })
		if c.reason == "" {
			if err != nil || b.Len() != 1 {
				t.Errorf("%s: %v, %d events", c.name, err, b.Len())
			}
			continue
		}
		if err == nil || !fault.IsPermanent(err) || fault.Reason(err) != c.reason {
			t.Errorf("%s: %v (reason %s), want reason %s", c.name, err, fault.Reason(err), c.reason)
		} else if len(err.Error()) > 300 {
			t.Errorf("%s: the error has %d bytes", c.name, len(err.Error()))
		}
	}
	own := errors.New("own")
	if err := gke.Records([]byte(whole), func(source.Record) error { return own }); !errors.Is(err, own) {
		t.Errorf("the caller's error came back as %v", err)
	}
}

// FuzzRecords: whatever is read, what it yields is an event that the normalizer
// can read or refuses, and every error is permanent with a reason.
func FuzzRecords(f *testing.F) {
	for _, file := range []string{filepath.Join("testdata", "entries.jsonl"), filepath.Join(audit, "gke.jsonl")} {
		for _, line := range lines(f, file) {
			f.Add(line)
		}
	}
	f.Add([]byte(whole))
	n := normalizer()
	b := builder()
	f.Fuzz(func(t *testing.T, line []byte) {
		b.Reset()
		err := gke.Records(line, func(r source.Record) error {
			if !json.Valid(bytes.ToValidUTF8(r.Text, []byte("?"))) {
				t.Errorf("%q became %q, which is not JSON", line, r.Text)
			}
			return n.Append(b, r.Text)
		})
		if err != nil && !fault.IsPermanent(err) {
			t.Errorf("%q: %v", line, err)
		}
	})
}

func BenchmarkRecords(b *testing.B) {
	line := lines(b, filepath.Join("testdata", "entries.jsonl"))[0]
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		if err := gke.Records(line, func(source.Record) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
