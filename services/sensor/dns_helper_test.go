package sensor

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// dnsFlag as the first argument makes this binary a name server and its client,
// in a network of their own.
const dnsFlag = "picket-dns"

// lookUp asks for a name over UDP and connects to what it is, asks for one that
// is not there, asks over TCP for a long text, and sends what is no message.
func lookUp() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return err
	}
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 53})
	if err != nil {
		return err
	}
	client, err := net.DialUDP("udp", nil, server.LocalAddr().(*net.UDPAddr))
	if err != nil {
		return err
	}
	ask := func(id uint16, name string) error {
		buf := make([]byte, 512)
		if _, err := client.Write(askFor(id, name, dnsmessage.TypeA)); err != nil {
			return err
		}
		n, from, err := server.ReadFromUDP(buf)
		if err != nil {
			return err
		}
		if _, err := server.WriteTo(answerTo(buf[:n]), from); err != nil {
			return err
		}
		_, err = client.Read(buf)
		return err
	}
	if err := ask(1, "Example.TEST."); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.2:4444")
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	conn.Close()
	if err := ask(2, "no.such.name."); err != nil {
		return err
	}

	tcp, err := net.Listen("tcp", "127.0.0.1:53")
	if err != nil {
		return err
	}
	if conn, err = net.Dial("tcp", tcp.Addr().String()); err != nil {
		return err
	}
	peer, err := tcp.Accept()
	if err != nil {
		return err
	}
	q := askFor(3, "text.test.", dnsmessage.TypeTXT)
	if err := writeMessage(conn, q); err != nil {
		return err
	}
	if _, err := readMessage(peer); err != nil {
		return err
	}
	if err := writeMessage(peer, answerTo(q)); err != nil {
		return err
	}
	if _, err := readMessage(conn); err != nil {
		return err
	}

	_, err = client.Write([]byte("\x1b[2J"))
	return err
}

func askFor(id uint16, name string, typ dnsmessage.Type) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, RecursionDesired: true})
	b.StartQuestions()
	b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET})
	msg, err := b.Finish()
	if err != nil {
		panic(err)
	}
	return msg
}

func answerTo(q []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(q)
	if err != nil {
		panic(err)
	}
	question, err := p.Question()
	if err != nil {
		panic(err)
	}
	h.Response = true
	name := question.Name.String()
	if name == "no.such.name." {
		h.RCode = dnsmessage.RCodeNameError
	}
	b := dnsmessage.NewBuilder(nil, h)
	b.EnableCompression()
	b.StartQuestions()
	b.Question(question)
	b.StartAnswers()
	rh := func(name string) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: 60}
	}
	switch name {
	case "Example.TEST.":
		b.CNAMEResource(rh(name), dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName("edge.test.")})
		b.AResource(rh("edge.test."), dnsmessage.AResource{A: [4]byte{127, 0, 0, 2}})
	case "text.test.":
		for range 12 {
			b.TXTResource(rh(name), dnsmessage.TXTResource{TXT: []string{strings.Repeat("x", 240)}})
		}
	}
	msg, err := b.Finish()
	if err != nil {
		panic(err)
	}
	return msg
}

func writeMessage(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}

func readMessage(r io.Reader) ([]byte, error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(n[:]))
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("a message of %d bytes: %w", len(b), err)
	}
	return b, nil
}
