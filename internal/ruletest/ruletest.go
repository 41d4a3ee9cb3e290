// Package ruletest runs the tests that rules have: events in, alerts out.
// docs/rules.md ("Tests of rules") describes the format. `picket rules test`
// and the tests of the default pack (package rules) are the same runner.
package ruletest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"picket/internal/batch"
	"picket/internal/correlation"
	"picket/internal/rules"
	"picket/schemas"
)

// Bounds of a test file: what a person writes stays far below.
const (
	maxFileBytes = 4 << 20
	maxAfter     = 400 * 24 * time.Hour
	maxRepeat    = 1000
)

// limits of what a case's rule remembers: all of it, whatever comes late.
var limits = correlation.Limits{Keys: 1 << 20, Bytes: 256 << 20}

// epoch is the time of a case's first event, unless the event says its own:
// fixed, so that a test gives the same each time.
var epoch = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// Test is what one file holds: the cases of one rule.
type Test struct {
	// File is what failures call the file.
	File string
	// Rule is the name of the rule under test.
	Rule  string
	Cases []Case
}

// Case is events and whether the rule raises an alert for them.
type Case struct {
	Name  string
	Fires bool
	// Alerts is how many alerts the rule raises, where the case says it.
	Alerts *int

	events []*batch.Batch // in the order of time, one row each
	text   string         // of the events, to tell a percent sign of theirs
}

// Fields of a file, as YAML has them.
type (
	fileYAML struct {
		Rule  string     `yaml:"rule"`
		Cases []caseYAML `yaml:"cases"`
	}
	caseYAML struct {
		Name   string      `yaml:"name"`
		Fires  *bool       `yaml:"fires"`
		Alerts *int        `yaml:"alerts"`
		Class  string      `yaml:"class"`
		Event  eventYAML   `yaml:"event"`
		Events []eventStep `yaml:"events"`
	}
	eventStep struct {
		Class  string    `yaml:"class"`
		After  string    `yaml:"after"`
		Repeat int       `yaml:"repeat"`
		Event  eventYAML `yaml:"event"`
	}
	eventYAML = map[string]any
)

// defaults are the columns that events of a class have unless a test says
// otherwise.
var defaults = map[schemas.Class]eventYAML{
	schemas.Process: {"action": "exec", "syscall": "execve"},
	schemas.File:    {"action": "open", "syscall": "openat", "fd_number": 3, "file_mode": 0o100644},
	schemas.Network: {"action": "connect", "syscall": "connect", "fd_number": 3, "network_transport": "tcp", "network_type": "ipv4",
		"network_direction": "outbound", "network_local_address": "10.0.0.5", "network_local_port": 40000},
	schemas.Kernel: {"result": 0},
	schemas.DNS:    {"action": "query", "syscall": "dns", "network_transport": "udp", "network_peer_port": 53},
	schemas.Audit:  {"action": "audit", "audit_stage": "ResponseComplete", "audit_response_code": 200, "audit_authorization_decision": "allow"},
}

// Read reads a test file. The error names the file, the case and the remedy.
func Read(name string, data []byte) (*Test, error) {
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("%s has %d bytes; a test file may have %d", name, len(data), maxFileBytes)
	}
	var f fileYAML
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	switch err := dec.Decode(&f); {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s is empty; want rule and cases", name)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case f.Rule == "":
		return nil, fmt.Errorf("%s does not say which rule it tests: add rule: NAME", name)
	case len(f.Cases) == 0:
		return nil, fmt.Errorf("%s has no cases", name)
	case !errors.Is(dec.Decode(new(yaml.Node)), io.EOF):
		return nil, fmt.Errorf("%s has more behind ---: a file holds the tests of one rule", name)
	}
	t := &Test{File: name, Rule: f.Rule}
	for i, c := range f.Cases {
		made, err := c.build()
		if err != nil {
			return nil, fmt.Errorf("%s: case %d (%q): %w", name, i+1, c.Name, err)
		}
		t.Cases = append(t.Cases, made)
	}
	return t, nil
}

