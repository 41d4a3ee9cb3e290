package eks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	"github.com/aws/smithy-go"
	"github.com/prometheus/client_golang/prometheus"

	"picket/services/auditlog-ingest/source"
)

// passes is how often a stretch of time is read that was reached in time.
const passes = 3

// pace is when a reader reads what.
//
// Pass i wants every moment to be read when it is age[i] old or older, and is
// done with all before checkpoint.Read[i]. The first reads up to the present,
// so a moment that is younger than age[0] is read again each time. One reading
// serves all passes whose wishes it meets: history, and what is behind anyway,
// is read once.
type pace struct {
	age     [passes]time.Duration
	every   [passes]time.Duration // how much a pass lets come together
	most    int                   // events in a window; a wider one is given up and halved
	backoff time.Duration         // longest pause after a failure
	look    time.Duration         // how often the log group's retention is looked at
}

func paceOf(cfg Config) pace {
	o := cfg.Overlap
	return pace{
		age:   [passes]time.Duration{o / 30, o / 5, o},
		every: [passes]time.Duration{cfg.Poll, o / 20, o / 4},
		most:  maxWindowEvents, backoff: maxBackoff, look: time.Hour,
	}
}

// A window is one query, read page by page to its end. Its width follows what
// is in it, so that a window that has to be read again is no great loss, and
// what it repeats is still remembered.
const (
	firstWindow     = time.Minute
	minWindow       = time.Second
	maxWindow       = 24 * time.Hour
	maxWindowEvents = 50_000
)

// checkpoint is where a reader goes on.
type checkpoint struct {
	// Read is the time, in milliseconds since the epoch, before which each pass
	// is done.
	Read [passes]int64 `json:"read"`
	// Told is the time up to which a gap has been told.
	Told int64 `json:"told,omitempty"`
}

// reader is the source of one log group. Run is one goroutine with one request
// under way.
type reader struct {
	*shard
	pace     pace
	start    source.Start
	log      *slog.Logger
	requests *prometheus.CounterVec
	backoff  *retry.ExponentialJitterBackoff
	state    atomic.Pointer[error] // why nothing can be read; of nil: it can

	at      checkpoint
	window  time.Duration
	skew    time.Duration // from our clock to the cloud's
	failing time.Time     // when the last failure was logged
	looked  time.Time
}

// Name implements source.Source.
func (r *reader) Name() string { return r.name }

// Kind implements source.Source.
func (r *reader) Kind() string { return "eks" }

// Ready implements source.Source.
func (r *reader) Ready() error { return *r.state.Load() }

