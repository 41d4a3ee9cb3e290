package rules_test

import (
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"picket/internal/rules"
	"picket/internal/ruletest"
	pack "picket/rules"
	"picket/schemas"
)

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

// TestRules runs the tests of every rule, and fails for a rule without, or
// without a case that fires and one that does not.
func TestRules(t *testing.T) {
	tests, err := pack.Tests()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range ruletest.Run(load(t), tests) {
		t.Run(slug(r.Rule), func(t *testing.T) {
			for _, f := range r.Failures {
				t.Error(f)
			}
			if r.Fires == 0 || r.Quiet == 0 {
				t.Errorf("it needs at least one case that fires (has %d) and one that does not (has %d)", r.Fires, r.Quiet)
			}
			if want := slug(r.Rule) + ".yaml"; path.Base(r.File) != want {
				t.Errorf("its tests are in %q, want rules/tests/%s", r.File, want)
			}
		})
	}
}

// TestPack holds the pack to what every rule of it must have.
func TestPack(t *testing.T) {
	set := load(t)
	id := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	for _, r := range set.Rules() {
		for key, has := range map[string]bool{
			"desc": r.Description != "", "mitre": len(r.Techniques) > 0, "tags": len(r.Tags) > 0, "references": len(r.References) > 0,
			"false_positives": len(r.FalsePositives) > 0, "response": len(r.Response) > 0,
		} {
			if !has {
				t.Errorf("rule %q has no %s", r.Name, key)
			}
		}
		if !id.MatchString(r.ID) {
			t.Errorf("rule %q has the id %q; want words in lower case with dashes", r.Name, r.ID)
		}
		for _, ref := range r.References {
			if !strings.HasPrefix(ref, "https://") {
				t.Errorf("rule %q: reference %q is no address", r.Name, ref)
			}
		}
		for _, technique := range r.Techniques {
			if now, ok := schemas.TechniqueByID(technique); !ok || now.ID != technique {
				t.Errorf("rule %q: ATT&CK %s has no technique %s (now %s)", r.Name, schemas.AttackVersion, technique, now.ID)
			}
		}
		if !r.Enabled || len(r.Classes) == 0 {
			t.Errorf("rule %q matches nothing", r.Name)
		}
	}
	if got := set.Classes(); len(got) != 6 {
		t.Errorf("classes %v", got)
	}
	p := set.WatchedPaths()
	if !slices.Contains(p, "/etc/shadow") || len(p) > 200 {
		t.Errorf("watched paths %v", p)
	}
	for _, wide := range []string{"/", "/etc", "/home", "/root", "/proc", "/usr", "/var", "/var/lib"} {
		if slices.Contains(p, wide) {
			t.Errorf("the pack asks for every open for reading under %s", wide)
		}
	}
}

// TestResponseQueries holds the SQL that rules advise to the tables there are.
func TestResponseQueries(t *testing.T) {
	query := regexp.MustCompile(`picket query "([^"]*)"`)
	from := regexp.MustCompile(`FROM (\w+)`)
	text := regexp.MustCompile(`'[^']*'`)
	column := regexp.MustCompile(`\b[a-z0-9]+(_[a-z0-9]+)+\b`)
	found := 0
	for _, r := range load(t).Rules() {
		for _, m := range query.FindAllStringSubmatch(strings.Join(r.Response, "\n"), -1) {
			found++
			table := from.FindStringSubmatch(m[1])
			if table == nil {
				t.Errorf("rule %q: no table in %q", r.Name, m[1])
				continue
			}
			if table[1] == "alerts" {
				continue // has no registry
			}
			class, err := schemas.ParseClass(table[1])
			if err != nil {
				t.Errorf("rule %q: %v", r.Name, err)
				continue
			}
			for _, c := range column.FindAllString(text.ReplaceAllString(m[1], ""), -1) {
				if id, ok := schemas.FieldByName(c); !ok || !id.Field().Classes.Has(class) {
					t.Errorf("rule %q: table %s has no column %q", r.Name, class, c)
				}
			}
		}
	}
	if found < 40 {
		t.Errorf("%d queries found", found)
	}
}

// TestCoverage holds the pack to its catalogues, and docs/coverage.md to the
// pack.
func TestCoverage(t *testing.T) {
	want, err := pack.Coverage()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("../docs/coverage.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, got, _ := strings.Cut(string(data), "-->\n\n"); got != want {
		t.Error("docs/coverage.md is not what the pack gives: run go run ./internal/docsgen")
	}
}
