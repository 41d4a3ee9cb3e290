// Package containerid reads container id, pod UID and runtime from the path of
// a cgroup, and finds that path from the cgroup id that the kernel reports.
package containerid

import (
	"strings"
)

// Info is what a cgroup path tells. All fields are empty on the host.
type Info struct {
	ContainerID string // full id, usually 64 hex digits
	PodUID      string // with dashes; for a static pod the 32 hex digits of its config hash
	Runtime     string // containerd, cri-o, docker, podman; empty when the path does not tell
}

// scopePrefixes are the runtimes' names for a container's systemd unit or
// cgroup. A prefix ending in "conmon-" is a monitor process, not a container.
var scopePrefixes = []struct{ prefix, runtime string }{
	{"crio-conmon-", ""},
	{"libpod-conmon-", ""},
	{"cri-containerd-", "containerd"},
	{"crio-", "cri-o"},
	{"docker-", "docker"},
	{"libpod-", "podman"},
	{"nerdctl-", "containerd"},
}

// Parse reads the path of a cgroup, as /proc/<pid>/cgroup shows it. Where
// containers are nested (kind, Docker in Docker) the innermost counts. Path
// forms: cgroupfs driver /kubepods/<qos>/pod<uid>/<id>; systemd driver
// kubepods-<qos>-pod<uid with _>.slice/<runtime>-<id>.scope; containerd's
// slice:cri-containerd:<id>; Docker's /docker/<id>, containerd's
// /<namespace>/<id>. Deeper cgroups that a
// container makes for itself belong to it.
func Parse(path string) Info {
	var in Info
	for path != "" {
		i := strings.LastIndexByte(path, '/')
		part := path[i+1:]
		path = path[:max(i, 0)]
		if in.ContainerID == "" {
			id, runtime, found := containerPart(part)
			if !found {
				continue
			}
			// What stands below the first container-like part is the
			// container's own; a bare id also needs a fitting parent.
			if runtime == "" {
				parent := path[strings.LastIndexByte(path, '/')+1:]
				switch {
				case podUID(parent) != "":
				case parent == "docker":
					runtime = "docker"
				case parent == "default" || parent == "k8s.io": // containerd's namespace
					runtime = "containerd"
				default:
					continue
				}
			}
			in.ContainerID, in.Runtime = id, runtime
			// slice:cri-containerd:<id> names its pod in the same part
			if uid := podUID(firstColon(part)); uid != "" {
				in.PodUID = uid
				return in
			}
			continue
		}
		if uid := podUID(part); uid != "" {
			in.PodUID = uid
			return in
		}
		if _, _, nested := containerPart(part); nested {
			return in // an outer container's pod is not ours
		}
	}
	return in
}

func firstColon(part string) string {
	before, _, ok := strings.Cut(part, ":")
	if !ok {
		return ""
	}
	return before
}

// containerPart reads one path part that may name a container.
func containerPart(part string) (id, runtime string, ok bool) {
	if f := strings.Split(part, ":"); len(f) == 3 && isID(f[2]) {
		switch f[1] {
		case "cri-containerd":
			return f[2], "containerd", true
		case "crio":
			return f[2], "cri-o", true
		case "docker":
			return f[2], "docker", true
		}
		return "", "", false
	}
	name := strings.TrimSuffix(part, ".scope")
	for _, p := range scopePrefixes {
		if rest, is := strings.CutPrefix(name, p.prefix); is {
			return rest, p.runtime, p.runtime != "" && isID(rest)
		}
	}
	return part, "", isID(part)
}

// isID reports whether s is a container id: 64 hex digits.
func isID(s string) bool {
	return len(s) == 64 && isHex(s)
}

func isHex(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// podUID reads one path part that may name a pod.
func podUID(part string) string {
	part = strings.TrimSuffix(part, ".slice")
	uid, ok := strings.CutPrefix(part, "pod")
	if !ok {
		// systemd driver: kubepods[-burstable|-besteffort]-pod<uid>
		if !strings.HasPrefix(part, "kubepods") {
			// kubelet's own root (kind: kubelet-kubepods-…)
			if !strings.HasPrefix(part, "kubelet-kubepods") {
				return ""
			}
		}
		i := strings.LastIndex(part, "-pod")
		if i < 0 {
			return ""
		}
		uid = strings.ReplaceAll(part[i+len("-pod"):], "_", "-")
	}
	switch {
	case len(uid) == 32 && isHex(uid):
		return uid
	case len(uid) == 36 && uid[8] == '-' && uid[13] == '-' && uid[18] == '-' && uid[23] == '-' && isHex(strings.ReplaceAll(uid, "-", "")):
		return uid
	}
	return ""
}
