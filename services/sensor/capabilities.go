package sensor

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kept are the capabilities that a sensor needs when its programs are attached:
// to open cgroups by the id that the kernel reports, and to read what others'
// processes run. Everything else (CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, …) is
// for loading and attaching.
const kept = 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_SYS_PTRACE

// hostFile returns where to read a file of the host, in a container too: below
// the root of the host's first process. (A file that is mounted into a container
// instead stays what it was when the host replaces it, as useradd does with
// /etc/passwd.) Where that process does not let itself be looked at it is path.
func hostFile(path string) string {
	host := "/proc/1/root" + path
	if _, err := os.Stat(host); err != nil {
		return path
	}
	return host
}

// hostProc is a file of process 1's, or where that may do more than this
// process, of its own.
func hostProc(name string) string {
	f, err := os.Open("/proc/1/" + name)
	if err != nil {
		return "/proc/self/" + name
	}
	f.Close()
	return "/proc/1/" + name
}

// checkHost finds out whether this process may look at others, by the kernel
// thread that is process 2 everywhere and runs no file.
func checkHost() error {
	switch _, err := os.Readlink("/proc/2/exe"); {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("looking at what other processes run: %w: the sensor needs CAP_SYS_PTRACE", err)
	case !errors.Is(err, os.ErrNotExist):
		return errors.New("process 2 is not the kernel's: the sensor needs the host's pid namespace (hostPID, or docker's --pid host)")
	}
	if _, err := os.Stat("/proc/2"); err != nil {
		return fmt.Errorf("the kernel's process 2 is not there (%w): the sensor needs the host's pid namespace (hostPID, or docker's --pid host)", err)
	}
	return nil
}

// dropCapabilities gives up all others, and the way to get them by running a
// set-user-ID program, for good, on every thread.
func dropCapabilities() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return fmt.Errorf("this process's capabilities: %w", err)
	}
	keep := have[0].Permitted & kept
	data := [2]unix.CapUserData{{Effective: keep, Permitted: keep}}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); errno == syscall.ENOTSUP {
		return fmt.Errorf("giving up capabilities: this binary was built with cgo, which knows threads that Go does not: build it with CGO_ENABLED=0, as make build does, or set drop_capabilities: false")
	} else if errno != 0 {
		return fmt.Errorf("giving up capabilities: %w", errno)
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("giving up new privileges: %w", errno)
	}
	return nil
}
