/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Class network: connect, accept, bind, listen and close of IPv4 and IPv6 sockets, the first datagram to each
 * destination, unix sockets by path, raw and packet sockets, and sockets put on standard streams.
 */
#pragma once

#include "dns.h"
#include "lib/select.h"
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

/* One per CPU is enough, as for exec_scratch: only the program on sys_exit uses it. */
struct conn_scratch {
	struct conn_event event;
	char path[128]; /* more than UNIX_PATH: the mask in emit_conn allows as much */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct conn_scratch);
} conn_scratch SEC(".maps");

/* TCP connections that are to be told when they close, by their socket: who made them, and when. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct conn_event);
} connections SEC(".maps");

/* Destinations that a datagram socket has sent to. One that is pushed out is told again. */
struct flow {
	__u64 sk;
	__u8 addr[16];
	__u32 port;
	__u32 ino; /* of the socket: its address is used again sooner */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct flow);
	__type(value, __u8);
} flows SEC(".maps");

/* The end of a connection. It may come from an interrupt: who made the connection is told, not who runs now. */
static __noinline void on_close(struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct conn_event *made = bpf_map_lookup_elem(&connections, &key), *e;
	struct tcp_sock *tcp = (void *)sk;
	__u32 cpu = bpf_get_smp_processor_id();
	struct counters *c;
	__u64 seq;

	if (!made)
		return;
	c = counters_of(cpu, CLASS_NETWORK);
	if (!c || config.stopped)
		return;
	e = bpf_ringbuf_reserve(&network_ring, sizeof(*e), 0);
	seq = next_seq(c, e != NULL);
	if (e) {
		__builtin_memcpy(e, made, sizeof(*e));
		e->h.cpu = cpu;
		e->h.seq = seq;
		e->h.time = bpf_ktime_get_boot_ns();
		e->flags = made->h.action == ACTION_ACCEPT ? CONN_ACCEPTED : 0;
		e->h.action = ACTION_CLOSE;
		e->call = CALL_CLOSE;
		e->duration = e->h.time - made->h.time;
		e->bytes_sent = READ(tcp, bytes_sent) - READ(tcp, bytes_retrans);
		e->bytes_received = READ(tcp, bytes_received);
		bpf_ringbuf_submit(e, 0);
	}
	bpf_map_delete_elem(&connections, &key);
}

