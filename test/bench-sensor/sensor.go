package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/nats-io/nats.go/jetstream"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/freeport"
	"picket/internal/natsserver"
	"picket/schemas"
)

// cluster is the name of the cluster that the sensor says it is in.
const cluster = "bench"

// child is a process of the benchmark. It is asked to stop should the
// benchmark die, so that a sensor takes its programs with it.
type child struct {
	name, output string // output is a file: a pipe would kill it when the benchmark dies
	cmd          *exec.Cmd
	done         chan struct{}
	err          error // how it ended; set when done is closed
}

func start(name, output, binary string, args ...string) (*child, error) {
	out, err := os.Create(output)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	c := &child{name: name, output: output, cmd: exec.Command(binary, args...), done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { // ends with the process
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

// stop ends the process; a second call does nothing.
func (c *child) stop() error {
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-c.done:
	case <-time.After(60 * time.Second):
		_ = c.cmd.Process.Kill()
		<-c.done
		return fmt.Errorf("%s did not stop within a minute and was killed", c.name)
	}
	if c.err != nil {
		return fmt.Errorf("%s: %w: %s", c.name, c.err, c.said())
	}
	return nil
}

// said returns the last that the process wrote.
func (c *child) said() string {
	b, err := os.ReadFile(c.output)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-2000):]))
}

