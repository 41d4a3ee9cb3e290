package enricher

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"picket/internal/fault"
	"picket/schemas"
)

// formatVersion is the first byte of a value in schemas.BucketMetadata. A
// replica leaves values of a higher version alone.
const formatVersion = 1

// kept is what informers keep and replicas tell each other: *pod,
// *ownerObject, *nodeObject, *serviceObject, *sliceObject, *namespaceObject,
// *accountObject.
type kept interface {
	id() string
	meta() *head
	kind() kind
	// fields hands every field but those of head to c, in a fixed order, to be
	// written or read.
	fields(c *codec)
}

// kind is the kind of an object, as it is written and as its key has it.
type kind byte

const (
	kindOfPod       kind = 'p'
	kindOfOwner     kind = 'o'
	kindOfNode      kind = 'n'
	kindOfService   kind = 's'
	kindOfSlice     kind = 'e'
	kindOfNamespace kind = 'm'
	kindOfAccount   kind = 'a'
)

func newObject(k kind) kept {
	switch k {
	case kindOfPod:
		return &pod{}
	case kindOfOwner:
		return &ownerObject{}
	case kindOfNode:
		return &nodeObject{}
	case kindOfService:
		return &serviceObject{}
	case kindOfSlice:
		return &sliceObject{}
	case kindOfNamespace:
		return &namespaceObject{}
	case kindOfAccount:
		return &accountObject{}
	}
	return nil
}

func (h *head) meta() *head { return h }

func (*pod) kind() kind             { return kindOfPod }
func (*ownerObject) kind() kind     { return kindOfOwner }
func (*nodeObject) kind() kind      { return kindOfNode }
func (*serviceObject) kind() kind   { return kindOfService }
func (*sliceObject) kind() kind     { return kindOfSlice }
func (*namespaceObject) kind() kind { return kindOfNamespace }
func (*accountObject) kind() kind   { return kindOfAccount }

func (h *head) fields(c *codec) {
	c.str(&h.uid)
	c.word(&h.namespace)
	c.str(&h.name)
}

func (r *ref) fields(c *codec) {
	c.word(&r.kind)
	c.word(&r.name)
	c.word(&r.uid)
}

func (k *container) fields(c *codec) {
	c.word(&k.name)
	c.word(&k.image)
	c.word(&k.tag)
	c.word(&k.digest)
	c.bool(&k.privileged)
}

func (p *pod) fields(c *codec) {
	p.head.fields(c)
	c.word(&p.serviceAccount)
	c.word(&p.node)
	c.str(&p.hash)
	c.num(&p.created)
	p.controller.fields(c)
	c.word(&p.templateHash)
	list(c, &p.labels, c.word)
	list(c, &p.annotations, c.word)
	list(c, &p.spec, func(k *container) { k.fields(c) })
	list(c, &p.instances, func(in *instance) { c.str(&in.id); in.container.fields(c) })
	list(c, &p.addresses, c.address)
	c.num(&p.since)
	c.bool(&p.ended)
}

func (o *ownerObject) fields(c *codec) {
	o.head.fields(c)
	o.controller.fields(c)
}

func (n *nodeObject) fields(c *codec) {
	n.head.fields(c)
	c.num(&n.created)
	list(c, &n.addresses, c.address)
	c.word(&n.place.zone)
	c.word(&n.place.region)
	c.word(&n.place.instanceType)
	list(c, &n.pods, c.prefix)
}

func (s *serviceObject) fields(c *codec) {
	s.head.fields(c)
	c.num(&s.created)
	list(c, &s.addresses, c.address)
}

func (s *sliceObject) fields(c *codec) {
	s.head.fields(c)
	c.word(&s.service)
	list(c, &s.ports, c.port)
	c.bool(&s.all)
	list(c, &s.pods, c.str)
	list(c, &s.api, c.address)
}

func (n *namespaceObject) fields(c *codec) {
	n.head.fields(c)
	list(c, &n.labels, c.word)
}

func (a *accountObject) fields(c *codec) {
	a.head.fields(c)
	c.str(&a.identity)
}

