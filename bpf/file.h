/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Class file: files opened for writing, created, or read under a watched path. */
#pragma once

#include "lib/maps.h"
#include "lib/path.h"
#include "lib/select.h"
#include "lib/syscall.h"
#include "lib/task.h"

/* One per CPU is enough, as for exec_scratch: only the program on sys_exit uses it. */
struct file_scratch {
	struct open_event event;
	struct watch_key key;
	struct walk path; /* behind each walk there must be room for another MAX_PATH: see room */
	struct walk link;
	struct walk source;
	/*
	 * A path is copied out from buf[MAX_PATH - len], len bytes. The verifier knows a bound of each, not
	 * that they add up to MAX_PATH: it wants room for both. It is never touched.
	 */
	char room[MAX_PATH];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct file_scratch);
} file_scratch SEC(".maps");

/*
 * The noise filter. Opening one of these changes no file: /dev/null, zero, full, random, urandom; terminals
 * (consoles, serial lines, pseudo terminals, /dev/tty); pipes; and what has no file behind it at all.
 * Nothing in /proc and /sys is noise: writes there configure the kernel.
 */
static __always_inline bool is_noise(struct inode *inode, __u32 mode)
{
	__u32 dev, major, minor;

	switch (mode & S_IFMT) {
	case S_IFREG:
	case S_IFDIR:
		return false;
	case S_IFCHR:
		dev = READ(inode, i_rdev);
		major = dev >> 20;
		minor = dev & 0xfffff;
		if (major == 1)
			return minor == 3 || minor == 5 || minor == 7 || minor == 8 || minor == 9;
		return major == 4 || major == 5 || (major >= 136 && major <= 143);
	case S_IFIFO:
	case S_IFSOCK:
		return true;
	default:
		return READ(inode, i_sb, s_magic) == ANON_INODE_FS_MAGIC;
	}
}

/* Whether a path may be under a watched one, by how it begins. */
static __always_inline bool may_be_watched(const char *path)
{
	__u32 four = *(__u32 *)path * WATCH_HASH >> 27, eight;

	if (!(config.watching >> four & 1))
		return false;
	if (config.watching_short >> four & 1)
		return true;
	eight = *(__u64 *)path * WATCH_HASH >> 53;
	return config.beginnings[eight >> 6 & 31] >> (eight & 63) & 1;
}

/* Whether a walked path is under one of the watched ones (see watch.go for the keys). */
static __noinline bool is_watched(struct file_scratch *s, struct walk *w)
{
	__u32 pos = w->pos, len;

	if (pos >= MAX_PATH)
		return false;
	/* Most are not, and what follows costs as much as half the walk. */
	if (!may_be_watched(&w->buf[pos]))
		return false;
	/* With the NUL that follows the path: it ends an exact match. */
	len = MAX_PATH - pos + 1;
	s->key.prefix_bits = (len < WATCH_BYTES ? len : WATCH_BYTES) * 8;
	if (bpf_probe_read_kernel(s->key.path, sizeof(s->key.path), &w->buf[pos]))
		return false;
	return bpf_map_lookup_elem(&watches, &s->key) != NULL;
}

/* More names of a file than these are not looked at. */
#define MAX_LINKS 16

struct links {
	struct file_scratch *s;
	struct vfsmount *mnt;
	struct dentry *opened;
	struct hlist_node *next;
	bool found;
};

static long look_at_link(__u32 i, struct links *l)
{
	struct hlist_node *node = l->next;
	struct dentry *dentry;

	if (!node)
		return 1;
	dentry = (void *)node - bpf_core_field_offset(struct dentry, d_u.d_alias);
	l->next = BPF_CORE_READ(node, next);
	if (dentry == l->opened)
		return 0;
	walk_path(&l->s->link, l->mnt, dentry, bpf_get_current_task_btf());
	l->found = is_watched(l->s, &l->s->link);
	return l->found;
}

/*
 * Whether the file has another name that is watched. Only names that the kernel has in memory are seen: who makes a
 * hard link has just looked the watched one up.
 */
static __noinline bool has_watched_link(struct file_scratch *s, struct vfsmount *mnt, struct dentry *dentry,
					struct inode *inode)
{
	struct links l = {.s = s, .mnt = mnt, .opened = dentry};

	l.next = BPF_CORE_READ(inode, i_dentry.first);
	bpf_loop(MAX_LINKS, look_at_link, &l, 0);
	return l.found;
}

