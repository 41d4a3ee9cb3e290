package containerid

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the files say on three kinds of node; lines that do not matter are left
// out.
const (
	cgroupsV1 = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t3\t1\t1\ncpu\t1\t1\t1\nmemory\t4\t51\t1\npids\t8\t1\t1\n"
	cgroupsV2 = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t0\t151\t1\ncpu\t0\t151\t1\nmemory\t0\t151\t1\npids\t0\t151\t1\n"

	mountsV1 = "29 23 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755\n" +
		"30 29 0:27 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd\n" +
		"33 29 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:16 - cgroup cgroup rw,cpu,cpuacct\n" +
		"34 29 0:31 / /sys/fs/cgroup/pids rw,nosuid shared:17 - cgroup cgroup rw,pids\n" +
		"35 29 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:18 - cgroup cgroup rw,memory\n"
	mountsHybrid = mountsV1 + "36 29 0:33 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate\n"
	mountsV2     = "25 23 0:22 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
)

var (
	processV1 = "12:pids:/kubepods/pod" + uid + "/" + id + "\n4:memory:/kubepods/pod" + uid + "/" + id + "\n2:cpu,cpuacct:/kubepods/pod" + uid + "/" + id +
		"\n1:name=systemd:/system.slice/containerd.service\n"
	processHybrid = processV1 + "0::/system.slice/containerd.service\n"
	processV2     = "0::/kubepods.slice/a:b/" + id + "\n"
)

func TestHierarchies(t *testing.T) {
	memory := Hierarchy{Controller: "memory", ID: 4}
	tests := []struct {
		name, cgroups, mounts, process string
		want                           Hierarchy
		mount, path                    string
	}{
		{"v1", cgroupsV1, mountsV1, processV1, memory, "/sys/fs/cgroup/memory", "/kubepods/pod" + uid + "/" + id},
		{"hybrid", cgroupsV1, mountsHybrid, processHybrid, memory, "/sys/fs/cgroup/memory", "/kubepods/pod" + uid + "/" + id},
		{"v2", cgroupsV2, mountsV2, processV2, Hierarchy{}, "/sys/fs/cgroup", "/kubepods.slice/a:b/" + id},
		{"v2 without version 1 in the kernel", "", mountsV2, processV2, Hierarchy{}, "/sys/fs/cgroup", "/kubepods.slice/a:b/" + id},
		{"v2 beside unused version 1", cgroupsV2, mountsHybrid, processHybrid, Hierarchy{}, "/sys/fs/cgroup/unified", "/system.slice/containerd.service"},
		{"no memory controller", "cpu 2 1 1\nmemory 0 1 0\npids 12 1 1\n", mountsV1, processV1, Hierarchy{Controller: "pids", ID: 12}, "/sys/fs/cgroup/pids", "/kubepods/pod" + uid + "/" + id},
		{"controllers mounted together", "cpu 2 1 1\n", mountsV1, processV1, Hierarchy{Controller: "cpu", ID: 2}, "/sys/fs/cgroup/cpu,cpuacct", "/kubepods/pod" + uid + "/" + id},
	}
	for _, tt := range tests {
		got := carrier(tt.cgroups)
		if got != tt.want {
			t.Errorf("%s: hierarchy %+v, want %+v", tt.name, got, tt.want)
		}
		if m := findMount(tt.mounts, got, ""); m != tt.mount {
			t.Errorf("%s: mounted at %q, want %q", tt.name, m, tt.mount)
		}
		if p, ok := pathIn(tt.process, got); p != tt.path || !ok {
			t.Errorf("%s: process in %q, want %q", tt.name, p, tt.path)
		}
	}
	if m := findMount(mountsV1, Hierarchy{}, ""); m != "" {
		t.Errorf("cgroup2 found at %q where there is none", m)
	}
	if p, ok := pathIn(processV1, Hierarchy{}); ok {
		t.Errorf("cgroup2 path %q where there is none", p)
	}
}

// TestHostsMounts: a sensor in a container takes the host's tree.
func TestHostsMounts(t *testing.T) {
	proc := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("cgroups", cgroupsV1)
	write("self/mountinfo", mountsV2)
	if h, err := nodeHierarchy(proc); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("a hierarchy that is not mounted: %+v, %v", h, err)
	}
	write("self/mountinfo", strings.ReplaceAll(mountsHybrid, "/sys/fs/cgroup", "/own"))
	if h, err := nodeHierarchy(proc); err != nil || h.Mount != "/own/memory" {
		t.Errorf("without the host's root: %+v, %v", h, err)
	}
	write("1/mountinfo", mountsHybrid)
	const host = "1/root"
	write(filepath.Join(host, "sys/fs/cgroup/memory/tasks"), "")
	if h, err := nodeHierarchy(proc); err != nil || h.Mount != filepath.Join(proc, host, "sys/fs/cgroup/memory") {
		t.Errorf("with the host's root: %+v, %v", h, err)
	}
}