SEC("tp_btf/inet_sock_set_state")
int picket_attempt(__u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	struct task_struct *task;
	struct attempt *a;
	struct counters *c;

	if ((int)ctx[2] == TCP_CLOSE)
		on_close(sk);
	if ((int)ctx[2] != TCP_SYN_SENT)
		return 0;
	task = bpf_get_current_task_btf();
	if (dns && sk->__sk_common.skc_dport == bpf_htons(DNS_PORT))
		set_asker(bpf_get_socket_cookie(sk), task);
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

/* The socket behind an open file; NULL if it is none. */
static __always_inline struct sock *socket_in(struct file *file, struct conn_event *e, struct counters *c)
{
	struct socket *socket;
	struct inode *inode;
	struct sock *sk;

	if (!file) {
		count(&c->errors[ERROR_FD]);
		return NULL;
	}
	inode = READ(file, f_inode);
	if ((READ(inode, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	socket = READ(file, private_data);
	sk = READ(socket, sk);
	if (!sk)
		return NULL;
	e->sock_ino = READ(inode, i_ino);
	e->family = READ(sk, __sk_common.skc_family);
	e->type = READ(sk, sk_type);
	e->protocol = READ(sk, sk_protocol);
	return sk;
}

/* The socket behind a descriptor. */
static __always_inline struct sock *socket_of(struct task_struct *task, __u32 fd, struct conn_event *e,
					      struct counters *c)
{
	return socket_in(open_file(task, fd), e, c);
}

static __always_inline bool is_inet(const struct conn_event *e)
{
	return (e->family == AF_INET || e->family == AF_INET6) &&
	       (e->type == SOCK_STREAM || e->type == SOCK_DGRAM || e->type == SOCK_RAW);
}

static __always_inline void read_addresses(struct conn_event *e, struct sock *sk)
{
	e->remote_port = bpf_ntohs(READ(sk, __sk_common.skc_dport));
	e->local_port = READ(sk, __sk_common.skc_num);
	if (e->family == AF_INET6) {
		bpf_core_read(e->local_addr, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(e->remote_addr, 16, &sk->__sk_common.skc_v6_daddr);
	} else {
		*(__be32 *)e->local_addr = READ(sk, __sk_common.skc_rcv_saddr);
		*(__be32 *)e->remote_addr = READ(sk, __sk_common.skc_daddr);
	}
}

/* The path a unix socket is bound to, as the kernel keeps it; its length 0 if it has none. */
static __always_inline void read_unix_path(struct conn_scratch *s, struct sock *sk)
{
	struct unix_address *address = READ((struct unix_sock *)sk, addr);
	__u32 len;

	if (!address)
		return;
	len = READ(address, len) - 2; /* without the family */
	if (len > UNIX_PATH)
		return;
	asm volatile("%0 &= 127" : "+r"(len)); /* for the verifier, which forgets the check above */
	bpf_probe_read_kernel(s->path, len, (void *)address + bpf_core_field_offset(struct unix_address, name) + 2);
	s->event.path_len = len;
}

/* The same from the address that the caller gave. */
static __always_inline void read_user_path(struct conn_scratch *s, const void *user, __u32 len, struct counters *c)
{
	len -= 2;
	if (len > UNIX_PATH || !len)
		return;
	asm volatile("%0 &= 127" : "+r"(len)); /* for the verifier, which forgets the check above */
	if (bpf_probe_read_user(s->path, len, user + 2)) {
		count(&c->errors[ERROR_USER_ADDRESS]);
		return;
	}
	s->event.path_len = len;
}

/* struct sockaddr_in and sockaddr_in6, as far as both are needed. */
struct user_address {
	__u16 family;
	__be16 port;
	__u8 v4[4]; /* sockaddr_in6: flow info */
	__u8 v6[16];
};

/* Reads an address of the caller's memory; false when it cannot be. */
static __noinline bool read_user_address(struct conn_event *e, const void *user, bool local)
{
	struct user_address addr = {};
	__u8 *to = local ? e->local_addr : e->remote_addr;

	e->flags |= local ? CONN_LOCAL_FROM_USER : CONN_REMOTE_FROM_USER;
	__builtin_memset(to, 0, 16);
	/* The longer read may touch memory the caller has not: then it is a sockaddr_in's 8 bytes. */
	if (bpf_probe_read_user(&addr, sizeof(addr), user) && bpf_probe_read_user(&addr, 8, user))
		return false;
	if (local)
		e->local_port = bpf_ntohs(addr.port);
	else
		e->remote_port = bpf_ntohs(addr.port);
	if (addr.family == AF_INET6)
		__builtin_memcpy(to, addr.v6, 16);
	else if (addr.family == AF_INET && e->family == AF_INET)
		__builtin_memcpy(to, addr.v4, 4);
	return true;
}

/* The destination of an attempt that failed, which the socket no longer has. */
static __always_inline void read_failed_destination(struct conn_event *e, struct task_struct *task,
						    struct sock *sk, const void *user, struct counters *c)
{
	struct attempt *a = bpf_task_storage_get(&attempts, task, NULL, 0);

	if (a && a->sk == sk) {
		e->remote_port = a->port;
		__builtin_memcpy(e->remote_addr, a->addr, sizeof(e->remote_addr));
		return;
	}
	e->remote_port = 0;
	if (!read_user_address(e, user, false))
		count(&c->errors[ERROR_USER_ADDRESS]);
}

/* Whether the other end is one that is ignored; counts it. */
static __noinline bool is_ignored_peer(const struct conn_event *e, struct counters *c)
{
	struct peer_key key = {.prefix_bits = 128};
	struct peer_ports *p;

	if (e->family == AF_INET) {
		key.addr[10] = key.addr[11] = 0xff;
		__builtin_memcpy(key.addr + 12, e->remote_addr, 4);
	} else if (e->family == AF_INET6) {
		__builtin_memcpy(key.addr, e->remote_addr, 16);
	} else {
		return false;
	}
	p = bpf_map_lookup_elem(&ignored_peers, &key);
	if (!p || (p->ports[0] && p->ports[0] != e->remote_port && (!p->ports[1] || p->ports[1] != e->remote_port) &&
		   (!p->ports[2] || p->ports[2] != e->remote_port) && (!p->ports[3] || p->ports[3] != e->remote_port)))
		return false;
	count(&c->filtered);
	return true;
}

/* Tells of what is in the scratch; false: it is ignored. */
static __always_inline bool emit_conn(struct conn_scratch *s, struct task_struct *task, enum event_action action,
				      const struct syscall *sc, struct counters *c)
{
	struct conn_event *from = &s->event, *e;
	__u32 len = from->path_len & 127; /* at most UNIX_PATH; the mask is for the verifier */
	struct bpf_dynptr record;
	__u64 seq;

	if (left_out(task, c))
		return false;
	if (config.ignoring & IGNORE_PEERS && (from->remote_port || *(__u32 *)from->remote_addr) && is_ignored_peer(from, c))
		return false;
	fill_header(&from->h, task);
	if (crowded_out(&network_ring, CLASS_NETWORK, c, from->h.cgroup_id, 1))
		return true;
	from->h.class = CLASS_NETWORK;
	from->h.action = action;
	from->h.size = sizeof(*from) + len;
	from->call = sc->call;
	from->h.flags |= sc->flags;
	if (len) {
		from->h.seq = next_seq(c, !bpf_ringbuf_reserve_dynptr(&network_ring, from->h.size, 0, &record));
		if (!from->h.seq) {
			bpf_ringbuf_discard_dynptr(&record, 0);
			return true;
		}
		bpf_dynptr_write(&record, 0, from, sizeof(*from), 0);
		bpf_dynptr_write(&record, sizeof(*from), s->path, len, 0);
		bpf_ringbuf_submit_dynptr(&record, 0);
		return true;
	}
	e = bpf_ringbuf_reserve(&network_ring, sizeof(*e), 0);
	seq = next_seq(c, e != NULL);
	if (!e)
		return true;
	from->h.seq = seq;
	__builtin_memcpy(e, from, sizeof(*e));
	bpf_ringbuf_submit(e, 0);
	return true;
}

/* The scratch, empty; NULL never happens. */
static __always_inline struct conn_scratch *new_conn(void)
{
	__u32 zero = 0;
	struct conn_scratch *s = bpf_map_lookup_elem(&conn_scratch, &zero);

	if (s)
		__builtin_memset(&s->event, 0, sizeof(s->event));
	return s;
}

/*
 * Remembers a connection that has begun, for when it ends. One that was refused or reset meanwhile has ended:
 * on_close came first, and nobody would take it out again.
 */
static __always_inline void remember(struct conn_scratch *s, struct sock *sk, struct counters *c)
{
	__u64 key = (__u64)sk;

	if (s->event.protocol != IPPROTO_TCP || !wanted(CALL_CLOSE))
		return;
	if (bpf_map_update_elem(&connections, &key, &s->event, 0))
		count(&c->errors[ERROR_STORAGE]);
	else if (READ(sk, __sk_common.skc_state) == TCP_CLOSE)
		bpf_map_delete_elem(&connections, &key);
}

static __noinline int on_connect(struct task_struct *task, const struct syscall *sc, struct file *file)
{
	const void *user = (void *)sc->args[1];
	__u32 fd = sc->args[0];
	int result = sc->ret;
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_NETWORK);
	struct conn_scratch *s = new_conn();
	struct conn_event *e;
	struct attempt *a;
	struct sock *sk;

	if (!c || !s)
		return 0;
	e = &s->event;
	sk = socket_in(file, e, c);
	if (!sk)
		return 0;
	if (result <= -ERESTARTSYS && result >= -ERESTART_LAST)
		result = -EINTR; /* the caller sees this, or the call again */
	e->result = result;
	e->fd = fd;
	if (e->family == AF_UNIX) {
		struct sock *peer = READ((struct unix_sock *)sk, peer);

		if (!result && peer) {
			read_unix_path(s, peer);
		} else {
			e->flags |= CONN_REMOTE_FROM_USER;
			read_user_path(s, user, sc->args[2], c);
		}
		emit_conn(s, task, ACTION_CONNECT, sc, c);
		return 0;
	}
	if (!is_inet(e))
		return 0;
	read_addresses(e, sk);
	if (result == -EALREADY || result == -EISCONN ||
	    (!result && !e->remote_port && !*(__u32 *)e->remote_addr)) {
		/* asked again about a connect told before; or AF_UNSPEC, which ends an association */
		count(&c->filtered);
		return 0;
	}
	if ((result && result != -EINPROGRESS && result != -EINTR) || (sc->flags & HEADER_IO_URING && !e->remote_port))
		read_failed_destination(e, task, sk, user, c); /* or it is only asked for: the socket does not have it yet */
	a = bpf_task_storage_get(&attempts, task, NULL, 0);
	if (a && result != -EINPROGRESS && result != -EINTR)
		a->sk = NULL;
	if (emit_conn(s, task, ACTION_CONNECT, sc, c) && (!result || result == -EINPROGRESS))
		remember(s, sk, c);
	return 0;
}

static __noinline int on_accept(struct task_struct *task, const struct syscall *sc)
{
	__u32 fd = sc->ret;
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_NETWORK);
	struct conn_scratch *s = new_conn();
	struct sock *sk;

	if (!c || !s)
		return 0;
	sk = socket_of(task, fd, &s->event, c);
	if (!sk || !is_inet(&s->event))
		return 0;
	read_addresses(&s->event, sk);
	s->event.fd = fd;
	if (emit_conn(s, task, ACTION_ACCEPT, sc, c))
		remember(s, sk, c);
	return 0;
}

/* A socket copied onto standard input, output or error: a shell on it talks to whoever is at the other end. */
static __noinline int on_dup(struct task_struct *task, const struct syscall *sc)
{
	__u32 fd = sc->args[0], copy = sc->ret;
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_NETWORK);
	struct conn_scratch *s = new_conn();
	struct sock *sk;

	if (!c || !s)
		return 0;
	sk = socket_of(task, copy, &s->event, c);
	if (!sk || !is_inet(&s->event))
		return 0;
	read_addresses(&s->event, sk);
	s->event.fd = fd;
	s->event.result = copy;
	emit_conn(s, task, ACTION_DUP, sc, c);
	return 0;
}

/* linux/socket.h, as far as they decide what is an event */
#define AF_NETLINK 16
#define AF_PACKET 17
#define AF_ALG 38
#define AF_VSOCK 40
#define AF_XDP 44
#define SOCK_TYPE_MASK 0xf

/* Sockets that see or send packets past the protocols, or reach what no network has; the others show when used. */
static __noinline int on_socket(struct task_struct *task, const struct syscall *sc)
{
	__u32 family = sc->args[0], type = sc->args[1] & SOCK_TYPE_MASK;
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_NETWORK);
	struct conn_scratch *s;

	switch (family) {
	case AF_PACKET:
	case AF_ALG:
	case AF_VSOCK:
	case AF_XDP:
		break;
	case AF_NETLINK:
	case AF_UNIX:
		return 0;
	default:
		if (type != SOCK_RAW)
			return 0;
	}
	s = new_conn();
	if (!c || !s)
		return 0;
	s->event.family = family;
	s->event.type = type;
	s->event.protocol = sc->args[2];
	s->event.result = sc->ret;
	s->event.fd = sc->ret;
	emit_conn(s, task, ACTION_SOCKET, sc, c);
	return 0;
}

static __noinline int on_bind(struct task_struct *task, const struct syscall *sc, struct file *file)
{
	const void *user = (void *)sc->args[1];
	__u32 fd = sc->args[0];
	int result = sc->ret;
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_NETWORK);
	struct conn_scratch *s = new_conn();
	struct conn_event *e;
	struct sock *sk;

	if (!c || !s)
		return 0;
	e = &s->event;
	sk = socket_in(file, e, c);
	if (!sk)
		return 0;
	e->fd = fd;
	e->result = result;
	if (e->family == AF_UNIX) {
		if (!result) {
			read_unix_path(s, sk);
		} else if (user) { /* through an io_uring it is not known any more */
			e->flags |= CONN_LOCAL_FROM_USER;
			read_user_path(s, user, sc->args[2], c);
		}
	} else if (!is_inet(e)) {
		return 0;
	} else {
		read_addresses(e, sk);
		if (result && user && !read_user_address(e, user, true))
			count(&c->errors[ERROR_USER_ADDRESS]);
	}
	emit_conn(s, task, ACTION_BIND, sc, c);
	return 0;
}

