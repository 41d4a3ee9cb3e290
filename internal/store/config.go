package store

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// Config is the `clickhouse` part of a configuration. The database is always
// schemas.Database.
type Config struct {
	URL           string        `yaml:"url" doc:"HTTP interface of the ClickHouse server, or of the balancer before several replicas: http://host:8123 or https://host:8443."`
	Username      string        `yaml:"username" doc:"User of the ClickHouse server. Empty: its default user."`
	PasswordFile  string        `yaml:"password_file" doc:"File with the user's password; spaces and line ends around it are dropped. Empty: no password."`
	CAFile        string        `yaml:"ca_file" doc:"PEM file of the authority that signed the server's certificate. Empty: the system's authorities."`
	InsertTimeout time.Duration `yaml:"insert_timeout" doc:"How long one insert or other statement may take before it is given up and repeated; 1s to 10m."`
}

// DefaultConfig returns the default `clickhouse` part.
func DefaultConfig() Config {
	return Config{URL: "http://127.0.0.1:8123", InsertTimeout: time.Minute}
}

// Validate checks the part; messages name the YAML key.
func (c Config) Validate() error {
	if _, err := c.parse(); err != nil {
		return err
	}
	if c.InsertTimeout < time.Second || c.InsertTimeout > 10*time.Minute {
		return fmt.Errorf("clickhouse.insert_timeout is %s: use 1s to 10m", c.InsertTimeout)
	}
	for key, file := range map[string]string{"password_file": c.PasswordFile, "ca_file": c.CAFile} {
		if file == "" {
			continue
		}
		if _, err := os.Stat(file); err != nil {
			return fmt.Errorf("clickhouse.%s: %w", key, err)
		}
	}
	return nil
}

// parse checks the address. Everything in it that would be ignored is refused.
func (c Config) parse() (*url.URL, error) {
	if c.URL == "" {
		return nil, errors.New("clickhouse.url is empty: give the address of ClickHouse's HTTP interface, such as http://127.0.0.1:8123")
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, errors.New("clickhouse.url is no address: use http://host:8123 or https://host:8443")
	}
	switch {
	case u.Scheme == "clickhouse" || u.Scheme == "tcp":
		return nil, fmt.Errorf("clickhouse.url is %q: Picket uses ClickHouse's HTTP interface (port 8123, with TLS 8443), not the native one: use http:// or https://", u.Redacted())
	case u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "":
		return nil, fmt.Errorf("clickhouse.url is %q: use http://host:8123 or https://host:8443", u.Redacted())
	case u.User != nil:
		return nil, errors.New("clickhouse.url holds a user: name it in clickhouse.username, its password in a file named by clickhouse.password_file")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("clickhouse.url is %q: leave out what follows host and port", c.URL)
	}
	return u, nil
}

// options turns the configuration into the client's.
func (c Config) options() (*clickhouse.Options, error) {
	u, err := c.parse()
	if err != nil {
		return nil, err
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "8123", "https": "8443"}[u.Scheme]
	}
	o := &clickhouse.Options{
		Protocol: clickhouse.HTTP,
		Addr:     []string{net.JoinHostPort(u.Hostname(), port)},
		Auth:     clickhouse.Auth{Username: c.Username},
		// Bounds; statements have their own, shorter deadlines.
		DialTimeout:  10 * time.Second,
		ReadTimeout:  c.InsertTimeout + 10*time.Second,
		MaxOpenConns: 16,
		MaxIdleConns: 8,
		ClientInfo:   clickhouse.ClientInfo{Products: []struct{ Name, Version string }{{Name: "picket", Version: "0"}}},
	}
	if c.PasswordFile != "" {
		b, err := os.ReadFile(c.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("clickhouse.password_file: %w", err)
		}
		o.Auth.Password = strings.TrimSpace(string(b))
	}
	if u.Scheme == "https" {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname()}
	}
	if c.CAFile != "" {
		if o.TLS == nil {
			return nil, errors.New("clickhouse.ca_file is given, but clickhouse.url is http://: use https://")
		}
		b, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("clickhouse.ca_file: %w", err)
		}
		o.TLS.RootCAs = x509.NewCertPool()
		if !o.TLS.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("clickhouse.ca_file %s holds no PEM certificate", c.CAFile)
		}
	}
	return o, nil
}

// shareTransport gives all connections of a pool one transport, and returns
// what closes its idle sockets. The client would make one for each connection,
// and abandon it with its socket when the first answer is not ClickHouse's.
func shareTransport(o *clickhouse.Options) (closeIdle func()) {
	var mu sync.Mutex
	var shared *http.Transport
	o.TransportFunc = func(t *http.Transport) (http.RoundTripper, error) {
		mu.Lock()
		defer mu.Unlock()
		if shared == nil {
			shared = t
			shared.MaxIdleConns, shared.MaxIdleConnsPerHost, shared.IdleConnTimeout = o.MaxOpenConns, o.MaxOpenConns, 90*time.Second
		}
		return shared, nil
	}
	return func() {
		mu.Lock()
		defer mu.Unlock()
		if shared != nil {
			shared.CloseIdleConnections()
		}
	}
}
