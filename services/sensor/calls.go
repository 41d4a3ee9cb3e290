package sensor

import (
	"math/bits"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"picket/bpf"
	"picket/schemas"
	"picket/services/sensor/proctree"
)

// call adds a call of class kernel, whose header has the state after it.
func (l *lane) call(p *proctree.Proc) *proctree.Proc {
	h, e, b := &l.ev.Header, &l.ev.Call, l.b
	name := l.ev.Syscall()
	c := systemCalls[name]
	b.Str(schemas.Action, c.Action)
	b.Str(schemas.Syscall, name)
	b.Int64(schemas.Result, e.Result)
	b.Uint64(schemas.FileInode, e.Ino)
	b.Bool(schemas.UserMemory, (e.PathFlags|e.TargetFlags)&bpf.PathUser != 0)
	l.before(p)

	a := callArgs{e: e, users: l.userNames()}
	if len(e.Base)+len(e.Path) > 0 && c.Action != "memfd" && c.Action != "key" {
		a.path = fullPath(e.Base, e.Path)
		b.Str(schemas.FilePath, a.path)
	} else {
		a.path = string(e.Path)
	}
	if len(e.TargetBase)+len(e.Target) > 0 {
		a.target = string(e.Target)
		if name == "pivot_root" || name == "move_mount" {
			a.target = fullPath(e.TargetBase, e.Target)
		}
		b.Str(schemas.FilePathTarget, a.target)
	}
	if target := l.target(c.Action); target != nil {
		a.target = strconv.FormatUint(uint64(target.PID), 10)
		b.Uint32(schemas.TargetPID, target.PID)
		b.Str(schemas.TargetName, target.Name)
		b.Str(schemas.TargetExe, target.Exe)
	}
	l.pairs = l.pairs[:0]
	for _, arg := range c.Args {
		if v := a.value(name, arg); v != "" {
			l.pairs = append(l.pairs, arg, v)
		}
	}
	b.Pairs(schemas.CallArguments, l.pairs)
	return l.s.tree.SetCredentials(p, h.EUID, e.CapEffective, e.CapPermitted)
}

// before tells what the process might do until now.
func (l *lane) before(p *proctree.Proc) {
	if !p.HasCredentials {
		return
	}
	l.b.Uint32(schemas.UserIDBefore, p.UserID)
	l.b.Uint64(schemas.CapEffBefore, p.CapEffective)
	l.b.Uint64(schemas.CapPermBefore, p.CapPermitted)
}

// target returns the process that the call is for, or nil.
func (l *lane) target(action string) *proctree.Proc {
	h, e := &l.ev.Header, &l.ev.Call
	switch action {
	case "signal":
		p := proctree.Proc{PID: e.SubjectTGID}
		if known := l.s.tree.At(e.SubjectTGID, e.SubjectStartTime, h.Time); known != nil {
			p = *known
		}
		p.Name = bpf.String(e.Text[:]) // as it was then, also while it was about to run another program
		return &p
	case "ptrace":
		if e.Args[0] == unix.PTRACE_TRACEME {
			return nil
		}
		return l.s.tree.ByVPID(h.PIDNS, uint32(e.Args[1]))
	case "process_vm":
		return l.s.tree.ByVPID(h.PIDNS, uint32(e.Args[0]))
	}
	return nil
}

// userNames returns what names a user of the acting process: a container has a
// passwd file of its own.
func (l *lane) userNames() func(uint32) string {
	h := &l.ev.Header
	if c, _ := l.s.cgroups.Resolve(h.CgroupID, h.TGID); c.ContainerID != "" {
		return func(uint32) string { return "" }
	}
	return l.s.users.Name
}

// callArgs is what the arguments of one call are told from.
type callArgs struct {
	e            *bpf.CallEvent
	path, target string
	users        func(uint32) string
}

var systemCalls = func() map[string]schemas.Call {
	m := map[string]schemas.Call{}
	for _, c := range schemas.Calls() {
		m[c.Name] = c
	}
	return m
}()

