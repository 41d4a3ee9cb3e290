// Package bpf is Picket's part inside the kernel, and the Go side that loads it and reads its events.
//
// The C programs (picket.bpf.c and the headers it includes) watch processes, files and network connections
// and write one record per event into a ring buffer of the event's class. [Load] verifies that the kernel
// can run them, loads, pins and attaches them; a [Reader] per class decodes records into an [Event].
//
//	k, err := bpf.Load(bpf.Options{})
//	…
//	defer k.Close(false)
//	for _, r := range k.Readers() {
//		go func() {
//			var ev bpf.Event
//			for {
//				switch err := r.Read(&ev); {
//				case err == nil:
//					… use ev …
//					r.Release()
//					… hand it on …
//					k.Ledger().Add(ev.Header.CPU, ev.Header.Class, 1)
//				case errors.Is(err, bpf.ErrBadRecord), errors.Is(err, bpf.ErrRingMoved), errors.Is(err, bpf.ErrRingStuck):
//					… tell it …
//				default:
//					return // os.ErrClosed
//				}
//			}
//		}()
//	}
//
// # Accounting
//
// Per CPU and class the kernel counts the events it saw, those that got a place in the ring and those that
// did not: seen = submitted + ring full, always ([Kernel.Counters]). A record that got a place carries the
// next number of its (CPU, class), from 1 and without gaps.
//
// # Crashes
//
// Programs, rings, counters and the ledger are pinned in a BPF file system, so they go on without the
// sensor. After a crash, Load takes them up again: what is still in the rings is read as if nothing had
// happened, and [Reader.Lost] says exactly how many events the crashed process had taken from a ring without
// noting in the ledger that they were handed on.
//
// # What is not seen
//
// A descriptor is looked up at the end of the call that made it: a thread that replaces it (dup2) in between
// hides the true file. The paths of renames and other changes of names are read from the caller's memory at
// that time, and another thread can have changed them by then ([PathUser]); where the kernel lets programs attach to
// its functions they are those that it acted on ([Kernel.Hooks]). TCP Fast Open by sendto is no system call of the kind
// watched here. The sensor's own opens and connects are left out.
package bpf
