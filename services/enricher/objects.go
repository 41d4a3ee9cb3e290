package enricher

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"picket/internal/image"
	"picket/schemas"
)

// Annotations of static pods. The kubelet names such a pod by the hash of its
// configuration; the API server shows a mirror of it under a UID of its own.
const (
	annotationHash   = "kubernetes.io/config.hash"
	annotationMirror = "kubernetes.io/config.mirror"
)

// labelTemplateHash ends the name of a Deployment's ReplicaSet.
const labelTemplateHash = appsv1.DefaultDeploymentUniqueLabelKey

// Labels of nodes, and what they were before Kubernetes 1.17.
var (
	labelsZone   = []string{corev1.LabelTopologyZone, corev1.LabelFailureDomainBetaZone}
	labelsRegion = []string{corev1.LabelTopologyRegion, corev1.LabelFailureDomainBetaRegion}
	labelsType   = []string{corev1.LabelInstanceTypeStable, corev1.LabelInstanceType}
)

// The service of the API server itself, and its EndpointSlices.
const (
	apiServerNamespace = metav1.NamespaceDefault
	apiServerService   = "kubernetes"
	apiServerName      = apiServerNamespace + "/" + apiServerService
)

// head is what client-go needs to know of an object that an informer keeps.
type head struct {
	uid, namespace, name string
	version              uint64 // resource version: a later state of the object has a higher one
}

// GetObjectMeta implements metav1.ObjectMetaAccessor, for the keys of client-go.
func (h *head) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Name: h.name, Namespace: h.namespace, UID: types.UID(h.uid), ResourceVersion: strconv.FormatUint(h.version, 10)}
}

func (h *head) id() string { return h.uid }

// key is namespace/name, or the name of what has no namespace.
func (h *head) key() string {
	if h.namespace == "" {
		return h.name
	}
	return h.namespace + "/" + h.name
}

// The kinds besides pod that are kept.
type (
	// ownerObject is a ReplicaSet, Deployment, StatefulSet, DaemonSet, Job or
	// CronJob: a link between a pod and its top owner.
	ownerObject struct {
		head
		controller ref
	}
	nodeObject struct {
		head
		created   int64
		addresses []address
		place     place
		pods      []netip.Prefix
	}
	serviceObject struct {
		head
		created   int64
		addresses []address
	}
	sliceObject struct {
		head
		service string // namespace/name
		ports   []uint16
		all     bool     // ports: any
		pods    []string // UIDs of the pods behind it
		// Of the API server's own service the endpoints are no pods.
		api []address
	}
	namespaceObject struct {
		head
		labels []string
	}
	accountObject struct {
		head
		identity string
	}
)

// place is where a node is and what it is.
type place struct{ zone, region, instanceType string }

// reader makes of API objects what the index keeps. It runs before an informer
// stores an object, so that nothing else takes memory, and what informer and
// index have is one. It is safe for concurrent use.
type reader struct {
	labels, annotations, namespaceLabels allowList
	identities                           []string
	words                                words
}

func newReader(cfg KubernetesConfig) *reader {
	return &reader{labels: cfg.Labels, annotations: cfg.Annotations, namespaceLabels: cfg.NamespaceLabels, identities: cfg.IdentityAnnotations}
}

// trim is a cache.TransformFunc. What it does not know, as what it has made
// itself, it returns as it is.
func (r *reader) trim(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Pod:
		return r.pod(o), nil
	case *appsv1.ReplicaSet:
		return r.owner(&o.ObjectMeta), nil
	case *appsv1.Deployment:
		return r.owner(&o.ObjectMeta), nil
	case *appsv1.StatefulSet:
		return r.owner(&o.ObjectMeta), nil
	case *appsv1.DaemonSet:
		return r.owner(&o.ObjectMeta), nil
	case *batchv1.Job:
		return r.owner(&o.ObjectMeta), nil
	case *batchv1.CronJob:
		return r.owner(&o.ObjectMeta), nil
	case *corev1.Node:
		return r.node(o), nil
	case *corev1.Service:
		return &serviceObject{r.head(&o.ObjectMeta), createdAt(&o.ObjectMeta), serviceAddresses(o)}, nil
	case *discoveryv1.EndpointSlice:
		return r.slice(o), nil
	case *corev1.Namespace:
		return &namespaceObject{r.head(&o.ObjectMeta), r.pairs(o.Labels, r.namespaceLabels)}, nil
	case *corev1.ServiceAccount:
		return r.account(o), nil
	}
	return obj, nil
}

