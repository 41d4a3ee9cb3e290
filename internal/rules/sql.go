package rules

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"picket/schemas"
)

// The second engine: the same checked tree as ClickHouse SQL over the event
// tables. It starts from the program of compile.go, in which constants are
// folded and what a class lacks is gone, so that both engines judge classes
// alike; what a comparison means is written here a second time, and
// sql_test.go holds the two to the same answer.
//
// No expression is ever NULL: absent text is empty, of other values there is a
// condition beside the expression that says whether there is one.

// maxSQL bounds the text of one rule's expression, bytes.
const maxSQL = 8 << 20

// NotInSQL is the error of a rule that ClickHouse cannot evaluate as the
// detector does.
type NotInSQL struct {
	Rule  string
	Field string // as it is written in the rule
	Class schemas.Class
}

// Error names the rule, the field and what can be done.
func (e *NotInSQL) Error() string {
	return fmt.Sprintf("rule %q cannot be hunted in %s events: field %s is not in ClickHouse SQL; hunt with a condition that does without it", e.Rule, e.Class, e.Field)
}

// SQL writes what rules say of the events of one class as expressions over
// From, a subquery of the class's table. What the fields compute is a column of
// it, computed once for all rules: ClickHouse takes seconds over a statement
// that repeats long expressions. It is used by one goroutine.
type SQL struct {
	class   schemas.Class
	names   map[string]string // of columns, by expression
	columns []string
	size    int // of the columns, bytes
}

// NewSQL returns a writer for the class.
func NewSQL(c schemas.Class) *SQL { return &SQL{class: c, names: make(map[string]string)} }

// Condition returns the rule's condition: an expression that is 1 for the rows
// that the rule matches, 0 for all others and never NULL. It is "0" where the
// rule matches no event of the class. Every value of the rule is escaped. The
// error is a NotInSQL, or says that the expression would be too long.
func (s *SQL) Condition(r *Rule) (string, error) {
	if !slices.Contains(r.Classes, s.class) {
		return "0", nil
	}
	if r.cond == nil {
		return "", fmt.Errorf("rule %q cannot be hunted: it has no condition of its own, only steps; hunt with the condition of a step", r.Name)
	}
	w := sqlWriter{SQL: s, rule: r, compiler: newCompiler(s.class), memo: make(map[edge]string)}
	return w.edge(w.cond(r.cond))
}

// Output returns an expression for the rule's output: text. A field that is
// not in SQL shows as one that the event does not have. The error says that the
// expression would be too long.
func (s *SQL) Output(r *Rule) (string, error) {
	var parts []string
	size := 0
	for _, p := range r.output {
		e := sqlString(notThere)
		switch {
		case p.operand != nil:
			if v, ok := s.output(p.operand); ok {
				e = v
			}
		case p.ref == "":
			e = sqlString(p.literal)
		}
		if size += len(e); size > maxSQL {
			return "", tooLong(r)
		}
		parts = append(parts, e)
	}
	switch len(parts) {
	case 0:
		return "''", nil
	case 1:
		return "toString(" + parts[0] + ")", nil
	}
	return "concat(" + strings.Join(parts, ", ") + ")", nil
}

// Fields returns the fields of the rule's output in order, each once, as they
// are written, with the expressions of their values as text: empty where the
// event does not have the field. Those that are not in SQL are left out.
func (s *SQL) Fields(r *Rule) (names, exprs []string) {
	for _, p := range r.output {
		if p.operand == nil || slices.Contains(names, p.ref) {
			continue
		}
		if v, ok := s.text(p.operand); ok {
			names, exprs = append(names, p.ref), append(exprs, v.value)
		}
	}
	return names, exprs
}

// Settings belong behind a statement with these expressions: ClickHouse's new
// analyzer takes many times as long over the conditions of a pack as the former
// one, before it reads a row.
const Settings = "SETTINGS enable_analyzer = 0"

// From returns the subquery that the expressions returned so far are over: the
// rows of the class's table for which where holds, an expression over its columns.
func (s *SQL) From(where string) string {
	var b strings.Builder
	b.WriteString("(SELECT *")
	for _, c := range s.columns {
		b.WriteString(",\n    " + c)
	}
	fmt.Fprintf(&b, "\n  FROM %s.%s\n  WHERE %s)", schemas.Database, s.class.Table(), where)
	return b.String()
}

// operand returns an operand's expression, which is short: of what is computed
// it is the name of a column.
func (s *SQL) operand(o *operand) (sqlValue, bool) {
	v, ok := o.sql(s.class)
	if ok && o.bare(s.class) {
		v.value = s.column(o.ref, v.value)
	}
	return v, ok
}

