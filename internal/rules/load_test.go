package rules_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"picket/internal/batch"
	"picket/internal/rules"
	"picket/schemas"
)

// rule makes a rule of a condition.
func rule(name, condition string) string {
	return "- rule: " + name + "\n  desc: d\n  output: o\n  priority: INFO\n  warn_evttypes: false\n  condition: " + condition + "\n"
}

func source(text string) []rules.Source {
	return []rules.Source{{Name: "a.yaml", Data: []byte(text)}}
}

// TestErrors holds every kind of fault to its message and position.
func TestErrors(t *testing.T) {
	cond := func(c string) string {
		return "- rule: r\n  desc: d\n  output: o\n  priority: INFO\n  condition: " + c + "\n"
	}
	for _, c := range []struct{ name, file, want string }{
		{"not yaml", "- rule: [", "a.yaml:1:1: not valid YAML: did not find expected node content"},
		{"not a list", "rule: x\n", "a.yaml:1:1: expected a list of rules, macros and lists, found a mapping (start each entry with \"- rule:\", \"- macro:\" or \"- list:\")"},
		{"not a mapping", "- x\n", "a.yaml:1:3: expected a mapping with rule, macro or list, found \"x\""},
		{"unknown entry", "- macros: x\n", "a.yaml:1:3: expected one of the keys rule, macro, list, found \"macros\" (did you mean macro?)"},
		{"two entries", "- rule: x\n  macro: y\n", "a.yaml:2:3: entry is both rule and macro"},
		{"key twice", "- macro: x\n  condition: evt.num=1\n  condition: b\n", "a.yaml:3:3: key \"condition\" stands twice"},
		{"alias", "- macro: &a x\n  condition: *a\n", "a.yaml:2:14: YAML aliases are not read in rule files (write the value out)"},
		{"no name", "- rule:\n", "a.yaml:1:8: expected text for rule, found nothing"},
		{"no condition", "- rule: r\n  desc: d\n  output: o\n  priority: INFO\n", "a.yaml:1:9: rule \"r\" has no condition"},
		{"no macro condition", "- macro: m\n", "a.yaml:1:10: macro \"m\" has no condition"},
		{"no items", "- list: l\n", "a.yaml:1:9: list \"l\" has no items"},
		{"items", "- list: l\n  items: x\n", "a.yaml:2:10: expected a list for items, found \"x\""},
		{"bad priority", strings.Replace(cond("evt.num=1"), "INFO", "LOUD", 1), "a.yaml:4:13: unknown priority \"LOUD\" (known: emergency, alert, critical, error, warning, notice, informational, debug)"},
		{"bad boolean", cond("evt.num=1") + "  enabled: maybe\n", "a.yaml:6:12: expected true or false for enabled, found \"maybe\""},
		{"bad technique", cond("evt.num=1") + "  mitre: [T12]\n", "a.yaml:6:10: \"T12\" is not an ATT&CK technique id (like T1059 or T1059.004)"},

		{"empty", cond(`""`), "a.yaml:5:15: empty condition"},
		{"dangling and", cond("evt.num=1 and"), "a.yaml:5:27: expected a condition after \"and\""},
		{"two conditions", cond("evt.num=1 evt.num=2"), "a.yaml:5:24: expected \"and\", \"or\" or the end of the condition, found \"evt.num=2\""},
		{"open parenthesis", cond("(evt.num=1"), "a.yaml:5:24: expected \")\" for the \"(\" here, found the end of the condition"},
		{"close parenthesis", cond("evt.num=1)"), "a.yaml:5:23: \")\" without its \"(\""},
		{"no operator", cond("proc.name"), "a.yaml:5:23: expected an operator after proc.name, found the end of the condition"},
		{"unknown operator", cond("proc.name startwith x"), "a.yaml:5:24: expected an operator after proc.name, found \"startwith\" (did you mean startswith?)"},
		{"no value", cond("proc.name ="), "a.yaml:5:25: expected a value after \"=\", found the end of the condition"},
		{"list for a value", cond("proc.name = (a, b)"), "a.yaml:5:26: expected one value after \"=\", found a list (use in (…) to compare with several values)"},
		{"list not closed", cond("proc.name in (a, b"), "a.yaml:5:32: expected \",\" or \")\" in the list of \"in\", found the end of the condition (values with spaces need quotes)"},
		{"blank in list", cond("proc.name in (a b)"), "a.yaml:5:30: expected \",\" or \")\" in the list of \"in\", found \"b\" (values with spaces need quotes)"},
		{"string not closed", cond("proc.name = 'a"), "a.yaml:5:26: string without its closing '"},
		{"field without dot", cond("name = x"), "a.yaml:5:14: expected a field before \"=\", found \"name\" (fields have a dot in their name)"},
		{"argument not closed", cond("proc.aname[1 = x"), "a.yaml:5:26: expected \"]\" for the argument of proc.aname, found \"=\""},
		{"unknown transformer", cond("lower(proc.name) = x"), "a.yaml:5:14: unknown transformer \"lower\" (did you mean tolower?)"},

		{"transformer to come", cond("concat(proc.name, proc.pname) = x"), "a.yaml:5:14: the transformer concat of Falco's development version is not there (compare the fields one by one)"},
		{"unknown field", cond("proc.nmae = x"), "a.yaml:5:14: unknown field \"proc.nmae\" (did you mean proc.name?)"},
		{"unknown macro", "- macro: spawned\n  condition: evt.num=1\n" + cond("spawnd"), "a.yaml:7:14: unknown macro \"spawnd\" (did you mean spawned?)"},
		{"list as macro", "- list: l\n  items: [a]\n" + cond("l"), "a.yaml:7:14: \"l\" is a list: it stands behind in, intersects or pmatch (field in (l))"},
		{"unknown list", cond("proc.name in shells"), "a.yaml:5:27: unknown list \"shells\" (write (shells))"},
		{"macro cycle", "- macro: a\n  condition: b\n- macro: b\n  condition: a\n", "a.yaml:4:14: macro \"a\" contains itself"},
		{"list cycle", "- list: a\n  items: [b]\n- list: b\n  items: [a]\n", "a.yaml:4:11: list \"a\" contains itself"},
		{"argument missing", cond("ka.uri.param = x"), "a.yaml:5:14: field ka.uri.param needs an argument in brackets"},
		{"argument unwanted", cond("proc.name[1] = x"), "a.yaml:5:24: field proc.name takes no argument"},
		{"argument no number", cond("proc.aname[x] = x"), "a.yaml:5:25: argument of proc.aname is a number, found \"x\" (as in proc.aname[1])"},
		{"wrong operator", cond("proc.pid contains 1"), "a.yaml:5:23: operator \"contains\" does not apply to proc.pid, which is a number (use one of exists, =, !=, <, <=, >, >=, in, intersects)"},
		{"text is not ordered", cond("proc.name > x"), "a.yaml:5:24: operator \">\" does not apply to proc.name, which is a text (use one of exists, =, !=, contains, icontains, bcontains, startswith, bstartswith, endswith, glob, iglob, regex, in, intersects, pmatch)"},
		{"no number", cond("proc.pid in (1, x)"), "a.yaml:5:30: proc.pid is compared with a number, found \"x\""},
		{"no boolean", cond("evt.is_open_read = yes"), "a.yaml:5:33: evt.is_open_read is compared with a boolean, found \"yes\" (true or false)"},
		{"no address", cond("fd.sip = example.test"), "a.yaml:5:23: fd.sip is compared with a address, found \"example.test\" (as in 10.0.0.1)"},
		{"no network", cond("fd.snet in (10.0.0.0/40)"), "a.yaml:5:26: fd.snet is compared with a network, found \"10.0.0.0/40\" (as in 10.0.0.0/8)"},
		{"bad regex", cond("proc.name regex '('"), "a.yaml:5:30: regex: missing closing ): `(`"},
		{"bad hex", cond("proc.name bcontains zz"), "a.yaml:5:34: \"zz\" is not an even number of hexadecimal digits"},
		{"unknown system call", cond("evt.type = exceve"), "a.yaml:5:25: \"exceve\" is not the name of a system call (did you mean execve?)"},
		{"transformed number", cond("tolower(proc.pid) = 1"), "a.yaml:5:14: tolower(proc.pid): transformers apply to text, len to lists too, and proc.pid is a number"},
		{"val of other type", cond("proc.name = val(proc.pid)"), "a.yaml:5:30: fields of one type are compared; proc.name is a text, proc.pid a number without a sign"},
		{"field of another source", cond("ka.verb = get"), "a.yaml:5:14: field ka.verb is not one of source syscall, which rule \"r\" is for"},
		{"output", strings.Replace(cond("evt.num=1"), "output: o", "output: x=%proc.nmae", 1), "a.yaml:3:14: unknown field \"proc.nmae\" (did you mean proc.name?)"},
		{"output of another source", strings.Replace(cond("evt.num=1"), "output: o", "output: x=%ka.verb", 1), "a.yaml:3:14: field ka.verb of the output is not one of source syscall"},

		{"append to nothing", "- rule: r\n  append: true\n  condition: and evt.num=1\n", "a.yaml:1:9: rule \"r\" is not defined before, so there is nothing to append to or override"},
		{"enable nothing", "- rule: r\n  enabled: false\n", "a.yaml:1:9: rule \"r\" is not defined before, so there is nothing to enable or disable"},
		{"append and override", cond("evt.num=1") + "- rule: r\n  append: true\n  override: {condition: append}\n  condition: and evt.num=1\n", "a.yaml:6:9: rule \"r\" has both append and override (use override alone)"},
		{"override forgotten", cond("evt.num=1") + "- rule: r\n  override: {condition: replace}\n  condition: evt.num=2\n  output: x\n", "a.yaml:6:9: key \"output\" of rule \"r\" does not stand under override (add it to override)"},
		{"override too much", cond("evt.num=1") + "- rule: r\n  override: {condition: replace, output: replace}\n  condition: evt.num=2\n", "a.yaml:6:9: override of rule \"r\" names \"output\", which the entry does not have"},
		{"override unknown", cond("evt.num=1") + "- rule: r\n  override: {condition: prepend}\n  condition: evt.num=2\n", "a.yaml:7:25: expected append or replace for \"condition\", found \"prepend\""},
		{"append a priority", cond("evt.num=1") + "- rule: r\n  override: {priority: append}\n  priority: INFO\n", "a.yaml:7:24: \"priority\" cannot be appended to (use replace)"},
		{"exception fields", cond("evt.num=1") + "  exceptions:\n  - name: e\n    fields: [proc.name, proc.pname]\n    values: [[a]]\n", "a.yaml:7:5: exception \"e\" of rule \"r\" has a tuple of 1 values for 2 fields"},
		{"exception comps", cond("evt.num=1") + "  exceptions:\n  - name: e\n    fields: [proc.name]\n    comps: [=, =]\n    values: [[a]]\n", "a.yaml:7:5: exception \"e\" of rule \"r\" has 2 comps for 1 fields"},
		{"exception field", cond("evt.num=1") + "  exceptions:\n  - name: e\n    fields: [proc.nmae]\n    values: [[a]]\n", "a.yaml:8:14: unknown field \"proc.nmae\" (did you mean proc.name?)"},
		{"exception comp", cond("evt.num=1") + "  exceptions:\n  - name: e\n    fields: [proc.name]\n    comps: [like]\n    values: [[a]]\n", "a.yaml:9:13: \"like\" is not an operator that exceptions can use"},
		{"exception key", cond("evt.num=1") + "  exceptions:\n  - nam: e\n", "a.yaml:7:5: unknown key \"nam\" of an exception (did you mean name?)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			set, _, err := rules.Load(source(c.file), rules.Options{})
			if err == nil {
				t.Fatal("loads")
			}
			if set != nil {
				t.Error("a set beside an error")
			}
			if got := strings.Split(err.Error(), "\n")[0]; got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// TestFaultsBesideKeys: a key with a fault hides no other fault of its entry, and
// makes none of those that use the entry.
func TestFaultsBesideKeys(t *testing.T) {
	const base = "- rule: r\n  desc: d\n  output: o\n  priority: INFO\n"
	for _, c := range []struct {
		name, file string
		want       []string
	}{
		{"id, condition and output", "- rule: r\n  id: A B\n  mitre: [X1]\n  desc: d\n  output: '%proc.nmae'\n  priority: INFO\n  condition: proc.nmae = x\n",
			[]string{"2:7: ", "3:10: ", "5:13: unknown field", "7:14: unknown field"}},
		{"condition that is none", "- rule: r\n  desc: d\n  output: '%proc.nmae'\n  priority: INFO\n  condition: [a]\n", []string{"3:13: unknown field", "5:14: expected text for condition"}},
		{"output, desc and priority that are none", "- rule: r\n  desc: [d]\n  output: [o]\n  priority: [INFO]\n  condition: proc.nmae = x\n",
			[]string{"2:9: ", "3:11: ", "4:13: ", "5:14: unknown field"}},
		{"key twice", base + "  desc: e\n  condition: proc.nmae = x\n", []string{"5:3: key \"desc\" stands twice", "6:14: unknown field"}},
		{"correlation", base + "  correlation: {kind: count}\n  condition: proc.nmae = x\n", []string{"5:16: ", "6:14: unknown field"}},
		{"correlation alone", base + "  correlation: {kind: sequence, window: soon}\n", []string{"5:41: ", "5:16: "}},
		{"source", base + "  source: [k8s_audit]\n  condition: ka.verb = get\n", []string{"5:11: expected text for source"}},
		{"exceptions", base + "  condition: proc.nmae = x\n  exceptions: [{name: e, values: [a], vlues: b}]\n", []string{"5:14: unknown field", "6:39: unknown key"}},
		{"macro that a rule uses", "- macro: m\n  condition: [a]\n- macro: m\n  append: true\n  condition: or evt.num=1\n" + base + "  condition: m and evt.num=1\n", []string{"2:14: expected text"}},
		{"list that a rule uses", "- list: l\n  items: a\n" + base + "  condition: proc.name in (l)\n", []string{"2:10: expected a list"}},
		{"rule that another entry changes", base + "  risk: high\n  condition: evt.num=1\n- rule: r\n  append: true\n  condition: and proc.nmae=1\n", []string{"5:9: expected a number", "9:18: unknown field"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := rules.Load(source(c.file), rules.Options{Lint: true})
			var errs rules.Errors
			if !errors.As(err, &errs) {
				t.Fatalf("loads: %v", err)
			}
			var got []string
			for _, e := range errs {
				got = append(got, strings.TrimPrefix(e.Error(), "a.yaml:"))
			}
			for _, want := range c.want {
				if !slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, want) }) {
					t.Errorf("no fault %q", want)
				}
			}
			if len(got) != len(c.want) {
				t.Errorf("%d faults, want %d:\n%s", len(got), len(c.want), strings.Join(got, "\n"))
			}
		})
	}
}

