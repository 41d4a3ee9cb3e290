package rules

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"picket/schemas"
)

// FalcoFiles are the community's rule files by name. They are not part of this
// repository: they stand beside it.
func FalcoFiles(t *testing.T) map[string][]byte {
	t.Helper()
	dir := cmp.Or(os.Getenv("PICKET_FALCO_RULES"), "../../../shared/falco-rules")
	names, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(names) == 0 {
		t.Skip("SKIPPED (needs the community's rule files): docs/falco-rules.md was not compared with them; put those of falcosecurity/rules and the plugins' k8s_audit_rules.yaml into ../shared/falco-rules beside the repository, or name their folder in PICKET_FALCO_RULES")
	}
	files := make(map[string][]byte)
	for _, n := range names {
		if files[filepath.Base(n)], err = os.ReadFile(n); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// TestFalcoTable holds docs/falco-rules.md to what loading the community's
// files says. Run with -update to write it.
func TestFalcoTable(t *testing.T) {
	files := FalcoFiles(t)
	const page = "../../docs/falco-rules.md"
	var b strings.Builder
	b.WriteString("<!-- Written by go test ./internal/rules -run FalcoTable -update. Do not edit. -->\n\n# Falco's rules\n\n" +
		"What becomes of each rule of Falco's community (falcosecurity/rules and the `k8saudit` plugin's) when its file is loaded as it is. " +
		"The fields are those of the condition with its macros, the exceptions and the output; why Picket lacks one is also in [rules.md](rules.md#fields-of-falco-that-are-not-there).\n\n")
	var body strings.Builder
	b.WriteString("| file | rules | loaded | of them off in the file | with a field that is not provided |\n| --- | --- | --- | --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(files)) {
		rows, loaded, off, lacking := falcoRows(t, name, files[name])
		fmt.Fprintf(&b, "| [%s](#%s) | %d | %d | %d | %d |\n", name, strings.ReplaceAll(strings.ToLower(name), ".", ""), len(rows), loaded, off, lacking)
		fmt.Fprintf(&body, "\n## %s\n\n| rule | loaded | events | not provided, and remarks |\n| --- | --- | --- | --- |\n%s", name, strings.Join(rows, ""))
		if strings.Contains(name, "sandbox") || strings.Contains(name, "deprecated") {
			continue
		}
		if loaded != len(rows) {
			t.Errorf("%s: %d of %d rules are loaded", name, loaded, len(rows))
		}
	}
	want := b.String() + body.String()
	data, err := os.ReadFile(page)
	if err == nil && string(data) == want {
		return
	}
	if !*update {
		t.Fatalf("%s differs from what loading the files says (%v): run go test ./internal/rules -run FalcoTable -update", page, err)
	}
	if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

func falcoRows(t *testing.T, name string, data []byte) (rows []string, loaded, off, lacking int) {
	t.Helper()
	set, warnings, err := Load([]Source{{Name: name, Data: data}}, Options{Lint: true})
	if err != nil {
		t.Fatal(err)
	}
	y := &yamlReader{report: newReport(nil), file: newFile(name, data)}
	items := y.read(data)
	macros := make(map[string]*expr)
	for _, it := range items {
		if it.kind == "macro" {
			macros[it.name], _ = parse(it.condition)
		}
	}
	cell := strings.NewReplacer("|", `\|`, "\n", " ")
	for _, it := range items {
		if it.kind != "rule" {
			continue
		}
		i := slices.IndexFunc(set.rules, func(r *Rule) bool { return r.Name == it.name })
		is, events := "no", ""
		if i >= 0 {
			loaded++
			is = "yes"
			var classes []string
			for _, c := range set.rules[i].Classes {
				classes = append(classes, c.String())
			}
			if events = strings.Join(classes, ", "); len(set.rules[i].Classes) == len(schemas.NodeClasses()) {
				events = "all of sensors"
			}
			if !set.rules[i].Enabled {
				off++
				is = "yes, off"
			}
		}
		var remarks []string
		for _, f := range slices.Sorted(maps.Keys(fieldsUsed(&it, macros))) {
			if why, ok := missingReason(f); ok && fieldTable[f] == nil {
				remarks = append(remarks, fmt.Sprintf("`%s`: %s", f, why))
			}
		}
		if len(remarks) > 0 {
			lacking++
		}
		for _, w := range warnings {
			_, what, _ := strings.Cut(w.Message, fmt.Sprintf("rule %q ", it.name))
			if w.Rule != it.name || strings.Contains(what, "is not there") || strings.HasPrefix(what, "prints ") {
				continue
			}
			what, _, _ = strings.Cut(what, " ("+name)
			remarks = append(remarks, what)
		}
		rows = append(rows, fmt.Sprintf("| %s | %s | %s | %s |\n", cell.Replace(it.name), is, events, cell.Replace(strings.Join(remarks, "; "))))
	}
	return rows, loaded, off, lacking
}

// fieldsUsed are the names of the fields of a rule.
func fieldsUsed(it *item, macros map[string]*expr) map[string]bool {
	used := make(map[string]bool)
	seen := make(map[*expr]bool)
	var walk func(e *expr)
	walk = func(e *expr) {
		if e == nil || seen[e] {
			return
		}
		seen[e] = true
		for _, k := range e.kids {
			walk(k)
		}
		switch e.kind {
		case exprName:
			walk(macros[e.name])
		case exprCompare:
			used[e.cmp.field.name] = true
			if e.cmp.rhs != nil {
				used[e.cmp.rhs.name] = true
			}
		}
	}
	tree, _ := parse(it.condition)
	walk(tree)
	for _, x := range it.exceptions {
		for _, f := range x.fields {
			if ref, fault := parseField(f.at.text); fault == nil {
				used[ref.name] = true
			}
		}
	}
	for _, m := range outputName.FindAllStringSubmatch(it.output.value, -1) {
		used[m[1]] = true
	}
	return used
}