// at says where a call has an argument that is told as it is, by the argument's
// name; from 0.
var at = map[string]map[string]int{
	"setuid": {"uid": 0}, "setfsuid": {"uid": 0}, "setreuid": {"ruid": 0, "euid": 1}, "setresuid": {"ruid": 0, "euid": 1, "suid": 2},
	"setgid": {"gid": 0}, "setfsgid": {"gid": 0}, "setregid": {"rgid": 0, "egid": 1}, "setresgid": {"rgid": 0, "egid": 1, "sgid": 2},
	"setgroups": {"size": 0},
	"setns":     {"fd": 0, "nstype": 1}, "unshare": {"flags": 0},
	"mount": {"flags": 3}, "open_tree": {"flags": 2}, "move_mount": {"flags": 4}, "fsopen": {"flags": 1}, "fsconfig": {"fd": 0, "cmd": 1},
	"fsmount": {"fd": 0, "flags": 1, "attr_flags": 2}, "fspick": {"flags": 2}, "mount_setattr": {"flags": 2}, "umount2": {"flags": 1},
	"ptrace": {"request": 0, "pid": 1}, "process_vm_readv": {"pid": 0}, "process_vm_writev": {"pid": 0},
	"pidfd_getfd": {"pid_fd": 0, "target_fd": 1, "flags": 2},
	"init_module": {"length": 1}, "finit_module": {"fd": 0, "flags": 2}, "delete_module": {"flags": 1},
	"bpf": {"cmd": 0}, "perf_event_open": {"pid": 1, "cpu": 2, "flags": 4},
	"memfd_create": {"flags": 1}, "memfd_secret": {"flags": 0}, "userfaultfd": {"flags": 0}, "io_uring_setup": {"entries": 0},
	"add_key": {"keyring": 4}, "request_key": {"keyring": 3}, "keyctl": {"operation": 0, "arg2": 1},
	"prctl": {"option": 0, "arg2_int": 1}, "seccomp": {"op": 0, "flags": 1}, "personality": {"persona": 0},
	"kexec_load": {"nr_segments": 1, "flags": 3}, "kexec_file_load": {"flags": 4}, "swapon": {"flags": 1}, "clock_settime": {"clock": 0},
	"quotactl": {"cmd": 0, "id": 2}, "quotactl_fd": {"cmd": 1, "id": 2},
	"mmap": {"addr": 0, "length": 1, "prot": 2, "flags": 3}, "mprotect": {"addr": 0, "length": 1, "prot": 2}, "pkey_mprotect": {"addr": 0, "length": 1, "prot": 2},
	"iopl": {"level": 0}, "ioperm": {"from": 0, "num": 1, "turn_on": 2}, "syslog": {"type": 0},
	"kill": {"sig": 0}, "tkill": {"sig": 0}, "tgkill": {"sig": 0}, "rt_sigqueueinfo": {"sig": 0}, "rt_tgsigqueueinfo": {"sig": 0}, "pidfd_send_signal": {"sig": 0},
	"commit_creds": {"euid": 0},
}

// value tells one argument; "" where there is nothing to tell.
func (a *callArgs) value(call, arg string) string {
	if i, ok := at[call][arg]; ok {
		return a.number(call, arg, a.e.Args[i])
	}
	e := a.e
	switch arg {
	case "path", "dir", "to_path", "new_root", "description", "special":
		return a.path
	case "dev", "from_path", "put_old", "value", "pid":
		return a.target
	case "name":
		switch call {
		case "umount", "umount2", "memfd_create":
			return a.path
		case "sethostname", "setdomainname": // not ended by a NUL byte
			return string(e.Text[:min(e.Args[1], uint64(len(e.Text)))])
		}
		return bpf.String(e.Text[:])
	case "key":
		return bpf.String(e.Text[:])
	case "type":
		switch call {
		case "bpf":
			return a.bpfType()
		case "perf_event_open":
			return name(perfTypes, uint64(e.Type))
		}
		return bpf.String(e.Text[:])
	case "inode":
		return strconv.FormatUint(e.Ino, 10)
	case "config":
		return "0x" + strconv.FormatUint(e.Number, 16)
	case "flags":
		return flags(ioUringFlags, e.Number)
	case "seconds":
		return strconv.FormatInt(int64(e.Number), 10)
	case "cap_inheritable":
		return capabilities(e.CapInheritable)
	case "cap_permitted":
		return capabilities(e.CapPermitted)
	case "cap_effective":
		return capabilities(e.CapEffective)
	}
	return ""
}

