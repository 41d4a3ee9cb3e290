package bpf

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// connectCall is one connect, done by a helper without Go's net package in between.
type connectCall struct {
	Family, Type, Protocol int
	To                     netip.AddrPort
	NonBlocking            bool
	Again                  int  // further calls on the same socket
	Unspec                 bool // ends with connect to AF_UNSPEC
}

// connected is what the helper found.
type connected struct {
	FD      int
	Ino     uint64
	Errnos  []int
	Local   netip.AddrPort
	Protocl int
}

func sockaddr(family int, a netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func init() {
	helpers["connect"] = func(args []string) error {
		var o connectCall
		if err := json.Unmarshal([]byte(args[0]), &o); err != nil {
			return err
		}
		typ := o.Type
		if o.NonBlocking {
			typ |= unix.SOCK_NONBLOCK
		}
		fd, err := unix.Socket(o.Family, typ, o.Protocol)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		res := connected{FD: fd}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		res.Ino = st.Ino
		for range o.Again + 1 {
			err := unix.Connect(fd, sockaddr(o.Family, o.To))
			errno, _ := err.(unix.Errno)
			res.Errnos = append(res.Errnos, int(errno))
			if o.NonBlocking {
				// until the connect has come to its end
				if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 5000); err != nil {
					return err
				}
			}
		}
		if sa, err := unix.Getsockname(fd); err == nil {
			res.Local = addrPort(sa)
		}
		if o.Unspec {
			unspec := [16]byte{}
			if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), 16); errno != 0 {
				return errno
			}
		}
		return json.NewEncoder(os.Stdout).Encode(res)
	}
	helpers["connect-unix"] = func(args []string) error {
		conn, err := net.Dial("unix", args[0])
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

func listen(t *testing.T, network, addr string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// closed is an address where nothing listens.
func closed(t *testing.T, addr string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestConnect(t *testing.T) {
	c := sensor(t)
	v4, v6 := listen(t, "tcp4", "127.0.0.1:0"), listen(t, "tcp6", "[::1]:0")
	refused4, refused6 := closed(t, "127.0.0.1:0"), closed(t, "[::1]:0")
	mapped := netip.AddrPortFrom(netip.AddrFrom16(v4.Addr().As16()), v4.Port())
	broadcast := netip.MustParseAddrPort("255.255.255.255:80")
	udp := netip.MustParseAddrPort("127.0.0.1:53")

	const refused = -int32(unix.ECONNREFUSED)
	for _, tt := range []struct {
		name     string
		call     connectCall
		results  []int32 // of the events
		remote   netip.AddrPort
		protocol uint16
		flags    uint16
	}{
		{name: "v4", call: connectCall{Family: unix.AF_INET, Type: unix.SOCK_STREAM, To: v4}, results: []int32{0}, remote: v4, protocol: unix.IPPROTO_TCP},
		{name: "v6", call: connectCall{Family: unix.AF_INET6, Type: unix.SOCK_STREAM, To: v6}, results: []int32{0}, remote: v6, protocol: unix.IPPROTO_TCP},
		{name: "v4 in v6", call: connectCall{Family: unix.AF_INET6, Type: unix.SOCK_STREAM, To: mapped}, results: []int32{0}, remote: v4, protocol: unix.IPPROTO_TCP},
		{name: "v4 refused", call: connectCall{Family: unix.AF_INET, Type: unix.SOCK_STREAM, To: refused4}, results: []int32{refused}, remote: refused4, protocol: unix.IPPROTO_TCP},
		{name: "v6 refused", call: connectCall{Family: unix.AF_INET6, Type: unix.SOCK_STREAM, To: refused6}, results: []int32{refused}, remote: refused6, protocol: unix.IPPROTO_TCP},
		{name: "refused twice", call: connectCall{Family: unix.AF_INET, Type: unix.SOCK_STREAM, To: refused4, Again: 1}, results: []int32{refused, refused}, remote: refused4, protocol: unix.IPPROTO_TCP},
		{name: "not blocking", call: connectCall{Family: unix.AF_INET, Type: unix.SOCK_STREAM, To: v4, NonBlocking: true}, results: []int32{-int32(unix.EINPROGRESS)}, remote: v4, protocol: unix.IPPROTO_TCP},
		{name: "not blocking, asked for the result", call: connectCall{Family: unix.AF_INET6, Type: unix.SOCK_STREAM, To: v6, NonBlocking: true, Again: 2}, results: []int32{-int32(unix.EINPROGRESS), 0}, remote: v6, protocol: unix.IPPROTO_TCP},
		{name: "not blocking, refused", call: connectCall{Family: unix.AF_INET, Type: unix.SOCK_STREAM, To: refused4, NonBlocking: true, Again: 1}, results: []int32{-int32(unix.EINPROGRESS), refused}, remote: refused4, protocol: unix.IPPROTO_TCP},
		{name: "no packet sent", call: connectCall{Family: unix.AF_INET, Type: unix.SOCK_STREAM, To: broadcast}, results: []int32{-int32(unix.ENETUNREACH)}, remote: broadcast, protocol: unix.IPPROTO_TCP, flags: ConnRemoteFromUser},
		{name: "udp", call: connectCall{Family: unix.AF_INET, Type: unix.SOCK_DGRAM, To: udp, Unspec: true}, results: []int32{0}, remote: udp, protocol: unix.IPPROTO_UDP},
		{name: "udp, not allowed", call: connectCall{Family: unix.AF_INET, Type: unix.SOCK_DGRAM, To: broadcast}, results: []int32{-int32(unix.EACCES)}, remote: broadcast, protocol: unix.IPPROTO_UDP, flags: ConnRemoteFromUser},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := json.Marshal(tt.call)
			if err != nil {
				t.Fatal(err)
			}
			var res connected
			pid := output(t, helper(t, "connect", string(b)), &res)
			c.wait(t, "exit", by(pid, ActionExit))
			c.settle(t)
			evs := c.all(by(pid, ActionConnect))
			if len(evs) != len(tt.results) {
				t.Fatalf("%d connects, want %d; the caller got %v", len(evs), len(tt.results), res.Errnos)
			}
			for i, ev := range evs {
				e := &ev.Conn
				if e.Result != tt.results[i] {
					// what this machine's routes make of it does not matter, what the caller got does
					if want := -int32(res.Errnos[i]); tt.flags == 0 || e.Result != want {
						t.Errorf("result %d, want %d", e.Result, tt.results[i])
					}
				}
				if e.Remote() != tt.remote || e.Flags != tt.flags {
					t.Errorf("to %v, flags %#x; want %v, %#x", e.Remote(), e.Flags, tt.remote, tt.flags)
				}
				if int(e.Family) != tt.call.Family || int(e.Type) != tt.call.Type || e.Protocol != tt.protocol || int(e.FD) != res.FD || e.SockIno != res.Ino {
					t.Errorf("family %d type %d protocol %d fd %d inode %d, want %d %d %d %d %d", e.Family, e.Type, e.Protocol, e.FD, e.SockIno, tt.call.Family, tt.call.Type, tt.protocol, res.FD, res.Ino)
				}
				if e.Result == 0 && e.Local() != res.Local {
					t.Errorf("from %v, want %v", e.Local(), res.Local)
				}
			}
		})
	}

	t.Run("unix", func(t *testing.T) {
		path := t.TempDir() + "/socket"
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		pid := run(t, helper(t, "connect-unix", path))
		c.settle(t)
		if evs := c.all(by(pid, ActionConnect)); len(evs) > 0 {
			t.Errorf("an event: %+v", evs[0].Conn)
		}
	})
}

func init() {
	// accept NETWORK ADDRESS CALL: listens, prints where, accepts once, prints what it got.
	helpers["accept"] = func(args []string) error {
		l, err := net.Listen(args[0], args[1])
		if err != nil {
			return err
		}
		raw, err := l.(*net.TCPListener).File()
		if err != nil {
			return err
		}
		if err := unix.SetNonblock(int(raw.Fd()), false); err != nil {
			return err
		}
		out := json.NewEncoder(os.Stdout)
		if err := out.Encode(l.Addr().(*net.TCPAddr).AddrPort()); err != nil {
			return err
		}
		accept := func(fd int) (int, unix.Sockaddr, error) { return unix.Accept4(fd, unix.SOCK_CLOEXEC) }
		if args[2] == "accept" {
			accept = unix.Accept
		}
		fd, sa, err := accept(int(raw.Fd()))
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		return out.Encode(accepted{Remote: addrPort(sa), FD: fd, Ino: st.Ino})
	}
}

type accepted struct {
	Remote netip.AddrPort
	FD     int
	Ino    uint64
}

func TestAccept(t *testing.T) {
	c := sensor(t)
	for _, tt := range []struct {
		network, addr, dial, call string
		family                    uint16
	}{
		{"tcp4", "127.0.0.1:0", "", "accept", unix.AF_INET},
		{"tcp4", "127.0.0.1:0", "", "accept4", unix.AF_INET},
		{"tcp6", "[::1]:0", "", "accept4", unix.AF_INET6},
		{"tcp", "[::]:0", "127.0.0.1", "accept4", unix.AF_INET6},
	} {
		t.Run(tt.network+" "+tt.addr+" "+tt.call, func(t *testing.T) {
			cmd := helper(t, "accept", tt.network, tt.addr, tt.call)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			dec := json.NewDecoder(out)
			var at netip.AddrPort
			var got accepted
			if err := dec.Decode(&at); err != nil {
				t.Fatal(err)
			}
			if tt.dial != "" {
				at = netip.AddrPortFrom(netip.MustParseAddr(tt.dial), at.Port())
			}
			conn, err := net.Dial("tcp", at.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := dec.Decode(&got); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			e := &c.wait(t, "accept", by(uint32(cmd.Process.Pid), ActionAccept)).Conn
			if e.Local() != at || e.Remote() != got.Remote || got.Remote != conn.LocalAddr().(*net.TCPAddr).AddrPort() {
				t.Errorf("at %v from %v, want %v, %v", e.Local(), e.Remote(), at, got.Remote)
			}
			if e.Result != 0 || e.Family != tt.family || e.Type != unix.SOCK_STREAM || e.Protocol != unix.IPPROTO_TCP || int(e.FD) != got.FD || e.SockIno != got.Ino {
				t.Errorf("%+v, want %+v", e, got)
			}
		})
	}
	// The test's own side of these connections is the sensor's: no event.
	c.settle(t)
	if evs := c.all(by(uint32(os.Getpid()), ActionConnect)); len(evs) > 0 {
		t.Errorf("an event of the sensor itself: %+v", evs[0].Conn)
	}
}

// TestDup: a connected socket on a standard stream is told, whichever call put it there; another descriptor is not.
func TestDup(t *testing.T) {
	c := sensor(t)
	at := listen(t, "tcp4", "127.0.0.1:0")
	pid := run(t, helper(t, "dup", at.String()))
	c.settle(t)
	evs := c.all(by(pid, ActionDup))
	var got []string
	for _, ev := range evs {
		got = append(got, fmt.Sprintf("%s %d", ev.Syscall(), ev.Conn.Result))
		if ev.Conn.Remote() != at || ev.Conn.FD < 3 || ev.Conn.SockIno == 0 {
			t.Errorf("%+v, remote %s, want %s", ev.Conn, ev.Conn.Remote(), at)
		}
	}
	if want := []string{"dup3 0", "fcntl 1", "dup 2"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func init() {
	helpers["dup"] = func(args []string) error {
		conn, err := net.Dial("tcp4", args[0])
		if err != nil {
			return err
		}
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(func(s uintptr) {
			fd := int(s)
			_, _ = unix.Dup(fd) // no standard stream
			_ = unix.Dup3(fd, 0, 0)
			unix.Close(1)
			_, _ = unix.FcntlInt(s, unix.F_DUPFD, 0)
			unix.Close(2)
			_, _ = unix.Dup(fd)
			_ = unix.Dup3(0, 100, 0)
		})
	}
}
