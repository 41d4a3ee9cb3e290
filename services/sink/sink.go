// Package sink writes enriched events from PICKET_EVENTS into ClickHouse, one
// table for each class, every event exactly once. The work is package store's.
package sink

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"picket/internal/bus"
	"picket/internal/health"
	"picket/internal/service"
	"picket/internal/store"
	"picket/schemas"
)

// stopGrace is how long a stopping sink goes on to insert what it holds.
const stopGrace = 15 * time.Second

// Config is the sink's configuration.
type Config struct {
	NATS       bus.Config          `yaml:"nats"`
	Log        service.LogConfig   `yaml:"log"`
	Admin      service.AdminConfig `yaml:"admin"`
	ClickHouse store.Config        `yaml:"clickhouse"`
	Insert     store.InsertConfig  `yaml:"insert"`

	Cluster string `yaml:"cluster" doc:"Cluster under which the sink reports its own health."`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{NATS: bus.DefaultConfig(), Log: service.DefaultLog(), Admin: service.DefaultAdmin(), ClickHouse: store.DefaultConfig(), Insert: store.DefaultInsert(), Cluster: "default"}
}

// Validate checks the configuration; messages name the YAML key.
func (c Config) Validate() error {
	errs := []error{c.NATS.Validate(), c.Log.Validate(), c.Admin.Validate(), c.ClickHouse.Validate(), c.Insert.Validate()}
	if c.Cluster == "" {
		errs = append(errs, errors.New("cluster is empty: name the cluster"))
	}
	return errors.Join(errs...)
}

// Run runs the sink until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	rt, err := service.Start(schemas.ServiceSink, cfg.NATS, cfg.Log, cfg.Admin)
	if err != nil {
		return err
	}
	defer rt.Close()
	if err := rt.Verify(ctx, schemas.StreamEvents, schemas.StreamRaw); err != nil {
		return err
	}
	rt.Started()
	reporter := health.New(schemas.ServiceSink, cfg.Cluster, "", bus.NewRunID(), rt.Log, rt.Metrics)

	// The reporter outlives the writer: it reports what is stored at the end.
	reports, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return reporter.Run(reports, health.Direct(rt.Bus)) })
	err = store.RunWriter(ctx, cfg.ClickHouse, rt, store.WriterOptions{
		Stream: schemas.StreamEvents, Durable: schemas.DurableSink, Source: store.NewEvents(),
		Insert: cfg.Insert, Grace: stopGrace, Service: schemas.ServiceSink, Health: reporter,
	})
	stop()
	return errors.Join(err, g.Wait())
}
