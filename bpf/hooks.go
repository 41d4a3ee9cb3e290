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

// hooks are the programs of hooks.h and creds.h, in the order of their functions' names. They make what is told exact, and no
// kernel is required to let them run.
var hooks = []struct {
	program, function string
	params            int // that the function has where the program understands it
}{
	{objectProgPicketCommitCreds, "commit_creds", 1},
	{objectProgPicketIoLinkat, "io_linkat", 2},
	{objectProgPicketIoMkdirat, "io_mkdirat", 2},
	{objectProgPicketIoRenameat, "io_renameat", 2},
	{objectProgPicketIoSymlinkat, "io_symlinkat", 2},
	{objectProgPicketIoUnlinkat, "io_unlinkat", 2},
	{objectProgPicketMoveMount, "security_move_mount", 2},
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
	{objectProgPicketSbMount, "security_sb_mount", 5},
	{objectProgPicketSbPivotroot, "security_sb_pivotroot", 2},
	{objectProgPicketSbUmount, "security_sb_umount", 2},
	{objectProgPicketPathUtimes, "vfs_utimes", 2},
}

// hooksOfKernel is asked once in a process: the kernel does not change, and each question makes it patch its code.
var hooksOfKernel struct {
	sync.Mutex
	asked    bool
	programs []string
}

// probeHooks returns the programs whose functions are there and take what the program understands, and lets itself be
// told by the kernel that it loads a program for each, and attaches the first: some refuse it to everybody, which nothing
// else shows. Why is the kernel's own affair: the text is told then.
func probeHooks(types *btf.Spec) []string {
	p := &hooksOfKernel
	p.Lock()
	defer p.Unlock()
	if p.asked {
		return p.programs
	}
	p.asked = true
	for _, h := range hooks {
		var f *btf.Func
		if types.TypeByName(h.function, &f) != nil {
			continue // inlined, or left out by the kernel's configuration
		}
		if proto, ok := f.Type.(*btf.FuncProto); !ok || len(proto.Params) != h.params {
			continue
		}
		prog, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
			Name: "picket_probe", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFEntry, AttachTo: h.function,
			License: "Dual BSD/GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		}, ebpf.ProgramOptions{KernelTypes: types, LogDisabled: true})
		if err != nil {
			continue
		}
		if len(p.programs) == 0 {
			var l link.Link
			if l, err = link.AttachTracing(link.TracingOptions{Program: prog}); err == nil {
				l.Close()
			}
		}
		prog.Close()
		if err != nil {
			break // what attaches to none attaches to no other
		}
		p.programs = append(p.programs, h.program)
	}
	return p.programs
}

// setHooks leaves of the programs of hooks.h and uring.h those that run, and makes room for what they note.
func setHooks(spec *ebpf.CollectionSpec, o offers) error {
	for _, h := range hooks {
		if !slices.Contains(o.hooks, h.program) {
			delete(spec.Programs, h.program)
		}
	}
	if o.uringSubmit == "" {
		delete(spec.Programs, objectProgPicketUringSubmit)
		if len(o.hooks) == 0 {
			return nil
		}
	} else {
		spec.Programs[objectProgPicketUringSubmit].AttachTo = o.uringSubmit
	}
	if err := spec.Variables[objectVarEveryCommit].Set(o.everyCommit); err != nil {
		return fmt.Errorf("preparing the compiled programs: %w", err)
	}
	spec.Maps[objectMapNoted].MaxEntries = maxNoted
	if err := spec.Variables[objectVarNoting].Set(true); err != nil {
		return fmt.Errorf("preparing the compiled programs: %w", err)
	}
	return nil
}

// maxNoted calls can be between a hook and their end at a time, as when a file server does not answer, and requests
// through io_urings between their submission and their end. Of more calls the text is told, and of more requests no name;
// each is counted (ErrorStorage). An entry takes 17 KB of kernel memory.
const maxNoted = 128

// Hooks returns the kernel's functions that programs are attached to, sorted by name; none where the kernel lets nobody
// attach to its functions. At most of them paths are taken, at commit_creds changes of credentials without a call. Without one the events that it is for have the caller's text ([PathUser]).
func (k *Kernel) Hooks() []string {
	has, _ := k.hooks()
	return has
}

func (k *Kernel) hooks() (has, lacks []string) {
	for _, h := range hooks {
		if slices.Contains(k.offers.hooks, h.program) {
			has = append(has, h.function)
		} else {
			lacks = append(lacks, h.function)
		}
	}
	return has, lacks
}

// Offers returns what the kernel has of that which not every kernel has, and what it lacks: the functions of [Kernel.Hooks],
// or "fentry" where it has none of them, and tracepoints.
func (k *Kernel) Offers() (has, lacks []string) {
	has, lacks = k.hooks()
	if len(has) == 0 {
		lacks = []string{"fentry"}
	}
	for _, t := range []struct {
		name string
		has  bool
	}{{"io_uring_complete", k.offers.uring}, {"io_uring_submit_req", k.offers.uringSubmit != ""}} {
		if t.has {
			has = append(has, t.name)
		} else {
			lacks = append(lacks, t.name)
		}
	}
	return has, lacks
}
