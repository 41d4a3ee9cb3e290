/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Class dns: questions that processes of the machine send to port 53 and the answers that come back, over UDP and
 * TCP. The messages are taken from the packets as the sockets send and receive them, by programs on the root of
 * cgroup2: whatever call was used, they have left the caller's memory. Reading them is user space's work; here is only
 * found where a message of a TCP stream begins and ends, because events are counted here.
 */
#pragma once

#include "lib/maps.h"
#include "lib/select.h"

#define DNS_PORT 53
#define DNS_SMALL 512 /* most messages: what UDP allows without an extension */
/* Messages that end in one segment of a TCP stream; in more the stream is given up. */
#define MAX_MESSAGES 8

/* Set by Load: the programs on cgroup2 are attached. */
const volatile bool dns = false;

/* Where a TCP stream is. Messages have their length, two bytes, in front (RFC 1035, 4.2.2). */
struct dns_stream {
	__u32 next; /* sequence number of the next byte */
	__u32 left; /* bytes of the message under way that are still to come */
	__u16 state; /* 0: nothing was sent; 1: followed; 2: given up */
	__u8 half; /* 1: the first byte of a length is first, the second is still to come */
	__u8 first;
};

/* Who asks, by socket: an answer comes in an interrupt, where nothing else tells. */
struct asker {
	struct header h;
	struct dns_stream streams[2]; /* of questions, of answers */
	__u64 ignored;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct asker);
} askers SEC(".maps");

/* Remembers the current task as the one that asks through a socket. */
static __noinline void set_asker(__u64 socket, struct task_struct *task)
{
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_DNS);
	struct asker asker = {};

	if (!c)
		return;
	asker.ignored = is_self(task) || left_out(task, c);
	fill_header(&asker.h, task);
	if (bpf_map_update_elem(&askers, &socket, &asker, 0))
		count(&c->errors[ERROR_STORAGE]);
}

/* A message, or a segment of a TCP stream, as far as it was looked at. */
struct packet {
	__u32 network; /* AF_INET, AF_INET6 */
	__u32 protocol;
	__u32 transport; /* offset of the UDP or TCP header */
	__u32 data; /* offset of what it carries */
	__u32 len; /* of that */
	__u32 sequence; /* TCP: of its first byte */
	__u32 begun; /* bytes at its beginning of a message that began earlier */
	__u32 messages; /* that end in it */
};

/*
 * Finds the messages in a segment. False: it is none to tell of. Two CPUs do not follow one direction of one stream at
 * once: the socket is locked while it sends, and receives in the order of its queue.
 */
static __always_inline bool follow(struct __sk_buff *skb, struct packet *p, struct dns_stream *s, struct counters *c)
{
	__u32 at = 0, i;
	__be16 prefix;
	__u8 second;

	if (s->state == 0) {
		s->state = 1;
		s->next = p->sequence;
	}
	if (s->state != 1 || (__s32)(p->sequence - s->next) < 0)
		return false; /* given up, or sent again */
	if (p->sequence != s->next)
		goto lost; /* one is missing or late: where messages begin is no longer known */
	s->next += p->len;
	if (s->half) {
		if (bpf_skb_load_bytes(skb, p->data, &second, 1))
			goto lost;
		s->left = 1 + ((__u32)s->first << 8 | second);
		s->half = 0;
	}
	p->begun = s->left < p->len ? s->left : p->len;
	at = p->begun;
	if (s->left) {
		s->left -= at;
		if (s->left)
			return true;
		p->messages = 1;
	}
	for (i = 0; i <= MAX_MESSAGES; i++) {
		if (at >= p->len)
			return true;
		if (p->messages == MAX_MESSAGES)
			break;
		if (p->len - at == 1) {
			s->half = 1;
			if (bpf_skb_load_bytes(skb, p->data + at, &s->first, 1))
				break;
			return true;
		}
		if (bpf_skb_load_bytes(skb, p->data + at, &prefix, 2))
			break;
		at += 2 + bpf_ntohs(prefix);
		if (at <= p->len)
			p->messages++;
		else
			s->left = at - p->len;
	}
lost:
	s->state = 2;
	count(&c->errors[ERROR_STREAM]);
	return false;
}

static __always_inline void fill_dns(struct dns_event *e, struct __sk_buff *skb, const struct packet *p,
				     const struct header *h, __u64 socket, bool answer, __u32 len, __u64 seq)
{
	bool v4 = p->network == AF_INET;
	__be16 ports[2] = {};

	__builtin_memcpy(&e->h, h, sizeof(e->h));
	e->h.size = sizeof(*e) + len;
	e->h.class = CLASS_DNS;
	e->h.action = answer ? ACTION_RESPONSE : ACTION_QUERY;
	e->h.cpu = bpf_get_smp_processor_id();
	e->h.time = bpf_ktime_get_boot_ns();
	e->h.seq = p->messages ? seq : 0;
	e->socket = socket;
	e->sequence = p->sequence;
	e->begun = p->begun;
	e->messages = p->messages;
	e->total = p->len;
	e->family = p->network;
	e->protocol = p->protocol;
	__builtin_memset(e->source_addr, 0, 16);
	__builtin_memset(e->dest_addr, 0, 16);
	bpf_skb_load_bytes(skb, v4 ? 12 : 8, e->source_addr, v4 ? 4 : 16);
	bpf_skb_load_bytes(skb, v4 ? 16 : 24, e->dest_addr, v4 ? 4 : 16);
	bpf_skb_load_bytes(skb, p->transport, ports, sizeof(ports));
	e->source_port = bpf_ntohs(ports[0]);
	e->dest_port = bpf_ntohs(ports[1]);
	e->data_len = len;
	e->pad = 0;
}

