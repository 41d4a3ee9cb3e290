/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The paths that the kernel really acted on. The security hooks of path operations are the last that have them as
 * kernel objects, after the caller's text was read and links and ".." were followed: what they are given is kept until
 * the system call returns, and told in place of the text (path.h). Every program of this file is loaded only where
 * the kernel lets it (support.go); without it the text is told, and the event says so.
 *
 * security_path_…() are called for the caller's own names alone: what overlayfs does on its layers goes past them.
 */
#pragma once

#include "lib/maps.h"
#include "lib/recipe.h"
#include "lib/task.h"

#define UTIME_SPECIAL 0x3ffffffe /* UTIME_OMIT; UTIME_NOW is one more */

/* Set by Load: some program of this file runs. */
const volatile bool hooked = false;

/* What a call under way acts on. */
struct resolved {
	__u64 user; /* the call's path argument: with call it tells this call from an earlier one of the thread */
	__u64 number; /* utimes: as in path_event */
	__u32 call; /* enum call */
	__u32 action; /* enum event_action */
	__u32 has_target; /* target is filled */
	__u32 text_len; /* symlink: of the text at the beginning of target.buf */
	struct walk path;
	struct walk target;
};

/* By thread. Calls that are between the hook and their end: far fewer than threads. Size: set by Load. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct resolved);
} resolved SEC(".maps");

/* What an entry begins as: an update wants all of a value at once, and none fits on the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct resolved);
} unresolved SEC(".maps");

/*
 * Begins to note what the current call acts on; NULL when it is no event, or not one of action: a file that open
 * makes or cuts, or a socket's name that bind makes, passes these hooks as well.
 */
static __noinline struct resolved *begin(enum event_action action, struct vfsmount *mnt, struct dentry *dentry)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u32 tid = task->pid, zero = 0, call;
	struct counters *c;
	struct resolved *n;
	const struct recipe *r;
	void *regs;
	bool compat;
	__u64 user;

	if (config.stopped || task->flags & (PF_KTHREAD | PF_IO_WORKER) || is_self(task))
		return NULL;
	regs = (void *)bpf_task_pt_regs(task);
	compat = is_compat(task);
	call = current_call(regs, compat);
	if (call < CHANGE_FIRST_CALL || call > CHANGE_LAST_CALL || call >= NUM_CALLS || !wanted(call))
		return NULL;
	r = &recipes[call];
	if (r->action != action && !(call == CALL_UNLINKAT && action == ACTION_RMDIR))
		return NULL;
	if (!r->path)
		return NULL;
	user = call_argument(regs, compat, r->path - 1);
	n = bpf_map_lookup_elem(&unresolved, &zero);
	if (!user || !n)
		return NULL;
	bpf_map_update_elem(&resolved, &tid, n, 0);
	n = bpf_map_lookup_elem(&resolved, &tid);
	if (!n) { /* there is no room */
		c = counters_of(bpf_get_smp_processor_id(), CLASS_FILE);
		if (c)
			count(&c->errors[ERROR_STORAGE]);
		return NULL;
	}
	n->user = user;
	n->call = call;
	n->action = action;
	n->number = NO_NUMBER;
	walk_path(&n->path, mnt, dentry, task);
	return n;
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
	struct resolved *n = begin(ACTION_SYMLINK, dir->mnt, (void *)ctx[1]);
	long len;

	if (!n)
		return 0;
	n->has_target = 1;
	n->target.pos = MAX_PATH;
	len = bpf_probe_read_kernel_str(n->target.buf, MAX_PATH, (void *)ctx[2]);
	if (len < 1) {
		n->target.flags = PATH_FAULT;
		return 0;
	}
	n->text_len = len - 1; /* without the NUL */
	return 0;
}

/* The file that gets the name is on the same mount: link(2) refuses any other before the hook. */
SEC("fentry/security_path_link")
int picket_path_link(__u64 *ctx)
{
	const struct path *dir = (void *)ctx[1];
	struct resolved *n = begin(ACTION_LINK, dir->mnt, (void *)ctx[2]);

	if (n) {
		n->has_target = 1;
		walk_path(&n->target, dir->mnt, (void *)ctx[0], bpf_get_current_task_btf());
	}
	return 0;
}

SEC("fentry/security_path_rename")
int picket_path_rename(__u64 *ctx)
{
	const struct path *from = (void *)ctx[0], *to = (void *)ctx[2];
	struct resolved *n = begin(ACTION_RENAME, from->mnt, (void *)ctx[1]);

	if (n) {
		n->has_target = 1;
		walk_path(&n->target, to->mnt, (void *)ctx[3], bpf_get_current_task_btf());
	}
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
	struct resolved *n = begin(ACTION_UTIMES, path->mnt, path->dentry);
	struct timespec64 times[2]; /* of access, of modification */

	if (n && ctx[1] && !bpf_probe_read_kernel(times, sizeof(times), (void *)ctx[1]) && times[1].tv_nsec < UTIME_SPECIAL)
		n->number = times[1].tv_sec * 1000000000 + times[1].tv_nsec;
	return 0;
}

/* Puts a walked path into a name. */
static __always_inline void take_walk(struct named *to, struct walk *from)
{
	__u32 pos = from->pos;

	no_name(to);
	to->base.flags = from->flags;
	if (pos >= MAX_PATH)
		return;
	to->base.pos = pos;
	bpf_probe_read_kernel(&to->base.buf[pos], MAX_PATH - pos, &from->buf[pos]);
}

/*
 * Takes what a hook noted of the call that returns; false when the call reached none, and its texts have to do. Then
 * nothing is changed.
 */
static __noinline bool take_resolved(struct named *path, struct named *target, struct path_event *e,
				     const struct syscall *sc, __u64 user)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid(), len;
	struct resolved *n;
	bool taken = false;

	if (!hooked)
		return false;
	n = bpf_map_lookup_elem(&resolved, &tid);
	if (!n)
		return false;
	if (n->call == sc->call && n->action == e->h.action && n->user == user) {
		taken = true;
		take_walk(path, &n->path);
		e->number = n->number;
		if (n->has_target) {
			take_walk(target, &n->target);
			len = n->text_len & (MAX_PATH - 1);
			target->text_len = len;
			bpf_probe_read_kernel(target->text, len, n->target.buf);
		}
	}
	bpf_map_delete_elem(&resolved, &tid);
	return taken;
}
