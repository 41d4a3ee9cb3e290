// Package eks reads the audit logs of EKS clusters from CloudWatch Logs: log
// group /aws/eks/<cluster>/cluster, streams kube-apiserver-audit-*, by
// FilterLogEvents.
//
// CloudWatch Logs shows an event some time after it happened, events of the
// same millisecond one after the other, and has no order of arrival to read by.
// So every stretch of time is read more than once: when it is new, and again
// when it is older, at last when it is as old as the configured overlap. What
// comes twice is dropped by its event id in what runs the source. reader.go
// says how.
package eks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"picket/services/auditlog-ingest/source"
)

const (
	// maxPage bounds a page's bytes on the wire. A page has at most 1 MB of
	// events (FilterLogEvents), which JSON's escapes make larger.
	maxPage = 32 << 20
	// requestTimeout bounds one request with its answer.
	requestTimeout = time.Minute
	// maxBackoff bounds the pause after a failed request.
	maxBackoff = 30 * time.Second
	// credentialsKept is how long credentials without an end are used before
	// they are looked for again, so that a file of them can be replaced.
	credentialsKept = 5 * time.Minute
	// sessionName tells in the account's CloudTrail who assumed a role.
	sessionName = "picket-auditlog-ingest"
)

// provider is the log groups of the configuration.
type provider struct {
	cfg      Config
	log      *slog.Logger
	requests *prometheus.CounterVec
	shards   []*shard
	pace     pace
}

// shard is one log group and what is needed to read it.
type shard struct {
	Cluster
	name    string // of the source
	client  *cloudwatchlogs.Client
	expired func() // forgets the credentials
}

// New returns the provider of the configured clusters. It asks nobody: that a
// log group or a role is not there shows in the source's readiness, and is tried
// again. Credentials are those of the SDK's standard chain (environment, shared
// files, web identity, EKS Pod Identity, container, instance).
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (source.Provider, error) {
	return build(cfg, log, reg, paceOf(cfg))
}

func build(cfg Config, log *slog.Logger, reg prometheus.Registerer, pc pace) (*provider, error) {
	p := &provider{cfg: cfg, log: log, pace: pc, requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "picket_auditlog_ingest_eks_requests_total",
		Help: "Requests to CloudWatch Logs by outcome: ok, throttled, token (a page's token had expired), credentials, denied, missing, failed.",
	}, []string{"source", "outcome"})}
	if err := reg.Register(p.requests); err != nil {
		return nil, err
	}
	limits, regions := map[string]*rate.Limiter{}, map[string]*own{}
	for _, k := range cfg.Clusters {
		k = cfg.filled(k)
		at := k.account() + " " + k.Region
		if limits[at] == nil {
			limits[at] = rate.NewLimiter(rate.Limit(cfg.RequestsPerSecond), 1)
		}
		if regions[k.Region] == nil {
			o, err := newOwn(k.Region)
			if err != nil {
				return nil, fmt.Errorf("eks: AWS configuration: %w", err)
			}
			regions[k.Region] = o
		}
		p.shards = append(p.shards, open(k, regions[k.Region], limits[at]))
	}
	return p, nil
}

// own is the SDK's configuration for a region, with the ingester's own
// credentials.
type own struct {
	aws.Config
	cache *aws.CredentialsCache
}

func newOwn(region string) (*own, error) {
	// The SDK adds the authorities of AWS_CA_BUNDLE to this client. What it would
	// log comes as an error too.
	wire := awshttp.NewBuildableClient().WithTimeout(requestTimeout)
	cfg, err := config.LoadDefaultConfig(context.Background(), config.WithRegion(region), config.WithHTTPClient(wire), config.WithLogger(logging.Nop{}))
	if err != nil {
		return nil, err
	}
	o := &own{cfg, aws.NewCredentialsCache(chain{region, cfg.HTTPClient})}
	o.Credentials = o.cache
	return o, nil
}

// open makes the client of a log group. It asks nobody.
func open(k Cluster, base *own, limit *rate.Limiter) *shard {
	s := &shard{Cluster: k, name: "eks-" + k.Name, expired: base.cache.Invalidate}
	creds := base.cache
	if k.RoleARN != "" {
		creds = aws.NewCredentialsCache(stscreds.NewAssumeRoleProvider(sts.NewFromConfig(base.Config), k.RoleARN, func(o *stscreds.AssumeRoleOptions) {
			o.RoleSessionName = sessionName
			if k.ExternalID != "" {
				o.ExternalID = aws.String(k.ExternalID)
			}
		}), func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = time.Minute })
		s.expired = func() { creds.Invalidate(); base.cache.Invalidate() }
	}
	s.client = cloudwatchlogs.NewFromConfig(base.Config, func(o *cloudwatchlogs.Options) {
		o.Credentials = creds
		o.HTTPClient = &paced{base.HTTPClient, limit}
		if k.Endpoint != "" {
			o.BaseEndpoint = aws.String(k.Endpoint)
		}
		// The reader repeats by itself, for as long as it takes, with the SDK's
		// pauses: a page is tried again from its token, and each failure counted.
		o.Retryer = aws.NopRetryer{}
	})
	return s
}

// chain is the SDK's standard chain, looked through anew each time, so that
// credentials that were put in place of others are found.
type chain struct {
	region string
	http   aws.HTTPClient
}

// Retrieve implements aws.CredentialsProvider.
func (c chain) Retrieve(ctx context.Context) (aws.Credentials, error) {
	cfg, err := config.LoadDefaultConfig(ctx, config.WithRegion(c.region), config.WithHTTPClient(c.http), config.WithLogger(logging.Nop{}))
	if err != nil {
		return aws.Credentials{}, err
	}
	creds, err := cfg.Credentials.Retrieve(ctx)
	if err == nil && !creds.CanExpire {
		creds.CanExpire, creds.Expires = true, time.Now().Add(credentialsKept)
	}
	return creds, err
}

// paced is an HTTP client that keeps within the quota of an account and region
// and bounds what it reads. The sources that share it take turns: each has one
// request under way at most.
type paced struct {
	http  aws.HTTPClient
	limit *rate.Limiter
}

// Do implements aws.HTTPClient.
func (p *paced) Do(r *http.Request) (*http.Response, error) {
	if err := p.limit.Wait(r.Context()); err != nil {
		return nil, err
	}
	a, err := p.http.Do(r)
	if err == nil {
		a.Body = http.MaxBytesReader(nil, a.Body, maxPage)
	}
	return a, err
}

// Name implements source.Provider.
func (p *provider) Name() string { return "eks" }

// Sources implements source.Provider: one source for each log group. It asks
// nobody.
func (p *provider) Sources(context.Context) ([]source.Source, error) {
	out := make([]source.Source, len(p.shards))
	for i, s := range p.shards {
		r := &reader{shard: s, pace: p.pace, start: p.cfg.Start, log: p.log.With("source", s.name, "log_group", s.LogGroup, "region", s.Region), requests: p.requests,
			backoff: retry.NewExponentialJitterBackoff(p.pace.backoff)}
		waiting := error(errNotYet)
		r.state.Store(&waiting)
		out[i] = r
	}
	return out, nil
}

var errNotYet = errors.New("nothing has been read yet")

// firstLine returns the beginning of a message from AWS. Of a signature that is
// not right it sends back the request, session token included, on further lines.
func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s[:min(len(s), 256)]
}
