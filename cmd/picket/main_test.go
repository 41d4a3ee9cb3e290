package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"picket": main})
}

// TestScripts runs testdata/script: what a person types, and what comes back.
func TestScripts(t *testing.T) {
	bin := t.TempDir()
	build := exec.Command("go", "build", "-buildvcs=false", "-o", bin+"/", "picket/cmd/picket-clickhouse")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building picket-clickhouse: %v\n%s", err, out)
	}
	samples, err := filepath.Abs("../../test/testdata")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", e.Getenv("PATH")+string(os.PathListSeparator)+bin)
			e.Setenv("HOME", os.Getenv("HOME")) // where the ClickHouse library is
			e.Setenv("SAMPLES", samples)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"ready": ready, "eventually": eventually, "showalert": showAlertOf, "sleep": sleep},
	})
}

// ready DIR waits until a `picket up` on the data folder is ready.
func ready(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: ready DIR")
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		err := ts.Exec("picket", "--data", ts.MkAbs(args[0]), "query", "SELECT 1")
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("not ready within 30 s: %v", err)
		}
	}
}

// eventually COMMAND… -- PATTERN repeats a command until its output has the pattern.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	i := slices.Index(args, "--")
	if neg || i < 1 || len(args) != i+2 {
		ts.Fatalf("usage: eventually COMMAND… -- PATTERN")
	}
	pattern := regexp.MustCompile(args[i+1])
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		err := ts.Exec(args[0], args[1:i]...)
		if out := ts.ReadFile("stdout"); err == nil && pattern.MatchString(out) {
			return
		} else if time.Now().After(deadline) {
			ts.Fatalf("no %q within 30 s: %v\n%s", args[i+1], err, out)
		}
	}
}

// showalert DIR FILE shows the alert whose id is the last word of the file.
func showAlertOf(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: showalert DIR FILE")
	}
	words := strings.Fields(ts.ReadFile(args[1]))
	id := strings.Trim(words[len(words)-1], `"`)
	ts.Check(ts.Exec("picket", "--data", ts.MkAbs(args[0]), "alerts", "show", id[:13]))
}

func sleep(ts *testscript.TestScript, _ bool, args []string) {
	d, err := time.ParseDuration(args[0])
	ts.Check(err)
	time.Sleep(d)
}
