package auditlogingest

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Bounds of what is remembered of a source that several ingesters may read.
// What counts is the time between records, not the time that has passed: after
// hours without any ingester the ids are still those of the newest records.
const (
	// recallFor is how long before the newest record an id is remembered, by
	// the clock of stamp: four times the overlap of the slowest cloud.
	recallFor = 20 * time.Minute
	// recallStep is how much that clock goes on at most from one batch to the
	// next. A source that could not be read for an hour, or had no owner, goes
	// over its overlap again, and must know it.
	recallStep = time.Minute
	// recallMax bounds the ids of a source: 24 MiB in the bucket, about 100 MiB
	// of memory. What goes for want of room is counted.
	recallMax = 1 << 20
	// segmentMax is when a segment is full; a new owner, who writes all of
	// them anew, fills segments to segmentBulk.
	segmentMax, segmentBulk = 1 << 10, 1 << 14
	// recallTTL removes the ids of a source that nobody reads any more.
	recallTTL = 30 * 24 * time.Hour
)

// known is a remembered event: its id, and in 64 bits cluster, auditID and stage.
// tag 0 is none.
type known struct {
	id  id
	tag uint64
}

const knownBytes = 24

func appendKnown(buf []byte, ks ...known) []byte {
	for _, k := range ks {
		buf = append(buf, k.id[:]...)
		buf = binary.LittleEndian.AppendUint64(buf, k.tag)
	}
	return buf
}

func parseKnown(buf []byte) known {
	return known{id(buf[:16]), binary.LittleEndian.Uint64(buf[16:knownBytes])}
}

// segment is one key of remembered ids: its stamp, 8 bytes little-endian ns, and
// the entries, knownBytes each.
type segment struct {
	at      int64
	entries []known
}

func (s *segment) encode() []byte {
	buf := make([]byte, 0, 8+knownBytes*len(s.entries))
	buf = binary.LittleEndian.AppendUint64(buf, uint64(s.at))
	return appendKnown(buf, s.entries...)
}

// decodeSegment reads at most count entries, and needs as many unless count is
// below 0: then all.
func decodeSegment(data []byte, count int) (segment, error) {
	if len(data) < 8 || (len(data)-8)%knownBytes != 0 {
		return segment{}, fmt.Errorf("%d bytes are no segment of ids", len(data))
	}
	s := segment{at: int64(binary.LittleEndian.Uint64(data))}
	data = data[8:]
	if count >= 0 {
		if len(data) < count*knownBytes {
			return segment{}, fmt.Errorf("segment has %d ids, want %d", len(data)/knownBytes, count)
		}
		data = data[:count*knownBytes]
	}
	s.entries = make([]known, 0, len(data)/knownBytes)
	for ; len(data) > 0; data = data[knownBytes:] {
		s.entries = append(s.entries, parseKnown(data))
	}
	return s, nil
}

// recall remembers the ids of one source. The maps hold what has been taken;
// the segments what is written with the batches. It is used under its lane's
// lock, but for the segments, which are the committing goroutine's.
type recall struct {
	ids  map[id]struct{}
	tags map[uint64]uint32

	first    uint64 // number of segments[0]
	segments []*segment
	count    int // entries in all segments

	clock int64     // newest stamp
	last  time.Time // when it was given; zero: by a former owner
}

func newRecall() *recall { return &recall{ids: map[id]struct{}{}, tags: map[uint64]uint32{}} }

func (r *recall) has(x id) bool { _, ok := r.ids[x]; return ok }

// add remembers a new id in memory, and reports whether another record of the
// same tag is remembered.
func (r *recall) add(k known) (repeated bool) {
	r.ids[k.id] = struct{}{}
	if k.tag == 0 {
		return false
	}
	n := r.tags[k.tag]
	r.tags[k.tag] = n + 1
	return n > 0
}

func (r *recall) forget(s *segment) {
	for _, k := range s.entries {
		delete(r.ids, k.id)
		if n := r.tags[k.tag]; n > 1 {
			r.tags[k.tag] = n - 1
		} else {
			delete(r.tags, k.tag)
		}
	}
}

