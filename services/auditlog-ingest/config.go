package auditlogingest

import (
	"errors"
	"fmt"

	"picket/internal/bus"
	"picket/internal/service"
	"picket/services/auditlog-ingest/file"
	"picket/services/auditlog-ingest/webhook"
)

// Config is the configuration of the service.
type Config struct {
	NATS       bus.Config          `yaml:"nats"`
	Log        service.LogConfig   `yaml:"log"`
	Admin      service.AdminConfig `yaml:"admin"`
	Cluster    string              `yaml:"cluster" doc:"Name of the cluster whose audit events these are; the same as in its sensors."`
	StateDir   string              `yaml:"state_dir" doc:"Folder for batches that NATS has not taken yet, checkpoints and remembered event ids. Its own for each ingester."`
	SpoolBytes int64               `yaml:"spool_bytes" doc:"Bound of the spool in bytes, at least 1 MiB. When it is full the web hook answers 429 and the file is read no further."`
	Webhook    webhook.Config      `yaml:"webhook"`
	File       file.Config         `yaml:"file"`
	Redact     RedactConfig        `yaml:"redact"`
}

// DefaultConfig returns the configuration that holds where nothing else is said.
func DefaultConfig() Config {
	return Config{
		NATS: bus.DefaultConfig(), Log: service.DefaultLog(), Admin: service.DefaultAdmin(),
		Cluster: "default", StateDir: "/var/lib/picket/auditlog-ingest", SpoolBytes: 512 << 20,
		Webhook: webhook.DefaultConfig(),
		File:    file.DefaultConfig(),
		Redact:  DefaultRedact(),
	}
}

// Validate checks the configuration; messages name the YAML key.
func (c Config) Validate() error {
	if c.Cluster == "" {
		return errors.New("cluster is empty: give the name of the cluster, the same as in its sensors")
	}
	if c.StateDir == "" {
		return errors.New("state_dir is empty: give a folder that survives restarts")
	}
	if c.SpoolBytes < 1<<20 {
		return fmt.Errorf("spool_bytes is %d: give at least 1048576", c.SpoolBytes)
	}
	if c.Webhook.Listen == "" && c.File.Path == "" {
		return errors.New("no source: give webhook.listen or file.path")
	}
	if c.Webhook.Listen != "" && c.File.Path != "" && c.Webhook.Name == c.File.Name {
		return fmt.Errorf("webhook.name and file.name are both %q: sources of a cluster have different names", c.File.Name)
	}
	return errors.Join(c.NATS.Validate(), c.Log.Validate(), c.Admin.Validate(), c.Webhook.Validate(), c.File.Validate(), c.Redact.Validate())
}
