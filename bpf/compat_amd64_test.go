package bpf

import (
	"encoding/binary"
	"net/netip"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// program assembles 32-bit x86 system calls. Code and data have fixed places in the tiny ELF file.
type program struct {
	code, data []byte
	base       uint32 // address of the code
}

const dataOffset = 1024

// put stores data and returns its address.
func (p *program) put(b []byte) uint32 {
	at := p.base + dataOffset + uint32(len(p.data))
	p.data = append(p.data, b...)
	return at
}

func (p *program) words(ws ...uint32) uint32 {
	var b []byte
	for _, w := range ws {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return p.put(b)
}

func (p *program) op(opcode []byte, v uint32) {
	p.code = binary.LittleEndian.AppendUint32(append(p.code, opcode...), v)
}

// call does a system call with up to four arguments, by int 0x80.
func (p *program) call(nr uint32, args ...uint32) {
	for i, a := range args {
		p.op([]byte{[]byte{0xbb, 0xb9, 0xba, 0xbe}[i]}, a) // mov ebx, ecx, edx, esi
	}
	p.op([]byte{0xb8}, nr)              // mov eax
	p.code = append(p.code, 0xcd, 0x80) // int 0x80
}

func (p *program) bytes() []byte {
	b := make([]byte, dataOffset)
	copy(b, p.code)
	return append(b, p.data...)
}

// TestCompat: 32-bit system calls, of a 32-bit program and by int 0x80 of a 64-bit one.
func TestCompat(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	at := listen(t, "tcp4", "127.0.0.1:0")
	const wrCreat, tcp = unix.O_WRONLY | unix.O_CREAT, unix.SOCK_STREAM
	atFDCWD := uint32(0xffffff9c)

	for _, tt := range []struct {
		name string
		bits int
		base uint32
	}{{"elf32", 32, 0x400000 + 52 + 32}, {"elf64", 64, 0x400000 + 64 + 56}} {
		t.Run(tt.name, func(t *testing.T) {
			p := &program{base: tt.base}
			var files []string
			path := func(name string) uint32 {
				files = append(files, filepath.Join(dir, tt.name+name))
				return p.put(append([]byte(files[len(files)-1]), 0))
			}
			how := p.words(wrCreat, 0, 0o600, 0, 0, 0)
			p.call(5, path("open"), wrCreat, 0o600)
			p.call(8, path("creat"), 0o600)
			p.call(295, atFDCWD, path("openat"), wrCreat, 0o600)
			p.call(437, atFDCWD, path("openat2"), how, 24)
			connects := 0
			if tt.bits == 32 {
				// struct sockaddr_in
				addr := p.put(append(binary.BigEndian.AppendUint16([]byte{unix.AF_INET, 0}, at.Port()), 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0))
				p.call(102, 1, p.words(unix.AF_INET, tcp, 0)) // socketcall(SYS_SOCKET)
				args := p.words(0, addr, 16)
				p.op([]byte{0xa3}, args)          // mov [args], eax
				p.call(102, 3, args)              // socketcall(SYS_CONNECT)
				p.call(359, unix.AF_INET, tcp, 0) // socket
				p.op([]byte{0xa3}, args)
				p.op([]byte{0x8b, 0x1d}, args) // mov ebx, [args]
				p.op([]byte{0xb9}, addr)
				p.op([]byte{0xba}, 16)
				p.op([]byte{0xb8}, 362) // connect
				p.code = append(p.code, 0xcd, 0x80)
				connects = 2
			}
			p.call(252, 0) // exit_group
			file := filepath.Join(dir, tt.name)
			writeProgram(t, file, tinyELF(tt.bits, p.bytes()))
			pid := fork(t, file, []string{file}, nil)
			c.settle(t)

			opens := c.all(by(pid, ActionOpen))
			if len(opens) != len(files) {
				t.Fatalf("%d opens, want %d", len(opens), len(files))
			}
			for i, ev := range opens {
				want := uint64(wrCreat)
				if i == 1 {
					want |= unix.O_TRUNC
				}
				if o := &ev.Open; string(o.Path) != files[i] || o.Flags != want || o.Access != OpenWrite|OpenCreated || ev.Header.Flags != HeaderCompat {
					t.Errorf("open %q, flags %#x, access %#x, header %#x; want %q, %#x", o.Path, o.Flags, o.Access, ev.Header.Flags, files[i], want)
				}
			}
			conns := c.all(by(pid, ActionConnect))
			if len(conns) != connects {
				t.Fatalf("%d connects, want %d", len(conns), connects)
			}
			for _, ev := range conns {
				if e := &ev.Conn; e.Remote() != netip.AddrPortFrom(at.Addr(), at.Port()) || e.Result != 0 || ev.Header.Flags != HeaderCompat {
					t.Errorf("connect to %v: %d, header %#x", e.Remote(), e.Result, ev.Header.Flags)
				}
			}
		})
	}
}

// TestCompatNumbers: 64-bit calls whose numbers mean something else to 32-bit programs are no events.
func TestCompatNumbers(t *testing.T) {
	c := sensor(t)
	pid := run(t, helper(t, "numbers"))
	c.settle(t)
	if evs := c.all(func(ev *Event) bool { return ev.Header.TGID == pid && ev.Header.Class != ClassProcess }); len(evs) > 0 {
		t.Errorf("%d events, the first a %s", len(evs), evs[0].Header.Action)
	}
}

func init() {
	helpers["numbers"] = func([]string) error {
		fd, err := unix.Open("/", unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		for _, nr := range []uintptr{5, 8, 102, 295} { // fstat, lseek, getuid, preadv
			var stat syscall.Stat_t
			_, _, errno := unix.Syscall6(nr, uintptr(fd), uintptr(unsafe.Pointer(&stat)), 0, 0, 0, 0)
			if errno == unix.ENOSYS {
				return errno
			}
		}
		return nil
	}
}

// TestUnwantedSocketcall: a call that is not wanted is not told either where the 32-bit call for all sockets stands
// for it.
func TestUnwantedSocketcall(t *testing.T) {
	k := mustLoad(t, options(t))
	c := collect(t, k)
	at := listen(t, "tcp4", "127.0.0.1:0")
	p := &program{base: 0x400000 + 52 + 32}
	addr := p.put(append(binary.BigEndian.AppendUint16([]byte{unix.AF_INET, 0}, at.Port()), 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0))
	p.call(102, 1, p.words(unix.AF_INET, unix.SOCK_STREAM, 0)) // socketcall(SYS_SOCKET)
	args := p.words(0, addr, 16)
	p.op([]byte{0xa3}, args) // mov [args], eax
	p.call(102, 3, args)     // socketcall(SYS_CONNECT)
	p.call(252, 0)           // exit_group
	file := filepath.Join(t.TempDir(), "connect")
	writeProgram(t, file, tinyELF(32, p.bytes()))
	connects := func() int {
		pid := fork(t, file, []string{file}, nil)
		c.settle(t)
		return len(c.all(by(pid, ActionConnect)))
	}
	if n := connects(); n != 1 {
		t.Fatalf("%d connects, want 1", n)
	}
	if err := k.SetUnwanted([]string{"bind"}); err != nil {
		t.Fatal(err)
	}
	if n := connects(); n != 1 {
		t.Errorf("another call is unwanted: %d connects, want 1", n)
	}
	if err := k.SetUnwanted([]string{"connect"}); err != nil {
		t.Fatal(err)
	}
	pid := fork(t, file, []string{file}, nil)
	c.wait(t, "its exit", by(pid, ActionExit))
	run(t, helper(t, "socket", "0", t.TempDir())) // a later event of the class
	c.wait(t, "a socket", func(ev *Event) bool { return ev.Header.Action == ActionSocket })
	if n := len(c.all(by(pid, ActionConnect))); n != 0 {
		t.Errorf("%d connects that are not wanted", n)
	}
}
