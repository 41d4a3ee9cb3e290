package enricher

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Bounds of what is kept of one pod. Labels beyond them are cut, in the order
// of their keys; of containers that no longer are the newest are kept.
const (
	maxLabels         = 64
	maxLabelBytes     = 4 << 10
	maxIdentityBytes  = 1 << 10
	maxContainerIDs   = 64
	maxOwners         = 4
	maxAddressHolders = 4
	maxPodRanges      = 4    // address ranges of a node's pods
	maxEndpoints      = 1000 // of a slice: what the API server allows
	maxPorts          = 100  // of a slice: what the API server allows
	maxMemberships    = 16   // services that a pod is behind
	maxAPIEndpoints   = 64   // endpoints of the API server, former ones included
)

// peerSlack is how far an event's time may be outside the time in which an
// object had an address: start times have whole seconds, clocks differ.
const peerSlack = 2 * time.Second

// ref names the controller of an object; the zero ref is none.
type ref struct{ kind, name, uid string }

// container is what an event says of its container.
type container struct {
	name, image, tag, digest string
	privileged               bool
}

// instance is one run of a container: a restart has another id.
type instance struct {
	id string
	container
}

// address is an IP address, IPv4 mapped into IPv6, as in a batch.
type address = [16]byte

// pod is what is known of a pod. It does not change; a newer state is another
// pod record with the same uid.
type pod struct {
	head
	serviceAccount string

	node         string // token of the node's name, as in subjects
	hash         string // of a static pod: its uid for the kubelet, and in cgroup paths
	created      int64  // ns since the epoch
	controller   ref
	templateHash string   // ends the name of its ReplicaSet, if that is a Deployment's
	labels       []string // key, value, key, value, … by key
	annotations  []string // the same
	spec         []container
	instances    []instance
	addresses    []address // none when it shares the node's
	since        int64     // ns since the epoch, from when the addresses are its own
	ended        bool      // will not run again: its addresses are free
	deleted      bool
}

func (p *pod) instance(id string) *container {
	for i := range p.instances {
		if p.instances[i].id == id {
			return &p.instances[i].container
		}
	}
	return nil
}

// specOf returns the container of that name as the pod's specification has it.
func (p *pod) specOf(name string) *container {
	for i := range p.spec {
		if p.spec[i].name == name {
			return &p.spec[i]
		}
	}
	return nil
}

// holder is an object that has, or had, an address.
type holder struct {
	uid, kind, name string
	since, until    int64 // ns since the epoch; until is 0 while it has it
}

// membership is a service that a pod is, or was, behind.
type membership struct {
	slice *sliceObject
	until int64 // ns since the epoch; 0 while it is
}

// apiEndpoint is an address and port of the API server.
type apiEndpoint struct {
	slice *sliceObject
	until int64 // ns since the epoch; 0 while it is
}

// index answers what a pod UID, a container id or an address is. Deleted
// objects stay known for a time, bounded in number. It is safe for concurrent
// use; what joins with it (find, workload, peer, …) needs the read lock.
type index struct {
	keep time.Duration
	max  int

	sync.RWMutex
	pods       map[string]*pod      // by uid
	static     map[string]string    // uid by config hash
	containers map[string]string    // uid of the pod by container id
	owners     map[string]*owner    // by uid of what is between a pod and its top owner
	others     map[string]*other    // by uid of the service or node
	holders    map[address][]holder // newest first
	members    map[string][]membership
	slices     map[string]*sliceObject // by uid
	places     map[string]*nodeObject  // by token of the node's name
	ranges     map[netip.Prefix]int    // how many nodes have it for their pods
	lengths    map[int]int             // of those, by the length of their prefix (IPv6 from 128 on)
	labels     map[string][]string     // of a namespace, by its name
	accounts   map[string]string       // cloud identity by namespace/name of the service account
	api        []apiEndpoint
	configured apiAddress // the API server's, from the configuration
	graves     []grave    // oldest first

	// changed is signalled when a pod is new or has new containers.
	changed broadcast
}

// apiAddress is where a client finds the API server; the zero value is unknown.
type apiAddress struct {
	address address
	port    uint16
}

// owner is what is between a pod and its top owner.
type owner struct {
	controller ref
	deleted    bool
}

// other is a service or node.
type other struct {
	addresses []address
	deleted   bool
}

// grave remembers something deleted until it is forgotten.
type grave struct {
	until   time.Time
	kind    graveKind
	uid     string  // of a graveAccount: namespace/name
	address address // of a graveAddress
}

