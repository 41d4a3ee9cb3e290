package auditlogingest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"picket/internal/batch"
	"picket/internal/fault"
	"picket/schemas"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

// podUIDKey is the key of user.extra under which the API server notes the pod
// whose token made the call.
const podUIDKey = "authentication.kubernetes.io/pod-uid"

// maxReason bounds audit_authorization_reason. The annotation of the same
// text stays whole.
const maxReason = 4 << 10

// maxCloudID bounds audit_cloud_id; Cloud Logging's insertId and the event ids
// of CloudWatch and Event Hubs have less than 128 bytes.
const maxCloudID = 512

// Normalizer turns the text of audit records into rows of class audit. It
// needs no connection of any kind and is safe for concurrent use, each Append
// with its own builder.
type Normalizer struct {
	cluster, node, source string
	policy                *policy
	events                sync.Pool
}

// NewNormalizer returns a Normalizer for records of the named cluster. node
// becomes the column node (the name of the place they come from), kind the
// column audit_source ("webhook", "file", …).
func NewNormalizer(cluster, node, kind string, r RedactConfig) *Normalizer {
	return newNormalizer(cluster, node, kind, newPolicy(r))
}

func newNormalizer(cluster, node, kind string, p *policy) *Normalizer {
	n := &Normalizer{cluster: cluster, node: node, source: kind, policy: p}
	n.events.New = func() any {
		return &event{sum: sha256.New(), annotations: map[string]string{}, scrub: newScrubber(n.policy)}
	}
	return n
}

// Append adds one record, a JSON object of audit.k8s.io/v1 Event of any size,
// as a row observed now, without its secrets; one above record.MaxBytes is
// trimmed. It keeps nothing of text. An error is permanent, with a reason of
// package record, and leaves the builder as it was. Append does not look at
// Builder.Full: the caller does.
func (n *Normalizer) Append(b *batch.Builder, text []byte) error {
	return n.AppendRecord(b, source.Record{Item: record.Item{Text: text}})
}

// AppendRecord is Append for a record as a source finds it. Its Cluster is not
// looked at: a Normalizer is of one cluster.
func (n *Normalizer) AppendRecord(b *batch.Builder, r source.Record) error {
	e := n.event()
	defer n.release(e)
	if err := n.read(e, r.Item); err != nil {
		return err
	}
	e.row(b, n, time.Now(), r.CloudID)
	return nil
}

func (n *Normalizer) event() *event    { return n.events.Get().(*event) }
func (n *Normalizer) release(e *event) { n.events.Put(e) }

// user is a user of a record.
type user struct {
	name, uid, podUID, extra string
	groups                   []string
}

func (u *user) reset() { *u = user{groups: u.groups[:0]} }

// span is where a member stands in the record's text.
type span struct {
	start, value, end int
	bit               uint32
}

// event is one record, read. Its strings are parts of one copy of the text.
type event struct {
	id          [16]byte
	time        int64 // nanoseconds since the epoch
	trimmed     bool
	repeated    bool // another record had its cluster, auditID and stage
	kind        string
	apiVersion  string
	auditID     string
	level       string
	stage       string
	verb        string
	uri         string
	received    string
	staged      string
	agent       string
	user        user
	as          user
	ips         []string
	ref         struct{ resource, namespace, name, group, version, subresource string }
	code        int64
	hasCode     bool
	reason      string
	request     string
	response    string
	annotations map[string]string

	concerned uint32 // bits of the objects that may hold secrets
	changed   uint32 // bits of what redaction replaced
	space     bool   // the text has white space between tokens
	seen      uint32
	spans     []span
	scrub     *scrubber // nil: nothing is redacted
	sum       hash.Hash
	digest    [sha256.Size]byte
}

func (e *event) reset() {
	e.user.reset()
	e.as.reset()
	clear(e.annotations)
	*e = event{user: e.user, as: e.as, ips: e.ips[:0], annotations: e.annotations, spans: e.spans[:0], sum: e.sum, scrub: e.scrub}
}

// read fills e from a record. Errors are permanent.
func (n *Normalizer) read(e *event, r record.Item) error {
	err := n.readText(e, r)
	var reason string
	switch {
	case err == nil, fault.IsPermanent(err):
		return err
	case errors.Is(err, record.ErrType):
		reason = record.ReasonType
	default:
		reason = record.ReasonSyntax
	}
	return fault.Permanent(reason, err)
}

