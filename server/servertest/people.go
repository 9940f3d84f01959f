package servertest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/brevet-pki/brevet/enroll"
	"github.com/brevet-pki/brevet/pki"
	brevetv1 "github.com/brevet-pki/brevet/proto/brevet/v1"
)

// Caller is a connection to the server with a client certificate or without, and the clients of all services.
type Caller struct {
	Conn *grpc.ClientConn
	brevetv1.EnrollmentServiceClient
	brevetv1.IdentityServiceClient
	brevetv1.TokenServiceClient
	brevetv1.CertificateServiceClient
	brevetv1.RevocationServiceClient
	brevetv1.RotationServiceClient
	brevetv1.CRLServiceClient
	brevetv1.LogServiceClient
	brevetv1.StoreServiceClient
}

// Holder is the holder of a certificate, with a connection that uses the certificate.
type Holder struct {
	*Caller
	ID          string // SPIFFE ID
	Key         crypto.Signer
	Certificate *x509.Certificate
}

// Caller connects with a client certificate, or without if it is nil.
func (w *World) Caller(t testing.TB, certificate *tls.Certificate, options ...grpc.DialOption) *Caller {
	t.Helper()
	if certificate == nil {
		certificate = &tls.Certificate{}
	}
	roots := x509.NewCertPool()
	roots.AddCert(w.Root)
	conn := Must(grpc.NewClient("passthrough:///"+w.GRPC, append(options, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "localhost",
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil },
	})))...))(t)
	t.Cleanup(func() { _ = conn.Close() }) // a test may have closed it
	return &Caller{
		conn, brevetv1.NewEnrollmentServiceClient(conn), brevetv1.NewIdentityServiceClient(conn), brevetv1.NewTokenServiceClient(conn),
		brevetv1.NewCertificateServiceClient(conn), brevetv1.NewRevocationServiceClient(conn), brevetv1.NewRotationServiceClient(conn), brevetv1.NewCRLServiceClient(conn), brevetv1.NewLogServiceClient(conn), brevetv1.NewStoreServiceClient(conn),
	}
}

// Holder connects with a certificate in DER and its key.
func (w *World) Holder(t testing.TB, der []byte, key crypto.Signer) *Holder {
	t.Helper()
	h := &Holder{Key: key, Certificate: parse(t, der)}
	if len(h.Certificate.URIs) == 1 {
		h.ID = h.Certificate.URIs[0].String()
	}
	h.Caller = w.Caller(t, h.TLS(w))
	return h
}

// On returns the same holder with a connection to another server.
func (h *Holder) On(t testing.TB, w *World) *Holder {
	t.Helper()
	return w.Holder(t, h.Certificate.Raw, h.Key)
}

func (h *Holder) TLS(w *World) *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{h.Certificate.Raw, w.Issuing.Raw}, PrivateKey: h.Key}
}

// Register registers an identity and returns its SPIFFE ID. The functions edits may change the request.
func (w *World) Register(t testing.TB, kind, path string, edits ...func(*brevetv1.CreateIdentityRequest)) string {
	t.Helper()
	req := &brevetv1.CreateIdentityRequest{Id: path, Spec: &brevetv1.IdentitySpec{Kind: Kind(kind)}}
	for _, edit := range edits {
		edit(req)
	}
	return Must(w.Operator.CreateIdentity(t.Context(), req))(t).GetIdentity().GetId()
}

// Token creates an enrollment token for an identity and returns its secret.
func (w *World) Token(t testing.TB, id string, replace bool) []byte {
	t.Helper()
	resp := Must(w.Operator.CreateToken(t.Context(), &brevetv1.CreateTokenRequest{Identity: id, Replace: replace}))(t)
	return w.Secret(t, resp.GetToken())
}

// Hide makes the end of the test search all files of the world for a secret.
func (w *World) Hide(secret []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.secrets = append(w.secrets, secret)
}

// Secret returns the secret in a token's text. At the end of the test, no file of the world may contain it.
func (w *World) Secret(t testing.TB, text string) []byte {
	t.Helper()
	secret := Must(enroll.ParseToken(text))(t).Secret.Bytes()
	w.Hide(secret)
	return secret
}

// Enrolled registers an identity, and enrolls it with a new key.
func (w *World) Enrolled(t testing.TB, kind, path string, edits ...func(*brevetv1.CreateIdentityRequest)) *Holder {
	t.Helper()
	return w.Enroll(t, w.Token(t, w.Register(t, kind, path, edits...), false), Key(t))
}

