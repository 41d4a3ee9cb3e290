package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"picket/internal/alert"
	"picket/internal/store"
	"picket/internal/up"
	"picket/schemas"
)

// alertFilter says which alerts are wanted; empty texts are any.
type alertFilter struct {
	lowest               schemas.Severity
	rule, namespace, pod string
}

func (f *alertFilter) matches(a *schemas.Finding) bool {
	is := func(want string, have ...string) bool {
		for _, h := range have {
			if h == want {
				return true
			}
		}
		return want == ""
	}
	return a.SeverityID >= f.lowest && is(f.rule, a.Unmapped.Rule, a.FindingInfo.Analytic.UID) && is(f.namespace, a.Unmapped.Namespace) && is(f.pod, a.Unmapped.Pod)
}

// where is the filter as a condition of the alerts table.
func (f *alertFilter) where() string {
	out := fmt.Sprintf("severity_id >= %d", f.lowest)
	if f.rule != "" {
		out += " AND (rule = " + literal(f.rule) + " OR rule_id = " + literal(f.rule) + ")"
	}
	if f.namespace != "" {
		out += " AND k8s_namespace_name = " + literal(f.namespace)
	}
	if f.pod != "" {
		out += " AND k8s_pod_name = " + literal(f.pod)
	}
	return out
}

// literal writes a text into a statement: as hexadecimal digits, so that nothing
// of it is SQL.
func literal(s string) string { return "unhex('" + hex.EncodeToString([]byte(s)) + "')" }

func newAlerts(t *target) *cobra.Command {
	var (
		follow           bool
		severity, output string
		filter           alertFilter
		since            = ago("24h")
		limit            int
	)
	c := &cobra.Command{
		Use:   "alerts",
		Short: "Show alerts: stored ones, or with --follow new ones as they come",
		Example: `  picket alerts --severity high --since 1h
  picket alerts --follow -o falco
  picket alerts show 52b2aa4e`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if filter.lowest, err = schemas.ParseSeverity(severity); err != nil {
				return fmt.Errorf("--severity: %w", err)
			}
			if output != "table" && output != "json" && output != "falco" {
				return fmt.Errorf("-o %s: use table, json or falco", output)
			}
			show := func(out io.Writer) error {
				if follow {
					return followAlerts(cmd, t, &filter, output, out)
				}
				s, err := t.store()
				if err != nil {
					return err
				}
				return storedAlerts(cmd, s, &filter, since, limit, output, out)
			}
			if output != "table" {
				return screen(cmd.OutOrStdout(), false, show)
			}
			return show(cmd.OutOrStdout()) // line by line, in colours
		},
	}
	f := c.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "show alerts as they are raised, until Ctrl-C")
	f.StringVar(&severity, "severity", "informational", "the lowest to show: informational, low, medium, high or critical")
	f.StringVar(&filter.rule, "rule", "", "of this rule, by its name or its id")
	f.StringVar(&filter.namespace, "namespace", "", "of this namespace")
	f.StringVar(&filter.pod, "pod", "", "of this pod")
	f.StringVarP(&output, "output", "o", "table", "table; json: one OCSF Detection Finding a line; falco: one alert a line as Falco writes it")
	f.Var(&since, "since", sinceUsage+"; without --follow")
	f.IntVar(&limit, "limit", 1000, "how many at most, the newest, without --follow")
	c.AddCommand(newAlertShow(t))
	return c
}

func followAlerts(cmd *cobra.Command, t *target, filter *alertFilter, output string, out io.Writer) error {
	cfg, err := t.bus(schemas.ServiceReader)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	stop, err := up.SubscribeAlerts(cfg, func(f *schemas.Finding) {
		if !filter.matches(f) {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		switch output { // a closed standard output ends the process by SIGPIPE
		case "json":
			_ = enc.Encode(f)
		case "falco":
			_ = enc.Encode(alert.Falco(f))
		default:
			fmt.Fprintln(out, alertLine(f, isTerminal(out)))
		}
	})
	if err != nil {
		return err
	}
	defer stop()
	<-cmd.Context().Done()
	return nil
}

func storedAlerts(cmd *cobra.Command, s store.Config, filter *alertFilter, since moment, limit int, output string, out io.Writer) error {
	where := fmt.Sprintf("FROM %s.%s FINAL WHERE %s AND time >= %s ORDER BY time DESC LIMIT %d",
		schemas.Database, schemas.AlertsTable, filter.where(), seconds(since.time(time.Now())), limit)
	findings := "SELECT finding FROM (SELECT time, finding " + where + ") ORDER BY time"
	switch output {
	case "json":
		return copyQuery(cmd, s, findings, "TSVRaw", out)
	case "falco":
		return falcoAlerts(cmd, s, findings, out)
	}
	rows, err := queryRows(cmd, s, `SELECT substring(toString(alert_id), 1, 8), formatDateTime(time, '%Y-%m-%d %H:%i:%S') AS at, severity, rule, node,
		if(k8s_namespace_name = '', '', if(k8s_pod_name = '', k8s_namespace_name, k8s_namespace_name || '/' || k8s_pod_name)) AS pod, user_name, message
		FROM (SELECT * `+where+`) ORDER BY time`)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		fmt.Fprintf(out, "no such alerts %s\n", since.sinceThen())
		return nil
	}
	return writeTable(out, rows, "ID", "TIME (UTC)", "SEVERITY", "RULE", "NODE", "NAMESPACE/POD", "USER", "MESSAGE")
}

// falcoAlerts writes stored findings as Falco does, one after the other.
func falcoAlerts(cmd *cobra.Command, s store.Config, findings string, out io.Writer) error {
	read, write := io.Pipe()
	done := make(chan error, 1)
	go func() { // ends with the query: what it writes is read to its end, or to an error that closes the pipe
		err := copyQuery(cmd, s, findings, "TSVRaw", write)
		write.CloseWithError(err)
		done <- err
	}()
	dec := json.NewDecoder(read)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	var err error
	for {
		var f schemas.Finding
		if err = dec.Decode(&f); err != nil {
			break
		}
		if err = enc.Encode(alert.Falco(&f)); err != nil {
			break
		}
	}
	read.CloseWithError(err)
	if asked := <-done; asked != nil {
		return asked
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("a stored finding: %w", err)
}
