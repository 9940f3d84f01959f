// Command workload gets a certificate from Brevet with one gRPC call. It needs only the generated client: it makes a
// key and a certification request, opens an ordinary TLS connection, and calls Enroll. Copy it into the start-up code
// of a workload, in any language that gRPC supports.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/brevet-pki/brevet/enroll"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

func main() {
	root := flag.String("root", "root.crt", "the root certificate to trust, PEM")
	tokenFile := flag.String("token-file", "", "file with the enrollment token, or - for standard input")
	out := flag.String("out", "workload", "path prefix of the files OUT.key and OUT.crt to write")
	flag.Parse()
	if err := run(*root, *tokenFile, *out); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

func run(rootFile, tokenFile, out string) error {
	token, err := enroll.ReadTokenFile(tokenFile, os.Stdin)
	if err != nil {
		return err
	}
	rootPEM, err := os.ReadFile(rootFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(rootPEM) {
		return fmt.Errorf("%s contains no certificate: use the root certificate in PEM", rootFile)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	requestID := make([]byte, 16) // a retry must use the same request ID and key
	if _, err := rand.Read(requestID); err != nil {
		return err
	}
	conn, err := grpc.NewClient(token.Server, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	resp, err := brevetv1.NewEnrollmentServiceClient(conn).Enroll(ctx, &brevetv1.EnrollRequest{
		RequestId: requestID, Csr: csr,
		Evidence: []*brevetv1.Evidence{{Kind: &brevetv1.Evidence_Token{Token: &brevetv1.TokenEvidence{Secret: token.Secret.Bytes()}}}},
	})
	if err != nil {
		return err
	}
	return write(out, key, resp.GetCredential())
}

// write writes the key and the chain in PEM.
func write(out string, key *ecdsa.PrivateKey, c *brevetv1.Credential) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(out+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return err
	}
	var chain []byte
	for _, cert := range append([][]byte{c.GetCertificate()}, c.GetChain().GetCertificates()...) {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})...)
	}
	return os.WriteFile(out+".crt", chain, 0o644)
}
