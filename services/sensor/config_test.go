package sensor

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"picket/internal/config"
)

// named is the default configuration on a host that has a name.
func named() Config {
	c := DefaultConfig()
	c.Node = "node-1"
	return c
}

func TestConfigValidate(t *testing.T) {
	if err := named().Validate(); err != nil {
		t.Errorf("default: %v", err)
	}
	for _, tt := range []struct {
		change func(*Config)
		want   string // "" is valid
	}{
		{func(c *Config) { c.NATS.URL = "" }, "nats.url is empty"},
		{func(c *Config) { c.Log.Level = "loud" }, `log.level is "loud"`},
		{func(c *Config) { c.Admin.Listen, c.Admin.Pprof = ":9090", true }, "admin.pprof is on"},
		{func(c *Config) { c.Cluster = "" }, "cluster is empty: name the cluster"},
		{func(c *Config) { c.Node = "" }, "node is empty and the host has no name: name the node"},
		{func(c *Config) { c.StateDir = "" }, "state_dir is empty: give a folder for the spool"},
		{func(c *Config) { c.SpoolBytes = 1<<20 - 1 }, "spool_bytes is 1048575: use at least 1048576 (1 MiB)"},
		{func(c *Config) { c.SpoolBytes = 1 << 20 }, ""},
		{func(c *Config) { c.FlushInterval = time.Millisecond - 1 }, "flush_interval is 999.999µs: use 1ms to 1s"},
		{func(c *Config) { c.FlushInterval = time.Second + 1 }, "flush_interval is 1.000000001s: use 1ms to 1s"},
		{func(c *Config) { c.FlushInterval = time.Millisecond }, ""},
		{func(c *Config) { c.FlushInterval = time.Second }, ""},
		{func(c *Config) { c.Kernel.WatchedPaths = nil }, ""},
		{func(c *Config) { c.Kernel.WatchedPaths = []string{"/etc/", "relative"} }, `kernel.watched_paths: "relative" is not an absolute path of at most 256 bytes`},
		{func(c *Config) { c.Kernel.WatchedPaths = []string{""} }, `kernel.watched_paths: "" is not`},
		{func(c *Config) { c.Kernel.WatchedPaths = []string{"/" + strings.Repeat("x", 255)} }, ""},
		{func(c *Config) { c.Kernel.WatchedPaths = []string{"/" + strings.Repeat("x", 256)} }, "kernel.watched_paths"},
		{func(c *Config) { c.Kernel.BPFFS = "sys/fs/bpf" }, `kernel.bpffs is "sys/fs/bpf": use an absolute path`},
		{func(c *Config) { c.Kernel.Instance = "a/../b" }, `kernel.instance is "a/../b": use 1 to 64 letters`},
		{func(c *Config) { c.Kernel.Instance = "" }, `kernel.instance is ""`},
		{func(c *Config) { c.Kernel.ProcessRing = 5000 }, "kernel.process_ring_bytes is 5000: use a power of two from 4096 to 1073741824"},
		{func(c *Config) { c.Kernel.FileRing = 0 }, "kernel.file_ring_bytes is 0"},
		{func(c *Config) { c.Kernel.NetworkRing = 1 << 31 }, "kernel.network_ring_bytes is 2147483648"},
		{func(c *Config) { c.Kernel.NetworkRing = -4096 }, "kernel.network_ring_bytes is -4096"},
		{func(c *Config) { c.Kernel.NetworkRing = 1 << 30 }, ""},
	} {
		c := named()
		tt.change(&c)
		err := c.Validate()
		if tt.want == "" && err != nil {
			t.Errorf("got %v, want none", err)
		}
		if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
}

// Every fault is told at once.
func TestConfigValidateTellsAll(t *testing.T) {
	c := named()
	c.Cluster, c.StateDir, c.SpoolBytes = "", "", 0
	err := c.Validate()
	for _, key := range []string{"cluster", "state_dir", "spool_bytes"} {
		if err == nil || !strings.Contains(err.Error(), key+" is ") {
			t.Errorf("%v does not name %s", err, key)
		}
	}
}

func TestConfigFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sensor.yaml")
	if err := os.WriteFile(file, []byte("node: n1\nspool_bytes: 2097152\nkernel:\n  watched_paths: [/etc/]\nredact:\n  enabled: false\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load("sensor", named(), []string{"--config", file, "--kernel.keep_on_stop"}, []string{"PICKET_SENSOR__FLUSH_INTERVAL=20ms"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if c.Node != "n1" || c.SpoolBytes != 2<<20 || !slices.Equal(c.Kernel.WatchedPaths, []string{"/etc/"}) || c.Redact.Enabled || !c.Kernel.KeepOnStop ||
		c.FlushInterval != 20*time.Millisecond || c.Kernel.BPFFS != "/sys/fs/bpf" || c.Cluster != "default" {
		t.Errorf("%+v", c)
	}
}
