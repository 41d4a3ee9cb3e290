package redact

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestArgs(t *testing.T) {
	p := New(DefaultWords())
	tests := []struct{ in, want string }{
		{"mysql --password=hunter2 -u root", "mysql --password=[redacted] -u root"},
		{"mysql --password hunter2 -u root", "mysql --password [redacted] -u root"},
		{"vault login -token s.abcdef", "vault login -token [redacted]"},
		{"env DB_PASSWORD=hunter2 app", "env DB_PASSWORD=[redacted] app"},
		{"env AWS_SECRET_ACCESS_KEY=abc/def+g app", "env AWS_SECRET_ACCESS_KEY=[redacted] app"},
		{"curl https://bob:hunter2@example.test/x", "curl https://bob:[redacted]@example.test/x"},
		{"curl -H|Authorization: Bearer abc.def.ghi", "curl -H|Authorization: Bearer [redacted]"},
		{"aws AKIAIOSFODNN7EXAMPLE", "aws [redacted]"},
		{"kubectl --token=eyJhbGciOi.eyJzdWIiOi.c2ln", "kubectl --token=[redacted]"},
		{"curl https://example.test/?api_key=k123456&page=2", "curl https://example.test/?api_key=[redacted]&page=2"},
		{"sh -c|PGPASSWORD='hunter two' psql", "sh -c|PGPASSWORD=[redacted] psql"},
		{"ls -la /etc/passwd", "ls -la /etc/passwd"},
		{"cat /var/run/secrets/kubernetes.io/serviceaccount/token", "cat /var/run/secrets/kubernetes.io/serviceaccount/token"},
		{"app --tokenize --input x", "app --tokenize --input x"},
		{"ssh -p 22 host", "ssh -p 22 host"},
		{"app ПАРОЛЬ=hunter2", "app ПАРОЛЬ=hunter2"}, // no word of the default
		{"sh -c|" + strings.Repeat(" ", 505) + "PassWord=hunter2", "sh -c|" + strings.Repeat(" ", 505) + "PassWord=[redacted]"},
		{"git clone https://GH.test/right ghp_0123456789abcdefghij", "git clone https://GH.test/right [redacted]"},
		{"curl -H|authorization: bAsIc dXNlcjpwYXNz", "curl -H|authorization: bAsIc [redacted]"},
		{"", ""},
	}
	for _, tt := range tests {
		args := strings.Split(tt.in, " ")
		if strings.Contains(tt.in, "|") { // the last argument has spaces
			head, last, _ := strings.Cut(tt.in, "|")
			args = append(strings.Split(head, " "), last)
		}
		changed := p.Args(args)
		got := strings.Join(args, " ")
		want := strings.ReplaceAll(tt.want, "|", " ")
		if got != want {
			t.Errorf("%q\n got %q\nwant %q", tt.in, got, want)
		}
		if changed != (tt.in != tt.want) {
			t.Errorf("%q: changed = %v", tt.in, changed)
		}
		again := slices.Clone(args)
		if p.Args(again) {
			t.Errorf("%q: redacting twice changed it: %q", tt.in, again)
		}
	}
	for _, words := range []string{" Пароль ", strings.Repeat("long", 30)} {
		args := []string{"-" + strings.ToUpper(strings.TrimSpace(words)), "hunter2"}
		if !New([]string{words}).Args(args) || args[1] != Mark {
			t.Errorf("word %q: %q", words, args)
		}
	}
	args := []string{"--password=x1234567"}
	if (*Policy)(nil).Args(args) || args[0] != "--password=x1234567" {
		t.Error("no policy must change nothing")
	}
}

func FuzzArgs(f *testing.F) {
	f.Add("--password=x", "https://a:b@c")
	p := New(DefaultWords())
	f.Fuzz(func(t *testing.T, a, b string) { p.Args([]string{a, b, "--token", b}) })
}

// clean are command lines of a node without a secret in them: the usual case,
// which must not allocate.
var clean = map[string][]string{
	"find":    {"/usr/bin/find", "/var/log", "-name", "*.gz", "-mtime", "+7", "-delete"},
	"kubelet": {"/usr/bin/kubelet", "--config=/var/lib/kubelet/config.yaml", "--container-runtime-endpoint=unix:///run/containerd/containerd.sock", "--node-ip=10.0.0.1", "--v=2", "--feature-gates=A=true,B=false"},
	"java":    {"java", "-Xmx512m", "-Djava.io.tmpdir=/tmp", "-XX:+HeapDumpOnOutOfMemoryError", "-cp", "/app/lib/*:/app/classes", "com.example.Main", "--server.port=8080", "--spring.config.location=file:/etc/App.yaml"},
	"shell":   {"sh", "-c", strings.Repeat("set -e; for i in $(seq 1 10); do curl -fsS https://Example.test/healthz?i=$i -o /dev/null || echo 'Backend is not HEALTHY: right now'; done\n", 20)},
	"bytes":   {"a\xff\x1b[2J=\xc3\x28", "Gr\u00fc\u00dfe=\u4f60\u597d"},
}

func TestCleanDoesNotAllocate(t *testing.T) {
	p := New(DefaultWords())
	for name, args := range clean {
		if n := testing.AllocsPerRun(100, func() {
			if p.Args(args) {
				t.Errorf("%s was changed: %q", name, args)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// BenchmarkArgs is what redaction costs an exec.
func BenchmarkArgs(b *testing.B) {
	p := New(DefaultWords())
	for _, name := range slices.Sorted(maps.Keys(clean)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Args(clean[name])
			}
		})
	}
	b.Run("secret", func(b *testing.B) {
		b.ReportAllocs()
		args := make([]string, 4)
		for b.Loop() {
			copy(args, []string{"mysql", "--user=root", "--password=hunter2", "production"})
			p.Args(args)
		}
	})
}
