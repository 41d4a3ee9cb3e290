package rules

// exprKind says what an expr is.
type exprKind uint8

const (
	exprAnd exprKind = iota
	exprOr
	exprNot
	exprName    // a macro by name
	exprCompare // a comparison
)

// expr is a node of the syntax tree of a condition. Trees of macros are shared
// by all that use them and are never changed.
type expr struct {
	kind exprKind
	at   pos
	kids []*expr     // And, Or, Not
	name string      // Name
	cmp  *comparison // Compare
}

// comparison is field, operator, values.
type comparison struct {
	field  fieldRef
	op     operator
	opAt   pos
	values []value
	list   bool      // the values stood in parentheses
	rhs    *fieldRef // a field in place of values: val(field), tolower(field), …
}

// fieldRef is a field as written: transformers, name, argument.
type fieldRef struct {
	name       string
	arg        string
	hasArg     bool
	argAt      pos
	transforms []transform // innermost first
	at         pos
}

func (f fieldRef) String() string {
	s := f.name
	if f.hasArg {
		s += "[" + f.arg + "]"
	}
	for _, t := range f.transforms {
		s = transformNames[t] + "(" + s + ")"
	}
	return s
}

// value is a literal as written, quotes removed.
type value struct {
	text   string
	quoted bool
	at     pos
}

// operator is a comparison operator.
type operator uint8

const (
	opNone operator = iota
	opExists
	opEq
	opNe
	opLt
	opLe
	opGt
	opGe
	opContains
	opIContains
	opBContains
	opStartsWith
	opBStartsWith
	opEndsWith
	opGlob
	opIGlob
	opRegex
	opIn
	opIntersects
	opPmatch
)

var operatorNames = [...]string{"", "exists", "=", "!=", "<", "<=", ">", ">=", "contains", "icontains", "bcontains",
	"startswith", "bstartswith", "endswith", "glob", "iglob", "regex", "in", "intersects", "pmatch"}

func (o operator) String() string { return operatorNames[o] }

// takesList reports whether the operator wants a list of values.
func (o operator) takesList() bool { return o >= opIn }

// wordOperators are those written as words.
var wordOperators = map[string]operator{}

func init() {
	for o := opExists; int(o) < len(operatorNames); o++ {
		if c := operatorNames[o][0]; c >= 'a' && c <= 'z' {
			wordOperators[operatorNames[o]] = o
		}
	}
}

// transform is a function applied to a field's value before it is compared.
type transform uint8

const (
	toLower transform = iota
	toUpper
	b64
	baseName
	length
)

var transformNames = [...]string{"tolower", "toupper", "b64", "basename", "len"}
