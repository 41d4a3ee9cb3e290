package enricher

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"picket/internal/batch"
)

const digest = "sha256:9f1003c480699be56815db0f8146ad2e22efea85129b5b5983d0e0fb52d9ab70"

func yes() *bool { b := true; return &b }

// webPod is a running pod with every kind of container.
func webPod() *corev1.Pod {
	created := metav1.NewTime(time.Unix(1000, 0))
	started := metav1.NewTime(time.Unix(1002, 0))
	status := func(name, id, imageID string) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: name, ContainerID: id, ImageID: imageID, Image: "ignored:tag"}
	}
	app := status("app", "containerd://app2", "registry.example.com/app@"+digest)
	app.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ContainerID: "containerd://app1"}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "web-1-a", Namespace: "shop", UID: "u1", ResourceVersion: "7", CreationTimestamp: created,
			Labels:          map[string]string{"b": "2", "a": "1"},
			Annotations:     map[string]string{"other": "dropped"},
			ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "dropped"}},
			OwnerReferences: []metav1.OwnerReference{{Kind: "Other", Name: "x", UID: "x"}, {Kind: "ReplicaSet", Name: "web-1", UID: "rs", Controller: yes()}},
		},
		Spec: corev1.PodSpec{
			NodeName: "node1.example.com", ServiceAccountName: "web",
			InitContainers:      []corev1.Container{{Name: "init", Image: "busybox:1.36"}},
			Containers:          []corev1.Container{{Name: "app", Image: "registry.example.com/app:v1", SecurityContext: &corev1.SecurityContext{Privileged: yes()}}, {Name: "starting", Image: "b"}},
			EphemeralContainers: []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "netshoot@" + digest}}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}}, StartTime: &started,
			InitContainerStatuses:      []corev1.ContainerStatus{status("init", "containerd://init1", "sha256:cafe")},
			ContainerStatuses:          []corev1.ContainerStatus{app, {Name: "starting"}},
			EphemeralContainerStatuses: []corev1.ContainerStatus{status("debug", "cri-o://debug1", "")},
		},
	}
}

func TestToPod(t *testing.T) {
	want := &pod{
		head: head{uid: "u1", namespace: "shop", name: "web-1-a", version: 7}, serviceAccount: "web", node: "node1_example_com",
		created: 1000e9, since: 1002e9, controller: ref{"ReplicaSet", "web-1", "rs"}, labels: []string{"a", "1", "b", "2"},
		spec:      []container{{"init", "docker.io/library/busybox", "1.36", "", false}, {"app", "registry.example.com/app", "v1", "", true}, {"starting", "docker.io/library/b", "latest", "", false}, {"debug", "docker.io/library/netshoot", "", digest, false}},
		addresses: []address{ip(1), {0: 0xfd, 15: 1}},
		instances: []instance{
			{"app2", container{"app", "registry.example.com/app", "v1", digest, true}},
			{"app1", container{"app", "registry.example.com/app", "v1", "", true}},
			{"init1", container{"init", "docker.io/library/busybox", "1.36", "sha256:cafe", false}},
			{"debug1", container{"debug", "docker.io/library/netshoot", "", digest, false}},
		},
	}
	r := testReader()
	got, err := r.trim(webPod())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(pod{}, head{}, ref{}, instance{}, container{})); d != "" {
		t.Error(d)
	}
	// An informer may hand over what it was given.
	if again, err := r.trim(got); err != nil || again != got {
		t.Errorf("%v, %v", again, err)
	}
	if key, err := cache.MetaNamespaceKeyFunc(got); err != nil || key != "shop/web-1-a" {
		t.Errorf("key %q, %v", key, err)
	}
}

func testReader() *reader { return newReader(DefaultConfig().Kubernetes) }

func TestToPodStates(t *testing.T) {
	p := webPod()
	p.Spec.HostNetwork = true
	if got := testReader().pod(p); got.addresses != nil {
		t.Errorf("a pod on the node's network has %v", got.addresses)
	}
	p = webPod()
	p.Status.Phase = corev1.PodFailed
	if !testReader().pod(p).ended {
		t.Error("a failed pod has ended")
	}
	p = webPod()
	p.Spec.Containers[0].Image = "" // a status without its spec
	if in := testReader().pod(p).instances[0]; in.image != "docker.io/library/ignored" || in.tag != "tag" {
		t.Errorf("%+v", in)
	}
	p = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "u"}} // just created
	if got := testReader().pod(p); got.node != "" || len(got.instances) != 0 || got.since == 0 {
		t.Errorf("%+v", got)
	}
}

