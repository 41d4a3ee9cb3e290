package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"picket/schemas"
)

// Limits sizes the streams.
type Limits struct {
	Replicas  int   // copies of every stream and bucket; 3 in production
	RawBytes  int64 // PICKET_RAW; full means that publishers spool
	EventsAge time.Duration
	// EventsBytes is what a ClickHouse outage may pile up before the oldest
	// events are dropped (and counted).
	EventsBytes int64
	MatchBytes  int64 // PICKET_MATCH; full means that the detector waits
	AlertsBytes int64
	DeadBytes   int64
}

// DefaultLimits suits one machine.
func DefaultLimits() Limits {
	return Limits{Replicas: 1, RawBytes: 1 << 30, EventsAge: 24 * time.Hour, EventsBytes: 4 << 30, MatchBytes: 1 << 30, AlertsBytes: 1 << 30, DeadBytes: 256 << 20}
}

// Bytes is what the streams may take together, each copy.
func (l Limits) Bytes() int64 {
	return l.RawBytes + l.EventsBytes + l.MatchBytes + l.AlertsBytes + l.DeadBytes
}

// Within returns limits whose Bytes are at most max, each stream made smaller
// by the same factor.
func (l Limits) Within(max int64) Limits {
	if all := l.Bytes(); all > max {
		for _, b := range []*int64{&l.RawBytes, &l.EventsBytes, &l.MatchBytes, &l.AlertsBytes, &l.DeadBytes} {
			*b = int64(float64(*b) * float64(max) / float64(all))
		}
	}
	return l
}

func streams(l Limits) []jetstream.StreamConfig {
	base := jetstream.StreamConfig{Storage: jetstream.FileStorage, Replicas: l.Replicas, Duplicates: schemas.DuplicatesWindow, Compression: jetstream.S2Compression}
	raw, events, match, alerts, dead := base, base, base, base, base
	raw.Name, raw.Subjects = schemas.StreamRaw, []string{"picket.raw.>"}
	raw.Retention, raw.Discard, raw.MaxBytes = jetstream.WorkQueuePolicy, jetstream.DiscardNew, l.RawBytes
	raw.MaxMsgSize = schemas.MaxBatchBytes + 16<<10
	raw.Description = "Batches from sensors and ingesters, until the enricher has them."
	events.Name, events.Subjects = schemas.StreamEvents, []string{"picket.events.>"}
	events.Retention, events.Discard, events.MaxBytes, events.MaxAge = jetstream.InterestPolicy, jetstream.DiscardOld, l.EventsBytes, l.EventsAge
	events.Description = "Enriched batches, until detector and sink have them."
	match.Name, match.Subjects = schemas.StreamMatch, []string{"picket.match.*"}
	match.Retention, match.Discard, match.MaxBytes = jetstream.WorkQueuePolicy, jetstream.DiscardNew, l.MatchBytes
	match.Description = "Matches of rules that look at several events, until the state of their partition has them."
	alerts.Name, alerts.Subjects = schemas.StreamAlerts, []string{"picket.alerts.>"}
	alerts.Retention, alerts.Discard, alerts.MaxBytes, alerts.MaxAge = jetstream.LimitsPolicy, jetstream.DiscardOld, l.AlertsBytes, 30*24*time.Hour
	alerts.Description = "Findings, one OCSF Detection Finding each."
	dead.Name, dead.Subjects = schemas.StreamDead, []string{"picket.dead.>"}
	dead.Retention, dead.Discard, dead.MaxBytes, dead.MaxAge = jetstream.LimitsPolicy, jetstream.DiscardOld, l.DeadBytes, 30*24*time.Hour
	dead.Description = "What could not be processed, with its reason in the headers."
	return []jetstream.StreamConfig{raw, events, match, alerts, dead}
}

// AckWait is how long a message may stay unacknowledged after its consumer
// last gave a sign of life: how long a dead service's work waits for another.
const AckWait = 15 * time.Second

// PinnedTTL is how long a partition of PICKET_MATCH waits for the owner that no
// longer asks for it before another gets it.
const PinnedTTL = 10 * time.Second

type durable struct {
	stream string
	config jetstream.ConsumerConfig
}

