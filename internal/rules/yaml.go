package rules

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// item is one element of a rule file, before it is merged with others of its
// name. Parts that the element does not have are nil.
type item struct {
	kind      string // rule, macro, list
	name      string
	at        pos
	condition *text
	output    *text
	desc      *string
	priority  *text
	source    *text
	enabled   *bool

	exceptions    []exception
	hasExceptions bool
	warnEvttypes  *bool
	skipUnknown   *bool
	id            *text
	risk          *uint32
	texts         map[string][]string // keys with one text or a list of them: textKeys
	raise         *bool

	correlation, baseline, suppress *memoryDef

	items    []value // list
	hasItems bool

	append   bool
	override map[string]string // key → append or replace
	keys     []string          // in order, name and override apart
	faulty   []string          // those of them that have a fault
}

// bad reports whether one of the keys has a fault: what follows from it is not
// told of, and the rest of the item is checked as if that were right.
func (it *item) bad(keys ...string) bool {
	return slices.ContainsFunc(keys, func(k string) bool { return slices.Contains(it.faulty, k) })
}

// has reports whether the item has a key, whatever is wrong with it.
func (it *item) has(key string) bool { return slices.Contains(it.keys, key) }

// exception is one entry of a rule's exceptions.
type exception struct {
	name   string
	at     pos
	single bool // fields is one name, not a list
	fields []value
	comps  []value
	values [][]exceptionValue // one row for each tuple; one column when single
}

// exceptionValue is one field's part of a tuple: one value or several.
type exceptionValue struct {
	values []value
	list   bool
}

// reader turns the YAML of one file into items.
type yamlReader struct {
	*report
	file   *file
	strict bool
}

var yamlLine = regexp.MustCompile(`line (\d+): `)

// read returns the items of a file; faults go to the report.
func (y *yamlReader) read(data []byte) (items []item) {
	// The YAML library is not written for hostile input alone; a panic of it
	// is a fault of the file.
	defer func() {
		if r := recover(); r != nil {
			y.whole("not readable as YAML: %v", r)
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return items
		}
		if err != nil {
			y.yamlError(err)
			return items
		}
		if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
			continue
		}
		root := doc.Content[0]
		if root.Kind != yaml.SequenceNode {
			y.error(y.pos(root), "start each entry with \"- rule:\", \"- macro:\" or \"- list:\"", "expected a list of rules, macros and lists, found %s", describe(root))
			continue
		}
		for _, n := range root.Content {
			if n.Tag == "!!null" {
				continue
			}
			if it, ok := y.item(n); ok {
				items = append(items, it)
			}
		}
	}
}

// whole reports a fault of the file as a whole.
func (y *yamlReader) whole(format string, args ...any) {
	y.errs = append(y.errs, &Error{File: y.file.name, Message: fmt.Sprintf(format, args...)})
}

func (y *yamlReader) yamlError(err error) {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	e := &Error{File: y.file.name, Message: "not valid YAML: " + msg}
	if m := yamlLine.FindStringSubmatch(msg); m != nil {
		line, _ := strconv.Atoi(m[1])
		// YAML knows more kinds of line breaks than the file may be shown with.
		e.Line, e.Column = max(1, min(line, len(y.file.lines))), 1
		e.Message = "not valid YAML: " + strings.Replace(msg, m[0], "", 1)
	}
	y.errs = append(y.errs, e)
}

func (y *yamlReader) pos(n *yaml.Node) pos { return pos{text: newText(y.file, n)} }

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "a mapping"
	case yaml.AliasNode:
		return "a YAML alias"
	}
	if n.Tag == "!!null" {
		return "nothing"
	}
	return fmt.Sprintf("%.40q", n.Value)
}

func (y *yamlReader) scalar(n *yaml.Node, key string) (*text, bool) {
	if n.Kind == yaml.AliasNode {
		y.error(y.pos(n), "write the value out", "YAML aliases are not read in rule files")
		return nil, false
	}
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		y.error(y.pos(n), "", "expected text for %s, found %s", key, describe(n))
		return nil, false
	}
	return newText(y.file, n), true
}

