package store

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"picket/internal/fault"
	"picket/internal/health"
	"picket/internal/service"
	"picket/schemas"
)

// WriteAlerts brings PICKET_ALERTS into the alerts table until ctx ends. It has
// a durable consumer of its own, so that it holds up nobody while ClickHouse is
// away.
func WriteAlerts(ctx context.Context, cfg Config, rt *service.Runtime, reporter *health.Reporter) error {
	insert := DefaultInsert()
	insert.FlushInterval = 200 * time.Millisecond // few rows, and people wait for them
	return RunWriter(ctx, cfg, rt, WriterOptions{
		Stream: schemas.StreamAlerts, Durable: schemas.DurableAlertsWriter, Source: NewAlerts(),
		Insert: insert, Grace: 5 * time.Second, Service: rt.Name, Health: reporter,
	})
}

// Alerts is the Source of PICKET_ALERTS: one row for each finding.
type Alerts struct{ table Table }

// NewAlerts returns the source of the alerts table.
func NewAlerts() *Alerts {
	a := &Alerts{table: Table{Name: schemas.AlertsTable}}
	for _, c := range schemas.AlertColumns() {
		a.table.Columns = append(a.table.Columns, c.Name)
		a.table.Types = append(a.table.Types, c.Type)
	}
	return a
}

// Tables implements Source.
func (a *Alerts) Tables() []Table { return []Table{a.table} }

// Route implements Source.
func (a *Alerts) Route(Message) (table, rows int, err error) { return 0, 1, nil }

// Decode implements Source.
func (a *Alerts) Decode(m Message) (Rows, error) {
	f, err := parseFinding(m.Data)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// finding is a schemas.Finding that is fit to be a row.
type finding struct {
	schemas.Finding
	id    [16]byte
	at    int64 // ns
	made  int64 // ns
	event [][16]byte
	raw   []byte
}

// parseFinding reads a finding and checks what the row depends on. Errors are
// permanent.
func parseFinding(data []byte) (*finding, error) {
	f := &finding{raw: data}
	bad := func(err error) (*finding, error) {
		return nil, fault.Permanent(schemas.LossDecode, fmt.Errorf("finding: %w", err))
	}
	if !utf8.Valid(data) {
		return bad(errors.New("not UTF-8"))
	}
	if err := json.Unmarshal(data, &f.Finding); err != nil {
		return bad(err)
	}
	var err error
	if f.id, err = parseID(f.FindingInfo.UID); err != nil {
		return bad(fmt.Errorf("finding_info.uid: %w", err))
	}
	if f.SeverityID < schemas.Informational || f.SeverityID > schemas.Critical {
		return bad(fmt.Errorf("severity_id is %d", f.SeverityID))
	}
	// unmapped.time is exact to the nanosecond, time to the millisecond.
	t := f.Unmapped.Time
	if t.IsZero() {
		t = time.UnixMilli(f.Time)
	}
	// What DateTime64(9) can hold, and a bound on partitions.
	if y := t.UTC().Year(); y < 1970 || y > 2200 {
		return bad(fmt.Errorf("time is in the year %d", y))
	}
	made := time.UnixMilli(f.FindingInfo.CreatedTime)
	if y := made.UTC().Year(); y < 1970 || y > 2200 {
		return bad(fmt.Errorf("finding_info.created_time is in the year %d", y))
	}
	f.at, f.made = t.UnixNano(), made.UnixNano()
	for _, e := range f.Evidences {
		id, err := parseID(e.UID)
		if err != nil {
			return bad(fmt.Errorf("evidence %q: %w", e.UID, err))
		}
		f.event = append(f.event, id)
	}
	return f, nil
}

// parseID reads what schemas.FormatID writes.
func parseID(s string) (id [16]byte, err error) {
	plain := strings.ReplaceAll(s, "-", "")
	if len(s) != 36 || len(plain) != 32 {
		return id, fmt.Errorf("%q is no UUID", s)
	}
	if _, err := hex.Decode(id[:], []byte(plain)); err != nil || schemas.FormatID(id) != strings.ToLower(s) {
		return id, fmt.Errorf("%q is no UUID", s)
	}
	return id, nil
}

// BatchID is alert id and revision: the finding's own name, so that the same
// finding published twice is recognised.
func (f *finding) BatchID() string {
	return fmt.Sprintf("%s-%d", schemas.FormatID(f.id), f.Metadata.Sequence)
}

func (f *finding) Count() int { return 1 }

func (f *finding) Size() int { return 2 * len(f.raw) }

func (f *finding) Partition() string { return time.Unix(0, f.at).UTC().Format("200601") }

// Append adds the row; the order is that of schemas.AlertColumns.
func (f *finding) Append(b *Block) {
	i := -1
	next := func() column { i++; return b.col(i) }
	names := func(values []string) {
		c := next().(*list[*name])
		for _, v := range values {
			c.values.Append(v)
		}
		c.end()
	}
	str := func(v string) { next().(*text).Append(v) }
	low := func(v string) { next().(*name).Append(v) }
	var container schemas.Container
	var image schemas.Image
	var process schemas.OCSFProcess
	user := ""
	if f.Device != nil && f.Device.Container != nil {
		container = *f.Device.Container
		if container.Image != nil {
			image = *container.Image
		}
	}
	if f.Actor != nil {
		if f.Actor.User != nil {
			user = f.Actor.User.Name
		}
		if p := f.Actor.Process; p != nil {
			process = *p
			if user == "" && p.User != nil {
				user = p.User.Name
			}
		}
	}
	executable := ""
	if process.File != nil {
		executable = process.File.Path
	}
	kind, workload, _ := strings.Cut(f.Unmapped.Workload, "/")
	var techniques, tactics []string
	for _, a := range f.FindingInfo.Attacks {
		if t := a.ID(); !slices.Contains(techniques, t) {
			techniques = append(techniques, t)
		}
		if a.Tactic != nil && !slices.Contains(tactics, a.Tactic.UID) {
			tactics = append(tactics, a.Tactic.UID)
		}
	}
	next().(*id).Append(f.id)
	next().(*fixed[uint32]).Append(f.Metadata.Sequence)
	next().(*fixed[int64]).Append(f.at)
	next().(*fixed[int64]).Append(f.made)
	low(f.Unmapped.Cluster)
	low(f.Unmapped.Node)
	low(f.Unmapped.Rule)
	low(f.FindingInfo.Analytic.UID)
	low(f.SeverityID.String())
	next().(*small).Append(uint8(f.SeverityID))
	next().(*small).Append(uint8(min(f.RiskScore, 100)))
	str(f.Message)
	low(f.Unmapped.Class)
	low(f.Unmapped.Namespace)
	str(f.Unmapped.Pod)
	low(kind)
	low(workload)
	str(container.UID)
	low(container.Name)
	low(image.Name)
	low(image.Tag)
	low(image.UID)
	next().(*fixed[uint32]).Append(process.PID)
	low(process.Name)
	str(executable)
	str(process.CmdLine)
	ancestors := next().(*list[*text])
	for p := process.ParentProcess; p != nil; p = p.ParentProcess {
		ancestors.values.Append(p.Name)
	}
	ancestors.end()
	low(user)
	names(f.Metadata.Labels)
	names(techniques)
	names(tactics)
	names(f.FindingInfo.Types)
	next().(*dict).Append(f.Unmapped.Why)
	events := next().(*list[*id])
	for _, e := range f.event {
		events.values.Append(e)
	}
	events.end()
	next().(*text).AppendBytes(f.raw)
	next().(*text).Append(f.BatchID())
	b.add(1)
}
