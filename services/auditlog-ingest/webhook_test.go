package auditlogingest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"picket/internal/bus"
	"picket/internal/freeport"
)

// running is an ingester under test.
type running struct {
	cfg  Config
	stop context.CancelFunc
	done chan error
}

// start runs an ingester with a web hook until the test ends or stopped is
// called.
func start(t testing.TB, cfg Config) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{cfg: cfg, stop: cancel, done: make(chan error, 1)}
	go func() { r.done <- Run(ctx, cfg) }()
	t.Cleanup(func() { r.stopped(t) })
	if cfg.Webhook.Listen != "" {
		eventually(t, "web hook", func() string {
			c, err := net.DialTimeout("tcp", cfg.Webhook.Listen, time.Second)
			if err != nil {
				return err.Error()
			}
			c.Close()
			return ""
		})
	}
	return r
}

func (r *running) stopped(t testing.TB) {
	t.Helper()
	r.stop()
	select {
	case err, ok := <-r.done:
		if ok && err != nil {
			t.Errorf("ingester: %v", err)
		}
		if ok {
			close(r.done)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("ingester does not stop")
	}
}

// apiServerWait is how long an API server waits for an answer
// (defaultRequestTimeout of k8s.io/apiserver/pkg/util/webhook).
const apiServerWait = 30 * time.Second

// freeAddress returns an address of loopback that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	a, err := freeport.Address("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func testConfig(t testing.TB, url string) Config {
	cfg := DefaultConfig()
	cfg.NATS.URL = url
	cfg.Cluster = "test"
	cfg.StateDir = t.TempDir()
	cfg.Drop = []Drop{} // every record of the samples is looked for
	cfg.Log.File = filepath.Join(cfg.StateDir, "log")
	return cfg
}

func webhookConfig(t testing.TB, url string) Config {
	cfg := testConfig(t, url)
	cfg.Webhook.Listen = freeAddress(t)
	return cfg
}

func list(records ...[]byte) []byte {
	return fmt.Appendf(nil, `{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[%s]}`, bytes.Join(records, []byte(",")))
}

func post(t testing.TB, cfg Config, body []byte) *http.Response {
	t.Helper()
	resp, err := http.Post("http://"+cfg.Webhook.Listen+cfg.Webhook.Path, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp
}

func TestWebhookSamples(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	b := connect(t, url)
	cfg := webhookConfig(t, url)
	start(t, cfg)
	records := samples(t)
	for range 2 { // the second time all are duplicates
		if resp := post(t, cfg, list(records...)); resp.StatusCode != http.StatusOK {
			t.Fatalf("answer %d", resp.StatusCode)
		}
	}
	eventually(t, "published", func() string {
		if n := len(readRaw(t, b)); n != len(records) {
			return fmt.Sprintf("%d of %d", n, len(records))
		}
		return ""
	})
}

// tryPost returns the answer's status, 0 if there is none.
func tryPost(cfg Config, body []byte) int {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post("http://"+cfg.Webhook.Listen+cfg.Webhook.Path, "application/json", bytes.NewReader(body))
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}
