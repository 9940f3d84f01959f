package devca

import (
	"context"
	"net"
)

// FreeAddresses returns loopback addresses with free ports. They must be known in advance, because certificates contain
// them.
func FreeAddresses(ctx context.Context, n int) ([]string, error) {
	var addresses []string
	var listeners []net.Listener // closed only at the end, so that all ports differ
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