// record is an object as replicas tell it.
type record struct {
	object  kept
	version uint64 // resource version
	deleted int64  // ns since the epoch; 0 while it is there
}

var errFormat = errors.New("not a value of this format")

// encode appends the record to buf; body is where the object begins.
func (r *record) encode(buf []byte) (out []byte, body int) {
	c := codec{buf: append(buf, formatVersion, byte(r.object.kind()))}
	c.u64(&r.version)
	c.num(&r.deleted)
	body = len(c.buf)
	r.object.fields(&c)
	return c.buf, body
}

// decodeRecord reads what encode has written; body is where the object begins.
// Errors are permanent.
func decodeRecord(data []byte, w *words) (r record, body int, err error) {
	if len(data) < 2 || data[0] != formatVersion {
		return r, 0, fault.Permanent(schemas.LossDecode, errFormat)
	}
	if r.object = newObject(kind(data[1])); r.object == nil {
		return r, 0, fault.Permanent(schemas.LossDecode, fmt.Errorf("%w: kind %q", errFormat, data[1]))
	}
	c := codec{buf: data[2:], read: true, words: w}
	c.u64(&r.version)
	c.num(&r.deleted)
	body = len(data) - len(c.buf)
	r.object.fields(&c)
	r.object.meta().version = r.version
	if c.bad || len(c.buf) > 0 || r.object.id() == "" {
		return r, 0, fault.Permanent(schemas.LossDecode, errFormat)
	}
	return r, body, nil
}

// codec writes fields to the end of buf, or reads them from its beginning.
type codec struct {
	buf   []byte
	read  bool
	bad   bool
	words *words
}

func (c *codec) u64(n *uint64) {
	if !c.read {
		c.buf = binary.AppendUvarint(c.buf, *n)
		return
	}
	v, size := binary.Uvarint(c.buf)
	if size <= 0 {
		c.bad, c.buf = true, nil
		return
	}
	*n, c.buf = v, c.buf[size:]
}

func (c *codec) num(n *int64) {
	v := uint64(*n)
	c.u64(&v)
	if c.read { // what is written others may read
		*n = int64(v)
	}
}

func (c *codec) bool(b *bool) {
	v := uint64(0)
	if *b {
		v = 1
	}
	c.u64(&v)
	if c.read {
		*b = v != 0
	}
}

func (c *codec) port(p *uint16) {
	v := uint64(*p)
	c.u64(&v)
	if c.read {
		*p = uint16(v)
	}
}

// bytes returns the next n bytes, or nil where there are not so many.
func (c *codec) bytes(n uint64) []byte {
	if n > uint64(len(c.buf)) {
		c.bad, c.buf = true, nil
		return nil
	}
	out := c.buf[:n]
	c.buf = c.buf[n:]
	return out
}

func (c *codec) str(s *string) {
	n := uint64(len(*s))
	c.u64(&n)
	if !c.read {
		c.buf = append(c.buf, *s...)
		return
	}
	*s = string(c.bytes(n))
}

// word is str for what many objects have in common.
func (c *codec) word(s *string) {
	c.str(s)
	if c.read {
		*s = c.words.one(*s)
	}
}

func (c *codec) address(a *address) {
	if !c.read {
		c.buf = append(c.buf, a[:]...)
		return
	}
	copy(a[:], c.bytes(16))
}

func (c *codec) prefix(p *netip.Prefix) {
	s := ""
	if !c.read {
		s = p.String()
	}
	c.str(&s)
	if c.read {
		var err error
		if *p, err = netip.ParsePrefix(s); err != nil {
			c.bad = true
		}
	}
}

// maxListed bounds what is read of one list; nothing kept is longer.
const maxListed = 2 * maxEndpoints

// list hands every element to each. An element takes a byte at least, so that
// what is read is bounded by what is there.
func list[T any](c *codec, l *[]T, each func(*T)) {
	n := uint64(len(*l))
	c.u64(&n)
	if c.read {
		if n > uint64(len(c.buf)) || n > maxListed {
			c.bad, c.buf = true, nil
			return
		}
		*l = nil
		if n > 0 {
			*l = make([]T, n)
		}
	}
	for i := range *l {
		each(&(*l)[i])
	}
}
