package detector

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"picket/internal/natsserver/natstest"
	"picket/internal/rulepack"
	"picket/internal/rules"
	"picket/schemas"
)

func oneRule(name, condition string) string {
	return "- rule: " + name + "\n  desc: d\n  condition: evt.type = execve and " + condition + "\n  output: o\n  priority: WARNING\n"
}

// push stores a pack of one file and returns its revision.
func (f *fixture) push(text string) uint64 {
	f.t.Helper()
	p, err := rulepack.New([]rules.Source{{Name: "pushed.yaml", Data: []byte(text)}}, "test", time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	data, err := p.Encode()
	if err != nil {
		f.t.Fatal(err)
	}
	return f.pushRaw(data)
}

func (f *fixture) pushRaw(data []byte) uint64 {
	f.t.Helper()
	revision, err := f.bucket().Put(context.Background(), schemas.RulePackKey, data)
	if err != nil {
		f.t.Fatal(err)
	}
	return revision
}

func (f *fixture) bucket() jetstream.KeyValue {
	f.t.Helper()
	kv, err := rulepack.Bucket(context.Background(), f.admin.JS)
	if err != nil {
		f.t.Fatal(err)
	}
	return kv
}

// keep runs the keeper until stop is called.
func (f *fixture) keep() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { f.d.keeper.run(ctx) })
	select {
	case <-f.d.keeper.ready:
	case <-time.After(10 * time.Second):
		f.t.Fatal("the bucket was not looked at")
	}
	return func() { cancel(); wg.Wait() }
}

// told waits until a state is told that want accepts.
func (f *fixture) told(what string, want func(schemas.RulesState) bool) schemas.RulesState {
	f.t.Helper()
	kv, err := f.admin.JS.KeyValue(context.Background(), schemas.BucketState)
	if err != nil {
		f.t.Fatal(err)
	}
	var s schemas.RulesState
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		e, err := kv.Get(context.Background(), schemas.RulesStatePrefix+f.d.keeper.id)
		if err != nil {
			continue
		}
		s = schemas.RulesState{}
		if err := json.Unmarshal(e.Value(), &s); err != nil {
			f.t.Fatal(err)
		}
		if want(s) {
			return s
		}
	}
	f.t.Fatalf("%s: never told; last %+v %+v", what, s, s.Refused)
	return s
}

func names(set *rules.Set) string {
	var out []string
	for _, r := range set.Rules() {
		out = append(out, r.Name)
	}
	return strings.Join(out, ",")
}

// TestPushedPack: a pack comes into force while the detector runs; one that
// does not load is refused whole with its place in the file; withdrawn, the
// detector's own rules stand again.
func TestPushedPack(t *testing.T) {
	t.Parallel()
	f := start(t)
	stop := f.keep()
	f.told("own rules", func(s schemas.RulesState) bool {
		return s.Revision == 0 && s.Rules == 4 && s.Refused == nil && s.Source == "the pack that comes with Picket"
	})

	first := f.push(oneRule("first", "proc.name = a"))
	f.told("first", func(s schemas.RulesState) bool { return s.Revision == first && s.Rules == 1 })
	if got := names(f.d.keeper.set()); got != "first" {
		t.Errorf("in force: %s", got)
	}
	bad := f.push(oneRule("good", "proc.name = a") + oneRule("bad", "proc.nmae = a"))
	s := f.told("bad", func(s schemas.RulesState) bool { return s.Refused != nil })
	if s.Revision != first || s.Refused.Source != pushedName(bad) || !strings.Contains(s.Refused.Reason, "pushed.yaml:8:36: ") || !strings.Contains(s.Refused.Reason, "did you mean proc.name?") {
		t.Errorf("%+v %+v", s, s.Refused)
	}
	if got := names(f.d.keeper.set()); got != "first" {
		t.Errorf("after a bad pack: %s", got)
	}
	if n := testutil.ToFloat64(f.d.keeper.metrics.stale); n != 1 {
		t.Errorf("stale: %v", n)
	}
	f.pushRaw([]byte("no pack at all"))
	f.told("garbage", func(s schemas.RulesState) bool {
		return s.Refused != nil && strings.Contains(s.Refused.Reason, "not a rule pack")
	})
	stop()

	kv, err := f.admin.JS.KeyValue(t.Context(), schemas.BucketState)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Get(t.Context(), schemas.RulesStatePrefix+f.d.keeper.id); err == nil {
		t.Error("a detector that has ended still tells its rules")
	}
	// A detector that starts now takes the newest that loads, and says that
	// there is a newer one.
	set, warnings, err := LoadRules(nil)
	if err != nil {
		t.Fatal(err)
	}
	f.d.keeper = newKeeper(f.d.bus, newFileWatch(nil), set, len(warnings), f.d.keeper.log, prometheus.NewRegistry(), f.d.selector.use)
	stop = f.keep()
	f.told("after a restart", func(s schemas.RulesState) bool { return s.Revision == first && s.Refused != nil })

	second := f.push(oneRule("second", "proc.name = a"))
	f.told("second", func(s schemas.RulesState) bool { return s.Revision == second && s.Refused == nil })
	if n := testutil.ToFloat64(f.d.keeper.metrics.stale); n != 0 {
		t.Errorf("stale: %v", n)
	}
	if err := f.bucket().Delete(t.Context(), schemas.RulePackKey); err != nil {
		t.Fatal(err)
	}
	f.told("withdrawn", func(s schemas.RulesState) bool { return s.Revision == 0 && s.Refused == nil })
	if got := names(f.d.keeper.set()); got != names(set) {
		t.Errorf("in force: %s", got)
	}
	// Bad from the beginning: there is none to keep.
	f.push(oneRule("bad", "proc.nmae = a"))
	f.told("bad first", func(s schemas.RulesState) bool { return s.Revision == 0 && s.Refused != nil })
	if err := f.bucket().Delete(t.Context(), schemas.RulePackKey); err != nil {
		t.Fatal(err)
	}
	f.told("withdrawn again", func(s schemas.RulesState) bool { return s.Refused == nil })
	stop()
}

