package aks_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"picket/services/auditlog-ingest/aks"
	"picket/services/auditlog-ingest/aks/akstest"
	"picket/services/auditlog-ingest/source"
)

// hubConfig returns the configuration for a hub, from its beginning.
func hubConfig(t testing.TB, h *akstest.EventHub) aks.Config {
	cfg := aks.DefaultConfig()
	cfg.Start = source.StartBeginning
	cfg.EventHubs = []aks.EventHubConfig{{Name: "hub", ConnectionStringFile: writeFile(t, "connection", h.ConnectionString("secret-1")), ConsumerGroup: "picket"}}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// start runs an ingester until the test ends or stop is called.
func start(t testing.TB, cfg aks.Config, l *ledger) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		life(ctx, t, cfg, l, nil)
	}()
	stop = func() { cancel(); <-over }
	t.Cleanup(stop)
	return stop
}

func messages(from, n int) (out [][]byte) {
	for i := range n {
		out = append(out, akstest.Message(akstest.Azure("/s/c", "kube-audit", akstest.Audit(from+i))))
	}
	return out
}

func TestEventHub(t *testing.T) {
	h := akstest.NewEventHub(t, 2, "", "")
	cfg := hubConfig(t, h)
	cfg.Clusters = []aks.ClusterConfig{
		{ResourceID: "/subscriptions/S/resourceGroups/G/providers/Microsoft.ContainerService/managedClusters/One", Name: "prod-1"},
		{ResourceID: "/SUBSCRIPTIONS/S/RESOURCEGROUPS/G/PROVIDERS/MICROSOFT.CONTAINERSERVICE/MANAGEDCLUSTERS/TWO", Name: "prod-2"},
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	one, two := "/SUBSCRIPTIONS/S/RESOURCEGROUPS/G/PROVIDERS/MICROSOFT.CONTAINERSERVICE/MANAGEDCLUSTERS/ONE", "/subscriptions/s/resourcegroups/g/providers/microsoft.containerservice/managedclusters/two"
	at := time.Date(2026, 11, 23, 10, 0, 0, 123e6, time.UTC)
	h.Add(0, at,
		akstest.Message(akstest.Azure(one, "kube-audit", akstest.Audit(1)), akstest.Azure(one, "guard", []byte("I1123 x")), akstest.Azure(two, "kube-audit-admin", akstest.Audit(2))),
		akstest.Message(akstest.Azure("/subscriptions/other", "kube-audit", akstest.Audit(3))),
		[]byte("no JSON"), nil)
	h.Add(1, at, akstest.Message(akstest.Azure(two, "kube-audit", akstest.Audit(4))))
	l := newLedger()
	stop := start(t, cfg, l)
	until(t, "records", func() bool { return l.distinct() == 3 })
	until(t, "refusals", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return len(l.refused) == 2 })
	stop()
	if l.clusters["prod-1"] != 1 || l.clusters["prod-2"] != 2 || len(l.clusters) != 2 {
		t.Errorf("clusters %v", l.clusters)
	}
	for _, r := range l.records {
		if !r.Arrived.Equal(at) {
			t.Errorf("arrived %v", r.Arrived)
		}
		if want := map[string]string{"prod-1": "0/0/0"}[r.Cluster]; want != "" && r.CloudID != want {
			t.Errorf("cloud id %q", r.CloudID)
		}
	}
	if got := string(l.marks["hub-0"]); !strings.Contains(got, `"sequence":3`) {
		t.Errorf("checkpoint %s", got)
	}

	// Nothing comes twice, and what comes now is read on.
	h.Add(0, at, akstest.Message(akstest.Azure(one, "kube-audit", akstest.Audit(5))))
	start(t, cfg, l)
	until(t, "the next", func() bool { return l.distinct() == 4 })
	if l.taken != 4 {
		t.Errorf("%d records taken, want 4", l.taken)
	}
}
