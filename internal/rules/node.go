package rules

import (
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"picket/internal/batch"
	"picket/schemas"
)

// The fields of kernel events that are computed; those that read one column as
// it is come from the registry (fields.go).

func textOf(classes schemas.ClassSet, keys []schemas.FieldID, f func(dst []byte, r *row, a *argument) []byte) []reader {
	return []reader{{classes: classes, keys: keys, text: f}}
}

func number(classes schemas.ClassSet, f func(r *row, a *argument) (int64, bool)) []reader {
	return []reader{{classes: classes, num: f}}
}

func column(classes schemas.ClassSet, id schemas.FieldID) reader {
	return reader{classes: classes, column: id, isColumn: true}
}

func constant(classes schemas.ClassSet, v string) reader {
	return reader{classes: classes, constant: v, isConst: true}
}

// keys is a short way to write the key columns of a reader.
func keys(ids ...schemas.FieldID) []schemas.FieldID { return ids }

// timeText renders the event's time.
func timeText(layout string, trim time.Duration) func(dst []byte, r *row, _ *argument) []byte {
	return func(dst []byte, r *row, _ *argument) []byte {
		return time.Unix(0, r.int(schemas.EventTime)).UTC().Truncate(trim).AppendFormat(dst, layout)
	}
}

func bool01(b bool) (int64, bool) {
	if b {
		return 1, true
	}
	return 0, true
}

