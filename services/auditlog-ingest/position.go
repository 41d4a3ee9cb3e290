package auditlogingest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"picket/schemas"
)

// What a source that several ingesters may read needs to go on elsewhere is in
// the bucket schemas.BucketCheckpoints:
//
//	live.source.<source>                  position: whose it is, and how far
//	live.ingester.<member>                schemas.Ingester: who is there, and what they do
//	wal.<source>.<epoch>.<slot>.<i>       messages of the newest batch
//	ids.<source>.<epoch>.<segment>        remembered event ids
//
// All but the ingesters' keys are bound to the position: what lies beside it is
// nobody's. The position is only ever written by the revision that the writer
// had before, so that of two who hold themselves for the owner one gets further.

const (
	livePrefix     = "live."
	sourcePrefix   = livePrefix + "source."
	ingesterPrefix = schemas.IngesterPrefix
	walPrefix      = "wal."
	idsPrefix      = "ids."
)

// putTimeout is how long one write or read of the bucket may take before it is
// tried again.
const putTimeout = 5 * time.Second

// position is how far a source has been read, and whose it is.
type position struct {
	Source string `json:"source"`
	Owner  string `json:"owner,omitempty"` // member; empty: nobody's
	Epoch  uint64 `json:"epoch"`           // changes with the owner
	Beat   uint64 `json:"beat"`            // makes every write another
	// Run and Batch are the run id of the epoch's batches and the number of
	// the last of them.
	Run    string          `json:"run"`
	Batch  uint64          `json:"batch"`
	Cursor json.RawMessage `json:"cursor,omitempty"`
	// Pending are messages that may not be in PICKET_RAW yet: all before them are.
	Pending *pending `json:"pending,omitempty"`
	IDs     idRange  `json:"ids"`
}

// pending names Count messages, numbered from First, in a slot.
type pending struct {
	Run   string `json:"run"`
	Epoch uint64 `json:"epoch"`
	Slot  uint64 `json:"slot"`
	First uint64 `json:"first"`
	Count int    `json:"count"`
}

// idRange are the segments First to Last of an epoch; of the last only the
// first Count entries count.
type idRange struct {
	Epoch uint64 `json:"epoch"`
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	Count int    `json:"count"`
}

// sourceToken names a source in a key: what of its name a key may hold, and a
// hash of all of it.
func sourceToken(name string) string {
	safe := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-':
			return r
		}
		return '_'
	}, name)
	return safe + "_" + schemas.FormatID(schemas.Hash128("source", name))[:12]
}

func (p *pending) key(token string, i int) string {
	return fmt.Sprintf("%s%s.%d.%d.%d", walPrefix, token, p.Epoch, p.Slot, i)
}

func idsKey(token string, epoch, segment uint64) string {
	return idsPrefix + token + "." + strconv.FormatUint(epoch, 10) + "." + strconv.FormatUint(segment, 10)
}

// errFenced means that somebody else has taken the source over.
var errFenced = errors.New("another ingester has taken the source over")

// claim is the ownership of one source. It is safe for concurrent use.
type claim struct {
	kv    jetstream.KeyValue
	key   string
	token string
	dead  time.Duration
	log   *slog.Logger
	lost  context.CancelCauseFunc // ends all work on the source
	step  func(string)

	mu       sync.Mutex
	pos      position
	revision uint64
	renewed  time.Time // when the last write that went through began
}

// wrongSequence reports whether a write was refused because the key has another
// revision; replicated streams have a code of their own for it.
func wrongSequence(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// take claims a source whose position is pos at revision; a revision of 0 is
// that of a source that has none yet. It returns nil if somebody was faster.
func take(ctx context.Context, kv jetstream.KeyValue, pos position, revision uint64, member, run string) (*claim, error) {
	pos.Owner, pos.Run, pos.Batch = member, run, 0
	pos.Epoch++
	pos.Beat++
	c := &claim{kv: kv, token: sourceToken(pos.Source), pos: pos, revision: revision}
	c.key = sourcePrefix + c.token
	data, err := json.Marshal(pos)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	c.renewed = time.Now()
	if revision == 0 {
		c.revision, err = kv.Create(ctx, c.key, data)
	} else {
		c.revision, err = kv.Update(ctx, c.key, data, revision)
	}
	if wrongSequence(err) || errors.Is(err, jetstream.ErrKeyExists) {
		return nil, nil
	}
	return c, err
}

// now returns the position as it was written last.
func (c *claim) now() position {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pos
}

// fresh reports whether the ownership was renewed so lately that nobody else
// can have taken the source.
func (c *claim) fresh() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.renewed) < c.dead/2
}

