package rules

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"picket/internal/batch"
	"picket/internal/correlation"
	"picket/schemas"
)

// Rules that look at more than one event: the keys correlation, baseline,
// suppress and raise. What such a rule matches raises nothing by itself; it is a
// Feed, which the state in package correlation takes.

// memoryDef is one of the keys correlation, baseline, suppress as written.
type memoryDef struct {
	at      pos
	kind    correlation.Kind
	window  time.Duration // learn of a baseline
	by      []value
	values  []value // field of distinct, value of a baseline
	atLeast int
	steps   []stepDef
}

// stepDef is a step of a sequence or an absence: another rule, or a condition.
type stepDef struct {
	at                      pos
	rule, condition, source *text
	by                      []value
}

// hasSteps reports whether the rule's conditions are those of its steps.
func (it *item) hasSteps() bool { return it.correlation != nil && it.correlation.steps != nil }

// memory returns what the rule remembers events for, or nil.
func (it *item) memory() *memoryDef {
	switch {
	case it.correlation != nil:
		return it.correlation
	case it.baseline != nil:
		return it.baseline
	}
	return it.suppress
}

// mapping reads a mapping with known keys only.
func (y *yamlReader) mapping(n *yaml.Node, what string, keys []string, read func(key string, v *yaml.Node)) bool {
	if n.Kind != yaml.MappingNode {
		y.error(y.pos(n), "", "expected a mapping with %s for %s, found %s", strings.Join(keys, ", "), what, describe(n))
		return false
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch {
		case seen[k.Value]:
			y.error(y.pos(k), "", "key %q stands twice", k.Value)
		case !slices.Contains(keys, k.Value):
			y.error(y.pos(k), didYouMean(k.Value, keys), "unknown key %q of %s", k.Value, what)
		default:
			read(k.Value, v)
		}
		seen[k.Value] = true
	}
	return true
}

// duration reads a time span of one second to 30 days, as in 90s, 5m, 1h30m, 7d.
func (y *yamlReader) duration(n *yaml.Node, key string) time.Duration {
	d, err := time.ParseDuration(n.Value)
	if days, ok := strings.CutSuffix(n.Value, "d"); ok {
		var num float64
		if num, err = strconv.ParseFloat(days, 64); err == nil && num >= 0 && num < 1000 {
			d = time.Duration(num * 24 * float64(time.Hour))
		}
	}
	if n.Kind != yaml.ScalarNode || err != nil || d < time.Second || d > correlation.MaxWindow {
		y.error(y.pos(n), "", "expected a time from 1s to 30d for %s, as in 90s, 5m, 2h or 7d, found %s", key, describe(n))
		return time.Second
	}
	return d
}

// fieldNames reads the fields under by or value.
func (y *yamlReader) fieldNames(n *yaml.Node, key string) []value {
	vs := y.values(n, key)
	if len(vs) == 0 || len(vs) > correlation.MaxBy {
		y.error(y.pos(n), "", "expected one to %d fields for %s", correlation.MaxBy, key)
	}
	return vs
}

// need tells of keys that are missing.
func (y *yamlReader) need(at pos, what string, missing ...string) {
	if missing = slices.DeleteFunc(missing, func(k string) bool { return k == "" }); len(missing) > 0 {
		y.error(at, "", "%s has no %s", what, strings.Join(missing, ", "))
	}
}

// unless is key when it is missing.
func unless(there bool, key string) string {
	if there {
		return ""
	}
	return key
}

