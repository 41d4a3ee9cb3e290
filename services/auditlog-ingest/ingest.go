package auditlogingest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"picket/internal/health"
	"picket/internal/outbox"
	"picket/internal/service"
	"picket/schemas"
	"picket/services/auditlog-ingest/file"
	"picket/services/auditlog-ingest/source"
	"picket/services/auditlog-ingest/webhook"
)

// stopGrace is how long a stopping ingester tries to publish what is spooled.
// What is left goes out with the next start.
const stopGrace = 5 * time.Second

// lookEvery is how often it is looked how far behind the sources are.
const lookEvery = 5 * time.Second

// Run takes audit records from the configured sources and publishes them until
// ctx ends. It starts without NATS: records wait in the spool.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	rt, err := service.Start(schemas.ServiceAudit, cfg.NATS, cfg.Log, cfg.Admin)
	if err != nil {
		return err
	}
	defer rt.Close()
	box, err := outbox.Open(filepath.Join(cfg.StateDir, "spool"), cfg.SpoolBytes, schemas.ServiceAudit, rt.Bus, rt.Log, rt.Metrics)
	if err != nil {
		return err
	}
	g, err := newGround(cfg, box, rt)
	if err != nil {
		return errors.Join(err, box.Close())
	}
	defer g.seen.close()
	var sources []source.Source
	if cfg.Webhook.Listen != "" {
		w, err := webhook.New(cfg.Webhook, rt.Log, rt.Metrics)
		if err != nil {
			return errors.Join(err, box.Close())
		}
		sources = append(sources, w)
	}
	if cfg.File.Path != "" {
		sources = append(sources, file.New(cfg.File, rt.Log))
	}
	for _, s := range sources {
		rt.SetReady(s.Name(), s.Ready)
	}
	var providers []source.Provider
	for _, sh := range cfg.providers() {
		p, err := sh.open(rt.Log, rt.Metrics)
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", sh.name, err), box.Close())
		}
		providers = append(providers, p)
	}
	rt.Started()
	return g.run(ctx, cfg, sources, providers, defaultPace)
}

func newGround(cfg Config, box *outbox.Outbox, rt *service.Runtime) (*ground, error) {
	drops, err := newDrops(cfg.Drop)
	if err != nil {
		return nil, err
	}
	g := &ground{
		cluster: cfg.Cluster, drops: drops,
		dir: cfg.StateDir, out: box, bus: rt.Bus, log: rt.Log, tally: newTally(rt.Metrics), policy: newPolicy(cfg.Redact), pending: map[id]*openBatch{},
		health: health.New(schemas.ServiceAudit, cfg.Cluster, "", box.RunID(), rt.Log, rt.Metrics),
	}
	if g.seen, err = openMemory(cfg.StateDir, Remembered, rt.Log); err != nil {
		return nil, err
	}
	for _, raw := range box.Notes() {
		var n note
		if err := json.Unmarshal(raw, &n); err != nil {
			g.seen.close()
			return nil, fmt.Errorf("note of a spooled batch: %w", err)
		}
		g.left = append(g.left, n)
		for b := n.IDs; len(b) >= knownBytes; b = b[knownBytes:] {
			g.seen.add(parseKnown(b))
		}
	}
	return g, nil
}

// run runs the sources, each with a lane of its own, and the ingester's part of
// what the providers have. The lanes stop after the
// sources, the last health report follows, and then the outbox empties itself
// as far as NATS takes it.
func (g *ground) run(ctx context.Context, cfg Config, sources []source.Source, providers []source.Provider, p pace) error {
	group, gctx := errgroup.WithContext(ctx)
	later := context.WithoutCancel(ctx)
	laneCtx, stopLanes := context.WithCancel(later)
	reportCtx, stopReport := context.WithCancel(later)
	boxCtx, stopBox := context.WithCancel(later)
	defer stopLanes()
	defer stopReport()
	defer stopBox()

	var feeding, lanes sync.WaitGroup
	for _, s := range sources {
		l := newLane(g, s)
		g.tally.lags.begin(s, time.Now())
		feeding.Add(1)
		lanes.Add(1)
		group.Go(func() error {
			defer feeding.Done()
			return s.Run(gctx, l)
		})
		group.Go(func() error {
			defer lanes.Done()
			return l.run(laneCtx)
		})
	}
	feeding.Add(1)
	group.Go(func() error {
		defer feeding.Done()
		pull, err := newPuller(gctx, g, p)
		switch {
		case err != nil && len(providers) > 0:
			return err
		case err != nil:
			g.log.Warn("picket status will not show how far behind the sources are", "error", err)
			return nil
		case pull == nil:
			return nil
		}
		return pull.run(gctx, providers)
	})
	group.Go(func() error {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				g.tally.lags.look(now, cfg.LagAlert, cfg.SilentAlert, g.health, g.log)
			case <-gctx.Done():
				return nil
			}
		}
	})
	group.Go(func() error {
		defer stopReport()
		feeding.Wait()
		stopLanes()
		lanes.Wait()
		return nil
	})
	group.Go(func() error {
		defer stopBox()
		return g.health.Run(reportCtx, func(subject string, data []byte, rows int) error {
			return g.out.Put(subject, data, rows, nil, nil)
		})
	})
	group.Go(func() error {
		return g.out.Run(boxCtx, p.grace, func(class string, events uint64) { g.health.Lost(class, schemas.LossSpoolDamaged, events) })
	})
	return group.Wait()
}
