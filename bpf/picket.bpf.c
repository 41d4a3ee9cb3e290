//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Picket's programs: one object, so that rings, counters and settings are declared once and loaded once, and
 * its hash says which run's pins fit. Each concern is a header of its own: process.h,
 * file.h, path.h, network.h, kernel.h.
 *
 * This file holds what is shared by all system calls: the program on sys_exit. It is run at the end of
 * every system call of the machine, so its first lines decide what Picket costs. It calls the concerns'
 * functions directly instead of by tail calls: a tail call makes every run carry a counter, and its map of
 * programs is emptied by the kernel when user space has no reference to it.
 */
#include "lib/kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#include "process.h"
#include "file.h"
#include "network.h"
#include "path.h"
#include "kernel.h"

/* fcntl.h */
#define F_DUPFD 0
#define F_DUPFD_CLOEXEC 1030

static __noinline int on_network(struct task_struct *task, const struct socket_call *call)
{
	const void *name;

	switch (call->call_compat & 0xff) {
	case CALL_SOCKET:
		return on_socket(task, call);
	case CALL_BIND:
		return on_bind(task, call);
	case CALL_LISTEN:
		return on_listen(task, call);
	case CALL_CONNECT:
		return on_connect(task, call);
	case CALL_ACCEPT:
	case CALL_ACCEPT4:
		return call->ret < 0 ? 0 : on_accept(task, call);
	case CALL_SENDTO:
		return call->args[4] ? on_send(task, call, (void *)call->args[4]) : 0;
	case CALL_SENDMSG:
	case CALL_SENDMMSG: /* of several messages the first */
		name = message_name((void *)call->args[1], call->call_compat >> 8);
		return name ? on_send(task, call, name) : 0;
	}
	return 0;
}

/* 32-bit x86: which call it is, and a pointer to its arguments, 32 bits each. */
static __always_inline int on_socketcall(struct task_struct *task, void *regs, long ret)
{
	__u32 which = call_argument(regs, true, 0), call, user[5] = {}, n;
	struct socket_call made = {.ret = ret};
	struct counters *c;

	switch (which) { /* linux/net.h */
	case 1:
		call = CALL_SOCKET;
		n = 3;
		break;
	case 2:
		call = CALL_BIND;
		n = 3;
		break;
	case 3:
		call = CALL_CONNECT;
		n = 3;
		break;
	case 4:
		call = CALL_LISTEN;
		n = 2;
		break;
	case 5:
		call = CALL_ACCEPT;
		n = 3;
		break;
	case 11:
		call = CALL_SENDTO;
		n = 5;
		break;
	case 16:
		call = CALL_SENDMSG;
		n = 3;
		break;
	case 18:
		call = CALL_ACCEPT4;
		n = 4;
		break;
	case 20:
		call = CALL_SENDMMSG;
		n = 4;
		break;
	default:
		return 0;
	}
	if (bpf_probe_read_user(user, n * 4, (void *)call_argument(regs, true, 1))) {
		c = counters_of(bpf_get_smp_processor_id(), CLASS_NETWORK);
		if (c)
			count(&c->errors[ERROR_USER_ADDRESS]);
		return 0;
	}
	made.args[0] = user[0];
	made.args[1] = user[1];
	made.args[2] = user[2];
	made.args[3] = user[3];
	made.args[4] = user[4];
	made.call_compat = call | 1 << 8;
	return on_network(task, &made);
}

SEC("tp_btf/sys_exit")
int picket_sys_exit(__u64 *ctx)
{
	struct pt_regs *regs = (void *)ctx[0];
	__u32 nr = call_number(regs);
	struct task_struct *task;
	struct socket_call made;
	__u32 call, call_compat;
	bool compat;
	long ret;

	if (nr >= MAX_CALLS || !calls[nr])
		return 0;
	ret = ctx[1];
	task = bpf_get_current_task_btf();
	compat = is_compat(task);
	call = compat ? calls[nr] >> 8 : calls[nr] & 0xff;
	if (call == CALL_NONE || !wanted(call) || config.stopped || is_self(task))
		return 0;
	call_compat = call | compat << 8;
	switch (call) {
	case OPEN_FIRST_CALL ... OPEN_LAST_CALL:
		return ret < 0 ? 0 : on_open(task, regs, ret, call_compat);
	case CALL_SENDTO: /* what send(2) is: most have no address */
		if (!call_argument(regs, compat, 4))
			return 0;
		/* as the others */
	case CALL_CONNECT:
	case CALL_ACCEPT:
	case CALL_ACCEPT4:
	case CALL_SOCKET:
	case CALL_BIND:
	case CALL_LISTEN:
	case CALL_SENDMSG:
	case CALL_SENDMMSG:
		made.args[0] = call_argument(regs, compat, 0);
		made.args[1] = call_argument(regs, compat, 1);
		made.args[2] = call_argument(regs, compat, 2);
		made.args[3] = call_argument(regs, compat, 3);
		made.args[4] = call_argument(regs, compat, 4);
		made.ret = ret;
		made.call_compat = call_compat;
		return on_network(task, &made);
	case CALL_SOCKETCALL:
		return on_socketcall(task, regs, ret);
	case CALL_FCNTL:
		if (call_argument(regs, compat, 1) != F_DUPFD && call_argument(regs, compat, 1) != F_DUPFD_CLOEXEC)
			return 0;
		/* as dup */
	case CALL_DUP:
	case CALL_DUP2:
	case CALL_DUP3:
		return ret < 0 || ret > 2 ? 0 : on_dup(task, call_argument(regs, compat, 0), ret, call_compat);
	case CHANGE_FIRST_CALL ... CHANGE_LAST_CALL:
		return on_change(task, regs, ret, call_compat);
	case KERNEL_FIRST_CALL ... KERNEL_LAST_CALL:
		return on_call(task, regs, ret, call_compat);
	}
	return 0;
}

/* Not attached: the sensor runs it once, so that the kernel itself says who the sensor is. */
SEC("raw_tp")
int picket_set_self(void *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();

	config.self_tgid = task->tgid;
	config.self_start_time = task->group_leader->start_boottime;
	config.stopped = 0;
	return 0;
}

/* Types that no map or function names, for layout_test.go: this way they are in the object's BTF. */
const volatile struct {
	struct exec_event exec;
	struct fork_event fork;
	struct exit_event exit;
	struct open_event open;
	struct path_event path_change;
	struct conn_event conn;
	struct call_event call;
	enum layout layout;
	enum event_class class;
	enum event_action action;
	enum header_flag header;
	enum path_flag path;
	enum exec_flag exec_flags;
	enum open_access access;
	enum conn_flag conn_flags;
	enum error_kind error;
} layouts;
