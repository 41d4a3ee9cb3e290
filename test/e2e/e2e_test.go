// Package e2e tries all of Picket as separate processes on the live kernel:
// what no part can show alone.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"picket/internal/bus"
	"picket/internal/clickhousebin"
	"picket/internal/freeport"
	"picket/internal/natsserver"
	"picket/internal/store"
	"picket/schemas"
)

// Set in the environment of this test binary it makes it a NATS server, so
// that the server is a process that can be killed.
const natsVariable = "PICKET_E2E_NATS"

var binaries string // folder

func TestMain(m *testing.M) {
	if dir := os.Getenv(natsVariable); dir != "" {
		os.Exit(runNATS(dir, os.Getenv(natsVariable+"_LISTEN")))
	}
	dir, err := os.MkdirTemp("", "picket-e2e-")
	if err != nil {
		panic(err)
	}
	binaries = filepath.Join(dir, "bin")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", binaries+"/", "picket/cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the commands: %v\n%s", err, out)
		os.RemoveAll(dir)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func runNATS(dir, listen string) int {
	s, err := natsserver.Start(natsserver.Options{Dir: dir, Listen: listen})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
	s.Stop()
	return 0
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED (needs root): Picket was not tried end to end on the live kernel")
	}
}

// cluster is everything as separate processes.
type cluster struct {
	t     *testing.T
	dir   string
	nats  string // host:port
	ch    *clickhousebin.Server
	chURL string
	procs map[string]*process
}

type process struct {
	name  string
	cmd   *exec.Cmd
	start func() *exec.Cmd
	ready string // URL that answers 200
	done  chan struct{}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	a, err := freeport.Address("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{t: t, dir: t.TempDir(), nats: freeAddress(t), procs: map[string]*process{}}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c.add("nats", "", func() *exec.Cmd {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), natsVariable+"="+filepath.Join(c.dir, "nats"), natsVariable+"_LISTEN="+c.nats)
		return cmd
	})
	c.start("nats")
	c.startClickHouse(freeAddress(t))
	t.Cleanup(c.stopAll)

	admin := c.bus(schemas.ServiceAdmin)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := admin.Migrate(ctx, bus.DefaultLimits().Within(3<<30)); err != nil { // whatever disk is free here
		t.Fatal(err)
	}
	admin.Close()
	db := c.store()
	defer db.Close()
	if err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cluster) creds(service string) string {
	return filepath.Join(c.dir, "nats", "credentials", service+".creds")
}

func (c *cluster) bus(service string) *bus.Bus {
	c.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		b, err := bus.Connect(bus.Config{URL: "nats://" + c.nats, CredentialsFile: c.creds(service)}, service, slog.New(slog.DiscardHandler))
		if err == nil && b.Ready() == nil {
			return b
		}
		if err == nil {
			b.Close()
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("nats does not answer: %v", err)
		}
	}
}

func (c *cluster) store() *store.DB {
	c.t.Helper()
	cfg := store.DefaultConfig()
	cfg.URL = c.chURL
	db, err := store.Open(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		c.t.Fatal(err)
	}
	return db
}

func (c *cluster) startClickHouse(listen string) {
	c.t.Helper()
	ch, err := clickhousebin.Start(context.Background(), clickhousebin.Options{Data: filepath.Join(c.dir, "clickhouse"), Listen: listen, Binary: filepath.Join(binaries, "picket-clickhouse")})
	if err != nil {
		c.t.Fatal(err)
	}
	c.ch, c.chURL = ch, ch.URL
}

func (c *cluster) add(name, ready string, start func() *exec.Cmd) {
	c.procs[name] = &process{name: name, ready: ready, start: start}
}

