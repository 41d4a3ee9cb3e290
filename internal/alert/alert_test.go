package alert_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"picket/internal/alert"
	"picket/internal/batch"
	"picket/internal/fault"
	"picket/internal/natsserver/natstest"
	"picket/internal/rules"
	"picket/schemas"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// now is when the findings of these tests are raised.
var now = time.Date(2026, 11, 20, 10, 0, 5, 0, time.UTC)

const nodeRule = `- rule: Shell in a container
  desc: A shell was started in a container.
  condition: evt.type = execve and proc.name = bash
  output: Shell started | command=%proc.cmdline pod=%k8s.pod.name tty=%proc.tty user=%user.name
  priority: WARNING
  tags: [container, mitre_execution, T1059]
  mitre: [T1059.004]
  id: shell-in-a-container
  risk: 60
  alert_type: [K8S.NODE_Shell]
  references: [https://attack.mitre.org/techniques/T1059/004]
  response: [Look at what the shell did., Stop the pod.]
`

const auditRule = `- rule: Secret read
  desc: Somebody read a secret.
  condition: ka.target.resource = secrets
  output: Secret read | user=%ka.user.name secret=%ka.target.namespace/%ka.target.name code=%ka.response.code
  priority: ERROR
  source: k8s_audit
`

func execEvent(b *batch.Builder) {
	b.Bytes16(schemas.EventID, [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16})
	b.Str(schemas.Action, "exec")
	b.Str(schemas.Syscall, "execve")
	b.Str(schemas.Cluster, "prod")
	b.Str(schemas.Node, "node-1")
	b.Int64(schemas.EventTime, time.Date(2026, 11, 20, 10, 0, 0, 123456789, time.UTC).UnixNano())
	b.Uint32(schemas.ProcessPID, 4242)
	b.Uint32(schemas.ProcessParentPID, 4200)
	b.Str(schemas.ProcessName, "bash")
	b.Str(schemas.ProcessExe, "/usr/bin/bash")
	b.Str(schemas.ProcessCommand, "bash")
	b.Str(schemas.ProcessArgs, "-i")
	b.Str(schemas.ProcessCwd, "/srv")
	b.Uint32(schemas.ProcessUserID, 1000)
	b.Str(schemas.ProcessUserName, "web")
	b.Str(schemas.ParentName, "nginx")
	b.Str(schemas.ParentExe, "/usr/sbin/nginx")
	b.Str(schemas.ParentCommand, "nginx:")
	b.Str(schemas.ParentArgs, "worker process")
	b.Int64(schemas.ProcessStart, time.Date(2026, 11, 20, 9, 59, 59, 0, time.UTC).UnixNano())
	b.List(schemas.AncestorPIDs, []string{"4200", "4100", "4000"})
	b.List(schemas.AncestorNames, []string{"nginx", "nginx", "containerd-shim"})
	b.List(schemas.AncestorExes, []string{"/usr/sbin/nginx", "/usr/sbin/nginx", "/usr/bin/containerd-shim-runc-v2"})
	b.List(schemas.AncestorCommands, []string{"nginx:", "nginx:", "/usr/bin/containerd-shim-runc-v2"})
	b.List(schemas.AncestorArgs, []string{"worker process", "master process", "-namespace k8s.io"})
	b.Uint32(schemas.ProcessSessionPID, 4100)
	b.Str(schemas.ProcessSessionName, "nginx")
	b.Str(schemas.SessionExe, "/usr/sbin/nginx")
	b.Str(schemas.SessionCommand, "nginx:")
	b.Str(schemas.ContainerID, strings.Repeat("ab", 32))
	b.Str(schemas.PodUID, "9e2f")
	b.Str(schemas.PodName, "shop-7d")
	b.Str(schemas.Namespace, "shop")
	b.Str(schemas.K8sContainerName, "web")
	b.Str(schemas.ContainerImage, "registry.example.test/shop")
	b.Str(schemas.ContainerImageTag, "1.2")
	b.Str(schemas.ContainerImageHash, "sha256:00")
	b.Str(schemas.WorkloadKind, "Deployment")
	b.Str(schemas.WorkloadName, "shop")
}