func (y *yamlReader) correlationKey(n *yaml.Node) *memoryDef {
	m := &memoryDef{at: y.pos(n)}
	kind := ""
	atLeastAt := m.at
	ok := y.mapping(n, "correlation", []string{"kind", "window", "by", "at_least", "field", "steps"}, func(key string, v *yaml.Node) {
		switch key {
		case "kind":
			kind = v.Value
			m.kind = correlation.Kind(kind)
			if !slices.Contains([]correlation.Kind{correlation.Count, correlation.Distinct, correlation.Sequence, correlation.Absence}, m.kind) {
				y.error(y.pos(v), "", "expected count, distinct, sequence or absence for kind, found %s", describe(v))
			}
		case "window":
			m.window = y.duration(v, key)
		case "by":
			m.by = y.fieldNames(v, key)
		case "at_least":
			atLeastAt = y.pos(v)
			if v.Kind != yaml.ScalarNode || v.Decode(&m.atLeast) != nil || m.atLeast < 2 || m.atLeast > correlation.MaxAtLeast {
				y.error(atLeastAt, "", "expected a number from 2 to %d for at_least, found %s", correlation.MaxAtLeast, describe(v))
				m.atLeast = 2
			}
		case "field":
			if t, ok := y.scalar(v, key); ok {
				m.values = []value{{text: t.value, at: pos{text: t}}}
			}
		case "steps":
			m.steps = y.steps(v)
		}
	})
	if !ok {
		return nil
	}
	what := "correlation of kind " + kind
	switch m.kind {
	case correlation.Sequence, correlation.Absence:
		y.need(m.at, what, unless(m.window > 0, "window"), unless(m.steps != nil, "steps"))
		if m.atLeast > 0 || m.values != nil {
			y.error(m.at, "", "%s has neither at_least nor field", what)
		}
		most := correlation.MaxSteps
		if m.kind == correlation.Absence {
			most = 2
		}
		if n := len(m.steps); m.steps != nil && (n < 2 || n > most) {
			y.error(m.at, "", "%s has %d steps; it may have 2 to %d", what, n, most)
		}
		for i := range m.steps {
			s := &m.steps[i]
			if s.by == nil {
				s.by = m.by
			}
			y.need(s.at, "step "+strconv.Itoa(i+1), unless(s.by != nil, "by, and neither has the correlation"))
			if s.by != nil && len(s.by) != len(m.steps[0].by) {
				y.error(s.at, "give the fields that correspond, in the same order", "step %d has %d fields under by, and step 1 has %d", i+1, len(s.by), len(m.steps[0].by))
			}
		}
	case "":
		y.need(m.at, "correlation", "kind")
	default:
		y.need(m.at, what, unless(m.window > 0, "window"), unless(m.by != nil, "by"), unless(m.atLeast > 0, "at_least"),
			unless(m.values != nil || m.kind != correlation.Distinct, "field"))
		if m.steps != nil || m.kind == correlation.Count && m.values != nil {
			y.error(m.at, "", "%s has neither steps nor, unless it is distinct, a field", what)
			m.steps = nil
		}
	}
	return m
}

func (y *yamlReader) steps(n *yaml.Node) []stepDef {
	if n.Kind != yaml.SequenceNode {
		y.error(y.pos(n), "", "expected a list for steps, found %s", describe(n))
		return nil
	}
	out := []stepDef{}
	for _, e := range n.Content {
		s := stepDef{at: y.pos(e)}
		y.mapping(e, "a step", []string{"rule", "condition", "source", "by"}, func(key string, v *yaml.Node) {
			switch key {
			case "rule":
				s.rule, _ = y.scalar(v, key)
			case "condition":
				s.condition, _ = y.scalar(v, key)
			case "source":
				s.source, _ = y.scalar(v, key)
			case "by":
				s.by = y.fieldNames(v, key)
			}
		})
		if (s.rule == nil) == (s.condition == nil) {
			y.error(s.at, "", "a step has either rule or condition")
		} else if s.rule != nil && s.source != nil {
			y.error(s.at, "", "a step with rule has the source of that rule")
		}
		out = append(out, s)
	}
	return out
}

func (y *yamlReader) baselineKey(n *yaml.Node) *memoryDef {
	m := &memoryDef{at: y.pos(n), kind: correlation.Baseline}
	if !y.mapping(n, "baseline", []string{"by", "value", "learn"}, func(key string, v *yaml.Node) {
		switch key {
		case "by":
			m.by = y.fieldNames(v, key)
		case "value":
			m.values = y.fieldNames(v, key)
		case "learn":
			m.window = y.duration(v, key)
		}
	}) {
		return nil
	}
	y.need(m.at, "baseline", unless(m.by != nil, "by"), unless(m.values != nil, "value"), unless(m.window > 0, "learn"))
	return m
}

func (y *yamlReader) suppressKey(n *yaml.Node) *memoryDef {
	m := &memoryDef{at: y.pos(n), kind: correlation.Suppress}
	if !y.mapping(n, "suppress", []string{"by", "window"}, func(key string, v *yaml.Node) {
		switch key {
		case "by":
			m.by = y.fieldNames(v, key)
		case "window":
			m.window = y.duration(v, key)
		}
	}) {
		return nil
	}
	y.need(m.at, "suppress", unless(m.window > 0, "window"))
	return m
}

// feed says where the matches of a rule go.
type feed struct {
	def       *correlation.Definition
	rule      *Rule // whose alert it becomes
	step      int
	by, value []operand
}