// Run implements source.Source. Nothing that can go wrong is past mending: it
// returns when ctx ends.
func (r *reader) Run(ctx context.Context, sink source.Sink) error {
	err := r.run(ctx, sink)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (r *reader) run(ctx context.Context, sink source.Sink) error {
	known, err := sink.Checkpoint(&r.at)
	if err != nil {
		return err
	}
	r.window = firstWindow
	if err := r.look(ctx, sink, known); err != nil {
		return err
	}
	for {
		if time.Since(r.looked) > r.pace.look {
			if err := r.look(ctx, sink, true); err != nil {
				return err
			}
		}
		from, to, wait := r.next(r.now())
		if wait > 0 {
			if err := pause(ctx, wait); err != nil {
				return err
			}
			continue
		}
		if err := r.read(ctx, sink, from, to); err != nil {
			return err
		}
	}
}

// now is the present by the cloud's clock: what counts as old enough must be so
// there.
func (r *reader) now() time.Time { return time.Now().Add(r.skew) }

// clock takes over what an answer says of the cloud's clock, in whole seconds:
// less than one is no difference.
func (r *reader) clock(skew time.Duration, ok bool) {
	if !ok {
		return
	}
	if r.skew = skew; skew.Abs() <= time.Second {
		r.skew = 0
	}
}

// urgent is how much the last pass may let come together, in its own measure,
// before it comes first. With it a moment is read for the last time within about
// twice the overlap after it was read for the first: what runs the source
// remembers event ids for 20 minutes.
const urgent = 4

// next returns what to read, or how long there is nothing to: the pass that has
// waited the longest in its own measure comes first.
func (r *reader) next(now time.Time) (from, to int64, wait time.Duration) {
	best := 1.0
	wait = r.pace.every[0]
	for i, age := range r.pace.age {
		has := now.Add(-age).Sub(time.UnixMilli(r.at.Read[i]))
		wait = min(wait, r.pace.every[i]-has)
		share := float64(has) / float64(r.pace.every[i])
		if i == passes-1 && share > urgent {
			share = math.Inf(1)
		}
		if share >= best {
			best, from, to = share, r.at.Read[i], now.Add(-age).UnixMilli()
			if i == 0 {
				to = now.UnixMilli()
			}
		}
	}
	if to == 0 {
		return 0, 0, max(wait, time.Millisecond)
	}
	return from, min(to, from+r.window.Milliseconds()), 0
}

// done notes that all from from up to but not at to was read, at a time.
func (c *checkpoint) done(p pace, from, to int64, at time.Time) {
	for i, age := range p.age {
		if from <= c.Read[i] {
			c.Read[i] = max(c.Read[i], min(to, at.Add(-age).UnixMilli()))
		}
	}
}

// errAgain means that a window must be read again from its start, and should be
// narrower.
var errAgain = errors.New("window must be read again")

// read takes the events of one window, and then writes down that it is done.
func (r *reader) read(ctx context.Context, sink source.Sink, from, to int64) error {
	in := &cloudwatchlogs.FilterLogEventsInput{
		LogGroupName: aws.String(r.LogGroup), LogStreamNamePrefix: aws.String(streamPrefix),
		StartTime: aws.Int64(from), EndTime: aws.Int64(to - 1), // both ends belong to it
	}
	began := time.Now()
	width := time.Duration(to-from) * time.Millisecond
	events, first := 0, true
	for {
		page, err := r.page(ctx, in)
		if err == nil && page.NextToken != nil && (in.NextToken != nil && *page.NextToken == *in.NextToken ||
			events+len(page.Events) > r.pace.most && width > minWindow) {
			err = errAgain
		}
		if errors.Is(err, errAgain) {
			// What was taken of it comes again and is dropped as known.
			r.window = max(minWindow, width/2)
			return nil
		}
		if err != nil {
			return err
		}
		if first {
			// By the cloud's clock the window may not have been as old as we thought.
			r.clock(awsmiddleware.GetAttemptSkew(page.ResultMetadata))
			began, first = began.Add(r.skew), false
		}
		for i := range page.Events {
			record := recordOf(&page.Events[i])
			record.Cluster = r.Cluster.Name
			if err := sink.Put(ctx, record, nil); err != nil {
				return err
			}
		}
		events += len(page.Events)
		if page.NextToken == nil {
			break
		}
		in.NextToken = page.NextToken
	}
	if events < r.pace.most/4 && width == r.window {
		r.window = min(maxWindow, 2*r.window)
	}
	r.at.done(r.pace, from, to, began)
	return sink.Mark(ctx, r.at)
}

func recordOf(e *types.FilteredLogEvent) source.Record {
	return logged{aws.ToString(e.EventId), aws.ToString(e.LogStreamName), aws.ToString(e.Message), aws.ToInt64(e.Timestamp), aws.ToInt64(e.IngestionTime)}.record()
}

// page asks for one page until it comes: after a failure it is asked for again
// with the same token. errAgain means that the token is good no more.
func (r *reader) page(ctx context.Context, in *cloudwatchlogs.FilterLogEventsInput) (page *cloudwatchlogs.FilterLogEventsOutput, err error) {
	err = r.insist(ctx, func() error {
		page, err = r.client.FilterLogEvents(ctx, in)
		if invalid := (*types.InvalidParameterException)(nil); in.NextToken != nil && errors.As(err, &invalid) {
			r.count("token")
			return errAgain
		}
		return err
	})
	return page, err
}

// insist calls ask until it succeeds, ctx ends, or it returns errAgain.
func (r *reader) insist(ctx context.Context, ask func() error) error {
	for attempt := 0; ; attempt++ {
		err := ask()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errAgain):
			return err
		case err == nil:
			r.count("ok")
			if *r.state.Swap(new(error)) != nil && !r.failing.IsZero() {
				r.failing = time.Time{}
				r.log.Info("CloudWatch Logs answers again")
			}
			return nil
		}
		outcome, told := r.judge(err)
		r.count(outcome)
		if outcome == "credentials" {
			r.expired()
		}
		if outcome != "throttled" || attempt >= 3 { // a short throttling is daily business
			r.state.Store(&told)
			if time.Since(r.failing) > time.Minute {
				r.failing = time.Now()
				r.log.Warn("CloudWatch Logs cannot be read, trying again", "attempt", attempt+1, "error", told)
			}
		}
		delay, err := r.backoff.BackoffDelay(attempt, err)
		if err != nil {
			return err
		}
		if err := pause(ctx, delay); err != nil {
			return err
		}
	}
}

func (r *reader) count(outcome string) { r.requests.WithLabelValues(r.name, outcome).Inc() }

