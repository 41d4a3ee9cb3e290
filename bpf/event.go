package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"structs"
	"unsafe"
)

// LayoutVersion is the version of the records' layout. A record of another version is refused by [Decode].
const LayoutVersion = 4

// Class says which kind of thing an event tells about. Its number is the index into the kernel's counters
// and the ledger, and does not depend on which ring buffer carries the event.
type Class uint16

// The classes. NumClasses bounds every array over them.
const (
	ClassProcess Class = 0
	ClassFile    Class = 1
	ClassNetwork Class = 2
	ClassKernel  Class = 3
	ClassDNS     Class = 4
	NumClasses         = 5
)

// String returns the class's name as the rest of Picket writes it.
func (c Class) String() string {
	switch c {
	case ClassProcess:
		return "process"
	case ClassFile:
		return "file"
	case ClassNetwork:
		return "network"
	case ClassKernel:
		return "kernel"
	case ClassDNS:
		return "dns"
	}
	return fmt.Sprintf("class(%d)", uint16(c))
}

// Action says what happened.
type Action uint16

// The actions; each has its own part of [Event].
const (
	ActionExec        Action = 1
	ActionFork        Action = 2
	ActionExit        Action = 3
	ActionCgroup      Action = 4 // no event: see CgroupEvent
	ActionOpen        Action = 16
	ActionRename      Action = 17
	ActionUnlink      Action = 18
	ActionRmdir       Action = 19
	ActionMkdir       Action = 20
	ActionLink        Action = 21
	ActionSymlink     Action = 22
	ActionChmod       Action = 23
	ActionChown       Action = 24
	ActionMknod       Action = 25
	ActionTruncate    Action = 26
	ActionUtimes      Action = 27
	ActionSetxattr    Action = 28
	ActionRemovexattr Action = 29
	ActionConnect     Action = 32
	ActionAccept      Action = 33
	ActionDup         Action = 34
	ActionSocket      Action = 35
	ActionBind        Action = 36
	ActionListen      Action = 37
	ActionSend        Action = 38
	ActionClose       Action = 39
	// ActionCall is every call of ClassKernel: its name says which (Event.Syscall).
	ActionCall     Action = 48
	ActionQuery    Action = 64
	ActionResponse Action = 65
)

var actionNames = map[Action]string{
	ActionExec: "exec", ActionFork: "fork", ActionExit: "exit", ActionCgroup: "cgroup",
	ActionOpen: "open", ActionRename: "rename", ActionUnlink: "unlink", ActionRmdir: "rmdir", ActionMkdir: "mkdir",
	ActionLink: "link", ActionSymlink: "symlink", ActionChmod: "chmod", ActionChown: "chown",
	ActionMknod: "mknod", ActionTruncate: "truncate", ActionUtimes: "utimes", ActionSetxattr: "setxattr", ActionRemovexattr: "removexattr",
	ActionConnect: "connect", ActionAccept: "accept", ActionDup: "dup", ActionSocket: "socket", ActionBind: "bind", ActionListen: "listen", ActionSend: "send", ActionClose: "close", ActionCall: "call", ActionQuery: "query", ActionResponse: "response",
}

// String returns the action's name as the rest of Picket writes it.
func (a Action) String() string {
	if n, ok := actionNames[a]; ok {
		return n
	}
	return fmt.Sprintf("action(%d)", uint16(a))
}

// Bits of Header.Flags.
const (
	HeaderKernelThread uint16 = 1 << 0 // the acting task is a kernel thread
	HeaderCompat       uint16 = 1 << 1 // reached through a 32-bit system call
	HeaderIOURing      uint16 = 1 << 2 // asked for through an io_uring: no system call of that name was made
)

