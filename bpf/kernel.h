/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Class kernel: calls that change what a process may do, what it sees of the machine, other processes, or the kernel
 * itself. They are told at their end, whether they succeeded or not, with their arguments as the caller had them,
 * and with credentials, capabilities and namespaces as the kernel has them afterwards.
 */
#pragma once

#include "lib/select.h"
#include "lib/maps.h"
#include "lib/noted.h"
#include "lib/recipe.h"
#include "lib/task.h"

/* One per CPU is enough, as for exec_scratch: only the program on sys_exit uses it. */
struct call_scratch {
	struct call_event event;
	struct named path;
	struct named target;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct call_scratch);
} call_scratch SEC(".maps");

/* Numbers of the system call interface (linux/…h), as far as they decide what is an event. */
#define CLONE_NEW_NAMESPACES 0x7e020080 /* of sched.h: every CLONE_NEW… flag */
#define PROT_WRITE_EXEC (2 | 4) /* mman.h */
#define MAP_ANONYMOUS 0x20
#define OPEN_TREE_CLONE 1 /* mount.h */
#define FSCONFIG_SET_STRING 1
#define PERSONALITY_QUERY 0xffffffff
#define BPF_MAP_CREATE 0 /* bpf.h */
#define BPF_PROG_LOAD 5
#define BPF_OBJ_PIN 6
#define BPF_OBJ_GET 7
#define BPF_PROG_ATTACH 8
#define BPF_PROG_DETACH 9
#define BPF_RAW_TRACEPOINT_OPEN 17
#define BPF_LINK_CREATE 28
#define BPF_LINK_UPDATE 29
#define BPF_LINK_DETACH 34
#define BPF_NAME_LEN 16

/* ptrace.h: what reads, waits or lets go is no event; each step of a debugger would be one. */
static __always_inline bool ptrace_matters(__u32 request)
{
	switch (request) {
	case 0: /* TRACEME */
	case 4: /* POKETEXT */
	case 5: /* POKEDATA */
	case 6: /* POKEUSR */
	case 8: /* KILL */
	case 13: /* SETREGS */
	case 15: /* SETFPREGS */
	case 16: /* ATTACH */
	case 0x4203: /* SETSIGINFO */
	case 0x4205: /* SETREGSET */
	case 0x4206: /* SEIZE */
	case 0x4212: /* SET_SYSCALL_INFO */
		return true;
	}
	return false;
}

/* prctl.h: what gives or keeps rights, changes what others may read of a process, or what it seems to be. */
static __always_inline bool prctl_matters(__u32 option, __u64 second)
{
	switch (option) {
	case 4: /* SET_DUMPABLE */
	case 8: /* SET_KEEPCAPS */
	case 22: /* SET_SECCOMP */
	case 28: /* SET_SECUREBITS */
	case 35: /* SET_MM */
	case 36: /* SET_CHILD_SUBREAPER */
	case 0x59616d61: /* SET_PTRACER */
		return true;
	case 47: /* CAP_AMBIENT */
		return second == 2; /* RAISE */
	}
	return false;
}

static __always_inline bool bpf_matters(__u32 command)
{
	switch (command) {
	case BPF_MAP_CREATE:
	case BPF_PROG_LOAD ... BPF_PROG_DETACH:
	case BPF_RAW_TRACEPOINT_OPEN:
	case BPF_LINK_CREATE:
	case BPF_LINK_UPDATE:
	case BPF_LINK_DETACH:
		return true;
	}
	return false;
}

#define ARG(n) sc->args[(n) - 1]

/* Whether the call is an event: those that programs make all the time are looked at first. */
static __always_inline bool call_matters(const struct syscall *sc)
{
	switch (sc->call) {
	case CALL_MMAP:
	case CALL_MPROTECT:
	case CALL_PKEY_MPROTECT:
		return (ARG(3) & PROT_WRITE_EXEC) == PROT_WRITE_EXEC;
	case CALL_PRCTL:
		return prctl_matters(ARG(1), ARG(2));
	case CALL_PTRACE:
		return ptrace_matters(ARG(1));
	case CALL_BPF:
		return bpf_matters(ARG(1));
	case CALL_UNSHARE:
		return ARG(1) & CLONE_NEW_NAMESPACES;
	case CALL_OPEN_TREE:
		return ARG(3) & OPEN_TREE_CLONE;
	case CALL_SECCOMP:
		return ARG(1) <= 1; /* SET_MODE_STRICT, SET_MODE_FILTER */
	case CALL_PERSONALITY:
		return (__u32)ARG(1) != PERSONALITY_QUERY;
	case CALL_SYSLOG:
		return ARG(1) >= 4 && ARG(1) <= 8; /* READ_CLEAR, CLEAR, and what the console shows */
	default:
		return true;
	}
}

