package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"path"
	"strings"

	"github.com/cilium/ebpf"
)

// MaxWatches bounds the number of watched paths.
const MaxWatches = 1024

// watchBytes is the length of a key's path in the kernel (WATCH_BYTES in lib/maps.h).
const watchBytes = 256

// watchHash is WATCH_HASH of lib/event.h.
const watchHash = 0x1e3779b1

// watchKey is struct watch_key of lib/maps.h.
type watchKey struct {
	PrefixBits uint32
	Path       [watchBytes]byte
}

// watchKeys returns the keys of one watched path. The kernel looks up the longest key that a file's path,
// ended by a NUL byte, begins with. So a directory is two keys: "/etc/ssh\0" is itself, "/etc/ssh/" all
// that is in it, and neither matches /etc/sshd.
func watchKeys(p string) ([]watchKey, error) {
	switch {
	case !strings.HasPrefix(p, "/"):
		return nil, fmt.Errorf("watched path %q is not absolute", p)
	case strings.ContainsRune(p, 0):
		return nil, fmt.Errorf("watched path %q has a NUL byte", p)
	}
	p = path.Clean(p)
	if len(p) >= watchBytes {
		return nil, fmt.Errorf("watched path %q has %d bytes; at most %d can be watched", p, len(p), watchBytes-1)
	}
	if p == "/" {
		return []watchKey{newWatchKey("/")}, nil
	}
	return []watchKey{newWatchKey(p + "\x00"), newWatchKey(p + "/")}, nil
}

func newWatchKey(p string) watchKey {
	k := watchKey{PrefixBits: uint32(len(p)) * 8}
	copy(k.Path[:], p)
	return k
}

// beginnings say what watched paths begin with, so that the kernel looks up few others: see may_be_watched in file.h.
type beginnings struct {
	watching, short uint32
	eight           [32]uint64
}

func (s *beginnings) add(k watchKey) {
	four := uint32(math.MaxUint32) // shorter than what is hashed
	if k.PrefixBits >= 32 {
		four = 1 << (binary.LittleEndian.Uint32(k.Path[:]) * watchHash >> 27)
	}
	s.watching |= four
	if k.PrefixBits < 64 {
		s.short |= four
		return
	}
	n := binary.LittleEndian.Uint64(k.Path[:]) * watchHash >> 53
	s.eight[n>>6] |= 1 << (n & 63)
}

// SetWatchedPaths replaces the set of paths under which opening a file for reading is an event too: files
// themselves, or directories with all that is in them at any depth. At most MaxWatches absolute paths of at
// most 255 bytes, as processes see them, symbolic links resolved. On an error nothing has changed, except
// when the kernel refuses a key, which leaves some of the new paths watched beside all old ones.
func (k *Kernel) SetWatchedPaths(paths []string) error {
	if len(paths) > MaxWatches {
		return fmt.Errorf("%d watched paths; at most %d can be watched", len(paths), MaxWatches)
	}
	want := make(map[watchKey]struct{}, 2*len(paths))
	for _, p := range paths {
		keys, err := watchKeys(p)
		if err != nil {
			return err
		}
		for _, key := range keys {
			want[key] = struct{}{}
		}
	}

	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	watches := k.maps[mapWatches]
	var stale []watchKey
	var key watchKey
	var value uint32
	have := make(map[watchKey]bool)
	for it := watches.Iterate(); it.Next(&key, &value); {
		have[key] = true
		if _, ok := want[key]; !ok {
			stale = append(stale, key)
		}
	}
	// Room first where old and new together would not fit; otherwise nothing watched is left out meanwhile.
	if len(stale)+len(want) > int(watches.MaxEntries()) {
		if err := deleteWatches(watches, stale); err != nil {
			return err
		}
		stale = nil
	}
	for key := range want {
		if have[key] {
			continue
		}
		if err := watches.Put(key, uint32(1)); err != nil {
			return fmt.Errorf("watching a path: %w", err)
		}
	}
	var begin beginnings
	for key := range want {
		begin.add(key)
	}
	for i, bits := range begin.eight {
		binary.LittleEndian.PutUint64(k.config[configBeginnings+8*i:], bits)
	}
	binary.LittleEndian.PutUint32(k.config[configShort:], begin.short)
	if err := k.set(configWatching, begin.watching); err != nil {
		return err
	}
	if err := deleteWatches(watches, stale); err != nil {
		return err
	}
	k.watching = want
	return nil
}

func deleteWatches(m *ebpf.Map, keys []watchKey) error {
	for _, key := range keys {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("no longer watching a path: %w", err)
		}
	}
	return nil
}
