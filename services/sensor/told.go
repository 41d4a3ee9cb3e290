package sensor

import (
	"cmp"
	"slices"
	"strconv"
	"unsafe"

	"picket/bpf"
	"picket/schemas"
	"picket/services/sensor/containerid"
	"picket/services/sensor/proctree"
)

// told is an entry of the lane's batch: what rows say of the process that acted.
// Most events of a busy node come from few processes, and say the same of them.
type told struct {
	proc  *proctree.Proc // nil: there is no such entry
	entry int
	// What the entry was made of, beside proc, which never changes.
	header    bpf.Header
	offset    int64
	session   *proctree.Proc
	group     *proctree.Proc
	ancestors []*proctree.Proc
	// While the tree has this version, proc is the process of all events of the same actor
	// since that time, and session, group and
	// ancestors are its own.
	version, since uint64
}

// never is no version of the tree.
const never = ^uint64(0)

// remembered is how many processes that take turns a lane remembers.
const remembered = 4

// shared are the columns that entries have.
var shared = []schemas.FieldID{schemas.SchemaVer, schemas.Cluster, schemas.Node,
	schemas.ProcessPID, schemas.ProcessVPID, schemas.ProcessStart, schemas.ProcessStartBoot,
	schemas.ProcessRealUserID, schemas.ProcessUserID, schemas.ProcessGroupID,
	schemas.NamespacePID, schemas.NamespaceMnt, schemas.NamespaceNet, schemas.NamespaceUser, schemas.CgroupID,
	schemas.ProcessName, schemas.ProcessExe, schemas.ProcessCommand, schemas.ProcessArgs, schemas.ProcessCwd,
	schemas.ProcessTTY, schemas.ProcessSessionPID, schemas.ProcessGroupPID, schemas.ProcessCapEffective, schemas.ProcessCapPermitted,
	schemas.ContainerExec, schemas.ContainerStart, schemas.ProcessSessionName, schemas.SessionCommand, schemas.SessionExe,
	schemas.GroupLeaderName, schemas.GroupLeaderCommand, schemas.GroupLeaderExe,
	schemas.AncestorCommands, schemas.AncestorArgs, schemas.AncestorPIDs, schemas.ParentVPID, schemas.ParentStart,
	schemas.AncestorNames, schemas.AncestorExes, schemas.ParentName, schemas.ParentExe, schemas.ParentCommand, schemas.ParentArgs, schemas.ProcessParentPID,
	schemas.ContainerID, schemas.ContainerRuntime, schemas.PodUID, schemas.ContainerName, schemas.ContainerImageID,
	schemas.ContainerImage, schemas.ContainerImageTag, schemas.ContainerImageHash, schemas.PodName, schemas.Namespace,
	schemas.ProcessLoginUserID, schemas.ProcessLoginUserName, schemas.ProcessUserName, schemas.ProcessGroupName}

// sameActor reports whether all is the same that an entry takes from the header.
func sameActor(a, b *bpf.Header) bool {
	return a.TGID == b.TGID && a.StartTime == b.StartTime && a.NSPID == b.NSPID && a.ParentTGID == b.ParentTGID && a.ParentStartTime == b.ParentStartTime && a.CgroupID == b.CgroupID &&
		a.PIDNS == b.PIDNS && a.MntNS == b.MntNS && a.NetNS == b.NetNS && a.UserNS == b.UserNS &&
		a.UID == b.UID && a.EUID == b.EUID && a.EGID == b.EGID && a.LoginUID == b.LoginUID
}

// current returns what was told of the event's actor, if that is still so; or nil.
func (l *lane) current() *told {
	h, version, offset := &l.ev.Header, l.s.tree.Version(), l.s.offset.Load()
	for i := range l.told {
		t := &l.told[i]
		if t.proc != nil && t.version == version && h.Time >= t.since && t.offset == offset && sameActor(&t.header, h) {
			return t
		}
	}
	return nil
}

