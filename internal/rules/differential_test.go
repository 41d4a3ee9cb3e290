package rules

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow/go/v16/arrow"
	"github.com/apache/arrow/go/v16/arrow/array"
	"github.com/apache/arrow/go/v16/arrow/ipc"
	"github.com/apache/arrow/go/v16/arrow/memory"

	"picket/internal/batch"
	"picket/schemas"
)

// reference evaluates a syntax tree for one row in the plainest way: no
// columns, no programs, no sharing.
type reference struct {
	t      *testing.T
	class  schemas.Class
	macros map[string]*expr
	r      *row
}

func (ref *reference) eval(e *expr) bool {
	switch e.kind {
	case exprAnd:
		return !slices.ContainsFunc(e.kids, func(k *expr) bool { return !ref.eval(k) })
	case exprOr:
		return slices.ContainsFunc(e.kids, ref.eval)
	case exprNot:
		return !ref.eval(e.kids[0])
	case exprName:
		return ref.eval(ref.macros[e.name])
	}
	return ref.compare(e.cmp, e.cmp.field.name)
}

func (ref *reference) compare(cmp *comparison, name string) bool {
	f := fieldTable[name]
	if f.either[0] != "" {
		a, b := ref.compare(cmp, f.either[0]), ref.compare(cmp, f.either[1])
		if cmp.op == opNe {
			return a && b
		}
		return a || b
	}
	field := cmp.field
	field.name = name
	o, _, err := resolve(field)
	if err != nil {
		ref.t.Fatal(err)
	}
	values := make([]string, len(cmp.values))
	for i, v := range cmp.values {
		values[i] = v.text
	}
	if o.kind == kindList {
		return ref.compareList(cmp, &o, values)
	}
	got, ok := o.render(ref.r)
	if !ok {
		return false
	}
	change := func(s string, ts []transform) (string, bool) {
		for _, t := range ts {
			if t == length {
				s = fmt.Sprint(len(s))
				o.kind = kindUint
				continue
			}
			if s, ok = t.apply(s); !ok || s == "" {
				return "", false
			}
		}
		return s, true
	}
	if got, ok = change(got, field.transforms); !ok {
		return false
	}
	if cmp.rhs != nil {
		rhs, _, err := resolve(*cmp.rhs)
		if err != nil {
			ref.t.Fatal(err)
		}
		other, ok := rhs.render(ref.r)
		if !ok {
			return false
		}
		if other, ok = change(other, cmp.rhs.transforms); !ok {
			return false
		}
		values = []string{other}
	}
	if cmp.op == opExists {
		return true
	}
	textual := f.textual && slices.Contains(textOperators, cmp.op) && !slices.Contains(numberOperators, cmp.op)
	switch o.kind {
	case kindInt, kindUint:
		if !textual {
			return compareNumbers(ref.t, cmp.op, got, values)
		}
	case kindIP, kindNet:
		in := slices.ContainsFunc(values, func(v string) bool {
			addr := netip.MustParseAddr(got)
			if p, err := netip.ParsePrefix(v); err == nil {
				return p.Contains(addr)
			}
			return netip.MustParseAddr(v) == addr
		})
		return in != (cmp.op == opNe)
	case kindBool:
		in := slices.Contains(values, got)
		return in != (cmp.op == opNe)
	}
	return compareText(ref.t, cmp.op, got, values)
}

func (ref *reference) compareList(cmp *comparison, o *operand, values []string) bool {
	var elems []string
	rd := o.reader(ref.class)
	switch {
	case rd == nil:
	case rd.isColumn:
		elems = slices.Collect(ref.r.b.List(rd.column, ref.r.i))
	default:
		var l list
		rd.list(&l, ref.r, &o.arg)
		for i := range l.len() {
			elems = append(elems, string(l.at(i)))
		}
	}
	if cmp.op == opExists || len(elems) == 0 {
		return len(elems) > 0
	}
	match := func(s string) bool { return compareText(ref.t, cmp.op, s, values) }
	if cmp.op == opIn && !o.field.anyIn {
		return !slices.ContainsFunc(elems, func(s string) bool { return !match(s) })
	}
	return slices.ContainsFunc(elems, match)
}

