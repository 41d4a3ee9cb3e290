// Package image reads image references.
package image

import "strings"

// Parse splits an image reference as a pod's spec or a runtime gives it
// into repository (registry included), tag and digest. What the container
// tools leave unsaid is said: docker.io, its library/ folder, and the tag
// "latest" where there is neither tag nor digest. A bare image id has only a
// digest. Anything is accepted; what is not a reference comes back in some
// part as it is.
func Parse(ref string) (repository, tag, digest string) {
	if _, rest, ok := strings.Cut(ref, "://"); ok { // docker-pullable://…
		ref = rest
	}
	if strings.HasPrefix(ref, "sha256:") {
		return "", "", ref
	}
	name, digest, _ := strings.Cut(ref, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, tag = name[:i], name[i+1:]
	}
	if name == "" {
		return "", tag, digest
	}
	if tag == "" && digest == "" {
		tag = "latest"
	}
	registry, path, ok := strings.Cut(name, "/")
	if !ok || !(strings.ContainsAny(registry, ".:") || registry == "localhost" || registry != strings.ToLower(registry)) {
		registry, path = "docker.io", name
	}
	if registry == "index.docker.io" {
		registry = "docker.io"
	}
	if registry == "docker.io" && !strings.Contains(path, "/") {
		path = "library/" + path
	}
	return registry + "/" + path, tag, digest
}