const networkRule = `- rule: Connection to a mining pool
  desc: A container connected to a mining pool.
  condition: evt.type = connect and fd.rport in (3333, 4444) and container.id != host and not proc.name in (curl)
  output: Connection to a pool | to=%fd.rip:%fd.rport command=%proc.cmdline
  priority: CRITICAL
  tags: [network]
  mitre: [T1496]
`

func networkEvent(b *batch.Builder) {
	b.Str(schemas.Action, "connect")
	b.Str(schemas.Syscall, "connect")
	b.Str(schemas.NetDirection, "outbound")
	b.Str(schemas.NetType, "ipv4")
	b.Str(schemas.NetTransport, "tcp")
	b.Bytes16(schemas.NetLocalAddress, batch.IPv4([4]byte{10, 0, 0, 5}))
	b.Uint32(schemas.NetLocalPort, 40000)
	b.Bytes16(schemas.NetPeerAddress, batch.IPv4([4]byte{198, 51, 100, 7}))
	b.Uint32(schemas.NetPeerPort, 3333)
	b.Str(schemas.NetPeerDomain, "pool.example.test")
	execEvent(b)
}

func auditEvent(b *batch.Builder) {
	b.Bytes16(schemas.EventID, [16]byte{0xaa, 0xbb})
	b.Str(schemas.Action, "audit")
	b.Str(schemas.Cluster, "prod")
	b.Str(schemas.Node, "webhook")
	b.Int64(schemas.EventTime, time.Date(2026, 11, 20, 10, 0, 1, 0, time.UTC).UnixNano())
	b.Str(schemas.AuditID, "5b1e")
	b.Str(schemas.AuditStage, "ResponseComplete")
	b.Str(schemas.AuditVerb, "get")
	b.Str(schemas.AuditUser, "eve")
	b.Str(schemas.AuditUserUID, "u-7")
	b.Str(schemas.AuditResource, "secrets")
	b.Str(schemas.AuditNamespace, "kube-system")
	b.Str(schemas.AuditName, "root-token")
	b.Int64(schemas.AuditResponseCode, 200)
}

// findings evaluates rules over one event and returns the findings. What other
// sets comes in place of the event's own: a builder keeps the first value.
func findings(t testing.TB, text string, c schemas.Class, event func(*batch.Builder), other ...func(*batch.Builder)) []*schemas.Finding {
	t.Helper()
	set, warnings, err := rules.Load([]rules.Source{{Name: "test.yaml", Data: []byte(text)}}, rules.Options{Strict: true})
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v %v", warnings, err)
	}
	build := batch.NewBuilder(c, schemas.Columns(c))
	for _, set := range other {
		set(build)
	}
	event(build)
	build.EndRow()
	b := build.Batch()
	var out []*schemas.Finding
	set.NewEvaluator().Eval(b, func(m rules.Match) { out = append(out, alert.New(m, b, now)) })
	return out
}

func one(t testing.TB, text string, c schemas.Class, event func(*batch.Builder), other ...func(*batch.Builder)) *schemas.Finding {
	t.Helper()
	found := findings(t, text, c, event, other...)
	if len(found) != 1 {
		t.Fatalf("%d findings, want 1", len(found))
	}
	return found[0]
}

// str is an event's field with another value than the example's.
func str(id schemas.FieldID, v string) func(*batch.Builder) {
	return func(b *batch.Builder) { b.Str(id, v) }
}

// A technique that ATT&CK does not have, or does not have yet, is in the finding.
func TestUnknownTechnique(t *testing.T) {
	f := one(t, strings.Replace(nodeRule, "mitre: [T1059.004]", "mitre: [T9998.001]", 1), schemas.Process, execEvent)
	for _, a := range f.FindingInfo.Attacks {
		if a.ID() == "T9998.001" && a.Tactic == nil {
			return
		}
	}
	t.Errorf("%+v", f.FindingInfo.Attacks)
}

