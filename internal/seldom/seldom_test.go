package seldom

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	l := New(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})))
	begin := time.Now()
	for _, after := range []time.Duration{0, time.Millisecond, Interval - 1, Interval, Interval + 1, 3 * Interval, 5 * Interval} {
		l.at(begin.Add(after), slog.LevelError, "refused", "after", after)
	}
	l.at(begin, slog.LevelWarn, "another")
	want := `level=ERROR msg=refused after=0s
level=ERROR msg=refused after=10s left_out=2
level=ERROR msg=refused after=30s left_out=1
level=ERROR msg=refused after=50s
level=WARN msg=another
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

// TestFlood: what comes all the time, from everywhere, is written once.
func TestFlood(t *testing.T) {
	var out bytes.Buffer
	l := New(slog.New(slog.NewTextHandler(&out, nil)))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25_000 {
				l.Error("refused")
			}
		})
	}
	wg.Wait()
	if n := strings.Count(out.String(), "\n"); n != 1 {
		t.Errorf("%d lines", n)
	}
}
