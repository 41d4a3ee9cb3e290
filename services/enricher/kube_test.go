package enricher

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// apiServer answers lists and watches over HTTPS as a kube-apiserver does, as
// far as informers ask: resource versions, bookmarks left out, a token, and
// going away and coming back at the same address.
type apiServer struct {
	t    testing.TB
	addr string
	tls  *tls.Config
	ca   []byte // PEM
	srv  *http.Server

	mu      sync.Mutex
	version int
	objects map[string]map[string]object // by path, by namespace/name
	history map[string][]change          // by path
	changed broadcast
	denied  map[string]bool // paths that are forbidden
}

type object interface {
	runtime.Object
	metav1.Object
}

type change struct {
	version int
	kind    string // ADDED, MODIFIED, DELETED
	object  json.RawMessage
}

const apiToken = "a-token"

func startAPI(t testing.TB, objects ...object) *apiServer {
	a := &apiServer{t: t, addr: "127.0.0.1:0", version: 100, objects: map[string]map[string]object{}, history: map[string][]change{}, denied: map[string]bool{}}
	for _, o := range objects {
		a.put(o)
	}
	lend := httptest.NewTLSServer(nil) // for its certificate
	a.tls = &tls.Config{Certificates: lend.TLS.Certificates}
	a.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: lend.Certificate().Raw})
	lend.Close()
	a.up()
	t.Cleanup(a.down)
	return a
}

