package batch

import (
	"slices"
	"unsafe"

	"picket/schemas"
)

// Shared is columns of a Builder whose values many rows have in common, as what
// there is to say of the process that acted. The values are set once, as an
// entry, and a row names its entry, which costs the same for one column and for
// fifty. Setting fields is as for a Builder: it sets those of the next entry.
// Entries live until the Builder's next Reset.
type Shared struct {
	Builder
	of    *Builder
	width []int // by entry: bytes that a row takes in these columns
	row   []uint16
}

// Share puts columns of the builder aside; from then on they are set by entries,
// and setting them on the builder itself is ignored. Fields that the builder
// does not have are left out. Call it once, before the first row.
func (b *Builder) Share(ids []schemas.FieldID) *Shared {
	own := slices.DeleteFunc(slices.Clone(ids), func(id schemas.FieldID) bool { return b.at[id] == nil })
	b.shared = &Shared{Builder: *NewBuilder(b.class, own), of: b}
	for _, id := range own {
		b.at[id] = nil
	}
	return b.shared
}

// End finishes the entry and returns its number. There are at most as many
// entries as rows.
func (s *Shared) End() (entry int) {
	size, width := s.size, 0
	s.EndRow()
	for _, c := range s.used {
		width += c.width(s.rows - 1)
	}
	s.width = append(s.width, width)
	s.of.size += s.size - size
	return s.rows - 1
}

// Use gives the builder's current row the values of an entry. A row that uses
// none has no values in the shared columns.
func (s *Shared) Use(entry int) {
	if len(s.row) == s.of.rows {
		s.row = append(s.row, uint16(entry))
		s.of.size += s.width[entry]
	}
}

// endRow is called when the builder's row ends.
func (s *Shared) endRow() {
	if len(s.row) == s.of.rows {
		s.Use(s.End())
	}
}

func (s *Shared) reset() {
	s.Reset()
	s.width, s.row = s.width[:0], s.row[:0]
}

// expand makes c the column of the builder's rows, from s's column of entries.
// A dictionary stays with the entries.
func (s *Shared) expand(c, from *column) {
	c.reset()
	c.used = true
	switch c.typ {
	case schemas.Name, schemas.Names:
		c.fixed = gather[[2]byte](c.fixed, from.fixed, s.row)
	case schemas.Uint32:
		c.fixed = gather[[4]byte](c.fixed, from.fixed, s.row)
	case schemas.Uint64, schemas.Int64, schemas.Time:
		c.fixed = gather[[8]byte](c.fixed, from.fixed, s.row)
	case schemas.IP, schemas.ID:
		c.fixed = gather[[16]byte](c.fixed, from.fixed, s.row)
	default:
		for _, e := range s.row {
			c.add(from, int(e))
		}
		return
	}
	if !c.nulls {
		c.n = len(s.row)
		return
	}
	for _, e := range s.row {
		c.mark(from.has(int(e)))
		c.n++
	}
}

// gather appends the values of the given rows.
func gather[T [2]byte | [4]byte | [8]byte | [16]byte](to, from []byte, rows []uint16) []byte {
	var width T
	to = slices.Grow(to, len(width)*len(rows))
	values := unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(from))), len(from)/len(width))
	out := unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(to))), len(rows))
	for i, row := range rows {
		out[i] = values[row]
	}
	return to[:len(width)*len(rows)]
}

// add adds a row of another column of the same type, which has no fixed width.
func (c *column) add(from *column, row int) {
	switch c.typ {
	case schemas.Text:
		c.text.data = append(c.text.data, from.text.at(row)...)
		c.text.end()
	case schemas.List, schemas.Map:
		for i := from.off[row]; i < from.off[row+1]; i++ {
			c.text.data = append(c.text.data, from.text.at(int(i))...)
			c.text.end()
			if c.typ == schemas.Map {
				c.vals.data = append(c.vals.data, from.vals.at(int(i))...)
				c.vals.end()
			}
		}
		c.off = append(c.off, int32(c.text.len()))
	case schemas.Bool:
		c.mark(from.has(row))
		c.bit(from.fixed[row/8]&(1<<(row%8)) != 0)
	}
	c.n++
}

// width is how many bytes a row takes, without a dictionary's.
func (c *column) width(row int) int {
	switch c.typ {
	case schemas.Text:
		return len(c.text.at(row)) + 4
	case schemas.Name, schemas.Names:
		return 2
	case schemas.List, schemas.Map:
		from, to := c.off[row], c.off[row+1]
		size := int(c.text.off[to]-c.text.off[from]) + 4*int(to-from) + 4
		if c.typ == schemas.Map {
			size += int(c.vals.off[to]-c.vals.off[from]) + 4*int(to-from)
		}
		return size
	case schemas.Bool:
		return 1
	case schemas.Uint32:
		return 4
	case schemas.Uint64, schemas.Int64, schemas.Time:
		return 8
	}
	return 16
}
