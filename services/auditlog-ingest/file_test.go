package auditlogingest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"picket/internal/bus"
	"picket/schemas"
)

// auditLine is a record with the given id and size of request object.
func auditLine(auditID string, size int) []byte {
	return fmt.Appendf(nil, `{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Request","auditID":%q,"stage":"ResponseComplete","requestURI":"/api/v1/namespaces/shop/configmaps","verb":"create","user":{"username":"alice","groups":["system:authenticated"]},"sourceIPs":["192.0.2.7"],"userAgent":"test/1","objectRef":{"resource":"configmaps","namespace":"shop","name":"c","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":201},"requestObject":{"kind":"ConfigMap","apiVersion":"v1","data":{"x":%q}},"requestReceivedTimestamp":"2026-11-23T00:38:28.919544Z","stageTimestamp":"2026-11-23T00:38:28.922412Z","annotations":{"authorization.k8s.io/decision":"allow","authorization.k8s.io/reason":""}}`,
		auditID, strings.Repeat("x", size))
}

// logWriter writes an audit log as an API server and those who rotate it do.
type logWriter struct {
	t    testing.TB
	path string
	f    *os.File
	n    int // records written
	rnd  *rand.Rand
	cuts int
}

func newLogWriter(t testing.TB, path string, seed uint64) *logWriter {
	w := &logWriter{t: t, path: path, rnd: rand.New(rand.NewPCG(seed, 1))}
	w.open()
	t.Cleanup(func() { w.f.Close() })
	return w
}

func (w *logWriter) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *logWriter) open() {
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	w.check(err)
	w.f = f
}

func (w *logWriter) id(n int) string { return fmt.Sprintf("event-%06d", n) }

// write appends records; some in two parts, with a pause or a rotation by
// rename between them.
func (w *logWriter) write(n int, between func()) {
	for range n {
		line := append(auditLine(w.id(w.n), w.rnd.IntN(3000)), '\n')
		w.n++
		if between != nil && w.rnd.IntN(10) == 0 {
			at := w.rnd.IntN(len(line))
			_, err := w.f.Write(line[:at])
			w.check(err)
			between()
			line = line[at:]
		}
		_, err := w.f.Write(line)
		w.check(err)
	}
}

// rename rotates as the API server does, or as logrotate does with create; the
// old file is still open, for a rest of a line.
func (w *logWriter) rename() {
	w.cuts++
	to := strings.TrimSuffix(w.path, ".log") + fmt.Sprintf("-2026-11-23T00-00-%02d.%03d.log", w.cuts/1000, w.cuts%1000)
	w.check(os.Rename(w.path, to))
}

// copyTruncate rotates as logrotate does with copytruncate.
func (w *logWriter) copyTruncate() {
	for i := 50; i > 0; i-- {
		from := fmt.Sprintf("%s.%d", w.path, i)
		if _, err := os.Stat(from); err == nil {
			w.check(os.Rename(from, fmt.Sprintf("%s.%d", w.path, i+1)))
		}
	}
	data, err := os.ReadFile(w.path)
	w.check(err)
	w.check(os.WriteFile(w.path+".1", data, 0o600))
	w.check(os.Truncate(w.path, 0))
}

func fileConfig(t testing.TB, url string) Config {
	cfg := testConfig(t, url)
	cfg.File.Path = filepath.Join(t.TempDir(), "audit.log")
	return cfg
}

// exactly waits until the records 0 to n-1 are published, each once, in order
// if inOrder.
func exactly(t testing.TB, b *bus.Bus, w *logWriter, inOrder bool) {
	t.Helper()
	var got []published
	eventually(t, "published", func() string {
		if got = readRaw(t, b); len(got) < w.n {
			return fmt.Sprintf("%d of %d events, missing%s", len(got), w.n, missing(w, got))
		}
		return ""
	})
	seen := map[string]int{}
	for i, p := range got {
		seen[p.auditID]++
		if inOrder && p.auditID != w.id(i) {
			t.Fatalf("event %d is %s", i, p.auditID)
		}
	}
	for i := range w.n {
		if seen[w.id(i)] != 1 {
			t.Errorf("%s was published %d times", w.id(i), seen[w.id(i)])
		}
	}
	if len(seen) != w.n {
		t.Errorf("%d different events, wrote %d", len(seen), w.n)
	}
	if l := letters(t, b); len(l) != 0 {
		t.Errorf("%d dead letters, the first: %s %s", len(l), l[0].Header.Get(schemas.HeaderReason), l[0].Data)
	}
}

