package main

import (
	"testing"

	"picket/schemas"
)

func TestRate(t *testing.T) {
	n := noise{events: 200_000, raised: map[string]*raised{"a": {severity: schemas.Low, n: 50}, "b": {severity: schemas.Medium, n: 1}, "c": {severity: schemas.Critical, n: 2}}}
	if got := n.rate(); got != 1.5 {
		t.Errorf("%g alerts of medium or higher per 100,000 events, want 1.5", got)
	}
}
