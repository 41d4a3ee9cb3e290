package dns

import (
	"encoding/binary"

	lru "github.com/hashicorp/golang-lru/v2"
)

// Bounds of what is kept of streams.
const (
	maxStreams = 128
	maxMessage = 2 + 1<<16 - 1 // length and message
)

// Segment is a piece of one direction of a TCP stream, as the kernel tells of
// it.
type Segment struct {
	Socket   uint64
	Response bool
	Sequence uint32 // of its first byte
	Total    uint32 // its length
	Begun    uint32 // bytes at its beginning of a message that began earlier
	Messages uint32 // that end in it
	Data     []byte // its beginning, or all of it
}

type streamKey struct {
	socket   uint64
	response bool
}

// partial is the beginning of a message, its length in front.
type partial struct {
	buf  []byte
	next uint32 // sequence number that continues it
	cut  bool   // bytes are missing: nothing may be added
}

// Streams puts messages together again that came in several segments. It is
// used by one goroutine. What it keeps is bounded: of too many streams the one
// that was idle for longest loses its beginning.
type Streams struct {
	open *lru.Cache[streamKey, *partial]
}

// NewStreams returns an empty set.
func NewStreams() *Streams {
	c, err := lru.New[streamKey, *partial](maxStreams)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &Streams{open: c}
}

// Add takes a segment and calls each for every message that ends in it:
// exactly s.Messages times, whatever the bytes say. whole is false when some of
// the message is missing; then msg is its beginning, as far as it is known.
func (t *Streams) Add(s Segment, each func(msg []byte, whole bool)) {
	key := streamKey{s.Socket, s.Response}
	ends := s.Messages
	begun := min(s.Begun, s.Total)
	data := s.Data[:min(uint32(len(s.Data)), s.Total)]
	if begun > 0 {
		p, ok := t.open.Get(key)
		if !ok || p.next != s.Sequence {
			p = &partial{cut: true}
		}
		part := data[:min(begun, uint32(len(data)))]
		p.add(part, uint32(len(part)) < begun)
		if ends > 0 {
			// The first message to end is the one that began first.
			each(p.message())
			ends--
			t.open.Remove(key)
		} else {
			p.next = s.Sequence + s.Total
			t.open.Add(key, p)
			return
		}
		data = data[len(part):]
		if uint32(len(part)) < begun {
			data = nil // where the next message begins was not carried
		}
	} else {
		t.open.Remove(key)
	}
	carried := begun + uint32(len(data))
	for len(data) >= 2 {
		n := 2 + int(binary.BigEndian.Uint16(data))
		if n > len(data) {
			break
		}
		if ends == 0 {
			return // the kernel counted otherwise: what it has not counted is no event
		}
		each(data[2:n], true)
		ends--
		data = data[n:]
	}
	// What is left of the segment is the beginning of a message, which may end in
	// the part of the segment that was not carried.
	for ; ends > 0; ends-- {
		msg := data[min(2, len(data)):]
		each(msg, false)
		data = nil
	}
	if len(data) > 0 || carried < s.Total {
		p := &partial{next: s.Sequence + s.Total}
		p.add(data, carried < s.Total)
		t.open.Add(key, p)
	}
}

func (p *partial) add(b []byte, cut bool) {
	if !p.cut && len(p.buf)+len(b) <= maxMessage {
		p.buf = append(p.buf, b...)
	} else if len(b) > 0 {
		cut = true
	}
	p.cut = p.cut || cut
}

// message returns the message, and whether all of it is there.
func (p *partial) message() (msg []byte, whole bool) {
	if len(p.buf) < 2 {
		return nil, false
	}
	msg = p.buf[2:]
	return msg, !p.cut && len(msg) == int(binary.BigEndian.Uint16(p.buf))
}
