package handshake_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/brevet-pki/brevet/server/admission"
	"github.com/brevet-pki/brevet/server/handshake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listening is a listener under test.
type listening struct {
	net.Listener
	counted chan error // results of handshakes
}

// listen returns a listener on a port of this host, which is closed at the end of the test.
func listen(t *testing.T) listening {
	t.Helper()
	var lc net.ListenConfig
	tcp, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := wrap(t, tcp)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// wrap returns a listener that makes the handshakes of the connections of another one.
func wrap(t *testing.T, under net.Listener) listening {
	t.Helper()
	own := certificate(t)
	counted := make(chan error, 16)
	queue := admission.NewQueue("handshakes", admission.Size{Slots: 2, Each: 2, Queue: 16})
	config := &tls.Config{Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS13}
	return listening{handshake.Listen(under, config, queue, func(err error) { counted <- err }), counted}
}

// certificate returns a self-signed certificate for TLS.
func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// dial opens a connection without TLS.
func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// connect makes a handshake as a client.
func connect(t *testing.T, l net.Listener) {
	t.Helper()
	c := tls.Client(dial(t, l), &tls.Config{InsecureSkipVerify: true})
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Error(err)
	}
}

// A client that sends nothing, and one that sends half a message, delay no other.
func TestSlowClientsDelayNoOther(t *testing.T) {
	l := listen(t)
	for _, text := range []string{"", "\x16\x03", "\x16\x03\x01\x02\x00"} {
		if _, err := dial(t, l).Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	connect(t, l)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-l.counted, c.Close()); err != nil {
		t.Error(err)
	}
}

// Close ends the handshakes in progress, and closes their connections and those that Accept has not returned.
func TestCloseEndsHandshakes(t *testing.T) {
	l := listen(t)
	silent := dial(t, l)
	connect(t, l) // ends its handshake, but is not accepted
	if err := <-l.counted; err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed listener accepts with %v", err)
	}
	if err := <-l.counted; err == nil {
		t.Error("the handshake of a silent client succeeded")
	}
	if err := silent.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := silent.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection of a silent client is still open")
	}
}

// broken is a listener whose Accept fails.
type broken struct{ net.Listener }

var errBroken = errors.New("broken")

func (broken) Accept() (net.Conn, error) { return nil, errBroken }

// The error that ends the underlying listener is that of each later call.
func TestListenersEndWithTheirError(t *testing.T) {
	l := wrap(t, broken{})
	for range 2 {
		if _, err := l.Accept(); !errors.Is(err, errBroken) {
			t.Errorf("the listener ends with %v", err)
		}
	}
}

// A client that forgets TLS learns that. Others get an alert at most.
func TestRequestsWithoutTLS(t *testing.T) {
	l := listen(t)
	for text, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n": "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", "hello\r\n\r\n": "",
	} {
		c := dial(t, l)
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(c) // the connection may be reset after the response
		if err := <-l.counted; err == nil || !strings.HasPrefix(string(got), want) || want == "" && strings.Contains(string(got), "HTTP") {
			t.Errorf("%q: %q and %v, want %q", text, got, err, want)
		}
	}
}

// A connection works after its handshake without the limits of the handshake.
func TestConnectionsOutliveTheirHandshake(t *testing.T) {
	l := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
		c, err := d.DialContext(ctx, "tcp", l.Addr().String())
		if err == nil {
			_, err = c.Write(make([]byte, 100<<10)) // more than a handshake may have
			err = errors.Join(err, c.Close())
		}
		ended <- err
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := c.(*tls.Conn); !ok {
		t.Errorf("Accept returns a %T", c)
	}
	n := 0
	for buffer := make([]byte, 32<<10); err == nil; {
		var read int
		read, err = c.Read(buffer)
		n += read
	}
	if err := errors.Join(<-ended, c.Close()); err != nil || n != 100<<10 {
		t.Errorf("%d bytes: %v", n, err)
	}
}
