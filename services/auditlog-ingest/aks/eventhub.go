package aks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"

	"picket/services/auditlog-ingest/source"
)

const (
	// prefetch is how many messages of a partition may wait in memory. A
	// message has at most 1 MB (20 MB in clusters of their own), in which Azure
	// puts many records.
	prefetch = 16
	// stolenPause is the least pause after another reader took the partition:
	// if that is another ingester, its claim ends this source before.
	stolenPause = 15 * time.Second
	// closeFor is how long taking leave of the cloud may take.
	closeFor = 2 * time.Second
	// maxConnectionString bounds the file.
	maxConnectionString = 16 << 10
)

// eventHub is one event hub.
type eventHub struct {
	*Provider
	cfg   EventHubConfig
	known []string
}

func (h *eventHub) name() string      { return h.cfg.Name }
func (h *eventHub) listed() *[]string { return &h.known }
func (h *eventHub) source(id string) source.Source {
	return &partition{eventHub: h, id: id, label: h.cfg.Name + "-" + id}
}

// open returns a client with a connection of its own, so that what happens to
// one partition's connection does not concern another. It connects when it is
// used. Credentials are read here.
func (h *eventHub) open() (*azeventhubs.ConsumerClient, error) {
	opt := &azeventhubs.ConsumerClientOptions{
		ApplicationID: "picket", CustomEndpoint: h.cfg.Endpoint,
		// Who calls tries again, with a new client.
		RetryOptions: azeventhubs.RetryOptions{MaxRetries: -1},
	}
	group := h.cfg.ConsumerGroup
	if group == "" {
		group = azeventhubs.DefaultConsumerGroup
	}
	if h.cfg.Namespace != "" {
		return azeventhubs.NewConsumerClient(h.cfg.Namespace, h.cfg.EventHub, group, h.cred, opt)
	}
	s, err := readSecret(h.cfg.ConnectionStringFile)
	if err != nil {
		return nil, err
	}
	c, err := azeventhubs.NewConsumerClientFromConnectionString(s, h.cfg.EventHub, group, opt)
	if err != nil {
		// The SDK's errors quote parts of it.
		return nil, fmt.Errorf("connection_string_file: %s has no connection string of an event hub (Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…), or event_hub is given and it has EntityPath too, or neither", h.cfg.ConnectionStringFile)
	}
	return c, nil
}