// judge returns the kind of a failure, and what to tell of it: never more of
// AWS's message than its first line, and what can be done.
func (r *reader) judge(err error) (outcome string, told error) {
	if err == nil {
		return "ok", nil
	}
	operation := "request"
	for e := err; e != nil; e = errors.Unwrap(e) { // the innermost: of the role, if that was it
		if op, ok := e.(*smithy.OperationError); ok {
			operation = op.Service() + " " + op.Operation()
		}
	}
	var api smithy.APIError
	if !errors.As(err, &api) {
		return "failed", fmt.Errorf("%s: %s", operation, firstLine(cmp.Or(errors.Unwrap(err), err).Error()))
	}
	outcome, remedy := "failed", ""
	switch code := api.ErrorCode(); code {
	case "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException", "InvalidSignatureException", "SignatureDoesNotMatch", "MissingAuthenticationTokenException":
		outcome, remedy = "credentials", "they are looked for again; check what the ingester is given"
	case "AccessDenied", "AccessDeniedException":
		outcome = "denied"
		remedy = "allow logs:FilterLogEvents and logs:DescribeLogGroups on " + r.LogGroup + " (deploy/audit/eks/policy.json)"
		if r.RoleARN != "" && operation == "STS AssumeRole" {
			remedy = "let " + r.RoleARN + " be assumed (deploy/audit/eks/trust.json) and check role_arn and external_id of cluster " + r.Cluster.Name
		}
	case "ResourceNotFoundException":
		outcome, remedy = "missing", "switch the cluster's audit log on (docs/audit-eks.md), or check log_group, region and role_arn of cluster "+r.Cluster.Name
	default:
		if _, ok := retry.DefaultThrottleErrorCodes[code]; ok {
			outcome, remedy = "throttled", "lower eks.requests_per_second if other users of the account suffer; what waits is not lost"
		}
	}
	if remedy != "" {
		remedy = ": " + remedy
	}
	return outcome, fmt.Errorf("%s: %s: %s%s", operation, api.ErrorCode(), firstLine(api.ErrorMessage()), remedy)
}

// backlog is how old events may be that CloudWatch Logs takes (PutLogEvents).
const backlog = 14 * 24 * time.Hour

// look asks for the log group's age and retention. Without a checkpoint it
// says where to begin; with one it tells what was deleted before it was read.
func (r *reader) look(ctx context.Context, sink source.Sink, known bool) error {
	var group types.LogGroup
	err := r.insist(ctx, func() error {
		var err error
		group, err = r.describe(ctx)
		if outcome, told := r.judge(err); known && outcome == "denied" {
			r.log.Warn("what the retention deletes before it is read cannot be told", "error", told)
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	r.looked = time.Now()
	if group.LogGroupClass != "" && group.LogGroupClass != types.LogGroupClassStandard {
		r.log.Warn("FilterLogEvents does not read this log group: let EKS write to one of class STANDARD", "class", group.LogGroupClass)
	}
	now := r.now()
	created := time.UnixMilli(aws.ToInt64(group.CreationTime))
	kept := time.Time{}
	if days := aws.ToInt32(group.RetentionInDays); days > 0 {
		kept = now.AddDate(0, 0, -int(days))
	}
	if !known {
		begin := r.start.Time(now)
		for _, t := range []time.Time{created.Add(-backlog), kept} { // nothing is older
			if begin.Before(t) {
				begin = t
			}
		}
		if begin.After(now) {
			begin = now
		}
		r.log.Info("beginning without a checkpoint", "start", r.start, "from", begin.UTC())
		for i := range r.at.Read {
			r.at.Read[i] = begin.UnixMilli()
		}
		return sink.Mark(ctx, r.at)
	}
	read := max(r.at.Read[0], r.at.Told)
	gap := func(to time.Time, message, remedy string) error {
		sink.Gap(message, "from", time.UnixMilli(read).UTC(), "to", to.UTC(), "remedy", remedy)
		r.at.Told = to.UnixMilli()
		return sink.Mark(ctx, r.at)
	}
	switch {
	case created.UnixMilli() > read && group.CreationTime != nil:
		return gap(created, "the log group was deleted and created anew before it was read to its end", "keep the log group when the cluster stays")
	case kept.UnixMilli() > read && !kept.IsZero():
		return gap(kept, "the log group's retention ended before events were read; reading goes on with what is left", "raise the log group's retention, or eks.requests_per_second")
	}
	return nil
}

// describe returns the log group.
func (r *reader) describe(ctx context.Context) (types.LogGroup, error) {
	in := &cloudwatchlogs.DescribeLogGroupsInput{LogGroupNamePrefix: aws.String(r.LogGroup)}
	for {
		out, err := r.client.DescribeLogGroups(ctx, in)
		if err != nil {
			return types.LogGroup{}, err
		}
		r.clock(awsmiddleware.GetAttemptSkew(out.ResultMetadata))
		for _, g := range out.LogGroups {
			if aws.ToString(g.LogGroupName) == r.LogGroup {
				return g, nil
			}
		}
		if out.NextToken == nil || len(out.LogGroups) == 0 {
			return types.LogGroup{}, &types.ResourceNotFoundException{Message: aws.String("there is no such log group")}
		}
		in.NextToken = out.NextToken
	}
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
