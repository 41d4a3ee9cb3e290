package sensor_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"

	"picket/internal/batch"
	"picket/internal/health"
	"picket/internal/natsserver"
	"picket/internal/natsserver/natstest"
	"picket/schemas"
	"picket/services/sensor"
	"picket/services/sensor/containerid/cgrouptest"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED (needs root): the sensor was not tried on the live kernel")
	}
}

// config returns a sensor of its own for the test.
func config(t *testing.T, s *natsserver.Server) sensor.Config {
	cfg := sensor.DefaultConfig()
	cfg.NATS = natstest.Config(s, schemas.ServiceSensor)
	cfg.Log.File = filepath.Join(t.TempDir(), "sensor.log")
	cfg.Cluster, cfg.Node = "test.cluster", "node-1"
	cfg.StateDir = t.TempDir()
	cfg.DropCapabilities = false // the test's own; test/e2e has a sensor that drops them
	cfg.Kernel.Instance = fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)
	cfg.Kernel.WatchedPaths = append(cfg.Kernel.WatchedPaths, "/etc/hostname")
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(cfg.Log.File)
			t.Logf("sensor's log:\n%s", b)
		}
	})
	return cfg
}

// start runs a sensor until stop is called.
func start(t *testing.T, cfg sensor.Config) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- sensor.Run(ctx, cfg) }()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, _ := os.ReadFile(cfg.Log.File)
		if strings.Contains(string(b), `"msg":"watching"`) {
			break
		}
		select {
		case err := <-done:
			t.Fatalf("sensor stopped: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("sensor does not start")
		}
	}
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// batches decodes everything on PICKET_RAW.
func batches(t *testing.T, s *natsserver.Server) []*batch.Batch {
	t.Helper()
	b := natstest.Connect(t, s, schemas.ServiceAdmin)
	st, err := b.JS.Stream(context.Background(), schemas.StreamRaw)
	if err != nil {
		t.Fatal(err)
	}
	info, err := st.Info(context.Background(), jetstream.WithSubjectFilter(">"))
	if err != nil {
		t.Fatal(err)
	}
	var out []*batch.Batch
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		m, err := st.GetMsg(context.Background(), seq)
		if err != nil {
			t.Fatal(err)
		}
		got, err := batch.Decode(m.Data)
		if err != nil {
			t.Fatalf("message %d on %s: %v", seq, m.Subject, err)
		}
		out = append(out, got)
	}
	return out
}