static __noinline int on_listen(struct task_struct *task, const struct syscall *sc, struct file *file)
{
	__u32 fd = sc->args[0];
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_NETWORK);
	struct conn_scratch *s = new_conn();
	struct sock *sk;

	if (!c || !s)
		return 0;
	sk = socket_in(file, &s->event, c);
	if (!sk)
		return 0;
	if (s->event.family == AF_UNIX)
		read_unix_path(s, sk);
	else if (is_inet(&s->event))
		read_addresses(&s->event, sk);
	else
		return 0;
	s->event.fd = fd;
	s->event.result = sc->ret;
	s->event.backlog = sc->args[1];
	emit_conn(s, task, ACTION_LISTEN, sc, c);
	return 0;
}

/* A datagram to an address: an event if it is the socket's first to it. */
static __noinline int on_send(struct task_struct *task, const struct syscall *sc, struct file *file, const void *user)
{
	__u32 fd = sc->args[0];
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_NETWORK);
	struct conn_scratch *s = new_conn();
	struct flow flow = {};
	struct conn_event *e;
	struct sock *sk;
	__u8 one = 1;

	if (!c || !s)
		return 0;
	e = &s->event;
	sk = socket_in(file, e, c);
	if (!sk || !is_inet(e) || e->type == SOCK_STREAM)
		return 0;
	read_addresses(e, sk);
	if (!read_user_address(e, user, false)) {
		count(&c->errors[ERROR_USER_ADDRESS]);
		return 0;
	}
	flow.sk = (__u64)sk;
	flow.port = e->remote_port;
	__builtin_memcpy(flow.addr, e->remote_addr, sizeof(flow.addr));
	flow.ino = e->sock_ino;
	if (bpf_map_lookup_elem(&flows, &flow))
		return 0;
	if (bpf_map_update_elem(&flows, &flow, &one, 0))
		count(&c->errors[ERROR_STORAGE]);
	e->fd = fd;
	e->result = sc->ret < 0 ? sc->ret : 0;
	emit_conn(s, task, ACTION_SEND, sc, c);
	return 0;
}

/* The destination that a message header in the caller's memory names; NULL if it names none. */
static __always_inline const void *message_name(const void *header, bool compat)
{
	__u64 name = 0;

	if (bpf_probe_read_user(&name, compat ? 4 : 8, header))
		return NULL;
	return (const void *)name;
}
