//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Picket's programs: one object, so that rings, counters and settings are declared once and loaded once, and
 * its hash says which run's pins fit. Each concern is a header of its own: process.h,
 * file.h, path.h, network.h, dns.h, kernel.h.
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
#include "creds.h"
#include "uring.h"

/* fcntl.h */
#define F_DUPFD 0
#define F_DUPFD_CLOEXEC 1030

/* 32-bit x86: which socket call it is (linux/net.h), and how many arguments it has. */
const struct {
	__u8 call;
	__u8 args;
} socketcalls[32] = {
	[1] = {CALL_SOCKET, 3},	 [2] = {CALL_BIND, 3},	   [3] = {CALL_CONNECT, 3},  [4] = {CALL_LISTEN, 2},
	[5] = {CALL_ACCEPT, 3},	 [11] = {CALL_SENDTO, 5},  [16] = {CALL_SENDMSG, 3}, [18] = {CALL_ACCEPT4, 4},
	[20] = {CALL_SENDMMSG, 4},
};

/* Puts what a socketcall stands for in its place: its arguments are in the caller's memory, 32 bits each. */
static __noinline void unpack_socketcall(struct syscall *sc)
{
	__u32 which = sc->args[0] & 31, args[8] = {}, n = socketcalls[which].args & 7;
	struct counters *c;

	sc->call = socketcalls[which].call;
	if (sc->call == CALL_NONE)
		return;
	if (bpf_probe_read_user(args, n * 4, (void *)sc->args[1])) {
		c = counters_of(bpf_get_smp_processor_id(), CLASS_NETWORK);
		if (c)
			count(&c->errors[ERROR_USER_ADDRESS]);
		sc->call = CALL_NONE;
		return;
	}
	sc->args[0] = args[0];
	sc->args[1] = args[1];
	sc->args[2] = args[2];
	sc->args[3] = args[3];
	sc->args[4] = args[4];
}

SEC("tp_btf/sys_exit")
int picket_sys_exit(__u64 *ctx)
{
	struct pt_regs *regs = (void *)ctx[0];
	__u32 nr = call_number(regs), zero = 0, call;
	struct task_struct *task;
	const void *name;
	struct syscall *sc;
	bool compat;

	if (nr >= MAX_CALLS || !calls[nr])
		return 0;
	task = bpf_get_current_task_btf();
	compat = is_compat(task);
	call = compat ? calls[nr] >> 8 : calls[nr] & 0xff;
	if (call == CALL_NONE || !wanted(call) || config.stopped || is_self(task))
		return 0;
	sc = bpf_map_lookup_elem(&this_call, &zero);
	if (!sc)
		return 0;
	sc->args[0] = call_argument(regs, compat, 0);
	sc->args[1] = call_argument(regs, compat, 1);
	sc->args[2] = call_argument(regs, compat, 2);
	sc->args[3] = call_argument(regs, compat, 3);
	sc->args[4] = call_argument(regs, compat, 4);
	sc->args[5] = call_argument(regs, compat, 5);
	sc->ret = ctx[1];
	sc->call = call;
	sc->flags = compat ? HEADER_COMPAT : 0;
	if (call == CALL_SOCKETCALL) {
		unpack_socketcall(sc);
		if (!wanted(sc->call))
			return 0;
	}
	switch (sc->call) {
	case OPEN_FIRST_CALL ... OPEN_LAST_CALL:
		return sc->ret < 0 ? 0 : on_open(task, sc);
	case CALL_SOCKET:
		return on_socket(task, sc);
	case CALL_BIND:
		return on_bind(task, sc, open_file(task, sc->args[0]));
	case CALL_LISTEN:
		return on_listen(task, sc, open_file(task, sc->args[0]));
	case CALL_CONNECT:
		return on_connect(task, sc, open_file(task, sc->args[0]));
	case CALL_ACCEPT:
	case CALL_ACCEPT4:
		return sc->ret < 0 ? 0 : on_accept(task, sc);
	case CALL_SENDTO: /* what send(2) is: most have no address */
		name = (void *)sc->args[4];
		return name ? on_send(task, sc, open_file(task, sc->args[0]), name) : 0;
	case CALL_SENDMSG:
	case CALL_SENDMMSG: /* of several messages the first */
		name = message_name((void *)sc->args[1], sc->flags & HEADER_COMPAT);
		return name ? on_send(task, sc, open_file(task, sc->args[0]), name) : 0;
	case CALL_FCNTL:
		if (sc->args[1] != F_DUPFD && sc->args[1] != F_DUPFD_CLOEXEC)
			return 0;
		/* as dup */
	case CALL_DUP:
	case CALL_DUP2:
	case CALL_DUP3:
		return sc->ret < 0 || sc->ret > 2 ? 0 : on_dup(task, sc);
	case CHANGE_FIRST_CALL ... CHANGE_LAST_CALL:
		return on_change(task, sc);
	case KERNEL_FIRST_CALL ... KERNEL_LAST_CALL:
		return on_call(task, sc);
	}
	return 0;
}

