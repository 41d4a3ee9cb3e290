package rules

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the generated part of docs/rules.md")

// TestReference holds the generated part of the documentation to the code.
// Run with -update to write it.
func TestReference(t *testing.T) {
	const file, begin, end = "../../docs/rules.md", "<!-- generated: go test ./internal/rules -run Reference -update -->\n", "<!-- end of the generated part -->\n"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(data), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s lacks the marks of its generated part", file)
	}
	want := head + begin + "\n" + Reference() + "\n" + end + tail
	if want == string(data) {
		return
	}
	if !*update {
		t.Fatalf("%s differs from the field table: run go test ./internal/rules -run Reference -update", file)
	}
	if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestFieldTable holds the table to its own rules.
func TestFieldTable(t *testing.T) {
	for _, n := range fieldNames {
		f := fieldTable[n]
		if f.doc == "" || f.classes() == 0 {
			t.Errorf("field %s has no sentence or no class", n)
		}
		if f.name != n {
			t.Errorf("field %s is in the table as %s", f.name, n)
		}
		for _, r := range append(append([]reader{}, f.readers...), f.argReaders...) {
			set := 0
			for _, is := range []bool{r.isColumn, r.isConst, r.text != nil, r.num != nil, r.ip != nil, r.list != nil} {
				if is {
					set++
				}
			}
			if set != 1 || len(r.keys) > 4 {
				t.Errorf("field %s has a reader with %d ways to read, %d keys", n, set, len(r.keys))
			}
		}
		if len(f.argReaders) > 0 && f.arg == argNone {
			t.Errorf("field %s has readers for an argument that it does not take", n)
		}
	}
	for n := range missing {
		if fieldTable[n] != nil {
			t.Errorf("field %s is there and listed as missing", n)
		}
	}
}
