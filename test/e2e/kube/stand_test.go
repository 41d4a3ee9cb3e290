// Package kube tries all of Picket on a real Kubernetes node (test/cluster): kernel events and audit events of real
// pods, what they are attributed to, and which alerts there are and are not.
package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"picket/internal/store"
	"picket/internal/up"
	"picket/schemas"
	"picket/services/sensor"
	"picket/test/cluster"
)

// Set in the environment of this test binary it makes it Picket: its options as JSON.
const upVariable = "PICKET_E2E_UP"

const clusterName = "e2e"

func TestMain(m *testing.M) {
	cluster.Serve()
	if options := os.Getenv(upVariable); options != "" {
		if err := runPicket(options); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runPicket is all of Picket, until SIGTERM.
func runPicket(options string) error {
	cfg := sensor.DefaultConfig()
	o := up.Options{Sensor: &cfg}
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s, err := up.Start(ctx, o)
	if err != nil {
		return err
	}
	defer s.Stop()
	fmt.Println("ready")
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.Failed():
		return err
	}
}

// stand is a node, all of Picket on it, and what the API server said of its pods meanwhile.
type stand struct {
	t       *testing.T
	dir     string
	cluster *cluster.Cluster
	kube    *kubernetes.Clientset
	db      *store.DB
	begin   time.Time
	// enricher is the URL of its admin port.
	enricher string

	mu   sync.Mutex
	pods map[string]*corev1.Pod // by UID, as last seen
}

// newStand starts the API server, then Picket, then the node, so that Picket sees the node start.
func newStand(t *testing.T) *stand {
	t.Helper()
	if err := cluster.Check(); errors.Is(err, cluster.ErrMissing) {
		t.Skipf("SKIPPED (%v): PICKET WAS NOT TRIED ON A REAL KUBERNETES NODE", err)
	}
	ctx := t.Context()
	s := &stand{t: t, dir: t.TempDir(), pods: map[string]*corev1.Pod{}, begin: time.Now()}
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", s.dir+"/", "picket/cmd/picket-clickhouse")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build picket-clickhouse: %v\n%s", err, out)
	}
	var err error
	if s.cluster, err = cluster.New(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	webhook := s.cluster.HostIP + ":9765"
	if err := s.cluster.StartAPI(ctx, "http://"+webhook+"/audit"); err != nil {
		t.Fatal(err)
	}
	s.startPicket(webhook)
	cfg, err := s.cluster.Client(cluster.Admin)
	if err != nil {
		t.Fatal(err)
	}
	cfg.UserAgent = "e2e" // of the test, not of a person
	cfg.QPS, cfg.Burst = 200, 400
	if s.kube, err = kubernetes.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	s.watchPods()
	if err := s.cluster.StartNode(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f s: the node is Ready, with Picket on it", time.Since(s.begin).Seconds())
	return s
}

// startPicket starts Picket as the node's: to its sensor process 1 is the node's first process, by which it knows the
// node's mounts and finds the files of containerd. (The sensor has the machine's pid namespace, as it must.) Its BPF file system is its own, so that nothing is pinned when it has
// ended, however it did.
func (s *stand) startPicket(webhook string) {
	t := s.t
	data := filepath.Join(s.dir, "picket")
	options, err := json.Marshal(map[string]any{
		"Dir": data, "Cluster": clusterName, "Node": cluster.NodeName, "NATSListen": "127.0.0.1:0", "ClickHouseListen": "127.0.0.1:0",
		"ClickHouseBinary": filepath.Join(s.dir, "picket-clickhouse"), "WebhookListen": webhook, "AuditFile": s.cluster.AuditLog(),
		"Kubeconfig": s.cluster.Kubeconfig(cluster.Admin),
	})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	output := filepath.Join(s.dir, "picket.out")
	out, err := os.Create(output)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", `mount --bind "/proc/$0" /proc/1 && mount -t bpf bpf /sys/fs/bpf && exec "$1"`, fmt.Sprint(s.cluster.PID), self)
	c.Env = append(os.Environ(), upVariable+"="+string(options))
	c.Stdout, c.Stderr = out, out
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { // ends with the process
		_ = c.Wait() // what it said is in its output
		close(ended)
	}()
	said := func() string { b, _ := os.ReadFile(output); return string(b) }
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Errorf("Picket does not stop: %s", said())
			_ = c.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("Picket said: %s", said())
			logs, _ := filepath.Glob(filepath.Join(data, "log/*.log"))
			for _, l := range logs {
				b, _ := os.ReadFile(l)
				t.Logf("%s:\n%s", filepath.Base(l), b[max(0, len(b)-2000):])
			}
		}
	})
	for end := time.Now().Add(2 * time.Minute); said() != "ready\n"; time.Sleep(50 * time.Millisecond) {
		select {
		case <-ended:
			t.Fatalf("Picket ended: %s", said())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("Picket is not ready: %s", said())
		}
	}
	at, err := up.Find(data)
	if err != nil {
		t.Fatal(err)
	}
	s.enricher = at.Admin[schemas.ServiceEnricher]
	db := store.DefaultConfig()
	db.URL = at.ClickHouse
	if s.db, err = store.Open(db, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.db.Close() })
}

