package clickhousebin_test

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"picket/internal/clickhousebin"
	"picket/internal/clickhousebin/clickhousetest"
)

func TestMain(m *testing.M) {
	// The parent of TestParentDeath: starts a server, says its pid, waits to die.
	if data := os.Getenv("CLICKHOUSEBIN_TEST_PARENT"); data != "" {
		s, err := clickhousebin.Start(context.Background(), clickhousebin.Options{Data: data, Binary: os.Getenv("CLICKHOUSEBIN_TEST_BINARY")})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(s.Pid)
		select {}
	}
	if filepath.Base(os.Args[0]) == "clickhouse" {
		standIn()
	}
	goleak.VerifyTestMain(m)
}

// standIn is what TestClickHouseOnPath finds on its PATH: no ClickHouse, which
// test machines do not have, but what reads its configuration as one does.
func standIn() {
	config, found := strings.CutPrefix(strings.Join(os.Args[1:], " "), "server --config-file=")
	text, err := os.ReadFile(config)
	if !found || err != nil {
		fmt.Println(os.Args, err)
		os.Exit(1)
	}
	var c struct {
		Host string `xml:"listen_host"`
		Port string `xml:"http_port"`
		Path string `xml:"path"`
		User struct {
			Networks []string `xml:"networks>ip"`
		} `xml:"users>default"`
	}
	if err := xml.Unmarshal(text, &c); err != nil || c.Path == "" || len(c.User.Networks) != 2 {
		fmt.Println(err, c)
		os.Exit(1)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "Ok.\n") })
	fmt.Println(http.ListenAndServe(net.JoinHostPort(c.Host, c.Port), handler))
	os.Exit(1)
}

func TestClickHouseOnPath(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o := embedded(t, filepath.Join(t.TempDir(), "a & <b>"))
	if err := os.Symlink(self, filepath.Join(os.Getenv("PATH"), "clickhouse")); err != nil {
		t.Fatal(err)
	}
	s := start(t, o)
	if s.Kind != clickhousebin.Native {
		t.Errorf("kind %s", s.Kind)
	}
	stop(t, s)
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", s.Pid)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("process %d runs after Stop: %v", s.Pid, err)
	}
}

// query sends a statement and returns the answer.
func query(t *testing.T, s *clickhousebin.Server, sql string) string {
	t.Helper()
	text, err := tryQuery(s, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return text
}

func tryQuery(s *clickhousebin.Server, sql string) (string, error) {
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	answer, err := (&http.Client{Transport: transport}).Post(s.URL, "text/plain", strings.NewReader(sql))
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", err
	}
	if answer.StatusCode != http.StatusOK {
		return "", errors.New(string(text))
	}
	return string(text), nil
}

// embedded are options for picket-clickhouse, on a machine that has no
// clickhouse binary as far as the test can see.
func embedded(t *testing.T, data string) clickhousebin.Options {
	t.Helper()
	binary := clickhousetest.Binary(t)
	t.Setenv("PATH", t.TempDir())
	return clickhousebin.Options{Data: data, Binary: binary}
}

