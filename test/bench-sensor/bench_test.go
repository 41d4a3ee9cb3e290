package main

import "testing"

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		limit  limit
		want   bool
	}{
		{[]float64{9, 1.1, 0}, limit{atMost, 1.10}, true},     // the median
		{[]float64{1.104}, limit{atMost, 1.10}, true},         // two digits
		{[]float64{1.106}, limit{atMost, 1.10}, false},        //
		{[]float64{1.6}, limit{below, 1.6}, false},            //
		{[]float64{1.5, 1.6}, limit{below, 1.6}, true},        // the mean of the two in the middle
		{[]float64{0, 0, 1}, limit{always, 0}, false},         // not one of them may
		{[]float64{0, 0, 0}, limit{always, 0}, true},          //
		{[]float64{1e9}, most(0, atMost), true},               // no limit
		{[]float64{0.21, 0.1, 0.3}, most(0.2, atMost), false}, // and not the smallest
	} {
		if got := (line{values: tt.values, limit: tt.limit}).met(); got != tt.want {
			t.Errorf("%v within %v: %v", tt.values, tt.limit, got)
		}
	}
}
