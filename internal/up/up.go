// Package up runs all of Picket on one machine in one process: NATS with
// JetStream on disk, every service, and ClickHouse as a child process. It is
// what `picket up`, `picket demo` and the end-to-end tests start.
package up

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"picket/internal/bus"
	"picket/internal/clickhousebin"
	"picket/internal/freeport"
	"picket/internal/natsserver"
	"picket/internal/service"
	"picket/internal/store"
	"picket/schemas"
	auditlogingest "picket/services/auditlog-ingest"
	"picket/services/detector"
	"picket/services/enricher"
	"picket/services/sensor"
	"picket/services/sink"
)

// Options say what to run.
type Options struct {
	Dir              string // data folder; one instance at a time
	Cluster, Node    string
	NATSListen       string // host:port; port 0 takes a free one
	ClickHouseListen string
	ClickHouseURL    string // use this server instead of starting one
	ClickHouseBinary string // picket-clickhouse; empty: beside this executable, or on the PATH
	WebhookListen    string
	AuditFile        string // follow this audit log too
	Kubeconfig       string // join with this cluster's metadata
	Rules            []string
	Sensor           *sensor.Config // nil: no sensor; NATS, cluster, node and folders are filled in
	// Progress is told what is being done, for a person to read.
	Progress func(line string)
}

// Endpoints say where a running Picket can be reached. They are kept in the
// data folder, for the commands that ask it.
type Endpoints struct {
	PID         int               `json:"pid"`
	Started     time.Time         `json:"started"`
	Cluster     string            `json:"cluster"`
	NATS        string            `json:"nats"`
	Credentials string            `json:"credentials"` // folder
	ClickHouse  string            `json:"clickhouse"`
	Webhook     string            `json:"webhook"`
	Admin       map[string]string `json:"admin"` // by service: URL of the admin port
}

// CredentialsFile returns the credentials file of a service.
func (e Endpoints) CredentialsFile(service string) string {
	return filepath.Join(e.Credentials, service+".creds")
}

const endpointsFile = "endpoints.json"

// DefaultDir returns the data folder that is used when none is named.
func DefaultDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/picket"
	}
	if d := os.Getenv("XDG_DATA_HOME"); d != "" {
		return filepath.Join(d, "picket")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "picket-data"
	}
	return filepath.Join(home, ".local", "share", "picket")
}

// Find returns the endpoints of the Picket that runs on dir.
func Find(dir string) (Endpoints, error) {
	var e Endpoints
	b, err := os.ReadFile(filepath.Join(dir, endpointsFile))
	if errors.Is(err, os.ErrNotExist) {
		return e, fmt.Errorf("no Picket runs on %s: start one with `picket up`, or name its data folder with --data", dir)
	}
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return e, fmt.Errorf("%s: %w", filepath.Join(dir, endpointsFile), err)
	}
	if err := syscall.Kill(e.PID, 0); errors.Is(err, syscall.ESRCH) {
		return e, fmt.Errorf("the Picket on %s (pid %d) has ended without cleaning up: start it again with `picket up`", dir, e.PID)
	}
	return e, nil
}

// Stack is a running Picket.
type Stack struct {
	Endpoints

	dir      string
	lock     *os.File
	progress func(string)
	nats     *natsserver.Server
	ch       *clickhousebin.Server
	admin    *bus.Bus
	logs     []io.Closer

	mu       sync.Mutex
	services []*running // in the order of an event's way
	failed   chan error
}

type running struct {
	name string
	stop context.CancelFunc
	done chan struct{}
}

