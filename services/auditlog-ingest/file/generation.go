package file

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// headBytes is how much of a file's beginning tells it from others. Every
// record has an id of its own within the first hundreds of bytes.
const headBytes = 1024

// position is where reading goes on: the checkpoint. It names the file by
// inode and by how it begins, because an inode is used again, a name is given
// to another file, and a copy has another inode.
type position struct {
	File   *identity `json:"file"`
	Offset int64     `json:"offset"`
}

// identity names a file. It does not change once made.
type identity struct {
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	// Head is the SHA-256 of the first HeadLength bytes.
	HeadLength int       `json:"head_length"`
	Head       string    `json:"head_sha256"`
	Read       time.Time `json:"read"` // when the head was last seen there
}

func sum(head []byte) string {
	s := sha256.Sum256(head)
	return hex.EncodeToString(s[:])
}

// generation is one of the files that the log was or is written to.
type generation struct {
	path     string
	dev, ino uint64
	size     int64
	modified time.Time
	current  bool // the one that has the log's own name
}

func (g *generation) same(o *generation) bool { return g.dev == o.dev && g.ino == o.ino }

// unchanged reports whether o is the same file with the same content.
func (g *generation) unchanged(o *generation) bool {
	return g.same(o) && g.size == o.size && g.modified.Equal(o.modified)
}

// errNoFile means that a path names something else than a file.
var errNoFile = errors.New("not a regular file")

func stat(path string) (*generation, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", path, errNoFile)
	}
	return &generation{path: path, dev: st.Dev, ino: st.Ino, size: info.Size(), modified: info.ModTime()}, nil
}

// generations returns the log's files, oldest first. Rotated ones are known by
// their names: audit-….log beside audit.log, as the API server rotates, and
// audit.log.1 or audit.log-20261123, as logrotate does. Compressed ones are
// not among them.
func generations(path string) ([]*generation, error) {
	dir, base := filepath.Split(path)
	ext := filepath.Ext(base)
	stem := strings.TrimSuffix(base, ext) + "-"
	entries, err := os.ReadDir(filepath.Clean(dir + "."))
	if err != nil {
		return nil, err
	}
	var all []*generation
	for _, e := range entries {
		name := e.Name()
		rotated := strings.HasPrefix(name, stem) && strings.HasSuffix(name, ext) ||
			strings.HasPrefix(name, base+".") || strings.HasPrefix(name, base+"-")
		if name != base && (!rotated || compressed(name)) {
			continue
		}
		g, err := stat(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoFile) && name != base {
			continue
		}
		if err != nil {
			return nil, err
		}
		g.current = name == base
		all = append(all, g)
	}
	slices.SortStableFunc(all, func(a, b *generation) int { return a.compare(b) })
	return all, nil
}

func compressed(name string) bool {
	switch filepath.Ext(name) {
	case ".gz", ".bz2", ".xz", ".zst":
		return true
	}
	return false
}

// compare orders files by when they were last written: a rotated one is
// written no more. Where the clock is too coarse, names decide.
func (g *generation) compare(o *generation) int {
	if c := g.modified.Compare(o.modified); c != 0 {
		return c
	}
	if g.current != o.current {
		if o.current {
			return -1
		}
		return 1
	}
	a, errA := strconv.Atoi(strings.TrimPrefix(filepath.Ext(g.path), "."))
	b, errB := strconv.Atoi(strings.TrimPrefix(filepath.Ext(o.path), "."))
	if errA == nil && errB == nil {
		return cmp.Compare(b, a) // audit.log.2 is older than audit.log.1
	}
	return strings.Compare(g.path, o.path)
}

// after returns the files that follow g.
func after(g *generation, all []*generation) []*generation {
	return slices.DeleteFunc(slices.Clone(all), func(o *generation) bool { return g.same(o) || o.compare(g) < 0 })
}

// find returns the file in which p lies: the same inode, or a copy of it, with
// the same beginning.
func (p position) find(all []*generation) (*generation, error) {
	var copied *generation
	for _, g := range all {
		if g.size < p.Offset || g.size < int64(p.File.HeadLength) {
			continue
		}
		inode := g.dev == p.File.Device && g.ino == p.File.Inode
		if !inode && (copied != nil || p.File.HeadLength == 0) {
			continue
		}
		same, err := p.begins(g.path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // just renamed or removed
		case err != nil:
			return nil, err
		case !same:
		case inode:
			return g, nil
		default:
			copied = g
		}
	}
	return copied, nil
}

// begins reports whether the file begins as the one that p is in.
func (p position) begins(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	head := make([]byte, p.File.HeadLength)
	if _, err := io.ReadFull(f, head); err != nil {
		return false, nil
	}
	return sum(head) == p.File.Head, nil
}

// lastLine returns where the last line that has an end ends.
func lastLine(f *os.File, size int64) (int64, error) {
	buf := make([]byte, 64<<10)
	for end := size; end > 0; {
		n := min(int64(len(buf)), end)
		if _, err := f.ReadAt(buf[:n], end-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return end - n + int64(i) + 1, nil
		}
		end -= n
	}
	return 0, nil
}
