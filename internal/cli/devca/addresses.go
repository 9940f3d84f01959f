package devca

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"syscall"
)

// The ports of FreeAddresses. The kernel gives ports after them to clients (ip_local_port_range on Linux), and one of those
// may be in use when a server wants to listen on it.
const (
	firstPort = 10_000
	lastPort  = 32_767
)

// FreeAddresses returns loopback addresses with free ports. They must be known in advance, because certificates contain
// them. Other calls do not return them until ctx ends, in this process or another one, whether a server listens on them or
// not: an open UDP socket on each port reserves it.
func FreeAddresses(ctx context.Context, n int) ([]string, error) {
	var addresses []string
	for tries := 0; len(addresses) < n; tries++ {
		address := fmt.Sprintf("127.0.0.1:%d", firstPort+rand.IntN(lastPort-firstPort+1)) //nolint:gosec // no secret
		err := reserve(ctx, address)
		switch {
		case err == nil:
			addresses = append(addresses, address)
		case !errors.Is(err, syscall.EADDRINUSE) || tries > lastPort-firstPort:
			return nil, err
		}
	}
	return addresses, nil
}

// reserve reserves a port until ctx ends. It returns an error if the port is reserved, or a server listens on it.
func reserve(ctx context.Context, address string) error {
	var lc net.ListenConfig
	reservation, err := lc.ListenPacket(ctx, "udp", address)
	if err != nil {
		return err
	}
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return errors.Join(err, reservation.Close())
	}
	context.AfterFunc(ctx, func() { _ = reservation.Close() }) // nothing was sent
	return l.Close()
}
