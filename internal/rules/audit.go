package rules

import (
	"net/url"
	"strconv"
	"strings"
	"time"

	"picket/schemas"
)

// The fields of Kubernetes audit events that are computed; those that read one
// column as it is come from the registry (fields.go).

// object is the field of a request's or response's object at a path, as text.
func object(name string, id schemas.FieldID, path, doc string) field {
	p := strings.Split(path, "/")
	return field{name: name, doc: doc, document: id, path: path, readers: textOf(auditOnly, nil, func(dst []byte, r *row, _ *argument) []byte {
		return appendPath(dst, r, id, p)
	})}
}

// appendPath appends the value at a path of the document in a column.
func appendPath(dst []byte, r *row, id schemas.FieldID, path []string) []byte {
	d, ok := r.docs.get(r.b, id, r.i)
	if !ok {
		return dst
	}
	if n := d.find(path); n >= 0 {
		dst = d.append(dst, n)
	}
	return dst
}

// objects is the field of all values at a path of the request's object, in
// which * stands for every element of a list. With an argument it is the value
// of that number. keep, if there, says how much of each value to keep.
func objects(name, path, doc string, keep func(string) int) field {
	p := strings.Split(path, "/")
	collect := func(l *list, r *row) {
		l.reset()
		if d, ok := r.docs.get(r.b, schemas.AuditRequest, r.i); ok {
			d.collect(l, 0, p)
			l.shorten(keep)
		}
	}
	return field{name: name, doc: doc, kind: kindList, arg: argMayIdx, withArg: kindText, document: schemas.AuditRequest, path: path, shortened: keep != nil,
		readers: []reader{{classes: auditOnly, list: func(l *list, r *row, _ *argument) { collect(l, r) }}},
		argReaders: textOf(auditOnly, nil, func(dst []byte, r *row, a *argument) []byte {
			var l list
			collect(&l, r)
			if a.index < l.len() {
				dst = append(dst, l.at(a.index)...)
			}
			return dst
		})}
}

// repository returns the length of an image's name without tag and digest.
func repository(image string) int {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		return i
	}
	return len(image)
}

var auditFields = buildAuditFields()

