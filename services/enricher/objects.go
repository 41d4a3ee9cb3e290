package enricher

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"picket/internal/image"
	"picket/schemas"
)

// Annotations of static pods. The kubelet names such a pod by the hash of its
// configuration; the API server shows a mirror of it under a UID of its own.
const (
	annotationHash   = "kubernetes.io/config.hash"
	annotationMirror = "kubernetes.io/config.mirror"
)

// trim keeps of an object what the index uses. It runs before an informer
// stores the object, so that nothing else takes memory.
func trim(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Pod:
		return trimPod(o), nil
	case *corev1.Node:
		return &corev1.Node{ObjectMeta: trimMeta(&o.ObjectMeta), Status: corev1.NodeStatus{Addresses: o.Status.Addresses}}, nil
	case *corev1.Service:
		return &corev1.Service{ObjectMeta: trimMeta(&o.ObjectMeta), Spec: corev1.ServiceSpec{ClusterIPs: o.Spec.ClusterIPs, ClusterIP: o.Spec.ClusterIP}}, nil
	case *corev1.Namespace:
		return &corev1.Namespace{ObjectMeta: trimMeta(&o.ObjectMeta)}, nil
	case *appsv1.ReplicaSet:
		return &appsv1.ReplicaSet{ObjectMeta: trimMeta(&o.ObjectMeta)}, nil
	case *batchv1.Job:
		return &batchv1.Job{ObjectMeta: trimMeta(&o.ObjectMeta)}, nil
	}
	return obj, nil
}

// trimMeta keeps names, times and the controller.
func trimMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	out := metav1.ObjectMeta{Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, CreationTimestamp: m.CreationTimestamp}
	if c := metav1.GetControllerOfNoCopy(m); c != nil {
		out.OwnerReferences = []metav1.OwnerReference{*c}
	}
	return out
}

func trimPod(p *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{
		ObjectMeta: trimMeta(&p.ObjectMeta),
		Spec:       corev1.PodSpec{NodeName: p.Spec.NodeName, ServiceAccountName: p.Spec.ServiceAccountName, HostNetwork: p.Spec.HostNetwork},
		Status: corev1.PodStatus{
			Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs, StartTime: p.Status.StartTime,
			InitContainerStatuses: trimStatuses(p.Status.InitContainerStatuses), ContainerStatuses: trimStatuses(p.Status.ContainerStatuses),
			EphemeralContainerStatuses: trimStatuses(p.Status.EphemeralContainerStatuses),
		},
	}
	out.Labels = p.Labels
	for _, k := range []string{annotationHash, annotationMirror} {
		if v, ok := p.Annotations[k]; ok {
			if out.Annotations == nil {
				out.Annotations = map[string]string{}
			}
			out.Annotations[k] = v
		}
	}
	for _, c := range p.Spec.InitContainers {
		out.Spec.InitContainers = append(out.Spec.InitContainers, trimContainer(c))
	}
	for _, c := range p.Spec.Containers {
		out.Spec.Containers = append(out.Spec.Containers, trimContainer(c))
	}
	for _, c := range p.Spec.EphemeralContainers {
		t := trimContainer(corev1.Container(c.EphemeralContainerCommon))
		out.Spec.EphemeralContainers = append(out.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon(t)})
	}
	return out
}

func trimContainer(c corev1.Container) corev1.Container {
	out := corev1.Container{Name: c.Name, Image: c.Image}
	if c.SecurityContext != nil && c.SecurityContext.Privileged != nil {
		out.SecurityContext = &corev1.SecurityContext{Privileged: c.SecurityContext.Privileged}
	}
	return out
}

func trimStatuses(in []corev1.ContainerStatus) []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	for _, s := range in {
		t := corev1.ContainerStatus{Name: s.Name, ContainerID: s.ContainerID, Image: s.Image, ImageID: s.ImageID}
		if l := s.LastTerminationState.Terminated; l != nil {
			t.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ContainerID: l.ContainerID}
		}
		out = append(out, t)
	}
	return out
}

