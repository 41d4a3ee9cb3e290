package rules

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"picket/internal/correlation"
	"picket/schemas"
)

// Options say how Load judges.
type Options struct {
	// Strict makes an error of what Picket lacks: a field of Falco's that no
	// event has yet, an event source that is not read, a rule that no event
	// can match. Otherwise the rule is left out with a Warning, so that files
	// of the community load. Other faults are errors either way.
	Strict bool
	// Lint warns of more: what has no effect (definitions and overrides that
	// later ones replace, macros and lists that no rule uses), conditions that
	// contradict themselves, and rules that no sensor feeds which leaves out
	// the system calls Unwanted.
	Lint     bool
	Unwanted []string
}

// Rule is one loaded rule. It does not change after Load.
type Rule struct {
	Name        string
	Description string
	// Priority is Falco's, as written; Severity is what it maps onto.
	Priority string
	Severity schemas.Severity
	// Source is syscall or k8s_audit.
	Source string
	Tags   []string
	// Techniques are ATT&CK technique ids: those under mitre, then those
	// among the tags.
	Techniques []string
	// ID names the rule for good; "" where the file gives none.
	ID string
	// Risk is from 0 to 100; where the file gives none, that of the severity.
	Risk uint32
	// AlertTypes are the ids that other catalogues have for what it raises, as
	// in K8S.NODE_HistoryFileCleared.
	AlertTypes []string
	// References, FalsePositives and Response are for people: where to read
	// more, what else makes the rule fire, what to do when it does.
	References, FalsePositives, Response []string
	// Enabled is false for a rule that is loaded and checked and not evaluated.
	Enabled bool
	// Classes are the event classes whose events the rule can match.
	Classes []schemas.Class
	// Condition and OutputTemplate are as written, after append and override.
	Condition, OutputTemplate string
	// File and Line say where the rule was defined last.
	File string
	Line int

	// Raises is false for a rule that is only a step of others (raise: false).
	Raises bool
	// Correlation is what a rule that looks at several events asks for; nil
	// for one that raises whenever an event matches.
	Correlation *correlation.Definition

	index  int
	output []outputPart
	cond   *cond // for SQL; nil, the rule has steps
	feeds  []feed
	steps  []Step
}

// Set is a checked set of rules, compiled for evaluation. It never changes and
// may be used by several goroutines.
type Set struct {
	rules    []*Rule
	programs []*program // by class; nil where no rule matches
	watched  []string
	syscalls []string
}

// Rules returns the rules in load order, those not enabled included. The
// result is shared: do not change it.
func (s *Set) Rules() []*Rule { return s.rules }

// Classes returns the event classes that some enabled rule can match.
func (s *Set) Classes() []schemas.Class {
	var out []schemas.Class
	for c, p := range s.programs {
		if p != nil {
			out = append(out, schemas.Class(c))
		}
	}
	return out
}

// ruleDef is a rule while its parts are merged.
type ruleDef struct{ item }

func (d *ruleDef) sourceName() string {
	if d.source == nil {
		return "syscall"
	}
	return strings.TrimSpace(d.source.value)
}

// loader merges the items of all files.
type loader struct {
	*report
	opts   Options
	rules  map[string]*ruleDef
	order  []*ruleDef
	macros map[string]*macroText
	lists  map[string]*listDef
	// changes are what entries with append, override or enabled alone did, by
	// kind and name; for Lint.
	changes map[string][]change
}

type macroText struct {
	name      string
	at        pos
	condition *text
}

