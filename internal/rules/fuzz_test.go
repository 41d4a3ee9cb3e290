package rules

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"picket/internal/batch"
	"picket/schemas"
)

// FuzzParse holds the condition parser to give a tree or a positioned error.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "proc.name = a", "not (a or b) and c", "proc.aname[2] in (a, 'b c', \"d\\\"e\")", "tolower(basename(fd.name)) endswith x",
		"ka.uri.param[command] exists", "jevt.value[/a/b~1c] intersects (true)", "fd.name = val(proc.name)", "evt.dir=<", "((((", "a.b\x00=\xff", "proc.args contains \"\\", "evt.rawres>=-1", "len(basename(a.b))=tolower(c.d)", "a.b in val(c.d)", `a.b="\xff\x0"`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := parse(&text{value: s})
		if (e == nil) == (err == nil) {
			t.Fatalf("tree %v, error %v", e, err)
		}
		if err != nil && err.Message == "" {
			t.Fatal("an error without a message")
		}
	})
}

// FuzzLoad holds the loader to answer any file with a set or with errors that
// have a place in it, and a loaded set to evaluate without a panic.
func FuzzLoad(f *testing.F) {
	base := "- rule: r\n  desc: d\n  output: o %proc.name\n  priority: INFO\n  condition: "
	for _, s := range []string{
		base + "proc.name = a\n", base + ">\n    evt.type in (l)\n    and m\n- list: l\n  items: [execve, '\"open\"']\n- macro: m\n  condition: |\n    fd.name startswith /a\n",
		base + "\"proc.name = \\\"\\u00e9\\x41\\\"\"\n  exceptions:\n  - name: e\n    fields: [proc.name, fd.sip]\n    comps: [in, =]\n    values: [[[a, b], 10.0.0.1]]\n",
		base + "a\n- rule: r\n  append: true\n  condition: or proc.pid > 1\n- rule: r\n  override: {condition: replace}\n  condition: ka.verb = x\n",
		"- rule: [", "&a [*a]", "- list: a\n  items: [a]\n", "%YAML 1.1\n---\n- x\n...\n--- !!str\n", "- rule: !!binary aGk=\n", "\xff\xfe", "- {rule: r, desc: &d x, output: *d, priority: INFO, condition: evt.num=1}\n",
		base + "len(proc.args) > 1 and len(proc.args) < 1 or tolower(proc.name) = val(proc.pname)\n- required_engine_version: 0.1.0\n- required_plugin_versions: [{name: a, version: 0.1.0, alternatives: [{name: b, version: 0.2.0}]}]\n",
		base + "proc.name = \"\\xff\" and (not proc.pid in (1,2) or proc.pid > 1)\n  skip-if-unknown-filter: true\n- list: a\n  items: [b]\n- list: a\n  items: [c]\n",
		base + "proc.name = a\n  suppress: {by: [proc.pid], window: 1d}\n", base + "proc.name = a\n  baseline: {by: [proc.pid], value: [proc.name, proc.exe], learn: 1h}\n  raise: true\n",
		base + "proc.name = a\n  raise: false\n- rule: s\n  desc: d\n  output: '%correlation.count'\n  priority: INFO\n  correlation:\n    kind: sequence\n    window: 5m\n    by: [proc.name]\n    steps: [{rule: r}, {condition: ka.verb = x, source: k8s_audit, by: ka.verb}]\n",
		base + "proc.name = a\n  correlation: {kind: distinct, window: 5m, by: proc.name, field: fd.rport, at_least: 3}\n- rule: r\n  override: {correlation: replace}\n  correlation: {kind: absence, window: 5m, by: proc.name, steps: [{rule: r}, {rule: r}]}\n",
		base + "jevt.value[/requestObject/spec/containers/0] exists\n  source: k8s_audit\n",
	} {
		f.Add(s)
	}
	corpus := []*batch.Batch{}
	for _, class := range []schemas.Class{schemas.Process, schemas.File, schemas.Network, schemas.Audit} {
		b := batch.NewBuilder(class, schemas.Columns(class))
		b.Str(schemas.ProcessName, "a")
		b.Str(schemas.AuditRequest, `{"spec":{"containers":[{"image":"a"}]}}`)
		b.List(schemas.AncestorNames, []string{"b"})
		b.EndRow()
		corpus = append(corpus, b.Batch())
	}
	f.Fuzz(func(t *testing.T, s string) {
		start := time.Now()
		set, warnings, err := Load([]Source{{Name: "f.yaml", Data: []byte(s)}}, Options{Lint: true, Unwanted: []string{"close"}})
		if d := time.Since(start); d > 5*time.Second {
			t.Fatalf("%d bytes take %v to load", len(s), d)
		}
		if (set == nil) == (err == nil) {
			t.Fatalf("set %v, error %v", set, err)
		}
		lines := strings.Count(s, "\n") + 1
		check := func(e *Error) {
			if e.Message == "" || e.File != "f.yaml" || e.Line < 0 || e.Line > lines+1 || (e.Line > 0) != (e.Column > 0) {
				t.Fatalf("misplaced: %+v", *e)
			}
		}
		for i := range warnings {
			check(&warnings[i].Error)
		}
		if es, ok := err.(Errors); ok {
			for _, e := range es {
				check(e)
			}
			return
		}
		for _, b := range corpus {
			set.NewEvaluator().Eval(b, func(m Match) {
				_ = m.Output()
				_ = m.Fields()
			})
		}
	})
}

