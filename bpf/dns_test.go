package bpf

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asked is one exchange, as the helper that made it knows it: what it sent and what came back, of TCP without the
// lengths in front.
type asked struct {
	What      string
	Local     netip.AddrPort
	Remote    netip.AddrPort
	Questions []string
	Answers   []string
}

// message is not DNS, but as long as wanted: the kernel part looks at no more than lengths.
func message(what string, n int) string {
	return what + strings.Repeat(".", n-len(what))
}

func framed(messages ...string) []byte {
	var b []byte
	for _, m := range messages {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(m))), m...)
	}
	return b
}

func readFramed(r io.Reader) (string, error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return "", err
	}
	b := make([]byte, binary.BigEndian.Uint16(n[:]))
	_, err := io.ReadFull(r, b)
	return string(b), err
}

// ownNetwork gives the calling thread, and what it starts, a network of its own, where port 53 is free.
func ownNetwork() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

func init() {
	// dns is a name server and its client in one process: only the client's side are events.
	helpers["dns"] = func(args []string) error {
		if err := ownNetwork(); err != nil {
			return err
		}
		var done []asked
		for _, address := range []string{"127.0.0.1", "::1"} {
			server := netip.AddrPortFrom(netip.MustParseAddr(address), 53)
			udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(server))
			if err != nil {
				return err
			}
			tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(server))
			if err != nil {
				return err
			}
			for _, connected := range []bool{false, true} {
				a := asked{What: fmt.Sprintf("udp %s connected=%t", address, connected), Remote: server, Questions: []string{message("question by datagram", 40)}, Answers: []string{message("answer by datagram", 1400)}}
				var conn *net.UDPConn
				if connected {
					conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
				} else {
					conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(server.Addr(), 0)))
				}
				if err != nil {
					return err
				}
				a.Local = conn.LocalAddr().(*net.UDPAddr).AddrPort()
				if connected {
					_, err = conn.Write([]byte(a.Questions[0]))
				} else {
					_, err = conn.WriteToUDPAddrPort([]byte(a.Questions[0]), server)
				}
				if err != nil {
					return err
				}
				buf := make([]byte, 4096)
				_, from, err := udp.ReadFromUDPAddrPort(buf)
				if err != nil {
					return err
				}
				if _, err := udp.WriteToUDPAddrPort([]byte(a.Answers[0]), from); err != nil {
					return err
				}
				if _, err := conn.Read(buf); err != nil {
					return err
				}
				conn.Close()
				done = append(done, a)
			}

			one, two, long := message("one", 30), message("two", 60), message("long", 9000)
			for _, t := range []struct {
				what      string
				writes    [][]byte
				questions []string
				replies   [][]byte
				answers   []string
			}{
				{"whole", [][]byte{framed(one)}, []string{one}, [][]byte{framed(two)}, []string{two}},
				{"length first", [][]byte{framed(one)[:2], framed(one)[2:]}, []string{one}, [][]byte{framed(two)[:20], framed(two)[20:]}, []string{two}},
				{"byte by byte", [][]byte{framed(one)[:1], framed(one)[1:2], framed(one)[2:3], framed(one)[3:]}, []string{one}, [][]byte{framed(two, one)[:63], framed(two, one)[63:]}, []string{two, one}},
				{"two at once", [][]byte{framed(one, two)}, []string{one, two}, [][]byte{framed(two, one)[:70], framed(two, one)[70:]}, []string{two, one}},
				{"long", [][]byte{framed(one)}, []string{one}, [][]byte{framed(long)[:5000], framed(long)[5000:]}, []string{long}},
			} {
				conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(server))
				if err != nil {
					return err
				}
				peer, err := tcp.AcceptTCP()
				if err != nil {
					return err
				}
				a := asked{What: "tcp " + address + " " + t.what, Local: conn.LocalAddr().(*net.TCPAddr).AddrPort(), Remote: server, Questions: t.questions, Answers: t.answers}
				for _, step := range []struct {
					from, to *net.TCPConn
					writes   [][]byte
					want     []string
				}{{conn, peer, t.writes, t.questions}, {peer, conn, t.replies, t.answers}} {
					for _, w := range step.writes {
						if _, err := step.from.Write(w); err != nil {
							return err
						}
						time.Sleep(5 * time.Millisecond) // a segment each
					}
					for _, want := range step.want {
						if got, err := readFramed(step.to); err != nil || got != want {
							return fmt.Errorf("%s: received %d bytes, %v", a.What, len(got), err)
						}
					}
				}
				conn.Close()
				peer.Close()
				done = append(done, a)
			}
			udp.Close()
			tcp.Close()
		}
		return json.NewEncoder(os.Stdout).Encode(done)
	}

	// dns-broken sends what cannot be followed.
	helpers["dns-broken"] = func(args []string) error {
		if err := ownNetwork(); err != nil {
			return err
		}
		l, err := net.Listen("tcp", "127.0.0.1:53")
		if err != nil {
			return err
		}
		conn, err := net.Dial("tcp", "127.0.0.1:53")
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := l.Accept(); err != nil {
			return err
		}
		// More messages than can be told of one segment; then it is given up, once.
		for _, part := range []string{strings.Repeat("\x00\x01x", 9), "\x00\x05hello", "more"} {
			if _, err := io.WriteString(conn, part); err != nil {
				return err
			}
			time.Sleep(5 * time.Millisecond)
		}
		// A datagram that nobody asked for, from port 53.
		from, err := net.ListenPacket("udp", "127.0.0.1:53")
		if err != nil {
			return err
		}
		to, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		if _, err := from.WriteTo([]byte("not asked for"), to.LocalAddr()); err != nil {
			return err
		}
		_, _, err = to.ReadFrom(make([]byte, 64))
		return err
	}

	// cgroup makes a control group, puts itself into it, runs a program and ends.
	helpers["cgroup"] = func(args []string) error {
		if err := os.Mkdir(args[0], 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(args[0], "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return err
		}
		return unix.Exec(args[1], []string{args[1]}, nil)
	}
}

