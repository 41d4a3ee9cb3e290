package ruletest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"

	"picket/internal/rules"
)

// Folder is where the tests of a folder's rules stand, beside its rule files.
const Folder = "tests"

// ReadPaths reads rule files as rules.ReadPaths does, and the tests beside
// them: of a folder those in its folder tests, of a file those in the folder
// tests beside it that are about a rule which the file defines. All faults of
// test files are told at once.
func ReadPaths(paths ...string) ([]rules.Source, []*Test, error) {
	files, err := rules.ReadPaths(paths...)
	if err != nil {
		return nil, nil, err
	}
	var tests []*Test
	var errs []error
	seen := make(map[string]bool)
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, nil, err
		}
		dir := p
		if !info.IsDir() {
			dir = filepath.Dir(p)
		}
		sources, err := rules.ReadPaths(filepath.Join(dir, Folder))
		if errors.Is(err, fs.ErrNotExist) {
			continue // rules without tests are told by Run
		}
		if err != nil {
			return nil, nil, err
		}
		own := func(string) bool { return true }
		if !info.IsDir() {
			own = ownRules(files, p)
		}
		for _, s := range sources {
			if seen[s.Name] {
				continue
			}
			t, err := Read(s.Name, s.Data)
			if err != nil {
				seen[s.Name] = true
				errs = append(errs, err)
			} else if own(t.Rule) {
				seen[s.Name] = true
				tests = append(tests, t)
			}
		}
	}
	return files, tests, errors.Join(errs...)
}

// ownRules tells the names of the rules that a file defines.
func ownRules(files []rules.Source, path string) func(string) bool {
	var items []struct {
		Rule string `yaml:"rule"`
	}
	i := slices.IndexFunc(files, func(s rules.Source) bool { return s.Name == path })
	_ = yaml.Unmarshal(files[i].Data, &items) // what is wrong with the file, rules.Load tells
	return func(name string) bool {
		for _, it := range items {
			if it.Rule == name {
				return true
			}
		}
		return false
	}
}
