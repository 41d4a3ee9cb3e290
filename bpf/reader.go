package bpf

import (
	"fmt"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// pause is how long a Reader that has emptied the ring lets it fill again. The kernel wakes a reader for the
// first event in an empty ring only; without the pause, a busy machine would have every event be the first
// and pay for a wake-up with each (about 5 µs, many times the event itself). It is the most that reading
// adds to an event's latency.
const pause = 10 * time.Millisecond

// Reader reads one class's events. Read from one goroutine at a time; the other methods are safe for
// concurrent use, where they do not say otherwise.
type Reader struct {
	class   Class
	ring    *ringbuf.Reader
	timer   *time.Timer // of the pause
	emptied bool        // the last event read was the last in the ring
	read    uint64      // bytes of the ring

	closing chan struct{} // closed by close: ends the pause

	mu       sync.RWMutex // guards what follows
	closed   bool         // the ring's memory is not looked at after it is unmapped
	deadline time.Time

	// Of a run that was taken up: what was in the ring then, and which of it has been read since.
	backlog  int64    // bytes of the ring that were not read at takeover and still are not
	atTake   []uint64 // by CPU: the last number submitted at takeover
	handedOn []uint64 // by CPU: the ledger at takeover
	found    []uint64 // by CPU: events read since, with a number up to atTake
}

func newReader(class Class, m *ebpf.Map) (*Reader, error) {
	ring, err := ringbuf.NewReader(m)
	if err != nil {
		return nil, fmt.Errorf("opening the ring of class %s: %w", class, err)
	}
	timer := time.NewTimer(0)
	<-timer.C
	return &Reader{class: class, ring: ring, timer: timer, closing: make(chan struct{})}, nil
}

// Class returns the class whose events this Reader reads.
func (r *Reader) Class() Class { return r.class }

// Read waits for the next event and decodes it into *ev, whose buffers it reuses: what ev held before is
// overwritten, and nothing is allocated once they have grown.
//
// It returns os.ErrClosed after Kernel.Close, [ErrWoken] after Wake, os.ErrDeadlineExceeded when a deadline was set, has passed
// and all events in the ring have been read, and an error that is [ErrBadRecord] for a record that makes no
// sense, after which reading goes on with the next one.
func (r *Reader) Read(ev *Event) error {
	if r.emptied {
		r.rest()
	}
	if err := r.ring.ReadInto(&ev.record); err != nil {
		return err
	}
	r.emptied = ev.record.Remaining == 0
	// A record occupies its length, rounded up to 8 bytes, and a header of 8.
	size := int64(len(ev.record.RawSample)+7)&^7 + 8
	r.read += uint64(size)
	r.backlog -= size
	if err := Decode(ev.record.RawSample, ev); err != nil {
		return err
	}
	// All numbers of one record were given out at once: they are on one side of the takeover.
	if h := &ev.Header; int64(h.CPU) < int64(len(r.atTake)) && h.Seq <= r.atTake[h.CPU] {
		r.found[h.CPU] += ev.Count()
	}
	return nil
}

// Emptied reports whether the ring was empty once the last event had been read.
func (r *Reader) Emptied() bool { return r.emptied }

// ErrWoken is what Read returns after [Reader.Wake].
var ErrWoken = ringbuf.ErrFlushed

// Wake makes the Read that waits, or else the next one that would, return [ErrWoken] once all events in the ring
// have been read.
func (r *Reader) Wake() error { return r.ring.Flush() }

// Position returns how many bytes of the ring this Reader has read: what [Reader.Available] tells comes after them.
// Call it from the goroutine that reads.
func (r *Reader) Position() uint64 { return r.read }

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
// affected; SetDeadline waits for it.
func (r *Reader) SetDeadline(t time.Time) {
	r.ring.SetDeadline(t)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deadline = t
}

// Available returns the bytes of the ring that are written and not yet read; 0 after Kernel.Close.
func (r *Reader) Available() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.closed {
		return 0
	}
	return r.ring.AvailableBytes()
}

// Size returns the size of the ring, in bytes.
func (r *Reader) Size() int { return r.ring.BufferSize() }

// Lost returns, once everything that was in the ring when the run was taken up has been read, how many
// events of each CPU the sensor before this one had read and not noted in the ledger; ok is false until
// then. It is exact: of the numbers submitted until takeover, each is in the ledger, was read since, or is
// lost. A run that was not taken up has lost nothing. Call it from the goroutine that reads.
func (r *Reader) Lost() (byCPU []uint64, ok bool) {
	if r.backlog > 0 {
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
	r.backlog = int64(r.ring.AvailableBytes())
}

func (r *Reader) close() error {
	// Interrupts Read, which then no longer uses the ring's memory.
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	close(r.closing)
	return r.ring.Close()
}
