package bus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"picket/internal/fault"
	"picket/schemas"
)

// Message is one message of a durable consumer. Call Done exactly once.
type Message struct {
	jetstream.Msg
	// Stream, Sequence and Deliveries come from the server.
	Stream     string
	Sequence   uint64
	Deliveries uint64
	// Again says that the message may have been delivered before, and that
	// what it caused may exist. Deliveries alone does not tell: a server that
	// crashed has forgotten deliveries, and the ids of messages that were
	// published and consumed. So every message that is older than the latest
	// connection counts as delivered before.
	Again bool

	c *consumption
}

// consumption is one Consume call's set of messages under way.
type consumption struct {
	bus  *Bus
	mu   sync.Mutex
	open map[*Message]struct{}
	idle *sync.Cond // signalled when open becomes empty
}

// Consume delivers the durable's messages to handle, in order and one at a
// time, until ctx ends or the connection is lost for good. handle may keep a
// message and call its Done later, from any goroutine: while the process
// lives the server is told that work goes on; if it dies another consumer gets
// the message AckWait later. Consume returns after every message's Done was
// called; on ctx's end it still hands over what has been fetched, so that
// nobody has to wait for it to be delivered again, and waits for all at most
// grace. opts are added to those of the pull.
func (b *Bus) Consume(ctx context.Context, stream, durable string, grace time.Duration, handle func(*Message), opts ...jetstream.PullMessagesOpt) error {
	var it jetstream.MessagesContext
	var connection, older uint64 // connections made, and the stream's last sequence then
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		var err error
		connection = b.NC.Stats().Reconnects
		if it, older, err = b.iterate(ctx, stream, durable, opts); err == nil {
			break
		}
		if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("consumer %s of stream %s: %w (run `picket migrate`)", durable, stream, err)
		}
		if errors.Is(err, nats.ErrConnectionClosed) {
			return fmt.Errorf("consumer %s of stream %s: %w", durable, stream, err)
		}
		b.log.Warn("consumer does not answer, trying again", "stream", stream, "consumer", durable, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
	c := &consumption{bus: b, open: map[*Message]struct{}{}}
	c.idle = sync.NewCond(&c.mu)
	alive, stopAlive := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { c.keepAlive(alive) })
	stop := context.AfterFunc(ctx, it.Drain)
	defer func() {
		stop()
		it.Stop()
		stopAlive()
		wg.Wait()
	}()
	for {
		msg, err := it.Next()
		if errors.Is(err, jetstream.ErrMsgIteratorClosed) {
			break
		}
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			b.log.Warn("pull failed, going on", "stream", stream, "consumer", durable, "error", err)
			if errors.Is(err, jetstream.ErrConsumerDeleted) || errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, nats.ErrConnectionClosed) {
				return fmt.Errorf("consume %s of stream %s: %w", durable, stream, err)
			}
			continue
		}
		// A message of a new connection is never handled before this look.
		if n := b.NC.Stats().Reconnects; n != connection {
			last, err := b.lastSequence(ctx, stream)
			if err != nil {
				// Not settled: it comes again when its time is over.
				b.log.Warn("stream not asked for its last message, trying again", "stream", stream, "error", err)
				_ = msg.NakWithDelay(time.Second) // fails only while disconnected
				continue
			}
			connection, older = n, last
		}
		m := &Message{Msg: msg, Stream: stream, c: c}
		if md, err := msg.Metadata(); err == nil {
			m.Sequence, m.Deliveries = md.Sequence.Stream, md.NumDelivered
		}
		m.Again = m.Deliveries > 1 || m.Sequence <= older
		c.mu.Lock()
		c.open[m] = struct{}{}
		c.mu.Unlock()
		handle(m)
	}
	c.drain(grace)
	if ctx.Err() == nil {
		return fmt.Errorf("consume %s of stream %s: %w", durable, stream, nats.ErrConnectionClosed)
	}
	return nil
}

// iterate begins to pull, and returns the stream's last sequence before that.
func (b *Bus) iterate(ctx context.Context, stream, durable string, opts []jetstream.PullMessagesOpt) (jetstream.MessagesContext, uint64, error) {
	last, err := b.lastSequence(ctx, stream)
	if err != nil {
		return nil, 0, err
	}
	cons, err := b.JS.Consumer(ctx, stream, durable)
	if err != nil {
		return nil, 0, err
	}
	it, err := cons.Messages(append(opts, jetstream.PullMaxMessages(max(1, cons.CachedInfo().Config.MaxAckPending/2)), jetstream.WithMessagesErrOnMissingHeartbeat(false))...)
	return it, last, err
}

// lastSequence asks for the stream's last sequence, for at most five seconds.
func (b *Bus) lastSequence(ctx context.Context, stream string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := b.JS.Stream(ctx, stream)
	if err != nil {
		return 0, err
	}
	return s.CachedInfo().State.LastSeq, nil
}

