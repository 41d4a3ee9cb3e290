package bpf

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// A ring is a BPF ring buffer as the kernel maps it (Linux, kernel/bpf/ringbuf.c):
//
//	page 0  the position that readers have read to, which user space writes
//	page 1  the position that writers have reserved to, which the kernel writes
//	page 2… the data
//
// A position counts bytes from the ring's beginning and never goes back; its place in the data is its remainder. A
// record is a header of 8 bytes and its data, padded to 8. The header has the length with the two bits below, and
// the page it is in, counted from the beginning of the kernel's structure: a header that says its own place is one.
// It is complete before the writers' position passes it, but for the busy bit.
//
// Whoever has CAP_BPF can write the readers' position. So the reader goes by its own: a strange one is put right,
// and costs nothing unless writers have used the room that it let them have. It belongs to one goroutine.
type ring struct {
	consumer *uint64 // shared with the kernel: atomic
	producer *uint64 // the same
	data     []byte
	first    uint32 // page of the data, as headers count

	at    uint64 // where the next record begins
	given uint64 // what consumer is, unless somebody else has written it
	seen  uint64 // producer when it was last looked at: the line is the writers'
	wary  bool   // consumer was written by somebody else, and what is in the ring since may be written over
	whole []byte // the record that goes over the ring's end
}

const (
	busyBit      = 1 << 31 // BPF_RINGBUF_BUSY_BIT of linux/bpf.h
	discardBit   = 1 << 30 // BPF_RINGBUF_DISCARD_BIT
	recordHeader = 8       // BPF_RINGBUF_HDR_SZ
)

// what is at a position of a ring.
type what int

const (
	nothing what = iota // it is the writers' position
	busy                // a record that is being written
	dropped             // a record that its writer gave up
	complete
	astray // no record: what was here is written over
)

// next looks at the record at g.at. Its data, which a complete one alone has, are the ring's own memory until they are given
// back. size is how far it is to the next record.
func (g *ring) next() (data []byte, size uint64, is what) {
	if g.seen == g.at {
		if g.seen = atomic.LoadUint64(g.producer); g.seen == g.at {
			return nil, 0, nothing
		}
	}
	left := g.seen - g.at
	if left > uint64(len(g.data))-recordHeader { // the kernel leaves that much
		return nil, 0, astray
	}
	off := g.at & uint64(len(g.data)-1)
	// Once the busy bit is gone the data are written: hence atomic.
	word := atomic.LoadUint32((*uint32)(unsafe.Pointer(&g.data[off])))
	page := *(*uint32)(unsafe.Pointer(&g.data[off+4]))
	n := uint64(word &^ (busyBit | discardBit))
	size = recordHeader + (n+7)&^7
	switch {
	case page != g.first+uint32(off/uint64(os.Getpagesize())) || size > left:
		return nil, 0, astray
	case word&busyBit != 0:
		return nil, size, busy
	case word&discardBit != 0:
		return nil, size, dropped
	}
	begin := off + recordHeader
	if end := begin + n; end <= uint64(len(g.data)) {
		return g.data[begin:end:end], size, complete
	}
	g.whole = append(append(g.whole[:0], g.data[begin:]...), g.data[:begin+n-uint64(len(g.data))]...)
	return g.whole, size, complete
}

// sound reports whether records follow one another from g.at to the writers' position.
func (g *ring) sound() bool {
	walk := *g
	walk.seen = atomic.LoadUint64(g.producer)
	if walk.at%recordHeader != 0 {
		return false
	}
	for walk.at != walk.seen {
		_, size, is := walk.next()
		if is == astray {
			return false
		}
		walk.at += size
	}
	return true
}

// giveBack lets writers use the room of what has been read. It returns false when somebody else had written the
// readers' position.
func (g *ring) giveBack() bool {
	own := atomic.SwapUint64(g.consumer, g.at) == g.given
	g.given = g.at
	g.wary = g.wary || !own
	return own
}

// disturbed reports whether the record at g.at may have been written over while it was read: see settle.
func (g *ring) disturbed() bool { return atomic.LoadUint64(g.consumer) != g.given || g.wary }

// settle puts the readers' position right, before it looks whether writers have been at the record at g.at. moved:
// somebody else had written the position; lost: they have.
func (g *ring) settle() (moved, lost bool) {
	moved = atomic.SwapUint64(g.consumer, g.given) != g.given
	// A writer that was at it can still be: that is seen with the next record.
	g.wary = g.wary || moved
	g.seen = atomic.LoadUint64(g.producer)
	return moved, g.seen-g.at > uint64(len(g.data))-recordHeader
}

// skip goes on at the writers' position, where a record begins in any case.
func (g *ring) skip() {
	g.seen = atomic.LoadUint64(g.producer)
	g.at = g.seen
	g.giveBack()
	g.wary = false
}

// ringFirst returns the page, within the kernel's structure of a ring, in which its data begin.
func ringFirst(types *btf.Spec) (uint32, error) {
	var t *btf.Struct
	if err := types.TypeByName("bpf_ringbuf", &t); err != nil {
		return 0, fmt.Errorf("looking for rings in the kernel's type information: %w", err)
	}
	for _, m := range t.Members {
		if m.Name == "data" {
			return uint32(m.Offset.Bytes()) / uint32(os.Getpagesize()), nil
		}
	}
	return 0, errors.New("the kernel's type information has struct bpf_ringbuf without data")
}

// mapping is a ring's memory.
type mapping struct{ consumer, rest []byte }

// mapRing maps a ring of so many bytes. The kernel offers the data twice in a row, so that no record is in two pieces;
// mapped once they count once as this process's memory.
func mapRing(fd, size int, first uint32) (ring, mapping, error) {
	page := os.Getpagesize()
	consumer, err := unix.Mmap(fd, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return ring{}, mapping{}, fmt.Errorf("mapping the readers' page: %w", err)
	}
	rest, err := unix.Mmap(fd, int64(page), page+size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return ring{}, mapping{}, errors.Join(fmt.Errorf("mapping the data: %w", err), unix.Munmap(consumer))
	}
	g := ring{
		consumer: (*uint64)(unsafe.Pointer(&consumer[0])),
		producer: (*uint64)(unsafe.Pointer(&rest[0])),
		data:     rest[page:],
		first:    first,
	}
	g.at = atomic.LoadUint64(g.consumer)
	g.given, g.seen = g.at, g.at
	return g, mapping{consumer, rest}, nil
}

func (m mapping) unmap() error { return errors.Join(unix.Munmap(m.consumer), unix.Munmap(m.rest)) }
