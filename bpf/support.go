package bpf

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// ErrNotSupported is what every [NotSupportedError] is (errors.Is).
var ErrNotSupported = errors.New("the sensor cannot run here")

// NotSupportedError says that this machine, or this process's rights on it, lack something the programs
// need. No retry mends it.
type NotSupportedError struct {
	Missing string // one sentence: what is missing and what to do
	Err     error  // what told so; may be nil
}

// Error returns the sentence.
func (e *NotSupportedError) Error() string { return e.Missing }

// Unwrap makes it an ErrNotSupported, and keeps its cause.
func (e *NotSupportedError) Unwrap() []error { return []error{ErrNotSupported, e.Err} }

const kernelBTF = "/sys/kernel/btf/vmlinux"

// CheckSupport returns a *NotSupportedError naming the first thing that is missing, or another error when
// it could not be found out.
func CheckSupport() error {
	missing, err := missingCapabilities()
	if err != nil {
		return fmt.Errorf("finding out this process's capabilities: %w", err)
	}
	if missing != "" {
		return &NotSupportedError{Missing: "the sensor needs to run as root, or with the capabilities CAP_BPF and CAP_PERFMON; this process lacks " + missing}
	}
	if _, err := os.Stat(kernelBTF); err != nil {
		return &NotSupportedError{Missing: "the kernel's type information (BTF) is missing at " + kernelBTF + ": the sensor needs Linux 6.1 or later built with CONFIG_DEBUG_INFO_BTF", Err: err}
	}
	// nil: it has ring buffers; ErrNotSupported: it has not; anything else: the probe itself failed
	if err := features.HaveMapType(ebpf.RingBuf); errors.Is(err, ebpf.ErrNotSupported) {
		return &NotSupportedError{Missing: "this kernel has no BPF ring buffer: the sensor needs Linux 6.1 or later", Err: err}
	} else if err != nil {
		return fmt.Errorf("finding out whether the kernel has ring buffers: %w", err)
	}
	return nil
}

func hasCapability(c int) (bool, error) {
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return false, err
	}
	return data[c/32].Effective>>(c%32)&1 == 1, nil
}

func missingCapabilities() (string, error) {
	admin, err1 := hasCapability(unix.CAP_SYS_ADMIN) // implies the two others
	bpf, err2 := hasCapability(unix.CAP_BPF)
	perfmon, err3 := hasCapability(unix.CAP_PERFMON)
	if err := errors.Join(err1, err2, err3); err != nil {
		return "", err
	}
	switch {
	case admin, bpf && perfmon:
		return "", nil
	case !bpf && !perfmon:
		return "both", nil
	case !bpf:
		return "CAP_BPF", nil
	}
	return "CAP_PERFMON", nil
}

// offers says which of its forms a tracepoint has on this kernel, and whether it is there at all.
type offers struct {
	// sched_process_exit says which thread was the last of its process (Linux 6.16).
	exitTellsLast bool
	// There is io_uring_complete; it gives the result as a number (until Linux 6.14), not in the completion.
	uring, uringGivesResult bool
	// Programs can be attached to cgroup2; if not, why.
	dns   bool
	noDNS string
	// The tracepoint at the submission of a request, by its name of this kernel; "": there is none.
	uringSubmit string
	// Tests only: every change of credentials is told.
	everyCommit bool
	// Programs of hooks.h and creds.h that the kernel lets run.
	hooks []string
}

func probe(types *btf.Spec) (o offers, err error) {
	exit, err := tracepoint(types, "sched_process_exit")
	if err != nil {
		return o, err
	}
	o.exitTellsLast = len(exit.Params) >= 3
	o.hooks = probeHooks(types)
	complete, err := tracepoint(types, "io_uring_complete")
	if errors.Is(err, btf.ErrNotFound) {
		return o, nil // the kernel was built without io_uring
	}
	if err != nil {
		return o, err
	}
	// (void *, ctx, req, cqe), or (void *, ctx, req, user_data, res, …)
	o.uring, o.uringGivesResult = true, len(complete.Params) > 4
	for _, name := range []string{"io_uring_submit_req", "io_uring_submit_sqe"} { // its name now, and before
		_, err := tracepoint(types, name)
		if err == nil {
			o.uringSubmit = name
			break
		}
		if !errors.Is(err, btf.ErrNotFound) {
			return o, err
		}
	}
	return o, nil
}

// dnsAt finds out whether DNS messages can be taken at the root of cgroup2, which is at path.
func (o *offers) dnsAt(path string) error {
	if path == "" {
		o.noDNS = "it is switched off, or no cgroup2 file system is mounted"
		return nil
	}
	admin, err := hasCapability(unix.CAP_NET_ADMIN)
	if err != nil {
		return fmt.Errorf("finding out this process's capabilities: %w", err)
	}
	if !admin {
		return &NotSupportedError{Missing: "the sensor needs the capability CAP_NET_ADMIN to see DNS (kernel.dns), and this process lacks it"}
	}
	if err := features.HaveProgramType(ebpf.CGroupSKB); errors.Is(err, ebpf.ErrNotSupported) {
		o.noDNS = "the kernel was built without CONFIG_CGROUP_BPF"
		return nil
	} else if err != nil {
		return fmt.Errorf("finding out whether programs can be attached to cgroup2: %w", err)
	}
	o.dns = true
	return nil
}

// controllerIndex returns the index of a cgroup controller in the kernel's struct css_set.
func controllerIndex(types *btf.Spec, controller string) (uint32, error) {
	var ids *btf.Enum
	if err := types.TypeByName("cgroup_subsys_id", &ids); err != nil {
		return 0, fmt.Errorf("looking for cgroup controllers in the kernel's type information: %w", err)
	}
	for _, v := range ids.Values {
		if v.Name == controller+"_cgrp_id" && v.Value < 16 { // struct css_set in lib/kernel.h
			return uint32(v.Value), nil
		}
	}
	return 0, fmt.Errorf("the kernel has no cgroup controller %q that can be looked up", controller)
}

// tracepoint returns the type of a tracepoint's function; its first parameter is no argument of the tracepoint.
func tracepoint(types *btf.Spec, name string) (*btf.FuncProto, error) {
	name = "btf_trace_" + name
	var def *btf.Typedef
	if err := types.TypeByName(name, &def); err != nil {
		return nil, fmt.Errorf("looking for %s in the kernel's type information: %w", name, err)
	}
	if ptr, ok := def.Type.(*btf.Pointer); ok {
		if proto, ok := ptr.Target.(*btf.FuncProto); ok {
			return proto, nil
		}
	}
	return nil, fmt.Errorf("the kernel's type information has %s as %v, not as a function", name, def.Type)
}

// kernelRelease is for error messages.
func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "of unknown release"
	}
	return unix.ByteSliceToString(u.Release[:])
}
