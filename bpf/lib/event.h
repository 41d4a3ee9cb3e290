/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The records Picket's programs write into its ring buffers, byte for byte.
 *
 * event.go mirrors every struct of this file, and layout_test.go compares the two, by the BTF of the
 * compiled object. Fields are ordered so that the compiler inserts no padding: what looks like
 * padding is a named field. A change of any struct is a change of LAYOUT_VERSION.
 *
 * Strings (paths, arguments) follow the fixed part of a record in the order of their *_len fields,
 * without separators.
 */
#pragma once

#include "kernel.h"

/* Numbers that event.go and watch.go repeat; as an enum, they are in the object's BTF. */
enum layout {
	LAYOUT_VERSION = 4,
	MAX_PATH = 4096, /* bytes of each path carried */
	MAX_ARGS = 8192, /* bytes of arguments carried */
	MAX_ENV = 8192, /* bytes of the environment carried */
	MAX_DNS = 4096, /* bytes of a DNS message, or of a segment with some, carried */
	PROGRAM_BYTES = 256, /* of the path of an ignored program, with the NUL that ends it */
	WATCH_BYTES = 256, /* bytes of a watched path that are compared */
	WATCH_HASH = 0x1e3779b1, /* times the first bytes of a path: the product's top bits tell them apart */
};

/* The index of a class is part of the layout: counters and ledger are arrays over (cpu, class). */
enum event_class {
	CLASS_PROCESS = 0,
	CLASS_FILE = 1,
	CLASS_NETWORK = 2,
	CLASS_KERNEL = 3,
	CLASS_DNS = 4,
	NUM_CLASSES = 5,
};

enum event_action {
	ACTION_EXEC = 1,
	ACTION_FORK = 2,
	ACTION_EXIT = 3,
	ACTION_CGROUP = 4, /* no event, and not counted as one */
	ACTION_OPEN = 16,
	ACTION_RENAME = 17,
	ACTION_UNLINK = 18,
	ACTION_RMDIR = 19,
	ACTION_MKDIR = 20,
	ACTION_LINK = 21,
	ACTION_SYMLINK = 22,
	ACTION_CHMOD = 23,
	ACTION_CHOWN = 24,
	ACTION_MKNOD = 25,
	ACTION_TRUNCATE = 26,
	ACTION_UTIMES = 27,
	ACTION_SETXATTR = 28,
	ACTION_REMOVEXATTR = 29,
	ACTION_CONNECT = 32,
	ACTION_ACCEPT = 33,
	ACTION_DUP = 34,
	ACTION_SOCKET = 35,
	ACTION_BIND = 36,
	ACTION_LISTEN = 37,
	ACTION_SEND = 38,
	ACTION_CLOSE = 39,
	ACTION_CALL = 48,
	ACTION_QUERY = 64,
	ACTION_RESPONSE = 65,
};

/* header.flags, common to all events. */
enum header_flag {
	HEADER_KERNEL_THREAD = 1 << 0, /* the acting task is a kernel thread */
	HEADER_COMPAT = 1 << 1, /* reached through a 32-bit system call */
	HEADER_IO_URING = 1 << 2, /* asked for through an io_uring: no system call of that name was made */
};

/*
 * What is known of a path besides its bytes; used in exec_event.flags (shifted, see there),
 * open_event.path_flags, path_flags and target_flags of path_event and call_event.
 */
enum path_flag {
	PATH_TRUNCATED = 1 << 0, /* longer than the bound: the end (leaf side) is kept */
	PATH_OUTSIDE = 1 << 1, /* does not lead to the task's root: it starts at its mount's own root */
	PATH_DELETED = 1 << 2, /* the name or the inode is unlinked */
	PATH_FAULT = 1 << 3, /* a read failed on the way: what was read is there */
	PATH_USER = 1 << 4, /* read from the caller's memory after the call: it may have been changed meanwhile */
	PATH_ASKED = 1 << 5, /* of an open that is only asked for: the links in it were not followed, the rest is not known */
};