var eventFields = []field{
	{name: "evt.num", kind: kindUint, doc: "Sequence number of the event within its node, CPU, class and boot; from 1.",
		readers: number(nodeClasses, func(r *row, _ *argument) (int64, bool) {
			n := r.uint(schemas.Sequence)
			return int64(n), n != 0
		})},
	{name: "evt.dir", doc: "< in every event: system calls are recorded when they return.",
		readers: []reader{constant(nodeClasses, "<")}},
	{name: "evt.source", doc: "syscall or k8s_audit.",
		readers: []reader{constant(nodeClasses, "syscall"), constant(auditOnly, "k8s_audit")}},
	{name: "evt.category", doc: "process, file, net or system (class kernel).",
		readers: []reader{constant(processOnly, "process"), constant(fileOnly, "file"), constant(networkOnly, "net"), constant(kernelOnly, "system")}},
	{name: "evt.action", doc: "What happened: exec, fork, exit; open, rename, unlink, rmdir, mkdir, link, symlink, chmod, chown, mknod, truncate, utimes, setxattr, removexattr; connect, accept, socket, bind, listen, send, close, dup; setuid, mount, ptrace and the others of class kernel; query, response; audit. A name of Picket's own.",
		readers: []reader{column(sourceClasses, schemas.Action)}},
	{name: "evt.time", doc: "Time of day, UTC, with nanoseconds.", readers: textOf(sourceClasses, nil, timeText("15:04:05.000000000", 1))},
	{name: "evt.time.s", doc: "Time of day, UTC, without the part of a second.", readers: textOf(sourceClasses, nil, timeText("15:04:05", time.Second))},
	{name: "evt.time.iso8601", doc: "Date and time, UTC, RFC 3339 with nanoseconds.", readers: textOf(sourceClasses, nil, timeText("2006-01-02T15:04:05.000000000Z07:00", 1))},
	{name: "evt.datetime", doc: "Date and time, UTC, with nanoseconds.", readers: textOf(sourceClasses, nil, timeText("2006-01-02 15:04:05.000000000", 1))},
	{name: "evt.datetime.s", doc: "Date and time, UTC, without the part of a second.", readers: textOf(sourceClasses, nil, timeText("2006-01-02 15:04:05", time.Second))},
	{name: "evt.rawtime.s", kind: kindInt, doc: "Seconds since the epoch.",
		readers: number(sourceClasses, func(r *row, _ *argument) (int64, bool) { return r.int(schemas.EventTime) / 1e9, true })},
	{name: "evt.rawtime.ns", kind: kindInt, doc: "Nanoseconds within the second.",
		readers: number(sourceClasses, func(r *row, _ *argument) (int64, bool) { return r.int(schemas.EventTime) % 1e9, true })},
	{name: "evt.failed", kind: kindBool, doc: "The system call returned an error.",
		readers: number(nodeClasses, func(r *row, _ *argument) (int64, bool) { return bool01(r.int(schemas.Result) < 0) })},
	{name: "evt.is_open_exec", kind: kindBool, doc: "The open created a file that may be executed.",
		readers: number(fileOnly, func(r *row, _ *argument) (int64, bool) {
			return bool01(created(r) && r.uint(schemas.FileMode)&0o111 != 0)
		})},
	{name: "evt.is_open_create", kind: kindBool, doc: "The open created a file, one without a name (O_TMPFILE) too.",
		readers: number(fileOnly, func(r *row, _ *argument) (int64, bool) { return bool01(created(r)) })},
	{name: "evt.res", doc: "SUCCESS, or the name of the error, such as ENOENT.",
		readers: []reader{{classes: nodeClasses, key: func(r *row) uint64 { return uint64(r.int(schemas.Result)) },
			text: func(dst []byte, r *row, _ *argument) []byte { return appendResult(dst, r.int(schemas.Result)) }}}},
	{name: "evt.args", doc: "The arguments of the system call as name=value, separated by blanks.", readers: allArgs},
	{name: "evt.info", doc: "The same as evt.args.", readers: allArgs},

	{name: "evt.arg.res", kind: kindInt, doc: "Return value of the system call.", readers: []reader{column(nodeClasses, schemas.Result)}},
	{name: "evt.rawarg.res", kind: kindInt, doc: "Return value of the system call.", readers: []reader{column(nodeClasses, schemas.Result)}},
	{name: "evt.rawarg.fd", kind: kindInt, doc: "Number of the file descriptor.", readers: []reader{column(fileOnly|networkOnly, schemas.FDNumber)}},
	{name: "evt.arg.flags", doc: "File events: the flags of the open, as in O_CREAT|O_WRONLY|O_CLOEXEC, and F_CREATED if it created the file. An exec: EXE_UPPER_LAYER, EXE_FROM_MEMFD. A fork: the CLONE_… flags.",
		readers: []reader{
			{classes: fileOnly, key: func(r *row) uint64 {
				if r.str(schemas.Action) != "open" {
					return 1 << 63
				}
				k := r.uint(schemas.FileFlags) << 1
				if r.b.Bool(schemas.FileCreated, r.i) {
					k |= 1
				}
				return k
			}, text: func(dst []byte, r *row, _ *argument) []byte {
				if r.str(schemas.Action) != "open" {
					return dst
				}
				return appendOpenFlags(dst, r.uint(schemas.FileFlags), r.b.Bool(schemas.FileCreated, r.i))
			}},
			{classes: processOnly, text: func(dst []byte, r *row, _ *argument) []byte {
				if r.str(schemas.Action) == "fork" {
					return append(dst, r.str(schemas.CloneFlags)...)
				}
				memfd, upper := r.b.Bool(schemas.ExeMemfd, r.i), r.b.Bool(schemas.ExeUpperLayer, r.i)
				switch {
				case memfd && upper:
					return append(dst, "EXE_UPPER_LAYER|EXE_FROM_MEMFD"...)
				case memfd:
					return append(dst, "EXE_FROM_MEMFD"...)
				case upper:
					return append(dst, "EXE_UPPER_LAYER"...)
				}
				return dst
			}},
		}},
	{name: "evt.arg.name", doc: "File events: the path of what is opened or changed.", readers: []reader{column(fileOnly, schemas.FilePath)}},
	{name: "evt.arg.path", doc: "unlink, rmdir, mkdir, chown, lchown: the path.", readers: changeText(schemas.FilePath, "unlink", "rmdir", "mkdir", "mkdirat", "chown", "lchown")},
	{name: "evt.arg.filename", doc: "Path as it was given to execve; chmod: the path.",
		readers: append([]reader{column(processOnly, schemas.ExecFilename)}, changeText(schemas.FilePath, "chmod", "fchmodat", "fchmodat2")...)},
	{name: "evt.arg.uid", doc: "chown: the new owner, as a number; -1 leaves it.", readers: changeNumber(schemas.FileUserIDNew)},
	{name: "evt.arg.gid", doc: "chown: the new group, as a number; -1 leaves it.", readers: changeNumber(schemas.FileGroupIDNew)},
	{name: "evt.arg.pathname", doc: "fchownat: the path.", readers: changeText(schemas.FilePath, "fchownat")},
	{name: "evt.arg.oldpath", doc: "rename: the old path; link: the file that gets the name.", readers: textOf(fileOnly, nil, func(dst []byte, r *row, _ *argument) []byte {
		switch r.str(schemas.Action) {
		case "rename":
			return append(dst, r.str(schemas.FilePath)...)
		case "link":
			return append(dst, r.str(schemas.FilePathTarget)...)
		}
		return dst
	})},
	{name: "evt.arg.newpath", doc: "rename: the new path; link: the new name.", readers: textOf(fileOnly, nil, func(dst []byte, r *row, _ *argument) []byte {
		switch r.str(schemas.Action) {
		case "rename":
			return append(dst, r.str(schemas.FilePathTarget)...)
		case "link":
			return append(dst, r.str(schemas.FilePath)...)
		}
		return dst
	})},
	{name: "evt.arg.target", doc: "symlink: the text that it holds.", readers: changeText(schemas.FilePathTarget, "symlink", "symlinkat")},
	{name: "evt.arg.linkpath", doc: "symlink: its path.", readers: changeText(schemas.FilePath, "symlink", "symlinkat")},
	{name: "evt.arg.fd", kind: kindInt, doc: "Number of the file descriptor.", readers: []reader{column(fileOnly|networkOnly, schemas.FDNumber)}},
	{name: "evt.arg.mode", doc: "An open: permission bits of the inode, octal. mkdir: those asked for, octal. chmod: those asked for by name, as in S_IXUSR|S_IRUSR|S_ISUID.",
		readers: textOf(fileOnly, nil, appendMode)},
	{name: "evt.arg.exe", doc: "An exec: argv[0].", readers: []reader{column(processOnly, schemas.ProcessCommand)}},
	{name: "evt.arg.args", empty: true, doc: "An exec: the arguments after argv[0], joined by one blank.", readers: []reader{column(processOnly, schemas.ProcessArgs)}},
	{name: "evt.arg.cwd", doc: "An exec: the working directory.", readers: []reader{column(processOnly, schemas.ProcessCwd)}},
	{name: "evt.arg.sig", doc: "An exit: the signal that ended the process, as in SIGKILL; 0 if none did.", readers: textOf(processOnly, nil, func(dst []byte, r *row, _ *argument) []byte {
		if r.str(schemas.Action) != "exit" {
			return dst
		}
		sig := r.uint(schemas.ExitSignal)
		if name := unix.SignalName(syscall.Signal(sig)); name != "" {
			return append(dst, name...)
		}
		return strconv.AppendUint(dst, sig, 10)
	})},
	{name: "evt.arg.domain", doc: "socket: the address family, as in AF_PACKET.", readers: ofSocket(func(dst []byte, r *row) []byte {
		if name, ok := familyNames[r.str(schemas.NetType)]; ok {
			return append(dst, name...)
		}
		return dst
	})},
	{name: "evt.arg.type", doc: "socket: the type, as in SOCK_RAW.", readers: ofSocket(func(dst []byte, r *row) []byte {
		return append(append(dst, "SOCK_"...), upperASCII(r.str(schemas.NetSocketType))...)
	})},
	{name: "evt.arg.proto", doc: "socket: the protocol's number.", readers: ofSocket(func(dst []byte, r *row) []byte {
		return strconv.AppendUint(dst, r.uint(schemas.NetProtocol), 10)
	})},
	{name: "evt.arg.backlog", kind: kindUint, doc: "listen: how many connections may wait.", readers: []reader{column(networkOnly, schemas.NetBacklog)}},
	{name: "evt.arg.tuple", doc: "Network events: the connection, as in fd.name.", readers: textOf(networkOnly, nil, socketName)},
}

var allArgs = slices.Concat(textOf(processOnly, nil, execArgs), textOf(fileOnly, nil, fileArgs), textOf(networkOnly, nil, socketArgs), textOf(kernelOnly, nil, callArgs))

// created reports whether the event is an open that made the file.
func created(r *row) bool {
	return r.b.Bool(schemas.FileCreated, r.i) || r.uint(schemas.FileFlags)&unix.O_TMPFILE == unix.O_TMPFILE
}

func appendResult(dst []byte, res int64) []byte {
	if res >= 0 {
		return append(dst, "SUCCESS"...)
	}
	if res > -4096 {
		if name := unix.ErrnoName(syscall.Errno(-res)); name != "" {
			return append(dst, name...)
		}
	}
	return strconv.AppendInt(dst, res, 10)
}

// openFlags are the names of open's flags in the order in which Falco prints
// them (values of asm-generic/fcntl.h, which x86-64 and arm64's sensor report).
var openFlags = []struct {
	bits uint64
	name string
}{
	{0o100000, "O_LARGEFILE"}, {0o200000, "O_DIRECTORY"}, {0o40000, "O_DIRECT"}, {0o1000, "O_TRUNC"},
	{0o4010000, "O_SYNC"}, {0o4000, "O_NONBLOCK"}, {0o200, "O_EXCL"}, {0o10000, "O_DSYNC"}, {0o2000, "O_APPEND"}, {0o100, "O_CREAT"},
}

