/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Class file: what changes names, attributes and sizes of files, at the end of the system call, whether it succeeded
 * or not. Where each call has what is told of it is in lib/recipe.h; what the kernel made of its paths, in hooks.h.
 */
#pragma once

#include "hooks.h"
#include "lib/select.h"
#include "lib/maps.h"
#include "lib/recipe.h"
#include "lib/task.h"

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

#define AT_REMOVEDIR 0x200

/* The modification time that a call sets, in nanoseconds since 1970; NO_NUMBER: now, or it could not be read. */
static __always_inline __u64 read_time(const struct recipe *r, const struct syscall *sc, struct counters *c)
{
	__u64 pointer = argument(sc, r->times), t[2] = {};

	/* 32-bit programs have times of two layouts, and what they set is in the file's inode. */
	if (!pointer || sc->flags & HEADER_COMPAT)
		return NO_NUMBER;
	if (bpf_probe_read_user(t, r->times_unit ? 16 : 8, (void *)(pointer + r->times_at))) {
		count(&c->errors[ERROR_USER_ADDRESS]);
		return NO_NUMBER;
	}
	if (t[1] >= UTIME_SPECIAL)
		return NO_NUMBER;
	return t[0] * 1000000000 + t[1] * r->times_unit;
}

static __noinline int on_change(struct task_struct *task, struct syscall *sc)
{
	__u32 call = sc->call;
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_FILE);
	__u32 zero = 0, fd;
	struct lengths n;
	struct bpf_dynptr record;
	const struct recipe *r;
	struct path_scratch *s;
	struct path_event *e;
	struct inode *inode;
	bool known;

	s = bpf_map_lookup_elem(&path_scratch, &zero);
	if (!c || !s || call >= NUM_CALLS)
		return 0;
	r = &recipes[call];
	e = &s->event;
	__builtin_memset(e, 0, sizeof(*e));
	e->h.action = r->action;
	e->new_mode = e->new_uid = e->new_gid = NOT_CHANGED;
	e->number = NO_NUMBER;
	if (call == CALL_UNLINKAT && argument(sc, 3) & AT_REMOVEDIR)
		e->h.action = ACTION_RMDIR;
	no_name(&s->path);
	no_name(&s->target);
	if (sc->flags & HEADER_IO_URING) {
		known = true;
		if (!take_noted(sc->args[RING_REQUEST], &s->path, &s->target, sc, 0)) {
			/* There was no room for its names, which is counted. */
			s->path.flags = PATH_FAULT;
			s->target.flags = r->target ? PATH_FAULT : 0;
		}
	} else {
		known = !r->fd && take_noted(task->pid, &s->path, &s->target, sc, argument(sc, r->path));
	}
	fd = argument(sc, r->fd ? r->fd : 1);
	/* utimensat and futimesat without a path: of the descriptor itself */
	if (r->fd || (r->times && r->dir && !argument(sc, r->path))) {
		inode = walk_file(&s->path, task,
				  sc->flags & HEADER_IO_URING ? (struct file *)sc->args[RING_FILE] : open_file(task, fd));
		if (inode) {
			if (call == CALL_FTRUNCATE && !READ(inode, i_nlink)) {
				/* memory of its own, or a file already deleted: no one else's view of files changes */
				count(&c->filtered);
				return 0;
			}
			e->ino = READ(inode, i_ino);
			e->dev = encode_dev(READ(inode, i_sb, s_dev));
			e->mode = READ(inode, i_mode);
			e->uid = READ(inode, i_uid.val);
			e->gid = READ(inode, i_gid.val);
		}
	} else if (!known) {
		read_named(&s->path, task, (const char *)argument(sc, r->path), directory(sc, r->dir));
	}
	if (r->target && !known)
		read_named(&s->target, task, (const char *)argument(sc, r->target),
			   directory(sc, r->target_dir));
	if (r->mode)
		e->new_mode = argument(sc, r->mode) & (r->action == ACTION_MKNOD ? 0177777 : 07777);
	if (r->owner) {
		e->new_uid = argument(sc, r->owner);
		e->new_gid = argument(sc, r->owner + 1);
	}
	if (r->length)
		e->number = argument(sc, r->length);
	if (r->times)
		e->number = known ? sc->number : read_time(r, sc, c);

	if (left_out(task, c))
		return 0;
	fill_header(&e->h, task);
	if (crowded_out(&file_ring, CLASS_FILE, c, e->h.cgroup_id, 1))
		return 0;
	e->h.class = CLASS_FILE;
	e->h.flags |= sc->flags;
	e->call = call;
	e->result = sc->ret;
	e->path_flags = s->path.flags | s->path.base.flags;
	e->target_flags = s->target.flags | s->target.base.flags;
	if ((e->path_flags | e->target_flags) & PATH_FAULT)
		count(&c->errors[ERROR_PATH]);
	e->h.size = sizeof(*e) + measure(&n, &s->path, &s->target);
	e->base_len = n.base;
	e->path_len = n.text;
	e->target_base_len = n.target_base;
	e->target_len = n.target;

	e->h.seq = next_seq(c, !bpf_ringbuf_reserve_dynptr(&file_ring, e->h.size, 0, &record));
	if (!e->h.seq) {
		bpf_ringbuf_discard_dynptr(&record, 0);
		return 0;
	}
	bpf_dynptr_write(&record, 0, e, sizeof(*e), 0);
	write_names(&record, sizeof(*e), &n, &s->path, &s->target);
	bpf_ringbuf_submit_dynptr(&record, 0);
	return 0;
}
