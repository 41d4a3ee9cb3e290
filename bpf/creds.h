/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Credentials that change where no call is made that changes them: what an exploit of the kernel does to the process
 * that runs it. Only where the kernel lets programs attach to its functions (hooks.go).
 */
#pragma once

#include "kernel.h"
#include "lib/maps.h"
#include "lib/task.h"

/* Set by a test: no call explains a change. */
const volatile bool every_commit = false;

/* The calls that may change ids, capabilities or the user namespace. */
static __always_inline bool changes_credentials(__u32 call)
{
	switch (call) {
	case CALL_SETUID ... CALL_UNSHARE:
	case CALL_PRCTL:
	case CALL_EXECVE:
	case CALL_EXECVEAT:
		return !every_commit;
	}
	return false;
}

/* Whether b may do what a may not, or is somebody else. Keyrings and labels of security modules do not count. */
static __always_inline bool differ(const struct cred *a, const struct cred *b)
{
	__u64 effective[2] = {}, permitted[2] = {};

	bpf_core_read(&effective[0], 8, &a->cap_effective);
	bpf_core_read(&permitted[0], 8, &a->cap_permitted);
	bpf_core_read(&effective[1], 8, &b->cap_effective);
	bpf_core_read(&permitted[1], 8, &b->cap_permitted);
	return (effective[1] & ~effective[0]) || (permitted[1] & ~permitted[0]) ||
	       a->uid.val != b->uid.val || a->euid.val != b->euid.val || a->suid.val != b->suid.val ||
	       a->fsuid.val != b->fsuid.val || a->gid.val != b->gid.val || a->egid.val != b->egid.val ||
	       a->sgid.val != b->sgid.val || a->fsgid.val != b->fsgid.val || a->user_ns != b->user_ns;
}

SEC("fentry/commit_creds")
int picket_commit_creds(__u64 *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	const struct cred *new = (void *)ctx[0], *old = task->cred;
	struct call_event *e;
	struct counters *c;
	bool compat;
	__u64 seq;

	if (config.stopped || task->flags & PF_KTHREAD || is_self(task) || !wanted(CALL_COMMIT_CREDS))
		return 0;
	compat = is_compat(task);
	if (changes_credentials(current_call((void *)bpf_task_pt_regs(task), compat)) || !differ(old, new))
		return 0;
	c = counters_of(bpf_get_smp_processor_id(), CLASS_KERNEL);
	if (!c || left_out(task, c))
		return 0;
	e = bpf_ringbuf_reserve(&kernel_ring, sizeof(*e), 0);
	seq = next_seq(c, e != NULL);
	if (!e)
		return 0;
	__builtin_memset(e, 0, sizeof(*e));
	fill_header(&e->h, task);
	e->h.seq = seq;
	e->h.size = sizeof(*e);
	e->h.class = CLASS_KERNEL;
	e->h.action = ACTION_CALL;
	fill_state(e, task);
	if (compat)
		e->h.flags |= HEADER_COMPAT;
	e->call = CALL_COMMIT_CREDS;
	e->args[0] = new->euid.val;
	/* As it is after it. */
	bpf_core_read(&e->cap_effective, sizeof(e->cap_effective), &new->cap_effective);
	bpf_core_read(&e->cap_permitted, sizeof(e->cap_permitted), &new->cap_permitted);
	bpf_core_read(&e->cap_inheritable, sizeof(e->cap_inheritable), &new->cap_inheritable);
	e->h.uid = new->uid.val;
	e->h.euid = new->euid.val;
	e->h.gid = new->gid.val;
	e->h.egid = new->egid.val;
	e->h.user_ns = new->user_ns->ns.inum;
	e->suid = new->suid.val;
	e->sgid = new->sgid.val;
	e->fsuid = new->fsuid.val;
	e->fsgid = new->fsgid.val;
	bpf_ringbuf_submit(e, 0);
	return 0;
}
