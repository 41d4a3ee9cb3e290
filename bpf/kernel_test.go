package bpf

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func init() {
	// storm N: N rounds of an open, a connect and a process.
	helpers["storm"] = func(args []string) error {
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		dir, err := os.MkdirTemp("", "storm")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := os.WriteFile(dir+"/true", exitZero(), 0o755); err != nil {
			return err
		}
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i := range errs { // on both CPUs
			wg.Go(func() { errs[i] = storm(n/len(errs), dir) })
		}
		wg.Wait()
		return errors.Join(errs...)
	}
}

func storm(n int, dir string) error {
	to := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}
	server := &unix.SockaddrInet4{Port: 53, Addr: [4]byte{127, 0, 0, 1}} // nobody answers there
	for range n {
		fd, err := unix.Open(dir+"/file", unix.O_CREAT|unix.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		unix.Close(fd)
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0); err != nil {
			return err
		}
		if err := unix.Connect(fd, to); err != nil {
			return err
		}
		if err := unix.Sendto(fd, []byte("a question"), 0, server); err != nil && err != unix.ECONNREFUSED {
			return err
		}
		unix.Close(fd)
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
			return err
		}
		pid, err := syscall.ForkExec(dir+"/true", []string{"true"}, nil)
		if err != nil {
			return err
		}
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
			return err
		}
	}
	return nil
}

// cell names a counter.
type cell struct {
	CPU   uint32
	Class Class
}

// drain reads what is in the rings and returns the numbers it found, in the order read.
func drain(t *testing.T, k *Kernel) map[cell][]uint64 {
	t.Helper()
	seqs := map[cell][]uint64{}
	var ev Event
	for _, r := range k.Readers() {
		r.SetDeadline(time.Now())
		for {
			err := r.Read(&ev)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				t.Fatalf("reading class %s: %v", r.Class(), err)
			}
			c := cell{ev.Header.CPU, ev.Header.Class}
			if c.Class != r.Class() {
				t.Fatalf("an event of class %s in the ring of %s", c.Class, r.Class())
			}
			if ev.Count() > 0 { // not the news of a control group
				seqs[c] = append(seqs[c], ev.Header.Seq)
			}
		}
		r.SetDeadline(time.Time{})
		if n := available(r); n != 0 {
			t.Errorf("class %s: %d bytes left", r.Class(), n)
		}
	}
	return seqs
}

// counting asserts that numbers are from, from+1, … without gap or repetition.
func counting(t *testing.T, c cell, seqs []uint64, from uint64) {
	t.Helper()
	for i, s := range seqs {
		if want := from + uint64(i); s != want {
			t.Errorf("%s on CPU %d: number %d where %d was expected", c.Class, c.CPU, s, want)
			return
		}
	}
}

// TestOverflow: rings that are too small and that nobody reads.
func TestOverflow(t *testing.T) {
	o := options(t)
	o.ProcessRing, o.FileRing, o.NetworkRing, o.KernelRing, o.DNSRing = 64<<10, 16<<10, 4<<10, 4<<10, 4<<10
	k := mustLoad(t, o)
	run(t, helper(t, "storm", "500"))
	if err := k.Detach(); err != nil {
		t.Fatal(err)
	}
	sums := checkCounters(t, k)
	for class, s := range sums {
		t.Logf("%s: %d seen, %d submitted, %d did not fit", Class(class), s.Seen, s.Submitted, s.RingFull)
		if s.Seen < 500 {
			t.Errorf("%s: %d seen, want 500 at least", Class(class), s.Seen)
		}
		if s.RingFull == 0 {
			t.Errorf("%s: the ring did not overflow", Class(class))
		}
	}
	seqs := drain(t, k)
	counters, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counters {
		if got := k.Submitted(c.CPU, c.Class); got != c.Submitted {
			t.Errorf("%s on CPU %d: Submitted is %d, Counters has %d", c.Class, c.CPU, got, c.Submitted)
		}
		if c.Seen != c.Submitted+c.RingFull {
			t.Errorf("%s on CPU %d: %d seen, %d submitted, %d did not fit", c.Class, c.CPU, c.Seen, c.Submitted, c.RingFull)
		}
		got := seqs[cell{c.CPU, c.Class}]
		if uint64(len(got)) != c.Submitted {
			t.Errorf("%s on CPU %d: %d events in the ring, %d submitted", c.Class, c.CPU, len(got), c.Submitted)
		}
		counting(t, cell{c.CPU, c.Class}, got, 1)
	}
}

