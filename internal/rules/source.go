package rules

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Source is one rule file.
type Source struct {
	// Name is what errors call the file.
	Name string
	Data []byte
}

// ReadPaths reads rule files. A folder stands for its files ending in .yaml or
// .yml, sorted by name and without its subfolders; a folder without any is an
// error. The order is that of the arguments, which is the order of loading.
func ReadPaths(paths ...string) ([]Source, error) {
	var out []Source
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, fmt.Errorf("rules: %w", err)
		}
		names := []string{p}
		if info.IsDir() {
			entries, err := os.ReadDir(p)
			if err != nil {
				return nil, fmt.Errorf("rules: %w", err)
			}
			names = names[:0]
			for _, e := range entries {
				if ext := strings.ToLower(filepath.Ext(e.Name())); !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
					names = append(names, filepath.Join(p, e.Name()))
				}
			}
			if len(names) == 0 {
				return nil, fmt.Errorf("rules: folder %s has no .yaml or .yml file", p)
			}
			slices.Sort(names)
		}
		for _, n := range names {
			data, err := readFile(n)
			if err != nil {
				return nil, fmt.Errorf("rules: %w", err)
			}
			out = append(out, Source{Name: n, Data: data})
		}
	}
	return out, nil
}

// readFile reads a file of at most maxFileBytes.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileBytes {
		return nil, fmt.Errorf("%s has more than the %d bytes a rule file may have", name, maxFileBytes)
	}
	return data, nil
}
