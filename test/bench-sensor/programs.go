package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"picket/test/rig"
)

// programs returns the ids of the BPF programs that the sensor has open,
// itself or by a link.
func programs(s *rig.Sensor) ([]ebpf.ProgramID, error) {
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", s.PID))
	if err != nil {
		return nil, err
	}
	found := map[ebpf.ProgramID]bool{}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // closed meanwhile
		}
		for line := range strings.Lines(string(b)) {
			var id uint32
			if _, err := fmt.Sscanf(line, "prog_id: %d", &id); err == nil {
				found[ebpf.ProgramID(id)] = true
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("the sensor has no BPF program open: its kernel time cannot be measured")
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// programTime returns how long the programs have run while statistics were on.
func programTime(programs []ebpf.ProgramID) (time.Duration, error) {
	var sum time.Duration
	for _, id := range programs {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			return 0, fmt.Errorf("BPF program %d: %w", id, err)
		}
		stats, err := p.Stats()
		p.Close()
		if err != nil {
			return 0, fmt.Errorf("statistics of BPF program %d: %w", id, err)
		}
		sum += stats.Runtime
	}
	return sum, nil
}

// emptyPair attaches an empty program to each end of every system call: what
// any sensor pays that looks at all of them. The caller detaches it.
func emptyPair() (detach func() error, err error) {
	var links []link.Link
	detach = func() error {
		var errs []error
		for _, l := range links {
			errs = append(errs, l.Close())
		}
		return errors.Join(errs...)
	}
	for _, name := range []string{"sys_enter", "sys_exit"} {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "bench_empty", Type: ebpf.RawTracepoint, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("empty program: %w", err), detach())
		}
		l, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: name, Program: p})
		p.Close() // the link holds it
		if err != nil {
			return nil, errors.Join(fmt.Errorf("empty program on %s: %w", name, err), detach())
		}
		links = append(links, l)
	}
	return detach, nil
}