// Load reads rule files in the order given, a later definition replacing,
// appending to or overriding an earlier one of the same name, and compiles
// them. The error is of type Errors and holds every fault found; the set is
// nil then. Warnings come with either.
func Load(files []Source, opts Options) (*Set, []Warning, error) {
	l := &loader{
		report: newReport(files),
		opts:   opts,
		rules:  make(map[string]*ruleDef),
		macros: make(map[string]*macroText),
		lists:  make(map[string]*listDef),

		changes: make(map[string][]change),
	}
	total, count := 0, 0
	for _, f := range files {
		y := &yamlReader{report: l.report, file: newFile(f.Name, nil), strict: opts.Strict}
		if total += len(f.Data); len(f.Data) > maxFileBytes || total > maxTotalBytes {
			y.whole("file of %d bytes; a file may have %d, all together %d", len(f.Data), maxFileBytes, maxTotalBytes)
			break
		}
		y.file = newFile(f.Name, f.Data)
		items := y.read(f.Data)
		if count += len(items); count > maxItems {
			y.whole("more than %d rules, macros and lists", maxItems)
			break
		}
		for i := range items {
			l.merge(&items[i])
		}
	}
	set := l.compile()
	warnings, err := l.result()
	if err != nil {
		return nil, warnings, err
	}
	return set, warnings, nil
}

// merge takes an item into what has been read so far.
func (l *loader) merge(it *item) {
	if it.append && it.override != nil {
		l.error(it.at, "use override alone", "%s %q has both append and override", it.kind, it.name)
		return
	}
	switch it.kind {
	case "list":
		l.mergeList(it)
	case "macro":
		l.mergeMacro(it)
	default:
		l.mergeRule(it)
	}
}

// how says what to do with a key: append or replace.
func (it *item) how(key string) string {
	if it.append {
		return "append"
	}
	return it.override[key]
}

// overrides reports whether the item changes an earlier one, and checks that
// its keys and those of override are the same.
func (l *loader) overrides(it *item) bool {
	if it.override == nil {
		return it.append
	}
	for _, k := range it.keys {
		if it.override[k] == "" {
			l.error(it.at, "add it to override", "key %q of %s %q does not stand under override", k, it.kind, it.name)
		}
	}
	for k := range it.override {
		if !slices.Contains(it.keys, k) {
			l.error(it.at, "", "override of %s %q names %q, which the entry does not have", it.kind, it.name, k)
		}
	}
	return true
}

func (l *loader) undefined(it *item, names []string) {
	l.error(it.at, didYouMean(it.name, names), "%s %q is not defined before, so there is nothing to append to or override", it.kind, it.name)
}

func (l *loader) mergeList(it *item) {
	if !it.hasItems && !it.has("items") {
		l.error(it.at, "", "list %q has no items", it.name)
		return
	}
	old := l.lists[it.name]
	if !l.overrides(it) {
		if old != nil {
			l.noteDefinition(it, old.at, sameValues(old.items, it.items))
		}
		l.lists[it.name] = &listDef{name: it.name, at: it.at, items: it.items}
		return
	}
	if old == nil {
		l.undefined(it, keysOf(l.lists))
		return
	}
	l.noteChange(it, "items", it.how("items"))
	if it.how("items") == "append" {
		it.items = slices.Concat(old.items, it.items)
	}
	old.items = it.items
}

func (l *loader) mergeMacro(it *item) {
	if it.condition == nil {
		if it.has("condition") { // has a fault, told of: do not say of its rules that they use what is not there
			l.macros[it.name] = &macroText{it.name, it.at, nil}
		} else {
			l.error(it.at, "", "macro %q has no condition", it.name)
		}
		return
	}
	old := l.macros[it.name]
	if old != nil && old.condition == nil {
		return
	}
	if !l.overrides(it) {
		if old != nil {
			l.noteDefinition(it, old.at, sameText(old.condition, it.condition))
		}
		l.macros[it.name] = &macroText{it.name, it.at, it.condition}
		return
	}
	if old == nil {
		l.undefined(it, keysOf(l.macros))
		return
	}
	l.noteChange(it, "condition", it.how("condition"))
	if it.how("condition") == "append" {
		it.condition = l.joined(it, old.condition, it.condition)
	}
	old.condition = it.condition
}

