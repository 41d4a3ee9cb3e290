// Command bench-sensor measures what the sensor costs the node it watches: it
// runs storms of execs, opens and connects without and with picket-sensor in
// turns, and compares within a turn. The sensor is the real one, publishing to
// a NATS server in another process. It prints each figure with the limit that
// Picket sets itself, and fails when an event is neither delivered nor counted
// as lost. It needs root and a C compiler (cc), and a machine that does
// nothing else: other processes' system calls are measured too.
//
//	go run ./test/bench-sensor -rounds 5
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"picket/schemas"
	"picket/test/rig"
)

//go:embed load/load.c
var loadSource string

// storm is a workload.
type storm struct {
	name, title string
	args        []string // of the load program
	n           int      // operations of one load program
	copies      int      // load programs at once
	class       schemas.Class
	events      int // of the class that an operation is at least
	most        limits
	losses      bool // run once, for nothing but its losses
}

// limits are what a storm may cost; 0 is no limit.
type limits struct {
	slowdown  float64 // times
	overEmpty float64 // slowdown above that by empty programs
	cpu       float64 // µs of the sensor for an operation
	kernel    float64 // µs in its programs for an operation
}

func (s *storm) ops() int { return s.n * s.copies }

// storms returns the workloads. The limits are below what Falco 0.44 (modern
// eBPF probe, its default rules) took of a machine with two CPUs, measured the
// same way; those of kernel time are Falco's figures themselves.
func storms(execs, opens, connects int, file string) []*storm {
	n := strconv.Itoa
	return []*storm{
		{name: "exec", title: "fork, exec, exit", args: []string{"exec", n(execs)}, n: execs, copies: 1,
			class: schemas.Process, events: 3, most: limits{slowdown: 1.10, cpu: 60, kernel: 32}},
		{name: "open", title: "open, read, close of a file nobody watches", args: []string{"open", n(opens), "/etc/hostname", "rd"}, n: opens, copies: 1,
			class: schemas.File, events: 0, most: limits{overEmpty: 0.12, cpu: 0.2, kernel: 1.6}},
		{name: "publish", title: "open, read, close, every open published", args: []string{"open", n(opens), file, "rw"}, n: opens, copies: 1,
			class: schemas.File, events: 1, most: limits{slowdown: 1.6, cpu: 1.5, kernel: 1.6}},
		{name: "connect", title: "TCP connect over loopback", args: []string{"connect", n(connects)}, n: connects, copies: 1,
			class: schemas.Network, events: 2, most: limits{slowdown: 1.00, cpu: 4, kernel: 4.6}},
		{name: "pinned", title: "TCP connect over loopback, both ends on one CPU", args: []string{"connect", n(connects), "0"}, n: connects, copies: 1,
			class: schemas.Network, events: 2, most: limits{slowdown: 1.08, cpu: 4, kernel: 4.6}},
		{name: "both", title: "two storms of published opens at once", args: []string{"open", n(opens), file, "rw"}, n: opens, copies: 2,
			class: schemas.File, events: 1, losses: true},
	}
}

// Limits of the sensor as a whole.
const (
	mostMemory = 80e6 // bytes resident
	mostIdle   = 0.2  // percent of a CPU
)

type bench struct {
	load, sensor, dir, file string
	nats                    *rig.NATS
	started                 int
	peak, resident          []float64
}

func main() {
	rig.ServeNATS()
	rounds := flag.Int("rounds", 5, "rounds of each storm, every one without and with the sensor")
	execs := flag.Int("execs", 20000, "programs run in the exec storm")
	opens := flag.Int("opens", 2000000, "files opened in the open storms")
	connects := flag.Int("connects", 50000, "connections made in the connect storms")
	idle := flag.Duration("idle", 20*time.Second, "how long to watch an idle sensor; 0 leaves it out")
	only := flag.String("only", "", "comma-separated storms to run: exec, open, publish, connect, pinned, both (default all)")
	binary := flag.String("sensor", "bin/picket-sensor", "picket-sensor")
	format := flag.String("format", "table", "table, or benchstat: a line per round for golang.org/x/perf/cmd/benchstat")
	check := flag.Bool("check", false, "exit 1 when a limit is missed")
	memory := flag.Bool("memory", false, "instead of all that: whether the sensor's memory stays bounded while processes and containers come and go")
	processes := flag.Int("processes", 200000, "with -memory: processes")
	containers := flag.Int("containers", 5000, "with -memory: containers they are in")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *memory {
		b := &bench{sensor: *binary}
		err := b.prepare(ctx)
		if err == nil {
			err = b.churn(ctx, *processes, *containers, os.Stdout)
		}
		if err = errors.Join(err, b.close()); err != nil {
			fmt.Fprintln(os.Stderr, "bench-sensor:", err)
			os.Exit(1)
		}
		return
	}
	var r *report
	err := errors.New("-rounds, -execs, -opens and -connects are at least 1")
	if *format != "table" && *format != "benchstat" {
		err = fmt.Errorf("-format is %q: use table or benchstat", *format)
	} else if min(*rounds, *execs, *opens, *connects) > 0 {
		r, err = measure(ctx, *rounds, *execs, *opens, *connects, *idle, *only, *binary)
	}
	if err == nil {
		if *format == "benchstat" {
			r.benchstat(os.Stdout)
		} else {
			err = r.table(os.Stdout)
		}
	}
	if err == nil && *check {
		if missed := r.missed(); missed > 0 {
			err = fmt.Errorf("%d limits missed", missed)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-sensor:", err)
		os.Exit(1)
	}
}

// prepare makes all that a run needs; close takes it away, also when prepare
// has failed.
func (b *bench) prepare(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it watches the kernel")
	}
	var err error
	if b.dir, err = os.MkdirTemp("", "picket-bench-sensor-"); err != nil {
		return err
	}
	// As deep as the file of the other open storm.
	file, err := os.CreateTemp("", "picket-bench-sensor-")
	if err != nil {
		return err
	}
	b.file = file.Name()
	if err := errors.Join(file.Truncate(64), file.Close()); err != nil {
		return err
	}
	b.load = filepath.Join(b.dir, "load")
	cc := exec.CommandContext(ctx, "cc", "-O2", "-Wall", "-x", "c", "-", "-o", b.load)
	cc.Stdin = strings.NewReader(loadSource)
	if out, err := cc.CombinedOutput(); err != nil {
		return fmt.Errorf("compiling the load program (apt-get install gcc, if cc is missing): %w\n%s", err, out)
	}
	b.nats, err = rig.StartNATS(ctx, filepath.Join(b.dir, "nats"), 4<<30)
	return err
}