func buildAuditFields() []field {
	fs := []field{
		{name: "ka.auth.openshift.username", doc: "User name that OpenShift put into the annotations.", readers: annotation("authentication.openshift.io/username")},
		{name: "ka.auth.openshift.decision", doc: "Decision that OpenShift put into the annotations.", readers: annotation("authentication.openshift.io/decision")},
		{name: "ka.response.code", kind: kindInt, textual: true, doc: "HTTP status of the response; also compared as text, as in startswith 2.",
			readers: []reader{column(auditOnly, schemas.AuditResponseCode)}},
		{name: "ka.uri.param", arg: argKey, withArg: kindText, doc: "Value of a parameter of the request URI, as in ka.uri.param[command]; joined by blanks if it stands several times.",
			argReaders: textOf(auditOnly, nil, uriParam)},
		{name: "ka.target.pod.name", doc: "Name of the pod acted on, for pods and their subresources.",
			readers: textOf(auditOnly, keys(schemas.AuditResource, schemas.AuditName), func(dst []byte, r *row, _ *argument) []byte {
				if r.str(schemas.AuditResource) == "pods" {
					dst = append(dst, r.str(schemas.AuditName)...)
				}
				return dst
			})},
		{name: "ka.impuser.groups", kind: kindList, arg: argMayIdx, withArg: kindText, doc: "Groups of the impersonated user. A name of Picket's own.",
			readers: []reader{column(auditOnly, schemas.AuditImpersonatedGrp)},
			argReaders: textOf(auditOnly, nil, func(dst []byte, r *row, a *argument) []byte {
				return nth(dst, r, schemas.AuditImpersonatedGrp, a.index)
			})},
		{name: "ka.level", doc: "Metadata, Request or RequestResponse. A name of Picket's own.", readers: []reader{column(auditOnly, schemas.AuditLevel)}},
		{name: "ka.trimmed", kind: kindBool, doc: "The record was larger than the ingester's bound, and its objects were dropped. A name of Picket's own.",
			readers: []reader{column(auditOnly, schemas.AuditTrimmed)}},

		object("ka.req.binding.role", schemas.AuditRequest, "roleRef/name", "Role that a binding refers to."),
		object("ka.req.configmap.name", schemas.AuditRequest, "metadata/name", "Name of a ConfigMap in the request."),
		object("ka.req.configmap.obj", schemas.AuditRequest, "data", "Data of a ConfigMap in the request, as JSON."),
		object("ka.req.service.type", schemas.AuditRequest, "spec/type", "Type of a Service: ClusterIP, NodePort, LoadBalancer, ExternalName."),
		object("ka.resp.name", schemas.AuditResponse, "metadata/name", "Name of the object in the response."),

		objects("ka.req.binding.subjects", "subjects/*", "Subjects of a binding, each as JSON.", nil),
		objects("ka.req.binding.subjects.name", "subjects/*/name", "Names of a binding's subjects. A name of Picket's own.", nil),
		objects("ka.req.role.rules", "rules/*", "Rules of a Role or ClusterRole, each as JSON.", nil),
		objects("ka.req.role.rules.apiGroups", "rules/*/apiGroups/*", "API groups in a role's rules.", nil),
		objects("ka.req.role.rules.nonResourceURLs", "rules/*/nonResourceURLs/*", "URLs in a role's rules.", nil),
		objects("ka.req.role.rules.verbs", "rules/*/verbs/*", "Verbs in a role's rules.", nil),
		objects("ka.req.role.rules.resources", "rules/*/resources/*", "Resources in a role's rules.", nil),
		objects("ka.req.service.ports", "spec/ports/*", "Ports of a Service, each as JSON.", nil),
		objects("ka.req.pod.host_ipc", "spec/hostIPC", "true if the pod uses the host's IPC namespace.", nil),
		objects("ka.req.pod.host_network", "spec/hostNetwork", "true if the pod uses the host's network.", nil),
		objects("ka.req.pod.host_pid", "spec/hostPID", "true if the pod uses the host's pid namespace.", nil),
		objects("ka.req.pod.run_as_user", "spec/securityContext/runAsUser", "User id of the pod's security context.", nil),
		objects("ka.req.pod.run_as_group", "spec/securityContext/runAsGroup", "Group id of the pod's security context.", nil),
		objects("ka.req.pod.fs_group", "spec/securityContext/fsGroup", "fsGroup of the pod's security context.", nil),
		objects("ka.req.pod.supplemental_groups", "spec/securityContext/supplementalGroups/*", "Supplemental groups of the pod's security context.", nil),
		objects("ka.req.pod.volumes.hostpath", "spec/volumes/*/hostPath/path", "Paths of the pod's hostPath volumes.", nil),
		objects("ka.req.pod.volumes.flexvolume_driver", "spec/volumes/*/flexVolume/driver", "Drivers of the pod's flexVolumes.", nil),

		{name: "jevt.value", arg: argKey, bind: pointer, doc: "Value at a JSON pointer into the audit event, as in jevt.value[/requestObject/spec/replicas]; objects and lists as JSON."},
		{name: "jevt.rawtime", kind: kindInt, doc: "Time of the event, nanoseconds since the epoch.", readers: []reader{column(auditOnly, schemas.EventTime)}},
		{name: "jevt.time", doc: "Time of day of the event, UTC, with nanoseconds.", readers: textOf(auditOnly, nil, timeText("15:04:05.000000000", 1))},
		{name: "jevt.time.iso8601", doc: "Date and time of the event, UTC, RFC 3339.", readers: textOf(auditOnly, nil, timeText("2006-01-02T15:04:05.000000000Z07:00", 1))},
		{name: "jevt.obj", doc: "The audit event as JSON, made of what is kept of it.", readers: textOf(auditOnly, nil, appendEvent)},
	}
	for _, c := range []struct{ path, what string }{
		{"containers", "containers"}, {"initContainers", "init containers"}, {"ephemeralContainers", "ephemeral containers"},
	} {
		name, at := "ka.req.pod."+c.path, "spec/"+c.path+"/*/"
		fs = append(fs,
			objects(name+".name", at+"name", "Names of the pod's "+c.what+". A name of Picket's own.", nil),
			objects(name+".image", at+"image", "Images of the pod's "+c.what+".", nil),
			objects(name+".image.repository", at+"image", "Images of the pod's "+c.what+", without tag and digest.", repository),
			objects(name+".command", at+"command/*", "Commands of the pod's "+c.what+", word by word. A name of Picket's own.", nil),
			objects(name+".args", at+"args/*", "Arguments of the pod's "+c.what+", word by word. A name of Picket's own.", nil),
			objects(name+".privileged", at+"securityContext/privileged", "Whether the pod's "+c.what+" are privileged: true or false for each that says.", nil),
			objects(name+".allow_privilege_escalation", at+"securityContext/allowPrivilegeEscalation", "allowPrivilegeEscalation of the pod's "+c.what+".", nil),
			objects(name+".read_only_fs", at+"securityContext/readOnlyRootFilesystem", "readOnlyRootFilesystem of the pod's "+c.what+".", nil),
			objects(name+".run_as_user", at+"securityContext/runAsUser", "User ids of the pod's "+c.what+".", nil),
			objects(name+".run_as_group", at+"securityContext/runAsGroup", "Group ids of the pod's "+c.what+".", nil),
			objects(name+".proc_mount", at+"securityContext/procMount", "procMount of the pod's "+c.what+".", nil),
			objects(name+".add_capabilities", at+"securityContext/capabilities/add/*", "Capabilities that the pod's "+c.what+" add.", nil),
			objects(name+".host_port", at+"ports/*/hostPort", "Host ports of the pod's "+c.what+".", nil),
		)
	}
	return fs
}

