package freeport

import (
	"net"
	"testing"
)

func TestAddress(t *testing.T) {
	a, err := Address("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", a)
	if err != nil {
		t.Fatalf("%s is not free: %v", a, err)
	}
	defer ln.Close()
	if got, err := Address(a); err != nil || got != a {
		t.Errorf("Address(%q) = %q, %v", a, got, err)
	}
	for _, bad := range []string{"", "127.0.0.1", "192.0.2.1:0"} {
		if got, err := Address(bad); err == nil {
			t.Errorf("Address(%q) = %q", bad, got)
		}
	}
}