// readSecret reads a connection string.
func readSecret(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("connection_string_file: %w", err)
	}
	if info.Size() > maxConnectionString {
		return "", fmt.Errorf("connection_string_file: %s has %d bytes: give a file with one connection string", path, info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("connection_string_file: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// ask runs a question to the cloud, and closes the client if it is not
// answered in time: the SDK waits without a bound for some of the answers
// (getPartitionPropertiesInternal of azeventhubs 2.0.2).
func ask[T any](ctx context.Context, atMost time.Duration, client *azeventhubs.ConsumerClient, question func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = client.Close(ctx) }) // it has no error to tell
	answer, err := question(ctx)
	if !stop() && err == nil {
		err = context.DeadlineExceeded // it is closed
	}
	return answer, explain(err)
}

// closeClient closes a client, and what reads a partition with it, if
// anything does.
func closeClient(client *azeventhubs.ConsumerClient, in *azeventhubs.PartitionClient) {
	ctx, cancel := context.WithTimeout(context.Background(), closeFor)
	defer cancel()
	// What they could not do is of no use to anyone: the connection goes.
	if in != nil {
		_ = in.Close(ctx)
	}
	_ = client.Close(ctx)
	// Close leaves the goroutine behind that renews the claim for questions
	// (azeventhubs 2.0.2), for hours. A question over the closed connection
	// makes the SDK end it.
	_, _ = client.GetEventHubProperties(ctx, nil)
}

// explain adds the remedy to errors that say little.
func explain(err error) error {
	e, ok := errors.AsType[*azeventhubs.Error](err)
	switch {
	case !ok:
		return err
	case e.Code == azeventhubs.ErrorCodeUnauthorizedAccess:
		return fmt.Errorf("%w (the credentials need the claim Listen, or the role Azure Event Hubs Data Receiver)", err)
	case e.Code == azeventhubs.ErrorCodeOwnershipLost:
		return fmt.Errorf("%w (something else reads this partition with the same consumer group: give Picket one of its own)", err)
	}
	return err
}

func (h *eventHub) list(ctx context.Context) ([]string, error) {
	client, err := h.open()
	if err != nil {
		return nil, err
	}
	defer closeClient(client, nil)
	hub, err := ask(ctx, h.askFor, client, func(ctx context.Context) (azeventhubs.EventHubProperties, error) {
		return client.GetEventHubProperties(ctx, nil)
	})
	return hub.PartitionIDs, err
}

// position is the checkpoint of a partition: the last message whose records
// are safe.
type position struct {
	Sequence int64     `json:"sequence"`
	Enqueued time.Time `json:"enqueued"`
	// Created is when the hub was: the numbers begin anew in a new one.
	Created time.Time `json:"created"`
}

// partition is the source of one partition of an event hub.
type partition struct {
	*eventHub
	id    string
	label string
	sink  source.Sink

	at      position
	placed  bool  // at is set
	skipped int64 // the jump in the numbers that was asked about, by its end
	state   atomic.Pointer[error]
}

// Name implements source.Source.
func (p *partition) Name() string { return p.label }

// Kind implements source.Source.
func (p *partition) Kind() string { return kind }

var errNotYet = errors.New("not connected yet")

// Ready implements source.Source.
func (p *partition) Ready() error {
	if e := p.state.Load(); e != nil {
		return *e
	}
	return errNotYet
}

func (p *partition) ready(err error) { p.state.Store(&err) }

// Run implements source.Source.
func (p *partition) Run(ctx context.Context, sink source.Sink) (err error) {
	p.sink = sink
	if p.placed, err = sink.Checkpoint(&p.at); err != nil {
		return err
	}
	t := newTrouble(p.log, p.label)
	for {
		before := p.at.Sequence
		err := p.read(ctx)
		p.ready(err)
		if ctx.Err() != nil {
			return nil
		}
		if p.at.Sequence != before {
			t.over()
		}
		pause := time.Duration(0)
		if e, ok := errors.AsType[*azeventhubs.Error](err); ok && e.Code == azeventhubs.ErrorCodeOwnershipLost {
			pause = stolenPause
		}
		if errors.Is(err, errJump) {
			continue
		}
		t.wait(ctx, err, pause)
	}
}

// errJump means that numbers are missing: the place is asked again.
var errJump = errors.New("sequence numbers are missing")

// read connects and takes messages until that fails.
func (p *partition) read(ctx context.Context) error {
	client, err := p.open()
	if err != nil {
		return err
	}
	var in *azeventhubs.PartitionClient
	defer func() { closeClient(client, in) }()
	start, err := p.place(ctx, client)
	if err != nil {
		return err
	}
	// The newest of several readers with this level gets the partition: after a
	// takeover that is the one that owns it.
	level := int64(0)
	in, err = client.NewPartitionClient(p.id, &azeventhubs.PartitionClientOptions{StartPosition: start, OwnerLevel: &level, Prefetch: prefetch})
	if err != nil {
		return err
	}
	p.ready(nil)
	p.log.Info("reading a partition", "source", p.label, "event_hub", p.cfg.Name, "partition", p.id, "behind_sequence", p.at.Sequence)
	for {
		// One at a time: more would wait until there are that many.
		got, err := in.ReceiveEvents(ctx, 1, nil)
		for _, m := range got {
			if err := p.take(ctx, client, m); err != nil {
				return err
			}
		}
		if err != nil {
			return explain(err)
		}
	}
}

func (p *partition) properties(ctx context.Context, client *azeventhubs.ConsumerClient) (azeventhubs.PartitionProperties, error) {
	return ask(ctx, p.askFor, client, func(ctx context.Context) (azeventhubs.PartitionProperties, error) {
		return client.GetPartitionProperties(ctx, p.id, nil)
	})
}

// place says where to begin, and sets the position if there is none.
func (p *partition) place(ctx context.Context, client *azeventhubs.ConsumerClient) (start azeventhubs.StartPosition, err error) {
	hub, err := ask(ctx, p.askFor, client, func(ctx context.Context) (azeventhubs.EventHubProperties, error) {
		return client.GetEventHubProperties(ctx, nil)
	})
	if err != nil {
		return start, err
	}
	now, err := p.properties(ctx, client)
	if err != nil {
		return start, err
	}
	first := now.BeginningSequenceNumber
	mark := func(sequence int64, at time.Time) error {
		p.at, p.placed = position{Sequence: sequence, Enqueued: at, Created: hub.CreatedOn}, true
		return p.sink.Mark(ctx, p.at)
	}
	switch {
	case !p.placed && p.Provider.cfg.Start == source.StartNow:
		// Written down at once: what comes while we are away is not old then.
		err = mark(now.LastEnqueuedSequenceNumber, now.LastEnqueuedOn)
	case !p.placed:
		from := p.Provider.cfg.Start.Time(time.Time{})
		if from.IsZero() {
			from = time.UnixMilli(0)
		}
		p.at.Created = hub.CreatedOn
		return azeventhubs.StartPosition{EnqueuedTime: &from, Inclusive: true}, nil
	case !p.at.Created.Equal(hub.CreatedOn):
		p.sink.Gap("the event hub was deleted and created anew; what had not been read of the old one is lost",
			"event_hub", p.cfg.Name, "partition", p.id, "behind_sequence", p.at.Sequence, "from", p.at.Enqueued, "to", hub.CreatedOn)
		err = mark(first-1, hub.CreatedOn)
	case now.IsEmpty && now.LastEnqueuedSequenceNumber > p.at.Sequence:
		p.gap(now.LastEnqueuedSequenceNumber, now.LastEnqueuedOn)
		err = mark(now.LastEnqueuedSequenceNumber, now.LastEnqueuedOn)
	}
	if p.at.Sequence < 0 {
		earliest := true
		return azeventhubs.StartPosition{Earliest: &earliest}, err
	}
	return azeventhubs.StartPosition{SequenceNumber: &p.at.Sequence}, err
}

// gap tells that the messages behind the position up to the one numbered last
// were gone before they were read.
func (p *partition) gap(last int64, to time.Time) {
	p.sink.Gap("the event hub deleted messages before they were read: the audit records in them are lost", "event_hub", p.cfg.Name, "partition", p.id,
		"from", p.at.Enqueued, "to", to, "first_sequence", p.at.Sequence+1, "last_sequence", last, "messages", last-p.at.Sequence,
		"remedy", "keep messages longer (retention of the event hub), or see why they were not read")
}

// take hands one message over.
func (p *partition) take(ctx context.Context, client *azeventhubs.ConsumerClient, m *azeventhubs.ReceivedEventData) error {
	enqueued := time.Time{}
	if m.EnqueuedTime != nil {
		enqueued = m.EnqueuedTime.UTC()
	}
	if p.placed && m.SequenceNumber <= p.at.Sequence {
		return nil // it came again, and was handed over before
	}
	if p.placed && m.SequenceNumber > p.at.Sequence+1 && p.skipped != m.SequenceNumber {
		now, err := p.properties(ctx, client)
		if err != nil {
			return err
		}
		if now.BeginningSequenceNumber <= p.at.Sequence+1 {
			// They are there. Asked once more; if they do not come then, they
			// are not to be had.
			p.skipped = m.SequenceNumber
			return errJump
		}
		p.gap(m.SequenceNumber-1, enqueued)
	} else if p.placed && m.SequenceNumber > p.at.Sequence+1 {
		p.gap(m.SequenceNumber-1, enqueued)
	}
	next := position{Sequence: m.SequenceNumber, Enqueued: enqueued, Created: p.at.Created}
	r := source.Record{
		From: "event hub " + p.cfg.Name + " partition " + p.id, At: m.SequenceNumber, Arrived: enqueued,
		CloudID: fmt.Sprintf("%s/%d", p.id, m.SequenceNumber), Checkpoint: next,
	}
	var err error
	if len(m.Body) == 0 {
		err = p.sink.Refuse(ctx, r, 0, errNoRecord, nil)
	} else {
		err = p.put(ctx, p.sink, p.label, r, m.Body)
	}
	if err != nil {
		return err
	}
	p.at, p.placed = next, true
	return nil
}