/* What a bpf call made, from the object behind its descriptor; of one that failed, what its caller's memory says. */
static __always_inline void fill_bpf(struct call_event *e, struct task_struct *task, const struct syscall *sc,
				     struct counters *c)
{
	__u32 command = ARG(1);
	const char *attr = (const char *)ARG(2);
	struct file *file = NULL;
	struct bpf_prog_aux *aux;
	struct bpf_prog *prog;
	struct bpf_map *map;

	switch (command) {
	case BPF_PROG_LOAD:
	case BPF_MAP_CREATE:
	case BPF_RAW_TRACEPOINT_OPEN:
	case BPF_LINK_CREATE:
		break;
	default:
		return;
	}
	if (e->result >= 0)
		file = open_file(task, e->result);
	if (!file) {
		if (command == BPF_RAW_TRACEPOINT_OPEN || command == BPF_LINK_CREATE)
			return;
		e->path_flags |= PATH_USER;
		/* union bpf_attr: the type is first; the names of programs and maps have their places */
		if (bpf_probe_read_user(&e->type, sizeof(e->type), attr) ||
		    bpf_probe_read_user(e->text, BPF_NAME_LEN, attr + (command == BPF_PROG_LOAD ? 48 : 28)))
			count(&c->errors[ERROR_USER_ADDRESS]);
		return;
	}
	if (command == BPF_MAP_CREATE) {
		map = READ(file, private_data);
		e->type = READ(map, map_type);
		bpf_core_read(e->text, BPF_NAME_LEN, &map->name);
		return;
	}
	prog = READ(file, private_data);
	if (command != BPF_PROG_LOAD)
		prog = READ((struct bpf_link *)prog, prog);
	e->type = READ(prog, type);
	aux = READ(prog, aux);
	bpf_core_read(e->text, BPF_NAME_LEN, &aux->name);
}

/* What every event of the class has: who may do what, after the call. */
static __always_inline void fill_state(struct call_event *e, struct task_struct *task)
{
	const struct cred *cred = task->cred;
	struct nsproxy *nsproxy = task->nsproxy;

	bpf_core_read(&e->cap_effective, sizeof(e->cap_effective), &cred->cap_effective);
	bpf_core_read(&e->cap_permitted, sizeof(e->cap_permitted), &cred->cap_permitted);
	bpf_core_read(&e->cap_inheritable, sizeof(e->cap_inheritable), &cred->cap_inheritable);
	e->suid = cred->suid.val;
	e->sgid = cred->sgid.val;
	e->fsuid = cred->fsuid.val;
	e->fsgid = cred->fsgid.val;
	if (nsproxy) {
		e->uts_ns = nsproxy->uts_ns->ns.inum;
		e->ipc_ns = nsproxy->ipc_ns->ns.inum;
		e->cgroup_ns = nsproxy->cgroup_ns->ns.inum;
	}
}

static __always_inline void submit_call(struct call_scratch *s, struct counters *c)
{
	struct lengths n;
	struct call_event *e = &s->event;
	struct bpf_dynptr record;

	e->h.class = CLASS_KERNEL;
	e->h.action = ACTION_CALL;
	e->path_flags |= s->path.flags | s->path.base.flags;
	e->target_flags = s->target.flags | s->target.base.flags;
	if ((e->path_flags | e->target_flags) & PATH_FAULT)
		count(&c->errors[ERROR_PATH]);
	e->h.size = sizeof(*e) + measure(&n, &s->path, &s->target);
	e->base_len = n.base;
	e->path_len = n.text;
	e->target_base_len = n.target_base;
	e->target_len = n.target;

	e->h.seq = next_seq(c, !bpf_ringbuf_reserve_dynptr(&kernel_ring, e->h.size, 0, &record));
	if (!e->h.seq) {
		bpf_ringbuf_discard_dynptr(&record, 0);
		return;
	}
	bpf_dynptr_write(&record, 0, e, sizeof(*e), 0);
	write_names(&record, sizeof(*e), &n, &s->path, &s->target);
	bpf_ringbuf_submit_dynptr(&record, 0);
}

