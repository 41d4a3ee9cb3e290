package bpf

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// TestCheck: what somebody else changes is noticed, and what can be is mended.
func TestCheck(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.k.SetWatchedPaths([]string{secret}); err != nil {
		t.Fatal(err)
	}
	check := func(what string, want ...string) {
		t.Helper()
		found, err := c.k.Check()
		if err != nil || len(found) != len(want) {
			t.Fatalf("%s: %q, %v", what, found, err)
		}
		for i, w := range want {
			if !strings.Contains(found[i], w) {
				t.Errorf("%s: %q, want %q", what, found[i], w)
			}
		}
	}
	reads := func() bool {
		pid := run(t, helper(t, "read", secret))
		c.settle(t)
		return slices.Contains(told(c, pid), "open")
	}
	check("nothing")
	pins := filepath.Join(c.k.dir, c.k.run)
	pinned := func(name string) *ebpf.Map {
		m, err := ebpf.LoadPinnedMap(mapPin(pins, name), nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
	config := make([]byte, configBytes)
	m := pinned(mapConfig)
	if err := m.Lookup(uint32(0), &config); err != nil {
		t.Fatal(err)
	}
	config[configStopped] = 1
	if err := m.Put(uint32(0), config); err != nil {
		t.Fatal(err)
	}
	check("stopped", "changed the programs' settings")
	check("mended")
	if !reads() {
		t.Error("after the settings were written again nothing is seen")
	}
	var key watchKey
	var value uint32
	for it, w := pinned(mapWatches).Iterate(), pinned(mapWatches); it.Next(&key, &value); {
		if err := w.Delete(key); err != nil {
			t.Fatal(err)
		}
	}
	if reads() {
		t.Error("a path that is no longer watched is seen")
	}
	check("watches", "removed 2 entries of the watched paths")
	if !reads() {
		t.Error("after the watches were written again nothing is seen")
	}
	l, err := link.LoadPinnedLink(linkPin(pins, objectProgPicketDnsIn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Detach(); err != nil {
		t.Fatal(err)
	}
	check("detached", "detached program picket_dns_in")
	check("told once")
	if err := os.Rename(pins, pins+"-away"); err != nil {
		t.Fatal(err)
	}
	check("pins", "removed the pins")
	check("told once, too")
	if err := os.Rename(pins+"-away", pins); err != nil {
		t.Fatal(err)
	}
}

func init() {
	helpers["read"] = func(args []string) error {
		_, err := os.ReadFile(args[0])
		return err
	}
}