// TestStorm: nothing is lost where rings are large enough and read, and every number comes once, in order.
func TestStorm(t *testing.T) {
	c := sensor(t)
	run(t, helper(t, "storm", "2000"))
	c.settle(t)
	if err := c.k.Detach(); err != nil {
		t.Fatal(err)
	}
	missed, err := c.k.Missed()
	if err != nil || missed != 0 {
		t.Errorf("%d runs missed, %v", missed, err)
	}
	c.finish(t)
	seqs := map[cell][]uint64{}
	for _, ev := range c.all(func(ev *Event) bool { return ev.Count() > 0 }) {
		seqs[cell{ev.Header.CPU, ev.Header.Class}] = append(seqs[cell{ev.Header.CPU, ev.Header.Class}], ev.Header.Seq)
	}
	counters, err := c.k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range counters {
		got := seqs[cell{n.CPU, n.Class}]
		if n.RingFull != 0 || n.Seen != n.Submitted || uint64(len(got)) != n.Submitted {
			t.Errorf("%+v, read %d", n, len(got))
		}
		counting(t, cell{n.CPU, n.Class}, got, 1)
	}
	sums := checkCounters(t, c.k)
	if f := sums[ClassFile]; f.Seen < 2000 {
		t.Errorf("file: %d seen", f.Seen)
	}
	if n := sums[ClassNetwork]; n.Seen < 2000 {
		t.Errorf("network: %d seen", n.Seen)
	}
	if p := sums[ClassProcess]; p.Seen < 3*2000 {
		t.Errorf("process: %d seen", p.Seen)
	}
	if k := sums[ClassKernel]; k.Seen < 2000 {
		t.Errorf("kernel: %d seen", k.Seen)
	}
	if d := sums[ClassDNS]; d.Seen < 2000 {
		t.Errorf("dns: %d seen", d.Seen)
	}
	for class, s := range sums {
		if s.Errors != [NumErrors]uint64{} {
			t.Errorf("%s: errors %v", Class(class), s.Errors)
		}
	}
}

// holdings is what a sensor that is about to die has done.
type holdings struct {
	Noted, Unnoted map[string]int // by "cpu class"
}

func init() {
	// doomed INSTANCE: a sensor that notes the first 300 events of each class as handed on, takes 57 more
	// from each ring, says so, and does nothing more.
	helpers["doomed"] = func(args []string) error {
		k, err := Load(optionsOf(args[0]))
		if err != nil {
			return err
		}
		fmt.Println("ready")
		h := holdings{Noted: map[string]int{}, Unnoted: map[string]int{}}
		var ev Event
		for _, r := range k.Readers() {
			for i := 0; i < 357; i++ {
				if err := r.Read(&ev); err != nil {
					return err
				}
				if ev.Count() == 0 {
					i--
					continue
				}
				key := fmt.Sprint(ev.Header.CPU, ev.Header.Class)
				r.Release()
				if i < 300 {
					k.Ledger().Add(ev.Header.CPU, ev.Header.Class, 1)
					h.Noted[key]++
				} else {
					h.Unnoted[key]++
				}
			}
		}
		if err := json.NewEncoder(os.Stdout).Encode(h); err != nil {
			return err
		}
		for {
			time.Sleep(time.Hour)
		}
	}
}

