// Package source is what the places that audit records come from have in
// common. Each is a folder beside this one: webhook, file, eks, gke, aks.
package source

import (
	"context"
	"fmt"
	"strings"
	"time"

	"picket/services/auditlog-ingest/record"
)

// Source is one place that audit records come from: a web hook's port, a log
// file, a log group, a subscription, one partition of an event hub, one
// container of blobs. Records of one source are published in their order.
type Source interface {
	// Name is unique among the sources of an ingester: it becomes the column
	// node and a part of the subject.
	Name() string
	// Kind becomes the column audit_source.
	Kind() string
	// Ready returns nil while the source can take records.
	Ready() error
	// Run takes records and puts them into the sink until ctx ends. It
	// returns an error only for what no retry mends.
	Run(ctx context.Context, sink Sink) error
}

// Provider is a place that several ingesters may read, but one at a time for
// each of its sources: a log group, a subscription, a partition of an event
// hub. What webhook and file read is on this host and no Provider.
type Provider interface {
	// Name is unique among the providers of an ingester.
	Name() string
	// Sources asks the cloud what there is to read now. It is called at the
	// start and again every few minutes; the same place has the same Name each
	// time. Run of a returned Source is called only by the ingester that owns
	// it, and its ctx ends when another may take it over. A Source is Run at
	// most once.
	Sources(ctx context.Context) ([]Source, error)
}

// Record is one audit record as it was found.
type Record struct {
	record.Item
	// Cluster is whose record it is, if the source has several clusters'
	// records; empty: the source's own.
	Cluster string
	// CloudID is the cloud's own id of the record, if it gives one: the column
	// audit_cloud_id.
	CloudID string
	// Arrived is when the cloud had the record, if it says so: lag behind it
	// is ours, from the event to it the cloud's.
	Arrived time.Time
	// From and At say where it was found, for people: a file and the offset
	// in it, an address and the number in its list.
	From string
	At   int64
	// Checkpoint, if not nil, is where the source would go on after this
	// record, as a value for encoding/json that does not change any more. It
	// is written down once the record and all before it are safe.
	Checkpoint any
}

// Sink takes a source's records. Its methods may be called by several
// goroutines of a source; what each of them hands over stays in order. They
// wait while batches wait for the spool, which is how back-pressure reaches
// the source, and return no error but ctx's.
//
// A done function, if not nil, is called once, from any goroutine, when what
// it came with, and all that the source handed over before, is safe from the
// death of the process: spooled, dead-lettered, or known as a duplicate of
// what is. If the process stops before that it is never called, and the source
// gets the records again from where they came.
type Sink interface {
	// Put takes a record, and sets aside what turns out not to be one. It
	// keeps nothing of r.Text.
	Put(ctx context.Context, r Record, done func()) error
	// Refuse sets aside what is no record: r.Text, of length bytes if that is
	// only its beginning, goes to the dead-letter stream, and one event is
	// counted as lost. cause is permanent (package fault), with a reason of
	// package record.
	Refuse(ctx context.Context, r Record, length int64, cause error, done func()) error
	// Mark takes a checkpoint alone: there was nothing to take before it.
	Mark(ctx context.Context, checkpoint any) error
	// Checkpoint reads the newest checkpoint into v and reports whether there
	// is one. Call it before all else.
	Checkpoint(v any) (bool, error)
	// Gap counts and logs that records were gone before they could be read,
	// nobody knows how many; attrs are slog key-value pairs that say which.
	Gap(message string, attrs ...any)
}

// ValidName checks a source's name, which becomes a part of a subject and of a
// file's name; key is its YAML key.
func ValidName(key, name string) error {
	if name == "" || len(name) > 128 {
		return fmt.Errorf("%s is %q: give a name of 1 to 128 characters", key, name)
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-_.", c) {
			return fmt.Errorf("%s is %q: use letters, digits and any of - _ . in it", key, name)
		}
	}
	return nil
}
