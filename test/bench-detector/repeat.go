package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"picket/internal/rules"
)

// repeated returns a set of n rules: those of the sources, over and over, each
// time with other names and with other literals to compare with, so that the
// copies share no more than rules of one author do: the kinds of events.
func repeated(sources []rules.Source, n int) (*rules.Set, error) {
	var out []rules.Source
	left := n
	for copies := 0; left > 0; copies++ {
		before := left
		var all []map[string]any // a file uses what another defines
		for _, s := range sources {
			var docs []map[string]any
			if err := yaml.Unmarshal(s.Data, &docs); err != nil {
				return nil, fmt.Errorf("%s: %w", s.Name, err)
			}
			all = append(all, docs...)
		}
		data, err := yaml.Marshal(renamed(all, copies, &left))
		if err != nil {
			return nil, err
		}
		out = append(out, rules.Source{Name: fmt.Sprintf("copy %d", copies), Data: data})
		if left == before {
			return nil, fmt.Errorf("the sources have no rules to repeat")
		}
	}
	set, _, err := rules.Load(out, rules.Options{})
	return set, err
}

var (
	word = regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_.-]*`)
	// compared are comparisons of a name, path or line with literals that may be
	// changed without making the rule about other events.
	compared = regexp.MustCompile(`\b(proc\.(?:a?name|a?exepath|a?cmdline|args|exe|pname|pcmdline|pexepath|cwd)(?:\[\d+\])?|fd\.(?:name|directory|filename)|user\.name|container\.image[.a-z]*|k8s\.ns\.name|ka\.(?:user\.name|target\.name|target\.namespace|uri|useragent))(\s*(?:!?=|(?:contains|icontains|startswith|endswith|intersects|pmatch|in)\b)\s*)(\([^()]*\)|"[^"\\]*"|'[^']*'|[^\s()"']+)`)
	operand  = regexp.MustCompile(`(?:[=<>]|\b(?:contains|icontains|bcontains|startswith|bstartswith|endswith|in|intersects|pmatch|glob|iglob|regex)\b)\s*(\([^()]*\)|"[^"]*"|'[^']*'|[^\s()"'=]+)`)
	literal  = regexp.MustCompile(`"[^"]*"|'[^']*'|[^\s(),"']+`)
)

// renamed returns a copy of items with names of its own, and at most
// left of its rules. The first copy is as it is.
func renamed(docs []map[string]any, copies int, left *int) []map[string]any {
	suffix := fmt.Sprintf("_%d", copies)
	lists, macros := map[string]bool{}, map[string]bool{}
	for _, d := range docs {
		if name, ok := d["macro"].(string); ok {
			macros[name] = true
		}
		if name, ok := d["list"].(string); ok {
			lists[name] = true
		}
	}
	rename := func(text string, own map[string]bool) string {
		return word.ReplaceAllStringFunc(text, func(w string) string {
			if own[w] {
				return w + suffix
			}
			return w
		})
	}
	// Macros stand outside of comparisons, lists in their parentheses.
	names := func(text string) string {
		var out strings.Builder
		at := 0
		for _, m := range operand.FindAllStringSubmatchIndex(text, -1) {
			out.WriteString(rename(text[at:m[2]], macros))
			right := text[m[2]:m[3]]
			if right[0] == '(' {
				right = rename(right, lists)
			}
			out.WriteString(right)
			at = m[3]
		}
		out.WriteString(rename(text[at:], macros))
		return out.String()
	}
	condition := func(text string) string {
		if copies > 0 {
			text = compared.ReplaceAllStringFunc(text, func(c string) string {
				m := compared.FindStringSubmatch(c)
				return m[1] + m[2] + literal.ReplaceAllStringFunc(m[3], func(l string) string { return changed(l, suffix, lists) })
			})
		}
		return names(text)
	}
	return slices.DeleteFunc(docs, func(d map[string]any) bool {
		if name, ok := d["rule"].(string); ok {
			if d["condition"] == nil || *left == 0 {
				return true
			}
			*left--
			d["rule"] = name + suffix
			delete(d, "id")
		} else if d["macro"] == nil && d["list"] == nil {
			return true // required versions
		}
		for _, key := range []string{"macro", "list"} {
			if name, ok := d[key].(string); ok {
				d[key] = name + suffix
			}
		}
		if c, ok := d["condition"].(string); ok {
			d["condition"] = condition(c)
		}
		delete(d, "exceptions")
		if items, ok := d["items"].([]any); ok && copies > 0 {
			for i, item := range items {
				if s, ok := item.(string); ok {
					items[i] = listItem(s, suffix, lists)
				}
			}
		} else if ok {
			for i, item := range items {
				if s, ok := item.(string); ok && lists[s] {
					items[i] = s + suffix
				}
			}
		}
		return false
	})
}

// changed returns another literal in place of one of a condition: numbers,
// booleans, networks and names of lists stay.
func changed(l, suffix string, own map[string]bool) string {
	if own[l] {
		return l
	}
	if q := l[0]; q == '"' || q == '\'' {
		return l[:len(l)-1] + suffix + l[len(l)-1:]
	}
	if _, err := strconv.ParseFloat(l, 64); err == nil || l == "true" || l == "false" || l == "host" || l == "exists" || l[0] >= '0' && l[0] <= '9' {
		return l
	}
	return l + suffix
}

// listItem is changed for an item of a list.
func listItem(s, suffix string, lists map[string]bool) string {
	if lists[s] {
		return s + suffix
	}
	if s == "" || evtTypes.MatchString(s) || !strings.ContainsAny(s, "ghijklmnopqrstuvwxyz") { // a call, an address, a network
		return s
	}
	return changed(s, suffix, lists)
}

// evtTypes are items of lists that conditions compare evt.type with.
var evtTypes = regexp.MustCompile(`^(?:open|openat|openat2|creat|open_by_handle_at|execve|execveat|connect|accept|accept4|sendto|sendmsg|rename|renameat|renameat2|unlink|unlinkat|rmdir|mkdir|mkdirat|chmod|fchmod|fchmodat|dup|dup2|dup3|create|update|patch|delete|get|list|watch|pods|secrets|configmaps)$`)
