package bpf

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// work is what BenchmarkCost measures: N repetitions of one thing in a process of its own.
type work struct {
	What string
	N    int
	Path string
	To   netip.AddrPort
}

func (w work) do() error {
	for range w.N {
		switch w.What {
		case "getppid": // a system call that Picket has nothing to do with
			syscall.Getppid()
		case "fstat": // one whose number means open to 32-bit programs
			var st syscall.Stat_t
			if err := syscall.Fstat(0, &st); err != nil {
				return err
			}
		case "read", "write": // open and close
			flags := unix.O_RDONLY
			if w.What == "write" {
				flags = unix.O_WRONLY
			}
			fd, err := unix.Open(w.Path, flags, 0)
			if err != nil {
				return err
			}
			unix.Close(fd)
		case "exec":
			pid, err := syscall.ForkExec(w.Path, []string{w.Path}, nil)
			if err != nil {
				return err
			}
			if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
				return err
			}
		case "connect": // over TCP, closed with a reset
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
				return err
			}
			if err := unix.Connect(fd, sockaddr(unix.AF_INET, w.To)); err != nil {
				return err
			}
			unix.Close(fd)
		}
	}
	return nil
}

// cpuTime is what this process and those it waited for have used. Unlike the time on the wall, it does not
// grow when other processes want the CPU too.
func cpuTime() (time.Duration, error) {
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			return 0, err
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum, nil
}

func init() {
	helpers["work"] = func(args []string) error {
		var w work
		if err := json.Unmarshal([]byte(args[0]), &w); err != nil {
			return err
		}
		begin, err := cpuTime()
		if err != nil {
			return err
		}
		if err := w.do(); err != nil {
			return err
		}
		end, err := cpuTime()
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(end - begin)
	}
	// server: accepts and closes for ever.
	helpers["server"] = func([]string) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		if err := unix.Listen(fd, 4096); err != nil {
			return err
		}
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(addrPort(sa)); err != nil {
			return err
		}
		for {
			if conn, _, err := unix.Accept(fd); err == nil {
				unix.Close(conn)
			}
		}
	}
}

// BenchmarkCost measures what the kernel part adds to system calls: each thing without it, with it, and with
// it and 20 watched paths, in turn, so that a machine whose speed drifts does not favour one. Reported are
// medians of CPU time, user and system, per repetition.
//
//	go test -run '^$' -bench Cost -benchtime 9x picket/bpf
func BenchmarkCost(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skipf("SKIPPED (needs root): %s runs programs in the live kernel", b.Name())
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	file, program := filepath.Join(dir, "file"), filepath.Join(dir, "true")
	for _, f := range []string{file, program} {
		if err := os.WriteFile(f, exitZero(), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	server := exec.Command(self, helperFlag, "server")
	out, err := server.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	var to netip.AddrPort
	if err := json.NewDecoder(out).Decode(&to); err != nil {
		b.Fatal(err)
	}
	var watched []string
	for i := range 20 {
		watched = append(watched, fmt.Sprintf("/etc/watched/%d", i))
	}

	variants := []string{"without", "with", "watching"}
	for _, w := range []work{
		{What: "getppid", N: 1_000_000},
		{What: "fstat", N: 1_000_000},
		{What: "read", N: 200_000, Path: "/etc/hostname"},
		{What: "write", N: 200_000, Path: file},
		{What: "connect", N: 10_000, To: to},
		{What: "exec", N: 1_500, Path: program},
	} {
		b.Run(w.What, func(b *testing.B) {
			args, err := json.Marshal(w)
			if err != nil {
				b.Fatal(err)
			}
			times := map[string][]float64{}
			for b.Loop() {
				for _, v := range variants {
					cmd := exec.Command(self, helperFlag, "work", string(args))
					cmd.Stderr = os.Stderr
					var k *Kernel
					if v != "without" {
						if k, err = Load(optionsOf(fmt.Sprintf("bench-%d", os.Getpid()))); err != nil {
							b.Fatal(err)
						}
						if v == "watching" {
							if err := k.SetWatchedPaths(watched); err != nil {
								b.Fatal(err)
							}
						}
						for _, r := range k.Readers() {
							go func() {
								var ev Event
								for r.Read(&ev) == nil {
									r.Release()
									k.Ledger().Add(ev.Header.CPU, ev.Header.Class, 1)
								}
							}()
						}
					}
					out, err := cmd.Output()
					if err != nil {
						b.Fatal(err)
					}
					if k != nil {
						if err := k.Close(false); err != nil {
							b.Fatal(err)
						}
					}
					var took time.Duration
					if err := json.Unmarshal(out, &took); err != nil {
						b.Fatal(err)
					}
					times[v] = append(times[v], float64(took.Nanoseconds())/float64(w.N))
				}
			}
			b.ReportMetric(0, "ns/op") // of the whole loop: says nothing
			for _, v := range variants {
				slices.Sort(times[v])
				b.ReportMetric(times[v][len(times[v])/2], "ns-"+v)
			}
		})
	}
}

// BenchmarkLatency measures the time from a system call to its decoded event, at 1,000 opens a second.
func BenchmarkLatency(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skipf("SKIPPED (needs root): %s runs programs in the live kernel", b.Name())
	}
	k, err := Load(optionsOf(fmt.Sprintf("bench-%d", os.Getpid())))
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := k.Close(false); err != nil {
			b.Error(err)
		}
	}()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "file")
	var took []time.Duration
	for b.Loop() {
		cmd := exec.Command(self, helperFlag, "ticker", path, "3000")
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		var ev Event
		for n := 0; n < 3000; {
			if err := k.Readers()[ClassFile].Read(&ev); err != nil {
				b.Fatal(err)
			}
			if int(ev.Header.TGID) == cmd.Process.Pid {
				took = append(took, time.Duration(bootTime()-ev.Header.Time))
				n++
			}
		}
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(took)
	b.ReportMetric(0, "ns/op") // of the whole loop: says nothing
	for _, p := range []int{50, 95, 99} {
		b.ReportMetric(float64(took[len(took)*p/100].Microseconds())/1000, fmt.Sprintf("ms-p%d", p))
	}
}

func init() {
	// ticker PATH N: opens PATH N times, once a millisecond.
	helpers["ticker"] = func(args []string) error {
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for range n {
			<-tick.C
			if err := os.WriteFile(args[0], nil, 0o600); err != nil {
				return err
			}
		}
		return nil
	}
}
