package bpf

import "golang.org/x/sys/unix"

// calls names the system calls of path events that every 64-bit architecture has; oldCalls those that only
// some have.
var calls = map[uint32]string{
	unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_MKDIRAT: "mkdirat",
	unix.SYS_LINKAT: "linkat", unix.SYS_SYMLINKAT: "symlinkat",
	unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCHMODAT2: "fchmodat2",
	unix.SYS_FCHOWN: "fchown", unix.SYS_FCHOWNAT: "fchownat",
}

// Syscall returns the name of the system call of a path event; for a 32-bit program's, whose numbers are others,
// the plain name of what it does.
func (ev *Event) Syscall() string {
	if ev.Header.Flags&HeaderCompat == 0 {
		if n, ok := calls[ev.Path.Nr]; ok {
			return n
		}
		if n, ok := oldCalls[ev.Path.Nr]; ok {
			return n
		}
	}
	return ev.Header.Action.String()
}
