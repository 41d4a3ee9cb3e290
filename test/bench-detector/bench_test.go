package main

import (
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"picket/internal/rules"
	defaults "picket/rules"
)

// TestRepeated: the copies load, are as many as asked for, and compare with
// literals of their own, but for kinds of events.
func TestRepeated(t *testing.T) {
	const one = `
- list: shells
  items: [sh, bash]
- macro: dup
  condition: proc.name in (shells, ksh) or fd.name startswith "/etc/x"
- rule: A
  desc: d
  condition: evt.type in (dup, dup2) and dup and fd.num = 1
  output: o
  priority: INFO
`
	left := 1
	docs := parsed(t, one)
	docs = renamed(docs, 3, &left)
	for i, want := range []string{"", `proc.name in (shells_3, ksh_3) or fd.name startswith "/etc/x_3"`, `evt.type in (dup, dup2) and dup_3 and fd.num = 1`} {
		if c, _ := docs[i]["condition"].(string); c != want {
			t.Errorf("condition %q, want %q", c, want)
		}
	}
	if items := docs[0]["items"].([]any); items[0] != "sh_3" || docs[2]["rule"] != "A_3" {
		t.Errorf("items %v, rule %v", items, docs[2]["rule"])
	}

	for _, n := range []int{10, 300} {
		set, err := repeated(defaults.Default(), n)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(set.Rules()); got != n {
			t.Errorf("%d rules, want %d", got, n)
		}
	}
	if _, err := repeated([]rules.Source{{Name: "x", Data: []byte("- list: a\n  items: [b]\n")}}, 1); err == nil || !strings.Contains(err.Error(), "no rules") {
		t.Errorf("of no rules: %v", err)
	}
}

func TestBars(t *testing.T) {
	b := bench{events: leastEvents}
	fine := func() []*result {
		return []*result{{name: "default", decode: []float64{600}, eval: []float64{300}, quiet: 1},
			{name: "100", size: 100, decode: []float64{1}, eval: []float64{100}, quiet: 1}, {name: "1000", size: 1000, decode: []float64{1}, eval: []float64{900}, quiet: 1}}
	}
	if m := b.missed(fine()); len(m) != 0 {
		t.Errorf("missed: %q", m)
	}
	for what, spoil := range map[string]func(r []*result){
		"slow":       func(r []*result) { r[0].decode[0] = 701 },
		"allocates":  func(r []*result) { r[1].allocations = 0.001 },
		"no quiet":   func(r []*result) { r[1].quiet = 0 },
		"as rules":   func(r []*result) { r[2].eval[0] = 1000 },
		"few events": func([]*result) { b.events-- },
	} {
		r := fine()
		if spoil(r); len(b.missed(r)) != 1 {
			t.Errorf("%s: missed %q", what, b.missed(r))
		}
		b.events = leastEvents
	}
}

func parsed(t *testing.T, text string) (docs []map[string]any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), &docs); err != nil {
		t.Fatal(err)
	}
	return docs
}
