// Package gke takes the audit events of GKE clusters out of Google's Cloud Audit
// Logs: from Pub/Sub subscriptions of log sinks, and by entries.list of Cloud
// Logging. Google does not hand out the events of its API servers but log entries
// made of them; Records makes events of these again, as far as they go.
package gke

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/googleapis/gax-go/v2"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"picket/internal/fault"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

// Kind is the column audit_source of these events.
const Kind = "gke"

// provider is the configured subscriptions and logs.
type provider struct {
	*shared
}

// shared is what the sources have in common.
type shared struct {
	cfg      Config
	clusters map[string]string // by project_location_cluster
	log      *slog.Logger
	reads    *rate.Limiter // of entries.list
	skipped  *prometheus.CounterVec
	requests *prometheus.CounterVec
}

// New returns the provider of what is configured. It asks nothing of Google yet.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (source.Provider, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return build(cfg, log, reg)
}

func build(cfg Config, log *slog.Logger, reg prometheus.Registerer) (source.Provider, error) {
	s := &shared{
		cfg: cfg, clusters: map[string]string{}, log: log,
		// A few at once, so that pages of a busy minute follow each other; over a
		// minute it is what is configured.
		reads: rate.NewLimiter(rate.Limit(float64(cfg.ReadsPerMinute)/60), min(cfg.ReadsPerMinute, 5)),
		skipped: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "picket_auditlog_ingest_gke_skipped_entries_total",
			Help: "Log entries that are no audit events of Kubernetes (other_service, no_audit), or that gke.subscriptions.since leaves to gke.logs (before_since)."}, []string{"source", "reason"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "picket_auditlog_ingest_gke_requests_total",
			Help: "Requests to Cloud Logging and Pub/Sub that were answered, streams apart, by gRPC code: ResourceExhausted is throttling."}, []string{"source", "code"}),
	}
	for _, c := range cfg.Clusters {
		s.clusters[c.Project+"_"+c.Location+"_"+c.Cluster] = c.Name
	}
	if err := errors.Join(reg.Register(s.skipped), reg.Register(s.requests)); err != nil {
		return nil, err
	}
	return provider{s}, nil
}

// Name implements source.Provider.
func (provider) Name() string { return Kind }

// Sources implements source.Provider.
func (p provider) Sources(context.Context) ([]source.Source, error) {
	var out []source.Source
	for _, c := range p.cfg.Subscriptions {
		since, err := instant("since", c.Since)
		if err != nil {
			return nil, err
		}
		out = append(out, &subscription{state: state{shared: p.shared, name: c.name()}, path: c.Subscription, since: since})
	}
	for _, c := range p.cfg.Logs {
		until, err := instant("until", c.Until)
		if err != nil {
			return nil, err
		}
		out = append(out, &logs{state: state{shared: p.shared, name: c.name()}, resource: c.Resource, start: c.start(), until: until})
	}
	return out, nil
}

// state is what both kinds of sources have.
type state struct {
	*shared
	name string

	mu     sync.Mutex
	ready  bool
	err    error // why it is not
	logged time.Time
}

// Name implements source.Source.
func (s *state) Name() string { return s.name }

// Kind implements source.Source.
func (s *state) Kind() string { return Kind }

// Ready implements source.Source.
func (s *state) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready {
		return nil
	}
	if s.err != nil {
		return s.err
	}
	return errors.New("no answer from Google yet")
}

func (s *state) works() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready, s.err = true, nil
}

// fails notes that a request did not succeed, and logs it once a minute. what is
// what was asked for.
func (s *state) fails(what string, err error) {
	err = explain(what, err)
	s.mu.Lock()
	s.ready, s.err = false, err
	tell := time.Since(s.logged) > time.Minute
	if tell {
		s.logged = time.Now()
	}
	s.mu.Unlock()
	if tell {
		s.log.Warn("no audit events from Google; trying again", "source", s.name, "error", err)
	}
}

// explain adds to an error of Google's what helps.
func explain(what string, err error) error {
	remedy := ""
	switch status.Code(err) {
	case codes.PermissionDenied:
		remedy = "; grant the role of deploy/audit/gke to the ingester's service account"
	case codes.NotFound:
		remedy = "; make it, or mend its name in the configuration"
	case codes.Unauthenticated:
		remedy = "; see whether the service account and its credentials are still valid"
	case codes.ResourceExhausted:
		remedy = "; the quota is used up: it goes on more slowly (gke.reads_per_minute)"
	case codes.Unknown:
		if strings.Contains(err.Error(), "could not find default credentials") {
			remedy = "; give the ingester Workload Identity, or GOOGLE_APPLICATION_CREDENTIALS"
		}
	}
	return fmt.Errorf("%s: %w%s", what, err, remedy)
}

// pauses is the SDK's back-off between tries: random, up to a bound that grows
// from 1 s to 60 s.
func pauses() gax.Backoff { return gax.Backoff{Initial: time.Second, Max: time.Minute, Multiplier: 2} }

// options are those of a client: address, credentials from Google's usual chain,
// a count of its requests, and before what each of them waits.
func (s *state) options(endpoint string, before func(context.Context) error) []option.ClientOption {
	opts := []option.ClientOption{option.WithTelemetryDisabled(), option.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if err := before(ctx); err != nil {
				return err
			}
			err := invoke(ctx, method, req, reply, cc, opts...)
			s.requests.WithLabelValues(s.name, status.Code(err).String()).Inc()
			return err
		}))}
	if plain, ok := strings.CutPrefix(endpoint, plaintext); ok {
		return append(opts, option.WithEndpoint(plain), option.WithoutAuthentication(), option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	}
	if endpoint != "" {
		opts = append(opts, option.WithEndpoint(endpoint))
	}
	return opts
}

// take hands a log entry to the sink. since, if not zero, is when entries that
// are taken were received at the earliest.
func (s *state) take(ctx context.Context, sink source.Sink, line []byte, from string, at int64, since time.Time, done func()) error {
	e := take()
	defer e.free()
	err := e.read(line)
	r := source.Record{Item: record.Item{Text: line}, From: from, At: at}
	if err == nil && e.other == "" {
		r = e.record()
		r.From, r.At = from, at
		if !since.IsZero() && !r.Arrived.IsZero() && r.Arrived.Before(since) {
			e.other = "before_since"
		} else {
			err = s.place(&r, e)
		}
	}
	switch {
	case err != nil:
		r.Text, r.Cluster = line, ""
		return sink.Refuse(ctx, r, int64(len(line)), err, done)
	case e.other != "":
		s.skipped.WithLabelValues(s.name, e.other).Inc()
		if done != nil {
			done()
		}
		return nil
	}
	return sink.Put(ctx, r, done)
}

// place sets the cluster's name.
func (s *shared) place(r *source.Record, e *entry) error {
	if name, ok := s.clusters[r.Cluster]; ok {
		r.Cluster = name
		return nil
	}
	where := fmt.Errorf("cluster %.64q in %.64q of project %.64q is not in gke.clusters", e.resource.cluster, e.resource.location, e.resource.project)
	if s.cfg.OtherClusters == OthersRefuse {
		return fault.Permanent(record.ReasonCluster, where)
	}
	// The name becomes a part of a subject, and what is in a log entry is not
	// ours: a name that cannot be Google's is not taken over.
	if source.ValidName("cluster", r.Cluster) != nil {
		return fault.Permanent(record.ReasonCluster, fmt.Errorf("%w, and makes no name", where))
	}
	return nil
}
