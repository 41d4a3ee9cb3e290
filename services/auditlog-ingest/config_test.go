package auditlogingest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestConfig: what cannot work is refused at the start, by its YAML key.
func TestConfig(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for key, change := range map[string]func(*Config){
		"":                       func(*Config) {},
		"cluster":                func(c *Config) { c.Cluster = "" },
		"state_dir":              func(c *Config) { c.StateDir = "" },
		"spool_bytes":            func(c *Config) { c.SpoolBytes = 1<<20 - 1 },
		"no source":              func(c *Config) { c.Webhook.Listen, c.File.Path = "", "" },
		"webhook.name and":       func(c *Config) { c.File.Name = c.Webhook.Name },
		"webhook.listen":         func(c *Config) { c.Webhook.Listen = "9443" },
		"webhook.name is":        func(c *Config) { c.Webhook.Name = "a b" },
		"webhook.path":           func(c *Config) { c.Webhook.Path = "audit" },
		"webhook.cert_file and":  func(c *Config) { c.Webhook.KeyFile = "k" },
		"webhook.client_ca_file": func(c *Config) { c.Webhook.ClientCAFile = "ca" },
		"webhook.cert_file,":     func(c *Config) { c.Webhook.CertFile, c.Webhook.KeyFile = empty, empty },
		"webhook.max_body_bytes": func(c *Config) { c.Webhook.MaxBodyBytes = 1 },
		"webhook.token_file":     func(c *Config) { c.Webhook.TokenFile = empty },
		"file.name":              func(c *Config) { c.File.Name = "" },
		"file.start":             func(c *Config) { c.File.Start = "middle" },
		"redact.keys":            func(c *Config) { c.Redact.Keys = []string{"-*"} },
	} {
		c := DefaultConfig()
		c.Webhook.Listen, c.File.Path = "127.0.0.1:9443", "/var/log/audit.log"
		change(&c)
		err := c.Validate()
		if key == "" && err != nil || key != "" && (err == nil || !strings.HasPrefix(err.Error(), key)) {
			t.Errorf("%q: %v", key, err)
		}
	}
}
