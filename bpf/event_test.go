package bpf

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unsafe"
)

var update = flag.Bool("update", false, "write the golden records of testdata anew")

// encode writes a record as the kernel would.
func encode(h Header, fixed any, strings ...string) []byte {
	var tail bytes.Buffer
	if err := binary.Write(&tail, binary.LittleEndian, fixed); err != nil {
		panic(err)
	}
	for _, s := range strings {
		tail.WriteString(s)
	}
	h.Version = LayoutVersion
	h.Size = uint32(int(unsafe.Sizeof(h)) + tail.Len())
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, h); err != nil {
		panic(err)
	}
	b.Write(tail.Bytes())
	return b.Bytes()
}

// number gives every field of a struct another value, so that no two can be mistaken for each other.
func number[T fixed](first byte) T {
	var v T
	b := unsafe.Slice((*byte)(unsafe.Pointer(&v)), unsafe.Sizeof(v))
	for i := range b {
		b[i] = first + byte(i)
	}
	return v
}

type record struct {
	name  string
	bytes []byte
	want  func() Event
}

func records() []record {
	header := func(c Class, a Action) Header {
		h := number[Header](1)
		h.Class, h.Action = c, a
		return h
	}
	sized := func(h Header, b []byte) Header {
		h.Version, h.Size = LayoutVersion, uint32(len(b))
		return h
	}
	exec := ExecEvent{ExecFields: number[ExecFields](50)}
	exec.Filename, exec.Exe, exec.Cwd, exec.Args, exec.Env = []byte("./true"), []byte("/bin/true"), []byte("/bin"), []byte("true\x00\xff\x00"), []byte("A=b\x00")
	exec.FilenameLen, exec.ExeLen, exec.CwdLen, exec.ArgsLen, exec.EnvLen = 6, 9, 4, 7, 4
	open := OpenEvent{OpenFields: number[OpenFields](90), Path: []byte("/etc/passwd"), Link: []byte("/etc/shadow"), Source: []byte("/p")}
	open.PathLen, open.LinkLen, open.SourceLen = 11, 11, 2
	change := PathEvent{PathFields: number[PathFields](110), Base: []byte("/tmp"), Path: []byte("a"), TargetBase: []byte("/var/tmp"), Target: []byte("../bc")}
	change.BaseLen, change.PathLen, change.TargetBaseLen, change.TargetLen = 4, 1, 8, 5
	fork, exit, conn := number[ForkEvent](70), number[ExitEvent](80), ConnEvent{ConnFields: number[ConnFields](100), Path: []byte("\x00abstract")}

	conn.PathLen = 9
	he, ho, hf, hx, hc := header(ClassProcess, ActionExec), header(ClassFile, ActionOpen), header(ClassProcess, ActionFork), header(ClassProcess, ActionExit), header(ClassNetwork, ActionConnect)
	be := encode(he, exec.ExecFields, "./true", "/bin/true", "/bin", "true\x00\xff\x00", "A=b\x00")
	bo := encode(ho, open.OpenFields, "/etc/passwd", "/etc/shadow", "/p")
	hp := header(ClassFile, ActionRename)
	bp := encode(hp, change.PathFields, "/tmp", "a", "/var/tmp", "../bc")
	call := CallEvent{CallFields: number[CallFields](120), Base: []byte("/tmp"), Path: []byte("a"), TargetBase: []byte("/var/tmp"), Target: []byte("../bc")}
	call.BaseLen, call.PathLen, call.TargetBaseLen, call.TargetLen = 4, 1, 8, 5
	hk := header(ClassKernel, ActionCall)
	bk := encode(hk, call.CallFields, "/tmp", "a", "/var/tmp", "../bc")
	cgroup := CgroupEvent{CgroupFields: number[CgroupFields](130), Path: []byte("/kubepods")}
	cgroup.PathLen = 9
	hg := header(ClassProcess, ActionCgroup)
	bg := encode(hg, cgroup.CgroupFields, "/kubepods")
	dns := DNSEvent{DNSFields: number[DNSFields](140), Data: []byte("question")}
	dns.DataLen, dns.Messages = 8, 2
	hd := header(ClassDNS, ActionQuery)
	bd := encode(hd, dns.DNSFields, "question")
	bf, bx, bc := encode(hf, fork), encode(hx, exit), encode(hc, conn.ConnFields, "\x00abstract")
	return []record{
		{"exec", be, func() Event { return Event{Header: sized(he, be), Exec: exec} }},
		{"open", bo, func() Event { return Event{Header: sized(ho, bo), Open: open} }},
		{"rename", bp, func() Event { return Event{Header: sized(hp, bp), Path: change} }},
		{"call", bk, func() Event { return Event{Header: sized(hk, bk), Call: call} }},
		{"cgroup", bg, func() Event { return Event{Header: sized(hg, bg), Cgroup: cgroup} }},
		{"query", bd, func() Event { return Event{Header: sized(hd, bd), DNS: dns} }},
		{"fork", bf, func() Event { return Event{Header: sized(hf, bf), Fork: fork} }},
		{"exit", bx, func() Event { return Event{Header: sized(hx, bx), Exit: exit} }},
		{"connect", bc, func() Event { return Event{Header: sized(hc, bc), Conn: conn} }},
	}
}

