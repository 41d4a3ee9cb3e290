package detector

import (
	"errors"
	"fmt"
	"os"
	"time"

	"picket/internal/bus"
	"picket/internal/correlation"
	"picket/internal/service"
	"picket/internal/store"
)

// Config is the detector's configuration.
type Config struct {
	NATS       bus.Config          `yaml:"nats"`
	Log        service.LogConfig   `yaml:"log"`
	Admin      service.AdminConfig `yaml:"admin"`
	ClickHouse store.Config        `yaml:"clickhouse"`

	Cluster     string            `yaml:"cluster" doc:"Cluster under which the detector reports its own health."`
	Correlation CorrelationConfig `yaml:"correlation"`

	Rules []string `yaml:"rules" doc:"Rule files and folders (*.yaml, *.yml), loaded in this order, and again when they change. Empty: the pack that comes with Picket. A pack that was pushed (picket rules push) stands in place of either."`
}

// CorrelationConfig bounds what rules about several events remember. All detectors
// that share the work have the same.
type CorrelationConfig struct {
	Lateness time.Duration `yaml:"lateness" doc:"How much older than the newest event of its key an event may be and still count for a rule about several events, 0 to 1h."`
	Keys     int           `yaml:"keys" doc:"Keys of one such rule that are remembered in each of 64 partitions, 10 to 1000000. Those not seen for longest go, and are counted."`
	Bytes    int           `yaml:"bytes" doc:"Memory in bytes that each of 64 partitions may take, 65536 to 67108864. What is stored of it, compressed, is at most 960 KiB."`
}

// Offline bounds what rules about several events remember where recordings or stored
// events are evaluated: the default lateness, and more room than a detector has, because
// it is one state and not 64.
func Offline() correlation.Limits {
	return correlation.Limits{Lateness: DefaultConfig().Correlation.Lateness, Keys: 200_000, Bytes: 256 << 20}
}

// Validate checks the part; messages name the YAML key.
func (c CorrelationConfig) Validate() error {
	var errs []error
	if c.Lateness < 0 || c.Lateness > time.Hour {
		errs = append(errs, fmt.Errorf("correlation.lateness is %s: use 0 to 1h", c.Lateness))
	}
	if c.Keys < 10 || c.Keys > 1_000_000 {
		errs = append(errs, fmt.Errorf("correlation.keys is %d: use 10 to 1000000", c.Keys))
	}
	if c.Bytes < 64<<10 || c.Bytes > 64<<20 {
		errs = append(errs, fmt.Errorf("correlation.bytes is %d: use 65536 to 67108864", c.Bytes))
	}
	return errors.Join(errs...)
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{NATS: bus.DefaultConfig(), Log: service.DefaultLog(), Admin: service.DefaultAdmin(), ClickHouse: store.DefaultConfig(), Cluster: "default", Correlation: CorrelationConfig{Lateness: 2 * time.Minute, Keys: 10_000, Bytes: 4 << 20}, Rules: []string{}}
}

// Validate checks the configuration; messages name the YAML key.
func (c Config) Validate() error {
	errs := []error{c.NATS.Validate(), c.Log.Validate(), c.Admin.Validate(), c.ClickHouse.Validate(), c.Correlation.Validate()}
	if c.Cluster == "" {
		errs = append(errs, errors.New("cluster is empty: name the cluster"))
	}
	for _, p := range c.Rules {
		if _, err := os.Stat(p); err != nil {
			errs = append(errs, fmt.Errorf("rules: %w", err))
		}
	}
	return errors.Join(errs...)
}
