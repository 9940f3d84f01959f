package grpcapi

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/authz"
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

// uncounted is a Meter that counts nothing.
type uncounted struct{ Meter }

// Handshake implements Meter.
func (uncounted) Handshake(error) {}

// shaken is how a handshake ended.
type shaken struct {
	conn net.Conn
	err  error
}

// shaking is a queue of handshakes, with room for one and for one that waits.
type shaking struct {
	queue *admission.Queue
	creds boundedTLS
	peers peers
	ended chan shaken
}

func newShaking() *shaking {
	s := &shaking{
		queue: admission.NewQueue("handshakes", admission.Size{Slots: 1, Each: 1, Queue: 2}),
		peers: peers{computing: make(chan struct{}, 8), on: make(chan struct{})},
		ended: make(chan shaken, 8),
	}
	s.creds = boundedTLS{s.peers, s.queue, uncounted{}}
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
	if load := s.queue.Load(); load.Working != working || load.Waiting != waiting || len(s.peers.computing) != computed {
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
		if r, ok := pki.AsRefusal((<-s.ended).err); !ok || r.Rule != pki.RuleOverloaded {
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
		if _, err := io.ReadFull(done.conn, make([]byte, 4)); err != nil || s.queue.Load().Working != 0 {
			t.Errorf("a connection that stands waits for a handshake's place: %v, %+v", err, s.queue.Load())
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

// shown is a TLS client's certificates: so many, of which each has an extension of so many bytes.
func shown(t *testing.T, certificates, bulk int) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), SubjectKeyId: make([]byte, bulk),
	}
	pair := tls.Certificate{PrivateKey: key}
	for range certificates {
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		pair.Certificate = append(pair.Certificate, der)
	}
	return pair
}

// shake connects a TLS client, and returns both sides of the handshake.
func shake(t *testing.T, own, client tls.Certificate) (*tls.Conn, clientInfo, error) {
	t.Helper()
	config := tlsConfig(func() (*tls.Certificate, error) { return &own, nil })
	s := newShaking()
	s.creds.TransportCredentials = credentials.NewTLS(config)
	here, there := net.Pipe()
	t.Cleanup(func() { _, _ = here.Close(), there.Close() })
	go func() {
		c := tls.Client(there, &tls.Config{
			InsecureSkipVerify: true, NextProtos: []string{"h2"},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &client, nil },
		})
		_, _ = io.Copy(io.Discard, c) // until the server has enough
	}()
	conn, info, err := s.creds.ServerHandshake(here)
	if err != nil {
		return nil, clientInfo{}, err
	}
	return conn.(*tls.Conn), info.(clientInfo), nil
}

func TestHandshakesAreSmall(t *testing.T) {
	t.Parallel()
	own := shown(t, 1, 0)
	for _, c := range []struct {
		certificates, bulk int
		passes             bool
	}{{0, 0, true}, {1, 0, true}, {maxCertificates, 100, true}, {maxCertificates + 1, 100, false}, {1, 15 << 10, true}, {1, 16 << 10, false}, {900, 0, false}} {
		client := shown(t, c.certificates, c.bulk)
		conn, info, err := shake(t, own, client)
		if (err == nil) != c.passes {
			t.Errorf("%d certificates with %d bytes each: %v", c.certificates, c.bulk, err)
		}
		if err != nil || c.certificates == 0 {
			continue
		}
		if want, err := authz.NewClient(client.Certificate[0]); err != nil || !reflect.DeepEqual(info.client, want) {
			t.Errorf("of %d certificates the first is not what the connection keeps: %v", c.certificates, err)
		}
		for n, kept := range conn.ConnectionState().PeerCertificates {
			if kept != nil {
				t.Errorf("of %d certificates the connection keeps the one at %d", c.certificates, n)
			}
		}
	}
}
