package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"picket/internal/alert"
	"picket/internal/rules"
	"picket/internal/store"
	"picket/schemas"
)

// rulesPerScan is how many rules one statement looks for: a table is read once
// for all of them, and the statement stays of a size that ClickHouse parses
// quickly.
const rulesPerScan = 40

// hunt is what hunt and backtest have in common: rules, and the time to look
// through.
type hunt struct {
	files     []string // of rules
	names     []string // of rules; none: all
	condition string
	since     moment
	until     moment
}

func (h *hunt) flags(c *cobra.Command, since string) {
	h.since, h.until = ago(since), moment{text: "now"}
	f := c.Flags()
	f.StringArrayVar(&h.names, "rule", nil, "name or id of a rule, repeatable")
	f.StringArrayVar(&h.files, "rules", nil, "rule file or folder, repeatable, in place of the rules in force")
	f.Var(&h.since, "since", sinceUsage)
	f.Var(&h.until, "until", "end, written as the begin")
}

// conditionRule is what a condition of the command line is called.
const conditionRule = "--condition"

var auditField = regexp.MustCompile(`\b(ka|jevt)\.`)

// load returns the rules to look for, and tells of warnings that concern them.
func (h *hunt) load(cmd *cobra.Command, t *target) ([]*rules.Rule, error) {
	errOut := cmd.ErrOrStderr()
	files, err := h.sources(cmd, t)
	if err != nil {
		return nil, err
	}
	if h.condition != "" {
		r, err := h.loadCondition(files)
		if err != nil {
			return nil, err
		}
		return []*rules.Rule{r}, nil
	}
	set, warnings, err := rules.Load(files, rules.Options{})
	if err != nil {
		return nil, fmt.Errorf("rules do not load:\n%w", err)
	}
	for _, w := range warnings {
		if w.LeftOut && (len(h.names) == 0 || slices.Contains(h.names, w.Rule)) {
			fmt.Fprintln(errOut, "warning:", w.String())
		}
	}
	var found []*rules.Rule
	if len(h.names) == 0 {
		for _, r := range set.Rules() {
			if r.Raises {
				found = append(found, r)
			}
		}
		return found, nil
	}
	for _, name := range h.names {
		i := slices.IndexFunc(set.Rules(), func(r *rules.Rule) bool { return r.Name == name || r.ID != "" && r.ID == name })
		if i < 0 {
			return nil, fmt.Errorf("no rule has the name or id %q: picket rules list shows those that come with Picket, picket rules pull DIR writes those that were pushed", name)
		}
		found = append(found, set.Rules()[i])
	}
	return found, nil
}

// sources returns the rule files that were named, else those in force, and says
// which these are.
func (h *hunt) sources(cmd *cobra.Command, t *target) ([]rules.Source, error) {
	if len(h.files) > 0 {
		return rules.ReadPaths(h.files...)
	}
	files, what, err := t.rulesInForce(cmd)
	if err != nil {
		return nil, fmt.Errorf("which rules are in force is not known: %w; --rules names files in their place", err)
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "rules:", what)
	return files, nil
}

