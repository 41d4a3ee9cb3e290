package store

import (
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Message is a message as the stream keeps it: the same whether it was
// delivered, delivered again, or read from the stream by its sequence.
type Message struct {
	Stream   string
	Sequence uint64
	Subject  string
	Header   nats.Header
	Data     []byte
	Time     time.Time // when the stream took it
}

func rawMessage(stream string, m *jetstream.RawStreamMsg) Message {
	return Message{Stream: stream, Sequence: m.Sequence, Subject: m.Subject, Header: m.Header, Data: m.Data, Time: m.Time}
}

// Source says how the messages of a durable consumer become rows of tables.
// What it returns for a message depends on that message alone, so that it is
// the same for everyone at every time. It is used by several goroutines.
type Source interface {
	// Tables lists the tables. Their order gives the numbers for Route.
	Tables() []Table
	// Route returns the number of the message's table and how many rows it
	// probably has, from its subject and headers alone.
	Route(m Message) (table, rows int, err error)
	// Decode returns the message's rows. Errors of both functions are
	// permanent (package fault): the message is set aside as a dead letter.
	Decode(m Message) (Rows, error)
}

// Table is a table that a Writer inserts into. It has a String column
// batch_id.
type Table struct {
	Name string
	// Columns and Types are its columns, without those that ClickHouse
	// computes, and their ClickHouse types.
	Columns, Types []string
	// ByDate says that the partition of a row is its batch_date.
	ByDate bool
}

// maxBatchID bounds a batch id, in bytes. Ours have at most 53.
const maxBatchID = 256

// Rows are the rows of one message: of one table and one partition.
type Rows interface {
	// BatchID names the message for good: two messages with the same one
	// carry the same rows. It is hostile input of at most maxBatchID bytes.
	BatchID() string
	// Count is the number of rows, at least 1.
	Count() int
	// Size is about how many bytes they take in memory.
	Size() int
	// Partition names the partition; for a Table that is ByDate it is the
	// batch_date as yyyy-mm-dd.
	Partition() string
	// Append adds the rows to a block of the table.
	Append(b *Block)
}
