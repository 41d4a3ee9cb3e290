package bpf

import "encoding/binary"

// Submitted returns the number of the last event submitted on a CPU in a class,
// without allocating: a reader compares it with what it has read.
func (k *Kernel) Submitted(cpu uint32, class Class) uint64 {
	var b [8]byte
	off := (int64(cpu)*NumClasses+int64(class))*counterWords*8 + counterSubmitted*8
	if _, err := k.counters.ReadAt(b[:], off); err != nil {
		return 0 // no such CPU
	}
	return binary.LittleEndian.Uint64(b[:])
}
