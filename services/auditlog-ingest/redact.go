package auditlogingest

import (
	"fmt"
	"net/url"
	"strings"

	"picket/services/auditlog-ingest/record"
)

// RedactConfig is the `redact` part of the configuration: what is taken out of
// records before they leave the process. docs/audit.md states the policy.
type RedactConfig struct {
	Enabled bool     `yaml:"enabled" doc:"Replace secrets in request and response objects, request URIs and dead letters by [redacted]."`
	Keys    []string `yaml:"keys" doc:"Keys whose string values are replaced, besides the data of Secrets and tokens of the API. * stands for any text; case and the characters - _ . are ignored."`
}

// DefaultRedact returns the default `redact` part.
func DefaultRedact() RedactConfig {
	return RedactConfig{Enabled: true, Keys: []string{
		"*password*", "*passwd*", "*passphrase*", "*token", "*secret", "*secretkey*", "*secretaccesskey*",
		"*accesskey", "*apikey*", "*privatekey*", "*credentials", "*dockerconfigjson*", "*dockercfg*", "*tlskey", "*connectionstring*",
	}}
}

// Validate checks the part; messages name the YAML key.
func (r RedactConfig) Validate() error {
	for _, k := range r.Keys {
		if strings.Trim(foldKey(k), "*") == "" {
			return fmt.Errorf("redact.keys has %q, which matches every key: give at least one letter", k)
		}
	}
	return nil
}

// redacted stands for what was taken out; redactedJSON is the same as JSON.
const (
	redacted     = "[redacted]"
	redactedJSON = `"[redacted]"`
)

// lastApplied is the annotation in which kubectl keeps a whole object, as
// JSON in a string.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// maxKnownKeys bounds the memory of keys already judged.
const maxKnownKeys = 8192

// policy is a compiled RedactConfig; nil redacts nothing. It is safe for
// concurrent use.
type policy struct {
	patterns [][]string // each split at its stars
}

// newPolicy returns nil for a policy that is off.
func newPolicy(c RedactConfig) *policy {
	if !c.Enabled {
		return nil
	}
	p := &policy{}
	for _, k := range append([]string{"token"}, c.Keys...) {
		p.patterns = append(p.patterns, strings.Split(foldKey(k), "*"))
	}
	return p
}

// foldKey drops what spellings of the same name differ in.
func foldKey(k string) string {
	return strings.ToLower(strings.Map(func(c rune) rune {
		if c == '-' || c == '_' || c == '.' {
			return -1
		}
		return c
	}, k))
}

// names reports whether a pattern matches the key.
func (p *policy) names(key string) bool {
	key = foldKey(key)
	for _, parts := range p.patterns {
		if glob(parts, key) {
			return true
		}
	}
	return false
}

// glob reports whether s matches a pattern split at its stars.
func glob(parts []string, s string) bool {
	if len(parts) == 1 {
		return s == parts[0]
	}
	last := len(parts) - 1
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	s = s[len(parts[0]):]
	for _, p := range parts[1:last] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, parts[last])
}

// scrubber applies a policy to records, one at a time.
type scrubber struct {
	*policy
	known map[string]bool // keys already judged: the same ones come again and again
	t     record.Reader
	patch bool // t is a JSON patch of a Secret: its values are secrets
	edits []edit
}

// edit replaces a part of a text.
type edit struct {
	start, end int
	by         string
}

// newScrubber returns nil for no policy.
func newScrubber(p *policy) *scrubber {
	if p == nil {
		return nil
	}
	return &scrubber{policy: p, known: map[string]bool{}}
}

// secretKey is names with a memory.
func (s *scrubber) secretKey(key string) bool {
	v, ok := s.known[key]
	if !ok {
		v = s.names(key)
		if len(s.known) < maxKnownKeys && len(key) <= 256 {
			s.known[strings.Clone(key)] = v
		}
	}
	return v
}