// TestPositions holds errors to their place in every style of YAML scalar.
func TestPositions(t *testing.T) {
	for _, c := range []struct{ name, condition, want string }{
		{"plain", "evt.num=1\n    and proc.nmae=x", "a.yaml:6:9"},
		{"folded", ">\n    evt.num=1\n\n    and   proc.nmae=x", "a.yaml:8:11"},
		{"folded with header", ">-  # why\n    evt.num=1\n    and proc.nmae=x", "a.yaml:7:9"},
		{"literal", "|\n      evt.num=1\n      and proc.nmae=x", "a.yaml:7:11"},
		{"single quotes", "'evt.num=1 and proc.name=''a'' and proc.nmae=x'", "a.yaml:5:49"},
		{"double quotes", `"evt.num=1 and proc.name=\"a\" \n and\tproc.nmae=x"`, "a.yaml:5:53"},
		{"double quotes, lines", "\"evt.num=1 \\\n    and proc.nmae=x\"", "a.yaml:6:9"},
		{"letters beyond ASCII", `"proc.name=é\u00e9 and proc.nmae=x"`, "a.yaml:5:37"},
		{"tag", "!!str evt.num=1 and proc.nmae=x", "a.yaml:5:34"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(rule("r", c.condition), "  warn_evttypes: false\n", "", 1)
			_, _, err := rules.Load(source(text), rules.Options{})
			if err == nil || !strings.HasPrefix(err.Error(), c.want+": unknown field") {
				t.Errorf("got %v, want %s\n%s", err, c.want, text)
			}
		})
	}
	t.Run("windows lines", func(t *testing.T) {
		text := strings.ReplaceAll(rule("r", ">\n    evt.num=1\n    and proc.nmae=x"), "\n", "\r\n")
		_, _, err := rules.Load(source(text), rules.Options{})
		if err == nil || !strings.HasPrefix(err.Error(), "a.yaml:8:9: unknown field") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("appended", func(t *testing.T) {
		files := []rules.Source{
			{Name: "a.yaml", Data: []byte(rule("r", "evt.num=1"))},
			{Name: "b.yaml", Data: []byte("- rule: r\n  override: {condition: append}\n  condition: >\n    and\n      proc.nmae=x\n")},
		}
		_, _, err := rules.Load(files, rules.Options{})
		if err == nil || !strings.HasPrefix(err.Error(), "b.yaml:5:7: unknown field") {
			t.Errorf("got %v", err)
		}
	})
}

// TestAllErrors holds Load to tell of every fault, in order, each once.
func TestAllErrors(t *testing.T) {
	file := "- macro: m\n  condition: proc.nmae=x\n" + rule("a", "m and evt.num=1") + rule("b", "m and proc.pid=x") + rule("c", "(m")
	_, _, err := rules.Load([]rules.Source{{Name: "x.yaml", Data: []byte("- rule: [")}, {Name: "a.yaml", Data: []byte(file)}}, rules.Options{})
	es, ok := err.(rules.Errors)
	if !ok {
		t.Fatalf("%T", err)
	}
	var got []string
	for _, e := range es {
		got = append(got, strings.SplitN(e.Error(), ": ", 2)[0])
	}
	if want := []string{"x.yaml:1:1", "a.yaml:2:14", "a.yaml:14:29", "a.yaml:20:16"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v\n%v", got, want, err)
	}
}

// fires returns the names of the rules that match an exec.
func fires(t *testing.T, text string, set func(b *batch.Builder)) []string {
	t.Helper()
	s, _, err := rules.Load(source(text), rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return matching(s, schemas.Process, func(b *batch.Builder) {
		b.Str(schemas.Syscall, "execve")
		b.Uint64(schemas.Sequence, 1)
		set(b)
	})
}

func matching(s *rules.Set, class schemas.Class, set func(b *batch.Builder)) (names []string) {
	b := batch.NewBuilder(class, schemas.Columns(class))
	set(b)
	b.EndRow()
	s.NewEvaluator().Eval(b.Batch(), func(m rules.Match) { names = append(names, m.Rule.Name) })
	return names
}

// TestMerging holds later definitions to what they do to earlier ones.
func TestMerging(t *testing.T) {
	named := func(n string) func(b *batch.Builder) {
		return func(b *batch.Builder) { b.Str(schemas.ProcessName, n); b.Str(schemas.ParentName, "init") }
	}
	for _, c := range []struct {
		name, file string
		on, off    string // names of processes
	}{
		{"rule replaced", rule("r", "proc.name=a") + rule("r", "proc.name=b"), "b", "a"},
		{"rule appended", rule("r", "proc.name=a") + "- rule: r\n  append: true\n  condition: or proc.name=b\n", "b", "c"},
		{"condition overridden", rule("r", "proc.name=a") + "- rule: r\n  override: {condition: replace}\n  condition: proc.name=b\n", "b", "a"},
		{"condition appended", rule("r", "proc.name in (a, b)") + "- rule: r\n  override: {condition: append}\n  condition: and not proc.name=a\n", "b", "a"},
		{"macro replaced", "- macro: m\n  condition: proc.name=a\n" + rule("r", "m") + "- macro: m\n  condition: proc.name=b\n", "b", "a"},
		{"macro appended", "- macro: m\n  condition: proc.name=a\n" + rule("r", "m") + "- macro: m\n  append: true\n  condition: or proc.name=b\n", "b", "c"},
		{"list replaced", "- list: l\n  items: [a]\n" + rule("r", "proc.name in (l)") + "- list: l\n  items: [b]\n", "b", "a"},
		{"list appended", "- list: l\n  items: [a]\n" + rule("r", "proc.name in (l)") + "- list: l\n  append: true\n  items: [b]\n", "b", "c"},
		{"list overridden", "- list: l\n  items: [a]\n" + rule("r", "proc.name in (l)") + "- list: l\n  override: {items: append}\n  items: [b]\n", "a", "c"},
		{"list in list", "- list: k\n  items: [b]\n- list: l\n  items: [a, k]\n" + rule("r", "proc.name in (l)"), "b", "k"},
		{"list defined later", rule("r", "proc.name in (l, c)") + "- list: l\n  items: [b]\n", "b", "a"},
		{"list without parentheses", "- list: l\n  items: [b]\n" + rule("r", "proc.name in l"), "b", "l"},
		{"quoted is no list", "- list: l\n  items: [b]\n" + rule("r", `proc.name in ("l")`), "l", "b"},
		{"quotes in an item", "- list: l\n  items: ['\"b c\"']\n" + rule("r", "proc.name in (l)"), "b c", "b"},
		{"macro keeps its parentheses", "- macro: m\n  condition: proc.name=a or proc.name=b\n" + rule("r", "not m"), "c", "b"},
		{"enabled later", rule("r", "proc.name=a") + "  enabled: false\n- rule: r\n  enabled: true\n", "a", "b"},
		{"exception, one field", rule("r", "proc.pname=init") + "  exceptions:\n  - {name: e, fields: proc.name, values: [a, b]}\n", "c", "b"},
		{"exception, comps", rule("r", "proc.pname=init") + "  exceptions:\n  - {name: e, fields: [proc.name, proc.pname], comps: [startswith, =], values: [[a, init], [b, other]]}\n", "b", "aa"},
		{"exception, list in tuple", rule("r", "proc.pname=init") + "  exceptions:\n  - {name: e, fields: [proc.name, proc.pname], comps: [in, =], values: [[[a, b], init]]}\n", "c", "b"},
		{"exception, several values without comps", rule("r", "proc.pname=init") + "  exceptions:\n  - {name: e, fields: [proc.name, proc.pname], values: [[[a, b], init]]}\n", "c", "b"},
		{"exception without values", rule("r", "proc.pname=init") + "  exceptions:\n  - {name: e, fields: [proc.name]}\n", "a", ""},
		{"exception appended", rule("r", "proc.pname=init") + "  exceptions:\n  - {name: e, fields: [proc.name], values: [[a]]}\n- rule: r\n  override: {exceptions: append}\n  exceptions:\n  - {name: e, values: [[b]]}\n", "c", "b"},
		{"exception appended, one field", rule("r", "proc.pname=init") + "  exceptions:\n  - {name: e, fields: proc.name, values: [a]}\n- rule: r\n  append: true\n  exceptions:\n  - {name: e, values: [b]}\n", "c", "b"},
		{"exception replaced", rule("r", "proc.pname=init") + "  exceptions:\n  - {name: e, fields: [proc.name], values: [[a]]}\n- rule: r\n  override: {exceptions: replace}\n  exceptions:\n  - {name: f, fields: [proc.name], values: [[b]]}\n", "a", "b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := fires(t, c.file, named(c.on)); !slices.Equal(got, []string{"r"}) {
				t.Errorf("%s: fires %v", c.on, got)
			}
			if c.off == "" {
				return
			}
			if got := fires(t, c.file, named(c.off)); got != nil {
				t.Errorf("%s: fires %v", c.off, got)
			}
		})
	}
}

