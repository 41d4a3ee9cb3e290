package kube

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"picket/test/cluster"
)

// scenario is something that happens in a namespace of its own, its name.
type scenario struct {
	name string
	// do makes it happen.
	do func(ctx context.Context, s *stand, ns string) error
	// alerts are all that there are for the namespace, of any severity: rule, and of which pod; empty for what a
	// person did to an object.
	alerts []alert
	// check looks at the stored events when all have arrived.
	check func(t *testing.T, s *stand, ns string)
}

type alert struct{ rule, pod string }

var only = flag.String("scenario", "", "do those alone whose names have this in them")

// TestKube does all scenarios on one node, waits until everything that they caused has arrived, and checks each.
func TestKube(t *testing.T) {
	s := newStand(t)
	failed := map[string]error{}
	var mu sync.Mutex
	do := func(sc scenario) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		begin := time.Now()
		err := s.namespace(ctx, sc.name)
		if err == nil {
			err = sc.do(ctx, s, sc.name)
		}
		mu.Lock()
		defer mu.Unlock()
		failed[sc.name] = err
		t.Logf("%.1f s: %s is done, in %.1f s", time.Since(s.begin).Seconds(), sc.name, time.Since(begin).Seconds())
	}
	// Those of one pod at the same time; those that are about the whole node one after the other.
	var wg sync.WaitGroup
	chosen := func(all []scenario) (out []scenario) {
		for _, sc := range all {
			if strings.Contains(sc.name, *only) {
				out = append(out, sc)
			}
		}
		return out
	}
	ofPods, ofTheNode := chosen(ofPods), chosen(ofTheNode)
	for _, sc := range ofPods {
		wg.Go(func() { do(sc) })
	}
	wg.Wait()
	for _, sc := range ofTheNode {
		do(sc)
	}
	if err := s.settle(t.Context()); err != nil {
		t.Error(err) // the checks tell more
	}
	t.Logf("%.1f s: everything has arrived", time.Since(s.begin).Seconds())
	for _, sc := range slices.Concat(ofPods, ofTheNode) {
		t.Run(sc.name, func(t *testing.T) {
			if err := failed[sc.name]; err != nil {
				t.Fatal(err)
			}
			s.checkAlerts(t, sc)
			s.checkAttribution(t, sc.name)
			if sc.check != nil {
				sc.check(t, s, sc.name)
			}
		})
	}
	t.Run("audit events come by webhook and by file, once", s.checkAudit)
	t.Run("nothing is raised about the cluster's own work", s.checkOwnWork)
	t.Run("of a hundred events of pods 95 have their pod and container", func(t *testing.T) {
		r := s.rows(t, `SELECT count(), countIf(k8s_join != 'resolved'), countIf(k8s_container_name = '' AND process_name NOT IN ('pause', 'runc')) FROM process WHERE k8s_pod_uid IN (%s)`, quoted(s.uids()))[0]
		var all, unresolved, nameless int
		if _, err := fmt.Sscan(strings.Join(r, " "), &all, &unresolved, &nameless); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d process events: %d have no pod; %d that are not of the sandbox or of runc have no container's name", all, unresolved, nameless)
		if unresolved*20 > all || nameless*20 > all {
			t.Error("more than five in a hundred are without")
		}
	})
	t.Run("figures", func(t *testing.T) {
		t.Log("events of pods by class and join", table(s.rows(t, `SELECT 'process', k8s_join, count() FROM process WHERE k8s_pod_uid != '' GROUP BY ALL
			UNION ALL SELECT 'file', k8s_join, count() FROM file WHERE k8s_pod_uid != '' GROUP BY ALL
			UNION ALL SELECT 'network', k8s_join, count() FROM network WHERE k8s_pod_uid != '' GROUP BY ALL ORDER BY 1, 2`)))
		t.Log("alerts of pods and of the audit log", table(s.rows(t, "SELECT rule, severity, class, k8s_namespace_name, k8s_pod_name, user_name, count() FROM alerts FINAL WHERE container_id != '' OR class = 'audit' GROUP BY ALL ORDER BY 4, 1")))
		t.Log("how the enricher joined", s.joined(t))
		t.Log("losses", table(s.rows(t, `SELECT health_service, health_class, health_reason, sum(health_count) FROM health WHERE action = 'loss' GROUP BY ALL ORDER BY ALL`)))
	})
}

