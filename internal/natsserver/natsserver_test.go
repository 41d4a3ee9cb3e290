package natsserver_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/goleak"

	"picket/internal/bus"
	"picket/internal/natsserver"
	"picket/schemas"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A server of one's own, configured by file, accepts what WriteCredentials
// wrote, and nothing else.
func TestWriteCredentials(t *testing.T) {
	dir := t.TempDir()
	if err := natsserver.WriteCredentials(dir, "prod", "node-1", []string{"edge"}); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, "keys", "operator.nk"))
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "nats.conf")
	if err := os.WriteFile(conf, []byte("host: 127.0.0.1\nport: -1\njetstream { store_dir: \""+filepath.Join(dir, "js")+"\" }\ninclude picket-auth.conf\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	opts.NoSigs, opts.NoLog = true, true
	ns, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	go ns.Start()
	defer func() { ns.Shutdown(); ns.WaitForShutdown() }()
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("server does not start")
	}
	log := slog.New(slog.DiscardHandler)
	for _, service := range schemas.AllServices() {
		b, err := bus.Connect(bus.Config{URL: ns.ClientURL(), CredentialsFile: filepath.Join(dir, "credentials", service+".creds")}, service, log)
		if err != nil {
			t.Errorf("%s: %v", service, err)
			continue
		}
		b.Close()
	}
	if _, err := bus.Connect(bus.Config{URL: ns.ClientURL()}, "sensor", log); err == nil {
		t.Error("connected without credentials")
	}
	if err := natsserver.WriteCredentials(dir, "prod", "node-1", []string{"edge"}); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(filepath.Join(dir, "keys", "operator.nk"))
	if err != nil || string(after) != string(before) {
		t.Errorf("keys changed: %v", err)
	}
	secrets, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range secrets {
		st, err := os.Stat(f)
		if err == nil && !st.IsDir() && (filepath.Base(filepath.Dir(f)) == "keys" || filepath.Base(filepath.Dir(f)) == "credentials") && st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f, st.Mode())
		}
	}
}

func TestStartErrors(t *testing.T) {
	s, err := natsserver.Start(natsserver.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	for _, listen := range []string{"", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000"} {
		if _, err := natsserver.Start(natsserver.Options{Dir: t.TempDir(), Listen: listen}); err == nil {
			t.Errorf("started on %q", listen)
		}
	}
}

// What JetStream has stored stays its own: a server does not offer less each
// time it starts. The streams fit into what it offers, however little.
func TestMaxStore(t *testing.T) {
	dir := t.TempDir()
	start := func(max int64) *natsserver.Server {
		t.Helper()
		s, err := natsserver.Start(natsserver.Options{Dir: dir, Listen: "127.0.0.1:0", MaxStore: max})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := start(0)
	before := s.MaxStore()
	s.Stop()
	// A hole, which takes no disk: what others write meanwhile cannot hide it.
	const stored = 1 << 43
	name := filepath.Join(dir, "jetstream", "stored")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, stored); err != nil {
		t.Fatal(err)
	}
	s = start(0)
	after := s.MaxStore()
	s.Stop()
	if before <= 0 || after-before < stored/2 {
		t.Errorf("at most %d bytes, and %d once %d are stored", before, after, int64(stored))
	}

	const little = 1 << 30
	s = start(little)
	defer s.Stop()
	b, err := bus.Connect(bus.Config{URL: s.URL(), CredentialsFile: s.Credentials(schemas.ServiceAdmin)}, schemas.ServiceAdmin, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.Migrate(t.Context(), bus.DefaultLimits()); err == nil || !strings.Contains(err.Error(), "max_file_store") {
		t.Errorf("streams larger than the disk: %v, want the remedy", err)
	}
	limits := bus.DefaultLimits().Within(s.MaxStore())
	if limits.Bytes() > little || limits.Bytes() < little-8 {
		t.Errorf("limits within %d are %+v", little, limits)
	}
	if err := b.Migrate(t.Context(), limits); err != nil {
		t.Error(err)
	}
}
