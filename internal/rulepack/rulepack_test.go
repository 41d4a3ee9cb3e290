package rulepack_test

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"picket/internal/natsserver/natstest"
	"picket/internal/rulepack"
	"picket/internal/rules"
	"picket/schemas"
)

func TestRoundTrip(t *testing.T) {
	now := time.Date(2026, 11, 20, 10, 0, 0, 5, time.UTC)
	p, err := rulepack.New([]rules.Source{{Name: "/a/b/one.yaml", Data: []byte("# ☃\n")}, {Name: "c/two.yaml", Data: []byte("")}, {Name: "d/two.yaml"}}, "me", now)
	if err != nil {
		t.Fatal(err)
	}
	data, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := rulepack.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range got.Sources() {
		names = append(names, f.Name)
	}
	if s := strings.Join(names, " "); s != "one.yaml c/two.yaml d/two.yaml" || string(got.Sources()[0].Data) != "# ☃\n" || got.By != "me" || !got.Pushed.Equal(now.Truncate(time.Second)) {
		t.Errorf("%s %+v", s, got)
	}
	if _, err := rulepack.New([]rules.Source{{Name: "../x/a.yaml"}, {Name: "x/a.yaml"}}, "me", now); err == nil || !strings.Contains(err.Error(), "two rule files are called x/a.yaml") {
		t.Errorf("two of one name: %v", err)
	}
	if _, err := rulepack.New([]rules.Source{{Name: "a.yaml", Data: []byte("\xff")}}, "me", now); err == nil {
		t.Error("a file that is not UTF-8 would be changed")
	}
}

// TestFileNames: the files of a pack, written into a folder, are read from there in
// the same order.
func TestFileNames(t *testing.T) {
	for _, c := range []struct {
		name   string
		pushed []string
		want   string
	}{
		{"in order", []string{"r/a.yaml", "r/b.yml"}, "a.yaml b.yml"},
		{"the pack first, which is behind by name", []string{"rules/node.yaml", "exceptions.yaml"}, "1-node.yaml 2-exceptions.yaml"},
		{"folders with the same files", []string{"/own/rules/a.yaml", "/own/rules/b.yaml", "/team/rules/a.yaml"}, "1-own-rules-a.yaml 2-b.yaml 3-team-rules-a.yaml"},
		{"one inside the other", []string{"x/a.yaml", "y/x/a.yaml"}, "x-a.yaml y-x-a.yaml"},
		{"another ending", []string{"a.txt", "b.yaml"}, "a.txt.yaml b.yaml"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var files []rules.Source
			for _, name := range c.pushed {
				files = append(files, rules.Source{Name: name, Data: []byte(name)})
			}
			p, err := rulepack.New(files, "me", time.Now())
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			for i, name := range p.FileNames() {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(p.Files[i].Text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			read, err := rules.ReadPaths(dir)
			if err != nil || len(read) != len(files) {
				t.Fatalf("%d files are read, want %d: %v", len(read), len(files), err)
			}
			for i := range read {
				if string(read[i].Data) != c.pushed[i] {
					t.Errorf("file %d is %s, want %s", i, read[i].Data, c.pushed[i])
				}
			}
			if got := strings.Join(p.FileNames(), " "); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// The largest pack that is encoded is one that the bucket takes; a larger one
// is refused before it is sent.
func TestBounds(t *testing.T) {
	noise := make([]byte, 960<<10) // hex of it is compressed to about its size
	rand.Read(noise)
	p, err := rulepack.New([]rules.Source{{Name: "a.yaml", Data: []byte(hex.EncodeToString(noise[:840<<10]))}}, "me", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	data, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if len(data) < schemas.MaxRulePackBytes*9/10 {
		t.Fatalf("%d bytes: too few to try the bound", len(data))
	}
	b := natstest.Connect(t, natstest.Start(t), schemas.ServiceAdmin)
	kv, err := rulepack.Bucket(t.Context(), b.JS)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), schemas.RulePackKey, append(data, make([]byte, schemas.MaxRulePackBytes-len(data))...)); err != nil {
		t.Errorf("the largest: %v", err)
	}
	p.Files[0].Text = hex.EncodeToString(noise)
	if _, err := p.Encode(); err == nil || !strings.Contains(err.Error(), "leave out files") {
		t.Errorf("too large: %v", err)
	}
}

func zipped(t testing.TB, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDecodeRefuses(t *testing.T) {
	for want, data := range map[string][]byte{
		"not a rule pack":     []byte("- rule: x"),
		"no files":            zipped(t, []byte("{}")),
		"no relative path":    zipped(t, []byte(`{"files":[{"name":"../../etc/cron.d/x","text":""}]}`)),
		"bytes unpacked":      zipped(t, make([]byte, 60<<20)),
		"not a rule pack: un": zipped(t, []byte(`{"files":[`))[:20],
	} {
		if _, err := rulepack.Decode(data); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(zipped(f, []byte(`{"files":[{"name":"a.yaml","text":"x"}]}`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := rulepack.Decode(data)
		if (p == nil) == (err == nil) {
			t.Fatal(p, err)
		}
	})
}
