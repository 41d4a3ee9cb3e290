// Package natstest gives tests a real NATS server with Picket's streams and
// credentials.
package natstest

import (
	"context"
	"log/slog"
	"testing"

	"picket/internal/bus"
	"picket/internal/natsserver"
	"picket/schemas"
)

// Start runs a server for the test, with everything migrated, in a folder of
// its own; the server stops when the test ends.
func Start(t testing.TB) *natsserver.Server {
	t.Helper()
	s, err := natsserver.Start(natsserver.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", MaxStore: 8 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	b := Connect(t, s, schemas.ServiceAdmin)
	if err := b.Migrate(context.Background(), bus.DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	return s
}

// Config returns the `nats` configuration of a service for the server.
func Config(s *natsserver.Server, service string) bus.Config {
	return bus.Config{URL: s.URL(), CredentialsFile: s.Credentials(service)}
}

// Connect connects as a service until the test ends.
func Connect(t testing.TB, s *natsserver.Server, service string) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(Config(s, service), service, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}
