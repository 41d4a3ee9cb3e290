package auditlogingest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"picket/internal/bus"
	"picket/services/auditlog-ingest/aks"
	"picket/services/auditlog-ingest/aks/akstest"
	"picket/services/auditlog-ingest/source"
)

// TestPullAKS drives 100,000 audit records through an event hub, and as many
// through a storage account, with all their faults on, while two ingesters
// share them and are killed again and again at random steps. Each record is in
// PICKET_RAW once.
func TestPullAKS(t *testing.T) {
	const records = 100_000
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
		kills := pullAKS(t, cfg, records)
		t.Logf("%d kills; faults: %+v", kills, h.Stats())
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
		kills := pullAKS(t, cfg, records)
		t.Logf("%d kills; faults: %+v", kills, a.Stats())
	})
}

// pullAKS runs ingesters until the records are in PICKET_RAW, killing them on
// the way, and returns how often.
func pullAKS(t *testing.T, cfg aks.Config, records int) (kills int) {
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	b := connect(t, url)
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 4))
	died := make(chan struct{}, 64)
	begin := func(steps int) {
		p, err := aks.New(cfg, quiet(), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		startReplica(t, url, p, func(r *replica, _ string) {
			mu.Lock()
			defer mu.Unlock()
			if steps--; steps == 0 {
				r.kill()
				died <- struct{}{}
			}
		})
	}
	began := time.Now()
	begin(100 + rnd.IntN(200))
	begin(100 + rnd.IntN(200))
	got, last := map[string]int{}, uint64(0)
	for end := time.Now().Add(3 * time.Minute); len(got) < records; time.Sleep(50 * time.Millisecond) {
		for _, p := range readRawFrom(t, b, &last) {
			if got[p.auditID]++; got[p.auditID] > 1 {
				t.Fatalf("%s was published twice", p.auditID)
			}
		}
		select {
		case <-died:
			if kills++; kills < 8 {
				begin(100 + rnd.IntN(300))
			} else {
				begin(0) // lives on
			}
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d records", len(got), records)
		}
	}
	for i := range records {
		if got[akstest.ID(i)] != 1 {
			t.Fatalf("record %d is missing", i)
		}
	}
	t.Logf("%d records in %.1f s", len(got), time.Since(began).Seconds())
	if kills == 0 {
		t.Error("no ingester was killed")
	}
	return kills
}