func (a *callArgs) bpfType() string {
	switch a.e.Args[0] {
	case unix.BPF_PROG_LOAD, unix.BPF_RAW_TRACEPOINT_OPEN, unix.BPF_LINK_CREATE:
		return name(bpfProgramTypes, uint64(a.e.Type))
	case unix.BPF_MAP_CREATE:
		return name(bpfMapTypes, uint64(a.e.Type))
	}
	return ""
}

// number tells a register in the words of its argument.
func (a *callArgs) number(call, arg string, v uint64) string {
	switch arg {
	case "uid", "ruid", "euid", "suid":
		if n := a.users(uint32(v)); n != "" && int32(v) != -1 {
			return n
		}
		return strconv.FormatInt(int64(int32(v)), 10)
	case "gid", "rgid", "egid", "sgid", "fd", "pid", "pid_fd", "target_fd", "cpu", "keyring", "id", "clock":
		return strconv.FormatInt(int64(int32(v)), 10)
	case "sig":
		if s := unix.SignalName(unix.Signal(v)); s != "" {
			return s
		}
	case "request":
		return name(ptraceRequests, v)
	case "nstype":
		return flags(nsTypes, v)
	case "prot":
		return flags(protFlags, v)
	case "option":
		return name(prctlOptions, v)
	case "operation":
		return name(keyctlOperations, v)
	case "op":
		return name(seccompOperations, v)
	case "cmd":
		switch call {
		case "bpf":
			return name(bpfCommands, v)
		case "fsconfig":
			return name(fsconfigCommands, v)
		}
		return "0x" + strconv.FormatUint(v, 16)
	case "flags":
		switch call {
		case "unshare":
			return flags(nsTypes, v)
		case "mount":
			return flags(mountFlags, v)
		case "umount2":
			return flags(umountFlags, v)
		case "memfd_create":
			return flags(memfdFlags, v)
		case "mmap":
			return flags(mapFlags, v)
		}
		return "0x" + strconv.FormatUint(v, 16)
	case "persona", "addr":
		return "0x" + strconv.FormatUint(v, 16)
	case "arg2_int", "arg2":
		return strconv.FormatInt(int64(v), 10)
	}
	return strconv.FormatUint(v, 10)
}

// name returns the name of a value, or the value itself.
func name(names map[uint64]string, v uint64) string {
	if n, ok := names[v]; ok {
		return n
	}
	return strconv.FormatUint(v, 10)
}

// flag is a bit, or several, with a name.
type flag struct {
	bits uint64
	name string
}

// flags returns the names of the set bits, joined by "|" as Falco does; what has
// no name as a number.
func flags(names []flag, v uint64) string {
	var b strings.Builder
	put := func(s string) {
		if b.Len() > 0 {
			b.WriteByte('|')
		}
		b.WriteString(s)
	}
	for _, f := range names {
		if v&f.bits == f.bits {
			put(f.name)
			v &^= f.bits
		}
	}
	if v != 0 || b.Len() == 0 {
		put("0x" + strconv.FormatUint(v, 16))
	}
	return b.String()
}

func capabilities(mask uint64) string {
	var b strings.Builder
	for ; mask != 0; mask &= mask - 1 {
		if n := bits.TrailingZeros64(mask); n < len(schemas.CapabilityNames) {
			if b.Len() > 0 {
				b.WriteByte('|')
			}
			b.WriteString(schemas.CapabilityNames[n])
		}
	}
	if b.Len() == 0 {
		return "0"
	}
	return b.String()
}

// The names of the system call interface (include/uapi/linux).

