package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"picket/internal/store"
	"picket/internal/terminal"
	"picket/schemas"
)

// descendantsFor is how long after an alert's event the programs that its
// process started are looked for, descendantsMost how many are shown.
const (
	descendantsFor  = time.Hour
	descendantsMost = 100
)

var alertID = regexp.MustCompile(`^[0-9a-f][0-9a-f-]{3,35}$`)

func newAlertShow(t *target) *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Explain one alert: why its rule matched, its tree of processes, where it happened, what to do",
		Long: `Shows one stored alert, by its id or the beginning of it: the values of the fields that made the
rule's condition hold, the process with its ancestors and with what it started in the hour after,
pod, workload, image and user, ATT&CK techniques, the rule's advice, and the events it stands on.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := t.store()
			if err != nil {
				return err
			}
			f, err := storedAlert(cmd, s, strings.ToLower(args[0]))
			if err != nil {
				return err
			}
			after, err := startedBy(cmd, s, f)
			if err != nil {
				return err
			}
			return showAlert(cmd.OutOrStdout(), f, after)
		},
	}
}

// storedAlert returns the newest revision of an alert.
func storedAlert(cmd *cobra.Command, s store.Config, id string) (*schemas.Finding, error) {
	if !alertID.MatchString(id) {
		return nil, fmt.Errorf("%q is no id of an alert: `picket alerts` shows ids; give four digits of one or more", id)
	}
	rows, err := queryRows(cmd, s, fmt.Sprintf("SELECT toString(alert_id), finding FROM %s.%s FINAL WHERE startsWith(toString(alert_id), '%s') ORDER BY time DESC LIMIT 3", schemas.Database, schemas.AlertsTable, id))
	switch {
	case err != nil:
		return nil, err
	case len(rows) == 0:
		return nil, fmt.Errorf("no alert has an id that begins with %s", id)
	case len(rows) > 1:
		return nil, fmt.Errorf("more than one alert has an id that begins with %s, as %s and %s: give more of it", id, rows[0][0], rows[1][0])
	}
	f := &schemas.Finding{}
	if err := json.Unmarshal([]byte(rows[0][1]), f); err != nil {
		return nil, fmt.Errorf("the stored finding: %w", err)
	}
	return f, nil
}

// started is a program that the process of an alert, or one below it, executed.
type started struct {
	at        string
	pid       string
	name      string
	line      string
	ancestors []string // pids, parent first
}

// startedBy returns what the process of an alert started after the event, as
// far as it is stored, in the order of time.
func startedBy(cmd *cobra.Command, s store.Config, f *schemas.Finding) ([]started, error) {
	if f.Actor == nil || f.Actor.Process == nil || f.Actor.Process.PID <= 1 {
		return nil, nil
	}
	pid, at := f.Actor.Process.PID, f.Unmapped.Time.UTC()
	rows, err := queryRows(cmd, s, fmt.Sprintf(`SELECT formatDateTime(time, '%%H:%%i:%%S') AS at, process_pid, process_name, process_command_line, arrayStringConcat(process_ancestor_pids, ' ')
		FROM %s.%s WHERE action = 'exec' AND cluster = %s AND node = %s AND has(process_ancestor_pids, '%d')
		AND batch_date >= toDate('%s') AND time >= toDateTime64('%s', 9, 'UTC') AND time < toDateTime64('%s', 9, 'UTC')
		ORDER BY time, time_boot LIMIT %d`, schemas.Database, schemas.Process.Table(), literal(f.Unmapped.Cluster), literal(f.Unmapped.Node), pid,
		at.Add(-24*time.Hour).Format(time.DateOnly), at.Format("2006-01-02 15:04:05.000000000"), at.Add(descendantsFor).Format("2006-01-02 15:04:05.000000000"), descendantsMost))
	if err != nil {
		return nil, err
	}
	out := make([]started, len(rows))
	for i, r := range rows {
		out[i] = started{r[0], r[1], r[2], r[3], strings.Fields(r[4])}
	}
	return out, nil
}

// showAlert writes an alert for a person. Every value in it is an attacker's:
// it goes through terminal.Text, so that none begins a line of its own.
func showAlert(out io.Writer, f *schemas.Finding, after []started) error {
	w := &lines{w: out}
	w.line("%s", f.Unmapped.Rule)
	w.line("%s", f.Message)
	w.blank()
	w.field("id", f.FindingInfo.UID)
	w.field("severity", fmt.Sprintf("%s, risk %d of 100", f.SeverityID, f.RiskScore))
	w.field("time (UTC)", f.Unmapped.Time.UTC().Format("2006-01-02 15:04:05.000000"))
	w.field("cluster", f.Unmapped.Cluster)
	w.field("node", f.Unmapped.Node)
	if f.Unmapped.Namespace != "" || f.Unmapped.Pod != "" {
		w.field("pod", strings.TrimSuffix(f.Unmapped.Namespace+"/"+f.Unmapped.Pod, "/"))
	}
	w.field("workload", f.Unmapped.Workload)
	if f.Device != nil && f.Device.Container != nil {
		c := f.Device.Container
		w.field("container", strings.TrimSpace(c.Name+" "+c.UID[:min(12, len(c.UID))]))
		if i := c.Image; i != nil {
			w.field("image", strings.TrimSpace(strings.TrimSuffix(i.Name+":"+i.Tag, ":")+" "+i.UID))
		}
	}
	if f.Actor != nil && f.Actor.User != nil {
		w.field("user", strings.TrimSpace(f.Actor.User.Name+" "+brackets(f.Actor.User.UID)))
	}
	if f.API != nil {
		code := ""
		if f.API.Response != nil {
			code = fmt.Sprintf(", answered %d", f.API.Response.Code)
		}
		w.field("call", f.API.Operation+code)
	}
	for _, r := range f.Resources {
		w.field("object", r.Type+" "+strings.Trim(r.Namespace+"/"+cmp.Or(r.Name, r.UID), "/"))
	}
	w.field("techniques", techniques(f.FindingInfo.Attacks))
	w.field("alert types", strings.Join(f.FindingInfo.Types, ", "))
	w.field("rule id", f.FindingInfo.Analytic.UID)
	w.field("tags", strings.Join(f.Metadata.Labels, ", "))

	w.head("Why the rule matched")
	for _, name := range slices.Sorted(maps.Keys(f.Unmapped.Why)) {
		w.line("  %s = %s", name, f.Unmapped.Why[name])
	}
	if f.Actor != nil && f.Actor.Process != nil {
		w.head("Processes")
		processTree(w, f, after)
	}
	w.head("What it is, and what to do")
	w.text(f.FindingInfo.Desc)
	if f.Remediation != nil {
		w.text(f.Remediation.Desc)
	}
	for _, s := range f.Unmapped.FalsePositives {
		w.line("  may be harmless: %s", s)
	}
	for _, s := range f.Unmapped.References {
		w.line("  see %s", s)
	}
	w.head("Evidence")
	for _, e := range f.Evidences {
		w.line("  %s, event %s", e.Name, e.UID)
		for _, name := range slices.Sorted(maps.Keys(e.Data)) {
			if !shownElsewhere(name) {
				w.line("    %s = %s", name, plain(e.Data[name]))
			}
		}
	}
	return w.err
}

// shownElsewhere reports whether a column of the evidence is part of what the
// rest of the page says.
func shownElsewhere(name string) bool {
	for _, p := range []string{"process_ancestor_", "process_parent_", "process_session_", "process_group_leader_", "k8s_", "container_", "event_id", "cluster", "node", "schema_version"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// plain is a value of JSON as text.
func plain(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func brackets(s string) string {
	if s == "" {
		return ""
	}
	return "(" + s + ")"
}

// techniques lists each technique with its tactics.
func techniques(attacks []schemas.Attack) string {
	var out []string
	tactics := map[string][]string{}
	for _, a := range attacks {
		if !slices.Contains(out, a.ID()) {
			out = append(out, a.ID())
		}
		if a.Tactic != nil {
			tactics[a.ID()] = append(tactics[a.ID()], cmp.Or(a.Tactic.Name, a.Tactic.UID))
		}
	}
	for i, id := range out {
		out[i] = strings.TrimSpace(id + " " + brackets(strings.Join(tactics[id], ", ")))
	}
	return strings.Join(out, ", ")
}

// processTree writes the ancestors, eldest first, the process, and below it what
// it started.
func processTree(w *lines, f *schemas.Finding, after []started) {
	var chain []*schemas.OCSFProcess
	for p := f.Actor.Process; p != nil; p = p.ParentProcess {
		chain = append(chain, p)
	}
	slices.Reverse(chain)
	indent := "  "
	for i, p := range chain {
		branch, mark := "", ""
		if i > 0 {
			branch = "└─ "
		}
		if i == len(chain)-1 {
			mark = "   ◀ this process"
		}
		line := cmp.Or(p.CmdLine, executable(p))
		if i < len(chain)-1 {
			line = cut(line)
		}
		w.raw(indent+branch, fmt.Sprintf("%s (%d)  %s", p.Name, p.PID, line), mark)
		if i > 0 {
			indent += "   "
		}
	}
	// A process that executed several programs stands once, with all of them.
	self := strconv.FormatUint(uint64(f.Actor.Process.PID), 10)
	byPID := map[string][]started{}
	kids := map[string][]string{}
	for _, s := range after {
		if byPID[s.pid] == nil {
			parent := self
			for _, a := range s.ancestors {
				if byPID[a] != nil || a == self {
					parent = a
					break
				}
			}
			kids[parent] = append(kids[parent], s.pid)
		}
		byPID[s.pid] = append(byPID[s.pid], s)
	}
	var below func(pid, indent string)
	below = func(pid, indent string) {
		for i, k := range kids[pid] {
			branch, deeper := "├─ ", "│  "
			if i == len(kids[pid])-1 {
				branch, deeper = "└─ ", "   "
			}
			var ran []string
			for _, s := range byPID[k] {
				ran = append(ran, s.line)
			}
			s := byPID[k][len(ran)-1]
			w.raw(indent+branch, fmt.Sprintf("%s (%s)  %s", s.name, s.pid, strings.Join(ran, " → ")), "   "+byPID[k][0].at)
			below(k, indent+deeper)
		}
	}
	below(self, indent)
	if len(after) == descendantsMost {
		w.line("  … and more: the first %d are shown", descendantsMost)
	}
	if l := f.Unmapped.SessionLeader; l != nil {
		w.line("  session leader: %s (%d)  %s", l.Name, l.PID, cut(cmp.Or(l.CmdLine, executable(l))))
	}
	if pid := f.Unmapped.ExecPID; pid != 0 {
		w.line("  put into the running container from outside, as by kubectl exec: process %d", pid)
	}
}

// maxAncestor is how many characters of the command line of an ancestor are shown.
const maxAncestor = 200

func cut(line string) string {
	if runes := []rune(line); len(runes) > maxAncestor {
		return string(runes[:maxAncestor]) + "…"
	}
	return line
}

func executable(p *schemas.OCSFProcess) string {
	if p.File == nil {
		return ""
	}
	return p.File.Path
}

// lines writes lines whose values do not print otherwise than as text.
type lines struct {
	w   io.Writer
	err error
}

func (l *lines) write(s string) {
	if l.err == nil {
		_, l.err = io.WriteString(l.w, s+"\n")
	}
}

// line writes one line; what does not print in it is escaped.
func (l *lines) line(format string, args ...any) {
	l.write(terminal.Text(fmt.Sprintf(format, args...)))
}

// raw writes a line with Picket's own drawing around a value.
func (l *lines) raw(before, value, behind string) {
	l.write(strings.TrimRight(before+terminal.Text(value), " ") + behind)
}

func (l *lines) blank() { l.write("") }

func (l *lines) head(s string) {
	l.blank()
	l.write(s)
}

// field writes a named value, if there is one.
func (l *lines) field(name, value string) {
	if value != "" {
		l.line("%-12s %s", name, value)
	}
}

// text writes the rule's own words, which may have several lines.
func (l *lines) text(s string) {
	for line := range strings.Lines(s) {
		l.line("  %s", strings.TrimRight(line, "\n"))
	}
}