// joined is a condition with more appended, within bounds.
func (l *loader) joined(it *item, a, b *text) *text {
	if len(a.value)+len(b.value) > maxCondition || len(a.parts)+len(b.parts) > 1000 {
		l.error(it.at, "", "%s %q grows beyond %d bytes or 1000 parts", it.kind, it.name, maxCondition)
		return a
	}
	return a.join(b)
}

func keysOf[T any](m map[string]T) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func (l *loader) mergeRule(it *item) {
	old := l.rules[it.name]
	if l.overrides(it) {
		if old == nil {
			l.undefined(it, keysOf(l.rules))
			return
		}
		for _, key := range it.keys {
			l.noteChange(it, key, it.how(key))
		}
		l.change(old, it)
		return
	}
	if it.enabled != nil && it.condition == nil && it.output == nil && it.desc == nil && it.priority == nil { // switches an earlier rule
		if len(it.keys) > 1 {
			l.warn(it.at, it.name, false, "use override", "of the entry of rule %q only enabled counts: it has neither condition nor output, desc and priority", it.name)
		}
		if old == nil {
			l.error(it.at, didYouMean(it.name, keysOf(l.rules)), "rule %q is not defined before, so there is nothing to enable or disable", it.name)
			return
		}
		l.noteChange(it, "enabled", "replace")
		old.enabled = it.enabled
		return
	}
	for _, need := range []struct {
		key string
		has bool
	}{{"condition", it.condition != nil || it.hasSteps() || it.bad("correlation")}, {"output", it.output != nil}, {"desc", it.desc != nil}, {"priority", it.priority != nil}} {
		if !need.has && !it.bad(need.key) {
			l.error(it.at, "", "rule %q has no %s", it.name, need.key)
			return
		}
	}
	// Of a sequence the first; the others only where the key has a fault.
	it.condition, it.output, it.desc, it.priority = cmp.Or(it.condition, &text{}), cmp.Or(it.output, &text{}), cmp.Or(it.desc, new(string)), cmp.Or(it.priority, &text{value: "INFO"})
	def := &ruleDef{*it}
	if old != nil && old.sourceName() != def.sourceName() {
		l.error(it.at, "", "rule %q is defined again with another source: %s, before %s", it.name, def.sourceName(), old.sourceName())
		return
	}
	if old != nil {
		l.noteDefinition(it, old.at, sameText(old.condition, it.condition) && sameText(old.output, it.output))
		*old = *def
		return
	}
	l.rules[it.name] = def
	l.order = append(l.order, def)
}

// change applies an item with append or override to a rule.
func (l *loader) change(r *ruleDef, it *item) {
	if it.condition != nil {
		if it.how("condition") == "append" {
			it.condition = l.joined(it, r.condition, it.condition)
		}
		r.condition = it.condition
	}
	if it.output != nil {
		if it.how("output") == "append" {
			it.output = l.joined(it, r.output, it.output)
		}
		r.output = it.output
	}
	if it.desc != nil {
		if d := *it.desc; it.how("desc") == "append" {
			d = *r.desc + " " + d
			it.desc = &d
		}
		r.desc = it.desc
	}
	texts := maps.Clone(r.texts)
	for key, more := range it.texts {
		if texts == nil {
			texts = make(map[string][]string)
		}
		if it.how(key) == "append" {
			more = slices.Concat(texts[key], more)
		}
		texts[key] = more
	}
	r.texts = texts
	r.id, r.risk, r.priority, r.enabled = cmp.Or(it.id, r.id), cmp.Or(it.risk, r.risk), cmp.Or(it.priority, r.priority), cmp.Or(it.enabled, r.enabled)
	r.warnEvttypes, r.skipUnknown, r.raise = cmp.Or(it.warnEvttypes, r.warnEvttypes), cmp.Or(it.skipUnknown, r.skipUnknown), cmp.Or(it.raise, r.raise)
	r.correlation, r.baseline, r.suppress = cmp.Or(it.correlation, r.correlation), cmp.Or(it.baseline, r.baseline), cmp.Or(it.suppress, r.suppress)
	if it.source != nil {
		l.error(it.at, "", "the source of rule %q cannot be changed", it.name)
	}
	if it.hasExceptions && !it.bad("exceptions") {
		if it.how("exceptions") != "append" {
			r.exceptions = nil
		}
		l.addExceptions(r, it.exceptions)
	}
}

