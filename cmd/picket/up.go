package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"picket/internal/alert"
	"picket/internal/up"
	"picket/schemas"
	"picket/services/sensor"
)

// upFlags are what `up` and `demo` share.
type upFlags struct {
	up.Options
	noSensor bool
	watch    []string
}

func (f *upFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.Cluster, "cluster", "local", "name of the cluster")
	fl.StringVar(&f.Node, "node", "", "name of this node (default: the host name)")
	fl.StringVar(&f.NATSListen, "nats-listen", "127.0.0.1:4222", "where NATS listens; port 0 takes a free one")
	fl.StringVar(&f.ClickHouseListen, "clickhouse-listen", "127.0.0.1:8123", "where a ClickHouse that Picket starts listens; port 0 takes a free one")
	fl.StringVar(&f.WebhookListen, "webhook-listen", "127.0.0.1:9765", "where the audit webhook listens; port 0 takes a free one")
	fl.StringVar(&f.AuditFile, "audit-file", "", "kube-apiserver audit log to follow")
	fl.StringVar(&f.Kubeconfig, "kubeconfig", "", "join events with the metadata of this cluster")
	fl.StringArrayVar(&f.Rules, "rules", nil, "rule file or folder, repeatable, in place of the pack that comes with Picket")
	fl.BoolVar(&f.noSensor, "no-sensor", false, "do not watch this host's kernel")
	fl.StringArrayVar(&f.watch, "watch", nil, "path prefix whose reading is reported too, repeatable, beside the usual ones")
}

// options completes the flags.
func (f *upFlags) options(t *target, out io.Writer) (up.Options, error) {
	o := f.Options
	var err error
	if o.Rules, err = absolute(o.Rules); err != nil {
		return o, err
	}
	o.Dir, o.ClickHouseURL = t.dir, t.clickhouse
	o.Progress = func(line string) { fmt.Fprintln(out, "  "+line) }
	switch {
	case f.noSensor:
	case os.Geteuid() != 0:
		fmt.Fprintln(out, "  sensor       NOT RUNNING: watching the kernel needs root")
	default:
		cfg := sensor.DefaultConfig()
		cfg.Kernel.WatchedPaths = append(cfg.Kernel.WatchedPaths, f.watch...)
		o.Sensor = &cfg
	}
	return o, nil
}

func newUp(t *target) *cobra.Command {
	var f upFlags
	c := &cobra.Command{
		Use:   "up",
		Short: "Run everything on this machine and show alerts as they come",
		Long: `Runs NATS, ClickHouse and all services on this machine, shows alerts as they
come, and stops cleanly on Ctrl-C. As root the kernel of this host is watched;
a kube-apiserver can send its audit log to the webhook that is shown.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			begin := time.Now()
			fmt.Fprintf(out, "Starting Picket on %s\n", t.dir)
			o, err := f.options(t, out)
			if err != nil {
				return err
			}
			s, err := up.Start(cmd.Context(), o)
			if err != nil {
				return err
			}
			defer func() {
				fmt.Fprintln(out, "Stopping: emptying the streams first")
				s.Stop()
				fmt.Fprintln(out, "Stopped")
			}()
			colour := isTerminal(out)
			stop, err := s.Subscribe(func(f *schemas.Finding) { fmt.Fprintln(out, alertLine(f, colour)) })
			if err != nil {
				return err
			}
			defer stop()
			fmt.Fprintf(out, "Ready in %.1f s. Alerts appear below; Ctrl-C stops. In another terminal: picket simulate, picket query \"SELECT …\", picket status\n", time.Since(begin).Seconds())
			select {
			case <-cmd.Context().Done():
				return nil
			case err := <-s.Failed():
				return err
			case <-s.ClickHouseDone():
				return fmt.Errorf("ClickHouse has ended; its log is in %s/clickhouse", t.dir)
			}
		},
	}
	f.add(c)
	return c
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// alertLine colours a finding's line by its severity.
func alertLine(f *schemas.Finding, colour bool) string {
	line := alert.Line(f)
	if !colour {
		return line
	}
	code := map[schemas.Severity]string{schemas.Critical: "1;31", schemas.High: "31", schemas.Medium: "33", schemas.Low: "36"}[f.SeverityID]
	if code == "" {
		return line
	}
	return "\x1b[" + code + "m" + line + "\x1b[0m"
}

// commandLog is the log of a command: warnings, for people, on standard error.
func commandLog(cmd *cobra.Command) *slog.Logger {
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}
