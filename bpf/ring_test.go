package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fakeRing is memory that a ring can be read from; it writes as the kernel does.
type fakeRing struct {
	ring
	consumed, produced uint64
}

func newFakeRing(size int, at uint64) *fakeRing {
	f := &fakeRing{consumed: at, produced: at}
	words := make([]uint64, size/8) // aligned as pages are
	f.ring = ring{consumer: &f.consumed, producer: &f.produced, data: unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), size), first: 3, at: at, given: at, seen: at}
	return f
}

// write adds a record if there is room.
func (f *fakeRing) write(data []byte, bits uint32) bool {
	mask := uint64(len(f.data) - 1)
	size := uint64(recordHeader+len(data)+7) &^ 7
	if f.produced+size-f.consumed > mask {
		return false
	}
	off := f.produced & mask
	binary.NativeEndian.PutUint32(f.data[off:], uint32(len(data))|bits)
	binary.NativeEndian.PutUint32(f.data[off+4:], f.first+uint32(off)/uint32(os.Getpagesize()))
	for i, b := range data {
		f.data[(off+recordHeader+uint64(i))&mask] = b
	}
	f.produced += size
	return true
}

// TestRingWalk: records of every length come out as they went in, over the ring's end and far from its beginning.
func TestRingWalk(t *testing.T) {
	size := 2 * os.Getpagesize()
	f := newFakeRing(size, 1<<40-64)
	rnd := rand.New(rand.NewPCG(1, 2))
	var want [][]byte
	wrapped := 0
	for n := 0; n < 20_000; {
		data := make([]byte, rnd.IntN(600))
		for i := range data {
			data[i] = byte(rnd.Uint32())
		}
		var bits uint32
		if n%7 == 3 {
			bits = discardBit
		}
		if f.write(data, bits) {
			n++
			if bits == 0 {
				want = append(want, data)
			}
			if n%11 != 0 {
				continue
			}
		}
		if !f.sound() {
			t.Fatal("what was written is not sound")
		}
		for {
			got, size, is := f.next()
			if is == nothing {
				break
			}
			if is == complete {
				if !bytes.Equal(got, want[0]) {
					t.Fatalf("record %d at %d is another", n, f.at)
				}
				want = want[1:]
				if len(got) > 0 && &got[0] == &f.whole[:1][0] {
					wrapped++
				}
			} else if is != dropped {
				t.Fatalf("%d at %d", is, f.at)
			}
			f.at += size
		}
		if len(want) > 0 || !f.giveBack() || f.consumed != f.produced {
			t.Fatalf("%d records left, given back up to %d of %d", len(want), f.consumed, f.produced)
		}
	}
	if wrapped < 100 {
		t.Errorf("%d records went over the end", wrapped)
	}
	f.skip()
	if !f.write([]byte("under way"), busyBit) {
		t.Fatal("no room")
	}
	if _, _, is := f.next(); is != busy {
		t.Errorf("a record that is being written is %d", is)
	}
	if !f.sound() {
		t.Error("a ring with a record that is being written is not sound")
	}
}

// FuzzRing: whatever is in the memory, reading stays in it and ends.
func FuzzRing(f *testing.F) {
	f.Add(uint64(0), uint64(64), []byte{16, 0, 0, 0, 3, 0, 0, 0})
	f.Add(uint64(4096-8), uint64(4096+64), []byte{0xff, 0xff, 0xff, 0xff})
	f.Add(uint64(1<<63), uint64(8), []byte{})
	f.Add(^uint64(0)-7, uint64(16), []byte{0, 0, 0, 0x80, 3, 0, 0, 0})
	f.Fuzz(func(t *testing.T, at, producer uint64, data []byte) {
		size := os.Getpagesize()
		r := newFakeRing(size, at)
		r.produced = producer
		if off := at & uint64(size-1); len(data) > 0 {
			for i := range min(len(data), size) { // first what is read first
				r.data[(off+uint64(i))&uint64(size-1)] = data[i]
			}
		}
		if !r.sound() {
			r.skip()
		}
		for steps := 0; ; steps++ {
			if steps > size/recordHeader {
				t.Fatalf("%d steps in a ring of %d bytes", steps, size)
			}
			got, n, is := r.next()
			if is == nothing || is == busy {
				break
			}
			if is == astray {
				t.Fatal("astray in a ring that was sound")
			}
			if n < recordHeader || n%recordHeader != 0 || n > r.produced-r.at || uint64(len(got)) > n-recordHeader {
				t.Fatalf("%d bytes in a record of %d, of %d", len(got), n, r.produced-r.at)
			}
			var ev Event
			if err := Decode(got, &ev); err != nil && !errors.Is(err, ErrBadRecord) {
				t.Fatal(err)
			}
			r.at += n
		}
		r.giveBack()
	})
}

