// Package rig is what the programs under test/ share that watch the sensor do
// its work: a NATS server and a picket-sensor, each a process of its own, and
// the sensor's figures and accounts.
package rig

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"picket/internal/bus"
	"picket/internal/freeport"
	"picket/internal/natsserver"
	"picket/schemas"
)

// Cluster is the name of the cluster that the sensor says it is in.
const Cluster = "bench"

// Process is a process of the program. It is asked to stop should the program
// die, so that a sensor takes its programs in the kernel with it.
type Process struct {
	PID int

	name, output string // output is a file: a pipe would kill it when the program dies
	cmd          *exec.Cmd
	done         chan struct{}
	err          error // how it ended; set when done is closed
}

func start(name, output, binary string, args ...string) (*Process, error) {
	out, err := os.OpenFile(output, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &Process{name: name, output: output, cmd: exec.Command(binary, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.PID = p.cmd.Process.Pid
	go func() { // ends with the process
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Stop ends the process within a minute; a second call does nothing.
func (p *Process) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(60 * time.Second):
		p.Kill()
		return fmt.Errorf("%s did not stop within a minute and was killed", p.name)
	}
	if p.err != nil {
		return fmt.Errorf("%s: %w: %s", p.name, p.err, p.said())
	}
	return nil
}

// Kill ends the process by SIGKILL, which it cannot prepare for.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// said returns the last that the process wrote.
func (p *Process) said() string {
	b, err := os.ReadFile(p.output)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-2000):]))
}

// Until calls try until it says that it is done, the process ends or the
// time is over.
func (p *Process) Until(ctx context.Context, most, every time.Duration, what string, try func() (bool, error)) error {
	for end := time.Now().Add(most); ; {
		ok, err := try()
		if ok {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended: %s", p.name, p.said())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
		if time.Now().After(end) {
			return errors.Join(fmt.Errorf("%s: not %s after %v", p.name, what, most), err)
		}
	}
}

// CPU returns the processor time, user and system, that the process has used.
func (p *Process) CPU() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return 0, err
	}
	// The second field, the name, may have spaces; utime and stime are the
	// 14th and 15th, in hundredths of a second.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is short: %q", p.PID, b)
	}
	var sum int64
	for _, t := range f[11:13] {
		n, err := strconv.ParseInt(t, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return time.Duration(sum) * 10 * time.Millisecond, nil
}

// Memory returns the resident memory in bytes: the most so far, and now.
func (p *Process) Memory() (peak, now float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "VmHWM: %f kB", &kib); err == nil {
			peak = kib * 1024
		}
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kib); err == nil {
			now = kib * 1024
		}
	}
	return peak, now, nil
}

// NATS is a NATS server, a process of its own, with the streams made.
type NATS struct {
	*Process
	Admin *bus.Bus // a connection that may do everything; it outlives a restart

	url, address, dir string
}

// serve is the first argument of a program that is to be the NATS server.
const serve = "picket-nats-server"

// ServeNATS makes this process the NATS server when StartNATS has started it
// as one, and does not return then. A program that calls StartNATS calls it
// first of all.
func ServeNATS() {
	if len(os.Args) != 4 || os.Args[1] != serve {
		return
	}
	s, err := natsserver.Start(natsserver.Options{Dir: os.Args[2], Listen: os.Args[3]})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	<-ctx.Done()
	stop()
	s.Stop()
	os.Exit(0)
}

