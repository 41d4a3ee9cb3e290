package rules

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"picket/internal/rules"
	"picket/schemas"
)

//go:embed coverage/coverage.yaml
var coverageYAML []byte

// catalogues is what coverage/coverage.yaml holds.
type catalogues struct {
	Defender []struct {
		Name   string `yaml:"name"`
		ID     string `yaml:"id"`     // empty where only the name is known
		Status string `yaml:"status"` // documented, recent, test
		Why    string `yaml:"why"`    // why no rule covers it
		Note   string `yaml:"note"`   // what of it a rule does not cover
	} `yaml:"defender"`
	// Containers has, by technique id, why no rule covers it.
	Containers map[string]string `yaml:"containers"`
}

// Coverage returns docs/coverage.md: which rules of the pack cover which alerts
// of Microsoft Defender for Containers and which techniques of ATT&CK's matrix
// for Containers, and all rules. The error names every gap: an alert or a
// technique with neither a rule nor a reason, or with both, and an alert_type of
// a rule that coverage/coverage.yaml does not have.
func Coverage() (string, error) {
	set, _, err := rules.Load(Default(), rules.Options{Strict: true})
	if err != nil {
		return "", err
	}
	var cat catalogues
	dec := yaml.NewDecoder(bytes.NewReader(coverageYAML))
	dec.KnownFields(true)
	if err := dec.Decode(&cat); err != nil {
		return "", fmt.Errorf("rules/coverage/coverage.yaml: %w", err)
	}
	var gaps []string
	gap := func(format string, args ...any) { gaps = append(gaps, fmt.Sprintf(format, args...)) }

	byAlert := make(map[string][]*rules.Rule)
	byTechnique := make(map[string][]*rules.Rule)
	for _, r := range set.Rules() {
		for _, a := range r.AlertTypes {
			byAlert[a] = append(byAlert[a], r)
		}
		for _, id := range r.Techniques {
			byTechnique[id] = append(byTechnique[id], r)
		}
	}
	var b strings.Builder
	b.WriteString("# What the default rules cover\n\nThe rules are in [`rules/`](../rules), their tests in `rules/tests/`, the reasons for what is not covered in `rules/coverage/coverage.yaml`. [rules.md](rules.md) describes the language.\n")

	b.WriteString("\n## Alerts of Microsoft Defender for Containers\n")
	known := make(map[string]bool)
	for _, part := range []struct{ status, title string }{
		{"documented", "Documented alerts"}, {"recent", "Recent alerts, without documentation"}, {"test", "Test alert"},
	} {
		var rows strings.Builder
		all, covered := 0, 0
		for _, a := range cat.Defender {
			if a.Status != part.status {
				continue
			}
			key := cmp.Or(a.ID, a.Name)
			known[key] = true
			by := byAlert[key]
			all++
			yes := "yes"
			switch {
			case len(by) > 0 && a.Why != "":
				gap("alert %s has the rule %q and a reason why it has none", key, by[0].Name)
			case len(by) == 0 && a.Why == "":
				gap("alert %s has no rule and no reason", key)
			case len(by) == 0:
				yes = "no"
			default:
				covered++
			}
			var tests []string
			for _, r := range by {
				tests = append(tests, "`"+testFile(r)+"`")
			}
			text := a.Name
			if a.ID != "" {
				text += "<br>`" + a.ID + "`"
			}
			fmt.Fprintf(&rows, "| %s | %s | %s | %s | %s |\n", cell(text), yes, cell(ruleNames(by)), strings.Join(tests, "<br>"), cell(cmp.Or(a.Why, a.Note)))
		}
		fmt.Fprintf(&b, "\n### %s\n\n%d of %d.\n\n| alert | covered | rules | tests in `rules/tests/` | remark |\n| --- | --- | --- | --- | --- |\n%s", part.title, covered, all, rows.String())
	}
	for a, by := range byAlert {
		if !known[a] {
			gap("alert_type %q of rule %q is not in coverage.yaml", a, by[0].Name)
		}
	}

	var rows strings.Builder
	all, covered := 0, 0
	inMatrix := make(map[string]bool)
	for _, t := range schemas.AttackTechniques() {
		if !t.Containers {
			continue
		}
		all++
		inMatrix[t.ID] = true
		by := slices.Clone(byTechnique[t.ID])
		for _, sub := range schemas.AttackTechniques() { // who covers a sub-technique covers that much of the technique
			if strings.HasPrefix(sub.ID, t.ID+".") {
				by = append(by, byTechnique[sub.ID]...)
			}
		}
		slices.SortFunc(by, func(x, y *rules.Rule) int { return cmp.Compare(x.Name, y.Name) })
		by = slices.Compact(by)
		why := cat.Containers[t.ID]
		switch {
		case len(by) > 0 && why != "":
			gap("technique %s has the rule %q and a reason why it has none", t.ID, by[0].Name)
		case len(by) == 0 && why == "":
			gap("technique %s has no rule and no reason", t.ID)
		case len(by) > 0:
			covered++
		}
		fmt.Fprintf(&rows, "| [%s](https://attack.mitre.org/techniques/%s/) | %s | %s | %s |\n", t.ID, strings.ReplaceAll(t.ID, ".", "/"), cell(t.Name), tactics(t.Tactics), cell(cmp.Or(ruleNames(by), why)))
	}
	for id := range cat.Containers {
		if !inMatrix[id] {
			gap("technique %s of coverage.yaml is not in the matrix for Containers", id)
		}
	}
	fmt.Fprintf(&b, "\n## ATT&CK %s, matrix for Containers\n\n%d of %d techniques and sub-techniques; a rule for a sub-technique stands at its technique too.\n\n| technique | name | tactics | rules, or why there is none |\n| --- | --- | --- | --- |\n%s", schemas.AttackVersion, covered, all, rows.String())

	fmt.Fprintf(&b, "\n## Rules\n\n%d rules.\n\n| rule | id | severity | risk | events | techniques | file |\n| --- | --- | --- | --- | --- | --- | --- |\n", len(set.Rules()))
	for _, r := range set.Rules() {
		var classes []string
		for _, c := range r.Classes {
			classes = append(classes, c.String())
		}
		fmt.Fprintf(&b, "| %s | `%s` | %s | %d | %s | %s | `%s` |\n", cell(r.Name), r.ID, r.Severity, r.Risk, strings.Join(classes, ", "), strings.Join(r.Techniques, ", "), strings.TrimPrefix(r.File, "rules/"))
	}
	if len(gaps) > 0 {
		slices.Sort(gaps)
		return "", fmt.Errorf("coverage of the default rules:\n%s", strings.Join(gaps, "\n"))
	}
	return b.String(), nil
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

func ruleNames(rs []*rules.Rule) string {
	var names []string
	for _, r := range rs {
		names = append(names, r.Name)
	}
	return strings.Join(names, "<br>")
}

func tactics(ids []string) string {
	var names []string
	for _, id := range ids {
		names = append(names, schemas.TacticName(id))
	}
	return strings.Join(names, ", ")
}

// testFile is the name of a rule's file in tests/: the rule's name in lower case
// with dashes.
func testFile(r *rules.Rule) string {
	words := strings.FieldsFunc(strings.ToLower(r.Name), func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') })
	return strings.Join(words, "-") + ".yaml"
}