func annotation(key string) []reader {
	return textOf(auditOnly, nil, func(dst []byte, r *row, _ *argument) []byte {
		return mapValue(dst, r, schemas.AuditAnnotations, key)
	})
}

func uriParam(dst []byte, r *row, a *argument) []byte {
	_, query, ok := strings.Cut(r.str(schemas.AuditURI), "?")
	if !ok {
		return dst
	}
	start := len(dst)
	for part := range strings.SplitSeq(query, "&") {
		k, v, _ := strings.Cut(part, "=")
		if k != a.text {
			if k, err := url.QueryUnescape(k); err != nil || k != a.text {
				continue
			}
		}
		if s, err := url.QueryUnescape(v); err == nil {
			v = s
		}
		if len(dst) > start {
			dst = append(dst, ' ')
		}
		dst = append(dst, v...)
	}
	return dst
}

// pointerColumns are the values of an audit event that are columns.
var pointerColumns = map[string]schemas.FieldID{
	"/auditID":                   schemas.AuditID,
	"/stage":                     schemas.AuditStage,
	"/level":                     schemas.AuditLevel,
	"/verb":                      schemas.AuditVerb,
	"/requestURI":                schemas.AuditURI,
	"/userAgent":                 schemas.AuditUserAgent,
	"/user/username":             schemas.AuditUser,
	"/user/uid":                  schemas.AuditUserUID,
	"/user/extra":                schemas.AuditUserExtra,
	"/impersonatedUser/username": schemas.AuditImpersonated,
	"/objectRef/resource":        schemas.AuditResource,
	"/objectRef/subresource":     schemas.AuditSubresource,
	"/objectRef/namespace":       schemas.AuditNamespace,
	"/objectRef/name":            schemas.AuditName,
	"/objectRef/apiGroup":        schemas.AuditAPIGroup,
	"/objectRef/apiVersion":      schemas.AuditAPIVersion,
	"/responseStatus/reason":     schemas.AuditResponseReason,
	"/requestObject":             schemas.AuditRequest,
	"/responseObject":            schemas.AuditResponse,
}

