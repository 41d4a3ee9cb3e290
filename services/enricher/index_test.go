package enricher

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"picket/internal/batch"
)

func ip(last byte) address { return batch.IPv4([4]byte{10, 0, 0, last}) }

func TestWorkload(t *testing.T) {
	for _, tt := range []struct {
		name       string
		owners     map[string]ref // controller by uid
		controller ref
		labels     map[string]string
		kind, top  string
	}{
		{name: "bare pod", kind: "Pod", top: "p"},
		{name: "static pod", controller: ref{"Node", "n1", "node"}, kind: "Pod", top: "p"},
		{name: "deployment", owners: map[string]ref{"rs": {"Deployment", "web", "d"}}, controller: ref{"ReplicaSet", "web-7d9f8", "rs"}, kind: "Deployment", top: "web"},
		{name: "deployment, replica set not known", controller: ref{"ReplicaSet", "web-7d9f8", "rs"}, labels: map[string]string{"pod-template-hash": "7d9f8"}, kind: "Deployment", top: "web"},
		{name: "hash label of another replica set", controller: ref{"ReplicaSet", "web-7d9f8", "rs"}, labels: map[string]string{"pod-template-hash": "other"}, kind: "ReplicaSet", top: "web-7d9f8"},
		{name: "hash label leaves no name", controller: ref{"ReplicaSet", "-7d9f8", "rs"}, labels: map[string]string{"pod-template-hash": "7d9f8"}, kind: "ReplicaSet", top: "-7d9f8"},
		{name: "bare replica set", owners: map[string]ref{"rs": {}}, controller: ref{"ReplicaSet", "rs-1", "rs"}, labels: map[string]string{"pod-template-hash": "1"}, kind: "ReplicaSet", top: "rs-1"},
		{name: "replica set of a rollout", owners: map[string]ref{"rs": {"Rollout", "canary", "r"}}, controller: ref{"ReplicaSet", "canary-1", "rs"}, kind: "Rollout", top: "canary"},
		{name: "cron job", owners: map[string]ref{"job": {"CronJob", "backup", "c"}}, controller: ref{"Job", "backup-2946", "job"}, kind: "CronJob", top: "backup"},
		{name: "job", owners: map[string]ref{"job": {}}, controller: ref{"Job", "once", "job"}, kind: "Job", top: "once"},
		{name: "job not known", controller: ref{"Job", "once", "job"}, kind: "Job", top: "once"},
		{name: "daemon set", controller: ref{"DaemonSet", "agent", "ds"}, kind: "DaemonSet", top: "agent"},
		{name: "stateful set", controller: ref{"StatefulSet", "db", "ss"}, kind: "StatefulSet", top: "db"},
		{name: "custom owner", controller: ref{"Workflow", "etl", "w"}, kind: "Workflow", top: "etl"},
		{name: "owners in a circle", owners: map[string]ref{"a": {"Job", "b", "b"}, "b": {"Job", "a", "a"}}, controller: ref{"Job", "a", "a"}, kind: "Job", top: "a"},
		{name: "same name, another uid", owners: map[string]ref{"older": {"CronJob", "backup", "c"}}, controller: ref{"Job", "backup-1", "newer"}, kind: "Job", top: "backup-1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := newIndex(time.Minute, 10)
			for uid, c := range tt.owners {
				x.setOwner(uid, c)
			}
			kind, top := x.workload(&pod{name: "p", controller: tt.controller, labels: labelPairs(tt.labels)})
			if kind != tt.kind || top != tt.top {
				t.Errorf("got %s %s, want %s %s", kind, top, tt.kind, tt.top)
			}
		})
	}
}

