package enrollment

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// The checks of each kind succeed, so that their rate is that of valid evidence.
func TestChecksSucceed(t *testing.T) {
	s, err := NewIssuers(nil, "fleet.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range Kinds {
		if rate, err := s.CheckRate(t.Context(), kind, time.Millisecond); err != nil || rate <= 0 {
			t.Errorf("%s: %v checks a second, %v", kind, rate, err)
		}
	}
	if _, err := s.CheckRate(t.Context(), pki.EvidenceKind(99), time.Millisecond); err == nil {
		t.Error("an unknown kind is checked")
	}
}

// A device enrolls at the bare server, which sends the messages that were written to files.
func TestBareServer(t *testing.T) {
	s, err := NewIssuers(nil, "fleet.example")
	if err != nil {
		t.Fatal(err)
	}
	prefix := filepath.Join(t.TempDir(), "x5c")
	want := Exchange{Challenge: []byte("challenge"), Response: &brevetv1.EnrollResponse{
		Credential: &brevetv1.Credential{Certificate: []byte("certificate")},
	}}
	if err := want.Write(prefix); err != nil {
		t.Fatal(err)
	}
	messages, err := ReadExchange(prefix)
	if err != nil {
		t.Fatal(err)
	}
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := s.line.issue(&x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature}, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := NewBareServer(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, messages)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	devices, err := s.Devices(t.Context(), pki.EvidenceX5C, 2)
	if err != nil {
		t.Fatal(err)
	}
	c := &Client{Server: listener.Addr().String(), From: net.IPv4(127, 0, 1, 1), TLS: &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, // the test is about the messages
	}}
	for range 2 {
		got, err := c.Enroll(t.Context(), devices[1])
		if err != nil || string(got.Challenge) != "challenge" || !proto.Equal(got.Response, want.Response) {
			t.Errorf("got %q, %v, %v", got.Challenge, got.Response, err)
		}
	}
}
