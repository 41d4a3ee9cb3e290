// Command report reads what `go test -json` prints and says what a person needs
// of it: a line per package, all that a failed test printed, and at the end each
// test that was left out, with its reason. Without it `go test` swallows those.
//
//	go test -json ./... | go run ./test/report
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// event is a line of go test -json (cmd/internal/test2json).
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

func main() {
	if failed := report(os.Stdin, os.Stdout); failed {
		os.Exit(1)
	}
}

// report returns whether anything failed, or nothing was run.
func report(in io.Reader, out io.Writer) (failed bool) {
	printed := map[[2]string]*strings.Builder{}
	var leftOut []string
	packages := 0
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(out, line) // what is not of a test, such as a fault of the build
				continue
			}
			key := [2]string{e.Package, e.Test}
			text := printed[key]
			if text == nil {
				text = &strings.Builder{}
				printed[key] = text
			}
			switch e.Action {
			case "output":
				text.WriteString(e.Output)
			case "build-output":
				fmt.Fprint(out, e.Output)
			case "build-fail":
				failed = true
			case "skip":
				if e.Test == "" {
					break // a package without tests
				}
				leftOut = append(leftOut, e.Package+" "+e.Test+": "+reason(text.String()))
			case "fail":
				failed = true
				if e.Test == "" { // what ran when it crashed has no verdict
					for k, unfinished := range printed {
						if k[0] == e.Package && k[1] != "" {
							fmt.Fprint(out, unfinished.String())
							delete(printed, k)
						}
					}
				}
				fmt.Fprint(out, text.String())
			case "pass":
				if e.Test == "" {
					packages++
					fmt.Fprintf(out, "ok   %s %.1fs\n", e.Package, e.Elapsed)
				}
			}
			switch e.Action {
			case "skip", "fail", "pass":
				delete(printed, key)
			}
		}
		if err != nil {
			break
		}
	}
	// A package that ended without a verdict, as by a crash.
	for key, text := range printed {
		if key[1] == "" && text.Len() > 0 {
			fmt.Fprintf(out, "%s ended without a result:\n%s", key[0], text)
			failed = true
		}
	}
	if len(leftOut) == 0 {
		fmt.Fprintln(out, "=== no test was left out ===")
	} else {
		fmt.Fprintf(out, "=== LEFT OUT: %d tests ===\n%s\n", len(leftOut), strings.Join(leftOut, "\n"))
	}
	return failed || packages == 0
}

// reason is what a test printed, without the frame that go test puts around it.
func reason(text string) string {
	var kept []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") && line != "" {
			kept = append(kept, line)
		}
	}
	if len(kept) == 0 {
		return "no reason given"
	}
	return strings.Join(kept, " ")
}
