package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"picket/internal/bus"
	"picket/internal/store"
	"picket/internal/up"
	"picket/schemas"
)

func newStatus(t *target) *cobra.Command {
	since := ago("24h")
	c := &cobra.Command{
		Use:   "status",
		Short: "Show whether everything works, how far it is behind, and what was lost where and why",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			var errs []error
			if t.nats == "" && t.clickhouse == "" {
				e, err := up.Find(t.dir)
				if err != nil {
					return err
				}
				fmt.Fprintf(out, "Picket on %s, pid %d, up %s\n\n", t.dir, e.PID, time.Since(e.Started).Round(time.Second))
				errs = append(errs, services(cmd.Context(), e, out))
			}
			if cfg, err := t.bus(schemas.ServiceAdmin); err != nil {
				errs = append(errs, err)
			} else {
				errs = append(errs, streams(cmd, cfg, out))
			}
			if s, err := t.store(); err != nil {
				errs = append(errs, err)
			} else {
				errs = append(errs, events(cmd, s, since, out))
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().Var(&since, "since", sinceUsage+", of the events and losses that are counted")
	return c
}

func services(ctx context.Context, e up.Endpoints, out io.Writer) error {
	t := newTable(out, "SERVICE", "STATE", "METRICS")
	for _, name := range slices.Sorted(maps.Keys(e.Admin)) {
		t.row(name, readiness(ctx, e.Admin[name]), e.Admin[name]+"/metrics")
	}
	err := t.flush()
	fmt.Fprintln(out)
	return err
}

func readiness(ctx context.Context, url string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
	if err != nil {
		return err.Error()
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "does not answer"
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	switch {
	case err != nil:
		return err.Error()
	case resp.StatusCode == http.StatusOK:
		return "ready"
	}
	return "not ready: " + strings.ReplaceAll(strings.TrimSpace(string(body)), "\n", "; ")
}

func streams(cmd *cobra.Command, cfg bus.Config, out io.Writer) error {
	b, err := bus.Connect(cfg, schemas.ServiceAdmin, commandLog(cmd))
	if err != nil {
		return err
	}
	defer b.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
	defer cancel()
	t := newTable(out, "STREAM", "MESSAGES", "MIB", "CONSUMER", "WAITING", "UNDER WAY", "REDELIVERED")
	for _, name := range []string{schemas.StreamRaw, schemas.StreamEvents, schemas.StreamMatch, schemas.StreamAlerts, schemas.StreamDead} {
		s, err := b.JS.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("stream %s is missing: run `picket migrate`", name)
		}
		if err != nil {
			return fmt.Errorf("stream %s: %w", name, err)
		}
		st := s.CachedInfo().State
		cells := []string{name, fmt.Sprint(st.Msgs), fmt.Sprintf("%.1f", float64(st.Bytes)/(1<<20))}
		if name == schemas.StreamMatch { // many consumers that are one in their work
			var pending, underWay, redelivered int
			list := s.ListConsumers(ctx)
			for c := range list.Info() {
				pending, underWay, redelivered = pending+int(c.NumPending), underWay+c.NumAckPending, redelivered+c.NumRedelivered
			}
			if err := list.Err(); err != nil {
				return fmt.Errorf("consumers of %s: %w", name, err)
			}
			t.row(append(cells, fmt.Sprintf("correlate (%d)", schemas.MatchPartitions), fmt.Sprint(pending), fmt.Sprint(underWay), fmt.Sprint(redelivered))...)
			continue
		}
		consumers := 0
		list := s.ListConsumers(ctx)
		for c := range list.Info() {
			if c.Config.Durable == "" {
				continue
			}
			consumers++
			t.row(append(slices.Clone(cells), c.Name, fmt.Sprint(c.NumPending), fmt.Sprint(c.NumAckPending), fmt.Sprint(c.NumRedelivered))...)
			cells = []string{"", "", ""}
		}
		if err := list.Err(); err != nil {
			return fmt.Errorf("consumers of %s: %w", name, err)
		}
		if consumers == 0 {
			t.row(cells...)
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	if err := auditSources(ctx, b, out); err != nil {
		return err
	}
	if err := showRulesInForce(ctx, b, out); err != nil {
		return err
	}
	return unfed(ctx, b, out)
}

// events shows what is stored and what was lost.
func events(cmd *cobra.Command, s store.Config, since moment, out io.Writer) error {
	window := "time >= " + seconds(since.time(time.Now()))
	var parts []string
	for _, c := range schemas.Classes() {
		parts = append(parts, fmt.Sprintf("SELECT '%s' AS class, cluster, node, count() AS n, max(time) AS last FROM %s.%s WHERE %s GROUP BY cluster, node", c, schemas.Database, c.Table(), window))
	}
	rows, err := queryRows(cmd, s, "SELECT cluster, node, class, n, formatDateTime(last, '%Y-%m-%d %H:%i:%S') FROM ("+strings.Join(parts, " UNION ALL ")+") ORDER BY cluster, node, class")
	if err != nil {
		return err
	}
	t := newTable(out, "CLUSTER", "NODE", "CLASS", "EVENTS STORED", "LAST EVENT (UTC)")
	for _, r := range rows {
		t.row(r...)
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)

	// Of each node's last sensor, whenever that began.
	rows, err = queryRows(cmd, s, fmt.Sprintf(`SELECT cluster, node,
		arrayStringConcat(arraySort(groupUniqArrayIf(substring(health_reason, %d), startsWith(health_reason, '%[2]s'))), ' '),
		arrayStringConcat(arraySort(groupUniqArrayIf(substring(health_reason, %[3]d), startsWith(health_reason, '%[4]s'))), ' ')
		FROM %[5]s.%[6]s WHERE health_service = 'sensor' AND action = 'counters' AND health_run_id IN
			(SELECT argMax(health_run_id, time) FROM %[5]s.%[6]s WHERE health_service = 'sensor' GROUP BY cluster, node)
		GROUP BY cluster, node ORDER BY cluster, node`, len(schemas.CounterOffers)+1, schemas.CounterOffers, len(schemas.CounterLacks)+1, schemas.CounterLacks,
		schemas.Database, schemas.Health.Table()))
	if err != nil {
		return err
	}
	if len(rows) > 0 {
		t = newTable(out, "CLUSTER", "NODE", "KERNEL LACKS", "KERNEL OFFERS")
		for _, r := range rows {
			t.row(r[0], r[1], cmp.Or(r[3], "nothing"), r[2])
		}
		if err := t.flush(); err != nil {
			return err
		}
		fmt.Fprintln(out)
	}

	rows, err = queryRows(cmd, s, fmt.Sprintf(`SELECT cluster, node, health_service, health_class, health_reason,
		if(health_reason IN ('%s', '%s', '%s'), health_subject, '') AS of_what, sum(health_count),
		formatDateTime(min(time), '%%Y-%%m-%%d %%H:%%i:%%S'), formatDateTime(max(time), '%%Y-%%m-%%d %%H:%%i:%%S')
		FROM %s.%s WHERE action = 'loss' AND %s GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6`,
		schemas.LossSourceGap, schemas.LossSourceLate, schemas.LossSourceSilent, schemas.Database, schemas.Health.Table(), window))
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		fmt.Fprintf(out, "No event was lost %s.\n", since.sinceThen())
		return nil
	}
	t = newTable(out, "CLUSTER", "LOST ON", "SERVICE", "CLASS", "REASON", "OF", "EVENTS", "FIRST REPORT (UTC)", "LAST REPORT (UTC)")
	for _, r := range rows {
		t.row(r...)
	}
	return t.flush()
}