// TestTakeover: a sensor is killed while events flow, and taken over.
func TestTakeover(t *testing.T) {
	o := options(t)
	storm := helper(t, "storm", "3000")
	doomed := helper(t, "doomed", o.Instance)
	out, err := doomed.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := doomed.Start(); err != nil {
		t.Fatal(err)
	}
	var ready string
	if _, err := fmt.Fscanln(out, &ready); err != nil || ready != "ready" {
		t.Fatalf("the sensor did not start: %q, %v", ready, err)
	}
	if err := storm.Start(); err != nil {
		t.Fatal(err)
	}
	var h holdings
	if err := json.NewDecoder(out).Decode(&h); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // more events, which nobody reads
	if err := doomed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = doomed.Wait()

	k := mustLoad(t, o)
	if !k.Resumed() || k.Abandoned().Replaced {
		t.Fatal("the killed sensor's pins were not taken up")
	}
	for _, r := range k.Readers() {
		if available(r) == 0 {
			t.Errorf("class %s: nothing in the ring: the storm was over too soon", r.Class())
		}
	}
	ledger := map[cell]uint64{}
	for cpu := range uint32(k.CPUs()) {
		for class := range Class(NumClasses) {
			noted := k.Ledger().Load(cpu, class)
			ledger[cell{cpu, class}] = noted
			if want := h.Noted[fmt.Sprint(cpu, class)]; noted != uint64(want) {
				t.Errorf("%s on CPU %d: ledger %d, want %d", class, cpu, noted, want)
			}
		}
	}

	c := collect(t, k)
	if err := storm.Wait(); err != nil {
		t.Fatal(err)
	}
	c.settle(t)
	if err := k.Detach(); err != nil {
		t.Fatal(err)
	}
	c.finish(t)
	counters, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}

	read := map[cell][]uint64{}
	for _, ev := range c.all(func(ev *Event) bool { return ev.Count() > 0 }) {
		read[cell{ev.Header.CPU, ev.Header.Class}] = append(read[cell{ev.Header.CPU, ev.Header.Class}], ev.Header.Seq)
	}
	for _, n := range counters {
		at := cell{n.CPU, n.Class}
		lost, ok := k.Readers()[n.Class].Lost()
		if !ok {
			t.Fatalf("class %s: what was lost is not known", n.Class)
		}
		if want := h.Unnoted[fmt.Sprint(n.CPU, n.Class)]; lost[n.CPU] != uint64(want) {
			t.Errorf("%s on CPU %d: %d lost, want %d", n.Class, n.CPU, lost[n.CPU], want)
		}
		if n.RingFull != 0 { // others were busy on this machine: counted, and not in the sum below
			t.Logf("%s on CPU %d: %d did not fit", n.Class, n.CPU, n.RingFull)
		}
		if sum := ledger[at] + lost[n.CPU] + uint64(len(read[at])); sum != n.Submitted {
			t.Errorf("%s on CPU %d: %d noted + %d lost + %d read = %d, want %d submitted", n.Class, n.CPU, ledger[at], lost[n.CPU], len(read[at]), sum, n.Submitted)
		}
		counting(t, at, read[at], ledger[at]+lost[n.CPU]+1)
	}
}

// TestTakeoverAgain: many times, at any moment, also while the sensor loads: what is pinned is complete or
// replaced, and the sums hold.
func TestTakeoverAgain(t *testing.T) {
	o := options(t)
	begin := time.Now()
	if err := mustLoad(t, o).Close(false); err != nil {
		t.Fatal(err)
	}
	loading := time.Since(begin)
	storm := helper(t, "storm", "3000")
	if err := storm.Start(); err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		doomed := helper(t, "hasty", o.Instance)
		if err := doomed.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * loading / 3)
		if err := doomed.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = doomed.Wait()
	}
	if err := storm.Wait(); err != nil {
		t.Fatal(err)
	}
	k := mustLoad(t, o)
	if !k.Resumed() {
		t.Fatal("the last sensor's pins were not taken up")
	}
	if err := k.Detach(); err != nil {
		t.Fatal(err)
	}
	counters, err := k.Counters()
	if err != nil {
		t.Fatal(err)
	}
	read := drain(t, k)
	for _, n := range counters {
		lost, ok := k.Readers()[n.Class].Lost()
		if !ok {
			t.Fatal("what was lost is not known")
		}
		noted, got := k.Ledger().Load(n.CPU, n.Class), read[cell{n.CPU, n.Class}]
		if noted+lost[n.CPU]+uint64(len(got)) != n.Submitted || n.Submitted+n.RingFull != n.Seen {
			t.Errorf("%s on CPU %d: %d noted + %d lost + %d in the ring, %+v", n.Class, n.CPU, noted, lost[n.CPU], len(got), n)
		}
		// A killed sensor had released at most one event more than it had noted: it notes each at once.
		if lost[n.CPU] > 12 {
			t.Errorf("%s on CPU %d: %d lost by 12 kills", n.Class, n.CPU, lost[n.CPU])
		}
		counting(t, cell{n.CPU, n.Class}, got, noted+lost[n.CPU]+1)
	}
}