func (y *yamlReader) bool(n *yaml.Node, key string) *bool {
	var v bool
	if n.Kind != yaml.ScalarNode || n.Decode(&v) != nil {
		y.error(y.pos(n), "", "expected true or false for %s, found %s", key, describe(n))
		return nil
	}
	return &v
}

// strings reads a list of scalars; one scalar stands for a list of one.
func (y *yamlReader) strings(n *yaml.Node, key string) []string {
	vs := y.values(n, key)
	out := make([]string, len(vs))
	for i, v := range vs {
		out[i] = v.text
	}
	return out
}

func (y *yamlReader) values(n *yaml.Node, key string) []value {
	nodes := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		nodes = n.Content
	}
	out := make([]value, 0, len(nodes))
	for _, c := range nodes {
		if t, ok := y.scalar(c, key); ok {
			out = append(out, listValue(t))
		}
	}
	return out
}

// listValue reads a scalar as an element of a list: an inner pair of quotes
// is taken off, as conditions do.
func listValue(t *text) value {
	v := value{text: t.value, at: pos{text: t}}
	if n := len(v.text); n >= 2 && (v.text[0] == '"' || v.text[0] == '\'') && v.text[n-1] == v.text[0] {
		p := &parser{src: t, s: v.text}
		var fault *Error
		inner := func() string {
			defer p.recovered(&fault)
			return p.quoted()
		}()
		if fault == nil && p.end() {
			v.text, v.quoted = inner, true
		}
	}
	return v
}

var itemKeys = map[string][]string{
	"rule": {"condition", "output", "desc", "priority", "source", "enabled", "exceptions", "warn_evttypes",
		"skip-if-unknown-filter", "append", "override", "id", "risk", "tags", "mitre", "alert_type", "references", "false_positives", "response",
		"correlation", "baseline", "suppress", "raise"},
	"macro": {"condition", "append", "override"},
	"list":  {"items", "append", "override"},
}

// textKeys are the keys of a rule that are one text or a list of them.
var textKeys = []string{"tags", "mitre", "alert_type", "references", "false_positives", "response"}

// ruleID is what a rule may be called by, for good: names are for people and
// change.
var ruleID = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// maxRisk is the highest risk score of a rule.
const maxRisk = 100

// nameForms are what macros and lists may be called, so that conditions can name them.
var nameForms = map[string]*regexp.Regexp{
	"macro": regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_]*$`),
	"list":  regexp.MustCompile(`^[^()"'\s=,]+$`),
}

// ignoredKeys are keys of the language that change nothing here.
var ignoredKeys = map[string]string{
	"capture":          "Picket records no captures",
	"capture_duration": "Picket records no captures",
}

// item reads one element of the file.
func (y *yamlReader) item(n *yaml.Node) (it item, ok bool) {
	if n.Kind != yaml.MappingNode {
		y.error(y.pos(n), "", "expected a mapping with rule, macro or list, found %s", describe(n))
		return it, false
	}
	seen := make(map[string]bool, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if seen[k.Value] {
			y.error(y.pos(k), "", "key %q stands twice", k.Value)
			continue
		}
		seen[k.Value] = true
		switch k.Value {
		case "rule", "macro", "list", "required_engine_version", "required_plugin_versions":
			if it.kind != "" {
				y.error(y.pos(k), "", "entry is both %s and %s", it.kind, k.Value)
				return it, false
			}
			it.kind = k.Value
			it.at = y.pos(n.Content[i+1])
			switch it.kind {
			case "required_engine_version":
				y.engineVersion(n.Content[i+1])
				return it, false
			case "required_plugin_versions":
				y.pluginVersions(n.Content[i+1])
				return it, false
			}
			t, ok := y.scalar(n.Content[i+1], k.Value)
			if !ok {
				return it, false
			}
			if it.name = strings.TrimSpace(t.value); it.name == "" {
				y.error(it.at, "", "%s without a name", it.kind)
				return it, false
			}
			if form := nameForms[it.kind]; form != nil && !form.MatchString(it.name) {
				y.error(it.at, map[string]string{"macro": "use letters, digits and _, a letter first", "list": "without blanks, quotes, parentheses, commas and ="}[it.kind],
					"%.80q is no name of a %s", it.name, it.kind)
				return it, false
			}
		}
	}
	if it.kind == "" {
		first := ""
		if len(n.Content) > 0 {
			first = n.Content[0].Value
		}
		y.error(y.pos(n), didYouMean(first, []string{"rule", "macro", "list", "required_engine_version", "required_plugin_versions"}),
			"expected one of the keys rule, macro, list, found %q", first)
		return it, false
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if !seen[k.Value] { // the second of two
			continue
		}
		seen[k.Value] = false
		before := len(y.errs)
		if y.key(&it, k, n.Content[i+1]); len(y.errs) > before {
			it.faulty = append(it.faulty, k.Value)
		}
	}
	return it, !it.bad("append", "override")
}

