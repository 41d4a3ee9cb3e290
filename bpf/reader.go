package bpf

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// pause is how long a Reader that has emptied the ring lets it fill again. The kernel wakes a reader for the
// first event in an empty ring only; without the pause, a busy machine would have every event be the first
// and pay for a wake-up with each (about 5 µs, many times the event itself). It is the most that reading
// adds to an event's latency.
const pause = 10 * time.Millisecond

// Reader reads one class's events. Read, Release, Position and Lost are called from one goroutine at a time; the
// other methods are safe for concurrent use.
type Reader struct {
	class   Class
	ring    ring
	most    uint64      // bytes that were read and are not given back
	timer   *time.Timer // of the pause
	emptied bool        // the last event read was the last in the ring
	told    error       // what the next Read returns
	since   time.Time   // when the record that is waited for was first seen busy; zero: none is
	stuckAt uint64      // the record that ErrRingStuck was returned for

	file  *os.File // the map, which the runtime polls
	conn  syscall.RawConn
	ready func(uintptr) bool
	asked bool // ready was called since the last wait began
	woken atomic.Bool

	closed  atomic.Bool
	closing chan struct{} // closed by close: ends the pause

	mu       sync.RWMutex // guards what follows
	mem      mapping
	using    bool   // the goroutine that reads is in the ring's memory, or has an event that is: it unmaps
	given    uint64 // ring.given
	deadline time.Time

	// Of a run that was taken up: what was in the ring then, and which of it has been read since.
	backlog  uint64   // the ring's position at takeover
	atTake   []uint64 // by CPU: the last number submitted at takeover
	handedOn []uint64 // by CPU: the ledger at takeover
	found    []uint64 // by CPU: events read since, with a number up to atTake
}

// Errors of Read that are no end.
var (
	// ErrWoken is what Read returns after [Reader.Wake].
	ErrWoken = errors.New("the reader was woken")
	// ErrRingMoved: somebody else wrote the position in the kernel's ring that only its reader may write. It was put
	// right; nothing that was in the ring is lost. Meanwhile the kernel may have found no room.
	ErrRingMoved = errors.New("somebody else moved the position of the sensor's ring buffer in the kernel")
	// ErrRingLost is an ErrRingMoved after which writers have written over events that were not read. Reading goes on
	// with those that come; what is lost are the numbers that were submitted and not read.
	ErrRingLost = fmt.Errorf("%w, and what was in it was written over", ErrRingMoved)
	// ErrRingStuck: the next record has been under way for a second. Read goes on waiting for it, and returns this
	// once for it.
	ErrRingStuck = errors.New("a program in the kernel does not finish its record, and holds up those after it")
)

// stuckAfter is how long a record may be under way until that is told; a writer may have lost its CPU.
const stuckAfter = time.Second

// lookEvery is how long a Reader waits without looking whether its position in the ring is its own: moved, it is not
// told of events.
const lookEvery = time.Second

func newReader(class Class, m *ebpf.Map, first uint32) (_ *Reader, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("opening the ring of class %s: %w", class, err)
		}
	}()
	r := &Reader{class: class, closing: make(chan struct{}), timer: time.NewTimer(0)}
	<-r.timer.C
	r.most = uint64(m.MaxEntries()) / 32 // little of the ring, and seldom enough: writers and reader share the line
	fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // this makes the runtime poll it
		return nil, errors.Join(err, unix.Close(fd))
	}
	r.file = os.NewFile(uintptr(fd), "ring of class "+class.String())
	if r.conn, err = r.file.SyscallConn(); err == nil {
		err = r.file.SetReadDeadline(time.Time{}) // fails where it is not polled
	}
	if err == nil {
		r.ring, r.mem, err = mapRing(fd, int(m.MaxEntries()), first)
	}
	if err != nil {
		return nil, errors.Join(err, r.file.Close())
	}
	r.ready = func(uintptr) bool {
		again := r.asked
		r.asked = true
		if again {
			return true
		}
		_, _, is := r.ring.next()
		return is != nothing && is != busy
	}
	if !r.ring.sound() {
		r.told = ErrRingLost
		r.ring.skip()
	}
	r.given = r.ring.given
	return r, nil
}

// Class returns the class whose events this Reader reads.
func (r *Reader) Class() Class { return r.class }

