package gke

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"picket/internal/fault"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

// MaxEntry is the size in bytes above which a log entry is refused unread: the
// most that a message of Pub/Sub holds. Google keeps audit entries below
// 512 KiB (https://cloud.google.com/logging/quotas).
const MaxEntry = 10 << 20

// Records reads one LogEntry of Cloud Logging, as JSON, and calls yield with
// the audit event that is rebuilt from it. It calls yield not at all for an
// entry that is not of a Kubernetes API server. Format:
// https://cloud.google.com/logging/docs/reference/v2/rest/v2/LogEntry, with a
// protoPayload of
// https://cloud.google.com/logging/docs/reference/audit/auditlog/rest/Shared.Types/AuditLog.
//
// The record's Cluster is <project>_<location>_<cluster>, empty if the entry
// does not say it all, and its text is valid until yield returns. An error is
// permanent, with a reason of package record, or yield's own. Records is safe
// for concurrent use.
func Records(line []byte, yield func(source.Record) error) error {
	e := take()
	defer e.free()
	if err := e.read(line); err != nil || e.other != "" {
		return err
	}
	return yield(e.record())
}

var entries = sync.Pool{New: func() any { return new(entry) }}

func take() *entry { return entries.Get().(*entry) }

// free gives an entry back, unless it holds much memory.
func (e *entry) free() {
	if cap(e.text)+cap(e.payload.request.text)+cap(e.payload.response.text) <= 1<<20 {
		e.reset()
		entries.Put(e)
	}
}

// entry is one log entry, read. Its strings are parts of one copy of the line.
type entry struct {
	insertID, logName, timestamp, received string
	resource                               struct{ project, location, cluster string }
	labels                                 []label
	operation                              struct {
		id, producer string
		first, last  bool
		seen         bool
	}
	payload struct {
		seen                      bool
		kind                      string
		service, method, resource string
		principal, selector       string
		subject, key              string // principalSubject, serviceAccountKeyName
		delegation                string // JSON
		granted                   string // of the first authorizationInfo: true, false or empty
		callerIP, agent, at       string
		code                      int64
		hasCode                   bool
		message                   string
		request, response         body
	}
	other string // why it is no event of Kubernetes
	names names
	text  []byte // the event
}

type label struct{ key, value string }

// body is a request or response object without its @type.
type body struct {
	seen   bool
	kind   string // @type
	text   []byte
	code   int64 // of a Status
	coded  bool
	reason string
}

func (e *entry) reset() {
	labels, request, response := e.labels[:0], e.payload.request.text[:0], e.payload.response.text[:0]
	clear(labels[:cap(labels)])
	*e = entry{labels: labels, text: e.text[:0]}
	e.payload.request.text, e.payload.response.text = request, response
}

// Reasons why an entry is no event of Kubernetes: metric labels.
const (
	otherService = "other_service" // audit of another service of Google
	otherPayload = "no_audit"      // no audit entry at all
)

// read fills e and its text from a log entry.
func (e *entry) read(line []byte) error {
	e.reset()
	if len(line) > MaxEntry {
		return fault.Permanent(record.ReasonTooLarge, fmt.Errorf("log entry has %d bytes, more than %d", len(line), MaxEntry))
	}
	t := record.NewReader(string(line))
	err := e.parse(&t)
	if err == nil {
		err = t.End()
	}
	switch {
	case err == nil:
	case fault.IsPermanent(err):
		return err
	case errors.Is(err, record.ErrType):
		return fault.Permanent(record.ReasonType, err)
	default:
		return fault.Permanent(record.ReasonSyntax, err)
	}
	p := &e.payload
	switch {
	case !p.seen || p.kind != "" && !strings.HasSuffix(p.kind, "google.cloud.audit.AuditLog"):
		e.other = otherPayload
		return nil
	case p.service != "k8s.io" && (p.service != "" || !strings.HasPrefix(p.method, "io.k8s.")):
		e.other = otherService
		return nil
	}
	return e.rebuild()
}

// text reads a string, which may stand in its object once.
func text(t *record.Reader, key string, into *string) error {
	if *into != "" {
		return twice(key)
	}
	return t.Text(into)
}

func twice(key string) error {
	return fault.Permanent(record.ReasonTwice, fmt.Errorf("%s stands twice in the log entry", key))
}

func flag(t *record.Reader, into *bool) error {
	s, err := t.Skip()
	if err == nil && s != "true" && s != "false" && s != "null" {
		err = fmt.Errorf("%w: expected true or false before byte %d", record.ErrType, t.Pos)
	}
	*into = *into || s == "true"
	return err
}

func skip(t *record.Reader) error {
	_, err := t.Skip()
	return err
}

