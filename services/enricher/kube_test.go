package enricher

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"picket/internal/kubetest"
)

type object = kubetest.Object

// apiServer is an API server of a test.
type apiServer struct {
	*kubetest.Server
	t testing.TB
}

func startAPI(t testing.TB, objects ...object) *apiServer {
	t.Helper()
	return &apiServer{kubetest.Start(t, objects...), t}
}

func (a *apiServer) up() {
	a.t.Helper()
	if err := a.Up(); err != nil {
		a.t.Fatal(err)
	}
}

func (a *apiServer) kubeconfig() string {
	a.t.Helper()
	path, err := a.Kubeconfig(a.t.TempDir())
	if err != nil {
		a.t.Fatal(err)
	}
	return path
}

func (a *apiServer) config() KubernetesConfig {
	cfg := DefaultConfig().Kubernetes
	cfg.Enabled, cfg.Kubeconfig, cfg.Context = true, a.kubeconfig(), "right"
	return cfg
}

// startWatcher connects to the API server as Run does.
func startWatcher(t *testing.T, cfg KubernetesConfig) (*watcher, *index) {
	t.Helper()
	client, at, disconnect, err := connect(cfg, func(string, error) {})
	if err != nil {
		t.Fatal(err)
	}
	x := newIndex(cfg.DeletedKept, cfg.DeletedMax)
	x.configured = at
	w, err := newWatcher(client, newReader(cfg), x, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(disconnect)
	background(t, w.run)
	return w, x
}

// eventually waits for what must become true.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	within(t, 20*time.Second, what, cond)
}

func within(t testing.TB, d time.Duration, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(d); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come true", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func meta(namespace, name, uid string, controller ...metav1.OwnerReference) metav1.ObjectMeta {
	for i := range controller {
		controller[i].Controller = yes()
	}
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid), OwnerReferences: controller, CreationTimestamp: metav1.NewTime(time.Unix(1000, 0))}
}

func simplePod(name, uid string, controller ...metav1.OwnerReference) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: meta("ns", name, uid, controller...), Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "app", Image: "app:1"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{Name: "app", ContainerID: "containerd://c-" + uid, ImageID: "app@" + digest}}}}
}