var tailFlags = []struct {
	bits uint64
	name string
}{{0o2000000, "O_CLOEXEC"}, {0o20200000, "O_TMPFILE"}, {0o400000, "O_NOFOLLOW"}, {0o10000000, "O_PATH"}, {0o1000000, "O_NOATIME"}}

func appendOpenFlags(dst []byte, flags uint64, created bool) []byte {
	start := len(dst)
	put := func(name string) {
		if len(dst) > start {
			dst = append(dst, '|')
		}
		dst = append(dst, name...)
	}
	tmpfile := flags&0o20200000 == 0o20200000
	for _, f := range openFlags {
		if flags&f.bits == f.bits && !(f.name == "O_DIRECTORY" && tmpfile) && !(f.name == "O_DSYNC" && flags&0o4010000 == 0o4010000) {
			put(f.name)
		}
	}
	put([]string{"O_RDONLY", "O_WRONLY", "O_RDWR", "O_NONE"}[flags&3])
	for _, f := range tailFlags {
		if flags&f.bits == f.bits {
			put(f.name)
		}
	}
	if created {
		put("F_CREATED")
	}
	return dst
}

func appendMode(dst []byte, r *row, _ *argument) []byte {
	switch r.str(schemas.Action) {
	case "open":
		return strconv.AppendUint(append(dst, '0'), r.uint(schemas.FileMode)&0o7777, 8)
	case "mkdir":
		return strconv.AppendUint(append(dst, '0'), r.uint(schemas.FileModeNew)&0o7777, 8)
	case "chmod":
		first := true
		for i, name := range chmodBits {
			if r.uint(schemas.FileModeNew)>>i&1 == 0 {
				continue
			}
			if !first {
				dst = append(dst, '|')
			}
			first = false
			dst = append(dst, name...)
		}
	}
	return dst
}

// chmodBits are the names of the permission bits from the lowest, in which
// order Falco prints them.
var chmodBits = []string{"S_IXOTH", "S_IWOTH", "S_IROTH", "S_IXGRP", "S_IWGRP", "S_IRGRP", "S_IXUSR", "S_IWUSR", "S_IRUSR", "S_ISVTX", "S_ISGID", "S_ISUID"}

// changeNumber reads a column of a chown. It is text because Falco's is: a
// user's name where it knows one.
func changeNumber(id schemas.FieldID) []reader {
	return textOf(fileOnly, nil, func(dst []byte, r *row, _ *argument) []byte {
		if r.str(schemas.Action) != "chown" {
			return dst
		}
		return strconv.AppendInt(dst, r.int(id), 10)
	})
}

// changeText reads a column of the events of some system calls.
func changeText(id schemas.FieldID, calls ...string) []reader {
	return textOf(fileOnly, nil, func(dst []byte, r *row, _ *argument) []byte {
		if slices.Contains(calls, r.str(schemas.Syscall)) {
			return append(dst, r.str(id)...)
		}
		return dst
	})
}

func execArgs(dst []byte, r *row, _ *argument) []byte {
	switch r.str(schemas.Action) {
	case "exec":
		dst = appendResult(append(dst, "res="...), r.int(schemas.Result))
		dst = append(append(dst, " exe="...), r.str(schemas.ProcessCommand)...)
		dst = append(append(dst, " args="...), r.str(schemas.ProcessArgs)...)
		dst = append(append(dst, " cwd="...), r.str(schemas.ProcessCwd)...)
		dst = append(append(dst, " filename="...), r.str(schemas.ExecFilename)...)
	case "exit":
		dst = strconv.AppendInt(append(dst, "ret="...), r.int(schemas.ExitCode), 10)
		dst = strconv.AppendUint(append(dst, " sig="...), r.uint(schemas.ExitSignal), 10)
	case "fork":
		dst = strconv.AppendInt(append(dst, "res="...), r.int(schemas.Result), 10)
		dst = append(append(dst, " flags="...), r.str(schemas.CloneFlags)...)
	}
	return dst
}

func fileArgs(dst []byte, r *row, a *argument) []byte {
	action := r.str(schemas.Action)
	if action != "open" {
		dst = appendResult(append(dst, "res="...), r.int(schemas.Result))
	}
	switch action {
	case "rename":
		dst = append(append(dst, " oldpath="...), r.str(schemas.FilePath)...)
		return append(append(dst, " newpath="...), r.str(schemas.FilePathTarget)...)
	case "link":
		dst = append(append(dst, " oldpath="...), r.str(schemas.FilePathTarget)...)
		return append(append(dst, " newpath="...), r.str(schemas.FilePath)...)
	case "symlink":
		dst = append(append(dst, " target="...), r.str(schemas.FilePathTarget)...)
		return append(append(dst, " linkpath="...), r.str(schemas.FilePath)...)
	case "unlink", "rmdir":
		return append(append(dst, " path="...), r.str(schemas.FilePath)...)
	case "mkdir", "chmod":
		dst = append(append(dst, " path="...), r.str(schemas.FilePath)...)
		return appendMode(append(dst, " mode="...), r, a)
	case "chown":
		dst = append(append(dst, " path="...), r.str(schemas.FilePath)...)
		dst = strconv.AppendInt(append(dst, " uid="...), r.int(schemas.FileUserIDNew), 10)
		return strconv.AppendInt(append(dst, " gid="...), r.int(schemas.FileGroupIDNew), 10)
	}
	dst = strconv.AppendInt(append(dst, "fd="...), r.int(schemas.FDNumber), 10)
	dst = append(append(dst, " name="...), r.str(schemas.FilePath)...)
	dst = appendOpenFlags(append(dst, " flags="...), r.uint(schemas.FileFlags), r.b.Bool(schemas.FileCreated, r.i))
	return appendMode(append(dst, " mode="...), r, a)
}

// familyNames are the kernel's names for network_type.
var familyNames = map[string]string{"unix": "AF_UNIX", "ipv4": "AF_INET", "ipv6": "AF_INET6", "packet": "AF_PACKET", "alg": "AF_ALG", "vsock": "AF_VSOCK", "xdp": "AF_XDP"}

// ofSocket reads events of the call socket.
func ofSocket(f func(dst []byte, r *row) []byte) []reader {
	return textOf(networkOnly, nil, func(dst []byte, r *row, _ *argument) []byte {
		if r.str(schemas.Action) != "socket" {
			return dst
		}
		return f(dst, r)
	})
}

