package eks

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"picket/services/auditlog-ingest/source"
)

// Hasten returns a provider whose clockwork runs in seconds: poll and overlap
// as given, pauses of at most 50 ms, windows of at most most events.
func Hasten(cfg Config, log *slog.Logger, reg prometheus.Registerer, most int) (source.Provider, error) {
	p := paceOf(cfg)
	p.most, p.backoff, p.look = most, 50*time.Millisecond, time.Second
	return build(cfg, log, reg, p)
}
