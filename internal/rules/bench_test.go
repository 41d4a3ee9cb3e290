package rules_test

import (
	"fmt"
	"os"
	"testing"

	"picket/internal/batch"
	"picket/internal/rules"
	pack "picket/rules"
	"picket/schemas"
)

// The benchmarks report ns/event and events/s for one core. With
// PICKET_BENCH_RULES set to a rule file or folder they evaluate that too.

func benchSets(b *testing.B) map[string]*rules.Set {
	sets := map[string]*rules.Set{}
	load := func(name string, src []rules.Source) {
		set, _, err := rules.Load(src, rules.Options{})
		if err != nil {
			b.Fatal(err)
		}
		sets[name] = set
	}
	load("default", pack.Default())
	if path := os.Getenv("PICKET_BENCH_RULES"); path != "" {
		src, err := rules.ReadPaths(path)
		if err != nil {
			b.Fatal(err)
		}
		load("given", src)
	}
	return sets
}

// BenchmarkEval evaluates batches of a busy node's events in the sizes that a
// quiet and a busy lane close them with.
func BenchmarkEval(b *testing.B) {
	sets := benchSets(b)
	for _, rows := range []int{100, 1000, 8000} {
		c := newCorpus(1)
		batches := map[string][]*batch.Batch{}
		for range 8 {
			for _, class := range []schemas.Class{schemas.Process, schemas.File, schemas.Network} {
				batches[class.String()] = append(batches[class.String()], c.node(class, rows))
			}
			batches["audit"] = append(batches["audit"], c.audit(rows))
		}
		batches["node"] = append(append(append([]*batch.Batch{}, batches["process"]...), batches["file"]...), batches["network"]...)
		for _, set := range []string{"default", "given"} {
			for _, class := range []string{"process", "file", "network", "node", "audit"} {
				if sets[set] == nil {
					continue
				}
				b.Run(fmt.Sprintf("rules=%s/class=%s/rows=%d", set, class, rows), func(b *testing.B) {
					evalBatches(b, sets[set], batches[class])
				})
			}
		}
	}
}

func evalBatches(b *testing.B, set *rules.Set, batches []*batch.Batch) {
	ev := set.NewEvaluator()
	matches := 0
	for _, x := range batches { // warm: memory is kept from here on
		ev.Eval(x, func(rules.Match) { matches++ })
	}
	b.ReportAllocs()
	events := 0
	for i := 0; b.Loop(); i++ {
		x := batches[i%len(batches)]
		ev.Eval(x, func(rules.Match) { matches++ })
		events += x.Rows()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(events), "ns/event")
	b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkRules shows how the cost grows with the number of rules: the default
// pack several times over, each copy with names and literals of its own.
func BenchmarkRules(b *testing.B) {
	for _, n := range []int{1, 100, 300, 1000} {
		var src []byte
		for i := range n {
			src = fmt.Appendf(src, "- rule: r%d\n  desc: d\n  output: o\n  priority: INFO\n  condition: >\n    evt.type in (execve, execveat) and container.id != host and proc.name in (a%d, b%d, c%d) and proc.cmdline contains x%d and not proc.pname in (sh, bash)\n", i, i, i, i, i)
		}
		set, _, err := rules.Load([]rules.Source{{Name: "bench.yaml", Data: src}}, rules.Options{})
		if err != nil {
			b.Fatal(err)
		}
		batches := []*batch.Batch{newCorpus(1).node(schemas.Process, 8000)}
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) { evalBatches(b, set, batches) })
	}
}

func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		if _, _, err := rules.Load(pack.Default(), rules.Options{Strict: true}); err != nil {
			b.Fatal(err)
		}
	}
}
