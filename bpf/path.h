/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Class file: what changes names and attributes of files: rename, unlink, rmdir, mkdir, link, symlink, chmod and
 * chown, at the end of the system call.
 *
 * A call that names a file by its path leaves no kernel object that knows the path when it returns: the text is
 * read from the caller's memory, which another thread can have changed after the kernel read it, and the event
 * says so (PATH_USER). What it is relative to, and files named by a descriptor, are kernel objects.
 */
#pragma once

#include "lib/maps.h"
#include "lib/path.h"
#include "lib/syscall.h"
#include "lib/task.h"

/* A path as a call gives it: the text, and the directory it starts from. */
struct named {
	struct walk base;
	/* The verifier wants room behind base.buf for both bounds of a copy out of it: text is that room. */
	char text[MAX_PATH];
	__u32 text_len;
	__u32 flags; /* enum path_flag */
};

/* One per CPU is enough, as for exec_scratch: only the program on sys_exit uses it. */
struct path_scratch {
	struct path_event event;
	struct named path;
	struct named target;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct path_scratch);
} path_scratch SEC(".maps");

#define AT_FDCWD (-100)
#define AT_REMOVEDIR 0x200
#define NO_DIRECTORY (-101) /* for read_named: the text stands for itself */

/* Reads the text at user, and walks to the directory fd where that is what it is relative to. */
static __noinline void read_named(struct named *n, struct task_struct *task, const char *user, int fd)
{
	struct fs_struct *fs;
	struct file *file;
	long len;

	n->base.pos = MAX_PATH;
	n->base.flags = 0;
	n->flags = PATH_USER;
	n->text_len = 0;
	len = bpf_probe_read_user_str(n->text, sizeof(n->text), user);
	if (len < 1) {
		n->flags |= PATH_FAULT;
		return;
	}
	n->text_len = (len - 1) & (MAX_PATH - 1); /* without the NUL; the mask is for the verifier */
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
		walk_path(&n->base, BPF_CORE_READ(file, f_path.mnt), BPF_CORE_READ(file, f_path.dentry), task);
	else
		n->flags |= PATH_FAULT;
}

/* The file behind a descriptor: all of it is known to the kernel. */
static __noinline void walk_file(struct path_scratch *s, struct task_struct *task, __u32 fd)
{
	struct file *file = open_file(task, fd);
	struct named *n = &s->path;
	struct path_event *e = &s->event;
	struct inode *inode;

	n->base.pos = MAX_PATH;
	n->base.flags = 0;
	n->flags = n->text_len = 0;
	if (!file) {
		n->flags = PATH_FAULT;
		return;
	}
	walk_path(&n->base, BPF_CORE_READ(file, f_path.mnt), BPF_CORE_READ(file, f_path.dentry), task);
	inode = BPF_CORE_READ(file, f_inode);
	e->ino = BPF_CORE_READ(inode, i_ino);
	e->dev = encode_dev(BPF_CORE_READ(inode, i_sb, s_dev));
	e->mode = BPF_CORE_READ(inode, i_mode);
	e->uid = BPF_CORE_READ(inode, i_uid.val);
	e->gid = BPF_CORE_READ(inode, i_gid.val);
}

#define ARG(n) call_argument(regs, compat, n)
#define PATH(which, arg, fd) read_named(&s->which, task, (const char *)ARG(arg), fd)

