package chdb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"

	chproto "github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/proto"
)

// Clients that read Native blocks over HTTP ask for the revision of the native
// protocol they speak (client_protocol_version). The library always writes
// revision 0. What differs stands around the columns only, but a column has no
// length in front: to find its end it has to be decoded. Its bytes are then
// copied as they were, so a type is never changed on the way.

// maxBlockRows and maxBlockColumns bound what a block may claim to hold.
const (
	maxBlockRows    = 1 << 30
	maxBlockColumns = 1 << 16
)

// recorder keeps what is read through it, so that what a decoder consumed can
// be copied.
type recorder struct {
	src  io.Reader
	kept []byte
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.src.Read(p)
	r.kept = append(r.kept, p[:n]...)
	return n, err
}

// nativeReader reads blocks of revision 0.
type nativeReader struct {
	record   *recorder
	buffered *bufio.Reader
	decoder  *chproto.Reader
	server   *column.ServerContext
}

func newNativeReader(src io.Reader) *nativeReader {
	record := &recorder{src: src}
	// The decoder takes a buffered reader of this size for its own, so that
	// the two agree on what has been consumed.
	buffered := bufio.NewReaderSize(record, 1<<17)
	return &nativeReader{record, buffered, chproto.NewReader(buffered), &column.ServerContext{Timezone: time.UTC}}
}

// position is how much of what is kept has been consumed.
func (r *nativeReader) position() int { return len(r.record.kept) - r.buffered.Buffered() }

// discard forgets what has been consumed.
func (r *nativeReader) discard() {
	rest := copy(r.record.kept, r.record.kept[r.position():])
	r.record.kept = r.record.kept[:rest]
}

// reviseNative copies blocks of revision 0 from src to w at another revision,
// one block at a time, until src ends. It returns an error, and never panics,
// where the blocks are not what they should be.
func reviseNative(w io.Writer, src io.Reader, revision uint64) (err error) {
	defer func() {
		// The decoders of columns trust the server they were written for.
		if p := recover(); p != nil {
			err = errUnknownEngineError.new("the Native result could not be decoded: %v", p)
		}
	}()
	r := newNativeReader(src)
	buffer := new(chproto.Buffer)
	for {
		buffer.Reset()
		switch err := r.block(buffer, revision); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if _, err := w.Write(buffer.Buf); err != nil {
			return err
		}
	}
}

// block puts the next block into buffer. It returns io.EOF at the end of the
// input, and there only.
func (r *nativeReader) block(buffer *chproto.Buffer, revision uint64) error {
	columns, err := r.decoder.UVarInt()
	if err != nil {
		if errors.Is(err, io.EOF) && r.position() > 0 {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	rows, err := r.decoder.UVarInt()
	if err != nil {
		return noEOF(err)
	}
	if columns > maxBlockColumns || rows > maxBlockRows {
		return fmt.Errorf("a Native block of %d columns and %d rows: more than %d or %d", columns, rows, maxBlockColumns, maxBlockRows)
	}
	if revision > 0 { // block info: not an overflow row, no bucket
		buffer.PutUVarInt(1)
		buffer.PutBool(false)
		buffer.PutUVarInt(2)
		buffer.PutInt32(-1)
		buffer.PutUVarInt(0)
	}
	buffer.PutUVarInt(columns)
	buffer.PutUVarInt(rows)
	r.discard()
	for range columns {
		name, err := r.decoder.Str()
		if err != nil {
			return noEOF(err)
		}
		typeName, err := r.decoder.Str()
		if err != nil {
			return noEOF(err)
		}
		buffer.PutString(name)
		buffer.PutString(typeName)
		if revision >= proto.DBMS_MIN_REVISION_WITH_CUSTOM_SERIALIZATION {
			buffer.PutBool(false)
		}
		r.discard()
		if rows == 0 {
			continue // an empty block has no data
		}
		if err := r.skipColumn(name, typeName, int(rows)); err != nil {
			return err
		}
		buffer.PutRaw(r.record.kept[:r.position()])
		r.discard()
	}
	return nil
}

// skipColumn consumes the data of a column.
func (r *nativeReader) skipColumn(name, typeName string, rows int) error {
	c, err := column.Type(typeName).Column(name, r.server)
	if err != nil {
		return errUnknownType.new("Column %s: the type %s is not known to Native clients of this interface, convert it in the query or ask for another FORMAT: %v", name, typeName, err)
	}
	if custom, ok := c.(column.CustomSerialization); ok {
		if err := custom.ReadStatePrefix(r.decoder); err != nil {
			return fmt.Errorf("decode the prefix of column %s %s: %w", name, typeName, noEOF(err))
		}
	}
	if err := c.Decode(r.decoder, rows); err != nil {
		return fmt.Errorf("decode column %s %s: %w", name, typeName, noEOF(err))
	}
	return nil
}

// noEOF turns the end of the input inside a block into an error.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