func init() {
	// hasty INSTANCE: a sensor that notes every event at once.
	helpers["hasty"] = func(args []string) error {
		k, err := Load(optionsOf(args[0]))
		if err != nil {
			return err
		}
		var wg sync.WaitGroup
		for _, r := range k.Readers() {
			wg.Go(func() {
				var ev Event
				for r.Read(&ev) == nil {
					r.Release()
					k.Ledger().Add(ev.Header.CPU, ev.Header.Class, ev.Count())
				}
			})
		}
		wg.Wait()
		return errors.New("reading ended")
	}
}

func pins(t *testing.T, o Options) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join("/sys/fs/bpf/picket", o.Instance))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestKeep: Close(true) and a Load in peace lose nothing; Close(false) leaves nothing.
func TestKeep(t *testing.T) {
	o := options(t)
	k := mustLoad(t, o)
	if k.Resumed() {
		t.Error("a first Load has nothing to resume")
	}
	if err := k.SetWatchedPaths([]string{"/etc/hostname"}); err != nil {
		t.Fatal(err)
	}
	if err := k.Close(true); err != nil {
		t.Fatal(err)
	}
	pid, _ := doOpen(t, openCall{Call: "openat", Path: "/etc/hostname", Flags: unix.O_RDONLY})

	k = mustLoad(t, o)
	if !k.Resumed() {
		t.Error("not resumed")
	}
	c := collect(t, k)
	c.wait(t, "open of a watched path while no sensor ran", by(pid, ActionOpen))
	if err := k.Close(false); err != nil {
		t.Fatal(err)
	}
	if err := k.Close(false); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := os.Stat(filepath.Join("/sys/fs/bpf/picket", o.Instance)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pin directory is still there: %v", err)
	}
	if available(k.Readers()[0]) != 0 {
		t.Error("a closed reader has something available")
	}
	if err := k.SetWatchedPaths(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("SetWatchedPaths after Close: %v", err)
	}
	if _, err := k.Missed(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Missed after Close: %v", err)
	}
	if err := k.Detach(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Detach after Close: %v", err)
	}
	if err := k.Readers()[0].Read(new(Event)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
	if n := k.Submitted(uint32(k.CPUs()), ClassFile) + k.Submitted(0, NumClasses) + k.Ledger().Load(uint32(k.CPUs()), ClassFile) + k.Ledger().Load(0, NumClasses); n != 0 {
		t.Errorf("cells that do not exist have counted %d", n)
	}
	// Memory that may still be looked at.
	if _, err := k.Counters(); err != nil {
		t.Errorf("Counters after Close: %v", err)
	}
	k.Ledger().Add(0, ClassFile, 1)
}

// TestReplaced: pins that cannot be taken up are replaced, and what was in them is counted.
func TestReplaced(t *testing.T) {
	t.Run("other options", func(t *testing.T) {
		o := options(t)
		k := mustLoad(t, o)
		run(t, helper(t, "storm", "100"))
		sums := checkCounters(t, k)
		k.Ledger().Add(0, ClassFile, 40)
		k.Ledger().Add(uint32(k.CPUs()-1), ClassFile, 7)
		if err := k.Close(true); err != nil {
			t.Fatal(err)
		}
		o.FileRing = 1 << 20
		k = mustLoad(t, o)
		a := k.Abandoned()
		if k.Resumed() || !a.Replaced || a.Unknown {
			t.Errorf("resumed %v, %+v", k.Resumed(), a)
		}
		// Others' events between the two looks may add to it.
		if want := sums[ClassFile].Submitted - 47; a.Events[ClassFile] < want {
			t.Errorf("%d file events abandoned, want %d", a.Events[ClassFile], want)
		}
		if a.Events[ClassProcess] < sums[ClassProcess].Submitted || a.Events[ClassNetwork] < sums[ClassNetwork].Submitted {
			t.Errorf("abandoned %+v, submitted %+v", a.Events, sums)
		}
		if names := pins(t, o); len(names) != 1 {
			t.Errorf("pinned: %v", names)
		}
	})
	t.Run("incomplete", func(t *testing.T) {
		o := options(t)
		k := mustLoad(t, o)
		if err := k.Detach(); err != nil { // and then a crash
			t.Fatal(err)
		}
		if err := k.Close(true); err != nil {
			t.Fatal(err)
		}
		k = mustLoad(t, o)
		if a := k.Abandoned(); k.Resumed() || !a.Replaced || a.Unknown {
			t.Errorf("resumed %v, %+v", k.Resumed(), a)
		}
	})
	t.Run("unreadable", func(t *testing.T) {
		o := options(t)
		k := mustLoad(t, o)
		if err := k.Close(true); err != nil {
			t.Fatal(err)
		}
		run := pins(t, o)[0]
		if err := os.Remove(filepath.Join("/sys/fs/bpf/picket", o.Instance, run, "map_ledger")); err != nil {
			t.Fatal(err)
		}
		k = mustLoad(t, o)
		if a := k.Abandoned(); k.Resumed() || !a.Replaced || !a.Unknown {
			t.Errorf("resumed %v, %+v", k.Resumed(), a)
		}
	})
	t.Run("half made", func(t *testing.T) {
		o := options(t)
		k := mustLoad(t, o)
		if err := k.Close(true); err != nil {
			t.Fatal(err)
		}
		run := pins(t, o)[0]
		dir := filepath.Join("/sys/fs/bpf/picket", o.Instance)
		for _, junk := range []string{"/new-1234", "/old-5678"} {
			if err := os.MkdirAll(dir+junk, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(filepath.Join(dir, run, "map_watches"), dir+"/old-5678/map_watches"); err != nil {
			t.Fatal(err)
		}
		k = mustLoad(t, o)
		if k.Resumed() || !k.Abandoned().Replaced {
			t.Errorf("resumed %v, %+v", k.Resumed(), k.Abandoned())
		}
		if names := pins(t, o); len(names) != 1 || names[0] != run {
			t.Errorf("pinned: %v", names)
		}
	})
}

func TestInUse(t *testing.T) {
	o := options(t)
	k := mustLoad(t, o)
	_, err := Load(o)
	if want := fmt.Sprintf("another sensor runs with instance %q", o.Instance); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), want) {
		t.Errorf("second Load: %v, want %s", err, want)
	}
	out, err := helper(t, "load", o.Instance).Output()
	if err != nil || !strings.Contains(string(out), "another sensor runs") {
		t.Errorf("Load of another process: %q, %v", out, err)
	}
	// Another instance is another matter, and the first goes on.
	collect(t, mustLoad(t, options(t))).settle(t)
	collect(t, k).settle(t)
}

func init() {
	// load INSTANCE: prints the error of Load.
	helpers["load"] = func(args []string) error {
		o := Options{Instance: args[0]}
		if len(args) > 1 {
			o.BPFFS = args[1]
		}
		k, err := Load(o)
		if err == nil {
			fmt.Println("loaded")
			return k.Close(false)
		}
		fmt.Println(errors.Is(err, ErrNotSupported), err)
		return nil
	}
	// powerless LOWER-MASK UPPER-MASK INSTANCE: load with those capabilities alone.
	helpers["powerless"] = func(args []string) error {
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		for i := range data {
			mask, err := strconv.ParseUint(args[i], 0, 32)
			if err != nil {
				return err
			}
			data[i].Effective, data[i].Permitted = uint32(mask), uint32(mask)
		}
		runtime.LockOSThread() // capabilities belong to a thread
		if err := unix.Capset(&hdr, &data[0]); err != nil {
			return err
		}
		return helpers["load"](args[2:])
	}
	helpers["hidden-btf"] = func(args []string) error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", "/sys/kernel/btf", "tmpfs", 0, ""); err != nil {
			return err
		}
		return helpers["load"](args)
	}
	// bpffs DIR INSTANCE: Load where nothing is mounted yet.
	helpers["bpffs"] = func(args []string) error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		return helpers["load"]([]string{args[1], args[0]})
	}
}

