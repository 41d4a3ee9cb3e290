package schemas

import "time"

// BucketRules holds the rule pack of a fleet: one key, whose value is the whole
// pack (package rulepack), so that a revision of it is there or is not.
const BucketRules = "picket_rules"

// RulePackKey is the key of the pack.
const RulePackKey = "pack"

// MaxRulePackBytes bounds an encoded pack: NATS' default max_payload is 1 MiB.
const MaxRulePackBytes = 960 << 10

// RulePackRevisions is how many revisions of the pack are kept.
const RulePackRevisions = 16

// RulesStatePrefix begins the keys of BucketState under which each detector
// says what rules it evaluates: a RulesState, written anew every RulesStateEvery
// and deleted when the detector ends. One that is older than three times that
// is of a detector that has died.
const (
	RulesStatePrefix = "rules."
	RulesStateEvery  = 20 * time.Second
)

// ShippedPack is the Source of rules that are neither pushed nor configured.
const ShippedPack = "the pack that comes with Picket"

// RulesState says what rules a detector evaluates.
type RulesState struct {
	Host    string    `json:"host"`
	Updated time.Time `json:"updated"`
	// Source is where the rules are from, in words (ShippedPack); Revision that of
	// the pack in BucketRules, 0 when they are not from there.
	Source   string    `json:"source"`
	Revision uint64    `json:"revision"`
	Loaded   time.Time `json:"loaded"`
	Rules    int       `json:"rules"` // enabled
	Warnings int       `json:"warnings"`
	// Refused is what was found since and not taken, with the reason; nil when
	// the newest that was found is in force.
	Refused *RefusedRules `json:"refused,omitempty"`
}

// RefusedRules are rules that do not load.
type RefusedRules struct {
	Source string    `json:"source"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason"` // a line for each fault, with file, line and column
}
