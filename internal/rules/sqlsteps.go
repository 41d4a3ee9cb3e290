package rules

import (
	"encoding/hex"
	"fmt"
	"strings"

	"picket/internal/correlation"
)

// Rules about several events in ClickHouse SQL: which rows feed a rule's memory
// and with what. The memory itself is package correlation for both engines.

// Step is what feeds the memory of a rule about several events.
type Step struct {
	// Rule is whose condition the events match: the rule of the step, or of a
	// rule without steps the rule itself. One of a condition written in a step is
	// in no Set.
	Rule *Rule
	feed feed
}

// Steps returns what feeds the rule's memory, in order, also of a rule that is not
// enabled; nil for a rule that looks at one event.
func (r *Rule) Steps() []Step { return r.steps }

// absentCell is the cell of a field that the event does not have; of others it is
// hexadecimal, because values need not be text that JSON can hold.
const absentCell = "-"

// Step returns the condition for the rows that feed the step's memory, "0" where
// there are none in the class, and the expression of the Array(String) that
// Step.Match takes. The error is as that of Condition.
func (s *SQL) Step(st Step) (cond, cells string, err error) {
	if cond, err = s.Condition(st.Rule); err != nil || cond == "0" {
		return cond, "", err
	}
	var list, some []string
	conds := []string{cond}
	size := len(cond)
	cell := func(o *operand) (sqlValue, bool) {
		v, ok := s.shown(o)
		if !ok {
			list = append(list, sqlString(absentCell))
			return v, false
		}
		c := "hex(" + v.value + ")"
		if v.present != "" {
			c = "if(" + v.present + ", " + c + ", " + sqlString(absentCell) + ")"
		}
		list = append(list, c)
		size += len(c) + len(v.present)
		return v, true
	}
	for i := range st.feed.by {
		v, ok := cell(&st.feed.by[i])
		if !ok {
			return "", "", &NotInSQL{st.Rule.Name, st.feed.by[i].ref, s.class}
		}
		if v.present != "" && !st.feed.keepsAll() {
			conds = append(conds, v.present)
		}
	}
	for i := range st.feed.value {
		v, ok := cell(&st.feed.value[i])
		if !ok {
			return "", "", &NotInSQL{st.Rule.Name, st.feed.value[i].ref, s.class}
		}
		if v.present == "" {
			v.present = "1"
		}
		some = append(some, v.present)
	}
	if some != nil {
		conds = append(conds, "("+strings.Join(some, " OR ")+")")
	}
	for _, p := range st.feed.rule.output {
		if p.operand != nil {
			cell(p.operand)
		}
	}
	if size+s.size > maxSQL {
		return "", "", tooLong(st.Rule)
	}
	return "(" + strings.Join(conds, " AND ") + ")", "CAST([" + strings.Join(list, ", ") + "], 'Array(String)')", nil
}

// Match returns what the memory takes of a row, but for Doc: cells as Step of SQL
// gives them, at in ns since the epoch. It is as Feed.Record would have it.
func (st Step) Match(at int64, id [16]byte, cells []string) (correlation.Match, error) {
	by, value := len(st.feed.by), len(st.feed.value)
	var refs []string
	for _, p := range st.feed.rule.output {
		if p.operand != nil {
			refs = append(refs, p.ref)
		}
	}
	if len(cells) != by+value+len(refs) {
		return correlation.Match{}, fmt.Errorf("%d values of rule %q, want %d", len(cells), st.feed.rule.Name, by+value+len(refs))
	}
	texts := make([]string, len(cells))
	fields := make(map[string]string)
	for i, c := range cells {
		if c == absentCell {
			continue
		}
		raw, err := hex.DecodeString(c)
		if err != nil {
			return correlation.Match{}, fmt.Errorf("value %d of rule %q: %w", i+1, st.feed.rule.Name, err)
		}
		texts[i] = string(raw)
		if i >= by+value {
			fields[refs[i-by-value]] = texts[i]
		}
	}
	return st.feed.match(at, id, texts[:by:by], texts[by:by+value], fields), nil
}
