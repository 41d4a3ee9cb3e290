// Package cluster starts real Kubernetes clusters of one node on this machine, without a registry and without a
// network: etcd, kube-apiserver and, as far as it is asked for, controllers, scheduler, containerd and kubelet. The
// Kubernetes programs are built by the module test/kube, once; the others are Debian packages (scripts/install.sh
// kube). It takes root.
//
// Each cluster has pid, mount, network, UTS and IPC namespaces of its own, so that several run at a time and none
// changes the machine: its mounts and its sysctls are its own, and /etc, /run, /var/lib and /var/log of the node are not
// the machine's. Its cgroups are the machine's, below /picket-kube-N, so that a sensor on the machine sees containers
// at the paths that they have on a node. A program that starts clusters calls Serve first; when it ends, by whatever
// cause, its clusters end and leave nothing.
package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// What every cluster has.
const (
	NodeName = "node-1"

	pluginFolder = "/usr/lib/cni"
	podNetwork   = "10.244.0.0/24"
	servicesIP   = "10.96.0.1" // of the API server
	services     = "10.96.0.0/16"
)

// The users that a cluster knows: their kubeconfigs are those of Kubeconfig.
const (
	Admin = "admin" // kubernetes-admin in system:masters
	Alice = "alice" // alice@example.test in developers: no rights of her own
	Bob   = "bob"   // bob@example.test in developers
)

// Names of the programs of a cluster, for Stop and Restart.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	Containerd        = "containerd"
	Kubelet           = "kubelet"
)

// Cluster is a cluster on this machine. Its methods may be called from several goroutines, once what starts its programs
// has returned.
type Cluster struct {
	// NodeIP is the node's address, which the machine reaches. HostIP is the machine's, as the node reaches it.
	NodeIP, HostIP string
	// PID is the node's first process, in the machine's pid namespace.
	PID int

	place    place
	programs string // folder
	keeper   *exec.Cmd
	ended    chan struct{}
	said     *bytes.Buffer // of the keeper; to be read when it has ended
	lifeline *os.File
	calls    *rpc.Client
	commands map[string]Command // by program; set by the method that starts it
	runs     atomic.Int64
}

