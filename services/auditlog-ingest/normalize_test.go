package auditlogingest

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"picket/internal/batch"
	"picket/internal/fault"
	"picket/schemas"
	"picket/services/auditlog-ingest/record"
)

var update = flag.Bool("update", false, "write the golden files anew")

func builder() *batch.Builder {
	return batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
}

// row returns the columns of a row that have a value, time_observed apart.
func row(b *batch.Batch, r int) map[string]any {
	out := map[string]any{}
	for _, id := range schemas.RawColumns(schemas.Audit) {
		if id == schemas.TimeObserved || b.IsNull(id, r) {
			continue
		}
		var v any
		empty := false
		switch id.Field().Type {
		case schemas.Text, schemas.Name:
			s := b.Str(id, r)
			v, empty = s, s == ""
		case schemas.Bool:
			v, empty = b.Bool(id, r), !b.Bool(id, r)
		case schemas.List, schemas.Names:
			l := slices.Collect(b.List(id, r))
			v, empty = l, len(l) == 0
		case schemas.Map:
			m := maps.Collect(b.Map(id, r))
			v, empty = m, len(m) == 0
		case schemas.ID:
			x, _ := b.Bytes16(id, r)
			v = schemas.FormatID(x)
		case schemas.Time:
			v = time.Unix(0, b.Int(id, r)).UTC().Format(time.RFC3339Nano)
		case schemas.Int64:
			v = b.Int(id, r)
		default:
			v = b.Uint(id, r)
		}
		if !empty {
			out[id.String()] = v
		}
	}
	return out
}

