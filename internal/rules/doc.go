// Package rules is Picket's detection engine: it loads rule files written in
// Falco's rule language, checks them as a compiler does (every error with file,
// line and column), and evaluates them over Arrow batches column by column.
//
// The way of a rule:
//
//	ReadPaths ─▶ Load: YAML (yaml.go) ─▶ merged rules, macros, lists (load.go)
//	          ─▶ syntax tree (parse.go) ─▶ names resolved, types checked (check.go)
//	          ─▶ one program per event class (compile.go), texts to look for
//	             in one automaton per field (automaton.go) ─▶ Set
//	Set.NewEvaluator ─▶ Evaluator.Eval(batch) ─▶ Match
//	NewSQL ─▶ SQL.Condition(rule): the same as ClickHouse SQL over stored events (sql.go)
//
// What a field of the language reads is one entry of the tables in fields.go,
// audit.go and, for plain columns, of the schemas registry; what a computed field
// is in SQL one of sqlfields.go.
//
// A Set never changes and may be shared; an Evaluator belongs to one goroutine.
// Rule files and batches are hostile input: everything they can make large is
// bounded (limits.go), and neither loading nor evaluation can panic on them.
package rules
