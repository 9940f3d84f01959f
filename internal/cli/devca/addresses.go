package devca

import (
	"context"
	"net"
)

// FreeAddresses are loopback addresses that nobody listens on. They have to be known beforehand: certificates contain them.
func FreeAddresses(ctx context.Context, n int) ([]string, error) {
	var addresses []string
	var listeners []net.Listener // closed after all are known, so that they differ
	defer func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}()
	for range n {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}