// TestRingDisturbed: what writers may have been at is not told.
func TestRingDisturbed(t *testing.T) {
	size := os.Getpagesize()
	fill := func() *fakeRing {
		f := newFakeRing(size, 0)
		for f.write(make([]byte, 56), 0) {
		}
		return f
	}
	f := fill()
	if f.disturbed() {
		t.Error("disturbed by nobody")
	}
	f.consumed = f.produced // a thief
	if !f.disturbed() {
		t.Fatal("the thief is not seen")
	}
	if moved, lost := f.settle(); !moved || lost || f.consumed != 0 {
		t.Errorf("moved %v, lost %v, the position is %d", moved, lost, f.consumed)
	}
	// The writer saw the thief's position before it was put right.
	f.produced += 64
	if !f.disturbed() {
		t.Fatal("not looked at again")
	}
	if moved, lost := f.settle(); moved || !lost {
		t.Errorf("moved %v, lost %v", moved, lost)
	}
	f.skip()
	if f.at != f.produced || f.consumed != f.produced || f.disturbed() {
		t.Errorf("goes on at %d of %d, disturbed %v", f.at, f.produced, f.disturbed())
	}
	// Nobody's position, and all is written over.
	f = fill()
	f.produced += 1 << 30
	if _, _, is := f.next(); is != astray {
		t.Errorf("what is written over is %d", is)
	}
}

// thief is somebody else who has a ring mapped.
func thief(t *testing.T, k *Kernel, class Class) *ring {
	t.Helper()
	m := k.maps[rings[class]]
	g, mem, err := mapRing(m.FD(), int(m.MaxEntries()), k.readers[class].ring.first)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mem.unmap(); err != nil {
			t.Error(err)
		}
	})
	return &g
}

// moves are what somebody else can write into the readers' position of a ring, whose writers are at to.
var moves = []struct {
	name string
	to   func(own, to uint64) uint64
	// unseen: nothing shows it who did not run then.
	unseen bool
}{
	{"past the writers", func(_, to uint64) uint64 { return to + 8 }, false},
	{"far past the writers", func(_, to uint64) uint64 { return to + 1<<20 }, false},
	{"into a record", func(own, _ uint64) uint64 { return own + 16 }, false},
	{"to no header's place", func(own, _ uint64) uint64 { return own + 3 }, false},
	{"to the writers", func(_, to uint64) uint64 { return to }, true},
	{"back to the beginning", func(_, _ uint64) uint64 { return 0 }, false},
	{"back and into a record", func(_, _ uint64) uint64 { return 24 }, false},
	{"below zero", func(_, _ uint64) uint64 { return ^uint64(7) }, false},
}