func socketArgs(dst []byte, r *row, a *argument) []byte {
	dst = appendResult(append(dst, "res="...), r.int(schemas.Result))
	dst = strconv.AppendInt(append(dst, " fd="...), r.int(schemas.FDNumber), 10)
	if r.str(schemas.Action) == "socket" {
		dst = append(append(dst, " domain="...), familyNames[r.str(schemas.NetType)]...)
		dst = append(append(dst, " type=SOCK_"...), upperASCII(r.str(schemas.NetSocketType))...)
		return strconv.AppendUint(append(dst, " proto="...), r.uint(schemas.NetProtocol), 10)
	}
	return socketName(append(dst, " tuple="...), r, a)
}

func callArgs(dst []byte, r *row, _ *argument) []byte {
	dst = appendResult(append(dst, "res="...), r.int(schemas.Result))
	for name, value := range r.b.Map(schemas.CallArguments, r.i) {
		dst = append(append(dst, ' '), name...)
		dst = append(append(dst, '='), value...)
	}
	return dst
}

// addCallArguments makes every argument of the calls of class kernel a field,
// or adds it to the field of the same name that other classes have.
func addCallArguments(t map[string]*field) {
	users := map[string][]string{}
	for _, c := range schemas.Calls() {
		for _, arg := range c.Args {
			users[arg] = append(users[arg], c.Name)
		}
	}
	for arg, calls := range users {
		name := "evt.arg." + arg
		f := t[name]
		if f == nil {
			f = &field{name: name, doc: "In words, as Falco tells it. Of "}
			t[name] = f
		} else {
			f.doc += " Class kernel: of "
		}
		f.doc += strings.Join(calls, ", ") + "."
		if f.kind == kindInt {
			f.readers = append(f.readers, number(kernelOnly, func(r *row, _ *argument) (int64, bool) {
				n, err := strconv.ParseInt(string(mapValue(nil, r, schemas.CallArguments, arg)), 10, 64)
				return n, err == nil
			})...)
			continue
		}
		f.readers = append(f.readers, textOf(kernelOnly, nil, func(dst []byte, r *row, _ *argument) []byte {
			return mapValue(dst, r, schemas.CallArguments, arg)
		})...)
	}
}

// commandLine appends name and arguments, which is what Falco calls a command
// line.
func commandLine(name, args schemas.FieldID) func(dst []byte, r *row, _ *argument) []byte {
	return func(dst []byte, r *row, _ *argument) []byte {
		dst = append(dst, r.str(name)...)
		if a := r.str(args); a != "" {
			dst = append(append(dst, ' '), a...)
		}
		return dst
	}
}

// orNA appends the column, or Falco's <NA> where it is empty.
func orNA(id schemas.FieldID) []reader {
	return textOf(nodeClasses, keys(id), func(dst []byte, r *row, _ *argument) []byte {
		if s := r.str(id); s != "" {
			return append(dst, s...)
		}
		return append(dst, "<NA>"...)
	})
}

// idName is orNA for names of users and groups, in which id 0 is root also where
// the host's files do not apply, as in a container.
func idName(name, id schemas.FieldID) []reader {
	return []reader{{classes: nodeClasses, text: func(dst []byte, r *row, _ *argument) []byte {
		switch s := r.str(name); {
		case s != "":
			return append(dst, s...)
		case r.uint(id) == 0:
			return append(dst, "root"...)
		}
		return append(dst, "<NA>"...)
	}}}
}

func ancestors(id schemas.FieldID) []reader {
	return []reader{column(nodeClasses, id)}
}

// ancestor appends the i-th ancestor's entry of a list; 0 is the process itself.
func ancestor(self, id schemas.FieldID) []reader {
	return textOf(nodeClasses, keys(self, id), func(dst []byte, r *row, a *argument) []byte {
		if a.index == 0 {
			return append(dst, r.str(self)...)
		}
		return nth(dst, r, id, a.index-1)
	})
}

// ancestorLine appends the command line of the i-th ancestor, 0 being the parent.
func ancestorLine(dst []byte, r *row, i int) []byte {
	start := len(dst)
	dst = nth(dst, r, schemas.AncestorNames, i)
	if len(dst) == start {
		return dst
	}
	end := len(dst)
	dst = nth(append(dst, ' '), r, schemas.AncestorArgs, i)
	if len(dst) == end+1 {
		return dst[:end]
	}
	return dst
}

// countArgs counts the arguments after argv[0], and their bytes.
func countArgs(r *row) (n, bytes int64) {
	for v := range r.b.List(schemas.ProcessArgv, r.i) {
		n++
		if n > 1 {
			bytes += int64(len(v))
		}
	}
	return max(n-1, 0), bytes
}

