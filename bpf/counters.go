package bpf

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
)

// ErrorKind says where in the kernel a read failed, or memory was missing. Except where a kind says
// otherwise the event was reported all the same, without what could not be read.
type ErrorKind int

// The kinds, with their place in ClassCounters.Errors.
const (
	ErrorPath        ErrorKind = 0 // a path could not be walked to its end
	ErrorArgs        ErrorKind = 1 // argument memory was not readable
	ErrorFilename    ErrorKind = 2 // the name given to execve was not readable
	ErrorFD          ErrorKind = 3 // another thread closed the descriptor first: no event
	ErrorUserAddress ErrorKind = 4 // an address in the caller's memory was not readable
	ErrorStorage     ErrorKind = 5 // no memory, or no room, to remember a connection, a flow or a path
	ErrorAsker       ErrorKind = 6 // a DNS message of a socket whose first question was not seen: no event
	ErrorStream      ErrorKind = 7 // a DNS stream over TCP that cannot be followed: no events from then on
	ErrorCgroup      ErrorKind = 8 // no room to tell of a new control group
	NumErrors                  = 9
)

// String returns the kind as a metric label.
func (e ErrorKind) String() string {
	names := [NumErrors]string{"path", "args", "filename", "fd", "user_address", "storage", "asker", "stream", "cgroup"}
	if e < 0 || e >= NumErrors {
		return fmt.Sprintf("error(%d)", int(e))
	}
	return names[e]
}

// ClassCounters is what the kernel counted for one class on one CPU since the programs were loaded.
type ClassCounters struct {
	CPU       uint32
	Class     Class
	Seen      uint64 // events that passed the filters: Submitted + RingFull + Limited, up to events under way
	Submitted uint64 // events that got a place in the ring: the last number given
	RingFull  uint64 // events lost because the ring was full
	Filtered  uint64 // suppressed by the noise filter: not events
	Threads   uint64 // threads begun (ClassProcess): not events
	Limited   uint64 // events left out because their cgroup filled a ring that was nearly full: see SetShare
	Errors    [NumErrors]uint64
}

// Offsets in struct counters of lib/maps.h, in units of 8 bytes; layout_test.go compares them.
const (
	counterSeen      = 0
	counterSubmitted = 1
	counterRingFull  = 2
	counterFiltered  = 3
	counterThreads   = 4
	counterLimited   = 5
	counterErrors    = 6
	counterWords     = 16
)

// Submitted returns ClassCounters.Submitted of one CPU and class without allocating: a reader compares it
// with what it has read. It is 0 for a CPU or class that does not exist.
func (k *Kernel) Submitted(cpu uint32, class Class) uint64 {
	if int64(cpu) >= int64(k.cpus) || class >= NumClasses {
		return 0
	}
	var b [8]byte
	off := (int64(cpu)*NumClasses+int64(class))*counterWords*8 + counterSubmitted*8
	if _, err := k.counters.ReadAt(b[:], off); err != nil {
		return 0 // out of bounds, which the check above excludes
	}
	return binary.LittleEndian.Uint64(b[:])
}

// readCounters reads the counters of every (CPU, class), in the order of their index.
func readCounters(mem *ebpf.Memory, cpus int) ([]ClassCounters, error) {
	n := cpus * NumClasses
	buf := make([]byte, n*counterWords*8)
	if _, err := mem.ReadAt(buf, 0); err != nil {
		return nil, fmt.Errorf("reading the kernel's counters: %w", err)
	}
	out := make([]ClassCounters, n)
	for i := range out {
		word := func(w int) uint64 { return binary.LittleEndian.Uint64(buf[(i*counterWords+w)*8:]) }
		c := &out[i]
		c.CPU, c.Class = uint32(i/NumClasses), Class(i%NumClasses)
		c.Seen, c.Submitted, c.RingFull = word(counterSeen), word(counterSubmitted), word(counterRingFull)
		c.Filtered, c.Threads = word(counterFiltered), word(counterThreads)
		c.Limited = word(counterLimited)
		for e := range c.Errors {
			c.Errors[e] = word(counterErrors + e)
		}
	}
	return out, nil
}

// Ledger notes, per CPU and class, how many events the sensor has safely handed on. It lives in a pinned
// map that is mapped into memory: adding is a plain store, and survives the death of the process in the next
// instruction. Safe for concurrent use.
type Ledger struct {
	mu   sync.Mutex
	mem  *ebpf.Memory
	cpus int
}

// Add notes that n more events of (cpu, class) were handed on. Call it after they are safe, once for each
// event read. A cpu or class that no event can have is ignored.
func (l *Ledger) Add(cpu uint32, class Class, n uint64) {
	if int64(cpu) >= int64(l.cpus) || class >= NumClasses {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// One aligned word: the copy behind WriteAt stores it in one piece.
	var b [8]byte
	off := l.offset(cpu, class)
	if _, err := l.mem.ReadAt(b[:], off); err != nil {
		return // out of bounds, which the check above excludes
	}
	binary.LittleEndian.PutUint64(b[:], binary.LittleEndian.Uint64(b[:])+n)
	_, _ = l.mem.WriteAt(b[:], off)
}

// Load returns what was noted for (cpu, class), over all runs that shared the pinned map.
func (l *Ledger) Load(cpu uint32, class Class) uint64 {
	if int64(cpu) >= int64(l.cpus) || class >= NumClasses {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var b [8]byte
	if _, err := l.mem.ReadAt(b[:], l.offset(cpu, class)); err != nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
}

func (l *Ledger) offset(cpu uint32, class Class) int64 {
	return (int64(cpu)*NumClasses + int64(class)) * 8
}
