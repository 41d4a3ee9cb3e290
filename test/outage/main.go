// Command outage proves what the sensor's spool promises: NATS is killed and
// stays away while the node goes on making events; afterwards every one of
// them is in PICKET_RAW, in order, once. The sensor is the real one with its
// default configuration, NATS a process of its own that keeps its files, and
// the events are real opens and unlinks of numbered files. It exits 1 when
// anything is missing, twice there, out of order or not accounted for. It
// needs root.
//
//	go run ./test/outage                       # 10 minutes away, 5,000 events a second
//	go run ./test/outage -outage 30s -crash    # the sensor is killed meanwhile, too
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"picket/test/rig"
)

// options are what a run does.
type options struct {
	rate   int           // numbered events a second
	lead   time.Duration // before the outage, and again after the spool is empty
	outage time.Duration
	crash  bool   // SIGKILL the sensor halfway, and start it again
	sensor string // picket-sensor; empty: built from this tree
}

func main() {
	rig.ServeNATS()
	var o options
	flag.IntVar(&o.rate, "rate", 5000, "numbered kernel events a second: opens and unlinks")
	flag.DurationVar(&o.lead, "lead", 5*time.Second, "how long events are made before the outage, and after its backlog is published")
	flag.DurationVar(&o.outage, "outage", 10*time.Minute, "how long NATS is away")
	flag.BoolVar(&o.crash, "crash", false, "kill the sensor too, in the middle of the outage, and start it again")
	flag.StringVar(&o.sensor, "sensor", "", "picket-sensor (default: built from the tree this is started in)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "outage:", err)
		os.Exit(1)
	}
}

// node is the name of the sensor's node.
const node = "outage"

// run does it all and prints to w.
func run(ctx context.Context, o options, w io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it watches the kernel")
	}
	if o.rate < 2 || o.outage <= 0 || o.lead <= 0 {
		return errors.New("-rate is at least 2, -outage and -lead are longer than nothing")
	}
	dir, err := os.MkdirTemp("", "picket-outage-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// In memory, so that the disk's speed is the spool's alone.
	shm, err := os.MkdirTemp("/dev/shm", "picket-outage-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(shm)
	if o.sensor == "" {
		if o.sensor, err = rig.BuildSensor(ctx, dir); err != nil {
			return err
		}
	}
	// Room for all of it, four times over: nobody takes from the stream until it is checked.
	nats, err := rig.StartNATS(ctx, filepath.Join(dir, "nats"), 512<<20+int64(o.rate)*400*int64((2*o.lead+3*o.outage)/time.Second))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, nats.Stop()) }()
	sensor, err := rig.StartSensor(ctx, o.sensor, dir, node, nats)
	if err != nil {
		return err
	}
	stopped := false
	defer func() {
		if !stopped {
			_ = sensor.Stop() // err is what matters
		}
	}()

	// The load goes on until the end, so that the backlog and new events
	// compete.
	l := &load{dir: shm, rate: o.rate}
	loadCtx, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	var g errgroup.Group
	g.Go(func() error { return l.run(loadCtx) })
	defer func() { stopLoad(); _ = g.Wait() }() // its error is taken below when there is none before

	say := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	watch := func(phase string, d time.Duration, until func(rig.Figures) bool) (*phase, error) {
		say("%s …", phase)
		return observe(ctx, sensor, d, until)
	}
	if _, err := watch("events while NATS is there", o.lead, nil); err != nil {
		return err
	}
	nats.Kill()
	killed := time.Now()
	away := &phase{}
	if o.crash {
		if away, err = watch("NATS is away", o.outage/2, nil); err != nil {
			return err
		}
		before := away
		sensor.Kill()
		crashed := time.Now()
		say("the sensor is killed …")
		if sensor, err = rig.StartSensor(ctx, o.sensor, dir, node, nats); err != nil {
			return err
		}
		fmt.Fprintf(w, "the sensor was killed with %.1f MB in %.0f files in its spool; the next watched %.2f s later\n", before.bytes/1e6, before.files, time.Since(crashed).Seconds())
	}
	rest, err := watch("NATS is away", o.outage-time.Since(killed), nil)
	if err != nil {
		return err
	}
	away.add(rest)
	if err := nats.Start(ctx); err != nil {
		return err
	}
	back := time.Now()
	drain, err := watch("NATS is back, the spool empties", 2*time.Minute+o.outage, func(f rig.Figures) bool { return f["picket_sensor_spool_batches"] < 8 })
	if err != nil {
		return err
	}
	took := time.Since(back)
	if !drain.reached {
		return fmt.Errorf("the spool has not emptied within %v", took)
	}
	if _, err := watch("events while NATS is there again", o.lead, nil); err != nil {
		return err
	}
	stopLoad()
	if err := g.Wait(); err != nil {
		return err
	}
	if err := sensor.Until(ctx, time.Minute, 100*time.Millisecond, "done with its spool", func() (bool, error) {
		f, err := sensor.Metrics()
		return err == nil && f["picket_sensor_spool_batches"] == 0, err
	}); err != nil {
		return err
	}
	if err := sensor.Stop(); err != nil {
		return err
	}
	stopped = true

	say("reading what arrived …")
	c := newCheck(l, back)
	if err := c.readAll(ctx, nats); err != nil {
		return err
	}
	made := l.made.Load()
	fmt.Fprintf(w, "%d numbered events at %.0f a second on %d CPUs, NATS away for %.0f s of %.0f s; %d events in PICKET_RAW with those of the rest of the machine\n",
		2*made, float64(2*made)/l.took.Seconds(), runtime.NumCPU(), back.Sub(killed).Seconds(), l.took.Seconds(), c.rows)
	fmt.Fprintf(w, "spool at its highest: %.1f MB in %.0f files; %.1f bytes an event, %.0f events a file\n",
		away.bytes/1e6, away.files, float64(c.size)/float64(c.rows), float64(c.rows)/float64(c.batches))
	for _, class := range slices.Sorted(maps.Keys(c.class)) {
		n := c.class[class]
		fmt.Fprintf(w, "\t%s: %d events, %.1f bytes an event\n", class, n, float64(c.classSize[class])/float64(n))
	}
	fmt.Fprintf(w, "drained %.1f s after NATS was back: %.0f events published in that time, %.0f a second\n", took.Seconds(), drain.published, drain.published/took.Seconds())
	fmt.Fprintf(w, "sensor while NATS was away: at most %.1f%% of a CPU (mean %.1f%%), %.0f MB resident; while draining: at most %.0f%% (mean %.0f%%), %.0f MB\n",
		away.peakCPU, away.meanCPU(), away.memory/1e6, drain.peakCPU, drain.meanCPU(), drain.memory/1e6)
	fmt.Fprintf(w, "events made after NATS was back waited for the backlog before them: at most %.1f s from event to JetStream; below 1 s from %.1f s on\n",
		c.longest.Seconds(), c.caughtUp.Seconds())
	if err := c.verdict(o.crash); err != nil {
		return err
	}
	for r, n := range c.account.Reasons {
		fmt.Fprintf(w, "lost and counted: %d events of class %s, %s\n", n, r.Class, r.Reason)
	}
	if o.crash {
		fmt.Fprintf(w, "of the numbered events %d were lost with the killed sensor\n", c.missing)
	}
	fmt.Fprintf(w, "every other numbered event arrived once; batches in order of their number, events in order of their sequence on each CPU, %d event ids all different; kernel_seen = delivered + lost in each class\n", c.rows)
	return nil
}

