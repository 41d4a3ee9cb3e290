package enricher

import (
	"context"
	"os"
	"testing"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"go.uber.org/goleak"

	"picket/internal/bus"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(childURL); url != "" {
		os.Exit(child(url))
	}
	goleak.VerifyTestMain(m)
}

// startNATS runs a real NATS server with the project's streams and returns
// its address and a connection for the test.
func startNATS(t testing.TB) (string, *bus.Bus) {
	t.Helper()
	srv, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(10e9) {
		t.Fatal("nats server does not start")
	}
	b, err := bus.Connect(bus.Config{URL: srv.ClientURL()}, "test", testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.Migrate(context.Background(), bus.DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	return srv.ClientURL(), b
}