// concerns reports whether an object with this key, as it is written, anywhere
// in it needs a closer look. It is asked while the object is first read, so
// that the many objects that hold no secret are not read twice.
func (s *scrubber) concerns(key string) bool {
	switch key {
	case "stringData", "env", "args", "command", lastApplied:
		return true
	}
	return s.secretKey(key) || strings.IndexByte(key, '\\') >= 0
}

// object returns the object's text (checked JSON) without its secrets. secret
// says that the request was about Secrets.
func (s *scrubber) object(text string, secret bool) string {
	outer := *s
	s.t, s.edits = record.NewReader(text), nil
	s.patch = secret && s.t.Peek() == '['
	s.value(mode{secret: secret})
	edits := s.edits
	s.t, s.edits, s.patch = outer.t, outer.edits, outer.patch
	if len(edits) == 0 {
		return text
	}
	out := make([]byte, 0, len(text)+len(edits)*len(redactedJSON))
	at := 0
	for _, e := range edits {
		out = append(append(out, text[at:e.start]...), e.by...)
		at = e.end
	}
	return string(append(out, text[at:]...))
}

// mode is what holds for a value because of where it stands.
type mode struct {
	secret bool // inside a Secret: data and stringData hold secrets
	all    bool // every string and number is a secret; keys stay
	args   bool // the elements of a command line
}

// value reads one value and notes what is to be replaced in it. The text was
// checked before: errors cannot occur.
func (s *scrubber) value(m mode) {
	switch s.t.Peek() {
	case '{':
		s.members(m)
	case '[':
		s.elements(m)
	case '"':
		var v string
		start := s.t.Pos
		_ = s.t.Text(&v)
		if m.all {
			s.replace(start, redactedJSON)
		} else if m.args {
			if head, ok := s.argument(v); ok {
				s.replace(start, string(record.AppendString(nil, head+redacted)))
			}
		}
	default:
		start := s.t.Pos
		if v, _ := s.t.Skip(); m.all && v != "null" {
			s.replace(start, redactedJSON)
		}
	}
}

// replace replaces what was read since start.
func (s *scrubber) replace(start int, by string) {
	s.edits = append(s.edits, edit{start, s.t.Pos, by})
}

func (s *scrubber) elements(m mode) {
	flag := false // the element before is a flag whose value is a secret
	_ = s.t.Elements(func() error {
		em := m
		em.all = m.all || flag
		flag = false
		if m.args && !em.all && s.t.Peek() == '"' {
			var v string
			ahead := s.t
			_ = ahead.Text(&v)
			flag = strings.HasPrefix(v, "-") && !strings.ContainsAny(v, "= ") && s.secretKey(strings.TrimLeft(v, "-"))
		}
		s.value(em)
		return nil
	})
}

func (s *scrubber) members(m mode) {
	m.args = false
	// The object's own kind and name, looked up once, when they matter.
	begin, looked := s.t, false
	var kind, name string
	look := func() {
		if !looked {
			kind, name, looked = own(begin)
		}
	}
	_ = s.t.Members(func(key string, _ int) error {
		quoted := s.t.Peek() == '"'
		vm := m
		switch {
		case m.all:
		case key == "data", key == "stringData":
			look()
			vm.all = m.secret || kind == "Secret"
		case key == "items":
			look()
			vm.secret = m.secret || kind == "SecretList"
		case key == "value" && (s.patch || quoted): // of an environment variable
			look()
			vm.all = s.patch || s.secretKey(name)
		case quoted && key == lastApplied:
			s.embedded(m)
			return nil
		case quoted && s.secretKey(key):
			vm.all = true
		case key == "args", key == "command":
			vm.args = true
		}
		s.value(vm)
		return nil
	})
}

// own returns kind and name of the object at which r stands.
func own(r record.Reader) (kind, name string, done bool) {
	_ = r.Members(func(key string, _ int) error {
		if r.Peek() == '"' {
			switch key {
			case "kind":
				return r.Text(&kind)
			case "name":
				return r.Text(&name)
			}
		}
		_, err := r.Skip()
		return err
	})
	return kind, name, true
}