// toPod makes the index's record of a pod.
func toPod(p *corev1.Pod) *pod {
	out := &pod{
		uid: string(p.UID), namespace: p.Namespace, name: p.Name, serviceAccount: p.Spec.ServiceAccountName,
		node:    schemas.Token(p.Spec.NodeName),
		created: createdAt(&p.ObjectMeta), controller: controllerOf(&p.ObjectMeta),
		labels: labelPairs(p.Labels),
		ended:  p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}
	if h := p.Annotations[annotationHash]; h != "" && h == p.Annotations[annotationMirror] && h != out.uid {
		out.hash = h
	}
	out.since = out.created
	if p.Status.StartTime != nil {
		out.since = p.Status.StartTime.UnixNano()
	}
	if !p.Spec.HostNetwork {
		ips := []string{p.Status.PodIP}
		for _, ip := range p.Status.PodIPs {
			ips = append(ips, ip.IP)
		}
		out.addresses = addresses(ips)
	}
	spec := map[string]container{}
	for _, c := range p.Spec.InitContainers {
		spec[c.Name] = toContainer(c)
	}
	for _, c := range p.Spec.Containers {
		spec[c.Name] = toContainer(c)
	}
	for _, c := range p.Spec.EphemeralContainers {
		spec[c.Name] = toContainer(corev1.Container(c.EphemeralContainerCommon))
	}
	for _, ss := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for _, s := range ss {
			c := spec[s.Name]
			c.name = s.Name
			if c.image == "" {
				c.image, c.tag, _ = image.Parse(s.Image)
			}
			if id := runtimeID(s.ContainerID); id != "" {
				c := c
				if _, _, d := image.Parse(s.ImageID); d != "" {
					c.digest = d
				}
				out.instances = append(out.instances, instance{id, c})
			}
			// The one before it: it may have had another image under the same
			// name, so its digest is not known from here.
			if l := s.LastTerminationState.Terminated; l != nil {
				if id := runtimeID(l.ContainerID); id != "" && id != runtimeID(s.ContainerID) {
					out.instances = append(out.instances, instance{id, c})
				}
			}
		}
	}
	return out
}

func toContainer(c corev1.Container) container {
	out := container{name: c.Name}
	out.image, out.tag, out.digest = image.Parse(c.Image)
	if c.SecurityContext != nil && c.SecurityContext.Privileged != nil {
		out.privileged = *c.SecurityContext.Privileged
	}
	return out
}

// runtimeID cuts the runtime off a container id (containerd://…).
func runtimeID(id string) string {
	if _, rest, ok := strings.Cut(id, "://"); ok {
		return rest
	}
	return id
}

// controllerOf returns the owner that controls an object.
func controllerOf(m *metav1.ObjectMeta) ref {
	c := metav1.GetControllerOfNoCopy(m)
	if c == nil {
		return ref{}
	}
	return ref{kind: c.Kind, name: c.Name, uid: string(c.UID)}
}

// labelPairs returns labels as keys and values in turn, by key, within bounds.
func labelPairs(labels map[string]string) []string {
	keys := make([]string, 0, len(labels))
	for k := range labels {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var out []string
	size := 0
	for _, k := range keys[:min(len(keys), maxLabels)] {
		if size += len(k) + len(labels[k]); size > maxLabelBytes {
			break
		}
		out = append(out, k, labels[k])
	}
	return out
}

// addresses parses IP addresses; what is none ("None" of a headless service)
// is left out.
func addresses(ips []string) []address {
	var out []address
	for _, s := range ips {
		if ip, err := netip.ParseAddr(s); err == nil && !ip.IsUnspecified() {
			if a := ip.WithZone("").As16(); !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// The addresses of a service are those that the API server assigned. External
// and load balancer addresses are not taken: whoever may create services may
// write any address there, and give the place it sends data to a trusted name.
func serviceAddresses(s *corev1.Service) []address {
	return addresses(append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...))
}

func nodeAddresses(n *corev1.Node) []address {
	var ips []string
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			ips = append(ips, a.Address)
		}
	}
	return addresses(ips)
}

func createdAt(m *metav1.ObjectMeta) int64 {
	if m.CreationTimestamp.IsZero() {
		return time.Now().UnixNano()
	}
	return m.CreationTimestamp.UnixNano()
}
