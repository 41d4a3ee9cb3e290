package detector

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"picket/internal/batch"
	"picket/internal/rules"
	"picket/schemas"
)

// healthOf is a report of a node's sensor.
func healthOf(t *testing.T, service, cluster string, nodes ...string) []byte {
	t.Helper()
	b := batch.NewBuilder(schemas.Health, schemas.Columns(schemas.Health))
	for _, node := range nodes {
		b.Str(schemas.Cluster, cluster)
		b.Str(schemas.Node, node)
		b.Str(schemas.HealthService, service)
		b.Str(schemas.Action, "counters")
		b.EndRow()
	}
	var enc batch.Encoder
	out, err := enc.Encode(b.Batch())
	if err != nil || len(out) != 1 {
		t.Fatal(len(out), err)
	}
	return out[0].Data
}

// TestSelection: each sensor is told what the rules need, beside what an operator has set, and anew when that goes.
func TestSelection(t *testing.T) {
	f := start(t)
	stop := f.run()
	defer stop()
	kv, err := f.admin.JS.KeyValue(t.Context(), schemas.BucketControl)
	if err != nil {
		t.Fatal(err)
	}
	key := func(node string) string { return schemas.ControlKey("prod.eu", node) }
	if _, err := kv.PutString(t.Context(), key("node-2"), `{"ignore":{"programs":["/usr/bin/agent"]},"watched_paths":["/old"]}`); err != nil {
		t.Fatal(err)
	}
	send := func(service string, nodes ...string) {
		f.send(schemas.EventsSubject("prod.eu", nodes[0], schemas.Health), healthOf(t, service, "prod.eu", nodes...))
		f.settled()
		// Two that are told after them: by then they have been told.
		for i := range 2 {
			fence := fmt.Sprintf("fence-%d-%d", len(nodes)+f.sent, i)
			f.send(schemas.EventsSubject("prod.eu", fence, schemas.Health), healthOf(t, schemas.ServiceSensor, "prod.eu", fence))
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if _, err := kv.Get(t.Context(), key(fence)); err == nil {
					break
				}
				if time.Now().After(end) {
					t.Fatal("nobody is told any more")
				}
			}
		}
	}
	get := func(node string) (schemas.Selection, uint64) {
		t.Helper()
		e, err := kv.Get(t.Context(), key(node))
		if err != nil {
			t.Fatalf("%s: %v", node, err)
		}
		var sel schemas.Selection
		if err := json.Unmarshal(e.Value(), &sel); err != nil {
			t.Fatal(err)
		}
		if err := sel.Validate(); err != nil {
			t.Error(err)
		}
		return sel, e.Revision()
	}
	send(schemas.ServiceSink, "_sink")
	send(schemas.ServiceSensor, "node-1", "node-2")
	one, revision := get("node-1")
	if !slices.Equal(one.WatchedPaths, []string{"/srv/keys"}) || !slices.Contains(one.WantedCalls, "close") || !slices.Contains(one.WantedCalls, "openat") {
		t.Errorf("node-1: %+v", one)
	}
	two, _ := get("node-2")
	if !slices.Equal(two.WatchedPaths, one.WatchedPaths) || !slices.Equal(two.Ignore.Programs, []string{"/usr/bin/agent"}) {
		t.Errorf("node-2: %+v", two)
	}
	if _, err := kv.Get(t.Context(), key("_sink")); err == nil {
		t.Error("a service that is no sensor has a selection")
	}
	// It is not written again and again.
	send(schemas.ServiceSensor, "node-1")
	if _, again := get("node-1"); again != revision {
		t.Errorf("written again: revision %d, then %d", revision, again)
	}
	// When it is looked at again, an operator's change that lost it is mended.
	if _, err := kv.PutString(t.Context(), key("node-1"), `{"classes":["process"]}`); err != nil {
		t.Fatal(err)
	}
	f.d.selector.seen.Add(key("node-1"), time.Now().Add(-2*lookAgain))
	send(schemas.ServiceSensor, "node-1")
	if one, _ = get("node-1"); !slices.Equal(one.Classes, []string{"process"}) || len(one.WatchedPaths) != 1 {
		t.Errorf("after an operator's change: %+v", one)
	}
	// Rules that an operator's selection leaves without events are told of, until
	// it feeds them again.
	state, err := f.admin.JS.KeyValue(t.Context(), schemas.BucketState)
	if err != nil {
		t.Fatal(err)
	}
	e, err := state.Get(t.Context(), schemas.UnfedPrefix+key("node-1"))
	if err != nil {
		t.Fatal(err)
	}
	var unfed schemas.Unfed
	if err := json.Unmarshal(e.Value(), &unfed); err != nil {
		t.Fatal(err)
	}
	if want := []schemas.UnfedRule{{Rule: "Key read", Needs: "open, openat"}, {Rule: "Connection ended", Needs: "close"}}; !slices.Equal(unfed.Rules, want) || time.Since(unfed.Time) > time.Minute {
		t.Errorf("unfed: %+v, want %v", unfed, want)
	}
	if _, err := state.Get(t.Context(), schemas.UnfedPrefix+key("node-2")); err == nil {
		t.Error("node-2 feeds every rule and is told of")
	}
	if _, err := kv.PutString(t.Context(), key("node-1"), `{"unwanted_calls":["close","openat"]}`); err != nil {
		t.Fatal(err)
	}
	f.d.selector.seen.Add(key("node-1"), time.Now().Add(-2*lookAgain))
	send(schemas.ServiceSensor, "node-1")
	if _, err := state.Get(t.Context(), schemas.UnfedPrefix+key("node-1")); err == nil {
		t.Error("node-1 feeds every rule again, since the calls are wanted, and is told of")
	}
	// What is no selection is left alone, and said.
	if _, err := kv.PutString(t.Context(), key("node-3"), "nonsense"); err != nil {
		t.Fatal(err)
	}
	send(schemas.ServiceSensor, "node-3")
	if e, err := kv.Get(t.Context(), key("node-3")); err != nil || string(e.Value()) != "nonsense" {
		t.Error(fmt.Sprint(e, err))
	}
}

