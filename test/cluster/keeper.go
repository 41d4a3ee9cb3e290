package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A cluster is two processes of the program that starts it, and what the second one starts:
//
//	the program ──lifeline──▶ keeper ──▶ init, process 1 of its own pid, mount, network, UTS and IPC namespaces
//	      └──────────── calls (node.go) ──────┘
//
// When the program ends, however it does, the lifeline breaks: the keeper kills init, with which the kernel kills all
// in its pid namespace and takes the mounts, the network and its addresses back, and removes the folder and the cgroups,
// which are all that is left then. When the keeper is killed, init dies with it; the next cluster removes the rest.
const (
	keeperArgument = "picket-cluster-keeper"
	initArgument   = "picket-cluster-init"
)

// Serve makes this process the keeper or the first process of a cluster when it was started as one, and does not
// return then. A program that starts clusters calls it first of all.
func Serve() {
	if len(os.Args) != 3 {
		return
	}
	var run func(place) error
	switch os.Args[1] {
	case keeperArgument:
		run = keep
	case initArgument:
		run = first
	default:
		return
	}
	n, err := strconv.Atoi(os.Args[2])
	if err == nil {
		var p place
		if p, err = placeOf(n); err == nil {
			err = run(p)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args[1]+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// place is what a cluster has of the machine. Clusters at a time have different ones.
type place struct {
	n      int
	folder string // all its files
}

// maxPlaces bounds the clusters at a time.
const maxPlaces = 64

func placeOf(n int) (place, error) {
	cache, err := cacheFolder()
	return place{n, filepath.Join(cache, "nodes", strconv.Itoa(n))}, err
}

func (p place) path(name string) string { return filepath.Join(p.folder, name) }
func (p place) link() string            { return fmt.Sprintf("picketkube%d", p.n) } // at most 15 bytes
func (p place) hostAddress() string     { return fmt.Sprintf("10.213.%d.1", p.n) }
func (p place) nodeAddress() string     { return fmt.Sprintf("10.213.%d.2", p.n) }
func (p place) cgroup() string          { return fmt.Sprintf("picket-kube-%d", p.n) }

// cgroups returns the place's cgroup in each hierarchy of the machine.
func (p place) cgroups() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		before, after, _ := strings.Cut(lines.Text(), " - ") // proc_pid_mountinfo(5)
		if kind, _, _ := strings.Cut(after, " "); kind == "cgroup" || kind == "cgroup2" {
			if at := strings.Fields(before)[4]; strings.HasPrefix(at, "/sys/fs/cgroup") {
				out = append(out, filepath.Join(at, p.cgroup()))
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no cgroups are mounted below /sys/fs/cgroup")
	}
	return out, nil
}

// claim finds a place that nobody has. The lock keeps it, and goes with the last process that has the file open.
func claim() (place, *os.File, error) {
	for n := range maxPlaces {
		p, err := placeOf(n)
		if err != nil {
			return p, nil, err
		}
		if err := os.MkdirAll(filepath.Dir(p.folder), 0o755); err != nil {
			return p, nil, err
		}
		lock, err := os.OpenFile(p.folder+".lock", os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return p, nil, err
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return p, lock, nil
		}
		lock.Close()
	}
	return place{}, nil, fmt.Errorf("%d clusters run already", maxPlaces)
}

// Files that the keeper inherits.
const (
	keeperCalls = 3 // init's end of the socket
	keeperLock  = 4 // the place's
)

// keep is the keeper's life. Standard input is the lifeline; "ready PID" on standard output says that the first
// process runs.
func keep(p place) (err error) {
	runtime.LockOSThread() // Pdeathsig is about the thread that started the process
	for _, fd := range []int{keeperCalls, keeperLock} {
		syscall.CloseOnExec(fd)
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	if err := p.clean(); err != nil {
		return fmt.Errorf("remove what an earlier cluster left: %w", err)
	}
	defer func() { err = errors.Join(err, p.clean()) }()
	if err := p.makeCgroups(); err != nil {
		return err
	}
	if err := os.MkdirAll(p.folder, 0o755); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.Create(p.path("init.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	node := exec.Command(self, initArgument, strconv.Itoa(p.n))
	node.Stdout, node.Stderr = log, log
	node.ExtraFiles = []*os.File{os.NewFile(keeperCalls, "calls")}
	node.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
	if err := node.Start(); err != nil {
		return fmt.Errorf("start a process in namespaces of its own: %w", err)
	}
	ended := make(chan struct{})
	go func() { // ends with the process, and its whole pid namespace
		_ = node.Wait() // killed, or with the connection
		close(ended)
	}()
	defer func() {
		_ = node.Process.Kill() // it may have ended
		<-ended
	}()
	pid := strconv.Itoa(node.Process.Pid)
	for _, args := range [][]string{
		{"link", "add", p.link(), "type", "veth", "peer", "name", "eth0", "netns", pid},
		{"addr", "add", p.hostAddress() + "/24", "dev", p.link()},
		{"link", "set", p.link(), "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	fmt.Println("ready", pid)
	broken := make(chan struct{})
	go func() { // ends with the program, or with this process
		_, _ = io.Copy(io.Discard, os.Stdin) // ends when the program does
		close(broken)
	}()
	select {
	case <-broken:
	case <-term:
	case <-ended:
	}
	return nil
}

// makeCgroups makes the cgroup that the node's pods are below.
func (p place) makeCgroups() error {
	all, err := p.cgroups()
	if err != nil {
		return err
	}
	for _, dir := range all {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		// A cpuset takes no process before it has processors and memory: those of its parent (cgroup v1).
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
			if err != nil || len(strings.TrimSpace(string(b))) == 0 {
				continue // another hierarchy
			}
			if err := os.WriteFile(filepath.Join(dir, file), b, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// clean removes what a cluster leaves when all its processes have ended. Mounts are not among it: they went with the
// mount namespace, so that removing the folder reaches nothing outside of it.
func (p place) clean() error {
	all, err := p.cgroups()
	if err != nil {
		return err
	}
	for _, dir := range all {
		if e := removeCgroup(dir); e != nil {
			err = errors.Join(err, e)
		}
	}
	return errors.Join(err, os.RemoveAll(p.folder))
}

// removeCgroup removes a cgroup and those below it. One whose processes were killed a moment ago can be busy yet.
func removeCgroup(dir string) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var dirs []string
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			if err == nil {
				err = os.Remove(d)
			}
		}
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
}

// first is the life of a node's first process.
func first(p place) error {
	if err := p.mount(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(NodeName)); err != nil {
		return err
	}
	return serveCalls(os.NewFile(keeperCalls, "calls"))
}

// sysctls are those that the kubelet sets and that namespaces do not separate: on its node they are files.
var sysctls = []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"}

// nodeFiles are those of the machine's /etc that the node has too: nothing that is secret.
var nodeFiles = []string{"passwd", "group", "nsswitch.conf", "host.conf", "gai.conf", "services", "protocols", "ethertypes", "localtime", "timezone",
	"os-release", "debian_version", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "iproute2", "profile", "bash.bashrc"}

// copyEtc fills the node's /etc, with folders and files beside that somebody who breaks out of a pod looks for.
func (p place) copyEtc() error {
	args := []string{"-a"}
	for _, name := range nodeFiles {
		if _, err := os.Lstat("/etc/" + name); err == nil {
			args = append(args, "/etc/"+name)
		}
	}
	if out, err := exec.Command("cp", append(args, p.path("etc"))...).CombinedOutput(); err != nil {
		return fmt.Errorf("copy files of /etc: %w: %s", err, out)
	}
	for _, dir := range []string{"kubernetes", "cron.d", "ssh", "pam.d"} {
		if err := os.Mkdir(p.path("etc/"+dir), 0o755); err != nil {
			return err
		}
	}
	return errors.Join(os.WriteFile(p.path("etc/hostname"), []byte(NodeName+"\n"), 0o644), os.WriteFile(p.path("etc/shadow"), []byte("root:*:19000:0:99999:7:::\n"), 0o640),
		os.WriteFile(p.path("etc/hosts"), fmt.Appendf(nil, "127.0.0.1 localhost\n%s %s\n", p.nodeAddress(), NodeName), 0o644))
}

// mount gives the node a file system of its own where it writes: /etc has a few of the machine's files, in memory, /run is in
// memory as on any node, /var/lib and /var/log are in the place's folder. The rest is the machine's. (A layer above /etc
// would do, but for a sensor it makes files there those of a container.)
func (p place) mount() error {
	do := func(source, target, kind string, flags uintptr, data string) error {
		if err := unix.Mount(source, target, kind, flags, data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", source, target, err)
		}
		return nil
	}
	for _, dir := range []string{"etc", "log", "sysctl", "lib", "pki"} {
		if err := os.MkdirAll(p.path(dir), 0o755); err != nil {
			return err
		}
	}
	// Nothing goes to the machine; below, as the kubelet wants it, mounts are shared with the containers.
	if err := errors.Join(do("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), do("tmpfs", p.path("etc"), "tmpfs", 0, "mode=755,size=64m")); err != nil {
		return err
	}
	if err := p.copyEtc(); err != nil {
		return err
	}
	if err := errors.Join(do(p.path("etc"), "/etc", "", unix.MS_MOVE, ""),
		do("tmpfs", "/run", "tmpfs", 0, "mode=755"), do("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")); err != nil {
		return err
	}
	for target, dir := range map[string]string{"/var/lib": "lib", "/var/log": "log", "/etc/kubernetes": "pki"} {
		if err := do(p.path(dir), target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for _, s := range sysctls {
		b, err := os.ReadFile("/proc/sys/" + s)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		file := p.path("sysctl/" + strings.ReplaceAll(s, "/", "."))
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return err
		}
		if err := do(file, "/proc/sys/"+s, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return do("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// awaitReady reads the keeper's word that the first process runs.
func awaitReady(ctx context.Context, out io.Reader) (pid int, err error) {
	type word struct {
		pid int
		err error
	}
	said := make(chan word, 1)
	go func() { // ends with the keeper, which the caller ends
		var w word
		if _, w.err = fmt.Fscanf(out, "ready %d\n", &w.pid); errors.Is(w.err, io.EOF) {
			w.err = errors.New("it ended")
		}
		said <- w
	}()
	select {
	case w := <-said:
		return w.pid, w.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
