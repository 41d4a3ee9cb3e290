// Command bench-detector measures what evaluating an event costs the detector,
// on one core: a recorded mix of at least a million events of ordinary work
// (test/ordinary) goes through the join, is encoded as the enricher publishes
// it, in the sensor's batches, and is then decoded and evaluated as the detector
// does. It runs with GOMAXPROCS=1, and times are those that the process had the
// CPU: collecting garbage is in the figures, other work of the machine is not.
//
//	go run ./test/bench-detector -check
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"picket/internal/batch"
	"picket/internal/rules"
	defaults "picket/rules"
	"picket/schemas"
	"picket/services/detector"
	"picket/services/enricher"
	"picket/test/ordinary"
)

// The bars that -check holds the default pack to, and what they are for.
const (
	leastEvents = 1_000_000 // in the mix
	leastRate   = 1_000_000 // events a second on one core, decoding included
)

// sizes are the numbers of rules that show how the cost grows.
var sizes = []int{100, 300, 1000}

func main() {
	check := flag.Bool("check", false, fmt.Sprintf("fail below %d events a second with the default pack, or when an event that matches nothing allocates, or when cost grows faster than the number of rules", leastRate))
	rounds := flag.Int("rounds", 5, "how often each is measured; the medians are printed")
	community := flag.String("community", "../shared/falco-rules", "folder with Falco's rule files, of which those for system calls and the audit log are evaluated apart")
	profile := flag.String("cpuprofile", "", "write a CPU profile of the rounds with the default pack to this file")
	var paths, recordings []string
	flag.Func("rules", "rule file or folder, repeatable, in place of the default pack", func(p string) error { paths = append(paths, p); return nil })
	flag.Func("recording", "capture of picket record, repeatable, in place of the recordings of ordinary work", func(p string) error { recordings = append(recordings, p); return nil })
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	b := bench{rounds: max(*rounds, 1), profile: *profile, out: os.Stdout}
	if err := b.run(ctx, paths, recordings, *community, *check); err != nil {
		fmt.Fprintln(os.Stderr, "bench-detector:", err)
		os.Exit(1)
	}
}

type bench struct {
	rounds  int
	profile string
	out     io.Writer
	mix     []message
	events  int
	bytes   int
}

// message is a batch as the detector takes it from NATS.
type message struct {
	data []byte
	rows int
}

