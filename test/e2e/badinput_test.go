package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"picket/schemas"
)

// auditEvent is one event of an audit log, with a body of the given size.
func auditEvent(id string, size int) string {
	now := time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")
	return fmt.Sprintf(`{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Request","auditID":"%s","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/x/configmaps","verb":"create","user":{"username":"alice"},"sourceIPs":["127.0.0.1"],"objectRef":{"resource":"configmaps","namespace":"x","name":"c","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":201},"requestObject":{"kind":"ConfigMap","apiVersion":"v1","data":{"k":"%s"}},"requestReceivedTimestamp":"%s","stageTimestamp":"%s"}`,
		id, strings.Repeat("x", size), now, now)
}

// post sends events and returns the answer's status.
func (c *cluster) post(webhook string, events ...string) int {
	c.t.Helper()
	body := `{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[` + strings.Join(events, ",") + `]}`
	resp, err := http.Post("http://"+webhook+"/audit", "application/json", strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func (c *cluster) alive(names ...string) {
	c.t.Helper()
	for _, n := range names {
		select {
		case <-c.procs[n].done:
			c.t.Errorf("%s has ended", n)
		default:
		}
	}
}

// logHas waits until a service's log has the words, for at most ten seconds.
func (c *cluster) logHas(name string, words ...string) {
	c.t.Helper()
	var b []byte
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		b, _ = os.ReadFile(filepath.Join(c.dir, name+".log"))
		for line := range strings.Lines(string(b)) {
			all := true
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all {
				return
			}
		}
	}
	c.t.Errorf("%s's log has no line with %q:\n%s", name, words, b)
}

// processing starts everything but the sensor.
func processing(t *testing.T) (c *cluster, webhook string) {
	c = newCluster(t)
	webhook = freeAddress(t)
	c.service("enricher")
	c.service("detector", "--clickhouse.url", c.chURL)
	c.service("sink", "--clickhouse.url", c.chURL)
	c.service("auditlog-ingest", "--webhook.listen", webhook, "--state_dir", filepath.Join(c.dir, "ingest"))
	for _, name := range []string{"enricher", "detector", "sink", "auditlog-ingest"} {
		c.start(name)
	}
	return c, webhook
}

func TestBadInput(t *testing.T) {
	c, webhook := processing(t)
	admin := c.bus(schemas.ServiceAdmin)
	defer admin.Close()
	ctx := context.Background()

	// A batch that is cut short, one that is no batch, and one that claims
	// another class than its subject.
	if status := c.post(webhook, auditEvent("before", 10)); status != http.StatusOK {
		t.Fatalf("webhook answered %d", status)
	}
	raw := schemas.RawSubject("e2e", "evil", schemas.Process)
	for _, data := range [][]byte{bytes.Repeat([]byte{0xff}, 1000), []byte("\xff\xff\xff\xff\x10\x00\x00\x00"), nil} {
		if _, err := admin.JS.Publish(ctx, raw, data); err != nil {
			t.Fatal(err)
		}
	}
	// One event of 20 MB, between two good ones.
	if status := c.post(webhook, auditEvent("left", 10), auditEvent("large", 20<<20), auditEvent("right", 10)); status != http.StatusOK {
		t.Errorf("webhook answered %d to an event of 20 MB", status)
	}
	if status := c.post(webhook, `{"kind":"Event"`); status != http.StatusBadRequest {
		t.Errorf("webhook answered %d to broken JSON", status)
	}
	if status := c.post(webhook, auditEvent("after", 10)); status != http.StatusOK {
		t.Errorf("webhook answered %d after bad requests", status)
	}
	c.drain()
	time.Sleep(200 * time.Millisecond)
	for deadline := time.Now().Add(15 * time.Second); c.number("SELECT count() FROM audit") < 5 && time.Now().Before(deadline); {
		time.Sleep(200 * time.Millisecond)
	}
	rows := c.rows("SELECT audit_id, toString(audit_trimmed) FROM audit ORDER BY audit_id")
	if got := fmt.Sprint(rows); got != "[[after false] [before false] [large true] [left false] [right false]]" {
		t.Errorf("stored: %s", got)
	}
	dead, err := admin.JS.Stream(ctx, schemas.StreamDead)
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]int{}
	for seq := uint64(1); seq <= dead.CachedInfo().State.LastSeq; seq++ {
		m, err := dead.GetMsg(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		if m.Header.Get(schemas.HeaderReason) == "" || m.Header.Get(schemas.HeaderSHA256) == "" || len(m.Data) > schemas.MaxDeadBytes {
			t.Errorf("dead letter %d on %s: %v, %d bytes", seq, m.Subject, m.Header, len(m.Data))
		}
		reasons[m.Subject]++
	}
	if reasons["picket.dead.enricher"] != 3 || reasons["picket.dead.auditlog-ingest"] == 0 {
		t.Errorf("dead letters: %v", reasons)
	}
	for _, service := range []string{"enricher", "auditlog-ingest"} {
		n := 0
		for deadline := time.Now().Add(15 * time.Second); n == 0 && time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
			n = c.number("SELECT sum(health_count) FROM health WHERE action = 'loss' AND health_reason = 'dead_letter' AND health_service = '" + service + "'")
		}
		if n == 0 {
			t.Errorf("no dead letter of %s is counted as loss", service)
		}
	}
	c.alive("enricher", "detector", "sink", "auditlog-ingest")
}

