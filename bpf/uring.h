/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Changes of files through an io_uring. A request is noted when it is submitted, because the names it has, which are
 * the kernel's own copies, are gone when it is done; it is told when it is done, like the system call.
 */
#pragma once

#include "lib/maps.h"
#include "lib/noted.h"
#include "file.h"
#include "lib/recipe.h"
#include "network.h"
#include "path.h"

/* linux/io_uring.h */
enum io_uring_operation {
	IORING_OP_SENDMSG = 9,
	IORING_OP_ACCEPT = 13,
	IORING_OP_CONNECT = 16,
	IORING_OP_OPENAT = 18,
	IORING_OP_OPENAT2 = 28,
	IORING_OP_RENAMEAT = 35,
	IORING_OP_UNLINKAT = 36,
	IORING_OP_MKDIRAT = 37,
	IORING_OP_SYMLINKAT = 38,
	IORING_OP_LINKAT = 39,
	IORING_OP_FSETXATTR = 41,
	IORING_OP_SETXATTR = 42,
	IORING_OP_SOCKET = 45,
	IORING_OP_SENDMSG_ZC = 48,
	IORING_OP_FTRUNCATE = 55,
	IORING_OP_BIND = 56,
	IORING_OP_LISTEN = 57,
};

/* Flags that a request has as it was given them: IOSQE_FIXED_FILE, IOSQE_CQE_SKIP_SUCCESS */
#define REQUEST_FIXED_FILE (1 << 0)
#define REQUEST_SKIPS_SUCCESS (1 << 6)

/* The call that a request stands for, and what it has besides names; CALL_NONE: it changes no file. */
static __noinline void fill_change(struct syscall *sc, struct io_kiocb *req, __u32 opcode)
{
	sc->call = CALL_NONE;
	sc->flags = HEADER_IO_URING;
	sc->args[RING_REQUEST] = (__u64)req;
	sc->args[RING_FILE] = 0;
	switch (opcode) {
	case IORING_OP_RENAMEAT:
		sc->call = CALL_RENAMEAT2;
		break;
	case IORING_OP_UNLINKAT:
		sc->call = CALL_UNLINKAT;
		sc->args[2] = READ((struct io_unlink *)req, flags);
		break;
	case IORING_OP_MKDIRAT:
		sc->call = CALL_MKDIRAT;
		sc->args[2] = READ((struct io_mkdir *)req, mode);
		break;
	case IORING_OP_SYMLINKAT:
		sc->call = CALL_SYMLINKAT;
		break;
	case IORING_OP_LINKAT:
		sc->call = CALL_LINKAT;
		break;
	case IORING_OP_FSETXATTR:
		sc->call = CALL_FSETXATTR;
		sc->args[RING_FILE] = (__u64)READ((struct io_xattr *)req, file);
		break;
	case IORING_OP_SETXATTR:
		sc->call = CALL_SETXATTR;
		break;
	case IORING_OP_FTRUNCATE:
		if (!bpf_core_type_exists(struct io_ftrunc))
			break;
		sc->call = CALL_FTRUNCATE;
		sc->args[1] = READ((struct io_ftrunc *)req, len);
		sc->args[RING_FILE] = (__u64)READ((struct io_ftrunc *)req, file);
		break;
	}
}

/* Notes the name that a request has, and what it is relative to. */
static __noinline void note_name(struct named *n, struct task_struct *task, struct filename *name, int fd)
{
	copy_text(n, READ(name, name));
	start_from(n, task, fd);
}

/*
 * A request whose success nobody will be told of, and that changes no names: it is told now, a connect and what is done
 * with sockets as under way. If it fails, that is told when it is done.
 */
static __noinline int on_asked(struct task_struct *task, struct io_kiocb *req, __u32 opcode)
{
	struct io_sr_msg *message = (void *)req;
	struct io_connect *connect = (void *)req;
	struct io_listen *listen = (void *)req;
	struct io_socket *socket = (void *)req;
	struct io_open *open = (void *)req;
	struct file *file = NULL;
	struct syscall *sc;
	const void *name;
	__u32 zero = 0;

	sc = bpf_map_lookup_elem(&this_call, &zero);
	if (!sc)
		return 0;
	sc->flags = HEADER_IO_URING;
	sc->ret = -EINPROGRESS;
	sc->args[0] = READ(req, cqe.fd);
	if (!(READ(req, flags) & REQUEST_FIXED_FILE))
		file = open_file(task, sc->args[0]);
	switch (opcode) {
	case IORING_OP_OPENAT:
	case IORING_OP_OPENAT2:
		sc->call = CALL_OPENAT;
		sc->args[2] = READ(open, how.flags);
		if (READ(open, file_slot) || !wanted(CALL_OPENAT))
			return 0;
		return on_open_asked(task, sc, READ(open, filename, name), READ(open, dfd));
	case IORING_OP_CONNECT:
		sc->call = CALL_CONNECT;
		sc->args[1] = (__u64)READ(connect, addr);
		sc->args[2] = READ(connect, addr_len);
		return file && wanted(CALL_CONNECT) ? on_connect(task, sc, file) : 0;
	case IORING_OP_SOCKET:
		sc->call = CALL_SOCKET;
		sc->args[0] = READ(socket, domain);
		sc->args[1] = READ(socket, type);
		sc->args[2] = READ(socket, protocol);
		return wanted(CALL_SOCKET) ? on_socket(task, sc) : 0;
	case IORING_OP_LISTEN:
		if (!bpf_core_type_exists(struct io_listen))
			return 0;
		sc->call = CALL_LISTEN;
		sc->args[1] = READ(listen, backlog);
		return file && wanted(CALL_LISTEN) ? on_listen(task, sc, file) : 0;
	case IORING_OP_SENDMSG:
	case IORING_OP_SENDMSG_ZC:
		sc->call = CALL_SENDMSG;
		name = message_name(READ(message, umsg), false);
		return file && name && wanted(CALL_SENDMSG) ? on_send(task, sc, file, name) : 0;
	}
	return 0;
}

