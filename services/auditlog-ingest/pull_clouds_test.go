package auditlogingest

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"picket/internal/bus"
	"picket/services/auditlog-ingest/source"
)

// harried lets two ingesters share a cloud's sources until so many records are
// in PICKET_RAW. Each dies after a random number of steps of its work, at most
// longest, and is replaced, but for the last two. It returns the subject of each
// record by its audit id. That a record was published twice, that some do not
// come, or that no ingester died, is an error.
func harried(t *testing.T, open func() (source.Provider, error), records, longest int, rnd *rand.Rand) map[string]string {
	t.Helper()
	const most = 8
	longest = max(2, longest*pulled/100_000)
	began := time.Now()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	b := connect(t, url)
	died := make(chan struct{}, most)
	begin := func(life int) {
		p, err := open()
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		startReplica(t, url, p, func(r *replica, _ string) {
			mu.Lock()
			defer mu.Unlock()
			if life--; life == 0 {
				r.kill()
				died <- struct{}{}
			}
		})
	}
	begin(1 + rnd.IntN(longest))
	begin(1 + rnd.IntN(longest))
	subjects, last, deaths := map[string]string{}, uint64(0), 0
	for end := time.Now().Add(4 * time.Minute); len(subjects) < records; time.Sleep(50 * time.Millisecond) {
		for _, p := range readRawFrom(t, b, &last) {
			if subjects[p.auditID] != "" {
				t.Fatalf("%s was published twice", p.auditID)
			}
			subjects[p.auditID] = p.subject
		}
		select {
		case <-died:
			if deaths++; deaths < most-1 {
				begin(1 + rnd.IntN(longest))
			} else {
				begin(0) // lives on
			}
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d records", len(subjects), records)
		}
	}
	if deaths == 0 && pulled == 100_000 { // with fewer it can end before the first dies
		t.Error("no ingester was killed")
	}
	t.Logf("%d records once each in %.1f s, %d ingesters killed", records, time.Since(began).Seconds(), deaths)
	return subjects
}
