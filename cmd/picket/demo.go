package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/internal/health"
	"picket/internal/outbox"
	"picket/internal/simulate"
	"picket/internal/store"
	"picket/internal/terminal"
	"picket/internal/up"
	"picket/schemas"
)

// What a demo must show to succeed.
const (
	demoKernelRules = 10
	demoAuditRules  = 5
)

func newDemo(t *target) *cobra.Command {
	var f upFlags
	var audit, capture string
	c := &cobra.Command{
		Use:   "demo",
		Short: "Start everything on a fresh data folder, simulate attacks, show the alerts and check that every part agrees",
		Long: `Starts everything on a fresh data folder, performs harmless versions of real
attacks on this host, posts recorded kube-apiserver audit events to the
webhook, shows the alerts that arrived over NATS and the same alerts by SQL,
and checks that they agree and that no event was lost on the way. Without root
a recorded capture takes the place of the live kernel.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := os.MkdirTemp("", "picket-demo-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			t.dir = dir
			d := &demo{cmd: cmd, out: cmd.OutOrStdout(), live: os.Geteuid() == 0 && !f.noSensor, audit: audit, capture: capture, got: map[string]*schemas.Finding{}, recorded: map[string]int{}}
			o, err := f.options(t, d.out)
			if err != nil {
				return err
			}
			if o.Sensor != nil {
				o.Sensor.Kernel.Instance = "demo" // beside a sensor that may run on this host
			}
			return d.run(cmd.Context(), o)
		},
	}
	f.add(c)
	c.Flags().StringVar(&audit, "audit-sample", "test/testdata/audit/kube-apiserver-v1.34.jsonl", "audit events to post, one a line")
	c.Flags().StringVar(&capture, "capture", "test/testdata/capture/simulate.arrow", "recording of kernel events for when this is not root")
	for flag, v := range map[string]string{"nats-listen": "127.0.0.1:0", "clickhouse-listen": "127.0.0.1:0", "webhook-listen": "127.0.0.1:0"} {
		c.Flags().Lookup(flag).DefValue = v
		if err := c.Flags().Set(flag, v); err != nil {
			panic(err) // the flag is declared in add
		}
	}
	return c
}

type demo struct {
	cmd            *cobra.Command
	out            io.Writer
	live           bool
	audit, capture string

	mu     sync.Mutex
	got    map[string]*schemas.Finding // by alert id
	twice  int
	store  store.Config
	posted int
	// recorded has the rows of the published recording, by class.
	recorded map[string]int
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) run(ctx context.Context, o up.Options) error {
	begin := time.Now()
	d.say("\n== 1. Start everything on one machine")
	s, err := up.Start(ctx, o)
	if err != nil {
		return err
	}
	defer s.Stop()
	d.store = store.DefaultConfig()
	d.store.URL = s.ClickHouse
	stop, err := s.Subscribe(func(f *schemas.Finding) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.got[f.FindingInfo.UID] != nil {
			d.twice++
		}
		d.got[f.FindingInfo.UID] = f
	})
	if err != nil {
		return err
	}
	defer stop()
	d.say("   ready after %.1f s", time.Since(begin).Seconds())

	if d.live {
		d.say("\n== 2. Simulate attacks on this host, watched by eBPF")
		if err := d.simulate(ctx); err != nil {
			return err
		}
	} else {
		d.say("\n== 2. NOT root: the live kernel is left out; a recording of it is published instead (%s)", d.capture)
		if err := d.publishCapture(ctx, s, o.Dir); err != nil {
			return err
		}
	}
	d.say("\n== 3. Post audit events of a real kube-apiserver to the webhook")
	if err := d.post(ctx, s.Webhook); err != nil {
		return err
	}
	// What the last simulation caused may still be on its way to the sensor.
	time.Sleep(500 * time.Millisecond)
	s.StopSources()

	if err := d.show(); err != nil {
		return err
	}
	return d.verify()
}

// simulate runs in a process of its own, because the sensor does not watch
// its own.
func (d *demo) simulate(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, "simulate")
	cmd.Stdout, cmd.Stderr = &indent{w: d.out}, d.cmd.ErrOrStderr()
	return cmd.Run()
}

// indent sets off another program's output.
type indent struct {
	w    io.Writer
	rest []byte
}

func (i *indent) Write(p []byte) (int, error) {
	i.rest = append(i.rest, p...)
	for {
		line, after, ok := bytes.Cut(i.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		if _, err := fmt.Fprintf(i.w, "   %s\n", line); err != nil {
			return 0, err
		}
		i.rest = after
	}
}

// publishCapture publishes a recording as a sensor would.
func (d *demo) publishCapture(ctx context.Context, s *up.Stack, dir string) error {
	data, err := os.ReadFile(d.capture)
	if err != nil {
		return err
	}
	log := commandLog(d.cmd)
	b, err := bus.Connect(bus.Config{URL: s.NATS, CredentialsFile: s.CredentialsFile(schemas.ServiceSensor)}, schemas.ServiceSensor, log)
	if err != nil {
		return err
	}
	defer b.Close()
	box, err := outbox.Open(filepath.Join(dir, "capture"), 64<<20, schemas.ServiceSensor, b, log, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	rows := 0
	err = batch.ReadCapture(data, func(c *batch.Batch) error {
		enc, err := batch.Encode(c)
		if err != nil {
			return err
		}
		for _, e := range enc {
			if err := box.Put(schemas.RawSubject(s.Cluster, c.Str(schemas.Node, 0), c.Class()), e.Data, e.Batch.Rows(), nil, nil); err != nil {
				return err
			}
			rows += e.Batch.Rows()
			d.recorded[c.Class().String()] += e.Batch.Rows()
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, box.Close())
	}
	done, cancel := context.WithCancel(ctx)
	cancel() // publish what is there, then return
	if err := box.Run(done, 30*time.Second, func(class string, events uint64) {
		d.say("   %d recorded events could not be read back from the disk", events)
	}); err != nil {
		return err
	}
	if left, _ := box.Pending(); left > 0 {
		return fmt.Errorf("%d batches of the recording could not be published", left)
	}
	d.say("   %d recorded events published", rows)
	return nil
}

// post sends the audit sample as a kube-apiserver does: batches of events in
// an EventList.
func (d *demo) post(ctx context.Context, url string) error {
	data, err := os.ReadFile(d.audit)
	if err != nil {
		return err
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	for chunk := range slices.Chunk(lines, 100) {
		body := append([]byte(`{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[`), bytes.Join(chunk, []byte(","))...)
		body = append(body, "]}"...)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("webhook answered %s: %s (%w)", resp.Status, strings.TrimSpace(string(answer)), err)
		}
	}
	d.posted = len(lines)
	d.say("   %d events accepted", d.posted)
	return nil
}

// show prints the alerts as a subscriber got them and as SQL finds them.
func (d *demo) show() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	type summary struct {
		rule, severity, class, example string
		count                          int
	}
	byRule := map[string]*summary{}
	for _, f := range d.got {
		r := byRule[f.Unmapped.Rule]
		if r == nil {
			r = &summary{rule: f.Unmapped.Rule, severity: f.SeverityID.String(), class: f.Unmapped.Class, example: f.Message}
			byRule[f.Unmapped.Rule] = r
		}
		r.count++
	}
	d.say("\n== 4. Alerts that a NATS subscriber received on picket.alerts.>")
	t := newTable(d.out, "   RULE", "SEVERITY", "FROM", "ALERTS", "EXAMPLE")
	for _, name := range slices.Sorted(maps.Keys(byRule)) {
		r := byRule[name]
		example := []rune(terminal.Text(r.example))
		t.row("   "+r.rule, r.severity, r.class, strconv.Itoa(r.count), string(example[:min(len(example), 100)]))
	}
	if err := t.flush(); err != nil {
		return err
	}
	sql := "SELECT rule, severity, class, count() AS alerts, uniqExact(alert_id) AS different FROM picket.alerts GROUP BY ALL ORDER BY rule"
	d.say("\n== 5. The same alerts by SQL\n   %s", sql)
	rows, err := queryRows(d.cmd, d.store, sql)
	if err != nil {
		return err
	}
	t = newTable(d.out, "   RULE", "SEVERITY", "FROM", "ALERTS", "DIFFERENT")
	for _, r := range rows {
		r[0] = "   " + r[0]
		t.row(r...)
	}
	return t.flush()
}

// verify checks that all parts agree.
func (d *demo) verify() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.say("\n== 6. Do all parts agree?")
	var failed []string
	check := func(ok bool, format string, args ...any) {
		mark := "yes"
		line := fmt.Sprintf(format, args...)
		if !ok {
			mark = "NO "
			failed = append(failed, line)
		}
		d.say("   %s  %s", mark, line)
	}

	stored := map[string]int{}
	rows, err := queryRows(d.cmd, d.store, "SELECT alert_id, count() FROM picket.alerts GROUP BY alert_id")
	if err != nil {
		return err
	}
	once := true
	for _, r := range rows {
		n, err := strconv.Atoi(r[1])
		if err != nil {
			return err
		}
		stored[r[0]] = n
		once = once && n == 1
	}
	same := len(stored) == len(d.got)
	kernelRules, auditRules := map[string]bool{}, map[string]bool{}
	for id, f := range d.got {
		same = same && stored[id] > 0
		if f.Unmapped.Class == schemas.Audit.String() {
			auditRules[f.Unmapped.Rule] = true
		} else {
			kernelRules[f.Unmapped.Rule] = true
		}
	}
	check(same, "the %d alerts in ClickHouse are the %d that the subscriber received", len(stored), len(d.got))
	check(once && d.twice == 0, "every alert is there once")
	missing := ""
	for _, b := range simulate.All() {
		if !kernelRules[b.Rule] {
			missing += fmt.Sprintf("; none of %q by %s", b.Rule, b.Name)
		}
	}
	check(missing == "", "every simulated behaviour raised its alert%s", missing)
	from := "live kernel events"
	if !d.live {
		from = "recorded kernel events"
	}
	check(len(kernelRules) >= demoKernelRules, "%d different rules fired from %s (at least %d)", len(kernelRules), from, demoKernelRules)
	check(len(auditRules) >= demoAuditRules, "%d different rules fired from kube-apiserver audit events (at least %d)", len(auditRules), demoAuditRules)

	// Services report their counts at intervals: the last report may be to come.
	var l map[string]accounts
	for deadline := time.Now().Add(4 * health.Interval); ; time.Sleep(200 * time.Millisecond) {
		if l, err = ledger(d.cmd, d.store); err != nil {
			return err
		}
		reported := true
		for class, c := range l {
			reported = reported && c.enriched >= c.published+d.recorded[class]
		}
		if reported && l["audit"].enriched > 0 || time.Now().After(deadline) {
			break
		}
	}
	if d.live {
		for _, class := range []string{"process", "file", "network", "kernel", "dns"} {
			c := l[class]
			check(c.seen > 0 && c.seen == c.published+c.dropped, "%s: %d seen in the kernel = %d published + %d dropped", class, c.seen, c.published, c.dropped)
		}
	}
	for _, class := range []string{"process", "file", "network", "kernel", "dns", "audit"} {
		c := l[class]
		c.published += d.recorded[class]
		check(c.stored > 0 && c.published == c.enriched && c.enriched == c.stored && c.stored == c.different, "%s: %d published = %d enriched = %d stored = %d different event ids", class, c.published, c.enriched, c.stored, c.different)
	}
	check(l["audit"].stored == d.posted, "audit: all %d posted events are stored", d.posted)
	if len(failed) > 0 {
		return fmt.Errorf("the demo failed:\n  %s", strings.Join(failed, "\n  "))
	}
	d.say("\nDone: everything agrees.")
	return nil
}

// accounts are one class's figures at every stage.
type accounts struct{ seen, published, dropped, enriched, stored, different int }

// ledger reads what every stage counted.
func ledger(cmd *cobra.Command, s store.Config) (map[string]accounts, error) {
	out := map[string]accounts{}
	number := func(sql string, set func(a *accounts, n int)) error {
		rows, err := queryRows(cmd, s, sql)
		if err != nil {
			return err
		}
		for _, r := range rows {
			n, err := strconv.Atoi(r[1])
			if err != nil {
				return err
			}
			a := out[r[0]]
			set(&a, n)
			out[r[0]] = a
		}
		return nil
	}
	counter := func(service, name string) string {
		return fmt.Sprintf("SELECT health_class, max(health_total) FROM picket.health WHERE action = 'counters' AND health_service = '%s' AND health_reason = '%s' GROUP BY health_class", service, name)
	}
	var errs []error
	errs = append(errs,
		number(counter("sensor", "kernel_seen"), func(a *accounts, n int) { a.seen = n }),
		number(counter("sensor", "published"), func(a *accounts, n int) { a.published = n }),
		number(counter("auditlog-ingest", "accepted"), func(a *accounts, n int) { a.published += n }),
		number(counter("enricher", "enriched"), func(a *accounts, n int) { a.enriched = n }),
		// What an earlier demo that crashed had lost is not this run's.
		number("SELECT health_class, sum(health_count) FROM picket.health WHERE action = 'loss' AND health_service = 'sensor' AND health_reason != 'sensor_restart' GROUP BY health_class", func(a *accounts, n int) { a.dropped = n }))
	for _, c := range schemas.Classes() {
		errs = append(errs,
			number(fmt.Sprintf("SELECT '%s', count() FROM picket.%s", c, c.Table()), func(a *accounts, n int) { a.stored = n }),
			number(fmt.Sprintf("SELECT '%s', uniqExact(event_id) FROM picket.%s", c, c.Table()), func(a *accounts, n int) { a.different = n }))
	}
	return out, errors.Join(errs...)
}
