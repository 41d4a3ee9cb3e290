package enricher

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"picket/internal/config"
)

func TestDefaultConfigIsValid(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}

func TestConfigFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "enricher.yaml")
	if err := os.WriteFile(file, []byte("cluster: eu.prod\nkubernetes:\n  enabled: true\n  wait_for_pod: 500ms\n  held_max: 16\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load("enricher", DefaultConfig(), []string{"--config", file, "--kubernetes.held_max=32"}, []string{"PICKET_ENRICHER__KUBERNETES__DELETED_KEPT=1h"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	k := cfg.Kubernetes
	if cfg.Cluster != "eu.prod" || !k.Enabled || k.WaitForPod != 500*time.Millisecond || k.HeldMax != 32 || k.DeletedKept != time.Hour || k.HeldBytes != 32<<20 {
		t.Errorf("%+v", cfg)
	}
}

func TestConfigErrors(t *testing.T) {
	for _, tt := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.NATS.URL = "" }, "nats.url is empty"},
		{func(c *Config) { c.Log.Level = "loud" }, "log.level is"},
		{func(c *Config) { c.Cluster = "" }, "cluster is empty: name the cluster as its sensors do"},
		{func(c *Config) { c.Kubernetes.Context = "x" }, `kubernetes.context is "x", but kubernetes.kubeconfig names no file`},
		{func(c *Config) { c.Kubernetes.SyncTimeout = -1 }, "kubernetes.sync_timeout is -1ns: use 0 to 10m"},
		{func(c *Config) { c.Kubernetes.DeletedKept = 25 * time.Hour }, "kubernetes.deleted_kept is 25h0m0s: use 0 to 24h"},
		{func(c *Config) { c.Kubernetes.WaitForPod = time.Minute }, "kubernetes.wait_for_pod is 1m0s: use 0 to 10s"},
		{func(c *Config) { c.Kubernetes.DeletedMax = 0 }, "kubernetes.deleted_max is 0: use 1 to 1000000"},
		{func(c *Config) { c.Kubernetes.HeldMax = 0 }, "kubernetes.held_max is 0: use 1 to 10000"},
		{func(c *Config) { c.Kubernetes.HeldBytes = 1 }, "kubernetes.held_bytes is 1: use at least 1048576 (1 MiB)"},
	} {
		cfg := DefaultConfig()
		tt.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
		if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Run: got %v, want %q", err, tt.want)
		}
	}
}

// TestPageIsComplete: the page about the enricher names every metric.
func TestPageIsComplete(t *testing.T) {
	data, err := os.ReadFile("../../docs/enricher.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	reg := prometheus.NewRegistry()
	m := newMetrics(reg)
	m.watch(reg, newIndex(0, 1), &watcher{})
	descs := make(chan *prometheus.Desc, 100)
	reg.Describe(descs)
	close(descs)
	for d := range descs {
		name := strings.TrimPrefix(strings.SplitN(d.String(), `"`, 3)[1], "picket_enricher_")
		if !strings.Contains(page, "`"+name+"`") {
			t.Errorf("metric %s is not on the page", name)
		}
	}
}
