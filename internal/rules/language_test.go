package rules_test

import (
	"slices"
	"strings"
	"testing"

	"picket/internal/batch"
	"picket/internal/rules"
	"picket/schemas"
)

// TestFalcoLanguage holds what Falco's documents and parser say of operators,
// transformers and quoting. Expected values are Falco's.
func TestFalcoLanguage(t *testing.T) {
	exec := func(b *batch.Builder) {
		b.Str(schemas.Action, "exec")
		b.Str(schemas.Syscall, "execve")
		b.Uint32(schemas.ProcessPID, 42)
		b.Uint32(schemas.ProcessParentPID, 7)
		b.Uint32(schemas.ProcessVPID, 42)
		b.Str(schemas.ProcessName, "Bash")
		b.Str(schemas.ParentName, "bASH")
		b.Str(schemas.ProcessExe, "/usr/bin/bash")
		b.Str(schemas.ProcessCwd, "/usr/bin/")
		b.Str(schemas.ParentExe, "/usr/*")
		b.List(schemas.AncestorNames, []string{"bASH", "systemd"})
		b.List(schemas.AncestorExes, []string{"/bin/sh", "/usr/bin"})
	}
	encoded := func(b *batch.Builder) { b.Str(schemas.ProcessArgs, "aGk") }
	raw := func(b *batch.Builder) {
		b.Str(schemas.ProcessArgs, "a\xff\t\\ \"é")
	}
	audit := func(b *batch.Builder) {
		b.Str(schemas.AuditVerb, "create")
		b.Str(schemas.AuditRequest, `{"spec":{"containers":[{"image":"A/b:1"},{"image":"c"}]}}`)
	}
	const lists = `
- list: one
  items: [Bash]
- list: two
  items: [Bash, sh]
- list: nested
  items: [zsh, one, 'a b']
- macro: is_bash
  condition: proc.name = one
- macro: nothing
  condition: (proc.name in ())
`
	for _, c := range []struct {
		set       func(b *batch.Builder)
		condition string
		want      bool
	}{
		// Words and parentheses.
		{exec, "not not proc.name = Bash", true},
		{exec, "not(proc.name = Bash)or(proc.pid=42)and(not nothing)", true},
		{exec, "proc.pid=1 or proc.pid=42 and proc.pid=1", false},
		{exec, "is_bash and not nothing", true},
		{exec, "proc.name\tin\n(zsh ,Bash )", true},
		{exec, "proc.pid == 42 and proc.pid = 0x2a and proc.pid >= 42 and proc.pid <= 42 and not proc.pid < 42 and not proc.pid > 42", true},

		// Lists.
		{exec, "proc.name in (nested)", true},
		{exec, "proc.name in nested", true},
		{exec, "proc.name in (sh, nested, zsh)", true},
		{exec, `proc.name in ("nested")`, false},
		{exec, "proc.name = one", true},
		{exec, `proc.name = "one"`, false},

		// len: characters of text, elements of a list.
		{exec, "len(proc.name) = 4 and len(proc.name) > 3 and len(proc.name) in (3, 4)", true},
		{exec, "len(proc.aname) = 2", true},
		{exec, "len(basename(proc.exepath)) = 4", true},
		{exec, "len(proc.sname) exists", false},
		{exec, "len(proc.aname[1]) = 4", true},
		{audit, "len(ka.req.pod.containers.image) = 2", true},
		{audit, "len(ka.req.pod.volumes.hostpath) = 0", false},

		// Transformers on both sides, and val.
		{exec, "proc.name = val(proc.pname)", false},
		{exec, "tolower(proc.name) = tolower(proc.pname)", true},
		{exec, "toupper(proc.name) = val(proc.pname)", false},
		{exec, "proc.pname = val( proc.aname[1] )", true},
		{exec, "proc.exepath endswith tolower(proc.name)", true},
		{exec, "proc.exepath icontains val(proc.pname)", true},
		{exec, "proc.exepath glob val(proc.pexepath)", true},
		{exec, "proc.exepath pmatch val(proc.aexepath[2])", true},
		{exec, "proc.name in val(proc.pname) or tolower(proc.name) in tolower(proc.pname)", true},
		{exec, "tolower(basename(proc.exepath)) = tolower(proc.name)", true},
		{exec, "proc.pid = val(proc.vpid) and proc.pid > val(proc.ppid) and proc.pid != val(proc.ppid) and not proc.pid <= val(proc.ppid)", true},
		{exec, "len(proc.name) = len(proc.pname)", true},
		{exec, "len(proc.name) < len(proc.exepath)", true},
		{exec, "proc.name = val(proc.sname) or not proc.name = val(proc.sname) and proc.name != val(proc.sname)", false},
		{audit, "tolower(ka.req.pod.containers.image) intersects (a/b:1)", true},
		{audit, "toupper(ka.req.pod.containers.image) in (A/B:1, C)", true},

		// basename of a folder is empty, which counts as not there; b64 needs no padding.
		{exec, "basename(proc.cwd) exists", false},
		{exec, "basename(proc.cwd) != x", false},
		{encoded, "b64(proc.args) = hi", true},

		// Quotes and escapes.
		{raw, `proc.args contains "\xFF"`, true},
		{raw, `proc.args contains '\xff\t'`, true},
		{raw, `proc.args contains "\ "`, true},
		{raw, `proc.args contains "\\"`, true},
		{raw, `proc.args contains "\\ \"é"`, true},
		{raw, `proc.args contains '"é'`, true},
		{raw, `proc.args contains "\r"`, false},
		{exec, `proc.exepath regex '/usr/\w+/bash'`, true},
		{exec, `proc.exepath contains "\/usr\/"`, true},
		{raw, "proc.args bcontains ff09 and proc.args bstartswith 61FF", true},
	} {
		t.Run(c.condition, func(t *testing.T) {
			class, text := schemas.Process, lists+"- rule: r\n  desc: d\n  output: o\n  priority: INFO\n  warn_evttypes: false\n  condition: |\n    "+strings.ReplaceAll(c.condition, "\n", "\n    ")+"\n"
			if strings.Contains(c.condition, "ka.") {
				class = schemas.Audit
				text += "  source: k8s_audit\n"
			}
			s, _, err := rules.Load(source(text), rules.Options{Strict: true})
			if err != nil {
				t.Fatal(err)
			}
			if got := matching(s, class, c.set) != nil; got != c.want {
				t.Errorf("holds: %v", got)
			}
		})
	}
}