// addExceptions appends exceptions: values of a known name to that one.
func (l *loader) addExceptions(r *ruleDef, more []exception) {
	r.exceptions = slices.Clone(r.exceptions)
	for _, x := range more {
		i := slices.IndexFunc(r.exceptions, func(e exception) bool { return e.name == x.name })
		if i < 0 {
			r.exceptions = append(r.exceptions, x)
			continue
		}
		e := &r.exceptions[i]
		if x.fields != nil || x.comps != nil {
			l.error(x.at, "give name and values alone", "exception %q of rule %q has its fields already", x.name, r.name)
			continue
		}
		if e.single && len(x.values) > 0 {
			for j := range x.values {
				for k := range x.values[j] {
					x.values[j][k].list = x.values[j][k].list || len(x.values[j][k].values) > 1
				}
			}
		}
		e.values = slices.Concat(e.values, x.values)
	}
}

// compile checks all conditions and builds the programs.
func (l *loader) compile() *Set {
	c := &checker{report: l.report, macros: make(map[string]*macroDef), lists: l.lists, preds: make(map[string]*predicate)}
	for name, m := range l.macros {
		def := &macroDef{name: name, at: m.at}
		if m.condition != nil {
			tree, fault := parse(m.condition)
			if fault != nil {
				l.fault(fault)
			}
			def.tree = tree
		}
		c.macros[name] = def
	}
	b := &setBuilder{loader: l, checker: c, compilers: make([]*compiler, numClasses), ids: make(map[string]string), skipped: make(map[string]bool)}
	for i := range b.compilers {
		b.compilers[i] = newCompiler(schemas.Class(i))
	}
	for _, r := range l.order {
		b.rule(r)
	}
	b.link()
	if l.opts.Lint {
		b.unused()
	}
	// Macros and lists that no rule uses are checked too: they are meant for
	// rules to come.
	for _, name := range keysOf(c.macros) {
		if b.skipped[name] {
			continue
		}
		c.macro(&expr{kind: exprName, at: c.macros[name].at, name: name}, 0)
	}
	for _, name := range keysOf(c.lists) {
		c.flatten(c.lists[name], c.lists[name].at, 0)
	}
	return b.set()
}

func (r *report) fault(e *Error) {
	if len(r.errs) < maxErrors && !r.seen[*e] {
		r.seen[*e] = true
		r.errs = append(r.errs, e)
	}
}

// setBuilder compiles rules one after the other.
type setBuilder struct {
	*loader
	checker   *checker
	compilers []*compiler
	ids       map[string]string // name of the rule that has an id
	skipped   map[string]bool   // macros with names unknown, of rules that may be skipped
	out       []*Rule
	nodes     int
	sequences []sequence
}