func (y *yamlReader) key(it *item, k, v *yaml.Node) {
	switch k.Value {
	case it.kind:
		return
	case "append", "override":
	default:
		it.keys = append(it.keys, k.Value)
	}
	known := false
	for _, s := range itemKeys[it.kind] {
		known = known || s == k.Value
	}
	if !known {
		if why, ok := ignoredKeys[k.Value]; ok {
			y.warn(y.pos(k), it.name, false, "", "key %q has no effect: %s", k.Value, why)
			return
		}
		y.warn(y.pos(k), it.name, false, didYouMean(k.Value, itemKeys[it.kind]), "unknown key %q of %s %q is ignored", k.Value, it.kind, it.name)
		return
	}
	switch k.Value {
	case "condition":
		it.condition, _ = y.scalar(v, k.Value)
	case "output":
		it.output, _ = y.scalar(v, k.Value)
	case "priority":
		it.priority, _ = y.scalar(v, k.Value)
	case "source":
		it.source, _ = y.scalar(v, k.Value)
	case "desc":
		if t, ok := y.scalar(v, k.Value); ok {
			s := strings.TrimSpace(t.value)
			it.desc = &s
		}
	case "enabled":
		it.enabled = y.bool(v, k.Value)
	case "raise":
		it.raise = y.bool(v, k.Value)
	case "correlation":
		it.correlation = y.correlationKey(v)
	case "baseline":
		it.baseline = y.baselineKey(v)
	case "suppress":
		it.suppress = y.suppressKey(v)
	case "warn_evttypes":
		it.warnEvttypes = y.bool(v, k.Value)
	case "skip-if-unknown-filter":
		it.skipUnknown = y.bool(v, k.Value)
	case "append":
		if b := y.bool(v, k.Value); b != nil {
			it.append = *b
		}
	case "id":
		if it.id, _ = y.scalar(v, k.Value); it.id != nil && !ruleID.MatchString(it.id.value) {
			y.error(y.pos(v), "use lower-case letters, digits, dots, dashes, at most 64", "%.80q is no id of a rule", it.id.value)
		}
	case "risk":
		var risk uint32
		if v.Kind != yaml.ScalarNode || v.Decode(&risk) != nil || risk > maxRisk {
			y.error(y.pos(v), "", "expected a number from 0 to %d for risk, found %s", maxRisk, describe(v))
			return
		}
		it.risk = &risk
	case "tags", "mitre", "alert_type", "references", "false_positives", "response":
		if it.texts == nil {
			it.texts = make(map[string][]string)
		}
		it.texts[k.Value] = y.strings(v, k.Value)
		if k.Value != "mitre" {
			return
		}
		for _, id := range it.texts[k.Value] {
			if !technique.MatchString(id) {
				y.error(y.pos(v), "like T1059 or T1059.004", "%q is not an ATT&CK technique id", id)
			}
		}
	case "exceptions":
		it.exceptions, it.hasExceptions = y.exceptions(v), true
	case "items":
		if v.Kind != yaml.SequenceNode {
			y.error(y.pos(v), "", "expected a list for items, found %s", describe(v))
			return
		}
		it.items, it.hasItems = y.values(v, k.Value), true
	case "override":
		y.override(it, v)
	}
}

