package auditlogingest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"picket/internal/bus"
	"picket/schemas"
	"picket/services/auditlog-ingest/record"
)

func zipped(t testing.TB, body []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestWebhookAnswers holds the table of answers in docs/audit.md: status,
// what is published, what becomes a dead letter.
func TestWebhookAnswers(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	b := connect(t, url)
	cfg := webhookConfig(t, url)
	cfg.Webhook.MaxBodyBytes = 1 << 20
	cfg.Webhook.TokenFile = filepath.Join(cfg.StateDir, "token")
	if err := os.WriteFile(cfg.Webhook.TokenFile, []byte("first\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, cfg)

	cut := list(auditLine("before the cut", 10), auditLine("cut", 10))
	large := list(auditLine("large", 1<<20))
	for _, c := range []struct {
		name, method, token, encoding string
		body                          []byte
		chunked                       bool
		code                          int
		taken                         []string // audit ids
		letter                        string   // reason
	}{
		{name: "no token", body: list(auditLine("x", 10)), code: 401},
		{name: "wrong token", token: "Bearer second", body: list(auditLine("x", 10)), code: 401},
		{name: "other scheme", token: "Basic first", body: list(auditLine("x", 10)), code: 401},
		{name: "good", token: "Bearer first", body: list(auditLine("good", 10)), code: 200, taken: []string{"good"}},
		{name: "again", token: "Bearer first", body: list(auditLine("good", 10)), code: 200},
		{name: "empty list", token: "Bearer first", body: list(), code: 200},
		{name: "gzip", token: "Bearer first", encoding: "gzip", body: zipped(t, list(auditLine("zipped", 10))), code: 200, taken: []string{"zipped"}},
		{name: "bad item", token: "Bearer first", body: list(auditLine("left", 10), []byte(`{"kind":"Event"}`), auditLine("right", 10)), code: 200, taken: []string{"left", "right"}, letter: record.ReasonAuditID},
		{name: "not JSON", token: "Bearer first", body: []byte("hello"), code: 400, letter: record.ReasonSyntax},
		{name: "not JSON again", token: "Bearer first", body: []byte("hello"), code: 400},
		{name: "other kind", token: "Bearer first", body: []byte(`{"kind":"PodList"}`), code: 400, letter: record.ReasonKind},
		{name: "other version", token: "Bearer first", body: []byte(`{"kind":"EventList","apiVersion":"audit.k8s.io/v1beta1"}`), code: 400, letter: record.ReasonAPIVersion},
		{name: "cut", token: "Bearer first", body: cut[:len(cut)-30], code: 400, taken: []string{"before the cut"}, letter: record.ReasonSyntax},
		{name: "large", token: "Bearer first", body: large, code: 413, letter: record.ReasonTooLarge},
		{name: "large, length unknown", token: "Bearer first", body: bytes.Replace(large, []byte("large"), []byte("other"), 1), chunked: true, code: 413, letter: record.ReasonTooLarge},
		{name: "large when decompressed", token: "Bearer first", encoding: "gzip", body: zipped(t, bytes.Replace(large, []byte("large"), []byte("third"), 1)), code: 413, letter: record.ReasonTooLarge},
		{name: "not gzip", token: "Bearer first", encoding: "gzip", body: list(auditLine("x", 10)), code: 400, letter: record.ReasonEncoding},
		{name: "other encoding", token: "Bearer first", encoding: "br", body: []byte("x"), code: 415},
		{name: "other method", method: http.MethodGet, token: "Bearer first", code: 405},
	} {
		lettersBefore, rowsBefore := len(letters(t, b)), len(readRaw(t, b))
		if c.method == "" {
			c.method = http.MethodPost
		}
		var body io.Reader = bytes.NewReader(c.body)
		if c.chunked {
			body = io.MultiReader(body) // a reader whose length is not known
		}
		req, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+cfg.Webhook.Listen+cfg.Webhook.Path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if c.token != "" {
			req.Header.Set("Authorization", c.token)
		}
		if c.encoding != "" {
			req.Header.Set("Content-Encoding", c.encoding)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.code {
			t.Errorf("%s: answer %d, want %d", c.name, resp.StatusCode, c.code)
		}
		eventually(t, c.name, func() string {
			var ids []string
			for _, p := range readRaw(t, b)[rowsBefore:] {
				ids = append(ids, p.auditID)
			}
			if fmt.Sprint(ids) != fmt.Sprint(c.taken) {
				return fmt.Sprintf("published %v, want %v", ids, c.taken)
			}
			return ""
		})
		got := letters(t, b)[lettersBefore:]
		switch {
		case c.letter == "" && len(got) != 0:
			t.Errorf("%s: %d dead letters", c.name, len(got))
		case c.letter != "" && (len(got) != 1 || !strings.HasPrefix(got[0].Header.Get(schemas.HeaderReason), c.letter+": ")):
			t.Errorf("%s: %d dead letters, want one with reason %s", c.name, len(got), c.letter)
		}
	}
	// The token is read at each request.
	if err := os.WriteFile(cfg.Webhook.TokenFile, []byte("second\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if resp := post(t, cfg, list()); resp.StatusCode != 401 {
		t.Errorf("without a token: answer %d", resp.StatusCode)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+cfg.Webhook.Listen+cfg.Webhook.Path, bytes.NewReader(list()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer second")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("with the new token: answer %d", resp.StatusCode)
	}
	eventually(t, "loss report", func() string {
		if dead, large := healthTotal(t, b, "loss", schemas.LossDeadLetter), healthTotal(t, b, "loss", schemas.LossOversized); dead != 6 || large != 3 {
			return fmt.Sprintf("%d dead letters and %d oversized, want 6 and 3", dead, large)
		}
		return ""
	})
}

// TestWebhookSlots: more than 16 requests at once are answered 429, and a body
// that does not arrive is no dead letter.
func TestWebhookSlots(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := webhookConfig(t, url)
	start(t, cfg)
	var slow []net.Conn
	for range 16 {
		c, err := net.Dial("tcp", cfg.Webhook.Listen)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{", cfg.Webhook.Path)
		slow = append(slow, c)
	}
	eventually(t, "one more", func() string {
		if resp := post(t, cfg, list()); resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" {
			return resp.Status
		}
		return ""
	})
	for _, c := range slow {
		c.Close()
	}
	eventually(t, "free again", func() string {
		if resp := post(t, cfg, list()); resp.StatusCode != 200 {
			return resp.Status
		}
		return ""
	})
	c, err := net.Dial("tcp", cfg.Webhook.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{", cfg.Webhook.Path)
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("half a body: answer %d", resp.StatusCode)
	}
	if n := len(letters(t, connect(t, url))); n != 0 {
		t.Errorf("half a body: %d dead letters", n)
	}
}

// authority signs the certificates of a test.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string) *authority {
	a := &authority{t: t}
	a.cert, a.key = a.sign(name, true)
	return a
}

// sign returns a new certificate; the authority's own is signed by itself.
func (a *authority) sign(name string, ca bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: ca, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, by := a.cert, a.key
	if ca {
		parent, by = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *authority) write(path string, cert *x509.Certificate, key *ecdsa.PrivateKey) {
	a.t.Helper()
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	if key != nil {
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			a.t.Fatal(err)
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})...)
	}
	if err := os.WriteFile(path, out, 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// TestWebhookTLS: only clients of the authority get in, and a renewed
// certificate is served without a restart.
func TestWebhookTLS(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := webhookConfig(t, url)
	ca, stranger := newAuthority(t, "ca"), newAuthority(t, "stranger")
	pair := filepath.Join(cfg.StateDir, "server.pem")
	cfg.Webhook.CertFile, cfg.Webhook.KeyFile = pair, pair
	cfg.Webhook.ClientCAFile = filepath.Join(cfg.StateDir, "ca.pem")
	ca.write(cfg.Webhook.ClientCAFile, ca.cert, nil)
	first, key := ca.sign("first", false)
	ca.write(pair, first, key)
	start(t, cfg)

	// call returns the name of the server's certificate.
	call := func(by *authority) (string, error) {
		roots := x509.NewCertPool()
		roots.AddCert(ca.cert)
		c := &tls.Config{RootCAs: roots}
		if by != nil {
			cert, key := by.sign("client", false)
			c.Certificates = []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}
		}
		transport := &http.Transport{TLSClientConfig: c, DisableKeepAlives: true, ForceAttemptHTTP2: true}
		resp, err := (&http.Client{Transport: transport}).Post("https://"+cfg.Webhook.Listen+cfg.Webhook.Path, "application/json", bytes.NewReader(list()))
		if err != nil {
			return "", err
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			return "", fmt.Errorf("answer %d", resp.StatusCode)
		}
		return resp.TLS.PeerCertificates[0].Subject.CommonName, nil
	}
	if name, err := call(ca); err != nil || name != "first" {
		t.Errorf("client of the authority: %q %v", name, err)
	}
	if _, err := call(nil); err == nil {
		t.Error("a client without a certificate gets in")
	}
	if _, err := call(stranger); err == nil {
		t.Error("a client of another authority gets in")
	}
	if resp, err := http.Post("http://"+cfg.Webhook.Listen+cfg.Webhook.Path, "application/json", bytes.NewReader(list())); err == nil {
		resp.Body.Close()
		if resp.StatusCode != 400 {
			t.Errorf("plain HTTP: answer %d", resp.StatusCode)
		}
	}
	second, key := ca.sign("second", false)
	ca.write(pair, second, key)
	if name, err := call(ca); err != nil || name != "second" {
		t.Errorf("after renewal: %q %v", name, err)
	}
	if err := os.WriteFile(pair, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if name, err := call(ca); err != nil || name != "second" {
		t.Errorf("with a damaged file: %q %v", name, err)
	}
}
