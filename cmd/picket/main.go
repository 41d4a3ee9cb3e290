// Command picket is what a person uses: it runs all of Picket on one machine,
// shows alerts, asks ClickHouse, replays recordings and checks rules.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"picket/internal/bus"
	"picket/internal/natsserver"
	"picket/internal/store"
	"picket/internal/terminal"
	"picket/internal/up"
	"picket/schemas"
)

// version is set by the Makefile.
var version = "development"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	err := root.ExecuteContext(ctx)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = nil
	}
	if err != nil {
		// ClickHouse quotes data in its errors.
		fmt.Fprintln(terminal.NewWriter(os.Stderr), "picket:", err)
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:     "picket",
		Version: version,
		Short:   "Runtime threat detection for Kubernetes that you run and read yourself",
		// Errors are printed once, by main; usage only when asked for.
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	var t target
	f := root.PersistentFlags()
	f.StringVar(&t.dir, "data", up.DefaultDir(), "data folder of a Picket on this machine")
	f.StringVar(&t.nats, "nats", "", "NATS server to ask instead of the one on this machine")
	f.StringVar(&t.credentials, "credentials", "", "NATS credentials file, with --nats")
	f.StringVar(&t.clickhouse, "clickhouse", "", "ClickHouse HTTP address to use instead of the one on this machine")
	root.AddCommand(newUp(&t), newDemo(&t), newSimulate(), newAlerts(&t), newQuery(&t), newStatus(&t),
		newRecord(), newReplay(), newMigrate(&t), newCredentials(), newSeccomp())
	ruleFiles := newRules()
	ruleFiles.AddCommand(append(rulePackCommands(&t), newBacktest(&t))...)
	root.AddCommand(ruleFiles, newHunt(&t))
	return root
}

// target is the Picket that a command talks to.
type target struct {
	dir, nats, credentials, clickhouse string
}

// store returns how to reach ClickHouse.
func (t *target) store() (store.Config, error) {
	cfg := store.DefaultConfig()
	cfg.URL = t.clickhouse
	if cfg.URL == "" {
		e, err := up.Find(t.dir)
		if err != nil {
			return cfg, err
		}
		cfg.URL = e.ClickHouse
	}
	return cfg, cfg.Validate()
}

// bus returns how to reach NATS as a service.
func (t *target) bus(service string) (bus.Config, error) {
	if t.nats != "" {
		return bus.Config{URL: t.nats, CredentialsFile: t.credentials}, nil
	}
	e, err := up.Find(t.dir)
	if err != nil {
		return bus.Config{}, err
	}
	return bus.Config{URL: e.NATS, CredentialsFile: e.CredentialsFile(service)}, nil
}

func newMigrate(t *target) *cobra.Command {
	limits := bus.DefaultLimits()
	c := &cobra.Command{
		Use:   "migrate",
		Short: "Create or upgrade NATS streams and ClickHouse tables",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := commandLog(cmd)
			n, err := t.bus(schemas.ServiceAdmin)
			if err != nil {
				return err
			}
			s, err := t.store()
			if err != nil {
				return err
			}
			b, err := bus.Connect(n, schemas.ServiceAdmin, log)
			if err != nil {
				return err
			}
			defer b.Close()
			if err := b.Migrate(cmd.Context(), limits); err != nil {
				return err
			}
			if err := up.MigrateStore(cmd.Context(), s, log); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "streams and tables are up to date")
			return nil
		},
	}
	c.Flags().IntVar(&limits.Replicas, "replicas", limits.Replicas, "copies of every stream; 3 in production")
	c.Flags().Int64Var(&limits.RawBytes, "raw-bytes", limits.RawBytes, "bound of PICKET_RAW, bytes")
	c.Flags().Int64Var(&limits.EventsBytes, "events-bytes", limits.EventsBytes, "bound of PICKET_EVENTS, bytes: what a ClickHouse outage may pile up")
	c.Flags().DurationVar(&limits.EventsAge, "events-age", limits.EventsAge, "longest time an event waits on PICKET_EVENTS")
	return c
}

func newCredentials() *cobra.Command {
	var (
		dir, cluster, node string
		auditClusters      []string
	)
	c := &cobra.Command{
		Use:   "credentials --out DIR",
		Short: "Write a credentials file per service, and the configuration that makes a NATS server of your own accept them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := natsserver.WriteCredentials(dir, cluster, node, auditClusters); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "credentials are in %s; include %s in nats-server's configuration; keep %s to yourself\n",
				filepath.Join(dir, "credentials"), filepath.Join(dir, "picket-auth.conf"), filepath.Join(dir, "keys"))
			return nil
		},
	}
	c.Flags().StringVar(&dir, "out", "", "folder to write to")
	c.Flags().StringVar(&cluster, "cluster", "", "cluster that sensor and ingester may speak for; empty: any")
	c.Flags().StringSliceVar(&auditClusters, "audit-clusters", nil, "clusters that the ingester may speak for besides --cluster, separated by commas: those whose audit logs it pulls")
	c.Flags().StringVar(&node, "node", "", "node that the sensor may speak for; empty: any")
	if err := c.MarkFlagRequired("out"); err != nil {
		panic(err) // the flag is declared above
	}
	return c
}

// absolute makes paths independent of the folder a service works in.
func absolute(paths []string) ([]string, error) {
	out := make([]string, len(paths))
	for i, p := range paths {
		a, err := filepath.Abs(p)
		if err != nil {
			return nil, err
		}
		out[i] = a
	}
	return out, nil
}