func TestDecode(t *testing.T) {
	for _, r := range records() {
		t.Run(r.name, func(t *testing.T) {
			var ev Event
			if err := Decode(r.bytes, &ev); err != nil {
				t.Fatal(err)
			}
			if want := r.want(); !reflect.DeepEqual(ev, want) {
				t.Errorf("got  %+v\nwant %+v", ev, want)
			}
			// The bytes are a format of ours: they change only together with LayoutVersion.
			golden := filepath.Join("testdata", r.name+".hex")
			dump := hex.Dump(r.bytes)
			if *update {
				if err := os.WriteFile(golden, []byte(dump), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if dump != string(want) {
				t.Errorf("%s differs: has LayoutVersion changed with it? (-update writes it)\n%s", golden, dump)
			}
		})
	}
}

// TestDecodeTruncated: every record cut anywhere, and with more behind it, is refused.
func TestDecodeTruncated(t *testing.T) {
	for _, r := range records() {
		var ev Event
		for n := range r.bytes {
			if err := Decode(r.bytes[:n], &ev); !errors.Is(err, ErrBadRecord) {
				t.Fatalf("%s cut after %d bytes: %v", r.name, n, err)
			}
			// The same with a size that fits the cut.
			if n >= int(unsafe.Sizeof(Header{})) {
				b := bytes.Clone(r.bytes[:n])
				binary.LittleEndian.PutUint32(b, uint32(n))
				if err := Decode(b, &ev); !errors.Is(err, ErrBadRecord) {
					t.Fatalf("%s shortened to %d bytes: %v", r.name, n, err)
				}
			}
		}
		// The place of a DNS message is reserved for the longest, so more may be behind it.
		if err := Decode(append(bytes.Clone(r.bytes), 0), &ev); errors.Is(err, ErrBadRecord) == (r.name == "query") {
			t.Errorf("%s with a byte more: %v", r.name, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	long := strings.Repeat("x", MaxPath+1)
	open := OpenFields{PathLen: uint32(len(long))}
	h := Header{Class: ClassFile, Action: ActionOpen}
	tooLong := encode(h, open, long)
	overflow := encode(Header{Class: ClassProcess, Action: ActionExec}, ExecFields{FilenameLen: 1 << 31, ExeLen: 1 << 31})
	version := encode(h, OpenFields{})
	version[4] = LayoutVersion + 1
	for _, tt := range []struct {
		name string
		b    []byte
		err  string
	}{
		{"nothing", nil, "malformed kernel record: 0 bytes are less than its header"},
		{"another version", version, fmt.Sprintf("layout version %d, this program reads %d", LayoutVersion+1, LayoutVersion)},
		{"another action", encode(Header{Action: 99}, ExitEvent{}), "unknown action(99)"},
		{"another class", encode(Header{Class: 7, Action: ActionExit}, ExitEvent{}), "exit in class(7)"},
		{"a path beyond the bound", tooLong, "does not fit its lengths"},
		{"lengths that overflow together", overflow, "does not fit its lengths"},
	} {
		var ev Event
		if err := Decode(tt.b, &ev); !errors.Is(err, ErrBadRecord) || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want …%s", tt.name, err, tt.err)
		}
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	var ev Event
	for _, r := range records() {
		if n := testing.AllocsPerRun(100, func() {
			if err := Decode(r.bytes, &ev); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", r.name, n)
		}
	}
}

func TestAddresses(t *testing.T) {
	for _, tt := range []struct {
		family uint16
		bytes  []byte
		want   string
	}{
		{2, []byte{10, 1, 2, 3}, "10.1.2.3:443"},
		{10, append(make([]byte, 15), 1), "[::1]:443"},
		{10, []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 2, 3}, "10.1.2.3:443"},
	} {
		c := ConnEvent{ConnFields: ConnFields{Family: tt.family, RemotePort: 443, LocalPort: 443}}
		copy(c.RemoteAddr[:], tt.bytes)
		copy(c.LocalAddr[:], tt.bytes)
		if want := netip.MustParseAddrPort(tt.want); c.Remote() != want || c.Local() != want {
			t.Errorf("%v, %v, want %v", c.Remote(), c.Local(), want)
		}
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		ClassProcess.String(): "process", ClassFile.String(): "file", ClassNetwork.String(): "network", Class(9).String(): "class(9)",
		ActionExec.String(): "exec", ActionFork.String(): "fork", ActionExit.String(): "exit",
		ActionOpen.String(): "open", ActionConnect.String(): "connect", ActionAccept.String(): "accept",
		ErrorPath.String(): "path", ErrorStorage.String(): "storage", ErrorKind(-1).String(): "error(-1)",
		String([]byte("pts3\x00\x00")): "pts3", String([]byte("sixteen bytes ..")): "sixteen bytes ..",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// FuzzDecode: whatever the bytes, decoding ends, with an error or with slices that are within them.
func FuzzDecode(f *testing.F) {
	for _, r := range records() {
		f.Add(r.bytes)
		f.Add(r.bytes[:len(r.bytes)-1])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var ev Event
		err := Decode(b, &ev)
		if err != nil {
			if !errors.Is(err, ErrBadRecord) {
				t.Fatalf("%v is no ErrBadRecord", err)
			}
			return
		}
		n := int(unsafe.Sizeof(ev.Header))
		switch ev.Header.Action {
		case ActionExec:
			e := &ev.Exec
			n += int(unsafe.Sizeof(e.ExecFields)) + len(e.Filename) + len(e.Exe) + len(e.Cwd) + len(e.Args) + len(e.Env)
			// Together they are the record's end, in this order.
			if got := bytes.Join([][]byte{e.Filename, e.Exe, e.Cwd, e.Args, e.Env}, nil); !bytes.HasSuffix(b, got) {
				t.Fatal("strings are not the record's end")
			}
		case ActionFork:
			n += int(unsafe.Sizeof(ev.Fork))
		case ActionExit:
			n += int(unsafe.Sizeof(ev.Exit))
		case ActionOpen:
			o := &ev.Open
			n += int(unsafe.Sizeof(o.OpenFields)) + len(o.Path) + len(o.Link) + len(o.Source)
			if got := bytes.Join([][]byte{o.Path, o.Link, o.Source}, nil); !bytes.HasSuffix(b, got) {
				t.Fatal("strings are not the record's end")
			}
		case ActionConnect, ActionAccept, ActionDup, ActionSocket, ActionBind, ActionListen, ActionSend, ActionClose:
			n += int(unsafe.Sizeof(ev.Conn.ConnFields)) + len(ev.Conn.Path)
			if !bytes.HasSuffix(b, ev.Conn.Path) {
				t.Fatal("the path is not the record's end")
			}
		case ActionCall:
			c := &ev.Call
			n += int(unsafe.Sizeof(c.CallFields)) + len(c.Base) + len(c.Path) + len(c.TargetBase) + len(c.Target)
			if got := bytes.Join([][]byte{c.Base, c.Path, c.TargetBase, c.Target}, nil); !bytes.HasSuffix(b, got) {
				t.Fatal("strings are not the record's end")
			}
		case ActionRename, ActionUnlink, ActionRmdir, ActionMkdir, ActionLink, ActionSymlink, ActionChmod, ActionChown,
			ActionMknod, ActionTruncate, ActionUtimes, ActionSetxattr, ActionRemovexattr:
			p := &ev.Path
			n += int(unsafe.Sizeof(p.PathFields)) + len(p.Base) + len(p.Path) + len(p.TargetBase) + len(p.Target)
			if got := bytes.Join([][]byte{p.Base, p.Path, p.TargetBase, p.Target}, nil); !bytes.HasSuffix(b, got) {
				t.Fatal("strings are not the record's end")
			}
		case ActionCgroup:
			n += int(unsafe.Sizeof(ev.Cgroup.CgroupFields)) + len(ev.Cgroup.Path)
		case ActionQuery, ActionResponse:
			n += int(unsafe.Sizeof(ev.DNS.DNSFields)) + len(ev.DNS.Data)
			b = b[:min(len(b), int(ev.Header.Size))]
			if !bytes.HasSuffix(b, ev.DNS.Data) {
				t.Fatal("the data are not the record's end")
			}
		default:
			t.Fatalf("%s was decoded", ev.Header.Action)
		}
		if n != len(b) || ev.Header.Size != uint32(n) {
			t.Fatalf("%d of %d bytes were decoded", n, len(b))
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for _, r := range records() {
		b.Run(r.name, func(b *testing.B) {
			var ev Event
			b.ReportAllocs()
			for b.Loop() {
				if err := Decode(r.bytes, &ev); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