func (b *bench) run(ctx context.Context, paths, recordings []string, community string, check bool) error {
	set, _, err := detector.LoadRules(paths)
	if err != nil {
		return err
	}
	if len(recordings) == 0 {
		for _, everyFile := range []bool{false, true} {
			file, err := ordinary.Recording(ctx, set, everyFile)
			if err != nil {
				return err
			}
			recordings = append(recordings, file)
		}
	}
	for _, file := range recordings {
		if err := b.load(file); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	if b.events == 0 {
		return errors.New("the recordings have no events")
	}
	runtime.GOMAXPROCS(1)

	results := []*result{{name: "default", title: "the default pack", set: set}}
	if len(paths) > 0 {
		results[0].title = "the rules given"
	}
	sources := defaults.Default()
	given, err := communitySources(community)
	if err != nil {
		fmt.Fprintf(b.out, "=== FALCO'S RULES ARE NOT MEASURED: %v ===\n", err)
	} else {
		falco, warnings, err := rules.Load(given, rules.Options{})
		if err != nil {
			return err
		}
		results = append(results, &result{name: "falco", title: "Falco's rules", set: falco, leftOut: len(warnings)})
		sources = append(sources, given...)
	}
	for _, n := range sizes {
		many, err := repeated(sources, n)
		if err != nil {
			return err
		}
		results = append(results, &result{name: fmt.Sprint(n), title: fmt.Sprintf("%d rules", n), set: many, size: n})
	}
	for _, r := range results {
		if err := b.measure(ctx, r); err != nil {
			return err
		}
	}
	b.table(results)
	b.benchstat(results)
	if missed := b.missed(results); check && len(missed) > 0 {
		return fmt.Errorf("not met: %q", missed)
	}
	return nil
}

// communitySources are Falco's own rule files in their order: stable,
// incubating, sandbox, audit.
func communitySources(folder string) ([]rules.Source, error) {
	var paths []string
	for _, name := range []string{"falco_rules.yaml", "falco-incubating_rules.yaml", "falco-sandbox_rules.yaml", "k8s_audit_rules.yaml"} {
		paths = append(paths, filepath.Join(folder, name))
	}
	return rules.ReadPaths(paths...)
}

// load adds a capture to the mix, joined and encoded as the enricher does.
func (b *bench) load(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	join := enricher.New()
	var encoder batch.Encoder
	return batch.ReadCapture(data, func(raw *batch.Batch) error {
		joined, err := join.Enrich(raw, schemas.Token(raw.Str(schemas.Cluster, 0)), schemas.Token(raw.Str(schemas.Node, 0)))
		if err != nil {
			return err
		}
		encoded, err := encoder.Encode(joined)
		if err != nil {
			return err
		}
		for _, e := range encoded {
			b.mix = append(b.mix, message{e.Data, e.Batch.Rows()})
			b.events += e.Batch.Rows()
			b.bytes += len(e.Data)
		}
		return nil
	})
}

// result is what was measured of a set of rules.
type result struct {
	name, title string
	set         *rules.Set
	size        int // rules asked for; 0: a pack as it is
	leftOut     int // warnings

	decode, eval []float64 // ns an event, by round
	matches      int       // of a round
	quiet        int       // events of batches that match nothing
	allocations  float64   // an event of those, evaluated
	decodeAllocs float64   // a batch, decoded
}

func (r *result) total() []float64 {
	out := slices.Clone(r.decode)
	for i := range out {
		out[i] += r.eval[i]
	}
	return out
}

// quietBatches is how many batches that match nothing are kept to count allocations with.
const quietBatches = 500

func (b *bench) measure(ctx context.Context, r *result) error {
	ev := r.set.NewEvaluator()
	var decoder batch.Decoder
	matches := 0
	count := func(rules.Match) { matches++ }
	// What feeds rules about several events is made ready to be handed on, as the detector does.
	feed := func(f rules.Feed) {
		matches++
		_, _ = f.Record()
	}
	// The first time takes the evaluator's memory, and finds what matches nothing.
	var quiet []*batch.Batch
	for i, m := range b.mix {
		x, err := decoder.Decode(m.data)
		if err != nil {
			return err
		}
		before := matches
		ev.EvalFeeds(x, count, feed)
		if matches == before && i%max(1, len(b.mix)/quietBatches) == 0 {
			quiet = append(quiet, x)
			r.quiet += x.Rows()
		}
	}
	r.matches = matches
	r.allocations = allocations(func() {
		for _, x := range quiet {
			ev.EvalFeeds(x, count, feed)
		}
	}) / float64(max(r.quiet, 1))
	some := b.mix[:min(len(b.mix), quietBatches)]
	r.decodeAllocs = allocations(func() {
		for _, m := range some {
			_, _ = decoder.Decode(m.data) // was decoded above
		}
	}) / float64(len(some))
	quiet = nil

	if b.profile != "" && r.name == "default" {
		f, err := os.Create(b.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	for range b.rounds {
		if err := ctx.Err(); err != nil {
			return err
		}
		runtime.GC()
		var decode, eval time.Duration
		for _, m := range b.mix {
			start := processor()
			x, err := decoder.Decode(m.data)
			if err != nil {
				return err
			}
			decoded := processor()
			ev.EvalFeeds(x, count, feed)
			decode += decoded - start
			eval += processor() - decoded
		}
		r.decode = append(r.decode, float64(decode)/float64(b.events))
		r.eval = append(r.eval, float64(eval)/float64(b.events))
	}
	return nil
}

// processor is the time that the process has had a CPU: other work of the machine
// is not in it, and collecting garbage is.
func processor() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		panic(err) // the clock is always there
	}
	return time.Duration(t.Nano())
}

// allocations counts what f allocates the second time it runs.
func allocations(f func()) float64 {
	f()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs - before.Mallocs)
}
