package aks_test

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/prometheus/client_golang/prometheus"

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
func start(t testing.TB, cfg aks.Config, l *ledger, set ...func(source.Provider)) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		life(ctx, t, cfg, l, nil, set...)
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

func TestEventHubStart(t *testing.T) {
	t.Parallel()
	h := akstest.NewEventHub(t, 1, "", "")
	old, recent := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	h.Add(0, old, messages(0, 10)...)
	h.Add(0, recent, messages(10, 5)...)
	for _, tt := range []struct {
		start source.Start
		want  int
	}{{source.StartBeginning, 16}, {"2026-10-01T00:00:00Z", 6}} {
		cfg := hubConfig(t, h)
		cfg.Start = tt.start
		l := newLedger()
		stop := start(t, cfg, l)
		until(t, "what is there", func() bool { return l.distinct() >= tt.want-1 })
		stop()
		if l.taken != tt.want-1 {
			t.Errorf("start %s: %d records, want %d", tt.start, l.taken, tt.want-1)
		}
	}
	// From now: what comes while the ingester is away belongs to it.
	cfg := hubConfig(t, h)
	cfg.Start = source.StartNow
	l := newLedger()
	stop := start(t, cfg, l)
	until(t, "the first checkpoint", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.marks["hub-0"] != nil })
	stop()
	h.Add(0, recent, messages(15, 1)...)
	stop = start(t, cfg, l)
	until(t, "the next", func() bool { return l.distinct() == 1 })
	stop()
	if l.seen[akstest.ID(15)] != 1 {
		t.Errorf("start now: %v", l.seen)
	}
}

func TestEventHubRetention(t *testing.T) {
	t.Parallel()
	h := akstest.NewEventHub(t, 1, "", "")
	cfg := hubConfig(t, h)
	day := func(n int) time.Time { return time.Date(2026, 11, n, 0, 0, 0, 0, time.UTC) }
	l := newLedger()
	h.Add(0, day(1), messages(0, 3)...)
	stop := start(t, cfg, l)
	until(t, "the first", func() bool { return l.distinct() == 3 })
	stop()
	// Some are deleted before they are read.
	h.Add(0, day(2), messages(3, 5)...)
	h.Add(0, day(3), messages(8, 2)...)
	h.Forget(0, 8)
	stop = start(t, cfg, l)
	until(t, "what is left", func() bool { return l.distinct() == 5 })
	// All are, and none comes for a while.
	stop()
	h.Add(0, day(4), messages(10, 4)...)
	h.Forget(0, 14)
	stop = start(t, cfg, l)
	until(t, "the second gap", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return len(l.gaps) == 2 })
	h.Add(0, day(5), messages(14, 1)...)
	until(t, "the last", func() bool { return l.distinct() == 6 })
	// The hub is made anew while it is read.
	h.Create(1, "secret-1")
	h.Add(0, day(6), messages(15, 2)...)
	until(t, "those of the new hub", func() bool { return l.distinct() == 8 })
	stop()
	for i, want := range []string{"first_sequence3last_sequence7messages5", "first_sequence10last_sequence13messages4", "created anew"} {
		if i >= len(l.gaps) || !strings.Contains(strings.ReplaceAll(l.gaps[i], " ", ""), strings.ReplaceAll(want, " ", "")) {
			t.Errorf("gap %d is not %q: %q", i, want, l.gaps)
		}
	}
	if len(l.gaps) != 3 || l.taken != 8 {
		t.Errorf("%d gaps, %d records taken", len(l.gaps), l.taken)
	}
	for i, want := range []string{"2026-11-01", "2026-11-03", "2026-11-05"} {
		if !strings.Contains(l.gaps[i], want) {
			t.Errorf("gap %d does not begin at %s: %s", i, want, l.gaps[i])
		}
	}
}

// TestEventHubKeys holds that a new key is taken without a restart, and that
// no key is in what is logged.
func TestEventHubKeys(t *testing.T) {
	t.Parallel()
	h := akstest.NewEventHub(t, 1, "", "")
	cfg := hubConfig(t, h)
	l := newLedger()
	h.Add(0, time.Now(), messages(0, 1)...)
	stop := start(t, cfg, l)
	until(t, "the first", func() bool { return l.distinct() == 1 })
	h.SetKey("secret-2")
	h.Expire()
	until(t, "a refusal", func() bool { return h.Stats().Refused > 0 })
	h.Add(0, time.Now(), messages(1, 1)...)
	writeFile(t, cfg.EventHubs[0].ConnectionStringFile, h.ConnectionString("secret-2"))
	until(t, "what came after", func() bool { return l.distinct() == 2 })
	stop()
	if l.taken != 2 {
		t.Errorf("%d records taken", l.taken)
	}
}

