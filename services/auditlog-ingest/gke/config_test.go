package gke_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	yamlv3 "go.yaml.in/yaml/v3"

	"picket/services/auditlog-ingest/gke"
	"picket/services/auditlog-ingest/gke/gketest"
	"picket/services/auditlog-ingest/source"
)

func TestConfig(t *testing.T) {
	for _, c := range []struct{ yaml, want string }{ // empty: valid
		{``, ""},
		{`subscriptions: [{subscription: projects/p/subscriptions/s}]`, ""},
		{`subscriptions: [{subscription: projects/p/subscriptions/s, since: 2026-01-31T00:00:00Z}]
logs: [{resource: projects/p, start: beginning, until: 2026-01-31T00:00:00Z}, {resource: folders/12, start: 2026-01-01T00:00:00Z}, {resource: projects/p/locations/global/buckets/_Default/views/_AllLogs}]
clusters: [{project: p, location: l, cluster: c, name: prod}]
other_clusters: refuse
pubsub_endpoint: pubsub.p.googleapis.com:443
logging_endpoint: http://127.0.0.1:1`, ""},
		{`subscriptions: [{subscription: picket}]`, `gke.subscriptions[0].subscription is "picket"`},
		{`subscriptions: [{subscription: projects/p/subscriptions/s~}]`, `gke.subscriptions[0].name is "s~"`},
		{`subscriptions: [{subscription: projects/p/subscriptions/s}, {subscription: projects/q/subscriptions/s}]`, `gke.subscriptions[0].name and gke.subscriptions[1].name are both "s"`},
		{`subscriptions: [{subscription: projects/p/subscriptions/s}]
logs: [{resource: projects/p, name: s}]`, `gke.subscriptions[0].name and gke.logs[0].name are both "s"`},
		{`subscriptions: [{subscription: projects/p/subscriptions/s, since: yesterday}]`, `gke.subscriptions[0].since is "yesterday"`},
		{`logs: [{resource: p}]`, `gke.logs[0].resource is "p"`},
		{`logs: [{resource: projects/p, start: yesterday}]`, `gke.logs[0].start is "yesterday"`},
		{`logs: [{resource: projects/p, until: "2026"}]`, `gke.logs[0].until is "2026"`},
		{`{logs: [{resource: projects/p}], clusters: [{project: p, cluster: c, name: x}]}`, `gke.clusters[0]`},
		{`{logs: [{resource: projects/p}], clusters: [{project: p, location: l, cluster: c, name: a b}]}`, `gke.clusters[0].name is "a b"`},
		{`{logs: [{resource: projects/p}], clusters: [{project: p, location: l, cluster: c, name: a}, {project: p, location: l, cluster: c, name: b}]}`, `gke.clusters[1]`},
		{`{logs: [{resource: projects/p}], other_clusters: drop}`, `gke.other_clusters is "drop"`},
		{`{logs: [{resource: projects/p}], other_clusters: refuse}`, `gke.clusters is empty`},
		{`{logs: [{resource: projects/p}], overlap: 1s}`, `gke.overlap is 1s`},
		{`{logs: [{resource: projects/p}], poll_interval: 1h}`, `gke.poll_interval is 1h0m0s`},
		{`{logs: [{resource: projects/p}], retention: 1h}`, `gke.retention is 1h0m0s`},
		{`{logs: [{resource: projects/p}], reads_per_minute: 0}`, `gke.reads_per_minute is 0`},
		{`{logs: [{resource: projects/p}], logging_endpoint: "http://10.0.0.1:80"}`, `gke.logging_endpoint is "http://10.0.0.1:80": without TLS`},
		{`{logs: [{resource: projects/p}], pubsub_endpoint: "https://u:secret@x:1"}`, `gke.pubsub_endpoint`},
	} {
		cfg := gke.DefaultConfig()
		if err := yamlv3.Unmarshal([]byte(c.yaml), &cfg); err != nil {
			t.Fatalf("%s: %v", c.yaml, err)
		}
		err := cfg.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s\n  error %v, want %q in it", c.yaml, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", c.yaml, err)
		}
	}
}

