package containerid

import (
	"os"
	"testing"
)

// TestCacheIsBounded: what goes for want of room is counted, and found again.
func TestCacheIsBounded(t *testing.T) {
	r, err := NewResolver()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// No cgroup has such an id: it is the process that is asked.
	const first, surplus = uint64(1) << 60, 100
	me := uint32(os.Getpid())
	for id := first; id < first+cacheSize+surplus; id++ {
		if _, ok := r.Resolve(id, me); !ok {
			t.Fatalf("the test's own cgroup is not found (id %d)", id)
		}
	}
	if n := r.Evicted(); n != surplus || r.cache.Len() != cacheSize {
		t.Errorf("%d evictions counted, %d kept", n, r.cache.Len())
	}
	if _, ok := r.Resolve(first+surplus, 0); !ok || r.Evicted() != surplus {
		t.Error("one that was kept is not known any more")
	}
	if _, ok := r.Resolve(first, 0); ok {
		t.Error("one that was pushed out is known, of a process that does not exist")
	}
}
