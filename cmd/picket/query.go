package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"picket/internal/store"
	"picket/internal/terminal"
)

// formats are ClickHouse's names of what -o offers.
var formats = map[string]string{"table": "PrettyCompactMonoBlock", "json": "JSONEachRow", "csv": "CSVWithNames"}

// formatClause is how a statement may name its format. ORDER BY format DESC looks
// the same.
var formatClause = regexp.MustCompile(`(?is)\sFORMAT\s+([a-z][a-z0-9]*)\s*;?\s*$`)

func newQuery(t *target) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "query SQL",
		Short: "Ask ClickHouse: events, alerts and Picket's health are tables of the database picket",
		Example: `  picket query "SELECT rule, count() FROM alerts FINAL GROUP BY rule ORDER BY 2 DESC"
  picket query "SELECT time, process_name, process_command_line FROM process WHERE action = 'exec' ORDER BY time DESC LIMIT 20"
  picket query "DESCRIBE network" -o json
  picket query "SELECT * FROM alerts FINAL LIMIT 1 FORMAT Vertical"`,
		Long: `Asks ClickHouse. What does not print is escaped (\n, \x1b, \xff) in a table, and on a
terminal in every format: names and arguments of processes are an attacker's. Written to a
file or a pipe, json and csv are what ClickHouse gives; hex(column) shows bytes. A statement
may end in FORMAT and any of ClickHouse's formats in place of -o.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			format, ok := formats[output]
			if !ok {
				return fmt.Errorf("-o %s: use table, json or csv", output)
			}
			sql, people := args[0], output == "table"
			if own := formatClause.FindStringSubmatchIndex(sql); own != nil && !strings.EqualFold(sql[own[2]:own[3]], "desc") && !strings.EqualFold(sql[own[2]:own[3]], "asc") {
				if cmd.Flags().Changed("output") {
					return fmt.Errorf("-o %s, and the statement ends in%s: leave out one", output, strings.TrimRight(sql[own[0]:], "; \n"))
				}
				sql, format, people = sql[:own[0]], sql[own[2]:own[3]], false
			}
			s, err := t.store()
			if err != nil {
				return err
			}
			return screen(cmd.OutOrStdout(), people, func(out io.Writer) error {
				return copyQuery(cmd, s, sql, format, out)
			})
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "table", "table, json (an object a line) or csv")
	return c
}

// screen calls write with a writer to out that keeps data from steering a
// terminal, if out is one or what is written is for people anyway.
func screen(out io.Writer, people bool, write func(io.Writer) error) error {
	if !people && !isTerminal(out) {
		return write(out)
	}
	w := terminal.NewWriter(out)
	return errors.Join(write(w), w.Close())
}

// copyQuery writes a query's result to out as ClickHouse formats it.
func copyQuery(cmd *cobra.Command, s store.Config, sql, format string, out io.Writer) error {
	db, err := store.Open(s, commandLog(cmd))
	if err != nil {
		return err
	}
	defer db.Close()
	r, err := db.Query(cmd.Context(), sql, format)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(out, r)
	return err
}

// queryRows returns a query's result as text.
func queryRows(cmd *cobra.Command, s store.Config, sql string) ([][]string, error) {
	db, err := store.Open(s, commandLog(cmd))
	if err != nil {
		return nil, err
	}
	defer db.Close()
	r, err := db.Query(cmd.Context(), sql, "JSONCompactStringsEachRow")
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var rows [][]string
	for dec := json.NewDecoder(r); ; {
		var row []string
		if err := dec.Decode(&row); errors.Is(err, io.EOF) {
			return rows, nil
		} else if err != nil {
			return nil, fmt.Errorf("answer of ClickHouse: %w", err)
		}
		rows = append(rows, row)
	}
}
