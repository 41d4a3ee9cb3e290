package store

import (
	"bytes"

	"github.com/ClickHouse/ch-go/proto"
)

// Block collects the rows of one insert, column by column. It is used by one
// goroutine and keeps its memory from insert to insert.
type Block struct {
	names []string
	types []string
	cols  []column
	rows  int
	buf   proto.Buffer
}

func newBlock(names, types []string) *Block {
	b := &Block{names: names, types: types, cols: make([]column, len(types))}
	for i, t := range types {
		b.cols[i] = newColumn(t)
	}
	return b
}

// reset drops all rows and keeps the memory.
func (b *Block) reset() {
	b.rows = 0
	for _, c := range b.cols {
		c.reset()
	}
}

// add counts n rows, whose values stand in some of the columns; the others get
// default values.
func (b *Block) add(n int) {
	b.rows += n
	for _, c := range b.cols {
		if c.rows() > 0 {
			c.pad(b.rows)
		}
	}
}

// col returns a column to add values to, which has a value for each row before.
func (b *Block) col(i int) column {
	c := b.cols[i]
	c.pad(b.rows)
	return c
}

// encode returns the names of the columns that have values, and the block in
// the Native format: columns, rows, and each column with name and type. The
// bytes are valid until the next encode. A column without any value is left
// out, because the server fills in the same defaults.
func (b *Block) encode() ([]string, *bytes.Reader) {
	var names []string
	for i, c := range b.cols {
		if c.rows() > 0 {
			names = append(names, b.names[i])
		}
	}
	b.buf.Reset()
	b.buf.PutUVarInt(uint64(len(names)))
	b.buf.PutUVarInt(uint64(b.rows))
	for i, c := range b.cols {
		if c.rows() == 0 {
			continue
		}
		b.buf.PutString(b.names[i])
		b.buf.PutString(b.types[i])
		c.state(&b.buf)
		c.encode(&b.buf)
	}
	return names, bytes.NewReader(b.buf.Buf)
}