// TestRuleFiles: files of the configuration are loaded anew when they change,
// and stay in force as they were while they do not load.
func TestRuleFiles(t *testing.T) {
	t.Parallel()
	f := start(t)
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a.yaml", oneRule("one", "proc.name = a"))
	files := newFileWatch([]string{dir})
	set, warnings, err := LoadRules([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	f.d.keeper = newKeeper(f.d.bus, files, set, len(warnings), f.d.keeper.log, prometheus.NewRegistry(), f.d.selector.use)
	stop := f.keep()
	defer func() { stop() }()
	is := func(want string) func(schemas.RulesState) bool {
		return func(s schemas.RulesState) bool {
			return s.Refused == nil && names(f.d.keeper.set()) == want && strings.Contains(s.Source, dir)
		}
	}
	f.told("at first", is("one"))
	write("b.yaml", oneRule("two", "proc.name = b"))
	f.told("a file more", is("one,two"))
	write("b.yaml", "- rule: three\n  priority: LOUD\n")
	s := f.told("a bad file", func(s schemas.RulesState) bool { return s.Refused != nil })
	if !strings.Contains(s.Refused.Reason, filepath.Join(dir, "b.yaml")+":1:") || s.Rules != 2 {
		t.Errorf("%+v %+v", s, s.Refused)
	}
	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	f.told("mended", is("one"))

	// A pushed pack goes before them, and what changes meanwhile is there when
	// it is withdrawn.
	f.push(oneRule("pushed", "proc.name = a"))
	f.told("pushed", func(s schemas.RulesState) bool { return names(f.d.keeper.set()) == "pushed" })
	write("a.yaml", oneRule("changed", "proc.name = a"))
	time.Sleep(3 * lookEvery)
	if got := names(f.d.keeper.set()); got != "pushed" {
		t.Errorf("in force: %s", got)
	}
	if err := f.bucket().Delete(t.Context(), schemas.RulePackKey); err != nil {
		t.Fatal(err)
	}
	f.told("withdrawn", is("changed"))

	// Withdrawn while the files do not load, it stays until they do.
	f.push(oneRule("pushed", "proc.name = a"))
	f.told("pushed again", func(s schemas.RulesState) bool { return names(f.d.keeper.set()) == "pushed" })
	write("a.yaml", "- rule: changed\n")
	time.Sleep(3 * lookEvery)
	if err := f.bucket().Delete(t.Context(), schemas.RulePackKey); err != nil {
		t.Fatal(err)
	}
	f.told("withdrawn to files that do not load", func(s schemas.RulesState) bool { return s.Refused != nil && names(f.d.keeper.set()) == "pushed" })
	write("a.yaml", oneRule("mended", "proc.name = a"))
	f.told("files mended after the pack was withdrawn", is("mended"))
}

// TestSwapUnderLoad: while packs are pushed one after the other every event is
// evaluated by exactly one of them: none is missed, and none raises twice.
func TestSwapUnderLoad(t *testing.T) {
	f := start(t)
	packs := []string{oneRule("odd", "proc.name = bash"), oneRule("even", "proc.name = bash")}
	f.push(packs[0])
	f.d.keeper.lookAtBucket(t.Context())
	stop := f.run()
	done := make(chan int)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		swaps := 0
		for ; ctx.Err() == nil; swaps++ {
			p, err := rulepack.New([]rules.Source{{Name: "p.yaml", Data: []byte(packs[swaps%2])}}, "test", time.Now())
			if err != nil {
				t.Error(err)
				break
			}
			data, err := p.Encode()
			if err != nil {
				t.Error(err)
				break
			}
			if _, err := f.bucket().Put(context.Background(), schemas.RulePackKey, data); err != nil {
				t.Error(err)
				break
			}
			f.d.keeper.lookAtBucket(context.Background())
		}
		done <- swaps
	}()
	const batches, each = 300, 7
	execNames := []string{"bash", "bash", "cat", "bash", "bash", "bash", "bash"}
	for i := range batches {
		f.send(processSubject, execs(t, i*each, "", execNames...))
	}
	f.settled()
	cancel()
	swaps := <-done
	stop()
	byEvent, byRule := map[string]int{}, map[string]int{}
	for _, m := range f.stored(schemas.StreamAlerts) {
		a := finding(t, m)
		byEvent[a.Evidences[0].UID]++
		byRule[a.Unmapped.Rule]++
	}
	for i := range batches * each {
		want := 1
		if i%each == 2 {
			want = 0
		}
		if id := schemas.FormatID(schemas.Hash128(strconv.Itoa(i))); byEvent[id] != want {
			t.Errorf("event %d raised %d findings, want %d", i, byEvent[id], want)
		}
	}
	t.Logf("%d swaps during %d batches; findings by rule: %v", swaps, batches, byRule)
	if swaps < 10 || byRule["odd"] == 0 || byRule["even"] == 0 {
		t.Errorf("%d swaps, findings by rule %v: the load was not swapped under", swaps, byRule)
	}
	if n := testutil.ToFloat64(f.d.metrics.events.WithLabelValues("process")); n != batches*each {
		t.Errorf("%v events evaluated, want %d", n, batches*each)
	}
	if n := len(f.stored(schemas.StreamDead)); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// TestSelectionFollowsRules: when other rules come into force, sensors are told
// what those need.
func TestSelectionFollowsRules(t *testing.T) {
	f := start(t)
	stop := f.run()
	defer stop()
	kv, err := f.admin.JS.KeyValue(t.Context(), schemas.BucketControl)
	if err != nil {
		t.Fatal(err)
	}
	watched := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			f.send(schemas.EventsSubject("prod", "node-1", schemas.Health), healthOf(t, schemas.ServiceSensor, "prod", "node-1"))
			if e, err := kv.Get(t.Context(), schemas.ControlKey("prod", "node-1")); err == nil && strings.Contains(string(e.Value()), want) {
				return
			}
		}
		t.Fatalf("the sensor is never told of %s", want)
	}
	watched("/srv/keys")
	f.push(strings.ReplaceAll(needRules, "/srv/keys", "/srv/other"))
	f.d.keeper.lookAtBucket(t.Context())
	watched("/srv/other")
}