// TestDNS: messages of both protocols and directions, whatever calls and segments carry them, each an event of the
// process that asked.
func TestDNS(t *testing.T) {
	c := sensor(t)
	cmd := helper(t, "dns")
	var out bytes.Buffer
	cmd.Stdout = &out
	pid := run(t, cmd)
	var exchanges []asked
	if err := json.Unmarshal(out.Bytes(), &exchanges); err != nil || len(exchanges) != 14 {
		t.Fatalf("%d exchanges, %v", len(exchanges), err)
	}
	isDNS := func(ev *Event) bool { return ev.Header.Class == ClassDNS && ev.Header.TGID == pid }
	var want uint64
	for _, a := range exchanges {
		want += uint64(len(a.Questions) + len(a.Answers))
	}
	count := func() (n uint64) {
		for _, ev := range c.all(isDNS) {
			n += ev.Count()
		}
		return n
	}
	for end := time.Now().Add(10 * time.Second); count() < want && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	c.settle(t)
	if got := count(); got != want {
		t.Errorf("%d events, want %d", got, want)
	}

	exe := c.wait(t, "exec of the helper", by(pid, ActionExec)).Header
	for _, a := range exchanges {
		for _, side := range []struct {
			action   Action
			messages []string
		}{{ActionQuery, a.Questions}, {ActionResponse, a.Answers}} {
			what := a.What + " " + side.action.String()
			protocol := map[string]uint16{"udp": unix.IPPROTO_UDP, "tcp": unix.IPPROTO_TCP}[a.What[:3]]
			source, dest := a.Local, a.Remote
			if side.action == ActionResponse {
				source, dest = dest, source
			}
			evs := c.all(func(ev *Event) bool {
				return isDNS(ev) && ev.Header.Action == side.action && ev.DNS.Protocol == protocol && ev.DNS.Source() == source && ev.DNS.Dest() == dest
			})
			want := []byte(strings.Join(side.messages, ""))
			if protocol == unix.IPPROTO_TCP {
				want = framed(side.messages...)
			}
			var messages int
			var position uint32
			var got []byte
			for _, ev := range evs {
				messages += int(ev.DNS.Messages)
				if h := ev.Header; h.CgroupID != exe.CgroupID || h.EUID != exe.EUID || h.NetNS == exe.NetNS || String(h.Comm[:]) != String(exe.Comm[:]) || (h.Seq == 0) != (ev.DNS.Messages == 0) {
					t.Errorf("%s: header %+v", what, h)
				}
				if len(got) > 0 && ev.DNS.Sequence != position {
					t.Errorf("%s: segment at %d, want %d", what, ev.DNS.Sequence, position)
				}
				position = ev.DNS.Sequence + ev.DNS.Total
				// Of a long segment the beginning is carried; what is left out has its place.
				if n := int(min(ev.DNS.Total, MaxDNS)); len(ev.DNS.Data) != n {
					t.Errorf("%s: %d bytes of %d", what, len(ev.DNS.Data), ev.DNS.Total)
				}
				got = append(got, ev.DNS.Data...)
				for range ev.DNS.Total - uint32(len(ev.DNS.Data)) {
					got = append(got, want[len(got)])
				}
			}
			if messages != len(side.messages) || !bytes.Equal(got, want) {
				t.Errorf("%s: %d messages in %d records, %d bytes; want %d, %d bytes", what, messages, len(evs), len(got), len(side.messages), len(want))
			}
		}
	}
	if counters := checkCounters(t, c.k)[ClassDNS]; counters.Errors[ErrorStream] != 0 || counters.Seen != counters.Submitted {
		t.Errorf("counters: %+v", counters)
	}
}

