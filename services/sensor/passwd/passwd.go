// Package passwd names the host's users and groups. Names are read from the
// files themselves, not through the system's resolver: a lookup on the event
// path must not wait for a directory server.
package passwd

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// recheck is how often a file's modification time is looked at.
const recheck = 5 * time.Second

// maxEntries bounds what is read of a file.
const maxEntries = 1 << 17

// Names maps the ids of one file (/etc/passwd or /etc/group) to names. It is
// safe for concurrent use.
type Names struct {
	path string

	mu      sync.Mutex
	names   map[uint32]string
	checked time.Time
	changed time.Time
}

// Open returns the names in the file at path; a missing file has none.
func Open(path string) *Names { return &Names{path: path} }

// Name returns the name of id, or "".
func (n *Names) Name(id uint32) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now := time.Now(); now.Sub(n.checked) > recheck {
		n.checked = now
		if st, err := os.Stat(n.path); err != nil {
			n.names, n.changed = nil, time.Time{}
		} else if !st.ModTime().Equal(n.changed) {
			n.names, n.changed = load(n.path), st.ModTime()
		}
	}
	return n.names[id]
}

func load(path string) map[uint32]string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	names := map[uint32]string{}
	for s := bufio.NewScanner(f); s.Scan() && len(names) < maxEntries; {
		// name:password:id:…, in passwd(5) and group(5) alike
		p := strings.SplitN(s.Text(), ":", 4)
		if len(p) < 3 {
			continue
		}
		id, err := strconv.ParseUint(p[2], 10, 32)
		if _, known := names[uint32(id)]; err == nil && !known {
			names[uint32(id)] = p[0]
		}
	}
	return names
}