func (b *setBuilder) rule(def *ruleDef) {
	if def.bad("source") {
		return
	}
	source := def.sourceName()
	classes, known := classesOf[source]
	if !known {
		remedy := "syscall or k8s_audit"
		b.lacking(def, pos{text: def.source}, remedy, fmt.Sprintf("Picket reads no events of source %q", source))
		return
	}
	if def.skipUnknown != nil && *def.skipUnknown {
		if at, what := b.unknown(def); what != "" {
			b.warn(at, def.name, true, "", "rule %q is left out, as its skip-if-unknown-filter says: %s", def.name, what)
			return
		}
	}
	if def.hasSteps() {
		classes = schemas.SetOf(schemas.Classes()...) // of its steps
	}
	at := def.at.fault("", "")
	r := &Rule{
		Name: def.name, Description: *def.desc, Source: source, Tags: def.texts["tags"], AlertTypes: def.texts["alert_type"],
		References: def.texts["references"], FalsePositives: def.texts["false_positives"], Response: def.texts["response"],
		Condition: strings.TrimSpace(def.condition.value), OutputTemplate: strings.TrimSpace(def.output.value),
		Priority: strings.TrimSpace(def.priority.value), Enabled: def.enabled == nil || *def.enabled,
		Raises: def.raise == nil || *def.raise,
		File:   at.File, Line: at.Line,
	}
	var err error
	if r.Severity, err = schemas.SeverityOfPriority(r.Priority); err != nil {
		b.error(pos{text: def.priority}, "", "%s", err)
	}
	r.Risk = r.Severity.Risk()
	if def.risk != nil {
		r.Risk = *def.risk
	}
	if def.id != nil {
		r.ID = def.id.value
		if other, ok := b.ids[r.ID]; ok {
			b.error(pos{text: def.id}, "", "rules %q and %q have the same id %s", other, r.Name, r.ID)
		}
		b.ids[r.ID] = r.Name
	}
	for _, id := range slices.Concat(def.texts["mitre"], def.texts["tags"]) {
		if technique.MatchString(id) && !slices.Contains(r.Techniques, id) {
			r.Techniques = append(r.Techniques, id)
		}
	}
	for _, id := range def.texts["mitre"] {
		if b.opts.Lint && !def.bad("mitre") && schemas.Tactics(id) == nil {
			b.warn(def.at, r.Name, false, "", "mitre of rule %q names %s, which is no technique of ATT&CK that Picket knows: no tactic follows from it", r.Name, id)
		}
	}
	before := len(b.errs)
	r.output = b.template(def, r, classes)
	memory := !def.bad("correlation", "baseline", "suppress")
	if def.hasSteps() {
		if len(b.errs) == before && memory {
			b.sequence(def, r)
		}
		return
	}
	if def.bad("condition") || def.condition.value == "" && !memory {
		return
	}
	cd := b.condition(def)
	if cd == nil || len(b.errs) > before {
		return
	}
	if !b.fieldsOf(def, cd, source, classes) {
		return
	}
	roots := make([]edge, numClasses)
	for c := range b.compilers {
		roots[c] = edgeFalse
		if !classes.Has(schemas.Class(c)) {
			continue
		}
		roots[c] = b.compilers[c].cond(cd)
		if p := b.compilers[c].absent(roots[c]); p != nil {
			b.lacking(def, b.where(cd, p), "", fmt.Sprintf("field %s is not there: %s", p.operand.ref, p.missing))
			return
		}
		if roots[c] != edgeFalse {
			r.Classes = append(r.Classes, schemas.Class(c))
		}
	}
	if r.Classes == nil {
		if calls := b.unreported(cd); calls != nil {
			b.lacking(def, def.at, "", "no sensor reports the system calls it is about: "+strings.Join(calls, ", "))
			return
		}
	}
	switch {
	case b.opts.Lint && !b.contradictions(def, cd):
	case r.Classes != nil:
	default:
		at, why := def.at, "its condition is never true"
		if b.opts.Lint {
			if more, place := b.apart(cd, classes); more != "" {
				at, why = b.own(def, place, cd), more
			}
		}
		b.warn(at, r.Name, false, "", "rule %q can match no event: %s", r.Name, why)
	}
	if !memory || !b.remember(def, r) {
		return
	}
	r.index, r.cond = len(b.out), cd
	b.out = append(b.out, r)
	if !r.Enabled {
		return
	}
	if b.allTypes(r, roots) && (def.warnEvttypes == nil || *def.warnEvttypes) {
		b.warn(def.at, r.Name, false, "compare evt.type, or set warn_evttypes to false", "rule %q is evaluated for every system call", r.Name)
	}
	for c, root := range roots {
		if root != edgeFalse {
			b.compilers[c].add(r, root)
		}
	}
}

