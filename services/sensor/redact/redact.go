// Package redact takes secrets out of command lines before they leave the
// node. The policy, by argument:
//
//   - key=value and --key=value where the key's name contains one of the
//     configured words, whatever its case: the value goes;
//   - --key or -key of such a name alone: the next argument goes;
//   - scheme://user:password@host: the password goes;
//   - "Authorization: Bearer x", "Bearer x", "Basic x" within an argument: the
//     credential goes;
//   - well-known forms of tokens (AKIA…, ghp_…, eyJ….….…): all of it goes.
//
// What goes is replaced by Mark.
package redact

import (
	"regexp"
	"strings"
	"unicode/utf8"
	"unsafe"
)

// Mark stands where a secret was.
const Mark = "[redacted]"

// DefaultWords are the parts of a key's name that mark its value as secret.
func DefaultWords() []string {
	return []string{"password", "passwd", "passphrase", "secret", "token", "api-key", "api_key", "apikey", "access-key", "access_key", "private-key", "private_key", "credential", "authorization"}
}

// Policy is a compiled policy; nil redacts nothing. It is safe for concurrent
// use.
type Policy struct {
	words   []string // in lower case
	unicode bool     // there are words that are not ASCII
}

// maxWord bounds a word, bytes: of a longer one the beginning counts.
const maxWord = 64

// New returns the policy for the given words.
func New(words []string) *Policy {
	p := &Policy{}
	for _, w := range words {
		if w = strings.ToLower(strings.TrimSpace(w)); w != "" {
			p.words = append(p.words, w[:min(len(w), maxWord)])
			p.unicode = p.unicode || strings.ContainsFunc(w, func(r rune) bool { return r >= utf8.RuneSelf })
		}
	}
	return p
}

var (
	// A key of at most 64 bytes, so that the match is linear in practice too.
	assignment = regexp.MustCompile(`(?:^|[\s'"?&;])-{0,2}([A-Za-z][A-Za-z0-9_.-]{0,63})\s?[=:]\s?("[^"]*"|'[^']*'|[^\s'"&;/][^\s'"&;]*|/[^\s'"&;/][^\s'"&;]*)`) // not the // of a URL
	userinfo   = regexp.MustCompile(`://([^/\s:@]*):([^/\s@]+)@`)
	scheme     = regexp.MustCompile(`(?i)\b(bearer|basic)\s+([A-Za-z0-9._~+/=-]{6,})`)
	known      = regexp.MustCompile(`\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|xox[abpr]-[A-Za-z0-9-]{10,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*)`)
)

// A cheap look before an expression is tried: what the tokens in known begin
// with, and the words of scheme.
var (
	tokenStarts = []string{"AKIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "xox", "eyJ"}
	schemes     = []string{"bearer", "basic"}
)

// Args redacts an argument vector in place and reports whether it changed
// anything.
func (p *Policy) Args(args []string) (changed bool) {
	if p == nil {
		return false
	}
	// An argument is mostly none: it costs no allocation then.
	for i, a := range args {
		if i > 0 && p.flag(args[i-1]) && !strings.HasPrefix(a, "-") && a != Mark {
			args[i], changed = Mark, true
			continue
		}
		if r := p.text(a); r != a {
			args[i], changed = r, true
		}
	}
	return changed
}

// flag reports whether an argument is a flag whose value follows it.
func (p *Policy) flag(a string) bool {
	return strings.HasPrefix(a, "-") && !strings.ContainsAny(a, "= ") && p.secret(a)
}

func (p *Policy) secret(key string) bool {
	if p.unicode {
		key = strings.ToLower(key)
	}
	return contains(key, p.words)
}

// contains reports whether s contains one of the words, whatever the case of its
// ASCII letters. It does not allocate: what has capitals is looked at a part at
// a time, in lower case, and the parts overlap by the longest word there can be.
func contains(s string, words []string) bool {
	if !capitals(s) {
		for _, w := range words {
			if strings.Contains(s, w) {
				return true
			}
		}
		return false
	}
	var buf [4 * maxWord]byte
	for {
		n := min(len(s), len(buf))
		for i := range n {
			c := s[i]
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			buf[i] = c
		}
		part := unsafe.String(&buf[0], n) // a string that lives as long as buf is not written
		for _, w := range words {
			if strings.Contains(part, w) {
				return true
			}
		}
		if n == len(s) {
			return false
		}
		s = s[n-maxWord+1:]
	}
}

func capitals(s string) bool {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			return true
		}
	}
	return false
}

func (p *Policy) text(a string) string {
	if len(a) < 6 {
		return a
	}
	if strings.ContainsAny(a, "=:") && p.secret(a) {
		a = replaceGroup(assignment, a, 2, func(m []string) bool {
			return p.secret(m[1]) && !strings.EqualFold(m[2], "bearer") && !strings.EqualFold(m[2], "basic")
		})
	}
	if strings.Contains(a, "://") && strings.Contains(a, "@") {
		a = replaceGroup(userinfo, a, 2, nil)
	}
	if strings.Contains(a, " ") && contains(a, schemes) {
		a = replaceGroup(scheme, a, 2, nil)
	}
	for _, start := range tokenStarts {
		if strings.Contains(a, start) {
			if known.MatchString(a) { // a replacement of nothing allocates
				a = known.ReplaceAllString(a, Mark)
			}
			break
		}
	}
	return a
}

// replaceGroup replaces one group of each match for which ok holds.
func replaceGroup(re *regexp.Regexp, s string, group int, ok func(m []string) bool) string {
	var b strings.Builder
	end := 0
	for _, at := range re.FindAllStringSubmatchIndex(s, -1) {
		if ok != nil {
			m := make([]string, len(at)/2)
			for i := range m {
				m[i] = s[at[2*i]:at[2*i+1]]
			}
			if !ok(m) {
				continue
			}
		}
		b.WriteString(s[end:at[2*group]])
		b.WriteString(Mark)
		end = at[2*group+1]
	}
	if end == 0 {
		return s
	}
	b.WriteString(s[end:])
	return b.String()
}
