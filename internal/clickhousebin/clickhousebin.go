// Package clickhousebin finds a ClickHouse to work with and runs it: the one
// a URL names, a clickhouse binary of this machine, or picket-clickhouse, the
// engine as a library behind the same HTTP interface. What uses it sees a URL
// and need not know which it is.
package clickhousebin

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"picket/internal/freeport"
)

// Options say which ClickHouse Start is to use.
type Options struct {
	// URL of a server that runs already, e.g. http://clickhouse:8123. When it
	// is set nothing is started and the other fields but Log are not used.
	URL string
	// Data is the folder of the tables of a started ClickHouse, and of its log
	// (clickhouse.log). It is created. One ClickHouse at a time can hold it.
	Data string
	// Listen is the address of its HTTP interface; default 127.0.0.1:0, a free
	// port.
	Listen string
	// Binary is the path of picket-clickhouse, used where no clickhouse binary
	// is on the PATH. Empty means: the one beside the running executable, else
	// the one on the PATH.
	Binary string
	// Library is the path of libchdb.so for picket-clickhouse; empty leaves
	// the choice to it.
	Library string
	// StartTimeout bounds the time until the server answers; default 60 s.
	StartTimeout time.Duration
	// Log is told what is started and stopped; nil means nobody is.
	Log *slog.Logger
}

// Kind is what a Server is.
type Kind string

const (
	// External is a server that ran already.
	External Kind = "external"
	// Native is a clickhouse server started from a clickhouse binary.
	Native Kind = "clickhouse"
	// Embedded is picket-clickhouse.
	Embedded Kind = "picket-clickhouse"
)

// Server is a ClickHouse that answers. Safe for concurrent use.
type Server struct {
	// URL of its HTTP interface, without a path.
	URL string
	// Kind is what it is.
	Kind Kind
	// Pid is its process, 0 if it is External.
	Pid int
	// LogFile is where its output goes, empty if it is External.
	LogFile string

	log  *slog.Logger
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended

	mu      sync.Mutex
	err     error // how the process ended
	stopped bool
}

// stopTimeout is what a server gets to stop by itself when the context of Stop
// says nothing shorter. It is more than picket-clickhouse gives its queries.
const stopTimeout = 30 * time.Second

// Start finds a ClickHouse, starts it if it does not run, and waits until it
// answers. ctx bounds the start only. A started server ends with Stop, and is
// killed by the kernel should this process end without it.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.StartTimeout <= 0 {
		o.StartTimeout = time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, o.StartTimeout)
	defer cancel()
	if o.URL != "" {
		s := &Server{URL: strings.TrimRight(o.URL, "/"), Kind: External, log: o.Log}
		if err := s.waitReady(ctx); err != nil {
			return nil, fmt.Errorf("ClickHouse at %s does not answer: %w: check the address, and that it is the HTTP port (8123 by default)", s.URL, err)
		}
		return s, nil
	}
	return start(ctx, o)
}

func start(ctx context.Context, o Options) (_ *Server, err error) {
	if o.Data == "" {
		return nil, errors.New("no data folder for ClickHouse is given")
	}
	data, err := filepath.Abs(o.Data)
	if err != nil {
		return nil, fmt.Errorf("find the data folder %s: %w", o.Data, err)
	}
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, fmt.Errorf("create the data folder of ClickHouse: %w", err)
	}
	listen := o.Listen
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	address, err := freeport.Address(listen)
	if err != nil {
		return nil, err
	}

	s := &Server{URL: "http://" + address, LogFile: filepath.Join(data, "clickhouse.log"), log: o.Log, done: make(chan struct{})}
	if native, lookErr := exec.LookPath("clickhouse"); lookErr == nil {
		config, err := writeServerConfig(data, address)
		if err != nil {
			return nil, err
		}
		s.Kind = Native
		s.cmd = exec.Command(native, "server", "--config-file="+config)
	} else {
		binary, err := findBinary(o.Binary)
		if err != nil {
			return nil, err
		}
		s.Kind = Embedded
		args := []string{"--data", data, "--listen", address}
		if o.Library != "" {
			args = append(args, "--lib", o.Library)
		}
		s.cmd = exec.Command(binary, args...)
	}

	logFile, offset, err := openLog(s.LogFile)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	s.cmd.Stdout, s.cmd.Stderr = logFile, logFile
	s.cmd.Dir = data
	// A process group of its own: Ctrl-C at the terminal is for the parent,
	// which stops its child when those who still write to it are done.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.run(); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.cmd.Path, err)
	}
	s.Pid = s.cmd.Process.Pid
	if err := s.waitReady(ctx); err != nil {
		s.kill()
		<-s.done
		return nil, fmt.Errorf("%s did not start: %w%s", s.Kind, err, lastLines(s.LogFile, offset))
	}
	o.Log.Info("ClickHouse is ready", "kind", string(s.Kind), "url", s.URL, "pid", s.Pid, "log", s.LogFile)
	return s, nil
}