// TestOverrideParts holds override to the parts other than the condition.
func TestOverrideParts(t *testing.T) {
	s, _, err := rules.Load(source(rule("r", "proc.name=a")+`  tags: [x, T1059]
  mitre: [T1105]
- rule: r
  override: {output: append, desc: append, tags: append, priority: replace}
  output: more=%proc.name
  desc: more
  tags: [T1105, T1059.004]
  priority: CRITICAL
`), rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := s.Rules()[0]
	if r.OutputTemplate != "o more=%proc.name" || r.Description != "d more" || r.Priority != "CRITICAL" || r.Severity != schemas.Critical {
		t.Errorf("%+v", r)
	}
	if want := []string{"T1105", "T1059", "T1059.004"}; !slices.Equal(r.Techniques, want) {
		t.Errorf("techniques %v", r.Techniques)
	}
	if r.File != "a.yaml" || r.Line != 1 || !slices.Equal(r.Classes, schemas.NodeClasses()) {
		t.Errorf("%s:%d %v", r.File, r.Line, r.Classes)
	}
}

// TestLacking holds rules that Picket cannot serve to be left out, or to be
// errors when strict.
func TestLacking(t *testing.T) {
	for _, c := range []struct{ name, rule, want string }{
		{"field", rule("r", "evt.type=execve and not proc.aenv contains x"), `a.yaml:6:38: rule "r" is left out: field proc.aenv is not there: the environment of ancestors is not kept`},
		{"system call", rule("r", "evt.type in (recvfrom, read)"), `a.yaml:1:9: rule "r" is left out: no sensor reports the system calls it is about: recvfrom, read`},
		{"source", rule("r", "ct.name=x") + "  source: aws_cloudtrail\n", `a.yaml:7:11: rule "r" is left out: Picket reads no events of source "aws_cloudtrail" (syscall or k8s_audit)`},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := c.rule + rule("good", "proc.name=a")
			s, warnings, err := rules.Load(source(file), rules.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Rules()) != 1 || s.Rules()[0].Name != "good" {
				t.Errorf("rules %v", s.Rules())
			}
			if len(warnings) != 1 || !warnings[0].LeftOut || warnings[0].Rule != "r" || warnings[0].String() != c.want {
				t.Errorf("warnings %v, want %s", warnings, c.want)
			}
			if _, _, err := rules.Load(source(file), rules.Options{Strict: true}); err == nil {
				t.Error("loads when strict")
			}
			if _, w, err := rules.Load(source(c.rule+"  skip-if-unknown-filter: true\n"), rules.Options{Strict: true}); err != nil || len(w) != 1 {
				t.Errorf("skip-if-unknown-filter: %v %v", err, w)
			}
		})
	}
	t.Run("a missing field behind a system call that is not reported", func(t *testing.T) {
		s, w, err := rules.Load(source(rule("r", "(evt.type=rename and evt.arg.oldpath contains x) or (evt.type=execve and proc.name=mv)")), rules.Options{Strict: true})
		if err != nil || len(w) != 0 || len(s.Rules()) != 1 {
			t.Errorf("%v %v", err, w)
		}
	})
	t.Run("output", func(t *testing.T) {
		file := strings.Replace(rule("r", "evt.type=execve and proc.name=a"), "output: o", "output: env=%proc.aenv name=%proc.name", 1)
		s, w, err := rules.Load(source(file), rules.Options{})
		if err != nil || len(w) != 1 || w[0].LeftOut {
			t.Fatalf("%v %v", err, w)
		}
		b := batch.NewBuilder(schemas.Process, schemas.Columns(schemas.Process))
		b.Str(schemas.Syscall, "execve")
		b.Str(schemas.ProcessName, "a")
		b.EndRow()
		s.NewEvaluator().Eval(b.Batch(), func(m rules.Match) {
			if got := m.Output(); got != "env=<NA> name=a" {
				t.Errorf("output %q", got)
			}
		})
		if _, _, err := rules.Load(source(file), rules.Options{Strict: true}); err == nil {
			t.Error("loads when strict")
		}
	})
}

