package bpf

import "syscall"

// Calls that only some architectures have.

func rawOpen(*byte, int) (int, error) { return 0, syscall.ENOSYS }
func rawCreat(*byte) (int, error)     { return 0, syscall.ENOSYS }
