package sensor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"picket/bpf"
	"picket/internal/batch"
	"picket/internal/outbox"
	"picket/internal/seldom"
	"picket/schemas"
	"picket/services/sensor/containerid"
	"picket/services/sensor/proctree"
)

// lane reads one class's ring, fills that class's batches and hands them on.
// It is used by one goroutine.
type lane struct {
	s       *sensor
	r       *bpf.Reader
	class   schemas.Class
	subject string
	b       *batch.Builder
	who     *batch.Shared // its columns of the process that acted
	enc     batch.Encoder
	read    prometheus.Counter

	ev     bpf.Event
	now    time.Time // when ev was read, or a little before
	fresh  int       // how many more events may go by until the clock is read again
	opened time.Time // when the batch's first row came
	told   [remembered]told
	next   int // place in told to use next
	awaits [bpf.NumClasses]awaited
	lost   bool           // the previous run's loss is accounted for
	seldom *seldom.Logger // of what every record can cause
	prefix [16]byte       // hash of what all event ids of the lane share
	idBuf  [16 + 4 + 8]byte

	dns       *resolver // of class dns
	ancestors []*proctree.Proc
	names     []string
	exes      []string
	commands  []string
	args      []string
	pids      []string
	digits    [schemas.MaxAncestors * len("4294967295")]byte // of pids
	pairs     []string                                       // arguments of a call: name, value, …
}

var classes = [bpf.NumClasses]schemas.Class{bpf.ClassProcess: schemas.Process, bpf.ClassFile: schemas.File, bpf.ClassNetwork: schemas.Network, bpf.ClassKernel: schemas.Kernel, bpf.ClassDNS: schemas.DNS}

