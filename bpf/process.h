/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Class process: exec, fork, exit. */
#pragma once

#include "capabilities.h"
#include "lib/maps.h"
#include "lib/path.h"
#include "lib/select.h"
#include "lib/syscall.h"
#include "lib/task.h"

/*
 * Set by Load: since 6.16 the exit tracepoint itself says which thread was the last of its process. With
 * older kernels two threads that end at the same time can both find none alive, and the first one to enter
 * (start time, id) into this map tells.
 */
const volatile bool exit_tells_last = false;

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct process_id);
	__type(value, __u32);
} exited SEC(".maps");

/*
 * An exec event's strings are collected here, because their lengths are needed to reserve room for them.
 * One per CPU is enough: a program is never entered twice on one CPU (the kernel skips and counts that,
 * see Kernel.Missed), and only exec uses this one.
 */
struct exec_scratch {
	struct exec_event event;
	struct walk exe; /* behind each walk there must be room for another MAX_PATH: see file_scratch */
	struct walk cwd;
	char filename[MAX_PATH + 8]; /* one byte more than the bound tells "longer" from "fits" */
	char args[MAX_ARGS];
	char env[MAX_ENV];
	struct program_key key;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct exec_scratch);
} exec_scratch SEC(".maps");

static __always_inline __s64 nanoseconds(__s64 sec, __u32 nsec)
{
	/* bit 31 of i_ctime_nsec is a mark of the kernel's (multigrain timestamps, 6.13) */
	return sec * 1000000000LL + (nsec & 0x7fffffff);
}

/* Owner, times and layer of the executable. */
static __always_inline void fill_exe(struct exec_event *e, struct dentry *dentry, struct inode *inode)
{
	struct inode___v67 *v67 = (void *)inode;
	struct inode___v61 *v61 = (void *)inode;
	struct super_block *sb = READ(inode, i_sb);
	const unsigned char *name = READ(dentry, d_name.name);
	struct dentry *upper;
	char start[6] = {};

	e->exe_ino = READ(inode, i_ino);
	e->exe_mode = READ(inode, i_mode);
	e->exe_uid = READ(inode, i_uid.val);
	e->exe_gid = READ(inode, i_gid.val);
	e->exe_dev = encode_dev(READ(sb, s_dev));

	if (bpf_core_field_exists(inode->i_ctime_sec))
		e->exe_ctime = nanoseconds(READ(inode, i_ctime_sec), READ(inode, i_ctime_nsec));
	else if (bpf_core_field_exists(v67->__i_ctime))
		e->exe_ctime = nanoseconds(READ(v67, __i_ctime.tv_sec), READ(v67, __i_ctime.tv_nsec));
	else
		e->exe_ctime = nanoseconds(READ(v61, i_ctime.tv_sec), READ(v61, i_ctime.tv_nsec));
	if (bpf_core_field_exists(inode->i_mtime_sec))
		e->exe_mtime = nanoseconds(READ(inode, i_mtime_sec), READ(inode, i_mtime_nsec));
	else if (bpf_core_field_exists(v67->__i_mtime))
		e->exe_mtime = nanoseconds(READ(v67, __i_mtime.tv_sec), READ(v67, __i_mtime.tv_nsec));
	else
		e->exe_mtime = nanoseconds(READ(v61, i_mtime.tv_sec), READ(v61, i_mtime.tv_nsec));

	if (is_deleted(dentry, READ(inode, i_nlink)))
		e->exe_flags |= PATH_DELETED;
	/* A memfd is a file of an internal mount whose entry is its own parent and is called "memfd:…". */
	if (READ(dentry, d_parent) == dentry && !bpf_probe_read_kernel(start, sizeof(start), name) &&
	    start[0] == 'm' && start[1] == 'e' && start[2] == 'm' && start[3] == 'f' && start[4] == 'd' &&
	    start[5] == ':')
		e->flags |= EXEC_MEMFD;
	/*
	 * overlayfs keeps the upper dentry right behind its inode (struct ovl_inode). The offset is taken from
	 * the inode's size, because overlayfs may be a module, whose types the kernel's own BTF has not.
	 */
	if (READ(sb, s_magic) == OVERLAYFS_SUPER_MAGIC &&
	    !bpf_probe_read_kernel(&upper, sizeof(upper), (void *)inode + bpf_core_type_size(struct inode)))
		e->flags |= upper ? EXEC_UPPER : EXEC_LOWER;
}

