// Package bus is every service's way to NATS: one connection with the
// service's own credentials and inbox prefix, the streams it stands on,
// consuming with acknowledgement only after the work is durable, and the
// dead-letter stream.
package bus

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"picket/internal/seldom"
	"picket/schemas"
)

// Config is the `nats` part of every service's configuration.
type Config struct {
	URL             string `yaml:"url" doc:"NATS server, or several separated by commas: nats://, tls://, ws:// or wss://."`
	CredentialsFile string `yaml:"credentials_file" doc:"The service's own credentials (.creds file). Empty: connect without."`
	CAFile          string `yaml:"ca_file" doc:"PEM file of the authority that signed the server's certificate. Empty: the system's authorities."`
	CertFile        string `yaml:"cert_file" doc:"PEM file of the client certificate, with key_file. Empty: none."`
	KeyFile         string `yaml:"key_file" doc:"PEM file of the client certificate's key."`
}

// DefaultConfig returns the default `nats` part.
func DefaultConfig() Config { return Config{URL: "nats://127.0.0.1:4222"} }

// Validate checks the part; messages name the YAML key.
func (c Config) Validate() error {
	if c.URL == "" {
		return errors.New("nats.url is empty: give the address of a NATS server, such as nats://127.0.0.1:4222")
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return errors.New("nats.cert_file and nats.key_file go together: give both or neither")
	}
	if c.CredentialsFile != "" {
		if _, err := os.Stat(c.CredentialsFile); err != nil {
			return fmt.Errorf("nats.credentials_file: %w", err)
		}
	}
	return nil
}

// InboxPrefix is the prefix of a service's reply subjects. Permissions bind
// each service to its own, so that none can read another's replies.
func InboxPrefix(service string) string { return "_INBOX_" + schemas.Token(service) }

// Bus is a connection. It is safe for concurrent use.
type Bus struct {
	NC      *nats.Conn
	JS      jetstream.JetStream
	service string
	log     *slog.Logger
	seldom  *seldom.Logger // of what every message can cause
	closing *atomic.Bool   // Close was called
}

// Connect connects as the named service. When no server answers it returns a
// Bus that goes on trying in the background: a sensor must watch and spool
// while NATS is away; other services wait in Verify. Wrong credentials or
// certificate files are an error at once. Later interruptions are repaired
// without bound.
func Connect(cfg Config, service string, log *slog.Logger) (*Bus, error) {
	closing, repeated := new(atomic.Bool), seldom.New(log)
	opts := []nats.Option{
		nats.Name("picket-" + service),
		nats.CustomInboxPrefix(InboxPrefix(service)),
		nats.Timeout(2 * time.Second),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, time.Second),
		nats.ReconnectBufSize(-1), // a publish while disconnected fails at once; the caller keeps the data
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("nats connection lost, reconnecting", "url", cfg.URL, "error", err)
			}
		}),
		nats.ConnectHandler(func(nc *nats.Conn) { log.Info("nats connected", "url", nc.ConnectedUrlRedacted()) }),
		nats.ReconnectHandler(func(nc *nats.Conn) { log.Info("nats connection restored", "url", nc.ConnectedUrlRedacted()) }),
		nats.ClosedHandler(func(nc *nats.Conn) {
			if !closing.Load() {
				log.Error("nats connection closed for good", "error", nc.LastError())
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			repeated.Error("nats reported an error", "subject", subject, "error", err)
		}),
	}
	if cfg.CredentialsFile != "" {
		opts = append(opts, nats.UserCredentials(cfg.CredentialsFile))
	}
	if cfg.CAFile != "" {
		opts = append(opts, nats.RootCAs(cfg.CAFile))
	}
	if cfg.CertFile != "" {
		opts = append(opts, nats.ClientCert(cfg.CertFile, cfg.KeyFile))
	}
	nc, err := nats.Connect(cfg.URL, opts...)
	switch {
	case err == nil:
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return nil, fmt.Errorf("nats at %s refused the credentials in nats.credentials_file %q: %w", cfg.URL, cfg.CredentialsFile, err)
	case errors.Is(err, nats.ErrNoServers), isNetwork(err):
		log.Warn("nats does not answer; trying on in the background, check nats.url if this goes on", "url", cfg.URL, "error", err)
		if nc, err = nats.Connect(cfg.URL, append(opts, nats.RetryOnFailedConnect(true))...); err != nil {
			return nil, fmt.Errorf("nats at %s (nats.url): %w", cfg.URL, err)
		}
	default:
		return nil, fmt.Errorf("nats at %s (nats.url): %w", cfg.URL, err)
	}
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncTimeout(10*time.Second))
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("jetstream context: %w", err)
	}
	return &Bus{NC: nc, JS: js, service: service, log: log, seldom: repeated, closing: closing}, nil
}

func isNetwork(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) || errors.Is(err, nats.ErrTimeout)
}

// Close sends what is buffered and closes the connection, waiting at most
// five seconds for the server.
func (b *Bus) Close() {
	if b.NC.IsConnected() {
		if err := b.NC.FlushTimeout(5 * time.Second); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
			b.log.Warn("nats connection closed with unsent data", "error", err)
		}
	}
	b.closing.Store(true)
	b.NC.Close()
}

// Ready returns nil while the connection is up; it is the readiness check.
func (b *Bus) Ready() error {
	if !b.NC.IsConnected() {
		return fmt.Errorf("nats is %s", b.NC.Status())
	}
	return nil
}

// NewRunID returns the random 128-bit id of a process's run, in hex.
func NewRunID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}
