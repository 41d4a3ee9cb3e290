package gke

import (
	"context"
	"fmt"
	"sync"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"github.com/googleapis/gax-go/v2"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"picket/services/auditlog-ingest/source"
)

// Bounds of a subscription.
const (
	// streams share a subscription's messages: Google gives 10 MB/s to each.
	streams = 4
	// maxMessages and maxBytes are what is under way in a stream at most: received
	// and not acknowledged. More than maxBytes is one message by itself.
	maxMessages = 1000
	maxBytes    = 16 << 20
	// leaseTime is how long Pub/Sub waits for a word of a message before it
	// delivers it again, to the next owner if this one died; it is renewed for
	// up to maxLease, while the sink waits. That is also how long goroutines of
	// the client may outlive it: when it is stopped while it hands out what one
	// answer brought, it forgets the rest, and waits for that.
	leaseTime = 20 * time.Second
	maxLease  = 10 * time.Minute
	// stopTime bounds giving back what is under way.
	stopTime = 3 * time.Second
	// aliveEvery is how often it is written down that the subscription is read.
	aliveEvery = 30 * time.Second
	// defaultRetention is how long a subscription keeps messages unless it says
	// otherwise.
	defaultRetention = 7 * 24 * time.Hour
)

// subscription is the source of one Pub/Sub subscription. What it acknowledges is
// where it is: its checkpoint only says when it was read last.
type subscription struct {
	state
	path  string
	since time.Time
}

// alive is the checkpoint of a subscription.
type alive struct {
	// Read is when the subscription was last known to be read.
	Read time.Time `json:"read"`
}

// Run implements source.Source.
func (s *subscription) Run(ctx context.Context, sink source.Sink) error {
	var last alive
	known, err := sink.Checkpoint(&last)
	if err != nil {
		return err
	}
	if !known {
		last.Read = time.Now()
	}
	pause := pauses()
	for ctx.Err() == nil {
		began := time.Now()
		err := s.receive(ctx, sink, &last)
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > time.Minute {
			pause = pauses()
		}
		s.fails("subscription "+s.path, err)
		// A new client reads the credentials again.
		_ = gax.Sleep(ctx, pause.Pause()) // ends early with ctx
	}
	return nil
}

// receive takes messages until ctx ends or Google refuses.
func (s *subscription) receive(ctx context.Context, sink source.Sink, last *alive) error {
	project := subscriptionPath.FindStringSubmatch(s.path)[1]
	client, err := pubsub.NewClient(ctx, project, s.options(s.cfg.PubSubEndpoint, func(context.Context) error { return nil })...)
	if err != nil {
		return err
	}
	defer client.Close() // nothing is lost if that fails
	if err := s.gap(ctx, client, sink, last); err != nil {
		return err
	}
	sub := client.Subscriber(s.path)
	sub.ReceiveSettings = pubsub.ReceiveSettings{
		MaxOutstandingMessages: maxMessages, MaxOutstandingBytes: maxBytes, EnablePerStreamFlowControl: true, NumGoroutines: streams,
		MaxExtension: maxLease, MaxDurationPerAckExtension: leaseTime, MinDurationPerAckExtension: leaseTime,
		// What the sink has not made safe when this ends goes to the next owner:
		// the client ends its streams first, so that it does not get it again.
		ShutdownOptions: &pubsub.ShutdownOptions{Timeout: stopTime, Behavior: pubsub.ShutdownBehaviorNackImmediately},
	}
	s.works()
	var mu sync.Mutex
	var left []func()
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.stayAlive(gctx, sink, last) })
	group.Go(func() error {
		err := sub.Receive(gctx, func(ctx context.Context, m *pubsub.Message) {
			// A message is counted as under way until this returns.
			safe := make(chan struct{})
			var answer sync.Once // the client bears one alone, by one goroutine
			if s.take(ctx, sink, m.Data, s.name+" message "+m.ID, 0, s.since, func() { answer.Do(m.Ack); close(safe) }) == nil {
				select {
				case <-safe:
					return
				case <-ctx.Done():
				}
			}
			mu.Lock()
			defer mu.Unlock()
			left = append(left, func() { answer.Do(m.Nack) })
		})
		// The client has given these back, but goes on renewing them unless it is
		// told one by one.
		mu.Lock()
		defer mu.Unlock()
		for _, nack := range left {
			nack()
		}
		if err == nil {
			err = fmt.Errorf("the stream ended: %w", context.Canceled) // ends the other
		}
		return err
	})
	return group.Wait()
}

// gap tells if messages were deleted since the subscription was read last.
func (s *subscription) gap(ctx context.Context, client *pubsub.Client, sink source.Sink, last *alive) error {
	keep := defaultRetention
	is, err := client.SubscriptionAdminClient.GetSubscription(ctx, &pubsubpb.GetSubscriptionRequest{Subscription: s.path})
	switch {
	case status.Code(err) == codes.PermissionDenied:
		// Reading may still be allowed.
		s.log.Warn("the subscription cannot be looked at: 7 days are taken for how long it keeps messages", "source", s.name, "error", explain("subscription "+s.path, err))
	case err != nil:
		return err
	default:
		if d := is.GetMessageRetentionDuration().AsDuration(); d > 0 {
			keep = d
		}
	}
	now := time.Now()
	if from, to := last.Read, now.Add(-keep); from.Before(to) {
		sink.Gap("Pub/Sub deleted messages before they were read", "from", from.UTC().Format(time.RFC3339), "to", to.UTC().Format(time.RFC3339),
			"subscription", s.path, "remedy", "read what was lost by gke.logs with start and until; raise the subscription's message retention")
	}
	last.Read = now
	return sink.Mark(ctx, *last)
}

// stayAlive writes down that the subscription is read. While the sink takes
// nothing this waits as well, and no time is written down.
func (s *subscription) stayAlive(ctx context.Context, sink source.Sink, last *alive) error {
	for {
		if err := gax.Sleep(ctx, aliveEvery); err != nil {
			return err
		}
		now := alive{time.Now()}
		if err := sink.Mark(ctx, now); err != nil {
			return err
		}
		*last = now
	}
}