// service declares a service's process, with flags beside the common ones.
func (c *cluster) service(name string, flags ...string) {
	admin := freeAddress(c.t)
	args := append([]string{"--nats.url", "nats://" + c.nats, "--nats.credentials_file", c.creds(name), "--admin.listen", admin,
		"--log.file", filepath.Join(c.dir, name+".log"), "--cluster", "e2e"}, flags...)
	c.add(name, "http://"+admin+"/readyz", func() *exec.Cmd { return exec.Command(filepath.Join(binaries, "picket-"+name), args...) })
}

func (c *cluster) start(name string) {
	c.t.Helper()
	p := c.procs[name]
	p.cmd = p.start()
	var output bytes.Buffer
	p.cmd.Stdout, p.cmd.Stderr = &output, &output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	p.done = make(chan struct{})
	go func() { // ends with the process
		_ = p.cmd.Wait() // how it ended is in ProcessState
		close(p.done)
	}()
	for deadline := time.Now().Add(60 * time.Second); p.ready != ""; time.Sleep(20 * time.Millisecond) {
		if resp, err := http.Get(p.ready); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		select {
		case <-p.done:
			c.t.Fatalf("%s ended: %s", name, output.String())
		default:
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s does not become ready: %s", name, output.String())
		}
	}
}

func (c *cluster) kill(name string) {
	c.t.Helper()
	p := c.procs[name]
	if err := p.cmd.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	<-p.done
}