// load makes the events: file number n is created, which is an open, and
// unlinked.
type load struct {
	dir  string
	rate int
	made atomic.Int64 // files; the numbers are 0 to made-1
	took time.Duration
}

// workers share the numbers, so that events come from several CPUs.
const workers = 2

func (l *load) run(ctx context.Context) error {
	began := time.Now()
	defer func() { l.took = time.Since(began) }()
	var g errgroup.Group
	for range workers {
		g.Go(func() error {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return nil
				}
				// However late the tick is: as many as are due by now.
				for due := int64(time.Since(began).Seconds() * float64(l.rate) / 2); l.made.Load() < due; {
					if err := l.file(l.made.Add(1) - 1); err != nil {
						return err
					}
				}
			}
		})
	}
	return g.Wait()
}

func (l *load) path(n int64) string { return filepath.Join(l.dir, strconv.FormatInt(n, 10)) }

func (l *load) file(n int64) error {
	path := l.path(n)
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("creating %s: %w", path, err)
	}
	return errors.Join(unix.Close(fd), unix.Unlink(path))
}

// phase is what the sensor took while it was watched.
type phase struct {
	bytes, files float64 // of its spool, at the highest
	memory       float64 // bytes resident, at the highest
	peakCPU      float64 // percent of a CPU, in one second
	cpu, wall    time.Duration
	published    float64 // events
	reached      bool    // until said so
}

func (p *phase) meanCPU() float64 { return 100 * float64(p.cpu) / float64(p.wall) }

// add takes in the phase after it.
func (p *phase) add(q *phase) {
	p.bytes, p.files = max(p.bytes, q.bytes), max(p.files, q.files)
	p.memory, p.peakCPU = max(p.memory, q.memory), max(p.peakCPU, q.peakCPU)
	p.cpu, p.wall, p.published = p.cpu+q.cpu, p.wall+q.wall, p.published+q.published
}

// observe watches the sensor for d, or until the function says so.
func observe(ctx context.Context, s *rig.Sensor, d time.Duration, until func(rig.Figures) bool) (*phase, error) {
	p := &phase{}
	began := time.Now()
	first, err := s.Metrics()
	if err != nil {
		return nil, err
	}
	cpu, err := s.CPU()
	if err != nil {
		return nil, err
	}
	begin, second, secondCPU := cpu, began, cpu
	for {
		select {
		case <-time.After(min(100*time.Millisecond, d)):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		f, err := s.Metrics()
		if err != nil {
			return nil, err
		}
		if cpu, err = s.CPU(); err != nil {
			return nil, err
		}
		_, memory, err := s.Memory()
		if err != nil {
			return nil, err
		}
		p.bytes, p.files = max(p.bytes, f["picket_sensor_spool_bytes"]), max(p.files, f["picket_sensor_spool_batches"])
		p.memory = max(p.memory, memory)
		if gone := time.Since(second); gone >= time.Second {
			p.peakCPU = max(p.peakCPU, 100*float64(cpu-secondCPU)/float64(gone))
			second, secondCPU = time.Now(), cpu
		}
		p.cpu, p.wall, p.published = cpu-begin, time.Since(began), f.Published()-first.Published()
		p.reached = until != nil && until(f)
		if p.reached || p.wall >= d {
			p.peakCPU = max(p.peakCPU, p.meanCPU()) // it may have taken less than a second
			return p, nil
		}
	}
}
