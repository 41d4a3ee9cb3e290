package schemas

import "time"

// IngesterPrefix begins the keys in BucketCheckpoints under which the ingesters
// say that they are there; the value is an Ingester as JSON.
const IngesterPrefix = "live.ingester."

// Ingester is what an ingester says of itself every few seconds.
type Ingester struct {
	Host    string    `json:"host"`
	Started time.Time `json:"started"`
	At      time.Time `json:"at"`
	// Can are hashes of the names of the shared sources that it may read.
	Can     []uint64       `json:"can,omitempty"`
	Sources []SourceReport `json:"sources"`
}

// SourceReport is what an ingester says of a source that it reads now.
type SourceReport struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Records uint64 `json:"records"` // since the ingester has it
	// Rate is records a second, of the last minute.
	Rate float64 `json:"rate"`
	// Newest is the time of the newest event, zero before the first; Last is
	// when a record came last.
	Newest time.Time `json:"newest"`
	Last   time.Time `json:"last"`
	// CloudDelay is how long the cloud took with the newest record; 0 if it does
	// not say.
	CloudDelay time.Duration `json:"cloud_delay"`
	// Backfill is how much of the way to the present is done, 0 to 1, and Expected
	// when it will be; both zero for a source that is not far behind.
	Backfill float64   `json:"backfill,omitempty"`
	Expected time.Time `json:"expected,omitzero"`
	Alert    string    `json:"alert,omitempty"` // LossSourceLate or LossSourceSilent
}