func durables() []durable {
	consumer := func(stream, name string, pending int) durable {
		return durable{stream, jetstream.ConsumerConfig{
			Durable: name, AckPolicy: jetstream.AckExplicitPolicy, AckWait: AckWait,
			// Without bound: a transient failure may last as long as an
			// outage lasts, and what fails for good is dead-lettered by
			// Done, never by a count of deliveries.
			MaxDeliver: -1, MaxAckPending: pending,
		}}
	}
	all := []durable{
		consumer(schemas.StreamRaw, schemas.DurableEnricher, 256),
		consumer(schemas.StreamEvents, schemas.DurableDetector, 256),
		consumer(schemas.StreamEvents, schemas.DurableSink, 2048),
		consumer(schemas.StreamAlerts, schemas.DurableAlertsWriter, 4096),
	}
	for p := range schemas.MatchPartitions {
		d := consumer(schemas.StreamMatch, schemas.DurableMatch(p), 256)
		d.config.FilterSubject = schemas.MatchSubject(p)
		d.config.PriorityPolicy, d.config.PriorityGroups, d.config.PinnedTTL = jetstream.PriorityPolicyPinned, []string{schemas.MatchGroup}, PinnedTTL
		all = append(all, d)
	}
	return all
}

func buckets(l Limits) []jetstream.KeyValueConfig {
	kv := func(name, doc string, ttl time.Duration) jetstream.KeyValueConfig {
		return jetstream.KeyValueConfig{Bucket: name, Description: doc, History: 1, Storage: jetstream.FileStorage, Replicas: l.Replicas, TTL: ttl}
	}
	rules := kv(schemas.BucketRules, "Rule pack of the fleet, in its last revisions.", 0)
	// Ids of audit sources that nobody reads any more, ingesters that died and
	// the marks of removed keys go by themselves; positions stay.
	checkpoints := kv(schemas.BucketCheckpoints, "Positions of audit sources, what makes them safe, and the ingesters.", 0)
	checkpoints.LimitMarkerTTL = time.Hour
	rules.History, rules.MaxValueSize = schemas.RulePackRevisions, schemas.MaxRulePackBytes+16<<10
	metadata := kv(schemas.BucketMetadata, "Kubernetes metadata that the enrichers share.", 0)
	metadata.LimitMarkerTTL = time.Minute // deleted objects have a time of their own
	return []jetstream.KeyValueConfig{
		rules,
		metadata,
		checkpoints,
		kv(schemas.BucketState, "Inserts under way, correlation state.", 7*24*time.Hour),
		kv(schemas.BucketControl, "Selections, one key per sensor.", 0),
	}
}

// errCodeNoStorage is the server's JSStorageResourcesExceededErr.
const errCodeNoStorage jetstream.ErrorCode = 10047

// Migrate creates streams, durable consumers and buckets, or brings existing
// ones to the wanted configuration. It may be repeated.
func (b *Bus) Migrate(ctx context.Context, l Limits) error {
	for _, s := range streams(l) {
		_, err := b.JS.CreateOrUpdateStream(ctx, s)
		if api := (*jetstream.APIError)(nil); errors.As(err, &api) && api.ErrorCode == errCodeNoStorage {
			return fmt.Errorf("stream %s: the streams ask NATS for %.1f GB of disk, and it may not take so much: free disk where it keeps its files, raise its max_file_store, or ask for less (picket migrate --raw-bytes, --events-bytes): %w", s.Name, float64(l.Bytes())/1e9, err)
		}
		if err != nil {
			return fmt.Errorf("stream %s: %w", s.Name, err)
		}
	}
	for _, d := range durables() {
		if _, err := b.JS.CreateOrUpdateConsumer(ctx, d.stream, d.config); err != nil {
			return fmt.Errorf("consumer %s of %s: %w", d.config.Durable, d.stream, err)
		}
	}
	for _, kv := range buckets(l) {
		if _, err := b.JS.CreateOrUpdateKeyValue(ctx, kv); err != nil {
			return fmt.Errorf("bucket %s: %w", kv.Bucket, err)
		}
	}
	return nil
}

// Verify waits until NATS answers, then up to patience for the streams to
// exist, and names what is missing. A service calls it before it works.
func (b *Bus) Verify(ctx context.Context, patience time.Duration, names ...string) error {
	var deadline time.Time
	for {
		if b.NC.IsConnected() {
			if deadline.IsZero() {
				deadline = time.Now().Add(patience)
			}
			missing := slices.DeleteFunc(slices.Clone(names), func(s string) bool {
				_, err := b.JS.Stream(ctx, s)
				return err == nil
			})
			if len(missing) == 0 {
				return nil
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("JetStream stream %s missing or not allowed: run `picket migrate` against this NATS server, and check the credentials", strings.Join(missing, ", "))
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

// IsStreamFull reports whether a publish was refused because the stream has
// reached its limits (or its disk): the publisher keeps the data and waits.
func IsStreamFull(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode != jetstream.JSErrCodeStreamNotFound
}