// Start starts everything and returns when all of it is ready. On an error
// what was started is stopped again.
func Start(ctx context.Context, o Options) (_ *Stack, err error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	s := &Stack{dir: o.Dir, progress: o.Progress, failed: make(chan error, 8)}
	defer func() {
		if err != nil {
			s.Stop()
		}
	}()
	logDir := filepath.Join(o.Dir, "log")
	if err := os.MkdirAll(logDir, 0o750); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	if err := s.takeLock(); err != nil {
		return nil, err
	}
	s.Endpoints = Endpoints{PID: os.Getpid(), Started: time.Now(), Cluster: o.Cluster, Admin: map[string]string{},
		Credentials: filepath.Join(o.Dir, "nats", "credentials")}

	at := time.Now()
	took := func() string { d := time.Since(at).Round(10 * time.Millisecond); at = time.Now(); return d.String() }
	s.nats, err = natsserver.Start(natsserver.Options{Dir: filepath.Join(o.Dir, "nats"), Listen: o.NATSListen, Cluster: o.Cluster, Node: "*"})
	if err != nil {
		return nil, err
	}
	s.NATS = s.nats.URL()
	o.Progress(fmt.Sprintf("nats         %s  (JetStream on disk, %s)", s.NATS, took()))

	logger := func(name string) (*slog.Logger, error) {
		l, c, err := service.OpenLog(service.LogConfig{Level: "info", Format: "json", File: filepath.Join(logDir, name+".log")})
		if c != nil {
			s.logs = append(s.logs, c)
		}
		return l, err
	}
	upLog, err := logger("up")
	if err != nil {
		return nil, err
	}
	if o.ClickHouseListen == "" {
		o.ClickHouseListen = "127.0.0.1:0"
	}
	s.ch, err = clickhousebin.Start(ctx, clickhousebin.Options{URL: o.ClickHouseURL, Data: filepath.Join(o.Dir, "clickhouse"),
		Listen: o.ClickHouseListen, Binary: o.ClickHouseBinary, Log: upLog})
	if err != nil {
		return nil, err
	}
	s.ClickHouse = s.ch.URL
	o.Progress(fmt.Sprintf("clickhouse   %s  (%s, %s)", s.ClickHouse, s.ch.Kind, took()))

	chConfig := store.DefaultConfig()
	chConfig.URL = s.ClickHouse
	if s.admin, err = bus.Connect(s.natsConfig(schemas.ServiceAdmin), schemas.ServiceAdmin, upLog); err != nil {
		return nil, err
	}
	limits := bus.DefaultLimits()
	if all, room := limits.Bytes(), s.nats.MaxStore(); all > room {
		limits = limits.Within(room)
		o.Progress(fmt.Sprintf("disk         little is free: streams hold at most %.1f GB instead of %.1f GB", float64(room)/1e9, float64(all)/1e9))
	}
	if err := s.admin.Migrate(ctx, limits); err != nil {
		return nil, err
	}
	if err := MigrateStore(ctx, chConfig, upLog); err != nil {
		return nil, err
	}
	o.Progress(fmt.Sprintf("schema       streams and tables are up to date  (%s)", took()))

	log := func(name string) service.LogConfig {
		return service.LogConfig{Level: "info", Format: "json", File: filepath.Join(logDir, name+".log")}
	}
	sinkCfg := sink.DefaultConfig()
	sinkCfg.Cluster = o.Cluster
	sinkCfg.NATS, sinkCfg.Log, sinkCfg.ClickHouse = s.natsConfig(schemas.ServiceSink), log(schemas.ServiceSink), chConfig
	detCfg := detector.DefaultConfig()
	detCfg.NATS, detCfg.Log, detCfg.ClickHouse = s.natsConfig(schemas.ServiceDetector), log(schemas.ServiceDetector), chConfig
	detCfg.Rules, detCfg.Cluster = o.Rules, o.Cluster
	enrCfg := enricher.DefaultConfig()
	enrCfg.NATS, enrCfg.Log, enrCfg.Cluster = s.natsConfig(schemas.ServiceEnricher), log(schemas.ServiceEnricher), o.Cluster
	enrCfg.Kubernetes.Enabled, enrCfg.Kubernetes.Kubeconfig = o.Kubeconfig != "", o.Kubeconfig
	audCfg := auditlogingest.DefaultConfig()
	audCfg.NATS, audCfg.Log, audCfg.Cluster = s.natsConfig(schemas.ServiceAudit), log(schemas.ServiceAudit), o.Cluster
	audCfg.StateDir = filepath.Join(o.Dir, "auditlog-ingest")
	if audCfg.Webhook.Listen, err = freeport.Address(o.WebhookListen); err != nil {
		return nil, err
	}
	audCfg.File.Path = o.AuditFile
	s.Webhook = "http://" + audCfg.Webhook.Listen + audCfg.Webhook.Path

	start := func(name string, admin *service.AdminConfig, run func(context.Context) error) error {
		if admin.Listen, err = freeport.Address("127.0.0.1:0"); err != nil {
			return err
		}
		s.Admin[name] = "http://" + admin.Listen
		s.run(name, run)
		return nil
	}
	// Consumers first, so that the sensor's first event already has a way.
	err = errors.Join(
		start(schemas.ServiceSink, &sinkCfg.Admin, func(ctx context.Context) error { return sink.Run(ctx, sinkCfg) }),
		start(schemas.ServiceDetector, &detCfg.Admin, func(ctx context.Context) error { return detector.Run(ctx, detCfg) }),
		start(schemas.ServiceEnricher, &enrCfg.Admin, func(ctx context.Context) error { return enricher.Run(ctx, enrCfg) }),
		start(schemas.ServiceAudit, &audCfg.Admin, func(ctx context.Context) error { return auditlogingest.Run(ctx, audCfg) }),
	)
	if err != nil {
		return nil, err
	}
	if o.Sensor != nil {
		cfg := *o.Sensor
		cfg.NATS, cfg.Log = s.natsConfig(schemas.ServiceSensor), log(schemas.ServiceSensor)
		cfg.Cluster, cfg.StateDir = o.Cluster, filepath.Join(o.Dir, "sensor")
		cfg.DropCapabilities = false // other services are in this process
		if o.Node != "" {
			cfg.Node = o.Node
		}
		if err := start(schemas.ServiceSensor, &cfg.Admin, func(ctx context.Context) error { return sensor.Run(ctx, cfg) }); err != nil {
			return nil, err
		}
	}
	for name, url := range s.Admin {
		if err := s.waitReady(ctx, name, url); err != nil {
			return nil, err
		}
	}
	names := "sink, detector, enricher, auditlog-ingest"
	if o.Sensor != nil {
		names += ", sensor"
	}
	o.Progress(fmt.Sprintf("services     %s  (%s)", names, took()))
	o.Progress("webhook      " + s.Webhook + "  (audit.k8s.io/v1 EventList)")
	return s, s.save()
}

