package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/schemas"
	"picket/services/detector"
	"picket/services/sensor"
)

func newRecord() *cobra.Command {
	var (
		output   string
		duration time.Duration
		paths    []string
		watch    []string
	)
	cfg := sensor.DefaultConfig()
	c := &cobra.Command{
		Use:   "record -o FILE [-- COMMAND [ARG]...]",
		Short: "Record this host's kernel events, or those of a command, into an Arrow IPC file",
		Long: `Records this host's kernel events into an Arrow IPC file, for picket replay and
other tools, until Ctrl-C. With a command it runs that and records what the
command and its descendants do, until it ends.

It records what a sensor reports by its defaults and what the rules need beside
that: the reads of files and the system calls that they are about.`,
		RunE: func(cmd *cobra.Command, command []string) error {
			if output == "" {
				return errors.New("-o FILE is missing: where to write the recording")
			}
			set, _, err := detector.LoadRules(paths)
			if err != nil {
				return err
			}
			cfg.Kernel.WatchedPaths = slices.Concat(cfg.Kernel.WatchedPaths, set.WatchedPaths(), watch)
			slices.Sort(cfg.Kernel.WatchedPaths)
			cfg.Kernel.WatchedPaths = slices.Compact(cfg.Kernel.WatchedPaths)
			cfg.Kernel.Unwanted = slices.DeleteFunc(cfg.Kernel.Unwanted, func(call string) bool { return slices.Contains(set.Syscalls(), call) })
			f, err := os.Create(output)
			if err != nil {
				return err
			}
			defer f.Close()
			w, err := batch.NewCaptureWriter(f)
			if err != nil {
				return err
			}
			cfg.StateDir, err = os.MkdirTemp("", "picket-record-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(cfg.StateDir)
			cfg.Kernel.Instance = fmt.Sprintf("record-%d", os.Getpid())
			ctx := cmd.Context()
			if duration > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, duration)
				defer cancel()
			}
			rec := &recorder{w: w, run: bus.NewRunID()}
			if len(command) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "recording; Ctrl-C ends it")
				err = sensor.Record(ctx, cfg, rec, nil, commandLog(cmd))
			} else {
				err = recordCommand(ctx, cmd, cfg, rec, command)
			}
			// What was recorded is kept, also of a command that failed.
			if err := errors.Join(err, w.Close(), f.Close()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%d events in %s\n", rec.events, output)
			return nil
		},
	}
	fl := c.Flags()
	fl.StringVarP(&output, "output", "o", "", "file to write")
	fl.DurationVar(&duration, "duration", 0, "how long to record; 0: until Ctrl-C")
	fl.StringArrayVar(&paths, "rules", nil, "rule file or folder whose needs are recorded, repeatable, in place of the pack that comes with Picket")
	fl.StringArrayVar(&watch, "watch", nil, "path prefix whose files are recorded also when they are opened for reading only, repeatable")
	fl.StringVar(&cfg.Cluster, "cluster", "local", "name of the cluster, in every event")
	fl.StringVar(&cfg.Node, "node", cfg.Node, "name of this node, in every event")
	return c
}

// recordCommand records a command and its descendants.
func recordCommand(ctx context.Context, cmd *cobra.Command, cfg sensor.Config, rec *recorder, command []string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	rec.keep = &descendants{ours: map[uint64]bool{}, to: map[schemas.Class]*batch.Builder{}}
	watching := make(chan struct{})
	var g errgroup.Group
	g.Go(func() error {
		defer stop()
		return sensor.Record(ctx, cfg, rec, func() { close(watching) }, commandLog(cmd))
	})
	g.Go(func() error {
		defer stop()
		select {
		case <-watching:
		case <-ctx.Done():
			return nil // the other has the reason
		}
		c := exec.CommandContext(ctx, command[0], command[1:]...)
		c.Stdin, c.Stdout, c.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
		if err := c.Start(); err != nil {
			return err
		}
		rec.begin(uint64(c.Process.Pid))
		err := c.Wait()
		time.Sleep(settle) // its last events are on their way
		return err
	})
	err := g.Wait()
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return errors.Join(err, rec.release(time.Now()))
}

// settle is how long a batch is held before it is looked at: the forks that tell
// whose its events are come in batches of their own, within the sensor's flush
// interval and the time that it keeps classes in order.
const settle = 500 * time.Millisecond

// descendants knows the processes of a command, and holds the batches of the
// last moment.
type descendants struct {
	root uint64 // 0: not started
	ours map[uint64]bool
	held []heldBatch
	to   map[schemas.Class]*batch.Builder
}

type heldBatch struct {
	at     time.Time
	batch  *batch.Batch
	looked bool // at its forks
}

// look takes in the forks of a batch. A number that is given to somebody else's
// process is no longer ours.
func (d *descendants) look(b *batch.Batch) {
	if b.Class() != schemas.Process {
		return
	}
	for row := range b.Rows() {
		if b.Str(schemas.Action, row) != "fork" {
			continue
		}
		pid := b.Uint(schemas.ProcessPID, row)
		if d.ours[b.Uint(schemas.ProcessParentPID, row)] {
			d.ours[pid] = true
		} else if pid != d.root {
			delete(d.ours, pid)
		}
	}
}

// begin says which process the command is.
func (r *recorder) begin(root uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep.root = root
	r.keep.ours[root] = true
}

// release writes, of what came before a time, the events of the command and its
// descendants, in batches as the sensor made them. The lock is held.
func (r *recorder) release(before time.Time) error {
	d := r.keep
	if d.root == 0 {
		return nil
	}
	for i := range d.held {
		if h := &d.held[i]; !h.looked {
			d.look(h.batch)
			h.looked = true
		}
	}
	for len(d.held) > 0 && d.held[0].at.Before(before) {
		b := d.held[0].batch
		d.held[0], d.held = heldBatch{}, d.held[1:]
		to := d.to[b.Class()]
		if to == nil {
			to = batch.NewBuilder(b.Class(), schemas.RawColumns(b.Class()))
			d.to[b.Class()] = to
		}
		for row := range b.Rows() {
			if d.ours[b.Uint(schemas.ProcessPID, row)] {
				to.Copy(b, row)
			}
		}
		if to.Len() == 0 {
			continue
		}
		err := r.w.Write(to.Batch())
		r.events += to.Len()
		to.Reset()
		if err != nil {
			return err
		}
	}
	return nil
}

// recorder takes the sensor's batches in place of its outbox.
type recorder struct {
	run  string
	keep *descendants // nil: everything is written at once

	mu     sync.Mutex
	w      *batch.CaptureWriter
	events int
}

// RunID implements sensor.Outbox.
func (r *recorder) RunID() string { return r.run }

// Put implements sensor.Outbox: what the sensor says of itself is left out.
func (r *recorder) Put(subject string, data []byte, rows int, _ any, stored func()) error {
	_, _, class, err := schemas.ParseRawSubject(subject)
	if err != nil {
		return err
	}
	if class != schemas.Health {
		b, err := batch.Decode(data)
		if err != nil {
			return err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.keep != nil {
			now := time.Now()
			r.keep.held = append(r.keep.held, heldBatch{at: now, batch: b})
			if err := r.release(now.Add(-settle)); err != nil {
				return err
			}
		} else if err := r.w.Write(b); err != nil {
			return err
		} else {
			r.events += rows
		}
	}
	if stored != nil {
		stored()
	}
	return nil
}
