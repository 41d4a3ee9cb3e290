// Package rules is Picket's default rule pack: the YAML files of this folder,
// carried by the program. Each rule has a test beside it in tests/, named after
// the rule: events in, fires or does not fire. coverage/ says what the pack
// covers of other catalogues, and why not the rest.
package rules

import (
	"embed"
	"errors"
	"path"

	"picket/internal/rules"
	"picket/internal/ruletest"
)

//go:embed *.yaml tests/*.yaml
var files embed.FS

// Default returns the files of the pack in load order, which is that of their
// names. Rule files loaded after it can override its rules, macros and lists.
func Default() []rules.Source {
	return read(".")
}

// Files returns the rule files of files and folders, or those of the pack where no
// paths are given.
func Files(paths []string) ([]rules.Source, error) {
	if len(paths) == 0 {
		return Default(), nil
	}
	return rules.ReadPaths(paths...)
}

// Tests returns the tests of the pack.
func Tests() ([]*ruletest.Test, error) {
	var out []*ruletest.Test
	var errs []error
	for _, f := range read(ruletest.Folder) {
		t, err := ruletest.Read(f.Name, f.Data)
		errs = append(errs, err)
		out = append(out, t)
	}
	return out, errors.Join(errs...)
}

// read returns the embedded YAML files of a folder, sorted by name.
func read(dir string) []rules.Source {
	entries, err := files.ReadDir(dir)
	if err != nil { // go:embed has checked the names
		panic(err)
	}
	var out []rules.Source
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		name := path.Join(dir, e.Name())
		data, err := files.ReadFile(name)
		if err != nil {
			panic(err)
		}
		out = append(out, rules.Source{Name: "rules/" + name, Data: data})
	}
	return out
}
