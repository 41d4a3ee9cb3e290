package bpf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
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
		// The destination of an attempt is remembered by thread.
		runtime.LockOSThread()
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

// TestSockets makes one call of each kind on sockets and looks at the one event of it.
func TestSockets(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "there"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for n, tt := range socketCalls() {
		t.Run(tt.name, func(t *testing.T) {
			pid := run(t, helper(t, "socket", fmt.Sprint(n), dir))
			c.settle(t)
			var got []string
			for _, ev := range c.all(func(ev *Event) bool { return ev.Header.TGID == pid && ev.Header.Class == ClassNetwork }) {
				e := &ev.Conn
				s := fmt.Sprintf("%s %s %d family=%d type=%d flags=%d", ev.Header.Action, ev.Syscall(), e.Result, e.Family, e.Type, e.Flags)
				switch ev.Header.Action {
				case ActionSocket:
					s = fmt.Sprintf("socket %d family=%d type=%d protocol=%d", min(e.Result, 0), e.Family, e.Type, e.Protocol)
				case ActionSend:
					s += " to " + e.Remote().String()
				case ActionBind, ActionListen:
					if e.Family != unix.AF_UNIX {
						s += " at " + e.Local().String()
					}
				}
				if ev.Header.Action == ActionListen {
					s += fmt.Sprint(" backlog=", e.Backlog)
				}
				if len(e.Path) > 0 {
					s += " path=" + strings.Replace(strings.ReplaceAll(string(e.Path), "\x00", "@"), dir, "DIR", 1)
				}
				got = append(got, s)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
}

type socketCall struct {
	name string
	do   func(dir string) error
	want []string
}

func socketCalls() []socketCall {
	socket := func(family, typ int, do func(fd int) error) error {
		fd, err := unix.Socket(family, typ, 0)
		if err != nil {
			return err
		}
		return do(fd)
	}
	nine := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}
	return []socketCall{
		{"packet", func(string) error {
			_, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0x300)
			return err
		}, []string{"socket 0 family=17 type=3 protocol=768"}},
		{"raw", func(string) error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, 1); return err }, []string{"socket 0 family=2 type=3 protocol=1"}},
		{"raw that fails", func(string) error {
			if _, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, 999); err == nil {
				return errors.New("it succeeded")
			}
			return nil
		}, []string{fmt.Sprintf("socket %d family=2 type=3 protocol=999", -int(unix.EINVAL))}},
		{"ordinary", func(string) error { _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); return err }, nil},
		{"bind", func(string) error {
			return socket(unix.AF_INET, unix.SOCK_STREAM, func(fd int) error {
				if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 47123, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
					return err
				}
				return unix.Listen(fd, 7)
			})
		}, []string{"bind bind 0 family=2 type=1 flags=0 at 127.0.0.1:47123", "listen listen 0 family=2 type=1 flags=0 at 127.0.0.1:47123 backlog=7"}},
		{"bind that fails", func(string) error {
			return socket(unix.AF_INET6, unix.SOCK_DGRAM, func(fd int) error {
				_ = unix.Bind(fd, &unix.SockaddrInet6{Port: 53, Addr: [16]byte{0x20, 1, 0xd, 0xb8, 15: 1}})
				return nil
			})
		}, []string{fmt.Sprintf("bind bind %d family=10 type=2 flags=2 at [2001:db8::1]:53", -int(unix.EADDRNOTAVAIL))}},
		{"unix", func(dir string) error {
			if err := os.Chdir(dir); err != nil {
				return err
			}
			return socket(unix.AF_UNIX, unix.SOCK_STREAM, func(fd int) error {
				if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "here"}); err != nil {
					return err
				}
				return unix.Listen(fd, 1)
			})
		}, []string{"bind bind 0 family=1 type=1 flags=0 path=here@", "listen listen 0 family=1 type=1 flags=0 backlog=1 path=here@"}},
		{"unix connect", func(dir string) error {
			return socket(unix.AF_UNIX, unix.SOCK_STREAM, func(fd int) error { return unix.Connect(fd, &unix.SockaddrUnix{Name: dir + "/there"}) })
		}, []string{"connect connect 0 family=1 type=1 flags=0 path=DIR/there@"}},
		{"unix connect that fails", func(dir string) error {
			return socket(unix.AF_UNIX, unix.SOCK_STREAM, func(fd int) error {
				_ = unix.Connect(fd, &unix.SockaddrUnix{Name: dir + "/none"})
				return nil
			})
		}, []string{fmt.Sprintf("connect connect %d family=1 type=1 flags=1 path=DIR/none@", -int(unix.ENOENT))}},
		{"abstract", func(string) error {
			return socket(unix.AF_UNIX, unix.SOCK_DGRAM, func(fd int) error { return unix.Bind(fd, &unix.SockaddrUnix{Name: "@picket-test"}) })
		}, []string{"bind bind 0 family=1 type=2 flags=0 path=@picket-test"}},
		{"datagrams", func(string) error {
			return socket(unix.AF_INET, unix.SOCK_DGRAM, func(fd int) error {
				for range 3 {
					if err := unix.Sendto(fd, []byte("x"), 0, nine); err != nil {
						return err
					}
					if err := unix.Sendmsg(fd, []byte("x"), nil, &unix.SockaddrInet4{Port: 10, Addr: [4]byte{127, 0, 0, 1}}, 0); err != nil {
						return err
					}
				}
				return nil
			})
		}, []string{"send sendto 0 family=2 type=2 flags=1 to 127.0.0.1:9", "send sendmsg 0 family=2 type=2 flags=1 to 127.0.0.1:10"}},
		{"datagram to the connected", func(string) error {
			return socket(unix.AF_INET, unix.SOCK_DGRAM, func(fd int) error {
				if err := unix.Connect(fd, nine); err != nil {
					return err
				}
				_ = unix.Send(fd, []byte("x"), 0) // nobody listens
				return nil
			})
		}, []string{"connect connect 0 family=2 type=2 flags=0"}},
	}
}

