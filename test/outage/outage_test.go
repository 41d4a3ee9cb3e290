package main

import (
	"os"
	"testing"
	"time"

	"picket/internal/batch"
	"picket/schemas"
	"picket/test/rig"
)

func TestMain(m *testing.M) {
	rig.ServeNATS()
	os.Exit(m.Run())
}

// What `go run ./test/outage` does for ten minutes, for three seconds, and again with the
// sensor killed in the middle.
func TestOutage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED (needs root): the spool was not tried with the live kernel's events")
	}
	for _, crash := range []bool{false, true} {
		if err := run(t.Context(), options{rate: 5000, lead: 500 * time.Millisecond, outage: 3 * time.Second, crash: crash}, t.Output()); err != nil {
			t.Errorf("crash %v: %v", crash, err)
		}
	}
}

// file returns a batch with an open and an unlink of each number.
func file(dir string, seq uint64, numbers ...string) *batch.Batch {
	b := batch.NewBuilder(schemas.File, schemas.RawColumns(schemas.File))
	for _, n := range numbers {
		for _, action := range []string{"open", "unlink"} {
			seq++
			b.Bytes16(schemas.EventID, schemas.Hash128(dir, n, action, string(rune(seq))))
			b.Str(schemas.Action, action)
			b.Uint64(schemas.Sequence, seq)
			b.Str(schemas.FilePath, dir+"/"+n)
			b.EndRow()
		}
	}
	return b.Batch()
}

// The check sees what is wrong: without this the proof would prove nothing.
func TestCheck(t *testing.T) {
	const subject = "s"
	type message struct {
		run          string
		number, rows uint64
		b            *batch.Batch
	}
	const dir = "/d"
	for _, tt := range []struct {
		name     string
		messages []message
		seen     uint64
		crash    bool
		lost     uint64
		fine     bool
	}{
		{"all there", []message{{"r", 1, 2, file(dir, 0, "0")}, {"r", 2, 4, file(dir, 2, "1")}}, 4, false, 0, true},
		{"one missing", []message{{"r", 1, 2, file(dir, 0, "0")}}, 2, false, 0, false},
		{"one missing and counted", []message{{"r", 1, 2, file(dir, 0, "0")}}, 4, false, 2, false},
		{"a batch twice", []message{{"r", 1, 2, file(dir, 0, "0")}, {"r", 2, 4, file(dir, 2, "1")}, {"r", 2, 4, file(dir, 2, "1")}}, 4, false, 0, false},
		{"batches out of order", []message{{"r", 2, 2, file(dir, 0, "0")}, {"r", 1, 4, file(dir, 2, "1")}}, 4, false, 0, false},
		{"events out of order", []message{{"r", 1, 2, file(dir, 2, "0")}, {"r", 2, 4, file(dir, 0, "1")}}, 4, false, 0, false},
		{"a number twice", []message{{"r", 1, 2, file(dir, 0, "0")}, {"r", 2, 6, file(dir, 2, "1", "0")}}, 6, false, 0, false},
		{"rows that no header counts", []message{{"r", 1, 2, file(dir, 0, "0")}, {"r", 2, 5, file(dir, 2, "1")}}, 4, false, 0, false},
		{"the kernel saw more", []message{{"r", 1, 4, file(dir, 0, "0", "1")}}, 5, false, 0, false},
		{"a crash, counted", []message{{"r", 1, 2, file(dir, 0, "0")}, {"q", 1, 0, file(dir, 0)}}, 4, true, 2, true},
		{"a crash, not counted", []message{{"r", 1, 2, file(dir, 0, "0")}, {"q", 1, 0, file(dir, 0)}}, 4, true, 0, false},
		{"runs mixed", []message{{"r", 1, 2, file(dir, 0, "0")}, {"q", 1, 2, file(dir, 2, "1")}, {"r", 2, 2, file(dir, 4)}}, 4, true, 0, false},
	} {
		l := &load{dir: dir}
		l.made.Store(2)
		c := newCheck(l, time.Time{})
		for _, m := range tt.messages {
			c.header(subject, m.run, m.number, uint64(m.b.Rows()), m.rows)
			for row := range m.b.Rows() {
				c.row(m.b, row)
			}
			c.account.Delivered["file"] += uint64(m.b.Rows())
		}
		c.account.Seen["file"], c.account.Published["file"] = tt.seen, c.account.Delivered["file"]
		if tt.lost > 0 {
			c.account.Lost["file"], c.account.Reasons[rig.Reason{Class: "file", Reason: schemas.LossSensorRestart}] = tt.lost, tt.lost
		}
		if err := c.verdict(tt.crash); (err == nil) != tt.fine {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
