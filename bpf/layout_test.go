package bpf

import (
	"reflect"
	"strings"
	"testing"
	"unicode"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// objects are the compiled programs of all architectures, whichever this test runs on.
var objects = []string{"object_x86_bpfel.o", "object_arm64_bpfel.o"}

// TestLayout compares the Go structs with the C ones as the compiler laid them out, without a kernel.
func TestLayout(t *testing.T) {
	for _, object := range objects {
		spec, err := ebpf.LoadCollectionSpec(object)
		if err != nil {
			t.Fatalf("reading %s: %v", object, err)
		}
		headerSize := uint32(reflect.TypeFor[Header]().Size())
		for _, s := range []struct {
			c    string
			typ  reflect.Type
			skip uint32 // bytes of the C struct before the Go struct begins
		}{
			{"header", reflect.TypeFor[Header](), 0},
			{"exec_event", reflect.TypeFor[ExecFields](), headerSize},
			{"fork_event", reflect.TypeFor[ForkEvent](), headerSize},
			{"exit_event", reflect.TypeFor[ExitEvent](), headerSize},
			{"open_event", reflect.TypeFor[OpenFields](), headerSize},
			{"path_event", reflect.TypeFor[PathFields](), headerSize},
			{"conn_event", reflect.TypeFor[ConnFields](), headerSize},
			{"call_event", reflect.TypeFor[CallFields](), headerSize},
			{"cgroup_event", reflect.TypeFor[CgroupFields](), headerSize},
			{"dns_event", reflect.TypeFor[DNSFields](), headerSize},
			{"program_key", reflect.TypeFor[programKey](), 0},
			{"process_id", reflect.TypeFor[processID](), 0},
			{"mark", reflect.TypeFor[mark](), 0},
			{"peer_key", reflect.TypeFor[peerKey](), 0},
			{"peer_ports", reflect.TypeFor[peerPorts](), 0},
			{"watch_key", reflect.TypeFor[watchKey](), 0},
		} {
			var c *btf.Struct
			if err := spec.Types.TypeByName(s.c, &c); err != nil {
				t.Errorf("%s: struct %s: %v", object, s.c, err)
				continue
			}
			if s.skip > 0 {
				if h := c.Members[0]; h.Name != "h" || h.Type.TypeName() != "header" || h.Offset != 0 {
					t.Errorf("%s: struct %s does not begin with the header", object, s.c)
				}
				c.Members = c.Members[1:]
			}
			if got, want := uint32(s.typ.Size()), c.Size-s.skip; got != want {
				t.Errorf("%s: struct %s has %d bytes after its header, %s %d", object, s.c, want, s.typ, got)
			}
			compareMembers(t, object, s.c, c, s.typ, s.skip)
		}
	}
}

func compareMembers(t *testing.T, object, name string, c *btf.Struct, typ reflect.Type, skip uint32) {
	t.Helper()
	var fields []reflect.StructField
	for i := range typ.NumField() {
		if f := typ.Field(i); f.Name != "_" { // structs.HostLayout
			fields = append(fields, f)
		}
	}
	if len(fields) != len(c.Members) {
		t.Errorf("%s: struct %s has %d members, %s %d fields", object, name, len(c.Members), typ, len(fields))
		return
	}
	end := skip
	for i, m := range c.Members {
		f := fields[i]
		if got, want := strings.ToLower(f.Name), strings.ReplaceAll(m.Name, "_", ""); got != want {
			t.Errorf("%s: member %d of struct %s is %s, of %s %s", object, i, name, m.Name, typ, f.Name)
		}
		if got, want := uint32(f.Offset)+skip, m.Offset.Bytes(); got != want {
			t.Errorf("%s: %s.%s is at %d, %s.%s at %d", object, name, m.Name, want, typ, f.Name, got)
		}
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			t.Fatal(err)
		}
		if got := int(f.Type.Size()); got != size {
			t.Errorf("%s: %s.%s has %d bytes, %s.%s %d", object, name, m.Name, size, typ, f.Name, got)
		}
		// Decoding copies bytes into the struct: there must be nothing in it that some bytes would break,
		// and no hole, whose contents the kernel would not have written.
		k := f.Type.Kind()
		if k == reflect.Array {
			k = f.Type.Elem().Kind()
		}
		if k < reflect.Int || k > reflect.Uint64 {
			t.Errorf("%s.%s is a %s: only integers and arrays of them can be copied from a record", typ, f.Name, f.Type)
		}
		if m.Offset.Bytes() != end {
			t.Errorf("%s: hole of %d bytes before %s.%s", object, m.Offset.Bytes()-end, name, m.Name)
		}
		end = m.Offset.Bytes() + uint32(size)
		if unicode.IsLower(rune(f.Name[0])) {
			t.Errorf("%s.%s is not exported", typ, f.Name)
		}
	}
	if end != c.Size {
		t.Errorf("%s: hole of %d bytes at the end of struct %s", object, c.Size-end, name)
	}
}

