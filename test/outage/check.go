package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"picket/internal/batch"
	"picket/schemas"
	"picket/test/rig"
)

// check reads PICKET_RAW in its order and holds it to the promise.
type check struct {
	load    *load
	back    time.Time // when NATS was back
	account *rig.Account

	rows, batches, size uint64
	class, classSize    map[schemas.Class]uint64 // events and bytes
	open, unlink        []uint8                  // how often each number was there
	early               []int                    // numbers whose unlink came while no open had
	ids                 [][16]byte
	runs                []*sensorRun
	sequence            map[lane]uint64 // the last

	longest, caughtUp time.Duration // see late
	missing           int
	faults            []error
	more              int // faults not kept
}

// sensorRun is one life of the sensor: its run id, the last batch's number and
// the rows so far by subject.
type sensorRun struct {
	id    string
	batch uint64
	rows  map[string]uint64
}

// lane is where the kernel counts: a class on a CPU.
type lane struct {
	class schemas.Class
	cpu   uint64
}

func newCheck(l *load, back time.Time) *check {
	return &check{load: l, back: back, account: rig.NewAccount(), open: make([]uint8, l.made.Load()), unlink: make([]uint8, l.made.Load()), sequence: map[lane]uint64{},
		class: map[schemas.Class]uint64{}, classSize: map[schemas.Class]uint64{}}
}

// fault notes what is wrong; a hundred of a kind are as good as ten.
func (c *check) fault(format string, args ...any) {
	if len(c.faults) == 10 {
		c.more++
		return
	}
	c.faults = append(c.faults, fmt.Errorf(format, args...))
}

// readAll reads the stream from its first message to its last. The error is
// one of reading; what is wrong with the messages is kept for verdict.
func (c *check) readAll(ctx context.Context, nats *rig.NATS) error {
	raw, err := nats.Admin.JS.Stream(ctx, schemas.StreamRaw)
	if err != nil {
		return err
	}
	info, err := raw.Info(ctx)
	if err != nil {
		return err
	}
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		m, err := raw.GetMsg(ctx, seq)
		if err != nil {
			return fmt.Errorf("message %d of %s: %w", seq, schemas.StreamRaw, err)
		}
		b, err := batch.Decode(m.Data)
		if err != nil {
			return fmt.Errorf("message %d of %s: %w", seq, schemas.StreamRaw, err)
		}
		number, err := strconv.ParseUint(m.Header.Get(schemas.HeaderBatch), 10, 64)
		if err != nil {
			return fmt.Errorf("message %d of %s: %s: %w", seq, schemas.StreamRaw, schemas.HeaderBatch, err)
		}
		cumulative, err := strconv.ParseUint(m.Header.Get(schemas.HeaderCumulative), 10, 64)
		if err != nil {
			return fmt.Errorf("message %d of %s: %s: %w", seq, schemas.StreamRaw, schemas.HeaderCumulative, err)
		}
		c.header(m.Subject, m.Header.Get(schemas.HeaderRun), number, uint64(b.Rows()), cumulative)
		c.batches++
		c.size += uint64(len(m.Data))
		c.rows += uint64(b.Rows())
		c.class[b.Class()] += uint64(b.Rows())
		c.classSize[b.Class()] += uint64(len(m.Data))
		for row := range b.Rows() {
			c.row(b, row)
		}
		if b.Class() == schemas.Health {
			c.account.Read(b)
			continue
		}
		c.account.Delivered[b.Class().String()] += uint64(b.Rows())
		c.late(b, m.Time)
	}
	return nil
}

// header holds a message to the order of its run: no batch is missing, none
// comes before an earlier one, and a run's are not mixed with another's.
func (c *check) header(subject, id string, number, rows, cumulative uint64) {
	if len(c.runs) == 0 || c.runs[len(c.runs)-1].id != id {
		for _, r := range c.runs {
			if r.id == id {
				c.fault("batch %d of run %s comes after one of a later run", number, id)
			}
		}
		c.runs = append(c.runs, &sensorRun{id: id, rows: map[string]uint64{}})
	}
	r := c.runs[len(c.runs)-1]
	if number != r.batch+1 {
		c.fault("run %s: batch %d comes after batch %d", id, number, r.batch)
	}
	r.batch = number
	if r.rows[subject] += rows; r.rows[subject] != cumulative {
		c.fault("run %s, %s: batch %d says that it ends at row %d; it ends at %d", id, subject, number, cumulative, r.rows[subject])
	}
}

