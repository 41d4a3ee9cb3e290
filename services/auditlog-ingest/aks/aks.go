// Package aks reads the audit logs of AKS clusters from where their diagnostic
// settings write them: event hubs, and storage accounts as the second way.
//
// A partition of an event hub is a Source (eventhub.go), and so are one
// cluster's blobs in one container (storage.go). What is in both is the same
// (records.go). docs/audit-aks.md says how to set it up and what is promised.
package aks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/util/wait"

	"picket/internal/fault"
	"picket/schemas"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

const (
	kind = "aks"
	// askFor is how long a question to the cloud may take.
	askFor = 30 * time.Second
	// logEvery is the pause between two log lines about the same trouble.
	logEvery = 30 * time.Second
	// maxUnknown bounds how many resources outside aks.clusters are named in
	// the log.
	maxUnknown = 100
)

// Provider is all the places of one configuration.
type Provider struct {
	cfg      Config
	log      *slog.Logger
	cred     azcore.TokenCredential // nil if no place is opened with Entra ID
	clusters map[string]string      // by resourceKey
	places   []place
	askFor   time.Duration // how long a question to the cloud may take
	skipped  *prometheus.CounterVec
	cut      *prometheus.CounterVec

	mu      sync.Mutex
	unknown map[string]bool // resources that were logged
}

// place is one event hub or one storage account.
type place interface {
	name() string
	// list asks the cloud what there is to read, and returns its names.
	list(ctx context.Context) ([]string, error)
	// source returns a new Source of one of them.
	source(name string) source.Source
	// listed are the names of the last list that worked; nil if none did yet.
	// Only Provider.Sources uses it, one call at a time.
	listed() *[]string
}

// New returns the provider. It connects to nothing yet.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (source.Provider, error) {
	p := &Provider{
		cfg: cfg, log: log, clusters: map[string]string{}, unknown: map[string]bool{}, askFor: askFor,
		skipped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "picket_auditlog_ingest_aks_skipped_records_total", Help: "Records of Azure Monitor that were left out: of another category, or of a cluster that is not in aks.clusters.",
		}, []string{"source", "reason"}),
		cut: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "picket_auditlog_ingest_aks_cut_records_total", Help: "Audit records whose end AKS had cut off; what was whole of them was taken.",
		}, []string{"source"}),
	}
	for _, c := range cfg.Clusters {
		p.clusters[resourceKey(c.ResourceID)] = c.Name
	}
	entra := false
	for _, h := range cfg.EventHubs {
		entra = entra || h.Namespace != ""
		p.places = append(p.places, &eventHub{Provider: p, cfg: h})
	}
	for _, s := range cfg.Storage {
		entra = entra || s.URL != ""
		p.places = append(p.places, &account{Provider: p, cfg: s})
	}
	if entra {
		cred, err := azidentity.NewDefaultAzureCredential(nil)
		if err != nil {
			return nil, fmt.Errorf("aks: credentials of Entra ID: %w", err)
		}
		p.cred = cred
	}
	reg.MustRegister(p.skipped, p.cut)
	return p, nil
}

// Name implements source.Provider.
func (p *Provider) Name() string { return kind }

// Sources implements source.Provider. A place that does not answer is read as
// it was known last; only if no place ever answered is that an error.
func (p *Provider) Sources(ctx context.Context) ([]source.Source, error) {
	ctx, cancel := context.WithTimeout(ctx, p.askFor)
	defer cancel()
	errs := make([]error, len(p.places))
	lists := make([][]string, len(p.places))
	var asking sync.WaitGroup
	for i, pl := range p.places {
		asking.Go(func() { lists[i], errs[i] = pl.list(ctx) })
	}
	asking.Wait()
	var all []source.Source
	answered := false
	for i, pl := range p.places {
		known := pl.listed()
		if errs[i] == nil {
			*known = append([]string{}, lists[i]...)
		} else {
			p.log.Warn("cannot list what there is to read; going on with what was known", "source", pl.name(), "known", len(*known), "error", errs[i])
		}
		if *known != nil {
			answered = true
		}
		for _, name := range *known {
			all = append(all, pl.source(name))
		}
	}
	if !answered {
		return nil, errors.Join(errs...)
	}
	return all, nil
}

