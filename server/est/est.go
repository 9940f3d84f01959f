package est

import (
	"context"
	"crypto/x509"
	"net/http"
	"strings"

	"github.com/brevet-pki/brevet/ca"
	"github.com/brevet-pki/brevet/pki"
	"github.com/brevet-pki/brevet/ra"
	"github.com/brevet-pki/brevet/server/authz"
	"github.com/brevet-pki/brevet/server/frontdoor"
)

// Registrar issues certificates: a *ra.Registrar. It is safe for concurrent use.
type Registrar interface {
	Enroll(ctx context.Context, e ra.EnrollRequest) (ca.Certificate, error)
	Renew(ctx context.Context, n ra.RenewRequest) (ca.Certificate, error)
	// NoteEvidence records the refusal of an enrollment that is refused before Enroll is called, and returns it.
	NoteEvidence(ctx context.Context, e ra.EnrollRequest, err error) error
}

// Authorities are the CAs of the server. They are safe for concurrent use.
type Authorities interface {
	// Bundle returns the certificates of CAs in DER: the roots that devices should trust now, and the CAs between them and
	// certificates. While roots or issuing CAs overlap, it returns the old and the new ones.
	Bundle() (roots, intermediates [][]byte)
	// Has reports whether a CA of this server has a subject, in DER. It may be one that is not in the bundle any more.
	Has(subject []byte) bool
	// Chain returns the CA certificates that go with a certificate of an issuing CA, without the root, and the root.
	Chain(id pki.IssuerID) (chain []*x509.Certificate, root *x509.Certificate, err error)
}

// Config holds the configuration of a door for EST. All fields are required.
type Config struct {
	Registrar   Registrar
	Authorities Authorities
	// Labels returns the labels of the newest revision of the policy.
	Labels func() map[string]ra.Label
	// MinVersion is the oldest version of TLS that the door accepts.
	MinVersion uint16
}

// door serves the operations of EST.
type door struct{ config Config }

// maxBody is the maximum size of a request's body in bytes: a CSR in base64 with line breaks.
const maxBody = 2 * ra.MaxCSR

// New returns the door.
func New(c Config) frontdoor.Door {
	d := &door{c}
	all := frontdoor.Door{Name: "est", MinVersion: c.MinVersion, Fail: fail}
	for _, r := range []struct {
		method, name string
		operation    authz.Operation
		handle       func(ctx context.Context, r *frontdoor.Request) (frontdoor.Response, error)
	}{
		{http.MethodGet, "cacerts", authz.GetESTCACertificates, d.caCertificates},
		{http.MethodGet, "csrattrs", authz.GetESTAttributes, d.attributes},
		{http.MethodPost, simpleEnroll, authz.Enroll, d.enroll},
		{http.MethodPost, "simplereenroll", authz.Renew, d.reenroll},
		{http.MethodPost, "serverkeygen", authz.RefuseESTOperation, d.unsupported},
		{http.MethodPost, "fullcmc", authz.RefuseESTOperation, d.unsupported},
	} {
		for _, path := range []string{"/.well-known/est/", "/.well-known/est/{label}/"} {
			all.Routes = append(all.Routes, frontdoor.Route{
				Method: r.method, Path: path + r.name, Operation: r.operation, MaxBody: maxBody, Handle: r.handle,
			})
		}
	}
	return all
}

const simpleEnroll = "simpleenroll"

// defaultLabel is the label of URLs without one.
const defaultLabel = "default"

// label returns the label in the URL of a request.
func (d *door) label(r *frontdoor.Request) (ra.Label, error) {
	name := r.PathValue("label")
	if name == "" {
		name = defaultLabel
	}
	l, ok := d.config.Labels()[name]
	if !ok {
		return l, ra.RefuseLabel(name)
	}
	return l, nil
}

// caCertificates serves cacerts (RFC 7030 §4.1): all roots that devices should trust, and the CAs below them.
func (d *door) caCertificates(_ context.Context, r *frontdoor.Request) (frontdoor.Response, error) {
	if _, err := d.label(r); err != nil {
		return frontdoor.Response{}, err
	}
	roots, intermediates := d.config.Authorities.Bundle()
	return certsOnly(append(roots, intermediates...))
}

// unsupported refuses operations that the server does not offer.
func (d *door) unsupported(_ context.Context, r *frontdoor.Request) (frontdoor.Response, error) {
	if _, err := d.label(r); err != nil {
		return frontdoor.Response{}, err
	}
	operation := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	return frontdoor.Response{}, pki.Refuse(pki.RuleESTOperation,
		"generate the key on the device, and send a CSR for it to simpleenroll", "this server does not offer %s", operation)
}