// write changes the position, and so renews the ownership. It goes on until the
// bucket has it or ctx ends; errFenced, which ends the work on the source too,
// if somebody else has it.
func (c *claim) write(ctx context.Context, change func(*position)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.pos
	change(&next)
	next.Beat++
	data, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("position of %s: %w", c.pos.Source, err)
	}
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		began := time.Now()
		revision, err := c.update(ctx, data)
		switch {
		case err == nil:
			c.pos, c.revision, c.renewed = next, revision, began
			return nil
		case errors.Is(err, errFenced):
			c.lost(errFenced)
			return errFenced
		case errors.Is(err, nats.ErrConnectionClosed):
			return err // for good
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		if pause >= time.Second {
			c.log.Warn("position of the source not written, trying again", "source", c.pos.Source, "error", err)
		}
	}
}

// update writes the position once. A write whose answer was lost is found.
func (c *claim) update(ctx context.Context, data []byte) (revision uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	revision, err = c.kv.Update(ctx, c.key, data, c.revision)
	if !wrongSequence(err) {
		return revision, err
	}
	e, gerr := c.kv.Get(ctx, c.key)
	switch {
	case errors.Is(gerr, jetstream.ErrKeyNotFound):
		return 0, errFenced // an operator removed it
	case gerr != nil:
		return 0, gerr
	case e.Revision() <= c.revision:
		return 0, err // of a replica that is behind
	case bytes.Equal(e.Value(), data):
		return e.Revision(), nil
	}
	return 0, errFenced
}

// put writes a key until the bucket has it or ctx ends. ttl 0 is for ever.
func (c *claim) put(ctx context.Context, js jetstream.JetStream, key string, value []byte, ttl time.Duration) error {
	var opts []jetstream.PublishOpt
	if ttl > 0 {
		opts = append(opts, jetstream.WithMsgTTL(ttl))
	}
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, putTimeout)
			defer cancel()
			_, err := js.Publish(ctx, "$KV."+schemas.BucketCheckpoints+"."+key, value, opts...)
			return err
		}()
		if err == nil || errors.Is(err, nats.ErrConnectionClosed) {
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		if pause >= time.Second {
			c.log.Warn("bucket "+schemas.BucketCheckpoints+" does not take what the source needs to go on elsewhere, trying again", "source", c.pos.Source, "key", key, "error", err)
		}
	}
}

// get reads a key until check takes its value, patience is over, or ctx ends: a
// replica of the bucket may be behind. It returns false if there is none.
func (c *claim) get(ctx context.Context, key string, patience time.Duration, check func([]byte) error) (bool, error) {
	began := time.Now()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		value, err := func() ([]byte, error) {
			ctx, cancel := context.WithTimeout(ctx, putTimeout)
			defer cancel()
			e, err := c.kv.Get(ctx, key)
			if err != nil {
				return nil, err
			}
			return e.Value(), nil
		}()
		if errors.Is(err, nats.ErrConnectionClosed) {
			return false, err
		}
		missing := errors.Is(err, jetstream.ErrKeyNotFound)
		if err == nil {
			if err = check(value); err == nil {
				return true, nil
			}
			missing = true
		}
		if missing && time.Since(began) > patience {
			if errors.Is(err, jetstream.ErrKeyNotFound) {
				return false, nil
			}
			return false, fmt.Errorf("key %s of bucket %s: %w", key, schemas.BucketCheckpoints, err)
		}
		if err := sleep(ctx, pause); err != nil {
			return false, err
		}
	}
}

// sweep removes what former owners left beside the position. What it cannot
// remove the next owner does.
func (c *claim) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	epoch := c.now().Epoch
	for _, prefix := range []string{walPrefix, idsPrefix} {
		keys, err := c.kv.ListKeysFiltered(ctx, prefix+c.token+".>")
		if err != nil {
			c.log.Debug("keys of former owners not listed", "error", err)
			return
		}
		for key := range keys.Keys() {
			parts := strings.Split(key, ".")
			if n, err := strconv.ParseUint(parts[2], 10, 64); err == nil && n < epoch {
				c.drop(ctx, key)
			}
		}
	}
}

// markerTTL is how long the bucket remembers that a key was removed.
const markerTTL = time.Hour

// drop removes a key that nothing needs any more.
func (c *claim) drop(ctx context.Context, key string) {
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	if err := c.kv.Purge(ctx, key, jetstream.PurgeTTL(markerTTL)); err != nil {
		c.log.Debug("key not removed", "key", key, "error", err)
	}
}

// sleep waits, and returns ctx's error if that ends first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
