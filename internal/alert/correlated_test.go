package alert_test

import (
	"encoding/json"
	"slices"
	"strconv"
	"testing"
	"time"

	"picket/internal/alert"
	"picket/internal/batch"
	"picket/internal/correlation"
	"picket/internal/rules"
	"picket/schemas"
)

// several runs a rule about several events over batches of one event each.
func several(t *testing.T, text string, batches ...*batch.Batch) []*schemas.Finding {
	t.Helper()
	set, warnings, err := rules.Load([]rules.Source{{Name: "a.yaml", Data: []byte(text)}}, rules.Options{Strict: true})
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	now := time.Unix(1_800_000_000, 0)
	c := set.NewCorrelator(correlation.Limits{Lateness: time.Minute, Keys: 100, Bytes: 1 << 20})
	var alerts []correlation.Alert
	for _, b := range batches {
		alerts = append(alerts, c.Eval(b, func(rules.Match) {}, func(f rules.Feed) []byte {
			doc, err := alert.Part(f, b, now)
			if err != nil {
				t.Fatal(err)
			}
			return doc
		})...)
	}
	var out []*schemas.Finding
	for _, a := range append(alerts, c.End()...) {
		f, err := alert.Correlated(&a, now)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, f)
	}
	return out
}

func single(c schemas.Class, n int, at time.Time, set ...func(*batch.Builder)) *batch.Batch {
	b := batch.NewBuilder(c, schemas.Columns(c))
	b.Bytes16(schemas.EventID, schemas.Hash128(strconv.Itoa(n)))
	b.Int64(schemas.EventTime, at.UnixNano())
	b.Str(schemas.Cluster, "prod")
	for _, f := range set {
		f(b)
	}
	b.EndRow()
	return b.Batch()
}

// The finding of a sequence has the events of all its steps, and of each what only
// it knows: who asked the API server, and which process connected.
func TestCorrelatedSequence(t *testing.T) {
	const text = `- rule: Session, then a connection
  desc: d
  priority: ERROR
  mitre: [T1609]
  correlation:
    kind: sequence
    window: 5m
    steps:
    - {condition: ka.target.subresource = exec, source: k8s_audit, by: [ka.target.namespace, ka.target.name]}
    - {condition: evt.type = connect, by: [k8s.ns.name, k8s.pod.name]}
  output: user=%ka.user.name process=%proc.name
`
	at := time.Unix(1_799_999_000, 0).UTC()
	call := single(schemas.Audit, 1, at, str(schemas.AuditUser, "alice"), str(schemas.AuditVerb, "create"), str(schemas.AuditResource, "pods"), str(schemas.AuditSubresource, "exec"),
		str(schemas.AuditNamespace, "shop"), str(schemas.AuditName, "web-1"), str(schemas.Node, "webhook"))
	conn := single(schemas.Network, 2, at.Add(time.Minute), str(schemas.Action, "connect"), str(schemas.Syscall, "connect"), str(schemas.Node, "n1"),
		str(schemas.Namespace, "shop"), str(schemas.PodName, "web-1"), str(schemas.PodUID, "u-1"), str(schemas.ContainerID, "c1"), str(schemas.ProcessName, "curl"))
	found := several(t, text, call, conn)
	if len(found) != 1 {
		t.Fatalf("%d findings", len(found))
	}
	f := found[0]
	if want := schemas.FormatID(schemas.Hash128("alert", "Session, then a connection", schemas.FormatID(schemas.Hash128("2")))); f.FindingInfo.UID != want || f.Metadata.UID != want || f.Metadata.Sequence != 1 {
		t.Errorf("id %s revision %d, want %s", f.FindingInfo.UID, f.Metadata.Sequence, want)
	}
	if f.Message != "user=alice process=curl" || f.Unmapped.Fields["ka.user.name"] != "alice" || f.Severity != "High" || len(f.FindingInfo.Attacks) == 0 {
		t.Errorf("%q, fields %v, severity %s", f.Message, f.Unmapped.Fields, f.Severity)
	}
	if len(f.Evidences) != 2 || f.Evidences[0].UID != schemas.FormatID(schemas.Hash128("1")) || f.Evidences[0].Data["step"] != 1 || f.Evidences[1].Process.Name != "curl" {
		t.Errorf("evidences %+v", f.Evidences)
	}
	if f.API == nil || f.API.Operation != "create" || f.Actor.Process == nil || f.Device.Container.UID != "c1" || f.Unmapped.Node != "n1" {
		t.Errorf("API %+v, actor %+v, device %+v", f.API, f.Actor, f.Device)
	}
	if !slices.Contains(f.Resources, schemas.Resource{Type: "Pod", Name: "web-1", Namespace: "shop", UID: "u-1"}) || len(f.Resources) != 2 {
		t.Errorf("resources %+v", f.Resources)
	}
	if c := f.Unmapped.Correlation; c == nil || c.Kind != "sequence" || c.Count != 2 || c.Key["ka.target.name"] != "web-1" || !c.Last.Equal(at.Add(time.Minute)) {
		t.Errorf("correlation %+v", f.Unmapped.Correlation)
	}
	if !f.Unmapped.Time.Equal(at) || f.FindingInfo.FirstSeenTime != at.UnixMilli() {
		t.Errorf("time %s", f.Unmapped.Time)
	}
	if _, err := json.Marshal(f); err != nil {
		t.Error(err)
	}
}

// A suppressed rule's alert has the id that it has without suppress, and its second
// revision the number of what was folded in, at the same time.
func TestCorrelatedRevision(t *testing.T) {
	const plain = `- rule: Shell
  desc: d
  priority: NOTICE
  condition: evt.type = execve
  output: "%proc.name"
`
	at := time.Unix(1_799_999_000, 0).UTC()
	var batches []*batch.Batch
	for i := range 3 {
		batches = append(batches, single(schemas.Process, i, at.Add(time.Duration(i)*time.Second), str(schemas.Action, "exec"), str(schemas.Syscall, "execve"), str(schemas.ProcessName, "sh"), str(schemas.ContainerID, "c1")))
	}
	found := several(t, plain+"  suppress: {by: [container.id], window: 1h}\n", batches...)
	if len(found) != 2 {
		t.Fatalf("%d findings", len(found))
	}
	set, _, err := rules.Load([]rules.Source{{Name: "a.yaml", Data: []byte(plain)}}, rules.Options{Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	set.NewEvaluator().Eval(batches[0], func(m rules.Match) {
		if want := alert.New(m, batches[0], at).FindingInfo.UID; found[0].FindingInfo.UID != want || found[1].FindingInfo.UID != want {
			t.Errorf("ids %s and %s, want %s", found[0].FindingInfo.UID, found[1].FindingInfo.UID, want)
		}
	})
	if a, b := found[0], found[1]; a.Metadata.Sequence != 1 || b.Metadata.Sequence != 2 || b.ActivityID != 2 || a.Unmapped.Correlation.Count != 1 || b.Unmapped.Correlation.Count != 3 ||
		len(b.Evidences) != 3 || !a.Unmapped.Time.Equal(b.Unmapped.Time) || alert.Subject(a) != alert.Subject(b) || alert.MessageID(a) == alert.MessageID(b) {
		t.Errorf("revisions\n%+v\n%+v", a, b)
	}
}
