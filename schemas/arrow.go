package schemas

import (
	"fmt"
	"strconv"

	"github.com/apache/arrow/go/v16/arrow"
)

// MetadataClass and MetadataVersion are the keys of a batch's Arrow schema
// metadata: the class name and SchemaVersion in decimal.
const (
	MetadataClass   = "picket.class"
	MetadataVersion = "picket.schema_version"
)

var arrowTypes = map[Type]arrow.DataType{
	Text:   arrow.BinaryTypes.String,
	Name:   &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Uint16, ValueType: arrow.BinaryTypes.String},
	Bool:   arrow.FixedWidthTypes.Boolean,
	Uint32: arrow.PrimitiveTypes.Uint32,
	Uint64: arrow.PrimitiveTypes.Uint64,
	Int64:  arrow.PrimitiveTypes.Int64,
	Time:   &arrow.TimestampType{Unit: arrow.Nanosecond, TimeZone: "UTC"},
	List:   arrow.ListOf(arrow.BinaryTypes.String),
	Names:  &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Uint16, ValueType: arrow.BinaryTypes.String},
	Map:    arrow.MapOf(arrow.BinaryTypes.String, arrow.BinaryTypes.String),
	IP:     &arrow.FixedSizeBinaryType{ByteWidth: 16},
	ID:     &arrow.FixedSizeBinaryType{ByteWidth: 16},
}

// ArrowType returns the type of the field's column in a batch. It panics for
// a stored field, which no batch carries.
func (f *Field) ArrowType() arrow.DataType {
	t, ok := arrowTypes[f.Type]
	if !ok || f.Stored {
		panic("schemas: " + f.Name + " is stored only and has no Arrow type")
	}
	return t
}

// ArrowSchema returns the schema of a batch of class c with the given columns.
func ArrowSchema(c Class, columns []FieldID) *arrow.Schema {
	fields := make([]arrow.Field, len(columns))
	for i, id := range columns {
		f := id.Field()
		fields[i] = arrow.Field{Name: f.Name, Type: f.ArrowType(), Nullable: true}
	}
	md := arrow.NewMetadata([]string{MetadataClass, MetadataVersion},
		[]string{c.String(), strconv.Itoa(SchemaVersion)})
	return arrow.NewSchema(fields, &md)
}

// ClassOf reads the class from a batch's schema metadata.
func ClassOf(s *arrow.Schema) (Class, error) {
	name, ok := s.Metadata().GetValue(MetadataClass)
	if !ok {
		return 0, fmt.Errorf("arrow schema has no %s metadata: not a Picket batch", MetadataClass)
	}
	return ParseClass(name)
}
