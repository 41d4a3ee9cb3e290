package rules

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"picket/internal/batch"
	"picket/internal/correlation"
	"picket/internal/store/storetest"
	"picket/schemas"
)

// sqlClasses are those that rules are for.
var sqlClasses = append(schemas.NodeClasses(), schemas.Audit)

// tables are stored events, to which the engines are held.
type tables struct {
	*storetest.Tables
	t *testing.T
}

func newTables(t *testing.T) *tables { return &tables{storetest.Start(t), t} }

// eventID is the id of row i of all that was stored of a class.
func eventID(c schemas.Class, i int) [16]byte {
	return schemas.Hash128("sql", c.String(), strconv.Itoa(i))
}

// store publishes rows, waits until the tables have them, and returns them as
// the detector would have decoded them.
func (s *tables) store(b *batch.Batch) []*batch.Batch {
	s.t.Helper()
	stored := s.Publish("c1", "n1", b)
	s.Wait()
	return stored
}

// query returns the lines of a statement's result.
func (s *tables) query(sql string) []string { return s.Query(sql, "TabSeparated") }

// hold compares the two engines over all stored rows of a class: which rows
// each rule matches, and what its output says of them; of rules about several
// events, which rows feed their memory and with what.
func (s *tables) hold(c schemas.Class, set *Set, batches []*batch.Batch, ids map[string]int) (matched int) {
	s.t.Helper()
	type part struct {
		rule string
		step int // -1: the rule is about one event
	}
	type hit struct {
		part
		row int
	}
	type hunt struct {
		part
		rule *Rule // whose condition it is
		feed Step
	}
	var hunted []hunt
	for _, r := range set.Rules() {
		if r.Correlation == nil && slices.Contains(r.Classes, c) {
			hunted = append(hunted, hunt{part{r.Name, -1}, r, Step{}})
		}
		for i, st := range r.Steps() {
			if slices.Contains(st.Rule.Classes, c) {
				hunted = append(hunted, hunt{part{r.Name, i}, st.Rule, st})
			}
		}
	}
	fed := func(m correlation.Match) string { return fmt.Sprintf("%q %q %q %d", m.Key, m.Value, m.Fields, m.Step) }
	want := make(map[hit]string)
	ev := set.NewEvaluator()
	for _, b := range batches {
		row := func(i int) int { return ids[schemas.FormatID(must16(b, i))] }
		ev.EvalFeeds(b, func(m Match) { want[hit{part{m.Rule.Name, -1}, row(m.Row)}] = m.Output() }, func(f Feed) {
			if m, ok := f.Record(); ok {
				want[hit{part{f.Rule.Name, m.Step}, row(f.Row)}] = fed(m)
			}
		})
	}
	const many = 40 // rules in one query
	for from := 0; from < len(hunted); from += many {
		some := hunted[from:min(from+many, len(hunted))]
		var sql strings.Builder
		sql.WriteString("SELECT event_id")
		w := NewSQL(c)
		for _, h := range some {
			if h.step >= 0 {
				where, cells, err := w.Step(h.feed)
				if err != nil {
					s.t.Fatalf("%v\n%s", err, h.rule.Condition)
				}
				if where == "0" {
					cells = "['']"
				}
				fmt.Fprintf(&sql, ",\nif(%s, concat('=', arrayStringConcat(%s, ',')), '')", where, cells)
				continue
			}
			where, err := w.Condition(h.rule)
			if err != nil {
				s.t.Fatalf("%v\n%s", err, h.rule.Condition)
			}
			output, err := w.Output(h.rule)
			if err != nil {
				s.t.Fatalf("%v\n%s", err, h.rule.OutputTemplate)
			}
			fmt.Fprintf(&sql, ",\nif(%s, concat('=', hex(%s)), '')", where, output)
		}
		sql.WriteString("\nFROM " + w.From("1") + "\n" + Settings)
		for _, line := range s.query(sql.String()) {
			cells := strings.Split(line, "\t")
			row := ids[cells[0]]
			for i, got := range cells[1:] {
				h := some[i]
				output, is := want[hit{h.part, row}]
				delete(want, hit{h.part, row})
				if is {
					matched++
				}
				if is != (got != "") {
					where, _ := NewSQL(c).Condition(h.rule)
					s.t.Fatalf("%s row %d: the detector says %v, ClickHouse %v\n%s %v\n%.4000s\n%s", c, row, is, got != "", h.rule.Condition, h.part, where, s.show(c, cells[0]))
				}
				if !is || strings.Contains(h.rule.OutputTemplate, "%jevt.obj") { // not in SQL
					continue
				}
				if got = got[1:]; h.step >= 0 {
					m, err := h.feed.Match(0, [16]byte{}, strings.Split(got, ","))
					if err != nil || fed(m) != output {
						s.t.Fatalf("%s row %d: the detector feeds %v\n%s, ClickHouse\n%s\n%v\n%s", c, row, h.part, output, fed(m), err, s.show(c, cells[0]))
					}
					continue
				}
				if text, err := hex.DecodeString(got); err != nil || string(text) != output {
					s.t.Fatalf("%s row %d: the detector's output is\n%q, ClickHouse's\n%q\n%s\n%s", c, row, output, text, h.rule.OutputTemplate, s.show(c, cells[0]))
				}
			}
		}
	}
	if len(want) > 0 {
		s.t.Fatalf("%s: %d matches of rows that ClickHouse does not have", c, len(want))
	}
	return matched
}