static __always_inline __u32 pid_nr(struct signal_struct *signal, int type)
{
	struct pid *pid;

	if (bpf_core_read(&pid, sizeof(pid), &signal->pids[type]) || !pid)
		return 0;
	/* numbers[0] is the initial namespace's */
	return READ(pid, numbers[0].nr);
}

static __always_inline void fill_session(struct exec_event *e, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;
	struct tty_struct *tty = READ(signal, tty);
	__u32 major, minor;

	e->pgid = pid_nr(signal, PIDTYPE_PGID);
	e->sid = pid_nr(signal, PIDTYPE_SID);
	e->tty_dev = 0;
	__builtin_memset(e->tty, 0, sizeof(e->tty));
	if (!tty)
		return;
	major = READ(tty, driver, major);
	minor = READ(tty, driver, minor_start) + READ(tty, index);
	e->tty_dev = encode_dev(major << 20 | minor);
	bpf_probe_read_kernel_str(e->tty, sizeof(e->tty), &tty->name);
}

static __always_inline void fill_credentials(struct exec_event *e, struct task_struct *task)
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
	e->uts_ns = e->ipc_ns = e->cgroup_ns = 0;
	if (nsproxy) {
		e->uts_ns = nsproxy->uts_ns->ns.inum;
		e->ipc_ns = nsproxy->ipc_ns->ns.inum;
		e->cgroup_ns = nsproxy->cgroup_ns->ns.inum;
	}
}

static __always_inline void read_args(struct exec_scratch *s, struct counters *c, struct task_struct *task)
{
	struct exec_event *e = &s->event;
	__u64 start = READ(task, mm, arg_start), total = READ(task, mm, arg_end) - start;
	__u64 len = total;

	e->args_total = total;
	if (len > MAX_ARGS) {
		len = MAX_ARGS;
		e->flags |= EXEC_ARGS_TRUNCATED;
	}
	if (bpf_probe_read_user(s->args, len, (void *)start)) {
		len = 0;
		e->flags |= EXEC_ARGS_FAULT;
		count(&c->errors[ERROR_ARGS]);
	}
	e->args_len = len;
}

static __always_inline void read_environment(struct exec_scratch *s, struct counters *c, struct task_struct *task)
{
	struct exec_event *e = &s->event;
	__u64 start, len;

	e->env_len = 0;
	if (!config.environment)
		return;
	start = READ(task, mm, env_start);
	len = READ(task, mm, env_end) - start;
	if (len > MAX_ENV) {
		len = MAX_ENV;
		e->flags |= EXEC_ENV_TRUNCATED;
	}
	if (bpf_probe_read_user(s->env, len, (void *)start)) {
		len = 0;
		e->flags |= EXEC_ENV_FAULT;
		count(&c->errors[ERROR_ARGS]);
	}
	e->env_len = len;
}

static __always_inline void read_filename(struct exec_scratch *s, struct counters *c, const char *filename)
{
	struct exec_event *e = &s->event;
	long n = bpf_probe_read_kernel_str(s->filename, sizeof(s->filename), filename);

	if (n <= 0) {
		count(&c->errors[ERROR_FILENAME]);
		n = 1;
	}
	n--; /* without the NUL */
	if (n > MAX_PATH) {
		n = MAX_PATH;
		e->flags |= EXEC_FILENAME_TRUNCATED;
	}
	e->filename_len = n;
}

