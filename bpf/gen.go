package bpf

//go:generate go run ./gencalls
//go:generate go tool bpf2go -target amd64,arm64 -cc clang-19 -strip llvm-strip-19 -no-global-types -cflags "-O2 -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter" object picket.bpf.c