var cloneFlags = []flag{{unix.CLONE_NEWNS, "CLONE_NEWNS"}, {unix.CLONE_NEWCGROUP, "CLONE_NEWCGROUP"}, {unix.CLONE_NEWUTS, "CLONE_NEWUTS"},
	{unix.CLONE_NEWIPC, "CLONE_NEWIPC"}, {unix.CLONE_NEWUSER, "CLONE_NEWUSER"}, {unix.CLONE_NEWPID, "CLONE_NEWPID"}, {unix.CLONE_NEWNET, "CLONE_NEWNET"},
	{unix.CLONE_FS, "CLONE_FS"}, {unix.CLONE_FILES, "CLONE_FILES"}, {unix.CLONE_SYSVSEM, "CLONE_SYSVSEM"}, {unix.CLONE_VM, "CLONE_VM"},
	{unix.CLONE_VFORK, "CLONE_VFORK"}, {unix.CLONE_PARENT, "CLONE_PARENT"}, {unix.CLONE_SIGHAND, "CLONE_SIGHAND"}, {unix.CLONE_PIDFD, "CLONE_PIDFD"},
	{unix.CLONE_PTRACE, "CLONE_PTRACE"}, {unix.CLONE_UNTRACED, "CLONE_UNTRACED"}, {unix.CLONE_SETTLS, "CLONE_SETTLS"},
	{unix.CLONE_PARENT_SETTID, "CLONE_PARENT_SETTID"}, {unix.CLONE_CHILD_CLEARTID, "CLONE_CHILD_CLEARTID"}, {unix.CLONE_CHILD_SETTID, "CLONE_CHILD_SETTID"},
	{unix.CLONE_IO, "CLONE_IO"}, {unix.CLONE_CLEAR_SIGHAND, "CLONE_CLEAR_SIGHAND"}, {unix.CLONE_INTO_CGROUP, "CLONE_INTO_CGROUP"}}

// nsTypes are those of setns and unshare, where the low byte holds flags too.
var nsTypes = append([]flag{{unix.CLONE_NEWTIME, "CLONE_NEWTIME"}}, cloneFlags...)

// exitSignal are the bits of clone's flags that hold the signal to the parent.
const exitSignal = 0xff

var mountFlags = []flag{{unix.MS_RDONLY, "MS_RDONLY"}, {unix.MS_NOSUID, "MS_NOSUID"}, {unix.MS_NODEV, "MS_NODEV"}, {unix.MS_NOEXEC, "MS_NOEXEC"},
	{unix.MS_SYNCHRONOUS, "MS_SYNCHRONOUS"}, {unix.MS_REMOUNT, "MS_REMOUNT"}, {unix.MS_MANDLOCK, "MS_MANDLOCK"}, {unix.MS_DIRSYNC, "MS_DIRSYNC"},
	{unix.MS_NOSYMFOLLOW, "MS_NOSYMFOLLOW"}, {unix.MS_NOATIME, "MS_NOATIME"}, {unix.MS_NODIRATIME, "MS_NODIRATIME"}, {unix.MS_BIND, "MS_BIND"},
	{unix.MS_MOVE, "MS_MOVE"}, {unix.MS_REC, "MS_REC"}, {unix.MS_SILENT, "MS_SILENT"}, {unix.MS_POSIXACL, "MS_POSIXACL"},
	{unix.MS_UNBINDABLE, "MS_UNBINDABLE"}, {unix.MS_PRIVATE, "MS_PRIVATE"}, {unix.MS_SLAVE, "MS_SLAVE"}, {unix.MS_SHARED, "MS_SHARED"},
	{unix.MS_RELATIME, "MS_RELATIME"}, {unix.MS_STRICTATIME, "MS_STRICTATIME"}, {unix.MS_LAZYTIME, "MS_LAZYTIME"}}

var umountFlags = []flag{{unix.MNT_FORCE, "FORCE"}, {unix.MNT_DETACH, "DETACH"}, {unix.MNT_EXPIRE, "EXPIRE"}, {unix.UMOUNT_NOFOLLOW, "NOFOLLOW"}}

