package rules

import "picket/schemas"

// derive makes a field of its own of an operand with transformers: for len(),
// which makes a number of a text or a list, and where two fields are compared.
// Elsewhere transformers are part of the matcher, which sees a value once for
// all rows that have it.
//
// It returns ok false where the transformers do not apply to the operand.
func derive(o operand, ts []transform) (d operand, ok bool) {
	for _, t := range ts {
		switch {
		case t == length && (o.kind == kindText || o.kind == kindList):
			o = o.withReader(t, kindUint, reader{num: lengthOf(o)})
		case t != length && o.kind == kindText:
			o = o.withReader(t, kindText, reader{text: changed(o, t)})
		default:
			return o, false
		}
	}
	return o, true
}

// classes returns where the operand can have a value.
func (o *operand) classes() (s schemas.ClassSet) {
	for c := range numClasses {
		if o.reader(schemas.Class(c)) != nil {
			s |= schemas.SetOf(schemas.Class(c))
		}
	}
	return s
}

// withReader returns the operand that a transformer makes of o: of a kind, read
// by r where o has a value.
func (o operand) withReader(t transform, k kind, r reader) operand {
	r.classes = o.classes()
	ref := transformNames[t] + "(" + o.ref + ")"
	return operand{field: &field{name: ref, kind: k, readers: []reader{r}}, ref: ref, kind: k, of: &o, by: t}
}

// appendText appends the value of an operand of text in a row; ok is false
// where the row does not have it.
func (o *operand) appendText(dst []byte, r *row) (out []byte, ok bool) {
	rd, start := o.reader(r.b.Class()), len(dst)
	switch {
	case rd == nil:
		return dst, false
	case rd.isConst:
		dst = append(dst, rd.constant...)
	case rd.isColumn:
		dst = append(dst, r.str(rd.column)...)
	default:
		dst = rd.text(dst, r, &o.arg)
	}
	return dst, len(dst) > start || o.empty()
}

func changed(o operand, t transform) func(dst []byte, r *row, _ *argument) []byte {
	return func(dst []byte, r *row, _ *argument) []byte {
		start := len(dst)
		dst, ok := o.appendText(dst, r)
		if !ok {
			return dst[:start]
		}
		s, ok := t.apply(string(dst[start:]))
		if !ok {
			return dst[:start]
		}
		return append(dst[:start], s...)
	}
}

func lengthOf(o operand) func(r *row, _ *argument) (int64, bool) {
	if o.kind == kindText {
		return func(r *row, _ *argument) (int64, bool) {
			var ok bool
			r.scratch, ok = o.appendText(r.scratch[:0], r)
			return int64(len(r.scratch)), ok
		}
	}
	return func(r *row, _ *argument) (int64, bool) {
		n := 0
		switch rd := o.reader(r.b.Class()); {
		case rd == nil:
		case rd.isColumn:
			n = r.b.ListLen(rd.column, r.i)
		default:
			rd.list(&r.list, r, &o.arg)
			n = r.list.len()
		}
		return int64(n), n > 0
	}
}
