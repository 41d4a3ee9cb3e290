package detector

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/nats-io/nats.go/jetstream"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/rules"
	"picket/schemas"
)

// Bounds of what is remembered of nodes whose selection was looked at.
const (
	maxNodes  = 16384
	lookAgain = 5 * time.Minute
)

// maxWatched leaves room among the 1,024 paths that a sensor can watch for those
// of its own configuration.
const maxWatched = 896

// selector tells sensors what the loaded rules need of them, each in its own key
// of BucketControl. observe is called for every batch and never waits; run does
// what takes time.
type selector struct {
	bus  *bus.Bus
	log  *slog.Logger
	need atomic.Pointer[need]
	seen *lru.Cache[string, time.Time] // when a key was looked at
	keys chan string                   // to look at
}

// need is what a set of rules needs of a sensor.
type need struct {
	paths []string     // that the rules read
	calls []string     // that they are about
	needs []rules.Need // of each rule
}

func newSelector(b *bus.Bus, set *rules.Set, log *slog.Logger) (*selector, error) {
	seen, err := lru.New[string, time.Time](maxNodes)
	if err != nil {
		return nil, err
	}
	s := &selector{bus: b, log: log, seen: seen, keys: make(chan string, 1024)}
	s.use(set)
	return s, nil
}

// use makes a set of rules the one that sensors are told of: each anew, with
// its next report. It may be called while run runs.
func (s *selector) use(set *rules.Set) {
	n := &need{paths: set.WatchedPaths(), calls: set.Syscalls(), needs: set.Needs()}
	if len(n.paths) > maxWatched {
		s.log.Error("the rules read more paths than a sensor can watch: those beyond are seen only when they are written", "paths", len(n.paths), "watched", maxWatched, "first_beyond", n.paths[maxWatched])
		n.paths = n.paths[:maxWatched]
	}
	s.need.Store(n)
	s.seen.Purge()
}

// observe notes the sensors that a batch of class health is of. It does not wait:
// those for which there is no room are noted at their next report.
func (s *selector) observe(b *batch.Batch) {
	if b.Class() != schemas.Health {
		return
	}
	now := time.Now()
	for r := range b.Rows() {
		if b.Str(schemas.HealthService, r) != schemas.ServiceSensor {
			continue
		}
		key := schemas.ControlKey(b.Str(schemas.Cluster, r), b.Str(schemas.Node, r))
		if at, ok := s.seen.Get(key); ok && now.Sub(at) < lookAgain {
			continue
		}
		s.seen.Add(key, now) // before it is told: use forgets all that is told too early
		select {
		case s.keys <- key:
		default:
			s.seen.Remove(key)
		}
	}
}

// run tells the sensors that were noted, until ctx ends.
func (s *selector) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case key := <-s.keys:
			err := s.tell(ctx, key)
			if err == nil || ctx.Err() != nil {
				continue
			}
			s.log.Warn("a sensor is not told what the rules need; its own configuration says what it reports", "bucket", schemas.BucketControl, "key", key, "error", err)
			s.seen.Remove(key) // its next report asks again
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
}

// tell sets what the rules need in a sensor's selection, and leaves the rest of
// it as it is: that is the operator's.
func (s *selector) tell(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	kv, err := s.bus.JS.KeyValue(ctx, schemas.BucketControl)
	if err != nil {
		return err
	}
	need := s.need.Load()
	for range 10 {
		var sel schemas.Selection
		var revision uint64
		e, err := kv.Get(ctx, key)
		switch {
		case err == nil:
			revision = e.Revision()
			if err := json.Unmarshal(e.Value(), &sel); err != nil {
				return fmt.Errorf("the selection that is there is no selection: %w", err)
			}
		case !errors.Is(err, jetstream.ErrKeyNotFound):
			return err
		}
		if err := s.reportUnfed(ctx, key, sel, need); err != nil {
			return err
		}
		if slices.Equal(sel.WatchedPaths, need.paths) && slices.Equal(sel.WantedCalls, need.calls) {
			return nil
		}
		sel.WatchedPaths, sel.WantedCalls = need.paths, need.calls
		value, err := json.Marshal(sel)
		if err != nil {
			return err
		}
		if _, err = kv.Update(ctx, key, value, revision); err == nil {
			s.log.Info("a sensor was told what the rules need", "key", key, "watched_paths", len(need.paths), "calls", len(need.calls))
			return nil
		}
		if !errors.Is(err, jetstream.ErrKeyExists) { // another detector, or an operator, was faster
			return err
		}
	}
	return errors.New("the key changes all the time")
}
