package sensor

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"picket/bpf"
	"picket/internal/health"
	"picket/schemas"
)

// Names of the kernel's running totals, as counters of class health. They
// begin when the programs are loaded and go on over restarts of the sensor:
// seen = submitted + lost to full rings + left out. Published begins with each run.
const (
	counterSeen      = "kernel_seen"
	counterSubmitted = "kernel_submitted"
	counterFiltered  = "kernel_filtered"
	counterThreads   = "kernel_threads"
	counterMissed    = "kernel_missed"
	counterErrors    = "kernel_errors_"     // + kind
	counterSelection = "selection_revision" // of the key in picket_control
	counterPublished = "published"
)

type metrics struct {
	kernel       *prometheus.GaugeVec
	read         *prometheus.CounterVec
	tree         prometheus.Gauge
	unknown      prometheus.Gauge
	unnamed      prometheus.Counter
	nameless     prometheus.Counter
	namesEvicted prometheus.Counter
	unordered    prometheus.Counter
	selection    prometheus.Gauge
	refused      prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		kernel:       prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "picket_sensor_kernel_events", Help: "Kernel's running totals since the programs were loaded, by class and counter (kernel_seen = kernel_submitted + those lost as ring_full and rate_limited)."}, []string{"class", "counter"}),
		read:         prometheus.NewCounterVec(prometheus.CounterOpts{Name: "picket_sensor_read_events_total", Help: "Events read from the ring buffers."}, []string{"class"}),
		tree:         prometheus.NewGauge(prometheus.GaugeOpts{Name: "picket_sensor_process_tree_processes", Help: "Processes known, those that exited a short while ago included."}),
		unknown:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "picket_sensor_process_tree_unknown", Help: "Processes that acted without their fork or exec having been seen."}),
		unnamed:      prometheus.NewCounter(prometheus.CounterOpts{Name: "picket_sensor_cgroup_unresolved_events_total", Help: "Events whose cgroup was gone before it could be named."}),
		nameless:     prometheus.NewCounter(prometheus.CounterOpts{Name: "picket_sensor_container_names_missing_total", Help: "Containers of which no runtime's state could be read, so that the sensor knows them by id alone."}),
		namesEvicted: prometheus.NewCounter(prometheus.CounterOpts{Name: "picket_sensor_dns_name_evictions_total", Help: "Addresses whose name, by DNS, was forgotten for want of room."}),
		unordered:    prometheus.NewCounter(prometheus.CounterOpts{Name: "picket_sensor_order_timeouts_total", Help: "Times that events did not wait any longer for earlier process events or DNS answers."}),
	}
	m.selection = prometheus.NewGauge(prometheus.GaugeOpts{Name: "picket_sensor_selection_revision", Help: "Revision of the selection in picket_control that is in force; 0: none was received."})
	m.refused = prometheus.NewCounter(prometheus.CounterOpts{Name: "picket_sensor_selections_refused_total", Help: "Selections in picket_control that could not be applied: the one before stayed in force."})
	reg.MustRegister(m.kernel, m.read, m.tree, m.unknown, m.unnamed, m.nameless, m.namesEvicted, m.unordered, m.selection, m.refused)
	return m
}

// report publishes the sensor's figures until ctx ends, and the last ones
// then: the lanes have stopped by that time, so they are final.
func (s *sensor) report(ctx context.Context) {
	tick := time.NewTicker(health.Interval)
	defer tick.Stop()
	for i := 1; ; i++ {
		select {
		case <-tick.C:
			s.syncClock()
			if i%checkEvery == 0 {
				s.check()
			}
			s.account(false)
		case <-ctx.Done():
			s.account(true)
			return
		}
	}
}

// checkEvery is how many reports go by until the programs are looked at.
const checkEvery = 5

// check reports what somebody else has changed of the programs.
func (s *sensor) check() {
	found, err := s.kernel.Check()
	if err != nil {
		s.log.Error("looking whether the programs are as they were", "error", err)
	}
	for _, what := range found {
		s.log.Error("the sensor's programs in the kernel were tampered with", "what", what)
		s.health.LostOf("", schemas.LossTampered, what, 1)
	}
}

