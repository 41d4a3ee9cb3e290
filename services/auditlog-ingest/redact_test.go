package auditlogingest

import (
	"strings"
	"testing"
)

// TestRedactPolicy holds the table of docs/audit.md: what goes, and what stays
// although one might think otherwise.
func TestRedactPolicy(t *testing.T) {
	t.Parallel()
	n := NewNormalizer("test", "file", "file", DefaultRedact())
	request := func(resource, object string) string {
		got := one(t, n, strings.Replace(good, `"verb":"get"`, `"verb":"create","objectRef":{"resource":"`+resource+`"},"requestObject":`+object, 1))
		return got["audit_request_object"].(string)
	}
	for name, c := range map[string]struct{ resource, in, want string }{
		"data of a Secret":          {"secrets", `{"kind":"Secret","data":{"a":"eA==","b":null}}`, `{"kind":"Secret","data":{"a":"[redacted]","b":null}}`},
		"merge patch of a Secret":   {"secrets", `{"data":{"a":"eA=="},"metadata":{"labels":{"a":"b"}}}`, `{"data":{"a":"[redacted]"},"metadata":{"labels":{"a":"b"}}}`},
		"JSON patch of a Secret":    {"secrets", `[{"op":"add","path":"/data/a","value":"eA=="}]`, `[{"op":"add","path":"/data/a","value":"[redacted]"}]`},
		"Secret in another object":  {"bundles", `{"items":[{"kind":"Secret","stringData":{"a":"x"}}]}`, `{"items":[{"kind":"Secret","stringData":{"a":"[redacted]"}}]}`},
		"list of Secrets":           {"secrets", `{"kind":"SecretList","items":[{"data":{"a":"eA=="}}]}`, `{"kind":"SecretList","items":[{"data":{"a":"[redacted]"}}]}`},
		"last applied":              {"configmaps", `{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"data\":{\"password\":\"x\"}}"}}}`, `{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"data\":{\"password\":\"[redacted]\"}}"}}}`},
		"last applied, no JSON":     {"configmaps", `{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"password: x"}}}`, `{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"[redacted]"}}}`},
		"named key":                 {"configmaps", `{"data":{"DB_PASSWORD":"x","db.password":"y","color":"blue"}}`, `{"data":{"DB_PASSWORD":"[redacted]","db.password":"[redacted]","color":"blue"}}`},
		"environment":               {"pods", `{"env":[{"name":"API_TOKEN","value":"x"},{"name":"COLOR","value":"blue"}]}`, `{"env":[{"name":"API_TOKEN","value":"[redacted]"},{"name":"COLOR","value":"blue"}]}`},
		"arguments":                 {"pods", `{"args":["--password=x","--token","y","z"],"command":["TOKEN=x"]}`, `{"args":["--password=[redacted]","--token","[redacted]","z"],"command":["TOKEN=[redacted]"]}`},
		"token":                     {"tokenreviews", `{"spec":{"token":"x"}}`, `{"spec":{"token":"[redacted]"}}`},
		"reference stays":           {"pods", `{"secretKeyRef":{"name":"db","key":"k"},"secretName":"s"}`, `{"secretKeyRef":{"name":"db","key":"k"},"secretName":"s"}`},
		"number stays":              {"configmaps", `{"password":1234}`, `{"password":1234}`},
		"file in a ConfigMap stays": {"configmaps", `{"data":{"app.ini":"password=x"}}`, `{"data":{"app.ini":"password=x"}}`},
		"shell line stays":          {"pods", `{"args":["sh","-c","login --password=x"]}`, `{"args":["sh","-c","login --password=x"]}`},
		"JSON patch by path stays":  {"pods", `[{"op":"replace","path":"/spec/containers/0/env/0/value","value":"x"}]`, `[{"op":"replace","path":"/spec/containers/0/env/0/value","value":"x"}]`},
	} {
		if got := request(c.resource, c.in); got != c.want {
			t.Errorf("%s:\n%s becomes\n%s, want\n%s", name, c.in, got, c.want)
		}
	}
	uri := one(t, n, strings.Replace(good, `"requestURI":"/"`, `"requestURI":"/exec?access_token=x&command=a&command=--token&command=y&command=PASSWORD%3Dz&q=1"`, 1))["audit_request_uri"]
	if want := "/exec?access_token=[redacted]&command=a&command=--token&command=[redacted]&command=PASSWORD%3D[redacted]&q=1"; uri != want {
		t.Errorf("URI becomes %s, want %s", uri, want)
	}
	// The API's own tokens go whatever redact.keys says.
	bare := newScrubber(newPolicy(RedactConfig{Enabled: true}))
	if got := bare.object(`{"token":"x","password":"y"}`, false); got != `{"token":"[redacted]","password":"y"}` {
		t.Errorf("without keys: %s", got)
	}
}

// TestLetter: of a dead letter the values that say which event it was stay.
func TestLetter(t *testing.T) {
	t.Parallel()
	p := newPolicy(DefaultRedact())
	for in, want := range map[string]string{
		`{"kind":"Event","auditID":"a","stage":7,"user":{"username":"bob"},"code":200,"ok":true`: `{"kind":"Event","auditID":"a","stage":[redacted],"user":{"username":"[redacted]"},"code":[redacted],"ok":true`,
		`hello hunter2`:             `[redacted] [redacted]`,
		`{"verb":"get","x":"unclos`: `{"verb":"get","x":"[redacted]"`,
		`{"a":"x\"y","kind":"` + strings.Repeat("long", 40) + `"}`: `{"a":"[redacted]","kind":"[redacted]"}`,
	} {
		if got := string(p.letter([]byte(in))); got != want {
			t.Errorf("%s becomes\n%s, want\n%s", in, got, want)
		}
	}
	if got := (*policy)(nil).letter([]byte("hunter2")); string(got) != "hunter2" {
		t.Errorf("switched off: %s", got)
	}
}
