package gketest

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"cloud.google.com/go/logging/apiv2/loggingpb"
	"google.golang.org/genproto/googleapis/api/monitoredres"
	"google.golang.org/genproto/googleapis/cloud/audit"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Entry returns the log entry that GKE makes of an audit event, JSON of
// audit.k8s.io/v1: names backwards, a gRPC code for the status, no groups, no
// query. Cloud Logging receives it delay after the event.
func Entry(event []byte, project, location, cluster string, delay time.Duration) (*loggingpb.LogEntry, error) {
	var ev struct {
		AuditID, Stage, RequestURI, Verb, UserAgent string
		User, ImpersonatedUser                      struct{ Username string }
		SourceIPs                                   []string
		ObjectRef                                   struct{ Resource, Namespace, Name, APIGroup, APIVersion, Subresource string }
		ResponseStatus                              struct {
			Code    int
			Message string
		}
		RequestObject, ResponseObject json.RawMessage
		StageTimestamp                time.Time
		Annotations                   map[string]string
	}
	if err := json.Unmarshal(event, &ev); err != nil {
		return nil, err
	}
	o := ev.ObjectRef
	method, object := "io.k8s."+ev.Verb, strings.TrimPrefix(pathOf(ev.RequestURI), "/")
	if o.Resource != "" {
		group := "core"
		if o.APIGroup != "" {
			group = o.APIGroup
		}
		object = group + "/" + o.APIVersion
		if o.Namespace != "" && o.Resource != "namespaces" {
			object += "/namespaces/" + o.Namespace
		}
		object += "/" + o.Resource
		parts := strings.Split(strings.TrimSuffix(group, ".k8s.io"), ".")
		slices.Reverse(parts)
		method = strings.Join(parts, ".")
		if !strings.Contains(group, ".") || strings.HasSuffix(group, ".k8s.io") {
			method = "io.k8s." + method
		}
		method += "." + o.APIVersion + "." + o.Resource
		if o.Name != "" {
			object += "/" + o.Name
		}
		if o.Subresource != "" {
			method += "." + o.Subresource
			object += "/" + o.Subresource
			if _, rest, ok := strings.Cut(pathOf(ev.RequestURI), "/proxy/"); ok {
				object += "/" + rest
			}
		}
		method += "." + ev.Verb
	}
	a := &audit.AuditLog{
		ServiceName: "k8s.io", MethodName: method, ResourceName: object,
		Status:             &rpcstatus.Status{Code: grpcCode(ev.ResponseStatus.Code), Message: ev.ResponseStatus.Message},
		AuthenticationInfo: &audit.AuthenticationInfo{PrincipalEmail: ev.User.Username, AuthoritySelector: ev.ImpersonatedUser.Username},
		AuthorizationInfo:  []*audit.AuthorizationInfo{{Resource: object, Permission: method, Granted: ev.Annotations["authorization.k8s.io/decision"] == "allow"}},
		RequestMetadata:    &audit.RequestMetadata{CallerSuppliedUserAgent: ev.UserAgent},
	}
	if len(ev.SourceIPs) > 0 {
		a.RequestMetadata.CallerIp = ev.SourceIPs[0]
	}
	var err error
	if a.Request, err = object2struct(ev.RequestObject); err != nil {
		return nil, err
	}
	if a.Response, err = object2struct(ev.ResponseObject); err != nil {
		return nil, err
	}
	payload, err := anypb.New(a)
	if err != nil {
		return nil, err
	}
	log := "activity"
	if slices.Contains([]string{"get", "list", "watch"}, ev.Verb) {
		log = "data_access"
	}
	long := ev.Verb == "watch" || ev.ResponseStatus.Code == 101
	return &loggingpb.LogEntry{
		LogName:          "projects/" + project + "/logs/cloudaudit.googleapis.com%2F" + log,
		Resource:         &monitoredres.MonitoredResource{Type: "k8s_cluster", Labels: map[string]string{"project_id": project, "location": location, "cluster_name": cluster}},
		Payload:          &loggingpb.LogEntry_ProtoPayload{ProtoPayload: payload},
		Timestamp:        timestamppb.New(ev.StageTimestamp),
		ReceiveTimestamp: timestamppb.New(ev.StageTimestamp.Add(delay)),
		InsertId:         ev.AuditID,
		Labels:           ev.Annotations,
		Operation:        &loggingpb.LogEntryOperation{Id: ev.AuditID, Producer: "k8s.io", First: !long || ev.Stage == "ResponseStarted", Last: ev.Stage == "ResponseComplete"},
	}, nil
}

// Policy applies the audit policy of GKE (configure-helper.sh of Kubernetes) to an
// event: nil for requests about events, no bodies of secrets, config maps, token
// requests and reviews, and custom resources. What is no event comes back as it is.
func Policy(event []byte) []byte {
	var ev map[string]json.RawMessage
	var ref struct{ Resource, APIGroup, Subresource string }
	if json.Unmarshal(event, &ev) != nil || json.Unmarshal(ev["objectRef"], &ref) != nil {
		return event
	}
	if ref.Resource == "events" && ref.APIGroup == "" {
		return nil
	}
	builtin := !strings.Contains(ref.APIGroup, ".") || strings.HasSuffix(ref.APIGroup, ".k8s.io")
	if builtin && ref.Resource != "secrets" && ref.Resource != "configmaps" && ref.Resource != "tokenreviews" && ref.Subresource != "token" {
		return event
	}
	delete(ev, "requestObject")
	delete(ev, "responseObject")
	out, err := json.Marshal(ev)
	if err != nil {
		return event
	}
	return out
}

// JSON returns a log entry as a log sink publishes it.
func JSON(e *loggingpb.LogEntry) ([]byte, error) { return protojson.Marshal(e) }

func pathOf(uri string) string {
	u, err := url.ParseRequestURI(uri)
	if err != nil {
		return uri
	}
	return u.Path
}

// object2struct adds what Google calls the object's type.
func object2struct(raw json.RawMessage) (*structpb.Struct, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, nil //nolint:nilerr // a patch that is a list, which a Struct cannot hold, and GKE leaves out
	}
	m["@type"] = "k8s.io/Patch"
	if kind, _ := m["kind"].(string); kind != "" {
		api, _ := m["apiVersion"].(string)
		if !strings.Contains(api, "/") {
			api = "core.k8s.io/" + api
		}
		m["@type"] = fmt.Sprintf("%s.%s", api, kind)
	}
	return structpb.NewStruct(m)
}

// grpcCode is the google.rpc.Code of an HTTP status.
func grpcCode(http int) int32 {
	switch http {
	case 400, 422:
		return 3
	case 401:
		return 16
	case 403:
		return 7
	case 404:
		return 5
	case 409:
		return 6
	case 429:
		return 8
	case 500:
		return 13
	case 503:
		return 14
	case 504:
		return 4
	}
	if http < 400 {
		return 0
	}
	return 2
}
