package rig

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"time"

	"picket/internal/freeport"
	"picket/schemas"
)

// StartEnricher starts an enricher of Cluster with its log in dir, and returns
// when it is ready. flags are added to what leads it to the NATS server.
func StartEnricher(ctx context.Context, binary, dir string, nats *NATS, flags ...string) (*Process, error) {
	admin, err := freeport.Address("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p, err := start("enricher", filepath.Join(dir, "enricher.log"), binary, append([]string{"--nats.url", nats.url, "--nats.credentials_file", nats.credentials(schemas.ServiceEnricher),
		"--admin.listen", admin, "--cluster", Cluster}, flags...)...)
	if err != nil {
		return nil, err
	}
	err = p.Until(ctx, 2*time.Minute, 20*time.Millisecond, "ready", func() (bool, error) {
		resp, err := http.Get("http://" + admin + "/readyz")
		if err != nil {
			return false, err
		}
		return resp.StatusCode == http.StatusOK, resp.Body.Close()
	})
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return p, nil
}
