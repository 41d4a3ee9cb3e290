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
	CALL_RENAME = 8, /* rename(path, path) */
	CALL_RENAMEAT = 9, /* renameat, renameat2(dir, path, dir, path, ...) */
	CALL_UNLINK = 10, /* unlink(path) */
	CALL_UNLINKAT = 11, /* unlinkat(dir, path, flags) */
	CALL_RMDIR = 12, /* rmdir(path) */
	CALL_MKDIR = 13, /* mkdir(path, mode) */
	CALL_MKDIRAT = 14, /* mkdirat(dir, path, mode) */
	CALL_LINK = 15, /* link(file, path) */
	CALL_LINKAT = 16, /* linkat(dir, file, dir, path, flags) */
	CALL_SYMLINK = 17, /* symlink(text, path) */
	CALL_SYMLINKAT = 18, /* symlinkat(text, dir, path) */
	CALL_CHMOD = 19, /* chmod(path, mode) */
	CALL_FCHMODAT = 20, /* fchmodat, fchmodat2(dir, path, mode, ...) */
	CALL_FCHMOD = 21, /* fchmod(fd, mode) */
	CALL_CHOWN = 22, /* chown, lchown(path, uid, gid) */
	CALL_FCHOWNAT = 23, /* fchownat(dir, path, uid, gid, flags) */
	CALL_FCHOWN = 24, /* fchown(fd, uid, gid) */
};

/*
 * What the dispatcher looks up first: by number, the 64-bit call in the low byte and the 32-bit call in the
 * high one. Most numbers have neither, and nothing more is done for them.
 */
#define MAX_CALLS 512
#define BOTH(call64, call32) ((call64) | (call32) << 8)

#if defined(__TARGET_ARCH_x86)

