// Package webhook receives what an API server's audit web hook posts.
package webhook

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"picket/internal/fault"
	"picket/schemas"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

// Bounds of the web hook. A request takes at most about 1 MiB of memory.
const (
	// maxRequests is how many requests are read at once; more are answered
	// 429.
	maxRequests = 16
	// answerWait is how long a request may take, the arrival of its body
	// included. An API server waits 30 s: it must hear a 429 before that.
	answerWait = 20 * time.Second
	// stopWait is how long requests under way may take when the service stops.
	stopWait = 3 * time.Second
	// retryAfter is what a 429 or 503 asks the API server to wait, seconds.
	retryAfter = "2"
)

// errTransport means that a body did not arrive: the sender has it still.
var errTransport = errors.New("body did not arrive")

// Webhook is the source of one port.
type Webhook struct {
	cfg     Config
	log     *slog.Logger
	answers *prometheus.CounterVec
	ln      net.Listener
	slots   chan struct{}
	up      atomic.Bool
}

// New opens the port: requests wait from here on until Run takes them.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Webhook, error) {
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("webhook.listen: %w", err)
	}
	if cfg.CertFile != "" {
		c, err := cfg.tls()
		if err != nil {
			ln.Close()
			return nil, err
		}
		ln = tls.NewListener(ln, c)
	}
	w := &Webhook{cfg: cfg, log: log, ln: ln, slots: make(chan struct{}, maxRequests), answers: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "picket_auditlog_ingest_webhook_requests_total", Help: "Requests to the web hook, by the status they were answered with.",
	}, []string{"source", "code"})}
	reg.MustRegister(w.answers)
	return w, nil
}

// Name implements source.Source.
func (w *Webhook) Name() string { return w.cfg.Name }

// Kind implements source.Source.
func (w *Webhook) Kind() string { return "webhook" }

// Ready implements source.Source.
func (w *Webhook) Ready() error {
	if !w.up.Load() {
		return errors.New("not listening")
	}
	return nil
}

// Run implements source.Source. When ctx ends it takes no more requests and lets
// those under way finish for stopWait.
func (w *Webhook) Run(ctx context.Context, sink source.Sink) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var busy sync.WaitGroup
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+w.cfg.Path, func(rw http.ResponseWriter, r *http.Request) {
		busy.Add(1)
		defer busy.Done()
		w.serve(rw, r, sink)
	})
	srv := &http.Server{
		Handler: mux, BaseContext: func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: answerWait, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(w.log.Handler(), slog.LevelWarn),
	}
	scheme := "http"
	if w.cfg.CertFile != "" {
		scheme = "https"
	}
	w.log.Info("web hook open", "source", w.Name(), "url", scheme+"://"+w.ln.Addr().String()+w.cfg.Path)
	if w.cfg.TokenFile == "" && w.cfg.ClientCAFile == "" {
		w.log.Warn("whoever reaches the web hook can post audit events", "remedy", "set webhook.token_file or webhook.client_ca_file, or listen on loopback")
	}
	w.up.Store(true)
	defer w.up.Store(false)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		patience, cancelPatience := context.WithTimeout(context.Background(), stopWait)
		defer cancelPatience()
		if err := srv.Shutdown(patience); err != nil {
			w.log.Warn("web hook closed with requests open; the API server repeats them", "error", err)
			cancel()
			srv.Close()
		}
	})
	if err := srv.Serve(w.ln); !errors.Is(err, http.ErrServerClosed) {
		if stop() {
			close(stopped)
		}
		<-stopped
		return fmt.Errorf("webhook.listen: %w", err)
	}
	<-stopped
	busy.Wait()
	return nil
}

// serve answers one request.
func (w *Webhook) serve(rw http.ResponseWriter, r *http.Request, sink source.Sink) {
	code, text := w.take(r, sink)
	w.answers.WithLabelValues(w.Name(), strconv.Itoa(code)).Inc()
	switch code {
	case http.StatusOK:
		return
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		rw.Header().Set("Retry-After", retryAfter)
	case http.StatusUnauthorized:
		rw.Header().Set("WWW-Authenticate", "Bearer")
	}
	http.Error(rw, text, code)
}

