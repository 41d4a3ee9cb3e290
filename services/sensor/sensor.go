// Package sensor watches a node: it reads the kernel's events, adds what is
// known of the process that acted, and publishes them as Arrow batches.
//
//	bpf rings ─▶ lane (one per class) ─▶ outbox (spool) ─▶ PICKET_RAW
//	               │ proctree, containerid, redact
//
// It knows nothing of Kubernetes' API, of rules or of storage.
package sensor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"picket/bpf"
	"picket/internal/health"
	"picket/internal/outbox"
	"picket/internal/seldom"
	"picket/internal/service"
	"picket/schemas"
	"picket/services/sensor/containerid"
	"picket/services/sensor/mounts"
	"picket/services/sensor/passwd"
	"picket/services/sensor/proctree"
	"picket/services/sensor/redact"
)

// Outbox takes encoded batches: the spool of a running sensor, or a file that
// records. See outbox.Put for the contract.
type Outbox interface {
	Put(subject string, data []byte, rows int, note any, stored func()) error
	RunID() string
}

// stopGrace is how long a stopping sensor tries to publish what is spooled.
const stopGrace = 5 * time.Second

// Run runs the sensor until ctx ends. It stops at once, with one sentence,
// when the machine or the process's rights lack something.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	rt, err := service.Start("sensor", cfg.NATS, cfg.Log, cfg.Admin)
	if err != nil {
		return err
	}
	defer rt.Close()
	box, err := outbox.Open(filepath.Join(cfg.StateDir, "spool"), cfg.SpoolBytes, "sensor", rt.Bus, rt.Log, rt.Metrics)
	if err != nil {
		return err
	}
	notes := box.Notes()
	s, err := newSensor(cfg, box, notes, rt.Log, rt.Metrics)
	if err != nil {
		return errors.Join(err, box.Close())
	}
	if cfg.DropCapabilities {
		if err := dropCapabilities(); err != nil {
			return errors.Join(err, s.kernel.Close(false), s.cgroups.Close(), box.Close())
		}
	}
	rt.Started() // the programs are attached

	// The lanes stop first, then the last figures are spooled, then the
	// outbox empties itself as far as NATS takes it.
	g, gctx := errgroup.WithContext(ctx)
	boxCtx, stopBox := context.WithCancel(context.Background())
	defer stopBox()
	g.Go(func() error {
		return box.Run(boxCtx, stopGrace, func(class string, events uint64) { s.health.Lost(class, schemas.LossSpoolDamaged, events) })
	})
	g.Go(func() error {
		defer stopBox()
		follow, stop := context.WithCancel(gctx)
		var wg sync.WaitGroup
		wg.Go(func() { s.follow(follow, rt.Bus) })
		defer wg.Wait()
		defer stop()
		return s.run(gctx)
	})
	return g.Wait()
}

// Record runs a sensor that hands its batches to box instead of NATS, until
// ctx ends. It loads programs of its own, beside those of a running sensor.
// watching, if not nil, is called when they are attached.
func Record(ctx context.Context, cfg Config, box Outbox, watching func(), log *slog.Logger) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	s, err := newSensor(cfg, box, nil, log, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	if watching != nil {
		watching()
	}
	return s.run(ctx)
}

// sensor is what the lanes share.
type sensor struct {
	cfg     Config
	log     *slog.Logger
	seldom  *seldom.Logger
	box     Outbox
	kernel  *bpf.Kernel
	tree    *proctree.Tree
	cgroups *containerid.Resolver
	// runtimes tells the names of containers, where it can.
	runtimes *containerid.Runtimes
	users    *passwd.Names
	groups   *passwd.Names
	redact   *redact.Policy
	// environment are the names of the variables that are kept.
	environment map[string]struct{}
	health      *health.Reporter
	metrics     *metrics

	bootID string
	// hostMnt is the host's mount namespace, mounts its mounts; namespaces are the
	// others'.
	hostMnt    uint32
	mounts     *mounts.Table
	namespaces *mounts.Namespaces
	// offset is what to add to CLOCK_BOOTTIME for wall clock time, ns; it
	// follows the wall clock when somebody sets it.
	offset atomic.Int64
	// handled says how far the classes are that others wait for.
	handled [bpf.NumClasses]progress
	// names has what addresses were asked for by, by network namespace.
	names *lru.Cache[namedAddress, string]
	// ignored is of the selection that is in force.
	ignored atomic.Pointer[ignored]
	// late counts, per class and CPU, events that the previous run had
	// spooled without noting it in the ledger.
	late [bpf.NumClasses][]uint64
	// spooled counts, per class, the events that this run's outbox has taken:
	// they will be published.
	spooled [bpf.NumClasses]atomic.Uint64
	// taken counts, per class and CPU, the events read from the ring; unread those
	// that were submitted and that this run will never read. Both are
	// compared with what the kernel submitted, when settled is true: see emptied.
	taken, unread [bpf.NumClasses][]atomic.Uint64
	settled       [bpf.NumClasses]atomic.Bool
	submitted     [bpf.NumClasses][]uint64 // by CPU, at an earlier report
	written       [bpf.NumClasses]uint64   // up to where the ring was written then
	// ringFull has, per class, what was reported as lost by a full ring since
	// the programs were loaded, by this run and those before it.
	ringFull [bpf.NumClasses]uint64
	// limited has what was reported as left out since this run began or took the
	// programs over: by class, and by cgroup.
	limited   [bpf.NumClasses]uint64
	limitedBy map[limitedCgroup]uint64
}