// TestGolden holds a finding to the document that subscribers and the alerts
// table get. Run with -update after a change that is meant.
func TestGolden(t *testing.T) {
	for _, tt := range []struct {
		name, rule string
		class      schemas.Class
		event      func(*batch.Builder)
	}{
		{"node", nodeRule, schemas.Process, execEvent},
		{"audit", auditRule, schemas.Audit, auditEvent},
		{"network", networkRule, schemas.Network, networkEvent},
	} {
		data, err := alert.Encode(one(t, tt.rule, tt.class, tt.event))
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := json.Indent(&got, data, "", "  "); err != nil {
			t.Fatal(err)
		}
		got.WriteByte('\n')
		path := filepath.Join("testdata", tt.name+".json")
		if *update {
			if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s differs (-update rewrites it):\n%s", path, got.Bytes())
		}
	}
}

func TestFileAndHostEvents(t *testing.T) {
	const opened = "- rule: r\n  desc: d\n  condition: evt.type = openat and fd.name startswith /etc/\n  output: o\n  priority: INFO\n"
	f := one(t, opened, schemas.File, func(b *batch.Builder) {
		b.Bytes16(schemas.EventID, [16]byte{1})
		b.Str(schemas.Action, "open")
		b.Str(schemas.Syscall, "openat")
		b.Str(schemas.Cluster, "prod")
		b.Str(schemas.Node, "n")
		b.Str(schemas.FilePath, "/etc/shadow")
		b.Str(schemas.ProcessName, "cat")
	})
	if e := f.Evidences[0].File; e == nil || e.Path != "/etc/shadow" || e.Name != "shadow" {
		t.Errorf("file %+v", e)
	}
	if f.Device == nil || f.Device.Container != nil || f.Resources != nil || f.Unmapped.Namespace != "" || f.Unmapped.Workload != "" {
		t.Errorf("an event of the host shows a container or pod: %+v %+v %+v", f.Device, f.Resources, f.Unmapped)
	}
	if f.Actor.Process.ParentProcess != nil || f.Unmapped.SessionLeader != nil {
		t.Errorf("parent %+v, session %+v: neither is known", f.Actor.Process.ParentProcess, f.Unmapped.SessionLeader)
	}
	if s := alert.Subject(f); s != "picket.alerts.prod.informational._.r" {
		t.Errorf("subject %s", s)
	}
}

// A response that has not come is no response with code 0.
func TestAuditWithoutResponse(t *testing.T) {
	f := one(t, auditRule, schemas.Audit, func(b *batch.Builder) {
		b.Bytes16(schemas.EventID, [16]byte{1})
		b.Str(schemas.Cluster, "prod")
		b.Str(schemas.AuditVerb, "create")
		b.Str(schemas.AuditResource, "secrets")
		b.Str(schemas.AuditSubresource, "status")
	})
	if f.API.Response != nil || f.API.Operation != "create" {
		t.Errorf("api %+v", f.API)
	}
	if len(f.Resources) != 1 || f.Resources[0].Type != "secrets/status" {
		t.Errorf("resources %+v", f.Resources)
	}
	if f.Device != nil {
		t.Errorf("device %+v of an API call", f.Device)
	}
}

func TestSeverity(t *testing.T) {
	for _, tt := range []struct {
		priority, caption, token string
		id                       schemas.Severity
	}{
		{"EMERGENCY", "Critical", "critical", 5},
		{"ALERT", "Critical", "critical", 5},
		{"CRITICAL", "Critical", "critical", 5},
		{"ERROR", "High", "high", 4},
		{"WARNING", "Medium", "medium", 3},
		{"NOTICE", "Low", "low", 2},
		{"INFORMATIONAL", "Informational", "informational", 1},
		{"INFO", "Informational", "informational", 1},
		{"DEBUG", "Informational", "informational", 1},
	} {
		f := one(t, strings.Replace(nodeRule, "WARNING", tt.priority, 1), schemas.Process, execEvent)
		if f.SeverityID != tt.id || f.Severity != tt.caption || f.Unmapped.Priority != tt.priority {
			t.Errorf("%s: severity %d %q, priority %q; want %d %q", tt.priority, f.SeverityID, f.Severity, f.Unmapped.Priority, tt.id, tt.caption)
		}
		if s, want := alert.Subject(f), "picket.alerts.prod."+tt.token+".shop.Shell_in_a_container"; s != want {
			t.Errorf("%s: subject %s, want %s", tt.priority, s, want)
		}
	}
}

