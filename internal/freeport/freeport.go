// Package freeport finds TCP ports for servers that have to be told one.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports below what Linux gives to outgoing connections by default
// (net.ipv4.ip_local_port_range begins at 32768): between the look and the
// server's listen nobody takes one by chance.
const first, last = 20000, 32767

// Address puts a free port in place of port 0 and leaves other addresses as
// they are. It is safe for concurrent use.
func Address(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("listen address %q: use host:port", listen)
	}
	if port != "0" {
		return listen, nil
	}
	for range 100 {
		address := net.JoinHostPort(host, strconv.Itoa(first+rand.IntN(last-first+1)))
		var ln net.Listener
		if ln, err = net.Listen("tcp", address); err == nil {
			return address, ln.Close()
		}
	}
	return "", fmt.Errorf("no free port on %s: %w", host, err)
}
