package schemas

import (
	"fmt"
	"slices"
)

// Class is the kind of an event. Each class is one Arrow schema, one subject
// token and one ClickHouse table.
type Class uint8

// The event classes. Values are not stored or sent anywhere: the name is.
const (
	Process Class = iota
	File
	Network
	Kernel
	DNS
	Audit
	Health
	// Correction says what was not known yet of a pod and container when
	// their events were joined. The enricher makes it; no sender does.
	Correction
	numClasses
)

var classNames = [numClasses]string{"process", "file", "network", "kernel", "dns", "audit", "health", "correction"}

// String returns the name used in subjects, columns and tables.
func (c Class) String() string {
	if c < numClasses {
		return classNames[c]
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// Classes returns every class in declaration order.
func Classes() []Class {
	all := make([]Class, numClasses)
	for i := range all {
		all[i] = Class(i)
	}
	return all
}

// NodeClasses returns the classes that a sensor sends.
func NodeClasses() []Class { return []Class{Process, File, Network, Kernel, DNS} }

// ParseClass returns the class of that name.
func ParseClass(name string) (Class, error) {
	if i := slices.Index(classNames[:], name); i >= 0 {
		return Class(i), nil
	}
	return 0, fmt.Errorf("unknown event class %q (known: %v)", name, classNames)
}

// ClassSet is a set of classes.
type ClassSet uint16

// SetOf returns the set holding the given classes.
func SetOf(cs ...Class) ClassSet {
	var s ClassSet
	for _, c := range cs {
		s |= 1 << c
	}
	return s
}

// Has reports whether c is in the set.
func (s ClassSet) Has(c Class) bool { return s&(1<<c) != 0 }

// Type is the logical type of a field; it fixes the Arrow and the ClickHouse
// type together.
type Type uint8

// The logical types.
const (
	// Text repeats rarely: Arrow utf8, ClickHouse String.
	Text Type = iota
	// Name repeats within a batch: Arrow dictionary<uint16, utf8>. It is
	// LowCardinality(String) in ClickHouse unless the field is Wide.
	Name
	// Bool is a truth value.
	Bool
	// Uint32 holds ids, ports, modes.
	Uint32
	// Uint64 holds counts, masks, nanoseconds of a monotonic clock.
	Uint64
	// Int64 holds results and codes that may be negative.
	Int64
	// Time is nanoseconds since the epoch, UTC: DateTime64(9,'UTC').
	Time
	// List is a list of strings: Array(String).
	List
	// Names is a list that repeats within a batch: Arrow dictionary<uint16, utf8>
	// of its elements, each ended by a NUL byte, which they do not contain;
	// Array(String).
	Names
	// Map is a map of string to string: Map(LowCardinality(String), String).
	Map
	// IP is an address in 16 bytes, IPv4 mapped into IPv6: ClickHouse IPv6.
	IP
	// ID is 16 bytes: ClickHouse UUID.
	ID
	// Date is a day, UTC; only stored fields have it.
	Date
)

// Field is one entry of the registry.
type Field struct {
	// Name is the column name: OpenTelemetry attribute names with dots as
	// underscores where one exists, the same manner elsewhere.
	Name string
	Type Type
	// Classes carry the field.
	Classes ClassSet
	// Rule holds the rule-language names that read the column as it is.
	// Names computed from several columns are defined by the rule engine.
	Rule []string
	// Nullable keeps "no value" apart from the zero value in ClickHouse. In
	// Arrow every column may be null; a null string reads as empty.
	Nullable bool
	// Wide is set on a Name whose distinct values are unbounded over time
	// (paths, arguments), which ClickHouse should not keep as LowCardinality.
	Wide bool
	// Enriched fields are added by the enricher; raw batches lack them, but for
	// those that are Sensed.
	Enriched bool
	// Sensed is set on an enriched field of which the sensor tells what the
	// container runtime says. It stands where Kubernetes says nothing.
	Sensed bool
	// Stored fields exist in ClickHouse only: the sink adds them.
	Stored bool
	// Doc is one sentence with the unit.
	Doc string
}

// FieldID names a field of the registry. IDs are positions and may differ between
// builds: names go over the wire, never IDs.
type FieldID uint16

var registry []Field

func add(f Field) FieldID {
	for _, g := range registry {
		if g.Name == f.Name {
			panic("schemas: field " + f.Name + " is registered twice")
		}
	}
	registry = append(registry, f)
	return FieldID(len(registry) - 1)
}

// Field returns the registry entry. The result is shared: do not change it.
func (id FieldID) Field() *Field { return &registry[id] }

// String returns the column name.
func (id FieldID) String() string { return registry[id].Name }

// NumFields is the number of registered fields; every FieldID is below it.
func NumFields() int { return len(registry) }

// FieldByName returns the field with that column name.
func FieldByName(name string) (FieldID, bool) {
	i := slices.IndexFunc(registry, func(f Field) bool { return f.Name == name })
	return FieldID(max(i, 0)), i >= 0
}

// Columns returns the fields of a class in column order: all that travel in
// its batches, raw and enriched, and without those that only storage has.
func Columns(c Class) []FieldID {
	var ids []FieldID
	for i := range registry {
		if registry[i].Classes.Has(c) && !registry[i].Stored {
			ids = append(ids, FieldID(i))
		}
	}
	return ids
}

// RawColumns is Columns without what only the enricher adds.
func RawColumns(c Class) []FieldID {
	return slices.DeleteFunc(Columns(c), func(id FieldID) bool {
		f := id.Field()
		return f.Enriched && !(f.Sensed && node.Has(c))
	})
}

// TableColumns returns the columns of the class's ClickHouse table.
func TableColumns(c Class) []FieldID {
	var ids []FieldID
	for i := range registry {
		if registry[i].Classes.Has(c) {
			ids = append(ids, FieldID(i))
		}
	}
	return ids
}
