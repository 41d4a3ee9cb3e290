package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// report is what is printed.
type report struct {
	rounds         int
	before, after  string // load averages
	storms         []*result
	idle           float64 // percent of a CPU; negative when it was left out
	peak, resident []float64
}

// line is a figure: the values of the rounds, and what it is held to.
type line struct {
	title  string
	values []float64
	digits int
	limit  limit
}

type limitKind int

const (
	none   limitKind = iota
	atMost           // the median is at most the limit
	below            // the median is below it
	always           // every value is at most the limit
)

type limit struct {
	kind limitKind
	most float64
}

// most returns the limit of a storm, where 0 is none.
func most(v float64, kind limitKind) limit {
	if v == 0 {
		kind = none
	}
	return limit{kind, v}
}

func (l line) met() bool {
	// As many digits as the limits have: 1.004 is 1.00.
	round := func(v float64) float64 { return math.Round(v*100) / 100 }
	switch l.limit.kind {
	case atMost:
		return round(median(l.values)) <= l.limit.most
	case below:
		return round(median(l.values)) < l.limit.most
	case always:
		return slices.Max(l.values) <= l.limit.most
	}
	return true
}

func (l line) bound() (text, met string) {
	switch l.limit.kind {
	case none:
		return "", ""
	case below:
		text = "< "
	default:
		text = "≤ "
	}
	met = "NO"
	if l.met() {
		met = "yes"
	}
	return text + fmt.Sprintf("%g", l.limit.most), met
}

func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

func scaled(values []float64, by float64) []float64 {
	out := slices.Clone(values)
	for i := range out {
		out[i] *= by
	}
	return out
}

// lines returns the figures of a storm, those that it has.
func (r *result) lines() []line {
	return slices.DeleteFunc([]line{
		{"without the sensor, µs each", scaled(r.without, 1e-3), 3, limit{}},
		{"with the sensor, µs each", scaled(r.with, 1e-3), 3, limit{}},
		{"slowdown, times", r.slowdown, 3, most(r.most.slowdown, atMost)},
		{"slowdown by empty sys_enter and sys_exit programs, times", r.empty, 3, limit{}},
		{"slowdown above that of the empty programs", r.over, 3, most(r.most.overEmpty, atMost)},
		{"CPU of the sensor, µs each", r.cpu, 2, most(r.most.cpu, atMost)},
		{"CPU of the sensor, ms per 1,000 events", r.perEvent, 2, limit{}},
		{"kernel time of its programs, µs each", r.kernel, 2, most(r.most.kernel, below)},
		{"events a second", r.rate, 0, limit{}},
		{"seconds until all was published", r.behind, 1, limit{}},
		{"events lost (counted)", r.lost, 0, limit{always, 0}},
	}, func(l line) bool { return len(l.values) == 0 })
}

// lines returns the figures of the sensor as a whole.
func (r *report) lines() []line {
	lines := []line{}
	if len(r.peak) > 0 {
		lines = append(lines, line{"resident memory at its highest (VmHWM), MB", scaled(r.peak, 1e-6), 1, limit{always, mostMemory / 1e6}},
			line{"resident memory after a storm (VmRSS), MB", scaled(r.resident, 1e-6), 1, limit{}})
	}
	if r.idle >= 0 {
		lines = append(lines, line{"CPU when idle, % of one", []float64{r.idle}, 2, limit{atMost, mostIdle}})
	}
	return lines
}

// missed returns how many limits are missed.
func (r *report) missed() int {
	n := 0
	count := func(lines []line) {
		for _, l := range lines {
			if !l.met() {
				n++
			}
		}
	}
	for _, s := range r.storms {
		count(s.lines())
	}
	count(r.lines())
	return n
}

func (r *report) table(w io.Writer) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	fmt.Fprintf(w, "Linux %s, %d CPUs, %d rounds; load average %s before, %s after.\n", unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), r.rounds, r.before, r.after)
	fmt.Fprintln(w, "Medians, with the smallest and the largest; ratios are taken within a round.")
	section := func(title string, lines []line) {
		fmt.Fprintf(w, "\n%-60s %9s %9s %9s  %-6s  met\n", title, "median", "min", "max", "limit")
		for _, l := range lines {
			bound, met := l.bound()
			row := fmt.Sprintf("  %-58s %9.*f %9.*f %9.*f  %-6s  %s", l.title, l.digits, median(l.values), l.digits, slices.Min(l.values), l.digits, slices.Max(l.values), bound, met)
			fmt.Fprintln(w, strings.TrimRight(row, " "))
		}
	}
	for _, s := range r.storms {
		size := fmt.Sprint(s.n)
		if s.copies > 1 {
			size = fmt.Sprintf("%d × %d", s.copies, s.n)
		}
		section(fmt.Sprintf("%s (%s)", s.title, size), s.lines())
	}
	section("the sensor", r.lines())
	fmt.Fprintln(w, "\nEvery event is accounted for: kernel_seen = rows in JetStream + events lost, in each class of each run.")
	return nil
}

// benchstat writes a line for each round and side.
func (r *report) benchstat(w io.Writer) {
	fmt.Fprintf(w, "goos: %s\ngoarch: %s\npkg: picket/test/bench-sensor\nload: %s before, %s after\n", runtime.GOOS, runtime.GOARCH, r.before, r.after)
	for _, s := range r.storms {
		name := "BenchmarkSensor/storm=" + s.name
		for _, ns := range s.without {
			fmt.Fprintf(w, "%s/sensor=off %d %.1f ns/op\n", name, s.ops(), ns)
		}
		for i, ns := range s.with {
			fmt.Fprintf(w, "%s/sensor=on %d %.1f ns/op %.1f sensor-ns/op %.0f lost", name, s.ops(), ns, s.cpu[i]*1e3, s.lost[i])
			if i < len(s.perEvent) {
				fmt.Fprintf(w, " %.3f sensor-ms/1000-events %.0f events/s", s.perEvent[i], s.rate[i])
			}
			if i < len(s.slowdown) {
				fmt.Fprintf(w, " %.4f slowdown", s.slowdown[i])
			}
			if i < len(s.over) {
				fmt.Fprintf(w, " %.4f empty-slowdown %.4f over-empty", s.empty[i], s.over[i])
			}
			fmt.Fprintln(w)
		}
		for _, us := range s.kernel {
			fmt.Fprintf(w, "%s/sensor=stats %d %.1f bpf-ns/op\n", name, s.ops(), us*1e3)
		}
	}
	for i := range r.peak {
		fmt.Fprintf(w, "BenchmarkSensor/memory 1 %.0f peak-B %.0f resident-B\n", r.peak[i], r.resident[i])
	}
	if r.idle >= 0 {
		fmt.Fprintf(w, "BenchmarkSensor/idle 1 %.3f cpu-%%\n", r.idle)
	}
}

// loadAverage returns the load averages of the last 1, 5 and 15 minutes.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if f := strings.Fields(string(b)); err == nil && len(f) >= 3 {
		return strings.Join(f[:3], " ")
	}
	return "unknown"
}
