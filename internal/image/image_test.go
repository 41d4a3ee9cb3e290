package image

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	const sum = "sha256:9f1003c480699be56815db0f8146ad2e22efea85129b5b5983d0e0fb52d9ab70"
	for _, tt := range []struct{ ref, repository, tag, digest string }{
		{"nginx", "docker.io/library/nginx", "latest", ""},
		{"nginx:1.25", "docker.io/library/nginx", "1.25", ""},
		{"grafana/grafana:11.0.0", "docker.io/grafana/grafana", "11.0.0", ""},
		{"docker.io/nginx:1", "docker.io/library/nginx", "1", ""},
		{"index.docker.io/library/nginx:1", "docker.io/library/nginx", "1", ""},
		{"docker.io/library/nginx:1.25@" + sum, "docker.io/library/nginx", "1.25", sum},
		{"nginx@" + sum, "docker.io/library/nginx", "", sum},
		{"registry.example.com/a/b/c:v1", "registry.example.com/a/b/c", "v1", ""},
		{"registry.example.com:5000/app", "registry.example.com:5000/app", "latest", ""},
		{"registry.example.com:5000/app:2", "registry.example.com:5000/app", "2", ""},
		{"localhost/app", "localhost/app", "latest", ""},
		{"localhost:5000/app:x", "localhost:5000/app", "x", ""},
		{"[2001:db8::1]:5000/app:x", "[2001:db8::1]:5000/app", "x", ""},
		{"123456789012.dkr.ecr.eu-west-1.amazonaws.com/app@" + sum, "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app", "", sum},
		{sum, "", "", sum},
		{"docker-pullable://nginx@" + sum, "docker.io/library/nginx", "", sum},
		{"docker://" + sum, "", "", sum},
		{"", "", "", ""},
		{"@" + sum, "", "", sum},
		{":tag", "", "tag", ""},
	} {
		repository, tag, digest := Parse(tt.ref)
		if repository != tt.repository || tag != tt.tag || digest != tt.digest {
			t.Errorf("Parse(%q) = %q, %q, %q, want %q, %q, %q", tt.ref, repository, tag, digest, tt.repository, tt.tag, tt.digest)
		}
	}
}

// FuzzParse: whatever the reference, a repository has a registry, and
// nothing comes out that neither stood in it nor is left unsaid by custom.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"nginx", "a/b:c@sha256:d", "x:5000/y", "docker-pullable://a@b", "sha256:1", "/", ":", "@", "a//b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		repository, tag, digest := Parse(ref)
		if repository != "" && !strings.Contains(repository, "/") {
			t.Fatalf("%q: repository %q has no registry", ref, repository)
		}
		path := strings.TrimPrefix(strings.TrimPrefix(repository, "docker.io/"), "library/")
		if !strings.Contains(ref, path) || !strings.Contains(ref, tag) && tag != "latest" || !strings.Contains(ref, digest) {
			t.Fatalf("%q: %q, %q, %q", ref, repository, tag, digest)
		}
	})
}
