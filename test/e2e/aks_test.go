package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"picket/services/auditlog-ingest/aks/akstest"
)

// TestAKSIntoClickHouse reads one AKS cluster from an event hub and another
// from a storage account with two ingesters, kills one after the other, and the
// rest of the way too, and finds every event once in ClickHouse.
func TestAKSIntoClickHouse(t *testing.T) {
	const each = 100_000 // events of a cluster
	resource := func(name string) string {
		return "/subscriptions/s/resourcegroups/g/providers/microsoft.containerservice/managedclusters/" + name
	}
	hub, account := akstest.NewEventHub(t, 4, "", ""), akstest.NewAccount(t)
	began := time.Now()
	for i := 0; i < each; {
		var bodies [][]byte
		for range 250 {
			var some [][]byte
			for range 10 {
				some = append(some, akstest.Azure(strings.ToUpper(resource("prod")), "kube-audit", akstest.Audit(i)))
				i++
			}
			bodies = append(bodies, akstest.Message(some...))
		}
		hub.Add(i/2500%4, began, bodies...)
	}
	for i := each; i < 2*each; i += 1000 {
		var text []byte
		for n := range 1000 {
			text = append(append(text, akstest.Azure(resource("shop"), "kube-audit", akstest.Audit(i+n))...), '\n')
		}
		account.Append("insights-logs-kube-audit", akstest.BlobName(resource("shop"), began.Add(-time.Duration(i/1000%7)*time.Hour)), text)
	}
	seed := uint64(began.UnixNano())
	hub.SetFaults(akstest.Faults{Detach: 0.002, Cut: 0.001, Expire: 0.0005, Repeat: 0.005, Busy: 0.05, Delay: 5}, int(seed%1e6))
	account.SetFaults(akstest.AccountFaults{Busy: 0.05, Deny: 0.02, Cut: 0.05, Delay: 20 * time.Millisecond}, seed)

	c := newCluster(t)
	write := func(name, text string) string {
		path := filepath.Join(c.dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file := write("aks.yaml", fmt.Sprintf(`aks:
  start: beginning
  poll_every: 1s
  event_hubs:
    - {name: hub, connection_string_file: %q, consumer_group: picket}
  storage:
    - {name: logs, connection_string_file: %q}
  clusters:
    - {resource_id: %q, name: prod}
    - {resource_id: %q, name: shop}
`, write("hub", hub.ConnectionString("secret-1")), write("account", account.ConnectionString()), resource("PROD"), resource("shop")))
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
	count := func() int { return c.number("SELECT count() FROM audit WHERE audit_source = 'aks'") }
	for _, name := range []string{"ingest-a", "sink", "ingest-b", "enricher", "ingest-a", "nats"} {
		time.Sleep(2 * time.Second)
		c.kill(name)
		time.Sleep(300 * time.Millisecond)
		c.start(name)
		t.Logf("%s killed with %d events in ClickHouse", name, count())
	}
	for deadline := time.Now().Add(3 * time.Minute); count() < 2*each; time.Sleep(time.Second) {
		if time.Now().After(deadline) {
			t.Fatalf("seed %d: %d events of %d; faults %+v %+v", seed, count(), 2*each, hub.Stats(), account.Stats())
		}
	}
	took := time.Since(began)
	for _, name := range ingesters {
		c.stop(name)
	}
	c.drain()
	for cluster, node := range map[string]string{"prod": "hub-", "shop": "logs-"} {
		where := "FROM audit WHERE cluster = '" + cluster + "' AND startsWith(node, '" + node + "')"
		if total, ids, cloudIDs := c.number("SELECT count() "+where), c.number("SELECT uniqExact(audit_id) "+where), c.number("SELECT uniqExact(audit_cloud_id) "+where); total != each || ids != total || cloudIDs != total {
			t.Errorf("seed %d: %s: %d rows, %d audit ids, %d ids of Azure, want %d of each", seed, cluster, total, ids, cloudIDs, each)
		}
	}
	t.Logf("%d events once each in ClickHouse, %.0f s after the start; faults %+v %+v", 2*each, took.Seconds(), hub.Stats(), account.Stats())
}
