package rules

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// engineVersion is that of Falco's engine whose language Picket reads: Falco
// 0.45. Fields are judged one by one, by the field table.
var engineVersion = version{0, 63, 0}

// providedPlugins are Falco's plugins whose fields Picket has itself. Their
// versions say which fields there are, and the field table says that better.
var providedPlugins = []string{"container", "json", "k8saudit", "k8saudit-aks", "k8saudit-eks", "k8saudit-gke", "k8saudit-ovh"}

type version [3]uint64

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

var semver = regexp.MustCompile(`^(\d{1,9})\.(\d{1,9})\.(\d{1,9})(?:[-+][0-9A-Za-z.+-]*)?$`)

func parseVersion(s string) (v version, ok bool) {
	m := semver.FindStringSubmatch(s)
	if m == nil {
		return v, false
	}
	for i := range v {
		v[i], _ = strconv.ParseUint(m[i+1], 10, 64)
	}
	return v, true
}

// engineVersion judges required_engine_version: a number n stands for 0.n.0.
func (y *yamlReader) engineVersion(n *yaml.Node) {
	t, ok := y.scalar(n, "required_engine_version")
	if !ok {
		return
	}
	s := strings.TrimSpace(t.value)
	want, ok := parseVersion(s)
	if minor, err := strconv.ParseUint(s, 10, 32); err == nil {
		want, ok = version{0, minor, 0}, true
	}
	switch {
	case !ok:
		y.error(y.pos(n), "as in 0.57.0, or 15", "%.40q is no version of an engine", s)
	case want[0] != engineVersion[0] || slices.Compare(want[:], engineVersion[:]) > 0:
		y.error(y.pos(n), "use an older release of the file; without this entry it is judged key by key and field by field", "the file needs version %s of Falco's engine, and Picket reads the language of %s", want, engineVersion)
	}
}

// pluginVersions judges required_plugin_versions. A plugin that Picket has no
// fields of is told of; the rules that use its fields are judged by themselves.
func (y *yamlReader) pluginVersions(n *yaml.Node) {
	if n.Kind != yaml.SequenceNode {
		y.error(y.pos(n), "", "expected a list for required_plugin_versions, found %s", describe(n))
		return
	}
	for _, e := range n.Content {
		name, alternatives, ok := y.plugin(e)
		if !ok {
			continue
		}
		all := []string{name}
		if alternatives != nil {
			if alternatives.Kind != yaml.SequenceNode {
				y.error(y.pos(alternatives), "", "expected a list for alternatives, found %s", describe(alternatives))
				continue
			}
			for _, a := range alternatives.Content {
				other, _, fine := y.plugin(a)
				if ok = ok && fine; fine && slices.Contains(all, other) {
					y.error(y.pos(a), "", "plugin %q stands twice", other)
					ok = false
				}
				all = append(all, other)
			}
		}
		if !ok || slices.ContainsFunc(all, func(p string) bool { return slices.Contains(providedPlugins, p) }) {
			continue
		}
		if y.strict {
			y.error(y.pos(e), "", "the file needs plugin %s, whose fields Picket does not have", strings.Join(all, " or "))
		} else {
			y.warn(y.pos(e), "", false, "", "the file needs plugin %s, whose fields Picket does not have: rules that depend on them are left out", strings.Join(all, " or "))
		}
	}
}

// plugin reads a name and a version.
func (y *yamlReader) plugin(n *yaml.Node) (name string, alternatives *yaml.Node, ok bool) {
	if n.Kind != yaml.MappingNode {
		y.error(y.pos(n), "", "expected a mapping with name and version, found %s", describe(n))
		return "", nil, false
	}
	var versioned bool
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch k.Value {
		case "name":
			if t, ok := y.scalar(v, "name"); ok {
				name = strings.TrimSpace(t.value)
			}
		case "version":
			versioned = true
			if t, ok := y.scalar(v, "version"); ok {
				if _, ok := parseVersion(strings.TrimSpace(t.value)); !ok {
					y.error(y.pos(v), "as in 0.4.0", "%.40q is no version of a plugin", t.value)
				}
			}
		case "alternatives":
			alternatives = v
		default:
			y.warn(y.pos(k), "", false, didYouMean(k.Value, []string{"name", "version", "alternatives"}), "unknown key %q of a plugin is ignored", k.Value)
		}
	}
	if name == "" || !versioned {
		y.error(y.pos(n), "", "a plugin needs a name and a version")
		return "", nil, false
	}
	return name, alternatives, true
}