var processFields = []field{
	{name: "proc.name", doc: "The kernel's command name, at most 15 bytes.", readers: []reader{column(nodeClasses, schemas.ProcessName)}},
	{name: "proc.args", empty: true, doc: "The arguments after argv[0], joined by one blank.", readers: []reader{column(nodeClasses, schemas.ProcessArgs)}},
	{name: "proc.cmdline", doc: "Command name and arguments: proc.name, a blank, proc.args.",
		readers: textOf(nodeClasses, keys(schemas.ProcessName, schemas.ProcessArgs), commandLine(schemas.ProcessName, schemas.ProcessArgs))},
	{name: "proc.exeline", doc: "argv[0] and arguments: proc.exe, a blank, proc.args.",
		readers: textOf(nodeClasses, keys(schemas.ProcessCommand, schemas.ProcessArgs), commandLine(schemas.ProcessCommand, schemas.ProcessArgs))},
	{name: "proc.pcmdline", doc: "proc.cmdline of the parent.",
		readers: textOf(nodeClasses, keys(schemas.ParentName, schemas.ParentArgs), commandLine(schemas.ParentName, schemas.ParentArgs))},
	{name: "proc.pargs", empty: true, doc: "Arguments of the parent after argv[0]. A name of Picket's own.", readers: []reader{column(nodeClasses, schemas.ParentArgs)}},
	{name: "proc.argv", kind: kindList, arg: argMayIdx, withArg: kindText, doc: "The argument vector of an exec, argv[0] first. A name of Picket's own.",
		readers: []reader{column(processOnly, schemas.ProcessArgv)},
		argReaders: textOf(processOnly, nil, func(dst []byte, r *row, a *argument) []byte {
			return nth(dst, r, schemas.ProcessArgv, a.index)
		})},
	{name: "proc.aname", kind: kindList, anyIn: true, arg: argMayIdx, withArg: kindText, doc: "Command names of the ancestors, at most 8: a comparison holds when it holds for one of them. [n] is the nth ancestor: 0 the process itself, 1 its parent.",
		readers: ancestors(schemas.AncestorNames), argReaders: ancestor(schemas.ProcessName, schemas.AncestorNames)},
	{name: "proc.aexepath", kind: kindList, anyIn: true, arg: argMayIdx, withArg: kindText, doc: "Executables of the ancestors, at most 8, as proc.aname.",
		readers: ancestors(schemas.AncestorExes), argReaders: ancestor(schemas.ProcessExe, schemas.AncestorExes)},
	{name: "proc.aexe", kind: kindList, anyIn: true, arg: argMayIdx, withArg: kindText, doc: "argv[0] of the ancestors, at most 8, as proc.aname.",
		readers: ancestors(schemas.AncestorCommands), argReaders: ancestor(schemas.ProcessCommand, schemas.AncestorCommands)},
	{name: "proc.acmdline", kind: kindList, anyIn: true, arg: argMayIdx, withArg: kindText, doc: "Command lines (name and arguments) of the ancestors, at most 8, of arguments 4,096 bytes, as proc.aname.",
		readers: []reader{{classes: nodeClasses, list: func(l *list, r *row, _ *argument) {
			l.reset()
			for i := range schemas.MaxAncestors {
				start := len(l.buf)
				if l.buf = ancestorLine(l.buf, r, i); len(l.buf) > start {
					l.end()
				}
			}
		}}},
		argReaders: textOf(nodeClasses, keys(schemas.ProcessName, schemas.ProcessArgs, schemas.AncestorNames, schemas.AncestorArgs), func(dst []byte, r *row, a *argument) []byte {
			if a.index == 0 {
				return commandLine(schemas.ProcessName, schemas.ProcessArgs)(dst, r, nil)
			}
			return ancestorLine(dst, r, a.index-1)
		})},
	{name: "proc.apid", kind: kindList, anyIn: true, arg: argMayIdx, withArg: kindInt, doc: "Process ids of the ancestors in the host's pid namespace, at most 8, as proc.aname.",
		readers: ancestors(schemas.AncestorPIDs),
		argReaders: number(nodeClasses, func(r *row, a *argument) (int64, bool) {
			if a.index == 0 {
				return int64(r.uint(schemas.ProcessPID)), true
			}
			i := a.index - 1
			for v := range r.b.List(schemas.AncestorPIDs, r.i) {
				if i == 0 {
					n, err := strconv.ParseInt(v, 10, 64)
					return n, err == nil
				}
				i--
			}
			return 0, false
		})},
	{name: "proc.ppid.duration", kind: kindInt, doc: "Nanoseconds from the fork of the parent to the event.",
		readers: number(nodeClasses, func(r *row, _ *argument) (int64, bool) {
			start := r.int(schemas.ParentStart)
			return r.int(schemas.EventTime) - start, start != 0
		})},
	{name: "proc.cmdnargs", kind: kindUint, doc: "An exec: how many arguments there are after argv[0].",
		readers: number(processOnly, func(r *row, _ *argument) (int64, bool) {
			n, _ := countArgs(r)
			return n, r.str(schemas.Action) == "exec"
		})},
	{name: "proc.cmdlenargs", kind: kindUint, doc: "An exec: bytes of the arguments after argv[0], without blanks between them.",
		readers: number(processOnly, func(r *row, _ *argument) (int64, bool) {
			_, bytes := countArgs(r)
			return bytes, r.str(schemas.Action) == "exec"
		})},
	{name: "proc.duration", kind: kindInt, doc: "Nanoseconds from the fork of the process to the event.",
		readers: number(nodeClasses, func(r *row, _ *argument) (int64, bool) {
			start := r.uint(schemas.ProcessStartBoot)
			return int64(r.uint(schemas.TimeBoot) - start), start != 0
		})},
	{name: "proc.env", arg: argMayName, withArg: kindText, doc: "An exec: the variables that sensors keep (kernel.environment) as NAME=value, separated by blanks. [NAME] is the value of one.",
		readers: textOf(processOnly, nil, func(dst []byte, r *row, _ *argument) []byte {
			first := true
			for name, value := range r.b.Map(schemas.ProcessEnv, r.i) {
				if !first {
					dst = append(dst, ' ')
				}
				first = false
				dst = append(append(append(dst, name...), '='), value...)
			}
			return dst
		}),
		argReaders: []reader{{classes: processOnly, key: mapKey(schemas.ProcessEnv), text: func(dst []byte, r *row, a *argument) []byte {
			return mapValue(dst, r, schemas.ProcessEnv, a.text)
		}}}},
	{name: "proc.exe_ino.ctime_duration_proc_start", kind: kindInt, doc: "Nanoseconds from the last change of the executable's inode to the fork of the process.",
		readers: number(processOnly, func(r *row, _ *argument) (int64, bool) {
			ctime := r.int(schemas.ExeCtime)
			return r.int(schemas.ProcessStart) - ctime, ctime != 0
		})},
	{name: "proc.is_exe_deleted", kind: kindBool, doc: "The executable had no name left in the file system when it was started. A name of Picket's own.",
		readers: []reader{column(processOnly, schemas.ExeDeleted)}},
	{name: "proc.is_vpgid_leader", kind: kindBool, doc: "The process leads its process group.",
		readers: number(nodeClasses, func(r *row, _ *argument) (int64, bool) {
			return bool01(r.uint(schemas.ProcessGroupPID) == r.uint(schemas.ProcessPID))
		})},
	{name: "proc.is_pgid_leader", kind: kindBool, doc: "The same as proc.is_vpgid_leader.",
		readers: number(nodeClasses, func(r *row, _ *argument) (int64, bool) {
			return bool01(r.uint(schemas.ProcessGroupPID) == r.uint(schemas.ProcessPID))
		})},
	{name: "proc.is_sid_leader", kind: kindBool, doc: "The process leads its session.",
		readers: number(nodeClasses, func(r *row, _ *argument) (int64, bool) {
			return bool01(r.uint(schemas.ProcessSessionPID) == r.uint(schemas.ProcessPID))
		})},
	{name: "thread.ismain", kind: kindBool, doc: "The thread is the first of its process.",
		readers: number(nodeClasses, func(r *row, _ *argument) (int64, bool) {
			return bool01(r.uint(schemas.ThreadID) == r.uint(schemas.ProcessPID))
		})},
	{name: "thread.cap_effective", doc: "Names of the effective capabilities, separated by blanks.", readers: capabilities(schemas.ProcessCapEffective)},
	{name: "thread.cap_permitted", doc: "Names of the permitted capabilities, separated by blanks.", readers: capabilities(schemas.ProcessCapPermitted)},

	{name: "user.name", doc: "Name of the effective user; root for id 0, <NA> where the host's passwd file has no name or the process runs in a container.",
		readers: idName(schemas.ProcessUserName, schemas.ProcessUserID)},
	{name: "user.loginname", doc: "Name of the login user; <NA> if nobody logged in.", readers: orNA(schemas.ProcessLoginUserName)},
	{name: "group.name", doc: "Name of the effective group; root for id 0, <NA> where the host's group file has no name.",
		readers: idName(schemas.ProcessGroupName, schemas.ProcessGroupID)},
}