// Bits of ExecFields.ExeFlags, ExecFields.CwdFlags, OpenFields.PathFlags, and of PathFlags and TargetFlags of
// PathFields and CallFields.
const (
	PathTruncated uint32 = 1 << 0 // longer than MaxPath: the end (leaf side) is kept
	PathOutside   uint32 = 1 << 1 // does not lead to the task's root
	PathDeleted   uint32 = 1 << 2 // the name or the inode is unlinked
	PathFault     uint32 = 1 << 3 // a read failed on the way
	PathUser      uint32 = 1 << 4 // read from the caller's memory after the call
	PathAsked     uint32 = 1 << 5 // of an open that is only asked for: links in it were not followed, the file is not known
)

// Bits of ExecFields.Flags.
const (
	ExecArgsTruncated     uint32 = 1 << 0 // ArgsTotal is more than what Args carries
	ExecArgsFault         uint32 = 1 << 1 // the argument memory could not be read (all of it)
	ExecFilenameTruncated uint32 = 1 << 2
	ExecMemfd             uint32 = 1 << 3  // the executable is a memfd: it has no name in any file system
	ExecUpper             uint32 = 1 << 4  // on overlayfs: the executable is in the upper (writable) layer
	ExecScript            uint32 = 1 << 5  // Filename names a script, Exe its interpreter
	ExecSecure            uint32 = 1 << 6  // AT_SECURE: set-id or file capabilities took effect
	ExecFD                uint32 = 1 << 7  // by execveat, of a descriptor or relative to one
	ExecEnvTruncated      uint32 = 1 << 8  // the environment is longer than what Env carries
	ExecEnvFault          uint32 = 1 << 9  // the environment could not be read (all of it)
	ExecLower             uint32 = 1 << 10 // on overlayfs: the executable is in a lower layer alone
	ExecFileCapabilities  uint32 = 1 << 11 // capabilities of the executable file took effect
)

// Bits of OpenFields.Access, taken from the opened file itself.
const (
	OpenRead    uint32 = 1 << 0
	OpenWrite   uint32 = 1 << 1
	OpenCreated uint32 = 1 << 2 // this call created the file
	OpenWatched uint32 = 1 << 3 // the path is under a watched prefix
)

// Bits of ConnFields.Flags.
const (
	// ConnRemoteFromUser: the remote address was read from the caller's memory, because the kernel kept
	// none (the attempt failed before a packet was sent). The caller may have changed it meanwhile.
	ConnRemoteFromUser uint16 = 1 << 0
	// ConnLocalFromUser: the same of the local address of a bind that failed, or its path.
	ConnLocalFromUser uint16 = 1 << 1
	// ConnAccepted: the connection that is closed was accepted.
	ConnAccepted uint16 = 1 << 2
)

// Bounds of the strings in events, in bytes.
const (
	MaxPath = 4096 // each of Filename, Exe, Cwd, Path
	MaxArgs = 8192 // Args
	MaxEnv  = 8192 // Env

	MaxDNS = 4096 // DNSEvent.Data

	maxCgroupPath = 1024
	maxMessages   = 8   // DNSFields.Messages: MAX_MESSAGES of dns.h
	maxUnixPath   = 108 // ConnEvent.Path: sizeof(sockaddr_un.sun_path)
)

// NoID is the value of LoginUID and SessionID when they were never set.
const NoID uint32 = 0xffffffff

// Header starts every event: who acted, when, and which number the event has.
// Times are nanoseconds of CLOCK_BOOTTIME. Process ids are those of the initial pid namespace, user and
// group ids those of the initial user namespace, unless said otherwise.
type Header struct {
	_               structs.HostLayout
	Size            uint32 // of the whole record, bytes
	Version         uint16 // LayoutVersion
	Class           Class
	Action          Action
	Flags           uint16 // HeaderKernelThread, HeaderCompat
	CPU             uint32
	Seq             uint64 // per (CPU, Class): from 1, without gaps; 0: no event begins in this record
	Time            uint64
	StartTime       uint64 // of the acting process; with TGID it names a process for the life of the machine
	CgroupID        uint64 // inode of its directory, in the hierarchy that Options choose
	TGID            uint32
	TID             uint32
	NSPID           uint32 // process id in its own pid namespace
	ParentTGID      uint32
	ParentStartTime uint64
	PIDNS           uint32 // namespaces by inode number; 0 where the task has none left
	MntNS           uint32
	NetNS           uint32
	UserNS          uint32
	UID             uint32
	EUID            uint32
	GID             uint32
	EGID            uint32
	LoginUID        uint32 // NoID: not set
	SessionID       uint32 // NoID: not set
	Comm            [16]byte
}

