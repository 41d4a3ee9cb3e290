package source_test

import (
	"strings"
	"testing"
	"time"

	"picket/services/auditlog-ingest/source"
)

func TestStart(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for text, want := range map[source.Start]time.Time{
		"now":                       now,
		"beginning":                 {},
		"2026-01-31T00:00:00Z":      time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC),
		"2026-01-31T01:00:00+01:00": time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC),
		"2026-01-31T00:00:00.5Z":    time.Date(2026, 1, 31, 0, 0, 0, 5e8, time.UTC),
	} {
		if err := text.Validate("eks.start"); err != nil {
			t.Errorf("%s: %v", text, err)
		} else if got := text.Time(now); !got.Equal(want) {
			t.Errorf("%s is %v, want %v", text, got, want)
		}
	}
	for _, text := range []source.Start{"", "end", "2026-01-31", "0001-01-01T00:00:00Z", "9999-01-01T00:00:00Z", "5m"} {
		if err := text.Validate("eks.start"); err == nil || !strings.HasPrefix(err.Error(), "eks.start is ") {
			t.Errorf("%q: %v, want an error that names the key", text, err)
		}
	}
}