// FuzzJSON holds the document parser to accept what encoding/json accepts, and
// to give the same strings.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{`{}`, `[1,-2.5e3,"a\u00e9\ud83d\ude00\n",null,true]`, `{"a":{"b":[{"c":"d"}]}}`, `"\ud800"`, `{"a":1,}`, `01`, `"` + "\x01" + `"`, ` [ ] `, `{"\u0061":"x"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d := &docs{}
		ok := d.parse(s)
		if want := json.Valid([]byte(s)); ok && !want || !ok && want && len(s) < 1000 && strings.Count(s, "[")+strings.Count(s, "{") < 100 {
			// Numbers are read more leniently: 01 and 1. are numbers here.
			if !ok || !strings.ContainsAny(s, "0123456789") {
				t.Fatalf("%q: %v, encoding/json %v", s, ok, want)
			}
		}
		if !ok {
			return
		}
		doc := jsonDoc{s, d.nodes}
		for i, n := range doc.nodes {
			if int(n.next) <= i || int(n.next) > len(doc.nodes) || n.start > n.end || int(n.end) > len(s) {
				t.Fatalf("node %d of %q: %+v", i, s, n)
			}
			if n.kind != jsonString {
				continue
			}
			got := string(doc.append(nil, i))
			var want string
			if err := json.Unmarshal([]byte(`"`+s[n.start:n.end]+`"`), &want); err == nil && strings.ToValidUTF8(got, "\ufffd") != strings.ToValidUTF8(want, "\ufffd") && strings.ToValidUTF8(s, "") == s {
				t.Fatalf("string %q: %q, want %q", s[n.start:n.end], got, want)
			}
		}
		var l list
		doc.collect(&l, 0, []string{"a", "*", "b"})
		_ = doc.find([]string{"a", "0", "b"})
	})
}

// FuzzGlob holds the matcher to the plain recursive one where both know the
// pattern, and to end in time on any.
func FuzzGlob(f *testing.F) {
	f.Add("a*b?c", "axxbyc")
	f.Add("*/.ssh/*", "/root/.ssh/id")
	f.Add("[a-c]*[!x]", "abz")
	f.Add("***a", "aaa")
	f.Fuzz(func(t *testing.T, p, s string) {
		if len(p) > 200 || len(s) > 2000 {
			return
		}
		got := globMatch(p, s, false)
		if globMatcher(p).match(s) != got {
			t.Fatalf("%q %q: the chosen matcher differs", p, s)
		}
		if strings.Count(p, "*") > 3 || len(s) > 40 || strings.ContainsAny(p, `[\`) {
			return
		}
		if want := slowGlob(p, s); got != want {
			t.Fatalf("%q %q: %v, want %v", p, s, got, want)
		}
	})
}
