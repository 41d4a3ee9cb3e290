package bpf

import (
	"syscall"
	"unsafe"
)

// Calls that only some architectures have.

func rawOpen(path *byte, flags int) (int, error) {
	fd, _, errno := syscall.Syscall(syscall.SYS_OPEN, uintptr(unsafe.Pointer(path)), uintptr(flags), 0o640)
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}

func rawCreat(path *byte) (int, error) {
	fd, _, errno := syscall.Syscall(syscall.SYS_CREAT, uintptr(unsafe.Pointer(path)), 0o640, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}
