package store

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"picket/internal/fault"
	"picket/internal/natsserver/natstest"
	"picket/schemas"
)

func exampleFinding(n, revision int) *schemas.Finding {
	at := time.Date(2026, 11, 20, 10, 0, 0, 123456789, time.UTC)
	return &schemas.Finding{
		ClassUID: 2004, SeverityID: schemas.High, Severity: "High", Time: at.UnixMilli(),
		Message: "a shell was started in 'web'\n", RiskScore: 80,
		Metadata: schemas.Metadata{Sequence: uint32(revision), Labels: []string{"container", "shell"}},
		FindingInfo: schemas.FindingInfo{UID: schemas.FormatID(schemas.Hash128("alert", strconv.Itoa(n))), CreatedTime: at.Add(time.Second).UnixMilli(),
			Types: []string{"K8S.NODE_Shell"}, Analytic: schemas.Analytic{UID: "shell"},
			Attacks: []schemas.Attack{
				{Technique: schemas.Technique{UID: "T1059"}, SubTechnique: &schemas.Technique{UID: "T1059.004"}, Tactic: &schemas.Technique{UID: "TA0002"}},
				{Technique: schemas.Technique{UID: "T1078"}, Tactic: &schemas.Technique{UID: "TA0001"}},
				{Technique: schemas.Technique{UID: "T1078"}, Tactic: &schemas.Technique{UID: "TA0003"}}}},
		Device: &schemas.Device{Container: &schemas.Container{UID: "c0ffee", Name: "web", Image: &schemas.Image{Name: "r/web", Tag: "1", UID: "sha256:00"}}},
		Actor: &schemas.Actor{Process: &schemas.OCSFProcess{PID: 42, Name: "sh", CmdLine: "sh -i", File: &schemas.OCSFFile{Path: "/bin/sh"}, User: &schemas.User{Name: "root"},
			ParentProcess: &schemas.OCSFProcess{Name: "nginx", ParentProcess: &schemas.OCSFProcess{Name: "runc"}}}},
		Evidences: []schemas.Evidence{{UID: schemas.FormatID(schemas.Hash128("event", strconv.Itoa(n)))}},
		Unmapped: schemas.FindingExtra{Cluster: "c1", Node: "n1", Rule: "Shell in container", Class: "process", Time: at, Namespace: "shop", Pod: "web-1",
			Workload: "Deployment/web", Why: map[string]string{"proc.name": "sh", "evt.type": "execve"}},
	}
}

// alert publishes a finding as the detector does.
func (w *world) alert(f *schemas.Finding, headers map[string]string) {
	w.t.Helper()
	data, err := json.Marshal(f)
	if err != nil {
		w.t.Fatal(err)
	}
	msg := nats.NewMsg(schemas.AlertSubject("c1", f.SeverityID, f.Unmapped.Namespace, f.Unmapped.Rule))
	msg.Data = data
	msg.Header.Set(schemas.HeaderBatchID, f.FindingInfo.UID+"-"+strconv.Itoa(int(f.Metadata.Sequence)))
	for k, v := range headers {
		msg.Header.Set(k, v)
	}
	if _, err := natstest.Connect(w.t, w.nats, schemas.ServiceDetector).JS.PublishMsg(w.t.Context(), msg); err != nil {
		w.t.Fatal(err)
	}
}

func TestAlerts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.startOn(w.ch.URL, NewAlerts(), nil)
	for n := range 5 {
		w.alert(exampleFinding(n, 1), nil)
	}
	w.alert(exampleFinding(0, 2), nil)                                               // an amendment
	w.alert(exampleFinding(1, 1), map[string]string{schemas.HeaderReplayed: "1"})    // published twice
	w.alert(&schemas.Finding{FindingInfo: schemas.FindingInfo{UID: "no uuid"}}, nil) // not an alert
	eventually(t, "the alerts are stored", 20*time.Second, func() bool {
		// FINAL: ClickHouse may have merged the amended alert at once.
		return query(t, w.db, "SELECT count(), sum(revision) FROM alerts FINAL") == "5\t6" && r.metric("picket_detector_pending_rows") == 0
	})
	want := strings.Join([]string{schemas.FormatID(schemas.Hash128("alert", "0")), "2", "2026-11-20 10:00:00.123456789", "2026-11-20 10:00:01.123000000", "c1", "n1",
		"Shell in container", "shell", "high", "4", "80", `a shell was started in \'web\'\n`, "process", "shop", "web-1", "Deployment", "web", "c0ffee", "web", "r/web", "1", "sha256:00",
		"42", "sh", "/bin/sh", "sh -i", "['nginx','runc']", "root",
		"['container','shell']", "['T1059.004','T1078']", "['TA0002','TA0001','TA0003']", "['K8S.NODE_Shell']", "{'evt.type':'execve','proc.name':'sh'}", "['" + schemas.FormatID(schemas.Hash128("event", "0")) + "']", schemas.FormatID(schemas.Hash128("alert", "0")) + "-2"}, "\t")
	if got := query(t, w.db, "SELECT * EXCEPT finding FROM alerts WHERE revision = 2"); got != want {
		t.Errorf("the row is\n%s\nwant\n%s", got, want)
	}
	if got := query(t, w.db, "SELECT JSONExtractString(finding, 'finding_info', 'attacks', 1, 'sub_technique', 'uid') FROM alerts WHERE revision = 2"); got != "T1059.004" {
		t.Errorf("in the finding: %q", got)
	}
	if dead := w.deadLetters(); len(dead) != 1 || !strings.Contains(dead[0], "finding_info.uid") {
		t.Errorf("dead letters: %q", dead)
	}
	r.stop()
	if l := w.ledgerOf(schemas.DurableAlertsWriter, "alerts"); len(l.Plans) != 0 {
		t.Errorf("plans left: %+v", l.Plans)
	}
}

