package enricher

import (
	"encoding/json"
	"strings"

	"github.com/apache/arrow/go/v16/arrow/array"

	"picket/internal/batch"
	"picket/schemas"
)

// outcome is what the join made of an event.
type outcome uint8

const (
	outcomeHost        outcome = iota // not in a pod
	outcomeResolved                   // the pod is known
	outcomeUnknown                    // in a pod that the API server has not shown
	outcomeNotSynced                  // the metadata was not complete yet
	outcomeNoCluster                  // there is no Kubernetes API for the event's cluster
	outcomeForeignNode                // the pod is known, on another node than the event's
	numOutcomes
)

var outcomeNames = [numOutcomes]string{"host", "resolved", "unknown_pod", "not_synced", "no_cluster", "foreign_node"}

// The values of the column k8s_join.
const (
	joinHost       = "host"
	joinResolved   = "resolved"
	joinUnresolved = "unresolved"
)

func (o outcome) join() string {
	switch o {
	case outcomeHost:
		return joinHost
	case outcomeResolved:
		return joinResolved
	}
	return joinUnresolved
}

// metadata is what an Enricher joins with.
type metadata struct {
	*index
	cluster string // token of the cluster that the index describes
	synced  func() bool
}

// stats is what one Enrich did, in rows.
type stats struct {
	outcomes         [numOutcomes]int
	unknownContainer int // pod known, container not
	overwritten      int // cluster or node was not that of the subject
}

// Enricher joins batches with Kubernetes metadata. It is used by one goroutine
// at a time and keeps its memory between batches.
type Enricher struct {
	meta *metadata // nil: no cluster

	builders map[schemas.Class]*batch.Builder
	targets  []target          // the distinct actors of the batch
	rows     []uint16          // actor of each row
	seen     map[uint64]uint16 // actor by dictionary entries of pod UID and container id
	services []string          // scratch
	decoder  batch.Decoder
	encoder  batch.Encoder
	last     stats
}

// target is a distinct actor of a batch and what is known of it.
type target struct {
	podUID, containerID string
	firstRow            int

	outcome outcome
	// What is not known is empty.
	podName, namespace, serviceAccount string
	workloadKind, workloadName         string
	ownerKind, ownerName               string
	labels, annotations, ofNamespace   []string
	identity                           string
	container                          container
	unknownContainer                   bool // the pod is known, the container not

	// Names of the event's cluster and node, where more may be known of it later.
	cluster, nodeName string
}

// later reports whether more may be known of the actor when the API server has
// shown its pod, or its container.
func (t *target) later() bool {
	return t.outcome == outcomeUnknown || t.outcome == outcomeNotSynced || t.outcome == outcomeResolved && t.unknownContainer && t.container.name == ""
}

// New returns an Enricher without a cluster: events of the host are marked as
// such, events from pods as unresolved.
func New() *Enricher { return newEnricher(nil) }

func newEnricher(m *metadata) *Enricher {
	return &Enricher{meta: m, builders: map[schemas.Class]*batch.Builder{}, seen: map[uint64]uint16{}}
}

// Enrich returns b with the columns that the registry marks as enriched.
// cluster and node are subject tokens: those that the batch was published
// under, which its sender's credentials allow. A row that claims another
// cluster or node gets the token instead; enriched columns that the sender
// wrote are dropped, but for what it says of containers that Kubernetes has not
// shown (schemas.Field.Sensed). The result shares memory with b and the
// Enricher: it is valid until the next Enrich.
func (e *Enricher) Enrich(b *batch.Batch, cluster, node string) (*batch.Batch, error) {
	e.last = stats{}
	b, err := e.pin(b, cluster, node)
	if err != nil {
		return nil, err
	}
	if len(enrichedColumns[b.Class()]) == 0 {
		return b.Select(schemas.Columns(b.Class())), nil
	}
	e.actors(b)
	e.resolve(b, cluster, node)
	return b.Join(e.fill(b, cluster, node))
}

var enrichedColumns = columnsByClass(func(f *schemas.Field) bool { return f.Enriched })

