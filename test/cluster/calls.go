package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
)

// Command is a program to run in a node's namespaces, with the node's folders.
type Command struct {
	Name string   // of the process among those of the node, and of its log
	Args []string // the first is the program's path
	Log  string   // file that its output is added to
}

// Process tells of a process that was started, or how it ended.
type Process struct {
	PID    int // in the node's pid namespace
	Status int // exit code, or 128 and the signal
}

// calls are what a node's first process does for the program that started the cluster. It is also the one that
// reaps: all whose parents have ended are its children.
type calls struct {
	mu    sync.Mutex
	procs map[string]*child
	byPID map[int]*child
}

type child struct {
	pid    int
	status int
	ended  chan struct{}
}

// serveCalls answers until the other end is gone.
func serveCalls(f *os.File) error {
	conn, err := net.FileConn(f)
	if err != nil {
		return err
	}
	f.Close()
	c := &calls{procs: map[string]*child{}, byPID: map[int]*child{}}
	server := rpc.NewServer()
	if err := server.RegisterName("Node", c); err != nil {
		return err
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	go func() { // for the life of the process
		for range died {
			c.reap()
		}
	}()
	server.ServeConn(conn)
	return nil
}

func (c *calls) reap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if pid <= 0 {
			return
		}
		ch := c.byPID[pid]
		if ch == nil {
			continue // an orphan
		}
		delete(c.byPID, pid)
		if ch.status = ws.ExitStatus(); ws.Signaled() {
			ch.status = 128 + int(ws.Signal())
		}
		close(ch.ended)
	}
}

// Start starts a program.
func (c *calls) Start(cmd Command, p *Process) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	out, err := os.OpenFile(cmd.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	c.mu.Lock() // so that its end is not seen before it is known
	defer c.mu.Unlock()
	if old := c.procs[cmd.Name]; old != nil {
		select {
		case <-old.ended:
		default:
			return fmt.Errorf("%s runs already", cmd.Name)
		}
	}
	pid, err := syscall.ForkExec(cmd.Args[0], cmd.Args, &syscall.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
		Files: []uintptr{null.Fd(), out.Fd(), out.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return fmt.Errorf("start %s: %w", strings.Join(cmd.Args, " "), err)
	}
	ch := &child{pid: pid, ended: make(chan struct{})}
	c.procs[cmd.Name], c.byPID[pid] = ch, ch
	p.PID = pid
	return nil
}

func (c *calls) find(name string) (*child, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch := c.procs[name]; ch != nil {
		return ch, nil
	}
	return nil, fmt.Errorf("%s was not started", name)
}

// Wait waits for a program's end.
func (c *calls) Wait(name string, p *Process) error {
	ch, err := c.find(name)
	if err != nil {
		return err
	}
	<-ch.ended
	p.PID, p.Status = ch.pid, ch.status
	return nil
}

// Signal is a signal for a program.
type Signal struct {
	Name   string
	Number syscall.Signal
}

// Kill sends a signal to a program, which may have ended.
func (c *calls) Kill(s Signal, _ *struct{}) error {
	ch, err := c.find(s.Name)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byPID[ch.pid] != ch {
		return nil
	}
	return syscall.Kill(ch.pid, s.Number)
}