// namespace makes a namespace in which pods can be made.
func (s *stand) namespace(ctx context.Context, name string) error {
	if _, err := s.kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	return s.until(ctx, 2*time.Minute, "service account of namespace "+name, func() (bool, error) {
		_, err := s.kube.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err == nil, err
	})
}

// settle runs a last pod that does something of every class and raises alerts by kernel and by audit events, and waits
// until all of that has arrived: what came before has then, too.
func (s *stand) settle(ctx context.Context) error {
	const ns = "last"
	if err := s.namespace(ctx, ns); err != nil {
		return err
	}
	_, err := s.create(ctx, ns, pod("last", "/bin/touch /tmp/last; /bin/nc -w 1 "+s.cluster.NodeIP+" 6443 </dev/null; /bin/nsenter -t 1 -m true; sleep 1; true", func(p *corev1.PodSpec) {
		yes := true
		p.HostPID = true
		p.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
	}))
	if err != nil {
		return err
	}
	for _, sql := range []string{
		"SELECT count() FROM process WHERE k8s_namespace_name = 'last' AND action = 'exit'",
		"SELECT count() FROM file WHERE k8s_namespace_name = 'last' AND file_path = '/tmp/last'",
		"SELECT count() FROM network WHERE k8s_namespace_name = 'last'",
		"SELECT count() FROM audit WHERE audit_namespace = 'last' AND audit_resource = 'pods'",
		"SELECT count() FROM alerts WHERE k8s_namespace_name = 'last' AND class = 'process'",
		"SELECT count() FROM alerts WHERE k8s_namespace_name = 'last' AND class = 'audit'",
	} {
		if err := s.until(ctx, 90*time.Second, "everything has arrived: "+sql, func() (bool, error) {
			r, err := s.query("%s", sql)
			if err != nil {
				return false, err
			}
			return r[0][0] != "0", nil
		}); err != nil {
			return err
		}
	}
	time.Sleep(3 * time.Second) // batches of other lanes
	return nil
}

// byLateness is a rule that is told of a program which a shell has started when the sensor takes the connection in before the
// exec: it puts them in order for 20 ms, which on a machine with too much to do is not enough.
const byLateness = "Shell opens a network connection"

