package proctree

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

const (
	hostMnt, nodeMnt, boxMnt = 1000, 2000, 3000
	box                      = "c0ffee"
)

// life replays what a runtime makes the kernel report.
type life struct {
	*testing.T
	*Tree
	now uint64
}

func newLife(t *testing.T) *life {
	l := &life{t, New(), 1000}
	l.Add(Proc{PID: 1, Start: 1, Name: "init", MntNS: hostMnt}, 0)
	l.forks(1, 10, hostMnt)
	l.execs(10, hostMnt, "") // containerd-shim
	return l
}

func (l *life) ref(pid uint32) Ref {
	if p := l.Get(pid, 0); p != nil {
		return Ref{pid, p.Start}
	}
	return Ref{pid, 0}
}

func (l *life) forks(parent, child, mnt uint32) { l.clones(parent, parent, child, mnt) }

func (l *life) clones(forker, parent, child, mnt uint32) {
	l.now++
	l.Fork(l.ref(forker), l.ref(parent), Ref{child, l.now}, l.now, "x", child, 1, mnt)
}

// execs is what the sensor tells: no container while the host's mounts are seen.
func (l *life) execs(pid, mnt uint32, container string) {
	l.now++
	if mnt == hostMnt {
		container = ""
	}
	l.Exec(pid, l.ref(pid).Start, 0, l.now, container, func(p *Proc) { p.MntNS = mnt })
}

func (l *life) exits(pid uint32) {
	l.now++
	l.Exit(pid, l.ref(pid).Start, l.now)
}

// runc is what runc run and runc exec do: the program is the process pid.
func (l *life) runc(shim, pid, outside uint32, container string) {
	runc, stage0, stage1 := pid-3, pid-2, pid-1
	l.forks(shim, runc, outside)
	l.execs(runc, outside, "")
	l.forks(runc, stage0, outside)
	l.execs(stage0, outside, container)     // runc init again, from its memory file, in the container's cgroup
	l.clones(stage0, runc, stage1, outside) // with CLONE_PARENT
	l.clones(stage1, runc, pid, boxMnt)
	l.exits(stage0)
	l.exits(stage1)
	l.execs(pid, boxMnt, container)
	l.exits(runc)
}

func (l *life) want(pid, root uint32) {
	l.Helper()
	p := l.Get(pid, 0)
	if p == nil || p.ContainerExec != root {
		l.Errorf("process %d: %+v, want exec root %d", pid, p, root)
		return
	}
	if first := l.starts[box]; p.Container == box && first.pid != 0 && p.ContainerStart != first.start {
		l.Errorf("process %d: container started at %d, want %d", pid, p.ContainerStart, first.start)
	}
}

func TestExecRoots(t *testing.T) {
	for _, outside := range []uint32{hostMnt, nodeMnt} { // nodeMnt: in a node that is a container (kind)
		t.Run(fmt.Sprint(outside), func(t *testing.T) {
			l := newLife(t)
			l.execs(10, outside, "node")
			l.runc(10, 100, outside, box)
			l.want(100, 0)
			l.forks(100, 101, boxMnt)
			l.execs(101, boxMnt, box)
			l.want(101, 0)

			l.runc(10, 200, outside, box) // kubectl exec
			l.want(200, 200)
			l.forks(200, 201, boxMnt)
			l.want(201, 200) // before it executes
			l.execs(201, boxMnt, box)
			l.want(201, 200)
			l.forks(201, 202, boxMnt)
			l.exits(201)
			l.execs(202, boxMnt, box)
			l.want(202, 200) // whose parent is gone
			l.clones(202, 10, 203, boxMnt)
			l.execs(203, boxMnt, box)
			l.want(203, 200) // CLONE_PARENT does not shake it off

			l.forks(101, 102, boxMnt)
			l.execs(102, boxMnt, box)
			l.want(102, 0)

			l.runc(10, 300, outside, box)
			l.want(300, 300)
			l.execs(300, boxMnt, box)
			l.want(300, 300) // another program of the same process

			// The container stops, and is started again under its id.
			for _, pid := range []uint32{300, 203, 202, 200, 102, 101, 100} {
				l.exits(pid)
			}
			if n := l.Starts(); n > 1 || outside == hostMnt && n != 0 {
				t.Errorf("%d containers are remembered", n)
			}
			l.runc(10, 400, outside, box)
			l.want(400, 0)
			l.runc(10, 500, outside, box)
			l.want(500, 500)
		})
	}
}