// TestGolden normalises testdata/records.jsonl. Look at what -update changes.
func TestGolden(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("testdata", "records.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	n := NewNormalizer("prod", "cp-1", "file", DefaultRedact())
	b := builder()
	for line := range bytes.Lines(data) {
		if err := n.Append(b, bytes.TrimSuffix(line, []byte("\n"))); err != nil {
			t.Fatalf("%.100s: %v", line, err)
		}
	}
	var got bytes.Buffer
	enc := json.NewEncoder(&got)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	for r := range b.Len() {
		if err := enc.Encode(row(b.Batch(), r)); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join("testdata", "records.golden.json")
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")); d != "" {
		t.Errorf("normalised records differ from %s (-want +got):\n%s", path, d)
	}
	for _, secret := range []string{"hunter2", "aHVudGVyMg", "cm9vdA", "eyJhbGci", `"abc"`, "=abc", "aGk="} {
		if strings.Contains(got.String(), secret) {
			t.Errorf("%s is not redacted", secret)
		}
	}
}

func TestSamples(t *testing.T) {
	n := NewNormalizer("test", "file", "file", DefaultRedact())
	b := builder()
	ids := map[id]bool{}
	for i, r := range samples(t) {
		if err := n.Append(b, r); err != nil {
			t.Errorf("line %d: %v", i+1, err)
		}
		var want struct {
			AuditID  string
			Verb     string
			User     struct{ Username string }
			Request  json.RawMessage      `json:"requestObject"`
			Response struct{ Code int64 } `json:"responseStatus"`
		}
		if err := json.Unmarshal(r, &want); err != nil {
			t.Fatal(err)
		}
		got := b.Batch()
		last := got.Rows() - 1
		if got.Str(schemas.AuditID, last) != want.AuditID || got.Str(schemas.AuditVerb, last) != want.Verb ||
			got.Str(schemas.AuditUser, last) != want.User.Username || got.Int(schemas.AuditResponseCode, last) != want.Response.Code {
			t.Errorf("line %d: %v", i+1, row(got, last))
		}
		if o := got.Str(schemas.AuditRequest, last); o != string(want.Request) && !strings.Contains(o, redacted) || o != "" && !json.Valid([]byte(o)) {
			t.Errorf("line %d: request object %.200s", i+1, o)
		}
		x, _ := got.Bytes16(schemas.EventID, last)
		ids[x] = true
	}
	if len(ids) != b.Len() {
		t.Errorf("%d different ids of %d events", len(ids), b.Len())
	}
}

const good = `{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"x","stage":"ResponseComplete","requestURI":"/","verb":"get","user":{"username":"u"},"requestReceivedTimestamp":"2026-11-23T00:38:28.919544Z","stageTimestamp":"2026-11-23T00:38:28.922412Z"}`

func TestRefused(t *testing.T) {
	with := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("%s is not in the record", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for text, reason := range map[string]string{
		"":                          record.ReasonSyntax,
		"{}":                        record.ReasonKind,
		"[]":                        record.ReasonSyntax,
		"word":                      record.ReasonSyntax,
		good[:len(good)/2]:          record.ReasonSyntax,
		good + "x":                  record.ReasonSyntax,
		good + good:                 record.ReasonSyntax,
		with(`"Event"`, `"Pod"`):    record.ReasonKind,
		with(`"kind":"Event",`, ``): record.ReasonKind,
		with(`audit.k8s.io/v1`, `audit.k8s.io/v2`):                                                                     record.ReasonAPIVersion,
		with(`"apiVersion":"audit.k8s.io/v1",`, ``):                                                                    record.ReasonAPIVersion,
		with(`"auditID":"x"`, `"auditID":""`):                                                                          record.ReasonAuditID,
		with(`"auditID":"x"`, `"auditID":null`):                                                                        record.ReasonAuditID,
		with(`"auditID":"x",`, ``):                                                                                     record.ReasonAuditID,
		with(`"auditID":"x"`, `"auditID":7`):                                                                           record.ReasonType,
		with(`"stage":"ResponseComplete",`, ``):                                                                        record.ReasonStage,
		with(`"verb":"get"`, `"verb":{}`):                                                                              record.ReasonType,
		with(`"user":{"username":"u"}`, `"user":"u"`):                                                                  record.ReasonType,
		with(`"verb":"get"`, `"verb":"get","verb":"delete"`):                                                           record.ReasonTwice,
		with(`"verb":"get"`, `"verb":"get","\u0076erb":"x"`):                                                           record.ReasonTwice,
		with(`"verb":"get"`, `"annotations":{"a":"1","a":"2"}`):                                                        record.ReasonTwice,
		with(`"verb":"get"`, `"annotations":{"a":1}`):                                                                  record.ReasonType,
		with(`"verb":"get"`, `"responseStatus":{"code":"200"}`):                                                        record.ReasonType,
		with(`"2026-11-23T00:38:28.919544Z","stageTimestamp":"2026-11-23T00:38:28.922412Z"`, `"yesterday"`):            record.ReasonTime,
		with(`"2026-11-23T00:38:28.919544Z","stageTimestamp":"2026-11-23T00:38:28.922412Z"`, `"9999-11-23T00:38:28Z"`): record.ReasonTime,
		with(`"verb":"get"`, `"verb":"`+strings.Repeat("x", record.MaxBytes)+`","verb":"y"`):                           record.ReasonTwice,
		with(`"verb":"get"`, `"requestObject":{"x":"`+strings.Repeat("x", record.MaxBytes)+`"`):                        record.ReasonSyntax,
		with(`"Event"`, `"Pod","requestObject":"`+strings.Repeat("x", record.MaxBytes)+`"`):                            record.ReasonKind,
	} {
		n := NewNormalizer("test", "file", "file", DefaultRedact())
		b := builder()
		err := n.Append(b, []byte(text))
		if err == nil || !fault.IsPermanent(err) || fault.Reason(err) != reason {
			t.Errorf("%.300s: %v, want reason %s", text, err, reason)
		}
		if b.Len() != 0 || b.Size() != 0 {
			t.Errorf("%.300s: the builder was changed", text)
		}
	}
}

// one normalises a record that must be taken.
func one(t testing.TB, n *Normalizer, text string) map[string]any {
	t.Helper()
	b := builder()
	if err := n.Append(b, []byte(text)); err != nil {
		t.Fatalf("%.300s: %v", text, err)
	}
	return row(b.Batch(), 0)
}

func TestIdentity(t *testing.T) {
	n := NewNormalizer("test", "file", "file", DefaultRedact())
	want := one(t, n, good)["event_id"]
	with := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	for what, same := range map[string]string{
		"white space":    strings.ReplaceAll(good, `,"`, " ,\n \""),
		"kind elsewhere": `{` + strings.TrimSuffix(strings.TrimPrefix(good, `{"kind":"Event",`), "}") + `,"kind":"Event"}`,
	} {
		if got := one(t, n, same)["event_id"]; got != want {
			t.Errorf("%s: another id", what)
		}
	}
	if got := one(t, NewNormalizer("test", "webhook", "webhook", DefaultRedact()), good)["event_id"]; got != want {
		t.Error("another source: another id")
	}
	var e *event = n.event()
	if err := n.read(e, record.Item{Text: []byte(strings.Replace(good, record.ListedHeader, "", 1)), Listed: true}); err != nil || schemas.FormatID(e.id) != want {
		t.Errorf("in a list: another id (%v)", err)
	}
	for what, other := range map[string]string{
		"audit id": with(`"auditID":"x"`, `"auditID":"y"`),
		"stage":    with(`ResponseComplete`, `Panic`),
		"time":     with(`922412`, `922413`),
		"content":  with(`"verb":"get"`, `"verb":"put"`),
		"new part": with(`"verb":"get"`, `"verb":"get","new":1`),
	} {
		if got := one(t, n, other)["event_id"]; got == want {
			t.Errorf("another %s: the same id", what)
		}
	}
	if got := one(t, NewNormalizer("other", "file", "file", DefaultRedact()), good)["event_id"]; got == want {
		t.Error("another cluster: the same id")
	}
	// A secret must not be guessed by its event id.
	secret := func(v string) string {
		return with(`"verb":"get"`, `"verb":"create","objectRef":{"resource":"secrets"},"requestObject":{"kind":"Secret","data":{"a":"`+v+`"}}`)
	}
	if one(t, n, secret("one"))["event_id"] != one(t, n, secret("two"))["event_id"] {
		t.Error("the event id depends on a secret")
	}
}

func TestTrimmed(t *testing.T) {
	n := NewNormalizer("test", "file", "file", DefaultRedact())
	long := strings.Repeat("x", record.MaxBytes)
	with := func(what string) string { return strings.Replace(good, `"verb":"get"`, `"verb":"create",`+what, 1) }
	for name, text := range map[string]string{
		"request":    with(`"requestObject":{"a":"` + long + `"},"annotations":{"authorization.k8s.io/decision":"allow"}`),
		"response":   with(`"responseObject":["` + long + `"],"annotations":{"authorization.k8s.io/decision":"allow"}`),
		"unknown":    with(`"new":"` + long + `","annotations":{"authorization.k8s.io/decision":"allow"}`),
		"user agent": with(`"userAgent":"` + long + `","annotations":{"authorization.k8s.io/decision":"allow"}`),
		"sources":    with(`"sourceIPs":["192.0.2.1"` + strings.Repeat(`,"192.0.2.1"`, 30000) + `],"annotations":{"authorization.k8s.io/decision":"allow"}`),
		"too deep":   with(`"requestObject":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `,"annotations":{"authorization.k8s.io/decision":"allow"}`),
		"mended":     with(`"requestObject":{"a":"` + strings.Repeat("a\xff", record.MaxBytes/2-500) + `"},"annotations":{"authorization.k8s.io/decision":"allow"}`),
		"everything": with(`"userAgent":"` + long + `","impersonatedUser":{"username":"` + long + `"},"sourceIPs":["` + long + `"],"objectRef":{"name":"` + long + `"},"annotations":{"authorization.k8s.io/decision":"allow","b":"` + long + `"}`),
	} {
		got := one(t, n, text)
		if got["audit_trimmed"] != true || got["audit_id"] != "x" || got["audit_verb"] != "create" || got["audit_user_name"] != "u" || got["audit_authorization_decision"] != "allow" || got["time"] != "2026-11-23T00:38:28.922412Z" {
			t.Errorf("%s: %v", name, got)
		}
		if got["audit_request_object"] != nil || got["audit_response_object"] != nil {
			t.Errorf("%s: objects are left", name)
		}
		if again := one(t, n, strings.Replace(text, `"verb"`, ` "verb"`, 1)); again["event_id"] != got["event_id"] {
			t.Errorf("%s: another id with white space", name)
		}
	}
	exact := with(`"requestObject":{"a":""}`)
	exact = strings.Replace(exact, `"a":""`, `"a":"`+strings.Repeat("y", record.MaxBytes-len(exact))+`"`, 1)
	if got := one(t, n, exact); got["audit_trimmed"] != nil || len(exact) != record.MaxBytes {
		t.Errorf("a record of just the bound (%d) is trimmed", len(exact))
	}
	if got := one(t, n, strings.Replace(exact, "yy", "yyy", 1)); got["audit_trimmed"] != true {
		t.Error("a record of one byte more is not trimmed")
	}
}

func TestInvalidUTF8(t *testing.T) {
	n := NewNormalizer("test", "file", "file", DefaultRedact())
	got := one(t, n, strings.Replace(good, `"verb":"get"`, `"verb":"patch","requestObject":{"a":"b`+"\xff\xfe"+`c\ud800d"}`, 1))
	if got["audit_request_object"] != `{"a":"b`+"\uFFFD"+`c\ud800d"}` || got["audit_trimmed"] != nil {
		t.Errorf("%q", got["audit_request_object"])
	}
	got = one(t, n, strings.Replace(good, `"verb":"get"`, `"verb":"p\ud800\u0041\ud83d\ude00"`, 1))
	if got["audit_verb"] != "p\uFFFDA😀" {
		t.Errorf("%q", got["audit_verb"])
	}
}

// TestEncodes makes sure that the largest rows there can be fit a message.
func TestEncodes(t *testing.T) {
	n := NewNormalizer("test", "file", "file", DefaultRedact())
	noise := noise(t, 7, record.MaxBytes)
	for name, format := range map[string]string{
		"object": `"requestObject":{"a":"%"}`,
		"reason": `"annotations":{"authorization.k8s.io/reason":"%"}`,
		"extra":  `"impersonatedUser":{"extra":{"authentication.kubernetes.io/pod-uid":["%"]}}`,
		"verb":   `"userAgent":"%"`,
	} {
		text := strings.Replace(good, `"verb":"get"`, format, 1)
		text = strings.Replace(text, "%", noise[:record.MaxBytes-len(text)+1], 1)
		b := builder()
		if err := n.Append(b, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if enc, err := batch.Encode(b.Batch()); err != nil || len(enc) != 1 {
			t.Errorf("%s: %v", name, err)
		}
		if b.Batch().Bool(schemas.AuditTrimmed, 0) {
			t.Errorf("%s: trimmed", name)
		}
	}
}

// FuzzNormalize: whatever the text, there is one whole row or a permanent
// error, the row's objects are JSON, and it fits a message.
func FuzzNormalize(f *testing.F) {
	data, err := os.ReadFile(filepath.Join("testdata", "records.jsonl"))
	if err != nil {
		f.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		f.Add(line)
	}
	f.Add([]byte(good))
	on, off := NewNormalizer("c", "n", "s", DefaultRedact()), NewNormalizer("c", "n", "s", RedactConfig{})
	f.Fuzz(func(t *testing.T, text []byte) {
		b := builder()
		err := on.Append(b, text)
		plain := builder()
		if off := off.Append(plain, text); (err == nil) != (off == nil) {
			t.Fatalf("with redaction %v, without %v", err, off)
		}
		if err != nil {
			if !fault.IsPermanent(err) || b.Len() != 0 {
				t.Fatalf("%v, %d rows", err, b.Len())
			}
			return
		}
		got := b.Batch()
		for _, c := range []schemas.FieldID{schemas.AuditRequest, schemas.AuditResponse, schemas.AuditUserExtra} {
			if s := got.Str(c, 0); s != "" && !json.Valid([]byte(s)) {
				t.Fatalf("%s is %q", c, s)
			}
		}
		if _, err := batch.Encode(got); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkNormalize(b *testing.B) {
	records := samples(b)
	total := 0
	for _, r := range records {
		total += len(r)
	}
	for name, cfg := range map[string]RedactConfig{"redact": DefaultRedact(), "plain": {}} {
		b.Run(name, func(b *testing.B) {
			n := NewNormalizer("bench", "file", "file", cfg)
			bb := builder()
			b.SetBytes(int64(total / len(records)))
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if bb.Full() {
					bb.Reset()
				}
				if err := n.Append(bb, records[i%len(records)]); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// BenchmarkTrim reads an event of 20 MB.
func BenchmarkTrim(b *testing.B) {
	text := []byte(strings.Replace(good, `"verb":"get"`, `"verb":"create","requestObject":{"a":"`+strings.Repeat("x", 20<<20)+`"}`, 1))
	n := NewNormalizer("bench", "file", "file", DefaultRedact())
	bb := builder()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		bb.Reset()
		if err := n.Append(bb, text); err != nil {
			b.Fatal(err)
		}
	}
}
