package sensor

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"picket/bpf"
	"picket/schemas"
	"picket/services/sensor/redact"
)

// TestCallsKnown: the programs' names, the schema's and the table of arguments
// fit together.
func TestCallsKnown(t *testing.T) {
	known := map[string]bool{}
	for i := range uint32(256) {
		ev := bpf.Event{Header: bpf.Header{Action: bpf.ActionCall}}
		ev.Call.Call = i
		known[ev.Syscall()] = true
	}
	for _, c := range schemas.Calls() {
		if !known[c.Name] {
			t.Errorf("the programs know no %s", c.Name)
		}
		for arg := range at[c.Name] {
			if !slices.Contains(c.Args, arg) {
				t.Errorf("%s has no argument %s", c.Name, arg)
			}
		}
		// Each argument has a value when everything it could come from has.
		e := bpf.CallEvent{CallFields: bpf.CallFields{Args: [6]uint64{5, 6, 7, 8, 9, 10}, Ino: 1, Number: 1, Type: 1, CapEffective: 1}}
		copy(e.Text[:], "text")
		a := callArgs{e: &e, path: "/path", target: "target", users: func(uint32) string { return "" }}
		for _, arg := range c.Args {
			if a.value(c.Name, arg) == "" && !(c.Name == "bpf" && arg == "type") {
				t.Errorf("%s has no value for %s", c.Name, arg)
			}
		}
	}
	for name := range at {
		if _, ok := systemCalls[name]; !ok {
			t.Errorf("%s is no call of class kernel", name)
		}
	}
}

func TestCallArguments(t *testing.T) {
	user := func(id uint32) string { return map[uint32]string{0: "root", 33: "www-data"}[id] }
	text := func(s string) (b [64]byte) { copy(b[:], s); return b }
	minusOne := uint64(0xffffffff)
	for _, c := range []struct {
		call   string
		fields bpf.CallFields
		want   string
	}{
		{"setuid", bpf.CallFields{Args: [6]uint64{0}}, "uid=root"},
		{"setresuid", bpf.CallFields{Args: [6]uint64{33, minusOne, 7}}, "ruid=www-data euid=-1 suid=7"},
		{"setns", bpf.CallFields{Args: [6]uint64{3, unix.CLONE_NEWNET}, Ino: 4026531840}, "fd=3 nstype=CLONE_NEWNET inode=4026531840"},
		{"unshare", bpf.CallFields{Args: [6]uint64{unix.CLONE_NEWNS | unix.CLONE_NEWUSER}}, "flags=CLONE_NEWNS|CLONE_NEWUSER"},
		{"unshare", bpf.CallFields{Args: [6]uint64{unix.CLONE_NEWTIME | unix.CLONE_NEWPID}}, "flags=CLONE_NEWTIME|CLONE_NEWPID"},
		{"mount", bpf.CallFields{Args: [6]uint64{0, 0, 0, unix.MS_BIND | unix.MS_REC | 1<<40}, Text: text("ext4")}, "dev=TARGET dir=PATH type=ext4 flags=MS_BIND|MS_REC|0x10000000000"},
		{"ptrace", bpf.CallFields{Args: [6]uint64{unix.PTRACE_POKETEXT, 12}}, "request=PTRACE_POKETEXT pid=12"},
		{"bpf", bpf.CallFields{Args: [6]uint64{unix.BPF_PROG_LOAD}, Type: 2, Text: text("spy")}, "cmd=BPF_PROG_LOAD type=BPF_PROG_TYPE_KPROBE name=spy path=PATH"},
		{"bpf", bpf.CallFields{Args: [6]uint64{unix.BPF_OBJ_PIN}}, "cmd=BPF_OBJ_PIN path=PATH"},
		{"sethostname", bpf.CallFields{Args: [6]uint64{0, 4}, Text: text("nodeX garbage")}, "name=node"},
		{"mmap", bpf.CallFields{Args: [6]uint64{0x1000, 4096, 7, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS}}, "addr=0x1000 length=4096 prot=PROT_READ|PROT_WRITE|PROT_EXEC flags=MAP_PRIVATE|MAP_ANONYMOUS path=PATH"},
		{"kill", bpf.CallFields{Args: [6]uint64{uint64(unix.SIGTERM)}}, "pid=TARGET sig=SIGTERM"},
		{"kill", bpf.CallFields{Args: [6]uint64{63}}, "pid=TARGET sig=63"},
		{"capset", bpf.CallFields{CapEffective: 1<<21 | 1, CapPermitted: 1 << 63}, "cap_inheritable=0 cap_permitted=0 cap_effective=CAP_CHOWN|CAP_SYS_ADMIN"},
		{"prctl", bpf.CallFields{Args: [6]uint64{unix.PR_SET_DUMPABLE, 1}}, "option=PR_SET_DUMPABLE arg2_int=1"},
		{"delete_module", bpf.CallFields{Text: text("nf_nat")}, "name=nf_nat flags=0x0"},
		{"io_uring_setup", bpf.CallFields{Args: [6]uint64{8}, Number: 2}, "entries=8 flags=IORING_SETUP_SQPOLL"},
	} {
		a := callArgs{e: &bpf.CallEvent{CallFields: c.fields}, path: "PATH", target: "TARGET", users: user}
		var got []string
		for _, arg := range systemCalls[c.call].Args {
			if v := a.value(c.call, arg); v != "" {
				got = append(got, arg+"="+v)
			}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: %s, want %s", c.call, s, c.want)
		}
	}
	if names := slices.Collect(maps.Keys(systemCalls)); len(names) != len(schemas.Calls()) {
		t.Errorf("%d calls, %d of them different", len(schemas.Calls()), len(names))
	}
}

// TestEnvironment: of the environment only the configured variables are kept,
// without their secrets.
func TestEnvironment(t *testing.T) {
	l := &lane{s: &sensor{redact: redact.New(redact.DefaultWords()),
		environment: map[string]struct{}{"LD_PRELOAD": {}, "https_proxy": {}, "API_TOKEN": {}, "EMPTY": {}}}}
	env := "PATH=/bin\x00LD_PRELOAD=/tmp/a=b.so\x00NONSENSE\x00https_proxy=http://u:hunter2@proxy:3128\x00API_TOKEN=hunter2\x00EMPTY=\x00LD_PRELOAD"
	want := []string{"LD_PRELOAD", "/tmp/a=b.so", "https_proxy", "http://u:[redacted]@proxy:3128", "API_TOKEN", "[redacted]", "EMPTY", ""}
	if got := l.environment([]byte(env)); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := l.environment(nil); len(got) != 0 {
		t.Errorf("of none: %q", got)
	}
}
