package rules_test

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"picket/internal/batch"
	"picket/internal/correlation"
	"picket/internal/rules"
	"picket/schemas"
)

// event is one event of a test: a class, a time in seconds, columns.
type event struct {
	class schemas.Class
	at    float64
	cols  map[schemas.FieldID]any
}

var eventStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (e event) batch(n int) *batch.Batch {
	b := batch.NewBuilder(e.class, schemas.Columns(e.class))
	b.Bytes16(schemas.EventID, schemas.Hash128("event", fmt.Sprint(n)))
	b.Int64(schemas.EventTime, eventStart.Add(time.Duration(e.at*float64(time.Second))).UnixNano())
	for id, v := range e.cols {
		switch v := v.(type) {
		case string:
			if id.Field().Type == schemas.IP {
				b.Bytes16(id, netip.MustParseAddr(v).As16())
			} else {
				b.Str(id, v)
			}
		case int:
			switch id.Field().Type {
			case schemas.Uint32:
				b.Uint32(id, uint32(v))
			default:
				b.Int64(id, int64(v))
			}
		}
	}
	b.EndRow()
	return b.Batch()
}

func execIn(at float64, workload, exe string) event {
	return event{schemas.Process, at, map[schemas.FieldID]any{schemas.Action: "exec", schemas.Syscall: "execve", schemas.WorkloadName: workload, schemas.WorkloadKind: "Deployment",
		schemas.Namespace: "shop", schemas.PodName: workload + "-1", schemas.ContainerID: "c-" + workload, schemas.ProcessName: exe[strings.LastIndexByte(exe, '/')+1:], schemas.ProcessExe: exe}}
}

func connect(at float64, pod, to string, port int) event {
	return event{schemas.Network, at, map[schemas.FieldID]any{schemas.Action: "connect", schemas.Syscall: "connect", schemas.Namespace: "shop", schemas.PodName: pod, schemas.ContainerID: "c-" + pod,
		schemas.ProcessName: "curl", schemas.NetTransport: "tcp", schemas.NetType: "ipv4", schemas.NetDirection: "outbound", schemas.NetLocalAddress: "10.0.0.5", schemas.NetLocalPort: 40000, schemas.NetPeerAddress: to, schemas.NetPeerPort: port}}
}

func call(at float64, user, verb, resource, subresource, name string, code int) event {
	stage := "ResponseComplete"
	if code == 101 {
		stage = "ResponseStarted"
	}
	return event{schemas.Audit, at, map[schemas.FieldID]any{schemas.Action: "audit", schemas.AuditUser: user, schemas.AuditVerb: verb, schemas.AuditResource: resource, schemas.AuditSubresource: subresource,
		schemas.AuditNamespace: "shop", schemas.AuditName: name, schemas.AuditResponseCode: code, schemas.AuditStage: stage}}
}

