package enricher

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"

	"picket/internal/bus"
	"picket/schemas"
)

const (
	// flushEvery is how often what has changed is written, plus up to as much
	// again by chance: of several replicas one is first, and the others see
	// that it is written.
	flushEvery = 250 * time.Millisecond
	// writeWindow is how many writes are under way at once.
	writeWindow = 256
	// maxValue bounds a value; a pod's is a kilobyte.
	maxValue = 256 << 10
	// retryBucket is how long the bucket is left alone after it could not be read.
	retryBucket = 5 * time.Second
)

// shared keeps the metadata in the bucket schemas.BucketMetadata, so that
// another replica has it at once, with what was deleted lately, and goes on
// with it while it cannot reach the API server. Every replica writes what it is
// shown and the bucket does not have, under the revision of the key that it has
// seen: of several that write the same, one does, and the others see its value.
// For a replica its own informers are right; from the bucket it takes what they
// have not shown, or what is newer.
type shared struct {
	bus     *bus.Bus
	index   *index
	metrics *metrics
	warn    func(msg string, args ...any)
	prefix  string // of keys, with the cluster
	keep    time.Duration
	words   *words
	// listed returns the resource version of the list that a kind's informer
	// began with, and false while it has none.
	listed func(kind) (uint64, bool)

	mu      sync.Mutex
	entries map[string]*entry   // by uid
	dirty   map[string]struct{} // uids of entries to look at

	restored atomic.Bool // the bucket had complete metadata, and it is in the index
	marked   bool        // the bucket says that it is complete
}

// entry is what is known of an object and of its key.
type entry struct {
	object  kept
	deleted int64 // ns since the epoch; 0 while it is there
	shown   bool  // by an informer of this process

	revision uint64 // of the key; 0: it is not there
	stored   bool   // what follows is what the key has
	version  uint64 // resource version
	sum      uint64 // hash of the object
	gone     bool   // it says deleted
	foreign  bool   // of a newer format
}

func newShared(b *bus.Bus, x *index, m *metrics, cluster string, keep time.Duration, w *words, warn func(string, ...any)) *shared {
	return &shared{bus: b, index: x, metrics: m, warn: warn, prefix: schemas.MetadataKey(cluster, ""), keep: max(keep, time.Second), words: w,
		entries: map[string]*entry{}, dirty: map[string]struct{}{}}
}

// show takes what an informer shows.
func (s *shared) show(o kept, deleted bool) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[o.id()]
	if e == nil {
		e = &entry{}
		s.entries[o.id()] = e
	}
	if deleted && !e.stored && len(s.dirty) > s.index.max {
		delete(s.entries, o.id()) // NATS takes nothing, and it is gone already
		delete(s.dirty, o.id())
		return
	}
	e.object, e.shown, e.deleted = o, true, 0
	if deleted {
		e.deleted = time.Now().UnixNano()
	}
	s.dirty[o.id()] = struct{}{}
}

// run keeps index and bucket in step until ctx ends.
func (s *shared) run(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error {
		for ctx.Err() == nil {
			if err := s.follow(ctx); err != nil && ctx.Err() == nil {
				s.warn("the metadata in NATS cannot be read, trying again; this replica works with what the API server shows", "bucket", schemas.BucketMetadata, "error", err)
			}
			pause(ctx, retryBucket)
		}
		return nil
	})
	g.Go(func() error {
		for pause(ctx, flushEvery+rand.N(flushEvery)) {
			s.reconcile()
			if err := s.flush(ctx); err != nil && ctx.Err() == nil {
				s.warn("metadata not written to NATS, trying again; other replicas learn it from the API server", "bucket", schemas.BucketMetadata, "error", err)
				pause(ctx, retryBucket)
			}
		}
		return nil
	})
	return g.Wait()
}

