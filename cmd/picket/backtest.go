package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"picket/internal/rules"
	"picket/internal/store"
	"picket/schemas"
)

// topWorkloads is how many workloads a backtest names for each rule.
const topWorkloads = 5

// backtest is what a rule would have raised.
type backtest struct {
	Rule      string          `json:"rule"`
	Severity  string          `json:"severity"`
	Enabled   bool            `json:"enabled"`
	Several   bool            `json:"several_events,omitempty"` // correlation, baseline or suppress: what is counted are events, not alerts
	Total     uint64          `json:"total"`
	PerDay    float64         `json:"per_day"` // of the days that the stored events span
	Days      []dayCount      `json:"days"`
	Workloads []workloadCount `json:"workloads"` // the most frequent
}

type dayCount struct {
	Day   string `json:"day"`
	Count uint64 `json:"count"`
}

type workloadCount struct {
	Workload string `json:"workload"`
	Count    uint64 `json:"count"`
}

func newBacktest(t *target) *cobra.Command {
	var (
		h      hunt
		output string
	)
	c := &cobra.Command{
		Use:   "backtest [--rules PATH] [--rule NAME]",
		Short: "Show how many alerts rules would have raised on the stored events, a day and by workload",
		Example: `  picket rules backtest --since 30d
  picket rules backtest --rules my-rules.yaml --rule "Web server starts a shell"`,
		Long: `Evaluates rules over the events in ClickHouse and counts what they match: a day, and by
workload (namespace and owner of the pod; without Kubernetes the image; on the host the node;
for audit events the user). It is for rules before they are switched on. Without --rules
those in force count: of the pushed pack, else of the pack that comes with Picket. Of a rule with
correlation, baseline or suppress its alerts count, with the workload of the event that
completed them; it remembers nothing of the time before --since. Rules with raise: false
count only if --rule names them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf("-o %s: use table or json", output)
			}
			return h.backtest(cmd, t, output)
		},
	}
	h.flags(c, "30d")
	c.Flags().StringVarP(&output, "output", "o", "table", "table, or json for one object a line")
	return c
}

// workload is an expression for who acted.
func workload(c schemas.Class) string {
	pod := "k8s_namespace_name != '', concat(k8s_namespace_name, '/', if(k8s_workload_name != '', k8s_workload_name, k8s_pod_name))"
	if c == schemas.Audit {
		return "multiIf(audit_user_name != '', concat('user ', audit_user_name), " + pod + ", 'nobody')"
	}
	return "multiIf(" + pod + ", container_image_name != '', concat('image ', container_image_name), container_id != '', concat('container ', substring(container_id, 1, 12)), concat('node ', node))"
}

func (h *hunt) backtest(cmd *cobra.Command, t *target, output string) error {
	p, err := h.plan(cmd, t)
	if err != nil {
		return err
	}
	db, err := t.open(cmd)
	if err != nil {
		return err
	}
	defer db.Close()
	parts, span, since, until := p.parts, p.span, p.since, p.until
	results := make(map[*rules.Rule]*backtest, len(p.rules))
	for _, r := range p.rules {
		results[r] = &backtest{Rule: r.Name, Severity: r.Severity.String(), Enabled: r.Enabled, Several: r.Correlation != nil, Days: []dayCount{}, Workloads: []workloadCount{}}
	}
	for i := range parts {
		if err := parts[i].count(cmd, db, span, results); err != nil {
			return err
		}
	}
	if err := p.memory.count(cmd, db, span, until, results); err != nil {
		return err
	}
	parts = append(parts, p.memory.parts...)
	if err := unread(cmd, db, parts, span); err != nil {
		return err
	}
	events, first, err := stored(cmd, db, parts, span)
	if err != nil {
		return err
	}
	if first.After(since) {
		since = first
	}
	days := max(1, until.Sub(since).Hours()/24)
	list := make([]*backtest, 0, len(p.rules))
	for _, r := range p.rules {
		b := results[r]
		b.finish(days)
		list = append(list, b)
	}
	slices.SortStableFunc(list, func(a, b *backtest) int {
		return int(min(max(int64(b.Total)-int64(a.Total), -1), 1))
	})
	return show(cmd.OutOrStdout(), output, list, func(out io.Writer) error { return showBacktest(out, list, events, days) })
}

// count adds to the results what the rules of the scan match.
func (s *scan) count(cmd *cobra.Command, db *store.DB, span string, results map[*rules.Rule]*backtest) error {
	add := func(group, more string, each func(b *backtest, name string, n uint64)) error {
		sql := fmt.Sprintf("SELECT hit, toString(%s) AS part, count()\nFROM %s\nGROUP BY hit, part\nORDER BY hit, 3 DESC, part%s\n%s", group, s.from(span), more, rules.Settings)
		return eachRow(cmd, db, sql, func(row []json.RawMessage) error {
			var hit int
			var name string
			var n json.Number // a string or not, as the server is set
			for i, to := range []any{&hit, &name, &n} {
				if err := json.Unmarshal(row[i], to); err != nil {
					return fmt.Errorf("answer of ClickHouse: %w", err)
				}
			}
			count, err := n.Int64()
			if err != nil || hit < 1 || hit > len(s.rules) {
				return fmt.Errorf("answer of ClickHouse: rule %d of %d, count %s", hit, len(s.rules), n)
			}
			each(results[s.rules[hit-1]], name, uint64(count))
			return nil
		})
	}
	if err := add("toDate(time)", "", (*backtest).onDay); err != nil {
		return err
	}
	// More than are shown, because a rule may match events of several classes.
	return add(workload(s.class), fmt.Sprintf("\nLIMIT %d BY hit", 20*topWorkloads), (*backtest).of)
}

// onDay counts n alerts on a day.
func (b *backtest) onDay(day string, n uint64) {
	b.Total += n
	if i := slices.IndexFunc(b.Days, func(d dayCount) bool { return d.Day == day }); i >= 0 {
		b.Days[i].Count += n
		return
	}
	b.Days = append(b.Days, dayCount{day, n})
}

// of counts n alerts of a workload.
func (b *backtest) of(name string, n uint64) {
	if i := slices.IndexFunc(b.Workloads, func(w workloadCount) bool { return w.Workload == name }); i >= 0 {
		b.Workloads[i].Count += n
		return
	}
	b.Workloads = append(b.Workloads, workloadCount{name, n})
}

// finish sorts and cuts.
func (b *backtest) finish(days float64) {
	b.PerDay = float64(b.Total) / days
	slices.SortFunc(b.Days, func(x, y dayCount) int { return strings.Compare(x.Day, y.Day) })
	slices.SortStableFunc(b.Workloads, func(x, y workloadCount) int {
		return int(min(max(int64(y.Count)-int64(x.Count), -1), 1))
	})
	b.Workloads = b.Workloads[:min(topWorkloads, len(b.Workloads))]
}

// stored returns how many events there are to look through, and the time of the first.
func stored(cmd *cobra.Command, db *store.DB, parts []scan, span string) (events uint64, first time.Time, err error) {
	seen := map[schemas.Class]bool{}
	for _, p := range parts {
		if seen[p.class] {
			continue
		}
		seen[p.class] = true
		sql := fmt.Sprintf("SELECT toString(count()), toString(min(time)) FROM %s.%s WHERE %s", schemas.Database, p.class.Table(), span)
		err := eachRow(cmd, db, sql, func(row []json.RawMessage) error {
			var count, at string
			for i, to := range []*string{&count, &at} {
				if err := json.Unmarshal(row[i], to); err != nil {
					return fmt.Errorf("answer of ClickHouse: %w", err)
				}
			}
			var n uint64
			if _, err := fmt.Sscan(count, &n); err != nil || n == 0 {
				return err
			}
			events += n
			t, err := time.Parse(time.DateTime, at)
			if err == nil && (first.IsZero() || t.Before(first)) {
				first = t
			}
			return err
		})
		if err != nil {
			return 0, first, err
		}
	}
	return events, first, nil
}

func showBacktest(out io.Writer, list []*backtest, events uint64, days float64) error {
	fmt.Fprintf(out, "%d rules over %d stored events of %.1f days\n", len(list), events, days)
	silent, several := 0, 0
	for _, b := range list {
		switch {
		case b.Total == 0:
			silent++
		case b.Several:
			several++
		}
	}
	if silent < len(list) {
		t := newTable(out, "RULE", "SEVERITY", "ALERTS", "PER DAY", "MOST ON A DAY", "DAYS", "WORKLOADS")
		for _, b := range list {
			if b.Total == 0 {
				continue
			}
			most := slices.MaxFunc(b.Days, func(x, y dayCount) int { return int(min(max(int64(x.Count)-int64(y.Count), -1), 1)) })
			var who []string
			for _, w := range b.Workloads {
				who = append(who, fmt.Sprintf("%s %d", w.Workload, w.Count))
			}
			t.row(b.Rule, b.Severity, fmt.Sprint(b.Total), fmt.Sprintf("%.1f", b.PerDay), fmt.Sprintf("%d on %s", most.Count, most.Day), fmt.Sprint(len(b.Days)), strings.Join(who, ", "))
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if silent > 0 {
		fmt.Fprintf(out, "%d rules would have raised none\n", silent)
	}
	if several > 0 {
		fmt.Fprintf(out, "%d of the rules with a number are about several events: it is that of the events, they raise fewer alerts\n", several)
	}
	return nil
}