func newLane(s *sensor, r *bpf.Reader) (*lane, error) {
	c := classes[r.Class()]
	l := &lane{
		s: s, r: r, class: c, seldom: seldom.New(s.log),
		subject: schemas.RawSubject(s.cfg.Cluster, s.cfg.Node, c),
		b:       batch.NewBuilder(c, schemas.RawColumns(c)),
		read:    s.metrics.read.WithLabelValues(c.String()),
		prefix:  schemas.Hash128(s.cfg.Cluster, s.cfg.Node, s.bootID, s.box.RunID(), c.String()),
	}
	l.who = l.b.Share(shared)
	if c == schemas.DNS {
		var err error
		if l.dns, err = newResolver(); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// idle is how long a lane waits for the first event before it takes its ring
// for empty.
const idle = 200 * time.Millisecond

// clockEvery is how many events of a busy ring share one reading of the clock,
// which on some machines takes as long as the rest of an event.
const clockEvery = 16

// run reads until stopping is closed and the ring is empty. A lane without events
// sleeps: whoever closes stopping then wakes its Reader.
func (l *lane) run(stopping <-chan struct{}) error {
	last := false // the ring was seen empty after stopping
	l.wait(time.Now().Add(idle))
	for {
		select {
		case <-stopping:
			if l.s.cfg.Kernel.KeepOnStop {
				return l.flush() // the next run reads what is left
			}
			if !last {
				// A program that was running when it was detached may still
				// submit: hence not at once.
				last = true
				l.wait(time.Now().Add(20 * time.Millisecond))
			}
		default:
		}
		err := l.r.Read(&l.ev)
		if err == nil {
			l.took(l.ev.Count())
		}
		if l.fresh == 0 || l.r.Emptied() {
			l.now, l.fresh = time.Now(), clockEvery
		}
		l.fresh--
		switch {
		case err == nil:
			l.take()
			if l.r.Emptied() {
				l.fresh = 0 // the next event may be long in coming
			}
		case errors.Is(err, bpf.ErrBadRecord):
			l.took(1)
			// Lost for good, and reported: a crash must not count it again.
			l.r.Release()
			l.s.kernel.Ledger().Add(l.ev.Header.CPU, l.r.Class(), 1)
			l.s.health.Lost(l.class.String(), schemas.LossDecode, 1)
			l.seldom.Error("kernel record refused", "class", l.class.String(), "error", err)
			continue
		case errors.Is(err, bpf.ErrRingMoved):
			l.tampered(err)
			continue
		case errors.Is(err, bpf.ErrRingStuck):
			l.seldom.Error("waiting for the kernel", "class", l.class.String(), "error", err)
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err := l.flush(); err != nil {
				return err
			}
			l.settleLoss()
			if last {
				return nil
			}
			if l.lost {
				l.wait(time.Time{}) // for the next event, however long it takes
			} else {
				l.wait(time.Now().Add(idle))
			}
			continue
		case errors.Is(err, bpf.ErrWoken):
			continue // to stop, which needs another look at the ring
		default:
			return fmt.Errorf("reading %s events: %w", l.class, err)
		}
		if l.b.Full() || l.now.Sub(l.opened) >= l.s.cfg.FlushInterval {
			if err := l.flush(); err != nil {
				return err
			}
		}
		l.settleLoss()
	}
}

// tampered tells that somebody else moved the ring's position. What is lost by
// it are the numbers that never come: see emptied.
func (l *lane) tampered(err error) {
	l.seldom.Error("the sensor's ring buffer in the kernel was tampered with", "class", l.class.String(), "error", err)
	l.s.health.LostOf("", schemas.LossTampered, "somebody else moved the position of the ring buffer of class "+l.class.String()+" in the kernel (it was put right)", 1)
	if errors.Is(err, bpf.ErrRingLost) {
		// Nobody is to wait for what does not come.
		c := l.r.Class()
		for cpu := range uint32(l.s.kernel.CPUs()) {
			l.s.handled[c].advance(cpu, l.s.kernel.Submitted(cpu, c))
		}
	}
}

// took counts events that were read.
func (l *lane) took(n uint64) {
	if byCPU, cpu := l.s.taken[l.r.Class()], l.ev.Header.CPU; int64(cpu) < int64(len(byCPU)) {
		byCPU[cpu].Add(n)
	}
}

// wait sets when Read gives up.
func (l *lane) wait(until time.Time) { l.r.SetDeadline(until) }

// settleLoss reports, once the ring's backlog of a crashed run has been read,
// what that run had read and not handed on.
func (l *lane) settleLoss() {
	if l.lost {
		return
	}
	byCPU, ok := l.r.Lost()
	if !ok {
		return
	}
	l.lost = true
	var n uint64
	defer func() { l.s.settled[l.r.Class()].Store(true) }()
	for cpu, lost := range byCPU {
		// Of what the kernel ever submitted, this run will never read these.
		l.s.unread[l.r.Class()][cpu].Add(lost + l.r.HandedOn(uint32(cpu)))
		n += lost - l.s.late[l.r.Class()][cpu]
		// Lost for good, and reported: a later crash must not count it again.
		l.s.kernel.Ledger().Add(uint32(cpu), l.r.Class(), lost-l.s.late[l.r.Class()][cpu])
	}
	if n > 0 {
		l.s.log.Warn("events lost by the crash of the sensor before", "class", l.class.String(), "events", n)
		l.s.health.Lost(l.class.String(), schemas.LossSensorRestart, n)
	}
}

// flush hands the batch on.
func (l *lane) flush() error {
	// First: what the ledger has, or is about to have, must not be read again.
	l.r.Release()
	if l.b.Len() == 0 {
		return nil
	}
	enc, err := l.enc.Encode(l.b.Batch())
	if err != nil {
		return err // rows are bounded far below the batch limit
	}
	for _, e := range enc {
		counts := make([]uint64, l.s.kernel.CPUs())
		for row := range e.Batch.Rows() {
			if cpu := e.Batch.Uint(schemas.CPU, row); cpu < uint64(len(counts)) {
				counts[cpu]++
			}
		}
		n := note{Boot: l.s.bootID, Class: l.r.Class(), Ledger: make([]uint64, l.s.kernel.CPUs())}
		for cpu := range n.Ledger {
			n.Ledger[cpu] = l.s.kernel.Ledger().Load(uint32(cpu), n.Class) + counts[cpu]
		}
		commit := func() {
			for cpu, k := range counts {
				if k > 0 {
					l.s.kernel.Ledger().Add(uint32(cpu), n.Class, k)
				}
			}
		}
		err := l.s.box.Put(l.subject, e.Data, e.Batch.Rows(), n, commit)
		if errors.Is(err, outbox.ErrFull) {
			commit() // accounted for as lost
			l.s.health.Lost(l.class.String(), schemas.LossSpoolFull, uint64(e.Batch.Rows()))
			continue
		}
		if err != nil {
			return err
		}
		l.s.spooled[l.r.Class()].Add(uint64(e.Batch.Rows()))
	}
	l.b.Reset()
	for i := range l.told {
		l.told[i].proc = nil
	}
	return nil
}

// take adds what was read to the batch.
func (l *lane) take() {
	h := &l.ev.Header
	if h.Action == bpf.ActionCgroup {
		c := l.s.cgroups.Add(h.CgroupID, string(l.ev.Cgroup.Path))
		l.s.ignoreContainer(h.CgroupID, c, containerid.Names{})
		return
	}
	count := l.ev.Count()
	l.read.Add(float64(count))
	last := h.Seq + max(count, 1) - 1
	if c := l.r.Class(); c == bpf.ClassProcess || c == bpf.ClassDNS { // others wait for these
		defer l.s.handled[c].advance(h.CPU, last)
	}
	if l.b.Len() == 0 {
		l.opened = l.now
		l.wait(l.opened.Add(l.s.cfg.FlushInterval))
	}
	if l.class == schemas.Process {
		switch h.Action {
		case bpf.ActionExec:
			l.exec()
		case bpf.ActionFork:
			l.fork()
		case bpf.ActionExit:
			l.exit()
		}
		return
	}
	l.await(bpf.ClassProcess)
	p := l.actor()
	switch h.Action {
	case bpf.ActionOpen:
		l.open()
	case bpf.ActionConnect, bpf.ActionAccept, bpf.ActionDup, bpf.ActionSocket, bpf.ActionBind, bpf.ActionListen, bpf.ActionSend, bpf.ActionClose:
		l.connection()
	case bpf.ActionCall:
		p = l.call(p)
	case bpf.ActionQuery, bpf.ActionResponse:
		l.messages(p)
		return
	default:
		l.change()
	}
	l.b.Bool(schemas.IOURing, h.Flags&bpf.HeaderIOURing != 0)
	l.finish(p)
}

// actor returns the acting process; one that the tree does not know is read
// from /proc, or known by what the event tells.
func (l *lane) actor() *proctree.Proc {
	if t := l.current(); t != nil {
		return t.proc
	}
	h := &l.ev.Header
	if p := l.s.tree.At(h.TGID, h.StartTime, h.Time); p != nil {
		return p
	}
	p, ppid, err := proctree.Read("/proc", h.TGID)
	if err != nil || p.Start/1e7 != h.StartTime/1e7 { // /proc counts in hundredths of a second
		return l.s.tree.Gone(proctree.Proc{PID: h.TGID, Start: h.StartTime, Name: bpf.String(h.Comm[:])}, h.ParentTGID, h.Time)
	}
	p.Start = h.StartTime
	return l.s.tree.Miss(p, ppid)
}

func (l *lane) exec() {
	h, e := &l.ev.Header, &l.ev.Exec
	argv := splitArgs(e.Args)
	l.s.redact.Args(argv)
	if old := l.s.tree.Get(h.TGID, h.StartTime); old != nil {
		l.before(old)
	}
	container := ""
	if h.MntNS != l.s.hostMnt {
		c, _ := l.s.cgroups.Resolve(h.CgroupID, h.TGID)
		container = c.ContainerID
	}
	p := l.s.tree.Exec(h.TGID, h.StartTime, h.ParentTGID, h.Time, container, func(p *proctree.Proc) {
		p.Name = bpf.String(h.Comm[:])
		p.Exe = string(e.Exe)
		p.Command, p.Args = "", ""
		if len(argv) > 0 {
			p.Command, p.Args = argv[0], strings.Join(argv[1:], " ")
		}
		p.Cwd = string(e.Cwd)
		p.TTY, p.SessionID, p.GroupID = e.TTYDev, e.SID, e.PGID
		p.VPID, p.PIDNS, p.MntNS = h.NSPID, h.PIDNS, h.MntNS
		p.HasCredentials, p.UserID, p.CapEffective, p.CapPermitted = true, h.EUID, e.CapEffective, e.CapPermitted
	})
	b := l.b
	b.Str(schemas.Action, "exec")
	b.Str(schemas.Syscall, l.ev.Syscall())
	b.List(schemas.ProcessArgv, argv)
	b.Bool(schemas.ProcessArgsCut, e.Flags&bpf.ExecArgsTruncated != 0)
	b.Bool(schemas.ProcessEnvCut, e.Flags&bpf.ExecEnvTruncated != 0)
	b.Pairs(schemas.ProcessEnv, l.environment(e.Env))
	if e.Flags&bpf.ExecScript != 0 {
		b.Bytes(schemas.Interpreter, e.Exe)
	}
	b.Bool(schemas.SecureExec, e.Flags&bpf.ExecSecure != 0)
	b.Bytes(schemas.ExecFilename, e.Filename)
	b.Uint64(schemas.ExeInode, e.ExeIno)
	b.Uint32(schemas.ExeMode, e.ExeMode)
	b.Uint32(schemas.ExeUserID, e.ExeUID)
	b.Int64(schemas.ExeCtime, e.ExeCtime)
	b.Int64(schemas.ExeMtime, e.ExeMtime)
	b.Bool(schemas.ExeMemfd, e.Flags&bpf.ExecMemfd != 0)
	b.Bool(schemas.ExeDeleted, e.ExeFlags&bpf.PathDeleted != 0)
	b.Bool(schemas.ExeUpperLayer, e.Flags&bpf.ExecUpper != 0)
	b.Bool(schemas.ExeLowerLayer, e.Flags&bpf.ExecLower != 0)
	b.Bool(schemas.ExeFileCaps, e.Flags&bpf.ExecFileCapabilities != 0)
	l.finish(p)
}

// environment returns names and values in turn of those variables that are kept.
func (l *lane) environment(env []byte) []string {
	l.pairs = l.pairs[:0]
	for len(env) > 0 {
		v, rest, _ := bytes.Cut(env, []byte{0})
		env = rest
		name, value, ok := bytes.Cut(v, []byte{'='})
		if _, keep := l.s.environment[string(name)]; ok && keep {
			// As an argument, so that a secret is known by the variable's name.
			arg := []string{string(name) + "=" + string(value)}
			l.s.redact.Args(arg)
			_, kept, _ := strings.Cut(arg[0], "=")
			l.pairs = append(l.pairs, string(name), kept)
		}
	}
	return l.pairs
}

// splitArgs splits arguments that each end in a NUL byte.
func splitArgs(args []byte) []string {
	if len(args) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(args), "\x00"), "\x00")
}

