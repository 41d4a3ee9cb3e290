package bpf

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkRead measures what reading and decoding an event costs the reader's CPU: "full" of a ring that was filled
// before, "flowing" while another process writes, whose CPU time per open is reported too.
//
//	go test -run '^$' -bench Read -benchtime 3x -count 5 picket/bpf
func BenchmarkRead(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skipf("SKIPPED (needs root): %s runs programs in the live kernel", b.Name())
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		opens   int
		flowing bool
	}{
		{"full", 20_000, false},
		{"flowing", 300_000, true},
	} {
		b.Run(tt.name, func(b *testing.B) {
			runtime.LockOSThread() // its CPU time is measured
			defer runtime.UnlockOSThread()
			k, err := Load(optionsOf(fmt.Sprintf("bench-%d", os.Getpid())))
			if err != nil {
				b.Fatal(err)
			}
			defer func() {
				if err := k.Close(false); err != nil {
					b.Error(err)
				}
			}()
			r := k.Readers()[ClassFile]
			file := filepath.Join(b.TempDir(), "file")
			var ev Event
			var reading, writing time.Duration
			read, wrote := 0, 0
			drain := func() {
				begin := threadTime(b)
				for {
					err := r.Read(&ev)
					if errors.Is(err, os.ErrDeadlineExceeded) {
						break
					}
					if err != nil {
						b.Fatal(err)
					}
					read++
				}
				reading += threadTime(b) - begin
			}
			for b.Loop() {
				cmd := exec.Command(self, helperFlag, "opens", fmt.Sprint(tt.opens), file)
				done := make(chan error, 1)
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				go func() { done <- cmd.Wait() }()
				var err error
				if !tt.flowing {
					err = <-done
				}
				for ended := !tt.flowing; ; {
					r.SetDeadline(time.Now().Add(20 * time.Millisecond))
					drain()
					if ended {
						break
					}
					select {
					case err = <-done:
						ended = true
					default:
					}
				}
				if err != nil {
					b.Fatal(err)
				}
				writing += cmd.ProcessState.SystemTime() + cmd.ProcessState.UserTime()
				wrote += tt.opens
			}
			if read < wrote/2 {
				b.Fatalf("%d events of %d opens were read", read, wrote)
			}
			b.ReportMetric(0, "ns/op") // of the whole loop: says nothing
			b.ReportMetric(float64(reading.Nanoseconds())/float64(read), "ns-cpu/event")
			if tt.flowing {
				b.ReportMetric(float64(writing.Nanoseconds())/float64(wrote), "ns-cpu/open")
			}
		})
	}
}

// threadTime is the CPU time, user and system, of the calling thread.
func threadTime(b *testing.B) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}
