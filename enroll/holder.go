package enroll

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync/atomic"
)

// holder holds the pair that an Agent or a Source uses. Its methods are safe for concurrent use.
type holder struct{ pair atomic.Pointer[Pair] }

// Pair returns the pair in use, or nil before there is one.
func (h *holder) Pair() *Pair { return h.pair.Load() }

// Certificate returns the certificate in use with its chain and key, or nil before there is one. Callers must not
// change it.
func (h *holder) Certificate() *tls.Certificate {
	if p := h.Pair(); p != nil {
		return p.TLS()
	}
	return nil
}

// Roots returns the trust domain's roots, or nil before there is a credential. Callers must not change the pool.
func (h *holder) Roots() *x509.CertPool {
	if p := h.Pair(); p != nil {
		return p.RootPool()
	}
	return nil
}

// GetCertificate returns the certificate in use for each handshake. It is meant for the field of the same name in a
// server's [tls.Config].
func (h *holder) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return h.certificate()
}

// GetClientCertificate returns the certificate in use for each handshake. It is meant for the field of the same name in
// a client's [tls.Config].
func (h *holder) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return h.certificate()
}

func (h *holder) certificate() (*tls.Certificate, error) {
	if c := h.Certificate(); c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("%w: enroll first", ErrNoCredential)
}
