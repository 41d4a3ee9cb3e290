package auditlogingest

import (
	"testing"

	"picket/internal/batch"
	"picket/schemas"
)

func builder() *batch.Builder {
	return batch.NewBuilder(schemas.Audit, schemas.RawColumns(schemas.Audit))
}

func BenchmarkNormalize(b *testing.B) {
	records := samples(b)
	total := 0
	for _, r := range records {
		total += len(r)
	}
	for _, redact := range []bool{true, false} {
		name := "redact"
		if !redact {
			name = "plain"
		}
		b.Run(name, func(b *testing.B) {
			cfg := DefaultRedact()
			cfg.Enabled = redact
			n := NewNormalizer("bench", "file", "file", cfg)
			bb := builder()
			b.SetBytes(int64(total / len(records)))
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if bb.Full() {
					bb.Reset()
				}
				if err := n.Append(bb, records[i%len(records)]); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

func TestSamples(t *testing.T) {
	n := NewNormalizer("test", "file", "file", DefaultRedact())
	for i, r := range samples(t) {
		if err := n.Append(builder(), r); err != nil {
			t.Errorf("line %d: %v", i+1, err)
		}
	}
}
