package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"picket/internal/batch"
	"picket/internal/store/storetest"
	"picket/schemas"
	auditlogingest "picket/services/auditlog-ingest"
	"picket/services/detector"
	"picket/services/enricher"
)

const (
	recordedKernel = "../../test/testdata/capture/simulate.arrow"
	recordedAudit  = "../../test/testdata/audit/kube-apiserver-v1.34.jsonl"
)

// recordings puts the recorded events into a ClickHouse as the sink does, and
// returns its URL, how many there are and the batches.
func recordings(t *testing.T) (url string, events int, batches []*batch.Batch) {
	t.Helper()
	data, err := os.ReadFile(recordedKernel)
	if err != nil {
		t.Fatal(err)
	}
	if err := batch.ReadCapture(data, func(b *batch.Batch) error {
		batches = append(batches, b)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if data, err = os.ReadFile(recordedAudit); err != nil {
		t.Fatal(err)
	}
	n := auditlogingest.NewNormalizer("local", "file", "file", auditlogingest.DefaultRedact())
	audit := batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
	for line := range bytes.Lines(data) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			if err := n.Append(audit, line); err != nil {
				t.Fatal(err)
			}
		}
	}
	batches = append([]*batch.Batch{audit.Batch()}, batches...) // it is of the morning, the others of the evening

	tables := storetest.Start(t)
	join := enricher.New()
	for _, b := range batches {
		cluster, node := schemas.Token(b.Str(schemas.Cluster, 0)), schemas.Token(b.Str(schemas.Node, 0))
		enriched, err := join.Enrich(b, cluster, node)
		if err != nil {
			t.Fatal(err)
		}
		events += enriched.Rows()
		tables.Publish(cluster, node, enriched)
	}
	tables.Wait()
	return tables.URL, events, batches
}