func (c *check) row(b *batch.Batch, row int) {
	id, _ := b.Bytes16(schemas.EventID, row)
	c.ids = append(c.ids, id)
	if b.Class() == schemas.Health {
		return
	}
	l, seq := lane{b.Class(), b.Uint(schemas.CPU, row)}, b.Uint(schemas.Sequence, row)
	if seq <= c.sequence[l] {
		c.fault("class %s, CPU %d: event %d comes after event %d", l.class, l.cpu, seq, c.sequence[l])
	}
	c.sequence[l] = seq
	if b.Class() != schemas.File {
		return
	}
	name, ours := strings.CutPrefix(b.Str(schemas.FilePath, row), c.load.dir+"/")
	if !ours {
		return
	}
	n, err := strconv.Atoi(name)
	if err != nil || n < 0 || n >= len(c.open) {
		c.fault("there is an event of file %s, which was never made", name)
		return
	}
	switch action := b.Str(schemas.Action, row); action {
	case "open":
		c.open[n]++
	case "unlink":
		if c.unlink[n]++; c.open[n] == 0 {
			c.early = append(c.early, n)
		}
	default:
		c.fault("file %d: there is an event %s, which never was", n, action)
	}
}

// late notes how long events waited that were made after NATS was back.
func (c *check) late(b *batch.Batch, stored time.Time) {
	oldest := time.Unix(0, b.Int(schemas.EventTime, 0))
	if oldest.Before(c.back) {
		return
	}
	waited := stored.Sub(oldest)
	c.longest = max(c.longest, waited)
	if waited >= time.Second {
		c.caughtUp = max(c.caughtUp, stored.Sub(c.back))
	}
}

// verdict returns all that is wrong, or nil. A crash of the sensor may lose
// what it had read and not spooled, and nothing that it does not count.
func (c *check) verdict(crash bool) error {
	for _, n := range slices.Concat(c.open, c.unlink) {
		switch n {
		case 0:
			c.missing++
		case 1:
		default:
			c.fault("a numbered event arrived %d times", n)
		}
	}
	for _, n := range c.early {
		if c.open[n] > 0 {
			c.fault("file %d: its open comes after its unlink", n)
		}
	}
	slices.SortFunc(c.ids, func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
	if n := len(c.ids) - len(slices.Compact(c.ids)); n > 0 {
		c.fault("%d event ids are there twice", n)
	}
	a, runs := c.account, 1
	lost := uint64(0)
	if crash {
		// What the killed sensor published since its last report, it did not
		// report: that the kernel's count is met is what remains.
		a.Published = a.Delivered
		lost, runs = a.Lost[schemas.File.String()], 2
	}
	if uint64(c.missing) > lost {
		c.fault("%d numbered events are missing; %d events of files are counted as lost", c.missing, lost)
	}
	if len(c.runs) != runs {
		c.fault("%d runs of the sensor have published, want %d", len(c.runs), runs)
	}
	for r, n := range a.Reasons {
		// A storm that something else on the machine made may have filled another
		// ring. The spool may not, and in class file everything is there.
		if r.Reason == schemas.LossSpoolFull || r.Class == schemas.File.String() && !(crash && r.Reason == schemas.LossSensorRestart) {
			c.fault("%d events of class %s were lost: %s", n, r.Class, r.Reason)
		}
	}
	if a.Missed > 0 {
		c.fault("the kernel left %d runs of the sensor's programs out", a.Missed)
	}
	errs := append(c.faults, a.Check())
	if c.more > 0 {
		errs = append(errs, fmt.Errorf("and %d more of that", c.more))
	}
	return errors.Join(errs...)
}
