package rig

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/nats-io/nats.go/jetstream"

	"picket/internal/batch"
	"picket/schemas"
)

// Account is what became of the events of a sensor's life, by class.
type Account struct {
	Seen, Published, Delivered, Lost map[string]uint64

	Reasons map[Reason]uint64 // why events were lost
	Missed  uint64            // runs of a program that the kernel left out
}

// Reason is a class and why events of it were lost.
type Reason struct{ Class, Reason string }

// NewAccount returns an empty account.
func NewAccount() *Account {
	return &Account{Seen: map[string]uint64{}, Published: map[string]uint64{}, Delivered: map[string]uint64{}, Lost: map[string]uint64{}, Reasons: map[Reason]uint64{}}
}

// Check fails when an event is neither in JetStream nor counted as lost.
func (a *Account) Check() error {
	if len(a.Seen) == 0 {
		return errors.New("the sensor did not report what the kernel has seen")
	}
	var errs []error
	for _, class := range slices.Sorted(maps.Keys(a.Seen)) {
		seen, published, delivered, lost := a.Seen[class], a.Published[class], a.Delivered[class], a.Lost[class]
		if seen != published+lost || published != delivered {
			errs = append(errs, fmt.Errorf("class %s does not balance: the kernel saw %d events; %d are published (%d of them in JetStream) and %d counted as lost", class, seen, published, delivered, lost))
		}
	}
	return errors.Join(errs...)
}

// Losses returns the events lost and counted, of all classes.
func (a *Account) Losses() uint64 {
	n := a.Missed
	for _, lost := range a.Lost {
		n += lost
	}
	return n
}

// Read takes in a report of the sensor: a row of it has a running total.
func (a *Account) Read(report *batch.Batch) {
	for row := range report.Rows() {
		class, total := report.Str(schemas.HealthClass, row), report.Uint(schemas.HealthTotal, row)
		reason := report.Str(schemas.HealthReason, row)
		if report.Str(schemas.Action, row) == "loss" {
			n := report.Uint(schemas.HealthCount, row) // since the report before
			a.Lost[class] += n
			a.Reasons[Reason{class, reason}] += n
			continue
		}
		switch reason {
		case "kernel_seen":
			a.Seen[class] = total
		case "published":
			a.Published[class] = total
		case "kernel_missed":
			a.Missed = total
		}
	}
}

// Close stops the sensor, draws its account and checks it: what it reported of
// itself, the last report having been made when its programs were detached,
// against the rows that are in JetStream, which are taken out. Its metrics
// would not do: other processes of the machine go on making events while they
// are read.
func (s *Sensor) Close(ctx context.Context) (*Account, error) {
	if err := s.Stop(); err != nil {
		return nil, err
	}
	raw, err := s.nats.Admin.JS.Stream(ctx, schemas.StreamRaw)
	if err != nil {
		return nil, err
	}
	a := NewAccount()
	subject := schemas.RawSubject(Cluster, s.Node, schemas.Health)
	for seq := uint64(1); ; {
		m, err := raw.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading the sensor's reports: %w", err)
		}
		b, err := batch.Decode(m.Data)
		if err != nil {
			return nil, fmt.Errorf("a report of the sensor: %w", err)
		}
		a.Read(b)
		seq = m.Sequence + 1
	}
	for class := range a.Seen {
		c, err := schemas.ParseClass(class)
		if err != nil {
			return nil, err
		}
		m, err := raw.GetLastMsgForSubject(ctx, schemas.RawSubject(Cluster, s.Node, c))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if a.Delivered[class], err = strconv.ParseUint(m.Header.Get(schemas.HeaderCumulative), 10, 64); err != nil {
			return nil, err
		}
	}
	return a, errors.Join(a.Check(), raw.Purge(ctx))
}
