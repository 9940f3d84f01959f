package enroll_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/brevet-pki/brevet/enroll"
)

// A program uses the credential that brevet-agent keeps in a directory. Run follows the renewals, so that Pair always
// returns the current certificate.
func ExampleSource() {
	dir, remove := agentDirectory()
	defer remove()

	source, err := enroll.OpenSource(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		source.Run(ctx, func(p *enroll.Pair) { log.Printf("certificate %s is in use", p.Serial()) })
	}()

	pair := source.Pair()
	fmt.Println(pair.ID())
	fmt.Println("expired:", pair.Expired(time.Now()))

	cancel()
	<-done
	// Output:
	// spiffe://fleet.example/device/1
	// expired: false
}

// A server presents the current certificate and accepts clients with a certificate of the same trust domain. Each
// handshake uses the certificate and roots of that moment, so the server never restarts for a renewal.
func ExampleSource_GetCertificate() {
	dir, remove := agentDirectory()
	defer remove()
	source, err := enroll.OpenSource(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println(err)
		return
	}

	server := &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{
				MinVersion:     tls.VersionTLS13,
				GetCertificate: source.GetCertificate,
				ClientAuth:     tls.RequireAndVerifyClientCert,
				ClientCAs:      source.Roots(),
			}, nil
		},
	}

	peer, err := handshake(server, anyClient(source))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("client:", peer.URIs[0])
	// Output:
	// client: spiffe://fleet.example/device/1
}

// A client presents the current certificate and connects only to the server with the expected SPIFFE ID. Workload
// certificates name identities instead of hosts, so VerifyConnection replaces the verification of the host name.
func ExampleSource_GetClientCertificate() {
	dir, remove := agentDirectory()
	defer remove()
	source, err := enroll.OpenSource(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println(err)
		return
	}

	const want = "spiffe://fleet.example/device/2"
	client := &tls.Config{
		MinVersion:           tls.VersionTLS13,
		GetClientCertificate: source.GetClientCertificate,
		InsecureSkipVerify:   true, // VerifyConnection verifies the chain and the identity
		VerifyConnection: func(state tls.ConnectionState) error {
			intermediates := x509.NewCertPool()
			for _, c := range state.PeerCertificates[1:] {
				intermediates.AddCert(c)
			}
			server := state.PeerCertificates[0]
			if _, err := server.Verify(x509.VerifyOptions{Roots: source.Roots(), Intermediates: intermediates}); err != nil {
				return err
			}
			if len(server.URIs) != 1 || server.URIs[0].String() != want {
				return fmt.Errorf("connected to %s instead of %s", server.URIs[0], want)
			}
			return nil
		},
		SessionTicketsDisabled: true, // each connection verifies the server
	}

	_, err = handshake(&tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: source.GetCertificate}, client)
	fmt.Println(err)
	// Output:
	// connected to spiffe://fleet.example/device/1 instead of spiffe://fleet.example/device/2
}

// A program with a credential calls the Brevet server over gRPC. ClientTLS verifies the identity of the server, and
// presents the certificate that is current at each handshake.
func ExampleClientTLS() {
	source, err := enroll.OpenSource("/var/lib/brevet-agent", slog.Default())
	if err != nil {
		fmt.Println(err)
		return
	}
	config := enroll.ClientTLS(source.Pair)
	conn, err := grpc.NewClient("brevet.example:7443", grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		fmt.Println(err)
		return
	}
	// Create the generated clients with conn, such as brevetv1.NewEnrollmentServiceClient(conn).
	if err := conn.Close(); err != nil {
		fmt.Println(err)
	}
}

// A program enrolls with a token, and keeps its certificate renewed, without brevet-agent.
func ExampleAgent() {
	directory, err := enroll.OpenDirectory("/var/lib/program/credential", slog.Default())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = directory.Close() }()
	client, err := enroll.NewClient("") // the token names the server
	if err != nil {
		fmt.Println(err)
		return
	}
	agent, err := enroll.NewAgent(enroll.Config{
		Directory: directory,
		Authority: client,
		Log:       slog.Default(),
		Token:     func() (enroll.Token, error) { return enroll.ReadTokenFile("/etc/program/token", nil) },
		OnChange:  func(p *enroll.Pair) { log.Printf("certificate %s is in use", p.Serial()) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := agent.Run(context.Background()); err != nil {
		fmt.Println(err) // no valid certificate, and no token to get one
	}
}

// anyClient returns the configuration of a client with a certificate. It does not verify the server.
func anyClient(source *enroll.Source) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		GetClientCertificate: source.GetClientCertificate,
		InsecureSkipVerify:   true, // the example is about the server
	}
}

// handshake connects a client to a server on the loopback interface, and returns the certificate that the client sent.
func handshake(server, client *tls.Config) (*x509.Certificate, error) {
	listener, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		return nil, err
	}
	defer func() { _ = listener.Close() }()
	done := make(chan error, 1)
	var peer *x509.Certificate
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = conn.Close() }()
		accepted := conn.(*tls.Conn) //nolint:forcetypeassert // of tls.Listen
		err = accepted.Handshake()
		if certs := accepted.ConnectionState().PeerCertificates; len(certs) > 0 {
			peer = certs[0]
		}
		done <- err
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), client)
	if err != nil {
		<-done //nolint:errcheck // the handshake fails on both sides; the client's error is the cause
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return peer, <-done
}

// agentDirectory writes a directory as brevet-agent does, with a credential of a CA made for the example, and returns
// a function that removes it.
func agentDirectory() (dir string, remove func()) {
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		URIs:     []*url.URL{{Scheme: "spiffe", Host: "fleet.example", Path: "/device/1"}},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	rootKey, rootErr := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	leafKey, leafErr := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	dir, dirErr := os.MkdirTemp("", "agent")
	check(rootErr, leafErr, dirErr)
	rootDER, rootErr := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	leafDER, leafErr := x509.CreateCertificate(rand.Reader, leaf, root, leafKey.Public(), rootKey)
	keyDER, keyErr := x509.MarshalPKCS8PrivateKey(leafKey)
	version := filepath.Join(dir, "gen-1")
	check(rootErr, leafErr, keyErr, os.Mkdir(version, 0o700), os.Symlink("gen-1", filepath.Join(dir, "current")))
	for name, block := range map[string]*pem.Block{
		"cert.pem":   {Type: "CERTIFICATE", Bytes: leafDER},
		"bundle.pem": {Type: "CERTIFICATE", Bytes: rootDER},
		"key.pem":    {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		check(os.WriteFile(filepath.Join(version, name), pem.EncodeToMemory(block), 0o600))
	}
	return dir, func() { check(os.RemoveAll(dir)) }
}

// check panics if there is an error.
func check(errs ...error) {
	if err := errors.Join(errs...); err != nil {
		panic(err)
	}
}
