package chdb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confinedMark in the environment says that the process has confined itself.
const confinedMark = "PICKET_CLICKHOUSE_CONFINED=1"

// errNoLandlock says that the kernel has no Landlock.
var errNoLandlock = errors.New("this kernel has no Landlock")

// Confine takes from this process what it has no need of: files outside the
// data folder but the system's libraries and what the kernel tells in /proc
// and /sys. The engine would read and write any file a query names, with the
// rights of the user who started it, and whoever can connect can query.
//
// On success it does not return: the program starts again from the beginning,
// confined, and there Confine does nothing. A kernel without Landlock is told
// by an error for which Unconfinable is true.
func Confine(o Options) error {
	for _, v := range os.Environ() {
		if v == confinedMark {
			return nil
		}
	}
	library := o.Library
	if library == "" {
		var err error
		if library, err = DefaultLibrary(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(o.Data, 0o700); err != nil {
		return fmt.Errorf("create the data folder: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}

	const (
		read    = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
		execute = unix.LANDLOCK_ACCESS_FS_EXECUTE
		write   = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
			unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SYM
		// Rights newer kernels know; all are handled so that what is not
		// granted is refused.
		others = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK
	)
	handled, writes := uint64(read|execute|write|others), uint64(write)
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return fmt.Errorf("%w: %w", errNoLandlock, errno)
	}
	if version >= 2 {
		handled |= unix.LANDLOCK_ACCESS_FS_REFER
		writes |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if version >= 3 {
		handled |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
		writes |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}

	attr := unix.LandlockRulesetAttr{Handled_access_fs: handled}
	// Only the first field: the later ones are of newer kernels.
	rules, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0)
	if errno != 0 {
		return fmt.Errorf("confine this process: make the rules: %w", errno)
	}
	defer unix.Close(int(rules))
	for _, rule := range []struct {
		path   string
		access uint64
	}{
		{o.Data, read | writes},
		{library, read},
		{self, read | execute},
		{"/usr", read | execute}, {"/lib", read | execute}, {"/lib64", read | execute},
		{"/etc/ld.so.cache", read}, {"/etc/localtime", read}, {"/etc/timezone", read},
		{"/etc/hosts", read}, {"/etc/resolv.conf", read}, {"/etc/nsswitch.conf", read}, {"/etc/ssl", read},
		{"/proc/self", read}, {"/proc/self/fd", read | writes}, // its pid stays the same
		{"/proc/meminfo", read}, {"/proc/cpuinfo", read}, {"/proc/stat", read}, {"/proc/vmstat", read},
		{"/proc/loadavg", read}, {"/proc/uptime", read}, {"/proc/sys", read}, {"/proc/filesystems", read},
		{"/sys", read},
		{"/dev/null", read | writes}, {"/dev/zero", read}, {"/dev/urandom", read}, {"/dev/random", read},
	} {
		if err := allow(int(rules), rule.path, rule.access); err != nil {
			return fmt.Errorf("confine this process to %s: %w", rule.path, err)
		}
	}

	// The rules hold for this thread, and it is the one that goes on.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("confine this process: %w", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, rules, 0, 0); errno != 0 {
		return fmt.Errorf("confine this process: %w", errno)
	}
	return fmt.Errorf("start %s again, confined: %w", self, syscall.Exec(self, os.Args, append(os.Environ(), confinedMark)))
}

// Unconfinable says whether Confine failed because the kernel cannot do it.
func Unconfinable(err error) bool { return errors.Is(err, errNoLandlock) }

// allow adds a rule for what is at or below a path. What is not there needs none.
func allow(rules int, path string, access uint64) error {
	path, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var info unix.Stat_t
	if err := unix.Fstat(fd, &info); err != nil {
		return err
	}
	if info.Mode&unix.S_IFMT != unix.S_IFDIR {
		// A file has no entries to list, make or remove.
		access &= unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rules), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
