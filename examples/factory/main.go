// Command factory gets certificates for many devices over one stream, as an operator with the role registrar. It makes
// a key for each device; one request registers the device and certifies the key. It verifies each certificate. Keys are
// written before they are sent, so a run that was interrupted can be started again and gets the same certificates.
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/enroll"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

func main() {
	operator := flag.String("operator", "", "credential directory of an operator (see brevet login)")
	path := flag.String("path", "device", "devices are PATH/1, PATH/2 and so on")
	count := flag.Int("count", 100, "number of devices")
	out := flag.String("out", "factory", "directory for N.key and N.crt of each device")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *operator, *path, *count, *out)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "factory:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, operator, path string, count int, out string) error {
	pair, err := enroll.ReadPair(operator)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	f := &factory{operator: pair, pending: map[string]*device{}, chains: map[string][][]byte{}}
	for n := range count {
		name := strconv.Itoa(n + 1)
		d, err := newDevice(path+"/"+name, filepath.Join(out, name))
		if err != nil {
			return err
		}
		f.pending[string(d.requestID)] = d
	}
	conn, err := grpc.NewClient("dns:///"+pair.Origin.Server,
		grpc.WithTransportCredentials(credentials.NewTLS(enroll.ClientTLS(func() *enroll.Pair { return pair }))))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	begun := time.Now()
	for len(f.pending) > 0 {
		again, err := f.stream(ctx, brevetv1.NewCertificateServiceClient(conn))
		if err != nil {
			return err
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	fmt.Printf("%d devices have certificates after %s\n", count, time.Since(begun).Round(time.Millisecond))
	return nil
}

// device is a device and the request for its certificate.
type device struct {
	id, file  string
	key       *ecdsa.PrivateKey
	csr       []byte
	requestID []byte
}

// newDevice reads the device's key, or makes it. The request ID is derived from the key, so no other state is needed.
func newDevice(id, file string) (*device, error) {
	key, err := readKey(file + ".key")
	if errors.Is(err, os.ErrNotExist) {
		key, err = makeKey(file + ".key")
	}
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(public)
	return &device{id, file, key, csr, hash[:16]}, nil
}

func readKey(file string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s contains no PEM block: remove it", file)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if k, ok := key.(*ecdsa.PrivateKey); ok {
		return k, nil
	}
	return nil, fmt.Errorf("%s contains no ECDSA key: %w", file, err)
}

func makeKey(file string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// factory holds the devices that have no certificate yet, by request ID.
type factory struct {
	operator *enroll.Pair
	pending  map[string]*device
	chains   map[string][][]byte // by issuer ID, fetched once each
}

// stream asks for everything that is pending, on one stream, and returns how long to wait before what is left.
func (f *factory) stream(ctx context.Context, client brevetv1.CertificateServiceClient) (again time.Duration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.IssueCertificates(ctx)
	if err != nil {
		return ended(err)
	}
	var requests []*brevetv1.IssueCertificatesRequest
	for _, d := range f.pending {
		requests = append(requests, &brevetv1.IssueCertificatesRequest{
			RequestId: d.requestID, Identity: d.id, Csr: d.csr, Registration: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE},
		})
	}
	// The server reads further requests only while its responses are read, so send and receive concurrently.
	go func() {
		for _, r := range requests {
			if stream.Send(r) != nil {
				return // Recv returns the cause
			}
		}
		_ = stream.CloseSend()
	}()
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return again, nil
		}
		if err != nil {
			return ended(err)
		}
		later, err := f.take(ctx, client, answer)
		if err != nil {
			return 0, err
		}
		again = max(again, later)
	}
}

// ended returns how long to wait before the next stream, or the error if another stream would end the same way.
func ended(err error) (again time.Duration, _ error) {
	st := status.Convert(err)
	again, ok := repeat(st)
	if !ok {
		return 0, err
	}
	fmt.Fprintf(os.Stderr, "factory: going on in %s: %s\n", again, st.Message())
	return again, nil
}

// repeat reports whether what failed is worth repeating, and after how long. A lack of resources passes only if the server
// says when.
func repeat(st *status.Status) (after time.Duration, ok bool) {
	for _, detail := range st.Details() {
		if retry, is := detail.(*errdetails.RetryInfo); is {
			after, ok = retry.GetRetryDelay().AsDuration(), true
		}
	}
	switch st.Code() {
	case codes.Unavailable:
		ok = true
	case codes.ResourceExhausted:
	default:
		ok = false
	}
	return max(after, time.Second), ok
}

// chain returns the CA certificates above an issuing CA.
func (f *factory) chain(ctx context.Context, client brevetv1.CertificateServiceClient, issuer []byte) ([][]byte, error) {
	if known, ok := f.chains[string(issuer)]; ok {
		return known, nil
	}
	resp, err := client.GetCertificateChain(ctx, &brevetv1.GetCertificateChainRequest{IssuerId: issuer})
	if err != nil {
		return nil, err
	}
	f.chains[string(issuer)] = resp.GetChain().GetCertificates()
	return f.chains[string(issuer)], nil
}

// take checks an answer, and writes the certificate down. A failure that may pass leaves the device pending.
func (f *factory) take(ctx context.Context, client brevetv1.CertificateServiceClient, answer *brevetv1.IssueCertificatesResponse) (later time.Duration, err error) {
	d := f.pending[string(answer.GetRequestId())]
	if d == nil {
		return 0, fmt.Errorf("the server sent a response to the request %x, which was not sent", answer.GetRequestId())
	}
	if failure := answer.GetError(); failure != nil {
		if after, ok := repeat(status.FromProto(failure)); ok {
			return after, nil
		}
		return 0, fmt.Errorf("%s: %s", d.id, failure.GetMessage())
	}
	chain, err := f.chain(ctx, client, answer.GetIssuerId())
	if err != nil {
		return 0, err
	}
	var roots [][]byte
	for _, root := range f.operator.Roots { // what is known already, and not what the server sends
		roots = append(roots, root.Raw)
	}
	c, err := enroll.ParseCredential(answer.GetCertificate(), chain, roots)
	if err != nil {
		return 0, err
	}
	pair, err := enroll.NewPair(c, d.key, enroll.Origin{}, time.Now())
	if err != nil {
		return 0, fmt.Errorf("invalid certificate of %s: %w", d.id, err)
	}
	if pair.ID().Path() != d.id || pair.ID().TrustDomain() != f.operator.ID().TrustDomain() {
		return 0, fmt.Errorf("the certificate of %s is for %s", d.id, pair.ID())
	}
	var text bytes.Buffer
	for _, cert := range append([]*x509.Certificate{c.Certificate}, c.Chain...) {
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}); err != nil {
			return 0, err
		}
	}
	if err := os.WriteFile(d.file+".crt", text.Bytes(), 0o644); err != nil {
		return 0, err
	}
	delete(f.pending, string(d.requestID))
	return 0, nil
}