// ExecFields is the fixed part of an exec event.
type ExecFields struct {
	_              structs.HostLayout
	CapEffective   uint64
	CapPermitted   uint64
	CapInheritable uint64
	ArgsTotal      uint64 // true length of the argument area, bytes
	ExeIno         uint64
	ExeCtime       int64  // ns since 1970
	ExeMtime       int64  // ns since 1970
	Flags          uint32 // Exec… bits
	ExeFlags       uint32 // Path… bits
	CwdFlags       uint32 // Path… bits
	OldTID         uint32 // the calling thread's id before it took the leader's
	SUID           uint32
	SGID           uint32
	FSUID          uint32
	FSGID          uint32
	UTSNS          uint32
	IPCNS          uint32
	CgroupNS       uint32
	Argc           uint32
	PGID           uint32
	SID            uint32
	TTYDev         uint32 // as in /proc/<pid>/stat; 0: no terminal
	ExeDev         uint32 // as stat(2) gives it
	ExeMode        uint32
	ExeUID         uint32
	ExeGID         uint32
	FilenameLen    uint32
	ExeLen         uint32
	CwdLen         uint32
	ArgsLen        uint32
	EnvLen         uint32
	TTY            [32]byte // the kernel's name of the terminal, NUL padded: "pts3"
}

// ExecEvent tells of a process that has just begun to run a program. The header is that process, with its
// new credentials and comm. The slices alias the sample it was decoded from.
type ExecEvent struct {
	ExecFields
	Filename []byte // as given to execve: may be relative, a symbolic link, a script, /dev/fd/N
	Exe      []byte // absolute path of the file that runs, as the process sees it
	Cwd      []byte // working directory, as the process sees it
	Args     []byte // arguments, each ended by a NUL byte; cut after MaxArgs bytes
	Env      []byte // variables as NAME=value, each ended by a NUL byte; cut after MaxEnv bytes; see Kernel.SetEnvironment
}

// ForkEvent tells of a new process (never of a thread). The header is the forking process.
type ForkEvent struct {
	_                    structs.HostLayout
	ChildStartTime       uint64
	ChildParentStartTime uint64
	ChildCgroupID        uint64
	ChildTGID            uint32
	ChildNSPID           uint32 // in the child's own pid namespace
	ChildParentTGID      uint32 // differs from Header.TGID under CLONE_PARENT
	ChildPIDNS           uint32
	ChildMntNS           uint32
	ChildNetNS           uint32
	ChildUserNS          uint32
	ChildFlags           uint32 // Header… bits
	CloneFlags           uint64 // as the caller gave them (linux/sched.h); 0 for fork and vfork
	Call                 uint32 // see Event.Syscall
	Pad                  uint32
}

// ExitEvent tells of the end of a whole process. The header is the last of its threads. Without a number (Header.Seq 0)
// it is no event: the process is ignored, but what it was before may be known.
type ExitEvent struct {
	_          structs.HostLayout
	ExitStatus uint32 // argument of exit(2), 0 to 255
	Signal     uint32 // that killed it; 0: it ended by itself
	CoreDumped uint32 // 0 or 1
	Pad        uint32
}

