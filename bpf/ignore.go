package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/cilium/ebpf"
)

// Bounds of what can be ignored.
const (
	MaxIgnoredPrograms  = 256
	MaxIgnoredPeers     = 1024
	MaxIgnoredPeerPorts = 4

	programBytes = 256 // of a program's path in the kernel (PROGRAM_BYTES in lib/event.h)
)

// Bits of struct config's ignoring (enum ignore in lib/maps.h).
const (
	ignoreCgroups  uint32 = 1 << 0
	ignorePrograms uint32 = 1 << 1
	ignorePeers    uint32 = 1 << 2
	ignoreDNS      uint32 = 1 << 3
)

// The keys and values of the maps in lib/select.h.
type (
	programKey struct{ Path [programBytes]byte }
	processID  struct {
		StartTime uint64
		TGID      uint32
		Pad       uint32
	}
	mark struct {
		Generation uint32
		Root       uint32
	}
	peerKey struct {
		PrefixBits uint32
		Addr       [16]byte
	}
	peerPorts struct{ Ports [MaxIgnoredPeerPorts]uint16 }
)

// Peer is the other end of connections: all addresses of a network, and of them one port or, with 0, all.
type Peer struct {
	Network netip.Prefix
	Port    uint16
}

// ignoring sets or clears a bit of what is looked up before an event. k.mu is held.
func (k *Kernel) ignoring(bit uint32, on bool) error {
	bits := binary.LittleEndian.Uint32(k.config[configIgnoring:]) &^ bit
	if on {
		bits |= bit
	}
	return k.set(configIgnoring, bits)
}

// SetIgnoredPeers replaces the set of peers: connects and datagrams to them, and connections accepted from them, are no
// events. Of networks that contain each other the smallest counts. At most MaxIgnoredPeers networks of
// MaxIgnoredPeerPorts ports each.
func (k *Kernel) SetIgnoredPeers(peers []Peer) error {
	want := map[peerKey]peerPorts{}
	for _, p := range peers {
		if !p.Network.IsValid() {
			return errors.New("a network is not valid")
		}
		bits := p.Network.Bits()
		if p.Network.Addr().Is4() {
			bits += 96
		}
		key := peerKey{uint32(bits), p.Network.Masked().Addr().As16()}
		ports, known := want[key]
		switch n := len(nonZero(ports.Ports[:])); {
		case known && (p.Port == 0 || n == 0):
			ports = peerPorts{} // all of them
		case p.Port != 0 && n == MaxIgnoredPeerPorts:
			return fmt.Errorf("more than %d ports of %s", MaxIgnoredPeerPorts, p.Network)
		case p.Port != 0:
			ports.Ports[n] = p.Port
		}
		want[key] = ports
	}
	if len(want) > MaxIgnoredPeers {
		return fmt.Errorf("%d networks of peers; at most %d can be ignored", len(want), MaxIgnoredPeers)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	if err := replace(k.maps[objectMapIgnoredPeers], want); err != nil {
		return fmt.Errorf("ignoring peers: %w", err)
	}
	return k.ignoring(ignorePeers, len(want) > 0)
}

func nonZero(ports []uint16) []uint16 {
	for i, p := range ports {
		if p == 0 {
			return ports[:i]
		}
	}
	return ports
}

// SetIgnoredPrograms replaces the set of programs by their executables' absolute paths, as processes see them: after its
// exec, what such a process and all that descends from it do is no event. Marks of the set before are void: see
// IgnoreProcess. At most MaxIgnoredPrograms paths of at most 255 bytes.
func (k *Kernel) SetIgnoredPrograms(paths []string) error {
	want := map[programKey]uint32{}
	for _, p := range paths {
		if !strings.HasPrefix(p, "/") || len(p) >= programBytes || strings.ContainsRune(p, 0) {
			return fmt.Errorf("program %q: use an absolute path of at most %d bytes", p, programBytes-1)
		}
		var key programKey
		copy(key.Path[:], p)
		want[key] = 1
	}
	if len(want) > MaxIgnoredPrograms {
		return fmt.Errorf("%d programs; at most %d can be ignored", len(want), MaxIgnoredPrograms)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	if err := replace(k.maps[objectMapIgnoredPrograms], want); err != nil {
		return fmt.Errorf("ignoring programs: %w", err)
	}
	k.generation = binary.LittleEndian.Uint32(k.config[configGeneration:]) + 1
	if err := k.set(configGeneration, k.generation); err != nil {
		return err
	}
	// Marks of before take room.
	if err := replace(k.maps[objectMapIgnoredProcesses], map[processID]mark{}); err != nil {
		return fmt.Errorf("ignoring programs: %w", err)
	}
	return k.ignoring(ignorePrograms, len(want) > 0)
}

// IgnoreProcess marks a process that was there before SetIgnoredPrograms; root says that it runs one of the programs
// itself, and does not only descend from one that does.
func (k *Kernel) IgnoreProcess(tgid uint32, startTime uint64, root bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	m := mark{Generation: k.generation}
	if root {
		m.Root = 1
	}
	if err := k.maps[objectMapIgnoredProcesses].Put(processID{StartTime: startTime, TGID: tgid}, m); err != nil {
		return fmt.Errorf("ignoring process %d: %w", tgid, err)
	}
	return nil
}

// SetIgnoringCgroups says whether there are cgroups to ignore, and forgets those of before: see IgnoreCgroup.
func (k *Kernel) SetIgnoringCgroups(on bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	if err := replace(k.maps[objectMapIgnoredCgroups], map[uint64]uint32{}); err != nil {
		return fmt.Errorf("ignoring cgroups: %w", err)
	}
	return k.ignoring(ignoreCgroups, on)
}

// IgnoreCgroup makes what happens in a cgroup no event, as long as it is among the 16,384 last used ones of those that
// are ignored.
func (k *Kernel) IgnoreCgroup(id uint64) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	if err := k.maps[objectMapIgnoredCgroups].Put(id, uint32(1)); err != nil {
		return fmt.Errorf("ignoring cgroup %d: %w", id, err)
	}
	return nil
}

// SetIgnoreDNS says that DNS messages are no events.
func (k *Kernel) SetIgnoreDNS(on bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return errClosed
	}
	return k.ignoring(ignoreDNS, on)
}

// replace makes a map hold what is wanted, and nothing else; what was there and stays is never missing.
func replace[K comparable, V comparable](m *ebpf.Map, want map[K]V) error {
	var stale []K
	var key K
	var value V
	have := map[K]V{}
	it := m.Iterate()
	for it.Next(&key, &value) {
		have[key] = value
		if _, ok := want[key]; !ok {
			stale = append(stale, key)
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return err
	}
	for _, key := range stale {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	for key, v := range want {
		if old, ok := have[key]; !ok || old != v {
			if err := m.Put(key, v); err != nil {
				return err
			}
		}
	}
	return nil
}
