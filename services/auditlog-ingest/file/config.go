// Package file follows an API server's audit log file.
package file

import (
	"fmt"

	"picket/services/auditlog-ingest/source"
)

// Config is the `file` part of the configuration.
type Config struct {
	Path  string `yaml:"path" doc:"Audit log file (JSON lines) to follow. Empty: none."`
	Name  string `yaml:"name" doc:"Name of this source, the column node of its events. Unique in the cluster: with several API servers, the name of the node."`
	Start string `yaml:"start" doc:"Where to begin when there is no checkpoint yet: beginning (of the current file) or end (only what is written from now on)."`
}

// Values of Config.Start.
const (
	StartBeginning = "beginning"
	StartEnd       = "end"
)

// DefaultConfig returns the defaults: off.
func DefaultConfig() Config { return Config{Name: "file", Start: StartBeginning} }

// Validate checks the part; messages name the YAML key.
func (c Config) Validate() error {
	if c.Path == "" {
		return nil
	}
	if err := source.ValidName("file.name", c.Name); err != nil {
		return err
	}
	if c.Start != StartBeginning && c.Start != StartEnd {
		return fmt.Errorf("file.start is %q: use %s or %s", c.Start, StartBeginning, StartEnd)
	}
	return nil
}