/* Set by Load: the tracepoint gives the result itself (until 6.14), or the completion that holds it. */
const volatile bool uring_gives_result = false;

/*
 * What was asked for through an io_uring, when it is done: it is told like the system call. Names of files are
 * known since its submission (uring.h). It runs in the process that asked, or in a kernel thread of it, with the same files and memory.
 */
SEC("tp_btf/io_uring_complete")
int picket_uring(__u64 *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct io_kiocb *req = (void *)ctx[1];
	struct io_uring_cqe *cqe = (void *)ctx[2];
	struct io_connect *connect;
	struct io_open *open;
	struct syscall *sc;
	__u32 zero = 0, opcode;
	const void *name;
	int res;

	if (!req || config.stopped || is_self(task))
		return 0;
	sc = bpf_map_lookup_elem(&this_call, &zero);
	if (!sc)
		return 0;
	if (uring_gives_result)
		res = ctx[3];
	else
		res = READ(cqe, res);
	sc->ret = res;
	sc->flags = HEADER_IO_URING;
	/* What an operation is given is at the request's beginning, in the place of struct io_cmd_data. */
	opcode = READ(req, opcode);
	switch (opcode) {
	case IORING_OP_OPENAT:
	case IORING_OP_OPENAT2:
		open = (void *)req;
		sc->call = CALL_OPENAT;
		sc->args[2] = READ(open, how.flags);
		/* One that opens into the ring's own table has no descriptor. */
		if (res < 0 || READ(open, file_slot) || !wanted(CALL_OPENAT))
			return 0;
		return on_open(task, sc);
	case IORING_OP_CONNECT:
		connect = (void *)req;
		sc->call = CALL_CONNECT;
		sc->args[0] = -1; /* which descriptor it was is no longer known */
		sc->args[1] = (__u64)READ(connect, addr);
		sc->args[2] = READ(connect, addr_len);
		return wanted(CALL_CONNECT) ? on_connect(task, sc, READ(connect, file)) : 0;
	case IORING_OP_ACCEPT:
		sc->call = CALL_ACCEPT4;
		return res < 0 || !wanted(CALL_ACCEPT4) ? 0 : on_accept(task, sc);
	case IORING_OP_SOCKET:
		sc->call = CALL_SOCKET;
		sc->args[0] = READ((struct io_socket *)req, domain);
		sc->args[1] = READ((struct io_socket *)req, type);
		sc->args[2] = READ((struct io_socket *)req, protocol);
		return wanted(CALL_SOCKET) ? on_socket(task, sc) : 0;
	case IORING_OP_BIND:
		if (!bpf_core_type_exists(struct io_bind))
			return 0;
		sc->call = CALL_BIND;
		sc->args[0] = -1;
		sc->args[1] = 0;
		return wanted(CALL_BIND) ? on_bind(task, sc, READ((struct io_bind *)req, file)) : 0;
	case IORING_OP_LISTEN:
		if (!bpf_core_type_exists(struct io_listen))
			return 0;
		sc->call = CALL_LISTEN;
		sc->args[0] = -1;
		sc->args[1] = READ((struct io_listen *)req, backlog);
		return wanted(CALL_LISTEN) ? on_listen(task, sc, READ((struct io_listen *)req, file)) : 0;
	case IORING_OP_SENDMSG:
	case IORING_OP_SENDMSG_ZC:
		sc->call = CALL_SENDMSG;
		sc->args[0] = -1;
		if (!wanted(CALL_SENDMSG))
			return 0;
		name = message_name(READ((struct io_sr_msg *)req, umsg), false);
		return name ? on_send(task, sc, READ((struct io_sr_msg *)req, file), name) : 0;
	}
	if (!noting)
		return 0;
	fill_change(sc, req, opcode);
	return sc->call != CALL_NONE && wanted(sc->call) ? on_change(task, sc) : 0;
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
	struct cgroup_event cgroup;
	struct dns_event dns;
	enum layout layout;
	enum event_class class;
	enum event_action action;
	enum header_flag header;
	enum path_flag path;
	enum exec_flag exec_flags;
	enum open_access access;
	enum conn_flag conn_flags;
	enum error_kind error;
	enum ignore ignore;
} layouts;
