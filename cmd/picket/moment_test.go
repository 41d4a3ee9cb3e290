package main

import (
	"testing"
	"time"
)

func TestMoment(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		text string
		want time.Time // zero: an error
		then string
	}{
		{"7d", now.AddDate(0, 0, -7), "in the last 7d"},
		{"90m", now.Add(-90 * time.Minute), "in the last 90m"},
		{"2026-11-20", time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC), "since 2026-11-20"},
		{"2026-11-23T08:00:00Z", time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC), "since 2026-11-23T08:00:00Z"},
		{text: "soon"}, {text: "-1h"}, {text: "-1d"}, {text: "1.5d"}, {text: "d"}, {text: "70000d"}, {text: "2026-13-01"}, {text: ""},
	} {
		var m moment
		err := m.Set(c.text)
		if (err != nil) != c.want.IsZero() {
			t.Errorf("%q: %v", c.text, err)
		}
		if err == nil && (!m.time(now).Equal(c.want) || m.sinceThen() != c.then || m.String() != c.text) {
			t.Errorf("%q: %s, %q", c.text, m.time(now), m.sinceThen())
		}
	}
	if got, want := seconds(time.Unix(-5, 0)), "toDateTime64(0, 9, 'UTC')"; got != want {
		t.Errorf("before 1970: %s", got)
	}
}
