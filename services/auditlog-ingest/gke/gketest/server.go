// Package gketest is Cloud Logging and Pub/Sub as far as package gke uses
// them, over their real protocols, with faults to order: for tests.
package gketest

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/logging/apiv2/loggingpb"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Faults are probabilities, 0 to 1, unless said otherwise.
type Faults struct {
	Throttle    float64       // a request is answered with RESOURCE_EXHAUSTED
	Unavailable float64       // a request or a stream is answered with UNAVAILABLE
	ExpireToken float64       // a page token is no longer known
	EmptyPage   float64       // a page has no entries, but a next token
	ShortPage   float64       // a page is cut short, with a next token
	Repeat      float64       // an entry stands twice in a page
	LoseAck     float64       // an acknowledgement is lost: the message comes again
	Redeliver   float64       // a message comes again although it was acknowledged
	CutStream   float64       // a stream ends after a delivery
	Lease       time.Duration // if not zero: at most so long is waited before a message comes again
	Reorder     bool          // messages come in random order
	IndexDelay  time.Duration // at most: an entry is listed only so long after it was added
}

// Server is the two services on one address of this host, without TLS.
type Server struct {
	Addr string

	grpc  *grpc.Server
	lis   *listener
	done  chan struct{}
	mu    sync.Mutex
	rng   *rand.Rand
	fault Faults
	logs  []stored
	pages map[string][]*loggingpb.LogEntry // by token
	token int
	subs  map[string]*subscription
	count Counts
	deny  error // answer to everything
	asked map[string]bool
}

// Counts are what the server was asked.
type Counts struct {
	Lists, Throttled, Expired, Delivered, Acked, Redelivered int
	MaxOutstanding                                           int // messages, of a subscription
}

type stored struct {
	entry *loggingpb.LogEntry
	at    time.Time // when it can be listed
}

type subscription struct {
	retention time.Duration
	queue     []*message
	out       map[string]*message // by ack id
	next      int
}

type message struct {
	id, ackID string
	stream    *int // how many messages are under way on the stream that has it
	data      []byte
	published time.Time
	deadline  time.Time
}

// Start starts a server. Stop ends it.
func Start(seed uint64) (*Server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &Server{
		Addr: l.Addr().String(), lis: &listener{Listener: l, conns: map[net.Conn]bool{}}, done: make(chan struct{}),
		rng: rand.New(rand.NewPCG(seed, seed)), pages: map[string][]*loggingpb.LogEntry{}, subs: map[string]*subscription{}, asked: map[string]bool{},
	}
	s.grpc = grpc.NewServer(grpc.MaxSendMsgSize(1<<30),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			s.note(info.FullMethod)
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			s.note(info.FullMethod)
			return next(srv, stream)
		}))
	loggingpb.RegisterLoggingServiceV2Server(s.grpc, &logging{s: s})
	pubsubpb.RegisterSubscriberServer(s.grpc, &subscriber{s: s})
	go func() {
		defer close(s.done)
		_ = s.grpc.Serve(s.lis) // ends with Stop
	}()
	return s, nil
}

// Stop ends the server and its connections.
func (s *Server) Stop() {
	s.grpc.Stop()
	<-s.done
}

// Fault sets the faults from now on.
func (s *Server) Fault(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Deny makes the server answer every request with err; nil ends that.
func (s *Server) Deny(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deny = err
}

// Counts returns what the server was asked so far.
func (s *Server) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

func (s *Server) note(method string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[method] = true
}

// Asked returns the methods that were called, such as
// /google.pubsub.v1.Subscriber/Acknowledge.
func (s *Server) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.asked))
}

// CutConnections breaks every connection.
func (s *Server) CutConnections() { s.lis.cut() }

// Add adds entries to the logs.
func (s *Server) Add(entries ...*loggingpb.LogEntry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		at := time.Now()
		if s.fault.IndexDelay > 0 {
			at = at.Add(time.Duration(s.rng.Int64N(int64(s.fault.IndexDelay))))
		}
		s.logs = append(s.logs, stored{e, at})
	}
}

// Subscription makes a subscription that keeps messages for the given time.
func (s *Server) Subscription(name string, retention time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subs[name] = &subscription{retention: retention, out: map[string]*message{}}
}

// Publish puts messages into a subscription.
func (s *Server) Publish(name string, messages ...[]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub := s.subs[name]
	for _, data := range messages {
		sub.next++
		sub.queue = append(sub.queue, &message{id: fmt.Sprint(sub.next), data: data, published: time.Now()})
	}
}

// Left returns how many messages of a subscription are not acknowledged.
func (s *Server) Left(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.subs[name].queue) + len(s.subs[name].out)
}

// chance is called with mu held.
func (s *Server) chance(p float64) bool { return p > 0 && s.rng.Float64() < p }

