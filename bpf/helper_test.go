package bpf

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The live tests make events with processes of their own: this test binary again, doing what its second
// argument says, or a tiny program assembled here.
const helperFlag = "picket-bpf-helper"

var helpers = map[string]func(args []string) error{}

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == helperFlag {
		// A namespace or a credential is a thread's: without this a helper can go on in another one, and what it does
		// to its own mounts it does to the machine's.
		runtime.LockOSThread()
		if err := helpers[os.Args[2]](os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(99)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper is this binary doing something, not yet started.
func helper(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, append([]string{helperFlag}, args...)...)
	cmd.Stderr = os.Stderr
	return cmd
}

func run(t *testing.T, cmd *exec.Cmd) uint32 {
	t.Helper()
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	return uint32(cmd.Process.Pid)
}

// needRoot skips the test, loudly, where the kernel part cannot be tried at all. Everything else that is
// missing fails it.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("SKIPPED (needs root): %s runs programs in the live kernel", t.Name())
	}
}

var instances struct {
	sync.Mutex
	n int
}

// optionsOf are those of an instance that sees all there is to see.
func optionsOf(instance string) Options { return Options{Instance: instance, Cgroup2: cgroup2()} }

// options are those of an instance of this test alone.
func options(t *testing.T) Options {
	t.Helper()
	needRoot(t)
	instances.Lock()
	defer instances.Unlock()
	instances.n++
	return optionsOf(fmt.Sprintf("test-%d-%d", os.Getpid(), instances.n))
}

// mustLoad loads an instance and removes it at the end of the test.
func mustLoad(t *testing.T, o Options) *Kernel {
	t.Helper()
	k, err := Load(o)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	t.Cleanup(func() {
		if err := k.Close(false); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return k
}

// collector reads all of a kernel's events and keeps them.
type collector struct {
	k  *Kernel
	wg sync.WaitGroup

	mu     sync.Mutex
	events []*Event
	bad    []error
}

// sensor loads an instance of its own and collects its events.
func sensor(t *testing.T) *collector {
	t.Helper()
	return collect(t, mustLoad(t, options(t)))
}

func collect(t *testing.T, k *Kernel) *collector {
	t.Helper()
	c := &collector{k: k}
	for _, r := range k.Readers() {
		c.wg.Go(func() {
			for {
				ev := new(Event)
				err := r.Read(ev)
				if errors.Is(err, os.ErrClosed) {
					return
				}
				if err == nil {
					keep(ev)
				}
				c.mu.Lock()
				if err != nil {
					c.bad = append(c.bad, err)
				} else {
					c.events = append(c.events, ev)
				}
				c.mu.Unlock()
			}
		})
	}
	t.Cleanup(func() {
		if err := k.Close(false); err != nil {
			t.Errorf("Close: %v", err)
		}
		c.wg.Wait()
		for _, err := range c.bad {
			t.Errorf("reading: %v", err)
		}
	})
	return c
}

// keep copies what an event has of the ring's memory.
func keep(ev *Event) {
	for _, b := range []*[]byte{&ev.Exec.Filename, &ev.Exec.Exe, &ev.Exec.Cwd, &ev.Exec.Args, &ev.Exec.Env, &ev.Open.Path, &ev.Open.Link, &ev.Open.Source,
		&ev.Path.Base, &ev.Path.Path, &ev.Path.TargetBase, &ev.Path.Target, &ev.Conn.Path, &ev.Call.Base, &ev.Call.Path, &ev.Call.TargetBase, &ev.Call.Target,
		&ev.Cgroup.Path, &ev.DNS.Data} {
		*b = bytes.Clone(*b)
	}
}

// available is how many bytes are in a ring and not given back.
func available(r *Reader) uint64 { return r.Written() - r.Released() }

// finish reads all that is left of a detached kernel part, and ends the readers.
func (c *collector) finish(t *testing.T) {
	t.Helper()
	for _, r := range c.k.Readers() {
		for available(r) > 0 {
			time.Sleep(time.Millisecond)
		}
	}
	// The last event was taken from the ring, and is decoded before its reader ends.
	if err := c.k.Close(false); err != nil {
		t.Fatal(err)
	}
	c.wg.Wait()
}

// all returns the events collected so far that match.
func (c *collector) all(match func(*Event) bool) []*Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*Event
	for _, ev := range c.events {
		if match(ev) {
			out = append(out, ev)
		}
	}
	return out
}

// wait returns the first event that matches.
func (c *collector) wait(t *testing.T, what string, match func(*Event) bool) *Event {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if evs := c.all(match); len(evs) > 0 {
			return evs[0]
		}
		if time.Now().After(end) {
			t.Fatalf("no event within 10 s: %s", what)
		}
	}
}

