package file

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"picket/internal/fault"
	"picket/schemas"
	"picket/services/auditlog-ingest/record"
	"picket/services/auditlog-ingest/source"
)

// keepMore is the remedy for files that go before they are read.
const keepMore = "keep more rotated files, uncompressed (--audit-log-maxbackup, --audit-log-compress=false)"

// File is the source of one log file and the files it is rotated to. Every
// line is read once: a rotated file is read to its end before the next, a
// truncated one goes on in its copy, and after a restart reading goes on where
// the checkpoint says.
type File struct {
	cfg  Config
	log  *slog.Logger
	sink source.Sink
	open atomic.Bool
	// waited says that it was logged that the file is not there.
	waited bool
	// listed are the log's files as they were listed last: those among which the
	// one that is read now was chosen.
	listed []*generation
}

// New returns the source; it opens nothing yet.
func New(cfg Config, log *slog.Logger) *File { return &File{cfg: cfg, log: log} }

// Name implements source.Source.
func (f *File) Name() string { return f.cfg.Name }

// Kind implements source.Source.
func (f *File) Kind() string { return "file" }

// Ready implements source.Source.
func (f *File) Ready() error {
	if !f.open.Load() {
		return fmt.Errorf("waiting for %s", f.cfg.Path)
	}
	return nil
}