// until calls try until it says that it is done, the process ends or the
// time is over.
func (c *child) until(ctx context.Context, most, every time.Duration, what string, try func() (bool, error)) error {
	for end := time.Now().Add(most); ; {
		ok, err := try()
		if ok {
			return nil
		}
		select {
		case <-c.done:
			return fmt.Errorf("%s ended: %s", c.name, c.said())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
		if time.Now().After(end) {
			return errors.Join(fmt.Errorf("%s: not %s after %v", c.name, what, most), err)
		}
	}
}

// server is the NATS server, a process of its own, with the streams made.
type server struct {
	*child
	url, dir string
	admin    *bus.Bus
}

// runNATS is the NATS server's process.
func runNATS(ctx context.Context, dir, listen string) error {
	s, err := natsserver.Start(natsserver.Options{Dir: dir, Listen: listen})
	if err != nil {
		return err
	}
	<-ctx.Done()
	s.Stop()
	return nil
}

func startNATS(ctx context.Context, dir string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	address, err := freeport.Address("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c, err := start("nats server", dir+".log", self, "nats", dir, address)
	if err != nil {
		return nil, err
	}
	s := &server{child: c, url: "nats://" + address, dir: dir}
	err = c.until(ctx, 30*time.Second, 50*time.Millisecond, "reachable", func() (bool, error) {
		b, err := bus.Connect(bus.Config{URL: s.url, CredentialsFile: s.credentials(schemas.ServiceAdmin)}, schemas.ServiceAdmin, slog.New(slog.DiscardHandler))
		if err != nil {
			return false, err
		}
		if err := b.Ready(); err != nil {
			b.Close()
			return false, err
		}
		s.admin = b
		return true, nil
	})
	if err == nil {
		limits := bus.DefaultLimits()
		limits.RawBytes = 4 << 30 // nobody takes from the stream while it is measured
		err = s.admin.Migrate(ctx, limits)
	}
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (s *server) credentials(service string) string {
	return filepath.Join(s.dir, "credentials", service+".creds")
}

func (s *server) stop() error {
	if s.admin != nil {
		s.admin.Close()
	}
	return s.child.stop()
}

// sensor is a running picket-sensor.
type sensor struct {
	*child
	nats        *server
	node, admin string
}

// startSensor starts a sensor with an empty spool and programs of its own, as
// node, and returns when it watches.
func startSensor(ctx context.Context, binary, dir, node string, nats *server) (*sensor, error) {
	admin, err := freeport.Address("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c, err := start("sensor", filepath.Join(dir, node+".log"), binary, "--nats.url", nats.url, "--nats.credentials_file", nats.credentials(schemas.ServiceSensor),
		"--admin.listen", admin, "--cluster", cluster, "--node", node, "--state_dir", filepath.Join(dir, node),
		"--kernel.instance", fmt.Sprintf("bench-%d", os.Getpid()))
	if err != nil {
		return nil, fmt.Errorf("%w: build it (make build), or name it with -sensor", err)
	}
	s := &sensor{child: c, nats: nats, node: node, admin: "http://" + admin}
	if err := c.until(ctx, time.Minute, 50*time.Millisecond, "ready", func() (bool, error) { return get(s.admin + "/readyz") }); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func get(url string) (bool, error) {
	resp, err := http.Get(url)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(string(text))
	}
	return err == nil, err
}

// figures are the values of the sensor's metrics, by name and labels as
// Prometheus' text format writes them.
type figures map[string]float64

func (s *sensor) metrics() (figures, error) {
	resp, err := http.Get(s.admin + "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	f := figures{}
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

// settled returns how many events of a class the sensor has done with:
// published, or lost and counted.
func (f figures) settled(class schemas.Class) float64 {
	n := f[fmt.Sprintf("picket_sensor_published_events_total{class=%q}", class)]
	for name, v := range f {
		if strings.HasPrefix(name, fmt.Sprintf("picket_sensor_lost_events_total{class=%q,", class)) {
			n += v
		}
	}
	return n
}

// published returns the events of all classes that JetStream has, the
// sensor's own reports excepted.
func (f figures) published() float64 {
	n := 0.0
	for name, v := range f {
		if strings.HasPrefix(name, "picket_sensor_published_events_total{") && !strings.Contains(name, fmt.Sprintf("%q", schemas.Health)) {
			n += v
		}
	}
	return n
}

// cpu returns the processor time, user and system, that the sensor has used.
func (s *sensor) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The second field, the name, may have spaces; utime and stime are the
	// 14th and 15th, in hundredths of a second.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is short: %q", s.cmd.Process.Pid, b)
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

// memory returns the resident memory in bytes: the most so far, and now.
func (s *sensor) memory() (peak, now float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
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

// programs returns the ids of the BPF programs that the sensor has open,
// itself or by a link.
func (s *sensor) programs() ([]ebpf.ProgramID, error) {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", s.cmd.Process.Pid))
	if err != nil {
		return nil, err
	}
	found := map[ebpf.ProgramID]bool{}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // closed meanwhile
		}
		for line := range strings.Lines(string(b)) {
			var id uint32
			if _, err := fmt.Sscanf(line, "prog_id: %d", &id); err == nil {
				found[ebpf.ProgramID(id)] = true
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("the sensor has no BPF program open: its kernel time cannot be measured")
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// programTime returns how long the programs have run while statistics were on.
func programTime(programs []ebpf.ProgramID) (time.Duration, error) {
	var sum time.Duration
	for _, id := range programs {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			return 0, fmt.Errorf("BPF program %d: %w", id, err)
		}
		stats, err := p.Stats()
		p.Close()
		if err != nil {
			return 0, fmt.Errorf("statistics of BPF program %d: %w", id, err)
		}
		sum += stats.Runtime
	}
	return sum, nil
}

// account is what became of the events of a sensor's life, by class.
type account struct {
	seen, published, delivered, lost map[string]uint64
	missed                           uint64 // runs of a program that the kernel left out
}

func newAccount() *account {
	return &account{seen: map[string]uint64{}, published: map[string]uint64{}, delivered: map[string]uint64{}, lost: map[string]uint64{}}
}

// check fails when an event is neither in JetStream nor counted as lost.
func (a *account) check() error {
	if len(a.seen) == 0 {
		return errors.New("the sensor did not report what the kernel has seen")
	}
	var errs []error
	for _, class := range slices.Sorted(maps.Keys(a.seen)) {
		seen, published, delivered, lost := a.seen[class], a.published[class], a.delivered[class], a.lost[class]
		if seen != published+lost || published != delivered {
			errs = append(errs, fmt.Errorf("class %s does not balance: the kernel saw %d events; %d are published (%d of them in JetStream) and %d counted as lost", class, seen, published, delivered, lost))
		}
	}
	return errors.Join(errs...)
}

// losses returns the events lost and counted, of all classes.
func (a *account) losses() uint64 {
	n := a.missed
	for _, lost := range a.lost {
		n += lost
	}
	return n
}

// close stops the sensor and draws its account: what it reported of itself,
// the last report having been made when its programs were detached, against
// the rows that are in JetStream. Its metrics would not do: other processes of
// the machine go on making events while they are read.
func (s *sensor) close(ctx context.Context) (*account, error) {
	if err := s.stop(); err != nil {
		return nil, err
	}
	raw, err := s.nats.admin.JS.Stream(ctx, schemas.StreamRaw)
	if err != nil {
		return nil, err
	}
	a := newAccount()
	subject := schemas.RawSubject(cluster, s.node, schemas.Health)
	for seq := uint64(1); ; {
		m, err := raw.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading the sensor's reports: %w", err)
		}
		if err := a.read(m.Data); err != nil {
			return nil, err
		}
		seq = m.Sequence + 1
	}
	for class := range a.seen {
		c, err := schemas.ParseClass(class)
		if err != nil {
			return nil, err
		}
		m, err := raw.GetLastMsgForSubject(ctx, schemas.RawSubject(cluster, s.node, c))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if a.delivered[class], err = strconv.ParseUint(m.Header.Get(schemas.HeaderCumulative), 10, 64); err != nil {
			return nil, err
		}
	}
	return a, errors.Join(a.check(), raw.Purge(ctx))
}

// read takes in a report: a row of it has a running total.
func (a *account) read(report []byte) error {
	b, err := batch.Decode(report)
	if err != nil {
		return fmt.Errorf("a report of the sensor: %w", err)
	}
	for row := range b.Rows() {
		class, total := b.Str(schemas.HealthClass, row), b.Uint(schemas.HealthTotal, row)
		if b.Str(schemas.Action, row) == "loss" {
			a.lost[class] += b.Uint(schemas.HealthCount, row) // since the report before
			continue
		}
		switch b.Str(schemas.HealthReason, row) {
		case "kernel_seen":
			a.seen[class] = total
		case "published":
			a.published[class] = total
		case "kernel_missed":
			a.missed = total
		}
	}
	return nil
}

// emptyPair attaches an empty program to each end of every system call: what
// any sensor pays that looks at all of them. The caller detaches it.
func emptyPair() (detach func() error, err error) {
	var links []link.Link
	detach = func() error {
		var errs []error
		for _, l := range links {
			errs = append(errs, l.Close())
		}
		return errors.Join(errs...)
	}
	for _, name := range []string{"sys_enter", "sys_exit"} {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "bench_empty", Type: ebpf.RawTracepoint, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("empty program: %w", err), detach())
		}
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: name, Program: p})
		p.Close() // the link holds it
		if err != nil {
			return nil, errors.Join(fmt.Errorf("empty program on %s: %w", name, err), detach())
		}
		links = append(links, l)
	}
	return detach, nil
}