func compareNumbers(t *testing.T, op operator, got string, values []string) bool {
	var g int64
	if _, err := fmt.Sscan(got, &g); err != nil {
		t.Fatalf("%q is no number", got)
	}
	for _, v := range values {
		var w int64
		if _, err := fmt.Sscan(v, &w); err != nil {
			t.Fatal(err)
		}
		switch {
		case op == opEq || op == opIn || op == opIntersects:
			if g == w {
				return true
			}
		case op == opNe && g != w, op == opLt && g < w, op == opLe && g <= w, op == opGt && g > w, op == opGe && g >= w:
			return true
		}
	}
	return false
}

func compareText(t *testing.T, op operator, got string, values []string) bool {
	switch op {
	case opEq:
		return got == values[0]
	case opNe:
		return got != values[0]
	case opContains:
		return strings.Contains(got, values[0])
	case opIContains:
		return strings.Contains(strings.ToLower(got), strings.ToLower(values[0]))
	case opStartsWith:
		return strings.HasPrefix(got, values[0])
	case opEndsWith:
		return strings.HasSuffix(got, values[0])
	case opIn, opIntersects:
		return slices.Contains(values, got)
	case opPmatch:
		return slices.ContainsFunc(values, func(v string) bool {
			return got == v || strings.HasPrefix(got, strings.TrimSuffix(v, "/")+"/")
		})
	case opGlob:
		return slowGlob(values[0], got)
	}
	t.Fatalf("no reference for %q", op)
	return false
}

// slowGlob is glob by recursion, for * and ? only.
func slowGlob(p, s string) bool {
	switch {
	case p == "":
		return s == ""
	case p[0] == '*':
		return slowGlob(p[1:], s) || s != "" && slowGlob(p, s[1:])
	}
	return s != "" && (p[0] == '?' || p[0] == s[0]) && slowGlob(p[1:], s[1:])
}

// conditions makes conditions at random over the fields of a class.
type conditions struct {
	rnd    *rand.Rand
	fields []string
	words  []string
}

func (g *conditions) pick(from []string) string { return from[g.rnd.IntN(len(from))] }

func (g *conditions) gen(depth int) string {
	return g.tree(depth, func() string {
		if depth > 0 && g.rnd.IntN(5) == 0 {
			return g.pick([]string{"m0", "m1", "m2"})
		}
		return g.compare()
	})
}

// tree makes a condition of at most depth levels with leaves of leaf.
func (g *conditions) tree(depth int, leaf func() string) string {
	switch n := g.rnd.IntN(8); {
	case depth > 0 && n < 3:
		parts := make([]string, 2+g.rnd.IntN(3))
		for i := range parts {
			parts[i] = g.tree(depth-1, leaf)
		}
		return "(" + strings.Join(parts, g.pick([]string{" and ", " or "})) + ")"
	case depth > 0 && n == 3:
		return "not " + g.tree(depth-1, leaf)
	}
	return leaf()
}

