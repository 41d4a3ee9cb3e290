package rules

import (
	"path"
	"slices"

	"picket/schemas"
)

// The fields under fs.path, which tell the paths of calls that succeeded
// whatever their arguments are called. Which call has which is Falco's table
// (sinsp_filtercheck_fspath.cpp): creat and open_by_handle_at have none, and a
// link's source is the new name. A variant that Falco does not know has what the
// call has that it is a variant of.
var (
	pathCalls = []string{"open", "openat", "openat2", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat",
		"chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchown", "fchownat"}
	sourceCalls = []string{"rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"}
)

// pathOf reads a path of the calls that succeeded.
func pathOf(classes schemas.ClassSet, calls []string, f func(dst []byte, r *row) []byte) []reader {
	return textOf(classes, nil, func(dst []byte, r *row, _ *argument) []byte {
		if r.int(schemas.Result) < 0 || !slices.Contains(calls, r.str(schemas.Syscall)) {
			return dst
		}
		return f(dst, r)
	})
}

func appendColumn(id schemas.FieldID) func(dst []byte, r *row) []byte {
	return func(dst []byte, r *row) []byte { return append(dst, r.str(id)...) }
}

// appendFromCwd appends a path as it was given, made absolute with the process's
// working directory, as Falco does it with the text of a symlink too.
func appendFromCwd(id schemas.FieldID) func(dst []byte, r *row) []byte {
	return func(dst []byte, r *row) []byte {
		switch p := r.str(id); {
		case p == "":
			return dst
		case p[0] == '/':
			return append(dst, p...)
		default:
			return append(dst, path.Clean(r.str(schemas.ProcessCwd)+"/"+p)...)
		}
	}
}

var pathFields = []field{
	{name: "fs.path.name", doc: "The path that open, mkdir, rmdir, unlink, chmod, chown and their variants, umount and quotactl were for. Of calls that succeeded, as all that begin with fs.path.",
		readers: slices.Concat(pathOf(fileOnly, pathCalls, appendColumn(schemas.FilePath)),
			pathOf(kernelOnly, []string{"umount", "umount2", "quotactl"}, appendColumn(schemas.FilePath)))},
	{name: "fs.path.source", doc: "rename: the old path; link: the new name; symlink: its path; mount: what is mounted.",
		readers: slices.Concat(pathOf(fileOnly, sourceCalls, appendColumn(schemas.FilePath)),
			pathOf(kernelOnly, []string{"mount"}, appendFromCwd(schemas.FilePathTarget)))},
	{name: "fs.path.target", doc: "rename: the new path; link: the file that gets the name; symlink: the text that it holds, made absolute from the process's working directory; mount: where.",
		readers: slices.Concat(pathOf(fileOnly, sourceCalls, appendFromCwd(schemas.FilePathTarget)),
			pathOf(kernelOnly, []string{"mount"}, appendColumn(schemas.FilePath)))},
}
