// Package rules is Picket's default rule pack: the YAML files of this folder,
// carried by the program. Each rule has a test beside it in tests/, named after
// the rule: events in, fires or does not fire.
package rules

import (
	"embed"

	"picket/internal/rules"
)

//go:embed node.yaml kubernetes-audit.yaml
var files embed.FS

// Default returns the files of the pack in load order. Rule files loaded after
// it can override its rules, macros and lists.
func Default() []rules.Source {
	var out []rules.Source
	for _, name := range []string{"node.yaml", "kubernetes-audit.yaml"} {
		data, err := files.ReadFile(name)
		if err != nil { // go:embed has checked the name
			panic(err)
		}
		out = append(out, rules.Source{Name: "rules/" + name, Data: data})
	}
	return out
}