// Enroll enrolls with a token and returns the holder of the certificate.
func (w *World) Enroll(t testing.TB, token []byte, key crypto.Signer) *Holder {
	t.Helper()
	resp := Must(w.Caller(t, nil).Enroll(t.Context(), Enrollment(t, token, key)))(t)
	return w.Holder(t, resp.GetCredential().GetCertificate(), key)
}

// NewOperator creates and enrolls an admin with a token that Server.OperatorToken creates, as after a ceremony.
func (w *World) NewOperator(t testing.TB, name string) *Holder {
	t.Helper()
	return w.Enroll(t, w.Secret(t, Must(w.Server.OperatorToken(t.Context(), name, pki.ActorCommand("ceremony install")))(t)), Key(t))
}

// NewOperatorAs registers and enrolls an operator with labels and roles. NewOperator enrolls an admin.
func (w *World) NewOperatorAs(t testing.TB, name string, labels map[string]string, roles ...brevetv1.OperatorRole) *Holder {
	t.Helper()
	return w.Enrolled(t, "operator", name, func(r *brevetv1.CreateIdentityRequest) { r.Spec.Labels, r.Spec.Roles = labels, roles })
}

// Update replaces attributes of an identity. The paths name them, as in UpdateIdentityRequest.
func (w *World) Update(t testing.TB, id string, spec *brevetv1.IdentitySpec, paths ...string) {
	t.Helper()
	have := Must(w.Operator.GetIdentity(t.Context(), &brevetv1.GetIdentityRequest{Id: id}))(t).GetIdentity()
	Must(w.Operator.UpdateIdentity(t.Context(), &brevetv1.UpdateIdentityRequest{
		Id: id, Spec: spec, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}, Revision: have.GetRevision(),
	}))(t)
}

// Enrollment returns a new request to enroll with a token and a key. It may be sent again as a retry.
func Enrollment(t testing.TB, token []byte, key crypto.Signer) *brevetv1.EnrollRequest {
	t.Helper()
	return &brevetv1.EnrollRequest{RequestId: RequestID(), Evidence: TokenEvidence(token), Csr: CSR(t, key)}
}

// Renewal returns a new request to renew a certificate with a key. It may be sent again as a retry.
func Renewal(t testing.TB, key crypto.Signer) *brevetv1.RenewRequest {
	t.Helper()
	return &brevetv1.RenewRequest{RequestId: RequestID(), Csr: CSR(t, key)}
}

// Renewed renews a certificate and returns the holder of the new one.
func (w *World) Renewed(t testing.TB, h *Holder, key crypto.Signer) *Holder {
	t.Helper()
	resp := Must(h.Renew(t.Context(), Renewal(t, key)))(t)
	return w.Holder(t, resp.GetCredential().GetCertificate(), key)
}

// RequestID returns a random request ID.
func RequestID() []byte {
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	return id
}

// Key generates a P-256 key.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	return Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

// CSR creates a CSR. The functions edits may change its template.
func CSR(t testing.TB, key crypto.Signer, edits ...func(*x509.CertificateRequest)) []byte {
	t.Helper()
	template := &x509.CertificateRequest{}
	for _, edit := range edits {
		edit(template)
	}
	return Must(x509.CreateCertificateRequest(rand.Reader, template, key))(t)
}

// Serial returns a certificate's serial number as upper-case hexadecimal digits.
func Serial(c *x509.Certificate) string { return strings.ToUpper(c.SerialNumber.Text(16)) }

// Suspend suspends an identity. If the RPC fails, the test fails. The same holds for the methods below.
func (w *World) Suspend(t testing.TB, id string) {
	t.Helper()
	Must(w.Operator.SuspendIdentity(t.Context(), &brevetv1.SuspendIdentityRequest{Id: id}))(t)
}

// Resume resumes an identity.
func (w *World) Resume(t testing.TB, id string) {
	t.Helper()
	Must(w.Operator.ResumeIdentity(t.Context(), &brevetv1.ResumeIdentityRequest{Id: id}))(t)
}

// Retire retires an identity.
func (w *World) Retire(t testing.TB, id string) {
	t.Helper()
	Must(w.Operator.RetireIdentity(t.Context(), &brevetv1.RetireIdentityRequest{Id: id}))(t)
}

// Revoke revokes a certificate.
func (w *World) Revoke(t testing.TB, c *x509.Certificate, reason string) {
	t.Helper()
	Must(w.Operator.RevokeCertificate(t.Context(), &brevetv1.RevokeCertificateRequest{Serial: SerialBytes(c), Reason: Reason(reason)}))(t)
}
