package rules

import (
	"slices"
	"strings"

	"github.com/apache/arrow/go/v16/arrow/array"

	"picket/internal/batch"
	"picket/schemas"
)

// kind is the type of a field in the language; it decides which operators and
// literals fit.
type kind uint8

const (
	kindText kind = iota
	kindInt       // signed number
	kindUint      // unsigned number
	kindBool
	kindIP
	kindNet // an address compared with networks
	kindList
)

var kindNames = [...]string{"text", "number", "number", "boolean", "address", "network", "list of text"}

func (k kind) String() string { return kindNames[k] }

// exact tells signed from unsigned numbers, which are not compared with each other.
func (k kind) exact() string {
	switch k {
	case kindInt:
		return "number with a sign"
	case kindUint:
		return "number without a sign"
	}
	return k.String()
}

// argKind says whether a field takes an argument in brackets.
type argKind uint8

const (
	argNone    argKind = iota
	argIndex           // [2] must stand
	argMayIdx          // [2] may stand
	argKey             // [name] must stand
	argMayName         // [name] may stand
)

// argument is a field's argument, parsed.
type argument struct {
	text  string
	index int
}

// row is one row of a batch, as readers see it.
type row struct {
	b    *batch.Batch
	i    int
	docs *docs
	// scratch and list are what lengthOf measures.
	scratch []byte
	list    list
}

func (r *row) str(id schemas.FieldID) string  { return r.b.Str(id, r.i) }
func (r *row) uint(id schemas.FieldID) uint64 { return r.b.Uint(id, r.i) }
func (r *row) int(id schemas.FieldID) int64   { return r.b.Int(id, r.i) }

// list collects the values of a list field.
type list struct {
	buf  []byte
	ends []int32
}

func (l *list) reset()   { l.buf, l.ends = l.buf[:0], l.ends[:0] }
func (l *list) end()     { l.ends = append(l.ends, int32(len(l.buf))) }
func (l *list) len() int { return len(l.ends) }
func (l *list) at(i int) []byte {
	from := int32(0)
	if i > 0 {
		from = l.ends[i-1]
	}
	return l.buf[from:l.ends[i]]
}

// shorten keeps the first keep(v) bytes of each value v; nil keeps all.
func (l *list) shorten(keep func(string) int) {
	if keep == nil {
		return
	}
	from, to := int32(0), 0
	for i, end := range l.ends {
		v := l.buf[from:end]
		to += copy(l.buf[to:], v[:keep(unsafeString(v))])
		from, l.ends[i] = end, int32(to)
	}
	l.buf = l.buf[:to]
}

// reader says how a field is read in some classes. Exactly one of column,
// constant and the functions is set.
type reader struct {
	classes schemas.ClassSet
	// column is read as it is.
	column   schemas.FieldID
	isColumn bool
	// constant is the value in every row.
	constant string
	isConst  bool

	// The functions compute the value of a row; text appends it to dst and
	// nothing where it is absent. They read the batch only.
	text func(dst []byte, r *row, a *argument) []byte
	num  func(r *row, a *argument) (v int64, ok bool)
	ip   func(r *row) (addr [16]byte, ok bool)
	list func(l *list, r *row, a *argument)

	// keys are Name and List columns, at most 4: rows that agree in them have
	// the same text or list. Without keys every row is computed.
	keys []schemas.FieldID
	// key does the same as a number.
	key func(r *row) uint64
}

// field is an entry of the rule language's field table.
type field struct {
	name string
	doc  string
	kind kind
	arg  argKind
	// withArg is the kind of the field with an argument.
	withArg kind
	// empty is set where empty text is a value, not absence.
	empty bool
	// anyIn is set on a list of which "in" wants one element; "in" of other
	// lists wants all.
	anyIn bool
	// textual is set on a number that the operators of text may be applied to.
	textual bool
	// either names the two fields this one stands for: a comparison holds when
	// it holds for one of them (!= for both).
	either [2]string
	// readers serve the field without, argReaders with an argument.
	readers, argReaders []reader
	// bind makes the reader for an argument, where that depends on it; a nil
	// reader with a reason is a field that is not there.
	bind func(arg string) (r *reader, reason string)
	// path is set on a field of a JSON document: where in the column document
	// its values stand; shortened, that only the repository of an image is kept.
	path      string
	document  schemas.FieldID
	shortened bool
}