func capabilities(id schemas.FieldID) []reader {
	return []reader{{classes: nodeClasses, key: func(r *row) uint64 { return r.uint(id) },
		text: func(dst []byte, r *row, _ *argument) []byte {
			start := len(dst)
			for mask := r.uint(id); mask != 0; mask &= mask - 1 {
				if n := bits.TrailingZeros64(mask); n < len(schemas.CapabilityNames) {
					if len(dst) > start {
						dst = append(dst, ' ')
					}
					dst = append(dst, schemas.CapabilityNames[n]...)
				}
			}
			return dst
		}}}
}

// inbound reports whether the event is an accept: then the local end is the
// server.
func inbound(r *row) bool { return r.str(schemas.NetDirection) == "inbound" }

func endpoint(local bool) func(r *row) ([16]byte, bool) {
	id := schemas.NetPeerAddress
	if local {
		id = schemas.NetLocalAddress
	}
	return func(r *row) ([16]byte, bool) { return r.b.Bytes16(id, r.i) }
}

// clientEnd and serverEnd give the addresses by role.
func clientEnd(r *row) ([16]byte, bool) { return endpoint(!inbound(r))(r) }
func serverEnd(r *row) ([16]byte, bool) { return endpoint(inbound(r))(r) }

func clientPort(r *row, _ *argument) (int64, bool) {
	if inbound(r) {
		return int64(r.uint(schemas.NetPeerPort)), true
	}
	return int64(r.uint(schemas.NetLocalPort)), true
}

func serverPort(r *row, _ *argument) (int64, bool) {
	if inbound(r) {
		return int64(r.uint(schemas.NetLocalPort)), true
	}
	return int64(r.uint(schemas.NetPeerPort)), true
}

func portOf(id schemas.FieldID) func(r *row, _ *argument) (int64, bool) {
	return func(r *row, _ *argument) (int64, bool) { return int64(r.uint(id)), true }
}

// portText renders a port of IPv4 and IPv6 sockets.
func portText(port func(r *row, a *argument) (int64, bool)) []reader {
	return textOf(networkOnly, nil, func(dst []byte, r *row, a *argument) []byte {
		switch r.str(schemas.NetType) {
		case "ipv4", "ipv6":
			n, _ := port(r, a)
			return strconv.AppendInt(dst, n, 10)
		}
		return dst
	})
}

// appendTuple appends client:port->server:port.
func appendTuple(dst []byte, r *row, _ *argument) []byte {
	end := func(ip func(*row) ([16]byte, bool), port func(*row, *argument) (int64, bool)) {
		a, _ := ip(r)
		p, _ := port(r, nil)
		dst = appendEnd(dst, r, a, uint64(p))
	}
	end(clientEnd, clientPort)
	dst = append(dst, "->"...)
	end(serverEnd, serverPort)
	return dst
}

// socketName is what Falco calls the name of a socket's descriptor.
func socketName(dst []byte, r *row, a *argument) []byte {
	switch r.str(schemas.NetType) {
	case "unix":
		return append(dst, r.str(schemas.NetSocketPath)...)
	case "ipv4", "ipv6":
	default:
		return dst
	}
	switch r.str(schemas.Action) {
	case "socket":
		return dst
	case "bind", "listen":
		ip, _ := r.b.Bytes16(schemas.NetLocalAddress, r.i)
		return appendEnd(dst, r, ip, r.uint(schemas.NetLocalPort))
	}
	return appendTuple(dst, r, a)
}

// appendEnd appends address:port.
func appendEnd(dst []byte, r *row, ip [16]byte, port uint64) []byte {
	addr := netip.AddrFrom16(ip).Unmap()
	if ip == batch.Null16 && r.str(schemas.NetType) == "ipv4" {
		addr = netip.IPv4Unspecified()
	}
	return netip.AddrPortFrom(addr, uint16(port)).AppendTo(dst)
}

// fileType returns Falco's name and letter for the type of an inode.
func fileType(mode uint64) (name string, letter byte) {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "directory", 'd'
	case unix.S_IFIFO:
		return "pipe", 'p'
	case unix.S_IFSOCK:
		return "unix", 'u'
	}
	return "file", 'f'
}

func netField(name, doc string, read func(r *row) ([16]byte, bool)) []field {
	return []field{
		{name: "fd." + name + "ip", kind: kindIP, doc: doc + " address.", readers: []reader{{classes: networkOnly, ip: read}}},
		{name: "fd." + name + "net", kind: kindNet, doc: doc + " address, compared with networks.", readers: []reader{{classes: networkOnly, ip: read}}},
	}
}

// filePaths are the columns of fd.paths.
var filePaths = keys(schemas.FilePath, schemas.FilePathHost, schemas.FilePathTargetHost, schemas.FilePathLink)