// New makes the namespaces and the addresses of a cluster in which nothing runs yet. Without what a cluster is made of
// it is an ErrMissing.
func New(ctx context.Context) (_ *Cluster, err error) {
	if err := Check(); err != nil {
		return nil, err
	}
	programs, _, err := binaries()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, lock, err := claim()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "calls"), os.NewFile(uintptr(ends[1]), "calls")
	defer ours.Close()
	defer theirs.Close()
	held, lifeline, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer held.Close()
	heard, out, err := os.Pipe()
	if err != nil {
		lifeline.Close()
		return nil, err
	}
	defer heard.Close()
	c := &Cluster{NodeIP: p.nodeAddress(), HostIP: p.hostAddress(), place: p, programs: programs,
		ended: make(chan struct{}), said: &bytes.Buffer{}, lifeline: lifeline, commands: map[string]Command{}}
	c.keeper = exec.Command(self, keeperArgument, fmt.Sprint(p.n))
	c.keeper.Stdin, c.keeper.Stdout, c.keeper.Stderr = held, out, c.said
	c.keeper.ExtraFiles = []*os.File{theirs, lock}
	c.keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = c.keeper.Start()
	out.Close()
	if err != nil {
		lifeline.Close()
		return nil, err
	}
	go func() { // ends with the keeper
		_ = c.keeper.Wait() // what it says of a failure is in said
		close(c.ended)
	}()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start a cluster: %w", err), c.Stop())
		}
	}()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	c.calls = rpc.NewClient(conn)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if c.PID, err = awaitReady(ctx, heard); err != nil {
		return nil, err
	}
	for _, args := range []string{"link set lo up", "addr add " + c.NodeIP + "/24 dev eth0", "link set eth0 up", "route add default via " + c.HostIP} {
		if _, err := c.Run(ctx, append([]string{"ip"}, strings.Fields(args)...)...); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Stop ends everything of the cluster and removes all that it left. A second call does nothing.
func (c *Cluster) Stop() error {
	c.lifeline.Close()
	if c.calls != nil {
		c.calls.Close()
	}
	select {
	case <-c.ended:
	case <-time.After(time.Minute):
		_ = c.keeper.Process.Kill() // the next cluster removes the rest
		<-c.ended
		return fmt.Errorf("cluster %d did not end within a minute and was killed: %s", c.place.n, c.said)
	}
	if c.keeper.ProcessState.ExitCode() != 0 {
		return fmt.Errorf("cluster %d: %s: %s", c.place.n, c.keeper.ProcessState, c.said)
	}
	return nil
}

// call calls the node's first process.
func (c *Cluster) call(ctx context.Context, method string, args, reply any) error {
	done := c.calls.Go("Node."+method, args, reply, make(chan *rpc.Call, 1))
	select {
	case <-done.Done:
		return done.Error
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run runs a program on the node to its end and returns what it printed. The error has that too.
func (c *Cluster) Run(ctx context.Context, args ...string) (string, error) {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("run-%d", c.runs.Add(1))
	cmd := Command{Name: name, Args: append([]string{path}, args[1:]...), Log: c.place.path(name)}
	defer os.Remove(cmd.Log)
	var p Process
	if err := c.call(ctx, "Start", cmd, &p); err != nil {
		return "", err
	}
	if err := c.call(ctx, "Wait", name, &p); err != nil {
		_ = c.call(context.Background(), "Kill", Signal{name, syscall.SIGKILL}, &struct{}{}) // the connection may be gone
		return "", fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	out, err := os.ReadFile(cmd.Log)
	if err != nil {
		return "", err
	}
	if p.Status != 0 {
		return string(out), fmt.Errorf("%s on the node: status %d: %s", strings.Join(args, " "), p.Status, out)
	}
	return string(out), nil
}

// launch starts a program of the cluster.
func (c *Cluster) launch(ctx context.Context, name string, args ...string) error {
	cmd := Command{Name: name, Args: args, Log: c.place.path(name + ".log")}
	c.commands[name] = cmd
	var p Process
	return c.call(ctx, "Start", cmd, &p)
}

// Kill sends a signal to a program of the cluster and, if that is to end it, waits for its end.
func (c *Cluster) Kill(ctx context.Context, name string, s syscall.Signal) error {
	if err := c.call(ctx, "Kill", Signal{name, s}, &struct{}{}); err != nil {
		return err
	}
	if s != syscall.SIGKILL && s != syscall.SIGTERM {
		return nil
	}
	var p Process
	return c.call(ctx, "Wait", name, &p)
}

// Restart starts a program again that was ended by Kill.
func (c *Cluster) Restart(ctx context.Context, name string) error {
	cmd, ok := c.commands[name]
	if !ok {
		return fmt.Errorf("%s was not started", name)
	}
	var p Process
	return c.call(ctx, "Start", cmd, &p)
}

// Kubeconfig is the file that makes a client one of the users.
func (c *Cluster) Kubeconfig(user string) string {
	return c.place.path("pki/" + user + ".kubeconfig")
}

// Client is the configuration of a client that is one of the users.
func (c *Cluster) Client(user string) (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig(user))
	if err != nil {
		return nil, err
	}
	// Of files client-go waits for newer ones, with goroutines that nobody can end.
	if err := rest.LoadTLSFiles(cfg); err != nil {
		return nil, err
	}
	cfg.CAFile, cfg.CertFile, cfg.KeyFile = "", "", ""
	return cfg, nil
}

// Kubectl runs kubectl on the machine as one of the users, with stdin as its input, and returns what it printed.
func (c *Cluster) Kubectl(ctx context.Context, user, stdin string, args ...string) (string, error) {
	cmd := c.KubectlCommand(ctx, user, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s as %s: %w: %s", strings.Join(args, " "), user, err, out)
	}
	return string(out), err
}

// KubectlCommand is a kubectl that was not started yet.
func (c *Cluster) KubectlCommand(ctx context.Context, user string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.programs, "kubectl"), append([]string{"--kubeconfig", c.Kubeconfig(user), "--cache-dir", c.place.path("kubectl")}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// AuditLog is the file that the API server writes its audit events to.
func (c *Cluster) AuditLog() string { return c.place.path("log/kubernetes/audit.log") }

// Log returns the end of what a program of the cluster has written.
func (c *Cluster) Log(name string) string {
	b, err := os.ReadFile(c.place.path(name + ".log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-8000):])
}

// await calls try until it returns nil.
func (c *Cluster) await(ctx context.Context, most time.Duration, what, program string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-c.ended:
			return fmt.Errorf("%s: the cluster ended: %s", what, c.said)
		case <-ctx.Done():
			return fmt.Errorf("%s, within %v: %w; the end of its log:\n%s", what, most, err, c.Log(program))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// StartAPI starts etcd and kube-apiserver, which is all of the smallest cluster, and returns when they are ready. Audit
// events, by the policy of docs/audit.md, go to AuditLog and, if webhook is not empty, to that URL.
func (c *Cluster) StartAPI(ctx context.Context, webhook string) error {
	if err := c.writeCertificates(); err != nil {
		return err
	}
	policy, err := auditPolicy()
	if err != nil {
		return err
	}
	const conf = "/etc/kubernetes/"
	if err := errors.Join(os.MkdirAll(c.place.path("log/kubernetes"), 0o755), os.WriteFile(c.place.path("pki/audit-policy.yaml"), policy, 0o644)); err != nil {
		return err
	}
	etcd, err := exec.LookPath("etcd")
	if err != nil {
		return err
	}
	// Its files end with the cluster, so nothing is synced.
	if err := c.launch(ctx, Etcd, etcd, "--name=e1", "--data-dir=/var/lib/etcd", "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380", "--initial-cluster=e1=http://127.0.0.1:2380"); err != nil {
		return err
	}
	args := []string{filepath.Join(c.programs, APIServer), "--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0", "--advertise-address=" + c.NodeIP, "--secure-port=6443",
		"--client-ca-file=" + conf + "ca.crt", "--tls-cert-file=" + conf + "apiserver.crt", "--tls-private-key-file=" + conf + "apiserver.key",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-key-file=" + conf + "sa.pub", "--service-account-signing-key-file=" + conf + "sa.key",
		"--service-cluster-ip-range=" + services, "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
		"--kubelet-certificate-authority=" + conf + "ca.crt", "--kubelet-client-certificate=" + conf + "kubelet-client.crt", "--kubelet-client-key=" + conf + "kubelet-client.key",
		"--kubelet-preferred-address-types=InternalIP",
		"--audit-policy-file=" + conf + "audit-policy.yaml", "--audit-log-path=/var/log/kubernetes/audit.log", "--audit-log-maxsize=200"}
	if webhook != "" {
		hook := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: picket, cluster: {server: %q}}]\nusers: [{name: user, user: {}}]\ncontexts: [{name: picket, context: {cluster: picket, user: user}}]\ncurrent-context: picket\n", webhook)
		if err := os.WriteFile(c.place.path("pki/audit-webhook.kubeconfig"), []byte(hook), 0o600); err != nil {
			return err
		}
		args = append(args, "--audit-webhook-config-file="+conf+"audit-webhook.kubeconfig", "--audit-webhook-batch-max-wait=1s")
	}
	// It waits for etcd by itself.
	if err := c.launch(ctx, APIServer, args...); err != nil {
		return err
	}
	return c.AwaitAPI(ctx)
}

// AwaitAPI waits until the API server is ready.
func (c *Cluster) AwaitAPI(ctx context.Context) error {
	cfg, err := c.Client(Admin)
	if err != nil {
		return err
	}
	transport, err := rest.TransportFor(cfg)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	return c.await(ctx, 2*time.Minute, "the API server is not ready", APIServer, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, cfg.Host+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

func (c *Cluster) writeCertificates() error {
	a, err := newAuthority(c.place.path("pki"))
	if err != nil {
		return err
	}
	if err := errors.Join(
		a.server("apiserver", "kube-apiserver", nil, []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"}, "127.0.0.1", servicesIP, c.NodeIP),
		a.server("kubelet", "system:node:"+NodeName, []string{"system:nodes"}, []string{NodeName}, "127.0.0.1", c.NodeIP),
		a.issue("sa", signer()),
	); err != nil {
		return err
	}
	server := "https://" + net.JoinHostPort(c.NodeIP, "6443")
	for _, u := range []struct {
		name, user string
		groups     []string
	}{
		{Admin, "kubernetes-admin", []string{"system:masters"}},
		{Alice, "alice@example.test", []string{"developers"}},
		{Bob, "bob@example.test", []string{"developers"}},
		{"node", "system:node:" + NodeName, []string{"system:nodes"}},
		{"controller-manager", "system:kube-controller-manager", nil},
		{"scheduler", "system:kube-scheduler", nil},
		{"kubelet-client", "kube-apiserver-kubelet-client", []string{"system:masters"}},
	} {
		if err := a.user(u.name, u.user, u.groups, server); err != nil {
			return err
		}
	}
	return nil
}

var policyBlock = regexp.MustCompile("(?s)```yaml\n(apiVersion: audit\\.k8s\\.io/v1\nkind: Policy\n.*?)```")

// auditPolicy is the one that Picket's documents recommend.
func auditPolicy() ([]byte, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/audit.md"))
	if err != nil {
		return nil, err
	}
	m := policyBlock.FindSubmatch(text)
	if m == nil {
		return nil, errors.New("docs/audit.md has no audit policy")
	}
	return m[1], nil
}

// pretty is a file's JSON.
func pretty(v any) []byte {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		panic(err) // of types that have JSON
	}
	return b
}
