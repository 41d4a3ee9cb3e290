package file

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Bounds of following.
const (
	// pollEvery is how often a file is looked at for more.
	pollEvery = 50 * time.Millisecond
	// lastLineWait is how long a rotated file is watched for the rest of a
	// last line that has no end yet.
	lastLineWait = 2 * time.Second
)

// errCut means that the file has been cut under the reader, or written anew:
// what was read of it is no more there.
var errCut = errors.New("file was truncated")

// tail reads one file as it grows.
type tail struct {
	ctx  context.Context
	file *os.File
	g    *generation
	at   int64  // of the next byte to read
	head []byte // how the file begins, as far as it is known
	id   *identity
	// moveOn reports whether the writer writes to another file by now.
	moveOn func() (bool, error)

	// copies returns the files that copies of this one may be in, because they
	// were not there when it was chosen; nil for one that is written no more.
	copies func() ([]*generation, error)

	begun bool      // something was read
	moved bool      // the writer has moved on
	grown time.Time // when the file last had more
	last  byte      // the last byte read
}

// openTail opens a file at an offset.
func openTail(ctx context.Context, g *generation, at int64) (*tail, error) {
	f, err := os.Open(g.path)
	if err != nil {
		return nil, err
	}
	t := &tail{ctx: ctx, file: f, g: g, at: at, grown: time.Now(), last: '\n'}
	if err := t.look(); err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

// look compares the file's beginning with what is known of it, and learns more
// of it while it is short. Because it is called after each read, what was read
// is from the file whose beginning is known: one that is cut and written anew
// begins with another record.
func (t *tail) look() error {
	head := make([]byte, headBytes)
	n, err := t.file.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return fmt.Errorf("audit log: %w", err)
	}
	head = head[:n]
	if !bytes.HasPrefix(head, t.head) {
		return errCut
	}
	if t.id == nil || len(head) > len(t.head) {
		t.head = head
		t.id = &identity{Device: t.g.dev, Inode: t.g.ino, HeadLength: n, Head: sum(head), Read: time.Now()}
	}
	return nil
}

// Read implements io.Reader. At the file's end it waits for more. io.EOF means
// that the writer has moved on to another file and this one is at its end;
// errCut that it was truncated.
func (t *tail) Read(p []byte) (int, error) {
	for {
		n, err := t.file.ReadAt(p, t.at)
		if err != nil && err != io.EOF {
			return 0, fmt.Errorf("audit log: %w", err)
		}
		if n > 0 {
			if err := t.look(); err != nil {
				return 0, err
			}
			if t.at < int64(len(t.head)) && !bytes.HasPrefix(p[:n], t.head[t.at:min(t.at+int64(n), int64(len(t.head)))]) {
				return 0, errCut
			}
			if !t.begun && t.copies != nil {
				if copies, err := t.copies(); err != nil || len(copies) > 0 {
					return 0, cmp.Or(err, errCut)
				}
			}
			t.begun = true
			t.at += int64(n)
			t.last, t.grown = p[n-1], time.Now()
			return n, nil
		}
		// One that was cut and written anew can be as long as before.
		if err := t.look(); err != nil {
			return 0, err
		}
		info, err := t.file.Stat()
		if err != nil {
			return 0, fmt.Errorf("audit log: %w", err)
		}
		if info.Size() < t.at {
			return 0, errCut
		}
		if t.moved && (t.last == '\n' || time.Since(t.grown) > lastLineWait) {
			return 0, io.EOF
		}
		if !t.moved {
			if t.moved, err = t.moveOn(); err != nil {
				return 0, err
			}
			if t.moved {
				continue // the writer may have added something before it moved
			}
		}
		select {
		case <-t.ctx.Done():
			return 0, t.ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

func (t *tail) close() { t.file.Close() }