func (e *entry) parse(t *record.Reader) error {
	if t.Null() {
		return fmt.Errorf("%w: a log entry is an object", record.ErrType)
	}
	resource := false
	return t.Object(func(key string, _ int) error {
		switch key {
		case "insertId":
			return text(t, key, &e.insertID)
		case "logName":
			return text(t, key, &e.logName)
		case "timestamp":
			return text(t, key, &e.timestamp)
		case "receiveTimestamp":
			return text(t, key, &e.received)
		case "resource":
			if resource {
				return twice(key)
			}
			resource = true
			return e.parseResource(t)
		case "labels":
			if len(e.labels) > 0 {
				return twice(key)
			}
			return t.Object(func(key string, _ int) error {
				var v string
				err := t.Text(&v)
				e.labels = append(e.labels, label{key, v})
				return err
			})
		case "operation":
			if e.operation.seen {
				return twice(key)
			}
			e.operation.seen = true
			return t.Object(func(key string, _ int) error {
				switch key {
				case "id":
					return text(t, key, &e.operation.id)
				case "producer":
					return text(t, key, &e.operation.producer)
				case "first":
					return flag(t, &e.operation.first)
				case "last":
					return flag(t, &e.operation.last)
				}
				return skip(t)
			})
		case "protoPayload":
			if e.payload.seen {
				return twice(key)
			}
			e.payload.seen = true
			return e.parsePayload(t)
		}
		return skip(t)
	})
}

func (e *entry) parseResource(t *record.Reader) error {
	return t.Object(func(key string, _ int) error {
		if key != "labels" {
			return skip(t)
		}
		return t.Object(func(key string, _ int) error {
			switch key {
			case "project_id":
				return text(t, key, &e.resource.project)
			case "location":
				return text(t, key, &e.resource.location)
			case "cluster_name":
				return text(t, key, &e.resource.cluster)
			}
			return skip(t)
		})
	})
}

func (e *entry) parsePayload(t *record.Reader) error {
	p := &e.payload
	return t.Object(func(key string, _ int) error {
		switch key {
		case "@type":
			return text(t, key, &p.kind)
		case "serviceName":
			return text(t, key, &p.service)
		case "methodName":
			return text(t, key, &p.method)
		case "resourceName":
			return text(t, key, &p.resource)
		case "authenticationInfo":
			return t.Object(func(key string, _ int) error {
				switch key {
				case "principalEmail":
					return text(t, key, &p.principal)
				case "authoritySelector":
					return text(t, key, &p.selector)
				case "principalSubject":
					return text(t, key, &p.subject)
				case "serviceAccountKeyName":
					return text(t, key, &p.key)
				case "serviceAccountDelegationInfo":
					if p.delegation != "" {
						return twice(key)
					}
					var err error
					p.delegation, err = t.Skip()
					return err
				}
				return skip(t)
			})
		case "authorizationInfo":
			return t.Elements(func() error {
				return t.Object(func(key string, _ int) error {
					if key != "granted" || p.granted != "" {
						return skip(t)
					}
					var yes bool
					err := flag(t, &yes)
					p.granted = "false"
					if yes {
						p.granted = "true"
					}
					return err
				})
			})
		case "requestMetadata":
			return t.Object(func(key string, _ int) error {
				switch key {
				case "callerIp", "callerIP": // the second is not Google's, but stands in exports
					return text(t, key, &p.callerIP)
				case "callerSuppliedUserAgent":
					return text(t, key, &p.agent)
				case "requestAttributes":
					return t.Object(func(key string, _ int) error {
						if key == "time" {
							return text(t, key, &p.at)
						}
						return skip(t)
					})
				}
				return skip(t)
			})
		case "status":
			return t.Object(func(key string, _ int) error {
				switch key {
				case "code":
					if p.hasCode {
						return twice(key)
					}
					return t.Integer(&p.code, &p.hasCode)
				case "message":
					return text(t, key, &p.message)
				}
				return skip(t)
			})
		case "request":
			return p.request.parse(t, key)
		case "response":
			return p.response.parse(t, key)
		}
		return skip(t)
	})
}

// parse reads an object of the API. What it is a part of reads the rest.
func (b *body) parse(t *record.Reader, key string) error {
	if b.seen {
		return twice(key)
	}
	b.seen = true
	if t.Null() {
		return nil
	}
	b.text = append(b.text, '{')
	err := t.Object(func(key string, start int) error {
		switch key {
		case "@type":
			return t.Text(&b.kind)
		case "code", "reason":
			// Those of a Status; another object may have members of these names.
			ahead := *t
			if key == "reason" {
				_ = ahead.Text(&b.reason)
			} else {
				_ = ahead.Integer(&b.code, &b.coded)
			}
		}
		if err := skip(t); err != nil {
			return err
		}
		if len(b.text) > 1 {
			b.text = append(b.text, ',')
		}
		b.text = append(b.text, t.Slice(start, t.Pos)...)
		return nil
	})
	b.text = append(b.text, '}')
	return err
}

