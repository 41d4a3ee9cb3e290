package passwd

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestNames(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passwd")
	n := Open(path)
	if got := n.Name(0); got != "" {
		t.Errorf("missing file: %q", got)
	}
	write := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		n.checked = time.Time{} // as after recheck
		n.changed = time.Time{}
	}
	write("root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:\nbroken\nbad:x:no:0\nalice:x:1000:1000::/home/alice:/bin/bash\n")
	for id, want := range map[uint32]string{0: "root", 1000: "alice", 7: ""} {
		if got := n.Name(id); got != want {
			t.Errorf("%d is %q, want %q", id, got, want)
		}
	}
	write("bob:x:1000:1000::/home/bob:/bin/bash\n")
	if got := n.Name(1000); got != "bob" {
		t.Errorf("after a change: %q", got)
	}
}
