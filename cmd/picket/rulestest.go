package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"picket/internal/rules"
	"picket/internal/ruletest"
	defaults "picket/rules"
)

func newRulesTest() *cobra.Command {
	return &cobra.Command{
		Use:   "test [PATH]...",
		Short: "Run the tests of rule files and folders, which stand in the folder tests beside them; without a path those of the pack that comes with Picket",
		RunE: func(cmd *cobra.Command, args []string) error {
			files, tests, err := defaults.Default(), []*ruletest.Test(nil), error(nil)
			if len(args) > 0 {
				files, tests, err = ruletest.ReadPaths(args...)
			} else {
				tests, err = defaults.Tests()
			}
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			set, warnings, err := rules.Load(files, rules.Options{})
			for _, w := range warnings {
				fmt.Fprintln(out, "warning:", w.String())
			}
			var errs rules.Errors
			if errors.As(err, &errs) {
				for _, e := range errs {
					fmt.Fprintln(out, "error:", e)
				}
				return fmt.Errorf("the rules do not load: %d errors", len(errs))
			}
			if err != nil {
				return err
			}
			return printResults(out, ruletest.Run(set, tests))
		},
	}
}

// printResults prints a line for each rule, as go test does for packages. The
// error says how many failed.
func printResults(out io.Writer, results []ruletest.Result) error {
	failed, without := 0, 0
	for _, r := range results {
		switch {
		case len(r.Failures) > 0:
			failed++
			fmt.Fprintf(out, "FAIL  %s (%s)\n", r.Rule, r.File)
			for _, f := range r.Failures {
				fmt.Fprintln(out, "      "+f)
			}
		case r.File == "":
			without++
			fmt.Fprintf(out, "?     %s: no tests\n", r.Rule)
		default:
			fmt.Fprintf(out, "ok    %s: %d fire, %d do not\n", r.Rule, r.Fires, r.Quiet)
		}
	}
	fmt.Fprintf(out, "%d rules: %d ok, %d failed, %d without tests\n", len(results), len(results)-failed-without, failed, without)
	if failed > 0 {
		return fmt.Errorf("%d of %d rules failed their tests", failed, len(results))
	}
	return nil
}