// watchPods keeps what the API server says of every pod.
func (s *stand) watchPods() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	s.t.Cleanup(func() { cancel(); wg.Wait() })
	wg.Go(func() {
		for ctx.Err() == nil {
			w, err := s.kube.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{})
			if err != nil { // the API server is stopped in a scenario
				time.Sleep(100 * time.Millisecond)
				continue
			}
			for e := range w.ResultChan() {
				if p, ok := e.Object.(*corev1.Pod); ok && e.Type != watch.Bookmark {
					s.mu.Lock()
					s.pods[string(p.UID)] = p
					s.mu.Unlock()
				}
			}
			w.Stop()
		}
	})
}

// seen returns the pods of a namespace that there were, by UID.
func (s *stand) seen(namespace string) map[string]*corev1.Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]*corev1.Pod{}
	for uid, p := range s.pods {
		if p.Namespace == namespace {
			out[uid] = p
		}
	}
	return out
}

// uids returns those of all pods that there were.
func (s *stand) uids() iter.Seq[string] {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Values(slices.Collect(maps.Keys(s.pods)))
}

// joined returns the enricher's figures of events by outcome.
func (s *stand) joined(t *testing.T) (out string) {
	t.Helper()
	resp, err := http.Get(s.enricher + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "picket_enricher_joined_events_total") || strings.HasPrefix(line, "picket_enricher_wait_seconds_") {
			out += "\n  " + strings.TrimSpace(line)
		}
	}
	return out
}

// query returns the rows of a query.
func (s *stand) query(sql string, args ...any) ([][]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := s.db.Query(ctx, fmt.Sprintf(sql, args...), "JSONCompactStringsEachRow")
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var out [][]string
	for dec := json.NewDecoder(r); ; {
		var row []string
		if err := dec.Decode(&row); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, err
		}
		out = append(out, row)
	}
}

// rows is query for a check.
func (s *stand) rows(t *testing.T, sql string, args ...any) [][]string {
	t.Helper()
	out, err := s.query(sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// kubectl runs kubectl as a user.
func (s *stand) kubectl(ctx context.Context, user string, args ...string) error {
	_, err := s.cluster.Kubectl(ctx, user, "", args...)
	return err
}

// pod is a pod that runs a shell command. Of a program that is to be seen the command has the path: by its name alone
// Debian's busybox runs it within the shell's process.
func pod(name, command string, change ...func(*corev1.PodSpec)) *corev1.Pod {
	none := int64(0)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}, Spec: template(command)}
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	p.Spec.TerminationGracePeriodSeconds = &none
	for _, c := range change {
		c(&p.Spec)
	}
	return p
}

func template(command string) corev1.PodSpec {
	return corev1.PodSpec{DNSPolicy: corev1.DNSDefault,
		Containers: []corev1.Container{{Name: "main", Image: cluster.Busybox, ImagePullPolicy: corev1.PullNever, Command: []string{"sh", "-c", command}}}}
}

// create makes a pod and waits until it runs, or has run.
func (s *stand) create(ctx context.Context, namespace string, p *corev1.Pod) (*corev1.Pod, error) {
	p, err := s.kube.CoreV1().Pods(namespace).Create(ctx, p, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	return p, s.until(ctx, time.Minute, "pod "+p.Name+" runs", func() (bool, error) {
		now, err := s.kube.CoreV1().Pods(namespace).Get(ctx, p.Name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		return now.Status.Phase != corev1.PodPending, fmt.Errorf("%s", now.Status.Phase)
	})
}

// until waits for something to become so.
func (s *stand) until(ctx context.Context, most time.Duration, what string, so func() (bool, error)) error {
	for end := time.Now().Add(most); ; {
		ok, err := so()
		if ok {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("not after %v: %s: %w", most, what, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// table writes rows for a person.
func table(rows [][]string) string {
	var b bytes.Buffer
	for _, r := range rows {
		b.WriteString("\n  " + strings.Join(r, "  "))
	}
	return b.String()
}