// fork is told of the child: it is the process that begins to act.
func (l *lane) fork() {
	h, f := &l.ev.Header, &l.ev.Fork
	p := l.s.tree.Fork(proctree.Ref{PID: h.TGID, Start: h.StartTime}, proctree.Ref{PID: f.ChildParentTGID, Start: f.ChildParentStartTime},
		proctree.Ref{PID: f.ChildTGID, Start: f.ChildStartTime}, h.Time, bpf.String(h.Comm[:]), f.ChildNSPID, f.ChildPIDNS, f.ChildMntNS)
	l.b.Str(schemas.Action, "fork")
	l.b.Str(schemas.Syscall, l.ev.Syscall())
	if f.CloneFlags != 0 {
		l.b.Str(schemas.CloneFlags, flags(cloneFlags, f.CloneFlags&^exitSignal))
	}
	l.b.Int64(schemas.Result, int64(f.ChildTGID))
	h.TGID, h.TID, h.NSPID, h.StartTime = f.ChildTGID, f.ChildTGID, f.ChildNSPID, f.ChildStartTime
	h.ParentTGID, h.ParentStartTime, h.CgroupID = f.ChildParentTGID, f.ChildParentStartTime, f.ChildCgroupID
	h.PIDNS, h.MntNS, h.NetNS, h.UserNS = f.ChildPIDNS, f.ChildMntNS, f.ChildNetNS, f.ChildUserNS
	l.finish(p)
}