// technique matches an ATT&CK technique id.
var technique = regexp.MustCompile(`^T\d{4}(\.\d{3})?$`)

func (y *yamlReader) override(it *item, v *yaml.Node) {
	if v.Kind != yaml.MappingNode {
		y.error(y.pos(v), "", "expected a mapping of keys to append or replace for override, found %s", describe(v))
		return
	}
	it.override = make(map[string]string)
	for i := 0; i+1 < len(v.Content); i += 2 {
		k, how := v.Content[i], v.Content[i+1]
		if !slices.Contains(itemKeys[it.kind], k.Value) || k.Value == "append" || k.Value == "override" {
			y.error(y.pos(k), didYouMean(k.Value, itemKeys[it.kind]), "%s has no key %q that could be overridden", it.kind, k.Value)
			continue
		}
		switch how.Value {
		case "replace":
		case "append":
			switch k.Value {
			case "condition", "output", "desc", "exceptions", "items":
			default:
				if slices.Contains(textKeys, k.Value) {
					break
				}
				y.error(y.pos(how), "use replace", "%q cannot be appended to", k.Value)
			}
		default:
			y.error(y.pos(how), "", "expected append or replace for %q, found %s", k.Value, describe(how))
		}
		it.override[k.Value] = how.Value
	}
}

func (y *yamlReader) exceptions(n *yaml.Node) (out []exception) {
	if n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		y.error(y.pos(n), "", "expected a list for exceptions, found %s", describe(n))
		return nil
	}
	for _, e := range n.Content {
		if e.Kind != yaml.MappingNode {
			y.error(y.pos(e), "", "expected a mapping with name, fields, values, found %s", describe(e))
			continue
		}
		x := exception{at: y.pos(e)}
		var values *yaml.Node
		for i := 0; i+1 < len(e.Content); i += 2 {
			k, v := e.Content[i], e.Content[i+1]
			switch k.Value {
			case "name":
				if t, ok := y.scalar(v, "name"); ok {
					x.name = t.value
				}
			case "fields":
				x.fields, x.single = y.values(v, "fields"), v.Kind == yaml.ScalarNode
			case "comps":
				x.comps = y.values(v, "comps")
			case "values":
				values = v
			default:
				y.error(y.pos(k), didYouMean(k.Value, []string{"name", "fields", "comps", "values"}), "unknown key %q of an exception", k.Value)
			}
		}
		if x.name == "" {
			y.error(x.at, "", "exception without a name")
			continue
		}
		if slices.ContainsFunc(out, func(o exception) bool { return o.name == x.name }) {
			y.error(x.at, "give each a name of its own", "exception %q stands twice", x.name)
			continue
		}
		if values != nil {
			x.values = y.exceptionValues(values, x.single)
		}
		out = append(out, x)
	}
	return out
}

func (y *yamlReader) exceptionValues(n *yaml.Node, single bool) (rows [][]exceptionValue) {
	if n.Tag == "!!null" {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		y.error(y.pos(n), "", "expected a list for values, found %s", describe(n))
		return nil
	}
	for _, row := range n.Content {
		if row.Kind != yaml.SequenceNode { // of one field
			rows = append(rows, []exceptionValue{{values: y.values(row, "values")}})
			continue
		}
		if single {
			rows = append(rows, []exceptionValue{{values: y.values(row, "values"), list: true}})
			continue
		}
		var tuple []exceptionValue
		for _, v := range row.Content {
			tuple = append(tuple, exceptionValue{values: y.values(v, "values"), list: v.Kind == yaml.SequenceNode})
		}
		rows = append(rows, tuple)
	}
	return rows
}