// progress is how far a class's events have been taken in.
type progress struct {
	last []atomic.Uint64 // by CPU: the number of the last one
}

func (p *progress) advance(cpu uint32, seq uint64) {
	if int64(cpu) < int64(len(p.last)) && seq > p.last[cpu].Load() {
		p.last[cpu].Store(seq)
	}
}

// limitedCgroup is a cgroup of which events of a class were left out.
type limitedCgroup struct {
	id    uint64
	class bpf.Class
}

// maxLimited bounds how many containers are reported by name for what was left
// out; the rest is reported together.
const maxLimited = 1000

func newSensor(cfg Config, box Outbox, notes []json.RawMessage, log *slog.Logger, reg prometheus.Registerer) (*sensor, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("boot id: %w", err)
	}
	s := &sensor{
		cfg: cfg, log: log, seldom: seldom.New(log), box: box, bootID: strings.TrimSpace(string(boot)),
		tree: proctree.New(), runtimes: containerid.NewRuntimes(), limitedBy: map[limitedCgroup]uint64{},
		users: passwd.Open(hostFile("/etc/passwd")), groups: passwd.Open(hostFile("/etc/group")),
		health:  health.New("sensor", cfg.Cluster, cfg.Node, box.RunID(), log, reg),
		metrics: newMetrics(reg),
	}
	if s.hostMnt = proctree.Namespace("/proc/1", "mnt"); s.hostMnt == 0 {
		s.hostMnt = proctree.Namespace("/proc/self", "mnt") // pid 1 may do more than this process
	}
	s.mounts = mounts.Open(hostProc("mountinfo"))
	s.namespaces = mounts.OpenNamespaces("/proc", s.mounts)
	if cfg.Redact.Enabled {
		s.redact = redact.New(cfg.Redact.Words)
	}
	if err := bpf.CheckSupport(); err != nil { // the most that can be missing, first
		return nil, err
	}
	if err := checkHost(); err != nil {
		return nil, err
	}
	hierarchy, err := containerid.NodeHierarchy()
	if err != nil {
		return nil, err
	}
	if s.cgroups, err = containerid.NewResolver(hierarchy); err != nil {
		return nil, err
	}
	if s.names, err = lru.New[namedAddress, string](maxNames); err != nil {
		return nil, errors.Join(err, s.cgroups.Close())
	}
	countEvictions(reg, s.tree, s.cgroups)
	options := bpf.Options{Instance: cfg.Kernel.Instance, BPFFS: cfg.Kernel.BPFFS, Controller: hierarchy.Controller, Hierarchy: hierarchy.ID,
		ProcessRing: cfg.Kernel.ProcessRing, FileRing: cfg.Kernel.FileRing, NetworkRing: cfg.Kernel.NetworkRing, KernelRing: cfg.Kernel.KernelRing, DNSRing: cfg.Kernel.DNSRing}
	if cfg.Kernel.DNS {
		if c2, err := containerid.Cgroup2(); err != nil {
			log.Warn("no DNS is seen", "error", err)
		} else {
			options.Cgroup2 = c2.Mount
		}
	}
	s.kernel, err = bpf.Load(options)
	if err != nil {
		s.cgroups.Close()
		return nil, err
	}
	s.syncClock()
	for c := range s.handled {
		s.handled[c].last = make([]atomic.Uint64, s.kernel.CPUs())
		s.taken[c], s.unread[c] = make([]atomic.Uint64, s.kernel.CPUs()), make([]atomic.Uint64, s.kernel.CPUs())
		s.submitted[c] = make([]uint64, s.kernel.CPUs())
	}
	if err := s.takeUp(notes); err != nil {
		return nil, errors.Join(err, s.kernel.Close(true), s.cgroups.Close())
	}
	dev, whole := s.mounts.Root()
	if !whole {
		dev = 0
	}
	if err := s.kernel.SetHost(s.hostMnt, dev); err != nil {
		return nil, errors.Join(err, s.kernel.Close(true), s.cgroups.Close())
	}
	if err := s.kernel.SetShare(cfg.Kernel.Share); err != nil {
		return nil, errors.Join(err, s.kernel.Close(true), s.cgroups.Close())
	}
	s.environment = map[string]struct{}{}
	for _, name := range cfg.Kernel.Environment {
		s.environment[name] = struct{}{}
	}
	if err := s.kernel.SetEnvironment(len(s.environment) > 0); err != nil {
		return nil, errors.Join(err, s.kernel.Close(true), s.cgroups.Close())
	}
	if err := s.apply(s.loadSelection()); err != nil {
		return nil, errors.Join(err, s.kernel.Close(true), s.cgroups.Close())
	}
	n, err := s.tree.Seed("/proc", s.hostMnt, func(pid uint32) string {
		c, _ := s.cgroups.ResolvePID(pid)
		return c.ContainerID
	})
	if err != nil {
		return nil, errors.Join(err, s.kernel.Close(true), s.cgroups.Close())
	}
	for _, what := range s.kernel.Unseen() {
		log.Warn("not seen on this kernel", "what", what)
	}
	has, lacks := s.kernel.Offers()
	for _, name := range has {
		s.health.Count("", schemas.CounterOffers+name, 1)
	}
	for _, name := range lacks {
		s.health.Count("", schemas.CounterLacks+name, 1)
	}
	log.Info("the kernel, beside what every kernel has", "offers", has, "lacks", lacks)
	log.Info("watching", "cluster", cfg.Cluster, "node", cfg.Node, "resumed", s.kernel.Resumed(), "processes", n)
	return s, nil
}