type graveKind uint8

const (
	gravePod graveKind = iota
	graveOwner
	graveOther
	graveAddress // an address that the object no longer has
)

func newIndex(keep time.Duration, max int) *index {
	return &index{
		keep: keep, max: max,
		pods: map[string]*pod{}, static: map[string]string{}, containers: map[string]string{},
		owners: map[string]*owner{}, others: map[string]*other{}, holders: map[address][]holder{},
		members: map[string][]membership{}, slices: map[string]*sliceObject{}, places: map[string]*nodeObject{},
		ranges: map[netip.Prefix]int{}, lengths: map[int]int{}, labels: map[string][]string{}, accounts: map[string]string{},
	}
}

// setPod takes a pod's newest state; the index may add to it.
func (x *index) setPod(p *pod) {
	x.Lock()
	old := x.pods[p.uid]
	if old != nil {
		var dropped []instance
		p.instances, dropped = mergeInstances(p.instances, old.instances)
		for _, in := range dropped {
			delete(x.containers, in.id)
		}
	}
	x.pods[p.uid] = p
	for _, in := range p.instances {
		x.containers[in.id] = p.uid
	}
	if p.hash != "" {
		// Anybody who may create pods may write the annotation that the
		// hash comes from: the older pod keeps it.
		if have := x.pods[x.static[p.hash]]; have == nil || have.deleted || have.hash != p.hash || p.created < have.created {
			x.static[p.hash] = p.uid
		}
	}
	var had []address
	if old != nil {
		had = old.addresses
	}
	h := holder{uid: p.uid, kind: kindPod, name: x.podKey(old, p), since: p.since}
	switch {
	case !p.ended:
		x.setHolder(h, had, p.addresses, time.Now())
	case old != nil && !old.ended:
		// It may be shown with its address and as ended at once. Of one that
		// ended before it was first shown nobody knows when.
		x.setHolder(h, had, p.addresses, time.Now())
		x.setHolder(h, p.addresses, nil, time.Now())
	default:
		x.setHolder(h, had, nil, time.Now())
	}
	x.Unlock()
	x.changed.signal()
}

// podKey is namespace/name, made once.
func (x *index) podKey(old, p *pod) string {
	if old != nil {
		for _, a := range old.addresses {
			for i := range x.holders[a] {
				if h := &x.holders[a][i]; h.uid == p.uid {
					return h.name
				}
			}
		}
	}
	return p.key()
}

// mergeInstances keeps instances that the newest state does not name any more,
// because events of theirs may still come; and what was known of those that it
// names: an image changed in the pod's spec is not that of an instance which
// already ran.
func mergeInstances(now, before []instance) (kept, dropped []instance) {
	for _, b := range before {
		i := slices.IndexFunc(now, func(n instance) bool { return n.id == b.id })
		switch {
		case i < 0:
			now = append(now, b)
		case b.digest != "":
			now[i] = b
		}
	}
	n := min(len(now), maxContainerIDs)
	return now[:n], now[n:]
}

// set takes an object's newest state; the index may add to a pod.
func (x *index) set(o kept) {
	switch o := o.(type) {
	case *pod:
		x.setPod(o)
	case *ownerObject:
		x.setOwner(o.uid, o.controller)
	case *nodeObject:
		x.setNode(o)
	case *serviceObject:
		x.setOther(o.uid, kindService, o.key(), o.created, o.addresses)
	case *sliceObject:
		x.setSlice(o)
	case *namespaceObject:
		x.setNamespace(o)
	case *accountObject:
		x.setAccount(o)
	}
}

// remove marks an object as deleted at that time. Labels of namespaces and
// identities of service accounts stay: their pods are deleted before and after
// them, and one of the same name replaces it.
func (x *index) remove(o kept, at time.Time) {
	switch o := o.(type) {
	case *pod:
		x.deletePod(o.uid, at)
	case *ownerObject:
		x.deleteOwner(o.uid, at)
	case *nodeObject, *serviceObject:
		x.deleteOther(o.id(), at)
	case *sliceObject:
		x.deleteSlice(o, at)
	}
}

// deletePod marks a pod as deleted; it stays known for a time.
func (x *index) deletePod(uid string, at time.Time) {
	x.Lock()
	defer x.Unlock()
	old := x.pods[uid]
	if old == nil || old.deleted {
		return
	}
	p := *old
	p.deleted = true
	x.pods[uid] = &p
	x.setHolder(holder{uid: uid}, p.addresses, nil, at)
	x.bury(grave{kind: gravePod, uid: uid}, at)
}