// TestWarnings holds what loads with a remark.
func TestWarnings(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"unknown key", rule("r", "proc.name=a") + "  severty: x\n", `a.yaml:7:3: unknown key "severty" of rule "r" is ignored`},
		{"key without effect", rule("r", "proc.name=a") + "  capture: true\n", `a.yaml:7:3: key "capture" has no effect: Picket records no captures`},
		{"never true", rule("r", "evt.type=execve and proc.name in ()"), `a.yaml:1:9: rule "r" can match no event: its condition is never true`},
		{"contradiction", rule("r", "evt.type=execve and proc.name=a and not proc.name=a"), `a.yaml:1:9: rule "r" can match no event: its condition is never true`},
		{"every system call", strings.Replace(rule("r", "proc.name=a"), "  warn_evttypes: false\n", "", 1), `a.yaml:1:9: rule "r" is evaluated for every system call (compare evt.type, or set warn_evttypes to false)`},
		{"reads anywhere", rule("r", "evt.type=openat and evt.is_open_read=true and fd.name endswith .key"), `a.yaml:1:9: rule "r" sees files opened for writing only: it names no path whose reads could be watched (compare fd.name or fd.directory with paths, or ask for evt.is_open_write)`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, warnings, err := rules.Load(source(c.file), rules.Options{Strict: true})
			if err != nil {
				t.Fatal(err)
			}
			if len(warnings) != 1 || warnings[0].LeftOut || warnings[0].String() != c.want {
				t.Errorf("got %v, want %s", warnings, c.want)
			}
		})
	}
}

