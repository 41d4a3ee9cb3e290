package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"picket/schemas"
)

// The churn: short-lived processes in short-lived containers, and whether the
// sensor's memory stays where it is. What it has to hold at a time does not
// grow; what it forgot to let go of would.

// mostGrowth is how many bytes the resident memory, at its highest, may grow
// between the end of the first quarter and the end.
const mostGrowth = 8e6

// sample is what the sensor had when so much was done.
type sample struct {
	containers             int
	resident, peak         float64 // bytes
	heap                   float64 // bytes in use
	tree, published, evict float64
}

// churn runs it and prints a line per tenth to w.
func (b *bench) churn(ctx context.Context, processes, containers int, w io.Writer) error {
	if containers < 20 || processes < 2*containers {
		return errors.New("-containers is at least 20, -processes at least two for each")
	}
	mount, err := cgroup2()
	if err != nil {
		return err
	}
	root := filepath.Join(mount, fmt.Sprintf("picket-churn-%d", os.Getpid()))
	if err := os.Mkdir(root, 0o755); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	defer os.Remove(root)
	kubepods := filepath.Join(root, "kubepods", "burstable")
	if err := os.MkdirAll(kubepods, 0o755); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	defer func() { _ = errors.Join(os.Remove(kubepods), os.Remove(filepath.Dir(kubepods))) }() // the first error is what matters
	p, err := b.start(ctx)
	if err != nil {
		return err
	}
	stopped := false
	defer func() {
		if !stopped {
			_ = p.Stop() // err is what matters
		}
	}()
	// The rings are mapped into the sensor: the pages it has been to count as
	// its memory. It goes round all that the churn uses first.
	for _, s := range storms(100, 100000, 20000, b.file)[2:4] {
		if _, err := b.storm(ctx, s); err != nil {
			return err
		}
	}
	each := processes/containers - 1 // programs run by one more
	published, err := p.Metrics()
	if err != nil {
		return err
	}
	began := time.Now()
	var samples []sample
	take := func(done int) error {
		f, err := p.Metrics()
		if err != nil {
			return err
		}
		s := sample{containers: done, heap: f["go_memstats_heap_inuse_bytes"], tree: f["picket_sensor_process_tree_processes"], published: f.Published() - published.Published()}
		if s.peak, s.resident, err = p.Memory(); err != nil {
			return err
		}
		for name, v := range f {
			if strings.Contains(name, "_evictions_total") {
				s.evict += v
			}
		}
		samples = append(samples, s)
		return nil
	}
	if err := take(0); err != nil {
		return err
	}
	for i := range containers {
		if err := b.container(ctx, kubepods, i, each); err != nil {
			return err
		}
		if done := i + 1; done*40/containers > i*40/containers {
			if err := take(done); err != nil {
				return err
			}
		}
	}
	took := time.Since(began)
	a, err := p.Close(ctx)
	stopped = true
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%d processes in %d containers in %.0f s, sensor in its default configuration, publishing to NATS\n\n", containers*(each+1), containers, took.Seconds())
	fmt.Fprintf(w, "%10s %10s %10s %12s %12s %12s %10s %10s\n", "containers", "processes", "events", "resident MB", "highest MB", "heap MB", "in tree", "evictions")
	for i, s := range samples {
		if i%4 == 0 {
			fmt.Fprintf(w, "%10d %10d %10.0f %12.1f %12.1f %12.1f %10.0f %10.0f\n", s.containers, s.containers*(each+1), s.published, s.resident/1e6, s.peak/1e6, s.heap/1e6, s.tree, s.evict)
		}
	}
	quarter := samples[slices.IndexFunc(samples, func(s sample) bool { return s.containers*4 >= containers })]
	growth := samples[len(samples)-1].peak - quarter.peak
	fmt.Fprintf(w, "\nhighest memory grew by %.1f MB between the end of the first quarter and the end (bound %.0f MB); %d of %d events lost and counted\n",
		growth/1e6, mostGrowth/1e6, a.Losses(), a.Seen[schemas.Process.String()]+a.Seen[schemas.File.String()]+a.Seen[schemas.Network.String()]+a.Seen[schemas.Kernel.String()])
	if growth > mostGrowth {
		return errors.New("the sensor's memory grows with the processes and containers that have come and gone")
	}
	if seen := a.Seen[schemas.Process.String()]; seen < uint64(3*containers*each) {
		return fmt.Errorf("the kernel saw only %d events of processes", seen)
	}
	return nil
}

// container makes container number i as the kubelet does, runs programs in it
// one after the other, and removes it.
func (b *bench) container(ctx context.Context, kubepods string, i, programs int) error {
	h := fmt.Sprintf("%x", sha256.Sum256([]byte(strconv.Itoa(i))))
	pod := filepath.Join(kubepods, fmt.Sprintf("pod%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:32]))
	cgroup := filepath.Join(pod, h)
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		return err
	}
	defer dir.Close()
	cmd := exec.CommandContext(ctx, b.load, "exec", strconv.Itoa(programs))
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	out, err := cmd.CombinedOutput()
	if fields := strings.Fields(string(out)); err == nil && (len(fields) != 2 || fields[1] != "0") {
		err = fmt.Errorf("load: %q", out)
	}
	// The last process may still be going.
	for wait := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		gone := os.Remove(cgroup)
		if gone == nil || time.Now().After(wait) {
			return errors.Join(err, gone, os.Remove(pod))
		}
	}
}

// cgroup2 returns where the cgroup2 file system is mounted.
func cgroup2() (string, error) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1], nil
		}
	}
	return "", errors.New("no cgroup2 file system is mounted (mount -t cgroup2 none /sys/fs/cgroup)")
}