func cluster() []object {
	rs := metav1.OwnerReference{Kind: "ReplicaSet", Name: "web-1", UID: "rs"}
	job := metav1.OwnerReference{Kind: "Job", Name: "backup-1", UID: "job"}
	return []object{
		&corev1.Namespace{ObjectMeta: meta("", "kube-system", "cluster-uid")},
		&corev1.Node{ObjectMeta: meta("", "n1", "n1"), Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.8"}}}},
		&corev1.Service{ObjectMeta: meta("ns", "web", "svc"), Spec: corev1.ServiceSpec{ClusterIP: "10.0.0.7"}},
		&appsv1.ReplicaSet{ObjectMeta: meta("ns", "web-1", "rs", metav1.OwnerReference{Kind: "Deployment", Name: "web", UID: "d"})},
		&batchv1.Job{ObjectMeta: meta("ns", "backup-1", "job", metav1.OwnerReference{Kind: "CronJob", Name: "backup", UID: "c"})},
		simplePod("web-1-a", "web", rs), simplePod("backup-1-a", "backup", job),
	}
}

func (x *index) workloadOf(uid string) string {
	x.RLock()
	defer x.RUnlock()
	p := x.find(uid, "")
	if p == nil {
		return "unknown"
	}
	kind, name := x.workload(p)
	if p.deleted {
		return kind + "/" + name + " deleted"
	}
	return kind + "/" + name
}

func TestWatcher(t *testing.T) {
	api := startAPI(t, cluster()...)
	w, x := startWatcher(t, api.config())
	if !w.waitSynced(t.Context(), 20*time.Second) || w.ready() != nil {
		t.Fatalf("not synced: %v", w.ready())
	}
	if got := x.workloadOf("web") + " " + x.workloadOf("backup"); got != "Deployment/web CronJob/backup" {
		t.Errorf("workloads %s", got)
	}
	x.RLock()
	k1, n1, _ := x.peer(ip(7), 80, 0, nil)
	k2, n2, _ := x.peer(ip(8), 80, 0, nil)
	x.RUnlock()
	if got := strings.Join([]string{k1, n1, k2, n2}, " "); got != "service ns/web node n1" {
		t.Errorf("peers %s", got)
	}
	if uid := w.cluster.Load(); uid == nil || *uid != "cluster-uid" {
		t.Error("the cluster's UID is not known")
	}
	api.Put(simplePod("new", "new"))
	eventually(t, "a new pod is known", func() bool { return x.workloadOf("new") == "Pod/new" })
	for _, o := range cluster() {
		api.Delete(o)
	}
	eventually(t, "deleted pods are marked", func() bool {
		return x.workloadOf("web") == "Deployment/web deleted" && x.workloadOf("backup") == "CronJob/backup deleted"
	})
}

// TestAPIServerGoesAway: what is known stays in use; what changed meanwhile is
// learned when it is back, also of a pod made again under the same name.
func TestAPIServerGoesAway(t *testing.T) {
	api := startAPI(t, cluster()...)
	w, x := startWatcher(t, api.config())
	if !w.waitSynced(t.Context(), 20*time.Second) {
		t.Fatal(w.ready())
	}
	api.Down()
	api.Delete(simplePod("backup-1-a", "backup"))
	api.Delete(simplePod("web-1-a", "web"))
	api.Put(simplePod("web-1-a", "web-again"))
	api.Forget()
	if got := x.workloadOf("web"); got != "Deployment/web" || !w.synced() {
		t.Errorf("while the API server is away: %s", got)
	}
	api.up()
	// client-go waits longer from attempt to attempt, to 30 s and more.
	within(t, 90*time.Second, "the index catches up", func() bool {
		return x.workloadOf("web") == "Deployment/web deleted" && x.workloadOf("web-again") == "Pod/web-1-a" && x.workloadOf("backup") == "CronJob/backup deleted"
	})
}

func TestNotAllowed(t *testing.T) {
	api := startAPI(t, cluster()...)
	api.Deny("nodes", true)
	w, x := startWatcher(t, api.config())
	if w.waitSynced(t.Context(), time.Second) {
		t.Fatal("synced without nodes")
	}
	if err := w.ready(); err == nil || err.Error() != "metadata not complete yet: nodes" {
		t.Errorf("ready: %v", err)
	}
	if x.workloadOf("web") != "Deployment/web" {
		t.Error("what may be seen is not known")
	}
	api.Deny("nodes", false)
	eventually(t, "it syncs when allowed", w.synced)
}

func TestConnectErrors(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("{not yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for _, tt := range []struct {
		cfg  KubernetesConfig
		want string
	}{
		{KubernetesConfig{}, "kubernetes.kubeconfig is empty, and this is no pod"},
		{KubernetesConfig{Kubeconfig: filepath.Join(dir, "none")}, "no such file"},
		{KubernetesConfig{Kubeconfig: broken}, "kubernetes.kubeconfig " + broken},
		{KubernetesConfig{Kubeconfig: startAPI(t).kubeconfig(), Context: "none"}, `context "none" does not exist`},
	} {
		if _, _, _, err := connect(tt.cfg, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.cfg, err, tt.want)
		}
	}
}

// TestRBAC: the manifest allows what the informers ask for, and nothing else.
func TestRBAC(t *testing.T) {
	api := startAPI(t)
	w, _ := startWatcher(t, api.config())
	if !w.waitSynced(t.Context(), 20*time.Second) {
		t.Fatal(w.ready())
	}
	if asked := strings.Join(api.Asked(), " "); strings.Contains(asked, "list ") {
		t.Errorf("a server that streams lists was asked for: %s", asked)
	}
	api.Older()
	w, _ = startWatcher(t, api.config())
	if !w.waitSynced(t.Context(), 20*time.Second) {
		t.Fatal(w.ready())
	}
	eventually(t, "all is watched", func() bool { return len(api.Asked()) == 2*len(w.informers) })
	data, err := os.ReadFile("../../deploy/kubernetes/enricher/rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var allowed []string
	for _, part := range strings.Split(string(data), "\n---\n") {
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal([]byte(part), &role); err != nil {
			t.Fatal(err)
		}
		if role.Kind != "ClusterRole" {
			continue
		}
		for _, rule := range role.Rules {
			for _, group := range rule.APIGroups {
				if group != "" {
					group += "/"
				}
				for _, resource := range rule.Resources {
					for _, verb := range rule.Verbs {
						allowed = append(allowed, verb+" "+group+resource)
					}
				}
			}
		}
	}
	slices.Sort(allowed)
	if d := cmp.Diff(api.Asked(), allowed); d != "" {
		t.Errorf("asked for (-), allowed (+):\n%s", d)
	}
}