// documented returns the YAML blocks of docs/rules.md that have the word.
func documented(t *testing.T, word string) string {
	t.Helper()
	data, err := os.ReadFile("../../docs/rules.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for i, part := range strings.Split(string(data), "```") {
		if block, ok := strings.CutPrefix(part, "yaml\n"); i%2 == 1 && ok && strings.Contains(block, word) {
			out = append(out, block)
		}
	}
	if out == nil {
		t.Fatalf("no example in docs/rules.md has %q", word)
	}
	return strings.Join(out, "\n")
}

// TestCorrelationExamples runs the examples of the documentation.
func TestCorrelationExamples(t *testing.T) {
	var refused, scan, slow []event
	for i := range 21 {
		refused = append(refused, call(float64(i*10), "mallory", "list", "secrets", "", "", 403), call(float64(i*10), "dev", "list", "secrets", "", "", 200))
	}
	for i := range 20 {
		scan = append(scan, connect(float64(i), "web-1", "10.0.0.9", 1000+i), connect(float64(i), "db-1", "10.0.0.9", 5432))
		slow = append(slow, connect(float64(i*10), "web-1", "10.0.0.9", 1000+i))
	}
	day := float64(86400)
	for _, c := range []struct {
		name, example string
		events        []event
		want          []string // messages, in order
	}{
		{"count", "kind: count", refused, []string{
			"20 requests refused | user=mallory last=list secrets",
			"21 requests refused | user=mallory last=list secrets"}},
		{"too few", "kind: count", refused[:30], nil},
		{"distinct", "kind: distinct", scan, []string{"Port scan | ports=20 pod=web-1 process=curl"}},
		{"too slow", "kind: distinct", slow, nil},
		{"sequence across sources", "kind: sequence", []event{
			call(0, "alice", "get", "pods", "exec", "web-1", 101),
			connect(5, "db-1", "203.0.113.9", 443),
			connect(10, "web-1", "10.0.0.7", 443),
			connect(60, "web-1", "203.0.113.9", 4444),
		}, []string{"Connection out of a pod after a session in it | user=alice pod=web-1 process=curl to=203.0.113.9:4444"}},
		{"the connection was there before", "kind: sequence", []event{
			connect(0, "web-1", "203.0.113.9", 4444), call(30, "alice", "get", "pods", "exec", "web-1", 101)}, nil},
		{"the connection comes first and is later", "kind: sequence", []event{
			connect(60, "web-1", "203.0.113.9", 4444), call(30, "alice", "get", "pods", "exec", "web-1", 101)},
			[]string{"Connection out of a pod after a session in it | user=alice pod=web-1 process=curl to=203.0.113.9:4444"}},
		{"absence", "kind: absence", []event{
			call(0, "ci", "create", "pods", "", "web-1", 201), execIn(20, "web", "/bin/web"),
			call(30, "ci", "create", "pods", "", "db-1", 201)},
			[]string{"Pod has not started a process within ten minutes | pod=db-1 user=ci"}},
		{"baseline", "baseline:", []event{
			execIn(0, "web", "/usr/bin/nginx"), execIn(3*day, "web", "/usr/bin/curl"),
			execIn(8*day, "web", "/usr/bin/curl"), execIn(8*day+1, "web", "/tmp/x"), execIn(8*day+2, "web", "/tmp/x"), execIn(8*day+3, "db", "/usr/bin/psql")},
			[]string{"Executable not seen before | exe=/tmp/x workload=web namespace=shop"}},
		{"suppress", "suppress:\n    by", []event{execIn(0, "web", "/bin/bash"), execIn(60, "web", "/bin/sh"), execIn(61, "db", "/bin/sh"), execIn(3700, "web", "/bin/sh")},
			[]string{"Shell in a container | shells=1 container=c-web command=bash", "Shell in a container | shells=1 container=c-db command=sh",
				"Shell in a container | shells=1 container=c-web command=sh", "Shell in a container | shells=2 container=c-web command=bash"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			set, warnings, err := rules.Load(source(documented(t, c.example)), rules.Options{Strict: true})
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range warnings {
				t.Error(w)
			}
			cor := set.NewCorrelator(correlation.Limits{Lateness: 2 * time.Minute, Keys: 1000, Bytes: 1 << 20})
			var got []string
			note := func(as []correlation.Alert) {
				for _, a := range as {
					got = append(got, a.Message())
				}
			}
			for i, e := range c.events {
				b := e.batch(i)
				note(cor.Eval(b, func(m rules.Match) { t.Errorf("%s raises by itself", m.Rule.Name) }, nil))
			}
			note(cor.End())
			if !slices.Equal(got, c.want) {
				t.Errorf("alerts\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// A rule that others have as a step raises by itself too, unless it says otherwise.
func TestStepRules(t *testing.T) {
	const file = `- rule: A
  desc: d
  output: o
  priority: INFO
  condition: evt.type = execve and proc.name = a
- rule: B
  desc: d
  output: o
  priority: INFO
  raise: false
  condition: evt.type = execve and proc.name = b
- rule: A then B
  desc: d
  output: "%proc.name"
  priority: INFO
  correlation: {kind: sequence, window: 1m, by: [container.id], steps: [{rule: A}, {rule: B}]}
`
	set, warnings, err := rules.Load(source(file), rules.Options{Strict: true})
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if n := len(set.Rules()); n != 3 {
		t.Errorf("%d rules", n)
	}
	var single, feeds []string
	ev := set.NewEvaluator()
	for i, e := range []event{execIn(0, "x", "/a"), execIn(1, "x", "/b")} {
		ev.EvalFeeds(e.batch(i), func(m rules.Match) { single = append(single, m.Rule.Name) }, func(f rules.Feed) {
			m, ok := f.Record()
			feeds = append(feeds, fmt.Sprint(f.Rule.Name, m.Step, m.Key, m.Fields, ok))
		})
	}
	if !slices.Equal(single, []string{"A"}) || !slices.Equal(feeds, []string{"A then B0 [c-x] map[proc.name:a] true", "A then B1 [c-x] map[proc.name:b] true"}) {
		t.Errorf("raised %q, fed %q", single, feeds)
	}
}

// What is remembered is told apart by what it means, not by its words.
func TestDefinitionVersion(t *testing.T) {
	file := func(window, output, by string) string {
		return "- rule: r\n  desc: d\n  priority: INFO\n  warn_evttypes: false\n  condition: proc.name = x\n  output: " + output +
			"\n  correlation: {kind: count, window: " + window + ", by: [" + by + "], at_least: 3}\n"
	}
	version := func(f string) string {
		set, _, err := rules.Load(source(f), rules.Options{Strict: true})
		if err != nil {
			t.Fatal(err)
		}
		return set.Rules()[0].Correlation.Version
	}
	first := version(file("5m", "o", "proc.name"))
	if version(file("300s", "other words", "proc.name")) != first {
		t.Error("another output forgets what was remembered")
	}
	if version(file("6m", "o", "proc.name")) == first || version(file("5m", "o", "proc.pid")) == first {
		t.Error("another meaning goes on with the same state")
	}
}

func TestCorrelationErrors(t *testing.T) {
	const head = "- rule: r\n  desc: d\n  output: o\n  priority: INFO\n  warn_evttypes: false\n"
	plain := "- rule: p\n  desc: d\n  output: o\n  priority: INFO\n  warn_evttypes: false\n  condition: proc.name = x\n"
	with := func(keys string) string { return plain + head + "  condition: proc.name = x\n" + keys }
	steps := func(keys string) string { return plain + head + keys }
	for _, c := range []struct{ name, file, want string }{
		{"no mapping", with("  correlation: x\n"), "a.yaml:13:16: expected a mapping with kind, window, by, at_least, field, steps for correlation, found \"x\""},
		{"unknown key", with("  correlation: {kind: count, window: 5m, by: proc.pid, atleast: 3, at_least: 3}\n"), "a.yaml:13:56: unknown key \"atleast\" of correlation (did you mean at_least?)"},
		{"unknown kind", with("  correlation: {kind: sum, window: 5m, by: proc.pid, at_least: 3}\n"), "a.yaml:13:23: expected count, distinct, sequence or absence for kind, found \"sum\""},
		{"no kind", with("  correlation: {window: 5m}\n"), "a.yaml:13:16: correlation has no kind"},
		{"missing keys", with("  correlation: {kind: distinct, window: 5m}\n"), "a.yaml:13:16: correlation of kind distinct has no by, at_least, field"},
		{"bad window", with("  correlation: {kind: count, window: 5, by: proc.pid, at_least: 3}\n"), "a.yaml:13:38: expected a time from 1s to 30d for window, as in 90s, 5m, 2h or 7d, found \"5\""},
		{"long window", with("  correlation: {kind: count, window: 31d, by: proc.pid, at_least: 3}\n"), "a.yaml:13:38: expected a time from 1s to 30d for window, as in 90s, 5m, 2h or 7d, found \"31d\""},
		{"at_least", with("  correlation: {kind: count, window: 5m, by: proc.pid, at_least: 1}\n"), "a.yaml:13:66: expected a number from 2 to 900 for at_least, found \"1\""},
		{"unknown field", with("  correlation: {kind: count, window: 5m, by: [proc.pdi], at_least: 3}\n"), "a.yaml:13:47: unknown field \"proc.pdi\" (did you mean proc.pid?)"},
		{"field of another source", with("  correlation: {kind: count, window: 5m, by: [ka.user.name], at_least: 3}\n"), "a.yaml:13:47: field ka.user.name is in no event that the condition can match"},
		{"steps with a condition", with("  correlation: {kind: sequence, window: 5m, by: [proc.pid], steps: [{rule: p}, {rule: p}]}\n"), "a.yaml:12:14: rule \"r\" has steps, and so no condition of its own"},
		{"one step", steps("  correlation: {kind: sequence, window: 5m, by: [proc.pid], steps: [{rule: p}]}\n"), "a.yaml:12:16: correlation of kind sequence has 1 steps; it may have 2 to 8"},
		{"unknown rule", steps("  correlation: {kind: sequence, window: 5m, by: [proc.pid], steps: [{rule: pp}, {rule: p}]}\n"), "a.yaml:12:76: step 1 of rule \"r\": unknown rule \"pp\" (did you mean p?)"},
		{"keys that do not correspond", steps("  correlation:\n    kind: sequence\n    window: 5m\n    by: [proc.pid]\n    steps:\n    - rule: p\n    - {rule: p, by: [proc.pid, proc.name]}\n"),
			"a.yaml:18:7: step 2 has 2 fields under by, and step 1 has 1 (give the fields that correspond, in the same order)"},
		{"no key", steps("  correlation: {kind: sequence, window: 5m, steps: [{rule: p, by: proc.pid}, {rule: p}]}\n"), "a.yaml:12:78: step 2 has no by, and neither has the correlation"},
		{"error in a step", steps("  correlation: {kind: sequence, window: 5m, by: [proc.pid], steps: [{rule: p}, {condition: proc.nam = x}]}\n"), "a.yaml:12:92: unknown field \"proc.nam\" (did you mean proc.name?)"},
		{"step without anything", steps("  correlation: {kind: absence, window: 5m, by: [proc.pid], steps: [{rule: p}, {by: proc.pid}]}\n"), "a.yaml:12:79: a step has either rule or condition"},
		{"step not enabled", strings.Replace(steps("  correlation: {kind: absence, window: 5m, by: [proc.pid], steps: [{rule: p}, {rule: p}]}\n"), "condition", "enabled: false\n  condition", 1),
			"a.yaml:13:75: step 1 of rule \"r\": rule \"p\" is not enabled (write raise: false in place of enabled: false)"},
		{"no condition", head + "  correlation: {kind: count, window: 5m, by: [proc.pid], at_least: 3}\n", "a.yaml:1:9: rule \"r\" has no condition"},
		{"two memories", with("  correlation: {kind: count, window: 5m, by: [proc.pid], at_least: 3}\n  baseline: {by: [proc.pid], value: [proc.name], learn: 1d}\n"), "a.yaml:14:13: rule \"r\" has both correlation and baseline (make two rules of it)"},
		{"baseline", with("  baseline: {by: [proc.pid]}\n"), "a.yaml:13:13: baseline has no value, learn"},
		{"suppress without by", with("  suppress: {window: 1h}\n"), "a.yaml:13:13: suppress has no by"},
		{"suppress with another by", with("  correlation: {kind: count, window: 5m, by: [proc.pid], at_least: 3}\n  suppress: {by: [proc.pid], window: 1h}\n"),
			"a.yaml:14:13: suppress beside correlation has the key of the correlation (leave by out)"},
		{"nothing comes of it", with("  raise: false\n  suppress: {by: [proc.pid], window: 1h}\n"), "a.yaml:14:13: rule \"r\" has raise: false, and so nothing would come of its suppress"},
		{"correlation field elsewhere", strings.Replace(plain, "output: o", "output: \"%correlation.count\"", 1), "a.yaml:3:13: unknown field \"correlation.count\""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := rules.Load(source(c.file), rules.Options{Strict: true})
			if err == nil {
				t.Fatalf("loads; want %s", c.want)
			}
			if got := strings.Split(err.Error(), "\n"); !slices.Contains(got, c.want) {
				t.Errorf("got  %s\nwant %s", strings.Join(got, "\n     "), c.want)
			}
		})
	}
}
