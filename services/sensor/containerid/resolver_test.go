package containerid

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// makeCgroup makes the cgroup of a container, below one of the test's own, and
// returns its directory, path and id.
func makeCgroup(t *testing.T, h Hierarchy, name string) (dir, path string, id uint64) {
	t.Helper()
	parts := []string{fmt.Sprintf("picket-test-%d", os.Getpid()), "pod" + uid, name}
	dir = h.Mount
	for _, p := range parts {
		dir = filepath.Join(dir, p)
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
		made := dir
		t.Cleanup(func() { os.Remove(made) })
	}
	st, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, "/" + filepath.Join(parts...), inode(st)
}

// TestResolver asks each hierarchy of this machine.
func TestResolver(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED (needs root): no cgroup was made, so none was resolved")
	}
	node, err := NodeHierarchy()
	if err != nil {
		t.Fatal(err)
	}
	hierarchies := []Hierarchy{node}
	if node.Controller != "" {
		if two, err := Cgroup2(); err == nil {
			hierarchies = append(hierarchies, two)
		}
	}
	for _, h := range hierarchies {
		t.Run(h.String(), func(t *testing.T) {
			old, _, oldID := makeCgroup(t, h, id)
			r, err := NewResolver(h)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			remove := func(dir string) {
				if err := os.Remove(dir); err != nil {
					t.Fatal(err)
				}
			}
			expect := func(what string, cgroup uint64, pid int, want Info, ok bool) {
				t.Helper()
				if got, known := r.Resolve(cgroup, uint32(pid)); got != want || known != ok {
					t.Errorf("%s: %+v %v, want %+v %v", what, got, known, want, ok)
				}
			}
			remove(old)
			expect("a cgroup older than the resolver, gone since", oldID, 0, Info{ContainerID: id, PodUID: uid}, true)

			young, _, youngID := makeCgroup(t, h, id2)
			expect("a younger one, by its id", youngID, 0, Info{ContainerID: id2, PodUID: uid}, true)
			remove(young)
			expect("and known when it is gone", youngID, 0, Info{ContainerID: id2, PodUID: uid}, true)

			short, path, shortID := makeCgroup(t, h, id2)
			remove(short)
			expect("one that nobody saw, with a process that is elsewhere", shortID, os.Getpid(), Info{}, false)
			r.Add(shortID, "")
			expect("an empty path says nothing", shortID, 0, Info{}, false)
			r.Add(shortID, path)
			expect("one that the kernel told of", shortID, 0, Info{ContainerID: id2, PodUID: uid}, true)
		})
	}
}

// TestCacheIsBounded: what goes for want of room is counted.
func TestCacheIsBounded(t *testing.T) {
	h, err := NodeHierarchy()
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewResolver(h)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	known := uint64(r.cache.Len())
	// No cgroup has such an id.
	const first, surplus = uint64(1) << 60, 100
	for i := range cacheSize - known + surplus {
		r.Add(first+i, "/docker/"+id)
	}
	if n := r.Evicted(); n != surplus || r.cache.Len() != cacheSize {
		t.Errorf("%d evictions counted, want %d; %d kept", n, surplus, r.cache.Len())
	}
}
