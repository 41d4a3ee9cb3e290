package bpf

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// What the kernel's maps do when they are full. Their sizes are in network.h.
const (
	maxConnections = 16384
	maxFlows       = 8192
)

func init() {
	// connections N: makes N TCP connections to itself, which is 2 N ends, says
	// so, and keeps them until its input ends.
	// With "reset" the connecting end is gone before the other is accepted.
	helpers["connections"] = func(args []string) error {
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		reset := len(args) > 1 && args[1] == "reset"
		limit := unix.Rlimit{Cur: uint64(2*n + 100), Max: uint64(2*n + 100)}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return err
		}
		l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		if err := unix.Listen(l, 128); err != nil {
			return err
		}
		to, err := unix.Getsockname(l)
		if err != nil {
			return err
		}
		for range n {
			c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			// Closed with a reset, so that no port stays behind in TIME_WAIT.
			if err := unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
				return err
			}
			if err := unix.Connect(c, to); err != nil {
				return err
			}
			if reset {
				if err := unix.Close(c); err != nil {
					return err
				}
			}
			if _, _, err := unix.Accept(l); err != nil {
				return err
			}
		}
		fmt.Println("made")
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	}
	// refused ADDRESS N: N connects that do not wait and are refused, of sockets that are kept; and says so.
	helpers["refused"] = func(args []string) error {
		to, err := netip.ParseAddrPort(args[0])
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		for range n {
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			if err := unix.Connect(s, sockaddr(unix.AF_INET, to)); err != unix.EINPROGRESS {
				return fmt.Errorf("connect: %v", err)
			}
		}
		fmt.Println("refused")
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	}
	// datagrams N: from one socket to 127.0.0.1, to N other addresses, and to 127.0.0.1 again.
	// All on one CPU: what another has entered last is not yet in the kernel's line of those that may go.
	helpers["datagrams"] = func(args []string) error {
		runtime.LockOSThread()
		var allowed, one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &allowed); err != nil {
			return err
		}
		for cpu := 0; one.Count() == 0; cpu++ {
			if allowed.IsSet(cpu) {
				one.Set(cpu)
			}
		}
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return err
		}
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		send := func(host int) error {
			return unix.Sendto(s, []byte("x"), 0, &unix.SockaddrInet4{Addr: [4]byte{127, byte(host >> 16), byte(host >> 8), byte(host)}, Port: 9})
		}
		if err := send(1); err != nil {
			return err
		}
		for i := range n {
			if err := send(i + 2); err != nil {
				return err
			}
			if i%100 == 0 {
				time.Sleep(time.Millisecond) // the ring is to hold them
			}
		}
		return send(1)
	}
}

// mapOf finds a map that only the programs hold.
func mapOf(t *testing.T, k *Kernel, name string) *ebpf.Map {
	t.Helper()
	for _, p := range k.progs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		ids, _ := info.MapIDs()
		for _, id := range ids {
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				t.Fatal(err)
			}
			if info, err := m.Info(); err == nil && info.Name == name {
				t.Cleanup(func() { m.Close() })
				return m
			}
			m.Close()
		}
	}
	t.Fatalf("no program has a map %s", name)
	return nil
}

// entries returns how many keys a map has.
func entries(m *ebpf.Map) (n int) {
	key := make([]byte, m.KeySize())
	for err := m.NextKey(nil, key); err == nil; err = m.NextKey(key, key) {
		n++
	}
	return n
}

// network returns the counters of class network of all CPUs together.
func network(t *testing.T, k *Kernel) (sum ClassCounters) {
	t.Helper()
	all, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.Class == ClassNetwork {
			sum.RingFull += c.RingFull
			sum.Limited += c.Limited
			sum.Errors[ErrorStorage] += c.Errors[ErrorStorage]
		}
	}
	return sum
}

// hold starts a helper and returns when it has said that it has what it is to keep.
func hold(t *testing.T, args ...string) (*exec.Cmd, io.Closer) {
	t.Helper()
	cmd := helper(t, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it may have ended
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("%s: %v, %v", cmd, err, cmd.Wait())
	}
	return cmd, in
}

