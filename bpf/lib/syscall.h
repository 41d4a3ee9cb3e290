/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* System calls, as one architecture's 64-bit and 32-bit programs make them. */
#pragma once

#include "calls.h"
#include "kernel.h"

#if defined(__TARGET_ARCH_x86)

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

/* Argument n, from 0 to 5, of the call that returns. */
static __always_inline __u64 call_argument(void *pt_regs, bool compat, int n)
{
	struct pt_regs___x86 *regs = pt_regs;
	if (compat)
		return (__u32)(n == 0 ? regs->bx : n == 1 ? regs->cx : n == 2 ? regs->dx : n == 3 ? regs->si :
			       n == 4 ? regs->di : regs->bp);
	return n == 0 ? regs->di : n == 1 ? regs->si : n == 2 ? regs->dx : n == 3 ? regs->r10 : n == 4 ? regs->r8 : regs->r9;
}

#elif defined(__TARGET_ARCH_arm64)

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
	__u64 arg = n == 0 ? regs->orig_x0 : n == 1 ? regs->regs[1] : n == 2 ? regs->regs[2] : n == 3 ? regs->regs[3] :
		    n == 4 ? regs->regs[4] : regs->regs[5];
	return compat ? (__u32)arg : arg;
}

#else
#error "no table of system calls for this architecture"
#endif

/* The call that the current task is in, or returns from. */
static __always_inline enum call current_call(void *regs, bool compat)
{
	__u32 nr = call_number(regs);

	if (nr >= MAX_CALLS)
		return CALL_NONE;
	return compat ? calls[nr] >> 8 : calls[nr] & 0xff;
}

/*
 * The call that returns, the same for every architecture and width. It is in map memory: what the verifier loads
 * from there is an unknown number, so it checks each reader once and not for each way the call was made.
 */
struct syscall {
	__u64 args[8]; /* six; with room for any index of three bits */
	__s64 ret;
	__u64 number; /* what was noted of it: see lib/noted.h */
	__u32 call; /* enum call */
	__u32 flags; /* enum header_flag: HEADER_COMPAT, HEADER_IO_URING */
};

/* One per CPU is enough: the programs that use it run one after the other. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct syscall);
} this_call SEC(".maps");

/* With HEADER_IO_URING, where no call has arguments: the address of the request, and its file if it names one. */
#define RING_REQUEST 6
#define RING_FILE 7

/* Argument n, counted from 1. */
static __always_inline __u64 argument(const struct syscall *sc, __u32 n)
{
	return sc->args[(n - 1) & 7];
}

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
