package bpf

var oldCalls map[uint32]string
