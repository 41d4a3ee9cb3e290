// Package alert turns a rule's match into a finding: the OCSF document that is
// published, stored and printed.
package alert

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path"
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

// New returns the finding of a match in b, raised at now. Its id follows from
// the rule's name and the event's id, so that the same event gives the same
// finding however often it is evaluated.
func New(m rules.Match, b *batch.Batch, now time.Time) *schemas.Finding {
	row := m.Row
	str := func(id schemas.FieldID) string { return b.Str(id, row) }
	event, _ := b.Bytes16(schemas.EventID, row)
	eventID := schemas.FormatID(event)
	id := schemas.FormatID(schemas.Hash128("alert", m.Rule.Name, eventID))
	at := time.Unix(0, b.Int(schemas.EventTime, row)).UTC()

	namespace := str(schemas.Namespace)
	if namespace == "" {
		namespace = str(schemas.AuditNamespace)
	}
	fields := m.Fields()
	f := &schemas.Finding{
		ActivityID: 1, CategoryUID: 2, ClassUID: 2004, ClassName: "Detection Finding", TypeUID: 200401,
		SeverityID: m.Rule.Severity, Severity: severityCaptions[m.Rule.Severity], StatusID: 1,
		Time: at.UnixMilli(), Message: m.Output(),
		Metadata: schemas.Metadata{
			Version: schemas.OCSFVersion, Product: schemas.Product{Name: "Picket", VendorName: "Picket"},
			UID: id, Sequence: 1, LoggedTime: now.UnixMilli(), Profiles: []string{"container", "host"}, Labels: m.Rule.Tags,
		},
		FindingInfo: schemas.FindingInfo{
			UID: id, Title: m.Rule.Name, Desc: m.Rule.Description,
			FirstSeenTime: at.UnixMilli(), CreatedTime: now.UnixMilli(),
			Analytic: schemas.Analytic{Name: m.Rule.Name, TypeID: 1, Type: "Rule"},
		},
		Device: &schemas.Device{Hostname: str(schemas.Node), TypeID: 1},
		Unmapped: schemas.FindingExtra{
			Cluster: str(schemas.Cluster), Node: str(schemas.Node), Rule: m.Rule.Name, Priority: m.Rule.Priority,
			Class: b.Class().String(), Time: at, Namespace: namespace, Pod: str(schemas.PodName), Fields: fields,
		},
	}
	if w := str(schemas.WorkloadName); w != "" {
		f.Unmapped.Workload = str(schemas.WorkloadKind) + "/" + w
	}
	for _, t := range m.Rule.Techniques {
		f.FindingInfo.Attacks = append(f.FindingInfo.Attacks, schemas.Attack{Version: schemas.AttackVersion, Technique: schemas.Technique{UID: t}})
	}
	ev := schemas.Evidence{UID: eventID}
	if len(fields) > 0 {
		ev.Data = map[string]any{}
		for k, v := range fields {
			ev.Data[k] = v
		}
	}
	if b.Class() == schemas.Audit {
		auditParts(f, b, row)
	} else {
		ev.Process = process(b, row)
		f.Actor = &schemas.Actor{Process: ev.Process, User: ev.Process.User}
		if c := str(schemas.ContainerID); c != "" {
			f.Device.Container = &schemas.Container{UID: c, Name: cmp.Or(str(schemas.K8sContainerName), str(schemas.ContainerName)), PodUUID: str(schemas.PodUID)}
			if img := str(schemas.ContainerImage); img != "" {
				f.Device.Container.Image = &schemas.Image{Name: img, Tag: str(schemas.ContainerImageTag), UID: str(schemas.ContainerImageHash)}
			}
		}
		if p := str(schemas.FilePath); p != "" {
			ev.File = &schemas.OCSFFile{Name: path.Base(p), Path: p, TypeID: 1}
		}
	}
	if pod := str(schemas.PodName); pod != "" {
		f.Resources = append(f.Resources, schemas.Resource{Type: "Pod", Name: pod, Namespace: str(schemas.Namespace), UID: str(schemas.PodUID)})
	}
	f.Evidences = []schemas.Evidence{ev}
	return f
}

func process(b *batch.Batch, row int) *schemas.OCSFProcess {
	str := func(id schemas.FieldID) string { return b.Str(id, row) }
	p := &schemas.OCSFProcess{
		PID: uint32(b.Uint(schemas.ProcessPID, row)), Name: str(schemas.ProcessName),
		CmdLine:    strings.TrimSpace(str(schemas.ProcessCommand) + " " + str(schemas.ProcessArgs)),
		WorkingDir: str(schemas.ProcessCwd),
		User:       &schemas.User{Name: str(schemas.ProcessUserName), UID: strconv.FormatUint(b.Uint(schemas.ProcessUserID, row), 10)},
	}
	if exe := str(schemas.ProcessExe); exe != "" {
		p.File = &schemas.OCSFFile{Name: path.Base(exe), Path: exe, TypeID: 1}
	}
	if name := str(schemas.ParentName); name != "" {
		p.ParentProcess = &schemas.OCSFProcess{
			PID: uint32(b.Uint(schemas.ProcessParentPID, row)), Name: name,
			CmdLine: strings.TrimSpace(str(schemas.ParentCommand) + " " + str(schemas.ParentArgs)),
		}
		if exe := str(schemas.ParentExe); exe != "" {
			p.ParentProcess.File = &schemas.OCSFFile{Name: path.Base(exe), Path: exe, TypeID: 1}
		}
	}
	return p
}

func auditParts(f *schemas.Finding, b *batch.Batch, row int) {
	str := func(id schemas.FieldID) string { return b.Str(id, row) }
	f.Actor = &schemas.Actor{User: &schemas.User{Name: str(schemas.AuditUser), UID: str(schemas.AuditUserUID)}}
	f.API = &schemas.API{Operation: str(schemas.AuditVerb), Request: &schemas.Request{UID: str(schemas.AuditID)}}
	if !b.IsNull(schemas.AuditResponseCode, row) {
		f.API.Response = &schemas.Resp{Code: b.Int(schemas.AuditResponseCode, row)}
	}
	f.Device = nil // the API server is no device of the cluster's
	if kind := str(schemas.AuditResource); kind != "" {
		if sub := str(schemas.AuditSubresource); sub != "" {
			kind += "/" + sub
		}
		f.Resources = append(f.Resources, schemas.Resource{Type: kind, Name: str(schemas.AuditName), Namespace: str(schemas.AuditNamespace)})
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