// pin makes cluster and node of every row those of the subject.
func (e *Enricher) pin(b *batch.Batch, cluster, node string) (*batch.Batch, error) {
	for _, f := range []struct {
		id    schemas.FieldID
		token string
	}{{schemas.Cluster, cluster}, {schemas.Node, node}} {
		if agrees(b, f.id, f.token) {
			continue
		}
		fix := batch.NewBuilder(b.Class(), []schemas.FieldID{f.id})
		for r := range b.Rows() {
			v, ok := pinned(b.Str(f.id, r), f.token)
			if !ok {
				e.last.overwritten++
			}
			fix.Str(f.id, v)
			fix.EndRow()
		}
		var err error
		if b, err = b.Join(fix); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// pinned returns the name to believe: what the sender wrote, if its subject
// token is the one that it may publish under, or else that token.
func pinned(claimed, token string) (name string, ok bool) {
	if schemas.Token(claimed) == token {
		return claimed, true
	}
	return token, false
}

// agrees reports whether all rows have a name of that token; false may be a
// false alarm.
func agrees(b *batch.Batch, id schemas.FieldID, token string) bool {
	c, ok := b.Column(id).(*array.Dictionary)
	if !ok || c.NullN() > 0 {
		return false
	}
	names := c.Dictionary().(*array.String)
	for i := range names.Len() {
		if _, ok := pinned(names.Value(i), token); !ok {
			return false
		}
	}
	return true
}

// entries returns the dictionary entry of each row of a Name column, and
// the column; both are nil where the batch lacks it.
func entries(b *batch.Batch, id schemas.FieldID) (entries []uint16, c *array.Dictionary) {
	c, ok := b.Column(id).(*array.Dictionary)
	if !ok {
		return nil, nil
	}
	return c.Indices().(*array.Uint16).Uint16Values(), c
}

// actors finds the distinct pairs of pod UID and container id.
func (e *Enricher) actors(b *batch.Batch) {
	e.targets, e.rows = e.targets[:0], e.rows[:0]
	clear(e.seen)
	pods, podCol := entries(b, schemas.PodUID)
	conts, contCol := entries(b, schemas.ContainerID)
	lastKey, last := uint64(0), uint16(0)
	for r := range b.Rows() {
		p, c := uint64(0), uint64(0) // no value
		if pods != nil && podCol.IsValid(r) {
			p = 1 + uint64(pods[r])
		}
		if conts != nil && contCol.IsValid(r) {
			c = 1 + uint64(conts[r])
		}
		key := p<<32 | c
		if r == 0 || key != lastKey {
			n, ok := e.seen[key]
			if !ok {
				n = uint16(len(e.targets))
				e.seen[key] = n
				e.targets = append(e.targets, target{podUID: b.Str(schemas.PodUID, r), containerID: b.Str(schemas.ContainerID, r), firstRow: r})
			}
			lastKey, last = key, n
		}
		e.rows = append(e.rows, last)
	}
}

// covers reports whether the events of a cluster are to be joined.
func (m *metadata) covers(cluster string) bool { return m != nil && cluster == m.cluster }

// resolve finds out what the actors are.
func (e *Enricher) resolve(b *batch.Batch, cluster, node string) {
	audit := b.Class() == schemas.Audit
	synced := true
	covered := e.meta.covers(cluster)
	if covered {
		synced = e.meta.synced()
		e.meta.RLock()
		defer e.meta.RUnlock()
	}
	for i := range e.targets {
		t := &e.targets[i]
		var p *pod
		if covered {
			p = e.meta.running(t.podUID, t.containerID)
		}
		switch {
		case p == nil && t.podUID == "":
			t.outcome = outcomeHost
		case !covered:
			t.outcome = outcomeNoCluster
		case p == nil && !synced:
			t.outcome = outcomeNotSynced
		case p == nil:
			t.outcome = outcomeUnknown
		case e.meta.describe(t, p, node, b.Str(schemas.ContainerName, t.firstRow), audit):
			t.outcome = outcomeResolved
		default:
			t.outcome = outcomeForeignNode
		}
		if !audit && t.outcome != outcomeForeignNode {
			t.sensed(b)
		}
		if t.later() {
			t.cluster, t.nodeName = b.Str(schemas.Cluster, t.firstRow), node
			if audit {
				t.nodeName = ""
			}
		}
		if audit && t.podUID != "" && t.outcome != outcomeResolved {
			t.podName, t.namespace, t.serviceAccount = tokenPod(b, t.firstRow)
		}
	}
}

// describe takes what is known of a pod. It returns false if the pod runs on
// another node than the event's: one node cannot speak for another's pods. name
// is the container's, if its runtime tells. It needs the read lock.
func (m *metadata) describe(t *target, p *pod, node, name string, audit bool) bool {
	if !audit && !strings.EqualFold(p.node, node) {
		return false
	}
	t.podName, t.namespace, t.serviceAccount, t.labels, t.annotations = p.name, p.namespace, p.serviceAccount, p.labels, p.annotations
	t.workloadKind, t.workloadName = m.workload(p)
	t.ownerKind, t.ownerName = m.owner(p)
	t.ofNamespace, t.identity = m.labels[p.namespace], m.identity(p)
	if c := p.instance(t.containerID); c != nil {
		t.container = *c
	} else if c := p.specOf(name); c != nil && t.containerID != "" {
		// The kubelet has not reported it yet; the runtime says which it is.
		t.container = *c
	}
	t.unknownContainer = t.containerID != "" && t.container.name == ""
	return true
}

// write sets the columns that say what the actor is.
func (t *target) write(out *batch.Builder) {
	out.Str(schemas.PodName, t.podName)
	out.Str(schemas.Namespace, t.namespace)
	out.Str(schemas.ServiceAccount, t.serviceAccount)
	out.Str(schemas.WorkloadKind, t.workloadKind)
	out.Str(schemas.WorkloadName, t.workloadName)
	out.Str(schemas.OwnerKind, t.ownerKind)
	out.Str(schemas.OwnerName, t.ownerName)
	out.Pairs(schemas.PodLabels, t.labels)
	out.Pairs(schemas.PodAnnotations, t.annotations)
	out.Pairs(schemas.NamespaceLabels, t.ofNamespace)
	out.Str(schemas.CloudIdentity, t.identity)
	out.Str(schemas.K8sContainerName, t.container.name)
	out.Str(schemas.ContainerImage, t.container.image)
	out.Str(schemas.ContainerImageTag, t.container.tag)
	out.Str(schemas.ContainerImageHash, t.container.digest)
	out.Bool(schemas.ContainerPriv, t.container.privileged)
}

// sensed takes what the container runtime says, by the sensor, where Kubernetes
// says nothing.
func (t *target) sensed(b *batch.Batch) {
	if t.containerID == "" {
		return
	}
	word := func(id schemas.FieldID) string { return b.Str(id, t.firstRow) }
	if t.container.image == "" && t.container.digest == "" {
		t.container.image, t.container.tag, t.container.digest = word(schemas.ContainerImage), word(schemas.ContainerImageTag), word(schemas.ContainerImageHash)
	}
	if t.podUID == "" {
		return
	}
	if t.container.name == "" {
		t.container.name = word(schemas.ContainerName)
	}
	if t.outcome != outcomeResolved {
		t.podName, t.namespace = word(schemas.PodName), word(schemas.Namespace)
	}
}

// tokenPod returns what the API server itself says, in an audit event, of the
// pod whose token made the call.
func tokenPod(b *batch.Batch, row int) (pod, namespace, serviceAccount string) {
	var extra struct {
		Pod []string `json:"authentication.kubernetes.io/pod-name"`
	}
	if json.Unmarshal([]byte(b.Str(schemas.AuditUserExtra, row)), &extra) == nil && len(extra.Pod) == 1 {
		pod = extra.Pod[0]
	}
	if user, ok := strings.CutPrefix(b.Str(schemas.AuditUser, row), "system:serviceaccount:"); ok {
		namespace, serviceAccount, _ = strings.Cut(user, ":")
	}
	return pod, namespace, serviceAccount
}

// fill builds the enriched columns.
func (e *Enricher) fill(b *batch.Batch, cluster, node string) *batch.Builder {
	out := e.builders[b.Class()]
	if out == nil {
		out = batch.NewBuilder(b.Class(), enrichedColumns[b.Class()])
		e.builders[b.Class()] = out
	}
	out.Reset()
	covered, synced := e.meta.covers(cluster), false
	var at place
	if covered {
		synced = e.meta.synced()
		e.meta.RLock()
		defer e.meta.RUnlock()
		if n := e.meta.places[node]; n != nil && b.Class() != schemas.Audit {
			at = n.place
		}
	}
	for r, n := range e.rows {
		t := &e.targets[n]
		e.last.outcomes[t.outcome]++
		if t.unknownContainer {
			e.last.unknownContainer++
		}
		out.Str(schemas.Join, t.outcome.join())
		t.write(out)
		out.Str(schemas.NodeZone, at.zone)
		out.Str(schemas.NodeRegion, at.region)
		out.Str(schemas.NodeType, at.instanceType)
		if b.Class() == schemas.Network {
			e.peer(out, b, r, covered, synced)
		}
		out.EndRow()
	}
	return out
}

// peer says what the remote address of a row is.
func (e *Enricher) peer(out *batch.Builder, b *batch.Batch, row int, covered, synced bool) {
	a, ok := b.Bytes16(schemas.NetPeerAddress, row)
	if !ok {
		return
	}
	kind, name := "", ""
	e.services = e.services[:0]
	if covered {
		kind, name, e.services = e.meta.peer(a, uint16(b.Uint(schemas.NetPeerPort, row)), b.Int(schemas.EventTime, row), e.services)
		if !synced && (kind == kindPrivate || kind == kindOutside) {
			kind = "" // it may be something that is not known yet
		}
	} else {
		kind, name = wellKnown(a)
	}
	out.Str(schemas.PeerKind, kind)
	out.Str(schemas.PeerName, name)
	out.List(schemas.PeerServices, e.services)
}

// wanted is a pod that a batch has an event of, by its UID and a container's id.
type wanted struct{ podUID, containerID string }

// missing returns the pods of a batch that the metadata should have and does
// not have yet.
func (e *Enricher) missing(b *batch.Batch, cluster string) []wanted {
	c, ok := b.Column(schemas.PodUID).(*array.Dictionary)
	if !ok || !e.meta.covers(cluster) || !e.meta.synced() {
		return nil
	}
	e.meta.RLock()
	defer e.meta.RUnlock()
	uids := c.Dictionary().(*array.String)
	known := true
	for i := range uids.Len() {
		known = known && (uids.Value(i) == "" || e.meta.traced(uids.Value(i), "") != nil)
	}
	if known {
		return nil
	}
	e.actors(b)
	var out []wanted
	for _, t := range e.targets {
		if t.podUID != "" && e.meta.traced(t.podUID, t.containerID) == nil {
			out = append(out, wanted{strings.Clone(t.podUID), strings.Clone(t.containerID)})
		}
	}
	return out
}