// TestUnfed: a rule is without events where the operator leaves out all calls that
// could feed it and none that a rule names, or the classes of its events.
func TestUnfed(t *testing.T) {
	of := func(condition string) *need {
		set, warnings, err := rules.Load([]rules.Source{{Name: "a.yaml", Data: []byte("- {rule: R, desc: d, output: o, priority: INFO, condition: " + condition + "}")}}, rules.Options{})
		if err != nil || len(warnings) > 1 { // one: it names no call
			t.Fatal(err, warnings)
		}
		return &need{paths: set.WatchedPaths(), calls: set.Syscalls(), needs: set.Needs()}
	}
	any, named := of("fd.filename = x and evt.is_open_write = true"), of("evt.type = openat and fd.filename = x and evt.is_open_write = true")
	var all []string
	for _, calls := range any.needs[0].Calls {
		all = append(all, calls...)
	}
	some := all[1:]
	for _, c := range []struct {
		name  string
		need  *need
		sel   schemas.Selection
		unfed int
	}{
		{"nothing left out", any, schemas.Selection{}, 0},
		{"all calls left out", any, schemas.Selection{UnwantedCalls: &all}, 1},
		{"all but one left out", any, schemas.Selection{UnwantedCalls: &some}, 0},
		{"all left out, one of which the rule names", named, schemas.Selection{UnwantedCalls: &all}, 0},
		{"another class", named, schemas.Selection{Classes: []string{"network"}}, 1},
		{"its class", named, schemas.Selection{Classes: []string{"file"}}, 0},
	} {
		if got := c.need.unfed(c.sel); len(got.Rules) != c.unfed {
			t.Errorf("%s: without events %+v, want %d", c.name, got.Rules, c.unfed)
		}
	}
}
