/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The paths that the kernel really acted on. The security hooks of path operations, and of mounts, are the last that
 * have them as kernel objects, after the caller's text was read and links and ".." were followed: what they are given
 * is noted until the call ends, and told in place of the text (path.h, kernel.h). Every program of this file is loaded
 * only where the kernel lets it (hooks.go); without it the text is told, and the event says so.
 *
 * security_path_…() are called for the caller's own names alone: what overlayfs does on its layers goes past them.
 */
#pragma once

#include "lib/maps.h"
#include "lib/noted.h"
#include "lib/recipe.h"
#include "lib/task.h"

#define UTIME_SPECIAL 0x3ffffffe /* UTIME_OMIT; UTIME_NOW is one more */

/* The request that a worker of an io_uring acts on: thread id to its address. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} issued SEC(".maps");

/* What was noted of the request that this worker acts on, if its names are taken at this hook. */
static __always_inline struct noted *noted_request(struct task_struct *task, __u32 action)
{
	__u32 tid = task->pid;
	struct noted *n;
	__u64 *req;

	req = bpf_map_lookup_elem(&issued, &tid);
	if (!req)
		return NULL;
	n = bpf_map_lookup_elem(&noted, req);
	return n && n->action == action ? n : NULL;
}

/*
 * Begins to note what the current call acts on; NULL when it is no event, or not one of action: a file that open
 * makes or cuts, or a socket's name that bind makes, passes these hooks as well.
 */
static __noinline struct noted *begin(__u32 action, struct vfsmount *mnt, struct dentry *dentry)
{
	struct task_struct *task = bpf_get_current_task_btf();
	const struct recipe *r;
	struct noted *n;
	void *regs;
	bool compat;
	__u32 call;
	__u64 user;

	if (config.stopped || task->flags & PF_KTHREAD || is_self(task))
		return NULL;
	if (task->flags & PF_IO_WORKER) {
		n = noted_request(task, action);
		if (!n)
			return NULL;
	} else {
		regs = (void *)bpf_task_pt_regs(task);
		compat = is_compat(task);
		call = current_call(regs, compat);
		if (call < CHANGE_FIRST_CALL || call > KERNEL_LAST_CALL || call >= NUM_CALLS || !wanted(call))
			return NULL;
		r = &recipes[call];
		if (r->action != action && !(call == CALL_UNLINKAT && action == ACTION_RMDIR))
			return NULL;
		if (!r->path)
			return NULL;
		user = call_argument(regs, compat, r->path - 1);
		if (!user)
			return NULL;
		n = note(task->pid, call, action);
		if (!n)
			return NULL;
		n->user = user;
	}
	no_name(&n->path);
	walk_path(&n->path.base, mnt, dentry, task);
	return n;
}

/* Notes the second path of it. */
static __always_inline void note_target(struct noted *n, struct vfsmount *mnt, struct dentry *dentry)
{
	n->has_target = 1;
	no_name(&n->target);
	walk_path(&n->target.base, mnt, dentry, bpf_get_current_task_btf());
}

SEC("fentry/security_path_unlink")
int picket_path_unlink(__u64 *ctx)
{
	const struct path *dir = (void *)ctx[0];

	begin(ACTION_UNLINK, dir->mnt, (void *)ctx[1]);
	return 0;
}

SEC("fentry/security_path_rmdir")
int picket_path_rmdir(__u64 *ctx)
{
	const struct path *dir = (void *)ctx[0];

	begin(ACTION_RMDIR, dir->mnt, (void *)ctx[1]);
	return 0;
}

SEC("fentry/security_path_mkdir")
int picket_path_mkdir(__u64 *ctx)
{
	const struct path *dir = (void *)ctx[0];

	begin(ACTION_MKDIR, dir->mnt, (void *)ctx[1]);
	return 0;
}

SEC("fentry/security_path_mknod")
int picket_path_mknod(__u64 *ctx)
{
	const struct path *dir = (void *)ctx[0];

	begin(ACTION_MKNOD, dir->mnt, (void *)ctx[1]);
	return 0;
}

/* The text is the kernel's copy. */
SEC("fentry/security_path_symlink")
int picket_path_symlink(__u64 *ctx)
{
	const struct path *dir = (void *)ctx[0];
	struct noted *n = begin(ACTION_SYMLINK, dir->mnt, (void *)ctx[1]);

	if (n) {
		n->has_target = 1;
		no_name(&n->target);
		copy_text(&n->target, (void *)ctx[2]);
	}
	return 0;
}

