package sensor

import (
	"time"

	"picket/bpf"
)

// The rings are separate. What is here puts their events back in order: a
// process's first file is not told of the program it ran before, nor a
// connection without the name that was asked for.

// maxOrderWait bounds how long the events of a moment wait for those of another
// class before them. It is for a lane that its spool holds up, not for a busy
// machine: there an event that did not wait would be told of the wrong program.
const maxOrderWait = time.Second

// awaited is how far a class must have been taken in before the events that a
// lane's ring held at one moment.
type awaited struct {
	until   uint64   // of the lane's ring: where it ended then
	target  []uint64 // by CPU: what the kernel had submitted, a moment later
	reached bool     // all of it has been taken in, or was waited for long enough
}

// await returns when every event of a class that was submitted before the lane's
// event has been taken in. Their times would not do in place of their numbers:
// a program that was interrupted in the kernel submits its event after later ones. What was submitted is looked up once for all that the
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
	a.reached = true // whatever comes of it: those of the same moment do not wait once more
	p, start := &s.handled[class], time.Time{}
	for cpu, target := range a.target {
		for pause := 20 * time.Microsecond; p.last[cpu].Load() < target; pause = min(2*pause, time.Millisecond) {
			if start.IsZero() {
				start = time.Now()
			} else if time.Since(start) > maxOrderWait {
				s.metrics.unordered.Inc()
				return
			}
			time.Sleep(pause)
		}
	}
}