// letGo ends a helper that hold has started.
func letGo(t *testing.T, cmd *exec.Cmd, in io.Closer) {
	t.Helper()
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// TestConnectionsFull: connections beyond those that can be remembered are counted, each of them; they are
// events all the same, but their end is not. When others have ended there is room again.
func TestConnectionsFull(t *testing.T) {
	c := sensor(t)
	connections := mapOf(t, c.k, "connections")
	const ends = maxConnections + 400
	cmd, in := hold(t, "connections", strconv.Itoa(ends/2))
	c.settle(t)
	pid := uint32(cmd.Process.Pid)
	// A connect that a signal interrupts is told twice: the second time with its result.
	done := func(ev *Event) bool { return by(pid, ActionConnect)(ev) && ev.Conn.Result == 0 }
	if n := len(c.all(done)) + len(c.all(by(pid, ActionAccept))); n != ends {
		t.Errorf("%d ends are told of %d", n, ends)
	}
	if n := entries(connections); n != maxConnections {
		t.Errorf("%d connections are remembered, want %d", n, maxConnections)
	}
	// Other processes make connections too: theirs are counted with the rest, but some have ended when they begin.
	begun := func(ev *Event) bool {
		return ev.Conn.Protocol == unix.IPPROTO_TCP && (by(ev.Header.TGID, ActionConnect)(ev) && (ev.Conn.Result == 0 || ev.Conn.Result == -int32(unix.EINPROGRESS)) || by(ev.Header.TGID, ActionAccept)(ev))
	}
	ended := func(ev *Event) bool { return ev.Header.Class == ClassNetwork && ev.Header.Action == ActionClose }
	var now ClassCounters
	balance := func() (want, got int) {
		now = network(t, c.k)
		return len(c.all(begun)) - len(c.all(ended)) - entries(connections), int(now.Errors[ErrorStorage])
	}
	for try := 0; ; try++ { // somebody's connection may be between its event and the map
		want, got := balance()
		others := len(c.all(func(ev *Event) bool { return begun(ev) && ev.Header.TGID != pid }))
		if got <= want && got >= want-others && got >= ends-maxConnections {
			break
		}
		if try == 20 {
			t.Fatalf("%d connections could not be remembered, %d are counted (%d made by others, ring_full %d)", want, got, others, now.RingFull+now.Limited)
		}
		time.Sleep(50 * time.Millisecond)
	}
	letGo(t, cmd, in)
	c.settle(t)
	if n := len(c.all(by(pid, ActionClose))); n > maxConnections || n < ends-int(now.Errors[ErrorStorage]) {
		t.Errorf("the end of %d connections is told, of at most %d", n, maxConnections)
	}
	if n := entries(connections); n > maxConnections/2 {
		t.Errorf("%d connections are remembered after their end", n)
	}
	again := helper(t, "connections", "1")
	c.wait(t, "the end of a connection, when there is room again", by(run(t, again), ActionClose))
}

// TestEndedIsForgotten: a connection that has ended when its connect or accept returns is not remembered. Nobody
// would take it out, and the next connection of a socket at the same place would be told in its name.
func TestEndedIsForgotten(t *testing.T) {
	const n = 500
	for _, tt := range []struct {
		name string
		args []string
		told Action
	}{
		{"refused", []string{"refused", closed(t, "127.0.0.1:0").String(), strconv.Itoa(n)}, ActionConnect},
		{"reset before it was accepted", []string{"connections", strconv.Itoa(n), "reset"}, ActionAccept},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := sensor(t)
			connections := mapOf(t, c.k, "connections")
			cmd, in := hold(t, tt.args...)
			c.settle(t)
			if told := len(c.all(by(uint32(cmd.Process.Pid), tt.told))); told != n {
				t.Errorf("%d are told, want %d", told, n)
			}
			if kept := entries(connections); kept > n/2 { // other processes have some
				t.Errorf("%d connections are remembered", kept)
			}
			letGo(t, cmd, in)
		})
	}
}

// TestFlowsFull: a destination is told once, and again when others have pushed it out. (The kernel keeps those
// longest that were used again: this one was not.)
func TestFlowsFull(t *testing.T) {
	c := sensor(t)
	const others = 3 * maxFlows
	pid := run(t, helper(t, "datagrams", strconv.Itoa(others)))
	c.settle(t)
	if now := network(t, c.k); now.RingFull+now.Limited > 0 {
		t.Fatalf("the ring was full: %+v", now)
	}
	first := c.all(func(ev *Event) bool {
		return by(pid, ActionSend)(ev) && ev.Conn.Remote().Addr().String() == "127.0.0.1"
	})
	if len(first) != 2 {
		t.Errorf("the first destination is told %d times, want 2: before the others, and after them", len(first))
	}
	if n := len(c.all(by(pid, ActionSend))); n != others+2 {
		t.Errorf("%d datagrams are told, want %d", n, others+2)
	}
	if n := entries(mapOf(t, c.k, "flows")); n > maxFlows || n < maxFlows/2 {
		t.Errorf("%d destinations are remembered, want at most %d", n, maxFlows)
	}
}
