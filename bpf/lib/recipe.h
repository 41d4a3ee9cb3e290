/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where each system call has what an event tells of it. A call that names a file by its path leaves no kernel object
 * that knows the path when it returns: the text is read from the caller's memory, which another thread can have
 * changed after the kernel read it, and the event says so (PATH_USER). What it is relative to, and files named by a
 * descriptor, are kernel objects.
 */
#pragma once

#include "path.h"
#include "syscall.h"

#define TEXT 0xff /* as a directory: the text stands for itself */

/* Arguments are counted from 1; 0: the call has none such. */
struct recipe {
	__u8 action; /* enum event_action */
	__u8 path; /* a path; relative to the directory of descriptor dir, or to the working directory */
	__u8 dir;
	__u8 target; /* a second one */
	__u8 target_dir;
	__u8 fd; /* a file instead of a path */
	__u8 mode; /* class file: permissions, or type and permissions */
	__u8 owner; /* class file: user id, and after it the group's */
	__u8 length; /* class file: a number */
	__u8 times; /* class file: a pointer to times ... */
	__u8 times_at; /* ... of which the modification time is at this offset, */
	__u32 times_unit; /* its part of a second in this many nanoseconds; 0: it has none */
	__u8 text; /* class kernel: a short text */
	__u8 number; /* class kernel: a pointer to a number ... */
	__u8 number_at; /* ... at this offset ... */
	__u8 number_size; /* ... of this many bytes */
};