// TestNotSupported: one sentence that names what is missing.
func TestNotSupported(t *testing.T) {
	o := options(t)
	empty, full := t.TempDir(), t.TempDir()
	if err := os.WriteFile(full+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	bit := func(c int) string { return fmt.Sprint(uint32(1) << (c % 32)) }
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"no capabilities", []string{"powerless", "0", "0", o.Instance}, "true the sensor needs to run as root, or with the capabilities CAP_BPF and CAP_PERFMON; this process lacks both"},
		{"CAP_BPF only", []string{"powerless", "0", bit(unix.CAP_BPF), o.Instance}, "this process lacks CAP_PERFMON"},
		{"CAP_PERFMON only", []string{"powerless", "0", bit(unix.CAP_PERFMON), o.Instance}, "this process lacks CAP_BPF"},
		{"no BTF", []string{"hidden-btf", o.Instance}, "true the kernel's type information (BTF) is missing at /sys/kernel/btf/vmlinux"},
		{"no BPF file system", []string{"bpffs", empty, o.Instance}, "loaded"},
		{"not a BPF file system", []string{"bpffs", full, o.Instance}, "is neither a BPF file system nor an empty directory"},
		{"no such directory", []string{"bpffs", full + "/none", o.Instance}, "no such file or directory; mount one there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := helper(t, tt.args...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(out), tt.want) || strings.Count(string(out), "\n") != 1 {
				t.Errorf("%q, want one line with %q", out, tt.want)
			}
		})
	}
}

