package aks_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"picket/services/auditlog-ingest/aks"
	"picket/services/auditlog-ingest/source"
)

// authority signs the certificates of the tests. Go reads SSL_CERT_FILE once,
// so it is there before any test.
var authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "aks")
	if err != nil {
		panic(err)
	}
	if authority.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		panic(err)
	}
	authority.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "akstest"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, authority.cert, authority.cert, authority.key.Public(), authority.key)
	if err != nil {
		panic(err)
	}
	ca := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		panic(err)
	}
	os.Setenv("SSL_CERT_FILE", ca)
	goleak.VerifyTestMain(m,
		// Started by an init of Google's clients, which the ingester's normalizer comes with.
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
		// The default HTTP client of the Azure SDK keeps connections open.
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreAnyFunction("net/http.(*http2ClientConn).readLoop"),
		goleak.Cleanup(func(code int) {
			os.RemoveAll(dir)
			os.Exit(code)
		}))
}

// certificate writes a certificate for a host, and its key.
func certificate(t testing.TB, host string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, authority.cert, key.Public(), authority.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile = writeFile(t, filepath.Join(dir, "tls.crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return certFile, writeFile(t, filepath.Join(dir, "tls.key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
}

// ledger is what a test knows of all that its sinks took: a ledger outlives
// the crashes of the ingester.
type ledger struct {
	mu       sync.Mutex
	marks    map[string]json.RawMessage // by source
	seen     map[string]int             // records by auditID
	clusters map[string]int             // records by cluster
	refused  []string
	gaps     []string
	taken    int // records that came, repeats too
	records  []source.Record
}

func newLedger() *ledger {
	return &ledger{marks: map[string]json.RawMessage{}, seen: map[string]int{}, clusters: map[string]int{}}
}

func (l *ledger) distinct() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.seen)
}

// sink is the sink of one source in one life of an ingester. What it takes is
// safe when it returns. It crashes, if it is to, after a number of calls: what
// is called then and later is not taken.
type sink struct {
	*ledger
	name  string
	left  int // calls before the crash; -1: none
	crash func()
}

var errCrash = context.Canceled

func (s *sink) alive() error {
	if s.left == 0 {
		s.crash()
		return errCrash
	}
	if s.left > 0 {
		s.left--
	}
	return nil
}

func (s *sink) mark(c any) {
	if c == nil {
		return
	}
	raw, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	s.marks[s.name] = raw
}

func (s *sink) Put(ctx context.Context, r source.Record, done func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.alive(); err != nil {
		return err
	}
	text := r.Text
	if r.Trimmed != nil {
		text = r.Trimmed.Text
	}
	var e struct{ AuditID string }
	if err := json.Unmarshal(text, &e); err != nil {
		return fmt.Errorf("what was put is no record: %w", err)
	}
	s.taken++
	s.seen[e.AuditID]++
	s.clusters[r.Cluster]++
	if len(s.records) < 100 {
		r.Text = bytes.Clone(r.Text)
		s.records = append(s.records, r)
	}
	s.mark(r.Checkpoint)
	return nil
}

func (s *sink) Refuse(ctx context.Context, r source.Record, length int64, cause error, done func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.alive(); err != nil {
		return err
	}
	s.refused = append(s.refused, fmt.Sprintf("%s at %d, %d bytes: %v", r.From, r.At, length, cause))
	s.mark(r.Checkpoint)
	return nil
}

func (s *sink) Mark(ctx context.Context, c any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.alive(); err != nil {
		return err
	}
	s.mark(c)
	return nil
}

func (s *sink) Checkpoint(v any) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	raw, ok := s.marks[s.name]
	if !ok {
		return false, nil
	}
	return true, json.Unmarshal(raw, v)
}

func (s *sink) Gap(message string, attrs ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gaps = append(s.gaps, fmt.Sprint(append([]any{message}, attrs...)...))
}

// life runs an ingester until ctx ends, or until one of its sinks crashes:
// all sources of a provider at once. crashAfter is the number of calls after
// which a sink does, by source; nil: never.
func life(ctx context.Context, t testing.TB, cfg aks.Config, l *ledger, crashAfter func(name string) int, set ...func(source.Provider)) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, err := aks.New(cfg, testLog(t), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range set {
		f(p)
	}
	var sources []source.Source
	for ctx.Err() == nil {
		if sources, err = p.Sources(ctx); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	var running sync.WaitGroup
	for _, s := range sources {
		if err := source.ValidName("name", s.Name()); err != nil {
			t.Error(err)
		}
		sk := &sink{ledger: l, name: s.Name(), left: -1, crash: cancel}
		if crashAfter != nil {
			sk.left = crashAfter(s.Name())
		}
		running.Go(func() {
			if err := s.Run(ctx, sk); err != nil && !errors.Is(err, errCrash) {
				t.Errorf("%s: %v", s.Name(), err)
			}
		})
	}
	running.Wait()
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(writer{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type writer struct{ t testing.TB }

func (w writer) Write(b []byte) (int, error) { w.t.Logf("%s", bytes.TrimSpace(b)); return len(b), nil }

// until waits until ok, and fails the test if that takes too long.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long: %s", what)
		}
	}
}

func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join(t.TempDir(), name)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