func (n *Normalizer) readText(e *event, r record.Item) error {
	limit := record.MaxBytes
	if r.Listed {
		limit -= len(record.ListedHeader)
	}
	small := r.Trimmed
	if small == nil && len(r.Text) <= limit {
		err := n.readWhole(e, r, limit)
		if !errors.Is(err, errTrim) && !errors.Is(err, record.ErrTooDeep) {
			return err
		}
	}
	if small == nil {
		var err error
		in := bytes.NewReader(r.Text)
		if small, err = record.Trim(in); err != nil {
			return fmt.Errorf("%w: %w", record.ErrSyntax, err)
		}
		rest := record.NewReader(string(r.Text[len(r.Text)-in.Len():]))
		if err := rest.End(); err != nil {
			return err
		}
	}
	if small.Twice != "" {
		return fault.Permanent(record.ReasonTwice, fmt.Errorf("%s stands twice in the record", small.Twice))
	}
	if err := e.parse(string(mend(small.Text))); err != nil {
		return err
	}
	if err := e.check(r.Listed); err != nil {
		return err
	}
	e.redact()
	e.trimmed, e.digest = true, small.Digest
	return e.identify(n)
}

// errTrim means that a record cannot be kept whole.
var errTrim = errors.New("record must be trimmed")

func (n *Normalizer) readWhole(e *event, r record.Item, limit int) error {
	text := r.Text
	if !utf8.Valid(text) {
		if text = mend(text); len(text) > limit {
			return errTrim
		}
	}
	if err := e.parse(string(text)); err != nil {
		return err
	}
	if e.space {
		var b bytes.Buffer
		if err := json.Compact(&b, text); err != nil {
			return fmt.Errorf("%w: %w", record.ErrSyntax, err)
		}
		text = b.Bytes()
		if err := e.parse(string(text)); err != nil {
			return err
		}
	}
	if err := e.check(r.Listed); err != nil {
		return err
	}
	e.redact()
	e.hash(text)
	return e.identify(n)
}

// mend replaces what is not UTF-8, which no column can hold. The API server
// writes a patch as the client sent it.
func mend(text []byte) []byte { return bytes.ToValidUTF8(text, []byte("\uFFFD")) }

// redact takes the secrets out of the event.
func (e *event) redact() {
	if e.scrub == nil {
		return
	}
	if uri := e.scrub.uri(e.uri); uri != e.uri {
		e.uri, e.changed = uri, e.changed|bitURI
	}
	secrets := e.ref.resource == "secrets"
	if e.request != "" && (secrets || e.concerned&bitRequest != 0 || strings.Contains(e.request, `"Secret`)) {
		e.request, e.changed = e.scrub.object(e.request, secrets), e.changed|bitRequest
	}
	if e.response != "" && (secrets || e.concerned&bitResponse != 0 || strings.Contains(e.response, `"Secret`)) {
		e.response, e.changed = e.scrub.object(e.response, secrets), e.changed|bitResponse
	}
}

// Bits of the members of a record, for event.seen.
const (
	bitURI      = 1 << 5
	bitRequest  = 1 << 13
	bitResponse = 1 << 14
)

var memberBits = map[string]uint32{
	"kind": 1 << 0, "apiVersion": 1 << 1, "level": 1 << 2, "auditID": 1 << 3, "stage": 1 << 4, "requestURI": bitURI, "verb": 1 << 6,
	"user": 1 << 7, "impersonatedUser": 1 << 8, "sourceIPs": 1 << 9, "userAgent": 1 << 10, "objectRef": 1 << 11, "responseStatus": 1 << 12,
	"requestObject": bitRequest, "responseObject": bitResponse, "requestReceivedTimestamp": 1 << 15, "stageTimestamp": 1 << 16, "annotations": 1 << 17,
}