func (r *reader) head(m *metav1.ObjectMeta) head {
	return head{uid: string(m.UID), namespace: r.words.one(m.Namespace), name: m.Name, version: versionOf(m)}
}

// versionOf returns the resource version as the number that it is; they may be
// compared within a kind (KEP-5504). 0 if it is none.
func versionOf(m *metav1.ObjectMeta) uint64 {
	v, _ := strconv.ParseUint(m.ResourceVersion, 10, 64)
	return v
}

func (r *reader) owner(m *metav1.ObjectMeta) *ownerObject {
	return &ownerObject{r.head(m), r.controller(m)}
}

// controller returns the owner that controls an object.
func (r *reader) controller(m *metav1.ObjectMeta) ref {
	c := metav1.GetControllerOfNoCopy(m)
	if c == nil {
		return ref{}
	}
	out := ref{kind: r.words.one(c.Kind), name: r.words.one(c.Name), uid: r.words.one(string(c.UID))}
	if group, _, _ := strings.Cut(c.APIVersion, "/"); group != "" && group != "v1" && group != appsv1.GroupName && group != batchv1.GroupName {
		switch out.kind {
		case "Job", "ReplicaSet":
			out.uid = "" // another group's, which nobody will show
		}
	}
	return out
}

func (r *reader) node(n *corev1.Node) *nodeObject {
	label := func(keys []string) string {
		for _, k := range keys {
			if v := n.Labels[k]; v != "" {
				return r.words.one(v)
			}
		}
		return ""
	}
	out := &nodeObject{head: r.head(&n.ObjectMeta), created: createdAt(&n.ObjectMeta), place: place{label(labelsZone), label(labelsRegion), label(labelsType)}}
	var ips []string
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			ips = append(ips, a.Address)
		}
	}
	out.addresses = addresses(ips)
	for _, s := range append([]string{n.Spec.PodCIDR}, n.Spec.PodCIDRs...) {
		if p, err := netip.ParsePrefix(s); err == nil && !slices.Contains(out.pods, p) && len(out.pods) < maxPodRanges {
			out.pods = append(out.pods, p)
		}
	}
	return out
}

// slice takes the endpoints that are pods. Others are addresses that somebody
// wrote there, and could give the place data is sent to a trusted name; only
// those of the API server's own service are taken.
func (r *reader) slice(s *discoveryv1.EndpointSlice) *sliceObject {
	out := &sliceObject{head: r.head(&s.ObjectMeta)}
	service := s.Labels[discoveryv1.LabelServiceName]
	if service == "" {
		return out
	}
	out.service = r.words.one(s.Namespace + "/" + service)
	for _, p := range s.Ports {
		switch {
		case p.Port == nil:
			out.all = true
		case *p.Port > 0 && *p.Port < 1<<16 && len(out.ports) < maxPorts:
			out.ports = append(out.ports, uint16(*p.Port))
		}
	}
	api := out.service == apiServerName
	for _, e := range s.Endpoints {
		if t := e.TargetRef; t != nil && t.Kind == "Pod" && t.UID != "" && (t.Namespace == "" || t.Namespace == s.Namespace) && len(out.pods) < maxEndpoints {
			out.pods = append(out.pods, r.words.one(string(t.UID)))
		}
		if api && len(out.api) < maxEndpoints {
			out.api = append(out.api, addresses(e.Addresses)...)
		}
	}
	return out
}

func (r *reader) account(a *corev1.ServiceAccount) *accountObject {
	out := &accountObject{head: r.head(&a.ObjectMeta)}
	for _, k := range r.identities {
		if v := a.Annotations[k]; v != "" {
			out.identity = strings.Clone(v[:min(len(v), maxIdentityBytes)])
			break
		}
	}
	return out
}