// settle waits until everything that happened before is collected: an event of each class made now is.
// What this process does itself is no event in classes file and network, so a helper does it.
func (c *collector) settle(t *testing.T) {
	t.Helper()
	mark := filepath.Join(t.TempDir(), "settle")
	pid := run(t, helper(t, "settle", mark))
	is := func(a Action) func(*Event) bool {
		return func(ev *Event) bool { return ev.Header.TGID == pid && ev.Header.Action == a }
	}
	c.wait(t, "exit of the helper", is(ActionExit))
	c.wait(t, "open by the helper", func(ev *Event) bool { return is(ActionOpen)(ev) && string(ev.Open.Path) == mark })
	c.wait(t, "connect by the helper", is(ActionConnect))
	c.wait(t, "prctl by the helper", func(ev *Event) bool { return is(ActionCall)(ev) && ev.Syscall() == "prctl" })
}

func init() {
	helpers["settle"] = func(args []string) error {
		if err := os.WriteFile(args[0], nil, 0o600); err != nil {
			return err
		}
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
			return err
		}
		conn, err := net.Dial("udp", "127.0.0.1:9")
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

func by(pid uint32, a Action) func(*Event) bool {
	return func(ev *Event) bool { return ev.Header.TGID == pid && ev.Header.Action == a }
}

// tinyELF is a static program of machine code that needs no loader and no library, in 64 or 32 bits.
func tinyELF(bits int, code []byte) []byte {
	var b bytes.Buffer
	put := func(vs ...any) {
		for _, v := range vs {
			if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
				panic(err)
			}
		}
	}
	const base = 0x400000
	b.WriteString("\x7fELF")
	if bits == 64 {
		b.Write([]byte{2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
		machine := map[string]uint16{"amd64": 62, "arm64": 183}[runtime.GOARCH]
		put(uint16(2), machine, uint32(1), uint64(base+64+56), uint64(64), uint64(0), uint32(0),
			uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0))
		n := uint64(64 + 56 + len(code))
		put(uint32(1), uint32(7), uint64(0), uint64(base), uint64(base), n, n, uint64(4096))
	} else {
		b.Write([]byte{1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
		put(uint16(2), uint16(3), uint32(1), uint32(base+52+32), uint32(52), uint32(0), uint32(0),
			uint16(52), uint16(32), uint16(1), uint16(0), uint16(0), uint16(0))
		n := uint32(52 + 32 + len(code))
		put(uint32(1), uint32(0), uint32(base), uint32(base), n, n, uint32(7), uint32(4096))
	}
	b.Write(code)
	return b.Bytes()
}

// exitZero is the program true, in machine code.
func exitZero() []byte {
	if runtime.GOARCH == "arm64" {
		// mov x0, #0; mov x8, #94 (exit_group); svc #0
		return tinyELF(64, []byte{0x00, 0x00, 0x80, 0xd2, 0xc8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4})
	}
	// xor edi, edi; mov eax, 231 (exit_group); syscall
	return tinyELF(64, []byte{0x31, 0xff, 0xb8, 0xe7, 0, 0, 0, 0x0f, 0x05})
}

func writeProgram(t *testing.T, path string, program []byte) {
	t.Helper()
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
}

// self is what /proc says of a process, to be compared with events.
type self struct {
	PID, NSPID, PPID, PGID, SID, TTY int
	Start                            uint64 // clock ticks (1/100 s) since boot
	NS                               map[string]uint32
	UID, GID                         [4]uint32 // real, effective, saved, file system
	CapInh, CapPrm, CapEff           uint64
	LoginUID, SessionID              uint32
	Exe, Cwd, Comm                   string
	Cgroup                           string // in cgroup v2
}

// whoami reads it of the calling process.
func whoami() (self, error) {
	s := self{NS: map[string]uint32{}}
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return s, err
	}
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	s.Comm = string(stat[open+1 : end])
	f := strings.Fields(string(stat[end+2:])) // from field 3 on
	for i, dst := range map[int]*int{4: &s.PPID, 5: &s.PGID, 6: &s.SID, 7: &s.TTY} {
		if *dst, err = strconv.Atoi(f[i-3]); err != nil {
			return s, err
		}
	}
	if s.Start, err = strconv.ParseUint(f[22-3], 10, 64); err != nil {
		return s, err
	}
	for _, ns := range []string{"pid", "mnt", "net", "user", "uts", "ipc", "cgroup"} {
		link, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			return s, err
		}
		var inum uint32
		if _, err := fmt.Sscanf(link, ns+":[%d]", &inum); err != nil {
			return s, fmt.Errorf("%s: %w", link, err)
		}
		s.NS[ns] = inum
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch key {
		case "NStgid":
			ids := strings.Fields(value)
			s.PID, _ = strconv.Atoi(ids[0])
			s.NSPID, _ = strconv.Atoi(ids[len(ids)-1])
		case "Uid":
			_, err = fmt.Sscan(value, &s.UID[0], &s.UID[1], &s.UID[2], &s.UID[3])
		case "Gid":
			_, err = fmt.Sscan(value, &s.GID[0], &s.GID[1], &s.GID[2], &s.GID[3])
		case "CapInh":
			s.CapInh, err = strconv.ParseUint(value, 16, 64)
		case "CapPrm":
			s.CapPrm, err = strconv.ParseUint(value, 16, 64)
		case "CapEff":
			s.CapEff, err = strconv.ParseUint(value, 16, 64)
		}
		if err != nil {
			return s, fmt.Errorf("%s: %w", line, err)
		}
	}
	for name, dst := range map[string]*uint32{"loginuid": &s.LoginUID, "sessionid": &s.SessionID} {
		b, err := os.ReadFile("/proc/self/" + name)
		if err != nil {
			return s, err
		}
		if _, err := fmt.Sscan(string(b), dst); err != nil {
			return s, err
		}
	}
	if s.Exe, err = os.Readlink("/proc/self/exe"); err != nil {
		return s, err
	}
	if s.Cwd, err = os.Readlink("/proc/self/cwd"); err != nil {
		return s, err
	}
	cgroups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(cgroups)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			s.Cgroup = path
		}
	}
	return s, nil
}