// classes returns where the field can have a value.
func (f *field) classes() (s schemas.ClassSet) {
	for _, r := range slices.Concat(f.readers, f.argReaders) {
		s |= r.classes
	}
	if f.bind != nil {
		s |= auditOnly
	}
	for _, e := range f.either {
		if g := fieldTable[e]; g != nil {
			s |= g.classes()
		}
	}
	return s
}

// on returns the reader for class c, or nil.
func on(readers []reader, c schemas.Class) *reader {
	for i := range readers {
		if readers[i].classes.Has(c) {
			return &readers[i]
		}
	}
	return nil
}

var (
	nodeClasses   = schemas.SetOf(schemas.NodeClasses()...)
	processOnly   = schemas.SetOf(schemas.Process)
	fileOnly      = schemas.SetOf(schemas.File)
	networkOnly   = schemas.SetOf(schemas.Network)
	kernelOnly    = schemas.SetOf(schemas.Kernel)
	dnsOnly       = schemas.SetOf(schemas.DNS)
	auditOnly     = schemas.SetOf(schemas.Audit)
	sourceClasses = nodeClasses | auditOnly
	numClasses    = len(schemas.Classes())
	classesOf     = map[string]schemas.ClassSet{"syscall": nodeClasses, "k8s_audit": auditOnly}
)

// fieldTable holds every field by its name: plain columns of the registry,
// then what is computed, which wins where both are.
var fieldTable = buildFields()