// TestDeletedIsKept: what is deleted stays known for the stated time and then
// leaves nothing behind.
func TestDeletedIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newIndex(10*time.Minute, 100)
		now := time.Now().UnixNano()
		x.setOwner("rs", ref{"Deployment", "web", "d"})
		x.setPod(&pod{uid: "u", namespace: "a", name: "p", hash: "h", controller: ref{"ReplicaSet", "web-1", "rs"}, since: now,
			instances: []instance{{"c1", container{name: "app"}}}, addresses: []address{ip(1)}})
		x.setPod(&pod{uid: "u", namespace: "a", name: "p", hash: "h", controller: ref{"ReplicaSet", "web-1", "rs"}, since: now,
			instances: []instance{{"c2", container{name: "app"}}}, addresses: []address{ip(2)}}) // restarted, with another address
		x.setOther("s", "service", "a/s", now, []address{ip(3)})
		time.Sleep(time.Minute)
		x.deletePod("u")
		x.deletePod("u")
		x.deleteOwner("rs")
		x.deleteOwner("never seen")
		x.deleteOther("s")
		x.deletePod("never seen")

		time.Sleep(9*time.Minute + 59*time.Second)
		x.expire()
		for _, key := range [][2]string{{"u", ""}, {"h", ""}, {"", "c1"}, {"", "c2"}, {"unknown", "c2"}} {
			p := x.find(key[0], key[1])
			if p == nil || p.uid != "u" || !p.deleted {
				t.Fatalf("find(%q): %+v", key, p)
			}
			if kind, name := x.workload(p); kind != "Deployment" || name != "web" {
				t.Errorf("workload %s %s", kind, name)
			}
		}
		if pods, deleted := x.counts(); pods != 1 || deleted != 1 {
			t.Errorf("%d pods, %d deleted", pods, deleted)
		}
		if kind, name := x.peer(ip(3), now+int64(30*time.Second)); kind != "service" || name != "a/s" {
			t.Errorf("peer %s %s", kind, name)
		}
		time.Sleep(2 * time.Second)
		x.expire()
		if n := len(x.pods) + len(x.static) + len(x.containers) + len(x.owners) + len(x.others) + len(x.holders) + len(x.graves); n != 0 {
			t.Errorf("left behind: %+v", x)
		}
	})
}

func TestDeletedIsBounded(t *testing.T) {
	x := newIndex(time.Hour, 100)
	for i := range 1000 {
		uid := fmt.Sprint(i)
		x.setPod(&pod{uid: uid, instances: []instance{{"c" + uid, container{}}}, addresses: []address{ip(byte(i))}, since: int64(i)})
		x.deletePod(uid)
	}
	if len(x.graves) != 100 || len(x.pods) > 100 || len(x.containers) != len(x.pods) || len(x.holders) > 100 {
		t.Errorf("%d graves, %d pods, %d containers, %d addresses", len(x.graves), len(x.pods), len(x.containers), len(x.holders))
	}
	if x.find("999", "") == nil || x.find("0", "") != nil {
		t.Error("the newest must stay, the oldest go")
	}
}

// TestComesBack: an API server that answers from an older state shows objects
// again that it had shown as deleted; they are not forgotten then.
func TestComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newIndex(time.Minute, 100)
		set := func() {
			x.setPod(&pod{uid: "u", addresses: []address{ip(1)}})
			x.setOwner("o", ref{"Deployment", "d", "d"})
			x.setOther("n", "node", "n1", 0, []address{ip(2)})
		}
		set()
		x.deletePod("u")
		x.deleteOwner("o")
		x.deleteOther("n")
		set()
		time.Sleep(2 * time.Minute)
		x.expire()
		if x.find("u", "") == nil || x.owners["o"] == nil || x.others["n"] == nil || len(x.holders) != 2 {
			t.Errorf("forgotten: %+v", x)
		}
	})
}

func TestInstances(t *testing.T) {
	x := newIndex(time.Minute, 10)
	set := func(in ...instance) { x.setPod(&pod{uid: "u", instances: in}) }
	image := func(id string) string {
		if p := x.find("", id); p != nil {
			return p.instance(id).image + p.instance(id).digest
		}
		return "unknown"
	}
	set(instance{"c1", container{image: "a"}})
	set(instance{"c1", container{image: "a", digest: "1"}})
	set(instance{"c1", container{image: "b", digest: "2"}}) // the spec was changed, c1 still runs
	if image("c1") != "a1" {
		t.Errorf("c1 has %s", image("c1"))
	}
	set(instance{"c2", container{image: "b", digest: "2"}})
	if image("c1") != "a1" || image("c2") != "b2" {
		t.Errorf("c1 has %s, c2 %s", image("c1"), image("c2"))
	}
	for i := range 2 * maxContainerIDs {
		set(instance{fmt.Sprint("loop", i), container{digest: "x"}})
	}
	if len(x.containers) != maxContainerIDs || image("c1") != "unknown" || image(fmt.Sprint("loop", 2*maxContainerIDs-1)) != "x" {
		t.Errorf("%d container ids", len(x.containers))
	}
}