func (c *caseYAML) build() (Case, error) {
	out := Case{Name: c.Name, text: fmt.Sprint(c.Event, c.Events)}
	if c.Fires == nil {
		return out, errors.New("it does not say whether the rule fires: add fires: true or false")
	}
	out.Fires = *c.Fires
	if out.Alerts = c.Alerts; c.Alerts != nil && (*c.Alerts > 0) != out.Fires {
		return out, fmt.Errorf("it says fires: %v and alerts: %d", out.Fires, *c.Alerts)
	}
	steps := c.Events
	if c.Event != nil {
		if steps != nil {
			return out, errors.New("it has event and events; give one of them")
		}
		steps = []eventStep{{Class: c.Class, Event: c.Event}}
	} else if c.Class != "" && c.Event == nil {
		return out, errors.New("it has a class and no event; in a list of events each has its own class")
	}
	if len(steps) == 0 {
		return out, errors.New("it has no event")
	}
	at := epoch
	for i, s := range steps {
		after := time.Duration(0)
		if s.After != "" {
			var err error
			if after, err = time.ParseDuration(s.After); err != nil || after < 0 || after > maxAfter {
				return out, fmt.Errorf("event %d: after is %q; want a duration from 0s to %s, as in 5s or 10m", i+1, s.After, maxAfter)
			}
		}
		if s.Repeat < 0 || s.Repeat > maxRepeat {
			return out, fmt.Errorf("event %d: repeat is %d; want 1 to %d", i+1, s.Repeat, maxRepeat)
		}
		for n := range max(s.Repeat, 1) {
			at = at.Add(after)
			b, err := s.batch(at, len(out.events), n+1)
			if err != nil {
				return out, fmt.Errorf("event %d: %w", i+1, err)
			}
			out.events = append(out.events, b)
		}
	}
	return out, nil
}

// batch builds the batch of one row. An event that gives no time or id has the
// time at and an id made of its place. {n} in a value is the number of the
// repetition, from 1.
func (s *eventStep) batch(at time.Time, place, n int) (*batch.Batch, error) {
	class, err := schemas.ParseClass(s.Class)
	if err != nil {
		return nil, err
	}
	columns := maps.Clone(defaults[class])
	if columns == nil {
		return nil, fmt.Errorf("rules see no events of class %s", class)
	}
	maps.Copy(columns, s.Event)
	b := batch.NewBuilder(class, schemas.Columns(class))
	b.Bytes16(schemas.EventID, schemas.Hash128(fmt.Sprint("rule test event ", place)))
	if _, given := columns[schemas.EventTime.Field().Name]; !given {
		b.Int64(schemas.EventTime, at.UnixNano())
	}
	for _, name := range slices.Sorted(maps.Keys(columns)) {
		id, ok := schemas.FieldByName(name)
		if !ok || !id.Field().Classes.Has(class) {
			return nil, fmt.Errorf("class %s has no column %q; docs/reference/fields.md lists them", class, name)
		}
		v := columns[name]
		if text, ok := v.(string); ok {
			v = strings.ReplaceAll(text, "{n}", strconv.Itoa(n))
		}
		if err := set(b, id, v); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	b.EndRow()
	return b.Batch(), nil
}

// set sets a column to a value of a YAML file.
func set(b *batch.Builder, id schemas.FieldID, v any) error {
	text := fmt.Sprint(v)
	switch id.Field().Type {
	case schemas.Text, schemas.Name:
		if m, ok := v.(map[string]any); ok {
			data, err := json.Marshal(m)
			if err != nil {
				return err
			}
			text = string(data)
		}
		b.Str(id, text)
	case schemas.Bool:
		x, err := strconv.ParseBool(text)
		if err != nil {
			return err
		}
		b.Bool(id, x)
	case schemas.Uint32:
		x, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return err
		}
		b.Uint32(id, uint32(x))
	case schemas.Uint64:
		x, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return err
		}
		b.Uint64(id, x)
	case schemas.Int64, schemas.Time:
		x, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return err
		}
		b.Int64(id, x)
	case schemas.IP:
		a, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		b.Bytes16(id, a.As16())
	case schemas.List, schemas.Names:
		items, ok := v.([]any)
		if !ok {
			return fmt.Errorf("want a list, found %v", v)
		}
		list := make([]string, len(items))
		for i, x := range items {
			list[i] = fmt.Sprint(x)
		}
		b.List(id, list)
	case schemas.Map:
		items, ok := v.(map[string]any)
		if !ok {
			return fmt.Errorf("want a mapping, found %v", v)
		}
		m := make(map[string]string, len(items))
		for k, x := range items {
			m[k] = fmt.Sprint(x)
		}
		b.Map(id, m)
	default:
		return errors.New("tests cannot set a column of this type")
	}
	return nil
}

