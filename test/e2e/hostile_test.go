package e2e

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"picket/schemas"
	"picket/services/sensor/containerid/cgrouptest"
)

// Escape sequences for a terminal (a title, a cleared screen, CSI as one
// character and as one byte), bytes that are no UTF-8, characters that turn the
// direction of writing, and what means something to JSON, SQL and CSV.
const hostile = "\x1b]0;owned\x07\x1b[2J\x1b[31m\u009b1m\x9b1m\xff\xfe\xc3(\xed\xa0\x80\xf8\u202egpj.\u2028\r\n\t\x01\x7f\"'\\,;{}%s$(x)`;DROP TABLE process; --\ufffd"

// everyByte is all that a file's name can have.
func everyByte() string {
	var b []byte
	for c := 1; c < 256; c++ {
		if c != '/' {
			b = append(b, byte(c))
		}
	}
	return string(b)
}

// deep returns the path of a new folder below dir so deep that a name of 255
// bytes in it makes a path of PATH_MAX less the NUL.
func deep(t *testing.T, dir string) string {
	t.Helper()
	const longest = unix.PathMax - 1 - 255 - 1
	for n := 0; len(dir) < longest; n++ {
		part := min(longest-len(dir)-1, 255)
		if left := longest - len(dir) - 1 - part; left == 1 { // a slash with no name
			part--
		}
		name := strings.Repeat("\x1b[7m\xff", 52)[:part]
		if part == 0 {
			break
		}
		dir += "/" + name
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestHostile: what processes name as they like is stored as it is, byte by byte,
// breaks no batch, and does not steer the terminal of who looks at it.
func TestHostile(t *testing.T) {
	needRoot(t)
	c := newCluster(t)
	rule := filepath.Join(c.dir, "rules.yaml")
	if err := os.WriteFile(rule, []byte(`
- rule: Hostile
  desc: The test's own
  condition: evt.type in (execve, execveat) and proc.args contains "picket-hostile"
  output: "%proc.name %proc.exepath %proc.args %proc.cmdline %proc.cwd %container.id"
  priority: CRITICAL
`), 0o600); err != nil {
		t.Fatal(err)
	}
	c.service("enricher")
	c.service("detector", "--clickhouse.url", c.chURL, "--rules", rule)
	c.service("sink", "--clickhouse.url", c.chURL)
	instance := fmt.Sprintf("hostile-%d", os.Getpid())
	t.Cleanup(func() { _ = os.RemoveAll("/sys/fs/bpf/picket/" + instance) }) // gone already after a clean stop
	c.service("sensor", "--node", "node-1", "--state_dir", filepath.Join(c.dir, "sensor"), "--kernel.instance", instance, "--redact.enabled=false")

	// A process that has its name before the sensor runs, and makes a file then.
	dir := t.TempDir()
	seeded := exec.Command("/bin/sh", "-c", `printf '\033[2J\377) R 1\n(' > /proc/$$/comm; echo; read x; : > seeded; (: > forked)`)
	seeded.Dir = dir
	in, err := seeded.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	named, err := seeded.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := seeded.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := named.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	const comm = "\x1b[2J\xff) R 1\n("
	for _, name := range []string{"enricher", "detector", "sink", "sensor"} {
		c.start(name)
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if err := seeded.Wait(); err != nil {
		t.Fatal(err)
	}

	// Programs, by their files' paths.
	program, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	type run struct {
		path string
		argv []string // after argv[0], which is path
		env  string
		pid  int
		in   string // cgroup
	}
	id := strings.Repeat("0e", 32)
	cgroup := cgrouptest.Make(t, filepath.Join(fmt.Sprintf("picket-test-%d", os.Getpid()), "docker-"+id+".scope", "\x1b[2J\xff\x07) - \u202e0::"))
	runs := []*run{
		{path: filepath.Join(dir, "plain"), argv: []string{hostile, "", everyByte(), strings.Repeat("\xff", 4096)}, env: hostile},
		{path: filepath.Join(dir, everyByte()), env: everyByte()},
		{path: filepath.Join(deep(t, dir), strings.Repeat("\xfe", 255))},
		{path: filepath.Join(dir, "contained"), argv: []string{hostile}, in: cgroup},
	}
	for _, r := range runs {
		if err := os.WriteFile(r.path, program, 0o755); err != nil {
			t.Fatal(err)
		}
		r.argv = append(r.argv, "picket-hostile")
		cmd := exec.Command(r.path, r.argv...)
		cmd.Env, cmd.Dir = []string{"HISTFILE=" + r.env}, dir
		run := cmd.CombinedOutput
		if r.in != "" {
			run = func() ([]byte, error) { return cgrouptest.CombinedOutput(t, cmd, r.in) }
		}
		if out, err := run(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		r.pid = cmd.Process.Pid
	}
	// A socket.
	socket := filepath.Join(dir, "\x1b[2J\xff\n.sock")
	if _, err := net.Dial("unix", socket); err == nil {
		t.Fatal("a socket that is not there was connected to")
	}
	time.Sleep(500 * time.Millisecond)
	c.stop("sensor")
	c.drain()

	// stored holds a query's one answer, by bytes.
	stored := func(what, want, sql string) {
		t.Helper()
		rows := c.rows(sql)
		if len(rows) != 1 || len(rows[0]) != 1 {
			t.Errorf("%s: %d rows of %s", what, len(rows), sql)
			return
		}
		if got, err := hex.DecodeString(rows[0][0]); err != nil || string(got) != want {
			t.Errorf("%s is stored as (%d bytes)\n%q\nwant (%d bytes)\n%q", what, len(got), got, len(want), want)
		}
	}
	for _, r := range runs {
		where := fmt.Sprintf(" FROM process WHERE action = 'exec' AND process_pid = %d", r.pid)
		name := filepath.Base(r.path)
		stored("name", name[:min(15, len(name))], "SELECT hex(process_name)"+where)
		stored("path", r.path, "SELECT hex(process_executable_path)"+where)
		stored("file name", r.path, "SELECT hex(process_exec_filename)"+where)
		stored("arguments", strings.Join(r.argv, " "), "SELECT hex(process_args)"+where)
		stored("argument vector", strings.Join(append([]string{r.path}, r.argv...), "\x00"), "SELECT hex(arrayStringConcat(process_command_args, '\\0'))"+where)
		stored("variable", r.env, "SELECT hex(process_environment['HISTFILE'])"+where)
		stored("working directory", dir, "SELECT hex(process_working_directory)"+where)
		if r.path != runs[3].path {
			stored("path of the written file", r.path, fmt.Sprintf("SELECT DISTINCT hex(file_path) FROM file WHERE file_created AND process_pid = %d AND file_path = unhex('%x')", os.Getpid(), r.path))
		} else {
			stored("container", id, "SELECT hex(container_id)"+where)
		}
	}
	for _, file := range []string{"seeded", "forked"} {
		stored("name of the process that made "+file, comm, "SELECT hex(process_name) FROM file WHERE file_created AND file_path = '"+filepath.Join(dir, file)+"'")
	}
	stored("socket", socket, fmt.Sprintf("SELECT hex(network_socket_path) FROM network WHERE action = 'connect' AND process_pid = %d AND network_socket_path LIKE '%%.sock'", os.Getpid()))

	b := c.bus(schemas.ServiceAdmin)
	defer b.Close()
	dead, err := b.JS.Stream(context.Background(), schemas.StreamDead)
	if err != nil {
		t.Fatal(err)
	}
	if n := dead.CachedInfo().State.Msgs; n != 0 {
		t.Errorf("%d messages on %s", n, schemas.StreamDead)
	}

	// Alerts are JSON, in which U+FFFD stands for bytes that are no UTF-8.
	rows := c.rows("SELECT hex(finding) FROM alerts FINAL WHERE rule = 'Hostile'")
	if len(rows) != len(runs) {
		t.Errorf("%d alerts, want %d", len(rows), len(runs))
	}
	var lines []string
	for _, r := range rows {
		data, err := hex.DecodeString(r[0])
		if err != nil {
			t.Fatal(err)
		}
		var f schemas.Finding
		if err := json.Unmarshal(data, &f); err != nil || !utf8.Valid(data) || bytes.ContainsFunc(data, func(r rune) bool { return r < ' ' }) {
			t.Errorf("alert (%v): %q", err, data)
			continue
		}
		lines = append(lines, f.Evidences[0].Process.CmdLine)
	}
	for _, r := range runs {
		want := strings.Join(append([]string{r.path}, r.argv...), " ")
		want = string([]rune(want)) // each byte that is no UTF-8 becomes U+FFFD
		if !slices.Contains(lines, want) {
			t.Errorf("no alert has the command line %q; they have %q", want, lines)
		}
	}

	// What a person sees.
	for _, args := range [][]string{
		{"alerts"},
		{"query", "SELECT process_name, process_executable_path, process_args, process_command_args, process_environment FROM process WHERE process_args LIKE '%picket-hostile'"},
		{"query", "SELECT file_path, process_name FROM file WHERE file_created AND startsWith(file_path, '" + dir + "')"},
		{"query", "SELECT toUInt8(process_name) FROM file WHERE file_path = '" + filepath.Join(dir, "seeded") + "'"},
	} {
		cmd := exec.Command(filepath.Join(binaries, "picket"), append([]string{"--clickhouse", c.chURL}, args...)...)
		out, err := cmd.CombinedOutput()
		if refused := strings.Contains(args[len(args)-1], "toUInt8"); (err != nil) != refused {
			t.Errorf("picket %q: %v %s", args, err, out)
		}
		if !strings.Contains(string(out), `\x1b[2J`) {
			t.Errorf("picket %q does not show what it was about:\n%s", args, out)
		}
		for line := range strings.Lines(string(out)) {
			if i := strings.IndexFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 || !utf8.ValidString(line) {
				t.Errorf("picket %q writes %q to the terminal", args, line)
			}
		}
	}
}