/* clang-format off */
const struct recipe recipes[NUM_CALLS] = {
	[CALL_RENAME] = {ACTION_RENAME, .path = 1, .target = 2},
	[CALL_RENAMEAT] = {ACTION_RENAME, .dir = 1, .path = 2, .target_dir = 3, .target = 4},
	[CALL_RENAMEAT2] = {ACTION_RENAME, .dir = 1, .path = 2, .target_dir = 3, .target = 4},
	[CALL_UNLINK] = {ACTION_UNLINK, .path = 1},
	[CALL_UNLINKAT] = {ACTION_UNLINK, .dir = 1, .path = 2},
	[CALL_RMDIR] = {ACTION_RMDIR, .path = 1},
	[CALL_MKDIR] = {ACTION_MKDIR, .path = 1, .mode = 2},
	[CALL_MKDIRAT] = {ACTION_MKDIR, .dir = 1, .path = 2, .mode = 3},
	[CALL_LINK] = {ACTION_LINK, .target = 1, .path = 2},
	[CALL_LINKAT] = {ACTION_LINK, .target_dir = 1, .target = 2, .dir = 3, .path = 4},
	[CALL_SYMLINK] = {ACTION_SYMLINK, .target = 1, .target_dir = TEXT, .path = 2},
	[CALL_SYMLINKAT] = {ACTION_SYMLINK, .target = 1, .target_dir = TEXT, .dir = 2, .path = 3},
	[CALL_CHMOD] = {ACTION_CHMOD, .path = 1, .mode = 2},
	[CALL_FCHMODAT] = {ACTION_CHMOD, .dir = 1, .path = 2, .mode = 3},
	[CALL_FCHMODAT2] = {ACTION_CHMOD, .dir = 1, .path = 2, .mode = 3},
	[CALL_FCHMOD] = {ACTION_CHMOD, .fd = 1, .mode = 2},
	[CALL_CHOWN] = {ACTION_CHOWN, .path = 1, .owner = 2},
	[CALL_LCHOWN] = {ACTION_CHOWN, .path = 1, .owner = 2},
	[CALL_FCHOWNAT] = {ACTION_CHOWN, .dir = 1, .path = 2, .owner = 3},
	[CALL_FCHOWN] = {ACTION_CHOWN, .fd = 1, .owner = 2},
	[CALL_MKNOD] = {ACTION_MKNOD, .path = 1, .mode = 2, .length = 3},
	[CALL_MKNODAT] = {ACTION_MKNOD, .dir = 1, .path = 2, .mode = 3, .length = 4},
	[CALL_TRUNCATE] = {ACTION_TRUNCATE, .path = 1, .length = 2},
	[CALL_FTRUNCATE] = {ACTION_TRUNCATE, .fd = 1, .length = 2},
	[CALL_UTIME] = {ACTION_UTIMES, .path = 1, .times = 2, .times_at = 8},
	[CALL_UTIMES] = {ACTION_UTIMES, .path = 1, .times = 2, .times_at = 16, .times_unit = 1000},
	[CALL_FUTIMESAT] = {ACTION_UTIMES, .dir = 1, .path = 2, .times = 3, .times_at = 16, .times_unit = 1000},
	[CALL_UTIMENSAT] = {ACTION_UTIMES, .dir = 1, .path = 2, .times = 3, .times_at = 16, .times_unit = 1},
	[CALL_SETXATTR] = {ACTION_SETXATTR, .path = 1, .target = 2, .target_dir = TEXT},
	[CALL_LSETXATTR] = {ACTION_SETXATTR, .path = 1, .target = 2, .target_dir = TEXT},
	[CALL_FSETXATTR] = {ACTION_SETXATTR, .fd = 1, .target = 2, .target_dir = TEXT},
	[CALL_SETXATTRAT] = {ACTION_SETXATTR, .dir = 1, .path = 2, .target = 4, .target_dir = TEXT},
	[CALL_REMOVEXATTR] = {ACTION_REMOVEXATTR, .path = 1, .target = 2, .target_dir = TEXT},
	[CALL_LREMOVEXATTR] = {ACTION_REMOVEXATTR, .path = 1, .target = 2, .target_dir = TEXT},
	[CALL_FREMOVEXATTR] = {ACTION_REMOVEXATTR, .fd = 1, .target = 2, .target_dir = TEXT},
	[CALL_REMOVEXATTRAT] = {ACTION_REMOVEXATTR, .dir = 1, .path = 2, .target = 4, .target_dir = TEXT},

	[CALL_SETNS] = {ACTION_CALL, .fd = 1},
	[CALL_MOUNT] = {ACTION_CALL, .target = 1, .target_dir = TEXT, .path = 2, .text = 3},
	[CALL_UMOUNT] = {ACTION_CALL, .path = 1},
	[CALL_UMOUNT2] = {ACTION_CALL, .path = 1},
	[CALL_PIVOT_ROOT] = {ACTION_CALL, .path = 1, .target = 2},
	[CALL_CHROOT] = {ACTION_CALL, .path = 1},
	[CALL_OPEN_TREE] = {ACTION_CALL, .dir = 1, .path = 2},
	[CALL_MOVE_MOUNT] = {ACTION_CALL, .target_dir = 1, .target = 2, .dir = 3, .path = 4},
	[CALL_FSOPEN] = {ACTION_CALL, .text = 1},
	[CALL_FSCONFIG] = {ACTION_CALL, .text = 3, .target = 4, .target_dir = TEXT},
	[CALL_FSPICK] = {ACTION_CALL, .dir = 1, .path = 2},
	[CALL_MOUNT_SETATTR] = {ACTION_CALL, .dir = 1, .path = 2},
	[CALL_FINIT_MODULE] = {ACTION_CALL, .fd = 1},
	[CALL_DELETE_MODULE] = {ACTION_CALL, .text = 1},
	[CALL_PERF_EVENT_OPEN] = {ACTION_CALL, .number = 1, .number_at = 8, .number_size = 8}, /* perf_event_attr.config */
	[CALL_MEMFD_CREATE] = {ACTION_CALL, .path = 1, .dir = TEXT},
	[CALL_IO_URING_SETUP] = {ACTION_CALL, .number = 2, .number_at = 8, .number_size = 4}, /* io_uring_params.flags */
	[CALL_ADD_KEY] = {ACTION_CALL, .text = 1, .path = 2, .dir = TEXT},
	[CALL_REQUEST_KEY] = {ACTION_CALL, .text = 1, .path = 2, .dir = TEXT},
	[CALL_KEXEC_FILE_LOAD] = {ACTION_CALL, .fd = 1},
	[CALL_SWAPON] = {ACTION_CALL, .path = 1},
	[CALL_SWAPOFF] = {ACTION_CALL, .path = 1},
	[CALL_SETTIMEOFDAY] = {ACTION_CALL, .number = 1, .number_size = 8}, /* seconds */
	[CALL_CLOCK_SETTIME] = {ACTION_CALL, .number = 2, .number_size = 8},
	[CALL_SETHOSTNAME] = {ACTION_CALL, .text = 1},
	[CALL_SETDOMAINNAME] = {ACTION_CALL, .text = 1},
	[CALL_QUOTACTL] = {ACTION_CALL, .path = 2},
	[CALL_QUOTACTL_FD] = {ACTION_CALL, .fd = 1},
	[CALL_MMAP] = {ACTION_CALL, .fd = 5},
	[CALL_ACCT] = {ACTION_CALL, .path = 1},
	/* What is told of the others, and which of them are events, is in kernel.h. */
};
/* clang-format on */