// tell returns the entry for the event, whose process is p: an earlier one that
// says the same, or a new one.
func (l *lane) tell(p *proctree.Proc) (entry int) {
	if t := l.current(); t != nil && t.proc == p {
		return t.entry
	}
	h, tree, offset := &l.ev.Header, l.s.tree, l.s.offset.Load()
	version := tree.Version() // before the tree is looked at
	l.ancestors = tree.Ancestors(p, l.ancestors[:0])
	session := l.leader(p, p.SessionID, sessionOf)
	group := session
	if p.GroupID != p.SessionID {
		group = l.leader(p, p.GroupID, groupOf)
	}
	if tree.Get(h.TGID, h.StartTime) != p || tree.Get(p.SessionID, 0) != tree.At(p.SessionID, 0, h.Time) || tree.Get(p.GroupID, 0) != tree.At(p.GroupID, 0, h.Time) {
		version = never // the event is from before what the tree has by now
	}
	var t *told
	for i := range l.told {
		o := &l.told[i]
		if o.proc == p && o.offset == offset && o.session == session && o.group == group && sameActor(&o.header, h) && slices.Equal(o.ancestors, l.ancestors) {
			t = o
			break
		}
	}
	if t == nil {
		t = &l.told[l.next%remembered]
		l.next++
		known := l.say(p, session, group, offset)
		*t = told{proc: p, entry: l.who.End(), header: *h, offset: offset, session: session, group: group, ancestors: append(t.ancestors[:0], l.ancestors...)}
		if !known {
			t.proc = nil // it may be the next time
		}
	}
	t.version, t.since = version, h.Time
	return t.entry
}

// say sets an entry: all that is known of the process p, whose ancestors are the
// lane's. It returns false when the cgroup is not known (yet).
func (l *lane) say(p, session, group *proctree.Proc, offset int64) (known bool) {
	s, b, h := l.s, l.who, &l.ev.Header
	b.Uint32(schemas.SchemaVer, schemas.SchemaVersion)
	b.Str(schemas.Cluster, s.cfg.Cluster)
	b.Str(schemas.Node, s.cfg.Node)

	b.Uint32(schemas.ProcessPID, h.TGID)
	b.Uint32(schemas.ProcessVPID, h.NSPID)
	b.Int64(schemas.ProcessStart, int64(h.StartTime)+offset)
	b.Uint64(schemas.ProcessStartBoot, h.StartTime)
	b.Uint32(schemas.ProcessRealUserID, h.UID)
	b.Uint32(schemas.ProcessUserID, h.EUID)
	b.Uint32(schemas.ProcessGroupID, h.EGID)
	b.Uint32(schemas.NamespacePID, h.PIDNS)
	b.Uint32(schemas.NamespaceMnt, h.MntNS)
	b.Uint32(schemas.NamespaceNet, h.NetNS)
	b.Uint32(schemas.NamespaceUser, h.UserNS)
	b.Uint64(schemas.CgroupID, h.CgroupID)

	b.Str(schemas.ProcessName, p.Name)
	b.Str(schemas.ProcessExe, p.Exe)
	b.Str(schemas.ProcessCommand, p.Command)
	b.Str(schemas.ProcessArgs, p.Args)
	b.Str(schemas.ProcessCwd, p.Cwd)
	b.Uint32(schemas.ProcessTTY, p.TTY)
	b.Uint32(schemas.ProcessSessionPID, p.SessionID)
	b.Uint32(schemas.ProcessGroupPID, p.GroupID)
	b.Uint64(schemas.ProcessCapEffective, p.CapEffective)
	b.Uint64(schemas.ProcessCapPermitted, p.CapPermitted)
	b.Uint32(schemas.ContainerExec, p.ContainerExec)
	if p.ContainerStart != 0 {
		b.Int64(schemas.ContainerStart, int64(p.ContainerStart)+offset)
	}
	if session != nil {
		b.Str(schemas.ProcessSessionName, session.Name)
		b.Str(schemas.SessionCommand, session.Command)
		b.Str(schemas.SessionExe, session.Exe)
	}
	if group != nil {
		b.Str(schemas.GroupLeaderName, group.Name)
		b.Str(schemas.GroupLeaderCommand, group.Command)
		b.Str(schemas.GroupLeaderExe, group.Exe)
	}

	ppid, parentStart := h.ParentTGID, h.ParentStartTime
	if len(l.ancestors) > 0 {
		ppid, parentStart = l.ancestors[0].PID, l.ancestors[0].Start
	}
	l.tellAncestors()
	if parentStart != 0 {
		b.Int64(schemas.ParentStart, int64(parentStart)+offset)
	}
	b.Uint32(schemas.ProcessParentPID, ppid)
	s.ignoreProcess(p, l.ancestors, h.StartTime)
	return l.container()
}

func sessionOf(p *proctree.Proc) uint32 { return p.SessionID }
func groupOf(p *proctree.Proc) uint32   { return p.GroupID }

