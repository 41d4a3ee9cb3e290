// Package rulepack is a set of rule files as it lies in NATS for a fleet of
// detectors: one value of one key, so that a pack comes whole or not at all.
package rulepack

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"picket/internal/rules"
	"picket/schemas"
)

// Pack is rule files in load order.
type Pack struct {
	Pushed time.Time `json:"pushed"`
	By     string    `json:"by"` // who pushed it, as they named themselves
	Files  []File    `json:"files"`
}

// File is one rule file.
type File struct {
	Name string `json:"name"` // relative, with slashes
	Text string `json:"text"`
}

// Sources returns the files as package rules loads them.
func (p *Pack) Sources() []rules.Source {
	out := make([]rules.Source, len(p.Files))
	for i, f := range p.Files {
		out[i] = rules.Source{Name: f.Name, Data: []byte(f.Text)}
	}
	return out
}

// FileNames returns a name for each file in one folder, such that the order of the
// names is that of the pack, which a folder is loaded in: their own names, behind a
// number where those do not do.
func (p *Pack) FileNames() []string {
	names := make([]string, len(p.Files))
	for i, f := range p.Files {
		names[i] = strings.ReplaceAll(f.Name, "/", "-")
		if ext := strings.ToLower(path.Ext(f.Name)); ext != ".yaml" && ext != ".yml" {
			names[i] += ".yaml" // else a folder is read without it
		}
	}
	for i := 1; i < len(names); i++ {
		if names[i-1] >= names[i] {
			digits := len(strconv.Itoa(len(names)))
			for i := range names {
				names[i] = fmt.Sprintf("%0*d-%s", digits, i+1, names[i])
			}
			break
		}
	}
	return names
}

// New makes a pack of files, naming each by the end of its path: the file itself,
// behind as many of its folders as tell it from the others.
func New(files []rules.Source, by string, now time.Time) (*Pack, error) {
	p := &Pack{Pushed: now.UTC().Truncate(time.Second), By: by}
	parts := make([][]string, len(files)) // of each path
	used := make([]int, len(files))       // how many of them, from the end
	for i, f := range files {
		if !utf8.Valid(f.Data) {
			return nil, fmt.Errorf("%s is not UTF-8", f.Name)
		}
		parts[i] = slices.DeleteFunc(strings.Split(filepath.ToSlash(filepath.Clean(f.Name)), "/"), func(s string) bool { return s == "" || s == ".." })
		used[i] = 1
	}
	for {
		same := make(map[string][]int)
		for i := range files {
			name := strings.Join(parts[i][len(parts[i])-used[i]:], "/")
			same[name] = append(same[name], i)
		}
		if len(same) == len(files) {
			break
		}
		for name, of := range same {
			if len(of) == 1 {
				continue
			}
			longer := false
			for _, i := range of {
				if used[i] < len(parts[i]) {
					used[i]++
					longer = true
				}
			}
			if !longer {
				return nil, fmt.Errorf("two rule files are called %s: name it once, or rename one", name)
			}
		}
	}
	for i, f := range files {
		p.Files = append(p.Files, File{Name: strings.Join(parts[i][len(parts[i])-used[i]:], "/"), Text: string(f.Data)})
	}
	return p, nil
}

// Encode returns the pack as the value of its key, or an error that says by how
// much it is too large.
func (p *Pack) Encode() ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(json.NewEncoder(z).Encode(p), z.Close()); err != nil {
		return nil, err
	}
	if b.Len() > schemas.MaxRulePackBytes {
		return nil, fmt.Errorf("the pack has %d bytes compressed, and NATS takes %d: leave out files", b.Len(), schemas.MaxRulePackBytes)
	}
	return b.Bytes(), nil
}

// maxUnpacked bounds a decoded pack: what package rules loads at most, and the
// escapes of JSON.
const maxUnpacked = 48 << 20

// Decode reads what Encode wrote. It bounds what it unpacks, and takes no name
// that is not a relative path.
func Decode(data []byte) (*Pack, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("not a rule pack: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(z, maxUnpacked+1))
	if err != nil {
		return nil, fmt.Errorf("not a rule pack: %w", err)
	}
	if len(text) > maxUnpacked {
		return nil, fmt.Errorf("the rule pack has more than %d bytes unpacked", maxUnpacked)
	}
	p := &Pack{}
	if err := json.Unmarshal(text, p); err != nil {
		return nil, fmt.Errorf("not a rule pack: %w", err)
	}
	if len(p.Files) == 0 {
		return nil, errors.New("the rule pack has no files")
	}
	for _, f := range p.Files {
		if !filepath.IsLocal(f.Name) {
			return nil, fmt.Errorf("the rule pack has a file called %q, which is no relative path", f.Name)
		}
	}
	return p, nil
}

// Bucket returns the bucket of the pack.
func Bucket(ctx context.Context, js jetstream.JetStream) (jetstream.KeyValue, error) {
	kv, err := js.KeyValue(ctx, schemas.BucketRules)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w (run `picket migrate`)", schemas.BucketRules, err)
	}
	return kv, nil
}