// OpenFields is the fixed part of an open event.
type OpenFields struct {
	_         structs.HostLayout
	Ino       uint64
	Flags     uint64 // open(2) flags as the caller gave them
	Access    uint32 // Open… bits
	FileFlags uint32 // flags the kernel keeps in the open file
	Dev       uint32
	Mode      uint32 // type and permissions, as in stat(2)
	UID       uint32 // owner of the file
	GID       uint32
	Nlink     uint32
	FD        int32
	Call      uint32 // see Event.Syscall
	LinkLen   uint32
	PathFlags uint32 // Path… bits
	PathLen   uint32
	SourceLen uint32
	Pad       uint32
}

// OpenEvent tells of a file opened for writing, created, or read under a watched path.
// The slices alias the sample it was decoded from.
type OpenEvent struct {
	OpenFields
	Path   []byte // absolute, symbolic links resolved, as the process sees it
	Link   []byte // a watched path that the file has too: it was opened by a hard link
	Source []byte // of a process in another mount namespace than the host's: the path in the file's own file system
}

// NotChanged is in the New… fields what an operation leaves as it is, NoNumber in Number what it does not set.
const (
	NotChanged uint32 = 0xffffffff
	NoNumber   uint64 = 0xffffffffffffffff
)

// PathFields is the fixed part of a change of a name or of attributes.
type PathFields struct {
	_             structs.HostLayout
	Ino           uint64 // of a file named by a descriptor, as Dev, Mode, UID and GID; else 0
	Number        uint64 // truncate: length; mknod: device; utimes: modification time, ns since 1970
	Result        int32  // 0 or a negative errno
	Dev           uint32 // as stat(2) gives it
	Mode          uint32 // type and permissions, after the change
	UID           uint32 // owner, after the change
	GID           uint32
	NewMode       uint32 // chmod: permissions; mkdir, mknod: as asked for
	NewUID        uint32 // chown
	NewGID        uint32
	Call          uint32 // see Event.Syscall
	Pad           uint32
	PathFlags     uint32 // Path… bits
	TargetFlags   uint32
	BaseLen       uint32
	PathLen       uint32
	TargetBaseLen uint32
	TargetLen     uint32
}

// PathEvent tells of a rename, unlink, rmdir, mkdir, link, symlink, chmod, chown, mknod, truncate, change of times or of
// an extended attribute, whether it succeeded or not.
// Path is what is changed or made; Target is the new path of a rename, the file that a link names, the text that
// a symlink holds, the name of an extended attribute. Where one is relative its base is the directory it starts from; a file named by a
// descriptor, and a path that was taken at a hook ([Kernel.Hooks]), has a Base alone. The slices alias the sample they were decoded from.
type PathEvent struct {
	PathFields
	Base       []byte
	Path       []byte
	TargetBase []byte
	Target     []byte
}

// ConnFields is the fixed part of an event of a socket.
type ConnFields struct {
	_             structs.HostLayout
	SockIno       uint64
	Result        int32  // 0 or a negative errno; -EINPROGRESS: a non-blocking connect has begun; dup, socket: the new descriptor
	FD            int32  // connect, bind, listen, send: the socket; accept: the new socket; dup: the descriptor that was copied
	Family        uint16 // unix.AF_UNIX, unix.AF_INET, unix.AF_INET6; of ActionSocket any
	Type          uint16 // unix.SOCK_…
	Protocol      uint16 // unix.IPPROTO_…
	Flags         uint16 // Conn… bits
	LocalPort     uint16
	RemotePort    uint16
	Call          uint32   // see Event.Syscall
	LocalAddr     [16]byte // IPv4: the first four bytes
	RemoteAddr    [16]byte
	BytesSent     uint64 // close: without what was sent again
	BytesReceived uint64
	Duration      uint64 // close: ns since the connect or accept
	Backlog       uint32 // listen
	PathLen       uint32
}

