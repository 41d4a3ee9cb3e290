package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"picket/internal/batch"
	"picket/internal/bus"
	"picket/schemas"
	"picket/services/sensor"
)

func newRecord() *cobra.Command {
	var (
		output   string
		duration time.Duration
	)
	cfg := sensor.DefaultConfig()
	c := &cobra.Command{
		Use:   "record -o FILE [-- COMMAND [ARG]...]",
		Short: "Record this host's kernel events, or those of a command, into an Arrow IPC file",
		Long: `Records this host's kernel events into an Arrow IPC file, for picket replay and
other tools, until Ctrl-C. With a command it runs that and records what the
command and its descendants do, until it ends.`,
		RunE: func(cmd *cobra.Command, command []string) error {
			if output == "" {
				return errors.New("-o FILE is missing: where to write the recording")
			}
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
			if err != nil {
				return err
			}
			if err := w.Close(); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%d events in %s\n", rec.events, output)
			return f.Close()
		},
	}
	fl := c.Flags()
	fl.StringVarP(&output, "output", "o", "", "file to write")
	fl.DurationVar(&duration, "duration", 0, "how long to record; 0: until Ctrl-C")
	fl.StringVar(&cfg.Cluster, "cluster", "local", "name of the cluster, in every event")
	fl.StringVar(&cfg.Node, "node", cfg.Node, "name of this node, in every event")
	return c
}

// recordCommand records a command and its descendants.
func recordCommand(ctx context.Context, cmd *cobra.Command, cfg sensor.Config, rec *recorder, command []string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	rec.keep = &descendants{}
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
		rec.keep.root = uint64(c.Process.Pid)
		err := c.Wait()
		time.Sleep(200 * time.Millisecond) // its last events are on their way
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	return rec.writeKept()
}

// descendants are the batches of a recording and whose events of them to keep.
type descendants struct {
	root    uint64
	batches []*batch.Batch
}

// writeKept writes the events of the command and its descendants.
func (r *recorder) writeKept() error {
	ours := map[uint64]bool{r.keep.root: true}
	for _, b := range r.keep.batches {
		if b.Class() != schemas.Process {
			continue
		}
		for row := range b.Rows() {
			if b.Str(schemas.Action, row) == "fork" && ours[b.Uint(schemas.ProcessParentPID, row)] {
				ours[b.Uint(schemas.ProcessPID, row)] = true
			}
		}
	}
	kept := map[schemas.Class]*batch.Builder{}
	write := func(b *batch.Builder) error {
		defer b.Reset()
		r.events += b.Len()
		return r.w.Write(b.Batch())
	}
	for _, b := range r.keep.batches {
		to := kept[b.Class()]
		if to == nil {
			to = batch.NewBuilder(b.Class(), schemas.RawColumns(b.Class()))
			kept[b.Class()] = to
		}
		for row := range b.Rows() {
			if !ours[b.Uint(schemas.ProcessPID, row)] {
				continue
			}
			if to.Copy(b, row); to.Full() {
				if err := write(to); err != nil {
					return err
				}
			}
		}
	}
	for _, c := range schemas.Classes() {
		if b := kept[c]; b != nil && b.Len() > 0 {
			if err := write(b); err != nil {
				return err
			}
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
			r.keep.batches = append(r.keep.batches, b)
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