/* Whether the program that was walked to is to be ignored. */
static __always_inline bool is_ignored_program(struct exec_scratch *s)
{
	__u32 pos = s->exe.pos, len;

	if (pos >= MAX_PATH || MAX_PATH - pos >= PROGRAM_BYTES)
		return false;
	len = MAX_PATH - pos;
	asm volatile("%0 &= %1" : "+r"(len) : "i"(PROGRAM_BYTES - 1)); /* for the verifier, which forgets the check above */
	asm volatile("%0 &= %1" : "+r"(pos) : "i"(MAX_PATH - 1));
	__builtin_memset(&s->key, 0, sizeof(s->key));
	if (bpf_probe_read_kernel(s->key.path, len, &s->exe.buf[pos]))
		return false;
	return bpf_map_lookup_elem(&ignored_programs, &s->key) != NULL;
}

SEC("tp_btf/sched_process_exec")
int picket_exec(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct linux_binprm *bprm = (void *)ctx[2];
	__u32 zero = 0, off = sizeof(struct exec_event), filename_len, exe_len, cwd_len, args_len, env_len;
	struct exec_scratch *s = bpf_map_lookup_elem(&exec_scratch, &zero);
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_PROCESS);
	struct bpf_dynptr record;
	struct exec_event *e;
	struct file *file = bprm->file;

	if (!s || !c || config.stopped || left_out(task, c))
		return 0;
	e = &s->event;
	fill_header(&e->h, task);
	e->h.class = CLASS_PROCESS;
	e->h.action = ACTION_EXEC;
	e->flags = e->exe_flags = e->cwd_flags = 0;
	e->old_tid = (__u32)ctx[1];
	e->argc = bprm->argc;
	if (bprm->interp != bprm->filename)
		e->flags |= EXEC_SCRIPT;
	if (bprm->fdpath)
		e->flags |= EXEC_FD;
	if (BPF_CORE_READ_BITFIELD_PROBED(bprm, secureexec))
		e->flags |= EXEC_SECURE;
	if (has_file_capabilities(task->cred))
		e->flags |= EXEC_FILE_CAPABILITIES;
	fill_credentials(e, task);
	fill_session(e, task);
	read_filename(s, c, bprm->filename);
	read_args(s, c, task);
	read_environment(s, c, task);

	fill_exe(e, file->f_path.dentry, file->f_inode);
	walk_path(&s->exe, file->f_path.mnt, file->f_path.dentry, task);
	e->exe_flags |= s->exe.flags;
	walk_path(&s->cwd, task->fs->pwd.mnt, task->fs->pwd.dentry, task);
	e->cwd_flags |= s->cwd.flags;
	if (!READ(task, fs, pwd.dentry, d_hash.pprev) &&
	    READ(task, fs, pwd.dentry, d_parent) != READ(task, fs, pwd.dentry))
		e->cwd_flags |= PATH_DELETED;
	if ((e->exe_flags | e->cwd_flags) & PATH_FAULT)
		count(&c->errors[ERROR_PATH]);

	/* Lengths are bounded again where they are used: from map memory the verifier knows no bounds. */
	filename_len = e->filename_len & (2 * MAX_PATH - 1);
	if (filename_len > MAX_PATH)
		filename_len = MAX_PATH;
	args_len = e->args_len;
	if (args_len > MAX_ARGS)
		args_len = MAX_ARGS;
	env_len = e->env_len;
	if (env_len > MAX_ENV)
		env_len = MAX_ENV;
	exe_len = walk_len(&s->exe);
	if (config.ignoring & IGNORE_PROGRAMS && is_ignored_program(s))
		ignore_process(task, true, c);
	cwd_len = walk_len(&s->cwd);
	e->exe_len = exe_len;
	e->cwd_len = cwd_len;
	e->h.size = off + filename_len + exe_len + cwd_len + args_len + env_len;

	e->h.seq = next_seq(c, !bpf_ringbuf_reserve_dynptr(&process_ring, e->h.size, 0, &record));
	if (!e->h.seq) {
		bpf_ringbuf_discard_dynptr(&record, 0);
		return 0;
	}
	bpf_dynptr_write(&record, 0, e, sizeof(*e), 0);
	bpf_dynptr_write(&record, off, s->filename, filename_len, 0);
	off += filename_len;
	bpf_dynptr_write(&record, off, &s->exe.buf[MAX_PATH - exe_len], exe_len, 0);
	off += exe_len;
	bpf_dynptr_write(&record, off, &s->cwd.buf[MAX_PATH - cwd_len], cwd_len, 0);
	off += cwd_len;
	bpf_dynptr_write(&record, off, s->args, args_len, 0);
	off += args_len;
	bpf_dynptr_write(&record, off, s->env, env_len, 0);
	bpf_ringbuf_submit_dynptr(&record, 0);
	return 0;
}

