package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// sinceUsage says how a moment is written.
const sinceUsage = "begin: how long ago (7d, 12h) or a time, UTC (2026-11-23, 2026-11-23T08:00:00Z)"

// moment is a time, or how long ago it was.
type moment struct {
	text string
	at   time.Time // zero: ago counts
	ago  time.Duration
}

// ago returns the moment that a command's flag has where it is not given: as in 7d.
func ago(text string) (m moment) {
	if err := m.Set(text); err != nil {
		panic(err) // a constant
	}
	return m
}

// sinceThen names the time from the moment on.
func (m *moment) sinceThen() string {
	if m.at.IsZero() {
		return "in the last " + m.text
	}
	return "since " + m.text
}

func (m *moment) String() string { return m.text }
func (m *moment) Type() string   { return "time" }

// Set implements pflag.Value.
func (m *moment) Set(s string) error {
	n := moment{text: s}
	days, isDays := strings.CutSuffix(s, "d")
	var err error
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if n.at, err = time.Parse(layout, s); err == nil {
			*m = n
			return nil
		}
	}
	n.at = time.Time{}
	if isDays {
		var d uint64
		if d, err = strconv.ParseUint(days, 10, 16); err == nil {
			n.ago = time.Duration(d) * 24 * time.Hour
		}
	} else {
		n.ago, err = time.ParseDuration(s)
	}
	if err != nil || n.ago < 0 {
		return errors.New("give a length of time, as 7d, 12h or 30m, or a time, as 2026-11-23 or 2026-11-23T08:00:00Z")
	}
	*m = n
	return nil
}

func (m *moment) time(now time.Time) time.Time {
	if m.at.IsZero() {
		return now.Add(-m.ago)
	}
	return m.at
}

// seconds writes a time into a statement.
func seconds(t time.Time) string {
	return fmt.Sprintf("toDateTime64(%d, 9, 'UTC')", max(0, t.Unix())) // ClickHouse's own times wrap before 1970
}