// take reads one request and returns its answer.
func (w *Webhook) take(r *http.Request, sink source.Sink) (code int, text string) {
	if err := w.authorise(r); err != nil {
		return http.StatusUnauthorized, err.Error()
	}
	select {
	case w.slots <- struct{}{}:
		defer func() { <-w.slots }()
	default:
		return http.StatusTooManyRequests, "too many requests at once"
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerWait)
	defer cancel()

	b := &body{in: r.Body, left: w.cfg.MaxBodyBytes}
	var in io.Reader = b
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(b)
		if err != nil {
			return w.refuse(ctx, r, sink, b, encodingError(err))
		}
		b = &body{in: z, left: w.cfg.MaxBodyBytes, zipped: b}
		in = b
	default:
		return http.StatusUnsupportedMediaType, fmt.Sprintf("Content-Encoding %.32q: use gzip or none", enc)
	}
	if r.ContentLength > w.cfg.MaxBodyBytes {
		_, _ = io.CopyN(io.Discard, in, schemas.MaxDeadBytes) // fills b.head
		b.length = r.ContentLength
		return w.refuse(ctx, r, sink, b, tooLarge(w.cfg.MaxBodyBytes))
	}
	// waiting counts the records that are not safe yet, and this loop.
	var waiting atomic.Int64
	waiting.Store(1)
	safe := make(chan struct{})
	done := func() {
		if waiting.Add(-1) == 0 {
			close(safe)
		}
	}
	list := record.NewList(in)
	for n := int64(0); ; n++ {
		item, err := list.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return w.refuse(ctx, r, sink, b, err)
		}
		rec := source.Record{Item: item, From: r.RemoteAddr, At: n}
		waiting.Add(1)
		if err := sink.Put(ctx, rec, done); err != nil {
			return busy()
		}
	}
	done()
	select {
	case <-safe:
		return http.StatusOK, ""
	case <-ctx.Done():
		return busy()
	}
}

func busy() (int, string) {
	return http.StatusTooManyRequests, "the spool is full: send these events again later"
}

func tooLarge(max int64) error {
	return fault.Permanent(record.ReasonTooLarge, fmt.Errorf("body is larger than webhook.max_body_bytes, %d", max))
}

func encodingError(err error) error {
	if errors.Is(err, errTransport) || fault.IsPermanent(err) {
		return err
	}
	return fault.Permanent(record.ReasonEncoding, fmt.Errorf("Content-Encoding gzip: %w", err))
}

// refuse answers a body that is no EventList, or one that did not arrive.
func (w *Webhook) refuse(ctx context.Context, r *http.Request, sink source.Sink, b *body, cause error) (int, string) {
	if !fault.IsPermanent(cause) {
		return http.StatusBadRequest, cause.Error()
	}
	if b.zipped != nil && len(b.head) == 0 {
		b = b.zipped
	}
	rec := source.Record{Item: record.Item{Text: b.head}, From: r.RemoteAddr}
	if err := sink.Refuse(ctx, rec, b.length, cause, nil); err != nil {
		return http.StatusServiceUnavailable, "the dead-letter stream takes no more: send this again later"
	}
	if fault.Reason(cause) == record.ReasonTooLarge {
		return http.StatusRequestEntityTooLarge, cause.Error()
	}
	return http.StatusBadRequest, cause.Error()
}

// authorise checks the bearer token. Client certificates are checked by TLS.
func (w *Webhook) authorise(r *http.Request) error {
	want, err := w.cfg.token()
	if err != nil {
		w.log.Error("requests are refused", "error", err)
		return errors.New("the web hook's token cannot be read")
	}
	if want == "" {
		return nil
	}
	scheme, got, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	a, b := sha256.Sum256([]byte(strings.TrimSpace(got))), sha256.Sum256([]byte(want))
	if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
		return errors.New("a bearer token is asked for")
	}
	return nil
}

// body reads a request's body up to a bound and keeps its beginning.
type body struct {
	in     io.Reader
	left   int64
	length int64
	head   []byte // at most schemas.MaxDeadBytes
	zipped *body  // what in decompresses
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.left == 0 {
		// One byte more tells a body of just the bound from a larger one.
		p = p[:1]
	} else if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.in.Read(p)
	if n > 0 && b.left == 0 {
		b.length++
		return 0, tooLarge(b.length - 1)
	}
	b.left -= int64(n)
	b.length += int64(n)
	if room := schemas.MaxDeadBytes - len(b.head); room > 0 {
		b.head = append(b.head, p[:min(n, room)]...)
	}
	switch {
	case err == nil, errors.Is(err, io.EOF), fault.IsPermanent(err):
	case b.zipped != nil:
		err = encodingError(err)
	default:
		// Not wrapped: the io.ErrUnexpectedEOF of a broken connection must
		// not pass for a list that ends early.
		err = fmt.Errorf("%w: %v", errTransport, err)
	}
	return n, err
}