// checkAlerts: those that are expected, of the pods that they are about, and no others.
func (s *stand) checkAlerts(t *testing.T, sc scenario) {
	t.Helper()
	want := map[alert]bool{}
	for _, a := range sc.alerts {
		want[a] = true
	}
	got := map[alert]bool{}
	examples := map[alert]string{}
	for _, r := range s.rows(t, "SELECT rule, k8s_pod_name, severity, any(message) FROM alerts FINAL WHERE k8s_namespace_name = '%s' GROUP BY ALL", sc.name) {
		a := alert{r[0], r[1]}
		got[a] = true
		examples[a] = r[2] + ": " + r[3]
	}
	for a := range want {
		if !got[a] {
			t.Errorf("no alert %q of pod %q", a.rule, a.pod)
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(got), func(a, b alert) int { return strings.Compare(a.rule+a.pod, b.rule+b.pod) }) {
		if a.rule == byLateness {
			t.Logf("FALSE ALERT, of a sensor that was late: %q of pod %q: %s", a.rule, a.pod, examples[a])
		} else if !want[a] {
			t.Errorf("unexpected alert %q of pod %q: %s", a.rule, a.pod, examples[a])
		}
	}
}

// checkAttribution holds what is stored of a namespace's pods to what the API server said: no event has another's pod,
// workload, container or image. Those without are told.
func (s *stand) checkAttribution(t *testing.T, ns string) {
	t.Helper()
	pods := s.seen(ns)
	if len(pods) == 0 {
		t.Fatal("no pods")
	}
	type count struct{ total, unresolved, nameless int }
	counts := map[string]*count{} // by UID
	for uid := range pods {
		counts[uid] = &count{}
	}
	for _, class := range []string{"process", "file", "network", "kernel"} {
		for _, r := range s.rows(t, `SELECT k8s_pod_uid, k8s_join, k8s_namespace_name, k8s_pod_name, k8s_workload_kind, k8s_workload_name, k8s_container_name,
			container_image_name || ':' || container_image_tag, count() FROM %s WHERE k8s_pod_uid IN (%s) GROUP BY ALL`, class, quoted(maps.Keys(pods))) {
			n, err := strconv.Atoi(r[8])
			if err != nil {
				t.Fatal(err)
			}
			p, c := pods[r[0]], counts[r[0]]
			c.total += n
			if r[1] != "resolved" {
				c.unresolved += n
				continue
			}
			kind, name := workload(p)
			if kind == "CronJob" && r[2] == ns && r[3] == p.Name && r[4] == "Job" && strings.HasPrefix(r[5], name+"-") {
				continue // the Job was shown later than the enricher waits for it: share bounds how many
			}
			if r[2] != ns || r[3] != p.Name || r[4] != kind || r[5] != name {
				t.Errorf("%s: %d events of pod %s/%s (%s %s) are attributed to %v", class, n, ns, p.Name, kind, name, r)
			}
			if r[6] == "" {
				c.nameless += n // the pod's sandbox, and runc before it runs the container's program
			} else if image := imageOf(p, r[6]); image == "" || image != r[7] {
				t.Errorf("%s: %d events of pod %s have container %q with image %q, which in that pod is %q", class, n, p.Name, r[6], r[7], image)
			}
		}
	}
	var sum count
	for uid, c := range counts {
		if c.total == 0 {
			t.Errorf("no events of pod %s", pods[uid].Name)
		}
		sum = count{sum.total + c.total, sum.unresolved + c.unresolved, sum.nameless + c.nameless}
	}
	t.Logf("%d pods: %d events, %d unresolved, %d without a container's name", len(pods), sum.total, sum.unresolved, sum.nameless)
}

// imageOf is the image of a pod's container, as the pod names it.
func imageOf(p *corev1.Pod, container string) string {
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if c.Name == container {
			return c.Image
		}
	}
	for _, c := range p.Spec.EphemeralContainers {
		if c.Name == container {
			return c.Image
		}
	}
	return ""
}

// workload is the top of a pod's owners. In the scenarios a ReplicaSet is a Deployment's and a Job a CronJob's, and the
// label app has its name.
func workload(p *corev1.Pod) (kind, name string) {
	ref := metav1.GetControllerOf(p)
	switch {
	case ref == nil:
		return "Pod", p.Name
	case ref.Kind == "ReplicaSet":
		return "Deployment", p.Labels["app"]
	case ref.Kind == "Job":
		return "CronJob", p.Labels["app"]
	}
	return ref.Kind, ref.Name
}

func (s *stand) checkAudit(t *testing.T) {
	rows := s.rows(t, "SELECT audit_source, count(), uniqExact(event_id) FROM audit GROUP BY 1 ORDER BY 1")
	t.Log("audit events by source", table(rows))
	if len(rows) != 2 || rows[0][0] != "file" || rows[1][0] != "webhook" {
		t.Errorf("audit events come by: %v", rows)
	}
	if r := s.rows(t, "SELECT count(), uniqExact(event_id) FROM audit")[0]; r[0] != r[1] {
		t.Errorf("%s audit events are stored, %s different ones", r[0], r[1])
	}
}

// checkOwnWork: the components of the cluster, as users of the API, raise nothing.
func (s *stand) checkOwnWork(t *testing.T) {
	if r := s.rows(t, "SELECT rule, severity, user_name, any(message), count() FROM alerts FINAL WHERE class = 'audit' AND user_name LIKE 'system:%%' GROUP BY ALL ORDER BY 1"); len(r) > 0 {
		t.Errorf("alerts about components: %s", table(r))
	}
}

