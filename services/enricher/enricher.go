// Package enricher joins raw events with Kubernetes metadata:
//
//	PICKET_RAW ─▶ lanes (one per raw subject) ─▶ Enricher ─▶ PICKET_EVENTS
//	                 │ wait for a pod               │ index ◀─ informers
//
// A message of PICKET_RAW is acknowledged after PICKET_EVENTS has its joined
// batch, under an id made from the raw batch's, so that doing it again after a
// crash is a duplicate there. Events of one raw subject keep their order;
// events of different ones do not wait for each other.
//
// It knows nothing of rules or of storage.
package enricher

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"

	"picket/internal/bus"
	"picket/internal/health"
	"picket/internal/seldom"
	"picket/internal/service"
	"picket/schemas"
)

const (
	// stopGrace is how long a stopping enricher goes on with what it has
	// taken; it is longer than the longest wait for a pod.
	stopGrace = 15 * time.Second
	// waitedPods bounds how many pods that were waited for are remembered.
	waitedPods = 4096
)

// Run runs the enricher until ctx ends or the connection to NATS is lost for
// good. Without kubernetes.enabled it passes events on.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	rt, err := service.Start(schemas.ServiceEnricher, cfg.NATS, cfg.Log, cfg.Admin)
	if err != nil {
		return err
	}
	defer rt.Close()
	s, err := newServer(cfg, rt)
	if err != nil {
		return err
	}
	return s.run(ctx)
}

// run works until ctx ends or the connection to NATS is lost for good.
func (s *server) run(ctx context.Context) error {
	// What the lanes stand on outlives ctx by the time they take to finish.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	var g errgroup.Group
	g.Go(func() error { return s.health.Run(work, health.Direct(s.rt.Bus)) })
	if s.watcher != nil {
		defer s.disconnect()
		g.Go(func() error { return s.watcher.run(work) })
		g.Go(func() error { return s.shared.run(work) })
		g.Go(func() error { return s.corrector.run(work) })
	}
	err := s.consume(ctx, work, stopWork)
	stopWork()
	return errors.Join(err, g.Wait())
}

// server is a running enricher.
type server struct {
	cfg     Config
	rt      *service.Runtime
	seldom  *seldom.Logger // of what every batch can cause
	metrics *metrics
	health  *health.Reporter
	runID   string

	// Without a cluster these are nil.
	watcher    *watcher
	disconnect func()
	meta       *metadata
	corrector  *corrector
	shared     *shared

	// enrichers are taken by a lane while it decodes, joins and encodes: as
	// many as there are processors.
	enrichers chan *Enricher
	// waited has, by pod UID, when a batch first came before its pod.
	waited *lru.Cache[string, time.Time]

	inHand, inHandBytes atomic.Int64 // messages taken and not settled
	relax               broadcast    // signalled when too much is in hand to wait

	mu       sync.Mutex
	lanes    map[string][]taken  // by raw subject: messages to do, while a goroutine does them
	subjects map[string]*subject // by events subject
	wg       sync.WaitGroup      // goroutines of lanes

	totals map[schemas.Class]*totals
	gaveUp atomic.Bool // on complete metadata: working without
}

// totals count events of a class since the start.
type totals struct{ received, enriched atomic.Uint64 }

// taken is a message in hand.
type taken struct {
	*bus.Message
	at time.Time
}

