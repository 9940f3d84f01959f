package torture

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
	"github.com/brevet-pki/brevet/server/servertest"
)

// callTimeout bounds one RPC. A server that was killed does not respond.
const callTimeout = 20 * time.Second

// A request is an enrollment or renewal that a client repeats until it gets a response.
type request struct {
	id, csr []byte
	key     *ecdsa.PrivateKey
	secret  []byte      // the token of an enrollment
	renews  *credential // the credential that is renewed; nil for an enrollment
}

func newKey() *ecdsa.PrivateKey {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader) // never fails on a curve of the standard library
	return key
}

// newRequest returns an enrollment with the text of a token.
func newRequest(token string, key *ecdsa.PrivateKey) *request {
	r := newRenewal(nil, key)
	if parsed, err := enroll.ParseToken(token); err == nil {
		r.secret = parsed.Secret.Bytes()
	}
	return r
}

func newRequestID() []byte {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	return id
}

func newRenewal(renews *credential, key *ecdsa.PrivateKey) *request {
	r := &request{id: newRequestID(), key: key, renews: renews}
	r.csr, _ = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key) // an empty template cannot fail
	return r
}

func newCredential(t testing.TB, der []byte, key *ecdsa.PrivateKey) *credential {
	t.Helper()
	return &credential{parse(t, der), key}
}

// clients sends each RPC to one of the servers that are running.
type clients struct {
	testCA  *testCA
	timeout time.Duration // of one RPC
	retries time.Duration // how long an RPC is retried before its error is reported

	mu      sync.Mutex
	servers []*process    // those that are running
	changed chan struct{} // closed when servers change
	outages outages
}

func newClients(g *testCA) *clients {
	return &clients{testCA: g, timeout: callTimeout, retries: retryTimeout, changed: make(chan struct{})}
}

// connect sets the running servers. Those that are nil are left out.
func (c *clients) connect(servers ...*process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.servers = slices.DeleteFunc(slices.Clone(servers), func(p *process) bool { return p == nil })
	close(c.changed)
	c.changed = make(chan struct{})
}

// running returns the servers that are running.
func (c *clients) running() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.servers
}

