package enricher

import (
	"bytes"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow/go/v16/arrow"
	"github.com/apache/arrow/go/v16/arrow/array"
	"github.com/apache/arrow/go/v16/arrow/ipc"
	"github.com/apache/arrow/go/v16/arrow/memory"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"picket/internal/batch"
	"picket/schemas"
)

// testMetadata is a cluster "test" with the pod of webPod, a static pod, a
// service and a node.
func testMetadata(synced bool) *metadata {
	x := newIndex(time.Minute, 100)
	x.setOwner("rs", ref{"Deployment", "web", "d"})
	x.setPod(testReader().pod(webPod()))
	x.setPod(testReader().pod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "etcd-n1", Namespace: "kube-system", UID: "mirror", Annotations: map[string]string{annotationHash: "hash", annotationMirror: "hash"},
			OwnerReferences: []metav1.OwnerReference{{Kind: "Node", Name: "n1", UID: "n1", Controller: yes()}}},
		Spec:   corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "etcd", Image: "registry.k8s.io/etcd:3.6"}}},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "etcd", ContainerID: "containerd://etcd1"}}},
	}))
	x.setOther("s", "service", "shop/web", 0, []address{ip(2)})
	x.setNode(&nodeObject{head: head{uid: "n", name: "node1.example.com"}, addresses: []address{ip(3)}})
	return &metadata{index: x, cluster: "test", synced: func() bool { return synced }}
}

// enriched returns the enriched columns of a row that have a value.
func enriched(b *batch.Batch, row int) map[string]string {
	out := map[string]string{}
	for _, id := range enrichedColumns[b.Class()] {
		v := b.Str(id, row)
		if b.Bool(id, row) {
			v = "true"
		}
		for k, l := range b.Map(id, row) {
			v += k + "=" + l + " "
		}
		if v != "" {
			out[id.String()] = v
		}
	}
	return out
}