static __noinline int on_call(struct task_struct *task, struct syscall *sc)
{
	__u32 call = sc->call, zero = 0;
	struct counters *c;
	struct call_scratch *s;
	const struct recipe *r;
	struct call_event *e;
	struct inode *inode;
	struct fs_struct *fs;
	__u64 pointer;
	bool known;

	if (call >= NUM_CALLS || !call_matters(sc))
		return 0;
	c = counters_of(bpf_get_smp_processor_id(), CLASS_KERNEL);
	s = bpf_map_lookup_elem(&call_scratch, &zero);
	if (!c || !s || left_out(task, c))
		return 0;
	r = &recipes[call];
	e = &s->event;
	__builtin_memset(e, 0, sizeof(*e));
	no_name(&s->path);
	no_name(&s->target);
	fill_header(&e->h, task);
	e->h.flags |= sc->flags;
	fill_state(e, task);
	e->call = call;
	e->result = sc->ret;
	e->args[0] = ARG(1);
	e->args[1] = ARG(2);
	e->args[2] = ARG(3);
	e->args[3] = ARG(4);
	e->args[4] = ARG(5);
	e->args[5] = ARG(6);

	if (r->fd && !(call == CALL_MMAP && ARG(4) & MAP_ANONYMOUS)) {
		inode = walk_file(&s->path, task, open_file(task, argument(sc, r->fd)));
		if (inode)
			e->ino = READ(inode, i_ino);
	}
	known = r->path && take_noted(task->pid, &s->path, &s->target, sc, argument(sc, r->path));
	if (known && call == CALL_MOUNT) {
		bpf_probe_read_kernel_str(e->text, sizeof(e->text), s->path.text);
		s->path.text_len = 0;
	}
	fs = task->fs;
	if (call == CALL_CHROOT && !sc->ret && fs)
		/* the new root itself, as its mount namespace has it */
		walk_to_top(&s->path.base, fs->root.mnt, fs->root.dentry);
	else if (r->path && !known)
		read_named(&s->path, task, (const char *)argument(sc, r->path), directory(sc, r->dir));
	if (r->target && !known && !(call == CALL_FSCONFIG && ARG(2) != FSCONFIG_SET_STRING))
		read_named(&s->target, task, (const char *)argument(sc, r->target),
			   directory(sc, r->target_dir));
	/* A text that is not there, as the type of a bind mount, is none. */
	if (r->text && !known && argument(sc, r->text)) {
		e->path_flags |= PATH_USER;
		if (bpf_probe_read_user_str(e->text, sizeof(e->text), (void *)argument(sc, r->text)) < 0)
			count(&c->errors[ERROR_USER_ADDRESS]);
	}
	if (r->number) {
		e->path_flags |= PATH_USER;
		pointer = argument(sc, r->number);
		if (pointer && bpf_probe_read_user(&e->number, r->number_size == 8 && !(sc->flags & HEADER_COMPAT) ? 8 : 4,
						   (void *)(pointer + r->number_at)))
			count(&c->errors[ERROR_USER_ADDRESS]);
	}
	if (call == CALL_BPF) {
		if (ARG(1) == BPF_OBJ_PIN || ARG(1) == BPF_OBJ_GET) {
			if (!bpf_probe_read_user(&pointer, sizeof(pointer), (void *)ARG(2)))
				read_named(&s->path, task, (const char *)pointer, AT_FDCWD);
		} else {
			fill_bpf(e, task, sc, c);
		}
	}
	if (call == CALL_PERF_EVENT_OPEN && bpf_probe_read_user(&e->type, sizeof(e->type), (void *)ARG(1)))
		count(&c->errors[ERROR_USER_ADDRESS]);
	submit_call(s, c);
	return 0;
}

/* si_code of signals that a process sent (asm-generic/siginfo.h). */
#define SI_USER 0
#define SI_QUEUE (-1)
#define SI_TKILL (-6)

/* How struct kernel_siginfo is given for a signal without one: SEND_SIG_NOINFO, sent by a process. */
#define SEND_SIG_NOINFO 0
#define SEND_SIG_PRIV 1

/*
 * Signals to other processes. Where a signal ends up is the kernel's to say, for kill(2) may name a group, all
 * processes, or a pidfd: so it is told when it is generated, for each process that gets it. Attempts that are
 * refused, and the probe with signal 0, generate none.
 */
SEC("tp_btf/signal_generate")
int picket_signal(__u64 *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf(), *target = (void *)ctx[2];
	struct kernel_siginfo *info = (void *)ctx[1];
	struct call_event *e;
	struct counters *c;
	int code = SI_USER;
	bool compat;
	void *regs;
	__u32 call;
	__u64 seq;

	if (config.stopped || target->tgid == task->tgid || (__u64)info == SEND_SIG_PRIV)
		return 0;
	if ((__u64)info != SEND_SIG_NOINFO)
		code = READ(info, si_code);
	if (code != SI_USER && code != SI_TKILL && code != SI_QUEUE)
		return 0;
	if (is_self(task))
		return 0;
	regs = (void *)bpf_task_pt_regs(task);
	compat = is_compat(task);
	call = current_call(regs, compat);
	if (!wanted(call))
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
	e->call = call;
	e->args[0] = (__u32)ctx[0];
	e->subject_tgid = target->tgid;
	e->subject_start_time = target->group_leader->start_boottime;
	bpf_core_read(e->text, sizeof(target->comm), &target->group_leader->comm);
	bpf_ringbuf_submit(e, 0);
	return 0;
}