// parse reads the record's text.
func (e *event) parse(s string) error {
	e.reset()
	t := record.NewReader(s)
	err := t.Members(func(key string, start int) error {
		bit := memberBits[key]
		if bit != 0 {
			if e.seen&bit != 0 {
				return fault.Permanent(record.ReasonTwice, fmt.Errorf("%s stands twice in the record", key))
			}
			e.seen |= bit
		}
		t.Peek()
		value := t.Pos
		if err := e.member(&t, key); err != nil {
			return err
		}
		if key != "kind" && key != "apiVersion" {
			e.spans = append(e.spans, span{start, value, t.Pos, bit})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := t.End(); err != nil {
		return err
	}
	e.space = t.Space
	return nil
}

func (e *event) member(t *record.Reader, key string) error {
	switch key {
	case "kind":
		return t.Text(&e.kind)
	case "apiVersion":
		return t.Text(&e.apiVersion)
	case "level":
		return t.Text(&e.level)
	case "auditID":
		return t.Text(&e.auditID)
	case "stage":
		return t.Text(&e.stage)
	case "requestURI":
		return t.Text(&e.uri)
	case "verb":
		return t.Text(&e.verb)
	case "user":
		return e.user.parse(t)
	case "impersonatedUser":
		return e.as.parse(t)
	case "sourceIPs":
		return t.Texts(&e.ips)
	case "userAgent":
		return t.Text(&e.agent)
	case "objectRef":
		return t.Object(func(key string, _ int) error {
			switch key {
			case "resource":
				return t.Text(&e.ref.resource)
			case "namespace":
				return t.Text(&e.ref.namespace)
			case "name":
				return t.Text(&e.ref.name)
			case "apiGroup":
				return t.Text(&e.ref.group)
			case "apiVersion":
				return t.Text(&e.ref.version)
			case "subresource":
				return t.Text(&e.ref.subresource)
			}
			_, err := t.Skip()
			return err
		})
	case "responseStatus":
		return t.Object(func(key string, _ int) error {
			switch key {
			case "code":
				return t.Integer(&e.code, &e.hasCode)
			case "reason":
				return t.Text(&e.reason)
			}
			_, err := t.Skip()
			return err
		})
	case "requestObject":
		return e.body(t, &e.request, bitRequest)
	case "responseObject":
		return e.body(t, &e.response, bitResponse)
	case "requestReceivedTimestamp":
		return t.Text(&e.received)
	case "stageTimestamp":
		return t.Text(&e.staged)
	case "annotations":
		return t.Object(func(key string, _ int) error {
			var v string
			if err := t.Text(&v); err != nil {
				return err
			}
			if _, ok := e.annotations[key]; ok {
				return fault.Permanent(record.ReasonTwice, errors.New("an annotation stands twice in the record"))
			}
			e.annotations[key] = v
			return nil
		})
	}
	_, err := t.Skip()
	return err
}

// body reads a request or response object.
func (e *event) body(t *record.Reader, into *string, bit uint32) (err error) {
	if t.Null() {
		return nil
	}
	if e.scrub != nil {
		t.Watch = e.scrub.concerns
	}
	*into, err = t.Skip()
	if t.Hit {
		e.concerned |= bit
	}
	t.Watch, t.Hit = nil, false
	return err
}

func (u *user) parse(t *record.Reader) error {
	return t.Object(func(key string, _ int) error {
		switch key {
		case "username":
			return t.Text(&u.name)
		case "uid":
			return t.Text(&u.uid)
		case "groups":
			return t.Texts(&u.groups)
		case "extra":
			t.Peek()
			start := t.Pos
			err := t.Object(func(key string, _ int) error {
				if key != podUIDKey || t.Peek() != '[' {
					_, err := t.Skip()
					return err
				}
				return t.Elements(func() error {
					return t.Text(&u.podUID)
				})
			})
			if raw := t.Slice(start, t.Pos); raw != "null" {
				u.extra = raw
			}
			return err
		}
		_, err := t.Skip()
		return err
	})
}

// check judges whether the record is an audit event.
func (e *event) check(listed bool) error {
	refuse := func(reason, format string, args ...any) error {
		return fault.Permanent(reason, fmt.Errorf(format, args...))
	}
	if e.kind != record.Kind && !(listed && e.kind == "") {
		return refuse(record.ReasonKind, "kind is %.64q, not %s", e.kind, record.Kind)
	}
	if e.apiVersion != record.APIVersion && !(listed && e.apiVersion == "") {
		return refuse(record.ReasonAPIVersion, "apiVersion is %.64q, not %s", e.apiVersion, record.APIVersion)
	}
	if e.auditID == "" {
		return refuse(record.ReasonAuditID, "record has no auditID")
	}
	if e.stage == "" {
		return refuse(record.ReasonStage, "record has no stage")
	}
	return nil
}

// hash computes the digest of the canonical record: its members but kind and
// apiVersion, in their order, without white space, redacted (so that nobody
// can try guesses of a secret against the event id), each followed by a comma.
func (e *event) hash(text []byte) {
	e.sum.Reset()
	for i := 0; i < len(e.spans); {
		first := e.spans[i]
		i++
		if e.changed&first.bit != 0 {
			e.sum.Write(text[first.start:first.value])
			value := e.uri
			switch first.bit {
			case bitRequest:
				value = e.request
			case bitResponse:
				value = e.response
			}
			e.sum.Write([]byte(value))
			e.sum.Write(comma)
			continue
		}
		// Neighbours are hashed in one go.
		end := first.end
		for ; i < len(e.spans) && e.spans[i].start == end+1 && e.changed&e.spans[i].bit == 0; i++ {
			end = e.spans[i].end
		}
		e.sum.Write(text[first.start:end])
		e.sum.Write(comma)
	}
	e.sum.Sum(e.digest[:0])
}

var comma = []byte{','}

// identify sets the event's time and id.
func (e *event) identify(n *Normalizer) error {
	at, ok := parseTime(e.staged)
	if !ok {
		at, ok = parseTime(e.received)
	}
	if !ok {
		return fault.Permanent(record.ReasonTime, fmt.Errorf("neither stageTimestamp %.64q nor requestReceivedTimestamp %.64q is a time", e.staged, e.received))
	}
	e.time = at
	e.id = schemas.Hash128(n.cluster, e.auditID, e.stage, string(e.digest[:]))
	return nil
}

// tag stands for what two records of one event have in common: cluster, auditID
// and stage.
func (e *event) tag(n *Normalizer) uint64 {
	h := schemas.Hash128(n.cluster, e.auditID, e.stage)
	return max(1, binary.LittleEndian.Uint64(h[:]))
}

// parseTime reads RFC 3339, or the same with a space in place of the T and
// UTC understood, as some exports have it. Years outside 1970 to 2261 do not
// fit a time column.
func parseTime(s string) (ns int64, ok bool) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		if t, err = time.Parse("2006-01-02 15:04:05", s); err != nil {
			return 0, false
		}
	}
	if y := t.UTC().Year(); y < 1970 || y > 2261 {
		return 0, false
	}
	return t.UnixNano(), true
}

// row adds the event to a builder.
func (e *event) row(b *batch.Builder, n *Normalizer, observed time.Time, cloudID string) {
	b.Bytes16(schemas.EventID, e.id)
	b.Str(schemas.Action, "audit")
	b.Uint32(schemas.SchemaVer, schemas.SchemaVersion)
	b.Str(schemas.Cluster, n.cluster)
	b.Str(schemas.Node, n.node)
	b.Int64(schemas.EventTime, e.time)
	b.Int64(schemas.TimeObserved, observed.UnixNano())
	b.Str(schemas.PodUID, e.user.podUID)
	b.Str(schemas.AuditID, e.auditID)
	b.Str(schemas.AuditStage, e.stage)
	b.Str(schemas.AuditLevel, e.level)
	b.Str(schemas.AuditVerb, e.verb)
	b.Str(schemas.AuditURI, e.uri)
	b.Str(schemas.AuditUser, e.user.name)
	b.Str(schemas.AuditUserUID, e.user.uid)
	b.List(schemas.AuditUserGroups, e.user.groups)
	b.Str(schemas.AuditUserExtra, e.user.extra)
	b.Str(schemas.AuditImpersonated, e.as.name)
	b.List(schemas.AuditImpersonatedGrp, e.as.groups)
	b.List(schemas.AuditSourceIPs, e.ips)
	b.Str(schemas.AuditUserAgent, e.agent)
	b.Str(schemas.AuditResource, e.ref.resource)
	b.Str(schemas.AuditSubresource, e.ref.subresource)
	b.Str(schemas.AuditAPIGroup, e.ref.group)
	b.Str(schemas.AuditAPIVersion, e.ref.version)
	b.Str(schemas.AuditNamespace, e.ref.namespace)
	b.Str(schemas.AuditName, e.ref.name)
	if e.hasCode {
		b.Int64(schemas.AuditResponseCode, e.code)
	}
	b.Str(schemas.AuditResponseReason, e.reason)
	b.Str(schemas.AuditDecision, e.annotations["authorization.k8s.io/decision"])
	why := e.annotations["authorization.k8s.io/reason"]
	b.Str(schemas.AuditReason, strings.ToValidUTF8(why[:min(len(why), maxReason)], ""))
	b.Map(schemas.AuditAnnotations, e.annotations)
	b.Str(schemas.AuditRequest, e.request)
	b.Str(schemas.AuditResponse, e.response)
	b.Bool(schemas.AuditTrimmed, e.trimmed)
	b.Str(schemas.AuditSource, n.source)
	b.Str(schemas.AuditCloudID, strings.ToValidUTF8(cloudID[:min(len(cloudID), maxCloudID)], ""))
	b.Bool(schemas.AuditRepeated, e.repeated)
	b.EndRow()
}
