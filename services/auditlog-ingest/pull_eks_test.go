package auditlogingest

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"picket/services/auditlog-ingest/eks"
	"picket/services/auditlog-ingest/eks/ekstest"
	"picket/services/auditlog-ingest/source"
)

// TestPullEKS drives 100,000 audit records through the log groups of two
// clusters, the second of another account, most of them history and the others
// late while they happen, with all faults on, while two ingesters share them and
// are killed again and again at random steps. Each record is in PICKET_RAW once,
// as its cluster's.
func TestPullEKS(t *testing.T) {
	const (
		records  = pulled
		live     = pulled / 10
		own      = "123456789012"
		other    = "arn:aws:iam::210987654321:role/picket-audit"
		region   = "eu-central-1"
		lateness = 4 * time.Second
	)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 5))
	s := ekstest.New(t, seed)
	key, secret := s.Key(own)
	t.Setenv("AWS_ACCESS_KEY_ID", key)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	t.Setenv("AWS_SESSION_TOKEN", "")
	t.Setenv("AWS_PROFILE", "")
	t.Setenv("AWS_ENDPOINT_URL_STS", s.URL)
	s.Role(other, "external")
	began := time.Now()
	events := map[string][]ekstest.Event{}
	for i := range records {
		at := began.Add(-time.Duration(rnd.Int64N(int64(30 * time.Minute))))
		shown := at
		if i < live {
			at = began.Add(time.Duration(rnd.Int64N(int64(15 * time.Second)))).Truncate(50 * time.Millisecond)
			shown = at.Add(time.Duration(rnd.Int64N(int64(lateness))))
		}
		cluster := []string{"prod", "shop"}[i%2]
		events[cluster] = append(events[cluster], ekstest.Event{ID: fmt.Sprintf("%056d", i), Stream: fmt.Sprint("kube-apiserver-audit-", i%3),
			Message: fmt.Sprintf(`{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"%s-%06d","stage":"ResponseComplete","requestURI":"/","verb":"update","user":{"username":"u"},"objectRef":{"resource":"pods","namespace":"a","name":"b","apiVersion":"v1"},"responseStatus":{"code":200},"requestReceivedTimestamp":"%[3]s","stageTimestamp":"%[3]s"}`, cluster, i, at.UTC().Format("2006-01-02T15:04:05.000000Z")),
			Time:    at, Shown: shown})
	}
	s.Group(own, region, "/aws/eks/prod/cluster", began.Add(-30*time.Minute), 14).Put(events["prod"]...)
	s.Group("210987654321", region, "/aws/eks/shop/cluster", began.Add(-30*time.Minute), 14).Put(events["shop"]...)
	s.SetFaults(ekstest.Faults{Throttle: 0.02, Fail: 0.01, Cut: 0.02, Empty: 0.1, Repeat: 0.02, Shuffle: 0.2, Token: 0.01, Credentials: 0.01, Delay: 5 * time.Millisecond, Page: 3000})
	cfg := eks.DefaultConfig()
	cfg.Region, cfg.Endpoint, cfg.Start = region, s.URL, source.StartBeginning
	// Sooner than a user may set it, for the test's time.
	cfg.Poll, cfg.Overlap, cfg.RequestsPerSecond = 200*time.Millisecond, 6*time.Second, 1000
	cfg.Clusters = []eks.Cluster{{Name: "prod"}, {Name: "shop", RoleARN: other, ExternalID: "external"}}

	got := harried(t, func() (source.Provider, error) { return eks.New(cfg, quiet(), prometheus.NewRegistry()) }, records, 150, rnd)
	for i := range records {
		cluster := []string{"prod", "shop"}[i%2]
		id, want := fmt.Sprintf("%s-%06d", cluster, i), fmt.Sprintf("picket.raw.%s.eks-%[1]s.audit", cluster)
		if got[id] != want {
			t.Fatalf("%s is on %q, want %q", id, got[id], want)
		}
	}
	t.Logf("answers %v", s.Answers())
}
