package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// uring is an io_uring by hand: one operation at a time.
type uring struct {
	fd             int
	sq, cq, sqes   []byte
	sqTail, cqHead *uint32
	cqTail         *uint32
	sqArray, cqes  int // where they begin
	mask           uint32
}

func newURing() (*uring, error) {
	p := make([]uint32, 30) // struct io_uring_params
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&p[0])), 0)
	if errno != 0 {
		return nil, errno
	}
	u := &uring{fd: int(fd)}
	sq, cq := p[10:20], p[20:30] // struct io_sqring_offsets, io_cqring_offsets
	var err error
	if u.sq, err = unix.Mmap(u.fd, 0, int(sq[6]+p[0]*4), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, err
	}
	if u.cq, err = unix.Mmap(u.fd, 0x8000000, int(cq[5]+p[1]*16), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, err
	}
	if u.sqes, err = unix.Mmap(u.fd, 0x10000000, int(p[0])*64, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, err
	}
	u.sqTail, u.cqHead, u.cqTail = at32(u.sq, sq[1]), at32(u.cq, cq[0]), at32(u.cq, cq[1])
	u.sqArray, u.cqes, u.mask = int(sq[6]), int(cq[5]), *at32(u.cq, cq[2])
	return u, nil
}

func at32(b []byte, at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&b[at])) }

// sqe is struct io_uring_sqe, as far as it is needed.
type sqe struct {
	opcode, flags uint8
	ioprio        uint16
	fd            int32
	off, addr     uint64
	len, opFlags  uint32
	_             [2]uint64
	addr3         uint64
	_             uint64
}

// submit submits an operation and does not wait for it.
func (u *uring) submit(op sqe) error { return u.enter(op, 0) }

func (u *uring) enter(op sqe, wait uintptr) error {
	*(*sqe)(unsafe.Pointer(&u.sqes[0])) = op
	*at32(u.sq, uint32(u.sqArray)+4*(*u.sqTail&3)) = 0
	atomic.AddUint32(u.sqTail, 1)
	if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), 1, wait, wait /* IORING_ENTER_GETEVENTS */, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// do submits an operation and waits for its result.
func (u *uring) do(op sqe) (int32, error) {
	if err := u.enter(op, 1); err != nil {
		return 0, err
	}
	head := *u.cqHead
	if atomic.LoadUint32(u.cqTail) == head {
		return 0, errors.New("no completion")
	}
	res := *(*int32)(unsafe.Pointer(&u.cq[u.cqes+int(head&u.mask)*16+8]))
	atomic.StoreUint32(u.cqHead, head+1)
	return res, nil
}

func init() {
	// uring DIR PORT: opens a file for writing, fails to open one, connects, fails to connect.
	helpers["uring"] = func(args []string) error {
		u, err := newURing()
		if err != nil {
			return err
		}
		fdcwd := int32(unix.AT_FDCWD)
		open := func(path string) (int32, error) {
			return u.do(sqe{opcode: 18, fd: fdcwd, addr: uint64(cstr(path)), len: 0o600, opFlags: unix.O_CREAT | unix.O_WRONLY})
		}
		if fd, err := open(args[0] + "/by-ring"); err != nil || fd < 0 {
			return fmt.Errorf("open: %d, %v", fd, err)
		}
		if fd, err := open(args[0] + "/none/by-ring"); err != nil || fd != -int32(unix.ENOENT) {
			return fmt.Errorf("open: %d, %v", fd, err)
		}
		for _, a := range args[1:] {
			connect, err := connectTo(a)
			if err != nil {
				return err
			}
			res, err := u.do(connect)
			if err != nil {
				return err
			}
			fmt.Println(res)
		}
		return nil
	}
}

// connectTo is the request for a connect of a new socket to an address.
func connectTo(address string) (sqe, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return sqe{}, err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return sqe{}, err
	}
	addr := &unix.RawSockaddrInet4{Family: unix.AF_INET, Port: at.Port()<<8 | at.Port()>>8, Addr: at.Addr().As4()}
	kept = append(kept, (*byte)(unsafe.Pointer(addr)))
	return sqe{opcode: 16, fd: int32(s), addr: uint64(uintptr(unsafe.Pointer(addr))), off: unix.SizeofSockaddrInet4}, nil
}

// needURing skips the test where the kernel has no io_uring; it fails where it has one that is not seen.
func needURing(t *testing.T, k *Kernel) {
	t.Helper()
	missing := slices.DeleteFunc(k.Unseen(), func(what string) bool { return !strings.Contains(what, "io_uring") })
	if len(missing) == 0 {
		return
	}
	if u, err := newURing(); err == nil {
		unix.Close(u.fd)
		t.Fatalf("the kernel has io_uring, and the sensor does not see %v", missing)
	}
	t.Skipf("SKIPPED (needs io_uring, which this kernel has not): %v", missing)
}

