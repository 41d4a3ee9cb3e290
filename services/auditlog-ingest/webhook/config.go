package webhook

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"

	"picket/services/auditlog-ingest/source"
)

// Config is the `webhook` part of the configuration.
type Config struct {
	Listen       string `yaml:"listen" doc:"Address to receive audit events on, such as 127.0.0.1:9443. Empty: no web hook."`
	Name         string `yaml:"name" doc:"Name of this source, the column node of its events. Unique in the cluster."`
	Path         string `yaml:"path" doc:"Path of the URL that the API server posts to."`
	CertFile     string `yaml:"cert_file" doc:"PEM file of the server certificate, with key_file; read again at each connection. Empty: plain HTTP."`
	KeyFile      string `yaml:"key_file" doc:"PEM file of the certificate's key."`
	ClientCAFile string `yaml:"client_ca_file" doc:"PEM file of the authority that signs client certificates; others are refused. Empty: none asked for."`
	TokenFile    string `yaml:"token_file" doc:"File with the bearer token that requests must carry; read at each request. Empty: none asked for."`
	MaxBodyBytes int64  `yaml:"max_body_bytes" doc:"Largest body in bytes, decompressed, 1 MiB to 4 GiB; a larger one is refused with 413. Memory does not depend on it."`
}

// DefaultConfig returns the defaults: off.
func DefaultConfig() Config {
	return Config{Name: "webhook", Path: "/audit", MaxBodyBytes: 256 << 20}
}

// Validate checks the part; messages name the YAML key.
func (c Config) Validate() error {
	if c.Listen == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("webhook.listen is %q: use host:port, such as 127.0.0.1:9443", c.Listen)
	}
	if err := source.ValidName("webhook.name", c.Name); err != nil {
		return err
	}
	if !strings.HasPrefix(c.Path, "/") || strings.ContainsAny(c.Path, "{} ") {
		return fmt.Errorf("webhook.path is %q: it begins with a slash, and has no braces and no blanks", c.Path)
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return errors.New("webhook.cert_file and webhook.key_file go together: give both or neither")
	}
	if c.ClientCAFile != "" && c.CertFile == "" {
		return errors.New("webhook.client_ca_file needs webhook.cert_file: client certificates come with TLS")
	}
	if c.MaxBodyBytes < 1<<20 || c.MaxBodyBytes > 4<<30 {
		return fmt.Errorf("webhook.max_body_bytes is %d: give 1048576 to 4294967296", c.MaxBodyBytes)
	}
	if _, err := c.token(); err != nil {
		return err
	}
	if c.CertFile != "" {
		if _, err := c.tls(); err != nil {
			return err
		}
	}
	return nil
}

// token reads the bearer token; it is empty if none is asked for.
func (c Config) token() (string, error) {
	if c.TokenFile == "" {
		return "", nil
	}
	data, err := os.ReadFile(c.TokenFile)
	if err != nil {
		return "", fmt.Errorf("webhook.token_file: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" {
		return "", fmt.Errorf("webhook.token_file: %s is empty", c.TokenFile)
	}
	return token, nil
}

// tls returns the server's TLS configuration. Certificate and authorities are
// read again at each handshake, so that they can be renewed without restart;
// while what is there cannot be read the last good ones stay.
func (c Config) tls() (*tls.Config, error) {
	load := func() (*tls.Config, error) {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("webhook.cert_file, webhook.key_file: %w", err)
		}
		t := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}
		if c.ClientCAFile != "" {
			pem, err := os.ReadFile(c.ClientCAFile)
			if err != nil {
				return nil, fmt.Errorf("webhook.client_ca_file: %w", err)
			}
			t.ClientCAs, t.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
			if !t.ClientCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("webhook.client_ca_file: no certificate in %s", c.ClientCAFile)
			}
		}
		return t, nil
	}
	first, err := load()
	if err != nil {
		return nil, err
	}
	var last atomic.Pointer[tls.Config]
	last.Store(first)
	outer := first.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if t, err := load(); err == nil {
			last.Store(t)
		}
		return last.Load(), nil
	}
	return outer, nil
}