// run starts the process and watches it. The kernel sends Pdeathsig when the
// thread that started the child ends, so that thread is kept for its lifetime.
func (s *Server) run() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		err = s.cmd.Wait()
		s.mu.Lock()
		s.err = err
		if !s.stopped {
			s.log.Error("ClickHouse ended by itself", "kind", string(s.Kind), "error", err, "log", s.LogFile)
		}
		s.mu.Unlock()
		close(s.done)
	}()
	return <-started
}

// Done is closed when the server's process has ended, expected or not. It is
// nil, and so never ready, for an External server.
func (s *Server) Done() <-chan struct{} { return s.done }

// Stop ends a started server: it asks with SIGTERM, and kills it when ctx or
// half a minute is over first, which its storage stands as it stands a crash.
// The error says that it had to be killed. An External server is left alone.
func (s *Server) Stop(ctx context.Context) error {
	if s.cmd == nil {
		return nil
	}
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	var why error
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // fails where it has ended already
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		why = ctx.Err()
	case <-timeout.C:
		why = fmt.Errorf("not stopped after %v", stopTimeout)
	}
	s.kill()
	<-s.done
	return fmt.Errorf("%s was killed: %w", s.Kind, why)
}

func (s *Server) kill() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	_ = s.cmd.Process.Kill() // fails where it has ended already
}

// waitReady asks the server until it answers, its process ends or ctx does.
func (s *Server) waitReady(ctx context.Context) error {
	client := &http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	var last error
	for {
		if last = ping(ctx, client, s.URL); last == nil {
			return nil
		}
		if s.cmd == nil && !errors.Is(last, syscall.ECONNREFUSED) {
			return last
		}
		select {
		case <-s.done:
			s.mu.Lock()
			defer s.mu.Unlock()
			return fmt.Errorf("its process ended (%v)", s.err)
		case <-ctx.Done():
			return fmt.Errorf("%w (last answer: %v)", ctx.Err(), last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func ping(ctx context.Context, client *http.Client, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/ping", nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1024))
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK || string(text) != "Ok.\n" {
		return fmt.Errorf("/ping answered %s %q, not ClickHouse's Ok", answer.Status, text)
	}
	return nil
}

// findBinary finds picket-clickhouse.
func findBinary(given string) (string, error) {
	const name = "picket-clickhouse"
	if given != "" {
		if _, err := os.Stat(given); err != nil {
			return "", fmt.Errorf("picket-clickhouse: %w", err)
		}
		return filepath.Abs(given)
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", errors.New("no ClickHouse found: neither clickhouse nor picket-clickhouse is on the PATH, nor picket-clickhouse beside this program: build it (make build), or give the URL of a server (--clickhouse)")
	}
	return path, nil
}

// maxLog is the size above which a log is put aside at start, in bytes.
const maxLog = 4 << 20

// openLog opens the log for appending and returns where the new part starts.
func openLog(path string) (*os.File, int64, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, 0, fmt.Errorf("put the old log of ClickHouse aside: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("open the log of ClickHouse: %w", err)
	}
	offset, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("open the log of ClickHouse: %w", err)
	}
	return f, offset, nil
}

// lastLines are the last lines of what was logged since offset, for an error.
func lastLines(path string, offset int64) string {
	const lines, size = 10, 8 << 10
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil {
		offset = max(offset, info.Size()-size)
	}
	text, err := io.ReadAll(io.NewSectionReader(f, offset, size))
	if err != nil {
		return ""
	}
	all := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	last := bytes.Join(all[max(0, len(all)-lines):], []byte("\n  "))
	if len(last) == 0 {
		return " (it logged nothing)"
	}
	return fmt.Sprintf("; the end of %s:\n  %s", path, last)
}

// writeServerConfig writes the configuration of a clickhouse server that has
// only its HTTP port, and all its files below the data folder.
func writeServerConfig(data, address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("the address of ClickHouse %q: %w", address, err)
	}
	escaped := func(s string) string {
		var b strings.Builder
		_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder does not fail
		return b.String()
	}
	path := filepath.Join(data, "server.xml")
	text := fmt.Sprintf(serverConfig, escaped(host), escaped(port), escaped(data))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("write the configuration of ClickHouse: %w", err)
	}
	return path, nil
}

const serverConfig = `<clickhouse>
    <logger><level>warning</level><console>1</console></logger>
    <listen_host>%s</listen_host>
    <http_port>%s</http_port>
    <path>%[3]s/</path>
    <tmp_path>%[3]s/tmp/</tmp_path>
    <user_files_path>%[3]s/user_files/</user_files_path>
    <format_schema_path>%[3]s/format_schemas/</format_schema_path>
    <mark_cache_size>67108864</mark_cache_size>
    <user_directories><users_xml><path>server.xml</path></users_xml></user_directories>
    <profiles><default></default></profiles>
    <users>
        <default>
            <password></password>
            <networks><ip>::1</ip><ip>127.0.0.1</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
        </default>
    </users>
    <quotas><default></default></quotas>
</clickhouse>
`
