package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"picket/internal/store"
	"picket/internal/up"
	"picket/schemas"
)

func newAlerts(t *target) *cobra.Command {
	var (
		follow   bool
		severity string
		output   string
		since    time.Duration
		limit    int
	)
	c := &cobra.Command{
		Use:   "alerts",
		Short: "Show alerts: stored ones, or with --follow new ones as they come",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lowest, err := schemas.ParseSeverity(severity)
			if err != nil {
				return fmt.Errorf("--min-severity: %w", err)
			}
			if output != "table" && output != "json" {
				return fmt.Errorf("-o %s: use table or json", output)
			}
			show := func(out io.Writer) error {
				if follow {
					return followAlerts(cmd, t, lowest, output, out)
				}
				s, err := t.store()
				if err != nil {
					return err
				}
				return storedAlerts(cmd, s, lowest, since, limit, output, out)
			}
			if output == "json" {
				return screen(cmd.OutOrStdout(), false, show)
			}
			return show(cmd.OutOrStdout()) // line by line, in colours
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "show alerts as they are raised, until Ctrl-C")
	c.Flags().StringVar(&severity, "min-severity", "informational", "informational, low, medium, high or critical")
	c.Flags().StringVarP(&output, "output", "o", "table", "table, or json for one OCSF Detection Finding a line")
	c.Flags().DurationVar(&since, "since", 24*time.Hour, "how far back, without --follow")
	c.Flags().IntVar(&limit, "limit", 1000, "how many at most, the newest, without --follow")
	return c
}

func followAlerts(cmd *cobra.Command, t *target, lowest schemas.Severity, output string, out io.Writer) error {
	cfg, err := t.bus(schemas.ServiceReader)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	stop, err := up.SubscribeAlerts(cfg, func(f *schemas.Finding) {
		if f.SeverityID < lowest {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if output == "json" {
			_ = enc.Encode(f) // a closed standard output ends the process by SIGPIPE
			return
		}
		fmt.Fprintln(out, alertLine(f, isTerminal(out)))
	})
	if err != nil {
		return err
	}
	defer stop()
	<-cmd.Context().Done()
	return nil
}

func storedAlerts(cmd *cobra.Command, s store.Config, lowest schemas.Severity, since time.Duration, limit int, output string, out io.Writer) error {
	// Numbers only: nothing of the user's text reaches the statement.
	where := fmt.Sprintf("FROM %s.%s FINAL WHERE severity_id >= %d AND time >= now() - toIntervalSecond(%d) ORDER BY time DESC LIMIT %d",
		schemas.Database, schemas.AlertsTable, lowest, int64(since.Seconds()), limit)
	if output == "json" {
		return copyQuery(cmd, s, "SELECT finding FROM (SELECT time, finding "+where+") ORDER BY time", "TSVRaw", out)
	}
	rows, err := queryRows(cmd, s, `SELECT formatDateTime(time, '%Y-%m-%d %H:%i:%S') AS at, severity, rule, node,
		if(k8s_namespace_name = '', '', if(k8s_pod_name = '', k8s_namespace_name, k8s_namespace_name || '/' || k8s_pod_name)) AS pod, user_name, message
		FROM (SELECT * `+where+`) ORDER BY time`)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		fmt.Fprintf(out, "no alerts in the last %s\n", since)
		return nil
	}
	table := newTable(out, "TIME (UTC)", "SEVERITY", "RULE", "NODE", "NAMESPACE/POD", "USER", "MESSAGE")
	for _, r := range rows {
		table.row(r...)
	}
	return table.flush()
}
