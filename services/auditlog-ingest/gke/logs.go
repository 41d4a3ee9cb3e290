package gke

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	logging "cloud.google.com/go/logging/apiv2"
	"cloud.google.com/go/logging/apiv2/loggingpb"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
	_ "google.golang.org/genproto/googleapis/cloud/audit" // protojson must know what a protoPayload is
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"picket/services/auditlog-ingest/source"
)

// Bounds of reading logs.
const (
	// maxPage is the number of entries that a page has at most, Google's own
	// bound; maxAnswer is what a page may have in bytes. A page above that is
	// asked for again with half as many entries.
	maxPage   = 1000
	maxAnswer = 64 << 20
	// A window is a span of receive times that is read in one go; it grows and
	// shrinks so that it has a few pages.
	minWindow, firstWindow, maxWindow = time.Second, 10 * time.Minute, 24 * time.Hour
	fewEntries, manyEntries           = 2 * maxPage, 10 * maxPage
	// again is how much of what was read a moment ago is read again at once:
	// most entries can be listed a few seconds after they were received.
	again = 30 * time.Second
	// readTime bounds a request with its repetitions.
	readTime = 5 * time.Minute
	// oldestEvent is how much older than their receipt entries may be that
	// Cloud Logging stores (https://cloud.google.com/logging/quotas); ahead, how much newer.
	oldestEvent, ahead = 30 * 24 * time.Hour, 24 * time.Hour
	// longest is how long Google keeps any audit log: Admin Activity, 400 days.
	longest = 400 * 24 * time.Hour
)

// logs is the source of what entries.list has of one resource.
//
// Entries can be ordered by the time of the event alone, not by when they were
// received, and may be listed some time after that. So what was received before
// `settled` has been read a second time, after gke.overlap had passed, and is
// complete: that is the checkpoint. What came later is read as soon as it is
// there, and again.
type logs struct {
	state
	resource string
	start    source.Start
	until    time.Time

	client *logging.Client
	page   int // entries to a page
}

// cursor is the checkpoint of logs.
type cursor struct {
	// Settled is the receive time before which all has been read.
	Settled time.Time `json:"settled"`
}

// Run implements source.Source.
func (l *logs) Run(ctx context.Context, sink source.Sink) error {
	var at cursor
	known, err := sink.Checkpoint(&at)
	if err != nil {
		return err
	}
	now := time.Now()
	if !known {
		if at.Settled = l.start.Time(now); at.Settled.IsZero() {
			at.Settled = now.Add(-longest)
		}
		if err := sink.Mark(ctx, at); err != nil {
			return nil // ctx ended
		}
	} else if to := now.Add(-l.cfg.Retention); at.Settled.Before(to) && (l.until.IsZero() || at.Settled.Before(l.until)) {
		sink.Gap("Cloud Logging deleted Data Access entries before they were read", "from", at.Settled.UTC().Format(time.RFC3339), "to", to.UTC().Format(time.RFC3339),
			"resource", l.resource, "remedy", "raise the retention of the log bucket, and gke.retention")
	}
	l.page = maxPage
	defer l.close()
	if err := l.follow(ctx, sink, at); ctx.Err() == nil {
		return err
	}
	return nil
}

