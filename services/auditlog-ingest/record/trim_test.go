package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestTrim(t *testing.T) {
	long := strings.Repeat("long", 20<<10)
	for name, c := range map[string]struct{ in, out string }{
		"objects and unknown parts go": {`{"auditID":"a","requestObject":{"x":[1,{"y":"}"}]},"new":"z","responseObject":null,"stage":"s"}`, `{"auditID":"a","stage":"s"}`},
		"first and last go":            {`{"new":1,"auditID":"a","requestObject":[]}`, `{"auditID":"a"}`},
		"all go":                       {`{"new":1}`, `{}`},
		"none":                         {` { } `, `{}`},
		"white space":                  {"{ \"auditID\" :\n\"a\" , \"user\" : { \"groups\" : [ \"b\" , \"c\" ] } }", `{"auditID":"a","user":{"groups":["b","c"]}}`},
		"escaped key":                  {`{"\u0061uditID":"a"}`, `{"\u0061uditID":"a"}`},
		"long key":                     {`{"` + long + `":1,"stage":"s"}`, `{"stage":"s"}`},
		"long number":                  {`{"auditID":1` + strings.Repeat("0", 100) + `,"stage":"s"}`, `{"stage":"s"}`},
		"long scalar inside":           {`{"sourceIPs":["a",1` + strings.Repeat("0", 100) + `,"b"]}`, `{"sourceIPs":["a","b"]}`},
		"words":                        {`{"objectRef":null,"responseStatus":{"code":201,"x":true,"y":false}}`, `{"objectRef":null,"responseStatus":{"code":201,"x":true,"y":false}}`},
		"deep":                         {`{"requestObject":` + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + `,"user":` + strings.Repeat(`{"a":`, 1000) + "1" + strings.Repeat("}", 1000) + `,"stage":"s"}`, `{"user":` + strings.Repeat(`{"a":`, MaxDepth/2) + `{}` + strings.Repeat("}", MaxDepth/2) + `,"stage":"s"}`},
	} {
		got, err := Trim(strings.NewReader(c.in))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if string(got.Text) != c.out {
			t.Errorf("%s: %.2000s", name, got.Text)
		}
	}
	for name, in := range map[string]string{
		"string":  `{"requestURI":"/` + long + `","stage":"s"}`,
		"escapes": `{"requestURI":"` + strings.Repeat(`\u00e9\n`, 20<<10) + `","stage":"s"}`,
		"list":    `{"sourceIPs":["1.2.3.4"` + strings.Repeat(`,"1.2.3.4"`, 20<<10) + `],"stage":"s"}`,
		"map":     `{"annotations":{"a":"b"` + strings.Repeat(`,"key":"value"`, 20<<10) + `},"stage":"s"}`,
		"keys":    `{"annotations":{"a":"b","` + long + `":1,"c":"d"},"stage":"s"}`,
		"nested":  `{"user":{"extra":{"a":["` + long + `"],"b":["c"]}},"stage":"s"}`,
	} {
		got, err := Trim(strings.NewReader(in))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !json.Valid(got.Text) {
			t.Errorf("%s: not JSON: %s", name, got.Text)
		}
		if n := len(got.Text); n > trimBudget+100 || n < 40 || !bytes.HasSuffix(got.Text, []byte(`,"stage":"s"}`)) {
			t.Errorf("%s: %d bytes are left: %.100s", name, n, got.Text)
		}
		if got.Length != int64(len(in)) {
			t.Errorf("%s: length %d of %d", name, got.Length, len(in))
		}
	}
}

func TestTrimDigest(t *testing.T) {
	digest := func(s string) [32]byte {
		got, err := Trim(strings.NewReader(s))
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		return got.Digest
	}
	want := sha256.Sum256([]byte(`"auditID":"a","requestObject":{"x":[1,"b c"]},"k":2,`))
	for _, s := range []string{
		`{"kind":"Event","apiVersion":"audit.k8s.io/v1","auditID":"a","requestObject":{"x":[1,"b c"]},"k":2}`,
		`{"auditID":"a","requestObject":{"x":[1,"b c"]},"kind":"Event","k":2}`,
		"{ \"auditID\" : \"a\" ,\n\"requestObject\":{ \"x\" : [ 1 , \"b c\" ] }, \"k\" : 2 }",
	} {
		if digest(s) != want {
			t.Errorf("%s: another digest", s)
		}
	}
	if digest(`{"auditID":"a","requestObject":{"x":[1,"bc"]},"k":2}`) == want {
		t.Error("white space within a string makes no difference")
	}
}

func TestTrimRefuses(t *testing.T) {
	for _, s := range []string{`[]`, `x`, `{"a" 1}`, `{"a":1 "b":2}`, `{"a":1]`, `{"user":{"a":1]}`, `{"user":[1}}`, `{"user":,"a":1}`, `{"user":[,]}`, `{"user":1{}}`, `{"requestObject":}`} {
		if got, err := Trim(strings.NewReader(s)); err == nil || got != nil || !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, s := range []string{``, `{`, `{"a`, `{"a":`, `{"a":"\`, `{"a":"\u00`, `{"a":1`, `{"a":1,`, `{"requestObject":{"a":[`} {
		if _, err := Trim(strings.NewReader(s)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", s, err)
		}
	}
	got, err := Trim(strings.NewReader(`{"verb":"get","new":1,"new":2,"verb":"delete"}`))
	if err != nil || got.Twice != "verb" || string(got.Text) != `{"verb":"get"}` {
		t.Errorf("%+v %v", got, err)
	}
}

// FuzzTrim: of a valid record what is left is valid and bounded, and nothing
// behind the record is read.
func FuzzTrim(f *testing.F) {
	f.Add(`{"auditID":"a","user":{"extra":{"k":["v",1.5,null]}},"requestObject":{"x":[1,{"y":"}"}]}}`)
	f.Add(`{"annotations":{"\u00e9":"\ud83d\ude00"},"stage":-1e9}`)
	f.Fuzz(func(t *testing.T, s string) {
		in := strings.NewReader(s + "]rest")
		got, err := Trim(in)
		if err != nil && got != nil {
			t.Fatal("a record with an error")
		}
		valid := json.Valid([]byte(s)) && strings.HasPrefix(strings.TrimSpace(s), "{")
		if valid && err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if err != nil {
			return
		}
		if len(got.Text) > MaxBytes/2 {
			t.Fatalf("%d bytes are left", len(got.Text))
		}
		if valid {
			if !json.Valid(got.Text) {
				t.Fatalf("%q: %q is left", s, got.Text)
			}
			if rest := fmt.Sprint(in.Len()); rest != fmt.Sprint(len("]rest")+len(s)-len(strings.TrimRight(s, " \t\r\n"))) {
				t.Fatalf("%q: %s bytes not read", s, rest)
			}
		}
	})
}