// cluster returns the name of the cluster that a record is of, and whether the
// record is wanted.
func (p *Provider) cluster(src, resource string) (string, bool) {
	if len(p.clusters) == 0 {
		return "", true
	}
	name, ok := p.clusters[resourceKey(resource)]
	if ok {
		return name, true
	}
	p.skipped.WithLabelValues(src, "cluster").Inc()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.unknown) < maxUnknown && !p.unknown[resource] {
		p.unknown[strings.Clone(resource)] = true
		p.log.Warn("records of a resource that is not in aks.clusters are left out", "source", src, "resource_id", resource)
	}
	return "", false
}

// put hands the records of one text over: the body of a message, a line of a
// blob. r says where they were found; its checkpoint goes with the last. What
// a text of no audit record leaves is the checkpoint alone.
func (p *Provider) put(ctx context.Context, sink source.Sink, src string, r source.Record, text []byte) error {
	checkpoint, id := r.Checkpoint, r.CloudID
	r.Checkpoint = nil
	// The last record is known when the next is seen, or none.
	var held *entry
	n := 0
	release := func(last any) error {
		if held == nil {
			if last == nil {
				return nil
			}
			return sink.Mark(ctx, last)
		}
		e := *held
		held = nil
		r.Checkpoint, r.CloudID = last, fmt.Sprintf("%s/%d", id, n)
		r.Item = record.Item{Text: e.log, Trimmed: e.trimmed}
		n++
		if e.err != nil {
			r.Item = record.Item{Text: []byte(e.text[:min(len(e.text), schemas.MaxDeadBytes)])}
			return sink.Refuse(ctx, r, int64(len(e.text)), e.err, nil)
		}
		if e.trimmed != nil {
			p.cut.WithLabelValues(src).Inc()
		}
		return sink.Put(ctx, r, nil)
	}
	err := entries(string(text), func(e entry) error {
		if e.err == nil {
			if !e.audit {
				p.skipped.WithLabelValues(src, "category").Inc()
				return nil
			}
			cluster, ok := p.cluster(src, e.resource)
			if !ok {
				return nil
			}
			e.cluster = cluster
		}
		if err := release(nil); err != nil {
			return err
		}
		r.Cluster, held = e.cluster, &e
		return nil
	})
	if err != nil {
		return err
	}
	return release(checkpoint)
}

// trouble is what a source does about an error that may pass: it waits, longer
// each time, and tells of it now and then.
type trouble struct {
	log    *slog.Logger
	source string
	pause  wait.Backoff
	logged time.Time
}

func newTrouble(log *slog.Logger, source string) *trouble {
	t := &trouble{log: log, source: source}
	t.over()
	return t
}

// over forgets the errors before.
func (t *trouble) over() {
	t.pause = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 8, Cap: 30 * time.Second}
}

// wait waits for at least the given time, or until ctx ends.
func (t *trouble) wait(ctx context.Context, err error, atLeast time.Duration) {
	pause := max(t.pause.Step(), wait.Jitter(atLeast, 0.5))
	if time.Since(t.logged) > logEvery {
		t.logged = time.Now()
		t.log.Warn("cannot read the audit log; trying again", "source", t.source, "pause", pause, "error", err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
}

// safe takes out of an error what may be a secret, since an address can have a
// signature in its query, and puts an answer of Azure on one line.
func safe(err error) error {
	if r, ok := errors.AsType[*azcore.ResponseError](err); ok {
		return fmt.Errorf("the answer is %d %s", r.StatusCode, r.ErrorCode)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		return fmt.Errorf("%s: %w", u.Op, safe(u.Err))
	}
	return err
}

var errNoRecord = fault.Permanent(record.ReasonType, errors.New("the message has no body of one data section"))