struct small_dns_event {
	struct dns_event e;
	char data[DNS_SMALL];
};

struct large_dns_event {
	struct dns_event e;
	char data[MAX_DNS];
};

static __noinline void on_dns(struct __sk_buff *skb, __u32 network, __u32 protocol, __u32 transport, bool answer)
{
	struct packet p = {.network = network, .protocol = protocol, .transport = transport, .messages = 1};
	__u64 socket = bpf_get_socket_cookie(skb), seq;
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_DNS);
	struct small_dns_event *small;
	struct large_dns_event *large;
	struct asker *asker;
	__u32 len, way = answer;
	__u8 words;

	if (!c)
		return;
	p.data = transport + 8;
	if (protocol == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, transport + 4, &p.sequence, 4) ||
		    bpf_skb_load_bytes(skb, transport + 12, &words, 1))
			return;
		p.sequence = bpf_ntohl(p.sequence);
		p.data = transport + (words >> 4) * 4;
		p.messages = 0;
	}
	if (skb->len <= p.data)
		return; /* nothing is in it: TCP's own business */
	p.len = skb->len - p.data;
	/* A datagram is sent by the task that asks; a segment may be sent later, by any. */
	if (protocol == IPPROTO_UDP && !answer)
		set_asker(socket, bpf_get_current_task_btf());
	asker = bpf_map_lookup_elem(&askers, &socket);
	if (!asker) {
		count(&c->errors[ERROR_ASKER]);
		return;
	}
	if (asker->ignored)
		return;
	asm volatile("%0 &= 1" : "+r"(way)); /* for the verifier, which does not know what a bool is */
	if (protocol == IPPROTO_TCP && !follow(skb, &p, &asker->streams[way], c))
		return;
	if (crowded_out(&dns_ring, CLASS_DNS, c, asker->h.cgroup_id, p.messages))
		return;

	/* Straight into the ring: a scratch of the CPU would be another task's, too, where the kernel preempts. */
	len = p.len;
	if (len <= DNS_SMALL) {
		small = bpf_ringbuf_reserve(&dns_ring, sizeof(*small), 0);
		seq = next_seqs(c, small != NULL, p.messages);
		if (!small)
			return;
		fill_dns(&small->e, skb, &p, &asker->h, socket, answer, len, seq);
		len--; /* the verifier wants a length that is not 0, and sees that of a mask and 1 more */
		asm volatile("%0 &= %1" : "+r"(len) : "i"(DNS_SMALL - 1));
		if (bpf_skb_load_bytes(skb, p.data, small->data, len + 1)) {
			small->e.data_len = 0;
			small->e.h.size = sizeof(small->e);
		}
		bpf_ringbuf_submit(small, 0);
		return;
	}
	large = bpf_ringbuf_reserve(&dns_ring, sizeof(*large), 0);
	seq = next_seqs(c, large != NULL, p.messages);
	if (!large)
		return;
	len = len < MAX_DNS ? len : MAX_DNS;
	fill_dns(&large->e, skb, &p, &asker->h, socket, answer, len, seq);
	len--;
	asm volatile("%0 &= %1" : "+r"(len) : "i"(MAX_DNS - 1));
	if (bpf_skb_load_bytes(skb, p.data, large->data, len + 1)) {
		large->e.data_len = 0;
		large->e.h.size = sizeof(large->e);
	}
	bpf_ringbuf_submit(large, 0);
}

/* Every packet of the machine's sockets comes here: the ports decide at once. */
static __always_inline int on_packet(struct __sk_buff *skb, bool answer)
{
	__u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 network = AF_INET, protocol, transport;
	__be16 port;

	if (data + 20 > end)
		return 1;
	if (data[0] >> 4 == 4) {
		protocol = data[9];
		transport = (data[0] & 15) * 4;
		if ((data[6] & 0x1f) | data[7])
			return 1; /* not a datagram's first fragment */
	} else {
		network = AF_INET6;
		protocol = data[6]; /* extension headers are not followed */
		transport = 40;
	}
	if (protocol != IPPROTO_UDP && protocol != IPPROTO_TCP)
		return 1;
	if (data + transport + 4 > end)
		return 1;
	port = *(__be16 *)(data + transport + (answer ? 0 : 2));
	if (port == bpf_htons(DNS_PORT) && !config.stopped && !(config.ignoring & IGNORE_DNS))
		on_dns(skb, network, protocol, transport, answer);
	return 1; /* always let it pass */
}

SEC("cgroup_skb/egress")
int picket_dns_out(struct __sk_buff *skb)
{
	return on_packet(skb, false);
}

SEC("cgroup_skb/ingress")
int picket_dns_in(struct __sk_buff *skb)
{
	return on_packet(skb, true);
}
