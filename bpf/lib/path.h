/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Paths from dentries and mounts, as the process itself sees them: up to its root directory.
 *
 * bpf_d_path() is refused to these program types, so the walk is done here: from the leaf upwards, each
 * name written in front of the last one, so that the path ends at a fixed place of the buffer.
 */
#pragma once

#include "event.h"

#define MAX_NAME 255
/* A component takes at least two bytes ("/x"); each mount crossed is one step more. */
#define MAX_STEPS (MAX_PATH / 2 + 128)

/*
 * All of a walk's state is in map memory, none on the stack: what the verifier loads from a map value is an
 * unknown number each time, so it checks one step of the loop, not each.
 */
struct walk {
	struct dentry *dentry;
	struct vfsmount *mnt;
	struct dentry *mnt_root; /* of mnt */
	struct dentry *root_dentry; /* where to stop */
	struct vfsmount *root_mnt;
	__u32 pos; /* the path is buf[pos .. MAX_PATH) */
	__u32 flags; /* enum path_flag */
	/*
	 * The bytes past MAX_PATH are never written. They hold the proof that a copy of up to MAX_NAME
	 * bytes from any pos below MAX_PATH stays inside, and the NULs that end a watch key or follow a short path.
	 */
	char buf[MAX_PATH + WATCH_BYTES];
};

/* What a step reads of a dentry, as the kernel has it in a row. */
struct entry {
	struct dentry *parent;
	__u32 hash;
	__u32 len;
	const unsigned char *name;
};

static __always_inline long read_entry(struct entry *e, struct dentry *dentry)
{
	if (bpf_rdonly_cast) {
		e->parent = READ(dentry, d_parent);
		e->len = READ(dentry, d_name.len);
		e->name = READ(dentry, d_name.name);
		return !e->parent; /* each has one, the top itself */
	}
	/* Where they are in a row, which the loader knows, one read does instead of three. */
	if (bpf_core_field_offset(struct dentry, d_name) == bpf_core_field_offset(struct dentry, d_parent) + 8 &&
	    bpf_core_field_offset(struct qstr, len) == 4 && bpf_core_field_offset(struct qstr, name) == 8)
		return bpf_core_read(e, sizeof(*e), &dentry->d_parent);
	return bpf_core_read(&e->parent, sizeof(e->parent), &dentry->d_parent) ||
	       bpf_core_read(&e->len, sizeof(e->len), &dentry->d_name.len) ||
	       bpf_core_read(&e->name, sizeof(e->name), &dentry->d_name.name);
}

/* Puts one name, with its slash, in front; false when there is no more room. */
static __always_inline bool prepend(struct walk *w, const struct entry *e)
{
	__u32 len = e->len, pos = w->pos;

	if (len > MAX_NAME || pos > MAX_PATH || pos < len + 1) {
		w->flags |= PATH_TRUNCATED;
		return false;
	}
	pos -= len + 1;
	/* The verifier does not see that pos > len held: it needs both bounds on their own. In assembly, */
	/* because the compiler does see it and would leave them out. */
	asm volatile("%0 &= %1" : "+r"(pos) : "i"(MAX_PATH - 1));
	asm volatile("%0 &= %1" : "+r"(len) : "i"(MAX_NAME));
	w->buf[pos] = '/';
	if (bpf_probe_read_kernel(&w->buf[pos + 1], len, e->name))
		w->flags |= PATH_FAULT;
	w->pos = pos;
	return true;
}

