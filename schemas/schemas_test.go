package schemas_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"picket/schemas"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with testdata/name; a missing file is a failure.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (write it with go test ./schemas -update)", err)
	}
	if string(want) != got {
		t.Errorf("%s differs; if the change is meant, run go test ./schemas -update and look at the diff", path)
	}
}

func TestClickHouseTables(t *testing.T) {
	var b strings.Builder
	for _, c := range schemas.Classes() {
		b.WriteString(schemas.CreateTable(c) + ";\n\n")
	}
	for _, s := range append(schemas.CreateAlerts(), schemas.CreateViews()...) {
		b.WriteString(s + ";\n\n")
	}
	golden(t, "tables.sql", b.String())
}

// TestColumnsOnlyGrow holds the registry to its promise: no column of an
// earlier version is renamed, retyped or taken from a class.
func TestColumnsOnlyGrow(t *testing.T) {
	var b strings.Builder
	now := map[string]bool{}
	for _, c := range schemas.Classes() {
		for _, id := range schemas.TableColumns(c) {
			line := fmt.Sprintf("%s.%s %s", c, id, id.Field().ClickHouseType())
			if !id.Field().Stored {
				line += " " + id.Field().ArrowType().String()
			}
			now[line] = true
			b.WriteString(line + "\n")
		}
	}
	old, err := os.ReadFile("testdata/columns.txt")
	if err != nil && !*update {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(old)) {
		if line = strings.TrimSpace(line); !now[line] {
			t.Errorf("gone or changed: %s", line)
		}
	}
	if !t.Failed() {
		golden(t, "columns.txt", b.String())
	}
}

func TestRegistryIsSound(t *testing.T) {
	ruleNames := map[string]schemas.FieldID{}
	for id := range schemas.FieldID(schemas.NumFields()) {
		f := id.Field()
		if f.Classes == 0 || f.Doc == "" || !strings.HasSuffix(strings.TrimRight(f.Doc, "…"), ".") && !strings.HasSuffix(f.Doc, "…") {
			t.Errorf("%s: no class, or no sentence of documentation", f.Name)
		}
		if strings.ToLower(f.Name) != f.Name || strings.ContainsAny(f.Name, " .-") {
			t.Errorf("%s is not snake_case", f.Name)
		}
		if got, ok := schemas.FieldByName(f.Name); !ok || got != id {
			t.Errorf("FieldByName(%s) = %v, %v", f.Name, got, ok)
		}
		for _, r := range f.Rule {
			if other, taken := ruleNames[r]; taken {
				t.Errorf("rule name %s reads %s and %s", r, other, id)
			}
			ruleNames[r] = id
		}
	}
	if _, ok := schemas.FieldByName("no_such_column"); ok {
		t.Error("found a column that does not exist")
	}
}

func TestSubjects(t *testing.T) {
	subject := schemas.RawSubject("prod.eu", "ip-10-0-0-1.example internal", schemas.File)
	if want := "picket.raw.prod_eu.ip-10-0-0-1_example_internal.file"; subject != want {
		t.Errorf("got %s, want %s", subject, want)
	}
	cluster, node, class, err := schemas.ParseRawSubject(subject)
	if err != nil || cluster != "prod_eu" || node != "ip-10-0-0-1_example_internal" || class != schemas.File {
		t.Errorf("parsed %q %q %v %v", cluster, node, class, err)
	}
	for _, bad := range []string{"", "picket.raw.a.b", "picket.raw.a.b.c.d", "picket.events.a.b.file", "picket.raw.a.b.nothing"} {
		if _, _, _, err := schemas.ParseRawSubject(bad); err == nil {
			t.Errorf("%q parsed", bad)
		}
	}
	events := schemas.EventsSubject("c", "n", schemas.Audit)
	if c, class, err := schemas.ParseEventsSubject(events); err != nil || c != "c" || class != schemas.Audit {
		t.Errorf("%s parsed as %q %v %v", events, c, class, err)
	}
	if got := schemas.AlertSubject("c", schemas.High, "", "Read shadow > x"); got != "picket.alerts.c.high._.Read_shadow___x" {
		t.Errorf("alert subject %s", got)
	}
	for in, want := range map[string]string{"": "_", "a.b": "a_b", "*": "_", ">": "_", "a\nb": "a_b", "ü": "ü"} {
		if got := schemas.Token(in); got != want {
			t.Errorf("Token(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzToken(f *testing.F) {
	f.Add("a.b *>")
	f.Fuzz(func(t *testing.T, s string) {
		tok := schemas.Token(s)
		if tok == "" || strings.ContainsAny(tok, ".*> \t\r\n\x00") {
			t.Errorf("Token(%q) = %q", s, tok)
		}
		if schemas.Token(tok) != tok {
			t.Errorf("Token is not idempotent on %q", s)
		}
	})
}

func TestSeverity(t *testing.T) {
	for p, want := range map[string]schemas.Severity{"EMERGENCY": schemas.Critical, "Alert": schemas.Critical, "CRITICAL": schemas.Critical, "ERROR": schemas.High,
		"WARNING": schemas.Medium, "NOTICE": schemas.Low, "INFO": schemas.Informational, "informational": schemas.Informational, "DEBUG": schemas.Informational} {
		if got, err := schemas.SeverityOfPriority(p); err != nil || got != want {
			t.Errorf("%s: %v %v", p, got, err)
		}
	}
	if _, err := schemas.SeverityOfPriority("loud"); err == nil {
		t.Error("unknown priority accepted")
	}
	for _, s := range []schemas.Severity{schemas.Informational, schemas.Low, schemas.Medium, schemas.High, schemas.Critical} {
		if got, err := schemas.ParseSeverity(strings.ToUpper(s.String())); err != nil || got != s {
			t.Errorf("%s: %v %v", s, got, err)
		}
	}
	if _, err := schemas.ParseSeverity("unknown"); err == nil {
		t.Error("unknown is no severity to ask for")
	}
}

func TestHash128(t *testing.T) {
	if schemas.Hash128("ab", "c") == schemas.Hash128("a", "bc") {
		t.Error("parts run together")
	}
	// The value is part of the contract: it names events in storage.
	if got := schemas.FormatID(schemas.Hash128("alert", "rule", "event")); got != hashOfAlertRuleEvent {
		t.Errorf("the hash changed: %s", got)
	}
}

const hashOfAlertRuleEvent = "9bdbb80a-802a-429b-fcb9-ad2e0723ee43"