func start(t *testing.T, o clickhousebin.Options) *clickhousebin.Server {
	t.Helper()
	s, err := clickhousebin.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *clickhousebin.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func TestStartStopRestart(t *testing.T) {
	o := embedded(t, t.TempDir())
	s := start(t, o)
	if s.Kind != clickhousebin.Embedded || s.Pid == 0 {
		t.Errorf("kind %s, pid %d", s.Kind, s.Pid)
	}
	query(t, s, "CREATE TABLE kept (a UInt64) ENGINE = MergeTree ORDER BY a")
	query(t, s, "INSERT INTO kept SELECT number FROM numbers(1000)")
	stop(t, s)
	if _, err := tryQuery(s, "SELECT 1"); err == nil {
		t.Error("the server answers after Stop")
	}
	stop(t, s) // a second time does nothing

	s = start(t, o)
	if got := query(t, s, "SELECT count(), sum(a) FROM kept"); got != "1000\t499500\n" {
		t.Errorf("after a restart: %q", got)
	}
	// A server that runs can be used by its URL, and is not stopped by it.
	external := start(t, clickhousebin.Options{URL: s.URL + "/"})
	if external.Kind != clickhousebin.External || external.Pid != 0 {
		t.Errorf("kind %s, pid %d", external.Kind, external.Pid)
	}
	stop(t, external)
	query(t, external, "SELECT 1")
}

func TestKilledAndRestarted(t *testing.T) {
	o := embedded(t, t.TempDir())
	s := start(t, o)
	query(t, s, "CREATE TABLE kept (a UInt64) ENGINE = MergeTree ORDER BY a")
	query(t, s, "INSERT INTO kept SELECT number FROM numbers(1000)")
	if err := syscall.Kill(s.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("Done is not closed after the process was killed")
	}
	s = start(t, o)
	if got := query(t, s, "SELECT count(), sum(a) FROM kept"); got != "1000\t499500\n" {
		t.Errorf("after kill -9: %q", got)
	}
}

func TestSecondInstanceIsRefused(t *testing.T) {
	o := embedded(t, t.TempDir())
	s := start(t, o)
	_, err := clickhousebin.Start(t.Context(), o)
	if err == nil {
		t.Fatal("a second server started on the same folder")
	}
	for _, want := range []string{"is in use", "another picket-clickhouse", "process " + strconv.Itoa(s.Pid)} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	query(t, s, "SELECT 1")
}

// The child must not outlive a parent that is killed and can stop nothing.
func TestParentDeath(t *testing.T) {
	o := embedded(t, t.TempDir())
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), "CLICKHOUSEBIN_TEST_PARENT="+o.Data, "CLICKHOUSEBIN_TEST_BINARY="+o.Binary)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = parent.Process.Kill()
		_ = parent.Wait()
	}()
	line := make([]byte, 4096)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
	if err != nil {
		t.Fatalf("the parent said %q", line[:n])
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if errors.Is(err, os.ErrNotExist) || bytes.Contains(status, []byte("State:\tZ")) {
			return
		}
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("process %d lives on after its parent was killed", pid)
		}
	}
}

func TestErrorsNameTheCause(t *testing.T) {
	damaged := filepath.Join(t.TempDir(), "libchdb.so")
	if err := os.WriteFile(damaged, []byte("not a library"), 0o644); err != nil {
		t.Fatal(err)
	}
	good := embedded(t, t.TempDir())
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		options clickhousebin.Options
		want    []string
	}{
		"no library":      {clickhousebin.Options{Data: t.TempDir(), Binary: good.Binary, Library: "/nowhere/libchdb.so"}, []string{"/nowhere/libchdb.so", "make deps"}},
		"damaged library": {clickhousebin.Options{Data: t.TempDir(), Binary: good.Binary, Library: damaged}, []string{damaged, "make deps"}},
		"no binary":       {clickhousebin.Options{Data: t.TempDir()}, []string{"no ClickHouse found", "--clickhouse"}},
		"wrong binary":    {clickhousebin.Options{Data: t.TempDir(), Binary: "/nowhere/picket-clickhouse"}, []string{"/nowhere/picket-clickhouse"}},
		"no folder":       {clickhousebin.Options{Binary: good.Binary}, []string{"data folder"}},
		"folder is file":  {clickhousebin.Options{Data: file, Binary: good.Binary}, []string{file}},
		"bad address":     {clickhousebin.Options{Data: t.TempDir(), Binary: good.Binary, Listen: "203.0.113.1:8123"}, []string{"203.0.113.1:8123", "--listen"}},
		"nobody at URL":   {clickhousebin.Options{URL: "http://127.0.0.1:1", StartTimeout: 200 * time.Millisecond}, []string{"http://127.0.0.1:1", "8123"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := clickhousebin.Start(t.Context(), c.options)
			if err == nil {
				stop(t, s)
				t.Fatal("started")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
		})
	}
}

func TestOldLogIsPutAside(t *testing.T) {
	o := embedded(t, t.TempDir())
	log := filepath.Join(o.Data, "clickhouse.log")
	if err := os.WriteFile(log, bytes.Repeat([]byte("x"), 5<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, o)
	if s.LogFile != log {
		t.Errorf("the log is %s", s.LogFile)
	}
	for path, most := range map[string]int64{log: 1 << 20, log + ".1": 5 << 20} {
		if info, err := os.Stat(path); err != nil || info.Size() > most {
			t.Errorf("%s: %v %v", path, info, err)
		}
	}
}
