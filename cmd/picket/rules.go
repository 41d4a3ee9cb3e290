package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"picket/internal/rules"
	defaults "picket/rules"
)

func newRules() *cobra.Command {
	c := &cobra.Command{Use: "rules", Short: "Work with rule files"}
	list := &cobra.Command{
		Use:   "list [PATH]...",
		Short: "List the rules of files and folders; without a path those of the pack that comes with Picket",
		RunE: func(cmd *cobra.Command, args []string) error {
			files, err := defaults.Files(args)
			if err != nil {
				return err
			}
			set, _, err := rules.Load(files, rules.Options{})
			if err != nil {
				return err
			}
			t := newTable(cmd.OutOrStdout(), "RULE", "SEVERITY", "SOURCE", "TECHNIQUES", "FILE")
			for _, r := range set.Rules() {
				t.row(r.Name, r.Severity.String(), r.Source, strings.Join(r.Techniques, " "), fmt.Sprintf("%s:%d", r.File, r.Line))
			}
			return t.flush()
		},
	}
	c.AddCommand(newRulesCheck(), list, newRulesTest())
	return c
}