/* Who acts, when, and which number this record has: starts every record. 144 bytes. */
struct header {
	__u32 size; /* of the whole record with its strings, bytes */
	__u16 version; /* LAYOUT_VERSION */
	__u16 class; /* enum event_class */
	__u16 action; /* enum event_action */
	__u16 flags; /* enum header_flag */
	__u32 cpu;
	__u64 seq; /* per (cpu, class), from 1, without gaps */
	__u64 time; /* CLOCK_BOOTTIME, ns */
	__u64 start_time; /* of the acting process (its group leader), CLOCK_BOOTTIME, ns */
	__u64 cgroup_id; /* of the acting task: the inode of its directory in the hierarchy that Load chose */
	__u32 tgid; /* process id in the initial pid namespace */
	__u32 tid; /* thread id in the initial pid namespace */
	__u32 ns_pid; /* process id in the acting process's own pid namespace */
	__u32 parent_tgid; /* real parent's process id, initial pid namespace */
	__u64 parent_start_time; /* CLOCK_BOOTTIME, ns */
	__u32 pid_ns; /* namespaces by inode number; 0 if the task has none left */
	__u32 mnt_ns;
	__u32 net_ns;
	__u32 user_ns;
	__u32 uid; /* ids as the initial user namespace sees them */
	__u32 euid;
	__u32 gid;
	__u32 egid;
	__u32 loginuid; /* 0xffffffff: not set */
	__u32 sessionid; /* audit session; 0xffffffff: not set */
	char comm[16]; /* of the acting thread */
};

enum exec_flag {
	EXEC_ARGS_TRUNCATED = 1 << 0, /* args_total is more than what is carried */
	EXEC_ARGS_FAULT = 1 << 1, /* the argument memory could not be read (all of it) */
	EXEC_FILENAME_TRUNCATED = 1 << 2,
	EXEC_MEMFD = 1 << 3, /* the executable is a memfd: it has no name in any file system */
	EXEC_UPPER = 1 << 4, /* on overlayfs: the executable is in the upper (writable) layer */
	EXEC_SCRIPT = 1 << 5, /* filename names a script, exe its interpreter */
	EXEC_SECURE = 1 << 6, /* the kernel set AT_SECURE: set-id or file capabilities took effect */
	EXEC_FD = 1 << 7, /* by execveat, of a descriptor or relative to one */
	EXEC_ENV_TRUNCATED = 1 << 8, /* the environment is longer than what is carried */
	EXEC_ENV_FAULT = 1 << 9, /* the environment could not be read (all of it) */
	EXEC_LOWER = 1 << 10, /* on overlayfs: the executable is in a lower layer alone */
	EXEC_FILE_CAPABILITIES = 1 << 11, /* capabilities of the executable file took effect */
};

struct exec_event {
	struct header h;
	__u64 cap_effective;
	__u64 cap_permitted;
	__u64 cap_inheritable;
	__u64 args_total; /* true length of the argument area, bytes */
	__u64 exe_ino;
	__s64 exe_ctime; /* ns since 1970 */
	__s64 exe_mtime;
	__u32 flags; /* enum exec_flag */
	__u32 exe_flags; /* enum path_flag */
	__u32 cwd_flags; /* enum path_flag */
	__u32 old_tid; /* the calling thread's id before it took the leader's */
	__u32 suid;
	__u32 sgid;
	__u32 fsuid;
	__u32 fsgid;
	__u32 uts_ns;
	__u32 ipc_ns;
	__u32 cgroup_ns;
	__u32 argc;
	__u32 pgid; /* process group and session, initial pid namespace */
	__u32 sid;
	__u32 tty_dev; /* as in /proc/<pid>/stat (new_encode_dev); 0: no terminal */
	__u32 exe_dev; /* new_encode_dev: as stat(2) gives it */
	__u32 exe_mode;
	__u32 exe_uid;
	__u32 exe_gid;
	__u32 filename_len;
	__u32 exe_len;
	__u32 cwd_len;
	__u32 args_len;
	__u32 env_len;
	char tty[32]; /* the kernel's name of the terminal, NUL padded: "pts3" */
	/* char filename[], exe[], cwd[], args[], env[]; arguments and variables end with a NUL byte each */
};