// unreported returns the values that a condition compares evt.type with, if
// no class of events has one of them.
func (b *setBuilder) unreported(cd *cond) (calls []string) {
	reported := false
	for at := range cd.comparisons() {
		if at.pred.operand.ref != "evt.type" {
			continue
		}
		for _, v := range at.pred.values {
			for c := range classSyscalls {
				reported = reported || reportsAny(c, []string{v})
			}
			if !slices.Contains(calls, v) {
				calls = append(calls, v)
			}
		}
	}
	if reported {
		return nil
	}
	return calls
}

// allTypes reports whether the rule's condition begins with no comparison of
// evt.type in any class of system calls.
func (b *setBuilder) allTypes(r *Rule, roots []edge) bool {
	if r.Source != "syscall" {
		return false
	}
	for c := range roots {
		if nodeClasses.Has(schemas.Class(c)) && (roots[c] == edgeFalse || b.compilers[c].guard(roots[c]) != edgeTrue) {
			return false
		}
	}
	return true
}

// lacking tells of a rule that Picket cannot serve: an error when strict, unless
// the rule itself says that it may be skipped.
func (b *setBuilder) lacking(def *ruleDef, at pos, remedy, why string) {
	if b.opts.Strict && (def.skipUnknown == nil || !*def.skipUnknown) {
		b.error(at, remedy, "rule %q: %s", def.name, why)
		return
	}
	b.warn(at, def.name, true, remedy, "rule %q is left out: %s", def.name, why)
}

// condition parses and checks the rule's condition with its exceptions.
func (b *setBuilder) condition(def *ruleDef) *cond {
	tree, fault := parse(def.condition)
	if fault != nil {
		b.fault(fault)
		return nil
	}
	if ex := b.exceptions(def); ex != nil {
		tree = &expr{kind: exprAnd, at: tree.at, kids: []*expr{tree, {kind: exprNot, at: ex.at, kids: []*expr{ex}}}}
	}
	cd := b.checker.check(tree, 0)
	if cd == nil {
		// The fault may be in a macro, where it is told once: say which rules
		// it takes along.
		return nil
	}
	if b.nodes += cd.nodes; b.nodes > maxTotalNodes {
		b.error(def.at, "", "the conditions of all rules with their macros have more than %d comparisons", maxTotalNodes)
		return nil
	}
	return cd
}

// exceptions builds the disjunction of a rule's exceptions, or nil.
func (b *setBuilder) exceptions(def *ruleDef) *expr {
	or := &expr{kind: exprOr, at: def.at}
	if def.bad("exceptions") {
		return nil
	}
	for _, x := range def.exceptions {
		if len(x.fields) == 0 {
			b.error(x.at, "", "exception %q of rule %q has no fields", x.name, def.name)
			continue
		}
		if x.comps != nil && len(x.comps) != len(x.fields) {
			b.error(x.at, "", "exception %q of rule %q has %d comps for %d fields", x.name, def.name, len(x.comps), len(x.fields))
			continue
		}
		for _, tuple := range x.values {
			if len(tuple) != len(x.fields) {
				b.error(x.at, "", "exception %q of rule %q has a tuple of %d values for %d fields", x.name, def.name, len(tuple), len(x.fields))
				continue
			}
			and := &expr{kind: exprAnd, at: x.at}
			for i, f := range x.fields {
				if k := b.exceptionPart(&x, i, f, tuple[i]); k != nil {
					and.kids = append(and.kids, k)
				}
			}
			if len(and.kids) > 0 {
				or.kids = append(or.kids, and)
			}
		}
	}
	if len(or.kids) == 0 {
		return nil
	}
	return or
}