// ConnEvent tells of a socket: connect, accept, bind and listen of IPv4 and IPv6 ones, the first datagram to a
// destination, the end of a TCP connection, one copied onto standard input, output or error; connect, bind and listen
// of unix sockets; raw and packet sockets made. Path aliases the sample it was decoded from.
type ConnEvent struct {
	ConnFields
	Path []byte // of a unix socket; an abstract name begins with a NUL byte
}

// CallFields is the fixed part of a call of ClassKernel.
type CallFields struct {
	_                structs.HostLayout
	Result           int64
	Args             [6]uint64 // as the caller had them in registers; a signal has its number alone
	CapEffective     uint64    // after the call
	CapPermitted     uint64
	CapInheritable   uint64
	Ino              uint64 // of the file behind a descriptor, which for setns is the namespace
	Number           uint64 // behind a pointer: lib/recipe.h says which
	SubjectStartTime uint64 // the process that a signal goes to
	SubjectTGID      uint32
	Call             uint32 // see Event.Syscall
	Type             uint32 // of a BPF program or map; of a perf event
	SUID             uint32 // after the call, as the next
	SGID             uint32
	FSUID            uint32
	FSGID            uint32
	UTSNS            uint32
	IPCNS            uint32
	CgroupNS         uint32
	PathFlags        uint32 // Path… bits; PathUser also for Text and Number
	TargetFlags      uint32
	BaseLen          uint32
	PathLen          uint32
	TargetBaseLen    uint32
	TargetLen        uint32
	Text             [64]byte // NUL padded, cut: a file system's type, a name; of a signal the receiver's command name
}

// CallEvent tells of a call that changes what a process may do, what it sees of the machine, another process or the
// kernel, whether it succeeded or not. The header has credentials and namespaces after it. Path and Target are as in
// PathEvent; the slices alias the sample they were decoded from.
type CallEvent struct {
	CallFields
	Base       []byte
	Path       []byte
	TargetBase []byte
	Target     []byte
}

// CgroupFields is the fixed part of the news of a control group.
type CgroupFields struct {
	_       structs.HostLayout
	Pad     uint32
	PathLen uint32
}

// CgroupEvent tells of a control group that was made, before any process can be in it. It is no event: it has no
// number and is not counted. Header.CgroupID is the new group; Path aliases the sample it was decoded from.
type CgroupEvent struct {
	CgroupFields
	Path []byte // from the hierarchy's root
}

// DNSFields is the fixed part of what a socket sent to port 53 or received from there.
type DNSFields struct {
	_          structs.HostLayout
	Socket     uint64 // the kernel's cookie: never the same again
	Sequence   uint32 // TCP: sequence number of the first byte
	Begun      uint32 // TCP: bytes at the beginning of a message that began in an earlier segment
	Messages   uint32 // that end in it: so many events, numbered from Header.Seq; UDP: 1
	Total      uint32 // true length of the data, bytes
	Family     uint16 // unix.AF_INET, unix.AF_INET6
	Protocol   uint16 // unix.IPPROTO_TCP, unix.IPPROTO_UDP
	SourcePort uint16
	DestPort   uint16
	SourceAddr [16]byte // IPv4: the first four bytes
	DestAddr   [16]byte
	Pad        uint32
	DataLen    uint32
}

// DNSEvent tells of a DNS message over UDP, or of a segment of a TCP stream of them, in which each message has its
// length, two bytes, in front. The header is the process that asked. Data aliases the sample it was decoded from.
type DNSEvent struct {
	DNSFields
	Data []byte // cut after MaxDNS bytes
}

// Local returns the local address and port; a v4-mapped IPv6 address is returned as IPv4.
func (c *ConnEvent) Local() netip.AddrPort {
	return netip.AddrPortFrom(address(c.Family, &c.LocalAddr), c.LocalPort)
}

// Remote returns the remote address and port; a v4-mapped IPv6 address is returned as IPv4.
func (c *ConnEvent) Remote() netip.AddrPort {
	return netip.AddrPortFrom(address(c.Family, &c.RemoteAddr), c.RemotePort)
}

