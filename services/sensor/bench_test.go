package sensor

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"picket/bpf"
)

// stormFlag as the first argument makes this binary open and close a file, for
// writing, so many times.
const stormFlag = "picket-open-storm"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == dnsFlag {
		if err := lookUp(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 4 && os.Args[1] == stormFlag {
		var n int
		if _, err := fmt.Sscan(os.Args[2], &n); err != nil {
			os.Exit(1)
		}
		for range n {
			fd, err := unix.Open(os.Args[3], unix.O_WRONLY, 0)
			if err != nil {
				os.Exit(1)
			}
			unix.Close(fd)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
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
	if os.Geteuid() != 0 {
		b.Skip("SKIPPED (needs root): it runs programs in the live kernel")
	}
	cfg := DefaultConfig()
	cfg.Cluster, cfg.Node = "bench", "node"
	cfg.Kernel.Instance = fmt.Sprintf("bench-%d", os.Getpid())
	cfg.Kernel.FileRing = 1 << 30
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
	file := b.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	if out, err := exec.Command(self, stormFlag, fmt.Sprint(b.N), file).CombinedOutput(); err != nil {
		b.Fatalf("%v %s", err, out)
	}
	if err := s.kernel.Detach(); err != nil {
		b.Fatal(err)
	}
	stopping := make(chan struct{})
	close(stopping)
	// The processes first: the file lane waits for them.
	readers := s.kernel.Readers()
	if err := mustLane(b, s, readers[0]).run(stopping); err != nil {
		b.Fatal(err)
	}
	l := mustLane(b, s, readers[1])
	b.ReportAllocs()
	b.ResetTimer()
	if err := l.run(stopping); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64(box.bytes)/float64(b.N), "B/event")
	b.ReportMetric(float64(b.N)/float64(box.batches), "events/batch")
	if err := s.kernel.Close(false); err != nil {
		b.Fatal(err)
	}
}