// load reads what the position says was remembered.
func (r *recall) load(ctx context.Context, c *claim, at idRange) error {
	if at.Epoch == 0 {
		return nil
	}
	for n := at.First; n <= at.Last; n++ {
		count := -1
		if n == at.Last {
			if count = at.Count; count == 0 {
				break
			}
		}
		found, err := c.get(ctx, idsKey(c.token, at.Epoch, n), 5*time.Second, func(data []byte) error {
			s, err := decodeSegment(data, count)
			if err != nil {
				return err
			}
			for _, k := range s.entries {
				r.add(k)
			}
			r.segments = append(r.segments, &s)
			r.count += len(s.entries)
			r.clock = max(r.clock, s.at)
			return nil
		})
		if err != nil {
			return err
		}
		if !found {
			c.log.Warn("remembered event ids are gone; records that come again from before may be taken twice", "source", c.pos.Source, "segment", n)
		}
	}
	return nil
}

// rewrite writes all that is remembered under the claim's epoch, and then the
// position that says so.
func (r *recall) rewrite(ctx context.Context, c *claim, js jetstream.JetStream) error {
	var merged []*segment
	for _, s := range r.segments {
		last := len(merged) - 1
		if last >= 0 && len(merged[last].entries)+len(s.entries) <= segmentBulk {
			merged[last].entries = append(merged[last].entries, s.entries...)
			merged[last].at = s.at
			continue
		}
		merged = append(merged, &segment{s.at, s.entries[:len(s.entries):len(s.entries)]})
	}
	r.segments, r.first = merged, 1
	epoch := c.now().Epoch
	for i, s := range merged {
		if err := c.put(ctx, js, idsKey(c.token, epoch, r.first+uint64(i)), s.encode(), recallTTL); err != nil {
			return err
		}
	}
	return c.write(ctx, func(p *position) { p.IDs = r.at(epoch) })
}

// at names the segments as they are now.
func (r *recall) at(epoch uint64) idRange {
	at := idRange{Epoch: epoch, First: r.first, Last: r.first}
	if n := len(r.segments); n > 0 {
		at.Last, at.Count = r.first+uint64(n)-1, len(r.segments[n-1].entries)
	}
	return at
}

// stamp returns the time that ids of a batch have, which counts the time between
// batches and no long pause.
func (r *recall) stamp(now time.Time) int64 {
	switch {
	case r.clock == 0:
		r.clock = now.UnixNano()
	case !r.last.IsZero():
		r.clock += int64(max(0, min(now.Sub(r.last), recallStep)))
	}
	r.last = now
	return r.clock
}

// keep appends entries to the segments and writes those that changed. They count
// once the position that names them is written.
func (r *recall) keep(ctx context.Context, c *claim, js jetstream.JetStream, epoch uint64, ks []known, now time.Time) error {
	at := r.stamp(now)
	for len(ks) > 0 {
		last := len(r.segments) - 1
		if last < 0 || len(r.segments[last].entries) >= segmentMax {
			r.segments = append(r.segments, &segment{})
			last++
		}
		s := r.segments[last]
		n := min(len(ks), segmentMax-len(s.entries))
		s.entries = append(s.entries, ks[:n]...)
		s.at = at
		r.count += n
		ks = ks[n:]
		if err := c.put(ctx, js, idsKey(c.token, epoch, r.first+uint64(last)), s.encode(), recallTTL); err != nil {
			return err
		}
	}
	return nil
}

// expired takes the segments out that are too old or too many: their keys may be
// removed when a position without them is written. early is how many ids went
// for want of room. The caller calls forget for each.
func (r *recall) expired() (old []*segment, from uint64, early int) {
	from = r.first
	for len(r.segments) > 1 {
		s, newest := r.segments[0], r.segments[len(r.segments)-1]
		aged := newest.at-s.at > int64(recallFor)
		if !aged && r.count <= recallMax {
			break
		}
		if !aged {
			early += len(s.entries)
		}
		old = append(old, s)
		r.segments = r.segments[1:]
		r.first++
		r.count -= len(s.entries)
	}
	return old, from, early
}
