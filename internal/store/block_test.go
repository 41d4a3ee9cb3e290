package store

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"picket/internal/batch"
	"picket/internal/fault"
	"picket/schemas"
)

// value is what a field of a row is set to, and how ClickHouse shows it by the
// expression that shown gives.
func value(b *batch.Builder, id schemas.FieldID, row int) string {
	n := row*131 + int(id)
	s := fmt.Sprintf("v'\\\x00\xff%d", n%7)
	x := [16]byte{0x20, 0x01, byte(n), byte(n >> 8), 15: byte(row)}
	switch id.Field().Type {
	case schemas.Text, schemas.Name:
		b.Str(id, s)
		return strings.ToUpper(hex.EncodeToString([]byte(s)))
	case schemas.Bool:
		b.Bool(id, n%2 == 0)
		return strconv.FormatBool(n%2 == 0)
	case schemas.Uint32:
		v := math.MaxUint32 - uint32(n)
		b.Uint32(id, v)
		return strconv.FormatUint(uint64(v), 10)
	case schemas.Uint64:
		v := math.MaxUint64 - uint64(n)
		b.Uint64(id, v)
		return strconv.FormatUint(v, 10)
	case schemas.Int64:
		b.Int64(id, -int64(n))
		return strconv.Itoa(-n)
	case schemas.Time:
		v := time.Date(2026, 11, 20, 23, 59, 59, 999999999, time.UTC).UnixNano() + int64(n)
		b.Int64(id, v)
		return strconv.FormatInt(v, 10)
	case schemas.IP:
		b.Bytes16(id, x)
		return netip.AddrFrom16(x).String()
	case schemas.ID:
		b.Bytes16(id, x)
		return schemas.FormatID(x)
	case schemas.List, schemas.Names:
		if id.Field().Type == schemas.Names {
			s = strings.ReplaceAll(s, "\x00", "") // ends an element
		}
		list := []string{"a", s, ""}[:n%4%3+1]
		b.List(id, list)
		return strings.Join(list, ",")
	case schemas.Map:
		b.Map(id, map[string]string{"k": s, "": "x"})
		return "k=" + s + ",=x"
	}
	panic("field of an unknown type")
}

// absent is how ClickHouse shows a field that was not set.
func absent(f *schemas.Field) string {
	switch {
	case f.Nullable:
		return `\N`
	case f.Type == schemas.Bool:
		return "false"
	case f.Type == schemas.Uint32, f.Type == schemas.Uint64, f.Type == schemas.Int64, f.Type == schemas.Time:
		return "0"
	case f.Type == schemas.IP:
		return "::"
	case f.Type == schemas.ID:
		return schemas.FormatID([16]byte{})
	}
	return ""
}

// shown is an expression that shows a column as value does.
func shown(f *schemas.Field) string {
	switch f.Type {
	case schemas.Text, schemas.Name:
		return "hex(" + f.Name + ")"
	case schemas.Time:
		return "toString(toUnixTimestamp64Nano(" + f.Name + "))"
	case schemas.List, schemas.Names:
		return "base64Encode(arrayStringConcat(" + f.Name + ", ','))"
	case schemas.Map:
		return "base64Encode(arrayStringConcat(arrayMap((k, v) -> concat(k, '=', v), mapKeys(" + f.Name + "), mapValues(" + f.Name + ")), ','))"
	}
	return "toString(" + f.Name + ")"
}

