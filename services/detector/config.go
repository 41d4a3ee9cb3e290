package detector

import (
	"errors"
	"fmt"
	"os"

	"picket/internal/bus"
	"picket/internal/service"
	"picket/internal/store"
)

// Config is the detector's configuration.
type Config struct {
	NATS       bus.Config          `yaml:"nats"`
	Log        service.LogConfig   `yaml:"log"`
	Admin      service.AdminConfig `yaml:"admin"`
	ClickHouse store.Config        `yaml:"clickhouse"`

	Cluster string   `yaml:"cluster" doc:"Cluster under which the detector reports its own health."`
	Rules   []string `yaml:"rules" doc:"Rule files and folders (*.yaml, *.yml), loaded in this order, and again when they change. Empty: the pack that comes with Picket. A pack that was pushed (picket rules push) stands in place of either."`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{NATS: bus.DefaultConfig(), Log: service.DefaultLog(), Admin: service.DefaultAdmin(), ClickHouse: store.DefaultConfig(), Cluster: "default", Rules: []string{}}
}

// Validate checks the configuration; messages name the YAML key.
func (c Config) Validate() error {
	errs := []error{c.NATS.Validate(), c.Log.Validate(), c.Admin.Validate(), c.ClickHouse.Validate()}
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