// Whatever a rule or namespace is called, a real server takes the finding, on a
// subject of just six tokens, and keeps the connection.
func TestSubjectIsSafe(t *testing.T) {
	b := natstest.Connect(t, natstest.Start(t), schemas.ServiceDetector)
	for i, name := range []string{"", "plain", "a.b", "*", ">", "a b\tc\r\nd", "picket.alerts.>", "\x00\x7f", "ünïcode ☃", "\xff\xfe",
		"PUB x 1\r\n", strings.Repeat("n", 10_000), strings.Repeat("☃", 5_000)} {
		f := &schemas.Finding{SeverityID: schemas.High, Unmapped: schemas.FindingExtra{Cluster: "prod", Namespace: name, Rule: name}}
		subject := alert.Subject(f)
		if tokens := strings.Split(subject, "."); len(tokens) != 6 || slices.Contains(tokens, "") || !strings.HasPrefix(subject, "picket.alerts.prod.high.") {
			t.Errorf("%.40q: subject %.80q", name, subject)
		}
		if strings.ContainsAny(subject, "*> \t\r\n\x00\x7f") || !utf8.ValidString(subject) || len(subject) > 600 {
			t.Errorf("%.40q: subject of %d bytes %.80q", name, len(subject), subject)
		}
		m := nats.NewMsg(subject)
		m.Data = []byte("{}")
		ack, err := b.JS.PublishMsg(t.Context(), m)
		if err != nil {
			t.Fatalf("%.40q: %v", name, err)
		}
		if ack.Sequence != uint64(i+1) {
			t.Errorf("%.40q: stored as message %d, want %d", name, ack.Sequence, i+1)
		}
	}
	if n := b.NC.Stats().Reconnects; n != 0 {
		t.Errorf("the server closed the connection %d times", n)
	}
}

