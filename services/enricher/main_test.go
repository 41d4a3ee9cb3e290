package enricher

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"picket/internal/bus"
	"picket/internal/natsserver"
	"picket/internal/natsserver/natstest"
	"picket/internal/service"
	"picket/schemas"
)

func TestMain(m *testing.M) {
	if os.Getenv(childMark) != "" {
		os.Exit(service.Main(schemas.ServiceEnricher, DefaultConfig(), Run))
	}
	goleak.VerifyTestMain(m)
}

// startNATS runs a real NATS server. It returns the configuration of an
// enricher with its own credentials, and a connection that may do everything.
func startNATS(t testing.TB) (Config, *bus.Bus) {
	t.Helper()
	s := natstest.Start(t)
	return testConfig(s), natstest.Connect(t, s, schemas.ServiceAdmin)
}

func testConfig(s *natsserver.Server) Config {
	cfg := DefaultConfig()
	cfg.NATS = natstest.Config(s, schemas.ServiceEnricher)
	cfg.Cluster = "test"
	cfg.Log.Level, cfg.Log.Format = "warn", "text"
	return cfg
}