// pause waits and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// follow takes what the bucket has and what others write, until ctx ends.
func (s *shared) follow(ctx context.Context) error {
	kv, err := s.bus.JS.KeyValue(ctx, schemas.BucketMetadata)
	if err != nil {
		return fmt.Errorf("%w (run `picket migrate`)", err)
	}
	w, err := kv.Watch(ctx, s.prefix+">")
	if err != nil {
		return err
	}
	defer func() { _ = w.Stop() }() // the connection may be gone
	complete := false
	for {
		select {
		case e, ok := <-w.Updates():
			switch {
			case !ok:
				return errors.New("the watch ended")
			case e == nil: // all that there was
				s.restored.Store(complete)
			case e.Key() == s.prefix+completeKey:
				complete = e.Operation() == jetstream.KeyValuePut
				s.mu.Lock()
				s.marked = complete
				s.mu.Unlock()
			default:
				s.take(e)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// completeKey is there when the bucket has had all of a cluster once.
const completeKey = "complete"

// take takes a key's newest value.
func (s *shared) take(kve jetstream.KeyValueEntry) {
	uid := uidOf(kve.Key())
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[uid]
	if e != nil && kve.Revision() <= e.revision {
		return // our own write, which we know already
	}
	if kve.Operation() != jetstream.KeyValuePut {
		// Its time was up.
		if e != nil {
			e.revision, e.stored = kve.Revision(), false
			s.forget(uid, e)
		}
		return
	}
	if e == nil {
		e = &entry{}
		s.entries[uid] = e
	}
	data := kve.Value()
	if len(data) > 0 && data[0] > formatVersion {
		e.revision, e.stored, e.foreign = kve.Revision(), false, true
		return
	}
	r, body, err := decodeRecord(data, s.words)
	if err != nil || r.object.id() != uid {
		s.metrics.badValues.Inc()
		e.revision, e.stored, e.foreign = kve.Revision(), false, false
		s.dirty[uid] = struct{}{} // to be written anew, if there is such an object
		return
	}
	e.revision, e.stored, e.foreign = kve.Revision(), true, false
	e.version, e.sum, e.gone = r.version, xxh3.Hash(data[body:]), r.deleted != 0
	if e.shown && r.version <= e.object.meta().version {
		// What the informer shows is as new: the key follows, if it differs.
		s.dirty[uid] = struct{}{}
		return
	}
	e.object, e.deleted = r.object, r.deleted
	s.apply(e)
}

// apply brings an entry of the bucket into the index.
func (s *shared) apply(e *entry) {
	s.index.set(e.object)
	if e.deleted != 0 {
		s.index.remove(e.object, time.Unix(0, e.deleted))
	}
}

// forget drops an entry of which nothing is left to be done.
func (s *shared) forget(uid string, e *entry) {
	if e.deleted != 0 && !e.stored {
		delete(s.entries, uid)
		delete(s.dirty, uid)
	}
}

// reconcile marks as deleted what only the bucket has and what the first list
// of an informer did not show.
func (s *shared) reconcile() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for uid, e := range s.entries {
		if e.shown || e.deleted != 0 || e.object == nil {
			continue
		}
		if at, ok := s.listed(e.object.kind()); ok && e.object.meta().version <= at {
			e.deleted, e.shown = time.Now().UnixNano(), true
			s.index.remove(e.object, time.Now())
			s.dirty[uid] = struct{}{}
		}
	}
}

// write is a value to be written.
type write struct {
	uid      string
	kind     kind
	e        *entry // what follows is its state when the value was made
	version  uint64
	revision uint64
	sum      uint64
	data     []byte
	ttl      time.Duration // 0: it is not deleted
	future   jetstream.PubAckFuture
}

// flush writes what the bucket does not have.
func (s *shared) flush(ctx context.Context) error {
	if !s.complete() {
		return nil // what an informer has not shown yet must not look deleted, nor be written twice
	}
	s.mu.Lock()
	var out []write
	now := time.Now()
	for uid := range s.dirty {
		e := s.entries[uid]
		if e == nil || e.foreign || e.object == nil {
			delete(s.dirty, uid)
			continue
		}
		r := record{e.object, e.object.meta().version, e.deleted}
		data, body := r.encode(nil)
		sum := xxh3.Hash(data[body:])
		w := write{uid: uid, kind: e.object.kind(), e: e, version: r.version, revision: e.revision, sum: sum, data: data}
		if e.deleted != 0 {
			w.ttl = max(time.Second, s.keep-now.Sub(time.Unix(0, e.deleted))).Round(time.Second)
		}
		switch {
		case e.stored && e.gone == (e.deleted != 0) && (e.sum == sum || e.version > r.version):
			delete(s.dirty, uid) // it is there
		case len(data) > maxValue:
			s.metrics.badValues.Inc()
			delete(s.dirty, uid)
		case e.deleted != 0 && !e.stored && e.revision == 0 && now.Sub(time.Unix(0, e.deleted)) > s.keep:
			s.forget(uid, e)
		default:
			out = append(out, w)
		}
		if len(out) == 16*writeWindow {
			break
		}
	}
	mark := len(out) == 0 && !s.marked
	s.mu.Unlock()
	for len(out) > 0 {
		n := min(len(out), writeWindow)
		if err := s.write(ctx, out[:n]); err != nil {
			return err
		}
		out = out[n:]
	}
	if mark {
		_, err := s.bus.JS.Publish(ctx, "$KV."+schemas.BucketMetadata+"."+s.prefix+completeKey, []byte{formatVersion})
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.marked = true
		s.mu.Unlock()
	}
	return nil
}

// complete reports whether every informer has shown its first list.
func (s *shared) complete() bool {
	for _, k := range []kind{kindOfPod, kindOfOwner, kindOfNode, kindOfService, kindOfSlice, kindOfNamespace, kindOfAccount} {
		if _, ok := s.listed(k); !ok {
			return false
		}
	}
	return true
}

// write writes values together. One that another replica was faster with stays
// dirty until its value is seen.
func (s *shared) write(ctx context.Context, ws []write) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	for i := range ws {
		w := &ws[i]
		m := nats.NewMsg("$KV." + schemas.BucketMetadata + "." + s.prefix + string(rune(w.kind)) + "." + w.uid)
		m.Data = w.data
		opts := []jetstream.PublishOpt{jetstream.WithExpectLastSequencePerSubject(w.revision)}
		if w.ttl > 0 {
			opts = append(opts, jetstream.WithMsgTTL(w.ttl))
		}
		var err error
		if w.future, err = s.bus.JS.PublishMsgAsync(m, opts...); err != nil {
			return err
		}
	}
	var errs []error
	for i := range ws {
		w := &ws[i]
		select {
		case ack := <-w.future.Ok():
			s.metrics.metadataWrites.Inc()
			s.mu.Lock()
			if e := w.e; e.revision <= ack.Sequence { // else another has written since
				e.revision, e.stored, e.version, e.sum, e.gone = ack.Sequence, true, w.version, w.sum, w.ttl > 0
			}
			s.mu.Unlock() // it stays dirty: it may have changed meanwhile, which the next turn sees
		case err := <-w.future.Err():
			if api := (*jetstream.APIError)(nil); errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence {
				s.metrics.metadataConflicts.Inc()
				continue
			}
			errs = append(errs, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.Join(errs...)
}

// uidOf returns the last part of a key.
func uidOf(key string) string {
	for i := len(key) - 1; i >= 0; i-- {
		if key[i] == '.' {
			return key[i+1:]
		}
	}
	return key
}

// counts returns how many objects and how many writes to come there are.
func (s *shared) counts() (objects, dirty int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.entries), len(s.dirty)
}
