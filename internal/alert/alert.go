// Package alert turns a rule's match into a finding: the OCSF document that is
// published, stored and printed.
package alert

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"picket/internal/batch"
	"picket/internal/fault"
	"picket/internal/rules"
	"picket/internal/terminal"
	"picket/schemas"
)

// severityCaptions are OCSF's captions of severity_id.
var severityCaptions = map[schemas.Severity]string{
	schemas.Informational: "Informational", schemas.Low: "Low", schemas.Medium: "Medium", schemas.High: "High", schemas.Critical: "Critical",
}

// riskLevels are OCSF's captions of risk_level_id, and the score each begins at:
// between the scores that a rule has by its severity.
var riskLevels = [...]struct {
	from    uint32
	caption string
}{{0, "Info"}, {20, "Low"}, {40, "Medium"}, {65, "High"}, {85, "Critical"}}

// ID returns the id of the alert that a rule raises for one event.
func ID(rule, eventID string) string {
	return schemas.FormatID(schemas.Hash128("alert", rule, eventID))
}

// New returns the finding of a match in b, raised at now. Its id follows from
// the rule's name and the event's id, so that the same event gives the same
// finding however often it is evaluated. Call it while m is raised (see
// rules.Match.Why).
func New(m rules.Match, b *batch.Batch, now time.Time) *schemas.Finding {
	row := m.Row
	str := func(id schemas.FieldID) string { return b.Str(id, row) }
	event, _ := b.Bytes16(schemas.EventID, row)
	id := ID(m.Rule.Name, schemas.FormatID(event))
	at := time.Unix(0, b.Int(schemas.EventTime, row)).UTC()

	f := &schemas.Finding{
		ActivityID: 1, CategoryUID: 2, ClassUID: 2004, ClassName: "Detection Finding", TypeUID: 200401,
		SeverityID: m.Rule.Severity, Severity: severityCaptions[m.Rule.Severity], StatusID: 1, IsAlert: true,
		Time: at.UnixMilli(), Message: m.Output(), RiskScore: m.Rule.Risk,
		Metadata: schemas.Metadata{
			Version: schemas.OCSFVersion, Product: schemas.Product{Name: "Picket", VendorName: "Picket"},
			UID: id, Sequence: 1, LoggedTime: now.UnixMilli(), Profiles: []string{"container", "host"}, Labels: m.Rule.Tags,
		},
		FindingInfo: schemas.FindingInfo{
			UID: id, Title: m.Rule.Name, Desc: m.Rule.Description, Types: m.Rule.AlertTypes,
			FirstSeenTime: at.UnixMilli(), CreatedTime: now.UnixMilli(),
			Analytic: schemas.Analytic{UID: m.Rule.ID, Name: m.Rule.Name, TypeID: 1, Type: "Rule"},
			Attacks:  attacks(m.Rule.Techniques),
		},
		Device:    &schemas.Device{Hostname: str(schemas.Node), TypeID: 1},
		Evidences: []schemas.Evidence{Evidence(b, row)},
		Unmapped: schemas.FindingExtra{
			Cluster: str(schemas.Cluster), Node: str(schemas.Node), Rule: m.Rule.Name, Priority: m.Rule.Priority, Source: m.Rule.Source,
			Class: b.Class().String(), Time: at, Namespace: cmp.Or(str(schemas.Namespace), str(schemas.AuditNamespace)), Pod: str(schemas.PodName),
			References: m.Rule.References, FalsePositives: m.Rule.FalsePositives, Why: m.Why(), Fields: m.Fields(),
		},
	}
	for i, l := range riskLevels {
		if f.RiskScore >= l.from {
			f.RiskLevelID, f.RiskLevel = i, l.caption
		}
	}
	if len(m.Rule.Response) > 0 {
		f.Remediation = &schemas.Remediation{Desc: strings.Join(m.Rule.Response, "\n")}
	}
	if w := str(schemas.WorkloadName); w != "" {
		f.Unmapped.Workload = str(schemas.WorkloadKind) + "/" + w
	}
	if b.Class() == schemas.Audit {
		auditParts(f, b, row)
	} else {
		nodeParts(f, b, row)
	}
	if pod := str(schemas.PodName); pod != "" {
		f.Resources = append(f.Resources, schemas.Resource{Type: "Pod", Name: pod, Namespace: str(schemas.Namespace), UID: str(schemas.PodUID)})
	}
	return f
}

// attacks returns the techniques with their tactics.
func attacks(techniques []string) []schemas.Attack {
	var out []schemas.Attack
	for _, id := range techniques {
		a := schemas.Attack{Version: schemas.AttackVersion, Technique: schemas.Technique{UID: id}}
		if parent, _, sub := strings.Cut(id, "."); sub {
			a.Technique.UID, a.SubTechnique = parent, &schemas.Technique{UID: id, Name: name(id)}
		}
		a.Technique.Name = name(a.Technique.UID)
		of := schemas.Tactics(id)
		if len(of) == 0 {
			out = append(out, a)
		}
		for _, t := range of {
			a.Tactic = &schemas.Technique{UID: t, Name: schemas.TacticName(t)}
			out = append(out, a)
		}
	}
	return out
}

// name returns the name of a technique; empty for one that ATT&CK does not have.
func name(technique string) string {
	t, _ := schemas.TechniqueByID(technique)
	return t.Name
}