// TestURing: an open and a connect through an io_uring are events like any other.
func TestURing(t *testing.T) {
	c := sensor(t)
	needURing(t, c.k)
	dir := t.TempDir()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	there, refused := l.Addr().String(), closed(t, "127.0.0.1:0").String()
	pid := run(t, helper(t, "uring", dir, there, refused))
	c.settle(t)
	opens := c.all(func(ev *Event) bool { return by(pid, ActionOpen)(ev) && filepath.Dir(string(ev.Open.Path)) == dir })
	if len(opens) != 1 {
		t.Fatalf("%d opens", len(opens))
	}
	o, h := &opens[0].Open, &opens[0].Header
	if string(o.Path) != dir+"/by-ring" || o.Access != OpenWrite|OpenCreated || o.Flags&unix.O_CREAT == 0 || h.Flags != HeaderIOURing || opens[0].Syscall() != "openat" {
		t.Errorf("%+v %q by %s, header flags %#x", o.OpenFields, o.Path, opens[0].Syscall(), h.Flags)
	}
	var got []string
	for _, ev := range c.all(by(pid, ActionConnect)) {
		got = append(got, fmt.Sprint(ev.Conn.Result, " ", ev.Conn.Remote(), " ", ev.Header.Flags))
	}
	want := []string{fmt.Sprint(0, " ", there, " ", HeaderIOURing), fmt.Sprint(-int(unix.ECONNREFUSED), " ", refused, " ", HeaderIOURing)}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("connects %q, want %q", got, want)
	}
}

func init() {
	// ring-asked DIR TO...: opens and connects whose success the caller does not want to be told of.
	helpers["ring-asked"] = func(args []string) error {
		if err := os.Chdir(args[0]); err != nil {
			return err
		}
		dir, err := unix.Open(args[0]+"/sub", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		u, err := newURing()
		if err != nil {
			return err
		}
		quietly := func(op sqe) error {
			op.flags = 1 << 6 // IOSQE_CQE_SKIP_SUCCESS
			if err := u.submit(op); err != nil {
				return err
			}
			_, err := u.do(sqe{flags: 1 << 1 /* IOSQE_IO_DRAIN */}) // done when the other is
			return err
		}
		for _, o := range []struct {
			dir   int32
			path  string
			flags uint32
		}{
			{unix.AT_FDCWD, args[0] + "/absolute", unix.O_CREAT | unix.O_WRONLY},
			{unix.AT_FDCWD, "relative", unix.O_CREAT | unix.O_RDWR},
			{int32(dir), "of-a-directory", unix.O_CREAT | unix.O_WRONLY},
			{unix.AT_FDCWD, "secret", unix.O_RDONLY},
			{unix.AT_FDCWD, "unwatched", unix.O_RDONLY},
			{unix.AT_FDCWD, "", unix.O_WRONLY},
		} {
			if err := quietly(sqe{opcode: 18, fd: o.dir, addr: uint64(cstr(o.path)), len: 0o600, opFlags: o.flags}); err != nil {
				return err
			}
		}
		for _, a := range args[1:] {
			connect, err := connectTo(a)
			if err != nil {
				return err
			}
			if err := quietly(connect); err != nil {
				return err
			}
		}
		return nil
	}
}

// TestURingAsked: who does not want to be told that an open or a connect worked is seen all the same.
func TestURingAsked(t *testing.T) {
	c := sensor(t)
	needURing(t, c.k)
	dir := t.TempDir()
	for _, f := range []string{"secret", "unwatched"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.k.SetWatchedPaths([]string{dir + "/secret"}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	there, refused := l.Addr().String(), closed(t, "127.0.0.1:0").String()
	pid := run(t, helper(t, "ring-asked", dir, there, refused))
	c.settle(t)
	for _, f := range []string{"absolute", "relative", "sub/of-a-directory"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			t.Errorf("was not opened: %v", err)
		}
	}
	var got []string
	for _, ev := range c.all(func(ev *Event) bool {
		return by(pid, ActionOpen)(ev) && strings.HasPrefix(string(ev.Open.Path), dir)
	}) {
		o := &ev.Open
		got = append(got, fmt.Sprintf("%s access %d flags %#o, %#x of %d %#o, %s %#x", strings.TrimPrefix(string(o.Path), dir), o.Access, o.Flags&0o103, o.PathFlags, o.Ino, o.Mode, ev.Syscall(), ev.Header.Flags))
	}
	equal(t, "opens", strings.Join(got, "\n"), strings.Join([]string{
		"/absolute access 2 flags 0101, 0x20 of 0 0100000, openat 0x4",
		"/relative access 3 flags 0102, 0x20 of 0 0100000, openat 0x4",
		"/sub/of-a-directory access 2 flags 0101, 0x20 of 0 0100000, openat 0x4",
		"/secret access 9 flags 0, 0x20 of 0 0100000, openat 0x4",
	}, "\n"))
	got = nil
	for _, ev := range c.all(by(pid, ActionConnect)) {
		got = append(got, fmt.Sprint(ev.Conn.Result, " ", ev.Conn.Remote(), " ", ev.Header.Flags))
	}
	equal(t, "connects", strings.Join(got, "\n"), strings.Join([]string{
		fmt.Sprint(-int(unix.EINPROGRESS), " ", there, " ", HeaderIOURing),
		fmt.Sprint(-int(unix.EINPROGRESS), " ", refused, " ", HeaderIOURing),
		fmt.Sprint(-int(unix.ECONNREFUSED), " ", refused, " ", HeaderIOURing),
	}, "\n"))
	for class, s := range checkCounters(t, c.k) {
		if s.Errors != [NumErrors]uint64{} {
			t.Errorf("%s: errors %v", Class(class), s.Errors)
		}
	}
}
