/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* System calls, as one architecture's 64-bit and 32-bit programs make them. */
#pragma once

#include "kernel.h"

enum call {
	CALL_NONE = 0,
	CALL_OPEN = 1, /* open(path, flags) */
	CALL_OPENAT = 2, /* openat(dir, path, flags) */
	CALL_OPENAT2 = 3, /* openat2(dir, path, how) */
	CALL_CREAT = 4,
	CALL_CONNECT = 5,
	CALL_ACCEPT = 6, /* accept and accept4 */
	CALL_SOCKETCALL = 7, /* 32-bit x86: all socket calls in one */
};

/*
 * What the dispatcher looks up first: by number, the 64-bit call in the low four bits and the 32-bit call in
 * the high four. Most numbers have neither, and nothing more is done for them.
 */
#define MAX_CALLS 512
#define BOTH(call64, call32) ((call64) | (call32) << 4)

#if defined(__TARGET_ARCH_x86)

const __u8 calls[MAX_CALLS] = {
	[2] = CALL_OPEN,
	[5] = BOTH(CALL_NONE, CALL_OPEN),
	[8] = BOTH(CALL_NONE, CALL_CREAT),
	[42] = CALL_CONNECT,
	[43] = CALL_ACCEPT,
	[85] = CALL_CREAT,
	[102] = BOTH(CALL_NONE, CALL_SOCKETCALL),
	[257] = CALL_OPENAT,
	[288] = CALL_ACCEPT,
	[295] = BOTH(CALL_NONE, CALL_OPENAT),
	[362] = BOTH(CALL_NONE, CALL_CONNECT),
	[364] = BOTH(CALL_NONE, CALL_ACCEPT),
	[437] = BOTH(CALL_OPENAT2, CALL_OPENAT2),
};

/* The number of the call that returns; calls of the x32 interface have bit 30 set. */
static __always_inline __u32 call_number(void *pt_regs)
{
	struct pt_regs___x86 *regs = pt_regs;
	return (__u32)regs->orig_ax & ~0x40000000u;
}

static __always_inline bool is_compat(struct task_struct *task)
{
	return ((struct task_struct___x86 *)task)->thread_info.status & 0x2; /* TS_COMPAT */
}

/* Argument n, from 0 to 2, of the call that returns. */
static __always_inline __u64 call_argument(void *pt_regs, bool compat, int n)
{
	struct pt_regs___x86 *regs = pt_regs;
	if (compat)
		return (__u32)(n == 0 ? regs->bx : n == 1 ? regs->cx : regs->dx);
	return n == 0 ? regs->di : n == 1 ? regs->si : regs->dx;
}

#elif defined(__TARGET_ARCH_arm64)

const __u8 calls[MAX_CALLS] = {
	[5] = BOTH(CALL_NONE, CALL_OPEN),
	[8] = BOTH(CALL_NONE, CALL_CREAT),
	[56] = CALL_OPENAT,
	[202] = CALL_ACCEPT,
	[203] = CALL_CONNECT,
	[242] = CALL_ACCEPT,
	[283] = BOTH(CALL_NONE, CALL_CONNECT),
	[285] = BOTH(CALL_NONE, CALL_ACCEPT),
	[322] = BOTH(CALL_NONE, CALL_OPENAT),
	[366] = BOTH(CALL_NONE, CALL_ACCEPT),
	[437] = BOTH(CALL_OPENAT2, CALL_OPENAT2),
};

static __always_inline __u32 call_number(void *pt_regs)
{
	return ((struct pt_regs___arm64 *)pt_regs)->syscallno;
}

static __always_inline bool is_compat(struct task_struct *task)
{
	return ((struct task_struct___arm64 *)task)->thread_info.flags >> 22 & 1; /* TIF_32BIT */
}

/* The first argument's register holds the result by now; the kernel kept a copy. */
static __always_inline __u64 call_argument(void *pt_regs, bool compat, int n)
{
	struct pt_regs___arm64 *regs = pt_regs;
	__u64 arg = n == 0 ? regs->orig_x0 : n == 1 ? regs->regs[1] : regs->regs[2];
	return compat ? (__u32)arg : arg;
}

#else
#error "no table of system calls for this architecture"
#endif

/* The open file behind a descriptor of the current task; NULL when it is gone by now. */
static __always_inline struct file *open_file(struct task_struct *task, __u32 fd)
{
	struct files_struct *files = task->files;
	struct file **slots, *file = NULL;
	struct fdtable *table;

	if (!files)
		return NULL;
	table = files->fdt;
	if (fd >= table->max_fds)
		return NULL;
	/* Read as a number, not loaded as a pointer: 6.1's verifier does no arithmetic with those. */
	slots = BPF_CORE_READ(table, fd);
	bpf_probe_read_kernel(&file, sizeof(file), &slots[fd]);
	return file;
}
