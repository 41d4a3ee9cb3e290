package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"golang.org/x/term"

	"picket/internal/terminal"
)

// table writes aligned columns. On a terminal that is too narrow for them each
// row has the columns that fit in its first line and the rest below, so that
// nothing is cut off and columns stay columns.
type table struct {
	out  io.Writer
	rows [][]string
}

func newTable(out io.Writer, head ...string) *table {
	t := &table{out: out}
	t.row(head...)
	return t
}

func (t *table) row(cells ...string) {
	for i, c := range cells {
		cells[i] = terminal.Text(c)
	}
	t.rows = append(t.rows, cells)
}

func (t *table) flush() error {
	if width := widthOf(t.out); width > 0 {
		return t.write(width)
	}
	w := tabwriter.NewWriter(t.out, 0, 4, gap, ' ', 0)
	for _, cells := range t.rows {
		fmt.Fprintln(w, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
	}
	return w.Flush()
}

// gap is how many blanks stand between columns, foldedBy how many before what is
// folded.
const gap, foldedBy = 2, 4

// write writes the columns that fit a width, one at least, and what is behind them
// below each row.
func (t *table) write(width int) error {
	var widths []int // of the columns that fit
	used := -gap
	for i := range t.rows[0] {
		n := 0
		for _, cells := range t.rows {
			if i < len(cells) {
				n = max(n, utf8.RuneCountInString(cells[i]))
			}
		}
		if used += gap + n; i > 0 && used > width {
			break
		}
		widths = append(widths, n)
	}
	var b strings.Builder
	for _, cells := range t.rows {
		fit := min(len(widths), len(cells))
		var line strings.Builder
		for i, c := range cells[:fit] {
			fmt.Fprintf(&line, "%-*s", widths[i]+gap, c)
		}
		fmt.Fprintln(&b, strings.TrimRight(line.String(), " "))
		for _, folded := range wrap(cells[fit:], max(1, width-foldedBy)) {
			fmt.Fprintf(&b, "%*s%s\n", foldedBy, "", folded)
		}
	}
	_, err := io.WriteString(t.out, b.String())
	return err
}

// wrap returns cells as lines of at most width characters, broken at blanks where
// there are some.
func wrap(cells []string, width int) (lines []string) {
	line, size := "", 0
	for _, c := range cells {
		if c == "" {
			continue
		}
		between := strings.Repeat(" ", gap)
		for word := range strings.SplitSeq(c, " ") {
			n := utf8.RuneCountInString(word)
			switch {
			case size == 0:
			case size+len(between)+n > width:
				lines = append(lines, line)
				line, size = "", 0
			default:
				line, size = line+between, size+len(between)
			}
			line, size, between = line+word, size+n, " "
			for size > width { // a word longer than a line
				r := []rune(line)
				lines = append(lines, string(r[:width]))
				line, size = string(r[width:]), size-width
			}
		}
	}
	if size > 0 {
		lines = append(lines, line)
	}
	return lines
}

// widthOf returns the width of the terminal that out is; 0, it is none.
func widthOf(out io.Writer) int {
	f, ok := out.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// writeTable writes a whole table, without the columns that are empty in every row.
func writeTable(out io.Writer, rows [][]string, head ...string) error {
	full := func(row []string) (cells []string) {
		for i, c := range row {
			if slices.ContainsFunc(rows, func(r []string) bool { return r[i] != "" }) {
				cells = append(cells, c)
			}
		}
		return cells
	}
	t := newTable(out, full(head)...)
	for _, r := range rows {
		t.row(full(r)...)
	}
	return t.flush()
}