var memfdFlags = []flag{{unix.MFD_CLOEXEC, "MFD_CLOEXEC"}, {unix.MFD_ALLOW_SEALING, "MFD_ALLOW_SEALING"}, {unix.MFD_HUGETLB, "MFD_HUGETLB"},
	{unix.MFD_NOEXEC_SEAL, "MFD_NOEXEC_SEAL"}, {unix.MFD_EXEC, "MFD_EXEC"}}

var mapFlags = []flag{{unix.MAP_SHARED_VALIDATE, "MAP_SHARED_VALIDATE"}, {unix.MAP_SHARED, "MAP_SHARED"}, {unix.MAP_PRIVATE, "MAP_PRIVATE"},
	{unix.MAP_FIXED, "MAP_FIXED"}, {unix.MAP_ANONYMOUS, "MAP_ANONYMOUS"}, {unix.MAP_NORESERVE, "MAP_NORESERVE"}, {unix.MAP_POPULATE, "MAP_POPULATE"},
	{unix.MAP_STACK, "MAP_STACK"}, {unix.MAP_HUGETLB, "MAP_HUGETLB"}, {unix.MAP_FIXED_NOREPLACE, "MAP_FIXED_NOREPLACE"}}

var protFlags = []flag{{unix.PROT_READ, "PROT_READ"}, {unix.PROT_WRITE, "PROT_WRITE"}, {unix.PROT_EXEC, "PROT_EXEC"}}

var ioUringFlags = []flag{{1 << 0, "IORING_SETUP_IOPOLL"}, {1 << 1, "IORING_SETUP_SQPOLL"}, {1 << 2, "IORING_SETUP_SQ_AFF"}, {1 << 3, "IORING_SETUP_CQSIZE"},
	{1 << 4, "IORING_SETUP_CLAMP"}, {1 << 5, "IORING_SETUP_ATTACH_WQ"}, {1 << 6, "IORING_SETUP_R_DISABLED"}, {1 << 7, "IORING_SETUP_SUBMIT_ALL"},
	{1 << 8, "IORING_SETUP_COOP_TASKRUN"}, {1 << 9, "IORING_SETUP_TASKRUN_FLAG"}, {1 << 10, "IORING_SETUP_SQE128"}, {1 << 11, "IORING_SETUP_CQE32"},
	{1 << 12, "IORING_SETUP_SINGLE_ISSUER"}, {1 << 13, "IORING_SETUP_DEFER_TASKRUN"}, {1 << 14, "IORING_SETUP_NO_MMAP"},
	{1 << 15, "IORING_SETUP_REGISTERED_FD_ONLY"}, {1 << 16, "IORING_SETUP_NO_SQARRAY"}}

var ptraceRequests = map[uint64]string{0: "PTRACE_TRACEME", 4: "PTRACE_POKETEXT", 5: "PTRACE_POKEDATA", 6: "PTRACE_POKEUSR", 8: "PTRACE_KILL",
	13: "PTRACE_SETREGS", 15: "PTRACE_SETFPREGS", 16: "PTRACE_ATTACH", 0x4203: "PTRACE_SETSIGINFO", 0x4205: "PTRACE_SETREGSET",
	0x4206: "PTRACE_SEIZE", 0x4212: "PTRACE_SET_SYSCALL_INFO"}

var prctlOptions = map[uint64]string{4: "PR_SET_DUMPABLE", 8: "PR_SET_KEEPCAPS", 22: "PR_SET_SECCOMP", 28: "PR_SET_SECUREBITS", 35: "PR_SET_MM",
	36: "PR_SET_CHILD_SUBREAPER", 47: "PR_CAP_AMBIENT", 0x59616d61: "PR_SET_PTRACER"}