// setOwner takes the controller of what controls pods.
func (x *index) setOwner(uid string, controller ref) {
	x.Lock()
	x.owners[uid] = &owner{controller: controller}
	x.Unlock()
	x.changed.signal()
}

// deleteOwner marks what controls pods as deleted.
func (x *index) deleteOwner(uid string, at time.Time) {
	x.Lock()
	defer x.Unlock()
	if o := x.owners[uid]; o != nil && !o.deleted {
		o.deleted = true
		x.bury(grave{kind: graveOwner, uid: uid}, at)
	}
}

// setOther takes the addresses of a service or node.
func (x *index) setOther(uid, kind, name string, since int64, addresses []address) {
	x.Lock()
	defer x.Unlock()
	var had []address
	if o := x.others[uid]; o != nil {
		had = o.addresses
	}
	x.setHolder(holder{uid: uid, kind: kind, name: name, since: since}, had, addresses, time.Now())
	x.others[uid] = &other{addresses: addresses}
}

// deleteOther marks a service or node as deleted.
func (x *index) deleteOther(uid string, at time.Time) {
	x.Lock()
	defer x.Unlock()
	if o := x.others[uid]; o != nil && !o.deleted {
		o.deleted = true
		x.setHolder(holder{uid: uid}, o.addresses, nil, at)
		x.bury(grave{kind: graveOther, uid: uid}, at)
	}
}

// setNode takes a node's newest state.
func (x *index) setNode(n *nodeObject) {
	x.setOther(n.uid, kindNode, n.name, n.created, n.addresses)
	x.Lock()
	defer x.Unlock()
	token := nodeToken(n.name)
	x.setRanges(x.places[token], n)
	x.places[token] = n
}

// setRanges counts the address ranges of the nodes' pods.
func (x *index) setRanges(before, now *nodeObject) {
	count := func(n *nodeObject, by int) {
		if n == nil {
			return
		}
		for _, r := range n.pods {
			l := prefixLength(r)
			if x.ranges[r] += by; x.ranges[r] == 0 {
				delete(x.ranges, r)
			}
			if x.lengths[l] += by; x.lengths[l] == 0 {
				delete(x.lengths, l)
			}
		}
	}
	count(now, 1)
	count(before, -1)
}

// prefixLength keeps the lengths of IPv4 and IPv6 prefixes apart.
func prefixLength(p netip.Prefix) int {
	if p.Addr().Is4() {
		return p.Bits()
	}
	return 128 + p.Bits()
}

// inPodRange reports whether an address is one that nodes give their pods.
func (x *index) inPodRange(a netip.Addr) bool {
	for l := range x.lengths {
		if a.Is4() != (l < 128) {
			continue
		}
		if !a.Is4() {
			l -= 128
		}
		if p, err := a.Prefix(l); err == nil && x.ranges[p] > 0 {
			return true
		}
	}
	return false
}

// setNamespace takes a namespace's labels.
func (x *index) setNamespace(n *namespaceObject) {
	x.Lock()
	defer x.Unlock()
	if len(n.labels) == 0 {
		delete(x.labels, n.name)
	} else {
		x.labels[n.name] = n.labels
	}
}

// setAccount takes a service account's cloud identity.
func (x *index) setAccount(a *accountObject) {
	x.Lock()
	defer x.Unlock()
	if a.identity == "" {
		delete(x.accounts, a.key())
	} else {
		x.accounts[a.key()] = a.identity
	}
}

// setSlice takes an EndpointSlice's newest state.
func (x *index) setSlice(s *sliceObject) {
	x.Lock()
	defer x.Unlock()
	x.replaceSlice(x.slices[s.uid], s, time.Now().UnixNano())
	x.slices[s.uid] = s
}

// deleteSlice ends what an EndpointSlice said.
func (x *index) deleteSlice(s *sliceObject, at time.Time) {
	x.Lock()
	defer x.Unlock()
	x.replaceSlice(x.slices[s.uid], nil, at.UnixNano())
	delete(x.slices, s.uid)
}

