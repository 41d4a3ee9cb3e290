package rules

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"picket/internal/batch"
	"picket/schemas"
)

// scanOf returns which of the matchers the automaton of all of them finds in s,
// and which it knows needles of.
func scanOf(ms []matcher, s string) (found, known, exact []bool) {
	b := newAutomatonBuilder()
	found, known, exact = make([]bool, len(ms)), make([]bool, len(ms)), make([]bool, len(ms))
	for i, m := range ms {
		var ns []needle
		ns, exact[i] = needlesOf(m)
		known[i] = len(ns) > 0
		for _, n := range ns {
			b.add(i, n)
		}
	}
	b.build().scan(s, func(node int32) { found[node] = true })
	return found, known, exact
}

// holdToMatchers fails the test unless the automaton answers as the matchers do.
func holdToMatchers(t *testing.T, ms []matcher, s string) {
	t.Helper()
	found, known, exact := scanOf(ms, s)
	for i, m := range ms {
		want := m.match(s)
		switch {
		case !known[i] && found[i]:
			t.Errorf("%T(%v) in %q: found without a needle", m, m, s)
		case known[i] && exact[i] && found[i] != want, known[i] && want && !found[i]:
			t.Errorf("%T(%v) in %q: found %v, want %v", m, m, s, found[i], want)
		}
	}
}

// matchersOf returns every matcher that has needles, for a word.
func matchersOf(w string) []matcher {
	ms := []matcher{contains(w), iContains(lowerASCII(w)), hasPrefix(w), hasSuffix(w), equals(w), underPath{w}, underPath{"/" + w, w + "/b"},
		fewOf{w, w + w}, anyOf{hasPrefix(w), iContains(lowerASCII(w)), hasSuffix(w)}}
	if re, err := compileRegex(w); err == nil {
		ms = append(ms, re)
	}
	return ms
}

func TestAutomaton(t *testing.T) {
	words := []string{"a", "A", "aa", "aA", "ab", "aba", "b", "bab", "he", "she", "hers", "/etc", "/etc/", "//", " -c ", "\x00", "é", "K", "\xff\x80", "[", "@", "`", "{", ""}
	var ms []matcher
	for _, w := range words {
		ms = append(ms, matchersOf(w)...)
	}
	values := slices.Concat(words, []string{"abaab", "ABAAB", "ushers", "usHers", "//etc/b", "/etcb", "sh -c id", "x\x00y", "café", "É", "\u212a", "k", strings.Repeat("a", 300)})
	for _, v := range values {
		holdToMatchers(t, ms, v)
	}
}

// FuzzAutomaton holds the automaton of several words to one matcher after the
// other.
func FuzzAutomaton(f *testing.F) {
	f.Add("he\nshe\nhis\nhers", "ushers")
	f.Add("a\naa\naaa\nAa", "aAaaaaA")
	f.Add("/etc\n/etc/shadow\n/etc//x", "//etc/shadow")
	f.Add("(?i:pass)(wd|word)\nx*y|z+\n(a|b){2}c\n(?:)", "PASSword bbc")
	f.Add("ſ\nK\n(?i)k", "\u212a s")
	f.Fuzz(func(t *testing.T, words, s string) {
		if len(words) > 300 || len(s) > 2000 {
			return
		}
		var ms []matcher
		for w := range strings.SplitSeq(words, "\n") {
			ms = append(ms, matchersOf(w)...)
		}
		holdToMatchers(t, ms, s)
	})
}

func TestRequired(t *testing.T) {
	for pattern, want := range map[string][]needle{
		`.*\b(env|printenv)\b *\| *grep.*`: {{text: "grep"}},
		`.*(curl|wget).*`:                  {{text: "curl"}, {text: "wget"}},
		`(?i:abc|cde).*`:                   {{text: "abc", fold: true}, {text: "cde", fold: true}},
		`(.* )?(-[a-z]*t|--to).*`:          nil, // - is in many values
		`(?i:pass).*`:                      nil, // ſ and the Kelvin sign fold to s and k
		`(abc)?d*`:                         nil,
		`(abc){2,}x`:                       {{text: "abc"}},
		`a|`:                               nil,
		`é+`:                               nil,
		`.*`:                               nil,
	} {
		m, err := compileRegex(pattern)
		if err != nil {
			t.Fatal(err)
		}
		got, exact := needlesOf(m)
		if exact || !slices.Equal(got, want) {
			t.Errorf("%s: %v, exact %v; want %v", pattern, got, exact, want)
		}
	}
}

