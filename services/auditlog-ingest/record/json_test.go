package record

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// whole reads a text that is one value.
func whole(s string) (Reader, error) {
	r := NewReader(s)
	_, err := r.Skip()
	if err == nil {
		err = r.End()
	}
	return r, err
}

func TestSkip(t *testing.T) {
	for _, s := range []string{
		`{}`, `[]`, `null`, `true`, `false`, `0`, `-0`, `1.5e-7`, `"\u00e9\n"`, ` {"a":[1,{"b":null},"c"],"d":{}} `,
		``, ` `, `{`, `}`, `[`, `]`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{,}`, `[1,]`, `[,]`, `{"a":1]`, `[1}`, `{"a" 1}`, `{1:2}`,
		`01`, `1.`, `.5`, `-`, `+1`, `1e`, `1e+`, `0x1`, `nul`, `nulll`, `truefalse`, `"`, `"\x"`, `"\u12"`, `"\u12g4"`, "\"\n\"", "\"\x00\"", `"a" "b"`, `1 2`, `{"a":1}{}`, "\ufeff{}",
	} {
		_, err := whole(s)
		if ok := json.Valid([]byte(s)); ok != (err == nil) {
			t.Errorf("%q: %v, encoding/json says %v", s, err, ok)
		}
		if err != nil && !errors.Is(err, ErrSyntax) {
			t.Errorf("%q: error of another kind: %v", s, err)
		}
	}
}

func TestDepth(t *testing.T) {
	for _, pair := range []string{"[]", "{}"} {
		nest := func(n int) string {
			if pair == "[]" {
				return strings.Repeat("[", n) + strings.Repeat("]", n)
			}
			return strings.Repeat(`{"a":`, n-1) + "{}" + strings.Repeat("}", n-1)
		}
		if _, err := whole(nest(MaxDepth)); err != nil {
			t.Errorf("%s: %d levels: %v", pair, MaxDepth, err)
		}
		if _, err := whole(nest(MaxDepth + 1)); !errors.Is(err, ErrTooDeep) {
			t.Errorf("%s: %d levels: %v", pair, MaxDepth+1, err)
		}
	}
	// Levels that Members opened count too.
	r := NewReader(`{"a":` + strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth) + `}`)
	if err := r.Members(func(string, int) error { _, err := r.Skip(); return err }); !errors.Is(err, ErrTooDeep) {
		t.Errorf("within an object: %v", err)
	}
}

func TestTypes(t *testing.T) {
	var s string
	var list []string
	var n int64
	var set bool
	each := func(string, int) error { return nil }
	for _, c := range []struct {
		text string
		read func(*Reader) error
		want error
	}{
		{`"x"`, func(r *Reader) error { return r.Text(&s) }, nil},
		{`null`, func(r *Reader) error { return r.Text(&s) }, nil},
		{`1`, func(r *Reader) error { return r.Text(&s) }, ErrType},
		{`nul`, func(r *Reader) error { return r.Text(&s) }, ErrType},
		{``, func(r *Reader) error { return r.Text(&s) }, ErrSyntax},
		{`["a",null]`, func(r *Reader) error { return r.Texts(&list) }, nil},
		{`null`, func(r *Reader) error { return r.Texts(&list) }, nil},
		{`["a",1]`, func(r *Reader) error { return r.Texts(&list) }, ErrType},
		{`"a"`, func(r *Reader) error { return r.Texts(&list) }, ErrType},
		{`["a"`, func(r *Reader) error { return r.Texts(&list) }, ErrSyntax},
		{`-12`, func(r *Reader) error { return r.Integer(&n, &set) }, nil},
		{`null`, func(r *Reader) error { return r.Integer(&n, &set) }, nil},
		{`1.5`, func(r *Reader) error { return r.Integer(&n, &set) }, ErrType},
		{`99999999999999999999`, func(r *Reader) error { return r.Integer(&n, &set) }, ErrType},
		{`"1"`, func(r *Reader) error { return r.Integer(&n, &set) }, ErrType},
		{`null`, func(r *Reader) error { return r.Object(each) }, nil},
		{`{}`, func(r *Reader) error { return r.Object(each) }, nil},
		{`[]`, func(r *Reader) error { return r.Object(each) }, ErrType},
	} {
		r := NewReader(c.text)
		if err := c.read(&r); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.text, err, c.want)
		}
	}
	if s != "x" || len(list) != 5 || n != -12 || !set {
		t.Errorf("read %q %q %d", s, list, n)
	}
}

// FuzzReader holds the reader against encoding/json: the same texts are JSON,
// and the same strings and keys are in them.
func FuzzReader(f *testing.F) {
	for _, s := range []string{`{"a":["x\u00e9\ud83d\ude00\ud800",{"b":-1.5e7}],"\"":null}`, `["\ud800\u0061"]`, `[1,`, `"\udc00\ud800\udc00"`, `{"":""}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_, err := whole(s)
		if errors.Is(err, ErrTooDeep) {
			return
		}
		if valid := json.Valid([]byte(s)); valid != (err == nil) {
			t.Fatalf("%q: %v, encoding/json says %v", s, err, valid)
		}
		if err != nil {
			return
		}
		var want any
		if err := json.Unmarshal([]byte(s), &want); err != nil {
			return // a number beyond float64
		}
		r := NewReader(s)
		compare(t, &r, want)
	})
}

func compare(t *testing.T, r *Reader, want any) {
	t.Helper()
	switch want := want.(type) {
	case string:
		var got string
		if err := r.Text(&got); err != nil || strings.ToValidUTF8(got, "\uFFFD") != strings.ToValidUTF8(want, "\uFFFD") && !strings.Contains(want, "\uFFFD") {
			t.Fatalf("%q, want %q (%v)", got, want, err)
		}
	case []any:
		i := 0
		if err := r.Elements(func() error { compare(t, r, want[i]); i++; return nil }); err != nil || i != len(want) {
			t.Fatalf("%d elements of %d (%v)", i, len(want), err)
		}
	case map[string]any:
		seen := map[string]bool{}
		if err := r.Members(func(key string, _ int) error { seen[key] = true; _, err := r.Skip(); return err }); err != nil {
			t.Fatal(err)
		}
		for key := range want {
			if !seen[key] && !strings.Contains(key, "\uFFFD") {
				t.Fatalf("key %q is missing", key)
			}
		}
	default:
		if _, err := r.Skip(); err != nil {
			t.Fatal(err)
		}
	}
}
