package bpf

import "golang.org/x/sys/unix"

// oldChanges are the calls that newer architectures do not have.
func oldChanges(one func(string, PathFields) PathEvent, two func(string, string, PathFields) PathEvent) []change {
	return []change{
		{"mkdir", func(dir string) error { return rawPath(unix.SYS_MKDIR, dir+"/e", 0o700) }, one("DIR/e", PathFields{NewMode: 0o700})},
		{"rename", func(dir string) error { return rawPath(unix.SYS_RENAME, dir+"/f", "g") }, two("DIR/f", "g", PathFields{})},
		{"link", func(dir string) error { return rawPath(unix.SYS_LINK, "g", dir+"/h") }, two("DIR/h", "g", PathFields{})},
		{"chmod", func(dir string) error { return rawPath(unix.SYS_CHMOD, "g", 0o600) }, one("g", PathFields{NewMode: 0o600})},
		{"chown", func(dir string) error { return rawPath(unix.SYS_CHOWN, "g", 3, 4) }, one("g", PathFields{NewUID: 3, NewGID: 4})},
		{"lchown", func(dir string) error { return rawPath(unix.SYS_LCHOWN, dir+"/g", 5, 6) }, one("DIR/g", PathFields{NewUID: 5, NewGID: 6})},
		{"unlink", func(dir string) error { return rawPath(unix.SYS_UNLINK, "h") }, one("h", PathFields{})},
		{"rmdir", func(dir string) error { return rawPath(unix.SYS_RMDIR, "e") }, one("e", PathFields{})},
	}
}
