package ruletest_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"picket/internal/rules"
	"picket/internal/ruletest"
)

const pack = `
- rule: Shell
  desc: d
  condition: evt.type = execve and proc.name = sh
  output: shell %proc.cmdline
  priority: WARNING
- rule: Late
  desc: d
  condition: evt.type = openat and evt.rawtime.s >= 1767268810
  output: late
  priority: WARNING
- rule: Alone
  desc: d
  condition: evt.type = execve and proc.name = alone
  output: alone
  priority: WARNING
- rule: Off
  desc: d
  condition: evt.type = execve
  output: off
  priority: WARNING
  enabled: false
`

func load(t *testing.T) *rules.Set {
	t.Helper()
	set, _, err := rules.Load([]rules.Source{{Name: "pack.yaml", Data: []byte(pack)}}, rules.Options{Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func read(t *testing.T, text string) *ruletest.Test {
	t.Helper()
	test, err := ruletest.Read("t.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return test
}

func TestRun(t *testing.T) {
	for _, tt := range []struct {
		name, test string
		rule       string
		failures   []string
	}{
		{"passes", "rule: Shell\ncases:\n- {name: a, fires: true, class: process, event: {process_name: sh}}\n- {name: b, fires: false, class: process, event: {process_name: ls}}", "Shell", nil},
		{"does not fire", "rule: Shell\ncases:\n- {name: a, fires: true, class: process, event: {process_name: ls}}", "Shell", []string{`case "a" does not fire; it should`}},
		{"fires", "rule: Shell\ncases:\n- {name: a, fires: false, class: process, event: {process_name: sh}}", "Shell", []string{`case "a" fires; it should not`}},
		{"another class", "rule: Shell\ncases:\n- {name: a, fires: false, class: file, event: {process_name: sh}}", "Shell", nil},
		{"several events", "rule: Late\ncases:\n- name: a\n  fires: true\n  events:\n  - {class: process, event: {process_name: sh}}\n  - {class: file, after: 4s, event: {}}\n  - {class: file, after: 6s, event: {}}", "Late", nil},
		{"several events, too early", "rule: Late\ncases:\n- name: a\n  fires: false\n  events:\n  - {class: file, after: 4s, event: {}}\n  - {class: file, after: 5s, event: {}}", "Late", nil},
		{"no such rule", "rule: Shel\ncases:\n- {name: a, fires: false, class: file, event: {}}", "Shel", []string{"no rule of this name is loaded"}},
		{"disabled", "rule: 'Off'\ncases:\n- {name: a, fires: false, class: file, event: {}}", "Off", []string{"the rule is disabled"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			results := ruletest.Run(load(t), []*ruletest.Test{read(t, tt.test)})
			i := slices.IndexFunc(results, func(r ruletest.Result) bool { return r.Rule == tt.rule })
			if i < 0 {
				t.Fatalf("no result of rule %q: %+v", tt.rule, results)
			}
			if got := results[i].Failures; !slices.Equal(got, tt.failures) {
				t.Errorf("failures %q, want %q", got, tt.failures)
			}
			if results[i].File != "t.yaml" {
				t.Errorf("file %q", results[i].File)
			}
			alone := slices.IndexFunc(results, func(r ruletest.Result) bool { return r.Rule == "Alone" })
			if alone < 0 || results[alone].File != "" || results[alone].Failures != nil {
				t.Errorf("a rule without a test: %+v", results)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"empty", "", "is empty"},
		{"no rule", "cases: []", "which rule"},
		{"no cases", "rule: R", "no cases"},
		{"unknown key", "rule: R\ncase: []", "field case not found"},
		{"no answer", "rule: R\ncases:\n- {name: a, class: file, event: {}}", "whether the rule fires"},
		{"no event", "rule: R\ncases:\n- {name: a, fires: true}", "no event"},
		{"event and events", "rule: R\ncases:\n- {name: a, fires: true, class: file, event: {}, events: [{class: file, event: {}}]}", "give one of them"},
		{"class without event", "rule: R\ncases:\n- {name: a, fires: true, class: file, events: [{class: file, event: {}}]}", "each has its own class"},
		{"unknown class", "rule: R\ncases:\n- {name: a, fires: true, class: fiel, event: {}}", `unknown event class "fiel"`},
		{"class without rules", "rule: R\ncases:\n- {name: a, fires: true, class: health, event: {}}", "no events of class health"},
		{"unknown column", "rule: R\ncases:\n- {name: a, fires: true, class: file, event: {proc: x}}", `no column "proc"`},
		{"wrong type", "rule: R\ncases:\n- {name: a, fires: true, class: file, event: {fd_number: x}}", "fd_number"},
		{"time back", "rule: R\ncases:\n- {name: a, fires: true, events: [{class: file, after: -1s, event: {}}]}", "want a duration"},
		{"no duration", "rule: R\ncases:\n- {name: a, fires: true, events: [{class: file, after: 5, event: {}}]}", "want a duration"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ruletest.Read("t.yaml", []byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "t.yaml") {
				t.Errorf("error %v; want one of t.yaml with %q", err, tt.want)
			}
		})
	}
}

func TestReadPaths(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a.yaml", pack)
	write("b.yaml", "- rule: Other\n  desc: d\n  condition: evt.type = execve\n  output: o\n  priority: WARNING\n")
	write("tests/shell.yaml", "rule: Shell\ncases:\n- {name: a, fires: true, class: process, event: {process_name: sh}}")
	write("tests/other.yaml", "rule: Other\ncases:\n- {name: a, fires: true, class: process, event: {}}")
	for _, tt := range []struct {
		paths []string
		files int
		want  []string
	}{
		{[]string{dir}, 2, []string{"Other", "Shell"}},
		{[]string{filepath.Join(dir, "a.yaml")}, 1, []string{"Shell"}},
		{[]string{filepath.Join(dir, "b.yaml")}, 1, []string{"Other"}},
		{[]string{filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")}, 2, []string{"Shell", "Other"}},
	} {
		files, tests, err := ruletest.ReadPaths(tt.paths...)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, x := range tests {
			got = append(got, x.Rule)
		}
		if len(files) != tt.files || !slices.Equal(got, tt.want) {
			t.Errorf("%v: %d files, tests of %v; want %d, %v", tt.paths, len(files), got, tt.files, tt.want)
		}
	}
	write("tests/bad.yaml", "rule: Shell")
	if _, _, err := ruletest.ReadPaths(dir); err == nil || !strings.Contains(err.Error(), "bad.yaml has no cases") {
		t.Errorf("a bad test file gives %v", err)
	}
	write("tests/bad.yaml", "rule: Shell\ncases: [{name: a, fires: true, class: process, event: {process_name: a}}]\n---\nrule: Other\n")
	if _, _, err := ruletest.ReadPaths(dir); err == nil || !strings.Contains(err.Error(), "bad.yaml has more behind ---") {
		t.Errorf("a file of two documents gives %v", err)
	}
}
