package enroll_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
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
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
)

// A program uses the credential that brevet-agent keeps in a directory. Run reads each renewed credential, so that Pair
// always returns the current one. Watch calls a function with each.
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
		source.Run(ctx)
	}()
	go source.Watch(ctx, func(p *enroll.Pair) { log.Printf("certificate %s is in use", p.Serial()) })

	pair := source.Pair()
	fmt.Println(pair.ID())
	fmt.Println("expired:", pair.Expired(time.Now()))

	cancel()
	<-done
	// Output:
	// spiffe://fleet.example/device/1
	// expired: false
}

// A server accepts the expected clients of its trust domain. Each handshake uses the current certificate and roots, so
// the server does not restart after a renewal.
func ExamplePeerServerTLS() {
	dir, remove := agentDirectory()
	defer remove()
	source, err := enroll.OpenSource(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println(err)
		return
	}

	server := enroll.PeerServerTLS(source.Pair, func(client pki.SPIFFEID) error {
		if !strings.HasPrefix(client.Path(), "device/") {
			return fmt.Errorf("%s is not a device", client)
		}
		return nil
	})

	anyServer := func(pki.SPIFFEID) error { return nil }
	peer, err := handshake(server, enroll.PeerClientTLS(source.Pair, anyServer))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("client:", peer.URIs[0])
	// Output:
	// client: spiffe://fleet.example/device/1
}

// A client connects only to the server with the expected SPIFFE ID.
func ExamplePeerClientTLS() {
	dir, remove := agentDirectory()
	defer remove()
	source, err := enroll.OpenSource(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println(err)
		return
	}

	client := enroll.PeerClientTLS(source.Pair, func(server pki.SPIFFEID) error {
		if want := "spiffe://fleet.example/device/2"; server.String() != want {
			return fmt.Errorf("connected to %s instead of %s", server, want)
		}
		return nil
	})

	anyClient := func(pki.SPIFFEID) error { return nil }
	_, err = handshake(enroll.PeerServerTLS(source.Pair, anyClient), client)
	fmt.Println(err)
	// Output:
	// connected to spiffe://fleet.example/device/1 instead of spiffe://fleet.example/device/2
}

// A library that accepts go-spiffe's interfaces for X.509 sources accepts a Source.
func ExampleSource_GetX509SVID() {
	dir, remove := agentDirectory()
	defer remove()
	source, err := enroll.OpenSource(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println(err)
		return
	}

	client := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeMemberOf(spiffeid.RequireTrustDomainFromString("fleet.example")))

	peer, err := handshake(enroll.PeerServerTLS(source.Pair, func(pki.SPIFFEID) error { return nil }), client)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("client:", peer.URIs[0])
	// Output:
	// client: spiffe://fleet.example/device/1
}

// A program with a credential calls the Brevet server over gRPC. Each handshake verifies the identity of the server,
// and presents the current certificate.
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

// A program enrolls with a token and renews its certificate, without brevet-agent.
func ExampleAgent() {
	directory, err := enroll.OpenDirectory("/var/lib/program/credential", slog.Default())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = directory.Close() }()
	client, err := enroll.NewClient("") // the token contains the server's address
	if err != nil {
		fmt.Println(err)
		return
	}
	agent, err := enroll.NewAgent(enroll.Config{
		Directory: directory,
		Authority: client,
		Log:       slog.Default(),
		Token:     func() (enroll.Token, error) { return enroll.ReadTokenFile("/etc/program/token", nil) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	go agent.Watch(ctx, func(p *enroll.Pair) { log.Printf("certificate %s is in use", p.Serial()) })
	if err := agent.Run(ctx); err != nil {
		fmt.Println(err) // no valid certificate, and no token to get one
	}
}

// A program in a pod enrolls with the token of its service account.
func ExampleAgent_evidence() {
	var rootDER []byte // the root certificate that the program trusts
	directory, err := enroll.OpenDirectory("/var/lib/program/credential", slog.Default())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = directory.Close() }()
	client, err := enroll.NewClient("ca.fleet.example:7443")
	if err != nil {
		fmt.Println(err)
		return
	}
	agent, err := enroll.NewAgent(enroll.Config{
		Directory: directory,
		Authority: client,
		Log:       slog.Default(),
		Bootstrap: enroll.Bootstrap{
			Server: "ca.fleet.example:7443", TrustDomain: "fleet.example", RootFingerprint: sha256.Sum256(rootDER),
		},
		Evidence: func() ([]enroll.Evidence, error) {
			token, err := enroll.ReadJWT("/var/run/secrets/brevet/token")
			return []enroll.Evidence{token}, err
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := agent.Run(context.Background()); err != nil {
		fmt.Println(err) // no valid certificate, and the server refuses to issue one
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
		accepted := conn.(*tls.Conn) //nolint:forcetypeassert // tls.Listen returns these
		err = accepted.Handshake()
		if certs := accepted.ConnectionState().PeerCertificates; len(certs) > 0 {
			peer = certs[0]
		}
		done <- err
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), client)
	if err != nil {
		<-done //nolint:errcheck // the handshake fails on both sides, and the client's error has the cause
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return peer, <-done
}

// agentDirectory creates a directory like that of brevet-agent, with a credential from a CA for the example. It returns
// the directory, and a function that removes it.
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
