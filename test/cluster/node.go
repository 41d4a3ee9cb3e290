package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// containerdSocket and containerdConfig are on the node.
const (
	containerdSocket = "/run/containerd/containerd.sock"
	containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "` + containerdSocket + `"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseImage + `"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  disable_apparmor = true
  # Where CAP_SYS_RESOURCE is missing a score cannot be lowered.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "` + pluginFolder + `"
    conf_dir = "/etc/kubernetes/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`
	podNetworkConfig = `{"cniVersion":"1.0.0","name":"pods","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"hairpinMode":true,
  "ipam":{"type":"host-local","dataDir":"/var/lib/cni/networks","ranges":[[{"subnet":"` + podNetwork + `"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}
`
)

// kubeletConfig is the kubelet's. Its pods' cgroups are below the place's, and containers get a name server that
// nobody answers at.
func (c *Cluster) kubeletConfig() string {
	return `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 0.0.0.0
readOnlyPort: 0
cgroupDriver: cgroupfs
cgroupRoot: /` + c.place.cgroup() + `
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix://` + containerdSocket + `
tlsCertFile: /etc/kubernetes/kubelet.crt
tlsPrivateKeyFile: /etc/kubernetes/kubelet.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /etc/kubernetes/ca.crt}}
authorization: {mode: Webhook}
staticPodPath: /etc/kubernetes/manifests
resolvConf: /etc/kubernetes/resolv.conf
volumePluginDir: /var/lib/kubelet/volumeplugins
maxPods: 200
evictionHard: {memory.available: 100Mi, nodefs.available: "1%", imagefs.available: "1%", nodefs.inodesFree: "1%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
nodeStatusUpdateFrequency: 5s
`
}

// StartNode starts the controllers, the scheduler, containerd and the kubelet beside an API server that runs, and
// returns when the node is Ready and pods can be made.
func (c *Cluster) StartNode(ctx context.Context) error {
	for _, dir := range []string{"pki/net.d", "pki/manifests", "images", "lib/containerd"} {
		if err := os.MkdirAll(c.place.path(dir), 0o755); err != nil {
			return err
		}
	}
	files, err := busyboxFiles()
	if err != nil {
		return err
	}
	pause, err := os.ReadFile(filepath.Join(c.programs, "pause"))
	if err != nil {
		return err
	}
	if err := errors.Join(
		archive(c.place.path("images/busybox.tar"), Busybox, []string{"sh"}, files),
		archive(c.place.path("images/other.tar"), BusyboxOther, []string{"sh"}, append(files, file{name: "other", mode: 0o644})),
		archive(c.place.path("images/pause.tar"), pauseImage, []string{"/pause"}, []file{{name: "pause", content: pause, mode: 0o755}}),
		os.WriteFile(c.place.path("pki/containerd.toml"), []byte(containerdConfig), 0o644),
		os.WriteFile(c.place.path("pki/net.d/10-pods.conflist"), []byte(podNetworkConfig), 0o644),
		os.WriteFile(c.place.path("pki/kubelet.yaml"), []byte(c.kubeletConfig()), 0o644),
		os.WriteFile(c.place.path("pki/resolv.conf"), []byte("nameserver "+c.HostIP+"\noptions timeout:1 attempts:1\n"), 0o644),
	); err != nil {
		return err
	}
	// A cluster has kube-proxy; this one has one service that matters.
	for _, chain := range []string{"PREROUTING", "OUTPUT"} {
		if _, err := c.Run(ctx, "iptables", "-t", "nat", "-A", chain, "-d", servicesIP, "-p", "tcp", "--dport", "443", "-j", "DNAT", "--to-destination", c.NodeIP+":6443"); err != nil {
			return err
		}
	}
	containerd, err := exec.LookPath("containerd")
	if err != nil {
		return err
	}
	if err := c.launch(ctx, Containerd, containerd, "--config", "/etc/kubernetes/containerd.toml"); err != nil {
		return err
	}
	const conf = "/etc/kubernetes/"
	if err := errors.Join(
		c.launch(ctx, ControllerManager, filepath.Join(c.programs, ControllerManager), "--kubeconfig="+conf+"controller-manager.kubeconfig",
			"--authentication-kubeconfig="+conf+"controller-manager.kubeconfig", "--authorization-kubeconfig="+conf+"controller-manager.kubeconfig",
			"--bind-address=127.0.0.1", "--cert-dir=/var/lib/controller-manager", "--service-account-private-key-file="+conf+"sa.key", "--root-ca-file="+conf+"ca.crt",
			"--use-service-account-credentials=true", "--leader-elect=false", "--cluster-signing-cert-file="+conf+"ca.crt", "--cluster-signing-key-file="+conf+"ca.key"),
		c.launch(ctx, Scheduler, filepath.Join(c.programs, Scheduler), "--kubeconfig="+conf+"scheduler.kubeconfig",
			"--authentication-kubeconfig="+conf+"scheduler.kubeconfig", "--authorization-kubeconfig="+conf+"scheduler.kubeconfig",
			"--bind-address=127.0.0.1", "--cert-dir=/var/lib/scheduler", "--leader-elect=false"),
	); err != nil {
		return err
	}
	if err := c.await(ctx, time.Minute, "containerd does not answer", Containerd, func(ctx context.Context) error {
		_, err := c.Run(ctx, "ctr", "version")
		return err
	}); err != nil {
		return err
	}
	for _, image := range []string{"busybox", "other", "pause"} {
		if _, err := c.Run(ctx, "ctr", "-n", "k8s.io", "images", "import", c.place.path("images/"+image+".tar")); err != nil {
			return err
		}
	}
	if err := c.launch(ctx, Kubelet, filepath.Join(c.programs, Kubelet), "--config="+conf+"kubelet.yaml", "--kubeconfig="+conf+"node.kubeconfig",
		"--cert-dir=/var/lib/kubelet/pki", "--hostname-override="+NodeName, "--node-ip="+c.NodeIP, "--v=2"); err != nil {
		return err
	}
	return c.AwaitNode(ctx)
}

// AwaitNode waits until the node is Ready and pods of the default namespace can be made.
func (c *Cluster) AwaitNode(ctx context.Context) error {
	cfg, err := c.Client(Admin)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return err
	}
	return c.await(ctx, 2*time.Minute, "the node is not Ready", Kubelet, func(ctx context.Context) error {
		n, err := client.CoreV1().Nodes().Get(ctx, NodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status != corev1.ConditionTrue {
				return fmt.Errorf("not Ready: %s", cond.Message)
			}
		}
		if len(n.Status.Conditions) == 0 || hasTaint(n) {
			return errors.New("not Ready: it has not reported, or its taint is there yet")
		}
		_, err = client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// hasTaint: of a node that was not ready, which the controllers take away a moment later.
func hasTaint(n *corev1.Node) bool {
	for _, t := range n.Spec.Taints {
		if strings.HasPrefix(t.Key, "node.kubernetes.io/") {
			return true
		}
	}
	return false
}
