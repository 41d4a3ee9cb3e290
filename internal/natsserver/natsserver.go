// Package natsserver is the NATS server of `picket up` and of the integration
// tests: nats-server as a library, with JetStream on disk, and credentials for
// every service that allow it just what it needs.
package natsserver

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
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
	// AuditClusters are those that the ingester may speak for besides.
	AuditClusters []string
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
	auth, err := newAuthority(o.Dir, o.Cluster, o.Node, o.AuditClusters)
	if err != nil {
		return nil, fmt.Errorf("nats credentials in %s: %w", o.Dir, err)
	}
	operator, err := jwt.DecodeOperatorClaims(auth.operator)
	if err != nil {
		return nil, fmt.Errorf("nats credentials in %s: %w", o.Dir, err)
	}
	resolver := &server.MemAccResolver{}
	for pub, token := range auth.accounts {
		if err := resolver.Store(pub, token); err != nil {
			return nil, fmt.Errorf("nats credentials in %s: %w", o.Dir, err)
		}
	}
	ns, err := server.NewServer(&server.Options{
		ServerName: "picket", Host: host, Port: port,
		JetStream: true, StoreDir: filepath.Join(o.Dir, "jetstream"), JetStreamMaxStore: o.MaxStore,
		TrustedOperators: []*jwt.OperatorClaims{operator}, AccountResolver: resolver, SystemAccount: auth.system,
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

// authority is what a server must know to accept the credentials.
type authority struct {
	operator string            // JWT
	accounts map[string]string // JWTs by public key
	system   string            // public key of the system account
}

// newAuthority makes, or takes from an earlier time, the operator and account
// keys in dir, and writes a credentials file per service. Keys stay the same;
// permissions are those of this version. An empty cluster or node means any.
func newAuthority(dir, cluster, node string, auditClusters []string) (*authority, error) {
	if cluster == "" {
		cluster = "*"
	}
	if node == "" {
		node = "*"
	}
	keys := filepath.Join(dir, "keys")
	for _, d := range []string{keys, filepath.Join(dir, "credentials")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	op, opPub, err := key(keys, "operator", nkeys.CreateOperator)
	if err != nil {
		return nil, err
	}
	acc, accPub, err := key(keys, "account", nkeys.CreateAccount)
	if err != nil {
		return nil, err
	}
	_, sysPub, err := key(keys, "system", nkeys.CreateAccount)
	if err != nil {
		return nil, err
	}
	a := &authority{accounts: map[string]string{}, system: sysPub}
	for pub, name := range map[string]string{accPub: "PICKET", sysPub: "SYS"} {
		c := jwt.NewAccountClaims(pub)
		c.Name = name
		if pub == accPub {
			c.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit}
		}
		if a.accounts[pub], err = c.Encode(op); err != nil {
			return nil, err
		}
	}
	for _, service := range schemas.AllServices() {
		user, userPub, err := key(keys, "user-"+service, nkeys.CreateUser)
		if err != nil {
			return nil, err
		}
		c := jwt.NewUserClaims(userPub)
		c.Name = service
		p := schemas.PermissionsOf(service, cluster, node, auditClusters...)
		c.Pub.Allow.Add(p.Publish...)
		c.Sub.Allow.Add(p.Subscribe...)
		token, err := c.Encode(acc)
		if err != nil {
			return nil, err
		}
		seed, err := user.Seed()
		if err != nil {
			return nil, err
		}
		creds, err := jwt.FormatUserConfig(token, seed)
		if err != nil {
			return nil, err
		}
		if err := replace(credentialsPath(dir, service), creds); err != nil {
			return nil, err
		}
	}
	claims := jwt.NewOperatorClaims(opPub)
	claims.Name = "picket"
	claims.SystemAccount = sysPub
	a.operator, err = claims.Encode(op)
	return a, err
}

// WriteCredentials writes, for a NATS server of your own, a credentials file
// per service into dir/credentials and the part of the server's configuration
// that accepts them into dir/picket-auth.conf. Running it again keeps the keys
// in dir/keys and renews the permissions. An empty cluster or node means any;
// auditClusters are those that the ingester may speak for besides cluster.
func WriteCredentials(dir, cluster, node string, auditClusters []string) error {
	a, err := newAuthority(dir, cluster, node, auditClusters)
	if err != nil {
		return fmt.Errorf("credentials in %s: %w", dir, err)
	}
	conf := "# Written by `picket credentials`. Include it in nats-server's configuration.\n" +
		"operator: " + a.operator + "\nsystem_account: " + a.system + "\nresolver: MEMORY\nresolver_preload: {\n"
	for _, pub := range slices.Sorted(maps.Keys(a.accounts)) {
		conf += "  " + pub + ": " + a.accounts[pub] + "\n"
	}
	return replace(filepath.Join(dir, "picket-auth.conf"), []byte(conf+"}\n"))
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