func (c *cluster) stop(name string) {
	p := c.procs[name]
	if p == nil || p.cmd == nil || p.cmd.Process == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(40 * time.Second):
		c.t.Errorf("%s does not stop", name)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

func (c *cluster) stopAll() {
	for _, name := range []string{"sensor", "auditlog-ingest", "enricher", "detector", "sink"} {
		c.stop(name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := c.ch.Stop(ctx); err != nil {
		c.t.Log(err)
	}
	c.stop("nats")
	if c.t.Failed() {
		logs, _ := filepath.Glob(filepath.Join(c.dir, "*.log"))
		for _, l := range logs {
			b, _ := os.ReadFile(l)
			c.t.Logf("%s:\n%s", filepath.Base(l), b[max(0, len(b)-4000):])
		}
	}
}

// query returns the single number of a query.
func (c *cluster) number(sql string) int {
	c.t.Helper()
	rows := c.rows(sql)
	if len(rows) != 1 || len(rows[0]) != 1 {
		c.t.Fatalf("%s: %v", sql, rows)
	}
	n, err := strconv.Atoi(rows[0][0])
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

func (c *cluster) rows(sql string) [][]string {
	c.t.Helper()
	db := c.store()
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := db.Query(ctx, sql, "JSONCompactStringsEachRow")
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Close()
	var out [][]string
	for dec := json.NewDecoder(r); ; {
		var row []string
		if err := dec.Decode(&row); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			c.t.Fatal(err)
		}
		out = append(out, row)
	}
}

// drain waits until nothing is under way.
func (c *cluster) drain() {
	c.t.Helper()
	b := c.bus(schemas.ServiceAdmin)
	defer b.Close()
	deadline := time.Now().Add(90 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		waiting := ""
		for _, stream := range []string{schemas.StreamRaw, schemas.StreamEvents} {
			s, err := b.JS.Stream(ctx, stream)
			if err != nil {
				c.t.Fatal(err)
			}
			// Not whether messages are left: a server that is killed can come back with some that were
			// acknowledged, and delivers them to nobody. What they hold is in the sums that follow.
			for i := range s.ListConsumers(ctx).Info() {
				if i.NumPending > 0 || i.NumAckPending > 0 {
					waiting += fmt.Sprintf(" %s of %s: %d pending, %d under way, %d redelivered;", i.Name, stream, i.NumPending, i.NumAckPending, i.NumRedelivered)
				}
			}
		}
		w, err := b.JS.Consumer(ctx, schemas.StreamAlerts, schemas.DurableAlertsWriter)
		if err != nil {
			c.t.Fatal(err)
		}
		if i := w.CachedInfo(); i.NumPending+uint64(i.NumAckPending) > 0 {
			waiting += "alerts"
		}
		if waiting == "" {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("does not come to rest: %s", waiting)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// load makes kernel and audit events until stop is called, and returns how
// many probes were run and how many audit events were accepted.
func (c *cluster) load(webhook string) (stop func() (probes, audits int)) {
	c.t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "picket-e2e-load-")
	if err != nil {
		c.t.Fatal(err)
	}
	probe := filepath.Join(dir, "probe")
	b, err := os.ReadFile("/bin/true")
	if err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(probe, b, 0o755); err != nil {
		c.t.Fatal(err)
	}
	end := make(chan struct{})
	var wg sync.WaitGroup
	var probes, audits int
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			case <-time.After(5 * time.Millisecond):
			}
			if err := exec.Command("/bin/sh", "-c", "echo x > "+filepath.Join(dir, "file")).Run(); err != nil {
				c.t.Errorf("load: %v", err)
				return
			}
			if conn, err := net.Dial("udp", "127.0.0.1:53"); err == nil { // a question that nobody need answer
				_, _ = conn.Write([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01x\x00\x00\x01\x00\x01"))
				conn.Close()
			}
			if i%10 == 0 {
				if err := exec.Command(probe, strconv.Itoa(probes)).Run(); err != nil {
					c.t.Errorf("probe: %v", err)
					return
				}
				probes++
			}
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-end:
				return
			case <-time.After(25 * time.Millisecond):
			}
			var items []string
			for i := range 5 {
				now := time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")
				items = append(items, fmt.Sprintf(`{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"e2e-%d","stage":"ResponseComplete","requestURI":"/api/v1/namespaces/x/pods","verb":"list","user":{"username":"alice"},"sourceIPs":["127.0.0.1"],"objectRef":{"resource":"pods","namespace":"x","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":200},"requestReceivedTimestamp":"%s","stageTimestamp":"%s"}`, audits+i, now, now))
			}
			body := `{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[` + strings.Join(items, ",") + `]}`
			// As an API server does: again until it is accepted.
			for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
				resp, err := http.Post(webhook, "application/json", strings.NewReader(body))
				if err == nil {
					resp.Body.Close()
					if resp.StatusCode == http.StatusOK {
						break
					}
				}
				if time.Since(begin) > time.Minute {
					c.t.Errorf("audit events are not accepted: %v", err)
					return
				}
			}
			audits += len(items)
		}
	})
	return func() (int, int) {
		close(end)
		wg.Wait()
		if err := os.RemoveAll(dir); err != nil {
			c.t.Error(err)
		}
		return probes, audits
	}
}

// keepsOnly holds every thread of a process to its capabilities, for good.
func keepsOnly(t *testing.T, pid int, want uint64) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of process %d: %v, %v", pid, threads, err)
	}
	for _, file := range threads {
		status, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		if !strings.Contains(string(status), "\nNoNewPrivs:\t1\n") {
			t.Errorf("%s: it can get privileges by running a program", file)
		}
		for _, set := range []string{"CapEff", "CapPrm", "CapInh"} {
			want := want
			if set == "CapInh" {
				want = 0
			}
			if !strings.Contains(string(status), fmt.Sprintf("\n%s:\t%016x\n", set, want)) {
				t.Errorf("%s: %s is not %016x:\n%s", file, set, want, status)
			}
		}
	}
}