// bare reports whether the operand is computed.
func (o *operand) bare(c schemas.Class) bool {
	r := o.reader(c)
	return r != nil && !r.isColumn && !r.isConst
}

// column returns the name of the column for an expression.
func (s *SQL) column(ref, expr string) string {
	if name, ok := s.names[expr]; ok {
		return name
	}
	var b strings.Builder
	b.WriteString("field_")
	for _, c := range []byte(ref[:min(len(ref), 60)]) {
		if c < '0' || c > '9' && c < 'A' || c > 'Z' && c < 'a' || c > 'z' {
			c = '_'
		}
		b.WriteByte(c)
	}
	name := strings.TrimRight(b.String(), "_")
	for n := 2; slices.ContainsFunc(s.columns, func(c string) bool { return strings.HasSuffix(c, " AS "+name) }); n++ {
		name = strings.TrimRight(b.String(), "_") + "_" + strconv.Itoa(n)
	}
	s.names[expr] = name
	s.columns = append(s.columns, expr+" AS "+name)
	s.size += len(expr)
	return name
}

func tooLong(r *Rule) error {
	return fmt.Errorf("rule %q cannot be hunted: as SQL it has more than %d bytes; hunt with a shorter condition", r.Name, maxSQL)
}

// sqlWriter writes one rule for one class.
type sqlWriter struct {
	*SQL
	*compiler
	rule *Rule
	memo map[edge]string
}

// edge writes a node or its negation.
func (w *sqlWriter) edge(e edge) (string, error) {
	switch e {
	case edgeTrue:
		return "1", nil
	case edgeFalse:
		return "0", nil
	}
	if s, ok := w.memo[e]; ok {
		return s, nil
	}
	n := &w.nodes[e.id()]
	var s string
	var err error
	if n.pred != nil {
		s, err = w.predicateSQL(n.pred)
		if err == nil && e.isNot() {
			s = "NOT " + s
		}
	} else {
		s, err = w.join(n.kids, e.isNot())
	}
	if err == nil && len(s)+w.size > maxSQL {
		err = tooLong(w.rule)
	}
	if err != nil {
		return "", err
	}
	w.memo[e] = s
	return s, nil
}

// join writes a conjunction, or as its negation the disjunction of what is
// negated.
func (w *sqlWriter) join(kids []edge, not bool) (string, error) {
	parts := make([]string, len(kids))
	size := 0
	for i, k := range kids {
		if not {
			k = k.not()
		}
		s, err := w.edge(k)
		if err != nil {
			return "", err
		}
		if size += len(s); size > maxSQL {
			return "", tooLong(w.rule)
		}
		parts[i] = s
	}
	if not {
		return "(" + strings.Join(parts, " OR ") + ")", nil
	}
	return "(" + strings.Join(parts, " AND ") + ")", nil
}

// sqlValue is what an operand is in SQL: a value, and when it is there.
type sqlValue struct {
	value string
	// present is the condition that there is a value; empty where there always
	// is one. Of text it is empty: text that is not there is empty.
	present string
}

// when writes that the value is there and a condition on it holds.
func (v sqlValue) when(cond string) string {
	if v.present == "" {
		return cond
	}
	if cond == "1" {
		return v.present
	}
	return "(" + v.present + " AND " + cond + ")"
}

// predicateSQL writes a comparison; what it returns can stand behind NOT.
func (w *sqlWriter) predicateSQL(p *predicate) (string, error) {
	v, ok := w.operand(&p.operand)
	if !ok {
		return "", &NotInSQL{w.rule.Name, p.operand.ref, w.SQL.class}
	}
	switch {
	case p.rhs != nil:
		rhs, ok := w.operand(p.rhs)
		if !ok {
			return "", &NotInSQL{w.rule.Name, p.rhs.ref, w.SQL.class}
		}
		switch {
		case p.op == opGlob || p.op == opIGlob || p.op == opPmatch:
			return "", &NotInSQL{w.rule.Name, p.operand.ref + " " + p.op.String() + " " + p.rhs.ref, w.SQL.class}
		case p.operand.kind != kindText:
			op := p.op.String()
			if p.op.takesList() {
				op = "="
			}
			return v.when(rhs.when("(" + v.value + " " + op + " " + rhs.value + ")")), nil
		}
		return p.pairSQL(v.value, rhs.value), nil
	case p.operand.kind == kindText:
		return p.textSQL(v.value, !p.operand.empty()), nil
	case p.operand.kind == kindList:
		return p.listSQL(v.value), nil
	case p.operand.kind == kindIP || p.operand.kind == kindNet:
		return v.when(p.addressSQL(v.value)), nil
	}
	return v.when(p.numberSQL(v.value)), nil
}

