package enricher

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"picket/schemas"
)

// raceDetector is set in a test binary with the race detector.
var raceDetector = false

// TestShortPods: of the events of 500 pods that each live 100 ms to 2 s, 99.9%
// carry the right pod, workload and image, and none a wrong one. Names and
// addresses are used again half a second after they became free; the API server
// shows a pod up to half a second after it runs and its container later still,
// of some only when they have ended; events come up to a second after they
// happened.
func TestShortPods(t *testing.T) {
	t.Parallel()
	const pods, atOnce, nodes = 500, 100, 50
	cfg, b := startNATS(t)
	api := startAPI(t, cluster()...)
	cfg.Kubernetes = api.config()
	// A machine that runs tests may stand still for seconds; then nothing would
	// wait, because so much is in hand, or not for long enough.
	cfg.Kubernetes.HeldMax, cfg.Kubernetes.WaitForPod = 256, 5*time.Second
	srv, _ := serve(t, cfg)
	eventually(t, "the bucket is complete", func() bool { return has(t, b, "complete") })
	written := testutil.ToFloat64(srv.metrics.metadataWrites)

	type expected struct{ pod, workload, image, peer string }
	var mu sync.Mutex
	want := map[string]expected{} // by event id
	note := func(id [16]byte, e expected) {
		mu.Lock()
		want[schemas.FormatID(id)] = e
		mu.Unlock()
	}
	// What is free may be used half a second later.
	type place struct {
		name string
		ip   string
	}
	free := make(chan place, atOnce)
	for i := range atOnce {
		free <- place{fmt.Sprint("short-", i), fmt.Sprintf("10.9.0.%d", i+1)}
	}
	senders := make([]chan func(*sender), nodes)
	var sending, living sync.WaitGroup
	for n := range senders {
		senders[n] = make(chan func(*sender), 1000)
		sending.Go(func() {
			s := newSender(t, b)
			for f := range senders[n] {
				f(s)
			}
		})
	}
	var events atomic.Int64
	start := time.Now()
	for i := range pods {
		at := <-free
		living.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			between := func(least, most time.Duration) time.Duration {
				return least + time.Duration(rng.Int64N(int64(most-least)))
			}
			uid, node := fmt.Sprintf("uid-%d", i), i%nodes
			began := time.Now()
			life := between(100*time.Millisecond, 2*time.Second)
			job := &batchv1.Job{ObjectMeta: meta("ns", fmt.Sprint("job-", i), fmt.Sprint("job-", i), metav1.OwnerReference{Kind: "CronJob", Name: fmt.Sprint("cron-", i%7), UID: "c"})}
			p := simplePod(at.name, uid, metav1.OwnerReference{Kind: "Job", Name: job.Name, UID: job.UID})
			started := metav1.NewTime(began)
			p.CreationTimestamp, p.Status.StartTime = started, &started
			p.Spec.NodeName = fmt.Sprint("n", node)
			p.Spec.Containers[0].Image = fmt.Sprintf("registry.example.com/image-%d:v%d", i, i)
			status := p.Status
			p.Status = corev1.PodStatus{Phase: corev1.PodPending, StartTime: &started}
			e := expected{pod: at.name, workload: fmt.Sprint("CronJob/cron-", i%7), image: fmt.Sprint("registry.example.com/image-", i)}
			act := func(n int) {
				when := time.Now()
				id, peer := schemas.Hash128(uid, fmt.Sprint(n)), schemas.Hash128(uid, "peer", fmt.Sprint(n))
				note(id, e)
				note(peer, expected{peer: "ns/" + at.name})
				events.Add(2)
				row := event{cluster: "test", node: p.Spec.NodeName, podUID: uid, containerID: "c-" + uid, name: "app", time: when.UnixNano(), id: id}
				// Another node talks to it.
				caller := event{cluster: "test", node: fmt.Sprint("n", (node+1)%nodes), peer: netip.MustParseAddr(at.ip).As16(), time: when.UnixNano(), id: peer}
				living.Go(func() {
					time.Sleep(time.Duration(n%5) * 250 * time.Millisecond)
					senders[node] <- func(s *sender) { s.send("picket.raw.test."+row.node+".process", encoded(t, schemas.Process, row), 1) }
					// Its address is told by the kubelet when it runs: a caller's event is
					// not waited with.
					time.Sleep(time.Second)
					senders[node] <- func(s *sender) {
						s.send("picket.raw.test."+caller.node+".network", encoded(t, schemas.Network, caller), 1)
					}
				})
			}
			act(0)
			pause := func(d time.Duration) { time.Sleep(time.Until(began.Add(d))) }
			shown := between(0, min(life, 500*time.Millisecond))
			pause(shown)
			api.Put(job)
			api.Put(p)
			if running := shown + between(50*time.Millisecond, 500*time.Millisecond); running < life {
				pause(life / 3)
				act(1)
				pause(running)
				p.Status = status
				p.Status.StartTime, p.Status.PodIP = &started, at.ip
				api.Put(p)
				act(2)
			}
			pause(life)
			act(3)
			p.Status = status
			p.Status.StartTime, p.Status.PodIP, p.Status.Phase = &started, at.ip, corev1.PodSucceeded
			api.Put(p)
			api.Delete(p)
			api.Delete(job)
			act(4) // of its last moment
			time.Sleep(500 * time.Millisecond)
			free <- at
		})
	}
	living.Wait()
	took := time.Since(start)
	for _, s := range senders {
		close(s)
	}
	sending.Wait()
	right, unresolved, seen := 0, 0, 0
	var wrong []string
	collect(t, b, 2*time.Minute, func(r received) bool {
		for i := range r.Rows() {
			id, _ := r.Bytes16(schemas.EventID, i)
			e, ours := want[schemas.FormatID(id)]
			if !ours {
				continue
			}
			seen++
			got := expected{peer: r.Str(schemas.PeerName, i)}
			if r.class == schemas.Process {
				got = expected{pod: r.Str(schemas.PodName, i), workload: r.Str(schemas.WorkloadKind, i) + "/" + r.Str(schemas.WorkloadName, i), image: r.Str(schemas.ContainerImage, i)}
			}
			switch {
			case got == e:
				right++
			case r.Str(schemas.Join, i) == joinUnresolved || r.class == schemas.Network && r.Str(schemas.PeerKind, i) != kindPod:
				unresolved++
				t.Logf("not resolved: class %s, kind %q, %+v, sent %v after it happened", r.class, r.Str(schemas.PeerKind, i), e, r.at.Sub(time.Unix(0, r.Int(schemas.EventTime, i))))
			default:
				wrong = append(wrong, fmt.Sprintf("%+v, want %+v", got, e))
			}
		}
		return seen < int(events.Load())
	})
	writes := testutil.ToFloat64(srv.metrics.metadataWrites) - written
	t.Logf("%d events of %d pods in %v: %d right, %d unresolved, %d wrong; %.0f writes to the bucket, %.1f a pod, %.0f a second",
		seen, pods, took.Round(time.Millisecond), right, unresolved, len(wrong), writes, writes/pods, writes/took.Seconds())
	if seen != int(events.Load()) {
		t.Errorf("%d of %d events came", seen, events.Load())
	}
	slices.Sort(wrong)
	for _, w := range wrong[:min(len(wrong), 10)] {
		t.Errorf("wrong: %s", w)
	}
	if raceDetector {
		t.Log("SKIPPED (the race detector slows everything many times): how many are right was not judged, only that none is wrong")
	} else if float64(right) < 0.999*float64(seen) {
		t.Errorf("%d of %d are right, less than 99.9%%", right, seen)
	}
	counted := testutil.ToFloat64(srv.metrics.joined.WithLabelValues("process", "unknown_pod"))
	if unknown := float64(unresolved); counted > unknown {
		t.Errorf("%v events counted as unknown, %v seen", counted, unknown)
	}
}
