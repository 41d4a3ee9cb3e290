package store

import (
	"testing"
	"time"

	"picket/schemas"
)

func TestEveryClass(t *testing.T) {
	w := newWorld(t)
	r := w.start(nil)
	for range 20 {
		for _, c := range schemas.Classes() {
			w.publish(message{class: c, rows: 50})
		}
	}
	w.settled(20 * time.Second)
	for _, c := range schemas.Classes() {
		w.want(c.Table(), 1000)
	}
	r.stop()
	for _, c := range schemas.Classes() {
		if got := r.metric("picket_sink_inserted_rows_total", c.Table()); got != 1000 {
			t.Errorf("%s: %v rows counted", c, got)
		}
		if got := r.metric("picket_sink_pending_rows", c.Table()); got != 0 {
			t.Errorf("%s: %v rows pending", c, got)
		}
		if l := w.ledgerOf("sink", c.Table()); len(l.Plans) != 0 {
			t.Errorf("%s: plans left: %+v", c, l.Plans)
		}
	}
	if n := r.metric("picket_sink_lookups_total"); n != 0 {
		t.Errorf("%v lookups without need", n)
	}
	if r.held != 0 {
		t.Errorf("%d bytes still held", r.held)
	}
}