// replaceSlice ends the memberships of a former state that the new one does
// not have, and begins those that it adds.
func (x *index) replaceSlice(before, now *sliceObject, at int64) {
	if before != nil {
		for _, uid := range before.pods {
			ms := x.members[uid]
			for i := range ms {
				if m := &ms[i]; m.slice.uid == before.uid && m.until == 0 {
					m.until = at
				}
			}
			if x.pods[uid] == nil { // never shown, or forgotten
				x.dropMemberships(uid, before.uid)
			}
		}
		for i := range x.api {
			if e := &x.api[i]; e.slice.uid == before.uid && e.until == 0 {
				e.until = at
			}
		}
	}
	if now == nil {
		return
	}
	for _, uid := range now.pods {
		ms := x.members[uid]
		i := slices.IndexFunc(ms, func(m membership) bool { return m.slice.uid == now.uid && sameService(m.slice, now) })
		if i >= 0 {
			ms[i] = membership{slice: now}
			continue
		}
		if len(ms) >= maxMemberships { // the oldest that has ended, or the oldest
			i := max(0, slices.IndexFunc(ms, func(m membership) bool { return m.until != 0 }))
			ms = slices.Delete(ms, i, i+1)
		}
		x.members[uid] = append(ms, membership{slice: now})
	}
	if len(now.api) > 0 {
		x.api = slices.DeleteFunc(x.api, func(e apiEndpoint) bool {
			return e.until != 0 && e.until < at-int64(x.keep)
		})
		if len(x.api) >= maxAPIEndpoints {
			x.api = slices.Delete(x.api, 0, 1)
		}
		x.api = append(x.api, apiEndpoint{slice: now})
	}
}

// sameService reports whether two states of a slice say the same of a pod in
// both.
func sameService(a, b *sliceObject) bool {
	return a.service == b.service && a.all == b.all && slices.Equal(a.ports, b.ports)
}

func (x *index) dropMemberships(pod, slice string) {
	ms := slices.DeleteFunc(x.members[pod], func(m membership) bool { return m.slice.uid == slice })
	if len(ms) == 0 {
		delete(x.members, pod)
	} else {
		x.members[pod] = ms
	}
}

// setHolder gives h the addresses it has and ends its hold on those it had.
func (x *index) setHolder(h holder, had, has []address, at time.Time) {
	for _, a := range has {
		hs := x.holders[a]
		if i := slices.IndexFunc(hs, func(o holder) bool { return o.uid == h.uid }); i >= 0 {
			hs[i] = h
		} else {
			hs = append(hs, h)
		}
		slices.SortStableFunc(hs, func(p, q holder) int { return cmp.Compare(q.since, p.since) })
		x.holders[a] = hs[:min(len(hs), maxAddressHolders)]
	}
	for _, a := range had {
		if slices.Contains(has, a) {
			continue
		}
		for i := range x.holders[a] {
			if o := &x.holders[a][i]; o.uid == h.uid && o.until == 0 {
				o.until = at.UnixNano()
				x.bury(grave{kind: graveAddress, uid: h.uid, address: a}, at)
				break
			}
		}
	}
}

// bury notes something deleted, and forgets what was deleted long ago or is
// too much.
func (x *index) bury(g grave, at time.Time) {
	g.until = at.Add(x.keep)
	x.graves = append(x.graves, g)
	x.forget(time.Now())
}

// expire forgets what was deleted long ago.
func (x *index) expire() {
	x.Lock()
	defer x.Unlock()
	x.forget(time.Now())
}

func (x *index) forget(now time.Time) {
	for len(x.graves) > 0 && (len(x.graves) > x.max || !now.Before(x.graves[0].until)) {
		g := x.graves[0]
		x.graves[0] = grave{}
		x.graves = x.graves[1:]
		switch g.kind { // unless it came back meanwhile
		case gravePod:
			if p := x.pods[g.uid]; p != nil && p.deleted {
				x.forgetPod(p)
			}
		case graveOwner:
			if o := x.owners[g.uid]; o != nil && o.deleted {
				delete(x.owners, g.uid)
			}
		case graveOther:
			if o := x.others[g.uid]; o != nil && o.deleted {
				delete(x.others, g.uid)
				for token, n := range x.places { // few go, and rarely
					if n.uid == g.uid {
						x.setRanges(n, nil)
						delete(x.places, token)
					}
				}
			}
		case graveAddress:
			hs := slices.DeleteFunc(x.holders[g.address], func(h holder) bool { return h.uid == g.uid && h.until != 0 })
			if len(hs) == 0 {
				delete(x.holders, g.address)
			} else {
				x.holders[g.address] = hs
			}
		}
	}
}

