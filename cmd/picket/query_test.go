package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestScreen: what is for a program is written as it is, but not to a terminal.
func TestScreen(t *testing.T) {
	const hostile = "a\x1b[2J\xff\nb\n"
	write := func(w io.Writer) error {
		_, err := io.WriteString(w, hostile)
		return err
	}
	name := filepath.Join(t.TempDir(), "file")
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := screen(file, false, write); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(name); string(got) != hostile {
		t.Errorf("to a file: %q %v", got, err)
	}

	keyboard, terminal := openTerminal(t)
	if err := screen(terminal, false, write); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	m, err := keyboard.Read(got)
	if want := `a\x1b[2J\xff` + "\r\nb\r\n"; err != nil || string(got[:m]) != want {
		t.Errorf("to a terminal: %q %v, want %q", got[:m], err, want)
	}
}

// openTerminal returns a terminal and what stands at its other end.
func openTerminal(t *testing.T) (keyboard, terminal *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = terminal.Close() })
	return keyboard, terminal
}