// TestRingMoved: somebody else writes the readers' position, again and again; nothing is lost, and each time is told.
func TestRingMoved(t *testing.T) {
	k := mustLoad(t, options(t))
	r, g := k.Readers()[ClassFile], thief(t, k, ClassFile)
	file := filepath.Join(t.TempDir(), "file")
	seqs := map[uint32][]uint64{}
	moved := 0
	read := func() error {
		var ev Event
		err := r.Read(&ev)
		switch {
		case err == nil:
			seqs[ev.Header.CPU] = append(seqs[ev.Header.CPU], ev.Header.Seq)
		case errors.Is(err, ErrRingLost):
			t.Error(err)
		case errors.Is(err, ErrRingMoved):
			moved++
			err = nil
		}
		return err
	}
	for _, tt := range moves {
		t.Run(tt.name, func(t *testing.T) {
			run(t, helper(t, "opens", "20", file))
			for range 5 {
				if err := read(); err != nil {
					t.Fatal(err)
				}
			}
			r.Release()
			// While there are events in the ring.
			moved = 0
			atomic.StoreUint64(g.consumer, tt.to(atomic.LoadUint64(g.consumer), atomic.LoadUint64(g.producer)))
			r.SetDeadline(time.Now())
			for read() == nil {
			}
			if at := atomic.LoadUint64(g.consumer); moved != 1 || at != r.Position() {
				t.Errorf("told %d times, position %d, read up to %d", moved, at, r.Position())
			}
			// While the reader waits, for however long.
			r.SetDeadline(time.Time{})
			moved = 0
			done := make(chan error, 1)
			go func() {
				for {
					err := read()
					if err != nil || moved > 0 {
						done <- err
						return
					}
				}
			}()
			time.Sleep(20 * time.Millisecond)
			own := atomic.LoadUint64(g.consumer)
			to := tt.to(own, atomic.LoadUint64(g.producer))
			if to == own { // no move
				if err := r.Wake(); err != nil {
					t.Fatal(err)
				}
				if err := <-done; !errors.Is(err, ErrWoken) {
					t.Errorf("woken: %v", err)
				}
				return
			}
			atomic.StoreUint64(g.consumer, to)
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(5 * lookEvery):
				t.Fatal("not told while the reader waits")
			}
		})
	}
	if err := k.Detach(); err != nil {
		t.Fatal(err)
	}
	r.SetDeadline(time.Now())
	for read() == nil {
	}
	counters, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0
	for _, c := range counters {
		if c.Class == ClassFile {
			sum += len(seqs[c.CPU])
			if uint64(len(seqs[c.CPU])) != c.Submitted {
				t.Errorf("CPU %d: %d of %d events were read", c.CPU, len(seqs[c.CPU]), c.Submitted)
			}
			counting(t, cell{c.CPU, c.Class}, seqs[c.CPU], 1)
		}
	}
	if sum < 20*len(moves) {
		t.Errorf("%d events", sum)
	}
}

// TestRingWrittenOver: somebody else lets writers have what was not read. What is lost are the numbers that are
// missing, and what is read is whole.
func TestRingWrittenOver(t *testing.T) {
	o := options(t)
	o.FileRing = 16 << 10
	k := mustLoad(t, o)
	r, g := k.Readers()[ClassFile], thief(t, k, ClassFile)
	dir := t.TempDir()
	opens := helper(t, "opens", "30000", dir+"/file")
	if err := opens.Start(); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				atomic.StoreUint64(g.consumer, atomic.LoadUint64(g.producer))
			}
		}
	}()
	lost, read, backwards, after := 0, map[uint32][]uint64{}, 0, 0
	drain := func() {
		var ev Event
		r.SetDeadline(time.Now().Add(20 * time.Millisecond))
		for {
			err := r.Read(&ev)
			switch {
			case err == nil:
				h := ev.Header
				if s := read[h.CPU]; len(s) > 0 && s[len(s)-1] >= h.Seq {
					backwards++
				}
				read[h.CPU] = append(read[h.CPU], h.Seq)
				if h.Action != ActionOpen {
					continue
				}
				switch p := string(ev.Open.Path); {
				case p == dir+"/after":
					after++
				case int(h.TGID) == opens.Process.Pid && p != dir+"/file":
					t.Errorf("an open of %q", p)
				}
			case errors.Is(err, ErrRingLost):
				lost++
			case errors.Is(err, ErrRingMoved):
			case errors.Is(err, os.ErrDeadlineExceeded):
				return
			default:
				t.Fatal(err)
			}
		}
	}
	done := make(chan error, 1)
	go func() { done <- opens.Wait() }()
	for ended := false; !ended; drain() {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			ended = true
		default:
		}
	}
	close(stop)
	<-stopped
	drain() // the last that was written over
	before := lost
	for end := time.Now().Add(20 * time.Second); after == 0 && time.Now().Before(end); drain() { // others may fill so small a ring
		run(t, helper(t, "opens", "10", dir+"/after"))
	}
	if lost != before {
		t.Error("events were written over although nobody moved the position")
	}
	if err := k.Detach(); err != nil {
		t.Fatal(err)
	}
	drain()
	if lost == 0 || backwards > 0 {
		t.Errorf("told %d times that events were written over, %d numbers came again", lost, backwards)
	}
	sums := checkCounters(t, k)[ClassFile]
	n := 0
	for _, s := range read {
		n += len(s)
	}
	if n == 0 || uint64(n) >= sums.Submitted || available(r) != 0 {
		t.Errorf("%d of %d events read, %d bytes left", n, sums.Submitted, available(r))
	}
	if after == 0 {
		t.Error("no event was read that came after")
	}
	t.Logf("%d submitted, %d read, told %d times", sums.Submitted, n, lost)
}