func TestLive(t *testing.T) {
	needRoot(t)
	s := natstest.Start(t)
	cfg := config(t, s)
	stop := start(t, cfg)

	dir := t.TempDir()
	file := filepath.Join(dir, "written by a test")
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `cat /etc/hostname > "$0"; exit 3`, file, "--password=hunter2", "–unicode ✓")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a session whose leader lives: who started the tests may have ended
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 3 {
		t.Fatalf("sh: %v", err)
	}
	// The sensor does not watch itself, and this test is the same process:
	// connections are made by children.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	bash := exec.Command("/bin/bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d", port))
	if out, err := bash.CombinedOutput(); err != nil {
		t.Fatalf("bash: %v %s", err, out)
	}
	for range 300 {
		if err := exec.Command("/bin/true").Run(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond)
	stop()

	rows := map[string]uint64{}
	ids := map[[16]byte]bool{}
	counters := map[string]uint64{}
	var sawSh, sawCat, sawOpen, sawWrite, sawConnect, sawExit bool
	execs := 0
	for _, b := range batches(t, s) {
		for r := range b.Rows() {
			id, _ := b.Bytes16(schemas.EventID, r)
			if ids[id] {
				t.Fatalf("event id twice in %s", b.Class())
			}
			ids[id] = true
			if b.Class() == schemas.Health {
				counters[b.Str(schemas.Action, r)+" "+b.Str(schemas.HealthClass, r)+" "+b.Str(schemas.HealthReason, r)] = b.Uint(schemas.HealthTotal, r)
				continue
			}
			rows[b.Class().String()]++
			if b.Str(schemas.Cluster, r) != "test.cluster" || b.Str(schemas.Node, r) != "node-1" {
				t.Fatal("cluster or node missing")
			}
			name, args := b.Str(schemas.ProcessName, r), b.Str(schemas.ProcessArgs, r)
			pid := int(b.Uint(schemas.ProcessPID, r))
			switch b.Str(schemas.Action, r) {
			case "exec":
				if b.Str(schemas.ExecFilename, r) == "/bin/true" && b.Uint(schemas.ProcessParentPID, r) == uint64(os.Getpid()) {
					execs++
				}
				if pid == cmd.ProcessState.Pid() && name == "sh" {
					sawSh = true
					if !strings.Contains(args, "--password=[redacted] –unicode ✓") || strings.Contains(args, "hunter2") {
						t.Errorf("arguments %q", args)
					}
					if got := b.Uint(schemas.ProcessParentPID, r); got != uint64(os.Getpid()) {
						t.Errorf("parent %d, want %d", got, os.Getpid())
					}
					for v := range b.List(schemas.ProcessArgv, r) {
						if strings.Contains(v, "hunter2") {
							t.Errorf("argv has the secret")
						}
					}
					if d := time.Now().UnixNano() - b.Int(schemas.EventTime, r); d < 0 || d > int64(time.Minute) {
						t.Errorf("time is %v ago", time.Duration(d))
					}
				}
				if name == "cat" && b.Str(schemas.ParentName, r) == "sh" {
					sawCat = true
					if b.Str(schemas.ProcessUserName, r) != "root" {
						t.Errorf("user %q", b.Str(schemas.ProcessUserName, r))
					}
					parent := b.Uint(schemas.ProcessParentPID, r)
					if pids := slices.Collect(b.List(schemas.AncestorPIDs, r)); len(pids) < 2 || pids[0] != fmt.Sprint(parent) || pids[1] != fmt.Sprint(os.Getpid()) {
						t.Errorf("pids of the ancestors %v, parent %d", pids, parent)
					}
					commands, args := slices.Collect(b.List(schemas.AncestorCommands, r)), slices.Collect(b.List(schemas.AncestorArgs, r))
					if len(commands) < 2 || commands[0] != "/bin/sh" || commands[1] != os.Args[0] || len(args) != len(commands) || !strings.HasSuffix(args[0], "--password=[redacted] –unicode ✓") {
						t.Errorf("commands of the ancestors %q, arguments %q", commands, args)
					}
					if start := b.Int(schemas.ParentStart, r); start == 0 || start > b.Int(schemas.ProcessStart, r) || start < b.Int(schemas.ProcessStart, r)-int64(time.Minute) {
						t.Errorf("parent forked at %d, process at %d", start, b.Int(schemas.ProcessStart, r))
					}
					if b.Uint(schemas.ParentVPID, r) != b.Uint(schemas.ProcessVPID, r)-b.Uint(schemas.ProcessPID, r)+parent {
						t.Errorf("parent is %d in its namespace and %d on the host, process %d and %d", b.Uint(schemas.ParentVPID, r), parent, b.Uint(schemas.ProcessVPID, r), b.Uint(schemas.ProcessPID, r))
					}
					if b.Str(schemas.GroupLeaderName, r) != "sh" || b.Str(schemas.GroupLeaderExe, r) != shell || b.Str(schemas.SessionExe, r) != shell {
						t.Errorf("group leader %q %q, session leader %q", b.Str(schemas.GroupLeaderName, r), b.Str(schemas.GroupLeaderExe, r), b.Str(schemas.SessionExe, r))
					}
				}
			case "exit":
				if pid == cmd.ProcessState.Pid() {
					sawExit = true
					if b.Int(schemas.ExitCode, r) != 3 {
						t.Errorf("exit code %d", b.Int(schemas.ExitCode, r))
					}
				}
			case "open":
				switch path := b.Str(schemas.FilePath, r); {
				case path == "/etc/hostname" && name == "cat":
					sawOpen = true
					if !b.Bool(schemas.FileRead, r) || b.Bool(schemas.FileWrite, r) || !strings.HasSuffix(b.Str(schemas.ProcessExe, r), "/cat") {
						t.Errorf("open of %s by %q: read %v, write %v", path, b.Str(schemas.ProcessExe, r), b.Bool(schemas.FileRead, r), b.Bool(schemas.FileWrite, r))
					}
				case path == file:
					// the forked child opens the file before it runs cat
					sawWrite = true
					if !b.Bool(schemas.FileWrite, r) || !b.Bool(schemas.FileCreated, r) || name != "sh" {
						t.Errorf("open of %s by %q: write %v, created %v", path, name, b.Bool(schemas.FileWrite, r), b.Bool(schemas.FileCreated, r))
					}
				}
			case "connect":
				if pid == bash.ProcessState.Pid() && b.Uint(schemas.NetPeerPort, r) == uint64(port) {
					sawConnect = true
					if name != "bash" || b.Str(schemas.NetTransport, r) != "tcp" || b.Int(schemas.Result, r) != 0 {
						t.Errorf("connect by %q over %s: %d", name, b.Str(schemas.NetTransport, r), b.Int(schemas.Result, r))
					}
				}
			}
		}
	}
	for what, saw := range map[string]bool{"exec of sh": sawSh, "exec of cat": sawCat, "open of /etc/hostname": sawOpen, "write": sawWrite, "connect": sawConnect, "exit": sawExit} {
		if !saw {
			t.Errorf("not seen: %s", what)
		}
	}
	if execs != 300 {
		t.Errorf("%d of 300 execs of true", execs)
	}
	for _, class := range []string{"process", "file", "network", "kernel"} {
		seen, dropped := counters["counters "+class+" kernel_seen"], counters["loss "+class+" ring_full"]
		if seen == 0 || seen != rows[class]+dropped {
			t.Errorf("%s: kernel saw %d, published %d, dropped %d", class, seen, rows[class], dropped)
		}
	}
	if t.Failed() {
		t.Logf("counters: %v; rows: %v", counters, rows)
	}
	if left, _ := filepath.Glob(filepath.Join(cfg.Kernel.BPFFS, "picket", cfg.Kernel.Instance, "*")); len(left) > 0 {
		t.Errorf("pins left after a clean stop: %v", left)
	}
}