// TestStaticHash: the hash of a static pod is an annotation, which a user may
// write too; the pod that had it first keeps it, until it is gone.
func TestStaticHash(t *testing.T) {
	x := newIndex(time.Minute, 10)
	x.setPod(&pod{uid: "evil", hash: "h", created: 200})
	x.setPod(&pod{uid: "mirror", hash: "h", created: 100})
	x.setPod(&pod{uid: "evil", hash: "h", created: 200})
	if p := x.find("h", ""); p.uid != "mirror" {
		t.Errorf("hash leads to %s", p.uid)
	}
	x.setPod(&pod{uid: "evil2", hash: "mirror", created: 1})
	if p := x.find("mirror", ""); p.uid != "mirror" {
		t.Error("a hash must not hide a pod's own UID")
	}
	x.deletePod("mirror")
	x.setPod(&pod{uid: "mirror2", hash: "h", created: 300})
	if p := x.find("h", ""); p.uid != "mirror2" {
		t.Errorf("hash leads to %s", p.uid)
	}
}

// TestPeer: an address is what it was at the time of the event.
func TestPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newIndex(time.Hour, 100)
		second := int64(time.Second)
		start := time.Now().UnixNano()
		at := func(s int64) int64 { return start + s*second }
		sleepTo := func(s int64) { time.Sleep(time.Until(time.Unix(0, at(s)))) }
		set := func(uid string, since int64, ended bool) {
			x.setPod(&pod{uid: uid, namespace: "ns", name: uid, addresses: []address{ip(1)}, since: since, ended: ended})
		}
		set("finished long ago", at(-1000), true)
		set("a", at(0), false)
		sleepTo(100)
		set("a", at(0), true) // a job's pod: done, and still there
		sleepTo(110)
		set("b", at(110), false)
		sleepTo(200)
		x.deletePod("b")
		sleepTo(210)
		set("c", at(210), false)
		x.setOther("svc", "service", "ns/svc", at(0), []address{ip(2)})
		for _, tt := range []struct {
			at         int64
			kind, name string
		}{
			{at(-100), "", ""}, {at(50), "pod", "ns/a"}, {at(101), "pod", "ns/a"}, {at(105), "", ""},
			{at(150), "pod", "ns/b"}, {at(206), "", ""}, {at(211), "pod", "ns/c"}, {at(500), "pod", "ns/c"}, {0, "pod", "ns/c"},
		} {
			if kind, name := x.peer(ip(1), tt.at); kind != tt.kind || name != tt.name {
				t.Errorf("at %d s: %s %s, want %s %s", (tt.at-start)/second, kind, name, tt.kind, tt.name)
			}
		}
		if kind, name := x.peer(ip(2), at(50)); kind != "service" || name != "ns/svc" {
			t.Errorf("%s %s", kind, name)
		}
		if kind, _ := x.peer(ip(9), at(50)); kind != "" {
			t.Errorf("unknown address is a %s", kind)
		}
		for i := range 20 {
			set(fmt.Sprint("more", i), at(int64(300+i)), false)
		}
		if n := len(x.holders[ip(1)]); n != maxAddressHolders {
			t.Errorf("%d holders of one address", n)
		}
	})
}

func TestBroadcast(t *testing.T) {
	var b broadcast
	b.signal() // nobody waits
	first, second := b.wait(), b.wait()
	select {
	case <-first:
		t.Fatal("woken by an earlier signal")
	default:
	}
	b.signal()
	<-first
	<-second
	select {
	case <-b.wait():
		t.Error("woken without a signal")
	default:
	}
}
