package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"picket/internal/fault"
)

const head = `{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[`

// readList reads a whole list.
func readList(in io.Reader) (items []string, err error) {
	l := NewList(in)
	for {
		item, err := l.Next()
		if errors.Is(err, io.EOF) {
			return items, nil
		}
		if err != nil {
			return items, err
		}
		if item.Trimmed != nil {
			item.Text = item.Trimmed.Text
		}
		items = append(items, string(item.Text))
	}
}

func TestList(t *testing.T) {
	for name, c := range map[string]struct {
		body   string
		items  string
		reason string // of the error
	}{
		"none":             {head + `]}`, "", ""},
		"null":             {`{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":null}`, "", ""},
		"two":              {head + `{"a":1},{"b":"]}"}]}`, `{"a":1} {"b":"]}"}`, ""},
		"white space":      {" {\n\"kind\" : \"EventList\" , \"items\" : [ {\"a\":1} ,\n {} ] } \n", `{"a":1} {}`, ""},
		"kind last":        {`{"apiVersion":"audit.k8s.io/v1","items":[{}],"kind":"EventList"}`, `{}`, ""},
		"not objects":      {head + `1,"x",null,[2],{}]}`, `1 "x" null [2] {}`, ""},
		"bad item":         {head + `{"a":},{}]}`, `{"a":} {}`, ""},
		"empty":            {``, "", ReasonSyntax},
		"not an object":    {`[]`, "", ReasonSyntax},
		"words":            {`hello`, "", ReasonSyntax},
		"cut in an item":   {head + `{},{"a":`, `{}`, ReasonSyntax},
		"cut after items":  {head + `{}]`, `{}`, ReasonSyntax},
		"cut before":       {`{"kind":"Ev`, "", ReasonSyntax},
		"text behind":      {head + `{}]} x`, `{}`, ReasonSyntax},
		"no comma":         {head + `{} {}]}`, `{}`, ReasonSyntax},
		"comma last":       {head + `{},]}`, `{}`, ReasonSyntax},
		"two commas":       {head + `{},,{}]}`, `{}`, ReasonSyntax},
		"no colon":         {`{"kind" "EventList"}`, "", ReasonSyntax},
		"no key":           {`{1:2}`, "", ReasonSyntax},
		"other kind":       {`{"kind":"PodList","items":[{}]}`, "", ReasonKind},
		"other kind last":  {`{"apiVersion":"audit.k8s.io/v1","items":[{}],"kind":"PodList"}`, "{}", ReasonKind},
		"no kind":          {`{"items":[{}]}`, "{}", ReasonKind},
		"nothing":          {`{}`, "", ReasonKind},
		"other version":    {`{"kind":"EventList","apiVersion":"audit.k8s.io/v2","items":[{}]}`, "", ReasonAPIVersion},
		"kind is a number": {`{"kind":1}`, "", ReasonSyntax},
		"items no array":   {`{"kind":"EventList","items":{}}`, "", ReasonType},
		"items is a word":  {`{"kind":"EventList","items":nonsense}`, "", ReasonType},
		"large member":     {`{"x":"` + strings.Repeat("y", maxListPart) + `"}`, "", ReasonSyntax},
		"large no object":  {head + `"` + strings.Repeat("y", MaxBytes) + `"]}`, "", ReasonSyntax},
	} {
		t.Run(name, func(t *testing.T) {
			for how, in := range map[string]io.Reader{"at once": strings.NewReader(c.body), "in bytes": iotest.OneByteReader(strings.NewReader(c.body))} {
				items, err := readList(in)
				if got := strings.Join(items, " "); got != c.items {
					t.Errorf("%s: items %s", how, got)
				}
				if (err == nil) != (c.reason == "") || err != nil && (!fault.IsPermanent(err) || fault.Reason(err) != c.reason) {
					t.Errorf("%s: error %v", how, err)
				}
			}
		})
	}
}

func TestListConnectionLost(t *testing.T) {
	lost := errors.New("connection lost")
	items, err := readList(io.MultiReader(strings.NewReader(head+`{},{"a":`), iotest.ErrReader(lost)))
	if len(items) != 1 || !errors.Is(err, lost) || fault.IsPermanent(err) {
		t.Errorf("%d items, %v", len(items), err)
	}
}

// TestListTrims reads a list with an item of 30 MB, and looks at the memory
// that takes.
func TestListTrims(t *testing.T) {
	big := `{"auditID":"big","requestObject":{"x":"` + strings.Repeat("y", 15<<20) + `"},"responseObject":[` + strings.Repeat(`{"a":"b"},`, 1<<20) + `1],"stage":"s"}`
	body := head + `{"auditID":"1"},` + big + `,{"auditID":"2"}]}`
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	items, err := readList(strings.NewReader(body))
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(items, " "); got != `{"auditID":"1"} {"auditID":"big","stage":"s"} {"auditID":"2"}` {
		t.Error(got)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 3<<20 {
		t.Errorf("allocated %d bytes", n)
	}
}

// FuzzList holds the list reader against encoding/json: of every body that is
// a list, all items come out.
func FuzzList(f *testing.F) {
	f.Add(head + `{"a":1},{"b":"]}"}]}`)
	f.Add(` { "items" : [ "x\"" , [ ] , { } ] , "kind" : "EventList" } `)
	f.Add(`{"kind":"EventList","items":[` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `]}`)
	f.Fuzz(func(t *testing.T, body string) {
		items, err := readList(strings.NewReader(body))
		again, err2 := readList(iotest.OneByteReader(strings.NewReader(body)))
		if fmt.Sprint(items) != fmt.Sprint(again) || (err == nil) != (err2 == nil) {
			t.Fatalf("read at once %q %v, in bytes %q %v", items, err, again, err2)
		}
		var want struct {
			Kind  string            `json:"kind"`
			Items []json.RawMessage `json:"items"`
		}
		if err != nil || !json.Valid([]byte(body)) {
			return
		}
		if json.Unmarshal([]byte(body), &want) != nil || strings.Count(body, `"items"`) != 1 || strings.Contains(body, `\u`) {
			return
		}
		if len(items) != len(want.Items) {
			t.Fatalf("%d items of %d", len(items), len(want.Items))
		}
		for i, item := range want.Items {
			if !bytes.Equal(item, []byte(items[i])) {
				t.Fatalf("item %d is %s, want %s", i, items[i], item)
			}
		}
	})
}
