/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the node's owner does not want to hear of: containers, programs with all that descends from them, peers of
 * connections. It is left out here, before anything is read for it, and counted as filtered.
 */
#pragma once

#include "task.h"

/* Cgroups that are ignored. One that is pushed out for want of room is told again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u32);
} ignored_cgroups SEC(".maps");

/* Executables that are ignored from their exec on, as the process sees their path, NUL padded. */
struct program_key {
	char path[PROGRAM_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, struct program_key);
	__type(value, __u32);
} ignored_programs SEC(".maps");

struct process_id {
	__u64 start_time;
	__u32 tgid;
	__u32 pad;
};

/* A process that runs an ignored program, or descends from one. */
struct mark {
	__u32 generation; /* of the set of programs: a mark of another one says nothing */
	__u32 root; /* its exec was told: it runs the program itself */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct process_id);
	__type(value, struct mark);
} ignored_processes SEC(".maps");

/* Networks whose addresses are ignored as the other end of a connection; IPv4 as ::ffff:0:0/96. */
struct peer_key {
	__u32 prefix_bits;
	__u8 addr[16];
};

struct peer_ports {
	__u16 ports[4]; /* host byte order; 0 ends them; none: all */
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct peer_key);
	__type(value, struct peer_ports);
} ignored_peers SEC(".maps");

static __always_inline void identify(struct process_id *id, struct task_struct *task)
{
	id->start_time = task->group_leader->start_boottime;
	id->tgid = task->tgid;
	id->pad = 0;
}

static __noinline bool in_ignored_cgroup(struct task_struct *task)
{
	__u64 cgroup = cgroup_of(task);

	return bpf_map_lookup_elem(&ignored_cgroups, &cgroup) != NULL;
}

/* The mark of a process that is ignored for its program; NULL: it is not. */
static __noinline struct mark *ignored_for_program(struct task_struct *task)
{
	struct process_id id;
	struct mark *mark;

	identify(&id, task);
	mark = bpf_map_lookup_elem(&ignored_processes, &id);
	return mark && mark->generation == config.generation ? mark : NULL;
}

/* Whether what a task does is ignored; counts it. */
static __always_inline bool left_out(struct task_struct *task, struct counters *c)
{
	if (!(config.ignoring & (IGNORE_CGROUPS | IGNORE_PROGRAMS)))
		return false;
	if ((config.ignoring & IGNORE_CGROUPS && in_ignored_cgroup(task)) ||
	    (config.ignoring & IGNORE_PROGRAMS && ignored_for_program(task))) {
		count(&c->filtered);
		return true;
	}
	return false;
}

/* Marks a process; if there is no room it is told like any other. */
static __noinline void ignore_process(struct task_struct *task, bool root, struct counters *c)
{
	struct mark mark = {.generation = config.generation, .root = root};
	struct process_id id;

	identify(&id, task);
	if (bpf_map_update_elem(&ignored_processes, &id, &mark, 0))
		count(&c->errors[ERROR_STORAGE]);
}