// TestContainerHook: what a runtime runs in the container before its program
// (a startContainer hook) does not make an exec root of that.
func TestContainerHook(t *testing.T) {
	l := newLife(t)
	l.forks(10, 50, boxMnt)
	l.execs(50, boxMnt, box)
	l.exits(50)
	l.runc(10, 100, hostMnt, box)
	l.want(100, 0)
}

func TestContainerOfLostForks(t *testing.T) {
	l := newLife(t)
	l.runc(10, 100, hostMnt, box)
	// Neither is known to come from outside.
	l.Exec(150, 5000, 999, 5001, box, func(p *Proc) { p.MntNS = boxMnt })
	l.want(150, 0)
	l.Exec(151, 5000, 100, 5001, box, func(p *Proc) { p.MntNS = boxMnt })
	l.want(151, 0)
	l.runc(10, 200, hostMnt, box)
	l.Exec(152, 5000, 200, 5001, box, func(p *Proc) { p.MntNS = boxMnt })
	l.want(152, 200)
	l.Miss(Proc{PID: 153, Start: 5000}, 200)
	l.want(153, 200)
	// The start's exit was lost, and its pid is another's by now.
	l.now = 10_000_000_000
	l.forks(1, 100, hostMnt)
	if l.Starts() != 0 {
		t.Error("a start whose pid is another process's by now is still remembered")
	}
	l.runc(10, 300, hostMnt, box)
	l.want(300, 0)
}

func TestSeedContainers(t *testing.T) {
	proc := t.TempDir()
	put := func(pid, ppid int, ticks uint64, mnt int) {
		fakeProc(t, proc, pid, ppid, ticks, mnt)
	}
	put(1, 0, 0, hostMnt)
	put(10, 1, 10, hostMnt)  // shim
	put(104, 10, 41, boxMnt) // exec root
	put(105, 104, 42, boxMnt)
	put(102, 10, 20, boxMnt) // start
	put(103, 102, 30, boxMnt)
	put(106, 10, 50, hostMnt) // runc init, on its way
	tr := New()
	n, err := tr.Seed(proc, hostMnt, func(pid uint32) string {
		if pid > 100 {
			return box
		}
		return ""
	})
	if err != nil || n != 7 {
		t.Fatalf("seeded %d: %v", n, err)
	}
	l := &life{t, tr, 1e9}
	l.want(102, 0)
	l.want(103, 0)
	l.want(104, 104)
	l.want(105, 104)
	l.want(106, 0)
	l.execs(106, boxMnt, box)
	l.want(106, 106)
	// What comes from the ring may be older than the seed.
	l.Fork(l.ref(10), l.ref(10), Ref{102, l.Get(102, 0).Start + 5}, l.now, "x", 1, 1, boxMnt)
	l.execs(102, boxMnt, box)
	l.want(102, 0)
	l.exits(102)
	if l.Starts() != 0 {
		t.Error("the container is still remembered")
	}
}

// fakeProc writes what Read reads of a process.
func fakeProc(t *testing.T, proc string, pid, ppid int, ticks uint64, mnt int) {
	t.Helper()
	dir := filepath.Join(proc, fmt.Sprint(pid))
	if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o755); err != nil {
		t.Fatal(err)
	}
	stat := fmt.Sprintf("%d (x) S %d 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 %d 0 0", pid, ppid, ticks)
	if err := os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(fmt.Sprintf("mnt:[%d]", mnt), filepath.Join(dir, "ns/mnt")); err != nil {
		t.Fatal(err)
	}
}
