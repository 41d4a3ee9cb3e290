package aks

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"picket/internal/fault"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

// Categories of an AKS cluster's diagnostic settings that hold audit records.
// The second is the first without get and list.
const (
	categoryAudit      = "kube-audit"
	categoryAuditAdmin = "kube-audit-admin"
)

// entry is one record of Azure Monitor, as diagnostic settings write it
// (https://learn.microsoft.com/azure/azure-monitor/platform/resource-logs-schema).
type entry struct {
	text     string // all of it
	resource string // resourceId as it is written
	cluster  string // whose it is, by aks.clusters
	audit    bool   // its category is one of the two
	log      []byte // the audit record in it
	// trimmed is the record in place of log, if Azure cut it off.
	trimmed *record.Trimmed
	err     error // why it is refused
}

// Records takes the audit records out of what diagnostic settings of AKS
// clusters write: one JSON object with the member records (the body of a
// message of an event hub), one record alone (a line of a blob), or an array
// of records (what people export). Records of other categories are left out: a
// line without any yields nothing and is no error. Cluster is the cluster's
// name in the record's resourceId, in lower case.
//
// What cannot be read is refused, and the records beside it are still yielded:
// the error is the first refusal, permanent, with a reason of package record,
// and says how many there were. An error of yield ends it and is returned as
// it is. What is yielded is valid until yield returns. Memory is a few times
// the line's length.
//
// AKS cuts properties.log after 16 KiB in the middle of the text
// (https://github.com/Azure/AKS/issues/4635). What is whole of such a record
// is kept, as of a record that Picket trims itself.
func Records(line []byte, yield func(source.Record) error) error {
	var refused error
	n := 0
	err := entries(string(line), func(e entry) error {
		switch {
		case e.err != nil:
			if n++; refused == nil {
				refused = e.err
			}
			return nil
		case !e.audit:
			return nil
		}
		return yield(source.Record{Item: record.Item{Text: e.log, Trimmed: e.trimmed}, Cluster: clusterName(e.resource)})
	})
	switch {
	case err != nil:
		return err
	case n > 1:
		return fault.Permanent(fault.Reason(refused), fmt.Errorf("%d records of the line refused, the first: %w", n, refused))
	}
	return refused
}

// clusterName returns the last part of a resourceId, in lower case.
func clusterName(resource string) string {
	return strings.ToLower(resource[strings.LastIndexByte(resource, '/')+1:])
}

func refuse(reason, format string, args ...any) error {
	return fault.Permanent(reason, fmt.Errorf(format, args...))
}

// judge gives an error of the reader its reason.
func judge(err error) error {
	switch {
	case err == nil, fault.IsPermanent(err):
		return err
	case errors.Is(err, record.ErrType):
		return fault.Permanent(record.ReasonType, err)
	}
	return fault.Permanent(record.ReasonSyntax, err)
}

// entries calls each with every record of a line. Its error is each's.
func entries(line string, each func(entry) error) error {
	line = strings.TrimPrefix(line, "\ufeff") // a byte order mark
	r := record.NewReader(line)
	switch r.Peek() {
	case '[':
		return elements(line, r.Pos, true, each)
	case '{':
		at, err := find(&r, "records")
		if err == nil {
			err = r.End()
		}
		if err != nil {
			return each(entry{text: line, err: judge(err)})
		}
		if at < 0 {
			return each(parse(line))
		}
		return elements(line, at, false, each)
	}
	return each(entry{text: line, err: refuse(record.ReasonSyntax, "%w: expected an object", record.ErrSyntax)})
}

// find reads an object to its end and returns the offset of the value of the
// named member, -1 if there is none. Values are moved over without a look at
// them.
func find(r *record.Reader, name string) (at int, err error) {
	at = -1
	err = r.Members(func(key string, _ int) error {
		r.Peek()
		if key == name {
			if at >= 0 {
				return refuse(record.ReasonTwice, "%s stands twice in the line", name)
			}
			at = r.Pos
		}
		return pass(r)
	})
	return at, err
}

// elements calls each with every element of the array that begins at start.
// Where one element ends is seen by brackets and quotes alone, so that what is
// wrong with one does not concern the next.
func elements(line string, start int, last bool, each func(entry) error) error {
	r := record.NewReader(line)
	r.Pos = start
	if r.Peek() != '[' {
		return each(entry{text: line, err: refuse(record.ReasonType, "%w: records is not an array", record.ErrType)})
	}
	var stop error // of each: no fault of the line
	err := r.Elements(func() error {
		r.Peek()
		begin := r.Pos
		if err := pass(&r); err != nil {
			return err
		}
		stop = each(parse(line[begin:r.Pos]))
		return stop
	})
	if stop != nil {
		return stop
	}
	if err == nil && last {
		err = r.End()
	}
	if err != nil {
		return each(entry{text: line, err: judge(err)})
	}
	return nil
}