func must16(b *batch.Batch, row int) [16]byte {
	id, _ := b.Bytes16(schemas.EventID, row)
	return id
}

func (s *tables) show(c schemas.Class, id string) string {
	return strings.Join(s.Query("SELECT * FROM "+c.Table()+" WHERE event_id = '"+id+"'", "Vertical"), "\n")
}

// hostile are values of events that one of the engines might read otherwise.
var hostile = []string{"sh", "a", "b", "SH", "/etc/a", "/etc", "s", "sh a", "<NA>", "//etc/a", "/etc/", "/", "//", "etc/a", "a.b.c", ".", "..", "/a/../b", "aé", "É", "ß",
	"a\nb", "a\tb", "\\", "'", `a"b`, "%", "_", "a%41", "\x00", "a\x00b", "\xff", "a\xffb", "\xe2\x82", "\xed\xa0\x80", "€", "c2g=", "YQ==", "Y\nQ==", "YQ=", "/tmp/x y", "0", "7", "-1",
	"KernelK", "ſ", "Deployment", "socket", "10.0.0.1", strings.Repeat("long/", 300), "[a]", "a*", "\u2028", "ipv4"}

var documents = []string{
	`{"metadata":{"name":"sh"},"spec":{"type":"a","hostPID":true,"containers":[{"image":"a:1","args":["sh","b"],"command":["a"],"securityContext":{"privileged":true,"runAsUser":0,"capabilities":{"add":["SYS_ADMIN","a"]}},"ports":[{"hostPort":80},{"hostPort":7}]},{"image":"r:5/b@sha256:0"},{"image":"r:5/b"}],"volumes":[{"hostPath":{"path":"/etc/a"}},{"name":"x"}]}}`,
	`{"spec":{"containers":[{"image":"sh","securityContext":{"privileged":false}},null,7,"a",{"image":7}],"hostPID":null,"type":["a"]}}`,
	`not json`, `{"data":{"a":"\u0073h"}}`, `{"data":{"a":"\u0073h\u003c","b":[1,-2,{"c":null}]},"metadata":{"name":"\u00e9\n\ud83d\ude00\/"}}`, `[1,2]`, `[[1],"a"]`, `"a"`, `7`, `null`, `{}`, `{"":{"":"a"}}`,
	`{"roleRef":{"name":"a"},"subjects":[{"kind":"User","name":"sh"},{"name":"a"}],"rules":[{"verbs":["*","get"],"resources":["a"],"apiGroups":[""]},{"verbs":[]}]}`,
	`{"spec":{"containers":{"0":{"image":"key"}},"replicas":3}}`, `{"a":1,"a":2,"metadata":{"name":"x","name":"y"}}`,
	`{"spec":{"ports":[{"port":1.5,"x":1e3},{"port":-0}],"replicas":1.50}}`,
	`{"spec":{"ports":[1e20,1e21,-1.5e-7,0.000001,-0.0,123456789012345678901.5,18446744073709551615,-9223372036854775808,5e-324,1e-400,{"\u2028\u001f \u0000/\b<":"\"\\"},"` + "\u2028\u2029\u007f" + `"]}}`, `{"a":`, "{\"data\":\"a\\u0000b\"}",
}

