package server

import (
	"io"
	"net"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/credentials"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/admission"
)

// peers is credentials whose handshake reads two messages, and computes after each until it is told to go on.
type peers struct {
	credentials.TransportCredentials
	computing, on chan struct{}
}

// ServerHandshake implements credentials.TransportCredentials.
func (p peers) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	for range 2 {
		if _, err := io.ReadFull(conn, make([]byte, 2)); err != nil {
			return nil, nil, err
		}
		p.computing <- struct{}{}
		<-p.on
	}
	return conn, nil, nil
}

// shaken is how a handshake ended.
type shaken struct {
	conn net.Conn
	err  error
}

// shaking is a lane of handshakes, with room for one and for one that waits.
type shaking struct {
	lane  *admission.Lane
	creds boundedTLS
	peers peers
	ended chan shaken
}

func newShaking() *shaking {
	s := &shaking{
		lane:  admission.NewLane("handshakes", admission.Size{Slots: 1, Each: 1, Queue: 2}),
		peers: peers{computing: make(chan struct{}, 8), on: make(chan struct{})},
		ended: make(chan shaken, 8),
	}
	s.creds = boundedTLS{s.peers, &Server{metrics: newMetrics(nil), intake: &intake{lanes: map[work]*admission.Lane{handshakes: s.lane}}}}
	return s
}

// begin connects somebody.
func (s *shaking) begin() (client net.Conn) {
	client, raw := net.Pipe()
	go func() {
		conn, _, err := s.creds.ServerHandshake(raw)
		s.ended <- shaken{conn, err}
		if err != nil {
			_ = raw.Close() // as gRPC does
		}
	}()
	return client
}

func (s *shaking) send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Error(err)
	}
}

func (s *shaking) want(t *testing.T, when string, working, waiting, computed int) {
	t.Helper()
	synctest.Wait()
	if load := s.lane.Load(); load.Working != working || load.Waiting != waiting || len(s.peers.computing) != computed {
		t.Errorf("when %s, %+v, and %d messages were computed with; want %d at work, %d waiting, %d messages",
			when, load, len(s.peers.computing), working, waiting, computed)
	}
}

func TestAHandshakeHoldsAPlaceWhileItComputes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newShaking()
		silent, slow, one, two, three := s.begin(), s.begin(), s.begin(), s.begin(), s.begin()
		s.send(t, slow, "h")
		s.want(t, "nobody has sent a whole message", 0, 0, 0)
		s.send(t, one, "hi")
		s.want(t, "one has", 1, 0, 1)
		s.send(t, two, "hi")
		s.want(t, "two have", 1, 1, 1)
		s.send(t, three, "hi")
		s.want(t, "three have, with no room for the third", 1, 1, 1)
		if r, ok := pki.AsRefusal((<-s.ended).err); !ok || r.Rule != pki.RuleBusy {
			t.Errorf("the third ends with %v", r)
		}
		s.peers.on <- struct{}{}
		s.want(t, "the first waits for the next message", 1, 0, 2)
		s.peers.on <- struct{}{}
		s.want(t, "the second does too", 0, 0, 2)
		s.send(t, one, "ok")
		s.want(t, "the first goes on", 1, 0, 3)
		s.peers.on <- struct{}{}
		s.want(t, "the first is done", 0, 0, 3)
		done := <-s.ended
		if done.err != nil {
			t.Fatal(done.err)
		}
		go s.send(t, one, "a call")
		if _, err := io.ReadFull(done.conn, make([]byte, 4)); err != nil || s.lane.Load().Working != 0 {
			t.Errorf("a connection that stands waits for a handshake's place: %v, %+v", err, s.lane.Load())
		}
		if _, err := io.ReadFull(done.conn, make([]byte, 2)); err != nil {
			t.Error(err)
		}
		for _, c := range []net.Conn{silent, slow, two} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if (<-s.ended).err == nil {
				t.Error("a handshake that its client gave up has ended well")
			}
		}
		s.want(t, "all have gone", 0, 0, 3)
	})
}
