/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who a task is. */
#pragma once

#include "maps.h"

/* The id of a process in its own namespace, and that namespace's inode. */
static __always_inline void own_pid(struct task_struct *leader, __u32 *nr, __u32 *ns)
{
	/* Read as a number, not loaded as a pointer: 6.1's verifier does no arithmetic with those. */
	struct pid *pid = BPF_CORE_READ(leader, thread_pid);
	struct upid *own;
	unsigned int level;

	*nr = *ns = 0;
	if (!pid)
		return;
	level = READ(pid, level);
	own = (void *)pid + bpf_core_field_offset(struct pid, numbers) + level * bpf_core_type_size(struct upid);
	*nr = READ(own, nr);
	*ns = READ(own, ns, ns.inum);
}

/*
 * Set by Load: the hierarchy whose groups name containers. Where a node's controllers are those of version 1 it is one of
 * them, and cgroup2 may be empty.
 */
const volatile __s32 cgroup_hierarchy = 0; /* its number; 0: cgroup2 */
const volatile __u32 cgroup_controller = 0; /* of version 1: the index of its controller in struct css_set */

/* The id of a task's cgroup. */
static __always_inline __u64 cgroup_of(struct task_struct *task)
{
	struct cgroup_subsys_state *state;
	struct css_set *set;

	if (!cgroup_hierarchy)
		return task->cgroups->dfl_cgrp->kn->id;
	set = BPF_CORE_READ(task, cgroups);
	if (bpf_rdonly_cast)
		state = ((struct css_set *)bpf_rdonly_cast(set, bpf_core_type_id_kernel(struct css_set)))->subsys[cgroup_controller & 15];
	else
		bpf_core_read(&state, sizeof(state), &set->subsys[cgroup_controller & 15]);
	return READ(state, cgroup, kn, id);
}

/* Fills what every event says of its actor, the current task; size, seq, class and action are its own. */
static __noinline void fill_header(struct header *h, struct task_struct *task)
{
	struct task_struct *leader = task->group_leader, *parent = task->real_parent;
	const struct cred *cred = task->cred;
	struct nsproxy *nsproxy = task->nsproxy;

	h->version = LAYOUT_VERSION;
	h->flags = task->flags & PF_KTHREAD ? HEADER_KERNEL_THREAD : 0;
	h->cpu = bpf_get_smp_processor_id();
	h->time = bpf_ktime_get_boot_ns();
	h->cgroup_id = cgroup_of(task);
	h->tgid = task->tgid;
	h->tid = task->pid;
	h->start_time = leader->start_boottime;
	own_pid(leader, &h->ns_pid, &h->pid_ns);
	h->parent_tgid = parent->tgid;
	h->parent_start_time = parent->group_leader->start_boottime;
	h->mnt_ns = h->net_ns = 0;
	if (nsproxy) {
		h->mnt_ns = nsproxy->mnt_ns->ns.inum;
		h->net_ns = nsproxy->net_ns->ns.inum;
	}
	h->user_ns = cred->user_ns->ns.inum;
	h->uid = cred->uid.val;
	h->euid = cred->euid.val;
	h->gid = cred->gid.val;
	h->egid = cred->egid.val;
	h->loginuid = h->sessionid = 0xffffffff;
	if (bpf_core_field_exists(task->loginuid)) {
		h->loginuid = task->loginuid.val;
		h->sessionid = task->sessionid;
	}
	/* Not by the helper for it, which programs on packets do not have before 6.10. */
	bpf_core_read(h->comm, sizeof(h->comm), &task->comm);
}

/* The sensor's own file and network activity would feed on itself: it is not looked at. */
static __always_inline bool is_self(struct task_struct *task)
{
	return (__u32)task->tgid == config.self_tgid && task->group_leader->start_boottime == config.self_start_time;
}