// The same event gives the same finding whenever and in whatever batch it is
// evaluated; another rule or another event gives another.
func TestIdentity(t *testing.T) {
	first := one(t, nodeRule, schemas.Process, execEvent)
	// Delivered again: encoded, decoded, and raised later.
	build := batch.NewBuilder(schemas.Process, schemas.Columns(schemas.Process))
	build.Str(schemas.ProcessName, "cat")
	build.EndRow()
	execEvent(build)
	build.EndRow()
	enc, err := batch.Encode(build.Batch())
	if err != nil {
		t.Fatal(err)
	}
	b, err := batch.Decode(enc[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	set, _, err := rules.Load([]rules.Source{{Name: "elsewhere.yaml", Data: []byte(nodeRule)}}, rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var again []*schemas.Finding
	set.NewEvaluator().Eval(b, func(m rules.Match) { again = append(again, alert.New(m, b, now.Add(time.Hour))) })
	if len(again) != 1 || alert.MessageID(again[0]) != alert.MessageID(first) || alert.Subject(again[0]) != alert.Subject(first) {
		t.Fatalf("delivered again: %d findings, %s and %s", len(again), alert.MessageID(first), alert.MessageID(again[0]))
	}
	if first.FindingInfo.UID != first.Metadata.UID || alert.MessageID(first) != first.FindingInfo.UID+"-1" {
		t.Errorf("ids %s, %s, %s", first.FindingInfo.UID, first.Metadata.UID, alert.MessageID(first))
	}
	otherRule := one(t, strings.Replace(nodeRule, "Shell in a container", "Shell in a pod", 1), schemas.Process, execEvent)
	otherEvent := one(t, nodeRule, schemas.Process, execEvent, func(b *batch.Builder) { b.Bytes16(schemas.EventID, [16]byte{2}) })
	ids := map[string]bool{alert.MessageID(first): true, alert.MessageID(otherRule): true, alert.MessageID(otherEvent): true}
	if len(ids) != 3 {
		t.Errorf("ids of another rule or event are the same: %v", ids)
	}
}

// However long the texts of an event, its finding can be published, and is
// still a finding of that event.
func TestEncodeIsBounded(t *testing.T) {
	many := "- rule: r\n  desc: d\n  condition: evt.type = execve and proc.name = bash\n  priority: INFO\n  output: >\n   "
	for i := range 30 {
		many += fmt.Sprintf(" %%proc.aname[%d] %%proc.cmdline", i+1)
	}
	for name, tt := range map[string]struct {
		rule string
		text string
		cut  bool
	}{
		"usual":            {nodeRule, "-i", false},
		"long":             {nodeRule, strings.Repeat("x", 20<<10), false},
		"longer than NATS": {nodeRule, strings.Repeat("x", 400<<10), true},
		"escaped":          {nodeRule, strings.Repeat("<", 200<<10), true},
		"control":          {nodeRule, strings.Repeat("\x01", 200<<10), true},
		"not UTF-8":        {nodeRule, strings.Repeat("\xff", 200<<10), true},
		"many times":       {many + "\n", strings.Repeat("☃", 60<<10), true},
	} {
		f := one(t, tt.rule, schemas.Process, execEvent, str(schemas.ProcessArgs, tt.text))
		id, subject := alert.MessageID(f), alert.Subject(f)
		data, err := alert.Encode(f)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(data) > alert.MaxBytes || !utf8.Valid(data) {
			t.Errorf("%s: %d bytes, want at most %d", name, len(data), alert.MaxBytes)
		}
		var got schemas.Finding
		if err := json.Unmarshal(data, &got); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if alert.MessageID(&got) != id || alert.Subject(&got) != subject || !got.Unmapped.Time.Equal(f.Unmapped.Time) || got.FindingInfo.Desc == "" {
			t.Errorf("%s: another finding: %s on %s", name, alert.MessageID(&got), alert.Subject(&got))
		}
		line := got.Actor.Process.CmdLine
		if cut := strings.HasSuffix(line, "…"); cut != tt.cut || len(line) < min(len(strings.ToValidUTF8(tt.text, "")), 1<<10) {
			t.Errorf("%s: command line of %d bytes, cut: %v", name, len(line), cut)
		}
		if args, _ := got.Evidences[0].Data["process_args"].(string); !strings.HasPrefix(got.Unmapped.Fields["proc.cmdline"], "bash "+args[:min(len(args), 100)]) || args == "" {
			t.Errorf("%s: evidence and fields differ", name)
		}
	}
}

// What cannot be made small enough is an error, not an endless attempt.
func TestEncodeGivesUp(t *testing.T) {
	f := &schemas.Finding{}
	for range 20_000 {
		f.Metadata.Labels = append(f.Metadata.Labels, strings.Repeat("t", 30))
	}
	_, err := alert.Encode(f)
	if err == nil || !strings.Contains(err.Error(), "at most 524288 can be published") || fault.Reason(err) != schemas.LossOversized {
		t.Errorf("%v", err)
	}
}

// A line is one line and steers no terminal, whatever the event holds.
func TestLine(t *testing.T) {
	f := one(t, nodeRule, schemas.Process, execEvent)
	want := f.Unmapped.Time.Local().Format("15:04:05.000") + "  MEDIUM         Shell in a container  Shell started | command=bash -i pod=shop-7d tty=0 user=web"
	if got := alert.Line(f); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	f.Metadata.Sequence = 2
	if got, want := alert.Line(f), strings.Replace(want, "Shell started", "(update) Shell started", 1); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	f = one(t, nodeRule, schemas.Process, execEvent, str(schemas.ProcessArgs, "\x1b[2J\n10:00:00.000  LOW all is well\r\u202e☃\u009b"))
	line := alert.Line(f)
	if strings.ContainsAny(line, "\x1b\n\r\u202e\u009b") || !strings.Contains(line, `\x1b[2J\n10:00:00.000  LOW all is well\r\u202e☃\u009b`) {
		t.Errorf("%q", line)
	}
}