/* The header is the forking (parent) process; the fields are the new process. */
struct fork_event {
	struct header h;
	__u64 child_start_time; /* CLOCK_BOOTTIME, ns */
	__u64 child_parent_start_time;
	__u64 child_cgroup_id;
	__u32 child_tgid;
	__u32 child_ns_pid; /* in the child's own pid namespace */
	__u32 child_parent_tgid; /* differs from h.tgid under CLONE_PARENT */
	__u32 child_pid_ns;
	__u32 child_mnt_ns;
	__u32 child_net_ns;
	__u32 child_user_ns;
	__u32 child_flags; /* enum header_flag */
	__u64 clone_flags; /* as the caller gave them; 0 for fork and vfork */
	__u32 call; /* enum call */
	__u32 pad;
};

/*
 * The end of a whole process; the header is the last thread that ended. Without a number it is no event: the process is
 * ignored, but what it was before may be known.
 */
struct exit_event {
	struct header h;
	__u32 exit_status; /* argument of exit(2), 0 to 255 */
	__u32 signal; /* that killed it; 0: it ended by itself */
	__u32 core_dumped; /* 0 or 1 */
	__u32 pad;
};

/*
 * A control group that was made, in the hierarchy that names containers. It comes before the events of every process in
 * it. h has no number: it is no event. h.cgroup_id is the new group's.
 */
struct cgroup_event {
	struct header h;
	__u32 pad;
	__u32 path_len;
	/* char path[], from the hierarchy's root */
};

enum open_access {
	OPEN_READ = 1 << 0,
	OPEN_WRITE = 1 << 1,
	OPEN_CREATED = 1 << 2, /* this call created the file */
	OPEN_WATCHED = 1 << 3, /* the path is under a watched prefix */
};

struct open_event {
	struct header h;
	__u64 ino;
	__u64 flags; /* open(2) flags as the caller gave them */
	__u32 access; /* enum open_access, from the opened file itself */
	__u32 file_flags; /* flags the kernel keeps in the open file */
	__u32 dev; /* new_encode_dev */
	__u32 mode; /* type and permissions */
	__u32 uid; /* owner of the file */
	__u32 gid;
	__u32 nlink;
	__s32 fd;
	__u32 call; /* enum call */
	__u32 link_len;
	__u32 path_flags; /* enum path_flag */
	__u32 path_len;
	__u32 source_len;
	__u32 pad;
	/*
	 * char path[], link[], source[]. link is a watched path that the file has too: it was opened by a hard link. source
	 * is the path in the file's own file system, of a file that a process in another mount namespace than the host's
	 * opens: it may be reached by another path from there.
	 */
};

/* In the new_* fields and number of a path_event: the operation leaves it as it is, or does not set it. */
#define NOT_CHANGED 0xffffffff
#define NO_NUMBER 0xffffffffffffffffULL

/*
 * A change of a name or of attributes, whether it succeeded or not. path is what is changed or made; target
 * of a rename the new path, of a link the file that gets the name, of a symlink the text it holds, of an extended
 * attribute its name. Each is a text
 * and, where that is relative, its base: the directory it starts from. A file named by a descriptor, and a
 * path that was taken at a hook, has a base alone.
 */
struct path_event {
	struct header h;
	__u64 ino; /* of a file named by a descriptor, as dev, mode, uid and gid; else 0 */
	__u64 number; /* truncate: length; mknod: device; utimes: modification time, ns since 1970; or NO_NUMBER */
	__s32 result; /* 0 or a negative errno */
	__u32 dev; /* new_encode_dev */
	__u32 mode; /* type and permissions, after the change */
	__u32 uid; /* owner, after the change */
	__u32 gid;
	__u32 new_mode; /* chmod: permissions; mkdir, mknod: as asked for */
	__u32 new_uid; /* chown */
	__u32 new_gid;
	__u32 call; /* enum call */
	__u32 pad;
	__u32 path_flags; /* enum path_flag */
	__u32 target_flags;
	__u32 base_len;
	__u32 path_len;
	__u32 target_base_len;
	__u32 target_len;
	/* char base[], path[], target_base[], target[] */
};