// remember checks a rule that has a condition of its own and memory, and makes it
// feed that.
func (b *setBuilder) remember(def *ruleDef, r *Rule) bool {
	if def.correlation != nil && def.baseline != nil {
		b.error(def.baseline.at, "make two rules of it", "rule %q has both correlation and baseline", r.Name)
		return false
	}
	if def.baseline != nil && def.suppress != nil {
		b.error(def.suppress.at, "", "rule %q has a baseline, which raises a value once: suppress does nothing more", r.Name)
		return false
	}
	m := def.memory()
	if m == nil {
		return true
	}
	if !r.Raises {
		b.error(m.at, "", "rule %q has raise: false, and so nothing would come of its %s", r.Name, m.kind)
		return false
	}
	d, ok := b.definition(def, m, r)
	if !ok {
		return false
	}
	if m.kind == correlation.Suppress && m.by == nil {
		b.error(m.at, "", "suppress has no by")
		return false
	}
	f := feed{def: d, rule: r}
	if f.by, ok = b.operands(def, m.by, r.Classes); !ok {
		return false
	}
	if f.value, ok = b.operands(def, m.values, r.Classes); !ok {
		return false
	}
	b.version(d, m, r.Condition)
	r.feeds, r.Correlation = append(r.feeds, f), d
	r.steps = []Step{{r, f}}
	return true
}

// definition makes what the state has to know of the rule.
func (b *setBuilder) definition(def *ruleDef, m *memoryDef, r *Rule) (*correlation.Definition, bool) {
	d := &correlation.Definition{Rule: r.Name, Kind: m.kind, Window: m.window, Hold: m.window, AtLeast: m.atLeast, Steps: len(m.steps)}
	switch m.kind {
	case correlation.Baseline:
		d.Learn, d.Window, d.Hold = m.window, 0, 0
	case correlation.Suppress:
		d.Window = 0
	default:
		if s := def.suppress; s != nil {
			if s.by != nil {
				b.error(s.at, "leave by out", "suppress beside correlation has the key of the correlation")
				return nil, false
			}
			d.Hold = s.window
		}
	}
	by := m.by
	if m.steps != nil {
		by = m.steps[0].by
	}
	for _, v := range by {
		d.By = append(d.By, v.text)
	}
	d.Output = append(d.Output, "")
	for _, p := range r.output {
		switch {
		case p.ref == "":
			d.Output[len(d.Output)-1] += p.literal
		default:
			d.Output = append(d.Output, p.ref, "")
		}
	}
	return d, true
}

// version gives the definition a name that changes when its meaning does.
func (b *setBuilder) version(d *correlation.Definition, m *memoryDef, conditions ...string) {
	parts := append([]string{d.Rule, string(d.Kind), d.Window.String(), d.Hold.String(), d.Learn.String(), strconv.Itoa(d.AtLeast)}, conditions...)
	for _, vs := range [][]value{m.by, m.values} {
		parts = append(parts, "by")
		for _, v := range vs {
			parts = append(parts, v.text)
		}
	}
	for _, s := range m.steps {
		parts = append(parts, "step")
		for _, v := range s.by {
			parts = append(parts, v.text)
		}
	}
	d.Version = schemas.FormatID(schemas.Hash128(parts...))
}

// operands resolves fields that events of one of the classes have.
func (b *setBuilder) operands(def *ruleDef, fields []value, classes []schemas.Class) (out []operand, ok bool) {
	for _, f := range fields {
		ref, fault := parseField(f.at.text)
		if fault != nil {
			b.fault(fault)
			return nil, false
		}
		o, reason, ok := b.checker.resolveAt(ref)
		if !ok {
			return nil, false
		}
		if reason != "" {
			b.lacking(def, ref.at, "", fmt.Sprintf("field %s is not there: %s", ref, reason))
			return nil, false
		}
		if o.field.classes()&schemas.SetOf(classes...) == 0 && len(classes) > 0 {
			b.error(ref.at, "", "field %s is in no event that the condition can match", ref)
			return nil, false
		}
		out = append(out, o)
	}
	return out, true
}