func TestEnrich(t *testing.T) {
	web := func(more ...string) map[string]string {
		out := map[string]string{"k8s_join": "resolved", "k8s_pod_name": "web-1-a", "k8s_namespace_name": "shop", "k8s_service_account_name": "web",
			"k8s_workload_kind": "Deployment", "k8s_workload_name": "web", "k8s_pod_labels": "a=1 b=2 "}
		for i := 0; i+1 < len(more); i += 2 {
			out[more[i]] = more[i+1]
		}
		return out
	}
	app := web("k8s_container_name", "app", "container_image_name", "registry.example.com/app", "container_image_tag", "v1", "container_image_digest", digest, "container_privileged", "true")
	etcd := map[string]string{"k8s_join": "resolved", "k8s_pod_name": "etcd-n1", "k8s_namespace_name": "kube-system", "k8s_workload_kind": "Pod", "k8s_workload_name": "etcd-n1",
		"k8s_container_name": "etcd", "container_image_name": "registry.k8s.io/etcd", "container_image_tag": "3.6"}
	unresolved := map[string]string{"k8s_join": "unresolved"}
	host := map[string]string{"k8s_join": "host"}
	const extra = `{"authentication.kubernetes.io/pod-name":["gone-1"],"authentication.kubernetes.io/pod-uid":["gone"]}`
	for _, tt := range []struct {
		name          string
		class         schemas.Class
		cluster, node string // default test, node1_example_com
		meta          *metadata
		ev            event
		want          map[string]string
		outcome       outcome
	}{
		{name: "host", want: host, outcome: outcomeHost},
		{name: "container outside Kubernetes", ev: event{containerID: "docker1"}, want: host, outcome: outcomeHost},
		{name: "pod and container", ev: event{podUID: "u1", containerID: "app2"}, want: app, outcome: outcomeResolved},
		{name: "container id alone", ev: event{containerID: "app2"}, want: app, outcome: outcomeResolved},
		{name: "another UID, known container", ev: event{podUID: "not a uid", containerID: "app2"}, want: app, outcome: outcomeResolved},
		{name: "sandbox", ev: event{podUID: "u1", containerID: "pause"}, want: web(), outcome: outcomeResolved},
		{name: "container of another pod", ev: event{podUID: "u1", containerID: "etcd1"}, want: web(), outcome: outcomeResolved},
		{name: "static pod", node: "n1", ev: event{podUID: "hash", containerID: "etcd1"}, want: etcd, outcome: outcomeResolved},
		{name: "static pod by its mirror's UID", node: "n1", ev: event{podUID: "mirror", containerID: "etcd1"}, want: etcd, outcome: outcomeResolved},
		{name: "unknown pod", ev: event{podUID: "new", containerID: "c"}, want: unresolved, outcome: outcomeUnknown},
		{name: "not synced, unknown", meta: testMetadata(false), ev: event{podUID: "new"}, want: unresolved, outcome: outcomeNotSynced},
		{name: "not synced, known", meta: testMetadata(false), ev: event{podUID: "u1", containerID: "app2"}, want: app, outcome: outcomeResolved},
		{name: "pod of another node", node: "n2", ev: event{podUID: "u1", containerID: "app2"}, want: unresolved, outcome: outcomeForeignNode},
		{name: "node in capitals", node: "NODE1_example_com", ev: event{podUID: "u1", containerID: "app2"}, want: app, outcome: outcomeResolved},
		{name: "another cluster", cluster: "other", ev: event{podUID: "u1", containerID: "app2"}, want: unresolved, outcome: outcomeNoCluster},
		{name: "another cluster's host", cluster: "other", want: host, outcome: outcomeHost},

		{name: "file", class: schemas.File, ev: event{podUID: "u1", containerID: "app2"}, want: app, outcome: outcomeResolved},
		{name: "connect to a service", class: schemas.Network, ev: event{peer: ip(2), time: 2000e9}, want: map[string]string{"k8s_join": "host", "network_peer_kind": "service", "network_peer_name": "shop/web"}},
		{name: "connect to a node", class: schemas.Network, ev: event{peer: ip(3), time: 2000e9}, want: map[string]string{"k8s_join": "host", "network_peer_kind": "node", "network_peer_name": "node1.example.com"}},
		{name: "connect to a pod", class: schemas.Network, ev: event{peer: ip(1), time: 2000e9}, want: map[string]string{"k8s_join": "host", "network_peer_kind": "pod", "network_peer_name": "shop/web-1-a"}},
		{name: "connect to a pod before it was", class: schemas.Network, ev: event{peer: ip(1), time: 900e9}, want: map[string]string{"k8s_join": "host", "network_peer_kind": "private"}},
		{name: "connect outside", class: schemas.Network, ev: event{peer: batch.IPv4([4]byte{8, 8, 8, 8}), time: 2000e9}, want: map[string]string{"k8s_join": "host", "network_peer_kind": "outside"}},
		{name: "connect outside, not synced", class: schemas.Network, meta: testMetadata(false), ev: event{peer: batch.IPv4([4]byte{8, 8, 8, 8}), time: 2000e9}, want: host},
		{name: "another cluster's metadata address", class: schemas.Network, cluster: "other", ev: event{peer: batch.IPv4([4]byte{169, 254, 169, 254})}, want: map[string]string{"k8s_join": "host", "network_peer_kind": "metadata", "network_peer_name": "instance metadata"}},
		{name: "sandbox named by the runtime", ev: event{podUID: "u1", containerID: "early", name: "starting"}, want: web("k8s_container_name", "starting", "container_image_name", "docker.io/library/b", "container_image_tag", "latest"), outcome: outcomeResolved},
		{name: "another cluster's addresses", class: schemas.Network, cluster: "other", ev: event{peer: ip(2), time: 2000e9}, want: host},

		{name: "a person's call", class: schemas.Audit, ev: event{user: "alice", extra: "{}"}, want: host},
		{name: "a pod's call", class: schemas.Audit, node: "webhook", ev: event{podUID: "u1", user: "system:serviceaccount:shop:web"}, want: web(), outcome: outcomeResolved},
		{name: "an unknown pod's call", class: schemas.Audit, ev: event{podUID: "gone", user: "system:serviceaccount:shop:web", extra: extra},
			want: map[string]string{"k8s_join": "unresolved", "k8s_pod_name": "gone-1", "k8s_namespace_name": "shop", "k8s_service_account_name": "web"}, outcome: outcomeUnknown},
		{name: "another cluster's pod's call", class: schemas.Audit, cluster: "other", ev: event{podUID: "u1", user: "system:serviceaccount:shop:web", extra: extra},
			want: map[string]string{"k8s_join": "unresolved", "k8s_pod_name": "gone-1", "k8s_namespace_name": "shop", "k8s_service_account_name": "web"}, outcome: outcomeNoCluster},
		{name: "extra that is no JSON", class: schemas.Audit, ev: event{podUID: "gone", user: "x", extra: `{"a`}, want: unresolved, outcome: outcomeUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			meta := tt.meta
			if meta == nil {
				meta = testMetadata(true)
			}
			cluster, node := "test", "node1_example_com"
			if tt.cluster != "" {
				cluster = tt.cluster
			}
			if tt.node != "" {
				node = tt.node
			}
			tt.ev.cluster, tt.ev.node = cluster, node
			e := newEnricher(meta)
			raw := build(tt.class, tt.ev)
			for range 2 { // its memory is used again
				got, err := e.Enrich(raw, cluster, node)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(tt.want, enriched(got, 0)); d != "" {
					t.Error(d)
				}
				if e.last.outcomes[tt.outcome] != 1 {
					t.Errorf("counted %v, want %s", e.last.outcomes, outcomeNames[tt.outcome])
				}
				if got.Str(schemas.PodUID, 0) != tt.ev.podUID || got.Str(schemas.Action, 0) != "exec" {
					t.Error("the raw columns changed")
				}
			}
		})
	}
}