/* The file that gets the name is on the same mount: link(2) refuses any other before the hook. */
SEC("fentry/security_path_link")
int picket_path_link(__u64 *ctx)
{
	const struct path *dir = (void *)ctx[1];
	struct noted *n = begin(ACTION_LINK, dir->mnt, (void *)ctx[2]);

	if (n)
		note_target(n, dir->mnt, (void *)ctx[0]);
	return 0;
}

SEC("fentry/security_path_rename")
int picket_path_rename(__u64 *ctx)
{
	const struct path *from = (void *)ctx[0], *to = (void *)ctx[2];
	struct noted *n = begin(ACTION_RENAME, from->mnt, (void *)ctx[1]);

	if (n)
		note_target(n, to->mnt, (void *)ctx[3]);
	return 0;
}

SEC("fentry/security_path_chmod")
int picket_path_chmod(__u64 *ctx)
{
	const struct path *path = (void *)ctx[0];

	begin(ACTION_CHMOD, path->mnt, path->dentry);
	return 0;
}

SEC("fentry/security_path_chown")
int picket_path_chown(__u64 *ctx)
{
	const struct path *path = (void *)ctx[0];

	begin(ACTION_CHOWN, path->mnt, path->dentry);
	return 0;
}

SEC("fentry/security_path_truncate")
int picket_path_truncate(__u64 *ctx)
{
	const struct path *path = (void *)ctx[0];

	begin(ACTION_TRUNCATE, path->mnt, path->dentry);
	return 0;
}

/* There is no security hook for it. */
SEC("fentry/vfs_utimes")
int picket_path_utimes(__u64 *ctx)
{
	const struct path *path = (void *)ctx[0];
	struct noted *n = begin(ACTION_UTIMES, path->mnt, path->dentry);
	struct timespec64 times[2]; /* of access, of modification */

	if (n && ctx[1] && !bpf_probe_read_kernel(times, sizeof(times), (void *)ctx[1]) && times[1].tv_nsec < UTIME_SPECIAL)
		n->number = times[1].tv_sec * 1000000000 + times[1].tv_nsec;
	return 0;
}

/* Source and type of a mount are the kernel's copies; the type is noted as the text of the path, which has none. */
SEC("fentry/security_sb_mount")
int picket_sb_mount(__u64 *ctx)
{
	const struct path *path = (void *)ctx[1];
	struct noted *n = begin(ACTION_CALL, path->mnt, path->dentry);

	if (!n)
		return 0;
	n->has_target = 1;
	no_name(&n->target);
	if (ctx[0])
		copy_text(&n->target, (void *)ctx[0]);
	if (ctx[2])
		copy_text(&n->path, (void *)ctx[2]);
	return 0;
}

/* What is mounted over it is not its mount: the walk begins at its own root. */
SEC("fentry/security_sb_umount")
int picket_sb_umount(__u64 *ctx)
{
	struct vfsmount *mnt = (void *)ctx[0];

	begin(ACTION_CALL, mnt, mnt->mnt_root);
	return 0;
}

SEC("fentry/security_sb_pivotroot")
int picket_sb_pivotroot(__u64 *ctx)
{
	const struct path *put_old = (void *)ctx[0], *root = (void *)ctx[1];
	struct noted *n = begin(ACTION_CALL, root->mnt, root->dentry);

	if (n)
		note_target(n, put_old->mnt, put_old->dentry);
	return 0;
}

SEC("fentry/security_move_mount")
int picket_move_mount(__u64 *ctx)
{
	const struct path *from = (void *)ctx[0], *to = (void *)ctx[1];
	struct noted *n = begin(ACTION_CALL, to->mnt, to->dentry);

	if (n)
		note_target(n, from->mnt, from->dentry);
	return 0;
}

/*
 * Requests through an io_uring that name files: a worker thread acts on them, which is in no system call. These say on
 * which, and the hooks above put the paths in place of the texts that it was submitted with.
 */
static __always_inline int issue(__u64 *ctx)
{
	__u32 tid = bpf_get_current_task_btf()->pid;
	__u64 req = ctx[0];

	bpf_map_update_elem(&issued, &tid, &req, 0);
	return 0;
}

SEC("fentry/io_renameat")
int picket_io_renameat(__u64 *ctx)
{
	return issue(ctx);
}

SEC("fentry/io_unlinkat")
int picket_io_unlinkat(__u64 *ctx)
{
	return issue(ctx);
}

SEC("fentry/io_mkdirat")
int picket_io_mkdirat(__u64 *ctx)
{
	return issue(ctx);
}

SEC("fentry/io_symlinkat")
int picket_io_symlinkat(__u64 *ctx)
{
	return issue(ctx);
}

SEC("fentry/io_linkat")
int picket_io_linkat(__u64 *ctx)
{
	return issue(ctx);
}