// TestLiveChanges: what shell commands change is told with full paths.
func TestLiveChanges(t *testing.T) {
	needRoot(t)
	s := natstest.Start(t)
	stop := start(t, config(t, s))
	dir := t.TempDir()
	cmd := exec.Command("/bin/sh", "-ec", `mkdir d; touch f; touch -d @1000000000 f; truncate -s 4 f; mknod p p; mv f d/../g; ln g d/hard; ln -s ../etc/shadow soft; chmod 4755 g; chown 12:34 ./d/hard; rm soft; rm d/hard; rmdir d; ! rm none`)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	time.Sleep(200 * time.Millisecond)
	stop()
	got := map[string]string{}
	for _, b := range batches(t, s) {
		for r := range b.Rows() {
			if b.Class() != schemas.File || b.Str(schemas.Action, r) == "open" || b.Str(schemas.ProcessCwd, r) != dir {
				continue
			}
			if b.Str(schemas.Action, r) != "utimes" && b.Str(schemas.Action, r) != "truncate" && !b.Bool(schemas.UserMemory, r) { // those have the file open
				t.Errorf("%s is not marked", b.Str(schemas.Action, r))
			}
			path := strings.Replace(b.Str(schemas.FilePath, r), dir, "DIR", 1)
			got[b.Str(schemas.Action, r)+" "+path] = strings.Replace(b.Str(schemas.FilePathTarget, r), dir, "DIR", 1) +
				fmt.Sprintf(" %s %d %o %d:%d %d %d", b.Str(schemas.ProcessName, r), b.Int(schemas.Result, r), b.Uint(schemas.FileModeNew, r), b.Int(schemas.FileUserIDNew, r), b.Int(schemas.FileGroupIDNew, r),
					b.Uint(schemas.FileSizeNew, r), b.Int(schemas.FileMtimeNew, r))
		}
	}
	for what, want := range map[string]string{
		"mkdir DIR/d":       " mkdir 0 777 0:0 0 0",
		"rename DIR/f":      "DIR/g mv 0 0 0:0 0 0",
		"link DIR/d/hard":   "DIR/g ln 0 0 0:0 0 0",
		"symlink DIR/soft":  "../etc/shadow ln 0 0 0:0 0 0",
		"chmod DIR/g":       " chmod 0 4755 0:0 0 0",
		"chown DIR/d/hard":  " chown 0 0 12:34 0 0",
		"unlink DIR/soft":   " rm 0 0 0:0 0 0",
		"unlink DIR/d/hard": " rm 0 0 0:0 0 0",
		"rmdir DIR/d":       " rmdir 0 0 0:0 0 0",
		"utimes DIR/f":      " touch 0 0 0:0 0 1000000000000000000",
		"truncate DIR/f":    " truncate 0 0 0:0 4 0",
		"mknod DIR/p":       " mknod 0 10666 0:0 0 0",
	} {
		if got[what] != want {
			t.Errorf("%s is %q, want %q", what, got[what], want)
		}
	}
}

