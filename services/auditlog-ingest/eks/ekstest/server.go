// Package ekstest is a server for tests that speaks what the eks source speaks
// with AWS: CloudWatch Logs (FilterLogEvents, DescribeLogGroups; AWS JSON 1.1)
// and STS (AssumeRole; AWS Query), behind signatures that it verifies. It pages,
// and can throttle, delay, reorder, repeat, show events late, cut connections
// and let tokens and credentials expire.
package ekstest

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Event is one log event.
type Event struct {
	ID, Stream, Message string
	Time                time.Time // its timestamp
	Shown               time.Time // when queries see it from; also its ingestionTime
}

// Faults says how often, of 1, the server does what. The zero value does none
// of it.
type Faults struct {
	Throttle    float64 // answers ThrottlingException
	Fail        float64 // answers 500
	Cut         float64 // ends the connection in the middle of an answer
	Empty       float64 // sends a page without events, and a token
	Repeat      float64 // sends the page's events twice
	Shuffle     float64 // sends the page's events in any order
	Token       float64 // does not know a page's token any more
	Credentials float64 // lets a role's session expire at once, of AssumeRole and of other requests
	Delay       time.Duration
	Page        int // most events in a page; 0: what was asked for
}

// Server is the server. Its methods may be called by several goroutines.
type Server struct {
	URL string

	// Clock is the server's clock; change it before the first request.
	Clock func() time.Time

	mu       sync.Mutex
	http     *httptest.Server
	rnd      *mathrand.Rand
	keys     map[string]key
	roles    map[string]role
	groups   map[string]*Group // by account, region and name
	faults   Faults
	answers  map[string]int
	sessions int
	life     time.Duration
}

type key struct {
	secret, token, account, region string
	expires                        time.Time
}

type role struct{ account, externalID string }

// Group is a log group.
type Group struct {
	server    *Server
	name      string
	created   time.Time
	retention int
	events    []Event // sorted
	failing   string
}

// New starts a server that ends with the test. seed makes its faults.
func New(t testing.TB, seed uint64) *Server {
	s := &Server{Clock: time.Now, rnd: mathrand.New(mathrand.NewPCG(seed, 1)), keys: map[string]key{}, roles: map[string]role{}, groups: map[string]*Group{}, answers: map[string]int{}, life: time.Hour}
	s.http = httptest.NewServer(http.HandlerFunc(s.serve))
	s.URL = s.http.URL
	t.Cleanup(s.http.Close)
	return s
}

// Key makes a long-lived key of an account.
func (s *Server) Key(account string) (id, secret string) {
	id, secret = "AKIA"+rand.Text()[:16], rand.Text()+rand.Text()[:14]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[id] = key{secret: secret, account: account}
	return id, secret
}

// Revoke ends a key.
func (s *Server) Revoke(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keys, id)
}

// Role makes a role, arn:aws:iam::<account>:role/<name>, which every key may
// assume that has the external id.
func (s *Server) Role(arn, externalID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roles[arn] = role{strings.Split(arn, ":")[4], externalID}
}

// SessionLife says how long sessions of roles last from now on.
func (s *Server) SessionLife(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life = d
}

// Group makes a log group. A retention of 0 days is for ever.
func (s *Server) Group(account, region, name string, created time.Time, retentionDays int) *Group {
	g := &Group{server: s, name: name, created: created, retention: retentionDays}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.groups[account+" "+region+" "+name] = g
	return g
}

// Put adds events.
func (g *Group) Put(events ...Event) {
	g.server.mu.Lock()
	defer g.server.mu.Unlock()
	g.events = append(g.events, events...)
	slices.SortStableFunc(g.events, before)
}

// before is the order that FilterLogEvents promises.
func before(a, b Event) int {
	return cmp.Or(cmp.Compare(a.Time.UnixMilli(), b.Time.UnixMilli()), cmp.Compare(a.Shown.UnixMilli(), b.Shown.UnixMilli()), strings.Compare(a.ID, b.ID))
}

// Fail makes all queries of the group fail with an error code; none with "".
func (g *Group) Fail(code string) {
	g.server.mu.Lock()
	defer g.server.mu.Unlock()
	g.failing = code
}

// SetFaults sets what the server does wrong from now on.
func (s *Server) SetFaults(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
}

// Answers returns how often the server answered what: "ok", an error code, or
// "cut", "empty", "repeat", "shuffle".
func (s *Server) Answers() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]int{}
	for k, n := range s.answers {
		out[k] = n
	}
	return out
}

