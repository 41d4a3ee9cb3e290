// Package compose holds the files for Docker Compose; its test checks them
// against the programs that read them.
package compose

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
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

// TestSensorsRights: the sensor has the rights of the DaemonSet, whose test runs
// it with them.
func TestSensorsRights(t *testing.T) {
	type rights struct {
		Drop, Add []string
	}
	var compose struct {
		Services map[string]struct {
			Privileged  bool
			ReadOnly    bool     `yaml:"read_only"`
			CapDrop     []string `yaml:"cap_drop"`
			CapAdd      []string `yaml:"cap_add"`
			SecurityOpt []string `yaml:"security_opt"`
		}
	}
	var daemonSet struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						SecurityContext struct{ Capabilities rights } `yaml:"securityContext"`
					}
				}
			}
		}
	}
	for file, into := range map[string]any{"compose.yaml": &compose, "../kubernetes/sensor/daemonset.yaml": &daemonSet} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(b, into); err != nil {
			t.Fatal(err)
		}
	}
	s, want := compose.Services["sensor"], daemonSet.Spec.Template.Spec.Containers[0].SecurityContext.Capabilities
	if len(want.Add) == 0 || !slices.Equal(s.CapAdd, want.Add) || !slices.Equal(s.CapDrop, want.Drop) || s.Privileged || !s.ReadOnly {
		t.Errorf("the sensor has %+v, want %+v", s, want)
	}
	if !slices.Contains(s.SecurityOpt, "no-new-privileges=true") || !slices.Contains(s.SecurityOpt, "seccomp=../kubernetes/sensor/seccomp.json") {
		t.Errorf("security_opt is %q", s.SecurityOpt)
	}
}
