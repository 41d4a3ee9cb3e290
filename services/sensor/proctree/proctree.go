// Package proctree keeps what is known of a node's processes: what each runs,
// for whom, and who started it. It is seeded from /proc and then follows the
// kernel's fork, exec and exit events. A process is its pid and its start
// time, so that a reused pid is never mistaken for the process before it.
package proctree

import (
	"math"
	"sync"
	"sync/atomic"

	"picket/schemas"
)

// Proc is a process. Its values are replaced as a whole: a *Proc that the tree
// returned never changes, so it may be read without a lock.
type Proc struct {
	PID       uint32
	Start     uint64 // CLOCK_BOOTTIME ns; 0 when only known by pid
	Name      string // comm
	Exe       string
	Command   string // argv[0]
	Args      string // the rest, joined by one space
	Cwd       string
	TTY       uint32
	SessionID uint32 // pid of the session leader
	GroupID   uint32 // pid of the process group leader

	VPID  uint32 // in its own pid namespace,
	PIDNS uint32 // which is this one; 0: not known
	MntNS uint32 // mount namespace when it was forked or last ran a program; 0: not known

	// Container is the id of the container that it, or the process that forked
	// it, has run a program in; empty on the host.
	Container string
	// ContainerExec is the pid of the exec root that it descends from, itself
	// included; 0: of the container's start, as far as is known.
	ContainerExec uint32
	// ContainerStart is when that start was forked, CLOCK_BOOTTIME ns; 0: not known.
	ContainerStart uint64

	// What it may do, as last known; HasCredentials is false when it never was.
	HasCredentials             bool
	UserID                     uint32 // effective
	CapEffective, CapPermitted uint64

	// since is when it began to run this program, CLOCK_BOOTTIME ns; 0: at
	// its start. before is what it was until then.
	since  uint64
	before *Proc
	// parent is the node of the process that forked this one.
	parent *node
}

// node is a process's place in the tree; its Proc is replaced at exec.
type node struct {
	proc   *Proc
	exited bool
}

// Parent returns the process that forked p as it is now, or nil.
func (t *Tree) Parent(p *Proc) *Proc {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if p.parent == nil {
		return nil
	}
	return p.parent.proc
}

// Ancestors appends p's ancestors to buf, parent first, at most
// schemas.MaxAncestors, and returns it.
func (t *Tree) Ancestors(p *Proc, buf []*Proc) []*Proc {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for n := p.parent; n != nil && len(buf) < schemas.MaxAncestors; n = n.proc.parent {
		buf = append(buf, n.proc)
	}
	return buf
}

// Bounds. A node has at most kernel.pid_max processes; what has exited is kept
// a while because events of other rings may come after it, unless so many exit
// in that time that memory would follow the rate of forks.
const (
	maxProcs      = 1 << 17
	keepExited    = 30 * 1e9 // ns of the kernel's clock
	maxExited     = 1 << 14
	maxExitedText = 4 << 20 // bytes of their names, paths and arguments
	maxChain      = 64      // ancestors kept alive by a process
)

// Tree is the process table. It is safe for concurrent use.
type Tree struct {
	mu     sync.RWMutex
	byPID  map[uint32]*node
	exits  []exit             // oldest first
	starts map[string]entered // by container id: at most one of each process
	text   int                // bytes in exits
	missed uint64
	// version counts what may change an answer. It is raised under the lock, before the change.
	version atomic.Uint64
	// pushed out before their time
	evictedExited, evictedLiving uint64
}

type exit struct {
	pid  uint32
	text uint32
	n    *node
	when uint64
}

// New returns an empty tree.
func New() *Tree { return &Tree{byPID: map[uint32]*node{}, starts: map[string]entered{}} }

// Get returns the process with that pid and start time as it is now, or nil. A
// start time of 0 on either side matches any.
func (t *Tree) Get(pid uint32, start uint64) *Proc { return t.At(pid, start, math.MaxUint64) }

