package service

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"picket/internal/bus"
	"picket/internal/natsserver"
	"picket/internal/natsserver/natstest"
	"picket/schemas"
)

// childMark has the test binary be the service `probe`.
const childMark = "SERVICE_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childMark) != "" {
		os.Exit(Main("probe", probeConfig{Log: DefaultLog(), Mode: "return"}, probe))
	}
	goleak.VerifyTestMain(m)
}

type probeConfig struct {
	Log   LogConfig   `yaml:"log"`
	Admin AdminConfig `yaml:"admin"`
	Mode  string      `yaml:"mode" doc:"How the probe ends."`
}

func (c probeConfig) Validate() error { return errors.Join(c.Log.Validate(), c.Admin.Validate()) }

// probe is a service that ends as its configuration says.
func probe(ctx context.Context, c probeConfig) error {
	switch c.Mode {
	case "fail":
		return errors.New("the disk is full: make room")
	case "canceled":
		return fmt.Errorf("query: %w", context.Canceled)
	case "wait", "wait and fail":
		fmt.Println("waiting")
		<-ctx.Done()
		if c.Mode == "wait" {
			return fmt.Errorf("consume: %w", ctx.Err())
		}
		return errors.New("spool not closed")
	}
	return nil
}

func TestConfigErrors(t *testing.T) {
	log := func(change func(*LogConfig)) error {
		c := DefaultLog()
		change(&c)
		return c.Validate()
	}
	admin := func(listen string, pprof bool) error { return AdminConfig{listen, pprof}.Validate() }
	for _, tt := range []struct {
		name string
		err  error
		want string // "" is valid
	}{
		{"default log", DefaultLog().Validate(), ""},
		{"default admin", DefaultAdmin().Validate(), ""},
		{"text", log(func(c *LogConfig) { c.Format, c.Level = "text", "debug" }), ""},
		{"level", log(func(c *LogConfig) { c.Level = "loud" }), `log.level is "loud": use debug, info, warn or error`},
		{"no level", log(func(c *LogConfig) { c.Level = "" }), `log.level is "": use`},
		{"format", log(func(c *LogConfig) { c.Format = "xml" }), `log.format is "xml": use json or text`},
		{"any address", admin("0.0.0.0:9090", false), ""},
		{"no port", admin("localhost", false), `admin.listen is "localhost": use host:port`},
		{"pprof on IPv4 loopback", admin("127.0.0.1:9090", true), ""},
		{"pprof on any loopback", admin("127.8.8.8:9090", true), ""},
		{"pprof on IPv6 loopback", admin("[::1]:9090", true), ""},
		{"pprof on localhost", admin("localhost:9090", true), ""},
		{"pprof without port", admin("", true), ""},
		{"pprof on all", admin(":9090", true), "admin.pprof is on, but admin.listen \":9090\" is not loopback"},
		{"pprof on 0.0.0.0", admin("0.0.0.0:9090", true), "is not loopback"},
		{"pprof on ::", admin("[::]:9090", true), "is not loopback"},
		{"pprof on an address", admin("192.0.2.1:9090", true), "is not loopback"},
		{"pprof on a name", admin("localhost.example.test:9090", true), "is not loopback"},
	} {
		if tt.want == "" && tt.err != nil {
			t.Errorf("%s: %v", tt.name, tt.err)
		}
		if tt.want != "" && (tt.err == nil || !strings.Contains(tt.err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", tt.name, tt.err, tt.want)
		}
	}
}

func TestOpenLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "picket.log")
	for _, c := range []LogConfig{{"warn", "json", path}, {"info", "text", path}} { // the second appends
		log, closer, err := OpenLog(c)
		if err != nil {
			t.Fatal(err)
		}
		log.Info("quiet", "n", 1)
		log.Warn("loud", "n", 2)
		if err := closer.Close(); err != nil {
			t.Error(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines, want 3:\n%s", len(lines), data)
	}
	var first struct {
		Level, Msg string
		N          int
	}
	if err := json.Unmarshal([]byte(lines[0]), &first); err != nil || first.Level != "WARN" || first.Msg != "loud" || first.N != 2 {
		t.Errorf("%s: %v", lines[0], err)
	}
	if !strings.Contains(lines[1], "level=INFO msg=quiet n=1") || !strings.Contains(lines[2], "level=WARN msg=loud n=2") {
		t.Errorf("as text: %q", lines[1:])
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o007 != 0 {
		t.Errorf("anybody may read the log: %v %v", info.Mode(), err)
	}
	if _, closer, err := OpenLog(DefaultLog()); err != nil || closer != nil {
		t.Errorf("standard error is to be closed: %v %v", closer, err)
	}
	if _, _, err := OpenLog(LogConfig{Level: "info", File: filepath.Join(path, "below")}); err == nil || !strings.HasPrefix(err.Error(), "log.file: ") {
		t.Errorf("impossible file: %v", err)
	}
	if _, _, err := OpenLog(LogConfig{Level: "loud"}); err == nil || !strings.HasPrefix(err.Error(), "log.level: ") {
		t.Errorf("impossible level: %v", err)
	}
}

// begin starts a runtime on a free admin port and returns the port's address,
// which its log tells.
func begin(t *testing.T, n bus.Config, a AdminConfig) (rt *Runtime, address string) {
	t.Helper()
	a.Listen = "127.0.0.1:0"
	path := filepath.Join(t.TempDir(), "log")
	rt, err := Start("probe", n, LogConfig{Level: "info", Format: "json", File: path}, a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rt.Close)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var entry struct{ Msg, Address, Service string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		if entry.Service != "probe" {
			t.Errorf("log line without its service: %s", line)
		}
		if entry.Msg == "admin port open" {
			address = entry.Address
		}
	}
	if address == "" {
		t.Fatalf("the log does not tell the address:\n%s", data)
	}
	return rt, address
}

func request(t *testing.T, method, url string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func wantReady(t *testing.T, address string, reasons ...string) {
	t.Helper()
	status, body := request(t, "GET", "http://"+address+"/readyz")
	want, wantStatus := strings.Join(reasons, "\n")+"\n", http.StatusServiceUnavailable
	if len(reasons) == 0 {
		want, wantStatus = "ready\n", http.StatusOK
	}
	if status != wantStatus || body != want {
		t.Errorf("/readyz: %d %q, want %d %q", status, body, wantStatus, want)
	}
}

// The admin port tells what the service waits for, one condition a line.
func TestReady(t *testing.T) {
	s, err := natsserver.Start(natsserver.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", MaxStore: 8 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	rt, address := begin(t, natstest.Config(s, schemas.ServiceAdmin), AdminConfig{})
	wantReady(t, address, "probe: starting")

	verified := make(chan error, 1)
	go func() { verified <- rt.Verify(t.Context(), schemas.StreamEvents) }()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, body := request(t, "GET", "http://"+address+"/readyz"); strings.Contains(body, "streams") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("/readyz does not tell of the streams")
		}
	}
	wantReady(t, address, "probe: starting", "streams: not found yet")
	if status, body := request(t, "GET", "http://"+address+"/healthz"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("a service that waits is not alive: %d %q", status, body)
	}
	if err := rt.Bus.Migrate(t.Context(), bus.DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	if err := <-verified; err != nil {
		t.Fatal(err)
	}
	wantReady(t, address, "probe: starting")
	rt.Started()
	wantReady(t, address)

	rt.SetReady("zone", func() error { return errors.New("far away") })
	rt.SetReady("api server", func() error { return errors.New("no answer") })
	wantReady(t, address, "api server: no answer", "zone: far away")
	rt.SetReady("zone", func() error { return nil })
	wantReady(t, address, "api server: no answer")
	rt.SetReady("api server", func() error { return nil })
	wantReady(t, address)

	s.Stop()
	for deadline := time.Now().Add(5 * time.Second); rt.Bus.Ready() == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the connection is not lost")
		}
	}
	wantReady(t, address, "nats: nats is RECONNECTING")
}

// Without a NATS server the service lives, and says what it lacks.
func TestReadyWithoutNATS(t *testing.T) {
	rt, address := begin(t, bus.Config{URL: "nats://127.0.0.1:1"}, AdminConfig{})
	wantReady(t, address, "nats: nats is RECONNECTING", "probe: starting")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := rt.Verify(ctx, schemas.StreamRaw); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Verify: %v", err)
	}
	wantReady(t, address, "nats: nats is RECONNECTING", "probe: starting", "streams: not found yet")
}

