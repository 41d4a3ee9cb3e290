package terminal

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
)

var texts = []struct{ in, want string }{
	{"", ""},
	{"plain, ünïcödé ✓ 漢字", "plain, ünïcödé ✓ 漢字"},
	{"\x1b]0;title\x07\x1b[2J", `\x1b]0;title\a\x1b[2J`},
	{"one\ntwo\r\tthree", `one\ntwo\r\tthree`},
	{"\u009b31m\u0085", `\u009b31m\u0085`}, // CSI in one character
	{"a\x9bb\xff\xc3", `a\x9bb\xff\xc3`},
	{"gpj.\u202eexe", `gpj.\u202eexe`},
	{"\x00\x7f\u2028\ufeff\U000e0041", `\x00\x7f\u2028\ufeff\U000e0041`},
	{"\ufffd", "\ufffd"},
	{`C:\x1b`, `C:\x1b`},
}

func TestText(t *testing.T) {
	for _, tt := range texts {
		if got := Text(tt.in); got != tt.want {
			t.Errorf("Text(%q)\n got %q\nwant %q", tt.in, got, tt.want)
		}
	}
}

// TestWriter writes each text whole, and cut at every place.
func TestWriter(t *testing.T) {
	for _, tt := range texts {
		want := strings.ReplaceAll(tt.want, `\n`, "\n")
		for cut := range len(tt.in) + 1 {
			var b bytes.Buffer
			w := NewWriter(&b)
			for _, part := range []string{tt.in[:cut], tt.in[cut:]} {
				if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
					t.Fatal(n, err)
				}
			}
			if err := w.Close(); err != nil || b.String() != want {
				t.Errorf("%q cut at %d\n got %q %v\nwant %q", tt.in, cut, b.String(), err, want)
			}
		}
	}
}

func FuzzText(f *testing.F) {
	for _, tt := range texts {
		f.Add(tt.in)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Text(s)
		for _, r := range got {
			if !unicode.IsPrint(r) {
				t.Fatalf("Text(%q) has %q", s, r)
			}
		}
		if Text(got) != got {
			t.Fatalf("Text(%q) is changed again", s)
		}
		var b bytes.Buffer
		w := NewWriter(&b)
		for i := range len(s) {
			_, _ = w.Write([]byte{s[i]}) // a buffer takes all
		}
		_ = w.Close()
		lines := strings.Split(s, "\n")
		for i := range lines {
			lines[i] = Text(lines[i])
		}
		if want := strings.Join(lines, "\n"); b.String() != want {
			t.Fatalf("by byte %q is %q, want %q", s, b.String(), want)
		}
	})
}
