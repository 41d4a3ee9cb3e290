package schemas

import "time"

// Unfed says which rules a sensor's selection leaves without events. The
// detector keeps it as JSON in BucketState under UnfedPrefix and the sensor's
// ControlKey, and writes it anew while the sensor reports; `picket status` shows it.
type Unfed struct {
	Time  time.Time   `json:"time"`
	Rules []UnfedRule `json:"rules"` // at most MaxUnfed
	More  int         `json:"more,omitempty"`
}

// UnfedRule is a rule and the event classes and system calls of which it needs one.
type UnfedRule struct {
	Rule  string `json:"rule"`
	Needs string `json:"needs"`
}

// UnfedPrefix begins the keys of Unfed; MaxUnfed bounds its rules, and UnfedValid
// is how long one is true of a sensor that reports no more.
const (
	UnfedPrefix = "unfed."
	MaxUnfed    = 100
	UnfedValid  = 15 * time.Minute
)