// account takes the kernel's counters into the metrics and a health report; last
// says that nothing follows, and that the lanes have read all there is.
func (s *sensor) account(last bool) {
	counters, err := s.kernel.Counters()
	if err != nil {
		s.log.Error("kernel counters", "error", err)
		return
	}
	var sum [bpf.NumClasses]bpf.ClassCounters
	for _, c := range counters {
		t := &sum[c.Class]
		t.Seen += c.Seen
		t.Submitted += c.Submitted
		t.RingFull += c.RingFull
		t.Limited += c.Limited
		t.Filtered += c.Filtered
		t.Threads += c.Threads
		for i, n := range c.Errors {
			t.Errors[i] += n
		}
	}
	told := note{Boot: s.bootID, RingFull: make([]uint64, bpf.NumClasses), Limited: make([]uint64, bpf.NumClasses)}
	for i, t := range sum {
		class := bpf.Class(i).String()
		count := func(name string, n uint64) {
			s.health.Count(class, name, n)
			s.metrics.kernel.WithLabelValues(class, name).Set(float64(n))
		}
		count(counterSeen, t.Seen)
		count(counterSubmitted, t.Submitted)
		s.health.Count(class, counterPublished, s.spooled[i].Load())
		count(counterFiltered, t.Filtered)
		for k, n := range t.Errors {
			if n > 0 {
				count(counterErrors+bpf.ErrorKind(k).String(), n)
			}
		}
		if bpf.Class(i) == bpf.ClassProcess {
			count(counterThreads, t.Threads)
		}
		s.emptied(bpf.Class(i), counters, last)
		s.crowded(bpf.Class(i), t.Limited)
		s.health.Lost(class, schemas.LossRingFull, t.RingFull-s.ringFull[i])
		s.ringFull[i], told.RingFull[i], told.Limited[i] = t.RingFull, t.RingFull, t.Limited
	}
	if missed, err := s.kernel.Missed(); err == nil && missed > 0 {
		s.health.Count("", counterMissed, missed)
	}
	s.metrics.tree.Set(float64(s.tree.Len()))
	s.metrics.unknown.Set(float64(s.tree.Missed()))
	s.health.Flush(func(subject string, data []byte, rows int) error {
		return s.box.Put(subject, data, rows, told, func() { s.saveReported(told) })
	})
}

// crowded reports events that were left out because their container filled a
// ring: for each container as far as the kernel remembers it, and the rest.
func (s *sensor) crowded(class bpf.Class, limited uint64) {
	left := limited - s.limited[class]
	if left == 0 {
		return
	}
	s.limited[class] = limited
	all, err := s.kernel.Limited()
	if err != nil {
		s.log.Error("limited cgroups", "error", err)
	}
	for _, l := range all {
		k := limitedCgroup{l.CgroupID, l.Class}
		if before, named := s.limitedBy[k]; l.Class != class || l.Events <= before || !named && len(s.limitedBy) >= maxLimited {
			continue
		}
		n := min(l.Events-s.limitedBy[k], left)
		s.limitedBy[k] += n
		left -= n
		c, _ := s.cgroups.Resolve(l.CgroupID, 0)
		subject := c.ContainerID
		if subject == "" {
			subject = "host"
		}
		s.seldom.Warn("a container makes more events than there is room for; some are left out", "class", class.String(), "container", subject, "pod", c.PodUID, "events", n)
		s.health.LostOf(class.String(), schemas.LossRateLimited, subject, n)
	}
	s.health.Lost(class.String(), schemas.LossRateLimited, left)
}

// emptied reports events that were in a ring at an earlier report (at this one,
// if it is the last), that the sensor's reader is past, and that it has not read:
// somebody else took them, or had them written over.
func (s *sensor) emptied(class bpf.Class, counters []bpf.ClassCounters, last bool) {
	r, written := s.kernel.Readers()[class], s.written[class]
	submitted := make([]uint64, s.kernel.CPUs())
	for _, c := range counters {
		if c.Class == class {
			submitted[c.CPU] = c.Submitted
		}
	}
	if last {
		written = r.Written()
		copy(s.submitted[class], submitted)
	}
	if !s.settled[class].Load() || r.Released() < written {
		return
	}
	var lost uint64
	for cpu, then := range s.submitted[class] {
		if read := s.taken[class][cpu].Load() + s.unread[class][cpu].Load(); then > read {
			s.unread[class][cpu].Add(then - read)
			// Lost for good, and reported: a crash must not count it again.
			s.kernel.Ledger().Add(uint32(cpu), class, then-read)
			lost += then - read
		}
	}
	// An event that was counted had its place in the ring before.
	s.submitted[class], s.written[class] = submitted, r.Written()
	if lost == 0 {
		return
	}
	s.seldom.Error("somebody else took events from the sensor's ring buffer in the kernel: they are lost", "class", class.String(), "events", lost)
	s.health.Lost(class.String(), schemas.LossRingEmptied, lost)
}

// The reported losses are kept in a file beside the spool, and in the note of
// the report while that is spooled: whichever is further counts.

func (s *sensor) reportedPath() string { return filepath.Join(s.cfg.StateDir, "reported.json") }

func (s *sensor) saveReported(told note) {
	b, err := json.Marshal(told)
	if err == nil {
		tmp := s.reportedPath() + ".tmp"
		if err = os.WriteFile(tmp, b, 0o640); err == nil {
			err = os.Rename(tmp, s.reportedPath())
		}
	}
	if err != nil {
		s.log.Warn("reported losses not noted; a crash now would report them again", "error", err)
	}
}

func (s *sensor) loadReported() {
	b, err := os.ReadFile(s.reportedPath())
	var n note
	if err != nil || json.Unmarshal(b, &n) != nil || n.Boot != s.bootID {
		return // nothing was reported under these programs
	}
	copy(s.ringFull[:], n.RingFull)
	copy(s.limited[:], n.Limited)
}
