package auditlogingest

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// id is an event id.
type id = [16]byte

// Remembered is how many event ids the ingester remembers at least, to
// recognise a record that comes again; at most it remembers twice as many
// (about 32 MiB of memory and 6 MiB of disk).
const Remembered = 128 << 10

// memory remembers the newest event ids, on disk too, so that a record that
// was taken before a crash and comes again after it is recognised. It keeps
// two generations: when the newer is full the older is forgotten. Its methods
// are safe for concurrent use.
//
// Generation n is the file known-<n>: knownBytes for each id. Writes survive the
// death of the process; they are not synced.
type memory struct {
	dir string
	max int // ids in a generation
	log *slog.Logger

	mu           sync.Mutex
	newer, older map[id]struct{}
	tags, before map[uint64]struct{} // of newer and older
	file         *os.File
	n            uint64
	broken       bool // the last write failed
}

// openMemory reads what an earlier run remembered in dir.
func openMemory(dir string, max int, log *slog.Logger) (*memory, error) {
	m := &memory{dir: dir, max: max, log: log, newer: map[id]struct{}{}, older: map[id]struct{}{}, tags: map[uint64]struct{}{}, before: map[uint64]struct{}{}}
	paths, err := filepath.Glob(filepath.Join(dir, "known-*"))
	if err != nil {
		return nil, fmt.Errorf("event ids: %w", err)
	}
	slices.Sort(paths) // the numbers have a fixed width
	for i, p := range paths {
		var n uint64
		if _, err := fmt.Sscanf(filepath.Base(p), "known-%016x", &n); err != nil || len(paths)-i > 2 {
			os.Remove(p)
			continue
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, fmt.Errorf("event ids: %w", err)
		}
		m.turn(len(data) / knownBytes)
		m.n = n
		for ; len(data) >= knownBytes; data = data[knownBytes:] {
			k := parseKnown(data)
			m.newer[k.id] = struct{}{}
			m.tags[k.tag] = struct{}{}
		}
	}
	if err := m.open(); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *memory) path(n uint64) string { return filepath.Join(m.dir, fmt.Sprintf("known-%016x", n)) }

// open continues the file of the newer generation. An id that a crash cut off
// is overwritten, so that those behind it stay aligned.
func (m *memory) open() error {
	f, err := os.OpenFile(m.path(m.n), os.O_CREATE|os.O_RDWR, 0o640)
	if err != nil {
		return fmt.Errorf("event ids: %w", err)
	}
	size, err := f.Seek(0, 2)
	if err == nil {
		_, err = f.Seek(size/knownBytes*knownBytes, 0)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("event ids: %w", err)
	}
	m.file = f
	return nil
}

// has reports whether the id is remembered.
func (m *memory) has(x id) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.newer[x]; ok {
		return true
	}
	_, ok := m.older[x]
	return ok
}

// turn makes the newer generation the older, and a new one for n ids.
func (m *memory) turn(n int) {
	m.older, m.newer = m.newer, make(map[id]struct{}, n)
	m.before, m.tags = m.tags, make(map[uint64]struct{}, n)
}

// meet notes the tag of an event that is not remembered, and reports whether
// another of the same tag is.
func (m *memory) meet(tag uint64) (repeated bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, newer := m.tags[tag]
	_, older := m.before[tag]
	m.tags[tag] = struct{}{}
	return newer || older
}

// add remembers ids. That they could not be written is logged once: then a
// crash may let some records through twice.
func (m *memory) add(ks ...known) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range ks {
		m.newer[k.id] = struct{}{}
		if k.tag != 0 {
			m.tags[k.tag] = struct{}{}
		}
	}
	buf := appendKnown(make([]byte, 0, knownBytes*len(ks)), ks...)
	var err error
	if m.broken {
		m.file.Close()
		err = m.open() // behind the last whole id
	}
	if err == nil {
		_, err = m.file.Write(buf)
	}
	if err == nil && len(m.newer) >= m.max {
		m.turn(m.max)
		m.file.Close()
		if m.n > 0 {
			os.Remove(m.path(m.n - 1))
		}
		m.n++
		err = m.open()
	}
	if err != nil && !m.broken {
		m.log.Error("event ids not written; records that come again after a crash may be taken twice", "folder", m.dir, "error", err)
	}
	m.broken = err != nil
}

// close closes the file.
func (m *memory) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.file.Close()
}