func TestStaticPod(t *testing.T) {
	for _, tt := range []struct {
		name        string
		annotations map[string]string
		hash        string
	}{
		{"mirror", map[string]string{annotationHash: "h", annotationMirror: "h"}, "h"},
		{"no mirror", map[string]string{annotationHash: "h"}, ""},
		{"differs", map[string]string{annotationHash: "h", annotationMirror: "g"}, ""},
		{"none", nil, ""},
		{"its own uid", map[string]string{annotationHash: "u1", annotationMirror: "u1"}, ""},
	} {
		p := webPod()
		p.Annotations = tt.annotations
		if got := testReader().pod(p).hash; got != tt.hash {
			t.Errorf("%s: hash %q, want %q", tt.name, got, tt.hash)
		}
	}
}

func TestPairsAreBounded(t *testing.T) {
	many, large := map[string]string{}, map[string]string{}
	for i := range 1000 {
		many[fmt.Sprintf("k%04d", i)] = "v"
		large[fmt.Sprintf("k%04d", i)] = strings.Repeat("v", 1000)
	}
	if got := testReader().pairs(many, allowList{"*"}); len(got) != 2*maxLabels || got[0] != "k0000" {
		t.Errorf("%d, first %s", len(got), got[0])
	}
	if got := testReader().pairs(large, allowList{"*"}); len(got) != 8 {
		t.Errorf("%d labels of 1 kB", len(got)/2)
	}
}

func TestAddresses(t *testing.T) {
	svc := &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "10.0.0.7", ClusterIPs: []string{"10.0.0.7", "fd00::7"}, ExternalIPs: []string{"8.8.8.8"}}}
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "9.9.9.9"}}
	if got, want := serviceAddresses(svc), []address{ip(7), {0: 0xfd, 15: 7}}; !slices.Equal(got, want) {
		t.Errorf("service: %v", got)
	}
	if got := serviceAddresses(&corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "None", ClusterIPs: []string{"None"}}}); got != nil {
		t.Errorf("headless service: %v", got)
	}
	n := &corev1.Node{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "10.9.9.9"}, {Type: corev1.NodeInternalIP, Address: "10.0.0.8"}, {Type: corev1.NodeExternalIP, Address: "::ffff:192.0.2.1"}}}}
	if got, want := testReader().node(n).addresses, []address{ip(8), batch.IPv4([4]byte{192, 0, 2, 1})}; !slices.Equal(got, want) {
		t.Errorf("node: %v", got)
	}
	if got := addresses([]string{"", "x", "0.0.0.0", "fe80::1%eth0"}); len(got) != 1 || got[0] != (address{0: 0xfe, 1: 0x80, 15: 1}) {
		t.Errorf("%v", got)
	}
}

func TestOwners(t *testing.T) {
	owned := func(controller *bool) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: "n", UID: "u", Labels: map[string]string{"a": "b"}, OwnerReferences: []metav1.OwnerReference{{Kind: "Database", Name: "c", UID: "c", Controller: controller}}}
	}
	for _, o := range []object{&appsv1.ReplicaSet{ObjectMeta: owned(yes())}, &appsv1.Deployment{ObjectMeta: owned(yes())}, &appsv1.StatefulSet{ObjectMeta: owned(yes())},
		&appsv1.DaemonSet{ObjectMeta: owned(yes())}, &batchv1.Job{ObjectMeta: owned(yes())}, &batchv1.CronJob{ObjectMeta: owned(yes())}} {
		got, err := testReader().trim(o)
		if own, ok := got.(*ownerObject); err != nil || !ok || own.uid != "u" || own.controller != (ref{"Database", "c", "c"}) {
			t.Errorf("%T: %+v, %v", o, got, err)
		}
	}
	volcano := owned(yes())
	volcano.OwnerReferences[0].Kind, volcano.OwnerReferences[0].APIVersion = "Job", "batch.volcano.sh/v1alpha1"
	if got := testReader().owner(&volcano); got.controller != (ref{"Job", "c", ""}) {
		t.Errorf("a Job of another group: %+v", got)
	}
	m := owned(nil)
	if got := testReader().owner(&m); got.controller != (ref{}) {
		t.Errorf("an owner that is not the controller: %+v", got)
	}
}

