// Package schemas is the one description of what Picket's parts exchange and
// store: the field registry (fields.go) and what derives from it (Arrow
// schemas, ClickHouse tables, rule-language names), and the names that several
// services must agree on: streams, consumers, subjects, message headers, loss
// reasons, severities and the alert document.
//
// It imports no service and holds no state that changes after start.
package schemas
