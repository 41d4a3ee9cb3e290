package enricher

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
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
		owner      string // kind/name of what is above
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
		{name: "deployment of an operator", owners: map[string]ref{"rs": {"Deployment", "web", "d"}, "d": {"Shop", "main", "s"}}, controller: ref{"ReplicaSet", "web-7d9f8", "rs"}, kind: "Deployment", top: "web", owner: "Shop/main"},
		{name: "stateful set of an operator", owners: map[string]ref{"ss": {"Postgres", "db", "p"}}, controller: ref{"StatefulSet", "db", "ss"}, kind: "StatefulSet", top: "db", owner: "Postgres/db"},
		{name: "daemon sets in a circle", owners: map[string]ref{"a": {"DaemonSet", "b", "b"}, "b": {"DaemonSet", "a", "a"}}, controller: ref{"DaemonSet", "a", "a"}, kind: "DaemonSet", top: "a"},
		{name: "same name, another uid", owners: map[string]ref{"older": {"CronJob", "backup", "c"}}, controller: ref{"Job", "backup-1", "newer"}, kind: "Job", top: "backup-1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := newIndex(time.Minute, 10)
			for uid, c := range tt.owners {
				x.setOwner(uid, c)
			}
			p := &pod{head: head{name: "p"}, controller: tt.controller, templateHash: tt.labels[labelTemplateHash]}
			kind, top := x.workload(p)
			if kind != tt.kind || top != tt.top {
				t.Errorf("got %s %s, want %s %s", kind, top, tt.kind, tt.top)
			}
			if k, n := x.owner(p); strings.Trim(k+"/"+n, "/") != tt.owner {
				t.Errorf("owner %s %s, want %s", k, n, tt.owner)
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
		x.setSlice(&sliceObject{head: head{uid: "sl"}, service: "a/s", all: true, pods: []string{"u", "never shown"}})
		x.setNode(&nodeObject{head: head{uid: "n", name: "n.1"}, pods: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}})
		x.setPod(&pod{head: head{uid: "u", namespace: "a", name: "p"}, hash: "h", controller: ref{"ReplicaSet", "web-1", "rs"}, since: now,
			instances: []instance{{"c1", container{name: "app"}}}, addresses: []address{ip(1)}})
		x.setPod(&pod{head: head{uid: "u", namespace: "a", name: "p"}, hash: "h", controller: ref{"ReplicaSet", "web-1", "rs"}, since: now,
			instances: []instance{{"c2", container{name: "app"}}}, addresses: []address{ip(2)}}) // restarted, with another address
		x.setOther("s", "service", "a/s", now, []address{ip(3)})
		time.Sleep(time.Minute)
		x.deletePod("u", time.Now())
		x.deletePod("u", time.Now())
		x.deleteOwner("rs", time.Now())
		x.deleteOwner("never seen", time.Now())
		x.deleteOther("s", time.Now())
		x.remove(&nodeObject{head: head{uid: "n", name: "n.1"}}, time.Now())
		x.deleteSlice(&sliceObject{head: head{uid: "sl"}}, time.Now())
		x.deletePod("never seen", time.Now())

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
		if _, _, services := x.peer(ip(2), 80, now+int64(30*time.Second), nil); !slices.Equal(services, []string{"a/s"}) || x.places["n_1"] == nil {
			t.Errorf("services %v", services)
		}
		if kind, name, _ := x.peer(ip(3), 80, now+int64(30*time.Second), nil); kind != "service" || name != "a/s" {
			t.Errorf("peer %s %s", kind, name)
		}
		time.Sleep(2 * time.Second)
		x.expire()
		if n := len(x.pods) + len(x.static) + len(x.containers) + len(x.owners) + len(x.others) + len(x.holders) + len(x.graves) + len(x.members) + len(x.slices) + len(x.places) + len(x.ranges) + len(x.lengths); n != 0 {
			t.Errorf("left behind: %+v", x)
		}
	})
}