// events checks that there are at least n execs of a program in a pod, by its arguments. (Of a pod that the enricher did not
// learn of in time, the name is what the runtime has.)
func events(t *testing.T, s *stand, ns, podName, args string, n int) {
	t.Helper()
	r := s.rows(t, "SELECT count() FROM process WHERE action = 'exec' AND k8s_namespace_name = '%s' AND k8s_pod_name = '%s' AND concat(process_command, ' ', process_args) LIKE '%s'", ns, podName, args)
	if got, err := strconv.Atoi(r[0][0]); err != nil || got < n {
		t.Errorf("%s execs of %q in pod %s, want %d at least", r[0][0], args, podName, n)
	}
}

// share checks that at least 80 in 100 of a scenario's pods have the workload, by events of one program. All have it unless the
// API server's news of a short-lived pod come after the pod has ended, as happens on a machine with too much to do.
func share(t *testing.T, s *stand, ns, kind, name, args string) {
	t.Helper()
	r := s.rows(t, "SELECT uniqExact(k8s_pod_uid), uniqExactIf(k8s_pod_uid, k8s_workload_kind = '%s' AND k8s_workload_name = '%s') FROM process WHERE k8s_pod_uid IN (%s) AND action = 'exec' AND process_args = '%s'",
		kind, name, quoted(maps.Keys(s.seen(ns))), args)[0]
	want := len(s.seen(ns))
	if r[0] != strconv.Itoa(want) {
		t.Errorf("%s pods are stored, %d ran", r[0], want)
	}
	if n, err := strconv.Atoi(r[1]); err != nil || n*100 < want*80 {
		t.Errorf("%s of %d pods are those of %s %s", r[1], want, kind, name)
	} else {
		t.Logf("%d of %d pods are those of %s %s", n, want, kind, name)
	}
}

// quoted makes a list for IN.
func quoted(values iter.Seq[string]) string {
	var out []string
	for v := range values {
		out = append(out, "'"+v+"'")
	}
	return strings.Join(out, ", ")
}

func yes() *bool { t := true; return &t }

