package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		failed   bool
		want     []string
	}{
		{"passed", `{"Action":"output","Package":"a","Test":"T","Output":"noise\n"}
{"Action":"pass","Package":"a","Test":"T"}
{"Action":"pass","Package":"a","Elapsed":1.25}
`, false, []string{"ok   a 1.2s\n", "no test was left out"}},
		{"left out", `{"Action":"output","Package":"a","Test":"T","Output":"=== RUN   T\n"}
{"Action":"output","Package":"a","Test":"T","Output":"    a_test.go:1: SKIPPED (needs root): why\n"}
{"Action":"output","Package":"a","Test":"T","Output":"--- SKIP: T (0.00s)\n"}
{"Action":"skip","Package":"a","Test":"T"}
{"Action":"pass","Package":"a","Elapsed":0}
`, false, []string{"=== LEFT OUT: 1 tests ===\na T: a_test.go:1: SKIPPED (needs root): why\n"}},
		{"failed", `{"Action":"output","Package":"a","Test":"T","Output":"what went wrong\n"}
{"Action":"fail","Package":"a","Test":"T"}
{"Action":"fail","Package":"a"}
{"Action":"pass","Package":"b"}
`, true, []string{"what went wrong\n"}},
		{"does not build", "{\"Action\":\"build-output\",\"ImportPath\":\"a\",\"Output\":\"undefined: x\\n\"}\n{\"Action\":\"build-fail\",\"ImportPath\":\"a\"}\n", true, []string{"undefined: x\n"}},
		{"ended", `{"Action":"output","Package":"a","Output":"killed\n"}
{"Action":"pass","Package":"b"}
`, true, []string{"a ended without a result:\nkilled\n"}},
		{"crashed in a test", `{"Action":"output","Package":"a","Test":"T","Output":"goroutine 1\n"}
{"Action":"output","Package":"a","Output":"FAIL\ta\n"}
{"Action":"fail","Package":"a"}
{"Action":"pass","Package":"b"}
`, true, []string{"goroutine 1\nFAIL\ta\n"}},
		{"nothing", "", true, nil},
		{"no test's", "go: cannot find main module\n", true, []string{"go: cannot find main module\n"}},
	} {
		var out strings.Builder
		if failed := report(strings.NewReader(tt.in), &out); failed != tt.failed {
			t.Errorf("%s: failed is %v", tt.name, failed)
		}
		for _, w := range tt.want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%s: printed\n%s\nwithout %q", tt.name, out.String(), w)
			}
		}
		if tt.name == "passed" && strings.Contains(out.String(), "noise") {
			t.Error("what a test that passed prints is shown")
		}
	}
}