// TestRingTakeUpMoved: the position is moved while no sensor runs, again and again.
func TestRingTakeUpMoved(t *testing.T) {
	o := options(t)
	k := mustLoad(t, o)
	// Paths that look like a record that is being written.
	file := filepath.Join(t.TempDir(), string(bytes.Repeat([]byte{0xff}, 100)))
	for _, tt := range moves {
		t.Run(tt.name, func(t *testing.T) {
			run(t, helper(t, "opens", "20", file))
			var ev Event
			r := k.Readers()[ClassFile]
			for range 5 {
				if err := r.Read(&ev); err != nil {
					t.Fatal(err)
				}
				r.Release()
				k.Ledger().Add(ev.Header.CPU, ClassFile, 1)
			}
			g := thief(t, k, ClassFile)
			if err := k.Close(true); err != nil {
				t.Fatal(err)
			}
			atomic.StoreUint64(g.consumer, tt.to(atomic.LoadUint64(g.consumer), atomic.LoadUint64(g.producer)))
			next, err := Load(o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if t.Failed() {
					_ = next.Close(false) // the test fails anyway
				}
			})
			k = next
			if !k.Resumed() {
				t.Fatal("not resumed")
			}
			run(t, helper(t, "opens", "20", file))
			r = k.Readers()[ClassFile]
			told := 0
			read := map[uint32][]uint64{}
			for r.SetDeadline(time.Now()); ; {
				err := r.Read(&ev)
				if err == nil {
					read[ev.Header.CPU] = append(read[ev.Header.CPU], ev.Header.Seq)
				} else if errors.Is(err, ErrRingMoved) {
					told++
				} else if errors.Is(err, os.ErrDeadlineExceeded) {
					break
				} else {
					t.Fatal(err)
				}
			}
			if told != 1 && !tt.unseen || told != 0 && tt.unseen {
				t.Errorf("told %d times", told)
			}
			lost, ok := r.Lost()
			if !ok {
				t.Fatal("what was lost is not known")
			}
			for cpu := range uint32(k.CPUs()) {
				noted, got := k.Ledger().Load(cpu, ClassFile), read[cpu]
				from := noted + lost[cpu] + 1
				if len(got) > 0 && got[0] > from && !tt.unseen {
					from = got[0] // events that others made between the look at the counters and that at the ring
				}
				if lost[cpu] > from {
					t.Errorf("CPU %d: %d noted, %d lost", cpu, noted, lost[cpu])
				}
				counting(t, cell{cpu, ClassFile}, got, from)
				k.Ledger().Add(cpu, ClassFile, from-1-noted+uint64(len(got)))
			}
		})
	}
	if err := k.Close(false); err != nil {
		t.Fatal(err)
	}
}

// TestRingStuck: a record that is not finished is waited for, told once, and keeps neither Wake nor Close from working.
func TestRingStuck(t *testing.T) {
	k := mustLoad(t, options(t))
	r := k.Readers()[ClassKernel]
	if err := k.Detach(); err != nil {
		t.Fatal(err)
	}
	drain(t, k)
	// The kernel's memory cannot be written from here: the reader looks at a copy in which a record is under way.
	f := newFakeRing(len(r.ring.data), r.ring.at)
	f.first = r.ring.first
	if !f.write(make([]byte, 200), busyBit) {
		t.Fatal("no room")
	}
	f.write(make([]byte, 200), 0)
	r.ring.data, r.ring.consumer, r.ring.producer = f.data, &f.consumed, &f.produced
	cpu := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before, begin := cpu(), time.Now()
	var ev Event
	var told []string
	r.SetDeadline(begin.Add(2500 * time.Millisecond))
	for {
		err := r.Read(&ev)
		told = append(told, fmt.Sprint(err))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	if len(told) != 2 || told[0] != ErrRingStuck.Error() || time.Since(begin) > 4*time.Second {
		t.Errorf("%q after %v", told, time.Since(begin))
	}
	if used := cpu() - before; used > 500*time.Millisecond {
		t.Errorf("waiting took %v of the CPU", used)
	}
	r.SetDeadline(time.Time{})
	done := make(chan error)
	go func() {
		var ev Event
		done <- r.Read(&ev)
		done <- r.Read(&ev)
	}()
	time.Sleep(20 * time.Millisecond)
	if err := r.Wake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrWoken) {
		t.Errorf("woken: %v", err)
	}
	time.Sleep(20 * time.Millisecond)
	if err := k.Close(false); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