var fdFields = append(append(append(append([]field{
	{name: "fd.name", doc: "Path of the file or unix socket; client:port->server:port of a connection; address:port of a bind or listen.",
		readers: append([]reader{column(fileOnly, schemas.FilePath)}, textOf(networkOnly, nil, socketName)...)},
	{name: "fd.nameraw", doc: "As fd.name: the path as it was given is not kept.",
		readers: append([]reader{column(fileOnly, schemas.FilePath)}, textOf(networkOnly, nil, socketName)...)},
	{name: "fd.paths", kind: kindList, anyIn: true, doc: "Every path that an opened or changed file is known to have: fd.name; where the host has it, when a container reached it through a volume, of a rename also the new path there; the watched path of which it is a hard link. A comparison holds when it holds for one of them. A name of Picket's own.",
		readers: []reader{{classes: fileOnly, keys: filePaths, list: func(l *list, r *row, _ *argument) {
			l.reset()
			for _, id := range filePaths {
				if p := r.str(id); p != "" {
					l.buf = append(l.buf, p...)
					l.end()
				}
			}
		}}}},
	{name: "fd.filename", doc: "Last element of the path.",
		readers: textOf(fileOnly, keys(schemas.FilePath), func(dst []byte, r *row, _ *argument) []byte {
			p := r.str(schemas.FilePath)
			return append(dst, p[strings.LastIndexByte(p, '/')+1:]...)
		})},
	{name: "fd.directory", doc: "The path without its last element.",
		readers: textOf(fileOnly, keys(schemas.FilePath), func(dst []byte, r *row, _ *argument) []byte {
			return append(dst, directory(r.str(schemas.FilePath))...)
		})},
	{name: "fd.containername", doc: "container.id, a colon, fd.name; on the host nothing before the colon.",
		readers: slices.Concat(textOf(fileOnly, nil, func(dst []byte, r *row, _ *argument) []byte {
			return append(appendContainer(dst, r), r.str(schemas.FilePath)...)
		}), textOf(networkOnly, nil, func(dst []byte, r *row, a *argument) []byte {
			return socketName(appendContainer(dst, r), r, a)
		}))},
	{name: "fd.containerdirectory", doc: "container.id, a colon, fd.directory; on the host nothing before the colon.",
		readers: textOf(fileOnly, keys(schemas.ContainerID, schemas.FilePath), func(dst []byte, r *row, _ *argument) []byte {
			return append(appendContainer(dst, r), directory(r.str(schemas.FilePath))...)
		})},
	{name: "fd.uid", doc: "The thread's id and behind it the descriptor's number.",
		readers: textOf(fileOnly|networkOnly, nil, func(dst []byte, r *row, _ *argument) []byte {
			return strconv.AppendInt(strconv.AppendUint(dst, r.uint(schemas.ThreadID), 10), r.int(schemas.FDNumber), 10)
		})},
	{name: "fd.dev", kind: kindUint, doc: "Number of the file's device, as stat(2) gives it.", readers: []reader{column(fileOnly, schemas.FileDevice)}},
	{name: "fd.dev.major", kind: kindUint, doc: "Major number of the file's device.",
		readers: number(fileOnly, func(r *row, _ *argument) (int64, bool) {
			return int64(unix.Major(r.uint(schemas.FileDevice))), true
		})},
	{name: "fd.dev.minor", kind: kindUint, doc: "Minor number of the file's device.",
		readers: number(fileOnly, func(r *row, _ *argument) (int64, bool) {
			return int64(unix.Minor(r.uint(schemas.FileDevice))), true
		})},
	{name: "fd.ino", kind: kindUint, doc: "Inode number of the file.", readers: []reader{column(fileOnly, schemas.FileInode)}},
	{name: "fd.type", doc: "file, directory, pipe, unix; ipv4, ipv6, packet, vsock, alg, xdp.",
		readers: []reader{
			{classes: fileOnly, key: func(r *row) uint64 { return r.uint(schemas.FileMode) }, text: func(dst []byte, r *row, _ *argument) []byte {
				name, _ := fileType(r.uint(schemas.FileMode))
				return append(dst, name...)
			}},
			column(networkOnly, schemas.NetType)}},
	{name: "fd.typechar", doc: "f, d, p, u for file, directory, pipe, unix socket; 4, 6 for ipv4, ipv6.",
		readers: []reader{
			{classes: fileOnly, key: func(r *row) uint64 { return r.uint(schemas.FileMode) }, text: func(dst []byte, r *row, _ *argument) []byte {
				_, c := fileType(r.uint(schemas.FileMode))
				return append(dst, c)
			}},
			{classes: networkOnly, keys: keys(schemas.NetType), text: func(dst []byte, r *row, _ *argument) []byte {
				switch r.str(schemas.NetType) {
				case "ipv4":
					return append(dst, '4')
				case "ipv6":
					return append(dst, '6')
				case "unix":
					return append(dst, 'u')
				}
				return dst
			}}}},
	{name: "fd.sockfamily", doc: "ip for IPv4 and IPv6, unix.",
		readers: textOf(networkOnly, keys(schemas.NetType), func(dst []byte, r *row, _ *argument) []byte {
			switch r.str(schemas.NetType) {
			case "ipv4", "ipv6":
				return append(dst, "ip"...)
			case "unix":
				return append(dst, "unix"...)
			}
			return dst
		})},
	{name: "fd.connected", kind: kindBool, doc: "The socket is connected: false for a datagram to an address of its own (action send), and where the connect failed.",
		readers: number(networkOnly, func(r *row, _ *argument) (int64, bool) {
			switch r.str(schemas.Action) {
			case "connect", "accept", "dup", "close":
				return bool01(r.int(schemas.Result) >= 0)
			}
			return 0, true
		})},
	{name: "fd.name_changed", kind: kindBool, doc: "The event gave the socket another name: a connect, and the first datagram to a destination, which are those reported.",
		readers: number(networkOnly, func(r *row, _ *argument) (int64, bool) {
			a := r.str(schemas.Action)
			return bool01(a == "connect" || a == "send")
		})},
	{name: "fd.is_server", kind: kindBool, doc: "The process is the server of the connection.",
		readers: number(networkOnly, func(r *row, _ *argument) (int64, bool) { return bool01(inbound(r)) })},
	{name: "fd.cport", kind: kindUint, doc: "The client's port.", readers: number(networkOnly, clientPort)},
	{name: "fd.sport", kind: kindUint, doc: "The server's port.", readers: number(networkOnly, serverPort)},
	{name: "fd.cproto", doc: "The client's port as text: Falco, too, resolves no names of services unless asked to.", readers: portText(clientPort)},
	{name: "fd.sproto", doc: "The server's port as text.", readers: portText(serverPort)},
	{name: "fd.lproto", doc: "The local port as text.", readers: portText(portOf(schemas.NetLocalPort))},
	{name: "fd.rproto", doc: "The remote port as text.", readers: portText(portOf(schemas.NetPeerPort))},
	{name: "fd.proto", kind: kindUint, either: [2]string{"fd.lport", "fd.rport"}, doc: "The same as fd.port."},
	{name: "fd.port", kind: kindUint, either: [2]string{"fd.lport", "fd.rport"}, doc: "Either port."},
	{name: "fd.ip", kind: kindIP, either: [2]string{"fd.lip", "fd.rip"}, doc: "Either address."},
	{name: "fd.net", kind: kindNet, either: [2]string{"fd.lnet", "fd.rnet"}, doc: "Either address, compared with networks."},
},
	netField("c", "The client's", clientEnd)...),
	netField("s", "The server's", serverEnd)...),
	netField("l", "The local", endpoint(true))...),
	netField("r", "The remote", endpoint(false))...)

// peerDomain reads the name of the remote end where that is the server, or the
// client.
func peerDomain(server bool) []reader {
	return textOf(networkOnly, keys(schemas.NetPeerDomain, schemas.NetDirection), func(dst []byte, r *row, _ *argument) []byte {
		if inbound(r) != server {
			dst = append(dst, r.str(schemas.NetPeerDomain)...)
		}
		return dst
	})
}