// Source returns the sender's address and port; a v4-mapped IPv6 address is returned as IPv4.
func (d *DNSEvent) Source() netip.AddrPort {
	return netip.AddrPortFrom(address(d.Family, &d.SourceAddr), d.SourcePort)
}

// Dest returns the receiver's address and port; a v4-mapped IPv6 address is returned as IPv4.
func (d *DNSEvent) Dest() netip.AddrPort {
	return netip.AddrPortFrom(address(d.Family, &d.DestAddr), d.DestPort)
}

func address(family uint16, a *[16]byte) netip.Addr {
	if family == afINet {
		return netip.AddrFrom4([4]byte(a[:4]))
	}
	return netip.AddrFrom16(*a).Unmap()
}

const afINet = 2

// Event is one decoded record. Header.Action says which of the parts below is valid; the others keep what
// an earlier record left in them. Reuse one Event for many records: decoding allocates nothing.
type Event struct {
	Header Header
	Exec   ExecEvent
	Fork   ForkEvent
	Exit   ExitEvent
	Open   OpenEvent
	Path   PathEvent
	Conn   ConnEvent
	Call   CallEvent
	Cgroup CgroupEvent
	DNS    DNSEvent
}

// Count returns how many events the record has: each has a number, from Header.Seq on.
func (e *Event) Count() uint64 {
	switch e.Header.Action {
	case ActionCgroup:
		return 0
	case ActionExit:
		return min(e.Header.Seq, 1)
	case ActionQuery, ActionResponse:
		return uint64(e.DNS.Messages)
	}
	return 1
}

// ErrBadRecord is what every error of [Decode] is (errors.Is).
var ErrBadRecord = errors.New("malformed kernel record")

