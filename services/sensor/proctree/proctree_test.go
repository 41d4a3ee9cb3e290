package proctree

import (
	"os"
	"path/filepath"
	"testing"
)

func names(t *Tree, p *Proc) string {
	s := ""
	for _, a := range t.Ancestors(p, nil) {
		s += a.Name + " "
	}
	return s
}

// fork is Fork by the parent itself.
func fork(t *Tree, parent, child uint32, parentStart, childStart, now uint64, comm string, vpid, pidNS uint32) *Proc {
	by := Ref{parent, parentStart}
	return t.Fork(by, by, Ref{child, childStart}, now, comm, vpid, pidNS, 0)
}

func TestForkExecExit(t *testing.T) {
	tr := New()
	tr.Add(Proc{PID: 1, Start: 1, Name: "init"}, 0)
	fork(tr, 1, 10, 1, 100, 100, "init", 0, 0)
	tr.Exec(10, 100, 1, 105, "", func(p *Proc) { p.Name, p.Exe = "bash", "/bin/bash" })
	child := fork(tr, 10, 11, 100, 110, 110, "bash", 0, 0)
	if child.Exe != "/bin/bash" {
		t.Errorf("a child begins with what its parent had, got exe %q", child.Exe)
	}
	curl := tr.Exec(11, 110, 10, 115, "", func(p *Proc) { p.Name = "curl" })
	if got := names(tr, curl); got != "bash init " {
		t.Errorf("ancestors %q", got)
	}
	tr.Exec(10, 100, 1, 120, "", func(p *Proc) { p.Name = "zsh" })
	if got := tr.Parent(curl).Name; got != "zsh" {
		t.Errorf("the parent is as it is now: got %q", got)
	}
	if got := tr.At(10, 100, 119).Name; got != "bash" {
		t.Errorf("an event from before the exec is told of %q", got)
	}
	if got := tr.At(10, 100, 120).Name; got != "zsh" {
		t.Errorf("an event from after the exec is told of %q", got)
	}
	tr.Exit(10, 100, 200)
	if got := names(tr, curl); got != "zsh init " {
		t.Errorf("an exited parent stays an ancestor: %q", got)
	}
	tr.Exit(11, 110, 210)
	if tr.Get(11, 110) == nil {
		t.Error("an exited process must stay known for late events")
	}
	fork(tr, 1, 12, 1, keepExited+300, keepExited+300, "init", 0, 0)
	if tr.Get(11, 110) != nil || tr.Len() != 2 {
		t.Errorf("exited processes are forgotten in the end: %d known", tr.Len())
	}
}

func TestPIDReuse(t *testing.T) {
	tr := New()
	tr.Add(Proc{PID: 1, Start: 1, Name: "init"}, 0)
	fork(tr, 1, 10, 1, 100, 100, "init", 0, 0)
	tr.Exec(10, 100, 1, 120, "", func(p *Proc) { p.Name = "old" })
	old := tr.Get(10, 100)
	tr.Exit(10, 100, 150)
	fork(tr, 1, 10, 1, 200, 200, "init", 0, 0)
	if tr.Get(10, 100) != nil {
		t.Error("the old process must not be found under the reused pid")
	}
	if p := tr.Get(10, 200); p == nil || p.Name != "init" {
		t.Errorf("the new process is %+v", p)
	}
	if old.Name != "old" {
		t.Error("a process once returned changed")
	}
	fork(tr, 1, 12, 1, keepExited+300, keepExited+300, "init", 0, 0)
	if tr.Get(10, 200) == nil {
		t.Error("forgetting the old process took the new one along")
	}
	// a fork by a process whose pid now belongs to another
	p := fork(tr, 10, 13, 999_999_999, 400, 400, "ghost", 0, 0)
	if p.Name != "ghost" || names(tr, p) != "" {
		t.Errorf("child of an unknown process: %+v, ancestors %q", p, names(tr, p))
	}
}

func TestSeededStartMatchesKernelStart(t *testing.T) {
	tr := New()
	tr.Add(Proc{PID: 7, Start: 120_000_000, Name: "seeded"}, 0) // ticks of 10 ms
	if tr.Get(7, 123_456_789) == nil {
		t.Error("start within the tick is the same process")
	}
	if tr.Get(7, 130_000_001) != nil {
		t.Error("start after the tick is another process")
	}
}

