package rig

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
		a := NewAccount()
		a.Seen["file"], a.Published["file"], a.Delivered["file"], a.Lost["file"] = tt.seen, tt.published, tt.delivered, tt.lost
		err := a.Check()
		if tt.want == "" && err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	if NewAccount().Check() == nil {
		t.Error("a sensor that reports nothing balances")
	}
}