func (l *lane) exit() {
	h, x := &l.ev.Header, &l.ev.Exit
	if l.ev.Count() == 0 { // ignored; it only need not be remembered
		l.s.tree.Exit(h.TGID, h.StartTime, h.Time)
		return
	}
	p := l.actor()
	l.s.tree.Exit(h.TGID, h.StartTime, h.Time)
	l.b.Str(schemas.Action, "exit")
	l.b.Str(schemas.Syscall, "procexit")
	l.b.Int64(schemas.ExitCode, int64(x.ExitStatus))
	l.b.Uint32(schemas.ExitSignal, x.Signal)
	l.b.Uint64(schemas.ProcessLifetime, h.Time-min(h.StartTime, h.Time))
	l.finish(p)
}

func (l *lane) open() {
	o, b := &l.ev.Open, l.b
	b.Str(schemas.Action, "open")
	b.Str(schemas.Syscall, l.ev.Syscall())
	if o.PathFlags&bpf.PathAsked == 0 {
		b.Int64(schemas.Result, int64(o.FD))
		b.Int64(schemas.FDNumber, int64(o.FD))
		b.Bytes(schemas.FilePath, o.Path)
	} else { // it is not known which descriptor it got
		b.Int64(schemas.Result, 0)
		b.Str(schemas.FilePath, path.Clean(string(o.Path)))
	}
	b.Bytes(schemas.FilePathLink, o.Link)
	if len(o.Source) > 0 {
		if host, ok := l.s.mounts.Path(o.Dev, string(o.Source), l.now); ok && host != string(o.Path) {
			b.Str(schemas.FilePathHost, host)
		}
	}
	b.Uint32(schemas.FileFlags, uint32(o.Flags))
	b.Bool(schemas.FileRead, o.Access&bpf.OpenRead != 0)
	b.Bool(schemas.FileWrite, o.Access&bpf.OpenWrite != 0)
	b.Bool(schemas.FileCreated, o.Access&bpf.OpenCreated != 0)
	b.Uint32(schemas.FileMode, o.Mode)
	b.Uint64(schemas.FileInode, o.Ino)
	b.Uint32(schemas.FileDevice, o.Dev)
	b.Uint32(schemas.FileUserID, o.UID)
}

