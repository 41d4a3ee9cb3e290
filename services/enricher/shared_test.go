package enricher

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"picket/internal/bus"
	"picket/internal/fault"
	"picket/schemas"
)

// everyKind is an object of every kind with a value in every field.
func everyKind() []kept {
	h := func(kind string) head { return head{uid: "uid-" + kind, namespace: "ns", name: kind, version: 77} }
	return []kept{
		&pod{head: h("pod"), serviceAccount: "sa", node: "n1", hash: "h", created: -5, controller: ref{"ReplicaSet", "rs", "rs-uid"}, templateHash: "7d", labels: []string{"a", "b"}, annotations: []string{"c", "d"},
			spec: []container{{"app", "img", "v1", "sha256:1", true}}, instances: []instance{{"c1", container{"app", "img", "v1", "", false}}}, addresses: []address{ip(1), {0: 0xfd}}, since: 99, ended: true},
		&ownerObject{h("owner"), ref{"Deployment", "d", "d-uid"}},
		&nodeObject{h("node"), 5, []address{ip(2)}, place{"z", "r", "t"}, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00::/64")}},
		&serviceObject{h("service"), 6, []address{ip(3)}},
		&sliceObject{h("slice"), "ns/s", []uint16{80, 65535}, true, []string{"p1", "p2"}, []address{ip(4)}},
		&namespaceObject{h("namespace"), []string{"x", "y"}},
		&accountObject{h("account"), "arn:aws:iam::1:role/x"},
	}
}

var allTypes = cmp.AllowUnexported(pod{}, head{}, ref{}, instance{}, container{}, ownerObject{}, nodeObject{}, place{}, serviceObject{}, sliceObject{}, namespaceObject{}, accountObject{})

var comparePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestCodec(t *testing.T) {
	var w words
	for _, o := range everyKind() {
		data, body := (&record{o, 77, 123}).encode(nil)
		r, at, err := decodeRecord(data, &w)
		if err != nil || r.version != 77 || r.deleted != 123 || at != body {
			t.Errorf("%T: %+v, %d of %d, %v", o, r, at, body, err)
		}
		if d := cmp.Diff(o, r.object, allTypes, comparePrefixes); d != "" {
			t.Error(d)
		}
		for n := range len(data) { // cut anywhere
			if _, _, err := decodeRecord(data[:n], &w); !errors.Is(err, errFormat) || !fault.IsPermanent(err) {
				t.Errorf("%T cut to %d of %d bytes: %v", o, n, len(data), err)
			}
		}
		if _, _, err := decodeRecord(append(data, 0), &w); err == nil {
			t.Error("bytes after the end pass")
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	for _, o := range everyKind() {
		data, _ := (&record{o, 77, 123}).encode(nil)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var w words
		r, _, err := decodeRecord(data, &w)
		if err != nil {
			return
		}
		again, _ := r.encode(nil)
		r2, _, err := decodeRecord(again, &w)
		if err != nil {
			t.Fatal(err)
		}
		if twice, _ := r2.encode(nil); !bytes.Equal(again, twice) {
			t.Errorf("%x is read as another object than %x", twice, again)
		}
		x := newIndex(time.Minute, 10)
		x.set(r.object)
		x.remove(r.object, time.Unix(0, r.deleted))
	})
}

// bucketHas returns the keys that the bucket has a value for, without the
// cluster, and their bytes.
func bucketHas(t *testing.T, b *bus.Bus) (keys []string, size int) {
	t.Helper()
	kv, err := b.JS.KeyValue(t.Context(), schemas.BucketMetadata)
	if err != nil {
		t.Fatal(err)
	}
	w, err := kv.WatchAll(t.Context(), jetstream.IgnoreDeletes())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Stop() }()
	for e := range w.Updates() {
		if e == nil {
			break
		}
		keys = append(keys, e.Key()[len("test."):])
		size += len(e.Value())
	}
	slices.Sort(keys)
	return keys, size
}

func has(t *testing.T, b *bus.Bus, key string) bool {
	keys, _ := bucketHas(t, b)
	return slices.Contains(keys, key)
}

// TestReplicaIsRightAtOnce: a replica that starts while the API server is away
// knows what another had, with what was deleted before; it takes what the other
// learns, and its own informers' word when they have one.
func TestReplicaIsRightAtOnce(t *testing.T) {
	t.Parallel()
	cfg, b := startNATS(t)
	api := startAPI(t, cluster()...)
	cfg.Kubernetes = api.config()
	first, _ := serve(t, cfg)
	eventually(t, "the metadata is complete", first.watcher.synced)
	gone := simplePod("gone", "gone")
	api.Put(gone)
	eventually(t, "the pod is known", func() bool { return first.meta.workloadOf("gone") == "Pod/gone" })
	api.Delete(gone)
	eventually(t, "the bucket has all", func() bool {
		keys, _ := bucketHas(t, b)
		return len(keys) == len(cluster())+2 && slices.Contains(keys, "complete") && slices.Contains(keys, "p.gone")
	})
	before := time.Now()

	// Another replica, with an API server that is away.
	other := startAPI(t, cluster()...)
	away := cfg
	away.Kubernetes = other.config()
	other.Down()
	second, stop := serve(t, away)
	eventually(t, "the other replica is ready", func() bool { return second.synced() && second.ready() == nil })
	if took := time.Since(before); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if second.watcher.synced() {
		t.Error("complete by an API server that is away")
	}
	for uid, want := range map[string]string{"web": "Deployment/web", "backup": "CronJob/backup", "gone": "Pod/gone deleted"} {
		if got := second.meta.workloadOf(uid); got != want {
			t.Errorf("%s: %s, want %s", uid, got, want)
		}
	}
	second.meta.RLock()
	if kind, name, _ := second.meta.peer(ip(7), 80, 0, nil); kind != kindService || name != "ns/web" {
		t.Errorf("peer %s %s", kind, name)
	}
	second.meta.RUnlock()
	late := simplePod("late", "late")
	api.Put(late)
	eventually(t, "it learns from the other", func() bool { return second.meta.workloadOf("late") == "Pod/late" })

	// An event is joined with it.
	s := newSender(t, b)
	s.send("picket.raw.test.n1.process", encoded(t, schemas.Process, event{cluster: "test", node: "n1", podUID: "gone", containerID: "c-gone"}), 1)
	if got := drain(t, b, 1, 5*time.Second); len(got) != 1 || got[0].Str(schemas.PodName, 0) != "gone" {
		t.Error("the event of a pod that was deleted before is not resolved")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestReplicasWriteOnce: what several replicas are shown is written about once.
func TestReplicasWriteOnce(t *testing.T) {
	t.Parallel()
	cfg, b := startNATS(t)
	api := startAPI(t, cluster()...)
	cfg.Kubernetes = api.config()
	first, _ := serve(t, cfg)
	second, _ := serve(t, cfg)
	eventually(t, "both are complete", func() bool { return first.watcher.synced() && second.watcher.synced() })
	eventually(t, "the bucket is complete", func() bool { return has(t, b, "complete") })
	for range 5 {
		for i := range 40 {
			api.Put(simplePod(fmt.Sprint("p", i), fmt.Sprint("p", i)))
		}
		time.Sleep(flushEvery)
	}
	eventually(t, "all is written", func() bool {
		keys, _ := bucketHas(t, b)
		_, d1 := first.shared.counts()
		_, d2 := second.shared.counts()
		return len(keys) == len(cluster())+1+40 && d1+d2 == 0
	})
	writes := testutil.ToFloat64(first.metrics.metadataWrites) + testutil.ToFloat64(second.metrics.metadataWrites)
	conflicts := testutil.ToFloat64(first.metrics.metadataConflicts) + testutil.ToFloat64(second.metrics.metadataConflicts)
	// What does not change but in its resource version is not written again.
	if want := float64(len(cluster()) + 40); writes != want {
		t.Errorf("%v writes of %v objects", writes, want)
	}
	t.Logf("%v writes, %v lost to the other", writes, conflicts)
}

// TestGoneWhileAllWereAway: what was deleted while no replica ran is known as
// deleted when the API server has been asked.
func TestGoneWhileAllWereAway(t *testing.T) {
	t.Parallel()
	cfg, b := startNATS(t)
	api := startAPI(t, cluster()...)
	cfg.Kubernetes = api.config()
	first, stop := serve(t, cfg)
	eventually(t, "the bucket is complete", func() bool { return has(t, b, "complete") && has(t, b, "p.web") })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if first.meta.workloadOf("web") != "Deployment/web" {
		t.Fatal("not known")
	}
	api.Delete(simplePod("web-1-a", "web"))
	second, _ := serve(t, cfg)
	eventually(t, "it is known as deleted", func() bool { return second.meta.workloadOf("web") == "Deployment/web deleted" })
	if got := second.meta.workloadOf("backup"); got != "CronJob/backup" {
		t.Errorf("what is still there is %s", got)
	}
}

// TestDeletedLeavesTheBucket: a deleted object is there for deleted_kept.
func TestDeletedLeavesTheBucket(t *testing.T) {
	t.Parallel()
	cfg, b := startNATS(t)
	api := startAPI(t, cluster()...)
	cfg.Kubernetes = api.config()
	cfg.Kubernetes.DeletedKept = 2 * time.Second
	srv, _ := serve(t, cfg)
	eventually(t, "the bucket is complete", func() bool { return has(t, b, "complete") && has(t, b, "p.web") })
	api.Delete(simplePod("web-1-a", "web"))
	eventually(t, "its key is gone", func() bool { return !has(t, b, "p.web") })
	eventually(t, "nothing of it is left", func() bool {
		srv.shared.mu.Lock()
		defer srv.shared.mu.Unlock()
		return srv.shared.entries["web"] == nil && len(srv.shared.dirty) == 0
	})
}

// TestNewerFormat: a value of a newer version is left alone; a broken one is
// counted and written anew.
func TestNewerFormat(t *testing.T) {
	t.Parallel()
	cfg, b := startNATS(t)
	api := startAPI(t, cluster()...)
	cfg.Kubernetes = api.config()
	kv, err := b.JS.KeyValue(t.Context(), schemas.BucketMetadata)
	if err != nil {
		t.Fatal(err)
	}
	newer := []byte{formatVersion + 1, 'x'}
	for key, value := range map[string][]byte{"test.p.web": newer, "test.p.backup": []byte("\x01nonsense")} {
		if _, err := kv.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	srv, _ := serve(t, cfg)
	eventually(t, "the broken one is written anew", func() bool {
		e, err := kv.Get(t.Context(), "test.p.backup")
		return err == nil && e.Revision() > 2
	})
	if e, err := kv.Get(t.Context(), "test.p.web"); err != nil || !bytes.Equal(e.Value(), newer) {
		t.Errorf("the newer value was touched: %v", err)
	}
	if testutil.ToFloat64(srv.metrics.badValues) == 0 || srv.meta.workloadOf("web") != "Deployment/web" {
		t.Error("not counted, or not known")
	}
}