// Read waits for the next event and decodes it into *ev. What ev held before is overwritten, and nothing is allocated.
// The byte slices in it are the ring's memory: they are valid until the next Read or Release.
//
// What was read is given back to the kernel by [Reader.Release], or by a later Read. Until then it is read again after a crash.
//
// It returns os.ErrClosed after Kernel.Close, [ErrWoken] after Wake, os.ErrDeadlineExceeded when a deadline was set, has passed
// and all events in the ring have been read, and an error that is [ErrBadRecord] for a record that makes no
// sense, [ErrRingMoved] or [ErrRingStuck], after which reading goes on.
func (r *Reader) Read(ev *Event) error {
	rested := r.emptied
	if rested {
		// With what was read last not given back: the kernel wakes for the record that a reader has read up to.
		r.rest()
	}
	if r.closed.Load() || !r.using && !r.enter() {
		r.leave()
		return os.ErrClosed
	}
	g := &r.ring
	if g.at-g.given >= r.most {
		r.giveBack()
	}
	if err := r.told; err != nil {
		r.told = nil
		r.leave()
		return err
	}
	for {
		data, size, is := g.next()
		switch is {
		case complete:
			err := Decode(data, ev)
			if g.disturbed() {
				moved, lost := g.settle()
				if lost {
					return r.lost()
				}
				if moved {
					r.told = ErrRingMoved // after this event: somebody who goes on moving does not keep it from coming
				}
			}
			g.at += size
			if g.seen == g.at {
				g.seen = atomic.LoadUint64(g.producer)
			}
			r.emptied = g.seen == g.at
			if err != nil {
				r.leave()
				return err
			}
			// All numbers of one record were given out at once: they are on one side of the takeover.
			if h := &ev.Header; int64(h.CPU) < int64(len(r.atTake)) && h.Seq <= r.atTake[h.CPU] {
				if h.Seq != 0 && h.Seq <= r.handedOn[h.CPU] {
					r.told = ErrRingMoved // back, while no sensor ran
					continue
				}
				r.found[h.CPU] += ev.Count()
			}
			return nil
		case dropped:
			g.at += size
			continue
		case astray:
			return r.lost()
		case busy:
			if !rested { // the writers are caught up with
				rested = true
				r.rest()
				continue
			}
		}
		if g.at != g.given {
			r.giveBack()
			if r.told == nil {
				continue // from here on a writer wakes the reader: look again
			}
		}
		if err := r.wait(is); err != nil {
			r.leave()
			return err
		}
	}
}

// lost goes on after what was written over.
func (r *Reader) lost() error {
	r.ring.skip()
	r.mu.Lock()
	r.given = r.ring.given
	r.mu.Unlock()
	r.emptied = true // somebody who goes on moving does not keep the CPU busy
	r.told = nil
	r.leave()
	return ErrRingLost
}

func (r *Reader) giveBack() {
	if !r.ring.giveBack() {
		r.told = ErrRingMoved
	}
	r.mu.Lock()
	r.given = r.ring.given
	r.mu.Unlock()
}

// Release gives back what has been read, so that it is not read again after a crash: the events are noted in the ledger
// then, or lost. The byte slices of the last event are no longer valid.
func (r *Reader) Release() {
	if !r.using && !r.enter() {
		return
	}
	if r.ring.at != r.ring.given {
		r.giveBack()
	}
	r.leave()
}

// enter keeps the memory from being unmapped; false after close.
func (r *Reader) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.using = !r.closed.Load()
	return r.using
}

func (r *Reader) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.using && r.closed.Load() {
		r.unmap()
	}
	r.using = false
}

// wait returns nil when the ring is to be looked at again, and otherwise what Read is to return. What is next is
// nothing or busy, and all before is given back.
func (r *Reader) wait(next what) error {
	g := &r.ring
	if r.told == nil && g.disturbed() {
		g.wary = next == busy // else there is nothing that could be written over
		if moved, _ := g.settle(); moved {
			r.told = ErrRingMoved
		}
	}
	if err := r.told; err != nil {
		r.told = nil
		r.emptied = true // as in lost
		return err
	}
	if r.closed.Load() {
		return os.ErrClosed
	}
	if r.woken.Swap(false) {
		return ErrWoken
	}
	now := time.Now()
	switch {
	case next != busy:
		r.since = time.Time{}
	case r.since.IsZero():
		r.since = now
	case now.Sub(r.since) >= stuckAfter && r.stuckAt != g.at+1:
		r.stuckAt = g.at + 1 // no record is at an odd place
		return ErrRingStuck
	}
	until := now.Add(lookEvery)
	r.mu.RLock()
	deadline := r.deadline
	r.mu.RUnlock()
	if !deadline.IsZero() && !now.Before(deadline) {
		return os.ErrDeadlineExceeded
	}
	if !deadline.IsZero() && deadline.Before(until) {
		until = deadline
	}
	err := r.file.SetReadDeadline(until)
	if err == nil && !r.woken.Load() { // Wake comes before this look, or its deadline after ours
		r.asked = false
		if err = r.conn.Read(r.ready); errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
		}
	}
	if r.closed.Load() {
		return os.ErrClosed
	}
	return err
}

