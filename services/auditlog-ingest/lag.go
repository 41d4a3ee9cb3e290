package auditlogingest

import (
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"picket/internal/health"
	"picket/schemas"
	"picket/services/auditlog-ingest/source"
)

const (
	// backfillFrom is how far behind the present a source is said to catch up,
	// with its progress; backfillLog how often the log says so.
	backfillFrom = 15 * time.Minute
	backfillLog  = 30 * time.Second
	// rateOver is the time over which rates are taken.
	rateOver = time.Minute
)

// lags knows of each source how far behind it is. It is safe for concurrent use
// and a prometheus.Collector.
type lags struct {
	mu      sync.Mutex
	sources map[string]*lag
}

// lag is one source.
type lag struct {
	kind    string
	since   time.Time // when this ingester began to read it
	records uint64
	first   int64 // time of the oldest event, ns
	newest  int64 // and of the newest
	last    time.Time
	delay   time.Duration // of the cloud

	// What was looked at last, for rates.
	at           time.Time
	records0     uint64
	newest0      int64
	rate, speed  float64 // records, and time of events, in a second
	late, silent bool
	told         time.Time // when progress was logged last
	catching     bool
}

func newLags() *lags { return &lags{sources: map[string]*lag{}} }

// begin says that the source is read from now on.
func (l *lags) begin(s source.Source, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sources[s.Name()] = &lag{kind: s.Kind(), since: now, at: now}
}

// end says that another reads it.
func (l *lags) end(s source.Source) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.sources, s.Name())
}

// took notes a record: the time of its event, 0 if it is none, and when the
// cloud had it.
func (l *lags) took(s source.Source, event int64, arrived time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.sources[s.Name()]
	if g == nil {
		return // it has just ended
	}
	g.records++
	if event == 0 {
		return
	}
	if g.first == 0 || event < g.first {
		g.first = event
	}
	// A time in the future must not hide that nothing comes.
	if event > g.newest && event < time.Now().Add(time.Hour).UnixNano() {
		g.newest = event
		if !arrived.IsZero() {
			g.delay = max(0, time.Duration(arrived.UnixNano()-event))
		}
	}
}

// behind is the age of the newest event.
func (g *lag) behind(now time.Time) time.Duration {
	if g.newest == 0 {
		return 0
	}
	return max(0, now.Sub(time.Unix(0, g.newest)))
}

