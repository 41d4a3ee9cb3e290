package auditlogingest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"picket/internal/bus"
	"picket/schemas"
	"picket/services/auditlog-ingest/source"
)

// pullWait is how long a batch of a shared source stays open: longer than that of
// a source on this host, because each costs four writes, and the clouds take
// seconds themselves.
const pullWait = 250 * time.Millisecond

// pace is how often things are done about sources that ingesters share.
type pace struct {
	batch time.Duration // how long a batch stays open at most
	renew time.Duration // an owner says that it is there
	look  time.Duration // who owns what is looked at
	dead  time.Duration // an owner silent for so long has lost its sources
	list  time.Duration // providers are asked what there is
	again time.Duration // a source that failed is left alone
	grace time.Duration // what stops tries to store what it has
}

var defaultPace = pace{batch: pullWait, renew: 5 * time.Second, look: 2 * time.Second, dead: 15 * time.Second, list: 3 * time.Minute, again: time.Minute, grace: stopGrace}

// memberTTL removes an ingester that died from the bucket.
const memberTTL = 2 * time.Minute

// puller owns a part of the sources that ingesters share. Who owns which is
// computed by each from the same keys; it need not be right at every moment,
// because the position of a source lets only one of two get further.
type puller struct {
	*ground
	kv     jetstream.KeyValue
	member string
	host   string
	begun  time.Time
	pace   pace

	poke  chan struct{} // look again now
	lanes sync.WaitGroup

	mu     sync.Mutex
	offers map[string]*offer // by the source's name
}

// offer is a source that a provider of this ingester has.
type offer struct {
	provider string
	src      source.Source // nil: used, until the provider is asked again
	lane     context.CancelFunc
	held     time.Time // when the lane began
	leaving  bool      // it is to end, for another ingester
	not      time.Time // left alone until then
	listed   bool
}

// sighting is a key of another and when its revision was first seen, by the
// monotonic clock of this process: no two clocks are compared.
type sighting struct {
	revision uint64
	at       time.Time
}

// newPuller waits for the bucket; nil if ctx ends before.
func newPuller(ctx context.Context, g *ground, p pace) (*puller, error) {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	for {
		kv, err := g.bus.JS.KeyValue(ctx, schemas.BucketCheckpoints)
		switch {
		case err == nil:
			return &puller{ground: g, kv: kv, member: bus.NewRunID(), host: host, begun: time.Now(), pace: p,
				poke: make(chan struct{}, 1), offers: map[string]*offer{}}, nil
		case ctx.Err() != nil:
			return nil, nil
		case errors.Is(err, jetstream.ErrBucketNotFound):
			return nil, fmt.Errorf("bucket %s: %w (run `picket migrate`)", schemas.BucketCheckpoints, err)
		}
		g.log.Warn("positions of shared audit sources not reached, trying again", "bucket", schemas.BucketCheckpoints, "error", err)
		if sleep(ctx, time.Second) != nil {
			return nil, nil
		}
	}
}

// run reads this ingester's part of the providers' sources until ctx ends.
func (p *puller) run(ctx context.Context, providers []source.Provider) error {
	var g errgroup.Group
	for _, pr := range providers {
		g.Go(func() error { p.list(ctx, pr); return nil })
	}
	g.Go(func() error { p.share(ctx); return nil })
	err := g.Wait()
	p.lanes.Wait()
	return err
}

// list asks a provider now and then what there is.
func (p *puller) list(ctx context.Context, pr source.Provider) {
	wait := p.pace.again / 30
	for {
		found, err := pr.Sources(ctx)
		pause := p.pace.list
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			wait = min(2*wait, p.pace.again)
			pause = wait
			p.log.Error("provider of audit sources does not say what there is; going on with what is known", "provider", pr.Name(), "error", err)
		} else {
			wait = p.pace.again / 30
			p.found(pr.Name(), found)
			signal(p.poke)
		}
		// A source is used once: one that has ended is asked for again.
		for end := time.Now().Add(pause); time.Now().Before(end) && (err != nil || !p.wants(pr.Name())); {
			if sleep(ctx, min(p.pace.look, time.Until(end))) != nil {
				return
			}
		}
	}
}

// wants reports whether a source of the provider has been used up.
func (p *puller) wants(provider string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, o := range p.offers {
		if o.provider == provider && o.src == nil && o.lane == nil && now.After(o.not) {
			return true
		}
	}
	return false
}