func init() {
	helpers["whoami"] = func([]string) error {
		s, err := whoami()
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(s)
	}
}

// output runs a command and decodes what it prints.
func output(t *testing.T, cmd *exec.Cmd, v any) uint32 {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout = &out
	pid := run(t, cmd)
	if err := json.Unmarshal(out.Bytes(), v); err != nil {
		t.Fatalf("%s printed %q: %v", cmd, out.String(), err)
	}
	return pid
}

// cgroupRoot is where cgroup v2 is mounted.
func cgroupRoot(t *testing.T) string {
	t.Helper()
	root := cgroup2()
	if root == "" {
		t.Fatal("cgroup v2 is mounted nowhere")
	}
	return root
}

// cgroup2 is where cgroup v2 is mounted; empty: nowhere.
func cgroup2() string {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	return ""
}

func inode(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return &st
}

// checkCounters asserts what must hold at any time when nothing is under way, and returns sums by class.
func checkCounters(t *testing.T, k *Kernel) [NumClasses]ClassCounters {
	t.Helper()
	var sum [NumClasses]ClassCounters
	// An event under way on another CPU is between two counters for less than a microsecond.
	var unbalanced []ClassCounters
	for range 100 {
		unbalanced = nil
		counters, err := k.Counters()
		if err != nil {
			t.Fatal(err)
		}
		sum = [NumClasses]ClassCounters{}
		for _, c := range counters {
			if c.Seen != c.Submitted+c.RingFull+c.Limited {
				unbalanced = append(unbalanced, c)
			}
			s := &sum[c.Class]
			s.Seen += c.Seen
			s.Submitted += c.Submitted
			s.RingFull += c.RingFull
			s.Limited += c.Limited
			s.Filtered += c.Filtered
			s.Threads += c.Threads
			for i := range c.Errors {
				s.Errors[i] += c.Errors[i]
			}
		}
		if unbalanced == nil {
			break
		}
	}
	for _, c := range unbalanced {
		t.Errorf("seen is not submitted + ring full: %+v", c)
	}
	return sum
}

// bootTime is the clock of the events.
func bootTime() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err)
	}
	return uint64(ts.Nano())
}

// rawSigaction gives a signal its default action back, which Go's runtime took.
func rawSigaction(signal int) error {
	var action [4]uint64
	_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, uintptr(signal), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
