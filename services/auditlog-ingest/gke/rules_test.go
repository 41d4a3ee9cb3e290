package gke_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"picket/internal/batch"
	"picket/internal/rules"
	defaults "picket/rules"
	auditlogingest "picket/services/auditlog-ingest"
	"picket/services/auditlog-ingest/gke"
	"picket/services/auditlog-ingest/gke/gketest"
	"picket/services/auditlog-ingest/source"
)

// TestRules runs the default pack over events of a real API server, as they are and
// through the shape that GKE gives them, and holds what each rule finds to
// testdata/rules.golden.
func TestRules(t *testing.T) {
	set, _, err := rules.Load(defaults.Default(), rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	n := auditlogingest.NewNormalizer("prod", "sub", "gke", auditlogingest.DefaultRedact())
	count := func(read func(line []byte, b *batch.Builder) error) map[string]int {
		out := map[string]int{}
		eval := set.NewEvaluator()
		for i, line := range lines(t, filepath.Join(audit, "kube-apiserver-v1.34.jsonl")) {
			b := builder()
			if err := read(line, b); err != nil {
				t.Fatalf("line %d: %v", i+1, err)
			}
			if b.Len() > 0 {
				eval.Eval(b.Batch(), func(m rules.Match) { out[m.Rule.Name]++ })
			}
		}
		return out
	}
	as := count(func(line []byte, b *batch.Builder) error { return n.Append(b, line) })
	through := count(func(line []byte, b *batch.Builder) error {
		if line = gketest.Policy(line); line == nil {
			return nil
		}
		e, err := gketest.Entry(line, "shop-1234", "europe-west1", "prod", time.Second)
		if err != nil {
			return err
		}
		text, err := gketest.JSON(e)
		if err != nil {
			return err
		}
		return gke.Records(text, func(r source.Record) error { return n.Append(b, r.Text) })
	})
	var got strings.Builder
	names := map[string]bool{}
	for name := range as {
		names[name] = true
	}
	for name := range through {
		names[name] = true
	}
	sorted := make([]string, 0, len(names))
	for name := range names {
		sorted = append(sorted, name)
	}
	slices.Sort(sorted)
	for _, name := range sorted {
		fmt.Fprintf(&got, "%3d of %3d  %s\n", through[name], as[name], name)
	}
	t.Logf("%d rules find something in the events as they are, %d in what GKE leaves of them", len(as), len(through))
	path := filepath.Join("testdata", "rules.golden")
	if *update {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); d != "" {
		t.Errorf("what the rules find differs from %s (-want +got):\n%s", path, d)
	}
}
