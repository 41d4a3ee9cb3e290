package bpf

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ringChange is an operation of an io_uring on what is in DIR, and what is to be told of it: names as the request has
// them, and as the kernel finds them.
type ringChange struct {
	action         Action
	opcode         uint8
	op             func(dir string) (sqe, error)
	path, target   string
	found, foundTo string
	result         int32
	number         uint64
	mode           uint32
}

const ringNames = "a-name-that-is-freed-when-the-request-is-done"

func text(s string) uint64 { return uint64(cstr(s)) }

func ringChanges() []ringChange {
	cwd := int32(unix.AT_FDCWD)
	file := func(dir string) (int32, error) {
		fd, err := unix.Open(dir+"/f", unix.O_WRONLY, 0)
		return int32(fd), err
	}
	named := func(op sqe) func(string) (sqe, error) { return func(string) (sqe, error) { return op, nil } }
	return []ringChange{
		{action: ActionMkdir, opcode: 37, path: "DIR/link/../d", found: "DIR/real/d", mode: 0o750,
			op: func(dir string) (sqe, error) {
				return sqe{fd: cwd, addr: text(dir + "/link/../d"), len: 0o750}, nil
			}},
		{action: ActionRename, opcode: 35, path: "DIR/f", target: "DIR/link/g", found: "DIR/f", foundTo: "DIR/real/sub/g",
			op: named(sqe{fd: cwd, addr: text("f"), len: uint32(0xffffff9c), off: text("link/g")})},
		{action: ActionRename, opcode: 35, path: "DIR/none", target: "DIR/f", result: -int32(unix.ENOENT),
			op: named(sqe{fd: cwd, addr: text("none"), len: uint32(0xffffff9c), off: text("f")})},
		{action: ActionRename, opcode: 35, path: "DIR/real/sub/g", target: "DIR/f", found: "DIR/real/sub/g", foundTo: "DIR/f",
			op: func(dir string) (sqe, error) {
				fd, err := unix.Open(dir+"/real/sub", unix.O_PATH|unix.O_DIRECTORY, 0)
				return sqe{fd: int32(fd), addr: text("g"), len: uint32(0xffffff9c), off: text(dir + "/f")}, err
			}},
		{action: ActionLink, opcode: 39, path: "DIR/hard", target: "DIR/f", found: "DIR/hard", foundTo: "DIR/f",
			op: named(sqe{fd: cwd, addr: text("f"), len: uint32(0xffffff9c), off: text("hard")})},
		{action: ActionSymlink, opcode: 38, path: "DIR/link/soft", target: "../etc/shadow", found: "DIR/real/sub/soft", foundTo: "../etc/shadow",
			op: named(sqe{fd: cwd, addr: text("../etc/shadow"), off: text("link/soft")})},
		{action: ActionUnlink, opcode: 36, path: "DIR/hard", found: "DIR/hard", op: named(sqe{fd: cwd, addr: text("hard")})},
		{action: ActionRmdir, opcode: 36, path: "DIR/real/d", found: "DIR/real/d",
			op: named(sqe{fd: cwd, addr: text("real/d"), opFlags: unix.AT_REMOVEDIR})},
		{action: ActionUnlink, opcode: 36, path: "DIR/" + ringNames, result: -int32(unix.ENOENT), op: named(sqe{fd: cwd, addr: text(ringNames)})},
		{action: ActionSetxattr, opcode: 42, path: "DIR/f", target: "security.picket",
			op: func(dir string) (sqe, error) {
				s := sqe{addr: text("security.picket"), off: text("1"), len: 1}
				s.addr3 = text(dir + "/f")
				return s, nil
			}},
		{action: ActionSetxattr, opcode: 41, path: "DIR/f", target: "security.picket",
			op: func(dir string) (sqe, error) {
				fd, err := file(dir)
				return sqe{fd: fd, addr: text("security.picket"), off: text("2"), len: 1}, err
			}},
		{action: ActionTruncate, opcode: 55, path: "DIR/f", number: 12345,
			op: func(dir string) (sqe, error) {
				fd, err := file(dir)
				return sqe{fd: fd, off: 12345}, err
			}},
	}
}