// tokens gives out a token until the next is set, as Entra ID does.
type tokens struct {
	mu    sync.Mutex
	token string
	asked string
}

func (k *tokens) GetToken(_ context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = strings.Join(o.Scopes, " ")
	return azcore.AccessToken{Token: k.token, ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// TestEventHubEntra holds that a namespace is opened with tokens, over TLS and
// by a private endpoint: the certificate must be the namespace's all the same.
func TestEventHubEntra(t *testing.T) {
	t.Parallel()
	const namespace = "picket.servicebus.windows.net"
	cert, key := certificate(t, namespace)
	h := akstest.NewEventHub(t, 1, cert, key)
	h.SetTokens(map[string]time.Time{"token-1": time.Now().Add(time.Hour)})
	h.Add(0, time.Now(), messages(0, 1)...)
	cfg := hubConfig(t, h)
	cfg.EventHubs = []aks.EventHubConfig{{Name: "hub", Namespace: namespace, EventHub: akstest.HubName, Endpoint: h.Addr}}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	k := &tokens{token: "token-1"}
	l := newLedger()
	start(t, cfg, l, func(p source.Provider) { aks.SetCredential(p, k) })
	until(t, "the first", func() bool { return l.distinct() == 1 })
	// The token is worth nothing any more; the next is.
	h.SetTokens(map[string]time.Time{"token-2": time.Now().Add(time.Hour)})
	h.Expire()
	until(t, "a refusal", func() bool { return h.Stats().Refused > 0 })
	h.Add(0, time.Now(), messages(1, 1)...)
	k.mu.Lock()
	k.token = "token-2"
	k.mu.Unlock()
	until(t, "what came after", func() bool { return l.distinct() == 2 })
	if !strings.Contains(k.asked, "eventhubs.azure.net") {
		t.Errorf("token asked for %q", k.asked)
	}

	// Another host's certificate is refused.
	cert, key = certificate(t, "other.servicebus.windows.net")
	other := akstest.NewEventHub(t, 1, cert, key)
	cfg.EventHubs[0].Endpoint = other.Addr
	p, err := aks.New(cfg, testLog(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	aks.SetCredential(p, k)
	if _, err := p.Sources(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("with another host's certificate: %v", err)
	}
}

// TestEventHubMute holds that a question that is never answered is asked again.
func TestEventHubMute(t *testing.T) {
	t.Parallel()
	h := akstest.NewEventHub(t, 1, "", "")
	h.Add(0, time.Now(), messages(0, 1)...)
	h.SetFaults(akstest.Faults{Mute: 0.3}, 5)
	l := newLedger()
	start(t, hubConfig(t, h), l, func(p source.Provider) { aks.SetAskFor(p, 300*time.Millisecond) })
	until(t, "the record", func() bool { return l.distinct() == 1 })
}

// TestSecrets holds that nothing of a connection string is in an error.
func TestSecrets(t *testing.T) {
	for _, text := range []string{
		"Endpoint=sb://127.0.0.1:1;SharedAccessKeyName=n;SharedAccessKey=hush;EntityPath=e;UseDevelopmentEmulator=true",
		"Endpoint=sb://127.0.0.1:1;SharedAccessKeyName=n;SharedAccessKey=hush;UseDevelopmentEmulator=hush",
		"DefaultEndpointsProtocol=http;BlobEndpoint=http://127.0.0.1:1/a;SharedAccessSignature=sv=2024-01-01&sig=hush",
		"DefaultEndpointsProtocol=http;AccountName=a;AccountKey=hush;BlobEndpoint=http://127.0.0.1:1/a",
		"hush",
	} {
		cfg := aks.DefaultConfig()
		file := writeFile(t, "connection", text)
		cfg.EventHubs = []aks.EventHubConfig{{Name: "h", ConnectionStringFile: file}}
		cfg.Storage = []aks.StorageConfig{{Name: "s", ConnectionStringFile: file}}
		var logged bytes.Buffer
		p, err := aks.New(cfg, slog.New(slog.NewTextHandler(&logged, nil)), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		aks.SetAskFor(p, 2*time.Second)
		_, err = p.Sources(t.Context())
		if err == nil {
			t.Fatalf("%q: no error", text)
		}
		if said := err.Error() + logged.String(); strings.Contains(said, "hush") {
			t.Errorf("%q: %s", text, said)
		}
	}
}

// TestEventHubTakeover holds that of two readers of a partition the newer one
// reads, and the older one, that lost it, takes nothing any more.
func TestEventHubTakeover(t *testing.T) {
	t.Parallel()
	h := akstest.NewEventHub(t, 1, "", "")
	cfg := hubConfig(t, h)
	older, newer := newLedger(), newLedger()
	h.Add(0, time.Now(), messages(0, 1)...)
	start(t, cfg, older)
	until(t, "the older", func() bool { return older.distinct() == 1 })
	start(t, cfg, newer)
	until(t, "the newer", func() bool { return newer.distinct() == 1 })
	h.Add(0, time.Now(), messages(1, 20)...)
	until(t, "the newer", func() bool { return newer.distinct() == 21 })
	if older.distinct() != 1 || h.Stats().Stolen != 1 {
		t.Errorf("the older one has %d records; partitions were taken %d times", older.distinct(), h.Stats().Stolen)
	}
}

// TestEventHubSlow holds that a partition that gives nothing out does not
// delay another.
func TestEventHubSlow(t *testing.T) {
	t.Parallel()
	h := akstest.NewEventHub(t, 2, "", "")
	h.Hold(0, true)
	h.Add(0, time.Now(), messages(0, 10)...)
	h.Add(1, time.Now(), messages(100, 5000)...)
	l := newLedger()
	start(t, hubConfig(t, h), l)
	until(t, "the other partition", func() bool { return l.distinct() == 5000 })
	h.Hold(0, false)
	until(t, "the slow partition", func() bool { return l.distinct() == 5010 })
}

// TestEventHubFaults drives 100,000 audit records through 4 partitions with
// all faults on while the ingester crashes again and again: each record is
// there, and what came twice did so for a crash.
func TestEventHubFaults(t *testing.T) {
	const events, partitions, seed = 100_000, 4, 20261123
	h := akstest.NewEventHub(t, partitions, "", "")
	h.SetFaults(akstest.Faults{Detach: 0.001, Cut: 0.0005, Expire: 0.0005, Repeat: 0.002, Busy: 0.05, Delay: 5}, seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	done := make(chan struct{})
	go func() { // records come while they are read, 1 to 8 in a message
		defer close(done)
		for i := 0; i < events; {
			var bodies [][]byte
			for range 200 {
				var records [][]byte
				for n := 1 + rnd.IntN(8); n > 0 && i < events; n-- {
					records = append(records, akstest.Azure("/s/c", "kube-audit", akstest.Audit(i)))
					i++
				}
				if rnd.IntN(10) == 0 {
					records = append(records, akstest.Azure("/s/c", "guard", []byte("x")))
				}
				bodies = append(bodies, akstest.Message(records...))
			}
			h.Add(rnd.IntN(partitions), time.Now(), bodies...)
		}
	}()
	l := newLedger()
	crashes := rand.New(rand.NewPCG(seed, 1))
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	began, lives := time.Now(), 0
	for l.distinct() < events && ctx.Err() == nil {
		lives++
		one, stop := context.WithCancel(ctx)
		go func() { // the last life ends when all is read
			for l.distinct() < events && one.Err() == nil {
				time.Sleep(20 * time.Millisecond)
			}
			stop()
		}()
		life(one, t, hubConfig(t, h), l, func(string) int { return 500 + crashes.IntN(12_000) })
		stop()
	}
	<-done
	s := h.Stats()
	t.Logf("%d records in %.1f s, %d lives, %d came again after a crash; faults: %+v", l.distinct(), time.Since(began).Seconds(), lives, l.taken-l.distinct(), s)
	if l.distinct() != events {
		t.Fatalf("%d of %d records", l.distinct(), events)
	}
	for id := range l.seen {
		if !strings.HasPrefix(id, "00000000-") {
			t.Fatalf("unknown record %q", id)
		}
	}
	if len(l.gaps)+len(l.refused) != 0 {
		t.Errorf("gaps %q, refused %q", l.gaps, l.refused)
	}
	if lives < 3 || s.Detaches == 0 || s.Cuts == 0 || s.Expired == 0 || s.Repeats == 0 || s.Busy == 0 {
		t.Errorf("a fault did not happen: %d lives, %+v", lives, s)
	}
	// A crash repeats at most the records of the message it was in.
	if again := l.taken - l.distinct(); again > lives*partitions*8 {
		t.Errorf("%d records came again, more than the crashes explain", again)
	}
}
