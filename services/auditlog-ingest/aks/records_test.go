package aks_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"picket/internal/batch"
	"picket/internal/fault"
	"picket/schemas"
	auditlogingest "picket/services/auditlog-ingest"
	"picket/services/auditlog-ingest/aks"
	"picket/services/auditlog-ingest/aks/akstest"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// outcome says what becomes of a line: of each of its records, up to the row.
func outcome(t testing.TB, line []byte) string {
	norm := auditlogingest.NewNormalizer("c", "n", "aks", auditlogingest.DefaultRedact())
	b := batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
	var out []string
	err := aks.Records(line, func(r source.Record) error {
		if r.Trimmed != nil {
			out = append(out, "cut")
		}
		if err := norm.AppendRecord(b, r); err != nil {
			out = append(out, "record refused: "+fault.Reason(err))
			return nil
		}
		out = append(out, "taken")
		return nil
	})
	if err != nil {
		if !fault.IsPermanent(err) {
			t.Fatalf("the error is not permanent: %v", err)
		}
		out = append(out, "refused: "+fault.Reason(err))
	}
	if out == nil {
		return "skipped"
	}
	return strings.Join(out, ", ")
}

func TestSamples(t *testing.T) {
	data, err := os.ReadFile("testdata/samples.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	count := map[string]int{}
	for i, line := range bytes.Split(bytes.TrimSpace(data), []byte("\n")) {
		o := outcome(t, line)
		count[o]++
		fmt.Fprintf(&b, "%d: %s\n", i+1, o)
	}
	for _, o := range slices.Sorted(func(yield func(string) bool) {
		for o := range count {
			if !yield(o) {
				return
			}
		}
	}) {
		fmt.Fprintf(&b, "%s: %d\n", o, count[o])
	}
	if *update {
		if err := os.WriteFile("testdata/samples.golden", []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile("testdata/samples.golden")
	if err != nil {
		t.Fatalf("%v (go test -run Samples -update writes it)", err)
	}
	if b.String() != string(want) {
		t.Errorf("got:\n%swant:\n%s", b.String(), want)
	}
}

// apiServer returns records that a real API server wrote.
func apiServer(t testing.TB) [][]byte {
	data, err := os.ReadFile("../testdata/records.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Split(bytes.TrimSpace(data), []byte("\n"))
}

// TestForms holds the forms in which AKS records come to the same records.
func TestForms(t *testing.T) {
	all := apiServer(t)
	quoted := func(log []byte) []byte { return akstest.Azure("/S/C-1", "kube-audit", log) }
	object := func(log []byte) []byte {
		return fmt.Appendf(nil, `{"time":"2026-01-02T03:04:05Z","resourceId":"/S/C-1","category":"kube-audit-admin","properties":{"log":%s,"pod":"p"}}`, log)
	}
	other := []byte(`{"category":"guard","resourceId":"/S/C-1","properties":{"log":"I0101 no JSON at all {"}}`)
	metric := []byte(`{"count":1,"metricName":"node_cpu","resourceId":"/S/C-1","time":"2026-01-02T03:04:05Z"}`)
	forms := map[string]func() []byte{
		"records, log a string": func() []byte {
			parts := [][]byte{other}
			for _, r := range all {
				parts = append(parts, quoted(r), metric)
			}
			return akstest.Message(parts...)
		},
		"records, log an object": func() []byte {
			var parts [][]byte
			for _, r := range all {
				parts = append(parts, object(r))
			}
			return akstest.Message(parts...)
		},
		"an array, with a byte order mark": func() []byte {
			var parts [][]byte
			for _, r := range all {
				parts = append(parts, quoted(r), other)
			}
			return append([]byte("\ufeff [ "), append(bytes.Join(parts, []byte(" , \n")), " ] "...)...)
		},
	}
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			i := 0
			err := aks.Records(form(), func(r source.Record) error {
				if !bytes.Equal(bytes.TrimSpace(r.Text), bytes.TrimSpace(all[i])) {
					t.Fatalf("record %d is\n%.300s\nnot\n%.300s", i, r.Text, all[i])
				}
				if r.Cluster != "c-1" {
					t.Fatalf("cluster is %q", r.Cluster)
				}
				i++
				return nil
			})
			if err != nil || i != len(all) {
				t.Errorf("%d of %d records, %v", i, len(all), err)
			}
		})
	}
}

func TestHostile(t *testing.T) {
	good := string(akstest.Azure("/s/c", "kube-audit", akstest.Audit(1)))
	audit := string(akstest.Audit(1))
	inner := func(log string) string {
		return string(akstest.Azure("/s/c", "kube-audit", []byte(log)))
	}
	deep := strings.Repeat(`[`, 100_000) + strings.Repeat(`]`, 100_000)
	tests := []struct{ name, line, want string }{
		{"nothing", ``, "refused: syntax"},
		{"null", `null`, "refused: syntax"},
		{"a number", `17`, "refused: syntax"},
		{"empty object", `{}`, "skipped"},
		{"no records", `{"records":[]}`, "skipped"},
		{"records is no array", `{"records":{}}`, "refused: type"},
		{"records twice", `{"records":[],"records":[` + good + `]}`, "refused: twice"},
		{"a record is no object", `{"records":[1,` + good + `,null,"x"]}`, "taken, refused: type"},
		{"text behind", `{"records":[` + good + `]}x`, "refused: syntax"},
		{"cut off", `{"records":[` + good + `,` + good[:40], "refused: syntax"},
		{"one is broken", `{"records":[{"category":"kube-audit","properties":{"log"}},` + good + `]}`, "taken, refused: syntax"},
		{"category twice", `{"category":"guard","category":"kube-audit","properties":{"log":{}}}`, "refused: twice"},
		{"category in escapes", `{"c\u0061tegory":"kube-audit","properties":{"log":` + audit + `}}`, "taken"},
		{"category of wrong type", `{"category":["kube-audit"]}`, "refused: type"},
		{"resourceId of wrong type", `{"category":"kube-audit","resourceId":{}}`, "refused: type"},
		{"properties twice", `{"category":"kube-audit","properties":{},"properties":{"log":` + audit + `}}`, "refused: twice"},
		{"properties is a string", `{"category":"kube-audit","properties":"{}"}`, "refused: type"},
		{"no properties", `{"category":"kube-audit"}`, "refused: type"},
		{"no log", `{"category":"kube-audit","properties":{}}`, "refused: type"},
		{"log twice", `{"category":"kube-audit","properties":{"log":{},"log":` + audit + `}}`, "refused: twice"},
		{"log is a number", `{"category":"kube-audit","properties":{"log":1}}`, "refused: type"},
		{"log is no record", inner(`"x"`), "record refused: syntax"},
		{"log is empty", inner(``), "record refused: syntax"},
		{"log is another object", inner(`{"kind":"Pod"}`), "record refused: kind"},
		{"deep beside the record", `{"category":"kube-audit","deep":` + deep + `,"properties":{"deep":` + deep + `,"log":` + audit + `}}`, "taken"},
		{"deep in the record", `{"category":"kube-audit","properties":{"log":` + strings.TrimSuffix(audit, "}") + `,"requestObject":` + deep + `}}}`, "taken"},
		{"deep without an end", `{"category":"kube-audit","properties":` + strings.Repeat("[", 1<<20), "refused: syntax"},
		{"not UTF-8", inner(strings.TrimSuffix(audit, "}") + ",\"requestObject\":{\"a\":\"\xff\xfe\"}}"), "taken"},
		{"75 KB", inner(strings.TrimSuffix(audit, "}") + `,"requestObject":{"a":"` + strings.Repeat("x", 75<<10) + `"}}`), "taken"},
		{"20 MB", inner(strings.TrimSuffix(audit, "}") + `,"requestObject":{"a":"` + strings.Repeat("x", 20<<20) + `"}}`), "taken"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := outcome(t, []byte(tt.line)); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// TestCut holds that of a record that AKS cut off, who, what and when are kept
// wherever the cut is, once the stage is before it.
func TestCut(t *testing.T) {
	tried := 0
	for _, whole := range apiServer(t) {
		if outcome(t, akstest.Azure("/s/c", "kube-audit", whole)) != "taken" || !bytes.Contains(whole, []byte(`"stage":`)) {
			continue
		}
		tried++
		var parts map[string]json.RawMessage
		if err := json.Unmarshal(whole, &parts); err != nil {
			t.Fatal(err)
		}
		stage := bytes.Index(whole, []byte(`"stage":`))
		from := stage + bytes.IndexByte(whole[stage:], ',') + 1
		for n := from; n < len(whole); n += 1 + (len(whole)-from)/50 {
			taken := 0
			err := aks.Records(akstest.Azure("/s/c", "kube-audit", whole[:n]), func(r source.Record) error {
				taken++
				if r.Trimmed == nil {
					t.Fatalf("cut at %d and not trimmed", n)
				}
				var kept map[string]json.RawMessage
				if err := json.Unmarshal(r.Trimmed.Text, &kept); err != nil {
					t.Fatalf("cut at %d: %v", n, err)
				}
				for key, v := range kept {
					if key == "stageTimestamp" && !bytes.Contains(whole[:n], []byte(key)) {
						continue // Azure's
					}
					if !bytes.Equal(v, parts[key]) && !bytes.HasPrefix(v, []byte("{")) {
						t.Fatalf("cut at %d: %s is %s, not %s", n, key, v, parts[key])
					}
				}
				return nil
			})
			if err != nil || taken != 1 {
				t.Fatalf("cut at %d: %d taken, %v", n, taken, err)
			}
			if got := outcome(t, akstest.Azure("/s/c", "kube-audit", whole[:n])); got != "cut, taken" {
				t.Fatalf("cut at %d: %s", n, got)
			}
		}
	}
	if tried < 5 {
		t.Fatalf("only %d records were cut", tried)
	}
}

// TestYieldEnds holds that an error of yield is returned as it is.
func TestYieldEnds(t *testing.T) {
	stop := errors.New("stop")
	m := akstest.Message(akstest.Azure("/s/c", "kube-audit", akstest.Audit(1)), akstest.Azure("/s/c", "kube-audit", akstest.Audit(2)))
	n := 0
	if err := aks.Records(m, func(source.Record) error { n++; return stop }); err != stop || n != 1 {
		t.Errorf("%v after %d", err, n)
	}
}

func FuzzRecords(f *testing.F) {
	good := akstest.Azure("/s/c", "kube-audit", akstest.Audit(1))
	f.Add(good)
	f.Add(akstest.Message(good, good))
	f.Add(akstest.Azure("/s/c", "kube-audit", akstest.Audit(1)[:200]))
	f.Add([]byte(`[{"category":"kube-audit","properties":{"log":{"a":[1,2,{"b":null}]}}}]`))
	f.Fuzz(func(t *testing.T, line []byte) {
		reasons := []string{record.ReasonSyntax, record.ReasonType, record.ReasonTwice}
		err := aks.Records(line, func(r source.Record) error {
			if r.Trimmed != nil {
				if !json.Valid(r.Trimmed.Text) {
					t.Errorf("what was mended is not JSON: %q", r.Trimmed.Text)
				}
				return nil
			}
			if len(r.Text) > 6*len(line) {
				t.Errorf("a record of %d bytes from %d", len(r.Text), len(line))
			}
			return nil
		})
		if err != nil && !slices.Contains(reasons, fault.Reason(err)) {
			t.Errorf("refused for %s: %v", fault.Reason(err), err)
		}
	})
}

func BenchmarkRecords(b *testing.B) {
	var parts [][]byte
	n := 0
	data, err := os.ReadFile("../testdata/records.jsonl")
	if err != nil {
		b.Fatal(err)
	}
	for r := range bytes.Lines(data) {
		parts = append(parts, akstest.Azure("/s/c", "kube-audit", bytes.TrimSpace(r)))
		n++
	}
	m := akstest.Message(parts...)
	b.SetBytes(int64(len(m)))
	b.ReportAllocs()
	for b.Loop() {
		if err := aks.Records(m, func(source.Record) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
