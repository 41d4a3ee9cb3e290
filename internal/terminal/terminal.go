// Package terminal keeps what others wrote from steering a terminal. Names,
// paths and arguments of processes are an attacker's: an escape sequence in one
// could clear the screen, colour over an alert or answer in the reader's name,
// and a line feed could begin a line that looks like Picket's own.
package terminal

import (
	"io"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// Text returns s with all that does not print escaped as in Go: \n, \x1b,
// \u202e; a byte that is no part of UTF-8 as \xff. It is one line.
func Text(s string) string {
	for i, r := range s {
		if !prints(r, s[i:]) {
			return string(appendText([]byte(s[:i]), s[i:]))
		}
	}
	return s
}

func prints(r rune, s string) bool {
	if r == utf8.RuneError {
		if _, n := utf8.DecodeRuneInString(s); n == 1 {
			return false
		}
	}
	return unicode.IsPrint(r)
}

func appendText(b []byte, s string) []byte {
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			const hex = "0123456789abcdef"
			b = append(b, '\\', 'x', hex[s[0]>>4], hex[s[0]&15])
		case unicode.IsPrint(r):
			b = append(b, s[:n]...)
		default:
			quoted := strconv.AppendQuoteRune(nil, r)
			b = append(b, quoted[1:len(quoted)-1]...)
		}
		s = s[n:]
	}
	return b
}

// Writer writes texts of many lines: it escapes as Text does, except for line
// feeds. Close writes what is left of a character that was begun; it does not
// close what is below. Use it from one goroutine at a time.
type Writer struct {
	w    io.Writer
	part []byte // the beginning of a character, at most 3 bytes
	buf  []byte
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write takes all of p, or returns the error of the writer below; what of p it
// has taken then is not known.
func (w *Writer) Write(p []byte) (int, error) {
	in := append(w.part, p...)
	whole := len(in)
	for i := 1; i <= min(utf8.UTFMax-1, len(in)); i++ {
		if utf8.RuneStart(in[len(in)-i]) {
			if !utf8.FullRune(in[len(in)-i:]) {
				whole -= i
			}
			break
		}
	}
	if err := w.write(string(in[:whole])); err != nil {
		return 0, err
	}
	w.part = append(w.part[:0], in[whole:]...)
	return len(p), nil
}

// Close writes what is left.
func (w *Writer) Close() error {
	err := w.write(string(w.part))
	w.part = nil
	return err
}

func (w *Writer) write(s string) error {
	w.buf = w.buf[:0]
	for begin := 0; begin < len(s); {
		end := begin
		for end < len(s) && s[end] != '\n' {
			end++
		}
		w.buf = appendText(w.buf, s[begin:end])
		if end < len(s) {
			w.buf = append(w.buf, '\n')
		}
		begin = end + 1
	}
	if len(w.buf) == 0 {
		return nil
	}
	_, err := w.w.Write(w.buf)
	return err
}
