package gke

import (
	"slices"
	"strings"
)

// names is what an entry's methodName and resourceName say of the request.
type names struct {
	verb, group, version, resource, namespace, name, subresource string
	uri                                                          string // without its query, which Google does not keep
}

// session reports whether the request opens a connection into a pod.
func (n *names) session() bool {
	return n.resource == "pods" && (n.subresource == "exec" || n.subresource == "attach" || n.subresource == "portforward")
}

// parseNames reads a method such as io.k8s.core.v1.pods.exec.create and the name
// of its object such as core/v1/namespaces/x/pods/y/exec. The method has the
// group's name backwards, with io.k8s in front for Kubernetes' own
// (io.k8s.authorization.rbac is rbac.authorization.k8s.io); so the object's
// name tells the group, and the method the verb and the subresource.
// A request for no object has a method such as io.k8s.get and its path as name.
func parseNames(method, object string) names {
	var n names
	m := strings.Split(method, ".")
	n.verb = m[len(m)-1]
	// The version stands before the resource, which is followed by the verb.
	at := -1
	for i := len(m) - 3; i > 0; i-- {
		if version(m[i]) {
			at = i
			break
		}
	}
	if at < 0 {
		if len(m) < 3 {
			n.verb = ""
		}
		n.uri = "/" + object
		return n
	}
	n.version, n.resource = m[at], m[at+1]
	n.subresource = strings.Join(m[at+2:len(m)-1], "/")
	parts := strings.Split(object, "/")
	if len(parts) < 3 {
		// Without the name of an object the method has to do.
		n.group = groupOf(m[:at])
		n.uri = n.path("")
		return n
	}
	if n.group = parts[0]; n.group == "core" {
		n.group = ""
	}
	n.version = parts[1]
	rest := parts[2:]
	if rest[0] == "namespaces" && len(rest) > 1 {
		if n.resource != "namespaces" || n.verb != "create" {
			n.namespace = rest[1] // also of a request for the namespace itself
		}
		if len(rest) > 2 && n.resource != "namespaces" {
			rest = rest[2:]
		}
	}
	n.resource = rest[0]
	if len(rest) > 1 {
		n.name = rest[1]
	}
	more := ""
	if len(rest) > 2 {
		if n.subresource == "" {
			n.subresource = rest[2]
		}
		if n.subresource == "proxy" {
			more = strings.Join(rest[3:], "/")
		}
	}
	n.uri = n.path(more)
	return n
}

// path returns the path of the request, as the API server has it; more follows
// the subresource.
func (n *names) path(more string) string {
	p := "/api/" + n.version
	if n.group != "" {
		p = "/apis/" + n.group + "/" + n.version
	}
	if n.namespace != "" && n.resource != "namespaces" {
		p += "/namespaces/" + n.namespace
	}
	name := n.name
	switch {
	case n.verb == "create" && n.subresource == "", // it stands in the object,
		n.verb == "list", n.verb == "watch", n.verb == "deletecollection": // or in the query
		name = ""
	}
	for _, s := range []string{n.resource, name, n.subresource, more} {
		if s != "" {
			p += "/" + s
		}
	}
	return p
}

// version reports whether s is a version of an API: v1, v2beta1.
func version(s string) bool {
	digits, ok := strings.CutPrefix(s, "v")
	if !ok || digits == "" || digits[0]-'0' > 9 {
		return false
	}
	return strings.Trim(digits, "0123456789abehlpt") == ""
}

// groupOf returns the group that a method's first parts name.
func groupOf(parts []string) string {
	if len(parts) < 3 || parts[0] != "io" || parts[1] != "k8s" {
		parts = slices.Clone(parts)
		slices.Reverse(parts)
		return strings.Join(parts, ".")
	}
	switch parts[2] {
	case "core":
		return ""
	case "apps", "autoscaling", "batch", "extensions", "policy":
		return parts[2]
	}
	parts = slices.Clone(parts)
	slices.Reverse(parts)
	return strings.Join(parts, ".")
}