var ofPods = []scenario{
	{
		name: "privileged",
		do: func(ctx context.Context, s *stand, ns string) error {
			_, err := s.create(ctx, ns, pod("escape", "sleep 1; /bin/nsenter -t 1 -m -n cat /etc/hostname; sleep 2", func(p *corev1.PodSpec) {
				p.HostPID = true
				p.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: yes()}
			}))
			return err
		},
		alerts: []alert{{"Privileged pod created", ""}, {"Pod in host namespaces created", ""}, {"Host namespaces entered", "escape"}, {"Namespace joined from a container", "escape"}},
		check: func(t *testing.T, s *stand, ns string) {
			events(t, s, ns, "escape", "/bin/nsenter -t 1%", 1)
			events(t, s, ns, "escape", "cat /etc/hostname", 1) // on the node, and still of the pod
			// Of events from before the kubelet reports the container it is not known.
			if r := s.rows(t, "SELECT countIf(container_privileged) FROM process WHERE k8s_namespace_name = '%s' AND k8s_pod_name = 'escape' AND k8s_container_name = 'main'", ns); r[0][0] == "0" {
				t.Error("no event says that the container is privileged")
			}
		},
	},
	{
		name: "hostpath",
		do: func(ctx context.Context, s *stand, ns string) error {
			// The node's /etc is not the machine's.
			_, err := s.create(ctx, ns, pod("cron", "sleep 1; echo '* * * * * root true' >/h/cron.d/picket-e2e; rm /h/cron.d/picket-e2e; sleep 2", func(p *corev1.PodSpec) {
				p.Volumes = []corev1.Volume{{Name: "h", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc"}}}}
				p.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "h", MountPath: "/h"}}
			}))
			return err
		},
		alerts: []alert{{"Pod with a sensitive host path created", ""}, {"Scheduled task written", "cron"}},
		check: func(t *testing.T, s *stand, ns string) {
			if r := s.rows(t, "SELECT count() FROM file WHERE k8s_namespace_name = '%s' AND k8s_pod_name = 'cron' AND file_path LIKE '%%cron.d/picket-e2e'", ns); r[0][0] == "0" {
				t.Error("the write into the node's /etc/cron.d is not stored with its pod")
			}
		},
	},
	{
		name: "sessions",
		do: func(ctx context.Context, s *stand, ns string) error {
			_, err := s.kube.RbacV1().RoleBindings(ns).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "developers"},
				RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "edit"}, Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "developers"}}}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			if _, err := s.create(ctx, ns, pod("plain", "sleep 1000")); err != nil {
				return err
			}
			var g sync.WaitGroup
			var errs [2]error
			for i, user := range []string{cluster.Alice, cluster.Bob} {
				g.Go(func() {
					time.Sleep(time.Duration(i) * 500 * time.Millisecond)
					errs[i] = s.kubectl(ctx, user, "-n", ns, "exec", "plain", "--", "sh", "-c", "echo "+user+" >/tmp/"+user+"; sleep 1; /bin/cat /tmp/"+user)
				})
			}
			g.Wait()
			return errors.Join(errs[:]...)
		},
		alerts: []alert{{"Command run in a pod", ""}},
		check: func(t *testing.T, s *stand, ns string) {
			users := s.rows(t, "SELECT DISTINCT user_name FROM alerts FINAL WHERE k8s_namespace_name = '%s' AND rule = 'Command run in a pod' ORDER BY 1", ns)
			if fmt.Sprint(users) != "[[alice@example.test] [bob@example.test]]" {
				t.Errorf("sessions are told of users %v", users)
			}
			for _, user := range []string{cluster.Alice, cluster.Bob} {
				// What a session did hangs together by the process that was put into the container.
				r := s.rows(t, `SELECT uniqExact(container_exec_pid), countIf(container_exec_pid = 0) FROM process WHERE k8s_namespace_name = '%s' AND k8s_pod_name = 'plain' AND action = 'exec'
					AND process_args LIKE '%%/tmp/%s%%'`, ns, user)
				if r[0][0] != "1" || r[0][1] != "0" {
					t.Errorf("processes of %s's session: %v sessions, %v outside of one", user, r[0][0], r[0][1])
				}
			}
		},
	},
	{
		name: "crash-loop",
		do: func(ctx context.Context, s *stand, ns string) error {
			p := pod("crash", "exit 3", func(p *corev1.PodSpec) { p.RestartPolicy = corev1.RestartPolicyAlways })
			if _, err := s.create(ctx, ns, p); err != nil {
				return err
			}
			return s.until(ctx, 90*time.Second, "two restarts", func() (bool, error) {
				now, err := s.kube.CoreV1().Pods(ns).Get(ctx, "crash", metav1.GetOptions{})
				if err != nil || len(now.Status.ContainerStatuses) == 0 {
					return false, err
				}
				return now.Status.ContainerStatuses[0].RestartCount >= 2, nil
			})
		},
		check: func(t *testing.T, s *stand, ns string) {
			r := s.rows(t, "SELECT uniqExact(container_id) FROM process WHERE k8s_namespace_name = '%s' AND k8s_pod_name = 'crash' AND action = 'exec' AND process_args = '-c exit 3'", ns)
			if n, _ := strconv.Atoi(r[0][0]); n < 3 {
				t.Errorf("%d containers of the crash loop are stored, there were 3 at least", n)
			}
			if r := s.rows(t, "SELECT count() FROM process WHERE k8s_namespace_name = '%s' AND action = 'exit' AND process_exit_code = 3", ns); r[0][0] == "0" {
				t.Error("no exit with the code of the crash")
			}
		},
	},
	{
		name: "debug",
		do: func(ctx context.Context, s *stand, ns string) error {
			if _, err := s.create(ctx, ns, pod("target", "sleep 1000")); err != nil {
				return err
			}
			if err := s.kubectl(ctx, cluster.Admin, "-n", ns, "debug", "target", "--image", cluster.BusyboxOther, "--image-pull-policy=Never", "--container=debugger", "--", "sh", "-c", "sleep 3; /bin/touch /tmp/debugged; sleep 3"); err != nil {
				return err
			}
			return s.until(ctx, time.Minute, "the ephemeral container has ended", func() (bool, error) {
				now, err := s.kube.CoreV1().Pods(ns).Get(ctx, "target", metav1.GetOptions{})
				if err != nil {
					return false, err
				}
				c := now.Status.EphemeralContainerStatuses
				return len(c) == 1 && c[0].State.Terminated != nil, nil
			})
		},
		alerts: []alert{{"Ephemeral container added", ""}},
		check: func(t *testing.T, s *stand, ns string) {
			r := s.rows(t, "SELECT DISTINCT k8s_container_name, container_image_name, k8s_pod_name FROM process WHERE k8s_namespace_name = '%s' AND action = 'exec' AND process_args = '/tmp/debugged'", ns)
			if fmt.Sprint(r) != "[[debugger test.local/other target]]" {
				t.Errorf("what ran in the ephemeral container is of %v", r)
			}
		},
	},
	{
		name: "cronjob",
		do: func(ctx context.Context, s *stand, ns string) error {
			spec, kept := template("/bin/touch /tmp/ran; sleep 1"), int32(20)
			spec.RestartPolicy = corev1.RestartPolicyNever
			_, err := s.kube.BatchV1().CronJobs(ns).Create(ctx, &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "every"},
				Spec: batchv1.CronJobSpec{Schedule: "* * * * *", SuccessfulJobsHistoryLimit: &kept, JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{
					Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "every"}}, Spec: spec}}}}}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			for i := range 3 { // as its schedule would, sooner
				if err := s.kubectl(ctx, cluster.Admin, "-n", ns, "create", "job", fmt.Sprintf("every-by-hand-%d", i), "--from=cronjob/every"); err != nil {
					return err
				}
			}
			return s.until(ctx, 150*time.Second, "three jobs by hand and one by the schedule have run", func() (bool, error) {
				jobs, err := s.kube.BatchV1().Jobs(ns).List(ctx, metav1.ListOptions{})
				if err != nil {
					return false, err
				}
				done, scheduled := 0, false
				for _, j := range jobs.Items {
					if j.Status.Succeeded > 0 {
						done++
						scheduled = scheduled || !strings.Contains(j.Name, "by-hand")
					}
				}
				return done >= 4 && scheduled, nil
			})
		},
		alerts: []alert{{"CronJob created", ""}},
		check: func(t *testing.T, s *stand, ns string) {
			share(t, s, ns, "CronJob", "every", "/tmp/ran")
		},
	},
	{
		name: "deleted",
		do: func(ctx context.Context, s *stand, ns string) error {
			if _, err := s.create(ctx, ns, pod("victim", "while :; do /bin/cat /var/run/secrets/kubernetes.io/serviceaccount/token >/tmp/t; sleep 0.05; done")); err != nil {
				return err
			}
			time.Sleep(3 * time.Second)
			return s.kube.CoreV1().Pods(ns).Delete(ctx, "victim", metav1.DeleteOptions{})
		},
		alerts: []alert{{"Service account token read", "victim"}},
		check: func(t *testing.T, s *stand, ns string) {
			events(t, s, ns, "victim", "/bin/cat /var/run/secrets%", 10)
			// Its events at the end are of it as well.
			if r := s.rows(t, "SELECT count() FROM process WHERE action = 'exec' AND process_args LIKE '/var/run/secrets/kubernetes.io/serviceaccount/token%%' AND k8s_pod_name != 'victim' AND k8s_pod_uid IN (SELECT k8s_pod_uid FROM process WHERE k8s_namespace_name = '%s')", ns); r[0][0] != "0" {
				t.Errorf("%s execs of the deleted pod are not attributed to it", r[0][0])
			}
		},
	},
	{
		name: "same-name",
		do: func(ctx context.Context, s *stand, ns string) error {
			for i, image := range []string{cluster.Busybox, cluster.BusyboxOther} {
				if _, err := s.create(ctx, ns, pod("again", fmt.Sprintf("/bin/touch /tmp/generation-%d; sleep 1000", i), func(p *corev1.PodSpec) { p.Containers[0].Image = image })); err != nil {
					return err
				}
				time.Sleep(2 * time.Second)
				if i == 1 {
					return nil
				}
				if err := s.kube.CoreV1().Pods(ns).Delete(ctx, "again", metav1.DeleteOptions{}); err != nil {
					return err
				}
				if err := s.until(ctx, time.Minute, "pod again is gone", func() (bool, error) {
					_, err := s.kube.CoreV1().Pods(ns).Get(ctx, "again", metav1.GetOptions{})
					return err != nil, nil
				}); err != nil {
					return err
				}
			}
			return nil
		},
		check: func(t *testing.T, s *stand, ns string) {
			r := s.rows(t, "SELECT DISTINCT process_args, container_image_name FROM process WHERE k8s_namespace_name = '%s' AND k8s_pod_name = 'again' AND action = 'exec' AND process_args LIKE '/tmp/generation%%' ORDER BY 1", ns)
			if fmt.Sprint(r) != "[[/tmp/generation-0 test.local/busybox] [/tmp/generation-1 test.local/other]]" {
				t.Errorf("two pods of one name: %v", r)
			}
		},
	},
	{
		name: "init-container",
		do: func(ctx context.Context, s *stand, ns string) error {
			p := pod("prepared", "/bin/touch /tmp/main; sleep 1000", func(p *corev1.PodSpec) {
				p.InitContainers = template("/bin/touch /tmp/prepared").Containers
				p.InitContainers[0].Name, p.InitContainers[0].Image = "prepare", cluster.BusyboxOther
			})
			_, err := s.create(ctx, ns, p)
			return err
		},
		check: func(t *testing.T, s *stand, ns string) {
			// Both at the very start of their containers.
			r := s.rows(t, "SELECT process_args, k8s_container_name, container_image_name FROM process WHERE k8s_namespace_name = '%s' AND action = 'exec' AND process_args LIKE '/tmp/%%' ORDER BY 1", ns)
			if fmt.Sprint(r) != "[[/tmp/main main test.local/busybox] [/tmp/prepared prepare test.local/other]]" {
				t.Errorf("the first programs of init container and container: %v", r)
			}
		},
	},
	{
		name: "hostnetwork",
		do: func(ctx context.Context, s *stand, ns string) error {
			for _, name := range []string{"one", "two"} {
				if _, err := s.create(ctx, ns, pod(name, "sleep 1; /bin/touch /tmp/"+name+"; /bin/nc -w 1 "+s.cluster.NodeIP+" 6443 </dev/null; sleep 2", func(p *corev1.PodSpec) { p.HostNetwork = true })); err != nil {
					return err
				}
			}
			return nil
		},
		alerts: []alert{{"Pod in host namespaces created", ""}},
		check: func(t *testing.T, s *stand, ns string) {
			for _, name := range []string{"one", "two"} {
				events(t, s, ns, name, "/bin/touch /tmp/"+name, 1)
				// They have the node's address: what is at it is the node, and at this port its API server, not one of them.
				r := s.rows(t, "SELECT DISTINCT network_peer_kind, network_peer_name FROM network WHERE k8s_namespace_name = '%s' AND k8s_pod_name = '%s' AND action = 'connect' AND network_peer_port = 6443", ns, name)
				if fmt.Sprint(r) != "[[api_server node-1]]" {
					t.Errorf("the node's address, from pod %s, is %v", name, r)
				}
			}
		},
	},
}