func (a *apiServer) up() {
	var ln net.Listener
	var err error
	for range 50 { // the port may still be closing
		if ln, err = net.Listen("tcp", a.addr); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	a.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	a.srv = &http.Server{Handler: a, TLSConfig: a.tls.Clone(), BaseContext: func(net.Listener) context.Context { return ctx }, ErrorLog: log.New(io.Discard, "", 0)}
	a.srv.RegisterOnShutdown(cancel)
	srv := a.srv
	go func() { _ = srv.ServeTLS(ln, "", "") }() // ends with down
}

func (a *apiServer) down() {
	if a.srv != nil {
		_ = a.srv.Close()
		a.srv = nil
	}
}

// kubeconfig writes a file whose context "right" leads here; its current
// context does not.
func (a *apiServer) kubeconfig() string {
	path := filepath.Join(a.t.TempDir(), "kubeconfig")
	err := os.WriteFile(path, []byte(fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: wrong
clusters:
- {name: right, cluster: {server: "https://%s", certificate-authority-data: %s}}
- {name: wrong, cluster: {server: "https://127.0.0.1:1"}}
users:
- {name: u, user: {token: %s}}
contexts:
- {name: right, context: {cluster: right, user: u}}
- {name: wrong, context: {cluster: wrong, user: u}}
`, a.addr, base64.StdEncoding.EncodeToString(a.ca), apiToken)), 0o600)
	if err != nil {
		a.t.Fatal(err)
	}
	return path
}

func path(o object) string {
	switch o.(type) {
	case *corev1.Pod:
		return "/api/v1/pods"
	case *corev1.Node:
		return "/api/v1/nodes"
	case *corev1.Service:
		return "/api/v1/services"
	case *corev1.Namespace:
		return "/api/v1/namespaces"
	case *appsv1.ReplicaSet:
		return "/apis/apps/v1/replicasets"
	case *batchv1.Job:
		return "/apis/batch/v1/jobs"
	}
	panic(fmt.Sprintf("%T", o))
}

var listKinds = map[string]metav1.TypeMeta{
	"/api/v1/pods": {Kind: "PodList", APIVersion: "v1"}, "/api/v1/nodes": {Kind: "NodeList", APIVersion: "v1"},
	"/api/v1/services": {Kind: "ServiceList", APIVersion: "v1"}, "/api/v1/namespaces": {Kind: "NamespaceList", APIVersion: "v1"},
	"/apis/apps/v1/replicasets": {Kind: "ReplicaSetList", APIVersion: "apps/v1"}, "/apis/batch/v1/jobs": {Kind: "JobList", APIVersion: "batch/v1"},
}

func (a *apiServer) put(o object) { a.change(o, false) }
func (a *apiServer) del(o object) { a.change(o, true) }

func (a *apiServer) change(o object, gone bool) {
	a.mu.Lock()
	a.version++
	p, key := path(o), o.GetNamespace()+"/"+o.GetName()
	o.SetResourceVersion(strconv.Itoa(a.version))
	kind := "ADDED"
	if a.objects[p] == nil {
		a.objects[p] = map[string]object{}
	}
	if gone {
		kind = "DELETED"
		delete(a.objects[p], key)
	} else {
		if a.objects[p][key] != nil {
			kind = "MODIFIED"
		}
		a.objects[p][key] = o.DeepCopyObject().(object)
	}
	list := listKinds[p]
	o.GetObjectKind().SetGroupVersionKind(schema.FromAPIVersionAndKind(list.APIVersion, strings.TrimSuffix(list.Kind, "List")))
	data, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	a.history[p] = append(a.history[p], change{a.version, kind, data})
	a.mu.Unlock()
	a.changed.signal()
}

func (a *apiServer) deny(path string, denied bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.denied[path] = denied
}

// forget drops what watches could go on from, as compaction does.
func (a *apiServer) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.history = map[string][]change{}
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fail := func(code int, reason metav1.StatusReason) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason, Message: string(reason)})
	}
	kind, ok := listKinds[r.URL.Path]
	a.mu.Lock()
	denied := a.denied[r.URL.Path]
	a.mu.Unlock()
	switch {
	case r.Header.Get("Authorization") != "Bearer "+apiToken:
		fail(http.StatusUnauthorized, metav1.StatusReasonUnauthorized)
		return
	case !ok:
		fail(http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	case denied:
		fail(http.StatusForbidden, metav1.StatusReasonForbidden)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Query().Get("watch") == "" {
		a.mu.Lock()
		defer a.mu.Unlock()
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": kind.Kind, "apiVersion": kind.APIVersion,
			"metadata": map[string]any{"resourceVersion": strconv.Itoa(a.version)}, "items": slices.Collect(maps.Values(a.objects[r.URL.Path]))})
		return
	}
	from, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil {
		fail(http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	out := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	for {
		changed := a.changed.wait()
		a.mu.Lock()
		var send []change
		for _, c := range a.history[r.URL.Path] {
			if c.version > from {
				send = append(send, c)
			}
		}
		a.mu.Unlock()
		for _, c := range send {
			if json.NewEncoder(w).Encode(map[string]any{"type": c.kind, "object": c.object}) != nil {
				return
			}
			from = c.version
		}
		if out.Flush() != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

func (a *apiServer) config() KubernetesConfig {
	cfg := DefaultConfig().Kubernetes
	cfg.Enabled, cfg.Kubeconfig, cfg.Context = true, a.kubeconfig(), "right"
	return cfg
}

// startWatcher connects to the API server as Run does.
func startWatcher(t *testing.T, cfg KubernetesConfig) (*watcher, *index) {
	t.Helper()
	client, disconnect, err := connect(cfg, func(string, error) {})
	if err != nil {
		t.Fatal(err)
	}
	x := newIndex(cfg.DeletedKept, cfg.DeletedMax)
	w, err := newWatcher(client, x, testLog(t))
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
	k1, n1 := x.peer(ip(7), 0)
	k2, n2 := x.peer(ip(8), 0)
	x.RUnlock()
	if got := strings.Join([]string{k1, n1, k2, n2}, " "); got != "service ns/web node n1" {
		t.Errorf("peers %s", got)
	}
	if uid := w.cluster.Load(); uid == nil || *uid != "cluster-uid" {
		t.Error("the cluster's UID is not known")
	}
	api.put(simplePod("new", "new"))
	eventually(t, "a new pod is known", func() bool { return x.workloadOf("new") == "Pod/new" })
	for _, o := range cluster() {
		api.del(o)
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
	api.down()
	api.del(simplePod("backup-1-a", "backup"))
	api.del(simplePod("web-1-a", "web"))
	api.put(simplePod("web-1-a", "web-again"))
	api.forget()
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
	api.deny("/api/v1/nodes", true)
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
	api.deny("/api/v1/nodes", false)
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
		if _, _, err := connect(tt.cfg, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.cfg, err, tt.want)
		}
	}
}
