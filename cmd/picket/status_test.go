package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"picket/internal/natsserver/natstest"
	"picket/schemas"
)

// TestStatusUnfed: status names the rules that sensors leave without events, and
// forgets what was said of a sensor that is gone.
func TestStatusUnfed(t *testing.T) {
	b := natstest.Connect(t, natstest.Start(t), schemas.ServiceAdmin)
	kv, err := b.JS.KeyValue(t.Context(), schemas.BucketState)
	if err != nil {
		t.Fatal(err)
	}
	show := func() string {
		t.Helper()
		var out strings.Builder
		if err := unfed(t.Context(), b, &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if got := show(); got != "" {
		t.Errorf("without any: %q", got)
	}
	put := func(node string, u schemas.Unfed) {
		t.Helper()
		value, err := json.Marshal(u)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kv.Put(t.Context(), schemas.UnfedPrefix+schemas.ControlKey("prod.eu", node), value); err != nil {
			t.Fatal(err)
		}
	}
	rule := []schemas.UnfedRule{{Rule: "Key\x1b read", Needs: "open, openat"}}
	put("node-1", schemas.Unfed{Time: time.Now(), Rules: rule, More: 2})
	put("gone", schemas.Unfed{Time: time.Now().Add(-time.Hour), Rules: rule})
	const want = `CLUSTER  NODE    RULE WITHOUT EVENTS  ITS SENSOR LEAVES OUT
prod_eu  node-1  Key\x1b read         open, openat
prod_eu  node-1  and 2 more

`
	if got := show(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestCut(t *testing.T) {
	if got := cut(strings.Repeat("é", maxAncestor)); got != strings.Repeat("é", maxAncestor) {
		t.Error(got)
	}
	if got := cut(strings.Repeat("é", maxAncestor+1)); got != strings.Repeat("é", maxAncestor)+"…" {
		t.Error(got)
	}
}