// refuse is called with mu held.
func (s *Server) refuse() error {
	switch {
	case s.deny != nil:
		return s.deny
	case s.chance(s.fault.Throttle):
		s.count.Throttled++
		return status.Error(codes.ResourceExhausted, "Quota exceeded for quota metric 'Read requests'")
	case s.chance(s.fault.Unavailable):
		return status.Error(codes.Unavailable, "The service is currently unavailable.")
	}
	return nil
}

type logging struct {
	loggingpb.UnimplementedLoggingServiceV2Server
	s *Server
}

var bounds = regexp.MustCompile(`\b(timestamp|receiveTimestamp)(>=|<)"([^"]+)"`)

// ListLogEntries answers pages of what the request's filter lets through. Of the
// filter it reads the bounds of times alone.
func (l *logging) ListLogEntries(_ context.Context, req *loggingpb.ListLogEntriesRequest) (*loggingpb.ListLogEntriesResponse, error) {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count.Lists++
	if err := s.refuse(); err != nil {
		return nil, err
	}
	var list []*loggingpb.LogEntry
	if req.GetPageToken() != "" {
		known := false
		if list, known = s.pages[req.GetPageToken()]; !known || s.chance(s.fault.ExpireToken) {
			s.count.Expired++
			delete(s.pages, req.GetPageToken())
			return nil, status.Error(codes.InvalidArgument, "page_token is invalid or has expired")
		}
	} else {
		var err error
		if list, err = s.list(req); err != nil {
			return nil, err
		}
	}
	size := int(req.GetPageSize())
	if size == 0 {
		size = 50
	}
	if s.chance(s.fault.ShortPage) {
		size = 1 + s.rng.IntN(size)
	}
	if s.chance(s.fault.EmptyPage) {
		size = 0
	}
	n := min(size, len(list))
	resp := &loggingpb.ListLogEntriesResponse{}
	for _, e := range list[:n] {
		resp.Entries = append(resp.Entries, e)
		if s.chance(s.fault.Repeat) {
			resp.Entries = append(resp.Entries, e)
		}
	}
	if n < len(list) {
		s.token++
		resp.NextPageToken = fmt.Sprintf("page-%d", s.token)
		s.pages[resp.NextPageToken] = list[n:]
	}
	return resp, nil
}

// list is called with mu held.
func (s *Server) list(req *loggingpb.ListLogEntriesRequest) ([]*loggingpb.LogEntry, error) {
	if req.GetOrderBy() != "timestamp asc" && req.GetOrderBy() != "" {
		return nil, status.Errorf(codes.InvalidArgument, "order_by %q", req.GetOrderBy())
	}
	type bound struct {
		received, from bool
		at             time.Time
	}
	var all []bound
	for _, m := range bounds.FindAllStringSubmatch(req.GetFilter(), -1) {
		at, err := time.Parse(time.RFC3339Nano, m[3])
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "filter: %v", err)
		}
		all = append(all, bound{m[1] == "receiveTimestamp", m[2] == ">=", at})
	}
	now := time.Now()
	var out []*loggingpb.LogEntry
	for _, e := range s.logs {
		ok := !e.at.After(now) && slices.ContainsFunc(req.GetResourceNames(), func(r string) bool { return strings.HasPrefix(e.entry.GetLogName(), r+"/") })
		for _, b := range all {
			t := e.entry.GetTimestamp()
			if b.received {
				t = e.entry.GetReceiveTimestamp()
			}
			ok = ok && t.AsTime().Before(b.at) != b.from
		}
		if ok {
			out = append(out, e.entry)
		}
	}
	slices.SortStableFunc(out, func(a, b *loggingpb.LogEntry) int {
		if c := a.GetTimestamp().AsTime().Compare(b.GetTimestamp().AsTime()); c != 0 {
			return c
		}
		return strings.Compare(a.GetInsertId(), b.GetInsertId())
	})
	return out, nil
}

type subscriber struct {
	pubsubpb.UnimplementedSubscriberServer
	s *Server
}

// find is called with mu held.
func (s *Server) find(name string) (*subscription, error) {
	if err := s.refuse(); err != nil {
		return nil, err
	}
	sub := s.subs[name]
	if sub == nil {
		return nil, status.Errorf(codes.NotFound, "Resource not found (resource=%s).", name)
	}
	return sub, nil
}

// GetSubscription tells how long the subscription keeps messages.
func (x *subscriber) GetSubscription(_ context.Context, req *pubsubpb.GetSubscriptionRequest) (*pubsubpb.Subscription, error) {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	sub, err := x.s.find(req.GetSubscription())
	if err != nil {
		return nil, err
	}
	return &pubsubpb.Subscription{Name: req.GetSubscription(), AckDeadlineSeconds: 10, MessageRetentionDuration: durationpb.New(sub.retention), State: pubsubpb.Subscription_ACTIVE}, nil
}

// Acknowledge takes messages away.
func (x *subscriber) Acknowledge(_ context.Context, req *pubsubpb.AcknowledgeRequest) (*emptypb.Empty, error) {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	sub, err := x.s.find(req.GetSubscription())
	if err != nil {
		return nil, err
	}
	x.s.ack(sub, req.GetAckIds())
	return &emptypb.Empty{}, nil
}