// TestStartsWithPushedPack: what waited for a detector is judged by the pushed
// pack, not by the rules it has until it has asked for that.
func TestStartsWithPushedPack(t *testing.T) {
	t.Parallel()
	s := natstest.Start(t)
	f := &fixture{t: t, admin: natstest.Connect(t, s, schemas.ServiceAdmin)}
	f.push(oneRule("pushed", "proc.name = bash"))
	f.send(processSubject, execs(t, 1, "", "bash", "cat", "bash"))
	own := filepath.Join(t.TempDir(), "own.yaml")
	if err := os.WriteFile(own, []byte(oneRule("own", "proc.name = bash")), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	cfg.NATS, cfg.Rules, cfg.Log.File = natstest.Config(s, schemas.ServiceDetector), []string{own}, filepath.Join(t.TempDir(), "log")
	cfg.ClickHouse.URL = "http://127.0.0.1:1" // nobody answers: the alerts' writer waits
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg) }()
	f.settled()
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) { // the writer's wait was ended
		t.Error(err)
	}
	alerts := f.stored(schemas.StreamAlerts)
	for _, m := range alerts {
		if r := finding(t, m).Unmapped.Rule; r != "pushed" {
			t.Errorf("an alert of rule %s", r)
		}
	}
	if len(alerts) != 2 {
		t.Errorf("%d alerts, want 2", len(alerts))
	}
}