// found takes what a provider has.
func (p *puller) found(provider string, sources []source.Source) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.offers {
		if o.provider == provider {
			o.listed = false
		}
	}
	for _, s := range sources {
		if err := source.ValidName("source of "+provider, s.Name()); err != nil {
			p.log.Error("audit source left out", "error", err)
			continue
		}
		o := p.offers[s.Name()]
		switch {
		case o == nil:
			o = &offer{provider: provider}
			p.offers[s.Name()] = o
			p.log.Info("audit source found", "source", s.Name(), "kind", s.Kind())
		case o.provider != provider:
			p.log.Error("two audit sources have the same name; the second is left out", "source", s.Name(), "providers", []string{o.provider, provider})
			continue
		}
		o.listed = true
		if o.lane == nil {
			o.src = s
		}
	}
	for name, o := range p.offers {
		if o.provider != provider || o.listed {
			continue
		}
		if o.lane != nil {
			o.lane()
			continue
		}
		delete(p.offers, name)
		p.log.Info("audit source is gone", "source", name)
	}
}

// share takes and gives sources until ctx ends.
func (p *puller) share(ctx context.Context) {
	tick := time.NewTicker(p.pace.look)
	defer tick.Stop()
	seen := map[string]sighting{}
	var told time.Time
	for {
		if now := time.Now(); now.Sub(told) >= p.pace.renew {
			if err := p.tell(ctx); err != nil && ctx.Err() == nil {
				p.log.Debug("ingester not announced", "error", err)
			} else {
				told = now
			}
		}
		if p.idle() {
			// Nothing to share: web hook and file alone.
		} else if err := p.divide(ctx, seen); err != nil && ctx.Err() == nil {
			p.log.Warn("who reads which audit source is not known; going on with those that are read here", "error", err)
		}
		select {
		case <-ctx.Done():
			// Others need not wait until this one is silent.
			dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			if err := p.kv.Purge(dctx, ingesterPrefix+p.member, jetstream.PurgeTTL(markerTTL)); err != nil {
				p.log.Debug("ingester not signed off", "error", err)
			}
			return
		case <-tick.C:
		case <-p.poke:
			told = time.Time{}
		}
	}
}

// idle reports whether no provider has a source.
func (p *puller) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.offers) == 0
}

// tell says that this ingester is there, what it can read and what it reads.
func (p *puller) tell(ctx context.Context) error {
	now := time.Now()
	me := schemas.Ingester{Host: p.host, Started: p.begun.UTC(), At: now.UTC(), Sources: p.tally.lags.reports(now)}
	p.mu.Lock()
	for name, o := range p.offers {
		if o.listed && now.After(o.not) && (o.src != nil || o.lane != nil) {
			me.Can = append(me.Can, nameHash(name))
		}
	}
	p.mu.Unlock()
	slices.Sort(me.Can)
	data, err := json.Marshal(me)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	_, err = p.bus.JS.Publish(ctx, "$KV."+schemas.BucketCheckpoints+"."+ingesterPrefix+p.member, data, jetstream.WithMsgTTL(memberTTL))
	return err
}

func nameHash(name string) uint64 {
	h := schemas.Hash128("source", name)
	return binary.LittleEndian.Uint64(h[:])
}

// held is a position in the bucket.
type held struct {
	position
	revision uint64
	stale    bool // its owner is silent
}

// view reads all positions, and what the ingesters that live can read.
func (p *puller) view(ctx context.Context, seen map[string]sighting) (map[string]held, map[string][]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	w, err := p.kv.Watch(ctx, livePrefix+">", jetstream.IgnoreDeletes())
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = w.Stop() }() // its context ends too
	positions, members, there := map[string]held{}, map[string][]uint64{}, map[string]bool{}
	for {
		var e jetstream.KeyValueEntry
		var ok bool
		select {
		case e, ok = <-w.Updates():
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		if !ok {
			return nil, nil, errors.New("watch ended")
		}
		if e == nil {
			break
		}
		now := time.Now()
		there[e.Key()] = true
		s := seen[e.Key()]
		if s.revision != e.Revision() {
			s = sighting{e.Revision(), now}
			seen[e.Key()] = s
		}
		stale := now.Sub(s.at) > p.pace.dead
		if member, ok := strings.CutPrefix(e.Key(), ingesterPrefix); ok {
			var m schemas.Ingester
			if err := json.Unmarshal(e.Value(), &m); err == nil && (!stale || member == p.member) {
				members[member] = m.Can
			}
			continue
		}
		var pos position
		if err := json.Unmarshal(e.Value(), &pos); err != nil {
			p.log.Error("position of an audit source is damaged; its source is not read", "key", e.Key(), "error", err, "remedy", "remove the key to start anew")
			continue
		}
		positions[pos.Source] = held{pos, e.Revision(), stale}
	}
	maps.DeleteFunc(seen, func(key string, _ sighting) bool { return !there[key] })
	return positions, members, nil
}