func (x *index) forgetPod(p *pod) {
	delete(x.pods, p.uid)
	for _, in := range p.instances {
		if x.containers[in.id] == p.uid {
			delete(x.containers, in.id)
		}
	}
	if x.static[p.hash] == p.uid {
		delete(x.static, p.hash)
	}
	ms := slices.DeleteFunc(x.members[p.uid], func(m membership) bool { return m.until != 0 })
	if len(ms) == 0 {
		delete(x.members, p.uid)
	} else {
		x.members[p.uid] = ms
	}
}

// find returns the pod of a pod UID or else of a container id, or nil.
func (x *index) find(podUID, containerID string) *pod {
	if podUID != "" {
		if p := x.pods[podUID]; p != nil {
			return p
		}
		if p := x.pods[x.static[podUID]]; p != nil {
			return p
		}
	}
	if containerID != "" {
		return x.pods[x.containers[containerID]]
	}
	return nil
}

// running is find for the pod of a process. A pod without a node is none: what
// is known of it is from before it ran.
func (x *index) running(podUID, containerID string) *pod {
	if p := x.find(podUID, containerID); p != nil && p.node != "" {
		return p
	}
	return nil
}

// traced is running for a pod whose workload is known too: the ReplicaSet or Job
// between them may be shown after the pod.
func (x *index) traced(podUID, containerID string) *pod {
	p := x.running(podUID, containerID)
	if p == nil || x.owners[p.controller.uid] != nil || p.controller.uid == "" {
		return p
	}
	switch {
	case p.controller.kind == "Job", p.controller.kind == "ReplicaSet" && p.templateHash == "":
		return nil
	}
	return p
}

// knowsAll reports whether all these pods and their workloads are known.
func (x *index) knowsAll(ws []wanted) bool {
	x.RLock()
	defer x.RUnlock()
	for _, w := range ws {
		if x.traced(w.podUID, w.containerID) == nil {
			return false
		}
	}
	return true
}

// workload returns the kind and name of a pod's workload: what controls the pod,
// or its ReplicaSet or Job.
func (x *index) workload(p *pod) (kind, name string) {
	r := x.workloadRef(p)
	return r.kind, r.name
}

func (x *index) workloadRef(p *pod) ref {
	r := p.controller
	if r.kind == "" || r.kind == "Node" { // a static pod's mirror is owned by its node
		return ref{kind: "Pod", name: p.name}
	}
	for range maxOwners {
		if r.kind != "ReplicaSet" && r.kind != "Job" {
			break
		}
		o := x.owners[r.uid]
		if o == nil && r.kind == "ReplicaSet" {
			// A Deployment's ReplicaSet may be known later than its pods, or
			// be gone before them; its name is made of these two.
			if d, ok := strings.CutSuffix(r.name, p.templateHash); ok && p.templateHash != "" {
				if d, ok := strings.CutSuffix(d, "-"); ok && d != "" {
					return ref{kind: "Deployment", name: d}
				}
			}
		}
		if o == nil || o.controller.kind == "" {
			break
		}
		r = o.controller
	}
	return r
}

// owner returns the kind and name of what is at the top of a pod's workload;
// empty when nothing controls that.
func (x *index) owner(p *pod) (kind, name string) {
	workload := x.workloadRef(p)
	r := workload
	for range maxOwners {
		o := x.owners[r.uid]
		if o == nil || o.controller.kind == "" {
			break
		}
		r = o.controller
	}
	if r == workload {
		return "", ""
	}
	return r.kind, r.name
}

// Kinds of network peers.
const (
	kindPod       = "pod"
	kindService   = "service"
	kindNode      = "node"
	kindAPIServer = "api_server"
	kindMetadata  = "metadata"
	kindLoopback  = "loopback"
	kindPrivate   = "private"
	kindOutside   = "outside"
)

// metadataAddresses are those at which clouds give out credentials and
// instance data, and what answers there: those of every instance are
// documented by AWS (also ECS and EKS Pod Identity), Azure (also the wire
// server), Google, Alibaba and Oracle.
var metadataAddresses = func() map[address]string {
	out := make(map[address]string)
	for ip, name := range map[string]string{
		"169.254.169.254": "instance metadata", "fd00:ec2::254": "instance metadata", "fd20:ce::254": "instance metadata",
		"100.100.100.200": "instance metadata", "192.0.0.192": "instance metadata",
		"169.254.170.2": "task credentials", "169.254.170.23": "pod identity", "fd00:ec2::23": "pod identity",
		"168.63.129.16": "wire server",
	} {
		out[netip.MustParseAddr(ip).As16()] = name
	}
	return out
}()