// MigrateStore creates or upgrades ClickHouse's tables.
func MigrateStore(ctx context.Context, cfg store.Config, log *slog.Logger) error {
	db, err := store.Open(cfg, log)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.Migrate(ctx)
}

func (s *Stack) natsConfig(name string) bus.Config {
	return bus.Config{URL: s.NATS, CredentialsFile: s.CredentialsFile(name)}
}

func (s *Stack) takeLock() error {
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("another Picket already runs on %s: stop it, or choose another folder with --data", s.dir)
	}
	s.lock = f
	return nil
}

func (s *Stack) save() error {
	b, err := json.MarshalIndent(s.Endpoints, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, endpointsFile)
	if err := os.WriteFile(path+".tmp", b, 0o640); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// run starts a service. Its end, unless asked for, ends the stack.
func (s *Stack) run(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{name: name, stop: cancel, done: make(chan struct{})}
	s.mu.Lock()
	s.services = append(s.services, r)
	s.mu.Unlock()
	go func() { // ends with the service, which Stop stops and waits for
		defer close(r.done)
		err := run(ctx)
		if ctx.Err() == nil {
			if err == nil {
				err = errors.New("it ended without a reason")
			}
			s.failed <- fmt.Errorf("%s stopped: %w", name, err)
		}
	}()
}

// Failed delivers the reason when something that should run has stopped.
func (s *Stack) Failed() <-chan error { return s.failed }

// ClickHouseDone is closed when a ClickHouse that the stack started has ended.
func (s *Stack) ClickHouseDone() <-chan struct{} { return s.ch.Done() }

func (s *Stack) waitReady(ctx context.Context, name, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	last := ""
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // only for the message below
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			last = strings.TrimSpace(string(body))
		}
		select {
		case err := <-s.failed:
			return err
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %s (its log is in %s)", name, last, filepath.Join(s.dir, "log"))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop stops everything in the order of an event's way, so that what was seen
// is stored before storage stops. What a bounded wait leaves stays in the
// spool and the streams, for the next start.
func (s *Stack) Stop() {
	s.StopSources()
	s.stopServices(schemas.ServiceEnricher, schemas.ServiceDetector, schemas.ServiceSink)
	if s.admin != nil {
		s.admin.Close()
	}
	if s.ch != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		if err := s.ch.Stop(ctx); err != nil {
			s.progress("clickhouse: " + err.Error())
		}
		cancel()
	}
	if s.nats != nil {
		s.nats.Stop()
	}
	for _, c := range s.logs {
		c.Close()
	}
	if s.lock != nil {
		os.Remove(filepath.Join(s.dir, endpointsFile))
		s.lock.Close()
	}
}

// StopSources stops the sensor and the ingester and waits, within bounds,
// until everything they published is enriched, evaluated and stored.
func (s *Stack) StopSources() {
	s.stopServices(schemas.ServiceSensor, schemas.ServiceAudit)
	s.Drain()
}

// Drain waits, within bounds, until nothing is under way between the services.
func (s *Stack) Drain() {
	s.drain(schemas.StreamRaw)
	s.drain(schemas.StreamEvents)
	s.drainAlerts()
}

func (s *Stack) stopServices(names ...string) {
	s.mu.Lock()
	var stopping []*running
	for _, r := range s.services {
		for _, n := range names {
			if r.name == n {
				stopping = append(stopping, r)
			}
		}
	}
	s.mu.Unlock()
	for _, r := range stopping {
		r.stop()
	}
	for _, r := range stopping {
		<-r.done
	}
}

// drainTime bounds each wait of a stop.
const drainTime = 10 * time.Second

// drain waits until a stream that keeps only what is still wanted is empty.
func (s *Stack) drain(stream string) {
	s.wait(func(ctx context.Context) bool {
		st, err := s.admin.JS.Stream(ctx, stream)
		return err != nil || st.CachedInfo().State.Msgs == 0
	})
}

func (s *Stack) drainAlerts() {
	s.wait(func(ctx context.Context) bool {
		c, err := s.admin.JS.Consumer(ctx, schemas.StreamAlerts, schemas.DurableAlertsWriter)
		return err != nil || c.CachedInfo().NumPending == 0 && c.CachedInfo().NumAckPending == 0
	})
}

func (s *Stack) wait(done func(context.Context) bool) {
	if s.admin == nil || len(s.services) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	for !done(ctx) && ctx.Err() == nil {
		time.Sleep(20 * time.Millisecond)
	}
}

// Subscribe delivers every finding published from now on to each, until the
// returned function is called.
func (s *Stack) Subscribe(each func(*schemas.Finding)) (stop func(), err error) {
	return SubscribeAlerts(s.natsConfig(schemas.ServiceReader), each)
}

// SubscribeAlerts is Subscribe for a NATS server anywhere.
func SubscribeAlerts(cfg bus.Config, each func(*schemas.Finding)) (stop func(), err error) {
	b, err := bus.Connect(cfg, schemas.ServiceReader, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	sub, err := b.NC.Subscribe("picket.alerts.>", func(m *nats.Msg) {
		var f schemas.Finding
		if json.Unmarshal(m.Data, &f) == nil {
			each(&f)
		}
	})
	if err == nil {
		err = sub.SetPendingLimits(-1, 256<<20)
	}
	if err == nil {
		err = b.NC.Flush()
	}
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("subscribe to alerts: %w", err)
	}
	return b.Close, nil
}
