package rules

import (
	"maps"
	"strings"
	"testing"
	"unicode/utf8"

	"picket/internal/batch"
	"picket/schemas"
)

// TestWhy: of a rule that matched, the fields of the parts that made it so.
func TestWhy(t *testing.T) {
	event := func(b *batch.Builder) {
		b.Str(schemas.Syscall, "execve")
		b.Str(schemas.ProcessName, "bash")
		b.Str(schemas.ProcessExe, "/usr/bin/bash")
		b.Str(schemas.ParentName, "nginx")
		b.Str(schemas.ProcessArgs, strings.Repeat("☃", 2000))
		b.List(schemas.AncestorNames, []string{"nginx", "containerd-shim"})
		b.Uint32(schemas.ProcessUserID, 33)
		b.EndRow()
	}
	for condition, want := range map[string]map[string]string{
		"evt.type = execve":                                                  {"evt.type": "execve"},
		"evt.type = execve and proc.name in (sh, bash)":                      {"evt.type": "execve", "proc.name": "bash"},
		"evt.type = execve and (proc.name = bash or proc.pname = sshd)":      {"evt.type": "execve", "proc.name": "bash"},
		"evt.type = execve and (proc.name = sh or proc.pname = nginx)":       {"evt.type": "execve", "proc.pname": "nginx"},
		"evt.type = execve and not proc.name = sh":                           {"evt.type": "execve", "proc.name": "bash"},
		"evt.type = execve and not (proc.name = bash and proc.pname = sshd)": {"evt.type": "execve", "proc.pname": "nginx"},
		"evt.type = execve and not k8s.pod.name exists":                      {"evt.type": "execve", "k8s.pod.name": "<NA>"},
		"evt.type = execve and user.uid > 0 and proc.aname[2] contains shim": {"evt.type": "execve", "user.uid": "33", "proc.aname[2]": "containerd-shim"},
		"evt.type = execve and proc.aname in (nginx)":                        {"evt.type": "execve", "proc.aname": "nginx,containerd-shim"},
		"evt.type = execve and proc.name != val(proc.pname)":                 {"evt.type": "execve", "proc.name": "bash", "proc.pname": "nginx"},
	} {
		set, _, err := Load([]Source{{Name: "t.yaml", Data: []byte("- rule: r\n  desc: d\n  priority: INFO\n  output: o\n  condition: " + condition + "\n")}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		build := batch.NewBuilder(schemas.Process, schemas.Columns(schemas.Process))
		for range 70 { // the row is in the second word of the bitmaps
			build.Str(schemas.Syscall, "clone")
			build.EndRow()
		}
		event(build)
		ev := set.NewEvaluator()
		var kept []Match
		ev.Eval(build.Batch(), func(m Match) {
			kept = append(kept, m)
			if got := m.Why(); !maps.Equal(got, want) {
				t.Errorf("%s: %v, want %v", condition, got, want)
			}
		})
		if len(kept) != 1 {
			t.Fatalf("%s: %d matches", condition, len(kept))
		}
		ev.Eval(build.Batch(), func(Match) {})
		for _, m := range kept {
			if m.Why() != nil {
				t.Errorf("%s: a match of an earlier batch is explained by a later one", condition)
			}
		}
	}
}

// What it tells is bounded, however large condition and event are.
func TestWhyIsBounded(t *testing.T) {
	var c strings.Builder
	c.WriteString("evt.type = execve and proc.args contains x")
	for range 3 {
		for i := range 100 {
			c.WriteString(" and not proc.aname[" + string(rune('1'+i%9)) + "] = n" + strings.Repeat("i", i))
		}
	}
	for _, f := range fieldNames {
		if d := fieldTable[f]; d.kind == kindText && d.arg == argNone && d.classes().Has(schemas.Process) && f != "evt.type" {
			c.WriteString(" and not " + f + " = nothing-has-this")
		}
	}
	set, _, err := Load([]Source{{Name: "t.yaml", Data: []byte("- rule: r\n  desc: d\n  priority: INFO\n  output: o\n  condition: >\n    " + c.String() + "\n")}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	build := batch.NewBuilder(schemas.Process, schemas.Columns(schemas.Process))
	build.Str(schemas.Syscall, "execve")
	build.Str(schemas.ProcessArgs, "x"+strings.Repeat("☃", 20_000))
	build.EndRow()
	n := 0
	set.NewEvaluator().Eval(build.Batch(), func(m Match) {
		n++
		why := m.Why()
		if len(why) != MaxWhyFields {
			t.Errorf("%d fields, want %d", len(why), MaxWhyFields)
		}
		for k, v := range why {
			if len(v) > MaxWhyValue || !utf8.ValidString(v) {
				t.Errorf("%s: %d bytes", k, len(v))
			}
		}
		if !strings.HasSuffix(why["proc.args"], "☃…") {
			t.Errorf("proc.args: %q", why["proc.args"])
		}
	})
	if n != 1 {
		t.Fatalf("%d matches", n)
	}
}
