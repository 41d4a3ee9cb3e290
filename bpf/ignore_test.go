package bpf

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	// act FILE ADDRESS…: writes a file, asks for a name, connects, kills its own child, and has a child do the first.
	helpers["act"] = func(args []string) error {
		if err := os.WriteFile(args[0], nil, 0o600); err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Sendto(fd, []byte("a question"), 0, &unix.SockaddrInet4{Port: 53, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		for _, address := range args[1:] {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				return err
			}
			conn.Close()
		}
		if err := os.Rename(args[0], args[0]+".renamed"); err != nil {
			return err
		}
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
			return err
		}
		if strings.HasSuffix(args[0], ".child") {
			return nil
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		out, err := exec.Command(self, helperFlag, "act", args[0]+".child").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	// waiting FILE: acts once its standard input is closed.
	helpers["waiting"] = func(args []string) error {
		if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
			return err
		}
		return helpers["act"](args)
	}
}

// told returns the actions of the events of which a process or its children are the actor, sorted.
func told(c *collector, pid uint32) []string {
	pids := map[uint32]bool{pid: true}
	for _, ev := range c.all(func(ev *Event) bool { return ev.Header.Action == ActionFork }) {
		if pids[ev.Header.TGID] {
			pids[ev.Fork.ChildTGID] = true
		}
	}
	var out []string
	for _, ev := range c.all(func(ev *Event) bool { return pids[ev.Header.TGID] && ev.Count() > 0 }) {
		if a := ev.Header.Action.String(); !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	slices.Sort(out)
	return out
}

// copyOfSelf is this binary at a path of its own.
func copyOfSelf(t *testing.T, path string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
}

var everything = []string{"call", "close", "connect", "exec", "exit", "fork", "open", "query", "rename", "send"}

// TestIgnoredPrograms: of an ignored program its exec is told and nothing after, of it and of what descends from it;
// from the next set on everything is, without a reload.
func TestIgnoredPrograms(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	agent := filepath.Join(dir, "agent")
	copyOfSelf(t, agent)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	act := func() *exec.Cmd {
		return exec.Command(agent, helperFlag, "act", filepath.Join(dir, "file"), ln.Addr().String())
	}
	check := func(what string, pid uint32, want []string) {
		t.Helper()
		c.settle(t)
		if got := told(c, pid); !slices.Equal(got, want) {
			t.Errorf("%s: told are %v, want %v", what, got, want)
		}
	}
	check("before", run(t, act()), everything)

	waiting := exec.Command(agent, helperFlag, "waiting", filepath.Join(dir, "waiting"), ln.Addr().String())
	in, err := waiting.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	start := c.wait(t, "exec of the waiting one", by(uint32(waiting.Process.Pid), ActionExec)).Header.StartTime
	time.Sleep(50 * time.Millisecond) // its runtime has made its threads
	had := len(c.all(func(ev *Event) bool { return ev.Header.TGID == uint32(waiting.Process.Pid) }))

	filtered := checkCounters(t, c.k)
	if err := c.k.SetIgnoredPrograms([]string{agent}); err != nil {
		t.Fatal(err)
	}
	if err := c.k.IgnoreProcess(uint32(waiting.Process.Pid), start, true); err != nil {
		t.Fatal(err)
	}
	check("ignored", run(t, act()), []string{"exec"})
	in.Close()
	if err := waiting.Wait(); err != nil {
		t.Fatal(err)
	}
	c.settle(t)
	if evs := c.all(func(ev *Event) bool { return ev.Header.TGID == uint32(waiting.Process.Pid) && ev.Count() > 0 }); len(evs) != had {
		t.Errorf("%d events of one that ran already, %d before it was ignored", len(evs), had)
	}
	// What was known of it may be forgotten.
	c.wait(t, "its end, which is no event", func(ev *Event) bool { return by(uint32(waiting.Process.Pid), ActionExit)(ev) && ev.Count() == 0 })
	for class, s := range checkCounters(t, c.k) {
		if s.Filtered == filtered[class].Filtered {
			t.Errorf("%s: nothing was counted as filtered", Class(class))
		}
	}

	if err := c.k.SetIgnoredPrograms(nil); err != nil {
		t.Fatal(err)
	}
	check("after", run(t, act()), everything)

	for _, bad := range []string{"relative", "/" + strings.Repeat("x", 255), "/a\x00b"} {
		if err := c.k.SetIgnoredPrograms([]string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestIgnoredCgroup: nothing is told of what happens in an ignored cgroup.
func TestIgnoredCgroup(t *testing.T) {
	c := sensor(t)
	dir := filepath.Join(cgroupRoot(t), fmt.Sprintf("picket-test-%d-ignored", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	file := filepath.Join(t.TempDir(), "file")
	in := func() uint32 {
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		cmd := helper(t, "act", file)
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(d.Fd())}
		return run(t, cmd)
	}
	if err := c.k.SetIgnoringCgroups(true); err != nil {
		t.Fatal(err)
	}
	if err := c.k.IgnoreCgroup(inode(t, dir).Ino); err != nil {
		t.Fatal(err)
	}
	pid := in()
	other := run(t, helper(t, "act", file))
	c.settle(t)
	if got := told(c, pid); len(got) != 0 {
		t.Errorf("told are %v", got)
	}
	if got := told(c, other); len(got) < 6 {
		t.Errorf("of another cgroup told are %v", got)
	}
	if err := c.k.SetIgnoringCgroups(false); err != nil {
		t.Fatal(err)
	}
	pid = in()
	c.settle(t)
	if got := told(c, pid); len(got) < 6 {
		t.Errorf("no longer ignored: told are %v", got)
	}
}

// TestIgnoredPeers: connections by network and port of the other end.
func TestIgnoredPeers(t *testing.T) {
	c := sensor(t)
	var listeners []net.Listener
	for _, address := range []string{"127.0.0.1:0", "127.0.0.2:0", "127.0.0.2:0", "[::1]:0"} {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		listeners = append(listeners, ln)
	}
	port := func(i int) uint16 { return listeners[i].Addr().(*net.TCPAddr).AddrPort().Port() }
	connect := func() (ports []uint16) {
		args := []string{"act", filepath.Join(t.TempDir(), "file.child")}
		for _, ln := range listeners {
			args = append(args, ln.Addr().String())
		}
		pid := run(t, helper(t, args...))
		c.settle(t)
		for _, ev := range c.all(by(pid, ActionConnect)) {
			ports = append(ports, ev.Conn.RemotePort)
		}
		return ports
	}
	if got, want := connect(), []uint16{port(0), port(1), port(2), port(3)}; !slices.Equal(got, want) {
		t.Errorf("connects to ports %v, want %v", got, want)
	}
	if err := c.k.SetIgnoredPeers([]Peer{
		{netip.MustParsePrefix("127.0.0.2/32"), port(1)}, {netip.MustParsePrefix("127.0.0.2/32"), 1}, {netip.MustParsePrefix("::1/128"), 0},
		{netip.MustParsePrefix("10.0.0.0/8"), 0},
	}); err != nil {
		t.Fatal(err)
	}
	if got, want := connect(), []uint16{port(0), port(2)}; !slices.Equal(got, want) {
		t.Errorf("with some ignored: connects to ports %v, want %v", got, want)
	}
	if err := c.k.SetIgnoredPeers([]Peer{{netip.MustParsePrefix("127.0.0.0/8"), 0}, {netip.MustParsePrefix("127.0.0.1/32"), 1}}); err != nil {
		t.Fatal(err)
	}
	if got, want := connect(), []uint16{port(0), port(3)}; !slices.Equal(got, want) {
		t.Errorf("the smaller network counts: connects to ports %v, want %v", got, want)
	}
	var many []Peer
	for i := range uint16(MaxIgnoredPeerPorts + 1) {
		many = append(many, Peer{netip.MustParsePrefix("10.0.0.0/8"), i + 1})
	}
	if err := c.k.SetIgnoredPeers(many); err == nil || !strings.Contains(err.Error(), "more than 4 ports of 10.0.0.0/8") {
		t.Errorf("too many ports: %v", err)
	}
	if err := c.k.SetIgnoredPeers(nil); err != nil {
		t.Fatal(err)
	}
	if got := connect(); len(got) != 4 {
		t.Errorf("no longer ignored: connects to ports %v", got)
	}
}

func TestIgnoreDNS(t *testing.T) {
	c := sensor(t)
	file := filepath.Join(t.TempDir(), "file.child")
	for _, ignored := range []bool{true, false} {
		if err := c.k.SetIgnoreDNS(ignored); err != nil {
			t.Fatal(err)
		}
		pid := run(t, helper(t, "act", file))
		c.settle(t)
		if got := slices.Contains(told(c, pid), "query"); got == ignored {
			t.Errorf("ignored: %v, told: %v", ignored, got)
		}
	}
}
