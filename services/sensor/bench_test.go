package sensor

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"picket/bpf"
)

// stormFlag as the first argument makes this binary do what the second says as
// many times as the third does: see storm.
const stormFlag = "picket-storm"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == dnsFlag {
		if err := lookUp(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 5 && os.Args[1] == stormFlag {
		n, err := strconv.Atoi(os.Args[3])
		if err == nil {
			err = storm(os.Args[2], n, os.Args[4])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "picket-") {
		fmt.Fprintf(os.Stderr, "no such load: %q\n", os.Args[1:]) // all tests again would start this again, without end
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// storm opens and closes a file for writing n times, connects to itself over
// loopback, or runs a program.
func storm(what string, n int, file string) error {
	switch what {
	case "open":
		for range n {
			fd, err := unix.Open(file, unix.O_WRONLY, 0)
			if err != nil {
				return err
			}
			unix.Close(fd)
		}
	case "connect":
		l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(l, 16)); err != nil {
			return err
		}
		address, err := unix.Getsockname(l)
		if err != nil {
			return err
		}
		for range n {
			c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			// Closed with a reset: no socket stays behind in TIME_WAIT.
			err = errors.Join(unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), unix.Connect(c, address))
			if err != nil {
				return err
			}
			a, _, err := unix.Accept(l)
			if err != nil {
				return err
			}
			unix.Close(c)
			unix.Close(a)
		}
	case "exec":
		for range n {
			p, err := syscall.ForkExec(file, []string{file}, nil)
			if err != nil {
				return err
			}
			if _, err := unix.Wait4(p, nil, 0, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// discard is an outbox that forgets.
type discard struct{ bytes, batches int }

func (d *discard) Put(_ string, data []byte, _ int, _ any, stored func()) error {
	d.bytes += len(data)
	d.batches++
	stored()
	return nil
}
func (*discard) RunID() string { return "bench" }

func mustLane(b *testing.B, s *sensor, r *bpf.Reader) *lane {
	b.Helper()
	l, err := newLane(s, r)
	if err != nil {
		b.Fatal(err)
	}
	return l
}

// BenchmarkOpens is what an open for writing costs the sensor from the ring to
// an encoded batch, with events of the live kernel.
func BenchmarkOpens(b *testing.B) {
	benchmarkStorm(b, bpf.ClassFile, "open", b.TempDir()+"/file")
}

// BenchmarkConnections is the same of a TCP connection: its connect and its accept.
func BenchmarkConnections(b *testing.B) { benchmarkStorm(b, bpf.ClassNetwork, "connect", "") }

// BenchmarkExecs is the same of a program that is run: its fork, exec and exit.
func BenchmarkExecs(b *testing.B) { benchmarkStorm(b, bpf.ClassProcess, "exec", "/bin/true") }

func benchmarkStorm(b *testing.B, class bpf.Class, what, file string) {
	if os.Geteuid() != 0 {
		b.Skip("SKIPPED (needs root): it runs programs in the live kernel")
	}
	cfg := DefaultConfig()
	cfg.Cluster, cfg.Node = "bench", "node"
	cfg.Kernel.Instance = fmt.Sprintf("bench-%d", os.Getpid())
	// All of the storm waits in the ring, and an operation takes at most 2 KiB in it.
	room := 64 << 20
	for room < b.N<<11 && room < 1<<30 {
		room <<= 1
	}
	ring := map[bpf.Class]*int{bpf.ClassProcess: &cfg.Kernel.ProcessRing, bpf.ClassFile: &cfg.Kernel.FileRing, bpf.ClassNetwork: &cfg.Kernel.NetworkRing}[class]
	*ring = room
	box := &discard{}
	s, err := newSensor(cfg, box, nil, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	defer s.cgroups.Close()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	if what == "open" {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	if out, err := exec.Command(self, stormFlag, what, strconv.Itoa(b.N), file).CombinedOutput(); err != nil {
		b.Fatalf("%v %s", err, out)
	}
	if err := s.kernel.Detach(); err != nil {
		b.Fatal(err)
	}
	stopping := make(chan struct{})
	close(stopping)
	readers := s.kernel.Readers()
	read := func(c bpf.Class) {
		if err := mustLane(b, s, readers[c]).run(stopping); err != nil {
			b.Fatal(err)
		}
	}
	// Those first that the class waits for.
	if class != bpf.ClassProcess {
		read(bpf.ClassProcess)
		read(bpf.ClassDNS)
	}
	before, bytes, batches := s.spooled[class].Load(), box.bytes, box.batches
	var began, ended unix.Rusage
	b.ReportAllocs()
	b.ResetTimer()
	err = unix.Getrusage(unix.RUSAGE_SELF, &began)
	read(class)
	err = errors.Join(err, unix.Getrusage(unix.RUSAGE_SELF, &ended))
	b.StopTimer()
	if err != nil {
		b.Fatal(err)
	}
	// Of the whole process: the time of a machine that does other work, too, says less.
	cpu := ended.Utime.Nano() + ended.Stime.Nano() - began.Utime.Nano() - began.Stime.Nano()
	rows := float64(s.spooled[class].Load() - before)
	b.ReportMetric(rows/float64(b.N), "events/op")
	b.ReportMetric(float64(cpu)/rows, "cpu-ns/event")
	b.ReportMetric(float64(box.bytes-bytes)/rows, "B/event")
	b.ReportMetric(rows/float64(box.batches-batches), "events/batch")
	if err := s.kernel.Close(false); err != nil {
		b.Fatal(err)
	}
}
