package source

import (
	"fmt"
	"time"
)

// Start says where a source begins that has no checkpoint: StartNow,
// StartBeginning or a time in RFC 3339. It is the value of a setting `start`.
//
// How far a source that began in the past has come is not for the source to
// tell: what runs it sees the times of its records, and tells done, rate and
// expected end in the log, the metrics and `picket status`.
type Start string

// Values of Start that are no time.
const (
	StartNow       Start = "now"
	StartBeginning Start = "beginning"
)

// Validate checks the setting; key is its YAML key.
func (s Start) Validate(key string) error {
	if s == StartNow || s == StartBeginning {
		return nil
	}
	t, err := time.Parse(time.RFC3339Nano, string(s))
	if err != nil {
		return fmt.Errorf("%s is %q: use %s, %s, or a time such as 2026-01-31T00:00:00Z", key, string(s), StartNow, StartBeginning)
	}
	if y := t.UTC().Year(); y < 1970 || y > 2261 {
		return fmt.Errorf("%s is %q: use a time between 1970 and 2261", key, string(s))
	}
	return nil
}

// Time returns the time to begin at: now, the zero time for StartBeginning, or
// the time that was given. It panics on what Validate refuses.
func (s Start) Time(now time.Time) time.Time {
	switch s {
	case StartNow:
		return now
	case StartBeginning:
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, string(s))
	if err != nil {
		panic("source: start was not validated: " + err.Error())
	}
	return t
}
