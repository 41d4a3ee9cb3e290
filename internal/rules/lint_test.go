package rules

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"picket/schemas"
)

// TestContradictionsHold: a condition that is told of as one that can never
// hold holds for no row, whatever the row has. Conditions are made so that
// many contradict themselves.
func TestContradictionsHold(t *testing.T) {
	words := []string{"sh", "a", "b", "SH", "/etc/a", "/etc", "s", "sh a"}
	for _, class := range []schemas.Class{schemas.Process, schemas.File, schemas.Network, schemas.Audit} {
		t.Run(class.String(), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(11, uint64(class)))
			source := "syscall"
			var names []string
			if class == schemas.Audit {
				source = "k8s_audit"
			}
			for _, n := range fieldNames {
				if f := fieldTable[n]; f.classes()&classesOf[source] != 0 && f.classes().Has(class) {
					names = append(names, n)
				}
			}
			told, free := 0, 0
			for round := range 40 {
				var file strings.Builder
				for i := range 20 {
					g := &conditions{rnd: rnd, words: words, fields: []string{names[rnd.IntN(len(names))]}}
					var parts []string
					for range 2 + rnd.IntN(4) {
						part := g.compare()
						switch rnd.IntN(6) {
						case 0:
							part = "not " + part
						case 1:
							part = "(" + part + " or " + g.compare() + ")"
						case 2:
							part = "not (" + part + " and " + g.compare() + ")"
						}
						parts = append(parts, part)
					}
					fmt.Fprintf(&file, "- rule: r%d\n  desc: d\n  output: o\n  priority: INFO\n  source: %s\n  warn_evttypes: false\n  condition: >\n    %s\n", i, source, strings.Join(parts, " and "))
				}
				set, warnings, err := Load([]Source{{Name: "random.yaml", Data: []byte(file.String())}}, Options{Lint: true})
				if err != nil {
					t.Fatalf("%v\n%s", err, file.String())
				}
				never := make(map[string]string)
				for _, w := range warnings {
					if strings.Contains(w.Message, "can match no event") {
						never[w.Rule] = w.String()
					}
				}
				told += len(never)
				free += 20 - len(never)
				set.NewEvaluator().Eval(randomBatch(rnd, class, 300, words), func(m Match) {
					if why := never[m.Rule.Name]; why != "" {
						t.Fatalf("round %d: %s matches\n%s\n%s", round, m, why, m.Rule.Condition)
					}
				})
			}
			if told < 50 || free < 50 {
				t.Errorf("%d conditions are told of, %d are not: the test tests too little", told, free)
			}
			t.Logf("%d conditions are told of, %d are not", told, free)
		})
	}
}

