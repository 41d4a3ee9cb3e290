package rules_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"picket/internal/batch"
	"picket/internal/rules"
	pack "picket/rules"
	"picket/schemas"
)

// ruleTest is a file of tests/ (docs/rules.md describes the format).
type ruleTest struct {
	Rule  string     `yaml:"rule"`
	Cases []testCase `yaml:"cases"`
}

type testCase struct {
	Name  string         `yaml:"name"`
	Fires *bool          `yaml:"fires"`
	Class string         `yaml:"class"`
	Event map[string]any `yaml:"event"`
}

// defaults are the columns that events of a class have unless a test says
// otherwise.
var defaults = map[schemas.Class]map[string]any{
	schemas.Process: {"action": "exec", "syscall": "execve"},
	schemas.File:    {"action": "open", "syscall": "openat", "fd_number": 3, "file_mode": 0o100644},
	schemas.Network: {"action": "connect", "syscall": "connect", "fd_number": 3, "network_transport": "tcp", "network_type": "ipv4",
		"network_direction": "outbound", "network_local_address": "10.0.0.5", "network_local_port": 40000},
	schemas.Kernel: {"result": 0},
	schemas.DNS:    {"action": "query", "syscall": "dns", "network_transport": "udp", "network_peer_port": 53},
	schemas.Audit:  {"action": "audit", "audit_stage": "ResponseComplete", "audit_response_code": 200, "audit_authorization_decision": "allow"},
}

func load(t *testing.T) *rules.Set {
	t.Helper()
	set, warnings, err := rules.Load(pack.Default(), rules.Options{Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range warnings {
		t.Errorf("the default pack loads with a warning: %s", w)
	}
	return set
}

var slugOf = regexp.MustCompile(`[^a-z0-9]+`)

func slug(rule string) string {
	return strings.Trim(slugOf.ReplaceAllString(strings.ToLower(rule), "-"), "-")
}

// TestRules runs the tests of every rule, and fails for a rule without.
func TestRules(t *testing.T) {
	set := load(t)
	ev := set.NewEvaluator()
	wanted := make(map[string]bool)
	for _, r := range set.Rules() {
		file := slug(r.Name) + ".yaml"
		wanted[file] = true
		t.Run(slug(r.Name), func(t *testing.T) {
			test := readTest(t, filepath.Join("tests", file))
			if test.Rule != r.Name {
				t.Fatalf("%s is about rule %q, not %q", file, test.Rule, r.Name)
			}
			fires, quiet := 0, 0
			for _, c := range test.Cases {
				if c.Fires == nil {
					t.Fatalf("case %q does not say whether the rule fires", c.Name)
				}
				b := event(t, c)
				got := false
				ev.Eval(b, func(m rules.Match) {
					if m.Rule != r {
						return
					}
					got = true
					if out := m.Output(); out == "" || strings.Contains(out, "%") && !strings.Contains(fmt.Sprint(c.Event), "%") {
						t.Errorf("case %q: output %q", c.Name, out)
					}
				})
				if got != *c.Fires {
					t.Errorf("case %q: fires is %v, want %v", c.Name, got, *c.Fires)
				}
				if *c.Fires {
					fires++
				} else {
					quiet++
				}
			}
			if fires == 0 || quiet == 0 {
				t.Errorf("%s needs at least one case that fires (has %d) and one that does not (has %d)", file, fires, quiet)
			}
		})
	}
	entries, err := os.ReadDir("tests")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !wanted[e.Name()] {
			t.Errorf("tests/%s belongs to no rule", e.Name())
		}
	}
}

// TestPack holds the pack to what every rule of it must have.
func TestPack(t *testing.T) {
	set := load(t)
	node, audit := 0, 0
	for _, r := range set.Rules() {
		if len(r.Techniques) == 0 || r.Description == "" || len(r.Tags) == 0 || len(r.FalsePositives) == 0 {
			t.Errorf("rule %q lacks one of mitre, desc, tags, false_positives", r.Name)
		}
		if !r.Enabled || len(r.Classes) == 0 {
			t.Errorf("rule %q matches nothing", r.Name)
		}
		if r.Source == "syscall" {
			node++
		} else {
			audit++
		}
	}
	if node < 14 || audit < 8 {
		t.Errorf("%d node and %d audit rules", node, audit)
	}
	if got := set.Classes(); len(got) != 6 {
		t.Errorf("classes %v", got)
	}
	if p := set.WatchedPaths(); !slices.Contains(p, "/etc/shadow") || slices.Contains(p, "/") {
		t.Errorf("watched paths %v", p)
	}
}

func readTest(t *testing.T, file string) ruleTest {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("a rule without a test: %v", err)
	}
	var test ruleTest
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	dec.KnownFields(true)
	if err := dec.Decode(&test); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return test
}

// event builds a batch of one row.
func event(t *testing.T, c testCase) *batch.Batch {
	t.Helper()
	class, err := schemas.ParseClass(c.Class)
	if err != nil {
		t.Fatal(err)
	}
	columns := maps.Clone(defaults[class])
	maps.Copy(columns, c.Event)
	b := batch.NewBuilder(class, schemas.Columns(class))
	for name, v := range columns {
		id, ok := schemas.FieldByName(name)
		if !ok || !id.Field().Classes.Has(class) {
			t.Fatalf("case %q: class %s has no column %q", c.Name, class, name)
		}
		if err := set(b, id, v); err != nil {
			t.Fatalf("case %q: %s: %v", c.Name, name, err)
		}
	}
	b.EndRow()
	return b.Batch()
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
		return fmt.Errorf("tests cannot set a column of this type")
	}
	return nil
}
