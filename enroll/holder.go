package enroll

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync/atomic"
)

// holder is where an Agent or a Source keeps the pair in use. All of its methods are safe for concurrent use.
type holder struct{ pair atomic.Pointer[Pair] }

// Pair returns the pair in use, nil before the first.
func (h *holder) Pair() *Pair { return h.pair.Load() }

// Certificate returns the certificate in use with its chain and key, nil before the first. Callers share it.
func (h *holder) Certificate() *tls.Certificate {
	if p := h.Pair(); p != nil {
		return p.TLS()
	}
	return nil
}

// Roots returns the trust domain's roots, nil before the first credential. Callers share the pool.
func (h *holder) Roots() *x509.CertPool {
	if p := h.Pair(); p != nil {
		return p.RootPool()
	}
	return nil
}

// GetCertificate is for a server's tls.Config: each handshake gets the certificate in use.
func (h *holder) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return h.certificate()
}

// GetClientCertificate is for a client's tls.Config: each handshake gets the certificate in use.
func (h *holder) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return h.certificate()
}

func (h *holder) certificate() (*tls.Certificate, error) {
	if c := h.Certificate(); c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("enroll: %w: enroll first", ErrNoCredential)
}