/* When a request is submitted. In older kernels the tracepoint is io_uring_submit_sqe: see Load. */
SEC("tp_btf/io_uring_submit_req")
int picket_uring_submit(__u64 *ctx)
{
	struct io_kiocb *req = (void *)ctx[0];
	__u32 opcode = req->opcode, zero = 0, call, action;
	struct task_struct *task;
	struct io_rename *rename = (void *)req;
	struct io_unlink *unlink = (void *)req;
	struct io_mkdir *mkdir = (void *)req;
	struct io_xattr *xattr = (void *)req;
	struct io_link *link = (void *)req;
	struct syscall *sc;
	struct noted *n;

	if (config.stopped)
		return 0;
	if (req->flags & REQUEST_SKIPS_SUCCESS &&
	    (opcode < IORING_OP_RENAMEAT || opcode == IORING_OP_SOCKET || opcode == IORING_OP_SENDMSG_ZC || opcode == IORING_OP_LISTEN)) {
		task = bpf_get_current_task_btf();
		return is_self(task) ? 0 : on_asked(task, req, opcode);
	}
	if (opcode < IORING_OP_RENAMEAT || opcode > IORING_OP_FTRUNCATE)
		return 0;
	/* It has no names: there is nothing to note. */
	if (opcode == IORING_OP_FTRUNCATE && !(req->flags & REQUEST_SKIPS_SUCCESS))
		return 0;
	task = bpf_get_current_task_btf();
	if (is_self(task))
		return 0;
	sc = bpf_map_lookup_elem(&this_call, &zero);
	if (!sc)
		return 0;
	fill_change(sc, req, opcode);
	call = sc->call;
	if (call == CALL_NONE || call >= NUM_CALLS || !wanted(call))
		return 0;
	action = recipes[call].action;
	if (opcode == IORING_OP_UNLINKAT && sc->args[2] & AT_REMOVEDIR)
		action = ACTION_RMDIR;
	if (opcode == IORING_OP_FTRUNCATE)
		goto done;
	n = note((__u64)req, call, action);
	if (!n)
		goto done;
	switch (opcode) {
	case IORING_OP_RENAMEAT:
		note_name(&n->path, task, READ(rename, oldpath), READ(rename, old_dfd));
		note_name(&n->target, task, READ(rename, newpath), READ(rename, new_dfd));
		break;
	case IORING_OP_UNLINKAT:
		note_name(&n->path, task, READ(unlink, filename), READ(unlink, dfd));
		break;
	case IORING_OP_MKDIRAT:
		note_name(&n->path, task, READ(mkdir, filename), READ(mkdir, dfd));
		break;
	case IORING_OP_SYMLINKAT:
		note_name(&n->path, task, READ(link, newpath), READ(link, new_dfd));
		note_name(&n->target, task, READ(link, oldpath), NO_DIRECTORY);
		break;
	case IORING_OP_LINKAT:
		note_name(&n->path, task, READ(link, newpath), READ(link, new_dfd));
		note_name(&n->target, task, READ(link, oldpath), READ(link, old_dfd));
		break;
	case IORING_OP_SETXATTR:
		note_name(&n->path, task, READ(xattr, filename), AT_FDCWD);
		/* and as the next */
	case IORING_OP_FSETXATTR:
		copy_text(&n->target, READ(xattr, ctx.kname));
		break;
	}
	n->has_target = 1;
done:
	/* Of one that asked for it no success is told when it is done: it is told now. A failure is told again then. */
	if (!(req->flags & REQUEST_SKIPS_SUCCESS))
		return 0;
	sc->ret = 0;
	/* It has no file before a thread acts on it, only the descriptor. */
	if (!(req->flags & REQUEST_FIXED_FILE))
		sc->args[RING_FILE] = (__u64)open_file(task, req->cqe.fd);
	return on_change(task, sc);
}
