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
	"net/url"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/authz"
	"github.com/brevet-pki/brevet/server/handshake"
)

// stubTLS is TransportCredentials whose handshake reads two messages. After each message it waits, as if it computed,
// until the test sends a value on proceed.
type stubTLS struct {
	credentials.TransportCredentials
	computing, proceed chan struct{}
}

// ServerHandshake implements credentials.TransportCredentials.
func (p stubTLS) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	for range 2 {
		if _, err := io.ReadFull(conn, make([]byte, 2)); err != nil {
			return nil, nil, err
		}
		p.computing <- struct{}{}
		<-p.proceed
	}
	return conn, nil, nil
}

// uncounted is a Meter that counts nothing.
type uncounted struct{ Meter }

// Handshake implements Meter.
func (uncounted) Handshake(error) {}

// handshakeResult is the result of ServerHandshake.
type handshakeResult struct {
	conn net.Conn
	err  error
}

// bench runs handshakes. Its queue lets one of them run and one wait.
type bench struct {
	queue *admission.Queue
	creds boundedTLS
	stub  stubTLS
	ended chan handshakeResult
}

func newBench() *bench {
	s := &bench{
		queue: admission.NewQueue("handshakes", admission.Size{Slots: 1, Each: 1, Queue: 2}),
		stub:  stubTLS{computing: make(chan struct{}, 8), proceed: make(chan struct{})},
		ended: make(chan handshakeResult, 8),
	}
	s.creds = boundedTLS{s.stub, s.queue, uncounted{}}
	return s
}

// connect connects a client, which sends nothing, and starts the server's handshake.
func (s *bench) connect() (client net.Conn) {
	client, raw := net.Pipe()
	go func() {
		conn, _, err := s.creds.ServerHandshake(raw)
		s.ended <- handshakeResult{conn, err}
		if err != nil {
			_ = raw.Close() // as gRPC does
		}
	}()
	return client
}

func (s *bench) send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Error(err)
	}
}

// want checks the queue's load, and the number of messages that handshakes have started to process.
func (s *bench) want(t *testing.T, when string, working, waiting, processed int) {
	t.Helper()
	synctest.Wait()
	if load := s.queue.Load(); load.Working != working || load.Waiting != waiting || len(s.stub.computing) != processed {
		t.Errorf("when %s: load %+v and %d messages processed; want %d running, %d waiting, %d messages",
			when, load, len(s.stub.computing), working, waiting, processed)
	}
}

func TestHandshakeHoldsASlotWhileItComputes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newBench()
		silent, slow, one, two, three := s.connect(), s.connect(), s.connect(), s.connect(), s.connect()
		s.send(t, slow, "h")
		s.want(t, "no client has sent a whole message", 0, 0, 0)
		s.send(t, one, "hi")
		s.want(t, "one client has sent a message", 1, 0, 1)
		s.send(t, two, "hi")
		s.want(t, "two clients have sent a message", 1, 1, 1)
		s.send(t, three, "hi")
		s.want(t, "three clients have sent a message, and the queue is full", 1, 1, 1)
		if r, ok := pki.AsRefusal((<-s.ended).err); !ok || r.Rule != pki.RuleOverloaded {
			t.Errorf("the third ends with %v", r)
		}
		s.stub.proceed <- struct{}{}
		s.want(t, "the first waits for the next message", 1, 0, 2)
		s.stub.proceed <- struct{}{}
		s.want(t, "the second waits for the next message too", 0, 0, 2)
		s.send(t, one, "ok")
		s.want(t, "the first continues", 1, 0, 3)
		s.stub.proceed <- struct{}{}
		s.want(t, "the first is done", 0, 0, 3)
		done := <-s.ended
		if done.err != nil {
			t.Fatal(done.err)
		}
		go s.send(t, one, "a call")
		if _, err := io.ReadFull(done.conn, make([]byte, 4)); err != nil || s.queue.Load().Working != 0 {
			t.Errorf("a connection takes a slot after its handshake: %v, %+v", err, s.queue.Load())
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
		s.want(t, "all clients have disconnected", 0, 0, 3)
	})
}

// newChain returns a number of certificates for a TLS client. Each has an extension of bulk bytes.
func newChain(t *testing.T, certificates, bulk int) tls.Certificate {
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

// shakeHands runs a TLS handshake with a client, and returns the server's result.
func shakeHands(t *testing.T, own, client tls.Certificate) (*tls.Conn, clientInfo, error) {
	t.Helper()
	config := tlsConfig(func() (*tls.Certificate, error) { return &own, nil })
	s := newBench()
	s.creds.TransportCredentials = credentials.NewTLS(config)
	here, there := net.Pipe()
	t.Cleanup(func() { _, _ = here.Close(), there.Close() })
	go func() {
		c := tls.Client(there, &tls.Config{
			InsecureSkipVerify: true, NextProtos: []string{"h2"},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &client, nil },
		})
		_, _ = io.Copy(io.Discard, c) // ends when the server refuses the handshake, or at the end of the test
	}()
	conn, info, err := s.creds.ServerHandshake(here)
	if err != nil {
		return nil, clientInfo{}, err
	}
	return conn.(*tls.Conn), info.(clientInfo), nil
}

// A certificate with thousands of empty names has few bytes, but takes much memory when it is parsed.
func TestHandshakesWithManyNamesFail(t *testing.T) {
	t.Parallel()
	client := newChain(t, 1, 0)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), URIs: make([]*url.URL, 5000)}
	for i := range template.URIs {
		template.URIs[i] = &url.URL{}
	}
	key := client.PrivateKey.(*ecdsa.PrivateKey)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	client.Certificate = [][]byte{der}
	_, _, err = shakeHands(t, newChain(t, 1, 0), client)
	if r, ok := pki.AsRefusal(err); !ok || r.Rule != pki.RuleCertificate {
		t.Errorf("a certificate with 5000 names in %d bytes: %v", len(der), err)
	}
}

func TestHandshakesAreSmall(t *testing.T) {
	t.Parallel()
	own := newChain(t, 1, 0)
	for _, c := range []struct {
		certificates, bulk int
		passes             bool
	}{{0, 0, true}, {1, 0, true}, {handshake.MaxCertificates, 100, true}, {handshake.MaxCertificates + 1, 100, false}, {1, 15 << 10, true}, {1, 16 << 10, false}, {900, 0, false}} {
		client := newChain(t, c.certificates, c.bulk)
		conn, info, err := shakeHands(t, own, client)
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