enum conn_flag {
	/* the remote address was read from the caller's memory, because the kernel kept none */
	CONN_REMOTE_FROM_USER = 1 << 0,
	/* the same of the local address of a bind that failed, or the path of a unix socket */
	CONN_LOCAL_FROM_USER = 1 << 1,
	/* close: the connection was accepted */
	CONN_ACCEPTED = 1 << 2,
};

/*
 * connect, dup, send: local is the caller; accept: local is the accepting end. bind, listen: there is no remote end.
 * socket: neither. close: as the connect or accept it ends, whose process is the header's, though another may have
 * closed it.
 */
struct conn_event {
	struct header h;
	__u64 sock_ino;
	__s32 result; /* 0 or a negative errno; dup, socket: the new descriptor */
	__s32 fd; /* connect, bind, listen, send: the socket; accept: the new socket; dup: the descriptor that was copied */
	__u16 family; /* AF_UNIX 1, AF_INET 2, AF_INET6 10; of socket any */
	__u16 type; /* SOCK_STREAM 1, SOCK_DGRAM 2, SOCK_RAW 3, SOCK_SEQPACKET 5 */
	__u16 protocol; /* IPPROTO_* */
	__u16 flags; /* enum conn_flag */
	__u16 local_port; /* host byte order */
	__u16 remote_port;
	__u32 call; /* enum call */
	__u8 local_addr[16]; /* AF_INET uses the first four bytes */
	__u8 remote_addr[16];
	__u64 bytes_sent; /* close: without what was sent again */
	__u64 bytes_received;
	__u64 duration; /* ns since the connect or accept */
	__u32 backlog; /* listen */
	__u32 path_len; /* of a unix socket: at most 108; the first byte of an abstract name is NUL */
	/* char path[] */
};

/*
 * A call of class kernel. The strings are as in path_event; which of them a call has is in lib/recipe.h.
 */
struct call_event {
	struct header h; /* with the credentials and namespaces after the call */
	__s64 result;
	__u64 args[6]; /* as the caller had them in registers; a signal has its number alone */
	__u64 cap_effective; /* after the call */
	__u64 cap_permitted;
	__u64 cap_inheritable;
	__u64 ino; /* of the file behind a descriptor, which for setns is the namespace */
	__u64 number; /* behind a pointer: lib/recipe.h says which */
	__u64 subject_start_time; /* the process that a signal goes to, CLOCK_BOOTTIME, ns */
	__u32 subject_tgid;
	__u32 call; /* enum call */
	__u32 type; /* of a BPF program or map; of a perf event */
	__u32 suid; /* after the call, as the next */
	__u32 sgid;
	__u32 fsuid;
	__u32 fsgid;
	__u32 uts_ns;
	__u32 ipc_ns;
	__u32 cgroup_ns;
	__u32 path_flags; /* enum path_flag; PATH_USER also for text and number */
	__u32 target_flags;
	__u32 base_len;
	__u32 path_len;
	__u32 target_base_len;
	__u32 target_len;
	char text[64]; /* NUL padded, cut: a file system's type, a name; of a signal the receiver's command name */
	/* char base[], path[], target_base[], target[] */
};

/*
 * A DNS message over UDP, or a segment of a TCP stream of them; the header is the process that asked. The record is
 * longer than h.size says: what follows is not written. h.seq is the number of the first of its messages.
 */
struct dns_event {
	struct header h;
	__u64 socket; /* the kernel's cookie: never the same again */
	__u32 sequence; /* TCP: sequence number of the first byte */
	__u32 begun; /* TCP: bytes at the beginning of a message that began in an earlier segment */
	__u32 messages; /* that end in it; UDP: 1 */
	__u32 total; /* true length of the data, bytes */
	__u16 family; /* AF_INET 2, AF_INET6 10 */
	__u16 protocol; /* IPPROTO_TCP 6, IPPROTO_UDP 17 */
	__u16 source_port; /* host byte order */
	__u16 dest_port;
	__u8 source_addr[16]; /* AF_INET uses the first four bytes */
	__u8 dest_addr[16];
	__u32 pad;
	__u32 data_len;
	/* char data[] */
};