// TestLiveCalls: what shell commands do to namespaces, mounts, roots, users and
// other processes is told in words, with what it acted on.
func TestLiveCalls(t *testing.T) {
	needRoot(t)
	s := natstest.Start(t)
	stop := start(t, config(t, s))
	dir := t.TempDir()
	victim := exec.Command("sleep", "60")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	defer victim.Process.Kill() // when the shell did not
	cmd := exec.Command("/bin/sh", "-ec", `mkdir m; unshare -m sh -c 'mount -t tmpfs -o noexec none m; umount m'
		setpriv --reuid 1234 --clear-groups true; ! chroot none true; kill -9 $VICTIM`)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), fmt.Sprint("VICTIM=", victim.Process.Pid))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	_ = victim.Wait() // it was killed
	time.Sleep(200 * time.Millisecond)
	stop()
	got := map[string]string{}
	for _, b := range batches(t, s) {
		for r := range b.Rows() {
			if b.Class() != schemas.Kernel || b.Str(schemas.ProcessCwd, r) != dir {
				continue
			}
			var args []string
			for k, v := range b.Map(schemas.CallArguments, r) {
				args = append(args, k+"="+v)
			}
			line := fmt.Sprintf("%s %d %s target=%d,%s user=%d,%d path=%s", b.Str(schemas.Action, r), b.Int(schemas.Result, r), strings.Join(args, " "), b.Uint(schemas.TargetPID, r),
				b.Str(schemas.TargetName, r), b.Uint(schemas.UserIDBefore, r), b.Uint(schemas.ProcessUserID, r), b.Str(schemas.FilePath, r))
			got[b.Str(schemas.ProcessName, r)+" "+b.Str(schemas.Syscall, r)] = strings.ReplaceAll(line, dir, "DIR")
		}
	}
	pid := victim.Process.Pid
	for what, want := range map[string]string{
		"unshare unshare":   "unshare 0 flags=CLONE_NEWNS target=0, user=0,0 path=",
		"setpriv setresuid": "setuid 0 ruid=1234 euid=1234 suid=1234 target=0, user=0,1234 path=",
		"chroot chroot":     "chroot -2 path=DIR/none target=0, user=0,0 path=DIR/none",
		"sh kill":           fmt.Sprintf("signal 0 pid=%d sig=SIGKILL target=%d,sleep user=0,0 path=", pid, pid),
	} {
		if got[what] != want {
			t.Errorf("%s is\n%q, want\n%q", what, got[what], want)
		}
	}
	// mount(8) uses the one or the other interface for it.
	mount := got["mount mount"] + got["mount move_mount"]
	if !strings.Contains(mount, "DIR/m") || got["umount umount2"] == "" {
		t.Errorf("mount %q, umount %q", mount, got["umount umount2"])
	}
	if t.Failed() {
		for k, v := range got {
			t.Log(k, v)
		}
	}
}