// TestDerivedAllocations: lengths and comparisons of fields cost no memory per event.
func TestDerivedAllocations(t *testing.T) {
	s, _, err := rules.Load(source(rule("r", "len(proc.args) > 100 or len(proc.cmdline) > 400 or proc.name = val(proc.pname) or len(proc.aname) > 20 or proc.pid = val(proc.ppid)")), rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := batch.NewBuilder(schemas.Process, schemas.Columns(schemas.Process))
	for range 1000 {
		b.Uint32(schemas.ProcessPID, 42)
		b.Str(schemas.ProcessName, "sh")
		b.Str(schemas.ParentName, "bash")
		b.Str(schemas.ProcessArgs, "-c id")
		b.List(schemas.AncestorNames, []string{"bash"})
		b.EndRow()
	}
	ev, bt := s.NewEvaluator(), b.Batch()
	run := func() { ev.Eval(bt, func(rules.Match) { t.Fatal("matches") }) }
	run()
	if n := testing.AllocsPerRun(20, run); n > 5 {
		t.Errorf("%v allocations for 1,000 events", n)
	}
}

// TestOutputForms holds an output to Falco's forms of a field: a width, which
// cuts or fills, and transformers.
func TestOutputForms(t *testing.T) {
	set := func(b *batch.Builder) {
		b.Str(schemas.Syscall, "execve")
		b.Str(schemas.ProcessName, "Bash")
		b.Str(schemas.ProcessExe, "/usr/bin/bash")
	}
	for template, want := range map[string]string{
		"<%8proc.name>":               "<Bash    >",
		"<%2proc.name>":               "<Ba>",
		"<%4proc.sname>":              "<<NA>>",
		"%tolower(proc.name)":         "bash",
		"%6toupper(proc.name)|":       "BASH  |",
		"%len(proc.name) %proc.name.": "4 Bash.",
		"100% (%proc.name)":           "100% (Bash)",
		"%%proc.name 5% 5%":           "%proc.name 5% 5%",
		"%basename(proc.exepath)[1]":  "bash[1]",
	} {
		text := strings.Replace(rule("r", "evt.type=execve and proc.name exists"), "output: o", "output: '"+template+"'", 1)
		s, _, err := rules.Load(source(text), rules.Options{Strict: true})
		if err != nil {
			t.Errorf("%s: %v", template, err)
			continue
		}
		b := batch.NewBuilder(schemas.Process, schemas.Columns(schemas.Process))
		set(b)
		b.EndRow()
		s.NewEvaluator().Eval(b.Batch(), func(m rules.Match) {
			if got := m.Output(); got != want {
				t.Errorf("%s: %q, want %q", template, got, want)
			}
		})
	}
	for template, want := range map[string]string{
		"%9999proc.name":     "a.yaml:3:13: width 9999 of a field in the output; it may be up to 1024",
		"%tolower(proc.pid)": "a.yaml:3:13: tolower(proc.pid): transformers apply to text, len to lists too, and proc.pid is a number",
	} {
		text := strings.Replace(rule("r", "evt.type=execve"), "output: o", "output: '"+template+"'", 1)
		if _, _, err := rules.Load(source(text), rules.Options{}); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", template, err, want)
		}
	}
}