// hostileBatch fills every column with values that are hard to read, some absent.
func (g *sqlConditions) batch(c schemas.Class, from, rows int) *batch.Batch {
	columns := schemas.Columns(c)
	b := batch.NewBuilder(c, columns)
	pick := func(from []string) string { return from[g.rnd.IntN(len(from))] }
	actions := map[schemas.Class][]string{
		schemas.Process: {"exec", "fork", "exit"}, schemas.File: {"open", "rename", "unlink", "rmdir", "mkdir", "link", "symlink", "chmod", "chown", "mknod"},
		schemas.Network: {"connect", "accept", "socket", "bind", "listen", "send", "close", "dup"}, schemas.Kernel: {"mount", "ptrace"}, schemas.DNS: {"query", "response"}, schemas.Audit: {"audit"},
	}
	word := func() string {
		if g.rnd.IntN(4) == 0 { // any bytes, of which many belong together
			s := make([]byte, g.rnd.IntN(6))
			for i := range s {
				s[i] = "\x00a/A.Z*\\'\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xed\xa0\xff"[g.rnd.IntN(21)]
			}
			return string(s)
		}
		return pick(hostile)
	}
	for i := range rows {
		b.Bytes16(schemas.EventID, eventID(c, from+i))
		for _, id := range columns {
			if id == schemas.EventID || g.rnd.IntN(5) == 0 {
				continue
			}
			switch id {
			case schemas.Action:
				b.Str(id, pick(actions[c]))
				continue
			case schemas.Syscall:
				if calls := classSyscalls[c]; calls != nil {
					b.Str(id, pick(calls))
				}
				continue
			case schemas.NetDirection:
				b.Str(id, pick([]string{"inbound", "outbound"}))
				continue
			case schemas.NetType:
				b.Str(id, pick([]string{"ipv4", "ipv6", "unix", "packet"}))
				continue
			case schemas.AuditURI:
				b.Str(id, pick([]string{"/api", "/api?command=sh&x=%20a", "/api?command=a&command=b", "/a?command=&command=%zz&command=a%2", "?command=%41+b&x", "/a?com%6dand=c?d&x=%C3%A9%"}))
				continue
			case schemas.AuditRequest, schemas.AuditResponse, schemas.AuditUserExtra:
				b.Str(id, pick(documents))
				continue
			case schemas.FileFlags:
				b.Uint32(id, g.rnd.Uint32()&0o37777777)
				continue
			case schemas.FileMode:
				b.Uint32(id, []uint32{0o100644, 0o40755, 0o10000, 0o140777, 0, 7}[g.rnd.IntN(6)])
				continue
			case schemas.Result:
				b.Int64(id, []int64{0, 3, -1, -2, -13, -115, -4095, -9999, -9223372036854775808, 9223372036854775807}[g.rnd.IntN(10)])
				continue
			case schemas.EventTime:
				b.Int64(id, []int64{-2, 0, 5, 1_800_000_000_123_456_789, 1_800_000_000_120_000_000, 1_799_999_999_000_000_000}[g.rnd.IntN(6)])
				continue
			case schemas.AncestorPIDs:
				b.List(id, []string{"12", "+7", "a", "", "007", "99999999999999999999", " 1", "-9223372036854775808"}[g.rnd.IntN(7):])
				continue
			}
			switch id.Field().Type {
			case schemas.Text, schemas.Name:
				if v := g.values[id]; len(v) > 0 && g.rnd.IntN(2) == 0 {
					b.Str(id, v[g.rnd.IntN(len(v))])
					continue
				}
				b.Str(id, word())
			case schemas.Uint32:
				b.Uint32(id, []uint32{0, 1, 80, 160, 240, 400, 0xffffffff, 0o7777}[g.rnd.IntN(8)])
			case schemas.Uint64:
				b.Uint64(id, []uint64{0, 1, 2, 5, 1 << 63, 1<<64 - 1, 0xa80425fb}[g.rnd.IntN(7)])
			case schemas.Int64, schemas.Time:
				b.Int64(id, int64(g.rnd.IntN(6)-2))
			case schemas.Bool:
				b.Bool(id, g.rnd.IntN(2) == 0)
			case schemas.IP:
				b.Bytes16(id, [][16]byte{batch.IPv4([4]byte{10, 0, 0, 1}), batch.IPv4([4]byte{198, 51, 100, 7}), {15: 1}, {12: 1}, {13: 1, 15: 2}, {0: 0x20, 1: 1, 15: 9}, {0: 0x20, 1: 1, 7: 5, 15: 9}, {1: 1, 3: 1, 5: 1, 7: 1, 11: 1, 13: 1, 15: 1}, batch.IPv4([4]byte{})}[g.rnd.IntN(9)])
			case schemas.List, schemas.Names:
				l := make([]string, g.rnd.IntN(4)*(1+8*(g.rnd.IntN(20)/19)))
				for i := range l {
					l[i] = word()
					if id.Field().Type == schemas.Names {
						l[i] = strings.ReplaceAll(l[i], "\x00", "") // ends an element
					}
				}
				b.List(id, l)
			case schemas.Map:
				m := map[string]string{}
				for range g.rnd.IntN(3) {
					m[pick([]string{"app", "x", "LD_PRELOAD", "flags", "path", "fd", "a", "authentication.openshift.io/username"})] = word()
				}
				b.Map(id, m)
			}
		}
		b.EndRow()
	}
	return b.Batch()
}