// TestClickHouseGone takes ClickHouse away for a while: alerts go on, nothing
// is lost, nothing is there twice.
func TestClickHouseGone(t *testing.T) {
	c, webhook := processing(t)
	if err := syscall.Kill(c.ch.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-c.ch.Done()
	for i := range 100 {
		if status := c.post(webhook, auditEvent(fmt.Sprint("gone-", i), 100)); status != http.StatusOK {
			t.Fatalf("webhook answered %d", status)
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.logHas("sink", "clickhouse.url")
	c.alive("enricher", "detector", "sink", "auditlog-ingest")
	c.startClickHouse(strings.TrimPrefix(c.chURL, "http://"))
	c.drain()
	if total, different := c.number("SELECT count() FROM audit"), c.number("SELECT uniqExact(audit_id) FROM audit"); total != 100 || different != 100 {
		t.Errorf("%d rows of %d events, want 100 of 100", total, different)
	}
}

// TestFullDiskUnderNATS fills the file system that JetStream is on: the
// ingester spools, then pushes back, and everything it accepted is stored once
// there is room again.
func TestFullDiskUnderNATS(t *testing.T) {
	needRoot(t)
	c, webhook := processing(t)
	// JetStream's folder moves to a small file system of its own.
	c.stop("auditlog-ingest")
	c.stop("enricher")
	c.stop("nats")
	dir := filepath.Join(c.dir, "nats", "jetstream")
	saved := filepath.Join(c.dir, "saved")
	if err := os.Rename(dir, saved); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.stop("nats")
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := os.CopyFS(dir, os.DirFS(saved)); err != nil {
		t.Fatal(err)
	}
	c.start("nats")
	c.service("auditlog-ingest", "--webhook.listen", webhook, "--state_dir", filepath.Join(c.dir, "ingest"), "--spool_bytes", fmt.Sprint(4<<20))
	c.start("auditlog-ingest")
	// The enricher is away, so that PICKET_RAW fills. The bodies differ, so
	// that compression does not make them small.
	accepted, refused, begin := 0, 0, time.Now()
	for i := 0; refused == 0 && i < 200; i++ {
		var events []string
		for n := range 10 {
			noise := make([]byte, 0, 100<<10)
			for j := 0; len(noise) < 100<<10; j++ {
				noise = fmt.Appendf(noise, "%x", schemas.Hash128(fmt.Sprint(i, "/", n, "/", j)))
			}
			events = append(events, strings.Replace(auditEvent(fmt.Sprint("disk-", i, "-", n), 0), `"k":""`, `"k":"`+string(noise)+`"`, 1))
		}
		switch status := c.post(webhook, events...); status {
		case http.StatusOK:
			accepted += len(events)
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			refused++ // after the 20 seconds that the webhook waits for room
		default:
			t.Fatalf("webhook answered %d", status)
		}
	}
	t.Logf("after %s: full", time.Since(begin).Round(time.Second))
	if refused == 0 {
		t.Fatalf("%d events of 100 KB were accepted and none refused", accepted)
	}
	c.logHas("auditlog-ingest", "spool")
	c.alive("auditlog-ingest", "detector", "sink")

	// Room again. A JetStream that found its disk full stays off until its
	// server is started again, as its documentation says.
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=512m"); err != nil {
		t.Fatal(err)
	}
	c.stop("nats")
	c.start("nats")
	c.start("enricher")
	t.Logf("after %s: room again", time.Since(begin).Round(time.Second))
	for deadline := time.Now().Add(60 * time.Second); c.number("SELECT uniqExact(audit_id) FROM audit") < accepted && time.Now().Before(deadline); {
		time.Sleep(500 * time.Millisecond)
	}
	t.Logf("after %s: stored", time.Since(begin).Round(time.Second))
	c.drain()
	total, different := c.number("SELECT count() FROM audit"), c.number("SELECT uniqExact(audit_id) FROM audit")
	// An event that was refused may still have been spooled before its answer
	// was lost; one that was accepted must be there.
	if different < accepted || total != different {
		t.Errorf("%d accepted, %d stored in %d rows", accepted, different, total)
	}
	t.Logf("%d events accepted before the first refusal", accepted)
}

// TestErrorsAreSentences starts programs with wrong settings: each must end
// with one sentence that names the cause, never with a stack trace.
func TestErrorsAreSentences(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	badField := write("bad.yaml", "- rule: r\n  desc: d\n  condition: evt.type = execve and proc.nmae = sh\n  output: o\n  priority: WARNING\n")
	tests := []struct {
		name string
		args []string
		want []string
	}{
		{"rule with an unknown field", []string{"picket", "rules", "check", badField}, []string{"bad.yaml:3:", "proc.nmae", "proc.name"}},
		{"detector with such a rule", []string{"picket-detector", "--rules", badField}, []string{"bad.yaml:3:", "proc.nmae"}},
		{"unknown key", []string{"picket-sink", "--config", write("k.yaml", "clickhoose: {}\n")}, []string{"k.yaml", "line 1", "clickhoose"}},
		{"native ClickHouse address", []string{"picket-sink", "--clickhouse.url", "clickhouse://localhost:9000"}, []string{"clickhouse.url", "http://"}},
		{"no such credentials", []string{"picket-enricher", "--nats.credentials_file", "/does/not/exist"}, []string{"nats.credentials_file", "/does/not/exist"}},
		{"no data folder in use", []string{"picket", "--data", dir, "alerts"}, []string{"no Picket runs", "picket up"}},
		{"unknown severity", []string{"picket", "alerts", "--severity", "loud"}, []string{"--severity", "loud", "critical"}},
		{"unknown behaviour", []string{"picket", "simulate", "nothing"}, []string{"nothing", "--list"}},
		{"unknown format", []string{"picket", "replay", "--format", "x", badField}, []string{"--format", "kube-audit"}},
		{"capture that is none", []string{"picket", "replay", "--format", "capture", badField}, []string{"bad.yaml", "arrow"}},
		{"file that does not exist", []string{"picket", "replay", "--format", "capture", "/does/not/exist"}, []string{"/does/not/exist"}},
	}
	for _, tt := range tests {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		cmd := exec.CommandContext(ctx, filepath.Join(binaries, tt.args[0]), tt.args[1:]...)
		out, err := cmd.CombinedOutput()
		cancel()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || ctx.Err() == context.DeadlineExceeded {
			t.Errorf("%s: ended with %v", tt.name, err)
		}
		for _, w := range tt.want {
			if !strings.Contains(string(out), w) {
				t.Errorf("%s: %q does not say %q", tt.name, out, w)
			}
		}
		if strings.Contains(string(out), "goroutine ") || strings.Count(string(out), "\n") > 6 {
			t.Errorf("%s: not a sentence:\n%s", tt.name, out)
		}
	}
}

// TestSensorSaysWhatIsMissing runs the sensor as nobody.
func TestSensorSaysWhatIsMissing(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	// The temporary folders above are root's alone.
	sensor := filepath.Join("/dev/shm", fmt.Sprintf("picket-sensor-%d", os.Getpid()))
	b, err := os.ReadFile(filepath.Join(binaries, "picket-sensor"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sensor, b, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(sensor)
	state, err := os.MkdirTemp("/dev/shm", "picket-state-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(state)
	if err := os.Chmod(state, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(sensor, "--nats.url", "nats://127.0.0.1:1", "--state_dir", state, "--log.level", "error")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "root") && !strings.Contains(string(out), "CAP_BPF") || strings.Contains(string(out), "goroutine ") {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
	t.Logf("%s", bytes.TrimSpace(out))
}
