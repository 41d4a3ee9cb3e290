package auditlogingest

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"picket/services/auditlog-ingest/gke"
	"picket/services/auditlog-ingest/gke/gketest"
	"picket/services/auditlog-ingest/source"
)

// TestPullGKE lets several ingesters share a subscription and the logs of a
// project, 50,000 events by each, with the cloud's faults on, kills them at random
// steps, and finds each event once in PICKET_RAW.
func TestPullGKE(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 4))
	srv, err := gketest.Start(seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Stop)
	const (
		path = "projects/shop/subscriptions/picket"
		n    = pulled / 2 // by each way
	)
	srv.Subscription(path, 7*24*time.Hour)
	from, until := time.Now().Add(-4*time.Hour), time.Now().Add(-time.Hour)
	want := map[string]bool{}
	for i := range 2 * n {
		id := fmt.Sprintf("event-%05d", i)
		want[id] = true
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

	got := harried(t, func() (source.Provider, error) { return gke.New(cfg, quiet(), prometheus.NewRegistry()) }, len(want), 60, rnd)
	for id := range want {
		if got[id] == "" {
			t.Fatalf("%s is missing", id)
		}
	}
	t.Logf("%+v", srv.Counts())
}
