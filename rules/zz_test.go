package rules_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"testing"
	"time"

	"picket/internal/batch"
	"picket/internal/rules"
	"picket/schemas"
)

func TestZZ(t *testing.T) {
	f, _ := os.Open("/work/shared/audit-samples/kube-apiserver-v1.34.jsonl")
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	b := batch.NewBuilder(schemas.Audit, schemas.Columns(schemas.Audit))
	s := func(m map[string]any, k string) string { v, _ := m[k].(string); return v }
	var lines []string
	for sc.Scan() {
		var e map[string]any
		json.Unmarshal(sc.Bytes(), &e)
		u, _ := e["user"].(map[string]any)
		o, _ := e["objectRef"].(map[string]any)
		b.Str(schemas.AuditStage, s(e, "stage"))
		b.Str(schemas.AuditVerb, s(e, "verb"))
		b.Str(schemas.AuditURI, s(e, "requestURI"))
		b.Str(schemas.AuditUser, s(u, "username"))
		if i, ok := e["impersonatedUser"].(map[string]any); ok {
			b.Str(schemas.AuditImpersonated, s(i, "username"))
		}
		b.Str(schemas.AuditResource, s(o, "resource"))
		b.Str(schemas.AuditSubresource, s(o, "subresource"))
		b.Str(schemas.AuditNamespace, s(o, "namespace"))
		b.Str(schemas.AuditName, s(o, "name"))
		a, _ := e["annotations"].(map[string]any)
		b.Str(schemas.AuditDecision, s(a, "authorization.k8s.io/decision"))
		if st, ok := e["responseStatus"].(map[string]any); ok {
			b.Int64(schemas.AuditResponseCode, int64(st["code"].(float64)))
		}
		if r, ok := e["requestObject"]; ok {
			d, _ := json.Marshal(r)
			b.Str(schemas.AuditRequest, string(d))
		}
		if r, ok := e["responseObject"]; ok {
			d, _ := json.Marshal(r)
			b.Str(schemas.AuditResponse, string(d))
		}
		t, _ := time.Parse(time.RFC3339Nano, s(e, "stageTimestamp"))
		b.Int64(schemas.EventTime, t.UnixNano())
		b.EndRow()
		lines = append(lines, sc.Text())
	}
	set := load(t)
	ev := set.NewEvaluator()
	n := map[string]int{}
	ev.Eval(b.Batch(), func(m rules.Match) {
		n[m.Rule.Name]++
		fmt.Println(m.Rule.Priority, m.Rule.Name, "|", m.Output())
	})
	var k []string
	for x := range n {
		k = append(k, x)
	}
	sort.Strings(k)
	for _, x := range k {
		fmt.Println(n[x], x)
	}
	src, _ := rules.ReadPaths("/work/shared/falco-rules/k8s_audit_rules.yaml")
	fs, _, err := rules.Load(src, rules.Options{})
	fmt.Println(err)
	n = map[string]int{}
	fs.NewEvaluator().Eval(b.Batch(), func(m rules.Match) { n[m.Rule.Name]++ })
	fmt.Println(n)
}
