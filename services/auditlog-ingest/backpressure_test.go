package auditlogingest

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"picket/internal/bus"
)

// TestBackPressure takes NATS away: records go to the spool, what is none is
// refused until there is room again. When the spool is full the web hook asks to be called again
// and the file waits; in the end each event is there once.
func TestBackPressure(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, portText, err := net.SplitHostPort(freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		t.Fatal(err)
	}
	s, url := startNATS(t, dir, port, bus.DefaultLimits())
	cfg := webhookConfig(t, url)
	cfg.File.Path = filepath.Join(t.TempDir(), "audit.log")
	cfg.SpoolBytes = 1 << 20
	start(t, cfg)
	w := newLogWriter(t, cfg.File.Path, 11)
	w.write(5, nil)
	exactly(t, connect(t, url), w, false)
	s.Shutdown()
	s.WaitForShutdown()

	record := func() []byte {
		line := bytes.Replace(auditLine(w.id(w.n), 1), []byte(`"x":"x"`), []byte(`"x":"`+noise(t, uint64(w.n), 40<<10)+`"`), 1)
		w.n++
		return line
	}
	if resp := post(t, cfg, list(record())); resp.StatusCode != 200 {
		t.Fatalf("answer %d with NATS away, want 200", resp.StatusCode)
	}
	// refused posts what must be refused in time.
	refused := func(body []byte, want int) {
		began := time.Now()
		resp, err := http.Post("http://"+cfg.Webhook.Listen+cfg.Webhook.Path, "application/json", bytes.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		resp.Body.Close()
		if resp.StatusCode != want || resp.Header.Get("Retry-After") == "" {
			t.Errorf("answer %d %v, want %d with Retry-After", resp.StatusCode, resp.Header, want)
		}
		if waited := time.Since(began); waited > apiServerWait {
			t.Errorf("the answer took %s: the API server has given up by then", waited)
		}
	}
	var posting sync.WaitGroup
	posting.Go(func() { refused([]byte("garbage"), http.StatusServiceUnavailable) })
	for range 40 { // 1.6 MB
		_, err := w.f.Write(append(record(), '\n'))
		w.check(err)
	}
	var items [][]byte
	for range 40 {
		items = append(items, record())
	}
	body := list(items...)
	refused(body, http.StatusTooManyRequests)
	posting.Wait()
	_, url = startNATS(t, dir, port, bus.DefaultLimits())
	eventually(t, "accepted", func() string {
		if code := tryPost(cfg, body); code != 200 {
			return fmt.Sprint(code)
		}
		return ""
	})
	b := connect(t, url)
	exactly(t, b, w, false)
	if code := tryPost(cfg, []byte("garbage")); code != 400 {
		t.Errorf("garbage again: answer %d, want 400", code)
	}
	if n := len(letters(t, b)); n != 1 {
		t.Errorf("%d dead letters, want 1", n)
	}
}