// empty reports that there is no object. Google leaves it out where the audit
// policy's level has none.
func (b *body) empty() bool { return len(b.text) <= 2 }

// status reports whether the object is a Status of the API.
func (b *body) status() bool {
	return b.kind == "core.k8s.io/v1.Status" || b.kind == "" && b.coded
}

// rebuild writes the audit event.
func (e *entry) rebuild() error {
	p := &e.payload
	id := e.insertID
	if e.operation.id != "" && (e.operation.producer == "k8s.io" || e.operation.producer == "") {
		id = e.operation.id
	}
	if id == "" {
		return fault.Permanent(record.ReasonAuditID, errors.New("log entry has neither operation.id nor insertId"))
	}
	at := e.timestamp
	for _, other := range []string{p.at, e.received} {
		if at == "" {
			at = other
		}
	}
	if _, ok := parseTime(at); !ok {
		return fault.Permanent(record.ReasonTime, fmt.Errorf("neither timestamp %.64q nor receiveTimestamp %.64q is a time", e.timestamp, e.received))
	}
	e.names = parseNames(p.method, p.resource)
	if e.names.verb == "" {
		return fault.Permanent(record.ReasonKind, fmt.Errorf("methodName %.64q has no verb", p.method))
	}
	decision := e.decision()
	code, reason := e.status(decision)
	stage := e.stage(code)

	b := e.text
	b = append(b, `{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"`...)
	switch {
	case !p.response.empty():
		b = append(b, "RequestResponse"...)
	case !p.request.empty():
		b = append(b, "Request"...)
	default:
		b = append(b, "Metadata"...)
	}
	b = append(b, '"')
	b = member(b, "auditID", id)
	b = member(b, "stage", stage)
	b = member(b, "requestURI", e.names.uri)
	b = member(b, "verb", e.names.verb)
	b = e.users(b)
	if p.callerIP != "" {
		b = append(b, `,"sourceIPs":[`...)
		b = record.AppendString(b, p.callerIP)
		b = append(b, ']')
	}
	b = member(b, "userAgent", p.agent)
	if n := &e.names; n.resource != "" {
		b = append(b, `,"objectRef":{"resource":`...)
		b = record.AppendString(b, n.resource)
		b = member(b, "namespace", n.namespace)
		b = member(b, "name", n.name)
		b = member(b, "apiGroup", n.group)
		b = member(b, "apiVersion", n.version)
		b = member(b, "subresource", n.subresource)
		b = append(b, '}')
	}
	b = fmt.Appendf(b, `,"responseStatus":{"metadata":{},"code":%d`, code)
	b = member(b, "reason", reason)
	b = member(b, "message", p.message)
	b = append(b, '}')
	if !p.request.empty() {
		b = append(append(b, `,"requestObject":`...), p.request.text...)
	}
	if !p.response.empty() {
		b = append(append(b, `,"responseObject":`...), p.response.text...)
	}
	received := p.at
	if received == "" {
		received = at
	}
	b = member(b, "requestReceivedTimestamp", received)
	b = member(b, "stageTimestamp", at)
	b = append(b, `,"annotations":{`...)
	b = append(b, `"authorization.k8s.io/decision":`...)
	b = record.AppendString(b, decision)
	for _, l := range e.labels {
		if l.key == decisionLabel {
			continue
		}
		b = append(b, ',')
		b = record.AppendString(b, l.key)
		b = append(b, ':')
		b = record.AppendString(b, l.value)
	}
	e.text = append(b, '}', '}')
	return nil
}

// member appends a member whose value is a string, unless that is empty.
func member(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return record.AppendString(b, value)
}

const decisionLabel = "authorization.k8s.io/decision"

// decision is the label of that name, or what authorizationInfo says.
func (e *entry) decision() string {
	for _, l := range e.labels {
		if l.key == decisionLabel {
			return l.value
		}
	}
	switch e.payload.granted {
	case "true":
		return "allow"
	case "false":
		return "forbid"
	}
	return ""
}