// At is Get at a time, CLOCK_BOOTTIME ns: an event that is handled after its
// process went on to run another program gets the program it ran then. One
// step back is kept.
func (t *Tree) At(pid uint32, start, when uint64) *Proc {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := t.byPID[pid]
	if n == nil || !same(n.proc.Start, start) {
		return nil
	}
	if n.proc.before != nil && when < n.proc.since {
		return n.proc.before
	}
	return n.proc
}

// sameTick is the resolution of the start times that /proc gives, ns: a
// process seeded from there is the one whose start time lies in its tick.
const sameTick = 10_000_000

func same(a, b uint64) bool {
	if a == b || a == 0 || b == 0 {
		return true
	}
	// /proc counts in ticks, rounded down; the kernel's events do not.
	return a%sameTick == 0 && b-b%sameTick == a || b%sameTick == 0 && a-a%sameTick == b
}

// Version returns a number that is another once the tree has changed: while it
// stays, so does what the tree answers to the same question.
func (t *Tree) Version() uint64 { return t.version.Load() }

// Len returns the number of processes known, exited ones included.
func (t *Tree) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byPID)
}

// Missed returns how many processes acted that the tree did not know: forked
// while nobody watched.
func (t *Tree) Missed() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.missed
}

// Evicted returns how many processes were forgotten because there was no room
// for more: exited ones before their time, and such as were not known to have
// exited. What such a process does later is told from /proc.
func (t *Tree) Evicted() (exited, living uint64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.evictedExited, t.evictedLiving
}

// Add puts a process into the tree, as a child of the process ppid as it is
// now. It replaces what the pid stood for before.
func (t *Tree) Add(p Proc, ppid uint32) *Proc {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.version.Add(1)
	return t.add(p, t.byPID[ppid])
}

func (t *Tree) add(p Proc, parent *node) *Proc {
	if parent != nil && parent.proc.PID == p.PID {
		parent = nil
	}
	p.parent = parent
	depth := 0
	for n := parent; n != nil; n = n.proc.parent {
		if depth++; depth == maxChain && n.proc.parent != nil {
			cut := *n.proc
			cut.parent = nil
			n.proc = &cut
		}
	}
	old := t.byPID[p.PID]
	if old != nil && !same(old.proc.Start, p.Start) {
		t.leave(old.proc) // its exit was not seen
	}
	if old == nil && len(t.byPID) >= maxProcs {
		// None of them has exited, as far as is known (expire): any one goes, so
		// that those whose exit was lost go in the end.
		for pid, n := range t.byPID {
			t.leave(n.proc)
			delete(t.byPID, pid)
			t.evictedLiving++
			break
		}
	}
	t.byPID[p.PID] = &node{proc: &p}
	return &p
}

// Fork records that forker (pid and start) forked child, as a child of parent:
// itself, or with CLONE_PARENT its own parent. The child begins with what the
// forker had, and is vpid in its own pid namespace.
func (t *Tree) Fork(forker, parent, child Ref, now uint64, comm string, vpid, pidNS, mntNS uint32) *Proc {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.version.Add(1)
	t.expire(now)
	n, from := t.find(parent), t.find(forker)
	if from == nil {
		from = n
	}
	p := Proc{Name: comm}
	if from != nil {
		p = *from.proc
		p.since, p.before = 0, nil
	}
	p.PID, p.Start, p.VPID, p.PIDNS, p.MntNS = child.PID, child.Start, vpid, pidNS, mntNS
	return t.add(p, n)
}

// Ref names a process: its pid and when it was forked, CLOCK_BOOTTIME ns.
type Ref struct {
	PID   uint32
	Start uint64
}

func (t *Tree) find(r Ref) *node {
	n := t.byPID[r.PID]
	if n == nil || !same(n.proc.Start, r.Start) {
		return nil
	}
	return n
}

