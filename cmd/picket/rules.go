package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"picket/internal/rules"
	defaults "picket/rules"
)

func newRules() *cobra.Command {
	c := &cobra.Command{Use: "rules", Short: "Work with rule files"}
	check := &cobra.Command{
		Use:   "check [PATH]...",
		Short: "Check rule files and folders as they would be loaded, in this order; without a path the pack that comes with Picket",
		RunE: func(cmd *cobra.Command, args []string) error {
			files := defaults.Default()
			if len(args) > 0 {
				var err error
				if files, err = rules.ReadPaths(args...); err != nil {
					return err
				}
			}
			set, warnings, err := rules.Load(files, rules.Options{})
			out := cmd.OutOrStdout()
			for _, w := range warnings {
				fmt.Fprintln(out, "warning:", w.String())
			}
			var errs rules.Errors
			if errors.As(err, &errs) {
				for _, e := range errs {
					fmt.Fprintln(out, "error:", e)
				}
				return fmt.Errorf("%d errors and %d warnings in %d files", len(errs), len(warnings), len(files))
			}
			if err != nil {
				return err
			}
			enabled := 0
			for _, r := range set.Rules() {
				if r.Enabled {
					enabled++
				}
			}
			fmt.Fprintf(out, "%d rules in %d files, %d of them enabled, %d warnings\n", len(set.Rules()), len(files), enabled, len(warnings))
			return nil
		},
	}
	list := &cobra.Command{
		Use:   "list [PATH]...",
		Short: "List the rules of files and folders; without a path those of the pack that comes with Picket",
		RunE: func(cmd *cobra.Command, args []string) error {
			files := defaults.Default()
			if len(args) > 0 {
				var err error
				if files, err = rules.ReadPaths(args...); err != nil {
					return err
				}
			}
			set, _, err := rules.Load(files, rules.Options{})
			if err != nil {
				return err
			}
			t := newTable(cmd.OutOrStdout(), "RULE", "SEVERITY", "SOURCE", "TECHNIQUES", "FILE")
			for _, r := range set.Rules() {
				t.row(r.Name, r.Severity.String(), r.Source, fmt.Sprint(r.Techniques), fmt.Sprintf("%s:%d", r.File, r.Line))
			}
			return t.flush()
		},
	}
	c.AddCommand(check, list, newRulesTest())
	return c
}
