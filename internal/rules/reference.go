package rules

import (
	"fmt"
	"slices"
	"strings"

	"picket/schemas"
)

// FieldDoc describes a field of the rule language for people.
type FieldDoc struct {
	// Name is without the argument; Example is how the field may be written.
	Name, Example string
	// Type is what it is compared with.
	Type string
	// Sources are the event sources, Classes the event classes that have it.
	Sources []string
	Classes []schemas.Class
	// Doc is one sentence.
	Doc string
}

// argExamples show the argument of fields that need one.
var argExamples = map[string]string{
	"ka.uri.param": "command", "jevt.value": "/requestObject/spec/replicas", "k8s.pod.label": "app", "k8s.ns.label": "team",
}

// Fields returns every field of the rule language, sorted by name.
func Fields() []FieldDoc {
	out := make([]FieldDoc, 0, len(fieldTable))
	for _, name := range fieldNames {
		f := fieldTable[name]
		d := FieldDoc{Name: name, Example: name, Type: f.kind.String(), Doc: f.doc}
		switch f.arg {
		case argIndex:
			d.Example += "[1]"
		case argKey:
			d.Example += "[" + argExamples[name] + "]"
		}
		for _, c := range schemas.Classes() {
			if f.classes().Has(c) {
				d.Classes = append(d.Classes, c)
			}
		}
		for _, s := range []string{"syscall", "k8s_audit"} {
			if f.classes()&classesOf[s] != 0 {
				d.Sources = append(d.Sources, s)
			}
		}
		out = append(out, d)
	}
	return out
}

// Reference renders the generated part of docs/rules.md.
func Reference() string {
	var b strings.Builder
	fmt.Fprintf(&b, "### Fields\n\n| field | type | events | |\n| --- | --- | --- | --- |\n")
	for _, name := range fieldNames {
		f := fieldTable[name]
		shown := name
		switch f.arg {
		case argIndex:
			shown += "[n]"
		case argMayIdx:
			shown += ", " + name + "[n]"
		case argMayName:
			shown += ", " + name + "[…]"
		case argKey:
			shown += "[…]"
		}
		var classes []string
		for _, c := range schemas.Classes() {
			if f.classes().Has(c) {
				classes = append(classes, c.String())
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", shown, f.kind, strings.Join(classes, ", "), strings.ReplaceAll(f.doc, "|", "\\|"))
	}
	fmt.Fprintf(&b, "\n### Fields of Falco that are not there\n\nA rule whose condition depends on one is left out with a warning (an error with `Strict`); in an output it prints `%s`.\nA name that ends in a dot or a bracket stands for all that begin so.\n\n| field | why not |\n| --- | --- |\n", notThere)
	names := make([]string, 0, len(missing))
	for n := range missing {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintf(&b, "| `%s` | %s |\n", n, missing[n])
	}
	fmt.Fprintf(&b, "\n### Values of evt.type that are reported\n\n| events | evt.type |\n| --- | --- |\n")
	for _, c := range schemas.Classes() {
		if calls := classSyscalls[c]; calls != nil {
			fmt.Fprintf(&b, "| %s | `%s` |\n", c, strings.Join(calls, "`, `"))
		}
	}
	return b.String()
}

// FieldType returns what a field is compared with, as FieldDoc.Type has it, of
// a field as it is written in an output, with its argument; "" for one that is
// not known or goes through a transformer.
func FieldType(ref string) string {
	name, _, _ := strings.Cut(ref, "[")
	if f := fieldTable[name]; f != nil {
		return f.kind.String()
	}
	return ""
}