// TestEnrichMixed: every row gets its own actor's columns.
func TestEnrichMixed(t *testing.T) {
	e := newEnricher(testMetadata(true))
	pods := []event{{}, {podUID: "u1", containerID: "app2"}, {podUID: "u1", containerID: "init1"}, {podUID: "new"}, {containerID: "docker"}, {podUID: "u1"}}
	want := []string{"host  ", "resolved web-1-a app", "resolved web-1-a init", "unresolved  ", "host  ", "resolved web-1-a "}
	var rows []event
	for i := range 500 {
		rows = append(rows, pods[i*i%len(pods)])
	}
	got, err := e.Enrich(build(schemas.Process, rows...), "test", "node1_example_com")
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		s := strings.Join([]string{got.Str(schemas.Join, i), got.Str(schemas.PodName, i), got.Str(schemas.K8sContainerName, i)}, " ")
		if s != want[i*i%len(pods)] || got.Uint(schemas.ProcessPID, i) != uint64(i+1) {
			t.Fatalf("row %d: %q, want %q", i, s, want[i*i%len(pods)])
		}
	}
	if n := e.last.unknownContainer; n != 0 {
		t.Errorf("%d events of unknown containers", n)
	}
}

// TestEnrichDropsForged: columns that the enricher adds do not pass from a
// sender, whatever the class and outcome.
func TestEnrichDropsForged(t *testing.T) {
	for _, c := range schemas.Classes() { // but that of corrections, which no sender may send
		if c == schemas.Correction {
			continue
		}
		var all []schemas.FieldID // of other classes too
		for id := range schemas.FieldID(schemas.NumFields()) {
			if !id.Field().Stored {
				all = append(all, id)
			}
		}
		b := batch.NewBuilder(c, all)
		b.Str(schemas.Cluster, "test")
		b.Str(schemas.Node, "n")
		for _, id := range all {
			if f := id.Field(); f.Enriched && f.Type == schemas.Name {
				b.Str(id, "forged")
			}
		}
		b.Pairs(schemas.PodLabels, []string{"forged", "forged"})
		b.Bool(schemas.ContainerPriv, true)
		b.EndRow()
		got, err := New().Enrich(b.Batch(), "test", "n")
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"k8s_join": "host"}
		if c == schemas.Health {
			want = map[string]string{}
		}
		if d := cmp.Diff(want, enriched(got, 0)); d != "" {
			t.Errorf("%s: %s", c, d)
		}
		if got.Column(schemas.PodName) != nil {
			t.Errorf("%s: a column without a value stands", c)
		}
	}
}