// sequence checks a rule whose conditions are those of its steps. A step with a
// condition is compiled as a rule that is in no list of rules.
func (b *setBuilder) sequence(def *ruleDef, r *Rule) {
	m := def.correlation
	switch {
	case !r.Raises:
		b.error(m.at, "", "rule %q has raise: false, and so nothing would come of its %s", r.Name, m.kind)
		return
	case r.Condition != "":
		b.error(pos{text: def.condition}, "", "rule %q has steps, and so no condition of its own", r.Name)
		return
	case def.hasExceptions:
		b.error(def.at, "put them into the rules of the steps", "rule %q has steps, and so no exceptions of its own", r.Name)
		return
	case def.baseline != nil:
		b.error(def.baseline.at, "make two rules of it", "rule %q has both correlation and baseline", r.Name)
		return
	}
	d, ok := b.definition(def, m, r)
	if !ok {
		return
	}
	s := sequence{def: def, rule: r, d: d, parts: make([]*Rule, len(m.steps))}
	for i := range m.steps {
		step := &m.steps[i]
		if step.condition == nil {
			continue
		}
		part := &ruleDef{item{kind: "rule", name: fmt.Sprintf("%s, step %d", def.name, i+1), at: step.at, condition: step.condition, output: &text{}, desc: new(string), raise: new(bool),
			priority: def.priority, source: step.source, enabled: def.enabled, warnEvttypes: def.warnEvttypes, skipUnknown: def.skipUnknown}}
		if part.source == nil {
			part.source = def.source
		}
		if b.rules[part.name] != nil {
			b.error(step.at, "", "rule %q has the name of a step", part.name)
			return
		}
		b.rules[part.name] = part
		before, faults := len(b.out), len(b.errs)
		b.rule(part)
		if len(b.out) == before {
			if len(b.errs) == faults {
				b.lacking(def, step.at, "", fmt.Sprintf("its step %d is", i+1))
			}
			return
		}
		s.parts[i] = b.out[before]
		b.out = b.out[:before]
	}
	r.Correlation = d
	r.index = len(b.out)
	b.out = append(b.out, r)
	b.sequences = append(b.sequences, s)
}

// sequence is a rule with steps whose steps with rule are to be found.
type sequence struct {
	def   *ruleDef
	rule  *Rule
	d     *correlation.Definition
	parts []*Rule
}

// link finds the rules that are steps, when all rules are compiled.
func (b *setBuilder) link() {
	used := make(map[*Rule]bool)
	for _, s := range b.sequences {
		if !b.linkOne(s, used) {
			b.out = slices.DeleteFunc(b.out, func(r *Rule) bool { return r == s.rule })
		}
	}
	for _, r := range b.out {
		if r.Enabled && !r.Raises && !used[r] {
			b.warn(b.rules[r.Name].at, r.Name, false, "", "rule %q raises nothing, and is a step of no rule", r.Name)
		}
	}
}

func (b *setBuilder) linkOne(s sequence, used map[*Rule]bool) bool {
	m := s.def.correlation
	var conditions []string
	for i := range m.steps {
		step := &m.steps[i]
		if step.rule == nil {
			conditions = append(conditions, s.parts[i].Condition)
			continue
		}
		name := strings.TrimSpace(step.rule.value)
		j := slices.IndexFunc(b.out, func(r *Rule) bool { return r.Name == name })
		switch {
		case b.rules[name] == nil:
			b.error(pos{text: step.rule}, didYouMean(name, keysOf(b.rules)), "step %d of rule %q: unknown rule %q", i+1, s.rule.Name, name)
			return false
		case j < 0:
			b.lacking(s.def, pos{text: step.rule}, "", fmt.Sprintf("so is rule %q, its step %d", name, i+1))
			return false
		case b.out[j].Correlation != nil:
			b.error(pos{text: step.rule}, "", "step %d of rule %q: rule %q looks at several events itself", i+1, s.rule.Name, name)
			return false
		case !b.out[j].Enabled && s.rule.Enabled:
			b.error(pos{text: step.rule}, "write raise: false in place of enabled: false", "step %d of rule %q: rule %q is not enabled", i+1, s.rule.Name, name)
			return false
		}
		s.parts[i] = b.out[j]
		used[b.out[j]] = true
		conditions = append(conditions, b.out[j].Condition)
	}
	feeds := make([]feed, len(m.steps))
	for i, part := range s.parts {
		by, ok := b.operands(s.def, m.steps[i].by, part.Classes)
		if !ok {
			return false
		}
		feeds[i] = feed{def: s.d, rule: s.rule, step: i, by: by}
		for _, c := range part.Classes {
			if !slices.Contains(s.rule.Classes, c) {
				s.rule.Classes = append(s.rule.Classes, c)
			}
		}
	}
	b.version(s.d, m, conditions...)
	for i, part := range s.parts {
		s.rule.steps = append(s.rule.steps, Step{part, feeds[i]})
	}
	if s.rule.Enabled {
		for i, part := range s.parts {
			part.feeds = append(part.feeds, feeds[i])
		}
	}
	return true
}

