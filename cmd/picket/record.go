package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"picket/internal/batch"
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
		Use:   "record -o FILE",
		Short: "Record this host's kernel events into an Arrow IPC file, for picket replay and other tools",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
			rec := &recorder{w: w, run: strings.ReplaceAll(uuid.NewString(), "-", "")}
			fmt.Fprintln(cmd.ErrOrStderr(), "recording; Ctrl-C ends it")
			if err := sensor.Record(ctx, cfg, rec, commandLog(cmd)); err != nil {
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

// recorder takes the sensor's batches in place of its outbox.
type recorder struct {
	run string

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
		if err := r.w.Write(b); err != nil {
			return err
		}
		r.events += rows
	}
	if stored != nil {
		stored()
	}
	return nil
}
