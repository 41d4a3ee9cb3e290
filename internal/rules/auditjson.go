package rules

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"picket/schemas"
)

func appendJSONString(dst []byte, s string) []byte {
	q, err := json.Marshal(s)
	if err != nil { // a string always encodes
		return dst
	}
	return append(dst, q...)
}

// appendEvent appends the audit event as JSON: what the columns keep of it, in
// the order of audit.k8s.io/v1. It is for output, not for speed.
func appendEvent(dst []byte, r *row, _ *argument) []byte {
	w := objectWriter{dst: append(dst, '{'), first: true}
	w.raw("kind", `"Event"`)
	w.raw("apiVersion", `"audit.k8s.io/v1"`)
	w.text("level", r.str(schemas.AuditLevel))
	w.text("auditID", r.str(schemas.AuditID))
	w.text("stage", r.str(schemas.AuditStage))
	w.text("requestURI", r.str(schemas.AuditURI))
	w.text("verb", r.str(schemas.AuditVerb))
	w.object("user", func(w *objectWriter) {
		w.text("username", r.str(schemas.AuditUser))
		w.text("uid", r.str(schemas.AuditUserUID))
		w.raw("groups", string(appendJSONList(nil, r, schemas.AuditUserGroups)))
		w.raw("extra", r.str(schemas.AuditUserExtra))
	})
	if r.str(schemas.AuditImpersonated) != "" {
		w.object("impersonatedUser", func(w *objectWriter) {
			w.text("username", r.str(schemas.AuditImpersonated))
			w.raw("groups", string(appendJSONList(nil, r, schemas.AuditImpersonatedGrp)))
		})
	}
	w.raw("sourceIPs", string(appendJSONList(nil, r, schemas.AuditSourceIPs)))
	w.text("userAgent", r.str(schemas.AuditUserAgent))
	if r.str(schemas.AuditResource) != "" {
		w.object("objectRef", func(w *objectWriter) {
			w.text("resource", r.str(schemas.AuditResource))
			w.text("namespace", r.str(schemas.AuditNamespace))
			w.text("name", r.str(schemas.AuditName))
			w.text("apiGroup", r.str(schemas.AuditAPIGroup))
			w.text("apiVersion", r.str(schemas.AuditAPIVersion))
			w.text("subresource", r.str(schemas.AuditSubresource))
		})
	}
	if !r.b.IsNull(schemas.AuditResponseCode, r.i) {
		w.object("responseStatus", func(w *objectWriter) {
			w.raw("code", strconv.FormatInt(r.int(schemas.AuditResponseCode), 10))
			w.text("reason", r.str(schemas.AuditResponseReason))
		})
	}
	w.raw("requestObject", r.str(schemas.AuditRequest))
	w.raw("responseObject", r.str(schemas.AuditResponse))
	if notes := maps.Collect(r.b.Map(schemas.AuditAnnotations, r.i)); len(notes) > 0 {
		w.object("annotations", func(w *objectWriter) {
			for _, k := range slices.Sorted(maps.Keys(notes)) {
				w.text(k, notes[k])
			}
		})
	}
	return append(w.dst, '}')
}

// objectWriter appends members of a JSON object, empty ones left out.
type objectWriter struct {
	dst   []byte
	first bool
}

func (w *objectWriter) key(k string) {
	if !w.first {
		w.dst = append(w.dst, ',')
	}
	w.first = false
	w.dst = append(appendJSONString(w.dst, k), ':')
}

func (w *objectWriter) text(k, v string) {
	if v != "" {
		w.key(k)
		w.dst = appendJSONString(w.dst, v)
	}
}

// raw appends a value that is JSON already; one that is not becomes a string.
func (w *objectWriter) raw(k, v string) {
	if v == "" {
		return
	}
	w.key(k)
	if !json.Valid([]byte(v)) {
		w.dst = appendJSONString(w.dst, v)
		return
	}
	w.dst = append(w.dst, strings.TrimSpace(v)...)
}

func (w *objectWriter) object(k string, fill func(*objectWriter)) {
	w.key(k)
	in := objectWriter{dst: append(w.dst, '{'), first: true}
	fill(&in)
	w.dst = append(in.dst, '}')
}