static __noinline int on_change(struct task_struct *task, void *regs, long ret, __u32 call_compat)
{
	enum call call = call_compat & 0xff;
	bool compat = call_compat >> 8;
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_FILE);
	__u32 zero = 0, base_len, len, target_base_len, target_len, at;
	struct bpf_dynptr record;
	struct path_scratch *s;
	struct path_event *e;

	s = bpf_map_lookup_elem(&path_scratch, &zero);
	if (!c || !s)
		return 0;
	e = &s->event;
	__builtin_memset(e, 0, sizeof(*e));
	e->new_mode = e->new_uid = e->new_gid = NOT_CHANGED;
	s->target.base.pos = MAX_PATH;
	s->target.base.flags = s->target.flags = s->target.text_len = 0;
	switch (call) {
	case CALL_RENAME:
		e->h.action = ACTION_RENAME;
		PATH(path, 0, AT_FDCWD);
		PATH(target, 1, AT_FDCWD);
		break;
	case CALL_RENAMEAT:
		e->h.action = ACTION_RENAME;
		PATH(path, 1, ARG(0));
		PATH(target, 3, ARG(2));
		break;
	case CALL_UNLINK:
		e->h.action = ACTION_UNLINK;
		PATH(path, 0, AT_FDCWD);
		break;
	case CALL_UNLINKAT:
		e->h.action = ARG(2) & AT_REMOVEDIR ? ACTION_RMDIR : ACTION_UNLINK;
		PATH(path, 1, ARG(0));
		break;
	case CALL_RMDIR:
		e->h.action = ACTION_RMDIR;
		PATH(path, 0, AT_FDCWD);
		break;
	case CALL_MKDIR:
		e->h.action = ACTION_MKDIR;
		e->new_mode = ARG(1) & 07777;
		PATH(path, 0, AT_FDCWD);
		break;
	case CALL_MKDIRAT:
		e->h.action = ACTION_MKDIR;
		e->new_mode = ARG(2) & 07777;
		PATH(path, 1, ARG(0));
		break;
	case CALL_LINK:
		e->h.action = ACTION_LINK;
		PATH(target, 0, AT_FDCWD);
		PATH(path, 1, AT_FDCWD);
		break;
	case CALL_LINKAT:
		e->h.action = ACTION_LINK;
		PATH(target, 1, ARG(0));
		PATH(path, 3, ARG(2));
		break;
	case CALL_SYMLINK:
		e->h.action = ACTION_SYMLINK;
		PATH(target, 0, NO_DIRECTORY);
		PATH(path, 1, AT_FDCWD);
		break;
	case CALL_SYMLINKAT:
		e->h.action = ACTION_SYMLINK;
		PATH(target, 0, NO_DIRECTORY);
		PATH(path, 2, ARG(1));
		break;
	case CALL_CHMOD:
		e->h.action = ACTION_CHMOD;
		e->new_mode = ARG(1) & 07777;
		PATH(path, 0, AT_FDCWD);
		break;
	case CALL_FCHMODAT:
		e->h.action = ACTION_CHMOD;
		e->new_mode = ARG(2) & 07777;
		PATH(path, 1, ARG(0));
		break;
	case CALL_FCHMOD:
		e->h.action = ACTION_CHMOD;
		e->new_mode = ARG(1) & 07777;
		walk_file(s, task, ARG(0));
		break;
	case CALL_CHOWN:
		e->h.action = ACTION_CHOWN;
		e->new_uid = ARG(1);
		e->new_gid = ARG(2);
		PATH(path, 0, AT_FDCWD);
		break;
	case CALL_FCHOWNAT:
		e->h.action = ACTION_CHOWN;
		e->new_uid = ARG(2);
		e->new_gid = ARG(3);
		PATH(path, 1, ARG(0));
		break;
	case CALL_FCHOWN:
		e->h.action = ACTION_CHOWN;
		e->new_uid = ARG(1);
		e->new_gid = ARG(2);
		walk_file(s, task, ARG(0));
		break;
	default:
		return 0;
	}
	fill_header(&e->h, task);
	e->h.class = CLASS_FILE;
	if (compat)
		e->h.flags |= HEADER_COMPAT;
	e->nr = call_number(regs);
	e->result = ret;
	e->path_flags = s->path.flags | s->path.base.flags;
	e->target_flags = s->target.flags | s->target.base.flags;
	if ((e->path_flags | e->target_flags) & PATH_FAULT)
		count(&c->errors[ERROR_PATH]);
	base_len = walk_len(&s->path.base);
	len = s->path.text_len & (MAX_PATH - 1);
	target_base_len = walk_len(&s->target.base);
	target_len = s->target.text_len & (MAX_PATH - 1);
	e->base_len = base_len;
	e->path_len = len;
	e->target_base_len = target_base_len;
	e->target_len = target_len;
	e->h.size = sizeof(*e) + base_len + len + target_base_len + target_len;

	e->h.seq = next_seq(c, !bpf_ringbuf_reserve_dynptr(&file_ring, e->h.size, 0, &record));
	if (!e->h.seq) {
		bpf_ringbuf_discard_dynptr(&record, 0);
		return 0;
	}
	at = sizeof(*e);
	bpf_dynptr_write(&record, 0, e, sizeof(*e), 0);
	bpf_dynptr_write(&record, at, &s->path.base.buf[MAX_PATH - base_len], base_len, 0);
	at += base_len;
	bpf_dynptr_write(&record, at, s->path.text, len, 0);
	at += len;
	bpf_dynptr_write(&record, at, &s->target.base.buf[MAX_PATH - target_base_len], target_base_len, 0);
	at += target_base_len;
	bpf_dynptr_write(&record, at, s->target.text, target_len, 0);
	bpf_ringbuf_submit_dynptr(&record, 0);
	return 0;
}
