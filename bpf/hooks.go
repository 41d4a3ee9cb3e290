package bpf

import (
	"fmt"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

// hooks are the programs of hooks.h, in the order of their functions' names. They make what is told exact, and no
// kernel is required to let them run.
var hooks = []struct {
	program, function string
	params            int // that the function has where the program understands it
}{
	{objectProgPicketPathChmod, "security_path_chmod", 2},
	{objectProgPicketPathChown, "security_path_chown", 3},
	{objectProgPicketPathLink, "security_path_link", 3},
	{objectProgPicketPathMkdir, "security_path_mkdir", 3},
	{objectProgPicketPathMknod, "security_path_mknod", 4},
	{objectProgPicketPathRename, "security_path_rename", 5},
	{objectProgPicketPathRmdir, "security_path_rmdir", 2},
	{objectProgPicketPathSymlink, "security_path_symlink", 3},
	{objectProgPicketPathTruncate, "security_path_truncate", 1},
	{objectProgPicketPathUnlink, "security_path_unlink", 2},
	{objectProgPicketPathUtimes, "vfs_utimes", 2},
}

// hooksOfKernel is asked once in a process: the kernel does not change, and each question makes it patch its code.
var hooksOfKernel struct {
	sync.Mutex
	asked    bool
	programs []string
}

// probeHooks returns the programs whose functions are there, and lets itself be told by the kernel that it attaches to
// each: some refuse it to everybody, which nothing else shows.
func probeHooks(types *btf.Spec) []string {
	p := &hooksOfKernel
	p.Lock()
	defer p.Unlock()
	if p.asked {
		return p.programs
	}
	for _, h := range hooks {
		var f *btf.Func
		if types.TypeByName(h.function, &f) != nil {
			continue // inlined, or left out by the kernel's configuration
		}
		if proto, ok := f.Type.(*btf.FuncProto); ok && len(proto.Params) == h.params && attaches(types, h.function) {
			p.programs = append(p.programs, h.program)
		}
	}
	p.asked = true
	return p.programs
}

// attaches tries it with a program that does nothing. Why not is the kernel's own affair: the text is told then.
func attaches(types *btf.Spec, function string) bool {
	prog, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name: "picket_probe", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFEntry, AttachTo: function,
		License: "Dual BSD/GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	}, ebpf.ProgramOptions{KernelTypes: types, LogDisabled: true})
	if err != nil {
		return false
	}
	defer prog.Close()
	l, err := link.AttachTracing(link.TracingOptions{Program: prog})
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// setHooks leaves of the programs of hooks.h those that run, and makes room for what they note.
func setHooks(spec *ebpf.CollectionSpec, run []string) error {
	for _, h := range hooks {
		if !slices.Contains(run, h.program) {
			delete(spec.Programs, h.program)
		}
	}
	if len(run) == 0 {
		return nil
	}
	spec.Maps[objectMapResolved].MaxEntries = maxResolved
	if err := spec.Variables[objectVarHooked].Set(true); err != nil {
		return fmt.Errorf("preparing the compiled programs: %w", err)
	}
	return nil
}

// maxResolved calls can be between a hook and their end at a time, as when a file server does not answer; of more the
// text is told, and each is counted (ErrorStorage). An entry takes 9 KB of kernel memory.
const maxResolved = 256

// Hooks returns the kernel's functions at which paths are taken, sorted by name; none where the kernel lets nobody
// attach to its functions. Without one the events that it is for have the caller's text ([PathUser]).
func (k *Kernel) Hooks() []string {
	var out []string
	for _, h := range hooks {
		if slices.Contains(k.offers.hooks, h.program) {
			out = append(out, h.function)
		}
	}
	return out
}