// sharedRange is the address space of RFC 6598, which clouds use for pods.
var sharedRange = netip.MustParsePrefix("100.64.0.0/10")

// wellKnown returns what an address is whatever the cluster has.
func wellKnown(a address) (kind, name string) {
	if name, ok := metadataAddresses[a]; ok {
		return kindMetadata, name
	}
	if netip.AddrFrom16(a).Unmap().IsLoopback() {
		return kindLoopback, ""
	}
	return "", ""
}

// elsewhere returns what an address is that nothing known had.
func (x *index) elsewhere(a address) string {
	ip := netip.AddrFrom16(a).Unmap()
	switch {
	case ip.IsUnspecified() || ip.IsMulticast():
		return ""
	case ip.IsPrivate() || ip.IsLinkLocalUnicast() || sharedRange.Contains(ip) || x.inPodRange(ip):
		return kindPrivate
	}
	return kindOutside
}

// during reports whether a time (ns since the epoch; 0: now) is one at which
// something was that began at since and ended at until (0: it is still), give
// or take peerSlack.
func during(at, since, until int64) bool {
	if at == 0 {
		return until == 0
	}
	return since-int64(peerSlack) <= at && (until == 0 || at <= until+int64(peerSlack))
}

// holderOf returns what had an address at a time, or nil. An address may go
// from one pod to the next within a second, and start times are cut to whole
// ones: the newest that had begun for certain; else the oldest that may have,
// because it has been there for longer; else what had it about then.
func (x *index) holderOf(a address, at int64) *holder {
	hs := x.holders[a] // newest first
	var may, about *holder
	for i := range hs {
		h := &hs[i]
		has := h.until == 0 || at <= h.until
		switch {
		case !during(at, h.since, h.until):
		case at == 0 || has && h.since+int64(time.Second) <= at:
			if may == nil || at == 0 {
				return h
			}
			if h.until != 0 { // the newer one may have begun, this one had not ended
				return h
			}
			return may
		case has && h.since <= at:
			may = h
		case about == nil:
			about = h
		}
	}
	if may != nil {
		return may
	}
	return about
}

// isAPIServer reports whether the API server was at an address and port.
func (x *index) isAPIServer(a address, port uint16, at int64) bool {
	if x.configured.port == port && x.configured.address == a && port != 0 {
		return true
	}
	for i := range x.api {
		e := &x.api[i]
		if during(at, 0, e.until) && slices.Contains(e.slice.api, a) && (e.slice.all || slices.Contains(e.slice.ports, port)) {
			return true
		}
	}
	return false
}

// peer returns what had an address at a time (ns since the epoch; 0: now), and
// appends to services those that a pod was behind at that port.
func (x *index) peer(a address, port uint16, at int64, services []string) (kind, name string, _ []string) {
	if kind, name := wellKnown(a); kind != "" {
		return kind, name, services
	}
	h := x.holderOf(a, at)
	switch {
	case h != nil && h.kind == kindService && h.name == apiServerName:
		return kindAPIServer, h.name, services
	case (h == nil || h.kind != kindService) && x.isAPIServer(a, port, at):
		if h != nil {
			return kindAPIServer, h.name, services
		}
		return kindAPIServer, "", services
	case h == nil:
		return x.elsewhere(a), "", services
	}
	if h.kind == kindPod {
		for i := range x.members[h.uid] {
			if m := &x.members[h.uid][i]; during(at, 0, m.until) && (m.slice.all || slices.Contains(m.slice.ports, port)) && !slices.Contains(services, m.slice.service) {
				services = append(services, m.slice.service)
			}
		}
	}
	return h.kind, h.name, services
}

// counts returns how many pods are known and how many of them are deleted.
func (x *index) counts() (pods, deleted int) {
	x.RLock()
	defer x.RUnlock()
	for _, g := range x.graves {
		if g.kind == gravePod {
			deleted++
		}
	}
	return len(x.pods), deleted
}

// broadcast wakes everybody who waits.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait returns a channel that the next signal closes.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) signal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// identity returns the cloud identity of a pod's service account.
func (x *index) identity(p *pod) string {
	if len(x.accounts) == 0 || p.serviceAccount == "" {
		return ""
	}
	var key [512]byte // no allocation: the key is not kept
	k := append(append(append(key[:0], p.namespace...), '/'), p.serviceAccount...)
	return x.accounts[string(k)]
}