// replayed is what picket replay prints of batches of several recordings.
func replayed(t *testing.T, batches []*batch.Batch, ruleFiles ...string) string {
	t.Helper()
	set, _, err := detector.LoadRules(ruleFiles)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	r := &replay{eval: set.NewCorrelator(detector.Offline()), join: enricher.New(), out: json.NewEncoder(&out)}
	for _, b := range batches {
		if err := r.evaluate(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.correlated(r.eval.End()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// picket runs a command line.
func picket(t *testing.T, args ...string) (out, errOut string, err error) {
	t.Helper()
	var o, e bytes.Buffer
	c := newRoot()
	c.SetArgs(args)
	c.SetOut(&o)
	c.SetErr(&e)
	err = c.ExecuteContext(t.Context())
	return o.String(), e.String(), err
}

func TestHunt(t *testing.T) {
	url, events, batches := recordings(t)
	run := func(args ...string) (string, string) {
		t.Helper()
		out, errOut, err := picket(t, append([]string{"--clickhouse", url}, args...)...)
		if err != nil {
			t.Fatalf("picket %q: %v\n%s", args, err, errOut)
		}
		return out, errOut
	}

	// The whole pack finds in the tables what the detector finds in the stream.
	type alert struct {
		Time    time.Time         `json:"time"`
		Rule    string            `json:"rule"`
		AlertID string            `json:"alert_id"`
		EventID string            `json:"event_id"`
		Node    string            `json:"node"`
		Class   string            `json:"class"`
		Message string            `json:"message"`
		Fields  map[string]string `json:"output_fields"`
	}
	alerts := func(text string) (list []string) {
		revised := make(map[string]string) // the last revision of each
		for line := range strings.Lines(text) {
			var a alert
			if err := json.Unmarshal([]byte(line), &a); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			revised[a.AlertID] = fmt.Sprintf("%s %s %s %s %s %s %s %v", a.Time.Format(time.RFC3339Nano), a.EventID, a.AlertID, a.Rule, a.Class, a.Node, a.Message, a.Fields)
		}
		return slices.Sorted(maps.Values(revised))
	}
	stream := alerts(replayed(t, batches))
	out, errOut := run("hunt", "--rules", "../../rules", "--since", "2000-01-01", "--limit", "100000", "-o", "json")
	stored := alerts(out)
	if len(stream) == 0 || errOut != "" {
		t.Fatalf("the stream raises %d alerts; hunt says %q", len(stream), errOut)
	}
	if !slices.Equal(stream, stored) {
		t.Fatalf("the stream raises %d alerts, hunt finds %d:\n%s", len(stream), len(stored), difference(stream, stored))
	}

	// So does the backtest, in numbers.
	out, _ = run("rules", "backtest", "--since", "2000-01-01", "-o", "json")
	total, rules := uint64(0), 0
	for line := range strings.Lines(out) {
		var b backtest
		if err := json.Unmarshal([]byte(line), &b); err != nil {
			t.Fatal(err)
		}
		var days, workloads uint64
		for _, d := range b.Days {
			days += d.Count
		}
		for _, w := range b.Workloads {
			workloads += w.Count
		}
		if days != b.Total || workloads > b.Total || (b.Total > 0) != (len(b.Workloads) > 0) {
			t.Errorf("figures do not agree: %s", line)
		}
		total += b.Total
		rules++
	}
	if total != uint64(len(stream)) || rules < 50 {
		t.Errorf("the backtest counts %d alerts of %d rules, want %d", total, rules, len(stream))
	}
	t.Logf("%d events, %d alerts, %d rules", events, len(stream), rules)

	t.Run("several", func(t *testing.T) {
		const file = "testdata/several.yaml"
		// Those that are switched off are hunted as if they were not.
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		on := t.TempDir() + "/on.yaml"
		if err := os.WriteFile(on, bytes.ReplaceAll(text, []byte("enabled: false"), []byte("enabled: true")), 0o600); err != nil {
			t.Fatal(err)
		}
		stream := alerts(replayed(t, batches, on))
		out, errOut := run("hunt", "--rules", file, "--since", "2000-01-01", "-o", "json")
		stored := alerts(out)
		if errOut != "" || !slices.Equal(stream, stored) {
			t.Fatalf("the stream raises %d alerts, hunt finds %d:\n%s%s", len(stream), len(stored), difference(stream, stored), errOut)
		}
		t.Logf("%d alerts", len(stream))
		counts := make(map[string]uint64)
		lines := make(map[string]found)
		for line := range strings.Lines(out) {
			var f found
			if err := json.Unmarshal([]byte(line), &f); err != nil {
				t.Fatal(err)
			}
			counts[f.Rule]++
			lines[f.Rule] = f
		}
		if f := lines["Suppress"]; f.Events < 1 || f.Key["proc.name"] == "" {
			t.Errorf("events and key of an alert: %+v", f)
		}
		out, _ = run("rules", "backtest", "--rules", file, "--since", "2000-01-01", "-o", "json")
		listed := 0
		for line := range strings.Lines(out) {
			var b backtest
			if err := json.Unmarshal([]byte(line), &b); err != nil {
				t.Fatal(err)
			}
			if listed++; b.Total == 0 || b.Total != counts[b.Rule] || len(b.Days) == 0 || len(b.Workloads) == 0 || b.Workloads[0].Workload == "" {
				t.Errorf("hunt finds %d alerts of rule %s; the backtest counts %s", counts[b.Rule], b.Rule, line)
			}
		}
		if listed != 7 || len(counts) != 7 { // all but the one with raise: false
			t.Errorf("the backtest has %d rules, hunt finds something of %v", listed, counts)
		}
		out, _ = run("rules", "backtest", "--rules", file, "--rule", "Pod deleted", "--since", "2000-01-01", "-o", "json")
		if !strings.Contains(out, `"rule":"Pod deleted"`) || strings.Contains(out, `"total":0`) {
			t.Errorf("a rule with raise: false by its name: %s", out)
		}
		// At the end nobody has looked whether what is absent came later.
		out, _ = run("hunt", "--rules", file, "--rule", "Absence", "--since", "2000-01-01", "--until", "2026-11-23T00:39:00Z", "-o", "json")
		for line := range strings.Lines(out) {
			t.Errorf("absent within a minute before half of it has passed: %s", line)
		}
		out, _ = run("hunt", "--rules", file, "--since", "2000-01-01", "--limit", "3")
		if n := strings.Count(out, "\n"); n != 4 || !strings.Contains(out, " event of proc.name=") {
			t.Errorf("with --limit 3: %s", out)
		}
		// The statement of --sql is one that ClickHouse takes.
		out, _ = run("hunt", "--rules", file, "--since", "2000-01-01", "--sql")
		answer, err := http.Post(url, "text/plain", strings.NewReader(out))
		if err != nil {
			t.Fatal(err)
		}
		rows, _ := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if n := bytes.Count(rows, []byte("\n")); answer.StatusCode != http.StatusOK || n < len(stored) {
			t.Errorf("the statement of --sql gives %d rows, there are %d alerts: %.1000s\n%s", n, len(stored), rows, out)
		}
	})

	// Bounds: of time, of number; the newest come first.
	out, errOut = run("hunt", "--rules", "../../rules", "--since", "2000-01-01", "--limit", "3", "-o", "json")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 3 || !strings.Contains(errOut, "newest 3") || !slices.IsSortedFunc(lines, func(a, b string) int {
		return strings.Compare(b[:30], a[:30])
	}) {
		t.Errorf("with --limit 3: %s%s", out, errOut)
	}
	if out, _ = run("hunt", "--rules", "../../rules", "--since", "2000-01-01", "--until", "2000-01-02"); !strings.Contains(out, "nothing") {
		t.Errorf("in a time without events: %s", out)
	}
	// What an attacker wrote does not steer the terminal, nor the statement.
	out, _ = run("hunt", "--condition", `proc.name != "a'); DROP TABLE process --\\" and evt.type = execve`, "--since", "2000-01-01", "--limit", "1")
	if !strings.Contains(out, "execve") {
		t.Errorf("with quotes in the condition: %s", out)
	}
	hostile := t.TempDir() + "/rules.yaml"
	text := ""
	for _, name := range []string{`a */ 1 --`, `b /* '`, "c\\n\\\\"} {
		text += fmt.Sprintf("- rule: \"%s\"\n  desc: d\n  priority: INFO\n  output: \"%%proc.name '*/ \\\\\"\n  condition: evt.type = execve\n", name)
	}
	if err := os.WriteFile(hostile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ = run("hunt", "--rules", hostile, "--since", "2000-01-01", "-o", "json")
	if n := strings.Count(out, `"rule":"b /* '"`); n == 0 || n != strings.Count(out, `"rule":"a */ 1 --"`) || 3*n != strings.Count(out, "\n") {
		t.Errorf("with comments in the names of rules: %s", out)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"hunt"}, "say what to look for"},
		{[]string{"hunt", "--rule", "nothing of the kind"}, "picket rules list"},
		{[]string{"hunt", "--condition", "proc.nmae = x"}, `--condition:1:1: unknown field "proc.nmae" (did you mean proc.name?)`},
		{[]string{"hunt", "--condition", "evt.type = x"}, "not the name of a system call"},
		{[]string{"hunt", "--condition", "jevt.obj contains x"}, "cannot be hunted in audit events"},
		{[]string{"hunt", "--condition", "proc.name = x", "--since", "soon"}, "2026-11-23T08:00:00Z"},
		{[]string{"hunt", "--condition", "proc.name = x", "--since", "1h", "--until", "2h"}, "is not before"},
		{[]string{"hunt", "--condition", "proc.name = x", "--limit", "0"}, "at least 1"},
		{[]string{"hunt", "--condition", "proc.name = x", "-o", "xml"}, "table or json"},
		{[]string{"rules", "backtest", "--rules", "nowhere"}, "nowhere"},
	} {
		if out, _, err := picket(t, append([]string{"--clickhouse", url}, c.args...)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("picket %q: error %v, want one with %q\n%s", c.args, err, c.want, out)
		}
	}

	t.Run("docs", func(t *testing.T) { examples(t, url) })
	t.Run("advice", func(t *testing.T) { advice(t, url) })

	// Documents that ClickHouse does not read are told of.
	answer, err := http.Post(url, "text/plain", strings.NewReader(`INSERT INTO picket.audit (event_id, time, batch_date, audit_request_object)
		VALUES (generateUUIDv4(), '2001-01-01 01:00:00', today(), '{"a":123456789012345678901234567890}')`))
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusOK {
		t.Fatalf("%s", text)
	}
	_ = answer.Body.Close()
	if _, errOut = run("hunt", "--condition", "ka.req.pod.host_pid intersects (true)", "--since", "2001-01-01", "--until", "2001-01-02"); !strings.Contains(errOut, "\n1 audit events have objects that ClickHouse does not read") {
		t.Errorf("of a document that ClickHouse does not read hunt says %q", errOut)
	}
}

// difference shows what one list has and the other has not.
func difference(a, b []string) string {
	var out []string
	for _, x := range a {
		if !slices.Contains(b, x) {
			out = append(out, "only in the stream: "+x)
		}
	}
	for _, x := range b {
		if !slices.Contains(a, x) {
			out = append(out, "only by hunt: "+x)
		}
	}
	return strings.Join(out[:min(10, len(out))], "\n")
}

var statement = regexp.MustCompile(`picket query "([^"]*)"`)

// advice runs the statements that the rules of the pack give as advice: tables and
// columns are there.
func advice(t *testing.T, url string) {
	set, _, err := detector.LoadRules(nil)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, r := range set.Rules() {
		for _, text := range slices.Concat(r.Response, r.FalsePositives) {
			for _, m := range statement.FindAllStringSubmatch(text, -1) {
				n++
				sql := strings.ReplaceAll(strings.ReplaceAll(m[1], "'…'", "''"), "…", "0")
				if _, _, err := picket(t, "--clickhouse", url, "query", sql); err != nil {
					t.Errorf("rule %q advises %q: %v", r.Name, m[1], err)
				}
			}
		}
	}
	if n == 0 {
		t.Error("no rule advises a statement")
	}
	t.Logf("%d statements", n)
}

var example = regexp.MustCompile("(?s)```console\n\\$ ((?:[^\n]*\\\\\n)*[^\n]*)\n(.*?)```\n")

// examples runs the commands of docs/hunting.md and holds what it says they
// print to what they print. -update writes it.
func examples(t *testing.T, url string) {
	const file = "../../docs/hunting.md"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	got := example.ReplaceAllStringFunc(string(data), func(block string) string {
		n++
		line := example.FindStringSubmatch(block)[1]
		args, err := words(line)
		if err != nil || args[0] != "picket" {
			t.Fatalf("%s: %v", line, err)
		}
		out, errOut, err := picket(t, append([]string{"--clickhouse", url}, args[1:]...)...)
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, errOut)
		}
		return "```console\n$ " + line + "\n" + out + errOut + "```\n"
	})
	if n < 4 {
		t.Fatalf("%s has %d examples", file, n)
	}
	if got == string(data) {
		return
	}
	if !*update {
		t.Fatalf("%s says otherwise what its examples print: run go test ./cmd/picket -run Hunt -update", file)
	}
	if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
		t.Fatal(err)
	}
}

// words splits a command line as a shell does, in so far as the examples need it.
func words(line string) (out []string, err error) {
	line = strings.ReplaceAll(line, "\\\n", " ")
	var word strings.Builder
	quote, any := rune(0), false
	for _, c := range line {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '\'' || c == '"':
			quote, any = c, true
		case c == ' ' || c == '\n':
			if any || word.Len() > 0 {
				out = append(out, word.String())
			}
			word.Reset()
			any = false
		default:
			word.WriteRune(c)
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("no closing %c", quote)
	}
	if any || word.Len() > 0 {
		out = append(out, word.String())
	}
	return out, nil
}
