package main

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"picket/internal/correlation"
	"picket/internal/rules"
	"picket/internal/store"
	"picket/schemas"
	"picket/services/detector"
)

// Rules about several events over stored ones: ClickHouse finds the rows that match
// a step of any of them and returns them in order of time, and the memory that the
// detector has makes alerts of them.

// apart divides rules into those about one event and those about several.
func apart(all []*rules.Rule) (single, several []*rules.Rule) {
	for _, r := range all {
		if r.Correlation == nil {
			single = append(single, r)
		} else {
			several = append(several, r)
		}
	}
	return single, several
}

// memory evaluates rules about several events.
type memory struct {
	parts  []scan
	steps  []rules.Step // of the parts, one after another
	byName map[string]*rules.Rule
	errOut io.Writer
}

// newMemory compiles the rules. A rule that cannot be evaluated in a class of its
// steps is an error if it is the only one, and otherwise told of and left out.
func newMemory(all []*rules.Rule, errOut io.Writer) (*memory, error) {
	m := &memory{byName: make(map[string]*rules.Rule), errOut: errOut}
	for _, r := range all {
		err := hunted(r)
		if err != nil && len(all) == 1 {
			return nil, err
		}
		if err != nil {
			fmt.Fprintln(errOut, "left out:", err)
			continue
		}
		m.byName[r.Name] = r
	}
	for _, c := range schemas.Classes() {
		s := scan{class: c, sql: rules.NewSQL(c)}
		for _, r := range all {
			if m.byName[r.Name] != r {
				continue
			}
			for _, step := range r.Steps() {
				cond, cells, err := s.sql.Step(step)
				if err != nil {
					return nil, err
				}
				if cond == "0" {
					continue
				}
				s.rules, s.conds, s.cells = append(s.rules, step.Rule), append(s.conds, cond), append(s.cells, cells)
				m.steps = append(m.steps, step)
				s.json = s.json || strings.Contains(s.sql.From("1"), "JSONExtract")
				if len(s.rules) == rulesPerScan {
					m.parts = append(m.parts, s)
					s = scan{class: c, sql: rules.NewSQL(c)}
				}
			}
		}
		if len(s.rules) > 0 {
			m.parts = append(m.parts, s)
		}
	}
	return m, nil
}

// hunted returns why a rule's steps cannot all be hunted, or nil.
func hunted(r *rules.Rule) error {
	for _, c := range schemas.Classes() {
		s := rules.NewSQL(c)
		for _, step := range r.Steps() {
			if _, _, err := s.Step(step); err != nil {
				return err
			}
		}
	}
	return nil
}

// statement returns the SELECT of the rows that match a step, in order of time,
// with the step's number from 1.
func (m *memory) statement(span string) string {
	var selects []string
	before := 0
	for i := range m.parts {
		s := &m.parts[i]
		cells, _ := s.byRule(func(i int) (string, error) { return s.cells[i], nil })
		selects = append(selects, fmt.Sprintf("SELECT time, toUInt32(%d + hit) AS step, toString(event_id) AS id,\n  CAST(['%s', cluster, node, %s, %s], 'Array(String)') AS who,\n  %s AS cells\nFROM %s",
			before, s.class, s.who(), workload(s.class), cells, s.from(span)))
		before += len(s.rules)
	}
	return "SELECT toString(toUnixTimestamp64Nano(time)), step, id, who, cells\nFROM (\n" + strings.Join(selects, "\nUNION ALL\n") + "\n)\nORDER BY time, step, id\n" + rules.Settings
}

// between is how many rows come between two looks for what can be forgotten.
const between = 4096

// eval calls raise for every alert, a later revision of one included, of the time
// before until.
func (m *memory) eval(cmd *cobra.Command, db *store.DB, span string, until time.Time, raise func(*rules.Rule, *correlation.Alert) error) error {
	if len(m.parts) == 0 {
		return nil
	}
	state := correlation.New(detector.Offline())
	take := func() error {
		alerts := state.Alerts()
		for i := range alerts {
			a := &alerts[i]
			// Whether an event came after the end nobody has looked.
			if a.Def.Kind == correlation.Absence && a.At.Time+int64(a.Def.Window) >= until.UnixNano() {
				continue
			}
			if err := raise(m.byName[a.Def.Rule], a); err != nil {
				return err
			}
		}
		state.Published(len(alerts))
		return nil
	}
	n := 0
	err := eachRow(cmd, db, m.statement(span), func(row []json.RawMessage) error {
		match, err := m.match(row)
		if err != nil {
			return fmt.Errorf("answer of ClickHouse: %w", err)
		}
		state.Add(&match)
		if n++; n%between == 0 {
			state.Advance(match.Time)
		}
		return take()
	})
	if err != nil {
		return err
	}
	state.Advance(math.MaxInt64 / 2)
	if err := take(); err != nil {
		return err
	}
	if s := state.Stats; s.Keys+s.Events+s.Values > 0 {
		fmt.Fprintf(m.errOut, "%d keys, %d events and %d values of baselines were given up for want of room, and alerts that need them may be missing: look through less time, or fewer rules\n", s.Keys, s.Events, s.Values)
	}
	return nil
}