/* A path as a call gives it: the text, and the directory it starts from. */
struct named {
	struct walk base;
	/* The verifier wants room behind base.buf for both bounds of a copy out of it: text is that room. */
	char text[MAX_PATH];
	__u32 text_len;
	__u32 flags; /* enum path_flag */
};

#define NO_DIRECTORY (-101) /* for read_named: the text stands for itself */

static __always_inline void no_name(struct named *n)
{
	n->base.pos = MAX_PATH;
	n->base.flags = n->flags = n->text_len = 0;
}

/* Walks to the directory fd where that is what the text is relative to. */
static __noinline void start_from(struct named *n, struct task_struct *task, int fd)
{
	struct fs_struct *fs;
	struct file *file;

	if (n->text[0] == '/' || fd == NO_DIRECTORY)
		return;
	if (fd == AT_FDCWD) {
		fs = task->fs;
		if (fs)
			walk_path(&n->base, fs->pwd.mnt, fs->pwd.dentry, task);
		return;
	}
	file = open_file(task, fd);
	if (file)
		walk_path(&n->base, READ(file, f_path.mnt), READ(file, f_path.dentry), task);
	else
		n->flags |= PATH_FAULT;
}

/* Reads the text at user, and what it is relative to. */
static __noinline void read_named(struct named *n, struct task_struct *task, const char *user, int fd)
{
	long len;

	no_name(n);
	n->flags = PATH_USER;
	len = bpf_probe_read_user_str(n->text, sizeof(n->text), user);
	if (len < 1) {
		n->flags |= PATH_FAULT;
		return;
	}
	n->text_len = (len - 1) & (MAX_PATH - 1); /* without the NUL; the mask is for the verifier */
	start_from(n, task, fd);
}

/* The lengths of the strings of two names, bounded for the verifier, and how many bytes they take together. */
struct lengths {
	__u32 base, text, target_base, target;
};

static __always_inline __u32 measure(struct lengths *n, struct named *path, struct named *target)
{
	n->base = walk_len(&path->base);
	n->text = path->text_len & (MAX_PATH - 1);
	n->target_base = walk_len(&target->base);
	n->target = target->text_len & (MAX_PATH - 1);
	return n->base + n->text + n->target_base + n->target;
}

/* Writes the strings in the order that path_event and call_event have them. */
static __always_inline void write_names(struct bpf_dynptr *record, __u32 at, const struct lengths *n, struct named *path,
					struct named *target)
{
	bpf_dynptr_write(record, at, &path->base.buf[MAX_PATH - n->base], n->base, 0);
	at += n->base;
	bpf_dynptr_write(record, at, path->text, n->text, 0);
	at += n->text;
	bpf_dynptr_write(record, at, &target->base.buf[MAX_PATH - n->target_base], n->target_base, 0);
	at += n->target_base;
	bpf_dynptr_write(record, at, target->text, n->target, 0);
}

/* The directory of a path: dir is the argument's number, 0 or TEXT. */
static __always_inline int directory(const struct syscall *sc, __u32 dir)
{
	if (dir == TEXT)
		return NO_DIRECTORY;
	return dir ? (int)argument(sc, dir) : AT_FDCWD;
}

/* An open file, all of which is known to the kernel; NULL when it is gone. */
static __noinline struct inode *walk_file(struct named *n, struct task_struct *task, struct file *file)
{
	no_name(n);
	if (!file) {
		n->flags = PATH_FAULT;
		return NULL;
	}
	walk_path(&n->base, READ(file, f_path.mnt), READ(file, f_path.dentry), task);
	return READ(file, f_inode);
}
