package auditlogingest

import (
	"testing"
	"time"
)

// TestRecallAfterPause says what is remembered when a source was not read for a
// while: what it goes over again, late records among it, must be known.
func TestRecallAfterPause(t *testing.T) {
	begin := time.Now()
	for _, tt := range []struct {
		name   string
		batch  time.Duration // between batches
		n      int
		pause  time.Duration // before the last batch
		former bool          // the ids before it are a former owner's
		forgot int           // batches
	}{
		{"read all the time", 10 * time.Second, 121, 0, false, 0},
		{"longer than ids are kept", 10 * time.Second, 127, 0, false, 6},
		{"the cloud away for a day", 10 * time.Second, 100, 24 * time.Hour, false, 0},
		{"no ingester for a day", 10 * time.Second, 100, 24 * time.Hour, true, 0},
	} {
		r, now := newRecall(), begin
		for i := range tt.n {
			if now = now.Add(tt.batch); i == tt.n-1 {
				now = now.Add(tt.pause)
				if tt.former {
					r.last = time.Time{}
				}
			}
			r.segments = append(r.segments, &segment{at: r.stamp(now), entries: []known{{}}})
			r.count++
		}
		old, _, early := r.expired()
		if len(old) != tt.forgot || early != 0 {
			t.Errorf("%s: %d batches of ids forgotten, want %d; %d for want of room", tt.name, len(old), tt.forgot, early)
		}
	}
}