func TestAdminPort(t *testing.T) {
	for _, on := range []bool{false, true} {
		rt, address := begin(t, bus.Config{URL: "nats://127.0.0.1:1"}, AdminConfig{Pprof: on})
		events := prometheus.NewCounter(prometheus.CounterOpts{Name: "picket_probe_events_total", Help: "Events."})
		rt.Metrics.MustRegister(events)
		events.Add(3)
		profile := http.StatusNotFound
		if on {
			profile = http.StatusOK
		}
		for _, tt := range []struct {
			method, path string
			status       int
			contains     string
		}{
			{"GET", "/metrics", http.StatusOK, "\npicket_probe_events_total 3\n"},
			{"GET", "/metrics", http.StatusOK, "\ngo_goroutines "},
			{"GET", "/metrics", http.StatusOK, "\nprocess_open_fds "},
			{"POST", "/metrics", http.StatusMethodNotAllowed, ""},
			{"GET", "/healthz", http.StatusOK, "ok\n"},
			{"GET", "/", http.StatusNotFound, ""},
			{"GET", "/debug/pprof/", profile, ""},
			{"GET", "/debug/pprof/heap", profile, ""},
			{"GET", "/debug/pprof/symbol", profile, ""},
		} {
			status, body := request(t, tt.method, "http://"+address+tt.path)
			if status != tt.status || !strings.Contains(body, tt.contains) {
				t.Errorf("pprof %v: %s %s: %d, want %d with %q", on, tt.method, tt.path, status, tt.status, tt.contains)
			}
		}
		rt.Close()
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			t.Error("the admin port is open after Close")
		}
	}
}