func TestAllowList(t *testing.T) {
	r := newReader(KubernetesConfig{Labels: []string{"app", "team/*"}, Annotations: []string{"note"}, NamespaceLabels: []string{"*"}, IdentityAnnotations: []string{"first", "second"}})
	p := webPod()
	p.Labels = map[string]string{"app": "web", "apps": "no", "team/a": "1", "team": "no", labelTemplateHash: "77"}
	p.Annotations = map[string]string{"note": "n", "other": "no"}
	got := r.pod(p)
	if d := cmp.Diff([]string{"app", "web", "team/a", "1"}, got.labels); d != "" || got.templateHash != "77" {
		t.Error(d, got.templateHash)
	}
	if d := cmp.Diff([]string{"note", "n"}, got.annotations); d != "" {
		t.Error(d)
	}
	ns, err := r.trim(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"x": "y"}}})
	if err != nil || !slices.Equal(ns.(*namespaceObject).labels, []string{"x", "y"}) {
		t.Errorf("%+v, %v", ns, err)
	}
	account, err := r.trim(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "web", Annotations: map[string]string{"second": "2", "third": "3"}}})
	if err != nil || account.(*accountObject).identity != "2" {
		t.Errorf("%+v, %v", account, err)
	}
}

func TestNode(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"topology.kubernetes.io/zone": "eu-1a", "failure-domain.beta.kubernetes.io/zone": "old", "failure-domain.beta.kubernetes.io/region": "eu-1", "node.kubernetes.io/instance-type": "m5.large"}},
		Spec: corev1.NodeSpec{PodCIDR: "10.1.0.0/24", PodCIDRs: []string{"10.1.0.0/24", "fd00:1::/64", "nonsense"}}}
	got := testReader().node(n)
	if got.place != (place{"eu-1a", "eu-1", "m5.large"}) || len(got.pods) != 2 {
		t.Errorf("%+v", got)
	}
}

func TestSlice(t *testing.T) {
	port := func(n int32) *int32 { return &n }
	pod := func(uid, namespace string) *corev1.ObjectReference {
		return &corev1.ObjectReference{Kind: "Pod", UID: types.UID(uid), Namespace: namespace}
	}
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-x", UID: "s", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		Ports: []discoveryv1.EndpointPort{{Port: port(8080)}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, TargetRef: pod("u1", "shop")}, {Addresses: []string{"10.0.0.2"}, TargetRef: pod("u2", "other")},
			{Addresses: []string{"8.8.8.8"}}, {Addresses: []string{"10.0.0.3"}, TargetRef: &corev1.ObjectReference{Kind: "Node", UID: "n"}}}}
	got := testReader().slice(s)
	if got.service != "shop/web" || !slices.Equal(got.pods, []string{"u1"}) || !slices.Equal(got.ports, []uint16{8080}) || got.all || got.api != nil {
		t.Errorf("%+v", got)
	}
	s.Ports = []discoveryv1.EndpointPort{{}}
	if got := testReader().slice(s); !got.all {
		t.Error("a slice without port numbers is for all ports")
	}
	s.Namespace, s.Labels[discoveryv1.LabelServiceName] = "default", "kubernetes"
	if got := testReader().slice(s); len(got.api) != 4 {
		t.Errorf("endpoints of the API server: %v", got.api)
	}
}

func TestWords(t *testing.T) {
	var w words
	long := strings.Repeat("x", maxWordBytes+1)
	for i := range 2 * maxWords {
		if s := fmt.Sprint(i); w.one(s) != s {
			t.Fatal(s)
		}
	}
	if w.one(long) != long || len(w.all) > maxWords {
		t.Errorf("%d words", len(w.all))
	}
}
