// Command docsgen writes the reference pages in docs/reference, and docs/coverage.md, from the code
// that they describe. `make generate` runs it, and CI fails when a page is not
// what it writes.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"picket/internal/config"
	"picket/rules"
	"picket/schemas"
	auditlogingest "picket/services/auditlog-ingest"
	"picket/services/detector"
	"picket/services/enricher"
	"picket/services/sensor"
	"picket/services/sink"
)

const header = "<!-- Written by `make generate` (internal/docsgen) from the code. Do not edit. -->\n\n"

func main() {
	pages := map[string]string{"fields.md": fields(), "config.md": configs(), "bus.md": busPage(), "calls.md": calls()}
	coverage, err := rules.Coverage()
	if err != nil {
		fmt.Fprintln(os.Stderr, "docsgen:", err)
		os.Exit(1)
	}
	pages["../coverage.md"] = coverage
	for name, text := range pages {
		if err := os.WriteFile(filepath.Join("docs", "reference", name), []byte(header+text), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "docsgen:", err)
			os.Exit(1)
		}
	}
}

func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

func fields() string {
	var b bytes.Buffer
	b.WriteString("# Fields\n\nThe columns of every event class: what a batch on NATS carries, what ClickHouse stores in the table of the class's name, and what rules read. Columns marked *enriched* are added by the enricher; where Kubernetes does not say, those marked *enriched, sensed* have what the container runtime says. *Stored* ones exist in ClickHouse only.\n")
	for _, c := range schemas.Classes() {
		fmt.Fprintf(&b, "\n## %s\n\n| column | ClickHouse type | in rules | what it is |\n| --- | --- | --- | --- |\n", c)
		for _, id := range schemas.TableColumns(c) {
			f := id.Field()
			doc := f.Doc
			switch {
			case f.Enriched && f.Sensed && c != schemas.Audit:
				doc = "*enriched, sensed* " + doc
			case f.Enriched:
				doc = "*enriched* " + doc
			case f.Stored:
				doc = "*stored* " + doc
			}
			rule := ""
			for i, r := range f.Rule {
				if i > 0 {
					rule += ", "
				}
				rule += "`" + r + "`"
			}
			fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", f.Name, f.ClickHouseType(), rule, cell(doc))
		}
	}
	return b.String()
}

func calls() string {
	var b bytes.Buffer
	b.WriteString("# Calls of class kernel\n\nEvery system call whose events are rows of the table `kernel`, by `action`. The arguments are keys of `syscall_arguments`, which rules read as `evt.arg.NAME`; where Falco has the call they are called and told as Falco does. Hooks and races: [events.md](../events.md).\n\n| action | call (`syscall`, `evt.type`) | arguments |\n| --- | --- | --- |\n")
	for _, c := range schemas.Calls() {
		fmt.Fprintf(&b, "| %s | `%s` | `%s` |\n", c.Action, c.Name, strings.Join(c.Args, "`, `"))
	}
	return b.String()
}

func configs() string {
	var b bytes.Buffer
	b.WriteString("# Configuration\n\nEach service takes one YAML file (`--config`), over it environment variables, over them flags. Setting `a.b` of service `x` is `a: {b: …}` in the file, `PICKET_X__A__B` in the environment and `--a.b` on the command line. Unknown settings are errors. `--print-config` shows what would be used, `--check-config` checks it.\n")
	for _, s := range []struct {
		name string
		cfg  any
	}{
		{"sensor", sensor.DefaultConfig()}, {"auditlog-ingest", auditlogingest.DefaultConfig()}, {"enricher", enricher.DefaultConfig()},
		{"detector", detector.DefaultConfig()}, {"sink", sink.DefaultConfig()},
	} {
		fmt.Fprintf(&b, "\n## picket-%s\n\n| setting | default | what it is |\n| --- | --- | --- |\n", s.name)
		for _, k := range config.Keys(s.cfg) {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", k.Name, defaultText(k), cell(k.Doc))
		}
	}
	return b.String()
}

func defaultText(k config.Key) string {
	v := k.Default
	switch d := v.Interface().(type) {
	case time.Duration:
		return "`" + d.String() + "`"
	case []string:
		if len(d) == 0 {
			return ""
		}
		return "`" + cell(strings.Join(d, "`, `")) + "`"
	}
	if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct {
		// A list that only the file can set: by the names of its entries.
		var names []string
		for i := range v.Len() {
			names = append(names, v.Index(i).Field(0).String())
		}
		return cell(strings.Join(names, ", "))
	}
	if k.Name == "node" {
		return "the host name"
	}
	if v.IsZero() && v.Kind() == reflect.String {
		return ""
	}
	return fmt.Sprintf("`%v`", v.Interface())
}

func busPage() string {
	var b bytes.Buffer
	b.WriteString("# On the bus\n\n| stream | subjects |\n| --- | --- |\n")
	fmt.Fprintf(&b, "| `%s` | `%s` |\n", schemas.StreamRaw, "picket.raw.<cluster>.<node or source>.<class>")
	fmt.Fprintf(&b, "| `%s` | `%s` |\n", schemas.StreamEvents, "picket.events.<cluster>.<class>.<partition>")
	fmt.Fprintf(&b, "| `%s` | `%s` |\n", schemas.StreamMatch, "picket.match.<partition>")
	fmt.Fprintf(&b, "| `%s` | `%s` |\n", schemas.StreamAlerts, "picket.alerts.<cluster>.<severity>.<namespace>.<rule>")
	fmt.Fprintf(&b, "| `%s` | `%s` |\n", schemas.StreamDead, "picket.dead.<service>")
	b.WriteString("\nParts of a subject are made safe: dots, spaces and wildcards become `_`, an empty part is `_`.\n\n## Permissions\n\nWhat each service's credentials allow, for cluster `c` and node `n`.\n")
	for _, s := range schemas.AllServices() {
		p := schemas.PermissionsOf(s, "c", "n")
		fmt.Fprintf(&b, "\n### %s\n\npublish: `%s`\n\nsubscribe: `%s`\n", s, strings.Join(p.Publish, "`, `"), strings.Join(p.Subscribe, "`, `"))
	}
	b.WriteString("\n## Loss reasons\n\nEvery event that is lost or set aside is counted under one of these, in class `health` and in `picket_<service>_lost_events_total`.\n\n")
	for _, r := range schemas.LossReasons() {
		fmt.Fprintf(&b, "- `%s`\n", r)
	}
	return b.String()
}
