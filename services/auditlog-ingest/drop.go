package auditlogingest

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"picket/internal/batch"
	"picket/internal/rules"
	"picket/schemas"
	"picket/services/auditlog-ingest/source"
)

// Drop is one entry of the list of events that are not worth their bytes.
type Drop struct {
	Name      string `yaml:"name" doc:"Name of the entry, under which what it leaves out is counted."`
	Condition string `yaml:"condition" doc:"Condition of the rule language, over fields of audit events."`
}

// maxDrops bounds the list.
const maxDrops = 64

// DefaultDrop is what a cluster writes by itself many times a second and no rule
// reads. Each entry is bound to the cluster's own accounts and to success, so
// that nobody hides in it.
func DefaultDrop() []Drop {
	return []Drop{
		{"leases", "ka.target.resource = leases and ka.target.group = coordination.k8s.io and ka.verb in (get, list, watch, create, update, patch) and ka.user.name startswith system: and ka.response.code < 300"},
		{"node heartbeats", "ka.target.resource = nodes and ka.target.subresource = status and ka.verb in (get, update, patch) and ka.user.name startswith system:node: and ka.response.code < 300"},
		{"events", "ka.target.resource = events and ka.verb in (create, update, patch) and ka.user.name startswith system: and ka.response.code < 300"},
		{"health checks", "(ka.uri in (/healthz, /livez, /readyz) or ka.uri startswith \"/healthz?\" or ka.uri startswith \"/livez?\" or ka.uri startswith \"/readyz?\") and ka.verb = get and ka.response.code = 200 and ka.user.name startswith system:"},
	}
}

// drops is the checked list.
type drops struct{ set *rules.Set }

// newDrops checks and compiles the list; messages name the YAML key.
func newDrops(list []Drop) (*drops, error) {
	if len(list) > maxDrops {
		return nil, fmt.Errorf("drop has %d entries: at most %d", len(list), maxDrops)
	}
	var all []rules.Source
	seen := map[string]bool{}
	for i, d := range list {
		switch {
		case strings.TrimSpace(d.Name) == "" || len(d.Name) > 64:
			return nil, fmt.Errorf("drop[%d].name is %q: give a name of 1 to 64 characters", i, d.Name)
		case seen[d.Name]:
			return nil, fmt.Errorf("drop[%d].name is %q, as an entry before it: give each its own", i, d.Name)
		case strings.TrimSpace(d.Condition) == "":
			return nil, fmt.Errorf("drop[%d].condition (%s) is empty: it would leave out everything", i, d.Name)
		}
		seen[d.Name] = true
		data, err := yaml.Marshal([]map[string]string{{"rule": d.Name, "desc": d.Name, "condition": d.Condition, "output": "left out", "priority": "INFO", "source": "k8s_audit"}})
		if err != nil {
			return nil, err
		}
		one := rules.Source{Name: fmt.Sprintf("drop[%d]", i), Data: data}
		if _, _, err := rules.Load([]rules.Source{one}, rules.Options{Strict: true}); err != nil {
			// Without the line: that of a text which the user has never seen.
			if errs, ok := errors.AsType[rules.Errors](err); ok && len(errs) > 0 {
				err = errors.New(strings.TrimSpace(errs[0].Message + ". " + errs[0].Remedy))
			}
			return nil, fmt.Errorf("drop[%d].condition (%s): %w", i, d.Name, err)
		}
		all = append(all, one)
	}
	if len(all) == 0 {
		return &drops{}, nil
	}
	set, _, err := rules.Load(all, rules.Options{Strict: true})
	if err != nil {
		return nil, fmt.Errorf("drop: %w", err)
	}
	return &drops{set}, nil
}

// dropper applies the list for one lane. It is used by one goroutine.
type dropper struct {
	eval *rules.Evaluator // nil: nothing is left out
	out  *batch.Builder
	by   []string // by row: the entry that leaves it out
}

// droppers share nothing but the compiled list.
func (d *drops) dropper() *dropper {
	if d == nil || d.set == nil {
		return &dropper{}
	}
	return &dropper{eval: d.set.NewEvaluator()}
}

// dropCounts are totals by entry, for health reports.
type dropCounts struct {
	mu sync.Mutex
	by map[string]uint64
}

func (c *dropCounts) add(name string, n uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[string]uint64{}
	}
	c.by[name] += n
	return c.by[name]
}

// filter returns the batch without what the list leaves out, nil if nothing is
// left, with ids, which may be nil, made to fit. The result is valid until the
// next call.
func (d *dropper) filter(g *ground, s source.Source, b *batch.Batch, ids []known) (*batch.Batch, []known, error) {
	if d.eval == nil || b.Rows() == 0 {
		return b, ids, nil
	}
	d.by = append(d.by[:0], make([]string, b.Rows())...)
	gone := 0
	d.eval.Eval(b, func(m rules.Match) {
		if d.by[m.Row] == "" {
			d.by[m.Row] = m.Rule.Name
			gone++
		}
	})
	if gone == 0 {
		return b, ids, nil
	}
	counts := map[string]int{}
	for _, name := range d.by {
		if name != "" {
			counts[name]++
		}
	}
	for name, n := range counts {
		g.tally.dropped.add(s, n, name)
		g.health.Count(schemas.Audit.String(), "dropped: "+name, g.dropped.add(name, uint64(n)))
	}
	if gone == b.Rows() {
		return nil, nil, nil
	}
	if d.out == nil {
		d.out = batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
	}
	d.out.Reset()
	var kept []known
	for r, name := range d.by {
		if name != "" {
			continue
		}
		d.out.Copy(b, r)
		if ids != nil {
			kept = append(kept, ids[r])
		}
	}
	return d.out.Batch(), kept, nil
}