// missing lists the records that are not among those published, as ranges.
func missing(w *logWriter, got []published) string {
	seen := map[string]bool{}
	for _, p := range got {
		seen[p.auditID] = true
	}
	var b strings.Builder
	for i, from := 0, -1; i <= w.n; i++ {
		switch gone := i < w.n && !seen[w.id(i)]; {
		case gone && from < 0:
			from = i
		case !gone && from >= 0:
			fmt.Fprintf(&b, " %d-%d", from, i-1)
			from = -1
		}
	}
	return b.String()
}

func TestFileRename(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := fileConfig(t, url)
	start(t, cfg)
	time.Sleep(100 * time.Millisecond) // it waits for the file
	w := newLogWriter(t, cfg.File.Path, 1)
	for range 8 {
		w.write(60, func() {
			if w.rnd.IntN(2) == 0 {
				time.Sleep(time.Duration(w.rnd.IntN(60)) * time.Millisecond)
			}
		})
		// The rest of a line comes after the rename.
		line := append(auditLine(w.id(w.n), 500), '\n')
		w.n++
		_, err := w.f.Write(line[:300])
		w.check(err)
		w.rename()
		time.Sleep(time.Duration(w.rnd.IntN(100)) * time.Millisecond)
		_, err = w.f.Write(line[300:])
		w.check(err)
		w.f.Close()
		w.open()
	}
	w.write(20, nil)
	exactly(t, connect(t, url), w, true)
}

func TestFileManyRotationsWhileStopped(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := fileConfig(t, url)
	w := newLogWriter(t, cfg.File.Path, 2)
	w.write(10, nil)
	r := start(t, cfg)
	b := connect(t, url)
	exactly(t, b, w, true)
	r.stopped(t)
	for range 20 { // faster than the clock of the file system
		w.write(5, nil)
		w.f.Close()
		w.rename()
		w.open()
	}
	w.write(5, nil)
	start(t, cfg)
	exactly(t, b, w, true)
}

func TestFileCopyTruncate(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := fileConfig(t, url)
	w := newLogWriter(t, cfg.File.Path, 3)
	r := start(t, cfg)
	b := connect(t, url)
	for i := range 12 {
		w.write(40, nil)
		if i%3 == 0 { // give it time to read some
			time.Sleep(70 * time.Millisecond)
		}
		w.copyTruncate()
		if i%2 == 0 { // at once as long as before, or left empty for a while
			time.Sleep(70 * time.Millisecond)
		}
		if i == 7 { // and while nobody looks
			r.stopped(t)
			w.write(30, nil)
			w.copyTruncate()
			w.write(30, nil)
			w.copyTruncate()
			w.write(30, nil)
			r = start(t, cfg)
		}
	}
	w.write(10, nil)
	exactly(t, b, w, true)
}

// TestFileHole writes through a handle that keeps its offset over a
// truncation, as the API server's does: the file then begins with a hole.
func TestFileHole(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := fileConfig(t, url)
	w := newLogWriter(t, cfg.File.Path, 4)
	w.f.Close()
	f, err := os.OpenFile(cfg.File.Path, os.O_WRONLY, 0o600)
	w.check(err)
	w.f = f
	start(t, cfg)
	b := connect(t, url)
	w.write(400, nil)
	exactly(t, b, w, true)
	w.copyTruncate()
	time.Sleep(200 * time.Millisecond)
	w.write(50, nil)
	exactly(t, b, w, true)
}