// waitForServer waits until a server is running, and returns one at random.
func (c *clients) waitForServer(ctx context.Context) (*process, error) {
	for {
		c.mu.Lock()
		servers, changed := c.servers, c.changed
		c.mu.Unlock()
		if len(servers) > 0 {
			return servers[mathrand.IntN(len(servers))], nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// callTo connects with a credential, or without one if as is nil, sends one RPC, and disconnects.
func (c *clients) callTo(ctx context.Context, p *process, as *credential, do func(context.Context, *grpc.ClientConn) error) error {
	roots := x509.NewCertPool()
	roots.AddCert(c.testCA.root)
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "localhost"}
	if as != nil {
		config.Certificates = []tls.Certificate{{Certificate: [][]byte{as.certificate.Raw, c.testCA.issuing.Raw}, PrivateKey: as.key}}
	}
	conn, err := grpc.NewClient("passthrough:///"+p.grpc, grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // the RPC has ended
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err = do(ctx, conn)
	if !isTransient(err) {
		c.outages.answered()
	}
	return err
}

// retryTimeout is how long an RPC is retried if a test sets nothing else.
const retryTimeout = 2 * time.Minute

// retry repeats an RPC until it succeeds or fails with a permanent error.
func (c *clients) retry(ctx context.Context, as *credential, do func(context.Context, *grpc.ClientConn) error) error {
	_, err := c.retryAt(ctx, as, do)
	return err
}

// retryAt is retry. It also returns the server that the last try was sent to.
func (c *clients) retryAt(ctx context.Context, as *credential, do func(context.Context, *grpc.ClientConn) error) (*process, error) {
	for begun := time.Now(); ; {
		p, err := c.waitForServer(ctx)
		if err != nil {
			return nil, err
		}
		if err = c.callTo(ctx, p, as, do); !isTransient(err) || ctx.Err() != nil || time.Since(begun) > c.retries {
			return p, err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// isTransient reports whether an RPC should be repeated after an error.
func isTransient(err error) bool {
	if rule := servertest.RuleOf(err); rule == pki.RuleRenewalTooEarly || rule == pki.RuleMaxUnexpired {
		return false // a retry succeeds only after about 12 hours
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	case codes.ResourceExhausted: // only if the response contains a retry delay
		return pki.RetryAfter(enroll.CallError("the server", err)) > 0
	default:
		return false
	}
}

// send sends a request once and returns the certificate in the response.
func (r *request) send(ctx context.Context, conn *grpc.ClientConn) ([]byte, error) {
	s := brevetv1.NewEnrollmentServiceClient(conn)
	if r.renews == nil {
		resp, err := s.Enroll(ctx, &brevetv1.EnrollRequest{RequestId: r.id, Evidence: servertest.TokenEvidence(r.secret), Csr: r.csr})
		return resp.GetCredential().GetCertificate(), err
	}
	resp, err := s.Renew(ctx, &brevetv1.RenewRequest{RequestId: r.id, Csr: r.csr})
	return resp.GetCredential().GetCertificate(), err
}

// obtain repeats a request until it gets a response, and returns the certificate.
func (c *clients) obtain(ctx context.Context, r *request) (der []byte, err error) {
	err = c.retry(ctx, r.renews, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		der, err = r.send(ctx, conn)
		return err
	})
	return der, err
}

// operate repeats an operator's RPC until it gets a response.
func (c *clients) operate(ctx context.Context, do func(context.Context, *grpc.ClientConn) error) error {
	return c.retry(ctx, c.testCA.operator, do)
}

// register registers a device and returns its SPIFFE ID.
func (c *clients) register(ctx context.Context, path string) (id string, err error) {
	return c.registerAs(ctx, &brevetv1.CreateIdentityRequest{Id: path, Spec: &brevetv1.IdentitySpec{Kind: brevetv1.IdentityKind_IDENTITY_KIND_DEVICE}})
}

func (c *clients) registerAs(ctx context.Context, req *brevetv1.CreateIdentityRequest) (id string, err error) {
	err = c.operate(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		resp, err := brevetv1.NewIdentityServiceClient(conn).CreateIdentity(ctx, req)
		id = resp.GetIdentity().GetId()
		return err
	})
	return id, err
}

// createToken creates a token for an identity.
func (c *clients) createToken(ctx context.Context, id string, replace bool) (text string, err error) {
	err = c.operate(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		resp, err := brevetv1.NewTokenServiceClient(conn).CreateToken(ctx, &brevetv1.CreateTokenRequest{Identity: id, Replace: replace})
		text = resp.GetToken()
		return err
	})
	return text, err
}

func (c *clients) suspend(ctx context.Context, id string) error {
	return c.operate(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := brevetv1.NewIdentityServiceClient(conn).SuspendIdentity(ctx, &brevetv1.SuspendIdentityRequest{Id: id})
		return err
	})
}

func (c *clients) resume(ctx context.Context, id string) error {
	return c.operate(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := brevetv1.NewIdentityServiceClient(conn).ResumeIdentity(ctx, &brevetv1.ResumeIdentityRequest{Id: id})
		return err
	})
}

func (c *clients) revoke(ctx context.Context, serial string) error {
	return c.operate(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := brevetv1.NewRevocationServiceClient(conn).RevokeCertificate(ctx, &brevetv1.RevokeCertificateRequest{Serial: serialBytes(serial), Reason: servertest.Reason("superseded")})
		return err
	})
}

// unexpected returns an error unless err is nil or a refusal.
func unexpected(what string, err error) error {
	switch status.Code(err) {
	case codes.OK, codes.PermissionDenied, codes.FailedPrecondition, codes.Unauthenticated, codes.AlreadyExists:
		return nil
	default:
		return fmt.Errorf("%s: %w", what, err)
	}
}

// serialBytes decodes a hexadecimal serial number into the bytes that the protocol uses.
func serialBytes(serial string) []byte {
	s, err := pki.ParseSerial(serial)
	if err != nil {
		panic(err) // impossible: it comes from a certificate
	}
	return s.Bytes()
}