// happens decides about a fault. Called with mu held.
func (s *Server) happens(p float64, name string) bool {
	if s.rnd.Float64() >= p {
		return false
	}
	if name != "" {
		s.answers[name]++
	}
	return true
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil || r.Method != http.MethodPost {
		http.Error(w, "", http.StatusBadRequest)
		return
	}
	now := s.Clock()
	w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		s.sts(w, r, body, now)
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	answer, code, message := s.logs(r, body, now)
	s.mu.Lock()
	s.answers[cmp.Or(code, "ok")]++
	cut := code == "" && s.happens(s.faults.Cut, "cut")
	delay := time.Duration(s.rnd.Float64() * float64(s.faults.Delay))
	s.mu.Unlock()
	if !sleep(r.Context(), delay) {
		return
	}
	status := http.StatusOK
	if code != "" {
		status = http.StatusBadRequest
		if code == "InternalFailure" {
			status = http.StatusInternalServerError
		}
		answer, _ = json.Marshal(map[string]string{"__type": code, "message": message})
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(answer)))
	w.WriteHeader(status)
	if cut {
		w.Write(answer[:len(answer)/2])
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler) // ends the connection
	}
	w.Write(answer)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// logs answers a request to CloudWatch Logs, or returns an error's code and
// message.
func (s *Server) logs(r *http.Request, body []byte, now time.Time) (answer []byte, code, message string) {
	k, code, message := s.verify(r, body, "logs", now)
	if code != "" {
		return nil, code, message
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case k.token != "" && s.happens(s.faults.Credentials, ""):
		for id, other := range s.keys {
			if other.token == k.token {
				other.expires = now.Add(-time.Second)
				s.keys[id] = other
			}
		}
		return nil, "ExpiredTokenException", "The security token included in the request is expired"
	case s.happens(s.faults.Throttle, ""):
		return nil, "ThrottlingException", "Rate exceeded"
	case s.happens(s.faults.Fail, ""):
		return nil, "InternalFailure", "We are sorry"
	}
	var out any
	switch target := r.Header.Get("X-Amz-Target"); target {
	case "Logs_20140328.FilterLogEvents":
		out, code, message = s.filter(k, body, now)
	case "Logs_20140328.DescribeLogGroups":
		out, code, message = s.describe(k, body)
	default:
		return nil, "UnknownOperationException", target
	}
	if code != "" {
		return nil, code, message
	}
	answer, err := json.Marshal(out)
	if err != nil {
		return nil, "InternalFailure", err.Error()
	}
	return answer, "", ""
}

type logGroup struct {
	Name      string `json:"logGroupName"`
	Created   int64  `json:"creationTime"`
	Retention int    `json:"retentionInDays,omitempty"`
	Class     string `json:"logGroupClass"`
	ARN       string `json:"arn"`
}

// describe answers DescribeLogGroups, two groups a page.
func (s *Server) describe(k key, body []byte) (out any, code, message string) {
	var in struct {
		Prefix string `json:"logGroupNamePrefix"`
		Token  string `json:"nextToken"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, "SerializationException", err.Error()
	}
	var found []logGroup
	for at, g := range s.groups {
		if strings.HasPrefix(at, k.account+" "+k.region+" ") && strings.HasPrefix(g.name, in.Prefix) && g.name > in.Token {
			if g.failing != "" {
				return nil, g.failing, "as the test wants it"
			}
			found = append(found, logGroup{g.name, g.created.UnixMilli(), g.retention, "STANDARD", "arn:aws:logs:" + k.region + ":" + k.account + ":log-group:" + g.name + ":*"})
		}
	}
	slices.SortFunc(found, func(a, b logGroup) int { return strings.Compare(a.Name, b.Name) })
	a := struct {
		Groups []logGroup `json:"logGroups"`
		Token  string     `json:"nextToken,omitempty"`
	}{Groups: found}
	if len(found) > 2 {
		a.Groups, a.Token = found[:2], found[1].Name
	}
	return a, "", ""
}

// token is a page's token: the query that it belongs to, and the last event
// before the page.
type token struct {
	Group, Prefix string
	Start, End    int64
	Time, Shown   int64
	ID            string
}

type filtered struct {
	ID       string `json:"eventId"`
	Ingested int64  `json:"ingestionTime"`
	Stream   string `json:"logStreamName"`
	Message  string `json:"message"`
	Time     int64  `json:"timestamp"`
}

const (
	maxEvents = 10_000
	maxBytes  = 1 << 20
)

// filter answers FilterLogEvents.
func (s *Server) filter(k key, body []byte, now time.Time) (out any, code, message string) {
	var in struct {
		Group  string `json:"logGroupName"`
		Prefix string `json:"logStreamNamePrefix"`
		Start  int64  `json:"startTime"`
		End    int64  `json:"endTime"`
		Limit  int    `json:"limit"`
		Token  string `json:"nextToken"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, "SerializationException", err.Error()
	}
	g := s.groups[k.account+" "+k.region+" "+in.Group]
	if g == nil {
		return nil, "ResourceNotFoundException", "The specified log group does not exist."
	}
	if g.failing != "" {
		return nil, g.failing, "as the test wants it"
	}
	if in.End < in.Start {
		return nil, "InvalidParameterException", "endTime is before startTime"
	}
	at := token{Group: in.Group, Prefix: in.Prefix, Start: in.Start, End: in.End, Time: in.Start, Shown: -1 << 62}
	if in.Token != "" {
		var t token
		raw, err := base64.StdEncoding.DecodeString(in.Token)
		if err != nil || json.Unmarshal(raw, &t) != nil || t.Group != at.Group || t.Prefix != at.Prefix || t.Start != at.Start || t.End != at.End || s.happens(s.faults.Token, "") {
			return nil, "InvalidParameterException", "The specified nextToken is invalid."
		}
		at = t
	}
	limit := maxEvents
	if in.Limit > 0 {
		limit = min(limit, in.Limit)
	}
	if s.faults.Page > 0 {
		limit = min(limit, 1+s.rnd.IntN(s.faults.Page))
	}
	a := struct {
		Events   []filtered `json:"events"`
		Token    string     `json:"nextToken,omitempty"`
		Searched []string   `json:"searchedLogStreams"`
	}{Events: []filtered{}, Searched: []string{}}
	last := Event{Time: time.UnixMilli(at.Time), Shown: time.UnixMilli(at.Shown), ID: at.ID}
	i, _ := slices.BinarySearchFunc(g.events, last, func(e, t Event) int {
		if before(e, t) <= 0 {
			return -1
		}
		return 1
	})
	kept := time.Time{}
	if g.retention > 0 {
		kept = now.AddDate(0, 0, -g.retention)
	}
	more := s.happens(s.faults.Empty, "empty")
	for size := 0; i < len(g.events) && !more; i++ {
		e := g.events[i]
		if e.Time.UnixMilli() > in.End {
			break
		}
		if e.Shown.After(now) || e.Time.Before(kept) || !strings.HasPrefix(e.Stream, in.Prefix) {
			continue
		}
		if len(a.Events) == limit || size+len(e.Message) > maxBytes && size > 0 {
			more = true
			break
		}
		size += len(e.Message)
		last = e
		a.Events = append(a.Events, filtered{e.ID, e.Shown.UnixMilli(), e.Stream, e.Message, e.Time.UnixMilli()})
	}
	if more {
		at.Time, at.Shown, at.ID = last.Time.UnixMilli(), last.Shown.UnixMilli(), last.ID
		raw, err := json.Marshal(at)
		if err != nil {
			return nil, "InternalFailure", err.Error()
		}
		a.Token = base64.StdEncoding.EncodeToString(raw)
	}
	if len(a.Events) > 0 && s.happens(s.faults.Repeat, "repeat") {
		a.Events = append(a.Events, a.Events...)
	}
	if len(a.Events) > 1 && s.happens(s.faults.Shuffle, "shuffle") {
		s.rnd.Shuffle(len(a.Events), func(i, j int) { a.Events[i], a.Events[j] = a.Events[j], a.Events[i] })
	}
	return a, "", ""
}