// look judges all sources: what is late or silent, for longer than the bounds
// (0: none), is counted as loss when it begins. It is called every few seconds.
func (l *lags) look(now time.Time, late, silent time.Duration, h *health.Reporter, log *slog.Logger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, g := range l.sources {
		if took := now.Sub(g.at); took > 0 {
			// An average that forgets over rateOver.
			w := 1 - math.Exp(-float64(took)/float64(rateOver))
			if g.records != g.records0 {
				g.last = now
			}
			g.rate += w * (float64(g.records-g.records0)/took.Seconds() - g.rate)
			if g.newest0 != 0 {
				g.speed += w * (float64(g.newest-g.newest0)/float64(took) - g.speed)
			}
			g.at, g.records0, g.newest0 = now, g.records, g.newest
		}
		behind := g.behind(now)
		quiet := now.Sub(later(g.last, g.since))
		was := g.silent
		g.silent = silent > 0 && quiet > silent
		if g.silent && !was {
			h.LostOf(schemas.Audit.String(), schemas.LossSourceSilent, name, 1)
			log.Error("nothing comes from the audit source", "source", name, "kind", g.kind, "silent_for", quiet.Round(time.Second), "remedy", "see whether the cluster still writes its audit log there, and whether the ingester may read it")
		}
		was = g.late
		g.late = late > 0 && behind > late && !g.silent
		if g.late && !was {
			h.LostOf(schemas.Audit.String(), schemas.LossSourceLate, name, 1)
			log.Error("audit source is far behind", "source", name, "kind", g.kind, "newest_event", time.Unix(0, g.newest).UTC(), "behind", behind.Round(time.Second), "cloud_delay", g.delay, "records_per_second", math.Round(g.rate))
		}
		if was && !g.late {
			log.Info("audit source has caught up", "source", name, "behind", behind.Round(time.Second))
		}
		share, expected := g.progress(now)
		g.catching = share > 0
		if g.catching && now.Sub(g.told) >= backfillLog {
			g.told = now
			attrs := []any{"source", name, "done_percent", math.Round(1000*share) / 10, "records", g.records, "records_per_second", math.Round(g.rate), "newest_event", time.Unix(0, g.newest).UTC()}
			if !expected.IsZero() {
				attrs = append(attrs, "expected_end", expected.UTC().Truncate(time.Second))
			}
			log.Info("audit source catches up with the present", attrs...)
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// progress says how much of the way from the oldest event to the present is
// done, and when it will be at the present pace; zero if the source is not far
// behind, or silent: then it has nothing to catch up with.
func (g *lag) progress(now time.Time) (share float64, expected time.Time) {
	behind := g.behind(now)
	if behind < backfillFrom || now.Sub(later(g.last, g.since)) > backfillFrom {
		return 0, time.Time{}
	}
	all := now.Sub(time.Unix(0, g.first))
	share = max(0.001, float64(all-behind)/float64(all))
	if g.speed > 1.01 {
		// Events' time passes speed times as fast as ours.
		left := float64(behind) / (g.speed - 1)
		if left < float64(365*24*time.Hour) {
			expected = now.Add(time.Duration(left))
		}
	}
	return share, expected
}

// reports are the sources as `picket status` shows them.
func (l *lags) reports(now time.Time) []schemas.SourceReport {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []schemas.SourceReport
	for name, g := range l.sources {
		r := schemas.SourceReport{Name: name, Kind: g.kind, Records: g.records, Rate: math.Round(10*g.rate) / 10, Last: g.last, CloudDelay: g.delay}
		if g.newest != 0 {
			r.Newest = time.Unix(0, g.newest).UTC()
		}
		r.Backfill, r.Expected = g.progress(now)
		switch {
		case g.silent:
			r.Alert = schemas.LossSourceSilent
		case g.late:
			r.Alert = schemas.LossSourceLate
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b schemas.SourceReport) int { return strings.Compare(a.Name, b.Name) })
	return out
}

var (
	lagDesc     = prometheus.NewDesc("picket_auditlog_ingest_lag_seconds", "Age of the newest event that the source brought.", []string{"source"}, nil)
	delayDesc   = prometheus.NewDesc("picket_auditlog_ingest_cloud_delay_seconds", "How long the cloud took from the newest event to having its record, where it says so.", []string{"source"}, nil)
	silentDesc  = prometheus.NewDesc("picket_auditlog_ingest_silent_seconds", "Time since the source brought a record.", []string{"source"}, nil)
	catchDesc   = prometheus.NewDesc("picket_auditlog_ingest_backfill_done_ratio", "How much of the way to the present is done, of a source that is far behind.", []string{"source"}, nil)
	leftDesc    = prometheus.NewDesc("picket_auditlog_ingest_backfill_left_seconds", "Expected time until a source that is far behind has caught up.", []string{"source"}, nil)
	alertedDesc = prometheus.NewDesc("picket_auditlog_ingest_source_alert", "1 while the source is later than lag_alert (source_late) or silent for silent_alert (source_silent).", []string{"source", "reason"}, nil)
)

// Describe implements prometheus.Collector.
func (l *lags) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{lagDesc, delayDesc, silentDesc, catchDesc, leftDesc, alertedDesc} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (l *lags) Collect(c chan<- prometheus.Metric) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	truth := map[bool]float64{true: 1}
	for name, g := range l.sources {
		if g.newest != 0 {
			gauge(lagDesc, g.behind(now).Seconds(), name)
			gauge(delayDesc, g.delay.Seconds(), name)
		}
		gauge(silentDesc, now.Sub(later(g.last, g.since)).Seconds(), name)
		gauge(alertedDesc, truth[g.late], name, schemas.LossSourceLate)
		gauge(alertedDesc, truth[g.silent], name, schemas.LossSourceSilent)
		if share, expected := g.progress(now); share > 0 {
			gauge(catchDesc, share, name)
			if !expected.IsZero() {
				gauge(leftDesc, expected.Sub(now).Seconds(), name)
			}
		}
	}
}