// users appends the caller and whom it impersonates.
func (e *entry) users(b []byte) []byte {
	p := &e.payload
	// Whom a request impersonates stands as the selector of an authority.
	name, as := p.principal, p.selector
	if name == "" {
		name, as = p.selector, ""
	}
	subject := p.subject
	if name == "" {
		name, subject = subject, ""
	}
	delegation := p.delegation
	if delegation == "null" || delegation == "[]" {
		delegation = ""
	}
	b = user(append(b, `,"user":{`...), name)
	first := true
	for _, x := range [...]struct{ key, value string }{
		{"cloud.google.com/principal-subject", subject}, {"cloud.google.com/service-account-key", p.key}, {"cloud.google.com/delegation", delegation},
	} {
		if x.value == "" {
			continue
		}
		if first {
			if name != "" {
				b = append(b, ',')
			}
			b = append(b, `"extra":{`...)
		} else {
			b = append(b, ',')
		}
		first = false
		b = record.AppendString(b, x.key)
		b = record.AppendString(append(b, ":["...), x.value)
		b = append(b, ']')
	}
	if !first {
		b = append(b, '}')
	}
	b = append(b, '}')
	if as != "" && as != name {
		b = append(user(append(b, `,"impersonatedUser":{`...), as), '}')
	}
	return b
}

// user appends the members of a user. Google does not keep groups; those that
// every API server gives to service accounts and to the anonymous user are added.
func user(b []byte, name string) []byte {
	if name == "" {
		return b
	}
	b = record.AppendString(append(b, `"username":`...), name)
	if rest, ok := strings.CutPrefix(name, "system:serviceaccount:"); ok {
		namespace, _, _ := strings.Cut(rest, ":")
		b = record.AppendString(append(b, `,"groups":["system:serviceaccounts",`...), "system:serviceaccounts:"+namespace)
		return append(b, `,"system:authenticated"]`...)
	}
	if name == "system:anonymous" {
		return append(b, `,"groups":["system:unauthenticated"]`...)
	}
	return b
}

// stage tells by Cloud Logging's operation where the request is: an entry that
// begins an operation and does not end it is of a request that goes on. A
// session that was let in is told of when it begins, whatever else the entry says.
func (e *entry) stage(code int) string {
	o := &e.operation
	begun := o.first && !o.last || e.names.session() && code < 300 && (o.first || !o.last)
	if begun {
		return "ResponseStarted"
	}
	return "ResponseComplete"
}

// status returns the HTTP status and the reason of the answer. The object that
// was answered says it if it is a Status; otherwise it is inferred from the
// gRPC code that Google made of it.
func (e *entry) status(decision string) (code int, reason string) {
	p := &e.payload
	if r := &p.response; r.status() && r.coded && r.code >= 100 && r.code < 600 {
		return int(r.code), r.reason
	}
	grpc := p.code
	if !p.hasCode && decision == "forbid" {
		grpc = 7
	}
	// Older entries have UNKNOWN for 101 Switching Protocols.
	if e.names.session() && (grpc == 0 || grpc == 2 && decision == "allow") {
		return 101, ""
	}
	if grpc == 0 {
		if e.names.verb == "create" {
			return 201, ""
		}
		return 200, ""
	}
	if grpc < 0 || grpc >= int64(len(httpStatus)) {
		return 500, ""
	}
	return httpStatus[grpc].code, httpStatus[grpc].reason
}

// httpStatus is the HTTP status of each google.rpc.Code
// (https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto),
// with the reason that Kubernetes gives to it.
var httpStatus = [17]struct {
	code   int
	reason string
}{
	{200, ""}, {499, ""}, {500, "InternalError"}, {400, "BadRequest"}, {504, "Timeout"}, {404, "NotFound"}, {409, "AlreadyExists"},
	{403, "Forbidden"}, {429, "TooManyRequests"}, {400, "BadRequest"}, {409, "Conflict"}, {400, "BadRequest"}, {501, ""},
	{500, "InternalError"}, {503, "ServiceUnavailable"}, {500, "InternalError"}, {401, "Unauthorized"},
}

// cluster returns <project>_<location>_<cluster>, or nothing if the entry does
// not say it all. Google allows no underscore in any of them.
func (e *entry) cluster() string {
	r := &e.resource
	if r.project == "" || r.location == "" || r.cluster == "" {
		return ""
	}
	return r.project + "_" + r.location + "_" + r.cluster
}

func (e *entry) record() source.Record {
	r := source.Record{Item: record.Item{Text: e.text}, Cluster: e.cluster(), CloudID: e.insertID, From: e.logName}
	r.Arrived, _ = parseTime(e.received)
	return r
}

// parseTime reads RFC 3339, or the same with a space in place of the T and UTC
// understood, as some exports have it.
func parseTime(s string) (time.Time, bool) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		if t, err = time.Parse("2006-01-02 15:04:05", s); err != nil {
			return t, false
		}
	}
	return t, true
}
