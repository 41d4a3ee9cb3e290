package proctree

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxArgs bounds the arguments kept of one process, bytes.
const maxArgs = 8192

// Seed adds the processes that run now, read from proc (usually "/proc"), and
// returns how many. Attach to the kernel's events first: what forks meanwhile
// then comes as an event. A process already known is left as it is. container
// returns the id of the container that a process is in, empty for the host, and
// hostMnt is the host's mount namespace: of a container's processes with a
// parent elsewhere the oldest is its start, and the others are exec roots.
func (t *Tree) Seed(proc string, hostMnt uint32, container func(pid uint32) string) (int, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return 0, fmt.Errorf("processes: %w", err)
	}
	type found struct {
		p    Proc
		ppid uint32
	}
	byPID := map[uint32]*found{}
	for _, e := range entries {
		pid, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil {
			continue
		}
		if p, ppid, err := Read(proc, uint32(pid)); err == nil {
			if p.MntNS != hostMnt {
				p.Container = container(p.PID)
			}
			byPID[p.PID] = &found{p, ppid}
		}
	}
	first := map[string]*found{}
	roots := []*found{}
	for _, f := range byPID {
		c := f.p.Container
		if parent := byPID[f.ppid]; c == "" || parent != nil && parent.p.Container == c {
			continue
		}
		roots = append(roots, f)
		if o := first[c]; o == nil || f.p.Start < o.p.Start || f.p.Start == o.p.Start && f.p.PID < o.p.PID {
			first[c] = f
		}
	}
	for _, f := range roots {
		if first[f.p.Container] != f {
			f.p.ContainerExec = f.p.PID
		}
	}
	// Parents first, so that each finds its own in the tree.
	n := 0
	var put func(pid uint32, depth int)
	put = func(pid uint32, depth int) {
		f, ok := byPID[pid]
		if !ok || depth > len(entries) {
			return
		}
		delete(byPID, pid)
		put(f.ppid, depth+1)
		if t.Get(f.p.PID, f.p.Start) == nil {
			if o := first[f.p.Container]; o != nil {
				f.p.ContainerStart = o.p.Start
			}
			t.seed(f.p, f.ppid, first[f.p.Container] == f)
			n++
		}
	}
	for len(byPID) > 0 {
		for pid := range byPID {
			put(pid, 0)
			break
		}
	}
	return n, nil
}

// seed is Add, for a process of which is known whether it is its container's
// start.
func (t *Tree) seed(p Proc, ppid uint32, isStart bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.version.Add(1)
	parent := t.byPID[ppid]
	if parent != nil && p.Container != "" && parent.proc.Container == p.Container {
		p.ContainerExec = parent.proc.ContainerExec
	}
	if isStart && p.Container != "" {
		t.starts[p.Container] = entered{p.PID, p.Start}
	}
	t.add(p, parent)
}

// Read reads one process from proc, and its parent's pid.
func Read(proc string, pid uint32) (p Proc, ppid uint32, err error) {
	dir := filepath.Join(proc, strconv.Itoa(int(pid)))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return p, 0, err
	}
	p, ppid, err = parseStat(stat)
	if err != nil {
		return p, 0, fmt.Errorf("%s/stat: %w", dir, err)
	}
	// What follows is missing for kernel threads and for what exits now:
	// the process is then known by its name alone.
	p.Exe, _ = os.Readlink(filepath.Join(dir, "exe"))
	p.Exe = strings.TrimSuffix(p.Exe, " (deleted)")
	p.Cwd, _ = os.Readlink(filepath.Join(dir, "cwd"))
	if cmd, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil {
		p.Command, p.Args = SplitArgs(cmd[:min(len(cmd), maxArgs)])
	}
	if status, err := os.ReadFile(filepath.Join(dir, "status")); err == nil {
		p.CapEffective = statusHex(status, "CapEff:")
		p.CapPermitted = statusHex(status, "CapPrm:")
		if uids := strings.Fields(statusLine(status, "Uid:")); len(uids) == 4 {
			user, err := strconv.ParseUint(uids[1], 10, 32)
			p.UserID, p.HasCredentials = uint32(user), err == nil
		}
		if ids := strings.Fields(statusLine(status, "NStgid:")); len(ids) > 0 {
			id, _ := strconv.ParseUint(ids[len(ids)-1], 10, 32)
			p.VPID = uint32(id)
		}
	}
	p.PIDNS, p.MntNS = Namespace(dir, "pid"), Namespace(dir, "mnt")
	return p, ppid, nil
}

// Namespace returns the inode of a process's namespace of a kind ("mnt"), dir
// being its folder in /proc; 0 when that may not be read.
func Namespace(dir, kind string) uint32 {
	link, err := os.Readlink(filepath.Join(dir, "ns", kind))
	if err != nil {
		return 0
	}
	id, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(link, kind+":["), "]"), 10, 32)
	return uint32(id)
}

// SplitArgs splits arguments that each end in a NUL byte into the first and
// the rest joined by one space.
func SplitArgs(args []byte) (command, rest string) {
	args = bytes.TrimSuffix(args, []byte{0})
	first, others, _ := bytes.Cut(args, []byte{0})
	return string(first), string(bytes.ReplaceAll(others, []byte{0}, []byte{' '}))
}

func statusLine(status []byte, key string) string {
	_, after, _ := bytes.Cut(status, []byte("\n"+key))
	line, _, _ := bytes.Cut(after, []byte{'\n'})
	return string(bytes.TrimSpace(line))
}

func statusHex(status []byte, key string) uint64 {
	n, _ := strconv.ParseUint(statusLine(status, key), 16, 64)
	return n
}

// parseStat reads /proc/<pid>/stat (proc_pid_stat(5)). The name is in
// parentheses and may hold any character.
func parseStat(b []byte) (p Proc, ppid uint32, err error) {
	bad := errors.New("unexpected form")
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return p, 0, bad
	}
	pid, err := strconv.ParseUint(string(bytes.TrimSpace(b[:open])), 10, 32)
	if err != nil {
		return p, 0, bad
	}
	f := strings.Fields(string(b[end+1:])) // f[0] is field 3, state
	if len(f) < 20 {
		return p, 0, bad
	}
	num := func(field int) uint64 {
		n, e := strconv.ParseInt(f[field-3], 10, 64)
		if e != nil {
			err = bad
		}
		return uint64(n)
	}
	ppid = uint32(num(4))
	p = Proc{PID: uint32(pid), Name: string(b[open+1 : end]), GroupID: uint32(num(5)), SessionID: uint32(num(6)), TTY: uint32(num(7)),
		Start: num(22) * (1e9 / ticksPerSecond)}
	return p, ppid, err
}

// ticksPerSecond is USER_HZ, which Linux fixes at 100 on every architecture
// that Picket supports.
const ticksPerSecond = 100

// Boottime returns CLOCK_BOOTTIME, ns.
func Boottime() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock_gettime(CLOCK_BOOTTIME): " + err.Error()) // cannot fail since Linux 2.6.39
	}
	return uint64(ts.Nano())
}