func (g *conditions) compare() string {
	name := g.pick(g.fields)
	f := fieldTable[name]
	k := f.kind
	switch f.arg {
	case argMayIdx:
		if g.rnd.IntN(2) == 0 {
			name += fmt.Sprintf("[%d]", g.rnd.IntN(4))
			k = f.withArg
		}
	case argKey:
		name += "[" + g.pick(map[string][]string{
			"ka.uri.param": {"command", "x"}, "jevt.value": {"/stage", "/requestObject/spec/containers/0/image", "/user/groups/1", "/responseStatus/code"},
			"k8s.pod.label": {"app", "x"},
			"k8s.ns.label":  {"team", "x"},
		}[f.name]) + "]"
		k = kindText
	}
	list := func(n int, item func() string) string {
		items := make([]string, g.rnd.IntN(n)+1)
		for i := range items {
			items[i] = item()
		}
		return "(" + strings.Join(items, ", ") + ")"
	}
	word := func() string { return `"` + g.pick(g.words) + `"` }
	if g.rnd.IntN(10) == 0 {
		return name + " exists"
	}
	switch k {
	case kindInt, kindUint:
		num := func() string { return fmt.Sprint(g.rnd.IntN(6) * (1 + 79*g.rnd.IntN(2))) }
		if f.textual && g.rnd.IntN(2) == 0 {
			return name + " startswith " + num()
		}
		if g.rnd.IntN(3) == 0 {
			return name + " in " + list(4, num)
		}
		return name + " " + g.pick([]string{"=", "!=", "<", "<=", ">", ">="}) + " " + num()
	case kindBool:
		return name + " " + g.pick([]string{"=", "!="}) + " " + g.pick([]string{"true", "false"})
	case kindIP:
		return name + " " + g.pick([]string{"=", "!="}) + " " + g.pick([]string{"10.0.0.1", "10.0.0.2", "::1", "198.51.100.7"})
	case kindNet:
		if g.rnd.IntN(2) == 0 {
			return name + " in (10.0.0.0/30, 198.51.100.7)"
		}
		return name + " != " + g.pick([]string{"10.0.0.0/8", "::/0", "0.0.0.0/0"})
	}
	if f.name == "evt.type" {
		return name + " in " + list(3, func() string {
			return g.pick([]string{"execve", "clone", "procexit", "open", "openat", "connect", "accept4", "ptrace"})
		})
	}
	switch g.rnd.IntN(11) {
	case 9:
		if k == kindText && !f.empty {
			return fmt.Sprintf("len(%s) %s %d", name, g.pick([]string{"=", "!=", "<", ">="}), g.rnd.IntN(8))
		}
	case 10:
		if k == kindText && !f.empty {
			return "tolower(" + name + ")" + g.pick([]string{" = ", " != ", " contains ", " endswith "}) + g.pick([]string{"tolower(", "basename("}) + g.pick([]string{"evt.action", "evt.hostname"}) + ")"
		}
	case 0:
		return name + " in " + list(6, word)
	case 1:
		return name + " intersects " + list(3, word)
	case 2:
		return name + " pmatch " + list(2, word)
	case 3:
		return name + " glob " + `"` + g.pick([]string{"*", "", "/"}) + g.pick(g.words) + g.pick([]string{"*", "?", ""}) + `"`
	case 4:
		if k == kindText && f.bind == nil {
			return g.pick([]string{"tolower(", "toupper(", "basename("}) + name + ") = " + word()
		}
	case 5:
		if k == kindText {
			return name + g.pick([]string{" = ", " != ", " contains ", " startswith ", " endswith "}) + "val(" + g.pick([]string{"evt.action", "evt.time.s", "evt.hostname"}) + ")"
		}
	}
	return name + " " + g.pick([]string{"=", "!=", "contains", "icontains", "startswith", "endswith"}) + " " + word()
}