// TestLeastCapabilities: root is not needed, where the BPF file system is open to the sensor.
func TestLeastCapabilities(t *testing.T) {
	o := options(t)
	k := mustLoad(t, o) // mounts the BPF file system
	if err := k.Close(false); err != nil {
		t.Fatal(err)
	}
	out, err := helper(t, "powerless", "0", fmt.Sprint(1<<(unix.CAP_BPF%32)|1<<(unix.CAP_PERFMON%32)), o.Instance).Output()
	if err != nil || string(out) != "loaded\n" {
		t.Errorf("Load with CAP_BPF and CAP_PERFMON alone: %q, %v", out, err)
	}
}

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		o   Options
		err string
	}{
		{Options{Instance: "a.b"}, `instance name "a.b": use 1 to 64 letters`},
		{Options{Instance: "../x"}, "instance name"},
		{Options{Instance: strings.Repeat("x", 65)}, "instance name"},
		{Options{ProcessRing: 5000}, "process ring of 5000 bytes: use a power of two"},
		{Options{FileRing: 2048}, "file ring of 2048 bytes"},
		{Options{NetworkRing: -4096}, "network ring of -4096 bytes"},
		{Options{NetworkRing: 2 << 30}, "network ring of 2147483648 bytes"},
	} {
		if _, err := Load(tt.o); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%+v: %v, want %s", tt.o, err, tt.err)
		}
	}
	o := Options{}
	if err := o.complete(); err != nil || o != (Options{Instance: "default", BPFFS: "/sys/fs/bpf", ProcessRing: 4 << 20, FileRing: 8 << 20, NetworkRing: 2 << 20, KernelRing: 1 << 20, DNSRing: 1 << 20}) {
		t.Errorf("defaults: %+v, %v", o, err)
	}
}

// TestProbe: what the probe says of this kernel is what its release says.
func TestProbe(t *testing.T) {
	types, err := btf.LoadKernelSpec()
	if err != nil {
		t.Skipf("SKIPPED (needs the kernel's BTF): %v", err)
	}
	got, err := probe(types)
	if err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(kernelRelease(), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	since := func(m int) bool { return major > 6 || major == 6 && minor >= m }
	if got.exitTellsLast != since(16) || got.uring && got.uringGivesResult != !since(15) {
		t.Errorf("Linux %s: %+v", kernelRelease(), got)
	}
}

func TestNoLeaks(t *testing.T) {
	o := options(t)
	before := openFiles(t)
	for range 3 {
		k := mustLoad(t, o)
		c := collect(t, k)
		c.settle(t)
		if err := k.Close(false); err != nil {
			t.Fatal(err)
		}
		c.wg.Wait()
	}
	if after := openFiles(t); len(after) > len(before) {
		t.Errorf("files left open: %v, before %v", after, before)
	}
	goleak.VerifyNone(t)
}

func openFiles(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			out = append(out, target)
		}
	}
	return out
}
