// Package dns reads DNS messages as they are on the wire (RFC 1035). They come
// from whoever answers: every reader is bounded and takes any bytes.
package dns

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// Bounds of what is told of a message; a longer one is told as far as they go.
const (
	maxRecords = 64
	maxData    = 512 // bytes of a record's data as text
)

// Message is what is told of a message. Names are in lower case, because they
// mean the same in any, and without the dot at their end.
type Message struct {
	ID           uint16
	ResponseCode string // NOERROR, NXDOMAIN, …; of a response
	Question     string // name that is asked for; the first, where there are several
	Type         string // of the question: A, AAAA, TXT, …
	// Records are those of the answer section: name, type and data, with spaces
	// between.
	Records   []string
	Addresses []netip.Addr // of the answer's A and AAAA records
	Truncated bool         // the server left some out (TC): the client asks again over TCP
	// Malformed says what is wrong with a message that cannot be read, or not to
	// its end; what was read before is there. Empty: nothing.
	Malformed string
}

// Parse reads a message. m is reused: its slices are overwritten.
func (m *Message) Parse(b []byte) {
	*m = Message{Records: m.Records[:0], Addresses: m.Addresses[:0]}
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil {
		m.Malformed = "header: " + err.Error()
		return
	}
	m.ID, m.Truncated = h.ID, h.Truncated
	if h.Response {
		m.ResponseCode = responseCode(h.RCode)
	}
	q, err := p.Question()
	switch {
	case err == nil:
		m.Question, m.Type = name(q.Name), typeName(q.Type)
	case err != dnsmessage.ErrSectionDone:
		m.Malformed = "question: " + err.Error()
		return
	}
	if err := p.SkipAllQuestions(); err != nil {
		m.Malformed = "question: " + err.Error()
		return
	}
	for len(m.Records) < maxRecords {
		rh, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			return
		}
		if err == nil {
			err = m.record(&p, rh)
		}
		if err != nil {
			m.Malformed = "answer: " + err.Error()
			return
		}
	}
}

// record reads the data of one record.
func (m *Message) record(p *dnsmessage.Parser, h dnsmessage.ResourceHeader) error {
	var data string
	switch h.Type {
	case dnsmessage.TypeA:
		r, err := p.AResource()
		if err != nil {
			return err
		}
		m.Addresses = append(m.Addresses, netip.AddrFrom4(r.A))
		data = netip.AddrFrom4(r.A).String()
	case dnsmessage.TypeAAAA:
		r, err := p.AAAAResource()
		if err != nil {
			return err
		}
		m.Addresses = append(m.Addresses, netip.AddrFrom16(r.AAAA))
		data = netip.AddrFrom16(r.AAAA).String()
	case dnsmessage.TypeCNAME:
		r, err := p.CNAMEResource()
		if err != nil {
			return err
		}
		data = name(r.CNAME)
	case dnsmessage.TypePTR:
		r, err := p.PTRResource()
		if err != nil {
			return err
		}
		data = name(r.PTR)
	case dnsmessage.TypeNS:
		r, err := p.NSResource()
		if err != nil {
			return err
		}
		data = name(r.NS)
	case dnsmessage.TypeMX:
		r, err := p.MXResource()
		if err != nil {
			return err
		}
		data = strconv.Itoa(int(r.Pref)) + " " + name(r.MX)
	case dnsmessage.TypeSRV:
		r, err := p.SRVResource()
		if err != nil {
			return err
		}
		data = fmt.Sprintf("%d %d %d %s", r.Priority, r.Weight, r.Port, name(r.Target))
	case dnsmessage.TypeTXT:
		r, err := p.TXTResource()
		if err != nil {
			return err
		}
		data = strings.Join(r.TXT, "")
	default:
		r, err := p.UnknownResource()
		if err != nil {
			return err
		}
		// As RFC 3597 writes the data of a type it does not know.
		data = fmt.Sprintf("\\# %d %s", len(r.Data), hex.EncodeToString(r.Data[:min(len(r.Data), maxData/2)]))
	}
	m.Records = append(m.Records, name(h.Name)+" "+typeName(h.Type)+" "+data[:min(len(data), maxData)])
	return nil
}

func name(n dnsmessage.Name) string {
	return strings.ToLower(strings.TrimSuffix(n.String(), "."))
}

// typeNames are those types whose names the library has not (IANA, DNS
// parameters).
var typeNames = map[dnsmessage.Type]string{35: "NAPTR", 39: "DNAME", 43: "DS", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 52: "TLSA", 257: "CAA"}

func typeName(t dnsmessage.Type) string {
	if n, ok := typeNames[t]; ok {
		return n
	}
	if n, ok := strings.CutPrefix(t.String(), "Type"); ok {
		return n
	}
	return "TYPE" + strconv.Itoa(int(t)) // RFC 3597
}

// responseCodes as IANA writes them.
var responseCodes = [...]string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH", "NOTZONE"}

func responseCode(c dnsmessage.RCode) string {
	if int(c) < len(responseCodes) {
		return responseCodes[c]
	}
	return "RCODE" + strconv.Itoa(int(c))
}