// randomBatch fills every column of a class with values from few, some absent.
func randomBatch(rnd *rand.Rand, class schemas.Class, rows int, words []string) *batch.Batch {
	columns := schemas.Columns(class)
	b := batch.NewBuilder(class, columns)
	word := func() string { return words[rnd.IntN(len(words))] }
	for range rows {
		for _, id := range columns {
			if rnd.IntN(4) == 0 {
				continue
			}
			switch id {
			case schemas.Syscall:
				if calls := classSyscalls[class]; calls != nil {
					b.Str(id, calls[rnd.IntN(len(calls))])
				}
				continue
			case schemas.NetDirection:
				b.Str(id, []string{"inbound", "outbound"}[rnd.IntN(2)])
				continue
			case schemas.NetType:
				b.Str(id, []string{"ipv4", "ipv6"}[rnd.IntN(2)])
				continue
			case schemas.AuditURI:
				b.Str(id, []string{"/api", "/api?command=sh&x=%20a", "/api?command=a&command=b"}[rnd.IntN(3)])
				continue
			case schemas.AuditRequest, schemas.AuditResponse:
				b.Str(id, []string{
					`{"metadata":{"name":"sh"},"spec":{"type":"a","hostPID":true,"containers":[{"image":"a:1","args":["sh","b"],"securityContext":{"privileged":true}},{"image":"r/b@sha256:0"}],"volumes":[{"hostPath":{"path":"/etc/a"}}]}}`,
					`{"spec":{"containers":[{"image":"sh","securityContext":{"privileged":false}}],"hostPID":null}}`,
					`not json`, `{"data":{"a":"\u0073h"}}`, `[1,2]`,
				}[rnd.IntN(5)])
				continue
			}
			switch id.Field().Type {
			case schemas.Text, schemas.Name:
				b.Str(id, word())
			case schemas.Uint32:
				b.Uint32(id, uint32(rnd.IntN(6)*80))
			case schemas.Uint64:
				b.Uint64(id, uint64(rnd.IntN(6)))
			case schemas.Int64, schemas.Time:
				b.Int64(id, int64(rnd.IntN(6)-2))
			case schemas.Bool:
				b.Bool(id, rnd.IntN(2) == 0)
			case schemas.IP:
				b.Bytes16(id, [][16]byte{batch.IPv4([4]byte{10, 0, 0, 1}), batch.IPv4([4]byte{198, 51, 100, 7}), {15: 1}}[rnd.IntN(3)])
			case schemas.List, schemas.Names:
				l := make([]string, rnd.IntN(4))
				for i := range l {
					l[i] = word()
				}
				b.List(id, l)
			case schemas.Map:
				b.Map(id, map[string]string{"app": word()})
			}
		}
		b.EndRow()
	}
	return b.Batch()
}

// withNulls returns the rows of b as another program may send them: with nulls
// in any column, in dictionaries too.
func withNulls(t *testing.T, rnd *rand.Rand, b *batch.Batch) *batch.Batch {
	rb := array.NewRecordBuilder(memory.DefaultAllocator, b.Record().Schema())
	defer rb.Release()
	for i, f := range b.Record().Schema().Fields() {
		id, _ := schemas.FieldByName(f.Name)
		for row := range b.Rows() {
			if rnd.IntN(5) == 0 {
				rb.Field(i).AppendNull()
				continue
			}
			switch x := rb.Field(i).(type) {
			case *array.StringBuilder:
				x.Append(b.Str(id, row))
			case *array.BinaryDictionaryBuilder:
				if err := x.AppendString(b.Str(id, row)); err != nil {
					t.Fatal(err)
				}
			case *array.BooleanBuilder:
				x.Append(b.Bool(id, row))
			case *array.Uint32Builder:
				x.Append(uint32(b.Uint(id, row)))
			case *array.Uint64Builder:
				x.Append(b.Uint(id, row))
			case *array.Int64Builder:
				x.Append(b.Int(id, row))
			case *array.TimestampBuilder:
				x.Append(arrow.Timestamp(b.Int(id, row)))
			case *array.ListBuilder:
				x.Append(true)
				for v := range b.List(id, row) {
					x.ValueBuilder().(*array.StringBuilder).Append(v)
				}
			case *array.MapBuilder:
				x.Append(true)
				for k, v := range b.Map(id, row) {
					x.KeyBuilder().(*array.StringBuilder).Append(k)
					x.ItemBuilder().(*array.StringBuilder).Append(v)
				}
			case *array.FixedSizeBinaryBuilder:
				v, _ := b.Bytes16(id, row)
				x.Append(v[:])
			default:
				t.Fatalf("%s has a builder of %T", f.Name, x)
			}
		}
	}
	rec := rb.NewRecord()
	var buf bytes.Buffer
	w := ipc.NewWriter(&buf, ipc.WithSchema(rec.Schema()))
	if err := errors.Join(w.Write(rec), w.Close()); err != nil {
		t.Fatal(err)
	}
	out, err := batch.Decode(buf.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestDifferential holds the column engine to the reference on random
// conditions and random rows, as built, as decoded and as sliced.
func TestDifferential(t *testing.T) {
	words := []string{"sh", "a", "b", "SH", "/etc/a", "/etc", "s", "sh a", "<NA>"}
	rounds := 150
	if testing.Short() {
		rounds = 30
	}
	for _, class := range []schemas.Class{schemas.Process, schemas.File, schemas.Network, schemas.Audit} {
		t.Run(class.String(), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(7, uint64(class)))
			g := &conditions{rnd: rnd, words: words}
			source := "syscall"
			if class == schemas.Audit {
				source = "k8s_audit"
			}
			for _, n := range fieldNames {
				if fieldTable[n].classes()&classesOf[source] != 0 {
					g.fields = append(g.fields, n)
				}
			}
			matched := 0
			for round := range rounds {
				matched += differentialRound(t, g, class, source, round)
			}
			if matched == 0 {
				t.Error("no condition ever matched: the test tests nothing")
			}
		})
	}
}