// drain waits until no message is under way, at most grace.
func (c *consumption) drain(grace time.Duration) {
	timer := time.AfterFunc(grace, func() {
		c.mu.Lock()
		clear(c.open)
		c.mu.Unlock()
		c.idle.Broadcast()
	})
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.open) > 0 {
		c.idle.Wait()
	}
}

// keepAlive tells the server of every message still under way.
func (c *consumption) keepAlive(ctx context.Context) {
	tick := time.NewTicker(AckWait / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c.mu.Lock()
		open := make([]*Message, 0, len(c.open))
		for m := range c.open {
			open = append(open, m)
		}
		c.mu.Unlock()
		for _, m := range open {
			_ = m.InProgress() // fails only while disconnected or after Done: then redelivery decides
		}
	}
}

// Done settles the message. nil acknowledges it: what it caused is durable. A
// permanent error (package fault) puts it on the dead-letter stream and takes
// it off its own; if the dead letter cannot be stored the message comes again.
// Any other error has it delivered again after a delay that grows with the
// number of deliveries, to at most 30 seconds. buried says that a dead letter
// is stored: only then is the message lost, and to be counted.
func (m *Message) Done(err error) (buried bool) {
	c := m.c
	c.mu.Lock()
	delete(c.open, m)
	if len(c.open) == 0 {
		c.idle.Broadcast()
	}
	c.mu.Unlock()
	switch {
	case err == nil:
		err = m.Ack()
	case fault.IsPermanent(err):
		buried, err = m.bury(err)
	default:
		delay := min(time.Duration(m.Deliveries)*time.Second, 30*time.Second)
		c.bus.seldom.Warn("message failed, trying again", "stream", m.Stream, "sequence", m.Sequence, "deliveries", m.Deliveries, "delay", delay, "error", err)
		err = m.NakWithDelay(delay)
	}
	if err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		c.bus.seldom.Warn("message not settled, it will come again", "stream", m.Stream, "sequence", m.Sequence, "error", err)
	}
	return buried
}

// bury dead-letters the message, then takes it off its stream.
func (m *Message) bury(cause error) (buried bool, err error) {
	b := m.c.bus
	b.seldom.Error("message set aside on the dead-letter stream", "subject", m.Subject(), "stream", m.Stream, "sequence", m.Sequence, "reason", fault.Reason(cause), "error", cause)
	if err := b.DeadLetter(context.Background(), m.Data(), DeadLetter{Subject: m.Subject(), Stream: m.Stream, Sequence: m.Sequence, Cause: cause}); err != nil {
		return false, errors.Join(err, m.NakWithDelay(5*time.Second))
	}
	return true, m.TermWithReason(fault.Reason(cause))
}

// DeadLetter says where unprocessable data came from and why it is set aside.
type DeadLetter struct {
	Subject  string // subject or source
	Stream   string // empty: not from a stream
	Sequence uint64
	Cause    error
	// Length and Sum (SHA-256) are those of the whole, for a caller that has
	// only its beginning or has redacted it. Zero: those of data.
	Length int64
	Sum    [sha256.Size]byte
}

// DeadLetter stores the first schemas.MaxDeadBytes of data on PICKET_DEAD and
// returns when JetStream has it, after at most ten seconds.
func (b *Bus) DeadLetter(ctx context.Context, data []byte, d DeadLetter) error {
	sum, length := d.Sum, d.Length
	if length == 0 {
		sum, length = sha256.Sum256(data), int64(len(data))
	}
	msg := nats.NewMsg(schemas.DeadSubject(b.service))
	msg.Data = data[:min(len(data), schemas.MaxDeadBytes)]
	msg.Header.Set(schemas.HeaderReason, fault.Reason(d.Cause)+": "+oneLine(d.Cause.Error()))
	msg.Header.Set(schemas.HeaderSubject, d.Subject)
	msg.Header.Set(schemas.HeaderLength, strconv.FormatInt(length, 10))
	msg.Header.Set(schemas.HeaderSHA256, hex.EncodeToString(sum[:]))
	id := "dead-" + hex.EncodeToString(sum[:])
	if d.Stream != "" {
		msg.Header.Set(schemas.HeaderStream, d.Stream)
		msg.Header.Set(schemas.HeaderSequence, strconv.FormatUint(d.Sequence, 10))
		id = fmt.Sprintf("dead-%s-%s-%d", b.service, d.Stream, d.Sequence)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// The id makes a repeated attempt one dead letter.
	if _, err := b.JS.PublishMsg(ctx, msg, jetstream.WithMsgID(id)); err != nil {
		return fmt.Errorf("dead letter: %w", err)
	}
	return nil
}

// oneLine makes text safe for a header and keeps it short.
func oneLine(s string) string {
	b := []byte(s)[:min(len(s), 512)]
	for i, c := range b {
		if c < ' ' || c == 0x7f {
			b[i] = ' '
		}
	}
	return string(b)
}