// Exec records that a process runs another program from time now on, in that
// container: empty on the host, and while the process still sees the host's
// mounts. fill sets what changed on a copy of what was known.
func (t *Tree) Exec(pid uint32, start uint64, ppid uint32, now uint64, container string, fill func(*Proc)) *Proc {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.version.Add(1)
	n := t.find(Ref{pid, start})
	if n == nil {
		t.missed++
		p := Proc{PID: pid, Start: start}
		fill(&p)
		q := t.add(p, t.byPID[ppid])
		if n = t.byPID[pid]; n != nil && n.proc == q {
			t.enter(n, q, container)
		}
		return q
	}
	p := *n.proc
	old := *n.proc
	old.before = nil
	p.Start, p.since, p.before = start, now, &old
	fill(&p)
	n.proc = &p
	t.enter(n, &p, container)
	return &p
}

// SetCredentials records what a process that the tree returned may do from then
// on, and returns it so. Where the process runs another program by now, it is
// that one's affair what it may do.
func (t *Tree) SetCredentials(p *Proc, user uint32, effective, permitted uint64) *Proc {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.version.Add(1)
	q := *p
	q.HasCredentials, q.UserID, q.CapEffective, q.CapPermitted = true, user, effective, permitted
	switch n := t.byPID[p.PID]; {
	case n == nil:
	case n.proc == p:
		n.proc = &q
	case n.proc.before == p:
		now := *n.proc
		now.before = &q
		n.proc = &now
	}
	return &q
}

// ByVPID returns the process that has an id in a pid namespace of its own, or
// nil. It looks through the whole tree.
func (t *Tree) ByVPID(ns, vpid uint32) *Proc {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, n := range t.byPID {
		if n.proc.VPID == vpid && n.proc.PIDNS == ns && !n.exited {
			return n.proc
		}
	}
	return nil
}

// Miss records a process that acts without being known, with what the event
// tells of it.
func (t *Tree) Miss(p Proc, ppid uint32) *Proc {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.miss(p, ppid)
}

// Gone is Miss of a process that has ended by now: its exit will not come. It
// stays known for a while; not at all if its pid stands for another one already.
func (t *Tree) Gone(p Proc, ppid uint32, now uint64) *Proc {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byPID[p.PID]; n != nil && !n.exited {
		t.missed++
		if ppid != p.PID {
			p.parent = t.byPID[ppid]
		}
		return &p
	}
	q := t.miss(p, ppid)
	t.exit(p.PID, p.Start, now)
	return q
}

func (t *Tree) miss(p Proc, ppid uint32) *Proc {
	t.version.Add(1)
	t.missed++
	parent := t.byPID[ppid]
	if parent != nil {
		p.Container, p.ContainerExec, p.ContainerStart = parent.proc.Container, parent.proc.ContainerExec, parent.proc.ContainerStart
	}
	return t.add(p, parent)
}

// Exit marks a process as gone at time now. It stays known for a while.
func (t *Tree) Exit(pid uint32, start, now uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.exit(pid, start, now)
}

func (t *Tree) exit(pid uint32, start, now uint64) {
	t.version.Add(1)
	t.expire(now)
	if n := t.find(Ref{pid, start}); n != nil && !n.exited {
		n.exited = true
		t.leave(n.proc)
		text := n.proc.text()
		if n.proc.before != nil {
			text += n.proc.before.text()
		}
		t.text += text
		t.exits = append(t.exits, exit{pid, uint32(text), n, now})
	}
}

// text returns the bytes of what is kept as text.
func (p *Proc) text() int {
	return len(p.Name) + len(p.Exe) + len(p.Command) + len(p.Args) + len(p.Cwd)
}

// expire forgets what exited long ago, and the oldest of what is too much.
func (t *Tree) expire(now uint64) {
	i := 0
	for ; i < len(t.exits); i++ {
		x := t.exits[i]
		old := x.when+keepExited < now
		if !old && len(t.exits)-i < maxExited && t.text < maxExitedText && len(t.byPID) < maxProcs {
			break
		}
		if t.byPID[x.pid] == x.n {
			delete(t.byPID, x.pid)
			if !old {
				t.evictedExited++
			}
		}
		t.text -= int(x.text)
		t.exits[i] = exit{} // its place goes later
	}
	t.exits = t.exits[i:]
	if i > 0 && len(t.exits) == 0 {
		t.exits = nil
	}
}