// leader returns the leader of p's session or process group id; when it is gone,
// the eldest ancestor in it, as far as all between are. nil: there is no id.
func (l *lane) leader(p *proctree.Proc, id uint32, of func(*proctree.Proc) uint32) *proctree.Proc {
	if id == 0 {
		return nil
	}
	if leader := l.s.tree.At(id, 0, l.ev.Header.Time); leader != nil {
		return leader
	}
	for _, a := range l.ancestors {
		if of(a) != id {
			break
		}
		p = a
	}
	return p
}

// maxAncestorArgs is how many bytes of each ancestor's arguments are told.
const maxAncestorArgs = 4096

func (l *lane) tellAncestors() {
	b, digits := l.who, l.digits[:0]
	l.names, l.exes, l.commands, l.args, l.pids = l.names[:0], l.exes[:0], l.commands[:0], l.args[:0], l.pids[:0]
	for _, a := range l.ancestors {
		l.names, l.exes, l.commands = append(l.names, a.Name), append(l.exes, a.Exe), append(l.commands, a.Command)
		l.args = append(l.args, a.Args[:min(len(a.Args), maxAncestorArgs)])
		from := len(digits)
		digits = strconv.AppendUint(digits, uint64(a.PID), 10)
		l.pids = append(l.pids, unsafe.String(&digits[from], len(digits)-from)) // copied before digits is used again
	}
	b.List(schemas.AncestorNames, l.names)
	b.List(schemas.AncestorExes, l.exes)
	b.List(schemas.AncestorCommands, l.commands)
	b.List(schemas.AncestorArgs, l.args)
	b.List(schemas.AncestorPIDs, l.pids)
	if len(l.ancestors) == 0 {
		return
	}
	parent := l.ancestors[0]
	b.Str(schemas.ParentName, parent.Name)
	b.Str(schemas.ParentExe, parent.Exe)
	b.Str(schemas.ParentCommand, parent.Command)
	b.Str(schemas.ParentArgs, parent.Args)
	if parent.VPID != 0 {
		b.Uint32(schemas.ParentVPID, parent.VPID)
	}
}

// container sets the container and the names of users in it; it returns false
// when the cgroup is not known (yet).
func (l *lane) container() (known bool) {
	s, b, h := l.s, l.who, &l.ev.Header
	c, known := s.cgroups.Resolve(h.CgroupID, h.TGID)
	if !known {
		s.metrics.unnamed.Inc()
	}
	b.Str(schemas.ContainerID, c.ContainerID)
	b.Str(schemas.PodUID, c.PodUID)
	if c.ContainerID != "" {
		n := l.namesOf(c.ContainerID)
		b.Str(schemas.ContainerRuntime, cmp.Or(c.Runtime, n.Runtime))
		b.Str(schemas.ContainerName, n.Container)
		b.Str(schemas.ContainerImageID, n.ImageID)
		b.Str(schemas.ContainerImage, n.Image)
		b.Str(schemas.ContainerImageTag, n.Tag)
		b.Str(schemas.ContainerImageHash, n.Digest)
		b.Str(schemas.PodName, n.Pod)
		b.Str(schemas.Namespace, n.PodNamespace)
		s.ignoreContainer(h.CgroupID, c, n)
	}

	// A container has a passwd file of its own; only root is root everywhere.
	login := int64(-1)
	if h.LoginUID != bpf.NoID {
		login = int64(h.LoginUID)
		b.Str(schemas.ProcessLoginUserName, s.users.Name(h.LoginUID))
	}
	b.Int64(schemas.ProcessLoginUserID, login)
	switch {
	case c.ContainerID == "":
		b.Str(schemas.ProcessUserName, s.users.Name(h.EUID))
		b.Str(schemas.ProcessGroupName, s.groups.Name(h.EGID))
	case h.EUID == 0:
		b.Str(schemas.ProcessUserName, "root")
	}
	return known
}

// namesOf returns what the runtime says of a container: read at the first event
// in it, once.
func (l *lane) namesOf(id string) containerid.Names {
	s, h := l.s, &l.ev.Header
	if n, ok := s.runtimes.Known(id); ok {
		return n
	}
	outside := h.ParentTGID
	if in, ok := s.cgroups.ResolvePID(outside); !ok || in.ContainerID == "" || in.ContainerID == id {
		outside = 0 // on the host, which is looked through anyway; or one that must not speak for itself
	}
	n, ok := s.runtimes.Read(id, outside)
	if !ok {
		s.metrics.nameless.Inc()
	}
	return n
}
