/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Class network: connect, accept, and sockets put on standard streams; IPv4 and IPv6, stream and datagram. */
#pragma once

#include "lib/maps.h"
#include "lib/syscall.h"
#include "lib/task.h"

/*
 * Where a task's last TCP connect goes. The kernel forgets the destination of an attempt that failed before
 * the call returns; when the first packet is about to be sent it still has it.
 */
struct attempt {
	struct sock *sk;
	__u8 addr[16];
	__u16 port; /* host byte order */
	__u16 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct attempt);
} attempts SEC(".maps");

SEC("tp_btf/inet_sock_set_state")
int picket_attempt(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct task_struct *task;
	struct attempt *a;
	struct counters *c;

	if ((int)ctx[2] != TCP_SYN_SENT)
		return 0;
	task = bpf_get_current_task_btf();
	a = bpf_task_storage_get(&attempts, task, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!a) {
		c = counters_of(bpf_get_smp_processor_id(), CLASS_NETWORK);
		if (c)
			count(&c->errors[ERROR_STORAGE]);
		return 0;
	}
	a->sk = sk;
	a->port = bpf_ntohs(sk->__sk_common.skc_dport);
	__builtin_memset(a->addr, 0, sizeof(a->addr));
	if (sk->__sk_common.skc_family == AF_INET6)
		bpf_core_read(a->addr, 16, &sk->__sk_common.skc_v6_daddr);
	else
		bpf_core_read(a->addr, 4, &sk->__sk_common.skc_daddr);
	return 0;
}

/* The socket behind a descriptor, if it is of the kind we tell about. */
static __always_inline struct sock *inet_socket(struct task_struct *task, __u32 fd, struct conn_event *e,
						struct counters *c)
{
	struct file *file = open_file(task, fd);
	struct socket *socket;
	struct inode *inode;
	struct sock *sk;

	if (!file) {
		count(&c->errors[ERROR_FD]);
		return NULL;
	}
	inode = BPF_CORE_READ(file, f_inode);
	if ((BPF_CORE_READ(inode, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	if (!sk)
		return NULL;
	e->sock_ino = BPF_CORE_READ(inode, i_ino);
	e->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	e->type = BPF_CORE_READ(sk, sk_type);
	e->protocol = BPF_CORE_READ(sk, sk_protocol);
	if (e->family != AF_INET && e->family != AF_INET6)
		return NULL;
	if (e->type != SOCK_STREAM && e->type != SOCK_DGRAM)
		return NULL;
	return sk;
}

static __always_inline void read_addresses(struct conn_event *e, struct sock *sk)
{
	e->remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	e->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	if (e->family == AF_INET6) {
		bpf_core_read(e->local_addr, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(e->remote_addr, 16, &sk->__sk_common.skc_v6_daddr);
	} else {
		bpf_core_read(e->local_addr, 4, &sk->__sk_common.skc_rcv_saddr);
		bpf_core_read(e->remote_addr, 4, &sk->__sk_common.skc_daddr);
	}
}

/* struct sockaddr_in and sockaddr_in6, as far as both are needed. */
struct user_address {
	__u16 family;
	__be16 port;
	__u8 v4[4]; /* sockaddr_in6: flow info */
	__u8 v6[16];
};

/* The destination of an attempt that failed, which the socket no longer has. */
static __always_inline void read_failed_destination(struct conn_event *e, struct task_struct *task,
						    struct sock *sk, const void *user, struct counters *c)
{
	struct attempt *a = bpf_task_storage_get(&attempts, task, NULL, 0);
	struct user_address addr = {};

	if (a && a->sk == sk) {
		e->remote_port = a->port;
		__builtin_memcpy(e->remote_addr, a->addr, sizeof(e->remote_addr));
		return;
	}
	e->flags |= CONN_REMOTE_FROM_USER;
	e->remote_port = 0;
	__builtin_memset(e->remote_addr, 0, sizeof(e->remote_addr));
	/* The longer read may touch memory the caller has not: then it is a sockaddr_in's 8 bytes. */
	if (bpf_probe_read_user(&addr, sizeof(addr), user) && bpf_probe_read_user(&addr, 8, user)) {
		count(&c->errors[ERROR_USER_ADDRESS]);
		return;
	}
	e->remote_port = bpf_ntohs(addr.port);
	if (addr.family == AF_INET6)
		__builtin_memcpy(e->remote_addr, addr.v6, 16);
	else if (addr.family == AF_INET && e->family == AF_INET)
		__builtin_memcpy(e->remote_addr, addr.v4, 4);
}

static __always_inline void emit_conn(struct conn_event *from, struct task_struct *task, enum event_action action,
				      __u32 call_compat, struct counters *c)
{
	struct conn_event *e = bpf_ringbuf_reserve(&network_ring, sizeof(*e), 0);
	__u64 seq = next_seq(c, e != NULL);

	if (!e)
		return;
	*e = *from;
	fill_header(&e->h, task);
	e->h.seq = seq;
	e->h.size = sizeof(*e);
	e->h.class = CLASS_NETWORK;
	e->h.action = action;
	e->call = call_compat & 0xff;
	if (call_compat >> 8)
		e->h.flags |= HEADER_COMPAT;
	bpf_ringbuf_submit(e, 0);
}

static __noinline int on_connect(struct task_struct *task, __u32 fd, const void *user, int result,
				 __u32 call_compat)
{
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_NETWORK);
	struct conn_event e = {};
	struct attempt *a;
	struct sock *sk;

	if (!c)
		return 0;
	sk = inet_socket(task, fd, &e, c);
	if (!sk)
		return 0;
	if (result <= -ERESTARTSYS && result >= -ERESTART_LAST)
		result = -EINTR; /* the caller sees this, or the call again */
	read_addresses(&e, sk);
	if (result == -EALREADY || result == -EISCONN ||
	    (!result && !e.remote_port && !*(__u32 *)e.remote_addr)) {
		/* asked again about a connect told before; or AF_UNSPEC, which ends an association */
		count(&c->filtered);
		return 0;
	}
	if (result && result != -EINPROGRESS && result != -EINTR)
		read_failed_destination(&e, task, sk, user, c);
	a = bpf_task_storage_get(&attempts, task, NULL, 0);
	if (a && result != -EINPROGRESS && result != -EINTR)
		a->sk = NULL;
	e.result = result;
	e.fd = fd;
	emit_conn(&e, task, ACTION_CONNECT, call_compat, c);
	return 0;
}

static __noinline int on_accept(struct task_struct *task, __u32 fd, __u32 call_compat)
{
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_NETWORK);
	struct conn_event e = {};
	struct sock *sk;

	if (!c)
		return 0;
	sk = inet_socket(task, fd, &e, c);
	if (!sk)
		return 0;
	read_addresses(&e, sk);
	e.fd = fd;
	emit_conn(&e, task, ACTION_ACCEPT, call_compat, c);
	return 0;
}

/* A socket copied onto standard input, output or error: a shell on it talks to whoever is at the other end. */
static __noinline int on_dup(struct task_struct *task, __u32 fd, __u32 copy, __u32 call_compat)
{
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_NETWORK);
	struct conn_event e = {};
	struct sock *sk;

	if (!c)
		return 0;
	sk = inet_socket(task, copy, &e, c);
	if (!sk)
		return 0;
	read_addresses(&e, sk);
	e.fd = fd;
	e.result = copy;
	emit_conn(&e, task, ACTION_DUP, call_compat, c);
	return 0;
}