// exceptionPart is the comparison of one field of a tuple.
func (b *setBuilder) exceptionPart(x *exception, i int, f value, v exceptionValue) *expr {
	op := opEq
	if x.single || v.list {
		op = opIn
	}
	if x.comps != nil {
		p := &parser{src: x.comps[i].at.text, s: x.comps[i].text}
		var n int
		if op, n = p.peekOperator(); op == opNone || op == opExists || n != len(p.s) {
			b.error(x.comps[i].at, "", "%q is not an operator that exceptions can use", p.s)
			return nil
		}
	}
	ref, fault := parseField(f.at.text)
	if fault != nil {
		b.fault(fault)
		return nil
	}
	if op.takesList() && !v.list && len(v.values) == 1 {
		v.values = listInText(v.values[0])
	}
	compare := func(vs []value) *expr {
		return &expr{kind: exprCompare, at: f.at, cmp: &comparison{field: ref, op: op, opAt: x.at, values: vs, list: true}}
	}
	if op.takesList() || len(v.values) == 1 {
		return compare(v.values)
	}
	// Several values with an operator for one: any of them.
	or := &expr{kind: exprOr, at: f.at}
	for i := range v.values {
		or.kids = append(or.kids, compare(v.values[i:i+1]))
	}
	if len(or.kids) == 0 {
		return nil
	}
	return or
}

// listInText returns the values of a list that is written as one text, as in
// "(a, b)" or "a, b", which exceptions may have; the value alone if it is no list.
func listInText(v value) []value {
	s := v.text
	if v.quoted || !strings.HasPrefix(s, "(") && !strings.Contains(s, ",") {
		return []value{v}
	}
	if !strings.HasPrefix(s, "(") {
		s = "(" + s + ")"
	}
	p := &parser{src: v.at.text, s: s}
	var c comparison
	var fault *Error
	func() {
		defer p.recovered(&fault)
		p.list(&c)
	}()
	if fault != nil || !p.end() {
		return []value{v}
	}
	for i := range c.values {
		c.values[i].at = v.at
	}
	return c.values
}

// parseField reads a text that is one field.
func parseField(src *text) (ref fieldRef, err *Error) {
	p := &parser{src: src, s: src.value}
	defer p.recovered(&err)
	p.blank()
	ref = p.field()
	if !p.end() {
		p.fail(p.at, "", "expected a field alone, found %s behind it", p.found())
	}
	return ref, nil
}

// fieldsOf checks that the condition's fields belong to the rule's source.
func (b *setBuilder) fieldsOf(def *ruleDef, cd *cond, source string, classes schemas.ClassSet) bool {
	ok := true
	for at := range cd.comparisons() {
		if at.pred.missing != "" {
			continue
		}
		for _, o := range []*operand{&at.pred.operand, at.pred.rhs} {
			if o != nil && o.field.classes()&classes == 0 {
				b.error(at.at, "", "field %s is not one of source %s, which rule %q is for", o.ref, source, def.name)
				ok = false
			}
		}
	}
	return ok
}

// where finds a place of the predicate in the condition.
func (b *setBuilder) where(cd *cond, p *predicate) pos {
	for at := range cd.comparisons() {
		if at.pred == p {
			return at.at
		}
	}
	return pos{}
}

// unfed tells of rules that no sensor feeds which leaves out what is unwanted,
// save what the rules ask for.
func (b *setBuilder) unfed(s *Set) {
	unwanted := slices.DeleteFunc(slices.Clone(b.opts.Unwanted), func(c string) bool { return slices.Contains(s.syscalls, c) })
	for _, n := range s.Needs() {
		if !n.Fed(nodeClasses, unwanted) {
			b.warn(b.rules[n.Rule.Name].at, n.Rule.Name, false, "compare evt.type with it, so that sensors are asked for it", "rule %q is fed by no sensor: by default they leave out %s", n.Rule.Name, n)
		}
	}
}

func (b *setBuilder) set() *Set {
	s := &Set{rules: b.out, programs: make([]*program, numClasses)}
	for i, c := range b.compilers {
		if len(c.groups) > 0 {
			c.finish()
			s.programs[i] = &c.program
		}
	}
	s.selection(b)
	if b.opts.Lint {
		b.unfed(s)
	}
	return s
}
