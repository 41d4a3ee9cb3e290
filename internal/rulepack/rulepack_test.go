package rulepack_test

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/hex"
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
	if _, err := rulepack.New([]rules.Source{{Name: "x/a.yaml"}, {Name: "y/x/a.yaml"}}, "me", now); err == nil || !strings.Contains(err.Error(), "x/a.yaml") {
		t.Errorf("two of one name: %v", err)
	}
	if _, err := rulepack.New([]rules.Source{{Name: "a.yaml", Data: []byte("\xff")}}, "me", now); err == nil {
		t.Error("a file that is not UTF-8 would be changed")
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