// sqlConditions makes conditions over the fields of a class: those of the
// evaluator's own test, and the operators that it has no reference for.
type sqlConditions struct {
	conditions // words have their escapes
	class      schemas.Class
	plain      []string // words as they are
	// values are those that rules compare columns with, so that rows match them.
	values map[schemas.FieldID][]string
}

// learn takes the values that the rules of a set compare columns with.
func (g *sqlConditions) learn(set *Set) {
	take := func(r *Rule) {
		if r.cond == nil {
			return
		}
		for at := range r.cond.comparisons() {
			if at.pred.missing != "" {
				continue
			}
			if r := at.pred.operand.reader(g.class); r != nil && r.isColumn && len(at.pred.values) > 0 {
				g.values[r.column] = append(g.values[r.column], at.pred.values...)
			}
		}
	}
	for _, r := range set.Rules() {
		take(r)
		for _, st := range r.Steps() {
			take(st.Rule)
		}
	}
}

// quoted is a word as it stands in a condition.
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`, "\r", `\r`).Replace(s) + `"`
}

func (g *sqlConditions) compare() string {
	if g.rnd.IntN(2) == 0 {
		return g.conditions.compare()
	}
	name := g.pick(g.fields)
	f := fieldTable[name]
	k := f.kind
	switch {
	case f.arg == argMayIdx && g.rnd.IntN(2) == 0:
		name, k = fmt.Sprintf("%s[%d]", name, g.rnd.IntN(4)), f.withArg
	case f.arg == argMayName && g.rnd.IntN(2) == 0:
		name, k = name+"[LD_PRELOAD]", f.withArg
	case f.arg == argKey:
		name, k = name+"["+g.pick(map[string][]string{
			"ka.uri.param": {"command", "x"}, "k8s.pod.label": {"app", "x"}, "k8s.ns.label": {"team", "x"},
			"jevt.value": {"/stage", "/requestObject/spec/containers/0/image", "/requestObject/spec/containers/1", "/requestObject/spec", "/requestObject/0/0", "/user/groups/1", "/responseStatus/code",
				"/requestObject/spec/replicas", "/requestObject/data/a", "/requestObject/data", "/annotations/a", "/stageTimestamp", "/requestObject/", "/requestObject/spec/ports", "/responseObject/metadata/name", "/user/extra/a", "/requestObject/+0", "/kind", "/user/groups", "/sourceIPs"},
		}[f.name])+"]", kindText
	}
	switch k {
	case kindText, kindList:
		if f.name == "evt.type" {
			break
		}
		if k == kindText {
			for g.rnd.IntN(3) == 0 {
				name = g.pick([]string{"tolower", "toupper", "basename", "b64"}) + "(" + name + ")"
			}
		}
		word := func() string { return g.pick(g.plain) }
		other := g.pick([]string{"evt.action", "evt.time.s", "evt.hostname", "evt.source"})
		switch g.rnd.IntN(11) {
		case 8:
			return "len(" + name + ") " + g.pick([]string{"=", "!=", "<", "<=", ">", ">="}) + " " + g.pick([]string{"0", "1", "2", "5", "40"})
		case 9:
			if k == kindText {
				return name + g.pick([]string{" = ", " != ", " contains ", " icontains ", " startswith ", " endswith ", " in "}) + g.pick([]string{"val(", "toupper(", "b64(", "basename("}) + other + ")"
			}
		case 10:
			if k == kindText {
				return "len(" + name + ") " + g.pick([]string{"=", "!=", "<", ">="}) + " len(" + other + ")"
			}
		case 0:
			return name + " regex " + quoted(g.pick([]string{".*", "", "a|sh", "(?i)SH.*", "[^a]+", "[[:alpha:]]*", `\w+ \w`, ".", "..", "a.b", "(?s)a.b", "^a$", `(?m)^b$`, `\x00`, "é|É", "(?i)é", "(?i)k.*", `\pL+`, `[^\n]*`, `.*/a`, `a?b?.?`, `\x{FFFD}`, `\bsh\b.*`, `.{3}`, `\D{1,4}`}))
		case 1:
			return name + g.pick([]string{" glob ", " iglob "}) + quoted(g.pick([]string{"*[a-s]*", "[!a]*", "?", "??", "*?", "a[", "*\\*", "[]a]", "*.[a-z].*", "/*/a", "*", "**", "", "[^/]*", "\\a", "*É", "a\\", "[b-a]", "S?", "*/", "[[]a]"}))
		case 2:
			return name + g.pick([]string{" bcontains ", " bstartswith "}) + g.pick([]string{"00", "ff", "61", "2f65", "c3a9", `""`, "27", "5c"})
		case 3:
			items := make([]string, 1+g.rnd.IntN(3))
			for i := range items {
				items[i] = quoted(g.pick([]string{"/etc", "/", "", "/etc/", "//etc", "/*/a", "/e?c", "/etc/*", "etc", "/etc//a", "*", "/[!a]*", "/tmp/x y", "long/long", "*/a", "/*", "//", "/etc/*/"}))
			}
			return name + " pmatch (" + strings.Join(items, ", ") + ")"
		case 4:
			return name + " in ()"
		case 5:
			return name + " exists"
		case 6:
			items := make([]string, g.rnd.IntN(12)+1)
			for i := range items {
				items[i] = quoted(word())
			}
			return name + g.pick([]string{" in ", " intersects "}) + "(" + strings.Join(items, ", ") + ")"
		}
		return name + " " + g.pick([]string{"=", "!=", "contains", "icontains", "startswith", "endswith"}) + " " + quoted(word())
	case kindInt, kindUint:
		n := g.pick([]string{"0", "1", "0x50", "80", "007", "4294967295", "9223372036854775807"})
		if k == kindInt && g.rnd.IntN(3) == 0 {
			n = g.pick([]string{"-1", "-13", "-9223372036854775808", "7", "12"})
		} else if k == kindUint && g.rnd.IntN(3) == 0 {
			n = "18446744073709551615"
		}
		if g.rnd.IntN(4) == 0 {
			return name + " in (" + n + ", 5, 400)"
		}
		return name + " " + g.pick([]string{"=", "!=", "<", "<=", ">", ">="}) + " " + n
	case kindBool:
		return name + " in (" + g.pick([]string{"true", "false", "true, false"}) + ")"
	case kindIP:
		return name + " in (" + g.pick([]string{"10.0.0.1", "::", "::ffff:10.0.0.1", "::1:0, 2001::9", "0.0.0.0"}) + ")"
	case kindNet:
		return name + g.pick([]string{" = ", " != "}) + g.pick([]string{"10.0.0.0/8", "::/0", "0.0.0.0/0", "2001::/16", "::ffff:0:0/96", "::/96", "::1", "198.51.100.7/31", "2001:0:0:5::/63"})
	}
	return name + " exists"
}

