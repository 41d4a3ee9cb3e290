package dns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// answer builds a response as a server does.
func answer(t testing.TB, question string, typ dnsmessage.Type, code dnsmessage.RCode, add func(b *dnsmessage.Builder)) []byte {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 4711, Response: true, RCode: code})
	b.EnableCompression()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(b.StartQuestions())
	must(b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(question), Type: typ, Class: dnsmessage.ClassINET}))
	must(b.StartAnswers())
	if add != nil {
		add(&b)
	}
	msg, err := b.Finish()
	must(err)
	return msg
}

func header(name string, typ dnsmessage.Type) dnsmessage.ResourceHeader {
	return dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET, TTL: 60}
}

func TestParse(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	full := answer(t, "WWW.Example.com.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, func(b *dnsmessage.Builder) {
		b.CNAMEResource(header("www.example.com.", dnsmessage.TypeCNAME), dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("Edge.example.net.")})
		b.AResource(header("edge.example.net.", dnsmessage.TypeA), dnsmessage.AResource{A: v4.As4()})
		b.AAAAResource(header("edge.example.net.", dnsmessage.TypeAAAA), dnsmessage.AAAAResource{AAAA: v6.As16()})
		b.TXTResource(header("t.example.net.", dnsmessage.TypeTXT), dnsmessage.TXTResource{TXT: []string{"a b", "\x1b[31m\xff"}})
		b.SRVResource(header("s.example.net.", dnsmessage.TypeSRV), dnsmessage.SRVResource{Priority: 1, Weight: 2, Port: 3, Target: dnsmessage.MustNewName("h.")})
		b.MXResource(header("m.example.net.", dnsmessage.TypeMX), dnsmessage.MXResource{Pref: 10, MX: dnsmessage.MustNewName("mx.")})
		b.NSResource(header("n.example.net.", dnsmessage.TypeNS), dnsmessage.NSResource{NS: dnsmessage.MustNewName("ns.")})
		b.PTRResource(header("p.example.net.", dnsmessage.TypePTR), dnsmessage.PTRResource{PTR: dnsmessage.MustNewName("ptr.")})
		b.UnknownResource(header("u.example.net.", 4242), dnsmessage.UnknownResource{Type: 4242, Data: []byte{1, 2, 255}})
	})
	query := func() []byte {
		b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 7, RecursionDesired: true})
		b.StartQuestions()
		b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName("a.b."), Type: 257, Class: dnsmessage.ClassINET})
		msg, _ := b.Finish()
		return msg
	}()
	many := answer(t, "many.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, func(b *dnsmessage.Builder) {
		for range 100 {
			b.AResource(header("many.", dnsmessage.TypeA), dnsmessage.AResource{A: v4.As4()})
		}
	})
	for _, tt := range []struct {
		what string
		msg  []byte
		want Message
	}{
		{"query", query, Message{ID: 7, Question: "a.b", Type: "CAA"}},
		{"every type", full, Message{ID: 4711, ResponseCode: "NOERROR", Question: "www.example.com", Type: "A", Addresses: []netip.Addr{v4, v6}, Records: []string{
			"www.example.com CNAME edge.example.net", "edge.example.net A 192.0.2.1", "edge.example.net AAAA 2001:db8::1",
			"t.example.net TXT a b\x1b[31m\xff", "s.example.net SRV 1 2 3 h", "m.example.net MX 10 mx", "n.example.net NS ns",
			"p.example.net PTR ptr", `u.example.net TYPE4242 \# 3 0102ff`}}},
		{"no such name", answer(t, "x.", dnsmessage.TypeAAAA, dnsmessage.RCodeNameError, nil), Message{ID: 4711, ResponseCode: "NXDOMAIN", Question: "x", Type: "AAAA"}},
		{"unknown code", answer(t, "x.", dnsmessage.TypeALL, 13, nil), Message{ID: 4711, ResponseCode: "RCODE13", Question: "x", Type: "ALL"}},
		{"the root", answer(t, ".", dnsmessage.TypeNS, 0, nil), Message{ID: 4711, ResponseCode: "NOERROR", Question: "", Type: "NS"}},
		{"empty", nil, Message{Malformed: "header: unpacking header: id: insufficient data for base length type"}},
	} {
		var m Message
		m.Parse(tt.msg)
		if len(m.Records) == 0 {
			m.Records = nil
		}
		if len(m.Addresses) == 0 {
			m.Addresses = nil
		}
		if !reflect.DeepEqual(m, tt.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", tt.what, m, tt.want)
		}
	}
	var m Message
	m.Parse(many)
	if len(m.Records) != maxRecords || m.Malformed != "" {
		t.Errorf("100 records: %d told, %q", len(m.Records), m.Malformed)
	}
	// What was read before the end is told.
	m.Parse(full[:len(full)-10])
	if m.Question != "www.example.com" || len(m.Records) == 0 || !strings.HasPrefix(m.Malformed, "answer: ") {
		t.Errorf("cut: %+v", m)
	}
	// A name that points at itself.
	loop := slices.Concat(query[:12], []byte{0xc0, 12, 0, 1, 0, 1})
	m.Parse(loop)
	if !strings.HasPrefix(m.Malformed, "question: ") {
		t.Errorf("loop: %+v", m)
	}
}

func framed(messages ...string) []byte {
	var b []byte
	for _, m := range messages {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(m))), m...)
	}
	return b
}

