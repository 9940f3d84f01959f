package grpcapi

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/admission"
)

// callFrom returns a call from an address, whose headers have arrived. cancel ends it like a client that disconnects.
func callFrom(t *testing.T, s *Server, address string) (c *call, cancel func(), err error) {
	t.Helper()
	ctx, cancel := context.WithCancel(peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP(address)}}))
	c = &call{Context: ctx}
	return c, cancel, s.awaitMessage(c)
}

func TestUnreadCallsAreBoundedAndEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &Server{unread: admission.NewFairLimit("calls", 4)}
		silent, _, err := callFrom(t, s, "192.0.2.1")
		if err != nil {
			t.Fatal(err)
		}
		read, end, err := callFrom(t, s, "192.0.2.1")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err = callFrom(t, s, "192.0.2.1"); !errors.As(err, new(*pki.Refusal)) || pki.RetryAfter(err) == 0 {
			t.Errorf("the third of four slots for one address: %v", err)
		}
		_, gone, err := callFrom(t, s, "192.0.2.2")
		if err != nil {
			t.Errorf("another address has no slot: %v", err)
		}
		gone()
		read.arrived()
		synctest.Wait()
		if last, _, err := callFrom(t, s, "192.0.2.1"); err != nil || last.Err() != nil {
			t.Errorf("the slot of a call that was read is taken: %v", err)
		}
		time.Sleep(messageTimeout)
		synctest.Wait()
		handler, cancel := context.WithTimeout(silent, time.Hour)
		defer cancel()
		if <-silent.Done(); !errors.Is(silent.Err(), context.DeadlineExceeded) || handler.Err() == nil {
			t.Errorf("a call without a message ends with %v", silent.Err())
		}
		if read.Err() != nil {
			t.Errorf("a call that was read ends with %v", read.Err())
		}
		if end(); !errors.Is(read.Err(), context.Canceled) {
			t.Errorf("a call whose client has gone ends with %v", read.Err())
		}
		for range 2 {
			if _, _, err := callFrom(t, s, "192.0.2.1"); err != nil {
				t.Errorf("when all calls have ended, slots are taken: %v", err)
			}
		}
	})
}

// The unfinished messages of one client without a credential use at most 1/16 of the service's memory (MemoryMax in
// deploy/systemd), and those of all clients at most 1/8.
func TestUnreadMessagesAreBounded(t *testing.T) {
	t.Parallel()
	const service = 2 << 30
	s, n := admission.NewFairLimit("calls", maxUnread), 0
	for s.Acquire(admission.Address(&net.TCPAddr{IP: net.ParseIP("192.0.2.1")})) == nil {
		n++
	}
	if one, all := n*maxReceived, maxUnread*maxReceived; one > service/16 || all > service/8 {
		t.Errorf("one client keeps %d MiB of unread messages, all together %d MiB", one>>20, all>>20)
	}
}
