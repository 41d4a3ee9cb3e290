package enricher

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

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
			Name: "web-1-a", Namespace: "shop", UID: "u1", CreationTimestamp: created,
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
	trimmed, err := trim(webPod())
	if err != nil {
		t.Fatal(err)
	}
	if p := trimmed.(*corev1.Pod); p.ManagedFields != nil || p.Annotations != nil || len(p.OwnerReferences) != 1 {
		t.Errorf("kept what is not used: %+v", p.ObjectMeta)
	}
	want := &pod{
		uid: "u1", namespace: "shop", name: "web-1-a", serviceAccount: "web", node: "node1_example_com",
		created: 1000e9, since: 1002e9, controller: ref{"ReplicaSet", "web-1", "rs"}, labels: []string{"a", "1", "b", "2"},
		addresses: []address{ip(1), {0: 0xfd, 15: 1}},
		instances: []instance{
			{"app2", container{"app", "registry.example.com/app", "v1", digest, true}},
			{"app1", container{"app", "registry.example.com/app", "v1", "", true}},
			{"init1", container{"init", "docker.io/library/busybox", "1.36", "sha256:cafe", false}},
			{"debug1", container{"debug", "docker.io/library/netshoot", "", digest, false}},
		},
	}
	for name, p := range map[string]*corev1.Pod{"whole": webPod(), "trimmed": trimmed.(*corev1.Pod)} {
		if d := cmp.Diff(want, toPod(p), cmp.AllowUnexported(pod{}, ref{}, instance{}, container{})); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestToPodStates(t *testing.T) {
	p := webPod()
	p.Spec.HostNetwork = true
	if got := toPod(p); got.addresses != nil {
		t.Errorf("a pod on the node's network has %v", got.addresses)
	}
	p = webPod()
	p.Status.Phase = corev1.PodFailed
	if !toPod(p).ended {
		t.Error("a failed pod has ended")
	}
	p = webPod()
	p.Spec.Containers[0].Image = "" // a status without its spec
	if in := toPod(p).instances[0]; in.image != "docker.io/library/ignored" || in.tag != "tag" {
		t.Errorf("%+v", in)
	}
	p = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "u"}} // just created
	if got := toPod(p); got.node != "_" || len(got.instances) != 0 || got.since == 0 {
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
		trimmed, err := trim(p)
		if err != nil {
			t.Fatal(err)
		}
		if got := toPod(trimmed.(*corev1.Pod)).hash; got != tt.hash {
			t.Errorf("%s: hash %q, want %q", tt.name, got, tt.hash)
		}
	}
}

func TestLabelPairsAreBounded(t *testing.T) {
	many, large := map[string]string{}, map[string]string{}
	for i := range 1000 {
		many[fmt.Sprintf("k%04d", i)] = "v"
		large[fmt.Sprintf("k%04d", i)] = strings.Repeat("v", 1000)
	}
	if got := labelPairs(many); len(got) != 2*maxLabels || got[0] != "k0000" {
		t.Errorf("%d, first %s", len(got), got[0])
	}
	if got := labelPairs(large); len(got) != 8 {
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
	if got, want := nodeAddresses(n), []address{ip(8), batch.IPv4([4]byte{192, 0, 2, 1})}; !slices.Equal(got, want) {
		t.Errorf("node: %v", got)
	}
	if got := addresses([]string{"", "x", "0.0.0.0", "fe80::1%eth0"}); len(got) != 1 || got[0] != (address{0: 0xfe, 1: 0x80, 15: 1}) {
		t.Errorf("%v", got)
	}
}

func TestTrimKeepsControllers(t *testing.T) {
	m := metav1.ObjectMeta{Name: "n", UID: types.UID("u"), Labels: map[string]string{"a": "b"}, OwnerReferences: []metav1.OwnerReference{{Kind: "CronJob", Name: "c", UID: "c", Controller: yes()}}}
	got := trimMeta(&m)
	if got.Labels != nil || controllerOf(&got) != (ref{"CronJob", "c", "c"}) {
		t.Errorf("%+v", got)
	}
	m.OwnerReferences[0].Controller = nil
	if got := trimMeta(&m); got.OwnerReferences != nil || controllerOf(&got) != (ref{}) {
		t.Errorf("an owner that is not the controller: %+v", got)
	}
}
