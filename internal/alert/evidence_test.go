package alert_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"picket/internal/alert"
	"picket/internal/batch"
	"picket/internal/rules"
	"picket/schemas"
)

// However long the lists and maps of an event, its finding can be published,
// and the shorter values are whole.
func TestLargeEvents(t *testing.T) {
	long := strings.Repeat("☃", 5_000)
	var many []string
	var more = map[string]string{}
	for i := range 400 {
		many = append(many, fmt.Sprint(i, long))
		more[fmt.Sprintf("arg%03d", i)] = long
	}
	for _, tt := range []struct {
		class  schemas.Class
		column schemas.FieldID
		set    func(*batch.Builder)
	}{
		{schemas.Process, schemas.ProcessArgv, func(b *batch.Builder) { b.List(schemas.ProcessArgv, many) }},
		{schemas.Kernel, schemas.CallArguments, func(b *batch.Builder) { b.Map(schemas.CallArguments, more) }},
		{schemas.DNS, schemas.DNSRecords, func(b *batch.Builder) { b.List(schemas.DNSRecords, many[:64]) }},
	} {
		const rule = "- rule: r\n  desc: d\n  condition: evt.action = exec\n  output: o\n  priority: INFO\n  warn_evttypes: false\n"
		f := one(t, rule, tt.class, execEvent, tt.set)
		data, err := alert.Encode(f)
		if err != nil {
			t.Errorf("%s: %v", tt.column, err)
			continue
		}
		if len(data) > alert.MaxBytes || len(data) < 30<<10 || !utf8.Valid(data) {
			t.Errorf("%s: %d bytes", tt.column, len(data))
		}
		var got schemas.Finding
		if err := json.Unmarshal(data, &got); err != nil {
			t.Fatal(err)
		}
		ev := got.Evidences[0].Data
		if ev["container_image_name"] != "registry.example.test/shop" || ev["event_id"] != got.Evidences[0].UID {
			t.Errorf("%s: other values: %v %v", tt.column, ev["container_image_name"], ev["event_id"])
		}
		n := 0
		switch v := ev[tt.column.String()].(type) {
		case []any:
			n = len(v)
		case map[string]any:
			n = len(v)
		}
		if n != 256 && n != 64 {
			t.Errorf("%s: %d elements", tt.column, n)
		}
	}
}

// BenchmarkNew is what an event costs that raises an alert: evaluation, finding
// and JSON.
func BenchmarkNew(b *testing.B) {
	set, _, err := rules.Load([]rules.Source{{Name: "t.yaml", Data: []byte(nodeRule)}}, rules.Options{})
	if err != nil {
		b.Fatal(err)
	}
	build := batch.NewBuilder(schemas.Process, schemas.Columns(schemas.Process))
	execEvent(build)
	build.EndRow()
	events, eval, size := build.Batch(), set.NewEvaluator(), 0
	b.ReportAllocs()
	for b.Loop() {
		eval.Eval(events, func(m rules.Match) {
			data, err := alert.Encode(alert.New(m, events, now))
			if err != nil {
				b.Fatal(err)
			}
			size = len(data)
		})
	}
	b.ReportMetric(float64(size), "json-bytes")
}