// match reads a row of statement.
func (m *memory) match(row []json.RawMessage) (correlation.Match, error) {
	var at, id string
	var step int
	var cells []string
	into := []any{&at, &step, &id, nil, &cells}
	if len(row) != len(into) {
		return correlation.Match{}, fmt.Errorf("%d columns, want %d", len(row), len(into))
	}
	for i, v := range row {
		if into[i] == nil {
			continue
		}
		if err := json.Unmarshal(v, into[i]); err != nil {
			return correlation.Match{}, err
		}
	}
	if step < 1 || step > len(m.steps) {
		return correlation.Match{}, fmt.Errorf("step %d of %d", step, len(m.steps))
	}
	ns, err := strconv.ParseInt(at, 10, 64)
	if err != nil {
		return correlation.Match{}, err
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(id, "-", ""))
	if err != nil || len(raw) != 16 {
		return correlation.Match{}, fmt.Errorf("event id %q", id)
	}
	match, err := m.steps[step-1].Match(ns, [16]byte(raw), cells)
	match.Doc = row[3]
	return match, err
}

// actor is the column who of statement.
type actor struct{ class, cluster, node, namespace, pod, user, workload string }

func actorOf(a *correlation.Alert) (actor, error) {
	var w []string
	if len(a.At.Doc) == 0 { // came after many others at the same time
		return actor{}, nil
	}
	if err := json.Unmarshal(a.At.Doc, &w); err != nil || len(w) != 7 {
		return actor{}, fmt.Errorf("answer of ClickHouse: %s in place of who acted", a.At.Doc)
	}
	return actor{w[0], w[1], w[2], w[3], w[4], w[5], w[6]}, nil
}

// newest returns alerts, each as its last revision has it: the newest limit of them.
func (m *memory) newest(cmd *cobra.Command, db *store.DB, span string, until time.Time, limit int) ([]found, error) {
	last := make(map[string]found) // by id
	list := func() []found {
		var out []found
		for _, f := range last {
			out = append(out, f)
		}
		slices.SortFunc(out, newestFirst)
		return out[:min(limit, len(out))]
	}
	err := m.eval(cmd, db, span, until, func(r *rules.Rule, a *correlation.Alert) error {
		who, err := actorOf(a)
		if err != nil {
			return err
		}
		f := found{Time: time.Unix(0, a.First).UTC().Format("2006-01-02T15:04:05.000000000Z"), Rule: r.Name, Severity: r.Severity.String(), Class: who.class,
			EventID: schemas.FormatID(a.Events[0].ID), Cluster: who.cluster, Node: who.node, Namespace: who.namespace, Pod: who.pod, User: who.user,
			Message: a.Message(), AlertID: schemas.FormatID(a.ID), Key: make(map[string]string), Events: a.Total, Fields: make(map[string]string)}
		for i, v := range a.Key {
			f.Key[a.Def.By[i]] = v
		}
		for i := 1; i < len(a.Def.Output); i += 2 {
			if v, ok := a.Field(a.Def.Output[i]); ok {
				f.Fields[a.Def.Output[i]] = v
			}
		}
		last[f.AlertID] = f
		if len(last) > 2*limit+1000 { // one that is given up is older than those that show
			keep := list()
			clear(last)
			for _, f := range keep {
				last[f.AlertID] = f
			}
		}
		return nil
	})
	return list(), err
}

func newestFirst(a, b found) int {
	if a.Time != b.Time {
		return strings.Compare(b.Time, a.Time)
	}
	return strings.Compare(a.AlertID, b.AlertID)
}

// about tells of how many events an alert is, and of what.
func (f *found) about() string {
	text := fmt.Sprintf("%d events of", f.Events)
	if f.Events == 1 {
		text = "1 event of"
	}
	for _, k := range slices.Sorted(maps.Keys(f.Key)) {
		text += " " + k + "=" + f.Key[k]
	}
	return text
}

// count adds the alerts to the results.
func (m *memory) count(cmd *cobra.Command, db *store.DB, span string, until time.Time, results map[*rules.Rule]*backtest) error {
	workloads := make(map[*rules.Rule]map[string]uint64)
	err := m.eval(cmd, db, span, until, func(r *rules.Rule, a *correlation.Alert) error {
		if a.Revision > 1 {
			return nil
		}
		who, err := actorOf(a)
		if err != nil {
			return err
		}
		results[r].onDay(time.Unix(0, a.First).UTC().Format(time.DateOnly), 1)
		if workloads[r] == nil {
			workloads[r] = make(map[string]uint64)
		}
		workloads[r][who.workload]++
		return nil
	})
	for r, counts := range workloads {
		names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return cmp.Or(cmp.Compare(counts[b], counts[a]), strings.Compare(a, b)) })
		for _, name := range names[:min(topWorkloads, len(names))] {
			results[r].of(name, counts[name])
		}
	}
	return err
}
