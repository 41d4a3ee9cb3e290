package auditlogingest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"picket/services/auditlog-ingest/aks"
	"picket/services/auditlog-ingest/aks/akstest"
	"picket/services/auditlog-ingest/source"
)

// TestPullAKS drives 100,000 audit records through an event hub, and as many
// through a storage account, with all their faults on, while two ingesters
// share them and are killed again and again at random steps. Each record is in
// PICKET_RAW once.
func TestPullAKS(t *testing.T) {
	const records = pulled
	resource := "/subscriptions/s/resourcegroups/g/providers/microsoft.containerservice/managedclusters/"
	connection := func(t *testing.T, text string) string {
		path := filepath.Join(t.TempDir(), "connection")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Run("event hub", func(t *testing.T) {
		h := akstest.NewEventHub(t, 4, "", "")
		for i := 0; i < records; {
			var bodies [][]byte
			for range 250 {
				var some [][]byte
				for range 10 {
					some = append(some, akstest.Azure(resource+"c", "kube-audit", akstest.Audit(i)))
					i++
				}
				bodies = append(bodies, akstest.Message(some...))
			}
			h.Add(i/2500%4, time.Now(), bodies...)
		}
		h.SetFaults(akstest.Faults{Detach: 0.002, Cut: 0.001, Expire: 0.0005, Repeat: 0.005, Busy: 0.05, Delay: 5}, 1)
		cfg := aks.DefaultConfig()
		cfg.Start = source.StartBeginning
		cfg.EventHubs = []aks.EventHubConfig{{Name: "hub", ConnectionStringFile: connection(t, h.ConnectionString("secret-1"))}}
		pullAKS(t, cfg, records)
		t.Logf("faults: %+v", h.Stats())
	})
	t.Run("storage", func(t *testing.T) {
		a := akstest.NewAccount(t)
		now := time.Now().UTC()
		for i := 0; i < records; i += 1000 {
			res := resource + fmt.Sprint("c", i/1000%4)
			var text []byte
			for n := range 1000 {
				text = append(append(text, akstest.Azure(res, "kube-audit", akstest.Audit(i+n))...), '\n')
			}
			a.Append("insights-logs-kube-audit", akstest.BlobName(res, now.Add(-time.Duration(i/1000%7)*time.Hour)), text)
		}
		a.SetFaults(akstest.AccountFaults{Busy: 0.05, Deny: 0.02, Cut: 0.05, Delay: 5 * time.Millisecond}, 1)
		cfg := aks.DefaultConfig()
		cfg.Start, cfg.PollEvery = source.StartBeginning, time.Second
		cfg.Storage = []aks.StorageConfig{{Name: "logs", ConnectionStringFile: connection(t, a.ConnectionString())}}
		pullAKS(t, cfg, records)
		t.Logf("faults: %+v", a.Stats())
	})
}

// pullAKS finds each of the records once in PICKET_RAW.
func pullAKS(t *testing.T, cfg aks.Config, records int) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	got := harried(t, func() (source.Provider, error) { return aks.New(cfg, quiet(), prometheus.NewRegistry()) }, records, 400, rand.New(rand.NewPCG(seed, 4)))
	for i := range records {
		if got[akstest.ID(i)] == "" {
			t.Fatalf("record %d is missing", i)
		}
	}
}
