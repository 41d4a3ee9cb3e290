package bpf

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// setCapabilities does what setcap(8) does.
func setCapabilities(t *testing.T, path string, permitted, inheritable uint32, effective bool) {
	t.Helper()
	magic := uint32(0x02000000) // VFS_CAP_REVISION_2
	if effective {
		magic |= 1
	}
	var v []byte
	for _, n := range []uint32{magic, permitted, inheritable, 0, 0} {
		v = binary.LittleEndian.AppendUint32(v, n)
	}
	if err := unix.Setxattr(path, "security.capability", v, 0); err != nil {
		t.Fatalf("file capabilities of %s: %v", path, err)
	}
}

// TestExecFileCapabilities: that file capabilities took effect is told of those execs only.
func TestExecFileCapabilities(t *testing.T) {
	c := sensor(t)
	dir := t.TempDir()
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if st := inode(t, d); st.Mode&0o001 == 0 {
			if err := os.Chmod(d, 0o711); err != nil {
				t.Fatal(err)
			}
		}
	}
	const raw, ptrace = 1 << unix.CAP_NET_RAW, 1 << unix.CAP_SYS_PTRACE
	program := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		writeProgram(t, path, exitZero())
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain, setUID, setGID := program("plain", 0o755), program("setuid", 0o755|os.ModeSetuid), program("setgid", 0o755|os.ModeSetgid)
	capable, dormant, both, fromUser, none := program("capable", 0o755), program("dormant", 0o755), program("both", 0o755|os.ModeSetuid), program("inherits", 0o755), program("none", 0o755)
	setCapabilities(t, capable, raw, 0, true)
	setCapabilities(t, dormant, raw|ptrace, 0, false)
	setCapabilities(t, both, raw, 0, true)
	setCapabilities(t, fromUser, 0, raw, true)
	setCapabilities(t, none, 0, 0, true)

	user := func() *syscall.SysProcAttr {
		return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 12345, Gid: 54321, NoSetGroups: true}}
	}
	ambient := user()
	ambient.AmbientCaps = []uintptr{unix.CAP_NET_RAW} // which makes it inheritable too
	inUserNS := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: 12000, Size: 10}, {ContainerID: 0, HostID: 12345, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 54321, Size: 1}},
		Credential:  &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true}}
	for _, tt := range []struct {
		name      string
		program   string
		attr      *syscall.SysProcAttr
		permitted uint64 // 0: not compared
		flags     uint32
	}{
		{"a file with capabilities", capable, user(), raw, ExecSecure | ExecFileCapabilities},
		{"not effective ones", dormant, user(), raw | ptrace, ExecSecure | ExecFileCapabilities},
		{"what the user has inheritable", fromUser, ambient, raw, ExecSecure | ExecFileCapabilities},
		{"a file without", plain, user(), 0, 0},
		{"a file with the empty set", none, user(), 0, ExecSecure},
		{"ambient ones", plain, ambient, raw, 0},
		{"set-user-id", setUID, user(), 0, ExecSecure},
		{"set-group-id", setGID, user(), 0, ExecSecure},
		{"set-user-id and capabilities", both, user(), raw, ExecSecure | ExecFileCapabilities},
		{"root", capable, nil, 0, 0},
		{"root, set-user-id", both, nil, 0, 0},
		{"root of a user namespace", plain, inUserNS, 0, 0},
		{"root of a user namespace, a file with", capable, inUserNS, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pid := fork(t, tt.program, []string{"x"}, &syscall.ProcAttr{Sys: tt.attr})
			ev := c.wait(t, "exec", by(pid, ActionExec))
			if ev.Exec.Flags != tt.flags || tt.permitted != 0 && ev.Exec.CapPermitted != tt.permitted {
				t.Errorf("flags %#x, permitted %#x, want %#x, %#x", ev.Exec.Flags, ev.Exec.CapPermitted, tt.flags, tt.permitted)
			}
		})
	}
}
