package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"picket/internal/batch"
	"picket/schemas"
)

// outputPart is a piece of an output template: literal text, or a field.
type outputPart struct {
	literal string
	operand *operand // nil for literal text
	ref     string   // the field as written
	width   int      // characters that the value is cut or filled up to; 0: as it is
}

// maxWidth bounds the width of a field in an output.
const maxWidth = 1024

// notThere is printed for a field that the event does not have, as Falco does.
const notThere = "<NA>"

// template parses the output of a rule. Before a field may stand a width, as in
// %20proc.name. A field that Picket lacks prints <NA>
// and is told of once.
func (b *setBuilder) template(def *ruleDef, r *Rule, classes schemas.ClassSet) (parts []outputPart) {
	src := def.output
	s := strings.TrimRight(src.value, space)
	literal := func(t string) {
		if n := len(parts); n > 0 && parts[n-1].operand == nil && parts[n-1].ref == "" {
			parts[n-1].literal += t
		} else if t != "" {
			parts = append(parts, outputPart{literal: t})
		}
	}
	for at := 0; at < len(s); {
		i := strings.IndexByte(s[at:], '%')
		if i < 0 {
			literal(s[at:])
			break
		}
		literal(s[at : at+i])
		at += i + 1
		if at < len(s) && s[at] == '%' {
			literal("%")
			at++
			continue
		}
		p := &parser{src: src, s: s, at: at}
		width := p.width()
		if !p.fieldStarts() {
			literal("%") // not a field
			continue
		}
		if width > maxWidth {
			b.error(p.pos(at), "", "width %s of a field in the output; it may be up to %d", s[at:p.at], maxWidth)
			return nil
		}
		ref, end, fault := p.outputField()
		if fault != nil {
			b.fault(fault)
			return nil
		}
		at = end
		if def.memory() != nil && isCorrelationField(ref.String()) {
			parts = append(parts, outputPart{ref: ref.String()})
			continue
		}
		o, reason, ok := b.checker.resolveAt(ref)
		switch {
		case !ok:
			return nil
		case reason != "":
			if b.opts.Strict && (def.skipUnknown == nil || !*def.skipUnknown) {
				b.error(ref.at, "", "rule %q: field %s of the output is not there: %s", r.Name, ref.name, reason)
			} else {
				b.warn(ref.at, r.Name, false, "", "rule %q prints %s for %s: %s", r.Name, notThere, ref.name, reason)
			}
			parts = append(parts, outputPart{ref: ref.String(), width: width})
			continue
		case o.field.classes()&classes == 0:
			b.error(ref.at, "", "field %s of the output is not one of source %s", o.ref, r.Source)
			return nil
		}
		if o, ok = b.checker.derived(o, ref); !ok {
			return nil
		}
		parts = append(parts, outputPart{operand: &o, ref: ref.String(), width: width})
	}
	return parts
}

// width takes the digits that may stand before a field of an output: 0 without.
func (p *parser) width() int {
	n := 0
	for !p.end() && p.s[p.at] >= '0' && p.s[p.at] <= '9' {
		n = min(10*n+int(p.s[p.at]-'0'), maxWidth+1)
		p.at++
	}
	return n
}

// fieldStarts reports whether a field or a transformer stands here.
func (p *parser) fieldStarts() bool {
	w := p.word()
	if w == "" || p.at+len(w) >= len(p.s) {
		return false
	}
	next := p.s[p.at+len(w)]
	return next == '.' || next == '(' && slices.Contains(transformNames[:], w)
}

// outputField reads a field of a template, without white space behind it.
func (p *parser) outputField() (ref fieldRef, end int, err *Error) {
	defer p.recovered(&err)
	start := p.at
	ref = p.field()
	end = p.at
	for end > start && isSpace(p.s[end-1]) {
		end--
	}
	return ref, end, nil
}

