// Package natsserver is the NATS server of `picket up` and of the integration
// tests: nats-server as a library, with JetStream on disk, and credentials for
// every service that allow it just what it needs.
package natsserver

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"picket/schemas"
)

// Options configure a server.
type Options struct {
	// Dir is where JetStream's files, the keys and the credentials are. One
	// server at a time.
	Dir string
	// Listen is host:port; port 0 takes a free one.
	Listen string
	// MaxStore bounds JetStream's disk use, bytes; 0 is three quarters of
	// the free disk.
	MaxStore int64
	// Cluster and Node bind the sensor's and the ingester's credentials;
	// empty means any.
	Cluster, Node string
}

// Server is a running server.
type Server struct {
	ns  *server.Server
	dir string
}

// Start starts a server and returns when it accepts connections.
func Start(o Options) (*Server, error) {
	host, p, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, fmt.Errorf("nats listen address %q: use host:port", o.Listen)
	}
	port, err := strconv.Atoi(p)
	if err != nil || port < 0 || port > 65535 {
		return nil, fmt.Errorf("nats listen address %q: bad port", o.Listen)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	if o.Cluster == "" {
		o.Cluster = "*"
	}
	if o.Node == "" {
		o.Node = "*"
	}
	operator, resolver, system, err := authority(o)
	if err != nil {
		return nil, fmt.Errorf("nats credentials in %s: %w", o.Dir, err)
	}
	ns, err := server.NewServer(&server.Options{
		ServerName: "picket", Host: host, Port: port, DontListen: false,
		JetStream: true, StoreDir: filepath.Join(o.Dir, "jetstream"), JetStreamMaxStore: o.MaxStore,
		TrustedOperators: []*jwt.OperatorClaims{operator}, AccountResolver: resolver, SystemAccount: system,
		NoSigs: true, NoLog: true, MaxPayload: 1 << 20,
	})
	if err != nil {
		return nil, fmt.Errorf("nats server: %w", err)
	}
	go ns.Start() // returns at Shutdown
	if !ns.ReadyForConnections(15 * time.Second) {
		ns.Shutdown()
		return nil, fmt.Errorf("nats server on %s did not start: is the port taken, or the disk full?", o.Listen)
	}
	return &Server{ns: ns, dir: o.Dir}, nil
}

// URL returns the address to connect to.
func (s *Server) URL() string { return s.ns.ClientURL() }

// Credentials returns the credentials file of a service.
func (s *Server) Credentials(service string) string { return credentialsPath(s.dir, service) }

// Stop stops the server and waits for it.
func (s *Server) Stop() {
	s.ns.Shutdown()
	s.ns.WaitForShutdown()
}

func credentialsPath(dir, service string) string {
	return filepath.Join(dir, "credentials", service+".creds")
}

// authority makes, or takes from an earlier start, the operator and account
// keys, and writes a credentials file per service. Keys stay the same over
// restarts; permissions are those of this version.
func authority(o Options) (*jwt.OperatorClaims, *server.MemAccResolver, string, error) {
	keys := filepath.Join(o.Dir, "keys")
	for _, d := range []string{keys, filepath.Join(o.Dir, "credentials")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, nil, "", err
		}
	}
	op, opPub, err := key(keys, "operator", nkeys.CreateOperator)
	if err != nil {
		return nil, nil, "", err
	}
	acc, accPub, err := key(keys, "account", nkeys.CreateAccount)
	if err != nil {
		return nil, nil, "", err
	}
	_, sysPub, err := key(keys, "system", nkeys.CreateAccount)
	if err != nil {
		return nil, nil, "", err
	}
	resolver := &server.MemAccResolver{}
	store := func(pub, name string, jetstream bool) error {
		c := jwt.NewAccountClaims(pub)
		c.Name = name
		if jetstream {
			c.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit}
		}
		token, err := c.Encode(op)
		if err != nil {
			return err
		}
		return resolver.Store(pub, token)
	}
	if err := errors.Join(store(accPub, "PICKET", true), store(sysPub, "SYS", false)); err != nil {
		return nil, nil, "", err
	}
	for _, service := range schemas.AllServices() {
		user, userPub, err := key(keys, "user-"+service, nkeys.CreateUser)
		if err != nil {
			return nil, nil, "", err
		}
		c := jwt.NewUserClaims(userPub)
		c.Name = service
		p := schemas.PermissionsOf(service, o.Cluster, o.Node)
		c.Pub.Allow.Add(p.Publish...)
		c.Sub.Allow.Add(p.Subscribe...)
		token, err := c.Encode(acc)
		if err != nil {
			return nil, nil, "", err
		}
		seed, err := user.Seed()
		if err != nil {
			return nil, nil, "", err
		}
		creds, err := jwt.FormatUserConfig(token, seed)
		if err != nil {
			return nil, nil, "", err
		}
		if err := replace(credentialsPath(o.Dir, service), creds); err != nil {
			return nil, nil, "", err
		}
	}
	claims := jwt.NewOperatorClaims(opPub)
	claims.Name = "picket"
	claims.SystemAccount = sysPub
	token, err := claims.Encode(op)
	if err != nil {
		return nil, nil, "", err
	}
	decoded, err := jwt.DecodeOperatorClaims(token)
	return decoded, resolver, sysPub, err
}

// key reads a seed from dir, or makes and keeps one.
func key(dir, name string, create func() (nkeys.KeyPair, error)) (nkeys.KeyPair, string, error) {
	path := filepath.Join(dir, name+".nk")
	var kp nkeys.KeyPair
	seed, err := os.ReadFile(path)
	switch {
	case err == nil:
		if kp, err = nkeys.FromSeed(seed); err != nil {
			return nil, "", fmt.Errorf("%s: %w", path, err)
		}
	case errors.Is(err, os.ErrNotExist):
		if kp, err = create(); err != nil {
			return nil, "", err
		}
		if seed, err = kp.Seed(); err != nil {
			return nil, "", err
		}
		if err := replace(path, seed); err != nil {
			return nil, "", err
		}
	default:
		return nil, "", err
	}
	pub, err := kp.PublicKey()
	return kp, pub, err
}

// replace writes a secret file as a whole.
func replace(path string, b []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
