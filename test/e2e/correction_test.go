package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"picket/internal/batch"
	"picket/internal/kubetest"
	"picket/schemas"
)

// TestCorrection: an event of a pod that the API server shows too late is
// stored and raises its alert at once; when the pod is shown, the view and the
// alert's next revision say what it is.
func TestCorrection(t *testing.T) {
	c := newCluster(t)
	api := kubetest.Start(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system", UID: "cluster"}})
	kubeconfig, err := api.Kubeconfig(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	rules := filepath.Join(c.dir, "rules.yaml")
	if err := os.WriteFile(rules, []byte("- rule: Shell\n  desc: A shell.\n  condition: evt.type = execve and proc.name = bash\n  output: Shell pod=%k8s.pod.name\n  priority: WARNING\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.service("enricher", "--kubernetes.enabled=true", "--kubernetes.kubeconfig", kubeconfig, "--kubernetes.context", "right", "--kubernetes.wait_for_pod", "200ms")
	c.service("detector", "--clickhouse.url", c.chURL, "--rules", rules)
	c.service("sink", "--clickhouse.url", c.chURL)
	for _, name := range []string{"enricher", "detector", "sink"} {
		c.start(name)
	}
	admin := c.bus(schemas.ServiceAdmin)
	defer admin.Close()
	send := func(n int, c schemas.Class, pod, container string) {
		t.Helper()
		b := batch.NewBuilder(c, schemas.RawColumns(c))
		b.Bytes16(schemas.EventID, schemas.Hash128("event", c.String(), fmt.Sprint(n)))
		b.Str(schemas.Action, "exec")
		b.Str(schemas.Syscall, "execve")
		b.Str(schemas.Cluster, "e2e")
		b.Str(schemas.Node, "n1")
		b.Int64(schemas.EventTime, time.Now().UnixNano())
		b.Str(schemas.ProcessName, "bash")
		b.Str(schemas.ProcessCommand, "bash")
		b.Str(schemas.PodUID, pod)
		b.Str(schemas.ContainerID, container)
		b.EndRow()
		enc, err := batch.Encode(b.Batch())
		if err != nil {
			t.Fatal(err)
		}
		m := nats.NewMsg(schemas.RawSubject("e2e", "n1", c))
		m.Data = enc[0].Data
		id := schemas.BatchIDOf(c.String(), uint64(n))
		m.Header.Set(schemas.HeaderBatchID, id)
		m.Header.Set(schemas.HeaderRows, "1")
		if _, err := admin.JS.PublishMsg(context.Background(), m, jetstream.WithMsgID(id)); err != nil {
			t.Fatal(err)
		}
	}
	until := func(sql, want string) {
		t.Helper()
		got := ""
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			if got = fmt.Sprint(c.rows(sql)); got == want {
				return
			}
		}
		t.Fatalf("%s\n gives %s\n want  %s", sql, got, want)
	}
	send(1, schemas.Process, "late", "c-late")
	send(2, schemas.Process, "never", "c-never")
	send(3, schemas.Process, "", "") // of the host
	send(4, schemas.File, "late", "c-late")
	const events = "SELECT k8s_pod_uid, k8s_join, k8s_pod_name, k8s_workload_kind, container_image_name, process_command_line FROM %s ORDER BY 1"
	until(fmt.Sprintf(events, "process"), "[[ host    bash] [late unresolved    bash] [never unresolved    bash]]")
	until("SELECT revision, k8s_pod_name, message FROM alerts FINAL WHERE container_id = 'c-late'", "[[1  Shell pod=<NA>]]")

	controller := true
	api.Put(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-0", UID: "late", Labels: map[string]string{"app": "web"},
		OwnerReferences: []metav1.OwnerReference{{Kind: "StatefulSet", Name: "web", UID: "ss", Controller: &controller}}},
		Spec:   corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "web", Image: "registry.example.com/web:v1"}}},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "web", ContainerID: "containerd://c-late"}}}})
	until(fmt.Sprintf(events, "process_corrected"), "[[ host    bash] [late corrected web-0 StatefulSet registry.example.com/web bash] [never unresolved    bash]]")
	until(fmt.Sprintf(events, "file_corrected"), "[[late corrected web-0 StatefulSet registry.example.com/web bash]]")
	until("SELECT k8s_pod_labels['app'], k8s_namespace_name FROM process_corrected WHERE k8s_pod_name = 'web-0' AND time > now() - INTERVAL 1 HOUR", "[[web shop]]")
	until("SELECT revision, k8s_namespace_name, k8s_pod_name, k8s_workload_name, container_image_name, message FROM alerts FINAL WHERE container_id = 'c-late'",
		"[[2 shop web-0 web registry.example.com/web Shell pod=<NA> (known later: pod=shop/web-0 workload=StatefulSet/web)]]")
	until("SELECT count(), uniqExact(alert_id) FROM alerts FINAL", "[[3 3]]")
	for _, class := range schemas.Classes() { // every view there is can be read
		if class != schemas.Health && class != schemas.Correction {
			c.number("SELECT count() FROM " + class.View() + " SETTINGS enable_analyzer = 0")
			c.number("SELECT count() FROM " + class.View())
		}
	}
	if n := c.number("SELECT count() FROM correction"); n != 1 {
		t.Errorf("%d corrections", n)
	}
}