// Result is what came of one rule.
type Result struct {
	Rule string
	File string // of the tests; empty where the rule has none
	// Failures tell, in the order of the cases, what is wrong. None is a pass.
	Failures []string
	// Fires and Quiet count the cases that must fire and that must not.
	Fires, Quiet int
}

// Run runs tests against a set: one result for each enabled rule in load
// order, those without a test included, then one for each test of a rule that
// the set does not have, which is a failure.
func Run(set *rules.Set, tests []*Test) []Result {
	byRule := make(map[string][]*Test)
	for _, t := range tests {
		byRule[t.Rule] = append(byRule[t.Rule], t)
	}
	ev := set.NewEvaluator()
	var out []Result
	for _, r := range set.Rules() {
		if !r.Enabled {
			if len(byRule[r.Name]) == 0 {
				continue
			}
		}
		res := Result{Rule: r.Name}
		for _, t := range byRule[r.Name] {
			res.File = t.File
			if !r.Enabled {
				res.Failures = append(res.Failures, "the rule is disabled")
				continue
			}
			for i := range t.Cases {
				c := &t.Cases[i]
				if c.Fires {
					res.Fires++
				} else {
					res.Quiet++
				}
				res.Failures = append(res.Failures, c.run(set, ev, r)...)
			}
		}
		out = append(out, res)
		delete(byRule, r.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(byRule)) {
		for _, t := range byRule[name] {
			out = append(out, Result{Rule: name, File: t.File, Failures: []string{"no rule of this name is loaded"}})
		}
	}
	return out
}

// run returns what is wrong with the case.
func (c *Case) run(set *rules.Set, ev *rules.Evaluator, r *rules.Rule) []string {
	var failures []string
	alerts := 0
	raised := func(output string) {
		alerts++
		if output == "" || strings.Contains(output, "%") && !strings.Contains(c.text, "%") {
			failures = append(failures, fmt.Sprintf("case %q: output %q", c.Name, output))
		}
	}
	if r.Correlation == nil {
		for _, b := range c.events {
			ev.Eval(b, func(m rules.Match) {
				if m.Rule == r {
					raised(m.Output())
				}
			})
		}
	} else { // each case begins with nothing remembered
		several := set.NewCorrelator(limits)
		count := func(found []correlation.Alert) {
			for i := range found {
				if found[i].Def.Rule == r.Name && found[i].Revision == 1 {
					raised(found[i].Message())
				}
			}
		}
		for _, b := range c.events {
			count(several.Eval(b, func(rules.Match) {}, nil))
		}
		count(several.End())
	}
	switch {
	case c.Fires && alerts == 0:
		failures = append(failures, fmt.Sprintf("case %q does not fire; it should", c.Name))
	case !c.Fires && alerts > 0:
		failures = append(failures, fmt.Sprintf("case %q fires; it should not", c.Name))
	case c.Alerts != nil && alerts != *c.Alerts:
		failures = append(failures, fmt.Sprintf("case %q raises %d alerts; it should raise %d", c.Name, alerts, *c.Alerts))
	}
	return failures
}