func init() {
	// ring-changes DIR [skip]: all of them, with skip so that success is not reported. It prints which the kernel does
	// not have.
	helpers["ring-changes"] = func(args []string) error {
		if err := os.Chdir(args[0]); err != nil {
			return err
		}
		u, err := newURing()
		if err != nil {
			return err
		}
		probe, err := u.do(sqe{opcode: 55, fd: -1})
		if err != nil {
			return err
		}
		has55 := probe != -int32(unix.EINVAL)
		for _, c := range ringChanges() {
			op, err := c.op(args[0])
			if err != nil {
				return err
			}
			op.opcode = c.opcode
			if len(args) > 1 && c.result == 0 && (c.opcode < 55 || has55) {
				op.flags = 1 << 6 // IOSQE_CQE_SKIP_SUCCESS
				if err := u.submit(op); err != nil {
					return err
				}
				if _, err := u.do(sqe{flags: 1 << 1 /* IOSQE_IO_DRAIN */}); err != nil { // a no-op when the others are done
					return err
				}
				continue
			}
			res, err := u.do(op)
			if err != nil {
				return err
			}
			if res == -int32(unix.EINVAL) && c.opcode >= 55 {
				fmt.Println(c.opcode)
			} else if res != c.result {
				return fmt.Errorf("%s by %d: result %d", c.action, c.opcode, res)
			}
		}
		return nil
	}
}

// TestURingChanges: a change through an io_uring is an event like any other, with the kernel's own copy of its names,
// and where there is a hook with the paths that were found.
func TestURingChanges(t *testing.T) {
	for _, skip := range []bool{false, true} {
		t.Run(fmt.Sprint("success skipped: ", skip), func(t *testing.T) { testURingChanges(t, skip) })
	}
}

func testURingChanges(t *testing.T, skip bool) {
	c := sensor(t)
	needURing(t, c.k)
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/real/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real/sub", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"ring-changes", dir}
	if skip {
		args = append(args, "skip")
	}
	cmd := helper(t, args...)
	var out strings.Builder
	cmd.Stdout = &out
	pid := run(t, cmd)
	c.settle(t)
	var want []string
	for _, r := range ringChanges() {
		if strings.Contains(out.String(), fmt.Sprint(r.opcode, "\n")) {
			t.Logf("this kernel has no operation %d", r.opcode)
			continue
		}
		path, target := r.path, r.target
		if h, ok := hookOf[r.action]; ok && r.found != "" && !skip && hooked(c.k, r.action) && h != "" {
			path, target = r.found, r.foundTo
		}
		if r.action != ActionSymlink || target == "" {
			target = strings.ReplaceAll(target, "DIR", dir)
		}
		number := r.number
		if number == 0 {
			number = NoNumber
		}
		mode := r.mode
		if mode == 0 {
			mode = NotChanged
		}
		want = append(want, fmt.Sprint(r.action, " ", strings.ReplaceAll(path, "DIR", dir), " > ", target, " ", r.result, " ", number, " ", mode, " flags 0 ", HeaderIOURing))
	}
	var got []string
	for _, ev := range c.all(func(ev *Event) bool { return ev.Header.TGID == pid && ev.Header.Flags&HeaderIOURing != 0 }) {
		p := &ev.Path
		if p.Result == -int32(unix.EBADF) {
			continue // the helper's question whether there is an ftruncate
		}
		full := func(base, text []byte) string {
			if len(base) > 0 && len(text) > 0 {
				return string(base) + "/" + string(text)
			}
			return string(base) + string(text)
		}
		got = append(got, fmt.Sprint(ev.Header.Action, " ", full(p.Base, p.Path), " > ", full(p.TargetBase, p.Target), " ", p.Result, " ", p.Number, " ", p.NewMode, " flags ", p.PathFlags|p.TargetFlags, " ", ev.Header.Flags))
	}
	equal(t, "events", "\n"+strings.Join(got, "\n"), "\n"+strings.Join(want, "\n"))
	for class, s := range checkCounters(t, c.k) {
		s.Errors[ErrorPath] = 0 // of the helper's question
		if s.Errors != [NumErrors]uint64{} {
			t.Errorf("%s: errors %v", Class(class), s.Errors)
		}
	}
}

