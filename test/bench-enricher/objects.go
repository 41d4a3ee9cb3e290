package main

import (
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"picket/internal/kubetest"
)

// size is how large the generated cluster is.
type size struct{ pods, nodes, services int }

// podsPerWorkload, revisions and namespaces make the cluster an ordinary one:
// a Deployment of ten pods, with the ReplicaSets of its last three versions.
const podsPerWorkload, revisions, namespaces = 10, 3, 100

func podUID(p int) string      { return fmt.Sprintf("6f3a1c02-7d1e-4f5a-9a3b-%012d", p) }
func containerID(p int) string { return fmt.Sprintf("%064x", 0xabc000+p) }
func nodeName(n int) string {
	return fmt.Sprintf("ip-10-%d-%d-%d.eu-central-1.compute.internal", n>>16&255, n>>8&255, n&255)
}
func namespaceOf(w int) string { return fmt.Sprintf("team-%02d", w%namespaces) }
func podAddress(p int) [4]byte { return [4]byte{10, byte(128 + p>>16), byte(p >> 8), byte(p)} }

func meta(namespace, name, uid string, labels map[string]string) metav1.ObjectMeta {
	created := metav1.NewTime(time.Now().Add(-time.Hour).Truncate(time.Second))
	fields := strings.Repeat(`"f:metadata":{"f:labels":{"f:app.kubernetes.io/name":{}}},`, 25) // what an object's own are
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid), CreationTimestamp: created, Labels: labels,
		Annotations:   map[string]string{"kubectl.kubernetes.io/last-applied-configuration": strings.Repeat(`{"apiVersion":"v1"},`, 50), "prometheus.io/scrape": "true"},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kube-controller-manager", Operation: "Update", APIVersion: "v1", Time: &created, FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{Raw: []byte("{" + strings.TrimSuffix(fields, ",") + "}")}}}}
}

func owned(m metav1.ObjectMeta, kind, name, uid string) metav1.ObjectMeta {
	yes := true
	m.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: name, UID: types.UID(uid), Controller: &yes, BlockOwnerDeletion: &yes}}
	return m
}

func labels(w int) map[string]string {
	out := map[string]string{"app.kubernetes.io/name": fmt.Sprint("workload-", w), "app.kubernetes.io/instance": fmt.Sprint("workload-", w), "app.kubernetes.io/managed-by": "Helm",
		"app.kubernetes.io/version": fmt.Sprintf("1.%d.0", w%40), "helm.sh/chart": fmt.Sprintf("workload-%d-1.2.3", w), "team": namespaceOf(w), "tier": "backend"}
	return out
}

// generate makes the cluster.
func generate(s size) []kubetest.Object {
	var out []kubetest.Object
	workloads := s.pods / podsPerWorkload
	for i := range namespaces {
		out = append(out, &corev1.Namespace{ObjectMeta: meta("", fmt.Sprintf("team-%02d", i), fmt.Sprint("ns-", i), nil)},
			&corev1.ServiceAccount{ObjectMeta: meta(fmt.Sprintf("team-%02d", i), "default", fmt.Sprint("sa-", i), nil)})
	}
	for n := range s.nodes {
		out = append(out, node(n))
	}
	for w := range workloads {
		d, ns := fmt.Sprint("workload-", w), namespaceOf(w)
		out = append(out, &appsv1.Deployment{ObjectMeta: meta(ns, d, "d-"+d, labels(w)), Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{Spec: podSpec(w)}}},
			&corev1.ServiceAccount{ObjectMeta: meta(ns, d, "sa-"+d, labels(w))})
		for r := range revisions {
			rs := fmt.Sprintf("%s-%08x", d, w*revisions+r)
			out = append(out, &appsv1.ReplicaSet{ObjectMeta: owned(meta(ns, rs, "rs-"+rs, labels(w)), "Deployment", d, "d-"+d), Spec: appsv1.ReplicaSetSpec{Template: corev1.PodTemplateSpec{Spec: podSpec(w)}}})
		}
	}
	for p := range s.pods {
		out = append(out, pod(p, s))
	}
	for i := range s.services {
		w := i % workloads
		name := fmt.Sprintf("service-%d", i)
		out = append(out, &corev1.Service{ObjectMeta: meta(namespaceOf(w), name, "svc-"+name, labels(w)),
			Spec: corev1.ServiceSpec{ClusterIP: fmt.Sprintf("172.20.%d.%d", i>>8, i&255), ClusterIPs: []string{fmt.Sprintf("172.20.%d.%d", i>>8, i&255)}, Selector: labels(w), Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}}}, slice(name, w))
	}
	return out
}