// TestRingEmptied: what somebody else takes out of the kernel's ring is noticed,
// and what is lost by it is counted to the last event.
func TestRingEmptied(t *testing.T) {
	needRoot(t)
	s := natstest.Start(t)
	cfg := config(t, s)
	cfg.Kernel.FileRing = 16 << 10 // soon written over
	stop := start(t, cfg)
	pins, err := filepath.Glob(filepath.Join(cfg.Kernel.BPFFS, "picket", cfg.Kernel.Instance, "run-*", "map_file_ring"))
	if err != nil || len(pins) != 1 {
		t.Fatalf("pins %v, %v", pins, err)
	}
	ring, err := ebpf.LoadPinnedMap(pins[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	// The thief moves the place that readers have read to (see bpf/ring.go).
	read, err := unix.Mmap(ring.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(read)
	written, err := unix.Mmap(ring.FD(), int64(os.Getpagesize()), os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(written)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- exec.Command(self, "picket-storm", "open", "100000", file).Run() }() // see bench_test.go
	to, at := (*uint64)(unsafe.Pointer(&written[0])), (*uint64)(unsafe.Pointer(&read[0]))
	for ended := false; !ended; time.Sleep(50 * time.Microsecond) {
		atomic.StoreUint64(at, atomic.LoadUint64(to))
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			ended = true
		default:
		}
	}
	atomic.StoreUint64(at, atomic.LoadUint64(to)+1<<20) // nobody is told of events now
	time.Sleep(3 * health.Interval)
	if log, err := os.ReadFile(cfg.Log.File); err != nil || !strings.Contains(string(log), "somebody else took events") || strings.Count(string(log), "was tampered with") > 5 {
		t.Errorf("the log, %v, has %d lines of a moved ring", err, strings.Count(string(log), "was tampered with"))
	}
	after := filepath.Join(t.TempDir(), "after")
	if out, err := exec.Command("/bin/sh", "-c", `echo >"$0"`, after).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	time.Sleep(200 * time.Millisecond)
	stop()
	var lost, emptied, rows, seen, moved uint64
	sawAfter := false
	for _, b := range batches(t, s) {
		for r := range b.Rows() {
			switch {
			case b.Class() == schemas.File:
				rows++
				sawAfter = sawAfter || b.Str(schemas.FilePath, r) == after
			case b.Class() == schemas.Health && b.Str(schemas.HealthReason, r) == schemas.LossTampered && strings.Contains(b.Str(schemas.HealthSubject, r), "class file"):
				moved += b.Uint(schemas.HealthCount, r)
			case b.Class() != schemas.Health || b.Str(schemas.HealthClass, r) != "file":
			case b.Str(schemas.HealthReason, r) == "kernel_seen":
				seen = max(seen, b.Uint(schemas.HealthTotal, r))
			case b.Str(schemas.Action, r) == "loss":
				lost += b.Uint(schemas.HealthCount, r)
				if b.Str(schemas.HealthReason, r) == schemas.LossRingEmptied {
					emptied += b.Uint(schemas.HealthCount, r)
				}
			}
		}
	}
	if emptied == 0 || moved == 0 || seen != rows+lost || !sawAfter {
		t.Errorf("%d seen, %d published, %d lost, %d of them taken; %d times it was moved; the event after it was seen: %v", seen, rows, lost, emptied, moved, sawAfter)
	}
}

// TestCrowded: a container that makes more events than there is room for is
// reported by name, and the sums hold.
func TestCrowded(t *testing.T) {
	needRoot(t)
	s := natstest.Start(t)
	cfg := config(t, s)
	cfg.Kernel.FileRing, cfg.Kernel.Share = 64<<10, 20
	stop := start(t, cfg)
	id := strings.Repeat("c0ffee12", 8)
	cgroup := cgrouptest.Make(t, fmt.Sprintf("picket-test-%d/docker-%s.scope", os.Getpid(), id))
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// This binary again: see TestMain in bench_test.go.
	if out, err := cgrouptest.CombinedOutput(t, exec.Command(self, "picket-storm", "open", "50000", file), cgroup); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	time.Sleep(200 * time.Millisecond)
	stop()
	var rows, seen, lost, limited uint64
	for _, b := range batches(t, s) {
		if b.Class() == schemas.File {
			rows += uint64(b.Rows())
		}
		for r := range b.Rows() {
			if b.Class() != schemas.Health || b.Str(schemas.HealthClass, r) != "file" {
				continue
			}
			switch {
			case b.Str(schemas.HealthReason, r) == "kernel_seen":
				seen = max(seen, b.Uint(schemas.HealthTotal, r))
			case b.Str(schemas.Action, r) == "loss":
				lost += b.Uint(schemas.HealthCount, r)
				if b.Str(schemas.HealthReason, r) == schemas.LossRateLimited && b.Str(schemas.HealthSubject, r) == id {
					limited += b.Uint(schemas.HealthCount, r)
				}
			}
		}
	}
	if seen != rows+lost || limited == 0 {
		t.Errorf("%d seen, %d published, %d lost, %d of them left out of the container", seen, rows, lost, limited)
	}
}

// TestLiveDNS: questions and answers with the process that asked, and the name
// on the connection that follows.
func TestLiveDNS(t *testing.T) {
	needRoot(t)
	s := natstest.Start(t)
	cfg := config(t, s)
	stop := start(t, cfg)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "picket-dns") // see dns_helper_test.go
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	pid := uint64(cmd.Process.Pid)
	time.Sleep(300 * time.Millisecond)
	stop()

	var got, peers []string
	var seen, rows uint64
	for _, b := range batches(t, s) {
		if b.Class() == schemas.DNS {
			rows += uint64(b.Rows())
		}
		for r := range b.Rows() {
			if b.Class() == schemas.Health && b.Str(schemas.HealthClass, r) == "dns" && b.Str(schemas.HealthReason, r) == "kernel_seen" {
				seen = max(seen, b.Uint(schemas.HealthTotal, r))
			}
			if b.Class() == schemas.Audit || b.Class() == schemas.Health || b.Uint(schemas.ProcessPID, r) != pid {
				continue
			}
			switch b.Class() {
			case schemas.Network:
				if b.Str(schemas.Action, r) == "connect" && b.Uint(schemas.NetPeerPort, r) == 4444 {
					peers = append(peers, b.Str(schemas.NetPeerDomain, r))
				}
			case schemas.DNS:
				duration := b.Uint(schemas.DNSDuration, r)
				if answered := b.Str(schemas.Action, r) == "response"; (duration > 0) != answered || duration > 1e10 {
					t.Errorf("a %s after %d ns", b.Str(schemas.Action, r), duration)
				}
				records := strings.Join(slices.Collect(b.List(schemas.DNSRecords, r)), ",")
				got = append(got, fmt.Sprintf("%s %s %s %s %s [%s] %s %d %s:%d %s", b.Str(schemas.NetTransport, r), b.Str(schemas.Action, r), b.Str(schemas.DNSQuestion, r), b.Str(schemas.DNSQuestionType, r),
					b.Str(schemas.DNSResponseCode, r), strings.Join(slices.Collect(b.List(schemas.DNSAnswers, r)), ","), records[:min(len(records), 40)], b.Uint(schemas.DNSBytes, r),
					address(b, schemas.NetPeerAddress, r), b.Uint(schemas.NetPeerPort, r), b.Str(schemas.DNSMalformed, r)))
			}
		}
	}
	want := []string{
		"udp query example.test A  []  30 127.0.0.1:53 ",
		"udp response example.test A NOERROR [127.0.0.2] example.test CNAME edge.test,edge.test A 69 127.0.0.1:53 ",
		"udp query no.such.name A  []  30 127.0.0.1:53 ",
		"udp response no.such.name A NXDOMAIN []  30 127.0.0.1:53 ",
		"tcp query text.test TXT  []  27 127.0.0.1:53 ",
		"tcp response text.test TXT NOERROR [] text.test TXT xxxxxxxxxxxxxxxxxxxxxxxxxx 3063 127.0.0.1:53 ",
		"udp query    []  4 127.0.0.1:53 header: unpacking header: questions: insufficient data for base length type",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(peers) != 1 || peers[0] != "example.test" {
		t.Errorf("connected to %q, want example.test", peers)
	}
	if seen != rows || rows == 0 {
		t.Errorf("%d seen, %d published", seen, rows)
	}
}

func address(b *batch.Batch, id schemas.FieldID, row int) netip.Addr {
	a, _ := b.Bytes16(id, row)
	return netip.AddrFrom16(a).Unmap()
}

// TestLiveSelection: what a sensor reports follows its key in picket_control
// while it runs, and is kept for the next start.
func TestLiveSelection(t *testing.T) {
	needRoot(t)
	s := natstest.Start(t)
	cfg := config(t, s)
	id := strings.Repeat("1dea", 16)
	cfg.Kernel.Ignore.Containers = []string{"id=" + id}
	stop := start(t, cfg)
	dir := t.TempDir()
	watched := filepath.Join(dir, "watched")
	if err := os.WriteFile(watched, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	agent := filepath.Join(dir, "agent")
	sh, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(agent, sh, 0o755); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.7:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	peer := ln.Addr().(*net.TCPAddr)
	bash := fmt.Sprintf(`echo >"$0"; cat %s; mv "$0" "$0".moved; exec 3<>/dev/tcp/127.0.0.7/%d`, watched, peer.Port)
	// act does the same each time, in a process, in an agent and in a container, and returns their ids.
	cgroup := cgrouptest.Make(t, fmt.Sprintf("picket-test-%d/docker-%s.scope", os.Getpid(), id))
	act := func(name string) (pids [3]int) {
		for i, cmd := range []*exec.Cmd{
			exec.Command("bash", "-c", bash, filepath.Join(dir, name)),
			exec.Command(agent, "-c", `echo >"$0"; cat "$0"; true`, filepath.Join(dir, name+"-agent")),
			exec.Command("bash", "-c", bash, filepath.Join(dir, name+"-contained")),
		} {
			var out []byte
			var err error
			if i == 2 {
				out, err = cgrouptest.CombinedOutput(t, cmd, cgroup)
			} else {
				out, err = cmd.CombinedOutput()
			}
			if err != nil {
				t.Fatalf("%v %s", err, out)
			}
			pids[i] = cmd.Process.Pid
		}
		return pids
	}
	b := natstest.Connect(t, s, schemas.ServiceAdmin)
	kv, err := b.JS.KeyValue(t.Context(), schemas.BucketControl)
	if err != nil {
		t.Fatal(err)
	}
	select_ := func(json string, logged string, times int) {
		t.Helper()
		if _, err := kv.PutString(t.Context(), schemas.ControlKey(cfg.Cluster, cfg.Node), json); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			log, _ := os.ReadFile(cfg.Log.File)
			if strings.Count(string(log), logged) == times {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: not in the log: %q", json, logged)
			}
		}
	}
	const applied, refused = `"msg":"selection applied"`, `the selection is refused`
	before := act("before")
	select_(fmt.Sprintf(`{"watched_paths":[%q],"ignore":{"programs":[%q],"peers":["127.0.0.7"]}}`, watched, agent), applied, 1)
	during := act("during")
	select_(`{"ignore":{"peers":["nonsense"]}}`, refused, 1)
	select_(`{"classes":["process","network"],"unwanted_calls":["connect"]}`, applied, 2)
	classes := act("classes")
	stop()
	// Without the bucket what is in force is what the sensor kept.
	if err := b.JS.DeleteKeyValue(t.Context(), schemas.BucketControl); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(cfg.Log.File, 0); err != nil {
		t.Fatal(err)
	}
	stop = start(t, cfg)
	restarted := act("restarted")
	time.Sleep(200 * time.Millisecond)
	stop()

	seen := map[int]map[string]int{}
	for _, pids := range [][3]int{before, during, classes, restarted} {
		for _, pid := range pids {
			seen[pid] = map[string]int{}
		}
	}
	all := batches(t, s)
	for range 2 { // the forks first: what a shell starts is told with it
		for _, b := range all {
			for r := range b.Rows() {
				pid, parent := int(b.Uint(schemas.ProcessPID, r)), int(b.Uint(schemas.ProcessParentPID, r))
				if b.Class() == schemas.Process && seen[parent] != nil && seen[pid] == nil {
					seen[pid] = seen[parent]
				}
			}
		}
	}
	for _, b := range all {
		for r := range b.Rows() {
			if got := seen[int(b.Uint(schemas.ProcessPID, r))]; got != nil && b.Class() != schemas.Health {
				what := b.Str(schemas.Action, r)
				switch {
				case what == "open" && b.Str(schemas.FilePath, r) == watched:
					what = "read"
				case what == "connect" && address(b, schemas.NetPeerAddress, r) != peer.AddrPort().Addr():
					what = "connect elsewhere" // a shell without $HOME asks nscd
				}
				got[what]++
			}
		}
	}
	for what, tt := range map[string]struct {
		pids                                              [3]int
		open, read, rename, connect, agentOpen, agentExec bool
	}{
		"before":    {before, true, false, true, true, true, true},
		"during":    {during, true, true, true, false, false, true},
		"classes":   {classes, false, false, false, false, false, true},
		"restarted": {restarted, false, false, false, false, false, true},
	} {
		got := seen[tt.pids[0]]
		agent := seen[tt.pids[1]]
		if (got["open"] > 0) != tt.open || (got["read"] > 0) != tt.read || (got["rename"] > 0) != tt.rename || (got["connect"] > 0) != tt.connect ||
			got["exec"] == 0 || (agent["open"] > 0) != tt.agentOpen || (agent["exec"] > 0) != tt.agentExec {
			t.Errorf("%s: %v, of the agent %v", what, got, agent)
		}
		if len(seen[tt.pids[2]]) > 0 {
			t.Errorf("%s: of the ignored container %v", what, seen[tt.pids[2]])
		}
	}
}

// TestLiveHostPath: what a process of another mount namespace changes through a
// volume is told with the host's path too.
func TestLiveHostPath(t *testing.T) {
	needRoot(t)
	s := natstest.Start(t)
	cfg := config(t, s)
	stop := start(t, cfg)
	dir := t.TempDir()
	for _, d := range []string{"host", "volume"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "host", "a"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "-m", "sh", "-c", `mount --bind "$0/host" "$0/volume"; cd "$0/volume"; mv a b; ln b "$0/volume/c"; rm c; chmod 640 b; mv ../outside ../elsewhere; sleep 0.3`, dir)
	if err := os.WriteFile(filepath.Join(dir, "outside"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	stop()
	var got []string
	for _, b := range batches(t, s) {
		if b.Class() != schemas.File {
			continue
		}
		for r := range b.Rows() {
			if path := b.Str(schemas.FilePath, r); strings.HasPrefix(path, dir) && b.Str(schemas.Action, r) != "open" {
				rel := func(id schemas.FieldID) string { return strings.TrimPrefix(b.Str(id, r), dir) }
				got = append(got, fmt.Sprint(b.Str(schemas.Action, r), " ", rel(schemas.FilePath), " (", rel(schemas.FilePathHost), ") ", rel(schemas.FilePathTarget), " (", rel(schemas.FilePathTargetHost), ")"))
			}
		}
	}
	want := []string{
		"rename /volume/a (/host/a) /volume/b (/host/b)",
		"link /volume/c (/host/c) /volume/b (/host/b)",
		"unlink /volume/c (/host/c)  ()",
		"chmod /volume/b (/host/b)  ()",
		"rename /outside () /elsewhere ()",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