// goOn runs a pod that does something all the time, and f meanwhile.
func goOn(ctx context.Context, s *stand, ns string, f func() error) error {
	if _, err := s.create(ctx, ns, pod("steady", "while :; do /bin/touch /tmp/steady; sleep 0.2; done")); err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	if err := f(); err != nil {
		return err
	}
	time.Sleep(2 * time.Second)
	return s.kube.CoreV1().Pods(ns).Delete(ctx, "steady", metav1.DeleteOptions{})
}

// away is for how long a part of the cluster is stopped.
const away = 10 * time.Second

var ofTheNode = []scenario{
	{
		name: "fifty",
		do: func(ctx context.Context, s *stand, ns string) error {
			n := int32(50)
			labels := map[string]string{"app": "many"}
			_, err := s.kube.AppsV1().Deployments(ns).Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "many"}, Spec: appsv1.DeploymentSpec{Replicas: &n,
				Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: template("/bin/touch /tmp/many; exec sleep 1000")}}}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			if err := s.until(ctx, 2*time.Minute, "50 pods are ready", func() (bool, error) {
				d, err := s.kube.AppsV1().Deployments(ns).Get(ctx, "many", metav1.GetOptions{})
				if err != nil {
					return false, err
				}
				return d.Status.ReadyReplicas == n, fmt.Errorf("%d are", d.Status.ReadyReplicas)
			}); err != nil {
				return err
			}
			none := int64(0)
			return s.kube.AppsV1().Deployments(ns).Delete(ctx, "many", metav1.DeleteOptions{GracePeriodSeconds: &none})
		},
		check: func(t *testing.T, s *stand, ns string) {
			if n := len(s.seen(ns)); n != 50 {
				t.Errorf("there were %d pods", n)
			}
			share(t, s, ns, "Deployment", "many", "/tmp/many")
		},
	},
	{
		name: "kubelet-restarted",
		do: func(ctx context.Context, s *stand, ns string) error {
			return goOn(ctx, s, ns, func() error {
				if err := s.cluster.Kill(ctx, cluster.Kubelet, syscall.SIGKILL); err != nil {
					return err
				}
				time.Sleep(away / 5)
				if err := errors.Join(s.cluster.Restart(ctx, cluster.Kubelet), s.cluster.AwaitNode(ctx)); err != nil {
					return err
				}
				_, err := s.create(ctx, ns, pod("later", "/bin/touch /tmp/later; sleep 1"))
				return err
			})
		},
		check: func(t *testing.T, s *stand, ns string) {
			steady(t, s, ns)
			events(t, s, ns, "later", "/bin/touch /tmp/later", 1)
		},
	},
	{
		// The last one: after it the controllers take up to half a minute to look at new namespaces.
		name: "api-away",
		do: func(ctx context.Context, s *stand, ns string) error {
			return goOn(ctx, s, ns, func() error {
				if err := s.cluster.Kill(ctx, cluster.APIServer, syscall.SIGKILL); err != nil {
					return err
				}
				time.Sleep(away)
				return errors.Join(s.cluster.Restart(ctx, cluster.APIServer), s.cluster.AwaitAPI(ctx), s.cluster.AwaitNode(ctx))
			})
		},
		check: steady,
	},
}

// steady: the events of the pod that goes on have no gap and are all attributed.
func steady(t *testing.T, s *stand, ns string) {
	events(t, s, ns, "steady", "/bin/touch /tmp/steady", 20)
	r := s.rows(t, `SELECT max(gap) FROM (SELECT date_diff('millisecond', lagInFrame(time, 1, time) OVER (ORDER BY time), time) AS gap
		FROM process WHERE k8s_namespace_name = '%s' AND k8s_pod_name = 'steady' AND action = 'exec')`, ns)
	if ms, err := strconv.Atoi(r[0][0]); err != nil || ms > 5000 {
		t.Errorf("the events of a pod that goes on have a gap of %v ms", r[0][0])
	} else {
		t.Logf("longest gap %d ms", ms)
	}
}