// pointerLists are those that are lists of text.
var pointerLists = map[string]schemas.FieldID{
	"/user/groups":             schemas.AuditUserGroups,
	"/impersonatedUser/groups": schemas.AuditImpersonatedGrp,
	"/sourceIPs":               schemas.AuditSourceIPs,
}

// pointerDocuments are those that are JSON documents.
var pointerDocuments = []struct {
	prefix string
	column schemas.FieldID
}{{"/requestObject/", schemas.AuditRequest}, {"/responseObject/", schemas.AuditResponse}, {"/user/extra/", schemas.AuditUserExtra}}

// pointer makes the reader of jevt.value for a JSON pointer into the event.
func pointer(arg string) (*reader, string) {
	if !strings.HasPrefix(arg, "/") {
		return nil, "a JSON pointer begins with /"
	}
	if id, ok := pointerColumns[arg]; ok {
		return &reader{classes: auditOnly, column: id, isColumn: true}, ""
	}
	segments := strings.Split(arg[1:], "/")
	for i, s := range segments {
		segments[i] = strings.ReplaceAll(strings.ReplaceAll(s, "~1", "/"), "~0", "~")
	}
	read := func(f func(dst []byte, r *row, _ *argument) []byte) (*reader, string) {
		return &reader{classes: auditOnly, text: f}, ""
	}
	for _, d := range pointerDocuments {
		if strings.HasPrefix(arg, d.prefix) {
			path := segments[strings.Count(d.prefix, "/")-1:]
			return read(func(dst []byte, r *row, _ *argument) []byte { return appendPath(dst, r, d.column, path) })
		}
	}
	for p, id := range pointerLists {
		if arg == p {
			return read(func(dst []byte, r *row, _ *argument) []byte { return appendJSONList(dst, r, id) })
		}
		if rest, ok := strings.CutPrefix(arg, p+"/"); ok {
			i, err := strconv.Atoi(rest)
			if err != nil || i < 0 {
				return nil, "the element of a list is a number"
			}
			return read(func(dst []byte, r *row, _ *argument) []byte { return nth(dst, r, id, i) })
		}
	}
	switch {
	case len(segments) == 2 && segments[0] == "annotations":
		return read(func(dst []byte, r *row, _ *argument) []byte {
			return mapValue(dst, r, schemas.AuditAnnotations, segments[1])
		})
	case arg == "/responseStatus/code":
		return read(func(dst []byte, r *row, _ *argument) []byte {
			if r.b.IsNull(schemas.AuditResponseCode, r.i) {
				return dst
			}
			return strconv.AppendInt(dst, r.int(schemas.AuditResponseCode), 10)
		})
	case arg == "/requestReceivedTimestamp" || arg == "/stageTimestamp":
		return read(timeText(time.RFC3339Nano, time.Microsecond))
	case arg == "/kind":
		return &reader{classes: auditOnly, constant: "Event", isConst: true}, ""
	case arg == "/apiVersion":
		return &reader{classes: auditOnly, constant: "audit.k8s.io/v1", isConst: true}, ""
	}
	return nil, "Picket keeps no such value of an audit event"
}

func appendJSONList(dst []byte, r *row, id schemas.FieldID) []byte {
	start := len(dst)
	for v := range r.b.List(id, r.i) {
		if len(dst) == start {
			dst = append(dst, '[')
		} else {
			dst = append(dst, ',')
		}
		dst = append(appendEscaped(append(dst, '"'), v), '"')
	}
	if len(dst) > start {
		dst = append(dst, ']')
	}
	return dst
}