/* Which call makes the process, and with which flags. A kernel thread makes one without a call. */
static __always_inline void fill_clone(struct fork_event *e, struct task_struct *task, struct counters *c)
{
	void *regs = (void *)bpf_task_pt_regs(task);
	bool compat = is_compat(task);

	e->clone_flags = e->pad = e->call = 0;
	if (task->flags & PF_KTHREAD)
		return;
	e->call = current_call(regs, compat);
	if (compat)
		e->h.flags |= HEADER_COMPAT;
	if (e->call == CALL_CLONE)
		e->clone_flags = (__u32)call_argument(regs, compat, 0);
	else if (e->call == CALL_CLONE3 &&
		 /* the first member of struct clone_args, in the caller's memory */
		 bpf_probe_read_user(&e->clone_flags, sizeof(e->clone_flags), (void *)call_argument(regs, compat, 0)))
		count(&c->errors[ERROR_USER_ADDRESS]);
}

SEC("tp_btf/sched_process_fork")
int picket_fork(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0], *child = (void *)ctx[1], *parent = child->real_parent;
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_PROCESS);
	struct nsproxy *nsproxy = child->nsproxy;
	struct fork_event *e;
	__u64 seq;

	if (!c || config.stopped)
		return 0;
	if (child->pid != child->tgid) {
		count(&c->threads);
		return 0;
	}
	if (config.ignoring & IGNORE_PROGRAMS && ignored_for_program(task))
		ignore_process(child, false, c);
	if (left_out(task, c))
		return 0;
	e = bpf_ringbuf_reserve(&process_ring, sizeof(*e), 0);
	seq = next_seq(c, e != NULL);
	if (!e)
		return 0;
	fill_header(&e->h, task);
	e->h.seq = seq;
	e->h.size = sizeof(*e);
	e->h.class = CLASS_PROCESS;
	e->h.action = ACTION_FORK;
	e->child_start_time = child->start_boottime;
	e->child_parent_start_time = parent->group_leader->start_boottime;
	e->child_cgroup_id = cgroup_of(child);
	e->child_tgid = child->tgid;
	own_pid(child, &e->child_ns_pid, &e->child_pid_ns);
	e->child_parent_tgid = parent->tgid;
	e->child_mnt_ns = e->child_net_ns = 0;
	if (nsproxy) {
		e->child_mnt_ns = nsproxy->mnt_ns->ns.inum;
		e->child_net_ns = nsproxy->net_ns->ns.inum;
	}
	e->child_user_ns = child->cred->user_ns->ns.inum;
	e->child_flags = child->flags & PF_KTHREAD ? HEADER_KERNEL_THREAD : 0;
	fill_clone(e, task, c);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* Whether the exiting task is the last of its process; true once for each process. */
static __always_inline bool is_last_thread(struct task_struct *task, __u64 *ctx)
{
	struct process_id id;
	__u32 value = 0;

	if (exit_tells_last)
		return ctx[1] & 0xff; /* a bool: the other bytes are not set */
	if (task->signal->live.counter)
		return false;
	identify(&id, task);
	return !bpf_map_update_elem(&exited, &id, &value, BPF_NOEXIST);
}

