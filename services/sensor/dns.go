package sensor

import (
	"net/netip"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sys/unix"

	"picket/bpf"
	"picket/schemas"
	"picket/services/sensor/dns"
	"picket/services/sensor/proctree"
)

// Bounds of what is remembered of DNS.
const (
	maxNames     = 16384 // addresses with the name they were asked for by
	maxQuestions = 2048  // questions that wait for their answer
)

// namedAddress is an address in a network namespace: a pod's names are not its
// neighbour's.
type namedAddress struct {
	netNS   uint32
	address netip.Addr
}

// question tells questions apart that one socket has under way.
type question struct {
	socket uint64
	id     uint16
}

// asked is what a question was.
type asked struct {
	time uint64 // CLOCK_BOOTTIME
	name string
}

// resolver is what the lane of class dns keeps. It is used by one goroutine.
type resolver struct {
	streams *dns.Streams
	asked   *lru.Cache[question, asked]
	msg     dns.Message
	answers []string
}

func newResolver() (*resolver, error) {
	c, err := lru.New[question, asked](maxQuestions)
	if err != nil {
		return nil, err
	}
	return &resolver{streams: dns.NewStreams(), asked: c}, nil
}

// messages adds a row for every message that ends in the record.
func (l *lane) messages(p *proctree.Proc) {
	h, d := &l.ev.Header, &l.ev.DNS
	if d.Protocol == unix.IPPROTO_UDP {
		l.message(p, d.Data, uint32(len(d.Data)) == d.Total)
		return
	}
	l.dns.streams.Add(dns.Segment{Socket: d.Socket, Response: h.Action == bpf.ActionResponse, Sequence: d.Sequence,
		Total: d.Total, Begun: d.Begun, Messages: d.Messages, Data: d.Data}, func(msg []byte, whole bool) {
		l.message(p, msg, whole)
		h.Seq++
	})
}

func (l *lane) message(p *proctree.Proc, data []byte, whole bool) {
	h, d, b, m := &l.ev.Header, &l.ev.DNS, l.b, &l.dns.msg
	m.Parse(data)
	if !whole {
		m.Malformed = "some of the message is missing: it is longer than what is carried, or a part of it was lost"
	}
	key := question{d.Socket, m.ID}
	local, remote := d.Source(), d.Dest()
	if h.Action == bpf.ActionResponse {
		local, remote = remote, local
		if q, ok := l.dns.asked.Get(key); ok && q.name == m.Question {
			b.Uint64(schemas.DNSDuration, h.Time-min(q.time, h.Time))
			l.dns.asked.Remove(key)
			// Only what was asked for names addresses: anybody can send an answer.
			for _, a := range m.Addresses {
				if l.s.names.Add(namedAddress{h.NetNS, a}, m.Question) {
					l.s.metrics.namesEvicted.Inc()
				}
			}
		}
	} else {
		l.dns.asked.Add(key, asked{h.Time, m.Question})
	}
	b.Str(schemas.Action, h.Action.String())
	b.Str(schemas.Syscall, "dns")
	if d.Protocol == unix.IPPROTO_UDP {
		b.Str(schemas.NetTransport, "udp")
		b.Uint32(schemas.DNSBytes, d.Total)
	} else {
		b.Str(schemas.NetTransport, "tcp")
		b.Uint32(schemas.DNSBytes, uint32(len(data)))
	}
	b.Str(schemas.NetType, families[d.Family])
	b.Bytes16(schemas.NetLocalAddress, local.Addr().As16())
	b.Uint32(schemas.NetLocalPort, uint32(local.Port()))
	b.Bytes16(schemas.NetPeerAddress, remote.Addr().As16())
	b.Uint32(schemas.NetPeerPort, uint32(remote.Port()))
	b.Str(schemas.DNSQuestion, m.Question)
	b.Str(schemas.DNSQuestionType, m.Type)
	b.Str(schemas.DNSResponseCode, m.ResponseCode)
	b.Uint32(schemas.DNSID, uint32(m.ID))
	b.Bool(schemas.DNSTruncated, m.Truncated)
	b.Str(schemas.DNSMalformed, m.Malformed)
	l.dns.answers = l.dns.answers[:0]
	for _, a := range m.Addresses {
		l.dns.answers = append(l.dns.answers, a.String())
	}
	b.List(schemas.DNSAnswers, l.dns.answers)
	b.List(schemas.DNSRecords, m.Records)
	l.finish(p)
}

// peerName returns the name that an address was last asked for by in the acting
// process's network; empty if none was.
func (l *lane) peerName(a netip.Addr) string {
	l.await(bpf.ClassDNS)
	name, _ := l.s.names.Get(namedAddress{l.ev.Header.NetNS, a})
	return name
}