// change is a change of a name or of attributes.
func (l *lane) change() {
	h, c, b := &l.ev.Header, &l.ev.Path, l.b
	b.Str(schemas.Action, h.Action.String())
	b.Str(schemas.Syscall, l.ev.Syscall())
	b.Int64(schemas.Result, int64(c.Result))
	changed := fullPath(c.Base, c.Path)
	b.Str(schemas.FilePath, changed)
	l.onHost(schemas.FilePathHost, changed)
	switch h.Action {
	case bpf.ActionRename, bpf.ActionLink:
		target := fullPath(c.TargetBase, c.Target)
		b.Str(schemas.FilePathTarget, target)
		l.onHost(schemas.FilePathTargetHost, target)
	case bpf.ActionSymlink, bpf.ActionSetxattr, bpf.ActionRemovexattr:
		b.Bytes(schemas.FilePathTarget, c.Target)
	case bpf.ActionChmod, bpf.ActionMkdir, bpf.ActionMknod:
		b.Uint32(schemas.FileModeNew, c.NewMode)
	case bpf.ActionTruncate:
		b.Uint64(schemas.FileSizeNew, c.Number)
	case bpf.ActionUtimes:
		if c.Number != bpf.NoNumber {
			b.Int64(schemas.FileMtimeNew, int64(c.Number))
		}
	case bpf.ActionChown:
		b.Int64(schemas.FileUserIDNew, int64(int32(c.NewUID)))
		b.Int64(schemas.FileGroupIDNew, int64(int32(c.NewGID)))
	}
	b.Bool(schemas.UserMemory, (c.PathFlags|c.TargetFlags)&bpf.PathUser != 0)
	b.Uint32(schemas.FileMode, c.Mode)
	b.Uint64(schemas.FileInode, c.Ino)
	b.Uint32(schemas.FileDevice, c.Dev)
	b.Uint32(schemas.FileUserID, c.UID)
}

// onHost sets a column to where the host has the file that a container changed.
func (l *lane) onHost(column schemas.FieldID, path string) {
	h := &l.ev.Header
	if h.MntNS == 0 || h.MntNS == l.s.hostMnt || path == "" {
		return
	}
	if host, ok := l.s.namespaces.HostPath(h.MntNS, path, l.now, h.TGID, h.ParentTGID); ok && host != path {
		l.b.Str(column, host)
	}
}

// fullPath joins a path with the directory it starts from. "." and ".." go by
// the text alone: the links that the kernel followed are not known.
func fullPath(base, p []byte) string {
	switch {
	case len(p) == 0:
		return string(base)
	case p[0] == '/':
		return path.Clean(string(p))
	}
	return path.Clean(string(base) + "/" + string(p))
}

