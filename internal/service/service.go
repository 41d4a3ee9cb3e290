// Package service is what every Picket service is made of besides its work:
// the log, the metrics, the admin port, the connection to NATS, and a main
// function that turns errors into one sentence and an exit code.
package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"picket/internal/bus"
	"picket/internal/config"
)

// LogConfig is the `log` part of every configuration.
type LogConfig struct {
	Level  string `yaml:"level" doc:"debug, info, warn or error."`
	Format string `yaml:"format" doc:"json, or text for people."`
	File   string `yaml:"file" doc:"File to append to. Empty: standard error."`
}

// AdminConfig is the `admin` part of every configuration.
type AdminConfig struct {
	Listen string `yaml:"listen" doc:"Address of the admin port: /metrics, /healthz, /readyz. Empty: none."`
	Pprof  bool   `yaml:"pprof" doc:"Serve /debug/pprof on the admin port; refused unless it listens on loopback."`
}

// DefaultLog and DefaultAdmin are the defaults of the two parts.
func DefaultLog() LogConfig     { return LogConfig{Level: "info", Format: "json"} }
func DefaultAdmin() AdminConfig { return AdminConfig{} }

// Validate checks the part; messages name the YAML key.
func (c LogConfig) Validate() error {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.Level)); err != nil {
		return fmt.Errorf("log.level is %q: use debug, info, warn or error", c.Level)
	}
	if c.Format != "json" && c.Format != "text" {
		return fmt.Errorf("log.format is %q: use json or text", c.Format)
	}
	return nil
}

// Validate checks the part; messages name the YAML key.
func (c AdminConfig) Validate() error {
	if c.Listen == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("admin.listen is %q: use host:port, such as 127.0.0.1:9090", c.Listen)
	}
	if ip := net.ParseIP(host); c.Pprof && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("admin.pprof is on, but admin.listen %q is not loopback: profiles show memory contents", c.Listen)
	}
	return nil
}

// Runtime is a running service's surroundings.
type Runtime struct {
	Name    string
	Log     *slog.Logger
	Metrics *prometheus.Registry
	Bus     *bus.Bus

	admin   *http.Server
	logFile io.Closer
	mu      sync.Mutex
	ready   map[string]func() error
}

// Start opens the log and the admin port, and connects to NATS. The caller
// owns the Runtime, must Close it, and calls Started when it does its work;
// until then the service is not ready.
func Start(name string, n bus.Config, l LogConfig, a AdminConfig) (*Runtime, error) {
	rt := &Runtime{Name: name, Metrics: prometheus.NewRegistry(), ready: map[string]func() error{}}
	rt.Metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var err error
	if rt.Log, rt.logFile, err = OpenLog(l); err != nil {
		return nil, err
	}
	rt.Log = rt.Log.With("service", name)
	rt.SetReady(name, func() error { return errors.New("starting") })
	if err := rt.serveAdmin(a); err != nil {
		rt.Close()
		return nil, err
	}
	rt.SetReady("nats", func() error { return errors.New("not connected yet") })
	if rt.Bus, err = bus.Connect(n, name, rt.Log); err != nil {
		rt.Close()
		return nil, err
	}
	rt.SetReady("nats", rt.Bus.Ready)
	return rt, nil
}

// Close closes what Start opened.
func (rt *Runtime) Close() {
	if rt.Bus != nil {
		rt.Bus.Close()
	}
	if rt.admin != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := rt.admin.Shutdown(ctx); err != nil {
			rt.Log.Warn("admin port closed with requests open", "error", err)
		}
	}
	if rt.logFile != nil {
		rt.logFile.Close()
	}
}

// Started says that the service does its work from now on: what is left of
// /readyz are the conditions of SetReady.
func (rt *Runtime) Started() {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	delete(rt.ready, rt.Name)
}

// Verify waits for NATS and the named streams (see bus.Verify); until then
// the service is not ready.
func (rt *Runtime) Verify(ctx context.Context, streams ...string) error {
	rt.SetReady("streams", func() error { return errors.New("not found yet") })
	if err := rt.Bus.Verify(ctx, verifyPatience, streams...); err != nil {
		return err
	}
	rt.SetReady("streams", func() error { return nil })
	return nil
}

// verifyPatience is how long a service that has NATS waits for somebody to run
// `picket migrate`.
const verifyPatience = 30 * time.Second

// SetReady names a condition of /readyz; it is asked at each request and must
// be safe for concurrent use.
func (rt *Runtime) SetReady(name string, check func() error) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.ready[name] = check
}

func (rt *Runtime) serveAdmin(a AdminConfig) error {
	if a.Listen == "" {
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(rt.Metrics, promhttp.HandlerOpts{Registry: rt.Metrics}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		rt.mu.Lock()
		defer rt.mu.Unlock()
		var bad []string
		for name, check := range rt.ready {
			if err := check(); err != nil {
				bad = append(bad, name+": "+err.Error())
			}
		}
		if len(bad) > 0 {
			slices.Sort(bad)
			http.Error(w, strings.Join(bad, "\n"), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	if a.Pprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	ln, err := net.Listen("tcp", a.Listen)
	if err != nil {
		return fmt.Errorf("admin.listen: %w", err)
	}
	rt.admin = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { // ends with Close, which shuts the server down
		if err := rt.admin.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			rt.Log.Error("admin port failed", "error", err)
		}
	}()
	rt.Log.Info("admin port open", "address", ln.Addr().String())
	return nil
}

// OpenLog returns the logger that the configuration describes, and what to
// close in the end (nil for standard error).
func OpenLog(c LogConfig) (*slog.Logger, io.Closer, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return nil, nil, fmt.Errorf("log.level: %w", err)
	}
	var out io.Writer = os.Stderr
	var closer io.Closer
	if c.File != "" {
		f, err := os.OpenFile(c.File, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, nil, fmt.Errorf("log.file: %w", err)
		}
		out, closer = f, f
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "text" {
		return slog.New(slog.NewTextHandler(out, opts)), closer, nil
	}
	return slog.New(slog.NewJSONHandler(out, opts)), closer, nil
}

// Main is a service's main function: it loads the configuration from file,
// environment and flags, runs until SIGINT or SIGTERM, and returns the exit
// code. Every failure is one sentence on standard error.
func Main[C config.Validator](name string, defaults C, run func(context.Context, C) error) int {
	cfg, err := config.Load(name, defaults, os.Args[1:], os.Environ(), os.Stdout)
	if errors.Is(err, config.ErrDone) {
		return 0
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "picket-%s: %v\n", name, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, cfg); err != nil && !(ctx.Err() != nil && errors.Is(err, context.Canceled)) {
		fmt.Fprintf(os.Stderr, "picket-%s: %v\n", name, err)
		return 1
	}
	return 0
}
