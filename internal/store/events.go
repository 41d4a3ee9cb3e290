package store

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/apache/arrow/go/v16/arrow"
	"github.com/apache/arrow/go/v16/arrow/array"

	"picket/internal/batch"
	"picket/internal/fault"
	"picket/schemas"
)

// Events is the Source of PICKET_EVENTS: one table for each class.
type Events struct {
	tables   []Table
	decoders map[schemas.Class]*decoder
}

// decoder has what is remembered of the batches of a class. The lane of the
// class's table is who uses it, as a rule.
type decoder struct {
	mu sync.Mutex
	batch.Decoder
}

// NewEvents returns the source of the event tables.
func NewEvents() *Events {
	e := &Events{decoders: map[schemas.Class]*decoder{}}
	for _, c := range schemas.Classes() {
		t := Table{Name: c.Table(), ByDate: true}
		for _, id := range schemas.TableColumns(c) {
			t.Columns = append(t.Columns, id.Field().Name)
			t.Types = append(t.Types, id.Field().ClickHouseType())
		}
		e.tables = append(e.tables, t)
		e.decoders[c] = new(decoder)
	}
	return e
}

// Tables implements Source.
func (e *Events) Tables() []Table { return e.tables }

// Route implements Source.
func (e *Events) Route(m Message) (table, rows int, err error) {
	_, c, err := schemas.ParseEventsSubject(m.Subject)
	if err != nil {
		return 0, 0, fault.Permanent(schemas.LossDecode, err)
	}
	rows, err = strconv.Atoi(m.Header.Get(schemas.HeaderRows))
	if err != nil || rows < 1 || rows > batch.MaxRows {
		rows = 1 // only a hint
	}
	return int(c), rows, nil
}

// Decode implements Source.
func (e *Events) Decode(m Message) (Rows, error) {
	_, want, err := schemas.ParseEventsSubject(m.Subject)
	if err != nil {
		return nil, fault.Permanent(schemas.LossDecode, err)
	}
	d := e.decoders[want]
	d.mu.Lock()
	b, err := d.Decode(m.Data)
	d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if b.Class() != want {
		return nil, fault.Permanent(schemas.LossDecode, fmt.Errorf("batch of class %s on a subject of class %s", b.Class(), want))
	}
	if b.Rows() == 0 {
		return nil, fault.Permanent(schemas.LossDecode, errors.New("batch without rows"))
	}
	// The id of the raw batch, or where there is none the message's place in
	// the stream.
	id := m.Header.Get(schemas.HeaderBatchID)
	if id == "" {
		id = m.Stream + "-" + strconv.FormatUint(m.Sequence, 10)
	}
	if len(id) > maxBatchID {
		return nil, fault.Permanent(schemas.LossDecode, fmt.Errorf("header %s has %d bytes, more than %d", schemas.HeaderBatchID, len(id), maxBatchID))
	}
	r := &eventRows{b: b, id: id, size: unpacked(b), day: batchDay(b.Int(schemas.EventTime, 0), m.Time)}
	if r.size > maxUnpacked {
		return nil, fault.Permanent(schemas.LossDecode, fmt.Errorf("batch of %d bytes unpacks to %d, more than %d", len(m.Data), r.size, maxUnpacked))
	}
	return r, nil
}

// maxUnpacked bounds what one message may take in a block, in bytes: a few
// bytes of dictionary indices can stand for many of text.
const maxUnpacked = 96 << 20

// unpacked returns about how many bytes the batch takes in a block.
func unpacked(b *batch.Batch) int {
	size := 0
	for _, a := range b.Record().Columns() {
		d, ok := a.(*array.Dictionary)
		if !ok {
			size += bufferBytes(a.Data())
			continue
		}
		values := d.Dictionary().(*array.String)
		for i := range d.Len() {
			if d.IsValid(i) {
				size += values.ValueLen(d.GetValueIndex(i)) + 1
			}
		}
	}
	return size
}

// batchDay returns the partition of a message, in days since the epoch: the
// day of its first event. Where that is long ago or in the future the day the
// stream took the message stands for it, so that a wrong clock can neither
// fill the server with partitions nor have its rows dropped by retention on
// arrival.
func batchDay(first int64, taken time.Time) uint16 {
	const day = int64(24 * time.Hour)
	at, now := first/day, taken.UnixNano()/day
	if first < 0 || at > now+1 || at <= now-schemas.RetentionDays {
		at = now
	}
	return uint16(max(0, min(at, 1<<16-1)))
}

// bufferBytes adds up the buffers of a column. (Arrow's own SizeInBytes does
// not stand a missing validity bitmap.)
func bufferBytes(d arrow.ArrayData) int {
	size := 0
	for _, b := range d.Buffers() {
		if b != nil {
			size += b.Len()
		}
	}
	for _, c := range d.Children() {
		size += bufferBytes(c)
	}
	return size
}

// eventRows are the rows of one batch.
type eventRows struct {
	b    *batch.Batch
	id   string
	size int
	day  uint16
}

func (r *eventRows) BatchID() string { return r.id }

func (r *eventRows) Count() int { return r.b.Rows() }

func (r *eventRows) Size() int { return r.size }

func (r *eventRows) Partition() string {
	return time.Unix(int64(r.day)*24*60*60, 0).UTC().Format(time.DateOnly)
}

// Append adds the batch column by column. Columns of the batch that the table
// lacks do not exist: both are of the registry.
func (r *eventRows) Append(b *Block) {
	n := r.b.Rows()
	for i, id := range schemas.TableColumns(r.b.Class()) {
		switch id {
		case schemas.BatchID:
			c := b.col(i).(*text)
			for range n {
				c.Append(r.id)
			}
		case schemas.BatchDate:
			c := b.col(i).(*fixed[uint16])
			for range n {
				c.Append(r.day)
			}
		default:
			if a := r.b.Column(id); a != nil {
				appendArrow(b.col(i), a, n)
			}
		}
	}
	b.add(n)
}

// appendArrow adds n values of an Arrow column, whose type batch.Decode has
// held against the registry, to the ClickHouse column of the same field.
func appendArrow(c column, a arrow.Array, n int) {
	switch c := c.(type) {
	case *text:
		c.strings(a, n)
	case *name:
		c.strings(a.(*array.Dictionary), n)
	case *small:
		c.bools(a.(*array.Boolean), n)
	case *fixed[uint32]:
		c.values(a.(*array.Uint32).Uint32Values(), a)
	case *fixed[uint64]:
		c.values(a.(*array.Uint64).Uint64Values(), a)
	case *fixed[int64]:
		c.values(int64s(a), a)
	case *nullable[uint32]:
		c.values(a.(*array.Uint32).Uint32Values(), a)
	case *nullable[uint64]:
		c.values(a.(*array.Uint64).Uint64Values(), a)
	case *nullable[int64]:
		c.values(int64s(a), a)
	case *address:
		c.bytes(a.(*array.FixedSizeBinary), n)
	case *id:
		c.bytes(a.(*array.FixedSizeBinary), n)
	case *list[*text]:
		if a, ok := a.(*array.Dictionary); ok {
			appendNames(c, a, n)
			return
		}
		lists(c, a.(*array.List), n)
	case *dict:
		c.maps(a.(*array.Map), n)
	}
}

// int64s returns the values of an Int64 or Timestamp column.
func int64s(a arrow.Array) []int64 {
	if t, ok := a.(*array.Timestamp); ok {
		return arrow.Int64Traits.CastFromBytes(arrow.TimestampTraits.CastToBytes(t.TimestampValues()))
	}
	return a.(*array.Int64).Int64Values()
}