// nodeParts adds what an event of a node tells of process and container.
func nodeParts(f *schemas.Finding, b *batch.Batch, row int) {
	str := func(id schemas.FieldID) string { return b.Str(id, row) }
	p := process(b, row)
	f.Actor = &schemas.Actor{Process: p, User: p.User}
	if pid := uint32(b.Uint(schemas.ProcessSessionPID, row)); pid != 0 && pid != p.PID {
		f.Unmapped.SessionLeader = &schemas.OCSFProcess{PID: pid, Name: str(schemas.ProcessSessionName), CmdLine: str(schemas.SessionCommand), File: file(str(schemas.SessionExe))}
	}
	f.Unmapped.ExecPID = uint32(b.Uint(schemas.ContainerExec, row))
	c := str(schemas.ContainerID)
	if c == "" {
		return
	}
	f.Device.Container = &schemas.Container{UID: c, Name: cmp.Or(str(schemas.K8sContainerName), str(schemas.ContainerName)), PodUUID: str(schemas.PodUID)}
	if img := str(schemas.ContainerImage); img != "" {
		f.Device.Container.Image = &schemas.Image{Name: img, Tag: str(schemas.ContainerImageTag),
			UID: cmp.Or(str(schemas.ContainerImageHash), str(schemas.ContainerImageID), img)}
	}
}

func auditParts(f *schemas.Finding, b *batch.Batch, row int) {
	str := func(id schemas.FieldID) string { return b.Str(id, row) }
	if u := (schemas.User{Name: str(schemas.AuditUser), UID: str(schemas.AuditUserUID)}); u != (schemas.User{}) { // none: not authenticated
		f.Actor = &schemas.Actor{User: &u}
	}
	f.API = f.Evidences[0].API
	f.Device = nil // the API server is no device of the cluster's
	if kind := str(schemas.AuditResource); kind != "" {
		if sub := str(schemas.AuditSubresource); sub != "" {
			kind += "/" + sub
		}
		r := schemas.Resource{Type: kind, Name: str(schemas.AuditName), Namespace: str(schemas.AuditNamespace)}
		if r.Name == "" { // all of a kind: OCSF wants a name or an id
			r.UID = cmp.Or(str(schemas.AuditURI), kind)
		}
		f.Resources = append(f.Resources, r)
	}
}

// maxToken bounds the namespace and the rule's name in a subject. Whoever may
// call the API server chooses the namespace of an audit event, and a NATS
// server ends the connection that sends it a line of more than 4 KiB.
const maxToken = 256

// Subject returns where the finding is published.
func Subject(f *schemas.Finding) string {
	return schemas.AlertSubject(f.Unmapped.Cluster, f.SeverityID, cut(f.Unmapped.Namespace, maxToken), cut(f.Unmapped.Rule, maxToken))
}

// MaxBytes bounds an encoded finding. An event may have texts of hundreds of
// kilobytes, and a finding repeats them; NATS' default max_payload is 1 MiB.
const MaxBytes = 512 << 10

// Encode returns the finding as JSON of at most MaxBytes. In one that is larger
// it cuts the longest texts: an alert with a cut text is one, while an alert
// that cannot be published is none. The event itself is stored whole. An error
// is permanent (reason "oversized"): the rule's own words are too long.
func Encode(f *schemas.Finding) ([]byte, error) { return encode(f, MaxBytes) }

func encode(f *schemas.Finding, most int) ([]byte, error) {
	data, err := json.Marshal(f)
	for limit := most / 8; err == nil && len(data) > most; limit /= 2 {
		if limit < maxToken {
			return nil, fault.Permanent(schemas.LossOversized, fmt.Errorf("finding of %d bytes with its texts cut; at most %d can be published", len(data), most))
		}
		shorten(reflect.ValueOf(f), limit)
		data, err = json.Marshal(f)
	}
	return data, err
}

// shorten cuts every text in v that is longer than limit.
func shorten(v reflect.Value, limit int) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			shorten(v.Elem(), limit)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			shorten(v.Field(i), limit)
		}
	case reflect.Slice:
		for i := range v.Len() {
			shorten(v.Index(i), limit)
		}
	case reflect.Map:
		for k, e := range v.Seq2() {
			if e.Kind() == reflect.Interface {
				e = e.Elem()
			}
			if e.Kind() == reflect.String {
				v.SetMapIndex(k, reflect.ValueOf(cut(e.String(), limit)))
			} else {
				shorten(e, limit) // a list or a map: what it has is changed in place
			}
		}
	case reflect.String:
		if v.CanSet() { // not so inside time.Time, which has a name of a zone
			v.SetString(cut(v.String(), limit))
		}
	}
}

// cut returns the first limit bytes of s, whole characters only, with an
// ellipsis where something is missing.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit-len("…")], "") + "…"
}

// MessageID returns the Nats-Msg-Id of the finding: one per revision.
func MessageID(f *schemas.Finding) string {
	return f.FindingInfo.UID + "-" + strconv.FormatUint(uint64(f.Metadata.Sequence), 10)
}

// Line is a finding in one line for people. What an attacker put into names and
// arguments must not start a line of its own or steer the terminal: see
// terminal.Text.
func Line(f *schemas.Finding) string {
	var b strings.Builder
	b.WriteString(f.Unmapped.Time.Local().Format("15:04:05.000"))
	b.WriteString("  ")
	b.WriteString(strings.ToUpper(f.SeverityID.String()))
	b.WriteString(strings.Repeat(" ", max(1, 15-len(f.SeverityID.String()))))
	b.WriteString(terminal.Text(f.Unmapped.Rule + "  " + f.Message))
	return b.String()
}