func differentialRound(t *testing.T, g *conditions, class schemas.Class, source string, round int) (matched int) {
	macros := make([]string, 3)
	for i := range macros {
		macros[i] = strings.NewReplacer("m0", g.compare(), "m1", g.compare(), "m2", g.compare()).Replace(g.gen(1))
	}
	rules := make([]string, 5)
	for i := range rules {
		rules[i] = g.gen(3)
	}
	var file strings.Builder
	for i, m := range macros {
		fmt.Fprintf(&file, "- macro: m%d\n  condition: >\n    (%s)\n", i, m)
	}
	for i, c := range rules {
		fmt.Fprintf(&file, "- rule: r%d\n  desc: d\n  output: o\n  priority: INFO\n  source: %s\n  warn_evttypes: false\n  condition: >\n    %s\n", i, source, c)
	}
	set, _, err := Load([]Source{{Name: "random.yaml", Data: []byte(file.String())}}, Options{})
	if err != nil {
		t.Fatalf("%v\n%s", err, file.String())
	}
	whole := randomBatch(g.rnd, class, 200, g.words)
	batches := []*batch.Batch{whole, whole.Slice(13, 150)}
	batches = append(batches, withNulls(t, g.rnd, whole))
	encoded, err := batch.Encode(whole)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range encoded {
		d, err := batch.Decode(e.Data)
		if err != nil {
			t.Fatal(err)
		}
		batches = append(batches, d)
	}
	tree := func(s string) *expr {
		e, fault := parse(&text{value: s})
		if fault != nil {
			t.Fatal(fault)
		}
		return e
	}
	trees := map[string]*expr{}
	for i, m := range macros {
		trees[fmt.Sprintf("m%d", i)] = tree(m)
	}
	parsed := make([]*expr, len(rules))
	for i, c := range rules {
		parsed[i] = tree(c)
	}
	loaded := map[string]bool{}
	for _, r := range set.Rules() {
		loaded[r.Name] = true
	}
	ev := set.NewEvaluator()
	for n, b := range batches {
		got := make(map[string]bool)
		ev.Eval(b, func(m Match) { got[fmt.Sprint(m.Rule.Name, " ", m.Row)] = true })
		matched += len(got)
		for row0 := range b.Rows() {
			ref := &reference{t: t, class: class, macros: trees, r: &row{b: b, i: row0, docs: &docs{}}}
			for i := range rules {
				name := fmt.Sprintf("r%d", i)
				if !loaded[name] {
					continue
				}
				want := ref.eval(parsed[i])
				if got[fmt.Sprint(name, " ", row0)] != want {
					t.Fatalf("round %d, batch %d, row %d: %s is %v, want %v\n%s", round, n, row0, name, !want, want, file.String())
				}
			}
		}
	}
	return matched
}