// note is kept with every spooled batch: where the ledger stands once the
// batch is safe.
type note struct {
	Boot     string    `json:"boot"`
	Class    bpf.Class `json:"class"`
	Ledger   []uint64  `json:"ledger,omitempty"`    // by CPU
	RingFull []uint64  `json:"ring_full,omitempty"` // by class: reported so far
	Limited  []uint64  `json:"limited,omitempty"`   // the same
}

// takeUp brings the ledger up to what the previous run had spooled: it may
// have died between writing a batch and noting it.
func (s *sensor) takeUp(notes []json.RawMessage) error {
	if a := s.kernel.Abandoned(); a.Replaced {
		s.log.Warn("an earlier sensor of another version or configuration did not stop cleanly; what it had not published is lost", "unknown", a.Unknown)
		for class, n := range a.Events {
			s.health.Lost(bpf.Class(class).String(), schemas.LossSensorRestart, n)
		}
	}
	for c := range s.late {
		s.late[c] = make([]uint64, s.kernel.CPUs())
	}
	if !s.kernel.Resumed() {
		return nil
	}
	s.loadReported()
	for _, raw := range notes {
		var n note
		if err := json.Unmarshal(raw, &n); err != nil {
			return fmt.Errorf("note of a spooled batch: %w", err)
		}
		if n.Boot != s.bootID || n.Class >= bpf.NumClasses {
			continue
		}
		for class, reported := range n.RingFull[:min(len(n.RingFull), bpf.NumClasses)] {
			s.ringFull[class] = max(s.ringFull[class], reported)
		}
		for class, reported := range n.Limited[:min(len(n.Limited), bpf.NumClasses)] {
			s.limited[class] = max(s.limited[class], reported)
		}
		for cpu, have := range n.Ledger[:min(len(n.Ledger), s.kernel.CPUs())] {
			if old := s.kernel.Ledger().Load(uint32(cpu), n.Class); have > old {
				s.kernel.Ledger().Add(uint32(cpu), n.Class, have-old)
				s.late[n.Class][cpu] += have - old
			}
		}
	}
	// What earlier runs reported by container is not reported again.
	limited, err := s.kernel.Limited()
	if err != nil {
		return err
	}
	for _, l := range limited {
		s.limitedBy[limitedCgroup{l.CgroupID, l.Class}] = l.Events
	}
	// Until the backlog is read nobody waits for events in it.
	counters, err := s.kernel.Counters()
	if err != nil {
		return err
	}
	for _, c := range counters {
		s.handled[c.Class].last[c.CPU].Store(c.Submitted)
	}
	return nil
}

// run reads until ctx ends; then it detaches the programs and reads what is
// still in the rings, so that a clean stop loses nothing that was seen.
func (s *sensor) run(ctx context.Context) error {
	defer s.cgroups.Close()
	var all []*lane
	for _, r := range s.kernel.Readers() {
		l, err := newLane(s, r)
		if err != nil {
			return errors.Join(err, s.kernel.Close(false))
		}
		all = append(all, l)
	}
	lanes, ctx := errgroup.WithContext(ctx)
	stopping := make(chan struct{})
	for _, l := range all {
		lanes.Go(func() error { return l.run(stopping) })
	}
	lanes.Go(func() (err error) {
		<-ctx.Done()
		if !s.cfg.Kernel.KeepOnStop {
			err = s.kernel.Detach()
		}
		close(stopping)
		for _, r := range s.kernel.Readers() {
			err = errors.Join(err, r.Wake())
		}
		return err
	})
	reports, stopReports := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.report(reports) })
	err := lanes.Wait()
	stopReports()
	wg.Wait()
	return errors.Join(err, s.kernel.Close(s.cfg.Kernel.KeepOnStop || err != nil))
}

// syncClock measures the distance between wall clock and CLOCK_BOOTTIME.
func (s *sensor) syncClock() {
	var wall, boot unix.Timespec
	if unix.ClockGettime(unix.CLOCK_REALTIME, &wall) == nil && unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) == nil {
		s.offset.Store(wall.Nano() - boot.Nano())
	}
}
