package main

import (
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

func (b *bench) table(results []*result) {
	var u unix.Utsname
	release := "?"
	if unix.Uname(&u) == nil {
		release = unix.ByteSliceToString(u.Release[:])
	}
	fmt.Fprintf(b.out, "Linux %s, one of %d CPUs (GOMAXPROCS=1, CPU time), medians of %d rounds.\n", release, runtime.NumCPU(), b.rounds)
	fmt.Fprintf(b.out, "%d recorded events in %d batches (%d events in the middle one, %.0f bytes an event as encoded)\n\n", b.events, len(b.mix), b.middle(), float64(b.bytes)/float64(b.events))
	fmt.Fprintf(b.out, "%-18s %6s %12s %9s %9s %9s %9s %14s %14s\n", "", "rules", "events/s", "ns/event", "decode", "evaluate", "matches", "allocs/event*", "allocs/batch**")
	for _, r := range results {
		fmt.Fprintf(b.out, "%-18s %6d %12.0f %9.0f %9.0f %9.0f %9d %14.4f %14.0f\n", r.title, len(r.set.Rules()), 1e9/median(r.total()), median(r.total()), median(r.decode), median(r.eval), r.matches, r.allocations, r.decodeAllocs)
	}
	fmt.Fprintln(b.out, "\n*  evaluating batches in which no rule matches   ** decoding")
	for _, r := range results {
		if r.leftOut > 0 {
			fmt.Fprintf(b.out, "%s: %d warnings; a rule that uses what Picket does not provide is left out\n", r.title, r.leftOut)
		}
	}
	if g := growth(results); g != nil {
		fmt.Fprintf(b.out, "Evaluating %d rules costs %.1f times what %d cost.\n", g.many, g.times, g.few)
	}
}

// middle returns the size of the batch in which the middle event is.
func (b *bench) middle() int {
	rows := make([]int, 0, len(b.mix))
	for _, m := range b.mix {
		rows = append(rows, m.rows)
	}
	slices.Sort(rows)
	seen := 0
	for _, n := range rows {
		if seen += n; seen >= b.events/2 {
			return n
		}
	}
	return 0
}

// grown is how evaluation grows from few rules to many.
type grown struct {
	few, many int
	times     float64
}

func growth(results []*result) *grown {
	var first, last *result
	for _, r := range results {
		if r.size > 0 {
			if first == nil {
				first = r
			}
			last = r
		}
	}
	if first == nil || first == last {
		return nil
	}
	return &grown{first.size, last.size, median(last.eval) / median(first.eval)}
}

// benchstat writes a line for each round.
func (b *bench) benchstat(results []*result) {
	fmt.Fprintf(b.out, "\ngoos: %s\ngoarch: %s\npkg: picket/test/bench-detector\n", runtime.GOOS, runtime.GOARCH)
	for _, r := range results {
		for i := range r.eval {
			fmt.Fprintf(b.out, "BenchmarkDetector/rules=%s %d %.1f ns/op %.1f decode-ns/op %.1f eval-ns/op %.0f events/s %.4f allocs/op\n",
				r.name, b.events, r.decode[i]+r.eval[i], r.decode[i], r.eval[i], 1e9/(r.decode[i]+r.eval[i]), r.allocations)
		}
	}
}

// missed returns the bars that are not met.
func (b *bench) missed(results []*result) []string {
	var out []string
	if b.events < leastEvents {
		out = append(out, fmt.Sprintf("%d events in the mix, fewer than %d", b.events, leastEvents))
	}
	for _, r := range results {
		if rate := 1e9 / median(r.total()); r.name == "default" && rate < leastRate {
			out = append(out, fmt.Sprintf("%s: %.0f events a second, fewer than %d", r.title, rate, leastRate))
		}
		if r.quiet == 0 || r.allocations > 0 {
			out = append(out, fmt.Sprintf("%s: %g allocations for each of %d events that match nothing", r.title, r.allocations, r.quiet))
		}
	}
	if g := growth(results); g != nil && g.times >= float64(g.many)/float64(g.few) {
		out = append(out, fmt.Sprintf("%d rules cost %.1f times what %d cost", g.many, g.times, g.few))
	}
	return out
}