func (g *sqlConditions) gen(depth int) string { return g.tree(depth, g.compare) }

// load makes a set of random conditions. Those with what ClickHouse cannot
// evaluate are left out: TestSQLFields has the list of it.
func (g *sqlConditions) load(t *testing.T, n int) *Set {
	type keys struct {
		By    []string
		Value []string `yaml:",omitempty"`
		Learn string
	}
	type entry struct {
		Rule, Desc, Output, Priority, Source, Condition string
		Warn                                            bool  `yaml:"warn_evttypes"`
		Baseline                                        *keys `yaml:",omitempty"`
	}
	entries := make([]entry, n)
	source := "syscall"
	if g.class == schemas.Audit {
		source = "k8s_audit"
	}
	var everywhere []string // fields that all events of the source have
	for _, name := range g.fields {
		if f := fieldTable[name]; f.classes()&classesOf[source] == classesOf[source] && f.arg == fieldTable["proc.name"].arg {
			everywhere = append(everywhere, name)
		}
	}
	for i := range entries {
		entries[i] = entry{Rule: fmt.Sprint("r", i), Desc: "d", Output: "o 100%%'", Priority: "INFO", Source: source, Condition: g.gen(3)}
		if i%3 == 0 { // a third of them feed a memory
			entries[i].Baseline = &keys{By: []string{g.pick(everywhere)}, Value: []string{g.pick(everywhere), g.pick(everywhere)}[i%2:], Learn: "1s"}
		}
		for range g.rnd.IntN(4) {
			name := g.pick(g.fields)
			switch f := fieldTable[name]; {
			case f.arg == argMayIdx && g.rnd.IntN(2) == 0:
				name += "[1]"
			case f.arg == argKey:
				name += "[" + map[string]string{"ka.uri.param": "command", "k8s.pod.label": "app", "k8s.ns.label": "team", "jevt.value": "/requestObject/spec/type"}[name] + "]"
			}
			entries[i].Output += " %" + name
		}
	}
	data, err := yaml.Marshal(entries)
	if err != nil {
		t.Fatal(err)
	}
	set, _, err := Load([]Source{{Name: "random.yaml", Data: data}}, Options{})
	if err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	return set
}