const __u16 calls[MAX_CALLS] = {
	[2] = CALL_OPEN,
	[5] = BOTH(CALL_NONE, CALL_OPEN),
	[8] = BOTH(CALL_NONE, CALL_CREAT),
	[9] = BOTH(CALL_NONE, CALL_LINK),
	[10] = BOTH(CALL_NONE, CALL_UNLINK),
	[15] = BOTH(CALL_NONE, CALL_CHMOD),
	[16] = BOTH(CALL_NONE, CALL_CHOWN),
	[38] = BOTH(CALL_NONE, CALL_RENAME),
	[39] = BOTH(CALL_NONE, CALL_MKDIR),
	[40] = BOTH(CALL_NONE, CALL_RMDIR),
	[42] = CALL_CONNECT,
	[43] = CALL_ACCEPT,
	[82] = CALL_RENAME,
	[83] = BOTH(CALL_MKDIR, CALL_SYMLINK),
	[84] = CALL_RMDIR,
	[85] = CALL_CREAT,
	[86] = CALL_LINK,
	[87] = CALL_UNLINK,
	[88] = CALL_SYMLINK,
	[90] = CALL_CHMOD,
	[91] = CALL_FCHMOD,
	[92] = CALL_CHOWN,
	[93] = CALL_FCHOWN,
	[94] = BOTH(CALL_CHOWN, CALL_FCHMOD),
	[95] = BOTH(CALL_NONE, CALL_FCHOWN),
	[102] = BOTH(CALL_NONE, CALL_SOCKETCALL),
	[182] = BOTH(CALL_NONE, CALL_CHOWN),
	[198] = BOTH(CALL_NONE, CALL_CHOWN),
	[207] = BOTH(CALL_NONE, CALL_FCHOWN),
	[212] = BOTH(CALL_NONE, CALL_CHOWN),
	[257] = CALL_OPENAT,
	[258] = CALL_MKDIRAT,
	[260] = CALL_FCHOWNAT,
	[263] = CALL_UNLINKAT,
	[264] = CALL_RENAMEAT,
	[265] = CALL_LINKAT,
	[266] = CALL_SYMLINKAT,
	[268] = CALL_FCHMODAT,
	[288] = CALL_ACCEPT,
	[295] = BOTH(CALL_NONE, CALL_OPENAT),
	[296] = BOTH(CALL_NONE, CALL_MKDIRAT),
	[298] = BOTH(CALL_NONE, CALL_FCHOWNAT),
	[301] = BOTH(CALL_NONE, CALL_UNLINKAT),
	[302] = BOTH(CALL_NONE, CALL_RENAMEAT),
	[303] = BOTH(CALL_NONE, CALL_LINKAT),
	[304] = BOTH(CALL_NONE, CALL_SYMLINKAT),
	[306] = BOTH(CALL_NONE, CALL_FCHMODAT),
	[316] = CALL_RENAMEAT,
	[353] = BOTH(CALL_NONE, CALL_RENAMEAT),
	[362] = BOTH(CALL_NONE, CALL_CONNECT),
	[364] = BOTH(CALL_NONE, CALL_ACCEPT),
	[437] = BOTH(CALL_OPENAT2, CALL_OPENAT2),
	[452] = BOTH(CALL_FCHMODAT, CALL_FCHMODAT),
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

/* Argument n, from 0 to 3, of the call that returns. */
static __always_inline __u64 call_argument(void *pt_regs, bool compat, int n)
{
	struct pt_regs___x86 *regs = pt_regs;
	if (compat)
		return (__u32)(n == 0 ? regs->bx : n == 1 ? regs->cx : n == 2 ? regs->dx : regs->si);
	return n == 0 ? regs->di : n == 1 ? regs->si : n == 2 ? regs->dx : regs->r10;
}

#elif defined(__TARGET_ARCH_arm64)

const __u16 calls[MAX_CALLS] = {
	[5] = BOTH(CALL_NONE, CALL_OPEN),
	[8] = BOTH(CALL_NONE, CALL_CREAT),
	[9] = BOTH(CALL_NONE, CALL_LINK),
	[10] = BOTH(CALL_NONE, CALL_UNLINK),
	[15] = BOTH(CALL_NONE, CALL_CHMOD),
	[16] = BOTH(CALL_NONE, CALL_CHOWN),
	[34] = CALL_MKDIRAT,
	[35] = CALL_UNLINKAT,
	[36] = CALL_SYMLINKAT,
	[37] = CALL_LINKAT,
	[38] = BOTH(CALL_RENAMEAT, CALL_RENAME),
	[39] = BOTH(CALL_NONE, CALL_MKDIR),
	[40] = BOTH(CALL_NONE, CALL_RMDIR),
	[52] = CALL_FCHMOD,
	[53] = CALL_FCHMODAT,
	[54] = CALL_FCHOWNAT,
	[55] = CALL_FCHOWN,
	[56] = CALL_OPENAT,
	[83] = BOTH(CALL_NONE, CALL_SYMLINK),
	[94] = BOTH(CALL_NONE, CALL_FCHMOD),
	[95] = BOTH(CALL_NONE, CALL_FCHOWN),
	[182] = BOTH(CALL_NONE, CALL_CHOWN),
	[198] = BOTH(CALL_NONE, CALL_CHOWN),
	[202] = CALL_ACCEPT,
	[203] = CALL_CONNECT,
	[207] = BOTH(CALL_NONE, CALL_FCHOWN),
	[212] = BOTH(CALL_NONE, CALL_CHOWN),
	[242] = CALL_ACCEPT,
	[276] = CALL_RENAMEAT,
	[283] = BOTH(CALL_NONE, CALL_CONNECT),
	[285] = BOTH(CALL_NONE, CALL_ACCEPT),
	[322] = BOTH(CALL_NONE, CALL_OPENAT),
	[323] = BOTH(CALL_NONE, CALL_MKDIRAT),
	[325] = BOTH(CALL_NONE, CALL_FCHOWNAT),
	[328] = BOTH(CALL_NONE, CALL_UNLINKAT),
	[329] = BOTH(CALL_NONE, CALL_RENAMEAT),
	[330] = BOTH(CALL_NONE, CALL_LINKAT),
	[331] = BOTH(CALL_NONE, CALL_SYMLINKAT),
	[333] = BOTH(CALL_NONE, CALL_FCHMODAT),
	[366] = BOTH(CALL_NONE, CALL_ACCEPT),
	[382] = BOTH(CALL_NONE, CALL_RENAMEAT),
	[437] = BOTH(CALL_OPENAT2, CALL_OPENAT2),
	[452] = BOTH(CALL_FCHMODAT, CALL_FCHMODAT),
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
	__u64 arg = n == 0 ? regs->orig_x0 : n == 1 ? regs->regs[1] : n == 2 ? regs->regs[2] : regs->regs[3];
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
