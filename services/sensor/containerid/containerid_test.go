package containerid

import (
	"strings"
	"testing"
)

var (
	id  = strings.Repeat("0123456789abcdef", 4)
	id2 = strings.Repeat("fedcba9876543210", 4)
)

const uid = "12345678-9abc-def0-1234-56789abcdef0"

func TestParse(t *testing.T) {
	under := strings.ReplaceAll(uid, "-", "_")
	static := "0123456789abcdef0123456789abcdef"
	pod := Info{ContainerID: id, PodUID: uid}
	with := func(runtime string) Info { i := pod; i.Runtime = runtime; return i }
	tests := []struct {
		name, path string
		want       Info
	}{
		{"root", "/", Info{}},
		{"host service", "/system.slice/sshd.service", Info{}},
		{"user session", "/user.slice/user-1000.slice/session-3.scope", Info{}},
		{"cgroupfs burstable", "/kubepods/burstable/pod" + uid + "/" + id, pod},
		{"cgroupfs besteffort", "/kubepods/besteffort/pod" + uid + "/" + id, pod},
		{"cgroupfs guaranteed", "/kubepods/pod" + uid + "/" + id, pod},
		{"cgroupfs static pod", "/kubepods/burstable/pod" + static + "/" + id, Info{ContainerID: id, PodUID: static}},
		{"cgroupfs pod itself", "/kubepods/burstable/pod" + uid, Info{}},
		{"systemd containerd", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id + ".scope", with("containerd")},
		{"systemd guaranteed", "/kubepods.slice/kubepods-pod" + under + ".slice/cri-containerd-" + id + ".scope", with("containerd")},
		{"systemd cri-o", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + under + ".slice/crio-" + id + ".scope", with("cri-o")},
		{"cri-o with container subtree", "/kubepods.slice/kubepods-pod" + under + ".slice/crio-" + id + ".scope/container", with("cri-o")},
		{"cri-o monitor", "/kubepods.slice/kubepods-pod" + under + ".slice/crio-conmon-" + id + ".scope", Info{}},
		{"systemd docker", "/kubepods.slice/kubepods-pod" + under + ".slice/docker-" + id + ".scope", with("docker")},
		{"containerd colon form", "/system.slice/kubepods-burstable-pod" + under + ".slice:cri-containerd:" + id, with("containerd")},
		{"plain docker cgroupfs", "/docker/" + id, Info{ContainerID: id, Runtime: "docker"}},
		{"plain docker systemd", "/system.slice/docker-" + id + ".scope", Info{ContainerID: id, Runtime: "docker"}},
		{"podman", "/machine.slice/libpod-" + id + ".scope/container", Info{ContainerID: id, Runtime: "podman"}},
		{"podman monitor", "/machine.slice/libpod-conmon-" + id + ".scope", Info{}},
		{"kind", "/docker/" + id2 + "/kubelet/kubepods/burstable/pod" + uid + "/" + id, pod},
		{"kind systemd", "/system.slice/docker-" + id2 + ".scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod" + under + ".slice/cri-containerd-" + id + ".scope", with("containerd")},
		{"docker in a pod", "/kubepods/pod" + uid + "/" + id2 + "/docker/" + id, Info{ContainerID: id, Runtime: "docker"}},
		{"systemd inside the container", "/kubepods/pod" + uid + "/" + id + "/system.slice/nginx.service", pod},
		{"cgroupfs cri-o", "/kubepods/burstable/pod" + uid + "/crio-" + id, with("cri-o")},
		{"cgroupfs cri-o monitor", "/kubepods/burstable/pod" + uid + "/crio-conmon-" + id, Info{}},
		{"cri-o colon form", "/system.slice/kubepods-besteffort-pod" + under + ".slice:crio:" + id, with("cri-o")},
		{"containerd colon form below its service", "/system.slice/containerd.service/kubepods-besteffort-pod" + under + ".slice:cri-containerd:" + id, with("containerd")},
		{"docker by cri-dockerd, cgroupfs", "/kubepods/besteffort/pod" + uid + "/" + id, pod},
		{"docker rootless", "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + id + ".scope", Info{ContainerID: id, Runtime: "docker"}},
		{"docker with systemd in it", "/system.slice/docker-" + id + ".scope/init.scope", Info{ContainerID: id, Runtime: "docker"}},
		{"podman cgroupfs", "/libpod_parent/libpod-" + id, Info{ContainerID: id, Runtime: "podman"}},
		{"podman rootless", "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope/container", Info{ContainerID: id, Runtime: "podman"}},
		{"podman pod", "/machine.slice/machine-libpod_pod_" + id2 + ".slice/libpod-" + id + ".scope", Info{ContainerID: id, Runtime: "podman"}},
		{"nerdctl systemd", "/system.slice/nerdctl-" + id + ".scope", Info{ContainerID: id, Runtime: "containerd"}},
		{"nerdctl cgroupfs", "/default/" + id, Info{ContainerID: id, Runtime: "containerd"}},
		{"containerd without a kubelet", "/k8s.io/" + id, Info{ContainerID: id, Runtime: "containerd"}},
		{"kind's own container", "/docker/" + id + "/kubelet/kubepods/burstable", Info{ContainerID: id, Runtime: "docker"}},
		{"kind's runtime", "/docker/" + id + "/system.slice/containerd.service", Info{ContainerID: id, Runtime: "docker"}},
		{"kind, static pod", "/system.slice/docker-" + id2 + ".scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + static + ".slice/cri-containerd-" + id + ".scope", Info{ContainerID: id, PodUID: static, Runtime: "containerd"}},
		{"kind on podman", "/machine.slice/libpod-" + id2 + ".scope/container/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + under + ".slice/crio-" + id + ".scope", with("cri-o")},
		{"k3d", "/docker/" + id2 + "/kubepods/besteffort/pod" + uid + "/" + id, pod},
		{"minikube", "/system.slice/docker-" + id2 + ".scope/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/docker-" + id + ".scope", with("docker")},
		{"kind in a pod", "/kubepods/pod" + static + "/" + id2 + "/docker/" + id2 + "/kubelet/kubepods/pod" + uid + "/" + id, pod},
		{"seen from another cgroup namespace", "/../../burstable/pod" + uid + "/" + id, pod},
		{"64 hex digits of something else", "/builds/" + id, Info{}},
		{"too short", "/kubepods/pod" + uid + "/" + id[:63], Info{}},
		{"upper case", "/kubepods/pod" + uid + "/" + strings.ToUpper(id), Info{}},
		{"not a uid", "/kubepods/podcast/" + id, Info{}},
	}
	for _, tt := range tests {
		if got := Parse(tt.path); got != tt.want {
			t.Errorf("%s: Parse(%q)\n got %+v\nwant %+v", tt.name, tt.path, got, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("/kubepods/burstable/pod" + uid + "/" + id)
	f.Add("/a/kubepods-pod:cri-containerd:" + id)
	f.Fuzz(func(t *testing.T, path string) {
		in := Parse(path)
		if in.ContainerID == "" && (in.PodUID != "" || in.Runtime != "") {
			t.Errorf("pod or runtime without a container: %+v", in)
		}
		if in.ContainerID != "" && !strings.Contains(path, in.ContainerID) {
			t.Errorf("id %q is not in the path", in.ContainerID)
		}
	})
}
