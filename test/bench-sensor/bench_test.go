package main

import (
	"strings"
	"testing"
)

func TestAccount(t *testing.T) {
	for _, tt := range []struct {
		name                             string
		seen, published, delivered, lost uint64
		want                             string // "" balances
	}{
		{"all delivered", 10, 10, 10, 0, ""},
		{"a loss that is counted", 10, 7, 7, 3, ""},
		{"a loss that is not counted", 10, 7, 7, 0, "the kernel saw 10 events; 7 are published"},
		{"not in JetStream", 10, 10, 9, 0, "(9 of them in JetStream)"},
		{"twice in JetStream", 10, 10, 11, 0, "(11 of them in JetStream)"},
		{"counted as lost and delivered", 10, 10, 10, 1, "1 counted as lost"},
	} {
		a := newAccount()
		a.seen["file"], a.published["file"], a.delivered["file"], a.lost["file"] = tt.seen, tt.published, tt.delivered, tt.lost
		err := a.check()
		if tt.want == "" && err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	if newAccount().check() == nil {
		t.Error("a sensor that reports nothing balances")
	}
}

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
