/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is known of the names of a call before it ends: of a system call what a hook told (hooks.h), of a request
 * through an io_uring what it was submitted with (uring.h), and then what a hook told.
 */
#pragma once

#include "maps.h"
#include "recipe.h"

/* Set by Load: something is noted on this kernel. */
const volatile bool noting = false;

struct noted {
	__u64 user; /* a call's path argument: with call it tells this call from an earlier one of the thread */
	__u64 number; /* utimes: as in path_event */
	__u32 call; /* enum call */
	__u32 action; /* enum event_action */
	__u32 has_target; /* target is filled */
	__u32 pad;
	struct named path;
	struct named target;
};

/*
 * By thread id, or by the address of a request, which is no thread id. There are as many as there are calls between
 * the hook and their end, and requests under way: far fewer than threads. Size: set by Load.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct noted);
} noted SEC(".maps");

/* What an entry begins as: an update wants all of a value at once, and none fits on the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct noted);
} nothing_noted SEC(".maps");

/* A new entry; NULL when there is no room, which is counted. */
static __noinline struct noted *note(__u64 key, __u32 call, __u32 action)
{
	struct counters *c;
	struct noted *n;
	__u32 zero = 0;

	n = bpf_map_lookup_elem(&nothing_noted, &zero);
	if (!n)
		return NULL;
	bpf_map_update_elem(&noted, &key, n, 0);
	n = bpf_map_lookup_elem(&noted, &key);
	if (!n) {
		c = counters_of(bpf_get_smp_processor_id(), CLASS_FILE);
		if (c)
			count(&c->errors[ERROR_STORAGE]);
		return NULL;
	}
	n->call = call;
	n->action = action;
	n->number = NO_NUMBER;
	no_name(&n->path);
	no_name(&n->target);
	return n;
}

/* Reads a text of the kernel's own. */
static __always_inline void copy_text(struct named *n, const char *text)
{
	long len = bpf_probe_read_kernel_str(n->text, sizeof(n->text), text);

	if (len < 1) {
		n->flags |= PATH_FAULT;
		return;
	}
	n->text_len = (len - 1) & (MAX_PATH - 1); /* without the NUL; the mask is for the verifier */
}

static __always_inline void copy_named(struct named *to, struct named *from)
{
	__u32 pos = from->base.pos, len = from->text_len & (MAX_PATH - 1);

	no_name(to);
	to->base.flags = from->base.flags;
	to->flags = from->flags;
	if (len) {
		to->text_len = len;
		bpf_probe_read_kernel(to->text, len, from->text);
	}
	if (pos >= MAX_PATH)
		return;
	to->base.pos = pos;
	bpf_probe_read_kernel(&to->base.buf[pos], MAX_PATH - pos, &from->base.buf[pos]);
}

/*
 * Takes what was noted under key, which is then forgotten; false when that is nothing, or of another call. Then nothing
 * is changed.
 */
static __noinline bool take_noted(__u64 key, struct named *path, struct named *target, struct syscall *sc, __u64 user)
{
	bool taken = false;
	struct noted *n;

	if (!noting)
		return false;
	n = bpf_map_lookup_elem(&noted, &key);
	if (!n)
		return false;
	if (n->call == sc->call && n->user == user) {
		taken = true;
		sc->number = n->number;
		copy_named(path, &n->path);
		if (n->has_target)
			copy_named(target, &n->target);
	}
	bpf_map_delete_elem(&noted, &key);
	return taken;
}