// sts answers AssumeRole.
func (s *Server) sts(w http.ResponseWriter, r *http.Request, body []byte, now time.Time) {
	_, code, message := s.verify(r, body, "sts", now)
	form, err := url.ParseQuery(string(body))
	if err != nil || form.Get("Action") != "AssumeRole" || form.Get("Version") != "2011-06-15" {
		code, message = "InvalidAction", "Could not find operation"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	arn := form.Get("RoleArn")
	to, ok := s.roles[arn]
	if code == "" && (!ok || to.externalID != form.Get("ExternalId") || form.Get("RoleSessionName") == "") {
		code, message = "AccessDenied", "User is not authorized to perform: sts:AssumeRole on resource: "+arn
	}
	type credentials struct{ AccessKeyId, SecretAccessKey, SessionToken, Expiration string }
	w.Header().Set("Content-Type", "text/xml")
	s.answers[cmp.Or(code, "AssumeRole")]++
	if code != "" {
		w.WriteHeader(http.StatusForbidden)
		xml.NewEncoder(w).Encode(struct {
			XMLName   xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ ErrorResponse"`
			Type      string   `xml:"Error>Type"`
			Code      string   `xml:"Error>Code"`
			Message   string   `xml:"Error>Message"`
			RequestID string   `xml:"RequestId"`
		}{Type: "Sender", Code: code, Message: message, RequestID: rand.Text()})
		return
	}
	s.sessions++
	id := fmt.Sprintf("ASIA%016d", s.sessions)
	k := key{secret: rand.Text() + rand.Text()[:14], token: rand.Text() + rand.Text() + rand.Text(), account: to.account, expires: now.Add(s.life)}
	s.keys[id] = k
	xml.NewEncoder(w).Encode(struct {
		XMLName     xml.Name    `xml:"https://sts.amazonaws.com/doc/2011-06-15/ AssumeRoleResponse"`
		Credentials credentials `xml:"AssumeRoleResult>Credentials"`
		ARN         string      `xml:"AssumeRoleResult>AssumedRoleUser>Arn"`
		AssumedID   string      `xml:"AssumeRoleResult>AssumedRoleUser>AssumedRoleId"`
		RequestID   string      `xml:"ResponseMetadata>RequestId"`
	}{Credentials: credentials{id, k.secret, k.token, k.expires.UTC().Format(time.RFC3339)}, ARN: arn, AssumedID: "AROA:" + form.Get("RoleSessionName"), RequestID: rand.Text()})
}