// StartNATS starts a server with its files in dir, and makes the streams.
// Nobody takes from PICKET_RAW while it is looked at: it holds rawBytes.
func StartNATS(ctx context.Context, dir string, rawBytes int64) (*NATS, error) {
	address, err := freeport.Address("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &NATS{url: "nats://" + address, address: address, dir: dir}
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	limits := bus.DefaultLimits().Within(1 << 30) // nothing else is stored
	limits.RawBytes = rawBytes
	if err := s.Admin.Migrate(ctx, limits); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// Start starts a server that was killed again, with the files and the address
// that it had, and returns when it answers.
func (s *NATS) Start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if s.Process, err = start("nats server", s.dir+".log", self, serve, s.dir, s.address); err != nil {
		return err
	}
	err = s.Until(ctx, 30*time.Second, 50*time.Millisecond, "reachable", func() (bool, error) {
		if s.Admin == nil {
			b, err := bus.Connect(bus.Config{URL: s.url, CredentialsFile: s.credentials(schemas.ServiceAdmin)}, schemas.ServiceAdmin, slog.New(slog.DiscardHandler))
			if err != nil {
				return false, err
			}
			s.Admin = b
		}
		err := s.Admin.Ready()
		return err == nil, err
	})
	if err != nil {
		return errors.Join(err, s.Stop())
	}
	return nil
}

func (s *NATS) credentials(service string) string {
	return filepath.Join(s.dir, "credentials", service+".creds")
}

// Stop closes the connection and stops the server.
func (s *NATS) Stop() error {
	if s.Admin != nil {
		s.Admin.Close()
	}
	return s.Process.Stop()
}

// BuildSensor compiles picket-sensor of the tree that the program was started
// in into dir, and returns its path.
func BuildSensor(ctx context.Context, dir string) (string, error) {
	return Build(ctx, dir, "picket-sensor")
}

// Build is BuildSensor for any command.
func Build(ctx context.Context, dir, command string) (string, error) {
	binary := filepath.Join(dir, command)
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-o", binary, "picket/cmd/"+command)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s: %w\n%s", command, err, out)
	}
	return binary, nil
}

// Sensor is a running picket-sensor.
type Sensor struct {
	*Process
	Node string

	nats  *NATS
	admin string
}

// StartSensor starts a sensor as node, with programs of its own in the kernel
// and its state in dir, and returns when it watches. Its configuration is the
// default but for addresses and names. One that was killed is started again
// by the same call: its programs have gone on.
func StartSensor(ctx context.Context, binary, dir, node string, nats *NATS) (*Sensor, error) {
	admin, err := freeport.Address("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p, err := start("sensor", filepath.Join(dir, node+".log"), binary, "--nats.url", nats.url, "--nats.credentials_file", nats.credentials(schemas.ServiceSensor),
		"--admin.listen", admin, "--cluster", Cluster, "--node", node, "--state_dir", filepath.Join(dir, node),
		"--kernel.instance", fmt.Sprintf("rig-%d", os.Getpid()))
	if err != nil {
		return nil, fmt.Errorf("%w: build it (make build), or name it with -sensor", err)
	}
	s := &Sensor{Process: p, Node: node, nats: nats, admin: "http://" + admin}
	if err := s.Until(ctx, time.Minute, 20*time.Millisecond, "watching", s.watches); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// watches says whether the sensor's programs are attached. Ready it is only
// when it has NATS too, which may be away.
func (s *Sensor) watches() (bool, error) {
	resp, err := http.Get(s.admin + "/readyz")
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && strings.Contains(string(text), "sensor: starting") {
		err = errors.New(string(text))
	}
	return err == nil, err
}

// Figures are the values of the sensor's metrics, by name and labels as
// Prometheus' text format writes them.
type Figures map[string]float64

// Metrics asks the sensor for its figures.
func (s *Sensor) Metrics() (Figures, error) {
	resp, err := http.Get(s.admin + "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	f := Figures{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		line := lines.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || line[0] == '#' {
			continue
		}
		if f[line[:at]], err = strconv.ParseFloat(line[at+1:], 64); err != nil {
			return nil, fmt.Errorf("metric %q: %w", line, err)
		}
	}
	return f, nil
}

// Settled returns how many events of a class the sensor has done with:
// published, or lost and counted.
func (f Figures) Settled(class schemas.Class) float64 {
	n := f[fmt.Sprintf("picket_sensor_published_events_total{class=%q}", class)]
	for name, v := range f {
		if strings.HasPrefix(name, fmt.Sprintf("picket_sensor_lost_events_total{class=%q,", class)) {
			n += v
		}
	}
	return n
}

// Published returns the events of all classes that JetStream has, the
// sensor's own reports excepted.
func (f Figures) Published() float64 {
	n := 0.0
	for name, v := range f {
		if strings.HasPrefix(name, "picket_sensor_published_events_total{") && !strings.Contains(name, fmt.Sprintf("%q", schemas.Health)) {
			n += v
		}
	}
	return n
}