// TestMapLayout compares the offsets the Go side knows of structs in maps.
func TestMapLayout(t *testing.T) {
	for _, object := range objects {
		spec, err := ebpf.LoadCollectionSpec(object)
		if err != nil {
			t.Fatalf("reading %s: %v", object, err)
		}
		for name, want := range map[string]struct {
			size    uint32
			offsets map[string]uint32
		}{
			"counters": {counterWords * 8, map[string]uint32{
				"seen": counterSeen * 8, "submitted": counterSubmitted * 8, "ring_full": counterRingFull * 8,
				"filtered": counterFiltered * 8, "threads": counterThreads * 8, "limited": counterLimited * 8, "errors": counterErrors * 8}},
			"config": {configBytes, map[string]uint32{"watching": configWatching, "stopped": configStopped, "environment": configEnvironment, "share": configShare, "ignoring": configIgnoring, "generation": configGeneration, "host_mnt_ns": configHostMntNS, "host_root_dev": configHostRootDev, "unwanted": configUnwanted, "beginnings": configBeginnings, "watching_short": configShort}},
		} {
			var c *btf.Struct
			if err := spec.Types.TypeByName(name, &c); err != nil {
				t.Fatalf("%s: struct %s: %v", object, name, err)
			}
			if c.Size != want.size {
				t.Errorf("%s: struct %s has %d bytes, want %d", object, name, c.Size, want.size)
			}
			got := map[string]uint32{}
			for _, m := range c.Members {
				got[m.Name] = m.Offset.Bytes()
			}
			for member, offset := range want.offsets {
				if got, ok := got[member]; !ok || got != offset {
					t.Errorf("%s: %s.%s is at %d, want %d", object, name, member, got, offset)
				}
			}
		}
	}
}

// TestEnums compares the numbers C and Go give to the same thing.
func TestEnums(t *testing.T) {
	want := map[string]map[string]uint64{
		"event_class":  {"CLASS_PROCESS": uint64(ClassProcess), "CLASS_FILE": uint64(ClassFile), "CLASS_NETWORK": uint64(ClassNetwork), "CLASS_KERNEL": uint64(ClassKernel), "CLASS_DNS": uint64(ClassDNS), "NUM_CLASSES": NumClasses},
		"event_action": {},
		"header_flag":  {"HEADER_KERNEL_THREAD": uint64(HeaderKernelThread), "HEADER_COMPAT": uint64(HeaderCompat), "HEADER_IO_URING": uint64(HeaderIOURing)},
		"path_flag":    {"PATH_TRUNCATED": uint64(PathTruncated), "PATH_OUTSIDE": uint64(PathOutside), "PATH_DELETED": uint64(PathDeleted), "PATH_FAULT": uint64(PathFault), "PATH_USER": uint64(PathUser), "PATH_ASKED": uint64(PathAsked)},
		"exec_flag":    {"EXEC_ARGS_TRUNCATED": uint64(ExecArgsTruncated), "EXEC_ARGS_FAULT": uint64(ExecArgsFault), "EXEC_FILENAME_TRUNCATED": uint64(ExecFilenameTruncated), "EXEC_MEMFD": uint64(ExecMemfd), "EXEC_UPPER": uint64(ExecUpper), "EXEC_SCRIPT": uint64(ExecScript), "EXEC_SECURE": uint64(ExecSecure), "EXEC_FD": uint64(ExecFD), "EXEC_ENV_TRUNCATED": uint64(ExecEnvTruncated), "EXEC_ENV_FAULT": uint64(ExecEnvFault), "EXEC_LOWER": uint64(ExecLower), "EXEC_FILE_CAPABILITIES": uint64(ExecFileCapabilities)},
		"open_access":  {"OPEN_READ": uint64(OpenRead), "OPEN_WRITE": uint64(OpenWrite), "OPEN_CREATED": uint64(OpenCreated), "OPEN_WATCHED": uint64(OpenWatched)},
		"conn_flag":    {"CONN_REMOTE_FROM_USER": uint64(ConnRemoteFromUser), "CONN_LOCAL_FROM_USER": uint64(ConnLocalFromUser), "CONN_ACCEPTED": uint64(ConnAccepted)},
		"ignore":       {"IGNORE_CGROUPS": uint64(ignoreCgroups), "IGNORE_PROGRAMS": uint64(ignorePrograms), "IGNORE_PEERS": uint64(ignorePeers), "IGNORE_DNS": uint64(ignoreDNS)},
		"error_kind":   {"ERROR_PATH": uint64(ErrorPath), "ERROR_ARGS": uint64(ErrorArgs), "ERROR_FILENAME": uint64(ErrorFilename), "ERROR_FD": uint64(ErrorFD), "ERROR_USER_ADDRESS": uint64(ErrorUserAddress), "ERROR_STORAGE": uint64(ErrorStorage), "ERROR_ASKER": uint64(ErrorAsker), "ERROR_STREAM": uint64(ErrorStream), "ERROR_CGROUP": uint64(ErrorCgroup), "NUM_ERRORS": counterWords - counterErrors},
		"layout":       {"LAYOUT_VERSION": LayoutVersion, "MAX_PATH": MaxPath, "MAX_ARGS": MaxArgs, "MAX_ENV": MaxEnv, "MAX_DNS": MaxDNS, "PROGRAM_BYTES": programBytes, "WATCH_BYTES": watchBytes, "WATCH_HASH": watchHash},
	}
	for a, name := range actionNames {
		want["event_action"]["ACTION_"+strings.ToUpper(name)] = uint64(a)
	}
	for _, object := range objects {
		spec, err := ebpf.LoadCollectionSpec(object)
		if err != nil {
			t.Fatalf("reading %s: %v", object, err)
		}
		for name, values := range want {
			var e *btf.Enum
			if err := spec.Types.TypeByName(name, &e); err != nil {
				t.Errorf("%s: enum %s: %v", object, name, err)
				continue
			}
			if len(e.Values) != len(values) {
				t.Errorf("%s: enum %s has %d values, Go knows %d", object, name, len(e.Values), len(values))
			}
			for _, v := range e.Values {
				if got, ok := values[v.Name]; !ok || got != v.Value {
					t.Errorf("%s: %s is %d in C, %d in Go", object, v.Name, v.Value, got)
				}
			}
		}
	}
}
