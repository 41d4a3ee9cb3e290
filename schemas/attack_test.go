package schemas_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"picket/schemas"
)

func TestAttackTechniques(t *testing.T) {
	form := regexp.MustCompile(`^T1\d{3}(\.\d{3})?$`)
	last := ""
	for _, a := range schemas.AttackTechniques() {
		if !form.MatchString(a.ID) || a.Name == "" || len(a.Tactics) == 0 || !slices.IsSorted(a.Tactics) {
			t.Errorf("%+v is not complete", a)
		}
		if a.ID <= last {
			t.Errorf("%s stands behind %s", a.ID, last)
		}
		last = a.ID
		for _, tactic := range a.Tactics {
			if schemas.TacticName(tactic) == "" {
				t.Errorf("%s has the tactic %s, which there is not", a.ID, tactic)
			}
		}
		parent, _, sub := strings.Cut(a.ID, ".")
		p, ok := schemas.TechniqueByID(parent)
		if !ok {
			t.Errorf("%s has no parent in the table", a.ID)
		}
		if sub && a.Containers && !p.Containers {
			t.Errorf("%s is in the matrix for Containers, %s is not", a.ID, parent)
		}
	}
}

func TestTactics(t *testing.T) {
	for _, tt := range []struct {
		id   string
		want []string
	}{
		{"T1611", []string{"TA0004"}},
		{"T1078", []string{"TA0001", "TA0003", "TA0004", "TA0005"}},
		{"T1059.999", []string{"TA0002"}}, // as its technique
		{"T1562.001", []string{"TA0112"}}, // revoked: T1685
		{"T1070.002", []string{"TA0112"}}, // revoked: T1685.006
		{"T9999", nil},
		{"", nil},
	} {
		if got := schemas.Tactics(tt.id); !slices.Equal(got, tt.want) {
			t.Errorf("%q: tactics %v, want %v", tt.id, got, tt.want)
		}
	}
	if got := schemas.TacticName("TA0005"); got != "Stealth" {
		t.Errorf("TA0005 is %q", got)
	}
}