// Revisions of one alert collapse in ClickHouse, within an insert at once, so
// that looking for the older ones finds nothing. The writer inserts those
// again, and comes to an end all the same: with the first insert that is
// answered, even if every insert is merged before anybody can look.
func TestAlertRevisions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const lost = 4 // answers
	p := newProxy(t, w.ch.URL)
	var tokens []string
	p.set(func(token string, done bool) error {
		if !done {
			return nil
		}
		tokens = append(tokens, token)
		if err := w.db.exec(context.Background(), "OPTIMIZE TABLE picket.alerts FINAL"); err != nil {
			t.Error(err)
		}
		if len(tokens)%2 == 1 && len(tokens) < 2*lost {
			return errSpoiled // the repetition is answered, and then verified
		}
		return nil
	})
	for revision := range 3 {
		w.alert(exampleFinding(0, revision+1), nil)
	}
	r := w.startOn(p.URL, NewAlerts(), nil)
	done := func() bool { return w.idle(schemas.StreamAlerts, schemas.DurableAlertsWriter) }
	eventually(t, "every alert is acknowledged", 20*time.Second, done)
	// An older revision comes again.
	w.alert(exampleFinding(0, 1), map[string]string{schemas.HeaderReplayed: "1"})
	eventually(t, "the repeated alert is acknowledged", 20*time.Second, done)
	r.stop()
	if got := query(t, w.db, "SELECT groupArray(revision) FROM alerts FINAL"); got != "[3]" {
		t.Errorf("revisions %s", got)
	}
	// Four inserts whose answer was lost, each repeated; one that was answered
	// at once; one for the repeated alert.
	if len(tokens) != 2*lost+2 {
		t.Errorf("%d attempts: %q", len(tokens), tokens)
	}
	if l := w.ledgerOf(schemas.DurableAlertsWriter, "alerts"); len(l.Plans) != 0 {
		t.Errorf("plans left: %+v", l.Plans)
	}
}

func TestParseFinding(t *testing.T) {
	for name, spoil := range map[string]func(*schemas.Finding){
		"no id":        func(f *schemas.Finding) { f.FindingInfo.UID = "" },
		"odd id":       func(f *schemas.Finding) { f.FindingInfo.UID = "0000000000-00-0000-0000-000000000000" },
		"no severity":  func(f *schemas.Finding) { f.SeverityID = 0 },
		"severity 6":   func(f *schemas.Finding) { f.SeverityID = 6 },
		"year 1":       func(f *schemas.Finding) { f.Unmapped.Time, f.Time = time.Time{}, -1e15 },
		"year 3000":    func(f *schemas.Finding) { f.Unmapped.Time = time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"made in 3000": func(f *schemas.Finding) { f.FindingInfo.CreatedTime = 1e15 },
		"odd evidence": func(f *schemas.Finding) { f.Evidences[0].UID = "x" },
	} {
		f := exampleFinding(1, 1)
		spoil(f)
		data, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewAlerts().Decode(Message{Data: data}); !fault.IsPermanent(err) || !strings.HasPrefix(err.Error(), "finding: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewAlerts().Decode(Message{Data: []byte("{\"message\":\"\xff\"}")}); !fault.IsPermanent(err) {
		t.Errorf("not UTF-8: %v", err)
	}
}

// Whatever comes on PICKET_ALERTS, it becomes a whole row or a permanent error.
func FuzzFinding(f *testing.F) {
	data, err := json.Marshal(exampleFinding(1, 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"severity_id":1,"evidences":[]}`))
	t := NewAlerts().Tables()[0]
	block := newBlock(t.Columns, t.Types)
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzzRows(t, NewAlerts(), block, Message{Data: data, Time: time.Now()})
	})
}

// Whatever comes on PICKET_EVENTS, it becomes whole rows or a permanent error.
func FuzzEvents(f *testing.F) {
	src := NewEvents()
	for _, m := range realistic(f, schemas.Process, 1) {
		f.Add(m.Data)
	}
	t := src.Tables()[schemas.Process]
	block := newBlock(t.Columns, t.Types)
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzzRows(t, src, block, Message{Subject: schemas.EventsSubject("c", "n", schemas.Process), Data: data, Time: time.Now()})
	})
}

func fuzzRows(t *testing.T, src Source, block *Block, m Message) {
	r, err := src.Decode(m)
	if err != nil {
		if !fault.IsPermanent(err) {
			t.Fatalf("not permanent: %v", err)
		}
		return
	}
	if r.Size() > maxUnpacked || r.Count() < 1 || len(r.BatchID()) > maxBatchID {
		t.Fatalf("%d rows, %d bytes, batch id %q", r.Count(), r.Size(), r.BatchID())
	}
	block.reset()
	r.Append(block)
	r.Append(block)
	if block.rows != 2*r.Count() {
		t.Fatalf("%d rows in the block", block.rows)
	}
	for i, c := range block.cols {
		if n := c.rows(); n != 0 && n != block.rows {
			t.Fatalf("column %s has %d of %d values", block.names[i], n, block.rows)
		}
	}
	block.encode()
}