// TestLintTexts: what contradicts what, and what does not.
func TestLintTexts(t *testing.T) {
	for _, c := range []struct{ condition, want string }{
		{"proc.name = a and proc.name != a", "proc.name != a contradicts proc.name = a (a.yaml:6)"},
		{"proc.name in (a, b) and not proc.name in (a, b, c)", "not proc.name in (a, b, c) contradicts proc.name in (a, b) (a.yaml:6)"},
		{"proc.name in (a, b) and proc.name startswith c", "proc.name startswith c contradicts proc.name in (a, b) (a.yaml:6)"},
		{"proc.name in (a, b) and proc.name startswith b", ""},
		{"proc.name exists and not proc.name exists", "not proc.name exists contradicts proc.name exists (a.yaml:6)"},
		{"not proc.name = a and not proc.name exists", ""},
		{"proc.name = ''", "proc.name =  can never hold"},
		{"proc.args = ''", ""},
		{"proc.exepath startswith /usr/bin and not proc.exepath startswith /usr", "not proc.exepath startswith /usr contradicts proc.exepath startswith /usr/bin (a.yaml:6)"},
		{"proc.exepath endswith .so and proc.exepath endswith .py", "proc.exepath endswith .py contradicts proc.exepath endswith .so (a.yaml:6)"},
		{"proc.exepath startswith /usr and proc.exepath contains /etc", ""},
		{"proc.cmdline contains secret and not proc.cmdline contains cre", "not proc.cmdline contains cre contradicts proc.cmdline contains secret (a.yaml:6)"},
		{"tolower(proc.name) = a and proc.name = B", "tolower(proc.name) = a contradicts proc.name = B (a.yaml:6)"},
		{"tolower(proc.name) = a and proc.name = A", ""},
		{"proc.pid > 5 and proc.pid < 6", "proc.pid < 6 contradicts proc.pid > 5 (a.yaml:6)"},
		{"proc.pid >= 5 and proc.pid <= 5", ""},
		{"proc.pid >= 5 and proc.pid <= 5 and proc.pid != 5", "proc.pid != 5 contradicts proc.pid >= 5 (a.yaml:6)"},
		{"proc.pid in (1, 2) and proc.pid > 2", "proc.pid > 2 contradicts proc.pid in (1, 2) (a.yaml:6)"},
		{"not proc.pid > 5 and not proc.pid < 6", ""},
		{"proc.pid < 0", "proc.pid < 0 can never hold"},
		{"evt.is_open_read = true and evt.is_open_read = false", "evt.is_open_read = false contradicts evt.is_open_read = true (a.yaml:6)"},
		{"fd.sip = 10.0.0.1 and fd.snet = 10.0.0.0/8", ""},
		{"fd.snet in (10.0.0.0/8) and fd.snet in (192.168.0.0/16)", "fd.snet in (192.168.0.0/16) contradicts fd.snet in (10.0.0.0/8) (a.yaml:6)"},
		{"proc.aname = a and proc.aname = b", ""},
		{"proc.name = a and (proc.name = b or proc.name = c)", "proc.name = b contradicts proc.name = a (a.yaml:6)"},
		{"proc.name = a and not (proc.name = a or proc.pid = 1)", "not proc.name = a contradicts proc.name = a (a.yaml:6)"},
		{"evt.type = execve and ka.verb exists", "error"},
		{"evt.type = execve and evt.category = file", "evt.category = file is of class file, evt.type = execve (a.yaml:6) of class process"},
		{"evt.category = other and evt.type = execve", "no event has evt.category = other"},
	} {
		file := "- rule: r\n  desc: d\n  output: o\n  priority: INFO\n  warn_evttypes: false\n  condition: " + c.condition + "\n"
		_, warnings, err := Load([]Source{{Name: "a.yaml", Data: []byte(file)}}, Options{Lint: true})
		if err != nil {
			if c.want != "error" {
				t.Errorf("%s: %v", c.condition, err)
			}
			continue
		}
		got := ""
		for _, w := range warnings {
			if _, why, ok := strings.Cut(w.Message, "can match no event: "); ok {
				got = why
			}
		}
		if got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.condition, got, c.want)
		}
	}
}