// TestSearchDifferential is TestDifferential on the fields and operators of the
// automata: many texts in few slots, so that values are read both ways.
func TestSearchDifferential(t *testing.T) {
	fields := map[schemas.Class][]string{
		schemas.Process: {"proc.args", "proc.cmdline", "proc.aname"},
		schemas.File:    {"fd.paths", "fd.name", "fd.filename", "proc.args"},
	}
	rounds := 60
	if testing.Short() {
		rounds = 15
	}
	for class, names := range fields {
		t.Run(class.String(), func(t *testing.T) {
			g := &conditions{rnd: rand.New(rand.NewPCG(8, uint64(class))), fields: names,
				words: []string{"a", "A", "ab", "aB", "/ab", "/ab/ba", "b a", "ba-ab", "BA", "/AB/a", "abababab ab", "/ab/abba-baab", "-"}}
			matched := 0
			for round := range rounds {
				matched += differentialRound(t, g, class, "syscall", round)
			}
			if matched == 0 {
				t.Error("no condition ever matched: the test tests nothing")
			}
		})
	}
}

// TestAutomatonBound loads more text than the automata may take: what has no room
// is compared one by one and says the same.
func TestAutomatonBound(t *testing.T) {
	var paths []string
	for i := range 12_000 {
		paths = append(paths, fmt.Sprintf("/%d/%x", i, i*7919))
	}
	file := fmt.Sprintf("- rule: few\n  desc: d\n  output: o\n  priority: INFO\n  condition: evt.type = openat and (fd.name contains aa or fd.name contains bb or fd.name contains cc or fd.name startswith /tmp/x/)\n"+
		"- rule: many\n  desc: d\n  output: o\n  priority: INFO\n  condition: evt.type = openat and fd.name pmatch (%s)\n", strings.Join(paths, ", "))
	set, _, err := Load([]Source{{Name: "x.yaml", Data: []byte(file)}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := set.programs[schemas.File]
	size, searched, alone := 0, 0, 0
	for _, sl := range p.slots {
		if sl.search != nil {
			size += len(sl.search.next)
		}
	}
	for _, n := range p.nodes {
		if n.pred.searches() && n.pred.operand.ref == "fd.name" {
			if n.effort > 0 {
				searched++
			} else if n.pred.op == opPmatch {
				alone++
			}
		}
	}
	if size == 0 || size > maxTransitions || searched != 1 || alone != 1 {
		t.Errorf("%d transitions, %d comparisons with an automaton and %d without; want one of each and at most %d", size, searched, alone, maxTransitions)
	}
	b := batch.NewBuilder(schemas.File, schemas.Columns(schemas.File))
	for _, path := range []string{"/11999/" + fmt.Sprintf("%x", 11_999*7919) + "/etc", "/11999/zz", "/x/y/a/long/one/abba/bb", "/tmp/x/y"} {
		b.Str(schemas.Action, "open")
		b.Str(schemas.Syscall, "openat")
		b.Str(schemas.FilePath, path)
		b.EndRow()
	}
	var got []string
	set.NewEvaluator().Eval(b.Batch(), func(m Match) { got = append(got, fmt.Sprint(m.Rule.Name, m.Row)) })
	if want := []string{"many0", "few2", "few3"}; !slices.Equal(got, want) {
		t.Errorf("matches %v, want %v", got, want)
	}
}

// BenchmarkScan reads a command line of 60 bytes, with an automaton and by one
// comparison after the other.
func BenchmarkScan(b *testing.B) {
	const line = "--config /etc/nginx/nginx.conf --worker 7 -c 3 --log-level=info"
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, n := range []int{4, 16, 64, 256, 1024} {
		var ms []matcher
		builder := newAutomatonBuilder()
		for i := range n {
			w := make([]byte, 6+rnd.IntN(12))
			for j := range w {
				w[j] = "abcdefghijklmnopqrstuvwxyz-./ 0123456789"[rnd.IntN(40)]
			}
			m := contains(w)
			ms = append(ms, m)
			ns, _ := needlesOf(m)
			builder.add(i, ns[0])
		}
		a, found := builder.build(), 0
		b.Run(fmt.Sprintf("automaton/needles=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				a.scan(line, func(int32) { found++ })
			}
		})
		b.Run(fmt.Sprintf("apart/needles=%d", n), func(b *testing.B) {
			for b.Loop() {
				for _, m := range ms {
					if m.match(line) {
						found++
					}
				}
			}
		})
	}
}