// TestFileTruncated truncates the file without a copy: what is written then is
// read; that the half of a line went with it is a gap.
func TestFileTruncated(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := fileConfig(t, url)
	w := newLogWriter(t, cfg.File.Path, 12)
	start(t, cfg)
	b := connect(t, url)
	for i := range 2 {
		w.write(20, nil)
		exactly(t, b, w, true)
		if i == 1 {
			_, err := w.f.Write(auditLine("lost", 10)[:100])
			w.check(err)
			time.Sleep(200 * time.Millisecond) // it reads that, and waits for the rest
		}
		w.check(os.Truncate(cfg.File.Path, 0))
		time.Sleep(200 * time.Millisecond)
	}
	w.write(20, nil)
	exactly(t, b, w, true)
	eventually(t, "loss report", func() string {
		if n := healthTotal(t, b, "loss", schemas.LossSourceGap); n != 1 {
			return fmt.Sprintf("%d gaps", n)
		}
		return ""
	})
}

// TestCheckpointDamaged: an ingester that does not know where it was says so
// instead of beginning anew.
func TestCheckpointDamaged(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := fileConfig(t, url)
	path := filepath.Join(cfg.StateDir, "checkpoint-file.json")
	if err := os.WriteFile(path, []byte(`{"number":`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := Run(ctx, cfg); err == nil || !strings.Contains(err.Error(), path+" is damaged (remove it to start anew)") {
		t.Errorf("error %v", err)
	}
}

func TestFileStart(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := fileConfig(t, url)
	cfg.File.Start = "end"
	w := newLogWriter(t, cfg.File.Path, 5)
	_, err := w.f.Write(append(auditLine("old", 10), '\n'))
	w.check(err)
	_, err = w.f.Write(auditLine("half", 10)[:100])
	w.check(err)
	r := start(t, cfg)
	eventually(t, "checkpoint", func() string {
		if _, err := os.Stat(filepath.Join(cfg.StateDir, "checkpoint-file.json")); err != nil {
			return err.Error()
		}
		return ""
	})
	r.stopped(t)
	_, err = w.f.Write(append(auditLine("half", 10)[100:], '\n'))
	w.check(err)
	b := connect(t, url)
	start(t, cfg)
	eventually(t, "published", func() string {
		if got := readRaw(t, b); len(got) != 1 || got[0].auditID != "half" {
			return fmt.Sprint(got)
		}
		return ""
	})
}

func TestFileGone(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := fileConfig(t, url)
	w := newLogWriter(t, cfg.File.Path, 6)
	w.write(10, nil)
	r := start(t, cfg)
	b := connect(t, url)
	exactly(t, b, w, true)
	r.stopped(t)
	w.write(10, nil) // will be lost
	w.f.Close()
	w.check(os.Remove(cfg.File.Path))
	time.Sleep(10 * time.Millisecond)
	w.open()
	w.n = 10
	w.write(10, nil)
	start(t, cfg)
	exactly(t, b, w, true)
	eventually(t, "loss report", func() string {
		if n := healthTotal(t, b, "loss", schemas.LossSourceGap); n != 1 {
			return fmt.Sprint(n)
		}
		return ""
	})
}

func TestFileLongLines(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := fileConfig(t, url)
	w := newLogWriter(t, cfg.File.Path, 7)
	start(t, cfg)
	b := connect(t, url)
	lines := [][]byte{
		auditLine("a", 100),
		auditLine("trimmed", 20<<20),
		auditLine("b", 100),
		bytes.Repeat([]byte("garbage "), 100<<10),
		auditLine("c", 100),
		append(auditLine("trailing", 1<<20), " x"...),
		auditLine("d", 100),
		[]byte("short garbage"), []byte(""), []byte("   "),
		auditLine("e", 100)[:5000/50],
		auditLine("f", 100),
	}
	for _, l := range lines {
		_, err := w.f.Write(l[:len(l)/2])
		w.check(err)
		time.Sleep(10 * time.Millisecond)
		_, err = w.f.Write(append(l[len(l)/2:], '\n'))
		w.check(err)
	}
	eventually(t, "published", func() string {
		var ids []string
		for _, p := range readRaw(t, b) {
			ids = append(ids, p.auditID)
			if p.trimmed != (p.auditID == "trimmed") {
				t.Errorf("%s: trimmed %v", p.auditID, p.trimmed)
			}
		}
		if got := strings.Join(ids, " "); got != "a trimmed b c d f" {
			return got
		}
		return ""
	})
	eventually(t, "dead letters", func() string {
		if l := letters(t, b); len(l) != 4 {
			return fmt.Sprint(len(l))
		}
		return ""
	})
	eventually(t, "loss report", func() string {
		if n := healthTotal(t, b, "loss", schemas.LossDeadLetter); n != 4 {
			return fmt.Sprint(n)
		}
		return ""
	})
}

// TestKill kills the ingester again and again while a log is written to and
// rotated: every event is published once.
func TestKill(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := fileConfig(t, url)
	b := connect(t, url)
	w := newLogWriter(t, cfg.File.Path, 8)
	path := filepath.Join(cfg.StateDir, "config.yaml")
	data, err := yaml.Marshal(cfg)
	w.check(err)
	w.check(os.WriteFile(path, data, 0o600))
	stop, killed := make(chan struct{}), make(chan error, 1)
	go func() {
		rnd := rand.New(rand.NewPCG(9, 9))
		for {
			var said bytes.Buffer
			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), childConfig+"="+path)
			child.Stderr = &said
			if err := child.Start(); err != nil {
				killed <- err
				return
			}
			exited := make(chan error, 1)
			go func() { exited <- child.Wait() }()
			select {
			case err := <-exited:
				killed <- fmt.Errorf("ingester ended by itself: %v %s", err, said.String())
				return
			case <-time.After(time.Duration(100+rnd.IntN(400)) * time.Millisecond):
			case <-stop:
			}
			child.Process.Kill()
			<-exited
			select {
			case <-stop:
				killed <- nil
				return
			default:
			}
		}
	}()
	for i := range 60 {
		w.write(30, func() { time.Sleep(time.Millisecond) })
		switch {
		case i%10 == 3:
			w.f.Close()
			w.rename()
			w.open()
		case i%10 == 7:
			w.copyTruncate()
		}
		time.Sleep(50 * time.Millisecond)
	}
	select {
	case err := <-killed:
		t.Fatal(err)
	case <-time.After(2 * time.Second):
	}
	close(stop)
	w.check(<-killed)
	start(t, cfg) // and what is left, undisturbed
	exactly(t, b, w, false)
}

