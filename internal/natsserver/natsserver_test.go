package natsserver_test

import (
	"log/slog"
	"os"
	"path/filepath"
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
