package enricher

import (
	"cmp"
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
	maxContainerIDs   = 64
	maxOwners         = 4
	maxAddressHolders = 4
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
	uid, namespace, name, serviceAccount string

	node       string // token of the node's name, as in subjects
	hash       string // of a static pod: its uid for the kubelet, and in cgroup paths
	created    int64  // ns since the epoch
	controller ref
	labels     []string // key, value, key, value, … by key
	instances  []instance
	addresses  []address // none when it shares the node's
	since      int64     // ns since the epoch, from when the addresses are its own
	ended      bool      // will not run again: its addresses are free
	deleted    bool
}

func (p *pod) instance(id string) *container {
	for i := range p.instances {
		if p.instances[i].id == id {
			return &p.instances[i].container
		}
	}
	return nil
}

func (p *pod) label(key string) string {
	for i := 0; i+1 < len(p.labels); i += 2 {
		if p.labels[i] == key {
			return p.labels[i+1]
		}
	}
	return ""
}

// holder is an object that has, or had, an address.
type holder struct {
	uid, kind, name string
	since, until    int64 // ns since the epoch; until is 0 while it has it
}

// index answers what a pod UID, a container id or an address is. Deleted
// objects stay known for a time, bounded in number. It is safe for concurrent
// use; resolve and peer need the read lock.
type index struct {
	keep time.Duration
	max  int

	sync.RWMutex
	pods       map[string]*pod      // by uid
	static     map[string]string    // uid by config hash
	containers map[string]string    // uid of the pod by container id
	owners     map[string]*owner    // by uid of the ReplicaSet or Job
	others     map[string]*other    // by uid of the service or node
	holders    map[address][]holder // newest first
	graves     []grave              // oldest first

	// changed is signalled when a pod is new or has new containers.
	changed broadcast
}

// owner is a ReplicaSet or Job between a pod and its top owner.
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
	uid     string
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
	}
}

// setPod takes a pod's newest state.
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
	var has []address
	if !p.ended {
		has = p.addresses
	}
	var had []address
	if old != nil {
		had = old.addresses
	}
	x.setHolder(holder{uid: p.uid, kind: "pod", name: p.namespace + "/" + p.name, since: p.since}, had, has)
	x.Unlock()
	x.changed.signal()
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

// deletePod marks a pod as deleted; it stays known for a time.
func (x *index) deletePod(uid string) {
	x.Lock()
	defer x.Unlock()
	old := x.pods[uid]
	if old == nil || old.deleted {
		return
	}
	p := *old
	p.deleted = true
	x.pods[uid] = &p
	x.setHolder(holder{uid: uid}, p.addresses, nil)
	x.bury(grave{kind: gravePod, uid: uid})
}

// setOwner takes the controller of a ReplicaSet or Job.
func (x *index) setOwner(uid string, controller ref) {
	x.Lock()
	defer x.Unlock()
	x.owners[uid] = &owner{controller: controller}
}

// deleteOwner marks a ReplicaSet or Job as deleted.
func (x *index) deleteOwner(uid string) {
	x.Lock()
	defer x.Unlock()
	if o := x.owners[uid]; o != nil && !o.deleted {
		o.deleted = true
		x.bury(grave{kind: graveOwner, uid: uid})
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
	x.setHolder(holder{uid: uid, kind: kind, name: name, since: since}, had, addresses)
	x.others[uid] = &other{addresses: addresses}
}

// deleteOther marks a service or node as deleted.
func (x *index) deleteOther(uid string) {
	x.Lock()
	defer x.Unlock()
	if o := x.others[uid]; o != nil && !o.deleted {
		o.deleted = true
		x.setHolder(holder{uid: uid}, o.addresses, nil)
		x.bury(grave{kind: graveOther, uid: uid})
	}
}

// setHolder gives h the addresses it has and ends its hold on those it had.
func (x *index) setHolder(h holder, had, has []address) {
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
	now := time.Now().UnixNano()
	for _, a := range had {
		if slices.Contains(has, a) {
			continue
		}
		for i := range x.holders[a] {
			if o := &x.holders[a][i]; o.uid == h.uid && o.until == 0 {
				o.until = now
				x.bury(grave{kind: graveAddress, uid: h.uid, address: a})
				break
			}
		}
	}
}

// bury notes something deleted, and forgets what was deleted long ago or is
// too much.
func (x *index) bury(g grave) {
	now := time.Now()
	g.until = now.Add(x.keep)
	x.graves = append(x.graves, g)
	x.forget(now)
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

// knowsAll reports whether all these pods are known.
func (x *index) knowsAll(ws []wanted) bool {
	x.RLock()
	defer x.RUnlock()
	for _, w := range ws {
		if x.find(w.podUID, w.containerID) == nil {
			return false
		}
	}
	return true
}

// workload returns the kind and name of the top owner of a pod.
func (x *index) workload(p *pod) (kind, name string) {
	r := p.controller
	if r.kind == "" || r.kind == "Node" { // a static pod's mirror is owned by its node
		return "Pod", p.name
	}
	for range maxOwners {
		o := x.owners[r.uid]
		if o == nil && r.kind == "ReplicaSet" {
			// A Deployment's ReplicaSet may be known later than its pods, or
			// be gone before them; its name is made of these two.
			if hash := p.label("pod-template-hash"); hash != "" {
				if d, ok := strings.CutSuffix(r.name, "-"+hash); ok && d != "" {
					return "Deployment", d
				}
			}
		}
		if o == nil || o.controller.kind == "" {
			break
		}
		r = o.controller
	}
	return r.kind, r.name
}

// peer returns what had an address at a time (ns since the epoch; 0: now).
func (x *index) peer(a address, at int64) (kind, name string) {
	for i := range x.holders[a] {
		h := &x.holders[a][i]
		if at == 0 && h.until == 0 || at != 0 && h.since-int64(peerSlack) <= at && (h.until == 0 || at <= h.until+int64(peerSlack)) {
			return h.kind, h.name
		}
	}
	return "", ""
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
