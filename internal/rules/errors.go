package rules

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Error is one fault of a rule file.
type Error struct {
	File string
	// Line and Column count from 1; Column counts characters. Both are 0
	// when the fault is of the file as a whole.
	Line, Column int
	// Message says what is wrong, Remedy what would be right; Remedy may be
	// empty.
	Message, Remedy string
}

// Error renders the fault as a compiler does: file:line:column: message (remedy).
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	b.WriteString(": ")
	b.WriteString(e.Message)
	if e.Remedy != "" {
		b.WriteString(" (")
		b.WriteString(e.Remedy)
		b.WriteString(")")
	}
	return b.String()
}

// Errors are all faults that Load found, in order of file and position.
type Errors []*Error

// Error renders one fault a line.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Warning tells of something that does not stop the load.
type Warning struct {
	Error
	// Rule is the rule concerned; empty when the warning is about no rule.
	Rule string
	// LeftOut is true when the rule is not in the set because of this.
	LeftOut bool
}

// String renders the warning like an Error.
func (w Warning) String() string { return w.Error.Error() }

// report collects faults in the order they are found, each once.
type report struct {
	order    map[string]int // of files
	errs     Errors
	warnings []Warning
	seen     map[Error]bool
}

func newReport(files []Source) *report {
	r := &report{order: make(map[string]int), seen: make(map[Error]bool)}
	for i, f := range files {
		if _, ok := r.order[f.Name]; !ok {
			r.order[f.Name] = i
		}
	}
	return r
}

func (r *report) error(at pos, remedy, format string, args ...any) {
	e := at.fault(remedy, format, args...)
	if len(r.errs) >= maxErrors || r.seen[e] {
		return
	}
	r.seen[e] = true
	r.errs = append(r.errs, &e)
}

func (r *report) warn(at pos, rule string, leftOut bool, remedy, format string, args ...any) {
	e := at.fault(remedy, format, args...)
	if r.seen[e] && !leftOut {
		return
	}
	r.seen[e] = true
	r.warnings = append(r.warnings, Warning{Error: e, Rule: rule, LeftOut: leftOut})
}

func (r *report) compare(a, b *Error) int {
	return cmp.Or(cmp.Compare(r.order[a.File], r.order[b.File]), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
}

// result returns what was collected, sorted by position.
func (r *report) result() ([]Warning, error) {
	slices.SortStableFunc(r.warnings, func(a, b Warning) int { return r.compare(&a.Error, &b.Error) })
	if len(r.errs) == 0 {
		return r.warnings, nil
	}
	slices.SortStableFunc(r.errs, r.compare)
	return r.warnings, r.errs
}

// nearest returns the name closest to s, or "" if none is close.
func nearest(s string, names []string) string {
	best, found := min(max(2, len(s)/3), len(s)/2, 4)+1, ""
	for _, n := range names {
		if abs(len(n)-len(s)) >= best {
			continue
		}
		if d := distance(s, n); d < best {
			best, found = d, n
		}
	}
	return found
}

func abs(n int) int { return max(n, -n) }

// distance is the edit distance of two short strings: insertions, deletions,
// replacements and swaps of neighbours.
func distance(a, b string) int {
	if len(a) > 100 || len(b) > 100 {
		return 100
	}
	before, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		cur[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			cur[j+1] = min(prev[j]+cost, prev[j+1]+1, cur[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				cur[j+1] = min(cur[j+1], before[j-1]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}

// didYouMean is the remedy that names the nearest of names, or "".
func didYouMean(s string, names []string) string {
	if n := nearest(s, names); n != "" {
		return fmt.Sprintf("did you mean %s?", n)
	}
	return ""
}