// embedded redacts an object that stands as JSON in a string. What is not
// JSON is replaced whole.
func (s *scrubber) embedded(m mode) {
	var v string
	start := s.t.Pos
	_ = s.t.Text(&v)
	check := record.NewReader(v)
	_, err := check.Skip()
	if err == nil {
		err = check.End()
	}
	if err != nil {
		s.replace(start, redactedJSON)
	} else if clean := s.object(v, m.secret); clean != v {
		s.replace(start, string(record.AppendString(nil, clean)))
	}
}

// argument splits name=value where the name is one of a secret.
func (s *scrubber) argument(arg string) (head string, ok bool) {
	name, _, found := strings.Cut(arg, "=")
	if !found || len(name) > 128 {
		return "", false
	}
	bare := strings.TrimLeft(name, "-")
	if bare == "" || strings.ContainsAny(bare, " \n") || !s.secretKey(bare) {
		return "", false
	}
	return name + "=", true
}

// uri redacts query parameters that are secrets by their name, and those
// arguments of an exec that are.
func (s *scrubber) uri(uri string) string {
	path, query, ok := strings.Cut(uri, "?")
	if !ok {
		return uri
	}
	changed, next := false, false
	params := strings.Split(query, "&")
	for i, p := range params {
		name, value, has := strings.Cut(p, "=")
		if !has {
			continue
		}
		if name != "command" {
			if plain, err := url.QueryUnescape(name); err == nil && s.secretKey(plain) {
				params[i], changed = name+"="+redacted, true
			}
			continue
		}
		plain, err := url.QueryUnescape(value)
		if err != nil {
			plain = value
		}
		if head, hit := s.argument(plain); hit || next {
			params[i], changed, next = name+"="+url.QueryEscape(head)+redacted, true, false
			continue
		}
		next = strings.HasPrefix(plain, "-") && s.secretKey(strings.TrimLeft(plain, "-"))
	}
	if !changed {
		return uri
	}
	return path + "?" + strings.Join(params, "&")
}

// letter returns text that could not be read, as it may go to the dead-letter
// stream: keys, punctuation, numbers and the values that say which event it
// was stay, every other word is replaced. It needs no valid JSON, and errs to
// replacing.
func (p *policy) letter(data []byte) []byte {
	if p == nil {
		return data
	}
	out := make([]byte, 0, len(data))
	keep := false // the last key's value may stay
	for i := 0; i < len(data); {
		c := data[i]
		switch {
		case c == '"':
			end := i + 1
			for end < len(data) && data[end] != '"' {
				if data[end] == '\\' {
					end++
				}
				end++
			}
			closed := end < len(data)
			end = min(end+1, len(data))
			after := end
			for after < len(data) && data[after] <= ' ' {
				after++
			}
			isKey := closed && after < len(data) && data[after] == ':'
			word := data[i:end]
			switch {
			case isKey && len(word) <= 130:
				keep = letterKeys[string(word[1:len(word)-1])]
				out = append(out, word...)
			case closed && keep && len(word) <= 130:
				out = append(out, word...)
				keep = false
			default:
				out = append(out, redactedJSON...)
				keep = false
			}
			i = end
		case strings.IndexByte("{}[],:", c) >= 0 || c <= ' ':
			out = append(out, c)
			i++
		default:
			end := i
			for end < len(data) && data[end] > ' ' && strings.IndexByte("{}[],:\"", data[end]) < 0 {
				end++
			}
			switch word := string(data[i:end]); word {
			case "true", "false", "null":
				out = append(out, word...)
			default:
				out = append(out, redacted...)
			}
			i = end
		}
	}
	return out
}

// letterKeys are the keys whose values say which event a dead letter was.
var letterKeys = map[string]bool{
	"kind": true, "apiVersion": true, "level": true, "auditID": true, "stage": true, "verb": true,
	"resource": true, "subresource": true, "requestReceivedTimestamp": true, "stageTimestamp": true,
}
