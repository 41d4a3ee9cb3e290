package detector

import (
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"picket/internal/batch"
	"picket/schemas"
)

// unresolved is an exec of a shell in a pod that was not known.
func unresolved(t *testing.T, n int, pod, container string) []byte {
	b := batch.NewBuilder(schemas.Process, schemas.Columns(schemas.Process))
	b.Bytes16(schemas.EventID, schemas.Hash128("unresolved", strconv.Itoa(n)))
	b.Str(schemas.Action, "exec")
	b.Str(schemas.Syscall, "execve")
	b.Str(schemas.Cluster, "prod")
	b.Str(schemas.Node, "n1")
	b.Int64(schemas.EventTime, time.Now().UnixNano())
	b.Str(schemas.ProcessName, "bash")
	b.Str(schemas.PodUID, pod)
	b.Str(schemas.ContainerID, container)
	b.Str(schemas.Join, "unresolved")
	b.EndRow()
	return encoded(t, b)
}

// correction is what the enricher says of pod u1 later.
func correction(t *testing.T, pod, container string) []byte {
	b := batch.NewBuilder(schemas.Correction, schemas.Columns(schemas.Correction))
	b.Bytes16(schemas.EventID, schemas.Hash128("correction", pod, container))
	b.Str(schemas.Action, "correction")
	b.Str(schemas.Cluster, "prod")
	b.Str(schemas.Node, "n1")
	b.Int64(schemas.EventTime, time.Now().UnixNano())
	b.Str(schemas.PodUID, pod)
	b.Str(schemas.ContainerID, container)
	b.Str(schemas.PodName, "web-1")
	b.Str(schemas.Namespace, "shop")
	b.Str(schemas.WorkloadKind, "Deployment")
	b.Str(schemas.WorkloadName, "web")
	b.Str(schemas.ContainerImage, "registry.example.com/web")
	b.Str(schemas.ContainerImageTag, "v1")
	b.EndRow()
	return encoded(t, b)
}

var correctionSubject = schemas.EventsSubject("prod", "_enricher", schemas.Correction)

// TestCorrection: an alert of a pod that was not known gets a revision with
// what is known later, whichever of the two comes first, and one only.
func TestCorrection(t *testing.T) {
	f := start(t)
	stop := f.run()
	defer stop()
	f.send(processSubject, unresolved(t, 1, "u1", "c1"))
	f.settled()
	f.send(correctionSubject, correction(t, "other", "c1"))
	f.send(correctionSubject, correction(t, "u1", "another"))
	f.settled()
	if n := len(f.stored(schemas.StreamAlerts)); n != 1 {
		t.Fatalf("%d findings before the correction", n)
	}
	f.send(correctionSubject, correction(t, "u1", "c1"))
	f.settled()
	// One that comes after its correction is amended at once; a second
	// correction has nothing left to do.
	f.send(processSubject, unresolved(t, 2, "u1", "c1"))
	f.settled()
	f.send(correctionSubject, correction(t, "u1", "c1"))
	f.settled()
	got := map[string][]uint32{}
	for _, m := range f.stored(schemas.StreamAlerts) {
		a := finding(t, m)
		got[a.FindingInfo.UID] = append(got[a.FindingInfo.UID], a.Metadata.Sequence)
		if a.Metadata.Sequence == 1 {
			continue
		}
		if a.Unmapped.Pod != "web-1" || a.Unmapped.Namespace != "shop" || a.Unmapped.Workload != "Deployment/web" || a.ActivityID != 2 ||
			a.Device.Container.Image.Name != "registry.example.com/web" || a.Evidences[0].Data["k8s_join"] != "corrected" || a.Evidences[0].Data["k8s_workload_name"] != "web" {
			t.Errorf("revision %d: %+v", a.Metadata.Sequence, a)
		}
		if want := "(known later: pod=shop/web-1 workload=Deployment/web)"; a.Message[len(a.Message)-len(want):] != want {
			t.Errorf("message %q", a.Message)
		}
	}
	if len(got) != 2 {
		t.Fatalf("%d alerts", len(got))
	}
	for id, revisions := range got {
		if d := cmp.Diff([]uint32{1, 2}, revisions); d != "" {
			t.Errorf("%s: %s", id, d)
		}
	}
	kv, err := f.admin.JS.KeyValue(t.Context(), schemas.BucketState)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := kv.ListKeysFiltered(t.Context(), uncorrectedPrefix+">")
	if err != nil {
		t.Fatal(err)
	}
	for k := range keys.Keys() {
		t.Errorf("%s is left", k)
	}
}