func TestChainIsBounded(t *testing.T) {
	tr := New()
	tr.Add(Proc{PID: 1, Start: 1}, 0)
	for i := uint32(2); i < 1000; i++ {
		fork(tr, i-1, i, uint64(i-1), uint64(i), uint64(i), "x", 0, 0)
		tr.Exit(i-1, uint64(i-1), uint64(i))
	}
	n := 0
	for x := tr.byPID[999].proc.parent; x != nil; x = x.proc.parent {
		n++
	}
	if n > maxChain {
		t.Errorf("%d ancestors are kept alive", n)
	}
}

func TestSeed(t *testing.T) {
	tr := New()
	n, err := tr.Seed("/proc", 0, func(uint32) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	me := tr.Get(uint32(os.Getpid()), 0)
	if me == nil {
		t.Fatalf("own process not among %d", n)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if me.Exe != exe || me.Command == "" || me.Start == 0 {
		t.Errorf("own process: %+v", me)
	}
	if p := tr.Parent(me); p == nil || int(p.PID) != os.Getppid() {
		t.Errorf("own parent: %+v", p)
	}
	if now := Boottime(); me.Start > now || now-me.Start > 3600e9 {
		t.Errorf("started at %d, now %d", me.Start, now)
	}
}

func TestParseStat(t *testing.T) {
	fields := " S 1 2 3 34816 5 4194560 0 0 0 0 0 0 0 0 20 0 1 0 1234 0 0"
	for _, name := range []string{"bash", "a b", "evil) R 9 9", "(sd-pam)", ""} {
		p, ppid, err := parseStat([]byte("42 (" + name + ")" + fields))
		if err != nil || p.Name != name || ppid != 1 || p.PID != 42 || p.TTY != 34816 || p.Start != 12_340_000_000 {
			t.Errorf("%q: %+v, parent %d, %v", name, p, ppid, err)
		}
	}
	for _, bad := range []string{"", "42", "42 (x", "x (y)" + fields, "42 (x) S 1"} {
		if _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q parsed", bad)
		}
	}
}

func TestReadGone(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := Read(dir, 5); err == nil {
		t.Error("a process that is gone must be an error")
	}
	if err := os.MkdirAll(filepath.Join(dir, "5"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "5", "stat"), []byte("5 (k) S 2 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 7 0 0"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, ppid, err := Read(dir, 5)
	if err != nil || p.Name != "k" || ppid != 2 || p.Exe != "" {
		t.Errorf("kernel thread: %+v %d %v", p, ppid, err)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("42 (x) S 1 2 3 34816 5 4194560 0 0 0 0 0 0 0 0 20 0 1 0 1234 0 0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := parseStat(b); err == nil && len(b) < 20 {
			t.Errorf("%q parsed", b)
		}
	})
}

func BenchmarkForkExecExit(b *testing.B) {
	tr := New()
	tr.Add(Proc{PID: 1, Start: 1}, 0)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		pid, now := uint32(2+i%30000), uint64(i)*1e6
		fork(tr, 1, pid, 1, now+1, now+1, "x", 0, 0)
		tr.Exec(pid, now+1, 1, now+1, "", func(p *Proc) { p.Name = "true" })
		tr.Exit(pid, now+1, now+2)
	}
}

// TestSetCredentials: what a process may do changes from a call on; the program
// that it runs later has its own.
func TestSetCredentials(t *testing.T) {
	tr := New()
	tr.Add(Proc{PID: 5, Start: 1, Name: "a", HasCredentials: true}, 0)
	p := tr.SetCredentials(tr.Get(5, 1), 33, 2, 3)
	if now := tr.Get(5, 1); now != p || p.UserID != 33 || p.CapEffective != 2 || p.CapPermitted != 3 || p.Name != "a" {
		t.Errorf("%+v, returned %+v", now, p)
	}
	tr.Exec(5, 1, 0, 100, "", func(p *Proc) { p.Name, p.UserID = "b", 0 })
	late := tr.At(5, 1, 50) // an event of before the exec, handled after it
	if late.Name != "a" || late.UserID != 33 {
		t.Errorf("before the exec: %+v", late)
	}
	if q := tr.SetCredentials(late, 7, 0, 0); q.UserID != 7 || q.Name != "a" || tr.At(5, 1, 60) != q {
		t.Errorf("a late change: %+v, %+v", q, tr.At(5, 1, 60))
	}
	if now := tr.Get(5, 1); now.Name != "b" || now.UserID != 0 {
		t.Errorf("the program it runs now: %+v", now)
	}
}

func TestByVPID(t *testing.T) {
	tr := New()
	fork(tr, 1, 50, 1, 10, 10, "x", 3, 4026532000)
	fork(tr, 1, 51, 1, 10, 10, "y", 3, 4026532001)
	if p := tr.ByVPID(4026532001, 3); p == nil || p.PID != 51 {
		t.Errorf("%+v", p)
	}
	if p := tr.ByVPID(4026532002, 3); p != nil {
		t.Errorf("%+v", p)
	}
	tr.Exit(51, 10, 20)
	if p := tr.ByVPID(4026532001, 3); p != nil {
		t.Errorf("it has exited: %+v", p)
	}
}

// TestExitedAreBounded: memory must not follow the rate of forks.
func TestExitedAreBounded(t *testing.T) {
	tr := New()
	tr.Add(Proc{PID: 1, Start: 1}, 0)
	run := func(from, n uint32, args string) {
		for pid := from; pid < from+n; pid++ { // all within the time that they would be kept
			fork(tr, 1, pid, 1, uint64(pid), uint64(pid), "x", 0, 0)
			tr.Exec(pid, uint64(pid), 1, uint64(pid), "", func(p *Proc) { p.Args = args })
			tr.Exit(pid, uint64(pid), uint64(pid))
		}
	}
	const surplus = 1000
	run(2, maxExited+surplus, "")
	if len(tr.exits) != maxExited || tr.Len() != maxExited+1 {
		t.Errorf("%d exited processes, %d in all", len(tr.exits), tr.Len())
	}
	if exited, living := tr.Evicted(); exited != surplus || living != 0 {
		t.Errorf("counted: %d exited, %d living", exited, living)
	}
	if tr.Get(2+surplus-1, surplus+1) != nil || tr.Get(2+surplus, surplus+2) == nil {
		t.Error("it is not the oldest that goes")
	}
	long := string(make([]byte, 8<<10))
	run(1<<20, maxExited, long)
	if n := len(tr.exits); n > maxExitedText/len(long) || n < maxExitedText/len(long)/2 || tr.text > maxExitedText+len(long)+1 {
		t.Errorf("%d processes with long arguments are kept, %d bytes", n, tr.text)
	}
	// A reused pid leaves its earlier process in line, not in the tree.
	run(5, 1, "")
	run(5, 1, "")
	fork(tr, 1, 9, 1, 40e9, 40e9, "x", 0, 0)
	if tr.text != 0 || tr.Len() != 2 {
		t.Errorf("when all are old: %d bytes, %d processes", tr.text, tr.Len())
	}
}

// TestFullTree: processes whose exit nobody saw must not keep new ones out.
func TestFullTree(t *testing.T) {
	tr := New()
	const surplus = 1000
	for pid := uint32(1); pid <= maxProcs+surplus; pid++ {
		fork(tr, 1, pid, 1, uint64(pid), uint64(pid), "x", 0, 0)
		if tr.Get(pid, uint64(pid)) == nil {
			t.Fatalf("process %d is not taken in", pid)
		}
	}
	if exited, living := tr.Evicted(); tr.Len() != maxProcs || living != surplus || exited != 0 {
		t.Errorf("%d processes; counted: %d exited, %d living", tr.Len(), exited, living)
	}
}

// TestGone: an event that comes long after its process has ended neither stays
// for good nor takes the place of the process that has its pid now.
func TestGone(t *testing.T) {
	tr := New()
	tr.Add(Proc{PID: 1, Start: 1, Name: "init"}, 0)
	p := tr.Gone(Proc{PID: 10, Start: 100, Name: "late"}, 1, 500)
	if got := names(tr, p); got != "init " || tr.Get(10, 100) != p {
		t.Errorf("ancestors %q, known %v", got, tr.Get(10, 100))
	}
	fork(tr, 1, 10, 1, 600, 600, "init", 0, 0)
	if p = tr.Gone(Proc{PID: 10, Start: 100, Name: "late"}, 1, 700); names(tr, p) != "init " || p.Name != "late" {
		t.Errorf("got %q with ancestors %q", p.Name, names(tr, p))
	}
	if got := tr.Get(10, 600); got == nil || got.Start != 600 {
		t.Errorf("the process that has the pid now is %+v", got)
	}
	tr.Gone(Proc{PID: 11, Start: 100, Name: "late"}, 1, 700)
	fork(tr, 1, 12, 1, keepExited+800, keepExited+800, "init", 0, 0)
	if tr.Get(11, 100) != nil || tr.Missed() != 3 {
		t.Errorf("still known: %v; %d missed", tr.Get(11, 100), tr.Missed())
	}
}
