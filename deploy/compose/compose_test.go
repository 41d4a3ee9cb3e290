// Package compose holds the files for Docker Compose; its test checks them
// against the programs that read them.
package compose

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"picket/internal/config"
	auditlogingest "picket/services/auditlog-ingest"
	"picket/services/detector"
	"picket/services/enricher"
	"picket/services/sensor"
	"picket/services/sink"
)

// check loads a service's file as the service does.
func check[C config.Validator](t *testing.T, name string, defaults C) {
	t.Helper()
	creds := filepath.Join(t.TempDir(), name+".creds")
	if err := os.WriteFile(creds, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("config", name+".yaml")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := "/etc/picket-credentials/" + name + ".creds"; !strings.Contains(string(b), want) {
		t.Errorf("%s does not use %s", file, want)
	}
	_, err = config.Load(name, defaults, []string{"--config", file, "--nats.credentials_file", creds, "--check-config"}, nil, t.Output())
	if !errors.Is(err, config.ErrDone) {
		t.Errorf("%s: %v", file, err)
	}
}

func TestConfigs(t *testing.T) {
	check(t, "sensor", sensor.DefaultConfig())
	check(t, "auditlog-ingest", auditlogingest.DefaultConfig())
	check(t, "enricher", enricher.DefaultConfig())
	check(t, "detector", detector.DefaultConfig())
	check(t, "sink", sink.DefaultConfig())
}

func TestComposeRunsCommandsThatExist(t *testing.T) {
	b, err := os.ReadFile("compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Services map[string]struct {
			Image   string
			Command []string
		}
	}
	if err := yaml.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	ours := 0
	for name, s := range c.Services {
		if s.Image != "picket:local" {
			continue
		}
		ours++
		if _, err := os.Stat(filepath.Join("..", "..", "cmd", s.Command[0])); err != nil {
			t.Errorf("service %s: %v", name, err)
		}
	}
	if ours != 6 {
		t.Errorf("%d services of Picket's, want 6", ours)
	}
}