func TestDeletedIsBounded(t *testing.T) {
	x := newIndex(time.Hour, 100)
	for i := range 1000 {
		uid := fmt.Sprint(i)
		x.setPod(&pod{head: head{uid: uid}, instances: []instance{{"c" + uid, container{}}}, addresses: []address{ip(byte(i))}, since: int64(i)})
		x.deletePod(uid, time.Now())
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
			x.setPod(&pod{head: head{uid: "u"}, addresses: []address{ip(1)}})
			x.setOwner("o", ref{"Deployment", "d", "d"})
			x.setOther("n", "node", "n1", 0, []address{ip(2)})
		}
		set()
		x.deletePod("u", time.Now())
		x.deleteOwner("o", time.Now())
		x.deleteOther("n", time.Now())
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
	set := func(in ...instance) { x.setPod(&pod{head: head{uid: "u"}, instances: in}) }
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
	x.setPod(&pod{head: head{uid: "evil"}, hash: "h", created: 200})
	x.setPod(&pod{head: head{uid: "mirror"}, hash: "h", created: 100})
	x.setPod(&pod{head: head{uid: "evil"}, hash: "h", created: 200})
	if p := x.find("h", ""); p.uid != "mirror" {
		t.Errorf("hash leads to %s", p.uid)
	}
	x.setPod(&pod{head: head{uid: "evil2"}, hash: "mirror", created: 1})
	if p := x.find("mirror", ""); p.uid != "mirror" {
		t.Error("a hash must not hide a pod's own UID")
	}
	x.deletePod("mirror", time.Now())
	x.setPod(&pod{head: head{uid: "mirror2"}, hash: "h", created: 300})
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
			x.setPod(&pod{head: head{uid: uid, namespace: "ns", name: uid}, addresses: []address{ip(1)}, since: since, ended: ended})
		}
		set("finished long ago", at(-1000), true)
		set("a", at(0), false)
		sleepTo(100)
		set("a", at(0), true) // a job's pod: done, and still there
		sleepTo(110)
		set("b", at(110), false)
		sleepTo(200)
		x.deletePod("b", time.Now())
		sleepTo(210)
		set("c", at(210), false)
		x.setOther("svc", "service", "ns/svc", at(0), []address{ip(2)})
		for _, tt := range []struct {
			at         int64
			kind, name string
		}{
			{at(-100), "private", ""}, {at(50), "pod", "ns/a"}, {at(101), "pod", "ns/a"}, {at(105), "private", ""},
			{at(150), "pod", "ns/b"}, {at(206), "private", ""}, {at(211), "pod", "ns/c"}, {at(500), "pod", "ns/c"}, {0, "pod", "ns/c"},
		} {
			if kind, name, _ := x.peer(ip(1), 80, tt.at, nil); kind != tt.kind || name != tt.name {
				t.Errorf("at %d s: %s %s, want %s %s", (tt.at-start)/second, kind, name, tt.kind, tt.name)
			}
		}
		if kind, name, _ := x.peer(ip(2), 80, at(50), nil); kind != "service" || name != "ns/svc" {
			t.Errorf("%s %s", kind, name)
		}
		if kind, _, _ := x.peer(ip(9), 80, at(50), nil); kind != kindPrivate {
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

// TestPeerKinds: what stands at an address and port.
func TestPeerKinds(t *testing.T) {
	x := newIndex(time.Hour, 100)
	x.configured = apiAddressOf("https://192.0.2.9:6443")
	x.setOther("k", kindService, "default/kubernetes", 0, []address{ip(1)})
	x.setNode(&nodeObject{head: head{uid: "cp", name: "control"}, addresses: []address{ip(2)}, pods: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:5::/64")}})
	x.setSlice(&sliceObject{head: head{uid: "ks"}, service: "default/kubernetes", ports: []uint16{6443}, api: []address{ip(2)}})
	x.setPod(&pod{head: head{uid: "db", namespace: "shop", name: "db-0"}, addresses: []address{ip(3)}, since: 1})
	x.setSlice(&sliceObject{head: head{uid: "s1"}, service: "shop/db", ports: []uint16{5432}, pods: []string{"db"}})
	x.setSlice(&sliceObject{head: head{uid: "s2"}, service: "shop/headless", all: true, pods: []string{"db"}})
	addr := func(s string) address { return netip.MustParseAddr(s).As16() }
	for _, tt := range []struct {
		address    address
		port       uint16
		kind, name string
		services   []string
	}{
		{ip(1), 443, kindAPIServer, "default/kubernetes", nil},
		{ip(2), 6443, kindAPIServer, "control", nil},
		{ip(2), 10250, kindNode, "control", nil},
		{addr("192.0.2.9"), 6443, kindAPIServer, "", nil},
		{addr("192.0.2.9"), 443, kindOutside, "", nil},
		{ip(3), 5432, kindPod, "shop/db-0", []string{"shop/db", "shop/headless"}},
		{ip(3), 22, kindPod, "shop/db-0", []string{"shop/headless"}},
		{addr("169.254.169.254"), 80, kindMetadata, "instance metadata", nil},
		{addr("fd00:ec2::254"), 80, kindMetadata, "instance metadata", nil},
		{addr("127.0.0.53"), 53, kindLoopback, "", nil},
		{addr("::1"), 53, kindLoopback, "", nil},
		{addr("169.254.20.10"), 53, kindPrivate, "", nil},
		{addr("100.64.3.4"), 53, kindPrivate, "", nil},
		{addr("203.0.113.7"), 80, kindPrivate, "", nil},
		{addr("2001:db8:5::7"), 80, kindPrivate, "", nil},
		{addr("2001:db8:6::7"), 80, kindOutside, "", nil},
		{addr("203.0.114.7"), 80, kindOutside, "", nil},
		{addr("224.0.0.1"), 80, "", "", nil},
	} {
		kind, name, services := x.peer(tt.address, tt.port, 0, nil)
		if kind != tt.kind || name != tt.name || !slices.Equal(services, tt.services) {
			t.Errorf("%v:%d is %q %q %v, want %q %q %v", netip.AddrFrom16(tt.address).Unmap(), tt.port, kind, name, services, tt.kind, tt.name, tt.services)
		}
	}
	if n := testing.AllocsPerRun(100, func() { x.peer(addr("203.0.114.7"), 80, 5, nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestMemberships: a pod was behind a service while an EndpointSlice said so.
func TestMemberships(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newIndex(time.Hour, 100)
		x.setPod(&pod{head: head{uid: "p", namespace: "a", name: "p"}, addresses: []address{ip(1)}, since: 1})
		at := func() (services []string) {
			_, _, services = x.peer(ip(1), 80, 0, nil)
			return services
		}
		slice := func(uid, service string, pods ...string) {
			x.setSlice(&sliceObject{head: head{uid: uid}, service: service, all: true, pods: pods})
		}
		slice("s", "a/s", "p")
		slice("s", "a/s", "p", "q")
		if got := at(); !slices.Equal(got, []string{"a/s"}) || len(x.members["p"]) != 1 {
			t.Errorf("%v, %d", got, len(x.members["p"]))
		}
		before := time.Now().UnixNano()
		time.Sleep(time.Minute)
		slice("s", "a/s", "q")
		if got := at(); got != nil {
			t.Errorf("still behind %v", got)
		}
		if _, _, got := x.peer(ip(1), 80, before, nil); !slices.Equal(got, []string{"a/s"}) {
			t.Errorf("a minute ago behind %v", got)
		}
		slice("s", "a/s")
		if len(x.members["q"]) != 0 {
			t.Error("what is said of a pod that nobody has seen stays")
		}
		for i := range 3 * maxMemberships {
			slice(fmt.Sprint(i), fmt.Sprint("a/", i), "p")
		}
		if n := len(x.members["p"]); n != maxMemberships {
			t.Errorf("%d memberships", n)
		}
	})
}

func TestAPIAddress(t *testing.T) {
	v4 := func(port uint16) apiAddress { return apiAddress{batch.IPv4([4]byte{10, 0, 0, 1}), port} }
	for host, want := range map[string]apiAddress{
		"https://10.0.0.1:6443": v4(6443), "https://10.0.0.1": v4(443), "10.0.0.1:8443": v4(8443), "https://[::ffff:10.0.0.1]:1/x": v4(1),
		"https://api.example.com": {}, "": {}, "https://10.0.0.1:99999": {}, "%": {},
	} {
		if got := apiAddressOf(host); got != want {
			t.Errorf("%q: %v", host, got)
		}
	}
}