/* Whether a process of another mount namespace may see a file by another path than the host does. */
static __always_inline bool may_be_elsewhere(struct task_struct *task, struct super_block *sb)
{
	struct nsproxy *nsproxy = task->nsproxy;
	unsigned long magic;

	if (!config.host_mnt_ns || !nsproxy || nsproxy->mnt_ns->ns.inum == config.host_mnt_ns)
		return false;
	magic = READ(sb, s_magic);
	/* A container's own layers, and what has no files of the host. */
	return magic != OVERLAYFS_SUPER_MAGIC && magic != PROC_SUPER_MAGIC && magic != SYSFS_MAGIC;
}

/* The flags the caller gave. The kernel keeps only some of them in the file. */
static __always_inline __u64 open_flags(const struct syscall *sc, __u32 file_flags, struct counters *c)
{
	__u64 flags;

	switch (sc->call) {
	case CALL_OPEN:
		return (__u32)sc->args[1];
	case CALL_OPENAT:
	case CALL_OPEN_BY_HANDLE_AT:
		return (__u32)sc->args[2];
	case CALL_CREAT:
		return O_WRONLY | O_CREAT | O_TRUNC;
	default:
		/* the first member of struct open_how, in the caller's memory */
		if (!bpf_probe_read_user(&flags, sizeof(flags), (void *)sc->args[2]))
			return flags;
		count(&c->errors[ERROR_USER_ADDRESS]);
		return file_flags;
	}
}

/* Tells of an open whose fields and paths are in the scratch. */
static __noinline int emit_open(struct file_scratch *s, struct task_struct *task, const struct syscall *sc,
				__u32 link_len, __u32 source_len)
{
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_FILE);
	struct open_event *e = &s->event;
	struct bpf_dynptr record;
	__u32 len, off;

	if (!c)
		return 0;
	fill_header(&e->h, task);
	if (crowded_out(&file_ring, CLASS_FILE, c, e->h.cgroup_id, 1))
		return 0;
	e->h.class = CLASS_FILE;
	e->h.action = ACTION_OPEN;
	e->h.flags |= sc->flags;
	e->call = sc->call;
	e->path_flags = s->path.flags;
	if (e->path_flags & PATH_FAULT)
		count(&c->errors[ERROR_PATH]);
	len = walk_len(&s->path);
	e->path_len = len;
	e->link_len = link_len;
	e->source_len = source_len;
	e->pad = 0;
	e->h.size = sizeof(*e) + len + link_len + source_len;

	e->h.seq = next_seq(c, !bpf_ringbuf_reserve_dynptr(&file_ring, e->h.size, 0, &record));
	if (!e->h.seq) {
		bpf_ringbuf_discard_dynptr(&record, 0);
		return 0;
	}
	bpf_dynptr_write(&record, 0, e, sizeof(*e), 0);
	bpf_dynptr_write(&record, sizeof(*e), &s->path.buf[MAX_PATH - len], len, 0);
	off = sizeof(*e) + len;
	if (link_len)
		bpf_dynptr_write(&record, off, &s->link.buf[MAX_PATH - link_len], link_len, 0);
	off += link_len;
	if (source_len)
		bpf_dynptr_write(&record, off, &s->source.buf[MAX_PATH - source_len], source_len, 0);
	bpf_ringbuf_submit_dynptr(&record, 0);
	return 0;
}

