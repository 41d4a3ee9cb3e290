package auditlogingest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"picket/internal/bus"
	"picket/services/auditlog-ingest/gke"
	"picket/services/auditlog-ingest/gke/gketest"
	"picket/services/auditlog-ingest/source"
)

var gkeEvents = flag.Int("gke-events", 6000, "how many events TestGKERandom sends, half of them by each way")

// TestGKERandom lets several ingesters share a subscription and the logs of a
// project, with the cloud's faults on, kills them at random steps, and finds each
// event of both once in PICKET_RAW.
func TestGKERandom(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 4))
	srv, err := gketest.Start(seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Stop)
	const (
		path  = "projects/shop/subscriptions/picket"
		kills = 6
	)
	n := *gkeEvents / 2
	srv.Subscription(path, 7*24*time.Hour)
	from, until := time.Now().Add(-4*time.Hour), time.Now().Add(-time.Hour)
	want := map[string]int{}
	for i := range 2 * n {
		id := fmt.Sprintf("event-%05d", i)
		want[id] = 0
		at := from.Add(time.Duration(rnd.Int64N(int64(2 * time.Hour)))).Truncate(time.Millisecond)
		line := fmt.Appendf(nil, `{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"%s","stage":"ResponseComplete","requestURI":"/","verb":"update","user":{"username":"u"},"objectRef":{"resource":"pods","namespace":"a","name":"b","apiVersion":"v1"},"responseStatus":{"code":200},"stageTimestamp":"%s"}`, id, at.UTC().Format(time.RFC3339Nano))
		e, err := gketest.Entry(line, "shop", "europe-west1", []string{"prod", "lab"}[i%2], time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if i < n {
			srv.Add(e)
			continue
		}
		data, err := gketest.JSON(e)
		if err != nil {
			t.Fatal(err)
		}
		srv.Publish(path, data)
	}
	srv.Fault(gketest.Faults{Throttle: 0.01, Unavailable: 0.01, ExpireToken: 0.02, EmptyPage: 0.1, ShortPage: 0.5, Repeat: 0.02, LoseAck: 0.01, Redeliver: 0.01, CutStream: 0.01, Reorder: true, Lease: 3 * time.Second})
	cfg := gke.DefaultConfig()
	cfg.PubSubEndpoint, cfg.LoggingEndpoint, cfg.ReadsPerMinute = "http://"+srv.Addr, "http://"+srv.Addr, 6000
	cfg.Subscriptions = []gke.Subscription{{Subscription: path}}
	cfg.Logs = []gke.Logs{{Resource: "projects/shop", Start: source.Start(from.Format(time.RFC3339Nano)), Until: until.Format(time.RFC3339Nano)}}
	cfg.Clusters = []gke.Cluster{{Project: "shop", Location: "europe-west1", Cluster: "prod", Name: "prod"}}

	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	died := make(chan struct{}, 64)
	begin := func(life int) {
		pr, err := gke.New(cfg, quiet(), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		startReplica(t, url, pr, func(r *replica, _ string) {
			mu.Lock()
			defer mu.Unlock()
			if life--; life == 0 {
				r.kill()
				died <- struct{}{}
			}
		})
	}
	begin(1 + rnd.IntN(60))
	begin(1 + rnd.IntN(60))
	for i := range kills {
		wait(t, died)
		life := 1 + rnd.IntN(60)
		if i >= kills-2 {
			life = 0 // lives on
		}
		begin(life)
	}
	b := connect(t, url)
	last, got := uint64(0), 0
	for deadline := time.Now().Add(4 * time.Minute); got < len(want) && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		for _, p := range readRawFrom(t, b, &last) {
			if want[p.auditID]++; want[p.auditID] > 1 {
				t.Fatalf("%s was published %d times", p.auditID, want[p.auditID])
			}
			got++
		}
	}
	if got != 2*n {
		t.Errorf("%d of %d events", got, 2*n)
	}
	t.Logf("%+v", srv.Counts())
}