func (b *bench) close() error {
	var errs []error
	if b.nats != nil {
		errs = append(errs, b.nats.Stop())
	}
	if b.file != "" {
		errs = append(errs, os.Remove(b.file))
	}
	if b.dir != "" {
		errs = append(errs, os.RemoveAll(b.dir))
	}
	return errors.Join(errs...)
}

func measure(ctx context.Context, rounds, execs, opens, connects int, idle time.Duration, only, binary string) (_ *report, err error) {
	b := &bench{sensor: binary}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.prepare(ctx); err != nil {
		return nil, err
	}
	todo := storms(execs, opens, connects, b.file)
	if only != "" {
		names := strings.Split(only, ",")
		for _, name := range names {
			if !slices.ContainsFunc(todo, func(s *storm) bool { return s.name == name }) {
				return nil, fmt.Errorf("-only: there is no storm %q", name)
			}
		}
		todo = slices.DeleteFunc(todo, func(s *storm) bool { return !slices.Contains(names, s.name) })
	}
	r := &report{rounds: rounds, idle: -1, before: loadAverage()}
	for _, s := range todo {
		fmt.Fprintf(os.Stderr, "%s …\n", s.title)
		res, err := b.measure(ctx, s, rounds)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.title, err)
		}
		r.storms = append(r.storms, res)
	}
	if idle > 0 {
		fmt.Fprintln(os.Stderr, "idle …")
		if r.idle, err = b.idle(ctx, idle); err != nil {
			return nil, fmt.Errorf("idle: %w", err)
		}
	}
	r.peak, r.resident, r.after = b.peak, b.resident, loadAverage()
	return r, nil
}

// result has, of one storm, a value per round.
type result struct {
	*storm
	without, with      []float64 // ns for an operation
	slowdown, over     []float64 // times; slowdown above that by empty programs
	empty              []float64 // times: slowdown by empty programs
	cpu, perEvent      []float64 // µs of the sensor for an operation, ms for 1,000 events
	rate, behind, lost []float64 // events a second; seconds; events
	kernel             []float64 // µs in the programs for an operation
}

func (b *bench) measure(ctx context.Context, s *storm, rounds int) (*result, error) {
	r := &result{storm: s}
	if s.losses {
		w, err := b.with(ctx, s, false)
		if err != nil {
			return nil, err
		}
		r.addSensor(w)
		return r, nil
	}
	for round := range rounds {
		var without, empty float64
		var with *watched
		steps := []func() error{
			func() (err error) { without, err = b.storm(ctx, s); return err },
			func() (err error) {
				if s.most.overEmpty == 0 {
					return nil
				}
				detach, err := emptyPair()
				if err != nil {
					return err
				}
				empty, err = b.storm(ctx, s)
				return errors.Join(err, detach())
			},
			func() (err error) { with, err = b.with(ctx, s, false); return err },
		}
		if round%2 == 1 {
			slices.Reverse(steps) // so that what a machine does over time favours neither
		}
		for _, step := range steps {
			if err := step(); err != nil {
				return nil, err
			}
		}
		r.without = append(r.without, without)
		r.addSensor(with)
		r.slowdown = append(r.slowdown, with.ns/without)
		if s.most.overEmpty > 0 {
			r.empty = append(r.empty, empty/without)
			r.over = append(r.over, (with.ns-empty)/without)
		}
	}
	// In a run of its own: the statistics take time themselves.
	w, err := b.with(ctx, s, true)
	if err != nil {
		return nil, err
	}
	r.kernel = append(r.kernel, w.kernel)
	return r, nil
}