// loadCondition makes a rule of the condition. It may use macros and lists of
// the rule files.
func (h *hunt) loadCondition(files []rules.Source) (*rules.Rule, error) {
	source, output := "syscall", "%evt.type %evt.args | command=%proc.cmdline parent=%proc.pname user=%user.name container=%container.name question=%dns.question.name"
	if auditField.MatchString(h.condition) {
		source, output = "k8s_audit", "%ka.verb %ka.uri | user=%ka.user.name code=%ka.response.code agent=%ka.useragent"
	}
	var text bytes.Buffer // JSON, which is YAML too
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(h.condition); err != nil {
		return nil, err
	}
	const before = `- {condition: "`
	files = append(files, rules.Source{Name: conditionRule, Data: fmt.Appendf(nil, "- {condition: %s, rule: %s, desc: d, priority: NOTICE, source: %s, warn_evttypes: false, output: '%s'}\n", bytes.TrimSpace(text.Bytes()), conditionRule, source, output)})
	set, warnings, err := rules.Load(files, rules.Options{})
	var errs rules.Errors
	if errors.As(err, &errs) {
		for _, e := range errs {
			if e.File == conditionRule {
				e.Column = max(1, e.Column-len(before))
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the condition does not load:\n%w", err)
	}
	for _, r := range set.Rules() {
		if r.Name == conditionRule {
			return r, nil
		}
	}
	for _, w := range warnings {
		if w.Rule == conditionRule {
			return nil, errors.New(w.Message)
		}
	}
	return nil, errors.New("the condition does not load")
}

// scan is one statement's part: some rules over one class.
type scan struct {
	class schemas.Class
	sql   *rules.SQL
	rules []*rules.Rule
	conds []string
	json  bool // some condition reads a JSON document
	// Of rules about several events, as many as conds: see severalScans.
	cells []string
}

// scans compiles the rules. A rule that cannot be evaluated in a class is an
// error if it is the only one, and otherwise told of and left out.
func scans(all []*rules.Rule, errOut io.Writer) ([]scan, error) {
	var out []scan
	for _, c := range schemas.Classes() {
		s := scan{class: c, sql: rules.NewSQL(c)}
		for _, r := range all {
			cond, err := s.sql.Condition(r)
			if err != nil && len(all) == 1 {
				return nil, err
			}
			if err != nil {
				fmt.Fprintln(errOut, "left out:", err)
				continue
			}
			if cond == "0" {
				continue
			}
			s.rules, s.conds = append(s.rules, r), append(s.conds, cond)
			s.json = s.json || strings.Contains(s.sql.From("1"), "JSONExtract")
			if len(s.rules) == rulesPerScan {
				out = append(out, s)
				s = scan{class: c, sql: rules.NewSQL(c)}
			}
		}
		if len(s.rules) > 0 {
			out = append(out, s)
		}
	}
	return out, nil
}

// span is the time looked through, as a condition. The partition is of the day
// of a message's first event, which is that of the event or the one before.
func (h *hunt) span(now time.Time) (since, until time.Time, where string, err error) {
	since, until = h.since.time(now).UTC(), h.until.time(now).UTC()
	if !since.Before(until) {
		return since, until, "", fmt.Errorf("--since %s is not before --until %s", h.since.text, h.until.text)
	}
	const layout = "2006-01-02 15:04:05.000000000"
	return since, until, fmt.Sprintf("batch_date >= '%s' AND time >= toDateTime64('%s', 9, 'UTC') AND time < toDateTime64('%s', 9, 'UTC')",
		since.AddDate(0, 0, -1).Format(time.DateOnly), since.Format(layout), until.Format(layout)), nil
}

// rows returns a subquery: the events of the span that a rule of the scan
// matches, once for each, with the rule's number from 1 in the column hit.
func (s *scan) from(span string) string {
	if len(s.rules) == 1 {
		return fmt.Sprintf("(SELECT *, 1 AS hit\n  FROM %s\n  WHERE %s)", s.sql.From(span), s.conds[0])
	}
	numbers := make([]string, len(s.rules))
	conds := make([]string, len(s.rules))
	for i := range s.rules {
		numbers[i] = strconv.Itoa(i + 1)
		conds[i] = "\n    toUInt8(" + s.conds[i] + ") /* " + commentText.Replace(s.rules[i].Name) + " */"
	}
	return fmt.Sprintf("(SELECT *, arrayJoin(arrayFilter((n, is) -> is, [%s], [%s\n  ])) AS hit\n  FROM %s)", strings.Join(numbers, ", "), strings.Join(conds, ","), s.sql.From(span))
}

// commentText keeps a rule's name from ending the comment that it stands in.
var commentText = strings.NewReplacer("*", "·", "\n", " ")

// byRule writes an expression that depends on the rule.
func (s *scan) byRule(each func(i int) (string, error)) (string, error) {
	var b strings.Builder
	if len(s.rules) == 1 {
		return each(0)
	}
	b.WriteString("multiIf(")
	for i := range s.rules {
		e, err := each(i)
		if err != nil {
			return "", err
		}
		if i == len(s.rules)-1 {
			b.WriteString(e + ")")
		} else {
			fmt.Fprintf(&b, "hit = %d, %s, ", i+1, e)
		}
	}
	return b.String(), nil
}

// statement returns the SELECT of the matching events, the newest first.
func (s *scan) statement(span string, limit int) (string, error) {
	message, err := s.byRule(func(i int) (string, error) { return s.sql.Output(s.rules[i]) })
	if err != nil {
		return "", err
	}
	fields, err := s.byRule(func(i int) (string, error) {
		_, exprs := s.sql.Fields(s.rules[i])
		return "CAST([" + strings.Join(exprs, ", ") + "], 'Array(String)')", nil
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("SELECT toString(time), hit, toString(event_id), cluster, node, %s,\n  %s,\n  %s\nFROM %s\nORDER BY time DESC, event_id, hit\nLIMIT %d\n%s", s.who(), message, fields, s.from(span), limit, rules.Settings), nil
}

// who are the columns of who acted: namespace, pod or object, user.
func (s *scan) who() string {
	if s.class == schemas.Audit {
		return "audit_namespace, audit_name, audit_user_name"
	}
	return "k8s_namespace_name, k8s_pod_name, process_user_name"
}

// found is an event that a rule matches, or an alert about several.
type found struct {
	Time      string            `json:"time"`
	Rule      string            `json:"rule"`
	Severity  string            `json:"severity"`
	Class     string            `json:"class"`
	AlertID   string            `json:"alert_id,omitempty"` // not of a condition
	EventID   string            `json:"event_id"`
	Cluster   string            `json:"cluster"`
	Node      string            `json:"node"`
	Namespace string            `json:"namespace,omitempty"`
	Pod       string            `json:"pod,omitempty"`
	User      string            `json:"user,omitempty"`
	Message   string            `json:"message"`
	Fields    map[string]string `json:"output_fields,omitempty"`
	// Of rules about several events. Time and EventID are then those of the first
	// event, and class, node, pod and user of the one that completed the alert.
	Key    map[string]string `json:"key,omitempty"`
	Events int               `json:"events,omitempty"`
}

func newHunt(t *target) *cobra.Command {
	var (
		h      hunt
		limit  int
		output string
		asSQL  bool
	)
	c := &cobra.Command{
		Use:   "hunt --rule NAME | --rules PATH | --condition EXPR",
		Short: "Look for what rules match in the stored events",
		Example: `  picket hunt --rule "Program run from shared memory" --since 7d
  picket hunt --rules my-rules.yaml --since 2026-11-20 --until 2026-11-23
  picket hunt --condition 'started and proc.pname = nginx' -o json`,
		Long: `Evaluates rules over the events in ClickHouse, with the meaning that they have in the
detector, and shows what matches, the newest first. Without --rules they are those in
force: of the pushed pack, else of the pack that comes with Picket. Rules that are switched off are
evaluated too; those with raise: false only if --rule names them. Of a rule with
correlation, baseline or suppress its alerts show; it remembers nothing of the time
before --since.

A condition of the command line may use the macros and lists of the rule files; it is for
Kubernetes audit events if a field of it begins with ka. or jevt.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "table" && output != "json" {
				return fmt.Errorf("-o %s: use table or json", output)
			}
			if limit < 1 {
				return fmt.Errorf("--limit %d: at least 1", limit)
			}
			if len(h.names) == 0 && len(h.files) == 0 && h.condition == "" {
				return errors.New("say what to look for: --rule, --rules or --condition")
			}
			if h.condition != "" && len(h.names) > 0 {
				return errors.New("--rule and --condition exclude each other")
			}
			return h.run(cmd, t, limit, output, asSQL)
		},
	}
	h.flags(c, "7d")
	f := c.Flags()
	f.StringVar(&h.condition, "condition", "", "condition in the language of rules")
	f.IntVar(&limit, "limit", 1000, "how many at most, the newest")
	f.StringVarP(&output, "output", "o", "table", "table, or json for one object a line")
	f.BoolVar(&asSQL, "sql", false, "print the statements for ClickHouse and run nothing")
	return c
}

// plan is what is looked for, where, and in what time.
type plan struct {
	rules        []*rules.Rule
	parts        []scan // of rules about one event
	memory       *memory
	since, until time.Time
	span         string // the time as a condition
}

func (h *hunt) plan(cmd *cobra.Command, t *target) (p plan, err error) {
	if p.since, p.until, p.span, err = h.span(time.Now()); err != nil {
		return p, err
	}
	if p.rules, err = h.load(cmd, t); err != nil {
		return p, err
	}
	single, several := apart(p.rules)
	if p.parts, err = scans(single, cmd.ErrOrStderr()); err != nil {
		return p, err
	}
	p.memory, err = newMemory(several, cmd.ErrOrStderr())
	return p, err
}

func (h *hunt) run(cmd *cobra.Command, t *target, limit int, output string, asSQL bool) error {
	p, err := h.plan(cmd, t)
	if err != nil {
		return err
	}
	parts, memory, span := p.parts, p.memory, p.span
	most := limit
	if !asSQL {
		most++ // tells whether there are more
	}
	var statements []string
	for i := range parts {
		sql, err := parts[i].statement(span, most)
		if err != nil {
			return err
		}
		statements = append(statements, sql)
	}
	if asSQL {
		if len(memory.parts) > 0 {
			statements = append(statements, memory.statement(span))
		}
		return screen(cmd.OutOrStdout(), false, func(out io.Writer) error {
			_, err := fmt.Fprintln(out, strings.Join(statements, ";\n\n"))
			return err
		})
	}
	db, err := t.open(cmd)
	if err != nil {
		return err
	}
	defer db.Close()
	var hits []found
	for i, sql := range statements {
		err := eachRow(cmd, db, sql, func(row []json.RawMessage) error {
			f, err := parts[i].found(row)
			hits = append(hits, f)
			return err
		})
		if err != nil {
			return err
		}
	}
	alerts, err := memory.newest(cmd, db, span, p.until, most)
	if err != nil {
		return err
	}
	hits = append(hits, alerts...)
	if err := unread(cmd, db, slices.Concat(parts, memory.parts), span); err != nil {
		return err
	}
	slices.SortStableFunc(hits, newestFirst)
	if len(hits) > limit {
		hits = hits[:limit]
		fmt.Fprintf(cmd.ErrOrStderr(), "only the newest %d are shown: --limit shows more\n", limit)
	}
	return show(cmd.OutOrStdout(), output, hits, func(out io.Writer) error { return showHits(out, hits) })
}

// found reads a row of statement.
func (s *scan) found(row []json.RawMessage) (found, error) {
	f := found{Class: s.class.String()}
	var hit int
	var values []string
	into := []any{&f.Time, &hit, &f.EventID, &f.Cluster, &f.Node, &f.Namespace, &f.Pod, &f.User, &f.Message, &values}
	if len(row) != len(into) {
		return f, fmt.Errorf("answer of ClickHouse: %d columns, want %d", len(row), len(into))
	}
	for i, v := range row {
		if err := json.Unmarshal(v, into[i]); err != nil {
			return f, fmt.Errorf("answer of ClickHouse: %w", err)
		}
	}
	if hit < 1 || hit > len(s.rules) {
		return f, fmt.Errorf("answer of ClickHouse: rule number %d of %d", hit, len(s.rules))
	}
	r := s.rules[hit-1]
	f.Rule, f.Severity = r.Name, r.Severity.String()
	if r.Name != conditionRule {
		f.AlertID = alert.ID(r.Name, f.EventID)
	}
	f.Time = strings.Replace(f.Time, " ", "T", 1) + "Z"
	names, _ := s.sql.Fields(r)
	for i, v := range values {
		if v != "" && i < len(names) {
			if f.Fields == nil {
				f.Fields = make(map[string]string)
			}
			f.Fields[names[i]] = v
		}
	}
	return f, nil
}

// show writes a list as JSON, an object a line, or as the table that is asked for.
func show[T any](out io.Writer, output string, list []T, table func(io.Writer) error) error {
	if output == "table" {
		return table(out) // its cells cannot steer a terminal
	}
	return screen(out, false, func(out io.Writer) error {
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		for _, x := range list {
			if err := enc.Encode(x); err != nil {
				return err
			}
		}
		return nil
	})
}

func showHits(out io.Writer, hits []found) error {
	if len(hits) == 0 {
		_, err := fmt.Fprintln(out, "nothing in the stored events matches")
		return err
	}
	var rows [][]string
	for _, h := range hits {
		pod := h.Namespace
		if h.Pod != "" {
			pod += "/" + h.Pod
		}
		message := h.Message
		if h.Events > 0 {
			message += " | " + h.about()
		}
		rows = append(rows, []string{strings.Replace(h.Time[:min(19, len(h.Time))], "T", " ", 1), h.Severity, h.Rule, h.Node, pod, h.User, message})
	}
	return writeTable(out, rows, "TIME (UTC)", "SEVERITY", "RULE", "NODE", "NAMESPACE/POD", "USER", "MESSAGE")
}

// eachRow calls each for every row of a statement's result.
func eachRow(cmd *cobra.Command, db *store.DB, sql string, each func([]json.RawMessage) error) error {
	r, err := db.Query(cmd.Context(), sql, "JSONCompactEachRow")
	if err != nil {
		return err
	}
	defer r.Close()
	for dec := json.NewDecoder(r); ; {
		var row []json.RawMessage
		if err := dec.Decode(&row); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("answer of ClickHouse: %w", err)
		}
		if err := each(row); err != nil {
			return err
		}
	}
}

// unread tells how many audit events have objects that ClickHouse does not
// read as JSON and the detector does: numbers of more than 64 bits, halves of
// characters (\ud800).
func unread(cmd *cobra.Command, db *store.DB, parts []scan, span string) error {
	if !slices.ContainsFunc(parts, func(s scan) bool { return s.json }) {
		return nil
	}
	var conds []string
	for _, id := range []schemas.FieldID{schemas.AuditRequest, schemas.AuditResponse, schemas.AuditUserExtra} {
		conds = append(conds, fmt.Sprintf("%[1]s != '' AND NOT isValidJSON(%[1]s)", id))
	}
	sql := fmt.Sprintf("SELECT toUInt32(count()) FROM %s.%s WHERE %s AND (%s)", schemas.Database, schemas.Audit.Table(), span, strings.Join(conds, " OR "))
	return eachRow(cmd, db, sql, func(row []json.RawMessage) error {
		if n := string(row[0]); n != "0" {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s audit events have objects that ClickHouse does not read as JSON: fields of their requests and responses count as absent here\n", n)
		}
		return nil
	})
}