// TestBounds holds hostile files to errors, quickly.
func TestBounds(t *testing.T) {
	many := func(n int, entry func(i int) string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(entry(i))
		}
		return b.String()
	}
	name := func(i int) string { return "x" + string(rune('a'+i/26)) + string(rune('a'+i%26)) }
	for _, c := range []struct{ name, file, want string }{
		{"macros that double", "- macro: " + name(0) + "\n  condition: proc.name=a\n" + many(40, func(i int) string {
			return "- macro: " + name(i+1) + "\n  condition: " + name(i) + " and " + name(i) + "\n"
		}), "more than 50000 comparisons"},
		{"lists that double", "- list: " + name(0) + "\n  items: [a]\n" + many(40, func(i int) string {
			return "- list: " + name(i+1) + "\n  items: [" + name(i) + ", " + name(i) + "]\n"
		}), "more than 200000 items"},
		{"deep parentheses", rule("r", strings.Repeat("(", 100_000)+"evt.num=1"), "nested deeper than 200"},
		{"many nots", rule("r", strings.Repeat("not ", 50_000)+"evt.num=1"), "nested deeper than 200"},
		{"deep transformers", rule("r", strings.Repeat("tolower(", 30_000)+"proc.name"), "nested deeper than 200"},
		{"long condition", rule("r", strings.Repeat("evt.num=1 or ", 30_000)+"evt.num=1"), "more than 256000"},
		{"regex that repeats", rule("r", "proc.name regex '((a{1,900}){1,900}){1,900}'"), "regex: invalid repeat count"},
		{"regex with long repetitions", rule("r", "proc.name regex 'a{900}b{900}c{900}'"), "more than 2000 parts"},
		{"many regexes", many(400, func(i int) string { return rule("r"+name(i), "proc.name regex '"+name(i)+"a{900}'") }), "more than 500000 parts"},
		{"long glob", rule("r", "proc.name glob '"+strings.Repeat("*a", 5000)+"'"), "more than 4000"},
		{"long regex", rule("r", "proc.name regex '"+strings.Repeat("a", 5000)+"'"), "more than 4000"},
		{"deep yaml", strings.Repeat("[", 200_000), "not valid YAML"},
		{"large file", strings.Repeat("#", 5<<20), "file of 5242880 bytes"},
		{"many rules", strings.Repeat("- list: l\n  items: []\n", 20_001), "more than 20000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := rules.Load(source(c.file), rules.Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %.300v, want %q", err, c.want)
			}
		})
	}
}