// Decode reads one record as the kernel wrote it into *ev. Every length in it is checked against the
// sample: a record that lies about itself gives an error, never a panic. The byte slices in ev alias sample
// and are valid as long as it is.
func Decode(sample []byte, ev *Event) error {
	h := &ev.Header
	rest, ok := take(sample, h)
	if !ok {
		return fmt.Errorf("%w: %d bytes are less than its header", ErrBadRecord, len(sample))
	}
	if h.Version != LayoutVersion {
		return fmt.Errorf("%w: layout version %d, this program reads %d", ErrBadRecord, h.Version, LayoutVersion)
	}
	if dns := h.Class == ClassDNS; dns && uint64(h.Size) <= uint64(len(sample)) && uint64(h.Size) >= uint64(len(sample)-len(rest)) {
		rest = rest[:uint64(h.Size)-uint64(len(sample)-len(rest))] // its place was reserved for the longest
	} else if uint64(h.Size) != uint64(len(sample)) {
		return fmt.Errorf("%w: it says %d bytes and has %d", ErrBadRecord, h.Size, len(sample))
	}
	var class Class
	switch h.Action {
	case ActionExec:
		class = ClassProcess
		e := &ev.Exec
		rest, ok = take(rest, &e.ExecFields)
		ok = ok && cut(&rest, e.FilenameLen, MaxPath, &e.Filename) && cut(&rest, e.ExeLen, MaxPath, &e.Exe) &&
			cut(&rest, e.CwdLen, MaxPath, &e.Cwd) && cut(&rest, e.ArgsLen, MaxArgs, &e.Args) && cut(&rest, e.EnvLen, MaxEnv, &e.Env)
	case ActionFork:
		class = ClassProcess
		rest, ok = take(rest, &ev.Fork)
	case ActionExit:
		class = ClassProcess
		rest, ok = take(rest, &ev.Exit)
	case ActionCgroup:
		class = ClassProcess
		rest, ok = take(rest, &ev.Cgroup.CgroupFields)
		ok = ok && cut(&rest, ev.Cgroup.PathLen, maxCgroupPath, &ev.Cgroup.Path)
	case ActionQuery, ActionResponse:
		class = ClassDNS
		rest, ok = take(rest, &ev.DNS.DNSFields)
		ok = ok && ev.DNS.Messages <= maxMessages && cut(&rest, ev.DNS.DataLen, MaxDNS, &ev.DNS.Data)
	case ActionOpen:
		class = ClassFile
		rest, ok = take(rest, &ev.Open.OpenFields)
		ok = ok && cut(&rest, ev.Open.PathLen, MaxPath, &ev.Open.Path) && cut(&rest, ev.Open.LinkLen, MaxPath, &ev.Open.Link) &&
			cut(&rest, ev.Open.SourceLen, MaxPath, &ev.Open.Source)
	case ActionRename, ActionUnlink, ActionRmdir, ActionMkdir, ActionLink, ActionSymlink, ActionChmod, ActionChown,
		ActionMknod, ActionTruncate, ActionUtimes, ActionSetxattr, ActionRemovexattr:
		class = ClassFile
		p := &ev.Path
		rest, ok = take(rest, &p.PathFields)
		ok = ok && cut(&rest, p.BaseLen, MaxPath, &p.Base) && cut(&rest, p.PathLen, MaxPath, &p.Path) &&
			cut(&rest, p.TargetBaseLen, MaxPath, &p.TargetBase) && cut(&rest, p.TargetLen, MaxPath, &p.Target)
	case ActionConnect, ActionAccept, ActionDup, ActionSocket, ActionBind, ActionListen, ActionSend, ActionClose:
		class = ClassNetwork
		rest, ok = take(rest, &ev.Conn.ConnFields)
		ok = ok && cut(&rest, ev.Conn.PathLen, maxUnixPath, &ev.Conn.Path)
	case ActionCall:
		class = ClassKernel
		c := &ev.Call
		rest, ok = take(rest, &c.CallFields)
		ok = ok && cut(&rest, c.BaseLen, MaxPath, &c.Base) && cut(&rest, c.PathLen, MaxPath, &c.Path) &&
			cut(&rest, c.TargetBaseLen, MaxPath, &c.TargetBase) && cut(&rest, c.TargetLen, MaxPath, &c.Target)
	default:
		return fmt.Errorf("%w: unknown %s", ErrBadRecord, h.Action)
	}
	if !ok || len(rest) != 0 {
		return fmt.Errorf("%w: %s of %d bytes does not fit its lengths", ErrBadRecord, h.Action, len(sample))
	}
	if h.Class != class {
		return fmt.Errorf("%w: %s in %s", ErrBadRecord, h.Action, h.Class)
	}
	return nil
}

// fixed are the structs that are copied from a record byte for byte: numbers and byte arrays only, laid out
// as in lib/event.h (layout_test.go holds both to that).
type fixed interface {
	Header | ExecFields | ForkEvent | ExitEvent | OpenFields | PathFields | ConnFields | CallFields | CgroupFields | DNSFields
}

// take copies the beginning of b into *dst and returns what follows it; false when b is too short.
//
// The only unsafe step of decoding is here: *dst seen as bytes, which is sound because a fixed struct has
// neither pointers nor invalid bit patterns, and the copy is bounded by its size on either side.
func take[T fixed](b []byte, dst *T) ([]byte, bool) {
	n := int(unsafe.Sizeof(*dst))
	if len(b) < n {
		return b, false
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(dst)), n), b[:n])
	return b[n:], true
}

// cut takes a string of n bytes, at most bound, from the beginning of *b.
func cut(b *[]byte, n, bound uint32, dst *[]byte) bool {
	if n > bound || uint64(n) > uint64(len(*b)) {
		return false
	}
	*dst, *b = (*b)[:n:n], (*b)[n:]
	return true
}

// String returns a NUL-padded name (Comm, TTY) as text.
func String(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