// Run implements source.Source.
func (f *File) Run(ctx context.Context, sink source.Sink) error {
	f.sink = sink
	g, at, err := f.begin(ctx)
	for err == nil {
		g, at, err = f.follow(ctx, g, at)
	}
	f.open.Store(false)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// listings bounds how often the log's files are listed to see them stand still.
const listings = 20

// list returns the log's files, oldest first. Files that are renamed while they
// are listed can be missing, or be taken for one another: two listings in a row
// that agree are of one moment.
func (f *File) list() ([]*generation, error) {
	var before []*generation
	for i := range listings {
		all, err := generations(f.cfg.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("file.path: %w", err)
		}
		f.listed = all
		if i > 0 && slices.EqualFunc(all, before, func(a, b *generation) bool { return a.path == b.path && a.same(b) }) {
			break
		}
		before = all
	}
	return slices.Clone(f.listed), nil // the caller may change its own
}

// wait returns the first file that choose finds among the log's files, looking
// until there is one.
func (f *File) wait(ctx context.Context, choose func([]*generation) *generation) (*generation, error) {
	for {
		all, err := f.list()
		if err != nil {
			return nil, err
		}
		if g := choose(all); g != nil {
			f.waited = false
			return g, nil
		}
		if !f.waited {
			f.waited = true
			f.log.Info("waiting for the audit log file", "source", f.Name(), "path", f.cfg.Path)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

func current(all []*generation) *generation {
	if i := slices.IndexFunc(all, func(g *generation) bool { return g.current }); i >= 0 {
		return all[i]
	}
	return nil
}

func oldest(all []*generation) *generation {
	if len(all) == 0 {
		return nil
	}
	return all[0]
}

// begin returns where to start reading.
func (f *File) begin(ctx context.Context) (*generation, int64, error) {
	var p position
	known, err := f.sink.Checkpoint(&p)
	if err != nil {
		return nil, 0, err
	}
	all, err := f.list()
	if err != nil {
		return nil, 0, err
	}
	if !known || p.File == nil {
		g := current(all)
		if g != nil && f.cfg.Start == StartEnd {
			return f.beginAtEnd(ctx, g)
		}
		if g == nil {
			g, err = f.wait(ctx, current)
		}
		return g, 0, err
	}
	g, err := p.find(all)
	if err != nil {
		return nil, 0, fmt.Errorf("file.path: %w", err)
	}
	if g != nil {
		return g, p.Offset, nil
	}
	// What was left of that file is lost. All that was written since is in
	// files that were written after we last read.
	f.sink.Gap("the audit log file of the checkpoint is gone; what had not been read of it is lost",
		"path", f.cfg.Path, "last_read", p.File.Read, "offset", p.Offset, "remedy", keepMore)
	g, err = f.wait(ctx, func(all []*generation) *generation {
		return oldest(slices.DeleteFunc(all, func(g *generation) bool { return !g.current && g.modified.Before(p.File.Read) }))
	})
	return g, 0, err
}

// beginAtEnd returns where the last whole line of a file ends, and writes that
// down: what comes while we are away must not count as old at the next start.
func (f *File) beginAtEnd(ctx context.Context, g *generation) (*generation, int64, error) {
	file, err := os.Open(g.path)
	if err != nil {
		return nil, 0, fmt.Errorf("file.path: %w", err)
	}
	defer file.Close()
	at, err := lastLine(file, g.size)
	if err != nil {
		return nil, 0, fmt.Errorf("file.path: %w", err)
	}
	t, err := openTail(ctx, g, at)
	if err != nil {
		return nil, 0, fmt.Errorf("file.path: %w", err)
	}
	defer t.close()
	return g, at, f.sink.Mark(ctx, position{t.id, at})
}

// follow reads a file from an offset to its end, and returns where to go on.
func (f *File) follow(ctx context.Context, g *generation, at int64) (*generation, int64, error) {
	// What is newer than the one that is written can be a copy of it already.
	before := slices.DeleteFunc(slices.Clone(f.listed), func(o *generation) bool { return o.compare(g) > 0 })
	t, err := openTail(ctx, g, at)
	if errors.Is(err, fs.ErrNotExist) {
		return f.missed(ctx, g, at)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("file.path: %w", err)
	}
	defer t.close()
	t.moveOn = func() (bool, error) {
		if now, err := stat(f.cfg.Path); err == nil && now.same(g) {
			return false, nil // the usual case
		}
		next, err := f.following(t)
		return slices.ContainsFunc(next, func(g *generation) bool { return g.size > 0 }), err
	}
	if g.current {
		// Between the choice and the first read the file can have been copied, cut
		// and written anew, more than once: what was in it then is in files that
		// were not there before.
		t.copies = func() ([]*generation, error) {
			all, err := f.list()
			return slices.DeleteFunc(all, func(o *generation) bool {
				return o.current || o.same(g) || o.size == 0 || slices.ContainsFunc(before, o.unchanged)
			}), err
		}
	}
	f.open.Store(true)
	f.log.Info("following audit log file", "source", f.Name(), "path", g.path, "offset", at)
	at, err = f.lines(ctx, t)
	switch {
	case errors.Is(err, errCut):
		return f.recover(ctx, t, at)
	case !errors.Is(err, io.EOF):
		return nil, 0, err
	}
	next, err := f.following(t)
	if err != nil {
		return nil, 0, err
	}
	return oldest(next), 0, nil // there is one: that is how the file ended
}

// missed returns where to go on with a file that was renamed or removed after
// it was listed and before it was opened: under its new name, or behind it.
func (f *File) missed(ctx context.Context, g *generation, at int64) (*generation, int64, error) {
	gone := time.Now().Add(lastLineWait) // one listing can miss a name that changes
	next, err := f.wait(ctx, func(all []*generation) *generation {
		if i := slices.IndexFunc(all, g.same); i >= 0 {
			return all[i]
		}
		if time.Now().Before(gone) {
			return nil
		}
		return oldest(after(g, all))
	})
	if err != nil {
		return nil, 0, err
	}
	if next.same(g) {
		return next, at, nil
	}
	f.sink.Gap("a rotated audit log file was removed or compressed before it was read", "path", g.path, "offset", at, "remedy", keepMore)
	return next, 0, nil
}

// following returns the files that follow the one that t reads, oldest first.
func (f *File) following(t *tail) ([]*generation, error) {
	info, err := t.file.Stat()
	if err != nil {
		return nil, fmt.Errorf("file.path: %w", err)
	}
	all, err := f.list()
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(all, t.g.same); i >= 0 {
		t.g = all[i] // it may have been renamed
	} else {
		t.g.current = false
	}
	t.g.modified = info.ModTime()
	return after(t.g, all), nil
}

// recover finds the rest of a file that was truncated: who truncates a log
// copies it before.
func (f *File) recover(ctx context.Context, t *tail, at int64) (*generation, int64, error) {
	if t.copies != nil && !t.begun { // nothing was read of it
		copies, err := t.copies()
		if err != nil {
			return nil, 0, err
		}
		if g := oldest(copies); g != nil {
			return g, min(at, g.size), nil
		}
	}
	all, err := f.list()
	if err != nil {
		return nil, 0, err
	}
	if t.id.HeadLength > 0 && t.begun {
		g, err := position{t.id, at}.find(all)
		if err != nil {
			return nil, 0, fmt.Errorf("file.path: %w", err)
		}
		if g != nil {
			return g, at, nil
		}
		if t.at > at {
			f.sink.Gap("the audit log file was truncated without a copy before it was read", "path", t.g.path, "offset", at)
		} else {
			f.log.Warn("the audit log file was truncated and there is no copy; what was written to it in between is lost, if anything was", "source", f.Name(), "path", t.g.path, "offset", at)
		}
	}
	g, err := f.wait(ctx, current)
	return g, 0, err
}

// lines takes the lines of a file until it ends (io.EOF, errCut, ctx's error)
// and returns the offset behind the last line taken.
func (f *File) lines(ctx context.Context, t *tail) (int64, error) {
	in := bufio.NewReaderSize(t, record.MaxBytes+1)
	at := t.at
	for {
		at += zeroes(in)
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			n, err := f.long(ctx, t, in, at, bytes.Clone(line))
			at += n
			if err != nil {
				return at, err
			}
			continue
		}
		// At the end of a file that is written no more a line needs no end.
		if err != nil && !errors.Is(err, io.EOF) {
			return at, err
		}
		next := at + int64(len(line))
		if text := bytes.TrimSpace(line); len(text) > 0 {
			r := source.Record{Item: record.Item{Text: text}, From: t.g.path, At: at, Checkpoint: position{t.id, next}}
			if err := f.sink.Put(ctx, r, nil); err != nil {
				return at, err
			}
		}
		at = next
		if err != nil {
			return at, err
		}
	}
}

// zeroes moves over bytes that are zero: a writer that keeps its offset while
// its file is truncated leaves a hole. It returns their number.
func zeroes(in *bufio.Reader) (n int64) {
	for {
		if next, err := in.Peek(1); err != nil || next[0] != 0 {
			return n // the error comes again with the next read
		}
		have, _ := in.Peek(in.Buffered())
		zero, _ := in.Discard(len(have) - len(bytes.TrimLeft(have, "\x00")))
		n += int64(zero)
	}
}

// long takes a line that is too large to be kept, of which prefix is the
// beginning, and returns the length of what it has taken.
func (f *File) long(ctx context.Context, t *tail, in *bufio.Reader, at int64, prefix []byte) (int64, error) {
	rest := &restOfLine{in: in}
	r := source.Record{From: t.g.path, At: at}
	var cause error
	r.Trimmed, cause = record.Trim(record.Prefixed(prefix, rest))
	behind := rest.skip()
	if rest.err != nil && !errors.Is(rest.err, io.EOF) {
		return 0, rest.err // the line is not all there
	}
	length := int64(len(prefix)) + rest.n
	r.Checkpoint = position{t.id, at + length}
	if cause == nil && behind {
		cause = fmt.Errorf("%w: text after the record", record.ErrSyntax)
	}
	var err error
	if cause == nil {
		err = f.sink.Put(ctx, r, nil)
	} else {
		r.Text, r.Trimmed = prefix[:schemas.MaxDeadBytes], nil
		err = f.sink.Refuse(ctx, r, length, fault.Permanent(record.ReasonSyntax, cause), nil)
	}
	if err != nil {
		return 0, err
	}
	return length, rest.err
}

// restOfLine reads up to the end of a line, which is io.EOF to its reader.
type restOfLine struct {
	in   *bufio.Reader
	n    int64 // bytes read, the line's end included
	done bool
	err  error // of in: the line has no end, or not yet
}

// ReadByte implements io.ByteReader.
func (r *restOfLine) ReadByte() (byte, error) {
	if r.done || r.err != nil {
		return 0, io.EOF
	}
	c, err := r.in.ReadByte()
	if err != nil {
		r.err = err
		return 0, io.EOF
	}
	r.n++
	if c == '\n' {
		r.done = true
		return 0, io.EOF
	}
	return c, nil
}

// skip moves to the line's end and reports whether there was more than white
// space.
func (r *restOfLine) skip() (more bool) {
	for {
		c, err := r.ReadByte()
		if err != nil {
			return more
		}
		more = more || c > ' '
	}
}