// permissions are what Google asks for each method
// (https://cloud.google.com/pubsub/docs/access-control, https://cloud.google.com/logging/docs/access-control).
var permissions = map[string][]string{
	"/google.pubsub.v1.Subscriber/StreamingPull":         {"pubsub.subscriptions.consume"},
	"/google.pubsub.v1.Subscriber/Acknowledge":           {"pubsub.subscriptions.consume"},
	"/google.pubsub.v1.Subscriber/ModifyAckDeadline":     {"pubsub.subscriptions.consume"},
	"/google.pubsub.v1.Subscriber/GetSubscription":       {"pubsub.subscriptions.get"},
	"/google.logging.v2.LoggingServiceV2/ListLogEntries": {"logging.logEntries.list", "logging.privateLogEntries.list", "logging.views.access"},
}

// TestRoles: the roles of deploy/audit/gke have what the sources ask of Google, and
// nothing else.
func TestRoles(t *testing.T) {
	for file, set := range map[string]func(*gke.Config){
		"role-subscription.yaml": func(c *gke.Config) {
			c.Subscriptions = []gke.Subscription{{Subscription: subscriptionPath}}
		},
		"role-logs.yaml": func(c *gke.Config) {
			c.Logs = []gke.Logs{{Resource: "projects/shop-1234", Start: source.StartBeginning}}
		},
	} {
		srv := start(t, 1)
		srv.Subscription(subscriptionPath, 7*24*time.Hour)
		list, _ := entries(t, 10, time.Now().Add(-2*time.Hour), time.Minute, rand.New(rand.NewPCG(1, 1)))
		srv.Add(list...)
		for _, e := range list {
			data, err := gketest.JSON(e)
			if err != nil {
				t.Fatal(err)
			}
			srv.Publish(subscriptionPath, data)
		}
		cfg := config(srv)
		set(&cfg)
		w := newStore()
		began := time.Now()
		w.run(t, cfg, 1, 0, func() bool {
			return w.len() == 10 && (len(cfg.Logs) > 0 || srv.Left(subscriptionPath) == 0) || time.Since(began) > 10*time.Second
		})
		want := map[string]bool{}
		for _, method := range srv.Asked() {
			if permissions[method] == nil {
				t.Errorf("%s was called: what permission does it need?", method)
			}
			for _, p := range permissions[method] {
				want[p] = true
			}
		}
		data, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "audit", "gke", file))
		if err != nil {
			t.Fatal(err)
		}
		var role struct {
			Permissions []string `yaml:"includedPermissions"`
		}
		if err := yamlv3.Unmarshal(data, &role); err != nil {
			t.Fatal(err)
		}
		var needed []string
		for p := range want {
			needed = append(needed, p)
		}
		slices.Sort(needed)
		slices.Sort(role.Permissions)
		if !slices.Equal(needed, role.Permissions) {
			t.Errorf("%s has %q, the source needs %q", file, role.Permissions, needed)
		}
	}
}

func TestSources(t *testing.T) {
	cfg := gke.DefaultConfig()
	cfg.Subscriptions = []gke.Subscription{{Subscription: "projects/p/subscriptions/picket"}, {Subscription: "projects/q/subscriptions/picket", Name: "q"}}
	cfg.Logs = []gke.Logs{{Resource: "projects/small"}}
	p, err := gke.New(cfg, quiet, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // again, the same
		sources, err := p.Sources(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range sources {
			names = append(names, s.Name())
			if s.Kind() != "gke" || s.Ready() == nil {
				t.Errorf("%s: kind %q, ready before it ran: %v", s.Name(), s.Kind(), s.Ready() == nil)
			}
		}
		if !slices.Equal(names, []string{"picket", "q", "small"}) {
			t.Errorf("sources %q", names)
		}
	}
}