// Emptied reports whether the ring was empty once the last event had been read.
func (r *Reader) Emptied() bool { return r.emptied }

// Wake makes the Read that waits, or else the next one that would, return [ErrWoken] once all events in the ring
// have been read.
func (r *Reader) Wake() error {
	r.woken.Store(true)
	return r.file.SetReadDeadline(time.Unix(1, 0))
}

// Position returns the ring's position up to which this Reader has read.
func (r *Reader) Position() uint64 { return r.ring.at }

// rest waits for the pause, or until the deadline or close.
func (r *Reader) rest() {
	r.emptied = false
	d := pause
	r.mu.RLock()
	if !r.deadline.IsZero() {
		d = min(d, time.Until(r.deadline))
	}
	r.mu.RUnlock()
	if d <= 0 {
		return
	}
	r.timer.Reset(d)
	select {
	case <-r.timer.C:
	case <-r.closing:
		r.timer.Stop()
	}
}

// SetDeadline sets when Read gives up waiting; the zero time means never. A Read that waits already is not
// affected.
func (r *Reader) SetDeadline(t time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deadline = t
}

// Written returns the ring's position up to which there are events, or will be in a moment; after Kernel.Close, up to which
// they were given back.
func (r *Reader) Written() uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.closed.Load() {
		return r.given
	}
	return atomic.LoadUint64(r.ring.producer)
}

// Released returns the ring's position up to which what was read is given back.
func (r *Reader) Released() uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.given
}

// Lost returns, once everything that was in the ring when the run was taken up has been read, how many
// events of each CPU the sensor before this one had read and not noted in the ledger; ok is false until
// then. It is exact: of the numbers submitted until takeover, each is in the ledger, was read since, or is
// lost. A run that was not taken up has lost nothing. Call it from the goroutine that reads.
func (r *Reader) Lost() (byCPU []uint64, ok bool) {
	if r.ring.at < r.backlog {
		return nil, false
	}
	byCPU = make([]uint64, len(r.atTake))
	for cpu := range byCPU {
		byCPU[cpu] = r.atTake[cpu] - r.handedOn[cpu] - r.found[cpu]
	}
	return byCPU, true
}

// HandedOn returns how many events of a CPU the runs before this one had noted in the ledger.
func (r *Reader) HandedOn(cpu uint32) uint64 {
	if int64(cpu) >= int64(len(r.handedOn)) {
		return 0
	}
	return r.handedOn[cpu]
}

// takeUp notes what an earlier owner left. The counters must have been read before: a number they include
// was given out after its record had its place, so that record is in the ring now or was read.
func (r *Reader) takeUp(counters []ClassCounters, ledger *Ledger) {
	for _, c := range counters {
		if c.Class == r.class {
			r.atTake = append(r.atTake, c.Submitted)
			r.handedOn = append(r.handedOn, ledger.Load(c.CPU, c.Class))
		}
	}
	r.found = make([]uint64, len(r.atTake))
	r.backlog = atomic.LoadUint64(r.ring.producer)
}

// close interrupts Read. Memory that the goroutine that reads is in is unmapped by its next call.
func (r *Reader) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed.Swap(true) {
		return nil
	}
	close(r.closing)
	err := r.file.Close()
	if !r.using {
		r.unmap()
	}
	return err
}

// unmap is called once, with mu held. It fails only for memory that is not mapped.
func (r *Reader) unmap() {
	if err := r.mem.unmap(); err != nil {
		panic(err)
	}
	r.mem, r.ring.data, r.ring.consumer, r.ring.producer = mapping{}, nil, nil, nil
}
