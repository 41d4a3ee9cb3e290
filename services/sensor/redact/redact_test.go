package redact

import (
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

func BenchmarkArgsClean(b *testing.B) {
	p := New(DefaultWords())
	args := []string{"/usr/bin/find", "/var/log", "-name", "*.gz", "-mtime", "+7", "-delete"}
	b.ReportAllocs()
	for b.Loop() {
		p.Args(args)
	}
}
