// Command bench-noise evaluates the default rules over a recording of ordinary
// work (test/ordinary) as enricher and detector would, and counts what they
// raise. Whatever is raised there is a false alarm.
//
//	go run ./test/bench-noise -check
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"

	"picket/internal/batch"
	"picket/internal/correlation"
	"picket/internal/rules"
	"picket/internal/terminal"
	"picket/schemas"
	auditlogingest "picket/services/auditlog-ingest"
	"picket/services/detector"
	"picket/services/enricher"
	"picket/test/ordinary"
)

// most is how many alerts of medium or higher severity 100,000 events of ordinary
// work may raise.
const most = 1.0

// auditSample is what an API server logged while a script attacked its cluster.
// Its own components were at their ordinary work meanwhile.
const auditSample = "test/testdata/audit/kube-apiserver-v1.34.jsonl"

func main() {
	check := flag.Bool("check", false, fmt.Sprintf("fail above %g alerts of medium or higher severity per 100,000 events", most))
	var paths []string
	flag.Func("rules", "rule file or folder, repeatable, in place of the default pack", func(p string) error { paths = append(paths, p); return nil })
	recording := flag.String("recording", "", "capture of picket record, in place of the recording of ordinary work")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *recording, paths, *check, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench-noise:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, recording string, paths []string, check bool, w io.Writer) error {
	set, _, err := detector.LoadRules(paths)
	if err != nil {
		return err
	}
	var started string // audit log of the cluster in the recording
	if recording == "" {
		if recording, err = ordinary.Recording(ctx, set, false); err != nil {
			return err
		}
		started = ordinary.AuditLog(recording)
	}
	data, err := os.ReadFile(recording)
	if err != nil {
		return err
	}
	node := newNoise(set)
	if err := batch.ReadCapture(data, node.evaluate); err != nil {
		return err
	}
	if node.events == 0 {
		return errors.New("the recording has no events")
	}
	node.correlated(node.rules.End())
	node.print(w, "Ordinary work of a node (test/ordinary/run.sh)")
	const own = "Audit events of a cluster's own components (those by users system:… that no pod's token stands for), "
	for _, log := range []struct{ file, title string }{{auditSample, own + "of " + auditSample}, {started, own + "of the cluster in ordinary work, from its start to its end"}} {
		if log.file == "" {
			continue
		}
		audit := newNoise(set)
		if err := audit.components(log.file); err != nil {
			return err
		}
		audit.correlated(audit.rules.End())
		audit.print(w, log.title)
	}
	fmt.Fprintf(w, "\n%.2f alerts of medium or higher severity per 100,000 events of the node's ordinary work; the limit is %g.\n", node.rate(), most)
	if check && node.rate() > most {
		return errors.New("more alerts than the limit")
	}
	return nil
}

// noise counts what is raised.
type noise struct {
	rules    *rules.Correlator
	severity map[string]schemas.Severity // by rule
	join     *enricher.Enricher
	events   int
	classes  map[schemas.Class]int
	raised   map[string]*raised
}

// raised is what a rule has raised.
type raised struct {
	severity schemas.Severity
	n        int
	example  string
}

func newNoise(set *rules.Set) *noise {
	n := &noise{rules: set.NewCorrelator(detector.Offline()), severity: map[string]schemas.Severity{}, join: enricher.New(), classes: map[schemas.Class]int{}, raised: map[string]*raised{}}
	for _, r := range set.Rules() {
		n.severity[r.Name] = r.Severity
	}
	return n
}

func (n *noise) evaluate(b *batch.Batch) error {
	joined, err := n.join.Enrich(b, schemas.Token(b.Str(schemas.Cluster, 0)), schemas.Token(b.Str(schemas.Node, 0)))
	if err != nil {
		return err
	}
	n.events += joined.Rows()
	n.classes[joined.Class()] += joined.Rows()
	several := n.rules.Eval(joined, func(m rules.Match) { n.count(m.Rule.Name, m.Rule.Severity, m.Output()) }, nil)
	n.correlated(several)
	return nil
}

// correlated counts alerts of rules about several events.
func (n *noise) correlated(several []correlation.Alert) {
	for i := range several {
		if a := &several[i]; a.Revision == 1 {
			n.count(a.Def.Rule, n.severity[a.Def.Rule], a.Message())
		}
	}
}

func (n *noise) count(rule string, severity schemas.Severity, message string) {
	r := n.raised[rule]
	if r == nil {
		r = &raised{severity: severity, example: message}
		n.raised[rule] = r
	}
	r.n++
}

// components evaluates those events of an audit log that the cluster's own
// components caused.
func (n *noise) components(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	to := auditlogingest.NewNormalizer("bench", "file", "file", auditlogingest.DefaultRedact())
	b := batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
	for line := range bytes.Lines(data) {
		if err := to.Append(b, bytes.TrimSpace(line)); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	all, own := b.Batch(), batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
	for row := range all.Rows() {
		user := all.Str(schemas.AuditUser, row)
		if strings.HasPrefix(user, "system:") && user != "system:anonymous" && user != "system:admin" &&
			(!strings.HasPrefix(user, "system:serviceaccount:") || strings.HasPrefix(user, "system:serviceaccount:kube-system:")) {
			own.Copy(all, row)
		}
	}
	if own.Len() == 0 {
		return fmt.Errorf("%s: no events of components", file)
	}
	return n.evaluate(own.Batch())
}

// rate is how many alerts of medium or higher severity 100,000 events raise.
func (n *noise) rate() float64 {
	alerts := 0
	for _, r := range n.raised {
		if r.severity >= schemas.Medium {
			alerts += r.n
		}
	}
	return float64(alerts) / float64(n.events) * 100_000
}

func (n *noise) print(w io.Writer, title string) {
	fmt.Fprintf(w, "\n%s: %d events\n", title, n.events)
	for _, c := range slices.Sorted(maps.Keys(n.classes)) {
		fmt.Fprintf(w, "  %-10s %9d\n", c, n.classes[c])
	}
	severities := map[schemas.Severity]int{}
	names := slices.SortedFunc(maps.Keys(n.raised), func(a, b string) int {
		x, y := n.raised[a], n.raised[b]
		if x.severity != y.severity {
			return int(y.severity) - int(x.severity)
		}
		return y.n - x.n
	})
	for _, r := range n.raised {
		severities[r.severity] += r.n
	}
	fmt.Fprintln(w, "alerts by severity")
	for _, s := range slices.Backward(slices.Sorted(maps.Keys(severities))) {
		fmt.Fprintf(w, "  %-14s %6d\n", s, severities[s])
	}
	if len(names) == 0 {
		fmt.Fprintln(w, "  none")
		return
	}
	fmt.Fprintln(w, "alerts by rule, with the first of each")
	for _, name := range names {
		r := n.raised[name]
		fmt.Fprintf(w, "  %-14s %6d  %s\n                         %s\n", r.severity, r.n, terminal.Text(name), terminal.Text(r.example))
	}
}
