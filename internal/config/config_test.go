package config_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"picket/internal/config"
)

type inner struct {
	URL     string        `yaml:"url" doc:"Where."`
	Timeout time.Duration `yaml:"timeout" doc:"How long."`
}

type cfg struct {
	NATS  inner    `yaml:"nats"`
	Name  string   `yaml:"name" doc:"A name."`
	Size  int      `yaml:"size_bytes" doc:"A size."`
	On    bool     `yaml:"on_it" doc:"A switch."`
	Paths []string `yaml:"paths" doc:"Some paths."`
}

func (c cfg) Validate() error {
	if c.Size < 0 {
		return fmt.Errorf("size_bytes is %d: use 0 or more", c.Size)
	}
	return nil
}

var defaults = cfg{NATS: inner{URL: "nats://default", Timeout: time.Second}, Name: "n", Size: 5, Paths: []string{"/a"}}

func load(t *testing.T, yaml string, env []string, args ...string) (cfg, string, error) {
	t.Helper()
	if yaml != "" {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--config", path}, args...)
	}
	var out bytes.Buffer
	c, err := config.Load("my-service", defaults, args, env, &out)
	return c, out.String(), err
}

func TestLayers(t *testing.T) {
	file := "nats: {url: nats://file, timeout: 3s}\nsize_bytes: 7\npaths: [/b, /c]\n"
	tests := []struct {
		name string
		yaml string
		env  []string
		args []string
		want string
	}{
		{"defaults", "", nil, nil, "{{nats://default 1s} n 5 false [/a]}"},
		{"file", file, nil, nil, "{{nats://file 3s} n 7 false [/b /c]}"},
		{"env over file", file, []string{"PICKET_MY_SERVICE__NATS__URL=nats://env", "PICKET_MY_SERVICE__SIZE_BYTES=8", "PICKET_OTHER__X=1", "HOME=/"}, nil, "{{nats://env 3s} n 8 false [/b /c]}"},
		{"flag over env", file, []string{"PICKET_MY_SERVICE__NATS__URL=nats://env"}, []string{"--nats.url", "nats://flag", "--on_it", "--nats.timeout=2m"}, "{{nats://flag 2m0s} n 7 true [/b /c]}"},
		{"list from flag", "", nil, []string{"--paths=/x,/y"}, "{{nats://default 1s} n 5 false [/x /y]}"},
		{"flag equal to the default still wins", file, nil, []string{"--size_bytes=5"}, "{{nats://file 3s} n 5 false [/b /c]}"},
		{"empty file", "# nothing\n", nil, nil, "{{nats://default 1s} n 5 false [/a]}"},
	}
	for _, tt := range tests {
		c, _, err := load(t, tt.yaml, tt.env, tt.args...)
		if got := fmt.Sprint(c); err != nil || got != tt.want {
			t.Errorf("%s:\n got %s (%v)\nwant %s", tt.name, got, err, tt.want)
		}
	}
}

func TestErrorsNameTheKey(t *testing.T) {
	tests := []struct {
		name, yaml string
		env, args  []string
		want       []string
	}{
		{"unknown key", "name: x\nnats:\n  ulr: y\n", nil, nil, []string{"c.yaml", "line 3", "no setting ulr"}},
		{"wrong type", "size_bytes: many\n", nil, nil, []string{"line 1", "many"}},
		{"not YAML", "a: [\n", nil, nil, []string{"c.yaml", "line"}},
		{"unknown variable", "", []string{"PICKET_MY_SERVICE__NATS__ULR=x"}, nil, []string{"PICKET_MY_SERVICE__NATS__ULR", "no setting nats.ulr"}},
		{"unknown flag", "", nil, []string{"--nats.ulr=x"}, []string{"nats.ulr"}},
		{"argument", "", nil, []string{"run"}, []string{`"run"`}},
		{"invalid", "size_bytes: -1\n", nil, nil, []string{"size_bytes is -1"}},
		{"missing file", "", nil, []string{"--config", "/does/not/exist"}, []string{"/does/not/exist"}},
	}
	for _, tt := range tests {
		_, _, err := load(t, tt.yaml, tt.env, tt.args...)
		if err == nil {
			t.Errorf("%s: no error", tt.name)
			continue
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", tt.name, err, w)
			}
		}
	}
}

func TestPrintAndCheck(t *testing.T) {
	_, out, err := load(t, "name: printed\n", nil, "--print-config")
	if !errors.Is(err, config.ErrDone) || !strings.Contains(out, "name: printed") || !strings.Contains(out, "timeout: 1s") {
		t.Errorf("--print-config: %v\n%s", err, out)
	}
	// What is printed is a configuration.
	if again, _, err := load(t, out, nil); err != nil || again.Name != "printed" {
		t.Errorf("printed configuration does not load: %v", err)
	}
	if _, out, err = load(t, "", nil, "--check-config"); !errors.Is(err, config.ErrDone) || !strings.Contains(out, "valid") {
		t.Errorf("--check-config: %v %q", err, out)
	}
	if _, _, err = load(t, "size_bytes: -1\n", nil, "--check-config"); err == nil || errors.Is(err, config.ErrDone) {
		t.Errorf("--check-config of a bad one: %v", err)
	}
	if _, out, err = load(t, "", nil, "--help"); !errors.Is(err, config.ErrDone) || !strings.Contains(out, "--nats.url") || !strings.Contains(out, "Where.") {
		t.Errorf("--help: %v\n%s", err, out)
	}
}