SEC("tp_btf/sched_process_exit")
int picket_exit(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_PROCESS);
	struct exit_event *e;
	struct process_id id;
	struct mark *mark;
	bool silent, unknown;
	__u64 seq;
	__u32 code;

	if (!c || config.stopped || !is_last_thread(task, ctx))
		return 0;
	silent = left_out(task, c);
	if (config.ignoring & IGNORE_PROGRAMS) {
		mark = ignored_for_program(task);
		unknown = mark && !mark->root;
		identify(&id, task);
		bpf_map_delete_elem(&ignored_processes, &id);
		if (unknown)
			return 0;
	}
	e = bpf_ringbuf_reserve(&process_ring, sizeof(*e), 0);
	seq = silent ? 0 : next_seq(c, e != NULL);
	if (!e)
		return 0;
	fill_header(&e->h, task);
	e->h.seq = seq;
	e->h.size = sizeof(*e);
	e->h.class = CLASS_PROCESS;
	e->h.action = ACTION_EXIT;
	/* as wait(2) tells it: the group's code if something ended the whole group, else the leader's */
	code = task->signal->flags & SIGNAL_GROUP_EXIT ? task->signal->group_exit_code : task->group_leader->exit_code;
	e->exit_status = code >> 8 & 0xff;
	e->signal = code & 0x7f;
	e->core_dumped = code >> 7 & 1;
	e->pad = 0;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* A cgroup's path is told with the kernel's own buffer for it (trace_cgroup_path), of this many bytes. */
#define CGROUP_PATH 1024

struct cgroup_scratch {
	struct cgroup_event event;
	char path[CGROUP_PATH];
};

/* One per CPU is enough, as for exec_scratch: the kernel holds a spinlock meanwhile. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cgroup_scratch);
} cgroup_scratch SEC(".maps");

/*
 * A new cgroup: its name is told before a process can be in it, because a container that lives for some milliseconds is
 * gone, and its cgroup with it, before anybody could look.
 */
SEC("tp_btf/cgroup_mkdir")
int picket_cgroup(__u64 *ctx)
{
	struct cgroup *cgroup = (void *)ctx[0];
	const char *path = (void *)ctx[1];
	struct cgroup_scratch *s;
	struct bpf_dynptr record;
	struct cgroup_event *e;
	struct counters *c;
	__u32 zero = 0;
	long len;

	if (config.stopped || cgroup->root->hierarchy_id != cgroup_hierarchy)
		return 0;
	c = counters_of(bpf_get_smp_processor_id(), CLASS_PROCESS);
	s = bpf_map_lookup_elem(&cgroup_scratch, &zero);
	if (!s || !c)
		return 0;
	e = &s->event;
	fill_header(&e->h, bpf_get_current_task_btf());
	len = bpf_probe_read_kernel_str(s->path, sizeof(s->path), path);
	if (len < 1 || len > CGROUP_PATH)
		return 0;
	e->path_len = len - 1;
	e->pad = 0;
	e->h.seq = 0;
	e->h.size = sizeof(*e) + e->path_len;
	e->h.class = CLASS_PROCESS;
	e->h.action = ACTION_CGROUP;
	e->h.cgroup_id = cgroup->kn->id;
	if (bpf_ringbuf_reserve_dynptr(&process_ring, e->h.size, 0, &record)) {
		count(&c->errors[ERROR_CGROUP]);
		bpf_ringbuf_discard_dynptr(&record, 0);
		return 0;
	}
	bpf_dynptr_write(&record, 0, s, sizeof(*e), 0);
	bpf_dynptr_write(&record, sizeof(*e), s->path, (len - 1) & (CGROUP_PATH - 1), 0);
	bpf_ringbuf_submit_dynptr(&record, 0);
	return 0;
}
