package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"picket/internal/bus"
)

// ledger is the record of a table's inserts, one value in the bucket
// schemas.BucketState for each durable and table. All who share the durable
// change it by compare-and-set alone, so its revisions are one sequence: what
// a writer concludes from a revision holds if its own change of that very
// revision succeeds. docs/storage.md tells how it is used.
type ledger struct {
	// Fence is the highest delivery number (consumer sequence) of a message
	// that was planned on a repeated delivery. A first delivery with a higher
	// number was planned by nobody else: a later delivery of that message
	// would have a number that is higher still.
	Fence uint64 `json:"fence"`
	// Plans are the inserts whose rows are not known to be durable.
	Plans []plan `json:"plans,omitempty"`
	// Consumer is when the durable was created. Delivery numbers begin anew
	// with the durable: then messages up to stream sequence Doubt may have
	// been inserted under the former one.
	Consumer time.Time `json:"consumer"`
	Doubt    uint64    `json:"doubt,omitempty"`
	Gaps     bus.Gaps  `json:"gaps"`
}

// plan is one insert: these messages' rows, in this order, under this token.
// It never changes, and its token is never used again.
type plan struct {
	Token    string    `json:"token"`
	Messages []uint64  `json:"messages"` // stream sequences
	Made     time.Time `json:"made"`
}

func newToken() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// without returns the ledger less the plans that drop names.
func (l ledger) without(drop func(plan) bool) ledger {
	l.Plans = slices.DeleteFunc(slices.Clone(l.Plans), drop)
	return l
}

// book keeps a ledger in the key-value bucket. It remembers the last revision
// it saw. It is used by one goroutine.
type book struct {
	kv       jetstream.KeyValue
	key      string
	known    bool // value and revision are set
	value    []byte
	revision uint64
}

// kvTimeout bounds one access to the bucket.
const kvTimeout = 10 * time.Second

// read returns the last ledger seen, or the present one if fresh is asked for
// or none was seen. It may lag behind: only write tells.
func (b *book) read(ctx context.Context, fresh bool) (ledger, error) {
	if fresh || !b.known {
		ctx, cancel := context.WithTimeout(ctx, kvTimeout)
		defer cancel()
		e, err := b.kv.Get(ctx, b.key)
		switch {
		case errors.Is(err, jetstream.ErrKeyNotFound):
			b.value, b.revision = []byte("{}"), 0
		case err != nil:
			return ledger{}, fmt.Errorf("read the record of inserts %s: %w", b.key, err)
		default:
			b.value, b.revision = e.Value(), e.Revision()
		}
		b.known = true
	}
	var l ledger
	if err := json.Unmarshal(b.value, &l); err != nil {
		b.known = false
		return ledger{}, fmt.Errorf("the record of inserts %s in bucket %s is damaged (%w): delete that key if nothing else helps; rows of inserts under way may then be stored twice", b.key, b.kv.Bucket(), err)
	}
	return l, nil
}

// errConflict means that somebody else has changed the ledger.
var errConflict = errors.New("the record of inserts was changed by another")

// write puts l in the place of the ledger that read returned last. After
// errConflict nothing is written. After another error it is unknown whether l
// is written, and the next read tells.
func (b *book) write(ctx context.Context, l ledger) error {
	value, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("record of inserts: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, kvTimeout)
	defer cancel()
	var revision uint64
	if b.revision == 0 {
		revision, err = b.kv.Create(ctx, b.key, value)
	} else {
		revision, err = b.kv.Update(ctx, b.key, value, b.revision)
	}
	if err != nil {
		b.known = false
		if errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
			return errConflict
		}
		return fmt.Errorf("write the record of inserts %s: %w", b.key, err)
	}
	b.value, b.revision = value, revision
	return nil
}
