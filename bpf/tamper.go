package bpf

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

// Check looks at what somebody else with the rights for it can change of a running kernel part: the settings, the watched
// paths, the attachments to cgroup2, the pins. It returns a sentence for each change that it finds, and mends it where
// this process can: settings and paths are written again. The other programs cannot be detached while this process has
// them. It takes about as many system calls as there are watched paths.
func (k *Kernel) Check() ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, errClosed
	}
	var found []string
	config := make([]byte, configBytes)
	if err := k.maps[mapConfig].Lookup(uint32(0), &config); err != nil {
		return nil, fmt.Errorf("reading the programs' settings: %w", err)
	}
	if !bytes.Equal(config, k.config[:]) {
		found = append(found, "somebody else has changed the programs' settings in the kernel (they were written again)")
		if err := k.maps[mapConfig].Put(uint32(0), k.config[:]); err != nil {
			return found, fmt.Errorf("writing the programs' settings: %w", err)
		}
	}
	missing := 0
	var value uint32
	for key := range k.watching {
		if k.maps[mapWatches].Lookup(key, &value) == nil {
			continue
		}
		missing++
		if err := k.maps[mapWatches].Put(key, uint32(1)); err != nil {
			return found, fmt.Errorf("watching a path: %w", err)
		}
	}
	if missing > 0 {
		found = append(found, fmt.Sprintf("somebody else has removed %d entries of the watched paths in the kernel (they were written again)", missing))
	}
	for name := range dnsPrograms {
		l, ok := k.links[name]
		if !ok {
			continue
		}
		info, err := l.Info()
		if err != nil {
			return found, fmt.Errorf("asking for the attachment of %s: %w", name, err)
		}
		if c := info.Cgroup(); c != nil && c.CgroupId == 0 {
			found = append(found, fmt.Sprintf("somebody else has detached program %s from cgroup2: no DNS is seen; start the sensor again", name))
			l.Close()
			delete(k.links, name) // told once
		}
	}
	if _, err := os.Stat(filepath.Join(k.dir, k.run)); err != nil && !k.pinsGone {
		k.pinsGone = true
		found = append(found, fmt.Sprintf("somebody else has removed the pins in %s: what this sensor has not handed on when it ends is lost, and is not counted", filepath.Join(k.dir, k.run)))
	}
	return found, nil
}