// TestFileKeys holds the keys of rule files to Falco's meaning.
func TestFileKeys(t *testing.T) {
	named := func(n string) func(b *batch.Builder) {
		return func(b *batch.Builder) {
			b.Str(schemas.Syscall, "execve")
			b.Str(schemas.ProcessName, n)
			b.Str(schemas.ParentName, "init")
		}
	}
	base := rule("r", "proc.pname=init")
	const except = "  exceptions:\n  - "
	for _, c := range []struct{ name, file, on, off string }{
		{"an entry of nothing", "-\n" + rule("r", "proc.name=a"), "a", "b"},
		{"exceptions of nothing", base + "  exceptions:\n", "a", ""},
		{"a list as one text", base + except + `{name: e, fields: [proc.name], comps: [in], values: [["(a, b)"]]}` + "\n", "c", "b"},
		{"a list as one text without parentheses", base + except + `{name: e, fields: [proc.name], comps: [in], values: [["a,b"]]}` + "\n", "a,b", "b"},
		{"the name of a list", "- list: l\n  items: [a, b]\n" + base + except + "{name: e, fields: [proc.name], comps: [in], values: [[l]]}\n", "l", "b"},
		{"the name of a list, one field", "- list: l\n  items: [a, b]\n" + base + except + "{name: e, fields: proc.name, values: [l, c]}\n", "l", "b"},
		{"one field, comps", base + except + "{name: e, fields: proc.name, comps: pmatch, values: [/a]}\n", "a", "/a/b"},
		{"default comps are =", base + except + "{name: e, fields: [proc.name, proc.pname], values: [[a, init], [b, other]]}\n", "b", "a"},
		{"enabled beside other keys", rule("r", "proc.name=a") + "  enabled: false\n- rule: r\n  enabled: true\n  tags: [x]\n", "a", "b"},
		{"enabled by override", rule("r", "proc.name=a") + "  enabled: false\n- rule: r\n  enabled: true\n  override: {enabled: replace}\n", "a", "b"},
		{"override of several keys, both ways", rule("r", "proc.name=a") + "- rule: r\n  override: {condition: append, output: replace, tags: append, warn_evttypes: replace, skip-if-unknown-filter: replace}\n  condition: or proc.name=b\n  output: x\n  tags: [t]\n  warn_evttypes: false\n  skip-if-unknown-filter: true\n", "b", "c"},
		{"override of a macro", "- macro: m\n  condition: proc.name=a\n" + rule("r", "m") + "- macro: m\n  override: {condition: replace}\n  condition: proc.name=b\n", "b", "a"},
		{"engine version", "- required_engine_version: 0.57.0\n" + rule("r", "proc.name=a"), "a", "b"},
		{"engine version as a number", "- required_engine_version: 15\n" + rule("r", "proc.name=a"), "a", "b"},
		{"plugin versions", "- required_plugin_versions:\n  - {name: container, version: 0.4.0}\n  - {name: k8saudit-x, version: 0.1.0, alternatives: [{name: k8saudit, version: 0.18.0}]}\n" + rule("r", "proc.name=a"), "a", "b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _, err := rules.Load(source(c.file), rules.Options{Strict: true})
			if err != nil {
				t.Fatal(err)
			}
			if got := matching(s, schemas.Process, named(c.on)); !slices.Equal(got, []string{"r"}) {
				t.Errorf("%s: fires %v", c.on, got)
			}
			if c.off != "" && matching(s, schemas.Process, named(c.off)) != nil {
				t.Errorf("%s: fires", c.off)
			}
		})
	}
	for _, c := range []struct{ name, file, want string }{
		{"newer engine", "- required_engine_version: 0.99.0\n", "a.yaml:1:28: the file needs version 0.99.0 of Falco's engine, and Picket reads the language of 0.63.0 (use an older release of the file; without this entry it is judged key by key and field by field)"},
		{"other major version", "- required_engine_version: 1.0.0\n", "a.yaml:1:28: the file needs version 1.0.0 of Falco's engine, and Picket reads the language of 0.63.0 (use an older release of the file; without this entry it is judged key by key and field by field)"},
		{"newer engine as a number", "- required_engine_version: 64\n", "a.yaml:1:28: the file needs version 0.64.0 of Falco's engine, and Picket reads the language of 0.63.0 (use an older release of the file; without this entry it is judged key by key and field by field)"},
		{"no version", "- required_engine_version: new\n", "a.yaml:1:28: \"new\" is no version of an engine (as in 0.57.0, or 15)"},
		{"plugins, no list", "- required_plugin_versions: x\n", "a.yaml:1:29: expected a list for required_plugin_versions, found \"x\""},
		{"plugin without version", "- required_plugin_versions:\n  - name: container\n", "a.yaml:2:5: a plugin needs a name and a version"},
		{"plugin version", "- required_plugin_versions:\n  - {name: container, version: 4}\n", "a.yaml:2:32: \"4\" is no version of a plugin (as in 0.4.0)"},
		{"plugin twice", "- required_plugin_versions:\n  - {name: json, version: 0.1.0, alternatives: [{name: json, version: 0.2.0}]}\n", "a.yaml:2:49: plugin \"json\" stands twice"},
		{"plugin unknown", "- required_plugin_versions:\n  - {name: okta, version: 0.1.0}\n", "a.yaml:2:5: the file needs plugin okta, whose fields Picket does not have"},
		{"another source", rule("r", "proc.name=a") + strings.Replace(rule("r", "ka.verb=get"), "  desc", "  source: k8s_audit\n  desc", 1), "a.yaml:7:9: rule \"r\" is defined again with another source: k8s_audit, before syscall"},
		{"name of a macro", "- macro: a-b\n  condition: proc.name=a\n", "a.yaml:1:10: \"a-b\" is no name of a macro (use letters, digits and _, a letter first)"},
		{"name of a list", "- list: a b\n  items: []\n", "a.yaml:1:9: \"a b\" is no name of a list (without blanks, quotes, parentheses, commas and =)"},
		{"exception twice", base + except + "{name: e, fields: proc.name}\n  - {name: e, fields: proc.name}\n", "a.yaml:9:5: exception \"e\" stands twice (give each a name of its own)"},
		{"override of no key", base + "- rule: r\n  override: {outptu: replace}\n  output: x\n", "a.yaml:8:14: rule has no key \"outptu\" that could be overridden (did you mean output?)"},
		{"a list where one value stands", "- list: l\n  items: [a, b]\n" + rule("r", "proc.name = l"), "a.yaml:8:26: \"l\" is a list of 2 items, and \"=\" compares with one value (use in (l), or quotes where the text itself is meant)"},
		{"hex escape", rule("r", `proc.name = "\xg1"`), `a.yaml:6:27: expected two hexadecimal digits after \x, found "g1\"" (as in \xFF)`},
		{"NUL", rule("r", `proc.name = "\x00"`), `a.yaml:6:27: \x00 is in no text`},
		{"len of a number", rule("r", `len(proc.pid) = 1`), "a.yaml:6:14: len(proc.pid): transformers apply to text, len to lists too, and proc.pid is a number"},
		{"text operator on len", rule("r", `len(proc.name) contains 1`), `a.yaml:6:29: operator "contains" does not apply to len(proc.name), which is a number (use one of exists, =, !=, <, <=, >, >=, in, intersects)`},
		{"operator between fields", rule("r", `proc.name regex val(proc.pname)`), `a.yaml:6:24: operator "regex" cannot stand between proc.name and another field (use one of =, !=, contains, icontains, startswith, endswith, glob, iglob, in, intersects, pmatch)`},
		{"addresses", rule("r", `fd.sip = val(fd.cip)`), `a.yaml:6:14: text, numbers and booleans are compared with another field, and fd.sip is a address`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := rules.Load(source(c.file), rules.Options{Strict: true})
			if err == nil || strings.Split(err.Error(), "\n")[0] != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

// TestSkipUnknown: a rule that may be skipped is left out for names that no
// table has; without the key they are errors.
func TestSkipUnknown(t *testing.T) {
	const skip = "  skip-if-unknown-filter: true\n"
	for _, c := range []struct{ name, head, rule, want string }{
		{"field", "", rule("r", "evt.type=execve and proc.new_field=x"), `a.yaml:6:34: rule "r" is left out, as its skip-if-unknown-filter says: unknown field "proc.new_field"`},
		{"field of the right side", "", rule("r", "proc.name = val(proc.new_field)"), `a.yaml:6:30: rule "r" is left out, as its skip-if-unknown-filter says: unknown field "proc.new_field"`},
		{"system call", "", rule("r", "evt.type in (execve, newcall)"), `a.yaml:6:23: rule "r" is left out, as its skip-if-unknown-filter says: "newcall" is not the name of a system call`},
		{"field of the output", "", strings.Replace(rule("r", "evt.type=execve"), "output: o", "output: x %new.field", 1), `a.yaml:3:14: rule "r" is left out, as its skip-if-unknown-filter says: unknown field "new.field" in the output`},
		{"field of an exception", "", rule("r", "evt.type=execve") + "  exceptions: [{name: e, fields: new.field, values: [x]}]\n", `a.yaml:7:34: rule "r" is left out, as its skip-if-unknown-filter says: unknown field "new.field"`},
		{"in a macro", "- macro: m\n  condition: new.field=x\n", rule("r", "evt.type=execve and m"), `a.yaml:2:14: rule "r" is left out, as its skip-if-unknown-filter says: unknown field "new.field"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			good := rule("good", "proc.name=a")
			s, w, err := rules.Load(source(c.head+c.rule+skip+good), rules.Options{Strict: true})
			if err != nil {
				t.Fatal(err)
			}
			if len(w) != 1 || !w[0].LeftOut || w[0].String() != c.want || len(s.Rules()) != 1 {
				t.Errorf("got  %v\nwant %s", w, c.want)
			}
			if _, _, err := rules.Load(source(c.head+c.rule+good), rules.Options{}); err == nil {
				t.Error("loads without the key")
			}
		})
	}
}

// TestFalcoFiles: the community's files load as they are, each alone and all
// together, with no rule of the stable and incubating sets and of the audit
// rules left out and none of their fields missing.
func TestFalcoFiles(t *testing.T) {
	files := rules.FalcoFiles(t)
	var all []rules.Source
	for name, data := range files {
		s := rules.Source{Name: name, Data: data}
		all = append(all, s)
		set, warnings, err := rules.Load([]rules.Source{s}, rules.Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(set.Rules()) == 0 {
			t.Errorf("%s: no rules", name)
		}
		if strings.Contains(name, "sandbox") || strings.Contains(name, "deprecated") {
			continue
		}
		for _, w := range warnings {
			if w.LeftOut {
				t.Error(w)
			}
		}
	}
	slices.SortFunc(all, func(a, b rules.Source) int { return strings.Compare(a.Name, b.Name) })
	if _, _, err := rules.Load(all, rules.Options{}); err != nil {
		t.Error(err)
	}
}
