package bpf

import "golang.org/x/sys/unix"

var oldCalls = map[uint32]string{
	unix.SYS_OPEN: "open", unix.SYS_CREAT: "creat",
	unix.SYS_RENAME: "rename", unix.SYS_UNLINK: "unlink", unix.SYS_RMDIR: "rmdir", unix.SYS_MKDIR: "mkdir",
	unix.SYS_LINK: "link", unix.SYS_SYMLINK: "symlink", unix.SYS_CHMOD: "chmod",
	unix.SYS_CHOWN: "chown", unix.SYS_LCHOWN: "lchown",
}