// A start that fails names the key, and leaves nothing behind (TestMain looks
// for goroutines).
func TestStartErrors(t *testing.T) {
	s := natstest.Start(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	good, log := natstest.Config(s, schemas.ServiceSink), LogConfig{Level: "error", Format: "json"}
	for want, start := range map[string]func() (*Runtime, error){
		"log.file: ": func() (*Runtime, error) {
			return Start("probe", good, LogConfig{Level: "info", File: "/proc/none"}, AdminConfig{})
		},
		"admin.listen: ": func() (*Runtime, error) { return Start("probe", good, log, AdminConfig{Listen: taken.Addr().String()}) },
		"nats.credentials_file": func() (*Runtime, error) {
			return Start("probe", bus.Config{URL: s.URL()}, log, AdminConfig{Listen: "127.0.0.1:0"})
		},
	} {
		rt, err := start()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if rt != nil {
			t.Errorf("%s: a runtime beside an error", want)
			rt.Close()
		}
	}
}

func child(t *testing.T, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), childMark+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr := &bytes.Buffer{}
	c.Stderr = stderr
	return c, stderr
}

// Main's exit code is 0, 1 for a failure and 2 for a bad configuration, and a
// failure is one sentence.
func TestMainExitCodes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "probe.yaml")
	if err := os.WriteFile(file, []byte("mode: return\nmodus: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args           []string
		env            string
		code           int
		stderr, stdout string // stdout is a part
	}{
		{nil, "", 0, "", ""},
		{[]string{"--help"}, "", 0, "", "--mode"},
		{[]string{"--check-config"}, "", 0, "", "configuration is valid\n"},
		{[]string{"--print-config", "--mode=x"}, "", 0, "", "mode: x\n"},
		{[]string{"--mode=fail"}, "", 1, "picket-probe: the disk is full: make room\n", ""},
		{[]string{"--mode=canceled"}, "", 1, "picket-probe: query: context canceled\n", ""},
		{[]string{"--nope"}, "", 2, "picket-probe: unknown flag: --nope\n", ""},
		{[]string{"nope"}, "", 2, "picket-probe: unexpected argument \"nope\": settings are flags (--help lists them)\n", ""},
		{[]string{"--log.level=loud"}, "", 2, "picket-probe: configuration: log.level is \"loud\": use debug, info, warn or error\n", ""},
		{[]string{"--config", file}, "", 2, "picket-probe: " + file + ": line 2: there is no setting modus here\n", ""},
		{[]string{"--config", "/does/not/exist"}, "", 2, "picket-probe: configuration file: open /does/not/exist: no such file or directory\n", ""},
		{nil, "PICKET_PROBE__MODE=fail", 1, "picket-probe: the disk is full: make room\n", ""},
		{nil, "PICKET_PROBE__MODUS=fail", 2, "picket-probe: environment variable PICKET_PROBE__MODUS: there is no setting modus\n", ""},
	} {
		t.Run(strings.Join(append(tt.args, tt.env), " "), func(t *testing.T) {
			t.Parallel()
			c, stderr := child(t, tt.args...)
			if tt.env != "" {
				c.Env = append(c.Env, tt.env)
			}
			stdout, err := c.Output()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if code := c.ProcessState.ExitCode(); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if stderr.String() != tt.stderr {
				t.Errorf("standard error %q, want %q", stderr, tt.stderr)
			}
			if !strings.Contains(string(stdout), tt.stdout) || tt.stdout == "" && len(stdout) > 0 {
				t.Errorf("standard output %q, want %q", stdout, tt.stdout)
			}
		})
	}
}

// A service that was told to stop has not failed, unless something else went
// wrong.
func TestMainStops(t *testing.T) {
	for _, tt := range []struct {
		mode   string
		signal os.Signal
		code   int
		stderr string
	}{
		{"wait", syscall.SIGTERM, 0, ""},
		{"wait", os.Interrupt, 0, ""},
		{"wait and fail", syscall.SIGTERM, 1, "picket-probe: spool not closed\n"},
	} {
		t.Run(fmt.Sprint(tt.mode, " ", tt.signal), func(t *testing.T) {
			t.Parallel()
			c, stderr := child(t, "--mode="+tt.mode)
			stdout, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "waiting\n" {
				t.Fatalf("%q: %v", line, err)
			}
			if err := c.Process.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			_ = c.Wait() // the exit code tells
			if code := c.ProcessState.ExitCode(); code != tt.code || stderr.String() != tt.stderr {
				t.Errorf("exit code %d and %q, want %d and %q", code, stderr, tt.code, tt.stderr)
			}
		})
	}
}