// assign says which member is to have which of the named sources: as many for
// each as for the others, and few changes when members come and go.
// A source is not for a member that had it and is silent about it.
func assign(names []string, members map[string][]uint64, not map[string]string) map[string]string {
	ids := slices.Sorted(maps.Keys(members))
	can := map[string]map[uint64]bool{}
	for m, hashes := range members {
		can[m] = make(map[uint64]bool, len(hashes))
		for _, h := range hashes {
			can[m][h] = true
		}
	}
	if len(ids) == 0 {
		return nil
	}
	names = slices.Sorted(slices.Values(names))
	room := map[string]int{}
	for i, m := range ids {
		room[m] = len(names) / len(ids)
		if i < len(names)%len(ids) {
			room[m]++
		}
	}
	out := map[string]string{}
	for _, bounded := range []bool{true, false} {
		for _, name := range names {
			if out[name] != "" {
				continue
			}
			best, score := "", uint64(0)
			for _, m := range ids {
				if !can[m][nameHash(name)] || not[name] == m || bounded && room[m] == 0 {
					continue
				}
				h := schemas.Hash128("owner", m, name)
				if s := binary.LittleEndian.Uint64(h[:]); best == "" || s > score {
					best, score = m, s
				}
			}
			if best != "" {
				out[name] = best
				room[best]--
			}
		}
	}
	return out
}

// divide brings what is read here in line with who is there.
func (p *puller) divide(ctx context.Context, seen map[string]sighting) error {
	positions, members, err := p.view(ctx, seen)
	if err != nil {
		return err
	}
	// All that somebody can read counts, or two with different lists would
	// divide them differently.
	wanted := map[uint64]bool{}
	for _, hashes := range members {
		for _, h := range hashes {
			wanted[h] = true
		}
	}
	var names []string
	p.mu.Lock()
	for name := range p.offers {
		if wanted[nameHash(name)] {
			names = append(names, name)
		}
	}
	p.mu.Unlock()
	silent := map[string]string{}
	for name, h := range positions {
		if wanted[nameHash(name)] && !slices.Contains(names, name) {
			names = append(names, name)
		}
		// What is this ingester's and not read here was taken by a write whose
		// answer got lost.
		if h.stale && h.Owner != p.member {
			silent[name] = h.Owner
		}
	}
	owner := assign(names, members, silent)
	now := time.Now()
	slices.Sort(names)
	for _, name := range names {
		p.mu.Lock()
		o := p.offers[name]
		if o == nil {
			p.mu.Unlock()
			continue
		}
		mine, running, ready := owner[name] == p.member, o.lane != nil, o.src != nil && now.After(o.not)
		if running && !mine && owner[name] != "" && !o.leaving && now.Sub(o.held) > 2*p.pace.look {
			o.leaving = true
			p.log.Info("audit source is handed over", "source", name)
			o.lane()
		}
		p.mu.Unlock()
		h, exists := positions[name]
		if running || !ready || !mine || exists && h.Owner != "" && h.Owner != p.member && !h.stale {
			continue
		}
		if !exists {
			h = held{position: position{Source: name}}
		}
		if err := p.start(ctx, name, h); err != nil {
			return err
		}
	}
	return nil
}

// start takes a source, unless somebody is faster, and begins to read it.
func (p *puller) start(ctx context.Context, name string, h held) error {
	own, err := take(ctx, p.kv, h.position, h.revision, p.member, bus.NewRunID())
	if err != nil || own == nil {
		return err
	}
	own.dead, own.log, own.step = p.pace.dead, p.log, p.ground.step
	p.mu.Lock()
	o := p.offers[name]
	if o == nil || o.src == nil { // it has gone meanwhile; the position is let go of below
		p.mu.Unlock()
		own.lost = func(error) {}
		return own.write(ctx, func(pos *position) { pos.Owner = "" })
	}
	src := o.src
	lctx, cancel := context.WithCancel(ctx)
	o.src, o.lane, o.held, o.leaving = nil, cancel, time.Now(), false
	p.mu.Unlock()
	p.log.Info("audit source is read here", "source", name, "kind", src.Kind(), "epoch", own.pos.Epoch, "former_owner_was_silent", h.stale)
	p.tally.lags.begin(src, time.Now())
	l := newPullLane(p.ground, src, own, p.pace)
	p.lanes.Go(func() {
		defer cancel()
		err := l.run(lctx)
		p.tally.lags.end(src)
		p.mu.Lock()
		o.lane = nil
		switch {
		case errors.Is(err, errFenced):
			p.log.Warn("another ingester has taken the audit source over", "source", name)
		case err != nil:
			o.not = time.Now().Add(p.pace.again)
			p.log.Error("audit source stopped; it is tried again", "source", name, "kind", src.Kind(), "in", p.pace.again, "error", err)
		case lctx.Err() == nil:
			o.not = time.Now().Add(p.pace.again)
			p.log.Info("audit source ended by itself", "source", name)
		}
		p.mu.Unlock()
		signal(p.poke)
	})
	return nil
}