var dnsFields = []field{
	{name: "fd.sip.name", doc: "Name that the server's address was last asked for by, where the process is the client; see network_peer_domain.", readers: peerDomain(true)},
	{name: "fd.cip.name", doc: "Name that the client's address was last asked for by, where the process is the server; see network_peer_domain.", readers: peerDomain(false)},
	{name: "dns.type", doc: "query or response. A name of Picket's own, as all that begin with dns.", readers: []reader{column(dnsOnly, schemas.Action)}},
	{name: "dns.question.domain", doc: "Every domain that the name asked for is in, without the name itself: a comparison holds when it holds for one of them, as in dns.question.domain in (example.com).",
		kind: kindList, anyIn: true, readers: []reader{{classes: dnsOnly, list: func(l *list, r *row, _ *argument) {
			l.reset()
			_, domain, ok := strings.Cut(r.str(schemas.DNSQuestion), ".")
			for ; ok; _, domain, ok = strings.Cut(domain, ".") {
				l.buf = append(l.buf, domain...)
				l.end()
			}
		}}}},
	{name: "dns.answers", kind: kindList, anyIn: true, doc: "Addresses in the answer, as text: a comparison holds when it holds for one of them.", readers: []reader{column(dnsOnly, schemas.DNSAnswers)}},
	{name: "dns.records", kind: kindList, anyIn: true, doc: "Records of the answer, each name, type and data with blanks between: a comparison holds when it holds for one of them.", readers: []reader{column(dnsOnly, schemas.DNSRecords)}},
}

func directory(p string) string {
	if i := strings.LastIndexByte(p, '/'); i > 0 {
		return p[:i]
	} else if i == 0 {
		return "/"
	}
	return ""
}

// onHost appends Falco's word for "not in a container" where id is empty.
func onHost(dst []byte, r *row) ([]byte, bool) {
	if r.str(schemas.ContainerID) == "" {
		return append(dst, "host"...), true
	}
	return dst, false
}

// workload appends the name of the pod's top owner if that is of the kind.
func workload(kind string) []reader {
	return textOf(sourceClasses, keys(schemas.WorkloadKind, schemas.WorkloadName), func(dst []byte, r *row, _ *argument) []byte {
		if r.str(schemas.WorkloadKind) == kind {
			dst = append(dst, r.str(schemas.WorkloadName)...)
		}
		return dst
	})
}

// appendContainer appends the short id of the container, and a colon.
func appendContainer(dst []byte, r *row) []byte {
	id := r.str(schemas.ContainerID)
	return append(append(dst, id[:min(shortID, len(id))]...), ':')
}

// shortID is how many digits of a container's id Falco shows.
const shortID = 12

var containerFields = []field{
	{name: "container.id", doc: "First 12 digits of the container's id; host outside of containers.",
		readers: textOf(nodeClasses, keys(schemas.ContainerID), func(dst []byte, r *row, _ *argument) []byte {
			dst, host := onHost(dst, r)
			if host {
				return dst
			}
			id := r.str(schemas.ContainerID)
			return append(dst, id[:min(shortID, len(id))]...)
		})},
	{name: "container.full_id", doc: "The container's id; host outside of containers.",
		readers: textOf(nodeClasses, keys(schemas.ContainerID), func(dst []byte, r *row, _ *argument) []byte {
			dst, host := onHost(dst, r)
			if host {
				return dst
			}
			return append(dst, r.str(schemas.ContainerID)...)
		})},
	{name: "container.name", doc: "Name of the container in its pod, or that its runtime gives it; host outside of containers.",
		readers: textOf(nodeClasses, keys(schemas.ContainerID, schemas.K8sContainerName, schemas.ContainerName), func(dst []byte, r *row, _ *argument) []byte {
			dst, host := onHost(dst, r)
			if host {
				return dst
			}
			if name := r.str(schemas.K8sContainerName); name != "" {
				return append(dst, name...)
			}
			return append(dst, r.str(schemas.ContainerName)...)
		})},
	{name: "container.type", doc: "Runtime: containerd, cri-o, docker; host outside of containers.",
		readers: textOf(nodeClasses, keys(schemas.ContainerID, schemas.ContainerRuntime), func(dst []byte, r *row, _ *argument) []byte {
			dst, host := onHost(dst, r)
			if host {
				return dst
			}
			return append(dst, r.str(schemas.ContainerRuntime)...)
		})},
	{name: "container.start_ts", kind: kindInt, doc: "When the container's first process was forked, nanoseconds since 1970.",
		readers: number(nodeClasses, func(r *row, _ *argument) (int64, bool) {
			start := r.int(schemas.ContainerStart)
			return start, start != 0
		})},
	{name: "container.duration", kind: kindInt, doc: "Nanoseconds from container.start_ts to the event.",
		readers: number(nodeClasses, func(r *row, _ *argument) (int64, bool) {
			start := r.int(schemas.ContainerStart)
			return r.int(schemas.EventTime) - start, start != 0
		})},
	{name: "container.image", doc: "Image as repository:tag.",
		readers: textOf(nodeClasses, keys(schemas.ContainerImage, schemas.ContainerImageTag), func(dst []byte, r *row, _ *argument) []byte {
			image, tag := r.str(schemas.ContainerImage), r.str(schemas.ContainerImageTag)
			dst = append(dst, image...)
			if image != "" && tag != "" {
				dst = append(append(dst, ':'), tag...)
			}
			return dst
		})},
	{name: "k8s.deployment.name", doc: "Name of the Deployment that owns the pod.", readers: workload("Deployment")},
	{name: "k8s.workload.kind", doc: "Kind of the pod's workload: Deployment, DaemonSet, StatefulSet, CronJob, Job, ReplicaSet, Pod, or a custom kind that controls its pods or ReplicaSets itself. A name of Picket's own.",
		readers: []reader{column(sourceClasses, schemas.WorkloadKind)}},
	{name: "k8s.workload.name", doc: "Name of the pod's workload. A name of Picket's own.", readers: []reader{column(sourceClasses, schemas.WorkloadName)}},
	{name: "k8s.sa.name", doc: "Service account of the pod. A name of Picket's own.", readers: []reader{column(sourceClasses, schemas.ServiceAccount)}},
	{name: "k8s.pod.label", arg: argKey, withArg: kindText, doc: "Value of a label of the pod, as in k8s.pod.label[app].",
		argReaders: textOf(sourceClasses, nil, func(dst []byte, r *row, a *argument) []byte {
			return mapValue(dst, r, schemas.PodLabels, a.text)
		})},
	{name: "k8s.ns.label", arg: argKey, withArg: kindText, doc: "Value of a label of the pod's namespace, as in k8s.ns.label[team]; the enricher must be told to add it (kubernetes.namespace_labels).",
		argReaders: textOf(sourceClasses, nil, func(dst []byte, r *row, a *argument) []byte {
			return mapValue(dst, r, schemas.NamespaceLabels, a.text)
		})},
	{name: "k8s.peer.kind", doc: "What the remote address was at that time: pod, service, node, api_server, metadata, loopback, private, outside. A name of Picket's own.", readers: []reader{column(networkOnly, schemas.PeerKind)}},
	{name: "k8s.peer.name", doc: "namespace/name of the remote pod or service, name of the node. A name of Picket's own.", readers: []reader{column(networkOnly, schemas.PeerName)}},
}