func unbase64(t *testing.T, s string) string {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Every field of every class, set, not set in some rows, not in the batch at
// all: what the table holds is what the batch held.
func TestValues(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(nil)
	const rows = 30
	for _, c := range schemas.Classes() {
		t.Run(c.String(), func(t *testing.T) {
			ids := schemas.Columns(c)
			want := map[string]map[schemas.FieldID]string{} // by event id
			for part := range 4 {
				b := batch.NewBuilder(c, ids)
				for i := range rows {
					row := part*rows + i
					expect := map[schemas.FieldID]string{}
					for k, id := range ids {
						expect[id] = absent(id.Field())
						// Part 0 has all, 1 leaves out some in some rows, 2 some
						// columns in all, 3 everything it can.
						skip := part == 1 && (row+k)%3 == 0 || part == 2 && k%2 == 0 || part == 3
						if id == schemas.EventID || id == schemas.EventTime || !skip {
							expect[id] = value(b, id, row)
						}
					}
					b.EndRow()
					want[expect[schemas.EventID]] = expect
				}
				enc, err := batch.Encode(b.Batch())
				if err != nil {
					t.Fatal(err)
				}
				w.publish(message{class: c, rows: rows, data: enc[0].Data})
			}
			w.settled(20 * time.Second)
			columns := []string{"toString(event_id)", "toString(batch_date)", "batch_id"}
			for _, id := range ids {
				columns = append(columns, shown(id.Field()))
			}
			lines := strings.Split(query(t, w.db, "SELECT "+strings.Join(columns, ", ")+" FROM "+c.Table()), "\n")
			if len(lines) != len(want) {
				t.Fatalf("%d rows, want %d", len(lines), len(want))
			}
			for _, line := range lines {
				f := strings.Split(line, "\t")
				expect, ok := want[f[0]]
				if !ok {
					t.Fatalf("row %s was never sent", f[0])
				}
				if f[1] != "2026-11-20" && f[1] != "2026-11-21" || !strings.HasPrefix(f[2], w.run+"-") {
					t.Errorf("row %s: batch_date %s, batch_id %s", f[0], f[1], f[2])
				}
				for k, id := range ids {
					got, want := f[3+k], expect[id]
					if tp := id.Field().Type; tp == schemas.List || tp == schemas.Names || tp == schemas.Map {
						got = unbase64(t, got)
						if tp == schemas.Map && got != want && len(got) == len(want) { // in any order
							continue
						}
					}
					if got != want {
						t.Fatalf("row %s: %s is %q, want %q", f[0], id.Field().Name, got, want)
					}
				}
			}
		})
	}
}

func TestBatchDay(t *testing.T) {
	taken := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		first time.Time
		want  string
	}{
		"same day":        {taken, "2026-11-20"},
		"yesterday":       {taken.Add(-24 * time.Hour), "2026-11-19"},
		"fast clock":      {taken.Add(13 * time.Hour), "2026-11-21"},
		"still retained":  {taken.AddDate(0, 0, -schemas.RetentionDays+1), "2026-10-22"},
		"older than that": {taken.AddDate(0, 0, -schemas.RetentionDays), "2026-11-20"},
		"far future":      {taken.AddDate(3, 0, 0), "2026-11-20"},
		"no time":         {time.Unix(0, 0), "2026-11-20"},
		"before 1970":     {time.Unix(-1, 0), "2026-11-20"},
	} {
		r := eventRows{day: batchDay(c.first.UnixNano(), taken)}
		if got := r.Partition(); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// A few bytes on the wire must not become gigabytes in a block.
func TestUnpackBomb(t *testing.T) {
	b := batch.NewBuilder(schemas.Process, schemas.Columns(schemas.Process))
	long := strings.Repeat("x", 64<<10)
	for range batch.MaxRows {
		b.Str(schemas.ProcessArgs, long)
		b.EndRow()
	}
	enc, err := batch.Encode(b.Batch())
	if err != nil {
		t.Fatal(err)
	}
	_, err = NewEvents().Decode(Message{Subject: schemas.EventsSubject("c", "n", schemas.Process), Data: enc[0].Data, Time: time.Now()})
	if !fault.IsPermanent(err) {
		t.Fatalf("%d bytes that unpack to %d: %v", len(enc[0].Data), batch.MaxRows*len(long), err)
	}
}

// realistic returns messages of 1,000 rows each that look like a busy node's.
func realistic(t testing.TB, class schemas.Class, n int) []Message {
	t.Helper()
	var out []Message
	for m := range n {
		b := batch.NewBuilder(class, schemas.Columns(class))
		for i := range 1000 {
			k := i % 50
			b.Bytes16(schemas.EventID, schemas.Hash128(strconv.Itoa(m), strconv.Itoa(i)))
			b.Str(schemas.Action, []string{"exec", "fork", "exit"}[i%3])
			b.Str(schemas.Syscall, "execve")
			b.Str(schemas.Cluster, "prod")
			b.Str(schemas.Node, "node-17")
			b.Uint32(schemas.SchemaVer, 1)
			now := time.Now().UnixNano()
			b.Int64(schemas.EventTime, now)
			b.Uint64(schemas.TimeBoot, uint64(now))
			b.Int64(schemas.TimeObserved, now)
			b.Uint32(schemas.CPU, uint32(i%8))
			b.Uint64(schemas.Sequence, uint64(i))
			b.Uint32(schemas.ProcessPID, uint32(i))
			b.Uint32(schemas.ThreadID, uint32(i))
			b.Uint32(schemas.ProcessParentPID, uint32(k))
			b.Int64(schemas.ProcessStart, now)
			b.Uint64(schemas.ProcessStartBoot, uint64(now))
			b.Str(schemas.ProcessName, "sh")
			b.Str(schemas.ProcessExe, "/usr/bin/program-"+strconv.Itoa(k))
			b.Str(schemas.ProcessCommand, "program-"+strconv.Itoa(k))
			b.Str(schemas.ProcessArgs, "--config /etc/program/"+strconv.Itoa(i)+".yaml --verbose")
			b.Str(schemas.ProcessCwd, "/srv/app")
			b.Uint32(schemas.ProcessUserID, 1000)
			b.Str(schemas.ProcessUserName, "app")
			b.Uint64(schemas.ProcessCapEffective, 0xa80425fb)
			b.Str(schemas.ParentName, "bash")
			b.Str(schemas.ParentExe, "/usr/bin/bash")
			b.List(schemas.AncestorNames, []string{"bash", "containerd-shim", "systemd"})
			b.List(schemas.AncestorExes, []string{"/usr/bin/bash", "/usr/bin/containerd-shim", "/usr/lib/systemd/systemd"})
			b.Uint64(schemas.CgroupID, uint64(k))
			b.Str(schemas.ContainerID, strings.Repeat("ab", 31)+strconv.Itoa(k%10+10))
			b.Str(schemas.PodUID, "8f7d0c4e-0000-4000-8000-0000000000"+strconv.Itoa(k%10+10))
			b.List(schemas.ProcessArgv, []string{"program", "--config", "/etc/program/" + strconv.Itoa(i) + ".yaml", "--verbose"})
			b.Str(schemas.PodName, "web-7c9d"+strconv.Itoa(k%10))
			b.Str(schemas.Namespace, "shop")
			b.Str(schemas.WorkloadKind, "Deployment")
			b.Str(schemas.WorkloadName, "web")
			b.Map(schemas.PodLabels, map[string]string{"app": "web", "tier": "front", "version": "v3"})
			if i%3 == 2 {
				b.Int64(schemas.ExitCode, 0)
			}
			b.EndRow()
		}
		enc, err := batch.Encode(b.Batch())
		if err != nil {
			t.Fatal(err)
		}
		for k, e := range enc {
			msg := Message{Stream: schemas.StreamEvents, Sequence: uint64(2*m + k + 1), Subject: schemas.EventsSubject("prod", "node-17", class), Data: e.Data, Time: time.Now()}
			out = append(out, msg)
		}
	}
	return out
}

// BenchmarkBlock turns 100 messages of 1,000 rows into a Native block: from
// Arrow IPC bytes (decode), from decoded batches (append), and into bytes
// (encode).
func BenchmarkBlock(b *testing.B) {
	messages := realistic(b, schemas.Process, 100)
	src := NewEvents()
	t := src.Tables()[schemas.Process]
	var rows []Rows
	total := 0
	for _, m := range messages {
		r, err := src.Decode(m)
		if err != nil {
			b.Fatal(err)
		}
		rows = append(rows, r)
		total += r.Count()
	}
	perRow := func(b *testing.B) {
		b.ReportMetric(float64(total)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	}
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for _, m := range messages {
				if _, err := src.Decode(m); err != nil {
					b.Fatal(err)
				}
			}
		}
		perRow(b)
	})
	block := newBlock(t.Columns, t.Types)
	b.Run("append", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			block.reset()
			for _, r := range rows {
				r.Append(block)
			}
		}
		perRow(b)
	})
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		var body *bytes.Reader
		for b.Loop() {
			_, body = block.encode()
		}
		perRow(b)
		b.ReportMetric(float64(body.Len())/float64(total), "B/row")
	})
}

// BenchmarkInsert sends a block of 100,000 rows to ClickHouse.
func BenchmarkInsert(b *testing.B) {
	w := newWorld(b)
	src := NewEvents()
	t := src.Tables()[schemas.Process]
	block := newBlock(t.Columns, t.Types)
	for _, m := range realistic(b, schemas.Process, 100) {
		r, err := src.Decode(m)
		if err != nil {
			b.Fatal(err)
		}
		r.Append(block)
	}
	columns, body := block.encode()
	b.ResetTimer()
	for b.Loop() {
		body.Seek(0, 0)
		if err := w.db.insert(b.Context(), t.Name, columns, body, newToken()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(block.rows)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}
