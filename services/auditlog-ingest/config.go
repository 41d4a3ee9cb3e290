package auditlogingest

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"picket/internal/bus"
	"picket/internal/service"
	"picket/services/auditlog-ingest/file"
	"picket/services/auditlog-ingest/gke"
	"picket/services/auditlog-ingest/source"
	"picket/services/auditlog-ingest/webhook"
)

// Config is the configuration of the service.
type Config struct {
	NATS        bus.Config          `yaml:"nats"`
	Log         service.LogConfig   `yaml:"log"`
	Admin       service.AdminConfig `yaml:"admin"`
	Cluster     string              `yaml:"cluster" doc:"Name of the cluster whose audit events these are; the same as in its sensors."`
	StateDir    string              `yaml:"state_dir" doc:"Folder for batches that NATS has not taken yet, checkpoints and remembered event ids. Its own for each ingester."`
	SpoolBytes  int64               `yaml:"spool_bytes" doc:"Bound of the spool in bytes, at least 1 MiB. When it is full the web hook answers 429 and the file is read no further."`
	Webhook     webhook.Config      `yaml:"webhook"`
	File        file.Config         `yaml:"file"`
	GKE         gke.Config          `yaml:"gke"`
	Drop        []Drop              `yaml:"drop" doc:"Events that are left out and counted: a list of name and condition (rule language). A list of your own stands in place of the default; [] leaves nothing out."`
	LagAlert    time.Duration       `yaml:"lag_alert" doc:"A source whose newest event is older than this is reported (source_late). 0: never."`
	SilentAlert time.Duration       `yaml:"silent_alert" doc:"A source that brought nothing for this long is reported (source_silent). 0: never."`
	Redact      RedactConfig        `yaml:"redact"`
}

// DefaultConfig returns the configuration that holds where nothing else is said.
func DefaultConfig() Config {
	return Config{
		NATS: bus.DefaultConfig(), Log: service.DefaultLog(), Admin: service.DefaultAdmin(),
		Cluster: "default", StateDir: "/var/lib/picket/auditlog-ingest", SpoolBytes: 512 << 20,
		Webhook: webhook.DefaultConfig(),
		File:    file.DefaultConfig(),
		GKE:     gke.DefaultConfig(),
		Drop:    DefaultDrop(), LagAlert: 15 * time.Minute, SilentAlert: 30 * time.Minute,
		Redact: DefaultRedact(),
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
	if c.Webhook.Listen == "" && c.File.Path == "" && len(c.providers()) == 0 {
		return errors.New("no source: give webhook.listen or file.path, or what a cloud's part asks for")
	}
	for key, d := range map[string]time.Duration{"lag_alert": c.LagAlert, "silent_alert": c.SilentAlert} {
		if d < 0 || d > 0 && d < 10*time.Second {
			return fmt.Errorf("%s is %s: give 0, which switches it off, or at least 10s", key, d)
		}
	}
	if _, err := newDrops(c.Drop); err != nil {
		return err
	}
	if c.Webhook.Listen != "" && c.File.Path != "" && c.Webhook.Name == c.File.Name {
		return fmt.Errorf("webhook.name and file.name are both %q: sources of a cluster have different names", c.File.Name)
	}
	return errors.Join(c.NATS.Validate(), c.Log.Validate(), c.Admin.Validate(), c.Webhook.Validate(), c.File.Validate(), c.GKE.Validate(), c.Redact.Validate())
}

// shared is a part of the configuration that makes a Provider.
type shared struct {
	name string
	open func(log *slog.Logger, reg prometheus.Registerer) (source.Provider, error)
}

// providers are the parts that are in use: one entry for each cloud.
func (c Config) providers() []shared {
	var out []shared
	// if c.EKS.Enabled() {
	// 	out = append(out, shared{"eks", func(log *slog.Logger, reg prometheus.Registerer) (source.Provider, error) { return eks.New(c.EKS, log, reg) }})
	// }
	if c.GKE.Enabled() {
		out = append(out, shared{"gke", func(log *slog.Logger, reg prometheus.Registerer) (source.Provider, error) {
			return gke.New(c.GKE, log, reg)
		}})
	}
	return out
}