// TestKillEverythingOnce kills every process with SIGKILL in the middle of a
// run and starts it again: no event may be lost but what a killed sensor had
// in its hands, which must be counted exactly, and none may be there twice.
func TestKillEverythingOnce(t *testing.T) {
	needRoot(t)
	c := newCluster(t)
	webhook := freeAddress(t)
	c.service("enricher")
	c.service("detector", "--clickhouse.url", c.chURL)
	c.service("sink", "--clickhouse.url", c.chURL)
	c.service("auditlog-ingest", "--webhook.listen", webhook, "--state_dir", filepath.Join(c.dir, "ingest"))
	instance := fmt.Sprintf("e2e-%d", os.Getpid())
	c.service("sensor", "--node", "node-1", "--state_dir", filepath.Join(c.dir, "sensor"), "--kernel.instance", instance)
	for _, name := range []string{"enricher", "detector", "sink", "auditlog-ingest", "sensor"} {
		c.start(name)
	}
	keepsOnly(t, c.procs["sensor"].cmd.Process.Pid, 1<<unix.CAP_DAC_READ_SEARCH|1<<unix.CAP_SYS_PTRACE)
	stop := c.load("http://" + webhook + "/audit")
	time.Sleep(2 * time.Second)
	for _, name := range []string{"enricher", "detector", "sink", "auditlog-ingest", "sensor", "nats", "clickhouse", "sensor"} {
		if name == "clickhouse" {
			if err := syscall.Kill(c.ch.Pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			<-c.ch.Done()
			time.Sleep(500 * time.Millisecond)
			c.startClickHouse(strings.TrimPrefix(c.chURL, "http://"))
		} else {
			c.kill(name)
			time.Sleep(300 * time.Millisecond)
			c.start(name)
		}
		time.Sleep(1500 * time.Millisecond)
	}
	probes, audits := stop()
	time.Sleep(time.Second)
	c.stop("sensor")
	c.stop("auditlog-ingest")
	c.drain()

	for _, class := range schemas.Classes() {
		if class == schemas.Correction { // without Kubernetes nothing is known later
			continue
		}
		total, different := c.number("SELECT count() FROM "+class.Table()), c.number("SELECT uniqExact(event_id) FROM "+class.Table())
		if total != different || total == 0 {
			t.Errorf("%s: %d rows, %d different event ids", class, total, different)
		}
	}
	if n := c.number("SELECT uniqExact(audit_id) FROM audit"); n != audits {
		t.Errorf("audit: %d accepted, %d stored", audits, n)
	}
	lostTotal := 0
	for _, class := range []string{"process", "file", "network", "kernel", "dns"} {
		seen := c.number("SELECT toUInt64(max(health_total)) FROM health WHERE action = 'counters' AND health_service = 'sensor' AND health_reason = 'kernel_seen' AND health_class = '" + class + "'")
		stored := c.number("SELECT count() FROM " + class)
		lost := c.number("SELECT sum(health_count) FROM health WHERE action = 'loss' AND health_class = '" + class + "'")
		t.Logf("%s: %d seen in the kernel, %d stored, %d reported lost", class, seen, stored, lost)
		if seen != stored+lost {
			t.Errorf("%s: %d seen in the kernel is not %d stored + %d reported lost", class, seen, stored, lost)
		}
		lostTotal += lost
		// Losses by class are few: at most what one flush interval and one
		// ring reading hold.
		if lost > seen/5 {
			t.Errorf("%s: %d of %d events lost", class, lost, seen)
		}
	}
	execs := c.number("SELECT count() FROM process WHERE action = 'exec' AND process_name = 'probe'")
	if execs > probes || execs < probes-lostTotal {
		t.Errorf("%d probes ran, %d stored, %d events lost at most", probes, execs, lostTotal)
	}
	alerts := c.number("SELECT uniqExact(alert_id) FROM alerts WHERE rule = 'Program run from shared memory' AND message LIKE '%/probe%'")
	rows := c.number("SELECT count() FROM alerts WHERE rule = 'Program run from shared memory' AND message LIKE '%/probe%'")
	if alerts != execs || rows != alerts {
		t.Errorf("%d probes stored, %d alerts in %d rows", execs, alerts, rows)
	}
	t.Logf("%d probes, %d of them stored and alerted on; %d audit events", probes, execs, audits)
	if left, err := filepath.Glob("/sys/fs/bpf/picket/" + instance + "/*"); err != nil || len(left) > 0 {
		t.Errorf("pins left after a clean stop: %v %v", left, err)
	}
}
