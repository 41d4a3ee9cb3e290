package alert

import (
	"net/netip"
	"path"
	"strconv"
	"strings"
	"time"

	"picket/internal/batch"
	"picket/schemas"
)

// Evidence returns an event as a finding carries it: what OCSF has attributes
// for, and the whole event as it is stored. Its process is without the
// ancestors, which the finding has in actor.process and the event in its data.
func Evidence(b *batch.Batch, row int) schemas.Evidence {
	str := func(id schemas.FieldID) string { return b.Str(id, row) }
	event, _ := b.Bytes16(schemas.EventID, row)
	ev := schemas.Evidence{UID: schemas.FormatID(event), Name: strings.TrimSuffix(b.Class().String()+" "+str(schemas.Action), " "), Data: values(b, row)}
	switch b.Class() {
	case schemas.Audit:
		ev.Name = b.Class().String() + " " + str(schemas.AuditVerb)
		ev.API = &schemas.API{Operation: str(schemas.AuditVerb), Request: &schemas.Request{UID: str(schemas.AuditID)}}
		if !b.IsNull(schemas.AuditResponseCode, row) {
			ev.API.Response = &schemas.Resp{Code: b.Int(schemas.AuditResponseCode, row)}
		}
		return ev
	case schemas.Network, schemas.DNS:
		ev.Connection, ev.Source, ev.Target = connection(b, row)
		if q := str(schemas.DNSQuestion); q != "" {
			ev.Query = &schemas.DNSQuery{Hostname: q, Type: str(schemas.DNSQuestionType)}
		}
	}
	ev.Process = process(b, row)
	ev.Process.ParentProcess = nil
	ev.File = file(str(schemas.FilePath))
	return ev
}

func file(p string) *schemas.OCSFFile {
	if p == "" {
		return nil
	}
	return &schemas.OCSFFile{Name: path.Base(p), Path: p, TypeID: 1}
}

// process returns the acting process with its ancestors, as many as the sensor
// knew.
func process(b *batch.Batch, row int) *schemas.OCSFProcess {
	str := func(id schemas.FieldID) string { return b.Str(id, row) }
	line := func(command, args string) string { return strings.TrimSpace(command + " " + args) }
	p := &schemas.OCSFProcess{
		PID: uint32(b.Uint(schemas.ProcessPID, row)), NamespacePID: uint32(b.Uint(schemas.ProcessVPID, row)), CreatedTime: b.Int(schemas.ProcessStart, row) / 1e6,
		Name: str(schemas.ProcessName), CmdLine: line(str(schemas.ProcessCommand), str(schemas.ProcessArgs)),
		WorkingDir: str(schemas.ProcessCwd), File: file(str(schemas.ProcessExe)),
		User: &schemas.User{Name: str(schemas.ProcessUserName), UID: strconv.FormatUint(b.Uint(schemas.ProcessUserID, row), 10)},
	}
	parent := &schemas.OCSFProcess{
		PID: uint32(b.Uint(schemas.ProcessParentPID, row)), Name: str(schemas.ParentName), CreatedTime: b.Int(schemas.ParentStart, row) / 1e6,
		CmdLine: line(str(schemas.ParentCommand), str(schemas.ParentArgs)), File: file(str(schemas.ParentExe)),
	}
	if parent.Name == "" {
		return p
	}
	p.ParentProcess = parent
	var lists [5][]string
	for i, id := range []schemas.FieldID{schemas.AncestorPIDs, schemas.AncestorNames, schemas.AncestorExes, schemas.AncestorCommands, schemas.AncestorArgs} {
		for v := range b.List(id, row) {
			lists[i] = append(lists[i], v)
		}
	}
	at := func(list, i int) string {
		if i < len(lists[list]) {
			return lists[list][i]
		}
		return ""
	}
	last := parent
	for i := 1; i < min(len(lists[1]), schemas.MaxAncestors); i++ { // 0 is the parent
		pid, _ := strconv.ParseUint(at(0, i), 10, 32) // 0: not known
		last.ParentProcess = &schemas.OCSFProcess{PID: uint32(pid), Name: at(1, i), File: file(at(2, i)), CmdLine: line(at(3, i), at(4, i))}
		last = last.ParentProcess
	}
	return p
}

// connection returns the ends of a connection: the source is the client.
func connection(b *batch.Batch, row int) (c *schemas.Connection, source, target *schemas.NetEndpoint) {
	c = &schemas.Connection{Protocol: b.Str(schemas.NetTransport, row)}
	local := &schemas.NetEndpoint{IP: address(b, schemas.NetLocalAddress, row), Port: b.Uint(schemas.NetLocalPort, row)}
	peer := &schemas.NetEndpoint{IP: address(b, schemas.NetPeerAddress, row), Port: b.Uint(schemas.NetPeerPort, row),
		Hostname: b.Str(schemas.NetPeerDomain, row), Name: b.Str(schemas.PeerName, row)}
	source, target = local, peer
	switch b.Str(schemas.NetDirection, row) {
	case "inbound":
		c.DirectionID, source, target = 1, peer, local
	case "outbound":
		c.DirectionID = 2
	}
	known := func(e *schemas.NetEndpoint) *schemas.NetEndpoint {
		if *e == (schemas.NetEndpoint{}) {
			return nil
		}
		return e
	}
	return c, known(source), known(target)
}

func address(b *batch.Batch, id schemas.FieldID, row int) string {
	a, ok := b.Bytes16(id, row)
	if ip := netip.AddrFrom16(a).Unmap(); ok && a != ([16]byte{}) {
		return ip.String()
	}
	return ""
}

// maxListed bounds the elements of one list in a finding.
const maxListed = 256

// values returns an event's columns that have a value, by name, as JSON has
// them: text, numbers, lists and maps of text; times as RFC 3339.
func values(b *batch.Batch, row int) map[string]any {
	out := make(map[string]any, 64)
	for _, id := range schemas.Columns(b.Class()) {
		f := id.Field()
		if b.IsNull(id, row) {
			continue
		}
		var v any
		has := true
		switch f.Type {
		case schemas.Text, schemas.Name:
			s := b.Str(id, row)
			v, has = s, s != ""
		case schemas.Bool:
			v, has = true, b.Bool(id, row)
		case schemas.Uint32, schemas.Uint64:
			n := b.Uint(id, row)
			v, has = n, n != 0 || f.Nullable
		case schemas.Int64:
			n := b.Int(id, row)
			v, has = n, n != 0 || f.Nullable
		case schemas.Time:
			n := b.Int(id, row)
			v, has = time.Unix(0, n).UTC(), n != 0
		case schemas.IP:
			s := address(b, id, row)
			v, has = s, s != ""
		case schemas.ID:
			a, _ := b.Bytes16(id, row)
			v = schemas.FormatID(a)
		case schemas.List, schemas.Names:
			var l []string
			for s := range b.List(id, row) {
				if l = append(l, s); len(l) == maxListed {
					break
				}
			}
			v, has = l, len(l) > 0
		case schemas.Map:
			m := make(map[string]string)
			for k, s := range b.Map(id, row) {
				if m[k] = s; len(m) == maxListed {
					break
				}
			}
			v, has = m, len(m) > 0
		}
		if has {
			out[f.Name] = v
		}
	}
	return out
}
