/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Maps and settings every program shares. All of them are pinned (kernel.go), so that they and what they
 * hold outlive the sensor.
 */
#pragma once

#include "event.h"

/* One ring per class: a storm in one class cannot push out events of another. Sizes are set by Load. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} process_ring SEC(".maps"), file_ring SEC(".maps"), network_ring SEC(".maps"), kernel_ring SEC(".maps"), dns_ring SEC(".maps");

/* Where a read of kernel or user memory failed, or memory was missing. Names in counters.go. */
enum error_kind {
	ERROR_PATH = 0, /* a path could not be walked to its end */
	ERROR_ARGS = 1, /* argument or environment memory was not readable */
	ERROR_FILENAME = 2, /* the name given to execve was not readable */
	ERROR_FD = 3, /* another thread closed the descriptor first: no event */
	ERROR_USER_ADDRESS = 4, /* socket address or socketcall arguments were not readable */
	ERROR_STORAGE = 5, /* no memory, or no room, to remember a connection, a flow or a path */
	ERROR_ASKER = 6, /* a DNS message of a socket whose first question was not seen: no event */
	ERROR_STREAM = 7, /* a DNS stream over TCP that cannot be followed: no events from then on */
	ERROR_CGROUP = 8, /* no room to tell of a new control group */
	NUM_ERRORS = 10, /* with room: the struct stays two cache lines */
};

/* seen == submitted + ring_full + limited, always: each event is one of them. Index: cpu * NUM_CLASSES + class. */
struct counters {
	__u64 seen; /* events that passed the filters */
	__u64 submitted; /* those that got a place in the ring; the last sequence number given */
	__u64 ring_full; /* those that did not */
	__u64 filtered; /* suppressed by the noise filter: not events */
	__u64 threads; /* threads begun (class process): not events */
	__u64 limited; /* those left out so that others have room: see crowded_out */
	__u64 errors[NUM_ERRORS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, NUM_CLASSES); /* times the possible CPUs: set by Load */
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

/* Only user space uses it: how many events of (cpu, class) were handed on safely. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, NUM_CLASSES); /* times the possible CPUs: set by Load */
	__type(key, __u32);
	__type(value, __u64);
} ledger SEC(".maps");

/* Paths under which reads are events. Each watched path P is two entries, "P/" and "P\0": see watch.go. */
struct watch_key {
	__u32 prefix_bits;
	__u8 path[WATCH_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2048);
	__type(key, struct watch_key);
	__type(value, __u32);
} watches SEC(".maps");

/* A cgroup's events of a class, while the class's ring is nearly full. */
struct share_key {
	__u64 cgroup;
	__u64 class;
};

struct share {
	__u64 window; /* number of the window of time it counts in */
	__u64 events; /* in that window */
	__u64 limited; /* left out, ever */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct share_key);
	__type(value, struct share);
} shares SEC(".maps");

/* What there is to look up before an event; see select.h. */
enum ignore {
	IGNORE_CGROUPS = 1 << 0,
	IGNORE_PROGRAMS = 1 << 1,
	IGNORE_PEERS = 1 << 2,
	IGNORE_DNS = 1 << 3, /* all of it */
};

/* What user space sets while the programs run. */
struct config {
	__u32 self_tgid; /* the sensor: its file and network activity is not reported */
	/* Bit n: some watched path begins with four bytes whose hash is n. 0: there is none, reads need no path walk. */
	__u32 watching;
	__u64 self_start_time; /* tells the sensor from a later process with its id */
	__u32 stopped; /* 1: nothing is an event any more */
	__u32 environment; /* 1: an exec has the environment */
	__u64 share; /* events that a cgroup may add to a nearly full ring in one window; 0: as many as there are */
	__u32 ignoring; /* enum ignore */
	__u32 generation; /* of the set of ignored programs */
	__u32 host_mnt_ns; /* the host's mount namespace; 0: not known */
	__u32 host_root_dev; /* of its root directory's file system, as in s_dev; 0: that is not mounted there as a whole */
	__u64 unwanted[4]; /* bit n: events of enum call n are not wanted: they are not looked at, and not counted */
	/* Bit n: some watched path begins with eight bytes whose hash is n ... */
	__u64 beginnings[32];
	__u32 watching_short; /* ... or with fewer than eight, and its first four have the hash n, as in watching */
	__u32 pad;
} config SEC(".data.config");

static __always_inline struct counters *counters_of(__u32 cpu, enum event_class class)
{
	__u32 index = cpu * NUM_CLASSES + class;
	return bpf_map_lookup_elem(&counters, &index);
}

/* call is below 256. */
static __always_inline bool wanted(__u32 call)
{
	return !(config.unwanted[call >> 6 & 3] >> (call & 63) & 1);
}

static __always_inline void add(__u64 *counter, __u64 n)
{
	__sync_fetch_and_add(counter, n);
}

static __always_inline void count(__u64 *counter)
{
	add(counter, 1);
}

#define SHARE_WINDOW_SHIFT 27 /* a window is 2^27 ns, 134 ms */
#define RING_AVAILABLE 0 /* BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE */
#define RING_SIZE 1

/*
 * Whether an event is left out because its cgroup fills a ring that is nearly full: one noisy container must not
 * blind the node to the others. Nothing is left out while the ring is less than three quarters full. What is left out
 * is counted, here and for its cgroup.
 */
static __always_inline bool crowded_out(void *ring, enum event_class class, struct counters *c, __u64 cgroup, __u32 events)
{
	struct share_key key = {};
	struct share first = {.events = events}, *s;

	if (!config.share || bpf_ringbuf_query(ring, RING_AVAILABLE) < bpf_ringbuf_query(ring, RING_SIZE) / 4 * 3)
		return false;
	key.cgroup = cgroup;
	key.class = class;
	first.window = bpf_ktime_get_boot_ns() >> SHARE_WINDOW_SHIFT;
	s = bpf_map_lookup_elem(&shares, &key);
	if (!s) {
		bpf_map_update_elem(&shares, &key, &first, 0);
		return false;
	}
	/* Two CPUs may both begin the window: then a few events more have room. */
	if (s->window != first.window) {
		s->window = first.window;
		s->events = events;
		return false;
	}
	if (__sync_fetch_and_add(&s->events, events) < config.share)
		return false;
	add(&s->limited, events);
	add(&c->seen, events);
	add(&c->limited, events);
	return true;
}

/*
 * next_seqs does the accounting of a record's events right after the attempt to reserve its place in the ring, and
 * returns the first's sequence number; 0 when there was no place. Counting is atomic, so that numbers stay unique
 * and without gaps even where a kernel lets tracing programs be preempted; they are in ring order as long
 * as it does not.
 */
static __always_inline __u64 next_seqs(struct counters *c, bool reserved, __u32 events)
{
	add(&c->seen, events);
	if (!reserved) {
		add(&c->ring_full, events);
		return 0;
	}
	return __sync_fetch_and_add(&c->submitted, events) + 1;
}

static __always_inline __u64 next_seq(struct counters *c, bool reserved)
{
	return next_seqs(c, reserved, 1);
}
