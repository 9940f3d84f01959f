package devca

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
)

// TestAddressesAreReserved checks that an address is free, is no port that the kernel gives to clients, and is reserved until
// the context ends.
func TestAddressesAreReserved(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	addresses, err := FreeAddresses(ctx, 50)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, address := range addresses {
		if all[address] {
			t.Errorf("%s is returned twice", address)
		}
		all[address] = true
		if port := netip.MustParseAddrPort(address).Port(); port < firstPort || port > lastPort {
			t.Errorf("%s may be the port of a client", address)
		}
		var lc net.ListenConfig
		l, err := lc.Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatalf("a server cannot listen: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := reserve(ctx, address); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%s is not reserved: %v", address, err)
		}
	}
	cancel()
	for err := error(syscall.EADDRINUSE); errors.Is(err, syscall.EADDRINUSE); { // the end of ctx takes effect soon
		if err = reserve(t.Context(), addresses[0]); err != nil && !errors.Is(err, syscall.EADDRINUSE) {
			t.Error(err)
		}
	}
}