func (r *result) addSensor(w *watched) {
	r.with = append(r.with, w.ns)
	r.cpu = append(r.cpu, w.cpu/float64(r.ops()))
	r.lost = append(r.lost, w.lost)
	if r.events == 0 {
		return // what it published was not of the storm
	}
	r.perEvent = append(r.perEvent, w.cpu/w.events)
	r.rate = append(r.rate, w.events/(w.ns*float64(r.n)/1e9))
	r.behind = append(r.behind, w.behind.Seconds())
}

// storm runs the load and returns the ns for an operation of one program.
func (b *bench) storm(ctx context.Context, s *storm) (float64, error) {
	type outcome struct {
		ns, fails int
		err       error
	}
	outcomes := make([]outcome, s.copies)
	var wg sync.WaitGroup
	for i := range outcomes {
		wg.Go(func() {
			o := &outcomes[i]
			var out []byte
			if out, o.err = exec.CommandContext(ctx, b.load, s.args...).Output(); o.err == nil {
				_, o.err = fmt.Sscan(string(out), &o.ns, &o.fails)
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return 0, err // the load was killed
	}
	longest := 0
	for _, o := range outcomes {
		if o.err != nil {
			return 0, fmt.Errorf("load %s: %w", strings.Join(s.args, " "), o.err)
		}
		if o.fails > 0 {
			return 0, fmt.Errorf("load %s: %d operations failed", strings.Join(s.args, " "), o.fails)
		}
		longest = max(longest, o.ns)
	}
	return float64(longest) / float64(s.n), nil
}

// watched is a storm with the sensor.
type watched struct {
	ns     float64 // for an operation
	cpu    float64 // µs of the sensor, until it had published all
	kernel float64 // µs in its programs for an operation
	events float64 // published, of all classes
	behind time.Duration
	lost   float64
}

// settle is how long a started sensor is left alone before it is measured.
const settle = time.Second

// with starts a sensor, runs the storm and stops the sensor when it has
// published what it saw.
func (b *bench) with(ctx context.Context, s *storm, stats bool) (_ *watched, err error) {
	p, err := b.start(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = p.Stop() // err is what matters
		}
	}()
	var ids []ebpf.ProgramID
	if stats {
		closer, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
		if err != nil {
			return nil, fmt.Errorf("kernel.bpf_stats_enabled: %w", err)
		}
		defer closer.Close()
		if ids, err = programs(p); err != nil {
			return nil, err
		}
	}
	before, err := p.Metrics()
	if err != nil {
		return nil, err
	}
	cpu, err := p.CPU()
	if err != nil {
		return nil, err
	}
	ran, err := programTime(ids)
	if err != nil {
		return nil, err
	}
	w := &watched{}
	if w.ns, err = b.storm(ctx, s); err != nil {
		return nil, err
	}
	end := time.Now()
	ranAfter, err := programTime(ids)
	if err != nil {
		return nil, err
	}
	w.kernel = float64((ranAfter - ran).Nanoseconds()) / 1e3 / float64(s.ops())

	want := before.Settled(s.class) + float64(s.events*s.ops())
	var f rig.Figures
	err = p.Until(ctx, 2*time.Minute, 250*time.Millisecond, fmt.Sprintf("done with %.0f events of class %s", want, s.class), func() (bool, error) {
		var err error
		if f, err = p.Metrics(); err != nil {
			return false, err
		}
		if n := f.Settled(s.class); n < want {
			return false, fmt.Errorf("it has published or lost %.0f", n)
		}
		return f["picket_sensor_spool_batches"] == 0, nil
	})
	if err != nil {
		return nil, err
	}
	w.behind = time.Since(end)
	time.Sleep(settle / 2) // for what followed the last event asked for
	cpuAfter, err := p.CPU()
	if err != nil {
		return nil, err
	}
	w.cpu = float64((cpuAfter - cpu).Microseconds())
	if f, err = p.Metrics(); err != nil {
		return nil, err
	}
	w.events = f.Published() - before.Published()
	peak, now, err := p.Memory()
	if err != nil {
		return nil, err
	}
	b.peak, b.resident = append(b.peak, peak), append(b.resident, now)
	a, err := p.Close(ctx)
	if err != nil {
		return nil, err
	}
	w.lost = float64(a.Losses())
	return w, nil
}

// start starts a sensor that is a node of its own, so that its account is its
// own, and lets it come to rest.
func (b *bench) start(ctx context.Context) (*rig.Sensor, error) {
	b.started++
	p, err := rig.StartSensor(ctx, b.sensor, b.dir, fmt.Sprintf("node-%d", b.started), b.nats)
	if err != nil {
		return nil, err
	}
	time.Sleep(settle)
	return p, nil
}

// idle returns the percentage of a CPU that a sensor takes when nothing
// happens.
func (b *bench) idle(ctx context.Context, d time.Duration) (float64, error) {
	p, err := b.start(ctx)
	if err != nil {
		return 0, err
	}
	time.Sleep(2 * settle)
	before, err1 := p.CPU()
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
	after, err2 := p.CPU()
	_, err3 := p.Close(ctx)
	return 100 * float64(after-before) / float64(d), errors.Join(err1, err2, err3)
}