// isCorrelationField reports whether a field of an output is one that the state
// fills in.
func isCorrelationField(name string) bool {
	return name == "correlation.count" || name == "correlation.distinct"
}

// Feed is a row that feeds the memory of a rule. Its Match has that rule, whose
// alert it may become, not the rule of the step. It is valid as long as the batch
// is.
type Feed struct {
	Match
	feed *feed
}

// maxKeyValue and maxFieldValue bound, in bytes, a value in a key and a field of
// the output in a Record: longer ones are cut, in a key with their hash behind.
const maxKeyValue, maxFieldValue = 512, 4096

// Record returns what the state takes, but for Doc; false, an event that lacks one
// of the fields under by, or all of those under value, feeds nothing.
func (f Feed) Record() (correlation.Match, bool) {
	r := &row{b: f.batch, i: f.Row, docs: &docs{}}
	key, n := render(f.feed.by, r)
	if n < len(key) && !f.feed.keepsAll() {
		return correlation.Match{}, false
	}
	values, n := render(f.feed.value, r)
	if n == 0 && len(values) > 0 {
		return correlation.Match{}, false
	}
	id, _ := f.batch.Bytes16(schemas.EventID, f.Row)
	return f.feed.match(f.batch.Int(schemas.EventTime, f.Row), id, key, values, f.Fields()), true
}

// keepsAll reports whether events that lack fields under by count too: to fold
// alerts must not lose one.
func (f *feed) keepsAll() bool { return f.def.Kind == correlation.Suppress }

// render returns the operands' values in a row, empty where there is none, and how
// many there are.
func render(operands []operand, r *row) (values []string, there int) {
	values = make([]string, len(operands))
	for i := range operands {
		if v, ok := operands[i].render(r); ok {
			values[i] = v
			there++
		}
	}
	return values, there
}

// match makes what the state takes of an event's values, within bounds. It keeps
// key and fields.
func (f *feed) match(at int64, id [16]byte, key, values []string, fields map[string]string) correlation.Match {
	for i, v := range key {
		key[i] = bounded(v)
	}
	value := ""
	for i, v := range values {
		if i > 0 {
			value += "\x00"
		}
		value += bounded(v)
	}
	for k, v := range fields {
		fields[k] = strings.ToValidUTF8(v[:min(len(v), maxFieldValue)], "\uFFFD")
	}
	return correlation.Match{Def: f.def, Key: key, Event: correlation.Event{Time: at, ID: id, Step: f.step, Value: value, Fields: fields}}
}

// bounded makes a value of a key: valid as JSON, and not too long. Values that
// differ stay different.
func bounded(v string) string {
	valid := strings.ToValidUTF8(v, "\uFFFD")
	if valid == v && len(v) <= maxKeyValue {
		return v
	}
	return strings.ToValidUTF8(valid[:min(len(valid), maxKeyValue)], "") + "…" + schemas.FormatID(schemas.Hash128(v))
}

// Correlator evaluates a set over batches, with what its rules remember in its own
// memory: for tests of rules and for looking back. Events may come in any order
// within limits.Lateness. It is used by one goroutine at a time.
type Correlator struct {
	ev    *Evaluator
	state *correlation.State
}

// NewCorrelator returns a Correlator of the set's enabled rules that remembers
// nothing yet.
func (s *Set) NewCorrelator(limits correlation.Limits) *Correlator {
	return &Correlator{ev: s.NewEvaluator(), state: correlation.New(limits)}
}

// Eval evaluates a batch: raise gets the matches that raise an alert by themselves,
// as from Evaluator.Eval; what feeds the memory of rules is remembered. It returns
// the alerts of such rules, each as soon as it is known; doc, which may be nil,
// gives the Doc of their events.
func (c *Correlator) Eval(b *batch.Batch, raise func(Match), doc func(Feed) []byte) []correlation.Alert {
	c.ev.EvalFeeds(b, raise, func(f Feed) {
		m, ok := f.Record()
		if !ok {
			return
		}
		if doc != nil {
			m.Doc = doc(f)
		}
		c.state.Add(&m)
	})
	return c.take()
}

// End says that no event comes any more, and returns what was waiting for that:
// absences, and the last revisions of alerts.
func (c *Correlator) End() []correlation.Alert {
	var out []correlation.Alert
	for {
		c.state.Advance(math.MaxInt64 / 2)
		some := c.take()
		if len(some) == 0 {
			return out
		}
		out = append(out, some...)
	}
}

func (c *Correlator) take() []correlation.Alert {
	out := slices.Clone(c.state.Alerts())
	c.state.Published(len(out))
	return out
}
