package simulate

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"picket/internal/rules"
	pack "picket/rules"
)

// childMark has the test binary run behaviours, as the user that it is.
const childMark = "SIMULATE_TEST_CHILD"

// TestMain is also what behaviours run in namespaces: this executable with the
// arguments of `picket simulate inner`.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "simulate" && os.Args[2] == Inner {
		if err := RunInner(os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(childMark) != "" {
		if err := Run(context.Background(), os.Stdout, nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// snapshot lists the files that a behaviour could have left: all in the folder
// for temporary files and in the home folder, which are the test's, and what is
// named like a behaviour's where other programs put files too.
func snapshot(t *testing.T) map[string]bool {
	t.Helper()
	files := map[string]bool{}
	own := []string{os.TempDir(), os.Getenv("HOME")}
	for _, dir := range append(own, "/tmp", "/dev/shm", "/etc", "/etc/cron.d", "/usr/local/bin") {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if slices.Contains(own, dir) || strings.Contains(e.Name(), "picket-simulate-") || e.Name() == "picket-simulation" || e.Name() == "ld.so.preload" {
				files[filepath.Join(dir, e.Name())] = true
			}
		}
	}
	return files
}

// noneLeft checks that there is no more than before. Another simulation on this
// machine has its files for a moment.
func noneLeft(t *testing.T, name string, before map[string]bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left := snapshot(t)
		maps.DeleteFunc(left, func(path string, _ bool) bool { return before[path] })
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s left behind: %v", name, slices.Sorted(maps.Keys(left)))
			return
		}
	}
}

func TestAll(t *testing.T) {
	set, _, err := rules.Load(pack.Default(), rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	name, technique := regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`), regexp.MustCompile(`^T\d{4}(\.\d{3})?$`)
	for _, b := range All() {
		if names[b.Name] || !name.MatchString(b.Name) || b.Name == Inner {
			t.Errorf("name %q is taken, or not one for a command line", b.Name)
		}
		names[b.Name] = true
		if b.What == "" || strings.ContainsAny(b.What, "\n") || strings.HasSuffix(b.What, ".") {
			t.Errorf("%s: description %q", b.Name, b.What)
		}
		if !technique.MatchString(b.Technique) {
			t.Errorf("%s: technique %q", b.Name, b.Technique)
		}
		if !slices.ContainsFunc(set.Rules(), func(r *rules.Rule) bool { return r.Name == b.Rule && r.Enabled }) {
			t.Errorf("%s: the default pack has no rule %q", b.Name, b.Rule)
		}
		if b.run == nil {
			t.Errorf("%s does nothing", b.Name)
		}
	}
	if len(names) == 0 {
		t.Error("no behaviour")
	}
}

// Each behaviour works and leaves no file behind. Without root those that need
// it are left out.
func TestEachCleansUp(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	for _, b := range All() {
		before := snapshot(t)
		var out bytes.Buffer
		if err := Run(t.Context(), &out, []string{b.Name}); err != nil {
			t.Errorf("%v", err)
		}
		noneLeft(t, b.Name, before)
		line := fmt.Sprintf("simulating %-22s %s (%s)\n", b.Name, b.What, b.Technique)
		if b.Root && os.Geteuid() != 0 {
			line = fmt.Sprintf("left out   %-22s needs root\n", b.Name)
		}
		if out.String() != line {
			t.Errorf("%s printed %q, want %q", b.Name, &out, line)
		}
	}
}

// What says that it works without root does, and the rest says why not.
func TestWithoutRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED (not root): TestEachCleansUp has done it")
	}
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	// The test binary, and a folder of its own for the user nobody.
	dir, err := os.MkdirTemp("/tmp", "picket-simulation-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	temp, binary := filepath.Join(dir, "tmp"), filepath.Join(dir, "child")
	data, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Chmod(dir, 0o755), os.Mkdir(temp, 0o700), os.Chown(temp, 65534, 65534), os.WriteFile(binary, data, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	before := snapshot(t)
	c := exec.Command(binary)
	c.Dir = temp
	c.Env = append(os.Environ(), childMark+"=1", "TMPDIR="+temp, "HOME="+temp)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, Pdeathsig: syscall.SIGKILL}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(All()) {
		t.Fatalf("%d lines, want one for each of %d behaviours:\n%s", len(lines), len(All()), out)
	}
	for i, b := range All() {
		word := "simulating "
		if b.Root {
			word = "left out   "
		}
		if !strings.HasPrefix(lines[i], word+b.Name+" ") {
			t.Errorf("%q, want %s%s", lines[i], word, b.Name)
		}
	}
	noneLeft(t, "a simulation without root", before)
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// A host without cron has no folder for its jobs afterwards; one with it keeps
// the others.
func TestCronFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cron.d")
	job, other := filepath.Join(dir, "picket-simulation"), filepath.Join(dir, "other")
	if err := cron(job)(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("a folder that did not exist: %v", err)
	}
	for _, err := range []error{os.Mkdir(dir, 0o755), os.WriteFile(other, nil, 0o644), cron(job)(t.Context(), nil)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 || left[0].Name() != "other" {
		t.Errorf("left %v: %v", left, err)
	}
}

// A file that exists is opened and stays as it is; one that does not is gone
// afterwards.
func TestLeavesFilesAsTheyAre(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ld.so.preload")
	if err := touchOpen(path)(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("a file that did not exist: %v", err)
	}
	if err := os.WriteFile(path, []byte("/lib/mine.so\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	if err := touchOpen(path)(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(data) != "/lib/mine.so\n" || info.Mode() != fs.FileMode(0o640) || !info.ModTime().Equal(old) {
		t.Errorf("%q, %v, %v", data, info.Mode(), info.ModTime())
	}
}

// An unknown name is refused before anything is done.
func TestUnknownName(t *testing.T) {
	var out bytes.Buffer
	err := Run(t.Context(), &out, []string{"miner", "minor"})
	if err == nil || err.Error() != `there is no behaviour "minor" (picket simulate --list shows them)` {
		t.Errorf("%v", err)
	}
	if out.Len() > 0 {
		t.Errorf("%q was done", &out)
	}
	if err := RunInner("nothing"); err == nil || !strings.Contains(err.Error(), `"nothing"`) {
		t.Errorf("%v", err)
	}
}

// A simulation that is cancelled ends soon, says which it was, and cleans up.
func TestCancelled(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	before := snapshot(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, name := range []string{"reverse-shell", "fileless-exec", "miner", "tmp-exec", "authorized-keys"} {
		start := time.Now()
		err := Run(ctx, &bytes.Buffer{}, []string{name})
		if err == nil || !strings.HasPrefix(err.Error(), "simulation "+name+": ") {
			t.Errorf("%s: %v", name, err)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("%s took %v", name, d)
		}
	}
	noneLeft(t, "a cancelled simulation", before)
}