// TestEnrichSensed: what the sensor read of the runtime's state stands where
// Kubernetes says nothing, and only there.
func TestEnrichSensed(t *testing.T) {
	type want = map[string]string
	says := want{"k8s_pod_name": "said-pod", "k8s_namespace_name": "said-ns", "k8s_container_name": "said", "container_image_name": "r.io/said", "container_image_tag": "1"}
	of := func(join string, names ...string) want {
		out := want{"k8s_join": join}
		for _, n := range names {
			out[n] = says[n]
		}
		return out
	}
	image := []string{"container_image_name", "container_image_tag"}
	everything := append([]string{"k8s_pod_name", "k8s_namespace_name", "k8s_container_name"}, image...)
	resolved := want{"k8s_join": "resolved", "k8s_pod_name": "web-1-a", "k8s_namespace_name": "shop", "k8s_service_account_name": "web", "k8s_workload_kind": "Deployment", "k8s_workload_name": "web", "k8s_pod_labels": "a=1 b=2 "}
	known := maps.Clone(resolved)
	maps.Copy(known, want{"k8s_container_name": "app", "container_image_name": "registry.example.com/app", "container_image_tag": "v1", "container_image_digest": digest, "container_privileged": "true"})
	starting := maps.Clone(resolved)
	maps.Copy(starting, of("resolved", append(image, "k8s_container_name")...))
	for _, tt := range []struct {
		name, node, pod, container string
		meta                       *metadata
		class                      schemas.Class
		want                       want
		unknown                    int
	}{
		{name: "host", want: of("host")},
		{name: "container outside Kubernetes", container: "docker1", want: of("host", image...)},
		{name: "Kubernetes knows better", pod: "u1", container: "app2", want: known},
		{name: "container that the kubelet has not reported", pod: "u1", container: "new", want: starting, unknown: 1},
		{name: "unknown pod", pod: "new", container: "c", want: of("unresolved", everything...)},
		{name: "not synced", meta: testMetadata(false), pod: "new", container: "c", want: of("unresolved", everything...)},
		{name: "another node's pod", node: "n2", pod: "u1", container: "app2", want: of("unresolved")},
		{name: "audit", class: schemas.Audit, pod: "new", want: of("unresolved")},
	} {
		meta := tt.meta
		if meta == nil {
			meta = testMetadata(true)
		}
		node := tt.node
		if node == "" {
			node = "node1_example_com"
		}
		b := batch.NewBuilder(tt.class, schemas.Columns(tt.class))
		b.Str(schemas.Cluster, "test")
		b.Str(schemas.Node, node)
		b.Str(schemas.PodUID, tt.pod)
		b.Str(schemas.PodName, says["k8s_pod_name"])
		b.Str(schemas.Namespace, says["k8s_namespace_name"])
		b.Str(schemas.K8sContainerName, "forged")
		if tt.class != schemas.Audit {
			b.Str(schemas.ContainerID, tt.container)
			b.Str(schemas.ContainerName, says["k8s_container_name"])
			b.Str(schemas.ContainerImage, says["container_image_name"])
			b.Str(schemas.ContainerImageTag, says["container_image_tag"])
		}
		b.EndRow()
		e := newEnricher(meta)
		got, err := e.Enrich(b.Batch(), "test", node)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tt.want, enriched(got, 0)); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
		if e.last.unknownContainer != tt.unknown {
			t.Errorf("%s: %d of an unknown container", tt.name, e.last.unknownContainer)
		}
	}
}

