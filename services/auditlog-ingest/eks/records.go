package eks

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"time"

	"picket/internal/fault"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

// streamPrefix is what names of the audit log's streams begin with; the log
// group has those of other components too (EKS user guide, "Send control plane
// logs to CloudWatch Logs").
const streamPrefix = "kube-apiserver-audit-"

// logged is one log event of CloudWatch Logs.
type logged struct {
	id, stream, message string
	time, ingested      int64 // milliseconds since the epoch, 0: not said
}

// record returns the audit record that a log event carries.
func (l logged) record() source.Record {
	r := source.Record{Item: record.Item{Text: []byte(l.message)}, CloudID: l.id, From: l.stream, At: l.time}
	if l.ingested > 0 {
		r.Arrived = time.UnixMilli(l.ingested)
	}
	return r
}

// Records calls yield for each audit record in one line of what CloudWatch Logs
// stores or exports:
//
//   - the audit record alone, as it stands in `message`;
//   - a log event of `aws logs filter-log-events` (FilteredLogEvent), or its
//     whole answer, with `events`, on one line;
//   - what a subscription delivers to Lambda, Firehose or Kinesis, decompressed
//     (`messageType`, `logEvents`);
//   - a line of an export to S3: the time, a blank, and the record.
//
// Log events of other streams than the audit log's, and control messages, are
// skipped: nothing is yielded. Errors are yield's, or permanent with a reason
// of package record. Whether what is yielded is an audit record is for its
// reader to judge. What is yielded is valid until yield returns. Memory is a
// few times the line's.
func Records(line []byte, yield func(source.Record) error) error {
	line = bytes.TrimSpace(line)
	if at, rest, ok := bytes.Cut(line, []byte(" ")); ok && len(at) > 0 && at[0]-'0' <= 9 {
		if t, err := time.Parse(time.RFC3339Nano, string(at)); err == nil {
			return yield(source.Record{Item: record.Item{Text: bytes.TrimSpace(rest)}, At: t.UnixMilli()})
		}
	}
	var w wrapper
	err := w.read(string(line))
	switch {
	case fault.IsPermanent(err):
		return err
	case err != nil, !w.wraps:
		// The record itself, however broken.
		return yield(source.Record{Item: record.Item{Text: line}})
	case w.kind != "" && w.kind != "DATA_MESSAGE":
		return nil // a subscription's CONTROL_MESSAGE
	}
	for _, e := range w.events {
		if e.stream == "" {
			e.stream = w.stream
		}
		if e.stream != "" && !strings.HasPrefix(e.stream, streamPrefix) {
			continue
		}
		if err := yield(e.record()); err != nil {
			return err
		}
	}
	return nil
}

// wrapper is a line that carries log events.
type wrapper struct {
	wraps        bool
	kind, stream string // messageType and logStream
	events       []logged
}

// read reads a line. An error that is not permanent, or wraps false, means that
// the line is no such thing.
func (w *wrapper) read(line string) error {
	t := record.NewReader(line)
	var one logged
	seen := map[string]bool{}
	err := t.Members(func(key string, _ int) error {
		switch key {
		case "messageType":
			return once(seen, key, t.Text(&w.kind))
		case "logStream":
			return once(seen, key, t.Text(&w.stream))
		case "events", "logEvents":
			w.wraps = true
			return once(seen, key, t.Elements(func() error {
				var e logged
				if err := e.read(&t); err != nil {
					return err
				}
				w.events = append(w.events, e)
				return nil
			}))
		}
		return one.member(&t, key, seen)
	})
	if err == nil {
		err = t.End()
	}
	if err != nil {
		if w.wraps && !fault.IsPermanent(err) {
			reason := record.ReasonSyntax
			if errors.Is(err, record.ErrType) {
				reason = record.ReasonType
			}
			err = fault.Permanent(reason, fmt.Errorf("list of log events: %w", err))
		}
		return err
	}
	if !w.wraps && seen["message"] && !seen["auditID"] {
		w.wraps, w.events = true, []logged{one}
	}
	return nil
}

// once notes that a member was read, with err.
func once(seen map[string]bool, key string, err error) error {
	if err == nil && seen[key] {
		err = fault.Permanent(record.ReasonTwice, fmt.Errorf("%.64q stands twice in the log event", key))
	}
	seen[key] = true
	return err
}

// read reads one log event of a list.
func (l *logged) read(t *record.Reader) error {
	seen := map[string]bool{}
	return t.Object(func(key string, _ int) error { return l.member(t, key, seen) })
}

// member reads one member of a log event.
func (l *logged) member(t *record.Reader, key string, seen map[string]bool) error {
	var set bool
	switch key {
	case "eventId", "id":
		return once(seen, key, t.Text(&l.id))
	case "logStreamName":
		return once(seen, key, t.Text(&l.stream))
	case "message":
		return once(seen, key, t.Text(&l.message))
	case "timestamp":
		return once(seen, key, t.Integer(&l.time, &set))
	case "ingestionTime":
		return once(seen, key, t.Integer(&l.ingested, &set))
	}
	_, err := t.Skip()
	if key == "auditID" {
		seen[key] = true
	}
	return err
}
