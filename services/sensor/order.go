package sensor

import (
	"time"

	"picket/bpf"
)

// The rings are separate. What is here puts their events back in order: a
// process's first file is not told of the program it ran before, nor a
// connection without the name that was asked for.

// maxOrderWait bounds how long an event waits for those of another class before
// it.
const maxOrderWait = 20 * time.Millisecond

// awaited is how far a class must have been taken in before the events that a
// lane's ring held at one moment.
type awaited struct {
	until   uint64   // of the lane's ring: where it ended then
	target  []uint64 // by CPU: what the kernel had submitted, a moment later
	reached bool     // all of it has been taken in
}

// await returns when every event of a class that was submitted before the lane's
// event has been taken in. What was submitted is looked up once for all that the
// ring holds: an event that was in it by then can only come after events that
// were submitted by then, too.
func (l *lane) await(class bpf.Class) {
	s, a := l.s, &l.awaits[class]
	if at := l.r.Position(); at > a.until {
		a.until = l.r.Written() // first: what is added from here on is another moment's
		a.target = a.target[:0]
		for cpu := range s.kernel.CPUs() {
			a.target = append(a.target, s.kernel.Submitted(uint32(cpu), class))
		}
		a.reached = false
	}
	if a.reached {
		return
	}
	var start time.Time
	p, before := &s.handled[class], l.ev.Header.Time
	reached := true
	for cpu, target := range a.target {
		for p.last[cpu].Load() < target {
			if p.time.Load() >= before {
				reached = false // but what is left comes later than this event
				break
			}
			if start.IsZero() {
				start = time.Now()
			} else if time.Since(start) > maxOrderWait {
				s.metrics.unordered.Inc()
				return
			}
			time.Sleep(20 * time.Microsecond)
		}
	}
	a.reached = reached
}
