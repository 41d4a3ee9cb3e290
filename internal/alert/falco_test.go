package alert_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"picket/internal/alert"
	"picket/internal/batch"
	"picket/schemas"
)

// sidekick is what Falcosidekick reads, with the types it reads it into; it
// refuses a message without output, and decodes numbers as they are.
type sidekick struct {
	UUID         string         `json:"uuid,omitempty"`
	Output       string         `json:"output"`
	Priority     string         `json:"priority"`
	Rule         string         `json:"rule"`
	Time         time.Time      `json:"time"`
	OutputFields map[string]any `json:"output_fields"`
	Source       string         `json:"source"`
	Tags         []string       `json:"tags,omitempty"`
	Hostname     string         `json:"hostname,omitempty"`
}

// TestFalco holds the second format to Falco's own.
func TestFalco(t *testing.T) {
	const rule = `- rule: Shell in a container
  desc: d
  condition: evt.type = execve and proc.name = bash
  output: Shell | command=%proc.cmdline pid=%proc.pid uid=%user.uid tty=%proc.tty upper=%proc.is_exe_upper_layer parent=%proc.aname[2] pod=%k8s.pod.name
  priority: warning
  tags: [container, shell]
`
	data, err := json.Marshal(alert.Falco(one(t, rule, schemas.Process, execEvent)))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"uuid":"ID","output":"10:00:00.123456789: Warning Shell | command=bash -i pid=4242 uid=1000 tty=0 upper=false parent=nginx pod=shop-7d",` +
		`"priority":"Warning","rule":"Shell in a container","source":"syscall","tags":["container","shell"],"time":"2026-11-20T10:00:00.123456789Z","hostname":"node-1",` +
		`"output_fields":{"evt.time":1795168800123456789,"k8s.pod.name":"shop-7d","proc.aname[2]":"nginx","proc.cmdline":"bash -i","proc.is_exe_upper_layer":false,"proc.pid":4242,"proc.tty":0,"user.uid":1000}}`
	id := one(t, rule, schemas.Process, execEvent).FindingInfo.UID
	if got := strings.Replace(string(data), id, "ID", 1); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	dec.DisallowUnknownFields()
	var s sidekick
	if err := dec.Decode(&s); err != nil || s.Output == "" || s.OutputFields["proc.pid"] != json.Number("4242") {
		t.Errorf("%+v %v", s, err)
	}
	// Every priority by the name that Falco gives it.
	for given, want := range map[string]string{"EMERGENCY": "Emergency", "ALERT": "Alert", "critical": "Critical", "Error": "Error", "NOTICE": "Notice", "INFO": "Informational", "INFORMATIONAL": "Informational", "DEBUG": "Debug"} {
		if got := alert.Falco(one(t, strings.Replace(rule, "priority: warning", "priority: "+given, 1), schemas.Process, execEvent)).Priority; got != want {
			t.Errorf("%s is %s", given, got)
		}
	}
	a := alert.Falco(one(t, auditRule, schemas.Audit, auditEvent))
	if a.Source != "k8s_audit" || a.Hostname != "webhook" || a.OutputFields["ka.response.code"] != json.Number("200") {
		t.Errorf("%+v", a)
	}
	if data, err = json.Marshal(a); err != nil || !bytes.Contains(data, []byte(`"tags":[]`)) {
		t.Errorf("%s %v", data, err)
	}
}

// required are the attributes that OCSF 1.5.0 requires of a Detection Finding
// and of those of its objects that findings have, and "one of" sets of them.
var required = map[string][]string{
	"":                {"activity_id", "category_uid", "class_uid", "finding_info", "metadata", "severity_id", "time", "type_uid"},
	"metadata":        {"product", "version"},
	"product":         {"name|uid", "vendor_name"},
	"finding_info":    {"uid", "title"},
	"analytic":        {"type_id", "name|uid"},
	"attacks":         {"tactic|technique|sub_technique"},
	"remediation":     {"desc"},
	"device":          {"type_id", "hostname|uid|name|ip"},
	"container":       {"uid|name"},
	"image":           {"uid"},
	"process":         {"pid|uid"},
	"parent_process":  {"pid|uid"},
	"actor":           {"process|user"},
	"user":            {"name|uid"},
	"file":            {"name", "type_id"},
	"api":             {"operation"},
	"request":         {"uid"},
	"evidences":       {"api|process|file|query|data"},
	"connection_info": {"direction_id"},
	"src_endpoint":    {"ip|hostname|name|uid"},
	"dst_endpoint":    {"ip|hostname|name|uid"},
	"query":           {"hostname"},
	"resources":       {"name|uid"},
	"technique":       {"uid|name"},
	"sub_technique":   {"uid|name"},
	"tactic":          {"uid|name"},
	"unmapped":        nil,
	"data":            nil,
	"response":        nil,
}

func checkRequired(t *testing.T, path, object string, v map[string]any) {
	t.Helper()
	for _, want := range required[object] {
		found := false
		for _, name := range strings.Split(want, "|") {
			x, ok := v[name]
			found = found || ok && x != ""
		}
		if !found {
			t.Errorf("%s lacks %s", path, want)
		}
	}
	if object == "unmapped" || object == "data" {
		return
	}
	for name, x := range v {
		switch x := x.(type) {
		case map[string]any:
			if _, ok := required[name]; !ok {
				t.Errorf("%s.%s: no object of OCSF's that this test knows", path, name)
			}
			checkRequired(t, path+"."+name, name, x)
		case []any:
			for _, e := range x {
				if e, ok := e.(map[string]any); ok {
					checkRequired(t, path+"."+name, name, e)
				}
			}
		}
	}
}

// TestRequiredAttributes: a finding of each class of events has what OCSF
// requires, with all that an event may have and with nothing of it.
func TestRequiredAttributes(t *testing.T) {
	for _, c := range append(schemas.NodeClasses(), schemas.Audit) {
		rule := "- rule: r\n  desc: d\n  condition: not evt.action = nothing\n  output: o\n  priority: INFO\n  mitre: [T1059.004, T1611]\n  response: do\n  warn_evttypes: false\n"
		event := networkEvent
		if c == schemas.Audit {
			rule += "  source: k8s_audit\n"
			event = auditEvent
		}
		bare := func(b *batch.Builder) {
			b.Bytes16(schemas.EventID, [16]byte{1})
			b.Str(schemas.Node, "n")
			b.Str(schemas.AuditID, "5b1e")
			b.Str(schemas.AuditVerb, "list")
			b.Str(schemas.AuditResource, "secrets")
		}
		for _, event := range []func(*batch.Builder){event, bare} {
			data, err := alert.Encode(one(t, rule, c, event))
			if err != nil {
				t.Fatal(err)
			}
			var v map[string]any
			if err := json.Unmarshal(data, &v); err != nil {
				t.Fatal(err)
			}
			checkRequired(t, c.String(), "", v)
		}
	}
}