func (l *logs) follow(ctx context.Context, sink source.Sink, at cursor) error {
	width := firstWindow
	var head time.Time // read up to here, though perhaps not all
	for {
		now := time.Now()
		end, overlap := now, l.cfg.Overlap
		if !l.until.IsZero() && l.until.Before(now) {
			end = l.until
			if !at.Settled.Before(end) {
				l.log.Info("all entries up to gke.logs.until are read", "source", l.name, "until", l.until)
				<-ctx.Done()
				return nil
			}
		}
		// What can be settled is settled in windows of at least an overlap, or
		// up to the end of all.
		if ripe := earlier(end, now.Add(-overlap)); at.Settled.Add(overlap).Before(ripe) || !ripe.Before(l.until) && !l.until.IsZero() {
			to := earlier(at.Settled.Add(width), ripe)
			n, err := l.window(ctx, sink, at.Settled, to)
			if err != nil {
				return err
			}
			switch {
			case n > manyEntries:
				width = max(to.Sub(at.Settled)/2, minWindow)
			case n < fewEntries:
				width = min(width*2, maxWindow)
			}
			at.Settled = to
			if err := sink.Mark(ctx, at); err != nil {
				return err
			}
			continue
		}
		from := at.Settled
		if head.Add(-again).After(from) {
			from = head.Add(-again)
		}
		if _, err := l.window(ctx, sink, from, end); err != nil {
			return err
		}
		head = end
		if err := gax.Sleep(ctx, l.cfg.PollInterval); err != nil {
			return err
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// window hands over what was received from from, until before to, and returns
// how much that was. It tries until it has it all, or ctx ends.
func (l *logs) window(ctx context.Context, sink source.Sink, from, to time.Time) (int, error) {
	n, token := 0, ""
	pause := pauses()
	for {
		err := l.pages(ctx, sink, from, to, &token, &n)
		if err == nil {
			return n, nil
		}
		if ctx.Err() != nil {
			return n, err
		}
		switch code := status.Code(err); {
		case tooLarge(err) && l.page > 1:
			l.page /= 2
			continue
		case code == codes.InvalidArgument && token != "":
			token = "" // it has expired: the window begins again
		case code != codes.ResourceExhausted && code != codes.Unavailable && code != codes.DeadlineExceeded:
			l.close() // the next client reads the credentials again
		}
		l.fails("entries.list of "+l.resource, err)
		if err := gax.Sleep(ctx, pause.Pause()); err != nil {
			return n, err
		}
	}
}

// tooLarge reports whether an answer was larger than maxAnswer. gRPC has the same
// code for that as for a quota.
func tooLarge(err error) bool {
	return status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "received message larger than max")
}

// retryer is the SDK's, for throttling too, but not for what the same request
// will get again.
type retryer struct{ gax.Retryer }

func (r retryer) Retry(err error) (time.Duration, bool) {
	if tooLarge(err) {
		return 0, false
	}
	return r.Retryer.Retry(err)
}

// pages hands over the pages from token on, and leaves in token that of the page
// that it could not get.
func (l *logs) pages(ctx context.Context, sink source.Sink, from, to time.Time, token *string, n *int) error {
	if l.client == nil {
		var err error
		if l.client, err = logging.NewClient(ctx, append(l.options(l.cfg.LoggingEndpoint, l.reads.Wait),
			option.WithGRPCDialOption(grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer))))...); err != nil {
			l.client = nil
			return err
		}
	}
	again := gax.WithRetry(func() gax.Retryer {
		return retryer{gax.OnCodes([]codes.Code{codes.ResourceExhausted, codes.Unavailable, codes.DeadlineExceeded, codes.Internal}, pauses())}
	})
	for {
		var entries []*loggingpb.LogEntry
		// Page by page, so that the token of one that fails is known, and a page
		// without entries is followed by the next at the pace of all.
		it := l.client.ListLogEntries(ctx, &loggingpb.ListLogEntriesRequest{
			ResourceNames: []string{l.resource}, Filter: filter(from, to), OrderBy: "timestamp asc", PageSize: int32(l.page), PageToken: *token,
		}, again, gax.WithTimeout(readTime))
		for {
			e, err := it.Next()
			if err != nil && !errors.Is(err, iterator.Done) {
				*token = it.PageInfo().Token
				return err
			}
			if err == nil {
				entries = append(entries, e)
			}
			if err != nil || it.PageInfo().Remaining() == 0 {
				break
			}
		}
		l.works()
		for i, e := range entries {
			line, err := protojson.Marshal(e)
			if err != nil {
				// A payload of a kind that is not known here is not an audit entry.
				l.skipped.WithLabelValues(l.name, otherPayload).Inc()
				continue
			}
			entries[i] = nil
			if err := l.take(ctx, sink, line, l.name+" entry "+e.GetInsertId(), 0, time.Time{}, nil); err != nil {
				return err
			}
			*n++
		}
		if *token = it.PageInfo().Token; *token == "" {
			return nil
		}
	}
}

// filter lets through the audit entries of Kubernetes that were received in a
// window. The bounds of timestamp make the query fast, and cut nothing off.
func filter(from, to time.Time) string {
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
	return fmt.Sprintf(`resource.type="k8s_cluster" AND protoPayload.serviceName="k8s.io" AND (log_id("cloudaudit.googleapis.com/activity") OR log_id("cloudaudit.googleapis.com/data_access"))`+
		` AND receiveTimestamp>="%s" AND receiveTimestamp<"%s" AND timestamp>="%s" AND timestamp<"%s"`, at(from), at(to), at(from.Add(-oldestEvent)), at(to.Add(ahead)))
}

func (l *logs) close() {
	if l.client != nil {
		_ = l.client.Close() // nothing was written
		l.client = nil
	}
}