/* One step up: a name, or from a mount's root to the place where it is mounted. Returns 1 to stop. */
static long walk_step(__u32 i, struct walk **ctx)
{
	struct walk *w = *ctx;
	struct dentry *dentry = w->dentry;
	struct mount *mount, *up;
	struct entry e;

	if (dentry == w->root_dentry && w->mnt == w->root_mnt)
		return 1;
	if (dentry == w->mnt_root) {
		mount = (void *)w->mnt - bpf_core_field_offset(struct mount, mnt);
		up = READ(mount, mnt_parent);
		w->dentry = READ(mount, mnt_mountpoint);
		w->mnt_root = READ(up, mnt.mnt_root);
		if (!w->mnt_root) {
			w->flags |= PATH_FAULT;
			return 1;
		}
		if (up == mount) {
			w->flags |= PATH_OUTSIDE;
			return 1;
		}
		w->mnt = (void *)up + bpf_core_field_offset(struct mount, mnt);
		return 0;
	}
	if (read_entry(&e, dentry)) {
		w->flags |= PATH_FAULT;
		return 1;
	}
	if (!prepend(w, &e))
		return 1;
	if (e.parent == dentry) {
		/* The top of a tree that is mounted nowhere: a memfd, or a directory lost by its server. */
		w->flags |= PATH_OUTSIDE;
		return 1;
	}
	w->dentry = e.parent;
	return 0;
}

static __always_inline void walk_all(struct walk *w)
{
	bpf_loop(MAX_STEPS, walk_step, &w, 0);
	if (w->pos == MAX_PATH && !(w->flags & PATH_FAULT)) {
		w->pos = MAX_PATH - 1;
		w->buf[MAX_PATH - 1] = '/';
	}
}

static __always_inline void walk_up(struct walk *w, struct vfsmount *mnt, struct dentry *dentry)
{
	w->dentry = dentry;
	w->mnt = mnt;
	w->mnt_root = READ(mnt, mnt_root);
	if (!w->mnt_root) {
		w->flags |= PATH_FAULT;
		return;
	}
	walk_all(w);
}

/* Walks from a directory, in front of what *w has already. */
static __noinline void walk_above(struct walk *w, struct vfsmount *mnt, struct dentry *dentry,
				  struct task_struct *task)
{
	struct fs_struct *fs = task->fs;

	w->root_dentry = NULL;
	w->root_mnt = NULL;
	if (fs) {
		w->root_dentry = fs->root.dentry;
		w->root_mnt = fs->root.mnt;
	}
	walk_up(w, mnt, dentry);
}

/* Walks path, which the task in whose root directory it is seen has open; the result is in *w. */
static __always_inline void walk_path(struct walk *w, struct vfsmount *mnt, struct dentry *dentry,
				      struct task_struct *task)
{
	w->pos = MAX_PATH;
	w->flags = 0;
	walk_above(w, mnt, dentry, task);
}

/* Walks path as its mount namespace has it, beyond the task's root directory. */
static __noinline void walk_to_top(struct walk *w, struct vfsmount *mnt, struct dentry *dentry)
{
	w->root_dentry = NULL;
	w->root_mnt = NULL;
	w->pos = MAX_PATH;
	w->flags = 0;
	walk_up(w, mnt, dentry);
	w->flags &= ~PATH_OUTSIDE; /* that is where it was to lead */
}

/* Walks path within its own file system, whatever part of it is mounted where. */
static __noinline void walk_in_file_system(struct walk *w, struct vfsmount *mnt, struct dentry *dentry,
					   struct dentry *root)
{
	w->root_dentry = root;
	w->root_mnt = mnt;
	w->pos = MAX_PATH;
	w->flags = 0;
	w->dentry = dentry;
	w->mnt = mnt;
	w->mnt_root = NULL; /* no mount is crossed */
	walk_all(w);
}

/* Length of the walked path, bounded for the verifier. */
static __always_inline __u32 walk_len(struct walk *w)
{
	__u32 pos = w->pos;
	return pos > MAX_PATH ? 0 : MAX_PATH - pos;
}

/* As the kernel's d_unlinked(), or no name left at all. */
static __always_inline bool is_deleted(struct dentry *dentry, unsigned int nlink)
{
	return !nlink || (!READ(dentry, d_hash.pprev) && READ(dentry, d_parent) != dentry);
}

/* A device number as stat(2) and /proc give it. */
static __always_inline __u32 encode_dev(__u32 dev)
{
	__u32 major = dev >> 20, minor = dev & 0xfffff;
	return (minor & 0xff) | (major << 8) | ((minor & ~0xffu) << 12);
}
