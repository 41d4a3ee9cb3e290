package ekstest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// verify checks a request's signature: AWS Signature Version 4, as the IAM user
// guide describes it ("Create a signed AWS API request"), header form, for a
// request to path / without a query. It returns the code and message of the
// error that AWS answers.
func (s *Server) verify(r *http.Request, body []byte, service string, now time.Time) (key, string, string) {
	var none key
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok || r.URL.RawQuery != "" || r.URL.Path != "/" {
		return none, "MissingAuthenticationTokenException", "Missing Authentication Token"
	}
	part := map[string]string{}
	for p := range strings.SplitSeq(text, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		part[k] = v
	}
	scope := strings.Split(part["Credential"], "/")
	if len(scope) != 5 || scope[3] != service || scope[4] != "aws4_request" {
		return none, "InvalidSignatureException", "Credential should be scoped to a valid region and to service " + service
	}
	stamp := r.Header.Get("X-Amz-Date")
	at, err := time.Parse("20060102T150405Z", stamp)
	if err != nil || !strings.HasPrefix(stamp, scope[1]) {
		return none, "InvalidSignatureException", "Date in Credential scope does not match X-Amz-Date"
	}
	if d := now.Sub(at).Abs(); d > 5*time.Minute {
		return none, "InvalidSignatureException", fmt.Sprintf("Signature expired: %s is now off by %v", stamp, d)
	}
	s.mu.Lock()
	k, ok := s.keys[scope[0]]
	s.mu.Unlock()
	if !ok || k.token != r.Header.Get("X-Amz-Security-Token") {
		return none, "UnrecognizedClientException", "The security token included in the request is invalid."
	}
	names := strings.Split(part["SignedHeaders"], ";")
	for _, must := range []string{"host", "x-amz-date", "content-type"} {
		if !slices.Contains(names, must) {
			return none, "InvalidSignatureException", must + " must be signed"
		}
	}
	if !slices.IsSorted(names) {
		return none, "InvalidSignatureException", "SignedHeaders are not in order"
	}
	var canonical strings.Builder
	sum := sha256.Sum256(body)
	fmt.Fprintf(&canonical, "%s\n/\n\n", r.Method)
	for _, n := range names {
		v := r.Header.Get(n)
		switch n {
		case "host":
			v = r.Host
		case "content-length":
			v = fmt.Sprint(r.ContentLength)
		}
		fmt.Fprintf(&canonical, "%s:%s\n", n, strings.Join(strings.Fields(v), " "))
	}
	fmt.Fprintf(&canonical, "\n%s\n%x", part["SignedHeaders"], sum)
	hashed := sha256.Sum256([]byte(canonical.String()))
	sign := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	secret := []byte("AWS4" + k.secret)
	for _, p := range scope[1:] {
		secret = sign(secret, p)
	}
	want := sign(secret, fmt.Sprintf("AWS4-HMAC-SHA256\n%s\n%s\n%x", stamp, strings.Join(scope[1:], "/"), hashed))
	if got, err := hex.DecodeString(part["Signature"]); err != nil || !hmac.Equal(got, want) {
		// AWS sends the canonical request back, session token included.
		return none, "InvalidSignatureException", "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method.\n\nThe Canonical String for this request should have been\n'" + canonical.String() + "'"
	}
	if !k.expires.IsZero() && now.After(k.expires) {
		return none, "ExpiredTokenException", "The security token included in the request is expired"
	}
	k.region = scope[2]
	return k, "", ""
}