// pass moves a reader over a value of any depth, by brackets and quotes.
func pass(r *record.Reader) error {
	r.Peek()
	rest := r.Slice(r.Pos, r.Len())
	n := extent(rest)
	if n <= 0 {
		return fmt.Errorf("%w: value without an end at byte %d", record.ErrSyntax, r.Pos)
	}
	r.Pos += n
	return nil
}

// extent returns the length of the value that s begins with, 0 if there is
// none, -1 if it has no end.
func extent(s string) int {
	depth, quoted := 0, false
	for i := 0; i < len(s); i++ {
		c := s[i]
		if quoted {
			switch c {
			case '\\':
				i++
			case '"':
				if quoted = false; depth == 0 {
					return i + 1
				}
			}
			continue
		}
		switch c {
		case '"':
			quoted = true
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
			if depth < 0 {
				return i
			}
		case ',', ':', ' ', '\n', '\r', '\t':
			if depth == 0 {
				return i
			}
		}
	}
	if depth == 0 && !quoted {
		return len(s)
	}
	return -1
}

// parse reads one record of Azure Monitor.
func parse(text string) entry {
	e := entry{text: text}
	var category, when, properties string
	var seen struct{ category, resource, time, properties bool }
	once := func(key string, seen *bool) error {
		if *seen {
			return refuse(record.ReasonTwice, "%s stands twice in the record", key)
		}
		*seen = true
		return nil
	}
	r := record.NewReader(text)
	if r.Peek() != '{' {
		e.err = refuse(record.ReasonType, "%w: a record is not an object", record.ErrType)
		return e
	}
	err := r.Members(func(key string, _ int) error {
		switch key {
		case "category":
			return errors.Join(once(key, &seen.category), r.Text(&category))
		case "resourceId":
			return errors.Join(once(key, &seen.resource), r.Text(&e.resource))
		case "time":
			return errors.Join(once(key, &seen.time), r.Text(&when))
		case "properties":
			r.Peek()
			start := r.Pos
			err := errors.Join(once(key, &seen.properties), pass(&r))
			properties = r.Slice(start, r.Pos)
			return err
		}
		return pass(&r)
	})
	if err == nil {
		err = r.End()
	}
	if err == nil && (category == categoryAudit || category == categoryAuditAdmin) {
		e.audit = true
		err = e.readLog(properties, when)
	}
	e.err = judge(err)
	return e
}

// readLog takes the audit record out of a record's properties. It is a string,
// or in what some exports write an object.
func (e *entry) readLog(properties, when string) error {
	r := record.NewReader(properties)
	if r.Peek() != '{' {
		return refuse(record.ReasonType, "%w: properties is not an object", record.ErrType)
	}
	at, err := find(&r, "log")
	if err != nil {
		return err
	}
	if at < 0 {
		return refuse(record.ReasonType, "%w: properties has no log", record.ErrType)
	}
	r = record.NewReader(properties)
	r.Pos = at
	switch r.Peek() {
	case '{':
		if err := pass(&r); err != nil {
			return err
		}
		e.log = []byte(r.Slice(at, r.Pos))
		return nil
	case '"':
		var log string
		if err := r.Text(&log); err != nil {
			return err
		}
		log = strings.TrimSpace(log)
		if extent(log) < 0 {
			return e.mend(log, when)
		}
		e.log = []byte(log)
		return nil
	}
	return refuse(record.ReasonType, "%w: properties.log is neither a string nor an object", record.ErrType)
}

// mend takes the members that are whole out of a record whose end is cut off.
// The API server writes its two times last: if they are lost, when, the time
// that Azure gives the record, stands for stageTimestamp.
func (e *entry) mend(log, when string) error {
	r := record.NewReader(log)
	end, timed := 0, false
	cause := r.Members(func(key string, _ int) error {
		if _, err := r.Skip(); err != nil {
			return err
		}
		end = r.Pos
		timed = timed || key == "stageTimestamp" || key == "requestReceivedTimestamp"
		return nil
	})
	if end == 0 {
		return fmt.Errorf("properties.log is cut off: %w", cause)
	}
	var b bytes.Buffer
	b.WriteString(log[:end])
	if !timed && when != "" && !strings.ContainsAny(when, `"\`) {
		fmt.Fprintf(&b, `,"stageTimestamp":"%s"`, when)
	}
	b.WriteByte('}')
	t, err := record.Trim(bytes.NewReader(b.Bytes()))
	if err != nil {
		return fmt.Errorf("properties.log is cut off: %w", err)
	}
	// The length of the whole is not known any more; this is at least it.
	t.Length = int64(len(log))
	e.trimmed = t
	return nil
}
