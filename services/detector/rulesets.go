package detector

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"picket/internal/bus"
	"picket/internal/rulepack"
	"picket/internal/rules"
	"picket/schemas"
)

// lookEvery is how often the bucket is asked for its last revision and the rule
// files of the configuration are read. Files that have changed are loaded when
// they are the same at the next look, so that one that is just being written is
// not taken.
const lookEvery = time.Second

// maxReason bounds what a refusal says.
const maxReason = 16 << 10

// keeper has the rules in force and follows where they are from: the pack in
// BucketRules when there is one, else the configured files, else the pack that
// comes with Picket. What does not load is refused whole, and what was in force
// stays. run owns all of it; set may be called by anybody.
type keeper struct {
	bus     *bus.Bus
	log     *slog.Logger
	paths   []string
	id      string
	metrics keeperMetrics
	// changed is told of every set that comes into force.
	changed func(*rules.Set)
	// ready is closed when the bucket was looked at first: before that the
	// rules in force are those of the files, which a pushed pack may replace.
	ready chan struct{}

	current atomic.Pointer[rules.Set]
	state   schemas.RulesState
	pushed  time.Time // when the pack of the bucket that is in force was stored; zero: none is
	// withdrawn: the pack in force is there for want of files that load.
	withdrawn bool
	bucket    bucketMark
	files     *fileWatch
	failing   bool // the last look at the bucket failed
}

// bucketMark changes when a bucket does.
type bucketMark struct {
	created time.Time
	last    uint64
}

type keeperMetrics struct {
	loaded  prometheus.Gauge
	swaps   prometheus.Counter
	refused prometheus.Counter
	stale   prometheus.Gauge
}

func newKeeperMetrics(reg prometheus.Registerer) keeperMetrics {
	m := keeperMetrics{
		loaded:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "picket_detector_rules", Help: "Enabled rules in force."}),
		swaps:   prometheus.NewCounter(prometheus.CounterOpts{Name: "picket_detector_rules_loaded_total", Help: "Times that rules came into force, the first included."}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{Name: "picket_detector_rules_refused_total", Help: "Rules that were found and do not load."}),
		stale:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "picket_detector_rules_stale", Help: "1 while rules newer than those in force are refused."}),
	}
	reg.MustRegister(m.loaded, m.swaps, m.refused, m.stale)
	return m
}

// newKeeper returns a keeper with a set in force that was loaded from what files
// watches, after that was made.
func newKeeper(b *bus.Bus, files *fileWatch, set *rules.Set, warnings int, log *slog.Logger, reg prometheus.Registerer, changed func(*rules.Set)) *keeper {
	k := &keeper{bus: b, log: log, paths: files.paths, id: bus.NewRunID(), metrics: newKeeperMetrics(reg), changed: changed, files: files, ready: make(chan struct{})}
	k.state.Host, _ = os.Hostname() // empty: not told
	k.take(set, warnings, nil)
	return k
}

// set returns the rules in force.
func (k *keeper) set() *rules.Set { return k.current.Load() }

func (k *keeper) base() string {
	if len(k.paths) > 0 {
		return "the files " + strings.Join(k.paths, ", ")
	}
	return schemas.ShippedPack
}

func pushedName(revision uint64) string {
	return fmt.Sprintf("revision %d of the pushed pack", revision)
}

// take puts a set into force, of a revision of the bucket or, when that is nil,
// of the files.
func (k *keeper) take(set *rules.Set, warnings int, e jetstream.KeyValueEntry) {
	k.state.Source, k.state.Revision, k.pushed = k.base(), 0, time.Time{}
	if e != nil {
		k.state.Source, k.state.Revision, k.pushed = pushedName(e.Revision()), e.Revision(), e.Created()
	}
	k.state.Loaded, k.state.Warnings, k.state.Refused = time.Now().UTC(), warnings, nil
	k.state.Rules = 0
	for _, r := range set.Rules() {
		if r.Enabled {
			k.state.Rules++
		}
	}
	k.current.Store(set)
	k.changed(set)
	k.metrics.loaded.Set(float64(k.state.Rules))
	k.metrics.swaps.Inc()
	k.metrics.stale.Set(0)
	k.log.Info("rules are in force", "source", k.state.Source, "rules", k.state.Rules, "warnings", warnings)
}

// refuse notes that what was found does not load.
func (k *keeper) refuse(source string, err error) {
	reason := err.Error()
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "") + "…"
	}
	k.state.Refused = &schemas.RefusedRules{Source: source, At: time.Now().UTC(), Reason: reason}
	k.metrics.refused.Inc()
	k.metrics.stale.Set(1)
	k.log.Error("rules are refused; those before stay in force", "refused", source, "in_force", k.state.Source, "error", err)
}