// Match is one row of a batch that a rule matches. It is valid as long as the
// batch is.
type Match struct {
	Rule *Rule
	// Row is the event's row in the batch that was given to Eval.
	Row   int
	batch *batch.Batch
	// What Why reads: see there.
	state *state
	epoch uint32
	at    int // row within the state's bitmaps
	root  edge
}

// Output returns the rule's output for the event.
func (m Match) Output() string {
	var b strings.Builder
	r := &row{b: m.batch, i: m.Row, docs: &docs{}}
	for _, p := range m.Rule.output {
		v, ok := p.value(r)
		switch {
		case p.ref == "":
			v = p.literal
		case !ok:
			v = notThere
		}
		if p.width > 0 {
			v = fmt.Sprintf("%-*.*s", p.width, p.width, v)
		}
		b.WriteString(v)
	}
	return b.String()
}

// Fields returns the values of the fields in the rule's output, by their name
// as written there; those that the event does not have are left out.
func (m Match) Fields() map[string]string {
	out := make(map[string]string)
	r := &row{b: m.batch, i: m.Row, docs: &docs{}}
	for _, p := range m.Rule.output {
		if v, ok := p.value(r); ok && p.ref != "" {
			out[p.ref] = v
		}
	}
	return out
}

func (p *outputPart) value(r *row) (string, bool) {
	if p.operand == nil {
		return "", false
	}
	return p.operand.render(r)
}

// render returns the operand's value in a row as text, and whether it is there.
func (o *operand) render(r *row) (string, bool) {
	if e := o.field.either; e[1] != "" { // the remote end
		return (&operand{field: fieldTable[e[1]], kind: o.kind}).render(r)
	}
	rd := o.reader(r.b.Class())
	switch {
	case rd == nil:
		return "", false
	case rd.isConst:
		return rd.constant, true
	case rd.isColumn:
		return o.renderColumn(r, rd.column)
	case rd.text != nil:
		v := rd.text(nil, r, &o.arg)
		return string(v), len(v) > 0 || o.empty()
	case rd.num != nil:
		n, ok := rd.num(r, &o.arg)
		return formatNumber(n, o.kind), ok
	case rd.ip != nil:
		a, ok := rd.ip(r)
		return formatAddress(a), ok
	}
	var l list
	rd.list(&l, r, &o.arg)
	values := make([]string, l.len())
	for i := range values {
		values[i] = string(l.at(i))
	}
	return strings.Join(values, ","), len(values) > 0
}

func (o *operand) renderColumn(r *row, id schemas.FieldID) (string, bool) {
	f := id.Field()
	if f.Nullable && r.b.IsNull(id, r.i) {
		return "", false
	}
	switch f.Type {
	case schemas.Text, schemas.Name:
		s := r.str(id)
		return s, s != "" || o.empty()
	case schemas.Bool:
		return strconv.FormatBool(r.b.Bool(id, r.i)), true
	case schemas.Uint32, schemas.Uint64:
		return strconv.FormatUint(r.uint(id), 10), true
	case schemas.Int64, schemas.Time:
		return strconv.FormatInt(r.int(id), 10), true
	case schemas.IP:
		a, ok := r.b.Bytes16(id, r.i)
		return formatAddress(a), ok
	case schemas.List, schemas.Names:
		var values []string
		for v := range r.b.List(id, r.i) {
			values = append(values, v)
		}
		return strings.Join(values, ","), len(values) > 0
	}
	return "", false
}

func formatNumber(n int64, k kind) string {
	switch k {
	case kindBool:
		return strconv.FormatBool(n != 0)
	case kindUint:
		return strconv.FormatUint(uint64(n), 10)
	}
	return strconv.FormatInt(n, 10)
}

func formatAddress(a [16]byte) string { return netip.AddrFrom16(a).Unmap().String() }

// String names the match for logs and tests.
func (m Match) String() string { return fmt.Sprintf("%s at row %d", m.Rule.Name, m.Row) }