// TestEnrichForeignEncoding: batches of other encoders have nulls, and equal
// entries in a dictionary.
func TestEnrichForeignEncoding(t *testing.T) {
	name := schemas.PodUID.Field().ArrowType().(*arrow.DictionaryType)
	column := func(id schemas.FieldID, values []string, index []uint16, valid []bool) (arrow.Field, arrow.Array) {
		vb := array.NewStringBuilder(memory.DefaultAllocator)
		vb.AppendValues(values, nil)
		ib := array.NewUint16Builder(memory.DefaultAllocator)
		ib.AppendValues(index, valid)
		return arrow.Field{Name: id.String(), Type: name, Nullable: true}, array.NewDictionaryArray(name, ib.NewArray(), vb.NewArray())
	}
	f1, uid := column(schemas.PodUID, []string{"u1", "u1", "new"}, []uint16{0, 1, 0, 2}, []bool{true, true, false, true})
	f2, cluster := column(schemas.Cluster, []string{"test", "elsewhere"}, []uint16{0, 0, 0, 1}, []bool{true, false, true, true})
	md := arrow.NewMetadata([]string{schemas.MetadataClass}, []string{"process"})
	rec := array.NewRecord(arrow.NewSchema([]arrow.Field{f1, f2}, &md), []arrow.Array{uid, cluster}, 4)
	var buf bytes.Buffer
	w := ipc.NewWriter(&buf, ipc.WithSchema(rec.Schema()))
	if err := w.Write(rec); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := batch.Decode(buf.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	e := newEnricher(testMetadata(true))
	if missing := e.missing(raw, "test"); len(missing) != 1 || missing[0].podUID != "new" {
		t.Errorf("missing %v", missing)
	}
	got, err := e.Enrich(raw, "test", "node1_example_com")
	if err != nil {
		t.Fatal(err)
	}
	for r, want := range []string{"resolved", "resolved", "host", "unresolved"} {
		if s := got.Str(schemas.Join, r); s != want {
			t.Errorf("row %d is %s, want %s", r, s, want)
		}
		if s := got.Str(schemas.Cluster, r) + got.Str(schemas.Node, r); s != "testnode1_example_com" {
			t.Errorf("row %d is of %s", r, s)
		}
	}
	if e.last.overwritten != 2+4 {
		t.Errorf("%d names overwritten", e.last.overwritten)
	}
}

func TestPin(t *testing.T) {
	for _, tt := range []struct {
		claimed, token, want string
		overwritten          int
	}{
		{"prod", "prod", "prod", 0},
		{"eu.prod", "eu_prod", "eu.prod", 0},
		{"eu_prod", "eu_prod", "eu_prod", 0},
		{"", "_", "", 0},
		{"", "prod", "prod", 1},
		{"other", "prod", "prod", 1},
		{"prod ", "prod", "prod", 1},
		{"Prod", "prod", "prod", 1},
	} {
		e := New()
		got, err := e.Enrich(build(schemas.Health, event{cluster: tt.claimed, node: "n"}), tt.token, "n")
		if err != nil {
			t.Fatal(err)
		}
		if s := got.Str(schemas.Cluster, 0); s != tt.want || e.last.overwritten != tt.overwritten {
			t.Errorf("%q under %q: %q, %d overwritten", tt.claimed, tt.token, s, e.last.overwritten)
		}
	}
}

// FuzzTrust: whatever subject and payload say, every row of the result is of
// the subject's cluster and node, and a name that fits its subject stays.
func FuzzTrust(f *testing.F) {
	f.Add("picket.raw.c.n.process", "c", "n", "x", "y")
	f.Add("picket.raw.eu_prod.node1_example.audit", "eu.prod", "node1.example", "", "\xff")
	f.Add("picket.raw._._.health", "", "", "*", ">")
	f.Add("picket.events.c.process.1", "c", "n", "c", "n")
	meta := testMetadata(true)
	f.Fuzz(func(t *testing.T, subject, c1, n1, c2, n2 string) {
		cluster, node, class, err := schemas.ParseRawSubject(subject)
		if err != nil {
			return
		}
		raw := build(class, event{cluster: c1, node: n1, podUID: "u1"}, event{cluster: c2, node: n2}, event{cluster: c1, node: n2})
		got, err := newEnricher(meta).Enrich(raw, cluster, node)
		if err != nil {
			t.Fatal(err)
		}
		for r := range 3 {
			for id, token := range map[schemas.FieldID]string{schemas.Cluster: cluster, schemas.Node: node} {
				was, is := raw.Str(id, r), got.Str(id, r)
				if schemas.Token(was) == token && is != was || schemas.Token(was) != token && is != token {
					t.Fatalf("%s of row %d was %q, is %q under %q", id, r, was, is, subject)
				}
			}
			if got.Str(schemas.PodName, r) != "" && class != schemas.Audit && !strings.EqualFold(node, "node1_example_com") {
				t.Fatalf("row %d of node %q has a pod of another", r, node)
			}
		}
		if to := schemas.EventsSubject(cluster, node, class); strings.Count(to, ".") != 4 {
			t.Fatalf("subject %q", to)
		}
	})
}

// TestEncodeLeavesOut: a batch that joining makes too large loses labels
// before anything else, and stays one message.
func TestEncodeLeavesOut(t *testing.T) {
	x := newIndex(time.Minute, 100)
	var rows []event
	for i := range 8000 {
		uid := benchUID(i)
		if i < 2000 {
			labels := map[string]string{}
			for l := range 10 {
				labels[benchUID(i*10+l)] = benchContainer(i * l)
			}
			x.setPod(&pod{head: head{uid: uid, name: "p", namespace: "n"}, node: "n", labels: testReader().pairs(labels, allowList{"*"})})
		}
		rows = append(rows, event{cluster: "test", node: "n", podUID: benchUID(i * 7 % 2000)})
	}
	e := newEnricher(&metadata{index: x, cluster: "test", synced: func() bool { return true }})
	joined, err := e.Enrich(build(schemas.Process, rows...), "test", "n")
	if err != nil {
		t.Fatal(err)
	}
	parts, leftOut, err := new(Enricher).encode(joined)
	if err != nil || len(parts) != 1 || leftOut != "labels" {
		t.Fatalf("%d parts, left out %q: %v", len(parts), leftOut, err)
	}
	got, err := batch.Decode(parts[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	if got.Str(schemas.PodName, 7) != "p" || len(maps.Collect(got.Map(schemas.PodLabels, 7))) != 0 || got.Rows() != 8000 {
		t.Error("more than the labels is gone")
	}
}

// TestEnrichDoesNotAllocatePerEvent compares batches of different length.
func TestEnrichDoesNotAllocatePerEvent(t *testing.T) {
	allocs := func(rows int) float64 {
		e := newEnricher(benchMetadata(30))
		raw := typical(schemas.Network, rows, 30)
		return testing.AllocsPerRun(20, func() {
			if _, err := e.Enrich(raw, "test", "n1"); err != nil {
				t.Fatal(err)
			}
		})
	}
	if short, long := allocs(500), allocs(4000); long > short+20 {
		t.Errorf("%v allocations for 500 rows, %v for 4000", short, long)
	}
}