// ModifyAckDeadline puts off when messages come again.
func (x *subscriber) ModifyAckDeadline(_ context.Context, req *pubsubpb.ModifyAckDeadlineRequest) (*emptypb.Empty, error) {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	sub, err := x.s.find(req.GetSubscription())
	if err != nil {
		return nil, err
	}
	for _, id := range req.GetAckIds() {
		sub.extend(id, x.s.lease(req.GetAckDeadlineSeconds()))
	}
	return &emptypb.Empty{}, nil
}

// ack is called with mu held.
func (s *Server) ack(sub *subscription, ids []string) {
	for _, id := range ids {
		m := sub.out[id]
		if m == nil || s.chance(s.fault.LoseAck) {
			continue
		}
		s.count.Acked++
		sub.drop(m)
		if s.chance(s.fault.Redeliver) {
			s.count.Redelivered++
			sub.queue = append(sub.queue, m)
		}
	}
}

// extend is called with mu held. No time at all gives the message back.
func (sub *subscription) extend(id string, d time.Duration) {
	m := sub.out[id]
	if m == nil {
		return
	}
	m.deadline = time.Now().Add(d)
	if d == 0 {
		sub.drop(m)
		sub.queue = append(sub.queue, m)
	}
}

// lease is called with mu held.
func (s *Server) lease(seconds int32) time.Duration {
	d := time.Duration(seconds) * time.Second
	if s.fault.Lease > 0 {
		d = min(d, s.fault.Lease)
	}
	return d
}

// drop is called with mu held.
func (sub *subscription) drop(m *message) {
	delete(sub.out, m.ackID)
	*m.stream--
}

// StreamingPull delivers messages and takes acknowledgements.
func (x *subscriber) StreamingPull(stream pubsubpb.Subscriber_StreamingPullServer) error {
	s := x.s
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	s.mu.Lock()
	sub, err := s.find(first.GetSubscription())
	s.mu.Unlock()
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		for {
			req, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			s.mu.Lock()
			s.ack(sub, req.GetAckIds())
			for i, id := range req.GetModifyDeadlineAckIds() {
				sub.extend(id, s.lease(req.GetModifyDeadlineSeconds()[i]))
			}
			s.mu.Unlock()
		}
	}()
	most := int(first.GetMaxOutstandingMessages())
	underWay := 0
	for {
		resp, cut := s.deliver(sub, first.GetStreamAckDeadlineSeconds(), most, &underWay)
		if len(resp.GetReceivedMessages()) > 0 {
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
		if cut {
			return status.Error(codes.Unavailable, "The StreamingPull stream closed for an expected reason and should be recreated.")
		}
		pause := time.Duration(0)
		if len(resp.GetReceivedMessages()) == 0 {
			pause = 5 * time.Millisecond
		}
		select {
		case <-ended:
			return nil
		case <-stream.Context().Done():
			return nil
		case <-time.After(pause):
		}
	}
}

const perResponse = 100

func (s *Server) deliver(sub *subscription, seconds int32, most int, underWay *int) (*pubsubpb.StreamingPullResponse, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, m := range sub.out {
		if now.After(m.deadline) {
			sub.drop(m)
			sub.queue = append(sub.queue, m)
			s.count.Redelivered++
		}
	}
	resp := &pubsubpb.StreamingPullResponse{}
	for len(sub.queue) > 0 && len(resp.ReceivedMessages) < perResponse && (most <= 0 || *underWay < most) {
		if s.fault.Reorder {
			i := s.rng.IntN(min(len(sub.queue), 1000))
			sub.queue[0], sub.queue[i] = sub.queue[i], sub.queue[0]
		}
		m := *sub.queue[0]
		sub.queue = sub.queue[1:]
		sub.next++
		m.ackID, m.deadline = fmt.Sprintf("%s-%d", m.id, sub.next), now.Add(s.lease(seconds))
		sub.out[m.ackID], m.stream = &m, underWay
		*underWay++
		s.count.Delivered++
		resp.ReceivedMessages = append(resp.ReceivedMessages, &pubsubpb.ReceivedMessage{AckId: m.ackID, Message: &pubsubpb.PubsubMessage{
			Data: m.data, MessageId: m.id, PublishTime: timestamppb.New(m.published)}})
	}
	s.count.MaxOutstanding = max(s.count.MaxOutstanding, len(sub.out))
	return resp, s.chance(s.fault.CutStream)
}

// listener remembers connections, to cut them.
type listener struct {
	net.Listener
	mu    sync.Mutex
	conns map[net.Conn]bool
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c] = true
	return &conn{c, l}, nil
}

func (l *listener) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		_ = c.Close()
	}
}

type conn struct {
	net.Conn
	l *listener
}

func (c *conn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c.Conn)
	c.l.mu.Unlock()
	return c.Conn.Close()
}
