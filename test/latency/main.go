// Command latency measures the time from a system call to its alert at a NATS
// subscriber, with everything running on this machine, under a steady load of
// kernel events. It prints p50, p95 and p99, and fails when p99 is above the
// budget. It needs root.
//
//	go run ./test/latency -rate 1000 -duration 30s
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"picket/internal/up"
	"picket/schemas"
	"picket/services/sensor"
)

// most is the budget of the p99.
const most = 250 * time.Millisecond

func main() {
	rate := flag.Int("rate", 1000, "kernel events a second")
	probes := flag.Int("probes", 20, "of these, programs a second that a rule matches")
	duration := flag.Duration("duration", 30*time.Second, "how long to measure")
	binary := flag.String("clickhouse-binary", "bin/picket-clickhouse", "picket-clickhouse")
	flag.Parse()
	// The load runs in a process of its own: the sensor does not watch itself.
	if len(flag.Args()) == 2 && flag.Arg(0) == "load" {
		if err := load(*rate, *probes, *duration, flag.Arg(1)); err != nil {
			fmt.Fprintln(os.Stderr, "load:", err)
			os.Exit(1)
		}
		return
	}
	if err := measure(*rate, *probes, *duration, *binary); err != nil {
		fmt.Fprintln(os.Stderr, "latency:", err)
		os.Exit(1)
	}
}

// load runs /bin/true, which is three kernel events (fork, exec, exit), and
// probes: programs in shared memory whose argument is the time.
func load(rate, probes int, d time.Duration, dir string) error {
	probe := filepath.Join(dir, "probe")
	b, err := os.ReadFile("/bin/true")
	if err != nil {
		return err
	}
	if err := os.WriteFile(probe, b, 0o755); err != nil {
		return err
	}
	var g errgroup.Group
	every := func(n int, run func() error) {
		g.Go(func() error {
			tick := time.NewTicker(time.Second / time.Duration(n))
			defer tick.Stop()
			for end := time.Now().Add(d); time.Now().Before(end); <-tick.C {
				if err := run(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	// Spread over a few goroutines: each waits for its process.
	const workers = 8
	for range workers {
		every(max(1, (rate-3*probes)/3/workers), func() error { return exec.Command("/bin/true").Run() })
	}
	every(probes, func() error {
		return exec.Command(probe, "picket-latency", strconv.FormatInt(time.Now().UnixNano(), 10)).Run()
	})
	return g.Wait()
}

func measure(rate, probes int, d time.Duration, binary string) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it watches the kernel")
	}
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "picket-latency-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// A rule of the default pack matches what runs in shared memory.
	shm, err := os.MkdirTemp("/dev/shm", "picket-latency-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(shm)
	cfg := sensor.DefaultConfig()
	cfg.Kernel.Instance = fmt.Sprintf("latency-%d", os.Getpid())
	s, err := up.Start(ctx, up.Options{Dir: filepath.Join(dir, "data"), Cluster: "latency", NATSListen: "127.0.0.1:0",
		WebhookListen: "127.0.0.1:0", ClickHouseBinary: binary, Sensor: &cfg})
	if err != nil {
		return err
	}
	defer s.Stop()
	var mu sync.Mutex
	var delays []time.Duration
	stop, err := s.Subscribe(func(f *schemas.Finding) {
		now := time.Now()
		if f.Unmapped.Rule != "Program run from shared memory" || len(f.Evidences) == 0 || f.Evidences[0].Process == nil {
			return
		}
		_, after, ok := strings.Cut(f.Evidences[0].Process.CmdLine, "picket-latency ")
		sent, err := strconv.ParseInt(strings.TrimSpace(after), 10, 64)
		if !ok || err != nil {
			return
		}
		mu.Lock()
		delays = append(delays, now.Sub(time.Unix(0, sent)))
		mu.Unlock()
	})
	if err != nil {
		return err
	}
	defer stop()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	begin := time.Now()
	cmd := exec.Command(self, "-rate", strconv.Itoa(rate), "-probes", strconv.Itoa(probes), "-duration", d.String(), "load", shm)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	took := time.Since(begin)
	time.Sleep(time.Second)
	mu.Lock()
	defer mu.Unlock()
	if len(delays) == 0 {
		return errors.New("no alert arrived")
	}
	slices.Sort(delays)
	at := func(p float64) time.Duration {
		return delays[min(len(delays)-1, int(p*float64(len(delays))))].Round(100 * time.Microsecond)
	}
	events, err := stored(s.ClickHouse)
	if err != nil {
		return err
	}
	fmt.Printf("syscall to subscriber, %d alerts in %.0f s at %.0f events/s, %d CPUs: p50 %v  p95 %v  p99 %v  max %v\n",
		len(delays), took.Seconds(), events/took.Seconds(), runtime.NumCPU(), at(.50), at(.95), at(.99), delays[len(delays)-1].Round(100*time.Microsecond))
	if at(.99) > most {
		return fmt.Errorf("p99 is above %v", most)
	}
	return nil
}

// stored returns how many kernel events ClickHouse has.
func stored(clickhouse string) (float64, error) {
	query := "SELECT (SELECT count() FROM picket.process) + (SELECT count() FROM picket.file) + (SELECT count() FROM picket.network)"
	resp, err := http.Get(clickhouse + "/?query=" + url.QueryEscape(query))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
}
