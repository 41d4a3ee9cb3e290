package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"picket/internal/rules"
	"picket/internal/terminal"
	defaults "picket/rules"
	"picket/services/sensor"
)

// diagnostic is one thing that `picket rules check` tells of; its JSON is for
// editors and CI.
type diagnostic struct {
	File     string `json:"file"`
	Line     int    `json:"line,omitempty"`   // from 1; none where the fault is of the whole file
	Column   int    `json:"column,omitempty"` // from 1, in characters
	Severity string `json:"severity"`         // error or warning
	Message  string `json:"message"`
	Remedy   string `json:"remedy,omitempty"`
	Rule     string `json:"rule,omitempty"`
	LeftOut  bool   `json:"left_out,omitempty"` // the rule is not loaded because of this
}

// checked is the whole answer of `picket rules check -o json`.
type checked struct {
	Files       int          `json:"files"`
	Rules       int          `json:"rules"`
	Enabled     int          `json:"enabled"`
	Errors      int          `json:"errors"`
	Warnings    int          `json:"warnings"`
	Diagnostics []diagnostic `json:"diagnostics"`
}

func newRulesCheck() *cobra.Command {
	var strict bool
	var output string
	c := &cobra.Command{
		Use:   "check [PATH]...",
		Short: "Check rule files and folders as they would be loaded, in this order; without a path the pack that comes with Picket",
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return fmt.Errorf("-o %s: use text or json", output)
			}
			files, err := defaults.Files(args)
			if err != nil {
				return err
			}
			result, err := check(files)
			if err != nil {
				return err
			}
			if output == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				enc.SetEscapeHTML(false)
				if err := enc.Encode(result); err != nil {
					return err
				}
			} else {
				showDiagnostics(cmd.OutOrStdout(), files, result)
			}
			if result.Errors > 0 || strict && result.Warnings > 0 {
				return fmt.Errorf("%s and %s in %s", number(result.Errors, "error"), number(result.Warnings, "warning"), number(result.Files, "file"))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&strict, "strict", false, "fail on warnings too")
	c.Flags().StringVarP(&output, "output", "o", "text", "text: each fault with its line; json: for editors and CI")
	return c
}

// check loads the files as the detector does and collects what is to be said.
func check(files []rules.Source) (checked, error) {
	result := checked{Files: len(files), Diagnostics: []diagnostic{}}
	set, warnings, err := rules.Load(files, rules.Options{Lint: true, Unwanted: sensor.DefaultConfig().Kernel.Unwanted})
	add := func(e *rules.Error, d diagnostic) {
		d.File, d.Line, d.Column, d.Message, d.Remedy = e.File, e.Line, e.Column, e.Message, e.Remedy
		result.Diagnostics = append(result.Diagnostics, d)
	}
	var errs rules.Errors
	if err != nil && !errors.As(err, &errs) {
		return result, err
	}
	for _, e := range errs {
		add(e, diagnostic{Severity: "error"})
	}
	for i := range warnings {
		add(&warnings[i].Error, diagnostic{Severity: "warning", Rule: warnings[i].Rule, LeftOut: warnings[i].LeftOut})
	}
	order := make(map[string]int, len(files))
	for i, f := range files {
		order[f.Name] = i
	}
	slices.SortStableFunc(result.Diagnostics, func(a, b diagnostic) int {
		return cmp.Or(order[a.File]-order[b.File], a.Line-b.Line, a.Column-b.Column)
	})
	result.Errors, result.Warnings = len(errs), len(warnings)
	if set != nil {
		result.Rules = len(set.Rules())
		for _, r := range set.Rules() {
			if r.Enabled {
				result.Enabled++
			}
		}
	}
	return result, nil
}

// number writes how many of something there are.
func number(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// maxShown is how many characters of a line of a rule file are shown.
const maxShown = 120

// showDiagnostics prints each with the line that it is about and a caret below
// the place.
func showDiagnostics(out io.Writer, files []rules.Source, result checked) {
	lines := make(map[string][][]byte, len(files))
	for _, f := range files {
		lines[f.Name] = bytes.Split(f.Data, []byte("\n"))
	}
	for _, d := range result.Diagnostics {
		at := d.File
		if d.Line > 0 {
			at = fmt.Sprintf("%s:%d:%d", d.File, d.Line, d.Column)
		}
		message := d.Message
		if d.Remedy != "" {
			message += " (" + d.Remedy + ")"
		}
		fmt.Fprintf(out, "%s: %s: %s\n", terminal.Text(at), d.Severity, terminal.Text(message))
		if text := lines[d.File]; d.Line > 0 && d.Line <= len(text) {
			line, caret := excerpt(string(bytes.TrimSuffix(text[d.Line-1], []byte("\r"))), d.Column)
			number := fmt.Sprintf("%6d", d.Line)
			fmt.Fprintf(out, "%s | %s\n%s | %s^\n", number, line, strings.Repeat(" ", len(number)), strings.Repeat(" ", caret))
		}
	}
	if len(result.Diagnostics) > 0 {
		fmt.Fprintln(out)
	}
	switch {
	case result.Errors > 0:
		fmt.Fprintf(out, "nothing is loaded: %s, %s in %s\n", number(result.Errors, "error"), number(result.Warnings, "warning"), number(result.Files, "file"))
	default:
		fmt.Fprintf(out, "%s in %s, %d enabled, %s\n", number(result.Rules, "rule"), number(result.Files, "file"), result.Enabled, number(result.Warnings, "warning"))
	}
}

// excerpt returns the part of a line around a column that fits a terminal, and
// how many characters of it stand before the column. A tab is shown as one blank.
func excerpt(line string, column int) (shown string, caret int) {
	text := []rune(strings.ReplaceAll(line, "\t", " "))
	at := min(column-1, len(text))
	from := 0
	if at > maxShown-20 {
		from = at - maxShown/2
	}
	part := text[from:min(from+maxShown, len(text))]
	before := terminal.Text(string(part[:at-from]))
	shown = before + terminal.Text(string(part[at-from:]))
	caret = len([]rune(before))
	if from > 0 {
		shown, caret = "…"+shown, caret+1
	}
	if from+maxShown < len(text) {
		shown += "…"
	}
	return shown, caret
}