func TestReadPaths(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"b.yaml", "a.yml", "c.txt"} {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("# "+n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "d.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := rules.ReadPaths(filepath.Join(dir, "c.txt"), dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range got {
		names = append(names, filepath.Base(s.Name))
	}
	if want := []string{"c.txt", "a.yml", "b.yaml"}; !slices.Equal(names, want) {
		t.Errorf("got %v, want %v", names, want)
	}
	if _, err := rules.ReadPaths(filepath.Join(dir, "d.yaml")); err == nil {
		t.Error("an empty folder is no error")
	}
	if _, err := rules.ReadPaths(filepath.Join(dir, "none.yaml")); err == nil {
		t.Error("a file that is not there is no error")
	}
	large := filepath.Join(dir, "e.txt")
	if err := os.WriteFile(large, make([]byte, 5<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := rules.ReadPaths(large); err == nil {
		t.Error("a file over the bound is no error")
	}
}

// TestOwnKeys: Picket's own keys of a rule are read, appended to, and checked.
func TestOwnKeys(t *testing.T) {
	const base = `
- rule: A
  desc: d
  condition: evt.type = execve
  output: o
  priority: ERROR
  id: rule-a
  risk: 81
  alert_type: K8S.NODE_A
  references: [https://example.test/a]
  response: Look.
`
	set, _, err := rules.Load([]rules.Source{{Name: "a.yaml", Data: []byte(base + `
- rule: A
  risk: 82
  response: [Stop it.]
  override: {response: append, risk: replace}
- rule: B
  desc: d
  condition: evt.type = execve
  output: o
  priority: ERROR
`)}}, rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a, b := set.Rules()[0], set.Rules()[1]
	if a.ID != "rule-a" || a.Risk != 82 || !slices.Equal(a.AlertTypes, []string{"K8S.NODE_A"}) || !slices.Equal(a.References, []string{"https://example.test/a"}) || !slices.Equal(a.Response, []string{"Look.", "Stop it."}) {
		t.Errorf("%+v", a)
	}
	if b.ID != "" || b.Risk != 75 {
		t.Errorf("id %q, risk %d", b.ID, b.Risk)
	}
	for wrong, want := range map[string]string{
		strings.Replace(base, "81", "101", 1):                         `a.yaml:8:9: expected a number from 0 to 100 for risk, found "101"`,
		strings.Replace(base, "rule-a", "Rule A", 1):                  `a.yaml:7:7: "Rule A" is no id of a rule`,
		base + strings.Replace(base, "- rule: A", "- rule: Other", 1): `rules "A" and "Other" have the same id rule-a`,
	} {
		if _, _, err := rules.Load([]rules.Source{{Name: "a.yaml", Data: []byte(wrong)}}, rules.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
