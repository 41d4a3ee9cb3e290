package bpf

import "golang.org/x/sys/unix"

// calls names the system calls of file events that every 64-bit architecture has; oldCalls those that only
// some have.
var calls = map[uint32]string{
	unix.SYS_OPENAT: "openat", unix.SYS_OPENAT2: "openat2",
	unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_UNLINKAT: "unlinkat", unix.SYS_MKDIRAT: "mkdirat",
	unix.SYS_LINKAT: "linkat", unix.SYS_SYMLINKAT: "symlinkat",
	unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCHMODAT2: "fchmodat2",
	unix.SYS_FCHOWN: "fchown", unix.SYS_FCHOWNAT: "fchownat",
}

// Syscall returns the name of the system call of a file event; for a 32-bit program's, whose numbers are others,
// the plain name of what it does.
func (ev *Event) Syscall() string {
	nr := ev.Path.Nr
	if ev.Header.Action == ActionOpen {
		nr = ev.Open.Nr
	}
	if ev.Header.Flags&HeaderCompat == 0 {
		if n, ok := calls[nr]; ok {
			return n
		}
		if n, ok := oldCalls[nr]; ok {
			return n
		}
	}
	return ev.Header.Action.String()
}
