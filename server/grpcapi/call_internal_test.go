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

// callFrom is a call of an address whose headers have arrived. It is over when its client has gone.
func callFrom(t *testing.T, s *Server, address string) (c *call, gone func(), err error) {
	t.Helper()
	ctx, cancel := context.WithCancel(peer.NewContext(t.Context(), &peer.Peer{Addr: &net.TCPAddr{IP: net.ParseIP(address)}}))
	c = &call{Context: ctx}
	return c, cancel, s.await(c)
}

func TestUnreadCallsAreBoundedAndEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &Server{unread: admission.NewShares("calls", 4)}
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

// One client without a credential keeps no more than a small part of the service's memory (deploy/systemd, MemoryMax) with
// messages that it does not finish.
func TestUnreadMessagesAreBounded(t *testing.T) {
	t.Parallel()
	const service = 2 << 30
	s, n := admission.NewShares("calls", maxUnread), 0
	for s.Take(admission.Address(&net.TCPAddr{IP: net.ParseIP("192.0.2.1")})) == nil {
		n++
	}
	if one, all := n*maxReceived, maxUnread*maxReceived; one > service/16 || all > service/8 {
		t.Errorf("one client keeps %d MiB of unread messages, all together %d MiB", one>>20, all>>20)
	}
}