// segments cuts a stream as the kernel part does: at the given lengths, each segment carried up to bound bytes.
func segments(stream []byte, bound int, lengths ...int) []Segment {
	var out []Segment
	left, at := 0, 0
	for _, n := range append(lengths, len(stream)) {
		n = min(n, len(stream)-at)
		if n == 0 {
			continue
		}
		s := Segment{Socket: 1, Sequence: uint32(at), Total: uint32(n), Data: stream[at : at+min(n, bound)], Begun: uint32(min(left, n))}
		end := at + int(s.Begun)
		if left > 0 {
			if left -= int(s.Begun); left == 0 {
				s.Messages++
			}
		}
		for left == 0 && end < at+n {
			end += 2 + int(binary.BigEndian.Uint16(stream[end:]))
			if end <= at+n {
				s.Messages++
			} else {
				left = end - at - n
			}
		}
		at += n
		out = append(out, s)
	}
	return out
}

func TestStreams(t *testing.T) {
	a, b, long := "first", "second message", strings.Repeat("x", 3000)
	for _, tt := range []struct {
		what    string
		stream  []byte
		bound   int
		lengths []int
		lose    int // segment that the ring had no room for, from 1
		want    []string
	}{
		{"one", framed(a), 100, nil, 0, []string{a}},
		{"empty message", framed("", a), 100, nil, 0, []string{"", a}},
		{"two at once", framed(a, b), 100, nil, 0, []string{a, b}},
		{"length first", framed(a), 100, []int{2}, 0, []string{a}},
		{"across", framed(a, b, a), 100, []int{10, 4, 1}, 0, []string{a, b, a}},
		{"long", framed(long, a), 4000, []int{1000, 1000, 500}, 0, []string{long, a}},
		{"longer than carried", framed(long, a), 1000, []int{1500, 1502}, 0, []string{"?" + long[:998], a}},
		{"longer than carried, ends there", framed(long, a), 1000, nil, 0, []string{"?" + long[:998], "?"}},
		{"a piece is lost", framed(long, a), 4000, []int{1000, 1000, 1002}, 2, []string{"?", a}},
		{"the beginning is lost", framed(long, a), 4000, []int{1000}, 1, []string{"?", a}},
	} {
		s := NewStreams()
		var got []string
		for i, seg := range segments(tt.stream, tt.bound, tt.lengths...) {
			if i+1 == tt.lose {
				continue
			}
			s.Add(seg, func(msg []byte, whole bool) {
				m := string(msg)
				if !whole {
					m = "?" + m
				}
				got = append(got, m)
			})
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %.60q, want %.60q", tt.what, got, tt.want)
		}
		// Where a segment was not carried to its end, nobody knows that nothing began there.
		if n := s.open.Len(); n > 1 || n == 1 && tt.bound >= len(tt.stream) {
			t.Errorf("%s: %d beginnings are left", tt.what, n)
		}
	}
}

// TestStreamsBound: what streams keep does not grow.
func TestStreamsBound(t *testing.T) {
	s := NewStreams()
	for i := range uint64(10 * maxStreams) {
		s.Add(Segment{Socket: i, Total: 5, Data: []byte("\xff\xffabc")}, func([]byte, bool) { t.Error("a message") })
	}
	if n := s.open.Len(); n != maxStreams {
		t.Errorf("%d streams kept, want %d", n, maxStreams)
	}
	p := &partial{}
	for range 100 {
		p.add(make([]byte, 4096), false)
	}
	if len(p.buf) > maxMessage || !p.cut {
		t.Errorf("%d bytes kept of one message", len(p.buf))
	}
}

func FuzzParse(f *testing.F) {
	f.Add(answer(f, "www.example.com.", dnsmessage.TypeA, 0, func(b *dnsmessage.Builder) {
		b.AResource(header("www.example.com.", dnsmessage.TypeA), dnsmessage.AResource{A: [4]byte{1, 2, 3, 4}})
		b.TXTResource(header("www.example.com.", dnsmessage.TypeTXT), dnsmessage.TXTResource{TXT: []string{"x"}})
	}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Message
		m.Parse(b)
		size := len(m.Question)
		for _, r := range m.Records {
			size += len(r)
		}
		if len(m.Records) > maxRecords || len(m.Addresses) > maxRecords || size > maxRecords*(maxData+300)+255 {
			t.Errorf("%d bytes became %d", len(b), size)
		}
	})
}

// FuzzStreams: any segments, and always as many messages as are said to end.
func FuzzStreams(f *testing.F) {
	f.Add(framed("first", "second"), uint32(0), uint32(3), uint8(2))
	f.Fuzz(func(t *testing.T, data []byte, begun, extra uint32, messages uint8) {
		s := NewStreams()
		want, got := 0, 0
		for i := range uint32(4) {
			seg := Segment{Socket: uint64(i % 2), Sequence: i * uint32(len(data)), Begun: begun * i, Total: uint32(len(data)) + extra%100, Messages: uint32(messages % 9), Data: bytes.Clone(data)}
			want += int(seg.Messages)
			s.Add(seg, func([]byte, bool) { got++ })
		}
		if got != want {
			t.Errorf("%d messages, want %d", got, want)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	msg := answer(b, "www.example.com.", dnsmessage.TypeA, 0, func(m *dnsmessage.Builder) {
		for i := range 4 {
			m.AResource(header("www.example.com.", dnsmessage.TypeA), dnsmessage.AResource{A: [4]byte{1, 2, 3, byte(i)}})
		}
	})
	var m Message
	b.ReportAllocs()
	for b.Loop() {
		m.Parse(msg)
	}
	if len(m.Addresses) != 4 {
		b.Fatal(fmt.Sprint(m))
	}
}