func newServer(cfg Config, rt *service.Runtime) (*server, error) {
	waited, err := lru.New[string, time.Time](waitedPods)
	if err != nil {
		return nil, err
	}
	s := &server{
		cfg: cfg, rt: rt, metrics: newMetrics(rt.Metrics), runID: bus.NewRunID(), waited: waited,
		lanes: map[string][]taken{}, subjects: map[string]*subject{}, seldom: seldom.New(rt.Log), totals: map[schemas.Class]*totals{},
		enrichers: make(chan *Enricher, runtime.GOMAXPROCS(0)),
	}
	s.health = health.New(schemas.ServiceEnricher, cfg.Cluster, "", s.runID, rt.Log, rt.Metrics)
	for _, c := range schemas.Classes() {
		s.totals[c] = &totals{}
	}
	if cfg.Kubernetes.Enabled {
		var client kubernetes.Interface
		x := newIndex(cfg.Kubernetes.DeletedKept, cfg.Kubernetes.DeletedMax)
		if client, x.configured, s.disconnect, err = connect(cfg.Kubernetes, s.requestFailed); err != nil {
			return nil, err
		}
		r := newReader(cfg.Kubernetes)
		if s.watcher, err = newWatcher(client, r, x, rt.Log); err != nil {
			return nil, err
		}
		s.shared = newShared(rt.Bus, x, s.metrics, cfg.Cluster, cfg.Kubernetes.DeletedKept, &r.words, s.seldom.Warn)
		s.shared.listed, s.watcher.shared = s.watcher.listed, s.shared
		s.meta = &metadata{index: x, cluster: schemas.Token(cfg.Cluster), synced: s.synced}
		s.metrics.watch(rt.Metrics, x, s.watcher)
		if s.corrector, err = newCorrector(s); err != nil {
			return nil, err
		}
		rt.SetReady("kubernetes", s.ready)
	}
	for range cap(s.enrichers) {
		s.enrichers <- newEnricher(s.meta)
	}
	return s, nil
}

// consume works until ctx ends, and then at most stopGrace on what it has in
// hand; work is what it works under.
func (s *server) consume(ctx, work context.Context, stopWork context.CancelFunc) error {
	needs := []string{schemas.StreamRaw, schemas.StreamEvents, schemas.StreamDead}
	if s.watcher != nil {
		needs = append(needs, "KV_"+schemas.BucketMetadata)
	}
	if err := s.rt.Verify(ctx, needs...); err != nil {
		return err
	}
	if s.watcher != nil {
		s.awaitMetadata(ctx)
	}
	s.rt.Started()
	s.rt.Log.Info("enriching", "cluster", s.cfg.Cluster, "run", s.runID, "kubernetes", s.watcher != nil)
	err := s.rt.Bus.Consume(ctx, schemas.StreamRaw, schemas.DurableEnricher, stopGrace, func(m *bus.Message) { s.take(work, m) })
	stopWork()
	s.wg.Wait()
	return err
}

// awaitMetadata waits for the metadata, within its bound.
func (s *server) awaitMetadata(ctx context.Context) {
	start := time.Now()
	patience := s.cfg.Kubernetes.SyncTimeout
	synced := s.waitSynced(ctx, patience)
	switch {
	case synced && !s.watcher.synced():
		pods, deleted := s.meta.counts()
		s.rt.Log.Info("kubernetes metadata as other replicas know it, until the API server has shown its own", "bucket", schemas.BucketMetadata, "pods", pods, "deleted", deleted, "seconds", time.Since(start).Seconds())
	case synced:
		pods, _ := s.meta.counts()
		uid := ""
		if p := s.watcher.cluster.Load(); p != nil {
			uid = *p
		}
		s.rt.Log.Info("kubernetes metadata complete", "pods", pods, "cluster_uid", uid, "seconds", time.Since(start).Seconds())
	case ctx.Err() == nil:
		s.gaveUp.Store(true)
		s.rt.Log.Warn("kubernetes metadata not complete after kubernetes.sync_timeout; going on, events from pods are marked unresolved until it is. Check that the API server is reached and that the enricher may list and watch these",
			"missing", strings.Join(s.watcher.unsynced(), ","), "sync_timeout", patience)
	}
}

// ready is the readiness check: the metadata is complete, or was waited for in
// vain and events are passed on without.
func (s *server) ready() error {
	if s.gaveUp.Load() || s.shared.restored.Load() {
		return nil
	}
	return s.watcher.ready()
}

// synced reports whether the metadata is complete: the API server has shown all
// of it once, or other replicas had all of it.
func (s *server) synced() bool { return s.watcher.synced() || s.shared.restored.Load() }

// waitSynced waits until the metadata is complete, ctx ends or patience is out,
// and reports whether it is complete.
func (s *server) waitSynced(ctx context.Context, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for !s.synced() {
		if !pause(ctx, 50*time.Millisecond) {
			return false
		}
	}
	return true
}

// requestFailed counts a failed request to the Kubernetes API.
func (s *server) requestFailed(status string, err error) {
	s.metrics.apiErrors.WithLabelValues(status).Inc()
	if status == "none" {
		s.seldom.Warn("kubernetes API does not answer; what is known of pods stays in use", "error", err)
	}
}