// pairSQL compares two fields.
func (p *predicate) pairSQL(a, b string) string {
	var s string
	switch p.op {
	case opEq, opIn, opIntersects:
		s = a + " = " + b
	case opIContains:
		s = "position(lower(" + a + "), lower(" + b + ")) > 0"
	case opNe:
		s = a + " != " + b
	case opContains:
		s = "position(" + a + ", " + b + ") > 0"
	case opStartsWith:
		s = "startsWith(" + a + ", " + b + ")"
	default: // opEndsWith
		s = "endsWith(" + a + ", " + b + ")"
	}
	if !p.operand.empty() {
		s = a + " != '' AND " + s
	}
	if !p.rhs.empty() {
		s = b + " != '' AND " + s
	}
	return "(" + s + ")"
}

// textSQL compares text; needed says that empty text is not a value.
func (p *predicate) textSQL(x string, needed bool) string {
	changed, valid := x, ""
	if t, ok := p.match.(transformed); ok {
		for _, f := range t.fs {
			var v string
			changed, v = f.sql(changed)
			if v != "" { // what is left empty counts as not there
				v += " AND "
			}
			v += changed + " != ''"
			if v != "" && valid != "" {
				v = valid + " AND " + v
			}
			if v != "" {
				valid = v
			}
		}
	}
	s := p.matchSQL(changed)
	var conds []string
	if needed && (changed != x || p.holdsForEmpty()) {
		conds = append(conds, x+" != ''")
	}
	if valid != "" {
		conds = append(conds, valid)
	}
	if len(conds) == 0 {
		return s
	}
	if s != "1" {
		conds = append(conds, s)
	}
	return "(" + strings.Join(conds, " AND ") + ")"
}

// holdsForEmpty reports whether the comparison would hold for empty text.
func (p *predicate) holdsForEmpty() bool { return p.match.match("") }

// listSQL compares a list.
func (p *predicate) listSQL(x string) string {
	some := "notEmpty(" + x + ")"
	if p.op == opExists {
		return some
	}
	_, changed := p.match.(transformed)
	if !changed && !p.all {
		switch p.op {
		case opEq:
			return "has(" + x + ", " + sqlString(p.values[0]) + ")"
		case opIn, opIntersects:
			return "hasAny(" + x + ", " + sqlArray(p.values) + ")"
		}
	}
	if p.all {
		return "(" + some + " AND arrayAll(e -> " + p.textSQL("e", false) + ", " + x + "))"
	}
	return "arrayExists(e -> " + p.textSQL("e", false) + ", " + x + ")"
}

// numberSQL compares a number or a boolean.
func (p *predicate) numberSQL(x string) string {
	if p.op == opExists {
		return "1"
	}
	lit := func(n int64) string {
		if p.operand.kind == kindUint {
			return strconv.FormatUint(uint64(numKey(n, kindUint)), 10)
		}
		return "toInt64(" + strconv.FormatInt(n, 10) + ")"
	}
	if p.op.takesList() {
		lits := make([]string, len(p.numbers))
		for i, n := range p.numbers {
			lits[i] = lit(n)
		}
		wide := "toInt64(" + x + ")"
		if p.operand.kind == kindUint {
			wide = "toUInt64(" + x + ")"
		}
		return "(" + wide + " IN (" + strings.Join(lits, ", ") + "))"
	}
	return "(" + x + " " + p.op.String() + " " + lit(p.numbers[0]) + ")"
}

// addressSQL compares an address of type IPv6, in which IPv4 is mapped.
func (p *predicate) addressSQL(x string) string {
	if p.op == opExists {
		return "1"
	}
	parts := make([]string, 0, len(p.nets))
	for _, n := range p.nets {
		// No address of one family is in a network of the other, ::/0 included.
		addr, bits := n.Addr(), n.Bits()
		if addr.Is4() {
			bits += 96
		}
		first, last := addr.As16(), addr.As16()
		for i := bits; i < 128; i++ {
			last[i/8] |= 1 << (7 - i%8)
		}
		s := x + " BETWEEN " + sqlAddress(first) + " AND " + sqlAddress(last)
		if first == last {
			s = x + " = " + sqlAddress(first)
		}
		if !addr.Is4() {
			s = "(" + s + " AND NOT " + mapped(x) + ")"
		}
		parts = append(parts, s)
	}
	s := "(" + strings.Join(parts, " OR ") + ")"
	if p.op == opNe {
		return "(NOT " + s + ")"
	}
	return s
}

// mapped is true of IPv4 addresses.
func mapped(x string) string {
	return "(" + x + " BETWEEN toIPv6('::ffff:0.0.0.0') AND toIPv6('::ffff:255.255.255.255'))"
}
