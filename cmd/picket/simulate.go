package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"picket/internal/simulate"
)

func newSimulate() *cobra.Command {
	var list bool
	c := &cobra.Command{
		Use:   "simulate [NAME]...",
		Short: "Perform harmless versions of real attack behaviours on this host, to see the rules fire",
		RunE: func(cmd *cobra.Command, args []string) error {
			out := cmd.OutOrStdout()
			if list {
				t := newTable(out, "NAME", "TECHNIQUE", "ROOT", "RULE IT MAKES FIRE", "WHAT IT DOES")
				for _, b := range simulate.All() {
					root := ""
					if b.Root {
						root = "yes"
					}
					t.row(b.Name, b.Technique, root, b.Rule, b.What)
				}
				return t.flush()
			}
			if len(args) == 2 && args[0] == simulate.Inner {
				return simulate.RunInner(args[1])
			}
			if err := simulate.Run(cmd.Context(), out, args); err != nil {
				return err
			}
			fmt.Fprintln(out, "done; everything is cleaned up")
			return nil
		},
	}
	c.Flags().BoolVar(&list, "list", false, "list the behaviours and do nothing")
	return c
}