func init() {
	helpers["socket"] = func(args []string) error {
		var n int
		if _, err := fmt.Sscan(args[0], &n); err != nil {
			return err
		}
		return socketCalls()[n].do(args[1])
	}
	// talk ADDRESS: sends 1000 bytes over TCP, reads to the end.
	helpers["talk"] = func(args []string) error {
		conn, err := net.Dial("tcp", args[0])
		if err != nil {
			return err
		}
		if _, err := conn.Write(make([]byte, 1000)); err != nil {
			return err
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, conn); err != nil {
			return err
		}
		return conn.Close()
	}
}

// TestClose: the end of a TCP connection says whose it was, what went over it and how long it took.
func TestClose(t *testing.T) {
	c := sensor(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { // ends with the connection
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.Copy(io.Discard, conn)
		time.Sleep(60 * time.Millisecond)
		_, _ = conn.Write(make([]byte, 77))
	}()
	pid := run(t, helper(t, "talk", l.Addr().String()))
	connect := c.wait(t, "connect", by(pid, ActionConnect))
	end := c.wait(t, "close", by(pid, ActionClose))
	if end.Conn.Remote() != connect.Conn.Remote() || end.Conn.SockIno != connect.Conn.SockIno || end.Syscall() != "close" {
		t.Errorf("%+v of %+v", end.Conn, connect.Conn)
	}
	// The peer's FIN takes a number of its own in the stream, and the kernel counts it.
	if e := end.Conn; e.BytesSent != 1000 || e.BytesReceived < 77 || e.BytesReceived > 78 || e.Duration < 50e6 || e.Duration > 10e9 {
		t.Errorf("%d bytes sent, %d received, %d ns", e.BytesSent, e.BytesReceived, e.Duration)
	}
	if end.Conn.Flags&ConnAccepted != 0 {
		t.Error("the connecting end is told as accepted")
	}
	if end.Header.Time <= connect.Header.Time || end.Header.Seq == connect.Header.Seq && end.Header.CPU == connect.Header.CPU {
		t.Errorf("header %+v", end.Header)
	}
	time.Sleep(50 * time.Millisecond)
	if all := c.all(by(pid, ActionClose)); len(all) != 1 {
		t.Errorf("%d events", len(all))
	}
}

// TestUnwanted: what is left out is no event, until it is wanted again.
func TestUnwanted(t *testing.T) {
	k := mustLoad(t, options(t))
	c := collect(t, k)
	if err := k.SetUnwanted([]string{"bind", "close", "kill"}); err != nil {
		t.Fatal(err)
	}
	calls := socketCalls()
	bind := slices.IndexFunc(calls, func(s socketCall) bool { return s.name == "bind" })
	pid := run(t, helper(t, "socket", fmt.Sprint(bind), t.TempDir()))
	c.wait(t, "listen", by(pid, ActionListen))
	if evs := c.all(by(pid, ActionBind)); len(evs) != 0 {
		t.Errorf("%d binds", len(evs))
	}
	if err := k.SetUnwanted(nil); err != nil {
		t.Fatal(err)
	}
	c.wait(t, "bind", by(run(t, helper(t, "socket", fmt.Sprint(bind), t.TempDir())), ActionBind))
	for _, name := range []string{"execve", "vfork", "clone3", "nonsense", ""} {
		if err := k.SetUnwanted([]string{name}); err == nil {
			t.Errorf("%q can be left out", name)
		}
	}
}