// pod makes the index's record of a pod.
func (r *reader) pod(p *corev1.Pod) *pod {
	one := r.words.one
	out := &pod{
		head: r.head(&p.ObjectMeta), serviceAccount: one(p.Spec.ServiceAccountName),
		node:    one(nodeToken(p.Spec.NodeName)),
		created: createdAt(&p.ObjectMeta), controller: r.controller(&p.ObjectMeta),
		templateHash: one(p.Labels[labelTemplateHash]),
		labels:       r.pairs(p.Labels, r.labels), annotations: r.pairs(p.Annotations, r.annotations),
		ended: p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
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
	out.spec = make([]container, 0, len(p.Spec.InitContainers)+len(p.Spec.Containers)+len(p.Spec.EphemeralContainers))
	for _, cs := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range cs {
			out.spec = append(out.spec, r.container(cs[i].Name, cs[i].Image, cs[i].SecurityContext))
		}
	}
	for i := range p.Spec.EphemeralContainers {
		c := &p.Spec.EphemeralContainers[i]
		out.spec = append(out.spec, r.container(c.Name, c.Image, c.SecurityContext))
	}
	for _, ss := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range ss {
			s := &ss[i]
			c := container{name: one(s.Name)}
			if known := out.specOf(s.Name); known != nil {
				c = *known
			}
			if c.image == "" {
				c.image, c.tag, _ = image.Parse(s.Image)
				c.image, c.tag = one(c.image), one(c.tag)
			}
			id := runtimeID(s.ContainerID)
			if id != "" {
				c := c
				if _, _, d := image.Parse(s.ImageID); d != "" {
					c.digest = one(d)
				}
				out.instances = append(out.instances, instance{id, c})
			}
			// The one before it: it may have had another image under the same
			// name, so its digest is not known from here. A container that has
			// ended may stand there alone.
			for _, t := range []*corev1.ContainerStateTerminated{s.State.Terminated, s.LastTerminationState.Terminated} {
				if t == nil {
					continue
				}
				if before := runtimeID(t.ContainerID); before != "" && before != id {
					out.instances = append(out.instances, instance{before, c})
				}
			}
		}
	}
	return out
}

func (r *reader) container(name, ref string, sc *corev1.SecurityContext) container {
	c := container{name: r.words.one(name)}
	c.image, c.tag, c.digest = image.Parse(ref)
	c.image, c.tag, c.digest = r.words.one(c.image), r.words.one(c.tag), r.words.one(c.digest)
	c.privileged = sc != nil && sc.Privileged != nil && *sc.Privileged
	return c
}

// runtimeID cuts the runtime off a container id (containerd://…).
func runtimeID(id string) string {
	if _, rest, ok := strings.Cut(id, "://"); ok {
		return rest
	}
	return id
}

// nodeToken is the name of a node as in subjects; "" of a pod without a node.
func nodeToken(name string) string {
	if name == "" {
		return ""
	}
	return schemas.Token(name)
}

// allowList is a list of keys; one that ends in * stands for all that begin so.
type allowList []string

func (l allowList) has(key string) bool {
	for _, k := range l {
		if prefix, ok := strings.CutSuffix(k, "*"); key == k || ok && strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// pairs returns those that are allowed as keys and values in turn, by key,
// within bounds.
func (r *reader) pairs(m map[string]string, allowed allowList) []string {
	if len(m) == 0 || len(allowed) == 0 {
		return nil
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		if allowed.has(k) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	slices.Sort(keys)
	keys = keys[:min(len(keys), maxLabels)]
	out := make([]string, 0, 2*len(keys))
	size := 0
	for _, k := range keys {
		if size += len(k) + len(m[k]); size > maxLabelBytes {
			break
		}
		out = append(out, r.words.one(k), r.words.one(m[k]))
	}
	return out
}

// words keeps one copy of strings that many objects have in common. It is
// emptied when it is full: what is in use stays in use.
type words struct {
	mu  sync.Mutex
	all map[string]string
}

// maxWords and maxWordBytes bound what is remembered: 8 MiB at the most.
const maxWords, maxWordBytes = 32768, 256

func (w *words) one(s string) string {
	if s == "" || len(s) > maxWordBytes {
		return s
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if have, ok := w.all[s]; ok {
		return have
	}
	if w.all == nil || len(w.all) >= maxWords {
		w.all = make(map[string]string)
	}
	s = strings.Clone(s) // not the larger string that it may be a part of
	w.all[s] = s
	return s
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

func createdAt(m *metav1.ObjectMeta) int64 {
	if m.CreationTimestamp.IsZero() {
		return time.Now().UnixNano()
	}
	return m.CreationTimestamp.UnixNano()
}