func init() {
	// ring-sockets: a raw socket, a bind that works, one that does not, listen, a datagram by sendmsg.
	helpers["ring-sockets"] = func(args []string) error {
		u, err := newURing()
		if err != nil {
			return err
		}
		if fd, err := u.do(sqe{opcode: 45, fd: unix.AF_INET, off: unix.SOCK_RAW, len: unix.IPPROTO_ICMP}); err != nil || fd < 0 {
			return fmt.Errorf("socket: %d, %v", fd, err)
		}
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		addr := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: [4]byte{127, 0, 0, 1}}
		for range 2 {
			res, err := u.do(sqe{opcode: 56, fd: int32(s), addr: uint64(uintptr(unsafe.Pointer(addr))), off: unix.SizeofSockaddrInet4})
			if err != nil {
				return err
			}
			fmt.Println(res)
		}
		res, err := u.do(sqe{opcode: 57, fd: int32(s), len: 5})
		if err != nil {
			return err
		}
		fmt.Println(res)
		if s, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0); err != nil {
			return err
		}
		to := netip.MustParseAddrPort(args[0])
		addr = &unix.RawSockaddrInet4{Family: unix.AF_INET, Port: to.Port()<<8 | to.Port()>>8, Addr: to.Addr().As4()}
		message := &unix.Msghdr{Name: (*byte)(unsafe.Pointer(addr)), Namelen: unix.SizeofSockaddrInet4}
		if res, err := u.do(sqe{opcode: 9, fd: int32(s), addr: uint64(uintptr(unsafe.Pointer(message))), len: 1}); err != nil || res != 0 {
			return fmt.Errorf("sendmsg: %d, %v", res, err)
		}
		return nil
	}
}

// TestURingSockets: sockets that are made, bound, listened on and sent from through an io_uring.
func TestURingSockets(t *testing.T) {
	c := sensor(t)
	needURing(t, c.k)
	cmd := helper(t, "ring-sockets", "127.0.0.1:9")
	var out strings.Builder
	cmd.Stdout = &out
	pid := run(t, cmd)
	c.settle(t)
	e := &c.wait(t, "socket", by(pid, ActionSocket)).Conn
	if e.Family != unix.AF_INET || e.Type != unix.SOCK_RAW || e.Protocol != unix.IPPROTO_ICMP || e.Result < 0 {
		t.Errorf("socket: %+v", e.ConnFields)
	}
	ev := c.wait(t, "send", by(pid, ActionSend))
	equal(t, "destination", ev.Conn.Remote().String(), "127.0.0.1:9")
	equal(t, "call", ev.Syscall(), "sendmsg")
	equal(t, "flags", ev.Header.Flags, HeaderIOURing)
	einval := fmt.Sprint(-int32(unix.EINVAL))
	results := strings.Fields(out.String())
	if results[0] == einval {
		t.Logf("this kernel has no bind and listen through an io_uring")
		return
	}
	binds, listens := c.all(by(pid, ActionBind)), c.all(by(pid, ActionListen))
	if len(binds) != 2 || len(listens) != 1 {
		t.Fatalf("%d binds, %d listens", len(binds), len(listens))
	}
	for i, b := range binds {
		equal(t, "result", fmt.Sprint(b.Conn.Result), results[i])
		if b.Conn.Local().Port() == 0 || b.Header.Flags != HeaderIOURing {
			t.Errorf("bound to %s, flags %#x", b.Conn.Local(), b.Header.Flags)
		}
	}
	equal(t, "listens on", listens[0].Conn.Local(), binds[0].Conn.Local())
	equal(t, "backlog", listens[0].Conn.Backlog, 5)
}