var keyctlOperations = names("KEYCTL_", `GET_KEYRING_ID JOIN_SESSION_KEYRING UPDATE REVOKE CHOWN SETPERM DESCRIBE CLEAR LINK UNLINK SEARCH READ INSTANTIATE
	NEGATE SET_REQKEY_KEYRING SET_TIMEOUT ASSUME_AUTHORITY GET_SECURITY SESSION_TO_PARENT REJECT INSTANTIATE_IOV INVALIDATE GET_PERSISTENT DH_COMPUTE
	PKEY_QUERY PKEY_ENCRYPT PKEY_DECRYPT PKEY_SIGN PKEY_VERIFY RESTRICT_KEYRING MOVE CAPABILITIES WATCH_KEY`)

var seccompOperations = names("SECCOMP_", "SET_MODE_STRICT SET_MODE_FILTER")

var fsconfigCommands = names("FSCONFIG_", "SET_FLAG SET_STRING SET_BINARY SET_PATH SET_PATH_EMPTY SET_FD CMD_CREATE CMD_RECONFIGURE CMD_CREATE_EXCL")

var perfTypes = names("PERF_TYPE_", "HARDWARE SOFTWARE TRACEPOINT HW_CACHE RAW BREAKPOINT")

var bpfCommands = names("BPF_", `MAP_CREATE MAP_LOOKUP_ELEM MAP_UPDATE_ELEM MAP_DELETE_ELEM MAP_GET_NEXT_KEY PROG_LOAD OBJ_PIN OBJ_GET PROG_ATTACH
	PROG_DETACH PROG_TEST_RUN PROG_GET_NEXT_ID MAP_GET_NEXT_ID PROG_GET_FD_BY_ID MAP_GET_FD_BY_ID OBJ_GET_INFO_BY_FD PROG_QUERY RAW_TRACEPOINT_OPEN
	BTF_LOAD BTF_GET_FD_BY_ID TASK_FD_QUERY MAP_LOOKUP_AND_DELETE_ELEM MAP_FREEZE BTF_GET_NEXT_ID MAP_LOOKUP_BATCH MAP_LOOKUP_AND_DELETE_BATCH
	MAP_UPDATE_BATCH MAP_DELETE_BATCH LINK_CREATE LINK_UPDATE LINK_GET_FD_BY_ID LINK_GET_NEXT_ID ENABLE_STATS ITER_CREATE LINK_DETACH PROG_BIND_MAP
	TOKEN_CREATE PROG_STREAM_READ_BY_FD`)

var bpfProgramTypes = names("BPF_PROG_TYPE_", `UNSPEC SOCKET_FILTER KPROBE SCHED_CLS SCHED_ACT TRACEPOINT XDP PERF_EVENT CGROUP_SKB CGROUP_SOCK LWT_IN
	LWT_OUT LWT_XMIT SOCK_OPS SK_SKB CGROUP_DEVICE SK_MSG RAW_TRACEPOINT CGROUP_SOCK_ADDR LWT_SEG6LOCAL LIRC_MODE2 SK_REUSEPORT FLOW_DISSECTOR
	CGROUP_SYSCTL RAW_TRACEPOINT_WRITABLE CGROUP_SOCKOPT TRACING STRUCT_OPS EXT LSM SK_LOOKUP SYSCALL NETFILTER`)

var bpfMapTypes = names("BPF_MAP_TYPE_", `UNSPEC HASH ARRAY PROG_ARRAY PERF_EVENT_ARRAY PERCPU_HASH PERCPU_ARRAY STACK_TRACE CGROUP_ARRAY LRU_HASH
	LRU_PERCPU_HASH LPM_TRIE ARRAY_OF_MAPS HASH_OF_MAPS DEVMAP SOCKMAP CPUMAP XSKMAP SOCKHASH CGROUP_STORAGE REUSEPORT_SOCKARRAY PERCPU_CGROUP_STORAGE
	QUEUE STACK SK_STORAGE DEVMAP_HASH STRUCT_OPS RINGBUF INODE_STORAGE TASK_STORAGE BLOOM_FILTER USER_RINGBUF CGRP_STORAGE ARENA INSN_ARRAY`)

// names numbers a list of names, from 0.
func names(prefix, list string) map[uint64]string {
	m := map[uint64]string{}
	for i, n := range strings.Fields(list) {
		m[uint64(i)] = prefix + n
	}
	return m
}