// TestKillWebhook kills the ingester while an API server posts and repeats
// what was not answered.
func TestKillWebhook(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := webhookConfig(t, url)
	b := connect(t, url)
	path := filepath.Join(cfg.StateDir, "config.yaml")
	data, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	w := &logWriter{t: t}
	answered := make(chan int)
	go func() {
		defer close(answered)
		for range 40 {
			var items [][]byte
			for range 50 {
				items = append(items, auditLine(w.id(w.n), 2000))
				w.n++
			}
			body := list(items...)
			for tries := 0; ; tries++ {
				if code := tryPost(cfg, body); code == 200 {
					answered <- tries
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
	}()
	rnd := rand.New(rand.NewPCG(3, 3))
	retries := 0
	for open := true; open; {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childConfig+"="+path)
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.After(time.Duration(250+rnd.IntN(400)) * time.Millisecond); open; {
			var n int
			select {
			case n, open = <-answered:
				retries += n
				continue
			case <-deadline:
			}
			break
		}
		child.Process.Kill()
		_ = child.Wait()
	}
	if retries == 0 {
		t.Error("nothing was ever repeated: the test kills too late")
	}
	start(t, cfg)
	exactly(t, b, w, false)
}

// TestFileAndWebhook feeds both sources of one cluster with the same events.
func TestFileAndWebhook(t *testing.T) {
	t.Parallel()
	_, url := startNATS(t, t.TempDir(), -1, bus.DefaultLimits())
	cfg := webhookConfig(t, url)
	cfg.File.Path = filepath.Join(t.TempDir(), "audit.log")
	start(t, cfg)
	b := connect(t, url)
	w := newLogWriter(t, cfg.File.Path, 10)
	for range 20 {
		var items [][]byte
		for range 25 {
			line := auditLine(w.id(w.n), w.rnd.IntN(3000))
			w.n++
			_, err := w.f.Write(append(line, '\n'))
			w.check(err)
			items = append(items, bytes.Replace(line, []byte(`"kind":"Event","apiVersion":"audit.k8s.io/v1",`), nil, 1))
		}
		if resp := post(t, cfg, list(items...)); resp.StatusCode != 200 {
			t.Fatalf("answer %d", resp.StatusCode)
		}
	}
	exactly(t, b, w, false)
}