// TestDNSBroken: what is no DNS, or an answer to nothing, is counted and does no harm.
func TestDNSBroken(t *testing.T) {
	c := sensor(t)
	before := checkCounters(t, c.k)[ClassDNS]
	pid := run(t, helper(t, "dns-broken"))
	c.settle(t)
	after := checkCounters(t, c.k)[ClassDNS]
	if n := after.Errors[ErrorStream] - before.Errors[ErrorStream]; n != 1 {
		t.Errorf("%d streams given up, want 1", n)
	}
	if n := after.Errors[ErrorAsker] - before.Errors[ErrorAsker]; n < 1 {
		t.Errorf("%d messages without a question, want 1", n)
	}
	if evs := c.all(func(ev *Event) bool { return ev.Header.Class == ClassDNS && ev.Header.TGID == pid }); len(evs) != 0 {
		t.Errorf("%d events of it", len(evs))
	}
}

// TestDNSOff: without cgroup2 the sensor says that it sees no DNS.
func TestDNSOff(t *testing.T) {
	o := options(t)
	o.Cgroup2 = ""
	k := mustLoad(t, o)
	if unseen := k.Unseen(); len(unseen) == 0 || !strings.HasPrefix(unseen[len(unseen)-1], "DNS: ") {
		t.Errorf("unseen: %q", unseen)
	}
}

// TestCgroup: a control group is told of before the first program in it, also when nothing is left of it afterwards.
func TestCgroup(t *testing.T) {
	o := options(t)
	type tree struct{ root, controller, what string }
	trees := []tree{{root: o.Cgroup2, what: "version 2"}}
	if b, err := os.ReadFile("/proc/cgroups"); err == nil {
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "memory" && f[1] != "0" {
				trees = append(trees, tree{filepath.Join(filepath.Dir(o.Cgroup2), "memory"), "memory", "version 1"})
			}
		}
	}
	for _, tree := range trees {
		t.Run(tree.what, func(t *testing.T) {
			o := options(t)
			o.Controller = tree.controller
			if tree.controller != "" {
				o.Hierarchy = hierarchy(t, tree.controller)
			}
			c := collect(t, mustLoad(t, o))
			name := fmt.Sprintf("picket-test-%d", os.Getpid())
			dir := filepath.Join(tree.root, name)
			truth, err := exec1(t, dir)
			if err != nil {
				t.Fatal(err)
			}
			made := c.wait(t, "the control group", func(ev *Event) bool {
				return ev.Header.Action == ActionCgroup && strings.HasSuffix(string(ev.Cgroup.Path), "/"+name)
			})
			exec := c.wait(t, "exec in it", func(ev *Event) bool {
				return by(truth, ActionExec)(ev) && string(ev.Exec.Exe) == "/bin/true" || by(truth, ActionExec)(ev) && strings.HasSuffix(string(ev.Exec.Filename), "true")
			})
			if made.Header.Seq != 0 || exec.Header.CgroupID != made.Header.CgroupID || made.Header.CgroupID == 0 {
				t.Errorf("group %d, exec in %d", made.Header.CgroupID, exec.Header.CgroupID)
			}
			events := c.all(func(ev *Event) bool { return ev == made || ev == exec })
			if len(events) != 2 || events[0] != made {
				t.Error("the exec was told first")
			}
		})
	}
}

// exec1 runs /bin/true in a new control group, and removes that.
func exec1(t *testing.T, dir string) (uint32, error) {
	path, err := lookTrue()
	if err != nil {
		return 0, err
	}
	pid := run(t, helper(t, "cgroup", dir, path))
	return pid, os.Remove(dir)
}

func lookTrue() (string, error) {
	for _, p := range []string{"/bin/true", "/usr/bin/true"} {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("there is no /bin/true")
}

func hierarchy(t *testing.T, controller string) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/cgroups")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == controller {
			fmt.Sscan(f[1], &n)
		}
	}
	return n
}
