package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"picket/services/auditlog-ingest/eks/ekstest"
)

// TestEKSIntoClickHouse reads two EKS clusters with two ingesters, kills one
// after the other, and the rest of the way too, and finds every event once in
// ClickHouse.
func TestEKSIntoClickHouse(t *testing.T) {
	const (
		events  = 100_000
		account = "123456789012"
		region  = "eu-central-1"
	)
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 7))
	cloud := ekstest.New(t, seed)
	key, secret := cloud.Key(account)
	t.Setenv("AWS_ACCESS_KEY_ID", key)
	t.Setenv("AWS_SECRET_ACCESS_KEY", secret)
	t.Setenv("AWS_SESSION_TOKEN", "")
	t.Setenv("AWS_PROFILE", "")
	t.Setenv("AWS_ENDPOINT_URL_STS", cloud.URL)
	cloud.Role("arn:aws:iam::210987654321:role/picket-audit", "external")
	began := time.Now()
	logs := map[string][]ekstest.Event{}
	for i := range events {
		at := began.Add(-time.Duration(rnd.Int64N(int64(2 * time.Hour))))
		shown := at
		if i%10 == 0 { // a tenth happens now, and is shown late
			at = began.Add(time.Duration(rnd.Int64N(int64(30 * time.Second)))).Truncate(50 * time.Millisecond)
			shown = at.Add(time.Duration(rnd.Int64N(int64(8 * time.Second))))
		}
		cluster := []string{"prod", "shop"}[i/10%2]
		logs[cluster] = append(logs[cluster], ekstest.Event{ID: fmt.Sprintf("%056d", i), Stream: "kube-apiserver-audit-0", Time: at, Shown: shown,
			Message: fmt.Sprintf(`{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"%s-%06d","stage":"ResponseComplete","requestURI":"/","verb":"update","user":{"username":"u"},"objectRef":{"resource":"pods","namespace":"a","name":"b","apiVersion":"v1"},"responseStatus":{"code":200},"requestReceivedTimestamp":"%[3]s","stageTimestamp":"%[3]s"}`, cluster, i, at.UTC().Format("2006-01-02T15:04:05.000000Z"))})
	}
	cloud.Group(account, region, "/aws/eks/prod/cluster", began.Add(-2*time.Hour), 14).Put(logs["prod"]...)
	cloud.Group("210987654321", region, "/aws/eks/shop/cluster", began.Add(-2*time.Hour), 14).Put(logs["shop"]...)
	cloud.SetFaults(ekstest.Faults{Throttle: 0.02, Fail: 0.02, Cut: 0.02, Empty: 0.1, Repeat: 0.02, Shuffle: 0.2, Token: 0.01, Credentials: 0.01, Delay: 20 * time.Millisecond, Page: 3000})

	c := newCluster(t)
	file := filepath.Join(c.dir, "eks.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `eks:
  region: %s
  endpoint: %s
  start: beginning
  poll: 1s
  overlap: 10s
  requests_per_second: 100
  clusters:
    - name: prod
    - {name: shop, role_arn: "arn:aws:iam::210987654321:role/picket-audit", external_id: external}
`, region, cloud.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	c.service("enricher")
	c.service("detector", "--clickhouse.url", c.chURL)
	c.service("sink", "--clickhouse.url", c.chURL)
	ingesters := []string{"ingest-a", "ingest-b"}
	for _, name := range ingesters {
		admin := freeAddress(t)
		c.add(name, "http://"+admin+"/readyz", func() *exec.Cmd {
			return exec.Command(filepath.Join(binaries, "picket-auditlog-ingest"), "--config", file, "--nats.url", "nats://"+c.nats, "--nats.credentials_file", c.creds("auditlog-ingest"),
				"--admin.listen", admin, "--log.file", filepath.Join(c.dir, name+".log"), "--cluster", "e2e", "--state_dir", filepath.Join(c.dir, name))
		})
		t.Cleanup(func() { c.stop(name) })
	}
	for _, name := range append([]string{"enricher", "detector", "sink"}, ingesters...) {
		c.start(name)
	}
	count := func() int { return c.number("SELECT count() FROM audit WHERE audit_source = 'eks'") }
	for _, name := range []string{"ingest-a", "sink", "ingest-b", "enricher", "ingest-a", "nats"} {
		time.Sleep(2 * time.Second)
		c.kill(name)
		time.Sleep(300 * time.Millisecond)
		c.start(name)
		t.Logf("%s killed with %d events in ClickHouse", name, count())
	}
	for deadline := time.Now().Add(3 * time.Minute); count() < events; time.Sleep(time.Second) {
		if time.Now().After(deadline) {
			t.Fatalf("seed %d: %d events of %d; answers %v", seed, count(), events, cloud.Answers())
		}
	}
	took := time.Since(began)
	time.Sleep(15 * time.Second) // the last reading of what is in the overlap
	for _, name := range ingesters {
		c.stop(name)
	}
	c.drain()
	for _, cluster := range []string{"prod", "shop"} {
		where := "FROM audit WHERE cluster = '" + cluster + "' AND node = 'eks-" + cluster + "'"
		if total, ids, cloudIDs := c.number("SELECT count() "+where), c.number("SELECT uniqExact(audit_id) "+where), c.number("SELECT uniqExact(audit_cloud_id) "+where); total != events/2 || ids != total || cloudIDs != total {
			t.Errorf("seed %d: %s: %d rows, %d audit ids, %d ids of CloudWatch Logs, want %d of each", seed, cluster, total, ids, cloudIDs, events/2)
		}
	}
	t.Logf("%d events once each in ClickHouse, %.0f s after the start; answers %v", events, took.Seconds(), cloud.Answers())
}