func seedOf(t *testing.T, name string, otherwise uint64) uint64 {
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestSQL holds ClickHouse to the evaluator: random conditions, the default
// pack and, where they are there, Falco's files, over random rows that came
// into the tables as events do. PICKET_SQL_SEED and PICKET_SQL_ROUNDS (of 40 conditions
// for each class) make another or a longer run; PICKET_BENCH_RULES names further rules.
func TestSQL(t *testing.T) {
	seed, rounds := seedOf(t, "PICKET_SQL_SEED", 1), seedOf(t, "PICKET_SQL_ROUNDS", 3)
	t.Logf("PICKET_SQL_SEED=%d PICKET_SQL_ROUNDS=%d", seed, rounds)
	s := newTables(t)
	files := []string{"../../rules"}
	for _, f := range []string{os.Getenv("PICKET_BENCH_RULES"), "../../../shared/falco-rules"} {
		if f != "" {
			if _, err := os.Stat(f); err == nil {
				files = append(files, f)
			}
		}
	}
	var packs []*Set
	for _, f := range files {
		src, err := ReadPaths(f)
		if err != nil {
			t.Fatal(err)
		}
		set, _, err := Load(src, Options{})
		if err != nil {
			t.Fatal(err)
		}
		var on strings.Builder // those that come switched off can be hunted too
		for _, r := range set.Rules() {
			fmt.Fprintf(&on, "- rule: %q\n  enabled: true\n", r.Name)
		}
		if set, _, err = Load(append(src, Source{Name: "on.yaml", Data: []byte(on.String())}), Options{}); err != nil {
			t.Fatal(err)
		}
		packs = append(packs, set)
		t.Logf("%s: %d rules", f, len(set.Rules()))
	}
	recorded := make(map[schemas.Class][]*batch.Batch)
	capture, err := os.ReadFile("../../test/testdata/capture/simulate.arrow")
	if err != nil {
		t.Fatal(err)
	}
	if err := batch.ReadCapture(capture, func(b *batch.Batch) error {
		recorded[b.Class()] = append(recorded[b.Class()], b)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s.literals(rand.New(rand.NewPCG(seed, 99)))
	for _, c := range sqlClasses {
		g := &sqlConditions{conditions: conditions{rnd: rand.New(rand.NewPCG(seed, uint64(c)))}, class: c, plain: hostileWords()}
		for _, w := range g.plain {
			q := quoted(w)
			g.words = append(g.words, q[1:len(q)-1])
		}
		g.values = make(map[schemas.FieldID][]string)
		for _, p := range packs {
			g.learn(p)
		}
		for _, n := range fieldNames {
			f := fieldTable[n]
			if f.classes()&classesOf["syscall"] != 0 && c != schemas.Audit || f.classes()&classesOf["k8s_audit"] != 0 && c == schemas.Audit {
				if _, no := notInSQL[n]; !no {
					g.fields = append(g.fields, n)
				}
			}
		}
		stored := s.store(g.batch(c, 0, 400))
		for _, b := range recorded[c] {
			stored = append(stored, s.store(b)...)
		}
		ids := make(map[string]int)
		for _, b := range stored {
			for i := range b.Rows() {
				ids[schemas.FormatID(must16(b, i))] = len(ids)
			}
		}
		start, matched := time.Now(), 0
		for _, p := range packs {
			matched += s.hold(c, p, stored, ids)
		}
		ofPacks := matched
		for range rounds {
			matched += s.hold(c, g.load(t, 40), stored, ids)
		}
		t.Logf("%s: %d events, %d matches of packs, %d of random conditions, %s", c, len(ids), ofPacks, matched-ofPacks, time.Since(start).Round(time.Millisecond))
		if matched == ofPacks {
			t.Errorf("%s: no condition ever matched: the test tests nothing", c)
		}
	}
}

// hostileWords are those of hostile that a rule file, which is UTF-8, can hold.
func hostileWords() (out []string) {
	for _, w := range hostile {
		if strings.ToValidUTF8(w, "") == w && !strings.ContainsAny(w, "\x00\u2028") {
			out = append(out, w)
		}
	}
	return out
}

// literals holds ClickHouse to reading back what sqlString was given: any bytes.
func (s *tables) literals(rnd *rand.Rand) {
	s.t.Helper()
	var all [256]byte
	for i := range all {
		all[i] = byte(i)
	}
	values := []string{string(all[:]), "", `\`, `\'`, `'); DROP TABLE process --`, `\x41`, "{a:String}", "\\"}
	for range 300 {
		v := make([]byte, rnd.IntN(12))
		for i := range v {
			v[i] = `'\"{}-/*x0N`[rnd.IntN(11)]
			if rnd.IntN(2) == 0 {
				v[i] = byte(rnd.IntN(256))
			}
		}
		values = append(values, string(v))
	}
	sql := make([]string, len(values))
	for i, v := range values {
		sql[i] = "hex(" + sqlString(v) + ")"
	}
	got := strings.Split(s.query("SELECT " + strings.Join(sql, ", "))[0], "\t")
	for i, v := range values {
		if want := strings.ToUpper(hex.EncodeToString([]byte(v))); got[i] != want {
			s.t.Errorf("literal of %q reads as %s", v, got[i])
		}
	}
}

// TestSQLFields: every field is in SQL in every class that has it, with and
// without an argument, or in the table of those that cannot be.
func TestSQLFields(t *testing.T) {
	for _, name := range fieldNames {
		f := fieldTable[name]
		if f.either[0] != "" {
			continue // a comparison of two others
		}
		refs := []fieldRef{{name: name}}
		switch f.arg {
		case argIndex, argMayIdx:
			refs = append(refs, fieldRef{name: name, hasArg: true, arg: "0"}, fieldRef{name: name, hasArg: true, arg: "2"})
		case argMayName:
			refs = append(refs, fieldRef{name: name, hasArg: true, arg: "X"})
		case argKey:
			refs = []fieldRef{{name: name, hasArg: true, arg: "x"}}
			if f.bind != nil {
				refs = nil
				for _, at := range slices.Concat(keysOf(pointerColumns), keysOf(pointerLists), []string{"/user/groups/0", "/annotations/x", "/responseStatus/code", "/stageTimestamp", "/kind", "/apiVersion", "/requestObject/a", "/user/extra/x"}) {
					refs = append(refs, fieldRef{name: name, hasArg: true, arg: at})
				}
			}
		}
		for _, ref := range refs {
			o, _, err := resolve(ref)
			if err != nil {
				if f.arg == argIndex {
					continue
				}
				t.Fatal(err)
			}
			for _, c := range sqlClasses {
				_, ok := o.sql(c)
				if _, not := notInSQL[name]; ok == not && o.reader(c) != nil {
					t.Errorf("field %s, %s events: in SQL %v, in the table of those that are not %v: give it an entry in sqlFields or in notInSQL", ref, c, ok, not)
				}
			}
		}
	}
	page, err := os.ReadFile("../../docs/hunting.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, why := range notInSQL {
		if fieldTable[name] == nil {
			t.Errorf("notInSQL has %s, which is no field", name)
		}
		if line := "| `" + name + "` | " + why + " |\n"; !strings.Contains(string(page), line) {
			t.Errorf("docs/hunting.md lacks the line %s", line)
		}
	}
	for name := range sqlFields {
		if fieldTable[name] == nil {
			t.Errorf("sqlFields has %s, which is no field", name)
		}
	}
}

// TestNotInSQL: the error names rule, field and class.
func TestNotInSQL(t *testing.T) {
	set, _, err := Load([]Source{{Name: "a.yaml", Data: []byte("- rule: r\n  desc: d\n  output: o\n  priority: INFO\n  source: k8s_audit\n  condition: jevt.obj contains x\n")}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = NewSQL(schemas.Audit).Condition(set.Rules()[0])
	var not *NotInSQL
	if !errors.As(err, &not) || not.Rule != "r" || not.Field != "jevt.obj" || not.Class != schemas.Audit {
		t.Fatalf("the error is %v", err)
	}
	if s, err := NewSQL(schemas.Process).Condition(set.Rules()[0]); s != "0" || err != nil {
		t.Fatalf("in a class that the rule is not for: %q, %v", s, err)
	}
}
