// Command bench-audit measures the ingester from an audit log file to JetStream:
// events a second for each second of processor time, and memory over time. It
// writes a log of records of a real API server, each with an auditID of its own,
// runs the ingester as a process of its own over it, and counts what arrives in
// PICKET_RAW. A second run has a slow source beside the file: a web hook whose
// client sends its bodies a few bytes at a time.
//
//	go run ./test/bench-audit -check
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"picket/internal/bus"
	"picket/internal/natsserver"
	"picket/internal/service"
	"picket/schemas"
	auditlogingest "picket/services/auditlog-ingest"
)

const (
	sample = "test/testdata/audit/kube-apiserver-v1.34.jsonl"
	// child names the configuration file of the process that is the ingester.
	child = "PICKET_BENCH_INGESTER"
	// wantRate is in events for each second of processor time, wantSize the
	// average record in bytes.
	wantRate, wantSize = 20_000, 3400
	// growth is how much larger the memory of the last half may be than that of
	// the half before.
	growth = 1.3
)

func main() {
	if path := os.Getenv(child); path != "" {
		os.Args = []string{"picket-auditlog-ingest", "--config", path}
		os.Exit(service.Main(schemas.ServiceAudit, auditlogingest.DefaultConfig(), auditlogingest.Run))
	}
	events := flag.Int("events", 200_000, "records in the log")
	check := flag.Bool("check", false, fmt.Sprintf("fail below %d events for a second of processor time, if memory grows, or if the slow source delays the file", wantRate))
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *events, *check); err != nil {
		fmt.Fprintln(os.Stderr, "bench-audit:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, events int, check bool) error {
	dir, err := os.MkdirTemp("", "bench-audit")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	log := filepath.Join(dir, "audit.log")
	size, err := write(log, events)
	if err != nil {
		return err
	}
	fmt.Printf("%d records, %d bytes on average\n", events, size/int64(events))
	var faults []error
	var alone result
	for _, r := range []struct {
		what string
		drop bool
		slow bool
	}{{"file, nothing left out", false, false}, {"file, default drop list", true, false}, {"file, a slow web hook beside it", false, true}} {
		res, err := measure(ctx, dir, log, events, r.drop, r.slow)
		if err != nil {
			return fmt.Errorf("%s: %w", r.what, err)
		}
		fmt.Printf("%s: %d events in %d batches, %.0f MB, in %.1f s; %.0f events/s, %.0f events for a second of processor time; memory %s\n",
			r.what, res.rows, res.batches, float64(res.bytes)/1e6, res.took.Seconds(), float64(events)/res.took.Seconds(), res.rate(events), res.memory())
		if res.rate(events) < wantRate {
			faults = append(faults, fmt.Errorf("%s: %.0f events for a second of processor time, want %d", r.what, res.rate(events), wantRate))
		}
		if g := res.grown(); g > growth {
			faults = append(faults, fmt.Errorf("%s: memory grew by a factor of %.2f in the last half", r.what, g))
		}
		if !r.drop && !r.slow {
			alone = res
		}
		// Half as much again is the machine's noise; a file that waits for a
		// client that never ends would not end.
		if r.slow && res.took > alone.took*3/2+2*time.Second {
			faults = append(faults, fmt.Errorf("the file took %s beside a slow web hook, %s alone", res.took, alone.took))
		}
	}
	if check {
		return errors.Join(faults...)
	}
	return nil
}

// write writes the log and returns its size. A record is padded
// where the sample's are smaller than wantSize on average.
func write(path string, events int) (int64, error) {
	data, err := os.ReadFile(sample)
	if err != nil {
		return 0, fmt.Errorf("%w (run it in the repository's folder)", err)
	}
	const key = `"auditID":"`
	type parts struct{ before, after []byte }
	var lines []parts
	total := 0
	for line := range bytes.Lines(data) {
		before, rest, ok := bytes.Cut(line, []byte(key))
		_, after, ok2 := bytes.Cut(rest, []byte(`"`))
		if !ok || !ok2 {
			return 0, fmt.Errorf("%s: a record has no auditID", sample)
		}
		lines = append(lines, parts{before, after})
		total += len(line)
	}
	pad := max(0, wantSize-total/len(lines))
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	size := int64(0)
	for i := range events {
		p := lines[i%len(lines)]
		// A field that the API does not have is read and dropped.
		n, err := fmt.Fprintf(w, "%s%s%08d-0000-4000-8000-%012d\",\"padding\":\"%0*d\"%s", p.before, key, i, i, max(1, pad-16), i, p.after)
		if err != nil {
			return 0, err
		}
		size += int64(n)
	}
	return size, errors.Join(w.Flush(), f.Close())
}

type result struct {
	rows, batches int
	bytes         uint64
	took, cpu     time.Duration
	rss           []int64 // bytes, while it worked
}

func (r result) rate(events int) float64 { return float64(events) / r.cpu.Seconds() }

// grown compares the memory of the last quarter with that of the second.
func (r result) grown() float64 {
	n := len(r.rss)
	if n < 8 {
		return 1
	}
	return float64(slices.Max(r.rss[3*n/4:])) / float64(slices.Max(r.rss[n/4:n/2]))
}

func (r result) memory() string {
	n := len(r.rss)
	if n == 0 {
		return "not seen"
	}
	quarter := func(i int) string { return strconv.FormatInt(slices.Max(r.rss[i*n/4:max(i*n/4+1, (i+1)*n/4)])>>20, 10) }
	return "by quarters " + quarter(0) + ", " + quarter(1) + ", " + quarter(2) + ", " + quarter(3) + " MiB"
}

// measure runs the ingester over the log once.
func measure(ctx context.Context, dir, log string, events int, drop, slow bool) (result, error) {
	var res result
	dir, err := os.MkdirTemp(dir, "run")
	if err != nil {
		return res, err
	}
	s, err := natsserver.Start(natsserver.Options{Dir: filepath.Join(dir, "nats"), Listen: "127.0.0.1:0", MaxStore: 64 << 30})
	if err != nil {
		return res, err
	}
	defer os.RemoveAll(dir)
	defer s.Stop()
	b, err := bus.Connect(bus.Config{URL: s.URL(), CredentialsFile: s.Credentials(schemas.ServiceAdmin)}, schemas.ServiceAdmin, slog.New(slog.DiscardHandler))
	if err != nil {
		return res, err
	}
	defer b.Close()
	limits := bus.DefaultLimits()
	limits.RawBytes = 32 << 30
	if err := b.Migrate(ctx, limits); err != nil {
		return res, err
	}
	cfg := auditlogingest.DefaultConfig()
	cfg.NATS = bus.Config{URL: s.URL(), CredentialsFile: s.Credentials(schemas.ServiceAudit)}
	cfg.Cluster, cfg.StateDir, cfg.File.Path = "bench", filepath.Join(dir, "state"), log
	cfg.Log.File = filepath.Join(dir, "log")
	if !drop {
		cfg.Drop = []auditlogingest.Drop{}
	}
	if slow {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return res, err
		}
		cfg.Webhook.Listen = l.Addr().String()
		if err := l.Close(); err != nil {
			return res, err
		}
	}
	data, err := yaml.Marshal(cfg)
	if err != nil {
		return res, err
	}
	path := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return res, err
	}
	self, err := os.Executable()
	if err != nil {
		return res, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), child+"="+path, "GOMAXPROCS=1")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return res, err
	}
	hookCtx, stopHook := context.WithCancel(ctx)
	hooked := make(chan struct{})
	go func() {
		defer close(hooked)
		if slow {
			drip(hookCtx, cfg.Webhook.Listen)
		}
	}()
	took, err := watch(ctx, b, cmd.Process.Pid, events, drop, &res)
	stopHook()
	<-hooked
	res.took = took
	if res.took == 0 {
		res.took = time.Since(began)
	}
	err = errors.Join(err, cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
	res.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if err != nil {
		said, _ := os.ReadFile(cfg.Log.File)
		return res, fmt.Errorf("%w\n%s", err, said[max(0, len(said)-2000):])
	}
	return res, nil
}