// fieldNames are the names of the table, sorted.
var fieldNames = func() []string {
	names := make([]string, 0, len(fieldTable))
	for n := range fieldTable {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}()

func buildFields() map[string]*field {
	t := make(map[string]*field)
	for id := range schemas.FieldID(schemas.NumFields()) {
		f := id.Field()
		for _, name := range f.Rule {
			t[name] = columnField(name, f.Doc, id)
		}
	}
	for _, group := range [][]field{eventFields, processFields, fdFields, pathFields, dnsFields, containerFields, auditFields} {
		for i := range group {
			f := group[i]
			t[f.name] = &f
		}
	}
	addCallArguments(t)
	return t
}

// columnField is a field that reads a column as it is.
func columnField(name, doc string, id schemas.FieldID) *field {
	c := id.Field()
	f := &field{name: name, doc: doc, readers: []reader{{classes: c.Classes & sourceClasses, column: id, isColumn: true}}}
	switch c.Type {
	case schemas.Text, schemas.Name:
		f.kind = kindText
	case schemas.Bool:
		f.kind = kindBool
	case schemas.Uint32, schemas.Uint64:
		f.kind = kindUint
	case schemas.Int64, schemas.Time:
		f.kind = kindInt
	case schemas.IP:
		f.kind = kindIP
	case schemas.List, schemas.Names:
		f.kind = kindList
		f.arg, f.withArg = argMayIdx, kindText
		f.argReaders = []reader{{classes: c.Classes & sourceClasses, text: func(dst []byte, r *row, a *argument) []byte {
			return nth(dst, r, id, a.index)
		}}}
	case schemas.Map:
		f.kind = kindText
		f.arg, f.withArg = argKey, kindText
		f.readers = nil
		f.argReaders = []reader{{classes: c.Classes & sourceClasses, text: func(dst []byte, r *row, a *argument) []byte {
			return mapValue(dst, r, id, a.text)
		}, key: mapKey(id)}}
	case schemas.ID:
		f.kind = kindText
		f.readers = []reader{{classes: c.Classes & sourceClasses, text: func(dst []byte, r *row, _ *argument) []byte {
			if v, ok := r.b.Bytes16(id, r.i); ok {
				dst = append(dst, schemas.FormatID(v)...)
			}
			return dst
		}}}
	}
	return f
}

// nth appends element i of a List column.
func nth(dst []byte, r *row, id schemas.FieldID, i int) []byte {
	for v := range r.b.List(id, r.i) {
		if i == 0 {
			return append(dst, v...)
		}
		i--
	}
	return dst
}

// mapValue appends the value of a key in a Map column.
func mapValue(dst []byte, r *row, id schemas.FieldID, key string) []byte {
	for k, v := range r.b.Map(id, r.i) {
		if k == key {
			return append(dst, v...)
		}
	}
	return dst
}

// mapKey is the key of what is read of a Map column: rows that have nothing there,
// often most, are one.
func mapKey(id schemas.FieldID) func(r *row) uint64 {
	return func(r *row) uint64 {
		c, ok := r.b.Column(id).(*array.Map)
		if !ok || c.IsNull(r.i) {
			return 0
		}
		if from, to := c.ValueOffsets(r.i); from == to {
			return 0
		}
		return uint64(r.i) + 1
	}
}

// missing are fields of Falco that Picket does not provide yet, with the
// reason; a name that ends in "." stands for all that begin so.
var missing = map[string]string{
	"container.mount":                   "the mounts of a container are known to the runtime only",
	"container.mount.":                  "the mounts of a container are known to the runtime only",
	"container.mounts":                  "the mounts of a container are known to the runtime only",
	"container.healthcheck":             "health checks of the runtime are not read",
	"container.liveness_probe":          "probes are not told from other processes",
	"container.readiness_probe":         "probes are not told from other processes",
	"container.ip":                      "the address of a container is not in its events",
	"evt.arg.":                          "it is an argument of a system call that the sensor does not report",
	"evt.rawarg.":                       "but for results and descriptors, arguments are kept in words",
	"evt.buffer":                        "data that is read and written is not recorded",
	"evt.buffer.":                       "data that is read and written is not recorded",
	"evt.latency":                       "system calls are recorded once, when they return",
	"evt.latency.":                      "system calls are recorded once, when they return",
	"evt.deltatime":                     "an event does not know the one before it",
	"evt.reltime":                       "events have no common start; use evt.rawtime",
	"evt.wait_latency":                  "system calls are recorded once, when they return",
	"fd.lip.name":                       "the machine's own addresses are not resolved to names",
	"fs.path.nameraw":                   "paths are kept made absolute; use fs.path.name",
	"fs.path.sourceraw":                 "paths are kept made absolute; use fs.path.source",
	"fs.path.targetraw":                 "paths are kept made absolute; use fs.path.target",
	"fd.types":                          "the open files of a process are not recorded",
	"fd.is_upper_layer":                 "the layer is told of executables only; see proc.is_exe_upper_layer",
	"fd.is_lower_layer":                 "the layer is told of executables only; see proc.is_exe_lower_layer",
	"fdlist.":                           "calls that wait for descriptors are not reported",
	"evt.abspath":                       "use fs.path.name, fs.path.source and fs.path.target",
	"evt.abspath.":                      "use fs.path.source and fs.path.target",
	"evt.type.is":                       "use evt.type",
	"evt.around":                        "select by time when the alerts are read",
	"evt.buflen":                        "data that is read and written is not recorded",
	"evt.buflen.":                       "data that is read and written is not recorded",
	"evt.is_io":                         "data that is read and written is not recorded",
	"evt.is_io_read":                    "data that is read and written is not recorded",
	"evt.is_io_write":                   "data that is read and written is not recorded",
	"evt.io_dir":                        "data that is read and written is not recorded",
	"evt.is_wait":                       "calls that wait are not reported",
	"evt.is_syslog":                     "data that is read and written is not recorded",
	"proc.is_container_healthcheck":     "health checks of the runtime are not read; container.exec_pid tells what was put into a container from outside",
	"proc.is_container_liveness_probe":  "probes are not told from other processes; container.exec_pid tells what was put into a container from outside",
	"proc.is_container_readiness_probe": "probes are not told from other processes; container.exec_pid tells what was put into a container from outside",
	"proc.exe_ino.ctime_duration_pidns_start": "the start of a pid namespace is not recorded; see container.start_ts",
	"proc.pidns_init_start_ts":                "the start of a pid namespace is not recorded; see container.start_ts",
	"thread.pfmajor":                          "memory is not measured",
	"thread.pfminor":                          "memory is not measured",
	"thread.vmsize":                           "memory is not measured",
	"thread.vmrss":                            "memory is not measured",
	"thread.totexectime":                      "time on the processor is not measured",
	"container.cni.json":                      "the address of a container is not in its events",
	"container.host_pid":                      "compare the namespaces of the events (namespace_pid) with the node's",
	"container.host_network":                  "compare the namespaces of the events (namespace_net) with the node's",
	"container.host_ipc":                      "the ipc namespace is not in the events",
	"container.label":                         "labels of containers are not read; see k8s.pod.label",
	"container.labels":                        "labels of containers are not read; see k8s.pod.label",
	"k8s.pod.sandbox_id":                      "the sandbox is not told from other containers",
	"k8s.pod.full_sandbox_id":                 "the sandbox is not told from other containers",
	"proc.aargs":                              "of ancestors only names and executables are kept",
	"proc.aexe_ino":                           "of ancestors only names and executables are kept",
	"proc.aenv":                               "the environment of ancestors is not kept",
	"proc.is_exe_writable":                    "the groups of the user, on which it depends, are not recorded",
	"proc.nchilds":                            "children are not counted",
	"proc.nthreads":                           "threads are not counted",
	"proc.fdopencount":                        "open files are not counted",
	"proc.fdlimit":                            "limits are not recorded",
	"proc.fdusage":                            "open files are not counted",
	"proc.vmsize":                             "memory is not measured",
	"proc.vmrss":                              "memory is not measured",
	"proc.vmswap":                             "memory is not measured",
	"proc.stdin.":                             "the standard streams of a process are not recorded",
	"proc.stdout.":                            "the standard streams of a process are not recorded",
	"proc.stderr.":                            "the standard streams of a process are not recorded",
	"proc.vpgid":                              "process groups are known by the host's ids only",
	"proc.vpgid.":                             "process groups are known by the host's ids only",
	"proc.loginshellid":                       "login shells are not followed",
	"thread.cap_inheritable":                  "inheritable capabilities are not kept",
	"thread.vtid":                             "threads are known by the host's ids only",
	"thread.exectime":                         "time on the processor is not measured",
	"thread.cpu":                              "time on the processor is not measured",
	"thread.cpu.":                             "time on the processor is not measured",
	"thread.cgroups":                          "the cgroup is kept by its id",
	"thread.cgroup":                           "the cgroup is kept by its id",
	"user.homedir":                            "home folders and shells of users are not recorded",
	"user.shell":                              "home folders and shells of users are not recorded",
	"k8s.ns.labels":                           "one label at a time is read; see k8s.ns.label",
	"k8s.pod.ip":                              "the address of the pod is not in the event",
	"k8s.pod.cni.json":                        "the address of the pod is not in the event",
	"k8s.pod.id":                              "use k8s.pod.uid",
	"k8s.rc.":                                 "use k8s.workload.kind and k8s.workload.name",
	"k8s.svc.":                                "services of a pod are not joined",
	"ka.req.sec.":                             "use the fields under ka.req.pod.containers",
	"ct.":                                     "Picket reads no CloudTrail events",
	"json.":                                   "use jevt.value",
	"gcp.":                                    "Picket reads no Google Cloud events",
	"github.":                                 "Picket reads no GitHub events",
	"okta.":                                   "Picket reads no Okta events",
}

// missingReason returns why Picket lacks a field of Falco, and whether the name
// is such a field.
func missingReason(name string) (string, bool) {
	if why, ok := missing[name]; ok {
		return why, true
	}
	for i := len(name) - 1; i > 0; i-- {
		if name[i] == '.' {
			if why, ok := missing[name[:i+1]]; ok {
				return why, true
			}
		}
	}
	return "", false
}

// isFalse and isTrue parse the literals of booleans.
func isTrue(s string) bool  { return strings.EqualFold(s, "true") }
func isFalse(s string) bool { return strings.EqualFold(s, "false") }