func (l *lane) connection() {
	c, b := &l.ev.Conn, l.b
	action := l.ev.Header.Action
	b.Str(schemas.Action, action.String())
	b.Str(schemas.Syscall, l.ev.Syscall())
	b.Int64(schemas.Result, int64(c.Result))
	b.Int64(schemas.FDNumber, int64(c.FD))
	b.Bool(schemas.UserMemory, c.Flags&(bpf.ConnRemoteFromUser|bpf.ConnLocalFromUser) != 0)
	b.Str(schemas.NetType, families[c.Family])
	b.Str(schemas.NetSocketType, socketTypes[c.Type])
	b.Uint32(schemas.NetProtocol, uint32(c.Protocol))
	switch action {
	case bpf.ActionConnect, bpf.ActionSend:
		b.Str(schemas.NetDirection, "outbound")
	case bpf.ActionAccept:
		b.Str(schemas.NetDirection, "inbound")
	case bpf.ActionListen:
		b.Uint32(schemas.NetBacklog, c.Backlog)
	case bpf.ActionClose:
		b.Uint64(schemas.NetBytesSent, c.BytesSent)
		b.Uint64(schemas.NetBytesRecv, c.BytesReceived)
		b.Uint64(schemas.NetDuration, c.Duration)
		if c.Flags&bpf.ConnAccepted != 0 {
			b.Str(schemas.NetDirection, "inbound")
		} else {
			b.Str(schemas.NetDirection, "outbound")
		}
	}
	switch c.Family {
	case unix.AF_UNIX:
		b.Str(schemas.NetTransport, "unix")
		b.Str(schemas.NetSocketPath, socketPath(c.Path))
		return
	case unix.AF_INET, unix.AF_INET6:
	default:
		return
	}
	switch {
	case c.Protocol == unix.IPPROTO_TCP:
		b.Str(schemas.NetTransport, "tcp")
	case c.Protocol == unix.IPPROTO_UDP:
		b.Str(schemas.NetTransport, "udp")
	case c.Protocol == unix.IPPROTO_ICMP, c.Protocol == unix.IPPROTO_ICMPV6:
		b.Str(schemas.NetTransport, "icmp")
	case c.Type == unix.SOCK_RAW:
		b.Str(schemas.NetTransport, "raw")
	}
	if action == bpf.ActionSocket {
		return
	}
	local := c.Local()
	b.Bytes16(schemas.NetLocalAddress, local.Addr().As16())
	b.Uint32(schemas.NetLocalPort, uint32(local.Port()))
	if action == bpf.ActionBind || action == bpf.ActionListen {
		return
	}
	remote := c.Remote()
	b.Bytes16(schemas.NetPeerAddress, remote.Addr().As16())
	b.Uint32(schemas.NetPeerPort, uint32(remote.Port()))
	if action != bpf.ActionAccept && action != bpf.ActionDup {
		b.Str(schemas.NetPeerDomain, l.peerName(remote.Addr()))
	}
}

// families and socketTypes are the names of the numbers that the sensor
// reports (linux/socket.h, linux/net.h).
var (
	families = map[uint16]string{unix.AF_UNIX: "unix", unix.AF_INET: "ipv4", unix.AF_INET6: "ipv6", unix.AF_PACKET: "packet",
		unix.AF_ALG: "alg", unix.AF_VSOCK: "vsock", unix.AF_XDP: "xdp"}
	socketTypes = map[uint16]string{unix.SOCK_STREAM: "stream", unix.SOCK_DGRAM: "dgram", unix.SOCK_RAW: "raw", unix.SOCK_SEQPACKET: "seqpacket"}
)

// socketPath is a unix socket's path without the NUL byte that ends it; an
// abstract name begins with "@" for its NUL byte.
func socketPath(p []byte) string {
	if len(p) > 0 && p[0] == 0 {
		return "@" + string(p[1:])
	}
	return bpf.String(p)
}

// finish sets what every event has, and ends the row.
func (l *lane) finish(p *proctree.Proc) {
	b, h := l.b, &l.ev.Header
	b.Bytes16(schemas.EventID, l.eventID(h.CPU, h.Seq))
	b.Int64(schemas.EventTime, int64(h.Time)+l.s.offset.Load())
	b.Uint64(schemas.TimeBoot, h.Time)
	b.Int64(schemas.TimeObserved, l.now.UnixNano())
	b.Uint32(schemas.CPU, h.CPU)
	b.Uint64(schemas.Sequence, h.Seq)
	b.Uint32(schemas.ThreadID, h.TID)
	l.who.Use(l.tell(p))
	b.EndRow()
}

// eventID is the hash of everything that makes the event unique; see
// schemas.EventID.
func (l *lane) eventID(cpu uint32, seq uint64) [16]byte {
	copy(l.idBuf[:], l.prefix[:])
	binary.LittleEndian.PutUint32(l.idBuf[16:], cpu)
	binary.LittleEndian.PutUint64(l.idBuf[20:], seq)
	return xxh3.Hash128(l.idBuf[:]).Bytes()
}