// run follows the bucket and the files until ctx ends, and says in BucketState
// what is in force.
func (k *keeper) run(ctx context.Context) {
	defer k.forget()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var told time.Time
	for {
		changed := k.lookAtBucket(ctx)
		if k.files.look() && (k.pushed.IsZero() || k.withdrawn) {
			k.loadBase()
			changed = true
		}
		if changed || time.Since(told) >= schemas.RulesStateEvery {
			k.tell(ctx)
			told = time.Now()
		}
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

// lookAtBucket takes up what has changed in the bucket, and reports whether
// something has.
func (k *keeper) lookAtBucket(ctx context.Context) bool {
	mark, entries, err := k.revisions(ctx)
	if err != nil {
		if ctx.Err() == nil && !k.failing {
			k.failing = true // said once
			k.log.Warn("the pushed rule pack is not followed, trying again; the rules in force stay so", "bucket", schemas.BucketRules, "error", err)
		}
		return false
	}
	k.failing = false
	changed := mark != k.bucket
	if changed {
		k.bucket = mark
		k.follow(entries)
	}
	select {
	case <-k.ready:
	default:
		close(k.ready)
	}
	return changed
}

// revisions returns what has become of the pack, oldest first, when the bucket
// has changed since the last time.
func (k *keeper) revisions(ctx context.Context) (bucketMark, []jetstream.KeyValueEntry, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := k.bus.JS.Stream(ctx, "KV_"+schemas.BucketRules)
	if err != nil {
		return bucketMark{}, nil, err
	}
	mark := bucketMark{s.CachedInfo().Created, s.CachedInfo().State.LastSeq}
	if mark == k.bucket {
		return mark, nil, nil
	}
	kv, err := k.bus.JS.KeyValue(ctx, schemas.BucketRules)
	if err != nil {
		return mark, nil, err
	}
	entries, err := kv.History(ctx, schemas.RulePackKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		err = nil
	}
	return mark, entries, err
}

// follow takes up the newest revision that loads since the pack was last
// withdrawn. When there is none since then, the files or the default pack
// stand; when none of those that are kept loads, what is in force does.
func (k *keeper) follow(entries []jetstream.KeyValueEntry) {
	var newest jetstream.KeyValueEntry // that is refused
	var refused error
	taken, withdrawn := false, len(entries) == 0
	for i := len(entries) - 1; i >= 0 && !withdrawn; i-- {
		e := entries[i]
		if e.Operation() != jetstream.KeyValuePut {
			withdrawn = true
			break
		}
		if e.Revision() == k.state.Revision && e.Created().Equal(k.pushed) {
			taken = true // already
			break
		}
		set, warnings, err := loadPack(e.Value())
		if err == nil {
			k.take(set, warnings, e)
			taken = true
			break
		}
		if refused == nil {
			newest, refused = e, err
		}
	}
	k.withdrawn = !taken && withdrawn
	if k.withdrawn && (!k.pushed.IsZero() || k.state.Refused != nil) {
		k.loadBase()
	}
	if refused != nil {
		k.refuse(pushedName(newest.Revision()), refused)
	}
}

func loadPack(data []byte) (*rules.Set, int, error) {
	p, err := rulepack.Decode(data)
	if err != nil {
		return nil, 0, err
	}
	set, warnings, err := rules.Load(p.Sources(), rules.Options{})
	return set, len(warnings), err
}

// loadBase puts the files, or the default pack, into force.
func (k *keeper) loadBase() {
	set, warnings, err := LoadRules(k.paths)
	if err != nil {
		k.refuse(k.base(), err)
		return
	}
	k.take(set, len(warnings), nil)
}

// tell writes what is in force.
func (k *keeper) tell(ctx context.Context) {
	k.state.Updated = time.Now().UTC()
	if err := k.withState(ctx, func(ctx context.Context, kv jetstream.KeyValue) error {
		data, err := json.Marshal(k.state)
		if err == nil {
			_, err = kv.Put(ctx, schemas.RulesStatePrefix+k.id, data)
		}
		return err
	}); err != nil && ctx.Err() == nil {
		k.log.Warn("`picket status` is not told what rules are in force", "bucket", schemas.BucketState, "error", err)
	}
}

// forget takes back what tell has written: this detector ends.
func (k *keeper) forget() {
	if err := k.withState(context.Background(), func(ctx context.Context, kv jetstream.KeyValue) error {
		return kv.Delete(ctx, schemas.RulesStatePrefix+k.id)
	}); err != nil {
		k.log.Debug("state of the rules not deleted", "error", err)
	}
}

func (k *keeper) withState(ctx context.Context, do func(context.Context, jetstream.KeyValue) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	kv, err := k.bus.JS.KeyValue(ctx, schemas.BucketState)
	if err != nil {
		return err
	}
	return do(ctx, kv)
}

// fileWatch tells when what paths hold has changed and rests.
type fileWatch struct {
	paths          []string
	seen, reported [sha256.Size]byte
}

// newFileWatch begins with what the files hold now.
func newFileWatch(paths []string) *fileWatch {
	w := &fileWatch{paths: paths}
	w.seen = w.sum()
	w.reported = w.seen
	return w
}

// look reads the files and reports whether they differ from what was last
// reported and are the same as at the look before.
func (w *fileWatch) look() bool {
	if len(w.paths) == 0 {
		return false
	}
	sum := w.sum()
	rests := sum == w.seen
	w.seen = sum
	if !rests || sum == w.reported {
		return false
	}
	w.reported = sum
	return true
}

func (w *fileWatch) sum() [sha256.Size]byte {
	h := sha256.New()
	files, err := rules.ReadPaths(w.paths...)
	for _, f := range files {
		fmt.Fprintf(h, "%d %s %d ", len(f.Name), f.Name, len(f.Data))
		h.Write(f.Data)
	}
	if err != nil {
		fmt.Fprint(h, err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