func slice(service string, w int) *discoveryv1.EndpointSlice {
	m := meta(namespaceOf(w), service+"-x7k2p", "es-"+service, map[string]string{discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io"})
	port, yes, name := int32(8080), true, "http"
	s := &discoveryv1.EndpointSlice{ObjectMeta: owned(m, "Service", service, "svc-"+service), AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}}}
	for i := range podsPerWorkload {
		p := w*podsPerWorkload + i
		a := podAddress(p)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("%d.%d.%d.%d", a[0], a[1], a[2], a[3])}, Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: namespaceOf(w), Name: podName(p), UID: types.UID(podUID(p))}})
	}
	return s
}

func podName(p int) string {
	w := p / podsPerWorkload
	return fmt.Sprintf("workload-%d-%08x-%05x", w, w*revisions+revisions-1, p)
}

func podSpec(w int) corev1.PodSpec {
	var env []corev1.EnvVar
	for i := range 20 {
		env = append(env, corev1.EnvVar{Name: fmt.Sprint("SETTING_NUMBER_", i), Value: fmt.Sprintf("value-%d-of-workload-%d", i, w)})
	}
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}}, PeriodSeconds: 10}
	c := corev1.Container{Name: "app", Image: fmt.Sprintf("registry.example.com/team/workload-%d:1.%d.0", w, w%40), Env: env, LivenessProbe: probe, ReadinessProbe: probe,
		Ports:        []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
		Resources:    corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")}},
		VolumeMounts: []corev1.VolumeMount{{Name: "config", MountPath: "/etc/app"}, {Name: "kube-api-access", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true}}}
	proxy := c
	proxy.Name, proxy.Image = "proxy", "registry.example.com/mesh/proxy:2.19.0"
	first := corev1.Container{Name: "init", Image: "registry.example.com/mesh/init:2.19.0"}
	return corev1.PodSpec{ServiceAccountName: fmt.Sprint("workload-", w), InitContainers: []corev1.Container{first}, Containers: []corev1.Container{c, proxy},
		Volumes:     []corev1.Volume{{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "config"}}}}},
		Tolerations: []corev1.Toleration{{Key: "node.kubernetes.io/not-ready", Operator: "Exists"}, {Key: "node.kubernetes.io/unreachable", Operator: "Exists"}}}
}

func pod(p int, s size) *corev1.Pod {
	w := p / podsPerWorkload
	rs := fmt.Sprintf("workload-%d-%08x", w, w*revisions+revisions-1)
	l := labels(w)
	l["pod-template-hash"] = fmt.Sprintf("%08x", w*revisions+revisions-1)
	spec := podSpec(w)
	spec.NodeName = nodeName(p % s.nodes)
	a := podAddress(p)
	ip := fmt.Sprintf("%d.%d.%d.%d", a[0], a[1], a[2], a[3])
	started := metav1.NewTime(time.Now().Add(-time.Hour).Truncate(time.Second))
	status := corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}, HostIP: "10.0.0.1", StartTime: &started}
	for i, c := range []string{"app", "proxy"} {
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{Name: c, ContainerID: "containerd://" + containerID(3*p+i), Image: spec.Containers[i].Image,
			ImageID: spec.Containers[i].Image + "@sha256:" + containerID(w), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: started}}, Ready: true})
	}
	status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "init", ContainerID: "containerd://" + containerID(3*p+2), Image: "registry.example.com/mesh/init:2.19.0",
		ImageID: "registry.example.com/mesh/init@sha256:" + containerID(0), State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ContainerID: "containerd://" + containerID(3*p+2)}}}}
	for _, c := range []corev1.PodConditionType{corev1.PodReady, corev1.PodInitialized, corev1.PodScheduled, corev1.ContainersReady} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: c, Status: corev1.ConditionTrue, LastTransitionTime: started})
	}
	return &corev1.Pod{ObjectMeta: owned(meta(namespaceOf(w), podName(p), podUID(p), l), "ReplicaSet", rs, "rs-"+rs), Spec: spec, Status: status}
}

func node(n int) *corev1.Node {
	out := &corev1.Node{ObjectMeta: meta("", nodeName(n), fmt.Sprint("node-", n), map[string]string{"topology.kubernetes.io/zone": fmt.Sprint("eu-central-1", string(rune('a'+n%3))), "topology.kubernetes.io/region": "eu-central-1",
		"node.kubernetes.io/instance-type": "m7i.4xlarge", "kubernetes.io/hostname": nodeName(n), "kubernetes.io/arch": "amd64"}),
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("10.0.%d.%d", n>>8, n&255)}, {Type: corev1.NodeHostName, Address: nodeName(n)}}}}
	for i := range 50 { // what the kubelet tells by default
		out.Status.Images = append(out.Status.Images, corev1.ContainerImage{Names: []string{fmt.Sprintf("registry.example.com/team/workload-%d@sha256:%s", i, containerID(i)), fmt.Sprintf("registry.example.com/team/workload-%d:1.%d.0", i, i)}, SizeBytes: 1 << 28})
	}
	return out
}