// TestFed: a rule that needs what sensors leave out and does not say so is told
// of; one that names it is not, since sensors are asked for it then.
func TestFed(t *testing.T) {
	load := func(condition string) (*Set, []Warning) {
		t.Helper()
		file := "- rule: r\n  desc: d\n  output: o\n  priority: INFO\n  warn_evttypes: false\n  condition: " + condition + "\n"
		s, w, err := Load([]Source{{Name: "a.yaml", Data: []byte(file)}}, Options{Lint: true, Unwanted: []string{"close"}})
		if err != nil {
			t.Fatal(err)
		}
		return s, w
	}
	for condition, want := range map[string]string{
		"evt.type = close":                            "",
		"evt.action = close":                          "",
		"evt.action = accept":                         "",
		"evt.type startswith clos and fd.sport = 443": `a.yaml:1:9: rule "r" is fed by no sensor: by default they leave out close (compare evt.type with it, so that sensors are asked for it)`,
		"evt.type startswith c and fd.sport = 443":    "",
	} {
		if _, w := load(condition); len(w) > 1 || len(w) == 1 && w[0].String() != want || len(w) == 0 && want != "" {
			t.Errorf("%s: %v, want %s", condition, w, want)
		}
	}
	s, _ := load("(evt.type in (openat, connect) and fd.name = /etc/shadow) or (evt.action = mount and not evt.type = fsopen)")
	n := s.Needs()
	if len(n) != 1 || n[0].String() != "openat, connect, class kernel" {
		t.Fatalf("%v", n)
	}
	for _, c := range []struct {
		classes  schemas.ClassSet
		unwanted []string
		want     bool
	}{
		{nodeClasses, nil, true},
		{fileOnly, nil, true},
		{fileOnly, []string{"openat"}, false},
		{fileOnly | networkOnly, []string{"openat"}, true},
		{processOnly | dnsOnly, nil, false},
		{kernelOnly, []string{"mount", "open_tree", "move_mount", "fsconfig", "fsmount", "fspick", "mount_setattr"}, false},
	} {
		if got := n[0].Fed(c.classes, c.unwanted); got != c.want {
			t.Errorf("classes %s without %v: fed %v", classNames(c.classes), c.unwanted, got)
		}
	}
}

// TestLintBounds: what costs the search for contradictions is bounded.
func TestLintBounds(t *testing.T) {
	var many, deep, macros strings.Builder
	for i := range 9000 {
		fmt.Fprintf(&many, " and not proc.name = a%d", i)
	}
	for i := range 90 {
		fmt.Fprintf(&deep, " and (proc.pid > %d or (proc.name != a%d", i, i)
	}
	fmt.Fprintf(&macros, "- macro: m0\n  condition: (proc.pid > 1 or proc.name != a) and (proc.pid > 2 or proc.name != b)\n")
	for i := range 12 {
		fmt.Fprintf(&macros, "- macro: m%d\n  condition: (m%d or not m%d)\n", i+1, i, i)
	}
	for name, file := range map[string]string{
		"many comparisons": "- rule: r\n  desc: d\n  output: o\n  priority: INFO\n  condition: evt.type = execve" + many.String() + "\n",
		"nested choices":   "- rule: r\n  desc: d\n  output: o\n  priority: INFO\n  condition: evt.type = execve" + deep.String() + strings.Repeat("))", 90) + "\n",
		"macros":           macros.String() + "- rule: r\n  desc: d\n  output: o\n  priority: INFO\n  condition: evt.type = execve and m12\n",
	} {
		start := time.Now()
		if _, _, err := Load([]Source{{Name: "a.yaml", Data: []byte(file)}}, Options{Lint: true}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%s: %v", name, d)
		} else {
			t.Logf("%s: %v", name, d)
		}
	}
}

// TestLintTechniques: a technique that is none has no tactic, which is told.
func TestLintTechniques(t *testing.T) {
	file := "- rule: r\n  desc: d\n  output: o\n  priority: INFO\n  condition: evt.type = execve\n  mitre: [T1059.004, T9999, T1562.001]\n"
	_, warnings, err := Load([]Source{{Name: "a.yaml", Data: []byte(file)}}, Options{Lint: true})
	if err != nil {
		t.Fatal(err)
	}
	var named []string
	for _, w := range warnings {
		named = append(named, w.Message)
	}
	if len(named) != 1 || !strings.Contains(named[0], "names T9999,") {
		t.Errorf("%q", named)
	}
}

// TestActions: each action of a call is one that the language knows.
func TestActions(t *testing.T) {
	doc := fieldTable["evt.action"].doc
	for class, calls := range classSyscalls {
		if class == schemas.Kernel {
			continue
		}
		for _, c := range calls {
			for _, a := range actionsOf(class, c) {
				if !strings.Contains(doc, a) {
					t.Errorf("%s: action %s is not in the documentation of evt.action", c, a)
				}
			}
		}
	}
}