static __noinline int on_open(struct task_struct *task, const struct syscall *sc)
{
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_FILE);
	struct file_scratch *s;
	struct open_event *e;
	struct dentry *dentry;
	struct inode *inode;
	struct file *file;
	__u32 zero = 0, fd = sc->ret, f_mode, mode, access, link_len = 0, source_len = 0;
	struct super_block *sb;
	struct vfsmount *mnt;

	if (!c)
		return 0;
	file = open_file(task, fd);
	if (!file) {
		count(&c->errors[ERROR_FD]);
		return 0;
	}
	f_mode = READ(file, f_mode);
	access = f_mode & (FMODE_READ | FMODE_WRITE); /* the same bits: OPEN_READ, OPEN_WRITE */
	if (f_mode & FMODE_CREATED)
		access |= OPEN_CREATED;
	if (!(access & (OPEN_WRITE | OPEN_CREATED)) && !(config.watching && access))
		return 0;
	inode = READ(file, f_inode);
	mode = READ(inode, i_mode);
	if (is_noise(inode, mode)) {
		if (access & OPEN_WRITE)
			count(&c->filtered);
		return 0;
	}
	s = bpf_map_lookup_elem(&file_scratch, &zero);
	if (!s || left_out(task, c))
		return 0;
	dentry = READ(file, f_path.dentry);
	mnt = READ(file, f_path.mnt);
	sb = READ(inode, i_sb);
	walk_path(&s->path, mnt, dentry, task);
	if (config.watching && is_watched(s, &s->path))
		access |= OPEN_WATCHED;
	if (may_be_elsewhere(task, sb)) {
		walk_in_file_system(&s->source, mnt, dentry, READ(sb, s_root));
		source_len = walk_len(&s->source);
		if (config.watching && config.host_root_dev == READ(sb, s_dev) && is_watched(s, &s->source))
			access |= OPEN_WATCHED;
	}
	if (config.watching && !(access & OPEN_WATCHED) && (mode & S_IFMT) == S_IFREG &&
	    READ(inode, i_nlink) > 1 && has_watched_link(s, mnt, dentry, inode)) {
		access |= OPEN_WATCHED;
		link_len = walk_len(&s->link);
	}
	if (!(access & (OPEN_WRITE | OPEN_CREATED | OPEN_WATCHED)))
		return 0;

	e = &s->event;
	e->access = access;
	e->file_flags = READ(file, f_flags);
	e->flags = open_flags(sc, e->file_flags, c);
	e->ino = READ(inode, i_ino);
	e->dev = encode_dev(READ(sb, s_dev));
	e->mode = mode;
	e->uid = READ(inode, i_uid.val);
	e->gid = READ(inode, i_gid.val);
	e->nlink = READ(inode, i_nlink);
	e->fd = fd;
	if (is_deleted(dentry, e->nlink))
		s->path.flags |= PATH_DELETED;
	return emit_open(s, task, sc, link_len, source_len);
}

/* Keeps a text in front of which a path is walked, and returns its first byte; 0: it cannot be read. */
static __noinline char take_text(struct file_scratch *s, const char *text)
{
	struct walk *w = &s->path;
	long read = bpf_probe_read_kernel_str(s->link.buf, MAX_PATH, text);
	__u32 len, pos;

	if (read < 2)
		return 0;
	len = read - 1; /* without the NUL */
	pos = MAX_PATH - len;
	/* for the verifier, which knows of neither that it is below MAX_PATH */
	asm volatile("%0 &= %1" : "+r"(pos) : "i"(MAX_PATH - 1));
	asm volatile("%0 &= %1" : "+r"(len) : "i"(MAX_PATH - 1));
	bpf_probe_read_kernel(&w->buf[pos], len, s->link.buf);
	if (s->link.buf[0] != '/') {
		pos = (pos - 1) & (MAX_PATH - 1);
		w->buf[pos] = '/';
	}
	w->pos = pos;
	w->flags = PATH_ASKED;
	return s->link.buf[0];
}

/*
 * An open through an io_uring whose success nobody will be told of: it is told when it is asked for, as an open of a
 * regular file by the text that the kernel has copied.
 */
static __noinline int on_open_asked(struct task_struct *task, const struct syscall *sc, const char *text, int dfd)
{
	struct counters *c = counters_of(bpf_get_smp_processor_id(), CLASS_FILE);
	__u32 zero = 0, flags = sc->args[2], access;
	struct file_scratch *s;
	struct fs_struct *fs;
	struct file *file;
	char first;

	if (flags & O_PATH)
		return 0;
	access = (flags & O_ACCMODE) == O_RDONLY ? OPEN_READ : (flags & O_ACCMODE) == O_WRONLY ? OPEN_WRITE : OPEN_READ | OPEN_WRITE;
	if (access == OPEN_READ && !(flags & O_CREAT) && !config.watching)
		return 0;
	s = bpf_map_lookup_elem(&file_scratch, &zero);
	if (!c || !s || left_out(task, c))
		return 0;
	first = take_text(s, text);
	if (!first)
		return 0; /* the kernel will not open that either */
	if (first != '/') {
		fs = task->fs;
		if (dfd == AT_FDCWD) {
			if (fs)
				walk_above(&s->path, fs->pwd.mnt, fs->pwd.dentry, task);
		} else {
			file = open_file(task, dfd);
			if (file)
				walk_above(&s->path, READ(file, f_path.mnt), READ(file, f_path.dentry), task);
		}
	}
	if (config.watching && is_watched(s, &s->path))
		access |= OPEN_WATCHED;
	if (access == OPEN_READ && !(flags & O_CREAT))
		return 0;
	__builtin_memset(&s->event, 0, sizeof(s->event));
	s->event.access = access;
	s->event.flags = flags;
	s->event.mode = S_IFREG;
	s->event.fd = -1;
	return emit_open(s, task, sc, 0, 0);
}