// watch waits until the file is read and all that it left is in PICKET_RAW, and
// counts it.
func watch(ctx context.Context, b *bus.Bus, pid, events int, drop bool, res *result) (time.Duration, error) {
	began := time.Now()
	st, err := b.JS.Stream(ctx, schemas.StreamRaw)
	if err != nil {
		return 0, err
	}
	next := uint64(1)
	var last time.Time // when rows came last
	for time.Since(began) < 10*time.Minute {
		info, err := st.Info(ctx)
		if err != nil {
			return 0, err
		}
		res.bytes = info.State.Bytes
		before := res.rows
		for ; next <= info.State.LastSeq; next++ {
			m, err := st.GetMsg(ctx, next)
			if err != nil {
				return 0, err
			}
			if !strings.HasSuffix(m.Subject, ".file."+schemas.Audit.String()) {
				continue
			}
			n, err := strconv.Atoi(m.Header.Get(schemas.HeaderRows))
			if err != nil {
				return 0, err
			}
			res.rows += n
			res.batches++
			last = m.Time
		}
		// The drop list leaves fewer: how many is not known before.
		if res.rows == events || drop && res.rows > 0 && res.rows == before && time.Since(last) > 3*time.Second {
			return last.Sub(began), nil
		}
		if res.rows > 0 {
			if rss, err := resident(pid); err == nil {
				res.rss = append(res.rss, rss)
			}
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
	return 0, fmt.Errorf("%d of %d events came in ten minutes", res.rows, events)
}

// resident returns a process's resident memory, in bytes.
func resident(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(data))
	if len(f) < 2 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := strconv.ParseInt(f[1], 10, 64)
	return n * int64(os.Getpagesize()), err
}

// drip posts to the web hook a byte at a time.
func drip(ctx context.Context, address string) {
	for ctx.Err() == nil {
		c, err := net.Dial("tcp", address)
		if err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		_, err = io.WriteString(c, "POST /audit HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"items\":[")
		for err == nil && ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
			_, err = io.WriteString(c, " ")
		}
		stop()
		c.Close()
	}
}
