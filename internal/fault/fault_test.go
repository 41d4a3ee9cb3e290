package fault_test

import (
	"errors"
	"fmt"
	"testing"

	"picket/internal/fault"
)

func TestPermanent(t *testing.T) {
	base := errors.New("bad magic")
	tests := []struct {
		name      string
		err       error
		permanent bool
		reason    string
	}{
		{"nil", fault.Permanent("decode", nil), false, "transient"},
		{"plain", base, false, "transient"},
		{"marked", fault.Permanent("decode", base), true, "decode"},
		{"wrapped", fmt.Errorf("batch 7: %w", fault.Permanent("decode", base)), true, "decode"},
	}
	for _, tt := range tests {
		if got := fault.IsPermanent(tt.err); got != tt.permanent {
			t.Errorf("%s: IsPermanent = %v, want %v", tt.name, got, tt.permanent)
		}
		if got := fault.Reason(tt.err); got != tt.reason {
			t.Errorf("%s: Reason = %q, want %q", tt.name, got, tt.reason)
		}
	}
	if !errors.Is(fault.Permanent("decode", base), base) {
		t.Error("the marked error does not unwrap to its cause")
	}
}
